/*
 * fvm_migrate.c - the commands and events of fvm_migrate.h around migrate/migrate.h.
 *
 * Progress and the report come on the migration's thread and are posted to the loop; only there anything is touched.
 * Invariant: at most one migration at a time, and its thread is joined before its machine, record or VM go.
 */
#include "cluster/fvm_migrate.h"

#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cluster/journal.h"
#include "cluster/fvm_snapshot.h"
#include "cluster/vmrecord.h"
#include "migrate/migrate.h"
#include "migrate/stream.h"
#include "vmm/vm_config.h"

struct fvm_run_migration { /* loop's thread */
    struct fvm_run *run;
    struct fvm_port_ctx *ctx;
    struct fvm_port_keys keys;
    struct fvm_vmrecord *record;
    struct fvm_record_file *record_file;
    struct fvm_vm_machine *machine;
    struct fvm_source *source;
    struct fvm_dest *dest;
    struct fvm_memory *memory;           /* of the last attempt, so that a retry need not send all again */
    struct fvm_record_store real_record; /* behind a fault */
    struct fvm_journal *journal;         /* NULL: nobody asked for one */
    int noted_phase;                     /* migration's thread: the last one in the journal; -1: none */
    char allow[FVM_PORT_KEY_CHARS + 1];
    char self[FVM_HO_NAME_MAX + 1]; /* our name in the record, and where that is: as given last, else made up here */
    char record_spec[4200];         /* "file:PATH" */
    struct fvm_migrate_progress progress; /* what was heard last */
    struct fvm_migrate_report report;
    bool reported; /* report is of the last migration, else progress is */
    bool unknown;  /* the last one ended without knowing who owns the guest */
};

struct post { /* from the migration's thread to the loop */
    struct fvm_run *run;
    struct fvm_migrate_progress progress;
    struct fvm_migrate_report report;
};

static int room_err(struct fvm_err *err, int code, const char *text)
{
    return fvm_err_set(err, code, 0, "migrate", "%s", text);
}

/* Without a cluster nobody names us: a name and a record of our own, until a migration brings others. */
static void name_us(struct fvm_run_migration *m)
{
    const Fvm__VmConfig *c = m->run->options.config;
    size_t n = 0;
    for (const char *s = c->name; *s && n < 40; s++)
        m->self[n++] = *s > ' ' && *s <= '~' && *s != '"' ? *s : '_';
    snprintf(m->self + n, sizeof(m->self) - n, "-%d", (int)getpid());
    snprintf(m->record_spec, sizeof(m->record_spec), "file:%s.%d.record", c->control, (int)getpid());
}

static int need(struct fvm_run *run, struct fvm_err *err)
{
    struct fvm_run_migration *m = run->migration;
    if (!m) {
        m = run->migration = calloc(1, sizeof(*m));
        if (!m)
            return room_err(err, FVM_ENOMEM, "out of memory");
        m->run = run;
        name_us(m);
    }
    if (!m->keys.public_key[0] && fvm_port_keygen(&m->keys))
        return room_err(err, FVM_EUNSUPPORTED, "this ZeroMQ library has no CURVE");
    return m->ctx ? 0 : fvm_port_ctx_create(2, &m->ctx, err);
}

/* ---- events ---- */

static json_t *progress_json(const struct fvm_migrate_progress *g)
{
    return json_pack("{s:s, s:i, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:s, s:s}", "phase",
                     fvm_migrate_phase_text(g->phase), "round", (int)g->round, "memory_bytes",
                     (json_int_t)g->memory_bytes, "remaining_bytes", (json_int_t)g->remaining_bytes, "sent_bytes",
                     (json_int_t)g->sent_bytes, "rate_bytes", (json_int_t)g->rate_bytes, "dirty_rate_bytes",
                     (json_int_t)g->dirty_rate_bytes, "predicted_downtime_ns", (json_int_t)g->predicted_downtime_ns,
                     "elapsed_ns", (json_int_t)g->elapsed_ns, "pages_resent", (json_int_t)g->pages_resent,
                     "write_limit_bytes", (json_int_t)g->write_limit_bytes, "owner", g->owner, "text", g->text);
}

