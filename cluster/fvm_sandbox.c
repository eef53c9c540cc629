/*
 * fvm_sandbox.c - the cage. See fvm_sandbox.h.
 *
 * A guest that breaks out of translated code is in this process: then what the process may do is what the guest may
 * do. So: no new programs (execve), no other processes (fork, ptrace, process_vm_*), no namespaces, mounts, modules,
 * keys, bpf, no io_uring; memory, threads, files and sockets as the engine, the disks, the network and a migration
 * need them. Executable memory stays possible: it is what a translator makes.
 *
 * A forbidden call raises SIGSYS; the handler names it and ends the process, so that a gap in the list is seen at once.
 */
#include "cluster/fvm_sandbox.h"

#include <cap-ng.h>
#include <errno.h>
#include <linux/fs.h>
#include <sched.h>
#include <seccomp.h>
#include <signal.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <termios.h>
#include <unistd.h>

#include "cluster/fvm_terminal.h"

static const char room[] = "sandbox";

static const int allowed[] = {
    /* memory */
    SCMP_SYS(mmap), SCMP_SYS(munmap), SCMP_SYS(mprotect), SCMP_SYS(mremap), SCMP_SYS(madvise), SCMP_SYS(brk),
    SCMP_SYS(mincore), SCMP_SYS(msync), SCMP_SYS(mlock), SCMP_SYS(mlock2), SCMP_SYS(munlock), SCMP_SYS(memfd_create),
    SCMP_SYS(pkey_alloc), SCMP_SYS(pkey_free), SCMP_SYS(pkey_mprotect), SCMP_SYS(membarrier),
    /* threads and signals */
    SCMP_SYS(futex), SCMP_SYS(futex_waitv), SCMP_SYS(set_robust_list), SCMP_SYS(get_robust_list), SCMP_SYS(rseq),
    SCMP_SYS(set_tid_address), SCMP_SYS(gettid), SCMP_SYS(getpid), SCMP_SYS(getppid), SCMP_SYS(sched_yield),
    SCMP_SYS(sched_getaffinity), SCMP_SYS(sched_getparam), SCMP_SYS(sched_getscheduler), SCMP_SYS(exit),
    SCMP_SYS(exit_group), SCMP_SYS(arch_prctl), SCMP_SYS(restart_syscall), SCMP_SYS(rt_sigaction),
    SCMP_SYS(rt_sigprocmask), SCMP_SYS(rt_sigreturn), SCMP_SYS(rt_sigpending), SCMP_SYS(rt_sigtimedwait),
    SCMP_SYS(rt_sigsuspend), SCMP_SYS(sigaltstack), SCMP_SYS(timer_create), SCMP_SYS(timer_settime),
    SCMP_SYS(timer_gettime), SCMP_SYS(timer_delete), SCMP_SYS(timer_getoverrun), SCMP_SYS(alarm),
    SCMP_SYS(getcpu),
    /* files that are open, and files to open: kernel at a reset, resolv.conf, a disk's epoch, the hand-over record */
    SCMP_SYS(read), SCMP_SYS(write), SCMP_SYS(readv), SCMP_SYS(writev), SCMP_SYS(pread64), SCMP_SYS(pwrite64),
    SCMP_SYS(preadv), SCMP_SYS(pwritev), SCMP_SYS(preadv2), SCMP_SYS(pwritev2), SCMP_SYS(lseek), SCMP_SYS(close),
    SCMP_SYS(close_range), SCMP_SYS(dup), SCMP_SYS(dup2), SCMP_SYS(dup3), SCMP_SYS(fcntl), SCMP_SYS(flock),
    SCMP_SYS(ftruncate), SCMP_SYS(fallocate), SCMP_SYS(fsync), SCMP_SYS(fdatasync), SCMP_SYS(sync_file_range),
    SCMP_SYS(fadvise64), SCMP_SYS(copy_file_range), SCMP_SYS(open), SCMP_SYS(openat), SCMP_SYS(stat), SCMP_SYS(lstat),
    SCMP_SYS(fstat), SCMP_SYS(newfstatat), SCMP_SYS(statx), SCMP_SYS(statfs), SCMP_SYS(fstatfs), SCMP_SYS(access),
    SCMP_SYS(faccessat), SCMP_SYS(faccessat2), SCMP_SYS(readlink), SCMP_SYS(readlinkat), SCMP_SYS(getdents64),
    SCMP_SYS(getcwd), SCMP_SYS(unlink), SCMP_SYS(unlinkat), SCMP_SYS(rename), SCMP_SYS(renameat), SCMP_SYS(renameat2),
    SCMP_SYS(mkdir), SCMP_SYS(fchown), SCMP_SYS(fchmod), SCMP_SYS(umask), SCMP_SYS(getxattr), SCMP_SYS(fgetxattr),
    SCMP_SYS(setxattr), SCMP_SYS(fsetxattr),
    /* waiting */
    SCMP_SYS(poll), SCMP_SYS(ppoll), SCMP_SYS(select), SCMP_SYS(pselect6), SCMP_SYS(epoll_create1),
    SCMP_SYS(epoll_create), SCMP_SYS(epoll_ctl), SCMP_SYS(epoll_wait), SCMP_SYS(epoll_pwait), SCMP_SYS(epoll_pwait2),
    SCMP_SYS(eventfd2), SCMP_SYS(timerfd_create), SCMP_SYS(timerfd_settime), SCMP_SYS(timerfd_gettime),
    SCMP_SYS(signalfd4), SCMP_SYS(pipe), SCMP_SYS(pipe2),
    /* time and facts */
    SCMP_SYS(clock_gettime), SCMP_SYS(clock_getres), SCMP_SYS(clock_nanosleep), SCMP_SYS(nanosleep),
    SCMP_SYS(gettimeofday), SCMP_SYS(time), SCMP_SYS(times), SCMP_SYS(getrusage), SCMP_SYS(getrandom), SCMP_SYS(uname),
    SCMP_SYS(sysinfo), SCMP_SYS(getuid), SCMP_SYS(geteuid), SCMP_SYS(getgid), SCMP_SYS(getegid), SCMP_SYS(getrlimit),
    /* sockets */
    SCMP_SYS(socketpair), SCMP_SYS(bind), SCMP_SYS(listen), SCMP_SYS(accept), SCMP_SYS(accept4), SCMP_SYS(connect),
    SCMP_SYS(sendto), SCMP_SYS(recvfrom), SCMP_SYS(sendmsg), SCMP_SYS(recvmsg), SCMP_SYS(sendmmsg), SCMP_SYS(recvmmsg),
    SCMP_SYS(getsockopt), SCMP_SYS(setsockopt), SCMP_SYS(getsockname), SCMP_SYS(getpeername), SCMP_SYS(shutdown),
};

