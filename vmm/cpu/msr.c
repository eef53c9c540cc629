/*
 * msr.c - model-specific registers.
 *
 * What is not listed is #GP, as on a processor that lacks it: Linux probes with rdmsr_safe. The few that Linux touches
 * unsafely on an Intel family 6 (microcode revision, MISC_ENABLE, FEATURE_CONTROL, PLATFORM_ID) are here.
 * IA32_ARCH_CAPABILITIES says "not affected" to every known attack: the guest then runs without page-table isolation
 * and without retpolines. Processes of one guest are thus not protected from each other beyond what the host's
 * processor and kernel do; guests are separated from each other and the host as processes are.
 */
#include "base/log.h"
#include "vmm/cpu/control.h"
#include "vmm/cpu/cpuid.h"
#include "vmm/cpu/descriptor.h"

enum {
    MSR_P5_MC_ADDR = 0x0, MSR_P5_MC_TYPE = 0x1, MSR_TSC = 0x10, MSR_PLATFORM_ID = 0x17, MSR_APIC_BASE = 0x1b,
    MSR_EBL_CR_POWERON = 0x2a, MSR_SMI_COUNT = 0x34, MSR_FEATURE_CONTROL = 0x3a, MSR_TSC_ADJUST = 0x3b,
    MSR_SPEC_CTRL = 0x48, MSR_PRED_CMD = 0x49, MSR_UCODE_REV = 0x8b, MSR_FSB_FREQ = 0xcd, MSR_PLATFORM_INFO = 0xce,
    MSR_MTRRCAP = 0xfe, MSR_ARCH_CAPABILITIES = 0x10a, MSR_SYSENTER_CS = 0x174, MSR_SYSENTER_ESP = 0x175,
    MSR_SYSENTER_EIP = 0x176, MSR_MCG_CAP = 0x179, MSR_MCG_STATUS = 0x17a, MSR_PERF_STATUS = 0x198,
    MSR_PERF_CTL = 0x199, MSR_MISC_ENABLE = 0x1a0, MSR_DEBUGCTL = 0x1d9, MSR_MTRR_VAR = 0x200, MSR_MTRR_VAR_END = 0x210,
    MSR_MTRR_FIX64K = 0x250, MSR_MTRR_FIX16K = 0x258, MSR_MTRR_FIX4K = 0x268, MSR_PAT = 0x277, MSR_MTRR_DEF = 0x2ff,
    MSR_TSC_DEADLINE = 0x6e0, MSR_X2APIC = 0x800, MSR_X2APIC_END = 0x900
};
#define MSR_EFER 0xc0000080u
#define MSR_STAR 0xc0000081u
#define MSR_LSTAR 0xc0000082u
#define MSR_CSTAR 0xc0000083u
#define MSR_SFMASK 0xc0000084u
#define MSR_FS_BASE 0xc0000100u
#define MSR_GS_BASE 0xc0000101u
#define MSR_KERNEL_GS_BASE 0xc0000102u
#define MSR_TSC_AUX 0xc0000103u

/* RDCL_NO, IBRS_ALL, SKIP_L1DFL_VMENTRY, SSB_NO, MDS_NO, PSCHANGE_MC_NO, TAA_NO, SBDR_SSDP_NO, FBSDP_NO, PSDP_NO,
 * BHI_NO, PBRSB_NO, GDS_NO, RFDS_NO, ITS_NO */
#define ARCH_CAPABILITIES                                                                                              \
    (1ull << 0 | 1ull << 1 | 1ull << 3 | 1ull << 4 | 1ull << 5 | 1ull << 6 | 1ull << 8 | 1ull << 13 | 1ull << 14 |     \
     1ull << 15 | 1ull << 20 | 1ull << 24 | 1ull << 26 | 1ull << 27 | 1ull << 62)
#define MTRRCAP 0x508ull /* 8 variable ranges, fixed ranges, write combining */

