/*
 * machine_vm.c - struct fvm_machine of a real VM (vmm/vm.h). What must happen on the loop's thread is posted there and
 * waited for.
 *
 * Invariant: the migration's thread never touches the VM while it holds anything the loop waits for; the loop must turn
 * until the migration is joined.
 */
#include <pthread.h>
#include <stdlib.h>

#include "migrate/migrate.h"
#include "vmm/vm.h"
#include "vmm/vm_throttle.h"

struct fvm_vm_machine {
    struct fvm_vm_machine_options opt;
    struct fvm_vm *vm;
    struct fvm_throttle *throttle; /* made when first asked for */
};

struct call { /* on the caller's stack; he waits */
    struct fvm_vm_machine *machine;
    void (*fn)(struct call *call);
    const Fvm__VmConfig *config;
    const Fvm__CpusState *cpus;
    const Fvm__DevicesState *devices;
    uint64_t elapsed_ns;
    struct fvm_err *err;
    int rc;
    pthread_mutex_t lock;
    pthread_cond_t cond;
    bool done;
};

static void call_run(void *ctx)
{
    struct call *call = ctx;
    call->fn(call);
    pthread_mutex_lock(&call->lock);
    call->done = true;
    pthread_cond_signal(&call->cond);
    pthread_mutex_unlock(&call->lock);
}

static int on_loop(struct call *call)
{
    pthread_mutex_init(&call->lock, NULL);
    pthread_cond_init(&call->cond, NULL);
    if (fvm_loop_post(call->machine->opt.loop, call_run, call) != 0)
        call->rc = fvm_err_set(call->err, FVM_ENOMEM, 0, "migrate", "cannot reach the event loop");
    else {
        pthread_mutex_lock(&call->lock);
        while (!call->done)
            pthread_cond_wait(&call->cond, &call->lock);
        pthread_mutex_unlock(&call->lock);
    }
    pthread_cond_destroy(&call->cond);
    pthread_mutex_destroy(&call->lock);
    return call->rc;
}

static struct fvm_ram *vm_ram(void *ctx) { return fvm_vm_ram(((struct fvm_vm_machine *)ctx)->vm); }

static const Fvm__VmConfig *vm_config(void *ctx) { return fvm_vm_config(((struct fvm_vm_machine *)ctx)->vm); }

static bool vm_running(void *ctx) { return fvm_vm_get_state(((struct fvm_vm_machine *)ctx)->vm) == FVM_VM_RUNNING; }

static bool vm_alive(void *ctx) { return fvm_vm_get_state(((struct fvm_vm_machine *)ctx)->vm) != FVM_VM_STOPPED; }

static uint32_t vm_dirty_epoch(void *ctx) { return fvm_vm_dirty_epoch(((struct fvm_vm_machine *)ctx)->vm); }

static int vm_pause(void *ctx) { return fvm_vm_pause(((struct fvm_vm_machine *)ctx)->vm); }

static int vm_run(void *ctx) { return fvm_vm_run(((struct fvm_vm_machine *)ctx)->vm); }

static int vm_save(void *ctx, Fvm__CpusState **ret_cpus, Fvm__DevicesState **ret_devices)
{
    struct fvm_vm *vm = ((struct fvm_vm_machine *)ctx)->vm;
    Fvm__CpusState *cpus;
    int rc = fvm_vm_save_cpus(vm, &cpus);
    if (rc)
        return rc;
    rc = fvm_vm_save_devices(vm, ret_devices);
    if (rc)
        fvm__cpus_state__free_unpacked(cpus, NULL);
    else
        *ret_cpus = cpus;
    return rc;
}

static uint64_t vm_throttle(void *ctx, uint64_t pages_per_s)
{
    struct fvm_vm_machine *m = ctx;
    if (!m->throttle && (!pages_per_s || fvm_throttle_create(m->vm, &m->throttle) != 0))
        return 0;
    fvm_throttle_set(m->throttle, pages_per_s);
    return fvm_throttle_kept_ns(m->throttle);
}

static int vm_storage_deactivate(void *ctx) { return fvm_vm_storage_deactivate(((struct fvm_vm_machine *)ctx)->vm); }

static int vm_storage_activate(void *ctx, uint64_t epoch, struct fvm_err *err)
{
    return fvm_vm_storage_activate(((struct fvm_vm_machine *)ctx)->vm, epoch, err);
}

static void create_fn(struct call *call)
{
    struct fvm_vm_machine *m = call->machine;
    call->rc = m->opt.make(m->opt.ctx, call->config, &m->vm, call->err);
}

static int vm_create(void *ctx, const Fvm__VmConfig *config, struct fvm_err *err)
{
    struct call call = {.machine = ctx, .fn = create_fn, .config = config, .err = err};
    return on_loop(&call);
}

static void discard_fn(struct call *call) { call->machine->opt.unmake(call->machine->opt.ctx, &call->machine->vm); }

static void vm_discard(void *ctx)
{
    struct call call = {.machine = ctx, .fn = discard_fn};
    on_loop(&call);
}

static void check_fn(struct call *call)
{
    call->rc = fvm_vm_check_state(call->machine->vm, call->cpus, call->devices, call->err);
}

static int vm_check(void *ctx, const Fvm__CpusState *cpus, const Fvm__DevicesState *devices, struct fvm_err *err)
{
    struct call call = {.machine = ctx, .fn = check_fn, .cpus = cpus, .devices = devices, .err = err};
    return on_loop(&call);
}

static void restore_fn(struct call *call)
{
    fvm_vm_restore_state(call->machine->vm, call->cpus, call->devices, call->elapsed_ns);
}

static void vm_restore(void *ctx, const Fvm__CpusState *cpus, const Fvm__DevicesState *devices, uint64_t elapsed_ns)
{
    struct call call = {.machine = ctx, .fn = restore_fn, .cpus = cpus, .devices = devices, .elapsed_ns = elapsed_ns};
    on_loop(&call);
}

static const struct fvm_machine_ops vm_ops = {
    .ram = vm_ram,
    .config = vm_config,
    .running = vm_running,
    .alive = vm_alive,
    .dirty_epoch = vm_dirty_epoch,
    .pause = vm_pause,
    .save = vm_save,
    .storage_deactivate = vm_storage_deactivate,
    .throttle = vm_throttle,
    .create = vm_create,
    .discard = vm_discard,
    .check = vm_check,
    .restore = vm_restore,
    .storage_activate = vm_storage_activate,
    .run = vm_run,
};

int fvm_vm_machine_create(const struct fvm_vm_machine_options *opt, struct fvm_vm_machine **ret_machine)
{
    struct fvm_vm_machine *m = calloc(1, sizeof(*m));
    if (!m)
        return FVM_ENOMEM;
    m->opt = *opt;
    m->vm = opt->vm;
    *ret_machine = m;
    return 0;
}

void fvm_vm_machine_destroy(struct fvm_vm_machine **machine_p)
{
    if (*machine_p)
        fvm_throttle_destroy(&(*machine_p)->throttle);
    free(*machine_p);
    *machine_p = NULL;
}

struct fvm_machine fvm_vm_machine_get(struct fvm_vm_machine *machine)
{
    return (struct fvm_machine){.ops = &vm_ops, .ctx = machine};
}
