/*
 * clock.c - guest time.
 *
 *     guest_ns  = ns0  + (CLOCK_MONOTONIC - mono0)                       while running, else ns0
 *     guest_tsc = gtsc0 + (host TSC - htsc0) [* guest kHz / host kHz]    while running, else gtsc0
 *
 * Both pairs are anchored at one instant when the clock starts, so they tell the same time; the scale is left out when
 * the frequencies agree within TSC_SAME_PPM (two measurements of one host differ by a few ppm, and an unscaled TSC can be
 * read by the guest's rdtsc in place). On a host whose TSC is not invariant, guest_tsc is guest_ns scaled.
 *
 * Readers are vCPU threads: the anchors are under a seqlock, a read takes no lock. Writers hold `lock`, which also
 * keeps the list of timers. A timer's callback runs without `lock`, on the loop's thread, under the loop's guard.
 *
 * A timer that is armed for later than its host timer leaves the host timer alone: it wakes up early, sees that it is not
 * due and arms again. A guest that keeps pushing its next tick away thus costs no system call each time.
 */
#include "base/clock.h"

#include <cpuid.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <time.h>
#include <x86intrin.h>

#include "base/err.h"

#define NS_PER_S 1000000000ull
#define KHZ_MIN 10000u      /* 10 MHz: below is nonsense, and TSC to ns must not overflow */
#define KHZ_MAX 100000000u  /* 100 GHz */
#define TSC_SAME_PPM 200u
#define MEASURE_NS 20000000ull

struct anchors {
    uint64_t mono0, ns0;   /* CLOCK_MONOTONIC and guest_ns at the anchor */
    uint64_t htsc0, gtsc0; /* host and guest TSC at the same instant */
    uint64_t khz;          /* guest's */
    uint64_t mode;         /* enum */
    uint64_t running;
};
enum { TSC_OFFSET, TSC_SCALED, TSC_FROM_NS };
enum { ANCHOR_WORDS = sizeof(struct anchors) / sizeof(uint64_t) };

struct fvm_timer {
    struct fvm_clock *clock;
    struct fvm_timer *next, **prev;
    struct fvm_loop_timer *host;
    fvm_loop_fn fn;
    void *ctx;
    uint64_t deadline_ns; /* guest_ns, UINT64_MAX: disarmed; under the clock's lock */
    uint64_t host_ns;     /* what `host` is armed for; under the clock's lock */
};

struct fvm_clock { /* any thread */
    struct fvm_loop *loop;
    pthread_mutex_t lock;
    struct fvm_timer *timers; /* under lock */
    _Atomic uint32_t seq;     /* odd while `word` changes */
    _Atomic uint64_t word[ANCHOR_WORDS];
};

static uint64_t mul_div(uint64_t a, uint64_t b, uint64_t c)
{
    return (uint64_t)((unsigned __int128)a * b / c);
}

/* --- the host's TSC --- */

static uint64_t raw_ns(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC_RAW, &ts);
    return (uint64_t)ts.tv_sec * NS_PER_S + (uint64_t)ts.tv_nsec;
}

/* One instant on two clocks: of a few tries the one that was disturbed least. */
static void sample(uint64_t (*now)(void), uint64_t *ret_ns, uint64_t *ret_tsc)
{
    uint64_t best = UINT64_MAX;
    for (int i = 0; i < 4; i++) {
        uint64_t a = __rdtsc(), ns = now(), b = __rdtsc();
        if (b - a < best) {
            best = b - a;
            *ret_ns = ns;
            *ret_tsc = a + (b - a) / 2;
        }
    }
}

static uint32_t cpuid_tsc_khz(void)
{
    unsigned a, b, c, d;
    if (!__get_cpuid_count(0x15, 0, &a, &b, &c, &d) || !a || !b || !c)
        return 0;
    uint64_t khz = (uint64_t)c * b / a / 1000;
    return khz >= KHZ_MIN && khz <= KHZ_MAX ? (uint32_t)khz : 0;
}

static uint32_t measure_tsc_khz(void)
{
    uint64_t ns_a = 0, tsc_a = 0, ns_b = 0, tsc_b = 0;
    sample(raw_ns, &ns_a, &tsc_a);
    do
        sample(raw_ns, &ns_b, &tsc_b);
    while (ns_b - ns_a < MEASURE_NS);
    return (uint32_t)mul_div(tsc_b - tsc_a, 1000000, ns_b - ns_a);
}

