/*
 * snapshot_save.c - a guest into a file, on a thread of its own: rounds while the guest runs, then the rest with it
 * paused. See snapshot.h.
 *
 * Why the same stream as a migration's: pages newer than what the file has, sealed in batches, and the digest of all of
 * them. A write that succeeded is the acknowledgement.
 *
 * Invariant: a guest that ran when we began runs when we end, unless all went well and stopping it was asked for.
 */
#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <pthread.h>
#include <sodium.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include "base/log.h"
#include "base/loop.h"
#include "migrate/snapshot_file.h"
#include "migrate/stream.h"
#include "migrate/warm.h"

enum { LIVE_ROUNDS_MAX = 3, FINAL_PAGES_SOON = 4096 }; /* 16 MiB: a few ms */

struct fvm_snapshot { /* the thread's */
    struct fvm_snapshot_options opt;
    char *path, *part, *key_file;
    int fd;
    pthread_t thread;
    _Atomic bool cancelled;
    struct fvm_memory *memory;
    struct fvm_codec *codec;
    struct fvm_aead *aead;
    struct fvm_stream_tx tx;
    uint8_t id[SNAPSHOT_ID_BYTES], header_hash[SNAPSHOT_HASH_BYTES];
    struct fvm_snapshot_report report;
};

static const char room[] = "snapshot";

/* ---- writing ---- */

static int write_all(struct fvm_snapshot *s, struct iovec *iov, int count, struct fvm_err *err)
{
    while (count) {
        ssize_t n = writev(s->fd, iov, count);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return fvm_err_set(err, fvm_err_from_errno(errno), errno, room, "%s: %s", s->path, strerror(errno));
        s->report.file_bytes += (uint64_t)n;
        while (count && (size_t)n >= iov->iov_len) {
            n -= (ssize_t)iov->iov_len;
            iov++;
            count--;
        }
        if (count) {
            iov->iov_base = (uint8_t *)iov->iov_base + n;
            iov->iov_len -= (size_t)n;
        }
    }
    return 0;
}

static int write_record(struct fvm_snapshot *s, uint32_t type, void *header, size_t header_len, void *payload,
                        size_t payload_len, struct fvm_err *err)
{
    uint8_t frame[SNAPSHOT_FRAME_BYTES];
    snapshot_frame_pack(&(struct snapshot_frame){type, (uint32_t)header_len, (uint32_t)payload_len}, frame);
    struct iovec iov[3] = {{frame, sizeof(frame)}, {header, header_len}, {payload, payload_len}};
    if (atomic_load(&s->cancelled))
        return fvm_err_set(err, FVM_ECANCELLED, 0, room, "the snapshot was given up");
    return write_all(s, iov, 3, err);
}

static int write_sealed(struct fvm_snapshot *s, uint32_t type, const ProtobufCMessage *message, struct fvm_err *err)
{
    size_t len = protobuf_c_message_get_packed_size(message);
    uint8_t nonce[FVM_AEAD_NONCE_BYTES], *buf = malloc(len + FVM_AEAD_TAG_BYTES);
    if (!buf)
        return fvm_err_set(err, FVM_ENOMEM, 0, room, "out of memory");
    protobuf_c_message_pack(message, buf);
    snapshot_nonce(s->tx.next_seq - 1, type, nonce);
    int r = fvm_aead_seal(s->aead, nonce, s->id, sizeof(s->id), buf, len, buf);
    if (r)
        fvm_err_set(err, r, 0, room, "cannot seal the state: %s", fvm_err_text(r));
    else
        r = write_record(s, type, NULL, 0, buf, len + FVM_AEAD_TAG_BYTES, err);
    sodium_memzero(buf, len);
    free(buf);
    return r;
}

/* ---- begin ---- */

