/*
 * node_vm.c - the VMs whose process is on this node, from start or adoption to the end of the process.
 *
 *      start/adopt -> STARTING -> (control socket answers) -> UP -> STOPPING -> process ends -> struct freed
 *      incoming    -> INCOMING -> (record says it is ours) -> UP
 *
 * Invariant: a struct fvm_node_vm exists exactly as long as its process (and keeper). Everything that waits for it -
 * calls, console, migration - is told when it ends.
 */
#include <dirent.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "base/log.h"
#include "cluster/journal.h"
#include "cluster/node_arrival.h"
#include "cluster/vmrecord.h"
#include "vmm/vm_config.h"

struct fvm_node_vm *fvm_node_vm_find(struct fvm_node *node, const char *name)
{
    for (struct fvm_node_vm *vm = node->vms; vm; vm = vm->next)
        if (strcmp(vm->name, name) == 0)
            return vm;
    return NULL;
}

void fvm_node_vm_path(const struct fvm_node_vm *vm, const char *file, char *buf, size_t size)
{
    snprintf(buf, size, "%.4000s/%s", vm->dir, file);
}

void fvm_node_vm_note(const struct fvm_node_vm *vm, const char *what, json_t *more)
{
    char path[4200];
    struct fvm_journal *journal = NULL;
    fvm_node_vm_path(vm, "journal", path, sizeof(path));
    if (fvm_journal_open(path, "node", &journal)) {
        json_decref(more);
        return;
    }
    fvm_journal_note(journal, what, more);
    fvm_journal_close(&journal);
}

/* "paused" is said of the source of this very migration alone: its journal names the migration it began last. */
enum fvm_ho_holding fvm_node_vm_holding(struct fvm_node *node, const char *name, const struct fvm_ho_record *r)
{
    const struct fvm_node_vm *vm = fvm_node_vm_find(node, name);
    struct fvm_journal_view view;
    char path[4200];
    if (!vm)
        return FVM_HO_HOLDS_NOTHING;
    if (vm->state == FVM_NODE_VM_INCOMING)
        return FVM_HO_HOLDS_IMAGE;
    if (vm->state != FVM_NODE_VM_UP || !vm->control)
        return FVM_HO_HOLDS_UNKNOWN;
    if (strcmp(vm->live, "running") == 0)
        return FVM_HO_HOLDS_RUNNING;
    if (strcmp(vm->live, "paused"))
        return FVM_HO_HOLDS_UNKNOWN;
    if (r->phase == FVM_HO_STABLE)
        return FVM_HO_HOLDS_PAUSED;
    fvm_node_vm_path(vm, "journal", path, sizeof(path));
    fvm_journal_read(path, &view);
    bool this = view.has_mig_id && memcmp(view.mig_id, r->mig_id, FVM_HO_ID_BYTES) == 0;
    return this && strcmp(r->from, node->name) == 0 ? FVM_HO_HOLDS_PAUSED : FVM_HO_HOLDS_UNKNOWN;
}

bool fvm_node_vm_owned(struct fvm_node *node, const char *name)
{
    struct fvm_ho_record r;
    return fvm_vmrecord_get(node->store, name, &r, NULL, NULL) == 0 && strcmp(r.owner, node->name) == 0;
}

void fvm_node_vm_publish(struct fvm_node_vm *vm, const char *state, const char *reason, int exit_status)
{
    struct fvm_err err = {0};
    struct fvm_node *node = vm->node;
    fvm_log(INFO, "vm.state", "vm=%s state=%s reason=\"%s\"", vm->name, state, reason);
    if (fvm_node_vm_owned(node, vm->name) &&
        fvm_vmdb_status_set(node->store, vm->name, node->name, state, reason, exit_status, &err))
        fvm_log(WARN, "vm.status_unwritten", "vm=%s why=\"%s\"", vm->name, err.text);
}

const char *fvm_node_vm_state_text(const struct fvm_node_vm *vm)
{
    switch (vm->state) {
    case FVM_NODE_VM_STARTING:
        return "starting";
    case FVM_NODE_VM_INCOMING:
        return "incoming";
    case FVM_NODE_VM_STOPPING:
        return "stopping";
    case FVM_NODE_VM_STOPPED:
        return "stopped";
    case FVM_NODE_VM_UP:
        break;
    }
    return vm->leaving || vm->moving ? "migrating" : vm->live[0] ? vm->live : "unknown";
}

