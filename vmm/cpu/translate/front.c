/*
 * front.c - from guest bytes to a block: fetch, decode, choose where the block ends and which registers it spills, emit.
 *
 * The page is marked as code (write right withheld) before its bytes are read, so a concurrent writer is seen either by us or
 * by the code hook; a vCPU that may be writing past the hook is stopped first (fvm_code_write_begin). Every byte read, also those looked at behind a branch to learn whether flags are dead there, is noted in
 * the page's byte map: a write to any of them drops the page's blocks.
 */
#include "vmm/cpu/descriptor.h"
#include "vmm/cpu/translate/tr.h"

struct fetch {
    const uint8_t *page;   /* hva of the page that rip is in */
    uint64_t gpa;          /* of rip */
    uint64_t entry2;       /* shadow entry of the next page, when an instruction crosses */
    uint64_t gpa2;         /* of the next page */
    const uint8_t *page2;
};

/* From now on no vCPU writes to the page but through the code hook. */
static void protect_page(struct fvm_vcpu *v, fvm_pfn pfn)
{
    struct fvm_engine *e = v->engine;
    uint64_t stop = 0;
    bool fresh = !(__atomic_load_n(&v->ram->flags[pfn], __ATOMIC_RELAXED) & FVM_PAGE_CODE);
    if (fresh)
        fvm_shadow_protect_page(v->shadow, pfn);
    for (unsigned k = 0; k < e->vcpu_count; k++) {
        const struct fvm_vcpu_priv *p = e->vcpus[k]->priv;
        if (e->vcpus[k] != v && ((fresh && fvm_shadow_may_write(e->vcpus[k]->shadow, pfn)) ||
                                 __atomic_load_n(&p->code_write, __ATOMIC_SEQ_CST) == pfn + 1))
            stop |= 1ull << k;
    }
    if (!stop)
        return;
    fvm_world_stop(e, stop);
    for (unsigned k = 0; k < e->vcpu_count; k++)
        if (stop >> k & 1) {
            struct fvm_vcpu_priv *p = e->vcpus[k]->priv;
            fvm_shadow_protect_page(e->vcpus[k]->shadow, pfn);
            p->code_write = 0;
        }
    fvm_world_go(e);
}

static int fetch_page(struct fvm_vcpu *v, uint64_t va, bool user, const uint8_t **ret_hva, uint64_t *ret_gpa,
                      uint64_t *ret_entry, struct fvm_fault *fault)
{
    unsigned right = user ? FVM_S_UX : FVM_S_KX;
    uint64_t entry = fvm_shadow_peek(v->shadow, va);
    if (!(entry & right) || !fvm_canonical(va)) { /* the entry is the canonical alias' */
        fvm_gpa gpa;
        enum fvm_shadow_result r = fvm_shadow_miss(v->shadow, va, FVM_X | (user ? FVM_USER : 0), &entry, &gpa, fault);
        if (r == FVM_SHADOW_FAULT)
            return FVM_FAULT;
        if (r != FVM_SHADOW_OK) { /* instruction fetch from a device: as good as a bus error */
            *fault = (struct fvm_fault){.vector = FVM_EXC_GP, .has_code = true};
            return FVM_FAULT;
        }
    }
    const uint8_t *hva = (const uint8_t *)(va + (entry & ~0xffull));
    *ret_hva = (const uint8_t *)((uintptr_t)hva & ~(uintptr_t)FVM_PAGE_MASK);
    *ret_gpa = (uint64_t)(hva - v->ram->base);
    fvm_pfn pfn = *ret_gpa >> FVM_PAGE_SHIFT;
    protect_page(v, pfn);
    *ret_entry = fvm_shadow_peek(v->shadow, va);
    return 0;
}

static uint64_t second_page(const struct fvm_tr *tr)
{
    uint64_t va = (tr->lin & ~FVM_PAGE_MASK) + FVM_PAGE_SIZE;
    return tr->bits == 64 ? va : (uint32_t)va;
}

