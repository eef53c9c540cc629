/* snapshot_file.h - what snapshot_save.c and snapshot_load.c share: the file's frame and its key. Nobody else. */
#ifndef FVM_MIGRATE_SNAPSHOT_FILE_H
#define FVM_MIGRATE_SNAPSHOT_FILE_H

#include "migrate/aead.h"
#include "migrate/snapshot.h"

enum { SNAPSHOT_HEADER = 1, SNAPSHOT_BATCH = 2, SNAPSHOT_STATE = 3, SNAPSHOT_END = 4 };
enum { SNAPSHOT_FRAME_BYTES = 16, SNAPSHOT_HASH_BYTES = 16, SNAPSHOT_ID_BYTES = 16, SNAPSHOT_SALT_BYTES = 16 };
#define SNAPSHOT_MAGIC "FVMSNAP\n"
#define SNAPSHOT_STATE_MAX (256u << 20)
#define SNAPSHOT_CONFIG_MAX (1u << 20)

struct snapshot_frame {
    uint32_t type, header_len, payload_len;
};
void snapshot_frame_pack(const struct snapshot_frame *f, uint8_t out[SNAPSHOT_FRAME_BYTES]);
/** false: bytes that must be zero are not. */
bool snapshot_frame_unpack(const uint8_t in[SNAPSHOT_FRAME_BYTES], struct snapshot_frame *ret);
void snapshot_hash(const void *bytes, size_t len, uint8_t ret[SNAPSHOT_HASH_BYTES]);
void snapshot_nonce(uint64_t batches, uint32_t type, uint8_t ret[FVM_AEAD_NONCE_BYTES]);
/** The key of a sealed snapshot: of the key file's contents and the salt. */
int snapshot_key_of_file(const char *path, const uint8_t salt[SNAPSHOT_SALT_BYTES], uint8_t ret[FVM_AEAD_KEY_BYTES],
                         struct fvm_err *err);

#endif
