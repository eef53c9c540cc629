/*
 * node_console.c - a VM's serial console: the node keeps the one connection that the VM's socket allows, writes what
 * comes to DIR/console.log, remembers the last of it, and passes it on to any number of operators.
 *
 * Invariant: a console exists as long as its VM has a process; each viewer is a call that ends when the viewer leaves,
 * the VM ends, or the VM moves (then with a redirect, and the operator's tool follows).
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/log.h"
#include "cluster/node.h"

enum { RING = 65536, LOG_MAX = 4 << 20, INPUT_MAX = 65536 };

struct viewer {
    struct viewer *next;
    struct fvm_node_console *console;
    struct fvm_node_call *call;
};

struct fvm_node_console {
    struct fvm_node_vm *vm;
    int fd, log;
    off_t logged;
    struct fvm_loop_io *io;
    struct fvm_loop_timer *retry;
    struct viewer *viewers;
    uint8_t ring[RING];
    size_t head, kept; /* next write position; bytes valid */
    uint8_t input[INPUT_MAX];
    size_t input_len;
};

/* ---- output ---- */

static void log_bytes(struct fvm_node_console *c, const uint8_t *data, size_t len)
{
    char path[4200], old[4200];
    if (c->log >= 0 && c->logged > LOG_MAX) {
        close(c->log);
        c->log = -1;
        fvm_node_vm_path(c->vm, "console.log", path, sizeof(path));
        fvm_node_vm_path(c->vm, "console.log.1", old, sizeof(old));
        (void)rename(path, old);
    }
    if (c->log < 0) {
        fvm_node_vm_path(c->vm, "console.log", path, sizeof(path));
        c->log = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
        struct stat st;
        c->logged = c->log >= 0 && fstat(c->log, &st) == 0 ? st.st_size : 0;
    }
    if (c->log >= 0 && write(c->log, data, len) > 0) /* a full disk costs the log, not the guest */
        c->logged += (off_t)len;
}

static void remember(struct fvm_node_console *c, const uint8_t *data, size_t len)
{
    for (size_t i = 0; i < len; i++) {
        c->ring[c->head] = data[i];
        c->head = (c->head + 1) % RING;
    }
    c->kept = FVM_MIN(c->kept + len, (size_t)RING);
}

static void send_bytes(struct fvm_node_call *call, const uint8_t *data, size_t len)
{
    Fvm__Reply reply = FVM__REPLY__INIT;
    reply.console.data = (uint8_t *)(uintptr_t)data;
    reply.console.len = len;
    fvm_node_call_send(call, &reply);
}

static void lose(struct fvm_node_console *c)
{
    if (c->io)
        fvm_loop_io_remove(&c->io);
    if (c->fd >= 0)
        close(c->fd);
    c->fd = -1;
    c->input_len = 0;
    fvm_loop_timer_arm(c->retry, fvm_now_ns() + 100000000ull);
}

static void flush_input(struct fvm_node_console *c)
{
    ssize_t n = c->input_len ? send(c->fd, c->input, c->input_len, MSG_DONTWAIT | MSG_NOSIGNAL) : 0;
    if (n > 0) {
        memmove(c->input, c->input + n, c->input_len - (size_t)n);
        c->input_len -= (size_t)n;
    }
    if (c->io)
        fvm_loop_io_set(c->io, FVM_LOOP_IN | (c->input_len ? FVM_LOOP_OUT : 0));
}

/* One read: true when there may be more. */
static bool take_output(struct fvm_node_console *c)
{
    uint8_t data[16384];
    ssize_t n = recv(c->fd, data, sizeof(data), MSG_DONTWAIT);
    if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR))
        lose(c);
    if (n <= 0)
        return false;
    log_bytes(c, data, (size_t)n);
    remember(c, data, (size_t)n);
    for (struct viewer *v = c->viewers, *next; v; v = next) {
        next = v->next; /* a viewer that is gone removes itself */
        send_bytes(v->call, data, (size_t)n);
    }
    return true;
}

static void on_io(void *ctx, int fd, unsigned revents)
{
    struct fvm_node_console *c = ctx;
    (void)fd;
    if (revents & FVM_LOOP_OUT)
        flush_input(c);
    take_output(c);
}

