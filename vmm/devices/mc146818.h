/*
 * mc146818.h - real-time clock and CMOS memory at ports 70/71, interrupt on ISA IRQ 8.
 */
#ifndef FVM_VMM_DEVICES_MC146818_H
#define FVM_VMM_DEVICES_MC146818_H

#include "vmm/devices/device.h"

/** The clock shows fvm_clock_wall_ns (UTC) until the guest sets it. CMOS holds the memory sizes of board->ram. */
int fvm_mc146818_create(struct fvm_board *board, unsigned line, struct fvm_device **ret_dev);
/** The HPET has taken the line over (legacy replacement): leave it alone while muted. Not part of this chip's state. */
void fvm_mc146818_mute(struct fvm_device *dev, bool muted);

#endif
