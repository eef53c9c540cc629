/*
 * codec.c - page batches to bytes and back. Knows RAM's layout and the wire's, nothing of sockets, threads or rounds.
 *
 * Why sealed here and not by CURVE: CURVE does 0.3-0.4 GB/s, AES-256-GCM several. Why one zstd frame per batch: at 64
 * KiB and more the ratio is that of long input and the call costs vanish.
 *
 * Invariant: fvm_codec_open returns 0 only for a batch whose runs are RAM, do not exceed the limits, and whose data is
 * exactly data_pages pages or deltas.
 */
#include "migrate/codec.h"

#include <stdlib.h>
#include <string.h>
#include <zstd.h>

#include "migrate/proof.h"
#include "proto/migrate.pb-c.h"

#define MASK_BYTES 2 /* before each page of a delta batch */
#define AAD_MAX (FVM_HO_ID_BYTES + 8 + FVM_CODEC_HEADER_MAX)
#define ZSTD_PAUSE 8 /* batches to send raw after one that did not shrink */
#define SAMPLE_BYTES ((size_t)16384)

struct fvm_codec {
    struct fvm_aead *aead; /* NULL: no key yet */
    uint8_t bound[FVM_HO_ID_BYTES + 8];
    ZSTD_CCtx *cctx;
    ZSTD_DCtx *dctx;
    unsigned zstd_pause;
    uint64_t zstd_in, zstd_out;
    uint8_t *pages; /* FVM_CODEC_DATA_MAX */
    uint8_t *packed;
    struct fvm_batch batch;
};

int fvm_codec_create(struct fvm_codec **ret_codec)
{
    struct fvm_codec *c = calloc(1, sizeof(*c));
    if (!c)
        return FVM_ENOMEM;
    c->cctx = ZSTD_createCCtx();
    c->dctx = ZSTD_createDCtx();
    c->pages = aligned_alloc(64, FVM_CODEC_DATA_MAX);
    c->packed = malloc(FVM_CODEC_PAYLOAD_MAX);
    if (!c->cctx || !c->dctx || !c->pages || !c->packed) {
        fvm_codec_destroy(&c);
        return FVM_ENOMEM;
    }
    ZSTD_CCtx_setParameter(c->cctx, ZSTD_c_compressionLevel, 1);
    *ret_codec = c;
    return 0;
}

void fvm_codec_destroy(struct fvm_codec **codec_p)
{
    struct fvm_codec *c = *codec_p;
    if (!c)
        return;
    *codec_p = NULL;
    ZSTD_freeCCtx(c->cctx);
    ZSTD_freeDCtx(c->dctx);
    fvm_aead_destroy(&c->aead);
    free(c->pages);
    free(c->packed);
    free(c);
}

int fvm_codec_key(struct fvm_codec *c, unsigned cipher, const uint8_t key[FVM_CODEC_KEY_BYTES],
                  const struct fvm_ho_ticket *ticket)
{
    fvm_aead_destroy(&c->aead);
    memcpy(c->bound, ticket->mig_id, FVM_HO_ID_BYTES);
    for (int i = 0; i < 8; i++)
        c->bound[FVM_HO_ID_BYTES + i] = (uint8_t)(ticket->epoch >> (8 * i));
    return fvm_aead_create(cipher, key, &c->aead);
}

static void make_nonce(uint64_t seq, uint8_t nonce[FVM_AEAD_NONCE_BYTES])
{
    memset(nonce, 0, FVM_AEAD_NONCE_BYTES);
    for (int i = 0; i < 8; i++)
        nonce[i] = (uint8_t)(seq >> (8 * i));
}

static size_t make_aad(const struct fvm_codec *c, const void *header, size_t header_len, uint8_t aad[AAD_MAX])
{
    memcpy(aad, c->bound, sizeof(c->bound));
    memcpy(aad + sizeof(c->bound), header, header_len);
    return sizeof(c->bound) + header_len;
}

/* ---- sealing ---- */

struct fvm_batch *fvm_codec_batch(struct fvm_codec *c, bool delta)
{
    c->batch.seq = 0;
    c->batch.run_count = c->batch.data_pages = c->batch.zero_pages = 0;
    c->batch.delta = delta;
    c->batch.data_bytes = 0;
    c->batch.data = c->pages;
    return &c->batch;
}

