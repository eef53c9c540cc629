/*
 * segment.c - loading segment registers, and far transfers of control.
 *
 * Everything is judged before anything changes. Call gates are followed (also to an inner ring); task gates and TSS
 * descriptors as targets are task.c's, before anybody asks here.
 * Source: Intel SDM vol. 2A (MOV, CALL, JMP, RET), vol. 3A ch. 5.
 */
#include "vmm/cpu/segment.h"

#include "vmm/cpu/descriptor.h"
#include "vmm/cpu/operand.h"

static bool selector_style(const struct fvm_vcpu *v) { return fvm_vcpu_real(v) || fvm_vcpu_v86(v); }

static void load_style(struct fvm_vcpu *v, unsigned seg, uint16_t sel)
{
    if (fvm_vcpu_v86(v))
        fvm_seg_v86(v, seg, sel);
    else
        fvm_seg_real(v, seg, sel);
}

int fvm_segment_judge(struct fvm_vcpu *v, unsigned seg, uint16_t sel, struct fvm_seg *ret, struct fvm_fault *fault)
{
    struct fvm_desc d;
    uint16_t attr;
    unsigned rpl = sel & 3u;

    if (fvm_null_sel(sel)) {
        if (seg == FVM_SS && (fvm_vcpu_code_bits(v) != 64 || v->cpl == 3 || rpl != v->cpl))
            return fvm_raise_gp0(fault);
        *ret = (struct fvm_seg){.sel = sel, .attr = seg == FVM_SS ? (uint16_t)(rpl << 5) : 0};
        return 0;
    }
    if (fvm_desc_fetch(v, sel, FVM_EXC_GP, 0, &d, fault))
        return FVM_FAULT;
    attr = fvm_desc_attr(&d);
    if (seg == FVM_SS) {
        if (fvm_desc_check_ss(&d, sel, v->cpl, FVM_EXC_GP, 0, fault))
            return FVM_FAULT;
    } else {
        bool code = fvm_is_code(attr);

        if (!(attr & FVM_A_S) || (code && !(attr & FVM_A_READABLE)))
            return fvm_raise_sel(fault, FVM_EXC_GP, sel, 0);
        if (!(code && (attr & FVM_A_CONFORMING)) && fvm_dpl(attr) < FVM_MAX(rpl, (unsigned)v->cpl))
            return fvm_raise_sel(fault, FVM_EXC_GP, sel, 0);
        if (!(attr & FVM_A_P))
            return fvm_raise_sel(fault, FVM_EXC_NP, sel, 0);
    }
    if (fvm_desc_accessed(v, &d, fault))
        return FVM_FAULT;
    fvm_desc_to_seg(&d, sel, ret);
    return 0;
}

int fvm_segment_load(struct fvm_vcpu *v, unsigned seg, uint16_t sel, struct fvm_fault *fault)
{
    struct fvm_seg s;

    if (selector_style(v)) {
        load_style(v, seg, sel);
        return 0;
    }
    if (fvm_segment_judge(v, seg, sel, &s, fault))
        return FVM_FAULT;
    fvm_seg_set(v, seg, &s);
    return 0;
}

/* Code segment for a jump or call at the present ring. */
static int judge_code(struct fvm_vcpu *v, struct fvm_desc *d, uint16_t sel, struct fvm_seg *ret,
                      struct fvm_fault *fault)
{
    uint16_t attr = fvm_desc_attr(d);

    if (!fvm_is_code(attr))
        return fvm_raise_sel(fault, FVM_EXC_GP, sel, 0);
    if (attr & FVM_A_CONFORMING ? fvm_dpl(attr) > v->cpl : (sel & 3u) > v->cpl || fvm_dpl(attr) != v->cpl)
        return fvm_raise_sel(fault, FVM_EXC_GP, sel, 0);
    if (fvm_vcpu_long(v) && (attr & FVM_A_L) && (attr & FVM_A_D))
        return fvm_raise_sel(fault, FVM_EXC_GP, sel, 0);
    if (!(attr & FVM_A_P))
        return fvm_raise_sel(fault, FVM_EXC_NP, sel, 0);
    if (fvm_desc_accessed(v, d, fault))
        return FVM_FAULT;
    fvm_desc_to_seg(d, (uint16_t)((sel & ~3u) | v->cpl), ret);
    return 0;
}

