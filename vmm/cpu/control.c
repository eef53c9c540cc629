/*
 * control.c - control registers and what they mean for paging.
 *
 * Invariant: after every function here (and every MSR write that touches paging) the shadow, v->gs_base and the
 * engine's notion of "mappings changed" agree with CR0, CR3, CR4 and EFER.
 * Source: Intel SDM vol. 3A, 2.5, 4.1 and 4.10.
 */
#include "vmm/cpu/control.h"

#include "vmm/cpu/cpuid.h"
#include "vmm/cpu/descriptor.h"

#define CR0_PAGING (FVM_CR0_PG | FVM_CR0_WP)
#define CR4_PAGING (FVM_CR4_PSE | FVM_CR4_PAE | FVM_CR4_PGE | FVM_CR4_SMEP | FVM_CR4_SMAP)
/* What the models have: no VME/PVI, no SMAP, no LA57, no PKU, no VMX, no CET. */
#define CR4_KNOWN                                                                                                      \
    (FVM_CR4_TSD | FVM_CR4_DE | FVM_CR4_PSE | FVM_CR4_PAE | FVM_CR4_MCE | FVM_CR4_PGE | FVM_CR4_PCE | FVM_CR4_OSFXSR | \
     FVM_CR4_OSXMMEXCPT | FVM_CR4_UMIP | FVM_CR4_FSGSBASE | FVM_CR4_PCIDE | FVM_CR4_SMEP)

static unsigned maxphyaddr(const struct fvm_vcpu *v) { return v->model ? fvm_cpu_model_maxphyaddr(v->model) : 46; }

void fvm_control_paging(const struct fvm_vcpu *v, struct fvm_paging *ret)
{
    *ret = (struct fvm_paging){
        .cr3 = v->cr3,
        .on = (v->cr0 & FVM_CR0_PG) != 0,
        .long_mode = fvm_vcpu_long(v),
        .pae = (v->cr4 & FVM_CR4_PAE) != 0,
        .pse = (v->cr4 & FVM_CR4_PSE) != 0,
        .pge = (v->cr4 & FVM_CR4_PGE) != 0,
        .nx = (v->efer & FVM_EFER_NXE) != 0,
        .wp = (v->cr0 & FVM_CR0_WP) != 0,
        .smep = (v->cr4 & FVM_CR4_SMEP) != 0,
        .smap = (v->cr4 & FVM_CR4_SMAP) != 0,
        .ac = (v->rflags & FVM_F_AC) != 0,
        .maxphyaddr = (uint8_t)maxphyaddr(v),
    };
}

static bool pcid_on(const struct fvm_vcpu *v) { return (v->cr4 & FVM_CR4_PCIDE) != 0; }

void fvm_control_exec_flushed(struct fvm_vcpu *v)
{
    unsigned halves = fvm_shadow_take_exec_flushed(v->shadow);
    if (halves)
        fvm_engine_exec_flushed(v, halves);
}

void fvm_control_flush_all(struct fvm_vcpu *v)
{
    struct fvm_paging pg;

    fvm_control_paging(v, &pg);
    v->gs_base = fvm_shadow_flush_all(v->shadow, &pg, pcid_on(v));
    fvm_control_exec_flushed(v);
}

void fvm_control_reload(struct fvm_vcpu *v)
{
    struct fvm_paging pg;

    fvm_control_paging(v, &pg);
    v->gs_base = fvm_shadow_load(v->shadow, &pg, pcid_on(v), true);
    fvm_control_flush_all(v);
}

static int write_cr0(struct fvm_vcpu *v, uint64_t value, struct fvm_fault *fault)
{
    uint64_t old = v->cr0;

    if (value >> 32 || ((value & FVM_CR0_PG) && !(value & FVM_CR0_PE)) ||
        ((value & FVM_CR0_NW) && !(value & FVM_CR0_CD)))
        return fvm_raise_gp0(fault);
    value &= FVM_CR0_PE | FVM_CR0_MP | FVM_CR0_EM | FVM_CR0_TS | FVM_CR0_NE | FVM_CR0_WP | FVM_CR0_AM | FVM_CR0_NW |
             FVM_CR0_CD | FVM_CR0_PG;
    value |= FVM_CR0_ET;
    if (!(old & FVM_CR0_PG) && (value & FVM_CR0_PG) && (v->efer & FVM_EFER_LME)) {
        if (!(v->cr4 & FVM_CR4_PAE) || (v->seg[FVM_CS].attr & FVM_A_L))
            return fvm_raise_gp0(fault);
        v->efer |= FVM_EFER_LMA;
    } else if ((old & FVM_CR0_PG) && !(value & FVM_CR0_PG)) {
        if (pcid_on(v) || fvm_vcpu_code_bits(v) == 64)
            return fvm_raise_gp0(fault);
        v->efer &= ~FVM_EFER_LMA;
    }
    v->cr0 = value;
    if ((old ^ value) & CR0_PAGING)
        fvm_control_flush_all(v);
    return 0;
}

