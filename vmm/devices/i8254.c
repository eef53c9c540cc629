/*
 * i8254.c - programmable interval timer (Intel 8254): three counters, six modes, latch and read-back commands.
 *
 * A counter is not stepped: its count and OUT are computed from guest time since it was started. Only counter 0 has
 * an event, the next rising edge of OUT, which is the timer interrupt. Missed periods are merged into one edge, and
 * edges keep their phase.
 *
 * Invariant: tick n of a counter happens at start_ns + ceil(n * 1e9 / 1193182), so periods never drift.
 */
#include "vmm/devices/i8254.h"

#include <stdlib.h>

#include "proto/device_state.pb-c.h"
#include "vmm/devices/pack.h"

enum { COUNTERS = 3, PORT_BASE = 0x40, PORT_SPEAKER = 0x61, REFRESH_NS = 15085 };
enum { MERGE_TICKS = 12 }; /* periods shorter than 10 us are merged: they would only keep the host busy */
enum { ACCESS_LOW = 1, ACCESS_HIGH = 2, ACCESS_BOTH = 3 };
#define NEVER UINT64_MAX

struct counter {
    uint8_t mode, access;
    bool bcd;
    uint32_t reload;      /* 1..65536 */
    uint64_t start_ns;
    bool loaded;          /* counting has been started by a count written (modes 1, 5: and a trigger) */
    bool gate;
    uint32_t held;        /* ticks done when the gate went low (modes 0, 4) */
    bool write_high_next, read_high_next;
    uint8_t write_low;
    uint8_t count_latched; /* bytes left to read of count_latch: 0, 1, 2 */
    uint16_t count_latch;
    bool status_latched;
    uint8_t status_latch;
};

struct i8254 {
    struct fvm_device dev;
    struct counter counter[COUNTERS];
    bool speaker;
    bool muted; /* by the HPET */
    unsigned line;
    uint64_t expire_ns;
    struct fvm_timer *timer;
    int claim_id[2];
};

static uint64_t now_ns(const struct i8254 *p)
{
    return fvm_clock_ns(p->dev.board->clock);
}

static uint64_t ticks_to_ns(uint64_t ticks)
{
    return (uint64_t)(((unsigned __int128)ticks * 1000000000u + FVM_I8254_HZ - 1) / FVM_I8254_HZ);
}

static bool retriggered_by_gate(unsigned mode)
{
    return mode == 1 || mode == 5;
}

static bool stopped_by_gate(unsigned mode)
{
    return !retriggered_by_gate(mode);
}

/* Ticks since the count was loaded. */
static uint64_t elapsed(const struct i8254 *p, const struct counter *c)
{
    uint64_t now = now_ns(p);

    if (!c->gate && stopped_by_gate(c->mode))
        return c->held;
    if (now <= c->start_ns)
        return 0;
    return (uint64_t)((unsigned __int128)(now - c->start_ns) * FVM_I8254_HZ / 1000000000u);
}

static uint16_t to_bcd(uint32_t v)
{
    v %= 10000;
    return (uint16_t)((v / 1000) << 12 | (v / 100 % 10) << 8 | (v / 10 % 10) << 4 | v % 10);
}

static uint32_t from_bcd(uint32_t v)
{
    return ((v >> 12) & 15) * 1000 + ((v >> 8) & 15) * 100 + ((v >> 4) & 15) * 10 + (v & 15);
}

static uint16_t count_now(const struct i8254 *p, const struct counter *c)
{
    uint64_t d;
    uint32_t count;

    if (!c->loaded)
        return 0;
    d = elapsed(p, c);
    switch (c->mode) {
    case 2:
        count = c->reload - (uint32_t)(d % c->reload);
        break;
    case 3:
        count = c->reload - (uint32_t)((2 * d) % c->reload);
        break;
    default: /* counts on through zero */
        count = (uint32_t)(c->reload - d);
        if (c->bcd)
            count = (uint32_t)((c->reload + 10000 - d % 10000) % 10000);
        break;
    }
    return c->bcd ? to_bcd(count) : (uint16_t)count;
}

static bool out_now(const struct i8254 *p, const struct counter *c)
{
    uint64_t d;

    if (!c->loaded)
        return c->mode != 0;
    d = elapsed(p, c);
    switch (c->mode) {
    case 0:
    case 1:
        return d >= c->reload;
    case 2:
        return !c->gate || d % c->reload != c->reload - 1;
    case 3:
        return !c->gate || d % c->reload < (c->reload + 1) / 2;
    default:
        return d != c->reload;
    }
}

