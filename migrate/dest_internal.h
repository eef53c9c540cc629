/*
 * dest_internal.h - the destination's struct, shared by dest.c (life, session) and dest_take.c (proof, hand-over).
 * Thread: its own, but for `cancel`.
 */
#ifndef FVM_MIGRATE_DEST_INTERNAL_H
#define FVM_MIGRATE_DEST_INTERNAL_H

#include <pthread.h>

#include "migrate/migrate.h"
#include "migrate/record.h"
#include "migrate/stream.h"
#include "migrate/warm.h"
#include "migrate/wire.h"

enum {
    DEST_ALIVE_MS = 500,
    DEST_QUIET_MS = 5000,    /* nothing from the source: look at the record */
    DEST_SILENT_MS = 30000,  /* give this attempt up */
    DEST_ACTIVATE_MS = 5000, /* storage refuses: offer the guest back */
    DEST_RECORD_MS = 10000,
    DEST_ACK_BATCHES = 8, /* at most so many applied without an acknowledgement */
};

enum dest_state { DEST_IDLE, DEST_PREPARED, DEST_LOADING, DEST_OVER };

struct fvm_dest {
    struct fvm_dest_options opt; /* strings owned */
    pthread_t thread;
    int wake_fd;
    bool cancel; /* atomic */
    struct fvm_port *control, *bulk;
    char addr[256]; /* control's */
    struct fvm_codec *codec;
    enum dest_state state;
    struct fvm_port_peer peer; /* the source of this attempt */
    uint64_t peer_session;
    bool made; /* a VM exists */
    uint8_t image_id[FVM_IMAGE_ID_BYTES];
    struct fvm_ram *ram;
    struct fvm_warm *warm; /* while RAM is being backed */
    struct fvm_proof proof;
    struct fvm_stream_rx rx;
    struct fvm_ho_ticket ticket;
    struct fvm_ho_record record;
    unsigned cipher;
    Fvm__FinalState *final_state; /* owned */
    int state_code;               /* what the VM's check said of it */
    struct fvm_err state_err;
    struct { /* a digest that waits for the last batches it speaks of */
        bool waits;
        uint32_t attempt;
        uint64_t last_seq, digest, pages, came_ns;
    } proposal;
    uint64_t piece_ns, taken_ns, activated_ns, cleared_ns; /* where our part of the blackout went */
    struct fvm_migrate_report report;
    struct fvm_migrate_progress progress;
    uint64_t start_ns, idle_ns, heard_ns, looked_ns, alive_ns, progress_ns;
    uint64_t acked_seq, acked_corrupt, refused; /* refused: messages */
    int holds;                                  /* the source's answer to HoldQuery: -1 none yet, 0, 1 */
};

/* dest.c */
int dest_send(struct fvm_dest *d, Fvm__MigrateMessage *m);
/** The attempt is over, the image is kept for another. why: told to the source and the log. */
void dest_drop(struct fvm_dest *d, const struct fvm_err *why);
void dest_forget_state(struct fvm_dest *d);
void dest_phase(struct fvm_dest *d, enum fvm_migrate_phase phase);
/** One turn of the port; true when something was handled. */
bool dest_turn(struct fvm_dest *d, int timeout_ms);

/* dest_take.c */
void dest_on_state(struct fvm_dest *d, Fvm__FinalState *state_take);
void dest_on_digest(struct fvm_dest *d, const Fvm__Digest *digest);
/** Batches came or were lost: compare, if that was waited for. */
void dest_look_at_digest(struct fvm_dest *d);
void dest_on_hash_query(struct fvm_dest *d, const Fvm__HashQuery *query);

static inline const struct fvm_machine *dest_vm(struct fvm_dest *d) { return &d->opt.machine; }

#endif
