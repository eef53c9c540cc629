/*
 * loop.c - the event loop: sd-event for descriptors and signals, and beside it
 *   posts    a locked list and an eventfd, so that any thread can have work done on the loop's thread;
 *   timers   one timerfd each: nanoseconds, and arming from a vCPU's thread is one system call that wakes nobody;
 *   children one pidfd each: SIGCHLD stays untouched, so a library's own children are not stolen.
 *
 * Invariant: a callback may remove its own source (or any other); nothing of a source is touched after its callback ran.
 * Every callback runs between the guard's lock and unlock, when there is one.
 */
#include "base/loop.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <sys/wait.h>
#include <systemd/sd-event.h>
#include <time.h>
#include <unistd.h>

#include "base/err.h"

#define NS_PER_S 1000000000ull

struct post { /* a queued fvm_loop_post; freed by the loop's thread */
    struct post *next;
    fvm_loop_fn fn;
    void *ctx;
};

struct fvm_loop { /* the loop's thread, but for the fields under `lock` and the atomics */
    sd_event *event;
    sd_event_source *wake_source;
    int wake_fd; /* eventfd: there are posts, or stop was called */
    unsigned sources; /* descriptors and timers not yet removed by their owners */
    struct child_watch *children;
    fvm_loop_fn guard_lock, guard_unlock;
    void *guard_ctx;
    pthread_mutex_t lock;
    struct post *head, **tail; /* under lock */
    struct post *taken;        /* off the list above, not yet run */
    int status;                /* under lock */
    _Atomic bool stopping;
};

struct fvm_loop_io {
    struct fvm_loop *loop;
    sd_event_source *source;
    fvm_loop_io_fn fn;
    void *ctx;
};

struct fvm_loop_timer {
    struct fvm_loop *loop;
    struct fvm_loop_io *io;
    fvm_loop_fn fn;
    void *ctx;
    int fd;
    pthread_mutex_t lock; /* deadline and the timerfd change together */
    uint64_t deadline_ns;
};

struct signal_watch {
    struct fvm_loop *loop;
    fvm_loop_fn fn;
    void *ctx;
};

struct child_watch {
    struct child_watch *next;
    struct fvm_loop *loop;
    sd_event_source *source;
    void (*fn)(void *ctx, int pid, int status);
    void *ctx;
    int pid, pidfd;
};

uint64_t fvm_now_ns(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * NS_PER_S + (uint64_t)ts.tv_nsec;
}

uint64_t fvm_wall_ns(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_REALTIME, &ts);
    return (uint64_t)ts.tv_sec * NS_PER_S + (uint64_t)ts.tv_nsec;
}

struct guard { /* as it was when a callback began */
    fvm_loop_fn unlock;
    void *ctx;
};

static struct guard guard_lock(struct fvm_loop *loop)
{
    if (loop->guard_lock)
        loop->guard_lock(loop->guard_ctx);
    return (struct guard){.unlock = loop->guard_unlock, .ctx = loop->guard_ctx};
}

/* A callback may set the guard (a VM is made when its guest comes): only what was locked is unlocked. */
static void guard_unlock(struct fvm_loop *loop, struct guard held)
{
    if (held.unlock && loop->guard_unlock == held.unlock && loop->guard_ctx == held.ctx)
        held.unlock(held.ctx);
}

static void child_watch_free(struct child_watch *watch);

/* --- posts --- */

static void wake(struct fvm_loop *loop)
{
    uint64_t one = 1;
    ssize_t n;
    do
        n = write(loop->wake_fd, &one, sizeof(one));
    while (n < 0 && errno == EINTR);
    /* EAGAIN: the counter is full, so the loop is awake anyway */
}

static int on_wake(sd_event_source *source, int fd, uint32_t revents, void *ctx)
{
    (void)source;
    (void)revents;
    struct fvm_loop *loop = ctx;
    uint64_t count;
    ssize_t n = read(fd, &count, sizeof(count)); /* before the list is taken: a later post wakes again */
    (void)n;

    pthread_mutex_lock(&loop->lock);
    loop->taken = loop->head;
    loop->head = NULL;
    loop->tail = &loop->head;
    pthread_mutex_unlock(&loop->lock);

    while (loop->taken) {
        struct post *p = loop->taken;
        loop->taken = p->next;
        struct guard held = guard_lock(loop);
        p->fn(p->ctx);
        guard_unlock(loop, held);
        free(p);
    }
    return 0;
}

