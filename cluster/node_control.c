/*
 * node_control.c - client of a VM process' control socket.
 *
 * Invariant: each call that was accepted ends exactly once: by its reply, its time-out or the end of the connection. A
 * closed control calls nothing any more: it lives on, unreachable, until the callback that closed it has returned.
 */
#include "cluster/node_control.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

struct call {
    struct call *next;
    json_int_t id;
    uint64_t deadline_ns;
    fvm_node_control_done done;
    void *ctx;
};

struct fvm_node_control {
    struct fvm_loop *loop;
    struct fvm_loop_io *io;
    struct fvm_loop_timer *timer;
    struct fvm_node_control_hooks hooks;
    struct call *calls;
    unsigned call_count;
    json_int_t next_id;
    int fd;
    unsigned busy; /* callbacks on the stack */
    bool closed;
    bool released; /* by its owner */
    char *in;
    size_t in_len, in_size;
    char *out;
    size_t out_len;
};

static void finish_call(struct fvm_node_control *c, struct call *call, json_t *reply, const struct fvm_err *err)
{
    for (struct call **p = &c->calls; *p; p = &(*p)->next)
        if (*p == call) {
            *p = call->next;
            c->call_count--;
            break;
        }
    call->done(call->ctx, reply, err);
    free(call);
}

static void free_now(struct fvm_node_control *c)
{
    free(c->in);
    free(c->out);
    free(c);
}

/* Give back the descriptor and end the calls; the struct itself goes when no callback is above us. */
static void shut(struct fvm_node_control *c)
{
    if (c->closed)
        return;
    c->closed = true;
    fvm_loop_io_remove(&c->io);
    fvm_loop_timer_remove(&c->timer);
    close(c->fd);
    struct fvm_err err = {0};
    fvm_err_set(&err, FVM_ECLOSED, 0, "cluster", "the VM process closed its control socket");
    while (c->calls)
        finish_call(c, c->calls, NULL, &err);
}

void fvm_node_control_close(struct fvm_node_control **control_p)
{
    struct fvm_node_control *c = *control_p;
    *control_p = NULL;
    if (!c)
        return;
    c->hooks = (struct fvm_node_control_hooks){0};
    c->released = true;
    shut(c);
    if (!c->busy)
        free_now(c);
}

/* The peer went away or misbehaved: tell the owner, who closes. */
static void lost(struct fvm_node_control *c, const char *why)
{
    struct fvm_node_control_hooks hooks = c->hooks;
    shut(c);
    if (hooks.closed)
        hooks.closed(hooks.ctx, why);
}

/* The name of an error, as fvm_err_name gives it, back to its code. */
static int code_of(const char *name)
{
    for (int i = 1; name && i < FVM_EPOS_END_; i++)
        if (strcmp(fvm_err_name(-i), name) == 0)
            return -i;
    return FVM_ESTATE;
}

static void reply_come(struct fvm_node_control *c, json_t *msg)
{
    json_int_t id = json_integer_value(json_object_get(msg, "id"));
    struct call *call = c->calls;
    while (call && call->id != id)
        call = call->next;
    if (!call)
        return; /* timed out before */
    struct fvm_err err = {0};
    json_t *result = json_object_get(msg, "result");
    if (!json_is_true(json_object_get(msg, "ok"))) {
        json_t *error = json_object_get(msg, "error");
        const char *text = json_string_value(json_object_get(error, "text"));
        fvm_err_set(&err, code_of(json_string_value(json_object_get(error, "code"))), 0, "vm", "%s",
                    text ? text : "refused without a reason");
        result = NULL;
    }
    finish_call(c, call, result, &err);
}

static bool handle_line(struct fvm_node_control *c, char *line, size_t len)
{
    json_error_t jerr;
    json_t *msg = json_loadb(line, len, JSON_REJECT_DUPLICATES, &jerr);
    if (!json_is_object(msg)) {
        json_decref(msg);
        return false;
    }
    if (json_object_get(msg, "event")) {
        if (c->hooks.event)
            c->hooks.event(c->hooks.ctx, msg);
    } else {
        reply_come(c, msg);
    }
    json_decref(msg);
    return true;
}

/* Whole lines out of in[]; a line longer than the limit is no line of ours. */
static bool handle_input(struct fvm_node_control *c)
{
    size_t start = 0;
    char *nl;
    while (!c->closed && (nl = memchr(c->in + start, '\n', c->in_len - start))) {
        size_t len = (size_t)(nl - c->in) - start;
        if (len && !handle_line(c, c->in + start, len))
            return false;
        start += len + 1;
    }
    if (!c->closed) {
        memmove(c->in, c->in + start, c->in_len - start);
        c->in_len -= start;
    }
    return c->in_len < FVM_NODE_CONTROL_LINE_MAX;
}

