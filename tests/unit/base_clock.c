/* base/clock: stands still when stopped, never goes back, timers never early, state moves. */
#include "base/clock.h"

#include <CUnit/Basic.h>
#include <pthread.h>
#include <stdatomic.h>
#include <x86intrin.h>

#include "base/err.h"

#define MS 1000000ull

struct fixture {
    struct fvm_loop *loop;
    struct fvm_clock *clock;
    struct fvm_timer *timer;
    uint64_t fired_at;
    unsigned fired;
};

static void on_timer(void *ctx)
{
    struct fixture *f = ctx;
    f->fired++;
    f->fired_at = fvm_clock_ns(f->clock);
}

static void setup(struct fixture *f, uint32_t khz)
{
    *f = (struct fixture){0};
    CU_ASSERT_EQUAL_FATAL(fvm_loop_create(&f->loop), 0);
    CU_ASSERT_EQUAL_FATAL(fvm_clock_create(f->loop, khz, &f->clock), 0);
    CU_ASSERT_EQUAL_FATAL(fvm_timer_create(f->clock, on_timer, f, &f->timer), 0);
}

static void teardown(struct fixture *f)
{
    fvm_timer_destroy(&f->timer);
    fvm_clock_destroy(&f->clock);
    fvm_loop_destroy(&f->loop);
}

/* Handle events for (at least) this long. */
static void spin(struct fixture *f, uint64_t ns)
{
    for (uint64_t end = fvm_now_ns() + ns, now; (now = fvm_now_ns()) < end;)
        CU_ASSERT_FATAL(fvm_loop_turn(f->loop, end - now) >= 0);
}

static void test_stands_still(void)
{
    struct fixture f;
    setup(&f, 0);
    CU_ASSERT_FALSE(fvm_clock_running(f.clock));
    spin(&f, 2 * MS);
    CU_ASSERT_EQUAL(fvm_clock_ns(f.clock), 0);
    CU_ASSERT_EQUAL(fvm_clock_tsc(f.clock), 0);
    uint64_t began = fvm_now_ns();
    fvm_clock_start(f.clock);
    spin(&f, 5 * MS);
    uint64_t ns = fvm_clock_ns(f.clock), real = fvm_now_ns() - began;
    CU_ASSERT(ns >= 4 * MS && ns <= real);
    fvm_clock_stop(f.clock);
    uint64_t stopped_ns = fvm_clock_ns(f.clock), stopped_tsc = fvm_clock_tsc(f.clock);
    CU_ASSERT(stopped_ns >= ns);
    spin(&f, 2 * MS);
    CU_ASSERT_EQUAL(fvm_clock_ns(f.clock), stopped_ns);
    CU_ASSERT_EQUAL(fvm_clock_tsc(f.clock), stopped_tsc);
    fvm_clock_start(f.clock);
    CU_ASSERT(fvm_clock_ns(f.clock) >= stopped_ns && fvm_clock_tsc(f.clock) >= stopped_tsc);
    teardown(&f);
}

/* TSC and ns tell the same time, to 0.1 %, whatever the frequency. */
static void test_frequency(void)
{
    uint32_t host = fvm_clock_host_tsc_khz();
    const uint32_t khz[] = {0, host, host + host / 100000, 1000000, 2 * host};
    CU_ASSERT(host > 100000 && host < 20000000);
    for (size_t i = 0; i < FVM_ARRAY_SIZE(khz); i++) {
        struct fixture f;
        int64_t offset = 0;
        setup(&f, khz[i]);
        fvm_clock_start(f.clock);
        spin(&f, 20 * MS);
        fvm_clock_stop(f.clock);
        double expect = (double)fvm_clock_ns(f.clock) * fvm_clock_tsc_khz(f.clock) / 1e6;
        double off = (double)fvm_clock_tsc(f.clock) / expect - 1;
        CU_ASSERT(off > -0.001 && off < 0.001);
        CU_ASSERT(!(i >= 3 && fvm_clock_tsc_offset(f.clock, &offset)));
        fvm_clock_start(f.clock);
        if (fvm_clock_tsc_offset(f.clock, &offset)) {
            uint64_t a = fvm_clock_tsc(f.clock), b = __rdtsc() + (uint64_t)offset, c = fvm_clock_tsc(f.clock);
            CU_ASSERT(a <= b && b <= c);
        }
        teardown(&f);
    }
    struct fvm_clock *clock = NULL;
    CU_ASSERT_EQUAL(fvm_clock_create(NULL, 1, &clock), FVM_EINVAL);
    CU_ASSERT_PTR_NULL(clock);
}