/* When OUT of counter 0 rises next after `now`. */
static uint64_t next_edge(const struct i8254 *p, const struct counter *c)
{
    uint64_t d;

    if (!c->loaded || (!c->gate && stopped_by_gate(c->mode)))
        return NEVER;
    d = elapsed(p, c);
    if (c->mode == 2 || c->mode == 3)
        return c->start_ns + ticks_to_ns((d / c->reload + 1 + MERGE_TICKS / c->reload) * c->reload);
    if (d >= c->reload + (c->mode >= 4))
        return NEVER;
    return c->start_ns + ticks_to_ns(c->reload + (c->mode >= 4));
}

static void schedule(struct i8254 *p)
{
    p->expire_ns = next_edge(p, &p->counter[0]);
    fvm_timer_arm(p->timer, p->expire_ns);
}

/* Level of the interrupt line: between the edges of modes 2 to 5 it stays high, nobody can see the short low phases. */
static void drive_line(struct i8254 *p)
{
    const struct counter *c = &p->counter[0];
    bool high = c->mode >= 2 || (c->loaded && p->expire_ns == NEVER);

    if (!p->muted)
        fvm_irq_set_line(p->dev.board->irq, p->line, high);
}

void fvm_i8254_mute(struct fvm_device *dev, bool muted)
{
    struct i8254 *p = (struct i8254 *)dev;

    p->muted = muted;
    drive_line(p);
}

static void expired(void *ctx)
{
    struct i8254 *p = ctx;

    if (!p->muted) {
        fvm_irq_set_line(p->dev.board->irq, p->line, false);
        fvm_irq_set_line(p->dev.board->irq, p->line, true);
    }
    schedule(p);
    drive_line(p);
}

static void start(struct i8254 *p, struct counter *c)
{
    c->start_ns = now_ns(p);
    c->held = 0;
    c->loaded = true;
    if (c == &p->counter[0]) {
        schedule(p);
        drive_line(p);
    }
}

static void load_count(struct i8254 *p, struct counter *c, uint32_t raw)
{
    uint32_t count = c->bcd ? from_bcd(raw) : raw;

    c->reload = count ? count : c->bcd ? 10000 : 65536;
    if ((c->mode == 2 || c->mode == 3) && c->reload == 1)
        c->reload = 2; /* a count of 1 is illegal in these modes */
    if (!retriggered_by_gate(c->mode))
        start(p, c);
}

static void latch_count(const struct i8254 *p, struct counter *c)
{
    if (c->count_latched)
        return;
    c->count_latch = count_now(p, c);
    c->count_latched = c->access == ACCESS_BOTH ? 2 : 1;
}

static void latch_status(const struct i8254 *p, struct counter *c)
{
    if (c->status_latched)
        return;
    c->status_latched = true;
    c->status_latch =
        (uint8_t)((out_now(p, c) ? 0x80 : 0) | (c->loaded ? 0 : 0x40) | c->access << 4 | c->mode << 1 | c->bcd);
}

static void control_write(struct i8254 *p, uint8_t value)
{
    unsigned select = value >> 6, access = (value >> 4) & 3;
    struct counter *c = &p->counter[select];

    if (select == 3) { /* read-back */
        for (unsigned i = 0; i < COUNTERS; i++) {
            if (!(value & (2u << i)))
                continue;
            if (!(value & 0x20))
                latch_count(p, &p->counter[i]);
            if (!(value & 0x10))
                latch_status(p, &p->counter[i]);
        }
        return;
    }
    if (access == 0) {
        latch_count(p, c);
        return;
    }
    c->access = (uint8_t)access;
    c->mode = (value >> 1) & 7;
    if (c->mode > 5)
        c->mode &= 3;
    c->bcd = value & 1;
    c->loaded = c->write_high_next = c->read_high_next = c->status_latched = false;
    c->count_latched = 0;
    c->held = 0;
    if (select == 0) {
        schedule(p);
        drive_line(p);
    }
}

static void counter_write(struct i8254 *p, struct counter *c, uint8_t value)
{
    switch (c->access) {
    case ACCESS_LOW:
        load_count(p, c, value);
        break;
    case ACCESS_HIGH:
        load_count(p, c, (uint32_t)value << 8);
        break;
    default:
        if (c->write_high_next) {
            load_count(p, c, c->write_low | (uint32_t)value << 8);
        } else {
            c->write_low = value;
            if (c->mode == 0) { /* the first byte stops a count in mode 0 */
                c->loaded = false;
                if (c == &p->counter[0]) {
                    schedule(p);
                    drive_line(p);
                }
            }
        }
        c->write_high_next = !c->write_high_next;
        break;
    }
}

