/*
 * port.c - ports: ROUTER and DEALER sockets with CURVE, an in-process ZAP handler, sequence numbers, and the loop pump.
 *
 * Why one file: ZeroMQ's sharp edges stay here. Its descriptor is edge-triggered and lies (it may be consumed by a
 * send), so after every callback and every send on an attached port ZMQ_EVENTS is asked again and the rest is posted to
 * the loop. Multipart messages go out whole or not at all. A listener never blocks on a peer that is gone
 * (ROUTER_MANDATORY).
 *
 * Invariant: a message handed to the caller had a head frame with our magic, at least one more frame, at most
 * FRAMES_MAX.
 */
#include "net/port.h"

#include <errno.h>
#include <limits.h>
#include <poll.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <zmq.h>

#include <sodium.h>

#include "base/log.h"

#define HEAD_BYTES 24 /* magic 8, session 8, sequence 8 */
#define HEAD_MAGIC "FVMPORT1"
#define DOMAINS_MAX 256
#define PUMP_BATCH 64

struct domain {
    unsigned id; /* 0: free */
    fvm_port_allow_fn allow;
    void *ctx;
};

struct fvm_port_ctx { /* any thread */
    void *zmq;
    void *zap;
    pthread_t zap_thread;
    pthread_mutex_t lock; /* domains, and held while allow runs */
    struct domain domains[DOMAINS_MAX];
    unsigned next_id;
    uint64_t refused;
};

struct peer_seq { /* where a peer's (or our own, per peer) numbering stands */
    uint8_t len;
    uint8_t id[33];
    uint64_t session, next_in, next_out, used;
};

struct pump {              /* a port on a loop; outlives the port while a post is under way */
    struct fvm_port *port; /* NULL: detached */
    struct fvm_loop *loop;
    struct fvm_loop_io *io;
    fvm_port_recv_fn fn;
    void *ctx;
    unsigned refs;
    bool posted;
};

struct fvm_port { /* one thread at a time */
    struct fvm_port_ctx *ctx;
    void *sock;
    void *monitor;
    bool router;
    unsigned id;
    bool has_domain;
    int sndtimeo;
    uint64_t session;
    char addr[256];
    char peer_key[FVM_PORT_KEY_CHARS + 1];
    enum fvm_port_link link;
    unsigned drops, failed_handshakes;
    struct peer_seq *peers;
    unsigned peer_count;
    uint64_t tick, malformed;
    struct pump *pump;
};

struct fvm_port_msg {
    unsigned count;
    struct fvm_port_peer peer;
    uint64_t session, gap;
    zmq_msg_t frames[FVM_PORT_FRAMES_MAX];
};

static void put64(uint8_t *p, uint64_t v)
{
    for (int i = 0; i < 8; i++)
        p[i] = (uint8_t)(v >> (8 * i));
}

static uint64_t get64(const uint8_t *p)
{
    uint64_t v = 0;
    for (int i = 7; i >= 0; i--)
        v = v << 8 | p[i];
    return v;
}

/* ---- context and admission ---- */

static bool admit(struct fvm_port_ctx *ctx, const char *domain, const char *key, const char *addr)
{
    unsigned id = 0;
    bool ok = false;
    if (sscanf(domain, "p%u", &id) != 1 || id == 0)
        return false;
    pthread_mutex_lock(&ctx->lock);
    for (unsigned i = 0; i < DOMAINS_MAX; i++)
        if (ctx->domains[i].id == id && ctx->domains[i].allow)
            ok = ctx->domains[i].allow(ctx->domains[i].ctx, key, addr);
    pthread_mutex_unlock(&ctx->lock);
    if (!ok && fvm_log_nth(++ctx->refused)) /* ZAP thread alone */
        fvm_log(WARN, "port.refused", "addr=%s key=%s count=%llu", addr, key, (unsigned long long)ctx->refused);
    return ok;
}

