/* Ports: round trips, who is let in, lost messages noticed, strangers' bytes, the loop. Loopback only. */
#include <CUnit/Basic.h>
#include <arpa/inet.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/log.h"
#include "net/port.h"

static struct fvm_port_ctx *ctx;
static struct fvm_port_keys server, client, stranger;

static bool allow(void *want, const char *key, const char *addr)
{
    CU_ASSERT_STRING_EQUAL(addr, "127.0.0.1");
    return strcmp(key, want) == 0;
}

static struct fvm_port *listening(const struct fvm_port_keys *keys)
{
    struct fvm_port *p = NULL;
    struct fvm_err err = {0};
    CU_ASSERT_EQUAL_FATAL(fvm_port_listen(ctx, "tcp://127.0.0.1:*", keys, allow, client.public_key, NULL, &p, &err), 0);
    CU_ASSERT_EQUAL(strncmp(fvm_port_addr(p), "tcp://127.0.0.1:", 16), 0);
    return p;
}

static void frees(void *data, void *hint)
{
    free(data);
    ++*(int *)hint;
}

static void test_round_trip(void)
{
    struct fvm_port *l = listening(&server), *c = NULL;
    struct fvm_err err = {0};
    struct fvm_port_msg *m;
    int freed = 0;
    CU_ASSERT_EQUAL_FATAL(fvm_port_connect(ctx, fvm_port_addr(l), server.public_key, &client, NULL, &c, &err), 0);
    CU_ASSERT_EQUAL_FATAL(fvm_port_wait_up(c, 5000, &err), 0);
    char *given = strdup("given away");
    struct fvm_port_buf bufs[3] = {
        {.data = "one", .len = 3}, {.data = given, .len = 10, .free_fn = frees, .hint = &freed}, {.len = 0}};
    CU_ASSERT_EQUAL(fvm_port_send(c, NULL, bufs, 3, 1000), 0);
    CU_ASSERT_EQUAL_FATAL(fvm_port_recv(l, &m, 5000), 0);
    CU_ASSERT_EQUAL(fvm_port_msg_count(m), 3);
    CU_ASSERT_EQUAL(memcmp(fvm_port_msg_data(m, 1), "given away", 10), 0);
    CU_ASSERT_EQUAL(fvm_port_msg_len(m, 2), 0);
    CU_ASSERT_STRING_EQUAL(fvm_port_msg_peer(m)->key, client.public_key);
    CU_ASSERT_EQUAL(fvm_port_msg_gap(m), 0);
    CU_ASSERT_EQUAL(fvm_port_send_bytes(l, fvm_port_msg_peer(m), "back", 4, 1000), 0);
    fvm_port_msg_destroy(&m);
    CU_ASSERT_EQUAL_FATAL(fvm_port_recv(c, &m, 5000), 0);
    CU_ASSERT_EQUAL(memcmp(fvm_port_msg_data(m, 0), "back", 4), 0);
    CU_ASSERT_STRING_EQUAL(fvm_port_msg_peer(m)->key, server.public_key);
    fvm_port_msg_destroy(&m);
    struct fvm_port_peer gone = {.len = 4, .id = {1, 2, 3, 4}};
    CU_ASSERT_EQUAL(fvm_port_send_bytes(l, &gone, "x", 1, 0), FVM_ECLOSED);
    CU_ASSERT_EQUAL(fvm_port_recv(c, &m, 0), FVM_EBUSY);
    fvm_port_close(&c);
    fvm_port_close(&l);
    CU_ASSERT_EQUAL(freed, 1);
}

static int try_connect(const char *addr, const char *peer_key, const struct fvm_port_keys *keys)
{
    struct fvm_port *c = NULL;
    struct fvm_err err = {0};
    int rc = fvm_port_connect(ctx, addr, peer_key, keys, NULL, &c, &err);
    if (!rc)
        rc = fvm_port_wait_up(c, 3000, &err);
    fvm_port_close(&c);
    CU_ASSERT_TRUE(rc == 0 || err.text[0]);
    return rc;
}

