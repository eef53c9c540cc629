/*
 * cluster_rpc.c - the nodes' messages: another protocol, garbage and unknown requests are told apart and refused;
 * replies find their request; records survive the store.
 */
#include <CUnit/Basic.h>
#include <CUnit/CUnit.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cluster/rpc.h"
#include "cluster/vmdb.h"
#include "cluster/vmrecord.h"

static struct fvm_port_ctx *ctx;
static struct fvm_port_keys server_keys, client_keys, stranger;
static struct fvm_port *server;

static bool allow(void *unused, const char *key, const char *addr)
{
    (void)unused;
    (void)addr;
    return strcmp(key, client_keys.public_key) == 0;
}

static int up(void)
{
    return fvm_port_keygen(&server_keys) || fvm_port_keygen(&client_keys) || fvm_port_keygen(&stranger) ||
           fvm_port_ctx_create(1, &ctx, NULL) ||
           fvm_port_listen(ctx, "tcp://127.0.0.1:*", &server_keys, allow, NULL, NULL, &server, NULL);
}

static int down(void)
{
    fvm_port_close(&server);
    fvm_port_ctx_destroy(&ctx);
    return 0;
}

/* The server's side of one exchange, by hand: takes one message and says what parse made of it. */
static int take(Fvm__ClusterMessage **ret_m, struct fvm_port_peer *ret_peer, struct fvm_err *err)
{
    struct fvm_port_msg *msg = NULL;
    CU_ASSERT_EQUAL_FATAL(fvm_port_recv(server, &msg, 5000), 0);
    *ret_peer = *fvm_port_msg_peer(msg);
    int rc = fvm_rpc_parse(msg, ret_m, err);
    fvm_port_msg_destroy(&msg);
    return rc;
}

static void send_raw(struct fvm_port *port, const void *data, size_t len)
{
    CU_ASSERT_EQUAL(fvm_port_send_bytes(port, NULL, data, len, 1000), 0);
}

static struct fvm_port *connect_raw(void)
{
    struct fvm_port *port = NULL;
    CU_ASSERT_EQUAL_FATAL(
        fvm_port_connect(ctx, fvm_port_addr(server), server_keys.public_key, &client_keys, NULL, &port, NULL), 0);
    CU_ASSERT_EQUAL_FATAL(fvm_port_wait_up(port, 5000, NULL), 0);
    return port;
}

static void test_hostile(void)
{
    struct fvm_port *port = connect_raw();
    struct fvm_port_peer peer;
    struct fvm_err err = {0};
    Fvm__ClusterMessage *m = NULL, other = FVM__CLUSTER_MESSAGE__INIT;
    uint8_t packed[64];
    send_raw(port, "\xff\xff\xff\xff garbage", 12);
    CU_ASSERT_EQUAL(take(&m, &peer, &err), FVM_EPROTO);
    send_raw(port, "", 0); /* an empty protobuf message: protocol 0 */
    CU_ASSERT_EQUAL(take(&m, &peer, &err), FVM_EVERSION);
    other.protocol = FVM_RPC_PROTOCOL + 1;
    other.version = (char *)"9.9";
    size_t len = fvm__cluster_message__pack(&other, packed);
    send_raw(port, packed, len);
    CU_ASSERT_EQUAL(take(&m, &peer, &err), FVM_EVERSION);
    CU_ASSERT_TRUE(strstr(err.text, "9.9") && strstr(err.text, "upgrade the side here"));
    other.protocol = FVM_RPC_PROTOCOL; /* ours, but nothing in it */
    len = fvm__cluster_message__pack(&other, packed);
    send_raw(port, packed, len);
    CU_ASSERT_EQUAL(take(&m, &peer, &err), FVM_EPROTO);
    Fvm__Request empty = FVM__REQUEST__INIT; /* a request of a kind that this fvm does not know */
    CU_ASSERT_EQUAL(fvm_rpc_send_request(port, &empty), 0);
    CU_ASSERT_EQUAL(take(&m, &peer, &err), FVM_EPROTO);
    CU_ASSERT_PTR_NULL(m);
    fvm_port_close(&port);
}

