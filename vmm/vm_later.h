/*
 * vm_later.h - "do this soon, on the loop's thread", asked for from anywhere: the inside of a device call, a vCPU's
 * thread. Many askings before it runs are one. Safe to destroy while asked for: then it does not run.
 */
#ifndef FVM_VMM_VM_LATER_H
#define FVM_VMM_VM_LATER_H

#include "base/loop.h"

struct fvm_later;

int fvm_later_create(struct fvm_loop *loop, fvm_loop_fn fn, void *ctx, struct fvm_later **ret_later);
/** Any thread; never blocks. */
void fvm_later_ask(struct fvm_later *later);
/** Loop's thread (or while the loop does not run); also from inside fn. */
void fvm_later_destroy(struct fvm_later **later_p);

#endif
