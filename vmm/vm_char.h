/*
 * vm_char.h - where the bytes of a serial port come from and go to: "stdio", "file:F", "unix:F" or "none".
 *
 * unix:F is a listening socket for one client at a time; what the guest wrote while nobody was connected (the last 64
 * KiB of it) is replayed to the next client. Input is never dropped: what the chip does not take waits, and the sender
 * with it. Nothing here blocks: output that does not fit is refused and the chip told when there is room.
 *
 * Thread: loop, under the guard; the backend's write comes from vCPU threads with the board lock held.
 */
#ifndef FVM_VMM_VM_CHAR_H
#define FVM_VMM_VM_CHAR_H

#include "base/err.h"
#include "base/loop.h"
#include "vmm/devices/ns16550a.h"

struct fvm_char;

struct fvm_char_hooks {
    /* chip's side; set with fvm_char_attach */
    size_t (*input)(void *ctx, const uint8_t *bytes, size_t len);
    void (*output_ready)(void *ctx);
    void *ctx;
};

/** stdio only: every chunk typed passes through here first; changes it in place, returns how many bytes are left. */
typedef size_t (*fvm_char_filter)(void *ctx, uint8_t *bytes, size_t len);

/** Is this text a possible spec? For early refusal. */
int fvm_char_check_spec(const char *spec, struct fvm_err *err);
/** spec "" is "none". The char starts held: it takes output, offers no input. */
int fvm_char_open(struct fvm_loop *loop, const char *spec, fvm_char_filter filter, void *filter_ctx,
                  struct fvm_char **ret_char, struct fvm_err *err);
void fvm_char_close(struct fvm_char **char_p); /* removes its socket */
void fvm_char_attach(struct fvm_char *ch, const struct fvm_char_hooks *hooks);
struct fvm_serial_backend fvm_char_backend(struct fvm_char *ch);
/** While held no input reaches the chip (a paused or not yet started VM). */
void fvm_char_hold(struct fvm_char *ch, bool hold);

#endif
