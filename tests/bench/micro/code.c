/*
 * code.c - code that changes: patched in place, freshly made, beside data that is written, and much of it run once.
 *
 * For a translator these are the costs of noticing a change and of translating anew.
 */
#include "micro.h"

#include <string.h>
#include <sys/mman.h>

typedef unsigned (*code_fn)(unsigned);

static unsigned char *map_code(size_t bytes)
{
    void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return p == MAP_FAILED ? NULL : p;
}

static code_fn as_function(unsigned char *p)
{
    return (code_fn)(uintptr_t)p;
}

static unsigned char *put32(unsigned char *p, uint32_t value)
{
    *(volatile uint32_t *)p = value;
    return p + 4;
}

/* mov eax, value; ret */
static void put_constant(unsigned char *p, uint32_t value)
{
    *(volatile unsigned char *)p = 0xb8;
    put32(p + 1, value);
    *(volatile unsigned char *)(p + 5) = 0xc3;
}

/* An immediate is patched and the code run: the same page, the same address. */
static void patch_row(struct micro *m, unsigned char *p)
{
    uint64_t sum = 0;
    long n = micro_times(m, 3e4);
    double start = micro_now();
    for (long i = 0; i < n; i++) {
        put_constant(p, (uint32_t)i);
        sum += as_function(p)(0);
    }
    micro_print_ns("smc_patch_run", start, n);
    if (sum != (uint64_t)n * (uint64_t)(n - 1) / 2)
        micro_wrong("smc_patch_run");
}

/* As a just-in-time compiler: fresh code behind code that ran. */
static void fresh_row(struct micro *m, unsigned char *p)
{
    uint64_t sum = 0;
    long n = micro_times(m, 3e5);
    double start = micro_now();
    for (long i = 0; i < n; i++) {
        unsigned char *q = p + MICRO_PAGE + (i * 16) % (1 << 19);
        put_constant(q, (uint32_t)i);
        sum += as_function(q)(0);
    }
    micro_print_ns("jit_fresh_run", start, n);
    if (sum != (uint64_t)n * (uint64_t)(n - 1) / 2)
        micro_wrong("jit_fresh_run");
}

/* Data written to a page that also holds hot code. */
static void neighbour_row(struct micro *m, unsigned char *p)
{
    uint64_t sum = 0;
    long n = micro_times(m, 1e5);
    put_constant(p, 7);
    double start = micro_now();
    for (long i = 0; i < n; i++) {
        put32(p + 2048, (uint32_t)i);
        sum += as_function(p)(0);
    }
    micro_print_ns("write_code_page", start, n);
    if (sum != (uint64_t)n * 7)
        micro_wrong("write_code_page");
}

void micro_bench_smc(struct micro *m)
{
    unsigned char *p = map_code(MICRO_MIB);
    if (!p) {
        micro_skip("smc_patch_run");
        micro_skip("jit_fresh_run");
        micro_skip("write_code_page");
        return;
    }
    patch_row(m, p);
    fresh_row(m, p);
    neighbour_row(m, p);
    munmap(p, MICRO_MIB);
}

/* mov eax, edi; twelve times: imul eax, eax, random; xor eax, random; test eax, eax; js over; inc eax; then ret */
static void put_function(struct micro *m, unsigned char *p)
{
    *p++ = 0x89;
    *p++ = 0xf8;
    for (int i = 0; i < 12; i++) {
        *p++ = 0x69;
        *p++ = 0xc0;
        p = put32(p, (uint32_t)micro_random(m) | 1);
        *p++ = 0x35;
        p = put32(p, (uint32_t)micro_random(m));
        memcpy(p, "\x85\xc0\x78\x02\xff\xc0", 6);
        p += 6;
    }
    *p = 0xc3;
}

/* A large footprint: distinct functions, each called once (cost of translation), then again (room for it all). */
void micro_bench_bigcode(struct micro *m)
{
    size_t size = 256, count = 16384;
    uint64_t sum = 0;
    unsigned char *p = map_code(size * count);
    if (!p) {
        micro_skip("code_cold_first");
        micro_skip("code_cold_again");
        return;
    }
    for (size_t k = 0; k < count; k++)
        put_function(m, p + k * size);
    double start = micro_now();
    for (size_t k = 0; k < count; k++)
        sum += as_function(p + k * size)((unsigned)k);
    micro_print("code_cold_first", (micro_now() - start) / (double)count * 1e9, "ns/func");
    long n = micro_times(m, 30);
    start = micro_now();
    for (long i = 0; i < n; i++)
        for (size_t k = 0; k < count; k++)
            sum += as_function(p + k * size)((unsigned)(k + (size_t)i));
    micro_use(sum);
    micro_print("code_cold_again", (micro_now() - start) / (double)n / (double)count * 1e9, "ns/func");
    munmap(p, size * count);
}