static bool drop(struct post **list, fvm_loop_fn fn, const void *ctx)
{
    bool any = false;
    while (*list) {
        struct post *p = *list;
        if (p->fn != fn || p->ctx != ctx) {
            list = &p->next;
            continue;
        }
        *list = p->next;
        free(p);
        any = true;
    }
    return any;
}

bool fvm_loop_post_cancel(struct fvm_loop *loop, fvm_loop_fn fn, void *ctx)
{
    bool any = drop(&loop->taken, fn, ctx);
    pthread_mutex_lock(&loop->lock);
    any |= drop(&loop->head, fn, ctx);
    for (loop->tail = &loop->head; *loop->tail;)
        loop->tail = &(*loop->tail)->next;
    pthread_mutex_unlock(&loop->lock);
    return any;
}

int fvm_loop_post(struct fvm_loop *loop, fvm_loop_fn fn, void *ctx)
{
    struct post *p = malloc(sizeof(*p));
    if (!p)
        return FVM_ENOMEM;
    *p = (struct post){.fn = fn, .ctx = ctx};
    pthread_mutex_lock(&loop->lock);
    bool first = !loop->head;
    *loop->tail = p;
    loop->tail = &p->next;
    pthread_mutex_unlock(&loop->lock);
    if (first)
        wake(loop);
    return 0;
}

void fvm_loop_stop(struct fvm_loop *loop, int status)
{
    pthread_mutex_lock(&loop->lock);
    loop->status = status;
    pthread_mutex_unlock(&loop->lock);
    atomic_store(&loop->stopping, true);
    wake(loop);
}

/* --- the loop --- */

int fvm_loop_create(struct fvm_loop **ret_loop)
{
    struct fvm_loop *loop = calloc(1, sizeof(*loop));
    if (!loop)
        return FVM_ENOMEM;
    loop->tail = &loop->head;
    pthread_mutex_init(&loop->lock, NULL);
    loop->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    int r = loop->wake_fd < 0 ? -errno : sd_event_new(&loop->event);
    if (r >= 0)
        r = sd_event_add_io(loop->event, &loop->wake_source, loop->wake_fd, EPOLLIN, on_wake, loop);
    if (r < 0) {
        fvm_loop_destroy(&loop);
        return fvm_err_from_errno(-r);
    }
    *ret_loop = loop;
    return 0;
}

void fvm_loop_destroy(struct fvm_loop **loop_p)
{
    struct fvm_loop *loop = *loop_p;
    if (!loop)
        return;
    *loop_p = NULL;
    fvm_assert(loop->sources == 0); /* somebody forgot fvm_loop_io_remove or fvm_loop_timer_remove */
    while (loop->children) {
        struct child_watch *next = loop->children->next;
        child_watch_free(loop->children);
        loop->children = next;
    }
    sd_event_source_disable_unref(loop->wake_source);
    sd_event_unref(loop->event);
    if (loop->wake_fd >= 0)
        close(loop->wake_fd);
    while (loop->head) {
        struct post *next = loop->head->next;
        free(loop->head);
        loop->head = next;
    }
    pthread_mutex_destroy(&loop->lock);
    free(loop);
}

void fvm_loop_set_guard(struct fvm_loop *loop, fvm_loop_fn lock, fvm_loop_fn unlock, void *ctx)
{
    fvm_assert(!lock == !unlock);
    loop->guard_lock = lock;
    loop->guard_unlock = unlock;
    loop->guard_ctx = ctx;
}

int fvm_loop_turn(struct fvm_loop *loop, uint64_t timeout_ns)
{
    uint64_t usec = timeout_ns == UINT64_MAX ? UINT64_MAX : timeout_ns / 1000 + (timeout_ns % 1000 != 0);
    int r = sd_event_run(loop->event, usec);
    if (r == -EINTR)
        return 0;
    return r < 0 ? fvm_err_from_errno(-r) : r > 0;
}

