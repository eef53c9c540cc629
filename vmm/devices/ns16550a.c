/*
 * ns16550a.c - universal asynchronous receiver/transmitter (National Semiconductor NS16550A).
 *
 * Characters take no time on the wire: what the guest writes goes to the backend at once; only when the backend takes
 * nothing does the transmitter stay busy (THRE clear) until it says there is room. Input waits outside until the
 * receive FIFO has room, so nothing is ever lost and the overrun error never happens outside loopback.
 *
 * Invariant: after every change of state update() has set the interrupt line to what IIR says.
 */
#include "vmm/devices/ns16550a.h"

#include <stdlib.h>
#include <string.h>

#include "proto/device_state.pb-c.h"
#include "vmm/devices/pack.h"

enum { PORTS = 8, FIFO_BYTES = 16 };
enum { REG_DATA, REG_IER, REG_IIR_FCR, REG_LCR, REG_MCR, REG_LSR, REG_MSR, REG_SCR };
enum { IER_RX = 1, IER_THRE = 2, IER_LINE = 4, IER_MODEM = 8 };
enum { IIR_NONE = 1, IIR_MODEM = 0, IIR_THRE = 2, IIR_RX = 4, IIR_LINE = 6, IIR_TIMEOUT = 12, IIR_FIFO = 0xc0 };
enum { FCR_ENABLE = 1, FCR_CLEAR_RX = 2, FCR_CLEAR_TX = 4 };
enum { LCR_DLAB = 0x80 };
enum { MCR_DTR = 1, MCR_RTS = 2, MCR_OUT1 = 4, MCR_OUT2 = 8, MCR_LOOP = 16 };
enum { LSR_READY = 1, LSR_OVERRUN = 2, LSR_BREAK = 16, LSR_ERRORS = 0x1e, LSR_THRE = 0x20, LSR_EMPTY = 0x40 };
enum { MSR_CTS = 0x10, MSR_DSR = 0x20, MSR_RI = 0x40, MSR_DCD = 0x80 };

struct ns16550a {
    struct fvm_device dev;
    uint8_t ier, lcr, mcr, scr, lsr_errors, msr_delta;
    uint16_t divisor;
    bool fifo_enabled, thre_pending;
    uint8_t trigger;
    uint8_t rx[FIFO_BYTES], tx[FIFO_BYTES];
    unsigned rx_len, tx_len;
    bool want_room;  /* the outside keeps bytes back */
    unsigned line;
    struct fvm_serial_backend backend;
    int claim_id;
};

static unsigned rx_limit(const struct ns16550a *u)
{
    return u->fifo_enabled ? FIFO_BYTES : 1;
}

static uint8_t iir(const struct ns16550a *u)
{
    if ((u->ier & IER_LINE) && u->lsr_errors)
        return IIR_LINE;
    if ((u->ier & IER_RX) && u->rx_len >= (u->fifo_enabled ? u->trigger : 1u))
        return IIR_RX;
    if ((u->ier & IER_RX) && u->fifo_enabled && u->rx_len)
        return IIR_TIMEOUT;
    if ((u->ier & IER_THRE) && u->thre_pending)
        return IIR_THRE;
    if ((u->ier & IER_MODEM) && u->msr_delta)
        return IIR_MODEM;
    return IIR_NONE;
}

static void update(struct ns16550a *u)
{
    /* on a PC, OUT2 gates the interrupt; in loopback the pins are disconnected */
    bool on = iir(u) != IIR_NONE && (u->mcr & MCR_OUT2) && !(u->mcr & MCR_LOOP);

    fvm_irq_set_line(u->dev.board->irq, u->line, on);
}

static uint8_t modem_lines(const struct ns16550a *u)
{
    if (!(u->mcr & MCR_LOOP))
        return MSR_CTS | MSR_DSR | MSR_DCD;
    return (uint8_t)((u->mcr & MCR_RTS ? MSR_CTS : 0) | (u->mcr & MCR_DTR ? MSR_DSR : 0) |
                     (u->mcr & MCR_OUT1 ? MSR_RI : 0) | (u->mcr & MCR_OUT2 ? MSR_DCD : 0));
}

