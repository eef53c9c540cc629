/*
 * task.c - hardware task switches: far jumps and calls to a TSS or a task gate, interrupts through task gates, IRET with NT.
 *
 * Up to the moment when the new TSS' contents are loaded a fault belongs to the old task and nothing has changed; from there on
 * faults are the new task's, at its first instruction. Not in long mode.
 * Source: Intel SDM vol. 3A, ch. 8 (Task Management).
 */
#include "vmm/cpu/task.h"

#include <string.h>

#include "vmm/cpu/descriptor.h"
#include "vmm/cpu/operand.h"

enum { BUSY = 2, TSS32_BYTES = 104, TSS16_BYTES = 44 };
enum { LINK32 = 0, CR3_32 = 28, EIP32 = 32, FLAGS32 = 36, REGS32 = 40, SEGS32 = 72, LDT32 = 96, TRAP32 = 100 };
enum { EIP16 = 14, FLAGS16 = 16, REGS16 = 18, SEGS16 = 34, LDT16 = 42 };
static const uint8_t seg_order[6] = {FVM_ES, FVM_CS, FVM_SS, FVM_DS, FVM_FS, FVM_GS};

struct task { /* as read from a TSS */
    uint32_t cr3, eip, flags, regs[8];
    uint16_t sel[6], ldt;
    bool big, trap;
};

static uint32_t get(const uint8_t *p, unsigned at, unsigned bytes)
{
    uint32_t x = 0;

    memcpy(&x, p + at, bytes);
    return x;
}
static void put(uint8_t *p, unsigned at, uint32_t x, unsigned bytes) { memcpy(p + at, &x, bytes); }

/* Only what a switch saves is written: the rest of a TSS is the operating system's. */
static int save_old(struct fvm_vcpu *v, uint32_t eip, uint64_t flags, struct fvm_fault *fault)
{
    bool big = v->tr.attr & 8;
    unsigned first = big ? EIP32 : EIP16, n = big ? SEGS32 + 24 - EIP32 : SEGS16 + 8 - EIP16, w = big ? 4 : 2;
    uint8_t image[80] = {0};

    put(image, 0, eip, w);
    put(image, w, (uint32_t)flags, w);
    for (unsigned i = 0; i < 8; i++)
        put(image, (2 + i) * w, (uint32_t)v->regs[i], w);
    for (unsigned i = 0; i < (big ? 6u : 4u); i++)
        put(image, (10 + i) * w, v->seg[seg_order[i]].sel, w);
    return fvm_vmem_write(v, v->tr.base + first, image, n, FVM_AS_SUPERVISOR, fault);
}

static int read_new(struct fvm_vcpu *v, const struct fvm_seg *tss, struct task *ret, struct fvm_fault *fault)
{
    uint8_t p[TSS32_BYTES];

    *ret = (struct task){.big = tss->attr & 8};
    if (fvm_vmem_read(v, tss->base, p, ret->big ? TSS32_BYTES : TSS16_BYTES, FVM_AS_SUPERVISOR, fault))
        return FVM_FAULT;
    if (ret->big) {
        ret->cr3 = get(p, CR3_32, 4);
        ret->eip = get(p, EIP32, 4);
        ret->flags = get(p, FLAGS32, 4);
        ret->ldt = (uint16_t)get(p, LDT32, 2);
        ret->trap = get(p, TRAP32, 2) & 1;
    } else {
        ret->eip = get(p, EIP16, 2);
        ret->flags = get(p, FLAGS16, 2);
        ret->ldt = (uint16_t)get(p, LDT16, 2);
    }
    for (unsigned i = 0; i < 8; i++)
        ret->regs[i] = ret->big ? get(p, REGS32 + 4 * i, 4) : 0xffff0000u | get(p, REGS16 + 2 * i, 2);
    for (unsigned i = 0; i < (ret->big ? 6u : 4u); i++)
        ret->sel[i] = (uint16_t)get(p, (ret->big ? SEGS32 + 4 * i : SEGS16 + 2 * i), 2);
    return 0;
}

