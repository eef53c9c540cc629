/*
 * fvm_args.h - the command line of `fvm run` and of the commands that talk to a running VM.
 * Thread: main, before anything else. Test: tests/unit/fvm_args.c
 */
#ifndef FVM_CLUSTER_FVM_ARGS_H
#define FVM_CLUSTER_FVM_ARGS_H

#include "base/err.h"
#include "base/log.h"
#include "proto/vm_config.pb-c.h"

enum fvm_sandbox_mode { FVM_SANDBOX_ON, FVM_SANDBOX_OFF, FVM_SANDBOX_LOG };

struct fvm_run_options {
    Fvm__VmConfig *config;        /* owned */
    const char *incoming;         /* address to wait for a migration at, or NULL; borrowed from argv */
    const char *trace_file;       /* or NULL: stderr */
    unsigned trace;               /* FVM_TRACE_* */
    const char *gdb;              /* where a debugger may connect, or NULL; borrowed from argv */
    const char *restore;          /* snapshot to go on from, or NULL; borrowed from argv */
    const char *key_file;         /* for it, or NULL; borrowed from argv */
    char *vnc, *vnc_password_file; /* owned; NULL: none */
    bool stats, paused, single_block, single_insn;
    enum fvm_sandbox_mode sandbox;
    enum fvm_log_level log_level;
};

/**
 * Parse the arguments after "fvm run" (argv[0] is for messages). --help and --version print and exit(0), as argp does;
 * everything else returns. On failure err says which argument and what would be right.
 */
int fvm_args_parse_run(int argc, char **argv, struct fvm_run_options *ret, struct fvm_err *err);
/** The same after "fvm restore": ends and control only; ret->restore is set. */
int fvm_args_parse_restore(int argc, char **argv, struct fvm_run_options *ret, struct fvm_err *err);
void fvm_args_free(struct fvm_run_options *options);

struct fvm_client_options {
    const char *control; /* path; "unix:" taken off */
    bool json;
    int timeout_ms;
};
int fvm_args_parse_client(int argc, char **argv, const char *doc, struct fvm_client_options *ret, struct fvm_err *err);

#endif
