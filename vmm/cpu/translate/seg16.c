/*
 * seg16.c - code in a segmented mode: real mode, virtual 8086 mode, 16-bit segments, and 32-bit code whose CS, DS, ES or SS has a base
 * or a limit.
 *
 * There a block's rip is the offset in CS, and the mode that it is found by holds CS's base, so that jumps chain as they do in
 * flat code. Instructions on registers are copied (re-encoded for 64-bit mode: what means 16 bits by default needs a 66 prefix
 * there); whatever goes through a segment is done by exec_one.c, which knows bases, limits, and how offsets wrap. Flat 32-bit and
 * 64-bit code never comes here.
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

/* A jump within the code segment's limit, whatever its target is: 16-bit offsets below 64 KiB, 32-bit ones below 4 GiB. */
static bool stays_inside(const struct fvm_tr *tr, const struct fvm_insn *in)
{
    return in->z.operand_width == 16 ? true : (tr->mode & FVM_MODE_CS4G) != 0;
}

unsigned fvm_seg16_class(const struct fvm_tr *tr, const struct fvm_insn *in, unsigned class)
{
    switch (class) {
    case FVM_C_IDENT: /* VEX is there in 16-bit protected mode only: exec_one looks */
        return on_registers(in) && (tr->bits == 32 || in->z.encoding == ZYDIS_INSTRUCTION_ENCODING_LEGACY) ? class : FVM_C_ONE;
    case FVM_C_LEA: case FVM_C_DROP: case FVM_C_INCDEC32: case FVM_C_MOV_FROM_SREG: case FVM_C_UD: case FVM_C_NM:
    case FVM_C_SYSTEM: case FVM_C_RDTSC:
        return class;
    case FVM_C_JMP: case FVM_C_JCC:
        return stays_inside(tr, in) ? class : FVM_C_ONE;
    case FVM_C_LOOP:
        if (!stays_inside(tr, in))
            return FVM_C_ONE;
        if (in->z.address_width == 32)
            return class;
        return in->z.mnemonic == ZYDIS_MNEMONIC_LOOP || in->z.mnemonic == ZYDIS_MNEMONIC_JCXZ ? class : FVM_C_ONE;
    default:
        return FVM_C_ONE;
    }
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
