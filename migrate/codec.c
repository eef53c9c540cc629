/*
 * codec.c - page batches to bytes and back. Knows RAM's layout and the wire's, nothing of sockets, threads or rounds.
 *
 * Why sealed here and not by CURVE: CURVE does 0.3-0.4 GB/s, AES-256-GCM several. Why one zstd frame per batch: at 64
 * KiB and more the ratio is that of long input and the call costs vanish.
 *
 * Invariant: fvm_codec_open returns 0 only for a batch whose runs are RAM, do not exceed the limits, and whose data has
 * exactly data_pages pages.
 */
#include "migrate/codec.h"

#include <sodium.h>
#include <stdlib.h>
#include <string.h>
#include <zstd.h>

#include "migrate/proof.h"
#include "proto/migrate.pb-c.h"

#define TAG_BYTES 16
#define AAD_MAX (FVM_HO_ID_BYTES + 8 + FVM_CODEC_HEADER_MAX)
#define ZSTD_PAUSE 32 /* batches to send raw after one that did not shrink */

struct fvm_codec {
    unsigned cipher;
    uint8_t key[FVM_CODEC_KEY_BYTES];
    crypto_aead_aes256gcm_state *aes; /* 16-byte aligned */
    uint8_t bound[FVM_HO_ID_BYTES + 8];
    ZSTD_CCtx *cctx;
    ZSTD_DCtx *dctx;
    unsigned zstd_pause;
    uint64_t zstd_in, zstd_out;
    uint8_t *pages; /* FVM_CODEC_PAGES_MAX pages */
    uint8_t *packed;
    struct fvm_batch batch;
};

unsigned fvm_codec_ciphers(void)
{
    if (sodium_init() < 0)
        return 0;
    return FVM_CIPHER_CHACHA20 | (crypto_aead_aes256gcm_is_available() ? FVM_CIPHER_AES256GCM : 0);
}

