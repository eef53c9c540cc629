/*
 * ctl_migrate.c - vm migrate: a bar on a terminal, NDJSON with --json, otherwise a line per change; then the timeline.
 *
 * Leaving this program never stops a migration; Ctrl-C asks for its cancellation and waits for the answer, a second one
 * leaves.
 */
#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include "cluster/ctl.h"

enum { BAR = 24 };

struct watch {
    struct fvm_ctl *ctl;
    struct fvm_rpc_client *client;
    uint64_t id;
    int signals;
    bool tty, cancelled;
    char last_phase[24];
    uint32_t last_round;
    uint64_t printed_ns;
};

static void print_bar(const Fvm__MigrateProgress *p)
{
    char bar[BAR + 1], left[24], rate[24], down[24];
    uint64_t done = p->memory_bytes > p->remaining_bytes ? p->memory_bytes - p->remaining_bytes : 0;
    unsigned filled = p->memory_bytes ? (unsigned)(done * BAR / p->memory_bytes) : 0;
    for (unsigned i = 0; i < BAR; i++)
        bar[i] = i < filled ? '#' : '.';
    bar[BAR] = 0;
    printf("\r\033[K%-8s round %-2u [%s] %8s left, %8s/s, downtime %s, runs on %s%s%s", p->phase, p->round, bar,
           fvm_ctl_bytes(p->remaining_bytes, left), fvm_ctl_bytes(p->rate_bytes, rate),
           p->predicted_downtime_ns ? fvm_ctl_ms(p->predicted_downtime_ns, down) : "?", p->owner[0] ? p->owner : "?",
           p->text[0] ? ": " : "", p->text);
    fflush(stdout);
}

static void print_line(const Fvm__MigrateProgress *p)
{
    char left[24], rate[24], down[24], at[24];
    printf("%9s %s round %u: %s left, %s/s, predicted downtime %s, owner %s%s%s\n", fvm_ctl_ms(p->elapsed_ns, at),
           p->phase, p->round, fvm_ctl_bytes(p->remaining_bytes, left), fvm_ctl_bytes(p->rate_bytes, rate),
           p->predicted_downtime_ns ? fvm_ctl_ms(p->predicted_downtime_ns, down) : "?", p->owner[0] ? p->owner : "?",
           p->text[0] ? ": " : "", p->text);
    fflush(stdout);
}

static void show_progress(struct watch *w, const Fvm__MigrateProgress *p)
{
    bool news = strcmp(w->last_phase, p->phase) || w->last_round != p->round || p->text[0];
    snprintf(w->last_phase, sizeof(w->last_phase), "%s", p->phase);
    w->last_round = p->round;
    if (w->ctl->opt.json) {
        json_t *o = fvm_ctl_progress_json(p);
        json_dumpf(o, stdout, JSON_COMPACT);
        putchar('\n');
        fflush(stdout);
        json_decref(o);
    } else if (w->tty) {
        print_bar(p);
    } else if (news || fvm_now_ns() - w->printed_ns > 1000000000ull) {
        print_line(p);
        w->printed_ns = fvm_now_ns();
    }
}

static void print_report(const Fvm__MigrateProgress *p)
{
    char a[24], b[24];
    printf("  prepare    %10s\n", fvm_ctl_ms(p->prepare_ns, a));
    printf("  pre-copy   %10s   %u round%s, %s sent of %s memory\n", fvm_ctl_ms(p->precopy_ns, a), p->rounds,
           p->rounds == 1 ? "" : "s", fvm_ctl_bytes(p->sent_bytes, b), fvm_ctl_bytes(p->memory_bytes, (char[24]){0}));
    printf("  final      %10s   guest paused, last pages, processor and devices\n", fvm_ctl_ms(p->final_ns, a));
    printf("  hand-over  %10s   take, run\n", fvm_ctl_ms(p->handover_ns, a));
    printf("  blackout   %10s\n", fvm_ctl_ms(p->blackout_ns, a));
    for (size_t i = 0; i < p->n_pieces; i++)
        printf("    %-14s %8.2f ms\n", p->pieces[i]->name, (double)p->pieces[i]->ns / 1e6);
    if (p->throttled_ns)
        printf("  held       %10s   writers, to %s/s of written pages\n", fvm_ctl_ms(p->throttled_ns, a),
               fvm_ctl_bytes(p->write_limit_bytes, b));
    printf("  total      %10s\n", fvm_ctl_ms(p->total_ns, a));
    if (p->pages_resent || p->digest_repairs)
        printf("  resent     %10llu   pages that came damaged or not at all, %llu of them found by their digest\n",
               (unsigned long long)(p->pages_resent + p->digest_repairs), (unsigned long long)p->digest_repairs);
    printf("  %s\n", p->verified ? "memory verified" : "memory NOT verified");
}

static void print_timeline(const struct watch *w, const Fvm__Reply *reply)
{
    const Fvm__MigrateProgress *p = reply->progress;
    char a[24];
    if (w->tty)
        printf("\r\033[K");
    if (!p) {
        puts(reply->text);
        return;
    }
    if (w->ctl->opt.dry_run) { /* nothing was sent: there are no further phases */
        printf("%s\n\n  prepare    %10s\n", reply->text, fvm_ctl_ms(p->prepare_ns, a));
        return;
    }
    printf("%s\n\n", reply->text);
    print_report(p);
}

