/*
 * vm_state.c - the processors' state as a message, and back: save, check, restore.
 *
 * What arrives is hostile until checked: a value that real hardware could not hold (a non-canonical base, PG without
 * PE, reserved bits in XCR0 or MXCSR) would otherwise become a fault of the host inside the code cache.
 *
 * Invariant: restore after a check that said 0 cannot fail. Devices: board_pc.c does the same for each chip.
 */
#include <stdlib.h>
#include <string.h>

#include "vmm/vm_cpu_check.h"
#include "vmm/vm_internal.h"

/* ---- save ---- */

static Fvm__SegmentState *save_segment(const struct fvm_seg *s)
{
    Fvm__SegmentState *m = calloc(1, sizeof(*m));
    if (!m)
        return NULL;
    fvm__segment_state__init(m);
    m->selector = s->sel;
    m->attributes = s->attr;
    m->limit = s->limit;
    m->base_gva = s->base;
    return m;
}

static Fvm__TableState *save_table(const struct fvm_dtable *t)
{
    Fvm__TableState *m = calloc(1, sizeof(*m));
    if (!m)
        return NULL;
    fvm__table_state__init(m);
    m->base_gva = t->base;
    m->limit = t->limit;
    return m;
}

static uint64_t *copy_words(const uint64_t *words, size_t count)
{
    uint64_t *copy = malloc(count * sizeof(*copy));
    if (copy)
        memcpy(copy, words, count * sizeof(*copy));
    return copy;
}

static int save_msrs(const struct fvm_vcpu *v, Fvm__CpuState *m)
{
    size_t count;
    const struct fvm_cpu_msr *list = fvm_cpu_msrs(&count);
    m->msrs = calloc(count, sizeof(*m->msrs));
    if (!m->msrs)
        return FVM_ENOMEM;
    for (size_t i = 0; i < count; i++) {
        Fvm__MsrState *msr = calloc(1, sizeof(*msr));
        if (!msr)
            return FVM_ENOMEM;
        fvm__msr_state__init(msr);
        msr->index = list[i].index;
        msr->value = *(const uint64_t *)(const void *)((const char *)v + list[i].offset);
        m->msrs[m->n_msrs++] = msr;
    }
    return 0;
}

static int save_tables(const struct fvm_vcpu *v, Fvm__CpuState *m)
{
    m->regs = copy_words(v->regs, 16);
    m->n_regs = m->regs ? 16 : 0;
    m->dr = copy_words(v->dr, 8);
    m->n_dr = m->dr ? 8 : 0;
    m->xsave.data = malloc(FVM_XSAVE_BYTES);
    m->segments = calloc(FVM_SEG_COUNT, sizeof(*m->segments));
    m->ldtr = save_segment(&v->ldtr);
    m->tr = save_segment(&v->tr);
    m->gdtr = save_table(&v->gdtr);
    m->idtr = save_table(&v->idtr);
    if (!m->regs || !m->dr || !m->xsave.data || !m->segments || !m->ldtr || !m->tr || !m->gdtr || !m->idtr)
        return FVM_ENOMEM;
    memcpy(m->xsave.data, v->xsave, FVM_XSAVE_BYTES);
    m->xsave.len = FVM_XSAVE_BYTES;
    for (unsigned i = 0; i < FVM_SEG_COUNT; i++) {
        m->segments[i] = save_segment(&v->seg[i]);
        if (!m->segments[i])
            return FVM_ENOMEM;
        m->n_segments++;
    }
    return save_msrs(v, m);
}

static int save_cpu(const struct fvm_vcpu *v, Fvm__CpuState *m)
{
    uint32_t request = __atomic_load_n(&v->request, __ATOMIC_ACQUIRE);
    m->index = v->index;
    m->rip = v->rip;
    m->rflags = fvm_vcpu_rflags(v);
    m->cr0 = v->cr0;
    m->cr2 = v->cr2;
    m->cr3 = v->cr3;
    m->cr4 = v->cr4;
    m->xcr0 = v->xcr0;
    m->run = v->run;
    m->int_shadow = v->int_shadow;
    m->nmi_blocked = v->nmi_blocked;
    m->nmi_pending = v->nmi_pending || (request & FVM_REQ_NMI);
    m->cpl = v->cpl;
    m->init_pending = (request & FVM_REQ_INIT) != 0;
    m->sipi_pending = (request & FVM_REQ_SIPI) != 0;
    m->sipi_vector = m->sipi_pending ? v->sipi_vector : 0;
    return save_tables(v, m);
}

