/*
 * vm_cpu_check.c - may a processor be in this state? See vm_cpu_check.h.
 *
 * Source: Intel SDM vol. 3A, 2.5 (control registers), 26.3.1 (checks on guest state: the same questions), vol. 1, 13.4
 * (XSAVE area). Invariant: reads the messages only; every pointer in them may be NULL.
 */
#include "vmm/vm_cpu_check.h"

#include <string.h>

#include "vmm/cpu/cpuid.h"
#include "vmm/cpu/state.h"

static const char room[] = "vm";

#define MSR(i, field) {i, (uint32_t)offsetof(struct fvm_vcpu, field)}
static const struct fvm_cpu_msr msrs[] = {
    MSR(0x3b, tsc_adjust),       MSR(0x48, spec_ctrl),        MSR(0x174, sysenter_cs),
    MSR(0x175, sysenter_esp),    MSR(0x176, sysenter_eip),    MSR(0x1a0, misc_enable),
    MSR(0x200, mtrr_var[0]),     MSR(0x201, mtrr_var[1]),     MSR(0x202, mtrr_var[2]),
    MSR(0x203, mtrr_var[3]),     MSR(0x204, mtrr_var[4]),     MSR(0x205, mtrr_var[5]),
    MSR(0x206, mtrr_var[6]),     MSR(0x207, mtrr_var[7]),     MSR(0x208, mtrr_var[8]),
    MSR(0x209, mtrr_var[9]),     MSR(0x20a, mtrr_var[10]),    MSR(0x20b, mtrr_var[11]),
    MSR(0x20c, mtrr_var[12]),    MSR(0x20d, mtrr_var[13]),    MSR(0x20e, mtrr_var[14]),
    MSR(0x20f, mtrr_var[15]),    MSR(0x250, mtrr_fixed[0]),   MSR(0x258, mtrr_fixed[1]),
    MSR(0x259, mtrr_fixed[2]),   MSR(0x268, mtrr_fixed[3]),   MSR(0x269, mtrr_fixed[4]),
    MSR(0x26a, mtrr_fixed[5]),   MSR(0x26b, mtrr_fixed[6]),   MSR(0x26c, mtrr_fixed[7]),
    MSR(0x26d, mtrr_fixed[8]),   MSR(0x26e, mtrr_fixed[9]),   MSR(0x26f, mtrr_fixed[10]),
    MSR(0x277, pat),             MSR(0x2ff, mtrr_def_type),   MSR(0xc0000080, efer),
    MSR(0xc0000081, star),       MSR(0xc0000082, lstar),      MSR(0xc0000083, cstar),
    MSR(0xc0000084, sfmask),     MSR(0xc0000102, kernel_gs_base), MSR(0xc0000103, tsc_aux),
};

const struct fvm_cpu_msr *fvm_cpu_msrs(size_t *ret_count)
{
    *ret_count = FVM_ARRAY_SIZE(msrs);
    return msrs;
}

const struct fvm_cpu_msr *fvm_cpu_msr_find(uint32_t index)
{
    for (size_t i = 0; i < FVM_ARRAY_SIZE(msrs); i++)
        if (msrs[i].index == index)
            return &msrs[i];
    return NULL;
}

struct check { /* what the checks of one processor share */
    const Fvm__CpuState *cpu;
    unsigned index;
    const struct fvm_cpu_model *model;
    struct fvm_err *err;
    uint64_t efer;
};

static int refuse(const struct check *c, const char *what, uint64_t value)
{
    return fvm_err_set(c->err, FVM_EPROTO, 0, room, "state of CPU %u is not possible: %s (%#llx)", c->index, what,
                       (unsigned long long)value);
}

static bool canonical(uint64_t va)
{
    return (uint64_t)((int64_t)(va << 16) >> 16) == va;
}

static int check_shape(const struct check *c)
{
    const Fvm__CpuState *m = c->cpu;
    if (m->index != c->index)
        return refuse(c, "index", m->index);
    if (m->n_regs != 16)
        return refuse(c, "count of registers", m->n_regs);
    if (m->n_dr != 8)
        return refuse(c, "count of debug registers", m->n_dr);
    if (m->n_segments != FVM_SEG_COUNT)
        return refuse(c, "count of segments", m->n_segments);
    for (unsigned i = 0; i < FVM_SEG_COUNT; i++)
        if (!m->segments[i])
            return refuse(c, "segment missing", i);
    if (!m->ldtr || !m->tr || !m->gdtr || !m->idtr)
        return refuse(c, "LDTR, TR, GDTR or IDTR missing", 0);
    if (m->xsave.len != FVM_XSAVE_BYTES)
        return refuse(c, "size of the XSAVE area", m->xsave.len);
    if (m->run > FVM_RUN_WAIT_SIPI)
        return refuse(c, "activity", m->run);
    if (m->cpl > 3)
        return refuse(c, "CPL", m->cpl);
    if (m->sipi_vector > 255)
        return refuse(c, "SIPI vector", m->sipi_vector);
    return 0;
}

