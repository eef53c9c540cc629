/*
 * seg16.c - code in a segmented mode: real mode, virtual 8086 mode, 16-bit segments, and 32-bit code whose CS, DS, ES or SS has a base
 * or a limit.
 *
 * There a block's rip is the offset in CS, and the mode that it is found by holds CS's base, so that jumps chain as they do in
 * flat code. Instructions on registers are copied (re-encoded for 64-bit mode: what means 16 bits by default needs a 66 prefix
 * there); an operand in an ordinary segment is compared with its limit and then accessed as in flat code; all else is done by
 * exec_one.c, which knows how segments and offsets behave. Flat 32-bit and 64-bit code never comes here.
 */
#include "vmm/cpu/descriptor.h"
#include "vmm/cpu/translate/tr.h"

bool fvm_seg16_fetch_ok(const struct fvm_vcpu *v, uint64_t rip, unsigned len)
{
    return fvm_vcpu_code_bits(v) == 64 || rip + len - 1 <= v->seg[FVM_CS].limit;
}

static bool on_registers(const struct fvm_insn *in)
{
    for (unsigned k = 0; k < in->z.operand_count; k++)
        if (in->ops[k].type == ZYDIS_OPERAND_TYPE_MEMORY && in->ops[k].mem.type != ZYDIS_MEMOP_TYPE_AGEN)
            return false;
    return true;
}

/* A jump within the code segment's limit: 16-bit offsets are below 64 KiB, 32-bit ones below 4 GiB, and some targets are known. */
static bool stays_inside(const struct fvm_tr *tr, const struct fvm_tr_insn *i)
{
    const struct fvm_insn *in = &i->in;
    if (in->z.operand_width == 16 || (tr->mode & FVM_MODE_CS4G))
        return true;
    return in->z.raw.imm[0].is_relative && (uint32_t)(fvm_tr_next_rip(tr, i) + (uint64_t)in->z.raw.imm[0].value.s) <= 0xffff;
}

static bool usable(const struct fvm_tr *tr, unsigned seg)
{
    return (tr->mode & (uint64_t)FVM_MODE_ES_OK << seg) != 0;
}

/* The explicit memory operand goes through a segment that needs no more than a look at its limit. */
static bool plain_operand(const struct fvm_tr *tr, const struct fvm_insn *in)
{
    for (unsigned k = 0; k < in->z.operand_count; k++) {
        const ZydisDecodedOperand *o = &in->ops[k];
        if (o->type != ZYDIS_OPERAND_TYPE_MEMORY || o->visibility != ZYDIS_OPERAND_VISIBILITY_EXPLICIT)
            continue;
        int seg = fvm_decode_seg(o->mem.segment);
        if (seg < 0 || !usable(tr, (unsigned)seg) || (seg == FVM_CS && (o->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE)))
            return false;
    }
    return tr->bits == 32 || in->z.encoding == ZYDIS_INSTRUCTION_ENCODING_LEGACY; /* VEX: see IDENT */
}

static bool does_it(const struct fvm_tr *tr, const struct fvm_tr_insn *i, unsigned class)
{
    const struct fvm_insn *in = &i->in;
    switch (class) {
    case FVM_C_IDENT: /* VEX is there in 16-bit protected mode only: exec_one looks */
        return on_registers(in) && (tr->bits == 32 || in->z.encoding == ZYDIS_INSTRUCTION_ENCODING_LEGACY);
    case FVM_C_LEA: case FVM_C_DROP: case FVM_C_INCDEC32: case FVM_C_MOV_FROM_SREG: case FVM_C_UD: case FVM_C_NM:
    case FVM_C_SYSTEM: case FVM_C_RDTSC:
        return true;
    case FVM_C_IDENT_MEM: case FVM_C_MOFFS:
        return plain_operand(tr, in);
    case FVM_C_PUSH: case FVM_C_POP:
        return usable(tr, FVM_SS) && plain_operand(tr, in);
    case FVM_C_JMP: case FVM_C_JCC:
        return stays_inside(tr, i);
    case FVM_C_CALL: case FVM_C_RET:
        return stays_inside(tr, i) && usable(tr, FVM_SS);
    case FVM_C_JMP_IND: case FVM_C_CALL_IND:
        return stays_inside(tr, i) && usable(tr, FVM_SS) && plain_operand(tr, in);
    case FVM_C_LOOP:
        return stays_inside(tr, i) && (in->z.address_width == 32 || in->z.mnemonic == ZYDIS_MNEMONIC_LOOP ||
                                        in->z.mnemonic == ZYDIS_MNEMONIC_JCXZ);
    default:
        return false;
    }
}

