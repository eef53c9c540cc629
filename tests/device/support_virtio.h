/*
 * support_virtio.h - a tiny guest driver for the virtio tests: a board without processors, rings in guest RAM, and all
 * talk to the devices through ports and memory-mapped registers, as a driver would.
 */
#ifndef FVM_TESTS_DEVICE_SUPPORT_VIRTIO_H
#define FVM_TESTS_DEVICE_SUPPORT_VIRTIO_H

#include "vmm/devices/virtio/virtio.h"

#define VT_RAM (16u << 20)

struct vt { /* the machine */
    struct fvm_loop *loop;
    struct fvm_clock *clock;
    struct fvm_bus *bus;
    struct fvm_irq *irq;
    struct fvm_ram *ram;
    struct fvm_board board;
    struct fvm_device *bridge;
    struct fvm_pci_host *host;
    unsigned msi[256]; /* messages by data & 255 */
    bool line[FVM_IRQ_LINES];
};

struct vt_dev { /* a function, as a driver sees it */
    struct vt *vt;
    struct fvm_device *dev;
    uint8_t slot;
    uint64_t common, notify, isr, config; /* addresses, found by the capabilities */
    unsigned window;                      /* config offset of the PCI_CFG capability */
    uint64_t msix_table;
    unsigned msix_cap;
    uint64_t features;
};

struct vt_queue {
    struct vt_dev *d;
    unsigned index;
    uint16_t size;
    uint64_t desc, avail, used, indirect;
    uint16_t next_desc, avail_idx, used_idx;
};

struct vt_buf {
    uint64_t gpa;
    uint32_t len;
    bool write;
};

enum { VT_F_INDIRECT = 28, VT_F_EVENT_IDX = 29, VT_F_VERSION_1 = 32 };

void vt_open(struct vt *vt);
void vt_close(struct vt *vt);
/** The device is made: BARs assigned, capabilities read. */
void vt_attach(struct vt *vt, struct vt_dev *d, struct fvm_device *dev, uint8_t slot);
uint32_t vt_pci_read(struct vt *vt, uint8_t slot, unsigned offset, unsigned size);
void vt_pci_write(struct vt *vt, uint8_t slot, unsigned offset, unsigned size, uint32_t value);
uint64_t vt_read(struct vt_dev *d, uint64_t addr, unsigned size);
void vt_write(struct vt_dev *d, uint64_t addr, unsigned size, uint64_t value);
uint8_t vt_status(struct vt_dev *d);
uint64_t vt_offered(struct vt_dev *d);
/** Reset, ACKNOWLEDGE, DRIVER, features (those offered), FEATURES_OK; true if the device agrees. */
bool vt_negotiate(struct vt_dev *d, uint64_t features);
/** MSI-X on: vector n sends data base + n. */
void vt_msix(struct vt_dev *d, unsigned vectors, uint8_t base);
/** Rings of queue `index` at gpa (64 KiB used), MSI-X vector index + 1. */
void vt_queue_setup(struct vt_dev *d, struct vt_queue *q, unsigned index, uint16_t size, uint64_t gpa);
void vt_driver_ok(struct vt_dev *d);
void vt_set_desc(struct vt_queue *q, unsigned n, uint64_t gpa, uint32_t len, uint16_t flags, uint16_t next);
void vt_offer(struct vt_queue *q, uint16_t head); /* into the available ring */
/** A chain of `count` buffers; indirect when that was negotiated. Returns its head. Does not kick. */
uint16_t vt_post(struct vt_queue *q, const struct vt_buf *bufs, unsigned count);
void vt_kick(struct vt_queue *q);
/** Next used element, if there is one. */
bool vt_used(struct vt_queue *q, uint32_t *ret_head, uint32_t *ret_len);
/** Turn the loop until there is one; false after ten seconds. */
bool vt_wait(struct vt_queue *q, uint32_t *ret_head, uint32_t *ret_len);
/** Turn until nothing happens for a while. */
void vt_settle(struct vt *vt);
void *vt_mem(struct vt *vt, uint64_t gpa);

/** quiesce, save; malloc'd. */
uint8_t *vt_save(struct fvm_device *dev, size_t *ret_len);
/** check and restore; false: check refused. */
bool vt_restore(struct fvm_device *dev, const uint8_t *buf, size_t len);

#endif
