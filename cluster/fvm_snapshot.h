/*
 * fvm_snapshot.h - `fvm snapshot` and `fvm restore`: a VM's process around migrate/snapshot.h.
 *
 *   {"cmd":"snapshot","path":F,"key_file":K,"compress":bool,"stop":bool}
 *       -> {"path":F,"blackout_ns","total_ns","file_bytes","memory_bytes","data_pages","rounds","stopped"}
 *
 * F and K absolute. The answer comes when the file is complete. With "stop" the process ends after it.
 *
 * Restoring: `fvm restore F` is `fvm run` whose machine and memory come from F instead of from options and a boot.
 * Thread: loop. Test: tests/e2e/snapshot
 */
#ifndef FVM_CLUSTER_FVM_SNAPSHOT_H
#define FVM_CLUSTER_FVM_SNAPSHOT_H

#include "cluster/fvm_run.h"

struct fvm_run_snapshot;

int fvm_run_snapshot_register(struct fvm_run *run);
/** Is one being written? Then no migration begins. */
bool fvm_run_snapshot_busy(const struct fvm_run *run);
/** Gives up what goes on. Before the control socket and the VM are destroyed. */
void fvm_run_snapshot_close(struct fvm_run *run);
/** --restore: opens the file and makes run->options.config the machine in it, with our own ends. */
int fvm_run_restore_open(struct fvm_run *run, struct fvm_err *err);
/** Instead of booting: memory and state into run->vm, which stands still then. */
int fvm_run_restore_load(struct fvm_run *run, bool *ret_paused, struct fvm_err *err);
/** `fvm snapshot` (fvm_snapshot_client.c). */
int fvm_snapshot_client_main(int argc, char **argv);

#endif
