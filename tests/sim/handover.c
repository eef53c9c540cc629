/*
 * The hand-over under faults. In one thread, with a seed: nodes, their daemons, VM processes, one record in a store,
 * one storage, a network. The seed decides every step: who acts on what he last read, which message is lost, late,
 * doubled or overtaken, whose swap or whose answer gets lost, who is cut off from whom in which direction, who crashes,
 * sleeps or comes back, whose clock jumps, when the store is away. One seed in four is a calm run with one or two
 * faults at steps that move on with the seed, so that every step of a plain migration has every fault once.
 *
 * After each step:
 *   one runner      at most one process executes the guest
 *   fresh           who starts executing has the newest memory
 *   one writer      who writes does so with the epoch that storage accepted last; epochs in its log never fall
 *   nothing wasted  no step but a crash takes away the last copy that the record allows to run; no cold boot while
 * there is one a good record   possible, its epoch never falls, a change of owner raises it When the faults end: within
 * bounded steps the guest runs once, the record is stable, no other process is left.
 *
 * The rules under test are the project's own (migrate/handover.c, handover_recover.c), included with their guards as
 * switches; the guards of their callers (what a swap compares, when an answer counts, ...) are switches of the model.
 * Each single one removed must be found out.
 *
 *   sim_handover                     2,000 seeds, and 2,000 at most for each guard
 *   sim_handover --seeds N           the soak
 *   sim_handover --replay SEED [GUARD]   prints the run
 */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define GUARDS(X)                                                                                                      \
    X(BEGIN_OWNER)                                                                                                     \
    X(BEGIN_STABLE) X(ABORT_OWNER) X(ABORT_MIG) X(TAKE_IMAGE) X(TAKE_TICKET) X(RUN_STORAGE) X(HANDBACK_TAKEN)          \
        X(HANDBACK_HOLDS) X(CLAIM_SOURCE) X(CLAIM_DEST) X(SOURCE_OWN_MIG) X(SOURCE_READS_STABLE) X(SOURCE_WAITS_RUN)   \
            X(DEST_OWN_EPOCH) X(DEST_WAITS_RUN) X(SWAP_COMPARES) X(LOST_IS_READ) X(RECOVER_REREADS)                    \
                X(RECOVER_LOOKS_AGAIN) X(SILENT_IS_UNKNOWN) X(STORAGE_EPOCH) X(START_STABLE)
#define X(name) G_##name,
enum { G_NONE, GUARDS(X) G_COUNT };
#undef X
#define X(name) #name,
static const char *const guard_names[] = {"none", GUARDS(X)};
#undef X
static int removed; /* the test's switch: one of G_* */
#define FVM_HO_GUARD(name, cond) (removed == G_##name || (cond))
#include "migrate/handover.c"
#undef ADVISE
#include "migrate/handover_recover.c"

enum {
    NODES = 3,
    SLOTS = 2,
    MESSAGES = 40,
    FAULT_STEPS = 700,
    QUIET_STEPS = 4000,
    IDS = 4096,
    PATIENCE = 40,
    LEASE = 60
};
enum kind { FREE, RUN, PAUSED, IMAGE };

struct proc { /* a VM process: a source's or a destination's */
    enum kind kind;
    uint64_t value; /* how far the guest had come in this copy */
    bool complete, migrating, unclear, knows;
    struct fvm_ho_ticket ticket;
    struct fvm_ho_record know, want; /* last read; what an unanswered swap wanted */
    uint64_t know_rev, storage_epoch;
    int64_t until;   /* by its node's clock: then it gives up waiting */
    unsigned asleep; /* steps: stopped, swapped out */
};
enum what { PAGES, ASK, ANSWER };
struct message {
    enum what what;
    bool used, complete;
    int from, to;
    uint64_t due, value, question;
    enum fvm_ho_holding holding;
    struct fvm_ho_ticket ticket;
};
struct recovery { /* a daemon's (cluster/node_recover.c) */
    bool busy, insist, answered[2];
    uint64_t question, rev;
    int64_t until;
    struct fvm_ho_record record;
    enum fvm_ho_holding said[2]; /* owner, other */
};
struct node {
    bool up, daemon;                             /* the host; its daemon */
    bool cut_to[NODES], cut_request, cut_answer; /* one way each; the last two: to and from the store */
    int64_t clock, lease;                        /* lease: by the store's clock */
    struct proc proc[SLOTS];
    struct recovery recovery;
};
struct world {
    uint64_t rng, seed, rev, fence, wrote_epoch, history, next_id, questions, now;
    struct fvm_ho_record record;
    struct node node[NODES];
    struct message net[MESSAGES];
    bool bound[IDS]; /* by migration: a destination process was connected; another never gets its pages (CURVE keys) */
    bool faults, store_away, verbose, crashed, planned;
    uint64_t plan_step[2];
    unsigned plan_fault[2], crash_one_in, sleep_one_in;
    const char *violation;
    unsigned step, moves;
};
static const char *const names[NODES] = {"a", "b", "c"};