/* APIC base, x2APIC registers, TSC deadline: the local APIC's. */
static bool is_apic(uint32_t msr)
{
    return msr == MSR_APIC_BASE || msr == MSR_TSC_DEADLINE || (msr >= MSR_X2APIC && msr < MSR_X2APIC_END);
}

static uint64_t *fixed_mtrr(struct fvm_vcpu *v, uint32_t msr)
{
    if (msr == MSR_MTRR_FIX64K)
        return &v->mtrr_fixed[0];
    if (msr >= MSR_MTRR_FIX16K && msr < MSR_MTRR_FIX16K + 2)
        return &v->mtrr_fixed[1 + msr - MSR_MTRR_FIX16K];
    if (msr >= MSR_MTRR_FIX4K && msr < MSR_MTRR_FIX4K + 8)
        return &v->mtrr_fixed[3 + msr - MSR_MTRR_FIX4K];
    return NULL;
}

/* MSRs that are nothing but a field. */
static uint64_t *plain(struct fvm_vcpu *v, uint32_t msr)
{
    switch (msr) {
    case MSR_SPEC_CTRL:
        return &v->spec_ctrl;
    case MSR_SYSENTER_CS:
        return &v->sysenter_cs;
    case MSR_SYSENTER_ESP:
        return &v->sysenter_esp;
    case MSR_SYSENTER_EIP:
        return &v->sysenter_eip;
    case MSR_MISC_ENABLE:
        return &v->misc_enable;
    case MSR_PAT:
        return &v->pat;
    case MSR_MTRR_DEF:
        return &v->mtrr_def_type;
    case MSR_STAR:
        return &v->star;
    case MSR_LSTAR:
        return &v->lstar;
    case MSR_CSTAR:
        return &v->cstar;
    case MSR_SFMASK:
        return &v->sfmask;
    case MSR_KERNEL_GS_BASE:
        return &v->kernel_gs_base;
    case MSR_TSC_AUX:
        return &v->tsc_aux;
    default:
        if (msr >= MSR_MTRR_VAR && msr < MSR_MTRR_VAR_END)
            return &v->mtrr_var[msr - MSR_MTRR_VAR];
        return fixed_mtrr(v, msr);
    }
}

static bool unknown(const struct fvm_vcpu *v, const char *verb, uint32_t msr)
{
    fvm_log(DEBUG, "cpu.msr_unknown", "cpu=%u %s=0x%x rip=0x%llx", v->index, verb, msr, (unsigned long long)v->rip);
    return false;
}

bool fvm_msr_read(struct fvm_vcpu *v, uint32_t msr, uint64_t *ret_value)
{
    const uint64_t *field;

    if (is_apic(msr))
        return fvm_irq_cpu_msr_read(v->irq, v->index, msr, ret_value);
    field = plain(v, msr);
    if (field) {
        *ret_value = *field;
        return true;
    }
    switch (msr) {
    case MSR_TSC:
        *ret_value = fvm_system_tsc(v);
        return true;
    case MSR_TSC_ADJUST:
        *ret_value = v->tsc_adjust;
        return true;
    case MSR_UCODE_REV:
        *ret_value = 1ull << 32;
        return true;
    case MSR_FEATURE_CONTROL:
        *ret_value = 1; /* locked, nothing enabled */
        return true;
    case MSR_FSB_FREQ:
        *ret_value = 3;
        return true;
    case MSR_MTRRCAP:
        *ret_value = MTRRCAP;
        return true;
    case MSR_ARCH_CAPABILITIES:
        *ret_value = ARCH_CAPABILITIES;
        return true;
    case MSR_EFER:
        *ret_value = v->efer;
        return true;
    case MSR_FS_BASE:
        *ret_value = v->seg[FVM_FS].base;
        return true;
    case MSR_GS_BASE:
        *ret_value = v->seg[FVM_GS].base;
        return true;
    case MSR_P5_MC_ADDR:
    case MSR_P5_MC_TYPE:
    case MSR_PLATFORM_ID:
    case MSR_EBL_CR_POWERON:
    case MSR_SMI_COUNT:
    case MSR_PLATFORM_INFO:
    case MSR_MCG_CAP:
    case MSR_MCG_STATUS:
    case MSR_PERF_STATUS:
    case MSR_PERF_CTL:
    case MSR_DEBUGCTL:
        *ret_value = 0;
        return true;
    default:
        return unknown(v, "rdmsr", msr);
    }
}

