/* cpu/segment and its instructions: loads and their faults, far transfers between 64 and 32-bit code, gates, tables. */
#include "tests/unit/cpu_fixture.h"

static void loads(void)
{
    struct cpu_fixture f;

    fixture_long(&f);
    f.v->regs[FVM_RAX] = S_UDATA;
    CU_ASSERT_EQUAL(EXEC(&f, "\x8e\xd8"), 0); /* mov ds, eax */
    CU_ASSERT_EQUAL(f.v->seg[FVM_DS].sel, S_UDATA);
    CU_ASSERT_EQUAL(f.v->seg[FVM_DS].limit, 0xffffffff);
    CU_ASSERT_EQUAL(f.v->seg[FVM_DS].attr, 0xc0f3);
    CU_ASSERT_EQUAL(f.v->rip, T_KCODE + 2);
    f.v->seg[FVM_FS].base = f.v->seg_base_fs = 0x1234;
    f.v->regs[FVM_RAX] = 0;
    CU_ASSERT_EQUAL(EXEC(&f, "\x8e\xe0"), 0); /* mov fs, eax: null clears the base, as on Intel */
    CU_ASSERT_EQUAL(f.v->seg_base_fs, 0);
    CU_ASSERT_EQUAL(EXEC(&f, "\x8e\xd0"), 0); /* mov ss, eax: null is fine in ring 0 of 64-bit mode */
    CU_ASSERT_EQUAL(f.v->int_shadow, FVM_SHADOW_SS);
    f.v->regs[FVM_RAX] = S_KDATA;
    CU_ASSERT_EQUAL(EXEC(&f, "\x8e\xd0"), 0);
    f.v->regs[FVM_RAX] = ~0ull;
    CU_ASSERT_EQUAL(EXEC(&f, "\x8c\xd0"), 0); /* mov eax, ss */
    CU_ASSERT_EQUAL(f.v->regs[FVM_RAX], S_KDATA);
    CU_ASSERT_EQUAL(f.v->int_shadow, 0);
    f.v->regs[FVM_RAX] = ~0ull;
    CU_ASSERT_EQUAL(EXEC(&f, "\x66\x8c\xd0"), 0); /* mov ax, ss */
    CU_ASSERT_EQUAL(f.v->regs[FVM_RAX], 0xffffffffffff0000ull | S_KDATA);
    fixture_end(&f);
}

static void load_faults(void)
{
    static const struct {
        uint8_t modrm; /* of mov sreg, eax */
        uint16_t sel;
        uint8_t cpl, vector;
        uint16_t code;
    } t[] = {
        {0xd8, S_TSS, 0, FVM_EXC_GP, S_TSS},          /* ds: system descriptor */
        {0xd8, S_XO, 0, FVM_EXC_GP, S_XO},            /* execute-only code */
        {0xd8, S_NP, 0, FVM_EXC_NP, S_NP},
        {0xd8, S_KDATA, 3, FVM_EXC_GP, S_KDATA},      /* DPL 0 from ring 3 */
        {0xd8, S_KDATA | 3, 0, FVM_EXC_GP, S_KDATA},  /* RPL 3 */
        {0xd8, 0x100, 0, FVM_EXC_GP, 0x100},          /* beyond the limit */
        {0xd8, 0x0c, 0, FVM_EXC_GP, 0x0c},            /* no LDT */
        {0xd0, S_RO, 0, FVM_EXC_GP, S_RO},            /* ss: not writable */
        {0xd0, S_NP, 0, FVM_EXC_SS, S_NP},
        {0xd0, S_UDATA, 0, FVM_EXC_GP, S_UDATA & ~3}, /* RPL != CPL */
        {0xd0, 0, 3, FVM_EXC_GP, 0},                  /* null in ring 3 */
    };
    struct cpu_fixture f;

    fixture_long(&f);
    for (unsigned i = 0; i < FVM_ARRAY_SIZE(t); i++) {
        char code[2] = {(char)0x8e, (char)t[i].modrm};
        uint64_t rip;

        set_ring(&f, t[i].cpl, 64);
        rip = f.v->rip;
        f.v->regs[FVM_RAX] = t[i].sel;
        CU_ASSERT_EQUAL(exec_bytes(&f, code, 2), FVM_FAULT);
        ASSERT_FAULT(&f, t[i].vector, t[i].code);
        CU_ASSERT_EQUAL(f.v->rip, rip);
    }
    fixture_end(&f);
}