static void note_bytes(struct fvm_engine *e, uint64_t gpa, unsigned len)
{
    struct fvm_code_page *p = fvm_code_page_get(e, gpa >> FVM_PAGE_SHIFT);
    unsigned o = gpa & FVM_PAGE_MASK;
    for (unsigned k = o; k < o + len && k < FVM_PAGE_SIZE; k++)
        __atomic_store_n(&p->bytes[k >> 3], (uint8_t)(p->bytes[k >> 3] | 1u << (k & 7)), __ATOMIC_RELAXED);
}

/* Are any arithmetic flags read at `target` before being written? Looks at a few instructions of the same page. */
static uint16_t flags_live_at(struct fvm_tr *tr, const struct fetch *f, uint64_t target)
{
    uint16_t pending = FVM_ARITH_FLAGS;
    uint64_t lin = fvm_mode_linear(tr->mode, target);
    if ((lin & ~FVM_PAGE_MASK) != (tr->lin & ~FVM_PAGE_MASK))
        return pending;
    unsigned o = lin & FVM_PAGE_MASK, first = o;
    struct fvm_tr_insn i;
    for (unsigned n = 0; n < 16 && pending; n++) {
        memset(&i, 0, offsetof(struct fvm_tr_insn, in));
        if (fvm_decode(f->page + o, FVM_PAGE_SIZE - o, tr->bits, &i.in) != FVM_DECODE_OK)
            break;
        fvm_tr_flags_analyse(&i);
        if (i.f_read & pending)
            break;
        pending &= (uint16_t)~i.f_kill;
        o += i.in.len;
        if (i.in.z.meta.branch_type != ZYDIS_BRANCH_TYPE_NONE || fvm_insn_is_system(&i.in))
            break;
    }
    if (pending != FVM_ARITH_FLAGS)
        note_bytes(tr->e, (f->gpa & ~FVM_PAGE_MASK) + first, o - first);
    return pending;
}

static uint16_t live_at_end(struct fvm_tr *tr, const struct fetch *f)
{
    struct fvm_tr_insn *last = &tr->insns[tr->n - 1];
    uint64_t next = fvm_tr_next_rip(tr, last), target = next + (uint64_t)last->in.z.raw.imm[0].value.s;
    switch (last->class) {
    case FVM_C_JMP: case FVM_C_CALL:
        return flags_live_at(tr, f, target);
    case FVM_C_JCC: {
        uint16_t l = flags_live_at(tr, f, target);
        return l == FVM_ARITH_FLAGS ? l : (uint16_t)(l | flags_live_at(tr, f, next));
    }
    default:
        return fvm_tr_ends_block(last) ? FVM_ARITH_FLAGS : flags_live_at(tr, f, next);
    }
}

/*
 * Registers to spill for the block, or false when too few are free. The same preference everywhere makes most blocks spill the same
 * two, so that they stay spilled from block to block; a block that needs none spills them, too, if it does not use them.
 */
static bool pick_victims(uint16_t used, uint8_t need, bool high, uint8_t ret[3])
{
    static const uint8_t order[15] = {FVM_R15, FVM_R14, FVM_R13, FVM_R12, FVM_R11, FVM_R10, FVM_R9, FVM_R8,
                                      FVM_RBP, FVM_RBX, FVM_RSI, FVM_RDI, FVM_RDX, FVM_RCX, FVM_RAX};
    unsigned want = need & 4 ? 3 : 2, got = 0;
    if (!need && (used & (1u << FVM_R15 | 1u << FVM_R14)))
        return true;
    for (unsigned k = need && high ? 8 : 0; k < 15 && got < want; k++)
        if (!(used & 1u << order[k]))
            ret[got++] = order[k];
    return got == want;
}

#define SHORT_BLOCK 5
#define SIDE_EXITS 3 /* what follows is translated again behind each that is taken */
/* Is a register left besides two scratch registers? A block that goes on without one has a check for every access. */
static bool room_for_group(uint16_t used)
{
    return __builtin_popcount((uint16_t)~(used | 1u << FVM_RSP)) >= 3;
}