static void try_connect(void *ctx)
{
    struct fvm_node_console *c = ctx;
    struct sockaddr_un sa = {.sun_family = AF_UNIX};
    char path[4200];
    fvm_node_vm_path(c->vm, "console", path, sizeof(path));
    snprintf(sa.sun_path, sizeof(sa.sun_path), "%.107s", path);
    c->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (c->fd < 0 || connect(c->fd, (struct sockaddr *)&sa, sizeof(sa)) ||
        fvm_loop_io_add(c->vm->node->loop, c->fd, FVM_LOOP_IN, on_io, c, &c->io))
        lose(c);
}

/* ---- viewers ---- */

static struct viewer *unlink_viewer(struct fvm_node_call *call)
{
    struct viewer *v = call->ctx;
    for (struct viewer **p = &v->console->viewers; *p; p = &(*p)->next)
        if (*p == v) {
            *p = v->next;
            break;
        }
    return v;
}

static void on_cancelled(struct fvm_node_call *call)
{
    free(unlink_viewer(call));
    call->cancelled = call->gone = NULL;
    fvm_node_call_text(call, "console closed");
}

static void on_input(struct fvm_node_call *call, const uint8_t *data, size_t len)
{
    struct fvm_node_console *c = ((struct viewer *)call->ctx)->console;
    len = FVM_MIN(len, INPUT_MAX - c->input_len); /* nobody types that much ahead of a guest that does not read */
    memcpy(c->input + c->input_len, data, len);
    c->input_len += len;
    if (c->fd >= 0)
        flush_input(c);
}

void fvm_node_console_open(struct fvm_node_vm *vm, struct fvm_node_call *call, bool history)
{
    struct fvm_node_console *c = vm->console;
    struct viewer *v = c ? calloc(1, sizeof(*v)) : NULL;
    if (!v) {
        struct fvm_err err = {0};
        fvm_err_set(&err, c ? FVM_ENOMEM : FVM_ESTATE, 0, "cluster", c ? "out of memory" : "VM %s has no console yet",
                    vm->name);
        fvm_node_call_fail(call, &err);
        return;
    }
    *v = (struct viewer){.next = c->viewers, .console = c, .call = call};
    c->viewers = v;
    call->ctx = v;
    call->input = on_input;
    Fvm__Reply hello = FVM__REPLY__INIT;
    hello.text = vm->node->name;
    fvm_node_call_send(call, &hello);
    call->cancelled = call->gone = on_cancelled;
    if (history && c->kept) {
        size_t start = (c->head + RING - c->kept) % RING, first = FVM_MIN(c->kept, RING - start);
        send_bytes(call, c->ring + start, first);
        if (c->kept > first && c->viewers == v)
            send_bytes(call, c->ring, c->kept - first);
    }
}

void fvm_node_console_start(struct fvm_node_vm *vm)
{
    if (vm->console)
        return;
    struct fvm_node_console *c = calloc(1, sizeof(*c));
    if (!c || fvm_loop_timer_add(vm->node->loop, try_connect, c, &c->retry)) {
        free(c);
        return;
    }
    c->vm = vm;
    c->fd = c->log = -1;
    vm->console = c;
    try_connect(c);
}

void fvm_node_console_stop(struct fvm_node_vm *vm, const char *moved_to)
{
    struct fvm_node_console *c = vm->console;
    if (!c)
        return;
    while (c->fd >= 0 && take_output(c)) /* the last words */
        ;
    vm->console = NULL;
    while (c->viewers) {
        struct fvm_node_call *call = c->viewers->call;
        free(unlink_viewer(call));
        call->cancelled = call->gone = NULL;
        call->input = NULL;
        if (moved_to && *moved_to)
            fvm_node_call_redirect(call, moved_to);
        else
            fvm_node_call_text(call, "VM %s has ended", vm->name);
    }
    if (c->io)
        fvm_loop_io_remove(&c->io);
    fvm_loop_timer_remove(&c->retry);
    if (c->fd >= 0)
        close(c->fd);
    if (c->log >= 0)
        close(c->log);
    free(c);
}
