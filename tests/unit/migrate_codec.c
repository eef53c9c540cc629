/* Batches: round trips in every coding and cipher; what must not open; the page stream over a channel that loses and
 * damages. */
#include <CUnit/Basic.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>

#include <sodium.h>

#include "base/log.h"
#include "migrate/stream.h"
#include "migrate/warm.h"
#include "proto/migrate.pb-c.h"

static const struct fvm_ho_ticket ticket = {.mig_id = {1, 2, 3}, .epoch = 7, .from = "a", .to = "b"};
static const uint8_t key[FVM_CODEC_KEY_BYTES] = {9, 9, 9};

struct pair {
    struct fvm_ram *from, *to;
    struct fvm_codec *seal, *open;
};

static void pair_make(struct pair *p, unsigned cipher)
{
    CU_ASSERT_EQUAL_FATAL(fvm_ram_create(32 << 20, &p->from, NULL), 0);
    CU_ASSERT_EQUAL_FATAL(fvm_ram_create(32 << 20, &p->to, NULL), 0);
    CU_ASSERT_EQUAL_FATAL(fvm_codec_create(&p->seal), 0);
    CU_ASSERT_EQUAL_FATAL(fvm_codec_create(&p->open), 0);
    CU_ASSERT_EQUAL_FATAL(fvm_codec_key(p->seal, cipher, key, &ticket), 0);
    CU_ASSERT_EQUAL_FATAL(fvm_codec_key(p->open, cipher, key, &ticket), 0);
}

static void pair_end(struct pair *p)
{
    fvm_ram_destroy(&p->from);
    fvm_ram_destroy(&p->to);
    fvm_codec_destroy(&p->seal);
    fvm_codec_destroy(&p->open);
}

static uint64_t next(uint64_t *s) { return *s = *s * 6364136223846793005ull + 1442695040888963407ull; }

/* kind 0: random, 1: compressible, 2: zero */
static void fill_page(uint8_t *page, int kind, uint64_t *seed)
{
    memset(page, 0, 4096);
    for (int i = 0; kind == 0 && i < 4096; i += 8) {
        uint64_t v = next(seed);
        memcpy(page + i, &v, 8);
    }
    for (int i = 0; kind == 1 && i < 4096; i++)
        page[i] = (uint8_t)(i / 97 + (int)(*seed % 7));
    if (kind == 1)
        page[0] = 1;
}

static void round_trip(unsigned cipher, int kind, bool compress)
{
    struct pair p;
    struct fvm_sealed sealed;
    const struct fvm_batch *got;
    struct fvm_codec_run hint;
    uint64_t seed = 5;
    pair_make(&p, cipher);
    struct fvm_batch *b = fvm_codec_batch(p.seal, false);
    for (uint64_t pfn = 10; pfn < 100; pfn += pfn % 5 == 0 ? 3 : 1) {
        uint8_t *page = fvm_ram_hva(p.from, pfn << 12);
        fill_page(page, pfn % 4 == 1 ? 2 : kind, &seed);
        fvm_batch_add(b, pfn, page, false, (uint32_t[FVM_PROOF_PARTS]){0});
    }
    uint32_t data = b->data_pages, zero = b->zero_pages;
    CU_ASSERT_EQUAL(fvm_codec_seal(p.seal, 3, compress, &sealed), 0);
    CU_ASSERT_EQUAL_FATAL(
        fvm_codec_open(p.open, p.to, sealed.header, sealed.header_len, sealed.payload, sealed.payload_len, &hint, &got),
        0);
    CU_ASSERT_EQUAL(got->seq, 3);
    CU_ASSERT_EQUAL(got->data_pages, data);
    CU_ASSERT_EQUAL(got->zero_pages, zero);
    CU_ASSERT_EQUAL(hint.pfn, 10);
    const uint8_t *bytes = got->data;
    for (uint32_t i = 0; i < got->run_count; i++)
        for (uint64_t pfn = got->runs[i].pfn; !got->runs[i].zero && pfn < got->runs[i].pfn + got->runs[i].count;
             pfn++, bytes += 4096)
            CU_ASSERT_EQUAL(memcmp(bytes, fvm_ram_hva(p.from, pfn << 12), 4096), 0);
    free(sealed.header);
    free(sealed.payload);
    pair_end(&p);
}

