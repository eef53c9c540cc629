/*
 * virtqueue.c - the split virtqueue (virtio 1.2, section 2.7), with indirect descriptors and event index.
 *
 *   desc[size]  {gpa 8, len 4, flags 2, next 2}
 *   avail       {flags 2, idx 2, ring[size] 2, used_event 2}        written by the driver
 *   used        {flags 2, idx 2, ring[size] {id 4, len 4}, avail_event 2}   written by the device
 *
 * Invariants: no loop runs longer than a chain may be (FVM_VIRTQUEUE_SIZE_MAX; Linux makes indirect chains longer than its ring); a descriptor is copied before it is judged; next_used
 * trails next_avail by exactly the chains in flight. Writes to the used ring are marked in the page versions after the bytes.
 */
#include "vmm/devices/virtio/virtqueue.h"

#include <string.h>

#include "vmm/devices/virtio/virtio_pci.h"

enum { DESC_NEXT = 1, DESC_WRITE = 2, DESC_INDIRECT = 4 };
enum { AVAIL_NO_INTERRUPT = 1, USED_NO_NOTIFY = 1 };

struct desc {
    uint64_t gpa;
    uint32_t len;
    uint16_t flags;
    uint16_t next;
};
_Static_assert(sizeof(struct desc) == 16, "as the driver lays it out");

static struct fvm_ram *ram_of(const struct fvm_virtqueue *q)
{
    return q->virtio->dev.board->ram;
}

static uint64_t avail_bytes(uint16_t size)
{
    return 6u + 2u * (uint64_t)size;
}

static uint64_t used_bytes(uint16_t size)
{
    return 6u + 8u * (uint64_t)size;
}

static uint16_t load16(const uint8_t *p)
{
    return __atomic_load_n((const uint16_t *)(const void *)p, __ATOMIC_ACQUIRE);
}

/* a field of the used ring */
static void store16(struct fvm_virtqueue *q, uint64_t offset, uint16_t value)
{
    __atomic_store_n((uint16_t *)(void *)(q->used + offset), value, __ATOMIC_RELEASE);
    fvm_ram_mark_written(ram_of(q), q->used_gpa + offset, 2);
}

static bool usable(const struct fvm_virtqueue *q)
{
    return q->enabled && fvm_virtio_running(q->virtio);
}

static bool event_index(const struct fvm_virtqueue *q)
{
    return fvm_virtio_has(q->virtio, FVM_VIRTIO_F_EVENT_IDX);
}

static bool geometry_ok(const struct fvm_ram *ram, uint16_t size, uint16_t size_max, uint64_t desc, uint64_t avail,
                        uint64_t used)
{
    return size != 0 && size <= size_max && (size & (size - 1)) == 0 && desc % 16 == 0 && avail % 2 == 0 && used % 4 == 0 &&
           fvm_ram_contains(ram, desc, 16ull * size) && fvm_ram_contains(ram, avail, avail_bytes(size)) &&
           fvm_ram_contains(ram, used, used_bytes(size));
}

static void map_rings(struct fvm_virtqueue *q)
{
    q->desc = fvm_ram_hva(ram_of(q), q->desc_gpa);
    q->avail = fvm_ram_hva(ram_of(q), q->avail_gpa);
    q->used = fvm_ram_hva(ram_of(q), q->used_gpa);
}

void fvm_virtqueue_reset(struct fvm_virtqueue *q)
{
    q->size = q->size_max;
    q->enabled = false;
    q->desc_gpa = q->avail_gpa = q->used_gpa = 0;
    q->msix_vector = FVM_VIRTIO_NO_VECTOR;
    q->next_avail = q->next_used = q->signalled_used = 0;
    q->signalled_valid = false;
    q->desc = q->avail = q->used = NULL;
}

bool fvm_virtqueue_enable(struct fvm_virtqueue *q)
{
    if (!geometry_ok(ram_of(q), q->size, q->size_max, q->desc_gpa, q->avail_gpa, q->used_gpa))
        return false;
    map_rings(q);
    q->enabled = true;
    return true;
}

