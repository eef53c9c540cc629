/*
 * ctl.c - the operator's way to the nodes: whose key, which node, and on to the owner when another node has the VM.
 *
 * Invariant: every failure comes out as one line that names the node it was about.
 */
#include "cluster/ctl.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int find_operator(struct fvm_ctl *ctl, struct fvm_err *err)
{
    const struct fvm_dir_member *me = NULL;
    char path[4400];
    if (ctl->opt.as) {
        me = fvm_dir_find(&ctl->dir, FVM_DIR_OPERATOR, ctl->opt.as);
        if (!me)
            return fvm_err_set(err, FVM_ENOENT, 0, "cluster", "no operator \"%.80s\" in this cluster", ctl->opt.as);
    }
    for (size_t i = 0; !ctl->opt.as && i < ctl->dir.member_count; i++) {
        const struct fvm_dir_member *m = &ctl->dir.members[i];
        snprintf(path, sizeof(path), "%s/keys/%s.secret", ctl->dir.path, m->name);
        if (m->kind != FVM_DIR_OPERATOR || access(path, F_OK))
            continue;
        if (me)
            return fvm_err_set(err, FVM_EINVAL, 0, "cluster",
                               "keys of several operators are here (%s, %s): say which with --as", me->name, m->name);
        me = m;
    }
    if (!me)
        return fvm_err_set(err, FVM_EAUTH, 0, "cluster", "%s: no operator's key is on this machine (keys/NAME.secret)",
                           ctl->dir.path);
    return fvm_dir_keys(&ctl->dir, me, &ctl->keys, err);
}

int fvm_ctl_open(struct fvm_ctl *ctl, struct fvm_err *err)
{
    int rc = fvm_dir_load(ctl->dir_path, &ctl->dir, err);
    if (!rc)
        rc = find_operator(ctl, err);
    return rc ? rc : fvm_port_ctx_create(1, &ctl->ctx, err);
}

void fvm_ctl_close(struct fvm_ctl *ctl)
{
    if (ctl->ctx)
        fvm_port_ctx_destroy(&ctl->ctx);
    fvm_dir_fini(&ctl->dir);
    explicit_bzero(&ctl->keys, sizeof(ctl->keys));
}

int fvm_ctl_connect(struct fvm_ctl *ctl, const char *node, struct fvm_rpc_client **ret_client, struct fvm_err *err)
{
    const struct fvm_dir_member *m = fvm_dir_find(&ctl->dir, FVM_DIR_NODE, node);
    if (!m)
        return fvm_err_set(err, FVM_ENOENT, 0, "cluster", "no node \"%.80s\" in this cluster", node);
    return fvm_rpc_open(ctl->ctx, m->name, m->address, m->public_key, &ctl->keys, FVM_CTL_CONNECT_MS, ret_client, err);
}

int fvm_ctl_connect_any(struct fvm_ctl *ctl, struct fvm_rpc_client **ret_client, struct fvm_err *err)
{
    unsigned nodes = 0;
    int rc = FVM_ENOENT;
    if (ctl->opt.node)
        return fvm_ctl_connect(ctl, ctl->opt.node, ret_client, err);
    for (size_t i = 0; i < ctl->dir.member_count; i++) {
        if (ctl->dir.members[i].kind != FVM_DIR_NODE)
            continue;
        nodes++;
        rc = fvm_ctl_connect(ctl, ctl->dir.members[i].name, ret_client, err);
        if (!rc || rc == FVM_EVERSION)
            return rc;
    }
    if (!nodes)
        return fvm_err_set(err, FVM_ENOENT, 0, "cluster",
                           "this cluster has no nodes yet: fvm-cluster node add NAME --address tcp://HOST:PORT");
    if (nodes > 1 && rc == FVM_ETIMEOUT)
        fvm_err_set(err, rc, 0, "cluster", "none of the %u nodes answers: is fvm-node running?", nodes);
    return rc;
}

int fvm_ctl_call(struct fvm_ctl *ctl, Fvm__Request *request, int timeout_ms, Fvm__Reply **ret_reply,
                 struct fvm_rpc_client **ret_client, struct fvm_err *err)
{
    struct fvm_rpc_client *client = NULL;
    Fvm__Reply *reply = NULL;
    int rc = fvm_ctl_connect_any(ctl, &client, err);
    for (int hops = 0; !rc && hops < 4; hops++) {
        rc = fvm_rpc_call(client, request, timeout_ms, &reply, err);
        if (!rc || !reply)
            break;
        char owner[FVM_DIR_NAME_MAX + 1];
        snprintf(owner, sizeof(owner), "%s", reply->redirect);
        fvm__reply__free_unpacked(reply, NULL);
        reply = NULL;
        fvm_rpc_close(&client);
        rc = fvm_ctl_connect(ctl, owner, &client, err);
        if (rc == FVM_ETIMEOUT)
            fvm_err_set(err, rc, 0, "cluster", "node %s owns it and does not answer", owner);
    }
    if (!rc && !reply)
        rc = fvm_err_set(err, FVM_ECONFLICT, 0, "cluster", "it moves from node to node: try again");
    if (!rc)
        *ret_reply = reply;
    if (!rc && ret_client)
        *ret_client = client;
    else if (client)
        fvm_rpc_close(&client);
    return rc;
}

int fvm_ctl_connect_owner(struct fvm_ctl *ctl, const char *vm, struct fvm_rpc_client **ret_client, struct fvm_err *err)
{
    Fvm__Request request = FVM__REQUEST__INIT;
    Fvm__VmName name = FVM__VM_NAME__INIT;
    Fvm__Reply *reply = NULL;
    struct fvm_rpc_client *client = NULL;
    name.name = (char *)(uintptr_t)vm;
    request.what_case = FVM__REQUEST__WHAT_VM_SHOW;
    request.vm_show = &name;
    int rc = fvm_ctl_call(ctl, &request, FVM_CTL_ANSWER_MS, &reply, &client, err);
    if (rc)
        return rc;
    const char *owner = reply->n_vms == 1 && reply->vms[0]->record ? reply->vms[0]->record->owner : "";
    if (strcmp(owner, fvm_rpc_peer(client)) != 0) {
        fvm_rpc_close(&client);
        rc = fvm_ctl_connect(ctl, owner, &client, err);
        if (rc == FVM_ETIMEOUT)
            fvm_err_set(err, rc, 0, "cluster", "node %s owns VM %s and does not answer", owner, vm);
    }
    fvm__reply__free_unpacked(reply, NULL);
    if (!rc)
        *ret_client = client;
    return rc;
}

void fvm_ctl_print_json(json_t *value)
{
    json_dumpf(value, stdout, JSON_INDENT(isatty(STDOUT_FILENO) ? 2 : 0) | JSON_SORT_KEYS);
    putchar('\n');
    fflush(stdout);
    json_decref(value);
}

void fvm_ctl_say(const struct fvm_ctl *ctl, const char *text)
{
    if (ctl->opt.json)
        fvm_ctl_print_json(json_pack("{s:b, s:s}", "ok", 1, "text", text));
    else
        puts(text);
    fflush(stdout);
}

int fvm_ctl_complain(const struct fvm_ctl *ctl, const struct fvm_err *err)
{
    const char *text = err->text[0] ? err->text : fvm_err_text(err->code);
    if (ctl->opt.json)
        fvm_ctl_print_json(
            json_pack("{s:b, s:{s:s, s:s}}", "ok", 0, "error", "code", fvm_err_name(err->code), "text", text));
    fprintf(stderr, "fvm-cluster: %s\n", text);
    return fvm_err_exit_status(err->code);
}
