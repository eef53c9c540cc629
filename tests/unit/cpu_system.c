/* cpu/system, control, msr, syscall, vmem, legacy: privilege, control registers and the shadow, memory across pages. */
#include "tests/unit/cpu_fixture.h"

static void syscall_and_back(void)
{
    struct cpu_fixture f;

    fixture_long(&f);
    set_ring(&f, 3, 64);
    fvm_vcpu_set_rflags(f.v, 0x246 | FVM_F_DF | FVM_F_TF);
    CU_ASSERT_EQUAL(EXEC(&f, "\x0f\x05"), 0);
    CU_ASSERT_EQUAL(f.v->rip, KVA + T_KCODE);
    CU_ASSERT_EQUAL(f.v->regs[FVM_RCX], T_UCODE + 2);
    CU_ASSERT_EQUAL(f.v->regs[FVM_R11], 0x246 | FVM_F_DF | FVM_F_TF);
    CU_ASSERT_EQUAL(fvm_vcpu_rflags(f.v), (0x246 | FVM_F_DF | FVM_F_TF) & ~0x47700ull);
    CU_ASSERT_EQUAL(f.v->cpl, 0);
    CU_ASSERT_EQUAL(f.v->seg[FVM_CS].sel, S_K64);
    CU_ASSERT_EQUAL(f.v->seg[FVM_SS].sel, S_KDATA);
    CU_ASSERT_EQUAL(fvm_vcpu_code_bits(f.v), 64);
    CU_ASSERT_EQUAL(f.v->regs[FVM_RSP], T_USTACK);
    CU_ASSERT_EQUAL(EXEC(&f, "\x48\x0f\x07"), 0); /* sysretq */
    CU_ASSERT_EQUAL(f.v->rip, T_UCODE + 2);
    CU_ASSERT_EQUAL(f.v->cpl, 3);
    CU_ASSERT_EQUAL(f.v->seg[FVM_CS].sel, S_U64);
    CU_ASSERT_EQUAL(f.v->seg[FVM_SS].sel, S_UDATA);
    CU_ASSERT_EQUAL(fvm_vcpu_rflags(f.v), 0x246 | FVM_F_DF | FVM_F_TF);
    CU_ASSERT_EQUAL(EXEC(&f, "\x48\x0f\x07"), FVM_FAULT);
    ASSERT_FAULT(&f, FVM_EXC_GP, 0);
    set_ring(&f, 0, 64);
    f.v->regs[FVM_RCX] = 1ull << 47;
    CU_ASSERT_EQUAL(EXEC(&f, "\x48\x0f\x07"), FVM_FAULT);
    ASSERT_FAULT(&f, FVM_EXC_GP, 0);
    CU_ASSERT_EQUAL(EXEC(&f, "\x0f\x07"), 0); /* sysretl: to compatibility mode */
    CU_ASSERT_EQUAL(fvm_vcpu_code_bits(f.v), 32);
    CU_ASSERT_EQUAL(f.v->rip, 0);
    CU_ASSERT_EQUAL(EXEC(&f, "\x0f\x05"), FVM_FAULT); /* not from 32-bit code, as on Intel */
    ASSERT_FAULT(&f, FVM_EXC_UD, 0);
    set_ring(&f, 3, 64);
    f.v->efer &= ~FVM_EFER_SCE;
    CU_ASSERT_EQUAL(EXEC(&f, "\x0f\x05"), FVM_FAULT);
    ASSERT_FAULT(&f, FVM_EXC_UD, 0);
    fixture_end(&f);
}

