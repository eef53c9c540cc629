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
 *   node_recover.c asks everybody who could hold a guest, and does what handover_recover.c advises
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
#include "migrate/handover.h"

enum {
    FVM_NODE_LEASE_MS = 6000,
    FVM_NODE_RENEW_MS = 1500,
    FVM_NODE_SEEN_MS = 5000,
    FVM_NODE_LOOK_MS = 100,    /* how often the store is looked at */
    FVM_NODE_START_MS = 30000, /* a VM must answer on its control socket in this time */
    FVM_NODE_ASK_MS = 2000,    /* a running VM must answer a question */
    FVM_NODE_VMS_MAX = 1024,
    FVM_NODE_CALLS_MAX = 4096,
};

struct fvm_node;
struct fvm_node_vm;
struct fvm_node_link;
struct fvm_node_console;
struct fvm_node_net;

/** A request being served. Ends with fvm_node_call_end or _fail; a call whose VM goes away is ended by that. */
struct fvm_node_call {
    struct fvm_node_call *next;
    struct fvm_node *node;
    struct fvm_port_peer peer;
    char who[FVM_DIR_NAME_MAX + 12]; /* "operator admin" */
    uint64_t id;
    uint64_t session;
    void (*cancelled)(struct fvm_node_call *call); /* the peer asked for it; may be NULL */
    void (*gone)(struct fvm_node_call *call);      /* the peer is not there any more; may be NULL */
    void (*input)(struct fvm_node_call *call, const uint8_t *data, size_t len);
    void *ctx;
};

enum fvm_node_vm_state {
    FVM_NODE_VM_STOPPED,
    FVM_NODE_VM_STARTING,
    FVM_NODE_VM_INCOMING, /* a destination process, waiting for its guest */
    FVM_NODE_VM_UP,       /* control socket connected; the VM itself says whether it runs */
    FVM_NODE_VM_STOPPING,
};

struct fvm_node_vm {
    struct fvm_node_vm *next;
    struct fvm_node *node;
    char name[FVM_DIR_NAME_MAX + 1];
    char dir[4096];
    enum fvm_node_vm_state state;
    char live[24]; /* what its control socket said last: "running", "paused"... */
    Fvm__VmConfig *config;
    struct fvm_node_proc *proc;
    struct fvm_node_control *control;
    struct fvm_loop_timer *timer; /* connecting to the control socket; stop's time-out */
    uint64_t deadline_ns;
    uint64_t asked_ns, unknown_wall_ns; /* last question; since when there is no answer (0: there is) */
    bool asking, moving; /* moving: a migration goes on that was begun before this daemon was */
    struct fvm_node_call *starter, *stopper; /* who waits */
    bool killed;                         /* by us, on demand */
    char how[120];                       /* stop: how it was done */
    char ending[160];                    /* what its last event said about its end */
    struct fvm_node_console *console;
    struct fvm_node_move *leaving;   /* migration under way, this is the source */
    struct fvm_node_arrival *coming; /* this is the destination */
    struct fvm_node_queued *queued;  /* a guest that comes as soon as this process has ended */
};

struct fvm_node {
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
    bool store_lost, closing;
    uint64_t repaired_ns;
    struct fvm_loop_timer *tick;

    struct fvm_node_vm *vms;
    struct fvm_node_call *calls;
    size_t call_count;
    struct fvm_node_link *links;
    struct fvm_node_net *net;
    struct node_metrics *metrics;
    uint64_t calls_total, moves_total, moves_failed_total;
};

struct fvm_node_options {
    const char *dir, *name, *listen, *state_dir, *fvm_path;
    bool gateway;                /* the switches' way out and the forwards are here */
    const char *const *forwards; /* "tcp:127.0.0.1:2222-10.0.2.15:22" */
    unsigned forward_count;
};

/* node.c */
int fvm_node_open(const struct fvm_node_options *opt, struct fvm_node **ret_node, struct fvm_err *err);
int fvm_node_run(struct fvm_node *node);
void fvm_node_close(struct fvm_node **node_p); /* guests go on */

/* node_member.c */
int fvm_node_member_join(struct fvm_node *node, struct fvm_err *err);
void fvm_node_member_leave(struct fvm_node *node);
void fvm_node_member_tick(struct fvm_node *node);
bool fvm_node_member_allow(void *ctx, const char *public_key, const char *addr);
/** Reads cluster.json again if it changed. */
void fvm_node_member_reload(struct fvm_node *node);
int fvm_node_member_list(struct fvm_node *node, Fvm__Reply *reply, struct fvm_err *err);
/** Is that node's lease alive? */
bool fvm_node_member_up(struct fvm_node *node, const char *name);

/* node_rpc.c */
void fvm_node_rpc_message(void *ctx, struct fvm_port *port, struct fvm_port_msg **msg_p);
void fvm_node_call_send(struct fvm_node_call *call, Fvm__Reply *reply); /* not the last one */
void fvm_node_call_end(struct fvm_node_call *call, Fvm__Reply *reply);  /* frees the call */
/* success, one line; ends */
void fvm_node_call_text(struct fvm_node_call *call, const char *fmt, ...) FVM_PRINTF(2, 3);
void fvm_node_call_fail(struct fvm_node_call *call, const struct fvm_err *err);
void fvm_node_call_redirect(struct fvm_node_call *call, const char *node_name);

/* node_link.c */
typedef void (*fvm_node_link_done)(void *ctx, const Fvm__Reply *reply,
                                   const struct fvm_err *err); /* reply NULL: err says why */
/** Sends to node `name`; done exactly once, never from inside (when 0 is returned). */
int fvm_node_link_call(struct fvm_node *node, const char *name, Fvm__Request *request, unsigned timeout_ms,
                       fvm_node_link_done done, void *ctx, struct fvm_err *err);
