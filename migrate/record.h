/*
 * record.h - swapping the record for sure: read, compute, compare-and-swap, and read again when the answer was unclear.
 */
#ifndef FVM_MIGRATE_RECORD_H
#define FVM_MIGRATE_RECORD_H

#include "migrate/handover.h"

/** Computes the next record from the one read: 0, or FVM_ESTATE when the guard does not hold. */
typedef int (*fvm_record_next)(void *ctx, const struct fvm_ho_record *now, struct fvm_ho_record *ret_next);

/**
 * fvm_record_swap - one swap, whatever the store does meanwhile. Blocks.
 * @deadline_ns  CLOCK_MONOTONIC: gives up with FVM_ETIMEOUT; the swap may then have happened or may not: read, never
 * guess.
 * @ret_record   the record as last read: after 0 the new one, after FVM_ESTATE the one that did not allow it.
 * Returns 0 (and the new record has been the truth), FVM_ESTATE, FVM_ETIMEOUT.
 */
int fvm_record_swap(const struct fvm_record_store *store, fvm_record_next next, void *ctx, uint64_t deadline_ns,
                    struct fvm_ho_record *ret_record, struct fvm_err *err);
/** Reads until it works or the deadline passes. */
int fvm_record_read(const struct fvm_record_store *store, uint64_t deadline_ns, struct fvm_ho_record *ret_record,
                    struct fvm_err *err);

#endif
