/*
 * mc146818.c - real-time clock (Motorola MC146818A, with the PC's century byte) and 128 bytes of CMOS memory.
 *
 * Time is not counted: registers are computed from the VM's wall clock plus an offset, which is what changes when the
 * guest sets the clock. While register B's SET holds the clock, the time registers are plain memory. Periodic, alarm
 * and update-ended events are found by catch_up(), from the timer when an interrupt is enabled and from a read of
 * register C otherwise.
 *
 * Invariant: ram[] holds time registers only while SET is on; second_ns and periodic_ns lie after the last catch_up.
 */
#include "vmm/devices/mc146818.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "proto/device_state.pb-c.h"
#include "vmm/devices/pack.h"

enum { PORT_INDEX = 0x70, CMOS_BYTES = 128 };
enum {
    REG_SEC = 0,
    REG_SEC_ALARM,
    REG_MIN,
    REG_MIN_ALARM,
    REG_HOUR,
    REG_HOUR_ALARM,
    REG_WEEKDAY,
    REG_DAY,
    REG_MONTH,
    REG_YEAR,
    REG_A,
    REG_B,
    REG_C,
    REG_D,
    REG_CENTURY = 0x32
};
enum { A_UIP = 0x80, B_SET = 0x80, B_PIE = 0x40, B_AIE = 0x20, B_UIE = 0x10, B_BINARY = 0x04, B_24H = 0x02 };
enum { C_IRQF = 0x80, C_PF = 0x40, C_AF = 0x20, C_UF = 0x10, D_VALID = 0x80 };
#define NS_PER_S 1000000000ull
#define UIP_NS 244000ull
#define NEVER UINT64_MAX
#define OFFSET_MAX_NS 4000000000000000000ll /* about 126 years either way */

struct mc146818 {
    struct fvm_device dev;
    uint8_t ram[CMOS_BYTES];
    uint8_t index;
    int64_t offset_ns;
    uint64_t periodic_ns, second_ns;
    unsigned line;
    bool muted; /* by the HPET */
    struct fvm_timer *timer;
    int claim_id;
};

static uint64_t now_ns(const struct mc146818 *r)
{
    return fvm_clock_ns(r->dev.board->clock);
}

static uint64_t wall_ns(const struct mc146818 *r)
{
    int64_t t = (int64_t)fvm_clock_wall_ns(r->dev.board->clock) + r->offset_ns;

    return t < 0 ? 0 : (uint64_t)t;
}

/* ---- time registers ---- */

static uint8_t encode(const struct mc146818 *r, unsigned v)
{
    return (uint8_t)(r->ram[REG_B] & B_BINARY ? v : (v / 10 % 10) << 4 | v % 10);
}

static unsigned decode(const struct mc146818 *r, uint8_t v)
{
    return r->ram[REG_B] & B_BINARY ? v : (unsigned)(v >> 4) * 10 + (v & 15);
}

static uint8_t encode_hour(const struct mc146818 *r, unsigned hour)
{
    if (r->ram[REG_B] & B_24H)
        return encode(r, hour);
    return (uint8_t)(encode(r, hour % 12 ? hour % 12 : 12) | (hour >= 12 ? 0x80 : 0));
}

static unsigned decode_hour(const struct mc146818 *r, uint8_t v)
{
    if (r->ram[REG_B] & B_24H)
        return decode(r, v);
    return decode(r, v & 0x7f) % 12 + (v & 0x80 ? 12 : 0);
}

static void time_to_registers(struct mc146818 *r)
{
    time_t t = (time_t)(wall_ns(r) / NS_PER_S);
    struct tm tm;

    gmtime_r(&t, &tm);
    r->ram[REG_SEC] = encode(r, (unsigned)tm.tm_sec);
    r->ram[REG_MIN] = encode(r, (unsigned)tm.tm_min);
    r->ram[REG_HOUR] = encode_hour(r, (unsigned)tm.tm_hour);
    r->ram[REG_WEEKDAY] = encode(r, (unsigned)tm.tm_wday + 1);
    r->ram[REG_DAY] = encode(r, (unsigned)tm.tm_mday);
    r->ram[REG_MONTH] = encode(r, (unsigned)tm.tm_mon + 1);
    r->ram[REG_YEAR] = encode(r, (unsigned)tm.tm_year % 100);
    r->ram[REG_CENTURY] = encode(r, (unsigned)(tm.tm_year + 1900) / 100);
}

