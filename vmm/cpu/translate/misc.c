/*
 * misc.c - instructions that are neither plain copies nor branches nor stack work: lea, bit tests with a register offset, moffs,
 * string instructions (a fast helper), and the sensitive instructions that are cheap enough to do in place.
 */
#include "vmm/cpu/translate/tr.h"

static void emit_lea(struct fvm_tr *tr, struct fvm_tr_insn *i)
{
    struct fvm_emit *em = &tr->em;
    struct fvm_memref m;
    bool high;
    unsigned d = (unsigned)fvm_decode_gpr(i->in.ops[0].reg.value, &high);
    unsigned width = i->in.ops[0].size;
    fvm_tr_memref(tr, i, 1, &m);
    if (m.anchored) {
        unsigned to = width == 16 ? tr->u : d;
        e_fs_load(em, to, FVM_SLOT_ANCHOR);
        fvm_tr_add_page_offset(tr, to, m.disp);
        if (width == 16)
            e8(em, 0x66), e_mov32(em, d, to);
        else if (width == 32 || m.addr32)
            e_mov32(em, d, d);
        return;
    }
    if (m.base == FVM_NOREG && m.index == FVM_NOREG) {
        uint64_t a = i->in.z.address_width == 16 ? (uint16_t)m.disp : (uint64_t)m.disp;
        if (width == 16) {
            e8(em, 0x66);
            if (d >= 8)
                e8(em, 0x41);
            e8(em, 0xb8 | (d & 7));
            e16(em, (unsigned)a);
        } else {
            e_mov_imm(em, d, width == 32 ? (uint32_t)a : a);
        }
        return;
    }
    if (tr->bits == 64) {
        fvm_tr_copy(tr, &i->in);
        return;
    }
    if (width == 16)
        e8(em, 0x66);
    e_lea32(em, d, m.base, m.index, m.scale, (int32_t)m.disp);
    if (i->in.z.address_width == 16 && width == 32) { /* movzx */
        e_rex(em, false, d, 0, d), e8(em, 0x0f), e8(em, 0xb7), e8(em, 0xc0 | (d & 7) << 3 | (d & 7));
    }
}

/* bt/bts/btr/btc [mem], reg: the register may select any bit after (or before) the operand */
static void emit_bt_mem(struct fvm_tr *tr, struct fvm_tr_insn *i)
{
    struct fvm_emit *em = &tr->em;
    struct fvm_memref m;
    struct fvm_hostref h;
    bool high;
    unsigned reg = (unsigned)fvm_decode_gpr(i->in.ops[1].reg.value, &high);
    unsigned size = i->in.ops[1].size / 8, log = size == 8 ? 3 : size == 4 ? 2 : 1;
    unsigned want = i->in.z.mnemonic == ZYDIS_MNEMONIC_BT ? FVM_R : FVM_R | FVM_W;

    fvm_tr_flags_clobber(tr, i->live_in);
    fvm_tr_memref(tr, i, 0, &m);
    struct fvm_memref off = m;
    off.seg = FVM_NOREG; /* the base comes behind the wrap of a 32-bit address */
    fvm_tr_address_to_t(tr, &off);
    if (size == 8) {
        e_mov(em, tr->x, reg);
    } else if (size == 4) {
        e_rr(em, true, 0x63, tr->x, reg); /* movsxd */
    } else {
        e_rex(em, true, tr->x, 0, reg), e8(em, 0x0f), e8(em, 0xbf), e8(em, 0xc0 | (tr->x & 7) << 3 | (reg & 7));
    }
    e_sar(em, tr->x, 3 + log);
    e_lea(em, tr->t, tr->t, tr->x, log, 0);
    if (m.addr32)
        e_mov32(em, tr->t, tr->t);
    if (m.seg != FVM_NOREG)
        e_fs_alu(em, 0x03, tr->t, m.seg == FVM_FS ? FVM_OFF_SEG_FS : FVM_OFF_SEG_GS);
    if (m.seg != FVM_NOREG && tr->bits != 64)
        e_mov32(em, tr->t, tr->t);
    struct fvm_memref at = {.base = tr->t, .index = FVM_NOREG, .seg = FVM_NOREG};
    uint32_t site = tr->e->site_count;
    fvm_tr_memop(tr, &at, size, want, &h);
    bool stack = m.seg == FVM_NOREG && (m.base == FVM_RSP || m.base == FVM_RBP); /* not: what register t is */
    tr->e->sites[site].kind = (uint8_t)((tr->e->sites[site].kind & ~FVM_SITE_STACK) | (stack ? FVM_SITE_STACK : 0));
    e_mov(em, tr->x, reg);
    e_alu_imm(em, false, 4, tr->x, (int32_t)(size * 8 - 1));
    fvm_tr_flags_before_op(tr, FVM_NOREG);
    tr->e->marks[tr->b->mark_first + tr->cur].flags_saved = tr->saved;
    if ((i->in.z.attributes & ZYDIS_ATTRIB_HAS_LOCK) && !fvm_tr_unlocked(tr))
        e8(em, 0xf0);
    if (size == 2)
        e8(em, 0x66);
    e_rex(em, size == 8, tr->x, e_n(h.index), h.base);
    e8(em, 0x0f);
    e8(em, i->in.z.opcode);
    e_mem(em, tr->x, h.base, h.index, 0, h.disp);
    fvm_tr_flags_after_op(tr);
}

