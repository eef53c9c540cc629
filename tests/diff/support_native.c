/*
 * support_native.c - the oracle: a child process that maps the sequence's pages at the guest's addresses and runs the
 * bytes on the host's processor.
 *
 * Every sequence ends by a signal: the ud2 behind it, or the fault that it makes. The handler has all registers and the
 * XSAVE image in its frame. A tick ends sequences that never end; seccomp stops system calls made from the code pages.
 * The child shares nothing with the engine but the requests and results.
 */
#include <errno.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/futex.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <ucontext.h>
#include <unistd.h>

#include "tests/diff/support_diff.h"

/* What the assembly below needs, at a fixed address (it must not use a register to find it). */
#define CTX_AT 0x0e000000
struct native_ctx {
    uint64_t host_rsp, host_fs;
    uint32_t far_rip; /* 16-bit selector and 32-bit offset of a far jump */
    uint16_t far_sel;
    struct diff_state st; /* at 64 */
    uint8_t on;
    uint32_t ticks;
} __attribute__((aligned(64)));
#define CTX ((struct native_ctx *)CTX_AT)
_Static_assert(offsetof(struct native_ctx, st) == 64 && offsetof(struct native_ctx, far_rip) == 16,
               "offsets in the assembly");
_Static_assert(offsetof(struct diff_state, rip) == 128 && offsetof(struct diff_state, fs_base) == 144 &&
                   offsetof(struct diff_state, xsave) == 192,
               "offsets in the assembly");
_Static_assert(offsetof(struct native_ctx, on) == 64 + 192 + DIFF_XSAVE, "offsets in the assembly");

#define ENTER(name, segments, jump)                                                                                    \
#name ":\n"                                                                                                        \
          "    push %rbp\n    push %rbx\n    push %r12\n    push %r13\n    push %r14\n    push %r15\n"                 \
          "    movq %rsp, C\n"                                                                                         \
          "    rdfsbase %rax\n    movq %rax, C + 8\n" segments                                                         \
          "    movl $7, %eax\n    xorl %edx, %edx\n    xrstor64 S + 192\n"                                             \
          "    movq S + 152, %rax\n    wrgsbase %rax\n"                                                                \
          "    movq S + 144, %rax\n    wrfsbase %rax\n"                                                                \
          "    movb $1, ON\n"                                                                                          \
          "    pushq S + 136\n    popfq\n"                                                                             \
          "    movq S, %rax\n    movq S + 8, %rcx\n    movq S + 16, %rdx\n    movq S + 24, %rbx\n"                     \
          "    movq S + 40, %rbp\n    movq S + 48, %rsi\n    movq S + 56, %rdi\n"                                      \
          "    movq S + 64, %r8\n    movq S + 72, %r9\n    movq S + 80, %r10\n    movq S + 88, %r11\n"                 \
          "    movq S + 96, %r12\n    movq S + 104, %r13\n    movq S + 112, %r14\n    movq S + 120, %r15\n"            \
          "    movq S + 32, %rsp\n" jump

__asm__(
    ".text\n"
    ".set C, 0x0e000000\n.set S, C + 64\n.set ON, C + 64 + 192 + 832\n" ENTER(diff_native_enter, "",
                                                                              "    jmp *S + 128\n")
        ENTER(diff_native_enter32, "    movl $0x2b, %eax\n    movl %eax, %ds\n    movl %eax, %es\n",
              "    ljmp *C + 16\n") "diff_native_leave:\n"
                                    "    movq C, %rsp\n    cld\n    vzeroupper\n    fninit\n    pushq $0x1f80\n    "
                                    "ldmxcsr (%rsp)\n    addq $8, %rsp\n"
                                    "    pop %r15\n    pop %r14\n    pop %r13\n    pop %r12\n    pop %rbx\n    pop "
                                    "%rbp\n    ret\n"
                                    "diff_native_signal:\n"                    /* (signo, info, context) */
                                    "    push %rbx\n    pushq $2\n    popfq\n" /* AC would trap in C */
                                    "    xorl %ecx, %ecx\n    rdgsbase %r8\n"
                                    "    cmpb $0, ON\n    je 1f\n"
                                    "    rdfsbase %rcx\n    movq %rcx, %rbx\n    movq C + 8, %rax\n    wrfsbase %rax\n"
                                    "    call diff_native_caught\n"
                                    "    testl %eax, %eax\n    jne diff_native_leave\n"
                                    "    wrfsbase %rbx\n"
                                    "    pop %rbx\n    ret\n"
                                    "1:  call diff_native_stray\n"
                                    "    pop %rbx\n    ret\n");
