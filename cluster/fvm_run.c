/*
 * fvm_run.c - `fvm run`. See fvm_run.h for the order of things.
 *
 * Invariant: every way out of fvm_run_main passes `close_all`, so that sockets are unlinked and the terminal is as it
 * was.
 */
#include "cluster/fvm_run.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cluster/fvm_debugger.h"
#include "cluster/fvm_display.h"
#include "cluster/fvm_migrate.h"
#include "cluster/fvm_sandbox.h"
#include "cluster/fvm_snapshot.h"
#include "vmm/vm_unix.h"

int fvm_complain(const struct fvm_err *err)
{
    fvm_terminal_restore();
    fprintf(stderr, "fvm: %s\n", err->text[0] ? err->text : fvm_err_text(err->code));
    return fvm_err_exit_status(err->code);
}

void fvm_run_end(struct fvm_run *run, int status)
{
    if (run->ended)
        return;
    run->ended = true;
    run->status = status;
    fvm_loop_stop(run->loop, status);
}

/* ---- what the guest does ---- */

/* The report first, the line that says what happened last, where it is seen. */
static void on_crash(struct fvm_run *run, const char *why)
{
    fvm_terminal_restore();
    fvm_vm_dump(run->vm, stderr);
    fprintf(stderr, "fvm: the guest crashed: %s\n", why);
    fvm_run_end(run, fvm_err_exit_status(FVM_EGUEST));
}

static void on_event(void *ctx, enum fvm_vm_event event, unsigned code, const char *why)
{
    struct fvm_run *run = ctx;
    static const char *const names[] = {[FVM_VM_EVENT_POWER_OFF] = "power-off", [FVM_VM_EVENT_RESET] = "reset",
                                        [FVM_VM_EVENT_DEBUG_EXIT] = "debug-exit", [FVM_VM_EVENT_CRASHED] = "crashed",
                                        [FVM_VM_EVENT_DEBUG] = "debug-stop"};
    if (run->control) {
        json_t *data = json_object();
        if (event == FVM_VM_EVENT_DEBUG_EXIT)
            json_object_set_new(data, "code", json_integer(code));
        if (why)
            json_object_set_new(data, "why", json_string(why));
        fvm_control_event(run->control, names[event], data);
    }
    switch (event) {
    case FVM_VM_EVENT_DEBUG: fvm_debugger_stopped(run); break;
    case FVM_VM_EVENT_RESET: break;
    case FVM_VM_EVENT_POWER_OFF:
        fvm_debugger_ended(run, 0, 0);
        fvm_run_end(run, 0);
        break;
    case FVM_VM_EVENT_DEBUG_EXIT:
        fvm_debugger_ended(run, code & 0xff, 0);
        fvm_run_end(run, (int)(code & 0xff));
        break;
    case FVM_VM_EVENT_CRASHED:
        fvm_debugger_ended(run, 0, 11);
        on_crash(run, why ? why : "unknown");
        break;
    }
}

/* ---- what the user does ---- */

static size_t on_typed(void *ctx, uint8_t *bytes, size_t len)
{
    struct fvm_run *run = ctx;
    size_t done = 0, kept = 0;
    if (!run->terminal)
        return len;
    while (done < len) {
        enum fvm_terminal_key key;
        size_t used, n = fvm_terminal_filter(&run->escape, bytes + done, len - done, &used, &key);
        memmove(bytes + kept, bytes + done, n);
        kept += n;
        done += used;
        if (key == FVM_KEY_EXIT)
            fvm_run_end(run, 0);
        else if (key == FVM_KEY_HELP)
            fputs(fvm_terminal_help(), stderr);
        else if (key == FVM_KEY_DUMP)
            fvm_vm_dump(run->vm, stderr);
    }
    return kept;
}

struct signal_ctx {
    struct fvm_run *run;
    int signo;
};

static void on_signal(void *ctx)
{
    struct signal_ctx *s = ctx;
    fvm_log(INFO, "fvm.signal", "signal=%d", s->signo);
    fvm_run_end(s->run, 128 + s->signo);
}

static int watch_signals(struct fvm_run *run, struct signal_ctx ctx[4])
{
    static const int list[4] = {SIGINT, SIGTERM, SIGHUP, SIGQUIT};
    sigset_t later;
    sigemptyset(&later);
    sigaddset(&later, SIGALRM); /* for limit_ending; vCPU threads inherit the mask */
    pthread_sigmask(SIG_BLOCK, &later, NULL);
    signal(SIGPIPE, SIG_IGN);
    for (int i = 0; i < 4; i++) {
        struct sigaction old; /* nohup, or a shell's background job: what is ignored stays ignored */
        if (sigaction(list[i], NULL, &old) == 0 && old.sa_handler == SIG_IGN)
            continue;
        ctx[i] = (struct signal_ctx){.run = run, .signo = list[i]};
        int r = fvm_loop_signal_add(run->loop, list[i], on_signal, &ctx[i]);
        if (r)
            return r;
    }
    return 0;
}

/* ---- start ---- */

static int open_trace(struct fvm_run *run, struct fvm_err *err)
{
    const char *path = run->options.trace_file;
    if (!path)
        return 0;
    run->trace = fopen(path, "we");
    if (!run->trace)
        return fvm_err_set(err, fvm_err_from_errno(errno), errno, "run", "trace file %s: %s", path, strerror(errno));
    setvbuf(run->trace, NULL, _IOLBF, 65536);
    return 0;
}

