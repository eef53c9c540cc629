/*
 * user.c - user-mode network: libslirp (included only here) on our event loop.
 *
 * libslirp wants "fill a poll set, poll, tell me": its descriptors live in an epoll set of our own, and the loop watches that one
 * descriptor. So a descriptor that libslirp closes and opens again under the same number cannot confuse the loop.
 *
 *   guest frame -> slirp_input -> (bell) -> sync: what libslirp wants polled now -> epoll set, timer
 *   epoll set or timer fires -> service: fill, poll(0), slirp_pollfds_poll, sync
 *
 * Invariant: `slirp` exists exactly while the net is active; so an inactive net has no socket and no port bound. State that
 * came by fvm_net_restore before activation waits in `pending`. All under the guard.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <libslirp.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "base/log.h"
#include "net/backend.h"

#define POLLS_MAX 4096
#define STATE_MAX (1u << 20)
#define NS_PER_MS 1000000ull

struct user {
    struct fvm_net net;
    Slirp *slirp;
    struct fvm_net_forward *forwards;
    unsigned forward_count;
    bool restricted, host_loopback;
    char *tftp, *bootfile; /* NULL: none */
    int epoll, bell;
    bool rung;
    struct fvm_loop_io *io;
    struct fvm_loop_timer *timer;
    struct pollfd polls[POLLS_MAX];
    unsigned poll_count;
    uint32_t *watched; /* by descriptor: events in the epoll set, 0: none; bit 31: seen in this sync */
    int watched_size;
    uint8_t *pending;
    size_t pending_len;
};

#define SEEN 0x80000000u

struct slirp_timer {
    struct fvm_loop_timer *timer;
    SlirpTimerCb fn;
    void *ctx;
    struct user *user;
};

static struct user *user_of(struct fvm_net *net)
{
    return FVM_CONTAINER_OF(net, struct user, net);
}

/* Have sync run on the loop, once for any number of frames. */
static void ring(struct user *u)
{
    if (u->rung)
        return;
    u->rung = true;
    uint64_t one = 1;
    ssize_t r = write(u->bell, &one, sizeof(one));
    fvm_assert(r == sizeof(one) || errno == EAGAIN);
}

/* --- the poll set --- */

static short to_poll(int events)
{
    return (short)((events & SLIRP_POLL_IN ? POLLIN : 0) | (events & SLIRP_POLL_OUT ? POLLOUT : 0) |
                   (events & SLIRP_POLL_PRI ? POLLPRI : 0));
}

static int add_poll(int fd, int events, void *ctx)
{
    struct user *u = ctx;
    if (u->poll_count == POLLS_MAX)
        return -1;
    u->polls[u->poll_count] = (struct pollfd){.fd = fd, .events = to_poll(events)};
    return (int)u->poll_count++;
}

static int get_revents(int idx, void *ctx)
{
    struct user *u = ctx;
    if (idx < 0 || (unsigned)idx >= u->poll_count)
        return 0;
    short r = u->polls[idx].revents;
    return (r & POLLIN ? SLIRP_POLL_IN : 0) | (r & POLLOUT ? SLIRP_POLL_OUT : 0) | (r & POLLPRI ? SLIRP_POLL_PRI : 0) |
           (r & POLLERR ? SLIRP_POLL_ERR : 0) | (r & POLLHUP ? SLIRP_POLL_HUP : 0);
}

static bool watch_room(struct user *u, int fd)
{
    if (fd < u->watched_size)
        return true;
    int size = FVM_MAX(64, 2 * fd);
    uint32_t *grown = realloc(u->watched, sizeof(*grown) * (size_t)size);
    if (!grown)
        return false;
    memset(grown + u->watched_size, 0, sizeof(*grown) * (size_t)(size - u->watched_size));
    u->watched = grown;
    u->watched_size = size;
    return true;
}

