/* What an etcd member answers, taken for each kind of answer. What is accepted must be keys and values the store takes.
 */
#include <stdlib.h>
#include <string.h>

#include "cluster/store_etcd.h"
#include "tests/fuzz/fuzz.h"

static void check(const struct fvm_store_items *items)
{
    for (size_t i = 0; i < items->count; i++) {
        const struct fvm_store_item *it = &items->items[i];
        size_t n = strlen(it->key);
        if (!n || n > FVM_STORE_KEY_MAX || it->value_len > FVM_STORE_VALUE_MAX || !it->revision ||
            (it->value && it->value[it->value_len]))
            abort();
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const struct fvm_etcd_where where = {.prefix = "/p"};
    struct fvm_store_items items = {0};
    struct fvm_etcd_event event = {0};
    struct fvm_err err;
    uint64_t a, b;
    bool yes;
    const char *text = (const char *)data;
    (void)fvm_etcd_json_take_range(&where, text, size, &items, &a, &err);
    check(&items);
    fvm_store_items_fini(&items);
    if (fvm_etcd_json_take_swap(text, size, &yes, &a, &err) == 0 && !a)
        abort();
    (void)fvm_etcd_json_take_lease(text, size, &a, &b, &err);
    if (fvm_etcd_json_take_watch(&where, text, size, &event, &err) == 0)
        check(&event.items);
    fvm_store_items_fini(&event.items);
    if (fvm_etcd_json_failure(text, size, 500, &err) >= 0 || strlen(err.text) > 300)
        abort();
    struct fvm_etcd_where w;
    char url[1200];
    size_t n = size < sizeof(url) - 1 ? size : sizeof(url) - 1;
    memcpy(url, data, n);
    url[n] = 0;
    if (fvm_etcd_where_parse(url, &w, &err) == 0 && (!w.count || w.count > FVM_ETCD_ENDPOINTS_MAX))
        abort();
    return 0;
}

size_t fuzz_seed(unsigned i, uint8_t *buf)
{
    static const char *const seeds[] = {
        "{\"header\":{\"revision\":\"17\"},\"kvs\":[{\"key\":\"L3AvYQ==\",\"mod_revision\":\"16\",\"value\":\"eA==\","
        "\"lease\":"
        "\"9\"}],\"count\":\"1\"}",
        "{\"header\":{\"revision\":\"2\"},\"succeeded\":true,\"responses\":[{\"response_put\":{}}]}",
        "{\"result\":{\"header\":{\"revision\":\"2\"},\"ID\":\"77\",\"TTL\":\"6\"}}",
        "{\"result\":{\"header\":{\"revision\":\"3\"},\"events\":[{\"kv\":{\"key\":\"L3AvYQ==\",\"mod_revision\":\"2\"}"
        "},"
        "{\"type\":\"DELETE\",\"kv\":{\"key\":\"L3AvYQ==\",\"mod_revision\":\"3\"}}]}}",
        "{\"result\":{\"header\":{\"revision\":\"3\"},\"canceled\":true,\"compact_revision\":\"5\"}}",
        "{\"error\":\"etcdserver: requested lease not found\",\"message\":\"x\",\"code\":5}",
        "{\"error\":{\"grpc_code\":14,\"http_code\":503,\"message\":\"etcdserver: no leader\"}}",
        "//127.0.0.1:2379,[::1]:1,h:2/fvm/x?ca=/a&cert=/b&key=/c",
    };
    if (i >= sizeof(seeds) / sizeof(seeds[0]))
        return 0;
    memcpy(buf, seeds[i], strlen(seeds[i]));
    return strlen(seeds[i]);
}
