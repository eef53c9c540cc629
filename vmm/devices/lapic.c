/*
 * lapic.c - local APICs of all processors (Intel SDM vol. 3A, chapter 11: APIC; xAPIC and x2APIC).
 *
 * The interrupt controller that vCPUs ask: IRR -> (priority) -> ISR -> EOI, inter-processor interrupts, the timer
 * (one-shot, periodic, TSC deadline), and the i8259 behind LINT0. Registers are kept as the manual shows them; x2APIC
 * only changes how they are reached.
 *
 *   fixed/MSI/IPI -> irr[] --ack--> isr[] --EOI--> (level: broadcast to the ioapic)
 *
 * Invariant: whoever makes something pending calls update(), which kicks the processor; so a halted vCPU never sleeps
 * over work.
 */
#include "vmm/devices/lapic.h"

#include <stdlib.h>
#include <string.h>

#include "vmm/devices/lapic_impl.h"
#include "vmm/devices/pack.h"

enum {
    REG_ID = 0x02, REG_VERSION = 0x03, REG_TPR = 0x08, REG_APR = 0x09, REG_PPR = 0x0a, REG_EOI = 0x0b, REG_RRD = 0x0c,
    REG_LDR = 0x0d, REG_DFR = 0x0e, REG_SVR = 0x0f, REG_ISR = 0x10, REG_TMR = 0x18, REG_IRR = 0x20, REG_ESR = 0x28,
    REG_ICR = 0x30, REG_ICR_HIGH = 0x31, REG_LVT = 0x32, REG_LVT_END = 0x38, REG_TIMER_INITIAL = 0x38,
    REG_TIMER_CURRENT = 0x39, REG_TIMER_DIVIDE = 0x3e, REG_SELF_IPI = 0x3f,
};
enum { MODE_FIXED, MODE_LOWEST, MODE_SMI, MODE_RESERVED, MODE_NMI, MODE_INIT, MODE_SIPI, MODE_EXTINT };
enum { ESR_SEND_VECTOR = 0x20, ESR_RECEIVE_VECTOR = 0x40, ESR_REGISTER = 0x80 };

#define VERSION 0x00050014u /* 6 LVT entries, integrated APIC */
#define MSR_APIC_BASE 0x1bu
#define MSR_TSC_DEADLINE 0x6e0u
#define MSR_X2APIC 0x800u
#define PERIOD_MIN_NS 10000ull /* a guest's period shorter than this would only keep the host busy */
#define NEVER UINT64_MAX
#define BROADCAST UINT32_MAX

const uint32_t fvm_lapic_lvt_writable[LVT_COUNT] = {0x710ff & ~0x1000u, 0x107ff, 0x107ff, 0x1a7ff, 0x1a7ff, 0x100ff};

/* ---- bit vectors of 256 interrupts ---- */

static void bit_set(uint32_t *words, unsigned vector)
{
    words[vector >> 5] |= 1u << (vector & 31);
}

static void bit_clear(uint32_t *words, unsigned vector)
{
    words[vector >> 5] &= ~(1u << (vector & 31));
}

static bool bit_test(const uint32_t *words, unsigned vector)
{
    return (words[vector >> 5] >> (vector & 31)) & 1;
}

static int bit_highest(const uint32_t *words)
{
    for (int i = 7; i >= 0; i--)
        if (words[i])
            return i * 32 + 31 - __builtin_clz(words[i]);
    return -1;
}

/* ---- priority and delivery ---- */

static bool enabled(const struct lapic_cpu *c)
{
    return (c->apic_base & BASE_ENABLED) != 0;
}

static bool x2apic(const struct lapic_cpu *c)
{
    return (c->apic_base & BASE_X2APIC) != 0;
}

static uint32_t ppr(const struct lapic_cpu *c)
{
    int isrv = bit_highest(c->isr);
    uint32_t in_service = isrv < 0 ? 0 : (uint32_t)isrv & 0xf0;

    return (c->tpr & 0xf0) >= in_service ? c->tpr : in_service;
}

/* The vector that could be taken now, or -1. */
static int deliverable(const struct lapic_cpu *c)
{
    int vector;

    if (!enabled(c) || !(c->svr & SVR_ENABLED))
        return -1;
    vector = bit_highest(c->irr);
    return vector >= 0 && ((uint32_t)vector & 0xf0) > (ppr(c) & 0xf0) ? vector : -1;
}

