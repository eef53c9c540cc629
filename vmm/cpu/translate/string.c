/*
 * string.c - the slow way of string instructions (devices, page crossings, translated code, ins/outs), and vector
 * instructions with many addresses (gathers, maskmovdqu): element by element through C's access to guest memory.
 *
 * A rep instruction does a bounded number of elements per call and then leaves rip where it is, so requests are seen.
 */
#include <string.h>

#include "vmm/cpu/operand.h"
#include "vmm/cpu/translate/engine.h"

#define ELEMENTS_PER_CALL 16 /* few: what made the fast way fail (translated code, say) is often gone after one */
#define ELEMENTS_SEGMENTED 256 /* there is no fast way */

bool fvm_insn_is_string(const struct fvm_insn *in)
{
    return in->z.meta.category == ZYDIS_CATEGORY_STRINGOP;
}

struct string_state {
    unsigned size, width; /* of an element, of an address: bytes */
    bool back;
    unsigned src_seg;
};

static uint64_t amask(const struct string_state *s, uint64_t x)
{
    return s->width == 8 ? x : s->width == 4 ? (uint32_t)x : (uint16_t)x;
}

static void step(struct fvm_vcpu *v, const struct string_state *s, unsigned reg)
{
    uint64_t x = v->regs[reg] + (uint64_t)(s->back ? -(int64_t)s->size : (int64_t)s->size);
    fvm_reg_set(v, reg, s->width, x);
}

static void set_compare_flags(struct fvm_vcpu *v, unsigned size, uint64_t a, uint64_t b)
{
    uint64_t f;
    unsigned shift = 64 - 8 * size; /* compare at the top: same flags but AF and PF, which come from the low byte */
    __asm__("cmpq %2, %1\n\tpushfq\n\tpopq %0" : "=r"(f) : "r"(a << shift), "r"(b << shift) : "cc");
    uint64_t low;
    __asm__("cmpb %b2, %b1\n\tpushfq\n\tpopq %0" : "=r"(low) : "q"(a), "q"(b) : "cc");
    f = (f & (FVM_F_CF | FVM_F_ZF | FVM_F_SF | FVM_F_OF)) | (low & (FVM_F_PF | FVM_F_AF));
    v->rflags = (v->rflags & ~(uint64_t)FVM_ARITH_FLAGS) | f;
}

static int one_element(struct fvm_vcpu *v, const struct fvm_insn *in, const struct string_state *s, struct fvm_fault *fault)
{
    uint64_t a = 0, b = 0;
    fvm_gva src = 0, dst = 0;
    unsigned n = s->size, op = in->z.opcode & 0xfe;
    uint16_t port = (uint16_t)v->regs[FVM_RDX];
    bool reads_src = op == 0xa4 || op == 0xa6 || op == 0xac || op == 0x6e, uses_dst = op != 0xac && op != 0x6e;
    bool writes = op == 0xa4 || op == 0xaa || op == 0x6c;
    if ((reads_src && fvm_segment_linear(v, s->src_seg, amask(s, v->regs[FVM_RSI]), n, false, &src, fault)) ||
        (uses_dst && fvm_segment_linear(v, FVM_ES, amask(s, v->regs[FVM_RDI]), n, writes, &dst, fault)))
        return FVM_FAULT;
    switch (op) {
    case 0xa4: /* movs */
        if (fvm_vmem_read(v, src, &a, n, FVM_AS_CPL, fault) || fvm_vmem_write(v, dst, &a, n, FVM_AS_CPL, fault))
            return FVM_FAULT;
        step(v, s, FVM_RSI), step(v, s, FVM_RDI);
        return 0;
    case 0xaa: /* stos */
        if (fvm_vmem_write(v, dst, &v->regs[FVM_RAX], n, FVM_AS_CPL, fault))
            return FVM_FAULT;
        step(v, s, FVM_RDI);
        return 0;
    case 0xac: /* lods */
        if (fvm_vmem_read(v, src, &a, n, FVM_AS_CPL, fault))
            return FVM_FAULT;
        fvm_reg_set(v, FVM_RAX, n, a);
        step(v, s, FVM_RSI);
        return 0;
    case 0xae: /* scas */
        if (fvm_vmem_read(v, dst, &b, n, FVM_AS_CPL, fault))
            return FVM_FAULT;
        set_compare_flags(v, n, v->regs[FVM_RAX], b);
        step(v, s, FVM_RDI);
        return 0;
    case 0xa6: /* cmps */
        if (fvm_vmem_read(v, src, &a, n, FVM_AS_CPL, fault) || fvm_vmem_read(v, dst, &b, n, FVM_AS_CPL, fault))
            return FVM_FAULT;
        set_compare_flags(v, n, a, b);
        step(v, s, FVM_RSI), step(v, s, FVM_RDI);
        return 0;
    case 0x6c: /* ins */
        if (fvm_vmem_probe(v, dst, n, FVM_W, FVM_AS_CPL, fault))
            return FVM_FAULT;
        a = fvm_bus_read(v->bus, FVM_BUS_PIO, port, n);
        if (fvm_vmem_write(v, dst, &a, n, FVM_AS_CPL, fault))
            return FVM_FAULT;
        step(v, s, FVM_RDI);
        return 0;
    default: /* outs */
        if (fvm_vmem_read(v, src, &a, n, FVM_AS_CPL, fault))
            return FVM_FAULT;
        fvm_bus_write(v->bus, FVM_BUS_PIO, port, n, a);
        step(v, s, FVM_RSI);
        return 0;
    }
}

