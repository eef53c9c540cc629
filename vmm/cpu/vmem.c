/*
 * vmem.c - C code's access to guest linear memory.
 *
 * Goes page by page through the same shadow table as translated code, so that rights, A/D bits, page versions and
 * code protection can't differ between the two. An access that crosses pages faults before the first byte is written.
 * Not here: segment bases and limits (operand.c).
 */

#include "base/copy.h"
#include "vmm/cpu/descriptor.h"
#include "vmm/cpu/system.h"

enum place_kind { PLACE_RAM, PLACE_MMIO, PLACE_CODE };

struct place {
    enum place_kind kind;
    uint8_t *hva; /* RAM */
    fvm_gpa gpa;  /* MMIO, CODE */
};

static int resolve(struct fvm_vcpu *v, fvm_gva va, unsigned want, bool user, struct place *ret, struct fvm_fault *fault)
{
    unsigned right = want & FVM_W ? (user ? FVM_S_UW : FVM_S_KW) : (user ? FVM_S_UR : FVM_S_KR);
    uint64_t entry = fvm_shadow_peek(v->shadow, va);

    ret->kind = PLACE_RAM;
    if (!(entry & right)) {
        switch (fvm_shadow_miss(v->shadow, va, want | (user ? FVM_USER : 0), &entry, &ret->gpa, fault)) {
        case FVM_SHADOW_OK:
            break;
        case FVM_SHADOW_FAULT:
            return FVM_FAULT;
        case FVM_SHADOW_MMIO:
            ret->kind = PLACE_MMIO;
            return 0;
        case FVM_SHADOW_CODE:
            ret->kind = PLACE_CODE;
            return 0;
        }
    }
    ret->hva = (uint8_t *)(uintptr_t)(va + (entry & ~0xffull));
    return 0;
}

/* Linear address as this mode has it; false: not canonical. */
static bool linear(const struct fvm_vcpu *v, fvm_gva *va)
{
    if (fvm_vcpu_long(v))
        return fvm_canonical(*va);
    *va &= 0xffffffff;
    return true;
}

static size_t page_rest(fvm_gva va, size_t len)
{
    size_t rest = FVM_PAGE_SIZE - (va & FVM_PAGE_MASK);

    return FVM_MIN(rest, len);
}

/* Not plain RAM: to vmem_device.c, or back with "gave up" when a fast helper asked. */
static int elsewhere(struct fvm_vcpu *v, const struct place *p, void *buf, size_t len, bool write, struct fvm_fault *fault)
{
    if (v->in_fast) {
        v->fast_gave_up = 1;
        return fvm_raise_gp0(fault);
    }
    v->vmem_device(v, p->gpa, buf, len, write, p->kind == PLACE_CODE);
    return 0;
}

int fvm_vmem_read(struct fvm_vcpu *v, fvm_gva va, void *buf, size_t len, enum fvm_vmem_as as, struct fvm_fault *fault)
{
    bool user = as == FVM_AS_CPL && v->cpl == 3;
    uint8_t *out = buf;

    while (len) {
        struct place p;
        size_t n = page_rest(va, len);

        if (!linear(v, &va))
            return fvm_raise_gp0(fault);
        if (resolve(v, va, FVM_R, user, &p, fault))
            return FVM_FAULT;
        if (p.kind == PLACE_RAM)
            fvm_copy_small(out, p.hva, n);
        else if (elsewhere(v, &p, out, n, false, fault))
            return FVM_FAULT;
        out += n;
        va += n;
        len -= n;
    }
    return 0;
}

int fvm_vmem_probe(struct fvm_vcpu *v, fvm_gva va, size_t len, unsigned want, enum fvm_vmem_as as,
                   struct fvm_fault *fault)
{
    bool user = as == FVM_AS_CPL && v->cpl == 3;

    while (len) {
        struct place p;
        size_t n = page_rest(va, len);

        if (!linear(v, &va))
            return fvm_raise_gp0(fault);
        if (resolve(v, va, want & (FVM_R | FVM_W), user, &p, fault))
            return FVM_FAULT;
        va += n;
        len -= n;
    }
    return 0;
}

int fvm_vmem_write(struct fvm_vcpu *v, fvm_gva va, const void *buf, size_t len, enum fvm_vmem_as as,
                   struct fvm_fault *fault)
{
    bool user = as == FVM_AS_CPL && v->cpl == 3;
    const uint8_t *in = buf;

    if (page_rest(va, len) < len && fvm_vmem_probe(v, va, len, FVM_W, as, fault))
        return FVM_FAULT;
    while (len) {
        struct place p;
        size_t n = page_rest(va, len);

        if (!linear(v, &va))
            return fvm_raise_gp0(fault);
        if (resolve(v, va, FVM_W, user, &p, fault))
            return FVM_FAULT;
        if (p.kind == PLACE_RAM)
            fvm_copy_small(p.hva, in, n);
        else if (elsewhere(v, &p, (void *)(uintptr_t)in, n, true, fault))
            return FVM_FAULT;
        in += n;
        va += n;
        len -= n;
    }
    return 0;
}