static bool pat_valid(uint64_t pat)
{
    for (int i = 0; i < 8; i++, pat >>= 8) {
        unsigned type = pat & 0xff;
        if (type > 7 || type == 2 || type == 3)
            return false;
    }
    return true;
}

static int check_msrs(struct check *c)
{
    const Fvm__CpuState *m = c->cpu;
    bool seen[FVM_ARRAY_SIZE(msrs)] = {0};
    for (size_t i = 0; i < m->n_msrs; i++) {
        uint32_t index = m->msrs[i] ? m->msrs[i]->index : 0;
        uint64_t value = m->msrs[i] ? m->msrs[i]->value : 0;
        const struct fvm_cpu_msr *known = fvm_cpu_msr_find(index);
        if (!known)
            return refuse(c, "unknown MSR", index);
        if (seen[known - msrs])
            return refuse(c, "MSR given twice", index);
        seen[known - msrs] = true;
        bool address = index == 0xc0000082 || index == 0xc0000083 || index == 0xc0000102 || index == 0x175 ||
                       index == 0x176;
        if (address && !canonical(value))
            return refuse(c, "address in an MSR is not canonical", value);
        if (index == 0x277 && !pat_valid(value))
            return refuse(c, "PAT", value);
        if (index == 0xc0000103 && value >> 32)
            return refuse(c, "TSC_AUX", value);
        if (index == 0xc0000080)
            c->efer = value;
    }
    for (size_t i = 0; i < FVM_ARRAY_SIZE(msrs); i++)
        if (!seen[i])
            return refuse(c, "MSR missing", msrs[i].index);
    return 0;
}

static int check_control(const struct check *c)
{
    const Fvm__CpuState *m = c->cpu;
    const uint64_t cr0_known = FVM_CR0_PE | FVM_CR0_MP | FVM_CR0_EM | FVM_CR0_TS | FVM_CR0_ET | FVM_CR0_NE |
                               FVM_CR0_WP | FVM_CR0_AM | FVM_CR0_NW | FVM_CR0_CD | FVM_CR0_PG;
    const uint64_t cr4_known = FVM_CR4_VME | FVM_CR4_PVI | FVM_CR4_TSD | FVM_CR4_DE | FVM_CR4_PSE | FVM_CR4_PAE |
                               FVM_CR4_MCE | FVM_CR4_PGE | FVM_CR4_PCE | FVM_CR4_OSFXSR | FVM_CR4_OSXMMEXCPT |
                               FVM_CR4_UMIP | FVM_CR4_FSGSBASE | FVM_CR4_PCIDE | FVM_CR4_OSXSAVE | FVM_CR4_SMEP |
                               FVM_CR4_SMAP;
    const uint64_t efer_known = FVM_EFER_SCE | FVM_EFER_LME | FVM_EFER_LMA | FVM_EFER_NXE;
    bool pg = m->cr0 & FVM_CR0_PG, lme = c->efer & FVM_EFER_LME, lma = c->efer & FVM_EFER_LMA;
    if (m->cr0 & ~cr0_known)
        return refuse(c, "reserved bits in CR0", m->cr0);
    if (pg && !(m->cr0 & FVM_CR0_PE))
        return refuse(c, "CR0: paging without protected mode", m->cr0);
    if ((m->cr0 & FVM_CR0_NW) && !(m->cr0 & FVM_CR0_CD))
        return refuse(c, "CR0: NW without CD", m->cr0);
    if (m->cr4 & ~cr4_known)
        return refuse(c, "reserved bits in CR4", m->cr4);
    if (c->efer & ~efer_known)
        return refuse(c, "reserved bits in EFER", c->efer);
    if (lma != (pg && lme))
        return refuse(c, "EFER.LMA does not follow from LME and PG", c->efer);
    if (lma && !(m->cr4 & FVM_CR4_PAE))
        return refuse(c, "long mode without PAE", m->cr4);
    if ((m->cr4 & FVM_CR4_PCIDE) && !lma)
        return refuse(c, "PCID outside long mode", m->cr4);
    if (m->cr3 >> fvm_cpu_model_maxphyaddr(c->model))
        return refuse(c, "CR3 beyond the physical addresses", m->cr3);
    if ((m->dr[6] | m->dr[7]) >> 32)
        return refuse(c, "DR6 or DR7", m->dr[6] | m->dr[7]);
    return 0;
}

