/*
 * fvm_debugger.c - see fvm_debugger.h. While a migration or a snapshot decides about the guest, it cannot be let go.
 */
#include "cluster/fvm_debugger.h"

#include "cluster/fvm_migrate.h"
#include "vmm/gdb.h"

static struct fvm_vm *vm_of(void *ctx) { return ((struct fvm_run *)ctx)->vm; }

static unsigned cpus(void *ctx) { return fvm_vm_debug_cpus(vm_of(ctx)); }

static size_t reg(void *ctx, unsigned cpu, unsigned number, uint8_t ret[FVM_DEBUG_REG_BYTES])
{
    return fvm_vm_debug_reg(vm_of(ctx), cpu, number, ret);
}

static int set_reg(void *ctx, unsigned cpu, unsigned number, const uint8_t *bytes)
{
    return fvm_vm_debug_set_reg(vm_of(ctx), cpu, number, bytes);
}

static int read_memory(void *ctx, unsigned cpu, fvm_gva va, void *buf, size_t len)
{
    return fvm_vm_debug_read(vm_of(ctx), cpu, va, buf, len);
}

static int write_memory(void *ctx, unsigned cpu, fvm_gva va, const void *buf, size_t len)
{
    return fvm_vm_debug_write(vm_of(ctx), cpu, va, buf, len);
}

static int breakpoint(void *ctx, unsigned cpu, enum fvm_debug_kind kind, fvm_gva va, size_t len, bool set)
{
    return fvm_vm_debug_break(vm_of(ctx), cpu, kind, va, len, set);
}

/* 1: it ran. */
static int halt(void *ctx)
{
    struct fvm_run *run = ctx;
    enum fvm_vm_state state = run->vm ? fvm_vm_get_state(run->vm) : FVM_VM_STOPPED;
    if (state == FVM_VM_STOPPED)
        return FVM_ESTATE;
    if (state != FVM_VM_RUNNING)
        return 0;
    int r = fvm_vm_pause(run->vm);
    return r ? r : 1;
}

static int go(void *ctx, int step_cpu)
{
    struct fvm_run *run = ctx;
    struct fvm_err err;
    if (!run->vm || run->ended || fvm_migrate_may_run(run, &err))
        return FVM_ESTATE;
    return fvm_vm_debug_go(run->vm, step_cpu);
}

static enum fvm_debug_reason why(void *ctx, unsigned *ret_cpu, uint64_t *ret_addr, enum fvm_debug_kind *ret_kind)
{
    return fvm_vm_debug_why(vm_of(ctx), ret_cpu, ret_addr, ret_kind);
}

static void forget(void *ctx)
{
    struct fvm_run *run = ctx;
    if (run->vm)
        fvm_vm_debug_forget(run->vm);
}

static void kill_vm(void *ctx) { fvm_run_end(ctx, 0); }

int fvm_debugger_open(struct fvm_run *run, struct fvm_err *err)
{
    const struct fvm_gdb_target target = {.cpus = cpus, .reg = reg, .set_reg = set_reg, .read = read_memory,
                                          .write = write_memory, .breakpoint = breakpoint, .halt = halt, .go = go,
                                          .why = why, .forget = forget, .kill = kill_vm, .ctx = run};
    if (!run->options.gdb)
        return 0;
    return fvm_gdb_create(run->loop, run->options.gdb, &target, &run->gdb, err);
}

void fvm_debugger_stopped(struct fvm_run *run)
{
    if (run->gdb)
        fvm_gdb_stopped(run->gdb);
}

void fvm_debugger_ended(struct fvm_run *run, unsigned status, unsigned signal)
{
    if (run->gdb)
        fvm_gdb_exited(run->gdb, status, signal);
}

void fvm_debugger_close(struct fvm_run *run) { fvm_gdb_destroy(&run->gdb); }
