/*
 * net.c - the front door: chooses the back end, keeps frames while the guest has no buffers, announces a guest that moved.
 *
 * Invariant: frames reach the guest in the order they came in, or not at all; nothing goes in or out while inactive.
 */
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "net/backend.h"

#define NS_PER_MS 1000000ull

/* gaps between announcements; the first goes out at once */
static const unsigned announce_gap_ms[] = {50, 100, 200, 400};

static void queue_clear(struct fvm_net *net)
{
    while (net->head) {
        struct fvm_net_frame *frame = net->head;
        net->head = frame->next;
        free(frame);
    }
    net->tail = &net->head;
    net->queued = 0;
}

void fvm_net_ready(struct fvm_net *net)
{
    while (net->head && net->deliver) {
        struct fvm_net_frame *frame = net->head;
        if (!net->deliver(net->ctx, frame->bytes, frame->len))
            return;
        net->head = frame->next;
        if (!net->head)
            net->tail = &net->head;
        net->queued--;
        free(frame);
    }
}

void fvm_net_receive(struct fvm_net *net, const uint8_t *frame, size_t len)
{
    if (!net->active || !net->deliver || len < FVM_NET_FRAME_MIN || len > FVM_NET_FRAME_MAX)
        return;
    if (!net->head && net->deliver(net->ctx, frame, len))
        return;
    struct fvm_net_frame *copy = net->queued < FVM_NET_QUEUE_FRAMES ? malloc(sizeof(*copy) + len) : NULL;
    if (!copy) {
        net->dropped++;
        return;
    }
    copy->next = NULL;
    copy->len = len;
    memcpy(copy->bytes, frame, len);
    *net->tail = copy;
    net->tail = &copy->next;
    net->queued++;
}

/* --- announcements --- */

void fvm_net_rarp(const uint8_t mac[6], uint8_t ret_frame[60])
{
    static const uint8_t head[] = {0x80, 0x35, 0, 1, 8, 0, 6, 4, 0, 3}; /* RARP, Ethernet, IPv4, request reverse */
    memset(ret_frame, 0, 60);
    memset(ret_frame, 0xff, 6);
    memcpy(ret_frame + 6, mac, 6);
    memcpy(ret_frame + 12, head, sizeof(head));
    memcpy(ret_frame + 22, mac, 6);
    memcpy(ret_frame + 32, mac, 6);
}

static void announce_next(void *ctx)
{
    struct fvm_net *net = ctx;
    uint8_t frame[60];
    if (!net->announcing || !net->active)
        return;
    fvm_net_rarp(net->announce_mac, frame);
    net->ops->send(net, frame, sizeof(frame));
    if (net->announce_step == FVM_ARRAY_SIZE(announce_gap_ms)) {
        net->announcing = false;
        return;
    }
    fvm_loop_timer_arm(net->announce_timer, fvm_now_ns() + announce_gap_ms[net->announce_step++] * NS_PER_MS);
}

void fvm_net_announce(struct fvm_net *net, const uint8_t mac[6])
{
    if (!net->ops->layer2)
        return;
    memcpy(net->announce_mac, mac, 6);
    net->announce_step = 0;
    net->announcing = true;
    announce_next(net);
}

void fvm_net_send(struct fvm_net *net, const uint8_t *frame, size_t len)
{
    if (!net->active || len < FVM_NET_FRAME_MIN || len > FVM_NET_FRAME_MAX)
        return;
    if (net->announcing && net->announce_step > 0 && (frame[0] & 1)) {
        net->announcing = false;
        fvm_loop_timer_arm(net->announce_timer, UINT64_MAX);
    }
    net->ops->send(net, frame, len);
}

/* --- the cable with nothing at its end --- */

static void none_close(struct fvm_net *net)
{
    free(net);
}

static int none_activate(struct fvm_net *net, struct fvm_err *err)
{
    (void)net;
    (void)err;
    return 0;
}

static void none_deactivate(struct fvm_net *net)
{
    (void)net;
}

static void none_send(struct fvm_net *net, const uint8_t *frame, size_t len)
{
    (void)net;
    (void)frame;
    (void)len;
}