unsigned fvm_seg16_class(const struct fvm_tr *tr, const struct fvm_tr_insn *i, unsigned class)
{
    return does_it(tr, i, class) ? class : FVM_C_ONE;
}

static uint32_t seg_field(unsigned seg, size_t field)
{
    return (uint32_t)(offsetof(struct fvm_vcpu, seg) + seg * sizeof(struct fvm_seg) + field);
}

void fvm_seg16_address(struct fvm_tr *tr, const struct fvm_memref *m, unsigned size, uint32_t site)
{
    struct fvm_emit *em = &tr->em;
    if (m->base == FVM_NOREG && m->index == FVM_NOREG) {
        e_mov_imm(em, tr->t, m->addr16 ? (uint16_t)m->disp : (uint32_t)m->disp);
    } else {
        e_lea32(em, tr->t, m->base, m->index, m->scale, (int32_t)m->disp);
        if (m->addr16) /* movzx t, t16 */
            e_rex(em, false, tr->t, 0, tr->t), e8(em, 0x0f), e8(em, 0xb7), e8(em, 0xc0 | (tr->t & 7) << 3 | (tr->t & 7));
    }
    e_fs_load32(em, tr->u, seg_field(m->seg, offsetof(struct fvm_seg, limit)));
    if (size > 1)
        e_alu_imm(em, true, 5, tr->u, (int32_t)size - 1);
    e_rr(em, true, 0x39, tr->t, tr->u); /* cmp u, t: both less than 2^33, u may be negative */
    struct fvm_cold *c = &tr->cold[tr->cold_n++];
    *c = (struct fvm_cold){.kind = FVM_COLD_ONE, .mark = (uint8_t)tr->cur, .site = site, .from1 = e_jcc(em, CC_L)};
    e_fs_alu(em, 0x03, tr->t, seg_field(m->seg, offsetof(struct fvm_seg, base)));
    e_mov32(em, tr->t, tr->t);
}

void fvm_seg16_loop(struct fvm_tr *tr, struct fvm_tr_insn *i, uint64_t target)
{
    struct fvm_emit *em = &tr->em;
    fvm_tr_flags_clobber(tr, i->live_in);
    if (i->in.z.mnemonic == ZYDIS_MNEMONIC_LOOP) {
        e8(em, 0x66), e8(em, 0x83), e8(em, 0xe9), e8(em, 1); /* sub cx, 1 */
        fvm_tr_exit_two(tr, CC_NE, target, fvm_tr_next_rip(tr, i));
    } else {
        e8(em, 0x66), e8(em, 0x85), e8(em, 0xc9); /* test cx, cx */
        fvm_tr_exit_two(tr, CC_E, target, fvm_tr_next_rip(tr, i));
    }
}

/* Does a 66 prefix choose the width of this instruction (of 16-bit code)? In 0f maps it is also a part of vector opcodes. */
static bool width_by_prefix(const struct fvm_insn *in)
{
    bool word = false;
    if (in->z.opcode_map == ZYDIS_OPCODE_MAP_DEFAULT)
        return in->z.operand_width == 16;
    for (unsigned k = 0; k < in->z.operand_count; k++) {
        const ZydisDecodedOperand *o = &in->ops[k];
        if (o->type == ZYDIS_OPERAND_TYPE_REGISTER) {
            ZydisRegisterClass c = ZydisRegisterGetClass(o->reg.value);
            if (c == ZYDIS_REGCLASS_MMX || c == ZYDIS_REGCLASS_XMM)
                return false;
            word |= c == ZYDIS_REGCLASS_GPR16;
        } else if (o->type == ZYDIS_OPERAND_TYPE_MEMORY) {
            word |= o->size == 16;
        }
    }
    return word;
}

unsigned fvm_seg16_prefix(const struct fvm_insn *in)
{
    bool has = false;
    if (in->z.encoding != ZYDIS_INSTRUCTION_ENCODING_LEGACY)
        return FVM_P66_KEEP;
    for (unsigned k = 0; k < in->z.raw.prefix_count; k++) {
        if (in->z.raw.prefixes[k].value != 0x66)
            continue;
        has = true;
        if (in->z.raw.prefixes[k].type == ZYDIS_PREFIX_TYPE_MANDATORY)
            return FVM_P66_KEEP;
    }
    return has ? FVM_P66_DROP : width_by_prefix(in) ? FVM_P66_ADD : FVM_P66_KEEP;
}
