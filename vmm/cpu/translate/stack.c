/*
 * stack.c - push, pop, leave, pushf. RSP is the host's RSP, so nothing here may use the stack as a stack.
 */
#include "vmm/cpu/translate/tr.h"

unsigned fvm_tr_stack_bytes(const struct fvm_tr *tr, const struct fvm_insn *in)
{
    if (tr->bits == 16)
        return in->z.operand_width / 8u;
    if (in->z.operand_width == 16 && (in->z.attributes & ZYDIS_ATTRIB_HAS_OPERANDSIZE))
        return 2;
    return tr->bits / 8;
}

void fvm_tr_stack_ref(const struct fvm_tr *tr, int32_t disp, struct fvm_memref *ret)
{
    *ret = (struct fvm_memref){.base = FVM_RSP, .index = FVM_NOREG, .seg = FVM_NOREG, .disp = disp, .addr32 = tr->bits == 32};
    if (tr->mode & FVM_MODE_SEG) {
        ret->seg = FVM_SS;
        ret->addr32 = (tr->mode & FVM_MODE_SS32) != 0;
        ret->addr16 = !ret->addr32;
    }
}

void fvm_tr_rsp_add(struct fvm_tr *tr, int32_t n)
{
    if (tr->bits == 64) {
        e_lea(&tr->em, FVM_RSP, FVM_RSP, FVM_NOREG, 0, n);
        return;
    }
    if ((tr->mode & (FVM_MODE_SEG | FVM_MODE_SS32)) == FVM_MODE_SEG) /* sp only */
        e8(&tr->em, 0x66);
    e_lea32(&tr->em, FVM_RSP, FVM_RSP, FVM_NOREG, 0, n);
}

static void sized_mov(struct fvm_tr *tr, unsigned op, unsigned reg, const struct fvm_hostref *h, unsigned bytes)
{
    if (bytes == 2)
        e8(&tr->em, 0x66);
    e_op_mem(&tr->em, bytes == 8, op, reg, h->base, h->index, 0, h->disp);
}

void fvm_tr_push_reg(struct fvm_tr *tr, unsigned reg, unsigned bytes)
{
    struct fvm_memref m;
    struct fvm_hostref h;
    fvm_tr_stack_ref(tr, -(int32_t)bytes, &m);
    fvm_tr_access(tr, &m, true, bytes, FVM_W, &h);
    sized_mov(tr, 0x89, reg, &h, bytes);
    fvm_tr_rsp_add(tr, -(int32_t)bytes);
}

void fvm_tr_push_imm(struct fvm_tr *tr, uint64_t value, unsigned bytes)
{
    struct fvm_emit *em = &tr->em;
    struct fvm_memref m;
    struct fvm_hostref h;
    fvm_tr_stack_ref(tr, -(int32_t)bytes, &m);
    fvm_tr_access(tr, &m, true, bytes, FVM_W, &h);
    if (bytes == 8 && (int64_t)value != (int32_t)value) { /* form A there: t is free */
        e_mov_imm(em, tr->t, value);
        sized_mov(tr, 0x89, tr->t, &h, bytes);
    } else {
        if (bytes == 2)
            e8(em, 0x66);
        e_rex(em, bytes == 8, 0, e_n(h.index), h.base);
        e8(em, 0xc7);
        e_mem(em, 0, h.base, h.index, 0, h.disp);
        if (bytes == 2)
            e16(em, (unsigned)value);
        else
            e32(em, (uint32_t)value);
    }
    fvm_tr_rsp_add(tr, -(int32_t)bytes);
}

void fvm_tr_push_rip(struct fvm_tr *tr, uint64_t rip, unsigned bytes)
{
    if (!fvm_mode_movable(tr->mode)) {
        fvm_tr_push_imm(tr, rip, bytes);
        return;
    }
    e_fs_load(&tr->em, tr->t, FVM_SLOT_ANCHOR);
    fvm_tr_add_page_offset(tr, tr->t, (int64_t)(rip - tr->base));
    fvm_tr_push_reg(tr, tr->t, bytes);
}

static void emit_push(struct fvm_tr *tr, struct fvm_tr_insn *i, unsigned bytes)
{
    const ZydisDecodedOperand *op = &i->in.ops[0];
    bool high;
    if (op->type == ZYDIS_OPERAND_TYPE_REGISTER) {
        fvm_tr_push_reg(tr, (unsigned)fvm_decode_gpr(op->reg.value, &high), bytes);
    } else if (op->type == ZYDIS_OPERAND_TYPE_IMMEDIATE) {
        fvm_tr_push_imm(tr, (uint64_t)op->imm.value.s, bytes);
    } else {
        struct fvm_memref m;
        struct fvm_hostref h;
        fvm_tr_memref(tr, i, 0, &m);
        fvm_tr_access(tr, &m, false, bytes, FVM_R, &h);
        unsigned value = tr->bits == 64 ? tr->t : tr->x; /* the stack reference is form B outside 64-bit code */
        sized_mov(tr, 0x8b, value, &h, bytes);
        fvm_tr_push_reg(tr, value, bytes);
    }
}

