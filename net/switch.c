/*
 * switch.c - the switch itself: ports, where a frame goes, the gateway, links.
 *
 *                 to VM   to gateway   to link
 *   from VM        yes       yes         yes
 *   from gateway   yes        -          yes
 *   from link      yes       yes         never (split horizon)
 *
 * Invariant: no port is added or removed while a frame is being forwarded: a port that fails to send only drops, its own event
 * closes it later. A frame is never sent back to the port it came from.
 */
#include "net/switch.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/log.h"
#include "net/switch_internal.h"

struct fvm_switch_link {
    struct fvm_switch_port port;
    const struct fvm_switch_link_ops *ops;
    void *ctx;
    char name[64];
};

void fvm_switch_port_add(struct fvm_switch *sw, struct fvm_switch_port *port)
{
    port->sw = sw;
    port->next = sw->ports;
    port->prev_next = &sw->ports;
    if (port->next)
        port->next->prev_next = &port->next;
    sw->ports = port;
}

void fvm_switch_port_remove(struct fvm_switch_port *port)
{
    *port->prev_next = port->next;
    if (port->next)
        port->next->prev_next = port->prev_next;
    fvm_switch_mac_forget(port->sw->macs, port);
}

static bool may_pass(const struct fvm_switch_port *from, const struct fvm_switch_port *to)
{
    return to != from && !(from->kind == FVM_SWITCH_LINK && to->kind == FVM_SWITCH_LINK);
}

static void send_to(struct fvm_switch_port *to, const uint8_t *frame, size_t len)
{
    if (!to->send(to, frame, len))
        to->sw->stats.dropped++;
}

void fvm_switch_forward(struct fvm_switch_port *from, const uint8_t *frame, size_t len)
{
    struct fvm_switch *sw = from->sw;
    if (len < FVM_NET_FRAME_MIN || len > FVM_NET_FRAME_MAX) {
        sw->stats.dropped++;
        return;
    }
    uint64_t now_ns = fvm_now_ns();
    sw->stats.frames++;
    if (fvm_switch_mac_learn(sw->macs, frame + 6, from, now_ns)) {
        sw->stats.moves++;
        fvm_log(DEBUG, "net.switch.move", "mac=%02x:%02x:%02x:%02x:%02x:%02x", frame[6], frame[7], frame[8], frame[9],
                frame[10], frame[11]);
    }
    struct fvm_switch_port *to = frame[0] & 1 ? NULL : fvm_switch_mac_find(sw->macs, frame, now_ns);
    if (to) {
        if (may_pass(from, to))
            send_to(to, frame, len);
        return;
    }
    sw->stats.flooded++;
    for (to = sw->ports; to; to = to->next)
        if (may_pass(from, to))
            send_to(to, frame, len);
}

/* --- links --- */

static bool link_send(struct fvm_switch_port *port, const uint8_t *frame, size_t len)
{
    struct fvm_switch_link *link = FVM_CONTAINER_OF(port, struct fvm_switch_link, port);
    return link->ops->send(link->ctx, frame, len);
}

int fvm_switch_link_add(struct fvm_switch *sw, const char *name, const struct fvm_switch_link_ops *ops, void *ctx,
                        struct fvm_switch_link **ret_link)
{
    struct fvm_switch_link *link = calloc(1, sizeof(*link));
    if (!link)
        return FVM_ENOMEM;
    link->port.kind = FVM_SWITCH_LINK;
    link->port.macs_max = 4096;
    link->port.send = link_send;
    link->ops = ops;
    link->ctx = ctx;
    strncpy(link->name, name, sizeof(link->name) - 1);
    fvm_switch_port_add(sw, &link->port);
    sw->stats.links++;
    fvm_log(INFO, "net.switch.link_up", "name=%s", link->name);
    *ret_link = link;
    return 0;
}

void fvm_switch_link_receive(struct fvm_switch_link *link, const uint8_t *frame, size_t len)
{
    fvm_switch_forward(&link->port, frame, len);
}

