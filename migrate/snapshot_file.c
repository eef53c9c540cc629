/*
 * snapshot_file.c - frame and key of snapshot files. See snapshot.h for the format.
 */
#include "migrate/snapshot_file.h"

#include <errno.h>
#include <sodium.h>
#include <stdio.h>
#include <string.h>

#define KEY_FILE_MAX 65536

static void put32(uint8_t *p, uint32_t v)
{
    for (int i = 0; i < 4; i++)
        p[i] = (uint8_t)(v >> (8 * i));
}

static uint32_t get32(const uint8_t *p)
{
    return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

void snapshot_frame_pack(const struct snapshot_frame *f, uint8_t out[SNAPSHOT_FRAME_BYTES])
{
    put32(out, f->type);
    put32(out + 4, f->header_len);
    put32(out + 8, f->payload_len);
    put32(out + 12, 0);
}

bool snapshot_frame_unpack(const uint8_t in[SNAPSHOT_FRAME_BYTES], struct snapshot_frame *ret)
{
    *ret = (struct snapshot_frame){.type = get32(in), .header_len = get32(in + 4), .payload_len = get32(in + 8)};
    return get32(in + 12) == 0;
}

void snapshot_hash(const void *bytes, size_t len, uint8_t ret[SNAPSHOT_HASH_BYTES])
{
    crypto_generichash(ret, SNAPSHOT_HASH_BYTES, bytes, len, NULL, 0);
}

void snapshot_nonce(uint64_t batches, uint32_t type, uint8_t ret[FVM_AEAD_NONCE_BYTES])
{
    put32(ret, (uint32_t)batches);
    put32(ret + 4, (uint32_t)(batches >> 32));
    put32(ret + 8, type); /* a batch's own nonces have 0 here */
}

int snapshot_key_of_file(const char *path, const uint8_t salt[SNAPSHOT_SALT_BYTES], uint8_t ret[FVM_AEAD_KEY_BYTES],
                         struct fvm_err *err)
{
    static uint8_t none;
    uint8_t bytes[4096], secret[64];
    size_t n, total = 0;
    crypto_generichash_state state;
    FILE *f = fopen(path, "re");
    if (!f)
        return fvm_err_set(err, fvm_err_from_errno(errno), errno, "snapshot", "key file %s: %s", path, strerror(errno));
    crypto_generichash_init(&state, &none, 0, sizeof(secret));
    while ((n = fread(bytes, 1, sizeof(bytes), f)) > 0 && (total += n) <= KEY_FILE_MAX)
        crypto_generichash_update(&state, bytes, n);
    bool bad = ferror(f) || total < FVM_SNAPSHOT_KEY_FILE_MIN || total > KEY_FILE_MAX;
    fclose(f);
    crypto_generichash_final(&state, secret, sizeof(secret));
    crypto_generichash(ret, FVM_AEAD_KEY_BYTES, salt, SNAPSHOT_SALT_BYTES, secret, sizeof(secret));
    sodium_memzero(bytes, sizeof(bytes));
    sodium_memzero(secret, sizeof(secret));
    sodium_memzero(&state, sizeof(state));
    if (bad)
        return fvm_err_set(err, FVM_EINVAL, 0, "snapshot",
                           "key file %s: it must hold %d to %d bytes nobody can guess, as from head -c 32 /dev/urandom",
                           path, FVM_SNAPSHOT_KEY_FILE_MIN, KEY_FILE_MAX);
    return 0;
}