static void watch(struct user *u, int fd, uint32_t events)
{
    if (!watch_room(u, fd))
        return;
    uint32_t had = u->watched[fd] & ~SEEN;
    u->watched[fd] = events | SEEN;
    if (had == events)
        return;
    struct epoll_event ev = {.events = events, .data.fd = fd};
    if (epoll_ctl(u->epoll, had ? EPOLL_CTL_MOD : EPOLL_CTL_ADD, fd, &ev) < 0)
        epoll_ctl(u->epoll, errno == EEXIST ? EPOLL_CTL_MOD : EPOLL_CTL_ADD, fd, &ev);
}

static void unwatch(struct user *u, int fd)
{
    if (fd < 0 || fd >= u->watched_size || !u->watched[fd])
        return;
    u->watched[fd] = 0;
    epoll_ctl(u->epoll, EPOLL_CTL_DEL, fd, NULL);
}

/* What libslirp wants polled from now on. */
static void sync_polls(struct user *u)
{
    uint32_t timeout_ms = UINT32_MAX;
    u->poll_count = 0;
    slirp_pollfds_fill(u->slirp, &timeout_ms, add_poll, u);
    for (unsigned i = 0; i < u->poll_count; i++)
        if (u->polls[i].events)
            watch(u, u->polls[i].fd, (uint32_t)u->polls[i].events);
    for (int fd = 0; fd < u->watched_size; fd++) {
        if (u->watched[fd] & SEEN)
            u->watched[fd] &= ~SEEN;
        else if (u->watched[fd])
            unwatch(u, fd);
    }
    fvm_loop_timer_arm(u->timer, timeout_ms == UINT32_MAX ? UINT64_MAX : fvm_now_ns() + timeout_ms * NS_PER_MS);
}

static void service(void *ctx)
{
    struct user *u = ctx;
    if (!u->slirp)
        return;
    uint32_t timeout_ms = UINT32_MAX;
    u->poll_count = 0;
    slirp_pollfds_fill(u->slirp, &timeout_ms, add_poll, u);
    int r;
    do
        r = poll(u->polls, u->poll_count, 0);
    while (r < 0 && errno == EINTR);
    slirp_pollfds_poll(u->slirp, r < 0, get_revents, u);
    sync_polls(u);
}

static void on_epoll(void *ctx, int fd, unsigned revents)
{
    struct user *u = ctx;
    uint64_t count;
    (void)fd;
    (void)revents;
    if (u->rung) {
        ssize_t r = read(u->bell, &count, sizeof(count));
        (void)r;
        u->rung = false;
    }
    service(u);
}

/* --- libslirp's callbacks --- */

static ssize_t cb_send_packet(const void *buf, size_t len, void *opaque)
{
    struct user *u = opaque;
    fvm_net_receive(&u->net, buf, len);
    return (ssize_t)len;
}

static void cb_guest_error(const char *msg, void *opaque)
{
    (void)opaque;
    fvm_log(DEBUG, "net.user.guest_error", "text=\"%s\"", msg);
}

static int64_t cb_clock_get_ns(void *opaque)
{
    (void)opaque;
    return (int64_t)fvm_now_ns();
}

static void timer_fired(void *ctx)
{
    struct slirp_timer *t = ctx;
    if (t->user->slirp)
        t->fn(t->ctx);
}

static void *cb_timer_new(SlirpTimerCb fn, void *ctx, void *opaque)
{
    struct user *u = opaque;
    struct slirp_timer *t = calloc(1, sizeof(*t));
    fvm_assert(t);
    *t = (struct slirp_timer){.fn = fn, .ctx = ctx, .user = u};
    int r = fvm_loop_timer_add(u->net.loop, timer_fired, t, &t->timer);
    fvm_assert(r == 0);
    return t;
}

static void cb_timer_free(void *timer, void *opaque)
{
    struct slirp_timer *t = timer;
    (void)opaque;
    fvm_loop_timer_remove(&t->timer);
    free(t);
}

static void cb_timer_mod(void *timer, int64_t expire_ms, void *opaque)
{
    struct slirp_timer *t = timer;
    (void)opaque;
    fvm_loop_timer_arm(t->timer, (uint64_t)FVM_MAX(expire_ms, (int64_t)0) * NS_PER_MS);
}

