/*
 * acpi_pm.c - ACPI fixed hardware (ACPI 6, chapter 4.8) at the PIIX4's usual place, and the reset control register at
 * port cf9.
 *
 * The board is always in ACPI mode (SCI_EN reads 1, there is no SMI command port). Sleeping is S5 only: power off.
 * The timer counts guest time at 3.579545 MHz in 24 bits; its carry is found when somebody looks or, if TMR_EN, by a
 * timer.
 *
 * Invariant: the SCI line is high exactly while an enabled status bit is set.
 */
#include "vmm/devices/acpi_pm.h"

#include <stdlib.h>

#include "proto/device_state.pb-c.h"
#include "vmm/devices/pack.h"

enum { PORT_BASE = 0x600, PORT_LEN = 0x40 };
enum {
    PM1_STATUS = 0x00,
    PM1_ENABLE = 0x02,
    PM1_CONTROL = 0x04,
    PM_TIMER = 0x08,
    GPE0_STATUS = 0x20,
    GPE0_ENABLE = 0x22
};
enum { STS_TIMER = 0x0001, STS_GLOBAL = 0x0020, STS_POWER_BUTTON = 0x0100, STS_RTC = 0x0400, STS_WAKE = 0x8000 };
enum { PM1_STATUS_BITS = STS_TIMER | STS_GLOBAL | STS_POWER_BUTTON | STS_RTC | STS_WAKE,
       PM1_ENABLE_BITS = STS_TIMER | STS_GLOBAL | STS_POWER_BUTTON | STS_RTC };
enum { CONTROL_SCI = 0x0001, CONTROL_SLEEP_TYPE = 0x1c00, CONTROL_SLEEP = 0x2000, SLEEP_S5 = 5, SLEEP_S5_PIIX = 0 /* in SeaBIOS' tables */ };
enum { RESET_CPU = 4, RESET_BITS = 0x0e };
#define TIMER_HZ 3579545u
#define TIMER_HALF (1u << 23) /* the carry is a change of the counter's top bit */

struct acpi_pm {
    struct fvm_device dev;
    uint16_t pm1_status, pm1_enable, pm1_control, gpe0_status, gpe0_enable;
    uint8_t reset_control;
    uint64_t carry_ns;
    unsigned line;
    struct fvm_timer *timer;
    int claim_id;
    uint16_t base; /* 0: not claimed */
};

static uint64_t timer_ticks(uint64_t ns)
{
    return (uint64_t)((unsigned __int128)ns * TIMER_HZ / 1000000000u);
}

static uint64_t next_carry_ns(const struct acpi_pm *a)
{
    uint64_t ticks = (timer_ticks(fvm_clock_ns(a->dev.board->clock)) / TIMER_HALF + 1) * TIMER_HALF;

    return (uint64_t)(((unsigned __int128)ticks * 1000000000u + TIMER_HZ - 1) / TIMER_HZ);
}

static void update(struct acpi_pm *a)
{
    bool sci = (a->pm1_status & a->pm1_enable & PM1_ENABLE_BITS) || (a->gpe0_status & a->gpe0_enable);

    fvm_irq_set_line(a->dev.board->irq, a->line, sci);
    fvm_timer_arm(a->timer, a->pm1_enable & STS_TIMER ? a->carry_ns : UINT64_MAX);
}

static void look_for_carry(struct acpi_pm *a)
{
    if (fvm_clock_ns(a->dev.board->clock) < a->carry_ns)
        return;
    a->pm1_status |= STS_TIMER;
    a->carry_ns = next_carry_ns(a);
}

static void carried(void *ctx)
{
    look_for_carry(ctx);
    update(ctx);
}

void fvm_acpi_pm_power_button(struct fvm_device *dev)
{
    struct acpi_pm *a = (struct acpi_pm *)dev;

    a->pm1_status |= STS_POWER_BUTTON;
    update(a);
}

