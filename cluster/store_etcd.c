/*
 * store_etcd.c - the cluster's store on etcd (three members or more on their own machines).
 *
 * Reads are etcd's linearizable ones, a swap is a transaction that compares the key's mod_revision, a lease is etcd's.
 *
 * The breaker: a daemon has one thread and asks the store ten times a second; it must not hang in a time-out each time
 * while etcd has no majority. After a call without an answer the store counts as away: calls fail at once, a thread of
 * its own looks every FVM_ETCD_PROBE_MS with a linearizable read whether it is back. A call that failed that way was
 * never sent.
 *
 * Invariant: what is returned as FVM_ECONFLICT was compared by etcd and changed nothing, and is the answer to the one
 * sending there was.
 */
#include "cluster/store_etcd.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/log.h"
#include "base/loop.h"

struct etcd_store {
    struct fvm_etcd_where where;
    pthread_mutex_t calls; /* http */
    struct fvm_etcd_http *http;
    pthread_mutex_t watches; /* watch */
    struct fvm_etcd_watch *watch;
    pthread_mutex_t lock; /* away, why, stop */
    pthread_cond_t wake;
    bool away, stop, probing;
    struct fvm_err why;
    uint64_t away_ns;
    pthread_t prober;
};

/* ---- the breaker ---- */

static bool look(struct etcd_store *s, struct fvm_etcd_http *http, struct fvm_err *err)
{
    char *body = fvm_etcd_json_range(&s->where, "/", false);
    struct fvm_etcd_body reply = {0};
    bool away = false;
    int rc = body ? fvm_etcd_http_post(http, FVM_ETCD_READ, "/v3/kv/range", body, &reply, &away, err) : FVM_ENOMEM;
    free(body);
    free(reply.data);
    return rc == 0;
}

static void *probe_main(void *arg)
{
    struct etcd_store *s = arg;
    struct fvm_etcd_http *http = NULL;
    pthread_mutex_lock(&s->lock);
    while (!s->stop) {
        struct timespec until;
        struct fvm_err err = {0};
        if (!s->away) {
            pthread_cond_wait(&s->wake, &s->lock);
            continue;
        }
        pthread_mutex_unlock(&s->lock);
        bool back = (http || fvm_etcd_http_create(&s->where, &http, &err) == 0) && look(s, http, &err);
        pthread_mutex_lock(&s->lock);
        if (back) {
            s->away = false;
            continue;
        }
        s->why = err;
        clock_gettime(CLOCK_MONOTONIC, &until);
        until.tv_nsec += FVM_ETCD_PROBE_MS * 1000000l;
        until.tv_sec += until.tv_nsec / 1000000000;
        until.tv_nsec %= 1000000000;
        while (!s->stop && pthread_cond_timedwait(&s->wake, &s->lock, &until) != ETIMEDOUT)
            ;
    }
    pthread_mutex_unlock(&s->lock);
    fvm_etcd_http_destroy(&http);
    return NULL;
}

static bool is_away(struct etcd_store *s, struct fvm_err *err)
{
    pthread_mutex_lock(&s->lock);
    bool away = s->away;
    if (away)
        fvm_err_set(err, s->why.code, 0, "cluster", "%.380s (away for %llu s; nothing was asked)", s->why.text,
                    (unsigned long long)((fvm_now_ns() - s->away_ns) / 1000000000));
    pthread_mutex_unlock(&s->lock);
    return away;
}

static void went_away(struct etcd_store *s, const struct fvm_err *why)
{
    pthread_mutex_lock(&s->lock);
    if (!s->away)
        s->away_ns = fvm_now_ns();
    s->away = s->probing;
    s->why = *why;
    pthread_cond_signal(&s->wake);
    pthread_mutex_unlock(&s->lock);
}

/* ---- a call ---- */

