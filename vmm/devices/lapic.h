/*
 * lapic.h - the processors' local APICs: xAPIC registers at fee00000 and x2APIC MSRs. Registers itself as the interrupt
 * controller and the MSI target of board->irq.
 */
#ifndef FVM_VMM_DEVICES_LAPIC_H
#define FVM_VMM_DEVICES_LAPIC_H

#include "vmm/devices/device.h"

#define FVM_LAPIC_BASE 0xfee00000ull
#define FVM_LAPIC_TIMER_HZ 1000000000u /* the timer's input clock: CPUID 0x15's crystal must say the same */
enum { FVM_LAPIC_CPUS_MAX = 16 };

/** One device for all of board->cpu_count processors (1..16). */
int fvm_lapic_create(struct fvm_board *board, struct fvm_device **ret_dev);
/** The i8259 behind LINT0 in ExtINT mode: intack(ctx) returns its vector, or -1. Before the VM runs. */
void fvm_lapic_set_pic(struct fvm_device *dev, int (*intack)(void *ctx), void *ctx);
/** Level of the i8259's INTR output. */
void fvm_lapic_extint(void *lapic_dev, bool level);
/** The board's NMI line: LINT1 of every processor. */
void fvm_lapic_nmi(struct fvm_device *dev);

#endif
