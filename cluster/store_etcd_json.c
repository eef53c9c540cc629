/*
 * store_etcd_json.c - what is said to etcd's JSON gateway, and what it answers. Pure: text in, text or structs out.
 *
 * A reply comes from another machine and is checked like a stranger's: types, numbers that are numbers, base64 that is
 * base64, keys that start with our prefix and fit. tests/fuzz/etcd_reply.c feeds it garbage.
 *
 * Invariant: a key that leaves here for a caller is one that fvm_store_cas would accept.
 */
#include <jansson.h>
#include <sodium.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cluster/store_etcd.h"

enum { FLAGS = JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL, KEY_BYTES_MAX = 64 << 10 };

/* ---- requests ---- */

static char *to_base64(const void *data, size_t len)
{
    size_t size = sodium_base64_ENCODED_LEN(len, sodium_base64_VARIANT_ORIGINAL);
    char *text = malloc(size);
    if (text)
        sodium_bin2base64(text, size, data, len, sodium_base64_VARIANT_ORIGINAL);
    return text;
}

static FVM_PRINTF(1, 2) char *text_of(const char *fmt, ...)
{
    char *out = NULL;
    va_list ap;
    va_start(ap, fmt);
    if (vasprintf(&out, fmt, ap) < 0)
        out = NULL;
    va_end(ap);
    return out;
}

/* The key as etcd has it, or with `end` the first key behind all that start with it; base64. */
static char *whole_key(const struct fvm_etcd_where *where, const char *key, bool end)
{
    char text[FVM_ETCD_PREFIX_MAX + FVM_STORE_KEY_MAX + 2];
    int n = snprintf(text, sizeof(text), "%s%s", where->prefix, key);
    if (n <= 0) /* everything: from "\0" to "\0" */
        return to_base64("", 1);
    if (end)
        text[n - 1]++; /* printable ASCII: never overflows */
    return to_base64(text, (size_t)n);
}

char *fvm_etcd_json_range(const struct fvm_etcd_where *where, const char *key, bool prefix)
{
    char *from = whole_key(where, key, false), *to = prefix ? whole_key(where, key, true) : NULL, *out = NULL;
    if (from && (to || !prefix))
        out = text_of("{\"key\":\"%s\"%s%s%s}", from, prefix ? ",\"range_end\":\"" : "", prefix ? to : "",
                      prefix ? "\"" : "");
    free(from);
    free(to);
    return out;
}

char *fvm_etcd_json_swap(const struct fvm_etcd_where *where, const char *key, uint64_t expect, const char *value,
                         size_t value_len, uint64_t lease)
{
    char *k = whole_key(where, key, false), *v = value ? to_base64(value, value_len) : NULL, *op = NULL, *out = NULL;
    if (value && v)
        op = text_of("{\"request_put\":{\"key\":\"%s\",\"value\":\"%s\",\"lease\":\"%llu\"}}", k ? k : "", v,
                     (unsigned long long)lease);
    else if (!value)
        op = expect ? text_of("{\"request_delete_range\":{\"key\":\"%s\"}}", k ? k : "") : strdup("");
    if (k && op)
        out =
            text_of("{\"compare\":[{\"key\":\"%s\",\"target\":\"MOD\",\"result\":\"EQUAL\",\"mod_revision\":\"%llu\"}],"
                    "\"success\":[%s]}",
                    k, (unsigned long long)expect, op);
    free(k);
    free(v);
    free(op);
    return out;
}

char *fvm_etcd_json_lease(uint64_t lease, uint64_t ttl_s)
{
    return ttl_s ? text_of("{\"TTL\":\"%llu\"}", (unsigned long long)ttl_s)
                 : text_of("{\"ID\":\"%llu\"}", (unsigned long long)lease);
}

char *fvm_etcd_json_watch(const struct fvm_etcd_where *where, const char *prefix, uint64_t start_revision)
{
    char *from = whole_key(where, prefix, false), *to = whole_key(where, prefix, true), *out = NULL;
    if (from && to)
        out = text_of("{\"create_request\":{\"key\":\"%s\",\"range_end\":\"%s\",\"start_revision\":\"%llu\","
                      "\"progress_notify\":true}}",
                      from, to, (unsigned long long)start_revision);
    free(from);
    free(to);
    return out;
}

/* ---- replies ---- */

