/*
 * clock.h - guest time: one clock per VM, from which TSC, timers and the devices' counters derive.
 *
 * guest_ns runs with CLOCK_MONOTONIC while the VM runs and stands still while it is paused by an operator. After a
 * move it continues ahead by the real time of the blackout. The guest TSC is guest_ns scaled by tsc_khz so that the
 * frequency seen by the guest never changes; on a host whose TSC has the same frequency the engine uses
 * host TSC + offset (see fvm_clock_tsc_params).
 *
 * Timers fire on the loop thread (under the loop's guard), never early.
 */
#ifndef FVM_BASE_CLOCK_H
#define FVM_BASE_CLOCK_H

#include "base/loop.h"

struct fvm_clock;
struct fvm_timer;

struct fvm_clock_state { /* what moves with a guest */
    uint64_t guest_ns;   /* at the instant of saving */
    uint64_t guest_tsc;  /* at the same instant */
    uint32_t tsc_khz;
    uint64_t wall_ns;    /* CLOCK_REALTIME at that instant */
};

/** tsc_khz 0: the host's. The clock starts stopped, at 0. */
int fvm_clock_create(struct fvm_loop *loop, uint32_t tsc_khz, struct fvm_clock **ret_clock);
void fvm_clock_destroy(struct fvm_clock **clock_p);
void fvm_clock_start(struct fvm_clock *clock);
void fvm_clock_stop(struct fvm_clock *clock);
bool fvm_clock_running(const struct fvm_clock *clock);
/** Any thread. */
uint64_t fvm_clock_ns(const struct fvm_clock *clock);
uint64_t fvm_clock_tsc(const struct fvm_clock *clock);
uint32_t fvm_clock_tsc_khz(const struct fvm_clock *clock);
/** guest TSC value -> the guest_ns at which it is reached. */
uint64_t fvm_clock_tsc_to_ns(const struct fvm_clock *clock, uint64_t guest_tsc);
/** true: guest_tsc == host rdtsc + *ret_offset while running (no scaling needed). */
bool fvm_clock_tsc_offset(const struct fvm_clock *clock, int64_t *ret_offset);
/** Host TSC frequency in kHz, measured once (CPUID 0x15, else against CLOCK_MONOTONIC_RAW). */
uint32_t fvm_clock_host_tsc_khz(void);
/** Guest writes TSC or TSC_ADJUST: shift so that the TSC reads `guest_tsc` now. */
void fvm_clock_set_tsc(struct fvm_clock *clock, uint64_t guest_tsc);
/** wall-clock time as the guest's RTC should show, ns since 1970. */
uint64_t fvm_clock_wall_ns(const struct fvm_clock *clock);

void fvm_clock_save(const struct fvm_clock *clock, struct fvm_clock_state *ret_state);
/** Clock must be stopped. `elapsed_ns`: real time since the save to add (0 for a cold restore). */
int fvm_clock_restore(struct fvm_clock *clock, const struct fvm_clock_state *state, uint64_t elapsed_ns);

int fvm_timer_create(struct fvm_clock *clock, fvm_loop_fn fn, void *ctx, struct fvm_timer **ret_timer);
/** Absolute guest_ns; UINT64_MAX disarms. Any thread. While the clock is stopped nothing fires. */
void fvm_timer_arm(struct fvm_timer *timer, uint64_t guest_ns);
/** What it was armed for, UINT64_MAX if disarmed. */
uint64_t fvm_timer_deadline(const struct fvm_timer *timer);
void fvm_timer_destroy(struct fvm_timer **timer_p);

#endif
