/*
 * system_control.c - instructions on control registers, MSRs, time, CPUID and segment bases.
 */
#include <x86intrin.h>

#include "vmm/cpu/control.h"
#include "vmm/cpu/cpuid.h"
#include "vmm/cpu/system_part.h"

uint64_t fvm_system_tsc(const struct fvm_vcpu *v)
{
    return v->tsc_direct ? __rdtsc() + (uint64_t)v->tsc_offset : fvm_clock_tsc(v->clock);
}

void fvm_system_sync_tsc(struct fvm_vcpu *v)
{
    int64_t offset = 0;

    v->tsc_direct = v->clock && fvm_clock_tsc_offset(v->clock, &offset);
    v->tsc_offset = offset;
}

static void set_edx_eax(struct fvm_vcpu *v, uint64_t x)
{
    v->regs[FVM_RAX] = (uint32_t)x;
    v->regs[FVM_RDX] = x >> 32;
}

static uint64_t edx_eax(const struct fvm_vcpu *v) { return v->regs[FVM_RDX] << 32 | (uint32_t)v->regs[FVM_RAX]; }

static int read_cr(struct fvm_vcpu *v, unsigned cr, uint64_t *ret, struct fvm_fault *fault)
{
    switch (cr) {
    case 0:
        *ret = v->cr0;
        return 0;
    case 2:
        *ret = v->cr2;
        return 0;
    case 3:
        *ret = v->cr3;
        return 0;
    case 4:
        *ret = v->cr4;
        return 0;
    case 8:
        *ret = fvm_irq_cpu_tpr_read(v->irq, v->index);
        return 0;
    default:
        return fvm_raise_ud(fault);
    }
}

static int mov_dr(struct fvm_vcpu *v, unsigned dr, unsigned gpr, bool write, unsigned bytes, struct fvm_fault *fault)
{
    if (dr == 4 || dr == 5) {
        if (v->cr4 & FVM_CR4_DE)
            return fvm_raise_ud(fault);
        dr += 2;
    }
    if (dr > 7)
        return fvm_raise_ud(fault);
    if (!write) {
        fvm_reg_set(v, gpr, bytes, v->dr[dr]);
        return 0;
    }
    uint64_t value = fvm_reg_get(v, gpr, bytes);

    if (dr >= 6 && value >> 32)
        return fvm_raise_gp0(fault);
    if (dr == 6)
        value = (value & 0xe00f) | 0xffff0ff0;
    if (dr == 7)
        value = (value & 0xffff2fff) | 0x400;
    v->dr[dr] = value;
    return 0;
}

static int mov_special(struct fvm_vcpu *v, const struct fvm_insn *insn, struct fvm_fault *fault)
{
    bool write = ZydisRegisterGetClass(insn->ops[0].reg.value) == ZYDIS_REGCLASS_CONTROL ||
                 ZydisRegisterGetClass(insn->ops[0].reg.value) == ZYDIS_REGCLASS_DEBUG;
    ZydisRegister special = insn->ops[write ? 0 : 1].reg.value;
    int gpr = fvm_decode_gpr(insn->ops[write ? 1 : 0].reg.value, NULL);
    unsigned n = (unsigned)ZydisRegisterGetId(special), bytes = fvm_vcpu_code_bits(v) == 64 ? 8 : 4;
    uint64_t value;

    if (fvm_need_cpl0(v, fault))
        return FVM_FAULT;
    if (ZydisRegisterGetClass(special) == ZYDIS_REGCLASS_DEBUG)
        return mov_dr(v, n, (unsigned)gpr, write, bytes, fault);
    if (write)
        return fvm_control_write_cr(v, n, fvm_reg_get(v, (unsigned)gpr, bytes), fault);
    if (read_cr(v, n, &value, fault))
        return FVM_FAULT;
    fvm_reg_set(v, (unsigned)gpr, bytes, value);
    return 0;
}

