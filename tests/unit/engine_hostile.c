/*
 * vmm/cpu/translate against guests that want out: code, prefixes and addresses chosen to make the translator or its
 * helpers touch what is not the guest's. Each ends in a guest fault or with the right result, with every byte of RAM
 * that the guest has no mapping for as it was.
 */
#include <CUnit/Basic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "vmm/cpu/cpuid.h"
#include "vmm/cpu/descriptor.h"
#include "vmm/cpu/system.h"
#include "vmm/cpu/vcpu.h"

#define RAM_BYTES (8ull << 20)
#define TABLES 0x100000ull
#define FRAME_CODE 0x200000ull
#define FRAME_DATA 0x300000ull
#define FRAME_STACK 0x400000ull
#define CODE 0x10000000ull
#define DATA 0x20000000ull
#define STACK 0x30000000ull
#define HOLE_GPA 0x40000000ull /* neither RAM nor a device */
#define NOWHERE 0x0bad0bad0bad0badull
#define ALIAS (1ull << 48)
#define NX (1ull << 63)

struct guest {
    struct fvm_ram *ram;
    struct fvm_bus *bus;
    struct fvm_irq *irq;
    struct fvm_loop *loop;
    struct fvm_clock *clock;
    struct fvm_engine *engine;
    struct fvm_vcpu *v;
    uint64_t next_table;
    struct fvm_run_result r;
};

static void put64(struct guest *g, uint64_t gpa, uint64_t x) { memcpy(fvm_ram_hva(g->ram, gpa), &x, 8); }
static uint64_t get64(struct guest *g, uint64_t gpa)
{
    uint64_t x;
    memcpy(&x, fvm_ram_hva(g->ram, gpa), 8);
    return x;
}

/* Physical address of va's lowest entry; makes the tables above it. */
static uint64_t entry_of(struct guest *g, uint64_t va)
{
    uint64_t table = TABLES;
    for (unsigned shift = 39; shift > 12; shift -= 9) {
        uint64_t at = table + (va >> shift & 511) * 8;
        if (!get64(g, at)) {
            put64(g, at, g->next_table | 7);
            g->next_table += 4096;
        }
        table = get64(g, at) & ~0xfffull;
    }
    return table + (va >> 12 & 511) * 8;
}
static void map(struct guest *g, uint64_t va, uint64_t gpa, uint64_t bits)
{
    put64(g, entry_of(g, va), gpa | bits | 1);
}

static void ring(struct guest *g, bool kernel, unsigned bits)
{
    unsigned dpl = kernel ? 0 : 0x60;
    struct fvm_vcpu *v = g->v;
    v->cpl = kernel ? 0 : 3;
    for (unsigned s = FVM_ES; s <= FVM_GS; s++)
        v->seg[s] = (struct fvm_seg){.sel = 0x2b, .attr = (uint16_t)(0xc093 | dpl), .limit = 0xffffffff};
    v->seg[FVM_CS] =
        (struct fvm_seg){.sel = 0x33, .attr = (uint16_t)((bits == 64 ? 0xa09b : 0xc09b) | dpl), .limit = 0xffffffff};
}

static void begin_with(struct guest *g, bool single_block)
{
    const struct fvm_cpu_model *model;
    struct fvm_engine_config config = {.cache_bytes = 16 << 20, .single_block = single_block};
    memset(g, 0, sizeof *g);
    CU_ASSERT_FATAL(!fvm_ram_create(RAM_BYTES, &g->ram, NULL) && !fvm_bus_create(&g->bus) && !fvm_irq_create(&g->irq) &&
                    !fvm_loop_create(&g->loop) && !fvm_clock_create(g->loop, 0, &g->clock) &&
                    !fvm_cpu_model_find("fvm64-v3", &model, NULL) &&
                    !fvm_engine_create(g->ram, &config, &g->engine, NULL) &&
                    !fvm_vcpu_create(g->engine, 0, model, g->bus, g->irq, g->clock, NULL, &g->v, NULL));
    fvm_irq_set_lock(g->irq, g->bus);
    fvm_clock_start(g->clock);
    struct fvm_vcpu *v = g->v;
    g->next_table = TABLES + 4096;
    map(g, CODE, FRAME_CODE, 6);
    map(g, CODE + 4096, FRAME_CODE + 0x2000, 6);
    map(g, DATA, FRAME_DATA, 6 | NX);
    map(g, STACK, FRAME_STACK, 6 | NX);
    v->cr0 = FVM_CR0_PG | FVM_CR0_PE | FVM_CR0_WP | FVM_CR0_ET | FVM_CR0_NE | FVM_CR0_MP;
    v->cr4 = FVM_CR4_PAE | FVM_CR4_PGE | FVM_CR4_OSFXSR | FVM_CR4_OSXMMEXCPT | FVM_CR4_OSXSAVE | FVM_CR4_FSGSBASE;
    v->cr3 = TABLES;
    v->efer = FVM_EFER_LME | FVM_EFER_LMA | FVM_EFER_NXE | FVM_EFER_SCE;
    v->xcr0 = 7;
    ring(g, false, 64);
    fvm_control_reload(v);
    v->run = FVM_RUN_NORMAL;
    v->regs[FVM_RSP] = STACK + 0x800;
    fvm_vcpu_set_rflags(v, 2);
}

