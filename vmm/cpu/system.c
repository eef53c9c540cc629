/*
 * system.c - executes one system instruction on precise state: which part does it, and the simple ones.
 *
 * group_of and group_of_rest are the one list of what counts as a system instruction; fvm_insn_is_system and
 * fvm_system_exec both follow it.
 * int_shadow lasts for one instruction: every instruction executed here ends it, sti and mov/pop ss begin it.
 */
#include "vmm/cpu/cpuid.h"
#include "vmm/cpu/event.h"
#include "vmm/cpu/system_part.h"

enum group { GROUP_NONE, GROUP_SIMPLE, GROUP_CONTROL, GROUP_SEGMENT, GROUP_TRANSFER, GROUP_XSAVE, GROUP_LEGACY };

static bool is_special_register(const ZydisDecodedOperand *op)
{
    ZydisRegisterClass c;

    if (op->type != ZYDIS_OPERAND_TYPE_REGISTER)
        return false;
    c = ZydisRegisterGetClass(op->reg.value);
    return c == ZYDIS_REGCLASS_SEGMENT || c == ZYDIS_REGCLASS_CONTROL || c == ZYDIS_REGCLASS_DEBUG;
}

static enum group group_of_mov(const struct fvm_insn *insn)
{
    for (unsigned i = 0; i < 2; i++) {
        if (is_special_register(&insn->ops[i]))
            return fvm_decode_seg(insn->ops[i].reg.value) >= 0 ? GROUP_SEGMENT : GROUP_CONTROL;
    }
    return GROUP_NONE;
}

static enum group group_of_rest(const struct fvm_insn *insn)
{
    switch (insn->z.mnemonic) {
    case ZYDIS_MNEMONIC_XSAVE:
    case ZYDIS_MNEMONIC_XSAVE64:
    case ZYDIS_MNEMONIC_XSAVEOPT:
    case ZYDIS_MNEMONIC_XSAVEOPT64:
    case ZYDIS_MNEMONIC_XSAVEC:
    case ZYDIS_MNEMONIC_XSAVEC64:
    case ZYDIS_MNEMONIC_XSAVES:
    case ZYDIS_MNEMONIC_XSAVES64:
    case ZYDIS_MNEMONIC_XRSTOR:
    case ZYDIS_MNEMONIC_XRSTOR64:
    case ZYDIS_MNEMONIC_XRSTORS:
    case ZYDIS_MNEMONIC_XRSTORS64:
    case ZYDIS_MNEMONIC_FXSAVE:
    case ZYDIS_MNEMONIC_FXSAVE64:
    case ZYDIS_MNEMONIC_FXRSTOR:
    case ZYDIS_MNEMONIC_FXRSTOR64:
        return GROUP_XSAVE;
    case ZYDIS_MNEMONIC_AAA:
    case ZYDIS_MNEMONIC_AAS:
    case ZYDIS_MNEMONIC_AAM:
    case ZYDIS_MNEMONIC_AAD:
    case ZYDIS_MNEMONIC_DAA:
    case ZYDIS_MNEMONIC_DAS:
    case ZYDIS_MNEMONIC_SALC:
    case ZYDIS_MNEMONIC_BOUND:
    case ZYDIS_MNEMONIC_ARPL:
    case ZYDIS_MNEMONIC_PUSHA:
    case ZYDIS_MNEMONIC_PUSHAD:
    case ZYDIS_MNEMONIC_POPA:
    case ZYDIS_MNEMONIC_POPAD:
        return GROUP_LEGACY;
    case ZYDIS_MNEMONIC_PUSHF:
    case ZYDIS_MNEMONIC_PUSHFD:
    case ZYDIS_MNEMONIC_PUSHFQ:
    case ZYDIS_MNEMONIC_POPF:
    case ZYDIS_MNEMONIC_POPFD:
    case ZYDIS_MNEMONIC_POPFQ:
    case ZYDIS_MNEMONIC_CLI:
    case ZYDIS_MNEMONIC_STI:
    case ZYDIS_MNEMONIC_CLAC:
    case ZYDIS_MNEMONIC_STAC:
    case ZYDIS_MNEMONIC_HLT:
    case ZYDIS_MNEMONIC_IN:
    case ZYDIS_MNEMONIC_OUT:
    case ZYDIS_MNEMONIC_INVD:
    case ZYDIS_MNEMONIC_WBINVD:
    case ZYDIS_MNEMONIC_MONITOR:
    case ZYDIS_MNEMONIC_MWAIT:
    case ZYDIS_MNEMONIC_MONITORX:
    case ZYDIS_MNEMONIC_MWAITX:
    case ZYDIS_MNEMONIC_VMCALL:
    case ZYDIS_MNEMONIC_VMMCALL:
    case ZYDIS_MNEMONIC_RSM:
    case ZYDIS_MNEMONIC_GETSEC:
    case ZYDIS_MNEMONIC_UD0:
    case ZYDIS_MNEMONIC_UD1:
    case ZYDIS_MNEMONIC_UD2:
        return GROUP_SIMPLE;
    default:
        return GROUP_NONE;
    }
}

