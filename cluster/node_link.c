/*
 * node_link.c - this node's connections to the others: one connecting port each, made when first needed, kept.
 *
 * Invariant: each call ends once: by its reply, its time-out, or the loss of the connection (then nobody knows whether
 * it was carried out, and the caller looks at the record in the store).
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "cluster/node.h"

struct pending {
    struct pending *next;
    uint64_t id, deadline_ns;
    fvm_node_link_done done;
    void *ctx;
};

struct fvm_node_link {
    struct fvm_node_link *next;
    struct fvm_node *node;
    struct fvm_port *port;
    char name[FVM_DIR_NAME_MAX + 1];
    char address[200];
    char key[FVM_PORT_KEY_CHARS + 1];
    uint64_t next_id;
    unsigned drops;
    struct pending *pending;
};

static void finish(struct fvm_node_link *link, struct pending *p, const Fvm__Reply *reply, const struct fvm_err *err)
{
    for (struct pending **q = &link->pending; *q; q = &(*q)->next)
        if (*q == p) {
            *q = p->next;
            break;
        }
    if (p->done)
        p->done(p->ctx, reply, err);
    free(p);
}

static void on_message(void *ctx, struct fvm_port *port, struct fvm_port_msg **msg_p)
{
    struct fvm_node_link *link = ctx;
    struct fvm_err err = {0};
    Fvm__ClusterMessage *m = NULL;
    (void)port;
    if (fvm_rpc_parse(*msg_p, &m, &err)) {
        fvm_log(WARN, "link.malformed", "from=%s why=\"%s\"", link->name, err.text);
        return;
    }
    if (m->what_case == FVM__CLUSTER_MESSAGE__WHAT_REPLY && m->reply->last) {
        struct pending *p = link->pending;
        while (p && p->id != m->reply->id)
            p = p->next;
        if (m->reply->code < 0)
            fvm_err_set(&err, m->reply->code, 0, "cluster", "%s", m->reply->text);
        if (p)
            finish(link, p, m->reply, &err);
    }
    fvm__cluster_message__free_unpacked(m, NULL);
}

static void close_link(struct fvm_node_link *link, const char *why)
{
    struct fvm_node *node = link->node;
    for (struct fvm_node_link **p = &node->links; *p; p = &(*p)->next)
        if (*p == link) {
            *p = link->next;
            break;
        }
    fvm_port_close(&link->port);
    struct fvm_err err = {0};
    fvm_err_set(&err, FVM_ECLOSED, 0, "cluster", "node %s: %s", link->name, why);
    while (link->pending)
        finish(link, link->pending, NULL, &err);
    free(link);
}

/* The link to a member, made if there is none; one made for an old address or key is replaced. */
static struct fvm_node_link *get_link(struct fvm_node *node, const char *name, struct fvm_err *err)
{
    const struct fvm_dir_member *m = fvm_dir_find(&node->dir, FVM_DIR_NODE, name);
    struct fvm_node_link *link = node->links;
    while (link && strcmp(link->name, name))
        link = link->next;
    if (!m) {
        fvm_err_set(err, FVM_ENOENT, 0, "cluster", "no node \"%.80s\" in this cluster", name);
        return NULL;
    }
    if (link && (strcmp(link->address, m->address) || strcmp(link->key, m->public_key))) {
        close_link(link, "its address changed");
        link = NULL;
    }
    if (link)
        return link;
    struct fvm_port_options opt = {.frame_bytes_max = FVM_RPC_BYTES_MAX, .hwm = 4096};
    link = calloc(1, sizeof(*link));
    if (!link) {
        fvm_err_set(err, FVM_ENOMEM, 0, "cluster", "out of memory");
        return NULL;
    }
    link->node = node;
    snprintf(link->name, sizeof(link->name), "%s", m->name);
    snprintf(link->address, sizeof(link->address), "%s", m->address);
    snprintf(link->key, sizeof(link->key), "%s", m->public_key);
    int rc = fvm_port_connect(node->ctx, m->address, m->public_key, &node->keys, &opt, &link->port, err);
    if (!rc && fvm_port_attach(link->port, node->loop, on_message, link)) {
        fvm_port_close(&link->port);
        rc = fvm_err_set(err, FVM_EINTERNAL, 0, "cluster", "cannot watch the connection to node %s", name);
    }
    if (rc) {
        free(link);
        return NULL;
    }
    link->next = node->links;
    node->links = link;
    return link;
}

