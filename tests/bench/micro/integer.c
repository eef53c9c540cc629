/*
 * integer.c - integer code: calls, sorting, division, carry chains, locked instructions, a hash.
 */
#include "micro.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

static int MICRO_NOINLINE fib(int n)
{
    return n < 2 ? n : fib(n - 1) + fib(n - 2);
}

/* Always told as the time of fib(38): fib(32) is 17.944 times shorter. */
void micro_bench_fib(struct micro *m)
{
    int small = m->scale < 0.3;
    double start = micro_now();
    micro_use((uint64_t)fib(small ? 32 : 38));
    micro_print("call_ret_fib", (micro_now() - start) * 1e3 * (small ? 17.944 : 1), "ms");
}

static void insertion_sort(uint32_t *a, long n)
{
    for (long i = 1; i < n; i++) {
        uint32_t x = a[i];
        long j = i;
        for (; j > 0 && a[j - 1] > x; j--)
            a[j] = a[j - 1];
        a[j] = x;
    }
}

static void quicksort(uint32_t *a, long n)
{
    while (n > 16) {
        uint32_t pivot = a[n / 2];
        long i = 0, j = n - 1;
        while (i <= j) {
            while (a[i] < pivot)
                i++;
            while (a[j] > pivot)
                j--;
            if (i <= j) {
                uint32_t x = a[i];
                a[i++] = a[j];
                a[j--] = x;
            }
        }
        if (j + 1 < n - i) {
            quicksort(a, j + 1);
            a += i;
            n -= i;
        } else {
            quicksort(a + i, n - i);
            n = j + 1;
        }
    }
    insertion_sort(a, n);
}

static int compare(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return x < y ? -1 : x > y;
}

static void check_sorted(const char *row, const uint32_t *a, long n)
{
    for (long i = 1; i < n; i++)
        if (a[i - 1] > a[i])
            micro_wrong(row);
}

void micro_bench_sort(struct micro *m)
{
    long n = micro_times(m, 4e6), bytes = n * (long)sizeof(uint32_t);
    uint32_t *a = micro_map((size_t)bytes);
    for (long i = 0; i < n; i++)
        a[i] = (uint32_t)micro_random(m);
    double start = micro_now();
    quicksort(a, n);
    micro_print("int_quicksort", (micro_now() - start) / (double)n * 1e9, "ns/elem");
    check_sorted("int_quicksort", a, n);

    n = micro_times(m, 1e6);
    for (long i = 0; i < n; i++)
        a[i] = (uint32_t)micro_random(m);
    start = micro_now();
    qsort(a, (size_t)n, sizeof(*a), compare);
    micro_print("libc_qsort", (micro_now() - start) / (double)n * 1e9, "ns/elem");
    check_sorted("libc_qsort", a, n);
    munmap(a, (size_t)bytes);
}

void micro_bench_sieve(struct micro *m)
{
    long n = 1 << 20, times = micro_times(m, 60), primes = 0;
    unsigned char *s = micro_map((size_t)n);
    double start = micro_now();
    for (long k = 0; k < times; k++) {
        memset(s, 1, (size_t)n);
        for (long i = 2; i * i < n; i++)
            if (s[i])
                for (long j = i * i; j < n; j += i)
                    s[j] = 0;
    }
    micro_print("sieve_1M", (micro_now() - start) / (double)times * 1e3, "ms");
    for (long i = 2; i < n; i++)
        primes += s[i];
    munmap(s, (size_t)n);
    if (primes != 82025)
        micro_wrong("sieve_1M");
}

void micro_bench_div(struct micro *m)
{
    long n = micro_times(m, 5e7);
    uint64_t x = 0x123456789abcdefull, sum = 0;
    double start = micro_now();
    for (long i = 0; i < n; i++) {
        sum += x / (uint64_t)(i | 0x10001);
        x ^= sum;
    }
    micro_use(sum);
    micro_print_ns("div64", start, n);

    n = micro_times(m, 2e8);
    x = 1;
    start = micro_now();
    for (long i = 0; i < n; i++)
        x = x * 6364136223846793005ull + 1442695040888963407ull;
    micro_use(x);
    micro_print_ns("mul64_lcg", start, n);
}

