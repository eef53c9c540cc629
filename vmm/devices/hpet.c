/*
 * hpet.c - high precision event timers (IA-PC HPET specification 1.0a): main counter, three timers, legacy replacement.
 *
 * The counter is not counted: it is guest time in units of 10 ns since it was enabled, plus what it held then. One host timer
 * waits for the earliest comparator. Periods that were missed, or are too short to be kept, are merged into one interrupt and
 * keep their phase.
 *
 * Invariant: `legacy` was told the present state of LEG_RT_CNF; a line is driven only by timers that are routed to it now.
 */
#include "vmm/devices/hpet.h"

#include <stdlib.h>

#include "proto/device_state.pb-c.h"
#include "vmm/devices/pack.h"

enum { TIMERS = 3, BYTES = 0x400, TICK_NS = 10, LINE_TIMER = 2, LINE_RTC = 8 };
enum { REG_CAP = 0x000, REG_CONFIG = 0x010, REG_STATUS = 0x020, REG_COUNTER = 0x0f0, REG_TIMERS = 0x100, TIMER_BYTES = 0x20 };
enum { CONFIG_ENABLE = 1, CONFIG_LEGACY = 2 };
enum { T_LEVEL = 0x02, T_ENABLE = 0x04, T_PERIODIC = 0x08, T_PERIODIC_CAP = 0x10, T_SIZE_CAP = 0x20, T_SET = 0x40, T_32 = 0x100,
       T_ROUTE_SHIFT = 9, T_ROUTE = 31 << T_ROUTE_SHIFT };
enum { T_WRITABLE = T_LEVEL | T_ENABLE | T_PERIODIC | T_32 | T_ROUTE };
#define T_LINES 0x00f00000u /* lines 20..23: nobody else's */
#define CAPABILITIES (10000000ull << 32 | 0x8086a201u | (TIMERS - 1) << 8)
#define PERIOD_MIN 1000u /* ticks between interrupts: 10 us */
#define NEVER UINT64_MAX

struct timer {
    uint32_t config;
    uint64_t comparator, period;
};

struct hpet {
    struct fvm_device dev;
    uint32_t config, status;
    uint32_t high;     /* timers whose line is high now */
    uint64_t base;     /* counter at start_ns */
    uint64_t start_ns; /* when it was enabled */
    struct timer timer[TIMERS];
    void (*legacy)(void *ctx, bool on);
    void *ctx;
    struct fvm_timer *wait;
    int claim_id;
};

static uint64_t counter(const struct hpet *h)
{
    uint64_t now_ns = fvm_clock_ns(h->dev.board->clock);

    if (!(h->config & CONFIG_ENABLE) || now_ns < h->start_ns)
        return h->base;
    return h->base + (now_ns - h->start_ns) / TICK_NS;
}

static uint64_t width(const struct timer *t)
{
    return t->config & T_32 ? UINT32_MAX : UINT64_MAX;
}

/* ---- interrupts ---- */

/* The line a timer drives; FVM_IRQ_LINES: none. */
static unsigned line_of(const struct hpet *h, unsigned n)
{
    unsigned route = (h->timer[n].config & T_ROUTE) >> T_ROUTE_SHIFT;

    if ((h->config & CONFIG_LEGACY) && n < 2)
        return n == 0 ? LINE_TIMER : LINE_RTC;
    return T_LINES >> route & 1 ? route : FVM_IRQ_LINES;
}

static void drive(struct hpet *h, unsigned n, bool level)
{
    unsigned line = line_of(h, n);

    h->high = (h->high & ~(1u << n)) | (uint32_t)(level && line < FVM_IRQ_LINES) << n;
    if (line < FVM_IRQ_LINES)
        fvm_irq_set_line(h->dev.board->irq, line, level);
}

static bool level_pending(const struct hpet *h, unsigned n)
{
    return (h->status >> n & 1) && (h->timer[n].config & T_LEVEL) && (h->timer[n].config & T_ENABLE);
}

