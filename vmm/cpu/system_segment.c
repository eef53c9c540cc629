/*
 * system_segment.c - instructions on segment and table registers, and transfers of control between segments or rings.
 */
#include "vmm/cpu/event.h"
#include "vmm/cpu/segment.h"
#include "vmm/cpu/system_part.h"
#include "vmm/cpu/task.h"

static int mov_seg(struct fvm_vcpu *v, const struct fvm_insn *insn, struct fvm_fault *fault)
{
    int seg = insn->ops[0].type == ZYDIS_OPERAND_TYPE_REGISTER ? fvm_decode_seg(insn->ops[0].reg.value) : -1;
    uint64_t sel;

    if (seg < 0) { /* store: a register gets the operand size, memory two bytes */
        const ZydisDecodedOperand *dst = &insn->ops[0];

        seg = fvm_decode_seg(insn->ops[1].reg.value);
        return fvm_operand_write(v, insn, dst, dst->type == ZYDIS_OPERAND_TYPE_MEMORY ? 2 : dst->size / 8u,
                                 v->seg[seg].sel, fault);
    }
    if (seg == FVM_CS)
        return fvm_raise_ud(fault);
    if (fvm_operand_read(v, insn, &insn->ops[1], 2, &sel, fault) ||
        fvm_segment_load(v, (unsigned)seg, (uint16_t)sel, fault))
        return FVM_FAULT;
    if (seg == FVM_SS)
        v->int_shadow = FVM_SHADOW_SS;
    return 0;
}

static int push_seg(struct fvm_vcpu *v, const struct fvm_insn *insn, struct fvm_fault *fault)
{
    uint64_t sel = v->seg[fvm_decode_seg(insn->ops[0].reg.value)].sel;

    return fvm_stack_push(v, insn->z.operand_width / 8u, &sel, 1, fault);
}

static int pop_seg(struct fvm_vcpu *v, const struct fvm_insn *insn, struct fvm_fault *fault)
{
    unsigned bytes = insn->z.operand_width / 8u, seg = (unsigned)fvm_decode_seg(insn->ops[0].reg.value);
    uint64_t sel;
    struct fvm_seg s;

    if (fvm_stack_peek(v, 0, bytes, &sel, 1, fault))
        return FVM_FAULT;
    if (fvm_vcpu_real(v) || fvm_vcpu_v86(v)) {
        fvm_stack_move(v, bytes);
        v->int_shadow = seg == FVM_SS ? FVM_SHADOW_SS : 0;
        return fvm_segment_load(v, seg, (uint16_t)sel, fault);
    }
    if (fvm_segment_judge(v, seg, (uint16_t)sel, &s, fault))
        return FVM_FAULT;
    fvm_stack_move(v, bytes); /* by the old SS */
    fvm_seg_set(v, seg, &s);
    if (seg == FVM_SS)
        v->int_shadow = FVM_SHADOW_SS;
    return 0;
}

/* lds les lfs lgs lss: offset, then selector */
static int load_pointer(struct fvm_vcpu *v, const struct fvm_insn *insn, unsigned seg, struct fvm_fault *fault)
{
    unsigned bytes = insn->ops[0].size / 8u;
    int gpr = fvm_decode_gpr(insn->ops[0].reg.value, NULL);
    uint64_t off = 0;
    uint16_t sel;
    fvm_gva va;

    if (insn->ops[1].type != ZYDIS_OPERAND_TYPE_MEMORY)
        return fvm_raise_ud(fault);
    if (fvm_operand_linear(v, insn, &insn->ops[1], bytes + 2, false, &va, fault) ||
        fvm_vmem_read(v, va, &off, bytes, FVM_AS_CPL, fault) ||
        fvm_vmem_read(v, va + bytes, &sel, 2, FVM_AS_CPL, fault) || fvm_segment_load(v, seg, sel, fault))
        return FVM_FAULT;
    fvm_reg_set(v, (unsigned)gpr, bytes, off);
    return 0;
}

static int load_table(struct fvm_vcpu *v, const struct fvm_insn *insn, struct fvm_dtable *table,
                      struct fvm_fault *fault)
{
    bool lng = fvm_vcpu_code_bits(v) == 64;
    uint8_t bytes = lng ? 8 : 4;
    uint64_t base = 0;
    uint16_t limit;
    fvm_gva va;

