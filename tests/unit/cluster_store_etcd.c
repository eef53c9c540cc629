/*
 * cluster_store_etcd.c - the store's contract on real etcd: three members on loopback, TLS both ways (tests/etcd). And
 * what only a network can do: a leader that dies under swaps, a majority that is away, an answer that gets lost.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <sys/socket.h>

#include "base/loop.h"
#include "cluster/store_etcd.h"
#include "tests/unit/store_contract.h"

static char dir[64];

static int tool(const char *what, const char *more, char *ret_line, size_t size)
{
    char cmd[300];
    snprintf(cmd, sizeof(cmd), "'%s/tests/etcd' %s '%s' %s", FVM_SOURCE_DIR, what, dir, more);
    FILE *f = popen(cmd, "r");
    if (f && ret_line && fgets(ret_line, (int)size, f))
        ret_line[strcspn(ret_line, "\n")] = 0;
    return f ? pclose(f) : -1;
}

static int member(const char *what, int n)
{
    char text[8];
    snprintf(text, sizeof(text), "%d", n);
    return tool(what, text, NULL, 0);
}

static int up(void)
{
    snprintf(dir, sizeof(dir), "/tmp/fvm-etcd-XXXXXX");
    lease_ms = 2000;
    return mkdtemp(dir) && tool("up", "", url, sizeof(url)) == 0 ? 0 : -1;
}

static int down(void)
{
    char cmd[100];
    tool("down", "", NULL, 0);
    snprintf(cmd, sizeof(cmd), "rm -rf '%s'", dir);
    return system(cmd);
}

/* ---- faults of the network ---- */

struct relay { /* to the first member; a thread per connection */
    int listener, port;
    bool eat_answers, over; /* eat: the request goes through, its answer does not, the connection ends */
    pthread_t thread;
    unsigned eaten, open;
};

struct pair {
    struct relay *relay;
    int client, server;
};

static int connect_to(int port)
{
    struct sockaddr_in a = {
        .sin_family = AF_INET, .sin_port = htons((uint16_t)port), .sin_addr.s_addr = htonl(0x7f000001)};
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd >= 0 && connect(fd, (struct sockaddr *)&a, sizeof(a)) == 0)
        return fd;
    close(fd);
    return -1;
}

static bool pass(int from, int to)
{
    char buf[16384];
    ssize_t n = read(from, buf, sizeof(buf));
    return n > 0 && write(to, buf, (size_t)n) == n;
}

static void relay_until_end(struct relay *r, int client, int server)
{
    bool asked = false; /* since the answers are eaten */
    while (!__atomic_load_n(&r->over, __ATOMIC_ACQUIRE)) {
        struct pollfd p[2] = {{.fd = client, .events = POLLIN}, {.fd = server, .events = POLLIN}};
        if (poll(p, 2, 50) <= 0)
            continue;
        if (p[0].revents) {
            asked = __atomic_load_n(&r->eat_answers, __ATOMIC_ACQUIRE);
            if (!pass(client, server))
                return;
        }
        if (p[1].revents && asked) {
            __atomic_add_fetch(&r->eaten, 1, __ATOMIC_ACQ_REL);
            return;
        }
        if (p[1].revents && !pass(server, client))
            return;
    }
}

static void *pair_main(void *arg)
{
    struct pair *p = arg;
    struct relay *r = p->relay;
    relay_until_end(r, p->client, p->server);
    close(p->client);
    close(p->server);
    free(p);
    __atomic_sub_fetch(&r->open, 1, __ATOMIC_ACQ_REL);
    return NULL;
}

