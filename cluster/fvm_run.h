/*
 * fvm_run.h - `fvm run`: one process, one VM, one loop.
 *
 * Order: arguments -> loop and signals -> VM (files opened, sockets bound) -> control socket -> sandbox -> boot or
 * incoming -> run. Taken apart in reverse; nothing stays behind.
 */
#ifndef FVM_CLUSTER_FVM_RUN_H
#define FVM_CLUSTER_FVM_RUN_H

#include "cluster/fvm_args.h"
#include "cluster/fvm_control.h"
#include "cluster/fvm_terminal.h"
#include "vmm/vm.h"

struct fvm_run_migration;
struct fvm_run_display;
struct fvm_run_snapshot;
struct fvm_gdb;

struct fvm_run { /* main thread */
    struct fvm_run_options options;
    struct fvm_loop *loop;
    struct fvm_vm *vm;           /* NULL: --incoming, and no guest has come */
    struct fvm_control *control; /* NULL: no --control */
    struct fvm_run_migration *migration; /* fvm_migrate.c; NULL: never asked for */
    struct fvm_run_display *display; /* fvm_display.c; NULL: never asked for */
    struct fvm_run_snapshot *snapshot; /* fvm_snapshot.c; NULL: never asked for */
    struct fvm_gdb *gdb;         /* NULL: no --gdb */
    FILE *trace;                 /* owned, or NULL */
    struct fvm_terminal_escape escape;
    bool terminal;               /* stdin is a terminal and the guest's */
    int status;                  /* of the process, once `ended` */
    bool ended;
};

/** argv[0] = "fvm run" or "fvm restore". Returns the process' exit status, after one line on stderr if something failed. */
int fvm_run_main(int argc, char **argv);
/** The VM's life is over: the loop ends and the process with `status`. */
void fvm_run_end(struct fvm_run *run, int status);
/** Makes run->vm of `config`; with --incoming inactive: it opens no disk for writing yet. Loop's thread. */
int fvm_run_make_vm(struct fvm_run *run, const Fvm__VmConfig *config, struct fvm_err *err);
/** status, pause, resume, quit, dump, stats (fvm_commands.c). */
int fvm_commands_register(struct fvm_run *run);
/** "fvm: text" on stderr; returns the exit status that belongs to err->code. */
int fvm_complain(const struct fvm_err *err);
/** `fvm status` and its sisters (fvm_client.c): argv[0] = "fvm", argv[1] = the command. -1: no such command. */
int fvm_client_main(int argc, char **argv);
void fvm_client_list(FILE *out);

#endif
