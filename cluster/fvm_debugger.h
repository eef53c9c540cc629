/*
 * fvm_debugger.h - `--gdb`: the VM of this process as the target of vmm/gdb.h.
 * Thread: loop. Test: tests/e2e/gdb
 */
#ifndef FVM_CLUSTER_FVM_DEBUGGER_H
#define FVM_CLUSTER_FVM_DEBUGGER_H

#include "cluster/fvm_run.h"

/** After the VM is there, before the sandbox. */
int fvm_debugger_open(struct fvm_run *run, struct fvm_err *err);
/** A processor stopped, the VM is paused. */
void fvm_debugger_stopped(struct fvm_run *run);
/** signal 0: ended with `status`. */
void fvm_debugger_ended(struct fvm_run *run, unsigned status, unsigned signal);
/** Before the VM is destroyed. */
void fvm_debugger_close(struct fvm_run *run);

#endif