static void *relay_main(void *arg)
{
    struct relay *r = arg;
    while (!__atomic_load_n(&r->over, __ATOMIC_ACQUIRE)) {
        struct pollfd p = {.fd = r->listener, .events = POLLIN};
        if (poll(&p, 1, 50) <= 0)
            continue;
        struct pair *pair = calloc(1, sizeof(*pair));
        pthread_t thread;
        *pair = (struct pair){.relay = r, .client = accept(r->listener, NULL, NULL), .server = connect_to(r->port)};
        __atomic_add_fetch(&r->open, 1, __ATOMIC_ACQ_REL);
        if (pthread_create(&thread, NULL, pair_main, pair) == 0)
            pthread_detach(thread);
    }
    return NULL;
}

/* The URL of the relay alone. */
static void relay_start(struct relay *r, char *ret_url, size_t size)
{
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(0x7f000001)};
    socklen_t len = sizeof(a);
    r->listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    CU_ASSERT_EQUAL_FATAL(bind(r->listener, (struct sockaddr *)&a, sizeof(a)), 0);
    CU_ASSERT_EQUAL_FATAL(listen(r->listener, 8), 0);
    getsockname(r->listener, (struct sockaddr *)&a, &len);
    CU_ASSERT_EQUAL_FATAL(sscanf(url, "etcd://127.0.0.1:%d", &r->port), 1);
    snprintf(ret_url, size, "etcd://127.0.0.1:%d%s", ntohs(a.sin_port), strchr(url, '?'));
    CU_ASSERT_EQUAL_FATAL(pthread_create(&r->thread, NULL, relay_main, r), 0);
}

static void relay_end(struct relay *r)
{
    __atomic_store_n(&r->over, true, __ATOMIC_RELEASE);
    pthread_join(r->thread, NULL);
    while (__atomic_load_n(&r->open, __ATOMIC_ACQUIRE))
        nap_ms(5);
    close(r->listener);
}

/* The swap happened, the answer did not come: that is neither success nor "somebody else", and it was not sent twice.
 */
static void test_lost_answer(void)
{
    struct relay r = {0};
    char through[512];
    struct fvm_store *s = NULL, *direct = open_store();
    struct fvm_err err = {0};
    struct fvm_store_item item = {0};
    uint64_t rev = 0;
    relay_start(&r, through, sizeof(through));
    CU_ASSERT_EQUAL_FATAL(fvm_store_open(through, &s, &err), 0);
    CU_ASSERT_EQUAL_FATAL(set(s, "/lost", 0, "1", 0, &rev), 0);
    __atomic_store_n(&r.eat_answers, true, __ATOMIC_RELEASE);
    int rc = fvm_store_cas(s, "/lost", rev, "2", 1, 0, NULL, &err);
    __atomic_store_n(&r.eat_answers, false, __ATOMIC_RELEASE);
    CU_ASSERT_TRUE(rc != 0 && rc != FVM_ECONFLICT && rc != FVM_ENOENT);
    CU_ASSERT_TRUE(r.eaten >= 1); /* more: those of the prober */
    CU_ASSERT_EQUAL_FATAL(fvm_store_get(direct, "/lost", &item, NULL), 0);
    CU_ASSERT_STRING_EQUAL(item.value, "2");
    CU_ASSERT_EQUAL(item.revision, rev + 1);
    fvm_store_item_fini(&item);
    /* away, and back by itself */
    uint64_t end = fvm_now_ns() + 10000000000ull;
    while ((rc = fvm_store_get(s, "/lost", &item, &err)) && fvm_now_ns() < end)
        nap_ms(20);
    CU_ASSERT_EQUAL_FATAL(rc, 0);
    CU_ASSERT_STRING_EQUAL(item.value, "2");
    fvm_store_item_fini(&item);
    fvm_store_close(&s);
    fvm_store_close(&direct);
    relay_end(&r);
}

