/*
 * debug_exit.c - the isa-debug-exit device that test kernels use: a write to port f4 ends the VM with a status.
 * Invariant: the status handed out is (value << 1) | 1, as QEMU's.
 */
#include "vmm/devices/debug_exit.h"

#include <stdlib.h>

#include "proto/device_state.pb-c.h"
#include "vmm/devices/pack.h"

enum { PORT = 0xf4, PORT_LEN = 4 };

struct debug_exit {
    struct fvm_device dev;
    uint32_t last;
    int claim_id;
};

static void port_write(void *ctx, uint64_t offset, unsigned size, uint64_t value)
{
    struct debug_exit *d = ctx;
    const struct fvm_board *board = d->dev.board;

    (void)size;
    if (offset != 0)
        return;
    d->last = (uint32_t)value;
    if (board->debug_exit)
        board->debug_exit(board->ctx, (d->last << 1) | 1);
}

static uint64_t port_read(void *ctx, uint64_t offset, unsigned size)
{
    (void)ctx;
    (void)offset;
    (void)size;
    return 0;
}

static const struct fvm_bus_ops port_ops = {.read = port_read, .write = port_write};

static void debug_exit_reset(struct fvm_device *dev)
{
    ((struct debug_exit *)dev)->last = 0;
}

static void debug_exit_destroy(struct fvm_device *dev)
{
    fvm_bus_release(dev->board->bus, ((struct debug_exit *)dev)->claim_id);
    free(dev);
}

static int debug_exit_save(struct fvm_device *dev, uint8_t **ret_buf, size_t *ret_len)
{
    Fvm__DebugExitState state = FVM__DEBUG_EXIT_STATE__INIT;

    state.last = ((struct debug_exit *)dev)->last;
    return fvm_device_pack(&state.base, ret_buf, ret_len);
}

static int debug_exit_check(struct fvm_device *dev, const uint8_t *buf, size_t len, struct fvm_err *err)
{
    Fvm__DebugExitState *state = (void *)fvm_device_unpack(&fvm__debug_exit_state__descriptor, dev, buf, len, err);

    if (!state)
        return FVM_EBADIMAGE;
    fvm__debug_exit_state__free_unpacked(state, NULL);
    return 0;
}

static void debug_exit_restore(struct fvm_device *dev, const uint8_t *buf, size_t len)
{
    Fvm__DebugExitState *state = fvm__debug_exit_state__unpack(NULL, len, buf);

    fvm_assert(state);
    ((struct debug_exit *)dev)->last = state->last;
    fvm__debug_exit_state__free_unpacked(state, NULL);
}

static const struct fvm_device_ops debug_exit_ops = {
    .name = "debug_exit",
    .destroy = debug_exit_destroy,
    .reset = debug_exit_reset,
    .save = debug_exit_save,
    .check = debug_exit_check,
    .restore = debug_exit_restore,
};

int fvm_debug_exit_create(struct fvm_board *board, struct fvm_device **ret_dev)
{
    struct debug_exit *d = calloc(1, sizeof(*d));
    int r;

    if (!d)
        return FVM_ENOMEM;
    fvm_device_init(&d->dev, &debug_exit_ops, "debug_exit", board);
    r = fvm_bus_claim(board->bus, FVM_BUS_PIO, PORT, PORT_LEN, &port_ops, d, "debug_exit", &d->claim_id);
    if (r) {
        free(d);
        return r;
    }
    *ret_dev = &d->dev;
    return 0;
}
