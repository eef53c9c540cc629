/*
 * cpu_fixture.h - a vCPU without translator for tests of vmm/cpu's system half: real RAM, real shadow, page tables, GDT,
 * IDT and TSS laid out below; one instruction at a time through decode and fvm_system_exec.
 *
 *   0x1000 page tables   0x10000 GDT   0x11000 IDT   0x12000 TSS   0x14000 LDT
 *   0x20000 kernel stack top, 0x21000 IST1 top, 0x22000 ring-0 stack of the TSS   0x30000 kernel code
 *   0x100000..0x1fffff user pages; linear == physical below 2 MiB; KVA maps 1 GiB at 0, supervisor; the page table's
 *   own entry 0x7f is not present (linear 0x7f000)
 */
#ifndef FVM_TESTS_UNIT_CPU_FIXTURE_H
#define FVM_TESTS_UNIT_CPU_FIXTURE_H

#include <CUnit/Basic.h>
#include <stdlib.h>
#include <string.h>

#include "vmm/cpu/cpuid.h"
#include "vmm/cpu/descriptor.h"
#include "vmm/cpu/system.h"

#define KVA 0xffff888000000000ull
enum {
    T_ROOT = 0x1000, T_PT = 0x4000, T_GDT = 0x10000, T_IDT = 0x11000, T_TSS = 0x12000, T_LDT = 0x14000, T_KSTACK = 0x20000,
    T_IST1 = 0x21000, T_RSP0 = 0x22000, T_KCODE = 0x30000, T_UCODE = 0x100000, T_USTACK = 0x110000, T_HOLE = 0x7f000
};
/* Linux' numbering */
enum { S_K32 = 0x08, S_K64 = 0x10, S_KDATA = 0x18, S_U32 = 0x23, S_UDATA = 0x2b, S_U64 = 0x33, S_TSS = 0x40, S_LDT = 0x50,
       S_NP = 0x60, S_RO = 0x68, S_XO = 0x70, S_GATE = 0x80, S_BOTH = 0x78 };

struct cpu_fixture {
    struct fvm_vcpu *v;
    struct fvm_loop *loop;
    struct fvm_fault fault;
};

/* Until the engine is linked in: count its notifications (weak, so that the engine's own win). */
static unsigned engine_exec_flushed;
__attribute__((weak)) void fvm_engine_write_code(struct fvm_vcpu *v, fvm_gpa gpa, const void *buf, uint64_t len)
{
    int r = fvm_ram_write(v->ram, gpa, buf, len);
    CU_ASSERT(!r);
}
__attribute__((weak)) void fvm_engine_tsc_changed(struct fvm_vcpu *v) { fvm_system_sync_tsc(v); }
__attribute__((weak)) void fvm_engine_exec_flushed(struct fvm_vcpu *v, unsigned halves)
{
    (void)v, (void)halves;
    engine_exec_flushed++;
}

static inline void put64(struct cpu_fixture *f, fvm_gpa gpa, uint64_t x) { memcpy(fvm_ram_hva(f->v->ram, gpa), &x, 8); }
static inline uint64_t get64(struct cpu_fixture *f, fvm_gpa gpa)
{
    uint64_t x;

    memcpy(&x, fvm_ram_hva(f->v->ram, gpa), 8);
    return x;
}
static inline void gdt(struct cpu_fixture *f, unsigned sel, uint64_t d) { put64(f, T_GDT + (sel & ~7u), d); }
static inline uint64_t flat_desc(unsigned attr) { return 0x000f00000000ffffull | (uint64_t)attr << 40; }
static inline uint64_t system_desc(uint64_t base, uint32_t limit, unsigned type)
{
    return (limit & 0xffff) | (base & 0xffffff) << 16 | (uint64_t)(0x80 | type) << 40 | (base >> 24 & 0xff) << 56;
}
static inline void gate64(struct cpu_fixture *f, unsigned vector, uint64_t off, unsigned type_dpl, unsigned ist)
{
    put64(f, T_IDT + vector * 16, (off & 0xffff) | (uint64_t)S_K64 << 16 | (uint64_t)ist << 32 |
                                      (uint64_t)(0x80 | type_dpl) << 40 | (off >> 16 & 0xffff) << 48);
    put64(f, T_IDT + vector * 16 + 8, off >> 32);
}
static inline void gate32(struct cpu_fixture *f, unsigned vector, uint32_t off, unsigned type_dpl)
{
    put64(f, T_IDT + vector * 8, (off & 0xffff) | (uint64_t)S_K32 << 16 | (uint64_t)(0x80 | type_dpl) << 40 |
                                     (uint64_t)(off >> 16) << 48);
}

