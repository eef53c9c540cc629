/*
 * control.h - the part of control.c that only vmm/cpu's own files need (MSRs, INVLPG...); the rest is in system.h.
 */
#ifndef FVM_VMM_CPU_CONTROL_H
#define FVM_VMM_CPU_CONTROL_H

#include "vmm/cpu/system.h"

/** Drop every translation and load the present mode. */
void fvm_control_flush_all(struct fvm_vcpu *v);
/** Pass the shadow's "an executable mapping went away" on to the engine. */
void fvm_control_exec_flushed(struct fvm_vcpu *v);
/** WRMSR EFER: 0, or FVM_FAULT for #GP(0). */
int fvm_control_write_efer(struct fvm_vcpu *v, uint64_t value);
int fvm_control_invpcid(struct fvm_vcpu *v, uint64_t type, uint64_t pcid, uint64_t va, struct fvm_fault *fault);
void fvm_control_invlpg(struct fvm_vcpu *v, uint64_t va);

#endif
