/*
 * branch.c - the ends of blocks: direct exits with chaining, conditional ones, indirect ones through the jump cache.
 *
 * Direct exit:   jmp rel32 --unlinked----> stub: ARG = exit, to C, which finds victims and flags in their slots
 *                          --same victims-> target's inner entry (victims stay spilled, slots stay right)
 *                          --others-------> thunk: victims back -> target's entry
 *                          --other page---> page check: the target page's shadow entry must be what it was when the link was made
 *                                           (one compare, no flags; of a movable block: entry plus address, which is where
 *                                           the page is in the host) -> one of the former two
 * Every cycle of translated code passes a direct exit (which a kick unlinks) or an indirect one (which polls `request`).
 */
#include "vmm/cpu/translate/tr.h"

void fvm_tr_jmp_tramp(struct fvm_tr *tr, unsigned tramp)
{
    struct fvm_emit *em = &tr->em;
    e8(em, 0xe9);
    e32(em, tr->e->tramp[tramp] - (tr->b->code_off + em->at + 4));
}

uint32_t fvm_tr_site(struct fvm_tr *tr, unsigned want, unsigned size)
{
    struct fvm_engine *e = tr->e;
    fvm_assert(e->site_count < e->site_max);
    uint32_t n = e->site_count++;
    e->sites[n] = (struct fvm_site){.block = tr->block, .mark = (uint8_t)tr->cur, .ureg = tr->u, .want = (uint8_t)want,
                                    .size = (uint16_t)size};
    return n;
}

void fvm_tr_restore_victims(struct fvm_tr *tr)
{
    for (unsigned k = 0; k < tr->b->victim_count && k < 2; k++)
        e_fs_load(&tr->em, tr->b->victim[k], fvm_victim_slot(k));
}

static void restore_extras(struct fvm_tr *tr)
{
    for (unsigned k = 2; k < tr->b->victim_count; k++)
        e_fs_load(&tr->em, tr->b->victim[k], fvm_victim_slot(k));
}

static uint32_t exit_new(struct fvm_tr *tr, uint64_t target)
{
    struct fvm_engine *e = tr->e;
    fvm_assert(e->exit_count < e->exit_max);
    uint32_t n = e->exit_count++;
    e->exits[n] = (struct fvm_exit){.block = tr->block, .target = target - tr->base, .to = FVM_NONE, .now = FVM_NONE, .next_incoming = FVM_NONE,
                                    .flags_saved = tr->saved};
    tr->b->exit_count++;
    return n;
}

static void exit_cold(struct fvm_tr *tr, uint32_t exit, uint32_t jump_at)
{
    tr->e->exits[exit].jump_off = jump_at;
    tr->cold[tr->cold_n++] = (struct fvm_cold){.kind = FVM_COLD_EXIT, .exit = exit, .mark = (uint8_t)tr->cur};
}

void fvm_tr_place(struct fvm_tr *tr, unsigned before)
{
    while (((tr->b->code_off + tr->em.at + before) & 63) > 60)
        e8(&tr->em, 0x90);
}

/* A loop of one block keeps its victims spilled, if its flags are where the body wants them. */
static bool exit_self(struct fvm_tr *tr, uint32_t n, uint64_t target)
{
    struct fvm_exit *x = &tr->e->exits[n];
    const struct fvm_block *b = tr->b;
    x->self = target == tr->rip && b->victim_count > 2 && !b->cross_page && !(tr->mode & (FVM_MODE_SINGLE | FVM_MODE_PLAIN | FVM_MODE_SEG)) &&
              (b->natural || b->live_flags ? (b->natural != 0) == (x->flags_saved != 0) : true);
    return x->self;
}

void fvm_tr_exit_direct(struct fvm_tr *tr, uint64_t target)
{
    uint32_t n = exit_new(tr, target);
    if (!exit_self(tr, n, target))
        restore_extras(tr);
    fvm_tr_place(tr, 1);
    exit_cold(tr, n, e_jmp(&tr->em));
    tr->ended = true;
}

/* To the plain block for the current instruction: fvm_tr_warm_exit makes the jump. */
uint32_t fvm_tr_exit_plain(struct fvm_tr *tr)
{
    uint32_t n = exit_new(tr, tr->rip + fvm_tr_cur(tr)->off);
    tr->e->exits[n].plain = 1;
    return n;
}

