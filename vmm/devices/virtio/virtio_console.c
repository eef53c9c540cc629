/*
 * virtio_console.c - a console with one port (virtio 1.2, section 5.3): queue 0 to the guest, 1 from it.
 *
 * Nothing is held inside: input that finds no buffer is not taken (the backend keeps it), and of a transmit buffer that the
 * backend took in part only the number of bytes taken is remembered (tx_taken); the buffer stays in the ring until it is all out.
 * Invariant: no byte is dropped or doubled, also over a save and restore in between.
 */
#include <stdlib.h>
#include <string.h>

#include "vmm/devices/pack.h"
#include "vmm/devices/virtio/virtio.h"
#include "vmm/devices/virtio/virtio_pci.h"

#define PIECE 4096
#define BUDGET 64

enum { RX, TX };

struct console { /* board lock */
    struct fvm_virtio virtio;
    struct fvm_serial_backend backend;
    bool input_refused; /* the backend waits for input_room */
    uint32_t tx_taken;
    struct fvm_virtqueue_chain chain;
};

static struct console *console_of(struct fvm_device *dev)
{
    return FVM_CONTAINER_OF(dev, struct console, virtio.dev);
}

static void config_get(struct fvm_virtio *v, uint8_t *config)
{
    (void)v;
    config[4] = 1; /* max_nr_ports; cols and rows belong to VIRTIO_CONSOLE_F_SIZE, not offered */
}

/* --- to the guest --- */

size_t fvm_virtio_console_input(struct fvm_device *dev, const uint8_t *bytes, size_t len)
{
    struct console *con = console_of(dev);
    struct fvm_virtqueue *q = &con->virtio.queue[RX];
    struct fvm_virtqueue_chain *c = &con->chain;
    size_t taken = 0;
    if (fvm_virtio_open(&con->virtio)) {
        for (unsigned budget = BUDGET; budget && taken < len; budget--) {
            if (fvm_virtqueue_pop(q, c) != 1)
                break;
            size_t n = fvm_iov_write(fvm_virtqueue_in(c), c->in_count, 0, bytes + taken, len - taken);
            fvm_virtqueue_push(q, c, (uint32_t)n);
            taken += n;
        }
        if (taken)
            fvm_virtqueue_interrupt(q);
    }
    if (taken < len)
        con->input_refused = true;
    return taken;
}

static void run_rx(struct console *con)
{
    if (!con->input_refused)
        return;
    con->input_refused = false;
    if (con->backend.input_room)
        con->backend.input_room(con->backend.ctx);
}

/* --- from the guest --- */

/* Hand on what is left of the chain from tx_taken on. True: all of it is out. */
static bool tx_chain(struct console *con)
{
    const struct fvm_virtqueue_chain *c = &con->chain;
    uint8_t piece[PIECE];
    while (con->tx_taken < c->out_bytes) {
        size_t n = fvm_iov_read(c->iov, c->out_count, con->tx_taken, piece, sizeof(piece));
        size_t taken = con->backend.write ? con->backend.write(con->backend.ctx, piece, n) : n;
        fvm_assert(taken <= n);
        con->tx_taken += (uint32_t)taken;
        if (taken < n)
            return false;
    }
    return true;
}

static void run_tx(struct console *con)
{
    struct fvm_virtqueue *q = &con->virtio.queue[TX];
    unsigned budget = BUDGET;
    while (budget && fvm_virtqueue_pop(q, &con->chain) == 1) {
        if (!tx_chain(con)) {
            fvm_virtqueue_unpop(q, 1); /* until fvm_virtio_console_output_ready */
            break;
        }
        con->tx_taken = 0;
        fvm_virtqueue_push(q, &con->chain, 0);
        budget--;
    }
    fvm_virtqueue_interrupt(q);
    if (!budget)
        fvm_virtio_defer(&con->virtio, TX);
}

void fvm_virtio_console_output_ready(struct fvm_device *dev)
{
    fvm_virtio_defer(&console_of(dev)->virtio, TX);
}

static void run(struct fvm_virtio *v, unsigned n)
{
    struct console *con = FVM_CONTAINER_OF(v, struct console, virtio);
    if (n == RX)
        run_rx(con);
    else
        run_tx(con);
}

static void class_reset(struct fvm_virtio *v)
{
    FVM_CONTAINER_OF(v, struct console, virtio)->tx_taken = 0;
}

static const struct fvm_virtio_class console_class = {
    .type = 3,
    .pci_class = 0x078000,
    .queue_sizes = {128, 128},
    .config_get = config_get,
    .run = run,
    .reset = class_reset,
};

/* --- device operations --- */

static void destroy(struct fvm_device *dev)
{
    fvm_virtio_fini(&console_of(dev)->virtio);
    free(console_of(dev));
}

static int save(struct fvm_device *dev, uint8_t **ret_buf, size_t *ret_len)
{
    struct console *con = console_of(dev);
    Fvm__VirtioConsoleState msg = FVM__VIRTIO_CONSOLE_STATE__INIT;
    msg.tx_taken = con->tx_taken;
    return fvm_virtio_save(&con->virtio, &msg.base, &msg.virtio, ret_buf, ret_len);
}

static int check(struct fvm_device *dev, const uint8_t *buf, size_t len, struct fvm_err *err)
{
    ProtobufCMessage *m = fvm_device_unpack(&fvm__virtio_console_state__descriptor, dev, buf, len, err);
    if (!m)
        return FVM_EBADIMAGE;
    int r = fvm_virtio_check(&console_of(dev)->virtio, ((const Fvm__VirtioConsoleState *)m)->virtio, err);
    protobuf_c_message_free_unpacked(m, NULL);
    return r;
}

static void restore(struct fvm_device *dev, const uint8_t *buf, size_t len)
{
    struct console *con = console_of(dev);
    ProtobufCMessage *m = fvm_device_unpack(&fvm__virtio_console_state__descriptor, dev, buf, len, NULL);
    fvm_assert(m);
    fvm_virtio_restore(&con->virtio, ((const Fvm__VirtioConsoleState *)m)->virtio);
    con->tx_taken = ((const Fvm__VirtioConsoleState *)m)->tx_taken;
    con->input_refused = true; /* the backend here may have been refused, too: ask it at resume */
    protobuf_c_message_free_unpacked(m, NULL);
}

static const struct fvm_device_ops console_ops = {
    .name = "virtio_console",
    .destroy = destroy,
    .reset = fvm_virtio_reset,
    .quiesce = fvm_virtio_quiesce,
    .resume = fvm_virtio_resume,
    .save = save,
    .check = check,
    .restore = restore,
};

int fvm_virtio_console_create(struct fvm_board *board, struct fvm_pci_host *host, uint8_t slot, const char *instance,
                              const struct fvm_serial_backend *backend, struct fvm_device **ret_dev)
{
    struct console *con = calloc(1, sizeof(*con));
    if (!con)
        return FVM_ENOMEM;
    if (backend)
        con->backend = *backend;
    int r = fvm_virtio_init(&con->virtio, board, host, slot, instance, &console_ops, &console_class, 0);
    if (r < 0) {
        free(con);
        return r;
    }
    *ret_dev = &con->virtio.dev;
    return 0;
}