/* lock cmpxchg of a user program with one vCPU (fvm_tr_unlocked): what it does, in instructions that take half the time of an
 * unlocked cmpxchg: compare; store the new or the old value. */
static void emit_cmpxchg(struct fvm_tr *tr, struct fvm_tr_insn *i)
{
    struct fvm_emit *em = &tr->em;
    struct fvm_memref m;
    struct fvm_hostref h;
    bool high;
    unsigned src = (unsigned)fvm_decode_gpr(i->in.ops[1].reg.value, &high);
    fvm_tr_memref(tr, i, 0, &m);
    fvm_tr_memop(tr, &m, 8, FVM_R | FVM_W, &h);
    fvm_tr_flags_before_op(tr, FVM_NOREG);
    tr->e->marks[tr->b->mark_first + tr->cur].flags_saved = tr->saved;
    e_lea(em, tr->u, h.base, h.index, 0, h.disp);
    e_load(em, tr->t, tr->u, FVM_NOREG, 0);
    e_rr(em, true, 0x39, tr->t, FVM_RAX); /* cmp rax, t */
    e_mov(em, tr->x, src);
    e_rex(em, true, tr->x, 0, tr->t), e8(em, 0x0f), e8(em, 0x45), e8(em, 0xc0 | (tr->x & 7) << 3 | (tr->t & 7)); /* cmovne x, t */
    e_rex(em, true, FVM_RAX, 0, tr->t), e8(em, 0x0f), e8(em, 0x45), e8(em, 0xc0 | (tr->t & 7)); /* cmovne rax, t */
    e_store(em, tr->u, FVM_NOREG, 0, tr->x);
    fvm_tr_flags_after_op(tr);
}

static void emit_moffs(struct fvm_tr *tr, struct fvm_tr_insn *i)
{
    struct fvm_emit *em = &tr->em;
    struct fvm_memref m;
    struct fvm_hostref h;
    bool store = i->in.ops[0].type == ZYDIS_OPERAND_TYPE_MEMORY;
    unsigned size = i->in.ops[store ? 0 : 1].size / 8;
    fvm_tr_memref(tr, i, store ? 0 : 1, &m);
    fvm_tr_memop(tr, &m, size, store ? FVM_W : FVM_R, &h);
    if (size == 2)
        e8(em, 0x66);
    e_op_mem(em, size == 8, (store ? 0x88u : 0x8au) | (size > 1), FVM_RAX, h.base, h.index, 0, h.disp);
}

