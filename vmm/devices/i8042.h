/*
 * i8042.h - keyboard controller, as far as software goes that has no keyboard: status, self test, output port, reset.
 */
#ifndef FVM_VMM_DEVICES_I8042_H
#define FVM_VMM_DEVICES_I8042_H

#include "vmm/devices/device.h"

/** Ports 60, 64 and 92 (system control port A: A20 and fast reset). No keyboard or mouse is attached. */
int fvm_i8042_create(struct fvm_board *board, struct fvm_device **ret_dev);

#endif