int fvm_node_link_call(struct fvm_node *node, const char *name, Fvm__Request *request, unsigned timeout_ms,
                       fvm_node_link_done done, void *ctx, struct fvm_err *err)
{
    struct fvm_node_link *link = get_link(node, name, err);
    struct pending *p = link ? calloc(1, sizeof(*p)) : NULL;
    if (!link)
        return err && err->code ? err->code : FVM_ENOENT;
    if (!p)
        return fvm_err_set(err, FVM_ENOMEM, 0, "cluster", "out of memory");
    request->id = ++link->next_id;
    int rc = fvm_rpc_send_request(link->port, request);
    if (rc) {
        free(p);
        return fvm_err_set(err, rc, 0, "cluster", "node %s: cannot send: %s", name, fvm_err_text(rc));
    }
    *p = (struct pending){.next = link->pending, .id = request->id, .done = done, .ctx = ctx};
    p->deadline_ns = fvm_now_ns() + timeout_ms * 1000000ull;
    link->pending = p;
    return 0;
}

void fvm_node_link_cancel(struct fvm_node *node, void *ctx)
{
    for (struct fvm_node_link *link = node->links; link; link = link->next)
        for (struct pending *p = link->pending; p; p = p->next)
            if (p->ctx == ctx)
                p->done = NULL;
}

void fvm_node_link_want(struct fvm_node *node, const char *name)
{
    struct fvm_err err = {0};
    if (!get_link(node, name, &err))
        fvm_log(WARN, "link.failed", "to=%s why=\"%s\"", name, err.text);
}

/* A frame that waited for a node to come back would be old news: no queue for those. */
bool fvm_node_link_frame(struct fvm_node *node, const char *name, const void *frame, size_t len)
{
    struct fvm_node_link *link = get_link(node, name, NULL);
    return link && fvm_port_link(link->port) == FVM_PORT_UP && fvm_rpc_send_frame(link->port, NULL, frame, len) == 0;
}

/* The first call that is due; NULL when none is. */
static struct pending *due(struct fvm_node_link *link, uint64_t now, bool dropped)
{
    for (struct pending *p = link->pending; p; p = p->next)
        if (dropped || p->deadline_ns <= now)
            return p;
    return NULL;
}

static void tell_due(struct fvm_node_link *link, struct pending *p, bool dropped)
{
    struct fvm_err err = {0};
    if (fvm_port_link(link->port) == FVM_PORT_REFUSED)
        fvm_err_set(&err, FVM_EAUTH, 0, "cluster", "node %s refuses this node's key: is its cluster.json up to date?",
                    link->name);
    else if (dropped)
        fvm_err_set(&err, FVM_ECLOSED, 0, "cluster", "node %s: connection lost", link->name);
    else
        fvm_err_set(&err, FVM_ETIMEOUT, 0, "cluster", "node %s does not answer", link->name);
    finish(link, p, NULL, &err);
}

void fvm_node_link_tick(struct fvm_node *node)
{
    uint64_t now = fvm_now_ns();
    struct fvm_node_link *link = node->links;
    while (link) {
        unsigned drops = fvm_port_drops(link->port);
        struct pending *p = due(link, now, drops != link->drops);
        if (p) {
            tell_due(link, p, drops != link->drops);
            link = node->links; /* what was told may have replaced links */
            continue;
        }
        link->drops = drops;
        link = link->next;
    }
}

void fvm_node_link_close_all(struct fvm_node *node)
{
    while (node->links)
        close_link(node->links, "this node is shutting down");
}