/* ---- chance, and words ---- */

static uint32_t rnd(struct world *w, uint32_t n)
{
    w->rng ^= w->rng << 13;
    w->rng ^= w->rng >> 7;
    w->rng ^= w->rng << 17;
    return (uint32_t)((w->rng >> 20) % n);
}

static bool chance(struct world *w, uint32_t one_in) { return rnd(w, one_in) == 0; }
static bool fault(struct world *w, uint32_t one_in) { return w->faults && !w->planned && chance(w, one_in); }
static bool guard(int which, bool cond) { return removed == which || cond; }

static int node_of(const char *name)
{
    for (int n = 0; n < NODES; n++)
        if (strcmp(name, names[n]) == 0)
            return n;
    return 0;
}

static void bad(struct world *w, const char *what)
{
    if (!w->violation)
        w->violation = what;
}

static FVM_PRINTF(3, 4) void say(const struct world *w, int n, const char *fmt, ...)
{
    char text[80];
    va_list ap;
    if (!w->verbose)
        return;
    va_start(ap, fmt);
    vsnprintf(text, sizeof(text), fmt, ap);
    va_end(ap);
    printf("%4u %s %-34s %s,%s e%llu m%u r%llu fence %llu |", w->step, n < 0 ? "-" : names[n], text, w->record.owner,
           fvm_ho_phase_text(w->record.phase), (unsigned long long)w->record.epoch, w->record.mig_id[0],
           (unsigned long long)w->rev, (unsigned long long)w->fence);
    for (int i = 0; i < NODES; i++) {
        static const char letters[] = ".RPI";
        printf(" %s%s", names[i], w->node[i].up ? w->node[i].daemon ? "" : "-" : "!");
        for (int s = 0; s < SLOTS; s++)
            printf("%c", letters[w->node[i].proc[s].kind]);
    }
    putchar('\n');
}

/* ---- what must always hold ---- */

static bool same_mig(const struct fvm_ho_record *r, const struct proc *p)
{
    return memcmp(r->mig_id, p->ticket.mig_id, FVM_HO_ID_BYTES) == 0;
}

static bool holds_it(const struct world *w, int n, const struct proc *p)
{
    bool owner = node_of(w->record.owner) == n;
    bool image = p->kind == IMAGE && p->complete && owner && w->record.epoch == p->ticket.epoch + 1;
    bool paused = p->kind == PAUSED && same_mig(&w->record, p) && node_of(p->ticket.from) == n;
    if (p->kind == FREE || p->value != w->history)
        return false;
    return w->record.phase == FVM_HO_TAKEN ? image || (paused && !owner)
                                           : (owner && (p->kind == RUN || paused)) || image;
}

/* Is there a copy, newest and on a live node, that the record lets run? */
static bool holder(const struct world *w)
{
    for (int n = 0; n < NODES; n++)
        for (int s = 0; s < SLOTS; s++)
            if (holds_it(w, n, &w->node[n].proc[s]))
                return true;
    return false;
}

static unsigned count(const struct world *w, bool running)
{
    unsigned found = 0;
    for (int n = 0; n < NODES; n++)
        for (int s = 0; s < SLOTS; s++)
            found += running ? w->node[n].proc[s].kind == RUN : w->node[n].proc[s].kind != FREE;
    return found;
}

static void check(struct world *w, const struct fvm_ho_record *before)
{
    if (count(w, true) > 1)
        bad(w, "two processes execute the guest");
    if (!fvm_ho_record_valid(&w->record))
        bad(w, "the record cannot be");
    if (w->record.epoch < before->epoch)
        bad(w, "the epoch falls");
    if (strcmp(w->record.owner, before->owner) && w->record.epoch == before->epoch)
        bad(w, "another owner with the same epoch");
}

/* ---- store and storage ---- */