static inline void fixture_tables(struct cpu_fixture *f)
{
    put64(f, T_ROOT, 0x2000 | 7);
    put64(f, T_ROOT + 0x111 * 8, 0x5000 | 3); /* KVA */
    put64(f, 0x5000, 0x83);
    put64(f, 0x2000, 0x3000 | 7);
    put64(f, 0x2000 + 3 * 8, 0xc0000087); /* 1 GiB at 3 GiB: MMIO */
    put64(f, 0x3000, T_PT | 7);
    for (unsigned i = 0; i < 512; i++)
        put64(f, T_PT + i * 8ull, i == T_HOLE >> 12 ? 0 : (uint64_t)i << 12 | (i >= 0x100 ? 7 : 3));
    gdt(f, S_K32, flat_desc(0xc09b));
    gdt(f, S_K64, flat_desc(0xa09b));
    gdt(f, S_KDATA, flat_desc(0xc093));
    gdt(f, S_U32, flat_desc(0xc0fb));
    gdt(f, S_UDATA, flat_desc(0xc0f3));
    gdt(f, S_U64, flat_desc(0xa0fb));
    gdt(f, S_NP, flat_desc(0xc013));
    gdt(f, S_RO, flat_desc(0xc090));
    gdt(f, S_XO, flat_desc(0xc098));
    gdt(f, S_BOTH, flat_desc(0xe09b));
    gdt(f, S_TSS, system_desc(T_TSS, 0x67, FVM_T_TSS));
    gdt(f, S_LDT, system_desc(T_LDT, 0xf, FVM_T_LDT));
    put64(f, T_TSS + 4, T_RSP0);
    put64(f, T_TSS + 0x24, T_IST1);
}

static inline void set_seg(struct cpu_fixture *f, unsigned seg, uint16_t sel)
{
    struct fvm_desc d = {.lo = get64(f, T_GDT + (sel & ~7u))};
    struct fvm_seg s;

    fvm_desc_to_seg(&d, sel, &s);
    fvm_seg_set(f->v, seg, &s);
}
static inline void set_ring(struct cpu_fixture *f, unsigned cpl, unsigned bits)
{
    set_seg(f, FVM_CS, cpl ? (bits == 64 ? S_U64 : S_U32) : (bits == 64 ? S_K64 : S_K32));
    set_seg(f, FVM_SS, cpl ? S_UDATA : S_KDATA);
    f->v->cpl = (uint8_t)cpl;
    f->v->rip = cpl ? T_UCODE : T_KCODE;
    f->v->regs[FVM_RSP] = cpl ? T_USTACK : T_KSTACK;
}

static inline void fixture_make(struct cpu_fixture *f)
{
    struct fvm_vcpu *v = aligned_alloc(4096, FVM_ALIGN_UP(sizeof(*v), 4096));

    *f = (struct cpu_fixture){.v = v};
    memset(v, 0, sizeof(*v));
    CU_ASSERT_FATAL(fvm_ram_create(32ull << 20, &v->ram, NULL) == 0);
    CU_ASSERT_FATAL(fvm_shadow_create(v->ram, &v->shadow, NULL) == 0);
    CU_ASSERT_FATAL(fvm_bus_create(&v->bus) == 0);
    CU_ASSERT_FATAL(fvm_irq_create(&v->irq) == 0);
    fvm_irq_set_lock(v->irq, v->bus);
    CU_ASSERT_FATAL(fvm_loop_create(&f->loop) == 0);
    CU_ASSERT_FATAL(fvm_clock_create(f->loop, 0, &v->clock) == 0);
    fvm_clock_start(v->clock);
    CU_ASSERT_FATAL(fvm_cpu_model_find(NULL, &v->model, NULL) == 0);
    fvm_vcpu_reset_state(v, false);
    fixture_tables(f);
}

