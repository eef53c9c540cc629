/*
 * ctl_list.c - vm list, vm show. One node tells what is in the store; the owner of each VM is then asked how it is now.
 *
 * Invariant: a state is only shown as present when the VM's own node said so in this very run. Otherwise it is
 * "unknown" and since when.
 */
#include <stdlib.h>
#include <string.h>

#include "cluster/ctl.h"

struct owner { /* a node that was asked, or could not be */
    char name[FVM_DIR_NAME_MAX + 1];
    Fvm__Reply *reply;
};

struct survey {
    struct fvm_ctl *ctl;
    Fvm__Reply *vms, *nodes;
    struct owner owners[64];
    unsigned owner_count;
};

static Fvm__Reply *ask(struct fvm_rpc_client *client, Fvm__Request__WhatCase what, const char *name,
                       struct fvm_err *err)
{
    Fvm__Request request = FVM__REQUEST__INIT;
    Fvm__Empty nothing = FVM__EMPTY__INIT;
    Fvm__VmName vm = FVM__VM_NAME__INIT;
    Fvm__Reply *reply = NULL;
    vm.name = (char *)(uintptr_t)(name ? name : "");
    request.what_case = what;
    if (what == FVM__REQUEST__WHAT_VM_SHOW)
        request.vm_show = &vm;
    else
        request.vm_list = &nothing; /* node_list is the same member of the union */
    if (fvm_rpc_call(client, &request, FVM_CTL_ANSWER_MS, &reply, err))
        return NULL;
    return reply;
}

/* What the owner itself says of all its VMs; NULL: it does not answer. Each owner is asked once. */
static Fvm__Reply *owner_says(struct survey *s, const char *name)
{
    for (unsigned i = 0; i < s->owner_count; i++)
        if (strcmp(s->owners[i].name, name) == 0)
            return s->owners[i].reply;
    if (s->owner_count >= FVM_ARRAY_SIZE(s->owners))
        return NULL;
    struct owner *o = &s->owners[s->owner_count++];
    struct fvm_rpc_client *client = NULL;
    struct fvm_err err = {0};
    snprintf(o->name, sizeof(o->name), "%s", name);
    o->reply = NULL;
    if (fvm_ctl_connect(s->ctl, name, &client, &err) == 0) {
        o->reply = ask(client, FVM__REQUEST__WHAT_VM_LIST, NULL, &err);
        fvm_rpc_close(&client);
    }
    return o->reply;
}

static const Fvm__VmInfo *find_vm(const Fvm__Reply *reply, const char *name)
{
    for (size_t i = 0; reply && i < reply->n_vms; i++)
        if (strcmp(reply->vms[i]->name, name) == 0)
            return reply->vms[i];
    return NULL;
}

static uint64_t last_seen(const struct survey *s, const char *node)
{
    for (size_t i = 0; s->nodes && i < s->nodes->n_nodes; i++)
        if (strcmp(s->nodes->nodes[i]->name, node) == 0)
            return s->nodes->nodes[i]->seen_wall_ns;
    return 0;
}

static int survey_make(struct fvm_ctl *ctl, const char *only, struct survey *s, struct fvm_err *err)
{
    struct fvm_rpc_client *client = NULL;
    *s = (struct survey){.ctl = ctl};
    int rc = fvm_ctl_connect_any(ctl, &client, err);
    if (rc)
        return rc;
    s->vms = ask(client, only ? FVM__REQUEST__WHAT_VM_SHOW : FVM__REQUEST__WHAT_VM_LIST, only, err);
    if (s->vms)
        s->nodes = ask(client, FVM__REQUEST__WHAT_NODE_LIST, NULL, err);
    fvm_rpc_close(&client);
    return s->vms && s->nodes ? 0 : err->code ? err->code : FVM_EPROTO;
}

static void survey_fini(struct survey *s)
{
    if (s->vms)
        fvm__reply__free_unpacked(s->vms, NULL);
    if (s->nodes)
        fvm__reply__free_unpacked(s->nodes, NULL);
    for (unsigned i = 0; i < s->owner_count; i++)
        if (s->owners[i].reply)
            fvm__reply__free_unpacked(s->owners[i].reply, NULL);
}

struct view { /* one VM as it is to be shown */
    const Fvm__VmInfo *vm;
    bool unknown;
    uint64_t since_ns;
    char text[256];
};

