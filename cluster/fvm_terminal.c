/*
 * fvm_terminal.c - raw mode and the escape keys. See fvm_terminal.h.
 *
 * Invariant: `raw` is true exactly while the terminal differs from `saved`; restoring twice is harmless. The signal handler
 * uses async-signal-safe calls only (tcsetattr is one).
 */
#include "cluster/fvm_terminal.h"

#include <signal.h>
#include <stdlib.h>
#include <string.h>
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

static void on_crash(int signo)
{
    if (raw) {
        raw = 0;
        tcsetattr(STDIN_FILENO, TCSANOW, &saved);
        static const char text[] = "\nfvm: ended by a signal; the terminal is restored\n";
        (void)!write(STDERR_FILENO, text, sizeof(text) - 1);
    }
    signal(signo, SIG_DFL); /* and again: a core file, the right exit status */
    raise(signo);
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
    if (raw || !isatty(STDIN_FILENO) || tcgetattr(STDIN_FILENO, &saved) != 0)
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