/* Append one buffer. NULL: done; else what is wrong with it. */
static const char *add_buffer(const struct fvm_virtqueue *q, struct fvm_virtqueue_chain *chain, const struct desc *d)
{
    bool write = d->flags & DESC_WRITE;
    if (d->len == 0)
        return "empty buffer";
    if (write ? 0 : chain->in_count)
        return "buffer to read after a buffer to write";
    if (chain->out_count + chain->in_count >= FVM_VIRTQUEUE_SIZE_MAX)
        return "chain too long";
    void *hva = fvm_ram_map(ram_of(q), d->gpa, d->len);
    if (!hva)
        return "buffer outside memory";
    uint32_t sum, *bytes = write ? &chain->in_bytes : &chain->out_bytes;
    if (__builtin_add_overflow(*bytes, d->len, &sum) || sum > INT32_MAX)
        return "chain of 2 GiB or more";
    *bytes = sum;
    chain->iov[chain->out_count + chain->in_count] = (struct iovec){hva, d->len};
    if (write)
        chain->in_count++;
    else
        chain->out_count++;
    return NULL;
}

/* The descriptors from `at` on in `table`; a chain in the ring may switch once to an indirect table. */
static const char *walk_chain(struct fvm_virtqueue *q, struct fvm_virtqueue_chain *chain, uint16_t at)
{
    const uint8_t *table = q->desc;
    unsigned count = q->size;
    bool indirect = false;
    struct desc d;
    for (unsigned steps = 0; steps <= FVM_VIRTQUEUE_SIZE_MAX; steps++) {
        if (at >= count)
            return "descriptor index out of range";
        memcpy(&d, table + 16u * at, sizeof(d));
        if (d.flags & DESC_INDIRECT) {
            if (indirect || !fvm_virtio_has(q->virtio, FVM_VIRTIO_F_INDIRECT_DESC) || (d.flags & DESC_NEXT))
                return "indirect descriptor where none may be";
            if (d.len == 0 || d.len % 16 || d.len / 16 > FVM_VIRTQUEUE_SIZE_MAX)
                return "indirect table of bad size";
            table = fvm_ram_map(ram_of(q), d.gpa, d.len);
            if (!table)
                return "indirect table outside memory";
            count = d.len / 16;
            indirect = true;
            at = 0;
            continue;
        }
        const char *why = add_buffer(q, chain, &d);
        if (why)
            return why;
        if (!(d.flags & DESC_NEXT))
            return NULL;
        at = d.next;
    }
    return "descriptor loop";
}

int fvm_virtqueue_pop(struct fvm_virtqueue *q, struct fvm_virtqueue_chain *chain)
{
    if (!usable(q))
        return 0;
    uint16_t waiting = (uint16_t)(load16(q->avail + 2) - q->next_avail);
    if (waiting == 0) {
        fvm_virtqueue_want_notify(q, true);
        waiting = (uint16_t)(load16(q->avail + 2) - q->next_avail); /* the driver may have been between the two */
        if (waiting == 0)
            return 0;
    }
    if (waiting > q->size) {
        fvm_virtio_broken(q->virtio, q->index, "available index jumped");
        return FVM_EPROTO;
    }
    uint16_t head = load16(q->avail + 4 + 2u * (q->next_avail & (q->size - 1u)));
    chain->head = head;
    chain->out_count = chain->in_count = 0;
    chain->out_bytes = chain->in_bytes = 0;
    const char *why = walk_chain(q, chain, head);
    if (why) {
        fvm_virtio_broken(q->virtio, q->index, why);
        return FVM_EPROTO;
    }
    q->next_avail++;
    return 1;
}

void fvm_virtqueue_unpop(struct fvm_virtqueue *q, unsigned count)
{
    q->next_avail = (uint16_t)(q->next_avail - count);
}

void fvm_virtqueue_mark_in(struct fvm_virtqueue *q, const struct fvm_virtqueue_chain *chain, uint32_t bytes)
{
    struct fvm_ram *ram = ram_of(q);
    for (int i = chain->out_count; i < chain->out_count + chain->in_count && bytes; i++) {
        uint32_t len = (uint32_t)FVM_MIN(chain->iov[i].iov_len, (size_t)bytes);
        fvm_ram_mark_written(ram, (uint64_t)((uint8_t *)chain->iov[i].iov_base - ram->base), len);
        bytes -= len;
    }
}

void fvm_virtqueue_push(struct fvm_virtqueue *q, const struct fvm_virtqueue_chain *chain, uint32_t written)
{
    fvm_assert(written <= chain->in_bytes);
    fvm_virtqueue_mark_in(q, chain, written);
    fvm_virtqueue_push_head(q, chain->head, written);
}

void fvm_virtqueue_push_head(struct fvm_virtqueue *q, uint16_t head, uint32_t written)
{
    if (!q->enabled)
        return;
    uint32_t elem[2] = {head, written};
    uint64_t offset = 4 + 8u * (q->next_used & (q->size - 1u));
    memcpy(q->used + offset, elem, sizeof(elem));
    fvm_ram_mark_written(ram_of(q), q->used_gpa + offset, sizeof(elem));
    store16(q, 2, ++q->next_used);
}

