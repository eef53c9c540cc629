/*
 * store.h - where a cluster keeps what its nodes must agree on: five calls (get, cas, lease, watch, list), many
 * backends.
 *
 * The model is etcd's, because a real cluster uses etcd and one machine uses SQLite and nobody above may notice:
 *  - a key has a value and a revision; one counter for the whole store grows by one with every change, so a key's
 *    revision is also the time of its last change. Revision 0 means "no such key".
 *  - every change is a compare-and-swap on the key's revision. There is no unconditional put, so nobody overwrites
 *    what he has not read. Reads and swaps are linearizable.
 *  - a key may hang on a lease: when the lease is not renewed in time the key disappears, as a change of its own.
 *  - a watch says what changed under a prefix after a revision, deletions included.
 *
 * After a failure other than FVM_ECONFLICT the fate of a swap is unknown: read again, never guess (DESIGN 5).
 *
 * Thread: a store may be shared by threads; calls serialize inside, a waiting watch holds up nobody. Calls block for a
 * disk's or a network's time and at most FVM_STORE_BUSY_MS.
 */
#ifndef FVM_CLUSTER_STORE_H
#define FVM_CLUSTER_STORE_H

#include "base/err.h"

enum {
    FVM_STORE_KEY_MAX = 512,
    FVM_STORE_VALUE_MAX = 1 << 20,
    FVM_STORE_BUSY_MS = 5000,
};

struct fvm_store;

struct fvm_store_item {
    char *key;
    char *value; /* NUL-terminated behind value_len; NULL: the key was deleted (watch only) */
    size_t value_len;
    uint64_t revision; /* of the last change */
    uint64_t lease;    /* 0: none */
};

struct fvm_store_items {
    struct fvm_store_item *items; /* by key; a watch: by revision */
    size_t count;
};

/**
 * fvm_store_open - "sqlite:/path/file.db" (created if missing) or "etcd://HOST:PORT,...[/PREFIX]?ca=F&cert=F&key=F"
 * (must answer now). FVM_EUNSUPPORTED for another scheme, or a file on a network file system: SQLite's locks do not hold there.
 */
int fvm_store_open(const char *url, struct fvm_store **ret_store, struct fvm_err *err);
void fvm_store_close(struct fvm_store **store_p);
const char *fvm_store_url(const struct fvm_store *store);

/** FVM_ENOENT: no such key; ret_item is then untouched. */
int fvm_store_get(struct fvm_store *store, const char *key, struct fvm_store_item *ret_item, struct fvm_err *err);

/**
 * fvm_store_cas - change one key if its revision still is `expect` (0: it must not exist).
 * @value  NULL deletes.
 * @lease  the key lives as long as this lease; 0: for ever.
 * @ret_revision  may be NULL.
 * Returns 0, FVM_ECONFLICT (nothing changed), FVM_ENOENT (no such lease), or a failure of unknown outcome.
 */
int fvm_store_cas(struct fvm_store *store, const char *key, uint64_t expect, const char *value, size_t value_len,
                  uint64_t lease, uint64_t *ret_revision, struct fvm_err *err);

/**
 * fvm_store_lease - *lease 0: a new one, its id in *lease; else keep it alive for another ttl_ms. ttl_ms 0 ends it,
 * with its keys. FVM_ENOENT: it expired; what hung on it is gone.
 */
int fvm_store_lease(struct fvm_store *store, uint64_t *lease, uint64_t ttl_ms, struct fvm_err *err);

/** Every key that starts with `prefix`; ret_revision (may be NULL): the store's revision of this snapshot, to watch
 * from. */
int fvm_store_list(struct fvm_store *store, const char *prefix, struct fvm_store_items *ret_items,
                   uint64_t *ret_revision, struct fvm_err *err);

/**
 * fvm_store_watch - wait for changes under `prefix` later than revision *since.
 * @timeout_ms  0: look once. Each changed key comes once, in its latest state; *since is moved past all of them.
 * Returns 0 (ret_items->count may be 0 after a time-out), FVM_ESTATE when *since is too old to tell (list again).
 */
int fvm_store_watch(struct fvm_store *store, const char *prefix, uint64_t *since, unsigned timeout_ms,
                    struct fvm_store_items *ret_items, struct fvm_err *err);

void fvm_store_item_fini(struct fvm_store_item *item);
void fvm_store_items_fini(struct fvm_store_items *items);

/* ---- for backends ---- */
struct fvm_store_ops {
    const char *scheme;
    int (*open)(const char *where, void **ret_self, struct fvm_err *err);
    void (*close)(void *self);
    int (*get)(void *self, const char *key, struct fvm_store_item *ret_item, struct fvm_err *err);
    int (*cas)(void *self, const char *key, uint64_t expect, const char *value, size_t value_len, uint64_t lease,
               uint64_t *ret_revision, struct fvm_err *err);
    int (*lease)(void *self, uint64_t *lease, uint64_t ttl_ms, struct fvm_err *err);
    int (*list)(void *self, const char *prefix, struct fvm_store_items *ret_items, uint64_t *ret_revision,
                struct fvm_err *err);
    int (*watch)(void *self, const char *prefix, uint64_t *since, unsigned timeout_ms,
                 struct fvm_store_items *ret_items, struct fvm_err *err);
};
extern const struct fvm_store_ops fvm_store_sqlite_ops, fvm_store_etcd_ops;
/** Append one item (copies); false: out of memory. `value` NULL: deleted. */
bool fvm_store_items_add(struct fvm_store_items *items, const char *key, const char *value, size_t value_len,
                         uint64_t revision, uint64_t lease);

#endif
