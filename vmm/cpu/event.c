/*
 * event.c - exceptions and interrupts through the guest's IDT, and the way back (IRET).
 *
 * One attempt (enter_*) either changes nothing and says which fault it met, or is done; fvm_event_deliver combines
 * attempts as the SDM's double-fault table says. Task gates lead to task.c.
 * Source: Intel SDM vol. 3A, ch. 6; IRET and INT n in vol. 2A.
 */

#include "base/copy.h"
#include "vmm/cpu/descriptor.h"
#include "vmm/cpu/event.h"
#include "vmm/cpu/operand.h"

struct gate {
    uint16_t sel;
    uint16_t attr; /* as descriptor bits 40..55 */
    unsigned ist;
    uint64_t off;
};

static uint64_t frame_flags(const struct fvm_vcpu *v, const struct fvm_event *e)
{
    uint64_t f = fvm_vcpu_rflags(v);

    return e->kind == FVM_EVENT_FAULT && e->vector != FVM_EXC_DB && e->vector != FVM_EXC_DF ? f | FVM_F_RF : f;
}

static void enter_flags(struct fvm_vcpu *v, bool mask)
{
    v->rflags &= ~(uint64_t)(FVM_F_TF | FVM_F_NT | FVM_F_RF | FVM_F_VM);
    if (mask)
        v->iflag = 0;
}

static int read_gate(struct fvm_vcpu *v, const struct fvm_event *e, struct gate *ret, struct fvm_fault *fault)
{
    bool lng = fvm_vcpu_long(v);
    uint32_t size = lng ? 16 : 8, code = e->vector * 8u + 2u + e->ext;
    uint64_t d[2] = {0, 0};
    unsigned type;

    if (e->vector * size + size - 1 > v->idtr.limit)
        return fvm_raise(fault, FVM_EXC_GP, true, code);
    if (fvm_vmem_read(v, v->idtr.base + e->vector * size, d, size, FVM_AS_SUPERVISOR, fault))
        return FVM_FAULT;
    ret->attr = (uint16_t)((d[0] >> 40) & 0xff);
    ret->sel = (uint16_t)(d[0] >> 16);
    ret->ist = lng ? (unsigned)(d[0] >> 32) & 7u : 0;
    ret->off = (d[0] & 0xffff) | ((d[0] >> 32) & 0xffff0000) | (d[1] << 32);
    type = ret->attr & 0x1fu; /* with S */
    if (type != FVM_T_INT && type != FVM_T_TRAP &&
        (lng || (type != FVM_T_INT16 && type != FVM_T_TRAP16 && type != FVM_T_TASK_GATE)))
        return fvm_raise(fault, FVM_EXC_GP, true, code);
    if (type == FVM_T_INT16 || type == FVM_T_TRAP16)
        ret->off &= 0xffff;
    if (e->check_dpl && fvm_dpl(ret->attr) < v->cpl)
        return fvm_raise(fault, FVM_EXC_GP, true, code);
    if (!(ret->attr & FVM_A_P))
        return fvm_raise(fault, FVM_EXC_NP, true, code);
    return 0;
}

/* The handler's code segment and the ring it runs in. */
static int target_cs(struct fvm_vcpu *v, const struct fvm_event *e, const struct gate *g, struct fvm_seg *ret_cs,
                     unsigned *ret_cpl, struct fvm_fault *fault)
{
    struct fvm_desc d;
    uint16_t attr;

    if (fvm_null_sel(g->sel))
        return fvm_raise(fault, FVM_EXC_GP, true, e->ext);
    if (fvm_desc_fetch(v, g->sel, FVM_EXC_GP, e->ext, &d, fault))
        return FVM_FAULT;
    attr = fvm_desc_attr(&d);
    if (!fvm_is_code(attr) || fvm_dpl(attr) > v->cpl)
        return fvm_raise_sel(fault, FVM_EXC_GP, g->sel, e->ext);
    if (fvm_vcpu_long(v) && (attr & (FVM_A_L | FVM_A_D)) != FVM_A_L)
        return fvm_raise_sel(fault, FVM_EXC_GP, g->sel, e->ext);
    if (!(attr & FVM_A_P))
        return fvm_raise_sel(fault, FVM_EXC_NP, g->sel, e->ext);
    *ret_cpl = attr & FVM_A_CONFORMING ? v->cpl : fvm_dpl(attr);
    if (fvm_vcpu_v86(v) && *ret_cpl)
        return fvm_raise_sel(fault, FVM_EXC_GP, g->sel, e->ext);
    if (fvm_desc_accessed(v, &d, fault))
        return FVM_FAULT;
    fvm_desc_to_seg(&d, (uint16_t)((g->sel & ~3u) | *ret_cpl), ret_cs);
    return fvm_desc_check_rip(v, ret_cs, g->off, e->ext, fault);
}