int fvm_exec_string(struct fvm_vcpu *v, const struct fvm_insn *in, struct fvm_fault *fault)
{
    struct string_state s = {.size = in->z.opcode & 1 ? in->z.operand_width / 8u : 1, .width = in->z.address_width / 8u,
                             .back = (v->rflags & FVM_F_DF) != 0};
    uint64_t attr = in->z.attributes;
    bool io = in->z.meta.category == ZYDIS_CATEGORY_IOSTRINGOP;
    if (io && s.size == 8)
        s.size = 4;
    if (io && fvm_system_io_check(v, (uint16_t)v->regs[FVM_RDX], s.size, fault))
        return FVM_FAULT;
    s.src_seg = fvm_insn_segment(in);
    bool rep = (attr & (ZYDIS_ATTRIB_HAS_REP | ZYDIS_ATTRIB_HAS_REPE | ZYDIS_ATTRIB_HAS_REPNE)) != 0;
    bool compares = (in->z.opcode & 0xf6) == 0xa6;
    uint64_t next = v->rip + in->len;
    if (fvm_vcpu_code_bits(v) != 64)
        next = (uint32_t)next;
    unsigned most = fvm_mode_of(v) & FVM_MODE_SEG ? ELEMENTS_SEGMENTED : ELEMENTS_PER_CALL;
    for (unsigned n = 0; n < most; n++) {
        if (rep && !amask(&s, v->regs[FVM_RCX])) {
            v->rip = next;
            return 0;
        }
        if (one_element(v, in, &s, fault))
            return FVM_FAULT;
        if (!rep) {
            v->rip = next;
            return 0;
        }
        fvm_reg_set(v, FVM_RCX, s.width, v->regs[FVM_RCX] - 1);
        if (compares && !!(v->rflags & FVM_F_ZF) == !!(attr & ZYDIS_ATTRIB_HAS_REPNE)) {
            v->rip = next;
            return 0;
        }
    }
    return 0; /* rip stays: more to do */
}

/* ---- vector registers in the saved image (standard XSAVE format) ---- */

static void ymm_get(const struct fvm_vcpu *v, unsigned n, uint8_t out[32])
{
    uint64_t present;
    memcpy(&present, v->xsave + 512, 8);
    memset(out, 0, 32);
    if (present & 2)
        memcpy(out, v->xsave + 160 + 16 * n, 16);
    if (present & 4)
        memcpy(out + 16, v->xsave + 576 + 16 * n, 16);
}

static void ymm_set(struct fvm_vcpu *v, unsigned n, const uint8_t in[32])
{
    uint64_t present;
    memcpy(&present, v->xsave + 512, 8);
    if (!(present & 2))
        memset(v->xsave + 160, 0, 256);
    if (!(present & 4))
        memset(v->xsave + 576, 0, 256);
    present |= 6;
    memcpy(v->xsave + 160 + 16 * n, in, 16);
    memcpy(v->xsave + 576 + 16 * n, in + 16, 16);
    memcpy(v->xsave + 512, &present, 8);
}