int fvm_loop_run(struct fvm_loop *loop)
{
    while (!atomic_load(&loop->stopping)) {
        int r = fvm_loop_turn(loop, UINT64_MAX);
        if (r < 0)
            return r;
    }
    pthread_mutex_lock(&loop->lock);
    int status = loop->status;
    pthread_mutex_unlock(&loop->lock);
    atomic_store(&loop->stopping, false);
    return status;
}

/* --- descriptors --- */

static uint32_t to_epoll(unsigned events)
{
    return (events & FVM_LOOP_IN ? (uint32_t)EPOLLIN : 0) | (events & FVM_LOOP_OUT ? (uint32_t)EPOLLOUT : 0);
}

static int on_io(sd_event_source *source, int fd, uint32_t revents, void *ctx)
{
    (void)source;
    struct fvm_loop_io *io = ctx;
    struct fvm_loop *loop = io->loop;
    unsigned ev = (revents & EPOLLIN ? FVM_LOOP_IN : 0u) | (revents & EPOLLOUT ? FVM_LOOP_OUT : 0u) |
                  (revents & (EPOLLHUP | EPOLLRDHUP) ? FVM_LOOP_HUP : 0u) | (revents & EPOLLERR ? FVM_LOOP_ERR : 0u);
    struct guard held = guard_lock(loop);
    io->fn(io->ctx, fd, ev);
    guard_unlock(loop, held);
    return 0;
}

int fvm_loop_io_add(struct fvm_loop *loop, int fd, unsigned events, fvm_loop_io_fn fn, void *ctx,
                    struct fvm_loop_io **ret_io)
{
    struct fvm_loop_io *io = calloc(1, sizeof(*io));
    if (!io)
        return FVM_ENOMEM;
    *io = (struct fvm_loop_io){.loop = loop, .fn = fn, .ctx = ctx};
    int r = sd_event_add_io(loop->event, &io->source, fd, to_epoll(events), on_io, io);
    if (r < 0) {
        free(io);
        return r == -EPERM ? FVM_EUNSUPPORTED : fvm_err_from_errno(-r); /* EPERM: a regular file, always ready */
    }
    loop->sources++;
    *ret_io = io;
    return 0;
}

int fvm_loop_io_set(struct fvm_loop_io *io, unsigned events)
{
    int r = sd_event_source_set_io_events(io->source, to_epoll(events));
    return r < 0 ? fvm_err_from_errno(-r) : 0;
}

void fvm_loop_io_remove(struct fvm_loop_io **io_p)
{
    struct fvm_loop_io *io = *io_p;
    if (!io)
        return;
    *io_p = NULL;
    sd_event_source_disable_unref(io->source);
    io->loop->sources--;
    free(io);
}

/* --- timers --- */

static void on_timer(void *ctx, int fd, unsigned revents)
{
    (void)revents;
    struct fvm_loop_timer *timer = ctx;
    uint64_t count;
    if (read(fd, &count, sizeof(count)) != (ssize_t)sizeof(count))
        return; /* armed anew since it expired */

    pthread_mutex_lock(&timer->lock);
    bool due = timer->deadline_ns <= fvm_now_ns();
    if (due)
        timer->deadline_ns = UINT64_MAX;
    pthread_mutex_unlock(&timer->lock);
    if (due)
        timer->fn(timer->ctx); /* not due: armed for later between the read and here, the timerfd knows */
}

int fvm_loop_timer_add(struct fvm_loop *loop, fvm_loop_fn fn, void *ctx, struct fvm_loop_timer **ret_timer)
{
    struct fvm_loop_timer *timer = calloc(1, sizeof(*timer));
    if (!timer)
        return FVM_ENOMEM;
    *timer = (struct fvm_loop_timer){.loop = loop, .fn = fn, .ctx = ctx, .deadline_ns = UINT64_MAX};
    timer->fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
    if (timer->fd < 0) {
        int r = fvm_err_from_errno(errno);
        free(timer);
        return r;
    }
    int r = fvm_loop_io_add(loop, timer->fd, FVM_LOOP_IN, on_timer, timer, &timer->io);
    if (r < 0) {
        close(timer->fd);
        free(timer);
        return r;
    }
    pthread_mutex_init(&timer->lock, NULL);
    *ret_timer = timer;
    return 0;
}

