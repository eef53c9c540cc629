/*
 * net.h - the front door to a VM's network: frames in, frames out, whatever carries them.
 * Thread: loop (under the guard). Ethernet frames without FCS, at most 65550 bytes.
 */
#ifndef FVM_NET_NET_H
#define FVM_NET_NET_H

#include "base/err.h"
#include "base/loop.h"

struct fvm_net;

struct fvm_net_forward { bool udp; char host_addr[46]; uint16_t host_port; char guest_addr[46]; uint16_t guest_port; };

struct fvm_net_options {
    const char *kind; /* "user" */
    const struct fvm_net_forward *forwards;
    unsigned forward_count;
    bool restricted;  /* no way out to the host's network, forwards only */
    bool inactive;    /* migration destination: bind nothing yet; fvm_net_activate does */
};

/** A frame for the guest. Returns false when the guest has no buffer: the back end may drop or retry after fvm_net_ready. */
typedef bool (*fvm_net_deliver)(void *ctx, const uint8_t *frame, size_t len);

int fvm_net_open(struct fvm_loop *loop, const struct fvm_net_options *opt, fvm_net_deliver deliver, void *ctx,
                 struct fvm_net **ret_net, struct fvm_err *err);
void fvm_net_close(struct fvm_net **net_p);
/** A frame from the guest. */
void fvm_net_send(struct fvm_net *net, const uint8_t *frame, size_t len);
void fvm_net_ready(struct fvm_net *net);
int fvm_net_activate(struct fvm_net *net, struct fvm_err *err);
void fvm_net_deactivate(struct fvm_net *net);
/** The back end's own state (libslirp's NAT tables) as bytes; malloc'd. A restore that cannot work starts fresh and says so in the log. */
int fvm_net_save(struct fvm_net *net, uint8_t **ret_buf, size_t *ret_len);
int fvm_net_restore(struct fvm_net *net, const uint8_t *buf, size_t len, struct fvm_err *err);

#endif
