/*
 * operand.c - operands of system instructions on precise state.
 *
 * Segment limits and types are checked here (16/32-bit code), which is why only C-executed instructions see them.
 */
#include "vmm/cpu/operand.h"


#include "vmm/cpu/descriptor.h"

static uint64_t width_mask(unsigned bytes) { return bytes >= 8 ? ~0ull : (1ull << (bytes * 8)) - 1; }

uint64_t fvm_reg_get(const struct fvm_vcpu *v, unsigned reg, unsigned bytes)
{
    return v->regs[reg] & width_mask(bytes);
}

void fvm_reg_set(struct fvm_vcpu *v, unsigned reg, unsigned bytes, uint64_t value)
{
    uint64_t mask = width_mask(bytes);

    if (bytes == 4)
        v->regs[reg] = (uint32_t)value;
    else
        v->regs[reg] = (v->regs[reg] & ~mask) | (value & mask);
}

static uint64_t address_register(const struct fvm_vcpu *v, const struct fvm_insn *insn, ZydisRegister reg)
{
    int n;

    if (reg == ZYDIS_REGISTER_NONE)
        return 0;
    if (reg == ZYDIS_REGISTER_RIP || reg == ZYDIS_REGISTER_EIP)
        return v->rip + insn->len;
    n = fvm_decode_gpr(reg, NULL);
    return n < 0 ? 0 : v->regs[n];
}

uint64_t fvm_operand_offset(const struct fvm_vcpu *v, const struct fvm_insn *insn, const ZydisDecodedOperand *op)
{
    uint64_t off = address_register(v, insn, op->mem.base) + (uint64_t)op->mem.disp.value;

    if (op->mem.index != ZYDIS_REGISTER_NONE)
        off += address_register(v, insn, op->mem.index) * op->mem.scale;
    return off & width_mask(insn->z.address_width / 8u);
}

unsigned fvm_insn_segment(const struct fvm_insn *insn)
{
    ZydisInstructionAttributes a = insn->z.attributes;

    return a & ZYDIS_ATTRIB_HAS_SEGMENT_FS   ? FVM_FS
           : a & ZYDIS_ATTRIB_HAS_SEGMENT_GS ? FVM_GS
           : a & ZYDIS_ATTRIB_HAS_SEGMENT_ES ? FVM_ES
           : a & ZYDIS_ATTRIB_HAS_SEGMENT_CS ? FVM_CS
           : a & ZYDIS_ATTRIB_HAS_SEGMENT_SS ? FVM_SS
                                             : FVM_DS;
}

int fvm_operand_linear(struct fvm_vcpu *v, const struct fvm_insn *insn, const ZydisDecodedOperand *op, unsigned len,
                       bool write, fvm_gva *ret_va, struct fvm_fault *fault)
{
    int seg = fvm_decode_seg(op->mem.segment);

    return fvm_segment_linear(v, seg < 0 ? FVM_DS : (unsigned)seg, fvm_operand_offset(v, insn, op), len, write, ret_va,
                              fault);
}

int fvm_operand_read(struct fvm_vcpu *v, const struct fvm_insn *insn, const ZydisDecodedOperand *op, unsigned bytes,
                     uint64_t *ret_value, struct fvm_fault *fault)
{
    uint64_t value = 0;
    fvm_gva va;
    bool high;
    int n;

    switch (op->type) {
    case ZYDIS_OPERAND_TYPE_MEMORY:
        if (fvm_operand_linear(v, insn, op, bytes, false, &va, fault) ||
            fvm_vmem_read(v, va, &value, bytes, FVM_AS_CPL, fault))
            return FVM_FAULT;
        break;
    case ZYDIS_OPERAND_TYPE_IMMEDIATE:
        value = op->imm.value.u & width_mask(bytes);
        break;
    case ZYDIS_OPERAND_TYPE_REGISTER:
        n = fvm_decode_gpr(op->reg.value, &high);
        fvm_assert(n >= 0);
        value = high ? (v->regs[n - 4] >> 8) & 0xff : fvm_reg_get(v, (unsigned)n, bytes);
        break;
    default:
        return fvm_raise_ud(fault);
    }
    *ret_value = value;
    return 0;
}

int fvm_operand_write(struct fvm_vcpu *v, const struct fvm_insn *insn, const ZydisDecodedOperand *op, unsigned bytes,
                      uint64_t value, struct fvm_fault *fault)
{
    fvm_gva va;
    int n;

    if (op->type == ZYDIS_OPERAND_TYPE_MEMORY) {
        if (fvm_operand_linear(v, insn, op, bytes, true, &va, fault))
            return FVM_FAULT;
        return fvm_vmem_write(v, va, &value, bytes, FVM_AS_CPL, fault);
    }
    n = fvm_decode_gpr(op->reg.value, NULL);
    fvm_assert(op->type == ZYDIS_OPERAND_TYPE_REGISTER && n >= 0);
    fvm_reg_set(v, (unsigned)n, bytes, value);
    return 0;
}
