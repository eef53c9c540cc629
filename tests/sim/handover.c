/*
 * The hand-over under faults: two nodes, any number of migrations back and forth, two processes per node, one record,
 * one storage. A seed decides every step: who acts on what he last read, which message is lost, late or doubled, whose
 * swap or whose answer gets lost, who crashes, when the store is away. After each step:
 *
 *   one runner      at most one process executes the guest
 *   fresh           who starts executing has the newest memory
 *   one writer      who executes writes with the epoch that storage accepted last
 *   nothing wasted  no step but a crash takes away the last copy that the record allows to run; no cold boot while
 * there is one recoverable     when the faults end, the guest runs after a while
 *
 * The rules under test are migrate/handover.c itself, included here with its guards as switches: every single guard
 * removed must be found out. A run is named by its seed: sim_handover SEED [GUARD] prints its steps.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define GUARDS(X)                                                                                                      \
    X(BEGIN_OWNER)                                                                                                     \
    X(BEGIN_STABLE) X(ABORT_OWNER) X(ABORT_MIG) X(TAKE_IMAGE) X(TAKE_TICKET) X(RUN_STORAGE) X(HANDBACK_TAKEN)          \
        X(HANDBACK_HOLDS) X(CLAIM_SOURCE) X(CLAIM_DEST) X(SOURCE_OWN_MIG) X(SOURCE_READS_STABLE) X(SOURCE_WAITS_RUN)   \
            X(DEST_OWN_EPOCH) X(DEST_WAITS_RUN)
#define X(name) G_##name,
enum { G_NONE, GUARDS(X) G_COUNT };
#undef X
#define X(name) #name,
static const char *const guard_names[] = {"none", GUARDS(X)};
#undef X
static int removed; /* the test's switch: one of G_* */
#define FVM_HO_GUARD(name, cond) (removed == G_##name || (cond))
#include "migrate/handover.c"

enum { NODES = 2, SLOTS = 2, MESSAGES = 12, FAULT_STEPS = 600, QUIET_STEPS = 1500 };
enum kind { FREE, RUN, PAUSED, IMAGE };

struct proc { /* a VM process: a source's or a destination's */
    enum kind kind;
    uint64_t value; /* how far the guest had come in this copy */
    bool complete, migrating, unclear;
    struct fvm_ho_ticket ticket;
    struct fvm_ho_record know, want; /* last read; what an unanswered swap wanted */
    uint64_t know_rev, storage_epoch;
    bool knows;
    unsigned asleep; /* steps: stopped, swapped out, cut off from the store */
};
struct message {
    bool used, complete;
    struct fvm_ho_ticket ticket;
    uint64_t value;
};
struct world {
    uint64_t rng, rev, fence, history, next_id;
    struct fvm_ho_record record;
    bool up[NODES], faults, store_away, verbose;
    struct proc proc[NODES][SLOTS];
    struct message net[MESSAGES];
    bool bound[4096]; /* by migration: a destination process was connected; another never gets its pages (CURVE keys per
                         process) */
    const char *violation;
    unsigned step, crashes, moves, crash_one_in;
};
static const char *const names[NODES] = {"a", "b"};

static uint32_t rnd(struct world *w, uint32_t n)
{
    w->rng ^= w->rng << 13;
    w->rng ^= w->rng >> 7;
    w->rng ^= w->rng << 17;
    return (uint32_t)((w->rng >> 20) % n);
}

static bool fault(struct world *w, uint32_t one_in) { return w->faults && rnd(w, one_in) == 0; }

static int node_of(const char *name) { return strcmp(name, "b") == 0; }

static void bad(struct world *w, const char *what)
{
    if (!w->violation)
        w->violation = what;
}

static void say(const struct world *w, int node, int slot, const char *what)
{
    if (w->verbose)
        printf("%4u %s%d %-22s %s,%s e%llu m%u  fence %llu\n", w->step, node < 0 ? "-" : names[node], slot, what,
               w->record.owner, fvm_ho_phase_text(w->record.phase), (unsigned long long)w->record.epoch,
               w->record.mig_id[0], (unsigned long long)w->fence);
}

/* ---- what must always hold ---- */

static bool same_mig(const struct fvm_ho_record *r, const struct proc *p)
{
    return memcmp(r->mig_id, p->ticket.mig_id, FVM_HO_ID_BYTES) == 0;
}

