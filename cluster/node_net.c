/*
 * node_net.c - the node's switch (net/switch.h) and its links to the switches of all other members, over the nodes'
 * ports.
 *
 * One node may be the gateway: there libslirp gives the guests a way out and the host's forwards a way in. Guests keep
 * their connections through it wherever they run. /net/gateway in the store keeps it to one node.
 *
 * Invariant: one link per other member of cluster.json, so that the mesh is full.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "cluster/node.h"
#include "net/switch.h"
#include "vmm/vm_config.h"

struct net_link {
    struct net_link *next;
    struct fvm_node *node;
    struct fvm_switch_link *link;
    char name[FVM_DIR_NAME_MAX + 1];
};

struct fvm_node_net {
    struct fvm_switch *sw;
    struct net_link *links;
    bool gateway;
    char path[4200];
};

static bool send_frame(void *ctx, const uint8_t *frame, size_t len)
{
    struct net_link *l = ctx;
    return fvm_node_link_frame(l->node, l->name, frame, len);
}

static const struct fvm_switch_link_ops link_ops = {.send = send_frame};

static void remove_link(struct fvm_node_net *net, struct net_link *l)
{
    for (struct net_link **p = &net->links; *p; p = &(*p)->next)
        if (*p == l) {
            *p = l->next;
            break;
        }
    fvm_switch_link_remove(&l->link);
    free(l);
}

static void add_link(struct fvm_node *node, const char *name)
{
    struct net_link *l = calloc(1, sizeof(*l));
    if (!l)
        return;
    l->node = node;
    snprintf(l->name, sizeof(l->name), "%s", name);
    if (fvm_switch_link_add(node->net->sw, name, &link_ops, l, &l->link)) {
        free(l);
        return;
    }
    l->next = node->net->links;
    node->net->links = l;
    fvm_node_link_want(node, name);
}

static struct net_link *find_link(const struct fvm_node *node, const char *name)
{
    struct net_link *l = node->net ? node->net->links : NULL;
    while (l && strcmp(l->name, name))
        l = l->next;
    return l;
}

void fvm_node_net_members(struct fvm_node *node)
{
    if (!node->net)
        return;
    for (struct net_link *l = node->net->links, *next; l; l = next) {
        next = l->next;
        if (!fvm_dir_find(&node->dir, FVM_DIR_NODE, l->name))
            remove_link(node->net, l);
    }
    for (size_t i = 0; i < node->dir.member_count; i++) {
        const struct fvm_dir_member *m = &node->dir.members[i];
        if (m->kind == FVM_DIR_NODE && strcmp(m->name, node->name) && !find_link(node, m->name))
            add_link(node, m->name);
    }
}

void fvm_node_net_frame(struct fvm_node *node, const char *from, const uint8_t *frame, size_t len)
{
    struct net_link *l = find_link(node, from);
    if (l)
        fvm_switch_link_receive(l->link, frame, len);
}

void fvm_node_net_metrics(struct fvm_node *node, FILE *out)
{
    struct fvm_switch_stats s;
    fvm_switch_get_stats(node->net->sw, &s);
    const struct {
        const char *name, *type;
        uint64_t value;
    } list[] = {{"vms", "gauge", s.vms},
                {"links", "gauge", s.links},
                {"macs", "gauge", s.macs},
                {"gateway", "gauge", s.gateway},
                {"frames_total", "counter", s.frames},
                {"flooded_total", "counter", s.flooded},
                {"dropped_total", "counter", s.dropped},
                {"moves_total", "counter", s.moves}};
    for (size_t i = 0; i < FVM_ARRAY_SIZE(list); i++)
        fprintf(out, "# TYPE fvm_switch_%s %s\nfvm_switch_%s %llu\n", list[i].name, list[i].type, list[i].name,
                (unsigned long long)list[i].value);
}

const char *fvm_node_net_socket(const struct fvm_node *node) { return node->net ? node->net->path : ""; }

/* One gateway in the cluster: its key hangs on the node's lease. */
static int claim_gateway(struct fvm_node *node, struct fvm_err *err)
{
    struct fvm_store_item item = {0};
    uint64_t expect = 0;
    if (fvm_store_get(node->store, "/net/gateway", &item, NULL) == 0) {
        if (strcmp(item.value, node->name) && fvm_node_member_up(node, item.value)) {
            int rc = fvm_err_set(err, FVM_EBUSY, 0, "cluster",
                                 "node %s is the gateway already: start only one node with --gateway", item.value);
            fvm_store_item_fini(&item);
            return rc;
        }
        expect = item.revision;
    }
    fvm_store_item_fini(&item);
    return fvm_store_cas(node->store, "/net/gateway", expect, node->name, strlen(node->name), node->lease, NULL, err);
}

void fvm_node_net_lease(struct fvm_node *node)
{
    struct fvm_err err = {0};
    if (!node->net || !node->net->gateway || !claim_gateway(node, &err))
        return;
    fvm_log(ERROR, "net.gateway_lost", "why=\"%s\"", err.text);
    (void)fvm_switch_set_gateway(node->net->sw, NULL, NULL);
    node->net->gateway = false;
}

static int take_forward(const char *text, struct fvm_net_forward *ret, struct fvm_err *err)
{
    Fvm__HostForward f = FVM__HOST_FORWARD__INIT;
    f.proto = f.host_addr = f.guest_addr = NULL;
    int rc = fvm_config_parse_forward(text, &f, err);
    if (!rc) {
        ret->udp = strcmp(f.proto, "udp") == 0;
        ret->host_port = (uint16_t)f.host_port;
        ret->guest_port = (uint16_t)f.guest_port;
        snprintf(ret->host_addr, sizeof(ret->host_addr), "%s", f.host_addr);
        snprintf(ret->guest_addr, sizeof(ret->guest_addr), "%s", f.guest_addr);
    }
    free(f.proto);
    free(f.host_addr);
    free(f.guest_addr);
    return rc;
}

static int open_gateway(struct fvm_node *node, const struct fvm_node_options *opt, struct fvm_err *err)
{
    struct fvm_net_forward *forwards = calloc(opt->forward_count + 1, sizeof(*forwards));
    struct fvm_net_options net = {.kind = "user", .forwards = forwards, .forward_count = opt->forward_count};
    int rc = forwards ? claim_gateway(node, err) : fvm_err_set(err, FVM_ENOMEM, 0, "cluster", "out of memory");
    for (unsigned i = 0; !rc && i < opt->forward_count; i++)
        rc = take_forward(opt->forwards[i], &forwards[i], err);
    if (!rc)
        rc = fvm_switch_set_gateway(node->net->sw, &net, err);
    node->net->gateway = !rc;
    free(forwards);
    return rc;
}

int fvm_node_net_open(struct fvm_node *node, const struct fvm_node_options *opt, struct fvm_err *err)
{
    node->net = calloc(1, sizeof(*node->net));
    if (!node->net)
        return fvm_err_set(err, FVM_ENOMEM, 0, "cluster", "out of memory");
    snprintf(node->net->path, sizeof(node->net->path), "%.4000s/switch", node->state_dir);
    int rc = fvm_switch_create(node->loop, node->net->path, &node->net->sw, err);
    if (!rc && opt->gateway)
        rc = open_gateway(node, opt, err);
    if (!rc)
        fvm_node_net_members(node);
    return rc;
}

void fvm_node_net_close(struct fvm_node *node)
{
    if (!node->net)
        return;
    while (node->net->links)
        remove_link(node->net, node->net->links);
    if (node->net->sw)
        fvm_switch_destroy(&node->net->sw);
    free(node->net);
    node->net = NULL;
}