static uint32_t host_khz; /* constants of the machine, written once */
static bool host_invariant;

static void host_init(void)
{
    unsigned a, b, c, d;
    host_invariant = __get_cpuid(0x80000007, &a, &b, &c, &d) && (d & (1u << 8));
    host_khz = cpuid_tsc_khz();
    if (!host_khz)
        host_khz = measure_tsc_khz();
}

uint32_t fvm_clock_host_tsc_khz(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, host_init);
    return host_khz;
}

/* --- anchors --- */

/* The host's clocks at the moment of a read. */
struct now {
    uint64_t mono, htsc;
};

/*
 * The anchors, and with ret_now the host's clocks: read between the two looks at `seq`, hence before a writer that comes
 * later samples them. That is why guest time can't go back when the clock is stopped under a reader.
 */
static struct anchors load_now(const struct fvm_clock *clock, struct now *ret_now)
{
    union {
        struct anchors a;
        uint64_t w[ANCHOR_WORDS];
    } u;
    for (;;) {
        uint32_t seq = atomic_load_explicit(&clock->seq, memory_order_acquire);
        for (size_t i = 0; i < ANCHOR_WORDS; i++)
            u.w[i] = atomic_load_explicit(&clock->word[i], memory_order_relaxed);
        if (ret_now) {
            ret_now->mono = fvm_now_ns();
            ret_now->htsc = __rdtsc();
            _mm_lfence();
        }
        atomic_thread_fence(memory_order_acquire);
        if (!(seq & 1) && seq == atomic_load_explicit(&clock->seq, memory_order_relaxed))
            return u.a;
        _mm_pause();
    }
}

static struct anchors load(const struct fvm_clock *clock)
{
    return load_now(clock, NULL);
}

/* From here to the end of store(), readers wait. Caller holds the lock. */
static void store_begin(struct fvm_clock *clock)
{
    atomic_fetch_add_explicit(&clock->seq, 1, memory_order_seq_cst);
    _mm_mfence();
    _mm_lfence();
}

static void store(struct fvm_clock *clock, struct anchors a)
{
    union {
        struct anchors a;
        uint64_t w[ANCHOR_WORDS];
    } u = {.a = a};
    for (size_t i = 0; i < ANCHOR_WORDS; i++)
        atomic_store_explicit(&clock->word[i], u.w[i], memory_order_relaxed);
    atomic_fetch_add_explicit(&clock->seq, 1, memory_order_release);
}

static uint64_t ns_at(const struct anchors *a, uint64_t mono)
{
    return a->running && mono > a->mono0 ? a->ns0 + (mono - a->mono0) : a->ns0;
}

/* htsc and mono: now. */
static uint64_t tsc_at(const struct anchors *a, uint64_t htsc, uint64_t mono)
{
    if (!a->running)
        return a->gtsc0;
    if (a->mode == TSC_FROM_NS)
        return a->gtsc0 + mul_div(ns_at(a, mono) - a->ns0, a->khz, 1000000);
    uint64_t run = htsc > a->htsc0 ? htsc - a->htsc0 : 0;
    return a->gtsc0 + (a->mode == TSC_SCALED ? mul_div(run, a->khz, host_khz) : run);
}

/* The same time, anchored now. */
static struct anchors reanchor(const struct anchors *a)
{
    struct anchors n = *a;
    uint64_t mono = 0, htsc = 0;
    sample(fvm_now_ns, &mono, &htsc);
    n.ns0 = ns_at(a, mono);
    n.gtsc0 = tsc_at(a, htsc, mono);
    n.mono0 = mono;
    n.htsc0 = htsc;
    return n;
}

static uint64_t mode_for(uint32_t khz)
{
    uint32_t host = fvm_clock_host_tsc_khz();
    if (!host_invariant)
        return TSC_FROM_NS;
    uint64_t diff = khz > host ? khz - host : host - khz;
    return diff * 1000000 <= (uint64_t)host * TSC_SAME_PPM ? TSC_OFFSET : TSC_SCALED;
}

/* --- timers --- */