static void test_tsc_conversion(void)
{
    struct fixture f;
    setup(&f, 2000000);
    CU_ASSERT_EQUAL(fvm_clock_tsc_to_ns(f.clock, 2000000), 1000000);
    CU_ASSERT_EQUAL(fvm_clock_tsc_to_ns(f.clock, 3), 2); /* rounded up: never early */
    CU_ASSERT_EQUAL(fvm_clock_tsc_to_ns(f.clock, UINT64_MAX), UINT64_MAX / 2 + 1);
    fvm_clock_set_tsc(f.clock, 1000);
    CU_ASSERT_EQUAL(fvm_clock_tsc(f.clock), 1000);
    CU_ASSERT_EQUAL(fvm_clock_tsc_to_ns(f.clock, 1000), 0);
    CU_ASSERT_EQUAL(fvm_clock_tsc_to_ns(f.clock, 500), 0);
    fvm_clock_set_tsc(f.clock, UINT64_MAX - 5);
    CU_ASSERT_EQUAL(fvm_clock_tsc_to_ns(f.clock, 7), 0);
    fvm_clock_start(f.clock);
    fvm_clock_set_tsc(f.clock, 1ull << 40);
    uint64_t t = fvm_clock_tsc(f.clock);
    CU_ASSERT(t >= 1ull << 40 && t < (1ull << 40) + 2000000000ull);
    teardown(&f);
}

static void test_timers(void)
{
    struct fixture f;
    setup(&f, 0);
    fvm_timer_arm(f.timer, 3 * MS);
    CU_ASSERT_EQUAL(fvm_timer_deadline(f.timer), 3 * MS);
    spin(&f, 6 * MS); /* the clock is stopped */
    CU_ASSERT_EQUAL(f.fired, 0);
    fvm_clock_start(f.clock);
    while (!f.fired && fvm_clock_ns(f.clock) < 20000 * MS)
        fvm_loop_turn(f.loop, 1000 * MS);
    CU_ASSERT_EQUAL(f.fired, 1);
    CU_ASSERT(f.fired_at >= 3 * MS);
    CU_ASSERT_EQUAL(fvm_timer_deadline(f.timer), UINT64_MAX);

    /* later, sooner, not at all */
    uint64_t now = fvm_clock_ns(f.clock);
    fvm_timer_arm(f.timer, now + 2 * MS);
    fvm_timer_arm(f.timer, now + 30000 * MS);
    spin(&f, 5 * MS);
    CU_ASSERT_EQUAL(f.fired, 1);
    fvm_timer_arm(f.timer, now + MS);
    spin(&f, 5 * MS);
    CU_ASSERT_EQUAL(f.fired, 2);
    fvm_timer_arm(f.timer, fvm_clock_ns(f.clock) + MS);
    fvm_timer_arm(f.timer, UINT64_MAX);
    spin(&f, 5 * MS);
    CU_ASSERT_EQUAL(f.fired, 2);

    /* over a pause */
    uint64_t due = fvm_clock_ns(f.clock) + 4 * MS;
    fvm_timer_arm(f.timer, due);
    fvm_clock_stop(f.clock);
    spin(&f, 8 * MS);
    CU_ASSERT_EQUAL(f.fired, 2);
    fvm_clock_start(f.clock);
    while (f.fired == 2 && fvm_clock_ns(f.clock) < 20000 * MS)
        fvm_loop_turn(f.loop, 1000 * MS);
    CU_ASSERT_EQUAL(f.fired, 3);
    CU_ASSERT(f.fired_at >= due);
    teardown(&f);
}