static int set_busy(struct fvm_vcpu *v, uint16_t sel, bool busy, struct fvm_fault *fault)
{
    fvm_gva at = v->gdtr.base + (sel & ~7u) + 5;
    uint8_t type;

    if (fvm_vmem_read(v, at, &type, 1, FVM_AS_SUPERVISOR, fault))
        return FVM_FAULT;
    type = (uint8_t)(busy ? type | BUSY : type & ~BUSY);
    return fvm_vmem_write(v, at, &type, 1, FVM_AS_SUPERVISOR, fault);
}

/* ---- the new task's segments: faults are #TS now ---- */

static int load_ldt(struct fvm_vcpu *v, uint16_t sel, unsigned ext, struct fvm_fault *fault)
{
    struct fvm_desc d;

    v->ldtr = (struct fvm_seg){.sel = sel};
    if (fvm_null_sel(sel))
        return 0;
    if ((sel & 4) || fvm_desc_fetch(v, sel, FVM_EXC_TS, ext, &d, fault))
        return sel & 4 ? fvm_raise_sel(fault, FVM_EXC_TS, sel, ext) : FVM_FAULT;
    if ((fvm_desc_attr(&d) & (FVM_A_S | FVM_A_TYPE)) != FVM_T_LDT || !(fvm_desc_attr(&d) & FVM_A_P))
        return fvm_raise_sel(fault, FVM_EXC_TS, sel, ext);
    fvm_desc_to_seg(&d, sel, &v->ldtr);
    return 0;
}

static int load_code(struct fvm_vcpu *v, uint16_t sel, unsigned ext, struct fvm_fault *fault)
{
    struct fvm_desc d;
    struct fvm_seg s;
    uint16_t attr;
    unsigned rpl = sel & 3u;

    if (fvm_null_sel(sel))
        return fvm_raise_sel(fault, FVM_EXC_TS, sel, ext);
    if (fvm_desc_fetch(v, sel, FVM_EXC_TS, ext, &d, fault))
        return FVM_FAULT;
    attr = fvm_desc_attr(&d);
    if (!fvm_is_code(attr) || (attr & FVM_A_CONFORMING ? fvm_dpl(attr) > rpl : fvm_dpl(attr) != rpl))
        return fvm_raise_sel(fault, FVM_EXC_TS, sel, ext);
    if (!(attr & FVM_A_P))
        return fvm_raise_sel(fault, FVM_EXC_NP, sel, ext);
    if (fvm_desc_accessed(v, &d, fault))
        return FVM_FAULT;
    fvm_desc_to_seg(&d, sel, &s);
    fvm_seg_set(v, FVM_CS, &s);
    return 0;
}

static int load_stack(struct fvm_vcpu *v, uint16_t sel, unsigned ext, struct fvm_fault *fault)
{
    struct fvm_desc d;
    struct fvm_seg s;

    if (fvm_null_sel(sel))
        return fvm_raise_sel(fault, FVM_EXC_TS, sel, ext);
    if (fvm_desc_fetch(v, sel, FVM_EXC_TS, ext, &d, fault) ||
        fvm_desc_check_ss(&d, sel, v->cpl, FVM_EXC_TS, ext, fault) || fvm_desc_accessed(v, &d, fault))
        return FVM_FAULT;
    fvm_desc_to_seg(&d, sel, &s);
    fvm_seg_set(v, FVM_SS, &s);
    return 0;
}

static int load_data(struct fvm_vcpu *v, unsigned seg, uint16_t sel, unsigned ext, struct fvm_fault *fault)
{
    struct fvm_desc d;
    struct fvm_seg s;
    uint16_t attr;
    bool code;

    if (fvm_null_sel(sel))
        return 0;
    if (fvm_desc_fetch(v, sel, FVM_EXC_TS, ext, &d, fault))
        return FVM_FAULT;
    attr = fvm_desc_attr(&d);
    code = fvm_is_code(attr);
    if (!(attr & FVM_A_S) || (code && !(attr & FVM_A_READABLE)) ||
        (!(code && (attr & FVM_A_CONFORMING)) && fvm_dpl(attr) < FVM_MAX(sel & 3u, (unsigned)v->cpl)))
        return fvm_raise_sel(fault, FVM_EXC_TS, sel, ext);
    if (!(attr & FVM_A_P))
        return fvm_raise_sel(fault, FVM_EXC_NP, sel, ext);
    if (fvm_desc_accessed(v, &d, fault))
        return FVM_FAULT;
    fvm_desc_to_seg(&d, sel, &s);
    fvm_seg_set(v, seg, &s);
    return 0;
}

