/* base/loop: posts from other threads, timers, descriptors, signals, children, the guard. */
#include "base/loop.h"

#include <CUnit/Basic.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/err.h"

#define MS 1000000ull

struct fixture {
    struct fvm_loop *loop;
    struct fvm_loop_timer *watchdog, *timer;
    struct fvm_loop_io *io;
    unsigned next, count, locked, out_of_order;
    uint64_t at;
    int status;
};

static void too_long(void *ctx)
{
    struct fixture *f = ctx;
    fvm_loop_stop(f->loop, -1000);
}

static void setup(struct fixture *f)
{
    *f = (struct fixture){0};
    CU_ASSERT_EQUAL_FATAL(fvm_loop_create(&f->loop), 0);
    CU_ASSERT_EQUAL_FATAL(fvm_loop_timer_add(f->loop, too_long, f, &f->watchdog), 0);
    fvm_loop_timer_arm(f->watchdog, fvm_now_ns() + 20000 * MS);
}

static void teardown(struct fixture *f)
{
    fvm_loop_timer_remove(&f->timer);
    fvm_loop_timer_remove(&f->watchdog);
    fvm_loop_io_remove(&f->io);
    fvm_loop_destroy(&f->loop);
    CU_ASSERT_PTR_NULL(f->loop);
}

enum { POSTS = 20000, POSTERS = 3 };
struct poster {
    struct fixture *f;
    pthread_t thread;
    unsigned seen; /* loop's thread */
};
struct numbered {
    struct poster *p;
    unsigned n;
};

static void on_post(void *ctx)
{
    struct numbered *m = ctx;
    struct fixture *f = m->p->f;
    if (m->n != m->p->seen++)
        f->out_of_order++;
    if (++f->count == POSTS * POSTERS)
        fvm_loop_stop(f->loop, 7);
    free(m);
}

static void *post_many(void *ctx)
{
    struct poster *p = ctx;
    for (unsigned i = 0; i < POSTS; i++) {
        struct numbered *m = malloc(sizeof(*m));
        *m = (struct numbered){p, i};
        fvm_loop_post(p->f->loop, on_post, m);
    }
    return NULL;
}

static void guard(void *ctx) { ((struct fixture *)ctx)->locked++; }
static void unguard(void *ctx) { ((struct fixture *)ctx)->locked--; }

static void test_posts(void)
{
    struct fixture f;
    struct poster p[POSTERS] = {{0}};
    setup(&f);
    for (int i = 0; i < POSTERS; i++) {
        p[i].f = &f;
        pthread_create(&p[i].thread, NULL, post_many, &p[i]);
    }
    CU_ASSERT_EQUAL(fvm_loop_run(f.loop), 7);
    for (int i = 0; i < POSTERS; i++)
        pthread_join(p[i].thread, NULL);
    CU_ASSERT_EQUAL(f.count, POSTS * POSTERS);
    CU_ASSERT_EQUAL(f.out_of_order, 0);
    teardown(&f);
}

static void note_locked(void *ctx)
{
    struct fixture *f = ctx;
    f->count += f->locked == 1;
}

static void take_back(void *ctx)
{
    struct fixture *f = ctx;
    f->count = fvm_loop_post_cancel(f->loop, note_locked, f) ? 100 : 200;
}

/* Taken back before the loop turns, by a post of the same turn, and never seen when there is none. */
static void test_cancel(void)
{
    struct fixture f, other = {0};
    setup(&f);
    fvm_loop_set_guard(f.loop, guard, unguard, &f);
    CU_ASSERT_FALSE(fvm_loop_post_cancel(f.loop, note_locked, &f));
    other.locked = 1;
    fvm_loop_post(f.loop, note_locked, &f);
    fvm_loop_post(f.loop, note_locked, &other);
    fvm_loop_post(f.loop, note_locked, &f);
    CU_ASSERT_TRUE(fvm_loop_post_cancel(f.loop, note_locked, &f));
    CU_ASSERT_FALSE(fvm_loop_post_cancel(f.loop, note_locked, &f));
    fvm_loop_turn(f.loop, 1000 * MS);
    CU_ASSERT(f.count == 0 && other.count == 1);
    fvm_loop_post(f.loop, take_back, &f);
    fvm_loop_post(f.loop, note_locked, &f);
    fvm_loop_post(f.loop, note_locked, &other);
    fvm_loop_turn(f.loop, 1000 * MS);
    CU_ASSERT(f.count == 100 && other.count == 2);
    fvm_loop_post(f.loop, note_locked, &f); /* the list is whole: a later one comes */
    fvm_loop_turn(f.loop, 1000 * MS);
    CU_ASSERT_EQUAL(f.count, 101);
    fvm_loop_set_guard(f.loop, NULL, NULL, NULL);
    teardown(&f);
}

static void test_guard(void)
{
    struct fixture f;
    setup(&f);
    fvm_loop_set_guard(f.loop, guard, unguard, &f);
    fvm_loop_timer_add(f.loop, note_locked, &f, &f.timer);
    fvm_loop_timer_arm(f.timer, 0); /* in the past: at once */
    CU_ASSERT_EQUAL(fvm_loop_turn(f.loop, 1000 * MS), 1);
    CU_ASSERT_EQUAL(f.count, 1);
    fvm_loop_post(f.loop, note_locked, &f);
    CU_ASSERT_EQUAL(fvm_loop_turn(f.loop, 1000 * MS), 1);
    CU_ASSERT_EQUAL(f.count, 2);
    CU_ASSERT_EQUAL(f.locked, 0);
    fvm_loop_set_guard(f.loop, NULL, NULL, NULL);
    teardown(&f);
}