static void on_progress(void *ctx)
{
    struct post *p = ctx;
    p->run->migration->progress = p->progress;
    p->run->migration->reported = false;
    fvm_control_event(p->run->control, "migration", progress_json(&p->progress));
    free(p);
}

/* Where the blackout went, in order: [["pause", ns], ...]. */
static json_t *pieces_json(const struct fvm_migrate_pieces *p)
{
    const struct {
        const char *name;
        uint64_t ns;
    } pieces[] = {{"pause", p->pause_ns},    {"last-pages", p->pages_ns},
                  {"state", p->state_ns},    {"release-disks", p->storage_ns},
                  {"digest", p->digest_ns},  {"compare", p->dest_proof_ns},
                  {"take", p->dest_take_ns}, {"claim-disks", p->dest_storage_ns},
                  {"run", p->dest_run_ns},   {"start", p->dest_start_ns}};
    json_t *out = json_array();
    for (size_t i = 0; i < FVM_ARRAY_SIZE(pieces); i++)
        json_array_append_new(out, json_pack("[s, I]", pieces[i].name, (json_int_t)pieces[i].ns));
    return out;
}

static const char *outcome_text(enum fvm_migrate_outcome outcome)
{
    static const char *const outcomes[] = {
        [FVM_MIGRATE_MOVED] = "moved", [FVM_MIGRATE_STAYED] = "stayed", [FVM_MIGRATE_UNKNOWN] = "unknown"};
    return outcomes[outcome];
}

static const char *error_text(const struct fvm_migrate_report *r)
{
    return !r->err.code ? "" : r->err.text[0] ? r->err.text : fvm_err_text(r->err.code);
}

static json_t *report_json(const struct fvm_migrate_report *r)
{
    json_t *out = json_pack("{s:s, s:s, s:b, s:b, s:i, s:I, s:I, s:I, s:I, s:I, s:I, s:I}", "outcome",
                            outcome_text(r->outcome), "error", error_text(r), "dry_run", (int)r->dry_run, "verified",
                            (int)r->verified, "rounds", (int)r->rounds, "prepare_ns", (json_int_t)r->prepare_ns,
                            "precopy_ns", (json_int_t)r->precopy_ns, "final_ns", (json_int_t)r->final_ns, "handover_ns",
                            (json_int_t)r->handover_ns, "blackout_ns", (json_int_t)r->blackout_ns, "total_ns",
                            (json_int_t)r->total_ns, "predicted_downtime_ns", (json_int_t)r->predicted_downtime_ns);
    json_t *more = json_pack(
        "{s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I}", "memory_bytes", (json_int_t)r->memory_bytes, "sent_bytes",
        (json_int_t)r->sent_bytes, "data_pages", (json_int_t)r->data_pages, "zero_pages", (json_int_t)r->zero_pages,
        "pages_resent", (json_int_t)r->pages_resent, "corrupt_batches", (json_int_t)r->corrupt_batches,
        "digest_repairs", (json_int_t)r->digest_repairs, "blackout_pages", (json_int_t)r->blackout_pages,
        "blackout_hashed_pages", (json_int_t)r->blackout_hashed_pages, "epoch", (json_int_t)r->epoch);
    json_object_set_new(more, "throttled_ns", json_integer((json_int_t)r->throttled_ns));
    json_object_set_new(more, "write_limit_bytes", json_integer((json_int_t)r->write_limit_bytes));
    json_object_set_new(more, "blackout_pieces", pieces_json(&r->pieces));
    json_object_update(out, more);
    json_decref(more);
    return out;
}