static int save_all(struct fvm_vm *vm, Fvm__CpusState *m)
{
    struct fvm_clock_state clock;
    m->clock = calloc(1, sizeof(*m->clock));
    m->cpus = calloc(vm->vcpu_count, sizeof(*m->cpus));
    if (!m->clock || !m->cpus || fvm_config_set(&m->cpu_model, fvm_cpu_model_name(vm->model)))
        return FVM_ENOMEM;
    fvm__clock_state__init(m->clock);
    fvm_clock_save(vm->clock, &clock);
    m->clock->guest_ns = clock.guest_ns;
    m->clock->guest_tsc = clock.guest_tsc;
    m->clock->tsc_khz = clock.tsc_khz;
    m->clock->wall_ns = clock.wall_ns;
    for (unsigned i = 0; i < vm->vcpu_count; i++) {
        Fvm__CpuState *cpu = calloc(1, sizeof(*cpu));
        if (!cpu)
            return FVM_ENOMEM;
        fvm__cpu_state__init(cpu);
        m->cpus[m->n_cpus++] = cpu;
        int r = save_cpu(vm->vcpus[i], cpu);
        if (r)
            return r;
    }
    return 0;
}

int fvm_vm_save_cpus(struct fvm_vm *vm, Fvm__CpusState **ret)
{
    int state = atomic_load(&vm->state);
    if (state != FVM_VM_PAUSED && state != FVM_VM_CREATED)
        return FVM_ESTATE;
    Fvm__CpusState *m = calloc(1, sizeof(*m));
    if (!m)
        return FVM_ENOMEM;
    fvm__cpus_state__init(m);
    int r = save_all(vm, m);
    if (r)
        fvm__cpus_state__free_unpacked(m, NULL);
    else
        *ret = m;
    return r;
}

struct device_op {
    Fvm__DevicesState **ret;
    int r;
};

static void save_devices_op(struct fvm_vm *vm, void *arg)
{
    struct device_op *op = arg;
    fvm_bus_lock(vm->bus);
    op->r = fvm_board_pc_save(vm->pc, op->ret);
    fvm_bus_unlock(vm->bus);
}

int fvm_vm_save_devices(struct fvm_vm *vm, Fvm__DevicesState **ret)
{
    int state = atomic_load(&vm->state);
    if (state != FVM_VM_PAUSED && state != FVM_VM_CREATED)
        return FVM_ESTATE;
    struct device_op op = {.ret = ret};
    fvm_vm_on_loop(vm, save_devices_op, &op);
    return op.r;
}

/* ---- check ---- */

struct check_op {
    const Fvm__CpusState *cpus;
    const Fvm__DevicesState *devs;
    struct fvm_err *err;
    uint64_t elapsed_ns;
    int r;
};

static void check_op(struct fvm_vm *vm, void *arg)
{
    struct check_op *op = arg;
    int state = atomic_load(&vm->state);
    if (state != FVM_VM_PAUSED && state != FVM_VM_CREATED) {
        op->r = fvm_err_set(op->err, FVM_ESTATE, 0, "vm", "state can be loaded only into a VM that stands still");
        return;
    }
    op->r = fvm_cpu_state_check(op->cpus, vm->model, vm->vcpu_count, op->err);
    if (op->r)
        return;
    fvm_bus_lock(vm->bus);
    op->r = fvm_board_pc_check(vm->pc, op->devs, op->err);
    fvm_bus_unlock(vm->bus);
}

int fvm_vm_check_state(struct fvm_vm *vm, const Fvm__CpusState *cpus, const Fvm__DevicesState *devs,
                       struct fvm_err *err)
{
    struct check_op op = {.cpus = cpus, .devs = devs, .err = err};
    fvm_vm_on_loop(vm, check_op, &op);
    return op.r;
}

/* ---- restore ---- */