static bool read_record(struct world *w, int n, struct proc *p)
{
    if (w->store_away || w->node[n].cut_request || w->node[n].cut_answer)
        return false;
    p->know = w->record;
    p->know_rev = w->rev;
    p->knows = true;
    return true;
}

/* 1: done and known; 0: refused; -1: no answer, it may have happened. */
static int swap(struct world *w, int n, struct proc *p, const struct fvm_ho_record *next)
{
    if (w->store_away || w->node[n].cut_request || fault(w, 12)) { /* the request got lost */
        if (removed != G_LOST_IS_READ)
            return -1;
        p->know = *next; /* who guesses takes what he wanted for the record */
        return 1;
    }
    bool lost = w->node[n].cut_answer || fault(w, 8);
    if (!guard(G_SWAP_COMPARES, p->know_rev == w->rev))
        return lost ? -1 : 0;
    w->record = *next;
    w->rev++;
    say(w, n, "swapped%s", lost ? ", unheard" : "");
    if (lost && removed != G_LOST_IS_READ)
        return -1;
    p->know = *next;
    p->know_rev = w->rev;
    return 1;
}

static bool activate(struct world *w, struct proc *p, uint64_t epoch)
{
    if (!guard(G_STORAGE_EPOCH, epoch >= w->fence))
        return false;
    w->fence = epoch;
    p->storage_epoch = epoch;
    return true;
}

static void execute(struct world *w, int n, struct proc *p, const char *stale)
{
    if (p->value != w->history)
        bad(w, stale);
    if (p->storage_epoch != w->fence)
        bad(w, "executes without the storage");
    p->kind = RUN;
    p->migrating = p->unclear = p->knows = false;
    w->moves++;
    say(w, n, "executes");
}

/* The guest computes, and writes its disk. */
static void compute(struct world *w, struct proc *p)
{
    if (p->storage_epoch != w->fence)
        bad(w, "executes without the storage");
    if (p->storage_epoch < w->wrote_epoch)
        bad(w, "a writer with an older epoch was let in");
    w->wrote_epoch = p->storage_epoch;
    p->value = ++w->history;
}

/* ---- network ---- */

static void post(struct world *w, const struct message *m)
{
    if (w->node[m->from].cut_to[m->to] || fault(w, 6))
        return;
    for (int copies = fault(w, 8) ? 2 : 1; copies; copies--) {
        struct message *slot = &w->net[rnd(w, MESSAGES)]; /* a full network forgets */
        *slot = *m;
        slot->used = true;
        slot->due = w->now + (w->planned ? 1 : rnd(w, fault(w, 10) ? 120 : 8));
    }
}

static void post_pages(struct world *w, int n, const struct proc *p)
{
    post(w, &(struct message){.what = PAGES,
                              .from = n,
                              .to = node_of(p->ticket.to),
                              .complete = p->kind == PAUSED,
                              .ticket = p->ticket,
                              .value = p->value});
}

static void take_pages(struct world *w, const struct message *m)
{
    struct node *node = &w->node[m->to];
    struct proc *to = NULL;
    bool *bound = &w->bound[(m->ticket.mig_id[0] | m->ticket.mig_id[1] << 8) % IDS];
    for (int s = 0; s < SLOTS && (!to || to->kind == FREE); s++)
        if (node->proc[s].kind == IMAGE && memcmp(node->proc[s].ticket.mig_id, m->ticket.mig_id, FVM_HO_ID_BYTES) == 0)
            to = &node->proc[s];
        else if (node->proc[s].kind == FREE && !*bound)
            to = &node->proc[s];
    if (!to || (to->kind == IMAGE && to->complete))
        return;
    *bound = true;
    *to = (struct proc){.kind = IMAGE,
                        .value = m->value,
                        .complete = m->complete,
                        .ticket = m->ticket,
                        .until = node->clock + PATIENCE};
    say(w, m->to, m->complete ? "whole image" : "part of an image");
}

/* ---- what a node's daemon says it holds (fvm_node_vm_holding) ---- */

