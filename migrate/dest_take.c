/*
 * dest_take.c - the destination's half of the hand-over: memory proof, state check, then TAKE, storage, RUN, run.
 *
 * Why the proof is of what lies in RAM: hashes are taken of the page after it was placed, so a mistake anywhere between
 * the two RAMs shows.
 *
 * Invariant: fvm_machine_ops.run is called at one place, after fvm_ho_dest_decide said EXECUTE of a record read or
 * swapped just before.
 */
#include <poll.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "migrate/dest_internal.h"

#define ELAPSED_MAX_NS                                                                                                 \
    86400000000000ull /* hosts whose clocks differ by more than a day: take the guest's clock as it is */

/* ---- proof ---- */

static void damage_ram(struct fvm_dest *d)
{
    for (uint64_t i = d->proof.page_count; i-- > 0;) {
        fvm_pfn pfn = fvm_proof_pfn(&d->proof, i);
        if (d->ram->version[pfn] == 0)
            continue;
        uint8_t *page = fvm_ram_hva(d->ram, pfn << FVM_PAGE_SHIFT);
        page[100] ^= 4;
        fvm_proof_note(&d->proof, pfn, fvm_proof_hash_page(page, NULL), UINT32_MAX);
        fvm_log(WARN, "migrate.fault", "corrupt_ram gpa=0x%llx", (unsigned long long)(pfn << FVM_PAGE_SHIFT));
        break;
    }
    d->opt.faults.corrupt_ram = false;
}

/* Checked at once, while the last pages are still on their way. */
void dest_on_state(struct fvm_dest *d, Fvm__FinalState *f)
{
    const struct fvm_machine *vm = dest_vm(d);
    dest_forget_state(d);
    d->final_state = f;
    d->state_err = (struct fvm_err){0};
    if (!f->cpus || !f->devices)
        d->state_code =
            fvm_err_set(&d->state_err, FVM_EPROTO, 0, "migrate", "the state of processors and devices is missing");
    else
        d->state_code = vm->ops->check(vm->ctx, f->cpus, f->devices, &d->state_err);
    dest_phase(d, FVM_MIGRATE_FINAL);
}

static void take_and_run(struct fvm_dest *d);

static void compare(struct fvm_dest *d)
{
    Fvm__DigestReply reply = FVM__DIGEST_REPLY__INIT;
    Fvm__MigrateMessage m = FVM__MIGRATE_MESSAGE__INIT;
    if (d->opt.faults.corrupt_ram)
        damage_ram(d);
    uint64_t ours = fvm_proof_digest(&d->proof, UINT32_MAX, NULL, NULL);
    reply.attempt = d->proposal.attempt;
    reply.digest = ours;
    reply.equal = d->proposal.pages == d->proof.page_count && d->proposal.digest == ours &&
                  d->proposal.last_seq == d->rx.last_seq;
    if (!reply.equal) {
        reply.n_ranges = d->proof.range_count;
        reply.ranges = d->proof.range;
    } else if (!d->final_state) {
        reply.code = fvm_err_set(&d->state_err, FVM_EPROTO, 0, "migrate", "the state did not come before the digest");
    } else {
        reply.code = d->state_code;
    }
    if (reply.code)
        reply.text = d->state_err.text;
    m.what_case = FVM__MIGRATE_MESSAGE__WHAT_DIGEST_REPLY;
    m.digest_reply = &reply;
    dest_send(d, &m);
    d->report.verified = reply.equal;
    if (reply.equal && !reply.code) {
        take_and_run(d);
    } else if (reply.code) {
        struct fvm_err err = d->state_err;
        dest_drop(d, &err);
    }
}

void dest_look_at_digest(struct fvm_dest *d)
{
    if (d->state != DEST_LOADING || !d->proposal.waits || d->rx.last_seq < d->proposal.last_seq)
        return;
    d->proposal.waits = false;
    if (d->rx.lost_count == 0) /* else the source hears of it, sends them again and then another digest */
        compare(d);
}