/* RFC 27: version, request id, domain, address, identity, mechanism, credentials... */
static bool zap_serve(struct fvm_port_ctx *ctx)
{
    uint8_t part[7][256];
    size_t len[7];
    unsigned n = 0;
    int more = 1;
    while (more) {
        zmq_msg_t m;
        zmq_msg_init(&m);
        if (zmq_msg_recv(&m, ctx->zap, 0) < 0) {
            zmq_msg_close(&m);
            return errno == EINTR;
        }
        if (n < 7) {
            len[n] = FVM_MIN(zmq_msg_size(&m), sizeof(part[n]) - 1);
            memcpy(part[n], zmq_msg_data(&m), len[n]);
            part[n][len[n]] = 0;
            n++;
        }
        more = zmq_msg_more(&m);
        zmq_msg_close(&m);
    }
    char key[FVM_PORT_KEY_CHARS + 1] = "";
    bool ok = n == 7 && strcmp((char *)part[5], "CURVE") == 0 && len[6] == 32 && zmq_z85_encode(key, part[6], 32) &&
              admit(ctx, (char *)part[2], key, (char *)part[3]);
    zmq_send(ctx->zap, "1.0", 3, ZMQ_SNDMORE);
    zmq_send(ctx->zap, n > 1 ? part[1] : (uint8_t *)"", n > 1 ? len[1] : 0, ZMQ_SNDMORE);
    zmq_send(ctx->zap, ok ? "200" : "400", 3, ZMQ_SNDMORE);
    zmq_send(ctx->zap, ok ? "OK" : "key not known here", ok ? 2 : 18, ZMQ_SNDMORE);
    zmq_send(ctx->zap, key, ok ? strlen(key) : 0, ZMQ_SNDMORE);
    return zmq_send(ctx->zap, "", 0, 0) >= 0 || errno == EINTR;
}

static void *zap_main(void *arg)
{
    struct fvm_port_ctx *ctx = arg;
    while (zap_serve(ctx))
        ;
    zmq_close(ctx->zap);
    return NULL;
}

int fvm_port_ctx_create(int io_threads, struct fvm_port_ctx **ret_ctx, struct fvm_err *err)
{
    if (sodium_init() < 0)
        return fvm_err_set(err, FVM_EINTERNAL, 0, "net", "cannot start the cryptographic library (no random numbers?)");
    struct fvm_port_ctx *ctx = calloc(1, sizeof(*ctx));
    if (!ctx)
        return fvm_err_set(err, FVM_ENOMEM, ENOMEM, "net", "out of memory");
    ctx->zmq = zmq_ctx_new();
    if (ctx->zmq) {
        zmq_ctx_set(ctx->zmq, ZMQ_IO_THREADS, io_threads > 0 ? io_threads : 1);
        ctx->zap = zmq_socket(ctx->zmq, ZMQ_REP);
    }
    if (!ctx->zap || zmq_bind(ctx->zap, "inproc://zeromq.zap.01") != 0) {
        int e = zmq_errno();
        if (ctx->zap)
            zmq_close(ctx->zap);
        if (ctx->zmq)
            zmq_ctx_term(ctx->zmq);
        free(ctx);
        return fvm_err_set(err, fvm_err_from_errno(e), e, "net", "cannot start ZeroMQ: %s", zmq_strerror(e));
    }
    pthread_mutex_init(&ctx->lock, NULL);
    int e = pthread_create(&ctx->zap_thread, NULL, zap_main, ctx);
    if (e) {
        zmq_close(ctx->zap);
        zmq_ctx_term(ctx->zmq);
        free(ctx);
        return fvm_err_set(err, fvm_err_from_errno(e), e, "net", "cannot start a thread: %s", strerror(e));
    }
    *ret_ctx = ctx;
    return 0;
}

void fvm_port_ctx_destroy(struct fvm_port_ctx **ctx_p)
{
    struct fvm_port_ctx *ctx = *ctx_p;
    if (!ctx)
        return;
    *ctx_p = NULL;
    for (unsigned i = 0; i < DOMAINS_MAX; i++)
        fvm_assert(ctx->domains[i].id == 0);
    zmq_ctx_shutdown(ctx->zmq);
    pthread_join(ctx->zap_thread, NULL);
    while (zmq_ctx_term(ctx->zmq) != 0 && zmq_errno() == EINTR)
        ;
    pthread_mutex_destroy(&ctx->lock);
    free(ctx);
}

int fvm_port_keygen(struct fvm_port_keys *ret_keys)
{
    return zmq_curve_keypair(ret_keys->public_key, ret_keys->secret_key) == 0 ? 0 : FVM_EINTERNAL;
}

