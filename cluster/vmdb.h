/*
 * vmdb.h - what the store keeps of a VM, typed: /vm/NAME/config, /vm/NAME/record, /vm/NAME/status,
 * /vm/NAME/move
 * (proto/cluster.proto).
 *
 * The record says who may run the guest and is changed by compare-and-swap alone; config and record are made together
 * by create; status is the owner's last word, for when it does not answer. /node/NAME describes a node, /alive/NAME
 * hangs on its lease.
 */
#ifndef FVM_CLUSTER_VMDB_H
#define FVM_CLUSTER_VMDB_H

#include "base/loop.h"
#include "cluster/store.h"
#include "proto/cluster.pb-c.h"

enum fvm_vmdb_key { FVM_VMDB_CONFIG, FVM_VMDB_RECORD, FVM_VMDB_STATUS, FVM_VMDB_MOVE, FVM_VMDB_NODE, FVM_VMDB_ALIVE };

/** One VM as the store knows it; parts that are missing are NULL. */
struct fvm_vmdb_vm {
    char *name;
    Fvm__VmConfig *config;
    Fvm__VmRecord *record;
    Fvm__VmStatus *status;
    uint64_t config_revision, record_revision, status_revision;
};
struct fvm_vmdb_vms {
    struct fvm_vmdb_vm *vms;
    size_t count;
};

void fvm_vmdb_key(enum fvm_vmdb_key which, const char *name, char *buf, size_t size);
/** FVM_ENOENT: no such VM. */
int fvm_vmdb_get(struct fvm_store *store, const char *name, struct fvm_vmdb_vm *ret_vm, struct fvm_err *err);
int fvm_vmdb_list(struct fvm_store *store, struct fvm_vmdb_vms *ret_vms, struct fvm_err *err);
void fvm_vmdb_vm_fini(struct fvm_vmdb_vm *vm);
void fvm_vmdb_vms_fini(struct fvm_vmdb_vms *vms);
/** FVM_EEXIST: the name is taken. The record starts as owner, epoch 1, stable. */
int fvm_vmdb_create(struct fvm_store *store, const Fvm__VmConfig *config, const char *owner, struct fvm_err *err);
/** Only if the record still is at that revision. */
int fvm_vmdb_delete(struct fvm_store *store, const char *name, uint64_t record_revision, struct fvm_err *err);
/** FVM_ECONFLICT: the record changed meanwhile. */
int fvm_vmdb_record_swap(struct fvm_store *store, const char *name, uint64_t expect, const Fvm__VmRecord *record,
                         struct fvm_err *err);
int fvm_vmdb_status_set(struct fvm_store *store, const char *name, const char *node, const char *state,
                        const char *reason, int exit_status, struct fvm_err *err);
/** How the last migration went; FVM_ENOENT: there was none. */
int fvm_vmdb_move_set(struct fvm_store *store, const char *name, const Fvm__VmMove *move, struct fvm_err *err);
int fvm_vmdb_move_get(struct fvm_store *store, const char *name, Fvm__VmMove **ret_move, struct fvm_err *err);
/** Any protobuf message under any key. */
int fvm_vmdb_put(struct fvm_store *store, const char *key, uint64_t expect, const ProtobufCMessage *m, uint64_t lease,
                 uint64_t *ret_revision, struct fvm_err *err);
/** FVM_EBADIMAGE: there is something else under this key. */
int fvm_vmdb_unpack(const struct fvm_store_item *item, const ProtobufCMessageDescriptor *type, void *ret_message,
                    struct fvm_err *err);

#endif
