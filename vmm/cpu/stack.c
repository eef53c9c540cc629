/*
 * stack.c - linear addresses of segment offsets, and the guest's stack, for C code. Safe for fast helpers.
 */
#include "base/copy.h"
#include "vmm/cpu/descriptor.h"
#include "vmm/cpu/operand.h"

int fvm_segment_linear(struct fvm_vcpu *v, unsigned seg, uint64_t off, unsigned len, bool write, fvm_gva *ret_va,
                       struct fvm_fault *fault)
{
    const struct fvm_seg *s = &v->seg[seg];
    uint8_t vector = seg == FVM_SS ? FVM_EXC_SS : FVM_EXC_GP;
    uint64_t last;

    if (fvm_vcpu_code_bits(v) == 64) {
        uint64_t va = seg == FVM_FS || seg == FVM_GS ? s->base + off : off;

        if (!fvm_canonical(va) || !fvm_canonical(va + len - 1))
            return fvm_raise(fault, vector, true, 0);
        *ret_va = va;
        return 0;
    }
    off &= 0xffffffff;
    last = off + len - 1;
    if (!fvm_vcpu_real(v)) {
        bool code = fvm_is_code(s->attr);

        if (!(s->attr & FVM_A_P) || (write && (code || !(s->attr & FVM_A_WRITABLE))) ||
            (!write && code && !(s->attr & FVM_A_READABLE)))
            return fvm_raise(fault, vector, true, 0);
        if (!code && (s->attr & FVM_A_DOWN)) {
            if (off <= s->limit || last > (s->attr & FVM_A_D ? 0xffffffff : 0xffff))
                return fvm_raise(fault, vector, true, 0);
            *ret_va = (uint32_t)(s->base + off);
            return 0;
        }
    }
    if (last > s->limit)
        return fvm_raise(fault, vector, true, 0);
    *ret_va = (uint32_t)(s->base + off);
    return 0;
}


static uint64_t stack_mask(const struct fvm_vcpu *v)
{
    if (fvm_vcpu_code_bits(v) == 64)
        return ~0ull;
    return v->seg[FVM_SS].attr & FVM_A_D ? 0xffffffff : 0xffff;
}

static int stack_linear(struct fvm_vcpu *v, int64_t delta, unsigned len, bool write, fvm_gva *ret_va,
                        struct fvm_fault *fault)
{
    uint64_t off = (v->regs[FVM_RSP] + (uint64_t)delta) & stack_mask(v);

    return fvm_segment_linear(v, FVM_SS, off, len, write, ret_va, fault);
}

/* Words that one access can take: all n, or one at a time where the stack pointer wraps between them. */
static unsigned stack_run(const struct fvm_vcpu *v, int64_t delta, unsigned bytes, unsigned n)
{
    uint64_t mask = stack_mask(v), off = (v->regs[FVM_RSP] + (uint64_t)delta) & mask;

    return mask != ~0ull && off + n * bytes - 1 > mask ? 1 : n;
}

int fvm_stack_peek(struct fvm_vcpu *v, unsigned skip_bytes, unsigned bytes, uint64_t *ret_words, unsigned n,
                   struct fvm_fault *fault)
{
    unsigned run = stack_run(v, skip_bytes, bytes, n);
    uint8_t buf[16 * 8];
    fvm_gva va;

    fvm_assert(n * bytes <= sizeof(buf));
    for (unsigned i = 0; i < n; i += run) {
        if (stack_linear(v, (int64_t)skip_bytes + i * bytes, run * bytes, false, &va, fault) ||
            fvm_vmem_read(v, va, buf + i * bytes, run * bytes, FVM_AS_CPL, fault))
            return FVM_FAULT;
    }
    for (unsigned i = 0; i < n; i++) {
        ret_words[i] = 0;
        fvm_copy_small(&ret_words[i], buf + i * bytes, bytes);
    }
    return 0;
}

void fvm_stack_move(struct fvm_vcpu *v, int64_t bytes)
{
    uint64_t mask = stack_mask(v), sp = v->regs[FVM_RSP];

    v->regs[FVM_RSP] = (sp & ~mask) | ((sp + (uint64_t)bytes) & mask);
}

int fvm_stack_push(struct fvm_vcpu *v, unsigned bytes, const uint64_t *words, unsigned n, struct fvm_fault *fault)
{
    int64_t low = -(int64_t)(n * bytes);
    unsigned run = stack_run(v, low, bytes, n);
    uint8_t buf[16 * 8];
    fvm_gva va;

    fvm_assert(n * bytes <= sizeof(buf));
    for (unsigned i = 0; i < n; i++)
        fvm_copy_small(buf + (n - 1 - i) * bytes, &words[i], bytes);
    for (unsigned i = 0; i < n; i += run) {
        if (stack_linear(v, low + i * bytes, run * bytes, true, &va, fault) ||
            fvm_vmem_write(v, va, buf + i * bytes, run * bytes, FVM_AS_CPL, fault))
            return FVM_FAULT;
    }
    fvm_stack_move(v, low);
    return 0;
}
