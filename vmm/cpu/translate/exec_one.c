/*
 * exec_one.c - one instruction on precise state, when translated code could not run it: its operand is a device's register, lies
 * across two pages, or would overwrite translated code; or it is of a kind that is not worth translating.
 *
 * Instructions with a memory operand are executed by the host itself, on the bounce buffer: the operand is read from guest memory
 * (if the instruction reads it), one translated instruction runs with its operand redirected, the operand is written
 * back (if it writes). So nothing here knows what an instruction computes. Stack instructions are done in C.
 */
#include "vmm/cpu/descriptor.h"
#include "vmm/cpu/operand.h"
#include "vmm/cpu/translate/emit.h"
#include "vmm/cpu/translate/engine.h"
#include "vmm/cpu/translate/tr.h"

int fvm_exec_fetch(struct fvm_vcpu *v, struct fvm_insn *ret, struct fvm_fault *fault)
{
    uint8_t buf[16];
    uint64_t va = v->rip;
    if (fvm_vcpu_code_bits(v) != 64)
        va = (uint32_t)(va + v->seg[FVM_CS].base);
    unsigned first = (unsigned)(FVM_PAGE_SIZE - (va & FVM_PAGE_MASK)), have = FVM_MIN(first, 15u);
    unsigned user = v->cpl == 3 ? FVM_USER : 0;
    for (unsigned at = 0;;) {
        uint64_t entry;
        fvm_gpa gpa;
        uint64_t from = fvm_vcpu_code_bits(v) == 64 ? va + at : (uint32_t)(va + at);
        enum fvm_shadow_result r = fvm_shadow_miss(v->shadow, from, FVM_X | user, &entry, &gpa, fault);
        if (r == FVM_SHADOW_FAULT)
            return FVM_FAULT;
        if (r != FVM_SHADOW_OK) {
            *fault = (struct fvm_fault){.vector = FVM_EXC_GP, .has_code = true};
            return FVM_FAULT;
        }
        memcpy(buf + at, (const void *)(from + (entry & ~0xffull)), have - at);
        int d = fvm_decode(buf, have, fvm_vcpu_code_bits(v), ret);
        if (d == FVM_DECODE_OK) {
            if (fvm_seg16_fetch_ok(v, v->rip, ret->len))
                return 0;
            *fault = (struct fvm_fault){.vector = FVM_EXC_GP, .has_code = true};
            return FVM_FAULT;
        }
        if (d == FVM_DECODE_BAD || have == 15) {
            *fault = (struct fvm_fault){.vector = FVM_EXC_UD};
            return FVM_FAULT;
        }
        at = have;
        have = 15;
    }
}

static uint64_t next_rip(const struct fvm_vcpu *v, const struct fvm_insn *in)
{
    uint64_t n = v->rip + in->len;
    unsigned bits = fvm_vcpu_code_bits(v);
    return bits == 64 ? n : (uint32_t)n; /* 16-bit code: what is beyond the limit faults when it is fetched */
}

/* Run the snippet: guest registers loaded, one instruction on fs:[bounce], back. 0 or FVM_FAULT (the host trapped). */
static int run_snippet(struct fvm_vcpu *v, struct fvm_fault *fault)
{
    struct fvm_engine *e = v->engine;
    const uint8_t *code = e->code + e->snippet_off + 64 * v->index;
    uint32_t pending = 0;
    do { /* a request waits: the instruction is half done */
        pending |= __atomic_exchange_n(&v->request, 0, __ATOMIC_ACQ_REL);
        *fvm_slot(v, FVM_SLOT_HFLAGS) = v->rflags;
        fvm_enter(v, code);
    } while (*fvm_slot(v, FVM_SLOT_REASON) == FVM_EXIT_BAIL);
    __atomic_or_fetch(&v->request, pending, __ATOMIC_ACQ_REL);
    fvm_recover_flags(v, false);
    if (*fvm_slot(v, FVM_SLOT_REASON) == FVM_EXIT_ONE)
        return 0;
    uint64_t code_word = *fvm_slot(v, FVM_SLOT_FAULT_CODE);
    *fault = (struct fvm_fault){.vector = (uint8_t)*fvm_slot(v, FVM_SLOT_FAULT_VEC), .has_code = code_word >> 32,
                                .code = (uint32_t)code_word, .cr2 = *fvm_slot(v, FVM_SLOT_FAULT_CR2)};
    return FVM_FAULT;
}