/* Is there a copy, newest and on a live node, that the record lets run? */
static bool holder(const struct world *w)
{
    for (int n = 0; n < NODES; n++)
        for (int s = 0; s < SLOTS; s++) {
            const struct proc *p = &w->proc[n][s];
            bool owner = node_of(w->record.owner) == n, fresh = p->value == w->history;
            bool image = p->kind == IMAGE && p->complete && owner && w->record.epoch == p->ticket.epoch + 1;
            bool paused = p->kind == PAUSED && same_mig(&w->record, p) && node_of(p->ticket.from) == n;
            if (!fresh)
                continue;
            if (w->record.phase == FVM_HO_TAKEN ? image || (paused && !owner)
                                                : (owner && (p->kind == RUN || paused)) || image)
                return true;
        }
    return false;
}

static void check(struct world *w)
{
    int runners = 0;
    for (int n = 0; n < NODES; n++)
        for (int s = 0; s < SLOTS; s++)
            runners += w->proc[n][s].kind == RUN;
    if (runners > 1)
        bad(w, "two processes execute the guest");
}

/* ---- store and storage ---- */

static bool read_record(struct world *w, struct proc *p)
{
    if (w->store_away)
        return false;
    p->know = w->record;
    p->know_rev = w->rev;
    p->knows = true;
    return true;
}

/* 1: done and known; 0: refused; -1: no answer, it may have happened. */
static int swap(struct world *w, struct proc *p, const struct fvm_ho_record *next)
{
    if (w->store_away || fault(w, 12))
        return -1; /* the request got lost */
    if (p->know_rev != w->rev)
        return 0;
    w->record = *next;
    w->rev++;
    if (fault(w, 8))
        return -1; /* the answer got lost */
    p->know = *next;
    p->know_rev = w->rev;
    return 1;
}

static bool activate(struct world *w, struct proc *p, uint64_t epoch)
{
    if (epoch < w->fence)
        return false;
    w->fence = epoch;
    p->storage_epoch = epoch;
    return true;
}

static void execute(struct world *w, struct proc *p, const char *stale)
{
    if (p->value != w->history)
        bad(w, stale);
    if (p->storage_epoch != w->fence)
        bad(w, "executes without the storage");
    p->kind = RUN;
    p->migrating = p->unclear = false;
    w->moves++;
}

/* ---- network ---- */

static void post(struct world *w, const struct proc *p)
{
    struct message *m = &w->net[rnd(w, MESSAGES)]; /* a full network forgets */
    if (fault(w, 6))
        return;
    *m = (struct message){.used = true, .complete = p->kind == PAUSED, .ticket = p->ticket, .value = p->value};
}

static void deliver(struct world *w)
{
    struct message *m = &w->net[rnd(w, MESSAGES)];
    if (!m->used)
        return;
    int n = node_of(m->ticket.to);
    struct proc *to = NULL;
    for (int s = 0; s < SLOTS; s++) {
        struct proc *p = &w->proc[n][s];
        if (p->kind == IMAGE && memcmp(p->ticket.mig_id, m->ticket.mig_id, FVM_HO_ID_BYTES) == 0) {
            to = p;
            break;
        }
        if (p->kind == FREE)
            to = p;
    }
    bool *bound = &w->bound[(m->ticket.mig_id[0] | m->ticket.mig_id[1] << 8) % 4096];
    if (to && to->kind == FREE && *bound)
        to = NULL;
    if (w->up[n] && to && !(to->kind == IMAGE && to->complete)) {
        *bound = true;
        *to = (struct proc){.kind = IMAGE, .value = m->value, .complete = m->complete, .ticket = m->ticket};
        say(w, n, (int)(to - w->proc[n]), m->complete ? "image" : "part of image");
    }
    if (!fault(w, 6))
        m->used = false; /* else it comes again */
}

/* ---- a source's process ---- */