/* After the thread's end: what only one attempt needs. */
static void tidy(struct fvm_run_migration *m)
{
    if (m->machine)
        fvm_vm_machine_destroy(&m->machine);
    if (m->record)
        fvm_vmrecord_close(&m->record);
    if (m->record_file)
        fvm_record_file_close(&m->record_file);
    if (m->journal)
        fvm_journal_close(&m->journal);
}

static void on_source_done(void *ctx)
{
    struct post *p = ctx;
    struct fvm_run *run = p->run;
    fvm_source_join(&run->migration->source);
    tidy(run->migration);
    run->migration->report = p->report;
    run->migration->reported = true;
    fvm_control_event(run->control, "migration-done", report_json(&p->report));
    run->migration->unknown = p->report.outcome == FVM_MIGRATE_UNKNOWN;
    if (p->report.outcome == FVM_MIGRATE_MOVED)
        fvm_run_end(run, 0);
    free(p);
}

static void on_dest_done(void *ctx)
{
    struct post *p = ctx;
    struct fvm_run *run = p->run;
    fvm_dest_join(&run->migration->dest);
    tidy(run->migration);
    run->migration->report = p->report;
    run->migration->reported = true;
    fvm_control_event(run->control, "migration-done", report_json(&p->report));
    if (p->report.outcome == FVM_MIGRATE_MOVED) {
        run->options.incoming = NULL; /* from now on a VM like any other */
        fvm_control_event(run->control, "running", NULL);
    } else {
        fvm_complain(&p->report.err);
        fvm_run_end(run, fvm_err_exit_status(p->report.err.code));
    }
    free(p);
}

static void post(struct fvm_run *run, const struct fvm_migrate_progress *progress,
                 const struct fvm_migrate_report *report, fvm_loop_fn fn)
{
    struct post *p = calloc(1, sizeof(*p));
    fvm_assert(p || !report); /* a lost end would leave the process waiting for ever */
    if (!p)
        return;
    p->run = run;
    if (progress)
        p->progress = *progress;
    if (report)
        p->report = *report;
    if (fvm_loop_post(run->loop, fn, p)) {
        fvm_assert(!report);
        free(p);
    }
}

/* FVM_MIGRATE_FAULT: "die_in_phase=NAME" is a kill -9 in the middle of it; "hold_in_phase=NAME:MS" makes it last, so
 * that a test can do something to others meanwhile. */
static void fault_in_phase(const char *phase)
{
    const char *text = getenv("FVM_MIGRATE_FAULT");
    const char *die = text ? strstr(text, "die_in_phase=") : NULL, *hold = text ? strstr(text, "hold_in_phase=") : NULL;
    size_t n = strlen(phase);
    long ms = 0;
    if (die && strcspn(die + 13, ",") == n && strncmp(phase, die + 13, n) == 0)
        kill(getpid(), SIGKILL);
    if (hold && strcspn(hold + 14, ":") == n && strncmp(phase, hold + 14, n) == 0)
        ms = strtol(hold + 15 + n, NULL, 10);
    if (ms > 0 && ms < 600000)
        poll(NULL, 0, (int)ms);
}

/* On the migration's thread. */
static void note_phase(struct fvm_run_migration *m, enum fvm_migrate_phase phase)
{
    if (m->noted_phase == (int)phase)
        return;
    m->noted_phase = (int)phase;
    if (m->journal)
        fvm_journal_note(m->journal, "phase", json_pack("{s:s}", "phase", fvm_migrate_phase_text(phase)));
    fault_in_phase(fvm_migrate_phase_text(phase));
}

static void source_progress(void *ctx, const struct fvm_migrate_progress *g)
{
    struct fvm_run *run = ctx;
    post(run, g, NULL, on_progress); /* first, so that who watches knows the phase while it is held */
    note_phase(run->migration, g->phase);
}

static void note_end(struct fvm_run *run, const struct fvm_migrate_report *r)
{
    if (run->migration->journal)
        fvm_journal_note(run->migration->journal, "end",
                         json_pack("{s:s, s:s, s:I}", "outcome", outcome_text(r->outcome), "error", error_text(r),
                                   "blackout_ns", (json_int_t)r->blackout_ns));
}

