/*
 * node_ops.c - what operators ask of a node. Each handler checks, acts or starts acting, and sees to it that the call
 * ends.
 *
 * A request about a VM that another node owns is answered with a redirect: the operator's tool goes there itself, so a
 * node never speaks for another. Invariant: what is said of a VM's state is its record and, for a process here, its own
 * word.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "cluster/node.h"
#include "cluster/vmrecord.h"
#include "vmm/vm_config.h"

static void fail(struct fvm_node_call *call, int code, const char *fmt, const char *a, const char *b)
{
    struct fvm_err err = {0};
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral"
    fvm_err_set(&err, code, 0, "cluster", fmt, a, b);
#pragma GCC diagnostic pop
    fvm_node_call_fail(call, &err);
}

static void node_list(struct fvm_node_call *call)
{
    Fvm__Reply *reply = calloc(1, sizeof(*reply));
    struct fvm_err err = {0};
    if (!reply)
        return fail(call, FVM_ENOMEM, "out of memory", "", "");
    fvm__reply__init(reply);
    int rc = fvm_node_member_list(call->node, reply, &err);
    if (rc)
        fvm_node_call_fail(call, &err);
    else
        fvm_node_call_end(call, reply);
    fvm__reply__free_unpacked(reply, NULL);
}

/* ---- list and show ---- */

static char *copy(const char *s) { return strdup(s ? s : ""); }

/* Moves the parts of `vm` into a message and puts this node's own knowledge over the store's. */
static Fvm__VmInfo *make_info(struct fvm_node *node, struct fvm_vmdb_vm *vm)
{
    Fvm__VmInfo *info = malloc(sizeof(*info));
    if (!info)
        return NULL;
    fvm__vm_info__init(info);
    info->name = vm->name;
    info->config = vm->config;
    info->record = vm->record;
    info->status = vm->status;
    *vm = (struct fvm_vmdb_vm){0};
    struct fvm_node_vm *here = fvm_node_vm_find(node, info->name);
    info->live = strcmp(info->record->owner, node->name) == 0;
    if (!here)
        return info;
    fvm_node_vm_check_arrival(here);
    info->pid = fvm_node_proc_pid(here->proc);
    if (!info->live)
        return info;
    if (!info->status && (info->status = malloc(sizeof(*info->status))))
        fvm__vm_status__init(info->status);
    if (info->status) {
        if (info->status->state != (char *)protobuf_c_empty_string)
            free(info->status->state);
        info->status->state = copy(fvm_node_vm_state_text(here));
    }
    return info;
}

static void vm_list(struct fvm_node_call *call, const char *only)
{
    struct fvm_vmdb_vms vms = {0};
    struct fvm_err err = {0};
    Fvm__Reply *reply = calloc(1, sizeof(*reply));
    int rc = reply ? 0 : FVM_ENOMEM;
    if (reply)
        fvm__reply__init(reply);
    if (!rc && only) {
        vms.vms = calloc(1, sizeof(*vms.vms));
        rc = vms.vms ? fvm_vmdb_get(call->node->store, only, &vms.vms[0], &err) : FVM_ENOMEM;
        vms.count = rc ? 0 : 1;
    } else if (!rc) {
        rc = fvm_vmdb_list(call->node->store, &vms, &err);
    }
    if (!rc && !(reply->vms = calloc(vms.count + 1, sizeof(*reply->vms))))
        rc = FVM_ENOMEM;
    for (size_t i = 0; !rc && i < vms.count; i++) {
        Fvm__VmInfo *info = make_info(call->node, &vms.vms[i]);
        if (info)
            reply->vms[reply->n_vms++] = info;
    }
    fvm_vmdb_vms_fini(&vms);
    if (rc) {
        if (!err.code)
            fvm_err_set(&err, rc, 0, "cluster", "%s", fvm_err_text(rc));
        fvm_node_call_fail(call, &err);
    } else {
        fvm_node_call_end(call, reply);
    }
    if (reply)
        fvm__reply__free_unpacked(reply, NULL);
}

/* ---- changing things ---- */

static void vm_create(struct fvm_node_call *call, const Fvm__VmConfig *config)
{
    struct fvm_node *node = call->node;
    struct fvm_err err = {0};
    if (!config)
        return fail(call, FVM_EINVAL, "a VM without a configuration", "", "");
    if (fvm_dir_check_name("VM", config->name, &err) || fvm_config_check(config, true, &err) ||
        fvm_vmdb_create(node->store, config, node->name, &err)) {
        fvm_node_call_fail(call, &err);
        return;
    }
    (void)fvm_vmdb_status_set(node->store, config->name, node->name, "stopped", "not started yet", 0, NULL);
    fvm_log(INFO, "vm.created", "vm=%s by=\"%s\"", config->name, call->who);
    fvm_node_call_text(call, "VM %s created on node %s", config->name, node->name);
}