struct call_gate {
    uint16_t sel;
    uint64_t off;
    unsigned bytes;  /* of a pushed word */
    unsigned params; /* words to copy */
};

static int read_call_gate(struct fvm_vcpu *v, struct fvm_desc *d, uint16_t sel, struct call_gate *ret,
                          struct fvm_fault *fault)
{
    uint16_t attr = fvm_desc_attr(d);
    unsigned type = attr & FVM_A_TYPE;

    if (type != FVM_T_CALL && (type != FVM_T_CALL16 || fvm_vcpu_long(v)))
        return fvm_raise_sel(fault, FVM_EXC_GP, sel, 0);
    if (fvm_dpl(attr) < FVM_MAX(sel & 3u, (unsigned)v->cpl))
        return fvm_raise_sel(fault, FVM_EXC_GP, sel, 0);
    if (!(attr & FVM_A_P))
        return fvm_raise_sel(fault, FVM_EXC_NP, sel, 0);
    if (fvm_vcpu_long(v) && fvm_desc_fetch_high(v, sel, d, fault))
        return FVM_FAULT;
    ret->sel = (uint16_t)(d->lo >> 16);
    ret->off = (d->lo & 0xffff) | ((d->lo >> 32) & 0xffff0000) | (d->hi << 32);
    ret->bytes = fvm_vcpu_long(v) ? 8 : type == FVM_T_CALL ? 4 : 2;
    ret->params = fvm_vcpu_long(v) ? 0 : (unsigned)(d->lo >> 32) & 0x1f;
    if (type == FVM_T_CALL16)
        ret->off &= 0xffff;
    return 0;
}

/* Code segment behind a call gate. *ret_cpl < v->cpl: inner ring (only for calls). */
static int judge_gate_code(struct fvm_vcpu *v, const struct call_gate *g, bool call, struct fvm_seg *ret_cs,
                           unsigned *ret_cpl, struct fvm_fault *fault)
{
    struct fvm_desc d;
    uint16_t attr;
    bool bad;

    if (fvm_null_sel(g->sel))
        return fvm_raise_gp0(fault);
    if (fvm_desc_fetch(v, g->sel, FVM_EXC_GP, 0, &d, fault))
        return FVM_FAULT;
    attr = fvm_desc_attr(&d);
    bad = !fvm_is_code(attr) || fvm_dpl(attr) > v->cpl;
    if (!call && !(attr & FVM_A_CONFORMING) && fvm_dpl(attr) != v->cpl)
        bad = true;
    if (fvm_vcpu_long(v) && (attr & (FVM_A_L | FVM_A_D)) != FVM_A_L)
        bad = true;
    if (bad)
        return fvm_raise_sel(fault, FVM_EXC_GP, g->sel, 0);
    if (!(attr & FVM_A_P))
        return fvm_raise_sel(fault, FVM_EXC_NP, g->sel, 0);
    if (fvm_desc_accessed(v, &d, fault))
        return FVM_FAULT;
    *ret_cpl = attr & FVM_A_CONFORMING ? v->cpl : fvm_dpl(attr);
    fvm_desc_to_seg(&d, (uint16_t)((g->sel & ~3u) | *ret_cpl), ret_cs);
    return fvm_desc_check_rip(v, ret_cs, g->off, 0, fault);
}

static uint64_t truncate_to(uint64_t x, unsigned bytes)
{
    return bytes == 8 ? x : bytes == 4 ? (uint32_t)x : (uint16_t)x;
}

int fvm_segment_far_jump(struct fvm_vcpu *v, uint16_t sel, uint64_t off, unsigned operand_bytes,
                         struct fvm_fault *fault)
{
    struct fvm_desc d;
    struct fvm_seg cs;
    struct call_gate g;
    unsigned cpl;

    off = truncate_to(off, operand_bytes);
    if (selector_style(v)) {
        if (off > v->seg[FVM_CS].limit)
            return fvm_raise_gp0(fault);
        load_style(v, FVM_CS, sel);
        v->rip = off;
        return 0;
    }
    if (fvm_null_sel(sel))
        return fvm_raise_gp0(fault);
    if (fvm_desc_fetch(v, sel, FVM_EXC_GP, 0, &d, fault))
        return FVM_FAULT;
    if (fvm_desc_attr(&d) & FVM_A_S) {
        if (judge_code(v, &d, sel, &cs, fault) || fvm_desc_check_rip(v, &cs, off, 0, fault))
            return FVM_FAULT;
    } else {
        if (read_call_gate(v, &d, sel, &g, fault) || judge_gate_code(v, &g, false, &cs, &cpl, fault))
            return FVM_FAULT;
        off = g.off;
    }
    fvm_seg_set(v, FVM_CS, &cs);
    v->rip = off;
    return 0;
}

