/*
 * debug.c - breakpoints and stops for a debugger. See debug.h.
 *
 * Invariant: breaks and break_map say the same; both change only while every vCPU is parked, and all code is
 * translated anew afterwards.
 */
#include "vmm/cpu/debug.h"

#include <string.h>

#include "vmm/cpu/control.h"
#include "vmm/cpu/translate/engine.h"

static void rebuild(struct fvm_engine *e)
{
    memset(e->break_map, 0, sizeof(e->break_map));
    for (uint32_t i = 0; i < e->break_count; i++)
        e->break_map[(e->breaks[i] & FVM_PAGE_MASK) >> 3] |= (uint8_t)(1u << (e->breaks[i] & 7));
    if (e->vcpu_count) /* the first that runs flushes, with the world stopped */
        fvm_vcpu_request(e->vcpus[0], FVM_REQ_INVALIDATE);
    for (unsigned i = 1; i < e->vcpu_count; i++)
        fvm_vcpu_request(e->vcpus[i], FVM_REQ_INVALIDATE);
}

static uint32_t find(const struct fvm_engine *e, uint64_t linear)
{
    uint32_t i = 0;
    while (i < e->break_count && e->breaks[i] != linear)
        i++;
    return i;
}

int fvm_debug_break_set(struct fvm_engine *e, uint64_t linear)
{
    if (find(e, linear) < e->break_count)
        return FVM_EEXIST;
    if (e->break_count == FVM_DEBUG_BREAKS_MAX)
        return FVM_ENOSPC;
    e->breaks[e->break_count++] = linear;
    rebuild(e);
    return 0;
}

int fvm_debug_break_clear(struct fvm_engine *e, uint64_t linear)
{
    uint32_t i = find(e, linear);
    if (i == e->break_count)
        return FVM_ENOENT;
    e->breaks[i] = e->breaks[--e->break_count];
    rebuild(e);
    return 0;
}

void fvm_debug_break_clear_all(struct fvm_engine *e)
{
    if (!e->break_count)
        return;
    e->break_count = 0;
    rebuild(e);
}

enum fvm_debug_reason fvm_debug_why(const struct fvm_vcpu *v, uint64_t *ret_addr)
{
    const struct fvm_vcpu_priv *p = v->priv;
    *ret_addr = p->debug_addr;
    return __atomic_load_n(&p->debug_reason, __ATOMIC_SEQ_CST);
}

static void set_reason(struct fvm_vcpu *v, enum fvm_debug_reason reason)
{
    struct fvm_vcpu_priv *p = v->priv;
    __atomic_store_n(&p->debug_reason, (uint8_t)reason, __ATOMIC_SEQ_CST);
}

void fvm_debug_go(struct fvm_vcpu *v, bool step)
{
    struct fvm_vcpu_priv *p = v->priv;
    p->debug_step = step;
    p->debug_hit = false;
    set_reason(v, FVM_DEBUG_NONE);
}

void fvm_debug_keep(struct fvm_vcpu *v)
{
    struct fvm_vcpu_priv *p = v->priv;
    p->debug_step = false;
    set_reason(v, FVM_DEBUG_HELD);
}

void fvm_debug_paging(const struct fvm_vcpu *v, struct fvm_paging *ret) { fvm_control_paging(v, ret); }

void fvm_debug_changed(struct fvm_vcpu *v) { fvm_control_reload(v); }

void fvm_debug_hit(struct fvm_vcpu *v, uint64_t addr)
{
    struct fvm_vcpu_priv *p = v->priv;
    p->debug_hit = true;
    p->debug_addr = addr;
}

bool fvm_debug_stop_here(struct fvm_vcpu *v)
{
    struct fvm_vcpu_priv *p = v->priv;
    const struct fvm_engine *e = v->engine;
    if (p->debug_step || v->run != FVM_RUN_NORMAL || p->return_faults)
        return false; /* the step begins here */
    uint64_t linear = fvm_mode_linear(fvm_mode_of(v), v->rip);
    if (!fvm_debug_near(e, linear) || find(e, linear) == e->break_count)
        return false;
    set_reason(v, FVM_DEBUG_BREAK);
    return true;
}

/* An instruction was executed, or began and will fault. */
void fvm_debug_executed(struct fvm_vcpu *v)
{
    struct fvm_vcpu_priv *p = v->priv;
    if (FVM_LIKELY(!p->debug_step))
        return;
    set_reason(v, FVM_DEBUG_STEP);
    p->debug_step = false;
}

/* Stands still as long as there is a reason; tells who wants to know. True: it did. */
bool fvm_debug_hold(struct fvm_vcpu *v)
{
    struct fvm_vcpu_priv *p = v->priv;
    if (FVM_UNLIKELY(p->debug_hit)) {
        p->debug_hit = p->debug_step = false;
        set_reason(v, FVM_DEBUG_WATCH);
    }
    enum fvm_debug_reason reason = __atomic_load_n(&p->debug_reason, __ATOMIC_ACQUIRE);
    if (FVM_LIKELY(reason == FVM_DEBUG_NONE))
        return false;
    if (reason != FVM_DEBUG_HELD && p->hooks.debug)
        p->hooks.debug(p->hooks.ctx, v);
    do {
        pthread_mutex_lock(&p->lock);
        p->stop = true;
        pthread_mutex_unlock(&p->lock);
        fvm_run_park(p);
    } while (!p->quit && __atomic_load_n(&p->debug_reason, __ATOMIC_SEQ_CST) != FVM_DEBUG_NONE);
    return true;
}