void fvm_node_vm_set_live(struct fvm_node_vm *vm, const char *state)
{
    if (strcmp(vm->live, state) == 0)
        return;
    snprintf(vm->live, sizeof(vm->live), "%s", state);
    if (vm->state == FVM_NODE_VM_UP)
        fvm_node_vm_publish(vm, vm->live, "", 0);
}

/* ---- the end ---- */

static void describe_end(const struct fvm_node_vm *vm, const struct fvm_node_proc_end *end, const char **ret_state,
                         char *text, size_t size, int *ret_exit)
{
    char words[300];
    *ret_state = "stopped";
    *ret_exit = end->how == FVM_NODE_PROC_SIGNAL ? -end->value : end->value;
    fvm_node_proc_last_words(vm->dir, words, sizeof(words));
    if (vm->killed)
        snprintf(text, size, "%s", vm->how[0] ? vm->how : "killed on demand");
    else if (end->how == FVM_NODE_PROC_EXIT && end->value == 0)
        snprintf(text, size, "%s", vm->how[0] ? vm->how : vm->ending[0] ? vm->ending : "ended with status 0");
    else if (end->how == FVM_NODE_PROC_UNKNOWN)
        snprintf(text, size, "ended while nobody watched (the machine went down, or its keeper was killed)");
    else if (end->how == FVM_NODE_PROC_SIGNAL)
        snprintf(text, size, "its process died by signal %d (%s)%s%s", end->value, strsignal(end->value),
                 words[0] ? ": " : "", words);
    else
        snprintf(text, size, "ended with status %d%s%s", end->value, vm->ending[0] || words[0] ? ": " : "",
                 vm->ending[0] ? vm->ending : words);
    bool debug_exit = end->how == FVM_NODE_PROC_EXIT && strstr(vm->ending, "debug-exit");
    if (!vm->killed && !debug_exit && (end->how != FVM_NODE_PROC_EXIT || end->value))
        *ret_state = "crashed";
}

static void drop_connections(struct fvm_node_vm *vm, const char *moved_to)
{
    fvm_node_console_stop(vm, moved_to);
    if (vm->control)
        fvm_node_control_close(&vm->control);
    if (vm->timer)
        fvm_loop_timer_remove(&vm->timer);
}

static void free_vm(struct fvm_node_vm *vm)
{
    for (struct fvm_node_vm **p = &vm->node->vms; *p; p = &(*p)->next)
        if (*p == vm) {
            *p = vm->next;
            break;
        }
    drop_connections(vm, NULL);
    fvm_node_move_free(vm);
    fvm_node_incoming_free(vm);
    if (vm->queued)
        vm->queued->call = NULL; /* ended with the daemon's other calls */
    fvm_node_incoming_next(vm->queued);
    if (vm->proc)
        fvm_node_proc_destroy(&vm->proc);
    fvm_config_free(&vm->config);
    free(vm);
}

static void end_calls(struct fvm_node_vm *vm, const char *state, const char *reason)
{
    struct fvm_node_call *starter = vm->starter, *stopper = vm->stopper;
    vm->starter = vm->stopper = NULL;
    if (starter) {
        struct fvm_err err = {0};
        fvm_err_set(&err, FVM_EIO, 0, "cluster", "VM %s did not start: %s", vm->name, reason);
        fvm_node_call_fail(starter, &err);
    }
    if (stopper)
        fvm_node_call_text(stopper, "VM %s is %s: %s", vm->name, state, reason);
}

static void on_ended(void *ctx, const struct fvm_node_proc_end *end)
{
    struct fvm_node_vm *vm = ctx;
    const char *state;
    char reason[512], dest[FVM_DIR_NAME_MAX + 1] = "";
    int exit_status;
    struct fvm_ho_record r;
    describe_end(vm, end, &state, reason, sizeof(reason), &exit_status);
    if (fvm_vmrecord_get(vm->node->store, vm->name, &r, NULL, NULL) == 0 && strcmp(r.owner, vm->node->name) &&
        r.phase == FVM_HO_STABLE)
        snprintf(dest, sizeof(dest), "%s", r.owner);
    drop_connections(vm, dest);
    vm->state = FVM_NODE_VM_STOPPED;
    fvm_node_migrate_ended(vm, end);
    if (dest[0])
        fvm_log(INFO, "vm.left", "vm=%s for=%s", vm->name, dest);
    else
        fvm_node_vm_publish(vm, state, reason, exit_status);
    end_calls(vm, state, reason);
    struct fvm_node_queued *queued = vm->queued;
    vm->queued = NULL;
    free_vm(vm);
    fvm_node_incoming_next(queued);
}

