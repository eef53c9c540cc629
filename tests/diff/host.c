/*
 * host.c - the proof of the engine against the host's own processor: random instruction sequences must leave the same
 * registers, flags, memory and faults in both.
 *
 *     diff_host [--seed S] [--count N] [--kind K] [--replay SEED] [--reports N] [--soak]
 *
 * Each sequence runs natively once and in three engines: as it is (twice: cold, then with its blocks found, chained and
 * in the jump cache), one block at a time, one instruction at a time. A failing one is printed with its own seed, made
 * smaller by dropping instructions. Every eighth batch another thread kicks the vCPU all the time.
 */
#include <inttypes.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "tests/diff/support_diff.h"
#include "vmm/cpu/vcpu.h"

#define RUNS 4 /* normal, normal again, single block, single instruction */
static const char *const run_names[RUNS] = {"normal", "normal, second run", "single block", "single instruction"};

struct bench {
    struct diff_native *native;
    struct diff_guest *guest[3];
    struct diff_outcome *out; /* of the engine */
    uint64_t passed, failed, discarded, ended, by_vector[32];
    unsigned report_max;
    volatile uint64_t now_seed, progress; /* for the watchdog */
    volatile unsigned now_run;
    volatile bool kicking; /* a thread disturbs the engines by requests and signals */
    pthread_t self;
};

static struct diff_guest *guest_of(struct bench *b, unsigned run) { return b->guest[run < 2 ? 0 : run - 1]; }

static void *watchdog(void *arg)
{
    struct bench *b = arg;
    uint64_t last = b->progress;
    unsigned same = 0;
    for (;;) {
        sleep(1);
        same = b->progress == last ? same + 1 : 0;
        last = b->progress;
        if (same < 15)
            continue;
        fprintf(stderr, "the engine hangs: seed %" PRIu64 " (%s)\n", b->now_seed, run_names[b->now_run]);
        _exit(2);
    }
}

/* A request may come at any instruction and must change nothing. */
static void *kicker(void *arg)
{
    struct bench *b = arg;
    struct diff_rng r = {1};
    for (;;) {
        if (!b->kicking) {
            usleep(1000);
            continue;
        }
        diff_guest_kick(guest_of(b, b->now_run), (unsigned long)b->self);
        for (unsigned k = diff_below(&r, 2000); k; k--)
            __builtin_ia32_pause();
    }
    return NULL;
}

/* Which run differs from the native result: 0..RUNS-1, or RUNS if none does. */
static unsigned run_all(struct bench *b, const struct diff_seq *s, const struct diff_outcome *native, unsigned from,
                        unsigned to, char *text, size_t size)
{
    for (unsigned run = from; run < to; run++) {
        b->now_run = run;
        b->now_seed = s->seed;
        b->progress++;
        diff_guest_run(guest_of(b, run), &s->req, s->kernel, b->out);
        if (b->out->end == DIFF_LIMIT && (run >= 2 || b->kicking)) /* a very long loop, block by block */
            continue;
        if (!diff_equal(s, native, b->out, text, size))
            return run;
    }
    return RUNS;
}

static const struct diff_outcome *run_native(struct bench *b, const struct diff_seq *s)
{
    static unsigned half; /* the child takes the halves in turn */
    *diff_native_request(b->native, half, 0) = s->req;
    diff_native_submit(b->native, half, 1);
    diff_native_wait(b->native, half);
    const struct diff_outcome *o = diff_native_result(b->native, half, 0);
    half ^= 1;
    return o;
}

static void minimise(struct bench *b, struct diff_seq *s, char *text, size_t size)
{
    bool again = true;
    char t[1024];
    for (unsigned pass = 0; again && pass < 4; pass++) {
        again = false;
        for (unsigned k = s->n; k-- > 0;) {
            if (s->insns[k].dropped)
                continue;
            s->insns[k].dropped = true;
            diff_layout(s);
            const struct diff_outcome *native = run_native(b, s);
            if (native->end != DIFF_DISCARD && run_all(b, s, native, 0, RUNS, t, sizeof t) != RUNS) {
                again = true;
                snprintf(text, size, "%s", t);
            } else {
                s->insns[k].dropped = false;
            }
        }
    }
    diff_layout(s);
}

