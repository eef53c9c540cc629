/*
 * journal.h - what a VM's processes and its node wrote down about its hand-overs, one JSON object per line in
 * STATE/vms/VM/journal. Both sides of a migration keep one.
 *
 *   {"wall_ns":..,"pid":..,"who":"node","do":"start","role":"incoming","peer":"a"}
 *   {"wall_ns":..,"pid":..,"who":"source","do":"want","owner":"a","epoch":3,"phase":"migrating","mig_id":"..","from":..}
 *   {"wall_ns":..,"pid":..,"who":"source","do":"swapped"}         or "conflict", or "unclear" with "text"
 *   {"wall_ns":..,"pid":..,"who":"source","do":"read","owner":...}  only when it differs from the last one
 *   {"wall_ns":..,"pid":..,"who":"source","do":"phase","phase":"final"}
 *   {"wall_ns":..,"pid":..,"who":"source","do":"end","outcome":"moved"}
 *
 * What it is for: a daemon that comes back learns what its processes are in the middle of, `vm recover` can say why,
 * and a human can read what happened. What it is not: the truth. Who may run the guest is in the record alone, so a
 * journal that cannot be written stops nothing. It is not synced to the disk: what a crash of the host takes away with
 * it is the guest, too.
 */
#ifndef FVM_CLUSTER_JOURNAL_H
#define FVM_CLUSTER_JOURNAL_H

#include <jansson.h>

#include "migrate/handover.h"

enum { FVM_JOURNAL_BYTES_MAX = 256 << 10 }; /* then it becomes journal.1 */

struct fvm_journal;

/** `who`: "node", "source", "dest". A file that cannot be opened makes a journal that writes nothing. */
int fvm_journal_open(const char *path, const char *who, struct fvm_journal **ret_journal);
void fvm_journal_close(struct fvm_journal **journal_p);
/** One line: `what` and the members of `more` (reference stolen, may be NULL). Any thread. */
void fvm_journal_note(struct fvm_journal *journal, const char *what, json_t *more);
/** The same record, with everything that is asked and answered written down. Borrows; lives as long as the journal. */
struct fvm_record_store fvm_journal_record(struct fvm_journal *journal, struct fvm_record_store record);

/** What the last process of the VM was about, from its journal. */
struct fvm_journal_view {
    bool incoming;                   /* started to receive a guest, and it is not known that it came */
    bool leaving;                    /* a migration began and its end is not written */
    uint8_t mig_id[FVM_HO_ID_BYTES]; /* of the last migration that was begun here as the source */
    bool has_mig_id;
    char phase[24], outcome[24]; /* of the last migration; outcome "" while it goes on */
};
/** Tolerates anything in the file: lines that make no sense are passed over. */
void fvm_journal_parse(const char *text, size_t len, struct fvm_journal_view *ret_view);
void fvm_journal_read(const char *path, struct fvm_journal_view *ret_view);

#endif