/* ---- the control socket ---- */

static void on_event(void *ctx, json_t *event)
{
    struct fvm_node_vm *vm = ctx;
    const char *name = json_string_value(json_object_get(event, "event"));
    const char *why = json_string_value(json_object_get(event, "why"));
    if (!name)
        return;
    if (strcmp(name, "power-off") == 0)
        snprintf(vm->ending, sizeof(vm->ending), "the guest powered off");
    else if (strcmp(name, "debug-exit") == 0)
        snprintf(vm->ending, sizeof(vm->ending), "the guest ended by debug-exit, code %d",
                 (int)json_integer_value(json_object_get(event, "code")));
    else if (strcmp(name, "crashed") == 0)
        snprintf(vm->ending, sizeof(vm->ending), "the guest crashed: %s", why ? why : "unknown");
    else if (strcmp(name, "paused") == 0 || strcmp(name, "running") == 0)
        fvm_node_vm_set_live(vm, name);
    else if (strcmp(name, "migration") == 0)
        vm->moving = !vm->leaving;
    else if (strcmp(name, "migration-done") == 0)
        vm->moving = false;
    fvm_node_migrate_event(vm, event);
    if (vm->state == FVM_NODE_VM_INCOMING && strcmp(name, "running") == 0)
        fvm_node_vm_check_arrival(vm);
}

static void arm(struct fvm_node_vm *vm, unsigned ms) { fvm_loop_timer_arm(vm->timer, fvm_now_ns() + ms * 1000000ull); }

static void on_closed(void *ctx, const char *why)
{
    struct fvm_node_vm *vm = ctx;
    fvm_log(DEBUG, "vm.control_closed", "vm=%s why=\"%s\"", vm->name, why);
    fvm_node_control_close(&vm->control);
    vm->asking = false;
    if (vm->state == FVM_NODE_VM_INCOMING)
        arm(vm, 100);
    if (vm->state == FVM_NODE_VM_UP) { /* it ends, or it dropped us: try again until it has ended */
        snprintf(vm->live, sizeof(vm->live), "unknown");
        vm->deadline_ns = 0;
        arm(vm, 200);
    }
}

/* No answer is an answer, too: from now on we do not know how it is. */
static void status_unknown(struct fvm_node_vm *vm, const struct fvm_err *err)
{
    if (err->code == FVM_ECLOSED || vm->state != FVM_NODE_VM_UP || vm->unknown_wall_ns)
        return;
    char reason[120], since[40];
    vm->unknown_wall_ns = fvm_wall_ns();
    time_t seconds = (time_t)(vm->unknown_wall_ns / 1000000000);
    struct tm tm;
    strftime(since, sizeof(since), "%H:%M:%S", localtime_r(&seconds, &tm));
    snprintf(vm->live, sizeof(vm->live), "unknown");
    snprintf(reason, sizeof(reason), "its control socket does not answer since %s", since);
    fvm_node_vm_publish(vm, "unknown", reason, 0);
}

static void on_status(void *ctx, json_t *result, const struct fvm_err *err)
{
    struct fvm_node_vm *vm = ctx;
    const char *state = json_string_value(json_object_get(result, "state"));
    vm->asking = false;
    if (err->code || !state) {
        status_unknown(vm, err);
        return;
    }
    vm->unknown_wall_ns = 0;
    if (vm->state == FVM_NODE_VM_STARTING) {
        vm->state = FVM_NODE_VM_UP;
        vm->live[0] = 0;
    }
    fvm_node_vm_set_live(vm, state);
    if (vm->starter) {
        struct fvm_node_call *call = vm->starter;
        vm->starter = NULL;
        fvm_node_call_text(call, "VM %s is %s on node %s, pid %d", vm->name, vm->live, vm->node->name,
                           fvm_node_proc_pid(vm->proc));
    }
}

/* After our own restart: is it in the middle of a migration? What comes later comes as an event. */
static void on_moving(void *ctx, json_t *result, const struct fvm_err *err)
{
    struct fvm_node_vm *vm = ctx;
    const char *phase = json_string_value(json_object_get(result, "phase"));
    vm->moving = !err->code && !vm->leaving && phase && strcmp(phase, "none") && !json_object_get(result, "outcome");
}