/* Call through a gate to an inner ring: the stack comes from the TSS. */
static int gate_call_inner(struct fvm_vcpu *v, const struct call_gate *g, const struct fvm_seg *cs, unsigned cpl,
                           uint64_t next_rip, struct fvm_fault *fault)
{
    struct fvm_seg ss, old_ss = v->seg[FVM_SS], old_cs = v->seg[FVM_CS];
    struct fvm_desc d;
    uint64_t sp, words[36], params[32], old_sp = v->regs[FVM_RSP];
    uint8_t old_cpl = v->cpl;
    uint16_t sel;
    unsigned n = 0;

    if (fvm_tss_stack(v, cpl, 0, &sel, &sp, fault))
        return FVM_FAULT;
    if (fvm_vcpu_long(v)) {
        ss = (struct fvm_seg){.sel = (uint16_t)cpl, .attr = (uint16_t)(cpl << 5)};
    } else {
        if (fvm_null_sel(sel))
            return fvm_raise(fault, FVM_EXC_TS, true, 0);
        if (fvm_desc_fetch(v, sel, FVM_EXC_TS, 0, &d, fault) ||
            fvm_desc_check_ss(&d, sel, cpl, FVM_EXC_TS, 0, fault) || fvm_desc_accessed(v, &d, fault))
            return FVM_FAULT;
        fvm_desc_to_seg(&d, sel, &ss);
    }
    for (unsigned i = 0; i < g->params; i++)
        if (fvm_stack_peek(v, i * g->bytes, g->bytes, &params[i], 1, fault))
            return FVM_FAULT;
    words[n++] = old_ss.sel;
    words[n++] = old_sp;
    for (unsigned i = g->params; i-- > 0;)
        words[n++] = params[i];
    words[n++] = old_cs.sel;
    words[n++] = next_rip;
    v->seg[FVM_CS] = *cs; /* the pushes are made in the gate's mode and ring */
    v->seg[FVM_SS] = ss;
    v->regs[FVM_RSP] = sp;
    v->cpl = (uint8_t)cpl;
    for (unsigned i = 0; i < n; i++) {
        if (fvm_stack_push(v, g->bytes, &words[i], 1, fault)) {
            v->seg[FVM_CS] = old_cs;
            v->seg[FVM_SS] = old_ss;
            v->regs[FVM_RSP] = old_sp;
            v->cpl = old_cpl;
            return FVM_FAULT;
        }
    }
    v->rip = g->off;
    return 0;
}

int fvm_segment_far_call(struct fvm_vcpu *v, uint16_t sel, uint64_t off, unsigned operand_bytes, uint64_t next_rip,
                         struct fvm_fault *fault)
{
    uint64_t ret[2] = {v->seg[FVM_CS].sel, next_rip};
    struct fvm_desc d;
    struct fvm_seg cs;
    struct call_gate g;
    unsigned cpl;

    off = truncate_to(off, operand_bytes);
    if (selector_style(v)) {
        if (off > v->seg[FVM_CS].limit)
            return fvm_raise_gp0(fault);
        if (fvm_stack_push(v, operand_bytes, ret, 2, fault))
            return FVM_FAULT;
        load_style(v, FVM_CS, sel);
        v->rip = off;
        return 0;
    }
    if (fvm_null_sel(sel))
        return fvm_raise_gp0(fault);
    if (fvm_desc_fetch(v, sel, FVM_EXC_GP, 0, &d, fault))
        return FVM_FAULT;
    if (fvm_desc_attr(&d) & FVM_A_S) {
        if (judge_code(v, &d, sel, &cs, fault) || fvm_desc_check_rip(v, &cs, off, 0, fault))
            return FVM_FAULT;
    } else {
        if (read_call_gate(v, &d, sel, &g, fault) || judge_gate_code(v, &g, true, &cs, &cpl, fault))
            return FVM_FAULT;
        if (cpl < v->cpl)
            return gate_call_inner(v, &g, &cs, cpl, next_rip, fault);
        operand_bytes = g.bytes;
        off = g.off;
    }
    if (fvm_stack_push(v, operand_bytes, ret, 2, fault))
        return FVM_FAULT;
    fvm_seg_set(v, FVM_CS, &cs);
    v->rip = off;
    return 0;
}

