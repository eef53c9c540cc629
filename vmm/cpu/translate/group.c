/*
 * group.c - one check for several accesses of a block: those whose addresses differ by constants (a frame's slots, a structure's
 * fields, pushes and pops).
 *
 * The block is looked through once, with a symbol for what each register holds: two accesses with the same symbols for base and
 * index are a known distance apart, whatever was pushed, added or copied between them. Accesses within GROUP_SPAN bytes form a group. Before
 * the first one the page of all of them is checked (they must lie in one page, which must grant the rights that any of
 * them needs), and a register keeps the host address of the lowest byte until the last one: they need no check, and no flags.
 *
 * A group that fails its check leaves for the *plain* translation of the rest of the block (FVM_MODE_PLAIN), which knows no
 * groups: there every access meets its own fault, slow path or device in its own instruction. So a group never
 * faults, and never grants what its accesses would not have got one by one.
 *
 * The host address stays right until the block ends: what takes rights away or moves pages happens between blocks.
 */
#include "vmm/cpu/translate/tr.h"

#define GROUP_SPAN 128
#define SYMBOL_NONE 0xff
#define SYMBOL_ANCHOR 0xfe /* RIP-relative operands of movable blocks */
#define SYMBOL_ABSOLUTE 0xfd

struct symbols {
    uint8_t id[16];     /* what a register holds: equal ids differ by `off` only */
    int64_t off[16];
    unsigned next;
};

struct access {
    struct fvm_memref m;
    unsigned size, want;
};

static void forget(struct symbols *s, unsigned reg)
{
    s->id[reg] = (uint8_t)s->next++;
    s->off[reg] = 0;
}

static void forget_all(struct symbols *s)
{
    for (unsigned k = 0; k < 16; k++)
        forget(s, k);
}

/* The register is moved by a constant, or copied: returns whether that is all that the instruction does to registers. */
static bool known_change(struct symbols *s, const struct fvm_tr_insn *i)
{
    const struct fvm_insn *in = &i->in;
    const ZydisDecodedOperand *d = &in->ops[0], *src = &in->ops[1];
    bool high;
    if (in->z.operand_count_visible == 0 || d->type != ZYDIS_OPERAND_TYPE_REGISTER || d->size != 64)
        return false;
    int r = fvm_decode_gpr(d->reg.value, &high), from;
    if (r < 0)
        return false;
    switch (in->z.mnemonic) {
    case ZYDIS_MNEMONIC_ADD: case ZYDIS_MNEMONIC_SUB:
        if (src->type != ZYDIS_OPERAND_TYPE_IMMEDIATE)
            return false;
        s->off[r] += in->z.mnemonic == ZYDIS_MNEMONIC_ADD ? src->imm.value.s : -src->imm.value.s;
        return true;
    case ZYDIS_MNEMONIC_INC: case ZYDIS_MNEMONIC_DEC:
        s->off[r] += in->z.mnemonic == ZYDIS_MNEMONIC_INC ? 1 : -1;
        return true;
    case ZYDIS_MNEMONIC_LEA:
        from = fvm_decode_gpr(src->mem.base, &high);
        if (from < 0 || src->mem.index != ZYDIS_REGISTER_NONE || in->z.address_width != 64)
            return false;
        s->id[r] = s->id[from];
        s->off[r] = s->off[from] + (src->mem.disp.has_displacement ? src->mem.disp.value : 0);
        return true;
    case ZYDIS_MNEMONIC_MOV:
        if (src->type != ZYDIS_OPERAND_TYPE_REGISTER || (from = fvm_decode_gpr(src->reg.value, &high)) < 0)
            return false;
        s->id[r] = s->id[from];
        s->off[r] = s->off[from];
        return true;
    default:
        return false;
    }
}

static void written_registers(struct symbols *s, const struct fvm_insn *in)
{
    bool high;
    if (in->z.mnemonic == ZYDIS_MNEMONIC_PAUSE && in->z.raw.rex.B) /* xchg rax, r8: see classify.c */
        forget(s, FVM_RAX), forget(s, FVM_R8);
    for (unsigned k = 0; k < in->z.operand_count; k++) {
        const ZydisDecodedOperand *o = &in->ops[k];
        int r;
        if (o->type != ZYDIS_OPERAND_TYPE_REGISTER || !(o->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE))
            continue;
        if ((r = fvm_decode_gpr(o->reg.value, &high)) >= 0)
            forget(s, (unsigned)(high ? r - 4 : r));
    }
}

