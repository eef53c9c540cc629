/*
 * fvm_control.c - the server of a VM's control socket. See fvm_control.h for the protocol.
 *
 * Nothing here blocks: input is collected until a newline, output queued until the socket takes it. Both have a bound,
 * and who passes it is disconnected. A call knows its client only by pointer and is told when the client goes.
 *
 * Invariant: every call is on its control's list until it is answered, so destroy can drop what is left.
 */
#include "cluster/fvm_control.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/log.h"
#include "vmm/vm_unix.h"

static const char room[] = "control";

#define COMMANDS_MAX 64

struct command {
    const char *name, *help;
    fvm_control_fn fn;
    void *ctx;
};

struct client {
    struct fvm_control *control;
    struct client *next;
    int fd;
    struct fvm_loop_io *io;
    unsigned events;      /* as registered */
    unsigned pending;     /* calls not answered */
    bool closing;         /* no more input; closed when the output is gone */
    bool busy;            /* inside on_client: do not free */
    bool dead;            /* to be freed when no longer busy */
    size_t in_len;
    char in[FVM_CONTROL_LINE_MAX];
    char *out;
    size_t out_len, out_size;
};

struct fvm_control_call {
    struct fvm_control *control;
    struct client *client; /* NULL: it went away */
    struct fvm_control_call *next;
    json_t *request;
};

struct fvm_control { /* loop's thread */
    struct fvm_loop *loop;
    int fd;
    struct fvm_loop_io *io;
    char path[FVM_UNIX_PATH_MAX];
    struct client *clients;
    unsigned client_count;
    struct fvm_control_call *calls;
    struct command commands[COMMANDS_MAX];
    unsigned command_count;
};

/* ---- clients: output ---- */

static void client_free(struct client *c)
{
    struct fvm_control *control = c->control;
    for (struct client **p = &control->clients; *p; p = &(*p)->next)
        if (*p == c) {
            *p = c->next;
            break;
        }
    for (struct fvm_control_call *call = control->calls; call; call = call->next)
        if (call->client == c)
            call->client = NULL;
    control->client_count--;
    fvm_loop_io_remove(&c->io);
    close(c->fd);
    free(c->out);
    free(c);
}

static void client_end(struct client *c)
{
    c->dead = true; /* freed by reap, when nobody up the stack uses it */
}

static void reap(struct fvm_control *control)
{
    struct client *next;
    for (struct client *c = control->clients; c; c = next) {
        next = c->next;
        if (c->dead && !c->busy)
            client_free(c);
    }
}

static void client_events(struct client *c)
{
    unsigned want = (c->closing ? 0u : (unsigned)FVM_LOOP_IN) | (c->out_len ? (unsigned)FVM_LOOP_OUT : 0u);
    if (want != c->events && !c->dead) {
        c->events = want;
        if (fvm_loop_io_set(c->io, want))
            client_end(c);
    }
}

/* Send what goes; ends a client that is gone or done. */
static void client_flush(struct client *c)
{
    while (c->out_len && !c->dead) {
        ssize_t n = send(c->fd, c->out, c->out_len, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0 && errno == EAGAIN)
            break;
        if (n < 0) {
            client_end(c);
            return;
        }
        memmove(c->out, c->out + n, c->out_len - (size_t)n);
        c->out_len -= (size_t)n;
    }
    if (c->closing && !c->out_len && !c->pending && !c->dead) {
        client_end(c);
        return;
    }
    client_events(c);
}

static void client_send(struct client *c, const json_t *message)
{
    if (c->dead)
        return;
    char *text = json_dumps(message, JSON_COMPACT);
    size_t len = text ? strlen(text) : 0;
    if (!text || c->out_len + len + 1 > FVM_CONTROL_OUT_MAX) {
        fvm_log(WARN, "control.drop", "socket=%s unread_bytes=%zu", c->control->path, c->out_len);
        free(text);
        client_end(c);
        return;
    }
    if (c->out_len + len + 1 > c->out_size) {
        size_t size = FVM_ALIGN_UP(c->out_len + len + 1, (size_t)4096);
        char *out = realloc(c->out, size);
        if (!out) {
            free(text);
            client_end(c);
            return;
        }
        c->out = out;
        c->out_size = size;
    }
    memcpy(c->out + c->out_len, text, len);
    c->out[c->out_len + len] = '\n';
    c->out_len += len + 1;
    free(text);
    client_flush(c);
}

static json_t *error_message(json_t *id, const struct fvm_err *err)
{
    return json_pack("{s:O, s:b, s:s, s:i, s:s}", "id", id, "ok", 0, "error",
                     err->text[0] ? err->text : fvm_err_text(err->code), "code", err->code, "name",
                     fvm_err_name(err->code));
}

static void client_refuse(struct client *c, json_t *id, int code, const char *text)
{
    struct fvm_err err = {.code = code};
    snprintf(err.text, sizeof(err.text), "%s", text);
    json_t *message = error_message(id ? id : json_null(), &err);
    if (message)
        client_send(c, message);
    json_decref(message);
}

/* ---- calls ---- */