/* The i8259's INTR reaches the processor: directly with the APIC off (only the BSP is wired), else by LINT0 in ExtINT
 * mode. */
static bool extint_ready(const struct lapic_cpu *c)
{
    uint32_t lint0 = c->lvt[LVT_LINT0];

    if (!c->extint)
        return false;
    if (!enabled(c))
        return c->index == 0;
    return !(lint0 & LVT_MASKED) && ((lint0 >> 8) & 7) == MODE_EXTINT;
}

static bool is_pending(const struct lapic_cpu *c)
{
    return extint_ready(c) || deliverable(c) >= 0;
}

static void update(struct lapic_cpu *c)
{
    if (is_pending(c))
        fvm_irq_kick(c->chip->dev.board->irq, c->index, FVM_KICK_INTR, 0);
}

static void lvt_deliver(struct lapic_cpu *c, unsigned index);

static void report_error(struct lapic_cpu *c, uint32_t bits)
{
    c->esr_pending |= bits;
    if (bit_test(c->irr, c->lvt[LVT_ERROR] & 0xff) || (c->lvt[LVT_ERROR] & 0xff) < 16)
        return; /* an error interrupt with an illegal vector must not report itself for ever */
    lvt_deliver(c, LVT_ERROR);
}

static void accept_fixed(struct lapic_cpu *c, unsigned vector, bool level)
{
    if (!enabled(c) || !(c->svr & SVR_ENABLED))
        return;
    if (vector < 16) {
        report_error(c, ESR_RECEIVE_VECTOR);
        return;
    }
    bit_set(c->irr, vector);
    if (level)
        bit_set(c->tmr, vector);
    else
        bit_clear(c->tmr, vector);
    update(c);
}

static void init_cpu(struct lapic_cpu *c);

/* A message for one processor, from the bus or an LVT entry. */
static void accept_message(struct lapic_cpu *c, unsigned mode, unsigned vector, bool level)
{
    struct fvm_irq *irq = c->chip->dev.board->irq;

    switch (mode) {
    case MODE_FIXED:
    case MODE_LOWEST:
        accept_fixed(c, vector, level);
        break;
    case MODE_NMI:
        fvm_irq_kick(irq, c->index, FVM_KICK_NMI, 0);
        break;
    case MODE_INIT:
        init_cpu(c);
        fvm_irq_kick(irq, c->index, FVM_KICK_INIT, 0);
        break;
    case MODE_SIPI:
        fvm_irq_kick(irq, c->index, FVM_KICK_SIPI, vector);
        break;
    default: /* SMI: no system management mode on this board; ExtINT comes by LINT0 only */
        break;
    }
}

static void lvt_deliver(struct lapic_cpu *c, unsigned index)
{
    uint32_t lvt = c->lvt[index];
    unsigned mode = index == LVT_TIMER || index == LVT_ERROR ? MODE_FIXED : (lvt >> 8) & 7;

    if (!(lvt & LVT_MASKED) && enabled(c))
        accept_message(c, mode, lvt & 0xff, (index == LVT_LINT0) && (lvt & LVT_LEVEL));
}

static bool logical_match(const struct lapic_cpu *c, uint32_t dest)
{
    if (x2apic(c)) {
        uint32_t ldr = ((c->id >> 4) << 16) | (1u << (c->id & 15));

        return dest == 0xffffffffu || ((dest >> 16) == (ldr >> 16) && (dest & ldr & 0xffff));
    }
    dest &= 0xff;
    if (c->dfr >> 28 == 0xf)
        return ((c->ldr >> 24) & dest) != 0;
    return dest == 0xff || (((c->ldr >> 28) == dest >> 4) && ((c->ldr >> 24) & dest & 0xf));
}

static bool destination_match(const struct lapic_cpu *c, bool logical, uint32_t dest)
{
    if (logical)
        return logical_match(c, dest);
    return dest == c->id || dest == BROADCAST;
}

static void send_message(struct lapic *l, bool logical, uint32_t dest, unsigned mode, unsigned vector, bool level)
{
    struct lapic_cpu *lowest = NULL;

    for (unsigned i = 0; i < l->count; i++) {
        struct lapic_cpu *c = &l->cpu[i];

        if (!destination_match(c, logical, dest))
            continue;
        if (mode != MODE_LOWEST)
            accept_message(c, mode, vector, level);
        else if (enabled(c) && (c->svr & SVR_ENABLED) && (!lowest || ppr(c) < ppr(lowest)))
            lowest = c;
    }
    if (lowest)
        accept_fixed(lowest, vector, level);
}