static enum group group_of(const struct fvm_insn *insn)
{
    switch (insn->z.mnemonic) {
    case ZYDIS_MNEMONIC_MOV:
        return group_of_mov(insn);
    case ZYDIS_MNEMONIC_PUSH:
    case ZYDIS_MNEMONIC_POP:
        return is_special_register(&insn->ops[0]) ? GROUP_SEGMENT : GROUP_NONE;
    case ZYDIS_MNEMONIC_JMP:
    case ZYDIS_MNEMONIC_CALL:
    case ZYDIS_MNEMONIC_RET:
        return insn->z.meta.branch_type == ZYDIS_BRANCH_TYPE_FAR ? GROUP_TRANSFER : GROUP_NONE;
    case ZYDIS_MNEMONIC_IRET:
    case ZYDIS_MNEMONIC_IRETD:
    case ZYDIS_MNEMONIC_IRETQ:
    case ZYDIS_MNEMONIC_INT:
    case ZYDIS_MNEMONIC_INT1:
    case ZYDIS_MNEMONIC_INT3:
    case ZYDIS_MNEMONIC_INTO:
    case ZYDIS_MNEMONIC_SYSCALL:
    case ZYDIS_MNEMONIC_SYSRET:
    case ZYDIS_MNEMONIC_SYSENTER:
    case ZYDIS_MNEMONIC_SYSEXIT:
        return GROUP_TRANSFER;
    case ZYDIS_MNEMONIC_LDS:
    case ZYDIS_MNEMONIC_LES:
    case ZYDIS_MNEMONIC_LFS:
    case ZYDIS_MNEMONIC_LGS:
    case ZYDIS_MNEMONIC_LSS:
    case ZYDIS_MNEMONIC_LGDT:
    case ZYDIS_MNEMONIC_LIDT:
    case ZYDIS_MNEMONIC_LLDT:
    case ZYDIS_MNEMONIC_LTR:
    case ZYDIS_MNEMONIC_SGDT:
    case ZYDIS_MNEMONIC_SIDT:
    case ZYDIS_MNEMONIC_SLDT:
    case ZYDIS_MNEMONIC_STR:
    case ZYDIS_MNEMONIC_LAR:
    case ZYDIS_MNEMONIC_LSL:
    case ZYDIS_MNEMONIC_VERR:
    case ZYDIS_MNEMONIC_VERW:
        return GROUP_SEGMENT;
    case ZYDIS_MNEMONIC_LMSW:
    case ZYDIS_MNEMONIC_SMSW:
    case ZYDIS_MNEMONIC_CLTS:
    case ZYDIS_MNEMONIC_INVLPG:
    case ZYDIS_MNEMONIC_INVPCID:
    case ZYDIS_MNEMONIC_RDMSR:
    case ZYDIS_MNEMONIC_WRMSR:
    case ZYDIS_MNEMONIC_RDPMC:
    case ZYDIS_MNEMONIC_RDTSC:
    case ZYDIS_MNEMONIC_RDTSCP:
    case ZYDIS_MNEMONIC_CPUID:
    case ZYDIS_MNEMONIC_XGETBV:
    case ZYDIS_MNEMONIC_XSETBV:
    case ZYDIS_MNEMONIC_SWAPGS:
    case ZYDIS_MNEMONIC_RDFSBASE:
    case ZYDIS_MNEMONIC_RDGSBASE:
    case ZYDIS_MNEMONIC_WRFSBASE:
    case ZYDIS_MNEMONIC_WRGSBASE:
        return GROUP_CONTROL;
    default:
        return group_of_rest(insn);
    }
}