static void fire(struct hpet *h, unsigned n)
{
    struct timer *t = &h->timer[n];

    if (t->config & T_LEVEL)
        h->status |= 1u << n;
    if (!(t->config & T_ENABLE))
        return;
    if (!(t->config & T_LEVEL))
        drive(h, n, false);
    drive(h, n, true); /* an edge; the line stays high until the next one */
}

/* Ticks until the comparator is met; NEVER: not in this life. */
static uint64_t ticks_left(const struct hpet *h, const struct timer *t, uint64_t now)
{
    uint64_t left = ((t->comparator - now - 1) & width(t)) + 1; /* equal: a whole round; 2^64 of them wrap to 0 */

    if (!(h->config & CONFIG_ENABLE) || !(t->config & (T_ENABLE | T_LEVEL)))
        return NEVER;
    if (!left)
        return NEVER;
    if ((t->config & T_PERIODIC) && t->period && t->period < PERIOD_MIN && left < PERIOD_MIN)
        left = PERIOD_MIN;
    return left;
}

static void schedule(struct hpet *h)
{
    uint64_t now = counter(h), first = NEVER;

    for (unsigned n = 0; n < TIMERS; n++)
        first = FVM_MIN(first, ticks_left(h, &h->timer[n], now));
    if (first > (1ull << 60) / TICK_NS) { /* 36 years */
        fvm_timer_arm(h->wait, NEVER);
        return;
    }
    fvm_timer_arm(h->wait, h->start_ns + (now + first - h->base) * TICK_NS);
}

/* Which comparators were met after `from`, the counter at the last look, up to now? */
static void look(struct hpet *h, uint64_t from, uint64_t now)
{
    for (unsigned n = 0; n < TIMERS; n++) {
        struct timer *t = &h->timer[n];
        uint64_t passed = (t->comparator - from) & width(t), span = now - from;

        if (!(t->config & (T_ENABLE | T_LEVEL)) || !passed || passed > span)
            continue;
        if ((t->config & T_PERIODIC) && t->period)
            t->comparator = (t->comparator + ((span - passed) / t->period + 1) * t->period) & width(t);
        fire(h, n);
    }
}

/* Everything up to now, before a register changes what it means. */
static void catch_up(struct hpet *h)
{
    uint64_t now = counter(h), from = h->base;

    if (!(h->config & CONFIG_ENABLE))
        return;
    h->base = now;
    h->start_ns += (now - from) * TICK_NS;
    look(h, from, now);
}

static void expired(void *ctx)
{
    catch_up(ctx);
    schedule(ctx);
}

/* ---- registers ---- */

static void set_legacy(struct hpet *h, bool on)
{
    if (h->legacy)
        h->legacy(h->ctx, on);
}

static void config_write(struct hpet *h, uint32_t value)
{
    uint32_t old = h->config;

    value &= CONFIG_ENABLE | CONFIG_LEGACY;
    if ((old ^ value) & CONFIG_ENABLE) {
        h->base = counter(h);
        h->start_ns = fvm_clock_ns(h->dev.board->clock);
    }
    if ((old ^ value) & CONFIG_LEGACY)
        for (unsigned n = 0; n < TIMERS; n++)
            drive(h, n, false);
    h->config = value;
    if ((old ^ value) & CONFIG_LEGACY)
        set_legacy(h, value & CONFIG_LEGACY);
    for (unsigned n = 0; n < TIMERS; n++)
        if (level_pending(h, n))
            drive(h, n, true);
}

static void timer_config_write(struct hpet *h, unsigned n, uint32_t value)
{
    struct timer *t = &h->timer[n];

    drive(h, n, false);
    t->config = (value & (T_WRITABLE | T_SET)) | T_PERIODIC_CAP | T_SIZE_CAP;
    if (t->config & T_32) {
        t->comparator &= UINT32_MAX;
        t->period &= UINT32_MAX;
    }
    if (!(t->config & T_LEVEL))
        h->status &= ~(1u << n);
    drive(h, n, level_pending(h, n));
}

static uint64_t merge(uint64_t old, uint64_t value, uint64_t mask)
{
    return (old & ~mask) | (value & mask);
}