static bool memory_type(uint64_t t) { return t <= 1 || (t >= 4 && t <= 6); }

static bool memory_types(uint64_t value, bool pat)
{
    for (unsigned i = 0; i < 8; i++) {
        uint64_t t = (value >> (i * 8)) & 0xff;

        if (!memory_type(t) && !(pat && t == 7))
            return false;
    }
    return true;
}

static bool value_ok(const struct fvm_vcpu *v, uint32_t msr, uint64_t value)
{
    unsigned phys = v->model ? fvm_cpu_model_maxphyaddr(v->model) : 46;

    switch (msr) {
    case MSR_SYSENTER_ESP:
    case MSR_SYSENTER_EIP:
    case MSR_LSTAR:
    case MSR_CSTAR:
    case MSR_KERNEL_GS_BASE:
        return fvm_canonical(value);
    case MSR_SPEC_CTRL:
        return !(value & ~7ull);
    case MSR_PAT:
        return memory_types(value, true);
    case MSR_MTRR_DEF:
        return !(value & ~0xcffull) && memory_type(value & 0xff);
    case MSR_TSC_AUX:
    case MSR_SFMASK:
        return !(value >> 32);
    default:
        break;
    }
    if (msr >= MSR_MTRR_VAR && msr < MSR_MTRR_VAR_END) {
        if (value >> phys)
            return false;
        return msr & 1 ? !(value & 0x7ff) : !(value & 0xf00) && memory_type(value & 0xff);
    }
    if (msr >= MSR_MTRR_FIX64K && msr < MSR_MTRR_FIX4K + 8)
        return memory_types(value, false);
    return true;
}

static bool write_plain(struct fvm_vcpu *v, uint32_t msr, uint64_t value, uint64_t *field)
{
    if (!value_ok(v, msr, value))
        return false;
    *field = value;
    return true;
}

static void set_tsc(struct fvm_vcpu *v, uint64_t value)
{
    fvm_clock_set_tsc(v->clock, value);
    fvm_engine_tsc_changed(v);
}

bool fvm_msr_write(struct fvm_vcpu *v, uint32_t msr, uint64_t value)
{
    uint64_t *field, now;

    if (is_apic(msr))
        return fvm_irq_cpu_msr_write(v->irq, v->index, msr, value);
    field = plain(v, msr);
    if (field)
        return write_plain(v, msr, value, field);
    switch (msr) {
    case MSR_TSC:
        v->tsc_adjust += value - fvm_system_tsc(v);
        set_tsc(v, value);
        return true;
    case MSR_TSC_ADJUST:
        now = fvm_system_tsc(v);
        set_tsc(v, now + (value - v->tsc_adjust));
        v->tsc_adjust = value;
        return true;
    case MSR_EFER:
        return fvm_control_write_efer(v, value) == 0;
    case MSR_FS_BASE:
    case MSR_GS_BASE:
        if (!fvm_canonical(value))
            return false;
        fvm_vcpu_set_seg_base(v, msr == MSR_FS_BASE ? FVM_FS : FVM_GS, value);
        return true;
    case MSR_PRED_CMD:
        return !(value & ~1ull); /* a barrier for a predictor that is the host's business */
    case MSR_DEBUGCTL:
        return !(value & ~3ull); /* LBR, BTF: no effect */
    case MSR_UCODE_REV:
    case MSR_EBL_CR_POWERON:
    case MSR_MCG_STATUS:
    case MSR_PERF_CTL:
        return value == 0 || msr == MSR_PERF_CTL;
    default:
        return unknown(v, "wrmsr", msr);
    }
}
