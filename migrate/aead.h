/*
 * aead.h - sealing and opening of bulk data: AES-256-GCM, or ChaCha20-Poly1305 where the processor has no AES.
 *
 * Why OpenSSL's libcrypto and not libsodium, which keeps the keys: with vector AES it does 6 GB/s against 2.4
 * (measured, docs/adr/), and this is most of what moving a page costs. Only aead.c knows it.
 *
 * Thread: one per struct.
 */
#ifndef FVM_MIGRATE_AEAD_H
#define FVM_MIGRATE_AEAD_H

#include "base/err.h"
#include "base/types.h"

enum { FVM_CIPHER_AES256GCM = 1, FVM_CIPHER_CHACHA20 = 2 };
enum { FVM_AEAD_KEY_BYTES = 32, FVM_AEAD_NONCE_BYTES = 12, FVM_AEAD_TAG_BYTES = 16 };

struct fvm_aead;

/** Ciphers this machine has (AES only in hardware), as FVM_CIPHER_* bits. */
unsigned fvm_aead_ciphers(void);
int fvm_aead_create(unsigned cipher, const uint8_t key[FVM_AEAD_KEY_BYTES], struct fvm_aead **ret_aead);
/** Wipes the key. */
void fvm_aead_destroy(struct fvm_aead **aead_p);
/** out: len + FVM_AEAD_TAG_BYTES, the tag last; may be `in`. len below 2 GiB. */
int fvm_aead_seal(struct fvm_aead *aead, const uint8_t nonce[FVM_AEAD_NONCE_BYTES], const void *bound, size_t bound_len,
                  const void *in, size_t len, uint8_t *out);
/** In place; len with the tag. FVM_ECORRUPT: it does not authenticate, the bytes are then worthless. */
int fvm_aead_open(struct fvm_aead *aead, const uint8_t nonce[FVM_AEAD_NONCE_BYTES], const void *bound, size_t bound_len,
                  uint8_t *data, size_t len);

#endif
