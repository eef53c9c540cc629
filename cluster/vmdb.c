/*
 * vmdb.c - VMs in the store (see vmdb.h).
 *
 * Invariant: a config without a record is a VM that is being created or deleted, and is not shown.
 */
#include "cluster/vmdb.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void fvm_vmdb_key(enum fvm_vmdb_key which, const char *name, char *buf, size_t size)
{
    static const char *const format[] = {"/vm/%s/config", "/vm/%s/record", "/vm/%s/status",
                                         "/vm/%s/move",   "/node/%s",      "/alive/%s"};
    snprintf(buf, size, format[which], name);
}

int fvm_vmdb_put(struct fvm_store *store, const char *key, uint64_t expect, const ProtobufCMessage *m, uint64_t lease,
                 uint64_t *ret_revision, struct fvm_err *err)
{
    size_t len = protobuf_c_message_get_packed_size(m);
    uint8_t *data = malloc(len + 1);
    if (!data)
        return fvm_err_set(err, FVM_ENOMEM, 0, "cluster", "out of memory");
    protobuf_c_message_pack(m, data);
    int rc = fvm_store_cas(store, key, expect, (const char *)data, len, lease, ret_revision, err);
    free(data);
    return rc;
}

int fvm_vmdb_unpack(const struct fvm_store_item *item, const ProtobufCMessageDescriptor *type, void *ret_message,
                    struct fvm_err *err)
{
    ProtobufCMessage *m = protobuf_c_message_unpack(type, NULL, item->value_len, (const uint8_t *)item->value);
    if (!m)
        return fvm_err_set(err, FVM_EBADIMAGE, 0, "cluster", "store: %s is damaged", item->key);
    memcpy(ret_message, &m, sizeof(m));
    return 0;
}

/* "/vm/NAME/part" -> part, with NAME copied. */
static const char *split(const char *key, char *name, size_t size)
{
    const char *start = key + 4, *slash = strchr(start, '/');
    if (!slash || (size_t)(slash - start) >= size)
        return "";
    memcpy(name, start, (size_t)(slash - start));
    name[slash - start] = 0;
    return slash + 1;
}

static int take(struct fvm_vmdb_vm *vm, const char *part, const struct fvm_store_item *item, struct fvm_err *err)
{
    if (strcmp(part, "config") == 0) {
        vm->config_revision = item->revision;
        return fvm_vmdb_unpack(item, &fvm__vm_config__descriptor, &vm->config, err);
    }
    if (strcmp(part, "record") == 0) {
        vm->record_revision = item->revision;
        return fvm_vmdb_unpack(item, &fvm__vm_record__descriptor, &vm->record, err);
    }
    if (strcmp(part, "status") == 0) {
        vm->status_revision = item->revision;
        return fvm_vmdb_unpack(item, &fvm__vm_status__descriptor, &vm->status, err);
    }
    return 0;
}

void fvm_vmdb_vm_fini(struct fvm_vmdb_vm *vm)
{
    free(vm->name);
    if (vm->config)
        fvm__vm_config__free_unpacked(vm->config, NULL);
    if (vm->record)
        fvm__vm_record__free_unpacked(vm->record, NULL);
    if (vm->status)
        fvm__vm_status__free_unpacked(vm->status, NULL);
    *vm = (struct fvm_vmdb_vm){0};
}

void fvm_vmdb_vms_fini(struct fvm_vmdb_vms *vms)
{
    for (size_t i = 0; i < vms->count; i++)
        fvm_vmdb_vm_fini(&vms->vms[i]);
    free(vms->vms);
    *vms = (struct fvm_vmdb_vms){0};
}