static void try_connect(struct fvm_node_vm *vm)
{
    char path[4200];
    struct fvm_err err = {0};
    struct fvm_node_control_hooks hooks = {.event = on_event, .closed = on_closed, .ctx = vm};
    fvm_node_vm_path(vm, "control", path, sizeof(path));
    if (fvm_node_control_open(vm->node->loop, path, &hooks, &vm->control, &err) == 0) {
        if (vm->state == FVM_NODE_VM_INCOMING) {
            fvm_node_incoming_connected(vm);
            return;
        }
        fvm_node_console_start(vm);
        (void)fvm_node_control_call(vm->control, json_pack("{s:s}", "cmd", "migrate-status"), FVM_NODE_ASK_MS, on_moving,
                                    vm);
        if (fvm_node_control_call(vm->control, json_pack("{s:s}", "cmd", "status"), FVM_NODE_ASK_MS, on_status, vm) ==
            0)
            return;
        fvm_node_control_close(&vm->control);
    }
    if (vm->deadline_ns && fvm_now_ns() > vm->deadline_ns) {
        fvm_log(ERROR, "vm.no_control", "vm=%s why=\"%s\" does=kill", vm->name, err.text);
        snprintf(vm->how, sizeof(vm->how), "gave no answer on its control socket for %d s after its start",
                 FVM_NODE_START_MS / 1000);
        vm->killed = true;
        fvm_node_proc_kill(vm->proc, SIGKILL);
        return;
    }
    arm(vm, vm->deadline_ns ? 20 : 500);
}

static void on_timer(void *ctx)
{
    struct fvm_node_vm *vm = ctx;
    if (vm->state == FVM_NODE_VM_STOPPING) {
        snprintf(vm->how, sizeof(vm->how), "it did not power off in time and was killed");
        vm->killed = true;
        fvm_node_proc_kill(vm->proc, SIGKILL);
    } else if (!vm->control) {
        try_connect(vm);
    }
}

void fvm_node_vm_arrived(struct fvm_node_vm *vm)
{
    if (vm->state != FVM_NODE_VM_INCOMING)
        return;
    vm->state = FVM_NODE_VM_UP;
    vm->deadline_ns = 0;
    fvm_node_vm_note(vm, "arrived", NULL);
    fvm_node_incoming_free(vm);
    fvm_node_console_start(vm);
    fvm_node_vm_set_live(vm, "running");
    vm->asked_ns = 0;
    if (!vm->control)
        arm(vm, 1);
}

void fvm_node_vm_check_arrival(struct fvm_node_vm *vm)
{
    struct fvm_ho_record r;
    if (vm->state == FVM_NODE_VM_INCOMING && fvm_vmrecord_get(vm->node->store, vm->name, &r, NULL, NULL) == 0 &&
        r.phase == FVM_HO_STABLE && strcmp(r.owner, vm->node->name) == 0)
        fvm_node_vm_arrived(vm);
}

void fvm_node_vm_tick(struct fvm_node *node)
{
    uint64_t now = fvm_now_ns();
    for (struct fvm_node_vm *vm = node->vms; vm; vm = vm->next) {
        if (vm->state != FVM_NODE_VM_UP || !vm->control || vm->asking ||
            now - vm->asked_ns < FVM_NODE_ASK_MS * 1000000ull)
            continue;
        vm->asked_ns = now;
        vm->asking = fvm_node_control_call(vm->control, json_pack("{s:s}", "cmd", "status"), FVM_NODE_ASK_MS, on_status,
                                           vm) == 0;
    }
}

/* ---- start ---- */

static struct fvm_node_vm *make(struct fvm_node *node, const char *name, const Fvm__VmConfig *config)
{
    struct fvm_node_vm *vm = calloc(1, sizeof(*vm));
    if (!vm)
        return NULL;
    vm->node = node;
    snprintf(vm->name, sizeof(vm->name), "%s", name);
    snprintf(vm->dir, sizeof(vm->dir), "%.3900s/vms/%s", node->state_dir, name);
    vm->config = fvm_config_copy(config);
    if (!vm->config || fvm_loop_timer_add(node->loop, on_timer, vm, &vm->timer)) {
        fvm_config_free(&vm->config);
        free(vm);
        return NULL;
    }
    vm->next = node->vms;
    node->vms = vm;
    return vm;
}

