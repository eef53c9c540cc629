/*
 * handover_recover.c - what is to be done about a hand-over that a crash left in the middle. Pure.
 *
 *   record     its owner holds     the other holds     then
 *   A,STABLE   anything            -                   nothing is in the middle; say how the guest is
 *   A,MIG      nothing             anything            ABORT by A's node: the source died, its memory with it
 *   A,MIG      something           anything            wait: the source ends it by itself
 *   A,MIG      no answer           -                   stuck: only A may call it off, the guest may still run there
 *   B,TAKEN    nothing             A: paused           HANDBACK
 *   B,TAKEN    nothing             A: nothing          CLAIM by B's node, a cold boot
 *   B,TAKEN    nothing             A: no answer        stuck: A may hold the paused guest
 *   B,TAKEN    image               anything            wait: it is about to run (insist: HANDBACK if A holds it paused)
 *   B,TAKEN    no answer           A: paused           insist: HANDBACK (B's RUN then fails, and it reads why), else
 * wait B,TAKEN    no answer           otherwise           stuck: B took it and may run it
 *
 * Invariant: no advice here is needed for safety. Each swap has its own guard (handover.c) and compares the revision of
 * the record that was looked at; a wrong advice costs the guest's memory at most, and tests/sim looks for that.
 */
#include <stdio.h>
#include <string.h>

#include "migrate/handover.h"

#define ADVISE(a, what, who, ...)                                                                                      \
    do {                                                                                                               \
        (a)->cure = (what);                                                                                            \
        snprintf((a)->by, sizeof((a)->by), "%s", who);                                                                 \
        snprintf((a)->why, sizeof((a)->why), __VA_ARGS__);                                                             \
    } while (0)

static void advise_stable(const struct fvm_ho_record *r, enum fvm_ho_holding owner, struct fvm_ho_advice *a)
{
    static const char *const how[] = {
        [FVM_HO_HOLDS_NOTHING] = "node %s owns it and has no process of it: vm start boots it",
        [FVM_HO_HOLDS_PAUSED] = "it is on node %s, paused: vm resume lets it run",
        [FVM_HO_HOLDS_IMAGE] = "it has arrived on node %s and is about to run",
        [FVM_HO_HOLDS_RUNNING] = "it runs on node %s",
        [FVM_HO_HOLDS_UNKNOWN] = "node %s owns it, and whatever runs, runs there; that node does not say how it is",
    };
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral"
    ADVISE(a, owner == FVM_HO_HOLDS_UNKNOWN ? FVM_HO_STUCK : FVM_HO_FINE, r->owner, how[owner], r->owner);
#pragma GCC diagnostic pop
}

static void advise_migrating(const struct fvm_ho_record *r, enum fvm_ho_holding owner, struct fvm_ho_advice *a)
{
    if (owner == FVM_HO_HOLDS_NOTHING)
        ADVISE(a, FVM_HO_ABORTS, r->owner,
               "node %s has no process of it any more: the guest died there while it was moving to %s", r->owner,
               r->to);
    else if (owner == FVM_HO_HOLDS_UNKNOWN)
        ADVISE(a, FVM_HO_STUCK, r->owner,
               "node %s does not answer; the guest may still run there, so nobody else may take it before %s "
               "took it, or fvm-node on %s called that off",
               r->owner, r->to, r->owner);
    else
        ADVISE(a, FVM_HO_WAITS, r->owner, "its process on node %s is still at it, and takes it back when %s fails",
               r->owner, r->to);
}

static void advise_taken(const struct fvm_ho_record *r, enum fvm_ho_holding owner, enum fvm_ho_holding source,
                         bool insist, struct fvm_ho_advice *a)
{
    bool paused = source == FVM_HO_HOLDS_PAUSED, silent = owner == FVM_HO_HOLDS_UNKNOWN;
    if (owner == FVM_HO_HOLDS_NOTHING && source == FVM_HO_HOLDS_NOTHING)
        ADVISE(a, FVM_HO_CLAIMS, r->owner,
               "neither node %s, which took it, nor node %s holds it any more: its memory is "
               "lost, it has to boot anew",
               r->owner, r->from);
    else if (paused && owner == FVM_HO_HOLDS_NOTHING)
        ADVISE(a, FVM_HO_HANDS_BACK, r->from, "node %s took it and lost it; node %s still holds it, paused", r->owner,
               r->from);
    else if (paused && insist)
        ADVISE(a, FVM_HO_HANDS_BACK, r->from, "node %s took it and does not %s; node %s still holds it, paused",
               r->owner, silent ? "answer" : "get it to run", r->from);
    else if (paused && silent)
        ADVISE(a, FVM_HO_WAITS, r->owner, "node %s took it and does not answer just now", r->owner);
    else if (owner == FVM_HO_HOLDS_NOTHING)
        ADVISE(a, FVM_HO_STUCK, r->from,
               "node %s took it and lost it; node %s does not say whether it still holds it: "
               "start fvm-node there",
               r->owner, r->from);
    else if (silent)
        ADVISE(a, FVM_HO_STUCK, r->owner, "node %s took it and does not answer: start fvm-node there", r->owner);
    else
        ADVISE(a, FVM_HO_WAITS, r->owner, "node %s took it and is about to run it", r->owner);
}

void fvm_ho_recover(const struct fvm_ho_record *r, enum fvm_ho_holding owner, enum fvm_ho_holding other, bool insist,
                    struct fvm_ho_advice *ret_advice)
{
    if (r->phase == FVM_HO_MIG)
        advise_migrating(r, owner, ret_advice);
    else if (r->phase == FVM_HO_TAKEN)
        advise_taken(r, owner, other, insist, ret_advice);
    else
        advise_stable(r, owner, ret_advice);
}

static const char *const holding_names[] = {
    [FVM_HO_HOLDS_NOTHING] = "nothing", [FVM_HO_HOLDS_PAUSED] = "paused",   [FVM_HO_HOLDS_IMAGE] = "image",
    [FVM_HO_HOLDS_RUNNING] = "running", [FVM_HO_HOLDS_UNKNOWN] = "unknown",
};

const char *fvm_ho_holding_text(enum fvm_ho_holding holding)
{
    return holding >= FVM_HO_HOLDS_NOTHING && holding <= FVM_HO_HOLDS_UNKNOWN ? holding_names[holding] : "?";
}

bool fvm_ho_holding_parse(const char *text, enum fvm_ho_holding *ret_holding)
{
    for (int i = FVM_HO_HOLDS_NOTHING; i <= FVM_HO_HOLDS_UNKNOWN; i++)
        if (strcmp(text, holding_names[i]) == 0) {
            *ret_holding = (enum fvm_ho_holding)i;
            return true;
        }
    return false;
}