static void comparator_write(struct timer *t, uint64_t value, uint64_t mask)
{
    if (!(t->config & T_PERIODIC) || (t->config & T_SET))
        t->comparator = merge(t->comparator, value, mask) & width(t);
    if (t->config & T_PERIODIC)
        t->period = merge(t->period, value, mask) & width(t);
    if (mask >> 32 || (t->config & T_32))
        t->config &= ~(uint32_t)T_SET;
}

static uint64_t reg_read(const struct hpet *h, unsigned at)
{
    const struct timer *t = &h->timer[(at - REG_TIMERS) / TIMER_BYTES % TIMERS];

    switch (at) {
    case REG_CAP: return CAPABILITIES;
    case REG_CONFIG: return h->config;
    case REG_STATUS: return h->status;
    case REG_COUNTER: return counter(h);
    default: break;
    }
    if (at < REG_TIMERS || at >= REG_TIMERS + TIMERS * TIMER_BYTES)
        return 0;
    switch (at % TIMER_BYTES) {
    case 0x00: return t->config | (uint64_t)T_LINES << 32;
    case 0x08: return t->comparator;
    default: return 0;
    }
}

/* mask: the bytes that are written */
static void reg_write(struct hpet *h, unsigned at, uint64_t value, uint64_t mask)
{
    unsigned n = (at - REG_TIMERS) / TIMER_BYTES;

    catch_up(h);
    if (at == REG_CONFIG && (mask & 1)) {
        config_write(h, (uint32_t)value);
    } else if (at == REG_STATUS) {
        h->status &= ~(uint32_t)(value & mask);
        for (unsigned i = 0; i < TIMERS; i++)
            if ((h->timer[i].config & T_LEVEL) && !level_pending(h, i))
                drive(h, i, false);
    } else if (at == REG_COUNTER && !(h->config & CONFIG_ENABLE)) {
        h->base = merge(h->base, value, mask);
    } else if (at >= REG_TIMERS && n < TIMERS && at % TIMER_BYTES == 0 && (mask & 1)) {
        timer_config_write(h, n, (uint32_t)value);
    } else if (at >= REG_TIMERS && n < TIMERS && at % TIMER_BYTES == 8) {
        comparator_write(&h->timer[n], value, mask);
    }
    schedule(h);
}

static uint64_t hpet_read(void *ctx, uint64_t offset, unsigned size)
{
    (void)size;
    return reg_read(ctx, (unsigned)offset & ~7u) >> (8 * (offset & 7));
}

static void hpet_write(void *ctx, uint64_t offset, unsigned size, uint64_t value)
{
    unsigned shift = 8 * ((unsigned)offset & 7);

    if (size >= 4) /* registers are written by halves or whole */
        reg_write(ctx, (unsigned)offset & ~7u, value << shift, (size == 8 ? UINT64_MAX : (uint64_t)UINT32_MAX) << shift);
}

static const struct fvm_bus_ops hpet_bus_ops = {.read = hpet_read, .write = hpet_write};

/* ---- lifecycle ---- */

static void hpet_reset(struct fvm_device *dev)
{
    struct hpet *h = (struct hpet *)dev;

    for (unsigned n = 0; n < TIMERS; n++)
        drive(h, n, false);
    set_legacy(h, false);
    h->config = h->status = 0;
    h->base = 0;
    h->start_ns = fvm_clock_ns(dev->board->clock);
    for (unsigned n = 0; n < TIMERS; n++)
        h->timer[n] = (struct timer){.config = T_PERIODIC_CAP | T_SIZE_CAP, .comparator = UINT64_MAX};
    schedule(h);
}

static void hpet_destroy(struct fvm_device *dev)
{
    struct hpet *h = (struct hpet *)dev;

    fvm_bus_release(dev->board->bus, h->claim_id);
    fvm_timer_destroy(&h->wait);
    free(h);
}

