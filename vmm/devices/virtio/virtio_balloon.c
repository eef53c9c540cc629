/*
 * virtio_balloon.c - memory that the guest gives up (virtio 1.2, section 5.5). Queues: 0 inflate, 1 deflate.
 *
 * A page in the balloon goes back to the host (MADV_DONTNEED) and reads as zeros from then on; that is a change of its contents,
 * so its version is marked like any write and a migration sees it. Deflating needs no work: the page comes back on touch.
 * Invariant: only whole pages inside guest RAM are dropped; a page number outside breaks the device, not the host.
 */
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "vmm/devices/pack.h"
#include "vmm/devices/virtio/virtio.h"
#include "vmm/devices/virtio/virtio_pci.h"

#define PFNS_MAX 1024 /* of one request; Linux sends 256 */
#define BUDGET 32

enum { INFLATE, DEFLATE };
enum { F_DEFLATE_ON_OOM = 2 };

struct balloon { /* board lock */
    struct fvm_virtio virtio;
    uint32_t target_pages, actual_pages;
    struct fvm_virtqueue_chain chain;
};

static struct balloon *balloon_of(struct fvm_device *dev)
{
    return FVM_CONTAINER_OF(dev, struct balloon, virtio.dev);
}

static void config_get(struct fvm_virtio *v, uint8_t *config)
{
    const struct balloon *b = FVM_CONTAINER_OF(v, struct balloon, virtio);
    memcpy(config, &b->target_pages, 4);
    memcpy(config + 4, &b->actual_pages, 4);
}

static void config_set(struct fvm_virtio *v, unsigned offset, unsigned size, uint32_t value)
{
    if (offset == 4 && size == 4)
        FVM_CONTAINER_OF(v, struct balloon, virtio)->actual_pages = value;
}

static bool drop_page(struct fvm_ram *ram, uint32_t pfn)
{
    fvm_gpa gpa = (fvm_gpa)pfn << FVM_PAGE_SHIFT;
    void *hva = fvm_ram_map(ram, gpa, FVM_PAGE_SIZE);
    if (!hva)
        return false;
    if (madvise(hva, FVM_PAGE_SIZE, MADV_DONTNEED) == 0)
        fvm_ram_mark_written(ram, gpa, FVM_PAGE_SIZE);
    return true;
}

static void run(struct fvm_virtio *v, unsigned n)
{
    struct balloon *b = FVM_CONTAINER_OF(v, struct balloon, virtio);
    struct fvm_virtqueue *q = &v->queue[n];
    struct fvm_virtqueue_chain *c = &b->chain;
    uint32_t pfns[PFNS_MAX];
    unsigned budget = BUDGET;
    while (budget && fvm_virtqueue_pop(q, c) == 1) {
        size_t count = fvm_iov_read(c->iov, c->out_count, 0, pfns, sizeof(pfns)) / sizeof(pfns[0]);
        for (size_t i = 0; n == INFLATE && i < count; i++) {
            if (!drop_page(v->dev.board->ram, pfns[i])) {
                fvm_virtqueue_unpop(q, 1);
                fvm_virtio_broken(v, n, "balloon page outside memory");
                return;
            }
        }
        fvm_virtqueue_push(q, c, 0);
        budget--;
    }
    fvm_virtqueue_interrupt(q);
    if (!budget)
        fvm_virtio_defer(v, n);
}

void fvm_virtio_balloon_set_target(struct fvm_device *dev, uint64_t bytes)
{
    struct balloon *b = balloon_of(dev);
    uint64_t pages = bytes >> FVM_PAGE_SHIFT;
    b->target_pages = (uint32_t)FVM_MIN(pages, dev->board->ram->page_count);
    fvm_virtio_config_changed(&b->virtio);
}

uint64_t fvm_virtio_balloon_actual(const struct fvm_device *dev)
{
    return (uint64_t)balloon_of((struct fvm_device *)(uintptr_t)dev)->actual_pages << FVM_PAGE_SHIFT;
}

static void class_reset(struct fvm_virtio *v)
{
    FVM_CONTAINER_OF(v, struct balloon, virtio)->actual_pages = 0;
}

static const struct fvm_virtio_class balloon_class = {
    .type = 5,
    .pci_class = 0x00ff00,
    .queue_sizes = {128, 128},
    .config_get = config_get,
    .config_set = config_set,
    .run = run,
    .reset = class_reset,
};

static void destroy(struct fvm_device *dev)
{
    fvm_virtio_fini(&balloon_of(dev)->virtio);
    free(balloon_of(dev));
}

static int save(struct fvm_device *dev, uint8_t **ret_buf, size_t *ret_len)
{
    struct balloon *b = balloon_of(dev);
    Fvm__VirtioBalloonState msg = FVM__VIRTIO_BALLOON_STATE__INIT;
    msg.target_pages = b->target_pages;
    msg.actual_pages = b->actual_pages;
    return fvm_virtio_save(&b->virtio, &msg.base, &msg.virtio, ret_buf, ret_len);
}

static int check(struct fvm_device *dev, const uint8_t *buf, size_t len, struct fvm_err *err)
{
    ProtobufCMessage *m = fvm_device_unpack(&fvm__virtio_balloon_state__descriptor, dev, buf, len, err);
    if (!m)
        return FVM_EBADIMAGE;
    int r = fvm_virtio_check(&balloon_of(dev)->virtio, ((const Fvm__VirtioBalloonState *)m)->virtio, err);
    protobuf_c_message_free_unpacked(m, NULL);
    return r;
}

static void restore(struct fvm_device *dev, const uint8_t *buf, size_t len)
{
    struct balloon *b = balloon_of(dev);
    ProtobufCMessage *m = fvm_device_unpack(&fvm__virtio_balloon_state__descriptor, dev, buf, len, NULL);
    fvm_assert(m);
    const Fvm__VirtioBalloonState *msg = (const Fvm__VirtioBalloonState *)m;
    fvm_virtio_restore(&b->virtio, msg->virtio);
    b->target_pages = msg->target_pages;
    b->actual_pages = msg->actual_pages;
    protobuf_c_message_free_unpacked(m, NULL);
}

static const struct fvm_device_ops balloon_ops = {
    .name = "virtio_balloon",
    .destroy = destroy,
    .reset = fvm_virtio_reset,
    .quiesce = fvm_virtio_quiesce,
    .resume = fvm_virtio_resume,
    .save = save,
    .check = check,
    .restore = restore,
};

int fvm_virtio_balloon_create(struct fvm_board *board, struct fvm_pci_host *host, uint8_t slot, const char *instance,
                              struct fvm_device **ret_dev)
{
    struct balloon *b = calloc(1, sizeof(*b));
    if (!b)
        return FVM_ENOMEM;
    int r = fvm_virtio_init(&b->virtio, board, host, slot, instance, &balloon_ops, &balloon_class, 1u << F_DEFLATE_ON_OOM);
    if (r < 0) {
        free(b);
        return r;
    }
    *ret_dev = &b->virtio.dev;
    return 0;
}