static void schedule(struct mc146818 *r);

static void plan_second(struct mc146818 *r)
{
    r->second_ns = now_ns(r) + NS_PER_S - wall_ns(r) % NS_PER_S;
}

static void registers_to_time(struct mc146818 *r)
{
    struct tm tm = {
        .tm_sec = (int)decode(r, r->ram[REG_SEC]),
        .tm_min = (int)decode(r, r->ram[REG_MIN]),
        .tm_hour = (int)decode_hour(r, r->ram[REG_HOUR]),
        .tm_mday = (int)decode(r, r->ram[REG_DAY]),
        .tm_mon = (int)decode(r, r->ram[REG_MONTH]) - 1,
        .tm_year = (int)(decode(r, r->ram[REG_CENTURY]) * 100 + decode(r, r->ram[REG_YEAR])) - 1900,
    };
    time_t t = timegm(&tm); /* nonsense in a register is carried over into the next unit */
    int64_t host_ns = (int64_t)fvm_clock_wall_ns(r->dev.board->clock);
    __int128 offset = (__int128)t * (__int128)NS_PER_S - host_ns;

    if (t < 0 || offset > OFFSET_MAX_NS || offset < -OFFSET_MAX_NS)
        return; /* a date that cannot be shown: the clock stays as it was */
    r->offset_ns = (int64_t)offset;
    plan_second(r);
}

static bool is_time_register(unsigned index)
{
    return index == REG_SEC || index == REG_MIN || index == REG_HOUR || (index >= REG_WEEKDAY && index <= REG_YEAR) ||
           index == REG_CENTURY;
}

/* ---- events ---- */

static uint64_t period_ticks(const struct mc146818 *r) /* of 32768 Hz; 0: none */
{
    unsigned rate = r->ram[REG_A] & 15;

    if (rate == 0)
        return 0;
    return 1ull << (rate <= 2 ? rate + 6 : rate - 1);
}

static bool alarm_matches(const struct mc146818 *r, uint64_t second_of_day)
{
    const uint8_t *a = r->ram;

    return (a[REG_SEC_ALARM] >= 0xc0 || decode(r, a[REG_SEC_ALARM]) == second_of_day % 60) &&
           (a[REG_MIN_ALARM] >= 0xc0 || decode(r, a[REG_MIN_ALARM]) == second_of_day / 60 % 60) &&
           (a[REG_HOUR_ALARM] >= 0xc0 || decode_hour(r, a[REG_HOUR_ALARM]) == second_of_day / 3600);
}

static void update_line(struct mc146818 *r)
{
    bool on = (r->ram[REG_C] & r->ram[REG_B] & (C_PF | C_AF | C_UF)) != 0;

    r->ram[REG_C] = (uint8_t)((r->ram[REG_C] & 0x70) | (on ? C_IRQF : 0));
    if (!r->muted)
        fvm_irq_set_line(r->dev.board->irq, r->line, on);
}

void fvm_mc146818_mute(struct fvm_device *dev, bool muted)
{
    struct mc146818 *r = (struct mc146818 *)dev;

    r->muted = muted;
    update_line(r);
}

static void catch_up(struct mc146818 *r)
{
    uint64_t now = now_ns(r);

    if (!(r->ram[REG_B] & B_SET) && now >= r->second_ns) {
        uint64_t seconds = FVM_MIN((now - r->second_ns) / NS_PER_S + 1, 86400ull);
        uint64_t last = wall_ns(r) / NS_PER_S;

        r->ram[REG_C] |= C_UF;
        for (uint64_t i = 0; i < seconds && !(r->ram[REG_C] & C_AF); i++)
            if (alarm_matches(r, (last + 86400 - i) % 86400))
                r->ram[REG_C] |= C_AF;
        plan_second(r);
    }
    if (now >= r->periodic_ns) {
        uint64_t period = period_ticks(r) * NS_PER_S / 32768;

        r->ram[REG_C] |= C_PF;
        r->periodic_ns = period ? now + period - (now - r->periodic_ns) % period : NEVER;
    }
    update_line(r);
}

static void schedule(struct mc146818 *r)
{
    uint64_t at = NEVER;

    if ((r->ram[REG_B] & (B_UIE | B_AIE)) && !(r->ram[REG_B] & B_SET))
        at = r->second_ns;
    if ((r->ram[REG_B] & B_PIE) && r->periodic_ns < at)
        at = r->periodic_ns;
    fvm_timer_arm(r->timer, at);
}

