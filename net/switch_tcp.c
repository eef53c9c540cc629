/*
 * switch_tcp.c - links between switches over plain TCP: each frame as a 4-byte big-endian length and its bytes.
 *
 * For tests and private wires: no authentication, no secrecy; the cluster carries links over its own sealed channels. A
 * frame is queued whole or dropped, so the stream never loses its framing; a length that cannot be ends the connection.
 * Invariant: the link exists exactly while the connection is established.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/log.h"
#include "net/switch_internal.h"

#define OUT_MAX (1u << 20)
#define IN_MAX (256u << 10)
#define RETRY_MS 200
#define NS_PER_MS 1000000ull

struct fvm_switch_tcp { /* a listener, or one connection */
    struct fvm_switch *sw;
    struct fvm_switch_tcp *next;
    struct sockaddr_in addr;
    bool listener, dials; /* dials: connects again when broken; else it is freed */
    bool connecting;
    int fd;
    struct fvm_loop_io *io;
    struct fvm_loop_timer *retry;
    struct fvm_switch_link *link;
    uint8_t *in, *out;
    size_t in_len, out_len;
};

static void tcp_free(struct fvm_switch_tcp *t)
{
    fvm_switch_link_remove(&t->link);
    if (t->io)
        fvm_loop_io_remove(&t->io);
    if (t->retry)
        fvm_loop_timer_remove(&t->retry);
    if (t->fd >= 0)
        close(t->fd);
    free(t->in);
    free(t->out);
    free(t);
}

void fvm_switch_tcp_close_all(struct fvm_switch *sw)
{
    while (sw->tcps) {
        struct fvm_switch_tcp *t = sw->tcps;
        sw->tcps = t->next;
        tcp_free(t);
    }
}

static struct fvm_switch_tcp *tcp_new(struct fvm_switch *sw)
{
    struct fvm_switch_tcp *t = calloc(1, sizeof(*t));
    if (!t)
        return NULL;
    t->in = malloc(IN_MAX);
    t->out = malloc(OUT_MAX);
    t->fd = -1;
    t->sw = sw;
    if (!t->in || !t->out) {
        tcp_free(t);
        return NULL;
    }
    t->next = sw->tcps;
    sw->tcps = t;
    return t;
}

/* The connection is over: dial again later, or go. */
static void broken(struct fvm_switch_tcp *t)
{
    fvm_switch_link_remove(&t->link);
    if (t->io)
        fvm_loop_io_remove(&t->io);
    if (t->fd >= 0)
        close(t->fd);
    t->fd = -1;
    t->in_len = t->out_len = 0;
    t->connecting = false;
    if (t->dials) {
        fvm_loop_timer_arm(t->retry, fvm_now_ns() + RETRY_MS * NS_PER_MS);
        return;
    }
    struct fvm_switch_tcp **p = &t->sw->tcps;
    while (*p != t)
        p = &(*p)->next;
    *p = t->next;
    tcp_free(t);
}

static bool flush_out(struct fvm_switch_tcp *t)
{
    size_t at = 0;
    while (at < t->out_len) {
        ssize_t n = send(t->fd, t->out + at, t->out_len - at, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0 && errno != EAGAIN)
            return false;
        if (n < 0)
            break;
        at += (size_t)n;
    }
    memmove(t->out, t->out + at, t->out_len - at);
    t->out_len -= at;
    fvm_loop_io_set(t->io, FVM_LOOP_IN | (t->out_len ? FVM_LOOP_OUT : 0));
    return true;
}

static bool tcp_send(void *ctx, const uint8_t *frame, size_t len)
{
    struct fvm_switch_tcp *t = ctx;
    if (len + 4 > OUT_MAX - t->out_len)
        return false;
    uint32_t be = htonl((uint32_t)len);
    memcpy(t->out + t->out_len, &be, 4);
    memcpy(t->out + t->out_len + 4, frame, len);
    bool idle = t->out_len == 0;
    t->out_len += len + 4;
    if (idle)
        (void)flush_out(t); /* a dead connection is seen by its own event */
    return true;
}

static const struct fvm_switch_link_ops tcp_link_ops = {.send = tcp_send};

/* Hand on whole frames; false: the stream makes no sense. */
static bool take_frames(struct fvm_switch_tcp *t)
{
    size_t at = 0;
    while (t->in_len - at >= 4) {
        uint32_t be;
        memcpy(&be, t->in + at, 4);
        uint32_t len = ntohl(be);
        if (len < FVM_NET_FRAME_MIN || len > FVM_NET_FRAME_MAX)
            return false;
        if (t->in_len - at - 4 < len)
            break;
        fvm_switch_link_receive(t->link, t->in + at + 4, len);
        at += 4 + len;
    }
    memmove(t->in, t->in + at, t->in_len - at);
    t->in_len -= at;
    return true;
}