static void source_done(void *ctx, const struct fvm_migrate_report *r)
{
    note_end(ctx, r);
    post(ctx, NULL, r, on_source_done);
}

static void dest_done(void *ctx, const struct fvm_migrate_report *r)
{
    note_end(ctx, r);
    post(ctx, NULL, r, on_dest_done);
}

/* ---- what both commands need ---- */

/* Phase "taken": between TAKE and RUN, where only the record knows that the guest is on its way. */
static int fault_cas(void *ctx, uint64_t expect_revision, const struct fvm_ho_record *next, struct fvm_err *err)
{
    struct fvm_run_migration *m = ctx;
    int rc = m->real_record.cas(m->real_record.ctx, expect_revision, next, err);
    if (!rc && next->phase == FVM_HO_TAKEN)
        fault_in_phase("taken");
    return rc;
}

static int fault_get(void *ctx, struct fvm_ho_record *ret_record, uint64_t *ret_revision, struct fvm_err *err)
{
    struct fvm_run_migration *m = ctx;
    return m->real_record.get(m->real_record.ctx, ret_record, ret_revision, err);
}

static void fault_record(struct fvm_run_migration *m, struct fvm_record_store *record)
{
    const char *text = getenv("FVM_MIGRATE_FAULT");
    if (!text || !strstr(text, "_in_phase=taken"))
        return;
    m->real_record = *record;
    *record = (struct fvm_record_store){.get = fault_get, .cas = fault_cas, .ctx = m};
}

static int open_record(struct fvm_run_migration *m, const json_t *request, const char *self, bool source,
                       struct fvm_record_store *ret, struct fvm_err *err)
{
    const char *url, *vm, *file;
    int rc = fvm_control_get_string(request, "record", "", &file, err);
    if (!rc && file[0]) {
        if (strncmp(file, "file:", 5) || !file[5])
            return room_err(err, FVM_EINVAL, "record: write file:PATH");
        snprintf(m->self, sizeof(m->self), "%s", self);
        snprintf(m->record_spec, sizeof(m->record_spec), "%s", file);
        const char *owner; /* the source's name: who comes first makes the file */
        rc = fvm_control_get_string(request, "owner", source ? self : "", &owner, err);
        if (!rc)
            rc = fvm_record_file_open(file + 5, owner[0] ? owner : NULL, &m->record_file, err);
        if (!rc)
            *ret = fvm_record_file_store(m->record_file);
        return rc;
    }
    if (!rc)
        rc = fvm_control_get_string(request, "store", NULL, &url, err);
    if (!rc)
        rc = fvm_control_get_string(request, "vm", NULL, &vm, err);
    if (!rc)
        rc = fvm_vmrecord_open(url, vm, &m->record, err);
    if (!rc)
        *ret = fvm_vmrecord_store(m->record);
    return rc;
}

/* What is asked of the record and answered goes to the journal that the node named. */
static int open_journal(struct fvm_run_migration *m, const json_t *request, const char *who,
                        struct fvm_record_store *record, struct fvm_err *err)
{
    const char *path;
    int rc = fvm_control_get_string(request, "journal", "", &path, err);
    m->noted_phase = -1;
    if (rc || !path[0])
        return rc;
    if (fvm_journal_open(path, who, &m->journal))
        return room_err(err, FVM_ENOMEM, "out of memory");
    *record = fvm_journal_record(m->journal, *record);
    return 0;
}

static void take_faults(struct fvm_migrate_faults *faults)
{
    const char *text = getenv("FVM_MIGRATE_FAULT");
    unsigned n;
    while (text && *text) {
        if (sscanf(text, "corrupt_batch=%u", &n) == 1)
            faults->corrupt_batch = n;
        else if (sscanf(text, "drop_batch=%u", &n) == 1)
            faults->drop_batch = n;
        else if (strncmp(text, "corrupt_ram", 11) == 0)
            faults->corrupt_ram = true;
        text = strchr(text, ',');
        text = text ? text + 1 : NULL;
    }
}

