/*
 * virtio_blk.c - the block device (virtio 1.2, section 5.2) on a struct fvm_disk.
 *
 * One queue, many requests in flight; each waits in a slot of a fixed table, so a guest that posts without end finds the
 * table full and waits. Data moves between the disk's workers and guest RAM directly; pages are marked when the request
 * completes. Invariants: a slot is busy from submission to its callback; a request of a former life (the driver has reset
 * in between) never touches a ring, because reset drains. Disk errors become VIRTIO_BLK_S_IOERR, also "disk full".
 */
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "vmm/devices/pack.h"
#include "vmm/devices/virtio/virtio.h"
#include "vmm/devices/virtio/virtio_pci.h"

#define SECTOR 512
#define QUEUE_SIZE 256
#define IN_FLIGHT_MAX 256
#define ERRORS_PER_LINE 64 /* a full disk fails every request */
#define DISCARD_SECTORS_MAX (1u << 22) /* 2 GiB at a time */

enum { F_SEG_MAX = 2, F_RO = 5, F_BLK_SIZE = 6, F_FLUSH = 9, F_DISCARD = 13, F_WRITE_ZEROES = 14 };
enum { T_IN = 0, T_OUT = 1, T_FLUSH = 4, T_GET_ID = 8, T_DISCARD = 11, T_WRITE_ZEROES = 13 };
enum { S_OK = 0, S_IOERR = 1, S_UNSUPP = 2 };

struct blk;
struct request {
    struct blk *blk;
    struct request *next_free;
    struct fvm_virtqueue_chain chain;
    uint32_t type;
    uint32_t data_in; /* bytes of the in buffers before the status byte */
    bool then_flush;  /* a write without a write-back cache negotiated */
    struct iovec iov[FVM_VIRTQUEUE_SIZE_MAX];
};

struct blk { /* board lock */
    struct fvm_virtio virtio;
    struct fvm_disk *disk;
    char serial[20];
    struct request *table, *free;
    unsigned busy;
    unsigned errors;
    bool starved;   /* the queue has more, the table had no slot */
    bool resetting; /* completions go nowhere */
    bool draining;  /* submit nothing new */
};

static struct blk *blk_of(struct fvm_device *dev)
{
    return FVM_CONTAINER_OF(dev, struct blk, virtio.dev);
}

static void config_get(struct fvm_virtio *v, uint8_t *config)
{
    const struct blk *blk = FVM_CONTAINER_OF(v, struct blk, virtio);
    uint64_t capacity = fvm_disk_bytes(blk->disk) / SECTOR;
    uint32_t seg_max = QUEUE_SIZE - 2, blk_size = SECTOR, sectors = DISCARD_SECTORS_MAX, one = 1;
    memcpy(config + 0, &capacity, 8);
    memcpy(config + 12, &seg_max, 4);
    memcpy(config + 20, &blk_size, 4);
    memcpy(config + 36, &sectors, 4); /* max_discard_sectors */
    memcpy(config + 40, &one, 4);     /* max_discard_seg */
    uint32_t align = 4096 / SECTOR;
    memcpy(config + 44, &align, 4);
    memcpy(config + 48, &sectors, 4); /* max_write_zeroes_sectors */
    memcpy(config + 52, &one, 4);
    config[56] = 1; /* write zeroes may unmap */
}

/* Give the request back with a status; its slot is free afterwards. */
static void complete(struct request *req, uint8_t status)
{
    struct blk *blk = req->blk;
    struct fvm_virtqueue_chain *chain = &req->chain;
    if (!blk->resetting) {
        struct fvm_virtqueue *q = &blk->virtio.queue[0];
        fvm_iov_write(fvm_virtqueue_in(chain), chain->in_count, chain->in_bytes - 1, &status, 1);
        fvm_virtqueue_push(q, chain, chain->in_bytes);
        fvm_virtqueue_interrupt(q);
    } else {
        fvm_virtqueue_mark_in(&blk->virtio.queue[0], chain, chain->in_bytes);
    }
    req->next_free = blk->free;
    blk->free = req;
    blk->busy--;
}

static void on_done(void *ctx, int status)
{
    struct request *req = ctx;
    struct blk *blk = req->blk;
    if (status < 0 && blk->errors++ % ERRORS_PER_LINE == 0)
        fvm_log(WARN, "virtio_blk.error", "device=%s type=%u err=%s", blk->virtio.dev.instance, req->type, fvm_err_name(status));
    if (status == 0 && req->then_flush) {
        req->then_flush = false;
        fvm_disk_flush(blk->disk, on_done, req);
        return;
    }
    complete(req, (uint8_t)(status < 0 ? S_IOERR : S_OK));
    if (blk->starved && !blk->resetting && !blk->draining) {
        blk->starved = false;
        fvm_virtio_defer(&blk->virtio, 0);
    }
}