/* A conditional branch in the middle of a block: the block goes on where it is not taken. */
void fvm_tr_exit_side(struct fvm_tr *tr, unsigned cc, uint64_t target)
{
    fvm_tr_flags_restore(tr, tr->u);
    uint32_t n = exit_new(tr, target);
    fvm_tr_place(tr, 2);
    uint32_t at = e_jcc(&tr->em, cc);
    if (tr->b->victim_count <= 2)
        exit_cold(tr, n, at);
    else
        tr->cold[tr->cold_n++] = (struct fvm_cold){.kind = FVM_COLD_SIDE, .exit = n, .from1 = at, .mark = (uint8_t)tr->cur};
}

void fvm_tr_exit_two(struct fvm_tr *tr, unsigned cc, uint64_t target, uint64_t next)
{
    uint32_t n = exit_new(tr, target);
    bool self = exit_self(tr, n, target);
    if (!self)
        restore_extras(tr);
    fvm_tr_place(tr, 2);
    exit_cold(tr, n, e_jcc(&tr->em, cc));
    if (self)
        restore_extras(tr);
    uint32_t m = exit_new(tr, next);
    fvm_tr_place(tr, 1);
    exit_cold(tr, m, e_jmp(&tr->em));
    tr->ended = true;
}

void fvm_tr_exit_cond(struct fvm_tr *tr, unsigned cc, uint64_t target, uint64_t next)
{
    fvm_tr_flags_restore(tr, tr->u);
    fvm_tr_exit_two(tr, cc, target, next);
}

/* entry <- shadow entry of the page that an exit leads to; movable: plus its address, and `page` <- that address. No flags. */
static void load_target_entry(struct fvm_tr *tr, const struct fvm_exit *x, unsigned page, unsigned entry)
{
    struct fvm_emit *em = &tr->em;
    if (!fvm_mode_movable(tr->mode)) {
        e_mov_imm(em, entry, ((fvm_mode_linear(tr->mode, x->target) << 16) >> 28) * 8);
        e8(em, 0x65);
        e_op_mem(em, true, 0x8b, entry, entry, FVM_NOREG, 0, 0);
        return;
    }
    e_fs_load(em, page, FVM_SLOT_ANCHOR);
    fvm_tr_add_page_offset(tr, page, (int64_t)(x->target & ~FVM_PAGE_MASK));
    fvm_tr_anchored_entry(tr, page, entry);
    e_lea(em, entry, entry, page, 0, 0);
}

/* entry <- gs:[index of the page-aligned address in `page`]. No flags. */
void fvm_tr_anchored_entry(struct fvm_tr *tr, unsigned page, unsigned entry)
{
    struct fvm_emit *em = &tr->em;
    e_mov_imm(em, entry, 16);
    e_shlx(em, entry, page, entry);
    e_rorx(em, entry, entry, 28); /* the low 28 bits are 0 */
    e8(em, 0x65);
    e_op_mem(em, true, 0x8b, entry, FVM_NOREG, entry, 3, 0);
}

void fvm_tr_add_page_offset(struct fvm_tr *tr, unsigned reg, int64_t n)
{
    for (; n != (int32_t)n; n -= n < 0 ? INT32_MIN : INT32_MAX)
        e_lea(&tr->em, reg, reg, FVM_NOREG, 0, n < 0 ? INT32_MIN : INT32_MAX);
    if (n)
        e_lea(&tr->em, reg, reg, FVM_NOREG, 0, (int32_t)n);
}

/*
 * Goes on if the target's page has the entry that it had when the link was made; else all is as before. The block's victims
 * are free. Where the guest's flags are in the host's, jrcxz compares without them. Behind the check a movable block's anchor is
 * the target's: from there on `moved_off` is the way out.
 */