static void cb_register_poll_fd(int fd, void *opaque)
{
    (void)fd;
    ring(opaque);
}

static void cb_unregister_poll_fd(int fd, void *opaque)
{
    unwatch(opaque, fd);
}

static void cb_notify(void *opaque)
{
    ring(opaque);
}

static const SlirpCb callbacks = {
    .send_packet = cb_send_packet,
    .guest_error = cb_guest_error,
    .clock_get_ns = cb_clock_get_ns,
    .timer_new = cb_timer_new,
    .timer_free = cb_timer_free,
    .timer_mod = cb_timer_mod,
    .register_poll_fd = cb_register_poll_fd,
    .unregister_poll_fd = cb_unregister_poll_fd,
    .notify = cb_notify,
};

/* --- forwards --- */

static int parse_addr(const char *text, const char *if_empty, struct in_addr *ret_addr)
{
    return inet_pton(AF_INET, text[0] ? text : if_empty, ret_addr) == 1 ? 0 : FVM_EINVAL;
}

static int check_forward(const struct fvm_net_forward *f, struct fvm_err *err)
{
    struct in_addr addr;
    if (parse_addr(f->host_addr, "127.0.0.1", &addr) < 0)
        return fvm_err_set(err, FVM_EINVAL, 0, "net", "forward: host address \"%s\" is not an IPv4 address", f->host_addr);
    if (parse_addr(f->guest_addr, "0.0.0.0", &addr) < 0)
        return fvm_err_set(err, FVM_EINVAL, 0, "net", "forward: guest address \"%s\" is not an IPv4 address", f->guest_addr);
    if (!f->host_port || !f->guest_port)
        return fvm_err_set(err, FVM_EINVAL, 0, "net", "forward: host and guest port must be 1..65535");
    return 0;
}

static int add_forward(struct user *u, const struct fvm_net_forward *f, struct fvm_err *err)
{
    struct in_addr host, guest;
    int r = check_forward(f, err);
    if (r < 0)
        return r;
    parse_addr(f->host_addr, "127.0.0.1", &host);
    parse_addr(f->guest_addr, "0.0.0.0", &guest);
    errno = 0;
    if (slirp_add_hostfwd(u->slirp, f->udp, host, f->host_port, guest, f->guest_port) == 0)
        return 0;
    int cause = errno;
    const char *proto = f->udp ? "udp" : "tcp", *addr = f->host_addr[0] ? f->host_addr : "127.0.0.1";
    if (cause == EADDRINUSE)
        return fvm_err_set(err, FVM_EBUSY, cause, "net", "forward: %s port %u on %s is taken by another process; give another host port",
                           proto, f->host_port, addr);
    return fvm_err_set(err, fvm_err_from_errno(cause), cause, "net", "forward: cannot listen on %s port %u on %s: %s%s", proto,
                       f->host_port, addr, strerror(cause),
                       cause == EACCES ? "; ports below 1024 need the right CAP_NET_BIND_SERVICE" : "");
}

/* --- state --- */

struct cursor {
    uint8_t *bytes;
    size_t len, at;
    bool overrun; /* read past the end: libslirp does not look at how much came */
};

static ssize_t state_write(const void *buf, size_t len, void *opaque)
{
    struct cursor *c = opaque;
    if (len > STATE_MAX - c->len)
        return -1;
    if (c->at + len > c->len || !c->bytes) {
        uint8_t *grown = realloc(c->bytes, c->at + len);
        if (!grown)
            return -1;
        c->bytes = grown;
        c->len = c->at + len;
    }
    memcpy(c->bytes + c->at, buf, len);
    c->at += len;
    return (ssize_t)len;
}