static uint8_t counter_read(const struct i8254 *p, struct counter *c)
{
    uint16_t count;

    if (c->status_latched) {
        c->status_latched = false;
        return c->status_latch;
    }
    if (c->count_latched) {
        bool high = c->access == ACCESS_HIGH || (c->access == ACCESS_BOTH && c->count_latched == 1);

        c->count_latched--;
        return (uint8_t)(c->count_latch >> (high ? 8 : 0));
    }
    count = count_now(p, c);
    if (c->access == ACCESS_BOTH) {
        c->read_high_next = !c->read_high_next;
        return (uint8_t)(c->read_high_next ? count : count >> 8);
    }
    return (uint8_t)(c->access == ACCESS_HIGH ? count >> 8 : count);
}

static void set_gate(struct i8254 *p, struct counter *c, bool gate)
{
    uint32_t done;

    if (gate == c->gate)
        return;
    if (!gate) {
        done = (uint32_t)FVM_MIN(elapsed(p, c), 0xffffffffull);
        c->gate = false;
        c->held = stopped_by_gate(c->mode) ? done : 0;
        return;
    }
    c->gate = true;
    if (c->mode == 0 || c->mode == 4)
        c->start_ns = now_ns(p) - FVM_MIN(ticks_to_ns(c->held), now_ns(p)); /* goes on where it stopped */
    else if (c->reload)
        start(p, c); /* modes 2, 3 begin anew, 1 and 5 are triggered */
    c->held = 0;
}

static uint64_t port_read(void *ctx, uint64_t offset, unsigned size)
{
    struct i8254 *p = ctx;

    (void)size;
    return offset < COUNTERS ? counter_read(p, &p->counter[offset]) : 0xff;
}

static void port_write(void *ctx, uint64_t offset, unsigned size, uint64_t value)
{
    struct i8254 *p = ctx;

    (void)size;
    if (offset < COUNTERS)
        counter_write(p, &p->counter[offset], (uint8_t)value);
    else
        control_write(p, (uint8_t)value);
}

static uint64_t speaker_read(void *ctx, uint64_t offset, unsigned size)
{
    struct i8254 *p = ctx;
    uint64_t value = p->counter[2].gate | (uint64_t)p->speaker << 1;

    (void)offset;
    (void)size;
    value |= ((now_ns(p) / REFRESH_NS) & 1) << 4;
    return value | (uint64_t)out_now(p, &p->counter[2]) << 5;
}

static void speaker_write(void *ctx, uint64_t offset, unsigned size, uint64_t value)
{
    struct i8254 *p = ctx;

    (void)offset;
    (void)size;
    set_gate(p, &p->counter[2], value & 1);
    p->speaker = (value >> 1) & 1;
}

static const struct fvm_bus_ops port_ops = {.read = port_read, .write = port_write};
static const struct fvm_bus_ops speaker_ops = {.read = speaker_read, .write = speaker_write};

/* ---- lifecycle ---- */

static void i8254_reset(struct fvm_device *dev)
{
    struct i8254 *p = (struct i8254 *)dev;

    for (unsigned i = 0; i < COUNTERS; i++)
        p->counter[i] = (struct counter){.mode = 0, .access = ACCESS_BOTH, .reload = 65536, .gate = i != 2};
    p->speaker = false;
    schedule(p);
    drive_line(p);
}

static void i8254_destroy(struct fvm_device *dev)
{
    struct i8254 *p = (struct i8254 *)dev;

    fvm_bus_release(dev->board->bus, p->claim_id[0]);
    fvm_bus_release(dev->board->bus, p->claim_id[1]);
    fvm_timer_destroy(&p->timer);
    free(p);
}

static int i8254_save(struct fvm_device *dev, uint8_t **ret_buf, size_t *ret_len)
{
    struct i8254 *p = (struct i8254 *)dev;
    Fvm__I8254State state = FVM__I8254_STATE__INIT;
    Fvm__I8254CounterState counters[COUNTERS], *pointers[COUNTERS];

    for (unsigned i = 0; i < COUNTERS; i++) {
        const struct counter *c = &p->counter[i];
        Fvm__I8254CounterState *s = &counters[i];

        fvm__i8254_counter_state__init(s);
        pointers[i] = s;
        s->mode = c->mode;
        s->bcd = c->bcd;
        s->access = c->access;
        s->reload = c->reload;
        s->start_ns = c->start_ns;
        s->loaded = c->loaded;
        s->gate = c->gate;
        s->write_high_next = c->write_high_next;
        s->write_low = c->write_low;
        s->read_high_next = c->read_high_next;
        s->count_latched = c->count_latched;
        s->count_latch = c->count_latch;
        s->status_latched = c->status_latched;
        s->status_latch = c->status_latch;
        s->held = c->held;
    }
    state.n_counters = COUNTERS;
    state.counters = pointers;
    state.speaker = p->speaker;
    state.expire_ns = p->expire_ns;
    return fvm_device_pack(&state.base, ret_buf, ret_len);
}

