/*
 * handover.h - who may run the guest: the hand-over as pure functions on one record. No sockets, no clock, no store.
 *
 * The record {owner, epoch, phase, mig_id, from, to} lives in a linearizable store and changes only by
 * compare-and-swap:
 *
 *     owner,phase     A,STABLE --BEGIN--> A,MIG --TAKE--> B,TAKEN --RUN--> B,STABLE
 *                        ^                  |                |
 *                        |<----ABORT--------+                |        (each but BEGIN and RUN: epoch + 1)
 *                        |<------------------HANDBACK--------+----CLAIM--> B,STABLE
 *
 *   - A resumes only after READING A,STABLE with its own mig_id still in the record; it frees the guest only after
 *     READING another owner, STABLE, or another mig_id (a later migration: the guest ran elsewhere meanwhile, perhaps
 * it is back on this node in another process).
 *   - B takes only with the whole image verified; it executes only after READING that its own RUN happened: B at the
 *     epoch of its TAKE, not TAKEN any more.
 *   - Who got no clear answer to a swap reads the record. He never guesses.
 *   - Storage accepts the record's epoch and refuses older ones, so a late writer cannot write.
 *
 * tests/sim/handover.c runs these functions with a fault at every step, and shows that each guard is needed.
 */
#ifndef FVM_MIGRATE_HANDOVER_H
#define FVM_MIGRATE_HANDOVER_H

#include "base/err.h"

#define FVM_HO_NAME_MAX 63
#define FVM_HO_ID_BYTES 16

enum fvm_ho_phase { FVM_HO_STABLE = 1, FVM_HO_MIG, FVM_HO_TAKEN };

struct fvm_ho_record {
    char owner[FVM_HO_NAME_MAX + 1];
    uint64_t epoch;
    enum fvm_ho_phase phase;
    uint8_t mig_id[FVM_HO_ID_BYTES];
    char from[FVM_HO_NAME_MAX + 1];
    char to[FVM_HO_NAME_MAX + 1];
};

/** Which migration, as BEGIN made it: what the destination's image belongs to. */
struct fvm_ho_ticket {
    uint8_t mig_id[FVM_HO_ID_BYTES];
    uint64_t epoch; /* of the record in MIG */
    char from[FVM_HO_NAME_MAX + 1];
    char to[FVM_HO_NAME_MAX + 1];
};

/** What a node holds of the guest, by its own word. */
enum fvm_ho_holding {
    FVM_HO_HOLDS_NOTHING,
    FVM_HO_HOLDS_PAUSED, /* the source's stopped guest, complete */
    FVM_HO_HOLDS_IMAGE,  /* the destination's, complete and verified, never run */
    FVM_HO_HOLDS_RUNNING,
    FVM_HO_HOLDS_UNKNOWN, /* it did not answer */
};

/* --- swaps: guard on the record as read; 0 and the new record, or FVM_ESTATE --- */
int fvm_ho_begin(const struct fvm_ho_record *now, const char *self, const char *to,
                 const uint8_t mig_id[FVM_HO_ID_BYTES], struct fvm_ho_record *ret_next);
/** By the source, or by its node after it died (`self` is the owner's name in both cases). */
int fvm_ho_abort(const struct fvm_ho_record *now, const char *self, struct fvm_ho_record *ret_next);
/** holding must be IMAGE: whole, digest equal, state checked. */
int fvm_ho_take(const struct fvm_ho_record *now, const struct fvm_ho_ticket *ticket, enum fvm_ho_holding holding,
                struct fvm_ho_record *ret_next);
/** storage_epoch: the epoch that the destination's storage accepted. */
int fvm_ho_run(const struct fvm_ho_record *now, const struct fvm_ho_ticket *ticket, uint64_t storage_epoch,
               struct fvm_ho_record *ret_next);
/** By the destination, the source or a controller; `source`: what the source says it holds, asked just now. */
int fvm_ho_handback(const struct fvm_ho_record *now, enum fvm_ho_holding source, struct fvm_ho_record *ret_next);
/** By the destination's node, to boot the guest anew: both sides say that they hold nothing. */
int fvm_ho_claim(const struct fvm_ho_record *now, const char *self, enum fvm_ho_holding source,
                 enum fvm_ho_holding dest, struct fvm_ho_record *ret_next);

