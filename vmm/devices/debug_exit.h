/*
 * debug_exit.h - isa-debug-exit at port f4: a test kernel writes a value and the VM ends.
 */
#ifndef FVM_VMM_DEVICES_DEBUG_EXIT_H
#define FVM_VMM_DEVICES_DEBUG_EXIT_H

#include "vmm/devices/device.h"

/**
 * board->debug_exit gets the process exit status that QEMU's isa-debug-exit makes of the value v: (v << 1) | 1, so
 * that test kernels written for QEMU need no change: never 0, and v = 0x10 gives 33.
 */
int fvm_debug_exit_create(struct fvm_board *board, struct fvm_device **ret_dev);

#endif
