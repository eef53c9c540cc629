/*
 * source_final.c - the blackout and the hand-over: last pages, state, memory proof, then waiting for the record to say
 * who owns the guest.
 *
 * Why the storage is let go before the digest: the destination must be able to take the locks right after TAKE. It is
 * taken back, with the epoch read, before the guest resumes here.
 *
 * Invariant: the guest resumes only after fvm_ho_source_decide said RESUME of a record read just before; it is
 * reported as moved only after DESTROY. Everything else keeps it paused and reads again.
 */
#include <string.h>

#include "base/log.h"
#include "migrate/source_internal.h"

/* ---- the last pages and the state ---- */

/* What was spent since the last look goes to this piece. */
static void piece(struct fvm_source *s, uint64_t *ret_ns)
{
    uint64_t now = fvm_now_ns();
    *ret_ns += now - s->piece_ns;
    s->piece_ns = now;
}

static int send_state(struct fvm_source *s, struct fvm_err *err)
{
    const struct fvm_machine *vm = source_vm(s);
    Fvm__FinalState state = FVM__FINAL_STATE__INIT;
    Fvm__MigrateMessage m = FVM__MIGRATE_MESSAGE__INIT;
    int rc = vm->ops->save(vm->ctx, &state.cpus, &state.devices);
    if (rc)
        return fvm_err_set(err, rc, 0, "migrate", "cannot save the state of processors and devices: %s",
                           fvm_err_text(rc));
    state.paused_wall_ns = s->paused_wall_ns;
    state.paused = !s->was_running;
    m.what_case = FVM__MIGRATE_MESSAGE__WHAT_FINAL_STATE;
    m.final_state = &state;
    rc = fvm_wire_send(s->control, NULL, &m);
    fvm__cpus_state__free_unpacked(state.cpus, NULL);
    fvm__devices_state__free_unpacked(state.devices, NULL);
    return rc ? fvm_err_set(err, rc, 0, "migrate", "cannot send the state: %s", fvm_err_text(rc)) : 0;
}

static int send_digest(struct fvm_source *s, uint32_t attempt, uint32_t epoch)
{
    Fvm__Digest digest = FVM__DIGEST__INIT;
    Fvm__MigrateMessage m = FVM__MIGRATE_MESSAGE__INIT;
    if (s->opt.verify_all)
        fvm_proof_forget(&s->memory->proof);
    digest.attempt = attempt;
    digest.last_seq = s->tx.next_seq - 1;
    digest.digest = fvm_proof_digest(&s->memory->proof, epoch, NULL, &s->report.blackout_hashed_pages);
    digest.pages = s->memory->proof.page_count;
    m.what_case = FVM__MIGRATE_MESSAGE__WHAT_DIGEST;
    m.digest = &digest;
    return fvm_wire_send(s->control, NULL, &m);
}

/* ---- when the proof fails: which pages, and again ---- */

static void force_differing(struct fvm_source *s, uint32_t range, const uint64_t *theirs, uint32_t *named,
                            fvm_gpa *ret_first)
{
    uint64_t ours[FVM_PROOF_RANGE_PAGES];
    const struct fvm_proof *proof = &s->memory->proof;
    fvm_proof_range(proof, range, ours);
    for (unsigned i = 0; i < FVM_PROOF_RANGE_PAGES; i++) {
        uint64_t index = (uint64_t)range * FVM_PROOF_RANGE_PAGES + i;
        if (index >= proof->page_count || ours[i] == theirs[i])
            continue;
        fvm_pfn pfn = fvm_proof_pfn(proof, index);
        fvm_memory_force(s->memory, pfn);
        *ret_first = FVM_MIN(*ret_first, pfn << FVM_PAGE_SHIFT);
        s->report.digest_repairs++;
        if ((*named)++ < SOURCE_NAMED_MAX)
            fvm_log(WARN, "migrate.mismatch", "gpa=0x%llx source=%016llx destination=%016llx action=resend",
                    (unsigned long long)(pfn << FVM_PAGE_SHIFT), (unsigned long long)ours[i],
                    (unsigned long long)theirs[i]);
    }
}