/* A reader is told nothing old, a reader whose connection died is served by another one. */
static void test_lost_read(void)
{
    struct relay r = {0};
    char through[512], both[512];
    struct fvm_store *s = NULL;
    struct fvm_store_item item = {0};
    relay_start(&r, through, sizeof(through));
    snprintf(both, sizeof(both), "%.*s,%s", (int)strcspn(through, "?"), through, strstr(url, "127."));
    CU_ASSERT_EQUAL_FATAL(fvm_store_open(both, &s, NULL), 0);
    CU_ASSERT_EQUAL(set(s, "/read", 0, "1", 0, NULL), 0);
    __atomic_store_n(&r.eat_answers, true, __ATOMIC_RELEASE);
    CU_ASSERT_EQUAL_FATAL(fvm_store_get(s, "/read", &item, NULL), 0);
    CU_ASSERT_STRING_EQUAL(item.value, "1");
    fvm_store_item_fini(&item);
    fvm_store_close(&s);
    relay_end(&r);
}

/* ---- faults of etcd ---- */

/* Adds to a counter as test_race does, but through the leader's death: an unclear answer is followed by a read. */
static void test_leader_dies(void)
{
    struct fvm_store *s = open_store();
    char line[16] = "";
    int value = 0, unclear = 0;
    bool killed = false;
    uint64_t end = fvm_now_ns() + 40000000000ull;
    CU_ASSERT_EQUAL_FATAL(tool("leader", "", line, sizeof(line)), 0);
    while (value < 120 && fvm_now_ns() < end) {
        struct fvm_store_item item = {0};
        char next[32];
        int rc = fvm_store_get(s, "/count", &item, NULL);
        if (rc && rc != FVM_ENOENT) {
            nap_ms(20);
            continue;
        }
        int now = rc ? 0 : atoi(item.value);
        CU_ASSERT_TRUE(now == value || (unclear && now == value + 1)); /* never less, never more */
        value = now;
        unclear = 0;
        snprintf(next, sizeof(next), "%d", value + 1);
        rc = set(s, "/count", rc ? 0 : item.revision, next, 0, NULL);
        fvm_store_item_fini(&item);
        CU_ASSERT_TRUE(rc != FVM_ECONFLICT); /* nobody else swaps */
        value += rc == 0;
        unclear = rc != 0;
        if (value == 30 && !killed)
            killed = member("kill", atoi(line)) == 0;
    }
    CU_ASSERT_EQUAL(value, 120);
    CU_ASSERT_TRUE(killed);
    CU_ASSERT_EQUAL(member("start", atoi(line)), 0);
    fvm_store_close(&s);
}

/* Two of three members stand still: no call hangs for long, none lies; a watch goes on when they are back. */
static void test_no_majority(void)
{
    struct fvm_store *s = open_store();
    struct fvm_store_items items = {0};
    struct fvm_store_item item = {0};
    struct fvm_err err = {0};
    uint64_t since = 0, rev = 0, slow = 0;
    int rc = 0;
    CU_ASSERT_EQUAL_FATAL(set(s, "/m", 0, "before", 0, &rev), 0);
    CU_ASSERT_EQUAL_FATAL(fvm_store_list(s, "/m", &items, &since, NULL), 0);
    fvm_store_items_fini(&items);
    CU_ASSERT_EQUAL(fvm_store_watch(s, "/m", &since, 0, &items, NULL), 0);
    CU_ASSERT_EQUAL(member("stop", 0) | member("stop", 1), 0);
    for (int i = 0; i < 100; i++) {
        uint64_t start = fvm_now_ns();
        rc = fvm_store_get(s, "/m", &item, &err);
        CU_ASSERT_NOT_EQUAL(rc, 0);
        CU_ASSERT_NOT_EQUAL(rc, FVM_ENOENT);
        slow += fvm_now_ns() - start > 50000000;
        nap_ms(5);
    }
    CU_ASSERT_TRUE(slow <= 2); /* the first waits for its time-out, the others are told at once */
    CU_ASSERT_TRUE(strstr(err.text, "away for") != NULL);
    rc = set(s, "/m", rev, "meanwhile", 0, NULL);
    CU_ASSERT_TRUE(rc && rc != FVM_ECONFLICT);
    CU_ASSERT_EQUAL(member("cont", 0) | member("cont", 1), 0);
    uint64_t end = fvm_now_ns() + 20000000000ull;
    while ((rc = fvm_store_get(s, "/m", &item, NULL)) && fvm_now_ns() < end)
        nap_ms(20);
    CU_ASSERT_EQUAL_FATAL(rc, 0);
    rev = item.revision;
    fvm_store_item_fini(&item);
    while ((rc = set(s, "/m", rev, "after", 0, NULL)) && fvm_now_ns() < end)
        nap_ms(20);
    CU_ASSERT_EQUAL(rc, 0);
    items.count = 0;
    while (!items.count && fvm_now_ns() < end)
        (void)fvm_store_watch(s, "/m", &since, 200, &items, NULL);
    CU_ASSERT_EQUAL_FATAL(items.count, 1);
    CU_ASSERT_STRING_EQUAL(items.items[0].value, "after");
    fvm_store_items_fini(&items);
    fvm_store_close(&s);
}

