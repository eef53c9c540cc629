/*
 * converge.c - the controller of pre-copy. Pure arithmetic; knows no VM, no clock.
 *
 * Invariant: FINAL only when predicted <= max_downtime, or the miss policy says pause.
 */
#include "migrate/converge.h"

#include <stdio.h>

#define ALPHA 0.5          /* weight of the newest round: the guest's phases are short */
#define FIXED_START_NS 4e6 /* measured, with both record swaps synced to a disk */
#define ROUND_LIMIT 60     /* for shortening a blackout that is short enough */
#define STALLS 3           /* rounds without much gain before the writers are held back */
#define LIMIT_FIRST 0.7    /* of what can be sent: the next round is that much shorter */
#define LIMIT_STEP 0.7
#define LIMIT_LEAST (1 << 20)
#define SAY_NS 5000000000ull

void fvm_converge_init(struct fvm_converge *c, uint64_t max_downtime_ns, uint64_t deadline_ns, enum fvm_on_miss on_miss)
{
    *c = (struct fvm_converge){.max_downtime_ns = max_downtime_ns,
                               .deadline_ns = deadline_ns,
                               .round_limit = ROUND_LIMIT,
                               .on_miss = on_miss,
                               .fixed_ns = FIXED_START_NS,
                               .predicted_ns = UINT64_MAX};
}

static double ewma(double old, double sample) { return old > 0 ? old + ALPHA * (sample - old) : sample; }

enum fvm_converge_next fvm_converge_round(struct fvm_converge *c, uint64_t sent_bytes, uint64_t dirtied_bytes,
                                          uint64_t pending_bytes, double compression, uint64_t round_ns,
                                          uint64_t elapsed_ns)
{
    double seconds = (double)FVM_MAX(round_ns, 1000ull) / 1e9;
    if (sent_bytes > 65536 || c->bandwidth <= 0)
        c->bandwidth = ewma(c->bandwidth, (double)FVM_MAX(sent_bytes, 1ull) / seconds);
    c->dirty_rate = ewma(c->dirty_rate, (double)dirtied_bytes / seconds);
    c->rounds++;
    c->last_predicted_ns = c->predicted_ns;
    double wire = (double)pending_bytes * (compression > 0 ? compression : 1.0);
    double ns = wire / c->bandwidth * 1e9 + c->fixed_ns;
    c->predicted_ns = ns < 1e18 ? (uint64_t)ns : (uint64_t)1e18;

    bool shrinking =
        c->last_predicted_ns == UINT64_MAX || (double)c->predicted_ns < 0.75 * (double)c->last_predicted_ns;
    c->stalls = shrinking ? 0 : c->stalls + 1;
    bool late = c->rounds >= c->round_limit || (c->deadline_ns && elapsed_ns >= c->deadline_ns);
    if (c->predicted_ns <= c->max_downtime_ns) {
        /* The contract is kept already; another round is worth it while pages are more than a small part of the
         * blackout. */
        bool good_enough = (double)c->predicted_ns <= 1.2 * c->fixed_ns;
        return good_enough || !shrinking || late ? FVM_CONVERGE_FINAL : FVM_CONVERGE_ROUND;
    }
    if (c->may_throttle && c->stalls >= STALLS) {
        double most = c->bandwidth / (compression > 0 ? compression : 1.0) * LIMIT_FIRST;
        double limit = c->write_limit ? FVM_MIN((double)c->write_limit * LIMIT_STEP, most) : most;
        c->write_limit = (uint64_t)FVM_MAX(FVM_MIN(limit, 1e15), LIMIT_LEAST);
        c->stalls = STALLS - 2; /* each step gets two rounds to show what it does */
    }
    if (!c->deadline_ns || elapsed_ns < c->deadline_ns)
        return FVM_CONVERGE_ROUND;
    return c->on_miss == FVM_ON_MISS_PAUSE ? FVM_CONVERGE_FINAL : FVM_CONVERGE_MISS;
}

const char *fvm_converge_says(struct fvm_converge *c, uint64_t elapsed_ns, char *buf, size_t size)
{
    bool stalled = c->stalls >= STALLS || c->write_limit;
    if (!stalled || c->predicted_ns <= c->max_downtime_ns || (c->told_ns && elapsed_ns - c->told_ns < SAY_NS))
        return NULL;
    c->told_ns = elapsed_ns;
    int n = snprintf(
        buf, size,
        "does not converge: the guest writes %.0f MiB/s, pages leave at %.0f MiB/s; now it would stand still for "
        "%.0f ms, allowed are %.0f",
        c->dirty_rate / 1048576, c->bandwidth / 1048576, (double)c->predicted_ns / 1e6,
        (double)c->max_downtime_ns / 1e6);
    if (n > 0 && (size_t)n < size && c->write_limit)
        snprintf(buf + n, size - (size_t)n, "; it is held to %.1f MiB/s", (double)c->write_limit / 1048576);
    return buf;
}
