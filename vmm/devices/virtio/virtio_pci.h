/*
 * virtio_pci.h - what all virtio chips share: the modern PCI transport (virtio 1.2, section 4.1). For virtio chips only.
 *
 * A chip embeds struct fvm_virtio first, fills a struct fvm_virtio_class, calls fvm_virtio_init in its create, and forwards
 * its device operations. A queue is run (class->run) when the driver notifies, at resume, and when deferred.
 *
 *   BAR 1  MSI-X table: vector 0 for configuration, 1 + n for queue n (a hint: the driver chooses)
 *   BAR 4  0x0000 common, 0x1000 interrupt status, 0x2000 device configuration, 0x3000 notify (4 bytes per queue)
 *
 * Board lock held everywhere.
 */
#ifndef FVM_VMM_DEVICES_VIRTIO_VIRTIO_PCI_H
#define FVM_VMM_DEVICES_VIRTIO_VIRTIO_PCI_H

#include "vmm/devices/pci.h"
#include "vmm/devices/virtio/virtqueue.h"

enum { FVM_VIRTIO_QUEUES_MAX = 4, FVM_VIRTIO_CONFIG_MAX = 64 };

enum { /* feature bits common to all */
    FVM_VIRTIO_F_INDIRECT_DESC = 28,
    FVM_VIRTIO_F_EVENT_IDX = 29,
    FVM_VIRTIO_F_VERSION_1 = 32,
};

enum { /* device status */
    FVM_VIRTIO_S_ACKNOWLEDGE = 1,
    FVM_VIRTIO_S_DRIVER = 2,
    FVM_VIRTIO_S_DRIVER_OK = 4,
    FVM_VIRTIO_S_FEATURES_OK = 8,
    FVM_VIRTIO_S_NEEDS_RESET = 64,
    FVM_VIRTIO_S_FAILED = 128,
};

struct fvm_virtio;

struct fvm_virtio_class {
    uint16_t type;       /* virtio device id: 1 net, 2 block... */
    uint32_t pci_class;
    uint16_t queue_sizes[FVM_VIRTIO_QUEUES_MAX]; /* 0 ends */
    unsigned inline_queues; /* bit n: run queue n in the notifying vCPU's thread; else on the loop */
    /* The whole device configuration, FVM_VIRTIO_CONFIG_MAX bytes, zeroed before. */
    void (*config_get)(struct fvm_virtio *v, uint8_t *config);
    /* The driver wrote; may be NULL. */
    void (*config_set)(struct fvm_virtio *v, unsigned offset, unsigned size, uint32_t value);
    /* Work on queue n; called with the device running and not quiesced. */
    void (*run)(struct fvm_virtio *v, unsigned queue);
    /* The driver resets the device (or the board does): drop what is in flight, nothing may touch the rings afterwards. NULL: nothing. */
    void (*reset)(struct fvm_virtio *v);
};

struct fvm_virtio { /* first member of each virtio chip. Board lock. */
    struct fvm_device dev;
    struct fvm_pci_function pci;
    const struct fvm_virtio_class *class;
    uint64_t offered;  /* feature bits */
    uint64_t features; /* as the driver accepted */
    uint8_t status, isr, config_generation;
    uint16_t config_msix_vector, queue_select;
    uint32_t device_feature_select, driver_feature_select;
    unsigned queue_count;
    struct fvm_virtqueue queue[FVM_VIRTIO_QUEUES_MAX];
    unsigned pci_cfg_cap; /* config space offset of the window capability */
    bool quiesced;
    unsigned broken_count; /* times that the rings made no sense */
    int defer_event;      /* eventfd */
    struct fvm_loop_io *defer_io;
    unsigned deferred;    /* bit per queue */
};

/** v is zeroed. offered: the chip's own bits; the common ones are added. Device ops of the chip start with quiesced false. */
int fvm_virtio_init(struct fvm_virtio *v, struct fvm_board *board, struct fvm_pci_host *host, uint8_t slot,
                    const char *instance, const struct fvm_device_ops *ops, const struct fvm_virtio_class *class,
                    uint64_t offered);
void fvm_virtio_fini(struct fvm_virtio *v);

static inline bool fvm_virtio_has(const struct fvm_virtio *v, unsigned feature)
{
    return (v->features >> feature) & 1;
}
/** The driver is up, nothing is broken, DMA is allowed. */
bool fvm_virtio_running(const struct fvm_virtio *v);
/** Running, and the VM is not being saved. */
static inline bool fvm_virtio_open(const struct fvm_virtio *v)
{
    return !v->quiesced && fvm_virtio_running(v);
}
/** The guest's rings make no sense: stop until reset, tell the driver. */
void fvm_virtio_broken(struct fvm_virtio *v, unsigned queue, const char *why);
/** Run queue n on the loop, soon. */
void fvm_virtio_defer(struct fvm_virtio *v, unsigned queue);
void fvm_virtio_queue_interrupt(struct fvm_virtio *v, const struct fvm_virtqueue *q);
/** Device configuration changed: new generation, configuration interrupt. */
void fvm_virtio_config_changed(struct fvm_virtio *v);

/* Device operations as they are for a chip with nothing to add, and called by those of one that has. dev: an fvm_virtio's. */
void fvm_virtio_reset(struct fvm_device *dev);
void fvm_virtio_quiesce(struct fvm_device *dev);
void fvm_virtio_resume(struct fvm_device *dev);
/* The common part of the others. */
/** Packs a chip's message (fvm_device_pack) with the common state at *slot, its member "virtio"; NULL again after. */
int fvm_virtio_save(const struct fvm_virtio *v, const ProtobufCMessage *msg, Fvm__VirtioState **slot, uint8_t **ret_buf,
                    size_t *ret_len);
int fvm_virtio_check(const struct fvm_virtio *v, const Fvm__VirtioState *state, struct fvm_err *err);
void fvm_virtio_restore(struct fvm_virtio *v, const Fvm__VirtioState *state);

#endif