void dest_on_digest(struct fvm_dest *d, const Fvm__Digest *digest)
{
    d->proposal.waits = true;
    d->proposal.attempt = digest->attempt;
    d->proposal.last_seq = digest->last_seq;
    d->proposal.digest = digest->digest;
    d->proposal.pages = digest->pages;
    d->proposal.came_ns = fvm_now_ns();
    dest_look_at_digest(d);
}

void dest_on_hash_query(struct fvm_dest *d, const Fvm__HashQuery *query)
{
    Fvm__HashReply reply = FVM__HASH_REPLY__INIT;
    Fvm__MigrateMessage m = FVM__MIGRATE_MESSAGE__INIT;
    size_t n = query->n_ranges;
    bool ok = n <= 1024;
    for (size_t i = 0; ok && i < n; i++)
        ok = query->ranges[i] < d->proof.range_count;
    uint64_t *hashes = ok ? malloc((n ? n : 1) * FVM_PROOF_RANGE_PAGES * sizeof(*hashes)) : NULL;
    if (!hashes) {
        struct fvm_err err;
        fvm_err_set(&err, FVM_EPROTO, 0, "migrate", "the source asks for hashes that do not exist");
        dest_drop(d, &err);
        return;
    }
    for (size_t i = 0; i < n; i++)
        fvm_proof_range(&d->proof, query->ranges[i], hashes + i * FVM_PROOF_RANGE_PAGES);
    reply.n_ranges = n;
    reply.ranges = query->ranges;
    reply.n_hashes = n * FVM_PROOF_RANGE_PAGES;
    reply.hashes = hashes;
    m.what_case = FVM__MIGRATE_MESSAGE__WHAT_HASH_REPLY;
    m.hash_reply = &reply;
    dest_send(d, &m);
    free(hashes);
}

/* ---- hand-over ---- */

static int next_take(void *ctx, const struct fvm_ho_record *now, struct fvm_ho_record *ret_next)
{
    struct fvm_dest *d = ctx;
    return fvm_ho_take(now, &d->ticket, FVM_HO_HOLDS_IMAGE, ret_next);
}

static int next_run(void *ctx, const struct fvm_ho_record *now, struct fvm_ho_record *ret_next)
{
    struct fvm_dest *d = ctx;
    return fvm_ho_run(now, &d->ticket, d->ticket.epoch + 1, ret_next);
}

static int next_handback(void *ctx, const struct fvm_ho_record *now, struct fvm_ho_record *ret_next)
{
    struct fvm_dest *d = ctx;
    return fvm_ho_handback(now, d->holds == 1 ? FVM_HO_HOLDS_PAUSED : FVM_HO_HOLDS_UNKNOWN, ret_next);
}

/* Our storage refuses. If the source still holds the guest, it shall have it back. */
static void offer_back(struct fvm_dest *d, const struct fvm_err *why)
{
    Fvm__HoldQuery query = FVM__HOLD_QUERY__INIT;
    Fvm__MigrateMessage m = FVM__MIGRATE_MESSAGE__INIT;
    struct fvm_err err;
    fvm_log(ERROR, "migrate.activate", "text=\"%s\" action=offer-back", why->text);
    query.epoch = d->record.epoch;
    m.what_case = FVM__MIGRATE_MESSAGE__WHAT_HOLD_QUERY;
    m.hold_query = &query;
    d->holds = -1;
    dest_send(d, &m);
    uint64_t end = fvm_now_ns() + 2000000000ull;
    while (d->holds < 0 && fvm_now_ns() < end)
        dest_turn(d, 20);
    if (d->holds == 1)
        fvm_record_swap(&d->opt.record, next_handback, d, end, &d->record, &err);
}