static int ret_style(struct fvm_vcpu *v, const uint64_t w[2], unsigned bytes, unsigned pop_bytes,
                     struct fvm_fault *fault)
{
    if (w[0] > v->seg[FVM_CS].limit)
        return fvm_raise_gp0(fault);
    fvm_stack_move(v, 2 * bytes + pop_bytes);
    load_style(v, FVM_CS, (uint16_t)w[1]);
    v->rip = w[0];
    return 0;
}

/* The part of a far return that goes to an outer ring: SS:RSP of the frame above the parameters. */
static int ret_outer(struct fvm_vcpu *v, const struct fvm_seg *cs, uint64_t rip, unsigned bytes, unsigned pop_bytes,
                     struct fvm_fault *fault)
{
    unsigned rpl = cs->sel & 3u;
    uint64_t w[2];
    struct fvm_seg ss;
    struct fvm_desc d;
    uint16_t sel;

    if (fvm_stack_peek(v, 2 * bytes + pop_bytes, bytes, w, 2, fault))
        return FVM_FAULT;
    sel = (uint16_t)w[1];
    if (fvm_null_sel(sel)) {
        if (!fvm_vcpu_long(v) || !(cs->attr & FVM_A_L) || rpl == 3 || (sel & 3u) != rpl)
            return fvm_raise_gp0(fault);
        ss = (struct fvm_seg){.sel = sel, .attr = (uint16_t)(rpl << 5)};
    } else {
        if (fvm_desc_fetch(v, sel, FVM_EXC_GP, 0, &d, fault) ||
            fvm_desc_check_ss(&d, sel, rpl, FVM_EXC_GP, 0, fault) || fvm_desc_accessed(v, &d, fault))
            return FVM_FAULT;
        fvm_desc_to_seg(&d, sel, &ss);
    }
    fvm_seg_set(v, FVM_CS, cs);
    fvm_seg_set(v, FVM_SS, &ss);
    v->rip = rip;
    v->cpl = (uint8_t)rpl;
    v->regs[FVM_RSP] = w[0];
    fvm_stack_move(v, pop_bytes);
    fvm_seg_drop_inner(v);
    return 0;
}

int fvm_segment_far_ret(struct fvm_vcpu *v, unsigned bytes, unsigned pop_bytes, struct fvm_fault *fault)
{
    uint64_t w[2];
    struct fvm_desc d;
    struct fvm_seg cs;
    uint16_t sel, attr;
    unsigned rpl;

    if (fvm_stack_peek(v, 0, bytes, w, 2, fault))
        return FVM_FAULT;
    if (selector_style(v))
        return ret_style(v, w, bytes, pop_bytes, fault);
    sel = (uint16_t)w[1];
    rpl = sel & 3u;
    if (fvm_null_sel(sel))
        return fvm_raise_gp0(fault);
    if (fvm_desc_fetch(v, sel, FVM_EXC_GP, 0, &d, fault))
        return FVM_FAULT;
    attr = fvm_desc_attr(&d);
    if (!fvm_is_code(attr) || rpl < v->cpl || (attr & FVM_A_CONFORMING ? fvm_dpl(attr) > rpl : fvm_dpl(attr) != rpl) ||
        (fvm_vcpu_long(v) && (attr & FVM_A_L) && (attr & FVM_A_D)))
        return fvm_raise_sel(fault, FVM_EXC_GP, sel, 0);
    if (!(attr & FVM_A_P))
        return fvm_raise_sel(fault, FVM_EXC_NP, sel, 0);
    if (fvm_desc_accessed(v, &d, fault))
        return FVM_FAULT;
    fvm_desc_to_seg(&d, sel, &cs);
    if (fvm_desc_check_rip(v, &cs, w[0], 0, fault))
        return FVM_FAULT;
    if (rpl > v->cpl)
        return ret_outer(v, &cs, w[0], bytes, pop_bytes, fault);
    fvm_stack_move(v, 2 * (int64_t)bytes + pop_bytes);
    fvm_seg_set(v, FVM_CS, &cs);
    v->rip = w[0];
    return 0;
}