static uint16_t reg16_read(struct acpi_pm *a, unsigned offset)
{
    uint32_t count;

    switch (offset) {
    case PM1_STATUS:
        look_for_carry(a);
        return a->pm1_status;
    case PM1_ENABLE:
        return a->pm1_enable;
    case PM1_CONTROL:
        return a->pm1_control | CONTROL_SCI;
    case PM_TIMER:
    case PM_TIMER + 2:
        count = (uint32_t)timer_ticks(fvm_clock_ns(a->dev.board->clock)) & 0xffffff;
        return (uint16_t)(count >> (offset == PM_TIMER ? 0 : 16));
    case GPE0_STATUS:
        return a->gpe0_status;
    case GPE0_ENABLE:
        return a->gpe0_enable;
    default:
        return 0;
    }
}

static void control_write(struct acpi_pm *a, uint16_t value)
{
    const struct fvm_board *board = a->dev.board;
    unsigned type = (value & CONTROL_SLEEP_TYPE) >> 10;

    a->pm1_control = value & CONTROL_SLEEP_TYPE;
    if ((value & CONTROL_SLEEP) && (type == SLEEP_S5 || type == SLEEP_S5_PIIX) && board->power_off)
        board->power_off(board->ctx);
}

static void reg16_write(struct acpi_pm *a, unsigned offset, uint16_t value)
{
    switch (offset) {
    case PM1_STATUS:
        look_for_carry(a);
        a->pm1_status &= (uint16_t)~value;
        break;
    case PM1_ENABLE:
        look_for_carry(a);
        a->pm1_enable = value & PM1_ENABLE_BITS;
        break;
    case PM1_CONTROL:
        control_write(a, value);
        break;
    case GPE0_STATUS:
        a->gpe0_status &= (uint16_t)~value;
        break;
    case GPE0_ENABLE:
        a->gpe0_enable = value;
        break;
    default:
        break;
    }
}

static uint64_t port_read(void *ctx, uint64_t offset, unsigned size)
{
    struct acpi_pm *a = ctx;
    unsigned at = (unsigned)offset & ~1u;
    uint64_t value;

    if (size == 4 && at == PM_TIMER) /* both halves of one instant */
        return timer_ticks(fvm_clock_ns(a->dev.board->clock)) & 0xffffff;
    value = reg16_read(a, at);
    if (size == 4)
        value |= (uint64_t)reg16_read(a, at + 2) << 16;
    return value >> (8 * (offset & 1));
}

static void port_write(void *ctx, uint64_t offset, unsigned size, uint64_t value)
{
    struct acpi_pm *a = ctx;
    unsigned at = (unsigned)offset & ~1u;

    if (size == 1) { /* the other byte stays: status bits are cleared by ones, so it is written as zero there */
        unsigned shift = 8 * (offset & 1);
        uint16_t old = at == PM1_STATUS || at == GPE0_STATUS ? 0 : reg16_read(a, at);

        value = (old & ~(0xffu << shift)) | (value & 0xff) << shift;
    }
    reg16_write(a, at, (uint16_t)value);
    if (size == 4)
        reg16_write(a, at + 2, (uint16_t)(value >> 16));
    update(a);
}

static uint64_t reset_read(void *ctx, uint64_t offset, unsigned size)
{
    struct acpi_pm *a = ctx;

    (void)offset;
    (void)size;
    return a->reset_control;
}

static void reset_write(void *ctx, uint64_t offset, unsigned size, uint64_t value)
{
    struct acpi_pm *a = ctx;
    const struct fvm_board *board = a->dev.board;

    (void)offset;
    (void)size;
    a->reset_control = value & RESET_BITS & ~RESET_CPU;
    if ((value & RESET_CPU) && board->reset)
        board->reset(board->ctx);
}

static const struct fvm_bus_ops port_ops = {.read = port_read, .write = port_write};
static const struct fvm_bus_ops reset_ops = {.read = reset_read, .write = reset_write};

void fvm_acpi_pm_move(struct fvm_device *dev, uint16_t base)
{
    struct acpi_pm *a = (struct acpi_pm *)dev;

    if (base == a->base)
        return;
    if (a->base)
        fvm_bus_release(dev->board->bus, a->claim_id);
    a->base = base;
    if (base && fvm_bus_claim(dev->board->bus, FVM_BUS_PIO, base, PORT_LEN, &port_ops, a, "acpi_pm", &a->claim_id))
        a->base = 0;
}

static void acpi_pm_reset(struct fvm_device *dev)
{
    struct acpi_pm *a = (struct acpi_pm *)dev;

    a->pm1_status = a->pm1_enable = a->pm1_control = a->gpe0_status = a->gpe0_enable = 0;
    a->reset_control = 0;
    a->carry_ns = next_carry_ns(a);
    update(a);
}