static void call_finish(struct fvm_control_call *call, json_t *message)
{
    struct fvm_control *control = call->control;
    for (struct fvm_control_call **p = &control->calls; *p; p = &(*p)->next)
        if (*p == call) {
            *p = call->next;
            break;
        }
    if (call->client) {
        call->client->pending--;
        if (message)
            client_send(call->client, message);
    }
    json_decref(message);
    json_decref(call->request);
    free(call);
    reap(control);
}

static json_t *call_id(const struct fvm_control_call *call)
{
    json_t *id = json_object_get(call->request, "id");
    return id ? id : json_null();
}

void fvm_control_reply(struct fvm_control_call *call, json_t *result)
{
    call_finish(call, json_pack("{s:O, s:b, s:o}", "id", call_id(call), "ok", 1, "result",
                                result ? result : json_object()));
}

void fvm_control_fail(struct fvm_control_call *call, const struct fvm_err *err)
{
    call_finish(call, error_message(call_id(call), err));
}

static const struct command *find_command(const struct fvm_control *control, const char *name)
{
    for (unsigned i = 0; i < control->command_count; i++)
        if (!strcmp(control->commands[i].name, name))
            return &control->commands[i];
    return NULL;
}

static void client_request(struct client *c, json_t *request)
{
    const char *name = json_string_value(json_object_get(request, "cmd"));
    json_t *id = json_object_get(request, "id");
    const struct command *command = name ? find_command(c->control, name) : NULL;
    if (!name) {
        client_refuse(c, id, FVM_EINVAL, "the request has no \"cmd\"");
    } else if (!command) {
        char text[160];
        snprintf(text, sizeof(text), "command \"%.60s\" is unknown; \"help\" lists what there is", name);
        client_refuse(c, id, FVM_ENOENT, text);
    } else if (c->pending >= FVM_CONTROL_PENDING_MAX) {
        client_refuse(c, id, FVM_EBUSY, "too many requests are waiting for an answer");
    } else {
        struct fvm_control_call *call = calloc(1, sizeof(*call));
        if (!call) {
            client_refuse(c, id, FVM_ENOMEM, "out of memory");
            return;
        }
        call->control = c->control;
        call->client = c;
        call->request = json_incref(request);
        call->next = c->control->calls;
        c->control->calls = call;
        c->pending++;
        command->fn(command->ctx, call, request);
    }
}

/* ---- clients: input ---- */

static void client_line(struct client *c, const char *line, size_t len)
{
    json_error_t why;
    if (len && line[len - 1] == '\r')
        len--;
    if (!len)
        return;
    json_t *request = json_loadb(line, len, JSON_REJECT_DUPLICATES, &why);
    if (!json_is_object(request)) {
        char text[200];
        snprintf(text, sizeof(text), "the line is not a JSON object (%.100s)", request ? "another type" : why.text);
        c->closing = true;
        client_refuse(c, NULL, FVM_EPROTO, text);
    } else {
        client_request(c, request);
    }
    json_decref(request);
}

static void client_lines(struct client *c)
{
    size_t start = 0;
    while (!c->closing && !c->dead) {
        char *nl = memchr(c->in + start, '\n', c->in_len - start);
        if (!nl)
            break;
        size_t len = (size_t)(nl - (c->in + start));
        client_line(c, c->in + start, len);
        start += len + 1;
    }
    if (c->closing || c->dead)
        return;
    memmove(c->in, c->in + start, c->in_len - start);
    c->in_len -= start;
    if (c->in_len == sizeof(c->in)) {
        c->closing = true;
        client_refuse(c, NULL, FVM_EPROTO, "the line is too long");
    }
}

static void on_client(void *ctx, int fd, unsigned revents)
{
    struct client *c = ctx;
    c->busy = true;
    if (revents & FVM_LOOP_OUT)
        client_flush(c);
    if (!c->closing && !c->dead && (revents & ~(unsigned)FVM_LOOP_OUT)) {
        ssize_t n = read(fd, c->in + c->in_len, sizeof(c->in) - c->in_len);
        if (n > 0) {
            c->in_len += (size_t)n;
            client_lines(c);
        } else if (n == 0 && c->pending) {
            c->closing = true; /* half closed: it still waits for its answers */
        } else if (n == 0 || (errno != EAGAIN && errno != EINTR)) {
            client_end(c);
        }
    } else if (c->closing && (revents & (FVM_LOOP_HUP | FVM_LOOP_ERR))) {
        client_end(c);
    }
    if (c->closing && !c->pending && !c->dead)
        client_flush(c);
    else
        client_events(c);
    c->busy = false;
    reap(c->control);
}

static bool peer_allowed(int fd)
{
    struct ucred peer;
    socklen_t len = sizeof(peer);
    if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &len) < 0)
        return false;
    return peer.uid == 0 || peer.uid == geteuid();
}

