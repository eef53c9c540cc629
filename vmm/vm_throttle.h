/*
 * vm_throttle.h - holds a guest to a rate of page writes, so that a migration catches up with it.
 *
 * What is counted are write rights granted by the vCPUs' shadow tables: one grant, one page that became dirty again
 * (mmu/shadow.h). When there were more than the rate allows, the vCPUs that asked for them are kept out of guest code
 * until it is paid for. Who writes little is not slowed down, however busy. Time goes on for all: to the guest it looks
 * like a busy host.
 *
 * Thread: set and destroy from any one thread; works on a thread of its own, between other operations on the VM.
 */
#ifndef FVM_VMM_VM_THROTTLE_H
#define FVM_VMM_VM_THROTTLE_H

#include "vmm/vm.h"

struct fvm_throttle;
int fvm_throttle_create(struct fvm_vm *vm, struct fvm_throttle **ret_throttle);
/** 0: no limit; returns when all go at full speed again. */
void fvm_throttle_set(struct fvm_throttle *throttle, uint64_t pages_per_s);
/** How long writers were kept, all together. */
uint64_t fvm_throttle_kept_ns(struct fvm_throttle *throttle);
void fvm_throttle_destroy(struct fvm_throttle **throttle_p);

#endif
