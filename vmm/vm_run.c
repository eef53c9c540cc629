/*
 * vm_run.c - boot, run, pause, reset, power off: the machine as a whole changes its state here.
 *
 * The one danger: a vCPU that is asked to park may be inside a device access and wait for the board lock. Whoever
 * waits for it must therefore not hold that lock. On the loop's thread the lock is the guard around the running
 * callback, so it is given up while waiting (fvm_vm_guard_release) and taken back afterwards. Order of locks: op_lock,
 * then board lock.
 *
 * Invariant: state RUNNING <=> clock runs, devices are resumed, vCPUs are not parked (as seen with op_lock held).
 */
#include <string.h>

#include "vmm/devices/acpi_pm.h"
#include "vmm/devices/pci.h"
#include "vmm/firmware/boot.h"
#include "vmm/vm_firmware.h"
#include "vmm/vm_internal.h"

static const char room[] = "vm";

/* ---- operations: begin and end, and on whose thread ---- */

static unsigned op_begin(struct fvm_vm *vm)
{
    unsigned depth = fvm_vm_guard_release(vm);
    pthread_mutex_lock(&vm->op_lock);
    return depth;
}

static void op_end(struct fvm_vm *vm, unsigned depth)
{
    pthread_mutex_unlock(&vm->op_lock);
    fvm_vm_guard_retake(vm, depth);
}

struct hop { /* a caller that waits for the loop */
    struct fvm_vm *vm;
    void (*fn)(struct fvm_vm *vm, void *arg);
    void *arg;
    pthread_mutex_t lock;
    pthread_cond_t cond;
    bool done;
};

static void hop_run(void *ctx)
{
    struct hop *hop = ctx;
    hop->fn(hop->vm, hop->arg);
    pthread_mutex_lock(&hop->lock);
    hop->done = true;
    pthread_cond_signal(&hop->cond);
    pthread_mutex_unlock(&hop->lock);
}

void fvm_vm_on_loop(struct fvm_vm *vm, void (*fn)(struct fvm_vm *vm, void *arg), void *arg)
{
    if (pthread_equal(vm->loop_thread, pthread_self())) {
        fn(vm, arg);
        return;
    }
    struct hop hop = {
        .vm = vm, .fn = fn, .arg = arg, .lock = PTHREAD_MUTEX_INITIALIZER, .cond = PTHREAD_COND_INITIALIZER};
    fvm_assert(fvm_loop_post(vm->loop, hop_run, &hop) == 0);
    pthread_mutex_lock(&hop.lock);
    while (!hop.done)
        pthread_cond_wait(&hop.cond, &hop.lock);
    pthread_mutex_unlock(&hop.lock);
}

/* ---- vCPUs together ---- */

void fvm_vm_park_all(struct fvm_vm *vm)
{
    for (unsigned i = 1; i < vm->vcpu_count; i++)
        fvm_vcpu_request(vm->vcpus[i], FVM_REQ_WAKE); /* leave guest code or hlt while the others are waited for */
    for (unsigned i = 0; i < vm->vcpu_count; i++)
        fvm_vcpu_park(vm->vcpus[i]);
}

void fvm_vm_resume_all(struct fvm_vm *vm)
{
    for (unsigned i = 0; i < vm->vcpu_count; i++)
        fvm_vcpu_resume(vm->vcpus[i]);
}

void fvm_vm_sync_tsc(struct fvm_vm *vm)
{
    for (unsigned i = 0; i < vm->vcpu_count; i++) {
        struct fvm_vcpu *v = vm->vcpus[i];
        v->tsc_direct = fvm_clock_tsc_offset(vm->clock, &v->tsc_offset);
    }
}

/* ---- still and moving. op_lock held, board lock not; loop's thread ---- */

static void go(struct fvm_vm *vm)
{
    fvm_bus_lock(vm->bus);
    fvm_clock_start(vm->clock);
    fvm_vm_sync_tsc(vm);
    fvm_board_pc_resume(vm->pc);
    fvm_char_hold(vm->serial, false);
    if (vm->console)
        fvm_char_hold(vm->console, false);
    atomic_store(&vm->state, FVM_VM_RUNNING);
    fvm_bus_unlock(vm->bus);
    fvm_vm_resume_all(vm);
}

static void stand_still(struct fvm_vm *vm, enum fvm_vm_state state)
{
    fvm_vm_park_all(vm);
    fvm_bus_lock(vm->bus);
    fvm_char_hold(vm->serial, true);
    if (vm->console)
        fvm_char_hold(vm->console, true);
    fvm_board_pc_quiesce(vm->pc);
    fvm_clock_stop(vm->clock);
    atomic_store(&vm->state, state);
    fvm_bus_unlock(vm->bus);
}

struct status {
    int r;
};

static void run_op(struct fvm_vm *vm, void *arg)
{
    struct status *ret = arg;
    unsigned depth = op_begin(vm);
    int state = atomic_load(&vm->state);
    if (state == FVM_VM_STOPPED)
        ret->r = FVM_ESTATE;
    else if (state != FVM_VM_RUNNING)
        go(vm);
    op_end(vm, depth);
}

