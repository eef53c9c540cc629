/*
 * xsave.c - XSAVE, XSAVEOPT, XRSTOR, FXSAVE, FXRSTOR between guest memory and v->xsave.
 *
 * v->xsave is a standard-format image written by the host's XSAVE64: XSTATE_BV says which components are in use, and
 * what is not in use has its initial value whatever the bytes say; MXCSR is always valid. Here only the copying rules are
 * done, never arithmetic, so the result does not depend on the host but for XSTATE_BV being a superset.
 * FCS and FDS are stored as 0, as CPUID.7.EBX[13] promises. Source: Intel SDM vol. 1, ch. 13.
 */
#include <string.h>

#include "vmm/cpu/system_part.h"

enum { X87 = 1, SSE = 2, AVX = 4 };
enum { OFF_FIP = 8, OFF_MXCSR = 24, OFF_ST = 32, OFF_XMM = 160, OFF_LEGACY_END = 416, OFF_HEADER = 512, OFF_AVX = 576,
       AVX_BYTES = 256 };
#define MXCSR_MASK 0xffffu

static uint64_t in_use(const struct fvm_vcpu *v)
{
    uint64_t bv;

    memcpy(&bv, v->xsave + OFF_HEADER, 8);
    return bv;
}

static void set_in_use(struct fvm_vcpu *v, uint64_t bv)
{
    memset(v->xsave + OFF_HEADER, 0, 64);
    memcpy(v->xsave + OFF_HEADER, &bv, 8);
}

/* Image of the guest's present state with initial values filled in, as an instruction of that width would store it. */
static void compose(const struct fvm_vcpu *v, bool wide, uint8_t *image)
{
    uint64_t used = in_use(v);
    uint32_t mask = MXCSR_MASK;

    memcpy(image, v->xsave, FVM_XSAVE_BYTES);
    if (!(used & X87)) {
        memset(image, 0, OFF_MXCSR);
        image[0] = 0x7f;
        image[1] = 0x03;
        memset(image + OFF_ST, 0, OFF_XMM - OFF_ST);
    }
    if (!wide) {
        memset(image + OFF_FIP + 4, 0, 4);
        memset(image + OFF_FIP + 12, 0, 4);
    }
    memcpy(image + OFF_MXCSR + 4, &mask, 4);
    if (!(used & SSE))
        memset(image + OFF_XMM, 0, OFF_LEGACY_END - OFF_XMM);
    if (!(used & AVX))
        memset(image + OFF_AVX, 0, AVX_BYTES);
}

/* Take the x87 part of an image. */
static void take_x87(struct fvm_vcpu *v, const uint8_t *image, bool wide)
{
    memcpy(v->xsave, image, OFF_MXCSR);
    if (!wide) {
        memset(v->xsave + OFF_FIP + 4, 0, 4);
        memset(v->xsave + OFF_FIP + 12, 0, 4);
    }
    for (unsigned i = 0; i < 8; i++) /* ten bytes each; the rest is reserved */
        memcpy(v->xsave + OFF_ST + 16 * i, image + OFF_ST + 16 * i, 10);
}

static bool mxcsr_bad(const uint8_t *image)
{
    uint32_t x;

    memcpy(&x, image + OFF_MXCSR, 4);
    return (x & ~MXCSR_MASK) != 0;
}

static int area(struct fvm_vcpu *v, const struct fvm_insn *insn, unsigned len, unsigned align, bool write,
                fvm_gva *ret_va, struct fvm_fault *fault)
{
    if (insn->ops[0].type != ZYDIS_OPERAND_TYPE_MEMORY)
        return fvm_raise_ud(fault);
    if (fvm_operand_linear(v, insn, &insn->ops[0], len, write, ret_va, fault))
        return FVM_FAULT;
    return *ret_va & (align - 1) ? fvm_raise_gp0(fault) : 0;
}