/* The part [skip, skip+len) of a vector, into req->iov. */
static int slice(struct request *req, const struct iovec *iov, int count, size_t skip, size_t len)
{
    int n = 0;
    for (int i = 0; i < count && len; i++) {
        if (skip >= iov[i].iov_len) {
            skip -= iov[i].iov_len;
            continue;
        }
        size_t take = FVM_MIN(iov[i].iov_len - skip, len);
        req->iov[n++] = (struct iovec){(char *)iov[i].iov_base + skip, take};
        len -= take;
        skip = 0;
    }
    return n;
}

static bool range_ok(const struct blk *blk, uint64_t sector, uint64_t bytes)
{
    uint64_t capacity = fvm_disk_bytes(blk->disk) / SECTOR;
    return bytes % SECTOR == 0 && sector <= capacity && bytes / SECTOR <= capacity - sector;
}

static void transfer(struct request *req, uint64_t sector)
{
    struct blk *blk = req->blk;
    struct fvm_virtqueue_chain *c = &req->chain;
    bool write = req->type == T_OUT;
    uint32_t bytes = write ? c->out_bytes - 16 : req->data_in;
    if (!range_ok(blk, sector, bytes) || bytes == 0 || (write && fvm_disk_readonly(blk->disk))) {
        complete(req, S_IOERR);
        return;
    }
    if (write) {
        int n = slice(req, c->iov, c->out_count, 16, bytes);
        req->then_flush = !fvm_virtio_has(&blk->virtio, F_FLUSH);
        fvm_disk_writev(blk->disk, sector * SECTOR, req->iov, n, on_done, req);
    } else {
        int n = slice(req, fvm_virtqueue_in(c), c->in_count, 0, bytes);
        fvm_disk_readv(blk->disk, sector * SECTOR, req->iov, n, on_done, req);
    }
}

static void discard(struct request *req)
{
    struct blk *blk = req->blk;
    struct {
        uint64_t sector;
        uint32_t sectors;
        uint32_t flags;
    } seg;
    _Static_assert(sizeof(seg) == 16, "struct virtio_blk_discard_write_zeroes");
    bool zero = req->type == T_WRITE_ZEROES;
    if (req->chain.out_bytes != 16 + sizeof(seg)) {
        complete(req, S_UNSUPP); /* max_*_seg is 1 */
        return;
    }
    fvm_iov_read(req->chain.iov, req->chain.out_count, 16, &seg, sizeof(seg));
    if ((seg.flags & ~1u) || (!zero && seg.flags)) {
        complete(req, S_UNSUPP);
        return;
    }
    if (seg.sectors > DISCARD_SECTORS_MAX || !range_ok(blk, seg.sector, (uint64_t)seg.sectors * SECTOR) ||
        fvm_disk_readonly(blk->disk)) {
        complete(req, S_IOERR);
        return;
    }
    req->then_flush = zero && !fvm_virtio_has(&blk->virtio, F_FLUSH);
    fvm_disk_discard(blk->disk, seg.sector * SECTOR, (uint64_t)seg.sectors * SECTOR, zero, on_done, req);
}

static void get_id(struct request *req)
{
    const struct blk *blk = req->blk;
    size_t len = FVM_MIN((size_t)req->data_in, sizeof(blk->serial));
    fvm_iov_write(fvm_virtqueue_in(&req->chain), req->chain.in_count, 0, blk->serial, len);
    complete(req, S_OK);
}

static void start(struct request *req)
{
    struct blk *blk = req->blk;
    struct fvm_virtqueue_chain *c = &req->chain;
    struct {
        uint32_t type;
        uint32_t reserved;
        uint64_t sector;
    } head;
    fvm_iov_read(c->iov, c->out_count, 0, &head, sizeof(head));
    req->type = head.type;
    req->data_in = c->in_bytes - 1;
    req->then_flush = false;
    switch (head.type) {
    case T_IN:
    case T_OUT:
        transfer(req, head.sector);
        break;
    case T_FLUSH:
        if (fvm_disk_readonly(blk->disk))
            complete(req, S_OK);
        else
            fvm_disk_flush(blk->disk, on_done, req);
        break;
    case T_GET_ID:
        get_id(req);
        break;
    case T_DISCARD:
    case T_WRITE_ZEROES:
        discard(req);
        break;
    default:
        complete(req, S_UNSUPP);
    }
}

static void run(struct fvm_virtio *v, unsigned n)
{
    struct blk *blk = FVM_CONTAINER_OF(v, struct blk, virtio);
    struct fvm_virtqueue *q = &v->queue[n];
    unsigned budget = QUEUE_SIZE; /* a guest that completes and posts without end must not hold the lock */
    while (blk->free) {
        struct request *req = blk->free;
        int r = fvm_virtqueue_pop(q, &req->chain);
        if (r <= 0)
            return;
        if (req->chain.out_bytes < 16 || req->chain.in_bytes < 1) {
            fvm_virtqueue_unpop(q, 1);
            fvm_virtio_broken(v, n, "block request without header or status byte");
            return;
        }
        blk->free = req->next_free;
        blk->busy++;
        start(req);
        if (--budget == 0) {
            fvm_virtio_defer(v, n);
            return;
        }
    }
    blk->starved = true;
}