static void begin(struct guest *g) { begin_with(g, false); }

static void end(struct guest *g)
{
    fvm_vcpu_destroy(&g->v);
    fvm_engine_destroy(&g->engine);
    fvm_clock_destroy(&g->clock);
    fvm_loop_destroy(&g->loop);
    fvm_irq_destroy(&g->irq);
    fvm_bus_destroy(&g->bus);
    fvm_ram_destroy(&g->ram);
}

static void code_at(struct guest *g, unsigned off, const void *bytes, size_t n)
{
    CU_ASSERT_FATAL(!fvm_ram_write(g->ram, FRAME_CODE + off, bytes, n));
}
#define CODE_AT(g, off, text) code_at(g, off, text, sizeof(text) - 1)

static unsigned run_blocks(struct guest *g, uint64_t rip, uint64_t blocks)
{
    g->v->rip = rip;
    fvm_vcpu_run_until(g->v, NOWHERE, blocks, &g->r);
    return g->r.faulted ? g->r.fault.vector : 0xff;
}
static unsigned run(struct guest *g, uint64_t rip) { return run_blocks(g, rip, 10000); }

/* movss behind eight operand-size prefixes: four bytes, however many prefixes there are. */
static void many_prefixes(void)
{
    static const char store[] = "\x66\x66\x66\x66\x66\x66\x66\x66\xf3\x0f\x11\x01\x0f\x0b";
    struct guest g;
    begin(&g);
    memset(fvm_ram_hva(g.ram, FRAME_DATA + 4096), 0x5a, 4096);
    memset(g.v->xsave + 160, 0xee, 16);
    g.v->xsave[512] = 3;
    g.v->regs[FVM_RCX] = DATA + 0xff0;
    CODE_AT(&g, 0, store);
    CU_ASSERT_EQUAL(run(&g, CODE), FVM_EXC_UD);
    CU_ASSERT_EQUAL(g.v->rip, CODE + 12);
    CU_ASSERT_EQUAL(get64(&g, FRAME_DATA + 0xff0), 0xeeeeeeee);
    g.v->regs[FVM_RCX] = DATA + 0xffc;
    CU_ASSERT_EQUAL(run(&g, CODE), FVM_EXC_UD);
    CU_ASSERT_EQUAL(get64(&g, FRAME_DATA + 0xff8), 0xeeeeeeee00000000ull);
    CU_ASSERT_EQUAL(get64(&g, FRAME_DATA + 0x1000), 0x5a5a5a5a5a5a5a5aull);
    end(&g);
}

