/*
 * bus.h - port and memory-mapped I/O: how CPU and devices meet (the other way is irq.h).
 *
 * One lock per VM ("the board lock", recursive): vCPU threads hold it around every access, the I/O loop holds it around
 * every callback (it is the loop's guard). So device code never needs a lock of its own.
 * An access that nothing claims reads all ones and writes nothing (as on a PC).
 */
#ifndef FVM_VMM_MEM_BUS_H
#define FVM_VMM_MEM_BUS_H

#include "base/err.h"
#include "base/types.h"

struct fvm_bus;
enum fvm_bus_space { FVM_BUS_MMIO, FVM_BUS_PIO };

struct fvm_bus_ops {
    /* offset is relative to the region, size 1, 2, 4 or 8 (8 only MMIO); accesses never cross the region's end */
    uint64_t (*read)(void *ctx, uint64_t offset, unsigned size);
    void (*write)(void *ctx, uint64_t offset, unsigned size, uint64_t value);
};

int fvm_bus_create(struct fvm_bus **ret_bus);
void fvm_bus_destroy(struct fvm_bus **bus_p);
void fvm_bus_lock(void *bus);   /* void*: usable as the loop's guard */
void fvm_bus_unlock(void *bus);

/**
 * Claim [base, base+len). Later claims overlap earlier ones and win (PCI BARs over the hole). *ret_id names the claim.
 * name is borrowed (a literal). Board lock held, or before the VM runs.
 */
int fvm_bus_claim(struct fvm_bus *bus, enum fvm_bus_space space, uint64_t base, uint64_t len,
                  const struct fvm_bus_ops *ops, void *ctx, const char *name, int *ret_id);
void fvm_bus_release(struct fvm_bus *bus, int id);

/* From a vCPU thread (takes the board lock). Any size 1..8; split into naturally aligned powers of two. */
uint64_t fvm_bus_read(struct fvm_bus *bus, enum fvm_bus_space space, uint64_t addr, unsigned size);
void fvm_bus_write(struct fvm_bus *bus, enum fvm_bus_space space, uint64_t addr, unsigned size, uint64_t value);

/**
 * Which processor the calling thread is (bus_cpu.c): a vCPU thread says so once, before its first access. Chips with registers per
 * processor (lapic) ask. Other threads are 0.
 */
void fvm_bus_set_cpu(unsigned cpu);
unsigned fvm_bus_cpu(void);

/**
 * For the calling thread: fn(ctx, true) before it waits for the board lock because another thread has it, fn(ctx, false) when it
 * has it. A vCPU thread thus counts as stopped meanwhile (translate/world.c). NULL: nothing.
 */
void fvm_bus_set_wait(void (*fn)(void *ctx, bool begin), void *ctx);
void fvm_bus_wait(bool begin); /* bus.c */

/** Optional trace of every access (--trace io). NULL turns it off. */
void fvm_bus_set_trace(struct fvm_bus *bus, void (*fn)(void *ctx, enum fvm_bus_space space, bool write, uint64_t addr,
                                                      unsigned size, uint64_t value, const char *name), void *ctx);

#endif
