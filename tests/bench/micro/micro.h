/*
 * micro.h - what the micro-benchmarks share: a clock, a scale, a random stream, and how a row is printed.
 *
 * A bench does a fixed amount of work and prints one or more rows "NAME VALUE UNIT". The same static binary runs
 * on the host and in every guest, so a ratio of two values compares the machines and nothing else. Times are better
 * when lower; rates (units that end in "/s") when higher.
 *
 *     static void example(struct micro *m)
 *     {
 *         long n = micro_times(m, 3e6);
 *         double start = micro_now();
 *         for (long i = 0; i < n; i++)
 *             work();
 *         micro_print_ns("example", start, n);
 *     }
 *
 * A new bench is a function micro_bench_NAME and one line in benches.def. Everything here belongs to the main thread.
 */
#ifndef FVM_TESTS_BENCH_MICRO_H
#define FVM_TESTS_BENCH_MICRO_H

#include <stddef.h>
#include <stdint.h>

#define MICRO_NOINLINE __attribute__((noinline))
#define MICRO_PAGE 4096
#define MICRO_MIB (1ul << 20)

/** struct micro - one run of the program. */
struct micro {
    double scale;         /* of all repeat counts; 1 is 0.1 to 1.5 s a bench on a current server */
    uint64_t random;      /* state of micro_random: the same stream in every run */
    const char *programs; /* folder with the "true" and "sh" that the exec benches start */
};

/** micro_now - seconds of CLOCK_MONOTONIC. */
double micro_now(void);

/** micro_times - how often a loop of n repetitions at scale 1 goes round; at least once. */
long micro_times(const struct micro *m, double n);

/** micro_random - the next 64 bits of a xorshift generator. */
uint64_t micro_random(struct micro *m);

/** micro_map - bytes of private anonymous zeroed memory; exits if there is none. munmap gives it back. */
void *micro_map(size_t bytes);

/** micro_print - one row. Returns when the terminal has it: its interrupts do not fall into the next measurement. */
void micro_print(const char *row, double value, const char *unit);

/** micro_print_ns, micro_print_us - a row: time per repetition since start. */
void micro_print_ns(const char *row, double start, long times);
void micro_print_us(const char *row, double start, long times);

/** micro_print_rate - a row: millions of `units` per second since start; unit as "MB/s". */
void micro_print_rate(const char *row, double start, double units, const char *unit);

/** micro_skip - a row that this processor cannot have. */
void micro_skip(const char *row);

/** micro_wrong - the work of a row gave a wrong result: says so and makes the program's status 1. */
void micro_wrong(const char *row);

/** micro_use - the compiler must compute value. */
static inline void micro_use(uint64_t value)
{
    __asm__ volatile("" ::"r"(value));
}

/** micro_barrier - the compiler must have memory up to date here. */
static inline void micro_barrier(void)
{
    __asm__ volatile("" ::: "memory");
}

/* The other modes (load.c). Each prints its own lines, see main.c's usage. */
void micro_mode_jitter(double seconds, double min_ms);
void micro_mode_beat(double interval_ms, double seconds);
void micro_mode_dirty(struct micro *m, size_t mib, double mib_per_s, double seconds, int incompressible);
int micro_mode_blk(struct micro *m, const char *device);

#define BENCH(name, group, rows) void micro_bench_##name(struct micro *m);
#include "benches.def"
#undef BENCH

#endif