/* Eight bits of a physical destination: all ones are everybody. */
static uint32_t wide(bool logical, uint32_t dest)
{
    return !logical && dest == 0xff ? BROADCAST : dest;
}

static void receive_msi(void *ctx, uint64_t addr, uint32_t data)
{
    unsigned mode = (data >> 8) & 7;

    bool logical = (addr >> 2) & 1;

    send_message(ctx, logical, wide(logical, (uint32_t)(addr >> 12) & 0xff), mode, data & 0xff, (data >> 15) & 1);
}

static void send_ipi(struct lapic_cpu *c)
{
    struct lapic *l = c->chip;
    uint32_t low = (uint32_t)c->icr;
    uint32_t dest = (uint32_t)(c->icr >> 32) >> (x2apic(c) ? 0 : 24);
    unsigned mode = (low >> 8) & 7, vector = low & 0xff, shorthand = (low >> 18) & 3;
    bool level = (low >> 15) & 1;

    if (mode == MODE_INIT && level && !(low & 0x4000))
        return; /* INIT level de-assert: nothing to do since the Pentium 4 */
    if ((mode == MODE_FIXED || mode == MODE_LOWEST) && vector < 16) {
        report_error(c, ESR_SEND_VECTOR);
        return;
    }
    if (shorthand == 0) {
        bool logical = (low >> 11) & 1;

        send_message(l, logical, x2apic(c) ? dest : wide(logical, dest), mode, vector, false);
        return;
    }
    for (unsigned i = 0; i < l->count; i++) {
        bool self = i == c->index;

        if (shorthand == 2 || (shorthand == 1 && self) || (shorthand == 3 && !self))
            accept_message(&l->cpu[i], mode, vector, false);
    }
}

static void end_of_interrupt(struct lapic_cpu *c)
{
    int vector = bit_highest(c->isr);

    if (vector < 0)
        return;
    bit_clear(c->isr, (unsigned)vector);
    if (bit_test(c->tmr, (unsigned)vector))
        fvm_irq_eoi(c->chip->dev.board->irq, (unsigned)vector);
    update(c);
}

/* ---- timer ---- */

static uint64_t timer_divisor(const struct lapic_cpu *c)
{
    unsigned code = (c->timer_divide & 3) | ((c->timer_divide >> 1) & 4);

    return code == 7 ? 1 : 2ull << code;
}

static uint64_t timer_period_ns(const struct lapic_cpu *c)
{
    return FVM_MAX((uint64_t)c->timer_initial * timer_divisor(c), 1ull);
}

static void timer_set_expire(struct lapic_cpu *c, uint64_t ns)
{
    c->timer_expire_ns = ns;
    fvm_timer_arm(c->timer, ns);
}

static void timer_start(struct lapic_cpu *c)
{
    uint64_t now = fvm_clock_ns(c->chip->dev.board->clock);

    c->timer_start_ns = now;
    timer_set_expire(c, c->timer_initial ? now + timer_period_ns(c) : NEVER);
}

static uint32_t timer_current(const struct lapic_cpu *c)
{
    uint64_t elapsed, ticks;

    if (c->timer_initial == 0 || LVT_TIMER_MODE(c->lvt[LVT_TIMER]) > 1)
        return 0;
    elapsed = fvm_clock_ns(c->chip->dev.board->clock) - c->timer_start_ns;
    ticks = elapsed / timer_divisor(c);
    if (LVT_TIMER_MODE(c->lvt[LVT_TIMER]) == 1)
        return c->timer_initial - (uint32_t)(ticks % c->timer_initial);
    return ticks >= c->timer_initial ? 0 : c->timer_initial - (uint32_t)ticks;
}