static bool busy(const struct fvm_run *run)
{
    return run->migration && (run->migration->source || run->migration->dest);
}

int fvm_migrate_may_run(const struct fvm_run *run, struct fvm_err *err)
{
    if (busy(run))
        return room_err(err, FVM_ESTATE, "a migration is going on: it decides where the guest runs; cancel it first");
    if (fvm_run_snapshot_busy(run))
        return room_err(err, FVM_EBUSY, "a snapshot is being written: wait for its end");
    if (run->migration && run->migration->unknown)
        return room_err(err, FVM_ESTATE,
                        "it is not known who owns the guest: the record could not be read; migrate again or quit");
    return 0;
}

/* ---- source ---- */

static void command_key(void *ctx, struct fvm_control_call *call, const json_t *request)
{
    struct fvm_run *run = ctx;
    struct fvm_err err = {0};
    (void)request;
    if (need(run, &err))
        fvm_control_fail(call, &err);
    else
        fvm_control_reply(call, json_pack("{s:s, s:s, s:s}", "public_key", run->migration->keys.public_key, "self",
                                          run->migration->self, "record", run->migration->record_spec));
}

static int read_limits(const json_t *request, struct fvm_source_options *o, struct fvm_err *err)
{
    const char *on_miss;
    int64_t downtime, deadline, rate;
    int rc = fvm_control_get_int(request, "max_downtime_ms", 0, 3600000, 0, &downtime, err);
    if (!rc)
        rc = fvm_control_get_int(request, "deadline_ms", 0, 86400000, 0, &deadline, err);
    if (!rc)
        rc = fvm_control_get_int(request, "rate_limit_bytes", 0, INT64_MAX, 0, &rate, err);
    if (!rc)
        rc = fvm_control_get_string(request, "on_miss", "cancel", &on_miss, err);
    if (!rc)
        rc = fvm_on_miss_parse(on_miss, &o->on_miss, err);
    if (rc)
        return rc;
    o->max_downtime_ns = (uint64_t)downtime * 1000000;
    o->deadline_ns = (uint64_t)deadline * 1000000;
    o->rate_limit_bytes = (uint64_t)rate;
    o->dry_run = json_is_true(json_object_get(request, "dry_run"));
    o->verify_all = json_is_true(json_object_get(request, "verify_all"));
    o->no_throttle = json_is_true(json_object_get(request, "no_throttle"));
    return 0;
}

static int start_source(struct fvm_run *run, const json_t *request, struct fvm_err *err)
{
    struct fvm_run_migration *m = run->migration;
    struct fvm_source_options o = {.ctx = m->ctx,
                                   .keys = m->keys,
                                   .memory_p = &m->memory,
                                   .hooks = {.progress = source_progress, .done = source_done, .ctx = run}};
    const struct fvm_vm_machine_options machine = {.loop = run->loop, .vm = run->vm};
    int rc = fvm_control_get_string(request, "self", NULL, &o.self, err);
    if (!rc)
        rc = fvm_control_get_string(request, "to_name", NULL, &o.to_name, err);
    if (!rc)
        rc = fvm_control_get_string(request, "to_addr", NULL, &o.to_addr, err);
    if (!rc)
        rc = fvm_control_get_string(request, "to_key", NULL, &o.to_key, err);
    if (!rc)
        rc = read_limits(request, &o, err);
    if (!rc)
        rc = open_record(m, request, o.self, true, &o.record, err);
    if (!rc)
        rc = open_journal(m, request, "source", &o.record, err);
    if (!rc && fvm_vm_machine_create(&machine, &m->machine))
        rc = room_err(err, FVM_ENOMEM, "out of memory");
    if (!rc) {
        o.machine = fvm_vm_machine_get(m->machine);
        take_faults(&o.faults);
        rc = fvm_source_start(&o, &m->source, err);
    }
    if (rc)
        tidy(m);
    return rc;
}