/* The address that differs from code's only in the bits that no table looks at. */
static void not_canonical_rip(void)
{
    struct guest g;
    begin(&g);
    CODE_AT(&g, 0, "\xff\xe0");         /* jmp rax */
    CODE_AT(&g, 0x10, "\xff\xd0");      /* call rax */
    CODE_AT(&g, 0x20, "\xc3");          /* ret */
    CODE_AT(&g, 0x100, "\x90\x0f\x0b"); /* nop; ud2 */
    for (unsigned k = 0; k < 6; k++) {
        uint64_t target = CODE + 0x100 + (k & 1 ? ALIAS : 0);
        g.v->regs[FVM_RAX] = target;
        g.v->regs[FVM_RSP] = STACK + 0x800;
        put64(&g, FRAME_STACK + 0x800, target);
        CU_ASSERT_EQUAL(run(&g, CODE + 0x10 * (k / 2)), k & 1 ? FVM_EXC_GP : FVM_EXC_UD);
        CU_ASSERT_EQUAL(g.v->rip, k & 1 ? target : target + 1);
    }
    FILE *null = fopen("/dev/null", "w");
    CU_ASSERT_FATAL(null != NULL);
    fvm_vcpu_dump(g.v, null); /* with a rip that is no address */
    fclose(null);
    /* an instruction from the last byte below the hole on, though the alias of the next page holds code */
    map(&g, 0x7ffffffff000ull, FRAME_CODE + 0x1000, 6);
    map(&g, 0xffff800000000000ull, FRAME_CODE + 0x3000, 6);
    CODE_AT(&g, 0x3000, "\xc0\x0f\x0b");
    CU_ASSERT_EQUAL(run(&g, 0xffff800000000001ull), FVM_EXC_UD);
    CODE_AT(&g, 0x1fff, "\x89"); /* mov eax, eax */
    CU_ASSERT_EQUAL(run(&g, 0x7fffffffffffull), FVM_EXC_GP);
    end(&g);
}

static void not_canonical_data(void)
{
    struct guest g;
    begin(&g);
    CODE_AT(&g, 0, "\xf9\x50\x72\x00\x0f\x0b");    /* stc; push rax; jc */
    CODE_AT(&g, 0x10, "\xc9\x0f\x0b");             /* leave */
    CODE_AT(&g, 0x20, "\xf3\xa4\x0f\x0b");         /* rep movsb */
    CODE_AT(&g, 0x30, "\x48\x0f\xae\x27\x0f\x0b"); /* xsave64 [rdi] */
    CODE_AT(&g, 0x40, "\x48\x8b\x07\x0f\x0b");     /* mov rax, [rdi] */
    for (unsigned k = 0; k < 2; k++) {             /* the second time the alias' entry is there */
        uint64_t bad = k ? ALIAS : 0;
        g.v->regs[FVM_RSP] = STACK + 0x800 + bad;
        CU_ASSERT_EQUAL(run(&g, CODE), k ? FVM_EXC_SS : FVM_EXC_UD);
        CU_ASSERT_EQUAL(g.v->rip, CODE + (k ? 1 : 4));
        CU_ASSERT(fvm_vcpu_rflags(g.v) & FVM_F_CF);
        g.v->regs[FVM_RSP] = STACK + 0x700;
        g.v->regs[FVM_RBP] = STACK + 0x800 + bad;
        CU_ASSERT_EQUAL(run(&g, CODE + 0x10), k ? FVM_EXC_SS : FVM_EXC_UD);
        CU_ASSERT_EQUAL(g.v->regs[FVM_RSP], STACK + (k ? 0x700 : 0x808));
        if (k)
            CU_ASSERT_EQUAL(g.v->regs[FVM_RBP], STACK + 0x800 + bad);
        g.v->regs[FVM_RSI] = DATA + bad;
        g.v->regs[FVM_RDI] = DATA + 0x100;
        g.v->regs[FVM_RCX] = 8;
        CU_ASSERT_EQUAL(run(&g, CODE + 0x20), k ? FVM_EXC_GP : FVM_EXC_UD);
        g.v->regs[FVM_RDI] = DATA + 0x400 + bad;
        CU_ASSERT_EQUAL(run(&g, CODE + 0x30), k ? FVM_EXC_GP : FVM_EXC_UD);
        g.v->regs[FVM_RDI] = DATA + 0xffc; /* the next page of the alias is none either */
        CU_ASSERT_EQUAL(run(&g, CODE + 0x40), FVM_EXC_PF);
        g.v->regs[FVM_RDI] = DATA + 0x400 + bad;
        CU_ASSERT_EQUAL(run(&g, CODE + 0x40), k ? FVM_EXC_GP : FVM_EXC_UD);
    }
    end(&g);
}