static void expired(void *ctx)
{
    catch_up(ctx);
    schedule(ctx);
}

/* ---- ports ---- */

static uint8_t cmos_read(struct mc146818 *r)
{
    uint8_t value;

    if (is_time_register(r->index)) {
        if (!(r->ram[REG_B] & B_SET))
            time_to_registers(r);
        return r->ram[r->index];
    }
    switch (r->index) {
    case REG_A:
        value = r->ram[REG_A];
        if (!(r->ram[REG_B] & B_SET) && wall_ns(r) % NS_PER_S >= NS_PER_S - UIP_NS)
            value |= A_UIP;
        return value;
    case REG_C:
        catch_up(r);
        value = r->ram[REG_C];
        r->ram[REG_C] = 0;
        update_line(r);
        schedule(r);
        return value;
    case REG_D:
        return D_VALID;
    default:
        return r->ram[r->index];
    }
}

static void write_a(struct mc146818 *r, uint8_t value)
{
    uint64_t period;

    r->ram[REG_A] = value & 0x7f;
    period = period_ticks(r) * NS_PER_S / 32768;
    r->periodic_ns = period ? now_ns(r) + period : NEVER;
    schedule(r);
}

static void write_b(struct mc146818 *r, uint8_t value)
{
    uint8_t old = r->ram[REG_B];

    catch_up(r);
    if (!(old & B_SET) && (value & B_SET))
        time_to_registers(r); /* in the old format: the guest rewrites them anyway when it changes it */
    if (value & B_SET)
        value &= (uint8_t)~B_UIE;
    r->ram[REG_B] = value;
    if ((old & B_SET) && !(value & B_SET))
        registers_to_time(r);
    update_line(r);
    schedule(r);
}

static void cmos_write(struct mc146818 *r, uint8_t value)
{
    switch (r->index) {
    case REG_A:
        write_a(r, value);
        return;
    case REG_B:
        write_b(r, value);
        return;
    case REG_C:
    case REG_D:
        return;
    default:
        break;
    }
    if (is_time_register(r->index) && !(r->ram[REG_B] & B_SET)) {
        time_to_registers(r);
        r->ram[r->index] = value;
        registers_to_time(r);
        schedule(r);
        return;
    }
    r->ram[r->index] = value;
}

static uint64_t port_read(void *ctx, uint64_t offset, unsigned size)
{
    struct mc146818 *r = ctx;

    (void)size;
    return offset ? cmos_read(r) : 0xff;
}

static void port_write(void *ctx, uint64_t offset, unsigned size, uint64_t value)
{
    struct mc146818 *r = ctx;

    (void)size;
    if (offset == 0)
        r->index = value & 0x7f; /* bit 7 masks NMI: nothing on this board raises one */
    else
        cmos_write(r, (uint8_t)value);
}

static const struct fvm_bus_ops port_ops = {.read = port_read, .write = port_write};

/* ---- lifecycle ---- */

static void put16(struct mc146818 *r, unsigned index, uint64_t value)
{
    value = FVM_MIN(value, 0xffffull);
    r->ram[index] = (uint8_t)value;
    r->ram[index + 1] = (uint8_t)(value >> 8);
}

/* What firmware reads there: sizes in the units that became usual, and the boot order of a BIOS without fw_cfg. */
static void fill_configuration(struct mc146818 *r)
{
    const struct fvm_board *board = r->dev.board;
    uint64_t low = board->ram->low_bytes, high = board->ram->high_bytes >> 16;
    uint64_t extended_kib = low > (1 << 20) ? (low - (1 << 20)) >> 10 : 0;

    put16(r, 0x15, FVM_MIN(low >> 10, 640ull));
    put16(r, 0x17, extended_kib);
    put16(r, 0x30, extended_kib);
    put16(r, 0x34, low > (16 << 20) ? (low - (16 << 20)) >> 16 : 0);
    put16(r, 0x5b, high & 0xffff);
    r->ram[0x5d] = (uint8_t)(high >> 16);
    r->ram[0x5f] = (uint8_t)(board->cpu_count - 1);
    r->ram[0x3d] = 0x32; /* boot: disk, then CD-ROM */
    r->ram[0x38] = 0x41; /* then network; no look at a floppy's signature */
    r->ram[0x14] = 0x06; /* equipment: coprocessor, pointing device */
}