static void test_compacted(void)
{
    struct fvm_store *s = open_store();
    struct fvm_store_items items = {0};
    uint64_t rev = 0, since = 1;
    for (int i = 0; i < 20; i++)
        CU_ASSERT_EQUAL(set(s, "/c", rev, "x", 0, &rev), 0);
    char cmd[900];
    int port = 0;
    CU_ASSERT_EQUAL_FATAL(sscanf(url, "etcd://127.0.0.1:%d", &port), 1);
    snprintf(cmd, sizeof(cmd),
             "curl -s --max-time 5 --cacert %s/ca.pem --cert %s/client.pem --key %s/client.key "
             "https://127.0.0.1:%d/v3/kv/compaction -d '{\"revision\":\"%llu\"}' > %s/said",
             dir, dir, dir, port, (unsigned long long)rev - 1, dir);
    CU_ASSERT_EQUAL(system(cmd), 0);
    CU_ASSERT_EQUAL(fvm_store_watch(s, "/c", &since, 5000, &items, NULL), FVM_ESTATE);
    CU_ASSERT_EQUAL(fvm_store_list(s, "/c", &items, &since, NULL), 0);
    fvm_store_items_fini(&items);
    CU_ASSERT_EQUAL(fvm_store_watch(s, "/c", &since, 100, &items, NULL), 0);
    fvm_store_close(&s);
}

/* ---- who is let in, and what is said about a bad address ---- */

static void test_certificates(void)
{
    struct fvm_store *s = NULL;
    struct fvm_err err = {0};
    char bad[600];
    snprintf(bad, sizeof(bad), "%.*s?ca=%s/ca.pem", (int)strcspn(url, "?"), url, dir); /* we show nothing */
    CU_ASSERT_NOT_EQUAL(fvm_store_open(bad, &s, &err), 0);
    snprintf(bad, sizeof(bad), "%.*s?ca=%s/client.pem&cert=%s/client.pem&key=%s/client.key", (int)strcspn(url, "?"),
             url, dir, dir, dir); /* not their CA */
    CU_ASSERT_EQUAL(fvm_store_open(bad, &s, &err), FVM_EAUTH);
    CU_ASSERT_TRUE(strstr(err.text, "check ca=") != NULL);
    snprintf(bad, sizeof(bad), "%.*s", (int)strcspn(url, "?"), url); /* no TLS to a TLS port */
    CU_ASSERT_NOT_EQUAL(fvm_store_open(bad, &s, &err), 0);
    CU_ASSERT_PTR_NULL(s);
}