/* Let the host timer wake us no later than the deadline. Caller holds the lock. */
static void host_arm(struct fvm_timer *timer, const struct anchors *a)
{
    if (!a->running || timer->deadline_ns == UINT64_MAX)
        return;
    uint64_t ahead = timer->deadline_ns > a->ns0 ? timer->deadline_ns - a->ns0 : 0;
    uint64_t at = ahead < INT64_MAX - a->mono0 ? a->mono0 + ahead : INT64_MAX;
    if (timer->host_ns <= at)
        return;
    timer->host_ns = at;
    fvm_loop_timer_arm(timer->host, at);
}

static void on_host_timer(void *ctx)
{
    struct fvm_timer *timer = ctx;
    struct fvm_clock *clock = timer->clock;
    pthread_mutex_lock(&clock->lock);
    struct anchors a = load(clock);
    timer->host_ns = UINT64_MAX;
    bool due = a.running && timer->deadline_ns != UINT64_MAX && timer->deadline_ns <= ns_at(&a, fvm_now_ns());
    if (due)
        timer->deadline_ns = UINT64_MAX;
    else
        host_arm(timer, &a);
    pthread_mutex_unlock(&clock->lock);
    if (due)
        timer->fn(timer->ctx); /* may destroy the timer */
}

int fvm_timer_create(struct fvm_clock *clock, fvm_loop_fn fn, void *ctx, struct fvm_timer **ret_timer)
{
    struct fvm_timer *timer = calloc(1, sizeof(*timer));
    if (!timer)
        return FVM_ENOMEM;
    *timer = (struct fvm_timer){.clock = clock, .fn = fn, .ctx = ctx, .deadline_ns = UINT64_MAX, .host_ns = UINT64_MAX};
    int r = fvm_loop_timer_add(clock->loop, on_host_timer, timer, &timer->host);
    if (r < 0) {
        free(timer);
        return r;
    }
    pthread_mutex_lock(&clock->lock);
    timer->next = clock->timers;
    timer->prev = &clock->timers;
    if (timer->next)
        timer->next->prev = &timer->next;
    clock->timers = timer;
    pthread_mutex_unlock(&clock->lock);
    *ret_timer = timer;
    return 0;
}

void fvm_timer_arm(struct fvm_timer *timer, uint64_t guest_ns)
{
    pthread_mutex_lock(&timer->clock->lock);
    struct anchors a = load(timer->clock);
    timer->deadline_ns = guest_ns;
    host_arm(timer, &a);
    pthread_mutex_unlock(&timer->clock->lock);
}

uint64_t fvm_timer_deadline(const struct fvm_timer *timer)
{
    pthread_mutex_lock(&timer->clock->lock);
    uint64_t deadline_ns = timer->deadline_ns;
    pthread_mutex_unlock(&timer->clock->lock);
    return deadline_ns;
}

void fvm_timer_destroy(struct fvm_timer **timer_p)
{
    struct fvm_timer *timer = *timer_p;
    if (!timer)
        return;
    *timer_p = NULL;
    pthread_mutex_lock(&timer->clock->lock);
    *timer->prev = timer->next;
    if (timer->next)
        timer->next->prev = timer->prev;
    pthread_mutex_unlock(&timer->clock->lock);
    fvm_loop_timer_remove(&timer->host);
    free(timer);
}

/* --- the clock --- */

int fvm_clock_create(struct fvm_loop *loop, uint32_t tsc_khz, struct fvm_clock **ret_clock)
{
    uint32_t khz = tsc_khz ? tsc_khz : fvm_clock_host_tsc_khz();
    if (khz < KHZ_MIN || khz > KHZ_MAX)
        return FVM_EINVAL;
    struct fvm_clock *clock = calloc(1, sizeof(*clock));
    if (!clock)
        return FVM_ENOMEM;
    clock->loop = loop;
    pthread_mutex_init(&clock->lock, NULL);
    store_begin(clock);
    store(clock, (struct anchors){.khz = khz, .mode = mode_for(khz)});
    *ret_clock = clock;
    return 0;
}

void fvm_clock_destroy(struct fvm_clock **clock_p)
{
    struct fvm_clock *clock = *clock_p;
    if (!clock)
        return;
    *clock_p = NULL;
    fvm_assert(!clock->timers);
    pthread_mutex_destroy(&clock->lock);
    free(clock);
}

void fvm_clock_start(struct fvm_clock *clock)
{
    pthread_mutex_lock(&clock->lock);
    struct anchors a = load(clock);
    if (!a.running) {
        store_begin(clock);
        a = reanchor(&a);
        a.running = 1;
        store(clock, a);
        for (struct fvm_timer *t = clock->timers; t; t = t->next)
            host_arm(t, &a);
    }
    pthread_mutex_unlock(&clock->lock);
}