static int enter_long(struct fvm_vcpu *v, const struct fvm_event *e, struct fvm_fault *fault)
{
    struct gate g;
    struct fvm_seg cs;
    unsigned cpl, n = 0;
    uint64_t sp = v->regs[FVM_RSP], frame[6];
    uint16_t ss;

    if (read_gate(v, e, &g, fault) || target_cs(v, e, &g, &cs, &cpl, fault))
        return FVM_FAULT;
    if ((g.ist || cpl < v->cpl) && fvm_tss_stack(v, cpl, g.ist, &ss, &sp, fault))
        return FVM_FAULT;
    if (!fvm_canonical(sp))
        return fvm_raise(fault, FVM_EXC_SS, true, e->ext);
    sp &= ~15ull;
    if (e->has_code)
        frame[n++] = e->code;
    frame[n++] = v->rip;
    frame[n++] = v->seg[FVM_CS].sel;
    frame[n++] = frame_flags(v, e);
    frame[n++] = v->regs[FVM_RSP];
    frame[n++] = v->seg[FVM_SS].sel;
    sp -= n * 8;
    if (fvm_vmem_write(v, sp, frame, n * 8, cpl == 3 ? FVM_AS_CPL : FVM_AS_SUPERVISOR, fault))
        return FVM_FAULT;
    v->regs[FVM_RSP] = sp;
    v->rip = g.off;
    fvm_seg_set(v, FVM_CS, &cs);
    if (cpl < v->cpl)
        fvm_seg_null(v, FVM_SS, (uint16_t)cpl);
    v->cpl = (uint8_t)cpl;
    enter_flags(v, !(g.attr & 1));
    return 0;
}

/* Write n words (first = top of the new stack, that is lowest address) below sp in segment ss. */
static int push_frame(struct fvm_vcpu *v, const struct fvm_seg *ss, uint64_t *sp, const uint64_t *words, unsigned n,
                      unsigned width, unsigned cpl, unsigned ext, struct fvm_fault *fault)
{
    uint8_t buf[16 * 8];
    uint64_t mask = ss->attr & FVM_A_D ? 0xffffffff : 0xffff, at = (*sp - n * width) & mask, last = at + n * width - 1;
    bool down = (ss->attr & FVM_A_CODE) == 0 && (ss->attr & FVM_A_DOWN) != 0;

    if (down ? at <= ss->limit || last > mask : last > ss->limit)
        return fvm_raise(fault, FVM_EXC_SS, true, ext);
    for (unsigned i = 0; i < n; i++)
        fvm_copy_small(buf + i * width, &words[i], width);
    if (fvm_vmem_write(v, (uint32_t)(ss->base + at), buf, n * width, cpl == 3 ? FVM_AS_CPL : FVM_AS_SUPERVISOR, fault))
        return FVM_FAULT;
    *sp = (*sp & ~mask) | at;
    return 0;
}

static int inner_ss(struct fvm_vcpu *v, const struct fvm_event *e, unsigned cpl, struct fvm_seg *ret_ss,
                    uint64_t *ret_sp, struct fvm_fault *fault)
{
    struct fvm_desc d;
    uint16_t sel;

    if (fvm_tss_stack(v, cpl, 0, &sel, ret_sp, fault))
        return FVM_FAULT;
    if (fvm_null_sel(sel))
        return fvm_raise(fault, FVM_EXC_TS, true, e->ext);
    if (fvm_desc_fetch(v, sel, FVM_EXC_TS, e->ext, &d, fault) ||
        fvm_desc_check_ss(&d, sel, cpl, FVM_EXC_TS, e->ext, fault) || fvm_desc_accessed(v, &d, fault))
        return FVM_FAULT;
    fvm_desc_to_seg(&d, sel, ret_ss);
    return 0;
}