static void acpi_pm_destroy(struct fvm_device *dev)
{
    struct acpi_pm *a = (struct acpi_pm *)dev;

    fvm_acpi_pm_move(dev, 0);
    fvm_timer_destroy(&a->timer);
    free(a);
}

static int acpi_pm_save(struct fvm_device *dev, uint8_t **ret_buf, size_t *ret_len)
{
    struct acpi_pm *a = (struct acpi_pm *)dev;
    Fvm__AcpiPmState state = FVM__ACPI_PM_STATE__INIT;

    state.pm1_status = a->pm1_status;
    state.pm1_enable = a->pm1_enable;
    state.pm1_control = a->pm1_control;
    state.gpe0_status = a->gpe0_status;
    state.gpe0_enable = a->gpe0_enable;
    state.reset_control = a->reset_control;
    state.carry_ns = a->carry_ns;
    return fvm_device_pack(&state.base, ret_buf, ret_len);
}

static int acpi_pm_check(struct fvm_device *dev, const uint8_t *buf, size_t len, struct fvm_err *err)
{
    Fvm__AcpiPmState *s = (void *)fvm_device_unpack(&fvm__acpi_pm_state__descriptor, dev, buf, len, err);
    const char *wrong = NULL;

    if (!s)
        return FVM_EBADIMAGE;
    if ((s->pm1_status & ~(uint32_t)PM1_STATUS_BITS) || (s->pm1_enable & ~(uint32_t)PM1_ENABLE_BITS) ||
        (s->pm1_control & ~(uint32_t)CONTROL_SLEEP_TYPE))
        wrong = "PM1 registers";
    else if (s->gpe0_status > 0xffff || s->gpe0_enable > 0xffff)
        wrong = "GPE0 registers";
    else if (s->reset_control & ~(uint32_t)(RESET_BITS & ~RESET_CPU))
        wrong = "reset control";
    fvm__acpi_pm_state__free_unpacked(s, NULL);
    return wrong ? fvm_device_refuse(dev, err, wrong) : 0;
}

static void acpi_pm_restore(struct fvm_device *dev, const uint8_t *buf, size_t len)
{
    struct acpi_pm *a = (struct acpi_pm *)dev;
    Fvm__AcpiPmState *s = fvm__acpi_pm_state__unpack(NULL, len, buf);

    fvm_assert(s);
    a->pm1_status = (uint16_t)s->pm1_status;
    a->pm1_enable = (uint16_t)s->pm1_enable;
    a->pm1_control = (uint16_t)s->pm1_control;
    a->gpe0_status = (uint16_t)s->gpe0_status;
    a->gpe0_enable = (uint16_t)s->gpe0_enable;
    a->reset_control = (uint8_t)s->reset_control;
    a->carry_ns = s->carry_ns;
    fvm__acpi_pm_state__free_unpacked(s, NULL);
    update(a);
}

static const struct fvm_device_ops acpi_pm_ops = {
    .name = "acpi_pm",
    .destroy = acpi_pm_destroy,
    .reset = acpi_pm_reset,
    .save = acpi_pm_save,
    .check = acpi_pm_check,
    .restore = acpi_pm_restore,
};

int fvm_acpi_pm_create(struct fvm_board *board, unsigned sci_line, struct fvm_pci_host *host,
                       struct fvm_device **ret_dev)
{
    struct acpi_pm *a = calloc(1, sizeof(*a));
    int r;

    if (!a)
        return FVM_ENOMEM;
    fvm_device_init(&a->dev, &acpi_pm_ops, "acpi_pm", board);
    a->line = sci_line;
    r = fvm_timer_create(board->clock, carried, a, &a->timer);
    if (r) {
        free(a);
        return r;
    }
    fvm_acpi_pm_move(&a->dev, PORT_BASE);
    if (!a->base) {
        fvm_timer_destroy(&a->timer);
        free(a);
        return FVM_ENOMEM;
    }
    fvm_pci_host_set_cf9(host, &reset_ops, a);
    acpi_pm_reset(&a->dev);
    *ret_dev = &a->dev;
    return 0;
}
