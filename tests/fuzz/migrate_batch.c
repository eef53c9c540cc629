/*
 * A batch of pages from the wire. First byte: 0 raw frames (they must not authenticate and must do no harm), else the
 * header and payload are sealed here with the right key, so that what lies behind the authentication is reached: a
 * source gone mad.
 */
#include <sodium.h>
#include <stdlib.h>
#include <string.h>

#include "migrate/stream.h"
#include "tests/fuzz/fuzz.h"

static const struct fvm_ho_ticket ticket = {.mig_id = {1}, .epoch = 1, .from = "a", .to = "b"};
static const uint8_t key[FVM_CODEC_KEY_BYTES] = {1};

static struct { /* made once */
    struct fvm_ram *ram;
    struct fvm_codec *codec;
    struct fvm_proof proof;
    struct fvm_stream_rx rx;
} f;

static void make(void)
{
    if (f.ram)
        return;
    if (fvm_ram_create(16 << 20, &f.ram, NULL) || fvm_codec_create(&f.codec) || fvm_proof_init(&f.proof, f.ram) ||
        fvm_codec_key(f.codec, FVM_CIPHER_CHACHA20, key, &ticket))
        abort();
}

/* input: kind 1 | seq 1 | header length 2 | header | payload (plain) */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    make();
    if (size < 4)
        return 0;
    size_t head = (size_t)data[2] | (size_t)data[3] << 8;
    const uint8_t *rest = data + 4;
    size -= 4;
    head = head > size ? size : head;
    uint8_t *header = malloc(head + 1), *payload = malloc(size - head + 16);
    unsigned long long len = size - head;
    memcpy(header, rest, head);
    memcpy(payload, rest + head, size - head);
    if (data[0] && head < 8192) {
        uint8_t nonce[12] = {data[1]}, aad[8192 + 24] = {0};
        memcpy(aad, ticket.mig_id, FVM_HO_ID_BYTES);
        aad[FVM_HO_ID_BYTES] = 1;
        memcpy(aad + FVM_HO_ID_BYTES + 8, header, head);
        crypto_aead_chacha20poly1305_ietf_encrypt(payload, &len, payload, len, aad, FVM_HO_ID_BYTES + 8 + head, NULL,
                                                  nonce, key);
    }
    fvm_stream_rx_init(&f.rx, f.ram, f.codec, &f.proof);
    fvm_stream_rx_batch(&f.rx, header, head, payload, len);
    free(header);
    free(payload);
    return 0;
}

size_t fuzz_seed(unsigned i, uint8_t *buf)
{
    struct fvm_sealed s;
    make();
    if (i >= 6)
        return 0;
    struct fvm_batch *b = fvm_codec_batch(f.codec, i > 2);
    static uint8_t page[4096];
    for (uint64_t pfn = i; pfn < 12; pfn += 1 + pfn % 2) {
        memset(page, 0, sizeof(page));
        for (size_t k = 0; pfn % 3 && k < sizeof(page); k += 8)
            page[k] = (uint8_t)(k / 64 + pfn);
        fvm_batch_add(b, pfn, page, i > 2, (uint32_t[FVM_PROOF_PARTS]){(uint32_t)i});
    }
    size_t raw = b->data_bytes;
    uint8_t *plain = malloc(raw);
    memcpy(plain, b->data, raw);
    if (fvm_codec_seal(f.codec, 1, i & 1, &s))
        abort();
    buf[0] = (uint8_t)(i % 3 != 0);
    buf[1] = 1;
    buf[2] = (uint8_t)s.header_len;
    buf[3] = (uint8_t)(s.header_len >> 8);
    memcpy(buf + 4, s.header, s.header_len);
    size_t n = 4 + s.header_len;
    if (i % 3 == 0) {
        memcpy(buf + n, s.payload, s.payload_len);
        buf[n] ^= 1; /* it must stay shut */
        n += s.payload_len;
    } else if (i & 1) { /* compressed: open it again to have the plain bytes */
        uint8_t nonce[12] = {1}, aad[8192] = {0};
        unsigned long long len;
        memcpy(aad, ticket.mig_id, FVM_HO_ID_BYTES);
        aad[FVM_HO_ID_BYTES] = 1;
        memcpy(aad + FVM_HO_ID_BYTES + 8, s.header, s.header_len);
        if (crypto_aead_chacha20poly1305_ietf_decrypt(buf + n, &len, NULL, s.payload, s.payload_len, aad,
                                                      FVM_HO_ID_BYTES + 8 + s.header_len, nonce, key))
            abort();
        n += len;
    } else {
        memcpy(buf + n, plain, raw);
        n += raw;
    }
    free(plain);
    free(s.header);
    free(s.payload);
    return n;
}
