/*
 * loop.h - the event loop of a process' I/O thread (wraps sd-event; nothing else includes it).
 *
 * Every callback runs on the thread that runs the loop. Only fvm_loop_post and fvm_loop_stop may be called
 * from other threads. A "guard" (lock/unlock pair) can be set: the loop takes it around every callback, which
 * is how device code on the loop and device code on a vCPU thread exclude each other (see vmm/mem/bus.h).
 */
#ifndef FVM_BASE_LOOP_H
#define FVM_BASE_LOOP_H

#include "base/types.h"

struct fvm_loop;
struct fvm_loop_io;
struct fvm_loop_timer;

enum { FVM_LOOP_IN = 1, FVM_LOOP_OUT = 2, FVM_LOOP_HUP = 4, FVM_LOOP_ERR = 8 };

typedef void (*fvm_loop_io_fn)(void *ctx, int fd, unsigned revents);
typedef void (*fvm_loop_fn)(void *ctx);

int fvm_loop_create(struct fvm_loop **ret_loop);
void fvm_loop_destroy(struct fvm_loop **loop_p);
void fvm_loop_set_guard(struct fvm_loop *loop, fvm_loop_fn lock, fvm_loop_fn unlock, void *ctx);
/** Runs until fvm_loop_stop; returns the status given there or a negative code. */
int fvm_loop_run(struct fvm_loop *loop);
/** One turn: waits at most timeout_ns (UINT64_MAX: for ever), handles what is ready. 1 = something ran. */
int fvm_loop_turn(struct fvm_loop *loop, uint64_t timeout_ns);
/** Any thread. */
void fvm_loop_stop(struct fvm_loop *loop, int status);
/** Any thread: fn(ctx) will run on the loop's thread, in order of posting. Never blocks for long. */
int fvm_loop_post(struct fvm_loop *loop, fvm_loop_fn fn, void *ctx);
/** Take back every post of fn(ctx) that has not run yet; whether there was one. Loop's thread, or while it does not run. */
bool fvm_loop_post_cancel(struct fvm_loop *loop, fvm_loop_fn fn, void *ctx);

int fvm_loop_io_add(struct fvm_loop *loop, int fd, unsigned events, fvm_loop_io_fn fn, void *ctx,
                    struct fvm_loop_io **ret_io);
int fvm_loop_io_set(struct fvm_loop_io *io, unsigned events);
void fvm_loop_io_remove(struct fvm_loop_io **io_p);

/** One-shot timer on CLOCK_MONOTONIC, disarmed at first. */
int fvm_loop_timer_add(struct fvm_loop *loop, fvm_loop_fn fn, void *ctx, struct fvm_loop_timer **ret_timer);
/** Arm for an absolute CLOCK_MONOTONIC time; UINT64_MAX disarms. Any thread (posts when not the loop's own). */
void fvm_loop_timer_arm(struct fvm_loop_timer *timer, uint64_t deadline_ns);
void fvm_loop_timer_remove(struct fvm_loop_timer **timer_p);

/** SIGINT, SIGTERM... delivered as a callback (signalfd). Call before threads start. */
int fvm_loop_signal_add(struct fvm_loop *loop, int signo, fvm_loop_fn fn, void *ctx);
/** The child `pid` (ours) ended: fn(ctx, status as from waitpid). */
int fvm_loop_child_add(struct fvm_loop *loop, int pid, void (*fn)(void *ctx, int pid, int status), void *ctx);

/** CLOCK_MONOTONIC now, ns. */
uint64_t fvm_now_ns(void);
/** CLOCK_REALTIME now, ns. */
uint64_t fvm_wall_ns(void);

#endif