static int choose_key(struct fvm_snapshot *s, Fvm__SnapshotHeader *h, uint8_t key[FVM_AEAD_KEY_BYTES],
                      uint8_t salt[SNAPSHOT_SALT_BYTES], struct fvm_err *err)
{
    struct fvm_ho_ticket ticket = {0};
    int r = 0;
    randombytes_buf(s->id, sizeof(s->id));
    randombytes_buf(salt, SNAPSHOT_SALT_BYTES);
    randombytes_buf(key, FVM_AEAD_KEY_BYTES);
    h->salt = (ProtobufCBinaryData){.data = salt, .len = SNAPSHOT_SALT_BYTES};
    if (s->key_file)
        r = snapshot_key_of_file(s->key_file, salt, key, err);
    else
        h->key = (ProtobufCBinaryData){.data = key, .len = FVM_AEAD_KEY_BYTES};
    h->cipher = fvm_aead_ciphers() & FVM_CIPHER_AES256GCM ? FVM_CIPHER_AES256GCM : FVM_CIPHER_CHACHA20;
    if (r)
        return r;
    _Static_assert((int)SNAPSHOT_ID_BYTES == (int)FVM_HO_ID_BYTES, "bound in the place of a migration's id");
    memcpy(ticket.mig_id, s->id, sizeof(s->id));
    r = fvm_codec_key(s->codec, h->cipher, key, &ticket);
    if (!r)
        r = fvm_aead_create(h->cipher, key, &s->aead);
    return r ? fvm_err_set(err, r, 0, room, "cannot make the cipher: %s", fvm_err_text(r)) : 0;
}

static int write_header(struct fvm_snapshot *s, struct fvm_err *err)
{
    static uint8_t preamble[16] = SNAPSHOT_MAGIC "\x01"; /* FVM_SNAPSHOT_FORMAT */
    const struct fvm_machine *vm = &s->opt.machine;
    Fvm__SnapshotHeader h = FVM__SNAPSHOT_HEADER__INIT;
    uint8_t key[FVM_AEAD_KEY_BYTES], salt[SNAPSHOT_SALT_BYTES], *buf = NULL;
    int r = choose_key(s, &h, key, salt, err);
    if (!r) {
        h.config = (Fvm__VmConfig *)(uintptr_t)vm->ops->config(vm->ctx);
        h.id = (ProtobufCBinaryData){.data = s->id, .len = sizeof(s->id)};
        h.version = (char *)(uintptr_t)FVM_VERSION;
        h.wall_ns = fvm_wall_ns();
        h.touched.data = malloc(fvm_warm_map_bytes(s->memory->ram));
        if (h.touched.data) {
            h.touched.len = fvm_warm_map_bytes(s->memory->ram);
            fvm_warm_map(s->memory->ram, h.touched.data);
        }
        buf = malloc(fvm__snapshot_header__get_packed_size(&h));
        r = buf ? 0 : fvm_err_set(err, FVM_ENOMEM, 0, room, "out of memory");
    }
    if (!r) {
        size_t len = fvm__snapshot_header__pack(&h, buf);
        struct iovec iov = {preamble, sizeof(preamble)};
        snapshot_hash(buf, len, s->header_hash);
        r = write_all(s, &iov, 1, err);
        if (!r)
            r = write_record(s, SNAPSHOT_HEADER, s->header_hash, sizeof(s->header_hash), buf, len, err);
    }
    sodium_memzero(key, sizeof(key));
    free(h.touched.data);
    free(buf);
    return r;
}

/* ---- pages ---- */

static int write_round(struct fvm_snapshot *s, uint32_t epoch, struct fvm_err *err)
{
    fvm_pfn cursor = 0;
    for (;;) {
        struct fvm_sealed batch;
        fvm_gpa unused;
        s->memory->sent_once = false; /* whole pages: nobody asks again for what a delta missed */
        int r = fvm_stream_tx_next(&s->tx, &cursor, epoch, s->opt.compress, &batch);
        if (r == FVM_ENOENT)
            return 0;
        if (r)
            return fvm_err_set(err, r, 0, room, "cannot pack pages: %s", fvm_err_text(r));
        r = write_record(s, SNAPSHOT_BATCH, batch.header, batch.header_len, batch.payload, batch.payload_len, err);
        free(batch.header);
        free(batch.payload);
        if (r)
            return r;
        fvm_stream_tx_ack(&s->tx, s->tx.next_seq - 1, NULL, 0, &unused);
    }
}