static void sysenter_and_back(void)
{
    struct cpu_fixture f;

    fixture_long(&f);
    set_ring(&f, 3, 32);
    CU_ASSERT_EQUAL(EXEC(&f, "\x0f\x34"), FVM_FAULT); /* SYSENTER_CS 0 */
    ASSERT_FAULT(&f, FVM_EXC_GP, 0);
    f.v->sysenter_cs = S_K64;
    f.v->sysenter_esp = KVA + T_KSTACK;
    f.v->sysenter_eip = KVA + T_KCODE;
    f.v->iflag = 1;
    CU_ASSERT_EQUAL(EXEC(&f, "\x0f\x34"), 0);
    CU_ASSERT_EQUAL(f.v->rip, KVA + T_KCODE);
    CU_ASSERT_EQUAL(f.v->regs[FVM_RSP], KVA + T_KSTACK);
    CU_ASSERT_EQUAL(f.v->iflag, 0);
    CU_ASSERT_EQUAL(fvm_vcpu_code_bits(f.v), 64);
    f.v->regs[FVM_RCX] = 0x1110000;
    f.v->regs[FVM_RDX] = 0x1100000;
    CU_ASSERT_EQUAL(EXEC(&f, "\x0f\x35"), 0);
    CU_ASSERT_EQUAL(f.v->cpl, 3);
    CU_ASSERT_EQUAL(f.v->seg[FVM_CS].sel, (S_K64 + 16) | 3);
    CU_ASSERT_EQUAL(f.v->rip, 0x1100000);
    CU_ASSERT_EQUAL(f.v->regs[FVM_RSP], 0x1110000);
    fixture_end(&f);
}

static void control_registers(void)
{
    struct cpu_fixture f;

    fixture_long(&f);
    f.v->regs[FVM_RAX] = f.v->cr0 & ~FVM_CR0_PG;
    CU_ASSERT_EQUAL(EXEC(&f, "\x0f\x22\xc0"), FVM_FAULT); /* paging off in 64-bit mode */
    f.v->regs[FVM_RAX] = f.v->cr0 & ~FVM_CR0_PE;
    CU_ASSERT_EQUAL(EXEC(&f, "\x0f\x22\xc0"), FVM_FAULT);
    f.v->regs[FVM_RAX] = f.v->cr0 | FVM_CR0_NW;
    CU_ASSERT_EQUAL(EXEC(&f, "\x0f\x22\xc0"), FVM_FAULT);
    f.v->regs[FVM_RAX] = f.v->cr0 | 1ull << 32;
    CU_ASSERT_EQUAL(EXEC(&f, "\x0f\x22\xc0"), FVM_FAULT);
    f.v->regs[FVM_RAX] = f.v->cr4 & ~FVM_CR4_PAE;
    CU_ASSERT_EQUAL(EXEC(&f, "\x0f\x22\xe0"), FVM_FAULT);
    f.v->regs[FVM_RAX] = f.v->cr4 | FVM_CR4_SMAP;
    CU_ASSERT_EQUAL(EXEC(&f, "\x0f\x22\xe0"), FVM_FAULT);
    ASSERT_FAULT(&f, FVM_EXC_GP, 0);
    f.v->regs[FVM_RAX] = 1ull << 63 | T_ROOT;
    CU_ASSERT_EQUAL(EXEC(&f, "\x0f\x22\xd8"), FVM_FAULT); /* bit 63 without PCIDE */
    f.v->regs[FVM_RAX] = f.v->cr4 | FVM_CR4_PCIDE;
    CU_ASSERT_EQUAL(EXEC(&f, "\x0f\x22\xe0"), 0);
    f.v->regs[FVM_RAX] = 1ull << 63 | T_ROOT | 5;
    CU_ASSERT_EQUAL(EXEC(&f, "\x0f\x22\xd8"), 0);
    CU_ASSERT_EQUAL(f.v->cr3, T_ROOT | 5);
    CU_ASSERT_EQUAL(EXEC(&f, "\x0f\x20\xdb"), 0); /* mov rbx, cr3 */
    CU_ASSERT_EQUAL(f.v->regs[FVM_RBX], T_ROOT | 5);
    f.v->regs[FVM_RAX] = 0x18;
    CU_ASSERT_EQUAL(EXEC(&f, "\x44\x0f\x22\xc0"), FVM_FAULT); /* cr8: 4 bits */
    f.v->regs[FVM_RAX] = 8;
    CU_ASSERT_EQUAL(EXEC(&f, "\x44\x0f\x22\xc0"), 0);
    f.v->cr0 |= FVM_CR0_TS;
    CU_ASSERT_EQUAL(EXEC(&f, "\x0f\x06"), 0); /* clts */
    CU_ASSERT_FALSE(f.v->cr0 & FVM_CR0_TS);
    f.v->regs[FVM_RAX] = 0; /* lmsw can't clear PE */
    CU_ASSERT_EQUAL(EXEC(&f, "\x0f\x01\xf0"), 0);
    CU_ASSERT(f.v->cr0 & FVM_CR0_PE);
    set_ring(&f, 3, 64);
    CU_ASSERT_EQUAL(EXEC(&f, "\x0f\x20\xdb"), FVM_FAULT);
    ASSERT_FAULT(&f, FVM_EXC_GP, 0);
    fixture_end(&f);
}

