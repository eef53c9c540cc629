/*
 * hpet.h - high precision event timers (IA-PC HPET 1.0a) at fed00000: a 100 MHz counter, three timers.
 */
#ifndef FVM_VMM_DEVICES_HPET_H
#define FVM_VMM_DEVICES_HPET_H

#include "vmm/devices/device.h"

#define FVM_HPET_BASE 0xfed00000ull

/**
 * fvm_hpet_create - legacy(ctx, on): the guest has the HPET take the lines of the i8254 and the RTC (LEG_RT_CNF); these chips must
 * leave them alone while on. Called with the board lock held, at restore too.
 */
int fvm_hpet_create(struct fvm_board *board, void (*legacy)(void *ctx, bool on), void *ctx, struct fvm_device **ret_dev);

#endif