static unsigned vector_number(ZydisRegister r)
{
    return (unsigned)(r >= ZYDIS_REGISTER_YMM0 ? r - ZYDIS_REGISTER_YMM0 : r - ZYDIS_REGISTER_XMM0) & 15;
}

int fvm_exec_gather(struct fvm_vcpu *v, const struct fvm_insn *in, struct fvm_fault *fault)
{
    const ZydisDecodedOperand *dst = &in->ops[0], *mem = &in->ops[1], *mask = &in->ops[2];
    bool wide_index = in->z.mnemonic == ZYDIS_MNEMONIC_VPGATHERQD || in->z.mnemonic == ZYDIS_MNEMONIC_VPGATHERQQ ||
                      in->z.mnemonic == ZYDIS_MNEMONIC_VGATHERQPS || in->z.mnemonic == ZYDIS_MNEMONIC_VGATHERQPD;
    bool wide_data = in->z.mnemonic == ZYDIS_MNEMONIC_VPGATHERDQ || in->z.mnemonic == ZYDIS_MNEMONIC_VPGATHERQQ ||
                     in->z.mnemonic == ZYDIS_MNEMONIC_VGATHERDPD || in->z.mnemonic == ZYDIS_MNEMONIC_VGATHERQPD;
    unsigned isz = wide_index ? 8 : 4, dsz = wide_data ? 8 : 4;
    unsigned bytes = in->z.avx.vector_length == 256 ? 32 : 16, count = bytes / FVM_MAX(isz, dsz);
    unsigned d = vector_number(dst->reg.value), m = vector_number(mask->reg.value), x = vector_number(mem->mem.index);
    uint8_t data[32], msk[32], idx[32];
    bool high;
    if (d == m || d == x || m == x) {
        *fault = (struct fvm_fault){.vector = FVM_EXC_UD};
        return FVM_FAULT;
    }
    ymm_get(v, d, data), ymm_get(v, m, msk), ymm_get(v, x, idx);
    uint64_t base = mem->mem.base == ZYDIS_REGISTER_NONE ? 0 : v->regs[fvm_decode_gpr(mem->mem.base, &high)];
    int seg = fvm_decode_seg(mem->mem.segment);
    base += (uint64_t)mem->mem.disp.value;
    int r = 0;
    for (unsigned k = 0; k < count && !r; k++) {
        if (msk[k * dsz + dsz - 1] & 0x80) {
            int64_t i = 0;
            uint8_t element[8]; /* complete or not there */
            if (wide_index)
                memcpy(&i, idx + 8 * k, 8);
            else
                i = (int32_t)((uint32_t)idx[4 * k] | (uint32_t)idx[4 * k + 1] << 8 | (uint32_t)idx[4 * k + 2] << 16 |
                              (uint32_t)idx[4 * k + 3] << 24);
            uint64_t off = base + (uint64_t)i * mem->mem.scale;
            fvm_gva va;
            off = in->z.address_width == 64 ? off : in->z.address_width == 32 ? (uint32_t)off : (uint16_t)off;
            r = fvm_segment_linear(v, seg < 0 ? FVM_DS : (unsigned)seg, off, dsz, false, &va, fault) ||
                fvm_vmem_read(v, va, element, dsz, FVM_AS_CPL, fault) ? FVM_FAULT : 0;
            if (!r)
                memcpy(data + k * dsz, element, dsz);
        }
        if (!r)
            memset(msk + k * dsz, 0, dsz);
    }
    if (!r) {
        memset(msk, 0, 32);
        unsigned used = count * dsz;
        memset(data + used, 0, 32 - used);
    }
    ymm_set(v, d, data), ymm_set(v, m, msk);
    return r;
}

bool fvm_insn_is_vmaskmov(const struct fvm_insn *in)
{
    return in->z.mnemonic == ZYDIS_MNEMONIC_VMASKMOVPS || in->z.mnemonic == ZYDIS_MNEMONIC_VMASKMOVPD ||
           in->z.mnemonic == ZYDIS_MNEMONIC_VPMASKMOVD || in->z.mnemonic == ZYDIS_MNEMONIC_VPMASKMOVQ;
}

