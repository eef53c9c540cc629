/*
 * store_contract.h - what store.h promises, asked of any backend: included by the test of each, which sets `url` (and
 * `lease_ms`, the shortest lease it knows) before.
 */
#include <CUnit/Basic.h>
#include <CUnit/CUnit.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "cluster/store.h"

static char url[512];
static unsigned lease_ms = 300;

static struct fvm_store *open_store(void)
{
    struct fvm_store *store = NULL;
    struct fvm_err err = {0};
    CU_ASSERT_EQUAL_FATAL(fvm_store_open(url, &store, &err), 0);
    return store;
}

static int set(struct fvm_store *s, const char *key, uint64_t expect, const char *value, uint64_t lease, uint64_t *rev)
{
    return fvm_store_cas(s, key, expect, value, value ? strlen(value) : 0, lease, rev, NULL);
}

static void nap_ms(long ms)
{
    nanosleep(&(struct timespec){.tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000}, NULL);
}

static void test_swap(void)
{
    struct fvm_store *s = open_store();
    struct fvm_store_item item = {0};
    uint64_t r1 = 0, r2 = 0;
    CU_ASSERT_EQUAL(fvm_store_get(s, "/a", &item, NULL), FVM_ENOENT);
    CU_ASSERT_EQUAL(set(s, "/a", 7, "x", 0, &r1), FVM_ECONFLICT);
    CU_ASSERT_EQUAL(set(s, "/a", 0, "one", 0, &r1), 0);
    CU_ASSERT_TRUE(r1 > 0);
    CU_ASSERT_EQUAL(set(s, "/a", 0, "two", 0, &r2), FVM_ECONFLICT);
    CU_ASSERT_EQUAL(set(s, "/a", r1, "two", 0, &r2), 0);
    CU_ASSERT_TRUE(r2 > r1);
    CU_ASSERT_EQUAL_FATAL(fvm_store_get(s, "/a", &item, NULL), 0);
    CU_ASSERT_STRING_EQUAL(item.value, "two");
    CU_ASSERT_EQUAL(item.revision, r2);
    fvm_store_item_fini(&item);
    CU_ASSERT_EQUAL(set(s, "/a", r1, NULL, 0, NULL), FVM_ECONFLICT);
    CU_ASSERT_EQUAL(set(s, "/a", r2, NULL, 0, NULL), 0);
    CU_ASSERT_EQUAL(fvm_store_get(s, "/a", &item, NULL), FVM_ENOENT);
    CU_ASSERT_EQUAL(fvm_store_cas(s, "/bytes", 0, "a\0b", 3, 0, &r1, NULL), 0);
    CU_ASSERT_EQUAL_FATAL(fvm_store_get(s, "/bytes", &item, NULL), 0);
    CU_ASSERT_EQUAL(item.value_len, 3);
    CU_ASSERT_EQUAL(memcmp(item.value, "a\0b", 3), 0);
    fvm_store_item_fini(&item);
    CU_ASSERT_EQUAL(fvm_store_cas(s, "/bytes", r1, "", 0, 0, NULL, NULL), 0);
    CU_ASSERT_EQUAL_FATAL(fvm_store_get(s, "/bytes", &item, NULL), 0);
    CU_ASSERT_EQUAL(item.value_len, 0);
    fvm_store_item_fini(&item);
    fvm_store_close(&s);
}

enum { RACERS = 4, ROUNDS = 60 };

/* Each process adds 1 to a counter ROUNDS times by swap; a lost or doubled swap shows in the sum. */
static int racer(void)
{
    struct fvm_store *s = NULL;
    if (fvm_store_open(url, &s, NULL))
        return 1;
    for (int i = 0; i < ROUNDS;) {
        struct fvm_store_item item = {0};
        if (fvm_store_get(s, "/race", &item, NULL))
            return 2;
        char next[24];
        snprintf(next, sizeof(next), "%d", atoi(item.value) + 1);
        int rc = set(s, "/race", item.revision, next, 0, NULL);
        fvm_store_item_fini(&item);
        if (rc == 0)
            i++;
        else if (rc != FVM_ECONFLICT)
            return 3;
    }
    fvm_store_close(&s);
    return 0;
}

