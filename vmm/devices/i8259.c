/*
 * i8259.c - two 8259A interrupt controllers, cascaded on the master's input 2, and the edge/level control registers.
 *
 *   lines 0..15 of the board -> inputs 0..7 master, 8..15 slave -> IRR & ~IMR, above ISR -> INTR -> LINT0
 *
 * Board line 2 is ISA IRQ 0 (the timer), as the ioapic numbers lines; board line 0 is wired to nothing. Invariant:
 * after every change of state settle() has brought the slave's output to the master and the master's to the
 * processor.
 */
#include "vmm/devices/i8259.h"

#include <stdlib.h>

#include "proto/device_state.pb-c.h"
#include "vmm/devices/pack.h"

enum { CASCADE = 2, ELCR_MASTER = 0xf8, ELCR_SLAVE = 0xde, ELCR_SLAVE_RESET = 0x0e /* 9, 10, 11: ACPI and PCI */ };

struct chip {
    uint8_t irr, isr, imr, vector_base, elcr, lines;
    uint8_t init_step; /* ICW expected next: 2..4, 0 when ready */
    uint8_t lowest;    /* input of lowest priority: 7 unless rotated */
    bool icw4_needed, auto_eoi, rotate_auto_eoi, special_nested, special_mask, read_isr, poll, single;
};

struct i8259 {
    struct fvm_device dev;
    struct chip chip[2]; /* master, slave */
    void (*output)(void *ctx, bool level);
    void *output_ctx;
    int claim_id[3];
};

/* Rank of the most urgent bit: 0 is highest; 8 when none is set. */
static unsigned rank(const struct chip *c, unsigned bits)
{
    for (unsigned r = 0; r < 8; r++)
        if (bits & (1u << ((c->lowest + 1 + r) & 7)))
            return r;
    return 8;
}

/* Input that would interrupt now, or -1. */
static int requesting(const struct chip *c, bool master)
{
    unsigned wanted = rank(c, c->irr & ~c->imr & 0xffu);
    unsigned busy_bits = c->isr;
    unsigned busy;

    if (c->special_mask)
        busy_bits &= ~c->imr & 0xffu;
    if (master && c->special_nested)
        busy_bits &= ~(1u << CASCADE); /* the slave may interrupt its own service */
    busy = rank(c, busy_bits);
    return wanted < busy ? (int)((c->lowest + 1 + wanted) & 7) : -1;
}

static void set_input(struct chip *c, unsigned input, bool level)
{
    uint8_t bit = (uint8_t)(1u << input);

    if (c->elcr & bit)
        c->irr = level ? c->irr | bit : c->irr & (uint8_t)~bit;
    else if (level && !(c->lines & bit))
        c->irr |= bit;
    c->lines = level ? c->lines | bit : c->lines & (uint8_t)~bit;
}

static void settle(struct i8259 *p)
{
    bool slave = requesting(&p->chip[1], false) >= 0;
    uint8_t bit = 1u << CASCADE;

    /* the cascade input follows the slave's output: a request that went away takes its latch with it */
    p->chip[0].lines = slave ? p->chip[0].lines | bit : p->chip[0].lines & (uint8_t)~bit;
    p->chip[0].irr = slave ? p->chip[0].irr | bit : p->chip[0].irr & (uint8_t)~bit;
    p->output(p->output_ctx, requesting(&p->chip[0], true) >= 0);
}

static void line_changed(void *ctx, unsigned line, bool level)
{
    struct i8259 *p = ctx;
    unsigned irq = line == 2 ? 0 : line;

    if (line == 0 || line > 15)
        return;
    set_input(&p->chip[irq >> 3], irq & 7, level);
    settle(p);
}

static void acknowledge(struct chip *c, unsigned input)
{
    uint8_t bit = (uint8_t)(1u << input);

    if (!(c->elcr & bit))
        c->irr &= (uint8_t)~bit;
    if (!c->auto_eoi)
        c->isr |= bit;
    else if (c->rotate_auto_eoi)
        c->lowest = (uint8_t)input;
}