static enum fvm_ho_holding holding(struct world *w, int n)
{
    struct proc me = {0};
    bool any = false;
    for (int s = 0; s < SLOTS; s++) {
        const struct proc *p = &w->node[n].proc[s];
        if (p->kind == RUN)
            return FVM_HO_HOLDS_RUNNING;
        if (p->kind == PAUSED && p->asleep == 0) {
            if (!read_record(w, n, &me))
                return FVM_HO_HOLDS_UNKNOWN;
            if (same_mig(&me.know, p) && node_of(me.know.from) == n)
                return FVM_HO_HOLDS_PAUSED;
        }
        any = any || p->kind != FREE;
    }
    for (int s = 0; s < SLOTS; s++)
        if (w->node[n].proc[s].kind == IMAGE)
            return FVM_HO_HOLDS_IMAGE;
    return any ? FVM_HO_HOLDS_UNKNOWN : FVM_HO_HOLDS_NOTHING;
}

static void take_answer(struct world *w, const struct message *m)
{
    struct recovery *r = &w->node[m->to].recovery;
    if (!r->busy || r->question != m->question)
        return;
    int side = node_of(r->record.owner) == m->from ? 0 : 1;
    r->said[side] = m->holding;
    r->answered[side] = true;
}

static void deliver(struct world *w)
{
    struct message *m = &w->net[rnd(w, MESSAGES)];
    if (!m->used || m->due > w->now)
        return;
    m->used = false;
    if (!w->node[m->to].up)
        return;
    if (m->what == PAGES)
        take_pages(w, m);
    else if (!w->node[m->to].daemon)
        return;
    else if (m->what == ANSWER)
        take_answer(w, m);
    else
        post(w,
             &(struct message){
                 .what = ANSWER, .from = m->to, .to = m->from, .question = m->question, .holding = holding(w, m->to)});
}

/* ---- a source's process ---- */

static void try_begin(struct world *w, int n, struct proc *p)
{
    struct fvm_ho_record next;
    uint8_t id[FVM_HO_ID_BYTES] = {(uint8_t)++w->next_id, (uint8_t)(w->next_id >> 8)};
    int to = (n + 1 + (int)rnd(w, NODES - 1)) % NODES, back = node_of(p->know.from);
    if (chance(w, 2) && p->know.from[0] && back != n)
        to = back; /* ping-pong: old processes are still there */
    if (fvm_ho_begin(&p->know, names[n], names[to], id, &next) != 0)
        return;
    int r = swap(w, n, p, &next);
    if (p->kind != RUN || r == 0)
        return; /* an operator asked the wrong process: nothing follows from it */
    memcpy(p->ticket.mig_id, id, sizeof(id));
    p->ticket.epoch = next.epoch;
    snprintf(p->ticket.from, sizeof(p->ticket.from), "%s", names[n]);
    snprintf(p->ticket.to, sizeof(p->ticket.to), "%s", names[to]);
    p->want = next;
    p->migrating = r > 0;
    p->unclear = r < 0;
}

static void try_abort(struct world *w, int n, struct proc *p)
{
    struct fvm_ho_record next;
    if (fvm_ho_abort(&p->know, names[n], &next) == 0)
        (void)swap(w, n, p, &next);
}

static void running(struct world *w, int n, struct proc *p)
{
    switch (rnd(w, 7)) {
    case 0:
    case 1:
        compute(w, p);
        break;
    case 2:
        if (!read_record(w, n, p))
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
        if (!p->migrating && !p->unclear && w->faults && read_record(w, n, p))
            try_begin(w, n, p);
        break;
    case 4:
        if (p->migrating)
            post_pages(w, n, p); /* memory as it is now: a pre-copy round */
        break;
    case 5:
        if (p->migrating) {
            p->kind = PAUSED;
            p->knows = false;
            p->until = w->node[n].clock + PATIENCE;
            say(w, n, "pauses");
        }
        break;
    default:
        if (p->migrating && (!w->faults || chance(w, 5)))
            try_abort(w, n, p);
    }
}

static void settle_source(struct world *w, int n, struct proc *p)
{
    struct fvm_ho_record next;
    bool late = w->node[n].clock >= p->until;
    switch (fvm_ho_source_decide(&p->know, &p->ticket)) {
    case FVM_HO_SOURCE_RESUME:
        if (activate(w, p, p->know.epoch))
            execute(w, n, p, "the source resumes with old memory");
        break;
    case FVM_HO_SOURCE_DESTROY:
        if (same_mig(&w->record, p) && (w->record.phase != FVM_HO_STABLE || node_of(w->record.owner) == n))
            bad(w, "the source frees the guest before it runs elsewhere");
        *p = (struct proc){0};
        say(w, n, "source frees");
        break;
    case FVM_HO_SOURCE_TAKEN:
        if (late && fvm_ho_handback(&p->know, FVM_HO_HOLDS_PAUSED, &next) == 0)
            (void)swap(w, n, p, &next);
        break;
    case FVM_HO_SOURCE_WAIT:
        if (late)
            try_abort(w, n, p);
        break;
    }
}

