/*
 * fvm_sandbox.h - what a VM's process may still do once its files are open and its sockets bound: run the guest and
 * move bytes.
 */
#ifndef FVM_CLUSTER_FVM_SANDBOX_H
#define FVM_CLUSTER_FVM_SANDBOX_H

#include "cluster/fvm_args.h"

/**
 * fvm_sandbox_enter - no_new_privs, capabilities dropped, system calls filtered, for all threads of the process.
 *
 * ON: a call that is not on the list ends the process with SIGSYS (a line says so). LOG: it is allowed and the
 * kernel's audit log tells. A host that cannot filter (no seccomp) is an error for ON. Root and ordinary users alike;
 * in containers too. Call once, after all threads that exist from the start were made. Cannot be undone.
 */
int fvm_sandbox_enter(enum fvm_sandbox_mode mode, struct fvm_err *err);

#endif