static int hpet_save(struct fvm_device *dev, uint8_t **ret_buf, size_t *ret_len)
{
    struct hpet *h = (struct hpet *)dev;
    Fvm__HpetState s = FVM__HPET_STATE__INIT;
    Fvm__HpetTimerState timer[TIMERS], *list[TIMERS];

    s.config = h->config;
    s.status = h->status;
    s.high = h->high;
    s.counter = h->base;
    s.start_ns = h->start_ns;
    for (unsigned n = 0; n < TIMERS; n++) {
        timer[n] = (Fvm__HpetTimerState)FVM__HPET_TIMER_STATE__INIT;
        timer[n].config = h->timer[n].config;
        timer[n].comparator = h->timer[n].comparator;
        timer[n].period = h->timer[n].period;
        list[n] = &timer[n];
    }
    s.n_timers = TIMERS;
    s.timers = list;
    return fvm_device_pack(&s.base, ret_buf, ret_len);
}

static int hpet_check(struct fvm_device *dev, const uint8_t *buf, size_t len, struct fvm_err *err)
{
    Fvm__HpetState *s = (void *)fvm_device_unpack(&fvm__hpet_state__descriptor, dev, buf, len, err);
    const char *wrong = NULL;

    if (!s)
        return FVM_EBADIMAGE;
    if ((s->config & ~(uint32_t)(CONFIG_ENABLE | CONFIG_LEGACY)) || s->status >= 1u << TIMERS || s->high >= 1u << TIMERS)
        wrong = "configuration";
    else if (s->n_timers != TIMERS)
        wrong = "number of timers";
    else if (s->start_ns > 1ull << 62)
        wrong = "time of the counter's start";
    for (unsigned n = 0; !wrong && n < TIMERS; n++) {
        const Fvm__HpetTimerState *t = s->timers[n];
        uint64_t beyond = t->config & T_32 ? ~(uint64_t)UINT32_MAX : 0;

        if ((t->config & ~(uint32_t)(T_WRITABLE | T_SET)) != (T_PERIODIC_CAP | T_SIZE_CAP) ||
            ((t->comparator | t->period) & beyond) || ((s->status >> n & 1) && !(t->config & T_LEVEL)))
            wrong = "a timer";
    }
    fvm__hpet_state__free_unpacked(s, NULL);
    return wrong ? fvm_device_refuse(dev, err, wrong) : 0;
}

static void hpet_restore(struct fvm_device *dev, const uint8_t *buf, size_t len)
{
    struct hpet *h = (struct hpet *)dev;
    Fvm__HpetState *s = fvm__hpet_state__unpack(NULL, len, buf);

    fvm_assert(s);
    h->config = s->config;
    h->status = s->status;
    h->high = 0;
    h->base = s->counter;
    h->start_ns = s->start_ns;
    for (unsigned n = 0; n < TIMERS; n++)
        h->timer[n] = (struct timer){
            .config = s->timers[n]->config, .comparator = s->timers[n]->comparator, .period = s->timers[n]->period};
    set_legacy(h, h->config & CONFIG_LEGACY);
    for (unsigned n = 0; n < TIMERS; n++)
        if (s->high >> n & 1)
            drive(h, n, true);
    fvm__hpet_state__free_unpacked(s, NULL);
    schedule(h);
}

static const struct fvm_device_ops hpet_ops = {
    .name = "hpet",
    .destroy = hpet_destroy,
    .reset = hpet_reset,
    .save = hpet_save,
    .check = hpet_check,
    .restore = hpet_restore,
};

int fvm_hpet_create(struct fvm_board *board, void (*legacy)(void *ctx, bool on), void *ctx, struct fvm_device **ret_dev)
{
    struct hpet *h = calloc(1, sizeof(*h));
    int r;

    if (!h)
        return FVM_ENOMEM;
    fvm_device_init(&h->dev, &hpet_ops, "hpet", board);
    h->legacy = legacy;
    h->ctx = ctx;
    r = fvm_timer_create(board->clock, expired, h, &h->wait);
    if (!r)
        r = fvm_bus_claim(board->bus, FVM_BUS_MMIO, FVM_HPET_BASE, BYTES, &hpet_bus_ops, h, "hpet", &h->claim_id);
    if (r) {
        if (h->wait)
            fvm_timer_destroy(&h->wait);
        free(h);
        return r;
    }
    hpet_reset(&h->dev);
    *ret_dev = &h->dev;
    return 0;
}