static struct fvm_emit snippet_begin(struct fvm_vcpu *v)
{
    return (struct fvm_emit){.buf = v->engine->code_rw + v->engine->snippet_off + 64 * v->index, .max = 64};
}

static void snippet_end(struct fvm_vcpu *v, struct fvm_emit *em)
{
    struct fvm_engine *e = v->engine;
    e8(em, 0xe9);
    e32(em, e->tramp[FVM_TRAMP_ONE] - (e->snippet_off + 64 * v->index + em->at + 4));
    fvm_assert(em->at <= 64);
}

static bool is_bt(const struct fvm_insn *in)
{
    return (in->z.mnemonic == ZYDIS_MNEMONIC_BT || in->z.mnemonic == ZYDIS_MNEMONIC_BTS ||
            in->z.mnemonic == ZYDIS_MNEMONIC_BTR || in->z.mnemonic == ZYDIS_MNEMONIC_BTC) &&
           in->ops[1].type == ZYDIS_OPERAND_TYPE_REGISTER;
}

static int exec_on_bounce(struct fvm_vcpu *v, const struct fvm_insn *in, const ZydisDecodedOperand *op, struct fvm_fault *fault)
{
    unsigned size = op->size / 8u;
    bool writes = (op->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE) != 0;
    bool reads = (op->actions & ZYDIS_OPERAND_ACTION_MASK_READ) != 0 || (op->actions & ZYDIS_OPERAND_ACTION_CONDWRITE) || !writes ||
                 in->z.meta.category == ZYDIS_CATEGORY_X87_ALU; /* an unmasked exception: nothing is stored */
    fvm_gva va;
    uint64_t bit_reg = 0;
    int reg = -1;
    bool high;
    if (!is_bt(in)) {
        if (fvm_operand_linear(v, in, op, size, writes, &va, fault))
            return FVM_FAULT;
    } else { /* the register selects a word, too: do that part here */
        reg = fvm_decode_gpr(in->ops[1].reg.value, &high);
        bit_reg = v->regs[reg];
        int64_t n = size == 8 ? (int64_t)bit_reg >> 6 : size == 4 ? (int32_t)bit_reg >> 5 : (int16_t)bit_reg >> 4;
        uint64_t off = fvm_operand_offset(v, in, op) + (uint64_t)(n * (int64_t)size);
        int seg = fvm_decode_seg(op->mem.segment);
        off = in->z.address_width == 64 ? off : in->z.address_width == 32 ? (uint32_t)off : (uint16_t)off;
        if (fvm_segment_linear(v, seg < 0 ? FVM_DS : (unsigned)seg, off, size, writes, &va, fault))
            return FVM_FAULT;
        v->regs[reg] = bit_reg & (size * 8 - 1);
    }
    unsigned at = va & 63; /* keeps alignment faults what they are */
    fvm_assert(at + size <= sizeof v->bounce);
    int r = 0;
    if (writes)
        r = fvm_vmem_probe(v, va, size, FVM_W, FVM_AS_CPL, fault);
    if (!r && reads)
        r = fvm_vmem_read(v, va, v->bounce + at, size, FVM_AS_CPL, fault);
    if (!r) {
        struct fvm_emit em = snippet_begin(v);
        if (op->encoding == ZYDIS_OPERAND_ENCODING_DISP16_32_64) { /* moffs */
            bool store = op == &in->ops[0];
            e8(&em, 0x64);
            if (size == 2)
                e8(&em, 0x66);
            e_op_mem(&em, size == 8, (store ? 0x88u : 0x8au) | (size > 1), FVM_RAX, FVM_NOREG, FVM_NOREG, 0,
                     (int32_t)(FVM_OFF_BOUNCE + at));
        } else {
            fvm_emit_op_fs(&em, in, FVM_OFF_BOUNCE + at);
        }
        snippet_end(v, &em);
        r = run_snippet(v, fault);
    }
    if (reg >= 0)
        v->regs[reg] = bit_reg;
    if (!r && writes)
        r = fvm_vmem_write(v, va, v->bounce + at, size, FVM_AS_CPL, fault);
    return r;
}

