/*
 * emit.h - the few host instructions that the translator adds itself, as bytes into a buffer.
 *
 * The buffer is always large enough (FVM_BLOCK_CODE_MAX, asserted once per guest instruction). All are 64-bit operations unless the
 * name says 32. "fs:off" addresses struct fvm_vcpu.
 */
#ifndef FVM_TRANSLATE_EMIT_H
#define FVM_TRANSLATE_EMIT_H

#include <string.h>

#include "base/err.h"
#include "base/types.h"

struct fvm_emit {
    uint8_t *buf;      /* start of the block's code (writable view) */
    uint32_t at;       /* next byte */
    uint32_t max;
};

#define FVM_NOREG 0xff

static inline void e8(struct fvm_emit *e, unsigned b) { e->buf[e->at++] = (uint8_t)b; }
static inline void e16(struct fvm_emit *e, unsigned v) { uint16_t x = (uint16_t)v; memcpy(e->buf + e->at, &x, 2); e->at += 2; }
static inline void e32(struct fvm_emit *e, uint32_t v) { memcpy(e->buf + e->at, &v, 4); e->at += 4; }
static inline void e64(struct fvm_emit *e, uint64_t v) { memcpy(e->buf + e->at, &v, 8); e->at += 8; }
static inline void e_bytes(struct fvm_emit *e, const void *p, unsigned n) { memcpy(e->buf + e->at, p, n); e->at += n; }

static inline void e_rex(struct fvm_emit *e, bool w, unsigned reg, unsigned index, unsigned base)
{
    e8(e, 0x40 | (w ? 8 : 0) | ((reg >> 3) & 1) << 2 | ((index >> 3) & 1) << 1 | ((base >> 3) & 1));
}
static inline void e_rr(struct fvm_emit *e, bool w, unsigned op, unsigned reg, unsigned rm)
{
    e_rex(e, w, reg, 0, rm);
    e8(e, op);
    e8(e, 0xc0 | (reg & 7) << 3 | (rm & 7));
}
static inline void e_mov(struct fvm_emit *e, unsigned d, unsigned s) { e_rr(e, true, 0x89, s, d); }
static inline void e_mov32(struct fvm_emit *e, unsigned d, unsigned s) { e_rr(e, false, 0x89, s, d); }