static ssize_t state_read(void *buf, size_t len, void *opaque)
{
    struct cursor *c = opaque;
    size_t n = FVM_MIN(len, c->len - c->at);
    memcpy(buf, c->bytes + c->at, n);
    memset((uint8_t *)buf + n, 0, len - n);
    c->at += n;
    c->overrun = c->overrun || n < len;
    return n == len ? (ssize_t)n : -1;
}

/* 4 bytes of libslirp's state version, then its bytes. */
static int user_save(struct fvm_net *net, uint8_t **ret_buf, size_t *ret_len)
{
    struct user *u = user_of(net);
    struct cursor c = {0};
    if (u->slirp) {
        int version = slirp_state_version();
        if (state_write(&version, 4, &c) < 0)
            return FVM_ENOMEM;
        slirp_state_save(u->slirp, state_write, &c);
    } else if (u->pending && state_write(u->pending, u->pending_len, &c) < 0) {
        return FVM_ENOMEM;
    }
    *ret_buf = c.bytes;
    *ret_len = c.len;
    return 0;
}

static bool load_pending(struct user *u)
{
    int version;
    if (u->pending_len < 4)
        return false;
    memcpy(&version, u->pending, 4);
    struct cursor c = {.bytes = u->pending, .len = u->pending_len, .at = 4};
    return version > 0 && version <= slirp_state_version() && slirp_state_load(u->slirp, version, state_read, &c) == 0 &&
           !c.overrun && c.at == c.len;
}

static void drop_pending(struct user *u)
{
    free(u->pending);
    u->pending = NULL;
    u->pending_len = 0;
}

/* --- life --- */

static Slirp *make_slirp(struct user *u)
{
    SlirpConfig cfg = {
        .version = 4,
        .restricted = u->restricted,
        .in_enabled = true,
        .vhostname = "fvm",
        .disable_host_loopback = !u->host_loopback,
        .tftp_path = u->tftp,
        .bootfile = u->bootfile,
    };
    inet_pton(AF_INET, "10.0.2.0", &cfg.vnetwork);
    inet_pton(AF_INET, "255.255.255.0", &cfg.vnetmask);
    inet_pton(AF_INET, "10.0.2.2", &cfg.vhost);
    inet_pton(AF_INET, "10.0.2.15", &cfg.vdhcp_start);
    inet_pton(AF_INET, "10.0.2.3", &cfg.vnameserver);
    return slirp_new(&cfg, &callbacks, u);
}

static void unmake_slirp(struct user *u)
{
    for (int fd = 0; fd < u->watched_size; fd++)
        unwatch(u, fd);
    Slirp *slirp = u->slirp;
    u->slirp = NULL;
    if (slirp)
        slirp_cleanup(slirp);
}

/* Descriptors that live as long as the net is open. */
static int join_loop(struct user *u)
{
    if (u->io)
        return 0;
    u->epoll = epoll_create1(EPOLL_CLOEXEC);
    u->bell = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (u->epoll < 0 || u->bell < 0)
        return fvm_err_from_errno(errno);
    struct epoll_event ev = {.events = EPOLLIN, .data.fd = u->bell};
    if (epoll_ctl(u->epoll, EPOLL_CTL_ADD, u->bell, &ev) < 0)
        return fvm_err_from_errno(errno);
    int r = fvm_loop_timer_add(u->net.loop, service, u, &u->timer);
    return r < 0 ? r : fvm_loop_io_add(u->net.loop, u->epoll, FVM_LOOP_IN, on_epoll, u, &u->io);
}

static int user_activate(struct fvm_net *net, struct fvm_err *err)
{
    struct user *u = user_of(net);
    int r = join_loop(u);
    if (r < 0)
        return fvm_err_set(err, r, errno, "net", "user network: cannot join the event loop");
    u->slirp = make_slirp(u);
    if (u->slirp && u->pending && !load_pending(u)) {
        fvm_log(WARN, "net.user.fresh", "why=\"saved state does not fit this libslirp; leases are forgotten\"");
        unmake_slirp(u);
        u->slirp = make_slirp(u);
    }
    drop_pending(u);
    if (!u->slirp)
        return fvm_err_set(err, FVM_ENOMEM, 0, "net", "user network: libslirp cannot start");
    for (unsigned i = 0; i < u->forward_count; i++) {
        r = add_forward(u, &u->forwards[i], err);
        if (r < 0) {
            unmake_slirp(u);
            return r;
        }
    }
    ring(u);
    return 0;
}