/* What drivers do with devices' registers (EOI, IPIs): no need to run it on a bounce buffer. */
static bool is_plain_mov(const struct fvm_insn *in)
{
    if (in->z.mnemonic != ZYDIS_MNEMONIC_MOV)
        return false;
    for (unsigned k = 0; k < 2; k++) {
        bool high = false;
        if (in->ops[k].type == ZYDIS_OPERAND_TYPE_REGISTER && (fvm_decode_gpr(in->ops[k].reg.value, &high) < 0 || high))
            return false;
    }
    return true;
}

static int exec_mov(struct fvm_vcpu *v, const struct fvm_insn *in, struct fvm_fault *fault)
{
    unsigned bytes = in->ops[0].size / 8u;
    uint64_t value;
    if (fvm_operand_read(v, in, &in->ops[1], bytes, &value, fault))
        return FVM_FAULT;
    return fvm_operand_write(v, in, &in->ops[0], bytes, value, fault);
}

static bool is_atomic(const struct fvm_insn *in)
{
    return (in->z.attributes & ZYDIS_ATTRIB_HAS_LOCK) || in->z.mnemonic == ZYDIS_MNEMONIC_XCHG;
}

/* Read and write back with nothing in between: no other vCPU, no device. */
static int exec_atomic(struct fvm_vcpu *v, const struct fvm_insn *in, const ZydisDecodedOperand *op, struct fvm_fault *fault)
{
    fvm_bus_lock(v->bus);
    fvm_engine_stop(v->engine);
    int r = exec_on_bounce(v, in, op, fault);
    fvm_engine_go(v->engine);
    fvm_bus_unlock(v->bus);
    return r;
}

/* Two MMX registers as the processor reads them: pending x87 exceptions, and the x87 is in MMX state afterwards. */
int fvm_exec_read_mm(struct fvm_vcpu *v, unsigned a, unsigned b, uint8_t ret[16], struct fvm_fault *fault)
{
    struct fvm_emit em = snippet_begin(v);
    for (unsigned k = 0; k < 2; k++) { /* movq fs:[bounce + 8k], mm */
        e8(&em, 0x64), e8(&em, 0x0f), e8(&em, 0x7f);
        e_mem(&em, k ? b : a, FVM_NOREG, FVM_NOREG, 0, FVM_OFF_BOUNCE + 8 * (int32_t)k);
    }
    snippet_end(v, &em);
    if (run_snippet(v, fault))
        return FVM_FAULT;
    memcpy(ret, v->bounce, 16);
    return 0;
}

/* An instruction without memory operand, as it is. Never a branch: it would run off in the host. */
static int exec_plain(struct fvm_vcpu *v, const struct fvm_insn *in, struct fvm_fault *fault)
{
    if (in->z.meta.branch_type != ZYDIS_BRANCH_TYPE_NONE) {
        *fault = (struct fvm_fault){.vector = FVM_EXC_UD};
        return FVM_FAULT;
    }
    if (in->z.mnemonic == ZYDIS_MNEMONIC_LEA) { /* its RIP would be the host's */
        unsigned d = (unsigned)fvm_decode_gpr(in->ops[0].reg.value, NULL);
        fvm_reg_set(v, d, in->ops[0].size / 8u, fvm_operand_offset(v, in, &in->ops[1]));
        return 0;
    }
    struct fvm_emit em = snippet_begin(v);
    fvm_emit_copy(&em, in, fvm_vcpu_code_bits(v));
    snippet_end(v, &em);
    return run_snippet(v, fault);
}

static unsigned stack_bytes(const struct fvm_vcpu *v, const struct fvm_insn *in)
{
    unsigned bits = fvm_vcpu_code_bits(v);
    if (bits == 64)
        return in->z.operand_width == 16 && (in->z.attributes & ZYDIS_ATTRIB_HAS_OPERANDSIZE) ? 2 : 8;
    return in->z.operand_width / 8u;
}

static uint64_t to_width(uint64_t x, unsigned bytes) { return bytes == 8 ? x : bytes == 4 ? (uint32_t)x : (uint16_t)x; }