static void paused(struct world *w, int n, struct proc *p)
{
    switch (rnd(w, 3)) {
    case 0:
        post_pages(w, n, p);
        break;
    case 1:
        (void)read_record(w, n, p);
        break;
    default:
        if (p->knows) /* perhaps long after it was read */
            settle_source(w, n, p);
    }
}

/* ---- a destination's process ---- */

/* Its storage refuses: the source is asked over the migration's own connection, then the guest is offered back. */
static void offer_back(struct world *w, int n, struct proc *p)
{
    struct fvm_ho_record next;
    int from = node_of(p->ticket.from);
    enum fvm_ho_holding source = FVM_HO_HOLDS_UNKNOWN;
    for (int s = 0; s < SLOTS && w->node[from].up && !w->node[n].cut_to[from] && !w->node[from].cut_to[n]; s++)
        if (w->node[from].proc[s].kind == PAUSED && same_mig(&p->know, &w->node[from].proc[s]))
            source = FVM_HO_HOLDS_PAUSED;
    if (fvm_ho_handback(&p->know, source, &next) == 0)
        (void)swap(w, n, p, &next);
}

static void settle_dest(struct world *w, int n, struct proc *p)
{
    struct fvm_ho_record next;
    switch (fvm_ho_dest_decide(&p->know, &p->ticket)) {
    case FVM_HO_DEST_TAKE:
        if (fvm_ho_take(&p->know, &p->ticket, p->complete ? FVM_HO_HOLDS_IMAGE : FVM_HO_HOLDS_UNKNOWN, &next) == 0)
            (void)swap(w, n, p, &next);
        else if (w->node[n].clock >= p->until)
            *p = (struct proc){0}; /* a part of an image, and nothing more comes */
        break;
    case FVM_HO_DEST_ACTIVATE:
        if (rnd(w, 3) == 0)
            (void)activate(w, p, p->know.epoch);
        else if (fault(w, 6))
            offer_back(w, n, p);
        else if (fvm_ho_run(&p->know, &p->ticket, p->storage_epoch, &next) == 0)
            (void)swap(w, n, p, &next);
        break;
    case FVM_HO_DEST_EXECUTE:
        execute(w, n, p, "the destination runs an old image");
        break;
    case FVM_HO_DEST_DISCARD:
        *p = (struct proc){0};
        say(w, n, "discards its image");
        break;
    }
}

static void image(struct world *w, int n, struct proc *p)
{
    struct fvm_ho_record next;
    if (rnd(w, 2) == 0)
        (void)read_record(w, n, p);
    else if (p->knows && fault(w, 5) && fvm_ho_run(&p->know, &p->ticket, p->storage_epoch, &next) == 0)
        (void)swap(w, n, p, &next); /* an eager one: the guard must hold it back */
    else if (p->knows && fault(w, 5) &&
             fvm_ho_take(&p->know, &p->ticket, p->complete ? FVM_HO_HOLDS_IMAGE : FVM_HO_HOLDS_UNKNOWN, &next) == 0)
        (void)swap(w, n, p, &next);
    else if (p->knows)
        settle_dest(w, n, p);
    if (p->kind == IMAGE && fault(w, 60) && p->knows)
        try_begin(w, n, p); /* an operator's mistake */
}

/* ---- a daemon: repair, and an operator's start ---- */

static void cold_boot(struct world *w, int n)
{
    struct proc *p = &w->node[n].proc[0];
    if (holder(w))
        bad(w, "cold boot although there is a good copy");
    *p = (struct proc){0};
    if (activate(w, p, w->record.epoch)) {
        p->value = ++w->history;
        execute(w, n, p, "cold boot");
    }
}

static void ask(struct world *w, int n, int side, int whom)
{
    struct recovery *r = &w->node[n].recovery;
    if (whom == n) {
        r->said[side] = holding(w, n);
        r->answered[side] = true;
    } else {
        post(w, &(struct message){.what = ASK, .from = n, .to = whom, .question = r->question});
    }
}