static void test_who(void)
{
    struct fvm_port *l = listening(&server), *dup = NULL;
    struct fvm_err err = {0};
    CU_ASSERT_EQUAL(try_connect(fvm_port_addr(l), server.public_key, &client), 0);
    CU_ASSERT_EQUAL(try_connect(fvm_port_addr(l), server.public_key, &stranger), FVM_EAUTH);
    CU_ASSERT_EQUAL(try_connect(fvm_port_addr(l), stranger.public_key, &client), FVM_EAUTH);
    CU_ASSERT_EQUAL(try_connect(fvm_port_addr(l), NULL, NULL), FVM_EAUTH); /* no CURVE at all */
    CU_ASSERT_EQUAL(try_connect(fvm_port_addr(l), "short", &client), FVM_EINVAL);
    CU_ASSERT_EQUAL(try_connect("tcp://127.0.0.1:1", server.public_key, &client), FVM_ETIMEOUT);
    CU_ASSERT_EQUAL(try_connect("nonsense", server.public_key, &client), FVM_EINVAL);
    CU_ASSERT_EQUAL(fvm_port_listen(ctx, fvm_port_addr(l), &server, allow, client.public_key, NULL, &dup, &err),
                    FVM_EBUSY);
    CU_ASSERT_PTR_NULL(dup);
    fvm_port_close(&l);
    char public_key[FVM_PORT_KEY_CHARS + 1];
    CU_ASSERT_EQUAL(fvm_port_public_key(client.secret_key, public_key), 0);
    CU_ASSERT_STRING_EQUAL(public_key, client.public_key);
    CU_ASSERT_EQUAL(fvm_port_public_key("no", public_key), FVM_EINVAL);
    CU_ASSERT_FALSE(fvm_port_key_valid("0123456789012345678901234567890123456 89"));
}

/* The peer goes and comes again: a new session; what it lost while its queue was full shows as a gap on the next
 * message. */
static void test_gap(void)
{
    struct fvm_port_options small = {.hwm = 4};
    struct fvm_port *l = listening(NULL), *c = NULL;
    struct fvm_err err = {0};
    struct fvm_port_msg *m;
    uint64_t sessions[2];
    for (int i = 0; i < 2; i++) {
        CU_ASSERT_EQUAL_FATAL(fvm_port_connect(ctx, fvm_port_addr(l), NULL, NULL, &small, &c, &err), 0);
        CU_ASSERT_EQUAL_FATAL(fvm_port_wait_up(c, 5000, &err), 0);
        for (int k = 0; k < 3; k++)
            CU_ASSERT_EQUAL(fvm_port_send_bytes(c, NULL, "x", 1, 1000), 0);
        for (int k = 0; k < 3; k++) {
            CU_ASSERT_EQUAL_FATAL(fvm_port_recv(l, &m, 5000), 0);
            CU_ASSERT_EQUAL(fvm_port_msg_gap(m), 0);
            sessions[i] = fvm_port_msg_session(m);
            fvm_port_msg_destroy(&m);
        }
        fvm_port_close(&c);
    }
    CU_ASSERT_NOT_EQUAL(sessions[0], sessions[1]);
    fvm_port_close(&l);
}

/* Nobody listens yet: the queue fills and send says so instead of waiting; all or nothing arrives. */
static void test_full(void)
{
    struct fvm_port_options small = {.hwm = 4};
    struct fvm_port *c = NULL;
    struct fvm_err err = {0};
    int sent = 0;
    CU_ASSERT_EQUAL_FATAL(fvm_port_connect(ctx, "tcp://127.0.0.1:1", NULL, NULL, &small, &c, &err), 0);
    while (sent < 100 && fvm_port_send_bytes(c, NULL, "x", 1, 0) == 0)
        sent++;
    CU_ASSERT_TRUE(sent > 0 && sent < 100);
    CU_ASSERT_EQUAL(fvm_port_send_bytes(c, NULL, "x", 1, 20), FVM_EBUSY);
    fvm_port_close(&c);
}

/* A stranger's bytes on the socket harm nobody. */
static void test_garbage(void)
{
    struct fvm_port *l = listening(&server), *c = NULL;
    struct fvm_port_msg *m;
    struct fvm_err err = {0};
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    a.sin_port = htons((uint16_t)atoi(strrchr(fvm_port_addr(l), ':') + 1));
    for (int i = 0; i < 20; i++) {
        uint8_t junk[300];
        int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        for (size_t k = 0; k < sizeof(junk); k++)
            junk[k] = (uint8_t)(k * 31 + (size_t)i * 77);
        if (i & 1) /* starts like a ZMTP greeting */
            memcpy(junk, "\xff\0\0\0\0\0\0\0\1\x7f\3\1CURVE", 17);
        CU_ASSERT_EQUAL(connect(fd, (struct sockaddr *)&a, sizeof(a)), 0);
        (void)!write(fd, junk, sizeof(junk));
        close(fd);
    }
    CU_ASSERT_EQUAL_FATAL(fvm_port_connect(ctx, fvm_port_addr(l), server.public_key, &client, NULL, &c, &err), 0);
    CU_ASSERT_EQUAL(fvm_port_send_bytes(c, NULL, "fine", 4, 1000), 0);
    CU_ASSERT_EQUAL_FATAL(fvm_port_recv(l, &m, 5000), 0);
    CU_ASSERT_EQUAL(fvm_port_msg_len(m, 0), 4);
    fvm_port_msg_destroy(&m);
    fvm_port_close(&c);
    fvm_port_close(&l);
}