    if (fvm_need_cpl0(v, fault) || fvm_operand_linear(v, insn, &insn->ops[0], 2u + bytes, false, &va, fault) ||
        fvm_vmem_read(v, va, &limit, 2, FVM_AS_CPL, fault) || fvm_vmem_read(v, va + 2, &base, bytes, FVM_AS_CPL, fault))
        return FVM_FAULT;
    if (lng && !fvm_canonical(base))
        return fvm_raise_gp0(fault);
    if (!lng && insn->z.operand_width == 16)
        base &= 0xffffff;
    table->base = base;
    table->limit = limit;
    return 0;
}

static int store_table(struct fvm_vcpu *v, const struct fvm_insn *insn, const struct fvm_dtable *table,
                       struct fvm_fault *fault)
{
    unsigned bytes = fvm_vcpu_code_bits(v) == 64 ? 8 : 4;
    struct {
        uint16_t limit;
        uint64_t base;
    } __attribute__((packed)) image = {(uint16_t)table->limit, table->base};
    fvm_gva va;

    if ((v->cr4 & FVM_CR4_UMIP) && v->cpl)
        return fvm_raise_gp0(fault);
    if (fvm_operand_linear(v, insn, &insn->ops[0], 2 + bytes, true, &va, fault))
        return FVM_FAULT;
    return fvm_vmem_write(v, va, &image, 2 + bytes, FVM_AS_CPL, fault);
}

static int store_selector(struct fvm_vcpu *v, const struct fvm_insn *insn, uint16_t sel, struct fvm_fault *fault)
{
    const ZydisDecodedOperand *op = &insn->ops[0];

    if (fvm_vcpu_real(v) || fvm_vcpu_v86(v))
        return fvm_raise_ud(fault);
    if ((v->cr4 & FVM_CR4_UMIP) && v->cpl)
        return fvm_raise_gp0(fault);
    return fvm_operand_write(v, insn, op, op->type == ZYDIS_OPERAND_TYPE_MEMORY ? 2 : op->size / 8u, sel, fault);
}

static int load_system_seg(struct fvm_vcpu *v, const struct fvm_insn *insn, bool ltr, struct fvm_fault *fault)
{
    struct fvm_desc d;
    uint64_t x;
    uint16_t sel, attr;
    uint8_t type;

    if (fvm_vcpu_real(v) || fvm_vcpu_v86(v))
        return fvm_raise_ud(fault);
    if (fvm_need_cpl0(v, fault) || fvm_operand_read(v, insn, &insn->ops[0], 2, &x, fault))
        return FVM_FAULT;
    sel = (uint16_t)x;
    if (fvm_null_sel(sel)) {
        if (ltr)
            return fvm_raise_gp0(fault);
        v->ldtr = (struct fvm_seg){.sel = sel};
        return 0;
    }
    if (sel & 4)
        return fvm_raise_sel(fault, FVM_EXC_GP, sel, 0);
    if (fvm_desc_fetch(v, sel, FVM_EXC_GP, 0, &d, fault))
        return FVM_FAULT;
    attr = fvm_desc_attr(&d);
    type = attr & 0x1f;
    if (ltr ? type != FVM_T_TSS && (type != FVM_T_TSS16 || fvm_vcpu_long(v)) : type != FVM_T_LDT)
        return fvm_raise_sel(fault, FVM_EXC_GP, sel, 0);
    if (!(attr & FVM_A_P))
        return fvm_raise_sel(fault, FVM_EXC_NP, sel, 0);
    if (fvm_vcpu_long(v) && fvm_desc_fetch_high(v, sel, &d, fault))
        return FVM_FAULT;
    if (ltr) {
        uint8_t busy = (uint8_t)(attr | FVM_T_BUSY);

        if (fvm_vmem_write(v, d.at + 5, &busy, 1, FVM_AS_SUPERVISOR, fault))
            return FVM_FAULT;
        d.lo |= (uint64_t)FVM_T_BUSY << 40;
    }
    fvm_desc_to_seg(&d, sel, ltr ? &v->tr : &v->ldtr);
    return 0;
}

/* May the descriptor be looked at with lar (system types 1..5, 9, 11, 12) or lsl (1..3, 9, 11)? */
static bool type_visible(const struct fvm_vcpu *v, unsigned type, bool lsl)
{
    switch (type) {
    case 2:
    case 9:
    case 11:
        return true;
    case 1:
    case 3:
        return !fvm_vcpu_long(v);
    case 4:
    case 5:
        return !lsl && !fvm_vcpu_long(v);
    case 12:
        return !lsl;
    default:
        return false;
    }
}

