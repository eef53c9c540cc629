/*
 * iret.c - IRET in every mode.
 *
 * The whole frame is read and judged before anything changes.
 * Source: Intel SDM vol. 2A, IRET.
 */
#include <string.h>

#include "vmm/cpu/descriptor.h"
#include "vmm/cpu/operand.h"
#include "vmm/cpu/system.h"

#define FLAGS_ALWAYS                                                                                                   \
    (FVM_F_CF | FVM_F_PF | FVM_F_AF | FVM_F_ZF | FVM_F_SF | FVM_F_TF | FVM_F_DF | FVM_F_OF | FVM_F_NT | FVM_F_AC |     \
     FVM_F_ID)

struct frame {
    uint64_t rip, flags, rsp;
    uint16_t cs, ss;
};

/* RF is taken as read: there are no instruction breakpoints for it to suppress. */
static void set_flags(struct fvm_vcpu *v, uint64_t f, unsigned bytes, unsigned old_cpl)
{
    uint64_t mask = FLAGS_ALWAYS, old = fvm_vcpu_rflags(v);

    if (old_cpl == 0)
        mask |= FVM_F_IOPL | FVM_F_VIF | FVM_F_VIP;
    if (old_cpl <= fvm_iopl(v))
        mask |= FVM_F_IF;
    if (bytes == 2)
        mask &= 0xffff;
    fvm_vcpu_set_rflags(v, (old & ~mask & ~(uint64_t)FVM_F_RF) | (f & mask));
}

static void done(struct fvm_vcpu *v)
{
    v->nmi_blocked = 0;
    v->int_shadow = 0;
}

static int iret_real(struct fvm_vcpu *v, unsigned bytes, struct fvm_fault *fault)
{
    uint64_t w[3];

    if (fvm_vcpu_v86(v) && fvm_iopl(v) != 3)
        return fvm_raise_gp0(fault);
    if (fvm_stack_peek(v, 0, bytes, w, 3, fault))
        return FVM_FAULT;
    if (w[0] > 0xffff)
        return fvm_raise_gp0(fault);
    fvm_stack_move(v, 3 * bytes);
    v->rip = w[0];
    if (fvm_vcpu_v86(v)) {
        uint64_t iopl = v->rflags & FVM_F_IOPL;

        fvm_seg_v86(v, FVM_CS, (uint16_t)w[1]);
        set_flags(v, w[2], bytes, 3);
        v->rflags = (v->rflags & ~(uint64_t)FVM_F_IOPL) | iopl | FVM_F_VM;
    } else {
        fvm_seg_real(v, FVM_CS, (uint16_t)w[1]);
        set_flags(v, w[2], bytes, 0);
    }
    done(v);
    return 0;
}

static int iret_to_v86(struct fvm_vcpu *v, struct fvm_fault *fault)
{
    static const uint8_t order[] = {FVM_ES, FVM_DS, FVM_FS, FVM_GS};
    uint64_t w[9];

    if (fvm_stack_peek(v, 0, 4, w, 9, fault))
        return FVM_FAULT;
    if (w[0] > 0xffff)
        return fvm_raise_gp0(fault);
    fvm_vcpu_set_rflags(v, (w[2] & 0x3f7fd7) & ~(uint64_t)FVM_F_RF);
    v->rip = w[0];
    fvm_seg_v86(v, FVM_CS, (uint16_t)w[1]);
    v->regs[FVM_RSP] = (uint32_t)w[3];
    fvm_seg_v86(v, FVM_SS, (uint16_t)w[4]);
    for (unsigned i = 0; i < 4; i++)
        fvm_seg_v86(v, order[i], (uint16_t)w[5 + i]);
    v->cpl = 3;
    done(v);
    return 0;
}