/* A conditional branch that leads forward does not end its block, which goes on where it is not taken. */
static bool goes_on(const struct fvm_tr *tr, const struct fvm_tr_insn *i)
{
    unsigned sides = 0;
    for (unsigned k = 0; k < tr->n; k++)
        sides += tr->insns[k].class == FVM_C_JCC;
    return sides <= SIDE_EXITS && i->class == FVM_C_JCC && tr->bits == 64 && !(tr->mode & FVM_MODE_SINGLE) && i->in.z.raw.imm[0].value.s > 0;
}

static int decode_block(struct fvm_tr *tr, struct fetch *f, struct fvm_fault *fault)
{
    unsigned o = tr->lin & FVM_PAGE_MASK, max = tr->mode & FVM_MODE_SINGLE ? 1 : FVM_BLOCK_INSNS_MAX;
    if (tr->mode & FVM_MODE_SEG) /* whose accesses have more cold code */
        max = FVM_MIN(max, FVM_BLOCK_INSNS_MAX / 2u);
    uint16_t used = 0;
    uint8_t need = 0;
    bool high = false;
    while (tr->n < max) {
        if (tr->n && fvm_debug_near(tr->v->engine, (tr->lin & ~FVM_PAGE_MASK) + o))
            break;
        struct fvm_tr_insn *i = &tr->insns[tr->n];
        memset(i, 0, offsetof(struct fvm_tr_insn, in));
        memset((uint8_t *)i + offsetof(struct fvm_tr_insn, off), 0, sizeof *i - offsetof(struct fvm_tr_insn, off));
        int r = o < FVM_PAGE_SIZE ? fvm_decode(f->page + o, FVM_PAGE_SIZE - o, tr->bits, &i->in) : FVM_DECODE_SHORT;
        if (r == FVM_DECODE_SHORT) {
            if (tr->n)
                break;
            uint64_t va2 = second_page(tr);
            if (fetch_page(tr->v, va2, tr->user, &f->page2, &f->gpa2, &f->entry2, fault))
                return FVM_FAULT;
            uint8_t both[32];
            unsigned have = (unsigned)FVM_PAGE_SIZE - o;
            memcpy(both, f->page + o, have);
            memcpy(both + have, f->page2, 15);
            r = fvm_decode(both, have + 15, tr->bits, &i->in);
            tr->b->cross_page = 1;
        }
        i->off = (uint16_t)(o - (tr->lin & FVM_PAGE_MASK));
        if (r != FVM_DECODE_OK) {
            if (tr->n)
                break;
            i->class = FVM_C_UD;
            i->in.len = 1;
            tr->n = 1;
            return 0;
        }
        if (FVM_UNLIKELY(tr->mode & FVM_MODE_SEG) && !fvm_seg16_fetch_ok(tr->v, tr->rip + i->off, i->in.len)) {
            if (tr->n)
                break;
            return fvm_raise_gp0(fault);
        }
        fvm_tr_classify(tr, i);
        uint8_t v3[3];
        if (!pick_victims(used | i->regs | 1u << FVM_RSP, need | i->need, high || i->high_byte, v3)) {
            fvm_assert(tr->n);
            break;
        }
        if (tr->n >= SHORT_BLOCK && i->need && !room_for_group(used | i->regs))
            break;
        used |= i->regs;
        need |= i->need;
        high |= i->high_byte;
        tr->n++;
        o += i->in.len;
        if ((fvm_tr_ends_block(i) && !goes_on(tr, i)) || tr->b->cross_page)
            break;
    }
    struct fvm_tr_insn *last = &tr->insns[tr->n - 1];
    if (last->class == FVM_C_STI) /* the instruction in its shadow must be in the same block: let C do it */
        last->class = FVM_C_SYSTEM, last->need = 0;
    uint8_t v3[3] = {FVM_NOREG, FVM_NOREG, FVM_NOREG};
    pick_victims(used | 1u << FVM_RSP, need, high, v3);
    tr->u = v3[0];
    tr->t = v3[1];
    tr->x = v3[2];
    for (unsigned k = 0; k < 3 && v3[k] != FVM_NOREG; k++)
        tr->b->victim[tr->b->victim_count++] = v3[k];
    fvm_tr_group(tr, used);
    return 0;
}

