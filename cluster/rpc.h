/*
 * rpc.h - requests and replies between operators and nodes (proto/cluster.proto) over a port.
 *
 * One ClusterMessage per port message. The sender's protocol number is in each; a message of another protocol is
 * refused with FVM_EVERSION and a text that says which side is older. Replies carry the id of their request; `last`
 * ends it. A connection that breaks in the middle of a call gives FVM_ECLOSED: the call may or may not have been
 * carried out.
 *
 * Thread: a client belongs to one thread.
 */
#ifndef FVM_CLUSTER_RPC_H
#define FVM_CLUSTER_RPC_H

#include "base/err.h"
#include "net/port.h"
#include "proto/cluster.pb-c.h"

enum { FVM_RPC_PROTOCOL = 1, FVM_RPC_BYTES_MAX = 8 << 20 };

int fvm_rpc_send_request(struct fvm_port *port, Fvm__Request *request);
int fvm_rpc_send_reply(struct fvm_port *port, const struct fvm_port_peer *peer, Fvm__Reply *reply);
/** An Ethernet frame for the switch at the other side; dropped when the link's queue is full, as Ethernet would. */
int fvm_rpc_send_frame(struct fvm_port *port, const struct fvm_port_peer *peer, const void *frame, size_t len);
/** FVM_EPROTO: not a message of ours; FVM_EVERSION. Free with fvm__cluster_message__free_unpacked(m, NULL). */
int fvm_rpc_parse(struct fvm_port_msg *msg, Fvm__ClusterMessage **ret_message, struct fvm_err *err);

struct fvm_rpc_client;

/** Connects and waits until the peer is proven to be `peer_name`: FVM_ETIMEOUT nobody there, FVM_EAUTH refused. */
int fvm_rpc_open(struct fvm_port_ctx *ctx, const char *peer_name, const char *addr, const char *peer_key,
                 const struct fvm_port_keys *keys, int timeout_ms, struct fvm_rpc_client **ret_client,
                 struct fvm_err *err);
void fvm_rpc_close(struct fvm_rpc_client **client_p);
const char *fvm_rpc_peer(const struct fvm_rpc_client *client);
/** Sends; request->id is set. */
int fvm_rpc_start(struct fvm_rpc_client *client, Fvm__Request *request, struct fvm_err *err);
/**
 * Next reply of request `id` (others are dropped): 0, FVM_ETIMEOUT, FVM_ECLOSED. wake_fd (-1: none) readable:
 * FVM_EBUSY. A reply with a code is still 0 here. Free with fvm__reply__free_unpacked(r, NULL).
 */
int fvm_rpc_next(struct fvm_rpc_client *client, uint64_t id, int timeout_ms, int wake_fd, Fvm__Reply **ret_reply,
                 struct fvm_err *err);
/** Start and wait for the last reply; a reply's code and text become the return value and err, a redirect FVM_ESTATE
 * with the reply set. */
int fvm_rpc_call(struct fvm_rpc_client *client, Fvm__Request *request, int timeout_ms, Fvm__Reply **ret_reply,
                 struct fvm_err *err);

#endif
