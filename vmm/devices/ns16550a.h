/*
 * ns16550a.h - the serial port. Bytes to and from the outside go through a backend that the vm gives.
 */
#ifndef FVM_VMM_DEVICES_NS16550A_H
#define FVM_VMM_DEVICES_NS16550A_H

#include "vmm/devices/device.h"

/* Called with the board lock held; must not block. */
struct fvm_serial_backend {
    /* Output. Returns how many bytes were taken; fewer than len: call fvm_ns16550a_output_ready when there is room.
     * NULL: discard. */
    size_t (*write)(void *ctx, const uint8_t *bytes, size_t len);
    /* There is room for input again after fvm_ns16550a_input took less than offered. May be NULL. */
    void (*input_room)(void *ctx);
    void *ctx;
};

int fvm_ns16550a_create(struct fvm_board *board, uint16_t port, unsigned line, const char *instance,
                        const struct fvm_serial_backend *backend, struct fvm_device **ret_dev);
/** Offer received bytes; returns how many were taken. Keep the rest until input_room: input is never dropped. */
size_t fvm_ns16550a_input(struct fvm_device *dev, const uint8_t *bytes, size_t len);
void fvm_ns16550a_output_ready(struct fvm_device *dev);

#endif
