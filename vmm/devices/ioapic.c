/*
 * ioapic.c - I/O APIC (Intel 82093AA, version 0x20 with the EOI register).
 *
 * A pin that becomes active sends its redirection entry as a message to the local APICs. Edge: once per rising edge;
 * an edge on a masked pin is lost, as the manual says. Level: while the line is high and Remote IRR is clear; the
 * local APIC's EOI broadcast clears Remote IRR and the pin is looked at again.
 *
 * Invariant: a level entry with a high line is either masked or has Remote IRR set.
 */
#include "vmm/devices/ioapic.h"

#include <stdlib.h>
#include <string.h>

#include "proto/device_state.pb-c.h"
#include "vmm/devices/pack.h"

#define PINS FVM_IRQ_LINES
#define VERSION (0x20u | (PINS - 1) << 16)
#define REDIR_DELIVERY_STATUS (1ull << 12)
#define REDIR_LOGICAL (1ull << 11)
#define REDIR_REMOTE_IRR (1ull << 14)
#define REDIR_LEVEL (1ull << 15)
#define REDIR_MASKED (1ull << 16)
#define REDIR_WRITABLE 0xff0000000001afffull /* destination, mask, trigger, polarity, mode, vector */
#define REDIR_RESET REDIR_MASKED

enum { WINDOW_BYTES = 0x1000, REG_SELECT = 0x00, REG_DATA = 0x10, REG_EOI = 0x40 };

struct ioapic {
    struct fvm_device dev;
    uint32_t id;
    uint32_t select;
    uint64_t redirection[PINS];
    uint32_t lines; /* input levels */
    int claim_id;
};

static void send(struct ioapic *io, unsigned pin)
{
    uint64_t r = io->redirection[pin];
    uint64_t addr = 0xfee00000ull | ((r >> 56) & 0xff) << 12 | (r & REDIR_LOGICAL ? 4 : 0);
    uint32_t data = (uint32_t)(r & 0x7ff) | (r & REDIR_LEVEL ? 0xc000u : 0);

    fvm_irq_msi(io->dev.board->irq, addr, data);
}

/* A level pin that may have to be sent (again). */
static void look(struct ioapic *io, unsigned pin)
{
    uint64_t *r = &io->redirection[pin];
    uint32_t bit = 1u << pin;

    if (!(*r & REDIR_MASKED) && (*r & REDIR_LEVEL) && (io->lines & bit) && !(*r & REDIR_REMOTE_IRR)) {
        *r |= REDIR_REMOTE_IRR;
        send(io, pin);
    }
}

static void line_changed(void *ctx, unsigned line, bool level)
{
    struct ioapic *io = ctx;
    uint32_t bit;
    bool rose;

    if (line >= PINS)
        return;
    bit = 1u << line;
    rose = level && !(io->lines & bit);
    io->lines = level ? io->lines | bit : io->lines & ~bit;
    if (io->redirection[line] & REDIR_LEVEL)
        look(io, line);
    else if (rose && !(io->redirection[line] & REDIR_MASKED))
        send(io, line);
}

static void eoi(void *ctx, unsigned vector)
{
    struct ioapic *io = ctx;

    for (unsigned pin = 0; pin < PINS; pin++) {
        uint64_t *r = &io->redirection[pin];

        if ((*r & REDIR_LEVEL) && (*r & REDIR_REMOTE_IRR) && (*r & 0xff) == vector) {
            *r &= ~REDIR_REMOTE_IRR;
            look(io, pin);
        }
    }
}

static uint32_t reg_read(const struct ioapic *io)
{
    unsigned pin = (io->select - 0x10) >> 1;

    switch (io->select) {
    case 0x00:
    case 0x02:
        return io->id << 24;
    case 0x01:
        return VERSION;
    default:
        if (io->select < 0x10 || pin >= PINS)
            return UINT32_MAX;
        return (uint32_t)(io->redirection[pin] >> (io->select & 1 ? 32 : 0));
    }
}

static void redirection_write(struct ioapic *io, unsigned pin, bool high, uint32_t value)
{
    uint64_t *r = &io->redirection[pin];
    uint64_t keep = *r & (REDIR_REMOTE_IRR | REDIR_DELIVERY_STATUS);
    uint64_t new_value = high ? (*r & 0xffffffffull) | (uint64_t)value << 32 : (*r & ~0xffffffffull) | value;

    *r = (new_value & REDIR_WRITABLE) | keep;
    if (!(*r & REDIR_LEVEL))
        *r &= ~REDIR_REMOTE_IRR; /* switching to edge clears it: how old kernels emulate a directed EOI */
    look(io, pin);
}

