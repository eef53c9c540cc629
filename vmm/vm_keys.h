/*
 * vm_keys.h - keys by what people and protocols call them: "ctrl-alt-f2", characters of a US keyboard, X11 keysyms. All
 * become the numbers of vmm/devices/ps2.h. Pure. Test: tests/unit/vm_keys.c
 */
#ifndef FVM_VMM_VM_KEYS_H
#define FVM_VMM_VM_KEYS_H

#include "base/err.h"

enum { FVM_KEYS_CHORD_MAX = 8, FVM_KEY_LEFT_SHIFT = 0x2a };

/** "ctrl-alt-f2": keys to hold down in this order. Returns how many, or FVM_EINVAL with err naming the part. */
int fvm_keys_parse(const char *text, unsigned ret_keys[FVM_KEYS_CHORD_MAX], struct fvm_err *err);
/** The key, and whether shift is held, that types this byte on a US keyboard; 0: none does. */
unsigned fvm_keys_of_char(unsigned char c, bool *ret_shift);
/** Of an X11 keysym, as VNC clients send; shift is the client's own matter. 0: unknown. */
unsigned fvm_keys_of_keysym(uint32_t keysym);

#endif
