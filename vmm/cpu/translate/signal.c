/*
 * signal.c - host traps and kicks on vCPU threads.
 *
 * A kick must end the running chain of blocks within microseconds without any cost on the way: the handler unlinks the
 * exits of the block that runs (and so it ends in C), or restarts/completes the few instructions of the stubs and of the indirect
 * exit that have already looked at `request`. A trap in a block (#DE, #GP for a non-canonical or misaligned address, #XM, #MF)
 * becomes the guest's fault with precise state. A trap anywhere else is a bug: the process dies with the default action.
 */
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#include "vmm/cpu/translate/engine.h"

#define SIGSTACK_BYTES (64 << 10)

static bool in_range(uint64_t pc, const char *from, const char *to)
{
    return pc >= (uint64_t)(uintptr_t)from && pc < (uint64_t)(uintptr_t)to;
}

static void handle_kick(struct fvm_vcpu *v, greg_t *g)
{
    struct fvm_engine *e = v->engine;
    uint64_t pc = (uint64_t)g[REG_RIP];
    if (in_range(pc, fvm_enter_window, fvm_enter_window_end)) {
        g[REG_RIP] = (greg_t)(uintptr_t)fvm_enter_bail;
        return;
    }
    if (in_range(pc, fvm_resume_window, fvm_resume_window_end)) {
        fvm_fast_unlink(v);
        return;
    }
    uint32_t n = fvm_code_block_at(e, pc);
    if (n == FVM_NONE) { /* on the way through a trampoline to a stub that comes back by SLOT_RET without looking at `request` */
        if (in_range(pc, fvm_stub_cross_user, fvm_stub_cross_end) || pc - (uint64_t)(uintptr_t)e->code < e->snippet_off)
            fvm_fast_unlink(v);
        return;
    }
    struct fvm_block *b = &e->blocks[n];
    uint64_t off = pc - (uint64_t)(uintptr_t)e->code - b->code_off;
    if (b->ind_off && off >= b->ind_off && off < b->ind_end)
        g[REG_RIP] = (greg_t)((uintptr_t)e->code + b->code_off +
                              (off >= b->ind_spill_off ? b->ind_slow_jump_off : b->ind_slow_off));
    else
        fvm_code_unlink_block(e, b);
}

static bool fault_of(const greg_t *g, struct fvm_vcpu *v)
{
    uint64_t vector, code = 0;
    switch (g[REG_TRAPNO]) {
    case FVM_EXC_DE: case FVM_EXC_UD: case FVM_EXC_MF: case FVM_EXC_XM:
        vector = (uint64_t)g[REG_TRAPNO];
        break;
    case FVM_EXC_GP: case FVM_EXC_SS: case FVM_EXC_AC:
        vector = (uint64_t)g[REG_TRAPNO];
        code = 1ull << 32;
        break;
    case FVM_EXC_PF: /* where the host has 57-bit addresses, what is not canonical for the guest may be for the host */
        if ((uint64_t)g[REG_CR2] >> 47 == 0)
            return false;
        vector = FVM_EXC_GP;
        code = 1ull << 32;
        break;
    default:
        return false;
    }
    *fvm_slot(v, FVM_SLOT_FAULT_VEC) = vector;
    *fvm_slot(v, FVM_SLOT_FAULT_CODE) = code;
    *fvm_slot(v, FVM_SLOT_FAULT_CR2) = 0;
    return true;
}

static void regs_from(struct fvm_vcpu *v, const greg_t *g)
{
    static const int order[16] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
                                  REG_R8, REG_R9, REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15};
    for (unsigned k = 0; k < 16; k++)
        v->regs[k] = (uint64_t)g[order[k]];
    *fvm_slot(v, FVM_SLOT_HFLAGS) = (uint64_t)g[REG_EFL];
}

