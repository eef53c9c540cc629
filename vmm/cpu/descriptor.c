/*
 * descriptor.c - reading and judging guest segment descriptors, and the segment registers' hidden parts.
 *
 * Tables are read with supervisor rights whatever the CPL, as the processor does. Accessed bits are written only when
 * clear: Linux keeps its GDT mapped read-only and presets them.
 * Source: Intel SDM vol. 3A, ch. 3 and 5.
 */
#include "vmm/cpu/descriptor.h"

#include "vmm/cpu/system.h"

int fvm_desc_fetch(struct fvm_vcpu *v, uint16_t sel, uint8_t vector, unsigned ext, struct fvm_desc *ret,
                   struct fvm_fault *fault)
{
    uint64_t base = v->gdtr.base;
    uint32_t limit = v->gdtr.limit;

    if (sel & 4) {
        if (!(v->ldtr.attr & FVM_A_P))
            return fvm_raise_sel(fault, vector, sel, ext);
        base = v->ldtr.base;
        limit = v->ldtr.limit;
    }
    if ((sel & ~7u) + 7u > limit)
        return fvm_raise_sel(fault, vector, sel, ext);
    ret->at = base + (sel & ~7u);
    ret->hi = 0;
    return fvm_vmem_read(v, ret->at, &ret->lo, 8, FVM_AS_SUPERVISOR, fault);
}

int fvm_desc_fetch_high(struct fvm_vcpu *v, uint16_t sel, struct fvm_desc *desc, struct fvm_fault *fault)
{
    uint32_t limit = sel & 4 ? v->ldtr.limit : v->gdtr.limit;

    if ((sel & ~7u) + 15u > limit)
        return fvm_raise_sel(fault, FVM_EXC_GP, sel, 0);
    return fvm_vmem_read(v, desc->at + 8, &desc->hi, 8, FVM_AS_SUPERVISOR, fault);
}

void fvm_desc_to_seg(const struct fvm_desc *d, uint16_t sel, struct fvm_seg *ret)
{
    uint32_t limit = (uint32_t)((d->lo & 0xffff) | ((d->lo >> 32) & 0xf0000));

    ret->sel = sel;
    ret->attr = fvm_desc_attr(d);
    ret->limit = ret->attr & FVM_A_G ? (limit << 12) | 0xfff : limit;
    ret->base = ((d->lo >> 16) & 0xffffff) | ((d->lo >> 32) & 0xff000000) | (d->hi << 32);
}

int fvm_desc_accessed(struct fvm_vcpu *v, struct fvm_desc *d, struct fvm_fault *fault)
{
    uint8_t type = (uint8_t)(d->lo >> 40);

    if (type & FVM_A_ACCESSED)
        return 0;
    type |= FVM_A_ACCESSED;
    if (fvm_vmem_write(v, d->at + 5, &type, 1, FVM_AS_SUPERVISOR, fault))
        return FVM_FAULT;
    d->lo |= 1ull << 40;
    return 0;
}

int fvm_desc_check_ss(const struct fvm_desc *d, uint16_t sel, unsigned cpl, uint8_t vector, unsigned ext,
                      struct fvm_fault *fault)
{
    uint16_t attr = fvm_desc_attr(d);

    if ((sel & 3u) != cpl || !fvm_is_data(attr) || !(attr & FVM_A_WRITABLE) || fvm_dpl(attr) != cpl)
        return fvm_raise_sel(fault, vector, sel, ext);
    if (!(attr & FVM_A_P))
        return fvm_raise_sel(fault, FVM_EXC_SS, sel, ext);
    return 0;
}

int fvm_desc_check_rip(const struct fvm_vcpu *v, const struct fvm_seg *cs, uint64_t rip, unsigned ext,
                       struct fvm_fault *fault)
{
    bool ok = fvm_vcpu_long(v) && (cs->attr & FVM_A_L) ? fvm_canonical(rip) : rip <= cs->limit;