static int exec_enter(struct fvm_vcpu *v, const struct fvm_insn *in, struct fvm_fault *fault)
{
    unsigned bytes = stack_bytes(v, in), level = (unsigned)in->ops[1].imm.value.u & 31;
    uint64_t rbp = v->regs[FVM_RBP], rsp = v->regs[FVM_RSP], frame, word = rbp;
    int r = fvm_stack_push(v, bytes, &word, 1, fault);
    frame = v->regs[FVM_RSP];
    for (unsigned k = 1; k < level && !r; k++) { /* the outer frames' pointers */
        fvm_gva va;
        word = 0;
        r = fvm_segment_linear(v, FVM_SS, rbp - k * bytes, bytes, false, &va, fault) ||
            fvm_vmem_read(v, va, &word, bytes, FVM_AS_CPL, fault) || fvm_stack_push(v, bytes, &word, 1, fault);
    }
    if (level && !r)
        r = fvm_stack_push(v, bytes, &frame, 1, fault);
    if (!r) { /* a frame that could not be written faults now */
        fvm_gva va;
        fvm_stack_move(v, -(int64_t)in->ops[0].imm.value.u);
        r = fvm_segment_linear(v, FVM_SS, v->regs[FVM_RSP], bytes, true, &va, fault) ||
            fvm_vmem_probe(v, va, bytes, FVM_W, FVM_AS_CPL, fault);
    }
    if (r) {
        v->regs[FVM_RSP] = rsp;
        return FVM_FAULT;
    }
    fvm_reg_set(v, FVM_RBP, bytes, frame);
    return 0;
}

static int exec_pop(struct fvm_vcpu *v, const struct fvm_insn *in, unsigned bytes, struct fvm_fault *fault)
{
    uint64_t value, rsp = v->regs[FVM_RSP];
    if (fvm_stack_peek(v, 0, bytes, &value, 1, fault))
        return FVM_FAULT;
    fvm_stack_move(v, bytes);
    if (fvm_operand_write(v, in, &in->ops[0], bytes, value, fault)) {
        v->regs[FVM_RSP] = rsp;
        return FVM_FAULT;
    }
    return 0;
}

static bool condition(uint64_t f, unsigned cc)
{
    bool cf = f & FVM_F_CF, zf = f & FVM_F_ZF, sf = f & FVM_F_SF, of = f & FVM_F_OF, pf = f & FVM_F_PF, yes;
    switch (cc >> 1) {
    case 0: yes = of; break;
    case 1: yes = cf; break;
    case 2: yes = zf; break;
    case 3: yes = cf || zf; break;
    case 4: yes = sf; break;
    case 5: yes = pf; break;
    case 6: yes = sf != of; break;
    default: yes = zf || sf != of; break;
    }
    return yes != (cc & 1);
}

/* jcc, jcxz, loop: the counter changes only if the target can be gone to */
static int exec_cond_branch(struct fvm_vcpu *v, const struct fvm_insn *in, unsigned bytes, uint64_t *ret_next, struct fvm_fault *fault)
{
    unsigned width = in->z.address_width / 8u;
    uint64_t target = to_width(*ret_next + (uint64_t)in->z.raw.imm[0].value.s, bytes), count = fvm_reg_get(v, FVM_RCX, width);
    bool loops = false, taken, zf = v->rflags & FVM_F_ZF;
    switch (in->z.mnemonic) {
    case ZYDIS_MNEMONIC_JCXZ: case ZYDIS_MNEMONIC_JECXZ: case ZYDIS_MNEMONIC_JRCXZ:
        taken = !count;
        break;
    case ZYDIS_MNEMONIC_LOOP: case ZYDIS_MNEMONIC_LOOPE: case ZYDIS_MNEMONIC_LOOPNE:
        loops = true;
        count = to_width(count - 1, width);
        taken = count && (in->z.mnemonic == ZYDIS_MNEMONIC_LOOP || zf == (in->z.mnemonic == ZYDIS_MNEMONIC_LOOPE));
        break;
    default:
        taken = condition(v->rflags, in->z.opcode & 15);
    }
    if (taken && fvm_desc_check_rip(v, &v->seg[FVM_CS], target, 0, fault))
        return FVM_FAULT;
    if (loops)
        fvm_reg_set(v, FVM_RCX, width, count);
    if (taken)
        *ret_next = target;
    return 0;
}

