/*
 * node.h - inside fvm-node: the daemon's one struct and its parts. Only cluster/node_*.c and main_node.c include it.
 *
 *   node.c         opens everything, runs the loop, closes everything
 *   node_member.c  lease, heartbeat, who else is there, the allow-list
 *   node_rpc.c     requests come in, replies go out
 *   node_link.c    connections to the other nodes
 *   node_vm.c      the VMs here: start, adopt, stop, end
 *   node_ops.c     what operators ask for
 *   node_console.c serial consoles, fanned out
 *   node_migrate.c a guest leaves, a guest comes
 *   node_agent.c   repairs records after crashes
 *   node_net.c     the switch between the nodes
 *   node_metrics.c counters, for Prometheus
 *
 * Everything runs on the loop's thread, but for the allow-list's question (node_member.c), which has a lock.
 *
 * Invariant: the daemon holds no truth. Who may run a guest is in the store, whether it runs is the process' own
 * word, what the daemon has in memory it can lose at any instant.
 */
#ifndef FVM_CLUSTER_NODE_H
#define FVM_CLUSTER_NODE_H

#include <pthread.h>
#include <stdio.h>

#include "base/loop.h"
#include "cluster/dir.h"
#include "cluster/node_control.h"
#include "cluster/node_proc.h"
#include "cluster/rpc.h"
#include "cluster/store.h"
#include "cluster/vmdb.h"

enum {
    NODE_LEASE_MS = 6000,
    NODE_RENEW_MS = 1500,
    NODE_SEEN_MS = 5000,
    NODE_LOOK_MS = 100,    /* how often the store is looked at */
    NODE_START_MS = 30000, /* a VM must answer on its control socket in this time */
    NODE_ASK_MS = 2000,    /* a running VM must answer a question */
    NODE_VMS_MAX = 1024,
    NODE_CALLS_MAX = 4096,
};

struct node;
struct node_vm;
struct node_link;
struct node_console;
struct node_net;

/** A request being served. Ends with node_call_end or node_call_fail; a call whose VM goes away is ended by that. */
struct node_call {
    struct node_call *next;
    struct node *node;
    struct fvm_port_peer peer;
    char who[FVM_DIR_NAME_MAX + 12]; /* "operator admin" */
    uint64_t id;
    uint64_t session;
    void (*cancelled)(struct node_call *call); /* the peer asked for it; may be NULL */
    void (*gone)(struct node_call *call);      /* the peer is not there any more; may be NULL */
    void (*input)(struct node_call *call, const uint8_t *data, size_t len);
    void *ctx;
};

enum node_vm_state {
    NODE_VM_STOPPED,
    NODE_VM_STARTING,
    NODE_VM_INCOMING, /* a destination process, waiting for its guest */
    NODE_VM_UP,       /* control socket connected; the VM itself says whether it runs */
    NODE_VM_STOPPING,
};

struct node_vm {
    struct node_vm *next;
    struct node *node;
    char name[FVM_DIR_NAME_MAX + 1];
    char dir[4096];
    enum node_vm_state state;
    char live[24]; /* what its control socket said last: "running", "paused"... */
    Fvm__VmConfig *config;
    struct node_proc *proc;
    struct node_control *control;
    struct fvm_loop_timer *timer; /* connecting to the control socket; stop's time-out */
    uint64_t deadline_ns;
    uint64_t asked_ns, unknown_wall_ns; /* last question; since when there is no answer (0: there is) */
    bool asking;
    struct node_call *starter, *stopper; /* who waits */
    bool killed;                         /* by us, on demand */
    char how[120];                       /* stop: how it was done */
    char ending[160];                    /* what its last event said about its end */
    struct node_console *console;
    struct node_move *leaving;   /* migration under way, this is the source */
    struct node_arrival *coming; /* this is the destination */
    struct node_queued *queued;  /* a guest that comes as soon as this process has ended */
};

struct node {
    struct fvm_loop *loop;
    struct fvm_store *store;
    struct fvm_port_ctx *ctx;
    struct fvm_port *port;
    struct fvm_port_keys keys;
    char name[FVM_DIR_NAME_MAX + 1];
    char address[200];
    char dir_path[4096], state_dir[4096], fvm_path[4096];
    int state_lock;

    pthread_mutex_t dir_lock; /* dir: the allow callback reads it from another thread */
    struct fvm_dir dir;
    int64_t dir_mtime_ns;
    uint64_t refused, refused_logged_ns;

    uint64_t lease, alive_revision, watched;
    uint64_t started_wall_ns, seen_ns, renewed_ns;
    bool store_lost;
    uint64_t repaired_ns;
    struct fvm_loop_timer *tick;

    struct node_vm *vms;
    struct node_call *calls;
    size_t call_count;
    struct node_link *links;
    struct node_net *net;
    struct node_metrics *metrics;
    uint64_t calls_total, moves_total, moves_failed_total;
};

struct node_options {
    const char *dir, *name, *listen, *state_dir, *fvm_path;
    bool gateway;                /* the switches' way out and the forwards are here */
    const char *const *forwards; /* "tcp:127.0.0.1:2222-10.0.2.15:22" */
    unsigned forward_count;
};

/* node.c */
int node_open(const struct node_options *opt, struct node **ret_node, struct fvm_err *err);
int node_run(struct node *node);
void node_close(struct node **node_p); /* guests go on */