static void try_begin(struct world *w, int n, struct proc *p)
{
    struct fvm_ho_record next;
    uint8_t id[FVM_HO_ID_BYTES] = {(uint8_t)++w->next_id, (uint8_t)(w->next_id >> 8)};
    if (fvm_ho_begin(&p->know, names[n], names[!n], id, &next) != 0)
        return;
    int r = swap(w, p, &next);
    if (p->kind != RUN || r == 0)
        return; /* an operator asked the wrong process: nothing follows from it */
    memcpy(p->ticket.mig_id, id, sizeof(id));
    p->ticket.epoch = next.epoch;
    snprintf(p->ticket.from, sizeof(p->ticket.from), "%s", names[n]);
    snprintf(p->ticket.to, sizeof(p->ticket.to), "%s", names[!n]);
    p->want = next;
    p->migrating = r > 0;
    p->unclear = r < 0;
}

static void try_abort(struct world *w, int n, struct proc *p)
{
    struct fvm_ho_record next;
    if (fvm_ho_abort(&p->know, names[n], &next) == 0)
        swap(w, p, &next);
}

static void running(struct world *w, int n, struct proc *p)
{
    switch (rnd(w, 7)) {
    case 0:
    case 1:
        if (p->storage_epoch != w->fence)
            bad(w, "executes without the storage");
        p->value = ++w->history;
        break;
    case 2:
        if (!read_record(w, p))
            break;
        if (p->unclear) { /* did our BEGIN happen? */
            p->migrating = memcmp(&p->know, &p->want, sizeof(p->want)) == 0;
            p->unclear = false;
        } else if (p->know.phase == FVM_HO_MIG && !p->migrating) {
            try_abort(w, n, p); /* left over from an attempt that could not be ended */
        } else if (p->know.phase != FVM_HO_MIG) {
            p->migrating = false; /* our ABORT happened after all */
        }
        break;
    case 3:
        if (!p->migrating && !p->unclear && w->faults && read_record(w, p))
            try_begin(w, n, p);
        break;
    case 4:
        if (p->migrating)
            post(w, p); /* memory as it is now: a pre-copy round */
        break;
    case 5:
        if (p->migrating) {
            p->kind = PAUSED;
            p->knows = false;
        }
        break;
    default:
        if (p->migrating && rnd(w, 4) == 0)
            try_abort(w, n, p);
    }
}

static void settle_source(struct world *w, int n, struct proc *p)
{
    struct fvm_ho_record next;
    switch (fvm_ho_source_decide(&p->know, &p->ticket)) {
    case FVM_HO_SOURCE_RESUME:
        if (activate(w, p, p->know.epoch))
            execute(w, p, "the source resumes with old memory");
        break;
    case FVM_HO_SOURCE_DESTROY:
        if (same_mig(&w->record, p) && (w->record.phase != FVM_HO_STABLE || node_of(w->record.owner) == n))
            bad(w, "the source frees the guest before it runs elsewhere");
        *p = (struct proc){0};
        break;
    case FVM_HO_SOURCE_TAKEN:
        if (rnd(w, 4) == 0 && fvm_ho_handback(&p->know, FVM_HO_HOLDS_PAUSED, &next) == 0)
            swap(w, p, &next);
        break;
    case FVM_HO_SOURCE_WAIT:
        if (rnd(w, 4) == 0)
            try_abort(w, n, p);
        break;
    }
}

static void paused(struct world *w, int n, struct proc *p)
{
    switch (rnd(w, 3)) {
    case 0:
        post(w, p);
        break;
    case 1:
        read_record(w, p);
        break;
    default:
        if (p->knows) /* perhaps long after it was read */
            settle_source(w, n, p);
    }
}

/* ---- a destination's process, and what a node's agent asks of the other ---- */

static enum fvm_ho_holding holds(const struct world *w, int n, enum kind kind)
{
    bool any = false;
    if (!w->up[n])
        return FVM_HO_HOLDS_UNKNOWN;
    for (int s = 0; s < SLOTS; s++) {
        const struct proc *p = &w->proc[n][s];
        if (p->kind == kind && p->kind == PAUSED && same_mig(&w->record, p))
            return FVM_HO_HOLDS_PAUSED;
        if (p->kind == IMAGE && kind == IMAGE && p->complete && same_mig(&w->record, p))
            return FVM_HO_HOLDS_IMAGE;
        if (p->kind == RUN)
            return FVM_HO_HOLDS_RUNNING;
        any |= p->kind == kind && same_mig(&w->record, p);
    }
    return any ? FVM_HO_HOLDS_UNKNOWN : FVM_HO_HOLDS_NOTHING;
}