static void begin_recovery(struct world *w, int n, const struct proc *read, bool insist)
{
    struct recovery *r = &w->node[n].recovery;
    *r = (struct recovery){.busy = true,
                           .insist = insist,
                           .question = ++w->questions,
                           .rev = read->know_rev,
                           .record = read->know,
                           .until = w->node[n].clock + 20,
                           .said = {FVM_HO_HOLDS_UNKNOWN, FVM_HO_HOLDS_UNKNOWN}};
    if (removed == G_SILENT_IS_UNKNOWN)
        r->said[0] = r->said[1] = FVM_HO_HOLDS_NOTHING;
    ask(w, n, 0, node_of(r->record.owner));
    ask(w, n, 1, node_of(r->record.phase == FVM_HO_MIG ? r->record.to : r->record.from));
}

static void end_recovery(struct world *w, int n)
{
    struct recovery *r = &w->node[n].recovery;
    struct proc me = {0};
    struct fvm_ho_advice a;
    struct fvm_ho_record next;
    int rc = FVM_ESTATE;
    r->busy = false;
    if (!read_record(w, n, &me) || !guard(G_RECOVER_REREADS, me.know_rev == r->rev))
        return;
    bool dead = w->node[node_of(r->record.owner)].lease < (int64_t)w->now;
    fvm_ho_recover(&r->record, r->said[0], r->said[1], r->insist || dead, &a);
    int mine = node_of(r->record.owner) == n ? 0 : 1;
    if (strcmp(a.by, names[n]) || !guard(G_RECOVER_LOOKS_AGAIN, holding(w, n) == r->said[mine]))
        return;
    if (a.cure == FVM_HO_ABORTS)
        rc = fvm_ho_abort(&r->record, names[n], &next);
    else if (a.cure == FVM_HO_HANDS_BACK)
        rc = fvm_ho_handback(&r->record, r->said[1], &next);
    else if (a.cure == FVM_HO_CLAIMS)
        rc = fvm_ho_claim(&r->record, names[n], r->said[1], r->said[0], &next);
    if (rc == 0)
        (void)swap(w, n, &me, &next);
}

/* Guards of the swaps themselves, asked without the table in front of them: an agent that is wrong about a side. */
static void rash(struct world *w, int n)
{
    struct proc me = {0};
    struct fvm_ho_record next;
    if (!read_record(w, n, &me))
        return;
    enum fvm_ho_holding mine = holding(w, n), silent = FVM_HO_HOLDS_UNKNOWN;
    bool owner = node_of(me.know.owner) == n;
    if (chance(w, 2) && fvm_ho_handback(&me.know, node_of(me.know.from) == n ? mine : silent, &next) == 0)
        (void)swap(w, n, &me, &next);
    else if (owner && fvm_ho_claim(&me.know, names[n], silent, mine, &next) == 0)
        (void)swap(w, n, &me, &next);
    else if (owner && fvm_ho_claim(&me.know, names[n], FVM_HO_HOLDS_NOTHING, mine, &next) == 0 &&
             holding(w, node_of(me.know.from)) == FVM_HO_HOLDS_NOTHING && w->node[node_of(me.know.from)].up)
        (void)swap(w, n, &me, &next);
    else if (mine == FVM_HO_HOLDS_NOTHING && fvm_ho_abort(&me.know, names[n], &next) == 0)
        (void)swap(w, n, &me, &next);
}

static void daemon_turn(struct world *w, int n)
{
    struct recovery *r = &w->node[n].recovery;
    struct proc me = {0};
    if (!w->store_away && !w->node[n].cut_request)
        w->node[n].lease = (int64_t)w->now + LEASE;
    if (r->busy) {
        if ((r->answered[0] && r->answered[1]) || w->node[n].clock >= r->until)
            end_recovery(w, n);
        return;
    }
    if (fault(w, 12)) {
        rash(w, n);
        return;
    }
    if (!read_record(w, n, &me))
        return;
    enum fvm_ho_holding mine = holding(w, n);
    bool owner = node_of(me.know.owner) == n, from = node_of(me.know.from) == n;
    bool insist = fault(w, 20); /* vm recover */
    if (guard(G_START_STABLE, me.know.phase == FVM_HO_STABLE) && owner && mine == FVM_HO_HOLDS_NOTHING) {
        if (removed == G_START_STABLE || chance(w, 3))
            cold_boot(w, n); /* vm start */
    } else if (me.know.phase != FVM_HO_STABLE &&
               ((owner && mine == FVM_HO_HOLDS_NOTHING) || (me.know.phase == FVM_HO_TAKEN && from) || insist)) {
        begin_recovery(w, n, &me, insist);
    }
}

