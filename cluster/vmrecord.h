/*
 * vmrecord.h - the hand-over record (migrate/handover.h) kept in the cluster's store, under /vm/NAME/record.
 *
 * A VM's process opens it with the store's URL that its node gave it; nodes use the same calls to repair.
 * Thread: any one at a time. Calls block for the store.
 */
#ifndef FVM_CLUSTER_VMRECORD_H
#define FVM_CLUSTER_VMRECORD_H

#include "cluster/store.h"
#include "migrate/handover.h"
#include "proto/cluster.pb-c.h"

struct fvm_vmrecord;

/** `url` as for fvm_store_open. The record need not exist yet: get says FVM_ENOENT then. */
int fvm_vmrecord_open(const char *url, const char *vm_name, struct fvm_vmrecord **ret_record, struct fvm_err *err);
void fvm_vmrecord_close(struct fvm_vmrecord **record_p);
/** Borrowed from the record. */
struct fvm_record_store fvm_vmrecord_store(struct fvm_vmrecord *record);

int fvm_vmrecord_get(struct fvm_store *store, const char *vm_name, struct fvm_ho_record *ret_record,
                     uint64_t *ret_revision, struct fvm_err *err);
int fvm_vmrecord_swap(struct fvm_store *store, const char *vm_name, uint64_t expect, const struct fvm_ho_record *next,
                      struct fvm_err *err);
/** FVM_EBADIMAGE: not a possible record. */
int fvm_vmrecord_from_message(const Fvm__VmRecord *message, struct fvm_ho_record *ret_record);

#endif