static void accessed_bit(void)
{
    struct cpu_fixture f;

    fixture_long(&f);
    gdt(&f, S_RO, flat_desc(0xc092));
    f.v->regs[FVM_RAX] = S_RO;
    CU_ASSERT_EQUAL(EXEC(&f, "\x8e\xd8"), 0);
    CU_ASSERT_EQUAL(get64(&f, T_GDT + S_RO), flat_desc(0xc093));
    CU_ASSERT_EQUAL(f.v->seg[FVM_DS].attr, 0xc093);
    put64(&f, T_PT + (T_GDT >> 12) * 8, T_GDT | 1); /* GDT read-only: loading an accessed descriptor must not write */
    fvm_control_reload(f.v);
    CU_ASSERT_EQUAL(EXEC(&f, "\x8e\xd8"), 0);
    put64(&f, T_GDT + S_RO, flat_desc(0xc092));
    CU_ASSERT_EQUAL(EXEC(&f, "\x8e\xd8"), FVM_FAULT);
    ASSERT_FAULT(&f, FVM_EXC_PF, 3);
    fixture_end(&f);
}

static void push_and_pop(void)
{
    struct cpu_fixture f;

    fixture_long(&f);
    f.v->seg[FVM_FS].sel = 0x63;
    CU_ASSERT_EQUAL(EXEC(&f, "\x0f\xa0"), 0); /* push fs */
    CU_ASSERT_EQUAL(f.v->regs[FVM_RSP], T_KSTACK - 8);
    CU_ASSERT_EQUAL(get64(&f, T_KSTACK - 8), 0x63);
    put64(&f, T_KSTACK - 8, S_UDATA);
    CU_ASSERT_EQUAL(EXEC(&f, "\x0f\xa9"), 0); /* pop gs */
    CU_ASSERT_EQUAL(f.v->seg[FVM_GS].sel, S_UDATA);
    CU_ASSERT_EQUAL(f.v->regs[FVM_RSP], T_KSTACK);
    fixture_end(&f);
}

static void far_64_to_32_and_back(void)
{
    struct cpu_fixture f;

    fixture_long(&f);
    f.v->regs[FVM_RSP] = T_KSTACK - 16;
    put64(&f, T_KSTACK - 16, 0x31000);
    put64(&f, T_KSTACK - 8, S_K32);
    CU_ASSERT_EQUAL(EXEC(&f, "\x48\xcb"), 0); /* lretq */
    CU_ASSERT_EQUAL(fvm_vcpu_code_bits(f.v), 32);
    CU_ASSERT_EQUAL(f.v->rip, 0x31000);
    CU_ASSERT_EQUAL(f.v->regs[FVM_RSP], T_KSTACK);
    /* what the trampoline does: paging off, PAE/root, paging on */
    f.v->regs[FVM_RAX] = FVM_CR0_PE;
    CU_ASSERT_EQUAL(EXEC(&f, "\x0f\x22\xc0"), 0);
    CU_ASSERT_FALSE(fvm_vcpu_long(f.v));
    CU_ASSERT_EQUAL(f.v->rip, 0x31003);
    f.v->regs[FVM_RAX] = FVM_CR4_PAE;
    CU_ASSERT_EQUAL(EXEC(&f, "\x0f\x22\xe0"), 0);
    f.v->regs[FVM_RAX] = FVM_CR0_PE | FVM_CR0_PG;
    CU_ASSERT_EQUAL(EXEC(&f, "\x0f\x22\xc0"), 0);
    CU_ASSERT_TRUE(fvm_vcpu_long(f.v));
    CU_ASSERT_EQUAL(fvm_vcpu_code_bits(f.v), 32);
    f.v->regs[FVM_RAX] = S_K64;
    CU_ASSERT_EQUAL(EXEC(&f, "\xea\x00\x20\x03\x00\x10\x00"), 0); /* ljmp 0x10:0x32000 */
    CU_ASSERT_EQUAL(fvm_vcpu_code_bits(f.v), 64);
    CU_ASSERT_EQUAL(f.v->rip, 0x32000);
    fixture_end(&f);
}

static void far_memory_and_call(void)
{
    struct cpu_fixture f;

    fixture_long(&f);
    f.v->regs[FVM_RBX] = 0x1000 + 0x28000;
    put64(&f, 0x29000, 0xffffffff00033000ull);
    put64(&f, 0x29008, S_K64);
    CU_ASSERT_EQUAL(EXEC(&f, "\x48\xff\x2b"), 0); /* rex.w jmp far [rbx] */
    CU_ASSERT_EQUAL(f.v->rip, 0xffffffff00033000ull);
    put64(&f, 0x29000, 0x33000 | (uint64_t)S_K64 << 32);
    CU_ASSERT_EQUAL(EXEC(&f, "\xff\x1b"), 0); /* call far m16:32 */
    CU_ASSERT_EQUAL(f.v->rip, 0x33000);
    CU_ASSERT_EQUAL(f.v->regs[FVM_RSP], T_KSTACK - 8);
    CU_ASSERT_EQUAL(get64(&f, T_KSTACK - 8), 0x33002ull | (uint64_t)S_K64 << 32);
    fixture_end(&f);
}