/* what fast.c's string helper needs to know, in one word */
uint32_t fvm_string_pack(const struct fvm_insn *in, unsigned bits)
{
    unsigned op, size = in->z.operand_width / 8u, rep = 0, seg = FVM_NOREG;
    switch (in->z.mnemonic) {
    case ZYDIS_MNEMONIC_MOVSB: case ZYDIS_MNEMONIC_MOVSW: case ZYDIS_MNEMONIC_MOVSD: case ZYDIS_MNEMONIC_MOVSQ: op = 0; break;
    case ZYDIS_MNEMONIC_STOSB: case ZYDIS_MNEMONIC_STOSW: case ZYDIS_MNEMONIC_STOSD: case ZYDIS_MNEMONIC_STOSQ: op = 1; break;
    case ZYDIS_MNEMONIC_LODSB: case ZYDIS_MNEMONIC_LODSW: case ZYDIS_MNEMONIC_LODSD: case ZYDIS_MNEMONIC_LODSQ: op = 2; break;
    case ZYDIS_MNEMONIC_SCASB: case ZYDIS_MNEMONIC_SCASW: case ZYDIS_MNEMONIC_SCASD: case ZYDIS_MNEMONIC_SCASQ: op = 3; break;
    default: op = 4; break; /* cmps */
    }
    if (!(in->z.opcode & 1))
        size = 1;
    if (in->z.attributes & ZYDIS_ATTRIB_HAS_REPNE)
        rep = 2;
    else if (in->z.attributes & (ZYDIS_ATTRIB_HAS_REP | ZYDIS_ATTRIB_HAS_REPE))
        rep = 1;
    if (in->z.attributes & ZYDIS_ATTRIB_HAS_SEGMENT_FS)
        seg = FVM_FS;
    if (in->z.attributes & ZYDIS_ATTRIB_HAS_SEGMENT_GS)
        seg = FVM_GS;
    bool a32 = in->z.address_width == 32;
    return op | size << 4 | rep << 8 | (seg == FVM_NOREG ? 7 : seg) << 12 | (a32 ? 1u << 16 : 0) | bits << 20;
}

static void emit_string(struct fvm_tr *tr, struct fvm_tr_insn *i)
{
    struct fvm_emit *em = &tr->em;
    if (i->f_mod) /* scas, cmps: the helper works on the host's flags as saved by the stub */
        fvm_tr_flags_restore(tr, FVM_NOREG);
    uint32_t site = fvm_tr_site(tr, 0, 0);
    tr->e->sites[site].flags_saved = tr->saved;
    tr->e->marks[tr->b->mark_first + tr->cur].flags_saved = tr->saved;
    e_fs_store_imm(em, FVM_SLOT_ARG, site);
    e_fs_store_imm(em, FVM_SLOT_TMP, fvm_string_pack(&i->in, tr->bits));
    fvm_tr_jmp_tramp(tr, FVM_TRAMP_STRING);
    tr->e->sites[site].resume_off = em->at;
    fvm_tr_flags_after_op(tr);
}

static void emit_sti(struct fvm_tr *tr, struct fvm_tr_insn *i)
{
    struct fvm_emit *em = &tr->em;
    fvm_tr_flags_clobber(tr, i->live_in);
    struct fvm_cold *c = &tr->cold[tr->cold_n++];
    *c = (struct fvm_cold){.kind = FVM_COLD_STI, .mark = (uint8_t)tr->cur, .flags_saved = tr->saved};
    c->site = fvm_tr_site(tr, 0, 0);
    e_fs_cmp8_0(em, FVM_SLOT_WINDOW);
    c->from1 = e_jcc(em, CC_NE);
    e_fs_store8(em, FVM_OFF_IFLAG, 1);
}

static void emit_rdtsc(struct fvm_tr *tr, struct fvm_tr_insn *i)
{
    struct fvm_emit *em = &tr->em;
    fvm_tr_flags_clobber(tr, i->live_in);
    fvm_tr_copy(tr, &i->in);
    e_shl(em, FVM_RDX, 32);
    e_rr(em, true, 0x09, FVM_RDX, FVM_RAX);
    e_fs_alu(em, 0x03, FVM_RAX, FVM_OFF_TSC_OFFSET);
    e_mov(em, FVM_RDX, FVM_RAX);
    e_shr(em, FVM_RDX, 32);
    e_mov32(em, FVM_RAX, FVM_RAX);
    if (i->in.z.mnemonic == ZYDIS_MNEMONIC_RDTSCP)
        e_fs_load32(em, FVM_RCX, (uint32_t)offsetof(struct fvm_vcpu, tsc_aux));
}

