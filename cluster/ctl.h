/*
 * ctl.h - inside fvm-cluster, the operator's tool. Only cluster/ctl*.c and main_ctl.c include it.
 *
 *   ctl_args.c     the command line
 *   ctl.c          connections to nodes, following redirects
 *   ctl_text.c     sizes, times, states as text and as JSON
 *   ctl_cluster.c  init, node, operator
 *   ctl_list.c     vm list, vm show: what the record says and what the VM's node says now
 *   ctl_vm.c       vm create, start, stop, kill, delete, pause, resume
 *   ctl_console.c  vm console
 *   ctl_migrate.c  vm migrate: progress and timeline
 *
 * One thread, blocking. Results go to stdout (text, or one JSON value, or NDJSON for progress), complaints to stderr;
 * the exit status is err.def's.
 */
#ifndef FVM_CLUSTER_CTL_H
#define FVM_CLUSTER_CTL_H

#include <jansson.h>
#include <stdio.h>

#include "cluster/dir.h"
#include "cluster/rpc.h"
#include "proto/cluster.pb-c.h"

enum { FVM_CTL_WORDS_MAX = 4, FVM_CTL_ANSWER_MS = 15000, FVM_CTL_CONNECT_MS = 2500 };

struct fvm_ctl_options {
    const char *words[FVM_CTL_WORDS_MAX]; /* "vm" "migrate" "web" "b" */
    unsigned word_count;
    const char *dir, *as, *node, *address, *store;
    bool json, history, dry_run, follow;
    uint32_t timeout_s, max_downtime_ms, deadline_s;
    const char *on_miss;
    uint64_t rate_limit_bytes;
    bool no_throttle;
    Fvm__VmConfig *config; /* vm create */
};

struct fvm_ctl {
    struct fvm_ctl_options opt;
    char dir_path[4096];
    struct fvm_dir dir;
    struct fvm_port_keys keys;
    struct fvm_port_ctx *ctx;
};

/* ctl_args.c */
/** Argument errors end the process, as argp does. */
void fvm_ctl_args_parse(int argc, char **argv, struct fvm_ctl_options *ret);
void fvm_ctl_args_free(struct fvm_ctl_options *options);

/* ctl.c */
/** Reads the cluster directory and the operator's key. */
int fvm_ctl_open(struct fvm_ctl *ctl, struct fvm_err *err);
void fvm_ctl_close(struct fvm_ctl *ctl);
int fvm_ctl_connect(struct fvm_ctl *ctl, const char *node, struct fvm_rpc_client **ret_client, struct fvm_err *err);
/** --node if given, else the first node that answers. */
int fvm_ctl_connect_any(struct fvm_ctl *ctl, struct fvm_rpc_client **ret_client, struct fvm_err *err);
/** Asks any node, follows a redirect to the owner. *ret_client (may be NULL): the connection that answered. */
int fvm_ctl_call(struct fvm_ctl *ctl, Fvm__Request *request, int timeout_ms, Fvm__Reply **ret_reply,
                 struct fvm_rpc_client **ret_client, struct fvm_err *err);
/** Connects to the node that owns a VM. */
int fvm_ctl_connect_owner(struct fvm_ctl *ctl, const char *vm, struct fvm_rpc_client **ret_client, struct fvm_err *err);
/** "VM web created": as a line, or {"ok":true,"text":...}. */
void fvm_ctl_say(const struct fvm_ctl *ctl, const char *text);
void fvm_ctl_print_json(json_t *value); /* reference stolen */
/** Complains; returns the exit status. */
int fvm_ctl_complain(const struct fvm_ctl *ctl, const struct fvm_err *err);

/* ctl_text.c */
const char *fvm_ctl_bytes(uint64_t bytes, char buf[24]);  /* "312 MiB" */
const char *fvm_ctl_time(uint64_t wall_ns, char buf[32]); /* "2026-01-31 12:00:07" */
const char *fvm_ctl_ms(uint64_t ns, char buf[24]);        /* "35.2 ms", "12.1 s" */
json_t *fvm_ctl_node_json(const Fvm__NodeInfo *node);
json_t *fvm_ctl_vm_json(const Fvm__VmInfo *vm);
json_t *fvm_ctl_config_json(const Fvm__VmConfig *config);
json_t *fvm_ctl_progress_json(const Fvm__MigrateProgress *progress);

/* commands: 0 or a negative code with err filled */
int fvm_ctl_cluster_init(struct fvm_ctl *ctl, struct fvm_err *err);
int fvm_ctl_node_add(struct fvm_ctl *ctl, struct fvm_err *err);
int fvm_ctl_node_remove(struct fvm_ctl *ctl, struct fvm_err *err);
int fvm_ctl_node_list(struct fvm_ctl *ctl, struct fvm_err *err);
int fvm_ctl_operator_add(struct fvm_ctl *ctl, struct fvm_err *err);
int fvm_ctl_operator_remove(struct fvm_ctl *ctl, struct fvm_err *err);
int fvm_ctl_vm_create(struct fvm_ctl *ctl, struct fvm_err *err);
int fvm_ctl_vm_start(struct fvm_ctl *ctl, struct fvm_err *err);
int fvm_ctl_vm_stop(struct fvm_ctl *ctl, struct fvm_err *err);
int fvm_ctl_vm_kill(struct fvm_ctl *ctl, struct fvm_err *err);
int fvm_ctl_vm_delete(struct fvm_ctl *ctl, struct fvm_err *err);
int fvm_ctl_vm_pause(struct fvm_ctl *ctl, struct fvm_err *err);
int fvm_ctl_vm_resume(struct fvm_ctl *ctl, struct fvm_err *err);
int fvm_ctl_vm_list(struct fvm_ctl *ctl, struct fvm_err *err);
int fvm_ctl_vm_show(struct fvm_ctl *ctl, struct fvm_err *err);
int fvm_ctl_vm_console(struct fvm_ctl *ctl, struct fvm_err *err);
int fvm_ctl_vm_migrate(struct fvm_ctl *ctl, struct fvm_err *err);
int fvm_ctl_vm_explain(struct fvm_ctl *ctl, struct fvm_err *err);
int fvm_ctl_vm_recover(struct fvm_ctl *ctl, struct fvm_err *err);

#endif