static void on_accept(void *ctx, int fd, unsigned revents)
{
    struct fvm_control *control = ctx;
    (void)revents;
    int client_fd = accept4(fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (client_fd < 0)
        return;
    struct client *c = NULL;
    if (control->client_count < FVM_CONTROL_CLIENTS_MAX && peer_allowed(client_fd))
        c = calloc(1, sizeof(*c));
    if (c && fvm_loop_io_add(control->loop, client_fd, FVM_LOOP_IN, on_client, c, &c->io)) {
        free(c);
        c = NULL;
    }
    if (!c) {
        const struct fvm_err err = {.code = FVM_EBUSY, .text = "not accepted: another user, or too many clients"};
        json_t *message = error_message(json_null(), &err);
        char *text = message ? json_dumps(message, JSON_COMPACT) : NULL;
        if (text)
            (void)!send(client_fd, text, strlen(text), MSG_NOSIGNAL | MSG_DONTWAIT);
        free(text);
        json_decref(message);
        close(client_fd);
        return;
    }
    c->control = control;
    c->fd = client_fd;
    c->events = FVM_LOOP_IN;
    c->next = control->clients;
    control->clients = c;
    control->client_count++;
}

/* ---- the server ---- */

static void command_help(void *ctx, struct fvm_control_call *call, const json_t *request)
{
    const struct fvm_control *control = ctx;
    (void)request;
    json_t *list = json_object();
    for (unsigned i = 0; i < control->command_count; i++)
        json_object_set_new(list, control->commands[i].name, json_string(control->commands[i].help));
    fvm_control_reply(call, json_pack("{s:s, s:o}", "version", FVM_VERSION, "commands", list));
}

int fvm_control_create(struct fvm_loop *loop, const char *path, struct fvm_control **ret_control, struct fvm_err *err)
{
    struct fvm_control *control = calloc(1, sizeof(*control));
    if (!control)
        return fvm_err_set(err, FVM_ENOMEM, 0, room, "out of memory");
    control->loop = loop;
    control->fd = -1;
    int r = fvm_unix_listen(path, &control->fd, err);
    if (!r) {
        memcpy(control->path, path, strlen(path) + 1);
        r = fvm_loop_io_add(loop, control->fd, FVM_LOOP_IN, on_accept, control, &control->io);
    }
    if (!r)
        r = fvm_control_register(control, "help", "what there is", command_help, control);
    if (r) {
        fvm_control_destroy(&control);
        return r;
    }
    *ret_control = control;
    return 0;
}

void fvm_control_destroy(struct fvm_control **control_p)
{
    struct fvm_control *control = *control_p;
    *control_p = NULL;
    if (!control)
        return;
    while (control->clients)
        client_free(control->clients);
    while (control->calls)
        call_finish(control->calls, NULL);
    fvm_loop_io_remove(&control->io);
    if (control->fd >= 0)
        close(control->fd);
    if (control->path[0])
        unlink(control->path);
    free(control);
}

int fvm_control_register(struct fvm_control *control, const char *name, const char *help, fvm_control_fn fn, void *ctx)
{
    if (find_command(control, name))
        return FVM_EEXIST;
    fvm_assert(control->command_count < COMMANDS_MAX);
    control->commands[control->command_count++] = (struct command){.name = name, .help = help, .fn = fn, .ctx = ctx};
    return 0;
}

void fvm_control_event(struct fvm_control *control, const char *name, json_t *data)
{
    json_t *message = data ? data : json_object();
    json_object_set_new(message, "event", json_string(name));
    for (struct client *c = control->clients; c; c = c->next)
        if (!c->closing)
            client_send(c, message);
    json_decref(message);
    reap(control);
}

void fvm_control_flush(struct fvm_control *control, int timeout_ms)
{
    uint64_t end = fvm_now_ns() + (uint64_t)timeout_ms * 1000000u;
    for (struct client *c = control->clients; c; c = c->next) {
        while (c->out_len && fvm_now_ns() < end) {
            struct pollfd p = {.fd = c->fd, .events = POLLOUT};
            if (poll(&p, 1, (int)((end - fvm_now_ns()) / 1000000u)) != 1)
                break;
            ssize_t n = send(c->fd, c->out, c->out_len, MSG_NOSIGNAL | MSG_DONTWAIT);
            if (n <= 0)
                break;
            memmove(c->out, c->out + n, c->out_len - (size_t)n);
            c->out_len -= (size_t)n;
        }
    }
}

/* ---- members ---- */

int fvm_control_get_string(const json_t *request, const char *key, const char *fallback, const char **ret,
                           struct fvm_err *err)
{
    const json_t *value = json_object_get(request, key);
    if (!value && fallback) {
        *ret = fallback;
        return 0;
    }
    if (!json_is_string(value))
        return fvm_err_set(err, FVM_EINVAL, 0, room, "\"%s\" must be a string", key);
    *ret = json_string_value(value);
    return 0;
}

int fvm_control_get_int(const json_t *request, const char *key, int64_t min, int64_t max, int64_t fallback,
                        int64_t *ret, struct fvm_err *err)
{
    const json_t *value = json_object_get(request, key);
    if (!value) {
        *ret = fallback;
        return 0;
    }
    if (!json_is_integer(value) || json_integer_value(value) < min || json_integer_value(value) > max)
        return fvm_err_set(err, FVM_EINVAL, 0, room, "\"%s\" must be an integer from %lld to %lld", key, (long long)min,
                           (long long)max);
    *ret = json_integer_value(value);
    return 0;
}
