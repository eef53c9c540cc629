/*
 * fvm_commands.c - what a running `fvm` answers on its control socket: status, pause, resume, powerdown, quit, dump,
 * stats.
 *
 * Invariant: runs on the loop's thread; pause and dump give up the board lock by themselves (vmm/vm.h).
 */
#include <stdlib.h>
#include <unistd.h>

#include "cluster/fvm_migrate.h"
#include "cluster/fvm_run.h"

static const char *state_name(enum fvm_vm_state state)
{
    switch (state) {
    case FVM_VM_CREATED:
        return "created";
    case FVM_VM_PAUSED:
        return "paused";
    case FVM_VM_RUNNING:
        return "running";
    case FVM_VM_STOPPED:
        return "stopped";
    }
    return "unknown";
}

/* A destination whose guest has not come yet has nothing to be asked about. */
static bool refuse_empty(struct fvm_run *run, struct fvm_control_call *call)
{
    struct fvm_err err = {0};
    if (run->vm)
        return false;
    fvm_err_set(&err, FVM_ESTATE, 0, "vm", "this process waits for a guest");
    fvm_control_fail(call, &err);
    return true;
}

static json_t *status_json(const struct fvm_run *run)
{
    if (!run->vm)
        return json_pack("{s:s, s:s, s:i, s:s}", "name", run->options.config->name, "state", "incoming", "pid",
                         (int)getpid(), "version", FVM_VERSION);
    const Fvm__VmConfig *c = fvm_vm_config(run->vm);
    struct fvm_ram *ram = fvm_vm_ram(run->vm);
    char id[33] = "";
    for (size_t i = 0; i < c->id.len && i < 16; i++)
        snprintf(id + 2 * i, 3, "%02x", c->id.data[i]);
    return json_pack("{s:s, s:s, s:s, s:i, s:s, s:I, s:I, s:i, s:s, s:i, s:I, s:I, s:i, s:i}", "name", c->name, "id",
                     id, "state", run->options.incoming ? "incoming" : state_name(fvm_vm_get_state(run->vm)), "pid",
                     (int)getpid(), "version", FVM_VERSION, "memory_bytes", (json_int_t)c->memory_bytes,
                     "resident_bytes", (json_int_t)fvm_ram_resident_bytes(ram), "cpus", (int)c->cpus, "cpu_model",
                     c->cpu_model, "tsc_khz", (int)c->tsc_khz, "guest_ns",
                     (json_int_t)fvm_clock_ns(fvm_vm_clock(run->vm)), "cpu_ns", (json_int_t)fvm_vm_cpu_ns(run->vm),
                     "disks", (int)c->n_disks, "nets", (int)c->n_nets);
}

static void command_status(void *ctx, struct fvm_control_call *call, const json_t *request)
{
    (void)request;
    fvm_control_reply(call, status_json(ctx));
}

static void answer(struct fvm_run *run, struct fvm_control_call *call, int r, const char *what)
{
    if (!r) {
        fvm_control_reply(call, json_pack("{s:s}", "state", state_name(fvm_vm_get_state(run->vm))));
        return;
    }
    struct fvm_err err = {0};
    fvm_err_set(&err, r, 0, "vm", "a VM that is %s cannot be %s", state_name(fvm_vm_get_state(run->vm)), what);
    fvm_control_fail(call, &err);
}

static void command_pause(void *ctx, struct fvm_control_call *call, const json_t *request)
{
    struct fvm_run *run = ctx;
    (void)request;
    if (refuse_empty(run, call))
        return;
    int r = fvm_vm_pause(run->vm);
    if (!r)
        fvm_control_event(run->control, "paused", NULL);
    answer(run, call, r, "paused");
}

static void command_resume(void *ctx, struct fvm_control_call *call, const json_t *request)
{
    struct fvm_run *run = ctx;
    (void)request;
    struct fvm_err err = {0};
    if (refuse_empty(run, call))
        return;
    if (fvm_migrate_may_run(run, &err)) {
        fvm_control_fail(call, &err);
        return;
    }
    /* The destination of a migration has no guest yet: it must not start an empty machine. */
    int r = run->options.incoming && fvm_vm_get_state(run->vm) == FVM_VM_CREATED ? FVM_ESTATE : fvm_vm_run(run->vm);
    if (!r)
        fvm_control_event(run->control, "running", NULL);
    answer(run, call, r, "run");
}

static void command_powerdown(void *ctx, struct fvm_control_call *call, const json_t *request)
{
    struct fvm_run *run = ctx;
    (void)request;
    if (!refuse_empty(run, call))
        answer(run, call, fvm_vm_power_button(run->vm), "asked to power off");
}

static void command_quit(void *ctx, struct fvm_control_call *call, const json_t *request)
{
    struct fvm_run *run = ctx;
    (void)request;
    fvm_control_reply(call, json_pack("{s:s}", "state", "stopped"));
    fvm_run_end(run, 0);
}

/* What `write` prints, as {"text": ...}. */
static void reply_text(struct fvm_run *run, struct fvm_control_call *call,
                       void (*write)(struct fvm_run *run, FILE *out))
{
    char *text = NULL;
    size_t len = 0;
    FILE *out = open_memstream(&text, &len);
    if (out) {
        write(run, out);
        fclose(out);
    }
    json_t *string = text ? json_stringn(text, len) : NULL;
    if (string) {
        fvm_control_reply(call, json_pack("{s:o}", "text", string));
    } else {
        const struct fvm_err err = {.code = FVM_ENOMEM, .text = "out of memory"};
        fvm_control_fail(call, &err);
    }
    free(text);
}

static void write_dump(struct fvm_run *run, FILE *out) { fvm_vm_dump(run->vm, out); }

static void write_stats(struct fvm_run *run, FILE *out) { fvm_vm_stats(run->vm, out); }

static void command_dump(void *ctx, struct fvm_control_call *call, const json_t *request)
{
    (void)request;
    if (!refuse_empty(ctx, call))
        reply_text(ctx, call, write_dump);
}

static void command_stats(void *ctx, struct fvm_control_call *call, const json_t *request)
{
    (void)request;
    if (!refuse_empty(ctx, call))
        reply_text(ctx, call, write_stats);
}

int fvm_commands_register(struct fvm_run *run)
{
    static const struct {
        const char *name, *help;
        fvm_control_fn fn;
    } list[] = {
        {"status", "name, state, sizes, times", command_status},
        {"pause", "stop the guest; its clock stands still", command_pause},
        {"resume", "let the guest go on", command_resume},
        {"powerdown", "press the power button: the guest may shut down", command_powerdown},
        {"quit", "end the VM at once, as pulling the plug", command_quit},
        {"dump", "the processors' registers, as text", command_dump},
        {"stats", "counters, as text", command_stats},
    };
    int r = 0;
    for (size_t i = 0; !r && i < FVM_ARRAY_SIZE(list); i++)
        r = fvm_control_register(run->control, list[i].name, list[i].help, list[i].fn, run);
    return r;
}
