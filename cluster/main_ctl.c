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
    int (*run)(struct fvm_ctl *ctl, struct fvm_err *err);
    unsigned how;
};

enum {
    FILES_ONLY = 1, /* needs no key and no node */
    SIGNALS = 2,    /* takes SIGINT and its like from a descriptor */
};

static const struct command commands[] = {
    {"init", NULL, fvm_ctl_cluster_init, FILES_ONLY},
    {"node", "add", fvm_ctl_node_add, FILES_ONLY},
    {"node", "remove", fvm_ctl_node_remove, FILES_ONLY},
    {"node", "list", fvm_ctl_node_list, 0},
    {"operator", "add", fvm_ctl_operator_add, FILES_ONLY},
    {"operator", "remove", fvm_ctl_operator_remove, FILES_ONLY},
    {"vm", "create", fvm_ctl_vm_create, 0},
    {"vm", "start", fvm_ctl_vm_start, 0},
    {"vm", "stop", fvm_ctl_vm_stop, 0},
    {"vm", "kill", fvm_ctl_vm_kill, 0},
    {"vm", "delete", fvm_ctl_vm_delete, 0},
    {"vm", "pause", fvm_ctl_vm_pause, 0},
    {"vm", "resume", fvm_ctl_vm_resume, 0},
    {"vm", "list", fvm_ctl_vm_list, 0},
    {"vm", "show", fvm_ctl_vm_show, 0},
    {"vm", "console", fvm_ctl_vm_console, SIGNALS},
    {"vm", "migrate", fvm_ctl_vm_migrate, SIGNALS},
    {"vm", "explain", fvm_ctl_vm_explain, 0},
    {"vm", "recover", fvm_ctl_vm_recover, 0},
};

static const struct command *find(const struct fvm_ctl_options *o)
{
    for (size_t i = 0; i < FVM_ARRAY_SIZE(commands); i++)
        if (strcmp(commands[i].noun, o->words[0]) == 0 &&
            (!commands[i].verb || strcmp(commands[i].verb, o->words[1]) == 0))
            return &commands[i];
    return NULL; /* ctl_args.c lets only known ones through */
}

/* Before the first thread is made: a thread that does not block them would swallow them. */
static void block_signals(void)
{
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGINT);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGHUP);
    sigprocmask(SIG_BLOCK, &set, NULL);
}

int main(int argc, char **argv)
{
    struct fvm_ctl ctl = {0};
    struct fvm_err err = {0};
    fvm_ctl_args_parse(argc, argv, &ctl.opt);
    signal(SIGPIPE, SIG_IGN);
    fvm_log_set_level(FVM_LOG_ERROR);
    const struct command *command = find(&ctl.opt);
    fvm_assert(command);
    if (command->how & SIGNALS)
        block_signals();
    int rc = 0;
    if (ctl.opt.dir)
        snprintf(ctl.dir_path, sizeof(ctl.dir_path), "%s", ctl.opt.dir);
    else
        rc = fvm_dir_default(ctl.dir_path, sizeof(ctl.dir_path), &err);
    if (!rc && !(command->how & FILES_ONLY))
        rc = fvm_ctl_open(&ctl, &err);
    if (!rc)
        rc = command->run(&ctl, &err);
    if (rc && !err.code)
        err.code = rc;
    int status = rc ? fvm_ctl_complain(&ctl, &err) : 0;
    fvm_ctl_close(&ctl);
    fvm_ctl_args_free(&ctl.opt);
    return status;
}
