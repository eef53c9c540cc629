/*
 * store_etcd_watch.c - a watch is a stream that etcd keeps open; a thread reads it into a queue, and a caller takes
 * from the queue what is there. So a look costs nothing, and a caller that looks ten times a second sends nothing.
 *
 *   caller: take(prefix, since) --- same stream? ---> queue, condition variable
 *   thread: POST /v3/watch from revision since+1 -> lines -> events -> queue; connection lost: again from the last one
 *
 * Invariant: the queue holds every change after `since` in order, or `lost` says that there is a gap (too far behind,
 * compacted) and the caller is told to list again.
 */
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/log.h"
#include "base/loop.h"
#include "cluster/store_etcd.h"

struct fvm_etcd_watch {
    struct fvm_etcd_where where;
    struct fvm_etcd_http *http; /* the thread's */
    pthread_t thread;
    pthread_mutex_t lock; /* all below */
    pthread_cond_t changed;
    bool running, stop;
    char prefix[FVM_STORE_KEY_MAX + 1];
    uint64_t since; /* the last revision that was taken */
    uint64_t next;  /* the stream's next revision */
    bool lost;      /* there is a gap */
    int failure;    /* why the stream cannot be opened; 0: it is, or was a moment ago */
    struct fvm_err why;
    struct fvm_store_items queue;
};

/* On the thread. What was put into the queue is the queue's. */
static void enqueue(struct fvm_etcd_watch *w, struct fvm_etcd_event *e)
{
    struct fvm_store_items *q = &w->queue;
    struct fvm_store_item *grown = q->count + e->items.count <= FVM_ETCD_QUEUE_MAX
                                       ? realloc(q->items, (q->count + e->items.count) * sizeof(*grown))
                                       : NULL;
    if (!grown) {
        w->lost = true;
        return;
    }
    q->items = grown;
    memcpy(q->items + q->count, e->items.items, e->items.count * sizeof(*grown));
    q->count += e->items.count;
    e->items.count = 0;
}

static bool on_line(void *ctx, const char *data, size_t len)
{
    struct fvm_etcd_watch *w = ctx;
    struct fvm_etcd_event e = {0};
    struct fvm_err err = {0};
    int rc = fvm_etcd_json_take_watch(&w->where, data, len, &e, &err);
    pthread_mutex_lock(&w->lock);
    if (rc == FVM_ESTATE || e.compacted)
        w->lost = true;
    w->failure = rc;
    w->why = err;
    if (!rc && e.items.count) {
        w->next = FVM_MAX(w->next, e.items.items[e.items.count - 1].revision + 1);
        enqueue(w, &e);
    } else if (!rc && !e.created && !e.cancelled) { /* progress: nothing of ours up to here */
        w->next = FVM_MAX(w->next, e.revision + 1);
    }
    bool on = !rc && !e.cancelled && !w->lost && !w->stop;
    pthread_cond_broadcast(&w->changed);
    pthread_mutex_unlock(&w->lock);
    fvm_store_items_fini(&e.items);
    return on;
}

static void nap(struct fvm_etcd_watch *w, unsigned ms)
{
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_nsec += ms * 1000000l;
    until.tv_sec += until.tv_nsec / 1000000000;
    until.tv_nsec %= 1000000000;
    while (!w->stop && pthread_cond_timedwait(&w->changed, &w->lock, &until) != ETIMEDOUT)
        ;
}

static void *watch_main(void *arg)
{
    struct fvm_etcd_watch *w = arg;
    pthread_mutex_lock(&w->lock);
    while (!w->stop && !w->lost) {
        char *body = fvm_etcd_json_watch(&w->where, w->prefix, w->next);
        struct fvm_err err = {0};
        pthread_mutex_unlock(&w->lock);
        int rc = body ? fvm_etcd_http_stream(w->http, "/v3/watch", body, on_line, w, &w->stop, &err) : FVM_ENOMEM;
        free(body);
        pthread_mutex_lock(&w->lock);
        if (w->stop || w->lost)
            break;
        if (!w->failure) {
            w->failure = rc;
            w->why = err;
        }
        pthread_cond_broadcast(&w->changed);
        nap(w, FVM_ETCD_PROBE_MS);
    }
    pthread_mutex_unlock(&w->lock);
    return NULL;
}

