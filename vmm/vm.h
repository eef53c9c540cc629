/*
 * vm.h - one virtual machine: RAM, bus, interrupts, clock, vCPUs and the board's devices.
 *
 * Life: create (all parts made, nothing runs) -> boot (kernel loaded, processors reset) or restore (state of another VM
 * loaded) -> run <-> pause -> destroy. Main thread runs the loop; vCPUs have threads of their own; migration calls
 * from its thread.
 *
 * Thread: functions may be called from any thread but a vCPU's; each takes the VM's operation lock, so callers wait
 * for each other. What touches devices is carried out on the loop's thread: a caller elsewhere waits for it, so the
 * loop must turn. create, destroy, boot, check, restore: on the loop's thread (or before it turns). Events come on the
 * loop's thread. The loop is this VM's alone: its guard is the board lock.
 */
#ifndef FVM_VMM_VM_H
#define FVM_VMM_VM_H

#include <stdio.h>

#include "base/err.h"
#include "base/loop.h"
#include "vmm/cpu/vcpu.h"
#include "proto/cpu_state.pb-c.h"
#include "proto/device_state.pb-c.h"
#include "proto/vm_config.pb-c.h"

struct fvm_vm;

enum fvm_vm_state { FVM_VM_CREATED, FVM_VM_PAUSED, FVM_VM_RUNNING, FVM_VM_STOPPED };
enum fvm_vm_event { FVM_VM_EVENT_POWER_OFF, FVM_VM_EVENT_RESET, FVM_VM_EVENT_DEBUG_EXIT, FVM_VM_EVENT_CRASHED,
                    FVM_VM_EVENT_DEBUG /* a processor stopped for a debugger; the VM is paused */ };

struct fvm_vm_hooks {
    /* loop thread. POWER_OFF, DEBUG_EXIT (code) and CRASHED (why): the VM is stopped already. RESET: already done. */
    void (*event)(void *ctx, enum fvm_vm_event event, unsigned code, const char *why);
    /* what was typed on stdio, before the guest sees it: may change it, returns how many bytes are left. May be NULL.
     */
    size_t (*stdio_filter)(void *ctx, uint8_t *bytes, size_t len);
    void *ctx;
    bool inactive; /* destination of a migration: disks take no lock, networks bind nothing until
                      fvm_vm_storage_activate */
};

int fvm_vm_create(const Fvm__VmConfig *config, struct fvm_loop *loop, const struct fvm_engine_config *engine,
                  const struct fvm_vm_hooks *hooks, struct fvm_vm **ret_vm, struct fvm_err *err);
void fvm_vm_destroy(struct fvm_vm **vm_p);
/** Load kernel, initrd, command line, tables; reset devices and processors. */
int fvm_vm_boot(struct fvm_vm *vm, struct fvm_err *err);
int fvm_vm_run(struct fvm_vm *vm);     /* CREATED/PAUSED -> RUNNING: clock starts, devices resume, vCPUs go */
int fvm_vm_pause(struct fvm_vm *vm); /* RUNNING -> PAUSED: vCPUs parked, devices quiesced, clock stopped; synchronous */
/** Presses the power button: a guest that listens shuts itself down, in its own time. FVM_ESTATE unless running. */
int fvm_vm_power_button(struct fvm_vm *vm);
enum fvm_vm_state fvm_vm_get_state(const struct fvm_vm *vm);
const Fvm__VmConfig *fvm_vm_config(const struct fvm_vm *vm);
struct fvm_ram *fvm_vm_ram(struct fvm_vm *vm);
struct fvm_clock *fvm_vm_clock(struct fvm_vm *vm);
uint64_t fvm_vm_cpu_ns(const struct fvm_vm *vm);
void fvm_vm_stats(const struct fvm_vm *vm, FILE *out); /* --stats */
void fvm_vm_dump(struct fvm_vm *vm, FILE *out);

/* --- screen and keys: loop's thread, board lock held or not. FVM_ENOENT: no such device --- */
struct fvm_surface;
int fvm_vm_screen(struct fvm_vm *vm, struct fvm_surface *ret);
/** Characters of a text mode, malloc'd; FVM_ESTATE in a graphics mode. */
int fvm_vm_screen_text(struct fvm_vm *vm, char **ret);
/** Numbers of vmm/devices/ps2.h. */
int fvm_vm_key(struct fvm_vm *vm, unsigned key, bool down);
bool fvm_vm_key_room(struct fvm_vm *vm);
int fvm_vm_mouse(struct fvm_vm *vm, int dx, int dy, int dz, unsigned buttons);
unsigned fvm_vm_leds(struct fvm_vm *vm);

/* --- state, all while PAUSED (or CREATED for check/restore) --- */
/** Every vCPU and the clock: a packed-ready message; free with fvm__cpus_state__free_unpacked(m, NULL). */
int fvm_vm_save_cpus(struct fvm_vm *vm, Fvm__CpusState **ret);
/** Every device on the board, in board order. */
int fvm_vm_save_devices(struct fvm_vm *vm, Fvm__DevicesState **ret);
/** Both checked against this VM without side effects. 0 or why not. */
int fvm_vm_check_state(struct fvm_vm *vm, const Fvm__CpusState *cpus, const Fvm__DevicesState *devs,
                       struct fvm_err *err);
/** After a check that said 0; cannot fail. elapsed_ns: real time since the save. State becomes PAUSED. */
void fvm_vm_restore_state(struct fvm_vm *vm, const Fvm__CpusState *cpus, const Fvm__DevicesState *devs,
                          uint64_t elapsed_ns);

/** Dirty log: closes the running epoch and returns it; after return every later write gets a higher version. */
uint32_t fvm_vm_dirty_epoch(struct fvm_vm *vm);
/**
 * Disks take their locks and accept writes, networks bind and join, only after this (destination: after TAKE; source:
 * dropped after hand-over). All or nothing. Active already: the epoch is raised.
 */
int fvm_vm_storage_activate(struct fvm_vm *vm, uint64_t storage_epoch, struct fvm_err *err);
int fvm_vm_storage_deactivate(struct fvm_vm *vm); /* flushes, releases locks, leaves the networks */

#endif
