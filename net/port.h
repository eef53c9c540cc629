/*
 * port.h - framed, authenticated messages between processes: ZeroMQ and CURVE behind one small door.
 * Only net/port*.c knows ZeroMQ.
 *
 * A listening port (ROUTER) serves many peers; a connecting port (DEALER) has one and reconnects by itself. A message
 * is one or more frames. ZeroMQ loses messages silently when a connection breaks, so each message carries its sender's
 * session (a random number per port) and a sequence number: the receiver sees in fvm_port_msg_gap how many were lost
 * before this one, and in _session that the peer started anew. Whoever needs them delivered acknowledges and resends
 * (migrate/stream).
 *
 *      connect side                                      listen side
 *      fvm_port_connect ---- TCP, CURVE handshake -----> allow(public key)?     (ZAP, in-process)
 *      fvm_port_send    ---- [head|frame|frame...] ----> fvm_port_recv -> msg, from peer P
 *      fvm_port_recv    <--- [head|frame|frame...] ----- fvm_port_send(peer P)
 *
 * Keys are Z85 text (40 characters). keys == NULL on both sides: no encryption and no authentication (bulk data that is
 * sealed by its owner). Addresses: "tcp://host:port", "tcp://127.0.0.1:*" (any free port), "ipc:///path",
 * "inproc://name".
 *
 * Thread: a port belongs to one thread at a time (hand it over before use, not during); the context and keygen to any.
 * `allow` runs on the context's own thread: it must be thread-safe and quick.
 */
#ifndef FVM_NET_PORT_H
#define FVM_NET_PORT_H

#include "base/err.h"
#include "base/loop.h"

#define FVM_PORT_KEY_CHARS 40
#define FVM_PORT_FRAMES_MAX 16               /* frames of one message */
#define FVM_PORT_MSG_BYTES_MAX (64ull << 20) /* default limit of one frame */
#define FVM_PORT_PEERS_MAX 1024              /* peers a listener keeps sequence numbers for */

struct fvm_port_ctx; /* ZeroMQ context and the thread that answers "may this key in?" */
struct fvm_port;
struct fvm_port_msg;

struct fvm_port_keys {
    char public_key[FVM_PORT_KEY_CHARS + 1];
    char secret_key[FVM_PORT_KEY_CHARS + 1];
};

/** Who sent a message, who gets one. Value type; all zero = "the peer" of a connecting port. */
struct fvm_port_peer {
    uint8_t len;
    uint8_t id[33];
    char key[FVM_PORT_KEY_CHARS + 1]; /* the peer's public key as authenticated; empty without CURVE */
};

/** May a client with this public key connect? addr: its IP address as text. */
typedef bool (*fvm_port_allow_fn)(void *ctx, const char *public_key, const char *addr);

struct fvm_port_options {     /* zero = default */
    int hwm;                  /* messages queued per direction and peer before send blocks; default 256 */
    uint64_t frame_bytes_max; /* a larger frame closes the connection; default FVM_PORT_MSG_BYTES_MAX */
    unsigned linger_ms;       /* how long close waits for queued messages to leave; default 0 */
    unsigned heartbeat_ms;    /* a silent peer counts as gone after 3 of these; default 2000 */
    int buffer_bytes;         /* socket buffers; default: the system's */
};

/** A frame to send. With `free_fn` the memory is handed over (no copy) and freed, even when the send fails; else it is
 * copied. */
struct fvm_port_buf {
    const void *data;
    size_t len;
    void (*free_fn)(void *data, void *hint); /* called on any thread */
    void *hint;
};

enum fvm_port_link {                      /* of a connecting port */
                     FVM_PORT_CONNECTING, /* not yet up */
                     FVM_PORT_UP,         /* handshake done */
                     FVM_PORT_DOWN,       /* was up, trying again */
                     FVM_PORT_REFUSED, /* the peer does not accept our key, or is not who it should be; still tried */
};

int fvm_port_ctx_create(int io_threads, struct fvm_port_ctx **ret_ctx, struct fvm_err *err);
/** Every port of it must be closed before. */
void fvm_port_ctx_destroy(struct fvm_port_ctx **ctx_p);

/** A new CURVE key pair. */
int fvm_port_keygen(struct fvm_port_keys *ret_keys);
/** The public key that belongs to a secret one; FVM_EINVAL when it is not a key. */
int fvm_port_public_key(const char *secret_key, char ret_public[FVM_PORT_KEY_CHARS + 1]);
/** True for 40 characters of Z85. */
bool fvm_port_key_valid(const char *key);