/* Whether a flush reached the shadow is seen by changing the page table underneath. */
static uint64_t read_at(struct cpu_fixture *f, fvm_gva va)
{
    uint64_t x = 0;

    CU_ASSERT_EQUAL(fvm_vmem_read(f->v, va, &x, 8, FVM_AS_SUPERVISOR, &f->fault), 0);
    return x;
}

static void tlb_behaviour(void)
{
    struct cpu_fixture f;
    uint64_t *pte_at;

    fixture_long(&f);
    pte_at = (uint64_t *)(void *)fvm_ram_hva(f.v->ram, T_PT + 0x50 * 8);
    put64(&f, 0x50000, 0x5050);
    put64(&f, 0x51000, 0x5151);
    f.v->cr4 |= FVM_CR4_PCIDE;
    fvm_control_reload(f.v);
    CU_ASSERT_EQUAL(read_at(&f, 0x50000), 0x5050);
    *pte_at = 0x51000 | 3;
    f.v->regs[FVM_RAX] = 1ull << 63 | T_ROOT;
    CU_ASSERT_EQUAL(EXEC(&f, "\x0f\x22\xd8"), 0);
    CU_ASSERT_EQUAL(read_at(&f, 0x50000), 0x5050); /* no-flush: the old translation stays */
    f.v->regs[FVM_RAX] = T_ROOT;
    CU_ASSERT_EQUAL(EXEC(&f, "\x0f\x22\xd8"), 0);
    CU_ASSERT_EQUAL(read_at(&f, 0x50000), 0x5151);
    *pte_at = 0x50000 | 3;
    f.v->regs[FVM_RAX] = 0x50000;
    CU_ASSERT_EQUAL(EXEC(&f, "\x0f\x01\x38"), 0); /* invlpg [rax] */
    CU_ASSERT_EQUAL(read_at(&f, 0x50000), 0x5050);
    *pte_at = 0x51000 | 3;
    f.v->regs[FVM_RAX] = 1; /* invpcid single context: rax, [rbx] */
    f.v->regs[FVM_RBX] = 0x29000;
    put64(&f, 0x29000, 0);
    put64(&f, 0x29008, 0);
    CU_ASSERT_EQUAL(EXEC(&f, "\x66\x0f\x38\x82\x03"), 0);
    CU_ASSERT_EQUAL(read_at(&f, 0x50000), 0x5151);
    f.v->regs[FVM_RAX] = 4;
    CU_ASSERT_EQUAL(EXEC(&f, "\x66\x0f\x38\x82\x03"), FVM_FAULT);
    f.v->regs[FVM_RAX] = 1;
    put64(&f, 0x29000, 0x1000);
    CU_ASSERT_EQUAL(EXEC(&f, "\x66\x0f\x38\x82\x03"), FVM_FAULT);
    ASSERT_FAULT(&f, FVM_EXC_GP, 0);
    fixture_end(&f);
}

