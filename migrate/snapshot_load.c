/*
 * snapshot_load.c - a file into RAM and state. See snapshot.h.
 *
 * Invariant: fvm_snapshot_load returns 0 only after the sealed end record said how many batches there were and what all
 * of RAM hashes to, and both were so. Memory taken for a record is bounded by constants, not by the file.
 */
#include <errno.h>
#include <fcntl.h>
#include <sodium.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "migrate/snapshot_file.h"
#include "migrate/stream.h"
#include "migrate/warm.h"

struct fvm_snapshot_in { /* whoever loads */
    char *path;
    int fd;
    uint64_t at; /* bytes read, for messages */
    Fvm__SnapshotHeader *header;
    uint8_t header_hash[SNAPSHOT_HASH_BYTES], key[FVM_AEAD_KEY_BYTES];
    bool secret;
    struct fvm_codec *codec;
    struct fvm_aead *aead;
    struct fvm_proof proof;
    struct fvm_stream_rx *rx;
    uint8_t *batch_header, *payload;
    size_t payload_room;
};

static const char room[] = "snapshot";

static int damaged(const struct fvm_snapshot_in *in, const char *what, struct fvm_err *err)
{
    return fvm_err_set(err, FVM_ECORRUPT, 0, room, "snapshot %s is damaged before byte %llu: %s", in->path,
                       (unsigned long long)in->at, what);
}

static int read_exact(struct fvm_snapshot_in *in, void *buf, size_t len, struct fvm_err *err)
{
    size_t done = 0;
    while (done < len) {
        ssize_t n = read(in->fd, (uint8_t *)buf + done, len - done);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return fvm_err_set(err, fvm_err_from_errno(errno), errno, room, "snapshot %s: %s", in->path,
                               strerror(errno));
        if (n == 0)
            return fvm_err_set(err, FVM_EBADIMAGE, 0, room,
                               "snapshot %s ends too early, after %llu bytes: it was not written, or not copied, whole",
                               in->path, (unsigned long long)(in->at + done));
        done += (size_t)n;
    }
    in->at += len;
    return 0;
}

static int read_frame(struct fvm_snapshot_in *in, struct snapshot_frame *ret, struct fvm_err *err)
{
    uint8_t bytes[SNAPSHOT_FRAME_BYTES];
    int r = read_exact(in, bytes, sizeof(bytes), err);
    return r || snapshot_frame_unpack(bytes, ret) ? r : damaged(in, "a record that is none", err);
}

static int need_payload(struct fvm_snapshot_in *in, size_t len, struct fvm_err *err)
{
    if (len <= in->payload_room)
        return 0;
    uint8_t *grown = realloc(in->payload, len);
    if (!grown)
        return fvm_err_set(err, FVM_ENOMEM, 0, room, "out of memory");
    in->payload = grown;
    in->payload_room = len;
    return 0;
}

/* ---- the header ---- */

static int read_preamble(struct fvm_snapshot_in *in, struct fvm_err *err)
{
    uint8_t p[16];
    ssize_t n = pread(in->fd, p, sizeof(p), 0);
    if (n < 0)
        return fvm_err_set(err, fvm_err_from_errno(errno), errno, room, "snapshot %s: %s", in->path, strerror(errno));
    if (n < 8 || memcmp(p, SNAPSHOT_MAGIC, 8) != 0)
        return fvm_err_set(err, FVM_EBADIMAGE, 0, room, "%s is no snapshot of fvm's", in->path);
    int r = read_exact(in, p, sizeof(p), err);
    if (!r && (p[12] | p[13] | p[14] | p[15]))
        r = damaged(in, "its first bytes have changed", err);
    uint32_t format = (uint32_t)p[8] | (uint32_t)p[9] << 8 | (uint32_t)p[10] << 16 | (uint32_t)p[11] << 24;
    if (!r && format != FVM_SNAPSHOT_FORMAT)
        return fvm_err_set(err, FVM_EVERSION, 0, room,
                           "snapshot %s has format %u, this program reads %d: use the version of fvm that wrote it",
                           in->path, format, FVM_SNAPSHOT_FORMAT);
    return r;
}

static const char *header_wrong(const Fvm__SnapshotHeader *h)
{
    if (!h || !h->config)
        return "the machine's description is missing";
    if (h->id.len != SNAPSHOT_ID_BYTES || h->salt.len != SNAPSHOT_SALT_BYTES ||
        (h->key.len && h->key.len != FVM_AEAD_KEY_BYTES))
        return "identity or key of a wrong length";
    return NULL;
}