/* As a 64-bit kernel runs. */
static inline void fixture_long(struct cpu_fixture *f)
{
    struct fvm_vcpu *v;

    fixture_make(f);
    v = f->v;
    v->cr0 = FVM_CR0_PG | FVM_CR0_PE | FVM_CR0_WP | FVM_CR0_ET | FVM_CR0_NE;
    v->cr4 = FVM_CR4_PAE | FVM_CR4_PGE | FVM_CR4_OSFXSR | FVM_CR4_OSXSAVE | FVM_CR4_FSGSBASE;
    v->cr3 = T_ROOT;
    v->efer = FVM_EFER_LME | FVM_EFER_LMA | FVM_EFER_NXE | FVM_EFER_SCE;
    v->xcr0 = 7;
    v->gdtr = (struct fvm_dtable){T_GDT, 0xff};
    v->idtr = (struct fvm_dtable){T_IDT, 0xfff};
    v->tr = (struct fvm_seg){.sel = S_TSS, .attr = 0x8b, .limit = 0x67, .base = T_TSS};
    v->star = (uint64_t)S_U32 << 48 | (uint64_t)S_K64 << 32;
    v->lstar = KVA + T_KCODE;
    v->sfmask = 0x47700;
    set_ring(f, 0, 64);
    fvm_control_reload(v);
}

/* As a 32-bit kernel without paging runs. */
static inline void fixture_flat32(struct cpu_fixture *f)
{
    struct fvm_vcpu *v;

    fixture_make(f);
    v = f->v;
    v->cr0 = FVM_CR0_PE | FVM_CR0_ET;
    v->gdtr = (struct fvm_dtable){T_GDT, 0xff};
    v->idtr = (struct fvm_dtable){T_IDT, 0x7ff};
    v->tr = (struct fvm_seg){.sel = S_TSS, .attr = 0x8b, .limit = 0x67, .base = T_TSS};
    put64(f, T_TSS + 4, T_RSP0 | (uint64_t)S_KDATA << 32);
    set_ring(f, 0, 32);
    fvm_control_reload(v);
}

static inline void fixture_end(struct cpu_fixture *f)
{
    fvm_clock_destroy(&f->v->clock);
    fvm_loop_destroy(&f->loop);
    fvm_irq_destroy(&f->v->irq);
    fvm_bus_destroy(&f->v->bus);
    fvm_shadow_destroy(&f->v->shadow);
    fvm_ram_destroy(&f->v->ram);
    free(f->v);
    f->v = NULL;
}

/* One instruction at rip: 0, or FVM_FAULT with f->fault. */
static inline int exec_bytes(struct cpu_fixture *f, const char *bytes, size_t len)
{
    struct fvm_insn insn;

    CU_ASSERT_FATAL(fvm_decode((const uint8_t *)bytes, len, fvm_vcpu_code_bits(f->v), &insn) == FVM_DECODE_OK);
    CU_ASSERT_FATAL(insn.len == len);
    CU_ASSERT_FATAL(fvm_insn_is_system(&insn));
    f->fault = (struct fvm_fault){0};
    return fvm_system_exec(f->v, &insn, &f->fault);
}
#define EXEC(f, bytes) exec_bytes(f, bytes, sizeof(bytes) - 1)
#define ASSERT_FAULT(f, vec, error)                                                                                    \
    do {                                                                                                               \
        CU_ASSERT_EQUAL((f)->fault.vector, vec);                                                                       \
        CU_ASSERT_EQUAL((f)->fault.code, (uint32_t)(error));                                                           \
    } while (0)

struct cpu_test {
    const char *name;
    void (*fn)(void);
};
static inline int run_tests(const char *suite, const struct cpu_test *tests, size_t n)
{
    CU_pSuite s;
    unsigned failed;

    CU_initialize_registry();
    s = CU_add_suite(suite, NULL, NULL);
    for (size_t i = 0; i < n; i++)
        CU_add_test(s, tests[i].name, tests[i].fn);
    CU_basic_set_mode(CU_BRM_VERBOSE);
    CU_basic_run_tests();
    failed = CU_get_number_of_failures();
    CU_cleanup_registry();
    return failed != 0;
}

#endif