/* Takes the request's text. On failure *err says whether something may have happened. */
static int call(struct etcd_store *s, enum fvm_etcd_kind kind, const char *path, char *body,
                struct fvm_etcd_body *ret_reply, struct fvm_err *err)
{
    struct fvm_err why = {0};
    bool away = false;
    int rc = body ? 0 : fvm_err_set(&why, FVM_ENOMEM, 0, "cluster", "store: out of memory");
    if (!rc && is_away(s, &why))
        rc = why.code;
    if (!rc) {
        pthread_mutex_lock(&s->calls);
        rc = fvm_etcd_http_post(s->http, kind, path, body, ret_reply, &away, &why);
        pthread_mutex_unlock(&s->calls);
    }
    free(body);
    if (away)
        went_away(s, &why);
    if (rc && err)
        *err = why;
    return rc;
}

static int etcd_get(void *self, const char *key, struct fvm_store_item *ret_item, struct fvm_err *err)
{
    struct etcd_store *s = self;
    struct fvm_etcd_body reply = {0};
    struct fvm_store_items items = {0};
    uint64_t revision;
    int rc = call(s, FVM_ETCD_READ, "/v3/kv/range", fvm_etcd_json_range(&s->where, key, false), &reply, err);
    if (!rc)
        rc = fvm_etcd_json_take_range(&s->where, reply.data ? reply.data : "", reply.len, &items, &revision, err);
    free(reply.data);
    if (!rc && (items.count != 1 || strcmp(items.items[0].key, key)))
        rc = fvm_err_set(err, FVM_ENOENT, 0, "cluster", "store: no key %s", key);
    if (!rc) {
        *ret_item = items.items[0];
        items.count = 0;
    }
    fvm_store_items_fini(&items);
    return rc;
}

static int etcd_cas(void *self, const char *key, uint64_t expect, const char *value, size_t value_len, uint64_t lease,
                    uint64_t *ret_revision, struct fvm_err *err)
{
    struct etcd_store *s = self;
    struct fvm_etcd_body reply = {0};
    bool swapped = false;
    if (expect > INT64_MAX || lease > INT64_MAX)
        return fvm_err_set(err, expect > INT64_MAX ? FVM_ECONFLICT : FVM_ENOENT, 0, "cluster",
                           "store: %s: no such revision or lease", key);
    int rc = call(s, FVM_ETCD_SWAP, "/v3/kv/txn", fvm_etcd_json_swap(&s->where, key, expect, value, value_len, lease),
                  &reply, err);
    if (!rc)
        rc = fvm_etcd_json_take_swap(reply.data ? reply.data : "", reply.len, &swapped, ret_revision, err);
    free(reply.data);
    if (!rc && !swapped)
        rc = fvm_err_set(err, FVM_ECONFLICT, 0, "cluster", "store: %s is not at revision %llu any more", key,
                         (unsigned long long)expect);
    return rc;
}

/* etcd keeps a lease alive for the time that was granted, whatever ttl_ms is later; it has a least one of about 2 s. */
static int etcd_lease(void *self, uint64_t *lease, uint64_t ttl_ms, struct fvm_err *err)
{
    struct etcd_store *s = self;
    struct fvm_etcd_body reply = {0};
    uint64_t id = 0, ttl = 0, seconds = (ttl_ms + 999) / 1000;
    const char *path = !*lease ? "/v3/lease/grant" : ttl_ms ? "/v3/lease/keepalive" : "/v3/lease/revoke";
    if (*lease > INT64_MAX)
        return fvm_err_set(err, FVM_ENOENT, 0, "cluster", "store: no such lease");
    int rc = call(s, FVM_ETCD_READ, path, fvm_etcd_json_lease(*lease, *lease ? 0 : seconds), &reply, err);
    if (!rc)
        rc = fvm_etcd_json_take_lease(reply.data ? reply.data : "", reply.len, &id, &ttl, err);
    free(reply.data);
    if (rc || (*lease && !ttl_ms))
        return rc;
    if (!id || !ttl)
        return fvm_err_set(err, *lease ? FVM_ENOENT : FVM_EPROTO, 0, "cluster", "store: lease %llu has expired",
                           (unsigned long long)*lease);
    *lease = id;
    return 0;
}

