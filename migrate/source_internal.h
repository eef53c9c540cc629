/*
 * source_internal.h - one attempt's struct, shared by source.c (life), source_link.c (messages, pages), source_final.c
 * (blackout, hand-over). Thread: the attempt's own, but for `cancel`.
 */
#ifndef FVM_MIGRATE_SOURCE_INTERNAL_H
#define FVM_MIGRATE_SOURCE_INTERNAL_H

#include <pthread.h>

#include "migrate/migrate.h"
#include "migrate/record.h"
#include "migrate/stream.h"
#include "migrate/wire.h"

enum {
    SOURCE_CONNECT_MS = 5000,
    SOURCE_PREPARE_MS = 20000,
    SOURCE_SILENT_MS = 10000,     /* nothing heard from the destination */
    SOURCE_DOWN_MS = 3000,        /* connection broken and not back */
    SOURCE_DOWN_PAUSED_MS = 1000, /* the same while the guest stands still */
    SOURCE_STALL_MS = 30000,      /* pages in flight, no progress */
    SOURCE_PROBE_MS = 1000,
    SOURCE_PROBE_PAUSED_MS = 200,
    SOURCE_TAKE_MS = 30000,    /* digest sent, not taken */
    SOURCE_RUN_MS = 15000,     /* taken, not running: hand back */
    SOURCE_RUN_GONE_MS = 2000, /* the same when nobody is there any more */
    SOURCE_RECORD_MS = 10000,
    SOURCE_RUNNING_MS = 500, /* it is moved; when did it begin to run? */
    SOURCE_REPAIRS_MAX = 3,
    SOURCE_DIGESTS_MAX = 50,  /* each after lost batches or a repair */
    SOURCE_ROUND_MIN_MS = 10, /* a shorter round says nothing about rates */
    SOURCE_NAMED_MAX = 16,    /* differing pages that are named in the log, per repair */
};

struct fvm_source {
    struct fvm_source_options opt; /* strings owned */
    pthread_t thread;
    int wake_fd;
    bool cancel, abandon; /* atomic */
    struct fvm_port *control, *bulk;
    struct fvm_codec *codec;
    struct fvm_memory *memory;
    struct fvm_stream_tx tx;
    bool tx_open;
    struct fvm_converge converge;
    struct fvm_migrate_report report;
    struct fvm_migrate_progress progress;
    struct fvm_ho_ticket ticket;
    struct fvm_ho_record record; /* as last read */
    uint64_t start_ns, phase_ns, piece_ns, paused_ns, paused_wall_ns, progress_ns;
    bool begun, paused, was_running, storage_off, committed; /* committed: cancel is no longer heard */
    bool compress;                                           /* where it pays */
    double link_full; /* part of the batches that had to wait for the link, of late */

    uint64_t rate_ns, rate_bytes; /* of the bandwidth limit: when what was sent so far is paid for */
    uint64_t heard_ns, down_ns, session, ack_ns, probe_ns, probe_wait_ns, round_sent, round_start_ns;
    uint64_t batches;           /* sent, for faults */
    Fvm__MigrateMessage *reply; /* the last that is an answer; owned */
    uint64_t running_ns;        /* when the destination said so */
};

/* source_link.c */
int source_connect(struct fvm_source *s, struct fvm_err *err);
int source_connect_bulk(struct fvm_source *s, const char *bulk_address, struct fvm_err *err);
/** Handle what came, wait at most timeout_ms for something. A negative code: the attempt cannot go on; err says why. */
int source_pump(struct fvm_source *s, int timeout_ms, struct fvm_err *err);
/** Wait for the answer of that kind; in s->reply. */
int source_await(struct fvm_source *s, Fvm__MigrateMessage__WhatCase kind, uint64_t timeout_ms, struct fvm_err *err);
/** All pages of this round, sent; with `settle` also acknowledged. */
int source_send_pages(struct fvm_source *s, uint32_t epoch, bool settle, struct fvm_err *err);
void source_report_progress(struct fvm_source *s, bool now, const char *text);
void source_phase(struct fvm_source *s, enum fvm_migrate_phase phase);
void source_throttle(struct fvm_source *s, uint64_t bytes_per_s);

/* source_final.c */
int source_final(struct fvm_source *s, struct fvm_err *err);
/** Ends what BEGIN began, by reading the record. why: NULL: wait for the destination; else why it must not go on. */
void source_settle(struct fvm_source *s, const struct fvm_err *why);

static inline const struct fvm_machine *source_vm(struct fvm_source *s) { return &s->opt.machine; }

#endif
