/*
 * legacy.c - the few plain instructions of 16/32-bit code that 64-bit mode lacks, so that the host cannot run them:
 * decimal adjustment, pusha/popa, bound, arpl, salc.
 */
#include "vmm/cpu/system_part.h"

static void set_flags(struct fvm_vcpu *v, uint64_t mask, uint64_t flags)
{
    v->rflags = (v->rflags & ~mask) | (flags & mask);
}

/* SF, ZF, PF of a byte. */
static uint64_t szp(uint8_t x)
{
    return (x & 0x80 ? FVM_F_SF : 0) | (x ? 0 : FVM_F_ZF) | (__builtin_parity(x) ? 0 : FVM_F_PF);
}

static void set_ax(struct fvm_vcpu *v, unsigned ax) { fvm_reg_set(v, FVM_RAX, 2, ax); }

/* aaa, aas: the documented CF and AF; the others as current processors leave them (cleared by result). */
static void ascii_adjust(struct fvm_vcpu *v, bool add)
{
    unsigned ax = (uint16_t)v->regs[FVM_RAX];
    bool adjust = (ax & 0xf) > 9 || (v->rflags & FVM_F_AF);

    if (adjust)
        ax = add ? ax + 0x106 : ax - 0x106;
    ax &= 0xff0f;
    set_ax(v, ax);
    set_flags(v, FVM_F_CF | FVM_F_AF | FVM_F_SF | FVM_F_ZF | FVM_F_PF | FVM_F_OF,
              (adjust ? FVM_F_CF | FVM_F_AF : 0) | szp((uint8_t)ax));
}

static void decimal_adjust(struct fvm_vcpu *v, bool add)
{
    uint8_t old = (uint8_t)v->regs[FVM_RAX], al = old;
    bool old_cf = v->rflags & FVM_F_CF, cf = false, af = false;

    if ((old & 0xf) > 9 || (v->rflags & FVM_F_AF)) {
        al = (uint8_t)(add ? al + 6 : al - 6);
        cf = old_cf || (add ? old > 0xf9 : old < 6);
        af = true;
    }
    if (old > 0x99 || old_cf) {
        al = (uint8_t)(add ? al + 0x60 : al - 0x60);
        cf = true;
    }
    fvm_reg_set(v, FVM_RAX, 1, al);
    set_flags(v, FVM_F_CF | FVM_F_AF | FVM_F_SF | FVM_F_ZF | FVM_F_PF | FVM_F_OF,
              (cf ? FVM_F_CF : 0) | (af ? FVM_F_AF : 0) | szp(al));
}

static int aam_aad(struct fvm_vcpu *v, bool mul, uint8_t base, struct fvm_fault *fault)
{
    uint8_t al = (uint8_t)v->regs[FVM_RAX], ah = (uint8_t)(v->regs[FVM_RAX] >> 8);

    if (mul) { /* aam */
        if (!base)
            return fvm_raise(fault, FVM_EXC_DE, false, 0);
        ah = al / base;
        al = al % base;
    } else {
        al = (uint8_t)(al + ah * base);
        ah = 0;
    }
    set_ax(v, (unsigned)(ah << 8 | al));
    set_flags(v, FVM_F_CF | FVM_F_AF | FVM_F_SF | FVM_F_ZF | FVM_F_PF | FVM_F_OF, szp(al));
    return 0;
}

/* Word by word as processors do: those before a fault are written. */
static int pusha(struct fvm_vcpu *v, unsigned bytes, struct fvm_fault *fault)
{
    uint64_t rsp = v->regs[FVM_RSP];

    for (unsigned i = 0; i < 8; i++) {
        uint64_t w = i == FVM_RSP ? rsp : v->regs[i];

        if (fvm_stack_push(v, bytes, &w, 1, fault)) {
            v->regs[FVM_RSP] = rsp;
            return FVM_FAULT;
        }
    }
    return 0;
}

