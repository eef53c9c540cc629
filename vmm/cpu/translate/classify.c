/*
 * classify.c - how each guest instruction is translated: copied, redirected, or one of the special classes.
 */
#include "vmm/cpu/translate/tr.h"

static bool is_reg(const ZydisDecodedOperand *o) { return o->type == ZYDIS_OPERAND_TYPE_REGISTER; }
static bool is_mem(const ZydisDecodedOperand *o) { return o->type == ZYDIS_OPERAND_TYPE_MEMORY; }

static bool uses_fpu(const struct fvm_insn *in)
{
    for (unsigned k = 0; k < in->z.operand_count; k++) {
        if (!is_reg(&in->ops[k]))
            continue;
        ZydisRegister r = in->ops[k].reg.value;
        if ((r >= ZYDIS_REGISTER_ST0 && r <= ZYDIS_REGISTER_ST7) || (r >= ZYDIS_REGISTER_MM0 && r <= ZYDIS_REGISTER_MM7) ||
            (r >= ZYDIS_REGISTER_XMM0 && r <= ZYDIS_REGISTER_ZMM31))
            return true;
    }
    return in->z.meta.category == ZYDIS_CATEGORY_X87_ALU;
}

static void analyse_regs(struct fvm_tr_insn *i)
{
    bool high = false;
    for (unsigned k = 0; k < i->in.z.operand_count; k++) {
        const ZydisDecodedOperand *o = &i->in.ops[k];
        bool h = false;
        if (is_reg(o)) {
            int r = fvm_decode_gpr(o->reg.value, &h);
            if (r >= 0) {
                if (h)
                    high = true;
                i->regs |= (uint16_t)(1u << (h ? r - 4 : r));
            }
        } else if (is_mem(o)) {
            int b = fvm_decode_gpr(o->mem.base, &h), x = fvm_decode_gpr(o->mem.index, &h);
            if (b >= 0)
                i->regs |= (uint16_t)(1u << b);
            if (x >= 0)
                i->regs |= (uint16_t)(1u << x);
        }
    }
    i->high_byte = high;
}

static int string_class(const struct fvm_insn *in)
{
    return fvm_insn_is_string(in) ? FVM_C_STRING : -1;
}

static int branch_class(const struct fvm_insn *in)
{
    switch (in->z.meta.category) {
    case ZYDIS_CATEGORY_COND_BR:
        if (in->z.opcode >= 0xe0 && in->z.opcode <= 0xe3 && in->z.opcode_map == ZYDIS_OPCODE_MAP_DEFAULT)
            return FVM_C_LOOP;
        if (in->z.mnemonic == ZYDIS_MNEMONIC_XBEGIN || in->z.mnemonic == ZYDIS_MNEMONIC_XEND)
            return FVM_C_UD;
        return FVM_C_JCC;
    case ZYDIS_CATEGORY_UNCOND_BR:
        if (in->z.meta.branch_type == ZYDIS_BRANCH_TYPE_FAR)
            return FVM_C_SYSTEM;
        return in->ops[0].type == ZYDIS_OPERAND_TYPE_IMMEDIATE ? FVM_C_JMP : FVM_C_JMP_IND;
    case ZYDIS_CATEGORY_CALL:
        if (in->z.meta.branch_type == ZYDIS_BRANCH_TYPE_FAR)
            return FVM_C_SYSTEM;
        return in->ops[0].type == ZYDIS_OPERAND_TYPE_IMMEDIATE ? FVM_C_CALL : FVM_C_CALL_IND;
    case ZYDIS_CATEGORY_RET:
        if (in->z.mnemonic == ZYDIS_MNEMONIC_RET)
            return in->z.meta.branch_type == ZYDIS_BRANCH_TYPE_FAR ? FVM_C_SYSTEM : FVM_C_RET;
        return FVM_C_SYSTEM;
    default:
        return -1;
    }
}

