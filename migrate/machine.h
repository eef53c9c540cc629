/*
 * machine.h - a VM as migration sees it. machine_vm.c makes one of vmm/vm.h; tests make their own of an array of bytes.
 *
 * Thread: called from the migration's thread; an implementation that needs another thread goes there itself and waits.
 */
#ifndef FVM_MIGRATE_MACHINE_H
#define FVM_MIGRATE_MACHINE_H

#include "base/err.h"
#include "proto/cpu_state.pb-c.h"
#include "proto/device_state.pb-c.h"
#include "proto/vm_config.pb-c.h"
#include "vmm/mem/ram.h"

struct fvm_vm;

struct fvm_machine_ops {
    struct fvm_ram *(*ram)(void *ctx);
    /* source */
    const Fvm__VmConfig *(*config)(void *ctx);
    bool (*running)(void *ctx);
    bool (*alive)(void *ctx); /* false: the guest ended by itself */
    uint32_t (*dirty_epoch)(void *ctx);
    int (*pause)(void *ctx);
    int (*save)(void *ctx, Fvm__CpusState **ret_cpus, Fvm__DevicesState **ret_devices);
    int (*storage_deactivate)(void *ctx);
    /* The guest shall not dirty more than so many pages a second; 0: no limit any more when it returns. Returns how
     * long its writers were kept so far, in ns. NULL: cannot. */
    uint64_t (*throttle)(void *ctx, uint64_t pages_per_s);
    /* destination */
    int (*create)(void *ctx, const Fvm__VmConfig *config, struct fvm_err *err); /* inactive, CREATED */
    void (*discard)(void *ctx);                                                 /* what create made */
    int (*check)(void *ctx, const Fvm__CpusState *cpus, const Fvm__DevicesState *devices, struct fvm_err *err);
    void (*restore)(void *ctx, const Fvm__CpusState *cpus, const Fvm__DevicesState *devices, uint64_t elapsed_ns);
    /* both */
    int (*storage_activate)(void *ctx, uint64_t epoch, struct fvm_err *err);
    int (*run)(void *ctx);
};

struct fvm_machine {
    const struct fvm_machine_ops *ops;
    void *ctx;
};

#endif
