/*
 * node_proc.h - a VM's process: started through a small keeper that outlives the daemon, found again after the daemon's
 * restart.
 *
 *   fvm-node --> keeper (fvm-node --keep, its own session) --> fvm run ...
 *                  writes DIR/pid:  "<pid> <start time> <keeper pid> <keeper start time>"
 *                  writes DIR/exit: "exit 0" | "signal 9" | "exec 2"    when the child has ended, then ends itself
 *
 * So the exit status is known whoever was alive when it happened. A pid is only believed together with its start time.
 * Thread: loop.
 */
#ifndef FVM_CLUSTER_NODE_PROC_H
#define FVM_CLUSTER_NODE_PROC_H

#include "base/err.h"
#include "base/loop.h"

struct fvm_node_proc;

struct fvm_node_proc_end {
    enum { FVM_NODE_PROC_EXIT, FVM_NODE_PROC_SIGNAL, FVM_NODE_PROC_UNKNOWN } how;
    int value; /* exit status or signal */
};

/** The process is gone; it has been so when adopted, too. May destroy the proc. */
typedef void (*fvm_node_proc_ended)(void *ctx, const struct fvm_node_proc_end *end);

/** Starts argv (argv[0]: a path) with stdout and stderr appended to DIR/log. */
int fvm_node_proc_spawn(struct fvm_loop *loop, const char *dir, char *const *argv, fvm_node_proc_ended ended, void *ctx,
                        struct fvm_node_proc **ret_proc, struct fvm_err *err);
/**
 * Finds the process of DIR again. FVM_ENOENT: none was started, or it has ended and *ret_end says how (this is told
 * once: the files are removed).
 */
int fvm_node_proc_adopt(struct fvm_loop *loop, const char *dir, fvm_node_proc_ended ended, void *ctx,
                        struct fvm_node_proc **ret_proc, struct fvm_node_proc_end *ret_end, struct fvm_err *err);
void fvm_node_proc_destroy(struct fvm_node_proc **proc_p); /* forgets it; the process goes on */
int fvm_node_proc_pid(const struct fvm_node_proc *proc);
int fvm_node_proc_kill(struct fvm_node_proc *proc, int signo);
/** The last line that the process wrote into DIR/log, without an "fvm: " in front; "" when there is none. */
void fvm_node_proc_last_words(const char *dir, char *buf, size_t size);
/** The keeper's whole life: never returns. argv: DIR then the command. */
void fvm_node_proc_keep(const char *dir, char *const *argv) FVM_NORETURN;

#endif
