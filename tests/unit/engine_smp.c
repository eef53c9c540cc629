/*
 * vmm/cpu/translate with several vCPUs, a thread each, on the same guest code and memory: locked instructions, memory order,
 * code that one writes and others run, and a host that stops the world all the time. Each guest ends at a ud2; what it found
 * wrong is in RBX.
 */
#include <CUnit/Basic.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
#include "vmm/cpu/cpuid.h"
#include "vmm/cpu/system.h"
#include "vmm/cpu/vcpu.h"

#define RAM_BYTES (16ull << 20)
#define TABLES 0x100000ull
#define FRAME_CODE 0x200000ull
#define FRAME_DATA 0x300000ull
#define FRAME_STACK 0x400000ull
#define CODE 0x10000000ull
#define CODE_PAGES 64
#define DATA 0x20000000ull
#define STACK 0x30000000ull
#define NOWHERE 0x0bad0bad0bad0badull
#define CPUS_MAX 4

/* RDI = number of this vCPU, RSI = rounds, RBP = DATA, R8 = number of vCPUs */
__asm__(".pushsection .rodata\n.balign 64\n"
        "smp_start:\n"
        "smp_locked: lock incq 0(%rbp)\n" /* and a lock around plain increments */
        "1: mov $1, %eax; xchg %eax, 64(%rbp); test %eax, %eax; jz 2f\n"
        "   pause; jmp 1b\n"
        "2: incq 128(%rbp); mov 192(%rbp), %rax; inc %rax; mov %rax, 192(%rbp)\n"
        "   movl $0, 64(%rbp)\n"
        "   mov 256(%rbp), %rax\n"
        "3: lea 3(%rax), %rcx; lock cmpxchg %rcx, 256(%rbp); jnz 3b\n"
        "   lock btsq $5, 320(%rbp)\n"
        "   mov $1, %ecx; lock xadd %ecx, 384(%rbp)\n"
        "   dec %rsi; jnz smp_locked\n"
        "   ud2\n"
        /* a locked word across two pages, and one across two cache lines */
        "smp_split: lock incl 4094(%rbp); lock incq 60(%rbp)\n"
        "   mov $1, %eax; lock xadd %rax, 8189(%rbp)\n"
        "   dec %rsi; jnz smp_split\n"
        "   ud2\n"
        /* two vCPUs meet each round, r9 = round: [rbp+64*cpu] */
        ".macro MEET\n"
        "   inc %r9; mov %rdi, %rax; shl $6, %rax; mov %r9, 1024(%rbp,%rax); xor $64, %rax\n"
        "7: cmp %r9, 1024(%rbp,%rax); jae 8f; pause; jmp 7b\n8:\n"
        ".endm\n"
        /* store buffering: x = r, fence, read y; never both the old */
        "smp_sb: xor %r9, %r9; xor %ebx, %ebx; mov %rdi, %r10; shl $6, %r10; mov %r10, %r11; xor $64, %r11\n"
        "1: MEET\n"
        "   mov %r9, 2048(%rbp,%r10); mfence; mov 2048(%rbp,%r11), %rcx; mov %rcx, 3072(%rbp,%r10)\n"
        "   MEET\n"
        "   mov 3072(%rbp,%r11), %rdx; dec %r9; cmp %r9, %rcx; jae 2f; cmp %r9, %rdx; jae 2f; inc %rbx\n"
        "2: inc %r9; dec %rsi; jnz 1b\n"
        "   ud2\n"
        /* message passing: cpu 0 writes data, then flag; cpu 1 reads flag, then data; data >= flag */
        "smp_mp: xor %ebx, %ebx; test %rdi, %rdi; jnz 2f\n"
        "1: mov %rsi, %rax; neg %rax; mov %rax, 0(%rbp); mov %rax, 512(%rbp); dec %rsi; jnz 1b\n"
        "   movl $1, 1024(%rbp); ud2\n"
        "2: mov 512(%rbp), %rcx; mov 0(%rbp), %rdx; cmp %rcx, %rdx; jge 3f; inc %rbx\n"
        "3: cmpl $0, 1024(%rbp); je 2b\n"
        "   ud2\n"
        /* cpu 0 changes the immediate of one of 128 small functions (16 bytes each, at 0x1000) and then publishes value and
         * number; the others read them, serialise, call: never an older value. They also call the next one, unsynchronised, and
         * say how far they are, so that cpu 0 does not run ahead. */
        "smp_xmc: xor %ebx, %ebx; lea smp_start(%rip), %r10; add $0x1000, %r10; test %rdi, %rdi; jnz 3f; mov $1, %r12d\n"
        "1: mov %r12d, %ecx; and $127, %ecx; shl $4, %ecx; mov %r12d, 4(%r10,%rcx)\n"
        "   mov %r12, 0(%rbp)\n"
        "2: mov 512(%rbp), %rax; add $8, %rax; cmp %r12, %rax; jae 9f; pause; jmp 2b\n"
        "9: inc %r12; dec %rsi; jnz 1b\n"
        "   movl $1, 1024(%rbp); ud2\n"
        "3: mov 0(%rbp), %r12; xor %eax, %eax; mov %rbx, %r13; cpuid; mov %r13, %rbx\n"
        "   mov %r12d, %ecx; and $127, %ecx; shl $4, %ecx; lea (%r10,%rcx), %rdx; call *%rdx\n"
        "   cmp %r12d, %eax; jae 4f; inc %rbx\n"
        "4: mov %r12, 512(%rbp); lea 1(%r12), %ecx; and $127, %ecx; shl $4, %ecx; lea (%r10,%rcx), %rdx; call *%rdx\n"
        "   cmpl $0, 1024(%rbp); je 3b\n"
        "   ud2\n"
        /* plain counting in a loop of direct jumps, for a host that looks on */
        "smp_count: mov %rdi, %rax; shl $6, %rax; lea (%rbp,%rax), %rdx\n"
        "1: incq (%rdx); jmp 2f\n2: cmpl $0, 1024(%rbp); je 1b\n"
        "   ud2\n"
        /* all functions in turn (more code than the cache has room for), and data in their page written: cpu n's word */
        "smp_all: lea smp_start(%rip), %r10; add $0x1000, %r10; xor %ebx, %ebx; lea (%r10,%rdi,8), %r11\n"
        "1: xor %r12d, %r12d\n"
        "2: mov %r12, %rcx; shl $10, %rcx; lea 64(%r10,%rcx), %rdx; call *%rdx\n"
        "   cmp %r12d, %eax; je 3f; inc %rbx\n"
        "3: incq (%r11)\n"
        "   inc %r12; cmp $240, %r12; jb 2b\n"
        "   dec %rsi; jnz 1b\n"
        "   ud2\n"
        "smp_end:\n.popsection\n");
