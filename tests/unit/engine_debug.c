/*
 * vmm/cpu/debug on a running vCPU: breakpoints wherever a block is entered (linked, by return, by indirect call, in the
 * middle of what was one block), steps, watched pages; and full speed again afterwards.
 */
#include "vmm/cpu/debug.h"

#include <CUnit/Basic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "vmm/cpu/cpuid.h"
#include "vmm/cpu/descriptor.h"
#include "vmm/cpu/system.h"

#define RAM_BYTES (8ull << 20)
#define TABLES 0x100000ull
#define CODE 0x200000ull
#define DATA 0x300000ull
#define STACK 0x400000ull

/* rcx counts; linear == physical, ring 0, 64 bits */
static const uint8_t program[] = {
    0x48, 0xff, 0xc1,                   /* 00 loop: inc rcx        */
    0xe8, 0x18, 0x00, 0x00, 0x00,       /* 03 call 20              */
    0x48, 0x83, 0xc2, 0x01,             /* 08 add rdx, 1           */
    0xff, 0xd3,                         /* 0c call rbx (= 28)      */
    0x48, 0x89, 0x0f,                   /* 0e mov [rdi], rcx       */
    0x48, 0x8b, 0x06,                   /* 11 mov rax, [rsi]       */
    0xeb, 0xea,                         /* 14 jmp loop             */
    0, 0, 0, 0, 0, 0, 0, 0, 0, 0,       /* 16                      */
    0x49, 0xff, 0xc0,                   /* 20 f: inc r8            */
    0xc3,                               /* 23 ret                  */
    0, 0, 0, 0,                         /* 24                      */
    0x49, 0xff, 0xc1,                   /* 28 g: inc r9            */
    0xc3,                               /* 2b ret                  */
};
/* the instructions of one turn, in order */
static const uint8_t turn[] = {0x00, 0x03, 0x20, 0x23, 0x08, 0x0c, 0x28, 0x2b, 0x0e, 0x11, 0x14};

static struct {
    struct fvm_ram *ram;
    struct fvm_bus *bus;
    struct fvm_irq *irq;
    struct fvm_loop *loop;
    struct fvm_clock *clock;
    struct fvm_engine *engine;
    struct fvm_vcpu *v;
    unsigned told;
    unsigned reads, writes;
} g;

static void on_debug(void *ctx, struct fvm_vcpu *v)
{
    (void)ctx;
    (void)v;
    __atomic_add_fetch(&g.told, 1, __ATOMIC_SEQ_CST);
}

static void put64(uint64_t gpa, uint64_t x) { memcpy(fvm_ram_hva(g.ram, gpa), &x, 8); }

static void up(void)
{
    static const struct fvm_vcpu_hooks hooks = {.debug = on_debug};
    const struct fvm_cpu_model *model;
    struct fvm_engine_config config = {.cache_bytes = 16 << 20};
    memset(&g, 0, sizeof(g));
    CU_ASSERT_FATAL(!fvm_ram_create(RAM_BYTES, &g.ram, NULL) && !fvm_bus_create(&g.bus) && !fvm_irq_create(&g.irq) &&
                    !fvm_loop_create(&g.loop) && !fvm_clock_create(g.loop, 0, &g.clock) &&
                    !fvm_cpu_model_find("fvm64-v3", &model, NULL) &&
                    !fvm_engine_create(g.ram, &config, &g.engine, NULL) &&
                    !fvm_vcpu_create(g.engine, 0, model, g.bus, g.irq, g.clock, &hooks, &g.v, NULL));
    fvm_irq_set_lock(g.irq, g.bus);
    fvm_clock_start(g.clock);
    struct fvm_vcpu *v = g.v;
    put64(TABLES, (TABLES + 4096) | 7); /* the first 8 MiB, 4 KiB pages */
    put64(TABLES + 4096, (TABLES + 8192) | 7);
    for (uint64_t i = 0; i < 4; i++)
        put64(TABLES + 8192 + 8 * i, (TABLES + 4096 * (3 + i)) | 7);
    for (uint64_t i = 0; i < RAM_BYTES >> 12; i++)
        put64(TABLES + 4096 * 3 + 8 * i, i << 12 | 3);
    memcpy(fvm_ram_hva(g.ram, CODE), program, sizeof(program));
    v->cr0 = FVM_CR0_PG | FVM_CR0_PE | FVM_CR0_WP | FVM_CR0_ET | FVM_CR0_NE | FVM_CR0_MP;
    v->cr4 = FVM_CR4_PAE | FVM_CR4_OSFXSR | FVM_CR4_OSXMMEXCPT;
    v->cr3 = TABLES;
    v->efer = FVM_EFER_LME | FVM_EFER_LMA | FVM_EFER_NXE;
    for (unsigned s = FVM_ES; s <= FVM_GS; s++)
        v->seg[s] = (struct fvm_seg){.sel = 0x18, .attr = 0xc093, .limit = 0xffffffff};
    v->seg[FVM_CS] = (struct fvm_seg){.sel = 0x10, .attr = 0xa09b, .limit = 0xffffffff};
    v->cpl = 0;
    fvm_control_reload(v);
    v->run = FVM_RUN_NORMAL;
    fvm_vcpu_set_rflags(v, 2);
    memset(v->regs, 0, sizeof(v->regs));
    v->regs[FVM_RSP] = STACK + 0x800;
    v->regs[FVM_RBX] = CODE + 0x28;
    v->regs[FVM_RDI] = DATA;
    v->regs[FVM_RSI] = DATA + 0x1008;
    v->rip = CODE;
    alarm(60);
    CU_ASSERT_FATAL(!fvm_vcpu_start_thread(v));
}