static int load_segments(struct fvm_vcpu *v, const struct task *t, unsigned ext, struct fvm_fault *fault)
{
    for (unsigned i = 0; i < 6; i++) { /* a segment that faults below stays unusable */
        struct fvm_seg s = {.sel = t->sel[i]};

        if (t->flags & FVM_F_VM)
            fvm_seg_v86(v, seg_order[i], t->sel[i]);
        else
            fvm_seg_set(v, seg_order[i], &s);
    }
    v->cpl = t->flags & FVM_F_VM ? 3 : t->sel[1] & 3;
    if (load_ldt(v, t->ldt, ext, fault))
        return FVM_FAULT;
    if (t->flags & FVM_F_VM)
        return 0;
    if (load_code(v, t->sel[1], ext, fault) || load_stack(v, t->sel[2], ext, fault))
        return FVM_FAULT;
    for (unsigned i = 0; i < 6; i++)
        if (seg_order[i] != FVM_CS && seg_order[i] != FVM_SS && load_data(v, seg_order[i], t->sel[i], ext, fault))
            return FVM_FAULT;
    return fvm_desc_check_rip(v, &v->seg[FVM_CS], t->eip, ext, fault);
}

/* ---- the switch ---- */

enum how { HOW_JUMP, HOW_NEST, HOW_RETURN };

/* The TSS that sel names: available, or busy for a return. */
static int judge_tss(struct fvm_vcpu *v, uint16_t sel, bool busy, unsigned ext, uint8_t vector, struct fvm_seg *ret,
                     struct fvm_fault *fault)
{
    struct fvm_desc d;
    unsigned type;

    if (fvm_null_sel(sel) || (sel & 4))
        return fvm_raise_sel(fault, vector, sel, ext);
    if (fvm_desc_fetch(v, sel, vector, ext, &d, fault))
        return FVM_FAULT;
    type = fvm_desc_attr(&d) & (FVM_A_S | FVM_A_TYPE);
    if ((type & ~(BUSY | 8u)) != FVM_T_TSS16 || !!(type & BUSY) != busy)
        return fvm_raise_sel(fault, vector, sel, ext);
    if (!(fvm_desc_attr(&d) & FVM_A_P))
        return fvm_raise_sel(fault, FVM_EXC_NP, sel, ext);
    fvm_desc_to_seg(&d, sel, ret);
    if (ret->limit < (type & 8 ? TSS32_BYTES : TSS16_BYTES) - 1u)
        return fvm_raise_sel(fault, FVM_EXC_TS, sel, ext);
    return 0;
}

static int switch_to(struct fvm_vcpu *v, const struct fvm_seg *tss, enum how how, uint32_t next_eip, uint64_t flags, unsigned ext,
                     struct fvm_fault *fault)
{
    struct task t;
    uint16_t link = v->tr.sel;