static void after(struct symbols *s, const struct fvm_tr *tr, const struct fvm_tr_insn *i)
{
    bool high;
    switch (i->class) {
    case FVM_C_IDENT: case FVM_C_IDENT_MEM: case FVM_C_LEA: case FVM_C_DROP: case FVM_C_BT_MEM: case FVM_C_CMPXCHG:
    case FVM_C_MOFFS: case FVM_C_JCC:
        if (!known_change(s, i))
            written_registers(s, &i->in);
        break;
    case FVM_C_PUSH: case FVM_C_PUSHF:
        s->off[FVM_RSP] -= (int64_t)fvm_tr_stack_bytes(tr, &i->in);
        break;
    case FVM_C_POP:
        s->off[FVM_RSP] += (int64_t)fvm_tr_stack_bytes(tr, &i->in);
        forget(s, (unsigned)fvm_decode_gpr(i->in.ops[0].reg.value, &high));
        break;
    default:
        forget_all(s);
    }
}

/* The explicit operand of an instruction, if it may be in a group. */
static bool operand_access(struct fvm_tr *tr, const struct fvm_tr_insn *i, struct access *ret)
{
    unsigned op = i->mem_op;
    switch (i->class) {
    case FVM_C_IDENT_MEM:
        break;
    case FVM_C_PUSH: case FVM_C_JMP_IND: case FVM_C_CALL_IND:
        op = 0;
        break;
    case FVM_C_LEAVE:
        *ret = (struct access){{.base = FVM_RBP, .index = FVM_NOREG, .seg = FVM_NOREG}, fvm_tr_stack_bytes(tr, &i->in), FVM_R};
        return true;
    default:
        return false;
    }
    const ZydisDecodedOperand *o = &i->in.ops[op];
    if (o->type != ZYDIS_OPERAND_TYPE_MEMORY || i->high_byte || fvm_insn_is_vmaskmov(&i->in))
        return false;
    fvm_tr_memref(tr, i, op, &ret->m);
    ret->size = i->class == FVM_C_IDENT_MEM ? o->size / 8u : fvm_tr_stack_bytes(tr, &i->in);
    ret->want = i->class == FVM_C_IDENT_MEM ? fvm_tr_operand_want(o) : FVM_R;
    return ret->m.seg == FVM_NOREG && !ret->m.addr32 && ret->size && ret->size <= 64;
}

static bool stack_access(struct fvm_tr *tr, const struct fvm_tr_insn *i, struct access *ret)
{
    int32_t bytes = (int32_t)fvm_tr_stack_bytes(tr, &i->in);
    ret->size = (unsigned)bytes;
    switch (i->class) {
    case FVM_C_PUSH: case FVM_C_CALL: case FVM_C_CALL_IND:
        fvm_tr_stack_ref(tr, -bytes, &ret->m);
        ret->want = FVM_W;
        return true;
    case FVM_C_POP: case FVM_C_RET:
        fvm_tr_stack_ref(tr, 0, &ret->m);
        ret->want = FVM_R;
        return true;
    default:
        return false;
    }
}

static unsigned group_for(struct fvm_tr *tr, const struct symbols *s, const struct access *a, unsigned at, int64_t *ret_disp)
{
    const struct fvm_memref *m = &a->m;
    bool fixed = m->base == FVM_NOREG && m->index == FVM_NOREG;
    uint8_t base = m->anchored ? SYMBOL_ANCHOR : fixed ? SYMBOL_ABSOLUTE : m->base == FVM_NOREG ? SYMBOL_NONE : s->id[m->base];
    uint8_t index = m->index == FVM_NOREG ? SYMBOL_NONE : s->id[m->index];
    uint64_t disp = (uint64_t)m->disp + (m->base == FVM_NOREG ? 0 : (uint64_t)s->off[m->base]) +
                    (m->index == FVM_NOREG ? 0 : (uint64_t)s->off[m->index] << m->scale);
    *ret_disp = (int64_t)disp;
    for (unsigned k = tr->group_count; k-- > 0;) {
        struct fvm_group *g = &tr->groups[k];
        int64_t low = FVM_MIN(g->low, *ret_disp), end = FVM_MAX(g->end, *ret_disp + (int64_t)a->size);
        if (g->base != base || g->index != index || g->scale != m->scale || end - low > GROUP_SPAN)
            continue;
        g->low = low;
        g->end = end;
        g->last = (uint8_t)at;
        g->count++;
        g->want |= (uint8_t)a->want;
        return k;
    }
    if (tr->group_count == FVM_GROUPS_MAX)
        return FVM_NO_GROUP;
    tr->groups[tr->group_count] = (struct fvm_group){.low = *ret_disp, .end = *ret_disp + (int64_t)a->size, .base = base,
                                                     .index = index, .scale = m->scale, .first = (uint8_t)at, .last = (uint8_t)at,
                                                     .count = 1, .want = (uint8_t)a->want, .reg = FVM_NOREG};
    return tr->group_count++;
}