static void emit_ident_mem(struct fvm_tr *tr, struct fvm_tr_insn *i)
{
    struct fvm_memref m;
    struct fvm_hostref h;
    const ZydisDecodedOperand *o = &i->in.ops[i->mem_op];
    fvm_tr_memref(tr, i, i->mem_op, &m);
    fvm_tr_access(tr, &m, false, o->size / 8u, fvm_tr_operand_want(o), &h);
    fvm_tr_flags_before_op(tr, FVM_NOREG);
    tr->e->marks[tr->b->mark_first + tr->cur].flags_saved = tr->saved;
    fvm_tr_op_mem(tr, &i->in, &h);
    fvm_tr_flags_after_op(tr);
}

static unsigned fast_sys_kind(const struct fvm_insn *in)
{
    switch (in->z.mnemonic) {
    case ZYDIS_MNEMONIC_SYSCALL: return FVM_FAST_SYSCALL;
    case ZYDIS_MNEMONIC_SYSRET: return in->z.operand_width == 64 ? FVM_FAST_SYSRETQ : FVM_FAST_SYSRETL;
    case ZYDIS_MNEMONIC_IRETQ: return FVM_FAST_IRETQ;
    case ZYDIS_MNEMONIC_INVLPG: return FVM_FAST_INVLPG;
    case ZYDIS_MNEMONIC_WRMSR: return FVM_FAST_WRMSR;
    case ZYDIS_MNEMONIC_CPUID: return FVM_FAST_CPUID;
    case ZYDIS_MNEMONIC_WRFSBASE: return FVM_FAST_WRFSBASE;
    case ZYDIS_MNEMONIC_WRGSBASE: return FVM_FAST_WRGSBASE;
    case ZYDIS_MNEMONIC_XRSTOR: case ZYDIS_MNEMONIC_XRSTOR64: return FVM_FAST_XRSTOR;
    case ZYDIS_MNEMONIC_MOV: return FVM_FAST_CR3;
    default: return FVM_FAST_XSAVE;
    }
}

static void emit_fast_sys(struct fvm_tr *tr, struct fvm_tr_insn *i)
{
    unsigned kind = fast_sys_kind(&i->in), reg = 0;
    bool high, wide = i->in.z.raw.rex.W != 0;
    if (kind == FVM_FAST_CR3)
        reg = (unsigned)fvm_decode_gpr(i->in.ops[1].reg.value, &high);
    else if (kind == FVM_FAST_WRFSBASE || kind == FVM_FAST_WRGSBASE)
        reg = (unsigned)fvm_decode_gpr(i->in.ops[0].reg.value, &high);
    if (i->need) {
        struct fvm_memref m;
        fvm_tr_memref(tr, i, 0, &m);
        fvm_tr_address_to_t(tr, &m);
        e_fs_store(&tr->em, FVM_SLOT_EA, tr->t);
    }
    e_fs_store_imm(&tr->em, FVM_SLOT_TMP2, kind | reg << 8 | (uint32_t)i->in.len << 16 | (uint32_t)wide << 20);
    fvm_tr_exit_stub(tr, FVM_TRAMP_SYS);
}