static void timer_fire(void *ctx)
{
    struct lapic_cpu *c = ctx;
    uint64_t now = fvm_clock_ns(c->chip->dev.board->clock);
    uint64_t expire = c->timer_expire_ns;

    if (now < expire)
        return;
    if (c->tsc_deadline > fvm_clock_tsc(c->chip->dev.board->clock)) { /* the guest set its TSC back meanwhile */
        timer_set_expire(c, fvm_clock_tsc_to_ns(c->chip->dev.board->clock, c->tsc_deadline));
        return;
    }
    c->timer_expire_ns = NEVER;
    switch (LVT_TIMER_MODE(c->lvt[LVT_TIMER])) {
    case 1: {
        uint64_t period = timer_period_ns(c);
        uint64_t step = FVM_MAX(period, PERIOD_MIN_NS);

        c->timer_start_ns = expire;
        timer_set_expire(c, expire + step > now ? expire + step : now + step - (now - expire) % step);
        break;
    }
    case 2:
        c->tsc_deadline = 0;
        break;
    default:
        break;
    }
    lvt_deliver(c, LVT_TIMER);
}

static void deadline_write(struct lapic_cpu *c, uint64_t tsc)
{
    struct fvm_clock *clock = c->chip->dev.board->clock;

    if (LVT_TIMER_MODE(c->lvt[LVT_TIMER]) != 2)
        return;
    c->tsc_deadline = tsc;
    if (tsc == 0) {
        timer_set_expire(c, NEVER);
    } else if (tsc <= fvm_clock_tsc(clock)) {
        c->tsc_deadline = 0;
        timer_set_expire(c, NEVER);
        lvt_deliver(c, LVT_TIMER);
    } else {
        timer_set_expire(c, fvm_clock_tsc_to_ns(clock, tsc));
    }
}

static void lvt_write(struct lapic_cpu *c, unsigned index, uint32_t value)
{
    uint32_t old = c->lvt[index];

    value &= fvm_lapic_lvt_writable[index];
    if (!(c->svr & SVR_ENABLED))
        value |= LVT_MASKED;
    c->lvt[index] = value;
    if (index == LVT_TIMER && LVT_TIMER_MODE(old) != LVT_TIMER_MODE(value)) {
        /* one-shot <-> periodic keeps counting; to or from deadline mode disarms */
        if (LVT_TIMER_MODE(old) >= 2 || LVT_TIMER_MODE(value) >= 2) {
            c->tsc_deadline = 0;
            c->timer_initial = 0;
            timer_set_expire(c, NEVER);
        }
    }
    if (index == LVT_LINT0)
        update(c);
}

/* ---- registers, by number = xAPIC offset >> 4 = x2APIC MSR - 0x800 ---- */

static bool reg_read(struct lapic_cpu *c, unsigned reg, uint32_t *ret)
{
    switch (reg) {
    case REG_ID:
        *ret = x2apic(c) ? c->id : c->id << 24;
        return true;
    case REG_VERSION:
        *ret = VERSION;
        return true;
    case REG_TPR:
        *ret = c->tpr;
        return true;
    case REG_APR:
    case REG_PPR:
        *ret = ppr(c);
        return true;
    case REG_EOI:
    case REG_RRD:
        *ret = 0;
        return true;
    case REG_LDR:
        *ret = x2apic(c) ? ((c->id >> 4) << 16) | (1u << (c->id & 15)) : c->ldr;
        return true;
    case REG_DFR:
        *ret = c->dfr;
        return true;
    case REG_SVR:
        *ret = c->svr;
        return true;
    case REG_ISR ... REG_ISR + 7:
        *ret = c->isr[reg - REG_ISR];
        return true;
    case REG_TMR ... REG_TMR + 7:
        *ret = c->tmr[reg - REG_TMR];
        return true;
    case REG_IRR ... REG_IRR + 7:
        *ret = c->irr[reg - REG_IRR];
        return true;
    case REG_ESR:
        *ret = c->esr;
        return true;
    case REG_ICR:
        *ret = (uint32_t)c->icr;
        return true;
    case REG_ICR_HIGH:
        *ret = (uint32_t)(c->icr >> 32);
        return true;
    case REG_LVT ... REG_LVT_END - 1:
        *ret = c->lvt[reg - REG_LVT];
        return true;
    case REG_TIMER_INITIAL:
        *ret = c->timer_initial;
        return true;
    case REG_TIMER_CURRENT:
        *ret = timer_current(c);
        return true;
    case REG_TIMER_DIVIDE:
        *ret = c->timer_divide;
        return true;
    default:
        return false;
    }
}

static void svr_write(struct lapic_cpu *c, uint32_t value)
{
    c->svr = value & 0x3ff;
    if (!(c->svr & SVR_ENABLED))
        for (unsigned i = 0; i < LVT_COUNT; i++)
            c->lvt[i] |= LVT_MASKED;
    update(c);
}