static void interrupted(struct watch *w)
{
    struct signalfd_siginfo si;
    Fvm__Request request = FVM__REQUEST__INIT;
    Fvm__Cancel cancel = FVM__CANCEL__INIT;
    if (read(w->signals, &si, sizeof(si)) <= 0)
        return;
    if (w->cancelled || si.ssi_signo != SIGINT)
        _exit(130); /* the migration goes on without us */
    w->cancelled = true;
    cancel.of = w->id;
    request.what_case = FVM__REQUEST__WHAT_CANCEL;
    request.cancel = &cancel;
    (void)fvm_rpc_start(w->client, &request, NULL);
    fprintf(stderr, "%scancelling; once more leaves it alone\n", w->tty ? "\n" : "");
}

static int follow(struct watch *w, struct fvm_err *err)
{
    for (;;) {
        Fvm__Reply *reply = NULL;
        int rc = fvm_rpc_next(w->client, w->id, -1, w->signals, &reply, err);
        if (rc == FVM_EBUSY) {
            interrupted(w);
            continue;
        }
        if (rc)
            return rc;
        bool last = reply->last;
        if (!last && reply->progress)
            show_progress(w, reply->progress);
        if (last && reply->code)
            rc = fvm_err_set(err, reply->code, 0, "cluster", "%s", reply->text);
        else if (last && w->ctl->opt.json)
            fvm_ctl_print_json(reply->progress ? fvm_ctl_progress_json(reply->progress) : json_object());
        else if (last)
            print_timeline(w, reply);
        if (last && reply->code && w->tty)
            putchar('\n');
        fvm__reply__free_unpacked(reply, NULL);
        if (last)
            return rc;
    }
}

static int watch_signals(struct watch *w, struct fvm_err *err)
{
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGINT);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGHUP);
    w->signals = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
    return w->signals >= 0 ? 0
                           : fvm_err_set(err, fvm_err_from_errno(errno), errno, "cluster", "cannot watch signals: %s",
                                         strerror(errno));
}

int fvm_ctl_vm_migrate(struct fvm_ctl *ctl, struct fvm_err *err)
{
    struct watch w = {.ctl = ctl, .tty = isatty(STDOUT_FILENO) && !ctl->opt.json, .signals = -1};
    Fvm__Request request = FVM__REQUEST__INIT;
    Fvm__VmMigrate m = FVM__VM_MIGRATE__INIT;
    m.name = (char *)(uintptr_t)ctl->opt.words[2];
    m.to = (char *)(uintptr_t)ctl->opt.words[3];
    m.max_downtime_ms = ctl->opt.max_downtime_ms;
    m.deadline_ms = ctl->opt.deadline_s * 1000;
    m.on_miss = (char *)(uintptr_t)(ctl->opt.on_miss ? ctl->opt.on_miss : "");
    m.rate_limit_bytes = ctl->opt.rate_limit_bytes;
    m.no_throttle = ctl->opt.no_throttle;
    m.dry_run = ctl->opt.dry_run;
    request.what_case = FVM__REQUEST__WHAT_VM_MIGRATE;
    request.vm_migrate = &m;
    int rc = watch_signals(&w, err);
    if (!rc)
        rc = fvm_ctl_connect_owner(ctl, m.name, &w.client, err);
    if (!rc)
        rc = fvm_rpc_start(w.client, &request, err);
    w.id = request.id;
    if (!rc)
        rc = follow(&w, err);
    if (w.client)
        fvm_rpc_close(&w.client);
    if (w.signals >= 0)
        close(w.signals);
    return rc;
}

/* ---- explain ---- */

static json_t *move_json(const Fvm__VmMove *m)
{
    json_t *o = json_pack("{s:s, s:s, s:I, s:b, s:s}", "from", m->from, "to", m->to, "wall_ns", (json_int_t)m->wall_ns,
                          "moved", (int)m->moved, "why", m->why);
    json_t *report = fvm_ctl_progress_json(m->report);
    json_object_update(o, report);
    json_decref(report);
    return o;
}

int fvm_ctl_vm_explain(struct fvm_ctl *ctl, struct fvm_err *err)
{
    Fvm__Request request = FVM__REQUEST__INIT;
    Fvm__VmName name = FVM__VM_NAME__INIT;
    Fvm__Reply *reply = NULL;
    char when[32];
    name.name = (char *)(uintptr_t)ctl->opt.words[2];
    request.what_case = FVM__REQUEST__WHAT_VM_EXPLAIN;
    request.vm_explain = &name;
    int rc = fvm_ctl_call(ctl, &request, FVM_CTL_ANSWER_MS, &reply, NULL, err);
    if (rc)
        return rc;
    const Fvm__VmMove *m = reply->move;
    if (!m || !m->report) {
        rc = fvm_err_set(err, FVM_EPROTO, 0, "cluster", "the node gave no usable answer");
    } else if (ctl->opt.json) {
        fvm_ctl_print_json(move_json(m));
    } else {
        printf("%s VM %s ", fvm_ctl_time(m->wall_ns, when), name.name);
        if (m->moved)
            printf("moved from node %s to node %s\n\n", m->from, m->to);
        else
            printf("stayed on node %s, it was to move to node %s: %s\n\n", m->from, m->to, m->why);
        print_report(m->report);
    }
    fvm__reply__free_unpacked(reply, NULL);
    return rc;
}
