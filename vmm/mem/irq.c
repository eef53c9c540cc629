/*
 * irq.c - the wires between devices and processors: lines with several sources, messages, and the controller's front.
 *
 * A line is high while its own level (fvm_irq_set_line) or any of its sources is high; the chips that follow lines
 * hear of changes of that sum only. What an interrupt means is theirs to know: this file holds levels, nothing else.
 *
 * Invariant: line->high == (line->direct || line->sources_high > 0) whenever no sink is running. Devices' side: board
 * lock held by the caller. Processors' side: the lock is taken here.
 */
#include "vmm/mem/irq.h"

#include <stdlib.h>

#include "base/err.h"
#include "vmm/mem/bus.h"

#define SINKS_MAX 4u

struct line {
    bool direct;
    bool high;
    unsigned sources_high;
};

struct fvm_irq {
    struct line lines[FVM_IRQ_LINES];
    struct {
        void (*fn)(void *ctx, unsigned line, bool level);
        void *ctx;
    } sinks[SINKS_MAX];
    unsigned sink_count;
    const struct fvm_irq_controller *controller;
    void *controller_ctx;
    void (*msi)(void *ctx, uint64_t addr, uint32_t data);
    void *msi_ctx;
    void (*kick)(void *ctx, unsigned cpu, enum fvm_irq_kick what, unsigned arg);
    void *kick_ctx;
    void (*eoi)(void *ctx, unsigned vector);
    void *eoi_ctx;
    struct fvm_bus *bus; /* the board lock; NULL in tests without one */
};

struct fvm_irq_source {
    struct fvm_irq *irq;
    unsigned line;
    bool level;
};

int fvm_irq_create(struct fvm_irq **ret_irq)
{
    struct fvm_irq *irq = calloc(1, sizeof(*irq));

    if (!irq)
        return FVM_ENOMEM;
    *ret_irq = irq;
    return 0;
}

void fvm_irq_destroy(struct fvm_irq **irq_p)
{
    free(*irq_p);
    *irq_p = NULL;
}

void fvm_irq_set_controller(struct fvm_irq *irq, const struct fvm_irq_controller *ops, void *ctx)
{
    irq->controller = ops;
    irq->controller_ctx = ctx;
}

void fvm_irq_add_sink(struct fvm_irq *irq, void (*fn)(void *ctx, unsigned line, bool level), void *ctx)
{
    fvm_assert(irq->sink_count < SINKS_MAX);
    irq->sinks[irq->sink_count].fn = fn;
    irq->sinks[irq->sink_count].ctx = ctx;
    irq->sink_count++;
}

void fvm_irq_set_msi(struct fvm_irq *irq, void (*fn)(void *ctx, uint64_t addr, uint32_t data), void *ctx)
{
    irq->msi = fn;
    irq->msi_ctx = ctx;
}

void fvm_irq_set_kick(struct fvm_irq *irq, void (*fn)(void *ctx, unsigned cpu, enum fvm_irq_kick what, unsigned arg),
                      void *ctx)
{
    irq->kick = fn;
    irq->kick_ctx = ctx;
}

void fvm_irq_set_eoi(struct fvm_irq *irq, void (*fn)(void *ctx, unsigned vector), void *ctx)
{
    irq->eoi = fn;
    irq->eoi_ctx = ctx;
}

void fvm_irq_set_lock(struct fvm_irq *irq, struct fvm_bus *bus)
{
    irq->bus = bus;
}

static void update(struct fvm_irq *irq, unsigned n)
{
    struct line *line = &irq->lines[n];
    bool high = line->direct || line->sources_high;

    if (high == line->high)
        return;
    line->high = high;
    for (unsigned i = 0; i < irq->sink_count; i++)
        irq->sinks[i].fn(irq->sinks[i].ctx, n, high);
}

void fvm_irq_set_line(struct fvm_irq *irq, unsigned line, bool level)
{
    fvm_assert(line < FVM_IRQ_LINES);
    irq->lines[line].direct = level;
    update(irq, line);
}

int fvm_irq_source_create(struct fvm_irq *irq, unsigned line, struct fvm_irq_source **ret_source)
{
    struct fvm_irq_source *source;

    if (line >= FVM_IRQ_LINES)
        return FVM_EINVAL;
    source = calloc(1, sizeof(*source));
    if (!source)
        return FVM_ENOMEM;
    source->irq = irq;
    source->line = line;
    *ret_source = source;
    return 0;
}

void fvm_irq_source_set(struct fvm_irq_source *source, bool level)
{
    struct line *line = &source->irq->lines[source->line];

    if (source->level == level)
        return;
    source->level = level;
    if (level)
        line->sources_high++;
    else
        line->sources_high--;
    update(source->irq, source->line);
}

void fvm_irq_source_destroy(struct fvm_irq_source **source_p)
{
    if (!*source_p)
        return;
    fvm_irq_source_set(*source_p, false);
    free(*source_p);
    *source_p = NULL;
}

void fvm_irq_msi(struct fvm_irq *irq, uint64_t addr, uint32_t data)
{
    if (irq->msi)
        irq->msi(irq->msi_ctx, addr, data);
}

void fvm_irq_kick(struct fvm_irq *irq, unsigned cpu, enum fvm_irq_kick what, unsigned arg)
{
    if (irq->kick)
        irq->kick(irq->kick_ctx, cpu, what, arg);
}

void fvm_irq_eoi(struct fvm_irq *irq, unsigned vector)
{
    if (irq->eoi)
        irq->eoi(irq->eoi_ctx, vector);
}

static void lock(struct fvm_irq *irq)
{
    if (irq->bus)
        fvm_bus_lock(irq->bus);
}

static void unlock(struct fvm_irq *irq)
{
    if (irq->bus)
        fvm_bus_unlock(irq->bus);
}

bool fvm_irq_cpu_pending(struct fvm_irq *irq, unsigned cpu)
{
    bool pending;

    lock(irq);
    pending = irq->controller && irq->controller->pending(irq->controller_ctx, cpu);
    unlock(irq);
    return pending;
}

int fvm_irq_cpu_ack(struct fvm_irq *irq, unsigned cpu)
{
    int vector;

    lock(irq);
    vector = irq->controller ? irq->controller->ack(irq->controller_ctx, cpu) : -1;
    unlock(irq);
    return vector;
}

bool fvm_irq_cpu_msr_read(struct fvm_irq *irq, unsigned cpu, uint32_t msr, uint64_t *ret_value)
{
    bool ok;

    lock(irq);
    ok = irq->controller && irq->controller->msr_read(irq->controller_ctx, cpu, msr, ret_value);
    unlock(irq);
    return ok;
}

bool fvm_irq_cpu_msr_write(struct fvm_irq *irq, unsigned cpu, uint32_t msr, uint64_t value)
{
    bool ok;

    lock(irq);
    ok = irq->controller && irq->controller->msr_write(irq->controller_ctx, cpu, msr, value);
    unlock(irq);
    return ok;
}

unsigned fvm_irq_cpu_tpr_read(struct fvm_irq *irq, unsigned cpu)
{
    unsigned value;

    lock(irq);
    value = irq->controller ? irq->controller->tpr_read(irq->controller_ctx, cpu) : 0;
    unlock(irq);
    return value;
}

void fvm_irq_cpu_tpr_write(struct fvm_irq *irq, unsigned cpu, unsigned value)
{
    lock(irq);
    if (irq->controller)
        irq->controller->tpr_write(irq->controller_ctx, cpu, value);
    unlock(irq);
}