static void test_race(void)
{
    struct fvm_store *s = open_store();
    CU_ASSERT_EQUAL_FATAL(set(s, "/race", 0, "0", 0, NULL), 0);
    fvm_store_close(&s);
    pid_t pids[RACERS];
    for (int i = 0; i < RACERS; i++)
        if ((pids[i] = fork()) == 0)
            _exit(racer());
    for (int i = 0; i < RACERS; i++) {
        int status = -1;
        waitpid(pids[i], &status, 0);
        CU_ASSERT_EQUAL(status, 0);
    }
    s = open_store();
    struct fvm_store_item item = {0};
    CU_ASSERT_EQUAL_FATAL(fvm_store_get(s, "/race", &item, NULL), 0);
    CU_ASSERT_EQUAL(atoi(item.value), RACERS * ROUNDS);
    fvm_store_item_fini(&item);
    fvm_store_close(&s);
}

static void test_lease(void)
{
    struct fvm_store *s = open_store();
    struct fvm_store_item item = {0};
    uint64_t lease = 0, gone = 0, rev = 0;
    CU_ASSERT_EQUAL(fvm_store_lease(s, &gone, 0, NULL), FVM_EINVAL);
    CU_ASSERT_EQUAL_FATAL(fvm_store_lease(s, &lease, lease_ms, NULL), 0);
    CU_ASSERT_EQUAL(set(s, "/live", 0, "x", lease, NULL), 0);
    CU_ASSERT_EQUAL(set(s, "/stays", 0, "x", 0, NULL), 0);
    for (int i = 0; i < 4; i++) { /* kept alive well past its first time to live */
        nap_ms(lease_ms / 2);
        CU_ASSERT_EQUAL(fvm_store_lease(s, &lease, lease_ms, NULL), 0);
    }
    CU_ASSERT_EQUAL_FATAL(fvm_store_get(s, "/live", &item, NULL), 0);
    CU_ASSERT_EQUAL(item.lease, lease);
    fvm_store_item_fini(&item);
    struct fvm_store_items items = {0};
    CU_ASSERT_EQUAL(fvm_store_list(s, "/live", &items, &rev, NULL), 0);
    CU_ASSERT_EQUAL(items.count, 1);
    fvm_store_items_fini(&items);
    /* nobody renews: the watch of another handle sees it go */
    struct fvm_store *other = open_store();
    CU_ASSERT_EQUAL(fvm_store_watch(other, "/live", &rev, 5000 + 2 * lease_ms, &items, NULL), 0);
    CU_ASSERT_EQUAL_FATAL(items.count, 1);
    CU_ASSERT_PTR_NULL(items.items[0].value);
    fvm_store_items_fini(&items);
    CU_ASSERT_EQUAL(fvm_store_get(s, "/live", &item, NULL), FVM_ENOENT);
    CU_ASSERT_EQUAL(fvm_store_lease(s, &lease, lease_ms, NULL), FVM_ENOENT);
    CU_ASSERT_EQUAL(set(s, "/live", 0, "x", lease, NULL), FVM_ENOENT);
    CU_ASSERT_EQUAL(fvm_store_get(s, "/stays", &item, NULL), 0);
    fvm_store_item_fini(&item);
    /* given back at once */
    lease = 0;
    CU_ASSERT_EQUAL_FATAL(fvm_store_lease(s, &lease, 60000, NULL), 0);
    CU_ASSERT_EQUAL(set(s, "/live", 0, "y", lease, NULL), 0);
    CU_ASSERT_EQUAL(fvm_store_lease(s, &lease, 0, NULL), 0);
    CU_ASSERT_EQUAL(fvm_store_get(s, "/live", &item, NULL), FVM_ENOENT);
    fvm_store_close(&other);
    fvm_store_close(&s);
}

