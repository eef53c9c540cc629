/*
 * migrate.h - the front door: move a running guest to another host.
 *
 *   source thread                                      destination thread
 *   fvm_source_start    prepare, rounds ------------->  fvm_dest_start     VM created, pages placed
 *                       pause, last pages, state ---->                     digest, check
 *                       waits, reading the record <---- TAKE, activate, RUN, run
 *   done(report)        destroy only if it runs there   done(report)
 *
 * On any failure before TAKE the source resumes the guest. Which side runs it is in the record at every instant
 * (handover.h).
 */
#ifndef FVM_MIGRATE_MIGRATE_H
#define FVM_MIGRATE_MIGRATE_H

#include "migrate/converge.h"
#include "migrate/handover.h"
#include "migrate/machine.h"
#include "net/port.h"

enum { FVM_MIGRATE_PROTOCOL = 2 };

enum fvm_migrate_phase {
    FVM_MIGRATE_PREPARE,
    FVM_MIGRATE_PRECOPY,
    FVM_MIGRATE_FINAL,
    FVM_MIGRATE_TAKE,
    FVM_MIGRATE_RUN,
    FVM_MIGRATE_DONE,
    FVM_MIGRATE_FAILED,
};
const char *fvm_migrate_phase_text(enum fvm_migrate_phase phase);

struct fvm_migrate_progress {
    enum fvm_migrate_phase phase;
    uint32_t round;
    uint64_t memory_bytes, remaining_bytes, sent_bytes, rate_bytes, dirty_rate_bytes, predicted_downtime_ns, elapsed_ns;
    uint64_t pages_resent;
    uint64_t write_limit_bytes;      /* per second: the guest is held to that; 0: is not */
    char owner[FVM_HO_NAME_MAX + 1]; /* as last read from the record */
    char text[200];                  /* a remark, mostly empty */
};

enum fvm_migrate_outcome {
    FVM_MIGRATE_MOVED,   /* source: destroy the guest; destination: it runs here */
    FVM_MIGRATE_STAYED,  /* source: the guest runs on here (or is paused as before); destination: nothing came of it */
    FVM_MIGRATE_UNKNOWN, /* the record could not be read: the guest stays paused here and must not run */
};

/** Where the blackout went, in order. */
struct fvm_migrate_pieces {
    uint64_t pause_ns, pages_ns, state_ns,
        storage_ns;     /* source: standing still, last pages sent, state, disks let go */
    uint64_t digest_ns; /* source: its own digest, sent */
    uint64_t dest_proof_ns, dest_take_ns, dest_storage_ns, dest_run_ns, dest_start_ns; /* as it said */
};

struct fvm_migrate_report {
    enum fvm_migrate_outcome outcome;
    struct fvm_err err; /* code 0: no failure */
    bool dry_run, verified;
    uint32_t rounds;
    uint64_t prepare_ns, precopy_ns, final_ns, handover_ns; /* wait for TAKE and RUN */
    uint64_t blackout_ns, total_ns, predicted_downtime_ns;
    uint64_t memory_bytes, sent_bytes, data_pages, zero_pages, pages_resent, corrupt_batches, digest_repairs;
    uint64_t blackout_pages, blackout_hashed_pages;
    struct fvm_migrate_pieces pieces;
    uint64_t throttled_ns; /* writing vCPUs were kept for so long, before the blackout */
    uint64_t write_limit_bytes;
    uint64_t epoch; /* the record's, in the end */
};

struct fvm_migrate_hooks { /* on the migration's thread */
    void (*progress)(void *ctx, const struct fvm_migrate_progress *progress);
    void (*done)(void *ctx, const struct fvm_migrate_report *report); /* last call; join then */
    void *ctx;
};

/** For tests: damage what leaves, once per fault. All zero: none. Set by no program but on FVM_MIGRATE_FAULT
 * (docs/protocol.md). */