static void memory_across_pages(void)
{
    struct cpu_fixture f;
    uint8_t buf[8192], back[8192];

    fixture_long(&f);
    put64(&f, T_PT + 0x61 * 8, 0x70000 | 3); /* neighbours in linear, not in physical memory */
    for (unsigned i = 0; i < sizeof(buf); i++)
        buf[i] = (uint8_t)(i * 7);
    CU_ASSERT_EQUAL(fvm_vmem_write(f.v, 0x60ff0, buf, 32, FVM_AS_SUPERVISOR, &f.fault), 0);
    CU_ASSERT_EQUAL(memcmp(fvm_ram_hva(f.v->ram, 0x60ff0), buf, 16), 0);
    CU_ASSERT_EQUAL(memcmp(fvm_ram_hva(f.v->ram, 0x70000), buf + 16, 16), 0);
    CU_ASSERT_EQUAL(fvm_vmem_write(f.v, 0x60800, buf, sizeof(buf), FVM_AS_SUPERVISOR, &f.fault), 0);
    CU_ASSERT_EQUAL(fvm_vmem_read(f.v, 0x60800, back, sizeof(back), FVM_AS_SUPERVISOR, &f.fault), 0);
    CU_ASSERT_EQUAL(memcmp(buf, back, sizeof(buf)), 0);
    CU_ASSERT(f.v->ram->version[0x70] == f.v->ram->epoch);
    /* a write that runs into the hole writes nothing */
    memset(fvm_ram_hva(f.v->ram, T_HOLE - 8), 0x11, 8);
    CU_ASSERT_EQUAL(fvm_vmem_write(f.v, T_HOLE - 8, buf, 16, FVM_AS_SUPERVISOR, &f.fault), FVM_FAULT);
    ASSERT_FAULT(&f, FVM_EXC_PF, 2);
    CU_ASSERT_EQUAL(f.fault.cr2, T_HOLE);
    CU_ASSERT_EQUAL(get64(&f, T_HOLE - 8), 0x1111111111111111ull);
    set_ring(&f, 3, 64);
    CU_ASSERT_EQUAL(fvm_vmem_read(f.v, T_KSTACK, back, 8, FVM_AS_CPL, &f.fault), FVM_FAULT);
    ASSERT_FAULT(&f, FVM_EXC_PF, 5);
    CU_ASSERT_EQUAL(fvm_vmem_read(f.v, T_KSTACK, back, 8, FVM_AS_SUPERVISOR, &f.fault), 0);
    CU_ASSERT_EQUAL(fvm_vmem_read(f.v, (1ull << 47) - 4, back, 8, FVM_AS_SUPERVISOR, &f.fault), FVM_FAULT);
    fixture_end(&f);
}

static uint64_t device_written;
static uint64_t device_read(void *ctx, uint64_t off, unsigned size)
{
    (void)ctx;
    return 0xa0 + off + size * 0x100;
}
static void device_write(void *ctx, uint64_t off, unsigned size, uint64_t value)
{
    (void)ctx;
    device_written = value + off * 0x10000 + size * 0x1000000ull;
}