/* ModRM + SIB + displacement for [base + index*2^scale + disp]; base and index may be FVM_NOREG (then absolute disp32). */
static inline void e_mem(struct fvm_emit *e, unsigned reg, unsigned base, unsigned index, unsigned scale, int32_t disp)
{
    unsigned r = (reg & 7) << 3;
    if (base == FVM_NOREG) {
        e8(e, r | 4);
        e8(e, scale << 6 | (index == FVM_NOREG ? 4 : (index & 7)) << 3 | 5);
        e32(e, (uint32_t)disp);
        return;
    }
    bool d8 = disp >= -128 && disp <= 127;
    unsigned mod = disp == 0 && (base & 7) != 5 ? 0 : d8 ? 1 : 2;
    if (index == FVM_NOREG && (base & 7) != 4) {
        e8(e, mod << 6 | r | (base & 7));
    } else {
        e8(e, mod << 6 | r | 4);
        e8(e, scale << 6 | (index == FVM_NOREG ? 4 : (index & 7)) << 3 | (base & 7));
    }
    if (mod == 1)
        e8(e, (uint8_t)disp);
    else if (mod == 2)
        e32(e, (uint32_t)disp);
}
static inline unsigned e_n(unsigned reg) { return reg == FVM_NOREG ? 0 : reg; }
/* REX op modrm for a general memory form */
static inline void e_op_mem(struct fvm_emit *e, bool w, unsigned op, unsigned reg, unsigned base, unsigned index, unsigned scale,
                            int32_t disp)
{
    e_rex(e, w, reg, e_n(index), e_n(base));
    e8(e, op);
    e_mem(e, reg, base, index, scale, disp);
}
static inline void e_lea(struct fvm_emit *e, unsigned d, unsigned base, unsigned index, unsigned scale, int32_t disp)
{
    e_op_mem(e, true, 0x8d, d, base, index, scale, disp);
}
static inline void e_lea32(struct fvm_emit *e, unsigned d, unsigned base, unsigned index, unsigned scale, int32_t disp)
{
    e_op_mem(e, false, 0x8d, d, base, index, scale, disp);
}
static inline void e_load(struct fvm_emit *e, unsigned d, unsigned base, unsigned index, int32_t disp)
{
    e_op_mem(e, true, 0x8b, d, base, index, 0, disp);
}
static inline void e_store(struct fvm_emit *e, unsigned base, unsigned index, int32_t disp, unsigned s)
{
    e_op_mem(e, true, 0x89, s, base, index, 0, disp);
}
static inline void e_fs_load(struct fvm_emit *e, unsigned d, uint32_t off)
{
    e8(e, 0x64);
    e_op_mem(e, true, 0x8b, d, FVM_NOREG, FVM_NOREG, 0, (int32_t)off);
}
static inline void e_fs_load32(struct fvm_emit *e, unsigned d, uint32_t off)
{
    e8(e, 0x64);
    e_op_mem(e, false, 0x8b, d, FVM_NOREG, FVM_NOREG, 0, (int32_t)off);
}
static inline void e_fs_store(struct fvm_emit *e, uint32_t off, unsigned s)
{
    e8(e, 0x64);
    e_op_mem(e, true, 0x89, s, FVM_NOREG, FVM_NOREG, 0, (int32_t)off);
}
static inline void e_fs_store_imm(struct fvm_emit *e, uint32_t off, uint32_t imm) /* 32-bit store */
{
    e8(e, 0x64);
    e8(e, 0xc7);
    e_mem(e, 0, FVM_NOREG, FVM_NOREG, 0, (int32_t)off);
    e32(e, imm);
}
static inline void e_fs_store8(struct fvm_emit *e, uint32_t off, unsigned imm)
{
    e8(e, 0x64);
    e8(e, 0xc6);
    e_mem(e, 0, FVM_NOREG, FVM_NOREG, 0, (int32_t)off);
    e8(e, imm);
}
/* alu fs:[off], imm8 with /ext: 7 = cmp (32-bit) */
static inline void e_fs_cmp32_0(struct fvm_emit *e, uint32_t off)
{
    e8(e, 0x64);
    e8(e, 0x83);
    e_mem(e, 7, FVM_NOREG, FVM_NOREG, 0, (int32_t)off);
    e8(e, 0);
}
static inline void e_fs_cmp8_0(struct fvm_emit *e, uint32_t off)
{
    e8(e, 0x64);
    e8(e, 0x80);
    e_mem(e, 7, FVM_NOREG, FVM_NOREG, 0, (int32_t)off);
    e8(e, 0);
}
/* 64-bit alu op reg, fs:[off]: 0x03 add, 0x0b or, 0x3b cmp, 0x23 and */
static inline void e_fs_alu(struct fvm_emit *e, unsigned op, unsigned reg, uint32_t off)
{
    e8(e, 0x64);
    e_op_mem(e, true, op, reg, FVM_NOREG, FVM_NOREG, 0, (int32_t)off);
}
static inline void e_mov_imm(struct fvm_emit *e, unsigned d, uint64_t imm)
{
    if (imm == (uint32_t)imm) {
        if (d >= 8)
            e8(e, 0x41);
        e8(e, 0xb8 | (d & 7));
        e32(e, (uint32_t)imm);
    } else if ((int64_t)imm == (int32_t)imm) {
        e_rex(e, true, 0, 0, d);
        e8(e, 0xc7);
        e8(e, 0xc0 | (d & 7));
        e32(e, (uint32_t)imm);
    } else {
        e_rex(e, true, 0, 0, d);
        e8(e, 0xb8 | (d & 7));
        e64(e, imm);
    }
}
static inline void e_shl(struct fvm_emit *e, unsigned r, unsigned n) { e_rex(e, true, 0, 0, r); e8(e, 0xc1); e8(e, 0xe0 | (r & 7)); e8(e, n); }
static inline void e_shr(struct fvm_emit *e, unsigned r, unsigned n) { e_rex(e, true, 0, 0, r); e8(e, 0xc1); e8(e, 0xe8 | (r & 7)); e8(e, n); }
static inline void e_sar(struct fvm_emit *e, unsigned r, unsigned n) { e_rex(e, true, 0, 0, r); e8(e, 0xc1); e8(e, 0xf8 | (r & 7)); e8(e, n); }
/* without touching flags: d = s << count register; d = s rotated right by n */
static inline void e_shlx(struct fvm_emit *e, unsigned d, unsigned s, unsigned count)
{
    e8(e, 0xc4);
    e8(e, (d >= 8 ? 0 : 0x80) | 0x40 | (s >= 8 ? 0 : 0x20) | 2);
    e8(e, 0x80 | (~count & 15) << 3 | 1);
    e8(e, 0xf7);
    e8(e, 0xc0 | (d & 7) << 3 | (s & 7));
}
static inline void e_rorx(struct fvm_emit *e, unsigned d, unsigned s, unsigned n)
{
    e8(e, 0xc4);
    e8(e, (d >= 8 ? 0 : 0x80) | 0x40 | (s >= 8 ? 0 : 0x20) | 3);
    e8(e, 0x80 | 15 << 3 | 3);
    e8(e, 0xf0);
    e8(e, 0xc0 | (d & 7) << 3 | (s & 7));
    e8(e, n);
}
/* op r64, [rip + to]: 0x8b mov, 0x03 add; `to` is an offset in the buffer */
static inline void e_rip_op(struct fvm_emit *e, unsigned op, unsigned r, uint32_t to)
{
    e_rex(e, true, r, 0, 0);
    e8(e, op);
    e8(e, (r & 7) << 3 | 5);
    e32(e, to - (e->at + 4));
}
/* alu r, imm32 (sign extended): ext 0 add 1 or 4 and 5 sub 6 xor 7 cmp */
static inline void e_alu_imm(struct fvm_emit *e, bool w, unsigned ext, unsigned r, int32_t imm)
{
    e_rex(e, w, 0, 0, r);
    if (imm >= -128 && imm <= 127) {
        e8(e, 0x83);
        e8(e, 0xc0 | ext << 3 | (r & 7));
        e8(e, (uint8_t)imm);
    } else {
        e8(e, 0x81);
        e8(e, 0xc0 | ext << 3 | (r & 7));
        e32(e, (uint32_t)imm);
    }
}
static inline void e_test8_imm(struct fvm_emit *e, unsigned r, unsigned imm) /* low byte of any register */
{
    e_rex(e, false, 0, 0, r);
    e8(e, 0xf6);
    e8(e, 0xc0 | (r & 7));
    e8(e, imm);
}
static inline void e_cmp8_imm(struct fvm_emit *e, unsigned r, unsigned imm)
{
    e_rex(e, false, 0, 0, r);
    e8(e, 0x80);
    e8(e, 0xf8 | (r & 7));
    e8(e, imm);
}
static inline void e_mov8_imm(struct fvm_emit *e, unsigned r, unsigned imm)
{
    e_rex(e, false, 0, 0, r);
    e8(e, 0xb0 | (r & 7));
    e8(e, imm);
}
/* forward jumps: return the offset of the rel32 to patch */
static inline uint32_t e_jcc(struct fvm_emit *e, unsigned cc) { e8(e, 0x0f); e8(e, 0x80 | cc); e32(e, 0); return e->at - 4; }
static inline uint32_t e_jmp(struct fvm_emit *e) { e8(e, 0xe9); e32(e, 0); return e->at - 4; }
static inline void e_patch(struct fvm_emit *e, uint32_t rel_at, uint32_t to)
{
    int32_t d = (int32_t)(to - (rel_at + 4));
    memcpy(e->buf + rel_at, &d, 4);
}
static inline void e_patch_here(struct fvm_emit *e, uint32_t rel_at) { e_patch(e, rel_at, e->at); }
static inline void e_jmp_to(struct fvm_emit *e, uint32_t to) { uint32_t r = e_jmp(e); e_patch(e, r, to); }

enum { CC_O, CC_NO, CC_B, CC_AE, CC_E, CC_NE, CC_BE, CC_A, CC_S, CC_NS, CC_P, CC_NP, CC_L, CC_GE, CC_LE, CC_G };

#endif
