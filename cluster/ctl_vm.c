/*
 * ctl_vm.c - commands that change a VM's life: each one request to its owner, whose one line is printed.
 */
#include <string.h>

#include "cluster/ctl.h"
#include "vmm/vm_config.h"

static int call_and_say(struct fvm_ctl *ctl, Fvm__Request *request, int timeout_ms, struct fvm_err *err)
{
    Fvm__Reply *reply = NULL;
    int rc = fvm_ctl_call(ctl, request, timeout_ms, &reply, NULL, err);
    if (rc)
        return rc;
    fvm_ctl_say(ctl, reply->text);
    fvm__reply__free_unpacked(reply, NULL);
    return 0;
}

static int named(struct fvm_ctl *ctl, Fvm__Request__WhatCase what, int timeout_ms, struct fvm_err *err)
{
    Fvm__Request request = FVM__REQUEST__INIT;
    Fvm__VmName name = FVM__VM_NAME__INIT;
    name.name = (char *)(uintptr_t)ctl->opt.words[2];
    request.what_case = what;
    request.vm_start = &name; /* the same member of the union for all of them */
    return call_and_say(ctl, &request, timeout_ms, err);
}

int fvm_ctl_vm_create(struct fvm_ctl *ctl, struct fvm_err *err)
{
    Fvm__Request request = FVM__REQUEST__INIT;
    Fvm__VmCreate create = FVM__VM_CREATE__INIT;
    int rc = fvm_dir_check_name("VM", ctl->opt.words[2], err);
    if (!rc && fvm_config_set(&ctl->opt.config->name, ctl->opt.words[2]))
        rc = fvm_err_set(err, FVM_ENOMEM, 0, "cluster", "out of memory");
    if (!rc && !ctl->opt.config->kernel[0] && !ctl->opt.config->firmware[0])
        rc = fvm_err_set(err, FVM_EINVAL, 0, "cluster", "what should VM %s boot? --kernel FILE or --firmware seabios is needed",
                         ctl->opt.words[2]);
    if (rc)
        return rc;
    create.config = ctl->opt.config;
    request.what_case = FVM__REQUEST__WHAT_VM_CREATE;
    request.vm_create = &create;
    return call_and_say(ctl, &request, FVM_CTL_ANSWER_MS, err);
}

int fvm_ctl_vm_start(struct fvm_ctl *ctl, struct fvm_err *err)
{
    return named(ctl, FVM__REQUEST__WHAT_VM_START, 60000, err);
}
int fvm_ctl_vm_delete(struct fvm_ctl *ctl, struct fvm_err *err)
{
    return named(ctl, FVM__REQUEST__WHAT_VM_DELETE, FVM_CTL_ANSWER_MS, err);
}
int fvm_ctl_vm_pause(struct fvm_ctl *ctl, struct fvm_err *err)
{
    return named(ctl, FVM__REQUEST__WHAT_VM_PAUSE, FVM_CTL_ANSWER_MS, err);
}
int fvm_ctl_vm_resume(struct fvm_ctl *ctl, struct fvm_err *err)
{
    return named(ctl, FVM__REQUEST__WHAT_VM_RESUME, FVM_CTL_ANSWER_MS, err);
}

static int stop(struct fvm_ctl *ctl, bool kill, struct fvm_err *err)
{
    Fvm__Request request = FVM__REQUEST__INIT;
    Fvm__VmStop s = FVM__VM_STOP__INIT;
    s.name = (char *)(uintptr_t)ctl->opt.words[2];
    s.timeout_ms = ctl->opt.timeout_s * 1000;
    s.kill = kill;
    request.what_case = FVM__REQUEST__WHAT_VM_STOP;
    request.vm_stop = &s;
    return call_and_say(ctl, &request, (int)s.timeout_ms + FVM_CTL_ANSWER_MS, err);
}

int fvm_ctl_vm_stop(struct fvm_ctl *ctl, struct fvm_err *err) { return stop(ctl, false, err); }
int fvm_ctl_vm_kill(struct fvm_ctl *ctl, struct fvm_err *err) { return stop(ctl, true, err); }

/* ---- recover ---- */

static json_t *record_json(const Fvm__VmRecord *r)
{
    return json_pack("{s:s, s:I, s:s, s:s, s:s}", "owner", r->owner, "epoch", (json_int_t)r->epoch, "phase", r->phase,
                     "from", r->from, "to", r->to);
}

static void print_record(const char *what, const Fvm__VmRecord *r)
{
    bool moving = strcmp(r->phase, "stable") != 0;
    printf("  %-7s node %s owns it, %s, epoch %llu", what, r->owner, r->phase, (unsigned long long)r->epoch);
    if (moving)
        printf(" (from %s to %s)", r->from, r->to);
    putchar('\n');
}

static void print_recovery(const Fvm__Recovery *m, const char *text)
{
    puts(text);
    print_record("found", m->found);
    for (size_t i = 0; i < m->n_said; i++)
        printf("  %-7s %s\n", i ? "" : "said", m->said[i]);
    printf("  %-7s %s\n", "did", m->did);
    print_record("now", m->now);
    fflush(stdout);
}

int fvm_ctl_vm_recover(struct fvm_ctl *ctl, struct fvm_err *err)
{
    Fvm__Request request = FVM__REQUEST__INIT;
    Fvm__VmName name = FVM__VM_NAME__INIT;
    Fvm__Reply *reply = NULL;
    name.name = (char *)(uintptr_t)ctl->opt.words[2];
    request.what_case = FVM__REQUEST__WHAT_VM_RECOVER;
    request.vm_recover = &name;
    int rc = fvm_ctl_call(ctl, &request, FVM_CTL_ANSWER_MS, &reply, NULL, err);
    if (rc)
        return rc;
    const Fvm__Recovery *m = reply->recovery;
    if (!m || !m->found || !m->now) {
        rc = fvm_err_set(err, FVM_EPROTO, 0, "cluster", "the node gave no usable answer");
    } else if (ctl->opt.json) {
        json_t *said = json_array();
        for (size_t i = 0; i < m->n_said; i++)
            json_array_append_new(said, json_string(m->said[i]));
        fvm_ctl_print_json(json_pack("{s:b, s:s, s:s, s:o, s:o, s:o}", "settled", m->settled, "did", m->did, "why",
                                     m->why, "said", said, "found", record_json(m->found), "now", record_json(m->now)));
    } else {
        print_recovery(m, reply->text);
    }
    if (!rc && !m->settled)
        rc = fvm_err_set(err, FVM_ESTATE, 0, "cluster", "VM %s is not settled: %.300s", ctl->opt.words[2], m->why);
    fvm__reply__free_unpacked(reply, NULL);
    return rc;
}