void diff_native_enter(void);
void diff_native_enter32(void);
void diff_native_signal(void);
int diff_native_caught(int signo, siginfo_t *info, void *context, uint64_t fs_base, uint64_t gs_base);
void diff_native_stray(int signo, siginfo_t *info, void *context);

struct half {
    uint32_t count, state; /* state: 0 idle, 1 submitted, 2 done (futex) */
    uint32_t running;      /* slot, for the report of a dead child */
    struct diff_request req[DIFF_BATCH];
    struct diff_outcome res[DIFF_BATCH];
};
struct shared {
    uint8_t base[DIFF_IMAGE_BYTES];
    struct half half[2];
};
struct diff_native {
    struct shared *sh;
    pid_t pid;
};

static struct {
    struct diff_outcome *out;
    uint64_t end_rip;
} now; /* of the child's only thread */

static void futex_wait(uint32_t *p, uint32_t value, long timeout_ms)
{
    struct timespec ts = {.tv_sec = timeout_ms / 1000, .tv_nsec = timeout_ms % 1000 * 1000000};
    syscall(SYS_futex, p, FUTEX_WAIT, value, &ts, NULL, 0);
}
static void futex_wake(uint32_t *p) { syscall(SYS_futex, p, FUTEX_WAKE, 1, NULL, NULL, 0); }

/* ---- child ---- */

void diff_native_stray(int signo, siginfo_t *info, void *context)
{
    (void)info, (void)context;
    if (signo == SIGVTALRM)
        return;
    static const char text[] = "native child: a fault outside a sequence\n";
    (void)!write(2, text, sizeof text - 1);
    _exit(3);
}

static void regs_from(const greg_t *g, struct diff_state *st)
{
    static const int order[16] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
                                  REG_R8,  REG_R9,  REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15};
    for (unsigned k = 0; k < 16; k++)
        st->regs[k] = (uint64_t)g[order[k]];
    st->rip = (uint64_t)g[REG_RIP];
    st->rflags = (uint64_t)g[REG_EFL];
}

int diff_native_caught(int signo, siginfo_t *info, void *context, uint64_t fs_base, uint64_t gs_base)
{
    const ucontext_t *uc = context;
    const greg_t *g = uc->uc_mcontext.gregs;
    struct diff_outcome *o = now.out;
    (void)info;
    if (signo == SIGVTALRM && ++CTX->ticks < 4)
        return 0;
    CTX->on = 0;
    regs_from(g, &o->state);
    o->state.fs_base = fs_base;
    o->state.gs_base = gs_base;
    memcpy(o->state.xsave, uc->uc_mcontext.fpregs, DIFF_XSAVE);
    o->vector = (uint32_t)g[REG_TRAPNO];
    o->code = (uint32_t)g[REG_ERR];
    o->cr2 = (uint64_t)g[REG_CR2];
    if (signo == SIGVTALRM || signo == SIGSYS || signo == SIGTRAP)
        o->end = DIFF_DISCARD;
    else if (signo == SIGILL && o->state.rip == now.end_rip)
        o->end = DIFF_END;
    else
        o->end = DIFF_FAULT;
    return 1;
}

static void run_one(const struct shared *sh, const struct diff_request *req, struct diff_outcome *out)
{
    static uint8_t image[DIFF_IMAGE_BYTES]; /* the child's only thread */
    diff_image(req, sh->base, image);
    for (unsigned k = 0; k < DIFF_PAGES; k++)
        if (diff_pages[k].rights & DIFF_W)
            memcpy((void *)diff_pages[k].va, image + k * 4096, 4096);
    now.out = out;
    now.end_rip = req->end_rip;
    CTX->st = req->init;
    CTX->ticks = 0;
    if (req->bits == 32) {
        CTX->far_rip = (uint32_t)req->init.rip;
        CTX->far_sel = 0x23; /* Linux' 32-bit user code segment */
        diff_native_enter32();
        __asm__ volatile("movl %0, %%ds\n\tmovl %0, %%es" : : "r"(0));
    } else {
        diff_native_enter();
    }
    out->bits = req->bits;
    for (unsigned k = 0; k < DIFF_PAGES; k++)
        memcpy(out->mem + k * 4096, (const void *)diff_pages[k].va, 4096);
}