static int add_item(struct fvm_vmdb_vms *vms, const struct fvm_store_item *item, struct fvm_err *err)
{
    char name[FVM_STORE_KEY_MAX];
    const char *part = split(item->key, name, sizeof(name));
    if (!*part)
        return 0;
    struct fvm_vmdb_vm *last = vms->count ? &vms->vms[vms->count - 1] : NULL;
    if (!last || strcmp(last->name, name)) {
        struct fvm_vmdb_vm *grown = realloc(vms->vms, (vms->count + 1) * sizeof(*grown));
        char *copy = strdup(name);
        if (grown)
            vms->vms = grown;
        if (!grown || !copy) {
            free(copy);
            return fvm_err_set(err, FVM_ENOMEM, 0, "cluster", "out of memory");
        }
        last = &vms->vms[vms->count++];
        *last = (struct fvm_vmdb_vm){.name = copy};
    }
    return take(last, part, item, err);
}

/* Keys come in order, so a VM's parts are neighbours. */
static int list(struct fvm_store *store, const char *prefix, struct fvm_vmdb_vms *ret_vms, struct fvm_err *err)
{
    struct fvm_store_items items = {0};
    struct fvm_vmdb_vms vms = {0};
    int rc = fvm_store_list(store, prefix, &items, NULL, err);
    if (rc)
        return rc;
    for (size_t i = 0; !rc && i < items.count; i++)
        rc = add_item(&vms, &items.items[i], err);
    fvm_store_items_fini(&items);
    size_t kept = 0;
    for (size_t i = 0; i < vms.count; i++) {
        if (vms.vms[i].config && vms.vms[i].record)
            vms.vms[kept++] = vms.vms[i];
        else
            fvm_vmdb_vm_fini(&vms.vms[i]);
    }
    vms.count = kept;
    if (rc)
        fvm_vmdb_vms_fini(&vms);
    else
        *ret_vms = vms;
    return rc;
}

int fvm_vmdb_list(struct fvm_store *store, struct fvm_vmdb_vms *ret_vms, struct fvm_err *err)
{
    return list(store, "/vm/", ret_vms, err);
}

int fvm_vmdb_get(struct fvm_store *store, const char *name, struct fvm_vmdb_vm *ret_vm, struct fvm_err *err)
{
    char prefix[FVM_STORE_KEY_MAX];
    struct fvm_vmdb_vms vms = {0};
    snprintf(prefix, sizeof(prefix), "/vm/%.200s/", name);
    int rc = list(store, prefix, &vms, err);
    if (!rc && vms.count != 1)
        rc = fvm_err_set(err, FVM_ENOENT, 0, "cluster", "no VM \"%.80s\" in this cluster", name);
    if (!rc) {
        *ret_vm = vms.vms[0];
        vms.count = 0;
    }
    fvm_vmdb_vms_fini(&vms);
    return rc;
}

int fvm_vmdb_create(struct fvm_store *store, const Fvm__VmConfig *config, const char *owner, struct fvm_err *err)
{
    char key[FVM_STORE_KEY_MAX];
    uint64_t revision = 0;
    fvm_vmdb_key(FVM_VMDB_CONFIG, config->name, key, sizeof(key));
    int rc = fvm_vmdb_put(store, key, 0, &config->base, 0, &revision, err);
    if (rc == FVM_ECONFLICT) {
        struct fvm_vmdb_vm there = {0};
        rc = fvm_vmdb_get(store, config->name, &there, NULL);
        fvm_vmdb_vm_fini(&there);
        return fvm_err_set(err, FVM_EEXIST, 0, "cluster",
                           rc ? "a half-made VM \"%s\" is in the way: vm delete clears it"
                              : "there is a VM \"%s\" already",
                           config->name);
    }
    if (rc)
        return rc;
    Fvm__VmRecord record = FVM__VM_RECORD__INIT;
    record.owner = (char *)(uintptr_t)owner;
    record.epoch = 1;
    record.phase = (char *)"stable";
    char rkey[FVM_STORE_KEY_MAX];
    fvm_vmdb_key(FVM_VMDB_RECORD, config->name, rkey, sizeof(rkey));
    rc = fvm_vmdb_put(store, rkey, 0, &record.base, 0, NULL, err);
    if (rc)
        fvm_store_cas(store, key, revision, NULL, 0, 0, NULL, NULL);
    return rc;
}