struct one_of { /* a call that is allowed when its argument `arg` is `value` */
    int call;
    unsigned arg;
    uint64_t value;
};

static const struct one_of allowed_with[] = {
    {SCMP_SYS(socket), 0, AF_UNIX},
    {SCMP_SYS(socket), 0, AF_INET},
    {SCMP_SYS(socket), 0, AF_INET6},
    {SCMP_SYS(socket), 0, AF_NETLINK},              /* getifaddrs */
    {SCMP_SYS(sched_setscheduler), 1, SCHED_OTHER}, /* ZeroMQ's threads, for a migration */
    {SCMP_SYS(prctl), 0, PR_SET_NAME},
    {SCMP_SYS(prctl), 0, PR_GET_NAME},
    {SCMP_SYS(prctl), 0, 0x53564d41 /* PR_SET_VMA */},
    {SCMP_SYS(prctl), 0, PR_GET_DUMPABLE},
    {SCMP_SYS(prctl), 0, PR_SET_TIMERSLACK},
    {SCMP_SYS(prctl), 0, PR_CAPBSET_READ},
    /* never TIOCSTI: it would type into the shell that started us */
    {SCMP_SYS(ioctl), 1, TCGETS},
    {SCMP_SYS(ioctl), 1, TCSETS},
    {SCMP_SYS(ioctl), 1, TCSETSW},
    {SCMP_SYS(ioctl), 1, TCSETSF},
    {SCMP_SYS(ioctl), 1, TIOCGWINSZ},
    {SCMP_SYS(ioctl), 1, FIONREAD},
    {SCMP_SYS(ioctl), 1, FIONBIO},
    {SCMP_SYS(ioctl), 1, BLKGETSIZE64},
    {SCMP_SYS(ioctl), 1, BLKSSZGET},
    {SCMP_SYS(ioctl), 1, BLKPBSZGET},
    {SCMP_SYS(ioctl), 1, BLKDISCARD},
    {SCMP_SYS(ioctl), 1, BLKZEROOUT},
    {SCMP_SYS(ioctl), 1, BLKFLSBUF},
    {SCMP_SYS(ioctl), 1, BLKROGET},
    {SCMP_SYS(ioctl), 1, 0x8912 /* SIOCGIFCONF */},
    {SCMP_SYS(ioctl), 1, 0x8933 /* SIOCGIFINDEX */},
};

static void on_forbidden(int signo, siginfo_t *info, void *context)
{
    (void)signo;
    (void)context;
    char text[] = "fvm: sandbox: forbidden system call 0000; please report it, --sandbox=off goes on without\n";
    char *digits = strstr(text, "0000");
    for (int i = 3, n = info->si_syscall; i >= 0; i--, n /= 10)
        digits[i] = (char)('0' + n % 10);
    fvm_terminal_restore();
    (void)!write(STDERR_FILENO, text, sizeof(text) - 1);
    _exit(fvm_err_exit_status(FVM_EPERM));
}