bool fvm_batch_full(const struct fvm_batch *b)
{
    return b->data_pages >= (b->delta ? FVM_CODEC_DELTA_PAGES_MAX : FVM_CODEC_PAGES_MAX) ||
           b->data_bytes > FVM_CODEC_DATA_MAX - FVM_PAGE_SIZE - (b->delta ? MASK_BYTES : 0) ||
           b->run_count >= FVM_CODEC_RUNS_MAX - 1 || b->zero_pages >= FVM_CODEC_RUN_PAGES_MAX - 1;
}

/* In a batch pages follow masks of any length: words of no alignment. */
typedef uint64_t __attribute__((aligned(1), may_alias)) loose_word;

static bool is_zero(const void *page)
{
    const loose_word *w = page;
    if (w[0] | w[511])
        return false;
    for (unsigned i = 0; i < 512; i += 8)
        if (w[i] | w[i + 1] | w[i + 2] | w[i + 3] | w[i + 4] | w[i + 5] | w[i + 6] | w[i + 7])
            return false;
    return true;
}

/* Keeps only the parts that the other side lacks. */
static size_t squeeze(uint8_t *entry, bool known, const uint32_t *had, const uint32_t *has)
{
    uint8_t *page = entry + MASK_BYTES, *to = page;
    unsigned mask = 0;
    for (unsigned i = 0; i < FVM_PROOF_PARTS; i++) {
        if (known && had[i] == has[i])
            continue;
        mask |= 1u << i;
        if (to != page + i * FVM_PROOF_PART_BYTES)
            memcpy(to, page + i * FVM_PROOF_PART_BYTES, FVM_PROOF_PART_BYTES);
        to += FVM_PROOF_PART_BYTES;
    }
    entry[0] = (uint8_t)mask;
    entry[1] = (uint8_t)(mask >> 8);
    return (size_t)(to - entry);
}

uint64_t fvm_batch_add(struct fvm_batch *b, fvm_pfn pfn, const void *page, bool known, uint32_t parts[FVM_PROOF_PARTS])
{
    fvm_assert(!fvm_batch_full(b));
    /* The guest may be writing: what is judged and hashed must be what is sent, so copy first. */
    uint8_t *entry = b->data + b->data_bytes, *copy = entry + (b->delta ? MASK_BYTES : 0);
    memcpy(copy, page, FVM_PAGE_SIZE);
    bool zero = is_zero(copy);
    struct fvm_codec_run *last = b->run_count ? &b->runs[b->run_count - 1] : NULL;
    if (last && last->zero == zero && last->pfn + last->count == pfn)
        last->count++;
    else
        b->runs[b->run_count++] = (struct fvm_codec_run){.pfn = pfn, .count = 1, .zero = zero};
    if (zero) {
        b->zero_pages++;
        return fvm_proof_zero_hash(parts);
    }
    uint32_t has[FVM_PROOF_PARTS];
    uint64_t hash = fvm_proof_hash_page(copy, has);
    b->data_pages++;
    b->data_bytes += b->delta ? squeeze(entry, known, parts, has) : FVM_PAGE_SIZE;
    memcpy(parts, has, sizeof(has));
    return hash;
}

static bool shrinks(size_t n, size_t raw) { return !ZSTD_isError(n) && n <= raw - raw / 8; }

/* Three pieces of a large batch tell for a tenth of the price whether all of it is worth trying. */
static bool sample_shrinks(struct fvm_codec *c, const struct fvm_batch *b)
{
    size_t n = 0;
    for (unsigned i = 0; i < 3; i++) {
        size_t at = (b->data_bytes - SAMPLE_BYTES) / 2 * i;
        size_t m = ZSTD_compress2(c->cctx, c->packed, FVM_CODEC_PAYLOAD_MAX, b->data + at, SAMPLE_BYTES);
        n += ZSTD_isError(m) ? SAMPLE_BYTES : m;
    }
    return shrinks(n, 3 * SAMPLE_BYTES);
}

static size_t compress_batch(struct fvm_codec *c, const struct fvm_batch *b)
{
    size_t raw = b->data_bytes;
    if (c->zstd_pause) {
        c->zstd_pause--;
        return 0;
    }
    if (raw >= 8 * SAMPLE_BYTES && !sample_shrinks(c, b)) {
        c->zstd_pause = ZSTD_PAUSE;
        return 0;
    }
    size_t n = ZSTD_compress2(c->cctx, c->packed, FVM_CODEC_PAYLOAD_MAX, b->data, raw);
    if (!shrinks(n, raw)) {
        c->zstd_pause = ZSTD_PAUSE;
        return 0;
    }
    c->zstd_in += raw;
    c->zstd_out += n;
    return n;
}