    return ok ? 0 : fvm_raise(fault, FVM_EXC_GP, true, ext);
}

void fvm_seg_set(struct fvm_vcpu *v, unsigned seg, const struct fvm_seg *s)
{
    v->seg[seg] = *s;
    fvm_vcpu_set_seg_base(v, seg, s->base);
}

void fvm_seg_null(struct fvm_vcpu *v, unsigned seg, uint16_t sel)
{
    struct fvm_seg s = {.sel = sel};

    if (seg == FVM_SS) /* 64-bit mode runs on it: keep its privilege visible */
        s.attr = (uint16_t)((sel & 3u) << 5);
    fvm_seg_set(v, seg, &s);
}

void fvm_seg_real(struct fvm_vcpu *v, unsigned seg, uint16_t sel)
{
    v->seg[seg].sel = sel;
    fvm_vcpu_set_seg_base(v, seg, (uint64_t)sel << 4);
    if (seg == FVM_CS) /* real-mode code is a writable data segment to the processor */
        v->seg[seg].attr = FVM_A_P | FVM_A_S | 0x3;
}

void fvm_seg_v86(struct fvm_vcpu *v, unsigned seg, uint16_t sel)
{
    struct fvm_seg s = {.sel = sel, .attr = FVM_A_P | FVM_A_S | 0x63, .limit = 0xffff, .base = (uint64_t)sel << 4};

    fvm_seg_set(v, seg, &s);
}

void fvm_seg_drop_inner(struct fvm_vcpu *v)
{
    static const uint8_t data[] = {FVM_ES, FVM_DS, FVM_FS, FVM_GS};

    for (unsigned i = 0; i < FVM_ARRAY_SIZE(data); i++) {
        struct fvm_seg *s = &v->seg[data[i]];

        if (fvm_null_sel(s->sel) || !(s->attr & FVM_A_P))
            continue; /* FS and GS keep the base that an MSR gave them */
        if (fvm_dpl(s->attr) < v->cpl && (!fvm_is_code(s->attr) || !(s->attr & FVM_A_CONFORMING)))
            fvm_seg_null(v, data[i], 0);
    }
}

int fvm_tss_stack(struct fvm_vcpu *v, unsigned dpl, unsigned ist, uint16_t *ret_ss, uint64_t *ret_sp,
                  struct fvm_fault *fault)
{
    uint16_t ts = v->tr.sel;

    if (fvm_vcpu_long(v)) {
        uint32_t off = ist ? 0x24u + 8u * (ist - 1) : 4u + 8u * dpl;

        if (off + 7 > v->tr.limit)
            return fvm_raise_sel(fault, FVM_EXC_TS, ts, 0);
        *ret_ss = (uint16_t)dpl;
        return fvm_vmem_read(v, v->tr.base + off, ret_sp, 8, FVM_AS_SUPERVISOR, fault);
    }
    if ((v->tr.attr & 8) != 0) { /* 32-bit TSS */
        uint32_t sp_ss[2], off = 4 + 8 * dpl;

        if (off + 7 > v->tr.limit)
            return fvm_raise_sel(fault, FVM_EXC_TS, ts, 0);
        if (fvm_vmem_read(v, v->tr.base + off, sp_ss, 8, FVM_AS_SUPERVISOR, fault))
            return FVM_FAULT;
        *ret_sp = sp_ss[0];
        *ret_ss = (uint16_t)sp_ss[1];
    } else {
        uint16_t sp_ss[2];
        uint32_t off = 2 + 4 * dpl;

        if (off + 3 > v->tr.limit)
            return fvm_raise_sel(fault, FVM_EXC_TS, ts, 0);
        if (fvm_vmem_read(v, v->tr.base + off, sp_ss, 4, FVM_AS_SUPERVISOR, fault))
            return FVM_FAULT;
        *ret_sp = sp_ss[0];
        *ret_ss = sp_ss[1];
    }
    return 0;
}
