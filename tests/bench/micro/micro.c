/*
 * micro.c - clock, random stream and printing of the micro-benchmarks. See micro.h.
 */
#include "micro.h"

#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

double micro_now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

long micro_times(const struct micro *m, double n)
{
    long times = (long)(n * m->scale);
    return times < 1 ? 1 : times;
}

uint64_t micro_random(struct micro *m)
{
    uint64_t x = m->random;
    x ^= x << 13;
    x ^= x >> 7;
    x ^= x << 17;
    return m->random = x;
}

void *micro_map(size_t bytes)
{
    void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED) {
        perror("micro: mmap");
        exit(1);
    }
    return p;
}

static void flush(void)
{
    fflush(stdout);
    if (isatty(STDOUT_FILENO))
        tcdrain(STDOUT_FILENO);
}

void micro_print(const char *row, double value, const char *unit)
{
    printf("%s %.4g %s\n", row, value, unit);
    flush();
}

void micro_print_ns(const char *row, double start, long times)
{
    micro_print(row, (micro_now() - start) / (double)times * 1e9, "ns");
}

void micro_print_us(const char *row, double start, long times)
{
    micro_print(row, (micro_now() - start) / (double)times * 1e6, "us");
}

void micro_print_rate(const char *row, double start, double units, const char *unit)
{
    micro_print(row, units / (micro_now() - start) / 1e6, unit);
}

void micro_skip(const char *row)
{
    printf("%s skip -\n", row);
    flush();
}

void micro_wrong(const char *row)
{
    printf("%s wrong -\n", row);
    flush();
    exit(1);
}
