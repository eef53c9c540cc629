/*
 * store.c - the front door of the cluster store: picks the backend by the URL's scheme and checks what every backend
 * would have to check. Knows no backend's details.
 *
 * Invariant: a backend never sees a key or a value out of bounds.
 */
#include "cluster/store.h"

#include <stdlib.h>
#include <string.h>

struct fvm_store {
    const struct fvm_store_ops *ops;
    void *self;
    char *url;
};

static const struct fvm_store_ops *const backends[] = {&fvm_store_sqlite_ops, &fvm_store_etcd_ops};

int fvm_store_open(const char *url, struct fvm_store **ret_store, struct fvm_err *err)
{
    const char *colon = strchr(url, ':');
    const struct fvm_store_ops *ops = NULL;
    for (size_t i = 0; colon && i < FVM_ARRAY_SIZE(backends); i++) {
        size_t n = strlen(backends[i]->scheme);
        if (n == (size_t)(colon - url) && memcmp(url, backends[i]->scheme, n) == 0)
            ops = backends[i];
    }
    if (!ops || !colon[1])
        return fvm_err_set(err, FVM_EUNSUPPORTED, 0, "cluster", "store \"%.200s\": say sqlite:/path/to/file.db or etcd://HOST:PORT,...", url);
    struct fvm_store *store = calloc(1, sizeof(*store));
    if (!store || !(store->url = strdup(url))) {
        free(store);
        return fvm_err_set(err, FVM_ENOMEM, 0, "cluster", "store: out of memory");
    }
    store->ops = ops;
    int rc = ops->open(colon + 1, &store->self, err);
    if (rc) {
        free(store->url);
        free(store);
        return rc;
    }
    *ret_store = store;
    return 0;
}

void fvm_store_close(struct fvm_store **store_p)
{
    struct fvm_store *store = *store_p;
    if (!store)
        return;
    *store_p = NULL;
    store->ops->close(store->self);
    free(store->url);
    free(store);
}

const char *fvm_store_url(const struct fvm_store *store) { return store->url; }

/* Keys are paths of printable characters: they appear in logs and on the operator's screen. */
static int check_key(const char *key, bool prefix, struct fvm_err *err)
{
    size_t n = strlen(key);
    if ((!n && !prefix) || n > FVM_STORE_KEY_MAX)
        return fvm_err_set(err, FVM_EINVAL, 0, "cluster", "store: key of %zu bytes; 1 to %d are possible", n,
                           FVM_STORE_KEY_MAX);
    for (size_t i = 0; i < n; i++)
        if (key[i] <= ' ' || key[i] > '~')
            return fvm_err_set(err, FVM_EINVAL, 0, "cluster", "store: byte 0x%02x in a key; printable ASCII only",
                               (unsigned)(unsigned char)key[i]);
    return 0;
}

int fvm_store_get(struct fvm_store *store, const char *key, struct fvm_store_item *ret_item, struct fvm_err *err)
{
    int rc = check_key(key, false, err);
    return rc ? rc : store->ops->get(store->self, key, ret_item, err);
}

int fvm_store_cas(struct fvm_store *store, const char *key, uint64_t expect, const char *value, size_t value_len,
                  uint64_t lease, uint64_t *ret_revision, struct fvm_err *err)
{
    int rc = check_key(key, false, err);
    if (rc)
        return rc;
    if (value && value_len > FVM_STORE_VALUE_MAX)
        return fvm_err_set(err, FVM_EINVAL, 0, "cluster", "store: value of %zu bytes; at most %d are possible",
                           value_len, FVM_STORE_VALUE_MAX);
    uint64_t revision = 0;
    rc = store->ops->cas(store->self, key, expect, value, value ? value_len : 0, lease, &revision, err);
    if (!rc && ret_revision)
        *ret_revision = revision;
    return rc;
}

int fvm_store_lease(struct fvm_store *store, uint64_t *lease, uint64_t ttl_ms, struct fvm_err *err)
{
    if (!*lease && !ttl_ms)
        return fvm_err_set(err, FVM_EINVAL, 0, "cluster", "store: a new lease needs a time to live");
    return store->ops->lease(store->self, lease, ttl_ms, err);
}

int fvm_store_list(struct fvm_store *store, const char *prefix, struct fvm_store_items *ret_items,
                   uint64_t *ret_revision, struct fvm_err *err)
{
    struct fvm_store_items items = {0};
    uint64_t revision = 0;
    int rc = check_key(prefix, true, err);
    if (!rc)
        rc = store->ops->list(store->self, prefix, &items, &revision, err);
    if (rc) {
        fvm_store_items_fini(&items);
        return rc;
    }
    *ret_items = items;
    if (ret_revision)
        *ret_revision = revision;
    return 0;
}

int fvm_store_watch(struct fvm_store *store, const char *prefix, uint64_t *since, unsigned timeout_ms,
                    struct fvm_store_items *ret_items, struct fvm_err *err)
{
    struct fvm_store_items items = {0};
    int rc = check_key(prefix, true, err);
    if (!rc)
        rc = store->ops->watch(store->self, prefix, since, timeout_ms, &items, err);
    if (rc) {
        fvm_store_items_fini(&items);
        return rc;
    }
    *ret_items = items;
    return 0;
}

void fvm_store_item_fini(struct fvm_store_item *item)
{
    free(item->key);
    free(item->value);
    *item = (struct fvm_store_item){0};
}

void fvm_store_items_fini(struct fvm_store_items *items)
{
    for (size_t i = 0; i < items->count; i++)
        fvm_store_item_fini(&items->items[i]);
    free(items->items);
    *items = (struct fvm_store_items){0};
}

bool fvm_store_items_add(struct fvm_store_items *items, const char *key, const char *value, size_t value_len,
                         uint64_t revision, uint64_t lease)
{
    struct fvm_store_item *grown = realloc(items->items, (items->count + 1) * sizeof(*grown));
    if (!grown)
        return false;
    items->items = grown;
    struct fvm_store_item item = {.key = strdup(key), .value_len = value_len, .revision = revision, .lease = lease};
    if (value && (item.value = malloc(value_len + 1))) {
        memcpy(item.value, value, value_len);
        item.value[value_len] = 0;
    }
    if (!item.key || (value && !item.value)) {
        fvm_store_item_fini(&item);
        return false;
    }
    items->items[items->count++] = item;
    return true;
}