static void flush_out(struct fvm_node_control *c)
{
    size_t sent = 0;
    while (sent < c->out_len) {
        ssize_t n = send(c->fd, c->out + sent, c->out_len - sent, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            break; /* full: the loop says when there is room; broken: reading finds out */
        sent += (size_t)n;
    }
    memmove(c->out, c->out + sent, c->out_len - sent);
    c->out_len -= sent;
    fvm_loop_io_set(c->io, FVM_LOOP_IN | (c->out_len ? FVM_LOOP_OUT : 0));
}

static bool grow_in(struct fvm_node_control *c)
{
    if (c->in_len < c->in_size)
        return true;
    size_t size = c->in_size ? c->in_size * 2 : 16384;
    char *in = realloc(c->in, size);
    if (!in)
        return false;
    c->in = in;
    c->in_size = size;
    return true;
}

static void on_io(void *ctx, int fd, unsigned revents)
{
    struct fvm_node_control *c = ctx;
    const char *why = NULL;
    c->busy++;
    if (revents & FVM_LOOP_OUT)
        flush_out(c);
    if (!grow_in(c)) {
        why = "out of memory";
    } else {
        ssize_t n = recv(fd, c->in + c->in_len, c->in_size - c->in_len, MSG_DONTWAIT);
        if (n > 0) {
            c->in_len += (size_t)n;
            if (!handle_input(c) && !c->closed)
                why = "it sent something that is not the control protocol";
        } else if (n == 0 || (errno != EAGAIN && errno != EINTR)) {
            why = "it closed the connection";
        }
    }
    if (why && !c->closed)
        lost(c, why);
    if (--c->busy == 0 && c->released)
        free_now(c);
}

static void arm(struct fvm_node_control *c)
{
    uint64_t first = UINT64_MAX;
    for (struct call *call = c->calls; call; call = call->next)
        first = FVM_MIN(first, call->deadline_ns);
    fvm_loop_timer_arm(c->timer, first);
}

static void on_timer(void *ctx)
{
    struct fvm_node_control *c = ctx;
    struct fvm_err err = {0};
    fvm_err_set(&err, FVM_ETIMEOUT, 0, "cluster", "the VM process does not answer on its control socket");
    c->busy++;
    for (bool again = true; again && !c->closed;) {
        again = false;
        uint64_t now = fvm_now_ns();
        for (struct call *call = c->calls; call && !again; call = call->next)
            if (call->deadline_ns <= now) {
                finish_call(c, call, NULL, &err);
                again = true;
                break;
            }
    }
    if (!c->closed)
        arm(c);
    if (--c->busy == 0 && c->released)
        free_now(c);
}

int fvm_node_control_open(struct fvm_loop *loop, const char *path, const struct fvm_node_control_hooks *hooks,
                          struct fvm_node_control **ret_control, struct fvm_err *err)
{
    struct sockaddr_un sa = {.sun_family = AF_UNIX};
    if (strlen(path) >= sizeof(sa.sun_path))
        return fvm_err_set(err, FVM_EINVAL, 0, "cluster", "socket name too long: %s", path);
    memcpy(sa.sun_path, path, strlen(path));
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0 || connect(fd, (struct sockaddr *)&sa, sizeof(sa))) {
        int sys = errno;
        if (fd >= 0)
            close(fd);
        bool nobody = sys == ENOENT || sys == ECONNREFUSED || sys == EAGAIN;
        return fvm_err_set(err, nobody ? FVM_ENOENT : fvm_err_from_errno(sys), sys, "cluster", "%s: %s", path,
                           strerror(sys));
    }
    struct fvm_node_control *c = calloc(1, sizeof(*c));
    if (!c) {
        close(fd);
        return fvm_err_set(err, FVM_ENOMEM, 0, "cluster", "out of memory");
    }
    *c = (struct fvm_node_control){.loop = loop, .hooks = *hooks, .fd = fd};
    int rc = fvm_loop_io_add(loop, fd, FVM_LOOP_IN, on_io, c, &c->io);
    if (!rc)
        rc = fvm_loop_timer_add(loop, on_timer, c, &c->timer);
    if (rc) {
        if (c->io)
            fvm_loop_io_remove(&c->io);
        close(fd);
        free(c);
        return fvm_err_set(err, rc, 0, "cluster", "%s: cannot watch the socket", path);
    }
    *ret_control = c;
    return 0;
}

int fvm_node_control_call(struct fvm_node_control *c, json_t *request, unsigned timeout_ms, fvm_node_control_done done,
                          void *ctx)
{
    int rc = FVM_ENOMEM;
    char *text = NULL;
    struct call *call = NULL;
    if (c->closed || c->call_count >= FVM_NODE_CONTROL_CALLS_MAX) {
        rc = c->closed ? FVM_ECLOSED : FVM_EBUSY;
    } else if (request && json_object_set_new(request, "id", json_integer(++c->next_id)) == 0 &&
               (text = json_dumps(request, JSON_COMPACT)) && (call = calloc(1, sizeof(*call)))) {
        size_t len = strlen(text);
        char *out = realloc(c->out, c->out_len + len + 1);
        if (out) {
            memcpy(out + c->out_len, text, len);
            out[c->out_len + len] = '\n';
            c->out = out;
            c->out_len += len + 1;
            *call = (struct call){.next = c->calls, .id = c->next_id, .done = done, .ctx = ctx};
            call->deadline_ns = fvm_now_ns() + (uint64_t)timeout_ms * 1000000;
            c->calls = call;
            c->call_count++;
            call = NULL;
            rc = 0;
            flush_out(c);
            arm(c);
        }
    }
    free(call);
    free(text);
    json_decref(request);
    return rc;
}