bool fvm_insn_is_system(const struct fvm_insn *insn) { return group_of(insn) != GROUP_NONE; }

static int push_flags(struct fvm_vcpu *v, const struct fvm_insn *insn, struct fvm_fault *fault)
{
    uint64_t f = fvm_vcpu_rflags(v) & ~(uint64_t)(FVM_F_VM | FVM_F_RF);

    if (fvm_vcpu_v86(v) && fvm_iopl(v) != 3)
        return fvm_raise_gp0(fault);
    return fvm_stack_push(v, insn->z.operand_width / 8u, &f, 1, fault);
}

static int pop_flags(struct fvm_vcpu *v, const struct fvm_insn *insn, struct fvm_fault *fault)
{
    unsigned bytes = insn->z.operand_width / 8u;
    uint64_t f, old = fvm_vcpu_rflags(v), mask = FVM_F_CF | FVM_F_PF | FVM_F_AF | FVM_F_ZF | FVM_F_SF | FVM_F_TF |
                                                 FVM_F_DF | FVM_F_OF | FVM_F_NT | FVM_F_AC | FVM_F_ID;

    if (fvm_vcpu_v86(v) && fvm_iopl(v) != 3)
        return fvm_raise_gp0(fault);
    if (fvm_stack_peek(v, 0, bytes, &f, 1, fault))
        return FVM_FAULT;
    if (v->cpl == 0)
        mask |= FVM_F_IOPL;
    if (v->cpl <= fvm_iopl(v))
        mask |= FVM_F_IF;
    if (bytes == 2)
        mask &= 0xffff;
    fvm_stack_move(v, bytes);
    fvm_vcpu_set_rflags(v, (old & ~mask & ~(uint64_t)FVM_F_RF) | (f & mask));
    return 0;
}

int fvm_system_io_check(struct fvm_vcpu *v, uint16_t port, unsigned bytes, struct fvm_fault *fault)
{
    uint16_t map_base, bits = 0;
    uint32_t off;

    if (fvm_vcpu_real(v) || (v->cpl <= fvm_iopl(v) && !fvm_vcpu_v86(v)))
        return 0;
    if (!(v->tr.attr & 8) || v->tr.limit < 0x67)
        return fvm_raise_gp0(fault);
    if (fvm_vmem_read(v, v->tr.base + 0x66, &map_base, 2, FVM_AS_SUPERVISOR, fault))
        return FVM_FAULT;
    off = map_base + port / 8u;
    if (off + 1 > v->tr.limit)
        return fvm_raise_gp0(fault);
    if (fvm_vmem_read(v, v->tr.base + off, &bits, 2, FVM_AS_SUPERVISOR, fault))
        return FVM_FAULT;
    if ((bits >> (port & 7)) & ((1u << bytes) - 1))
        return fvm_raise_gp0(fault);
    return 0;
}