static void far_faults(void)
{
    struct cpu_fixture f;
    static const struct {
        uint16_t sel;
        uint8_t vector;
        uint16_t code;
    } t[] = {{0, FVM_EXC_GP, 0},         {S_KDATA, FVM_EXC_GP, S_KDATA}, {S_BOTH, FVM_EXC_GP, S_BOTH},
             {S_TSS, FVM_EXC_GP, S_TSS}, {S_U64, FVM_EXC_GP, S_U64 & ~3}};

    fixture_long(&f);
    f.v->regs[FVM_RBX] = 0x29000;
    for (unsigned i = 0; i < FVM_ARRAY_SIZE(t); i++) {
        put64(&f, 0x29000, 0x33000 | (uint64_t)t[i].sel << 32);
        CU_ASSERT_EQUAL(EXEC(&f, "\xff\x2b"), FVM_FAULT);
        ASSERT_FAULT(&f, t[i].vector, t[i].code);
        CU_ASSERT_EQUAL(EXEC(&f, "\xff\x1b"), FVM_FAULT);
        ASSERT_FAULT(&f, t[i].vector, t[i].code);
        CU_ASSERT_EQUAL(f.v->regs[FVM_RSP], T_KSTACK);
    }
    fixture_end(&f);
}

static void far_ret_outer_and_gate(void)
{
    struct cpu_fixture f;

    fixture_long(&f);
    f.v->regs[FVM_RSP] = T_KSTACK - 32;
    put64(&f, T_KSTACK - 32, T_UCODE);
    put64(&f, T_KSTACK - 24, S_U64);
    put64(&f, T_KSTACK - 16, T_USTACK);
    put64(&f, T_KSTACK - 8, S_UDATA);
    CU_ASSERT_EQUAL(EXEC(&f, "\x48\xcb"), 0);
    CU_ASSERT_EQUAL(f.v->cpl, 3);
    CU_ASSERT_EQUAL(f.v->regs[FVM_RSP], T_USTACK);
    CU_ASSERT_EQUAL(f.v->seg[FVM_SS].sel, S_UDATA);
    /* and in again by a call gate */
    put64(&f, T_GDT + S_GATE, 0x0300ull | (uint64_t)S_K64 << 16 | 0xecull << 40 | 3ull << 48);
    put64(&f, T_GDT + S_GATE + 8, KVA >> 32);
    put64(&f, T_UCODE + 0x800, (uint64_t)(S_GATE | 3) << 32);
    f.v->regs[FVM_RBX] = T_UCODE + 0x800;
    CU_ASSERT_EQUAL(EXEC(&f, "\xff\x1b"), 0);
    CU_ASSERT_EQUAL(f.v->cpl, 0);
    CU_ASSERT_EQUAL(f.v->rip, KVA + 0x30300);
    CU_ASSERT_EQUAL(f.v->regs[FVM_RSP], T_RSP0 - 32);
    CU_ASSERT_EQUAL(get64(&f, T_RSP0 - 32), T_UCODE + 2);
    CU_ASSERT_EQUAL(get64(&f, T_RSP0 - 8), S_UDATA);
    fixture_end(&f);
}

static void limits_32(void)
{
    struct cpu_fixture f;

    fixture_flat32(&f);
    f.v->seg[FVM_DS] = (struct fvm_seg){.sel = 0x18, .attr = 0x4093, .limit = 0xff, .base = 0x1000};
    f.v->regs[FVM_RBX] = 0xff;
    CU_ASSERT_EQUAL(EXEC(&f, "\x0f\x01\x03"), FVM_FAULT); /* sgdt [ebx]: 6 bytes from 0xff */
    ASSERT_FAULT(&f, FVM_EXC_GP, 0);
    f.v->regs[FVM_RBX] = 0xfa;
    CU_ASSERT_EQUAL(EXEC(&f, "\x0f\x01\x03"), 0);
    CU_ASSERT_EQUAL(get64(&f, 0x10fa) & 0xffffffffffff, 0xff | (uint64_t)T_GDT << 16);
    f.v->seg[FVM_DS].attr = 0;
    CU_ASSERT_EQUAL(EXEC(&f, "\x0f\x01\x03"), FVM_FAULT);
    ASSERT_FAULT(&f, FVM_EXC_GP, 0);
    fixture_end(&f);
}