/* ---- on a loop: an echo that sends from inside its callback, and a client that answers each echo ---- */

enum { ECHOES = 3000 };
struct echo {
    struct fvm_loop *loop;
    struct fvm_port *client;
    int got, inside;
};

static void on_server(void *p, struct fvm_port *port, struct fvm_port_msg **msg)
{
    struct echo *e = p;
    CU_ASSERT_EQUAL(e->inside++, 0);
    CU_ASSERT_EQUAL(
        fvm_port_send_bytes(port, fvm_port_msg_peer(*msg), fvm_port_msg_data(*msg, 0), fvm_port_msg_len(*msg, 0), 1000),
        0);
    e->inside--;
}

static void on_client(void *p, struct fvm_port *port, struct fvm_port_msg **msg)
{
    struct echo *e = p;
    int n;
    memcpy(&n, fvm_port_msg_data(*msg, 0), sizeof(n));
    CU_ASSERT_EQUAL(n, e->got);
    e->got++;
    if (e->got + 10 <= ECHOES) {
        n = e->got + 9;
        CU_ASSERT_EQUAL(fvm_port_send_bytes(port, NULL, &n, sizeof(n), 1000), 0);
    }
    if (e->got == ECHOES) { /* closing inside the callback is allowed */
        fvm_port_close(&e->client);
        fvm_loop_stop(e->loop, 0);
    }
}

static void too_late(void *p)
{
    struct echo *e = p;
    printf("\n  stuck after %d of %d\n", e->got, ECHOES);
    fvm_loop_stop(e->loop, 1);
}

static void test_loop(void)
{
    struct echo e = {0};
    struct fvm_port *l = listening(&server);
    struct fvm_err err = {0};
    struct fvm_loop_timer *timer;
    CU_ASSERT_EQUAL_FATAL(fvm_loop_create(&e.loop), 0);
    CU_ASSERT_EQUAL_FATAL(fvm_port_connect(ctx, fvm_port_addr(l), server.public_key, &client, NULL, &e.client, &err),
                          0);
    for (int i = 0; i < 10; i++)
        CU_ASSERT_EQUAL(fvm_port_send_bytes(e.client, NULL, &i, sizeof(i), 1000), 0);
    CU_ASSERT_EQUAL(fvm_port_attach(l, e.loop, on_server, &e), 0);
    CU_ASSERT_EQUAL(fvm_port_attach(e.client, e.loop, on_client, &e), 0);
    CU_ASSERT_EQUAL(fvm_loop_timer_add(e.loop, too_late, &e, &timer), 0);
    fvm_loop_timer_arm(timer, fvm_now_ns() + 20000000000ull);
    CU_ASSERT_EQUAL(fvm_loop_run(e.loop), 0);
    CU_ASSERT_EQUAL(e.got, ECHOES);
    fvm_loop_timer_remove(&timer);
    fvm_port_close(&e.client);
    fvm_port_close(&l);
    while (fvm_loop_turn(e.loop, 0) > 0)
        ;
    fvm_loop_destroy(&e.loop);
}

int main(void)
{
    struct fvm_err err = {0};
    fvm_log_set_level(FVM_LOG_ERROR);
    if (fvm_port_ctx_create(1, &ctx, &err) || fvm_port_keygen(&server) || fvm_port_keygen(&client) ||
        fvm_port_keygen(&stranger))
        return 1;
    CU_initialize_registry();
    CU_pSuite s = CU_add_suite("net_port", NULL, NULL);
    CU_add_test(s, "round trip", test_round_trip);
    CU_add_test(s, "who may in", test_who);
    CU_add_test(s, "sessions", test_gap);
    CU_add_test(s, "full queue", test_full);
    CU_add_test(s, "garbage", test_garbage);
    CU_add_test(s, "loop", test_loop);
    CU_basic_set_mode(CU_BRM_VERBOSE);
    CU_basic_run_tests();
    unsigned failed = CU_get_number_of_failures();
    CU_cleanup_registry();
    fvm_port_ctx_destroy(&ctx);
    return failed ? 1 : 0;
}