/* Registers that exist in this mode: 16 vector registers in 64-bit mode, else 8. */
static unsigned vectors(const struct fvm_vcpu *v) { return fvm_vcpu_code_bits(v) == 64 ? 16 : 8; }

static int put(struct fvm_vcpu *v, fvm_gva va, const uint8_t *image, unsigned off, unsigned len,
               struct fvm_fault *fault)
{
    return fvm_vmem_write(v, va + off, image + off, len, FVM_AS_CPL, fault);
}

static int fxsave(struct fvm_vcpu *v, const struct fvm_insn *insn, bool wide, struct fvm_fault *fault)
{
    uint8_t image[FVM_XSAVE_BYTES];
    fvm_gva va;

    if (area(v, insn, 512, 16, true, &va, fault))
        return FVM_FAULT;
    compose(v, wide, image);
    return put(v, va, image, 0, OFF_XMM + 16 * vectors(v), fault);
}

static int fxrstor(struct fvm_vcpu *v, const struct fvm_insn *insn, bool wide, struct fvm_fault *fault)
{
    uint8_t image[512];
    fvm_gva va;

    if (area(v, insn, 512, 16, false, &va, fault) || fvm_vmem_read(v, va, image, 512, FVM_AS_CPL, fault))
        return FVM_FAULT;
    if (mxcsr_bad(image))
        return fvm_raise_gp0(fault);
    if (!(in_use(v) & SSE)) /* what this mode cannot name keeps its value: zero */
        memset(v->xsave + OFF_XMM, 0, OFF_LEGACY_END - OFF_XMM);
    take_x87(v, image, wide);
    memcpy(v->xsave + OFF_MXCSR, image + OFF_MXCSR, 4);
    memcpy(v->xsave + OFF_XMM, image + OFF_XMM, 16 * vectors(v));
    set_in_use(v, in_use(v) | X87 | SSE);
    return 0;
}

static uint64_t requested(const struct fvm_vcpu *v)
{
    return (v->regs[FVM_RDX] << 32 | (uint32_t)v->regs[FVM_RAX]) & v->xcr0;
}

static int xsave(struct fvm_vcpu *v, const struct fvm_insn *insn, bool wide, bool opt, struct fvm_fault *fault)
{
    uint64_t rfbm = requested(v), used = in_use(v), store = opt ? rfbm & used : rfbm, bv;
    unsigned len = rfbm & AVX ? FVM_XSAVE_BYTES : OFF_AVX;
    uint8_t image[FVM_XSAVE_BYTES];
    fvm_gva va;

    if (area(v, insn, len, 64, true, &va, fault) || fvm_vmem_probe(v, va, len, FVM_W, FVM_AS_CPL, fault) ||
        fvm_vmem_read(v, va + OFF_HEADER, &bv, 8, FVM_AS_CPL, fault))
        return FVM_FAULT;
    compose(v, wide, image);
    bv = (bv & ~rfbm) | (used & rfbm);
    memcpy(image + OFF_HEADER, &bv, 8);
    if ((store & X87) && (put(v, va, image, 0, OFF_MXCSR, fault) || put(v, va, image, OFF_ST, OFF_XMM - OFF_ST, fault)))
        return FVM_FAULT;
    if ((rfbm & (SSE | AVX)) && put(v, va, image, OFF_MXCSR, 8, fault))
        return FVM_FAULT;
    if ((store & SSE) && put(v, va, image, OFF_XMM, 16 * vectors(v), fault))
        return FVM_FAULT;
    if ((store & AVX) && put(v, va, image, OFF_AVX, 16 * vectors(v), fault))
        return FVM_FAULT;
    return put(v, va, image, OFF_HEADER, 8, fault);
}

static bool header_bad(const struct fvm_vcpu *v, const uint8_t *header)
{
    uint64_t w[3];

    memcpy(w, header, sizeof(w));
    return (w[0] & ~v->xcr0) || w[1] || w[2]; /* XCOMP_BV: no compacted form in any model */
}