bool fvm_port_key_valid(const char *key)
{
    static const char z85[] = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.-:+=^!/*?&<>()[]{}@%$#";
    uint8_t raw[32];
    return key && strlen(key) == FVM_PORT_KEY_CHARS && strspn(key, z85) == FVM_PORT_KEY_CHARS &&
           zmq_z85_decode(raw, key);
}

int fvm_port_public_key(const char *secret_key, char ret_public[FVM_PORT_KEY_CHARS + 1])
{
    if (!fvm_port_key_valid(secret_key))
        return FVM_EINVAL;
    return zmq_curve_public(ret_public, secret_key) == 0 ? 0 : FVM_EINVAL;
}

/* ---- opening ---- */

static int set_int(void *sock, int option, int value) { return zmq_setsockopt(sock, option, &value, sizeof(value)); }

static int port_new(struct fvm_port_ctx *ctx, bool router, const struct fvm_port_options *opt,
                    struct fvm_port **ret_port, struct fvm_err *err)
{
    static const struct fvm_port_options defaults;
    opt = opt ? opt : &defaults;
    struct fvm_port *p = calloc(1, sizeof(*p));
    if (!p)
        return fvm_err_set(err, FVM_ENOMEM, ENOMEM, "net", "out of memory");
    p->ctx = ctx;
    p->router = router;
    p->sndtimeo = INT_MIN;
    p->id = __atomic_add_fetch(&ctx->next_id, 1, __ATOMIC_RELAXED);
    randombytes_buf(&p->session, sizeof(p->session));
    p->sock = zmq_socket(ctx->zmq, router ? ZMQ_ROUTER : ZMQ_DEALER);
    if (!p->sock) {
        int e = zmq_errno();
        free(p);
        return fvm_err_set(err, fvm_err_from_errno(e), e, "net", "cannot make a socket: %s", zmq_strerror(e));
    }
    int hwm = opt->hwm > 0 ? opt->hwm : 256;
    int hb = opt->heartbeat_ms ? (int)opt->heartbeat_ms : 2000;
    int64_t max = opt->frame_bytes_max ? (int64_t)opt->frame_bytes_max : (int64_t)FVM_PORT_MSG_BYTES_MAX;
    set_int(p->sock, ZMQ_SNDHWM, hwm);
    set_int(p->sock, ZMQ_RCVHWM, hwm);
    set_int(p->sock, ZMQ_LINGER, (int)opt->linger_ms);
    set_int(p->sock, ZMQ_HANDSHAKE_IVL, 5000);
    set_int(p->sock, ZMQ_HEARTBEAT_IVL, hb);
    set_int(p->sock, ZMQ_HEARTBEAT_TIMEOUT, hb * 3);
    zmq_setsockopt(p->sock, ZMQ_MAXMSGSIZE, &max, sizeof(max));
    if (opt->buffer_bytes > 0) {
        set_int(p->sock, ZMQ_SNDBUF, opt->buffer_bytes);
        set_int(p->sock, ZMQ_RCVBUF, opt->buffer_bytes);
    }
    if (router) {
        set_int(p->sock, ZMQ_ROUTER_MANDATORY, 1);
        set_int(p->sock, ZMQ_ROUTER_HANDOVER, 1);
    } else {
        uint8_t id[16]; /* the same across reconnects; the first byte must not be 0 */
        randombytes_buf(id, sizeof(id));
        id[0] |= 1;
        zmq_setsockopt(p->sock, ZMQ_ROUTING_ID, id, sizeof(id));
        set_int(p->sock, ZMQ_RECONNECT_IVL, 10);
        set_int(p->sock, ZMQ_RECONNECT_IVL_MAX, 1000);
        set_int(p->sock, ZMQ_CONNECT_TIMEOUT, 5000);
    }
    *ret_port = p;
    return 0;
}

static bool domain_add(struct fvm_port *p, fvm_port_allow_fn allow, void *allow_ctx)
{
    struct fvm_port_ctx *ctx = p->ctx;
    pthread_mutex_lock(&ctx->lock);
    for (unsigned i = 0; i < DOMAINS_MAX && !p->has_domain; i++)
        if (ctx->domains[i].id == 0) {
            ctx->domains[i] = (struct domain){p->id, allow, allow_ctx};
            p->has_domain = true;
        }
    pthread_mutex_unlock(&ctx->lock);
    return p->has_domain;
}

static void domain_remove(struct fvm_port *p)
{
    pthread_mutex_lock(&p->ctx->lock);
    for (unsigned i = 0; p->has_domain && i < DOMAINS_MAX; i++)
        if (p->ctx->domains[i].id == p->id)
            p->ctx->domains[i] = (struct domain){0};
    p->has_domain = false;
    pthread_mutex_unlock(&p->ctx->lock);
}

/* Only where asked for: with it on, ZeroMQ shows and tells IPv4 addresses in their IPv6 form. */
static void allow_v6(struct fvm_port *p, const char *addr) { set_int(p->sock, ZMQ_IPV6, strchr(addr, '[') != NULL); }

static int addr_error(struct fvm_err *err, const char *verb, const char *addr, int e)
{
    int code = e == EADDRINUSE                                                             ? FVM_EBUSY
               : e == EINVAL || e == EPROTONOSUPPORT || e == ENOCOMPATPROTO || e == ENODEV ? FVM_EINVAL
                                                                                           : fvm_err_from_errno(e);
    const char *hint = code == FVM_EBUSY    ? "the address is taken; choose another port or end who has it"
                       : code == FVM_EINVAL ? "write it as tcp://host:port, with a host that this machine has"
                                            : zmq_strerror(e);
    return fvm_err_set(err, code, e, "net", "cannot %s %s: %s", verb, addr, hint);
}

int fvm_port_listen(struct fvm_port_ctx *ctx, const char *addr, const struct fvm_port_keys *keys,
                    fvm_port_allow_fn allow, void *allow_ctx, const struct fvm_port_options *opt,
                    struct fvm_port **ret_port, struct fvm_err *err)
{
    struct fvm_port *p;
    int rc = port_new(ctx, true, opt, &p, err);
    if (rc)
        return rc;
    if (keys) {
        char domain[16];
        snprintf(domain, sizeof(domain), "p%u", p->id);
        if (!domain_add(p, allow, allow_ctx)) {
            rc = fvm_err_set(err, FVM_ENOMEM, 0, "net", "too many listening ports (%d)", DOMAINS_MAX);
            goto fail;
        }
        if (set_int(p->sock, ZMQ_CURVE_SERVER, 1) != 0 ||
            zmq_setsockopt(p->sock, ZMQ_CURVE_SECRETKEY, keys->secret_key, FVM_PORT_KEY_CHARS + 1) != 0 ||
            zmq_setsockopt(p->sock, ZMQ_ZAP_DOMAIN, domain, strlen(domain)) != 0) {
            rc = fvm_err_set(err, FVM_EINVAL, zmq_errno(), "net",
                             "the secret key is not a CURVE key (40 characters of Z85)");
            goto fail;
        }
    }
    allow_v6(p, addr);
    if (zmq_bind(p->sock, addr) != 0) {
        rc = addr_error(err, "listen on", addr, zmq_errno());
        goto fail;
    }
    size_t n = sizeof(p->addr);
    if (zmq_getsockopt(p->sock, ZMQ_LAST_ENDPOINT, p->addr, &n) != 0)
        snprintf(p->addr, sizeof(p->addr), "%s", addr);
    p->link = FVM_PORT_UP;
    *ret_port = p;
    return 0;
fail:
    fvm_port_close(&p);
    return rc;
}

static int monitor_open(struct fvm_port *p)
{
    char name[64];
    snprintf(name, sizeof(name), "inproc://port-monitor-%u", p->id);
    if (zmq_socket_monitor(p->sock, name,
                           ZMQ_EVENT_CONNECTED | ZMQ_EVENT_DISCONNECTED | ZMQ_EVENT_HANDSHAKE_SUCCEEDED |
                               ZMQ_EVENT_HANDSHAKE_FAILED_AUTH | ZMQ_EVENT_HANDSHAKE_FAILED_PROTOCOL |
                               ZMQ_EVENT_HANDSHAKE_FAILED_NO_DETAIL) != 0)
        return zmq_errno();
    p->monitor = zmq_socket(p->ctx->zmq, ZMQ_PAIR);
    if (!p->monitor)
        return zmq_errno();
    set_int(p->monitor, ZMQ_LINGER, 0);
    return zmq_connect(p->monitor, name) == 0 ? 0 : zmq_errno();
}

int fvm_port_connect(struct fvm_port_ctx *ctx, const char *addr, const char *peer_key, const struct fvm_port_keys *keys,
                     const struct fvm_port_options *opt, struct fvm_port **ret_port, struct fvm_err *err)
{
    struct fvm_port *p;
    int rc = port_new(ctx, false, opt, &p, err);
    if (rc)
        return rc;
    if (keys) {
        if (!fvm_port_key_valid(peer_key)) {
            rc =
                fvm_err_set(err, FVM_EINVAL, 0, "net", "the peer's key is missing or not a key (40 characters of Z85)");
            goto fail;
        }
        memcpy(p->peer_key, peer_key, FVM_PORT_KEY_CHARS + 1);
        if (zmq_setsockopt(p->sock, ZMQ_CURVE_SERVERKEY, peer_key, FVM_PORT_KEY_CHARS + 1) != 0 ||
            zmq_setsockopt(p->sock, ZMQ_CURVE_PUBLICKEY, keys->public_key, FVM_PORT_KEY_CHARS + 1) != 0 ||
            zmq_setsockopt(p->sock, ZMQ_CURVE_SECRETKEY, keys->secret_key, FVM_PORT_KEY_CHARS + 1) != 0) {
            rc = fvm_err_set(err, FVM_EINVAL, zmq_errno(), "net", "our own key pair is not a CURVE key pair");
            goto fail;
        }
    }
    int e = monitor_open(p);
    if (e) {
        rc = fvm_err_set(err, fvm_err_from_errno(e), e, "net", "cannot watch the connection: %s", zmq_strerror(e));
        goto fail;
    }
    allow_v6(p, addr);
    if (zmq_connect(p->sock, addr) != 0) {
        rc = addr_error(err, "connect to", addr, zmq_errno());
        goto fail;
    }
    snprintf(p->addr, sizeof(p->addr), "%s", addr);
    *ret_port = p;
    return 0;
fail:
    fvm_port_close(&p);
    return rc;
}

void fvm_port_close(struct fvm_port **port_p)
{
    struct fvm_port *p = *port_p;
    if (!p)
        return;
    *port_p = NULL;
    fvm_port_detach(p);
    if (p->has_domain)
        domain_remove(p);
    if (p->monitor) {
        zmq_socket_monitor(p->sock, NULL, 0);
        zmq_close(p->monitor);
    }
    zmq_close(p->sock);
    free(p->peers);
    free(p);
}

const char *fvm_port_addr(const struct fvm_port *port) { return port->addr; }

/* ---- link state ---- */

static void monitor_event(struct fvm_port *p, uint16_t event)
{
    switch (event) {
    case ZMQ_EVENT_HANDSHAKE_SUCCEEDED:
        p->link = FVM_PORT_UP;
        p->failed_handshakes = 0;
        break;
    case ZMQ_EVENT_DISCONNECTED:
        if (p->link == FVM_PORT_UP) {
            p->link = FVM_PORT_DOWN;
            p->drops++;
        } else if (++p->failed_handshakes >= 2) { /* closed on us twice before the handshake ended: not by accident */
            p->link = FVM_PORT_REFUSED;
        }
        break;
    case ZMQ_EVENT_HANDSHAKE_FAILED_AUTH:
    case ZMQ_EVENT_HANDSHAKE_FAILED_PROTOCOL:
    case ZMQ_EVENT_HANDSHAKE_FAILED_NO_DETAIL:
        if (++p->failed_handshakes >= 2 || event == ZMQ_EVENT_HANDSHAKE_FAILED_AUTH)
            p->link = FVM_PORT_REFUSED;
        break;
    default:
        break;
    }
}

enum fvm_port_link fvm_port_link(struct fvm_port *p)
{
    while (p->monitor) {
        zmq_msg_t m;
        zmq_msg_init(&m);
        if (zmq_msg_recv(&m, p->monitor, ZMQ_DONTWAIT) < 0) {
            zmq_msg_close(&m);
            break;
        }
        uint16_t event = 0;
        if (zmq_msg_size(&m) >= 6 && zmq_msg_more(&m))
            memcpy(&event, zmq_msg_data(&m), 2);
        zmq_msg_close(&m); /* the frame with the address comes next, of no interest, event 0 */
        monitor_event(p, event);
    }
    return p->link;
}

unsigned fvm_port_drops(struct fvm_port *p)
{
    fvm_port_link(p);
    return p->drops;
}

int fvm_port_wait_up(struct fvm_port *p, int timeout_ms, struct fvm_err *err)
{
    uint64_t end = fvm_now_ns() + (uint64_t)FVM_MAX(timeout_ms, 0) * 1000000;
    for (;;) {
        enum fvm_port_link link = fvm_port_link(p);
        if (link == FVM_PORT_UP)
            return 0;
        if (link == FVM_PORT_REFUSED)
            return fvm_err_set(
                err, FVM_EAUTH, 0, "net",
                "%s refused the connection: our key is not known there, or its key is not the one given, or "
                "it is not an fvm port",
                p->addr);
        uint64_t now = fvm_now_ns();
        if (now >= end)
            return fvm_err_set(err, FVM_ETIMEOUT, 0, "net", "nobody answers at %s; is it started and reachable?",
                               p->addr);
        zmq_pollitem_t it = {.socket = p->monitor, .events = ZMQ_POLLIN};
        zmq_poll(&it, 1, (long)FVM_MIN((end - now) / 1000000 + 1, 1000));
    }
}

/* ---- messages ---- */

static struct peer_seq *peer_find(struct fvm_port *p, const struct fvm_port_peer *peer)
{
    struct peer_seq *oldest = NULL;
    for (unsigned i = 0; i < p->peer_count; i++) {
        struct peer_seq *s = &p->peers[i];
        if (s->len == peer->len && memcmp(s->id, peer->id, peer->len) == 0) {
            s->used = ++p->tick;
            return s;
        }
        if (!oldest || s->used < oldest->used)
            oldest = s;
    }
    if (p->peer_count < FVM_PORT_PEERS_MAX) {
        if ((p->peer_count & (p->peer_count - 1)) == 0) { /* grow at powers of two */
            unsigned cap = p->peer_count ? p->peer_count * 2 : 1;
            struct peer_seq *n = realloc(p->peers, cap * sizeof(*n));
            if (!n)
                return NULL;
            p->peers = n;
        }
        oldest = &p->peers[p->peer_count++];
    }
    *oldest = (struct peer_seq){.len = peer->len, .used = ++p->tick};
    memcpy(oldest->id, peer->id, peer->len);
    return oldest;
}

static void bufs_drop(const struct fvm_port_buf *bufs, unsigned from, unsigned count)
{
    for (unsigned i = from; i < count; i++)
        if (bufs[i].free_fn)
            bufs[i].free_fn((void *)(uintptr_t)bufs[i].data, bufs[i].hint);
}

static void pump_again(struct fvm_port *p);

static int send_error(int e)
{
    return e == EAGAIN ? FVM_EBUSY : e == EHOSTUNREACH ? FVM_ECLOSED : fvm_err_from_errno(e);
}

static int send_raw(void *sock, const void *data, size_t len, int flags)
{
    int rc;
    while ((rc = zmq_send(sock, data, len, flags)) < 0 && zmq_errno() == EINTR)
        ;
    return rc;
}

int fvm_port_send(struct fvm_port *p, const struct fvm_port_peer *peer, const struct fvm_port_buf *bufs, unsigned count,
                  int timeout_ms)
{
    static const struct fvm_port_peer self;
    fvm_assert(count > 0 && count <= FVM_PORT_FRAMES_MAX && (!p->router || peer));
    peer = p->router ? peer : &self;
    struct peer_seq *seq = peer_find(p, peer);
    if (timeout_ms != p->sndtimeo) {
        set_int(p->sock, ZMQ_SNDTIMEO, timeout_ms);
        p->sndtimeo = timeout_ms;
    }
    int rc = seq ? 0 : FVM_ENOMEM;
    unsigned i = 0;
    if (!rc && p->router && send_raw(p->sock, peer->id, peer->len, ZMQ_SNDMORE) < 0)
        rc = send_error(zmq_errno());
    if (!rc) {
        uint8_t head[HEAD_BYTES];
        memcpy(head, HEAD_MAGIC, 8);
        put64(head + 8, p->session);
        put64(head + 16, seq->next_out);
        if (send_raw(p->sock, head, sizeof(head), ZMQ_SNDMORE) < 0)
            rc = send_error(zmq_errno());
    }
    for (; !rc && i < count; i++) {
        zmq_msg_t m;
        if (bufs[i].free_fn) {
            if (zmq_msg_init_data(&m, (void *)(uintptr_t)bufs[i].data, bufs[i].len, bufs[i].free_fn, bufs[i].hint) !=
                0) {
                rc = FVM_ENOMEM;
                break;
            }
        } else if (zmq_msg_init_size(&m, bufs[i].len) != 0) {
            rc = FVM_ENOMEM;
            break;
        } else if (bufs[i].len) {
            memcpy(zmq_msg_data(&m), bufs[i].data, bufs[i].len);
        }
        int n;
        while ((n = zmq_msg_send(&m, p->sock, i + 1 < count ? ZMQ_SNDMORE : 0)) < 0 && zmq_errno() == EINTR)
            ;
        if (n < 0) {
            rc = send_error(zmq_errno());
            zmq_msg_close(&m);
        }
    }
    bufs_drop(bufs, i, count);
    if (!rc)
        seq->next_out++;
    if (p->pump)
        pump_again(p);
    return rc;
}

int fvm_port_send_bytes(struct fvm_port *port, const struct fvm_port_peer *peer, const void *data, size_t len,
                        int timeout_ms)
{
    struct fvm_port_buf buf = {.data = data, .len = len};
    return fvm_port_send(port, peer, &buf, 1, timeout_ms);
}

/* Reads one whole multipart message. 0; FVM_EBUSY: none there; FVM_EPROTO: one was read and dropped. */
static int recv_whole(struct fvm_port *p, struct fvm_port_msg *msg, zmq_msg_t *id, zmq_msg_t *head)
{
    unsigned expect_id = p->router ? 1 : 0, part = 0;
    bool good = true;
    for (int more = 1; more; part++) {
        zmq_msg_t extra, *m = part < expect_id ? id : part == expect_id ? head : NULL;
        if (!m && msg->count < FVM_PORT_FRAMES_MAX)
            m = &msg->frames[msg->count];
        else if (!m) {
            zmq_msg_init(&extra);
            m = &extra;
            good = false;
        }
        if (m != &extra && part > expect_id)
            zmq_msg_init(m);
        int rc;
        while ((rc = zmq_msg_recv(m, p->sock, ZMQ_DONTWAIT)) < 0 && zmq_errno() == EINTR)
            ;
        if (rc < 0) {
            if (m != id && m != head)
                zmq_msg_close(m);
            return part == 0 && zmq_errno() == EAGAIN ? FVM_EBUSY : FVM_EPROTO;
        }
        more = zmq_msg_more(m);
        if (m == &extra)
            zmq_msg_close(m);
        else if (part > expect_id)
            msg->count++;
    }
    return good && msg->count > 0 && zmq_msg_size(head) == HEAD_BYTES && memcmp(zmq_msg_data(head), HEAD_MAGIC, 8) == 0
               ? 0
               : FVM_EPROTO;
}

static void msg_identify(struct fvm_port *p, struct fvm_port_msg *msg, zmq_msg_t *id, zmq_msg_t *head)
{
    if (p->router) {
        msg->peer.len = (uint8_t)FVM_MIN(zmq_msg_size(id), sizeof(msg->peer.id));
        memcpy(msg->peer.id, zmq_msg_data(id), msg->peer.len);
        const char *user = zmq_msg_gets(head, "User-Id");
        if (user)
            snprintf(msg->peer.key, sizeof(msg->peer.key), "%s", user);
    } else {
        memcpy(msg->peer.key, p->peer_key, sizeof(msg->peer.key));
    }
    const uint8_t *h = zmq_msg_data(head);
    msg->session = get64(h + 8);
    uint64_t number = get64(h + 16);
    struct fvm_port_peer key = p->router ? msg->peer : (struct fvm_port_peer){0};
    struct peer_seq *s = peer_find(p, &key);
    if (!s)
        return;
    if (s->session != msg->session) {
        s->session = msg->session;
        s->next_in = 0;
    }
    msg->gap = number > s->next_in ? number - s->next_in : 0;
    s->next_in = number + 1;
}

static int recv_now(struct fvm_port *p, struct fvm_port_msg **ret_msg)
{
    struct fvm_port_msg *msg = calloc(1, sizeof(*msg));
    if (!msg)
        return FVM_ENOMEM;
    zmq_msg_t id, head;
    zmq_msg_init(&id);
    zmq_msg_init(&head);
    int rc = recv_whole(p, msg, &id, &head);
    if (rc == 0) {
        msg_identify(p, msg, &id, &head);
        *ret_msg = msg;
    } else {
        if (rc == FVM_EPROTO && fvm_log_nth(++p->malformed))
            fvm_log(WARN, "port.malformed", "addr=%s frames=%u count=%llu", p->addr, msg->count,
                    (unsigned long long)p->malformed);
        fvm_port_msg_destroy(&msg);
    }
    zmq_msg_close(&id);
    zmq_msg_close(&head);
    return rc;
}

int fvm_port_recv(struct fvm_port *p, struct fvm_port_msg **ret_msg, int timeout_ms)
{
    uint64_t end = timeout_ms > 0 ? fvm_now_ns() + (uint64_t)timeout_ms * 1000000 : 0;
    for (;;) {
        int rc = recv_now(p, ret_msg);
        if (rc == FVM_EPROTO)
            continue;
        if (rc != FVM_EBUSY || timeout_ms == 0)
            return rc;
        uint64_t now = fvm_now_ns();
        if (timeout_ms > 0 && now >= end)
            return FVM_EBUSY;
        fvm_port_poll(&p, 1, -1, timeout_ms < 0 ? -1 : (int)((end - now) / 1000000 + 1));
    }
}

unsigned fvm_port_poll(struct fvm_port *const *ports, unsigned count, int wake_fd, int timeout_ms)
{
    zmq_pollitem_t it[32];
    unsigned n = 0, ready = 0;
    fvm_assert(count < 31);
    for (; n < count; n++)
        it[n] = (zmq_pollitem_t){.socket = ports[n]->sock, .events = ZMQ_POLLIN};
    if (wake_fd >= 0)
        it[n++] = (zmq_pollitem_t){.fd = wake_fd, .events = ZMQ_POLLIN};
    if (zmq_poll(it, (int)n, timeout_ms) <= 0)
        return 0;
    for (unsigned i = 0; i < count; i++)
        if (it[i].revents & ZMQ_POLLIN)
            ready |= 1u << i;
    if (wake_fd >= 0 && it[count].revents)
        ready |= 1u << 31;
    return ready;
}

unsigned fvm_port_msg_count(const struct fvm_port_msg *msg) { return msg->count; }

void *fvm_port_msg_data(struct fvm_port_msg *msg, unsigned i)
{
    fvm_assert(i < msg->count);
    return zmq_msg_data(&msg->frames[i]);
}

size_t fvm_port_msg_len(const struct fvm_port_msg *msg, unsigned i)
{
    fvm_assert(i < msg->count);
    return zmq_msg_size(&msg->frames[i]);
}

const struct fvm_port_peer *fvm_port_msg_peer(const struct fvm_port_msg *msg) { return &msg->peer; }

uint64_t fvm_port_msg_session(const struct fvm_port_msg *msg) { return msg->session; }

uint64_t fvm_port_msg_gap(const struct fvm_port_msg *msg) { return msg->gap; }

void fvm_port_msg_destroy(struct fvm_port_msg **msg_p)
{
    struct fvm_port_msg *msg = *msg_p;
    if (!msg)
        return;
    *msg_p = NULL;
    for (unsigned i = 0; i < msg->count; i++)
        zmq_msg_close(&msg->frames[i]);
    free(msg);
}

/* ---- on a loop ---- */

static bool readable(struct fvm_port *p)
{
    int events = 0;
    size_t n = sizeof(events);
    return zmq_getsockopt(p->sock, ZMQ_EVENTS, &events, &n) == 0 && (events & ZMQ_POLLIN);
}

static void pump_unref(struct pump *pump)
{
    if (--pump->refs == 0)
        free(pump);
}

static void pump_run(struct pump *pump)
{
    pump->refs++;
    for (unsigned i = 0; i < PUMP_BATCH && pump->port; i++) {
        struct fvm_port_msg *msg = NULL;
        int rc = recv_now(pump->port, &msg);
        if (rc == FVM_EPROTO)
            continue;
        if (rc)
            break;
        pump->fn(pump->ctx, pump->port, &msg);
        fvm_port_msg_destroy(&msg);
    }
    if (pump->port)
        pump_again(pump->port);
    pump_unref(pump);
}

static void pump_posted(void *ctx)
{
    struct pump *pump = ctx;
    pump->posted = false;
    pump_run(pump);
    pump_unref(pump);
}

static void pump_again(struct fvm_port *p)
{
    struct pump *pump = p->pump;
    if (!pump || pump->posted || !readable(p))
        return;
    pump->posted = true;
    pump->refs++;
    if (fvm_loop_post(pump->loop, pump_posted, pump) != 0) {
        pump->posted = false;
        pump->refs--;
    }
}

static void pump_io(void *ctx, int fd, unsigned revents)
{
    (void)fd;
    (void)revents;
    pump_run(ctx);
}

int fvm_port_attach(struct fvm_port *p, struct fvm_loop *loop, fvm_port_recv_fn fn, void *ctx)
{
    fvm_assert(!p->pump);
    int fd = -1;
    size_t n = sizeof(fd);
    if (zmq_getsockopt(p->sock, ZMQ_FD, &fd, &n) != 0)
        return fvm_err_from_errno(zmq_errno());
    struct pump *pump = calloc(1, sizeof(*pump));
    if (!pump)
        return FVM_ENOMEM;
    *pump = (struct pump){.port = p, .loop = loop, .fn = fn, .ctx = ctx, .refs = 1};
    int rc = fvm_loop_io_add(loop, fd, FVM_LOOP_IN, pump_io, pump, &pump->io);
    if (rc) {
        free(pump);
        return rc;
    }
    p->pump = pump;
    pump_again(p); /* what came before attaching raises no edge */
    return 0;
}

void fvm_port_detach(struct fvm_port *p)
{
    struct pump *pump = p->pump;
    if (!pump)
        return;
    p->pump = NULL;
    pump->port = NULL;
    fvm_loop_io_remove(&pump->io);
    pump_unref(pump);
}