/* 32-bit mode: a segment base plus an offset, and accesses across the end, wrap at 4 GiB. */
static void four_gib_wrap(void)
{
    struct guest g;
    begin(&g);
    g.v->efer = FVM_EFER_NXE;
    g.v->cr4 = FVM_CR4_PSE | FVM_CR4_OSFXSR;
    g.v->cr3 = 0x500000; /* two levels, identity for the first 4 MiB, and the last page */
    put64(&g, 0x500000 + 4092 - 4, (0x501000ull | 7) << 32);
    memset(fvm_ram_hva(g.ram, 0x500000), 0, 8);
    put64(&g, 0x500000, 0x87);
    put64(&g, 0x501000 + 4092 - 4, (0x600000ull | 7) << 32);
    ring(&g, false, 32);
    fvm_control_reload(g.v);
    fvm_vcpu_set_seg_base(g.v, FVM_FS, 0xfffff000);
    CODE_AT(&g, 0, "\x64\x8b\x01\x0f\x0b");                /* mov eax, fs:[ecx] */
    CODE_AT(&g, 0x10, "\x64\xad\x0f\x0b");                 /* lodsd fs:[esi] */
    CODE_AT(&g, 0x20, "\x64\xa1\x00\x30\x00\x00\x0f\x0b"); /* mov eax, fs:[0x3000] */
    CODE_AT(&g, 0x30, "\x64\x0f\xba\x29\x00\x0f\x0b");     /* bts dword fs:[ecx], 0 */
    CODE_AT(&g, 0x40, "\x64\x0f\xab\x11\x0f\x0b");         /* bts fs:[ecx], edx */
    CODE_AT(&g, 0x50, "\x8b\x01\x0f\x0b");                 /* mov eax, [ecx] */
    CODE_AT(&g, 0x60, "\xf3\x64\xa5\x0f\x0b");             /* rep movsd es:[edi], fs:[esi] */
    CODE_AT(&g, 0x70, "\x0f\x10\x01\x0f\x0b");             /* movups xmm0, [ecx] */
    put64(&g, 0x2000, 0x11223344);
    for (unsigned k = 0; k < 2; k++) {
        g.v->regs[FVM_RCX] = 0x3000;
        for (unsigned c = 0; c < 3; c++) {
            g.v->regs[FVM_RSI] = 0x3000;
            g.v->regs[FVM_RAX] = 0;
            CU_ASSERT_EQUAL(run(&g, FRAME_CODE + 0x10 * c), FVM_EXC_UD);
            CU_ASSERT_EQUAL(g.v->regs[FVM_RAX], 0x11223344);
        }
        put64(&g, 0x2000, 0x11223344);
        CU_ASSERT_EQUAL(run(&g, FRAME_CODE + 0x30), FVM_EXC_UD);
        CU_ASSERT_EQUAL(get64(&g, 0x2000), 0x11223345);
        g.v->regs[FVM_RDX] = 0x41;
        CU_ASSERT_EQUAL(run(&g, FRAME_CODE + 0x40), FVM_EXC_UD);
        CU_ASSERT_EQUAL(get64(&g, 0x2008), 2);
        put64(&g, 0x2008, 0);
        put64(&g, 0x2000, 0x11223344);
        put64(&g, 0x600ff8, 0xbbaa000000000000ull); /* linear 0xfffffff8 */
        put64(&g, 0, 0x99887766);
        g.v->regs[FVM_RCX] = 0xfffffffe;
        CU_ASSERT_EQUAL(run(&g, FRAME_CODE + 0x50), FVM_EXC_UD);
        CU_ASSERT_EQUAL(g.v->regs[FVM_RAX], 0x7766bbaa);
        CU_ASSERT_EQUAL(run(&g, FRAME_CODE + 0x70), FVM_EXC_UD);
        CU_ASSERT_EQUAL(memcmp(g.v->xsave + 160, "\xaa\xbb\x66\x77\x88\x99", 6), 0);
        g.v->regs[FVM_RSI] = 0x3000;
        g.v->regs[FVM_RDI] = 0x4000;
        g.v->regs[FVM_RCX] = 1;
        CU_ASSERT_EQUAL(run(&g, FRAME_CODE + 0x60), FVM_EXC_UD);
        CU_ASSERT_EQUAL(get64(&g, 0x4000), 0x11223344);
    }
    CODE_AT(&g, 0x80, "\xff\xe1"); /* jmp ecx, to an instruction across the end */
    ((uint8_t *)fvm_ram_hva(g.ram, 0x600fff))[0] = 0x89;
    memcpy(fvm_ram_hva(g.ram, 0), "\xc8\x0f\x0b", 3); /* mov eax, ecx; ud2 */
    g.v->regs[FVM_RCX] = 0xffffffff;
    CU_ASSERT_EQUAL(run(&g, FRAME_CODE + 0x80), FVM_EXC_UD);
    CU_ASSERT_EQUAL(g.v->regs[FVM_RAX], 0xffffffff);
    CU_ASSERT_EQUAL(g.v->rip, 1);
    end(&g);
}

