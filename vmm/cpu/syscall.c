/*
 * syscall.c - SYSCALL, SYSRET, SYSENTER, SYSEXIT, as an Intel processor does them.
 *
 * Called while the guest's vector registers are live: integer registers only, no libc, nothing but the struct. Segments
 * get fixed hidden parts; no descriptor is read.
 */
#include "vmm/cpu/descriptor.h"
#include "vmm/cpu/system.h"

enum { ATTR_CODE = 0x809b, ATTR_DATA = 0xc093, DPL3 = 0x60 };

static void flat(struct fvm_seg *s, uint16_t sel, unsigned attr)
{
    s->sel = sel;
    s->attr = (uint16_t)attr;
    s->limit = 0xffffffff;
    s->base = 0;
}

int fvm_syscall(struct fvm_vcpu *v, uint64_t next_rip, struct fvm_fault *fault)
{
    uint16_t cs = (uint16_t)((v->star >> 32) & 0xfffc);

    if (!(v->efer & FVM_EFER_SCE) || fvm_vcpu_code_bits(v) != 64)
        return fvm_raise_ud(fault);
    v->regs[FVM_RCX] = next_rip;
    v->regs[FVM_R11] = fvm_vcpu_rflags(v) & ~(uint64_t)FVM_F_RF;
    v->rip = v->lstar;
    fvm_vcpu_set_rflags(v, fvm_vcpu_rflags(v) & ~(v->sfmask | FVM_F_RF));
    flat(&v->seg[FVM_CS], cs, ATTR_CODE | FVM_A_L);
    flat(&v->seg[FVM_SS], (uint16_t)(cs + 8), ATTR_DATA);
    v->cpl = 0;
    v->int_shadow = 0;
    return 0;
}

int fvm_sysret(struct fvm_vcpu *v, unsigned operand_bytes, struct fvm_fault *fault)
{
    uint16_t base = (uint16_t)(v->star >> 48);

    if (!(v->efer & FVM_EFER_SCE) || fvm_vcpu_code_bits(v) != 64)
        return fvm_raise_ud(fault);
    if (v->cpl || (operand_bytes == 8 && !fvm_canonical(v->regs[FVM_RCX])))
        return fvm_raise_gp0(fault);
    if (operand_bytes == 8) {
        v->rip = v->regs[FVM_RCX];
        flat(&v->seg[FVM_CS], (uint16_t)((base + 16) | 3), ATTR_CODE | FVM_A_L | DPL3);
    } else {
        v->rip = (uint32_t)v->regs[FVM_RCX];
        flat(&v->seg[FVM_CS], base | 3, ATTR_CODE | FVM_A_D | DPL3);
    }
    flat(&v->seg[FVM_SS], (uint16_t)((base + 8) | 3), ATTR_DATA | DPL3);
    fvm_vcpu_set_rflags(v, v->regs[FVM_R11] & 0x3c7fd7);
    v->cpl = 3;
    v->int_shadow = 0;
    return 0;
}

int fvm_sysenter(struct fvm_vcpu *v, uint64_t next_rip, struct fvm_fault *fault)
{
    uint16_t cs = (uint16_t)(v->sysenter_cs & 0xfffc);
    bool lng = fvm_vcpu_long(v);

    (void)next_rip; /* not saved by the instruction: the caller's convention */
    if (fvm_vcpu_real(v) || !cs)
        return fvm_raise_gp0(fault);
    v->rflags &= ~(uint64_t)(FVM_F_VM | FVM_F_RF);
    v->iflag = 0;
    v->regs[FVM_RSP] = lng ? v->sysenter_esp : (uint32_t)v->sysenter_esp;
    v->rip = lng ? v->sysenter_eip : (uint32_t)v->sysenter_eip;
    flat(&v->seg[FVM_CS], cs, ATTR_CODE | (lng ? FVM_A_L : FVM_A_D));
    flat(&v->seg[FVM_SS], (uint16_t)(cs + 8), ATTR_DATA);
    v->cpl = 0;
    v->int_shadow = 0;
    return 0;
}

int fvm_sysexit(struct fvm_vcpu *v, unsigned operand_bytes, struct fvm_fault *fault)
{
    uint16_t base = (uint16_t)(v->sysenter_cs & 0xfffc);

    if (fvm_vcpu_real(v) || !base || v->cpl)
        return fvm_raise_gp0(fault);
    if (operand_bytes == 8) {
        if (!fvm_canonical(v->regs[FVM_RCX]) || !fvm_canonical(v->regs[FVM_RDX]))
            return fvm_raise_gp0(fault);
        v->regs[FVM_RSP] = v->regs[FVM_RCX];
        v->rip = v->regs[FVM_RDX];
        flat(&v->seg[FVM_CS], (uint16_t)((base + 32) | 3), ATTR_CODE | FVM_A_L | DPL3);
        flat(&v->seg[FVM_SS], (uint16_t)((base + 40) | 3), ATTR_DATA | DPL3);
    } else {
        v->regs[FVM_RSP] = (uint32_t)v->regs[FVM_RCX];
        v->rip = (uint32_t)v->regs[FVM_RDX];
        flat(&v->seg[FVM_CS], (uint16_t)((base + 16) | 3), ATTR_CODE | FVM_A_D | DPL3);
        flat(&v->seg[FVM_SS], (uint16_t)((base + 24) | 3), ATTR_DATA | DPL3);
    }
    v->cpl = 3;
    v->int_shadow = 0;
    return 0;
}