/**
 * fvm_port_listen - bind and serve.
 * @keys   this side's pair; NULL: no CURVE. Copied.
 * @allow  asked for each connecting key; NULL with keys: nobody is let in. Must stay callable until close.
 * Returns FVM_EBUSY when the address is taken, FVM_EINVAL for a malformed one; err says it in words.
 */
int fvm_port_listen(struct fvm_port_ctx *ctx, const char *addr, const struct fvm_port_keys *keys,
                    fvm_port_allow_fn allow, void *allow_ctx, const struct fvm_port_options *opt,
                    struct fvm_port **ret_port, struct fvm_err *err);
/** Starts connecting (never blocks). peer_key: public key that the listener must own; NULL only with keys NULL. */
int fvm_port_connect(struct fvm_port_ctx *ctx, const char *addr, const char *peer_key, const struct fvm_port_keys *keys,
                     const struct fvm_port_options *opt, struct fvm_port **ret_port, struct fvm_err *err);
void fvm_port_close(struct fvm_port **port_p);
/** The address really bound ("tcp://127.0.0.1:34567"), or the one connected to. */
const char *fvm_port_addr(const struct fvm_port *port);
/** State of a connecting port; never blocks. */
enum fvm_port_link fvm_port_link(struct fvm_port *port);
/** Times the link of a connecting port went down since the start. */
unsigned fvm_port_drops(struct fvm_port *port);
/** Waits until up: 0, FVM_EAUTH (refused or wrong peer), FVM_ETIMEOUT (nobody there); err says it in words. */
int fvm_port_wait_up(struct fvm_port *port, int timeout_ms, struct fvm_err *err);

/**
 * fvm_port_send - queue one message. All frames or none.
 * @peer        NULL on a connecting port.
 * @timeout_ms  how long to wait while the queue is full: 0 not at all, -1 for ever.
 * Returns 0, FVM_EBUSY (full), FVM_ECLOSED (a listener does not have that peer any more). 0 does not mean delivered.
 */
int fvm_port_send(struct fvm_port *port, const struct fvm_port_peer *peer, const struct fvm_port_buf *bufs,
                  unsigned count, int timeout_ms);
/** One frame, copied. */
int fvm_port_send_bytes(struct fvm_port *port, const struct fvm_port_peer *peer, const void *data, size_t len,
                        int timeout_ms);
/** Next message: 0, or FVM_EBUSY when none came in time. Malformed ones are dropped and counted. */
int fvm_port_recv(struct fvm_port *port, struct fvm_port_msg **ret_msg, int timeout_ms);
/**
 * Waits until one of the ports has a message, or wake_fd (-1: none) is readable.
 * Returns a bit per ready port (bit i for ports[i]), bit 31 for wake_fd; 0 on timeout. A port may be ready and recv
 * still find nothing (malformed message).
 */
unsigned fvm_port_poll(struct fvm_port *const *ports, unsigned count, int wake_fd, int timeout_ms);

/* --- on a loop instead of blocking: fn gets every message on the loop's thread and owns it (take: set *msg_p to NULL)
 * --- */
typedef void (*fvm_port_recv_fn)(void *ctx, struct fvm_port *port, struct fvm_port_msg **msg_p);
/** fn may send on, detach and close the port. Messages not taken are destroyed after fn. */
int fvm_port_attach(struct fvm_port *port, struct fvm_loop *loop, fvm_port_recv_fn fn, void *ctx);
void fvm_port_detach(struct fvm_port *port);

/* --- messages --- */
unsigned fvm_port_msg_count(const struct fvm_port_msg *msg);
/** Frame i's bytes: borrowed, writable, until the message is destroyed. */
void *fvm_port_msg_data(struct fvm_port_msg *msg, unsigned i);
size_t fvm_port_msg_len(const struct fvm_port_msg *msg, unsigned i);
const struct fvm_port_peer *fvm_port_msg_peer(const struct fvm_port_msg *msg);
uint64_t fvm_port_msg_session(const struct fvm_port_msg *msg);
/** Messages of this session lost just before this one. */
uint64_t fvm_port_msg_gap(const struct fvm_port_msg *msg);
void fvm_port_msg_destroy(struct fvm_port_msg **msg_p);

#endif