static void receive(struct ns16550a *u, uint8_t byte)
{
    if (u->rx_len < rx_limit(u)) {
        u->rx[u->rx_len++] = byte;
        return;
    }
    u->lsr_errors |= LSR_OVERRUN; /* only loopback can come here */
    if (!u->fifo_enabled)
        u->rx[0] = byte;
}

static void drain_tx(struct ns16550a *u)
{
    size_t taken = u->tx_len;

    if (u->backend.write)
        taken = u->backend.write(u->backend.ctx, u->tx, u->tx_len);
    fvm_assert(taken <= u->tx_len);
    memmove(u->tx, u->tx + taken, u->tx_len - taken);
    u->tx_len -= (unsigned)taken;
    if (u->tx_len == 0)
        u->thre_pending = true;
}

static void transmit(struct ns16550a *u, uint8_t byte)
{
    u->thre_pending = false;
    if (u->mcr & MCR_LOOP) {
        receive(u, byte);
        u->thre_pending = true;
        return;
    }
    if (u->tx_len == FIFO_BYTES)
        return; /* the guest did not look at THRE: lost, as on the chip */
    u->tx[u->tx_len++] = byte;
    drain_tx(u);
}

static void ask_for_input(struct ns16550a *u)
{
    if (!u->want_room || u->rx_len >= rx_limit(u))
        return;
    u->want_room = false;
    if (u->backend.input_room)
        u->backend.input_room(u->backend.ctx);
}

size_t fvm_ns16550a_input(struct fvm_device *dev, const uint8_t *bytes, size_t len)
{
    struct ns16550a *u = (struct ns16550a *)dev;
    size_t taken = 0;

    if (!(u->mcr & MCR_LOOP))
        while (taken < len && u->rx_len < rx_limit(u))
            u->rx[u->rx_len++] = bytes[taken++];
    if (taken < len)
        u->want_room = true;
    update(u);
    return taken;
}

void fvm_ns16550a_output_ready(struct fvm_device *dev)
{
    struct ns16550a *u = (struct ns16550a *)dev;

    if (u->tx_len)
        drain_tx(u);
    update(u);
}

/* ---- registers ---- */

static uint8_t read_data(struct ns16550a *u)
{
    uint8_t byte = u->rx[0];

    if (u->rx_len == 0)
        return 0;
    u->rx_len--;
    memmove(u->rx, u->rx + 1, u->rx_len);
    ask_for_input(u);
    return byte;
}

static uint8_t read_lsr(struct ns16550a *u)
{
    uint8_t value = (uint8_t)(u->lsr_errors | (u->rx_len ? LSR_READY : 0) | (u->tx_len ? 0 : LSR_THRE | LSR_EMPTY));

    u->lsr_errors = 0;
    return value;
}

static uint8_t reg_read(struct ns16550a *u, unsigned reg)
{
    uint8_t value;

    switch (reg) {
    case REG_DATA:
        return u->lcr & LCR_DLAB ? (uint8_t)u->divisor : read_data(u);
    case REG_IER:
        return u->lcr & LCR_DLAB ? (uint8_t)(u->divisor >> 8) : u->ier;
    case REG_IIR_FCR:
        value = iir(u);
        if (value == IIR_THRE)
            u->thre_pending = false;
        return (uint8_t)(value | (u->fifo_enabled ? IIR_FIFO : 0));
    case REG_LCR:
        return u->lcr;
    case REG_MCR:
        return u->mcr;
    case REG_LSR:
        return read_lsr(u);
    case REG_MSR:
        value = modem_lines(u) | u->msr_delta;
        u->msr_delta = 0;
        return value;
    default:
        return u->scr;
    }
}

static void write_ier(struct ns16550a *u, uint8_t value)
{
    if (!(u->ier & IER_THRE) && (value & IER_THRE) && u->tx_len == 0)
        u->thre_pending = true; /* enabling while empty interrupts at once: drivers count on it */
    u->ier = value & 0x0f;
}

