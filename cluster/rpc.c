/*
 * rpc.c - packs, sends, checks the cluster's messages; the operator's blocking client.
 *
 * Invariant: what fvm_rpc_parse lets through is one whole ClusterMessage of our protocol. It says nothing about the
 * content: whoever handles a request checks every field.
 */
#include "cluster/rpc.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct fvm_rpc_client {
    struct fvm_port *port;
    uint64_t next_id;
    unsigned drops; /* of the link, when it was opened */
    char peer[64];
};

static void free_buf(void *data, void *hint)
{
    (void)hint;
    free(data);
}

static int send_message(struct fvm_port *port, const struct fvm_port_peer *peer, Fvm__ClusterMessage *m, int timeout_ms)
{
    m->protocol = FVM_RPC_PROTOCOL;
    m->version = (char *)FVM_VERSION;
    size_t len = fvm__cluster_message__get_packed_size(m);
    uint8_t *data = malloc(len ? len : 1);
    if (!data)
        return FVM_ENOMEM;
    fvm__cluster_message__pack(m, data);
    struct fvm_port_buf buf = {.data = data, .len = len, .free_fn = free_buf};
    return fvm_port_send(port, peer, &buf, 1, timeout_ms);
}

int fvm_rpc_send_request(struct fvm_port *port, Fvm__Request *request)
{
    Fvm__ClusterMessage m = FVM__CLUSTER_MESSAGE__INIT;
    m.what_case = FVM__CLUSTER_MESSAGE__WHAT_REQUEST;
    m.request = request;
    return send_message(port, NULL, &m, 0);
}

int fvm_rpc_send_reply(struct fvm_port *port, const struct fvm_port_peer *peer, Fvm__Reply *reply)
{
    Fvm__ClusterMessage m = FVM__CLUSTER_MESSAGE__INIT;
    m.what_case = FVM__CLUSTER_MESSAGE__WHAT_REPLY;
    m.reply = reply;
    return send_message(port, peer, &m, 0);
}

int fvm_rpc_send_frame(struct fvm_port *port, const struct fvm_port_peer *peer, const void *frame, size_t len)
{
    Fvm__ClusterMessage m = FVM__CLUSTER_MESSAGE__INIT;
    m.what_case = FVM__CLUSTER_MESSAGE__WHAT_FRAME;
    m.frame.data = (uint8_t *)(uintptr_t)frame;
    m.frame.len = len;
    return send_message(port, peer, &m, 0);
}

int fvm_rpc_parse(struct fvm_port_msg *msg, Fvm__ClusterMessage **ret_message, struct fvm_err *err)
{
    if (fvm_port_msg_count(msg) != 1 || fvm_port_msg_len(msg, 0) > FVM_RPC_BYTES_MAX)
        return fvm_err_set(err, FVM_EPROTO, 0, "cluster", "a message of %u frames or too many bytes",
                           fvm_port_msg_count(msg));
    Fvm__ClusterMessage *m = fvm__cluster_message__unpack(NULL, fvm_port_msg_len(msg, 0), fvm_port_msg_data(msg, 0));
    if (!m)
        return fvm_err_set(err, FVM_EPROTO, 0, "cluster", "a message that is not fvm's");
    if (m->protocol != FVM_RPC_PROTOCOL) {
        int rc = fvm_err_set(err, FVM_EVERSION, 0, "cluster",
                             "the peer (fvm %.20s) speaks protocol %u, this side (fvm %s) %d: upgrade the %s",
                             m->version, m->protocol, FVM_VERSION, FVM_RPC_PROTOCOL,
                             m->protocol < FVM_RPC_PROTOCOL ? "peer" : "side here");
        fvm__cluster_message__free_unpacked(m, NULL);
        return rc;
    }
    bool whole = (m->what_case == FVM__CLUSTER_MESSAGE__WHAT_REQUEST && m->request && m->request->what_case) ||
                 (m->what_case == FVM__CLUSTER_MESSAGE__WHAT_REPLY && m->reply) ||
                 m->what_case == FVM__CLUSTER_MESSAGE__WHAT_FRAME;
    if (!whole) {
        fvm__cluster_message__free_unpacked(m, NULL);
        return fvm_err_set(err, FVM_EPROTO, 0, "cluster", "an empty message, or a request this fvm (%s) does not know",
                           FVM_VERSION);
    }
    *ret_message = m;
    return 0;
}

/* ---- client ---- */