extern const uint8_t smp_start[], smp_end[], smp_locked[], smp_split[], smp_sb[], smp_mp[], smp_xmc[], smp_count[], smp_all[];

struct guest {
    struct fvm_ram *ram;
    struct fvm_bus *bus;
    struct fvm_irq *irq;
    struct fvm_loop *loop;
    struct fvm_clock *clock;
    struct fvm_engine *engine;
    unsigned count;
    struct fvm_vcpu *v[CPUS_MAX];
    pthread_t thread[CPUS_MAX];
    struct fvm_run_result r[CPUS_MAX];
    uint64_t next_table;
};

static void put64(struct guest *g, uint64_t gpa, uint64_t x) { memcpy(fvm_ram_hva(g->ram, gpa), &x, 8); }
static uint64_t get64(struct guest *g, uint64_t gpa)
{
    return __atomic_load_n((uint64_t *)(void *)fvm_ram_hva(g->ram, gpa), __ATOMIC_ACQUIRE);
}
static uint64_t data(struct guest *g, unsigned off)
{
    uint64_t x;
    memcpy(&x, fvm_ram_hva(g->ram, FRAME_DATA + off), 8);
    return x;
}

static void map(struct guest *g, uint64_t va, uint64_t gpa, uint64_t bits)
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
    put64(g, table + (va >> 12 & 511) * 8, gpa | bits | 1);
}