static int write_live(struct fvm_snapshot *s, struct fvm_err *err)
{
    const struct fvm_machine *vm = &s->opt.machine;
    int r = 0;
    while (!r && vm->ops->running(vm->ctx) && s->report.rounds < LIVE_ROUNDS_MAX) {
        uint32_t epoch = vm->ops->dirty_epoch(vm->ctx);
        if (s->report.rounds && fvm_memory_pending(s->memory) <= FINAL_PAGES_SOON)
            break;
        r = write_round(s, epoch, err);
        s->report.rounds++;
    }
    return r;
}

static int write_state(struct fvm_snapshot *s, bool was_running, struct fvm_err *err)
{
    const struct fvm_machine *vm = &s->opt.machine;
    Fvm__FinalState state = FVM__FINAL_STATE__INIT;
    int r = vm->ops->save(vm->ctx, &state.cpus, &state.devices);
    if (r)
        return fvm_err_set(err, r, 0, room, "cannot save the machine's state: %s", fvm_err_text(r));
    state.paused_wall_ns = fvm_wall_ns();
    state.paused = !was_running;
    r = write_sealed(s, SNAPSHOT_STATE, &state.base, err);
    fvm__cpus_state__free_unpacked(state.cpus, NULL);
    fvm__devices_state__free_unpacked(state.devices, NULL);
    return r;
}

/* The guest stands still. */
static int write_final(struct fvm_snapshot *s, bool was_running, struct fvm_err *err)
{
    const struct fvm_machine *vm = &s->opt.machine;
    Fvm__SnapshotEnd end = FVM__SNAPSHOT_END__INIT;
    int r = write_state(s, was_running, err); /* first: saving a device may write to RAM */
    uint32_t epoch = r ? 0 : vm->ops->dirty_epoch(vm->ctx);
    if (!r)
        r = write_round(s, epoch, err);
    s->report.rounds++;
    if (r)
        return r;
    end.last_seq = s->tx.next_seq - 1;
    end.pages = s->memory->proof.page_count;
    end.digest = fvm_proof_digest(&s->memory->proof, epoch, NULL, NULL);
    end.header_hash = (ProtobufCBinaryData){.data = s->header_hash, .len = sizeof(s->header_hash)};
    return write_sealed(s, SNAPSHOT_END, &end.base, err);
}

/* ---- the end of the file ---- */

/* On the disk, then under its name. */
static int publish(struct fvm_snapshot *s, struct fvm_err *err)
{
    int e = fsync(s->fd) < 0 || rename(s->part, s->path) < 0 ? errno : 0;
    if (e)
        return fvm_err_set(err, fvm_err_from_errno(e), e, room, "%s: %s", s->path, strerror(e));
    char *copy = strdup(s->path);
    int dir = copy ? open(dirname(copy), O_RDONLY | O_DIRECTORY | O_CLOEXEC) : -1;
    if (dir >= 0) {
        (void)fsync(dir);
        close(dir);
    }
    free(copy);
    return 0;
}

