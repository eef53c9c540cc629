/*
 * ps2.h - what hangs on the two sockets of the keyboard controller: a keyboard and a wheel mouse, as byte machines.
 *
 * A device takes bytes (commands) and has a queue of bytes to send. The controller (i8042.c) owns both, asks for bytes
 * when it has room, and saves their state in its own message. Nothing here knows interrupts or ports.
 * Board lock held.
 */
#ifndef FVM_VMM_DEVICES_PS2_H
#define FVM_VMM_DEVICES_PS2_H

#include "base/err.h"
#include "proto/device_state.pb-c.h"

enum { FVM_PS2_QUEUE = 64 };

struct fvm_ps2_queue {
    uint8_t bytes[FVM_PS2_QUEUE];
    unsigned first, count;
};
/** The next byte to send, -1: none. */
int fvm_ps2_take(struct fvm_ps2_queue *q);
static inline unsigned fvm_ps2_room(const struct fvm_ps2_queue *q) { return FVM_PS2_QUEUE - q->count; }
/** All or nothing. */
bool fvm_ps2_put(struct fvm_ps2_queue *q, const uint8_t *bytes, unsigned count);

/* Keys: scan code set 1's make code; FVM_KEY_E0 is its prefix; two keys have sequences of their own. */
enum { FVM_KEY_E0 = 0x80, FVM_KEY_PAUSE = 0x100, FVM_KEY_PRINT = 0x101, FVM_KEYS = 0x102 };
enum { FVM_LED_SCROLL = 1, FVM_LED_NUM = 2, FVM_LED_CAPS = 4 };

/** Set 2's code of set 1's code 1..127. */
uint8_t fvm_ps2_set2_of(unsigned set1);

struct fvm_ps2_kbd {
    struct fvm_ps2_queue queue;
    uint8_t expecting; /* command that waits for its byte, 0: none */
    uint8_t set;       /* scan code set 1 or 2 */
    uint8_t leds, rate;
    bool scanning;
};
void fvm_ps2_kbd_reset(struct fvm_ps2_kbd *k);
void fvm_ps2_kbd_write(struct fvm_ps2_kbd *k, uint8_t value);
/** Dropped when keys are not scanned or the queue is full. */
void fvm_ps2_kbd_key(struct fvm_ps2_kbd *k, unsigned key, bool down);

struct fvm_ps2_mouse {
    struct fvm_ps2_queue queue;
    uint8_t expecting;
    uint8_t rates[3]; /* the last sample rates set, newest first: a knock that turns wheel and more buttons on */
    uint8_t id;       /* 0, 3: wheel, 4: wheel and five buttons */
    uint8_t resolution, buttons;
    bool reporting, remote, wrap, scale2;
    int dx, dy, dz; /* not reported yet */
};
void fvm_ps2_mouse_reset(struct fvm_ps2_mouse *m);
void fvm_ps2_mouse_write(struct fvm_ps2_mouse *m, uint8_t value);
/** dx right, dy down, dz wheel towards the user; buttons: 1 left, 2 right, 4 middle, 8, 16 the others. */
void fvm_ps2_mouse_move(struct fvm_ps2_mouse *m, int dx, int dy, int dz, unsigned buttons);
/** Make a report of what has moved, if there is room and the guest wants it. */
void fvm_ps2_mouse_pump(struct fvm_ps2_mouse *m);

/* State. save: bytes are borrowed from the device until it changes. check: NULL or what is wrong. */
void fvm_ps2_kbd_save(struct fvm_ps2_kbd *k, Fvm__Ps2KbdState *ret);
const char *fvm_ps2_kbd_check(const Fvm__Ps2KbdState *s);
void fvm_ps2_kbd_restore(struct fvm_ps2_kbd *k, const Fvm__Ps2KbdState *s);
void fvm_ps2_mouse_save(struct fvm_ps2_mouse *m, Fvm__Ps2MouseState *ret);
const char *fvm_ps2_mouse_check(const Fvm__Ps2MouseState *s);
void fvm_ps2_mouse_restore(struct fvm_ps2_mouse *m, const Fvm__Ps2MouseState *s);

#endif
