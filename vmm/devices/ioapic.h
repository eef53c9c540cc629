/*
 * ioapic.h - I/O APIC (82093AA): 24 pins at fec00000, one per line of board->irq (ISA IRQ 0 comes in on pin 2).
 */
#ifndef FVM_VMM_DEVICES_IOAPIC_H
#define FVM_VMM_DEVICES_IOAPIC_H

#include "vmm/devices/device.h"

#define FVM_IOAPIC_BASE 0xfec00000ull

/** Becomes a line sink and the EOI listener of board->irq. */
int fvm_ioapic_create(struct fvm_board *board, struct fvm_device **ret_dev);

#endif