static void ready(struct guest *g, unsigned n, const uint8_t *at, uint64_t rounds)
{
    struct fvm_vcpu *v = g->v[n];
    v->cr0 = FVM_CR0_PG | FVM_CR0_PE | FVM_CR0_WP | FVM_CR0_ET | FVM_CR0_NE | FVM_CR0_MP;
    v->cr4 = FVM_CR4_PAE | FVM_CR4_PGE | FVM_CR4_OSFXSR | FVM_CR4_OSXMMEXCPT | FVM_CR4_OSXSAVE;
    v->cr3 = TABLES;
    v->efer = FVM_EFER_LME | FVM_EFER_LMA | FVM_EFER_NXE | FVM_EFER_SCE;
    v->xcr0 = 7;
    v->cpl = 3;
    for (unsigned s = FVM_ES; s <= FVM_GS; s++)
        v->seg[s] = (struct fvm_seg){.sel = 0x2b, .attr = 0xc0f3, .limit = 0xffffffff};
    v->seg[FVM_CS] = (struct fvm_seg){.sel = 0x33, .attr = 0xa0fb, .limit = 0xffffffff};
    fvm_control_reload(v);
    v->run = FVM_RUN_NORMAL;
    v->regs[FVM_RSP] = STACK + 4096 * n + 0x800;
    v->regs[FVM_RDI] = n;
    v->regs[FVM_RSI] = rounds;
    v->regs[FVM_RBP] = DATA;
    v->regs[FVM_RBX] = 0;
    v->regs[FVM_R8] = g->count;
    fvm_vcpu_set_rflags(v, 2);
    v->rip = CODE + (uint64_t)(at - smp_start);
}

static void begin(struct guest *g, unsigned count, uint64_t cache_bytes)
{
    const struct fvm_cpu_model *model;
    struct fvm_engine_config config = {.cache_bytes = cache_bytes};
    memset(g, 0, sizeof *g);
    g->count = count;
    CU_ASSERT_FATAL(!fvm_ram_create(RAM_BYTES, &g->ram, NULL) && !fvm_bus_create(&g->bus) && !fvm_irq_create(&g->irq) &&
                    !fvm_loop_create(&g->loop) && !fvm_clock_create(g->loop, 0, &g->clock) &&
                    !fvm_cpu_model_find("fvm64-v3", &model, NULL) && !fvm_engine_create(g->ram, &config, &g->engine, NULL));
    fvm_irq_set_lock(g->irq, g->bus);
    fvm_clock_start(g->clock);
    g->next_table = TABLES + 4096;
    for (unsigned k = 0; k < CODE_PAGES; k++)
        map(g, CODE + 4096 * k, FRAME_CODE + 4096 * k, 6);
    for (unsigned k = 0; k < 4; k++) {
        map(g, DATA + 4096 * k, FRAME_DATA + 4096 * k, 6 | 1ull << 63);
        map(g, STACK + 4096 * k, FRAME_STACK + 4096 * k, 6 | 1ull << 63);
    }
    CU_ASSERT_FATAL(!fvm_ram_write(g->ram, FRAME_CODE, smp_start, (size_t)(smp_end - smp_start)));
    for (unsigned n = 0; n < count; n++) {
        CU_ASSERT_FATAL(!fvm_vcpu_create(g->engine, n, model, g->bus, g->irq, g->clock, NULL, &g->v[n], NULL));
        g->v[n]->count = count;
    }
}

static void end(struct guest *g)
{
    for (unsigned n = g->count; n-- > 0;)
        fvm_vcpu_destroy(&g->v[n]);
    fvm_engine_destroy(&g->engine);
    fvm_clock_destroy(&g->clock);
    fvm_loop_destroy(&g->loop);
    fvm_irq_destroy(&g->irq);
    fvm_bus_destroy(&g->bus);
    fvm_ram_destroy(&g->ram);
}

/* A small function: mov eax, value; ret. Its immediate is aligned. */
static void function_at(struct guest *g, uint64_t off, uint32_t value)
{
    uint8_t code[16] = {0x0f, 0x1f, 0x00, 0xb8, 0, 0, 0, 0, 0xc3};
    memcpy(code + 4, &value, 4);
    CU_ASSERT_FATAL(!fvm_ram_write(g->ram, FRAME_CODE + off, code, sizeof code));
}

