/*
 * node_rpc.c - requests come in at the port, become calls, and each call ends with exactly one last reply.
 *
 * Only members reach this code (CURVE and the allow-list are before it), yet a member's message is checked like
 * anybody's. Requests for nodes only are refused to operators. Who called what is logged.
 *
 * Invariant: a call is on node->calls until it ends; ending frees it.
 */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "cluster/node.h"

static void send_reply(struct fvm_node_call *call, Fvm__Reply *reply)
{
    reply->id = call->id;
    int rc = fvm_rpc_send_reply(call->node->port, &call->peer, reply);
    bool slow = rc == FVM_EBUSY && call->input; /* a console's viewer that does not read */
    if ((rc == FVM_ECLOSED || slow) && !reply->last && call->gone)
        call->gone(call); /* may end the call */
    else if (rc && rc != FVM_ECLOSED)
        fvm_log(WARN, "rpc.reply_dropped", "to=\"%s\" why=\"%s\"", call->who, fvm_err_text(rc));
}

void fvm_node_call_send(struct fvm_node_call *call, Fvm__Reply *reply)
{
    reply->last = false;
    send_reply(call, reply);
}

void fvm_node_call_end(struct fvm_node_call *call, Fvm__Reply *reply)
{
    struct fvm_node *node = call->node;
    reply->last = true;
    send_reply(call, reply);
    for (struct fvm_node_call **p = &node->calls; *p; p = &(*p)->next)
        if (*p == call) {
            *p = call->next;
            node->call_count--;
            break;
        }
    free(call);
}

void fvm_node_call_text(struct fvm_node_call *call, const char *fmt, ...)
{
    char text[512];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof(text), fmt, ap);
    va_end(ap);
    Fvm__Reply reply = FVM__REPLY__INIT;
    reply.text = text;
    fvm_node_call_end(call, &reply);
}

void fvm_node_call_fail(struct fvm_node_call *call, const struct fvm_err *err)
{
    Fvm__Reply reply = FVM__REPLY__INIT;
    reply.code = err->code ? err->code : FVM_EINTERNAL;
    reply.text = (char *)(uintptr_t)err->text;
    fvm_log(INFO, "rpc.failed", "by=\"%s\" why=\"%s\"", call->who, err->text);
    fvm_node_call_end(call, &reply);
}

void fvm_node_call_redirect(struct fvm_node_call *call, const char *node_name)
{
    char text[200];
    Fvm__Reply reply = FVM__REPLY__INIT;
    snprintf(text, sizeof(text), "node %s has it", node_name);
    reply.code = FVM_ESTATE;
    reply.text = text;
    reply.redirect = (char *)(uintptr_t)node_name;
    fvm_node_call_end(call, &reply);
}

static struct fvm_node_call *find_call(struct fvm_node *node, const struct fvm_port_peer *peer, uint64_t session,
                                       uint64_t id)
{
    for (struct fvm_node_call *c = node->calls; c; c = c->next)
        if (c->id == id && c->session == session && strcmp(c->peer.key, peer->key) == 0)
            return c;
    return NULL;
}

static void refuse(struct fvm_node *node, const struct fvm_port_peer *peer, uint64_t id, const struct fvm_err *err)
{
    Fvm__Reply reply = FVM__REPLY__INIT;
    reply.id = id;
    reply.last = true;
    reply.code = err->code;
    reply.text = (char *)(uintptr_t)err->text;
    (void)fvm_rpc_send_reply(node->port, peer, &reply);
}

static void begin_call(struct fvm_node *node, const struct fvm_port_peer *peer, uint64_t session, const char *who,
                       const Fvm__Request *request)
{
    struct fvm_err err = {0};
    struct fvm_node_call *call = NULL;
    if (node->call_count >= FVM_NODE_CALLS_MAX)
        fvm_err_set(&err, FVM_EBUSY, 0, "cluster", "node %s serves %d requests already, try later", node->name,
                    FVM_NODE_CALLS_MAX);
    else if (find_call(node, peer, session, request->id))
        fvm_err_set(&err, FVM_EPROTO, 0, "cluster", "a request of that id is being served");
    else if (request->what_case >= FVM__REQUEST__WHAT_INCOMING && strncmp(who, "node ", 5))
        fvm_err_set(&err, FVM_EPERM, 0, "cluster", "only a node may ask that");
    else if (!(call = calloc(1, sizeof(*call))))
        fvm_err_set(&err, FVM_ENOMEM, 0, "cluster", "out of memory");
    if (!call) {
        refuse(node, peer, request->id, &err);
        return;
    }
    *call =
        (struct fvm_node_call){.next = node->calls, .node = node, .peer = *peer, .id = request->id, .session = session};
    snprintf(call->who, sizeof(call->who), "%s", who);
    node->calls = call;
    node->call_count++;
    node->calls_total++;
    fvm_node_ops_handle(call, request);
}

static void handle_request(struct fvm_node *node, const struct fvm_port_peer *peer, uint64_t session, const char *who,
                           const Fvm__Request *request)
{
    struct fvm_node_call *call = NULL;
    switch (request->what_case) {
    case FVM__REQUEST__WHAT_INPUT:
        call = find_call(node, peer, session, request->input->of);
        if (call && call->input)
            call->input(call, request->input->data.data, request->input->data.len);
        break;
    case FVM__REQUEST__WHAT_CANCEL:
        call = find_call(node, peer, session, request->cancel->of);
        if (call && call->cancelled)
            call->cancelled(call);
        break;
    default:
        begin_call(node, peer, session, who, request);
    }
}

/* The member behind a key, as "node a"; false when it was removed since it connected. */
static bool name_peer(struct fvm_node *node, const char *key, char *who, size_t size)
{
    const struct fvm_dir_member *m = fvm_dir_find_key(&node->dir, key);
    if (m)
        snprintf(who, size, "%s %s", m->kind == FVM_DIR_NODE ? "node" : "operator", m->name);
    return m != NULL;
}

void fvm_node_rpc_message(void *ctx, struct fvm_port *port, struct fvm_port_msg **msg_p)
{
    struct fvm_node *node = ctx;
    const struct fvm_port_peer peer = *fvm_port_msg_peer(*msg_p);
    uint64_t session = fvm_port_msg_session(*msg_p);
    char who[FVM_DIR_NAME_MAX + 12];
    struct fvm_err err = {0};
    Fvm__ClusterMessage *m = NULL;
    (void)port;
    if (!name_peer(node, peer.key, who, sizeof(who))) {
        fvm_log(WARN, "rpc.refused", "key=%s why=\"no longer in cluster.json\"", peer.key);
        return;
    }
    if (fvm_rpc_parse(*msg_p, &m, &err)) {
        fvm_log(WARN, "rpc.malformed", "from=\"%s\" why=\"%s\"", who, err.text);
        refuse(node, &peer, 0, &err);
        return;
    }
    if (m->what_case == FVM__CLUSTER_MESSAGE__WHAT_REQUEST)
        handle_request(node, &peer, session, who, m->request);
    else if (m->what_case == FVM__CLUSTER_MESSAGE__WHAT_FRAME && strncmp(who, "node ", 5) == 0)
        fvm_node_net_frame(node, who + 5, m->frame.data, m->frame.len);
    fvm__cluster_message__free_unpacked(m, NULL);
}