static int strange(struct fvm_err *err, const char *what)
{
    return fvm_err_set(err, FVM_EPROTO, 0, "cluster",
                       "store: etcd's answer makes no sense (%s): is it etcd 3.4 or newer that listens there?", what);
}

/* An int64 as etcd writes it; missing is 0. False: something else. */
static bool number(const json_t *object, const char *name, uint64_t *ret)
{
    const json_t *v = json_object_get(object, name);
    *ret = 0;
    if (!v)
        return true;
    if (json_is_integer(v)) {
        *ret = (uint64_t)json_integer_value(v);
        return json_integer_value(v) >= 0;
    }
    const char *text = json_string_value(v);
    size_t n = text ? strlen(text) : 0;
    if (!n || n > 19 || strspn(text, "0123456789") != n)
        return false;
    *ret = strtoull(text, NULL, 10);
    return *ret <= INT64_MAX;
}

/* Missing is empty. NULL: not base64, or longer than `max`. */
static char *bytes(const json_t *object, const char *name, size_t max, size_t *ret_len)
{
    const json_t *v = json_object_get(object, name);
    const char *text = v ? json_string_value(v) : "";
    size_t n = v ? json_string_length(v) : 0;
    if (!text || n > (max + 2) / 3 * 4 + 4)
        return NULL;
    char *out = malloc(n + 1);
    const char *end = NULL;
    if (!out ||
        sodium_base642bin((unsigned char *)out, n + 1, text, n, NULL, ret_len, &end, sodium_base64_VARIANT_ORIGINAL) !=
            0 ||
        end != text + n || *ret_len > max) {
        free(out);
        return NULL;
    }
    out[*ret_len] = 0;
    return out;
}

/* A key below our prefix that no node can have written (somebody's etcdctl) comes back as "" and is passed over. */
static int take_key(const struct fvm_etcd_where *where, const json_t *kv, char key[FVM_STORE_KEY_MAX + 1],
                    struct fvm_err *err)
{
    size_t len = 0, skip = strlen(where->prefix);
    char *text = bytes(kv, "key", KEY_BYTES_MAX, &len);
    bool ours = text && len > skip && memcmp(text, where->prefix, skip) == 0, good = ours;
    good = good && len - skip <= FVM_STORE_KEY_MAX;
    for (size_t i = skip; good && i < len; i++)
        good = text[i] > ' ' && text[i] <= '~';
    key[0] = 0;
    if (good)
        memcpy(key, text + skip, len - skip + 1);
    free(text);
    return ours ? 0 : strange(err, "a key that is not ours");
}

static int take_kv(const struct fvm_etcd_where *where, const json_t *kv, bool deleted, struct fvm_store_items *items,
                   struct fvm_err *err)
{
    char key[FVM_STORE_KEY_MAX + 1];
    uint64_t revision, lease;
    size_t len = 0;
    int rc = take_key(where, kv, key, err);
    if (rc || !key[0])
        return rc;
    if (!number(kv, "mod_revision", &revision) || !number(kv, "lease", &lease) || !revision)
        return strange(err, "a key's revision");
    char *value = deleted ? NULL : bytes(kv, "value", FVM_STORE_VALUE_MAX, &len);
    if (!deleted && !value)
        return strange(err, "a key's value");
    if (!fvm_store_items_add(items, key, value, len, revision, deleted ? 0 : lease))
        rc = fvm_err_set(err, FVM_ENOMEM, 0, "cluster", "store: out of memory");
    free(value);
    return rc;
}

static json_t *load(const char *body, size_t len)
{
    json_t *root = json_loadb(body, len, FLAGS, NULL);
    if (root && !json_is_object(root)) {
        json_decref(root);
        root = NULL;
    }
    return root;
}

static bool header_revision(const json_t *reply, uint64_t *ret)
{
    return number(json_object_get(reply, "header"), "revision", ret) && *ret;
}

int fvm_etcd_json_take_range(const struct fvm_etcd_where *where, const char *body, size_t len,
                             struct fvm_store_items *items, uint64_t *ret_revision, struct fvm_err *err)
{
    json_t *root = load(body, len), *kvs = json_object_get(root, "kvs"), *kv;
    size_t i;
    int rc = 0;
    if (!header_revision(root, ret_revision) || (kvs && !json_is_array(kvs)) ||
        json_is_true(json_object_get(root, "more")))
        rc = strange(err, "a list");
    if (!rc && kvs)
        json_array_foreach(kvs, i, kv) if (!rc) rc = take_kv(where, kv, false, items, err);
    json_decref(root);
    return rc;
}

