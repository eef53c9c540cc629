/*
 * memop.c - the only place that knows how a guest address becomes a host address (strategy "flat").
 *
 * For an access of `size` bytes at guest address A, code is emitted that leaves the host operand in *ret:
 *
 *     u = A                       form A: [base+disp]: host operand [base + u + disp - usual]
 *     test u, align-1; jnz cold   form B: anything else: t = A, host operand [t + u - usual]
 *     u = entry[bits 47:12 of u]
 *     cmp u.low8, usual; jne cold
 *   resume:
 *
 * `usual` is the rights byte of plain data pages in that mode, whatever right is wanted: nothing need be cleared on the fast
 * path, since the displacement takes it back. Cold part, misaligned: goes back if the bytes lie within one page, else to C. Other rights:
 * if they suffice, u.low8 = usual and on; else to C, which fills the entry and goes on at `resume` with u = addend + usual, or with
 * u pointing to the bounce buffer (read across two pages), or leaves with a guest fault, or for the slow way (exec_one).
 * Nothing of the instruction has happened yet at that point.
 */
#include "vmm/cpu/translate/tr.h"

static void gs_entry(struct fvm_emit *em, unsigned d, unsigned index) /* mov d, gs:[index*8] */
{
    e8(em, 0x65);
    e_op_mem(em, true, 0x8b, d, FVM_NOREG, index, 3, 0);
}

bool fvm_tr_memref_form_a(const struct fvm_memref *m)
{
    return m->base != FVM_NOREG && m->index == FVM_NOREG && m->seg == FVM_NOREG && !m->addr32 &&
           m->disp >= INT32_MIN + 64;
}

void fvm_tr_memref(struct fvm_tr *tr, const struct fvm_tr_insn *i, unsigned op, struct fvm_memref *ret)
{
    const ZydisDecodedOperandMem *m = &i->in.ops[op].mem;
    struct fvm_memref r = {.base = FVM_NOREG, .index = FVM_NOREG, .seg = FVM_NOREG};
    bool high;
    r.addr32 = i->in.z.address_width == 32;
    r.addr16 = i->in.z.address_width == 16;
    r.disp = m->disp.has_displacement ? m->disp.value : 0;
    if (m->base == ZYDIS_REGISTER_RIP || m->base == ZYDIS_REGISTER_EIP) {
        r.disp += (int64_t)fvm_tr_next_rip(tr, i);
        if (fvm_mode_movable(tr->mode)) {
            r.anchored = true;
            r.disp -= (int64_t)tr->base;
        } else if (r.addr32) {
            r.disp = (uint32_t)r.disp;
        }
    } else if (m->base != ZYDIS_REGISTER_NONE) {
        r.base = (uint8_t)fvm_decode_gpr(m->base, &high);
    }
    if (m->index != ZYDIS_REGISTER_NONE)
        r.index = (uint8_t)fvm_decode_gpr(m->index, &high);
    r.scale = m->scale == 8 ? 3 : m->scale == 4 ? 2 : m->scale == 2 ? 1 : 0;
    if (r.index == FVM_NOREG)
        r.scale = 0;
    if (m->segment == ZYDIS_REGISTER_FS)
        r.seg = FVM_FS;
    else if (m->segment == ZYDIS_REGISTER_GS)
        r.seg = FVM_GS;
    if (r.base == FVM_NOREG && r.index == FVM_NOREG && r.addr32 && !r.anchored)
        r.disp = (uint32_t)r.disp;
    if (tr->mode & FVM_MODE_SEG)
        r.seg = (uint8_t)(fvm_decode_seg(m->segment) < 0 ? FVM_DS : fvm_decode_seg(m->segment));
    *ret = r;
}

