/*
 * flags.c - which guest flags are live where, and moving them out of the way of emitted checks.
 *
 * Emitted checks use test/jcc and shifts. Where the guest's arithmetic flags are dead nothing is to be done; where they are
 * live they are put into SLOT_FLAGS once (lahf, seto) and come back only before an instruction that reads them, that
 * leaves some of them unchanged, or when control goes to a block that reads them. DF is never touched.
 * Flags that are dead at a faulting instruction are not reproduced in the exception frame.
 */
#include "vmm/cpu/translate/tr.h"

static bool count_may_be_zero(const struct fvm_insn *in)
{
    switch (in->z.mnemonic) {
    case ZYDIS_MNEMONIC_SHL: case ZYDIS_MNEMONIC_SHR: case ZYDIS_MNEMONIC_SAR: case ZYDIS_MNEMONIC_ROL: case ZYDIS_MNEMONIC_ROR:
    case ZYDIS_MNEMONIC_RCL: case ZYDIS_MNEMONIC_RCR:
        return in->ops[1].type != ZYDIS_OPERAND_TYPE_IMMEDIATE || (in->ops[1].imm.value.u & 0x1f) == 0 ||
               in->ops[0].size == 64;
    case ZYDIS_MNEMONIC_SHLD: case ZYDIS_MNEMONIC_SHRD:
        return in->ops[2].type != ZYDIS_OPERAND_TYPE_IMMEDIATE || (in->ops[2].imm.value.u & 0x1f) == 0 ||
               in->ops[0].size == 64;
    default:
        return false;
    }
}

void fvm_tr_flags_analyse(struct fvm_tr_insn *i)
{
    const ZydisAccessedFlags *f = i->in.z.cpu_flags;
    i->f_read = i->f_kill = i->f_mod = 0;
    if (!f)
        return;
    uint32_t mod = f->modified | f->set_0 | f->set_1;
    i->f_read = (uint16_t)(f->tested & FVM_ARITH_FLAGS);
    i->f_mod = (uint16_t)((mod | f->undefined) & FVM_ARITH_FLAGS);
    /* Undefined flags: real processors leave some of them as they were; keep them flowing through. */
    i->f_kill = (uint16_t)(mod & ~f->undefined & FVM_ARITH_FLAGS);
    bool rep = (i->in.z.attributes & (ZYDIS_ATTRIB_HAS_REP | ZYDIS_ATTRIB_HAS_REPE | ZYDIS_ATTRIB_HAS_REPNE)) != 0;
    if (rep || count_may_be_zero(&i->in))
        i->f_kill = 0;
}

void fvm_tr_flags_liveness(struct fvm_tr *tr, uint16_t live_end)
{
    uint16_t live = live_end;
    for (unsigned k = tr->n; k-- > 0;) {
        struct fvm_tr_insn *i = &tr->insns[k];
        i->live_out = live;
        if (i->class == FVM_C_JCC) /* nothing is known of where it leads: see front.c for those at the end */
            live |= k + 1 < tr->n ? FVM_ARITH_FLAGS : 0;
        live = (uint16_t)((live & ~i->f_kill) | i->f_read);
        i->live_in = live;
    }
}

void fvm_tr_flags_clobber(struct fvm_tr *tr, uint16_t live)
{
    if (tr->saved || !live)
        return;
    struct fvm_emit *em = &tr->em;
    bool rax_free = tr->u == FVM_RAX || tr->t == FVM_RAX || tr->x == FVM_RAX;
    (void)rax_free;
    if (tr->u == FVM_RAX) {
        e8(em, 0x9f);                           /* lahf */
        e8(em, 0x0f), e8(em, 0x90), e8(em, 0xc0); /* seto al */
        e_fs_store(em, FVM_SLOT_FLAGS, FVM_RAX);
    } else {
        fvm_assert(tr->u != FVM_NOREG);
        e_mov(em, tr->u, FVM_RAX);
        e8(em, 0x9f);
        e8(em, 0x0f), e8(em, 0x90), e8(em, 0xc0);
        e_fs_store(em, FVM_SLOT_FLAGS, FVM_RAX);
        e_mov(em, FVM_RAX, tr->u);
    }
    tr->saved = true;
}

void fvm_tr_emit_flags_restore(struct fvm_emit *em, unsigned holder)
{
    if (holder == FVM_NOREG)
        e_fs_store(em, FVM_SLOT_TMP, FVM_RAX);
    else if (holder != FVM_RAX)
        e_mov(em, holder, FVM_RAX);
    e_fs_load32(em, FVM_RAX, FVM_SLOT_FLAGS);
    e8(em, 0x04), e8(em, 0x7f); /* add al, 127: OF */
    e8(em, 0x9e);               /* sahf */
    if (holder == FVM_NOREG)
        e_fs_load(em, FVM_RAX, FVM_SLOT_TMP);
    else if (holder != FVM_RAX)
        e_mov(em, FVM_RAX, holder);
}

void fvm_tr_flags_restore(struct fvm_tr *tr, unsigned holder)
{
    if (!tr->saved)
        return;
    fvm_tr_emit_flags_restore(&tr->em, holder);
    tr->saved = false;
}

void fvm_tr_flags_before_op(struct fvm_tr *tr, unsigned holder)
{
    const struct fvm_tr_insn *i = fvm_tr_cur(tr);
    if (tr->saved && (i->f_read || (i->f_mod && (i->live_out & ~i->f_kill))))
        fvm_tr_flags_restore(tr, holder);
}

void fvm_tr_flags_after_op(struct fvm_tr *tr)
{
    if (fvm_tr_cur(tr)->f_mod)
        tr->saved = false;
}