static void reg_write(struct ioapic *io, uint32_t value)
{
    unsigned pin = (io->select - 0x10) >> 1;

    if (io->select == 0)
        io->id = (value >> 24) & 0xf;
    else if (io->select >= 0x10 && pin < PINS)
        redirection_write(io, pin, io->select & 1, value);
}

static uint64_t mmio_read(void *ctx, uint64_t offset, unsigned size)
{
    struct ioapic *io = ctx;

    (void)size;
    if (offset == REG_SELECT)
        return io->select;
    return offset == REG_DATA ? reg_read(io) : 0;
}

static void mmio_write(void *ctx, uint64_t offset, unsigned size, uint64_t value)
{
    struct ioapic *io = ctx;

    (void)size;
    if (offset == REG_SELECT)
        io->select = (uint32_t)value & 0xff;
    else if (offset == REG_DATA)
        reg_write(io, (uint32_t)value);
    else if (offset == REG_EOI)
        eoi(io, (unsigned)value & 0xff);
}

static const struct fvm_bus_ops mmio_ops = {.read = mmio_read, .write = mmio_write};

static void ioapic_reset(struct fvm_device *dev)
{
    struct ioapic *io = (struct ioapic *)dev;

    io->id = io->select = 0;
    for (unsigned pin = 0; pin < PINS; pin++)
        io->redirection[pin] = REDIR_RESET;
}

static void ioapic_destroy(struct fvm_device *dev)
{
    struct ioapic *io = (struct ioapic *)dev;

    fvm_bus_release(dev->board->bus, io->claim_id);
    free(io);
}

static int ioapic_save(struct fvm_device *dev, uint8_t **ret_buf, size_t *ret_len)
{
    struct ioapic *io = (struct ioapic *)dev;
    Fvm__IoapicState state = FVM__IOAPIC_STATE__INIT;

    state.id = io->id;
    state.select = io->select;
    state.n_redirection = PINS;
    state.redirection = io->redirection;
    state.lines = io->lines;
    return fvm_device_pack(&state.base, ret_buf, ret_len);
}

static int ioapic_check(struct fvm_device *dev, const uint8_t *buf, size_t len, struct fvm_err *err)
{
    Fvm__IoapicState *state = (void *)fvm_device_unpack(&fvm__ioapic_state__descriptor, dev, buf, len, err);
    const char *wrong = NULL;

    if (!state)
        return FVM_EBADIMAGE;
    if (state->id > 15 || state->select > 0xff)
        wrong = "id or register select out of range";
    else if (state->n_redirection != PINS)
        wrong = "number of redirection entries";
    else if (state->lines >> PINS)
        wrong = "lines that do not exist";
    for (unsigned pin = 0; !wrong && pin < PINS; pin++) {
        uint64_t r = state->redirection[pin];

        if ((r & ~(REDIR_WRITABLE | REDIR_REMOTE_IRR)) || ((r & REDIR_REMOTE_IRR) && !(r & REDIR_LEVEL)))
            wrong = "redirection entry";
    }
    fvm__ioapic_state__free_unpacked(state, NULL);
    return wrong ? fvm_device_refuse(dev, err, wrong) : 0;
}

static void ioapic_restore(struct fvm_device *dev, const uint8_t *buf, size_t len)
{
    struct ioapic *io = (struct ioapic *)dev;
    Fvm__IoapicState *state = fvm__ioapic_state__unpack(NULL, len, buf);

    fvm_assert(state && state->n_redirection == PINS);
    io->id = state->id;
    io->select = state->select;
    memcpy(io->redirection, state->redirection, sizeof(io->redirection));
    io->lines = state->lines;
    fvm__ioapic_state__free_unpacked(state, NULL);
}

static const struct fvm_device_ops ioapic_ops = {
    .name = "ioapic",
    .destroy = ioapic_destroy,
    .reset = ioapic_reset,
    .save = ioapic_save,
    .check = ioapic_check,
    .restore = ioapic_restore,
};

int fvm_ioapic_create(struct fvm_board *board, struct fvm_device **ret_dev)
{
    struct ioapic *io = calloc(1, sizeof(*io));
    int r;

    if (!io)
        return FVM_ENOMEM;
    fvm_device_init(&io->dev, &ioapic_ops, "ioapic", board);
    r = fvm_bus_claim(board->bus, FVM_BUS_MMIO, FVM_IOAPIC_BASE, WINDOW_BYTES, &mmio_ops, io, "ioapic", &io->claim_id);
    if (r) {
        free(io);
        return r;
    }
    fvm_irq_add_sink(board->irq, line_changed, io);
    fvm_irq_set_eoi(board->irq, eoi, io);
    ioapic_reset(&io->dev);
    *ret_dev = &io->dev;
    return 0;
}