static void memory_mapped_and_ports(void)
{
    static const struct fvm_bus_ops ops = {device_read, device_write};
    struct cpu_fixture f;
    uint32_t x = 0;
    int id;

    fixture_long(&f);
    CU_ASSERT_EQUAL_FATAL(fvm_bus_claim(f.v->bus, FVM_BUS_MMIO, 0xfe000000, 0x1000, &ops, NULL, "test", &id), 0);
    CU_ASSERT_EQUAL_FATAL(fvm_bus_claim(f.v->bus, FVM_BUS_PIO, 0x3f8, 8, &ops, NULL, "test", &id), 0);
    CU_ASSERT_EQUAL(fvm_vmem_read(f.v, 0xfe000004, &x, 4, FVM_AS_CPL, &f.fault), 0);
    CU_ASSERT_EQUAL(x, 0x4a4);
    x = 0x55;
    CU_ASSERT_EQUAL(fvm_vmem_write(f.v, 0xfe000008, &x, 4, FVM_AS_CPL, &f.fault), 0);
    CU_ASSERT_EQUAL(device_written, 0x4080055);
    f.v->regs[FVM_RDX] = 0x3f9;
    f.v->regs[FVM_RAX] = ~0ull;
    CU_ASSERT_EQUAL(EXEC(&f, "\xec"), 0); /* in al, dx */
    CU_ASSERT_EQUAL(f.v->regs[FVM_RAX], 0xffffffffffffffa1ull);
    CU_ASSERT_EQUAL(EXEC(&f, "\xed"), 0); /* in eax, dx: clears the upper half */
    CU_ASSERT_EQUAL(f.v->regs[FVM_RAX] >> 32, 0);
    f.v->regs[FVM_RAX] = 0x77;
    CU_ASSERT_EQUAL(EXEC(&f, "\xee"), 0);
    CU_ASSERT_EQUAL(device_written, 0x1010077);
    set_ring(&f, 3, 64);
    CU_ASSERT_EQUAL(EXEC(&f, "\xee"), FVM_FAULT);
    ASSERT_FAULT(&f, FVM_EXC_GP, 0);
    f.v->tr.limit = 0x1000; /* a bitmap that permits 0x3f8..0x3ff but not 0x400 */
    put64(&f, T_TSS + 0x60, 0x68ull << 48);
    memset(fvm_ram_hva(f.v->ram, T_TSS + 0x68), 0xff, 0x200);
    *fvm_ram_hva(f.v->ram, T_TSS + 0x68 + 0x7f) = 0;
    CU_ASSERT_EQUAL(EXEC(&f, "\xee"), 0);
    f.v->regs[FVM_RDX] = 0x3fe;
    CU_ASSERT_EQUAL(EXEC(&f, "\xef"), FVM_FAULT); /* four bytes reach 0x401 */
    CU_ASSERT_EQUAL(EXEC(&f, "\x66\xef"), 0);
    fixture_end(&f);
}

static void write_to_code_page(void)
{
    struct cpu_fixture f;
    uint64_t x = 0x1122334455667788ull;

    fixture_long(&f);
    CU_ASSERT_EQUAL(fvm_vmem_write(f.v, 0x52000, &x, 8, FVM_AS_CPL, &f.fault), 0);
    fvm_shadow_protect_page(f.v->shadow, 0x52);
    x = 0x99;
    CU_ASSERT_EQUAL(fvm_vmem_write(f.v, 0x52000, &x, 8, FVM_AS_CPL, &f.fault), 0);
    CU_ASSERT_EQUAL(get64(&f, 0x52000), 0x99);
    CU_ASSERT_EQUAL(fvm_shadow_peek(f.v->shadow, 0x52000) & FVM_S_KW, 0);
    fixture_end(&f);
}

static void flags(void)
{
    struct cpu_fixture f;

    fixture_long(&f);
    f.v->int_shadow = 0;
    CU_ASSERT_EQUAL(EXEC(&f, "\xfb"), 0); /* sti */
    CU_ASSERT_EQUAL(f.v->iflag, 1);
    CU_ASSERT_EQUAL(f.v->int_shadow, 1);
    CU_ASSERT_EQUAL(EXEC(&f, "\xfb"), 0); /* again: no shadow */
    CU_ASSERT_EQUAL(f.v->int_shadow, 0);
    CU_ASSERT_EQUAL(EXEC(&f, "\xf4"), 0); /* hlt */
    CU_ASSERT_EQUAL(f.v->run, FVM_RUN_HALTED);
    f.v->run = FVM_RUN_NORMAL;
    fvm_vcpu_set_rflags(f.v, 0x3202 | FVM_F_RF);
    CU_ASSERT_EQUAL(EXEC(&f, "\x9c"), 0); /* pushf */
    CU_ASSERT_EQUAL(get64(&f, T_KSTACK - 8), 0x3202);
    put64(&f, T_KSTACK - 8, 0x40ad7 | FVM_F_VM);
    CU_ASSERT_EQUAL(EXEC(&f, "\x9d"), 0);
    CU_ASSERT_EQUAL(fvm_vcpu_rflags(f.v), 0x40ad7);
    set_ring(&f, 3, 64);
    fvm_vcpu_set_rflags(f.v, 0x202);
    f.v->regs[FVM_RSP] -= 8;
    put64(&f, T_USTACK - 8, 0x3001);
    CU_ASSERT_EQUAL(EXEC(&f, "\x9d"), 0); /* ring 3 changes neither IF nor IOPL */
    CU_ASSERT_EQUAL(fvm_vcpu_rflags(f.v), 0x203);
    CU_ASSERT_EQUAL(EXEC(&f, "\xfa"), FVM_FAULT);
    ASSERT_FAULT(&f, FVM_EXC_GP, 0);
    CU_ASSERT_EQUAL(EXEC(&f, "\xf4"), FVM_FAULT);
    fixture_end(&f);
}