int fvm_vmdb_delete(struct fvm_store *store, const char *name, uint64_t record_revision, struct fvm_err *err)
{
    char key[FVM_STORE_KEY_MAX];
    fvm_vmdb_key(FVM_VMDB_RECORD, name, key, sizeof(key));
    int rc = fvm_store_cas(store, key, record_revision, NULL, 0, 0, NULL, err); /* 0: there must be none */
    for (int part = FVM_VMDB_CONFIG; !rc && part <= FVM_VMDB_MOVE; part++) {
        struct fvm_store_item item = {0};
        struct fvm_err why = {0};
        if (part == FVM_VMDB_RECORD)
            continue;
        fvm_vmdb_key(part, name, key, sizeof(key));
        rc = fvm_store_get(store, key, &item, &why);
        if (rc == 0)
            rc = fvm_store_cas(store, key, item.revision, NULL, 0, 0, NULL, err);
        else if (rc == FVM_ENOENT) /* not every VM has every part */
            rc = 0;
        else if (err)
            *err = why;
        fvm_store_item_fini(&item);
    }
    return rc;
}

int fvm_vmdb_record_swap(struct fvm_store *store, const char *name, uint64_t expect, const Fvm__VmRecord *record,
                         struct fvm_err *err)
{
    char key[FVM_STORE_KEY_MAX];
    fvm_vmdb_key(FVM_VMDB_RECORD, name, key, sizeof(key));
    return fvm_vmdb_put(store, key, expect, &record->base, 0, NULL, err);
}

/* Whatever was there before. */
static int overwrite(struct fvm_store *store, const char *key, const ProtobufCMessage *m, struct fvm_err *err)
{
    int rc = FVM_ECONFLICT;
    for (int tries = 0; rc == FVM_ECONFLICT && tries < 8; tries++) {
        struct fvm_store_item item = {0};
        int got = fvm_store_get(store, key, &item, err);
        if (got && got != FVM_ENOENT)
            return got;
        rc = fvm_vmdb_put(store, key, got ? 0 : item.revision, m, 0, NULL, err);
        fvm_store_item_fini(&item);
    }
    return rc;
}

int fvm_vmdb_status_set(struct fvm_store *store, const char *name, const char *node, const char *state,
                        const char *reason, int exit_status, struct fvm_err *err)
{
    char key[FVM_STORE_KEY_MAX];
    Fvm__VmStatus status = FVM__VM_STATUS__INIT;
    status.node = (char *)(uintptr_t)node;
    status.state = (char *)(uintptr_t)state;
    status.reason = (char *)(uintptr_t)reason;
    status.exit_status = exit_status;
    status.wall_ns = fvm_wall_ns();
    fvm_vmdb_key(FVM_VMDB_STATUS, name, key, sizeof(key));
    return overwrite(store, key, &status.base, err);
}

int fvm_vmdb_move_set(struct fvm_store *store, const char *name, const Fvm__VmMove *move, struct fvm_err *err)
{
    char key[FVM_STORE_KEY_MAX];
    fvm_vmdb_key(FVM_VMDB_MOVE, name, key, sizeof(key));
    return overwrite(store, key, &move->base, err);
}

int fvm_vmdb_move_get(struct fvm_store *store, const char *name, Fvm__VmMove **ret_move, struct fvm_err *err)
{
    char key[FVM_STORE_KEY_MAX];
    struct fvm_store_item item = {0};
    fvm_vmdb_key(FVM_VMDB_MOVE, name, key, sizeof(key));
    int rc = fvm_store_get(store, key, &item, err);
    if (!rc)
        rc = fvm_vmdb_unpack(&item, &fvm__vm_move__descriptor, ret_move, err);
    fvm_store_item_fini(&item);
    return rc;
}