static void on_timer(void *ctx)
{
    struct fixture *f = ctx;
    f->at = fvm_now_ns();
    f->count++;
    fvm_loop_timer_remove(&f->timer); /* its own: allowed */
    fvm_loop_stop(f->loop, 1);
}

static void test_timers(void)
{
    struct fixture f;
    setup(&f);
    CU_ASSERT_EQUAL_FATAL(fvm_loop_timer_add(f.loop, on_timer, &f, &f.timer), 0);
    CU_ASSERT_EQUAL(fvm_loop_turn(f.loop, 0), 0);
    fvm_loop_timer_arm(f.timer, fvm_now_ns() + MS);
    fvm_loop_timer_arm(f.timer, UINT64_MAX);
    CU_ASSERT_EQUAL(fvm_loop_turn(f.loop, 5 * MS), 0);
    CU_ASSERT_EQUAL(f.count, 0);
    uint64_t want = fvm_now_ns() + 3 * MS;
    fvm_loop_timer_arm(f.timer, want + 90000 * MS);
    fvm_loop_timer_arm(f.timer, want);
    CU_ASSERT_EQUAL(fvm_loop_run(f.loop), 1);
    CU_ASSERT_EQUAL(f.count, 1);
    CU_ASSERT(f.at >= want);
    teardown(&f);
}

static void on_pipe(void *ctx, int fd, unsigned revents)
{
    struct fixture *f = ctx;
    char c;
    if ((revents & FVM_LOOP_IN) && read(fd, &c, 1) == 1)
        f->count++;
    else if (revents & FVM_LOOP_HUP)
        fvm_loop_io_remove(&f->io);
}

static void test_io(void)
{
    struct fixture f;
    int p[2];
    setup(&f);
    CU_ASSERT_EQUAL_FATAL(pipe2(p, O_CLOEXEC | O_NONBLOCK), 0);
    CU_ASSERT_EQUAL_FATAL(fvm_loop_io_add(f.loop, p[0], FVM_LOOP_IN, on_pipe, &f, &f.io), 0);
    CU_ASSERT_EQUAL(write(p[1], "x", 1), 1);
    CU_ASSERT_EQUAL(fvm_loop_turn(f.loop, 1000 * MS), 1);
    CU_ASSERT_EQUAL(f.count, 1);
    CU_ASSERT_EQUAL(fvm_loop_io_set(f.io, 0), 0);
    CU_ASSERT_EQUAL(write(p[1], "x", 1), 1);
    CU_ASSERT_EQUAL(fvm_loop_turn(f.loop, 0), 0);
    CU_ASSERT_EQUAL(fvm_loop_io_set(f.io, FVM_LOOP_IN), 0);
    CU_ASSERT_EQUAL(fvm_loop_turn(f.loop, 1000 * MS), 1);
    close(p[1]);
    CU_ASSERT_EQUAL(fvm_loop_turn(f.loop, 1000 * MS), 1);
    CU_ASSERT_PTR_NULL(f.io);
    close(p[0]);
    int fd = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
    CU_ASSERT_EQUAL(fvm_loop_io_add(f.loop, fd, FVM_LOOP_IN, on_pipe, &f, &f.io), FVM_EUNSUPPORTED);
    CU_ASSERT_PTR_NULL(f.io);
    close(fd);
    teardown(&f);
}

static void on_signal(void *ctx)
{
    struct fixture *f = ctx;
    fvm_loop_stop(f->loop, 15);
}

static void on_child(void *ctx, int pid, int status)
{
    struct fixture *f = ctx;
    f->at = (uint64_t)pid;
    f->status = status;
    fvm_loop_stop(f->loop, 3);
}

static void test_signals_and_children(void)
{
    struct fixture f;
    setup(&f);
    CU_ASSERT_EQUAL(fvm_loop_signal_add(f.loop, SIGUSR1, on_signal, &f), 0);
    kill(getpid(), SIGUSR1);
    CU_ASSERT_EQUAL(fvm_loop_run(f.loop), 15);

    pid_t pid = fork();
    if (pid == 0)
        _exit(42);
    CU_ASSERT_EQUAL(fvm_loop_child_add(f.loop, pid, on_child, &f), 0);
    CU_ASSERT_EQUAL(fvm_loop_run(f.loop), 3);
    CU_ASSERT(f.at == (uint64_t)pid && WIFEXITED(f.status) && WEXITSTATUS(f.status) == 42);

    pid = fork(); /* still watched when the loop goes */
    if (pid == 0)
        for (;;)
            pause();
    CU_ASSERT_EQUAL(fvm_loop_child_add(f.loop, pid, on_child, &f), 0);
    kill(pid, SIGKILL);
    teardown(&f);
    CU_ASSERT_EQUAL(waitpid(pid, NULL, 0), pid);
}

int main(void)
{
    CU_initialize_registry();
    CU_pSuite s = CU_add_suite("base/loop", NULL, NULL);
    CU_add_test(s, "posts arrive once and in order", test_posts);
    CU_add_test(s, "callbacks run under the guard", test_guard);
    CU_add_test(s, "posts taken back", test_cancel);
    CU_add_test(s, "timers fire once and never early", test_timers);
    CU_add_test(s, "descriptors", test_io);
    CU_add_test(s, "signals and children", test_signals_and_children);
    CU_basic_set_mode(CU_BRM_VERBOSE);
    CU_basic_run_tests();
    unsigned bad = CU_get_number_of_failures();
    CU_cleanup_registry();
    return bad != 0;
}