static void settle_dest(struct world *w, int n, struct proc *p)
{
    struct fvm_ho_record next;
    switch (fvm_ho_dest_decide(&p->know, &p->ticket)) {
    case FVM_HO_DEST_TAKE:
        if (fvm_ho_take(&p->know, &p->ticket, p->complete ? FVM_HO_HOLDS_IMAGE : FVM_HO_HOLDS_UNKNOWN, &next) == 0)
            swap(w, p, &next);
        break;
    case FVM_HO_DEST_ACTIVATE:
        if (rnd(w, 3) == 0)
            activate(w, p, p->know.epoch);
        else if (rnd(w, 6) == 0 &&
                 fvm_ho_handback(&p->know, p->know_rev == w->rev ? holds(w, !n, PAUSED) : FVM_HO_HOLDS_UNKNOWN,
                                 &next) == 0)
            swap(w, p, &next);
        else if (fvm_ho_run(&p->know, &p->ticket, p->storage_epoch, &next) == 0)
            swap(w, p, &next);
        break;
    case FVM_HO_DEST_EXECUTE:
        execute(w, p, "the destination runs an old image");
        break;
    case FVM_HO_DEST_DISCARD:
        *p = (struct proc){0};
        break;
    }
}

static void image(struct world *w, int n, struct proc *p)
{
    struct fvm_ho_record next;
    if (rnd(w, 2) == 0)
        read_record(w, p);
    else if (p->knows && rnd(w, 5) == 0 && fvm_ho_run(&p->know, &p->ticket, p->storage_epoch, &next) == 0)
        swap(w, p, &next); /* an eager one: the guard must hold it back */
    else if (p->knows && rnd(w, 5) == 0 &&
             fvm_ho_take(&p->know, &p->ticket, p->complete ? FVM_HO_HOLDS_IMAGE : FVM_HO_HOLDS_UNKNOWN, &next) == 0)
        swap(w, p, &next);
    else if (p->knows)
        settle_dest(w, n, p);
    if (p->kind == IMAGE && fault(w, 60) && p->knows)
        try_begin(w, n, p); /* an operator's mistake */
}

/* A node repairs the record after a crash: one fresh read, one swap. */
static void agent(struct world *w, int n)
{
    struct proc me = {0};
    struct fvm_ho_record next;
    bool alive = false, taken = false, any = false;
    if (!read_record(w, &me))
        return;
    for (int s = 0; s < SLOTS; s++) {
        const struct proc *p = &w->proc[n][s];
        alive |= p->kind == RUN || (p->kind == PAUSED && same_mig(&w->record, p));
        taken |= p->kind == IMAGE && same_mig(&w->record, p);
        any |= p->kind == IMAGE;
    }
    int from = node_of(me.know.from), to = node_of(me.know.to);
    switch (rnd(w, 4)) {
    case 0:
        if (!alive && !any && fvm_ho_abort(&me.know, names[n], &next) == 0)
            swap(w, &me, &next);
        break;
    case 1:
        if (!taken && fvm_ho_handback(&me.know, holds(w, from, PAUSED), &next) == 0)
            swap(w, &me, &next);
        break;
    case 2:
        if (fvm_ho_claim(&me.know, names[n], holds(w, from, PAUSED), holds(w, to, IMAGE), &next) == 0)
            swap(w, &me, &next);
        break;
    default:
        if (me.know.phase == FVM_HO_STABLE && node_of(me.know.owner) == n && !alive && !taken) {
            struct proc *p = w->proc[n][0].kind == FREE ? &w->proc[n][0] : &w->proc[n][1];
            if (holder(w))
                bad(w, "cold boot although there is a good copy");
            *p = (struct proc){0};
            if (activate(w, p, me.know.epoch)) {
                p->value = ++w->history;
                execute(w, p, "cold boot");
            }
        }
    }
}

/* ---- a step ---- */

static bool crash(struct world *w)
{
    int n = (int)rnd(w, NODES), s = (int)rnd(w, SLOTS);
    if (!fault(w, w->crash_one_in))
        return false;
    w->crashes++;
    if (rnd(w, 2) == 0) {
        w->up[n] = false;
        memset(w->proc[n], 0, sizeof(w->proc[n]));
        say(w, n, 9, "node crashes");
    } else {
        w->proc[n][s] = (struct proc){0};
        say(w, n, s, "process crashes");
    }
    return true;
}