/* A register for the time from the first to the last access: one that serves a group that ended, or a new victim. */
static void give_register(struct fvm_tr *tr, struct fvm_group *g, uint16_t *free_regs)
{
    static const uint8_t order[] = {FVM_R13, FVM_R12, FVM_R11, FVM_R10, FVM_R9, FVM_R8, FVM_RBP, FVM_RBX, FVM_R15, FVM_R14,
                                    FVM_RSI, FVM_RDI, FVM_RDX, FVM_RCX, FVM_RAX};
    struct fvm_block *b = tr->b;
    bool t_busy = false;
    for (unsigned k = g->first; k <= g->last; k++)
        t_busy |= (tr->insns[k].need & 2) != 0;
    for (const struct fvm_group *o = tr->groups; o < g; o++)
        t_busy |= o->reg == tr->t && o->last >= g->first;
    if (!t_busy) {
        g->reg = tr->t;
        return;
    }
    for (unsigned v = tr->extra_first; v < b->victim_count; v++) {
        bool busy = false;
        for (const struct fvm_group *o = tr->groups; o < g; o++)
            busy |= o->reg == b->victim[v] && o->last >= g->first;
        if (!busy) {
            g->reg = b->victim[v];
            return;
        }
    }
    if (b->victim_count == FVM_VICTIMS_MAX)
        return;
    for (unsigned k = 0; k < FVM_ARRAY_SIZE(order); k++)
        if (*free_regs & 1u << order[k]) {
            *free_regs &= (uint16_t)~(1u << order[k]);
            g->reg = b->victim[b->victim_count++] = order[k];
            return;
        }
}

void fvm_tr_group(struct fvm_tr *tr, uint16_t used)
{
    struct symbols s;
    struct access a;
    int64_t disp;
    tr->group_count = 0;
    tr->extra_first = tr->b->victim_count;
    for (unsigned k = 0; k < tr->n; k++)
        tr->insns[k].group = tr->insns[k].stack_group = FVM_NO_GROUP;
    if (tr->bits != 64 || tr->n < 2 || tr->b->victim_count < 2 || tr->mode & (FVM_MODE_SINGLE | FVM_MODE_PLAIN))
        return;
    s.next = 0;
    forget_all(&s);
    for (unsigned k = 0; k < tr->n && s.next < 200; k++) {
        struct fvm_tr_insn *i = &tr->insns[k];
        if (operand_access(tr, i, &a)) {
            i->group = (uint8_t)group_for(tr, &s, &a, k, &disp);
            i->group_disp = disp;
        }
        if (stack_access(tr, i, &a)) {
            i->stack_group = (uint8_t)group_for(tr, &s, &a, k, &disp);
            i->stack_disp = disp;
        }
        after(&s, tr, i);
    }
    for (unsigned k = 0; k < tr->b->victim_count; k++)
        used |= (uint16_t)(1u << tr->b->victim[k]);
    uint16_t free_regs = (uint16_t)~(used | 1u << FVM_RSP);
    for (struct fvm_group *g = tr->groups; g < tr->groups + tr->group_count; g++)
        if (g->count > 1)
            give_register(tr, g, &free_regs);
}