int fvm_i8259_intack(void *i8259_dev)
{
    struct i8259 *p = i8259_dev;
    int input = requesting(&p->chip[0], true);
    int vector;

    if (input < 0) {
        vector = p->chip[0].vector_base | 7; /* spurious: nothing goes in service */
    } else if (input != CASCADE) {
        acknowledge(&p->chip[0], (unsigned)input);
        vector = p->chip[0].vector_base | input;
    } else {
        int second = requesting(&p->chip[1], false);

        acknowledge(&p->chip[0], CASCADE);
        if (second >= 0)
            acknowledge(&p->chip[1], (unsigned)second);
        vector = p->chip[1].vector_base | (second < 0 ? 7 : second);
    }
    settle(p);
    return vector;
}

/* ---- registers ---- */

static void write_icw1(struct chip *c, uint8_t value)
{
    uint8_t elcr = c->elcr, lines = c->lines;

    *c = (struct chip){.elcr = elcr, .lines = lines, .lowest = 7, .init_step = 2};
    c->irr = lines & elcr; /* latched edges are forgotten, levels stay */
    c->icw4_needed = value & 1;
    c->single = value & 2;
}

static void write_ocw2(struct chip *c, uint8_t value)
{
    unsigned command = value >> 5, input = value & 7;
    unsigned r;

    switch (command) {
    case 0: /* rotate in auto EOI: clear, set */
    case 4:
        c->rotate_auto_eoi = command == 4;
        break;
    case 1: /* EOI, plain or with rotation */
    case 5:
        r = rank(c, c->isr);
        if (r < 8) {
            input = (c->lowest + 1 + r) & 7;
            c->isr &= (uint8_t)~(1u << input);
            if (command == 5)
                c->lowest = (uint8_t)input;
        }
        break;
    case 3: /* specific EOI */
    case 7:
        c->isr &= (uint8_t)~(1u << input);
        if (command == 7)
            c->lowest = (uint8_t)input;
        break;
    case 6:
        c->lowest = (uint8_t)input;
        break;
    default:
        break;
    }
}

static void write_ocw3(struct chip *c, uint8_t value)
{
    if (value & 4)
        c->poll = true;
    if (value & 2)
        c->read_isr = value & 1;
    if (value & 0x40)
        c->special_mask = value & 0x20;
}

static void write_data(struct chip *c, uint8_t value)
{
    switch (c->init_step) {
    case 2:
        c->vector_base = value & 0xf8;
        c->init_step = c->single ? (c->icw4_needed ? 4 : 0) : 3;
        break;
    case 3: /* who is cascaded where: wired on this board */
        c->init_step = c->icw4_needed ? 4 : 0;
        break;
    case 4:
        c->special_nested = (value >> 4) & 1;
        c->auto_eoi = (value >> 1) & 1;
        c->init_step = 0;
        break;
    default:
        c->imr = value;
        break;
    }
}

static void chip_write(struct i8259 *p, unsigned which, uint64_t offset, uint64_t value)
{
    struct chip *c = &p->chip[which];

    if (offset & 1)
        write_data(c, (uint8_t)value);
    else if (value & 0x10)
        write_icw1(c, (uint8_t)value);
    else if (value & 8)
        write_ocw3(c, (uint8_t)value);
    else
        write_ocw2(c, (uint8_t)value);
    settle(p);
}

static uint64_t chip_read(struct i8259 *p, unsigned which, uint64_t offset)
{
    struct chip *c = &p->chip[which];

    if (c->poll) { /* the next read after the poll command is an acknowledge */
        int input = requesting(c, which == 0);

        c->poll = false;
        if (input < 0)
            return 0;
        acknowledge(c, (unsigned)input);
        settle(p);
        return 0x80u | (unsigned)input;
    }
    if (offset & 1)
        return c->imr;
    return c->read_isr ? c->isr : c->irr;
}