/* Code and the page table that maps the data lie in one page: setting A and D bits writes to a page with translated
 * code. */

static void code_in_page_table(void)
{
    struct guest g;
    begin(&g);
    uint64_t pte = entry_of(&g, DATA), frame = pte & ~0xfffull;
    map(&g, CODE + 0x5000, frame, 6);
    /* mov rax, [rdi]; mov [rdi], rcx; mov [rdi+8], rcx (flag for the test); jmp $ */
    memcpy(fvm_ram_hva(g.ram, frame + 0x800), "\x48\x8b\x07\x48\x89\x0f\x48\x89\x4f\x08\xeb\xfe", 12);
    g.v->regs[FVM_RDI] = DATA;
    g.v->regs[FVM_RCX] = 0x1234;
    g.v->rip = CODE + 0x5800;
    alarm(30); /* the vCPU waited for itself here */
    CU_ASSERT_FATAL(!fvm_vcpu_start_thread(g.v));
    fvm_vcpu_resume(g.v);
    volatile uint64_t *flag = (volatile uint64_t *)(void *)fvm_ram_hva(g.ram, FRAME_DATA + 8);
    while (*flag != 0x1234)
        usleep(100);
    fvm_vcpu_stop_thread(g.v);
    alarm(0);
    CU_ASSERT_EQUAL(g.v->rip, CODE + 0x580a);
    CU_ASSERT_EQUAL(get64(&g, pte) & 0x60, 0x60);
    end(&g);
}

/* One instruction means one, also where the jump cache knows the target. */
static void single_step_return(void)
{
    struct guest g;
    begin(&g);
    CODE_AT(&g, 0, "\xb9\x09\x00\x00\x00\xe8\x06\x00\x00\x00\xff\xc9\x75\xf7\x0f\x0b\xc3"); /* call a ret nine times */
    CU_ASSERT_EQUAL(run(&g, CODE), FVM_EXC_UD);
    g.v->regs[FVM_RSP] = STACK + 0x7f8;
    put64(&g, FRAME_STACK + 0x7f8, CODE + 10);
    g.v->regs[FVM_RCX] = 5;
    fvm_vcpu_set_rflags(g.v, 2 | FVM_F_TF);
    CU_ASSERT_EQUAL(run_blocks(&g, CODE + 16, 1), 0xff);
    CU_ASSERT_EQUAL(g.v->rip, CODE + 10);
    CU_ASSERT_EQUAL(g.v->regs[FVM_RCX], 5);
    end(&g);
}

/* CR0.TS changes what blocks mean: the jump cache must not lead to those of before. */
static void mode_of_jump_cache(void)
{
    struct guest g;
    begin(&g);
    ring(&g, true, 64);
    map(&g, CODE, FRAME_CODE, 2);
    fvm_control_reload(g.v);
    /* thrice: call; fld1 */
    CODE_AT(&g, 0, "\xb9\x03\x00\x00\x00\xe8\x08\x00\x00\x00\xd9\xe8\xff\xc9\x75\xf5\x0f\x0b\xc3");
    CU_ASSERT_EQUAL(run(&g, CODE), FVM_EXC_UD);
    g.v->regs[FVM_RSP] = STACK + 0x800;
    g.v->cr0 |= FVM_CR0_TS;
    CU_ASSERT_EQUAL(run(&g, CODE), FVM_EXC_NM);
    CU_ASSERT_EQUAL(g.v->rip, CODE + 10);
    g.v->cr0 &= ~(uint64_t)FVM_CR0_TS;
    CU_ASSERT_EQUAL(run(&g, CODE), FVM_EXC_UD);
    end(&g);
}

