/*
 * record.c - swaps on the hand-over record with unclear answers made clear.
 *
 * Why equality proves our swap: BEGIN carries a fresh random mig_id; every other effect is one that only the caller's
 * side may cause, so who finds exactly the record he wanted has what he wanted, no matter whose request it was.
 *
 * Invariant: 0 is returned only after the record was read as wanted, or the store confirmed the swap.
 */
#include "migrate/record.h"

#include <poll.h>
#include <string.h>

#include "base/log.h"
#include "base/loop.h"

#define RETRY_MS 20

static bool equal(const struct fvm_ho_record *a, const struct fvm_ho_record *b)
{
    return a->epoch == b->epoch && a->phase == b->phase && strcmp(a->owner, b->owner) == 0 &&
           strcmp(a->from, b->from) == 0 && strcmp(a->to, b->to) == 0 &&
           memcmp(a->mig_id, b->mig_id, FVM_HO_ID_BYTES) == 0;
}

static int timed_out(struct fvm_err *err, const struct fvm_err *cause)
{
    return fvm_err_set(err, FVM_ETIMEOUT, cause->sys_errno, "migrate", "the hand-over record cannot be reached: %s",
                       cause->text);
}

int fvm_record_swap(const struct fvm_record_store *store, fvm_record_next next, void *ctx, uint64_t deadline_ns,
                    struct fvm_ho_record *ret_record, struct fvm_err *err)
{
    struct fvm_ho_record now, want;
    struct fvm_err cause = {0};
    uint64_t revision;
    bool tried = false;
    for (;; poll(NULL, 0, RETRY_MS)) {
        int rc = store->get(store->ctx, &now, &revision, &cause);
        if (rc == 0 && tried && equal(&now, &want)) {
            *ret_record = now;
            return 0;
        }
        if (rc == 0 && (rc = next(ctx, &now, &want)) != 0) {
            *ret_record = now;
            return fvm_err_set(err, rc, 0, "migrate", "the record is %s of %s at epoch %llu and does not allow this",
                               fvm_ho_phase_text(now.phase), now.owner, (unsigned long long)now.epoch);
        }
        if (rc == 0) {
            tried = true;
            rc = store->cas(store->ctx, revision, &want, &cause);
            if (rc == 0) {
                *ret_record = want;
                return 0;
            }
            if (rc == FVM_ECONFLICT && fvm_now_ns() < deadline_ns)
                continue;
        }
        fvm_log(WARN, "migrate.record", "unclear=%s text=\"%s\"", fvm_err_name(rc), cause.text);
        if (fvm_now_ns() >= deadline_ns)
            return timed_out(err, &cause);
    }
}

int fvm_record_read(const struct fvm_record_store *store, uint64_t deadline_ns, struct fvm_ho_record *ret_record,
                    struct fvm_err *err)
{
    uint64_t revision;
    struct fvm_err cause = {0};
    for (;; poll(NULL, 0, RETRY_MS)) {
        if (store->get(store->ctx, ret_record, &revision, &cause) == 0)
            return 0;
        if (fvm_now_ns() >= deadline_ns)
            return timed_out(err, &cause);
    }
}
