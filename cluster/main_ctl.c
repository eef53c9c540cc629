/*
 * main_ctl.c - the program fvm-cluster: finds the command and runs it.
 */
#include <argp.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "cluster/ctl.h"

const char *argp_program_version = "fvm-cluster " FVM_VERSION;

struct command {
    const char *noun, *verb;
    int (*run)(struct ctl *ctl, struct fvm_err *err);
    bool files_only; /* needs no key and no node */
};

static const struct command commands[] = {
    {"init", NULL, ctl_cluster_init, true},      {"node", "add", ctl_node_add, true},
    {"node", "remove", ctl_node_remove, true},   {"node", "list", ctl_node_list, false},
    {"operator", "add", ctl_operator_add, true}, {"operator", "remove", ctl_operator_remove, true},
    {"vm", "create", ctl_vm_create, false},      {"vm", "start", ctl_vm_start, false},
    {"vm", "stop", ctl_vm_stop, false},          {"vm", "kill", ctl_vm_kill, false},
    {"vm", "delete", ctl_vm_delete, false},      {"vm", "pause", ctl_vm_pause, false},
    {"vm", "resume", ctl_vm_resume, false},      {"vm", "list", ctl_vm_list, false},
    {"vm", "show", ctl_vm_show, false},          {"vm", "console", ctl_vm_console, false},
    {"vm", "migrate", ctl_vm_migrate, false},
};

static const struct command *find(const struct ctl_options *o)
{
    for (size_t i = 0; i < FVM_ARRAY_SIZE(commands); i++)
        if (strcmp(commands[i].noun, o->words[0]) == 0 &&
            (!commands[i].verb || strcmp(commands[i].verb, o->words[1]) == 0))
            return &commands[i];
    return NULL; /* ctl_args.c lets only known ones through */
}

int main(int argc, char **argv)
{
    struct ctl ctl = {0};
    struct fvm_err err = {0};
    ctl_args_parse(argc, argv, &ctl.opt);
    signal(SIGPIPE, SIG_IGN);
    fvm_log_set_level(FVM_LOG_ERROR);
    const struct command *command = find(&ctl.opt);
    fvm_assert(command);
    int rc = 0;
    if (ctl.opt.dir)
        snprintf(ctl.dir_path, sizeof(ctl.dir_path), "%s", ctl.opt.dir);
    else
        rc = fvm_dir_default(ctl.dir_path, sizeof(ctl.dir_path), &err);
    if (!rc && !command->files_only)
        rc = ctl_open(&ctl, &err);
    if (!rc)
        rc = command->run(&ctl, &err);
    if (rc && !err.code)
        err.code = rc;
    int status = rc ? ctl_complain(&ctl, &err) : 0;
    ctl_close(&ctl);
    ctl_args_free(&ctl.opt);
    return status;
}