static void test_round_trips(void)
{
    for (unsigned cipher = 1; cipher <= 2; cipher++)
        for (int kind = 0; kind < 3 && (cipher & fvm_aead_ciphers()); kind++)
            for (int compress = 0; compress < 2; compress++)
                round_trip(cipher, kind, compress);
    CU_ASSERT_TRUE(fvm_aead_ciphers() & FVM_CIPHER_CHACHA20);
}

/* Large batches: what shrinks is compressed, of what does not only samples are tried, and of a mixture enough is seen.
 */
static void test_adaptive(void)
{
    struct pair p;
    struct fvm_sealed s;
    uint64_t seed = 9;
    uint8_t page[4096];
    pair_make(&p, FVM_CIPHER_CHACHA20);
    for (int round = 0; round < 40; round++) {
        struct fvm_batch *b = fvm_codec_batch(p.seal, false);
        int kind = round < 10 ? 1 : round < 20 ? 0 : 1;
        for (uint64_t pfn = 0; pfn < 128; pfn++) {
            fill_page(page, kind, &seed);
            fvm_batch_add(b, pfn, page, false, (uint32_t[FVM_PROOF_PARTS]){0});
        }
        CU_ASSERT_EQUAL_FATAL(fvm_codec_seal(p.seal, (uint64_t)round + 1, true, &s), 0);
        if (round < 10 || round >= 30) /* it finds back to compressing */
            CU_ASSERT_TRUE(s.payload_len < 128 * 4096 / 4);
        if (round >= 10 && round < 20)
            CU_ASSERT_EQUAL(s.payload_len, 128 * 4096 + 16);
        free(s.header);
        free(s.payload);
    }
    pair_end(&p);
}

static void seal_one(struct pair *p, uint64_t seq, struct fvm_sealed *sealed)
{
    uint64_t seed = seq;
    uint8_t page[4096];
    struct fvm_batch *b = fvm_codec_batch(p->seal, false);
    for (uint64_t pfn = 1; pfn < 9; pfn++) {
        fill_page(page, 1, &seed);
        fvm_batch_add(b, pfn, page, false, (uint32_t[FVM_PROOF_PARTS]){0});
    }
    CU_ASSERT_EQUAL_FATAL(fvm_codec_seal(p->seal, seq, seq & 1, sealed), 0);
}

/* Every single damaged byte, of header and payload, is found; so are a wrong epoch, a wrong key and a cut. */
static void test_damage(void)
{
    struct pair p;
    struct fvm_sealed s;
    struct fvm_codec_run hint;
    const struct fvm_batch *got;
    unsigned opened = 0;
    pair_make(&p, FVM_CIPHER_CHACHA20);
    seal_one(&p, 5, &s);
    uint8_t *copy = malloc(s.payload_len), *head = malloc(s.header_len);
    for (size_t i = 0; i < s.header_len + s.payload_len; i += i < s.header_len ? 1 : 13) {
        memcpy(copy, s.payload, s.payload_len);
        memcpy(head, s.header, s.header_len);
        *(i < s.header_len ? head + i : copy + i - s.header_len) ^= 0x21;
        opened += fvm_codec_open(p.open, p.to, head, s.header_len, copy, s.payload_len, &hint, &got) == 0;
    }
    for (size_t len = 0; len < s.payload_len; len += 7) {
        memcpy(copy, s.payload, s.payload_len);
        opened += fvm_codec_open(p.open, p.to, s.header, s.header_len, copy, len, &hint, &got) == 0;
    }
    struct fvm_ho_ticket other = ticket;
    other.epoch++;
    fvm_codec_key(p.open, FVM_CIPHER_CHACHA20, key, &other);
    memcpy(copy, s.payload, s.payload_len);
    opened += fvm_codec_open(p.open, p.to, s.header, s.header_len, copy, s.payload_len, &hint, &got) == 0;
    CU_ASSERT_EQUAL(opened, 0);
    fvm_codec_key(p.open, FVM_CIPHER_CHACHA20, key, &ticket);
    CU_ASSERT_EQUAL(fvm_codec_open(p.open, p.to, s.header, s.header_len, s.payload, s.payload_len, &hint, &got), 0);
    free(copy);
    free(head);
    free(s.header);
    free(s.payload);
    pair_end(&p);
}