struct one {
    struct guest *g;
    unsigned n;
};

static void *run_one(void *arg)
{
    struct one *o = arg;
    fvm_vcpu_run_until(o->g->v[o->n], NOWHERE, UINT64_MAX, &o->g->r[o->n]);
    return NULL;
}

static struct one ones[CPUS_MAX];
static void start(struct guest *g, const uint8_t *at, uint64_t rounds)
{
    for (unsigned n = 0; n < g->count; n++)
        ready(g, n, at, rounds);
    for (unsigned n = 0; n < g->count; n++) {
        ones[n] = (struct one){g, n};
        CU_ASSERT_FATAL(!pthread_create(&g->thread[n], NULL, run_one, &ones[n]));
    }
}

/* All came to their ud2 with nothing wrong. */
static void finish(struct guest *g)
{
    for (unsigned n = 0; n < g->count; n++) {
        pthread_join(g->thread[n], NULL);
        CU_ASSERT(g->r[n].faulted && g->r[n].fault.vector == 6);
        CU_ASSERT_EQUAL(g->v[n]->regs[FVM_RBX], 0);
    }
}

static void locked(void)
{
    struct guest g;
    const uint64_t rounds = 100000;
    begin(&g, CPUS_MAX, 0);
    start(&g, smp_locked, rounds);
    finish(&g);
    CU_ASSERT_EQUAL(data(&g, 0), CPUS_MAX * rounds);
    CU_ASSERT_EQUAL(data(&g, 128), CPUS_MAX * rounds);
    CU_ASSERT_EQUAL(data(&g, 192), CPUS_MAX * rounds);
    CU_ASSERT_EQUAL(data(&g, 256), 3 * CPUS_MAX * rounds);
    CU_ASSERT_EQUAL(data(&g, 320), 1 << 5);
    CU_ASSERT_EQUAL((uint32_t)data(&g, 384), CPUS_MAX * rounds);
    end(&g);
}

static void split(void)
{
    struct guest g;
    const uint64_t rounds = 2000;
    begin(&g, CPUS_MAX, 0);
    start(&g, smp_split, rounds);
    finish(&g);
    CU_ASSERT_EQUAL((uint32_t)data(&g, 4094), CPUS_MAX * rounds);
    CU_ASSERT_EQUAL(data(&g, 60), CPUS_MAX * rounds);
    CU_ASSERT_EQUAL(data(&g, 8189), CPUS_MAX * rounds);
    end(&g);
}

static void store_buffering(void)
{
    struct guest g;
    begin(&g, 2, 0);
    start(&g, smp_sb, 20000);
    finish(&g);
    end(&g);
}

static void message_passing(void)
{
    struct guest g;
    begin(&g, 2, 0);
    put64(&g, FRAME_DATA, (uint64_t)INT64_MIN);
    put64(&g, FRAME_DATA + 512, (uint64_t)INT64_MIN);
    start(&g, smp_mp, 300000);
    finish(&g);
    end(&g);
}

static void cross_modifying(void)
{
    struct guest g;
    struct fvm_engine_stats s;
    begin(&g, 3, 0);
    for (unsigned k = 0; k < 128; k++)
        function_at(&g, 0x1000 + 16 * k, 0);
    start(&g, smp_xmc, 6000);
    finish(&g);
    fvm_engine_get_stats(g.engine, &s);
    CU_ASSERT(s.invalidations > 100);
    end(&g);
}

static void pause_us(long us)
{
    struct timespec t = {.tv_nsec = us * 1000};
    nanosleep(&t, NULL);
}