static void emit_insn(struct fvm_tr *tr, struct fvm_tr_insn *i)
{
    struct fvm_insn_mark *mark = &tr->e->marks[tr->b->mark_first + tr->cur];
    *mark = (struct fvm_insn_mark){.host_off = (uint16_t)tr->em.at, .guest_off = i->off & 0xfffu, .flags_saved = tr->saved};
    switch (i->class) {
    case FVM_C_IDENT:
        fvm_tr_flags_before_op(tr, FVM_NOREG);
        mark->flags_saved = tr->saved;
        fvm_tr_copy(tr, &i->in);
        fvm_tr_flags_after_op(tr);
        break;
    case FVM_C_IDENT_MEM:
        emit_ident_mem(tr, i);
        break;
    case FVM_C_PUSH: case FVM_C_POP: case FVM_C_LEAVE: case FVM_C_PUSHF:
        fvm_tr_emit_stack(tr, i);
        break;
    case FVM_C_JMP: case FVM_C_JCC: case FVM_C_LOOP: case FVM_C_CALL: case FVM_C_RET: case FVM_C_JMP_IND: case FVM_C_CALL_IND:
        fvm_tr_emit_branch(tr, i);
        break;
    case FVM_C_FAST_SYS:
        emit_fast_sys(tr, i);
        break;
    case FVM_C_SYSTEM: case FVM_C_ONE: case FVM_C_UD: case FVM_C_NM:
        e_fs_store_imm(&tr->em, FVM_SLOT_TMP, i->class);
        fvm_tr_exit_stub(tr, FVM_TRAMP_SYSTEM);
        break;
    default:
        fvm_tr_emit_misc(tr, i);
    }
}

static void emit_cold(struct fvm_tr *tr)
{
    struct fvm_emit *em = &tr->em;
    for (unsigned k = 0; k < tr->cold_n; k++) {
        struct fvm_cold *c = &tr->cold[k];
        switch (c->kind) {
        case FVM_COLD_MEM: fvm_tr_cold_mem(tr, c); break;
        case FVM_COLD_EXIT: case FVM_COLD_SIDE: fvm_tr_cold_exit(tr, c); break;
        case FVM_COLD_GROUP: fvm_tr_cold_group(tr, c); break;
        case FVM_COLD_INDIRECT: fvm_tr_cold_indirect(tr, c); break;
        case FVM_COLD_STI: case FVM_COLD_ONE:
            e_patch_here(em, c->from1);
            if (c->kind == FVM_COLD_STI)
                tr->e->sites[c->site].flags_saved = c->flags_saved;
            e_fs_store_imm(em, FVM_SLOT_TMP, c->kind == FVM_COLD_STI ? FVM_C_SYSTEM : FVM_C_ONE);
            e_fs_store_imm(em, FVM_SLOT_ARG, c->site);
            fvm_tr_jmp_tramp(tr, FVM_TRAMP_SYSTEM);
            break;
        }
    }
}

/* A block with an instruction across two pages is valid only while the second page is what it was. */
static void emit_second_page_check(struct fvm_tr *tr, const struct fetch *f, uint32_t *ret_to_dead)
{
    struct fvm_emit *em = &tr->em;
    uint64_t va2 = second_page(tr);
    e_fs_store(em, FVM_SLOT_TMP, FVM_RCX);
    e_fs_store(em, FVM_SLOT_TMP2, FVM_RDX);
    if (fvm_mode_movable(tr->mode)) {
        e_fs_load(em, FVM_RDX, FVM_SLOT_ANCHOR);
        fvm_tr_add_page_offset(tr, FVM_RDX, (int64_t)FVM_PAGE_SIZE);
        fvm_tr_anchored_entry(tr, FVM_RDX, FVM_RCX);
        e_lea(em, FVM_RCX, FVM_RCX, FVM_RDX, 0, 0);
        e_mov_imm(em, FVM_RDX, 0 - f->entry2 - va2);
    } else {
        e_mov_imm(em, FVM_RCX, ((va2 << 16) >> 28) * 8);
        e8(em, 0x65);
        e_op_mem(em, true, 0x8b, FVM_RCX, FVM_RCX, FVM_NOREG, 0, 0);
        e_mov_imm(em, FVM_RDX, 0 - f->entry2);
    }
    e_lea(em, FVM_RCX, FVM_RCX, FVM_RDX, 0, 0);
    e_fs_load(em, FVM_RDX, FVM_SLOT_TMP2);
    e8(em, 0xe3);
    uint32_t short_at = em->at;
    e8(em, 0);
    e_fs_load(em, FVM_RCX, FVM_SLOT_TMP);
    *ret_to_dead = e_jmp(em);
    em->buf[short_at] = (uint8_t)(em->at - short_at - 1);
    e_fs_load(em, FVM_RCX, FVM_SLOT_TMP);
}

