/*
 * handover.c - guards and effects of the six swaps, and what each side may do after reading the record. Pure.
 *
 * Why the guards are macros: tests/sim/handover.c includes this file with FVM_HO_GUARD redefined, removes one guard at
 * a time and must then find a run in which the guest is lost or runs twice. A guard nobody misses would be noise.
 *
 * Invariant: every effect that moves the right to run raises the epoch, so no old image, reply or writer fits
 * afterwards.
 */
#include "migrate/handover.h"

#include <stdio.h>
#include <string.h>

#ifndef FVM_HO_GUARD
#define FVM_HO_GUARD(name, cond) (cond)
#endif

static bool same(const char *a, const char *b) { return strcmp(a, b) == 0; }

static void name_set(char dst[FVM_HO_NAME_MAX + 1], const char *src) { snprintf(dst, FVM_HO_NAME_MAX + 1, "%s", src); }

int fvm_ho_begin(const struct fvm_ho_record *now, const char *self, const char *to,
                 const uint8_t mig_id[FVM_HO_ID_BYTES], struct fvm_ho_record *ret_next)
{
    if (!FVM_HO_GUARD(BEGIN_OWNER, same(now->owner, self)) || !FVM_HO_GUARD(BEGIN_STABLE, now->phase == FVM_HO_STABLE))
        return FVM_ESTATE;
    if (same(self, to) || !*to || strlen(to) > FVM_HO_NAME_MAX)
        return FVM_EINVAL;
    *ret_next = *now;
    ret_next->phase = FVM_HO_MIG;
    memcpy(ret_next->mig_id, mig_id, FVM_HO_ID_BYTES);
    name_set(ret_next->from, self);
    name_set(ret_next->to, to);
    return 0;
}

int fvm_ho_abort(const struct fvm_ho_record *now, const char *self, struct fvm_ho_record *ret_next)
{
    if (!FVM_HO_GUARD(ABORT_OWNER, same(now->owner, self)) || !FVM_HO_GUARD(ABORT_MIG, now->phase == FVM_HO_MIG))
        return FVM_ESTATE;
    *ret_next = *now;
    name_set(ret_next->owner, self);
    ret_next->phase = FVM_HO_STABLE;
    ret_next->epoch += 1;
    return 0;
}

int fvm_ho_take(const struct fvm_ho_record *now, const struct fvm_ho_ticket *ticket, enum fvm_ho_holding holding,
                struct fvm_ho_record *ret_next)
{
    if (!FVM_HO_GUARD(TAKE_IMAGE, holding == FVM_HO_HOLDS_IMAGE) || now->phase != FVM_HO_MIG ||
        !FVM_HO_GUARD(TAKE_TICKET, now->epoch == ticket->epoch && same(now->owner, ticket->from) &&
                                       same(now->to, ticket->to) &&
                                       memcmp(now->mig_id, ticket->mig_id, FVM_HO_ID_BYTES) == 0))
        return FVM_ESTATE;
    *ret_next = *now;
    name_set(ret_next->owner, ticket->to);
    ret_next->phase = FVM_HO_TAKEN;
    ret_next->epoch += 1;
    return 0;
}

/* The record as our TAKE made it, or as our RUN then did: nobody else leaves this epoch with us as the owner. */
static bool taken_by(const struct fvm_ho_record *now, const struct fvm_ho_ticket *ticket)
{
    return same(now->owner, ticket->to) && now->epoch == ticket->epoch + 1;
}

int fvm_ho_run(const struct fvm_ho_record *now, const struct fvm_ho_ticket *ticket, uint64_t storage_epoch,
               struct fvm_ho_record *ret_next)
{
    /* The first is implied by the second for a storage that told the truth; it costs nothing not to rely on that. */
    if (!taken_by(now, ticket) || now->phase != FVM_HO_TAKEN || !FVM_HO_GUARD(RUN_STORAGE, storage_epoch == now->epoch))
        return FVM_ESTATE;
    *ret_next = *now;
    name_set(ret_next->owner, ticket->to);
    ret_next->phase = FVM_HO_STABLE;
    return 0;
}

int fvm_ho_handback(const struct fvm_ho_record *now, enum fvm_ho_holding source, struct fvm_ho_record *ret_next)
{
    if (!FVM_HO_GUARD(HANDBACK_TAKEN, now->phase == FVM_HO_TAKEN) ||
        !FVM_HO_GUARD(HANDBACK_HOLDS, source == FVM_HO_HOLDS_PAUSED))
        return FVM_ESTATE;
    *ret_next = *now;
    name_set(ret_next->owner, now->from);
    ret_next->phase = FVM_HO_STABLE;
    ret_next->epoch += 1;
    return 0;
}

