/*
 * support_board.h - a board without processors for tests of single chips: bus, interrupt lines, RAM, a loop, and a
 * clock that only moves when the test says so. Everything that leaves a chip is counted.
 */
#ifndef FVM_TESTS_DEVICE_SUPPORT_BOARD_H
#define FVM_TESTS_DEVICE_SUPPORT_BOARD_H

#include <CUnit/Basic.h>

#include "vmm/devices/device.h"

struct test_board {
    struct fvm_board board;
    bool level[FVM_IRQ_LINES];
    unsigned rises[FVM_IRQ_LINES];
    unsigned kicks[4]; /* by enum fvm_irq_kick, all processors */
    unsigned kick_cpu[16];
    unsigned sipi_vector;
    unsigned msi_count;
    uint64_t msi_addr;
    uint32_t msi_data;
    unsigned resets, power_offs, debug_exits, debug_code;
};

void board_up(struct test_board *t, unsigned cpus);
void board_down(struct test_board *t);
/** Let guest time pass, in steps small enough that every timer in between fires at its time. */
void board_advance(struct test_board *t, uint64_t ns);
void board_out(struct test_board *t, uint64_t port, unsigned size, uint64_t value);
uint64_t board_in(struct test_board *t, uint64_t port, unsigned size);
/** Configuration space by the ports of mechanism 1; devfn is slot << 3 | function, on bus 0. */
void board_pci_write(struct test_board *t, unsigned devfn, unsigned reg, unsigned size, uint32_t value);
uint32_t board_pci_read(struct test_board *t, unsigned devfn, unsigned reg, unsigned size);
void board_mmio_write(struct test_board *t, uint64_t addr, unsigned size, uint64_t value);
uint64_t board_mmio_read(struct test_board *t, uint64_t addr, unsigned size);

/** save(from) -> check, restore into `fresh` -> save again is the same bytes. */
void board_roundtrip(struct fvm_device *from, struct fvm_device *fresh);
/**
 * Mutate `from`'s saved state `rounds` times, by seed. Each must be refused with a text, or be a state the chip can
 * really be in: then `victim` takes it, `poke` (may be NULL) uses it, and what it saves passes its own check.
 */
void board_hostile(struct test_board *t, struct fvm_device *from, struct fvm_device *victim, unsigned rounds,
                   void (*poke)(struct test_board *t, struct fvm_device *victim));

struct board_test {
    const char *name;
    void (*fn)(void);
};
/** main() of a chip's test program. */
int board_main(const char *suite, const struct board_test *tests, unsigned count);

#endif
