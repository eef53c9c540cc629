/*
 * gdb.h - a stub for gdb's remote protocol ("Debugging with GDB", appendix E): one debugger at a time.
 *
 *   gdb -ex 'target remote 127.0.0.1:1234'        or 'target remote /path/of/socket'
 *
 * A debugger that connects halts the VM; when it detaches or goes away, breakpoints go with it and the VM runs if it ran
 * before. Processor n is thread n + 1. Files: gdb.c (sockets), gdb_session.c (the protocol, without sockets).
 *
 * Thread: loop. Test: tests/unit/gdb.c, tests/fuzz/gdb.c, tests/e2e/gdb
 */
#ifndef FVM_VMM_GDB_H
#define FVM_VMM_GDB_H

#include "base/err.h"
#include "base/loop.h"
#include "vmm/vm_debug.h"

struct fvm_gdb_target { /* what is debugged; all on the loop's thread */
    unsigned (*cpus)(void *ctx);
    size_t (*reg)(void *ctx, unsigned cpu, unsigned reg, uint8_t ret[FVM_DEBUG_REG_BYTES]);
    int (*set_reg)(void *ctx, unsigned cpu, unsigned reg, const uint8_t *bytes);
    int (*read)(void *ctx, unsigned cpu, fvm_gva va, void *buf, size_t len);
    int (*write)(void *ctx, unsigned cpu, fvm_gva va, const void *buf, size_t len);
    int (*breakpoint)(void *ctx, unsigned cpu, enum fvm_debug_kind kind, fvm_gva va, size_t len, bool set);
    int (*halt)(void *ctx);              /* stands still when it returns */
    int (*go)(void *ctx, int step_cpu);  /* < 0: all run */
    enum fvm_debug_reason (*why)(void *ctx, unsigned *ret_cpu, uint64_t *ret_addr, enum fvm_debug_kind *ret_kind);
    void (*forget)(void *ctx);           /* all breakpoints */
    void (*kill)(void *ctx);
    void *ctx;
};

struct fvm_gdb;
/** addr: "unix:PATH", "tcp:ADDR:PORT", "tcp:PORT"; loopback only: whoever connects owns the guest. */
int fvm_gdb_create(struct fvm_loop *loop, const char *addr, const struct fvm_gdb_target *target, struct fvm_gdb **ret_gdb,
                   struct fvm_err *err);
void fvm_gdb_destroy(struct fvm_gdb **gdb_p);
/** The target stopped by itself (a breakpoint, a step's end, an operator). */
void fvm_gdb_stopped(struct fvm_gdb *gdb);
/** The guest is no more: exit status, or the signal it "died" of. */
void fvm_gdb_exited(struct fvm_gdb *gdb, unsigned status, unsigned signal);

/* ---- gdb_session.c ---- */
enum { FVM_GDB_PACKET_MAX = 0x4000 };

struct fvm_gdb_session;
int fvm_gdb_session_create(const struct fvm_gdb_target *target, struct fvm_gdb_session **ret_session);
/** Lets go of the target: breakpoints are gone, it runs if it did when the session began. */
void fvm_gdb_session_destroy(struct fvm_gdb_session **session_p);
/** 0, or FVM_ECLOSED: detached or killed; FVM_EPROTO, FVM_ENOMEM. The connection ends once the output is sent. */
int fvm_gdb_session_input(struct fvm_gdb_session *session, const uint8_t *bytes, size_t len);
void fvm_gdb_session_stopped(struct fvm_gdb_session *session);
void fvm_gdb_session_exited(struct fvm_gdb_session *session, unsigned status, unsigned signal);
/** What is to be sent; taking it away is the caller's: *ret_len bytes, then fvm_gdb_session_sent. */
const uint8_t *fvm_gdb_session_output(struct fvm_gdb_session *session, size_t *ret_len);
void fvm_gdb_session_sent(struct fvm_gdb_session *session, size_t len);

#endif