static void tables_and_tr(void)
{
    struct cpu_fixture f;

    fixture_long(&f);
    f.v->regs[FVM_RBX] = 0x29000;
    put64(&f, 0x29000, 0x1234567890abull << 16 | 0x7f);
    put64(&f, 0x29008, 0);
    CU_ASSERT_EQUAL(EXEC(&f, "\x0f\x01\x1b"), 0); /* lidt [rbx] */
    CU_ASSERT_EQUAL(f.v->idtr.base, 0x1234567890abull);
    CU_ASSERT_EQUAL(f.v->idtr.limit, 0x7f);
    f.v->regs[FVM_RAX] = S_TSS;
    CU_ASSERT_EQUAL(EXEC(&f, "\x0f\x00\xd8"), 0); /* ltr ax */
    CU_ASSERT_EQUAL(f.v->tr.base, T_TSS);
    CU_ASSERT_EQUAL(get64(&f, T_GDT + S_TSS) >> 40 & 0xff, 0x8b);
    CU_ASSERT_EQUAL(EXEC(&f, "\x0f\x00\xd8"), FVM_FAULT); /* busy now */
    ASSERT_FAULT(&f, FVM_EXC_GP, S_TSS);
    f.v->regs[FVM_RAX] = S_LDT;
    CU_ASSERT_EQUAL(EXEC(&f, "\x0f\x00\xd0"), 0); /* lldt ax */
    CU_ASSERT_EQUAL(f.v->ldtr.limit, 0xf);
    f.v->regs[FVM_RAX] = S_UDATA; /* lsl ecx, eax */
    CU_ASSERT_EQUAL(EXEC(&f, "\x0f\x03\xc8"), 0);
    CU_ASSERT_EQUAL(f.v->regs[FVM_RCX], 0xffffffff);
    CU_ASSERT(f.v->rflags & FVM_F_ZF);
    f.v->regs[FVM_RAX] = S_NP;
    CU_ASSERT_EQUAL(EXEC(&f, "\x0f\x02\xc8"), 0); /* lar: not present is fine, rights are in the descriptor */
    f.v->regs[FVM_RAX] = 0;
    CU_ASSERT_EQUAL(EXEC(&f, "\x0f\x00\xe8"), 0); /* verw null */
    CU_ASSERT_FALSE(f.v->rflags & FVM_F_ZF);
    f.v->regs[FVM_RAX] = S_KDATA;
    CU_ASSERT_EQUAL(EXEC(&f, "\x0f\x00\xe8"), 0);
    CU_ASSERT(f.v->rflags & FVM_F_ZF);
    set_ring(&f, 3, 64);
    CU_ASSERT_EQUAL(EXEC(&f, "\x0f\x01\x1b"), FVM_FAULT);
    ASSERT_FAULT(&f, FVM_EXC_GP, 0);
    f.v->cr4 |= FVM_CR4_UMIP;
    CU_ASSERT_EQUAL(EXEC(&f, "\x0f\x01\x0b"), FVM_FAULT); /* sidt in ring 3 with UMIP */
    ASSERT_FAULT(&f, FVM_EXC_GP, 0);
    fixture_end(&f);
}

/* lar and lsl of user selectors, against the host's own instructions on the host's own descriptors */
static void lar_like_host(void)
{
    struct cpu_fixture f;
    uint16_t cs;
    uint32_t lar, lsl;

    __asm__("mov %%cs, %0" : "=r"(cs));
    __asm__("lar %1, %0" : "=r"(lar) : "r"((uint32_t)cs) : "cc");
    __asm__("lsl %1, %0" : "=r"(lsl) : "r"((uint32_t)cs) : "cc");
    fixture_long(&f);
    f.v->regs[FVM_RAX] = S_U64;
    CU_ASSERT_EQUAL(EXEC(&f, "\x0f\x02\xc8"), 0);
    CU_ASSERT_EQUAL(f.v->regs[FVM_RCX], lar);
    CU_ASSERT_EQUAL(EXEC(&f, "\x0f\x03\xc8"), 0);
    CU_ASSERT_EQUAL(f.v->regs[FVM_RCX], lsl);
    fixture_end(&f);
}

int main(void)
{
    static const struct cpu_test tests[] = {
        {"loads", loads}, {"load_faults", load_faults}, {"accessed_bit", accessed_bit}, {"push_and_pop", push_and_pop},
        {"far_64_to_32_and_back", far_64_to_32_and_back}, {"far_memory_and_call", far_memory_and_call},
        {"far_faults", far_faults}, {"far_ret_outer_and_gate", far_ret_outer_and_gate}, {"limits_32", limits_32},
        {"tables_and_tr", tables_and_tr}, {"lar_like_host", lar_like_host},
    };
    return run_tests("cpu/segment", tests, FVM_ARRAY_SIZE(tests));
}
