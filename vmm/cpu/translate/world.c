/*
 * world.c - the engine's lock, and stopping the world: every vCPU out of translated code and at a safe point.
 *
 * A vCPU is *inside* (priv->inside != 0) whenever it may use blocks, its shadow's rights or the code cache's tables without a
 * lock: in translated code, in fast helpers, and in C between two safe points. Safe points, where it is outside for a moment:
 * the top of fvm_run_step when a request asks for it, halts and parking, waiting for this lock, waiting for the board lock.
 *
 *     stopper:  lock; stopping = 1; full barrier; for each vCPU inside: request (kicks it); wait until it is outside
 *     vCPU:     inside = 1; full barrier; stopping? then outside again, and wait
 *
 * Invariant: between fvm_world_stop and fvm_world_go no chosen vCPU but the caller's own is inside, and none becomes so. Only
 * the lock's holder stops the world, so a holder need not be outside itself. Order of locks: board lock, then this one; a holder
 * never waits for the board lock. Any thread may stop the world (a device's DMA on the loop's thread does).
 */
#include <linux/futex.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "vmm/cpu/translate/engine.h"

#define SPINS 4000 /* some tens of microseconds: longer than a kick takes to arrive */

static void futex(uint32_t *word, int op, uint32_t value)
{
    syscall(SYS_futex, word, op | FUTEX_PRIVATE_FLAG, value, NULL, NULL, 0);
}

/* Waits while *word != 0. Whoever sets it to 0 must look whether it was 2. */
static void wait_zero(uint32_t *word)
{
    uint32_t seen;
    for (unsigned k = 0; k < SPINS; k++) {
        if (!__atomic_load_n(word, __ATOMIC_ACQUIRE))
            return;
        __builtin_ia32_pause();
    }
    while ((seen = __atomic_load_n(word, __ATOMIC_ACQUIRE)) != 0) {
        if (seen == 1 && !__atomic_compare_exchange_n(word, &seen, 2, false, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE))
            continue;
        futex(word, FUTEX_WAIT, 2);
    }
}

static void set_zero(uint32_t *word)
{
    if (__atomic_exchange_n(word, 0, __ATOMIC_SEQ_CST) == 2)
        futex(word, FUTEX_WAKE, INT32_MAX);
}

struct fvm_vcpu *fvm_world_self(const struct fvm_engine *e)
{
    for (unsigned k = 0; k < e->vcpu_count; k++) {
        const struct fvm_vcpu_priv *p = e->vcpus[k]->priv;
        if (__atomic_load_n(&p->tid, __ATOMIC_ACQUIRE) && pthread_equal(p->thread, pthread_self()))
            return e->vcpus[k];
    }
    return NULL;
}

void fvm_world_enter(struct fvm_vcpu *v)
{
    struct fvm_vcpu_priv *p = v->priv;
    struct fvm_engine *e = v->engine;
    for (;;) {
        __atomic_store_n(&p->inside, 1, __ATOMIC_SEQ_CST);
        if (!__atomic_load_n(&e->stopping, __ATOMIC_SEQ_CST))
            return;
        set_zero(&p->inside);
        wait_zero(&e->stopping);
    }
}

void fvm_world_leave(struct fvm_vcpu *v)
{
    struct fvm_vcpu_priv *p = v->priv;
    set_zero(&p->inside);
}

void fvm_world_safe_point(struct fvm_vcpu *v)
{
    fvm_world_leave(v);
    fvm_world_enter(v);
}

void fvm_world_blocking(void *vcpu, bool begin)
{
    struct fvm_vcpu *v = vcpu;
    struct fvm_vcpu_priv *p = v->priv;
    if (begin) {
        p->was_inside = p->inside != 0;
        if (p->was_inside)
            fvm_world_leave(v);
    } else if (p->was_inside) {
        fvm_world_enter(v);
    }
}

bool fvm_world_trylock(struct fvm_engine *e)
{
    return !pthread_mutex_trylock(&e->lock);
}

void fvm_world_lock(struct fvm_engine *e)
{
    if (fvm_world_trylock(e))
        return;
    struct fvm_vcpu *v = fvm_world_self(e);
    struct fvm_vcpu_priv *p = v ? v->priv : NULL;
    bool inside = p && p->inside;
    if (inside)
        fvm_world_leave(v);
    fvm_assert(!pthread_mutex_lock(&e->lock));
    if (inside) /* nobody can be stopping the world now */
        __atomic_store_n(&p->inside, 1, __ATOMIC_SEQ_CST);
}

void fvm_world_unlock(struct fvm_engine *e)
{
    fvm_assert(!pthread_mutex_unlock(&e->lock));
}

static bool inside(const struct fvm_vcpu *v)
{
    const struct fvm_vcpu_priv *p = v->priv;
    return __atomic_load_n(&p->inside, __ATOMIC_SEQ_CST) != 0;
}

void fvm_world_stop(struct fvm_engine *e, uint64_t which)
{
    const struct fvm_vcpu *self = fvm_world_self(e);
    uint64_t wait = 0;
    if (!e->stop_depth++)
        __atomic_store_n(&e->stopping, 1, __ATOMIC_SEQ_CST);
    for (unsigned k = 0; k < e->vcpu_count; k++)
        if (e->vcpus[k] != self && which >> k & 1 && inside(e->vcpus[k])) {
            wait |= 1ull << k;
            fvm_vcpu_request(e->vcpus[k], FVM_REQ_SAFE_POINT);
        }
    if (!wait)
        return;
    uint64_t from_ns = fvm_now_ns();
    for (unsigned k = 0; k < e->vcpu_count; k++)
        if (wait >> k & 1) {
            struct fvm_vcpu_priv *p = e->vcpus[k]->priv;
            wait_zero(&p->inside);
        }
    uint64_t ns = fvm_now_ns() - from_ns;
    e->stats.stops++;
    e->stats.stop_ns += ns;
    e->stats.stop_ns_max = FVM_MAX(e->stats.stop_ns_max, ns);
}

void fvm_world_go(struct fvm_engine *e)
{
    fvm_assert(e->stop_depth);
    if (!--e->stop_depth)
        set_zero(&e->stopping);
}

void fvm_engine_stop(struct fvm_engine *e)
{
    fvm_world_lock(e);
    fvm_world_stop(e, FVM_WORLD_ALL);
}

void fvm_engine_go(struct fvm_engine *e)
{
    fvm_world_go(e);
    fvm_world_unlock(e);
}