static bool handle_trap(struct fvm_vcpu *v, greg_t *g)
{
    struct fvm_engine *e = v->engine;
    uint64_t pc = (uint64_t)g[REG_RIP], off = pc - (uint64_t)(uintptr_t)e->code;
    uint32_t n = fvm_code_block_at(e, pc);
    if (off >= e->code_bytes || (n == FVM_NONE && off < e->snippet_off) || !fault_of(g, v))
        return false;
    regs_from(v, g);
    if (n != FVM_NONE) {
        const struct fvm_block *b = &e->blocks[n];
        unsigned m = fvm_recover_mark_at(e, b, (uint32_t)(off - b->code_off));
        fvm_recover_mark(v, b, m, e->marks[b->mark_first + m].flags_saved);
    } else {
        fvm_recover_flags(v, false);
    }
    ((struct fvm_vcpu_priv *)v->priv)->stats.signals++;
    *fvm_slot(v, FVM_SLOT_REASON) = FVM_EXIT_SIGNAL;
    g[REG_RIP] = (greg_t)(uintptr_t)fvm_exit_tail;
    g[REG_RSP] = (greg_t)*fvm_slot(v, FVM_SLOT_HOST_RSP);
    g[REG_EFL] &= ~(greg_t)FVM_F_DF;
    return true;
}

static const int traps[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL};
/* Dispositions are the process', so what was there before the first engine is, too. Written before vCPU threads exist. */
static struct sigaction before[FVM_ARRAY_SIZE(traps)];

/* Not the guest's: whoever handled it before us (a crash handler) or the default action, with a core that shows the place. */
static void give_back(int signo, const siginfo_t *info)
{
    for (unsigned k = 0; k < FVM_ARRAY_SIZE(traps); k++)
        if (traps[k] == signo)
            sigaction(signo, &before[k], NULL);
    if (info->si_code <= 0)
        raise(signo); /* sent by kill: it would not come again by itself */
}

void fvm_signal_handle(int signo, void *info, void *uc, struct fvm_vcpu *v)
{
    greg_t *g = ((ucontext_t *)uc)->uc_mcontext.gregs;
    if (signo == FVM_KICK_SIGNAL) {
        if (v)
            handle_kick(v, g);
        return;
    }
    if (v && !g[REG_RIP] && !*fvm_slot(v, FVM_SLOT_TGT)) {
        /* A guest branch to address 0 found an empty jump cache entry, whose rip is 0, too: look it up after all. */
        g[REG_R15] = (greg_t)*fvm_slot(v, FVM_SLOT_V0); /* spilled for the entry that was expected */
        g[REG_R14] = (greg_t)*fvm_slot(v, FVM_SLOT_V1);
        g[REG_RIP] = (greg_t)(uintptr_t)fvm_stub_indirect;
        return;
    }
    if (v && handle_trap(v, g))
        return;
    give_back(signo, info);
}

int fvm_signal_install(void)
{
    struct sigaction sa = {.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_RESTART};
    sa.sa_sigaction = (void (*)(int, siginfo_t *, void *))(void (*)(void))fvm_signal_entry;
    sigemptyset(&sa.sa_mask);
    sigaddset(&sa.sa_mask, FVM_KICK_SIGNAL);
    for (unsigned k = 0; k < FVM_ARRAY_SIZE(traps); k++) {
        struct sigaction old;
        if (sigaction(traps[k], &sa, &old))
            return fvm_err_from_errno(errno);
        if (old.sa_sigaction != sa.sa_sigaction)
            before[k] = old;
    }
    return sigaction(FVM_KICK_SIGNAL, &sa, NULL) ? fvm_err_from_errno(errno) : 0;
}

int fvm_signal_thread_init(struct fvm_vcpu_priv *p)
{
    void *m = mmap(NULL, SIGSTACK_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (m == MAP_FAILED)
        return FVM_ENOMEM;
    /* Autodisarm: the kernel then never mistakes a guest's RSP that points here for "already on this stack". */
    stack_t ss = {.ss_sp = m, .ss_size = SIGSTACK_BYTES, .ss_flags = (int)(1u << 31) /* SS_AUTODISARM */};
    if (sigaltstack(&ss, NULL)) {
        munmap(m, SIGSTACK_BYTES);
        return fvm_err_from_errno(errno);
    }
    p->sigstack = m;
    return 0;
}

void fvm_signal_thread_fini(struct fvm_vcpu_priv *p)
{
    stack_t ss = {.ss_flags = SS_DISABLE};
    if (!p->sigstack)
        return;
    sigaltstack(&ss, NULL);
    munmap(p->sigstack, SIGSTACK_BYTES);
    p->sigstack = NULL;
}
