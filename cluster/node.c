/*
 * node.c - the daemon's life: open the cluster directory, the state directory, the store and the port, adopt the guests
 * that run here, serve, and at the end let go of everything without stopping a guest.
 *
 * Invariant: an error on the way up leaves nothing behind and is one line that says what to do.
 */
#include "cluster/node.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

#include "base/log.h"

static void on_tick(void *ctx)
{
    struct fvm_node *node = ctx;
    fvm_node_member_tick(node);
    fvm_node_link_tick(node);
    fvm_node_vm_tick(node);
    fvm_loop_timer_arm(node->tick, fvm_now_ns() + FVM_NODE_LOOK_MS * 1000000ull);
}

/* One daemon per state directory: two would fight over the same processes. */
static int lock_state(struct fvm_node *node, struct fvm_err *err)
{
    char path[4200];
    snprintf(path, sizeof(path), "%s/lock", node->state_dir);
    node->state_lock = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (node->state_lock < 0)
        return fvm_err_set(err, fvm_err_from_errno(errno), errno, "cluster", "%s: state directory not writable: %s",
                           node->state_dir, strerror(errno));
    if (flock(node->state_lock, LOCK_EX | LOCK_NB))
        return fvm_err_set(err, FVM_EBUSY, errno, "cluster", "%s: another fvm-node uses this state directory",
                           node->state_dir);
    return 0;
}

static int find_me(struct fvm_node *node, const char *wanted, struct fvm_err *err)
{
    const struct fvm_dir_member *me = NULL;
    char secret[4400];
    for (size_t i = 0; !wanted && i < node->dir.member_count; i++) {
        const struct fvm_dir_member *m = &node->dir.members[i];
        snprintf(secret, sizeof(secret), "%s/keys/%s.secret", node->dir.path, m->name);
        if (m->kind != FVM_DIR_NODE || access(secret, F_OK))
            continue;
        if (me)
            return fvm_err_set(err, FVM_EINVAL, 0, "cluster",
                               "several nodes can run here (%s, %s): say which with --name", me->name, m->name);
        me = m;
    }
    if (wanted)
        me = fvm_dir_find(&node->dir, FVM_DIR_NODE, wanted);
    if (!me)
        return fvm_err_set(err, FVM_ENOENT, 0, "cluster",
                           "%s: no node %s%sin this cluster%s: add it with \"fvm-cluster node add\"", node->dir.path,
                           wanted ? wanted : "", wanted ? " " : "", wanted ? "" : " whose key is on this machine");
    snprintf(node->name, sizeof(node->name), "%s", me->name);
    snprintf(node->address, sizeof(node->address), "%s", me->address);
    return fvm_dir_keys(&node->dir, me, &node->keys, err);
}

/* Where is the program `fvm`? Next to this one, unless told. */
static int find_fvm(struct fvm_node *node, const char *wanted, struct fvm_err *err)
{
    char self[4000];
    ssize_t n = readlink("/proc/self/exe", self, sizeof(self) - 1);
    self[n > 0 ? n : 0] = 0;
    char *slash = strrchr(self, '/');
    if (slash)
        *slash = 0;
    if (wanted)
        snprintf(node->fvm_path, sizeof(node->fvm_path), "%s", wanted);
    else
        snprintf(node->fvm_path, sizeof(node->fvm_path), "%s/fvm", self);
    if (access(node->fvm_path, X_OK))
        return fvm_err_set(err, FVM_ENOENT, errno, "cluster", "%s: the program fvm is not there; say where with --fvm",
                           node->fvm_path);
    return 0;
}

static int open_state(struct fvm_node *node, const char *state_dir, struct fvm_err *err)
{
    char vms[4200];
    if (state_dir)
        snprintf(node->state_dir, sizeof(node->state_dir), "%s", state_dir);
    else
        snprintf(node->state_dir, sizeof(node->state_dir), "%.3900s/nodes/%s", node->dir.path, node->name);
    snprintf(vms, sizeof(vms), "%s/vms", node->state_dir);
    int rc = fvm_dir_make(vms, 0700, err);
    if (!rc) { /* names in it are handed to other processes */
        char real[4096];
        if (realpath(node->state_dir, real))
            snprintf(node->state_dir, sizeof(node->state_dir), "%s", real);
        rc = lock_state(node, err);
    }
    return rc;
}