static void down(void)
{
    fvm_vcpu_stop_thread(g.v);
    alarm(0);
    fvm_vcpu_destroy(&g.v);
    fvm_engine_destroy(&g.engine);
    fvm_clock_destroy(&g.clock);
    fvm_loop_destroy(&g.loop);
    fvm_irq_destroy(&g.irq);
    fvm_bus_destroy(&g.bus);
    fvm_ram_destroy(&g.ram);
}

/* Runs until the vCPU says that it stopped, parks it, says why. */
static enum fvm_debug_reason run(bool step)
{
    uint64_t addr;
    unsigned told = __atomic_load_n(&g.told, __ATOMIC_SEQ_CST);
    fvm_debug_go(g.v, step);
    fvm_vcpu_resume(g.v);
    while (__atomic_load_n(&g.told, __ATOMIC_SEQ_CST) == told)
        usleep(50);
    fvm_vcpu_park(g.v);
    return fvm_debug_why(g.v, &addr);
}

/* Runs freely for some turns. */
static void run_freely(void)
{
    volatile uint64_t *count = (volatile uint64_t *)(void *)fvm_ram_hva(g.ram, DATA);
    uint64_t from = *count;
    fvm_debug_go(g.v, false);
    fvm_vcpu_resume(g.v);
    while (*count < from + 100000)
        usleep(50);
    fvm_vcpu_park(g.v);
}

static void test_breakpoints(void)
{
    up();
    run_freely(); /* every block is linked and in the jump cache */
    for (unsigned i = 0; i < sizeof(turn); i++) {
        uint64_t at = CODE + turn[i], before;
        CU_ASSERT_EQUAL(fvm_debug_break_set(g.engine, at), 0);
        CU_ASSERT_EQUAL(fvm_debug_break_set(g.engine, at), FVM_EEXIST);
        CU_ASSERT_EQUAL(run(false), FVM_DEBUG_BREAK);
        CU_ASSERT_EQUAL(g.v->rip, at);
        before = g.v->regs[FVM_RCX];
        CU_ASSERT_EQUAL(run(false), FVM_DEBUG_BREAK); /* and here it still is: nobody stepped over it */
        CU_ASSERT(g.v->rip == at && g.v->regs[FVM_RCX] == before);
        CU_ASSERT_EQUAL(run(true), FVM_DEBUG_STEP);
        CU_ASSERT_EQUAL(run(false), FVM_DEBUG_BREAK); /* one turn later */
        CU_ASSERT(g.v->rip == at && g.v->regs[FVM_RCX] == before + 1);
        CU_ASSERT_EQUAL(fvm_debug_break_clear(g.engine, at), 0);
        CU_ASSERT_EQUAL(fvm_debug_break_clear(g.engine, at), FVM_ENOENT);
        run_freely();
    }
    CU_ASSERT(g.v->regs[FVM_R8] - g.v->regs[FVM_RCX] + 1 <= 2 && g.v->regs[FVM_R9] - g.v->regs[FVM_RCX] + 1 <= 2);
    for (unsigned i = 0; i < FVM_DEBUG_BREAKS_MAX; i++)
        CU_ASSERT_EQUAL(fvm_debug_break_set(g.engine, 0x700000 + i), 0);
    CU_ASSERT_EQUAL(fvm_debug_break_set(g.engine, CODE), FVM_ENOSPC);
    fvm_debug_break_clear_all(g.engine);
    run_freely();
    down();
}

