/*
 * i8259.h - the pair of programmable interrupt controllers of a PC (8259A), with ELCR.
 */
#ifndef FVM_VMM_DEVICES_I8259_H
#define FVM_VMM_DEVICES_I8259_H

#include "vmm/devices/device.h"

/** Becomes a line sink of board->irq. output(ctx, level): the master's INTR pin (lapic LINT0). */
int fvm_i8259_create(struct fvm_board *board, void (*output)(void *ctx, bool level), void *ctx,
                     struct fvm_device **ret_dev);
/** Interrupt acknowledge cycle: the vector, 0..255 (a spurious one when the request went away). */
int fvm_i8259_intack(void *i8259_dev);

#endif
