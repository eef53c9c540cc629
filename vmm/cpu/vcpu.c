/*
 * vcpu.c - a virtual processor as others see it: thread, parking, requests, the report of a dead guest.
 */
#include "vmm/cpu/vcpu.h"

#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "base/log.h"
#include "vmm/cpu/debug.h"
#include "vmm/cpu/descriptor.h"
#include "vmm/cpu/system.h"
#include "vmm/cpu/translate/engine.h"

#define VCPU_BYTES FVM_ALIGN_UP(FVM_OFF_JC + FVM_JC_BYTES + 64ull, FVM_PAGE_SIZE)

int fvm_vcpu_create(struct fvm_engine *engine, unsigned index, const struct fvm_cpu_model *model, struct fvm_bus *bus,
                    struct fvm_irq *irq, struct fvm_clock *clock, const struct fvm_vcpu_hooks *hooks,
                    struct fvm_vcpu **ret_vcpu, struct fvm_err *err)
{
    fvm_assert(index < FVM_ARRAY_SIZE(engine->vcpus) && index == engine->vcpu_count);
    struct fvm_vcpu_priv *p = calloc(1, sizeof *p);
    struct fvm_vcpu *v = mmap(NULL, VCPU_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (!p || v == MAP_FAILED) {
        free(p);
        return fvm_err_set(err, FVM_ENOMEM, errno, "cpu", "out of memory for a vCPU");
    }
    int r = fvm_shadow_create(engine->ram, &v->shadow, err);
    if (r) {
        free(p);
        munmap(v, VCPU_BYTES);
        return r;
    }
    fvm_shadow_set_head_used(v->shadow, FVM_HEAD_USED);
    v->magic = FVM_VCPU_MAGIC;
    v->index = index;
    v->model = model;
    v->ram = engine->ram;
    v->bus = bus;
    v->irq = irq;
    v->clock = clock;
    v->engine = engine;
    v->priv = p;
    *fvm_slot(v, FVM_SLOT_SELF) = (uint64_t)(uintptr_t)v;
    p->v = v;
    p->host_cpus = (unsigned)sysconf(_SC_NPROCESSORS_ONLN);
    p->stop = true;
    p->link_exit = FVM_NONE;
    if (hooks)
        p->hooks = *hooks;
    pthread_mutex_init(&p->lock, NULL);
    pthread_cond_init(&p->cond, NULL);
    engine->vcpus[engine->vcpu_count++] = v;
    fvm_vcpu_reset_state(v, false);
    fvm_control_reload(v);
    *ret_vcpu = v;
    return 0;
}

void fvm_vcpu_destroy(struct fvm_vcpu **vcpu_p)
{
    struct fvm_vcpu *v = *vcpu_p;
    if (!v)
        return;
    struct fvm_vcpu_priv *p = v->priv;
    fvm_vcpu_stop_thread(v);
    struct fvm_engine *e = v->engine;
    for (unsigned k = 0; k < e->vcpu_count; k++)
        if (e->vcpus[k] == v) {
            e->vcpus[k] = e->vcpus[--e->vcpu_count];
            break;
        }
    fvm_shadow_destroy(&v->shadow);
    pthread_mutex_destroy(&p->lock);
    pthread_cond_destroy(&p->cond);
    free(p);
    munmap(v, VCPU_BYTES);
    *vcpu_p = NULL;
}

/* This thread runs the vCPU from now on: it is inside (world.c). */
static void thread_begin(struct fvm_vcpu *v)
{
    struct fvm_vcpu_priv *p = v->priv;
    p->thread = pthread_self();
    __atomic_store_n(&p->tid, (int)syscall(SYS_gettid), __ATOMIC_RELEASE);
    fvm_bus_set_cpu(v->index); /* local APIC registers are at one address for all */
    fvm_bus_set_wait(fvm_world_blocking, v);
    fvm_world_enter(v);
}

static void thread_end(struct fvm_vcpu *v)
{
    struct fvm_vcpu_priv *p = v->priv;
    fvm_world_leave(v);
    fvm_bus_set_wait(NULL, NULL);
    __atomic_store_n(&p->tid, 0, __ATOMIC_RELEASE);
}

static void *thread_main(void *arg)
{
    struct fvm_vcpu_priv *p = arg;
    struct fvm_vcpu *v = p->v;
    thread_begin(v);
    fvm_world_leave(v);
    int r = fvm_signal_thread_init(p);
    fvm_assert(!r);
    fvm_run_park(p);
    fvm_world_enter(v);
    while (!p->quit) {
        struct fvm_run_result unused;
        if (fvm_debug_hold(v))
            continue;
        if (fvm_run_step(v, &unused) || p->quit)
            continue;
        /* shutdown: tell the VM, then wait until somebody restarts or ends this vCPU */
        if (p->hooks.shutdown)
            p->hooks.shutdown(p->hooks.ctx, v, p->why ? p->why : "stopped");
        pthread_mutex_lock(&p->lock);
        p->stop = true;
        pthread_mutex_unlock(&p->lock);
        fvm_run_park(p);
    }
    fvm_signal_thread_fini(p);
    thread_end(v);
    return NULL;
}

int fvm_vcpu_start_thread(struct fvm_vcpu *v)
{
    struct fvm_vcpu_priv *p = v->priv;
    sigset_t all, old;
    sigfillset(&all);
    sigdelset(&all, FVM_KICK_SIGNAL);
    sigdelset(&all, SIGSEGV);
    sigdelset(&all, SIGBUS);
    sigdelset(&all, SIGFPE);
    sigdelset(&all, SIGILL);
    pthread_sigmask(SIG_SETMASK, &all, &old); /* inherited: process signals go to the I/O thread */
    p->stop = true;
    p->has_thread = true;
    int r = pthread_create(&p->thread, NULL, thread_main, p);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    if (r) {
        p->has_thread = false;
        return fvm_err_from_errno(r);
    }
    pthread_mutex_lock(&p->lock);
    while (!p->parked)
        pthread_cond_wait(&p->cond, &p->lock);
    pthread_mutex_unlock(&p->lock);
    return 0;
}

void fvm_vcpu_resume(struct fvm_vcpu *v)
{
    struct fvm_vcpu_priv *p = v->priv;
    pthread_mutex_lock(&p->lock);
    p->stop = false;
    pthread_cond_broadcast(&p->cond);
    pthread_mutex_unlock(&p->lock);
}

void fvm_vcpu_park(struct fvm_vcpu *v)
{
    struct fvm_vcpu_priv *p = v->priv;
    if (!p->has_thread)
        return;
    fvm_assert(!pthread_equal(pthread_self(), p->thread));
    pthread_mutex_lock(&p->lock);
    p->stop = true;
    pthread_mutex_unlock(&p->lock);
    fvm_vcpu_request(v, FVM_REQ_STOP);
    pthread_mutex_lock(&p->lock);
    while (!p->parked)
        pthread_cond_wait(&p->cond, &p->lock);
    pthread_mutex_unlock(&p->lock);
}

void fvm_vcpu_stop_thread(struct fvm_vcpu *v)
{
    struct fvm_vcpu_priv *p = v->priv;
    if (!p->has_thread)
        return;
    fvm_vcpu_park(v);
    pthread_mutex_lock(&p->lock);
    p->quit = true;
    pthread_cond_broadcast(&p->cond);
    pthread_mutex_unlock(&p->lock);
    pthread_join(p->thread, NULL);
    p->has_thread = false;
    p->quit = false;
}

void fvm_vcpu_request(struct fvm_vcpu *v, uint32_t bits)
{
    struct fvm_vcpu_priv *p = v->priv;
    __atomic_or_fetch(&v->request, bits, __ATOMIC_SEQ_CST);
    if (__atomic_load_n(&p->sleeping, __ATOMIC_SEQ_CST)) {
        pthread_mutex_lock(&p->lock);
        pthread_cond_broadcast(&p->cond);
        pthread_mutex_unlock(&p->lock);
    } else if (__atomic_load_n(fvm_slot(v, FVM_SLOT_IN_CODE), __ATOMIC_SEQ_CST)) {
        int tid = __atomic_load_n(&p->tid, __ATOMIC_ACQUIRE);
        if (tid && !pthread_equal(pthread_self(), p->thread))
            syscall(SYS_tgkill, getpid(), tid, FVM_KICK_SIGNAL);
    }
}

uint64_t fvm_vcpu_cpu_ns(const struct fvm_vcpu *v)
{
    const struct fvm_vcpu_priv *p = v->priv;
    clockid_t clk;
    struct timespec ts;
    if (!p->has_thread || pthread_getcpuclockid(p->thread, &clk) || clock_gettime(clk, &ts))
        return 0;
    return (uint64_t)ts.tv_sec * 1000000000ull + (uint64_t)ts.tv_nsec;
}

static void dump_code(const struct fvm_vcpu *v, FILE *out)
{
    struct fvm_insn in;
    char text[128];
    uint64_t lin = fvm_mode_linear(fvm_mode_of(v), v->rip), entry = fvm_shadow_peek(v->shadow, lin);
    unsigned o = lin & FVM_PAGE_MASK;
    if (!(entry & (FVM_S_KX | FVM_S_UX)) || !fvm_canonical(lin))
        return;
    const uint8_t *page = (const uint8_t *)((lin & ~FVM_PAGE_MASK) + (entry & ~0xffull));
    for (unsigned n = 0; n < 6 && o < FVM_PAGE_SIZE; n++) {
        if (fvm_decode(page + o, FVM_PAGE_SIZE - o, fvm_vcpu_code_bits(v), &in) != FVM_DECODE_OK)
            break;
        fprintf(out, "  %016" PRIx64 "  %s\n", (uint64_t)((lin & ~FVM_PAGE_MASK) + o),
                fvm_decode_text(&in, (lin & ~FVM_PAGE_MASK) + o, text, sizeof text));
        o += in.len;
    }
}

void fvm_vcpu_dump(const struct fvm_vcpu *v, FILE *out)
{
    static const char *const names[16] = {"rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi",
                                          "r8 ", "r9 ", "r10", "r11", "r12", "r13", "r14", "r15"};
    static const char *const segs[6] = {"es", "cs", "ss", "ds", "fs", "gs"};
    const struct fvm_vcpu_priv *p = v->priv;
    fprintf(out, "cpu%u rip %016" PRIx64 " rflags %08" PRIx64 " cpl %u run %u%s%s\n", v->index, v->rip, fvm_vcpu_rflags(v), v->cpl,
            v->run, p->why ? " why: " : "", p->why ? p->why : "");
    for (unsigned k = 0; k < 16; k++)
        fprintf(out, "%s %016" PRIx64 "%s", names[k], v->regs[k], k % 4 == 3 ? "\n" : "  ");
    for (unsigned k = 0; k < 6; k++)
        fprintf(out, "%s %04x base %016" PRIx64 " limit %08x attr %04x\n", segs[k], v->seg[k].sel, v->seg[k].base, v->seg[k].limit,
                v->seg[k].attr);
    fprintf(out, "cr0 %" PRIx64 " cr2 %" PRIx64 " cr3 %" PRIx64 " cr4 %" PRIx64 " efer %" PRIx64 "\n", v->cr0, v->cr2, v->cr3, v->cr4,
            v->efer);
    fprintf(out, "gdt %" PRIx64 "+%x idt %" PRIx64 "+%x tr %04x base %" PRIx64 "\n", v->gdtr.base, v->gdtr.limit, v->idtr.base,
            v->idtr.limit, v->tr.sel, v->tr.base);
    fprintf(out, "code:\n");
    dump_code(v, out);
    fprintf(out, "last blocks dispatched, newest last:\n");
    uint32_t n = FVM_MIN(p->ring_pos, 48u);
    for (uint32_t k = p->ring_pos - n; k != p->ring_pos; k++)
        fprintf(out, "  %016" PRIx64 " mode %" PRIx64 "\n", p->ring[k % FVM_RING].rip, p->ring[k % FVM_RING].mode);
}

void fvm_vcpu_run_until(struct fvm_vcpu *v, uint64_t until_rip, uint64_t max_blocks, struct fvm_run_result *ret)
{
    struct fvm_vcpu_priv *p = v->priv;
    bool own_stack = !p->sigstack, own_thread = !p->tid;
    *ret = (struct fvm_run_result){0};
    if (own_stack)
        fvm_signal_thread_init(p);
    if (own_thread)
        thread_begin(v);
    p->return_faults = true;
    p->run_until_on = true;
    p->run_until = until_rip;
    while (v->rip != until_rip) {
        if (!max_blocks--) {
            ret->limit = true;
            break;
        }
        if (!fvm_run_step(v, ret))
            break;
    }
    p->return_faults = p->run_until_on = false;
    if (own_thread)
        thread_end(v);
    if (own_stack)
        fvm_signal_thread_fini(p);
}