static int write_cr3(struct fvm_vcpu *v, uint64_t value, struct fvm_fault *fault)
{
    bool keep = false;
    struct fvm_paging pg;

    if (fvm_vcpu_long(v)) {
        if (pcid_on(v)) {
            keep = value >> 63;
            value &= ~(1ull << 63);
        }
        if (value >> maxphyaddr(v))
            return fvm_raise_gp0(fault);
    } else {
        value &= 0xffffffff;
    }
    v->cr3 = value;
    fvm_control_paging(v, &pg);
    v->gs_base = fvm_shadow_load(v->shadow, &pg, pcid_on(v), !keep);
    fvm_control_exec_flushed(v);
    return 0;
}

static uint64_t cr4_known(const struct fvm_vcpu *v)
{
    uint64_t known = CR4_KNOWN;

    if (!v->model || fvm_cpu_model_xcr0(v->model) & 4)
        known |= FVM_CR4_OSXSAVE;
    return known;
}

static int write_cr4(struct fvm_vcpu *v, uint64_t value, struct fvm_fault *fault)
{
    uint64_t old = v->cr4;

    if (value & ~cr4_known(v) || (fvm_vcpu_long(v) && !(value & FVM_CR4_PAE)))
        return fvm_raise_gp0(fault);
    if ((value & ~old & FVM_CR4_PCIDE) && (!fvm_vcpu_long(v) || (v->cr3 & 0xfff)))
        return fvm_raise_gp0(fault);
    v->cr4 = value;
    if (((old ^ value) & CR4_PAGING) || (old & ~value & FVM_CR4_PCIDE)) {
        fvm_control_flush_all(v);
    } else if (value & ~old & FVM_CR4_PCIDE) { /* what is there becomes PCID 0's: nothing to drop */
        struct fvm_paging pg;

        fvm_control_paging(v, &pg);
        v->gs_base = fvm_shadow_load(v->shadow, &pg, true, false);
        fvm_control_exec_flushed(v);
    }
    return 0;
}

int fvm_control_write_cr(struct fvm_vcpu *v, unsigned cr, uint64_t value, struct fvm_fault *fault)
{
    switch (cr) {
    case 0:
        return write_cr0(v, value, fault);
    case 2:
        v->cr2 = value;
        return 0;
    case 3:
        return write_cr3(v, value, fault);
    case 4:
        return write_cr4(v, value, fault);
    case 8:
        if (value >> 4)
            return fvm_raise_gp0(fault);
        fvm_irq_cpu_tpr_write(v->irq, v->index, (unsigned)value);
        return 0;
    default:
        return fvm_raise_ud(fault);
    }
}

int fvm_control_write_efer(struct fvm_vcpu *v, uint64_t value)
{
    uint64_t old = v->efer;

    if (value & ~(FVM_EFER_SCE | FVM_EFER_LME | FVM_EFER_LMA | FVM_EFER_NXE))
        return FVM_FAULT;
    if (((old ^ value) & FVM_EFER_LME) && (v->cr0 & FVM_CR0_PG))
        return FVM_FAULT;
    v->efer = (value & ~FVM_EFER_LMA) | (old & FVM_EFER_LMA);
    if ((old ^ value) & FVM_EFER_NXE)
        fvm_control_flush_all(v);
    return 0;
}

int fvm_control_invpcid(struct fvm_vcpu *v, uint64_t type, uint64_t pcid, uint64_t va, struct fvm_fault *fault)
{
    if (type > 3)
        return fvm_raise_gp0(fault);
    if (type < 2 && (pcid >> 12 || (!pcid_on(v) && pcid)))
        return fvm_raise_gp0(fault);
    if (type == 0 && !fvm_canonical(va))
        return fvm_raise_gp0(fault);
    fvm_shadow_invpcid(v->shadow, (unsigned)type, (uint16_t)pcid, va);
    fvm_control_exec_flushed(v);
    return 0;
}

void fvm_control_invlpg(struct fvm_vcpu *v, uint64_t va)
{
    if (fvm_vcpu_long(v) && !fvm_canonical(va))
        return; /* defined to do nothing */
    if (!fvm_vcpu_long(v))
        va &= 0xffffffff;
    fvm_shadow_flush_page(v->shadow, va);
    fvm_control_exec_flushed(v);
}
