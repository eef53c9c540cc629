/*
 * cpuid.h - the named CPU models fvm64-v1 .. v4 (psABI levels) and what CPUID answers. The same on every host.
 */
#ifndef FVM_VMM_CPU_CPUID_H
#define FVM_VMM_CPU_CPUID_H

#include "base/err.h"
#include "base/types.h"
#include "vmm/cpu/decode.h"

struct fvm_vcpu;
struct fvm_cpu_model;

struct fvm_cpuid_leaf { uint32_t eax, ebx, ecx, edx; };

/** "fvm64-v1".."fvm64-v4" or NULL for the default (v3 where the host has it, else the best it has). Static storage.
 *  FVM_ENOENT unknown name (err lists the names), FVM_ECPUMODEL this host lacks something (err names it). */
int fvm_cpu_model_find(const char *name, const struct fvm_cpu_model **ret_model, struct fvm_err *err);
const char *fvm_cpu_model_name(const struct fvm_cpu_model *model);
/** CPUID for a vCPU: topology, APIC id, OSXSAVE, xsave sizes, TSC frequency (0x15) depend on its state. */
void fvm_cpuid(const struct fvm_vcpu *v, uint32_t leaf, uint32_t subleaf, struct fvm_cpuid_leaf *ret);
/** May the guest execute this instruction? (its ISA set is in the model; privileged ones are judged elsewhere) */
bool fvm_cpu_model_allows(const struct fvm_cpu_model *model, const struct fvm_insn *insn);
/** XCR0 bits the model has (3 or 7). */
uint64_t fvm_cpu_model_xcr0(const struct fvm_cpu_model *model);
unsigned fvm_cpu_model_maxphyaddr(const struct fvm_cpu_model *model);

#endif
