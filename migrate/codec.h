/*
 * codec.h - batches of pages as bytes: runs, zero pages without data, zstd where it pays, sealed with an AEAD.
 *
 *   frame 0: BatchHeader (protobuf)  seq | coding | raw_bytes | runs (pfn, count, zero?)
 *   frame 1: AEAD( pages of the non-zero runs, whole or as deltas; raw or one zstd frame ) | tag 16
 *   delta  : each page is 16 bits (which of its parts of 256 bytes follow) and those parts; for pages the other side
 * has nonce  : seq, 8 bytes little-endian | 0 0 0 0        (a key lives for one attempt, seq never repeats in it) bound
 * : mig_id 16 | epoch 8 | the header's bytes    (of another attempt, or with a changed header: does not open)
 *
 * The opener trusts nothing: lengths, counts and page numbers are checked against RAM before any byte is placed.
 * Thread: one per struct.
 */
#ifndef FVM_MIGRATE_CODEC_H
#define FVM_MIGRATE_CODEC_H

#include "migrate/aead.h"
#include "migrate/handover.h"
#include "migrate/proof.h"

enum {
    FVM_CODEC_PAGES_MAX = 128,        /* whole, in one batch: 512 KiB */
    FVM_CODEC_DELTA_PAGES_MAX = 2048, /* as deltas, in no more bytes */
    FVM_CODEC_DATA_MAX = FVM_CODEC_PAGES_MAX * 4096,
    FVM_CODEC_RUNS_MAX = 1024,
    FVM_CODEC_RUN_PAGES_MAX = 1 << 24, /* of zeros: 64 GiB */
    FVM_CODEC_HEADER_MAX = FVM_CODEC_RUNS_MAX * 16 + 64,
    FVM_CODEC_PAYLOAD_MAX = FVM_CODEC_DATA_MAX + 16384,
    FVM_CODEC_KEY_BYTES = 32,
};
enum { FVM_CODING_RAW = 0, FVM_CODING_ZSTD = 1 };

struct fvm_codec; /* buffers, keys, compressor */

struct fvm_codec_run {
    fvm_pfn pfn;
    uint32_t count;
    bool zero;
};

struct fvm_batch { /* being filled, or opened */
    uint64_t seq;
    uint32_t run_count;
    struct fvm_codec_run runs[FVM_CODEC_RUNS_MAX];
    uint32_t data_pages, zero_pages;
    bool delta;
    size_t data_bytes; /* not delta: data_pages * 4096 */
    uint8_t *data;     /* the codec's buffer */
};

int fvm_codec_create(struct fvm_codec **ret_codec);
void fvm_codec_destroy(struct fvm_codec **codec_p);
/** For one attempt; wipes the former key. FVM_EUNSUPPORTED: cipher not here. */
int fvm_codec_key(struct fvm_codec *codec, unsigned cipher, const uint8_t key[FVM_CODEC_KEY_BYTES],
                  const struct fvm_ho_ticket *ticket);

/* --- sealing --- */
struct fvm_batch *fvm_codec_batch(struct fvm_codec *codec, bool delta); /* emptied */
bool fvm_batch_full(const struct fvm_batch *batch);
/**
 * fvm_batch_add - copies the page, or in a delta batch what changed of it, into the batch unless it is zero. Pages in
 * ascending order. Returns its hash (proof.h).
 * @parts  in: hashes of the parts the other side has, read only if `known`; out: those of this page.
 */
uint64_t fvm_batch_add(struct fvm_batch *batch, fvm_pfn pfn, const void *page, bool known,
                       uint32_t parts[FVM_PROOF_PARTS]);
struct fvm_sealed {
    uint8_t *header; /* malloc'd: the receiver of this struct frees both, or gives them to the port */
    size_t header_len;
    uint8_t *payload;
    size_t payload_len;
};
/** compress: try zstd (kept only when it saves something; the codec stops trying for a while when it does not). */
int fvm_codec_seal(struct fvm_codec *codec, uint64_t seq, bool compress, struct fvm_sealed *ret);
/** Pages that went through the compressor, and bytes that came out; for rates. */
double fvm_codec_ratio(const struct fvm_codec *codec);

/* --- opening --- */
/**
 * fvm_codec_open - authenticate, expand and check one batch.
 * @ret_hint   filled as far as the header could be read, even on failure: what it claims to be (for the log; not
 * authentic).
 * @ret_batch  borrowed from the codec until the next call.
 * Returns 0, FVM_ECORRUPT (does not authenticate), FVM_EPROTO (authentic, but it makes no sense).
 */
int fvm_codec_open(struct fvm_codec *codec, const struct fvm_ram *ram, const void *header, size_t header_len,
                   void *payload, size_t payload_len, struct fvm_codec_run *ret_hint,
                   const struct fvm_batch **ret_batch);
/** Puts the next page of an opened batch's data at `page`; returns where the one after it begins. */
const uint8_t *fvm_batch_place(const struct fvm_batch *batch, const uint8_t *data, uint8_t page[FVM_PAGE_SIZE]);

#endif