int fvm_codec_create(struct fvm_codec **ret_codec)
{
    struct fvm_codec *c = calloc(1, sizeof(*c));
    if (!c)
        return FVM_ENOMEM;
    c->cctx = ZSTD_createCCtx();
    c->dctx = ZSTD_createDCtx();
    c->pages = aligned_alloc(64, FVM_CODEC_PAGES_MAX * FVM_PAGE_SIZE);
    c->packed = malloc(FVM_CODEC_PAYLOAD_MAX);
    c->aes = aligned_alloc(16, FVM_ALIGN_UP(sizeof(*c->aes), (size_t)16));
    if (!c->cctx || !c->dctx || !c->pages || !c->packed || !c->aes) {
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
    if (c->aes)
        sodium_memzero(c->aes, sizeof(*c->aes));
    sodium_memzero(c->key, sizeof(c->key));
    free(c->aes);
    free(c->pages);
    free(c->packed);
    free(c);
}

int fvm_codec_key(struct fvm_codec *c, unsigned cipher, const uint8_t key[FVM_CODEC_KEY_BYTES],
                  const struct fvm_ho_ticket *ticket)
{
    if (!(cipher & fvm_codec_ciphers()) || (cipher & (cipher - 1)))
        return FVM_EUNSUPPORTED;
    c->cipher = cipher;
    memcpy(c->key, key, sizeof(c->key));
    memcpy(c->bound, ticket->mig_id, FVM_HO_ID_BYTES);
    for (int i = 0; i < 8; i++)
        c->bound[FVM_HO_ID_BYTES + i] = (uint8_t)(ticket->epoch >> (8 * i));
    if (cipher == FVM_CIPHER_AES256GCM)
        crypto_aead_aes256gcm_beforenm(c->aes, c->key);
    return 0;
}

static void make_nonce(uint64_t seq, uint8_t nonce[12])
{
    memset(nonce, 0, 12);
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

struct fvm_batch *fvm_codec_batch(struct fvm_codec *c)
{
    c->batch.seq = 0;
    c->batch.run_count = c->batch.data_pages = c->batch.zero_pages = 0;
    c->batch.data = c->pages;
    return &c->batch;
}

bool fvm_batch_full(const struct fvm_batch *b)
{
    return b->data_pages >= FVM_CODEC_PAGES_MAX || b->run_count >= FVM_CODEC_RUNS_MAX - 1 ||
           b->zero_pages >= FVM_CODEC_RUN_PAGES_MAX - 1;
}

static bool is_zero(const void *page)
{
    const uint64_t *w = page;
    if (w[0] | w[511])
        return false;
    for (unsigned i = 0; i < 512; i += 8)
        if (w[i] | w[i + 1] | w[i + 2] | w[i + 3] | w[i + 4] | w[i + 5] | w[i + 6] | w[i + 7])
            return false;
    return true;
}

uint64_t fvm_batch_add(struct fvm_batch *b, fvm_pfn pfn, const void *page)
{
    fvm_assert(!fvm_batch_full(b));
    /* The guest may be writing: what is judged and hashed must be what is sent, so copy first. */
    uint8_t *copy = b->data + b->data_pages * FVM_PAGE_SIZE;
    memcpy(copy, page, FVM_PAGE_SIZE);
    bool zero = is_zero(copy);
    struct fvm_codec_run *last = b->run_count ? &b->runs[b->run_count - 1] : NULL;
    if (last && last->zero == zero && last->pfn + last->count == pfn)
        last->count++;
    else
        b->runs[b->run_count++] = (struct fvm_codec_run){.pfn = pfn, .count = 1, .zero = zero};
    if (zero) {
        b->zero_pages++;
        return fvm_proof_zero_hash();
    }
    b->data_pages++;
    return fvm_proof_hash_page(copy);
}

static size_t compress_batch(struct fvm_codec *c, const struct fvm_batch *b)
{
    size_t raw = b->data_pages * FVM_PAGE_SIZE;
    if (c->zstd_pause) {
        c->zstd_pause--;
        return 0;
    }
    size_t n = ZSTD_compress2(c->cctx, c->packed, FVM_CODEC_PAYLOAD_MAX, b->data, raw);
    if (ZSTD_isError(n) || n > raw - raw / 8) {
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
    h.raw_bytes = (uint32_t)(b->data_pages * FVM_PAGE_SIZE);
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
    size_t len = b->data_pages * FVM_PAGE_SIZE, n = compress && len ? compress_batch(c, b) : 0;
    fvm_assert(c->cipher && seq > 0 && b->run_count > 0);
    b->seq = seq;
    int rc = pack_header(b, seq, n ? FVM_CODING_ZSTD : FVM_CODING_RAW, &out);
    if (rc)
        return rc;
    if (n) {
        data = c->packed;
        len = n;
    }
    out.payload = malloc(len + TAG_BYTES);
    if (!out.payload) {
        free(out.header);
        return FVM_ENOMEM;
    }
    uint8_t nonce[12], aad[AAD_MAX];
    unsigned long long sealed = 0;
    size_t aad_len = make_aad(c, out.header, out.header_len, aad);
    make_nonce(seq, nonce);
    if (c->cipher == FVM_CIPHER_AES256GCM)
        crypto_aead_aes256gcm_encrypt_afternm(out.payload, &sealed, data, len, aad, aad_len, NULL, nonce,
                                              (const crypto_aead_aes256gcm_state *)c->aes);
    else
        crypto_aead_chacha20poly1305_ietf_encrypt(out.payload, &sealed, data, len, aad, aad_len, NULL, nonce, c->key);
    out.payload_len = (size_t)sealed;
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
    uint64_t data = 0, zero = 0;
    if (h->n_run_pfn != h->n_run_count || h->n_run_pfn == 0 || h->n_run_pfn > FVM_CODEC_RUNS_MAX || h->seq == 0)
        return FVM_EPROTO;
    for (size_t i = 0; i < h->n_run_pfn; i++) {
        uint64_t pfn = h->run_pfn[i], count = h->run_count[i] >> 1;
        bool is_zero_run = h->run_count[i] & 1;
        if (count == 0 || count > (is_zero_run ? FVM_CODEC_RUN_PAGES_MAX : FVM_CODEC_PAGES_MAX) ||
            pfn >= ram->page_count || !fvm_ram_contains(ram, pfn << FVM_PAGE_SHIFT, count << FVM_PAGE_SHIFT))
            return FVM_EPROTO;
        *(is_zero_run ? &zero : &data) += count;
        b->runs[i] = (struct fvm_codec_run){.pfn = pfn, .count = (uint32_t)count, .zero = is_zero_run};
    }
    if (data > FVM_CODEC_PAGES_MAX || zero > ram->page_count || h->raw_bytes != data * FVM_PAGE_SIZE)
        return FVM_EPROTO;
    b->seq = h->seq;
    b->run_count = (uint32_t)h->n_run_pfn;
    b->data_pages = (uint32_t)data;
    b->zero_pages = (uint32_t)zero;
    return 0;
}

static int unseal(struct fvm_codec *c, uint64_t seq, const void *header, size_t header_len, uint8_t *payload,
                  size_t len, size_t *ret_len)
{
    uint8_t nonce[12], aad[AAD_MAX];
    size_t aad_len = make_aad(c, header, header_len, aad);
    unsigned long long opened = 0;
    make_nonce(seq, nonce);
    int bad = c->cipher == FVM_CIPHER_AES256GCM
                  ? crypto_aead_aes256gcm_decrypt_afternm(payload, &opened, NULL, payload, len, aad, aad_len, nonce,
                                                          (const crypto_aead_aes256gcm_state *)c->aes)
                  : crypto_aead_chacha20poly1305_ietf_decrypt(payload, &opened, NULL, payload, len, aad, aad_len, nonce,
                                                              c->key);
    *ret_len = (size_t)opened;
    return bad ? FVM_ECORRUPT : 0;
}

static int expand(struct fvm_codec *c, const Fvm__BatchHeader *h, uint8_t *payload, size_t len, struct fvm_batch *b)
{
    if (h->coding == FVM_CODING_RAW) {
        b->data = payload;
        return len == h->raw_bytes ? 0 : FVM_EPROTO;
    }
    b->data = c->pages;
    if (h->coding != FVM_CODING_ZSTD)
        return FVM_EPROTO;
    size_t n = ZSTD_decompressDCtx(c->dctx, c->pages, FVM_CODEC_PAGES_MAX * FVM_PAGE_SIZE, payload, len);
    return !ZSTD_isError(n) && n == h->raw_bytes ? 0 : FVM_EPROTO;
}

int fvm_codec_open(struct fvm_codec *c, const struct fvm_ram *ram, const void *header, size_t header_len, void *payload,
                   size_t payload_len, struct fvm_codec_run *ret_hint, const struct fvm_batch **ret_batch)
{
    *ret_hint = (struct fvm_codec_run){0};
    if (!c->cipher || header_len > FVM_CODEC_HEADER_MAX || payload_len < TAG_BYTES ||
        payload_len > FVM_CODEC_PAYLOAD_MAX)
        return FVM_ECORRUPT;
    Fvm__BatchHeader *h = fvm__batch_header__unpack(NULL, header_len, header);
    if (!h)
        return FVM_ECORRUPT;
    size_t len = 0;
    bool sensible = check_runs(h, ram, &c->batch) == 0;
    if (sensible) {
        const struct fvm_codec_run *last = &c->batch.runs[c->batch.run_count - 1];
        *ret_hint = (struct fvm_codec_run){.pfn = c->batch.runs[0].pfn,
                                           .count = (uint32_t)(last->pfn + last->count - c->batch.runs[0].pfn)};
    }
    int rc = unseal(c, h->seq, header, header_len, payload, payload_len, &len);
    if (!rc)
        rc = sensible ? expand(c, h, payload, len, &c->batch) : FVM_EPROTO;
    fvm__batch_header__free_unpacked(h, NULL);
    if (!rc)
        *ret_batch = &c->batch;
    return rc;
}