/* ---- the stream, over a channel that loses and damages ---- */

static void test_lossy(void)
{
    struct pair p;
    struct fvm_memory *memory;
    struct fvm_proof proof;
    struct fvm_stream_tx tx;
    static struct fvm_stream_rx rx;
    uint64_t seed = 77, sent = 0, hurt = 0;
    uint8_t page[4096];
    pair_make(&p, FVM_CIPHER_CHACHA20);
    fvm_memory_create(p.from, &memory);
    fvm_proof_init(&proof, p.to);
    fvm_memory_reset(memory, (const uint8_t[FVM_IMAGE_ID_BYTES]){1});
    fvm_stream_tx_init(&tx, memory, p.seal);
    fvm_stream_rx_init(&rx, p.to, p.open, &proof);
    for (uint64_t pfn = 0; pfn < 4000; pfn++) {
        fill_page(page, (int)(next(&seed) >> 40) % 3, &seed);
        fvm_ram_write(p.from, pfn << 12, page, 4096);
    }
    for (int round = 0; round < 200 && (round < 5 || fvm_memory_pending(memory) || tx.count); round++) {
        for (int i = 0; round < 5 && i < 300; i++) { /* the guest writes on, now a page, now a few bytes */
            fill_page(page, (int)(next(&seed) >> 40) % 3, &seed);
            uint64_t at = (next(&seed) >> 20) % 4000 << 12, few = (next(&seed) >> 30) & 1;
            fvm_ram_write(p.from, at + few * (page[0] * 13u), page, few ? 300 : 4096);
        }
        uint32_t epoch = fvm_ram_epoch_next(p.from);
        fvm_pfn cursor = 0;
        struct fvm_sealed s;
        while (fvm_stream_tx_room(&tx) && fvm_stream_tx_next(&tx, &cursor, epoch, round & 1, &s) == 0) {
            uint32_t luck = (uint32_t)(next(&seed) >> 33) % 10;
            sent++;
            hurt += luck < 3;
            if (luck == 1)
                s.payload[s.payload_len / 3] ^= 1;
            if (luck > 0)
                CU_ASSERT_NOT_EQUAL(fvm_stream_rx_batch(&rx, s.header, s.header_len, s.payload, s.payload_len),
                                    FVM_EPROTO);
            if (luck == 2) /* twice, the second time it is opened in place already: garbage */
                fvm_stream_rx_batch(&rx, s.header, s.header_len, s.payload, s.payload_len);
            free(s.header);
            free(s.payload);
        }
        fvm_gpa gpa;
        fvm_stream_rx_settle(&rx, tx.next_seq - 1); /* the probe at the end of a round */
        if ((next(&seed) >> 33) % 4) {              /* acks get lost too */
            fvm_stream_tx_ack(&tx, rx.last_seq, rx.lost, rx.lost_count, &gpa);
            fvm_stream_rx_forget(&rx, tx.acked_seq);
        }
    }
    CU_ASSERT_EQUAL(fvm_memory_pending(memory), 0);
    CU_ASSERT_EQUAL(tx.count, 0);
    CU_ASSERT_TRUE(hurt > 5 && tx.resent_pages > 0 && rx.corrupt > 0);
    CU_ASSERT_EQUAL(memcmp(p.from->base, p.to->base, p.from->low_bytes), 0);
    uint32_t epoch = fvm_ram_epoch_next(p.from);
    uint64_t hashed = 0, ours = fvm_proof_digest(&memory->proof, epoch, NULL, &hashed);
    CU_ASSERT_EQUAL(ours, fvm_proof_digest(&proof, UINT32_MAX, NULL, NULL));
    CU_ASSERT_EQUAL(hashed, 0); /* all known from sending */
    fvm_proof_forget(&memory->proof);
    CU_ASSERT_EQUAL(ours, fvm_proof_digest(&memory->proof, epoch, NULL, NULL)); /* and known rightly */
    p.to->base[4096 * 17 + 5] ^= 1;
    fvm_proof_forget(&proof);
    CU_ASSERT_NOT_EQUAL(ours, fvm_proof_digest(&proof, UINT32_MAX, NULL, NULL));
    fvm_stream_tx_fini(&tx);
    fvm_proof_fini(&proof);
    fvm_memory_destroy(&memory);
    pair_end(&p);
}