static void command_migrate(void *ctx, struct fvm_control_call *call, const json_t *request)
{
    struct fvm_run *run = ctx;
    struct fvm_err err = {0};
    int rc = 0;
    if (!run->vm || run->options.incoming)
        rc = room_err(&err, FVM_ESTATE, "there is no guest here yet");
    else if (fvm_run_snapshot_busy(run))
        rc = room_err(&err, FVM_EBUSY, "a snapshot is being written: wait for its end");
    else if (busy(run))
        rc = room_err(&err, FVM_ESTATE, "a migration is going on already");
    if (!rc)
        rc = need(run, &err);
    if (!rc)
        rc = start_source(run, request, &err);
    if (rc)
        fvm_control_fail(call, &err);
    else
        fvm_control_reply(call, json_pack("{s:b}", "started", 1));
}

static void command_cancel(void *ctx, struct fvm_control_call *call, const json_t *request)
{
    struct fvm_run *run = ctx;
    struct fvm_err err = {0};
    (void)request;
    if (!busy(run)) {
        room_err(&err, FVM_ESTATE, "no migration is going on");
        fvm_control_fail(call, &err);
        return;
    }
    if (run->migration->source)
        fvm_source_cancel(run->migration->source);
    else
        fvm_dest_cancel(run->migration->dest);
    fvm_control_reply(call, json_pack("{s:b}", "asked", 1));
}

static void command_migrate_status(void *ctx, struct fvm_control_call *call, const json_t *request)
{
    struct fvm_run *run = ctx;
    struct fvm_run_migration *m = run->migration;
    (void)request;
    if (m && m->reported)
        fvm_control_reply(call, report_json(&m->report));
    else if (m && m->progress.phase != FVM_MIGRATE_PREPARE)
        fvm_control_reply(call, progress_json(&m->progress));
    else
        fvm_control_reply(call, json_pack("{s:s}", "phase", busy(run) ? "prepare" : "none"));
}

/* ---- destination ---- */

static bool allow(void *ctx, const char *public_key, const char *addr)
{
    const struct fvm_run_migration *m = ctx; /* `allow` does not change while a destination listens */
    (void)addr;
    return strcmp(public_key, m->allow) == 0;
}

/* What is of this host is ours: the ends of the consoles, the sockets of the networks. The machine is the source's. */
static Fvm__VmConfig *local_config(const Fvm__VmConfig *sent, const Fvm__VmConfig *own)
{
    Fvm__VmConfig *c = fvm_config_copy(sent);
    int rc = c ? 0 : FVM_ENOMEM;
    if (!rc)
        rc = fvm_config_set(&c->serial, own->serial);
    if (!rc)
        rc = fvm_config_set(&c->console, own->console);
    if (!rc)
        rc = fvm_config_set(&c->control, own->control);
    if (!rc)
        rc = fvm_config_set(&c->firmware, own->firmware);
    for (size_t i = 0; !rc && i < c->n_nets && i < own->n_nets; i++) {
        rc = fvm_config_set(&c->nets[i]->kind, own->nets[i]->kind);
        if (!rc)
            rc = fvm_config_set(&c->nets[i]->tftp, own->nets[i]->tftp);
        if (!rc)
            rc = fvm_config_set(&c->nets[i]->bootfile, own->nets[i]->bootfile);
    }
    for (size_t i = 0; !rc && i < c->n_disks && i < own->n_disks; i++)
        rc = fvm_config_set(&c->disks[i]->path, own->disks[i]->path);
    if (rc && c)
        fvm_config_free(&c);
    return c;
}