static void test_strangers(void)
{
    struct fvm_rpc_client *client = NULL;
    struct fvm_err err = {0};
    CU_ASSERT_EQUAL(
        fvm_rpc_open(ctx, "a", fvm_port_addr(server), server_keys.public_key, &stranger, 3000, &client, &err),
        FVM_EAUTH);
    CU_ASSERT_EQUAL(
        fvm_rpc_open(ctx, "a", fvm_port_addr(server), stranger.public_key, &client_keys, 1500, &client, &err) == 0, 0);
    CU_ASSERT_EQUAL(
        fvm_rpc_open(ctx, "a", "tcp://127.0.0.1:1", server_keys.public_key, &client_keys, 300, &client, &err),
        FVM_ETIMEOUT);
    CU_ASSERT_TRUE(strstr(err.text, "node a does not answer") != NULL);
    CU_ASSERT_PTR_NULL(client);
}

/* Answers a request with a stray reply, a progress, and the last one. */
static void *answer(void *arg)
{
    Fvm__ClusterMessage *m = NULL;
    struct fvm_port_peer peer;
    if (take(&m, &peer, NULL) || m->what_case != FVM__CLUSTER_MESSAGE__WHAT_REQUEST)
        return NULL;
    Fvm__Reply reply = FVM__REPLY__INIT;
    reply.id = m->request->id + 77;
    reply.last = true;
    (void)fvm_rpc_send_reply(server, &peer, &reply);
    reply.id = m->request->id;
    reply.last = false;
    (void)fvm_rpc_send_reply(server, &peer, &reply);
    reply.last = true;
    reply.code = arg ? FVM_ENOENT : 0;
    reply.text = (char *)(arg ? "no such thing" : "done");
    (void)fvm_rpc_send_reply(server, &peer, &reply);
    fvm__cluster_message__free_unpacked(m, NULL);
    return NULL;
}

static void test_calls(void)
{
    struct fvm_rpc_client *client = NULL;
    struct fvm_err err = {0};
    Fvm__Request request = FVM__REQUEST__INIT;
    Fvm__Empty nothing = FVM__EMPTY__INIT;
    Fvm__Reply *reply = NULL;
    pthread_t thread;
    request.what_case = FVM__REQUEST__WHAT_PING;
    request.ping = &nothing;
    CU_ASSERT_EQUAL_FATAL(
        fvm_rpc_open(ctx, "a", fvm_port_addr(server), server_keys.public_key, &client_keys, 3000, &client, &err), 0);
    pthread_create(&thread, NULL, answer, NULL);
    CU_ASSERT_EQUAL_FATAL(fvm_rpc_call(client, &request, 5000, &reply, &err), 0);
    CU_ASSERT_STRING_EQUAL(reply->text, "done");
    fvm__reply__free_unpacked(reply, NULL);
    pthread_join(thread, NULL);
    reply = NULL;
    pthread_create(&thread, NULL, answer, (void *)1);
    CU_ASSERT_EQUAL(fvm_rpc_call(client, &request, 5000, &reply, &err), FVM_ENOENT);
    CU_ASSERT_STRING_EQUAL(err.text, "no such thing");
    CU_ASSERT_PTR_NULL(reply);
    pthread_join(thread, NULL);
    CU_ASSERT_EQUAL(fvm_rpc_call(client, &request, 200, &reply, &err), FVM_ETIMEOUT);
    fvm_rpc_close(&client);
}