static void emit_flags_entry(struct fvm_tr *tr, uint32_t to, uint32_t *ret_off)
{
    *ret_off = tr->b->code_off + tr->em.at;
    fvm_tr_emit_flags_restore(&tr->em, FVM_NOREG);
    e_jmp_to(&tr->em, to);
}

/* Where the entries lead once the block is dropped. */
static void emit_dead_ends(struct fvm_tr *tr, uint32_t to_dead)
{
    struct fvm_emit *em = &tr->em;
    struct fvm_block *b = tr->b;
    b->dead_saved_off = b->code_off + em->at;
    if (b->natural) {
        e_fs_store_imm(em, FVM_SLOT_ARG, tr->block | FVM_DEAD_INNER | FVM_DEAD_SAVED);
        fvm_tr_jmp_tramp(tr, FVM_TRAMP_DEAD);
    }
    b->dead_inner_off = b->code_off + em->at;
    e_fs_store_imm(em, FVM_SLOT_ARG, tr->block | FVM_DEAD_INNER);
    fvm_tr_jmp_tramp(tr, FVM_TRAMP_DEAD);
    b->dead_off = b->code_off + em->at;
    if (to_dead)
        e_patch_here(em, to_dead);
    e_fs_store_imm(em, FVM_SLOT_ARG, tr->block);
    fvm_tr_jmp_tramp(tr, FVM_TRAMP_DEAD);
}

static void spill(struct fvm_tr *tr, unsigned from, unsigned to)
{
    for (unsigned k = from; k < to && k < tr->b->victim_count; k++)
        e_fs_store(&tr->em, fvm_victim_slot(k), tr->b->victim[k]);
}

/* The ways into the block besides its start. */
static void emit_entries(struct fvm_tr *tr)
{
    struct fvm_emit *em = &tr->em;
    struct fvm_block *b = tr->b;
    if (b->natural) {
        b->saved_off = b->code_off + em->at;
        spill(tr, 0, 2);
        e_jmp_to(em, b->saved_inner_off - b->code_off);
    } else if (b->live_flags) {
        emit_flags_entry(tr, 0, &b->saved_off);
        emit_flags_entry(tr, b->inner_off - b->code_off, &b->saved_inner_off);
    } else {
        b->saved_off = b->code_off;
        b->saved_inner_off = b->inner_off;
    }
    if (fvm_block_canonical(b) && !b->cross_page) {
        b->canon_off = b->saved_inner_off;
        return;
    }
    b->canon_off = b->code_off + em->at;
    e_fs_load(em, FVM_R15, FVM_SLOT_V0);
    e_fs_load(em, FVM_R14, FVM_SLOT_V1);
    e_jmp_to(em, b->saved_off - b->code_off);
}

/* Will live flags be put aside before anything reads or sets some? Then they may come that way, too. */
static bool wants_saved_flags(const struct fvm_tr *tr)
{
    for (unsigned k = 0; k < tr->n && tr->insns[k].live_in; k++) {
        const struct fvm_tr_insn *i = &tr->insns[k];
        if (i->need && i->class != FVM_C_LEA && i->class != FVM_C_FAST_SYS)
            return i->class != FVM_C_PUSHF && i->class != FVM_C_STI;
        if (i->f_read || i->f_mod || i->class > FVM_C_RET)
            return false;
    }
    return false;
}