static void class_reset(struct fvm_virtio *v)
{
    struct blk *blk = FVM_CONTAINER_OF(v, struct blk, virtio);
    blk->resetting = true;
    fvm_disk_drain(blk->disk);
    blk->resetting = false;
    blk->starved = false;
    fvm_assert(blk->busy == 0);
}

static const struct fvm_virtio_class blk_class = {
    .type = 2,
    .pci_class = 0x010000,
    .queue_sizes = {QUEUE_SIZE},
    .inline_queues = 1,
    .config_get = config_get,
    .run = run,
    .reset = class_reset,
};

/* --- device operations --- */

static void destroy(struct fvm_device *dev)
{
    struct blk *blk = blk_of(dev);
    class_reset(&blk->virtio);
    fvm_virtio_fini(&blk->virtio);
    free(blk->table);
    free(blk);
}

static void quiesce(struct fvm_device *dev)
{
    struct blk *blk = blk_of(dev);
    fvm_virtio_quiesce(dev);
    blk->draining = true;
    fvm_disk_drain(blk->disk);
    blk->draining = false;
    blk->starved = false; /* resume runs the queue anyway */
    fvm_assert(blk->busy == 0);
}

static int save(struct fvm_device *dev, uint8_t **ret_buf, size_t *ret_len)
{
    struct blk *blk = blk_of(dev);
    Fvm__VirtioBlkState msg = FVM__VIRTIO_BLK_STATE__INIT;
    msg.capacity_sectors = fvm_disk_bytes(blk->disk) / SECTOR;
    msg.readonly = fvm_disk_readonly(blk->disk);
    return fvm_virtio_save(&blk->virtio, &msg.base, &msg.virtio, ret_buf, ret_len);
}

static int check(struct fvm_device *dev, const uint8_t *buf, size_t len, struct fvm_err *err)
{
    struct blk *blk = blk_of(dev);
    ProtobufCMessage *m = fvm_device_unpack(&fvm__virtio_blk_state__descriptor, dev, buf, len, err);
    if (!m)
        return FVM_EBADIMAGE;
    const Fvm__VirtioBlkState *msg = (const Fvm__VirtioBlkState *)m;
    int r = fvm_virtio_check(&blk->virtio, msg->virtio, err);
    if (r == 0 && msg->capacity_sectors != fvm_disk_bytes(blk->disk) / SECTOR)
        r = fvm_device_refuse(dev, err, "the disk has another size than the saved one; is it the same volume?");
    if (r == 0 && msg->readonly != fvm_disk_readonly(blk->disk))
        r = fvm_device_refuse(dev, err, "one of the disks is read-only, the other is not");
    protobuf_c_message_free_unpacked(m, NULL);
    return r;
}

static void restore(struct fvm_device *dev, const uint8_t *buf, size_t len)
{
    struct blk *blk = blk_of(dev);
    ProtobufCMessage *m = fvm_device_unpack(&fvm__virtio_blk_state__descriptor, dev, buf, len, NULL);
    fvm_assert(m);
    fvm_virtio_restore(&blk->virtio, ((const Fvm__VirtioBlkState *)m)->virtio);
    protobuf_c_message_free_unpacked(m, NULL);
}

static const struct fvm_device_ops blk_ops = {
    .name = "virtio_blk",
    .destroy = destroy,
    .reset = fvm_virtio_reset,
    .quiesce = quiesce,
    .resume = fvm_virtio_resume,
    .save = save,
    .check = check,
    .restore = restore,
};

int fvm_virtio_blk_create(struct fvm_board *board, struct fvm_pci_host *host, uint8_t slot, const char *instance,
                          struct fvm_disk *disk, const char *serial, struct fvm_device **ret_dev)
{
    struct blk *blk = calloc(1, sizeof(*blk));
    struct request *table = calloc(IN_FLIGHT_MAX, sizeof(*table));
    int r = FVM_ENOMEM;
    if (!blk || !table)
        goto fail;
    blk->disk = disk;
    blk->table = table;
    for (unsigned i = 0; i < IN_FLIGHT_MAX; i++) {
        table[i].blk = blk;
        table[i].next_free = blk->free;
        blk->free = &table[i];
    }
    if (serial)
        memcpy(blk->serial, serial, strnlen(serial, sizeof(blk->serial)));
    uint64_t offered = 1u << F_SEG_MAX | 1u << F_BLK_SIZE | 1u << F_FLUSH;
    offered |= fvm_disk_readonly(disk) ? 1u << F_RO : 1u << F_DISCARD | 1u << F_WRITE_ZEROES;
    r = fvm_virtio_init(&blk->virtio, board, host, slot, instance, &blk_ops, &blk_class, offered);
    if (r < 0)
        goto fail;
    *ret_dev = &blk->virtio.dev;
    return 0;
fail:
    free(table);
    free(blk);
    return r;
}
