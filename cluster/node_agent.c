/*
 * node_agent.c - looks at the records that concern this node and repairs what a crash left in the middle (DESIGN 5):
 *
 *   record                    here                     then
 *   we own, stable            the guest came           it is up
 *   we own, migrating         no process               ABORT: the source died
 *   they took, not run        our process is paused    they hold nothing, or are dead: HANDBACK
 *   we took, not run          no process               the source holds the guest: it hands back; holds nothing: CLAIM
 *
 * Invariant: every repair is one swap on the record as just read, by the guards of migrate/handover.h; a swap that lost
 * a race was not needed.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "cluster/node.h"
#include "cluster/vmrecord.h"

enum { REPAIR_MS = 1000 };

struct question { /* to another node, about a VM; the answer may come after the VM is gone */
    struct fvm_node *node;
    char vm[FVM_DIR_NAME_MAX + 1];
};

static void swap(struct fvm_node *node, const char *name, uint64_t revision, const struct fvm_ho_record *next,
                 const char *what)
{
    struct fvm_err err = {0};
    int rc = fvm_vmrecord_swap(node->store, name, revision, next, &err);
    if (rc)
        fvm_log(WARN, "record.repair_lost", "vm=%s swap=%s why=\"%s\"", name, what, err.text);
    else
        fvm_log(INFO, "record.repaired", "vm=%s swap=%s owner=%s epoch=%llu", name, what, next->owner,
                (unsigned long long)next->epoch);
}

static void abort_move(struct fvm_node *node, const char *name, const struct fvm_ho_record *r, uint64_t revision)
{
    struct fvm_ho_record next;
    if (fvm_ho_abort(r, node->name, &next))
        return;
    swap(node, name, revision, &next, "abort");
    (void)fvm_vmdb_status_set(node->store, name, node->name, "crashed",
                              "its process died during a migration; start boots it anew", 0, NULL);
}

static void claim(struct fvm_node *node, const char *name)
{
    struct fvm_ho_record r, next;
    uint64_t revision;
    if (fvm_node_vm_find(node, name) || fvm_vmrecord_get(node->store, name, &r, &revision, NULL) ||
        fvm_ho_claim(&r, node->name, FVM_HO_HOLDS_NOTHING, FVM_HO_HOLDS_NOTHING, &next))
        return;
    swap(node, name, revision, &next, "claim");
    (void)fvm_vmdb_status_set(node->store, name, node->name, "crashed",
                              "both its processes died during a migration; start boots it anew", 0, NULL);
}

static void hand_back(struct fvm_node *node, const char *name)
{
    struct fvm_ho_record r, next;
    uint64_t revision;
    struct fvm_node_vm *vm = fvm_node_vm_find(node, name);
    if (!vm || strcmp(vm->live, "paused") || fvm_vmrecord_get(node->store, name, &r, &revision, NULL) ||
        strcmp(r.from, node->name) || fvm_ho_handback(&r, FVM_HO_HOLDS_PAUSED, &next))
        return;
    swap(node, name, revision, &next, "handback");
}

/* The other side said whether it holds anything of the guest. */
static void on_holding(void *ctx, const Fvm__Reply *reply, const struct fvm_err *err)
{
    struct question *q = ctx;
    struct fvm_ho_record r;
    bool answered = !err->code && reply->holding, dead = false;
    if (fvm_vmrecord_get(q->node->store, q->vm, &r, NULL, NULL) == 0 && r.phase == FVM_HO_TAKEN) {
        if (strcmp(r.from, q->node->name) == 0) {
            dead = !answered && !fvm_node_member_up(q->node, r.owner);
            if (dead || (answered && !reply->holding->process))
                hand_back(q->node, q->vm);
        } else if (strcmp(r.owner, q->node->name) == 0 && answered && !reply->holding->process) {
            claim(q->node, q->vm);
        }
    }
    free(q);
}

static void ask_holding(struct fvm_node *node, const char *name, const char *other)
{
    Fvm__Request request = FVM__REQUEST__INIT;
    Fvm__VmName vm = FVM__VM_NAME__INIT;
    struct question *q = calloc(1, sizeof(*q));
    if (!q)
        return;
    q->node = node;
    snprintf(q->vm, sizeof(q->vm), "%s", name);
    vm.name = q->vm;
    request.what_case = FVM__REQUEST__WHAT_HOLDING;
    request.holding = &vm;
    if (fvm_node_link_call(node, other, &request, FVM_NODE_ASK_MS, on_holding, q, NULL))
        free(q);
}

static void judge(struct fvm_node *node, const char *name, const struct fvm_ho_record *r, uint64_t revision)
{
    struct fvm_node_vm *vm = fvm_node_vm_find(node, name);
    bool mine = strcmp(r->owner, node->name) == 0, was_mine = strcmp(r->from, node->name) == 0;
    if (r->phase == FVM_HO_STABLE && mine && vm)
        fvm_node_vm_arrived(vm);
    else if (r->phase == FVM_HO_MIG && mine && !vm)
        abort_move(node, name, r, revision);
    else if (r->phase == FVM_HO_TAKEN && mine && !vm)
        ask_holding(node, name, r->from);
    else if (r->phase == FVM_HO_TAKEN && was_mine && vm)
        ask_holding(node, name, r->owner);
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
        uint64_t revision;
        if (!slash || slash <= item->key + 4)
            continue;
        snprintf(name, sizeof(name), "%.*s", (int)(slash - item->key - 4), item->key + 4);
        if (!item->value && strcmp(slash, "/config") == 0 && !exists(node, name))
            fvm_node_vm_remove_dir(node, name);
        if (!item->value || strcmp(slash, "/record"))
            continue;
        if (fvm_vmrecord_get(node->store, name, &r, &revision, NULL) == 0 && r.phase == FVM_HO_STABLE)
            judge(node, name, &r, revision); /* what is in the middle gets its time: repair looks at it */
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
            judge(node, vms.vms[i].name, &r, vms.vms[i].record_revision);
    }
    fvm_vmdb_vms_fini(&vms);
}
