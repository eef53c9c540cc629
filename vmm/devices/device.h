/*
 * device.h - the contract of every chip on the board.
 *
 * A chip gets all it needs in its create function (bus, irq, clock, ram, loop: struct fvm_board, borrowed) and is known
 * afterwards only by this struct. Lifecycle:
 *   create -> reset -> (accesses, timers) -> quiesce -> save ... check -> restore -> resume -> ... destroy
 * quiesce: finish or park all asynchronous work; after it no callback touches the guest until resume.
 * save/check/restore speak the chip's own protobuf message (proto/device_state.proto), packed. check has no side
 * effects and refuses anything a chip could not be in; restore cannot fail after check said 0.
 * All with the board lock held.
 */
#ifndef FVM_VMM_DEVICES_DEVICE_H
#define FVM_VMM_DEVICES_DEVICE_H

#include "base/clock.h"
#include "base/err.h"
#include "base/loop.h"
#include "vmm/mem/bus.h"
#include "vmm/mem/irq.h"
#include "vmm/mem/ram.h"

struct fvm_board { /* what is injected; all borrowed, alive longer than any device */
    struct fvm_bus *bus;
    struct fvm_irq *irq;
    struct fvm_ram *ram;
    struct fvm_clock *clock;
    struct fvm_loop *loop;
    unsigned cpu_count;
    /* requests to the vm; any of them may be called with the board lock held, none blocks */
    void (*power_off)(void *ctx);
    void (*reset)(void *ctx);
    void (*debug_exit)(void *ctx, unsigned code);
    void *ctx;
};

struct fvm_device;

struct fvm_device_ops {
    const char *name; /* chip, as in the file name: "i8254" */
    void (*destroy)(struct fvm_device *dev);
    void (*reset)(struct fvm_device *dev);
    void (*quiesce)(struct fvm_device *dev); /* may be NULL */
    void (*resume)(struct fvm_device *dev);  /* may be NULL */
    /* Appends the packed message: *ret_buf malloc'd, caller frees. 0 or negative. */
    int (*save)(struct fvm_device *dev, uint8_t **ret_buf, size_t *ret_len);
    int (*check)(struct fvm_device *dev, const uint8_t *buf, size_t len, struct fvm_err *err);
    void (*restore)(struct fvm_device *dev, const uint8_t *buf, size_t len);
};

struct fvm_device { /* first member of each chip's struct */
    const struct fvm_device_ops *ops;
    char instance[24]; /* unique on the board: "i8254", "virtio-blk0" */
    struct fvm_board *board;
};

#endif
