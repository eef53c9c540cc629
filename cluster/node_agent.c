/*
 * node_agent.c - looks at the records that concern this node. What a crash left in the middle is settled by
 * node_recover.c (the table is in migrate/handover_recover.c), a second or so later: who is alive and at it has his
 * time.
 *
 * Invariant: a node repairs only records whose owner or source it is, so two nodes rarely try the same; a swap that
 * lost a race was not needed.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cluster/node.h"
#include "cluster/vmrecord.h"

enum { REPAIR_MS = 1000 };

static void judge(struct fvm_node *node, const char *name, const struct fvm_ho_record *r)
{
    struct fvm_node_vm *vm = fvm_node_vm_find(node, name);
    bool mine = strcmp(r->owner, node->name) == 0, was_mine = strcmp(r->from, node->name) == 0;
    if (r->phase == FVM_HO_STABLE && mine && vm)
        fvm_node_vm_arrived(vm);
    else if (r->phase == FVM_HO_STABLE && vm)
        fvm_node_incoming_over(vm, r->epoch);
    else if (r->phase != FVM_HO_STABLE && mine && !vm)
        fvm_node_recover(node, name, NULL);
    else if (r->phase == FVM_HO_TAKEN && was_mine)
        fvm_node_recover(node, name, NULL);
}

static bool exists(struct fvm_node *node, const char *name)
{
    struct fvm_vmdb_vm vm = {0};
    int rc = fvm_vmdb_get(node->store, name, &vm, NULL);
    fvm_vmdb_vm_fini(&vm);
    return rc != FVM_ENOENT;
}

void fvm_node_agent_look(struct fvm_node *node, const struct fvm_store_items *changed)
{
    for (size_t i = 0; i < changed->count; i++) {
        const struct fvm_store_item *item = &changed->items[i];
        char name[FVM_STORE_KEY_MAX];
        const char *slash = strrchr(item->key, '/');
        struct fvm_ho_record r;
        if (!slash || slash <= item->key + 4)
            continue;
        snprintf(name, sizeof(name), "%.*s", (int)(slash - item->key - 4), item->key + 4);
        if (!item->value && strcmp(slash, "/config") == 0 && !exists(node, name))
            fvm_node_vm_remove_dir(node, name);
        if (!item->value || strcmp(slash, "/record"))
            continue;
        if (fvm_vmrecord_get(node->store, name, &r, NULL, NULL) == 0 && r.phase == FVM_HO_STABLE)
            judge(node, name, &r); /* what is in the middle gets its time: repair looks at it */
    }
}

void fvm_node_agent_repair(struct fvm_node *node)
{
    uint64_t now = fvm_now_ns();
    if (now - node->repaired_ns < REPAIR_MS * 1000000ull)
        return;
    node->repaired_ns = now;
    struct fvm_vmdb_vms vms = {0};
    if (fvm_vmdb_list(node->store, &vms, NULL))
        return;
    for (size_t i = 0; i < vms.count; i++) {
        struct fvm_ho_record r;
        if (fvm_vmrecord_from_message(vms.vms[i].record, &r) == 0 &&
            (r.phase != FVM_HO_STABLE || fvm_node_vm_find(node, vms.vms[i].name)))
            judge(node, vms.vms[i].name, &r);
    }
    fvm_vmdb_vms_fini(&vms);
}