static int xrstor(struct fvm_vcpu *v, const struct fvm_insn *insn, bool wide, struct fvm_fault *fault)
{
    uint64_t rfbm = requested(v), used = in_use(v), bv, load;
    unsigned len = rfbm & AVX ? FVM_XSAVE_BYTES : OFF_AVX, n = 16 * vectors(v);
    uint8_t image[FVM_XSAVE_BYTES], own[FVM_XSAVE_BYTES];
    fvm_gva va;

    if (area(v, insn, len, 64, false, &va, fault) || fvm_vmem_read(v, va, image, len, FVM_AS_CPL, fault))
        return FVM_FAULT;
    if (header_bad(v, image + OFF_HEADER) || ((rfbm & (SSE | AVX)) && mxcsr_bad(image)))
        return fvm_raise_gp0(fault);
    memcpy(&bv, image + OFF_HEADER, 8);
    load = rfbm & bv;
    if (n != 256) { /* registers 8..15 keep their values: make them explicit first */
        compose(v, true, own);
        memcpy(v->xsave + OFF_XMM, own + OFF_XMM, 256);
        memcpy(v->xsave + OFF_AVX, own + OFF_AVX, 256);
        if (rfbm & ~bv & SSE)
            memset(v->xsave + OFF_XMM, 0, n);
        if (rfbm & ~bv & AVX)
            memset(v->xsave + OFF_AVX, 0, n);
        used |= SSE | AVX;
        bv |= SSE | AVX;
    }
    if (load & X87)
        take_x87(v, image, wide);
    if (rfbm & (SSE | AVX))
        memcpy(v->xsave + OFF_MXCSR, image + OFF_MXCSR, 4);
    if (load & SSE)
        memcpy(v->xsave + OFF_XMM, image + OFF_XMM, n);
    if (load & AVX)
        memcpy(v->xsave + OFF_AVX, image + OFF_AVX, n);
    set_in_use(v, (used & ~rfbm) | (bv & rfbm));
    return 0;
}

int fvm_part_xsave(struct fvm_vcpu *v, const struct fvm_insn *insn, struct fvm_fault *fault)
{
    ZydisMnemonic m = insn->z.mnemonic;
    bool fx = m == ZYDIS_MNEMONIC_FXSAVE || m == ZYDIS_MNEMONIC_FXSAVE64 || m == ZYDIS_MNEMONIC_FXRSTOR ||
              m == ZYDIS_MNEMONIC_FXRSTOR64;

    if (!fx && !(v->cr4 & FVM_CR4_OSXSAVE))
        return fvm_raise_ud(fault);
    if (v->cr0 & (fx ? FVM_CR0_TS | FVM_CR0_EM : FVM_CR0_TS))
        return fvm_raise(fault, FVM_EXC_NM, false, 0);
    switch (m) {
    case ZYDIS_MNEMONIC_FXSAVE:
        return fxsave(v, insn, false, fault);
    case ZYDIS_MNEMONIC_FXSAVE64:
        return fxsave(v, insn, true, fault);
    case ZYDIS_MNEMONIC_FXRSTOR:
        return fxrstor(v, insn, false, fault);
    case ZYDIS_MNEMONIC_FXRSTOR64:
        return fxrstor(v, insn, true, fault);
    case ZYDIS_MNEMONIC_XSAVE:
        return xsave(v, insn, false, false, fault);
    case ZYDIS_MNEMONIC_XSAVE64:
        return xsave(v, insn, true, false, fault);
    case ZYDIS_MNEMONIC_XSAVEOPT:
        return xsave(v, insn, false, true, fault);
    case ZYDIS_MNEMONIC_XSAVEOPT64:
        return xsave(v, insn, true, true, fault);
    case ZYDIS_MNEMONIC_XRSTOR:
        return xrstor(v, insn, false, fault);
    case ZYDIS_MNEMONIC_XRSTOR64:
        return xrstor(v, insn, true, fault);
    default:
        return fvm_raise_ud(fault);
    }
}