/* false: no such writable register. */
static bool reg_write(struct lapic_cpu *c, unsigned reg, uint32_t value)
{
    switch (reg) {
    case REG_ID:
        return true; /* fixed by the board, as recent processors do */
    case REG_TPR:
        c->tpr = value & 0xff;
        update(c);
        return true;
    case REG_EOI:
        end_of_interrupt(c);
        return true;
    case REG_LDR:
        c->ldr = value & 0xff000000u;
        return true;
    case REG_DFR:
        c->dfr = value | 0x0fffffffu;
        return true;
    case REG_SVR:
        svr_write(c, value);
        return true;
    case REG_ESR:
        c->esr = c->esr_pending;
        c->esr_pending = 0;
        return true;
    case REG_ICR:
        c->icr = (c->icr & ~0xffffffffull) | (value & 0xccfffu);
        send_ipi(c);
        return true;
    case REG_ICR_HIGH:
        c->icr = (c->icr & 0xffffffffull) | (uint64_t)(value & 0xff000000u) << 32;
        return true;
    case REG_LVT ... REG_LVT_END - 1:
        lvt_write(c, reg - REG_LVT, value);
        return true;
    case REG_TIMER_INITIAL:
        if (LVT_TIMER_MODE(c->lvt[LVT_TIMER]) < 2) {
            c->timer_initial = value;
            timer_start(c);
        }
        return true;
    case REG_TIMER_DIVIDE:
        c->timer_divide = value & 0xb;
        if (c->timer_initial)
            timer_start(c);
        return true;
    default:
        return false;
    }
}

/* ---- xAPIC page ---- */

static struct lapic_cpu *self(struct lapic *l)
{
    unsigned cpu = fvm_bus_cpu();

    return &l->cpu[cpu < l->count ? cpu : 0];
}

static uint64_t mmio_read(void *ctx, uint64_t offset, unsigned size)
{
    struct lapic_cpu *c = self(ctx);
    uint32_t value = 0;

    if (!enabled(c) || x2apic(c))
        return UINT64_MAX >> (64 - 8 * size);
    if (!reg_read(c, (unsigned)(offset >> 4), &value))
        report_error(c, ESR_REGISTER);
    if ((offset & 15) >= 4)
        return 0;
    return (uint64_t)value >> (8 * (offset & 3));
}

static void mmio_write(void *ctx, uint64_t offset, unsigned size, uint64_t value)
{
    struct lapic_cpu *c = self(ctx);

    (void)size; /* narrower writes are undefined in the manual; taken as 32 bits */
    if (!enabled(c) || x2apic(c) || (offset & 15))
        return;
    if (!reg_write(c, (unsigned)(offset >> 4), (uint32_t)value))
        report_error(c, ESR_REGISTER);
}

static const struct fvm_bus_ops mmio_ops = {.read = mmio_read, .write = mmio_write};

/* ---- the processors' side ---- */

static bool cpu_pending(void *ctx, unsigned cpu)
{
    struct lapic *l = ctx;

    return cpu < l->count && is_pending(&l->cpu[cpu]);
}

static int cpu_ack(void *ctx, unsigned cpu)
{
    struct lapic *l = ctx;
    struct lapic_cpu *c = &l->cpu[cpu];
    int vector;

    fvm_assert(cpu < l->count);
    if (extint_ready(c) && l->intack) {
        vector = l->intack(l->intack_ctx);
        if (vector >= 0)
            return vector;
    }
    vector = deliverable(c);
    if (vector >= 0) {
        bit_clear(c->irr, (unsigned)vector);
        bit_set(c->isr, (unsigned)vector);
    }
    return vector;
}

static bool base_write(struct lapic_cpu *c, uint64_t value)
{
    uint64_t mode = value & (BASE_ENABLED | BASE_X2APIC), old = c->apic_base & (BASE_ENABLED | BASE_X2APIC);

    if ((value & ~(BASE_ENABLED | BASE_X2APIC | BASE_BSP)) != FVM_LAPIC_BASE)
        return false; /* reserved bits, or a page other than the one where everybody leaves it */
    if (mode == BASE_X2APIC || (mode == BASE_ENABLED && old == (BASE_ENABLED | BASE_X2APIC)) ||
        (mode == (BASE_ENABLED | BASE_X2APIC) && old == 0))
        return false; /* transitions the manual forbids */
    if (mode == 0 && old != 0)
        init_cpu(c);
    c->apic_base = FVM_LAPIC_BASE | mode | (c->apic_base & BASE_BSP);
    return true;
}