/* node_member.c */
int node_member_join(struct node *node, struct fvm_err *err);
void node_member_leave(struct node *node);
void node_member_tick(struct node *node);
bool node_member_allow(void *ctx, const char *public_key, const char *addr);
/** Reads cluster.json again if it changed. */
void node_member_reload(struct node *node);
int node_member_list(struct node *node, Fvm__Reply *reply, struct fvm_err *err);
/** Is that node's lease alive? */
bool node_member_up(struct node *node, const char *name);

/* node_rpc.c */
void node_rpc_message(void *ctx, struct fvm_port *port, struct fvm_port_msg **msg_p);
void node_call_send(struct node_call *call, Fvm__Reply *reply);                     /* not the last one */
void node_call_end(struct node_call *call, Fvm__Reply *reply);                      /* frees the call */
void node_call_text(struct node_call *call, const char *fmt, ...) FVM_PRINTF(2, 3); /* success, one line; ends */
void node_call_fail(struct node_call *call, const struct fvm_err *err);
void node_call_redirect(struct node_call *call, const char *node_name);
bool node_call_peer_is_node(const struct node_call *call);

/* node_link.c */
typedef void (*node_link_done)(void *ctx, const Fvm__Reply *reply,
                               const struct fvm_err *err); /* reply NULL: err says why */
/** Sends to node `name`; done exactly once, never from inside (when 0 is returned). */
int node_link_call(struct node *node, const char *name, Fvm__Request *request, unsigned timeout_ms, node_link_done done,
                   void *ctx, struct fvm_err *err);
void node_link_cancel(struct node *node, void *ctx); /* calls with this ctx are forgotten */
bool node_link_frame(struct node *node, const char *name, const void *frame, size_t len);
/** Connects now, so that the first frame finds the link up. */
void node_link_want(struct node *node, const char *name);
void node_link_tick(struct node *node);
void node_link_close_all(struct node *node);

/* node_vm.c */
struct node_vm *node_vm_find(struct node *node, const char *name);
int node_vm_adopt_all(struct node *node, struct fvm_err *err);
/** Starts the process. incoming (taken on success): it waits for a guest. */
int node_vm_start(struct node *node, const char *name, const Fvm__VmConfig *config, struct node_arrival *incoming,
                  struct node_vm **ret_vm, struct fvm_err *err);
void node_vm_stop(struct node_vm *vm, unsigned timeout_ms, bool kill_it);
void node_vm_close_all(struct node *node);
void node_vm_set_live(struct node_vm *vm, const char *state);
/** The guest has arrived and is ours. */
void node_vm_arrived(struct node_vm *vm);
/** Has it? By the record. */
void node_vm_check_arrival(struct node_vm *vm);
/** Asks each VM how it is, now and then. */
void node_vm_tick(struct node *node);
void node_vm_path(const struct node_vm *vm, const char *file, char *buf, size_t size);
const char *node_vm_state_text(const struct node_vm *vm);
/** "running", "stopped"... with the reason, into the store; only the record's owner does it. */
void node_vm_publish(struct node_vm *vm, const char *state, const char *reason, int exit_status);
bool node_vm_owned(struct node *node, const char *name);
/** The VM is deleted: what is left of it in the state directory goes, too. */
void node_vm_remove_dir(struct node *node, const char *name);

/* node_args.c: the command line of `fvm run`; free with node_args_free. */
int node_args_make(const struct node_vm *vm, const struct node_arrival *incoming, char ***ret_argv,
                   struct fvm_err *err);
void node_args_free(char **argv);

/* node_ops.c */
void node_ops_handle(struct node_call *call, const Fvm__Request *request);

/* node_console.c */
void node_console_start(struct node_vm *vm);
void node_console_stop(struct node_vm *vm, const char *moved_to);
void node_console_open(struct node_vm *vm, struct node_call *call, bool history);

/* node_migrate.c */
void node_migrate_start(struct node_call *call, struct node_vm *vm, const Fvm__VmMigrate *request);
void node_migrate_event(struct node_vm *vm, json_t *event);
void node_migrate_ended(struct node_vm *vm, const struct node_proc_end *end);
void node_incoming_start(struct node_call *call, const Fvm__Incoming *request);
/** What waited for an older process of the VM: now is its turn. Frees it. */
void node_incoming_next(struct node_queued *queued);
void node_incoming_drop(struct node_call *call, const char *name);
void node_incoming_connected(struct node_vm *vm);
void node_incoming_free(struct node_vm *vm);
void node_move_free(struct node_vm *vm);

/* node_agent.c */
/** What changed under /vm/ in the store. */
void node_agent_look(struct node *node, const struct fvm_store_items *changed);
/** Now and then: records that a crash left in the middle. */
void node_agent_repair(struct node *node);

/* node_net.c */
int node_net_open(struct node *node, const struct node_options *opt, struct fvm_err *err);
void node_net_members(struct node *node); /* the members changed */
void node_net_lease(struct node *node);   /* a new lease: what hung on the old one is claimed again */
void node_net_close(struct node *node);
void node_net_frame(struct node *node, const char *from, const uint8_t *frame, size_t len);
void node_net_metrics(struct node *node, FILE *out);
const char *node_net_socket(const struct node *node);

/* node_metrics.c */
int node_metrics_open(struct node *node, struct fvm_err *err);
void node_metrics_close(struct node *node);

#endif