static int port_io(struct fvm_vcpu *v, const struct fvm_insn *insn, struct fvm_fault *fault)
{
    bool in = insn->z.mnemonic == ZYDIS_MNEMONIC_IN;
    const ZydisDecodedOperand *data = &insn->ops[in ? 0 : 1], *where = &insn->ops[in ? 1 : 0];
    unsigned bytes = data->size / 8u;
    bool imm = where->type == ZYDIS_OPERAND_TYPE_IMMEDIATE;
    uint16_t port = imm ? (uint8_t)where->imm.value.u : (uint16_t)v->regs[FVM_RDX];

    if (fvm_system_io_check(v, port, bytes, fault))
        return FVM_FAULT;
    if (in)
        fvm_reg_set(v, FVM_RAX, bytes, fvm_bus_read(v->bus, FVM_BUS_PIO, port, bytes));
    else
        fvm_bus_write(v->bus, FVM_BUS_PIO, port, bytes, fvm_reg_get(v, FVM_RAX, bytes));
    return 0;
}

static int interrupt_flag(struct fvm_vcpu *v, bool on, struct fvm_fault *fault)
{
    if (!fvm_vcpu_real(v) && (fvm_vcpu_v86(v) ? fvm_iopl(v) != 3 : v->cpl > fvm_iopl(v)))
        return fvm_raise_gp0(fault);
    if (on && !v->iflag)
        v->int_shadow = 1;
    v->iflag = on;
    return 0;
}

static int simple(struct fvm_vcpu *v, const struct fvm_insn *insn, struct fvm_fault *fault)
{
    switch (insn->z.mnemonic) {
    case ZYDIS_MNEMONIC_PUSHF:
    case ZYDIS_MNEMONIC_PUSHFD:
    case ZYDIS_MNEMONIC_PUSHFQ:
        return push_flags(v, insn, fault);
    case ZYDIS_MNEMONIC_POPF:
    case ZYDIS_MNEMONIC_POPFD:
    case ZYDIS_MNEMONIC_POPFQ:
        return pop_flags(v, insn, fault);
    case ZYDIS_MNEMONIC_CLI:
        return interrupt_flag(v, false, fault);
    case ZYDIS_MNEMONIC_STI:
        return interrupt_flag(v, true, fault);
    case ZYDIS_MNEMONIC_HLT:
        if (fvm_need_cpl0(v, fault))
            return FVM_FAULT;
        v->run = FVM_RUN_HALTED;
        return 0;
    case ZYDIS_MNEMONIC_IN:
    case ZYDIS_MNEMONIC_OUT:
        return port_io(v, insn, fault);
    case ZYDIS_MNEMONIC_INVD:
    case ZYDIS_MNEMONIC_WBINVD:
        return fvm_need_cpl0(v, fault); /* caches are the host's and coherent */
    default:
        return fvm_raise_ud(fault); /* not in any model: SMAP, MONITOR, VMX, SVM, SMX; and ud2 by definition */
    }
}

int fvm_system_exec(struct fvm_vcpu *v, const struct fvm_insn *insn, struct fvm_fault *fault)
{
    uint64_t next = fvm_next_rip(v, insn);
    uint8_t shadow = v->int_shadow;
    int rc;

    if ((insn->z.attributes & ZYDIS_ATTRIB_HAS_LOCK) && insn->z.mnemonic != ZYDIS_MNEMONIC_MOV)
        return fvm_raise_ud(fault);
    if (v->model && !fvm_cpu_model_allows(v->model, insn))
        return fvm_raise_ud(fault);
    v->int_shadow = 0;
    switch (group_of(insn)) {
    case GROUP_SIMPLE:
        rc = simple(v, insn, fault);
        break;
    case GROUP_CONTROL:
        rc = fvm_part_control(v, insn, fault);
        break;
    case GROUP_SEGMENT:
        rc = fvm_part_segment(v, insn, fault);
        break;
    case GROUP_TRANSFER:
        rc = fvm_part_transfer(v, insn, fault);
        break;
    case GROUP_XSAVE:
        rc = fvm_part_xsave(v, insn, fault);
        break;
    case GROUP_LEGACY:
        rc = fvm_part_legacy(v, insn, fault);
        break;
    default:
        rc = fvm_raise_ud(fault);
    }
    if (rc == FVM_FAULT) {
        v->int_shadow = shadow;
        return FVM_FAULT;
    }
    if (rc != FVM_PART_JUMPED)
        v->rip = next;
    return 0;
}
