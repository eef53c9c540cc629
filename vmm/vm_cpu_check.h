/*
 * vm_cpu_check.h - may a processor be in this state? Pure: knows messages and the CPU model, no VM.
 */
#ifndef FVM_VMM_VM_CPU_CHECK_H
#define FVM_VMM_VM_CPU_CHECK_H

#include "base/err.h"
#include "proto/cpu_state.pb-c.h"

struct fvm_cpu_model;

struct fvm_cpu_msr { /* an MSR that is a field of struct fvm_vcpu (uint64_t) */
    uint32_t index;
    uint32_t offset; /* in struct fvm_vcpu */
};
const struct fvm_cpu_msr *fvm_cpu_msrs(size_t *ret_count);
const struct fvm_cpu_msr *fvm_cpu_msr_find(uint32_t index); /* NULL: not one that travels */

/**
 * fvm_cpu_state_check - everything about a received CpusState that could not be on real hardware of that model, or
 * does not fit this VM, is refused. NULL parts included. Test: tests/unit/vm_cpu_check.c
 */
int fvm_cpu_state_check(const Fvm__CpusState *cpus, const struct fvm_cpu_model *model, unsigned cpu_count,
                        struct fvm_err *err);

#endif
