/*
 * run.c - the dispatcher: between two stretches of translated code, on the vCPU's thread.
 *
 * Each turn: what others asked for (requests), what the guest must take now (NMI, interrupts), the block for rip, and then the
 * reason why translated code was left. State in struct fvm_vcpu is precise throughout.
 */
#include <inttypes.h>
#include <stdarg.h>
#include <stdlib.h>

#include "base/log.h"
#include "vmm/cpu/control.h"
#include "vmm/cpu/debug.h"
#include "vmm/cpu/operand.h"
#include "vmm/cpu/translate/engine.h"

static void say(struct fvm_vcpu *v, unsigned what, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
static void say(struct fvm_vcpu *v, unsigned what, const char *fmt, ...)
{
    const struct fvm_engine_config *c = &v->engine->config;
    if (!(c->trace & what))
        return;
    FILE *f = c->trace_file ? c->trace_file : stderr;
    va_list ap;
    va_start(ap, fmt);
    fprintf(f, "cpu%u ", v->index);
    vfprintf(f, fmt, ap);
    fputc('\n', f);
    va_end(ap);
}

static void shutdown_vcpu(struct fvm_vcpu *v, const char *why)
{
    struct fvm_vcpu_priv *p = v->priv;
    v->run = FVM_RUN_SHUTDOWN;
    p->why = why;
}

static void deliver(struct fvm_vcpu *v, enum fvm_event_kind kind, const struct fvm_fault *f)
{
    say(v, FVM_TRACE_INT, "%s %02x code %x cr2 %" PRIx64 " rip %" PRIx64 " rsp %" PRIx64 " cpl %u",
        kind == FVM_EVENT_EXTERNAL ? "intr" : "fault", f->vector, f->has_code ? f->code : 0, f->cr2, v->rip, v->regs[4], v->cpl);
    v->int_shadow = 0;
    fvm_event_deliver(v, kind, f);
    if (v->run == FVM_RUN_HALTED)
        v->run = FVM_RUN_NORMAL;
    if (v->run == FVM_RUN_SHUTDOWN)
        shutdown_vcpu(v, "triple fault");
}

/* ---- requests ---- */

void fvm_run_park(struct fvm_vcpu_priv *p)
{
    bool inside = p->inside != 0;
    if (inside)
        fvm_world_leave(p->v);
    pthread_mutex_lock(&p->lock);
    p->parked = true;
    p->sleeping = 1;
    pthread_cond_broadcast(&p->cond);
    while (p->stop && !p->quit)
        pthread_cond_wait(&p->cond, &p->lock);
    p->sleeping = 0;
    p->parked = false;
    pthread_mutex_unlock(&p->lock);
    if (inside)
        fvm_world_enter(p->v);
}

static void handle_requests(struct fvm_vcpu *v)
{
    struct fvm_vcpu_priv *p = v->priv;
    uint32_t r = __atomic_exchange_n(&v->request, 0, __ATOMIC_ACQ_REL);
    if (r & FVM_REQ_SAFE_POINT)
        fvm_world_safe_point(v);
    if (r & FVM_REQ_INVALIDATE) {
        fvm_engine_stop(v->engine);
        fvm_code_flush(v->engine);
        fvm_engine_go(v->engine);
    }
    if (r & FVM_REQ_FLUSH)
        fvm_control_flush_all(v);
    if (r & FVM_REQ_IRQ)
        p->irq_check = true;
    if (r & FVM_REQ_NMI)
        v->nmi_pending = 1;
    if (r & FVM_REQ_INIT) {
        fvm_vcpu_reset_state(v, true); /* the first processor starts at its reset vector, others wait */
    }
    if ((r & FVM_REQ_SIPI) && v->run == FVM_RUN_WAIT_SIPI)
        fvm_vcpu_sipi_state(v, v->sipi_vector);
    if (r & FVM_REQ_STOP && p->has_thread)
        fvm_run_park(p);
}

static void take_interrupts(struct fvm_vcpu *v)
{
    struct fvm_vcpu_priv *p = v->priv;
    if (v->nmi_pending && !v->nmi_blocked && !v->int_shadow) {
        struct fvm_fault f = {.vector = FVM_EXC_NMI};
        v->nmi_pending = 0;
        v->nmi_blocked = 1;
        deliver(v, FVM_EVENT_EXTERNAL, &f);
    }
    if (!p->irq_check)
        return;
    *(uint8_t *)fvm_slot(v, FVM_SLOT_WINDOW) = 0;
    if (!v->iflag || v->int_shadow) {
        if (fvm_irq_cpu_pending(v->irq, v->index))
            *(uint8_t *)fvm_slot(v, FVM_SLOT_WINDOW) = 1;
        else
            p->irq_check = false;
        return;
    }
    int vector = fvm_irq_cpu_pending(v->irq, v->index) ? fvm_irq_cpu_ack(v->irq, v->index) : -1;
    if (vector < 0) {
        p->irq_check = false;
        return;
    }
    p->stats.irqs++;
    struct fvm_fault f = {.vector = (uint8_t)vector};
    deliver(v, FVM_EVENT_EXTERNAL, &f);
    if (fvm_irq_cpu_pending(v->irq, v->index)) /* the next one waits for IF, which the gate cleared */
        *(uint8_t *)fvm_slot(v, FVM_SLOT_WINDOW) = 1;
    else
        p->irq_check = false;
}

/*
 * A guest that halted for a moment only will probably do so again: look for its wake-up without sleeping for as long, which saves the
 * host's wake-up of this thread. One long halt ends that, so an idle guest costs nothing.
 */
#define SHORT_HALT_NS 150000u
static bool wake_up_soon(struct fvm_vcpu *v, uint64_t from_ns)
{
    while (fvm_now_ns() - from_ns < SHORT_HALT_NS)
        for (unsigned k = 0; k < 16; k++) {
            if (__atomic_load_n(&v->request, __ATOMIC_ACQUIRE))
                return true;
            __builtin_ia32_pause();
        }
    return false;
}

static void wait_halted(struct fvm_vcpu *v)
{
    struct fvm_vcpu_priv *p = v->priv;
    uint64_t from_ns = fvm_now_ns();
    fvm_world_leave(v);
    if (p->short_halts && wake_up_soon(v, from_ns)) {
        fvm_world_enter(v);
        return;
    }
    pthread_mutex_lock(&p->lock);
    __atomic_store_n(&p->sleeping, 1, __ATOMIC_SEQ_CST);
    while (!__atomic_load_n(&v->request, __ATOMIC_SEQ_CST) && !p->quit)
        pthread_cond_wait(&p->cond, &p->lock);
    p->sleeping = 0;
    pthread_mutex_unlock(&p->lock);
    fvm_world_enter(v);
    p->short_halts = p->host_cpus > 1 && fvm_now_ns() - from_ns < SHORT_HALT_NS;
}

/* ---- blocks ---- */

static uint32_t block_for(struct fvm_vcpu *v, uint64_t mode, struct fvm_fault *fault)
{
    struct fvm_engine *e = v->engine;
    struct fvm_vcpu_priv *p = v->priv;
    uint64_t va = fvm_mode_linear(mode, v->rip), entry = fvm_shadow_peek(v->shadow, va);
    uint32_t n = FVM_NONE;
    if (FVM_UNLIKELY(mode & FVM_MODE_SEG) && v->rip > v->seg[FVM_CS].limit) { /* less than the translation counted on */
        *fault = (struct fvm_fault){.vector = FVM_EXC_GP, .has_code = true};
        return FVM_NONE;
    }
    unsigned user = mode & FVM_MODE_USER ? FVM_USER : 0;
    if (!(entry & (user ? FVM_S_UX : FVM_S_KX))) { /* dropped by a flush: what was translated is there still */
        fvm_gpa gpa;
        enum fvm_shadow_result r = fvm_shadow_miss(v->shadow, va, FVM_X | user, &entry, &gpa, fault);
        if (r == FVM_SHADOW_FAULT)
            return FVM_NONE;
        if (r != FVM_SHADOW_OK)
            entry = 0; /* the translator knows what to say */
    }
    if (entry & (user ? FVM_S_UX : FVM_S_KX))
        n = fvm_code_find(e, va + (entry & ~0xffull) - (uint64_t)(uintptr_t)v->ram->base, v->rip, mode);
    if (n == FVM_NONE) {
        uint64_t t0 = fvm_now_ns();
        n = fvm_translate(v, mode, fault);
        p->stats.host_ns_translating += fvm_now_ns() - t0;
    }
    return n;
}

static void enter_block(struct fvm_vcpu *v, uint32_t n, uint64_t mode)
{
    struct fvm_vcpu_priv *p = v->priv;
    struct fvm_engine *e = v->engine;
    const struct fvm_block *b = &e->blocks[n];
    if (p->link_exit != FVM_NONE && p->link_generation == e->flush_generation && p->link_rip == v->rip)
        fvm_code_link(e, v, p->link_exit, n);
    p->link_exit = FVM_NONE;
    if (p->fill_jump_cache && !(mode & (FVM_MODE_SINGLE | FVM_MODE_SEG)) && !e->config.single_block && !p->run_until_on &&
        !fvm_debug_near(e, v->rip))
        fvm_jc_fill(v, v->rip, mode, (uint64_t)(uintptr_t)e->code + b->canon_off);
    else if (!(mode & (FVM_MODE_SINGLE | FVM_MODE_SEG)))
        fvm_jc_mode(v, mode & ~(uint64_t)FVM_MODE_PLAIN);
    p->fill_jump_cache = false;
    p->ring[p->ring_pos % FVM_RING].rip = v->rip;
    p->ring[p->ring_pos % FVM_RING].mode = mode;
    p->ring_pos++;
    if (e->config.trace & FVM_TRACE_EXEC) {
        const uint64_t *r = v->regs;
        say(v, FVM_TRACE_EXEC, "rip %016" PRIx64 " f %03" PRIx64 " ax %" PRIx64 " cx %" PRIx64 " dx %" PRIx64 " bx %" PRIx64
            " sp %" PRIx64 " bp %" PRIx64 " si %" PRIx64 " di %" PRIx64 " 8 %" PRIx64 " 9 %" PRIx64 " 10 %" PRIx64 " 11 %" PRIx64
            " 12 %" PRIx64 " 13 %" PRIx64 " 14 %" PRIx64 " 15 %" PRIx64, v->rip, v->rflags & FVM_HOST_FLAGS, r[0], r[1], r[2], r[3],
            r[4], r[5], r[6], r[7], r[8], r[9], r[10], r[11], r[12], r[13], r[14], r[15]);
    }
    *fvm_slot(v, FVM_SLOT_HFLAGS) = v->rflags;
    *fvm_slot(v, FVM_SLOT_ANCHOR) = v->rip & ~FVM_PAGE_MASK;
    fvm_enter(v, e->code + b->code_off);
    v->seg[FVM_GS].base = v->seg_base_gs;
    p->stats.exits++;
    p->stats.exits_by[*fvm_slot(v, FVM_SLOT_REASON) % FVM_EXIT_REASONS]++;
}

/* ---- exits ---- */

static int exec_system(struct fvm_vcpu *v, unsigned class, struct fvm_fault *fault)
{
    struct fvm_vcpu_priv *p = v->priv;
    p->stats.helper_calls++;
    return fvm_exec_class(v, class, fault);
}

static void fault_from_slots(struct fvm_vcpu *v, struct fvm_fault *f)
{
    uint64_t code = *fvm_slot(v, FVM_SLOT_FAULT_CODE);
    *f = (struct fvm_fault){.vector = (uint8_t)*fvm_slot(v, FVM_SLOT_FAULT_VEC), .has_code = code >> 32, .code = (uint32_t)code,
                            .cr2 = *fvm_slot(v, FVM_SLOT_FAULT_CR2)};
}

/* The host's trap at a redirected operand: #SS or #GP by the guest's registers, not by those that stood in for them; and
 * an address all of whose elements are masked out is none. */
static int trap_of_guest(struct fvm_vcpu *v, struct fvm_fault *f)
{
    struct fvm_insn in;
    struct fvm_fault other;
    fvm_gva va;
    if ((f->vector != FVM_EXC_GP && f->vector != FVM_EXC_SS) || fvm_exec_fetch(v, &in, &other))
        return FVM_FAULT;
    if (fvm_insn_is_vmaskmov(&in))
        return fvm_exec_one(v, f);
    for (unsigned k = 0; k < in.z.operand_count; k++) {
        const ZydisDecodedOperand *op = &in.ops[k];
        if (op->type != ZYDIS_OPERAND_TYPE_MEMORY || op->mem.type != ZYDIS_MEMOP_TYPE_MEM ||
            op->visibility != ZYDIS_OPERAND_VISIBILITY_EXPLICIT)
            continue;
        bool bit_string = in.z.meta.category == ZYDIS_CATEGORY_BITBYTE && in.ops[1].type == ZYDIS_OPERAND_TYPE_REGISTER;
        if (fvm_operand_linear(v, &in, op, op->size / 8u, false, &va, &other))
            f->vector = other.vector;
        else if (bit_string)
            f->vector = op->mem.segment == ZYDIS_REGISTER_SS ? FVM_EXC_SS : FVM_EXC_GP;
    }
    return FVM_FAULT;
}

static void drop_block(struct fvm_engine *e, uint32_t n)
{
    uint64_t generation = e->flush_generation;
    fvm_engine_stop(e);
    if (generation == e->flush_generation)
        fvm_code_drop(e, n);
    fvm_engine_go(e);
}

/* 0, or FVM_FAULT with *f to deliver at v->rip */
static int handle_exit(struct fvm_vcpu *v, struct fvm_fault *f)
{
    struct fvm_vcpu_priv *p = v->priv;
    struct fvm_engine *e = v->engine;
    uint32_t arg = (uint32_t)*fvm_slot(v, FVM_SLOT_ARG);
    unsigned class = (uint32_t)*fvm_slot(v, FVM_SLOT_TMP);
    switch (*fvm_slot(v, FVM_SLOT_REASON)) {
    case FVM_EXIT_BAIL:
        return 0;
    case FVM_EXIT_DIRECT:
        fvm_recover_exit(v, arg);
        p->link_exit = arg & ~FVM_EXIT_MOVED;
        p->link_rip = v->rip;
        p->plain_next = e->exits[p->link_exit].plain;
        p->link_generation = e->flush_generation;
        return 0;
    case FVM_EXIT_INDIRECT:
        fvm_recover_flags(v, true);
        v->rip = *fvm_slot(v, FVM_SLOT_TGT);
        p->fill_jump_cache = true;
        return 0;
    case FVM_EXIT_SYSTEM:
        fvm_recover_site(v, arg);
        return exec_system(v, class, f);
    case FVM_EXIT_MEM:
        fvm_recover_site(v, arg);
        p->stats.exec_one++;
        return fvm_exec_one(v, f);
    case FVM_EXIT_FAULT:
        fvm_recover_site(v, arg);
        fault_from_slots(v, f);
        return FVM_FAULT;
    case FVM_EXIT_SIGNAL:
        fault_from_slots(v, f);
        return trap_of_guest(v, f);
    case FVM_EXIT_DEAD:
        class = arg;
        arg &= ~(FVM_DEAD_INNER | FVM_DEAD_SAVED);
        if (class & FVM_DEAD_INNER)
            fvm_recover_victims(v, &e->blocks[arg], 2);
        /* Without an entry for saved flags only the jump cache leads here, with the guest's flags saved: the block did not
         * care, but what has taken its place may. */
        fvm_recover_flags(v, (class & FVM_DEAD_SAVED) || !e->blocks[arg].live_flags);
        v->rip = fvm_block_base(v, &e->blocks[arg]) + e->blocks[arg].rip;
        if (!e->blocks[arg].dead)
            drop_block(e, arg);
        p->fill_jump_cache = true; /* it was probably the jump cache that led here */
        return 0;
    case FVM_EXIT_STRING:
        fvm_recover_site(v, arg);
        return 0;
    case FVM_EXIT_RIP:
        return 0;
    default:
        fvm_assert(!"exit reason");
        return 0;
    }
}

static bool take_fault(struct fvm_vcpu *v, const struct fvm_fault *f, struct fvm_run_result *result)
{
    struct fvm_vcpu_priv *p = v->priv;
    p->stats.faults++;
    if (p->return_faults) {
        result->faulted = true;
        result->fault = *f;
        return false;
    }
    deliver(v, FVM_EVENT_FAULT, f);
    return v->run != FVM_RUN_SHUTDOWN;
}

bool fvm_run_step(struct fvm_vcpu *v, struct fvm_run_result *result)
{
    struct fvm_vcpu_priv *p = v->priv;
    struct fvm_fault fault;
    if (v->request)
        handle_requests(v);
    if (p->quit || v->run == FVM_RUN_SHUTDOWN)
        return false;
    if (FVM_UNLIKELY(v->engine->break_count || p->debug_step) && fvm_debug_stop_here(v))
        return true;
    if ((p->irq_check || v->nmi_pending) && !(p->debug_step && v->run == FVM_RUN_NORMAL))
        take_interrupts(v);
    if (v->run == FVM_RUN_HALTED || v->run == FVM_RUN_WAIT_SIPI) {
        if (p->return_faults)
            return false;
        wait_halted(v);
        return true;
    }
    if (v->run == FVM_RUN_SHUTDOWN)
        return false;
    uint64_t mode = fvm_mode_of(v);
    if (v->engine->config.single_insn || p->debug_step)
        mode |= FVM_MODE_SINGLE;
    if (p->plain_next && p->link_rip == v->rip)
        mode |= FVM_MODE_PLAIN;
    p->plain_next = false;
    uint32_t n = block_for(v, mode, &fault);
    if (n == FVM_NONE) {
        fvm_debug_executed(v);
        return take_fault(v, &fault, result);
    }
    bool trap = (v->rflags & FVM_F_TF) != 0;
    uint8_t shadow = v->int_shadow;
    v->int_shadow = 0;
    enter_block(v, n, mode);
    if (*fvm_slot(v, FVM_SLOT_REASON) == FVM_EXIT_BAIL) {
        v->int_shadow = shadow;
        return true;
    }
    fvm_debug_executed(v);
    if (handle_exit(v, &fault))
        return take_fault(v, &fault, result);
    if (FVM_UNLIKELY(trap) && !p->return_faults && v->int_shadow != FVM_SHADOW_SS) {
        struct fvm_fault db = {.vector = FVM_EXC_DB};
        v->dr[6] |= 0x4000; /* BS */
        deliver(v, FVM_EVENT_FAULT, &db);
    }
    return v->run != FVM_RUN_SHUTDOWN;
}
