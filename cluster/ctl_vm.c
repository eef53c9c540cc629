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
    if (!rc && !ctl->opt.config->kernel[0])
        rc = fvm_err_set(err, FVM_EINVAL, 0, "cluster", "what should VM %s boot? --kernel FILE is needed",
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
