/*
 * i8042.h - keyboard controller with a keyboard and a mouse behind it.
 */
#ifndef FVM_VMM_DEVICES_I8042_H
#define FVM_VMM_DEVICES_I8042_H

#include "vmm/devices/device.h"
#include "vmm/devices/ps2.h"

/** Ports 60, 64 and 92 (system control port A: A20 and fast reset); lines 1 and 12. */
int fvm_i8042_create(struct fvm_board *board, struct fvm_device **ret_dev);
/** A key goes down or up: ps2.h's numbers. */
void fvm_i8042_key(struct fvm_device *dev, unsigned key, bool down);
/** Would the next key's codes be taken? A slow guest's keyboard is full for a while. */
bool fvm_i8042_key_room(const struct fvm_device *dev);
/** Movement and buttons as fvm_ps2_mouse_move. */
void fvm_i8042_mouse(struct fvm_device *dev, int dx, int dy, int dz, unsigned buttons);
/** FVM_LED_* */
unsigned fvm_i8042_leds(const struct fvm_device *dev);

#endif