/* CS of the frame, and SS unless it may be null. */
static int judge_cs(struct fvm_vcpu *v, const struct frame *f, struct fvm_seg *ret_cs, struct fvm_fault *fault)
{
    struct fvm_desc d;
    uint16_t attr;
    unsigned rpl = f->cs & 3u;

    if (fvm_null_sel(f->cs))
        return fvm_raise_gp0(fault);
    if (fvm_desc_fetch(v, f->cs, FVM_EXC_GP, 0, &d, fault))
        return FVM_FAULT;
    attr = fvm_desc_attr(&d);
    if (!fvm_is_code(attr) || rpl < v->cpl || (attr & FVM_A_CONFORMING ? fvm_dpl(attr) > rpl : fvm_dpl(attr) != rpl))
        return fvm_raise_sel(fault, FVM_EXC_GP, f->cs, 0);
    if (fvm_vcpu_long(v) && (attr & FVM_A_L) && (attr & FVM_A_D))
        return fvm_raise_sel(fault, FVM_EXC_GP, f->cs, 0);
    if (!(attr & FVM_A_P))
        return fvm_raise_sel(fault, FVM_EXC_NP, f->cs, 0);
    if (fvm_desc_accessed(v, &d, fault))
        return FVM_FAULT;
    fvm_desc_to_seg(&d, f->cs, ret_cs);
    return fvm_desc_check_rip(v, ret_cs, f->rip, 0, fault);
}

static int judge_ss(struct fvm_vcpu *v, const struct frame *f, const struct fvm_seg *cs, struct fvm_seg *ret_ss,
                    struct fvm_fault *fault)
{
    struct fvm_desc d;
    unsigned rpl = f->cs & 3u;

    if (fvm_null_sel(f->ss)) {
        if (!fvm_vcpu_long(v) || !(cs->attr & FVM_A_L) || rpl == 3 || (f->ss & 3u) != rpl)
            return fvm_raise_gp0(fault);
        *ret_ss = (struct fvm_seg){.sel = f->ss, .attr = (uint16_t)(rpl << 5)};
        return 0;
    }
    if (fvm_desc_fetch(v, f->ss, FVM_EXC_GP, 0, &d, fault) ||
        fvm_desc_check_ss(&d, f->ss, rpl, FVM_EXC_GP, 0, fault) || fvm_desc_accessed(v, &d, fault))
        return FVM_FAULT;
    fvm_desc_to_seg(&d, f->ss, ret_ss);
    return 0;
}

int fvm_event_iret(struct fvm_vcpu *v, unsigned bytes, struct fvm_fault *fault)
{
    uint64_t w[5];
    struct frame f;
    struct fvm_seg cs, ss;
    unsigned old_cpl = v->cpl;
    bool with_ss;

    if (fvm_vcpu_real(v) || fvm_vcpu_v86(v))
        return iret_real(v, bytes, fault);
    if (v->rflags & FVM_F_NT)
        return fvm_raise_gp0(fault); /* long mode has no tasks; elsewhere task.c's, see fvm_part_transfer */
    if (fvm_stack_peek(v, 0, bytes, w, 3, fault))
        return FVM_FAULT;
    f = (struct frame){.rip = w[0], .cs = (uint16_t)w[1], .flags = w[2]};
    if (bytes == 4 && (f.flags & FVM_F_VM) && !v->cpl && !fvm_vcpu_long(v))
        return iret_to_v86(v, fault);
    with_ss = fvm_vcpu_code_bits(v) == 64 || (f.cs & 3u) > v->cpl;
    if (with_ss) {
        if (fvm_stack_peek(v, 3 * bytes, bytes, w + 3, 2, fault))
            return FVM_FAULT;
        f.rsp = w[3];
        f.ss = (uint16_t)w[4];
    }
    if (judge_cs(v, &f, &cs, fault) || (with_ss && judge_ss(v, &f, &cs, &ss, fault)))
        return FVM_FAULT;

    set_flags(v, f.flags, bytes, old_cpl);
    v->rip = f.rip;
    fvm_seg_set(v, FVM_CS, &cs);
    v->cpl = f.cs & 3;
    if (with_ss) {
        fvm_seg_set(v, FVM_SS, &ss);
        if (bytes == 8 || (fvm_vcpu_long(v) && (cs.attr & FVM_A_L)))
            v->regs[FVM_RSP] = f.rsp;
        else if (bytes == 2 || !(ss.attr & FVM_A_D))
            v->regs[FVM_RSP] = (v->regs[FVM_RSP] & ~0xffffull) | (f.rsp & 0xffff);
        else
            v->regs[FVM_RSP] = (uint32_t)f.rsp;
    } else {
        fvm_stack_move(v, 3 * bytes);
    }
    if (v->cpl > old_cpl)
        fvm_seg_drop_inner(v);
    done(v);
    return 0;
}