static bool established(struct fvm_switch_tcp *t)
{
    char name[40];
    int one = 1;
    setsockopt(t->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
    snprintf(name, sizeof(name), "tcp:%s:%u", inet_ntoa(t->addr.sin_addr), ntohs(t->addr.sin_port));
    return fvm_switch_link_add(t->sw, name, &tcp_link_ops, t, &t->link) == 0;
}

static void on_stream(void *ctx, int fd, unsigned revents)
{
    struct fvm_switch_tcp *t = ctx;
    if (t->connecting) {
        int error = 0;
        socklen_t size = sizeof(error);
        t->connecting = false;
        if (getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &size) < 0 || error || !established(t)) {
            broken(t);
            return;
        }
        fvm_loop_io_set(t->io, FVM_LOOP_IN);
        return;
    }
    if ((revents & FVM_LOOP_OUT) && !flush_out(t)) {
        broken(t);
        return;
    }
    ssize_t n = recv(fd, t->in + t->in_len, IN_MAX - t->in_len, MSG_DONTWAIT);
    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (n <= 0) {
        broken(t);
        return;
    }
    t->in_len += (size_t)n;
    if (!take_frames(t)) {
        fvm_log(WARN, "net.switch.link_garbled", "peer=%s", inet_ntoa(t->addr.sin_addr));
        broken(t);
    }
}

static void dial(void *ctx)
{
    struct fvm_switch_tcp *t = ctx;
    t->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (t->fd < 0 || (connect(t->fd, (struct sockaddr *)&t->addr, sizeof(t->addr)) < 0 && errno != EINPROGRESS) ||
        fvm_loop_io_add(t->sw->loop, t->fd, FVM_LOOP_OUT, on_stream, t, &t->io) < 0) {
        broken(t);
        return;
    }
    t->connecting = true;
}

static void on_accept(void *ctx, int fd, unsigned revents)
{
    struct fvm_switch_tcp *l = ctx;
    struct sockaddr_in addr;
    socklen_t size = sizeof(addr);
    (void)revents;
    int peer = accept4(fd, (struct sockaddr *)&addr, &size, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (peer < 0)
        return;
    struct fvm_switch_tcp *t = tcp_new(l->sw);
    if (!t) {
        close(peer);
        return;
    }
    t->fd = peer;
    t->addr = addr;
    if (!established(t) || fvm_loop_io_add(t->sw->loop, peer, FVM_LOOP_IN, on_stream, t, &t->io) < 0)
        broken(t);
}

static int parse(const char *addr, uint16_t port, struct sockaddr_in *ret, struct fvm_err *err)
{
    *ret = (struct sockaddr_in){.sin_family = AF_INET, .sin_port = htons(port)};
    if (inet_pton(AF_INET, addr, &ret->sin_addr) != 1)
        return fvm_err_set(err, FVM_EINVAL, 0, "net", "switch link: \"%s\" is not an IPv4 address", addr);
    return 0;
}

int fvm_switch_tcp_listen(struct fvm_switch *sw, const char *addr, uint16_t port, uint16_t *ret_port, struct fvm_err *err)
{
    struct sockaddr_in sin;
    socklen_t size = sizeof(sin);
    int one = 1;
    int r = parse(addr, port, &sin, err);
    if (r < 0)
        return r;
    struct fvm_switch_tcp *t = tcp_new(sw);
    if (!t)
        return fvm_err_set(err, FVM_ENOMEM, 0, "net", "switch link: out of memory");
    t->listener = true;
    t->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (t->fd >= 0)
        setsockopt(t->fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
    if (t->fd < 0 || bind(t->fd, (struct sockaddr *)&sin, sizeof(sin)) < 0 || listen(t->fd, 16) < 0 ||
        getsockname(t->fd, (struct sockaddr *)&sin, &size) < 0)
        r = fvm_err_set(err, errno == EADDRINUSE ? FVM_EBUSY : fvm_err_from_errno(errno), errno, "net",
                        "switch link: cannot listen on %s port %u: %s", addr, port, strerror(errno));
    else
        r = fvm_loop_io_add(sw->loop, t->fd, FVM_LOOP_IN, on_accept, t, &t->io);
    if (r < 0) {
        broken(t);
        return r;
    }
    if (ret_port)
        *ret_port = ntohs(sin.sin_port);
    return 0;
}

int fvm_switch_tcp_connect(struct fvm_switch *sw, const char *addr, uint16_t port, struct fvm_err *err)
{
    struct sockaddr_in sin;
    int r = parse(addr, port, &sin, err);
    if (r < 0)
        return r;
    struct fvm_switch_tcp *t = tcp_new(sw);
    if (!t)
        return fvm_err_set(err, FVM_ENOMEM, 0, "net", "switch link: out of memory");
    t->addr = sin;
    r = fvm_loop_timer_add(sw->loop, dial, t, &t->retry);
    if (r < 0) {
        broken(t);
        return fvm_err_set(err, r, 0, "net", "switch link: cannot join the event loop");
    }
    t->dials = true;
    dial(t);
    return 0;
}