static bool x2apic_read(struct lapic_cpu *c, unsigned reg, uint64_t *ret)
{
    uint32_t value = 0;

    if (!x2apic(c) || !enabled(c) || reg == REG_DFR || reg == REG_ICR_HIGH || reg == REG_APR || reg == REG_EOI ||
        reg == REG_RRD)
        return false;
    if (reg == REG_ICR) {
        *ret = c->icr;
        return true;
    }
    if (!reg_read(c, reg, &value))
        return false;
    *ret = value;
    return true;
}

static bool x2apic_write(struct lapic_cpu *c, unsigned reg, uint64_t value)
{
    if (!x2apic(c) || !enabled(c))
        return false;
    if (reg == REG_ICR) {
        c->icr = value & 0xffffffff000ccfffull;
        send_ipi(c);
        return true;
    }
    if (value >> 32)
        return false;
    switch (reg) {
    case REG_SELF_IPI:
        if (value > 0xff)
            return false;
        accept_message(c, MODE_FIXED, (unsigned)value, false);
        return true;
    case REG_EOI:
    case REG_ESR:
        return value == 0 && reg_write(c, reg, 0);
    case REG_TPR:
        return value <= 0xff && reg_write(c, reg, (uint32_t)value);
    case REG_LVT ... REG_LVT_END - 1: /* bit 12 (delivery status) is read only, the rest is reserved */
        return !(value & ~(uint64_t)(fvm_lapic_lvt_writable[reg - REG_LVT] | 0x5000)) &&
               reg_write(c, reg, (uint32_t)value);
    case REG_ID:
    case REG_LDR:
    case REG_DFR:
    case REG_ICR_HIGH:
        return false;
    default:
        return reg_write(c, reg, (uint32_t)value);
    }
}

static bool cpu_msr_read(void *ctx, unsigned cpu, uint32_t msr, uint64_t *ret_value)
{
    struct lapic *l = ctx;
    struct lapic_cpu *c = &l->cpu[cpu];

    fvm_assert(cpu < l->count);
    if (msr == MSR_APIC_BASE)
        *ret_value = c->apic_base;
    else if (msr == MSR_TSC_DEADLINE)
        *ret_value = c->tsc_deadline;
    else
        return msr >= MSR_X2APIC && msr <= MSR_X2APIC + 0xff && x2apic_read(c, msr - MSR_X2APIC, ret_value);
    return true;
}

static bool cpu_msr_write(void *ctx, unsigned cpu, uint32_t msr, uint64_t value)
{
    struct lapic *l = ctx;
    struct lapic_cpu *c = &l->cpu[cpu];

    fvm_assert(cpu < l->count);
    if (msr == MSR_APIC_BASE)
        return base_write(c, value);
    if (msr == MSR_TSC_DEADLINE) {
        deadline_write(c, value);
        return true;
    }
    return msr >= MSR_X2APIC && msr <= MSR_X2APIC + 0xff && x2apic_write(c, msr - MSR_X2APIC, value);
}

static unsigned cpu_tpr_read(void *ctx, unsigned cpu)
{
    struct lapic *l = ctx;

    fvm_assert(cpu < l->count);
    return l->cpu[cpu].tpr >> 4;
}

static void cpu_tpr_write(void *ctx, unsigned cpu, unsigned value)
{
    struct lapic *l = ctx;

    fvm_assert(cpu < l->count);
    l->cpu[cpu].tpr = (value & 15) << 4;
    update(&l->cpu[cpu]);
}

static const struct fvm_irq_controller controller = {
    .pending = cpu_pending,
    .ack = cpu_ack,
    .msr_read = cpu_msr_read,
    .msr_write = cpu_msr_write,
    .tpr_read = cpu_tpr_read,
    .tpr_write = cpu_tpr_write,
};

/* ---- lifecycle ---- */