static int user_restore(struct fvm_net *net, const uint8_t *buf, size_t len, struct fvm_err *err)
{
    struct user *u = user_of(net);
    if (len > STATE_MAX)
        return fvm_err_set(err, FVM_EBADIMAGE, 0, "net", "user network: %zu bytes of state are too many", len);
    uint8_t *copy = malloc(len);
    if (!copy)
        return fvm_err_set(err, FVM_ENOMEM, 0, "net", "out of memory");
    memcpy(copy, buf, len);
    drop_pending(u);
    u->pending = copy;
    u->pending_len = len;
    if (!net->active)
        return 0;
    unmake_slirp(u); /* a fresh libslirp takes it */
    int r = user_activate(net, err);
    net->active = r == 0;
    return r;
}

static void user_deactivate(struct fvm_net *net)
{
    struct user *u = user_of(net);
    fvm_loop_timer_arm(u->timer, UINT64_MAX);
    drop_pending(u);
    if (user_save(net, &u->pending, &u->pending_len) < 0) /* for the case that it comes back (an aborted migration) */
        fvm_log(WARN, "net.user.forgets", "why=\"out of memory\"");
    unmake_slirp(u);
}

static void user_send(struct fvm_net *net, const uint8_t *frame, size_t len)
{
    struct user *u = user_of(net);
    if (!u->slirp)
        return;
    slirp_input(u->slirp, frame, (int)len);
    ring(u);
}

static void user_close(struct fvm_net *net)
{
    struct user *u = user_of(net);
    if (u->io)
        fvm_loop_io_remove(&u->io);
    if (u->timer)
        fvm_loop_timer_remove(&u->timer);
    if (u->epoll >= 0)
        close(u->epoll);
    if (u->bell >= 0)
        close(u->bell);
    drop_pending(u);
    free(u->watched);
    free(u->forwards);
    free(u->tftp);
    free(u->bootfile);
    free(u);
}

static const struct fvm_net_ops user_ops = {
    .kind = "user",
    .takes_large = true,
    .close = user_close,
    .activate = user_activate,
    .deactivate = user_deactivate,
    .send = user_send,
    .save = user_save,
    .restore = user_restore,
};

int fvm_net_user_create(const struct fvm_net_options *opt, struct fvm_net **ret_net, struct fvm_err *err)
{
    for (unsigned i = 0; i < opt->forward_count; i++) {
        int r = check_forward(&opt->forwards[i], err);
        if (r < 0)
            return r;
    }
    struct user *u = calloc(1, sizeof(*u));
    struct fvm_net_forward *forwards = calloc(opt->forward_count + 1, sizeof(*forwards));
    if (!u || !forwards) {
        free(u);
        free(forwards);
        return fvm_err_set(err, FVM_ENOMEM, 0, "net", "user network: out of memory");
    }
    if (opt->forward_count)
        memcpy(forwards, opt->forwards, opt->forward_count * sizeof(*forwards));
    u->net.ops = &user_ops;
    u->forwards = forwards;
    u->forward_count = opt->forward_count;
    u->restricted = opt->restricted;
    u->host_loopback = opt->host_loopback;
    u->tftp = opt->tftp ? strdup(opt->tftp) : NULL;
    u->bootfile = opt->bootfile ? strdup(opt->bootfile) : NULL;
    if (!u->tftp != !opt->tftp || !u->bootfile != !opt->bootfile) {
        free(u->tftp);
        free(u->bootfile);
        free(forwards);
        free(u);
        return fvm_err_set(err, FVM_ENOMEM, 0, "net", "user network: out of memory");
    }
    u->epoll = u->bell = -1;
    *ret_net = &u->net;
    return 0;
}