static int pause_and_finish(struct fvm_snapshot *s, struct fvm_err *err)
{
    const struct fvm_machine *vm = &s->opt.machine;
    bool was_running = vm->ops->running(vm->ctx);
    uint64_t begin = fvm_now_ns();
    int r = was_running ? vm->ops->pause(vm->ctx) : 0;
    if (r)
        return fvm_err_set(err, r, 0, room, "the guest cannot be paused: %s", fvm_err_text(r));
    r = write_final(s, was_running, err);
    if (!r && s->opt.stop) /* the disks must not go on without the file being there */
        r = publish(s, err);
    if (!r && s->opt.stop && (r = vm->ops->storage_deactivate(vm->ctx)))
        fvm_err_set(err, r, 0, room, "the disks cannot be flushed: %s", fvm_err_text(r));
    s->report.stopped = !r && s->opt.stop;
    if (was_running && !s->report.stopped && vm->ops->run(vm->ctx))
        fvm_log(ERROR, "snapshot.resume", "the guest cannot go on");
    s->report.blackout_ns = fvm_now_ns() - begin;
    return !r && !s->opt.stop ? publish(s, err) : r;
}

static void finish(struct fvm_snapshot *s)
{
    s->report.data_pages = s->tx.data_pages;
    s->report.zero_pages = s->tx.zero_pages;
    if (s->memory)
        fvm_stream_tx_fini(&s->tx);
    fvm_memory_destroy(&s->memory);
    fvm_codec_destroy(&s->codec);
    fvm_aead_destroy(&s->aead);
    close(s->fd);
    s->fd = -1;
    if (s->report.err.code)
        unlink(s->part);
}

static void *snapshot_thread(void *ctx)
{
    struct fvm_snapshot *s = ctx;
    const struct fvm_machine *vm = &s->opt.machine;
    struct fvm_err *err = &s->report.err;
    struct fvm_ram *ram = vm->ops->ram(vm->ctx);
    uint64_t begin = fvm_now_ns();
    s->report.memory_bytes = ram->low_bytes + ram->high_bytes;
    if (fvm_codec_create(&s->codec) || fvm_memory_create(ram, &s->memory)) {
        fvm_err_set(err, FVM_ENOMEM, 0, room, "out of memory");
    } else {
        fvm_stream_tx_init(&s->tx, s->memory, s->codec);
        (void)(write_header(s, err) || write_live(s, err) || pause_and_finish(s, err));
    }
    finish(s);
    s->report.total_ns = fvm_now_ns() - begin;
    s->opt.done(s->opt.ctx, &s->report);
    return NULL;
}

/* ---- front door ---- */

static void snapshot_free(struct fvm_snapshot *s)
{
    free(s->path);
    free(s->part);
    free(s->key_file);
    free(s);
}

int fvm_snapshot_start(const struct fvm_snapshot_options *opt, struct fvm_snapshot **ret_snapshot, struct fvm_err *err)
{
    struct fvm_snapshot *s = sodium_init() < 0 ? NULL : calloc(1, sizeof(*s));
    if (!s)
        return fvm_err_set(err, FVM_ENOMEM, 0, room, "out of memory");
    s->opt = *opt;
    s->path = strdup(opt->path);
    s->key_file = opt->key_file ? strdup(opt->key_file) : NULL;
    if (!s->path || (opt->key_file && !s->key_file) || asprintf(&s->part, "%s.part", opt->path) < 0) {
        s->part = NULL;
        snapshot_free(s);
        return fvm_err_set(err, FVM_ENOMEM, 0, room, "out of memory");
    }
    s->fd = open(s->part, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);
    int e = s->fd < 0 ? errno : 0;
    if (!e && (e = pthread_create(&s->thread, NULL, snapshot_thread, s))) {
        close(s->fd);
        unlink(s->part);
    }
    if (e) {
        int r = fvm_err_set(err, fvm_err_from_errno(e), e, room, "%s: %s", s->path, strerror(e));
        snapshot_free(s);
        return r;
    }
    *ret_snapshot = s;
    return 0;
}

void fvm_snapshot_cancel(struct fvm_snapshot *s) { atomic_store(&s->cancelled, true); }

void fvm_snapshot_join(struct fvm_snapshot **snapshot_p)
{
    struct fvm_snapshot *s = *snapshot_p;
    *snapshot_p = NULL;
    if (!s)
        return;
    pthread_join(s->thread, NULL);
    snapshot_free(s);
}