static void report(struct bench *b, struct diff_seq *s, unsigned run, char *text, size_t size)
{
    b->failed++;
    if (b->failed > b->report_max)
        return;
    printf("---- seed %" PRIu64 " differs (%s):\n%s", s->seed, run_names[run], text);
    if (b->report_max > 50)
        diff_print(s, stdout);
    if (b->report_max <= 50) {
        struct diff_seq *small = malloc(sizeof *small);
        *small = *s;
        minimise(b, small, text, size);
        printf("smaller:\n%s", text);
        diff_print(small, stdout);
        free(small);
    }
    fflush(stdout);
}

static void count_end(struct bench *b, const struct diff_outcome *o)
{
    if (o->end == DIFF_END)
        b->ended++;
    else
        b->by_vector[o->vector & 31]++;
}

static int bench_init(struct bench *b)
{
    uint8_t *base = malloc(DIFF_IMAGE_BYTES);
    const struct fvm_cpu_model *model;
    struct fvm_err err = {0};
    pthread_t t;
    diff_base_image(base);
    b->out = aligned_alloc(64, sizeof *b->out);
    if (diff_native_create(&b->native)) {
        fprintf(stderr, "no native child\n");
        return -1;
    }
    if (fvm_cpu_model_find("fvm64-v3", &model, &err)) {
        fprintf(stderr, "%s\n", err.text);
        return -1;
    }
    diff_gen_init(model);
    for (unsigned m = 0; m < 3; m++)
        if (diff_guest_create(m == 0 ? DIFF_NORMAL : m == 1 ? DIFF_SINGLE_BLOCK : DIFF_SINGLE_INSN, base, &b->guest[m]))
            return -1;
    b->self = pthread_self();
    return pthread_create(&t, NULL, watchdog, b) || pthread_detach(t) || pthread_create(&t, NULL, kicker, b) ||
                   pthread_detach(t)
               ? -1
               : 0;
}

static void replay(struct bench *b, uint64_t seed, int kind)
{
    struct diff_seq *s = malloc(sizeof *s);
    char text[2048];
    diff_gen(s, seed, kind);
    diff_print(s, stdout);
    fflush(stdout);
    const struct diff_outcome *native = run_native(b, s);
    printf("native: end %u vector %u code %x cr2 %" PRIx64 " rip %" PRIx64 "\n", native->end, native->vector,
           native->code, native->cr2, native->state.rip);
    fflush(stdout);
    if (native->end == DIFF_DISCARD)
        return;
    count_end(b, native);
    unsigned run = run_all(b, s, native, 0, RUNS, text, sizeof text);
    if (run == RUNS)
        b->passed++;
    else
        report(b, s, run, text, sizeof text);
    free(s);
}

struct batch {
    struct diff_seq *seqs;
    unsigned count;
};

static void check_batch(struct bench *b, struct batch *t, unsigned half, struct diff_seq **failures,
                        unsigned *failure_count)
{
    char text[1024];
    for (unsigned k = 0; k < t->count; k++) {
        struct diff_seq *s = &t->seqs[k];
        const struct diff_outcome *native = diff_native_result(b->native, half, k);
        if (native->end == DIFF_DISCARD) {
            b->discarded++;
            continue;
        }
        count_end(b, native);
        if (run_all(b, s, native, 0, RUNS, text, sizeof text) == RUNS) {
            b->passed++;
        } else {
            failures[*failure_count] = malloc(sizeof *s);
            *failures[(*failure_count)++] = *s;
        }
    }
}

/* Failures are looked at while no batch is under way: the reports use the native child, too. */
static void look_at(struct bench *b, struct diff_seq **failures, unsigned n)
{
    char text[2048];
    for (unsigned k = 0; k < n; k++) {
        const struct diff_outcome *native = run_native(b, failures[k]);
        unsigned run = run_all(b, failures[k], native, 0, RUNS, text, sizeof text);
        if (run == RUNS) {
            b->failed++;
            printf("---- seed %" PRIu64 " differed, but not again alone (depends on what ran before)\n",
                   failures[k]->seed);
        } else {
            report(b, failures[k], run, text, sizeof text);
        }
        free(failures[k]);
    }
}