/* A late batch must not overwrite a newer page; an attempt that ends forgets what was in flight. */
static void test_late(void)
{
    struct pair p;
    struct fvm_memory *memory;
    struct fvm_proof proof;
    struct fvm_stream_tx tx;
    static struct fvm_stream_rx rx;
    struct fvm_sealed old, new;
    fvm_pfn cursor = 0;
    pair_make(&p, FVM_CIPHER_CHACHA20);
    fvm_memory_create(p.from, &memory);
    fvm_proof_init(&proof, p.to);
    fvm_memory_reset(memory, (const uint8_t[FVM_IMAGE_ID_BYTES]){1});
    fvm_stream_tx_init(&tx, memory, p.seal);
    fvm_stream_rx_init(&rx, p.to, p.open, &proof);
    fvm_ram_write(p.from, 0x5000, "old", 4);
    CU_ASSERT_EQUAL_FATAL(fvm_stream_tx_next(&tx, &cursor, fvm_ram_epoch_next(p.from), false, &old), 0);
    fvm_ram_write(p.from, 0x5000, "new", 4);
    cursor = 0;
    CU_ASSERT_EQUAL_FATAL(fvm_stream_tx_next(&tx, &cursor, fvm_ram_epoch_next(p.from), false, &new), 0);
    CU_ASSERT_EQUAL(fvm_stream_rx_batch(&rx, new.header, new.header_len, new.payload, new.payload_len), 0);
    CU_ASSERT_EQUAL(fvm_stream_rx_batch(&rx, old.header, old.header_len, old.payload, old.payload_len), 0);
    CU_ASSERT_STRING_EQUAL(p.to->base + 0x5000, "new");
    CU_ASSERT_EQUAL(rx.late, 1);
    CU_ASSERT_EQUAL(fvm_memory_pending(memory), 0);
    fvm_stream_tx_fini(&tx);
    CU_ASSERT_EQUAL(fvm_memory_pending(memory), 1);
    free(old.header);
    free(old.payload);
    free(new.header);
    free(new.payload);
    fvm_proof_fini(&proof);
    fvm_memory_destroy(&memory);
    pair_end(&p);
}

/* A second pass sends what changed of a page, and a batch that got lost makes its pages whole again. */
static void test_delta(void)
{
    struct pair p;
    struct fvm_memory *memory;
    struct fvm_proof proof;
    struct fvm_stream_tx tx;
    static struct fvm_stream_rx rx;
    struct fvm_sealed s;
    uint64_t seed = 3, bytes[5] = {0};
    uint8_t page[4096];
    pair_make(&p, FVM_CIPHER_CHACHA20);
    fvm_memory_create(p.from, &memory);
    fvm_proof_init(&proof, p.to);
    fvm_memory_reset(memory, (const uint8_t[FVM_IMAGE_ID_BYTES]){1});
    fvm_stream_tx_init(&tx, memory, p.seal);
    fvm_stream_rx_init(&rx, p.to, p.open, &proof);
    for (int pass = 0; pass < 5; pass++) {
        for (uint64_t pfn = 0; pfn < 100; pfn++) {
            fill_page(page, pass == 1 && pfn == 7 ? 2 : 0, &seed);
            fvm_ram_write(p.from, (pfn << 12) + (pass ? pfn * 30 : 0), page,
                          pass == 0 || page[0] == 0 ? 4096 - (pass ? pfn * 30 : 0) : 8);
        }
        uint32_t epoch = fvm_ram_epoch_next(p.from);
        fvm_pfn cursor = 0;
        fvm_gpa gpa;
        while (fvm_stream_tx_next(&tx, &cursor, epoch, false, &s) == 0) {
            bytes[pass] += s.payload_len;
            if (pass != 2) /* the third pass is lost */
                CU_ASSERT_EQUAL(fvm_stream_rx_batch(&rx, s.header, s.header_len, s.payload, s.payload_len), 0);
            free(s.header);
            free(s.payload);
        }
        if (pass == 3) /* only now is it known; the fourth went on top of what was missing */
            fvm_stream_tx_ack(&tx, rx.last_seq, rx.lost, rx.lost_count, &gpa);
    }
    CU_ASSERT_TRUE(bytes[0] > 100 * 4096);
    CU_ASSERT_TRUE(bytes[1] < 100 * 2 * 300 && bytes[2] < 100 * 2 * 300);
    CU_ASSERT_TRUE(bytes[4] > 99 * 4096);
    CU_ASSERT_EQUAL(memcmp(p.from->base, p.to->base, p.from->low_bytes), 0);
    CU_ASSERT_EQUAL(fvm_proof_digest(&memory->proof, fvm_ram_epoch_next(p.from), NULL, NULL),
                    fvm_proof_digest(&proof, UINT32_MAX, NULL, NULL));
    fvm_stream_tx_fini(&tx);
    fvm_proof_fini(&proof);
    fvm_memory_destroy(&memory);
    pair_end(&p);
}