static struct fvm_seg restore_segment(const Fvm__SegmentState *m)
{
    return (struct fvm_seg){.sel = (uint16_t)m->selector, .attr = (uint16_t)m->attributes, .limit = m->limit,
                            .base = m->base_gva};
}

static void restore_msrs(struct fvm_vcpu *v, const Fvm__CpuState *m)
{
    for (size_t i = 0; i < m->n_msrs; i++) {
        const struct fvm_cpu_msr *msr = fvm_cpu_msr_find(m->msrs[i]->index);
        *(uint64_t *)(void *)((char *)v + msr->offset) = m->msrs[i]->value;
    }
}

static void restore_cpu(struct fvm_vcpu *v, const Fvm__CpuState *m)
{
    fvm_vcpu_reset_state(v, false);
    memcpy(v->regs, m->regs, sizeof(v->regs));
    memcpy(v->dr, m->dr, sizeof(v->dr));
    memcpy(v->xsave, m->xsave.data, FVM_XSAVE_BYTES);
    v->rip = m->rip;
    fvm_vcpu_set_rflags(v, m->rflags);
    for (unsigned i = 0; i < FVM_SEG_COUNT; i++) {
        v->seg[i] = restore_segment(m->segments[i]);
        fvm_vcpu_set_seg_base(v, i, m->segments[i]->base_gva);
    }
    v->ldtr = restore_segment(m->ldtr);
    v->tr = restore_segment(m->tr);
    v->gdtr = (struct fvm_dtable){.base = m->gdtr->base_gva, .limit = m->gdtr->limit};
    v->idtr = (struct fvm_dtable){.base = m->idtr->base_gva, .limit = m->idtr->limit};
    v->cr0 = m->cr0;
    v->cr2 = m->cr2;
    v->cr3 = m->cr3;
    v->cr4 = m->cr4;
    v->xcr0 = m->xcr0;
    v->cpl = (uint8_t)m->cpl;
    v->run = (uint8_t)m->run;
    v->int_shadow = (uint8_t)FVM_MIN(m->int_shadow, (uint32_t)FVM_SHADOW_SS);
    v->nmi_blocked = !!m->nmi_blocked;
    v->nmi_pending = !!m->nmi_pending;
    v->sipi_vector = (uint8_t)m->sipi_vector;
    restore_msrs(v, m);
    /* Look at everything that may be pending, as soon as it runs. */
    __atomic_and_fetch(&v->request, ~(uint32_t)(FVM_REQ_INIT | FVM_REQ_SIPI | FVM_REQ_NMI), __ATOMIC_ACQ_REL);
    fvm_vcpu_request(v, FVM_REQ_IRQ | FVM_REQ_WAKE | (m->nmi_pending ? FVM_REQ_NMI : 0) |
                            (m->init_pending ? FVM_REQ_INIT : 0) | (m->sipi_pending ? FVM_REQ_SIPI : 0));
    fvm_control_reload(v);
}

static void restore_op(struct fvm_vm *vm, void *arg)
{
    struct check_op *op = arg;
    const struct fvm_clock_state clock = {.guest_ns = op->cpus->clock->guest_ns,
                                          .guest_tsc = op->cpus->clock->guest_tsc,
                                          .tsc_khz = op->cpus->clock->tsc_khz,
                                          .wall_ns = op->cpus->clock->wall_ns};
    fvm_bus_lock(vm->bus);
    fvm_assert(fvm_clock_restore(vm->clock, &clock, op->elapsed_ns) == 0);
    vm->config->tsc_khz = clock.tsc_khz;
    fvm_board_pc_restore(vm->pc, op->devs);
    for (unsigned i = 0; i < vm->vcpu_count; i++)
        restore_cpu(vm->vcpus[i], op->cpus->cpus[i]);
    atomic_store(&vm->state, FVM_VM_PAUSED);
    fvm_bus_unlock(vm->bus);
}

void fvm_vm_restore_state(struct fvm_vm *vm, const Fvm__CpusState *cpus, const Fvm__DevicesState *devs,
                          uint64_t elapsed_ns)
{
    struct check_op op = {.cpus = cpus, .devs = devs, .elapsed_ns = elapsed_ns};
    fvm_vm_on_loop(vm, restore_op, &op);
}
