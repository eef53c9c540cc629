/*
 * stream.h - pages from RAM to RAM over a channel that loses, corrupts and cuts: sequence, acknowledgement, resend.
 * Pure of sockets: the caller carries batches and acks.
 *
 * Sender: "send what is newer than what this destination has". has[page] is the dirty epoch that a sent copy covers. A
 * batch that is reported lost, or whose fate is unknown at the end of an attempt, sets its pages back to "nothing
 * there", so nothing else has to be remembered, and a second attempt to the same image sends only the difference.
 *
 *   version[p] >  has[p]          must be sent
 *   version[p] >  round's epoch   changed again while the round ran: left for the next round
 *
 * A page sent before is sent again as the parts that changed (codec.h), told by their hashes. 32 bits of each are kept:
 * one change in four thousand million is taken for none, the memory proof finds it and the page is sent whole. When any
 * batch with a page is lost, the page is sent whole: a delta that was applied to an older page does no lasting harm.
 *
 * Receiver: batches are applied in ascending order of their number only; a number that is skipped is lost for good and
 * reported as such, and comes late or twice to no effect. So an old copy of a page never overwrites a newer one.
 *
 * Thread: the migration's.
 */
#ifndef FVM_MIGRATE_STREAM_H
#define FVM_MIGRATE_STREAM_H

#include "migrate/codec.h"
#include "migrate/proof.h"

enum { FVM_STREAM_WINDOW = 64, FVM_STREAM_LOST_MAX = 4096, FVM_IMAGE_ID_BYTES = 16 };

/** What the source remembers of one destination's image; outlives an attempt. */
struct fvm_memory {
    struct fvm_ram *ram; /* borrowed */
    uint8_t image_id[FVM_IMAGE_ID_BYTES];
    uint32_t *has;                      /* [ram->page_count] */
    uint8_t *force;                     /* [ram->page_count] send whatever the versions say, and whole */
    uint32_t (*parts)[FVM_PROOF_PARTS]; /* [ram->page_count] of the copy sent last; holds where has is not 0 */
    bool sent_once;                     /* a pass over all of RAM is over: from now on deltas */
    struct fvm_proof proof;
};
int fvm_memory_create(struct fvm_ram *ram, struct fvm_memory **ret_memory);
void fvm_memory_destroy(struct fvm_memory **memory_p);
/** The destination has nothing (but zero pages). */
void fvm_memory_reset(struct fvm_memory *memory, const uint8_t image_id[FVM_IMAGE_ID_BYTES]);
/** Pages to send, counted as of dirty epoch `epoch`: all newer ones included. */
uint64_t fvm_memory_pending(const struct fvm_memory *memory);

struct fvm_stream_batch { /* sent, not settled */
    uint64_t seq;
    uint32_t epoch, run_count, pages, bytes;
    struct fvm_codec_run *runs;
};

struct fvm_stream_tx {
    struct fvm_memory *memory; /* borrowed, as codec */
    struct fvm_codec *codec;
    uint64_t next_seq;
    struct fvm_stream_batch ring[FVM_STREAM_WINDOW]; /* [first..first+count) by seq */
    unsigned first, count;
    uint64_t acked_seq, bytes_sent, bytes_acked, data_pages, zero_pages, resent_pages, lost_batches;
};
void fvm_stream_tx_init(struct fvm_stream_tx *tx, struct fvm_memory *memory, struct fvm_codec *codec);
/** Everything in flight counts as lost. */
void fvm_stream_tx_fini(struct fvm_stream_tx *tx);
bool fvm_stream_tx_room(const struct fvm_stream_tx *tx);
/**
 * fvm_stream_tx_next - the next batch of a round.
 * @cursor  where the round stands (pfn), moved on; a round begins at 0 and is over when FVM_ENOENT is returned.
 * @epoch   the dirty epoch that was closed when the round began.
 */
int fvm_stream_tx_next(struct fvm_stream_tx *tx, fvm_pfn *cursor, uint32_t epoch, bool compress,
                       struct fvm_sealed *ret);
/** lost: ascending. Returns pages that must be sent again; *ret_first_gpa names the first of them. */
uint64_t fvm_stream_tx_ack(struct fvm_stream_tx *tx, uint64_t last_seq, const uint64_t *lost, size_t lost_count,
                           fvm_gpa *ret_first_gpa);
/** One page again (the proof found it different). */
void fvm_memory_force(struct fvm_memory *memory, fvm_pfn pfn);

struct fvm_stream_rx {
    struct fvm_ram *ram; /* borrowed, as codec and proof */
    struct fvm_codec *codec;
    struct fvm_proof *proof;
    uint64_t last_seq, corrupt, batches, data_pages, zero_pages, late, zero_hash;
    uint64_t lost[FVM_STREAM_LOST_MAX]; /* ascending */
    uint32_t lost_count;
    bool quiet; /* no line in the log for a corrupt batch: the caller says it */
};
void fvm_stream_rx_init(struct fvm_stream_rx *rx, struct fvm_ram *ram, struct fvm_codec *codec,
                        struct fvm_proof *proof);
/** Frames of one batch (payload is overwritten). 0: applied, or late and dropped; FVM_ECORRUPT: dropped, counted,
 *  logged; FVM_EPROTO: give up (authentic, but senseless, or too many lost). */
int fvm_stream_rx_batch(struct fvm_stream_rx *rx, const void *header, size_t header_len, void *payload,
                        size_t payload_len);
/** What has not come up to last_seq never will. */
int fvm_stream_rx_settle(struct fvm_stream_rx *rx, uint64_t last_seq);
/** The sender knows of lost ones up to here. */
void fvm_stream_rx_forget(struct fvm_stream_rx *rx, uint64_t handled_seq);

#endif