static int check_segments(const struct check *c)
{
    const Fvm__CpuState *m = c->cpu;
    const Fvm__SegmentState *all[FVM_SEG_COUNT + 2] = {[FVM_SEG_COUNT] = m->ldtr, [FVM_SEG_COUNT + 1] = m->tr};
    bool lma = c->efer & FVM_EFER_LMA;
    memcpy(all, m->segments, FVM_SEG_COUNT * sizeof(all[0]));
    for (unsigned i = 0; i < FVM_ARRAY_SIZE(all); i++) {
        if (all[i]->selector > 0xffff || all[i]->attributes > 0xffff)
            return refuse(c, "selector or attributes of a segment", i);
        if (!canonical(all[i]->base_gva))
            return refuse(c, "base of a segment is not canonical", all[i]->base_gva);
        if (i < FVM_FS && all[i]->base_gva >> 32)
            return refuse(c, "base of ES, CS, SS or DS above 4 GiB", all[i]->base_gva);
    }
    uint32_t cs = m->segments[FVM_CS]->attributes;
    if ((cs & 0x2000) && (cs & 0x4000))
        return refuse(c, "CS has both L and D", cs);
    if (!canonical(m->gdtr->base_gva) || !canonical(m->idtr->base_gva))
        return refuse(c, "base of GDTR or IDTR is not canonical", m->gdtr->base_gva);
    if (m->gdtr->limit > 0xffff || m->idtr->limit > 0xffff)
        return refuse(c, "limit of GDTR or IDTR", m->gdtr->limit);
    if (!(m->cr0 & FVM_CR0_PE) && m->cpl != 0)
        return refuse(c, "CPL in real mode", m->cpl);
    if (m->rflags >> 22 || !(m->rflags & 2) || (m->rflags & 0x8028))
        return refuse(c, "RFLAGS", m->rflags);
    if ((m->rflags & FVM_F_VM) && (lma || !(m->cr0 & FVM_CR0_PE)))
        return refuse(c, "virtual-8086 mode outside protected mode", m->rflags);
    if (lma && (cs & 0x2000) ? !canonical(m->rip) : m->rip >> 32)
        return refuse(c, "RIP", m->rip);
    return 0;
}

static int check_xsave(const struct check *c)
{
    const Fvm__CpuState *m = c->cpu;
    uint64_t allowed = fvm_cpu_model_xcr0(c->model);
    if (!(m->xcr0 & 1) || (m->xcr0 & ~allowed) || ((m->xcr0 & 4) && !(m->xcr0 & 2)))
        return refuse(c, "XCR0", m->xcr0);
    uint32_t mxcsr;
    uint64_t header[8]; /* XSTATE_BV, XCOMP_BV, reserved */
    memcpy(&mxcsr, m->xsave.data + 24, sizeof(mxcsr));
    memcpy(header, m->xsave.data + 512, sizeof(header));
    if (mxcsr & ~0xffffu)
        return refuse(c, "reserved bits in MXCSR", mxcsr);
    if (header[0] & ~allowed)
        return refuse(c, "XSTATE_BV", header[0]);
    for (int i = 1; i < 8; i++)
        if (header[i])
            return refuse(c, "XSAVE header", header[i]);
    return 0;
}

static int check_clock(const Fvm__ClockState *clock, struct fvm_err *err)
{
    if (!clock)
        return fvm_err_set(err, FVM_EPROTO, 0, room, "the state has no clock");
    if (clock->tsc_khz < 100000 || clock->tsc_khz > 20000000)
        return fvm_err_set(err, FVM_EPROTO, 0, room, "TSC frequency of %u kHz is not plausible", clock->tsc_khz);
    if (clock->guest_ns >> 62 || clock->wall_ns >> 62)
        return fvm_err_set(err, FVM_EPROTO, 0, room, "the clock's time is not plausible");
    return 0;
}

int fvm_cpu_state_check(const Fvm__CpusState *cpus, const struct fvm_cpu_model *model, unsigned cpu_count,
                        struct fvm_err *err)
{
    if (strcmp(cpus->cpu_model, fvm_cpu_model_name(model)) != 0)
        return fvm_err_set(err, FVM_ECPUMODEL, 0, room, "the state is of CPU model %.40s, this VM has %s",
                           cpus->cpu_model, fvm_cpu_model_name(model));
    if (cpus->n_cpus != cpu_count)
        return fvm_err_set(err, FVM_EPROTO, 0, room, "the state has %zu CPUs, this VM %u", cpus->n_cpus, cpu_count);
    int r = check_clock(cpus->clock, err);
    for (unsigned i = 0; !r && i < cpu_count; i++) {
        struct check c = {.cpu = cpus->cpus[i], .index = i, .model = model, .err = err};
        if (!c.cpu)
            return fvm_err_set(err, FVM_EPROTO, 0, room, "the state of CPU %u is missing", i);
        if ((r = check_shape(&c)) || (r = check_msrs(&c)) || (r = check_control(&c)) || (r = check_segments(&c)))
            break;
        r = check_xsave(&c);
    }
    return r;
}