/* --- what a side may do with what it has just read --- */
enum fvm_ho_source_next {
    FVM_HO_SOURCE_WAIT,    /* still MIG: wait, or ABORT */
    FVM_HO_SOURCE_RESUME,  /* it is ours: activate storage with the record's epoch, run */
    FVM_HO_SOURCE_TAKEN,   /* wait for RUN, or HANDBACK */
    FVM_HO_SOURCE_DESTROY, /* it runs elsewhere: free the guest, never run it again */
};
enum fvm_ho_source_next fvm_ho_source_decide(const struct fvm_ho_record *read, const struct fvm_ho_ticket *ticket);

enum fvm_ho_dest_next {
    FVM_HO_DEST_TAKE,     /* ours to take once the image is verified */
    FVM_HO_DEST_ACTIVATE, /* taken: activate storage with the record's epoch, then RUN */
    FVM_HO_DEST_EXECUTE,  /* run the guest now */
    FVM_HO_DEST_DISCARD,  /* this image is of no use any more */
};
enum fvm_ho_dest_next fvm_ho_dest_decide(const struct fvm_ho_record *read, const struct fvm_ho_ticket *ticket);

/* --- handover_recover.c: what is to be done about a record, after asking everybody --- */
enum fvm_ho_cure {
    FVM_HO_FINE,      /* nothing is in the middle */
    FVM_HO_WAITS,     /* somebody alive is at it and will end it by himself */
    FVM_HO_ABORTS,    /* `by` swaps ABORT */
    FVM_HO_HANDS_BACK, /* `by` swaps HANDBACK */
    FVM_HO_CLAIMS,    /* `by` swaps CLAIM */
    FVM_HO_STUCK,     /* who could decide does not answer: `by` must come back */
};
struct fvm_ho_advice {
    enum fvm_ho_cure cure;
    char by[FVM_HO_NAME_MAX + 1];
    char why[320]; /* one sentence for the operator */
};
/**
 * fvm_ho_recover - the one table of recovery: used by nodes by themselves, by `vm recover`, and by the simulator.
 *
 * @owner   what record->owner's node says it holds, UNKNOWN when it does not answer.
 * @other   the same of the other side: record->to while MIG, record->from while TAKEN; not looked at when STABLE.
 * @insist  an operator wants it settled now, or the owner's lease has ended: a destination that took the guest and still
 *          does not run it loses it.
 *
 * The advice is only good for this record: the swap that follows compares its revision.
 */
void fvm_ho_recover(const struct fvm_ho_record *record, enum fvm_ho_holding owner, enum fvm_ho_holding other,
                    bool insist, struct fvm_ho_advice *ret_advice);
const char *fvm_ho_holding_text(enum fvm_ho_holding holding); /* "nothing" "paused" "image" "running" "unknown" */
bool fvm_ho_holding_parse(const char *text, enum fvm_ho_holding *ret_holding);

const char *fvm_ho_phase_text(enum fvm_ho_phase phase); /* "stable" "migrating" "taken" */
bool fvm_ho_phase_parse(const char *text, enum fvm_ho_phase *ret_phase);
/** Is this a record that could be? (names, phase, epoch) */
bool fvm_ho_record_valid(const struct fvm_ho_record *rec);

/**
 * Where the record is kept. Calls block (store's time-outs). A cas that returns neither 0 nor FVM_ECONFLICT may have
 * happened or not. `revision` identifies the version read.
 */
struct fvm_record_store {
    int (*get)(void *ctx, struct fvm_ho_record *ret_record, uint64_t *ret_revision, struct fvm_err *err);
    int (*cas)(void *ctx, uint64_t expect_revision, const struct fvm_ho_record *next, struct fvm_err *err);
    void *ctx;
};

/* --- record_file.c: a record in a file, for processes of one machine --- */
struct fvm_record_file;
/** The file (and PATH.lock beside it) is made when missing: owner = self, epoch 1, STABLE; self NULL: it must exist. */
int fvm_record_file_open(const char *path, const char *self, struct fvm_record_file **ret_file, struct fvm_err *err);
void fvm_record_file_close(struct fvm_record_file **file_p);
/** Borrowed from the file. */
struct fvm_record_store fvm_record_file_store(struct fvm_record_file *file);
/** Text form, as in the file; for tests and fuzzing. FVM_EBADIMAGE. */
int fvm_record_parse(const char *text, size_t len, struct fvm_ho_record *ret_record, uint64_t *ret_revision);
int fvm_record_format(const struct fvm_ho_record *record, uint64_t revision, char *buf, size_t size);

#endif