/* sensitive instructions with a quick way */
static int sensitive_class(const struct fvm_tr *tr, const struct fvm_insn *in)
{
    bool kernel = !tr->user && !(tr->mode & (FVM_MODE_MID | FVM_MODE_SEG)), kernel64 = kernel && tr->bits == 64;
    switch (in->z.mnemonic) {
    case ZYDIS_MNEMONIC_CLI:
        return kernel ? FVM_C_CLI : FVM_C_SYSTEM;
    case ZYDIS_MNEMONIC_STI:
        return kernel ? FVM_C_STI : FVM_C_SYSTEM;
    case ZYDIS_MNEMONIC_PUSHFQ:
        return FVM_C_PUSHF;
    case ZYDIS_MNEMONIC_PUSHFD:
        return tr->mode & FVM_MODE_SEG ? FVM_C_SYSTEM : FVM_C_PUSHF;
    case ZYDIS_MNEMONIC_RDTSC:
    case ZYDIS_MNEMONIC_RDTSCP:
        return tr->v->tsc_direct && (!tr->user || !(tr->v->cr4 & FVM_CR4_TSD)) ? FVM_C_RDTSC : FVM_C_SYSTEM;
    case ZYDIS_MNEMONIC_SWAPGS:
        return kernel64 ? FVM_C_SWAPGS : FVM_C_SYSTEM;
    case ZYDIS_MNEMONIC_SYSCALL:
        return tr->bits == 64 ? FVM_C_FAST_SYS : FVM_C_SYSTEM;
    case ZYDIS_MNEMONIC_SYSRET:
        return kernel64 ? FVM_C_FAST_SYS : FVM_C_SYSTEM;
    case ZYDIS_MNEMONIC_IRETQ: case ZYDIS_MNEMONIC_INVLPG: case ZYDIS_MNEMONIC_WRMSR:
        return kernel64 ? FVM_C_FAST_SYS : FVM_C_SYSTEM;
    case ZYDIS_MNEMONIC_CPUID: case ZYDIS_MNEMONIC_WRFSBASE: case ZYDIS_MNEMONIC_WRGSBASE: case ZYDIS_MNEMONIC_XSAVE:
    case ZYDIS_MNEMONIC_XSAVE64: case ZYDIS_MNEMONIC_XSAVEOPT: case ZYDIS_MNEMONIC_XSAVEOPT64: case ZYDIS_MNEMONIC_XRSTOR:
    case ZYDIS_MNEMONIC_XRSTOR64:
        return tr->bits == 64 ? FVM_C_FAST_SYS : FVM_C_SYSTEM;
    case ZYDIS_MNEMONIC_RDFSBASE: case ZYDIS_MNEMONIC_RDGSBASE:
        return tr->bits == 64 && (tr->v->cr4 & FVM_CR4_FSGSBASE) ? FVM_C_MOV_FROM_SREG : FVM_C_SYSTEM;
    case ZYDIS_MNEMONIC_MOV:
        if (kernel64 && is_reg(&in->ops[0]) && in->ops[0].reg.value == ZYDIS_REGISTER_CR3)
            return FVM_C_FAST_SYS;
        if (is_reg(&in->ops[0]) && is_reg(&in->ops[1])) {
            bool high;
            ZydisRegister s = in->ops[1].reg.value;
            if (fvm_decode_seg(s) >= 0 && fvm_decode_gpr(in->ops[0].reg.value, &high) >= 0)
                return FVM_C_MOV_FROM_SREG;
            if (kernel64 && (s == ZYDIS_REGISTER_CR0 || s == ZYDIS_REGISTER_CR2 || s == ZYDIS_REGISTER_CR3 ||
                             s == ZYDIS_REGISTER_CR4))
                return FVM_C_MOV_FROM_SREG;
        }
        return -1;
    default:
        return -1;
    }
}