static int enter_protected(struct fvm_vcpu *v, const struct fvm_event *e, struct fvm_fault *fault)
{
    struct gate g;
    struct fvm_seg cs, ss = v->seg[FVM_SS];
    unsigned cpl, n = 0, width;
    uint64_t sp = v->regs[FVM_RSP], w[10];
    bool v86 = fvm_vcpu_v86(v);

    if (read_gate(v, e, &g, fault))
        return FVM_FAULT;
    if ((g.attr & 0x1f) == FVM_T_TASK_GATE) {
        if (v->in_fast) {
            v->fast_gave_up = 1;
            return fvm_raise_gp0(fault);
        }
        return v->task_event(v, g.sel, frame_flags(v, e), e->has_code, e->code, e->ext, fault);
    }
    if (target_cs(v, e, &g, &cs, &cpl, fault))
        return FVM_FAULT;
    if (cpl < v->cpl && inner_ss(v, e, cpl, &ss, &sp, fault))
        return FVM_FAULT;
    width = g.attr & 8 ? 4 : 2;
    if (e->has_code)
        w[n++] = e->code;
    w[n++] = v->rip;
    w[n++] = v->seg[FVM_CS].sel;
    w[n++] = frame_flags(v, e);
    if (cpl < v->cpl) {
        w[n++] = v->regs[FVM_RSP];
        w[n++] = v->seg[FVM_SS].sel;
    }
    if (v86) {
        w[n++] = v->seg[FVM_ES].sel;
        w[n++] = v->seg[FVM_DS].sel;
        w[n++] = v->seg[FVM_FS].sel;
        w[n++] = v->seg[FVM_GS].sel;
    }
    if (push_frame(v, &ss, &sp, w, n, width, cpl, e->ext, fault))
        return FVM_FAULT;
    v->regs[FVM_RSP] = sp;
    v->rip = g.off;
    fvm_seg_set(v, FVM_CS, &cs);
    if (cpl < v->cpl)
        fvm_seg_set(v, FVM_SS, &ss);
    if (v86) {
        fvm_seg_null(v, FVM_ES, 0);
        fvm_seg_null(v, FVM_DS, 0);
        fvm_seg_null(v, FVM_FS, 0);
        fvm_seg_null(v, FVM_GS, 0);
    }
    v->cpl = (uint8_t)cpl;
    enter_flags(v, !(g.attr & 1));
    return 0;
}

static int enter_real(struct fvm_vcpu *v, const struct fvm_event *e, struct fvm_fault *fault)
{
    uint16_t ivt[2];
    uint64_t frame[3] = {fvm_vcpu_rflags(v), v->seg[FVM_CS].sel, v->rip};

    if (e->vector * 4u + 3u > v->idtr.limit)
        return fvm_raise(fault, FVM_EXC_GP, false, 0);
    if (fvm_vmem_read(v, v->idtr.base + e->vector * 4u, ivt, 4, FVM_AS_SUPERVISOR, fault) ||
        fvm_stack_push(v, 2, frame, 3, fault))
        return FVM_FAULT;
    v->rip = ivt[0];
    fvm_seg_real(v, FVM_CS, ivt[1]);
    v->rflags &= ~(uint64_t)FVM_F_AC;
    enter_flags(v, true);
    return 0;
}

int fvm_event_try(struct fvm_vcpu *v, const struct fvm_event *e, struct fvm_fault *fault)
{
    if (fvm_vcpu_real(v))
        return enter_real(v, e, fault);
    return fvm_vcpu_long(v) ? enter_long(v, e, fault) : enter_protected(v, e, fault);
}

int fvm_event_soft(struct fvm_vcpu *v, unsigned vector, uint64_t next_rip, bool check_dpl, struct fvm_fault *fault)
{
    struct fvm_event e = {.kind = FVM_EVENT_TRAP_SOFT, .vector = (uint8_t)vector, .check_dpl = check_dpl};
    uint64_t rip = v->rip;

    v->rip = next_rip;
    if (fvm_event_try(v, &e, fault) == 0)
        return 0;
    v->rip = rip;
    return FVM_FAULT;
}