int fvm_ho_claim(const struct fvm_ho_record *now, const char *self, enum fvm_ho_holding source,
                 enum fvm_ho_holding dest, struct fvm_ho_record *ret_next)
{
    if (now->phase != FVM_HO_TAKEN || !same(now->owner, self) ||
        !FVM_HO_GUARD(CLAIM_SOURCE, source == FVM_HO_HOLDS_NOTHING) ||
        !FVM_HO_GUARD(CLAIM_DEST, dest == FVM_HO_HOLDS_NOTHING))
        return FVM_ESTATE;
    *ret_next = *now;
    ret_next->phase = FVM_HO_STABLE;
    ret_next->epoch += 1;
    return 0;
}

enum fvm_ho_source_next fvm_ho_source_decide(const struct fvm_ho_record *read, const struct fvm_ho_ticket *ticket)
{
    bool ours = same(read->owner, ticket->from);
    /* A later migration began: the guest has run elsewhere since, even if it is on this node again. */
    if (!FVM_HO_GUARD(SOURCE_OWN_MIG, memcmp(read->mig_id, ticket->mig_id, FVM_HO_ID_BYTES) == 0))
        return FVM_HO_SOURCE_DESTROY;
    if (read->phase == FVM_HO_STABLE)
        return ours ? FVM_HO_SOURCE_RESUME : FVM_HO_SOURCE_DESTROY;
    if (FVM_HO_GUARD(SOURCE_READS_STABLE, false))
        return FVM_HO_SOURCE_RESUME; /* never; the removed guard is "resume only after reading STABLE" */
    if (read->phase == FVM_HO_TAKEN && !ours)
        return FVM_HO_GUARD(SOURCE_WAITS_RUN, false) ? FVM_HO_SOURCE_DESTROY : FVM_HO_SOURCE_TAKEN;
    return FVM_HO_SOURCE_WAIT;
}

enum fvm_ho_dest_next fvm_ho_dest_decide(const struct fvm_ho_record *read, const struct fvm_ho_ticket *ticket)
{
    if (FVM_HO_GUARD(DEST_OWN_EPOCH, taken_by(read, ticket)) && same(read->owner, ticket->to)) {
        /* Not TAKEN any more: our RUN happened (and perhaps the next migration was begun already). */
        return read->phase == FVM_HO_TAKEN && !FVM_HO_GUARD(DEST_WAITS_RUN, false) ? FVM_HO_DEST_ACTIVATE
                                                                                   : FVM_HO_DEST_EXECUTE;
    }
    if (read->phase == FVM_HO_MIG && read->epoch == ticket->epoch && same(read->owner, ticket->from) &&
        memcmp(read->mig_id, ticket->mig_id, FVM_HO_ID_BYTES) == 0)
        return FVM_HO_DEST_TAKE;
    return FVM_HO_DEST_DISCARD;
}

static const char *const phase_names[] = {
    [FVM_HO_STABLE] = "stable", [FVM_HO_MIG] = "migrating", [FVM_HO_TAKEN] = "taken"};

const char *fvm_ho_phase_text(enum fvm_ho_phase phase)
{
    return phase >= FVM_HO_STABLE && phase <= FVM_HO_TAKEN ? phase_names[phase] : "?";
}

bool fvm_ho_phase_parse(const char *text, enum fvm_ho_phase *ret_phase)
{
    for (int i = FVM_HO_STABLE; i <= FVM_HO_TAKEN; i++)
        if (same(text, phase_names[i])) {
            *ret_phase = (enum fvm_ho_phase)i;
            return true;
        }
    return false;
}

static bool name_valid(const char *s, bool may_be_empty)
{
    size_t n = strnlen(s, FVM_HO_NAME_MAX + 1);
    if (n > FVM_HO_NAME_MAX || (n == 0 && !may_be_empty))
        return false;
    for (size_t i = 0; i < n; i++)
        if (s[i] <= ' ' || s[i] > '~' || s[i] == '"')
            return false;
    return true;
}

bool fvm_ho_record_valid(const struct fvm_ho_record *rec)
{
    bool moving = rec->phase != FVM_HO_STABLE;
    return rec->phase >= FVM_HO_STABLE && rec->phase <= FVM_HO_TAKEN && rec->epoch > 0 &&
           name_valid(rec->owner, false) && name_valid(rec->from, !moving) && name_valid(rec->to, !moving);
}
