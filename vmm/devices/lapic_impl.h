/*
 * lapic_impl.h - the local APICs' registers, shared by lapic.c (behaviour) and lapic_state.c (save, check, restore);
 * nobody else includes it.
 */
#ifndef FVM_VMM_DEVICES_LAPIC_IMPL_H
#define FVM_VMM_DEVICES_LAPIC_IMPL_H

#include "vmm/devices/lapic.h"

enum { LVT_TIMER, LVT_THERMAL, LVT_PERF, LVT_LINT0, LVT_LINT1, LVT_ERROR, LVT_COUNT };

#define LVT_MASKED 0x10000u
#define LVT_LEVEL 0x8000u
#define LVT_TIMER_MODE(lvt) (((lvt) >> 17) & 3)
#define SVR_ENABLED 0x100u
#define BASE_BSP 0x100ull
#define BASE_X2APIC 0x400ull
#define BASE_ENABLED 0x800ull

struct lapic_cpu {
    struct lapic *chip;
    unsigned index;
    uint64_t apic_base;
    uint32_t id, tpr, ldr, dfr, svr;
    uint32_t isr[8], tmr[8], irr[8];
    uint32_t esr, esr_pending;
    uint64_t icr;
    uint32_t lvt[LVT_COUNT];
    uint32_t timer_initial, timer_divide;
    uint64_t timer_start_ns, timer_expire_ns;
    uint64_t tsc_deadline;
    bool extint;
    struct fvm_timer *timer;
};

struct lapic {
    struct fvm_device dev;
    unsigned count;
    struct lapic_cpu cpu[FVM_LAPIC_CPUS_MAX];
    int (*intack)(void *ctx);
    void *intack_ctx;
    int claim_id;
};

extern const uint32_t fvm_lapic_lvt_writable[LVT_COUNT];

int fvm_lapic_save(struct fvm_device *dev, uint8_t **ret_buf, size_t *ret_len);
int fvm_lapic_check(struct fvm_device *dev, const uint8_t *buf, size_t len, struct fvm_err *err);
void fvm_lapic_restore(struct fvm_device *dev, const uint8_t *buf, size_t len);

#endif