int fvm_rpc_open(struct fvm_port_ctx *ctx, const char *peer_name, const char *addr, const char *peer_key,
                 const struct fvm_port_keys *keys, int timeout_ms, struct fvm_rpc_client **ret_client,
                 struct fvm_err *err)
{
    struct fvm_port_options opt = {.frame_bytes_max = FVM_RPC_BYTES_MAX, .linger_ms = 200};
    struct fvm_rpc_client *client = calloc(1, sizeof(*client));
    if (!client)
        return fvm_err_set(err, FVM_ENOMEM, 0, "cluster", "out of memory");
    snprintf(client->peer, sizeof(client->peer), "%s", peer_name);
    int rc = fvm_port_connect(ctx, addr, peer_key, keys, &opt, &client->port, err);
    if (!rc) {
        rc = fvm_port_wait_up(client->port, timeout_ms, err);
        if (rc == FVM_ETIMEOUT)
            fvm_err_set(err, rc, 0, "cluster", "node %s does not answer at %s: is fvm-node running there?", peer_name,
                        addr);
        else if (rc == FVM_EAUTH)
            fvm_err_set(err, rc, 0, "cluster",
                        "node %s at %s refuses this key, or has another one than cluster.json says", peer_name, addr);
    }
    if (rc) {
        fvm_rpc_close(&client);
        return rc;
    }
    client->drops = fvm_port_drops(client->port);
    *ret_client = client;
    return 0;
}

void fvm_rpc_close(struct fvm_rpc_client **client_p)
{
    struct fvm_rpc_client *client = *client_p;
    *client_p = NULL;
    if (client && client->port)
        fvm_port_close(&client->port);
    free(client);
}

const char *fvm_rpc_peer(const struct fvm_rpc_client *client) { return client->peer; }

int fvm_rpc_start(struct fvm_rpc_client *client, Fvm__Request *request, struct fvm_err *err)
{
    request->id = ++client->next_id;
    int rc = fvm_rpc_send_request(client->port, request);
    return rc ? fvm_err_set(err, rc, 0, "cluster", "node %s: cannot send: %s", client->peer, fvm_err_text(rc)) : 0;
}

/* 0 with *ret_reply set, 0 without it (not for us), or the peer's protocol is wrong. */
static int take_reply(struct fvm_rpc_client *client, uint64_t id, Fvm__Reply **ret_reply, struct fvm_err *err)
{
    struct fvm_port_msg *msg = NULL;
    Fvm__ClusterMessage *m = NULL;
    if (fvm_port_recv(client->port, &msg, 0))
        return 0;
    int rc = fvm_rpc_parse(msg, &m, err);
    fvm_port_msg_destroy(&msg);
    if (rc)
        return rc;
    if (m->what_case == FVM__CLUSTER_MESSAGE__WHAT_REPLY && m->reply->id == id) {
        *ret_reply = m->reply;
        m->what_case = FVM__CLUSTER_MESSAGE__WHAT__NOT_SET;
        m->reply = NULL;
    }
    fvm__cluster_message__free_unpacked(m, NULL);
    return 0;
}

int fvm_rpc_next(struct fvm_rpc_client *client, uint64_t id, int timeout_ms, int wake_fd, Fvm__Reply **ret_reply,
                 struct fvm_err *err)
{
    uint64_t deadline = timeout_ms < 0 ? UINT64_MAX : fvm_now_ns() + (uint64_t)timeout_ms * 1000000;
    Fvm__Reply *reply = NULL;
    for (;;) {
        int rc = take_reply(client, id, &reply, err);
        if (rc)
            return rc;
        if (reply) {
            *ret_reply = reply;
            return 0;
        }
        if (fvm_port_drops(client->port) != client->drops)
            return fvm_err_set(err, FVM_ECLOSED, 0, "cluster",
                               "node %s: connection lost before its answer: look at the state and try again",
                               client->peer);
        uint64_t now = fvm_now_ns();
        if (now >= deadline)
            return fvm_err_set(err, FVM_ETIMEOUT, 0, "cluster", "node %s gave no answer in time", client->peer);
        uint64_t left = (deadline - now) / 1000000 + 1;
        unsigned ready = fvm_port_poll(&client->port, 1, wake_fd, (int)FVM_MIN(left, 500u));
        if (ready & (1u << 31))
            return FVM_EBUSY;
    }
}

int fvm_rpc_call(struct fvm_rpc_client *client, Fvm__Request *request, int timeout_ms, Fvm__Reply **ret_reply,
                 struct fvm_err *err)
{
    Fvm__Reply *reply = NULL;
    int rc = fvm_rpc_start(client, request, err);
    while (!rc && !(reply && reply->last)) {
        if (reply)
            fvm__reply__free_unpacked(reply, NULL);
        reply = NULL;
        rc = fvm_rpc_next(client, request->id, timeout_ms, -1, &reply, err);
    }
    if (rc)
        return rc;
    if (reply->code < 0)
        rc = fvm_err_set(err, reply->code, 0, "cluster", "%s", reply->text);
    if (rc && !reply->redirect[0])
        fvm__reply__free_unpacked(reply, NULL);
    else
        *ret_reply = reply;
    return rc;
}