void fvm_loop_timer_arm(struct fvm_loop_timer *timer, uint64_t deadline_ns)
{
    /* A timerfd's 0 means "disarm"; a time in the past fires at once. */
    uint64_t at = deadline_ns == UINT64_MAX ? 0 : FVM_MAX(deadline_ns, 1u);
    struct itimerspec spec = {.it_value = {.tv_sec = (time_t)(at / NS_PER_S), .tv_nsec = (long)(at % NS_PER_S)}};
    pthread_mutex_lock(&timer->lock);
    timer->deadline_ns = deadline_ns;
    int r = timerfd_settime(timer->fd, TFD_TIMER_ABSTIME, &spec, NULL);
    pthread_mutex_unlock(&timer->lock);
    fvm_assert(r == 0);
}

void fvm_loop_timer_remove(struct fvm_loop_timer **timer_p)
{
    struct fvm_loop_timer *timer = *timer_p;
    if (!timer)
        return;
    *timer_p = NULL;
    fvm_loop_io_remove(&timer->io);
    close(timer->fd);
    pthread_mutex_destroy(&timer->lock);
    free(timer);
}

/* --- signals and children: belong to the loop until it ends --- */

static int on_signal(sd_event_source *source, const struct signalfd_siginfo *si, void *ctx)
{
    (void)source;
    (void)si;
    struct signal_watch *watch = ctx;
    struct fvm_loop *loop = watch->loop;
    struct guard held = guard_lock(loop);
    watch->fn(watch->ctx);
    guard_unlock(loop, held);
    return 0;
}

int fvm_loop_signal_add(struct fvm_loop *loop, int signo, fvm_loop_fn fn, void *ctx)
{
    struct signal_watch *watch = malloc(sizeof(*watch));
    if (!watch)
        return FVM_ENOMEM;
    *watch = (struct signal_watch){.loop = loop, .fn = fn, .ctx = ctx};
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, signo);
    pthread_sigmask(SIG_BLOCK, &set, NULL);

    sd_event_source *source = NULL;
    int r = sd_event_add_signal(loop->event, &source, signo, on_signal, watch);
    if (r < 0) {
        free(watch);
        return fvm_err_from_errno(-r);
    }
    sd_event_source_set_destroy_callback(source, free);
    sd_event_source_set_floating(source, true);
    sd_event_source_unref(source);
    return 0;
}

static void child_watch_free(struct child_watch *watch)
{
    sd_event_source_disable_unref(watch->source);
    if (watch->pidfd >= 0)
        close(watch->pidfd);
    free(watch);
}

static int on_child(sd_event_source *source, int fd, uint32_t revents, void *ctx)
{
    (void)source;
    (void)fd;
    (void)revents;
    struct child_watch *watch = ctx;
    struct child_watch w = *watch;
    int status = 0;
    pid_t r;
    do
        r = waitpid(w.pid, &status, WNOHANG);
    while (r < 0 && errno == EINTR);
    if (r == 0)
        return 0; /* not yet */

    struct child_watch **at = &w.loop->children;
    while (*at != watch)
        at = &(*at)->next;
    *at = watch->next;
    child_watch_free(watch);
    struct guard held = guard_lock(w.loop);
    w.fn(w.ctx, w.pid, r < 0 ? 0 : status);
    guard_unlock(w.loop, held);
    return 0;
}

int fvm_loop_child_add(struct fvm_loop *loop, int pid, void (*fn)(void *ctx, int pid, int status), void *ctx)
{
    struct child_watch *watch = calloc(1, sizeof(*watch));
    if (!watch)
        return FVM_ENOMEM;
    *watch = (struct child_watch){.loop = loop, .fn = fn, .ctx = ctx, .pid = pid};
    watch->pidfd = (int)syscall(SYS_pidfd_open, pid, 0); /* works for a child that has ended already, too */
    int r = watch->pidfd < 0 ? -errno : 0;
    if (r == 0)
        r = sd_event_add_io(loop->event, &watch->source, watch->pidfd, EPOLLIN, on_child, watch);
    if (r < 0) {
        child_watch_free(watch);
        return fvm_err_from_errno(-r);
    }
    watch->next = loop->children;
    loop->children = watch;
    return 0;
}
