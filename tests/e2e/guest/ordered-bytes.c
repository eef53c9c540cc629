/*
 * ordered-bytes - a guest program that finds any page that was lost, doubled or old after a migration.
 *
 * One byte of each page is raised by one, page after page, in order: so at every instant all pages before the edge have the value n and
 * all behind it n - 1. Each byte is checked before it is raised. A second area is filled once and its sum checked after each pass;
 * a third word per page holds the time of its writing, which must never lie in the future.
 *
 * usage: ordered-bytes [MIB [MIB_PER_SECOND]]; environment FVM_mib, FVM_rate, FVM_cpus: so many processes, one on each processor,
 * share both. Prints "bytes pass N ok" or "bytes BAD ...".
 */
#define _GNU_SOURCE
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

static uint64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static uint64_t setting(const char *arg, const char *name, uint64_t fallback)
{
    const char *text = arg ? arg : getenv(name);
    return text ? strtoull(text, NULL, 10) : fallback;
}

static uint64_t sum(const uint64_t *words, uint64_t count)
{
    uint64_t s = 0;
    for (uint64_t i = 0; i < count; i++)
        s = s * 31 + words[i];
    return s;
}

int main(int argc, char **argv)
{
    uint64_t pages = setting(argc > 1 ? argv[1] : NULL, "FVM_mib", 64) << 8, rate = setting(argc > 2 ? argv[2] : NULL, "FVM_rate", 50) << 8;
    int cpus = (int)setting(NULL, "FVM_cpus", 1), cpu = 0;
    pages /= (uint64_t)cpus, rate /= (uint64_t)cpus;
    while (cpu + 1 < cpus && fork() != 0)
        cpu++;
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(cpu, &set);
    if (sched_setaffinity(0, sizeof set, &set))
        return 1;
    uint8_t *mem = mmap(NULL, pages << 12, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    uint64_t words = pages << 7, *still = malloc(words * 8); /* a quarter as much that nobody changes */
    if (mem == MAP_FAILED || !still)
        return 1;
    for (uint64_t i = 0; i < words; i++)
        still[i] = i * 0x9e3779b97f4a7c15u;
    uint64_t want = sum(still, words), written = 0, start = now_ns(), bad = 0;
    setvbuf(stdout, NULL, _IOLBF, 0);
    printf("bytes ready\n");
    for (uint64_t pass = 1; bad < 20; pass++) {
        for (uint64_t i = 0; i < pages; i++) {
            volatile uint8_t *p = mem + (i << 12);
            volatile uint64_t *stamp = (volatile uint64_t *)(mem + (i << 12) + 64);
            uint64_t t = now_ns();
            if (*p != (uint8_t)(pass - 1) && ++bad)
                printf("bytes BAD page %lu has %u, not %u, in pass %lu\n", (unsigned long)i, *p, (uint8_t)(pass - 1), (unsigned long)pass);
            if (*stamp > t && ++bad)
                printf("bytes BAD page %lu comes from the future\n", (unsigned long)i);
            *p = (uint8_t)pass;
            *stamp = t;
            written++;
            while (rate && written * 1000000000u / rate > now_ns() - start) {
                struct timespec nap = {.tv_nsec = 2000000};
                nanosleep(&nap, NULL);
            }
        }
        if (sum(still, words) != want && ++bad)
            printf("bytes BAD the still area changed\n");
        printf("bytes pass %lu ok\n", (unsigned long)pass);
    }
    return 1;
}
