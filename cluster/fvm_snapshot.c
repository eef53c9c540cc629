/*
 * fvm_snapshot.c - the command and the way back, see fvm_snapshot.h.
 *
 * Invariant: at most one snapshot at a time and none during a migration; its thread is joined before its machine or the
 * VM go.
 */
#include "cluster/fvm_snapshot.h"

#include <stdlib.h>
#include <string.h>

#include "cluster/fvm_migrate.h"
#include "migrate/migrate.h"
#include "migrate/snapshot.h"
#include "vmm/vm_config.h"

struct fvm_run_snapshot { /* loop's thread */
    struct fvm_snapshot *snapshot; /* NULL: none is written */
    struct fvm_vm_machine *machine;
    struct fvm_control_call *call;
    char *path;
    struct fvm_snapshot_in *in; /* restoring */
};

struct post {
    struct fvm_run *run;
    struct fvm_snapshot_report report;
};

static const char room[] = "snapshot";

static struct fvm_run_snapshot *need(struct fvm_run *run)
{
    if (!run->snapshot)
        run->snapshot = calloc(1, sizeof(*run->snapshot));
    return run->snapshot;
}

bool fvm_run_snapshot_busy(const struct fvm_run *run) { return run->snapshot && run->snapshot->snapshot; }

/* ---- saving ---- */

static json_t *report_json(const char *path, const struct fvm_snapshot_report *r)
{
    return json_pack("{s:s, s:I, s:I, s:I, s:I, s:I, s:i, s:b}", "path", path, "blackout_ns", (json_int_t)r->blackout_ns,
                     "total_ns", (json_int_t)r->total_ns, "file_bytes", (json_int_t)r->file_bytes, "memory_bytes",
                     (json_int_t)r->memory_bytes, "data_pages", (json_int_t)r->data_pages, "rounds", (int)r->rounds,
                     "stopped", (int)r->stopped);
}

static void on_done(void *ctx)
{
    struct post *p = ctx;
    struct fvm_run *run = p->run;
    struct fvm_run_snapshot *s = run->snapshot;
    struct fvm_control_call *call = s->call;
    fvm_snapshot_join(&s->snapshot);
    fvm_vm_machine_destroy(&s->machine);
    s->call = NULL;
    if (p->report.err.code)
        fvm_control_fail(call, &p->report.err);
    else
        fvm_control_reply(call, report_json(s->path, &p->report));
    free(s->path);
    s->path = NULL;
    if (p->report.stopped)
        fvm_run_end(run, 0);
    free(p);
}

/* The snapshot's thread. */
static void snapshot_done(void *ctx, const struct fvm_snapshot_report *report)
{
    struct post *p = malloc(sizeof(*p));
    fvm_assert(p != NULL);
    p->run = ctx;
    p->report = *report;
    fvm_assert(fvm_loop_post(p->run->loop, on_done, p) == 0);
}

static int may_save(struct fvm_run *run, struct fvm_err *err)
{
    if (!run->vm || fvm_vm_get_state(run->vm) == FVM_VM_STOPPED)
        return fvm_err_set(err, FVM_ESTATE, 0, room, "there is no guest to save");
    if (fvm_run_snapshot_busy(run))
        return fvm_err_set(err, FVM_EBUSY, 0, room, "a snapshot is being written already");
    return fvm_migrate_may_run(run, err);
}

static int start(struct fvm_run *run, const json_t *request, struct fvm_err *err)
{
    struct fvm_run_snapshot *s = need(run);
    struct fvm_snapshot_options o = {.compress = json_is_true(json_object_get(request, "compress")),
                                     .stop = json_is_true(json_object_get(request, "stop")), .done = snapshot_done,
                                     .ctx = run};
    const struct fvm_vm_machine_options machine = {.loop = run->loop, .vm = run->vm};
    const char *key_file = NULL;
    int r = s ? fvm_control_get_string(request, "path", NULL, &o.path, err)
              : fvm_err_set(err, FVM_ENOMEM, 0, room, "out of memory");
    if (!r)
        r = fvm_control_get_string(request, "key_file", "", &key_file, err);
    if (!r && (o.path[0] != '/' || (key_file[0] && key_file[0] != '/')))
        r = fvm_err_set(err, FVM_EINVAL, 0, room, "\"path\" and \"key_file\" must begin with /");
    if (r)
        return r;
    o.key_file = key_file[0] ? key_file : NULL;
    s->path = strdup(o.path);
    if (!s->path || fvm_vm_machine_create(&machine, &s->machine))
        r = fvm_err_set(err, FVM_ENOMEM, 0, room, "out of memory");
    if (!r) {
        o.machine = fvm_vm_machine_get(s->machine);
        r = fvm_snapshot_start(&o, &s->snapshot, err);
    }
    if (r) {
        fvm_vm_machine_destroy(&s->machine);
        free(s->path);
        s->path = NULL;
    }
    return r;
}