int fvm_etcd_json_take_swap(const char *body, size_t len, bool *ret_swapped, uint64_t *ret_revision,
                            struct fvm_err *err)
{
    json_t *root = load(body, len), *yes = json_object_get(root, "succeeded");
    int rc = !header_revision(root, ret_revision) || (yes && !json_is_boolean(yes)) ? strange(err, "a swap") : 0;
    *ret_swapped = json_is_true(yes);
    json_decref(root);
    return rc;
}

int fvm_etcd_json_take_lease(const char *body, size_t len, uint64_t *ret_lease, uint64_t *ret_ttl_s,
                             struct fvm_err *err)
{
    json_t *root = load(body, len), *result = json_object_get(root, "result");
    const json_t *said = result ? result : root;
    uint64_t revision;
    int rc = 0;
    if (!header_revision(said, &revision) || !number(said, "ID", ret_lease) || !number(said, "TTL", ret_ttl_s))
        rc = strange(err, "a lease");
    json_decref(root);
    return rc;
}

static int take_events(const struct fvm_etcd_where *where, const json_t *list, struct fvm_store_items *items,
                       struct fvm_err *err)
{
    const json_t *event;
    size_t i;
    int rc = 0;
    json_array_foreach(list, i, event)
    {
        const json_t *type = json_object_get(event, "type");
        bool deleted = type && json_string_value(type) && strcmp(json_string_value(type), "DELETE") == 0;
        if (!rc)
            rc = take_kv(where, json_object_get(event, "kv"), deleted, items, err);
    }
    return rc;
}

int fvm_etcd_json_take_watch(const struct fvm_etcd_where *where, const char *line, size_t len,
                             struct fvm_etcd_event *ret_event, struct fvm_err *err)
{
    struct fvm_etcd_event e = {0};
    json_t *root = load(line, len), *result = json_object_get(root, "result");
    json_t *events = json_object_get(result, "events");
    int rc = 0;
    e.created = json_is_true(json_object_get(result, "created"));
    e.cancelled = json_is_true(json_object_get(result, "canceled"));
    if (root && json_object_get(root, "error"))
        rc = fvm_etcd_json_failure(line, len, 0, err);
    else if ((!header_revision(result, &e.revision) && !e.cancelled) || /* a cancelled one has none */
             !number(result, "compact_revision", &e.compacted) || (events && !json_is_array(events)))
        rc = strange(err, "a watch");
    if (!rc && events)
        rc = take_events(where, events, &e.items, err);
    json_decref(root);
    if (rc)
        fvm_store_items_fini(&e.items);
    else
        *ret_event = e;
    return rc;
}

/* Codes are gRPC's. */
int fvm_etcd_json_failure(const char *body, size_t len, long status, struct fvm_err *err)
{
    static const struct {
        int grpc, code;
    } codes[] = {{3, FVM_EINVAL}, {5, FVM_ENOENT}, {7, FVM_EAUTH}, {8, FVM_ENOSPC}, {16, FVM_EAUTH}, {4, FVM_ETIMEOUT}};
    json_t *root = load(body, len), *inner = json_object_get(root, "error");
    const json_t *said = json_is_object(inner) ? inner : root;
    const char *text = json_string_value(json_object_get(said, "message"));
    uint64_t grpc = 0;
    int code = FVM_EIO;
    if (!number(said, "code", &grpc) || !grpc)
        (void)number(said, "grpc_code", &grpc);
    for (size_t i = 0; i < FVM_ARRAY_SIZE(codes); i++)
        if (codes[i].grpc == (int)grpc)
            code = codes[i].code;
    if (text && strstr(text, "compacted"))
        code = FVM_ESTATE;
    if (!text && status == 401)
        code = FVM_EAUTH;
    char shown[160];
    snprintf(shown, sizeof(shown), "%.150s", text ? text : json_is_string(inner) ? json_string_value(inner) : "");
    for (char *p = shown; *p; p++)
        if ((unsigned char)*p < ' ' || *p == 0x7f)
            *p = '?';
    if (shown[0])
        fvm_err_set(err, code, 0, "cluster", "store: etcd says: %s", shown);
    else
        fvm_err_set(err, code, 0, "cluster", "store: etcd answers with HTTP status %ld", status);
    json_decref(root);
    return code;
}