static void test_steps(void)
{
    up();
    for (unsigned i = 0; i < 3 * sizeof(turn); i++) {
        CU_ASSERT_EQUAL(g.v->rip, CODE + turn[i % sizeof(turn)]);
        CU_ASSERT_EQUAL(run(true), FVM_DEBUG_STEP);
    }
    CU_ASSERT_EQUAL(g.v->regs[FVM_RCX], 3);
    run_freely();
    down();
}

static uint64_t watch_read(void *ctx, uint64_t offset, unsigned size)
{
    uint64_t value = 0;
    (void)ctx;
    g.reads++;
    fvm_assert(fvm_ram_read(g.ram, DATA + offset, &value, size) == 0);
    fvm_debug_hit(g.v, DATA + offset);
    return value;
}

static void watch_write(void *ctx, uint64_t offset, unsigned size, uint64_t value)
{
    (void)ctx;
    g.writes++;
    fvm_assert(fvm_ram_write(g.ram, DATA + offset, &value, size) == 0);
    fvm_debug_hit(g.v, DATA + offset);
}

static void moved(void *ctx)
{
    (void)ctx;
    fvm_vcpu_request(g.v, FVM_REQ_FLUSH);
}

static void test_watch(void)
{
    static const struct fvm_bus_ops ops = {.read = watch_read, .write = watch_write};
    uint64_t addr;
    int claim;
    up();
    g.ram->window_hook = moved;
    run_freely();
    CU_ASSERT_EQUAL(fvm_bus_claim(g.bus, FVM_BUS_MMIO, DATA, 4096, &ops, NULL, "watch", &claim), 0);
    fvm_ram_watch(g.ram, DATA >> 12, true);
    CU_ASSERT_EQUAL(run(false), FVM_DEBUG_WATCH);
    CU_ASSERT_EQUAL(fvm_debug_why(g.v, &addr), FVM_DEBUG_WATCH);
    CU_ASSERT_EQUAL(addr, DATA);
    CU_ASSERT_EQUAL(g.v->rip, CODE + 0x11); /* behind the store */
    CU_ASSERT_EQUAL(*(uint64_t *)(void *)fvm_ram_hva(g.ram, DATA), g.v->regs[FVM_RCX]);
    CU_ASSERT_EQUAL(run(false), FVM_DEBUG_WATCH);
    CU_ASSERT(g.writes == 2 && g.reads == 0);
    fvm_ram_watch(g.ram, DATA >> 12, false);
    fvm_bus_release(g.bus, claim);
    run_freely();
    CU_ASSERT_EQUAL(g.writes, 2);
    CU_ASSERT_EQUAL(fvm_bus_claim(g.bus, FVM_BUS_MMIO, CODE, 4096, &ops, NULL, "watch", &claim), 0);
    fvm_ram_watch(g.ram, CODE >> 12, true); /* code in a watched page runs */
    run_freely();
    fvm_ram_watch(g.ram, CODE >> 12, false);
    fvm_bus_release(g.bus, claim);
    down();
}

/* Others park and resume it meanwhile (a migration's dirty log): it stays where it stopped. */
static void test_resumed_by_others(void)
{
    up();
    CU_ASSERT_EQUAL(fvm_debug_break_set(g.engine, CODE + 0x0c), 0);
    CU_ASSERT_EQUAL(run(false), FVM_DEBUG_BREAK);
    for (unsigned i = 0; i < 50; i++) {
        fvm_vcpu_resume(g.v);
        fvm_vcpu_park(g.v);
    }
    CU_ASSERT_EQUAL(g.v->rip, CODE + 0x0c);
    CU_ASSERT_EQUAL(g.v->regs[FVM_RCX], 1);
    CU_ASSERT_EQUAL(g.told, 1);
    fvm_debug_keep(g.v);
    fvm_vcpu_resume(g.v);
    fvm_vcpu_park(g.v);
    CU_ASSERT_EQUAL(g.v->rip, CODE + 0x0c);
    fvm_debug_break_clear_all(g.engine);
    run_freely();
    down();
}

int main(void)
{
    CU_initialize_registry();
    CU_pSuite s = CU_add_suite("unit/engine_debug", NULL, NULL);
    CU_add_test(s, "breakpoints", test_breakpoints);
    CU_add_test(s, "steps", test_steps);
    CU_add_test(s, "watched pages", test_watch);
    CU_add_test(s, "resumed by others", test_resumed_by_others);
    CU_basic_set_mode(CU_BRM_VERBOSE);
    CU_basic_run_tests();
    unsigned bad = CU_get_number_of_failures();
    CU_cleanup_registry();
    return bad != 0;
}