/* The VM from the store if this node owns it; else the call is ended. */
static bool get_mine(struct fvm_node_call *call, const char *name, struct fvm_vmdb_vm *ret_vm)
{
    struct fvm_err err = {0};
    if (fvm_vmdb_get(call->node->store, name, ret_vm, &err)) {
        fvm_node_call_fail(call, &err);
        return false;
    }
    if (strcmp(ret_vm->record->owner, call->node->name) == 0) {
        struct fvm_node_vm *here = fvm_node_vm_find(call->node, name);
        if (here)
            fvm_node_vm_check_arrival(here); /* the source's node may have said so before we heard it */
        return true;
    }
    fvm_node_call_redirect(call, ret_vm->record->owner);
    fvm_vmdb_vm_fini(ret_vm);
    return false;
}

/* The VM's process here; NULL: the call is ended, by a redirect or because it is not running. */
static struct fvm_node_vm *my_running(struct fvm_node_call *call, const char *name)
{
    struct fvm_vmdb_vm known = {0};
    if (!get_mine(call, name, &known))
        return NULL;
    fvm_vmdb_vm_fini(&known);
    struct fvm_node_vm *vm = fvm_node_vm_find(call->node, name);
    if (!vm)
        fail(call, FVM_ESTATE, "VM %s is not running%s", name, "");
    return vm;
}

static void vm_start(struct fvm_node_call *call, const char *name)
{
    struct fvm_vmdb_vm known = {0};
    struct fvm_node_vm *vm = NULL;
    struct fvm_err err = {0};
    if (!get_mine(call, name, &known))
        return;
    if (strcmp(known.record->phase, "stable"))
        fvm_err_set(&err, FVM_ESTATE, 0, "cluster", "VM %s is %s: wait until that has ended", name,
                    known.record->phase);
    else if (fvm_node_vm_find(call->node, name))
        fvm_err_set(&err, FVM_ESTATE, 0, "cluster", "VM %s is %s already", name,
                    fvm_node_vm_state_text(fvm_node_vm_find(call->node, name)));
    else if (fvm_node_vm_start(call->node, name, known.config, NULL, &vm, &err) == 0)
        vm->starter = call;
    if (err.code)
        fvm_node_call_fail(call, &err);
    fvm_vmdb_vm_fini(&known);
}

static void vm_stop(struct fvm_node_call *call, const Fvm__VmStop *request)
{
    struct fvm_node_vm *vm = my_running(call, request->name);
    if (!vm)
        return;
    if ((vm->leaving || vm->moving) && !request->kill)
        return fail(call, FVM_ESTATE, "VM %s is being migrated%s: wait, or cancel that first", request->name, "");
    if (vm->stopper && !request->kill)
        return fail(call, FVM_ESTATE, "VM %s is being stopped already%s", request->name, "");
    if (vm->stopper)
        fvm_node_call_text(vm->stopper, "somebody else killed it meanwhile");
    vm->stopper = call;
    fvm_node_vm_stop(vm, request->timeout_ms ? FVM_MIN(request->timeout_ms, 3600000u) : 30000, request->kill);
}

static void vm_delete(struct fvm_node_call *call, const char *name)
{
    struct fvm_vmdb_vm known = {0};
    struct fvm_err err = {0};
    if (fvm_dir_check_name("VM", name, &err)) {
        fvm_node_call_fail(call, &err);
        return;
    }
    if (fvm_vmdb_get(call->node->store, name, &known, NULL) ==
        FVM_ENOENT) { /* what a crash in the middle of create or delete left */
        if (fvm_vmdb_delete(call->node->store, name, 0, NULL))
            fail(call, FVM_ENOENT, "no VM \"%s\" in this cluster%s", name, "");
        else
            fail(call, FVM_ENOENT, "no VM \"%s\" in this cluster%s (remains of one, if any, are cleared)", name, "");
        return;
    }
    if (!get_mine(call, name, &known))
        return;
    if (fvm_node_vm_find(call->node, name))
        fvm_err_set(&err, FVM_ESTATE, 0, "cluster", "VM %s is %s: stop it first", name,
                    fvm_node_vm_state_text(fvm_node_vm_find(call->node, name)));
    else
        fvm_vmdb_delete(call->node->store, name, known.record_revision, &err);
    fvm_vmdb_vm_fini(&known);
    if (err.code) {
        fvm_node_call_fail(call, &err);
        return;
    }
    fvm_log(INFO, "vm.deleted", "vm=%s by=\"%s\"", name, call->who);
    fvm_node_call_text(call, "VM %s deleted; its disks are untouched", name);
}