static int plain_class(struct fvm_tr_insn *i, unsigned bits)
{
    const struct fvm_insn *in = &i->in;
    switch (in->z.mnemonic) {
    case ZYDIS_MNEMONIC_PUSH:
        return is_reg(&in->ops[0]) && fvm_decode_seg(in->ops[0].reg.value) >= 0 ? FVM_C_SYSTEM : FVM_C_PUSH;
    case ZYDIS_MNEMONIC_POP:
        if (is_mem(&in->ops[0]))
            return FVM_C_ONE;
        return fvm_decode_seg(in->ops[0].reg.value) >= 0 ? FVM_C_SYSTEM : FVM_C_POP;
    case ZYDIS_MNEMONIC_LEAVE:
        return FVM_C_LEAVE;
    case ZYDIS_MNEMONIC_ENTER: case ZYDIS_MNEMONIC_XLAT: case ZYDIS_MNEMONIC_PUSHA: case ZYDIS_MNEMONIC_PUSHAD:
    case ZYDIS_MNEMONIC_POPA: case ZYDIS_MNEMONIC_POPAD: case ZYDIS_MNEMONIC_MASKMOVQ: case ZYDIS_MNEMONIC_MASKMOVDQU:
    case ZYDIS_MNEMONIC_VMASKMOVDQU: case ZYDIS_MNEMONIC_DAA: case ZYDIS_MNEMONIC_DAS: case ZYDIS_MNEMONIC_AAA:
    case ZYDIS_MNEMONIC_AAS: case ZYDIS_MNEMONIC_AAM: case ZYDIS_MNEMONIC_AAD: case ZYDIS_MNEMONIC_SALC:
        return FVM_C_ONE;
    case ZYDIS_MNEMONIC_LEA:
        return FVM_C_LEA;
    case ZYDIS_MNEMONIC_NOP: case ZYDIS_MNEMONIC_ENDBR64: case ZYDIS_MNEMONIC_ENDBR32: case ZYDIS_MNEMONIC_CLFLUSH:
    case ZYDIS_MNEMONIC_CLFLUSHOPT: case ZYDIS_MNEMONIC_CLWB: case ZYDIS_MNEMONIC_CLDEMOTE:
        return FVM_C_DROP;
    case ZYDIS_MNEMONIC_PAUSE:
        if (in->z.raw.rex.B) /* with REX.B processors do xchg rax, r8 */
            i->regs |= 1u << FVM_RAX | 1u << FVM_R8;
        return FVM_C_IDENT;
    case ZYDIS_MNEMONIC_UD0: case ZYDIS_MNEMONIC_UD1: case ZYDIS_MNEMONIC_UD2:
        return FVM_C_UD;
    case ZYDIS_MNEMONIC_BT: case ZYDIS_MNEMONIC_BTS: case ZYDIS_MNEMONIC_BTR: case ZYDIS_MNEMONIC_BTC:
        return is_mem(&in->ops[0]) && is_reg(&in->ops[1]) ? FVM_C_BT_MEM : -1;
    case ZYDIS_MNEMONIC_INC: case ZYDIS_MNEMONIC_DEC:
        return bits != 64 && in->z.opcode >= 0x40 && in->z.opcode <= 0x4f ? FVM_C_INCDEC32 : -1;
    default:
        break;
    }
    if (in->z.meta.category == ZYDIS_CATEGORY_IOSTRINGOP)
        return FVM_C_ONE;
    if (in->z.meta.category == ZYDIS_CATEGORY_PREFETCH || in->z.meta.category == ZYDIS_CATEGORY_WIDENOP ||
        in->z.meta.category == ZYDIS_CATEGORY_NOP || in->z.meta.category == ZYDIS_CATEGORY_PREFETCHWT1)
        return FVM_C_DROP;
    return -1;
}

static int memory_class(const struct fvm_tr *tr, struct fvm_tr_insn *i)
{
    const struct fvm_insn *in = &i->in;
    for (unsigned k = 0; k < in->z.operand_count; k++) {
        const ZydisDecodedOperand *o = &in->ops[k];
        if (!is_mem(o) || o->mem.type == ZYDIS_MEMOP_TYPE_AGEN)
            continue;
        if (o->mem.type != ZYDIS_MEMOP_TYPE_MEM || o->visibility != ZYDIS_OPERAND_VISIBILITY_EXPLICIT)
            return FVM_C_ONE;
        i->mem_op = (uint8_t)k;
        if (o->encoding == ZYDIS_OPERAND_ENCODING_DISP16_32_64)
            return FVM_C_MOFFS;
    }
    if (in->z.mnemonic == ZYDIS_MNEMONIC_CMPXCHG && i->mem_op == 0 && in->ops[0].size == 64 &&
        (in->z.attributes & ZYDIS_ATTRIB_HAS_LOCK) && fvm_tr_unlocked(tr))
        return FVM_C_CMPXCHG;
    return i->mem_op != 0xff ? FVM_C_IDENT_MEM : FVM_C_IDENT;
}