static int read_header(struct fvm_snapshot_in *in, struct fvm_err *err)
{
    struct snapshot_frame f;
    uint8_t hash[SNAPSHOT_HASH_BYTES];
    int r = read_frame(in, &f, err);
    if (!r && (f.type != SNAPSHOT_HEADER || f.header_len != SNAPSHOT_HASH_BYTES || f.payload_len > SNAPSHOT_CONFIG_MAX))
        r = damaged(in, "its description is not at the beginning", err);
    if (!r)
        r = need_payload(in, f.payload_len + 1, err);
    if (!r)
        r = read_exact(in, hash, sizeof(hash), err);
    if (!r)
        r = read_exact(in, in->payload, f.payload_len, err);
    if (r)
        return r;
    snapshot_hash(in->payload, f.payload_len, in->header_hash);
    if (memcmp(hash, in->header_hash, sizeof(hash)) != 0)
        return damaged(in, "its description has changed", err);
    in->header = fvm__snapshot_header__unpack(NULL, f.payload_len, in->payload);
    const char *wrong = header_wrong(in->header);
    return wrong ? damaged(in, wrong, err) : 0;
}

static int open_key(struct fvm_snapshot_in *in, const char *key_file, struct fvm_err *err)
{
    const Fvm__SnapshotHeader *h = in->header;
    struct fvm_ho_ticket ticket = {0};
    int r = 0;
    in->secret = h->key.len == 0;
    if (in->secret && !key_file)
        return fvm_err_set(err, FVM_EAUTH, 0, room, "snapshot %s is sealed: --key-file is needed", in->path);
    if (in->secret)
        r = snapshot_key_of_file(key_file, h->salt.data, in->key, err);
    else
        memcpy(in->key, h->key.data, sizeof(in->key));
    if (r)
        return r;
    memcpy(ticket.mig_id, h->id.data, sizeof(ticket.mig_id));
    r = fvm_codec_create(&in->codec);
    if (!r)
        r = fvm_codec_key(in->codec, h->cipher, in->key, &ticket);
    if (!r)
        r = fvm_aead_create(h->cipher, in->key, &in->aead);
    if (r == FVM_EUNSUPPORTED)
        return fvm_err_set(err, r, 0, room, "snapshot %s is sealed with a cipher that this host does not have",
                           in->path);
    return r ? fvm_err_set(err, r, 0, room, "cannot make the cipher: %s", fvm_err_text(r)) : 0;
}

int fvm_snapshot_open(const char *path, const char *key_file, struct fvm_snapshot_in **ret_in, struct fvm_err *err)
{
    struct fvm_snapshot_in *in = sodium_init() < 0 ? NULL : calloc(1, sizeof(*in));
    if (!in)
        return fvm_err_set(err, FVM_ENOMEM, 0, room, "out of memory");
    in->path = strdup(path);
    in->fd = open(path, O_RDONLY | O_CLOEXEC);
    int r = 0;
    if (in->fd < 0)
        r = fvm_err_set(err, fvm_err_from_errno(errno), errno, room, "snapshot %s: %s", path, strerror(errno));
    else if (!in->path)
        r = fvm_err_set(err, FVM_ENOMEM, 0, room, "out of memory");
    if (!r)
        r = read_preamble(in, err);
    if (!r)
        r = read_header(in, err);
    if (!r)
        r = open_key(in, key_file, err);
    if (r) {
        fvm_snapshot_close(&in);
        return r;
    }
    (void)posix_fadvise(in->fd, 0, 0, POSIX_FADV_SEQUENTIAL);
    *ret_in = in;
    return 0;
}

void fvm_snapshot_close(struct fvm_snapshot_in **in_p)
{
    struct fvm_snapshot_in *in = *in_p;
    *in_p = NULL;
    if (!in)
        return;
    if (in->header)
        fvm__snapshot_header__free_unpacked(in->header, NULL);
    fvm_codec_destroy(&in->codec);
    fvm_aead_destroy(&in->aead);
    fvm_proof_fini(&in->proof);
    free(in->rx);
    free(in->batch_header);
    free(in->payload);
    if (in->fd >= 0)
        close(in->fd);
    sodium_memzero(in->key, sizeof(in->key));
    free(in->path);
    free(in);
}

const Fvm__VmConfig *fvm_snapshot_config(const struct fvm_snapshot_in *in) { return in->header->config; }

/* ---- the records ---- */

static int load_batch(struct fvm_snapshot_in *in, const struct snapshot_frame *f, struct fvm_err *err)
{
    if (f->header_len > FVM_CODEC_HEADER_MAX || f->payload_len > FVM_CODEC_PAYLOAD_MAX)
        return damaged(in, "pages in a batch larger than there are", err);
    int r = read_exact(in, in->batch_header, f->header_len, err);
    if (!r)
        r = read_exact(in, in->payload, f->payload_len, err);
    if (r)
        return r;
    r = fvm_stream_rx_batch(in->rx, in->batch_header, f->header_len, in->payload, f->payload_len);
    if (r == FVM_ECORRUPT && in->secret && in->rx->batches == 0)
        return fvm_err_set(err, FVM_EAUTH, 0, room, "snapshot %s: the key is wrong, or its first pages are damaged",
                           in->path);
    return r || in->rx->lost_count || in->rx->late ? damaged(in, "pages do not match their seal", err) : 0;
}