static int query_ranges(struct fvm_source *s, uint32_t *ranges, size_t count, uint32_t *named, fvm_gpa *ret_first,
                        struct fvm_err *err)
{
    Fvm__HashQuery query = FVM__HASH_QUERY__INIT;
    Fvm__MigrateMessage m = FVM__MIGRATE_MESSAGE__INIT;
    query.n_ranges = count;
    query.ranges = ranges;
    m.what_case = FVM__MIGRATE_MESSAGE__WHAT_HASH_QUERY;
    m.hash_query = &query;
    int rc = fvm_wire_send(s->control, NULL, &m);
    if (rc)
        return fvm_err_set(err, rc, 0, "migrate", "cannot ask for hashes: %s", fvm_err_text(rc));
    rc = source_await(s, FVM__MIGRATE_MESSAGE__WHAT_HASH_REPLY, SOURCE_PREPARE_MS, err);
    if (rc)
        return rc;
    const Fvm__HashReply *r = s->reply->hash_reply;
    if (r->n_ranges != count || memcmp(r->ranges, ranges, count * sizeof(*ranges)) != 0 ||
        r->n_hashes != count * FVM_PROOF_RANGE_PAGES)
        return fvm_err_set(err, FVM_EPROTO, 0, "migrate", "the destination's hashes do not fit the question");
    for (size_t i = 0; i < count; i++)
        force_differing(s, ranges[i], r->hashes + i * FVM_PROOF_RANGE_PAGES, named, ret_first);
    fvm__migrate_message__free_unpacked(s->reply, NULL);
    s->reply = NULL;
    return 0;
}

static int repair(struct fvm_source *s, fvm_gpa *ret_first, struct fvm_err *err)
{
    Fvm__MigrateMessage *answer = s->reply;
    const Fvm__DigestReply *d = answer->digest_reply;
    const struct fvm_proof *proof = &s->memory->proof;
    uint32_t some[64], named = 0;
    size_t n = 0;
    int rc = 0;
    s->reply = NULL;
    *ret_first = UINT64_MAX;
    if (d->n_ranges != proof->range_count)
        rc = fvm_err_set(err, FVM_EPROTO, 0, "migrate", "the destination's proof has another size");
    for (uint32_t r = 0; !rc && r < proof->range_count; r++) {
        if (d->ranges[r] != proof->range[r])
            some[n++] = r;
        if (n == FVM_ARRAY_SIZE(some) || (n && r + 1 == proof->range_count)) {
            rc = query_ranges(s, some, n, &named, ret_first, err);
            n = 0;
        }
    }
    fvm__migrate_message__free_unpacked(answer, NULL);
    if (!rc && named > SOURCE_NAMED_MAX)
        fvm_log(WARN, "migrate.mismatch", "more=%u", named - SOURCE_NAMED_MAX);
    return rc;
}

/* Pages, then all that must be at the destination with them. Nothing waits for an acknowledgement: it compares when the
 * last of them is there. */
static int send_last_pages(struct fvm_source *s, uint32_t epoch, struct fvm_err *err)
{
    uint64_t before = s->tx.data_pages + s->tx.zero_pages, lost = s->tx.lost_batches;
    int rc = source_send_pages(s, epoch, false, err);
    s->report.blackout_pages += s->tx.data_pages + s->tx.zero_pages - before;
    piece(s, &s->report.pieces.pages_ns);
    if (!rc && s->tx.lost_batches == lost && fvm_memory_pending(s->memory) != 0)
        rc = fvm_err_set(err, FVM_EINTERNAL, 0, "migrate",
                         "guest memory changed while the guest stood still: a device did not come to rest");
    return rc;
}

static int send_all_else(struct fvm_source *s, struct fvm_err *err)
{
    const struct fvm_machine *vm = source_vm(s);
    int rc = send_state(s, err);
    piece(s, &s->report.pieces.state_ns);
    if (rc)
        return rc;
    s->storage_off = true;
    rc = vm->ops->storage_deactivate(vm->ctx);
    piece(s, &s->report.pieces.storage_ns);
    return rc ? fvm_err_set(err, rc, 0, "migrate", "the guest's disks cannot be flushed: %s", fvm_err_text(rc)) : 0;
}

/* The destination's word on that digest in s->reply; or *ret_lost: a batch was lost, so there will be none. */
static int await_verdict(struct fvm_source *s, uint32_t attempt, bool *ret_lost, struct fvm_err *err)
{
    uint64_t lost = s->tx.lost_batches, end = fvm_now_ns() + SOURCE_TAKE_MS * 1000000ull;
    for (;;) {
        *ret_lost = false;
        if (s->reply && s->reply->what_case == FVM__MIGRATE_MESSAGE__WHAT_DIGEST_REPLY &&
            s->reply->digest_reply->attempt == attempt)
            return 0;
        *ret_lost = s->tx.lost_batches != lost;
        if (*ret_lost)
            return 0;
        int rc = source_pump(s, 50, err);
        if (rc)
            return rc;
        if (fvm_now_ns() >= end)
            return fvm_err_set(err, FVM_ETIMEOUT, 0, "migrate", "the destination does not compare memory (waited %d s)",
                               SOURCE_TAKE_MS / 1000);
    }
}

