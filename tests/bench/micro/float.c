/*
 * float.c - scalar floating point (SSE2 and x87) and vectors: SSE, AVX2 with FMA, AES-NI, and libc's vector strlen.
 */
#include "micro.h"

#include <immintrin.h>
#include <stdlib.h>
#include <string.h>

static void muladd_row(struct micro *m)
{
    double x = 1.0, y = 0.5, z = 0.25;
    long n = micro_times(m, 1e8);
    double start = micro_now();
    for (long i = 0; i < n; i++) {
        x = x * 0.999999 + y;
        y = y * 1.000001 - z;
        z = z * 0.5 + x * 1e-9;
        __asm__ volatile("" : "+x"(x), "+x"(y), "+x"(z));
    }
    micro_print_rate("fp_scalar_muladd", start, 6.0 * (double)n, "Mflop/s");
    micro_use((uint64_t)(int64_t)(x + y + z));
}

static inline double square_root(double x)
{
    double r;
    __asm__ volatile("sqrtsd %1, %0" : "=x"(r) : "x"(x));
    return r;
}

void micro_bench_fp(struct micro *m)
{
    muladd_row(m);
    long n = micro_times(m, 1e8), sum = 0;
    double x = 2, start = micro_now();
    for (long i = 0; i < n; i++)
        x = 3.0 / square_root(x) + 1.0;
    micro_use((uint64_t)x);
    micro_print_ns("fp_sqrt_div", start, n);

    n = micro_times(m, 5e7);
    long double l = 1.0L;
    start = micro_now();
    for (long i = 0; i < n; i++) {
        l = l * 0.999999L + 0.5L;
        __asm__ volatile("" : "+t"(l));
    }
    micro_use((uint64_t)l);
    micro_print_ns("fp_x87_muladd", start, n);

    n = micro_times(m, 1e8);
    x = 0.1;
    start = micro_now();
    for (long i = 0; i < n; i++) {
        sum += (long)x;
        x = (double)i * 0.37;
        __asm__ volatile("" : "+x"(x));
    }
    micro_use((uint64_t)sum);
    micro_print_ns("fp_convert", start, n);
}

enum { BODIES = 5 };

struct bodies {
    double at[BODIES][3], speed[BODIES][3], mass[BODIES];
};

static inline void attract(struct bodies *b, int i, int j)
{
    double d[3], q = 0.01;
    for (int k = 0; k < 3; k++) {
        d[k] = b->at[i][k] - b->at[j][k];
        q += d[k] * d[k];
    }
    double g = 0.001 / (q * square_root(q));
    for (int k = 0; k < 3; k++) {
        b->speed[i][k] -= d[k] * b->mass[j] * g;
        b->speed[j][k] += d[k] * b->mass[i] * g;
    }
}

void micro_bench_nbody(struct micro *m)
{
    struct bodies b;
    for (int i = 0; i < BODIES; i++) {
        b.mass[i] = 1.0 / (i + 1);
        for (int k = 0; k < 3; k++) {
            b.at[i][k] = (double)(micro_random(m) % 1000) / 50.0;
            b.speed[i][k] = 0;
        }
    }
    long n = micro_times(m, 2e6);
    double start = micro_now();
    for (long s = 0; s < n; s++) {
        for (int i = 0; i < BODIES; i++)
            for (int j = i + 1; j < BODIES; j++)
                attract(&b, i, j);
        for (int i = 0; i < BODIES; i++)
            for (int k = 0; k < 3; k++)
                b.at[i][k] += 0.001 * b.speed[i][k];
    }
    micro_use((uint64_t)(int64_t)(b.at[0][0] * 1e6));
    micro_print("fp_nbody", (micro_now() - start) / (double)n * 1e9, "ns/step");
}

enum { FLOATS = 4096 };

struct vectors {
    float a[FLOATS], b[FLOATS];
} __attribute__((aligned(64)));

static void fill(struct vectors *v)
{
    for (int i = 0; i < FLOATS; i++) {
        v->a[i] = (float)i;
        v->b[i] = 1.0f / (float)(i + 1);
    }
}

static inline void sse_pass(struct vectors *v)
{
    for (int i = 0; i < FLOATS; i += 4) {
        __m128 scaled = _mm_mul_ps(_mm_load_ps(v->a + i), _mm_set1_ps(0.999f));
        _mm_store_ps(v->a + i, _mm_add_ps(scaled, _mm_load_ps(v->b + i)));
    }
    micro_barrier();
}

void micro_bench_sse(struct micro *m)
{
    static struct vectors v;
    fill(&v);
    long n = micro_times(m, 2e5);
    double start = micro_now();
    for (long i = 0; i < n; i++)
        sse_pass(&v);
    micro_print_rate("sse_float4", start, (double)n * 2 * FLOATS, "Mflop/s");
    micro_use((uint64_t)v.a[5]);

    __m128i x = _mm_set1_epi32(7), y = _mm_set1_epi32(9);
    n = micro_times(m, 2e8);
    start = micro_now();
    for (long i = 0; i < n; i++) {
        x = _mm_add_epi32(x, y);
        y = _mm_xor_si128(y, _mm_slli_epi32(x, 3));
    }
    micro_use((uint64_t)(_mm_cvtsi128_si64(x) + _mm_cvtsi128_si64(y)));
    micro_print_ns("sse_int4", start, n);
}

void micro_bench_strlen(struct micro *m)
{
    size_t bytes = 1 << 16;
    char *s = malloc(bytes);
    if (!s)
        micro_wrong("strlen_64K");
    memset(s, 'a', bytes - 1);
    s[bytes - 1] = 0;
    uint64_t sum = 0;
    long n = micro_times(m, 3e5);
    double start = micro_now();
    for (long i = 0; i < n; i++) {
        micro_barrier();
        sum += strlen(s);
    }
    micro_use(sum);
    micro_print_rate("strlen_64K", start, (double)n * (double)bytes, "MB/s");
    free(s);
}

__attribute__((target("avx2,fma"))) static void avx2_passes(struct vectors *v, long n)
{
    for (long k = 0; k < n; k++) {
        for (int i = 0; i < FLOATS; i += 8) {
            __m256 a = _mm256_load_ps(v->a + i), b = _mm256_load_ps(v->b + i);
            _mm256_store_ps(v->a + i, _mm256_fmadd_ps(a, _mm256_set1_ps(0.999f), b));
        }
        micro_barrier();
    }
}

void micro_bench_avx2(struct micro *m)
{
    static struct vectors v;
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) {
        micro_skip("avx2_fma_float8");
        return;
    }
    long n = micro_times(m, 4e5);
    double start = micro_now();
    avx2_passes(&v, n);
    micro_print_rate("avx2_fma_float8", start, (double)n * 2 * FLOATS, "Mflop/s");
    micro_use((uint64_t)v.a[5]);
}

__attribute__((target("aes,sse4.1"))) static void aes_rounds(long n)
{
    __m128i x = _mm_set1_epi32(0x1234567), key = _mm_set1_epi32(0x9abcdef);
    for (long i = 0; i < n; i++)
        x = _mm_aesenc_si128(x, key);
    micro_use((uint64_t)_mm_cvtsi128_si64(x));
}

void micro_bench_aes(struct micro *m)
{
    if (!__builtin_cpu_supports("aes")) {
        micro_skip("aesenc");
        return;
    }
    long n = micro_times(m, 1e8);
    double start = micro_now();
    aes_rounds(n);
    micro_print_ns("aesenc", start, n);
}