int fvm_vm_run(struct fvm_vm *vm)
{
    struct status ret = {0};
    fvm_vm_on_loop(vm, run_op, &ret);
    return ret.r;
}

static void pause_op(struct fvm_vm *vm, void *arg)
{
    struct status *ret = arg;
    unsigned depth = op_begin(vm);
    int state = atomic_load(&vm->state);
    if (state == FVM_VM_RUNNING)
        stand_still(vm, FVM_VM_PAUSED);
    else if (state != FVM_VM_PAUSED)
        ret->r = FVM_ESTATE;
    op_end(vm, depth);
}

int fvm_vm_pause(struct fvm_vm *vm)
{
    struct status ret = {0};
    fvm_vm_on_loop(vm, pause_op, &ret);
    return ret.r;
}

void fvm_vm_halt(struct fvm_vm *vm)
{
    unsigned depth = op_begin(vm);
    if (atomic_load(&vm->state) == FVM_VM_RUNNING)
        stand_still(vm, FVM_VM_STOPPED);
    atomic_store(&vm->state, FVM_VM_STOPPED);
    op_end(vm, depth);
}

static void button_op(struct fvm_vm *vm, void *arg)
{
    struct status *ret = arg;
    struct fvm_device *dev = fvm_board_pc_device(vm->pc, "acpi_pm");
    fvm_bus_lock(vm->bus);
    if (dev && atomic_load(&vm->state) == FVM_VM_RUNNING)
        fvm_acpi_pm_power_button(dev);
    else
        ret->r = FVM_ESTATE;
    fvm_bus_unlock(vm->bus);
}

int fvm_vm_power_button(struct fvm_vm *vm)
{
    struct status ret = {0};
    fvm_vm_on_loop(vm, button_op, &ret);
    return ret.r;
}

/* ---- boot and reset ---- */

static void apply_segment(struct fvm_vcpu *v, unsigned seg, const struct fvm_boot_segment *s)
{
    v->seg[seg] = (struct fvm_seg){.sel = s->selector, .attr = s->attr, .limit = s->limit};
    fvm_vcpu_set_seg_base(v, seg, s->base);
}

static void apply_boot_state(struct fvm_vcpu *v, const struct fvm_boot_state *b)
{
    _Static_assert((int)FVM_BOOT_SEGMENTS == (int)FVM_SEG_COUNT, "segments in the same order");
    memcpy(v->regs, b->regs, sizeof(v->regs));
    v->rip = b->rip;
    fvm_vcpu_set_rflags(v, 2);
    v->cr0 = b->cr0;
    v->cr3 = b->cr3;
    v->cr4 = b->cr4;
    v->efer = b->efer;
    if ((v->efer & FVM_EFER_LME) && (v->cr0 & FVM_CR0_PG))
        v->efer |= FVM_EFER_LMA;
    for (unsigned i = 0; i < FVM_SEG_COUNT; i++)
        apply_segment(v, i, &b->segments[i]);
    v->tr = (struct fvm_seg){.sel = b->tr.selector, .attr = b->tr.attr, .limit = b->tr.limit, .base = b->tr.base};
    v->gdtr = (struct fvm_dtable){.base = b->gdt_base, .limit = b->gdt_limit};
    v->idtr = (struct fvm_dtable){.base = b->idt_base, .limit = b->idt_limit};
    v->cpl = 0;
    v->run = FVM_RUN_NORMAL;
}

/* op_lock held, vCPUs parked. */
static int boot_locked(struct fvm_vm *vm, struct fvm_err *err)
{
    const Fvm__VmConfig *config = vm->config;
    const struct fvm_acpi_config acpi = fvm_vm_acpi_config(vm);
    const struct fvm_smbios_config smbios = fvm_vm_smbios_config(vm);
    const struct fvm_boot_options options = {.kernel = config->kernel,
                                             .initrd = config->initrd[0] ? config->initrd : NULL,
                                             .append = config->append,
                                             .acpi = &acpi,
                                             .smbios = &smbios};
    struct fvm_boot_state start;
    fvm_bus_lock(vm->bus);
    fvm_board_pc_reset(vm->pc);
    int r = vm->firmware ? fvm_firmware_load(vm->firmware, vm->ram, &start, err) : fvm_boot_load(vm->ram, &options, &start, err);
    for (unsigned i = 0; !r && i < vm->vcpu_count; i++) {
        struct fvm_vcpu *v = vm->vcpus[i];
        fvm_vcpu_reset_state(v, false);
        __atomic_and_fetch(&v->request, ~(uint32_t)(FVM_REQ_INIT | FVM_REQ_SIPI | FVM_REQ_NMI), __ATOMIC_ACQ_REL);
        if (i == 0)
            apply_boot_state(v, &start);
        fvm_control_reload(v);
    }
    fvm_bus_unlock(vm->bus);
    return r;
}

int fvm_vm_boot(struct fvm_vm *vm, struct fvm_err *err)
{
    unsigned depth = op_begin(vm);
    int r, state = atomic_load(&vm->state);
    if (state == FVM_VM_RUNNING || state == FVM_VM_STOPPED)
        r = fvm_err_set(err, FVM_ESTATE, 0, room, "a %s VM cannot be booted",
                        state == FVM_VM_RUNNING ? "running" : "stopped");
    else
        r = boot_locked(vm, err);
    op_end(vm, depth);
    return r;
}