static void mc146818_reset(struct fvm_device *dev)
{
    struct mc146818 *r = (struct mc146818 *)dev;

    /* battery backed: memory and the clock's setting live on, interrupt enables and flags do not */
    r->ram[REG_A] = 0x26;
    r->ram[REG_B] = (uint8_t)((r->ram[REG_B] & B_BINARY) | B_24H);
    r->ram[REG_C] = 0;
    r->index = 0;
    plan_second(r);
    r->periodic_ns = now_ns(r) + period_ticks(r) * NS_PER_S / 32768;
    update_line(r);
    schedule(r);
}

static void mc146818_destroy(struct fvm_device *dev)
{
    struct mc146818 *r = (struct mc146818 *)dev;

    fvm_bus_release(dev->board->bus, r->claim_id);
    fvm_timer_destroy(&r->timer);
    free(r);
}

static int mc146818_save(struct fvm_device *dev, uint8_t **ret_buf, size_t *ret_len)
{
    struct mc146818 *r = (struct mc146818 *)dev;
    Fvm__Mc146818State state = FVM__MC146818_STATE__INIT;

    state.ram.data = r->ram;
    state.ram.len = sizeof(r->ram);
    state.index = r->index;
    state.offset_ns = r->offset_ns;
    state.periodic_ns = r->periodic_ns;
    state.second_ns = r->second_ns;
    return fvm_device_pack(&state.base, ret_buf, ret_len);
}

static int mc146818_check(struct fvm_device *dev, const uint8_t *buf, size_t len, struct fvm_err *err)
{
    Fvm__Mc146818State *state = (void *)fvm_device_unpack(&fvm__mc146818_state__descriptor, dev, buf, len, err);
    const char *wrong = NULL;

    if (!state)
        return FVM_EBADIMAGE;
    if (state->ram.len != CMOS_BYTES)
        wrong = "CMOS is not 128 bytes";
    else if (state->index >= CMOS_BYTES)
        wrong = "register index";
    else if (state->ram.data[REG_A] & A_UIP)
        wrong = "register A";
    else if ((state->ram.data[REG_C] & 0x0f) || !!(state->ram.data[REG_C] & C_IRQF) !=
             !!(state->ram.data[REG_B] & state->ram.data[REG_C] & (C_PF | C_AF | C_UF)))
        wrong = "register C";
    else if (state->offset_ns > OFFSET_MAX_NS || state->offset_ns < -OFFSET_MAX_NS)
        wrong = "clock offset";
    fvm__mc146818_state__free_unpacked(state, NULL);
    return wrong ? fvm_device_refuse(dev, err, wrong) : 0;
}

static void mc146818_restore(struct fvm_device *dev, const uint8_t *buf, size_t len)
{
    struct mc146818 *r = (struct mc146818 *)dev;
    Fvm__Mc146818State *state = fvm__mc146818_state__unpack(NULL, len, buf);

    fvm_assert(state && state->ram.len == CMOS_BYTES);
    memcpy(r->ram, state->ram.data, CMOS_BYTES);
    r->index = (uint8_t)state->index;
    r->offset_ns = state->offset_ns;
    r->periodic_ns = state->periodic_ns;
    r->second_ns = state->second_ns;
    fvm__mc146818_state__free_unpacked(state, NULL);
    update_line(r);
    schedule(r);
}

static const struct fvm_device_ops mc146818_ops = {
    .name = "mc146818",
    .destroy = mc146818_destroy,
    .reset = mc146818_reset,
    .save = mc146818_save,
    .check = mc146818_check,
    .restore = mc146818_restore,
};

int fvm_mc146818_create(struct fvm_board *board, unsigned line, struct fvm_device **ret_dev)
{
    struct mc146818 *r = calloc(1, sizeof(*r));
    int e;

    if (!r)
        return FVM_ENOMEM;
    fvm_device_init(&r->dev, &mc146818_ops, "mc146818", board);
    r->line = line;
    e = fvm_timer_create(board->clock, expired, r, &r->timer);
    if (!e)
        e = fvm_bus_claim(board->bus, FVM_BUS_PIO, PORT_INDEX, 2, &port_ops, r, "mc146818", &r->claim_id);
    if (e) {
        fvm_timer_destroy(&r->timer);
        free(r);
        return e;
    }
    fill_configuration(r);
    mc146818_reset(&r->dev);
    *ret_dev = &r->dev;
    return 0;
}