/* u <- linear address of the group's lowest byte, by the operand at hand, which lies `up` bytes above it */
static void lowest_address(struct fvm_tr *tr, const struct fvm_memref *m, int64_t up)
{
    struct fvm_emit *em = &tr->em;
    int64_t disp = m->disp - up;
    if (m->anchored) {
        e_fs_load(em, tr->u, FVM_SLOT_ANCHOR);
        fvm_tr_add_page_offset(tr, tr->u, disp);
    } else if (m->base == FVM_NOREG && m->index == FVM_NOREG) {
        e_mov_imm(em, tr->u, (uint64_t)disp);
    } else if (disp == (int32_t)disp) {
        e_lea(em, tr->u, m->base, m->index, m->scale, (int32_t)disp);
    } else {
        e_lea(em, tr->u, m->base, m->index, m->scale, (int32_t)m->disp);
        e_lea(em, tr->u, tr->u, FVM_NOREG, 0, (int32_t)-up);
    }
}

static void check(struct fvm_tr *tr, struct fvm_group *g, const struct fvm_memref *m, int64_t up)
{
    struct fvm_emit *em = &tr->em;
    const int usual = tr->user ? FVM_USUAL_USER : FVM_USUAL_KERNEL;
    fvm_tr_flags_clobber(tr, fvm_tr_cur(tr)->live_in);
    struct fvm_cold *c = &tr->cold[tr->cold_n++];
    *c = (struct fvm_cold){.kind = FVM_COLD_GROUP, .mark = (uint8_t)tr->cur, .u = g->reg};
    c->right = (uint8_t)(g->want & FVM_W ? (tr->user ? FVM_S_UW : FVM_S_KW) : (tr->user ? FVM_S_UR : FVM_S_KR));
    c->exit = fvm_tr_exit_plain(tr);
    lowest_address(tr, m, up);
    e_lea(em, g->reg, tr->u, FVM_NOREG, 0, (int32_t)(g->end - g->low - 1));
    e_rr(em, true, 0x31, tr->u, g->reg); /* xor: a bit above the page's offset means that another page begins */
    e_rex(em, true, 0, 0, g->reg), e8(em, 0xf7), e8(em, 0xc0 | (g->reg & 7)), e32(em, ~(uint32_t)FVM_PAGE_MASK); /* test */
    c->from1 = e_jcc(em, CC_NE);
    e_mov(em, g->reg, tr->u);
    e_shl(em, g->reg, 16);
    e_shr(em, g->reg, 28);
    e8(em, 0x65);
    e_op_mem(em, true, 0x8b, g->reg, FVM_NOREG, g->reg, 3, 0);
    e_cmp8_imm(em, g->reg, (unsigned)usual);
    c->from2 = e_jcc(em, CC_NE);
    c->back = em->at;
    e_lea(em, g->reg, g->reg, tr->u, 0, -usual);
    g->checked = true;
}

bool fvm_tr_grouped(struct fvm_tr *tr, const struct fvm_memref *m, bool stack, struct fvm_hostref *ret)
{
    const struct fvm_tr_insn *i = fvm_tr_cur(tr);
    unsigned n = stack ? i->stack_group : i->group;
    int64_t disp = stack ? i->stack_disp : i->group_disp;
    if (n == FVM_NO_GROUP || tr->groups[n].reg == FVM_NOREG)
        return false;
    struct fvm_group *g = &tr->groups[n];
    if (!g->checked)
        check(tr, g, m, disp - g->low);
    *ret = (struct fvm_hostref){g->reg, FVM_NOREG, (int32_t)(disp - g->low)};
    tr->e->marks[tr->b->mark_first + tr->cur].flags_saved = tr->saved; /* if the operation traps */
    return true;
}

void fvm_tr_access(struct fvm_tr *tr, const struct fvm_memref *m, bool stack, unsigned size, unsigned want, struct fvm_hostref *ret)
{
    if (!fvm_tr_grouped(tr, m, stack, ret))
        fvm_tr_memop(tr, m, size, want, ret);
}

void fvm_tr_cold_group(struct fvm_tr *tr, struct fvm_cold *c)
{
    struct fvm_emit *em = &tr->em;
    e_patch_here(em, c->from2);
    e_test8_imm(em, c->u, c->right);
    uint32_t no_right = e_jcc(em, CC_E);
    e_mov8_imm(em, c->u, tr->user ? FVM_USUAL_USER : FVM_USUAL_KERNEL);
    e_jmp_to(em, c->back);
    e_patch_here(em, no_right);
    e_patch_here(em, c->from1);
    uint32_t to_exit = e_jmp(em);
    fvm_tr_cold_exit(tr, c);
    e_patch_here(em, to_exit);
    fvm_tr_warm_exit(tr, c);
}