static void one_step(struct world *w)
{
    static const char *const kinds[] = {"", "running", "paused", "image"};
    bool had = holder(w);
    if (crash(w))
        return;
    if (w->faults && rnd(w, 80) == 0)
        w->store_away = !w->store_away;
    int n = (int)rnd(w, NODES), s = (int)rnd(w, SLOTS);
    if (!w->up[n]) {
        w->up[n] = rnd(w, 10) == 0;
        return;
    }
    struct proc *p = &w->proc[n][s];
    enum kind kind = p->kind;
    if (kind != FREE && fault(w, 50))
        p->asleep = rnd(w, 300);
    if (p->asleep > 0 && w->faults) {
        p->asleep--;
        return;
    }
    if (rnd(w, 4) == 0)
        deliver(w);
    else if (rnd(w, 6) == 0)
        agent(w, n);
    else if (kind == RUN)
        running(w, n, p);
    else if (kind == PAUSED)
        paused(w, n, p);
    else if (kind == IMAGE)
        image(w, n, p);
    if (w->verbose && kind != FREE)
        say(w, n, s, kinds[kind]);
    check(w);
    if (had && !holder(w) && !w->violation)
        bad(w, "a step that was no crash lost the last good copy");
}

static const char *run_seed(uint64_t seed, bool verbose, unsigned *ret_moves)
{
    struct world w = {.rng = seed * 0x9e3779b97f4a7c15ull + 1,
                      .rev = 1,
                      .fence = 1,
                      .up = {true, true},
                      .faults = true,
                      .verbose = verbose};
    w.record = (struct fvm_ho_record){.owner = "a", .epoch = 1, .phase = FVM_HO_STABLE};
    w.crash_one_in = seed % 3 ? 60 : 1000; /* calm runs get further */
    w.proc[0][0] = (struct proc){.kind = RUN, .storage_epoch = 1};
    for (w.step = 0; w.step < FAULT_STEPS && !w.violation; w.step++)
        one_step(&w);
    w.faults = w.store_away = false;
    for (int n = 0; n < NODES; n++)
        w.up[n] = true;
    bool runs = false;
    for (; w.step < FAULT_STEPS + QUIET_STEPS && !w.violation && !runs; w.step++) {
        one_step(&w);
        for (int n = 0; n < NODES; n++)
            for (int s = 0; s < SLOTS; s++)
                runs |= w.proc[n][s].kind == RUN && !w.proc[n][s].migrating;
    }
    if (!w.violation && !runs)
        w.violation = "the guest never runs again";
    *ret_moves += w.moves;
    return w.violation;
}

int main(int argc, char **argv)
{
    unsigned moves = 0, failures = 0;
    if (argc > 1) {
        for (int g = 0; argc > 2 && g < G_COUNT; g++)
            removed = strcmp(argv[2], guard_names[g]) == 0 ? g : removed;
        const char *v = run_seed(strtoull(argv[1], NULL, 0), true, &moves);
        printf("seed %s guard removed %s: %s\n", argv[1], guard_names[removed], v ? v : "holds");
        return v != NULL;
    }
    const char *env = getenv("FVM_SIM_SEEDS");
    uint64_t seeds = env ? strtoull(env, NULL, 0) : 20000;
    for (uint64_t seed = 1; seed <= seeds; seed++) {
        const char *v = run_seed(seed, false, &moves);
        if (v) {
            printf("seed %llu: %s\n", (unsigned long long)seed, v);
            failures++;
        }
    }
    printf("%llu seeds, %u activations of a guest, %u violations\n", (unsigned long long)seeds, moves, failures);
    for (removed = 1; removed < G_COUNT; removed++) {
        const char *v = NULL;
        uint64_t seed = 0;
        while (!v && ++seed <= 40000)
            v = run_seed(seed, false, &moves);
        printf("without %-20s %s%s (seed %llu)\n", guard_names[removed], v ? "found: " : "NOT FOUND", v ? v : "",
               (unsigned long long)seed);
        failures += v == NULL;
    }
    return failures ? 1 : 0;
}