    if (how == HOW_RETURN)
        flags &= ~(uint64_t)FVM_F_NT;
    if (fvm_vmem_probe(v, tss->base, tss->attr & 8 ? TSS32_BYTES : TSS16_BYTES, FVM_W, FVM_AS_SUPERVISOR, fault) ||
        read_new(v, tss, &t, fault) || save_old(v, next_eip, flags, fault))
        return FVM_FAULT;
    if ((how != HOW_NEST && set_busy(v, v->tr.sel, false, fault)) || (how != HOW_RETURN && set_busy(v, tss->sel, true, fault)) ||
        (how == HOW_NEST && fvm_vmem_write(v, tss->base, &link, 2, FVM_AS_SUPERVISOR, fault)))
        return FVM_FAULT;
    /* the new task begins */
    v->tr = *tss;
    v->tr.attr |= BUSY;
    v->cr0 |= FVM_CR0_TS;
    v->dr[7] &= ~0x155ull; /* local breakpoints are the old task's */
    if (t.big && (v->cr0 & FVM_CR0_PG) && t.cr3 != v->cr3 && fvm_control_write_cr(v, 3, t.cr3, fault))
        return FVM_FAULT;
    fvm_vcpu_set_rflags(v, (t.flags & (t.big ? 0x3f7fd7u : 0x7fd7u)) | (how == HOW_NEST ? FVM_F_NT : 0));
    v->rip = t.eip;
    for (unsigned i = 0; i < 8; i++)
        v->regs[i] = t.regs[i];
    v->int_shadow = 0;
    if (load_segments(v, &t, ext, fault))
        return FVM_FAULT;
    if (t.trap) {
        v->dr[6] |= 0x8000; /* BT */
        return fvm_raise(fault, FVM_EXC_DB, false, 0);
    }
    return 0;
}

bool fvm_task_possible(const struct fvm_vcpu *v) { return !fvm_vcpu_real(v) && !fvm_vcpu_v86(v) && !fvm_vcpu_long(v); }

int fvm_task_far(struct fvm_vcpu *v, uint16_t sel, bool call, uint64_t next_rip, struct fvm_fault *fault)
{
    struct fvm_desc d;
    struct fvm_seg tss;
    uint16_t target = sel;
    unsigned type, attr;

    if (fvm_null_sel(sel) || fvm_desc_fetch(v, sel, FVM_EXC_GP, 0, &d, fault))
        return FVM_TASK_NOT; /* whoever comes next says so */
    attr = fvm_desc_attr(&d);
    type = attr & (FVM_A_S | FVM_A_TYPE);
    if (type != FVM_T_TASK_GATE && (type & ~(BUSY | 8u)) != FVM_T_TSS16)
        return FVM_TASK_NOT;
    if (fvm_dpl((uint16_t)attr) < FVM_MAX((unsigned)v->cpl, sel & 3u))
        return fvm_raise_sel(fault, FVM_EXC_GP, sel, 0);
    if (type == FVM_T_TASK_GATE) {
        if (!(attr & FVM_A_P))
            return fvm_raise_sel(fault, FVM_EXC_NP, sel, 0);
        target = (uint16_t)(d.lo >> 16);
    }
    if (judge_tss(v, target, false, 0, FVM_EXC_GP, &tss, fault))
        return FVM_FAULT;
    return switch_to(v, &tss, call ? HOW_NEST : HOW_JUMP, (uint32_t)next_rip, fvm_vcpu_rflags(v), 0, fault);
}

int fvm_task_event(struct fvm_vcpu *v, uint16_t sel, uint64_t flags, bool has_code, uint32_t code, unsigned ext,
                   struct fvm_fault *fault)
{
    struct fvm_seg tss;
    uint64_t word = code;

    if (judge_tss(v, sel, false, ext, FVM_EXC_GP, &tss, fault) ||
        switch_to(v, &tss, HOW_NEST, (uint32_t)v->rip, flags, ext, fault))
        return FVM_FAULT;
    return has_code ? fvm_stack_push(v, tss.attr & 8 ? 4 : 2, &word, 1, fault) : 0;
}

int fvm_task_return(struct fvm_vcpu *v, uint64_t next_rip, struct fvm_fault *fault)
{
    struct fvm_seg tss;
    uint16_t link;

    if (fvm_vmem_read(v, v->tr.base + LINK32, &link, 2, FVM_AS_SUPERVISOR, fault) ||
        judge_tss(v, link, true, 0, FVM_EXC_TS, &tss, fault) ||
        switch_to(v, &tss, HOW_RETURN, (uint32_t)next_rip, fvm_vcpu_rflags(v), 0, fault))
        return FVM_FAULT;
    v->nmi_blocked = 0;
    return 0;
}