static void on_paused(void *ctx, json_t *result, const struct fvm_err *err)
{
    struct fvm_node_call *call = ctx;
    const char *state = json_string_value(json_object_get(result, "state"));
    if (err->code)
        fvm_node_call_fail(call, err);
    else
        fvm_node_call_text(call, "the VM is %s", state ? state : "unknown");
}

/* The call is on the control's list of calls: it ends at the latest when the control closes. */
static void vm_command(struct fvm_node_call *call, const char *name, const char *command)
{
    struct fvm_node_vm *vm = my_running(call, name);
    if (!vm)
        return;
    if (vm->state != FVM_NODE_VM_UP || !vm->control)
        return fail(call, FVM_ESTATE, "VM %s is not running%s", name, "");
    if (vm->leaving || vm->moving)
        return fail(call, FVM_ESTATE, "VM %s is being migrated%s", name, "");
    if (fvm_node_control_call(vm->control, json_pack("{s:s}", "cmd", command), FVM_NODE_ASK_MS * 5, on_paused, call))
        fail(call, FVM_EBUSY, "VM %s has too many questions to answer%s", name, "");
}

static void console(struct fvm_node_call *call, const Fvm__ConsoleOpen *request)
{
    struct fvm_node_vm *vm = my_running(call, request->name);
    if (!vm)
        return;
    fvm_node_console_open(vm, call, request->history);
}

static void migrate(struct fvm_node_call *call, const Fvm__VmMigrate *request)
{
    struct fvm_node_vm *vm = my_running(call, request->name);
    if (!vm)
        return;
    if (vm->state != FVM_NODE_VM_UP)
        return fail(call, FVM_ESTATE, "VM %s is not running%s", request->name, "");
    fvm_node_migrate_start(call, vm, request);
}

static void explain(struct fvm_node_call *call, const char *name)
{
    Fvm__VmMove *move = NULL;
    struct fvm_err err = {0};
    int rc = fvm_dir_check_name("VM", name, &err);
    if (!rc)
        rc = fvm_vmdb_move_get(call->node->store, name, &move, &err);
    if (rc == FVM_ENOENT)
        fvm_err_set(&err, FVM_ENOENT, 0, "cluster", "no migration of a VM \"%.80s\" is known", name);
    if (rc) {
        fvm_node_call_fail(call, &err);
        return;
    }
    Fvm__Reply reply = FVM__REPLY__INIT;
    reply.text = (char *)"";
    reply.move = move;
    fvm_node_call_end(call, &reply);
    fvm__vm_move__free_unpacked(move, NULL);
}

void fvm_node_ops_handle(struct fvm_node_call *call, const Fvm__Request *r)
{
    switch (r->what_case) {
    case FVM__REQUEST__WHAT_PING:
        fvm_node_call_text(call, "node %s, fvm %s", call->node->name, FVM_VERSION);
        break;
    case FVM__REQUEST__WHAT_NODE_LIST:
        node_list(call);
        break;
    case FVM__REQUEST__WHAT_VM_LIST:
        vm_list(call, NULL);
        break;
    case FVM__REQUEST__WHAT_VM_SHOW:
        vm_list(call, r->vm_show->name);
        break;
    case FVM__REQUEST__WHAT_VM_CREATE:
        vm_create(call, r->vm_create->config);
        break;
    case FVM__REQUEST__WHAT_VM_START:
        vm_start(call, r->vm_start->name);
        break;
    case FVM__REQUEST__WHAT_VM_STOP:
        vm_stop(call, r->vm_stop);
        break;
    case FVM__REQUEST__WHAT_VM_DELETE:
        vm_delete(call, r->vm_delete->name);
        break;
    case FVM__REQUEST__WHAT_VM_PAUSE:
        vm_command(call, r->vm_pause->name, "pause");
        break;
    case FVM__REQUEST__WHAT_VM_RESUME:
        vm_command(call, r->vm_resume->name, "resume");
        break;
    case FVM__REQUEST__WHAT_VM_RECOVER:
        fvm_node_recover(call->node, r->vm_recover->name, call);
        break;
    case FVM__REQUEST__WHAT_VM_EXPLAIN:
        explain(call, r->vm_explain->name);
        break;
    case FVM__REQUEST__WHAT_VM_MIGRATE:
        migrate(call, r->vm_migrate);
        break;
    case FVM__REQUEST__WHAT_CONSOLE:
        console(call, r->console);
        break;
    case FVM__REQUEST__WHAT_INCOMING:
        fvm_node_incoming_start(call, r->incoming);
        break;
    case FVM__REQUEST__WHAT_INCOMING_DROP:
        fvm_node_incoming_drop(call, r->incoming_drop->name);
        break;
    case FVM__REQUEST__WHAT_HOLDING:
        fvm_node_recover_holding(call, r->holding->name);
        break;
    default:
        fail(call, FVM_EUNSUPPORTED, "node %s does not know this request: upgrade its fvm%s", call->node->name, "");
        break;
    }
}