static int inspect(struct fvm_vcpu *v, const struct fvm_insn *insn, struct fvm_fault *fault)
{
    ZydisMnemonic m = insn->z.mnemonic;
    bool big = m == ZYDIS_MNEMONIC_LAR || m == ZYDIS_MNEMONIC_LSL, ok, code;
    struct fvm_desc d;
    struct fvm_seg s;
    struct fvm_fault found;
    uint64_t x;
    uint16_t attr;

    if (fvm_vcpu_real(v) || fvm_vcpu_v86(v))
        return fvm_raise_ud(fault);
    if (fvm_operand_read(v, insn, &insn->ops[big ? 1 : 0], 2, &x, fault))
        return FVM_FAULT;
    if (!fvm_null_sel((uint16_t)x) && !fvm_desc_fetch(v, (uint16_t)x, FVM_EXC_GP, 0, &d, &found)) {
        attr = fvm_desc_attr(&d);
    } else if (!fvm_null_sel((uint16_t)x) && found.vector == FVM_EXC_PF) {
        *fault = found;
        return FVM_FAULT;
    } else { /* null, or beyond the table */
        v->rflags &= ~(uint64_t)FVM_F_ZF;
        return 0;
    }
    code = fvm_is_code(attr);
    ok = (code && (attr & FVM_A_CONFORMING)) || fvm_dpl(attr) >= FVM_MAX((unsigned)v->cpl, (unsigned)x & 3u);
    if (m == ZYDIS_MNEMONIC_VERR)
        ok = ok && (attr & FVM_A_S) && (!code || (attr & FVM_A_READABLE));
    else if (m == ZYDIS_MNEMONIC_VERW)
        ok = ok && fvm_is_data(attr) && (attr & FVM_A_WRITABLE);
    else if (!(attr & FVM_A_S))
        ok = ok && type_visible(v, attr & FVM_A_TYPE, m == ZYDIS_MNEMONIC_LSL);
    v->rflags &= ~(uint64_t)FVM_F_ZF;
    if (!ok)
        return 0;
    v->rflags |= FVM_F_ZF;
    if (big) {
        int gpr = fvm_decode_gpr(insn->ops[0].reg.value, NULL);

        fvm_desc_to_seg(&d, (uint16_t)x, &s);
        fvm_reg_set(v, (unsigned)gpr, insn->ops[0].size / 8u,
                    m == ZYDIS_MNEMONIC_LSL ? s.limit : (d.lo >> 32) & 0xffff00);
    }
    return 0;
}

int fvm_part_segment(struct fvm_vcpu *v, const struct fvm_insn *insn, struct fvm_fault *fault)
{
    switch (insn->z.mnemonic) {
    case ZYDIS_MNEMONIC_MOV:
        return mov_seg(v, insn, fault);
    case ZYDIS_MNEMONIC_PUSH:
        return push_seg(v, insn, fault);
    case ZYDIS_MNEMONIC_POP:
        return pop_seg(v, insn, fault);
    case ZYDIS_MNEMONIC_LDS:
        return load_pointer(v, insn, FVM_DS, fault);
    case ZYDIS_MNEMONIC_LES:
        return load_pointer(v, insn, FVM_ES, fault);
    case ZYDIS_MNEMONIC_LFS:
        return load_pointer(v, insn, FVM_FS, fault);
    case ZYDIS_MNEMONIC_LGS:
        return load_pointer(v, insn, FVM_GS, fault);
    case ZYDIS_MNEMONIC_LSS:
        return load_pointer(v, insn, FVM_SS, fault);
    case ZYDIS_MNEMONIC_LGDT:
        return load_table(v, insn, &v->gdtr, fault);
    case ZYDIS_MNEMONIC_LIDT:
        return load_table(v, insn, &v->idtr, fault);
    case ZYDIS_MNEMONIC_SGDT:
        return store_table(v, insn, &v->gdtr, fault);
    case ZYDIS_MNEMONIC_SIDT:
        return store_table(v, insn, &v->idtr, fault);
    case ZYDIS_MNEMONIC_SLDT:
        return store_selector(v, insn, v->ldtr.sel, fault);
    case ZYDIS_MNEMONIC_STR:
        return store_selector(v, insn, v->tr.sel, fault);
    case ZYDIS_MNEMONIC_LLDT:
        return load_system_seg(v, insn, false, fault);
    case ZYDIS_MNEMONIC_LTR:
        return load_system_seg(v, insn, true, fault);
    default:
        return inspect(v, insn, fault);
    }
}

static int jumped(int rc) { return rc ? rc : FVM_PART_JUMPED; }