static uint64_t msr_at(struct cpu_fixture *f, uint32_t msr)
{
    f->v->regs[FVM_RCX] = msr;
    CU_ASSERT_EQUAL(EXEC(f, "\x0f\x32"), 0);
    return f->v->regs[FVM_RDX] << 32 | f->v->regs[FVM_RAX];
}
static int msr_to(struct cpu_fixture *f, uint32_t msr, uint64_t x)
{
    f->v->regs[FVM_RCX] = msr;
    f->v->regs[FVM_RAX] = (uint32_t)x;
    f->v->regs[FVM_RDX] = x >> 32;
    return EXEC(f, "\x0f\x30");
}

static void msrs(void)
{
    struct cpu_fixture f;
    uint64_t a, b;

    fixture_long(&f);
    CU_ASSERT_EQUAL(msr_to(&f, 0xc0000100, KVA), 0);
    CU_ASSERT_EQUAL(f.v->seg_base_fs, KVA);
    CU_ASSERT_EQUAL(msr_at(&f, 0xc0000100), KVA);
    CU_ASSERT_EQUAL(msr_to(&f, 0xc0000101, 1ull << 47), FVM_FAULT);
    CU_ASSERT_EQUAL(msr_to(&f, 0xc0000102, KVA + 1), 0);
    CU_ASSERT_EQUAL(EXEC(&f, "\x0f\x01\xf8"), 0); /* swapgs */
    CU_ASSERT_EQUAL(f.v->seg_base_gs, KVA + 1);
    CU_ASSERT_EQUAL(msr_at(&f, 0xc0000102), 0);
    CU_ASSERT_EQUAL(msr_to(&f, 0xc0000080, 0x901), 0); /* LMA is read-only */
    CU_ASSERT_EQUAL(f.v->efer, 0xd01);
    CU_ASSERT_EQUAL(msr_to(&f, 0xc0000080, 0x801), FVM_FAULT); /* LME can't change with paging on */
    CU_ASSERT_EQUAL(msr_to(&f, 0xc0000080, 0xd01 | 1u << 14), FVM_FAULT);
    CU_ASSERT_EQUAL(msr_to(&f, 0x277, 0x0007010600070106), 0);
    CU_ASSERT_EQUAL(msr_to(&f, 0x277, 2), FVM_FAULT);
    CU_ASSERT_EQUAL(msr_to(&f, 0x2ff, 0xc06), 0);
    CU_ASSERT_EQUAL(msr_at(&f, 0x2ff), 0xc06);
    CU_ASSERT_EQUAL(msr_to(&f, 0x48, 1), 0);
    CU_ASSERT_EQUAL(msr_at(&f, 0x10a) & 3, 3);
    CU_ASSERT_EQUAL(msr_to(&f, 0x10a, 0), FVM_FAULT);
    CU_ASSERT_EQUAL(msr_to(&f, 0xdead, 0), FVM_FAULT);
    ASSERT_FAULT(&f, FVM_EXC_GP, 0);
    CU_ASSERT_EQUAL(msr_at(&f, 0x1a0) & 1, 1);
    a = msr_at(&f, 0x10);
    CU_ASSERT_EQUAL(EXEC(&f, "\x0f\x31"), 0);
    b = f.v->regs[FVM_RDX] << 32 | f.v->regs[FVM_RAX];
    CU_ASSERT(b > a && b - a < 1000000000ull);
    CU_ASSERT_EQUAL(msr_to(&f, 0x10, 1ull << 50), 0);
    a = msr_at(&f, 0x10);
    CU_ASSERT(a >= 1ull << 50 && a - (1ull << 50) < 10000000000ull);
    CU_ASSERT_EQUAL(msr_to(&f, 0x3b, 0), 0); /* TSC_ADJUST back to 0: the TSC as it was */
    a = msr_at(&f, 0x10);
    CU_ASSERT(a > b && a - b < 10000000000ull);
    set_ring(&f, 3, 64);
    f.v->cr4 |= FVM_CR4_TSD;
    CU_ASSERT_EQUAL(EXEC(&f, "\x0f\x31"), FVM_FAULT);
    CU_ASSERT_EQUAL(EXEC(&f, "\x0f\x32"), FVM_FAULT);
    CU_ASSERT_EQUAL(EXEC(&f, "\xf3\x48\x0f\xae\xd3"), 0); /* wrfsbase rbx: allowed to ring 3 */
    f.v->cr4 &= ~FVM_CR4_FSGSBASE;
    CU_ASSERT_EQUAL(EXEC(&f, "\xf3\x48\x0f\xae\xd3"), FVM_FAULT);
    ASSERT_FAULT(&f, FVM_EXC_UD, 0);
    fixture_end(&f);
}