static void address_to_t(struct fvm_tr *tr, const struct fvm_memref *m)
{
    struct fvm_emit *em = &tr->em;
    bool plain = m->base == FVM_NOREG && m->index == FVM_NOREG;
    uint32_t seg_off = m->seg == FVM_FS ? FVM_OFF_SEG_FS : FVM_OFF_SEG_GS;
    if (m->anchored) {
        e_fs_load(em, tr->t, FVM_SLOT_ANCHOR);
        fvm_tr_add_page_offset(tr, tr->t, m->disp);
        if (m->addr32)
            e_mov32(em, tr->t, tr->t);
        if (m->seg != FVM_NOREG) {
            e_fs_load(em, tr->u, seg_off);
            e_lea(em, tr->t, tr->t, tr->u, 0, 0);
        }
        return;
    }
    if (m->seg == FVM_NOREG) {
        if (plain)
            e_mov_imm(em, tr->t, (uint64_t)m->disp);
        else if (m->addr32)
            e_lea32(em, tr->t, m->base, m->index, m->scale, (int32_t)m->disp);
        else
            e_lea(em, tr->t, m->base, m->index, m->scale, (int32_t)m->disp);
        return;
    }
    if (plain && (m->disp != (int32_t)m->disp || m->addr32)) {
        e_mov_imm(em, tr->t, (uint64_t)m->disp);
        e_fs_load(em, tr->u, seg_off);
        e_lea(em, tr->t, tr->t, tr->u, 0, 0);
    } else if (m->addr32) {
        e_lea32(em, tr->t, m->base, m->index, m->scale, (int32_t)m->disp);
        e_fs_load(em, tr->u, seg_off);
        e_lea(em, tr->t, tr->t, tr->u, 0, 0);
    } else {
        e_fs_load(em, tr->t, seg_off);
        if (m->base != FVM_NOREG && m->index != FVM_NOREG) {
            e_lea(em, tr->t, tr->t, m->index, m->scale, (int32_t)m->disp);
            if (m->base == FVM_RSP)
                e_lea(em, tr->t, FVM_RSP, tr->t, 0, 0);
            else
                e_lea(em, tr->t, tr->t, m->base, 0, 0);
        } else if (m->index != FVM_NOREG) {
            e_lea(em, tr->t, tr->t, m->index, m->scale, (int32_t)m->disp);
        } else if (m->base == FVM_RSP) {
            e_lea(em, tr->t, FVM_RSP, tr->t, 0, (int32_t)m->disp);
        } else if (m->base != FVM_NOREG) {
            e_lea(em, tr->t, tr->t, m->base, 0, (int32_t)m->disp);
        } else if (m->disp) {
            e_lea(em, tr->t, tr->t, FVM_NOREG, 0, (int32_t)m->disp);
        }
    }
}

void fvm_tr_address_to_t(struct fvm_tr *tr, const struct fvm_memref *m)
{
    address_to_t(tr, m);
    if (tr->bits != 64 && m->seg != FVM_NOREG) /* a sum with a segment base wraps at 4 GiB */
        e_mov32(&tr->em, tr->t, tr->t);
}

unsigned fvm_tr_operand_want(const ZydisDecodedOperand *o)
{
    unsigned want = o->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE ? FVM_W : 0;
    return o->actions & ZYDIS_OPERAND_ACTION_MASK_READ || !want ? want | FVM_R : want;
}

static unsigned align_mask(unsigned size)
{
    unsigned p = 1;
    while (p < size)
        p <<= 1;
    return p - 1;
}

void fvm_tr_memop(struct fvm_tr *tr, const struct fvm_memref *m, unsigned size, unsigned want, struct fvm_hostref *ret)
{
    struct fvm_emit *em = &tr->em;
    fvm_tr_flags_clobber(tr, tr->mode & FVM_MODE_SEG ? FVM_ARITH_FLAGS : fvm_tr_cur(tr)->live_in); /* old programs look at them */
    struct fvm_cold *c = &tr->cold[tr->cold_n++];
    *c = (struct fvm_cold){.kind = FVM_COLD_MEM, .base = FVM_NOREG, .size = (uint16_t)size, .mark = (uint8_t)tr->cur};
    bool absolute = m->base == FVM_NOREG && m->index == FVM_NOREG && m->seg == FVM_NOREG && !m->anchored;
    bool offset_known = absolute || (m->anchored && m->seg == FVM_NOREG && !m->addr32);
    bool crosses = offset_known && ((uint64_t)m->disp & FVM_PAGE_MASK) + size > FVM_PAGE_SIZE;
    unsigned right = want & FVM_W ? (tr->user ? FVM_S_UW : FVM_S_KW) : (tr->user ? FVM_S_UR : FVM_S_KR);

    const int usual = tr->user ? FVM_USUAL_USER : FVM_USUAL_KERNEL;
    c->right = (uint8_t)right;
    c->site = fvm_tr_site(tr, want, size);
    if (m->seg == FVM_NOREG && (m->base == FVM_RSP || m->base == FVM_RBP))
        tr->e->sites[c->site].kind |= FVM_SITE_STACK;
    if (fvm_insn_is_vmaskmov(&fvm_tr_cur(tr)->in))
        tr->e->sites[c->site].kind |= FVM_SITE_MASKED;
    if (FVM_UNLIKELY(tr->mode & FVM_MODE_SEG) || (tr->bits == 32 && m->seg != FVM_NOREG)) {
        fvm_seg16_address(tr, m, size, c->site);
        e_mov(em, tr->u, tr->t);
        *ret = (struct fvm_hostref){tr->t, tr->u, -usual};
    } else if (fvm_tr_memref_form_a(m)) {
        c->base = m->base;
        c->disp = (int32_t)m->disp;
        if (m->disp)
            e_lea(em, tr->u, m->base, FVM_NOREG, 0, (int32_t)m->disp);
        else
            e_mov(em, tr->u, m->base);
        *ret = (struct fvm_hostref){m->base, tr->u, (int32_t)m->disp - usual};
    } else {
        fvm_tr_address_to_t(tr, m);
        if (!absolute)
            e_mov(em, tr->u, tr->t);
        *ret = (struct fvm_hostref){tr->t, tr->u, -usual};
    }
    c->t = tr->t;
    c->u = tr->u;
    if (crosses) {
        c->from1 = e_jmp(em);
        c->back = 0;
    } else if (absolute) {
        e_mov_imm(em, tr->u, (((uint64_t)m->disp << 16) >> 28) * 8);
        e8(em, 0x65);
        e_op_mem(em, true, 0x8b, tr->u, tr->u, FVM_NOREG, 0, 0);
    } else {
        if (size > 1 && !offset_known) {
            e_test8_imm(em, tr->u, align_mask(size));
            c->from1 = e_jcc(em, CC_NE);
            c->back = em->at;
        }
        e_shl(em, tr->u, 16);
        e_shr(em, tr->u, 28);
        gs_entry(em, tr->u, tr->u);
    }
    e_cmp8_imm(em, tr->u, (unsigned)usual);
    c->from2 = e_jcc(em, CC_NE);
    tr->e->sites[c->site].resume_off = em->at;
    tr->e->sites[c->site].flags_saved = tr->saved;
    tr->e->marks[tr->b->mark_first + tr->cur].flags_saved = tr->saved; /* if the operation traps */
}