static uint64_t master_read(void *ctx, uint64_t offset, unsigned size)
{
    (void)size;
    return chip_read(ctx, 0, offset);
}

static void master_write(void *ctx, uint64_t offset, unsigned size, uint64_t value)
{
    (void)size;
    chip_write(ctx, 0, offset, value & 0xff);
}

static uint64_t slave_read(void *ctx, uint64_t offset, unsigned size)
{
    (void)size;
    return chip_read(ctx, 1, offset);
}

static void slave_write(void *ctx, uint64_t offset, unsigned size, uint64_t value)
{
    (void)size;
    chip_write(ctx, 1, offset, value & 0xff);
}

static uint64_t elcr_read(void *ctx, uint64_t offset, unsigned size)
{
    struct i8259 *p = ctx;

    return size == 1 ? p->chip[offset & 1].elcr : (uint64_t)p->chip[0].elcr | (uint64_t)p->chip[1].elcr << 8;
}

static void elcr_set(struct chip *c, uint8_t value)
{
    uint8_t changed = c->elcr ^ value;

    c->elcr = value;
    c->irr = (uint8_t)((c->irr & ~changed) | (c->lines & value & changed));
}

static void elcr_write(void *ctx, uint64_t offset, unsigned size, uint64_t value)
{
    struct i8259 *p = ctx;

    if (size == 1) {
        elcr_set(&p->chip[offset & 1], (uint8_t)(value & (offset & 1 ? ELCR_SLAVE : ELCR_MASTER)));
    } else {
        elcr_set(&p->chip[0], (uint8_t)(value & ELCR_MASTER));
        elcr_set(&p->chip[1], (uint8_t)((value >> 8) & ELCR_SLAVE));
    }
    settle(p);
}

static const struct fvm_bus_ops port_ops[3] = {
    {.read = master_read, .write = master_write},
    {.read = slave_read, .write = slave_write},
    {.read = elcr_read, .write = elcr_write},
};

/* ---- lifecycle ---- */

static void i8259_reset(struct fvm_device *dev)
{
    struct i8259 *p = (struct i8259 *)dev;

    for (unsigned i = 0; i < 2; i++) {
        struct chip *c = &p->chip[i];

        *c = (struct chip){.lines = c->lines, .lowest = 7, .elcr = i ? ELCR_SLAVE_RESET : 0};
        c->irr = c->lines & c->elcr;
        c->vector_base = i ? 0x70 : 0x08; /* as a PC's firmware leaves them, all masked */
        c->imr = 0xff;
    }
    settle(p);
}

static void i8259_destroy(struct fvm_device *dev)
{
    struct i8259 *p = (struct i8259 *)dev;

    for (unsigned i = 0; i < 3; i++)
        fvm_bus_release(dev->board->bus, p->claim_id[i]);
    free(p);
}

static int i8259_save(struct fvm_device *dev, uint8_t **ret_buf, size_t *ret_len)
{
    struct i8259 *p = (struct i8259 *)dev;
    Fvm__I8259State state = FVM__I8259_STATE__INIT;
    Fvm__I8259ChipState chips[2], *pointers[2] = {&chips[0], &chips[1]};

    for (unsigned i = 0; i < 2; i++) {
        const struct chip *c = &p->chip[i];
        Fvm__I8259ChipState *s = &chips[i];

        fvm__i8259_chip_state__init(s);
        s->irr = c->irr;
        s->isr = c->isr;
        s->imr = c->imr;
        s->vector_base = c->vector_base;
        s->elcr = c->elcr;
        s->lines = c->lines;
        s->init_step = c->init_step;
        s->lowest = c->lowest;
        s->icw4_needed = c->icw4_needed;
        s->auto_eoi = c->auto_eoi;
        s->rotate_auto_eoi = c->rotate_auto_eoi;
        s->special_nested = c->special_nested;
        s->special_mask = c->special_mask;
        s->read_isr = c->read_isr;
        s->poll = c->poll;
        s->single = c->single;
    }
    state.n_chips = 2;
    state.chips = pointers;
    return fvm_device_pack(&state.base, ret_buf, ret_len);
}

