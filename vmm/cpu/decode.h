/*
 * decode.h - instruction decoding (wraps Zydis; decode.c is the only file that calls it, its types are visible here).
 */
#ifndef FVM_VMM_CPU_DECODE_H
#define FVM_VMM_CPU_DECODE_H

#include <Zydis/Zydis.h>

#include "base/types.h"

struct fvm_insn {
    ZydisDecodedInstruction z;
    ZydisDecodedOperand ops[ZYDIS_MAX_OPERAND_COUNT]; /* explicit first, then implicit: z.operand_count */
    uint8_t bytes[16];
    uint8_t len;
};

/** Decode at most `avail` bytes (15 suffice) as 64/32/16-bit code. 0, FVM_DECODE_SHORT (more bytes needed) or FVM_DECODE_BAD. */
enum { FVM_DECODE_OK = 0, FVM_DECODE_SHORT = 1, FVM_DECODE_BAD = 2 };
int fvm_decode(const uint8_t *code, size_t avail, unsigned bits, struct fvm_insn *ret_insn);
/** Text for traces: "mov rax, [rbx]"; returns buf. */
const char *fvm_decode_text(const struct fvm_insn *insn, uint64_t rip, char *buf, size_t size);
/** Name of a mnemonic number (z.mnemonic), or NULL. */
const char *fvm_decode_mnemonic(unsigned mnemonic);
/** Hardware number 0..15 of a general register operand (any width; ah..bh give 4..7 with *ret_high), or -1. */
int fvm_decode_gpr(ZydisRegister reg, bool *ret_high);
/** FVM_ES.. order number of a segment register, or -1. */
int fvm_decode_seg(ZydisRegister reg);

#endif