static void emit_prologue(struct fvm_tr *tr, const struct fetch *f, uint32_t *ret_to_dead)
{
    struct fvm_emit *em = &tr->em;
    struct fvm_block *b = tr->b;
    while (em->at < 5 && !b->victim_count && !b->cross_page) /* room to overwrite the entry by a jump: see code.c */
        e8(em, 0x90);
    if (b->cross_page)
        emit_second_page_check(tr, f, ret_to_dead);
    spill(tr, 0, 2);
    b->inner_off = b->code_off + em->at;
    if (b->victim_count >= 2 && !b->cross_page && wants_saved_flags(tr)) {
        b->natural = 1;
        fvm_tr_flags_clobber(tr, FVM_ARITH_FLAGS);
        b->saved_inner_off = b->code_off + em->at;
    }
    spill(tr, 2, FVM_VICTIMS_MAX);
    b->body_off = b->code_off + em->at;
}

/*
 * Hot: prologue, body, what exits do on their way (thunks, page checks), the entries for other states. Cold, apart: slow ways of accesses,
 * stubs of unlinked exits, dead ends. Offsets in either are from the block's start.
 */
static void emit_block(struct fvm_tr *tr, const struct fetch *f)
{
    struct fvm_emit *em = &tr->em;
    struct fvm_block *b = tr->b;
    uint32_t to_dead = 0;
    emit_prologue(tr, f, &to_dead);
    for (tr->cur = 0; tr->cur < tr->n; tr->cur++) {
        fvm_assert(em->at + 1024 < em->max);
        emit_insn(tr, &tr->insns[tr->cur]);
    }
    tr->cur = tr->n - 1;
    if (!tr->ended)
        fvm_tr_exit_direct(tr, fvm_tr_next_rip(tr, &tr->insns[tr->n - 1]));
    tr->cold_from = em->at;
    b->cold_off = (uint32_t)tr->e->cold_used;
    em->at = b->cold_off - b->code_off;
    emit_cold(tr);
    emit_dead_ends(tr, to_dead);
    b->cold_len = b->code_off + em->at - b->cold_off;
    em->at = tr->cold_from;
    for (unsigned k = 0; k < tr->cold_n; k++)
        if (tr->cold[k].kind == FVM_COLD_EXIT || tr->cold[k].kind == FVM_COLD_SIDE)
            fvm_tr_warm_exit(tr, &tr->cold[k]);
    emit_entries(tr);
    b->code_len = em->at;
}

static void begin_block(struct fvm_tr *tr, struct fvm_vcpu *v, uint64_t mode, uint64_t gpa)
{
    struct fvm_engine *e = v->engine;
    tr->v = v;
    tr->e = e;
    tr->rip = v->rip;
    tr->lin = fvm_mode_linear(mode, v->rip);
    tr->mode = mode;
    tr->bits = (mode & FVM_MODE_BITS) == 2 ? 64 : (mode & FVM_MODE_BITS) == 1 ? 32 : 16;
    tr->user = (mode & FVM_MODE_USER) != 0;
    tr->block = e->block_count;
    tr->b = &e->blocks[tr->block];
    tr->base = v->rip - fvm_mode_rip(mode, v->rip);
    *tr->b = (struct fvm_block){.rip = v->rip - tr->base, .gpa = gpa, .mode = mode, .code_off = (uint32_t)e->code_used,
                                .mark_first = e->mark_count, .exit_first = e->exit_count, .next_hash = FVM_NONE,
                                .next_page = FVM_NONE, .incoming = FVM_NONE};
    tr->em = (struct fvm_emit){.buf = e->code_rw + e->code_used, .max = FVM_BLOCK_CODE_MAX};
}

static bool room_for_block(const struct fvm_engine *e)
{
    return e->code_used + FVM_BLOCK_CODE_MAX <= e->cold_start && e->cold_used + FVM_BLOCK_CODE_MAX <= e->code_bytes && e->block_count + 1 < e->block_max &&
           e->exit_count + FVM_BLOCK_INSNS_MAX * 2 + 8 < e->exit_max && e->site_count + FVM_BLOCK_INSNS_MAX * 3 < e->site_max &&
           e->mark_count + FVM_BLOCK_INSNS_MAX < e->mark_max;
}

