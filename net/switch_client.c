/*
 * switch_client.c - the VM's end of the node's switch: network kind "switch:PATH".
 *
 * Invariant: the guest never notices the daemon: while nobody answers, frames are lost as on a pulled cable and a timer tries again;
 * after a reconnect the guest's MAC is announced, because the new switch has learned nothing yet.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/log.h"
#include "net/backend.h"

#define FRAMES_PER_WAKE 64
#define RETRY_MS 200
#define BUFFER_BYTES (2 << 20)
#define NS_PER_MS 1000000ull

struct client {
    struct fvm_net net;
    struct sockaddr_un addr;
    int fd; /* -1: not connected */
    struct fvm_loop_io *io;
    struct fvm_loop_timer *retry;
    bool mac_known;
    uint8_t mac[6]; /* source of the guest's last frame */
    uint8_t frame[FVM_NET_FRAME_MAX + 1];
};

static struct client *client_of(struct fvm_net *net)
{
    return FVM_CONTAINER_OF(net, struct client, net);
}

static void disconnect(struct client *c)
{
    if (c->io)
        fvm_loop_io_remove(&c->io);
    if (c->fd >= 0)
        close(c->fd);
    c->fd = -1;
}

static void retry_later(struct client *c)
{
    disconnect(c);
    fvm_loop_timer_arm(c->retry, fvm_now_ns() + RETRY_MS * NS_PER_MS);
}

static void on_frame(void *ctx, int fd, unsigned revents)
{
    struct client *c = ctx;
    (void)revents;
    for (unsigned i = 0; i < FRAMES_PER_WAKE; i++) {
        ssize_t n = recv(fd, c->frame, sizeof(c->frame), MSG_DONTWAIT);
        if (n > 0) {
            fvm_net_receive(&c->net, c->frame, (size_t)n);
            if (c->fd != fd)
                return; /* deactivated from inside */
            continue;
        }
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
            return;
        fvm_log(WARN, "net.switch.lost", "path=%s", c->addr.sun_path);
        retry_later(c);
        return;
    }
}

static void try_connect(void *ctx)
{
    struct client *c = ctx;
    int size = BUFFER_BYTES;
    if (!c->net.active || c->fd >= 0)
        return;
    c->fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (c->fd < 0 || connect(c->fd, (const struct sockaddr *)&c->addr, sizeof(c->addr)) < 0 ||
        fvm_loop_io_add(c->net.loop, c->fd, FVM_LOOP_IN, on_frame, c, &c->io) < 0) {
        retry_later(c);
        return;
    }
    setsockopt(c->fd, SOL_SOCKET, SO_SNDBUF, &size, sizeof(size));
    fvm_log(INFO, "net.switch.joined", "path=%s", c->addr.sun_path);
    if (c->mac_known)
        fvm_net_announce(&c->net, c->mac);
}

static int client_activate(struct fvm_net *net, struct fvm_err *err)
{
    struct client *c = client_of(net);
    if (!c->retry) {
        int r = fvm_loop_timer_add(net->loop, try_connect, c, &c->retry);
        if (r < 0)
            return fvm_err_set(err, r, 0, "net", "network switch:%s: cannot join the event loop", c->addr.sun_path);
    }
    try_connect(c);
    if (c->fd < 0)
        fvm_log(WARN, "net.switch.absent", "path=%s", c->addr.sun_path);
    return 0;
}

static void client_deactivate(struct fvm_net *net)
{
    struct client *c = client_of(net);
    disconnect(c);
    fvm_loop_timer_arm(c->retry, UINT64_MAX);
}

static void client_send(struct fvm_net *net, const uint8_t *frame, size_t len)
{
    struct client *c = client_of(net);
    if (!(frame[6] & 1)) {
        memcpy(c->mac, frame + 6, 6);
        c->mac_known = true;
    }
    if (c->fd < 0 || send(c->fd, frame, len, MSG_DONTWAIT | MSG_NOSIGNAL) != (ssize_t)len)
        net->dropped++; /* a closed socket is noticed by on_frame */
}

static void client_close(struct fvm_net *net)
{
    struct client *c = client_of(net);
    if (c->retry)
        fvm_loop_timer_remove(&c->retry);
    free(c);
}

static const struct fvm_net_ops client_ops = {
    .kind = "switch",
    .layer2 = true,
    .close = client_close,
    .activate = client_activate,
    .deactivate = client_deactivate,
    .send = client_send,
};

int fvm_net_switch_create(const char *path, struct fvm_net **ret_net, struct fvm_err *err)
{
    struct sockaddr_un addr = {.sun_family = AF_UNIX};
    if (!path[0] || strlen(path) >= sizeof(addr.sun_path))
        return fvm_err_set(err, FVM_EINVAL, 0, "net", "network switch:%s: the path must have 1 to %zu bytes", path,
                           sizeof(addr.sun_path) - 1);
    struct client *c = calloc(1, sizeof(*c));
    if (!c)
        return fvm_err_set(err, FVM_ENOMEM, 0, "net", "out of memory");
    strcpy(addr.sun_path, path);
    c->addr = addr;
    c->fd = -1;
    c->net.ops = &client_ops;
    *ret_net = &c->net;
    return 0;
}