static void write_fcr(struct ns16550a *u, uint8_t value)
{
    static const uint8_t trigger[4] = {1, 4, 8, 14};
    bool enable = value & FCR_ENABLE;

    if (enable != u->fifo_enabled)
        value |= FCR_CLEAR_RX | FCR_CLEAR_TX;
    u->fifo_enabled = enable;
    u->trigger = enable ? trigger[value >> 6] : 1;
    if (value & FCR_CLEAR_RX)
        u->rx_len = 0;
    if ((value & FCR_CLEAR_TX) && u->tx_len) {
        u->tx_len = 0;
        u->thre_pending = true;
    }
    ask_for_input(u);
}

static void write_mcr(struct ns16550a *u, uint8_t value)
{
    uint8_t before = modem_lines(u), changed;

    u->mcr = value & 0x1f;
    changed = before ^ modem_lines(u);
    u->msr_delta |= (changed >> 4) & 0x0b;
    if ((changed & MSR_RI) && (before & MSR_RI))
        u->msr_delta |= 4; /* trailing edge of the ring indicator */
    if (!(u->mcr & MCR_LOOP))
        ask_for_input(u);
}

static void reg_write(struct ns16550a *u, unsigned reg, uint8_t value)
{
    switch (reg) {
    case REG_DATA:
        if (u->lcr & LCR_DLAB)
            u->divisor = (uint16_t)((u->divisor & 0xff00) | value);
        else
            transmit(u, value);
        break;
    case REG_IER:
        if (u->lcr & LCR_DLAB)
            u->divisor = (uint16_t)((u->divisor & 0xff) | value << 8);
        else
            write_ier(u, value);
        break;
    case REG_IIR_FCR:
        write_fcr(u, value);
        break;
    case REG_LCR:
        u->lcr = value;
        break;
    case REG_MCR:
        write_mcr(u, value);
        break;
    case REG_SCR:
        u->scr = value;
        break;
    default: /* LSR and MSR are read only outside the factory */
        break;
    }
}

static uint64_t port_read(void *ctx, uint64_t offset, unsigned size)
{
    struct ns16550a *u = ctx;
    uint64_t value = 0;

    for (unsigned i = 0; i < size; i++)
        value |= (uint64_t)reg_read(u, (unsigned)(offset + i) & 7) << (8 * i);
    update(u);
    return value;
}

static void port_write(void *ctx, uint64_t offset, unsigned size, uint64_t value)
{
    struct ns16550a *u = ctx;

    for (unsigned i = 0; i < size; i++)
        reg_write(u, (unsigned)(offset + i) & 7, (uint8_t)(value >> (8 * i)));
    update(u);
}

static const struct fvm_bus_ops port_ops = {.read = port_read, .write = port_write};

/* ---- lifecycle ---- */

static void ns16550a_reset(struct fvm_device *dev)
{
    struct ns16550a *u = (struct ns16550a *)dev;

    u->ier = u->lcr = u->mcr = u->scr = u->lsr_errors = u->msr_delta = 0;
    u->divisor = 12; /* 9600 baud */
    u->fifo_enabled = u->thre_pending = false;
    u->trigger = 1;
    u->rx_len = u->tx_len = 0;
    ask_for_input(u);
    update(u);
}

static void ns16550a_resume(struct fvm_device *dev)
{
    struct ns16550a *u = (struct ns16550a *)dev;

    if (u->tx_len)
        drain_tx(u);
    u->want_room = true; /* after a move the new backend may hold input already */
    ask_for_input(u);
    update(u);
}

static void ns16550a_destroy(struct fvm_device *dev)
{
    struct ns16550a *u = (struct ns16550a *)dev;

    fvm_bus_release(dev->board->bus, u->claim_id);
    free(u);
}

