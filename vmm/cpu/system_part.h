/*
 * system_part.h - what the files behind fvm_system_exec share. Each part handles a group of mnemonics on precise state:
 * returns 0 (with rip set by the part when it is a transfer, else left alone and advanced by the caller) or FVM_FAULT.
 */
#ifndef FVM_VMM_CPU_SYSTEM_PART_H
#define FVM_VMM_CPU_SYSTEM_PART_H

#include "vmm/cpu/descriptor.h"
#include "vmm/cpu/operand.h"
#include "vmm/cpu/system.h"

enum { FVM_PART_JUMPED = -1 }; /* rip is set already: do not advance */

static inline uint64_t fvm_next_rip(const struct fvm_vcpu *v, const struct fvm_insn *insn)
{
    uint64_t rip = v->rip + insn->len;
    unsigned bits = fvm_vcpu_code_bits(v);

    return bits == 64 ? rip : bits == 32 ? (uint32_t)rip : rip; /* 16-bit: the limit check is the fetch's */
}
static inline int fvm_need_cpl0(const struct fvm_vcpu *v, struct fvm_fault *fault)
{
    return v->cpl ? fvm_raise_gp0(fault) : 0;
}

/* Each: 0 done, FVM_PART_JUMPED, FVM_FAULT. */
int fvm_part_control(struct fvm_vcpu *v, const struct fvm_insn *insn, struct fvm_fault *fault);
int fvm_part_segment(struct fvm_vcpu *v, const struct fvm_insn *insn, struct fvm_fault *fault);
int fvm_part_transfer(struct fvm_vcpu *v, const struct fvm_insn *insn, struct fvm_fault *fault);
int fvm_part_xsave(struct fvm_vcpu *v, const struct fvm_insn *insn, struct fvm_fault *fault);
int fvm_part_legacy(struct fvm_vcpu *v, const struct fvm_insn *insn, struct fvm_fault *fault);

#endif