/* What was hashed before the digest makes no difference to it. */
static void test_refresh(void)
{
    struct fvm_ram *ram;
    struct fvm_proof a, b;
    uint64_t hashed;
    CU_ASSERT_EQUAL_FATAL(fvm_ram_create(5 << 20, &ram, NULL), 0);
    fvm_proof_init(&a, ram);
    fvm_proof_init(&b, ram);
    for (uint64_t pfn = 3; pfn < 1280; pfn += 100) {
        fvm_ram_write(ram, pfn << 12, &pfn, sizeof(pfn));
        fvm_proof_note(&a, pfn, fvm_proof_hash_page(fvm_ram_hva(ram, pfn << 12), NULL), ram->epoch);
        fvm_proof_refresh(&a);
    }
    uint32_t epoch = fvm_ram_epoch_next(ram);
    uint64_t digest = fvm_proof_digest(&a, epoch, NULL, &hashed);
    CU_ASSERT_EQUAL(hashed, 0);
    CU_ASSERT_EQUAL(digest, fvm_proof_digest(&b, epoch, NULL, &hashed));
    CU_ASSERT_EQUAL(hashed, 13);
    fvm_ram_write(ram, 1279 << 12, "x", 1);
    epoch = fvm_ram_epoch_next(ram);
    CU_ASSERT_NOT_EQUAL(digest, fvm_proof_digest(&a, epoch, NULL, &hashed));
    CU_ASSERT_EQUAL(hashed, 1);
    fvm_proof_fini(&a);
    fvm_proof_fini(&b);
    fvm_ram_destroy(&ram);
}

/* Authentic and senseless: a source gone mad. Sealed by hand, as the codec would not. */
static void test_senseless(void)
{
    struct pair p;
    struct fvm_codec_run hint;
    const struct fvm_batch *got;
    pair_make(&p, FVM_CIPHER_CHACHA20);
    const struct {
        uint64_t pfn;
        uint32_t count;
        uint32_t raw;
        uint64_t seq;
        bool delta;
        uint8_t plain[6];
    } cases[] = {
        {0, 1 << 1, 4096, 1, false, {0}},            /* good */
        {0, 2 << 1, 4096, 1, false, {0}},            /* fewer bytes than pages */
        {0, 2 << 1, 8192, 1, false, {0}},            /* fewer bytes than said */
        {1 << 30, 1 << 1, 4096, 1, false, {0}},      /* no such page */
        {8191, 2 << 1, 8192, 1, false, {0}},         /* over the end of RAM */
        {UINT64_MAX, 1 << 1, 4096, 1, false, {0}},   /* wraps */
        {0, 0, 0, 1, false, {0}},                    /* an empty run */
        {0, 4000u << 1, 4000 * 4096, 1, false, {0}}, /* too much */
        {0, 1 << 1, 4096, 0, false, {0}},            /* no number */
        {0, 1 << 1, 4096, 1, true, {0xff, 0x7f}},    /* a delta of more parts than there are bytes */
        {0, 1 << 1, 4096, 1, true, {0}},             /* and of fewer */
        {0, 3000u << 1, 4096, 1, true, {0}},         /* more pages than a batch of deltas has */
    };
    for (size_t i = 0; i < FVM_ARRAY_SIZE(cases); i++) {
        Fvm__BatchHeader h = FVM__BATCH_HEADER__INIT;
        uint64_t pfn = cases[i].pfn;
        uint32_t count = cases[i].count;
        uint8_t head[100], aad[200] = {0}, nonce[12] = {(uint8_t)cases[i].seq}, payload[4200], plain[4096] = {0};
        memcpy(plain, cases[i].plain, sizeof(cases[i].plain));
        h.delta = cases[i].delta;
        unsigned long long len;
        h.seq = cases[i].seq;
        h.raw_bytes = cases[i].raw;
        h.n_run_pfn = h.n_run_count = 1;
        h.run_pfn = &pfn;
        h.run_count = &count;
        size_t n = fvm__batch_header__pack(&h, head);
        memcpy(aad, ticket.mig_id, FVM_HO_ID_BYTES);
        aad[FVM_HO_ID_BYTES] = (uint8_t)ticket.epoch;
        memcpy(aad + FVM_HO_ID_BYTES + 8, head, n);
        crypto_aead_chacha20poly1305_ietf_encrypt(payload, &len, plain, sizeof(plain), aad, FVM_HO_ID_BYTES + 8 + n,
                                                  NULL, nonce, key);
        int rc = fvm_codec_open(p.open, p.to, head, n, payload, len, &hint, &got);
        CU_ASSERT_EQUAL(rc, i == 0 ? 0 : FVM_EPROTO); /* the first one shows that the sealing here is right */
    }
    pair_end(&p);
}