void fvm_switch_link_remove(struct fvm_switch_link **link_p)
{
    struct fvm_switch_link *link = *link_p;
    if (!link)
        return;
    *link_p = NULL;
    fvm_log(INFO, "net.switch.link_down", "name=%s", link->name);
    fvm_switch_port_remove(&link->port);
    link->port.sw->stats.links--;
    free(link);
}

/* --- the gateway --- */

static bool gateway_send(struct fvm_switch_port *port, const uint8_t *frame, size_t len)
{
    fvm_net_send(port->sw->gateway, frame, len);
    return true;
}

static bool gateway_deliver(void *ctx, const uint8_t *frame, size_t len)
{
    struct fvm_switch *sw = ctx;
    if (sw->gateway) /* not while it is being opened: its port is not in the list yet */
        fvm_switch_forward(&sw->gateway_port, frame, len);
    return true;
}

static void gateway_close(struct fvm_switch *sw)
{
    if (!sw->gateway)
        return;
    fvm_switch_port_remove(&sw->gateway_port);
    sw->stats.gateway = false;
    struct fvm_net *net = sw->gateway;
    sw->gateway = NULL;
    fvm_net_close(&net);
}

int fvm_switch_set_gateway(struct fvm_switch *sw, const struct fvm_net_options *opt, struct fvm_err *err)
{
    if (opt && opt->kind && opt->kind[0] && strcmp(opt->kind, "user"))
        return fvm_err_set(err, FVM_EUNSUPPORTED, 0, "net", "the gateway of a network must be of kind user, not \"%s\"", opt->kind);
    gateway_close(sw); /* first: the new one may want the same ports */
    if (!opt)
        return 0;
    struct fvm_net *net;
    int r = fvm_net_open(sw->loop, opt, gateway_deliver, sw, &net, err);
    if (r < 0)
        return r;
    sw->gateway = net;
    sw->gateway_port = (struct fvm_switch_port){.kind = FVM_SWITCH_GATEWAY, .macs_max = 64, .send = gateway_send};
    fvm_switch_port_add(sw, &sw->gateway_port);
    sw->stats.gateway = true;
    return 0;
}

/* --- life --- */

void fvm_switch_get_stats(const struct fvm_switch *sw, struct fvm_switch_stats *ret)
{
    *ret = sw->stats;
    ret->macs = sw->macs->count;
}

int fvm_switch_create(struct fvm_loop *loop, const char *path, struct fvm_switch **ret_sw, struct fvm_err *err)
{
    struct fvm_switch *sw = calloc(1, sizeof(*sw));
    struct fvm_switch_mactab *macs = malloc(sizeof(*macs));
    char *copy = strdup(path);
    if (!sw || !macs || !copy) {
        free(sw);
        free(macs);
        free(copy);
        return fvm_err_set(err, FVM_ENOMEM, 0, "net", "switch: out of memory");
    }
    fvm_switch_mac_init(macs);
    sw->loop = loop;
    sw->macs = macs;
    sw->path = copy;
    sw->listener = -1;
    int r = fvm_switch_vm_listen(sw, err);
    if (r < 0) {
        fvm_switch_destroy(&sw);
        return r;
    }
    *ret_sw = sw;
    return 0;
}

void fvm_switch_destroy(struct fvm_switch **sw_p)
{
    struct fvm_switch *sw = *sw_p;
    if (!sw)
        return;
    *sw_p = NULL;
    gateway_close(sw);
    fvm_switch_tcp_close_all(sw);
    while (sw->ports) {
        struct fvm_switch_port *port = sw->ports;
        if (port->kind == FVM_SWITCH_VM) {
            fvm_switch_vm_close(port);
        } else {
            struct fvm_switch_link *link = FVM_CONTAINER_OF(port, struct fvm_switch_link, port);
            fvm_switch_link_remove(&link);
        }
    }
    if (sw->listener_io)
        fvm_loop_io_remove(&sw->listener_io);
    if (sw->listener >= 0) {
        close(sw->listener);
        unlink(sw->path);
    }
    free(sw->path);
    free(sw->macs);
    free(sw);
}