static void run_many(struct bench *b, uint64_t seed, uint64_t count, int kind, bool soak)
{
    struct batch t[2];
    struct diff_seq *failures[DIFF_BATCH];
    unsigned failure_count, round = 0;
    uint64_t done = 0;
    for (unsigned h = 0; h < 2; h++)
        t[h].seqs = calloc(DIFF_BATCH, sizeof(struct diff_seq));
    while ((soak || done < count) && b->failed < 200) {
        failure_count = 0;
        for (unsigned h = 0; h < 2; h++) {
            t[h].count = (unsigned)FVM_MIN((uint64_t)DIFF_BATCH / 2, soak ? DIFF_BATCH / 2 : count - done);
            for (unsigned k = 0; k < t[h].count; k++) {
                diff_gen(&t[h].seqs[k], seed * 1000000007ull + done + k, kind);
                *diff_native_request(b->native, h, k) = t[h].seqs[k].req;
            }
            done += t[h].count;
            diff_native_submit(b->native, h, t[h].count);
        }
        b->kicking = ++round % 8 == 0;
        for (unsigned h = 0; h < 2; h++) {
            diff_native_wait(b->native, h);
            check_batch(b, &t[h], h, failures, &failure_count);
        }
        b->kicking = false;
        look_at(b, failures, failure_count);
        if (soak && done % 102400 == 0)
            printf("%" PRIu64 " sequences, %" PRIu64 " failed\n", done, b->failed), fflush(stdout);
    }
    free(t[0].seqs);
    free(t[1].seqs);
}

static int kind_of(const char *name)
{
    for (int k = 0; k < DIFF_KIND_COUNT; k++)
        if (!strcmp(name, diff_kind_names[k]))
            return k;
    fprintf(stderr, "no kind '%s'; there are:", name);
    for (int k = 0; k < DIFF_KIND_COUNT; k++)
        fprintf(stderr, " %s", diff_kind_names[k]);
    fprintf(stderr, "\n");
    exit(2);
}

int main(int argc, char **argv)
{
    static struct bench b = {.report_max = 20};
    uint64_t seed = fvm_now_ns(), count = 100000, one = 0;
    bool soak = false, single = false;
    int kind = -1;
    for (int k = 1; k < argc; k++) {
        const char *a = argv[k], *v = k + 1 < argc ? argv[k + 1] : NULL;
        if (!strcmp(a, "--soak")) {
            soak = true;
            continue;
        }
        if (!v || a[0] != '-') {
            fprintf(stderr,
                    "usage: diff_host [--seed S] [--count N] [--kind K] [--replay SEED] [--reports N] [--soak]\n");
            return 2;
        }
        k++;
        if (!strcmp(a, "--seed"))
            seed = strtoull(v, NULL, 0);
        else if (!strcmp(a, "--count"))
            count = strtoull(v, NULL, 0);
        else if (!strcmp(a, "--kind"))
            kind = kind_of(v);
        else if (!strcmp(a, "--reports"))
            b.report_max = (unsigned)strtoul(v, NULL, 0);
        else if (!strcmp(a, "--replay"))
            single = true, one = strtoull(v, NULL, 0);
        else
            return fprintf(stderr, "unknown option %s\n", a), 2;
    }
    if (bench_init(&b))
        return 3;
    unsigned mnemonics, forms = diff_gen_forms(&mnemonics);
    printf("seed %" PRIu64 ", %u encodings of %u instructions\n", seed, forms, mnemonics);
    fflush(stdout);
    if (single)
        replay(&b, one, kind);
    else
        run_many(&b, seed, count, kind, soak);
    printf("ran to the end: %" PRIu64 "; faults:", b.ended);
    for (unsigned k = 0; k < 32; k++)
        if (b.by_vector[k])
            printf(" #%u %" PRIu64, k, b.by_vector[k]);
    printf("; discarded %" PRIu64 "\n%" PRIu64 " passed, %" PRIu64 " failed\n", b.discarded, b.passed, b.failed);
    diff_native_destroy(&b.native);
    return b.failed || !b.passed;
}