static void test_prefix(void)
{
    struct fvm_store *one = NULL, *two = NULL;
    struct fvm_store_item item = {0};
    struct fvm_store_items items = {0};
    char text[600];
    snprintf(text, sizeof(text), "%.*s/fvm/one%s", (int)strcspn(url, "?"), url, strchr(url, '?'));
    CU_ASSERT_EQUAL_FATAL(fvm_store_open(text, &one, NULL), 0);
    snprintf(text, sizeof(text), "%.*s/fvm/two/%s", (int)strcspn(url, "?"), url, strchr(url, '?'));
    CU_ASSERT_EQUAL_FATAL(fvm_store_open(text, &two, NULL), 0);
    CU_ASSERT_EQUAL(set(one, "/vm/a", 0, "1", 0, NULL), 0);
    CU_ASSERT_EQUAL(fvm_store_get(two, "/vm/a", &item, NULL), FVM_ENOENT);
    CU_ASSERT_EQUAL_FATAL(fvm_store_list(one, "/vm/", &items, NULL, NULL), 0);
    CU_ASSERT_EQUAL_FATAL(items.count, 1);
    CU_ASSERT_STRING_EQUAL(items.items[0].key, "/vm/a");
    fvm_store_items_fini(&items);
    fvm_store_close(&one);
    fvm_store_close(&two);
}

static void test_addresses(void)
{
    static const char *const bad[] = {
        "",
        "//",
        "//:2379",
        "//10.0.0.1:2379",
        "//127.0.0.1:0",
        "//127.0.0.1:99999",
        "//a b:1",
        "//h:1,",
        "//127.0.0.1:1?x=y",
        "//127.0.0.1:1?ca=",
        "//127.0.0.1:1?cert=/c",
        "//127.0.0.1:1?key=/k&cert=/c",
        "//h:1/\x7f",
        "//::1:2379",
        "127.0.0.1:2379",
        "//127.0.0.1:1?tls=off&ca=/c",
    };
    static const char *const good[] = {"//127.0.0.1:2379", "//localhost", "//[::1]:1/p", "//10.0.0.1:2379?tls=off",
                                       "//h1.example:1,h2.example:2,h3:3/fvm/x/?ca=/ca&cert=/c&key=/k"};
    struct fvm_etcd_where w;
    struct fvm_err err;
    for (size_t i = 0; i < FVM_ARRAY_SIZE(bad); i++) {
        err = (struct fvm_err){0};
        CU_ASSERT_EQUAL(fvm_etcd_where_parse(bad[i], &w, &err), FVM_EINVAL);
        CU_ASSERT_TRUE(err.text[0] != 0);
    }
    for (size_t i = 0; i < FVM_ARRAY_SIZE(good); i++)
        CU_ASSERT_EQUAL(fvm_etcd_where_parse(good[i], &w, &err), 0);
    CU_ASSERT_EQUAL(w.count, 3);
    CU_ASSERT_STRING_EQUAL(w.base[1], "https://h2.example:2");
    CU_ASSERT_STRING_EQUAL(w.prefix, "/fvm/x");
    CU_ASSERT_STRING_EQUAL(w.key, "/k");
}

int main(void)
{
    if (system("command -v etcd > /dev/null 2>&1")) {
        puts("no etcd here: apt-get install etcd-server");
        return 77;
    }
    CU_initialize_registry();
    CU_pSuite suite = CU_add_suite("cluster store: etcd", up, down);
    CU_add_test(suite, "addresses", test_addresses);
    add_contract(suite);
    CU_add_test(suite, "certificates", test_certificates);
    CU_add_test(suite, "prefix", test_prefix);
    CU_add_test(suite, "lost answer", test_lost_answer);
    CU_add_test(suite, "lost answer of a read", test_lost_read);
    CU_add_test(suite, "compacted", test_compacted);
    CU_add_test(suite, "leader dies", test_leader_dies);
    CU_add_test(suite, "no majority", test_no_majority);
    CU_basic_set_mode(CU_BRM_VERBOSE);
    CU_basic_run_tests();
    unsigned failed = CU_get_number_of_failures() + CU_get_number_of_suites_failed();
    CU_cleanup_registry();
    return failed != 0;
}