/* A chain of 16 additions with carry: flags that live over the loop's own instructions. */
static inline void add_with_carry(uint64_t *to, const uint64_t *from)
{
    uint64_t x;
    long count = 16;
    __asm__ volatile("clc\n"
                     "1: movq (%1), %3\n"
                     "adcq %3, (%0)\n"
                     "leaq 8(%0), %0\n"
                     "leaq 8(%1), %1\n"
                     "decq %2\n"
                     "jnz 1b"
                     : "+r"(to), "+r"(from), "+r"(count), "=&r"(x)::"memory", "cc");
}

void micro_bench_adc(struct micro *m)
{
    uint64_t a[64], b[64];
    for (int i = 0; i < 64; i++) {
        a[i] = micro_random(m);
        b[i] = micro_random(m);
    }
    long n = micro_times(m, 1.5e7);
    double start = micro_now();
    for (long i = 0; i < n; i++)
        add_with_carry(a, b);
    micro_use(a[3]);
    micro_print_ns("adc_chain_16", start, n);
}

void micro_bench_atomic(struct micro *m)
{
    static uint64_t word;
    long n = micro_times(m, 5e7);
    double start = micro_now();
    for (long i = 0; i < n; i++)
        __atomic_fetch_add(&word, 1, __ATOMIC_SEQ_CST);
    micro_print_ns("lock_xadd", start, n);

    n = micro_times(m, 3e7);
    start = micro_now();
    for (long i = 0; i < n; i++) {
        uint64_t expected = (uint64_t)i;
        __atomic_compare_exchange_n(&word, &expected, (uint64_t)i, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
    }
    micro_print_ns("lock_cmpxchg", start, n);
}

void micro_bench_popcnt(struct micro *m)
{
    long n = micro_times(m, 1e8);
    uint64_t x = 0x9e3779b97f4a7c15ull, sum = 0;
    double start = micro_now();
    for (long i = 0; i < n; i++) {
        uint64_t ones, top;
        __asm__ volatile("popcntq %2, %0\n bsrq %2, %1" : "=&r"(ones), "=r"(top) : "r"(x) : "cc");
        sum += ones + top;
        x += 0x123456789ull;
    }
    micro_use(sum);
    micro_print_ns("popcnt_bsr", start, n);
}

static const uint32_t sha_constants[64] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};

static inline uint32_t rotate(uint32_t x, int n)
{
    return x >> n | x << (32 - n);
}

/* One 64-byte block of SHA-256 (FIPS 180-4, 6.2.2) in plain C. */
static void sha_block(uint32_t *h, const uint8_t *p)
{
    uint32_t w[64], s[8];
    int i;
    for (i = 0; i < 16; i++)
        w[i] = __builtin_bswap32(((const uint32_t *)p)[i]);
    for (; i < 64; i++)
        w[i] = w[i - 16] + (rotate(w[i - 15], 7) ^ rotate(w[i - 15], 18) ^ (w[i - 15] >> 3)) + w[i - 7] +
               (rotate(w[i - 2], 17) ^ rotate(w[i - 2], 19) ^ (w[i - 2] >> 10));
    memcpy(s, h, sizeof(s));
    for (i = 0; i < 64; i++) {
        uint32_t a = s[7] + (rotate(s[4], 6) ^ rotate(s[4], 11) ^ rotate(s[4], 25)) +
                     ((s[4] & s[5]) ^ (~s[4] & s[6])) + sha_constants[i] + w[i];
        uint32_t b = (rotate(s[0], 2) ^ rotate(s[0], 13) ^ rotate(s[0], 22)) +
                     ((s[0] & s[1]) ^ (s[0] & s[2]) ^ (s[1] & s[2]));
        s[7] = s[6];
        s[6] = s[5];
        s[5] = s[4];
        s[4] = s[3] + a;
        s[3] = s[2];
        s[2] = s[1];
        s[1] = s[0];
        s[0] = a + b;
    }
    for (i = 0; i < 8; i++)
        h[i] += s[i];
}

void micro_bench_sha(struct micro *m)
{
    uint32_t h[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
    uint8_t *p = micro_map(MICRO_PAGE);
    memcpy(p, "abc\x80", 4);
    p[63] = 24;
    sha_block(h, p);
    if (h[0] != 0xba7816bf)
        micro_wrong("sha256_c");
    long n = micro_times(m, 4e4);
    double start = micro_now();
    for (long i = 0; i < n; i++)
        for (int k = 0; k < 64; k++)
            sha_block(h, p + 64 * k);
    micro_use(h[0]);
    micro_print_rate("sha256_c", start, (double)n * 4096, "MB/s");
    munmap(p, MICRO_PAGE);
}