static int prove(struct fvm_source *s, uint32_t epoch, struct fvm_err *err)
{
    fvm_gpa first = 0;
    unsigned repairs = 0;
    for (uint32_t attempt = 1; attempt <= SOURCE_DIGESTS_MAX; attempt++) {
        uint64_t lost = s->tx.lost_batches;
        int rc = send_last_pages(s, epoch, err);
        if (!rc && attempt == 1)
            rc = send_all_else(s, err);
        if (rc)
            return rc;
        if (s->tx.lost_batches != lost)
            continue;
        rc = send_digest(s, attempt, epoch);
        piece(s, &s->report.pieces.digest_ns);
        if (rc)
            return fvm_err_set(err, rc, 0, "migrate", "cannot send the digest: %s", fvm_err_text(rc));
        bool again;
        rc = await_verdict(s, attempt, &again, err);
        if (rc)
            return rc;
        if (again)
            continue;
        const Fvm__DigestReply *d = s->reply->digest_reply;
        if (d->equal && d->code)
            return fvm_wire_error(err, "the destination refused the state", d->code, d->text);
        if (d->equal) {
            s->report.verified = true;
            return 0;
        }
        if (++repairs > SOURCE_REPAIRS_MAX)
            return fvm_err_set(
                err, FVM_ECORRUPT, 0, "migrate",
                "memory at the destination still differs after %d repairs, first at guest address 0x%llx; "
                "the destination's memory may be faulty",
                SOURCE_REPAIRS_MAX, (unsigned long long)first);
        rc = repair(s, &first, err);
        if (rc)
            return rc;
    }
    return fvm_err_set(err, FVM_EIO, 0, "migrate", "the connection to %s loses pages again and again", s->opt.to_addr);
}

int source_final(struct fvm_source *s, struct fvm_err *err)
{
    const struct fvm_machine *vm = source_vm(s);
    source_phase(s, FVM_MIGRATE_FINAL);
    s->was_running = vm->ops->running(vm->ctx);
    source_throttle(s, 0);
    s->paused_ns = s->piece_ns = fvm_now_ns();
    int rc = s->was_running ? vm->ops->pause(vm->ctx) : 0;
    if (rc)
        return fvm_err_set(err, rc, 0, "migrate", "cannot pause the guest: %s", fvm_err_text(rc));
    s->paused = true;
    s->probe_wait_ns = SOURCE_PROBE_PAUSED_MS * 1000000ull;
    s->paused_wall_ns = fvm_wall_ns();
    if (!vm->ops->alive(vm->ctx))
        return fvm_err_set(err, FVM_EGUEST, 0, "migrate", "the guest ended by itself");
    uint32_t epoch = vm->ops->dirty_epoch(vm->ctx);
    piece(s, &s->report.pieces.pause_ns);
    rc = prove(s, epoch, err);
    if (!rc)
        source_phase(s, FVM_MIGRATE_TAKE);
    return rc;
}

/* ---- the record decides ---- */

static int next_abort(void *ctx, const struct fvm_ho_record *now, struct fvm_ho_record *ret_next)
{
    struct fvm_source *s = ctx;
    return fvm_ho_abort(now, s->ticket.from, ret_next);
}

static int next_handback(void *ctx, const struct fvm_ho_record *now, struct fvm_ho_record *ret_next)
{
    struct fvm_source *s = ctx;
    return fvm_ho_handback(now, s->paused ? FVM_HO_HOLDS_PAUSED : FVM_HO_HOLDS_NOTHING, ret_next);
}

static void resume(struct fvm_source *s)
{
    const struct fvm_machine *vm = source_vm(s);
    struct fvm_err err = {0};
    s->report.outcome = FVM_MIGRATE_STAYED;
    if (!s->paused)
        return;
    if (s->storage_off) {
        int rc = vm->ops->storage_activate(vm->ctx, s->record.epoch, &err);
        for (int i = 0; rc && i < 50; i++) { /* a destination that goes away lets go of its locks in a moment */
            source_pump(s, 100, &(struct fvm_err){0});
            rc = vm->ops->storage_activate(vm->ctx, s->record.epoch, &err);
        }
        if (rc) {
            fvm_log(ERROR, "migrate.resume", "storage=\"%s\" action=stays-paused", err.text);
            s->report.err = err;
            return;
        }
    }
    if (s->was_running && vm->ops->run(vm->ctx) != 0)
        fvm_log(ERROR, "migrate.resume", "run=failed action=stays-paused");
    s->paused = false;
    s->report.blackout_ns = fvm_now_ns() - s->paused_ns;
}

