/*
 * virtqueue.h - one split ring: taking chains of buffers from the driver and giving them back. For virtio chips only.
 *
 *     while (fvm_virtqueue_pop(q, &chain) == 1) {
 *         ... chain.out (driver wrote), chain.in (device writes) ...
 *         fvm_virtqueue_push(q, &chain, written);
 *     }
 *     fvm_virtqueue_interrupt(q);
 *
 * The rings and everything in them belong to a hostile guest that may change them at any time: each descriptor is copied once,
 * checked, and only the copy is used; host addresses in a chain are inside guest RAM. Board lock held.
 */
#ifndef FVM_VMM_DEVICES_VIRTIO_VIRTQUEUE_H
#define FVM_VMM_DEVICES_VIRTIO_VIRTQUEUE_H

#include <sys/uio.h>

#include "proto/device_state.pb-c.h"
#include "vmm/devices/device.h"

#define FVM_VIRTQUEUE_SIZE_MAX 256 /* also the longest chain, indirect or not */
#define FVM_VIRTIO_NO_VECTOR 0xffff

struct fvm_virtio;

struct fvm_virtqueue { /* board lock */
    struct fvm_virtio *virtio;
    unsigned index;
    uint16_t size_max;
    /* as the driver set them up */
    uint16_t size;
    bool enabled;
    uint64_t desc_gpa, avail_gpa, used_gpa;
    uint16_t msix_vector;
    /* ring state */
    uint16_t next_avail, next_used;
    uint16_t signalled_used;
    bool signalled_valid;
    /* hva, valid while enabled */
    uint8_t *desc, *avail, *used;
};

struct fvm_virtqueue_chain {
    uint16_t head;
    int out_count, in_count;
    uint32_t out_bytes, in_bytes;
    struct iovec iov[FVM_VIRTQUEUE_SIZE_MAX]; /* out buffers, then in buffers */
};

static inline struct iovec *fvm_virtqueue_out(struct fvm_virtqueue_chain *chain)
{
    return chain->iov;
}
static inline struct iovec *fvm_virtqueue_in(struct fvm_virtqueue_chain *chain)
{
    return chain->iov + chain->out_count;
}

void fvm_virtqueue_reset(struct fvm_virtqueue *q);
/** Addresses and size are the driver's wish; false: not acceptable (alignment, outside RAM, size). */
bool fvm_virtqueue_enable(struct fvm_virtqueue *q);
/** 1: *chain filled. 0: nothing there (the driver will notify when there is), or the queue is not in use. Negative: the ring is broken, the device now needs a reset. */
int fvm_virtqueue_pop(struct fvm_virtqueue *q, struct fvm_virtqueue_chain *chain);
/** Undo the last `count` pops (their chains not pushed). */
void fvm_virtqueue_unpop(struct fvm_virtqueue *q, unsigned count);
/** Give a chain back. `written`: bytes at the start of its in buffers that the driver may read. */
void fvm_virtqueue_push(struct fvm_virtqueue *q, const struct fvm_virtqueue_chain *chain, uint32_t written);
/** The same by the head alone, for in buffers that are marked already or were not written. */
void fvm_virtqueue_push_head(struct fvm_virtqueue *q, uint16_t head, uint32_t written);
/** Guest RAM behind the chain's in buffers was written (page versions). For a DMA that is not followed by a push of all of it. */
void fvm_virtqueue_mark_in(struct fvm_virtqueue *q, const struct fvm_virtqueue_chain *chain, uint32_t bytes);
/** Interrupt, unless the driver asked for none (flag or event index). */
void fvm_virtqueue_interrupt(struct fvm_virtqueue *q);
/** Ask the driver (not) to notify, while the queue is worked on anyway. A pop that finds nothing asks it to. */
void fvm_virtqueue_want_notify(struct fvm_virtqueue *q, bool want);

/* Copies between a vector and flat memory, from byte `skip` on; return the bytes copied. */
size_t fvm_iov_read(const struct iovec *iov, int count, size_t skip, void *buf, size_t len);
size_t fvm_iov_write(const struct iovec *iov, int count, size_t skip, const void *buf, size_t len);

void fvm_virtqueue_save(const struct fvm_virtqueue *q, Fvm__VirtioQueueState *state);
/** NULL: fine; else what is wrong. Nothing may be in flight in a saved queue. */
const char *fvm_virtqueue_check(const struct fvm_virtqueue *q, const Fvm__VirtioQueueState *state, unsigned vectors, bool broken);
void fvm_virtqueue_restore(struct fvm_virtqueue *q, const Fvm__VirtioQueueState *state);

#endif