static int open_port(struct fvm_node *node, const char *listen, struct fvm_err *err)
{
    struct fvm_port_options opt = {.frame_bytes_max = FVM_RPC_BYTES_MAX, .hwm = 4096, .linger_ms = 300};
    int rc = fvm_port_ctx_create(1, &node->ctx, err);
    if (!rc)
        rc = fvm_port_listen(node->ctx, listen ? listen : node->address, &node->keys, fvm_node_member_allow, node, &opt,
                             &node->port, err);
    if (!rc && fvm_port_attach(node->port, node->loop, fvm_node_rpc_message, node))
        rc = fvm_err_set(err, FVM_EINTERNAL, 0, "cluster", "cannot watch the port");
    return rc;
}

int fvm_node_open(const struct fvm_node_options *opt, struct fvm_node **ret_node, struct fvm_err *err)
{
    struct fvm_node *node = calloc(1, sizeof(*node));
    if (!node)
        return fvm_err_set(err, FVM_ENOMEM, 0, "cluster", "out of memory");
    node->state_lock = -1;
    node->started_wall_ns = fvm_wall_ns();
    pthread_mutex_init(&node->dir_lock, NULL);
    int rc = fvm_dir_load(opt->dir, &node->dir, err);
    if (!rc) {
        snprintf(node->dir_path, sizeof(node->dir_path), "%s", node->dir.path);
        rc = find_me(node, opt->name, err);
    }
    if (!rc)
        rc = find_fvm(node, opt->fvm_path, err);
    if (!rc)
        rc = open_state(node, opt->state_dir, err);
    if (!rc)
        rc = fvm_store_open(node->dir.store_url, &node->store, err);
    if (!rc && (rc = fvm_loop_create(&node->loop)))
        fvm_err_set(err, rc, 0, "cluster", "cannot make an event loop");
    if (!rc)
        rc = open_port(node, opt->listen, err);
    if (!rc)
        rc = fvm_node_member_join(node, err);
    if (!rc)
        rc = fvm_node_net_open(node, opt, err);
    if (!rc)
        rc = fvm_node_metrics_open(node, err);
    if (!rc)
        rc = fvm_node_vm_adopt_all(node, err);
    if (!rc && (rc = fvm_loop_timer_add(node->loop, on_tick, node, &node->tick)))
        fvm_err_set(err, rc, 0, "cluster", "cannot make a timer");
    if (rc) {
        fvm_node_close(&node);
        return rc;
    }
    fvm_loop_timer_arm(node->tick, 0);
    fvm_log(INFO, "node.up", "name=%s address=%s state=%s store=%s", node->name, fvm_port_addr(node->port),
            node->state_dir, fvm_store_url(node->store));
    *ret_node = node;
    return 0;
}

int fvm_node_run(struct fvm_node *node) { return fvm_loop_run(node->loop); }

void fvm_node_close(struct fvm_node **node_p)
{
    struct fvm_node *node = *node_p;
    *node_p = NULL;
    if (!node)
        return;
    node->closing = true;
    fvm_node_vm_close_all(node); /* ends the calls that wait for a VM */
    while (node->calls) {
        struct fvm_err err = {0};
        fvm_err_set(&err, FVM_ECLOSED, 0, "cluster", "node %s is shutting down; its guests go on", node->name);
        fvm_node_call_fail(node->calls, &err);
    }
    fvm_node_metrics_close(node);
    fvm_node_net_close(node);
    fvm_node_link_close_all(node);
    if (node->store)
        fvm_node_member_leave(node);
    if (node->tick)
        fvm_loop_timer_remove(&node->tick);
    if (node->port)
        fvm_port_close(&node->port);
    if (node->ctx)
        fvm_port_ctx_destroy(&node->ctx);
    if (node->store)
        fvm_store_close(&node->store);
    if (node->loop)
        fvm_loop_destroy(&node->loop);
    if (node->state_lock >= 0)
        close(node->state_lock);
    fvm_dir_fini(&node->dir);
    pthread_mutex_destroy(&node->dir_lock);
    explicit_bzero(&node->keys, sizeof(node->keys));
    free(node);
}
