/*
 * node_arrival.h - inside fvm-node: a guest on its way in, as the destination's node sees it.
 */
#ifndef FVM_CLUSTER_NODE_ARRIVAL_H
#define FVM_CLUSTER_NODE_ARRIVAL_H

#include "cluster/node.h"

struct fvm_node_arrival {
    struct fvm_node_call *call; /* the source's node waits for "ready"; NULL afterwards */
    char from[FVM_DIR_NAME_MAX + 1];
    char source_key[FVM_PORT_KEY_CHARS + 1];
    uint64_t epoch; /* the record's when it was announced: a later one that is not ours means that it came to nothing */
};

/** A guest that waits until the process it left (or that failed to take it) is gone. */
struct fvm_node_queued {
    struct fvm_node_call *call;
    Fvm__Incoming *request;
};

/** A guest on its way out, as the source's node sees it. */
struct fvm_node_move {
    struct fvm_node_call *call; /* NULL: nobody watches any more */
    char to[FVM_DIR_NAME_MAX + 1];
    char on_miss[16];
    uint64_t rate_limit_bytes;
    uint32_t max_downtime_ms, deadline_ms;
    bool dry_run, no_throttle, started, cancelled;
    bool drop_there; /* the destination made ready and must be told when it comes to nothing */
};

#endif
