/*
 * fvm_terminal.c - raw mode and the escape keys. See fvm_terminal.h.
 *
 * Invariant: `raw` is true exactly while the terminal differs from `saved`; restoring twice is harmless. The signal
 * handler makes bare system calls only.
 */
#include "cluster/fvm_terminal.h"

#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <termios.h>
#include <unistd.h>

#include "base/log.h"

static struct termios saved;
static volatile sig_atomic_t raw;
static const int crash_signals[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT, SIGTRAP, SIGSYS};

void fvm_terminal_restore(void)
{
    if (!raw)
        return;
    raw = 0;
    tcsetattr(STDIN_FILENO, TCSADRAIN, &saved);
    fvm_log_set_crlf(false);
}

/* A crash inside translated code leaves FS with the guest's processor: no libc, no thread-local errno. */
static long raw_call(long nr, long a, long b, long c, long d)
{
    long ret;
    register long r10 __asm__("r10") = d;
    __asm__ volatile("syscall" : "=a"(ret) : "a"(nr), "D"(a), "S"(b), "d"(c), "r"(r10) : "rcx", "r11", "memory");
    return ret;
}

static struct { /* struct termios as the kernel has it */
    unsigned flags[4];
    unsigned char line, cc[19];
} saved_kernel;

__attribute__((optimize("no-stack-protector"))) static void on_crash(int signo)
{
    static const char text[] = "\nfvm: ended by a signal; the terminal is restored\n";
    static const struct { void *handler; unsigned long flags; void *restorer; unsigned long mask; } dfl;
    unsigned long none = 0;
    if (raw) {
        raw = 0;
        raw_call(SYS_ioctl, STDIN_FILENO, TCSETS, (long)&saved_kernel, 0);
        raw_call(SYS_write, STDERR_FILENO, (long)text, sizeof(text) - 1, 0);
    }
    raw_call(SYS_rt_sigaction, signo, (long)&dfl, 0, sizeof(none)); /* and again: a core file, the right exit status */
    raw_call(SYS_rt_sigprocmask, SIG_SETMASK, (long)&none, 0, sizeof(none));
    raw_call(SYS_tgkill, raw_call(SYS_getpid, 0, 0, 0, 0), raw_call(SYS_gettid, 0, 0, 0, 0), signo, 0);
}

static void set_raw(void)
{
    struct termios t = saved;
    cfmakeraw(&t);
    t.c_oflag |= OPOST; /* our own messages; the guest sends CR LF itself */
    t.c_oflag &= ~(tcflag_t)ONLCR;
    if (tcsetattr(STDIN_FILENO, TCSADRAIN, &t) == 0) {
        raw = 1;
        fvm_log_set_crlf(true);
    }
}

static void on_continue(int signo)
{
    (void)signo;
    struct termios t = saved;
    cfmakeraw(&t);
    if (raw) /* after `kill -STOP`, `fg`: the shell has put its own mode back */
        tcsetattr(STDIN_FILENO, TCSANOW, &t);
}

void fvm_terminal_raw(void)
{
    if (raw || !isatty(STDIN_FILENO) || tcgetattr(STDIN_FILENO, &saved) != 0 ||
        ioctl(STDIN_FILENO, TCGETS, &saved_kernel) != 0)
        return;
    struct sigaction sa = {.sa_handler = on_crash, .sa_flags = SA_ONSTACK | SA_NODEFER | (int)SA_RESETHAND};
    sigemptyset(&sa.sa_mask);
    for (size_t i = 0; i < FVM_ARRAY_SIZE(crash_signals); i++)
        sigaction(crash_signals[i], &sa, NULL);
    struct sigaction cont = {.sa_handler = on_continue, .sa_flags = SA_ONSTACK | SA_RESTART};
    sigemptyset(&cont.sa_mask);
    sigaction(SIGCONT, &cont, NULL);
    atexit(fvm_terminal_restore);
    set_raw();
}

size_t fvm_terminal_filter(struct fvm_terminal_escape *escape, uint8_t *bytes, size_t len, size_t *ret_used,
                           enum fvm_terminal_key *ret_key)
{
    size_t kept = 0, i = 0;
    *ret_key = FVM_KEY_NONE;
    while (i < len && *ret_key == FVM_KEY_NONE) {
        uint8_t b = bytes[i++];
        if (!escape->pending) {
            if (b == 1)
                escape->pending = true;
            else
                bytes[kept++] = b;
            continue;
        }
        escape->pending = false;
        switch (b) {
        case 'x': case 'X': *ret_key = FVM_KEY_EXIT; break;
        case 'h': case 'H': case '?': *ret_key = FVM_KEY_HELP; break;
        case 'd': case 'D': *ret_key = FVM_KEY_DUMP; break;
        case 1: case 'a': case 'A': bytes[kept++] = 1; break;
        default: break; /* an unknown key is swallowed with its Ctrl-A */
        }
    }
    *ret_used = i;
    return kept;
}

const char *fvm_terminal_help(void)
{
    return "\r\nCtrl-A x  end the VM at once        Ctrl-A d  show the processors' registers\r\n"
           "Ctrl-A a  send Ctrl-A to the guest   Ctrl-A h  this help\r\n";
}