static int ns16550a_save(struct fvm_device *dev, uint8_t **ret_buf, size_t *ret_len)
{
    struct ns16550a *u = (struct ns16550a *)dev;
    Fvm__Ns16550aState state = FVM__NS16550A_STATE__INIT;

    state.ier = u->ier;
    state.lcr = u->lcr;
    state.mcr = u->mcr;
    state.scr = u->scr;
    state.divisor = u->divisor;
    state.fifo_enabled = u->fifo_enabled;
    state.trigger = u->trigger;
    state.rx.data = u->rx;
    state.rx.len = u->rx_len;
    state.tx.data = u->tx;
    state.tx.len = u->tx_len;
    state.thre_pending = u->thre_pending;
    state.lsr_errors = u->lsr_errors;
    state.msr_delta = u->msr_delta;
    return fvm_device_pack(&state.base, ret_buf, ret_len);
}

static int ns16550a_check(struct fvm_device *dev, const uint8_t *buf, size_t len, struct fvm_err *err)
{
    Fvm__Ns16550aState *s = (void *)fvm_device_unpack(&fvm__ns16550a_state__descriptor, dev, buf, len, err);
    const char *wrong = NULL;

    if (!s)
        return FVM_EBADIMAGE;
    if (s->ier > 0x0f || s->lcr > 0xff || s->mcr > 0x1f || s->scr > 0xff || s->divisor > 0xffff)
        wrong = "a register has bits that do not exist";
    else if (s->trigger != 1 && !(s->fifo_enabled && (s->trigger == 4 || s->trigger == 8 || s->trigger == 14)))
        wrong = "FIFO trigger level";
    else if (s->rx.len > (s->fifo_enabled ? FIFO_BYTES : 1) || s->tx.len > FIFO_BYTES)
        wrong = "more bytes than a FIFO holds";
    else if ((s->lsr_errors & ~(uint32_t)LSR_ERRORS) || s->msr_delta > 0x0f)
        wrong = "line or modem status";
    fvm__ns16550a_state__free_unpacked(s, NULL);
    return wrong ? fvm_device_refuse(dev, err, wrong) : 0;
}

static void ns16550a_restore(struct fvm_device *dev, const uint8_t *buf, size_t len)
{
    struct ns16550a *u = (struct ns16550a *)dev;
    Fvm__Ns16550aState *s = fvm__ns16550a_state__unpack(NULL, len, buf);

    fvm_assert(s && s->rx.len <= FIFO_BYTES && s->tx.len <= FIFO_BYTES);
    u->ier = (uint8_t)s->ier;
    u->lcr = (uint8_t)s->lcr;
    u->mcr = (uint8_t)s->mcr;
    u->scr = (uint8_t)s->scr;
    u->divisor = (uint16_t)s->divisor;
    u->fifo_enabled = s->fifo_enabled;
    u->trigger = (uint8_t)s->trigger;
    u->rx_len = (unsigned)s->rx.len;
    u->tx_len = (unsigned)s->tx.len;
    if (u->rx_len)
        memcpy(u->rx, s->rx.data, u->rx_len);
    if (u->tx_len)
        memcpy(u->tx, s->tx.data, u->tx_len);
    u->thre_pending = s->thre_pending;
    u->lsr_errors = (uint8_t)s->lsr_errors;
    u->msr_delta = (uint8_t)s->msr_delta;
    fvm__ns16550a_state__free_unpacked(s, NULL);
    update(u);
}

static const struct fvm_device_ops ns16550a_ops = {
    .name = "ns16550a",
    .destroy = ns16550a_destroy,
    .reset = ns16550a_reset,
    .resume = ns16550a_resume,
    .save = ns16550a_save,
    .check = ns16550a_check,
    .restore = ns16550a_restore,
};

int fvm_ns16550a_create(struct fvm_board *board, uint16_t port, unsigned line, const char *instance,
                        const struct fvm_serial_backend *backend, struct fvm_device **ret_dev)
{
    struct ns16550a *u = calloc(1, sizeof(*u));
    int r;

    if (!u)
        return FVM_ENOMEM;
    fvm_device_init(&u->dev, &ns16550a_ops, instance, board);
    u->line = line;
    if (backend)
        u->backend = *backend;
    r = fvm_bus_claim(board->bus, FVM_BUS_PIO, port, PORTS, &port_ops, u, "ns16550a", &u->claim_id);
    if (r) {
        free(u);
        return r;
    }
    ns16550a_reset(&u->dev);
    *ret_dev = &u->dev;
    return 0;
}
