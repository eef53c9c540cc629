/*
 * control.c - control flow that is hard to predict: an interpreter's dispatch, calls through pointers, random branches.
 */
#include "micro.h"

/* A byte-code interpreter: indirect jumps with poor locality, as in perl or python. Returns what it computed. */
static uint64_t MICRO_NOINLINE interpret(const unsigned char *code, long times)
{
    static const void *const labels[] = {&&add, &&sub, &&xor, &&shl, &&load, &&store, &&test, &&end};
    uint64_t r = 1, count = 0, memory[16] = {0};
    for (long i = 0; i < times; i++) {
        const unsigned char *pc = code;
#define NEXT goto *labels[*pc++]
        NEXT;
    add:
        r += 0x9e3779b9;
        NEXT;
    sub:
        r -= memory[r & 15];
        NEXT;
    xor:
        r ^= r >> 7;
        NEXT;
    shl:
        r = (r << 5) | (r >> 59);
        NEXT;
    load:
        r += memory[(r >> 3) & 15];
        NEXT;
    store:
        memory[(r >> 5) & 15] = r;
        NEXT;
    test:
        if (r & 1)
            count++;
        NEXT;
    end:;
#undef NEXT
    }
    return r + count;
}

void micro_bench_interp(struct micro *m)
{
    struct micro own = {.random = 12345}; /* the same program whatever ran before */
    unsigned char code[4096];
    for (int i = 0; i < 4095; i++)
        code[i] = (unsigned char)(micro_random(&own) % 7);
    code[4095] = 7;
    long n = micro_times(m, 3e4);
    double start = micro_now();
    micro_use(interpret(code, n));
    micro_print("interp_indirect", (micro_now() - start) / (double)n / 4096 * 1e9, "ns/op");
}

static uint64_t MICRO_NOINLINE add_one(uint64_t x)
{
    return x + 1;
}

static uint64_t MICRO_NOINLINE flip(uint64_t x)
{
    return x ^ 0x55;
}

static uint64_t MICRO_NOINLINE triple(uint64_t x)
{
    return x * 3;
}

static uint64_t MICRO_NOINLINE less_seven(uint64_t x)
{
    return x - 7;
}

void micro_bench_icall(struct micro *m)
{
    uint64_t (*volatile functions[4])(uint64_t) = {add_one, flip, triple, less_seven};
    uint64_t x = 1;
    long n = micro_times(m, 2e8);
    double start = micro_now();
    for (long i = 0; i < n; i++)
        x = functions[i & 3](x);
    micro_use(x);
    micro_print_ns("indirect_call", start, n);
}

void micro_bench_branch(struct micro *m)
{
    static unsigned char data[65536];
    for (int i = 0; i < 65536; i++)
        data[i] = (unsigned char)micro_random(m);
    long n = micro_times(m, 600), count = 0;
    double start = micro_now();
    for (long k = 0; k < n; k++)
        for (long i = 0; i < 65536; i++) {
            if (data[i] & 1)
                count += 3;
            else
                count ^= i;
            __asm__ volatile("" : "+r"(count));
        }
    micro_use((uint64_t)count);
    micro_print("branch_random", (micro_now() - start) / (double)n / 65536 * 1e9, "ns");
}
