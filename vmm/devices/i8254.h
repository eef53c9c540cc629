/*
 * i8254.h - programmable interval timer with the PC's port 61 (gate and output of counter 2, speaker, refresh toggle).
 */
#ifndef FVM_VMM_DEVICES_I8254_H
#define FVM_VMM_DEVICES_I8254_H

#include "vmm/devices/device.h"

#define FVM_I8254_HZ 1193182u

/** Ports 40..43 and 61. line: what OUT of counter 0 drives (ISA IRQ 0 = board line 2). */
int fvm_i8254_create(struct fvm_board *board, unsigned line, struct fvm_device **ret_dev);
/** The HPET has taken the line over (legacy replacement): leave it alone while muted. Not part of this chip's state. */
void fvm_i8254_mute(struct fvm_device *dev, bool muted);

#endif
