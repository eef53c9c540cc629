/*
 * memory.c - bandwidth and latency of guest memory, string instructions, accesses over a page's end.
 */
#include "micro.h"

#include <string.h>
#include <sys/mman.h>

static void copy_rows(struct micro *m, char *to, char *from, size_t bytes)
{
    long n = micro_times(m, 30);
    double start = micro_now();
    for (long i = 0; i < n; i++) {
        memcpy(to, from, bytes);
        micro_barrier();
    }
    micro_print_rate("memcpy_64M", start, (double)n * (double)bytes, "MB/s");
    n = micro_times(m, 1e6);
    start = micro_now();
    for (long i = 0; i < n; i++) {
        memcpy(to, from, 8192);
        micro_barrier();
    }
    micro_print_rate("memcpy_8K", start, (double)n * 8192, "MB/s");
}

static inline void rep_movsb(void *to, const void *from, size_t count)
{
    __asm__ volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(count)::"memory");
}

static inline void rep_stosq(void *to, size_t count)
{
    __asm__ volatile("rep stosq" : "+D"(to), "+c"(count) : "a"(0L) : "memory");
}

static void string_rows(struct micro *m, char *to, char *from)
{
    long n = micro_times(m, 1e6);
    double start = micro_now();
    for (long i = 0; i < n; i++)
        rep_movsb(to, from, 4096);
    micro_print_rate("rep_movsb_4K", start, (double)n * 4096, "MB/s");
    start = micro_now();
    for (long i = 0; i < n; i++)
        rep_stosq(to, 512);
    micro_print_rate("rep_stosq_4K", start, (double)n * 4096, "MB/s");
    n = micro_times(m, 3e7);
    start = micro_now();
    for (long i = 0; i < n; i++)
        rep_movsb(to, from, 7);
    micro_print_ns("rep_movsb_7", start, n);
}

void micro_bench_memcpy(struct micro *m)
{
    size_t bytes = 64 * MICRO_MIB;
    char *from = micro_map(bytes), *to = micro_map(bytes);
    memset(from, 1, bytes);
    memset(to, 2, bytes);
    copy_rows(m, to, from, bytes);
    string_rows(m, to, from);
    munmap(from, bytes);
    munmap(to, bytes);
}

static void MICRO_NOINLINE triad(double *a, const double *b, const double *c, size_t n)
{
    for (size_t i = 0; i < n; i++)
        a[i] = b[i] + 3.0 * c[i];
}

void micro_bench_triad(struct micro *m)
{
    size_t n = 4 << 20, bytes = n * sizeof(double);
    double *a = micro_map(bytes), *b = micro_map(bytes), *c = micro_map(bytes);
    for (size_t i = 0; i < n; i++) {
        a[i] = 0;
        b[i] = 1;
        c[i] = (double)i;
    }
    long times = micro_times(m, 25);
    double start = micro_now();
    for (long i = 0; i < times; i++)
        triad(a, b, c, n);
    micro_print_rate("stream_triad", start, (double)times * 3 * (double)bytes, "MB/s");
    micro_use((uint64_t)a[77]);
    munmap(a, bytes);
    munmap(b, bytes);
    munmap(c, bytes);
}

/* Slot k of a chain: inside a page another line each, so that page strides do not meet in one cache set. */
static void **chase_slot(char *p, size_t k, size_t stride)
{
    return (void **)(p + k * stride + (stride >= MICRO_PAGE ? (k * 64) & 4032 : 0));
}

/* Follow pointers in random order through a buffer: the latency of a load that depends on the one before. */
static void chase_row(struct micro *m, const char *row, size_t bytes, size_t stride, double steps)
{
    size_t n = bytes / stride;
    char *p = micro_map(bytes);
    uint32_t *order = micro_map(n * sizeof(*order));
    madvise(p, bytes, MADV_NOHUGEPAGE);
    for (size_t i = 0; i < n; i++)
        order[i] = (uint32_t)i;
    for (size_t i = n - 1; i > 0; i--) {
        size_t j = micro_random(m) % (i + 1);
        uint32_t x = order[i];
        order[i] = order[j];
        order[j] = x;
    }
    for (size_t i = 0; i < n; i++)
        *chase_slot(p, order[i], stride) = chase_slot(p, order[(i + 1) % n], stride);
    void **at = chase_slot(p, order[0], stride);
    munmap(order, n * sizeof(*order));

    long times = micro_times(m, steps);
    double start = micro_now();
    for (long i = 0; i < times; i++)
        at = *at;
    micro_use((uintptr_t)at);
    micro_print_ns(row, start, times);
    munmap(p, bytes);
}

void micro_bench_chase(struct micro *m)
{
    chase_row(m, "chase_16K", 16 << 10, 64, 1e8);
    chase_row(m, "chase_8M", 8 * MICRO_MIB, 64, 1.5e7);
    chase_row(m, "chase_256M", 256 * MICRO_MIB, 64, 5e6);
    chase_row(m, "chase_pages_32M", 32 * MICRO_MIB, MICRO_PAGE, 2e7); /* a line per page: the reach of a TLB */
}

void micro_bench_unaligned(struct micro *m)
{
    size_t bytes = 16 * MICRO_PAGE;
    char *p = micro_map(bytes);
    memset(p, 1, bytes);
    uint64_t sum = 0;
    long n = micro_times(m, 1e8);
    double start = micro_now();
    for (long i = 0; i < n; i++) {
        uint64_t x;
        memcpy(&x, p + MICRO_PAGE * (1 + (i & 7)) - 3, sizeof(x));
        sum += x;
        __asm__ volatile("" : "+r"(sum));
    }
    micro_use(sum);
    micro_print_ns("load_crosspage", start, n);
    munmap(p, bytes);
}