static int pack_header(const struct fvm_batch *b, uint64_t seq, uint32_t coding, struct fvm_sealed *out)
{
    uint64_t pfns[FVM_CODEC_RUNS_MAX];
    uint32_t counts[FVM_CODEC_RUNS_MAX];
    for (uint32_t i = 0; i < b->run_count; i++) {
        pfns[i] = b->runs[i].pfn;
        counts[i] = b->runs[i].count << 1 | b->runs[i].zero;
    }
    Fvm__BatchHeader h = FVM__BATCH_HEADER__INIT;
    h.seq = seq;
    h.coding = coding;
    h.raw_bytes = (uint32_t)b->data_bytes;
    h.delta = b->delta;
    h.n_run_pfn = h.n_run_count = b->run_count;
    h.run_pfn = pfns;
    h.run_count = counts;
    out->header = malloc(fvm__batch_header__get_packed_size(&h));
    if (!out->header)
        return FVM_ENOMEM;
    out->header_len = fvm__batch_header__pack(&h, out->header);
    fvm_assert(out->header_len <= FVM_CODEC_HEADER_MAX);
    return 0;
}

int fvm_codec_seal(struct fvm_codec *c, uint64_t seq, bool compress, struct fvm_sealed *ret)
{
    struct fvm_batch *b = &c->batch;
    struct fvm_sealed out = {0};
    const uint8_t *data = b->data;
    size_t len = b->data_bytes, n = compress && len ? compress_batch(c, b) : 0;
    fvm_assert(c->aead && seq > 0 && b->run_count > 0);
    b->seq = seq;
    int rc = pack_header(b, seq, n ? FVM_CODING_ZSTD : FVM_CODING_RAW, &out);
    if (rc)
        return rc;
    if (n) {
        data = c->packed;
        len = n;
    }
    out.payload_len = len + FVM_AEAD_TAG_BYTES;
    out.payload = malloc(out.payload_len);
    rc = FVM_ENOMEM;
    if (out.payload) {
        uint8_t nonce[FVM_AEAD_NONCE_BYTES], aad[AAD_MAX];
        size_t aad_len = make_aad(c, out.header, out.header_len, aad);
        make_nonce(seq, nonce);
        rc = fvm_aead_seal(c->aead, nonce, aad, aad_len, data, len, out.payload);
    }
    if (rc) {
        free(out.header);
        free(out.payload);
        return rc;
    }
    *ret = out;
    return 0;
}

double fvm_codec_ratio(const struct fvm_codec *c)
{
    return c->zstd_out ? (double)c->zstd_in / (double)c->zstd_out : 1.0;
}

/* ---- opening ---- */

static int check_runs(const Fvm__BatchHeader *h, const struct fvm_ram *ram, struct fvm_batch *b)
{
    uint64_t data = 0, zero = 0, data_max = h->delta ? FVM_CODEC_DELTA_PAGES_MAX : FVM_CODEC_PAGES_MAX;
    if (h->n_run_pfn != h->n_run_count || h->n_run_pfn == 0 || h->n_run_pfn > FVM_CODEC_RUNS_MAX || h->seq == 0)
        return FVM_EPROTO;
    for (size_t i = 0; i < h->n_run_pfn; i++) {
        uint64_t pfn = h->run_pfn[i], count = h->run_count[i] >> 1;
        bool is_zero_run = h->run_count[i] & 1;
        if (count == 0 || count > (is_zero_run ? FVM_CODEC_RUN_PAGES_MAX : data_max) || pfn >= ram->page_count ||
            !fvm_ram_contains(ram, pfn << FVM_PAGE_SHIFT, count << FVM_PAGE_SHIFT))
            return FVM_EPROTO;
        *(is_zero_run ? &zero : &data) += count;
        b->runs[i] = (struct fvm_codec_run){.pfn = pfn, .count = (uint32_t)count, .zero = is_zero_run};
    }
    if (data > data_max || zero > ram->page_count || h->raw_bytes > FVM_CODEC_DATA_MAX ||
        (!h->delta && h->raw_bytes != data * FVM_PAGE_SIZE))
        return FVM_EPROTO;
    b->delta = h->delta;
    b->data_bytes = h->raw_bytes;
    b->seq = h->seq;
    b->run_count = (uint32_t)h->n_run_pfn;
    b->data_pages = (uint32_t)data;
    b->zero_pages = (uint32_t)zero;
    return 0;
}