static void map_at(uint64_t va, size_t bytes, int prot)
{
    void *p = mmap((void *)va, bytes, prot, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE | MAP_POPULATE, -1, 0);
    if (p != (void *)va) {
        perror("diff: cannot map a test address");
        _exit(3);
    }
}

/* System calls from the code pages become SIGSYS. */
static void filter_syscalls(void)
{
    struct sock_filter f[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, instruction_pointer) + 4),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, 0, 0, 3),
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, instruction_pointer)),
        BPF_JUMP(BPF_JMP | BPF_JGE | BPF_K, (uint32_t)DIFF_CODE, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_TRAP),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog prog = {.len = sizeof f / sizeof *f, .filter = f};
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &prog))
        perror("diff: seccomp");
}

static void child_setup(const struct shared *sh)
{
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    map_at(CTX_AT, 8192, PROT_READ | PROT_WRITE);
    for (unsigned k = 0; k < DIFF_PAGES; k++) {
        const struct diff_page *p = &diff_pages[k];
        map_at(p->va, 4096, PROT_READ | PROT_WRITE | (p->rights & DIFF_X ? PROT_EXEC : 0));
        memcpy((void *)p->va, sh->base + k * 4096, 4096);
        if (!(p->rights & DIFF_W))
            mprotect((void *)p->va, 4096, PROT_READ);
    }
    stack_t ss = {.ss_size = 256 << 10};
    ss.ss_sp = mmap(NULL, ss.ss_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    sigaltstack(&ss, NULL);
    struct sigaction sa = {.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER};
    sa.sa_sigaction = (void (*)(int, siginfo_t *, void *))(void (*)(void))diff_native_signal;
    static const int signals[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, SIGSYS, SIGVTALRM};
    for (unsigned k = 0; k < FVM_ARRAY_SIZE(signals); k++)
        sigaction(signals[k], &sa, NULL);
    struct itimerval it = {{0, 1000}, {0, 1000}};
    setitimer(ITIMER_VIRTUAL, &it, NULL);
    filter_syscalls();
}

static void child_main(struct shared *sh)
{
    child_setup(sh);
    for (unsigned h = 0;; h ^= 1) {
        struct half *b = &sh->half[h];
        while (__atomic_load_n(&b->state, __ATOMIC_ACQUIRE) != 1)
            futex_wait(&b->state, b->state == 1 ? 0 : b->state, 1000);
        for (b->running = 0; b->running < b->count; b->running++)
            run_one(sh, &b->req[b->running], &b->res[b->running]);
        __atomic_store_n(&b->state, 2, __ATOMIC_RELEASE);
        futex_wake(&b->state);
    }
}

/* ---- parent ---- */

int diff_native_create(struct diff_native **ret)
{
    struct diff_native *n = calloc(1, sizeof *n);
    n->sh = mmap(NULL, sizeof *n->sh, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (n->sh == MAP_FAILED)
        return -1;
    diff_base_image(n->sh->base);
    fflush(NULL);
    n->pid = fork();
    if (!n->pid) {
        child_main(n->sh);
        _exit(0);
    }
    *ret = n;
    return n->pid < 0 ? -1 : 0;
}

void diff_native_destroy(struct diff_native **n_p)
{
    struct diff_native *n = *n_p;
    if (!n)
        return;
    kill(n->pid, SIGKILL);
    waitpid(n->pid, NULL, 0);
    munmap(n->sh, sizeof *n->sh);
    free(n);
    *n_p = NULL;
}

struct diff_request *diff_native_request(struct diff_native *n, unsigned half, unsigned slot)
{
    return &n->sh->half[half].req[slot];
}
struct diff_outcome *diff_native_result(struct diff_native *n, unsigned half, unsigned slot)
{
    return &n->sh->half[half].res[slot];
}

void diff_native_submit(struct diff_native *n, unsigned half, unsigned count)
{
    struct half *b = &n->sh->half[half];
    b->count = count;
    __atomic_store_n(&b->state, 1, __ATOMIC_RELEASE);
    futex_wake(&b->state);
}

void diff_native_wait(struct diff_native *n, unsigned half)
{
    struct half *b = &n->sh->half[half];
    while (__atomic_load_n(&b->state, __ATOMIC_ACQUIRE) != 2) {
        futex_wait(&b->state, 1, 100);
        int status;
        if (waitpid(n->pid, &status, WNOHANG) == n->pid) {
            fprintf(stderr, "diff: the native child died (status %x) at slot %u\n", status, b->running);
            exit(3);
        }
    }
}