void fvm_node_link_cancel(struct fvm_node *node, void *ctx); /* calls with this ctx are forgotten */
bool fvm_node_link_frame(struct fvm_node *node, const char *name, const void *frame, size_t len);
/** Connects now, so that the first frame finds the link up. */
void fvm_node_link_want(struct fvm_node *node, const char *name);
void fvm_node_link_tick(struct fvm_node *node);
void fvm_node_link_close_all(struct fvm_node *node);

/* node_vm.c */
struct fvm_node_vm *fvm_node_vm_find(struct fvm_node *node, const char *name);
int fvm_node_vm_adopt_all(struct fvm_node *node, struct fvm_err *err);
/** Starts the process. incoming (taken on success): it waits for a guest. */
int fvm_node_vm_start(struct fvm_node *node, const char *name, const Fvm__VmConfig *config,
                      struct fvm_node_arrival *incoming, struct fvm_node_vm **ret_vm, struct fvm_err *err);
void fvm_node_vm_stop(struct fvm_node_vm *vm, unsigned timeout_ms, bool kill_it);
void fvm_node_vm_close_all(struct fvm_node *node);
void fvm_node_vm_set_live(struct fvm_node_vm *vm, const char *state);
/** The guest has arrived and is ours. */
void fvm_node_vm_arrived(struct fvm_node_vm *vm);
/** Has it? By the record. */
void fvm_node_vm_check_arrival(struct fvm_node_vm *vm);
/** Asks each VM how it is, now and then. */
void fvm_node_vm_tick(struct fvm_node *node);
void fvm_node_vm_path(const struct fvm_node_vm *vm, const char *file, char *buf, size_t size);
const char *fvm_node_vm_state_text(const struct fvm_node_vm *vm);
/** "running", "stopped"... with the reason, into the store; only the record's owner does it. */
void fvm_node_vm_publish(struct fvm_node_vm *vm, const char *state, const char *reason, int exit_status);
bool fvm_node_vm_owned(struct fvm_node *node, const char *name);
/** Into the VM's journal (more: reference stolen). */
void fvm_node_vm_note(const struct fvm_node_vm *vm, const char *what, json_t *more);
/** What this node holds of the guest, as to the hand-over that `record` is about. */
enum fvm_ho_holding fvm_node_vm_holding(struct fvm_node *node, const char *name, const struct fvm_ho_record *record);
/** The VM is deleted: what is left of it in the state directory goes, too. */
void fvm_node_vm_remove_dir(struct fvm_node *node, const char *name);

/* node_args.c: the command line of `fvm run`; free with fvm_node_args_free. */
int fvm_node_args_make(const struct fvm_node_vm *vm, const struct fvm_node_arrival *incoming, char ***ret_argv,
                       struct fvm_err *err);
void fvm_node_args_free(char **argv);

/* node_ops.c */
void fvm_node_ops_handle(struct fvm_node_call *call, const Fvm__Request *request);

/* node_console.c */
void fvm_node_console_start(struct fvm_node_vm *vm);
void fvm_node_console_stop(struct fvm_node_vm *vm, const char *moved_to);
void fvm_node_console_open(struct fvm_node_vm *vm, struct fvm_node_call *call, bool history);

/* node_migrate.c */
void fvm_node_migrate_start(struct fvm_node_call *call, struct fvm_node_vm *vm, const Fvm__VmMigrate *request);
void fvm_node_migrate_event(struct fvm_node_vm *vm, json_t *event);
void fvm_node_migrate_ended(struct fvm_node_vm *vm, const struct fvm_node_proc_end *end);
void fvm_node_incoming_start(struct fvm_node_call *call, const Fvm__Incoming *request);
/** What waited for an older process of the VM: now is its turn. Frees it. */
void fvm_node_incoming_next(struct fvm_node_queued *queued);
void fvm_node_incoming_drop(struct fvm_node_call *call, const char *name);
/** Another node owns the guest, stable at `epoch`: a process that waits for it here ends, if its turn is over. */
void fvm_node_incoming_over(struct fvm_node_vm *vm, uint64_t epoch);
void fvm_node_incoming_connected(struct fvm_node_vm *vm);
void fvm_node_incoming_free(struct fvm_node_vm *vm);
void fvm_node_move_free(struct fvm_node_vm *vm);

/* node_agent.c */
/** What changed under /vm/ in the store. */
void fvm_node_agent_look(struct fvm_node *node, const struct fvm_store_items *changed);
/** Now and then: records that a crash left in the middle. */
void fvm_node_agent_repair(struct fvm_node *node);

/* node_recover.c */
/** Asks the record's sides what they hold and does what is to be done; `call` (may be NULL) is told, and insists. */
void fvm_node_recover(struct fvm_node *node, const char *name, struct fvm_node_call *call);
/** Another node asks what is held here: the VM's process is asked first. */
void fvm_node_recover_holding(struct fvm_node_call *call, const char *name);

/* node_net.c */
int fvm_node_net_open(struct fvm_node *node, const struct fvm_node_options *opt, struct fvm_err *err);
void fvm_node_net_members(struct fvm_node *node); /* the members changed */
void fvm_node_net_lease(struct fvm_node *node);   /* a new lease: what hung on the old one is claimed again */
void fvm_node_net_close(struct fvm_node *node);
void fvm_node_net_frame(struct fvm_node *node, const char *from, const uint8_t *frame, size_t len);
void fvm_node_net_metrics(struct fvm_node *node, FILE *out);
const char *fvm_node_net_socket(const struct fvm_node *node);

/* node_metrics.c */
int fvm_node_metrics_open(struct fvm_node *node, struct fvm_err *err);
void fvm_node_metrics_close(struct fvm_node *node);

#endif