static void send_event(struct fvm_vm *vm, enum fvm_vm_event event, unsigned code, const char *why)
{
    if (vm->hooks.event)
        vm->hooks.event(vm->hooks.ctx, event, code, why);
}

static void do_reset(struct fvm_vm *vm)
{
    struct fvm_err err = {0};
    unsigned depth = op_begin(vm);
    bool running = atomic_load(&vm->state) == FVM_VM_RUNNING;
    if (running)
        stand_still(vm, FVM_VM_PAUSED);
    int r = boot_locked(vm, &err);
    vm->resets++;
    if (r)
        atomic_store(&vm->state, FVM_VM_STOPPED);
    else if (running)
        go(vm);
    op_end(vm, depth);
    fvm_log(INFO, "vm.reset", "vm=%s count=%llu", vm->config->name, (unsigned long long)vm->resets);
    if (r)
        send_event(vm, FVM_VM_EVENT_CRASHED, 0, err.text);
    else
        send_event(vm, FVM_VM_EVENT_RESET, 0, NULL);
}

void fvm_vm_handle_asked(void *ctx)
{
    struct fvm_vm *vm = ctx;
    unsigned asked = atomic_exchange(&vm->asked, 0);
    if (!asked || atomic_load(&vm->state) == FVM_VM_STOPPED)
        return;
    if ((asked & FVM_ASK_DEBUG) && fvm_vm_pause(vm) == 0)
        send_event(vm, FVM_VM_EVENT_DEBUG, 0, NULL);
    asked &= ~(unsigned)FVM_ASK_DEBUG;
    if (!asked)
        return;
    bool reset_stops = !strcmp(vm->config->on_reset, "stop");
    /* The first that applies; the machine is gone after it, or new. */
    if (asked & FVM_ASK_CRASHED) {
        fvm_vm_halt(vm);
        send_event(vm, FVM_VM_EVENT_CRASHED, 0, vm->why);
    } else if (asked & FVM_ASK_DEBUG_EXIT) {
        fvm_vm_halt(vm);
        send_event(vm, FVM_VM_EVENT_DEBUG_EXIT, atomic_load(&vm->exit_code), NULL);
    } else if ((asked & FVM_ASK_POWER_OFF) || reset_stops) {
        fvm_vm_halt(vm);
        send_event(vm, FVM_VM_EVENT_POWER_OFF, 0, (asked & FVM_ASK_POWER_OFF) ? "power off" : "reset");
    } else {
        do_reset(vm);
    }
}

/* ---- dirty log; what a VM shares with the world: disks and networks ---- */

uint32_t fvm_vm_dirty_epoch(struct fvm_vm *vm)
{
    unsigned depth = op_begin(vm);
    fvm_engine_stop(vm->engine);
    uint32_t closed = fvm_ram_epoch_next(vm->ram);
    for (unsigned i = 0; i < vm->vcpu_count; i++)
        fvm_shadow_withdraw_writes(vm->vcpus[i]->shadow);
    fvm_engine_go(vm->engine);
    op_end(vm, depth);
    return closed;
}

struct storage_op {
    uint64_t epoch;
    struct fvm_err *err;
    int r;
};

static void activate_op(struct fvm_vm *vm, void *arg)
{
    struct storage_op *op = arg;
    fvm_bus_lock(vm->bus);
    unsigned disks = 0, nets = 0;
    while (!op->r && disks < vm->disk_count)
        op->r = fvm_disk_activate(vm->disks[disks++], op->epoch, op->err);
    while (!op->r && nets < vm->net_count)
        op->r = fvm_net_activate(vm->nets[nets++], op->err);
    if (op->r) { /* all or none */
        while (nets)
            fvm_net_deactivate(vm->nets[--nets]);
        while (disks)
            fvm_disk_deactivate(vm->disks[--disks]);
    }
    fvm_bus_unlock(vm->bus);
}

int fvm_vm_storage_activate(struct fvm_vm *vm, uint64_t storage_epoch, struct fvm_err *err)
{
    struct storage_op op = {.epoch = storage_epoch, .err = err};
    fvm_vm_on_loop(vm, activate_op, &op);
    return op.r;
}

static void deactivate_op(struct fvm_vm *vm, void *arg)
{
    struct storage_op *op = arg;
    fvm_bus_lock(vm->bus);
    for (unsigned i = 0; i < vm->net_count; i++)
        fvm_net_deactivate(vm->nets[i]);
    for (unsigned i = 0; i < vm->disk_count; i++) {
        int r = fvm_disk_deactivate(vm->disks[i]);
        if (r && !op->r)
            op->r = r;
    }
    fvm_bus_unlock(vm->bus);
}

int fvm_vm_storage_deactivate(struct fvm_vm *vm)
{
    struct storage_op op = {0};
    fvm_vm_on_loop(vm, deactivate_op, &op);
    return op.r;
}