/* Exactly the blocks that were written are backed, and nothing changes in them. */
static void test_warm(void)
{
    struct fvm_ram *from, *to;
    struct fvm_warm *w = NULL;
    uint8_t map[8], none[8] = {0};
    CU_ASSERT_EQUAL_FATAL(fvm_ram_create(21 << 20, &from, NULL), 0); /* ten blocks and a half */
    CU_ASSERT_EQUAL_FATAL(fvm_ram_create(21 << 20, &to, NULL), 0);
    CU_ASSERT_EQUAL(fvm_warm_map_bytes(from), 2);
    fvm_ram_write(from, 3 << 20, "a", 1);
    fvm_ram_write(from, (21 << 20) - 1, "b", 1);
    fvm_warm_map(from, map);
    CU_ASSERT_EQUAL(map[0], 1 << 1);
    CU_ASSERT_EQUAL(map[1], 1 << 2);
    fvm_ram_write(to, (3 << 20) + 5, "guest", 6);
    CU_ASSERT_EQUAL(fvm_warm_start(to, map, 1, &w), 0); /* of another machine */
    CU_ASSERT_PTR_NULL(w);
    CU_ASSERT_EQUAL_FATAL(fvm_warm_start(to, map, 2, &w), 0);
    for (int i = 0; i < 2000 && fvm_ram_resident_bytes(to) < 3 << 20; i++)
        poll(NULL, 0, 1);
    fvm_warm_stop(&w);
    CU_ASSERT_EQUAL(fvm_ram_resident_bytes(to), 3 << 20);
    CU_ASSERT_STRING_EQUAL(fvm_ram_hva(to, (3 << 20) + 5), "guest");
    CU_ASSERT_EQUAL(fvm_warm_start(from, none, 2, &w), 0);
    fvm_warm_stop(&w);
    CU_ASSERT_PTR_NULL(w);
    fvm_ram_destroy(&from);
    fvm_ram_destroy(&to);
}

int main(void)
{
    fvm_log_set_level(FVM_LOG_ERROR);
    CU_initialize_registry();
    CU_pSuite s = CU_add_suite("migrate_codec", NULL, NULL);
    CU_add_test(s, "round trips", test_round_trips);
    CU_add_test(s, "adaptive compression", test_adaptive);
    CU_add_test(s, "damage", test_damage);
    CU_add_test(s, "senseless headers", test_senseless);
    CU_add_test(s, "lossy channel", test_lossy);
    CU_add_test(s, "deltas", test_delta);
    CU_add_test(s, "refreshed digest", test_refresh);
    CU_add_test(s, "warming", test_warm);
    CU_add_test(s, "late batch", test_late);
    CU_basic_set_mode(CU_BRM_VERBOSE);
    CU_basic_run_tests();
    unsigned failed = CU_get_number_of_failures();
    CU_cleanup_registry();
    return failed ? 1 : 0;
}
