/*
 * ctl_console.c - vm console: this terminal becomes the VM's serial console, on whatever node the VM is. Ctrl-A x
 * leaves, Ctrl-A Ctrl-A sends one Ctrl-A.
 *
 * Invariant: every way out restores the terminal.
 */
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/signalfd.h>
#include <termios.h>
#include <unistd.h>

#include "cluster/ctl.h"

enum { CTRL_A = 1 };

struct console {
    struct fvm_ctl *ctl;
    struct fvm_rpc_client *client;
    uint64_t id;
    struct termios saved;
    bool raw, prefix, leave, eof;
};

static void raw_on(struct console *c)
{
    struct termios t;
    if (!isatty(STDIN_FILENO) || tcgetattr(STDIN_FILENO, &c->saved))
        return;
    t = c->saved;
    cfmakeraw(&t);
    c->raw = tcsetattr(STDIN_FILENO, TCSANOW, &t) == 0;
}

static void raw_off(struct console *c)
{
    if (c->raw)
        tcsetattr(STDIN_FILENO, TCSANOW, &c->saved);
    c->raw = false;
}

/* Takes out the escapes; what remains is for the guest. */
static size_t filter(struct console *c, uint8_t *data, size_t len)
{
    size_t out = 0;
    for (size_t i = 0; i < len && !c->leave; i++) {
        if (!c->raw) {
            data[out++] = data[i];
        } else if (c->prefix) {
            c->prefix = false;
            if (data[i] == 'x' || data[i] == 'd' || data[i] == 'X')
                c->leave = true;
            else if (data[i] == CTRL_A)
                data[out++] = CTRL_A;
        } else if (data[i] == CTRL_A) {
            c->prefix = true;
        } else {
            data[out++] = data[i];
        }
    }
    return out;
}

static int send_input(struct console *c, uint8_t *data, size_t len, struct fvm_err *err)
{
    Fvm__Request request = FVM__REQUEST__INIT;
    Fvm__ConsoleInput input = FVM__CONSOLE_INPUT__INIT;
    input.of = c->id;
    input.data.data = data;
    input.data.len = len;
    request.what_case = FVM__REQUEST__WHAT_INPUT;
    request.input = &input;
    return fvm_rpc_start(c->client, &request, err);
}

static int typed(struct console *c, struct fvm_err *err)
{
    uint8_t data[4096];
    ssize_t n = read(STDIN_FILENO, data, sizeof(data));
    if (n < 0 && (errno == EINTR || errno == EAGAIN))
        return 0;
    if (n <= 0) {
        c->eof = true; /* input ended (a script's): keep on listening */
        return 0;
    }
    size_t len = filter(c, data, (size_t)n);
    return len ? send_input(c, data, len, err) : 0;
}

static int attach(struct console *c, bool history, struct fvm_err *err)
{
    Fvm__Request request = FVM__REQUEST__INIT;
    Fvm__ConsoleOpen open = FVM__CONSOLE_OPEN__INIT;
    int rc = fvm_ctl_connect_owner(c->ctl, c->ctl->opt.words[2], &c->client, err);
    if (rc)
        return rc;
    open.name = (char *)(uintptr_t)c->ctl->opt.words[2];
    open.history = history;
    request.what_case = FVM__REQUEST__WHAT_CONSOLE;
    request.console = &open;
    rc = fvm_rpc_start(c->client, &request, err);
    c->id = request.id;
    return rc;
}

static void show(const void *data, size_t len)
{
    const uint8_t *p = data;
    while (len) {
        ssize_t n = write(STDOUT_FILENO, p, len);
        if (n < 0 && errno != EINTR && errno != EAGAIN)
            return;
        if (n > 0) {
            p += n;
            len -= (size_t)n;
        }
    }
}

/* 1: the console is over. */
static int answered(struct console *c, const Fvm__Reply *reply, struct fvm_err *err)
{
    char note[200];
    if (reply->console.len)
        show(reply->console.data, reply->console.len);
    else if (!reply->last && c->raw) {
        snprintf(note, sizeof(note), "[connected to %s on node %s; Ctrl-A x leaves]\r\n", c->ctl->opt.words[2],
                 reply->text);
        show(note, strlen(note));
    }
    if (!reply->last)
        return 0;
    if (reply->redirect[0]) { /* it moved: go along */
        snprintf(note, sizeof(note), "\r\n[%s moved to node %s]\r\n", c->ctl->opt.words[2], reply->redirect);
        if (c->raw)
            show(note, strlen(note));
        fvm_rpc_close(&c->client);
        return attach(c, false, err);
    }
    if (reply->code)
        return fvm_err_set(err, reply->code, 0, "cluster", "%s", reply->text);
    snprintf(note, sizeof(note), "\r\n[%s]\r\n", reply->text);
    if (c->raw)
        show(note, strlen(note));
    return 1;
}

static int converse(struct console *c, int signals, struct fvm_err *err)
{
    int rc = 0;
    while (!rc && !c->leave) {
        Fvm__Reply *reply = NULL;
        rc = fvm_rpc_next(c->client, c->id, 20, c->eof ? signals : STDIN_FILENO, &reply, err);
        if (rc == FVM_EBUSY || rc == FVM_ETIMEOUT) {
            struct pollfd p[2] = {{.fd = signals, .events = POLLIN},
                                  {.fd = c->eof ? -1 : STDIN_FILENO, .events = POLLIN}};
            rc = 0;
            if (poll(p, 2, 0) > 0) {
                c->leave = p[0].revents != 0;
                if (p[1].revents)
                    rc = typed(c, err);
            }
        } else if (!rc) {
            rc = answered(c, reply, err);
            fvm__reply__free_unpacked(reply, NULL);
        }
    }
    return rc;
}

static void detach(struct console *c)
{
    Fvm__Request request = FVM__REQUEST__INIT;
    Fvm__Cancel cancel = FVM__CANCEL__INIT;
    if (!c->client)
        return;
    cancel.of = c->id;
    request.what_case = FVM__REQUEST__WHAT_CANCEL;
    request.cancel = &cancel;
    if (c->leave)
        (void)fvm_rpc_start(c->client, &request, NULL);
    fvm_rpc_close(&c->client);
}

int fvm_ctl_vm_console(struct fvm_ctl *ctl, struct fvm_err *err)
{
    struct console c = {.ctl = ctl};
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGINT);
    sigaddset(&set, SIGHUP);
    int signals = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
    if (signals < 0)
        return fvm_err_set(err, fvm_err_from_errno(errno), errno, "cluster", "cannot watch signals: %s",
                           strerror(errno));
    int rc = attach(&c, ctl->opt.history, err);
    raw_on(&c);
    if (!rc)
        rc = converse(&c, signals, err);
    raw_off(&c);
    detach(&c);
    close(signals);
    return rc == 1 ? 0 : rc;
}