static int lmsw(struct fvm_vcpu *v, const struct fvm_insn *insn, struct fvm_fault *fault)
{
    uint64_t x;

    if (fvm_need_cpl0(v, fault) || fvm_operand_read(v, insn, &insn->ops[0], 2, &x, fault))
        return FVM_FAULT;
    x = (x & 0xf) | (v->cr0 & FVM_CR0_PE); /* PE can be set, not cleared */
    return fvm_control_write_cr(v, 0, (v->cr0 & ~0xfull) | x, fault);
}

static int smsw(struct fvm_vcpu *v, const struct fvm_insn *insn, struct fvm_fault *fault)
{
    const ZydisDecodedOperand *op = &insn->ops[0];

    if ((v->cr4 & FVM_CR4_UMIP) && v->cpl)
        return fvm_raise_gp0(fault);
    return fvm_operand_write(v, insn, op, op->type == ZYDIS_OPERAND_TYPE_MEMORY ? 2 : op->size / 8u, v->cr0, fault);
}

static int invpcid(struct fvm_vcpu *v, const struct fvm_insn *insn, struct fvm_fault *fault)
{
    int reg = fvm_decode_gpr(insn->ops[0].reg.value, NULL);
    uint64_t d[2], type = fvm_reg_get(v, (unsigned)reg, fvm_vcpu_code_bits(v) == 64 ? 8 : 4);
    fvm_gva va;

    if (fvm_need_cpl0(v, fault) || fvm_operand_linear(v, insn, &insn->ops[1], 16, false, &va, fault) ||
        fvm_vmem_read(v, va, d, 16, FVM_AS_CPL, fault))
        return FVM_FAULT;
    return fvm_control_invpcid(v, type, d[0], d[1], fault);
}

static int invlpg(struct fvm_vcpu *v, const struct fvm_insn *insn, struct fvm_fault *fault)
{
    const ZydisDecodedOperand *op = &insn->ops[0];
    uint64_t off = fvm_operand_offset(v, insn, op);
    int seg = fvm_decode_seg(op->mem.segment);

    if (fvm_need_cpl0(v, fault))
        return FVM_FAULT;
    if (seg >= 0 && (fvm_vcpu_code_bits(v) != 64 || seg >= FVM_FS))
        off += v->seg[seg].base;
    fvm_control_invlpg(v, off);
    return 0;
}

static int fs_gs_base(struct fvm_vcpu *v, const struct fvm_insn *insn, struct fvm_fault *fault)
{
    ZydisMnemonic m = insn->z.mnemonic;
    unsigned seg = m == ZYDIS_MNEMONIC_RDFSBASE || m == ZYDIS_MNEMONIC_WRFSBASE ? FVM_FS : FVM_GS;
    unsigned bytes = insn->ops[0].size / 8u;
    int gpr = fvm_decode_gpr(insn->ops[0].reg.value, NULL);
    uint64_t x;

    if (fvm_vcpu_code_bits(v) != 64 || !(v->cr4 & FVM_CR4_FSGSBASE))
        return fvm_raise_ud(fault);
    if (m == ZYDIS_MNEMONIC_RDFSBASE || m == ZYDIS_MNEMONIC_RDGSBASE) {
        fvm_reg_set(v, (unsigned)gpr, bytes, v->seg[seg].base);
        return 0;
    }
    x = fvm_reg_get(v, (unsigned)gpr, bytes);
    if (!fvm_canonical(x))
        return fvm_raise_gp0(fault);
    fvm_vcpu_set_seg_base(v, seg, x);
    return 0;
}

static int swapgs(struct fvm_vcpu *v, struct fvm_fault *fault)
{
    uint64_t old = v->seg[FVM_GS].base;

    if (fvm_vcpu_code_bits(v) != 64)
        return fvm_raise_ud(fault);
    if (fvm_need_cpl0(v, fault))
        return FVM_FAULT;
    fvm_vcpu_set_seg_base(v, FVM_GS, v->kernel_gs_base);
    v->kernel_gs_base = old;
    return 0;
}