static void test_move(void)
{
    struct fixture a, b;
    struct fvm_clock_state st;
    setup(&a, 1234567);
    setup(&b, 0);
    fvm_clock_start(a.clock);
    fvm_clock_set_tsc(a.clock, 1ull << 50);
    spin(&a, 2 * MS);
    fvm_clock_stop(a.clock);
    fvm_clock_save(a.clock, &st);
    CU_ASSERT_EQUAL(st.guest_ns, fvm_clock_ns(a.clock));
    CU_ASSERT_EQUAL(st.guest_tsc, fvm_clock_tsc(a.clock));
    CU_ASSERT_EQUAL(fvm_clock_restore(b.clock, &st, 10 * MS), 0);
    CU_ASSERT_EQUAL(fvm_clock_tsc_khz(b.clock), 1234567);
    CU_ASSERT_EQUAL(fvm_clock_ns(b.clock), st.guest_ns + 10 * MS);
    CU_ASSERT_EQUAL(fvm_clock_tsc(b.clock), st.guest_tsc + 12345670);
    CU_ASSERT_FALSE(fvm_clock_running(b.clock));
    fvm_timer_arm(b.timer, st.guest_ns + 5 * MS); /* became due in the blackout */
    fvm_clock_start(b.clock);
    spin(&b, 2 * MS);
    CU_ASSERT_EQUAL(b.fired, 1);
    fvm_clock_stop(b.clock);
    struct fvm_clock_state bad = st;
    bad.tsc_khz = 0;
    CU_ASSERT_EQUAL(fvm_clock_restore(b.clock, &bad, 0), FVM_EINVAL);
    bad = st;
    bad.guest_ns = UINT64_MAX - 3;
    CU_ASSERT_EQUAL(fvm_clock_restore(b.clock, &bad, 10), FVM_EINVAL);
    CU_ASSERT_EQUAL(fvm_clock_tsc_khz(b.clock), 1234567);
    teardown(&a);
    teardown(&b);
}

static _Atomic bool done;

/* A vCPU's view: neither clock goes back while another thread starts and stops it. */
static void *watch(void *ctx)
{
    struct fixture *f = ctx;
    uintptr_t back = 0;
    for (uint64_t ns = 0, tsc = 0; !atomic_load(&done);) {
        uint64_t n = fvm_clock_ns(f->clock), t = fvm_clock_tsc(f->clock);
        back += n < ns || t < tsc;
        ns = n;
        tsc = t;
    }
    return (void *)back;
}

static void test_threads(void)
{
    struct fixture f;
    pthread_t thread;
    void *back = NULL;
    setup(&f, 0);
    atomic_store(&done, false);
    pthread_create(&thread, NULL, watch, &f);
    for (int i = 0; i < 2000; i++) {
        fvm_clock_start(f.clock);
        fvm_timer_arm(f.timer, fvm_clock_ns(f.clock) + (uint64_t)i);
        fvm_clock_stop(f.clock);
    }
    atomic_store(&done, true);
    pthread_join(thread, &back);
    CU_ASSERT_PTR_NULL(back);
    teardown(&f);
}

int main(void)
{
    CU_initialize_registry();
    CU_pSuite s = CU_add_suite("base/clock", NULL, NULL);
    CU_add_test(s, "a stopped clock stands still", test_stands_still);
    CU_add_test(s, "TSC and ns agree at any frequency", test_frequency);
    CU_add_test(s, "TSC to ns, TSC writes", test_tsc_conversion);
    CU_add_test(s, "timers", test_timers);
    CU_add_test(s, "save, restore, the blackout", test_move);
    CU_add_test(s, "readers on other threads", test_threads);
    CU_basic_set_mode(CU_BRM_VERBOSE);
    CU_basic_run_tests();
    unsigned bad = CU_get_number_of_failures();
    CU_cleanup_registry();
    return bad != 0;
}
