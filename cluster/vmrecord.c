/*
 * vmrecord.c - hand-over records in the store (see vmrecord.h).
 *
 * Invariant: a record that could not be (fvm_ho_record_valid) is neither read nor written: the hand-over's decisions
 * never see garbage.
 */
#include "cluster/vmrecord.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cluster/vmdb.h"

struct fvm_vmrecord {
    struct fvm_store *store;
    char vm[FVM_HO_NAME_MAX + 1];
};

int fvm_vmrecord_from_message(const Fvm__VmRecord *m, struct fvm_ho_record *ret_record)
{
    struct fvm_ho_record r = {.epoch = m->epoch};
    if (!fvm_ho_phase_parse(m->phase, &r.phase) || strlen(m->owner) > FVM_HO_NAME_MAX ||
        strlen(m->from) > FVM_HO_NAME_MAX || strlen(m->to) > FVM_HO_NAME_MAX ||
        (m->mig_id.len && m->mig_id.len != FVM_HO_ID_BYTES))
        return FVM_EBADIMAGE;
    if (m->mig_id.len)
        memcpy(r.mig_id, m->mig_id.data, FVM_HO_ID_BYTES);
    snprintf(r.owner, sizeof(r.owner), "%s", m->owner);
    snprintf(r.from, sizeof(r.from), "%s", m->from);
    snprintf(r.to, sizeof(r.to), "%s", m->to);
    if (!fvm_ho_record_valid(&r))
        return FVM_EBADIMAGE;
    *ret_record = r;
    return 0;
}

int fvm_vmrecord_get(struct fvm_store *store, const char *vm_name, struct fvm_ho_record *ret_record,
                     uint64_t *ret_revision, struct fvm_err *err)
{
    char key[FVM_STORE_KEY_MAX];
    struct fvm_store_item item = {0};
    Fvm__VmRecord *m = NULL;
    fvm_vmdb_key(FVM_VMDB_RECORD, vm_name, key, sizeof(key));
    int rc = fvm_store_get(store, key, &item, err);
    if (rc)
        return rc;
    rc = fvm_vmdb_unpack(&item, &fvm__vm_record__descriptor, &m, err);
    if (!rc && (rc = fvm_vmrecord_from_message(m, ret_record)))
        fvm_err_set(err, rc, 0, "cluster", "store: %s is not a possible hand-over record", key);
    if (!rc && ret_revision)
        *ret_revision = item.revision;
    if (m)
        fvm__vm_record__free_unpacked(m, NULL);
    fvm_store_item_fini(&item);
    return rc;
}

int fvm_vmrecord_swap(struct fvm_store *store, const char *vm_name, uint64_t expect, const struct fvm_ho_record *next,
                      struct fvm_err *err)
{
    struct fvm_ho_record r = *next;
    Fvm__VmRecord m = FVM__VM_RECORD__INIT;
    if (!fvm_ho_record_valid(&r))
        return fvm_err_set(err, FVM_EINVAL, 0, "cluster", "VM %s: not a possible hand-over record", vm_name);
    m.owner = r.owner;
    m.epoch = r.epoch;
    m.phase = (char *)(uintptr_t)fvm_ho_phase_text(r.phase);
    m.from = r.from;
    m.to = r.to;
    if (r.phase != FVM_HO_STABLE || r.from[0])
        m.mig_id = (ProtobufCBinaryData){.len = FVM_HO_ID_BYTES, .data = r.mig_id};
    return fvm_vmdb_record_swap(store, vm_name, expect, &m, err);
}

int fvm_vmrecord_open(const char *url, const char *vm_name, struct fvm_vmrecord **ret_record, struct fvm_err *err)
{
    struct fvm_vmrecord *record = calloc(1, sizeof(*record));
    if (!record)
        return fvm_err_set(err, FVM_ENOMEM, 0, "cluster", "out of memory");
    snprintf(record->vm, sizeof(record->vm), "%s", vm_name);
    int rc = fvm_store_open(url, &record->store, err);
    if (rc)
        free(record);
    else
        *ret_record = record;
    return rc;
}

void fvm_vmrecord_close(struct fvm_vmrecord **record_p)
{
    struct fvm_vmrecord *record = *record_p;
    *record_p = NULL;
    if (!record)
        return;
    fvm_store_close(&record->store);
    free(record);
}

static int record_get(void *ctx, struct fvm_ho_record *ret_record, uint64_t *ret_revision, struct fvm_err *err)
{
    struct fvm_vmrecord *record = ctx;
    return fvm_vmrecord_get(record->store, record->vm, ret_record, ret_revision, err);
}

static int record_cas(void *ctx, uint64_t expect_revision, const struct fvm_ho_record *next, struct fvm_err *err)
{
    struct fvm_vmrecord *record = ctx;
    return fvm_vmrecord_swap(record->store, record->vm, expect_revision, next, err);
}

struct fvm_record_store fvm_vmrecord_store(struct fvm_vmrecord *record)
{
    return (struct fvm_record_store){.get = record_get, .cas = record_cas, .ctx = record};
}