static int popa(struct fvm_vcpu *v, unsigned bytes, struct fvm_fault *fault)
{
    uint64_t w[8];

    if (fvm_stack_peek(v, 0, bytes, w, 8, fault))
        return FVM_FAULT;
    for (unsigned i = 0; i < 8; i++)
        if (7 - i != FVM_RSP)
            fvm_reg_set(v, 7 - i, bytes, w[i]);
    fvm_stack_move(v, 8 * (int64_t)bytes);
    return 0;
}

static int bound(struct fvm_vcpu *v, const struct fvm_insn *insn, struct fvm_fault *fault)
{
    unsigned bytes = insn->ops[0].size / 8u;
    int gpr = fvm_decode_gpr(insn->ops[0].reg.value, NULL);
    int32_t low = 0, high = 0, x;
    fvm_gva va;

    if (insn->ops[1].type != ZYDIS_OPERAND_TYPE_MEMORY)
        return fvm_raise_ud(fault);
    if (fvm_operand_linear(v, insn, &insn->ops[1], 2 * bytes, false, &va, fault) ||
        fvm_vmem_read(v, va, &low, bytes, FVM_AS_CPL, fault) ||
        fvm_vmem_read(v, va + bytes, &high, bytes, FVM_AS_CPL, fault))
        return FVM_FAULT;
    x = (int32_t)v->regs[gpr];
    if (bytes == 2) {
        low = (int16_t)low;
        high = (int16_t)high;
        x = (int16_t)x;
    }
    return x < low || x > high ? fvm_raise(fault, FVM_EXC_BR, false, 0) : 0;
}

static int arpl(struct fvm_vcpu *v, const struct fvm_insn *insn, struct fvm_fault *fault)
{
    uint64_t dst, src;

    if (fvm_vcpu_real(v) || fvm_vcpu_v86(v))
        return fvm_raise_ud(fault);
    if (fvm_operand_read(v, insn, &insn->ops[0], 2, &dst, fault) ||
        fvm_operand_read(v, insn, &insn->ops[1], 2, &src, fault))
        return FVM_FAULT;
    if ((dst & 3) >= (src & 3)) {
        set_flags(v, FVM_F_ZF, 0);
        return 0;
    }
    if (fvm_operand_write(v, insn, &insn->ops[0], 2, (dst & ~3ull) | (src & 3), fault))
        return FVM_FAULT;
    set_flags(v, FVM_F_ZF, FVM_F_ZF);
    return 0;
}

int fvm_part_legacy(struct fvm_vcpu *v, const struct fvm_insn *insn, struct fvm_fault *fault)
{
    switch (insn->z.mnemonic) {
    case ZYDIS_MNEMONIC_AAA:
        ascii_adjust(v, true);
        return 0;
    case ZYDIS_MNEMONIC_AAS:
        ascii_adjust(v, false);
        return 0;
    case ZYDIS_MNEMONIC_DAA:
        decimal_adjust(v, true);
        return 0;
    case ZYDIS_MNEMONIC_DAS:
        decimal_adjust(v, false);
        return 0;
    case ZYDIS_MNEMONIC_AAM:
        return aam_aad(v, true, (uint8_t)insn->ops[0].imm.value.u, fault);
    case ZYDIS_MNEMONIC_AAD:
        return aam_aad(v, false, (uint8_t)insn->ops[0].imm.value.u, fault);
    case ZYDIS_MNEMONIC_SALC:
        fvm_reg_set(v, FVM_RAX, 1, v->rflags & FVM_F_CF ? 0xff : 0);
        return 0;
    case ZYDIS_MNEMONIC_PUSHA:
        return pusha(v, 2, fault);
    case ZYDIS_MNEMONIC_PUSHAD:
        return pusha(v, 4, fault);
    case ZYDIS_MNEMONIC_POPA:
        return popa(v, 2, fault);
    case ZYDIS_MNEMONIC_POPAD:
        return popa(v, 4, fault);
    case ZYDIS_MNEMONIC_BOUND:
        return bound(v, insn, fault);
    default:
        return arpl(v, insn, fault);
    }
}