/* State after INIT: all but apic_base and the id. */
static void init_cpu(struct lapic_cpu *c)
{
    c->tpr = c->ldr = c->esr = c->esr_pending = c->timer_initial = c->timer_divide = 0;
    c->icr = c->tsc_deadline = c->timer_start_ns = 0;
    c->dfr = UINT32_MAX;
    c->svr = 0xff;
    memset(c->isr, 0, sizeof(c->isr));
    memset(c->tmr, 0, sizeof(c->tmr));
    memset(c->irr, 0, sizeof(c->irr));
    for (unsigned i = 0; i < LVT_COUNT; i++)
        c->lvt[i] = LVT_MASKED;
    if (c->index == 0)
        c->lvt[LVT_LINT0] = MODE_EXTINT << 8; /* virtual wire, as firmware leaves it */
    timer_set_expire(c, NEVER);
}

static void lapic_reset(struct fvm_device *dev)
{
    struct lapic *l = (struct lapic *)dev;

    for (unsigned i = 0; i < l->count; i++) {
        l->cpu[i].apic_base = FVM_LAPIC_BASE | BASE_ENABLED | (i == 0 ? BASE_BSP : 0);
        l->cpu[i].id = i;
        init_cpu(&l->cpu[i]);
    }
}

static void lapic_resume(struct fvm_device *dev)
{
    struct lapic *l = (struct lapic *)dev;

    for (unsigned i = 0; i < l->count; i++)
        update(&l->cpu[i]);
}

static void lapic_destroy(struct fvm_device *dev)
{
    struct lapic *l = (struct lapic *)dev;

    fvm_bus_release(dev->board->bus, l->claim_id);
    for (unsigned i = 0; i < l->count; i++)
        fvm_timer_destroy(&l->cpu[i].timer);
    free(l);
}

static const struct fvm_device_ops lapic_ops = {
    .name = "lapic",
    .destroy = lapic_destroy,
    .reset = lapic_reset,
    .resume = lapic_resume,
    .save = fvm_lapic_save,
    .check = fvm_lapic_check,
    .restore = fvm_lapic_restore,
};

int fvm_lapic_create(struct fvm_board *board, struct fvm_device **ret_dev)
{
    struct lapic *l;
    int r = 0;

    if (board->cpu_count < 1 || board->cpu_count > FVM_LAPIC_CPUS_MAX)
        return FVM_EINVAL;
    l = calloc(1, sizeof(*l));
    if (!l)
        return FVM_ENOMEM;
    fvm_device_init(&l->dev, &lapic_ops, "lapic", board);
    for (unsigned i = 0; !r && i < board->cpu_count; i++) {
        l->cpu[i].chip = l;
        l->cpu[i].index = i;
        r = fvm_timer_create(board->clock, timer_fire, &l->cpu[i], &l->cpu[i].timer);
        l->count += !r;
    }
    if (!r)
        r = fvm_bus_claim(board->bus, FVM_BUS_MMIO, FVM_LAPIC_BASE, FVM_PAGE_SIZE, &mmio_ops, l, "lapic", &l->claim_id);
    if (r) {
        for (unsigned i = 0; i < l->count; i++)
            fvm_timer_destroy(&l->cpu[i].timer);
        free(l);
        return r;
    }
    fvm_irq_set_controller(board->irq, &controller, l);
    fvm_irq_set_msi(board->irq, receive_msi, l);
    lapic_reset(&l->dev);
    *ret_dev = &l->dev;
    return 0;
}

void fvm_lapic_set_pic(struct fvm_device *dev, int (*intack)(void *ctx), void *ctx)
{
    struct lapic *l = (struct lapic *)dev;

    l->intack = intack;
    l->intack_ctx = ctx;
}

void fvm_lapic_extint(void *lapic_dev, bool level)
{
    struct lapic *l = lapic_dev;

    for (unsigned i = 0; i < l->count; i++) {
        struct lapic_cpu *c = &l->cpu[i];
        uint32_t lint0 = c->lvt[LVT_LINT0];
        bool rose = level && !c->extint;

        c->extint = level;
        if (rose && ((lint0 >> 8) & 7) != MODE_EXTINT)
            lvt_deliver(c, LVT_LINT0); /* LINT0 as an ordinary local interrupt or NMI watchdog */
        update(c);
    }
}

void fvm_lapic_nmi(struct fvm_device *dev)
{
    struct lapic *l = (struct lapic *)dev;

    for (unsigned i = 0; i < l->count; i++)
        if (((l->cpu[i].lvt[LVT_LINT1] >> 8) & 7) == MODE_NMI)
            lvt_deliver(&l->cpu[i], LVT_LINT1);
}