/* The hand-over's interface over the store: what goes in comes out, two swappers of one revision do not both win. */
static void test_record(void)
{
    char dir[] = "/tmp/fvm-rec-XXXXXX", url[64], cmd[64];
    struct fvm_store *store = NULL;
    struct fvm_vmrecord *a = NULL, *b = NULL;
    struct fvm_ho_record r, next, read;
    uint64_t revision = 0;
    uint8_t id[FVM_HO_ID_BYTES] = {1, 2, 3, 0, 5};
    CU_ASSERT_PTR_NOT_NULL_FATAL(mkdtemp(dir));
    snprintf(url, sizeof(url), "sqlite:%s/s.db", dir);
    CU_ASSERT_EQUAL_FATAL(fvm_store_open(url, &store, NULL), 0);
    CU_ASSERT_EQUAL_FATAL(fvm_vmrecord_open(url, "v", &a, NULL), 0);
    CU_ASSERT_EQUAL_FATAL(fvm_vmrecord_open(url, "v", &b, NULL), 0);
    struct fvm_record_store sa = fvm_vmrecord_store(a), sb = fvm_vmrecord_store(b);
    CU_ASSERT_EQUAL(sa.get(sa.ctx, &r, &revision, NULL), FVM_ENOENT);
    Fvm__VmConfig config = FVM__VM_CONFIG__INIT;
    config.name = (char *)"v";
    CU_ASSERT_EQUAL(fvm_vmdb_create(store, &config, "n1", NULL), 0);
    CU_ASSERT_EQUAL(fvm_vmdb_create(store, &config, "n2", NULL), FVM_EEXIST);
    CU_ASSERT_EQUAL_FATAL(sa.get(sa.ctx, &r, &revision, NULL), 0);
    CU_ASSERT_STRING_EQUAL(r.owner, "n1");
    CU_ASSERT_EQUAL(r.phase, FVM_HO_STABLE);
    CU_ASSERT_EQUAL_FATAL(fvm_ho_begin(&r, "n1", "n2", id, &next), 0);
    CU_ASSERT_EQUAL(sa.cas(sa.ctx, revision, &next, NULL), 0);
    CU_ASSERT_EQUAL(sb.cas(sb.ctx, revision, &next, NULL), FVM_ECONFLICT);
    CU_ASSERT_EQUAL(sb.get(sb.ctx, &read, &revision, NULL), 0);
    CU_ASSERT_EQUAL(read.phase, FVM_HO_MIG);
    CU_ASSERT_EQUAL(memcmp(read.mig_id, id, sizeof(id)), 0);
    CU_ASSERT_STRING_EQUAL(read.to, "n2");
    next.owner[0] = 0;
    CU_ASSERT_EQUAL(sa.cas(sa.ctx, revision, &next, NULL), FVM_EINVAL);
    CU_ASSERT_EQUAL(fvm_vmdb_delete(store, "v", revision + 9, NULL), FVM_ECONFLICT);
    CU_ASSERT_EQUAL(fvm_vmdb_delete(store, "v", revision, NULL), 0);
    CU_ASSERT_EQUAL(sa.get(sa.ctx, &r, &revision, NULL), FVM_ENOENT);
    CU_ASSERT_EQUAL(fvm_store_cas(store, "/vm/v/record", 0, "\xff\xff", 2, 0, NULL, NULL), 0);
    CU_ASSERT_EQUAL(sa.get(sa.ctx, &r, &revision, NULL), FVM_EBADIMAGE);
    fvm_vmrecord_close(&a);
    fvm_vmrecord_close(&b);
    fvm_store_close(&store);
    snprintf(cmd, sizeof(cmd), "rm -rf '%s'", dir);
    CU_ASSERT_EQUAL(system(cmd), 0);
}

int main(void)
{
    CU_initialize_registry();
    CU_pSuite suite = CU_add_suite("cluster rpc", up, down);
    CU_add_test(suite, "hostile messages", test_hostile);
    CU_add_test(suite, "strangers", test_strangers);
    CU_add_test(suite, "calls", test_calls);
    CU_add_test(suite, "records in the store", test_record);
    CU_basic_set_mode(CU_BRM_VERBOSE);
    CU_basic_run_tests();
    unsigned failed = CU_get_number_of_failures();
    CU_cleanup_registry();
    return failed != 0;
}