/* Requests to single vCPUs, while the others link what the kick cuts: none is overlooked. */
static void kicked(void)
{
    struct guest g;
    begin(&g, CPUS_MAX, 0);
    start(&g, smp_count, 0);
    for (unsigned n = 0; n < CPUS_MAX; n++)
        while (!get64(&g, FRAME_DATA + 64 * n))
            pause_us(50);
    unsigned late = 0;
    for (uint64_t begun = fvm_now_ns(), from = begun; from - begun < 1500000000ull && !late; from = fvm_now_ns()) {
        for (unsigned n = 0; n < CPUS_MAX; n++)
            fvm_vcpu_request(g.v[n], FVM_REQ_WAKE);
        for (unsigned n = 0; n < CPUS_MAX; n++)
            while (__atomic_load_n(&g.v[n]->request, __ATOMIC_ACQUIRE) && !late) {
                late = fvm_now_ns() - from > 5000000000ull;
                sched_yield();
            }
    }
    CU_ASSERT_EQUAL(late, 0);
    uint32_t one = 1;
    CU_ASSERT(!fvm_ram_write(g.ram, FRAME_DATA + 1024, &one, 4));
    finish(&g);
    end(&g);
}

/* While the host has stopped the world nothing moves; in between everything does. */
static void stopped(void)
{
    struct guest g;
    uint64_t before[CPUS_MAX], first[CPUS_MAX];
    begin(&g, CPUS_MAX, 0);
    start(&g, smp_count, 0);
    for (unsigned n = 0; n < CPUS_MAX; n++)
        while (!(first[n] = get64(&g, FRAME_DATA + 64 * n)))
            pause_us(50);
    for (unsigned k = 0; k < 1000; k++) {
        fvm_engine_stop(g.engine);
        for (unsigned n = 0; n < CPUS_MAX; n++)
            before[n] = get64(&g, FRAME_DATA + 64 * n);
        for (unsigned spin = 0; spin < 100; spin++)
            __builtin_ia32_pause();
        if (k % 8 == 0) { /* rights may be taken back meanwhile */
            fvm_ram_epoch_next(g.ram);
            for (unsigned n = 0; n < CPUS_MAX; n++)
                fvm_shadow_withdraw_writes(g.v[n]->shadow);
        }
        for (unsigned n = 0; n < CPUS_MAX; n++)
            CU_ASSERT_EQUAL(before[n], get64(&g, FRAME_DATA + 64 * n));
        fvm_engine_go(g.engine);
        if (k % 64 == 0)
            pause_us(50);
    }
    for (unsigned n = 0; n < CPUS_MAX; n++)
        while (get64(&g, FRAME_DATA + 64 * n) <= first[n])
            pause_us(50);
    uint32_t one = 1;
    CU_ASSERT(!fvm_ram_write(g.ram, FRAME_DATA + 1024, &one, 4));
    finish(&g);
    end(&g);
}

/* A cache that is flushed all the time, code and data in one page, and a device that writes code from another thread. */
static void flushed(void)
{
    struct guest g;
    struct fvm_engine_stats s;
    begin(&g, CPUS_MAX, 128 << 10);
    for (unsigned k = 0; k < 240; k++)
        function_at(&g, 0x1040 + 1024 * k, k);
    const uint64_t rounds = 60;
    start(&g, smp_all, rounds);
    for (unsigned k = 0; k < 300; k++) {
        function_at(&g, 0x1040 + 1024 * (k % 240), k % 240);
        pause_us(100);
    }
    finish(&g);
    for (unsigned n = 0; n < CPUS_MAX; n++)
        CU_ASSERT_EQUAL(get64(&g, FRAME_CODE + 0x1000 + 8 * n), 240 * rounds);
    fvm_engine_get_stats(g.engine, &s);
    CU_ASSERT(s.cache_flushes > 10);
    CU_ASSERT(s.stops > 0);
    end(&g);
}

int main(void)
{
    CU_initialize_registry();
    CU_pSuite s = CU_add_suite("engine_smp", NULL, NULL);
    CU_add_test(s, "locked instructions and a spin lock", locked);
    CU_add_test(s, "locked words across lines and pages", split);
    CU_add_test(s, "store buffering", store_buffering);
    CU_add_test(s, "message passing", message_passing);
    CU_add_test(s, "code that another vCPU changes", cross_modifying);
    CU_add_test(s, "requests to vCPUs that share links", kicked);
    CU_add_test(s, "the world stopped, over and over", stopped);
    CU_add_test(s, "flushes, and data between code", flushed);
    CU_basic_set_mode(CU_BRM_VERBOSE);
    CU_basic_run_tests();
    unsigned failures = CU_get_number_of_failures();
    CU_cleanup_registry();
    return failures ? 1 : 0;
}
