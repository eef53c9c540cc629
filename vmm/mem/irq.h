/*
 * irq.h - interrupts between devices and processors.
 *
 * Lines ("GSIs" 0..23, as the IO-APIC numbers them; ISA IRQ n is GSI n but IRQ 0 is GSI 2): devices set levels; both the
 * i8259 pair and the ioapic listen. Message-signalled interrupts go to the local APICs. The local APIC device registers
 * itself as "the controller" that vCPUs ask. A kick function, given by the vm, tells a vCPU that something is there.
 *
 * Devices' side: board lock held. CPU's side (fvm_irq_cpu_*): that vCPU's thread, takes the lock itself.
 */
#ifndef FVM_VMM_MEM_IRQ_H
#define FVM_VMM_MEM_IRQ_H

#include "base/types.h"

#define FVM_IRQ_LINES 24

struct fvm_irq;

/* What the local APIC (and the PIC behind it, LINT0 in ExtINT mode) offers to the processors. */
struct fvm_irq_controller {
    /* true if an unmasked interrupt above the processor's priority waits for this cpu */
    bool (*pending)(void *ctx, unsigned cpu);
    /* take it: vector 0..255, or -1 if it went away. Moves IRR to ISR. */
    int (*ack)(void *ctx, unsigned cpu);
    /* x2APIC MSRs 0x800..0x8ff, IA32_APIC_BASE 0x1b, IA32_TSC_DEADLINE 0x6e0. false: raise #GP */
    bool (*msr_read)(void *ctx, unsigned cpu, uint32_t msr, uint64_t *ret_value);
    bool (*msr_write)(void *ctx, unsigned cpu, uint32_t msr, uint64_t value);
    /* CR8: task priority class 0..15 */
    unsigned (*tpr_read)(void *ctx, unsigned cpu);
    void (*tpr_write)(void *ctx, unsigned cpu, unsigned value);
};

enum fvm_irq_kick { FVM_KICK_INTR, FVM_KICK_NMI, FVM_KICK_INIT, FVM_KICK_SIPI };

int fvm_irq_create(struct fvm_irq **ret_irq);
void fvm_irq_destroy(struct fvm_irq **irq_p);

/* wiring, before the VM runs */
void fvm_irq_set_controller(struct fvm_irq *irq, const struct fvm_irq_controller *ops, void *ctx);
/** A chip that follows lines: fn(ctx, line, level) on every change. At most 4 chips. */
void fvm_irq_add_sink(struct fvm_irq *irq, void (*fn)(void *ctx, unsigned line, bool level), void *ctx);
/** MSI target (the lapics): address/data as written by a PCI device. */
void fvm_irq_set_msi(struct fvm_irq *irq, void (*fn)(void *ctx, uint64_t addr, uint32_t data), void *ctx);
/** How a controller tells a processor: arg = SIPI vector. Called with the board lock; must not block. */
void fvm_irq_set_kick(struct fvm_irq *irq, void (*fn)(void *ctx, unsigned cpu, enum fvm_irq_kick what, unsigned arg),
                      void *ctx);
/** End-of-interrupt broadcast, lapic -> ioapic (level-triggered lines). */
void fvm_irq_set_eoi(struct fvm_irq *irq, void (*fn)(void *ctx, unsigned vector), void *ctx);

/* devices */
void fvm_irq_set_line(struct fvm_irq *irq, unsigned line, bool level);   /* several sources may share a line: see below */
/** Shared (PCI) lines: each source has its own handle; the line is high while any is. */
struct fvm_irq_source;
int fvm_irq_source_create(struct fvm_irq *irq, unsigned line, struct fvm_irq_source **ret_source);
void fvm_irq_source_set(struct fvm_irq_source *source, bool level);
void fvm_irq_source_destroy(struct fvm_irq_source **source_p);
void fvm_irq_msi(struct fvm_irq *irq, uint64_t addr, uint32_t data);
void fvm_irq_kick(struct fvm_irq *irq, unsigned cpu, enum fvm_irq_kick what, unsigned arg);
void fvm_irq_eoi(struct fvm_irq *irq, unsigned vector);

/* processors */
struct fvm_bus;
void fvm_irq_set_lock(struct fvm_irq *irq, struct fvm_bus *bus);
bool fvm_irq_cpu_pending(struct fvm_irq *irq, unsigned cpu);
int fvm_irq_cpu_ack(struct fvm_irq *irq, unsigned cpu);
bool fvm_irq_cpu_msr_read(struct fvm_irq *irq, unsigned cpu, uint32_t msr, uint64_t *ret_value);
bool fvm_irq_cpu_msr_write(struct fvm_irq *irq, unsigned cpu, uint32_t msr, uint64_t value);
unsigned fvm_irq_cpu_tpr_read(struct fvm_irq *irq, unsigned cpu);
void fvm_irq_cpu_tpr_write(struct fvm_irq *irq, unsigned cpu, unsigned value);

#endif