static void needs(struct fvm_tr *tr, struct fvm_tr_insn *i)
{
    struct fvm_memref m;
    switch (i->class) {
    case FVM_C_IDENT_MEM:
        fvm_tr_memref(tr, i, i->mem_op, &m);
        i->need = fvm_tr_memref_form_a(&m) ? 1 : 3;
        break;
    case FVM_C_PUSHF:
        i->need = tr->bits == 64 ? 3 : 7;
        break;
    case FVM_C_MOFFS: case FVM_C_SWAPGS: case FVM_C_RET: case FVM_C_JMP_IND: case FVM_C_CALL_IND:
        i->need = 3;
        break;
    case FVM_C_CALL:
        i->need = 3;
        break;
    case FVM_C_PUSH:
        i->need = is_reg(&i->in.ops[0]) ? (tr->bits == 64 ? 1 : 3) : tr->bits == 64 ? 3 : 7;
        break;
    case FVM_C_POP: case FVM_C_LEAVE:
        i->need = tr->bits == 64 ? 1 : 3;
        break;
    case FVM_C_BT_MEM: case FVM_C_CMPXCHG:
        i->need = 7;
        break;
    case FVM_C_FAST_SYS:
        i->need = is_mem(&i->in.ops[0]) ? 3 : 0;
        break;
    case FVM_C_STI: case FVM_C_RDTSC:
        i->need = 1;
        break;
    case FVM_C_LEA:
        fvm_tr_memref(tr, i, 1, &m);
        i->need = m.anchored && i->in.ops[0].size == 16; /* the rest of the register stays */
        break;
    default:
        i->need = 0;
    }
}

static bool names_memory(const struct fvm_insn *in)
{
    for (unsigned k = 0; k < in->z.operand_count_visible; k++)
        if (is_mem(&in->ops[k]))
            return true;
    return false;
}

void fvm_tr_classify(struct fvm_tr *tr, struct fvm_tr_insn *i)
{
    const struct fvm_insn *in = &i->in;
    int c;
    i->mem_op = 0xff;
    if (!fvm_cpu_model_allows(tr->v->model, in)) {
        i->class = FVM_C_UD;
        return;
    }
    analyse_regs(i);
    fvm_tr_flags_analyse(i);
    if ((tr->mode & FVM_MODE_FPU_TRAP) && uses_fpu(in))
        c = FVM_C_NM;
    else if ((c = sensitive_class(tr, in)) < 0 && (c = branch_class(in)) < 0 && (c = string_class(in)) < 0 &&
             (c = plain_class(i, tr->bits)) < 0)
        c = fvm_insn_is_system(in) ? FVM_C_SYSTEM : memory_class(tr, i);
    if (tr->mode & FVM_MODE_SEG)
        c = (int)fvm_seg16_class(tr, i, (unsigned)c);
    else if (tr->bits == 32 && (in->z.attributes & ZYDIS_ATTRIB_HAS_SEGMENT_CS) && names_memory(in) && c != FVM_C_SYSTEM &&
             c != FVM_C_LEA && c != FVM_C_DROP)
        c = FVM_C_ONE; /* code segments are not writable */
    else if (tr->bits == 32 && c == FVM_C_BT_MEM && (in->z.attributes & (ZYDIS_ATTRIB_HAS_SEGMENT_FS | ZYDIS_ATTRIB_HAS_SEGMENT_GS)))
        c = FVM_C_ONE;
    else if (tr->bits == 32 && in->z.address_width == 16 && c != FVM_C_SYSTEM && c != FVM_C_LEA && c != FVM_C_DROP &&
        (names_memory(in) || c == FVM_C_STRING || c == FVM_C_LOOP))
        c = FVM_C_ONE; /* addresses that wrap at 64 KiB, counts in cx: exec_one's */
    i->class = (uint8_t)c;
    if (c == FVM_C_LOOP)
        i->regs |= 1u << FVM_RCX;
    needs(tr, i);
}

bool fvm_tr_ends_block(const struct fvm_tr_insn *i)
{
    return (i->class >= FVM_C_JMP && i->class <= FVM_C_CALL_IND) || i->class >= FVM_C_SYSCALL;
}
