/*
 * cpu_model.h - inside of a CPU model; for cpuid.c and cpu_model.c.
 */
#ifndef FVM_VMM_CPU_CPU_MODEL_H
#define FVM_VMM_CPU_CPU_MODEL_H

#include "vmm/cpu/cpuid.h"

struct fvm_cpu_model {
    const char *name;
    unsigned level; /* psABI level 1..3 */
    uint64_t xcr0;
};

/** Ors the model's feature bits of one leaf (subleaf 0) into *ret. */
void fvm_cpu_model_leaf(const struct fvm_cpu_model *model, uint32_t leaf, struct fvm_cpuid_leaf *ret);

#endif