static void emit_swapgs(struct fvm_tr *tr)
{
    struct fvm_emit *em = &tr->em;
    uint32_t kgs = (uint32_t)offsetof(struct fvm_vcpu, kernel_gs_base);
    e_fs_load(em, tr->u, FVM_OFF_SEG_GS);
    e_fs_load(em, tr->t, kgs);
    e_fs_store(em, FVM_OFF_SEG_GS, tr->t);
    e_fs_store(em, kgs, tr->u);
}

/* mov reg, sreg / mov reg, crN: the value is memory of the vCPU */
static void emit_mov_from_system(struct fvm_tr *tr, struct fvm_tr_insn *i)
{
    static const uint32_t cr_off[5] = {offsetof(struct fvm_vcpu, cr0), 0, offsetof(struct fvm_vcpu, cr2),
                                       offsetof(struct fvm_vcpu, cr3), offsetof(struct fvm_vcpu, cr4)};
    struct fvm_emit *em = &tr->em;
    bool high;
    unsigned d = (unsigned)fvm_decode_gpr(i->in.ops[0].reg.value, &high);
    if (i->in.z.mnemonic == ZYDIS_MNEMONIC_RDFSBASE || i->in.z.mnemonic == ZYDIS_MNEMONIC_RDGSBASE) {
        uint32_t base = i->in.z.mnemonic == ZYDIS_MNEMONIC_RDFSBASE ? FVM_OFF_SEG_FS : FVM_OFF_SEG_GS;
        if (i->in.ops[0].size == 64)
            e_fs_load(em, d, base);
        else
            e_fs_load32(em, d, base);
        return;
    }
    ZydisRegister s = i->in.ops[1].reg.value;
    int seg = fvm_decode_seg(s);
    if (seg >= 0) {
        uint32_t off = (uint32_t)(offsetof(struct fvm_vcpu, seg) + (unsigned)seg * sizeof(struct fvm_seg) +
                                  offsetof(struct fvm_seg, sel));
        e8(em, 0x64);
        if (i->in.ops[0].size == 16) { /* mov r16, fs:[off] */
            e8(em, 0x66);
            e_op_mem(em, false, 0x8b, d, FVM_NOREG, FVM_NOREG, 0, (int32_t)off);
        } else { /* movzx r32, word fs:[off] */
            e_rex(em, false, d, 0, 0), e8(em, 0x0f), e8(em, 0xb7);
            e_mem(em, d, FVM_NOREG, FVM_NOREG, 0, (int32_t)off);
        }
        return;
    }
    e_fs_load(em, d, cr_off[s - ZYDIS_REGISTER_CR0]);
}

static void emit_incdec32(struct fvm_tr *tr, struct fvm_tr_insn *i)
{
    struct fvm_emit *em = &tr->em;
    fvm_tr_flags_before_op(tr, FVM_NOREG);
    if (i->in.ops[0].size == 16)
        e8(em, 0x66);
    e8(em, 0xff);
    e8(em, 0xc0 | (i->in.z.mnemonic == ZYDIS_MNEMONIC_DEC) << 3 | (i->in.z.opcode & 7));
    fvm_tr_flags_after_op(tr);
}

void fvm_tr_emit_misc(struct fvm_tr *tr, struct fvm_tr_insn *i)
{
    switch (i->class) {
    case FVM_C_LEA: emit_lea(tr, i); break;
    case FVM_C_DROP: break;
    case FVM_C_BT_MEM: emit_bt_mem(tr, i); break;
    case FVM_C_CMPXCHG: emit_cmpxchg(tr, i); break;
    case FVM_C_MOFFS: emit_moffs(tr, i); break;
    case FVM_C_INCDEC32: emit_incdec32(tr, i); break;
    case FVM_C_STRING: emit_string(tr, i); break;
    case FVM_C_CLI: e_fs_store8(&tr->em, FVM_OFF_IFLAG, 0); break;
    case FVM_C_STI: emit_sti(tr, i); break;
    case FVM_C_RDTSC: emit_rdtsc(tr, i); break;
    case FVM_C_SWAPGS: emit_swapgs(tr); break;
    case FVM_C_MOV_FROM_SREG: emit_mov_from_system(tr, i); break;
    default: fvm_assert(!"misc class");
    }
}