/* A source must not be able to give this process other files or networks than it was started with. */
static int check_sent(const Fvm__VmConfig *sent, const Fvm__VmConfig *own, struct fvm_err *err)
{
    if (sent->n_disks != own->n_disks || sent->n_nets != own->n_nets || sent->memory_bytes != own->memory_bytes ||
        sent->cpus != own->cpus)
        return fvm_err_set(err, FVM_EINVAL, 0, "migrate",
                           "the guest that comes has another machine (memory, processors, disks, networks) than this "
                           "process was started for");
    if (!sent->firmware[0] != !own->firmware[0])
        return fvm_err_set(err, FVM_EINVAL, 0, "migrate", "one side was started with --firmware, the other with --kernel");
    if (fvm_config_is_pc(sent) != fvm_config_is_pc(own))
        return fvm_err_set(err, FVM_EINVAL, 0, "migrate", "the guest that comes has --machine %s, this process %s",
                           fvm_config_is_pc(sent) ? "pc" : "virtio", fvm_config_is_pc(own) ? "pc" : "virtio");
    for (size_t i = 0; i < sent->n_disks; i++) {
        const Fvm__DiskConfig *s = sent->disks[i], *o = own->disks[i];
        if (s->readonly != o->readonly)
            return fvm_err_set(err, FVM_EINVAL, 0, "migrate", "disk %zu is read-only on one side alone", i);
        if (s->cdrom != o->cdrom || strcmp(s->interface, o->interface) != 0)
            return fvm_err_set(err, FVM_EINVAL, 0, "migrate", "disk %zu is attached in another way on the other side",
                               i);
    }
    for (size_t i = 0; i < sent->n_nets; i++)
        if (strcmp(sent->nets[i]->model, own->nets[i]->model) != 0)
            return fvm_err_set(err, FVM_EINVAL, 0, "migrate", "network %zu is another model on the other side", i);
    return 0;
}

static int make(void *ctx, const Fvm__VmConfig *config, struct fvm_vm **ret_vm, struct fvm_err *err)
{
    struct fvm_run *run = ctx;
    int rc = run->vm ? room_err(err, FVM_ESTATE, "this process holds a guest already")
                     : check_sent(config, run->options.config, err);
    Fvm__VmConfig *c = rc ? NULL : local_config(config, run->options.config);
    if (!rc && !c)
        rc = room_err(err, FVM_ENOMEM, "out of memory");
    if (!rc)
        rc = fvm_run_make_vm(run, c, err);
    if (c)
        fvm_config_free(&c);
    if (!rc)
        *ret_vm = run->vm;
    return rc;
}

/* A VM cannot be destroyed inside the loop, and this process is for one attempt: it ends, and a next attempt gets a new
 * one. */
static void unmake(void *ctx, struct fvm_vm **vm_p)
{
    struct fvm_run *run = ctx;
    *vm_p = NULL;
    if (run->migration->dest)
        fvm_dest_cancel(run->migration->dest);
}

static int start_dest(struct fvm_run *run, const json_t *request, struct fvm_err *err)
{
    struct fvm_run_migration *m = run->migration;
    struct fvm_dest_options o = {.ctx = m->ctx,
                                 .keys = m->keys,
                                 .listen_addr = run->options.incoming,
                                 .allow = allow,
                                 .allow_ctx = m,
                                 .hooks = {.progress = source_progress, .done = dest_done, .ctx = run}};
    const struct fvm_vm_machine_options machine = {.loop = run->loop, .make = make, .unmake = unmake, .ctx = run};
    const char *key;
    int rc = fvm_control_get_string(request, "self", NULL, &o.self, err);
    if (!rc)
        rc = fvm_control_get_string(request, "allow", NULL, &key, err);
    if (!rc && !fvm_port_key_valid(key))
        rc = room_err(err, FVM_EINVAL, "allow: not a public key");
    if (rc)
        return rc;
    snprintf(m->allow, sizeof(m->allow), "%s", key);
    rc = open_record(m, request, o.self, false, &o.record, err);
    if (!rc) {
        fault_record(m, &o.record);
        rc = open_journal(m, request, "dest", &o.record, err);
    }
    if (!rc && fvm_vm_machine_create(&machine, &m->machine))
        rc = room_err(err, FVM_ENOMEM, "out of memory");
    if (!rc) {
        o.machine = fvm_vm_machine_get(m->machine);
        take_faults(&o.faults);
        rc = fvm_dest_start(&o, &m->dest, err);
    }
    if (rc)
        tidy(m);
    return rc;
}