/* ---- what goes wrong ---- */

enum { F_PROC, F_HOST, F_DAEMON, F_CUT, F_STORE, F_CUT_STORE, F_CLOCK, F_SLEEP, F_KINDS };

static void crash_proc(struct world *w, int n, int s)
{
    w->crashed = w->crashed || w->node[n].proc[s].kind != FREE;
    w->node[n].proc[s] = (struct proc){0};
    say(w, n, "process crashes");
}

static void break_something(struct world *w, unsigned kind, int n)
{
    struct node *node = &w->node[n];
    int s = (int)rnd(w, SLOTS);
    switch (kind) {
    case F_PROC:
        crash_proc(w, n, node->proc[s].kind == FREE ? !s : s);
        break;
    case F_HOST:
        w->crashed = true;
        node->up = node->daemon = false;
        memset(node->proc, 0, sizeof(node->proc));
        node->recovery.busy = false;
        say(w, n, "host crashes");
        break;
    case F_DAEMON:
        node->daemon = false;
        node->recovery.busy = false;
        say(w, n, "daemon crashes");
        break;
    case F_CUT:
        node->cut_to[(n + 1 + (int)rnd(w, NODES - 1)) % NODES] ^= true;
        break;
    case F_STORE:
        w->store_away = !w->store_away;
        break;
    case F_CUT_STORE:
        if (chance(w, 2))
            node->cut_request = !node->cut_request;
        else
            node->cut_answer = !node->cut_answer;
        break;
    case F_CLOCK:
        node->clock += (int64_t)rnd(w, 10000) - 800;
        break;
    default:
        node->proc[s].asleep = 20 + rnd(w, 500);
    }
}

static void mend(struct world *w, bool all)
{
    for (int n = 0; n < NODES; n++) {
        struct node *node = &w->node[n];
        if (all || (!node->up && chance(w, 60)))
            node->up = true;
        if (node->up && !node->daemon && (all || chance(w, 40)))
            node->daemon = true;
        for (int i = 0; i < NODES; i++)
            if (all || chance(w, 100))
                node->cut_to[i] = false;
        if (all || chance(w, 100))
            node->cut_request = node->cut_answer = false;
    }
    if (all || chance(w, 60))
        w->store_away = false;
}

/* True: a crash, which may take the guest's memory away. */
static void misfortune(struct world *w)
{
    w->crashed = false;
    if (!w->faults)
        return;
    mend(w, false);
    if (w->planned) {
        for (int i = 0; i < 2; i++)
            if (w->plan_step[i] == w->step)
                break_something(w, w->plan_fault[i] % F_KINDS, (int)(w->plan_fault[i] / F_KINDS % NODES));
        return;
    }
    if (chance(w, w->crash_one_in))
        break_something(w, rnd(w, 3), (int)rnd(w, NODES));
    for (int n = 0; n < NODES && w->crash_one_in < 100; n++) /* between a question and what follows from its answer */
        if (w->node[n].recovery.busy && chance(w, 25))
            break_something(w, F_PROC, n);
    if (chance(w, w->sleep_one_in))
        break_something(w, F_SLEEP, (int)rnd(w, NODES));
    if (chance(w, 50))
        break_something(w, F_CUT + rnd(w, 4), (int)rnd(w, NODES));
}

/* ---- a step ---- */

static void process_turn(struct world *w, int n, int s)
{
    struct proc *p = &w->node[n].proc[s];
    if (p->asleep > 0 && w->faults) {
        p->asleep--;
        return;
    }
    p->asleep = 0;
    if (p->kind == RUN)
        running(w, n, p);
    else if (p->kind == PAUSED)
        paused(w, n, p);
    else if (p->kind == IMAGE)
        image(w, n, p);
}

static void one_step(struct world *w)
{
    const struct fvm_ho_record before = w->record;
    misfortune(w);
    bool had = holder(w);
    w->now++;
    for (int i = 0; i < NODES; i++)
        w->node[i].clock++;
    int n = (int)rnd(w, NODES);
    for (int i = 0; i < 4; i++)
        deliver(w);
    if (w->node[n].up && rnd(w, 4) == 0) {
        if (w->node[n].daemon)
            daemon_turn(w, n);
    } else if (w->node[n].up) {
        process_turn(w, n, (int)rnd(w, SLOTS));
    }
    check(w, &before);
    if (had && !holder(w))
        bad(w, "a step that was no crash lost the last good copy");
}