/* u = address; see CROSS in stubs.S */
static void cross_load(struct fvm_tr *tr, const struct fvm_cold *c)
{
    struct fvm_emit *em = &tr->em;
    e_fs_store(em, FVM_SLOT_EA, c->u);
    e_rex(em, true, c->u, 0, 0), e8(em, 0x8d), e8(em, (c->u & 7u) << 3 | 5); /* lea u, [rip+n] */
    uint32_t lea_at = em->at;
    e32(em, 0);
    e_fs_store(em, FVM_SLOT_RET, c->u);
    e_fs_store_imm(em, FVM_SLOT_ARG, c->site);
    fvm_tr_jmp_tramp(tr, tr->user ? FVM_TRAMP_CROSS_USER : FVM_TRAMP_CROSS_KERNEL);
    e_patch(em, lea_at, em->at);
    e_fs_load(em, c->u, FVM_SLOT_TMP);
    e_jmp_to(em, tr->e->sites[c->site].resume_off);
}

void fvm_tr_cold_mem(struct fvm_tr *tr, struct fvm_cold *c)
{
    struct fvm_emit *em = &tr->em;
    bool form_a = c->base != FVM_NOREG;
    uint32_t to_c = 0, no_right;
    if (c->from1) {
        e_patch_here(em, c->from1);
        if (c->back) {
            e_alu_imm(em, false, 4, c->u, (int32_t)FVM_PAGE_MASK);
            e_alu_imm(em, false, 7, c->u, (int32_t)(FVM_PAGE_SIZE - c->size));
            if (form_a)
                e_lea(em, c->u, c->base, FVM_NOREG, 0, c->disp);
            else
                e_mov(em, c->u, c->t);
            uint32_t back = e_jcc(em, CC_BE);
            e_patch(em, back, c->back);
            if (tr->e->sites[c->site].want == FVM_R && c->size <= 8)
                cross_load(tr, c);
            else
                to_c = e_jmp(em);
        } else {
            to_c = e_jmp(em);
        }
    }
    e_patch_here(em, c->from2);
    e_test8_imm(em, c->u, c->right);
    no_right = e_jcc(em, CC_E);
    e_mov8_imm(em, c->u, tr->user ? FVM_USUAL_USER : FVM_USUAL_KERNEL);
    e_jmp_to(em, tr->e->sites[c->site].resume_off);
    e_patch_here(em, no_right);
    if (form_a)
        e_lea(em, c->u, c->base, FVM_NOREG, 0, c->disp);
    if (to_c) /* there u is the address in form A */
        e_patch_here(em, to_c);
    e_fs_store(em, FVM_SLOT_EA, form_a ? c->u : c->t);
    e_fs_store_imm(em, FVM_SLOT_ARG, c->site);
    fvm_tr_jmp_tramp(tr, FVM_TRAMP_MEM);
}