/* push, pop, leave, enter, near call and ret, conditional branches: -1 if it was none of them */
static int exec_stack(struct fvm_vcpu *v, const struct fvm_insn *in, uint64_t *ret_next, struct fvm_fault *fault)
{
    unsigned bytes = stack_bytes(v, in);
    uint64_t value, next = *ret_next;
    switch (in->z.mnemonic) {
    case ZYDIS_MNEMONIC_PUSH:
        if (in->ops[0].type == ZYDIS_OPERAND_TYPE_IMMEDIATE)
            value = (uint64_t)in->ops[0].imm.value.s;
        else if (fvm_operand_read(v, in, &in->ops[0], bytes, &value, fault))
            return FVM_FAULT;
        return fvm_stack_push(v, bytes, &value, 1, fault);
    case ZYDIS_MNEMONIC_POP:
        return exec_pop(v, in, bytes, fault);
    case ZYDIS_MNEMONIC_ENTER:
        return exec_enter(v, in, fault);
    case ZYDIS_MNEMONIC_LEAVE: {
        uint64_t rsp = v->regs[FVM_RSP];
        v->regs[FVM_RSP] = v->regs[FVM_RBP];
        if (fvm_stack_peek(v, 0, bytes, &value, 1, fault)) {
            v->regs[FVM_RSP] = rsp;
            return FVM_FAULT;
        }
        fvm_stack_move(v, bytes);
        fvm_reg_set(v, FVM_RBP, bytes, value);
        return 0;
    }
    case ZYDIS_MNEMONIC_CALL:
        if (in->ops[0].type == ZYDIS_OPERAND_TYPE_IMMEDIATE)
            value = next + (uint64_t)in->z.raw.imm[0].value.s;
        else if (fvm_operand_read(v, in, &in->ops[0], bytes, &value, fault))
            return FVM_FAULT;
        value = to_width(value, bytes);
        if (fvm_desc_check_rip(v, &v->seg[FVM_CS], value, 0, fault) || fvm_stack_push(v, bytes, &next, 1, fault))
            return FVM_FAULT;
        break;
    case ZYDIS_MNEMONIC_RET:
        if (fvm_stack_peek(v, 0, bytes, &value, 1, fault) || fvm_desc_check_rip(v, &v->seg[FVM_CS], value, 0, fault))
            return FVM_FAULT;
        fvm_stack_move(v, bytes + (in->z.operand_count_visible ? (int64_t)in->ops[0].imm.value.u : 0));
        break;
    case ZYDIS_MNEMONIC_JMP:
        if (in->ops[0].type == ZYDIS_OPERAND_TYPE_IMMEDIATE)
            value = next + (uint64_t)in->z.raw.imm[0].value.s;
        else if (fvm_operand_read(v, in, &in->ops[0], bytes, &value, fault))
            return FVM_FAULT;
        break;
    default:
        if (in->z.meta.category != ZYDIS_CATEGORY_COND_BR || !in->z.raw.imm[0].is_relative)
            return -1;
        return exec_cond_branch(v, in, bytes, ret_next, fault);
    }
    *ret_next = to_width(value, bytes);
    return fvm_desc_check_rip(v, &v->seg[FVM_CS], *ret_next, 0, fault);
}

static int exec_xlat(struct fvm_vcpu *v, const struct fvm_insn *in, struct fvm_fault *fault)
{
    uint64_t off = v->regs[FVM_RBX] + (v->regs[FVM_RAX] & 0xff);
    uint8_t b;
    fvm_gva va;
    if (in->z.address_width != 64)
        off = in->z.address_width == 32 ? (uint32_t)off : (uint16_t)off;
    if (fvm_segment_linear(v, fvm_insn_segment(in), off, 1, false, &va, fault) ||
        fvm_vmem_read(v, va, &b, 1, FVM_AS_CPL, fault))
        return FVM_FAULT;
    fvm_reg_set(v, FVM_RAX, 1, b);
    return 0;
}