/* The same source asks once more, after a rehearsal or an attempt that failed: what came then is still of use. */
static bool waits_for(const struct fvm_run *run, const json_t *request)
{
    const char *key = json_string_value(json_object_get(request, "allow"));
    return busy(run) && run->migration->dest && key && strcmp(key, run->migration->allow) == 0;
}

static void command_incoming(void *ctx, struct fvm_control_call *call, const json_t *request)
{
    struct fvm_run *run = ctx;
    struct fvm_err err = {0};
    int rc = 0;
    bool again = waits_for(run, request);
    if (!run->options.incoming)
        rc = room_err(&err, FVM_ESTATE, "this VM was not started with --incoming");
    else if (busy(run) && !again)
        rc = room_err(&err, FVM_ESTATE, "it waits for another guest already");
    if (!rc)
        rc = need(run, &err);
    if (!rc && !again)
        rc = start_dest(run, request, &err);
    if (rc)
        fvm_control_fail(call, &err);
    else
        fvm_control_reply(call, json_pack("{s:s, s:s}", "address", fvm_dest_addr(run->migration->dest), "public_key",
                                          run->migration->keys.public_key));
}

/* ---- life ---- */

int fvm_migrate_register(struct fvm_run *run)
{
    static const struct {
        const char *name, *help;
        fvm_control_fn fn;
    } list[] = {
        {"migrate-key", "this process' public key, name and record", command_key},
        {"migrate", "move the guest to another process", command_migrate},
        {"migrate-status", "how the migration goes, or went", command_migrate_status},
        {"migrate-cancel", "give the migration up", command_cancel},
        {"incoming", "wait for a guest", command_incoming},
    };
    int r = 0;
    for (size_t i = 0; !r && i < FVM_ARRAY_SIZE(list); i++)
        r = fvm_control_register(run->control, list[i].name, list[i].help, list[i].fn, run);
    return r;
}

/* A record made for a move without a cluster goes with the guest's end: nobody is left who could ask it. */
static void drop_record(const struct fvm_run_migration *m)
{
    struct fvm_record_file *file = NULL;
    struct fvm_ho_record r;
    struct fvm_err err;
    uint64_t revision;
    char path[sizeof(m->record_spec)];
    const char *name = m->record_spec + 5; /* behind "file:" */
    if (access(name, F_OK) || fvm_record_file_open(name, NULL, &file, &err))
        return;
    const struct fvm_record_store store = fvm_record_file_store(file);
    if (store.get(store.ctx, &r, &revision, &err) == 0 && r.phase == FVM_HO_STABLE && strcmp(r.owner, m->self) == 0) {
        unlink(name);
        if ((size_t)snprintf(path, sizeof(path), "%s.lock", name) < sizeof(path))
            unlink(path);
    }
    fvm_record_file_close(&file);
}

void fvm_migrate_close(struct fvm_run *run)
{
    struct fvm_run_migration *m = run->migration;
    if (!m)
        return;
    while (m->source || m->dest) {
        if (m->source)
            fvm_source_abandon(m->source);
        if (m->dest)
            fvm_dest_cancel(m->dest);
        if (fvm_loop_turn(run->loop, 50000000) < 0)
            break;
    }
    tidy(m);
    drop_record(m);
    if (m->ctx && !m->source && !m->dest)
        fvm_port_ctx_destroy(&m->ctx);
    if (m->memory)
        fvm_memory_destroy(&m->memory);
    explicit_bzero(&m->keys, sizeof(m->keys));
    free(m);
    run->migration = NULL;
}