static int far_transfer(struct fvm_vcpu *v, const struct fvm_insn *insn, struct fvm_fault *fault)
{
    const ZydisDecodedOperand *op = &insn->ops[0];
    unsigned bytes = insn->z.operand_width / 8u;
    uint64_t off = 0;
    uint16_t sel;

    if (insn->z.mnemonic == ZYDIS_MNEMONIC_RET) {
        bool imm = insn->z.operand_count_visible && op->type == ZYDIS_OPERAND_TYPE_IMMEDIATE;

        return fvm_segment_far_ret(v, bytes, imm ? (uint16_t)op->imm.value.u : 0, fault);
    }
    if (op->type == ZYDIS_OPERAND_TYPE_POINTER) {
        off = op->ptr.offset;
        sel = op->ptr.segment;
    } else if (op->type == ZYDIS_OPERAND_TYPE_MEMORY) {
        fvm_gva va;

        if (fvm_operand_linear(v, insn, op, bytes + 2, false, &va, fault) ||
            fvm_vmem_read(v, va, &off, bytes, FVM_AS_CPL, fault) ||
            fvm_vmem_read(v, va + bytes, &sel, 2, FVM_AS_CPL, fault))
            return FVM_FAULT;
    } else {
        return fvm_raise_ud(fault);
    }
    if (fvm_task_possible(v)) {
        int r = fvm_task_far(v, sel, insn->z.mnemonic == ZYDIS_MNEMONIC_CALL, fvm_next_rip(v, insn), fault);

        if (r != FVM_TASK_NOT)
            return r;
    }
    if (insn->z.mnemonic == ZYDIS_MNEMONIC_JMP)
        return fvm_segment_far_jump(v, sel, off, bytes, fault);
    return fvm_segment_far_call(v, sel, off, bytes, fvm_next_rip(v, insn), fault);
}

static int soft_interrupt(struct fvm_vcpu *v, const struct fvm_insn *insn, unsigned vector, struct fvm_fault *fault)
{
    if (insn->z.mnemonic == ZYDIS_MNEMONIC_INT && fvm_vcpu_v86(v) && fvm_iopl(v) != 3)
        return fvm_raise_gp0(fault);
    return jumped(fvm_event_soft(v, vector, fvm_next_rip(v, insn), insn->z.mnemonic != ZYDIS_MNEMONIC_INT1, fault));
}

static int iret(struct fvm_vcpu *v, const struct fvm_insn *insn, unsigned bytes, struct fvm_fault *fault)
{
    if ((v->rflags & FVM_F_NT) && fvm_task_possible(v))
        return jumped(fvm_task_return(v, fvm_next_rip(v, insn), fault));
    return jumped(fvm_event_iret(v, bytes, fault));
}

int fvm_part_transfer(struct fvm_vcpu *v, const struct fvm_insn *insn, struct fvm_fault *fault)
{
    switch (insn->z.mnemonic) {
    case ZYDIS_MNEMONIC_IRET:
        return iret(v, insn, 2, fault);
    case ZYDIS_MNEMONIC_IRETD:
        return iret(v, insn, 4, fault);
    case ZYDIS_MNEMONIC_IRETQ:
        return jumped(fvm_event_iret(v, 8, fault));
    case ZYDIS_MNEMONIC_INT:
        return soft_interrupt(v, insn, (uint8_t)insn->ops[0].imm.value.u, fault);
    case ZYDIS_MNEMONIC_INT1:
        return soft_interrupt(v, insn, FVM_EXC_DB, fault);
    case ZYDIS_MNEMONIC_INT3:
        return soft_interrupt(v, insn, FVM_EXC_BP, fault);
    case ZYDIS_MNEMONIC_INTO:
        if (fvm_vcpu_code_bits(v) == 64)
            return fvm_raise_ud(fault);
        return v->rflags & FVM_F_OF ? soft_interrupt(v, insn, FVM_EXC_OF, fault) : 0;
    case ZYDIS_MNEMONIC_SYSCALL:
        return jumped(fvm_syscall(v, fvm_next_rip(v, insn), fault));
    case ZYDIS_MNEMONIC_SYSRET:
        return jumped(fvm_sysret(v, insn->z.attributes & ZYDIS_ATTRIB_HAS_REX && insn->z.raw.rex.W ? 8 : 4, fault));
    case ZYDIS_MNEMONIC_SYSENTER:
        return jumped(fvm_sysenter(v, fvm_next_rip(v, insn), fault));
    case ZYDIS_MNEMONIC_SYSEXIT:
        return jumped(fvm_sysexit(v, insn->z.attributes & ZYDIS_ATTRIB_HAS_REX && insn->z.raw.rex.W ? 8 : 4, fault));
    default:
        return jumped(far_transfer(v, insn, fault));
    }
}
