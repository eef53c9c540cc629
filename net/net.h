/*
 * net.h - the front door to a VM's network: frames in, frames out, whatever carries them.
 * Ethernet frames without FCS, at most FVM_NET_FRAME_MAX bytes. Thread: functions with the loop's guard held, open and close
 * on the loop's thread; deliver is called on any thread that holds the guard.
 *
 * Back ends by `kind`:
 *   "user"        libslirp in this process: NAT to the host's network, no rights needed. 10.0.2.0/24, gateway 10.0.2.2, DNS
 *                 10.0.2.3, the guest gets 10.0.2.15 by DHCP. Connections through it end when the VM moves to another host.
 *   "switch:PATH" the node's switch (net/switch.h) at unix socket PATH: one layer-2 network over all nodes, so that the
 *                 guest keeps MAC, IP and TCP connections when it moves. Reconnects by itself when the daemon restarts;
 *                 frames in between are lost, as on a wire.
 *   "none"        a cable with nothing at the other end.
 */
#ifndef FVM_NET_NET_H
#define FVM_NET_NET_H

#include "base/err.h"
#include "base/loop.h"

#define FVM_NET_FRAME_MIN 14
#define FVM_NET_FRAME_MAX 65550

struct fvm_net;

struct fvm_net_forward {
    bool udp;
    char host_addr[46];  /* "" : 127.0.0.1 */
    uint16_t host_port;
    char guest_addr[46]; /* "": the first DHCP address */
    uint16_t guest_port;
};

struct fvm_net_options {
    const char *kind; /* NULL: "user" */
    const struct fvm_net_forward *forwards; /* "user" only */
    unsigned forward_count;
    bool restricted;  /* no way out to the host's network, forwards only */
    bool host_loopback; /* "user": let the guest reach services on the host's 127.0.0.1 as 10.0.2.2; else refused */
    const char *tftp;     /* "user": directory that the guest may read by TFTP from 10.0.2.2; NULL: none. Borrowed for the call */
    const char *bootfile; /* "user": file there that DHCP names for booting; NULL: none */
    bool inactive;    /* migration destination: bind and connect nothing yet; fvm_net_activate does */
};

/** A frame for the guest. Returns false when the guest has no buffer: the back end may drop or retry after fvm_net_ready. */
typedef bool (*fvm_net_deliver)(void *ctx, const uint8_t *frame, size_t len);

/**
 * fvm_net_open - FVM_EUNSUPPORTED: unknown kind. FVM_EBUSY: a forward's host port is taken (the text names it). A switch that does
 * not answer is not an error: the link is down until it does. deliver may be NULL at first (frames are dropped).
 */
int fvm_net_open(struct fvm_loop *loop, const struct fvm_net_options *opt, fvm_net_deliver deliver, void *ctx,
                 struct fvm_net **ret_net, struct fvm_err *err);
void fvm_net_close(struct fvm_net **net_p);
/** Who receives from now on; NULL: nobody. Done by the network chip at its creation. */
void fvm_net_set_deliver(struct fvm_net *net, fvm_net_deliver deliver, void *ctx);
/** A frame from the guest. Dropped while inactive, too short or too long. */
void fvm_net_send(struct fvm_net *net, const uint8_t *frame, size_t len);
/** Does the back end take TCP/IPv4 frames larger than its MTU (it is the other end of the TCP connection itself)? */
bool fvm_net_takes_large(const struct fvm_net *net);
/** The guest has buffers again. */
void fvm_net_ready(struct fvm_net *net);
/** Bind the forwards, join the switch. Active already: 0. */
int fvm_net_activate(struct fvm_net *net, struct fvm_err *err);
/** Unbind, leave; the guest sees silence. */
void fvm_net_deactivate(struct fvm_net *net);
bool fvm_net_active(const struct fvm_net *net);
/**
 * fvm_net_announce - tell the network where `mac` is now (after a move): RARP broadcasts, at 0, 50, 150, 350, 750 ms, ended early
 * by a broadcast of the guest itself. Needs no help from the guest. Back ends without a layer 2 of their own ignore it. While
 * inactive it is remembered and starts at activation.
 */
void fvm_net_announce(struct fvm_net *net, const uint8_t mac[6]);
/** The back end's own state (libslirp's tables) as bytes; malloc'd, may be NULL/0. A restore that cannot work starts fresh and says so in the log. */
int fvm_net_save(struct fvm_net *net, uint8_t **ret_buf, size_t *ret_len);
int fvm_net_restore(struct fvm_net *net, const uint8_t *buf, size_t len, struct fvm_err *err);

#endif