static void test_list_prefix(void)
{
    struct fvm_store *s = open_store();
    struct fvm_store_items items = {0};
    CU_ASSERT_EQUAL(set(s, "/p/b", 0, "2", 0, NULL), 0);
    CU_ASSERT_EQUAL(set(s, "/p/a", 0, "1", 0, NULL), 0);
    CU_ASSERT_EQUAL(set(s, "/p", 0, "0", 0, NULL), 0);
    CU_ASSERT_EQUAL(set(s, "/p%", 0, "no wildcard", 0, NULL), 0);
    CU_ASSERT_EQUAL_FATAL(fvm_store_list(s, "/p/", &items, NULL, NULL), 0);
    CU_ASSERT_EQUAL_FATAL(items.count, 2);
    CU_ASSERT_STRING_EQUAL(items.items[0].key, "/p/a");
    CU_ASSERT_STRING_EQUAL(items.items[1].key, "/p/b");
    fvm_store_items_fini(&items);
    CU_ASSERT_EQUAL(fvm_store_list(s, "/nothing", &items, NULL, NULL), 0);
    CU_ASSERT_EQUAL(items.count, 0);
    fvm_store_close(&s);
}

/* A writer process makes many changes; a watcher that only watches ends with exactly the writer's last state. */
static void test_watch(void)
{
    struct fvm_store *s = open_store();
    struct fvm_store_items items = {0};
    uint64_t since = 0;
    CU_ASSERT_EQUAL_FATAL(fvm_store_list(s, "/w/", &items, &since, NULL), 0);
    fvm_store_items_fini(&items);
    CU_ASSERT_EQUAL(fvm_store_watch(s, "/w/", &since, 0, &items, NULL), 0);
    CU_ASSERT_EQUAL(items.count, 0);
    pid_t pid = fork();
    if (pid == 0) {
        struct fvm_store *w = NULL;
        uint64_t rev = 0;
        if (fvm_store_open(url, &w, NULL))
            _exit(1);
        for (int i = 1; i <= 100; i++) {
            char v[16];
            snprintf(v, sizeof(v), "%d", i);
            if (set(w, "/w/n", rev, v, 0, &rev) || set(w, i % 2 ? "/w/odd" : "/other", 0, v, 0, NULL) == FVM_EIO)
                _exit(2);
        }
        _exit(set(w, "/w/n", rev, NULL, 0, NULL) ? 3 : 0);
    }
    int seen = 0;
    bool deleted = false;
    uint64_t last = since;
    while (!deleted) {
        CU_ASSERT_EQUAL_FATAL(fvm_store_watch(s, "/w/", &since, 10000, &items, NULL), 0);
        CU_ASSERT_TRUE_FATAL(items.count > 0); /* 10 s without the next change: something was missed */
        for (size_t i = 0; i < items.count; i++) {
            CU_ASSERT_TRUE(items.items[i].revision > last);
            last = items.items[i].revision;
            if (strcmp(items.items[i].key, "/w/n"))
                continue;
            deleted = !items.items[i].value;
            if (!deleted) {
                CU_ASSERT_TRUE(atoi(items.items[i].value) > seen);
                seen = atoi(items.items[i].value);
            }
        }
        fvm_store_items_fini(&items);
    }
    int status = -1;
    waitpid(pid, &status, 0);
    CU_ASSERT_EQUAL(status, 0);
    fvm_store_close(&s);
}

static void add_contract(CU_pSuite suite)
{
    CU_add_test(suite, "swap", test_swap);
    CU_add_test(suite, "race of processes", test_race);
    CU_add_test(suite, "lease", test_lease);
    CU_add_test(suite, "list by prefix", test_list_prefix);
    CU_add_test(suite, "watch", test_watch);
}