static int etcd_list(void *self, const char *prefix, struct fvm_store_items *ret_items, uint64_t *ret_revision,
                     struct fvm_err *err)
{
    struct etcd_store *s = self;
    struct fvm_etcd_body reply = {0};
    int rc = call(s, FVM_ETCD_READ, "/v3/kv/range", fvm_etcd_json_range(&s->where, prefix, true), &reply, err);
    if (!rc)
        rc = fvm_etcd_json_take_range(&s->where, reply.data ? reply.data : "", reply.len, ret_items, ret_revision, err);
    free(reply.data);
    return rc;
}

static int etcd_watch(void *self, const char *prefix, uint64_t *since, unsigned timeout_ms,
                      struct fvm_store_items *ret_items, struct fvm_err *err)
{
    struct etcd_store *s = self;
    int rc = 0;
    pthread_mutex_lock(&s->watches);
    if (!s->watch)
        rc = fvm_etcd_watch_create(&s->where, &s->watch, err);
    if (!rc)
        rc = fvm_etcd_watch_take(s->watch, prefix, since, timeout_ms, ret_items, err);
    pthread_mutex_unlock(&s->watches);
    return rc;
}

/* ---- life ---- */

static void etcd_close(void *self)
{
    struct etcd_store *s = self;
    if (s->probing) {
        pthread_mutex_lock(&s->lock);
        s->stop = true;
        pthread_cond_signal(&s->wake);
        pthread_mutex_unlock(&s->lock);
        pthread_join(s->prober, NULL);
    }
    fvm_etcd_watch_destroy(&s->watch);
    fvm_etcd_http_destroy(&s->http);
    pthread_cond_destroy(&s->wake);
    pthread_mutex_destroy(&s->lock);
    pthread_mutex_destroy(&s->watches);
    pthread_mutex_destroy(&s->calls);
    free(s);
}

static int start_prober(struct etcd_store *s, struct fvm_err *err)
{
    sigset_t all, old;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    int sys = pthread_create(&s->prober, NULL, probe_main, s);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    s->probing = sys == 0;
    return sys ? fvm_err_set(err, fvm_err_from_errno(sys), sys, "cluster", "store: cannot start a thread: %s",
                             strerror(sys))
               : 0;
}

/* It must answer now: a wrong address or certificate is told to whoever opens it, not found out in a blackout. */
static int etcd_open(const char *where, void **ret_self, struct fvm_err *err)
{
    struct fvm_err why = {0};
    struct etcd_store *s = calloc(1, sizeof(*s));
    if (!s)
        return fvm_err_set(err, FVM_ENOMEM, 0, "cluster", "store: out of memory");
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_mutex_init(&s->calls, NULL);
    pthread_mutex_init(&s->watches, NULL);
    pthread_mutex_init(&s->lock, NULL);
    pthread_cond_init(&s->wake, &attr);
    pthread_condattr_destroy(&attr);
    int rc = fvm_etcd_where_parse(where, &s->where, err);
    if (!rc)
        rc = fvm_etcd_http_create(&s->where, &s->http, err);
    if (!rc && !look(s, s->http, &why)) { /* also warms the connection: the first swap may be in a blackout */
        rc = why.code;
        if (err)
            *err = why;
    }
    if (!rc)
        rc = start_prober(s, err);
    if (rc)
        etcd_close(s);
    else
        *ret_self = s;
    return rc;
}

const struct fvm_store_ops fvm_store_etcd_ops = {
    .scheme = "etcd",
    .open = etcd_open,
    .close = etcd_close,
    .get = etcd_get,
    .cas = etcd_cas,
    .lease = etcd_lease,
    .list = etcd_list,
    .watch = etcd_watch,
};