static uint32_t translate(struct fvm_vcpu *v, uint64_t mode, struct fvm_fault *fault)
{
    struct fvm_engine *e = v->engine;
    struct fetch f = {0};
    uint64_t entry;
    if (!room_for_block(e)) {
        fvm_world_stop(e, FVM_WORLD_ALL);
        fvm_code_flush(e);
        fvm_world_go(e);
    }
    if (fetch_page(v, fvm_mode_linear(mode, v->rip), (mode & FVM_MODE_USER) != 0, &f.page, &f.gpa, &entry, fault))
        return FVM_NONE;
    struct fvm_tr tr;
    struct fvm_tr_insn insns[FVM_BLOCK_INSNS_MAX];
    memset(&tr, 0, offsetof(struct fvm_tr, cold));
    tr.cold_n = 0;
    tr.ended = false;
    tr.insns = insns;
    begin_block(&tr, v, mode, f.gpa);
    if (decode_block(&tr, &f, fault))
        return FVM_NONE;
    struct fvm_tr_insn *last = &insns[tr.n - 1];
    tr.b->guest_len = (uint16_t)(last->off + last->in.len);
    tr.b->mark_count = (uint8_t)tr.n;
    e->mark_count += tr.n;
    note_bytes(e, f.gpa, last->class == FVM_C_UD ? last->off + 15u : tr.b->guest_len); /* what makes it invalid may be behind */
    if (tr.b->cross_page)
        note_bytes(e, f.gpa2, 15);
    tr.b->gpa2 = f.gpa2;
    fvm_tr_flags_liveness(&tr, live_at_end(&tr, &f));
    tr.b->live_flags = insns[0].live_in != 0 || tr.b->cross_page; /* cross_page: its dead end is reached from anywhere */
    emit_block(&tr, &f);
    e->code_used = (e->code_used + tr.b->code_len + 15) & ~15ull;
    e->cold_used += tr.b->cold_len;
    e->block_count++;
    e->stats.blocks++;
    e->stats.guest_insns_translated += tr.n;
    fvm_code_add(e, tr.block);
    if (FVM_UNLIKELY(e->config.trace & FVM_TRACE_CODE))
        fvm_tr_show(&tr);
    return tr.block;
}

/* Another vCPU may have translated it while this one waited for the lock. */
static uint32_t found_meanwhile(const struct fvm_vcpu *v, uint64_t mode)
{
    uint64_t va = fvm_mode_linear(mode, v->rip), entry = fvm_shadow_peek(v->shadow, va);
    if (v->engine->vcpu_count == 1 || !(entry & (mode & FVM_MODE_USER ? FVM_S_UX : FVM_S_KX)))
        return FVM_NONE;
    return fvm_code_find(v->engine, va + (entry & ~0xffull) - (uint64_t)(uintptr_t)v->ram->base, v->rip, mode);
}

uint32_t fvm_translate(struct fvm_vcpu *v, uint64_t mode, struct fvm_fault *fault)
{
    struct fvm_engine *e = v->engine;
    fvm_world_lock(e);
    uint32_t n = found_meanwhile(v, mode);
    __atomic_exchange_n(&e->reading, 1, __ATOMIC_SEQ_CST);
    while (n == FVM_NONE) {
        uint64_t drops = e->stats.invalidations;
        n = translate(v, mode, fault);
        if (n == FVM_NONE || drops == e->stats.invalidations)
            break;
        fvm_world_stop(e, FVM_WORLD_ALL); /* setting an A bit on the way changed code, perhaps this: again */
        fvm_code_drop(e, n);
        fvm_world_go(e);
        n = FVM_NONE;
    }
    __atomic_store_n(&e->reading, 0, __ATOMIC_RELEASE);
    fvm_world_unlock(e);
    return n;
}