static void set_up(struct world *w, uint64_t seed, bool verbose)
{
    *w = (struct world){.rng = seed * 0x9e3779b97f4a7c15ull + 1,
                        .seed = seed,
                        .rev = 1,
                        .fence = 1,
                        .wrote_epoch = 1,
                        .faults = true,
                        .verbose = verbose};
    w->record = (struct fvm_ho_record){.owner = "a", .epoch = 1, .phase = FVM_HO_STABLE};
    for (int n = 0; n < NODES; n++)
        w->node[n] = (struct node){.up = true, .daemon = true, .clock = 1000 * n, .lease = LEASE};
    w->node[0].proc[0] = (struct proc){.kind = RUN, .storage_epoch = 1};
    w->crash_one_in = seed % 3 == 0 ? 2000 : seed % 3 == 1 ? 90 : 400; /* calm runs get further */
    w->sleep_one_in = seed % 2 ? 25 : 200;
    w->planned = seed % 4 == 3;
    uint64_t k = seed / 4;
    w->plan_step[0] = 5 + k * 7 % 160;
    w->plan_step[1] = k % 3 ? w->plan_step[0] + 1 + k * 13 % 90 : 0;
    w->plan_fault[0] = (unsigned)(k % 1000003 * 5 + 1);
    w->plan_fault[1] = (unsigned)(k / 3 * 7 + 2);
}

/* All is settled: one process, which runs, and nobody wants anything of the record. */
static bool settled(const struct world *w)
{
    return count(w, true) == 1 && count(w, false) == 1 && w->record.phase == FVM_HO_STABLE;
}

static const char *run_seed(uint64_t seed, bool verbose, unsigned *ret_moves)
{
    static struct world w;
    set_up(&w, seed, verbose);
    for (; w.step < FAULT_STEPS && !w.violation; w.step++)
        one_step(&w);
    w.faults = false;
    mend(&w, true);
    for (; w.step < FAULT_STEPS + QUIET_STEPS && !w.violation && !settled(&w); w.step++)
        one_step(&w);
    if (!w.violation && !count(&w, true))
        w.violation = "the guest never runs again";
    else if (!w.violation && !settled(&w))
        w.violation = "something is left behind";
    say(&w, -1, "end");
    *ret_moves += w.moves;
    return w.violation;
}

static unsigned soak(uint64_t seeds)
{
    unsigned moves = 0, failures = 0;
    for (uint64_t seed = 1; seed <= seeds && failures < 20; seed++) {
        const char *v = run_seed(seed, false, &moves);
        if (v) {
            printf("seed %llu: %s\n", (unsigned long long)seed, v);
            failures++;
        }
    }
    printf("%llu seeds, %u activations of a guest, %u violations\n", (unsigned long long)seeds, moves, failures);
    return failures;
}

static unsigned test_the_test(uint64_t seeds)
{
    unsigned moves = 0, missed = 0;
    for (removed = 1; removed < G_COUNT; removed++) {
        const char *v = NULL;
        uint64_t seed = 0;
        while (!v && ++seed <= seeds)
            v = run_seed(seed, false, &moves);
        printf("without %-20s %s%s (seed %llu)\n", guard_names[removed], v ? "found: " : "NOT FOUND", v ? v : "",
               (unsigned long long)seed);
        missed += v == NULL;
    }
    removed = G_NONE;
    return missed;
}

int main(int argc, char **argv)
{
    enum { SEEDS = 2000 };
    unsigned moves = 0;
    if (argc >= 3 && strcmp(argv[1], "--replay") == 0) {
        for (int g = 0; argc > 3 && g < G_COUNT; g++)
            removed = strcmp(argv[3], guard_names[g]) == 0 ? g : removed;
        const char *v = run_seed(strtoull(argv[2], NULL, 0), true, &moves);
        printf("seed %s guard removed %s: %s\n", argv[2], guard_names[removed], v ? v : "holds");
        return v != NULL;
    }
    if (argc == 3 && strcmp(argv[1], "--seeds") == 0)
        return soak(strtoull(argv[2], NULL, 0)) != 0;
    if (argc != 1) {
        fputs("usage: sim_handover [--seeds N | --replay SEED [GUARD]]\n", stderr);
        return 64;
    }
    unsigned failures = soak(SEEDS);
    return failures + test_the_test(SEEDS) ? 1 : 0;
}
