/*
 * task.h - hardware task switches, for vmm/cpu's own files.
 *
 * On 0 the new task runs. FVM_FAULT: nothing changed, or, if the fault is the new task's, v is at its first instruction.
 */
#ifndef FVM_VMM_CPU_TASK_H
#define FVM_VMM_CPU_TASK_H

#include "vmm/cpu/system.h"

enum { FVM_TASK_NOT = 2 };
/** Protected mode, not long, not v86. */
bool fvm_task_possible(const struct fvm_vcpu *v);
/** Far jump or call: FVM_TASK_NOT if sel names neither a TSS nor a task gate. */
int fvm_task_far(struct fvm_vcpu *v, uint16_t sel, bool call, uint64_t next_rip, struct fvm_fault *fault);
/** Through a task gate of the IDT: struct fvm_vcpu.task_event, since event.c may run as a fast helper. */
int fvm_task_event(struct fvm_vcpu *v, uint16_t sel, uint64_t flags, bool has_code, uint32_t code, unsigned ext,
                   struct fvm_fault *fault);
/** IRET with NT set. */
int fvm_task_return(struct fvm_vcpu *v, uint64_t next_rip, struct fvm_fault *fault);

#endif
