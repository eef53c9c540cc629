/*
 * aead.c - see aead.h. The only file that knows libcrypto's EVP.
 *
 * One context for each direction, keyed once: setting a nonce costs little, expanding a key does not.
 *
 * Invariant: fvm_aead_open says 0 only when the tag fits.
 */
#include "migrate/aead.h"

#include <limits.h>
#include <openssl/evp.h>
#include <sodium.h>
#include <stdlib.h>

struct fvm_aead {
    EVP_CIPHER_CTX *seal, *open; /* they hold the key, and wipe it */
};

unsigned fvm_aead_ciphers(void)
{
    if (sodium_init() < 0)
        return 0;
    return FVM_CIPHER_CHACHA20 | (crypto_aead_aes256gcm_is_available() ? FVM_CIPHER_AES256GCM : 0);
}

static EVP_CIPHER_CTX *make(const EVP_CIPHER *cipher, const uint8_t *key, int encrypt)
{
    EVP_CIPHER_CTX *c = EVP_CIPHER_CTX_new();
    if (c && EVP_CipherInit_ex(c, cipher, NULL, key, NULL, encrypt) == 1)
        return c;
    EVP_CIPHER_CTX_free(c);
    return NULL;
}

int fvm_aead_create(unsigned cipher, const uint8_t key[FVM_AEAD_KEY_BYTES], struct fvm_aead **ret_aead)
{
    if (!(cipher & fvm_aead_ciphers()) || (cipher & (cipher - 1)))
        return FVM_EUNSUPPORTED;
    const EVP_CIPHER *evp = cipher == FVM_CIPHER_AES256GCM ? EVP_aes_256_gcm() : EVP_chacha20_poly1305();
    struct fvm_aead *a = calloc(1, sizeof(*a));
    if (!a)
        return FVM_ENOMEM;
    a->seal = make(evp, key, 1);
    a->open = make(evp, key, 0);
    if (!a->seal || !a->open) {
        fvm_aead_destroy(&a);
        return FVM_ENOMEM;
    }
    *ret_aead = a;
    return 0;
}

void fvm_aead_destroy(struct fvm_aead **aead_p)
{
    struct fvm_aead *a = *aead_p;
    if (!a)
        return;
    *aead_p = NULL;
    EVP_CIPHER_CTX_free(a->seal);
    EVP_CIPHER_CTX_free(a->open);
    free(a);
}

static bool begin(EVP_CIPHER_CTX *c, const uint8_t *nonce, const void *bound, size_t bound_len)
{
    int n;
    fvm_assert(bound_len <= INT_MAX);
    return EVP_CipherInit_ex(c, NULL, NULL, NULL, nonce, -1) == 1 &&
           (bound_len == 0 || EVP_CipherUpdate(c, NULL, &n, bound, (int)bound_len) == 1);
}

int fvm_aead_seal(struct fvm_aead *a, const uint8_t nonce[FVM_AEAD_NONCE_BYTES], const void *bound, size_t bound_len,
                  const void *in, size_t len, uint8_t *out)
{
    int n = 0, rest = 0;
    fvm_assert(len <= INT_MAX - 64);
    bool ok = begin(a->seal, nonce, bound, bound_len) &&
              (len == 0 || EVP_CipherUpdate(a->seal, out, &n, in, (int)len) == 1) &&
              EVP_CipherFinal_ex(a->seal, out + n, &rest) == 1 && (size_t)(n + rest) == len &&
              EVP_CIPHER_CTX_ctrl(a->seal, EVP_CTRL_AEAD_GET_TAG, FVM_AEAD_TAG_BYTES, out + len) == 1;
    return ok ? 0 : FVM_EINTERNAL;
}

int fvm_aead_open(struct fvm_aead *a, const uint8_t nonce[FVM_AEAD_NONCE_BYTES], const void *bound, size_t bound_len,
                  uint8_t *data, size_t len)
{
    int n = 0, rest = 0;
    if (len < FVM_AEAD_TAG_BYTES || len > INT_MAX - 64)
        return FVM_ECORRUPT;
    len -= FVM_AEAD_TAG_BYTES;
    bool ok = begin(a->open, nonce, bound, bound_len) &&
              EVP_CIPHER_CTX_ctrl(a->open, EVP_CTRL_AEAD_SET_TAG, FVM_AEAD_TAG_BYTES, data + len) == 1 &&
              (len == 0 || EVP_CipherUpdate(a->open, data, &n, data, (int)len) == 1) &&
              EVP_CipherFinal_ex(a->open, data + n, &rest) == 1;
    return ok && (size_t)(n + rest) == len ? 0 : FVM_ECORRUPT;
}
