/*
 * event.h - the part of event.c that only vmm/cpu's own files need; the rest is in system.h.
 */
#ifndef FVM_VMM_CPU_EVENT_H
#define FVM_VMM_CPU_EVENT_H

#include "vmm/cpu/system.h"

struct fvm_event {
    enum fvm_event_kind kind;
    uint8_t vector;
    bool has_code;
    bool check_dpl; /* int n, int3, into: the gate's DPL must permit the CPL */
    uint8_t ext;    /* EXT bit of error codes of faults met on the way */
    uint32_t code;
};

/** One attempt: 0, or FVM_FAULT with the fault met and nothing changed. v->rip is what the frame shall hold. */
int fvm_event_try(struct fvm_vcpu *v, const struct fvm_event *e, struct fvm_fault *fault);
/** int n: on a fault rip is as before. */
int fvm_event_soft(struct fvm_vcpu *v, unsigned vector, uint64_t next_rip, bool check_dpl, struct fvm_fault *fault);

#endif
