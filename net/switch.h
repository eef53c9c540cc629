/*
 * switch.h - a layer-2 learning switch per node; together, over links, one network in which a guest keeps MAC, IP and TCP
 * connections wherever it runs.
 *
 *   fvm (VM) --unix SOCK_SEQPACKET--+             +--unix-- fvm (VM)
 *   fvm (VM) --unix-----------------+ switch A ===link=== switch B
 *   gateway: libslirp, forwards ----+             (link: the cluster's transport; TCP in tests)
 *
 * - A port is a VM, a link or the gateway. One packet on a VM's socket is one Ethernet frame without FCS, at most
 *   FVM_NET_FRAME_MAX bytes; shorter than 14 or longer is dropped. There is no handshake.
 * - Links must form a full mesh: one link between each two nodes. A frame that came by a link never leaves by a link
 *   (split horizon), so nothing can circle, and every frame crosses at most one link.
 * - The switch learns where a source MAC is and forgets after 300 s, or when the port goes. Any frame from a new place moves the
 *   MAC at once; a guest that was migrated says so by RARP (fvm_net_announce). A port may own at most 64 (VM) or 4096 (link) MACs.
 * - The gateway is on the one node that owns the network: it alone gives the way out and the host forwards.
 * - When a port cannot take a frame now, the frame is dropped, as any switch does.
 *
 * It trusts the VMs with their source addresses: one switch is one tenant.
 * Thread: the loop's (under its guard, if any). Nothing blocks.
 */
#ifndef FVM_NET_SWITCH_H
#define FVM_NET_SWITCH_H

#include "net/net.h"

struct fvm_switch;
struct fvm_switch_link;

struct fvm_switch_stats {
    unsigned vms, links, macs;
    bool gateway;
    uint64_t frames;   /* taken in */
    uint64_t flooded;  /* of these: broadcast, or destination not known */
    uint64_t dropped;  /* a port could not take it, or the frame made no sense */
    uint64_t moves;    /* a MAC changed its port */
};

/** How a link's other end is reached; the caller's. */
struct fvm_switch_link_ops {
    /* Send one frame to the other switch; false: cannot now, it is dropped. Must not call back into the switch. */
    bool (*send)(void *ctx, const uint8_t *frame, size_t len);
};

/**
 * fvm_switch_create - a switch with a listening socket for VMs at `path` (created with rights 0660; a stale one is replaced).
 * FVM_EBUSY: another switch answers there.
 */
int fvm_switch_create(struct fvm_loop *loop, const char *path, struct fvm_switch **ret_sw, struct fvm_err *err);
/** Closes ports, gateway and transports, removes the socket. Links added by the caller are gone, too. */
void fvm_switch_destroy(struct fvm_switch **sw_p);
void fvm_switch_get_stats(const struct fvm_switch *sw, struct fvm_switch_stats *ret);

/** Open the gateway (kind "user" only; errors as fvm_net_open), replacing a former one. NULL: this node is the gateway no more. */
int fvm_switch_set_gateway(struct fvm_switch *sw, const struct fvm_net_options *opt, struct fvm_err *err);

/** A link to another node's switch. `ops` and `ctx` are borrowed until removal; name is copied (for the log). */
int fvm_switch_link_add(struct fvm_switch *sw, const char *name, const struct fvm_switch_link_ops *ops, void *ctx,
                        struct fvm_switch_link **ret_link);
/** A frame came from the other switch. Hostile or nonsensical frames are dropped. */
void fvm_switch_link_receive(struct fvm_switch_link *link, const uint8_t *frame, size_t len);
/** What was learned by this link is forgotten. */
void fvm_switch_link_remove(struct fvm_switch_link **link_p);

/* ---- a plain TCP transport for links: no authentication, no secrecy; for tests and private wires (switch_tcp.c) ---- */

/** Accept links on addr:port (IPv4; port 0: any, told by *ret_port). */
int fvm_switch_tcp_listen(struct fvm_switch *sw, const char *addr, uint16_t port, uint16_t *ret_port, struct fvm_err *err);
/** Keep a link to addr:port: connects now and again whenever it breaks. */
int fvm_switch_tcp_connect(struct fvm_switch *sw, const char *addr, uint16_t port, struct fvm_err *err);

#endif