/* The last run's log stays as log.1: it may say why there is another run. */
static int prepare_dir(struct fvm_node_vm *vm, struct fvm_err *err)
{
    char path[4200], old[4200];
    int rc = fvm_dir_make(vm->dir, 0700, err);
    if (rc)
        return rc;
    fvm_node_vm_path(vm, "console.log", path, sizeof(path)); /* the longest socket name is shorter */
    if (strlen(path) >= sizeof(((struct sockaddr_un *)0)->sun_path))
        return fvm_err_set(err, FVM_EINVAL, 0, "cluster",
                           "%s: too long for socket names: start fvm-node with a shorter --state", vm->dir);
    fvm_node_vm_path(vm, "log", path, sizeof(path));
    fvm_node_vm_path(vm, "log.1", old, sizeof(old));
    (void)rename(path, old);
    size_t len = fvm__vm_config__get_packed_size(vm->config);
    uint8_t *data = malloc(len + 1);
    if (!data)
        return fvm_err_set(err, FVM_ENOMEM, 0, "cluster", "out of memory");
    fvm__vm_config__pack(vm->config, data);
    fvm_node_vm_path(vm, "config", path, sizeof(path));
    rc = fvm_dir_write_file(path, data, len, 0600, err);
    free(data);
    return rc;
}

void fvm_node_vm_remove_dir(struct fvm_node *node, const char *name)
{
    static const char *const files[] = {"journal",     "journal.1",     "config", "log",     "log.1",
                                        "console.log", "console.log.1", "exit",   "control", "console"};
    char dir[4200], path[4400];
    if (fvm_node_vm_find(node, name) || fvm_dir_check_name("VM", name, NULL))
        return;
    snprintf(dir, sizeof(dir), "%.3900s/vms/%s", node->state_dir, name);
    for (size_t i = 0; i < FVM_ARRAY_SIZE(files); i++) {
        snprintf(path, sizeof(path), "%s/%s", dir, files[i]);
        (void)unlink(path);
    }
    (void)rmdir(dir);
}

int fvm_node_vm_start(struct fvm_node *node, const char *name, const Fvm__VmConfig *config,
                      struct fvm_node_arrival *incoming, struct fvm_node_vm **ret_vm, struct fvm_err *err)
{
    unsigned count = 0;
    for (struct fvm_node_vm *v = node->vms; v; v = v->next)
        count++;
    if (fvm_node_vm_find(node, name))
        return fvm_err_set(err, FVM_ESTATE, 0, "cluster", "VM %s has a process on node %s already", name, node->name);
    if (count >= FVM_NODE_VMS_MAX)
        return fvm_err_set(err, FVM_EBUSY, 0, "cluster", "node %s runs %u VMs already", node->name, count);
    struct fvm_node_vm *vm = make(node, name, config);
    if (!vm)
        return fvm_err_set(err, FVM_ENOMEM, 0, "cluster", "out of memory");
    char **argv = NULL;
    vm->state = incoming ? FVM_NODE_VM_INCOMING : FVM_NODE_VM_STARTING;
    int rc = prepare_dir(vm, err);
    if (!rc)
        rc = fvm_node_args_make(vm, incoming, &argv, err);
    if (!rc)
        fvm_node_vm_note(
            vm, "start",
            json_pack("{s:s, s:s}", "role", incoming ? "incoming" : "run", "peer", incoming ? incoming->from : ""));
    if (!rc)
        rc = fvm_node_proc_spawn(node->loop, vm->dir, argv, on_ended, vm, &vm->proc, err);
    fvm_node_args_free(argv);
    if (rc) {
        free_vm(vm);
        return rc;
    }
    vm->coming = incoming;
    vm->deadline_ns = fvm_now_ns() + FVM_NODE_START_MS * 1000000ull;
    arm(vm, 5);
    fvm_log(INFO, "vm.started", "vm=%s pid=%d%s%s", name, fvm_node_proc_pid(vm->proc),
            incoming ? " incoming_from=" : "", incoming ? incoming->from : "");
    *ret_vm = vm;
    return 0;
}

/* ---- stop ---- */

static void on_quit(void *ctx, json_t *result, const struct fvm_err *err)
{
    struct fvm_node_vm *vm = ctx;
    (void)result;
    if (err->code && vm->state == FVM_NODE_VM_STOPPING && err->code != FVM_ECLOSED)
        fvm_node_proc_kill(vm->proc, SIGTERM);
}

static void on_powerdown(void *ctx, json_t *result, const struct fvm_err *err)
{
    struct fvm_node_vm *vm = ctx;
    (void)result;
    if (vm->state != FVM_NODE_VM_STOPPING || err->code == FVM_ECLOSED)
        return;
    if (!err->code) {
        snprintf(vm->how, sizeof(vm->how), "powered off by its power button");
        return;
    }
    snprintf(vm->how, sizeof(vm->how), "switched off at once (this machine has no power button to press)");
    if (!vm->control ||
        fvm_node_control_call(vm->control, json_pack("{s:s}", "cmd", "quit"), FVM_NODE_ASK_MS, on_quit, vm))
        fvm_node_proc_kill(vm->proc, SIGTERM);
}

