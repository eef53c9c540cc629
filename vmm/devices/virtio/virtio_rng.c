/*
 * virtio_rng.c - entropy (virtio 1.2, section 5.4) from the host's getrandom. Stateless but for its queue.
 *
 * Invariant: one request takes at most CHUNK_MAX bytes however large its buffers are, so that a guest cannot keep the loop busy.
 */
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "vmm/devices/pack.h"
#include "vmm/devices/virtio/virtio.h"
#include "vmm/devices/virtio/virtio_pci.h"

#define CHUNK_MAX 4096
#define BUDGET 64

struct rng { /* board lock */
    struct fvm_virtio virtio;
    struct fvm_virtqueue_chain chain;
};

static struct rng *rng_of(struct fvm_device *dev)
{
    return FVM_CONTAINER_OF(dev, struct rng, virtio.dev);
}

static void config_get(struct fvm_virtio *v, uint8_t *config)
{
    (void)v;
    (void)config; /* none */
}

static void run(struct fvm_virtio *v, unsigned n)
{
    struct rng *rng = FVM_CONTAINER_OF(v, struct rng, virtio);
    struct fvm_virtqueue *q = &v->queue[n];
    struct fvm_virtqueue_chain *c = &rng->chain;
    uint8_t bytes[256];
    unsigned budget = BUDGET;
    while (budget && fvm_virtqueue_pop(q, c) == 1) {
        uint32_t want = FVM_MIN(c->in_bytes, (uint32_t)CHUNK_MAX), got = 0;
        while (got < want) {
            ssize_t r = getrandom(bytes, FVM_MIN(want - got, (uint32_t)sizeof(bytes)), 0);
            if (r <= 0)
                break;
            fvm_iov_write(fvm_virtqueue_in(c), c->in_count, got, bytes, (size_t)r);
            got += (uint32_t)r;
        }
        fvm_virtqueue_push(q, c, got);
        budget--;
    }
    fvm_virtqueue_interrupt(q);
    explicit_bzero(bytes, sizeof(bytes));
    if (!budget)
        fvm_virtio_defer(v, n);
}

static const struct fvm_virtio_class rng_class = {
    .type = 4,
    .pci_class = 0x00ff00,
    .queue_sizes = {64},
    .config_get = config_get,
    .run = run,
};

static void destroy(struct fvm_device *dev)
{
    fvm_virtio_fini(&rng_of(dev)->virtio);
    free(rng_of(dev));
}

static int save(struct fvm_device *dev, uint8_t **ret_buf, size_t *ret_len)
{
    Fvm__VirtioRngState msg = FVM__VIRTIO_RNG_STATE__INIT;
    return fvm_virtio_save(&rng_of(dev)->virtio, &msg.base, &msg.virtio, ret_buf, ret_len);
}

static int check(struct fvm_device *dev, const uint8_t *buf, size_t len, struct fvm_err *err)
{
    ProtobufCMessage *m = fvm_device_unpack(&fvm__virtio_rng_state__descriptor, dev, buf, len, err);
    if (!m)
        return FVM_EBADIMAGE;
    int r = fvm_virtio_check(&rng_of(dev)->virtio, ((const Fvm__VirtioRngState *)m)->virtio, err);
    protobuf_c_message_free_unpacked(m, NULL);
    return r;
}

static void restore(struct fvm_device *dev, const uint8_t *buf, size_t len)
{
    ProtobufCMessage *m = fvm_device_unpack(&fvm__virtio_rng_state__descriptor, dev, buf, len, NULL);
    fvm_assert(m);
    fvm_virtio_restore(&rng_of(dev)->virtio, ((const Fvm__VirtioRngState *)m)->virtio);
    protobuf_c_message_free_unpacked(m, NULL);
}

static const struct fvm_device_ops rng_ops = {
    .name = "virtio_rng",
    .destroy = destroy,
    .reset = fvm_virtio_reset,
    .quiesce = fvm_virtio_quiesce,
    .resume = fvm_virtio_resume,
    .save = save,
    .check = check,
    .restore = restore,
};

int fvm_virtio_rng_create(struct fvm_board *board, struct fvm_pci_host *host, uint8_t slot, const char *instance,
                          struct fvm_device **ret_dev)
{
    struct rng *rng = calloc(1, sizeof(*rng));
    if (!rng)
        return FVM_ENOMEM;
    int r = fvm_virtio_init(&rng->virtio, board, host, slot, instance, &rng_ops, &rng_class, 0);
    if (r < 0) {
        free(rng);
        return r;
    }
    *ret_dev = &rng->virtio.dev;
    return 0;
}