int fvm_etcd_watch_create(const struct fvm_etcd_where *where, struct fvm_etcd_watch **ret, struct fvm_err *err)
{
    struct fvm_etcd_watch *w = calloc(1, sizeof(*w));
    if (!w)
        return fvm_err_set(err, FVM_ENOMEM, 0, "cluster", "store: out of memory");
    w->where = *where;
    int rc = fvm_etcd_http_create(where, &w->http, err);
    if (rc) {
        free(w);
        return rc;
    }
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_mutex_init(&w->lock, NULL);
    pthread_cond_init(&w->changed, &attr);
    pthread_condattr_destroy(&attr);
    *ret = w;
    return 0;
}

static void halt(struct fvm_etcd_watch *w)
{
    if (!w->running)
        return;
    pthread_mutex_lock(&w->lock);
    __atomic_store_n(&w->stop, true, __ATOMIC_RELEASE);
    pthread_cond_broadcast(&w->changed);
    pthread_mutex_unlock(&w->lock);
    fvm_etcd_http_wake(w->http);
    pthread_join(w->thread, NULL);
    w->running = w->stop = false;
    fvm_store_items_fini(&w->queue);
}

void fvm_etcd_watch_destroy(struct fvm_etcd_watch **watch_p)
{
    struct fvm_etcd_watch *w = *watch_p;
    *watch_p = NULL;
    if (!w)
        return;
    halt(w);
    fvm_etcd_http_destroy(&w->http);
    pthread_cond_destroy(&w->changed);
    pthread_mutex_destroy(&w->lock);
    free(w);
}

static int start(struct fvm_etcd_watch *w, const char *prefix, uint64_t since, struct fvm_err *err)
{
    sigset_t all, old;
    memcpy(w->prefix, prefix, strlen(prefix) + 1); /* store.c has checked its length */
    w->since = since;
    w->next = since + 1;
    w->lost = false;
    w->failure = 0;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    int sys = pthread_create(&w->thread, NULL, watch_main, w);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    if (sys)
        return fvm_err_set(err, fvm_err_from_errno(sys), sys, "cluster", "store: cannot start a thread: %s",
                           strerror(sys));
    w->running = true;
    return 0;
}

/* What is queued, each key once in its latest state, by revision. */
static void take_queue(struct fvm_etcd_watch *w, struct fvm_store_items *ret_items)
{
    struct fvm_store_items *q = &w->queue;
    size_t kept = 0;
    w->since = q->items[q->count - 1].revision;
    for (size_t i = 0; i < q->count; i++) {
        bool newer = false;
        for (size_t j = i + 1; j < q->count && !newer; j++)
            newer = strcmp(q->items[i].key, q->items[j].key) == 0;
        if (newer)
            fvm_store_item_fini(&q->items[i]);
        else
            q->items[kept++] = q->items[i];
    }
    q->count = kept;
    *ret_items = *q;
    *q = (struct fvm_store_items){0};
}

/* Waits for news; 0, or what keeps them away. A stream that broke a moment ago and will be opened again is no failure
 * as long as the caller has time. */
static int wait_for_news(struct fvm_etcd_watch *w, unsigned timeout_ms, struct fvm_err *err)
{
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_sec += timeout_ms / 1000;
    until.tv_nsec += timeout_ms % 1000 * 1000000l;
    until.tv_sec += until.tv_nsec / 1000000000;
    until.tv_nsec %= 1000000000;
    while (!w->queue.count && !w->lost && timeout_ms &&
           pthread_cond_timedwait(&w->changed, &w->lock, &until) != ETIMEDOUT)
        ;
    if (w->lost)
        return fvm_err_set(err, FVM_ESTATE, 0, "cluster", "store: revision %llu is too old to watch from, list again",
                           (unsigned long long)w->since);
    if (w->queue.count || !w->failure)
        return 0;
    if (err)
        *err = w->why;
    return w->failure;
}

int fvm_etcd_watch_take(struct fvm_etcd_watch *w, const char *prefix, uint64_t *since, unsigned timeout_ms,
                        struct fvm_store_items *ret_items, struct fvm_err *err)
{
    int rc = 0;
    if (!w->running || strcmp(w->prefix, prefix) != 0 || w->since != *since) {
        halt(w);
        rc = start(w, prefix, *since, err);
    }
    if (rc)
        return rc;
    pthread_mutex_lock(&w->lock);
    rc = wait_for_news(w, timeout_ms, err);
    if (!rc && w->queue.count) {
        take_queue(w, ret_items);
        *since = w->since;
    }
    pthread_mutex_unlock(&w->lock);
    if (rc == FVM_ESTATE)
        halt(w);
    return rc;
}