static void command_snapshot(void *ctx, struct fvm_control_call *call, const json_t *request)
{
    struct fvm_run *run = ctx;
    struct fvm_err err = {0};
    if (may_save(run, &err) || start(run, request, &err))
        fvm_control_fail(call, &err);
    else
        run->snapshot->call = call;
}

int fvm_run_snapshot_register(struct fvm_run *run)
{
    return fvm_control_register(run->control, "snapshot", "write the guest to a file", command_snapshot, run);
}

void fvm_run_snapshot_close(struct fvm_run *run)
{
    struct fvm_run_snapshot *s = run->snapshot;
    if (!s)
        return;
    while (s->snapshot) {
        fvm_snapshot_cancel(s->snapshot);
        if (fvm_loop_turn(run->loop, 50000000) < 0)
            break;
    }
    fvm_snapshot_close(&s->in);
    free(s);
    run->snapshot = NULL;
}

/* ---- restoring ---- */

/* The machine is the file's; where its lines end is ours. */
static int take_ends(Fvm__VmConfig *c, const Fvm__VmConfig *own, struct fvm_err *err)
{
    int r = 0;
    if (own->n_disks && own->n_disks != c->n_disks)
        return fvm_err_set(err, FVM_EINVAL, 0, room, "the snapshot's machine has %zu disks, --disk names %zu",
                           c->n_disks, own->n_disks);
    if (own->n_nets && own->n_nets != c->n_nets)
        return fvm_err_set(err, FVM_EINVAL, 0, room, "the snapshot's machine has %zu networks, --net names %zu",
                           c->n_nets, own->n_nets);
    if (fvm_config_set(&c->serial, own->serial) || fvm_config_set(&c->control, own->control) ||
        (c->console[0] && strcmp(c->console, "none") != 0 &&
         fvm_config_set(&c->console, own->console[0] ? own->console : "file:/dev/null")))
        r = FVM_ENOMEM;
    for (size_t i = 0; !r && i < own->n_disks; i++)
        r = fvm_config_set(&c->disks[i]->path, own->disks[i]->path);
    for (size_t i = 0; !r && i < own->n_nets; i++) {
        Fvm__HostForward **forwards = c->nets[i]->forwards;
        size_t n = c->nets[i]->n_forwards;
        r = fvm_config_set(&c->nets[i]->kind, own->nets[i]->kind);
        c->nets[i]->forwards = own->nets[i]->forwards; /* exchanged: own is freed afterwards */
        c->nets[i]->n_forwards = own->nets[i]->n_forwards;
        own->nets[i]->forwards = forwards;
        own->nets[i]->n_forwards = n;
    }
    return r ? fvm_err_set(err, r, 0, room, "out of memory") : 0;
}

int fvm_run_restore_open(struct fvm_run *run, struct fvm_err *err)
{
    struct fvm_run_snapshot *s = need(run);
    if (!s)
        return fvm_err_set(err, FVM_ENOMEM, 0, room, "out of memory");
    int r = fvm_snapshot_open(run->options.restore, run->options.key_file, &s->in, err);
    Fvm__VmConfig *c = r ? NULL : fvm_config_copy(fvm_snapshot_config(s->in));
    if (!r && !c)
        r = fvm_err_set(err, FVM_ENOMEM, 0, room, "out of memory");
    if (!r)
        r = fvm_config_check(c, false, err);
    if (!r)
        r = take_ends(c, run->options.config, err);
    if (r) {
        fvm_config_free(&c);
        return r;
    }
    fvm_config_free(&run->options.config);
    run->options.config = c;
    return 0;
}

int fvm_run_restore_load(struct fvm_run *run, bool *ret_paused, struct fvm_err *err)
{
    struct fvm_run_snapshot *s = run->snapshot;
    Fvm__FinalState *state = NULL;
    uint64_t begin = fvm_now_ns();
    int r = fvm_snapshot_load(s->in, fvm_vm_ram(run->vm), &state, err);
    if (!r)
        r = fvm_vm_check_state(run->vm, state->cpus, state->devices, err);
    if (!r) {
        fvm_vm_restore_state(run->vm, state->cpus, state->devices, 0);
        *ret_paused = state->paused;
        fvm_log(INFO, "snapshot.restored", "path=%s ms=%llu", run->options.restore,
                (unsigned long long)((fvm_now_ns() - begin) / 1000000u));
    }
    if (state)
        fvm__final_state__free_unpacked(state, NULL);
    fvm_snapshot_close(&s->in);
    return r;
}