static void page_check(struct fvm_tr *tr, uint32_t n)
{
    struct fvm_emit *em = &tr->em;
    struct fvm_exit *x = &tr->e->exits[n];
    bool borrowed = !tr->b->victim_count;
    unsigned a = borrowed ? FVM_R15 : tr->u, b = borrowed ? FVM_R14 : tr->t;
    uint32_t fail = 0;
    x->moved_off = em->at;
    if (fvm_mode_movable(tr->mode)) {
        e_fs_store_imm(em, FVM_SLOT_ARG, n | FVM_EXIT_MOVED);
        fvm_tr_jmp_tramp(tr, FVM_TRAMP_DIRECT);
    } else {
        x->moved_off = x->stub_off;
    }
    while (em->at & 7)
        e8(em, 0xcc);
    x->expect_off = em->at;
    e64(em, 0);
    x->check_off = em->at;
    if (borrowed) {
        e_fs_store(em, FVM_SLOT_TMP, a);
        e_fs_store(em, FVM_SLOT_TMP2, b);
    }
    load_target_entry(tr, x, a, b);
    if (x->flags_saved) {
        e_rip_op(em, 0x03, b, x->expect_off);
        fail = e_jcc(em, CC_NE);
    } else {
        e_fs_store(em, FVM_SLOT_CALL, FVM_RCX);
        e_rip_op(em, 0x8b, FVM_RCX, x->expect_off);
        e_lea(em, FVM_RCX, FVM_RCX, b, 0, 0);
        e8(em, 0xe3), e8(em, 5); /* jrcxz over the jump */
        fail = e_jmp(em);
        e_fs_load(em, FVM_RCX, FVM_SLOT_CALL);
    }
    if (fvm_mode_movable(tr->mode))
        e_fs_store(em, FVM_SLOT_ANCHOR, a);
    if (borrowed) {
        e_fs_load(em, a, FVM_SLOT_TMP);
        e_fs_load(em, b, FVM_SLOT_TMP2);
    }
    fvm_tr_place(tr, 1);
    x->check_jump_off = e_jmp(em);
    e_patch(em, x->check_jump_off, x->moved_off);
    e_patch_here(em, fail);
    if (!x->flags_saved)
        e_fs_load(em, FVM_RCX, FVM_SLOT_CALL);
    if (borrowed) {
        e_fs_load(em, a, FVM_SLOT_TMP);
        e_fs_load(em, b, FVM_SLOT_TMP2);
    }
    e_jmp_to(em, x->stub_off);
}

/* Where an exit goes unlinked. */
void fvm_tr_cold_exit(struct fvm_tr *tr, struct fvm_cold *c)
{
    struct fvm_emit *em = &tr->em;
    struct fvm_exit *x = &tr->e->exits[c->exit];
    x->stub_off = x->moved_off = em->at;
    e_fs_store_imm(em, FVM_SLOT_ARG, c->exit);
    fvm_tr_jmp_tramp(tr, FVM_TRAMP_DIRECT);
}

/* What an exit does on its way to a target that is not the next thing behind its jump. */
void fvm_tr_warm_exit(struct fvm_tr *tr, struct fvm_cold *c)
{
    struct fvm_emit *em = &tr->em;
    struct fvm_exit *x = &tr->e->exits[c->exit];
    if (c->kind != FVM_COLD_EXIT) { /* out of the middle: the jump comes after this */
        if (c->kind == FVM_COLD_SIDE)
            e_patch_here(em, c->from1);
        restore_extras(tr);
        fvm_tr_place(tr, 1);
        x->jump_off = e_jmp(em);
    }
    e_patch(em, x->jump_off, x->stub_off);
    if (tr->mode & FVM_MODE_SINGLE)
        return;
    x->thunk_off = em->at;
    fvm_tr_restore_victims(tr);
    fvm_tr_place(tr, 1);
    x->jump2_off = e_jmp(em);
    e_patch(em, x->jump2_off, x->stub_off);
    if ((fvm_mode_linear(tr->mode, x->target + tr->base) ^ tr->lin) & ~FVM_PAGE_MASK)
        page_check(tr, c->exit);
}

bool fvm_block_canonical(const struct fvm_block *b)
{
    return b->victim_count >= 2 && b->victim[0] == FVM_R15 && b->victim[1] == FVM_R14;
}

/*
 * Guest target in t. The jump cache's code addresses want r15 and r14 spilled (most blocks have just these as victims, and then
 * nothing moves). A kick from behind the poll of `request` on goes to the slow way: until spill_off every victim's slot is still right,
 * from there on every register is.
 */