/* Elements that are masked out are not accessed: they neither fault nor are written. */
int fvm_exec_vmaskmov(struct fvm_vcpu *v, const struct fvm_insn *in, struct fvm_fault *fault)
{
    bool store = in->ops[0].type == ZYDIS_OPERAND_TYPE_MEMORY;
    const ZydisDecodedOperand *mem = &in->ops[store ? 0 : 2], *mask = &in->ops[1], *reg = &in->ops[store ? 2 : 0];
    unsigned n = in->z.mnemonic == ZYDIS_MNEMONIC_VMASKMOVPS || in->z.mnemonic == ZYDIS_MNEMONIC_VPMASKMOVD ? 4 : 8;
    unsigned bytes = in->z.avx.vector_length == 256 ? 32 : 16, r = vector_number(reg->reg.value);
    uint8_t data[32] = {0}, msk[32];
    fvm_gva va = 0;
    ymm_get(v, vector_number(mask->reg.value), msk);
    if (store)
        ymm_get(v, r, data);
    bool any = false;
    for (unsigned k = 0; k < bytes; k += n)
        any |= msk[k + n - 1] >> 7;
    if (any && fvm_operand_linear(v, in, mem, 1, store, &va, fault))
        return FVM_FAULT;
    for (unsigned k = 0; k < bytes; k += n)
        if ((msk[k + n - 1] & 0x80) && (store ? fvm_vmem_probe(v, va + k, n, FVM_W, FVM_AS_CPL, fault)
                                              : fvm_vmem_read(v, va + k, data + k, n, FVM_AS_CPL, fault)))
            return FVM_FAULT;
    for (unsigned k = 0; k < bytes && store; k += n)
        if ((msk[k + n - 1] & 0x80) && fvm_vmem_write(v, va + k, data + k, n, FVM_AS_CPL, fault))
            return FVM_FAULT;
    if (!store)
        ymm_set(v, r, data);
    return 0;
}

int fvm_exec_maskmov(struct fvm_vcpu *v, const struct fvm_insn *in, struct fvm_fault *fault)
{
    uint64_t dst = v->regs[FVM_RDI];
    if (in->z.address_width != 64)
        dst = in->z.address_width == 32 ? (uint32_t)dst : (uint16_t)dst;
    const ZydisDecodedOperand *a = NULL, *b = NULL;
    for (unsigned k = 0; k < in->z.operand_count; k++)
        if (in->ops[k].type == ZYDIS_OPERAND_TYPE_REGISTER && in->ops[k].visibility == ZYDIS_OPERAND_VISIBILITY_EXPLICIT) {
            if (!a)
                a = &in->ops[k];
            else
                b = &in->ops[k];
        }
    if (!a || !b) {
        *fault = (struct fvm_fault){.vector = FVM_EXC_UD};
        return FVM_FAULT;
    }
    uint8_t data[32], mask[32];
    unsigned bytes = 16;
    if (in->z.mnemonic == ZYDIS_MNEMONIC_MASKMOVQ) {
        bytes = 8;
        if (fvm_exec_read_mm(v, a->reg.value - ZYDIS_REGISTER_MM0, b->reg.value - ZYDIS_REGISTER_MM0, data, fault))
            return FVM_FAULT;
        memcpy(mask, data + 8, 8);
    } else {
        ymm_get(v, vector_number(a->reg.value), data), ymm_get(v, vector_number(b->reg.value), mask);
    }
    fvm_gva va;
    if (fvm_segment_linear(v, fvm_insn_segment(in), dst, bytes, true, &va, fault) ||
        fvm_vmem_probe(v, va, bytes, FVM_W, FVM_AS_CPL, fault)) /* also for bytes that are masked out, as processors do */
        return FVM_FAULT;
    for (unsigned k = 0; k < bytes; k++)
        if ((mask[k] & 0x80) && fvm_vmem_write(v, va + k, data + k, 1, FVM_AS_CPL, fault))
            return FVM_FAULT;
    return 0;
}