static const char *check_counter(const Fvm__I8254CounterState *s, bool gated)
{
    if (s->mode > 5 || s->access < 1 || s->access > 3)
        return "counter mode or access";
    if (s->reload < 1 || s->reload > (s->bcd ? 10000u : 65536u) || (s->reload == 1 && (s->mode == 2 || s->mode == 3)))
        return "counter reload value";
    if (s->count_latched > (s->access == ACCESS_BOTH ? 2u : 1u) || s->count_latch > 0xffff || s->status_latch > 0xff ||
        s->write_low > 0xff)
        return "counter latches";
    if (!s->gate && !gated)
        return "gate of a counter that is always enabled";
    return NULL;
}

static int i8254_check(struct fvm_device *dev, const uint8_t *buf, size_t len, struct fvm_err *err)
{
    Fvm__I8254State *state = (void *)fvm_device_unpack(&fvm__i8254_state__descriptor, dev, buf, len, err);
    const char *wrong = NULL;

    if (!state)
        return FVM_EBADIMAGE;
    if (state->n_counters != COUNTERS)
        wrong = "number of counters";
    for (unsigned i = 0; !wrong && i < COUNTERS; i++)
        wrong = check_counter(state->counters[i], i == 2);
    fvm__i8254_state__free_unpacked(state, NULL);
    return wrong ? fvm_device_refuse(dev, err, wrong) : 0;
}

static void i8254_restore(struct fvm_device *dev, const uint8_t *buf, size_t len)
{
    struct i8254 *p = (struct i8254 *)dev;
    Fvm__I8254State *state = fvm__i8254_state__unpack(NULL, len, buf);

    fvm_assert(state && state->n_counters == COUNTERS);
    for (unsigned i = 0; i < COUNTERS; i++) {
        const Fvm__I8254CounterState *s = state->counters[i];

        p->counter[i] = (struct counter){
            .mode = (uint8_t)s->mode,
            .access = (uint8_t)s->access,
            .bcd = s->bcd,
            .reload = s->reload,
            .start_ns = s->start_ns,
            .loaded = s->loaded,
            .gate = s->gate,
            .held = s->held,
            .write_high_next = s->write_high_next,
            .read_high_next = s->read_high_next,
            .write_low = (uint8_t)s->write_low,
            .count_latched = (uint8_t)s->count_latched,
            .count_latch = (uint16_t)s->count_latch,
            .status_latched = s->status_latched,
            .status_latch = (uint8_t)s->status_latch,
        };
    }
    p->speaker = state->speaker;
    p->expire_ns = state->expire_ns;
    fvm__i8254_state__free_unpacked(state, NULL);
    fvm_timer_arm(p->timer, p->expire_ns);
    drive_line(p);
}

static const struct fvm_device_ops i8254_ops = {
    .name = "i8254",
    .destroy = i8254_destroy,
    .reset = i8254_reset,
    .save = i8254_save,
    .check = i8254_check,
    .restore = i8254_restore,
};

int fvm_i8254_create(struct fvm_board *board, unsigned line, struct fvm_device **ret_dev)
{
    struct i8254 *p = calloc(1, sizeof(*p));
    int r;

    if (!p)
        return FVM_ENOMEM;
    fvm_device_init(&p->dev, &i8254_ops, "i8254", board);
    p->line = line;
    r = fvm_timer_create(board->clock, expired, p, &p->timer);
    if (r)
        goto fail;
    r = fvm_bus_claim(board->bus, FVM_BUS_PIO, PORT_BASE, 4, &port_ops, p, "i8254", &p->claim_id[0]);
    if (r)
        goto fail_timer;
    r = fvm_bus_claim(board->bus, FVM_BUS_PIO, PORT_SPEAKER, 1, &speaker_ops, p, "port61", &p->claim_id[1]);
    if (r)
        goto fail_claim;
    i8254_reset(&p->dev);
    *ret_dev = &p->dev;
    return 0;

fail_claim:
    fvm_bus_release(board->bus, p->claim_id[0]);
fail_timer:
    fvm_timer_destroy(&p->timer);
fail:
    free(p);
    return r;
}
