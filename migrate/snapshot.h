/*
 * snapshot.h - a guest in a file: what a migration sends, written down.
 *
 *   "FVMSNAP\n"  format 1 (u32)  0 (u32)                                all numbers little-endian
 *   records:  type (u32) | header bytes (u32) | payload bytes (u32) | 0 (u32) | header | payload
 *     1 header   header: 16 bytes BLAKE2b of the payload; payload: SnapshotHeader (proto/migrate.proto), never sealed
 *     2 batch    a batch of pages as codec.h makes them; a page may come again, the last copy counts
 *     3 state    payload: FinalState, sealed
 *     4 end      payload: SnapshotEnd with the memory proof, sealed; nothing follows
 *
 * Everything but the header is sealed as in a migration. Without a key file the key stands in the header: then the seal
 * is a strong checksum and keeps nothing secret. Nonce of records 3 and 4: batches written so far | type.
 *
 * Saving lets the guest run while most pages are written, then pauses it for the rest. The file gets its name when all
 * of it is on the disk. Whatever fails, the guest goes on as before. Disks are not in the file: keep them as they are
 * (stop) or snapshot them at the same time.
 *
 * The file is hostile to who loads it: every length is checked, nothing is allocated by its word alone. The version
 * rule: another format number is refused.
 * Test: tests/unit/migrate_snapshot.c, tests/fuzz/snapshot.c, tests/e2e/snapshot
 */
#ifndef FVM_MIGRATE_SNAPSHOT_H
#define FVM_MIGRATE_SNAPSHOT_H

#include "migrate/machine.h"
#include "proto/migrate.pb-c.h"

enum { FVM_SNAPSHOT_FORMAT = 1, FVM_SNAPSHOT_KEY_FILE_MIN = 16 };

/* ---- saving ---- */

struct fvm_snapshot_report {
    struct fvm_err err; /* code 0: it is there */
    uint64_t blackout_ns, total_ns, file_bytes, memory_bytes, data_pages, zero_pages;
    uint32_t rounds;
    bool stopped; /* the guest stays paused, its disks are given up: as asked */
};

struct fvm_snapshot_options {
    struct fvm_machine machine;
    const char *path;     /* replaced when the new one is complete */
    const char *key_file; /* NULL: not secret */
    bool compress;        /* zstd: smaller, slower */
    bool stop;            /* leave the guest paused and its disks flushed and closed; only if all went well */
    void (*done)(void *ctx, const struct fvm_snapshot_report *report); /* on the snapshot's thread; join then */
    void *ctx;
};

struct fvm_snapshot;
/** Copies the options, opens the file, starts the thread. */
int fvm_snapshot_start(const struct fvm_snapshot_options *opt, struct fvm_snapshot **ret_snapshot, struct fvm_err *err);
/** Give up as soon as possible. Any thread. */
void fvm_snapshot_cancel(struct fvm_snapshot *snapshot);
void fvm_snapshot_join(struct fvm_snapshot **snapshot_p);

/* ---- loading ---- */

struct fvm_snapshot_in;
/** Reads up to the machine's description. key_file: needed for a sealed one, else ignored. */
int fvm_snapshot_open(const char *path, const char *key_file, struct fvm_snapshot_in **ret_in, struct fvm_err *err);
void fvm_snapshot_close(struct fvm_snapshot_in **in_p);
/** What machine it needs; borrowed. */
const Fvm__VmConfig *fvm_snapshot_config(const struct fvm_snapshot_in *in);
/**
 * fvm_snapshot_load - all pages into `ram`, which nothing else touches and nobody wrote to; then the memory proof.
 * @ret_state  the processors' and devices' state, not checked: fvm__final_state__free_unpacked(m, NULL).
 * Returns 0 only for a file that is complete and whole. RAM is worthless otherwise.
 */
int fvm_snapshot_load(struct fvm_snapshot_in *in, struct fvm_ram *ram, Fvm__FinalState **ret_state, struct fvm_err *err);

#endif