static void emit_pop(struct fvm_tr *tr, struct fvm_tr_insn *i, unsigned bytes)
{
    struct fvm_memref m;
    struct fvm_hostref h;
    bool high;
    unsigned reg = (unsigned)fvm_decode_gpr(i->in.ops[0].reg.value, &high);
    fvm_tr_stack_ref(tr, 0, &m);
    fvm_tr_access(tr, &m, true, bytes, FVM_R, &h);
    if (reg == FVM_RSP) {
        sized_mov(tr, 0x8b, reg, &h, bytes);
        return;
    }
    sized_mov(tr, 0x8b, reg, &h, bytes);
    fvm_tr_rsp_add(tr, (int32_t)bytes);
}

static void emit_leave(struct fvm_tr *tr, unsigned bytes)
{
    struct fvm_memref m = {.base = FVM_RBP, .index = FVM_NOREG, .seg = FVM_NOREG, .addr32 = tr->bits == 32};
    struct fvm_hostref h;
    fvm_tr_access(tr, &m, false, bytes, FVM_R, &h);
    sized_mov(tr, 0x8b, tr->u, &h, bytes); /* may trap: nothing may have changed before */
    if (tr->bits == 64)
        e_lea(&tr->em, FVM_RSP, FVM_RBP, FVM_NOREG, 0, (int32_t)bytes);
    else
        e_lea32(&tr->em, FVM_RSP, FVM_RBP, FVM_NOREG, 0, (int32_t)bytes);
    if (bytes == 2)
        e8(&tr->em, 0x66);
    e_rr(&tr->em, bytes == 8, 0x89, tr->u, FVM_RBP);
}

/* Value into t (x): host flags, and what the vCPU keeps apart (IF, IOPL, AC, ID...). */
static void emit_pushf(struct fvm_tr *tr, unsigned bytes)
{
    struct fvm_emit *em = &tr->em;
    unsigned val = tr->bits == 64 ? tr->t : tr->x; /* the stack reference takes t outside 64-bit code */
    fvm_tr_flags_restore(tr, tr->u);
    e_fs_store(em, FVM_SLOT_TMP, FVM_RSP);
    e_fs_load(em, FVM_RSP, FVM_SLOT_SELF);
    e_lea(em, FVM_RSP, FVM_RSP, FVM_NOREG, 0, FVM_SLOT_FLAG_STACK_TOP);
    e8(em, 0x9c); /* pushfq */
    e_rex(em, false, 0, 0, val), e8(em, 0x58 | (val & 7)); /* pop t */
    e_fs_load(em, FVM_RSP, FVM_SLOT_TMP);
    fvm_tr_flags_clobber(tr, FVM_ARITH_FLAGS); /* also if dead behind: the push may be done again by C */
    e_alu_imm(em, true, 4, val, FVM_HOST_FLAGS);
    e_fs_load(em, tr->u, FVM_OFF_RFLAGS);
    e_alu_imm(em, true, 4, tr->u, (int32_t)(FVM_F_IOPL | FVM_F_NT | FVM_F_AC | FVM_F_ID | FVM_F_VIF | FVM_F_VIP));
    e_rr(em, true, 0x09, tr->u, val);
    e8(em, 0x64); /* movzx u32, byte fs:[iflag] */
    e_rex(em, false, tr->u, 0, 0), e8(em, 0x0f), e8(em, 0xb6);
    e_mem(em, tr->u, FVM_NOREG, FVM_NOREG, 0, FVM_OFF_IFLAG);
    e_shl(em, tr->u, 9);
    e_rr(em, true, 0x09, tr->u, val);
    e_alu_imm(em, true, 1, val, 2);
    fvm_tr_push_reg(tr, val, bytes);
}

void fvm_tr_emit_stack(struct fvm_tr *tr, struct fvm_tr_insn *i)
{
    unsigned bytes = fvm_tr_stack_bytes(tr, &i->in);
    switch (i->class) {
    case FVM_C_PUSH:
        emit_push(tr, i, bytes);
        break;
    case FVM_C_POP:
        emit_pop(tr, i, bytes);
        break;
    case FVM_C_LEAVE:
        emit_leave(tr, bytes);
        break;
    case FVM_C_PUSHF:
        emit_pushf(tr, bytes);
        break;
    default:
        fvm_assert(!"stack class");
    }
}