/* A sealed record; its opened bytes are in in->payload. */
static int load_sealed(struct fvm_snapshot_in *in, const struct snapshot_frame *f, struct fvm_err *err)
{
    uint8_t nonce[FVM_AEAD_NONCE_BYTES];
    if (f->header_len || f->payload_len < FVM_AEAD_TAG_BYTES || f->payload_len > SNAPSHOT_STATE_MAX)
        return damaged(in, "a record of an impossible length", err);
    int r = need_payload(in, f->payload_len, err);
    if (!r)
        r = read_exact(in, in->payload, f->payload_len, err);
    if (r)
        return r;
    snapshot_nonce(in->rx->last_seq, f->type, nonce);
    r = fvm_aead_open(in->aead, nonce, in->header->id.data, SNAPSHOT_ID_BYTES, in->payload, f->payload_len);
    return r ? damaged(in, "the machine's state does not match its seal", err) : 0;
}

static int check_end(struct fvm_snapshot_in *in, size_t len, struct fvm_err *err)
{
    uint8_t more;
    Fvm__SnapshotEnd *end = fvm__snapshot_end__unpack(NULL, len, in->payload);
    bool good = end && end->last_seq == in->rx->last_seq && end->pages == in->proof.page_count &&
                end->header_hash.len == SNAPSHOT_HASH_BYTES &&
                !memcmp(end->header_hash.data, in->header_hash, SNAPSHOT_HASH_BYTES);
    int r = good ? 0 : damaged(in, "its end does not belong to its beginning", err);
    if (!r && fvm_proof_digest(&in->proof, UINT32_MAX, NULL, NULL) != end->digest)
        r = damaged(in, "memory is not what it was", err);
    if (!r && read(in->fd, &more, 1) == 1)
        r = damaged(in, "there is something behind its end", err);
    if (end)
        fvm__snapshot_end__free_unpacked(end, NULL);
    return r;
}

static int load_records(struct fvm_snapshot_in *in, Fvm__FinalState **state, struct fvm_err *err)
{
    for (;;) {
        struct snapshot_frame f;
        int r = read_frame(in, &f, err);
        if (!r && f.type == SNAPSHOT_BATCH)
            r = load_batch(in, &f, err);
        else if (!r && ((f.type == SNAPSHOT_STATE && !*state) || (f.type == SNAPSHOT_END && *state)))
            r = load_sealed(in, &f, err);
        else if (!r)
            r = damaged(in, "a record of an unknown kind, or out of place", err);
        if (r)
            return r;
        if (f.type == SNAPSHOT_END)
            return check_end(in, f.payload_len - FVM_AEAD_TAG_BYTES, err);
        if (f.type == SNAPSHOT_STATE) {
            *state = fvm__final_state__unpack(NULL, f.payload_len - FVM_AEAD_TAG_BYTES, in->payload);
            if (!*state || !(*state)->cpus || !(*state)->devices)
                return damaged(in, "the machine's state is incomplete", err);
        }
    }
}

int fvm_snapshot_load(struct fvm_snapshot_in *in, struct fvm_ram *ram, Fvm__FinalState **ret_state, struct fvm_err *err)
{
    Fvm__FinalState *state = NULL;
    if (ram->low_bytes + ram->high_bytes != in->header->config->memory_bytes)
        return fvm_err_set(err, FVM_EINVAL, 0, room, "snapshot %s is of a machine with other memory", in->path);
    in->rx = calloc(1, sizeof(*in->rx));
    in->batch_header = malloc(FVM_CODEC_HEADER_MAX);
    int r = need_payload(in, FVM_CODEC_PAYLOAD_MAX, err);
    if (!r && (!in->rx || !in->batch_header || fvm_proof_init(&in->proof, ram)))
        r = fvm_err_set(err, FVM_ENOMEM, 0, room, "out of memory");
    if (r)
        return r;
    struct fvm_warm *warm = NULL; /* fresh memory costs more than all else here */
    (void)fvm_warm_start(ram, in->header->touched.data, in->header->touched.len, &warm);
    fvm_stream_rx_init(in->rx, ram, in->codec, &in->proof);
    in->rx->quiet = true;
    r = load_records(in, &state, err);
    fvm_warm_stop(&warm);
    if (!r)
        *ret_state = state;
    else if (state)
        fvm__final_state__free_unpacked(state, NULL);
    return r;
}