static void enter_long_mode(void)
{
    struct cpu_fixture f;

    fixture_flat32(&f);
    CU_ASSERT_EQUAL(msr_to(&f, 0xc0000080, FVM_EFER_LME | FVM_EFER_NXE), 0);
    f.v->regs[FVM_RAX] = T_ROOT;
    CU_ASSERT_EQUAL(EXEC(&f, "\x0f\x22\xd8"), 0);
    f.v->regs[FVM_RAX] = FVM_CR0_PE | FVM_CR0_PG;
    CU_ASSERT_EQUAL(EXEC(&f, "\x0f\x22\xc0"), FVM_FAULT); /* without PAE */
    f.v->regs[FVM_RAX] = FVM_CR4_PAE;
    CU_ASSERT_EQUAL(EXEC(&f, "\x0f\x22\xe0"), 0);
    f.v->regs[FVM_RAX] = FVM_CR0_PE | FVM_CR0_PG;
    CU_ASSERT_EQUAL(EXEC(&f, "\x0f\x22\xc0"), 0);
    CU_ASSERT_EQUAL(msr_at(&f, 0xc0000080), FVM_EFER_LME | FVM_EFER_LMA | FVM_EFER_NXE);
    put64(&f, 0x50008, 0x77);
    CU_ASSERT_EQUAL(read_at(&f, KVA + 0x50008), 0x77);
    fixture_end(&f);
}

static void reset_and_sipi(void)
{
    struct cpu_fixture f;

    fixture_long(&f);
    fvm_vcpu_reset_state(f.v, true);
    CU_ASSERT_EQUAL(f.v->rip, 0xfff0);
    CU_ASSERT_EQUAL(f.v->seg[FVM_CS].base, 0xffff0000);
    CU_ASSERT_EQUAL(f.v->lstar, KVA + T_KCODE); /* INIT keeps MSRs */
    CU_ASSERT_EQUAL(f.v->efer, 0);
    CU_ASSERT_EQUAL(fvm_vcpu_code_bits(f.v), 16);
    put64(&f, 0x50008, 0x78);
    CU_ASSERT_EQUAL(read_at(&f, 0x50008), 0x78);
    fvm_vcpu_sipi_state(f.v, 0x9a);
    CU_ASSERT_EQUAL(f.v->seg[FVM_CS].base, 0x9a000);
    CU_ASSERT_EQUAL(f.v->rip, 0);
    fixture_end(&f);
}