int fvm_exec_one(struct fvm_vcpu *v, struct fvm_fault *fault)
{
    struct fvm_insn in;
    if (fvm_exec_fetch(v, &in, fault))
        return FVM_FAULT;
    bool selector_style = fvm_vcpu_real(v) || fvm_vcpu_v86(v); /* no VEX there */
    if (!fvm_cpu_model_allows(v->model, &in) || (selector_style && in.z.encoding != ZYDIS_INSTRUCTION_ENCODING_LEGACY)) {
        *fault = (struct fvm_fault){.vector = FVM_EXC_UD};
        return FVM_FAULT;
    }
    if (fvm_insn_is_string(&in) || in.z.meta.category == ZYDIS_CATEGORY_IOSTRINGOP)
        return fvm_exec_string(v, &in, fault);
    if (fvm_insn_is_system(&in))
        return fvm_system_exec(v, &in, fault);
    uint64_t next = next_rip(v, &in);
    int r = exec_stack(v, &in, &next, fault);
    if (r < 0) {
        const ZydisDecodedOperand *mem = NULL;
        for (unsigned k = 0; k < in.z.operand_count; k++)
            if (in.ops[k].type == ZYDIS_OPERAND_TYPE_MEMORY && in.ops[k].mem.type != ZYDIS_MEMOP_TYPE_AGEN)
                mem = &in.ops[k];
        if (in.z.mnemonic == ZYDIS_MNEMONIC_XLAT)
            r = exec_xlat(v, &in, fault);
        else if (!mem)
            r = exec_plain(v, &in, fault);
        else if (mem->mem.type == ZYDIS_MEMOP_TYPE_VSIB)
            r = fvm_exec_gather(v, &in, fault);
        else if (fvm_insn_is_vmaskmov(&in))
            r = fvm_exec_vmaskmov(v, &in, fault);
        else if (mem->visibility != ZYDIS_OPERAND_VISIBILITY_EXPLICIT)
            r = fvm_exec_maskmov(v, &in, fault);
        else if (is_plain_mov(&in))
            r = exec_mov(v, &in, fault);
        else if (v->engine->vcpu_count > 1 && is_atomic(&in))
            r = exec_atomic(v, &in, mem, fault);
        else
            r = exec_on_bounce(v, &in, mem, fault);
    }
    if (!r)
        v->rip = next;
    return r;
}

/* fvm_system_exec, and what fast_sys.c wants to know of it */
static int exec_system(struct fvm_vcpu *v, const struct fvm_insn *in, struct fvm_fault *fault)
{
    struct fvm_vcpu_priv *p = v->priv;
    uint32_t leaf = (uint32_t)v->regs[FVM_RAX], sub = (uint32_t)v->regs[FVM_RCX];
    p->stats.system_by[in->z.mnemonic % FVM_SYSTEM_KINDS]++;
    int r = fvm_system_exec(v, in, fault);
    if (r)
        return r;
    if (in->z.mnemonic == ZYDIS_MNEMONIC_CPUID) {
        unsigned k = fvm_cpuid_bucket(leaf, sub);
        p->cpuid[k].leaf = leaf;
        p->cpuid[k].sub = sub;
        p->cpuid[k].out[0] = (uint32_t)v->regs[FVM_RAX];
        p->cpuid[k].out[1] = (uint32_t)v->regs[FVM_RBX];
        p->cpuid[k].out[2] = (uint32_t)v->regs[FVM_RCX];
        p->cpuid[k].out[3] = (uint32_t)v->regs[FVM_RDX];
        p->cpuid[k].stamp = fvm_cpuid_stamp(v);
    } else if (in->z.mnemonic == ZYDIS_MNEMONIC_WRMSR && (sub == 0x1b || sub == 0x1a0)) { /* APIC_BASE, MISC_ENABLE */
        p->cpuid_generation++;
    }
    if (!fvm_paging_key_ok(v)) {
        fvm_control_paging(v, &p->paging);
        p->paging_key[0] = v->cr0;
        p->paging_key[1] = v->cr4;
        p->paging_key[2] = v->efer | (v->rflags & FVM_F_AC);
    }
    return 0;
}

int fvm_exec_class(struct fvm_vcpu *v, unsigned class, struct fvm_fault *fault)
{
    struct fvm_insn in;
    switch (class) {
    case FVM_C_UD:
        *fault = (struct fvm_fault){.vector = FVM_EXC_UD};
        return FVM_FAULT;
    case FVM_C_NM:
        *fault = (struct fvm_fault){.vector = FVM_EXC_NM};
        return FVM_FAULT;
    case FVM_C_SYSTEM:
        if (fvm_exec_fetch(v, &in, fault))
            return FVM_FAULT;
        return exec_system(v, &in, fault);
    default:
        return fvm_exec_one(v, fault);
    }
}