static int drop_capabilities(struct fvm_err *err)
{
    if (capng_get_caps_process() != 0)
        return fvm_err_set(err, FVM_EPERM, 0, room,
                           "cannot read this process' capabilities; --sandbox=off goes on without");
    if (capng_have_capabilities(CAPNG_SELECT_CAPS) <= CAPNG_NONE)
        return 0;
    capng_clear(CAPNG_SELECT_CAPS); /* effective, permitted, inheritable; the bounding set needs no change: no execve */
    if (capng_apply(CAPNG_SELECT_CAPS) != 0)
        return fvm_err_set(err, FVM_EPERM, errno, room, "cannot drop capabilities: %s; --sandbox=off goes on without",
                           strerror(errno));
    return 0;
}

static int add_rules(scmp_filter_ctx ctx)
{
    int r = 0;
    for (size_t i = 0; !r && i < FVM_ARRAY_SIZE(allowed); i++)
        r = seccomp_rule_add(ctx, SCMP_ACT_ALLOW, allowed[i], 0);
    for (size_t i = 0; !r && i < FVM_ARRAY_SIZE(allowed_with); i++) {
        const struct one_of *a = &allowed_with[i];
        /* the kernel looks at 32 bits of an int argument, so must we */
        struct scmp_arg_cmp cmp = SCMP_CMP64(a->arg, SCMP_CMP_MASKED_EQ, 0xffffffffu, a->value);
        r = seccomp_rule_add_array(ctx, SCMP_ACT_ALLOW, a->call, 1, &cmp);
    }
    struct scmp_arg_cmp thread = SCMP_CMP64(0, SCMP_CMP_MASKED_EQ, CLONE_THREAD, CLONE_THREAD);
    struct scmp_arg_cmp own = SCMP_CMP64(0, SCMP_CMP_EQ, (scmp_datum_t)getpid());
    struct scmp_arg_cmp self = SCMP_CMP64(0, SCMP_CMP_EQ, 0);
    struct scmp_arg_cmp no_new_limit = SCMP_CMP64(2, SCMP_CMP_EQ, 0);
    if (!r)
        r = seccomp_rule_add_array(ctx, SCMP_ACT_ALLOW, SCMP_SYS(clone), 1, &thread);
    if (!r) /* its arguments are in memory, where a filter can't look: glibc falls back to clone */
        r = seccomp_rule_add(ctx, SCMP_ACT_ERRNO(ENOSYS), SCMP_SYS(clone3), 0);
    if (!r)
        r = seccomp_rule_add_array(ctx, SCMP_ACT_ALLOW, SCMP_SYS(tgkill), 1, &own);
    if (!r)
        r = seccomp_rule_add_array(ctx, SCMP_ACT_ALLOW, SCMP_SYS(kill), 1, &own);
    if (!r)
        r = seccomp_rule_add_array(ctx, SCMP_ACT_ALLOW, SCMP_SYS(rt_tgsigqueueinfo), 1, &own);
    if (!r)
        r = seccomp_rule_add_array(ctx, SCMP_ACT_ALLOW, SCMP_SYS(prlimit64), 2,
                                   (struct scmp_arg_cmp[]){self, no_new_limit});
    return r;
}

int fvm_sandbox_enter(enum fvm_sandbox_mode mode, struct fvm_err *err)
{
    if (mode == FVM_SANDBOX_OFF)
        return 0;
    int r = drop_capabilities(err);
    if (r)
        return r;
    scmp_filter_ctx ctx = seccomp_init(mode == FVM_SANDBOX_LOG ? SCMP_ACT_LOG : SCMP_ACT_TRAP);
    if (!ctx)
        return fvm_err_set(err, FVM_ENOMEM, 0, room, "out of memory");
    r = seccomp_attr_set(ctx, SCMP_FLTATR_CTL_NNP, 1);
    if (!r)
        r = seccomp_attr_set(ctx, SCMP_FLTATR_CTL_TSYNC, 1);
    if (!r) /* a binary tree: calls cost the same wherever they are on the list */
        r = seccomp_attr_set(ctx, SCMP_FLTATR_CTL_OPTIMIZE, 2);
    if (!r)
        r = add_rules(ctx);
    struct sigaction sa = {.sa_sigaction = on_forbidden, .sa_flags = SA_SIGINFO | SA_ONSTACK};
    sigemptyset(&sa.sa_mask);
    if (!r && sigaction(SIGSYS, &sa, NULL) != 0)
        r = -errno;
    if (!r)
        r = seccomp_load(ctx);
    seccomp_release(ctx);
    if (r)
        return fvm_err_set(err, FVM_EUNSUPPORTED, -r, room,
                           "this host does not allow a system call filter (%s); --sandbox=off goes on without",
                           strerror(-r));
    return 0;
}