void fvm_tr_exit_indirect(struct fvm_tr *tr)
{
    struct fvm_emit *em = &tr->em;
    fvm_tr_flags_clobber(tr, FVM_ARITH_FLAGS);
    restore_extras(tr);
    if (tr->mode & (FVM_MODE_SINGLE | FVM_MODE_SEG)) { /* the jump cache leads to flat blocks of many instructions */
        e_fs_store(em, FVM_SLOT_TGT, tr->t);
        fvm_tr_restore_victims(tr);
        fvm_tr_jmp_tramp(tr, FVM_TRAMP_INDIRECT);
        tr->ended = true;
        return;
    }
    struct fvm_cold *c = &tr->cold[tr->cold_n++];
    *c = (struct fvm_cold){.kind = FVM_COLD_INDIRECT, .mark = (uint8_t)tr->cur};
    int32_t jc = tr->user ? -FVM_JC_USER_BYTES : FVM_OFF_JC;
    unsigned seg = tr->user ? 0x65 : 0x64;
    e_fs_store(em, FVM_SLOT_TGT, tr->t);
    if (fvm_mode_movable(tr->mode)) {
        e_mov(em, tr->u, tr->t);
        e_alu_imm(em, true, 4, tr->u, ~(int32_t)FVM_PAGE_MASK);
        e_fs_store(em, FVM_SLOT_ANCHOR, tr->u);
    }
    e_fs_cmp32_0(em, FVM_OFF_REQUEST);
    tr->b->ind_off = em->at;
    c->from1 = e_jcc(em, CC_NE);
    e_mov32(em, tr->u, tr->t);
    e_rex(em, false, 0, 0, tr->u), e8(em, 0xc1), e8(em, 0xe8 | (tr->u & 7)), e8(em, FVM_JC_FOLD); /* shr u32 */
    e_rr(em, false, 0x31, tr->t, tr->u); /* xor u32, t32 */
    e_alu_imm(em, false, 4, tr->u, (tr->user ? FVM_JC_USER_ENTRIES : FVM_JC_ENTRIES) - 1);
    e_shl(em, tr->u, 4);
    e8(em, seg);
    e_op_mem(em, true, 0x3b, tr->t, tr->u, FVM_NOREG, 0, jc); /* cmp t, [jc + u] */
    c->from2 = e_jcc(em, CC_NE);
    if (fvm_block_canonical(tr->b)) {
        e8(em, seg); /* jmp [jc + u + 8] */
        e_rex(em, false, 0, 0, tr->u);
        e8(em, 0xff);
        e_mem(em, 4, tr->u, FVM_NOREG, 0, jc + 8);
        tr->b->ind_spill_off = em->at;
    } else {
        e8(em, seg);
        e_load(em, tr->u, tr->u, FVM_NOREG, jc + 8);
        e_fs_store(em, FVM_SLOT_RET, tr->u);
        fvm_tr_restore_victims(tr);
        tr->b->ind_spill_off = em->at;
        e_fs_store(em, FVM_SLOT_V0, FVM_R15);
        e_fs_store(em, FVM_SLOT_V1, FVM_R14);
        e8(em, 0x64), e8(em, 0xff); /* jmp fs:[RET] */
        e_mem(em, 4, FVM_NOREG, FVM_NOREG, 0, FVM_SLOT_RET);
    }
    tr->b->ind_end = em->at;
    tr->ended = true;
}

void fvm_tr_cold_indirect(struct fvm_tr *tr, struct fvm_cold *c)
{
    tr->b->ind_slow_off = tr->em.at;
    e_patch_here(&tr->em, c->from1);
    e_patch_here(&tr->em, c->from2);
    fvm_tr_restore_victims(tr);
    tr->b->ind_slow_jump_off = tr->em.at;
    fvm_tr_jmp_tramp(tr, FVM_TRAMP_INDIRECT);
}

void fvm_tr_exit_stub(struct fvm_tr *tr, unsigned tramp)
{
    uint32_t site = fvm_tr_site(tr, 0, 0);
    tr->e->sites[site].flags_saved = tr->saved;
    e_fs_store_imm(&tr->em, FVM_SLOT_ARG, site);
    fvm_tr_jmp_tramp(tr, tramp);
    tr->ended = true;
}

static unsigned branch_bytes(const struct fvm_tr *tr, const struct fvm_insn *in)
{
    return tr->bits == 64 ? 8 : in->z.operand_width / 8u;
}

/* t = the word at h, zero-extended */
static void target_load(struct fvm_tr *tr, const struct fvm_hostref *h, unsigned bytes)
{
    struct fvm_emit *em = &tr->em;
    if (bytes == 2) {
        e_rex(em, false, tr->t, e_n(h->index), h->base), e8(em, 0x0f), e8(em, 0xb7);
        e_mem(em, tr->t, h->base, h->index, 0, h->disp);
    } else {
        e_op_mem(em, bytes == 8, 0x8b, tr->t, h->base, h->index, 0, h->disp);
    }
}