void fvm_node_vm_stop(struct fvm_node_vm *vm, unsigned timeout_ms, bool kill_it)
{
    vm->state = FVM_NODE_VM_STOPPING;
    if (kill_it) {
        snprintf(vm->how, sizeof(vm->how), "killed on demand");
        vm->killed = true;
        fvm_node_proc_kill(vm->proc, SIGKILL);
        return;
    }
    if (!vm->control ||
        fvm_node_control_call(vm->control, json_pack("{s:s}", "cmd", "powerdown"), FVM_NODE_ASK_MS, on_powerdown, vm)) {
        snprintf(vm->how, sizeof(vm->how), "its control socket does not answer, its process was told to end");
        fvm_node_proc_kill(vm->proc, SIGTERM);
    }
    arm(vm, timeout_ms);
}

/* ---- after the daemon's own restart ---- */

static Fvm__VmConfig *read_config(struct fvm_node *node, const char *dir)
{
    char path[4200], *data = NULL;
    size_t len = 0;
    (void)node;
    snprintf(path, sizeof(path), "%.4000s/config", dir);
    if (fvm_dir_read_file(path, 1 << 20, &data, &len, NULL))
        return NULL;
    Fvm__VmConfig *config = fvm__vm_config__unpack(NULL, len, (uint8_t *)data);
    free(data);
    return config;
}

static void adopt(struct fvm_node *node, const char *name)
{
    char dir[4200];
    struct fvm_node_proc_end end = {0};
    struct fvm_err err = {0};
    snprintf(dir, sizeof(dir), "%.3900s/vms/%s", node->state_dir, name);
    Fvm__VmConfig *config = read_config(node, dir);
    struct fvm_node_vm *vm = config ? make(node, name, config) : NULL;
    if (config)
        fvm__vm_config__free_unpacked(config, NULL);
    if (!vm)
        return; /* never started here */
    int rc = fvm_node_proc_adopt(node->loop, vm->dir, on_ended, vm, &vm->proc, &end, &err);
    if (rc) {
        struct fvm_vmdb_vm known = {0};
        bool mine = fvm_node_vm_owned(node, name) && fvm_vmdb_get(node->store, name, &known, NULL) == 0;
        const char *was = known.status ? known.status->state : "";
        const char *state;
        char reason[512];
        int exit_status;
        if (mine && strcmp(was, "stopped") && strcmp(was, "crashed") && was[0]) {
            if (rc != FVM_ENOENT || err.sys_errno == ENOENT)
                end.how = FVM_NODE_PROC_UNKNOWN;
            describe_end(vm, &end, &state, reason, sizeof(reason), &exit_status);
            fvm_node_vm_publish(vm, state, reason, exit_status);
        }
        fvm_vmdb_vm_fini(&known);
        free_vm(vm);
        return;
    }
    struct fvm_journal_view view;
    char path[4200];
    fvm_node_vm_path(vm, "journal", path, sizeof(path));
    fvm_journal_read(path, &view);
    vm->state = view.incoming ? FVM_NODE_VM_INCOMING : FVM_NODE_VM_UP;
    if (view.incoming)
        vm->deadline_ns = fvm_now_ns() + FVM_NODE_START_MS * 1000000ull;
    fvm_node_vm_note(vm, "adopt", json_pack("{s:s}", "as", view.incoming ? "incoming" : "run"));
    arm(vm, 1);
    fvm_log(INFO, "vm.adopted", "vm=%s pid=%d", name, fvm_node_proc_pid(vm->proc));
}

int fvm_node_vm_adopt_all(struct fvm_node *node, struct fvm_err *err)
{
    char path[4200];
    snprintf(path, sizeof(path), "%.4000s/vms", node->state_dir);
    DIR *d = opendir(path);
    if (!d)
        return fvm_err_set(err, fvm_err_from_errno(errno), errno, "cluster", "%s: %s", path, strerror(errno));
    struct dirent *e;
    while ((e = readdir(d)))
        if (fvm_dir_check_name("VM", e->d_name, NULL) == 0)
            adopt(node, e->d_name);
    closedir(d);
    return 0;
}

void fvm_node_vm_close_all(struct fvm_node *node)
{
    while (node->vms)
        free_vm(node->vms);
}
