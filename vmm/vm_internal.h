/* vm_internal.h - struct fvm_vm, shared by vm.c, vm_run.c, vm_state.c, vm_report.c, vm_screen.c only. */
#ifndef FVM_VMM_VM_INTERNAL_H
#define FVM_VMM_VM_INTERNAL_H

#include <pthread.h>
#include <stdatomic.h>

#include "base/log.h"
#include "net/net.h"
#include "storage/storage.h"
#include "vmm/board_pc.h"
#include "vmm/cpu/cpuid.h"
#include "vmm/cpu/system.h"
#include "vmm/firmware/boot.h"
#include "vmm/vm.h"
#include "vmm/vm_char.h"
#include "vmm/vm_config.h"
#include "vmm/vm_debug.h"
#include "vmm/vm_later.h"

enum { /* what devices and vCPUs asked for, carried out by the loop: bits of `asked` */
    FVM_ASK_POWER_OFF = 1,
    FVM_ASK_RESET = 2,
    FVM_ASK_DEBUG_EXIT = 4,
    FVM_ASK_CRASHED = 8,
    FVM_ASK_DEBUG = 16,
};

struct fvm_vm_watch { /* a debugger's (vm_debug.c) */
    fvm_gva va;
    fvm_gpa gpa;
    size_t len; /* within one page */
    enum fvm_debug_kind kind;
};
struct fvm_vm_watch_page {
    struct fvm_vm *vm;
    fvm_gpa gpa;
    unsigned users; /* watches in it; 0: free */
    int claim_id;
};

struct fvm_vm { /* owner: the loop's thread; other threads hold op_lock */
    Fvm__VmConfig *config;
    struct fvm_vm_hooks hooks;
    struct fvm_engine_config engine_config;
    struct fvm_loop *loop;     /* borrowed */
    const struct fvm_cpu_model *model;

    /* parts, in the order of making */
    struct fvm_ram *ram;
    struct fvm_bus *bus;
    struct fvm_irq *irq;
    struct fvm_clock *clock;
    struct fvm_char *serial, *console;
    struct fvm_disk *disks[FVM_CONFIG_DISKS_MAX];
    unsigned disk_count;
    struct fvm_net *nets[FVM_CONFIG_NETS_MAX];
    uint8_t macs[FVM_CONFIG_NETS_MAX][6];
    bool e1000[FVM_CONFIG_NETS_MAX];
    struct fvm_vm_rom {
        uint8_t *bytes; /* malloc'd; NULL: none */
        uint32_t len;
    } net_rom[2];       /* virtio, e1000 */
    unsigned net_count;
    struct fvm_boot_image vga_rom; /* open: path not NULL */
    struct fvm_board board;
    struct fvm_firmware *firmware; /* NULL: a kernel is loaded */
    struct fvm_board_pc *pc;
    struct fvm_engine *engine;
    struct fvm_vcpu *vcpus[FVM_CONFIG_CPUS_MAX];
    unsigned vcpu_count;

    struct fvm_vm_watch watches[FVM_VM_WATCHES_MAX];          /* board lock */
    struct fvm_vm_watch_page watch_pages[FVM_VM_WATCHES_MAX]; /* board lock */
    unsigned watch_count;
    enum fvm_debug_kind watch_hit_kind;

    pthread_mutex_t op_lock;   /* recursive: one operation at a time */
    _Atomic int state;         /* enum fvm_vm_state */
    struct fvm_later *later;
    _Atomic unsigned asked;    /* FVM_ASK_* */
    _Atomic unsigned exit_code;
    char why[200];             /* of the crash: written once, before FVM_ASK_CRASHED is set */
    _Atomic bool crashed;

    /* the guard: is the calling thread inside a callback of the loop, how deep */
    _Atomic(pthread_t) guard_owner;
    unsigned guard_depth;      /* owner's */
    _Atomic bool guard_held;
    pthread_t loop_thread;     /* who runs the loop: last seen taking the guard, at first the creator */
    uint64_t created_ns, resets;
};

/** Gives up the board lock if this thread holds it as the loop's guard; returns what fvm_vm_guard_retake needs. */
unsigned fvm_vm_guard_release(struct fvm_vm *vm);
void fvm_vm_guard_retake(struct fvm_vm *vm, unsigned depth);
/** All vCPUs out of guest code / going again. Board lock not held, op_lock held. */
void fvm_vm_park_all(struct fvm_vm *vm);
void fvm_vm_resume_all(struct fvm_vm *vm);
/** fn(vm, arg) on the loop's thread, now; waits. */
void fvm_vm_on_loop(struct fvm_vm *vm, void (*fn)(struct fvm_vm *vm, void *arg), void *arg);
/** Everything stands still afterwards and never runs again. Loop's thread. */
void fvm_vm_halt(struct fvm_vm *vm);
/** The loop's answer to `asked`. */
void fvm_vm_handle_asked(void *ctx);
/** Guest TSC parameters of each vCPU after the clock changed. Parked. */
void fvm_vm_sync_tsc(struct fvm_vm *vm);

#endif
