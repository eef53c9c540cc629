/*
 * driver.c - a fuzzer's smoke test without libFuzzer: fuzz_NAME [-n ROUNDS] [-s SEED] [FILE...]
 *
 * Without files: takes the target's own seeds, as they are and then mutated. With files: runs just those. When an input
 * kills the process it is left in fuzz-NAME.crash, so that the same program can be run on it.
 */
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/log.h"
#include "tests/fuzz/fuzz.h"

static struct { /* a driver of one thread; the crash handler needs it */
    uint8_t input[FUZZ_BYTES_MAX];
    size_t len;
    uint64_t rng, round;
    char path[256];
} d;

static uint64_t rnd(uint64_t n)
{
    d.rng ^= d.rng << 13;
    d.rng ^= d.rng >> 7;
    d.rng ^= d.rng << 17;
    return n ? (d.rng >> 11) % n : 0;
}

static void keep_input(void)
{
    int fd = open(d.path, O_WRONLY | O_CREAT | O_TRUNC, 0644);
    if (fd < 0)
        return;
    (void)!write(fd, d.input, d.len);
    close(fd);
    (void)!write(2, "input kept in ", 14);
    (void)!write(2, d.path, strlen(d.path));
    (void)!write(2, "\n", 1);
}

static void on_death(int signo)
{
    keep_input();
    signal(signo, SIG_DFL);
    raise(signo);
}

__attribute__((weak)) void __sanitizer_set_death_callback(void (*callback)(void));

static void resize(size_t at, size_t del, size_t ins)
{
    if (d.len - del + ins > sizeof(d.input))
        return;
    memmove(d.input + at + ins, d.input + at + del, d.len - at - del);
    for (size_t i = 0; i < ins; i++)
        d.input[at + i] = (uint8_t)rnd(256);
    d.len = d.len - del + ins;
}

static void mutate_once(void)
{
    static const uint64_t numbers[] = {0,      1,          0x7f,       0x80,       0xff,      0x7fff,
                                       0xffff, 0x7fffffff, 0x80000000, 0xffffffff, INT64_MAX, UINT64_MAX};
    size_t at = rnd(d.len + 1), n = 1 + rnd(rnd(4) ? 8 : 300);
    n = at + n > d.len ? d.len - at : n;
    switch (rnd(7)) {
    case 0:
    case 1:
        if (at < d.len)
            d.input[at] ^= (uint8_t)(1u << rnd(8));
        break;
    case 2:
        if (at < d.len)
            d.input[at] = (uint8_t)rnd(256);
        break;
    case 3:
        for (size_t i = 0; i < n; i++)
            d.input[at + i] = (uint8_t)(numbers[rnd(12)] >> (8 * (i % 8)));
        break;
    case 4:
        resize(at, n, 0);
        break;
    case 5:
        resize(at, 0, 1 + rnd(16));
        break;
    default:
        if (n && d.len + n <= sizeof(d.input)) { /* the same twice */
            memmove(d.input + at + n, d.input + at, d.len - at);
            d.len += n;
        }
    }
}

static void run_file(const char *path)
{
    FILE *f = fopen(path, "rb");
    if (!f) {
        perror(path);
        exit(1);
    }
    d.len = fread(d.input, 1, sizeof(d.input), f);
    fclose(f);
    LLVMFuzzerTestOneInput(d.input, d.len);
    printf("%s: survived\n", path);
}

static void run_all(unsigned seeds, uint64_t rounds)
{
    for (unsigned i = 0; i < seeds; i++) {
        d.len = fuzz_seed(i, d.input);
        LLVMFuzzerTestOneInput(d.input, d.len);
    }
    for (d.round = 0; d.round < rounds; d.round++) {
        d.len = fuzz_seed((unsigned)rnd(seeds), d.input);
        for (uint64_t i = 0, n = 1 + rnd(6); i < n; i++)
            mutate_once();
        LLVMFuzzerTestOneInput(d.input, d.len);
    }
}

int main(int argc, char **argv)
{
    uint64_t rounds = 20000, seed = 1;
    unsigned seeds = 0;
    int opt;
    while ((opt = getopt(argc, argv, "n:s:")) > 0) {
        if (opt == '?')
            return 2;
        *(opt == 'n' ? &rounds : &seed) = strtoull(optarg, NULL, 0);
    }
    d.rng = seed * 0x9e3779b97f4a7c15ull + 1;
    const char *name = strrchr(argv[0], '/');
    snprintf(d.path, sizeof(d.path), "%.200s.crash", name ? name + 1 : argv[0]);
    fvm_log_set_level(FVM_LOG_ERROR);
    if (__sanitizer_set_death_callback)
        __sanitizer_set_death_callback(keep_input);
    else
        signal(SIGSEGV, on_death);
    signal(SIGABRT, on_death);
    if (optind < argc) {
        for (; optind < argc; optind++)
            run_file(argv[optind]);
        return 0;
    }
    while (fuzz_seed(seeds, d.input))
        seeds++;
    run_all(seeds, rounds);
    printf("%s: %u seeds, %llu mutations from seed %llu\n", name ? name + 1 : argv[0], seeds,
           (unsigned long long)rounds, (unsigned long long)seed);
    return 0;
}
