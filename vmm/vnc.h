/*
 * vnc.h - an RFB 3.8 server (RFC 6143) for a VM's screen, keyboard and mouse; also spoken: 3.3 and 3.7.
 *
 * Encodings raw and hextile, pseudo-encodings DesktopSize and QEMU's extended key event (scan codes: right on every
 * keyboard layout). What changed is found by comparing with what the client has, so a screen that nobody looks at costs
 * nothing. Security: none, or the VNC password (8 characters, DES: keeps honest people out, no more); behind a UNIX
 * socket or loopback by default. Files: vnc.c (sockets), vnc_session.c (the protocol, without sockets), vnc_encode.c
 * (pixels).
 *
 * Thread: loop. Test: tests/unit/vnc.c, tests/fuzz/vnc.c, tests/e2e/display
 */
#ifndef FVM_VMM_VNC_H
#define FVM_VMM_VNC_H

#include "base/err.h"
#include "base/loop.h"
#include "vmm/devices/vga.h"

enum { FVM_VNC_CLIENTS_MAX = 4, FVM_VNC_PASSWORD_MAX = 8 };

struct fvm_vnc_host { /* what the server shows and drives */
    int (*screen)(void *ctx, struct fvm_surface *ret);
    void (*key)(void *ctx, unsigned key, bool down); /* vmm/devices/ps2.h's numbers */
    void (*mouse)(void *ctx, int dx, int dy, int dz, unsigned buttons);
    void *ctx;
    const char *name; /* borrowed: the desktop's name */
};

struct fvm_vnc;
/**
 * fvm_vnc_create - listen.
 * @addr           "unix:PATH", "ADDR:PORT" with a numeric ADDR, "[ADDR]:PORT" or "PORT" on 127.0.0.1.
 * @password_file  its first line is the password; NULL: none, then ADDR must be loopback or a UNIX socket.
 */
int fvm_vnc_create(struct fvm_loop *loop, const char *addr, const char *password_file, const struct fvm_vnc_host *host,
                   struct fvm_vnc **ret_vnc, struct fvm_err *err);
void fvm_vnc_destroy(struct fvm_vnc **vnc_p);

/* ---- vnc_session.c: one client, bytes in and bytes out ---- */
enum { FVM_VNC_OUT_MAX = 64 << 20 };

struct fvm_vnc_format { /* of the client's pixels: true colour */
    uint8_t bits, depth, big_endian, shift[3];
    uint16_t max[3];
};
struct fvm_vnc_buffer {
    uint8_t *bytes; /* malloc'd */
    size_t len, room;
    bool failed;    /* out of memory, or beyond FVM_VNC_OUT_MAX */
};
struct fvm_vnc_session;
/** password: NULL or at most 8 characters; challenge: 16 random bytes, used with a password. */
int fvm_vnc_session_create(const struct fvm_vnc_host *host, const char *password, const uint8_t challenge[16],
                           struct fvm_vnc_session **ret_session);
/** Lets go of the keys that the client holds. */
void fvm_vnc_session_destroy(struct fvm_vnc_session **session_p);
/** 0, or the connection ends once the output is sent: FVM_EPROTO, FVM_EAUTH, FVM_ENOMEM. */
int fvm_vnc_session_input(struct fvm_vnc_session *session, const uint8_t *bytes, size_t len);
/** Draw and send what changed, if the client asked and has taken everything so far. Does it wait for a picture? */
bool fvm_vnc_session_update(struct fvm_vnc_session *session);
struct fvm_vnc_buffer *fvm_vnc_session_output(struct fvm_vnc_session *session);

/* ---- vnc_encode.c ---- */
void fvm_vnc_put(struct fvm_vnc_buffer *out, const void *bytes, size_t len);
void fvm_vnc_put16(struct fvm_vnc_buffer *out, unsigned value);
void fvm_vnc_put32(struct fvm_vnc_buffer *out, uint32_t value);
/** A rectangle's pixels, without its header. */
void fvm_vnc_encode_raw(struct fvm_vnc_buffer *out, const struct fvm_vnc_format *format,
                        const struct fvm_surface *surface, unsigned x, unsigned y, unsigned width, unsigned height);
void fvm_vnc_encode_hextile(struct fvm_vnc_buffer *out, const struct fvm_vnc_format *format,
                            const struct fvm_surface *surface, unsigned x, unsigned y, unsigned width, unsigned height);

#endif