/* What the record allows, done; until it runs or is lost. True: it may run. */
static bool settle(struct fvm_dest *d, struct fvm_err *err)
{
    const struct fvm_machine *vm = dest_vm(d);
    uint64_t taken_ns = 0;
    bool active = false, fresh = false;
    struct fvm_err refused = {0};
    for (;; fresh = false) {
        uint64_t deadline = fvm_now_ns() + DEST_RECORD_MS * 1000000ull;
        if (!fresh && fvm_record_read(&d->opt.record, deadline, &d->record, err) != 0)
            continue; /* nobody may guess: neither run nor forget */
        switch (fvm_ho_dest_decide(&d->record, &d->ticket)) {
        case FVM_HO_DEST_EXECUTE:
            d->cleared_ns = fvm_now_ns();
            return true;
        case FVM_HO_DEST_DISCARD:
            if (active)
                vm->ops->storage_deactivate(vm->ctx);
            if (refused.code)
                *err = refused;
            else
                fvm_err_set(err, FVM_ESTATE, 0, "migrate", "%s runs the guest (epoch %llu)", d->record.owner,
                            (unsigned long long)d->record.epoch);
            return false;
        case FVM_HO_DEST_TAKE:
            fresh = fvm_record_swap(&d->opt.record, next_take, d, deadline, &d->record, err) == 0;
            d->taken_ns = fvm_now_ns();
            break;
        case FVM_HO_DEST_ACTIVATE:
            if (!taken_ns)
                dest_phase(d, FVM_MIGRATE_RUN); /* the source waits for our RUN, or takes the guest back */
            taken_ns = taken_ns ? taken_ns : fvm_now_ns();
            if (!active)
                active = vm->ops->storage_activate(vm->ctx, d->record.epoch, &refused) == 0;
            d->activated_ns = fvm_now_ns();
            if (active)
                fresh = fvm_record_swap(&d->opt.record, next_run, d, deadline, &d->record, err) == 0;
            else if (fvm_now_ns() - taken_ns > DEST_ACTIVATE_MS * 1000000ull)
                offer_back(d, &refused);
            else
                poll(NULL, 0, 20);
            break;
        }
    }
}

static void tell(struct fvm_dest *d)
{
    Fvm__Running running = FVM__RUNNING__INIT;
    Fvm__MigrateMessage m = FVM__MIGRATE_MESSAGE__INIT;
    running.epoch = d->record.epoch;
    running.wall_ns = fvm_wall_ns();
    running.proof_ns = d->piece_ns - d->proposal.came_ns;
    running.take_ns = d->taken_ns - d->piece_ns;
    running.storage_ns = d->activated_ns - d->taken_ns;
    running.run_ns = d->cleared_ns - d->activated_ns;
    running.start_ns = fvm_now_ns() - d->cleared_ns;
    m.what_case = FVM__MIGRATE_MESSAGE__WHAT_RUNNING;
    m.running = &running;
    dest_send(d, &m);
}

static void take_and_run(struct fvm_dest *d)
{
    const struct fvm_machine *vm = dest_vm(d);
    const Fvm__FinalState *f = d->final_state;
    struct fvm_err err = {0};
    d->piece_ns = d->taken_ns = d->activated_ns = fvm_now_ns();
    d->state = DEST_OVER; /* cancel and other messages are not heard until this is settled */
    dest_phase(d, FVM_MIGRATE_TAKE);
    if (!settle(d, &err)) {
        d->state = DEST_LOADING;
        dest_drop(d, &err);
        return;
    }
    uint64_t wall = fvm_wall_ns(), elapsed = wall > f->paused_wall_ns ? wall - f->paused_wall_ns : 0;
    vm->ops->restore(vm->ctx, f->cpus, f->devices, elapsed < ELAPSED_MAX_NS ? elapsed : 0);
    int rc = f->paused ? 0 : vm->ops->run(vm->ctx);
    tell(d);
    d->report.outcome = FVM_MIGRATE_MOVED;
    d->report.blackout_ns = elapsed;
    d->report.epoch = d->record.epoch;
    d->report.err = (struct fvm_err){0};
    d->report.data_pages = d->rx.data_pages;
    d->report.zero_pages = d->rx.zero_pages;
    d->report.corrupt_batches = d->rx.corrupt;
    if (rc)
        fvm_err_set(&d->report.err, rc, 0, "migrate", "the guest is ours but does not start: %s", fvm_err_text(rc));
}