static int unseal(struct fvm_codec *c, uint64_t seq, const void *header, size_t header_len, uint8_t *payload,
                  size_t len)
{
    uint8_t nonce[FVM_AEAD_NONCE_BYTES], aad[AAD_MAX];
    size_t aad_len = make_aad(c, header, header_len, aad);
    make_nonce(seq, nonce);
    return fvm_aead_open(c->aead, nonce, aad, aad_len, payload, len);
}

static unsigned delta_mask(const uint8_t *entry) { return entry[0] | (unsigned)entry[1] << 8; }

/* As many deltas as pages, and not a byte more. */
static int check_deltas(const struct fvm_batch *b)
{
    size_t at = 0;
    for (uint32_t i = 0; i < b->data_pages; i++) {
        if (b->data_bytes - at < MASK_BYTES)
            return FVM_EPROTO;
        size_t len = MASK_BYTES + (size_t)__builtin_popcount(delta_mask(b->data + at)) * FVM_PROOF_PART_BYTES;
        if (b->data_bytes - at < len)
            return FVM_EPROTO;
        at += len;
    }
    return at == b->data_bytes ? 0 : FVM_EPROTO;
}

const uint8_t *fvm_batch_place(const struct fvm_batch *b, const uint8_t *data, uint8_t page[FVM_PAGE_SIZE])
{
    if (!b->delta) {
        memcpy(page, data, FVM_PAGE_SIZE);
        return data + FVM_PAGE_SIZE;
    }
    unsigned mask = delta_mask(data);
    for (data += MASK_BYTES; mask; mask &= mask - 1, data += FVM_PROOF_PART_BYTES)
        memcpy(page + (unsigned)__builtin_ctz(mask) * FVM_PROOF_PART_BYTES, data, FVM_PROOF_PART_BYTES);
    return data;
}

static int expand(struct fvm_codec *c, const Fvm__BatchHeader *h, uint8_t *payload, size_t len, struct fvm_batch *b)
{
    b->data = payload;
    if (h->coding == FVM_CODING_ZSTD) {
        b->data = c->pages;
        len = ZSTD_decompressDCtx(c->dctx, c->pages, FVM_CODEC_DATA_MAX, payload, len); /* an error is a huge number */
    } else if (h->coding != FVM_CODING_RAW) {
        return FVM_EPROTO;
    }
    if (len != h->raw_bytes)
        return FVM_EPROTO;
    return b->delta ? check_deltas(b) : 0;
}

int fvm_codec_open(struct fvm_codec *c, const struct fvm_ram *ram, const void *header, size_t header_len, void *payload,
                   size_t payload_len, struct fvm_codec_run *ret_hint, const struct fvm_batch **ret_batch)
{
    *ret_hint = (struct fvm_codec_run){0};
    if (!c->aead || header_len > FVM_CODEC_HEADER_MAX || payload_len < FVM_AEAD_TAG_BYTES ||
        payload_len > FVM_CODEC_PAYLOAD_MAX)
        return FVM_ECORRUPT;
    Fvm__BatchHeader *h = fvm__batch_header__unpack(NULL, header_len, header);
    if (!h)
        return FVM_ECORRUPT;
    bool sensible = check_runs(h, ram, &c->batch) == 0;
    if (sensible) {
        const struct fvm_codec_run *last = &c->batch.runs[c->batch.run_count - 1];
        *ret_hint = (struct fvm_codec_run){.pfn = c->batch.runs[0].pfn,
                                           .count = (uint32_t)(last->pfn + last->count - c->batch.runs[0].pfn)};
    }
    int rc = unseal(c, h->seq, header, header_len, payload, payload_len);
    if (!rc)
        rc = sensible ? expand(c, h, payload, payload_len - FVM_AEAD_TAG_BYTES, &c->batch) : FVM_EPROTO;
    fvm__batch_header__free_unpacked(h, NULL);
    if (!rc)
        *ret_batch = &c->batch;
    return rc;
}