static void legacy(void)
{
    struct cpu_fixture f;

    fixture_flat32(&f);
    f.v->regs[FVM_RAX] = 0x35 + 0x48; /* BCD 35 + 48 = 83 */
    CU_ASSERT_EQUAL(EXEC(&f, "\x27"), 0);
    CU_ASSERT_EQUAL(f.v->regs[FVM_RAX], 0x83);
    f.v->regs[FVM_RAX] = 0x9a;
    CU_ASSERT_EQUAL(EXEC(&f, "\x27"), 0);
    CU_ASSERT_EQUAL(f.v->regs[FVM_RAX] & 0xff, 0);
    CU_ASSERT((f.v->rflags & (FVM_F_CF | FVM_F_ZF)) == (FVM_F_CF | FVM_F_ZF));
    f.v->regs[FVM_RAX] = 47;
    CU_ASSERT_EQUAL(EXEC(&f, "\xd4\x0a"), 0); /* aam */
    CU_ASSERT_EQUAL(f.v->regs[FVM_RAX], 0x407);
    CU_ASSERT_EQUAL(EXEC(&f, "\xd5\x0a"), 0); /* aad */
    CU_ASSERT_EQUAL(f.v->regs[FVM_RAX], 47);
    CU_ASSERT_EQUAL(EXEC(&f, "\xd4\x00"), FVM_FAULT);
    ASSERT_FAULT(&f, FVM_EXC_DE, 0);
    for (unsigned i = 0; i < 8; i++)
        f.v->regs[i] = i == FVM_RSP ? T_KSTACK : 0x100 + i;
    CU_ASSERT_EQUAL(EXEC(&f, "\x60"), 0); /* pusha */
    CU_ASSERT_EQUAL(f.v->regs[FVM_RSP], T_KSTACK - 32);
    CU_ASSERT_EQUAL((uint32_t)get64(&f, T_KSTACK - 4), 0x100);
    CU_ASSERT_EQUAL((uint32_t)get64(&f, T_KSTACK - 20), T_KSTACK);
    for (unsigned i = 0; i < 8; i++)
        f.v->regs[i] = i == FVM_RSP ? T_KSTACK - 32 : 0;
    CU_ASSERT_EQUAL(EXEC(&f, "\x61"), 0);
    for (unsigned i = 0; i < 8; i++)
        CU_ASSERT_EQUAL(f.v->regs[i], i == FVM_RSP ? (uint64_t)T_KSTACK : 0x100 + i);
    put64(&f, 0x29000, 5 | 9ull << 32);
    f.v->regs[FVM_RBX] = 0x29000;
    set_seg(&f, FVM_DS, S_KDATA);
    f.v->regs[FVM_RAX] = 9;
    CU_ASSERT_EQUAL(EXEC(&f, "\x62\x03"), 0); /* bound eax, [ebx] */
    f.v->regs[FVM_RAX] = 10;
    CU_ASSERT_EQUAL(EXEC(&f, "\x62\x03"), FVM_FAULT);
    ASSERT_FAULT(&f, FVM_EXC_BR, 0);
    fixture_end(&f);
}

int main(void)
{
    static const struct cpu_test tests[] = {
        {"syscall_and_back", syscall_and_back}, {"sysenter_and_back", sysenter_and_back},
        {"control_registers", control_registers}, {"tlb_behaviour", tlb_behaviour},
        {"memory_across_pages", memory_across_pages}, {"memory_mapped_and_ports", memory_mapped_and_ports},
        {"write_to_code_page", write_to_code_page}, {"flags", flags}, {"msrs", msrs},
        {"enter_long_mode", enter_long_mode}, {"reset_and_sipi", reset_and_sipi}, {"legacy", legacy},
    };
    return run_tests("cpu/system", tests, FVM_ARRAY_SIZE(tests));
}