static int msr(struct fvm_vcpu *v, bool write, struct fvm_fault *fault)
{
    uint32_t index = (uint32_t)v->regs[FVM_RCX];
    uint64_t value = edx_eax(v);

    if (fvm_need_cpl0(v, fault))
        return FVM_FAULT;
    if (!(write ? fvm_msr_write(v, index, value) : fvm_msr_read(v, index, &value)))
        return fvm_raise_gp0(fault);
    if (!write)
        set_edx_eax(v, value);
    return 0;
}

static int xcr(struct fvm_vcpu *v, bool write, struct fvm_fault *fault)
{
    uint64_t value = edx_eax(v);

    if (!(v->cr4 & FVM_CR4_OSXSAVE))
        return fvm_raise_ud(fault);
    if ((write && v->cpl) || (uint32_t)v->regs[FVM_RCX])
        return fvm_raise_gp0(fault);
    if (!write) {
        set_edx_eax(v, v->xcr0);
        return 0;
    }
    if (!(value & 1) || (value & ~fvm_cpu_model_xcr0(v->model)) || ((value & 4) && !(value & 2)))
        return fvm_raise_gp0(fault);
    v->xcr0 = value;
    return 0;
}

static int rdtsc(struct fvm_vcpu *v, bool with_aux, struct fvm_fault *fault)
{
    if ((v->cr4 & FVM_CR4_TSD) && v->cpl)
        return fvm_raise_gp0(fault);
    set_edx_eax(v, fvm_system_tsc(v));
    if (with_aux)
        v->regs[FVM_RCX] = (uint32_t)v->tsc_aux;
    return 0;
}

static void cpuid(struct fvm_vcpu *v)
{
    struct fvm_cpuid_leaf l;

    fvm_cpuid(v, (uint32_t)v->regs[FVM_RAX], (uint32_t)v->regs[FVM_RCX], &l);
    v->regs[FVM_RAX] = l.eax;
    v->regs[FVM_RBX] = l.ebx;
    v->regs[FVM_RCX] = l.ecx;
    v->regs[FVM_RDX] = l.edx;
}

int fvm_part_control(struct fvm_vcpu *v, const struct fvm_insn *insn, struct fvm_fault *fault)
{
    switch (insn->z.mnemonic) {
    case ZYDIS_MNEMONIC_MOV:
        return mov_special(v, insn, fault);
    case ZYDIS_MNEMONIC_LMSW:
        return lmsw(v, insn, fault);
    case ZYDIS_MNEMONIC_SMSW:
        return smsw(v, insn, fault);
    case ZYDIS_MNEMONIC_CLTS:
        if (fvm_need_cpl0(v, fault))
            return FVM_FAULT;
        v->cr0 &= ~FVM_CR0_TS;
        return 0;
    case ZYDIS_MNEMONIC_INVLPG:
        return invlpg(v, insn, fault);
    case ZYDIS_MNEMONIC_INVPCID:
        return invpcid(v, insn, fault);
    case ZYDIS_MNEMONIC_RDMSR:
        return msr(v, false, fault);
    case ZYDIS_MNEMONIC_WRMSR:
        return msr(v, true, fault);
    case ZYDIS_MNEMONIC_RDPMC:
        return fvm_raise_gp0(fault); /* no counters */
    case ZYDIS_MNEMONIC_RDTSC:
        return rdtsc(v, false, fault);
    case ZYDIS_MNEMONIC_RDTSCP:
        return rdtsc(v, true, fault);
    case ZYDIS_MNEMONIC_CPUID:
        cpuid(v);
        return 0;
    case ZYDIS_MNEMONIC_XGETBV:
        return xcr(v, false, fault);
    case ZYDIS_MNEMONIC_XSETBV:
        return xcr(v, true, fault);
    case ZYDIS_MNEMONIC_SWAPGS:
        return swapgs(v, fault);
    default:
        return fs_gs_base(v, insn, fault);
    }
}