static const char *check_chip(const Fvm__I8259ChipState *s, bool slave)
{
    if ((s->irr | s->isr | s->imr | s->lines) & ~0xffu)
        return "IRR, ISR, IMR or lines wider than 8 bits";
    if (s->vector_base & ~0xf8u)
        return "vector base";
    if (s->elcr & ~(uint32_t)(slave ? ELCR_SLAVE : ELCR_MASTER))
        return "ELCR";
    if (s->init_step == 1 || s->init_step > 4)
        return "initialization step";
    if (s->lowest > 7)
        return "lowest priority input";
    return NULL;
}

static int i8259_check(struct fvm_device *dev, const uint8_t *buf, size_t len, struct fvm_err *err)
{
    Fvm__I8259State *state = (void *)fvm_device_unpack(&fvm__i8259_state__descriptor, dev, buf, len, err);
    const char *wrong = NULL;

    if (!state)
        return FVM_EBADIMAGE;
    if (state->n_chips != 2)
        wrong = "number of chips";
    for (unsigned i = 0; !wrong && i < 2; i++)
        wrong = check_chip(state->chips[i], i);
    fvm__i8259_state__free_unpacked(state, NULL);
    return wrong ? fvm_device_refuse(dev, err, wrong) : 0;
}

static void i8259_restore(struct fvm_device *dev, const uint8_t *buf, size_t len)
{
    struct i8259 *p = (struct i8259 *)dev;
    Fvm__I8259State *state = fvm__i8259_state__unpack(NULL, len, buf);

    fvm_assert(state && state->n_chips == 2);
    for (unsigned i = 0; i < 2; i++) {
        const Fvm__I8259ChipState *s = state->chips[i];

        p->chip[i] = (struct chip){
            .irr = (uint8_t)s->irr, .isr = (uint8_t)s->isr, .imr = (uint8_t)s->imr, .lines = (uint8_t)s->lines,
            .vector_base = (uint8_t)s->vector_base, .elcr = (uint8_t)s->elcr, .init_step = (uint8_t)s->init_step,
            .lowest = (uint8_t)s->lowest, .icw4_needed = s->icw4_needed, .auto_eoi = s->auto_eoi,
            .rotate_auto_eoi = s->rotate_auto_eoi, .special_nested = s->special_nested, .special_mask = s->special_mask,
            .read_isr = s->read_isr, .poll = s->poll, .single = s->single,
        };
    }
    fvm__i8259_state__free_unpacked(state, NULL);
}

static const struct fvm_device_ops i8259_ops = {
    .name = "i8259",
    .destroy = i8259_destroy,
    .reset = i8259_reset,
    .save = i8259_save,
    .check = i8259_check,
    .restore = i8259_restore,
};

int fvm_i8259_create(struct fvm_board *board, void (*output)(void *ctx, bool level), void *ctx,
                     struct fvm_device **ret_dev)
{
    static const uint16_t port[3] = {0x20, 0xa0, 0x4d0};
    struct i8259 *p = calloc(1, sizeof(*p));
    unsigned n;
    int r = 0;

    if (!p)
        return FVM_ENOMEM;
    fvm_device_init(&p->dev, &i8259_ops, "i8259", board);
    p->output = output;
    p->output_ctx = ctx;
    for (n = 0; n < 3; n++) {
        r = fvm_bus_claim(board->bus, FVM_BUS_PIO, port[n], 2, &port_ops[n], p, "i8259", &p->claim_id[n]);
        if (r)
            break;
    }
    if (r) {
        while (n-- > 0)
            fvm_bus_release(board->bus, p->claim_id[n]);
        free(p);
        return r;
    }
    fvm_irq_add_sink(board->irq, line_changed, p);
    i8259_reset(&p->dev);
    *ret_dev = &p->dev;
    return 0;
}