struct fvm_migrate_faults {
    uint32_t corrupt_batch; /* flip a bit of the n-th batch after sealing */
    uint32_t drop_batch;    /* never send the n-th batch */
    bool corrupt_ram;       /* destination: flip a bit of RAM before the digest */
};

struct fvm_memory;

struct fvm_source_options {
    struct fvm_machine machine;
    struct fvm_record_store record;
    struct fvm_port_ctx *ctx;
    struct fvm_port_keys keys;
    const char *to_addr, *to_key;
    const char *self, *to_name; /* as in the record */
    uint64_t max_downtime_ns;   /* 0: 300 ms */
    uint64_t deadline_ns;       /* 0: 10 min */
    enum fvm_on_miss on_miss;
    uint64_t rate_limit_bytes; /* per second, not while the guest stands still; 0: none */
    bool dry_run, verify_all;  /* verify_all: hash all of RAM in the blackout, trusting no cache */
    bool no_throttle;          /* never slow the guest's writers down */
    int compress; /* 0 while the link is the bottleneck (never on this machine's own addresses), 1 always try, -1 never
                   */
    struct fvm_memory **memory_p; /* kept between attempts; NULL: not kept */
    struct fvm_migrate_faults faults;
    struct fvm_migrate_hooks hooks;
};

struct fvm_source;
/** Copies the options. FVM_EINVAL for unusable ones; what goes wrong later comes by hooks.done. */
int fvm_source_start(const struct fvm_source_options *opt, struct fvm_source **ret_source, struct fvm_err *err);
/** Ask it to give up; refused by itself once the guest is taken. Any thread. */
void fvm_source_cancel(struct fvm_source *source);
/** The process is about to end: as cancel, and after a minute without an answer of the record it ends anyhow, with the
 * guest paused and its owner unknown. A source that is only cancelled waits for the record as long as it takes. */
void fvm_source_abandon(struct fvm_source *source);
/** Waits for the thread's end. */
void fvm_source_join(struct fvm_source **source_p);
/** "cancel" | "pause"; "postcopy" is FVM_EUNSUPPORTED. */
int fvm_on_miss_parse(const char *text, enum fvm_on_miss *ret, struct fvm_err *err);

struct fvm_dest_options {
    struct fvm_machine machine;
    struct fvm_record_store record;
    struct fvm_port_ctx *ctx;
    struct fvm_port_keys keys;
    const char *listen_addr;
    const char *self;        /* as in the record */
    fvm_port_allow_fn allow; /* which sources */
    void *allow_ctx;
    uint64_t wait_ns; /* how long to wait for a source, and for another attempt after one failed; 0: 2 min */
    struct fvm_migrate_faults faults;
    struct fvm_migrate_hooks hooks;
};

struct fvm_dest;
/** Listens (so errors of the address come here) and starts the thread. */
int fvm_dest_start(const struct fvm_dest_options *opt, struct fvm_dest **ret_dest, struct fvm_err *err);
const char *fvm_dest_addr(const struct fvm_dest *dest);
/** Give up waiting; refused by itself between TAKE and RUN. Any thread. */
void fvm_dest_cancel(struct fvm_dest *dest);
void fvm_dest_join(struct fvm_dest **dest_p);

/* machine_vm.c: the real thing. Destination: vm NULL at first, `made` is told each VM created (NULL: discarded again);
 * loop's thread. */
struct fvm_vm_machine_options {
    struct fvm_loop *loop;
    struct fvm_vm *vm; /* source */
    int (*make)(void *ctx, const Fvm__VmConfig *config, struct fvm_vm **ret_vm,
                struct fvm_err *err); /* destination, loop's thread */
    void (*unmake)(void *ctx, struct fvm_vm **vm_p);
    void *ctx;
};
struct fvm_vm_machine;
int fvm_vm_machine_create(const struct fvm_vm_machine_options *opt, struct fvm_vm_machine **ret_machine);
void fvm_vm_machine_destroy(struct fvm_vm_machine **machine_p);
struct fvm_machine fvm_vm_machine_get(struct fvm_vm_machine *machine);

#endif