static struct view look(struct survey *s, const Fvm__VmInfo *vm)
{
    struct view v = {.vm = vm};
    char when[32];
    if (!vm->live) {
        const Fvm__VmInfo *fresh = find_vm(owner_says(s, vm->record->owner), vm->name);
        v.vm = fresh ? fresh : vm;
        v.unknown = !fresh || !fresh->live;
    }
    const Fvm__VmStatus *st = v.vm->status;
    v.since_ns = v.unknown ? last_seen(s, vm->record->owner) : st ? st->wall_ns : 0;
    if (v.unknown)
        snprintf(v.text, sizeof(v.text), "unknown since %s: node %s does not answer", fvm_ctl_time(v.since_ns, when),
                 vm->record->owner);
    else
        snprintf(v.text, sizeof(v.text), "%s%s%s", st ? st->state : "unknown", st && st->reason[0] ? ": " : "",
                 st ? st->reason : "");
    return v;
}

static json_t *view_json(const struct view *v)
{
    json_t *out = fvm_ctl_vm_json(v->vm);
    if (v->unknown) {
        json_object_set_new(out, "state", json_string("unknown"));
        json_object_set_new(out, "reason", json_string(v->text));
        json_object_set_new(out, "since_wall_ns", json_integer((json_int_t)v->since_ns));
        json_object_set_new(out, "live", json_false());
    }
    return out;
}

int fvm_ctl_vm_list(struct fvm_ctl *ctl, struct fvm_err *err)
{
    struct survey s;
    int rc = survey_make(ctl, NULL, &s, err);
    json_t *list = json_array();
    if (!rc && !ctl->opt.json)
        printf("%-20s %-12s %-10s %8s  %s\n", "VM", "NODE", "OWNERSHIP", "MEMORY", "STATE");
    for (size_t i = 0; !rc && i < s.vms->n_vms; i++) {
        struct view v = look(&s, s.vms->vms[i]);
        char size[24];
        if (ctl->opt.json)
            json_array_append_new(list, view_json(&v));
        else
            printf("%-20s %-12s %-10s %8s  %s\n", v.vm->name, v.vm->record->owner, v.vm->record->phase,
                   fvm_ctl_bytes(v.vm->config ? v.vm->config->memory_bytes : 0, size), v.text);
    }
    if (!rc && ctl->opt.json)
        fvm_ctl_print_json(json_pack("{s:O}", "vms", list));
    json_decref(list);
    survey_fini(&s);
    return rc;
}

static void print_config(const Fvm__VmConfig *c)
{
    char size[24];
    printf("machine    %s memory, %u processor%s%s%s\n", fvm_ctl_bytes(c->memory_bytes, size), c->cpus,
           c->cpus == 1 ? "" : "s", c->cpu_model[0] ? ", " : "", c->cpu_model);
    printf("kernel     %s\n", c->kernel);
    if (c->initrd[0])
        printf("initrd     %s\n", c->initrd);
    if (c->append[0])
        printf("append     %s\n", c->append);
    for (size_t i = 0; i < c->n_disks; i++) {
        const Fvm__DiskConfig *d = c->disks[i];
        printf("disk %zu     %s%s%s%s\n", i, d->path, d->cdrom ? " (CD-ROM)" : d->readonly ? " (read only)" : "",
               d->interface[0] ? " on " : "", d->interface);
    }
    for (size_t i = 0; i < c->n_nets; i++)
        printf("net %zu      %s\n", i, strcmp(c->nets[i]->kind, "switch:@") ? c->nets[i]->kind : "switch");
}

int fvm_ctl_vm_show(struct fvm_ctl *ctl, struct fvm_err *err)
{
    struct survey s;
    char when[32];
    int rc = survey_make(ctl, ctl->opt.words[2], &s, err);
    if (!rc && s.vms->n_vms == 1) {
        struct view v = look(&s, s.vms->vms[0]);
        const Fvm__VmRecord *r = v.vm->record;
        if (ctl->opt.json) {
            fvm_ctl_print_json(view_json(&v));
        } else {
            printf("VM         %s\nstate      %s\nsince      %s\n", v.vm->name, v.text, fvm_ctl_time(v.since_ns, when));
            printf("owner      node %s, epoch %llu, %s", r->owner, (unsigned long long)r->epoch, r->phase);
            printf(strcmp(r->phase, "stable") ? " from %s to %s\n" : "\n", r->from, r->to);
            if (v.vm->pid && !v.unknown)
                printf("process    %d\n", v.vm->pid);
            if (v.vm->config)
                print_config(v.vm->config);
        }
    }
    survey_fini(&s);
    return rc;
}