/* A translation that outlived its mapping (no INVLPG) meets, in C, an instruction that asks for its own address. */
static void stale_lea(void)
{
    struct guest g;
    begin(&g);
    map(&g, DATA + 0x10000, HOLE_GPA, 6 | NX);
    CODE_AT(&g, 0, "\x48\x8b\x04\x25\x00\x00\x01\x20\x0f\x0b");      /* mov rax, [DATA + 0x10000] */
    CODE_AT(&g, 0x5000, "\x48\x8d\x05\x00\x00\x00\x00\x90\x0f\x0b"); /* lea rax, [rip]; nop */
    CU_ASSERT_EQUAL(run(&g, CODE), FVM_EXC_UD);
    CU_ASSERT_EQUAL(g.v->regs[FVM_RAX], ~0ull);
    map(&g, CODE, FRAME_CODE + 0x5000, 6);
    CU_ASSERT_EQUAL(run(&g, CODE), FVM_EXC_UD);
    CU_ASSERT_EQUAL(g.v->regs[FVM_RAX], CODE + 7);
    end(&g);
}

static void invalid_made_valid(void)
{
    struct guest g;
    begin(&g);
    CODE_AT(&g, 0, "\x0f\x0a\x0f\x0b");
    CU_ASSERT_EQUAL(run(&g, CODE), FVM_EXC_UD);
    CU_ASSERT_EQUAL(g.v->rip, CODE);
    CODE_AT(&g, 1, "\xa2"); /* cpuid */
    CU_ASSERT_EQUAL(run(&g, CODE), FVM_EXC_UD);
    CU_ASSERT_EQUAL(g.v->rip, CODE + 2);
    end(&g);
}

/* The longest blocks there can be. */
static void large_blocks(void)
{
    /* push qword fs:[r8d+r9d*8+disp32] */
    static const char *const forms[] = {"\x64\x67\x43\xff\xb4\xc8\x78\x56\x34\x12",
                                        "\x64\x43\xff\xb4\xc8\x78\x56\x34\x12",
                                        "\x64\x43\x83\x94\xc8\x78\x56\x34\x12\x07",     /* adc dword fs:[...], 7 */
                                        "\x64\x4b\x0f\xab\x9c\xc8\x78\x56\x34\x12",     /* bts fs:[...], rbx */
                                        "\x64\xf0\x4b\x0f\xb1\x9c\xc8\x78\x56\x34\x12", /* lock cmpxchg fs:[...], rbx */
                                        "\xf3\x64\x48\xa5",
                                        "\xf3\x64\xa6"};
    static const char tails[][9] = {"\x0f\x84\x00\x10\x00\x00\x90\x90", /* jz elsewhere */
                                    "\x41\xff\x94\xc8\x78\x56\x34\x12", "\xc3\x90\x90\x90\x90\x90\x90\x90"};
    struct guest g;
    begin(&g);
    for (unsigned f = 0; f < FVM_ARRAY_SIZE(forms); f++)
        for (unsigned tail = 0; tail < 3; tail++) {
            unsigned at = 0, n = (unsigned)strlen(forms[f]);
            uint8_t buf[1024];
            for (unsigned k = 0; k < 31; k++, at += n)
                memcpy(buf + at, forms[f], n);
            memcpy(buf + at, tails[tail], 8);
            code_at(&g, 0, buf, at + 8);
            CU_ASSERT_EQUAL(run(&g, CODE), FVM_EXC_PF);
        }
    end(&g);
}

static uint64_t mix(uint64_t *s)
{
    uint64_t z = (*s += 0x9e3779b97f4a7c15ull);
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ z >> 27) * 0x94d049bb133111ebull;
    return z ^ z >> 31;
}

/* Addresses at the edges of what is mapped, and their aliases. */
static uint64_t some_address(uint64_t *s)
{
    static const uint64_t at[] = {
        CODE, DATA, STACK, DATA + 4096, CODE + 0x2000, 0, 0x7ffffffff000ull, 0xffff800000000000ull};
    uint64_t r = mix(s), a = at[r & 7];
    r >>= 3;
    a += (r & 3) == 0 ? r >> 8 & 0xfff : (r & 3) == 1 ? 0xfc0 + (r >> 8 & 63) : (r & 3) == 2 ? 0 - (r >> 8 & 31) : 0;
    return (r >> 40 & 15) == 0 ? a + (r >> 44 & 0xffff) * ALIAS : a;
}