void fvm_clock_stop(struct fvm_clock *clock)
{
    pthread_mutex_lock(&clock->lock);
    struct anchors a = load(clock);
    store_begin(clock);
    a = reanchor(&a);
    a.running = 0;
    store(clock, a); /* host timers that expire now find a stopped clock */
    pthread_mutex_unlock(&clock->lock);
}

bool fvm_clock_running(const struct fvm_clock *clock)
{
    return load(clock).running;
}

uint64_t fvm_clock_ns(const struct fvm_clock *clock)
{
    struct now now;
    struct anchors a = load_now(clock, &now);
    return ns_at(&a, now.mono);
}

uint64_t fvm_clock_tsc(const struct fvm_clock *clock)
{
    struct now now;
    struct anchors a = load_now(clock, &now);
    return tsc_at(&a, now.htsc, now.mono);
}

uint32_t fvm_clock_tsc_khz(const struct fvm_clock *clock)
{
    return (uint32_t)load(clock).khz;
}

uint64_t fvm_clock_tsc_to_ns(const struct fvm_clock *clock, uint64_t guest_tsc)
{
    struct anchors a = load(clock);
    a = reanchor(&a); /* from now, not from the anchor: the two host clocks drift apart by some ppm */
    if (guest_tsc <= a.gtsc0) {
        unsigned __int128 ago = (unsigned __int128)(a.gtsc0 - guest_tsc) * 1000000 / a.khz;
        return ago < a.ns0 ? a.ns0 - (uint64_t)ago : 0;
    }
    unsigned __int128 ahead = ((unsigned __int128)(guest_tsc - a.gtsc0) * 1000000 + a.khz - 1) / a.khz;
    return ahead < UINT64_MAX - a.ns0 ? a.ns0 + (uint64_t)ahead : UINT64_MAX - 1;
}

bool fvm_clock_tsc_offset(const struct fvm_clock *clock, int64_t *ret_offset)
{
    struct anchors a = load(clock);
    if (a.mode != TSC_OFFSET)
        return false;
    *ret_offset = (int64_t)(a.gtsc0 - a.htsc0);
    return true;
}

void fvm_clock_set_tsc(struct fvm_clock *clock, uint64_t guest_tsc)
{
    pthread_mutex_lock(&clock->lock);
    struct anchors a = load(clock);
    store_begin(clock);
    a = reanchor(&a);
    a.gtsc0 = guest_tsc;
    store(clock, a);
    /* The anchor of guest_ns moved along with time: host timers stay right. */
    pthread_mutex_unlock(&clock->lock);
}

uint64_t fvm_clock_wall_ns(const struct fvm_clock *clock)
{
    (void)clock;
    return fvm_wall_ns();
}

void fvm_clock_save(const struct fvm_clock *clock, struct fvm_clock_state *ret_state)
{
    struct anchors a = load(clock);
    a = reanchor(&a);
    *ret_state = (struct fvm_clock_state){
        .guest_ns = a.ns0, .guest_tsc = a.gtsc0, .tsc_khz = (uint32_t)a.khz, .wall_ns = fvm_wall_ns()};
}

int fvm_clock_restore(struct fvm_clock *clock, const struct fvm_clock_state *state, uint64_t elapsed_ns)
{
    if (state->tsc_khz < KHZ_MIN || state->tsc_khz > KHZ_MAX)
        return FVM_EINVAL;
    if (state->guest_ns > INT64_MAX || elapsed_ns > INT64_MAX - state->guest_ns)
        return FVM_EINVAL;
    pthread_mutex_lock(&clock->lock);
    struct anchors a = load(clock);
    fvm_assert(!a.running);
    a.ns0 = state->guest_ns + elapsed_ns;
    a.gtsc0 = state->guest_tsc + mul_div(elapsed_ns, state->tsc_khz, 1000000);
    a.khz = state->tsc_khz;
    a.mode = mode_for(state->tsc_khz);
    store_begin(clock);
    store(clock, a);
    for (struct fvm_timer *t = clock->timers; t; t = t->next)
        t->host_ns = UINT64_MAX; /* guest_ns jumped: what the host timers are armed for means nothing now */
    pthread_mutex_unlock(&clock->lock);
    return 0;
}