static const struct fvm_net_ops none_ops = {
    .kind = "none",
    .close = none_close,
    .activate = none_activate,
    .deactivate = none_deactivate,
    .send = none_send,
};

static int none_create(struct fvm_net **ret_net)
{
    struct fvm_net *net = calloc(1, sizeof(*net));
    if (!net)
        return FVM_ENOMEM;
    net->ops = &none_ops;
    *ret_net = net;
    return 0;
}

/* --- life --- */

static int create_backend(const struct fvm_net_options *opt, struct fvm_net **ret_net, struct fvm_err *err)
{
    const char *kind = opt->kind && opt->kind[0] ? opt->kind : "user";
    if (!strcmp(kind, "user"))
        return fvm_net_user_create(opt, ret_net, err);
    if (opt->forward_count)
        return fvm_err_set(err, FVM_EINVAL, 0, "net", "network %s: forwards belong to kind \"user\" (or to the network's gateway)",
                           kind);
    if (!strncmp(kind, "switch:", 7))
        return fvm_net_switch_create(kind + 7, ret_net, err);
    if (!strcmp(kind, "none")) {
        int r = none_create(ret_net);
        return r < 0 ? fvm_err_set(err, r, 0, "net", "out of memory") : 0;
    }
    return fvm_err_set(err, FVM_EUNSUPPORTED, 0, "net", "network kind \"%s\" is not known; say user, switch:PATH or none", kind);
}

int fvm_net_open(struct fvm_loop *loop, const struct fvm_net_options *opt, fvm_net_deliver deliver, void *ctx,
                 struct fvm_net **ret_net, struct fvm_err *err)
{
    struct fvm_net *net;
    int r = create_backend(opt, &net, err);
    if (r < 0)
        return r;
    net->loop = loop;
    net->deliver = deliver;
    net->ctx = ctx;
    net->tail = &net->head;
    r = fvm_loop_timer_add(loop, announce_next, net, &net->announce_timer);
    if (r < 0)
        fvm_err_set(err, r, 0, "net", "network: cannot join the event loop");
    else if (!opt->inactive)
        r = fvm_net_activate(net, err);
    if (r < 0) {
        fvm_net_close(&net);
        return r;
    }
    *ret_net = net;
    return 0;
}

void fvm_net_close(struct fvm_net **net_p)
{
    struct fvm_net *net = *net_p;
    if (!net)
        return;
    *net_p = NULL;
    fvm_net_deactivate(net);
    if (net->announce_timer)
        fvm_loop_timer_remove(&net->announce_timer);
    net->ops->close(net);
}

void fvm_net_set_deliver(struct fvm_net *net, fvm_net_deliver deliver, void *ctx)
{
    net->deliver = deliver;
    net->ctx = ctx;
    queue_clear(net);
}

int fvm_net_activate(struct fvm_net *net, struct fvm_err *err)
{
    if (net->active)
        return 0;
    net->active = true; /* a back end may receive from inside */
    int r = net->ops->activate(net, err);
    if (r < 0) {
        net->active = false;
        return r;
    }
    if (net->announcing)
        announce_next(net);
    return 0;
}

void fvm_net_deactivate(struct fvm_net *net)
{
    if (net->active) {
        net->ops->deactivate(net);
        net->active = false;
    }
    net->announcing = false;
    if (net->announce_timer)
        fvm_loop_timer_arm(net->announce_timer, UINT64_MAX);
    queue_clear(net);
}

bool fvm_net_takes_large(const struct fvm_net *net)
{
    return net->ops->takes_large;
}

bool fvm_net_active(const struct fvm_net *net)
{
    return net->active;
}

int fvm_net_save(struct fvm_net *net, uint8_t **ret_buf, size_t *ret_len)
{
    if (net->ops->save)
        return net->ops->save(net, ret_buf, ret_len);
    *ret_buf = NULL;
    *ret_len = 0;
    return 0;
}

int fvm_net_restore(struct fvm_net *net, const uint8_t *buf, size_t len, struct fvm_err *err)
{
    if (!net->ops->restore || len == 0)
        return 0;
    return net->ops->restore(net, buf, len, err);
}