int fvm_run_make_vm(struct fvm_run *run, const Fvm__VmConfig *config, struct fvm_err *err)
{
    const struct fvm_run_options *o = &run->options;
    const struct fvm_engine_config engine = {.single_block = o->single_block, .single_insn = o->single_insn,
                                             .trace = o->trace, .trace_file = run->trace};
    const struct fvm_vm_hooks hooks = {.event = on_event, .stdio_filter = on_typed, .ctx = run,
                                       .inactive = o->incoming != NULL};
    return fvm_vm_create(config, run->loop, &engine, &hooks, &run->vm, err);
}

static int make_control(struct fvm_run *run, struct fvm_err *err)
{
    const char *path = run->options.config->control;
    if (!path[0])
        return run->options.incoming
                   ? fvm_err_set(err, FVM_EINVAL, 0, "run", "--incoming needs --control: there it is told who comes")
                   : 0;
    int r = fvm_control_create(run->loop, path, &run->control, err);
    if (!r && (fvm_commands_register(run) || fvm_migrate_register(run) || fvm_display_register(run) ||
               fvm_run_snapshot_register(run)))
        r = fvm_err_set(err, FVM_EINTERNAL, 0, "run", "cannot register the commands");
    return r;
}

static int make_vm(struct fvm_run *run, struct fvm_err *err)
{
    int r = run->options.restore ? fvm_run_restore_open(run, err) : 0;
    const Fvm__VmConfig *c = run->options.config;
    if (r)
        return r;
    if (!strcmp(c->serial, "stdio") || !strcmp(c->console, "stdio")) {
        run->terminal = isatty(STDIN_FILENO);
        fvm_terminal_raw();
    }
    r = run->options.incoming ? 0 : fvm_run_make_vm(run, c, err);
    if (!r)
        r = make_control(run, err);
    if (!r)
        r = fvm_display_open(run, err);
    return r ? r : fvm_debugger_open(run, err);
}

static int start_vm(struct fvm_run *run, struct fvm_err *err)
{
    bool paused = run->options.paused;
    int r = fvm_sandbox_enter(run->options.sandbox, err);
    if (!r && run->options.restore) {
        bool was_paused = false;
        r = fvm_run_restore_load(run, &was_paused, err);
        paused |= was_paused;
    } else if (!r && !run->options.incoming) {
        r = fvm_vm_boot(run->vm, err);
    }
    if (!r && !run->options.incoming && !paused) {
        r = fvm_vm_run(run->vm);
        if (r)
            fvm_err_set(err, r, 0, "run", "the VM cannot run: %s", fvm_err_text(r));
    }
    return r;
}

/* ---- end ---- */

#define END_SECONDS 20

static char stuck_socket[FVM_UNIX_PATH_MAX]; /* for the handler: nothing else can tell it */

static void on_stuck(int signo)
{
    static const char text[] = "fvm: a processor does not stop; the process ends without waiting for it\n";
    (void)signo;
    fvm_terminal_restore();
    if (stuck_socket[0])
        unlink(stuck_socket);
    (void)!write(STDERR_FILENO, text, sizeof(text) - 1);
    _exit(fvm_err_exit_status(FVM_EINTERNAL));
}

/* SIGALRM is blocked in all threads but this, and here until now. */
static void limit_ending(const struct fvm_run *run)
{
    struct sigaction sa = {.sa_handler = on_stuck};
    sigset_t set;
    sigemptyset(&sa.sa_mask);
    sigemptyset(&set);
    sigaddset(&set, SIGALRM);
    if (run->options.config)
        snprintf(stuck_socket, sizeof(stuck_socket), "%s", run->options.config->control);
    sigaction(SIGALRM, &sa, NULL);
    pthread_sigmask(SIG_UNBLOCK, &set, NULL);
    alarm(END_SECONDS);
}

static void close_all(struct fvm_run *run)
{
    limit_ending(run);
    fvm_run_snapshot_close(run);
    fvm_migrate_close(run);
    fvm_debugger_close(run);
    fvm_display_close(run);
    if (run->control)
        fvm_control_flush(run->control, 200);
    if (run->vm && fvm_vm_get_state(run->vm) == FVM_VM_RUNNING)
        (void)fvm_vm_pause(run->vm);
    if (run->vm && run->options.stats) {
        fvm_terminal_restore();
        fvm_vm_stats(run->vm, stderr);
    }
    fvm_control_destroy(&run->control);
    fvm_vm_destroy(&run->vm);
    if (run->loop)
        fvm_loop_destroy(&run->loop);
    fvm_terminal_restore();
    if (run->trace)
        fclose(run->trace);
    fvm_args_free(&run->options);
    alarm(0);
}

int fvm_run_main(int argc, char **argv)
{
    struct fvm_run run = {0};
    struct fvm_err err = {0};
    struct signal_ctx signals[4];
    int r = strcmp(argv[0], "fvm restore") ? fvm_args_parse_run(argc, argv, &run.options, &err)
                                            : fvm_args_parse_restore(argc, argv, &run.options, &err);
    if (r)
        return fvm_complain(&err);
    fvm_log_set_level(run.options.log_level);
    r = fvm_loop_create(&run.loop);
    if (!r)
        r = watch_signals(&run, signals);
    if (r)
        fvm_err_set(&err, r, 0, "run", "cannot make the event loop: %s", fvm_err_text(r));
    if (!r && !(r = open_trace(&run, &err)) && !(r = make_vm(&run, &err)))
        r = start_vm(&run, &err);
    if (!r) {
        r = fvm_loop_run(run.loop);
        if (!run.ended && r < 0)
            fvm_err_set(&err, r, 0, "run", "the event loop failed: %s", fvm_err_text(r));
    }
    if (run.ended)
        r = 0;
    int status = run.ended ? run.status : 0;
    close_all(&run);
    return r ? fvm_complain(&err) : status;
}
