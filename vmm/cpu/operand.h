/*
 * operand.h - operands of a decoded instruction on precise state: registers, effective addresses, memory, the stack.
 */
#ifndef FVM_VMM_CPU_OPERAND_H
#define FVM_VMM_CPU_OPERAND_H

#include "vmm/cpu/system.h"

/** Register of 1, 2, 4 or 8 bytes, by hardware number; 4-byte writes clear the upper half. */
uint64_t fvm_reg_get(const struct fvm_vcpu *v, unsigned reg, unsigned bytes);
void fvm_reg_set(struct fvm_vcpu *v, unsigned reg, unsigned bytes, uint64_t value);

/** Linear address of [seg:off, len) after segment checks (#GP(0), #SS(0)); in 64-bit mode canonical. */
int fvm_segment_linear(struct fvm_vcpu *v, unsigned seg, uint64_t off, unsigned len, bool write, fvm_gva *ret_va,
                       struct fvm_fault *fault);
/** Segment of an implicit DS operand: DS, or the override's. */
unsigned fvm_insn_segment(const struct fvm_insn *insn);
/** Linear address of a memory operand. */
int fvm_operand_linear(struct fvm_vcpu *v, const struct fvm_insn *insn, const ZydisDecodedOperand *op, unsigned len,
                       bool write, fvm_gva *ret_va, struct fvm_fault *fault);
/** Offset part only (LEA's result), within the address size. */
uint64_t fvm_operand_offset(const struct fvm_vcpu *v, const struct fvm_insn *insn, const ZydisDecodedOperand *op);
/** Register, memory or immediate operand, `bytes` wide (zero-extended). */
int fvm_operand_read(struct fvm_vcpu *v, const struct fvm_insn *insn, const ZydisDecodedOperand *op, unsigned bytes,
                     uint64_t *ret_value, struct fvm_fault *fault);
int fvm_operand_write(struct fvm_vcpu *v, const struct fvm_insn *insn, const ZydisDecodedOperand *op, unsigned bytes,
                      uint64_t value, struct fvm_fault *fault);

/** n words of `bytes` from the top of the stack plus skip_bytes; rsp stays. */
int fvm_stack_peek(struct fvm_vcpu *v, unsigned skip_bytes, unsigned bytes, uint64_t *ret_words, unsigned n,
                   struct fvm_fault *fault);
/** rsp += bytes (may be negative), by the stack's address size. */
void fvm_stack_move(struct fvm_vcpu *v, int64_t bytes);
/** Pushes n words; words[0] is pushed first. All or nothing. */
int fvm_stack_push(struct fvm_vcpu *v, unsigned bytes, const uint64_t *words, unsigned n, struct fvm_fault *fault);

#endif