/* Random bytes behind floods of prefixes, as a user's and as a kernel's, 64- and 32-bit code. */
static void random_code(void)
{
    static const uint8_t prefixes[] = {0x66, 0xf2, 0xf3, 0xf0, 0x64, 0x65, 0x67,
                                       0x2e, 0x48, 0x4f, 0x41, 0xc5, 0xc4, 0x0f};
    uint64_t s = 1;
    struct guest g;
    begin_with(&g, true); /* loops end: each block counts */
    uint8_t *outside = malloc(RAM_BYTES);
    CU_ASSERT_FATAL(outside != NULL);
    for (uint64_t at = 0x600000; at < RAM_BYTES; at++)
        *fvm_ram_hva(g.ram, at) = (uint8_t)mix(&s);
    for (uint64_t f = FRAME_CODE; f <= FRAME_STACK; f += 0x100000) { /* what lies behind and before the mapped frames */
        memset(fvm_ram_hva(g.ram, f + 4096), 0x5a, 4096);
        memset(fvm_ram_hva(g.ram, f - 4096), 0x5a, 4096);
    }
    memcpy(outside, fvm_ram_hva(g.ram, 0), RAM_BYTES);
    for (unsigned round = 0; round < 100000; round++) {
        uint8_t code[48];
        for (unsigned k = 0; k < sizeof code; k++)
            code[k] = (uint8_t)mix(&s);
        for (unsigned k = 0, n = (unsigned)(mix(&s) % 15); k < n; k++)
            code[k] = prefixes[mix(&s) % FVM_ARRAY_SIZE(prefixes)];
        unsigned off = mix(&s) & 1 ? 0x100 : 0x1000 - (unsigned)(mix(&s) % 24);
        if (off + sizeof code > 0x1000) { /* the next page is elsewhere */
            unsigned first = 0x1000 - off;
            code_at(&g, off, code, first);
            code_at(&g, 0x2000, code + first, sizeof code - first);
        } else {
            code_at(&g, off, code, sizeof code);
        }
        for (unsigned k = 0; k < 16; k++)
            g.v->regs[k] = some_address(&s);
        fvm_vcpu_set_seg_base(g.v, FVM_FS, mix(&s) & 1 ? 0 : some_address(&s) & 0x7fffffffffffull);
        fvm_vcpu_set_seg_base(g.v, FVM_GS, 0);
        fvm_vcpu_set_rflags(g.v, (mix(&s) & 0xcd5) | 2);
        ring(&g, false, round & 1 ? 64 : 32);
        g.v->run = FVM_RUN_NORMAL;
        (void)run_blocks(&g, CODE + off, 64);
    }
    CU_ASSERT_EQUAL(memcmp(outside + 0x500000, fvm_ram_hva(g.ram, 0x500000), RAM_BYTES - 0x500000), 0);
    for (uint64_t f = FRAME_CODE; f <= FRAME_STACK; f += 0x100000) {
        CU_ASSERT_EQUAL(memcmp(outside + f + 4096, fvm_ram_hva(g.ram, f + 4096), 4096), 0);
        CU_ASSERT_EQUAL(memcmp(outside + f - 4096, fvm_ram_hva(g.ram, f - 4096), 4096), 0);
    }
    free(outside);
    end(&g);
}

int main(void)
{
    CU_initialize_registry();
    CU_pSuite s = CU_add_suite("engine: hostile guests", NULL, NULL);
    CU_add_test(s, "more prefixes than anyone needs", many_prefixes);
    CU_add_test(s, "code at addresses that are not canonical", not_canonical_rip);
    CU_add_test(s, "data at addresses that are not canonical", not_canonical_data);
    CU_add_test(s, "32-bit addresses wrap", four_gib_wrap);
    CU_add_test(s, "code in a page table", code_in_page_table);
    CU_add_test(s, "single step over ret", single_step_return);
    CU_add_test(s, "jump cache of another mode", mode_of_jump_cache);
    CU_add_test(s, "lea of a stale translation", stale_lea);
    CU_add_test(s, "invalid code becomes valid", invalid_made_valid);
    CU_add_test(s, "large blocks", large_blocks);
    CU_add_test(s, "random code", random_code);
    CU_basic_set_mode(CU_BRM_VERBOSE);
    CU_basic_run_tests();
    unsigned failed = CU_get_number_of_failures();
    CU_cleanup_registry();
    return failed ? 1 : 0;
}
