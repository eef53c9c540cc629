/*
 * reset.c - processor state after power-on, INIT and a start-up IPI. Source: Intel SDM vol. 3A, table 9-1.
 */
#include <string.h>

#include "vmm/cpu/descriptor.h"
#include "vmm/cpu/system.h"
#include "vmm/cpu/task.h"

#define PAT_RESET 0x0007040600070406ull
#define MISC_ENABLE_RESET (1ull | 1ull << 11 | 1ull << 12) /* fast strings; no BTS, no PEBS */

static void reset_msrs(struct fvm_vcpu *v)
{
    v->star = v->lstar = v->cstar = v->sfmask = v->kernel_gs_base = v->tsc_aux = 0;
    v->sysenter_cs = v->sysenter_esp = v->sysenter_eip = 0;
    v->pat = PAT_RESET;
    v->mtrr_def_type = 0;
    memset(v->mtrr_fixed, 0, sizeof(v->mtrr_fixed));
    memset(v->mtrr_var, 0, sizeof(v->mtrr_var));
    v->misc_enable = MISC_ENABLE_RESET;
    v->tsc_adjust = 0;
    v->spec_ctrl = 0;
    v->xcr0 = 1;
}

static void reset_fpu(struct fvm_vcpu *v)
{
    memset(v->xsave, 0, sizeof(v->xsave));
    v->xsave[0] = 0x40;  /* FCW */
    v->xsave[24] = 0x80; /* MXCSR 0x1f80 */
    v->xsave[25] = 0x1f;
    v->xsave[512] = 1; /* XSTATE_BV: x87 is not in its initial state */
}

static void reset_segments(struct fvm_vcpu *v)
{
    for (unsigned i = 0; i < FVM_SEG_COUNT; i++) {
        struct fvm_seg s = {.attr = FVM_A_P | FVM_A_S | 3, .limit = 0xffff};

        if (i == FVM_CS) {
            s.attr = FVM_A_P | FVM_A_S | 0xb;
            s.sel = 0xf000;
            s.base = 0xffff0000;
        }
        v->seg[i] = s;
        fvm_vcpu_set_seg_base(v, i, s.base);
    }
    v->ldtr = (struct fvm_seg){.attr = FVM_A_P | FVM_T_LDT, .limit = 0xffff};
    v->tr = (struct fvm_seg){.attr = FVM_A_P | FVM_T_TSS | FVM_T_BUSY, .limit = 0xffff};
    v->gdtr = v->idtr = (struct fvm_dtable){.limit = 0xffff};
}

void fvm_vcpu_reset_state(struct fvm_vcpu *v, bool init)
{
    uint64_t cache_bits = init ? v->cr0 & (FVM_CR0_CD | FVM_CR0_NW) : FVM_CR0_CD | FVM_CR0_NW;

    v->vmem_device = fvm_vmem_device;
    v->task_event = fvm_task_event;
    memset(v->regs, 0, sizeof(v->regs));
    v->regs[FVM_RDX] = 0xf06e1; /* the signature of CPUID leaf 1 */
    v->rip = 0xfff0;
    fvm_vcpu_set_rflags(v, 2);
    v->cpl = 0;
    v->int_shadow = 0;
    v->nmi_blocked = v->nmi_pending = 0;
    v->run = v->index ? FVM_RUN_WAIT_SIPI : FVM_RUN_NORMAL;
    reset_segments(v);
    v->cr0 = FVM_CR0_ET | cache_bits;
    v->cr2 = v->cr3 = v->cr4 = v->efer = 0;
    memset(v->dr, 0, sizeof(v->dr));
    v->dr[6] = 0xffff0ff0;
    v->dr[7] = 0x400;
    if (!init) {
        reset_msrs(v);
        reset_fpu(v);
    }
    if (v->clock)
        fvm_system_sync_tsc(v);
    if (v->shadow)
        fvm_control_reload(v);
}

void fvm_vcpu_sipi_state(struct fvm_vcpu *v, uint8_t vector)
{
    v->seg[FVM_CS].sel = (uint16_t)(vector << 8);
    v->seg[FVM_CS].base = (uint64_t)vector << 12;
    v->rip = 0;
    v->run = FVM_RUN_NORMAL;
}