void fvm_virtqueue_interrupt(struct fvm_virtqueue *q)
{
    if (!usable(q))
        return;
    __atomic_thread_fence(__ATOMIC_SEQ_CST); /* the used index is out before the driver's wish is read */
    if (event_index(q)) {
        uint16_t old = q->signalled_used;
        bool valid = q->signalled_valid;
        if (valid && old == q->next_used)
            return;
        uint16_t event = load16(q->avail + 4 + 2u * q->size);
        q->signalled_used = q->next_used;
        q->signalled_valid = true;
        if (valid && (uint16_t)(q->next_used - event - 1) >= (uint16_t)(q->next_used - old))
            return;
    } else if (load16(q->avail) & AVAIL_NO_INTERRUPT) {
        return;
    }
    fvm_virtio_queue_interrupt(q->virtio, q);
}

void fvm_virtqueue_want_notify(struct fvm_virtqueue *q, bool want)
{
    if (!usable(q))
        return;
    if (!event_index(q)) {
        uint16_t flags = want ? 0 : USED_NO_NOTIFY;
        if (load16(q->used) != flags)
            store16(q, 0, flags);
    } else if (want) {
        store16(q, 4 + 8u * q->size, q->next_avail);
    } /* event index, not wanted: the old event stays behind, so no notification comes until the index wraps to it */
    __atomic_thread_fence(__ATOMIC_SEQ_CST); /* the wish is out before the driver's index is read again */
}

static size_t iov_copy(const struct iovec *iov, int count, size_t skip, uint8_t *buf, size_t len, bool to_iov)
{
    size_t copied = 0;
    for (int i = 0; i < count && copied < len; i++) {
        if (skip >= iov[i].iov_len) {
            skip -= iov[i].iov_len;
            continue;
        }
        size_t n = FVM_MIN(iov[i].iov_len - skip, len - copied);
        uint8_t *at = (uint8_t *)iov[i].iov_base + skip;
        if (to_iov)
            memcpy(at, buf + copied, n);
        else
            memcpy(buf + copied, at, n);
        copied += n;
        skip = 0;
    }
    return copied;
}

size_t fvm_iov_read(const struct iovec *iov, int count, size_t skip, void *buf, size_t len)
{
    return iov_copy(iov, count, skip, buf, len, false);
}

size_t fvm_iov_write(const struct iovec *iov, int count, size_t skip, const void *buf, size_t len)
{
    return iov_copy(iov, count, skip, (uint8_t *)(uintptr_t)buf, len, true);
}

void fvm_virtqueue_save(const struct fvm_virtqueue *q, Fvm__VirtioQueueState *state)
{
    state->size = q->size;
    state->enabled = q->enabled;
    state->desc = q->desc_gpa;
    state->driver = q->avail_gpa;
    state->device = q->used_gpa;
    state->msix_vector = q->msix_vector;
    state->next_avail = q->next_avail;
    state->next_used = q->next_used;
    state->signalled_used = q->signalled_used;
    state->signalled_valid = q->signalled_valid;
}

const char *fvm_virtqueue_check(const struct fvm_virtqueue *q, const Fvm__VirtioQueueState *state, unsigned vectors, bool broken)
{
    if (state->size > UINT16_MAX || state->next_avail > UINT16_MAX || state->next_used > UINT16_MAX ||
        state->signalled_used > UINT16_MAX)
        return "queue field out of range";
    if (state->msix_vector != FVM_VIRTIO_NO_VECTOR && state->msix_vector >= vectors)
        return "queue vector out of range";
    if (state->enabled && !geometry_ok(ram_of(q), (uint16_t)state->size, q->size_max, state->desc, state->driver, state->device))
        return "queue rings unacceptable";
    if (state->next_avail != state->next_used && !broken)
        return "queue saved with requests in flight";
    return NULL;
}

void fvm_virtqueue_restore(struct fvm_virtqueue *q, const Fvm__VirtioQueueState *state)
{
    q->size = (uint16_t)state->size;
    q->enabled = state->enabled;
    q->desc_gpa = state->desc;
    q->avail_gpa = state->driver;
    q->used_gpa = state->device;
    q->msix_vector = (uint16_t)state->msix_vector;
    q->next_avail = (uint16_t)state->next_avail;
    q->next_used = (uint16_t)state->next_used;
    q->signalled_used = (uint16_t)state->signalled_used;
    q->signalled_valid = state->signalled_valid;
    q->desc = q->avail = q->used = NULL;
    if (q->enabled)
        map_rings(q);
}
