/*
 * vm_throttle.c - see vm_throttle.h. Parks and resumes vCPUs as a dirty epoch does, only longer.
 *
 * A bucket of pages: it fills at the rate, and grants are taken out; when it is below nothing, the writers are kept
 * until it would not be.
 *
 * Other operations go on while writers are kept. One that lets all vCPUs go again (a dirty epoch) lets ours go too,
 * until they are parked anew a moment later; one that pauses the VM finds them parked, and `let_go` leaves them so.
 *
 * Invariant: when `keep` returns, a VM that runs has no vCPU parked because of this file.
 */
#include "vmm/vm_throttle.h"

#include <stdlib.h>
#include <time.h>

#include "vmm/mmu/shadow.h"
#include "vmm/vm_internal.h"

#define LOOK_NS 250000ull /* so often grants are looked at, and kept vCPUs parked anew */
#define BUCKET_NS 10000000ull
#define DEBT_NS 1000000000ull

struct fvm_throttle {
    struct fvm_vm *vm; /* borrowed */
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    uint64_t rate;      /* lock: pages per second */
    bool keeping, quit; /* lock */
    uint64_t kept_ns;   /* atomic */
    /* own thread */
    uint64_t grants[FVM_CONFIG_CPUS_MAX]; /* as of the last look */
    uint64_t wrote[FVM_CONFIG_CPUS_MAX];  /* of each, fading */
    uint64_t looked_ns;
    double bucket;
};

static uint64_t grants_of(struct fvm_vcpu *v)
{
    return __atomic_load_n(&fvm_shadow_get_stats(v->shadow)->write_grants, __ATOMIC_RELAXED);
}

/* Grants since the last look. */
static uint64_t look(struct fvm_throttle *t)
{
    uint64_t all = 0;
    for (unsigned i = 0; i < t->vm->vcpu_count; i++) {
        uint64_t now = grants_of(t->vm->vcpus[i]);
        t->wrote[i] = t->wrote[i] * 7 / 8 + (now - t->grants[i]);
        all += now - t->grants[i];
        t->grants[i] = now;
    }
    return all;
}

/* The vCPUs that wrote at least a quarter of what the busiest writer did, as bits. */
static uint64_t writers(const struct fvm_throttle *t)
{
    uint64_t most = 1, who = 0;
    _Static_assert(FVM_CONFIG_CPUS_MAX <= 64, "a bit for each");
    for (unsigned i = 0; i < t->vm->vcpu_count; i++)
        most = FVM_MAX(most, t->wrote[i]);
    for (unsigned i = 0; i < t->vm->vcpu_count; i++)
        who |= (uint64_t)(t->wrote[i] * 4 >= most) << i;
    return who;
}

/* lock held: until something is changed, or ns are over. */
static void doze(struct fvm_throttle *t, uint64_t ns)
{
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    uint64_t at = (uint64_t)until.tv_nsec + ns;
    until.tv_sec += (time_t)(at / 1000000000);
    until.tv_nsec = (long)(at % 1000000000);
    pthread_cond_timedwait(&t->changed, &t->lock, &until);
}

/* Parks them, or lets them go, unless the VM stands still for another reason. */
static void park(struct fvm_vm *vm, uint64_t who, bool parked)
{
    pthread_mutex_lock(&vm->op_lock);
    for (unsigned i = 0; i < vm->vcpu_count && atomic_load(&vm->state) == FVM_VM_RUNNING; i++)
        if (who >> i & 1)
            (parked ? fvm_vcpu_park : fvm_vcpu_resume)(vm->vcpus[i]);
    pthread_mutex_unlock(&vm->op_lock);
}

/* lock held on entry and return. */
static void keep(struct fvm_throttle *t, uint64_t ns)
{
    uint64_t who = writers(t), start = fvm_now_ns();
    while (t->rate && !t->quit && fvm_now_ns() - start < ns) {
        pthread_mutex_unlock(&t->lock);
        park(t->vm, who, true);
        pthread_mutex_lock(&t->lock);
        if (t->rate)
            doze(t, LOOK_NS);
    }
    pthread_mutex_unlock(&t->lock);
    park(t->vm, who, false);
    __atomic_add_fetch(&t->kept_ns, fvm_now_ns() - start, __ATOMIC_RELAXED);
    pthread_mutex_lock(&t->lock);
}

/* How long the writers must be kept now. */
static uint64_t owed_ns(struct fvm_throttle *t, uint64_t rate)
{
    uint64_t now = fvm_now_ns();
    double seconds = (double)(now - t->looked_ns) / 1e9, per_s = (double)rate;
    t->looked_ns = now;
    t->bucket = FVM_MIN(t->bucket + per_s * seconds, per_s * BUCKET_NS / 1e9) - (double)look(t);
    t->bucket = FVM_MAX(t->bucket, -per_s * DEBT_NS / 1e9);
    return t->bucket < 0 ? (uint64_t)(-t->bucket / per_s * 1e9) : 0;
}

static void *throttle_main(void *arg)
{
    struct fvm_throttle *t = arg;
    pthread_mutex_lock(&t->lock);
    while (!t->quit) {
        if (!t->rate) {
            pthread_cond_wait(&t->changed, &t->lock);
            (void)look(t); /* what was written before is free */
            t->looked_ns = fvm_now_ns();
            t->bucket = 0;
            continue;
        }
        uint64_t ns = owed_ns(t, t->rate);
        t->keeping = true;
        if (ns)
            keep(t, ns);
        t->keeping = false;
        pthread_cond_broadcast(&t->changed);
        if (t->rate)
            doze(t, LOOK_NS);
    }
    pthread_mutex_unlock(&t->lock);
    return NULL;
}

int fvm_throttle_create(struct fvm_vm *vm, struct fvm_throttle **ret_throttle)
{
    struct fvm_throttle *t = calloc(1, sizeof(*t));
    if (!t)
        return FVM_ENOMEM;
    t->vm = vm;
    pthread_mutex_init(&t->lock, NULL);
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&t->changed, &attr);
    pthread_condattr_destroy(&attr);
    int e = pthread_create(&t->thread, NULL, throttle_main, t);
    if (e) {
        pthread_cond_destroy(&t->changed);
        pthread_mutex_destroy(&t->lock);
        free(t);
        return fvm_err_from_errno(e);
    }
    *ret_throttle = t;
    return 0;
}

void fvm_throttle_set(struct fvm_throttle *t, uint64_t pages_per_s)
{
    pthread_mutex_lock(&t->lock);
    t->rate = pages_per_s;
    pthread_cond_broadcast(&t->changed);
    while (!t->rate && t->keeping)
        pthread_cond_wait(&t->changed, &t->lock);
    pthread_mutex_unlock(&t->lock);
}

uint64_t fvm_throttle_kept_ns(struct fvm_throttle *t) { return __atomic_load_n(&t->kept_ns, __ATOMIC_RELAXED); }

void fvm_throttle_destroy(struct fvm_throttle **throttle_p)
{
    struct fvm_throttle *t = *throttle_p;
    if (!t)
        return;
    *throttle_p = NULL;
    fvm_throttle_set(t, 0);
    pthread_mutex_lock(&t->lock);
    t->quit = true;
    pthread_cond_broadcast(&t->changed);
    pthread_mutex_unlock(&t->lock);
    pthread_join(t->thread, NULL);
    pthread_cond_destroy(&t->changed);
    pthread_mutex_destroy(&t->lock);
    free(t);
}