/* target of call/jmp [mem] or reg into t */
static void indirect_target(struct fvm_tr *tr, struct fvm_tr_insn *i)
{
    unsigned bytes = branch_bytes(tr, &i->in);
    bool high;
    if (i->in.ops[0].type == ZYDIS_OPERAND_TYPE_REGISTER) {
        unsigned r = (unsigned)fvm_decode_gpr(i->in.ops[0].reg.value, &high);
        if (bytes == 8)
            e_mov(&tr->em, tr->t, r);
        else if (bytes == 4)
            e_mov32(&tr->em, tr->t, r);
        else
            e_rex(&tr->em, false, tr->t, 0, r), e8(&tr->em, 0x0f), e8(&tr->em, 0xb7), e8(&tr->em, 0xc0 | (tr->t & 7) << 3 | (r & 7));
        return;
    }
    struct fvm_memref m;
    struct fvm_hostref h;
    fvm_tr_memref(tr, i, 0, &m);
    fvm_tr_access(tr, &m, false, bytes, FVM_R, &h);
    target_load(tr, &h, bytes);
}

static void emit_loop(struct fvm_tr *tr, struct fvm_tr_insn *i, uint64_t target)
{
    /* the native instruction, jumping over a near jump: loop/loope/loopne/jrcxz are short only */
    struct fvm_emit *em = &tr->em;
    restore_extras(tr);
    fvm_tr_flags_restore(tr, tr->u);
    while (((tr->b->code_off + em->at + 4) & 63) > 50) /* both jumps' rel32 in one cache line */
        e8(em, 0x90);
    if (i->in.z.address_width == 32)
        e8(em, 0x67);
    e8(em, i->in.z.opcode);
    e8(em, 5);
    uint32_t m = exit_new(tr, fvm_tr_next_rip(tr, i));
    exit_cold(tr, m, e_jmp(em));
    uint32_t n = exit_new(tr, target);
    exit_cold(tr, n, e_jmp(em));
    tr->ended = true;
}

void fvm_tr_emit_branch(struct fvm_tr *tr, struct fvm_tr_insn *i)
{
    struct fvm_insn *in = &i->in;
    uint64_t next = fvm_tr_next_rip(tr, i);
    uint64_t target = next + (uint64_t)in->z.raw.imm[0].value.s;
    unsigned bytes = branch_bytes(tr, in);
    if (tr->bits != 64)
        target = in->z.operand_width == 16 ? (uint16_t)target : (uint32_t)target;
    switch (i->class) {
    case FVM_C_JMP:
        fvm_tr_exit_direct(tr, target);
        break;
    case FVM_C_JCC:
        if (tr->cur + 1 < tr->n)
            fvm_tr_exit_side(tr, in->z.opcode & 15, target);
        else
            fvm_tr_exit_cond(tr, in->z.opcode & 15, target, next);
        break;
    case FVM_C_LOOP:
        if (in->z.address_width == 16)
            fvm_seg16_loop(tr, i, target);
        else
            emit_loop(tr, i, target);
        break;
    case FVM_C_CALL:
        fvm_tr_push_rip(tr, next, bytes);
        fvm_tr_exit_direct(tr, target);
        break;
    case FVM_C_JMP_IND:
        indirect_target(tr, i);
        fvm_tr_exit_indirect(tr);
        break;
    case FVM_C_CALL_IND:
        indirect_target(tr, i);
        e_fs_store(&tr->em, FVM_SLOT_CALL, tr->t);
        fvm_tr_push_rip(tr, next, bytes);
        e_fs_load(&tr->em, tr->t, FVM_SLOT_CALL);
        fvm_tr_exit_indirect(tr);
        break;
    case FVM_C_RET: {
        struct fvm_memref m;
        struct fvm_hostref h;
        fvm_tr_stack_ref(tr, 0, &m);
        fvm_tr_access(tr, &m, true, bytes, FVM_R, &h);
        target_load(tr, &h, bytes);
        unsigned pop = in->z.operand_count_visible ? (unsigned)in->ops[0].imm.value.u : 0;
        fvm_tr_rsp_add(tr, (int32_t)(bytes + pop));
        fvm_tr_exit_indirect(tr);
        break;
    }
    default:
        fvm_assert(!"branch class");
    }
}
