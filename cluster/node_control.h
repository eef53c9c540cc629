/*
 * node_control.h - a node's end of a VM process' control socket (protocol: fvm_control.h): newline JSON, calls and
 * events.
 *
 * The VM process is ours, but what it says is checked like a stranger's: a line that is too long or not a JSON object
 * closes the connection. Thread: loop. Callbacks may close the control.
 */
#ifndef FVM_CLUSTER_NODE_CONTROL_H
#define FVM_CLUSTER_NODE_CONTROL_H

#include <jansson.h>

#include "base/err.h"
#include "base/loop.h"

enum { FVM_NODE_CONTROL_LINE_MAX = 1 << 20, FVM_NODE_CONTROL_CALLS_MAX = 64 };

struct fvm_node_control;

struct fvm_node_control_hooks {
    void (*event)(void *ctx, json_t *event); /* borrowed */
    void (*closed)(void *ctx, const char *why);
    void *ctx;
};

/** err->code 0: success, `result` (borrowed) is the reply's object or NULL. Else err says what the VM, or the lack of
 * an answer, said. */
typedef void (*fvm_node_control_done)(void *ctx, json_t *result, const struct fvm_err *err);

/** Connects (a UNIX socket answers at once or not at all). FVM_ENOENT: nobody listens there (yet). */
int fvm_node_control_open(struct fvm_loop *loop, const char *path, const struct fvm_node_control_hooks *hooks,
                          struct fvm_node_control **ret_control, struct fvm_err *err);
/** Pending calls get their `done` with FVM_ECLOSED. */
void fvm_node_control_close(struct fvm_node_control **control_p);
/** Sends `request` (reference stolen; "id" is set here). When it says 0, done is called exactly once, later. */
int fvm_node_control_call(struct fvm_node_control *control, json_t *request, unsigned timeout_ms,
                          fvm_node_control_done done, void *ctx);

#endif