/* One look at the record. True when it is settled. */
static bool settle_once(struct fvm_source *s, bool give_up, bool taken_too_long)
{
    uint64_t soon = fvm_now_ns() + 1000000000;
    struct fvm_err err;
    if (fvm_record_read(&s->opt.record, soon, &s->record, &err) != 0) {
        source_report_progress(s, true, "the record cannot be reached; the guest waits");
        return false;
    }
    enum fvm_ho_source_next next = fvm_ho_source_decide(&s->record, &s->ticket);
    if (next == FVM_HO_SOURCE_WAIT && give_up &&
        fvm_record_swap(&s->opt.record, next_abort, s, soon, &s->record, &err) == 0)
        next = fvm_ho_source_decide(&s->record, &s->ticket);
    if (next == FVM_HO_SOURCE_TAKEN && taken_too_long &&
        fvm_record_swap(&s->opt.record, next_handback, s, soon, &s->record, &err) == 0) {
        fvm_log(WARN, "migrate.handback", "epoch=%llu", (unsigned long long)s->record.epoch);
        next = fvm_ho_source_decide(&s->record, &s->ticket);
    }
    if (next == FVM_HO_SOURCE_TAKEN && s->progress.phase != FVM_MIGRATE_RUN)
        source_phase(s, FVM_MIGRATE_RUN);
    if (next == FVM_HO_SOURCE_RESUME)
        resume(s);
    else if (next == FVM_HO_SOURCE_DESTROY)
        s->report.outcome = FVM_MIGRATE_MOVED;
    else
        return false;
    return true;
}

void source_settle(struct fvm_source *s, const struct fvm_err *why)
{
    uint64_t start = fvm_now_ns();
    struct fvm_err err = why ? *why : (struct fvm_err){0};
    bool told = false;
    s->committed = true; /* from here on only the record decides */
    if (why)
        s->report.err = *why;
    s->report.outcome = FVM_MIGRATE_UNKNOWN;
    for (;;) {
        uint64_t waited = fvm_now_ns() - start;
        bool cancel = __atomic_load_n(&s->cancel, __ATOMIC_ACQUIRE);
        bool give_up = err.code || cancel || waited > SOURCE_TAKE_MS * 1000000ull;
        if (give_up && !told) {
            if (!err.code && cancel)
                fvm_err_set(&err, FVM_ECANCELLED, 0, "migrate", "cancelled");
            else if (!err.code)
                fvm_err_set(&err, FVM_ETIMEOUT, 0, "migrate", "the destination did not take the guest within %d s",
                            SOURCE_TAKE_MS / 1000);
            told = true;
        }
        /* A destination that took the guest and then vanished, or does not get it to run, loses it again. */
        bool taken_too_long =
            (err.code && waited > SOURCE_RUN_GONE_MS * 1000000ull) || waited > SOURCE_RUN_MS * 1000000ull;
        if (settle_once(s, give_up, taken_too_long))
            break;
        if (__atomic_load_n(&s->abandon, __ATOMIC_ACQUIRE) && waited > 60000000000ull)
            break; /* told to end, and nobody can say who owns the guest: it stays paused */
        struct fvm_err lost = {0};
        if (source_pump(s, 3, &lost) != 0 && !err.code)
            err = lost;
    }
    uint64_t read_ns = fvm_now_ns(), end;
    /* The record may be read before the destination's word that the guest runs is here: the blackout lasts until then.
     */
    while (s->report.outcome == FVM_MIGRATE_MOVED && !s->running_ns && s->was_running &&
           fvm_now_ns() - read_ns < SOURCE_RUNNING_MS * 1000000ull && source_pump(s, 20, &(struct fvm_err){0}) == 0)
        ;
    end = s->running_ns ? s->running_ns : read_ns;
    if (s->report.outcome == FVM_MIGRATE_MOVED) {
        s->report.err = (struct fvm_err){0};
        s->report.blackout_ns = end - s->paused_ns;
    } else if (!s->report.err.code) {
        /* Handed back: the guest runs here already; the destination's reason may still be on its way. */
        while (!err.code && fvm_now_ns() - end < 500000000)
            source_pump(s, 20, &err);
        if (!err.code)
            fvm_err_set(&err, FVM_ESTATE, 0, "migrate", "the guest was handed back");
        s->report.err = err;
    }
    s->report.epoch = s->record.epoch;
}
