/*
 * vm_char.c - the outside end of a serial port. See vm_char.h.
 *
 *   fd_in -> [filter] -> in[] -> chip            chip -> (ring, when nobody listens) -> fd_out
 *
 * Descriptors that a shell shares with us (stdio) stay in blocking mode: we read only when there is something and write
 * little pieces only when poll says that there is room. Regular files can't be polled; they are always ready.
 *
 * Invariant: a descriptor is read while in[] has room, also while the VM is paused, so that the escape keys work and a
 * client that leaves is noticed; a full in[] is the back pressure to the sender.
 */
#include "vmm/vm_char.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/log.h"
#include "vmm/vm_later.h"
#include "vmm/vm_unix.h"

#define IN_BYTES 4096
#define RING_BYTES 65536
#define WRITE_CHUNK 512 /* less than PIPE_BUF: poll's promise for a pipe */

static const char room[] = "serial";

enum kind { KIND_NONE, KIND_STDIO, KIND_FILE, KIND_UNIX };

struct fvm_char { /* loop's thread or board lock held */
    struct fvm_loop *loop;
    enum kind kind;
    char path[FVM_UNIX_PATH_MAX];
    int fd_in, fd_out, fd_listen; /* -1: none */
    bool socket;                  /* fd_in == fd_out is a non-blocking socket */
    bool in_eof, held, want_out, in_unpollable;
    bool broken; /* the client went away while we wrote */
    struct fvm_loop_io *io_in, *io_out, *io_listen;
    struct fvm_later *rearm; /* output or input registration must follow the flags (from any thread) */
    struct fvm_char_hooks hooks;
    fvm_char_filter filter;
    void *filter_ctx;
    size_t in_len;
    uint8_t in[IN_BYTES];
    uint8_t *ring; /* RING_BYTES; unix only */
    size_t ring_start, ring_len;
};

static void update(struct fvm_char *ch);

/* ---- output ---- */

static void ring_put(struct fvm_char *ch, const uint8_t *bytes, size_t len)
{
    for (size_t i = 0; i < len; i++) {
        ch->ring[(ch->ring_start + ch->ring_len) % RING_BYTES] = bytes[i];
        if (ch->ring_len < RING_BYTES)
            ch->ring_len++;
        else
            ch->ring_start = (ch->ring_start + 1) % RING_BYTES;
    }
}

static void client_gone(struct fvm_char *ch)
{
    fvm_log(INFO, "serial.client-gone", "socket=%s", ch->path);
    if (ch->fd_in >= 0) {
        fvm_loop_io_remove(&ch->io_in);
        fvm_loop_io_remove(&ch->io_out);
        if (ch->fd_out != ch->fd_in)
            close(ch->fd_out);
        close(ch->fd_in);
    }
    ch->fd_in = ch->fd_out = -1;
    ch->want_out = ch->broken = false;
}

/* Bytes written, 0 when there is no room now, -1 when the other end is gone. */
static ssize_t write_some(struct fvm_char *ch, const uint8_t *bytes, size_t len)
{
    ssize_t n;
    if (ch->socket) {
        n = send(ch->fd_out, bytes, len, MSG_NOSIGNAL | MSG_DONTWAIT);
    } else {
        struct pollfd p = {.fd = ch->fd_out, .events = POLLOUT};
        if (ch->kind != KIND_FILE && poll(&p, 1, 0) != 1)
            return 0;
        n = write(ch->fd_out, bytes, FVM_MIN(len, (size_t)WRITE_CHUNK));
    }
    if (n >= 0)
        return n;
    return errno == EAGAIN || errno == EINTR ? 0 : -1;
}

static bool ring_flush(struct fvm_char *ch) /* true: empty now */
{
    while (ch->ring_len) {
        size_t run = FVM_MIN(ch->ring_len, RING_BYTES - ch->ring_start);
        ssize_t n = write_some(ch, ch->ring + ch->ring_start, run);
        if (n <= 0)
            return false;
        ch->ring_start = (ch->ring_start + (size_t)n) % RING_BYTES;
        ch->ring_len -= (size_t)n;
    }
    return true;
}

static size_t backend_write(void *ctx, const uint8_t *bytes, size_t len)
{
    struct fvm_char *ch = ctx;
    size_t done = 0;
    if (ch->kind == KIND_NONE)
        return len;
    if (ch->fd_out < 0) {
        if (ch->ring)
            ring_put(ch, bytes, len);
        return len;
    }
    while (done < len && !ch->ring_len) {
        ssize_t n = write_some(ch, bytes + done, len - done);
        if (n < 0) { /* a broken pipe or full disk: the guest's port keeps working */
            if (ch->ring) {
                ring_put(ch, bytes + done, len - done);
                ch->broken = true;
                fvm_later_ask(ch->rearm);
            }
            return len;
        }
        if (n == 0)
            break;
        done += (size_t)n;
    }
    if (done < len && !ch->want_out) {
        ch->want_out = true;
        fvm_later_ask(ch->rearm);
    }
    return done;
}

static void on_out(void *ctx, int fd, unsigned revents)
{
    struct fvm_char *ch = ctx;
    (void)fd;
    (void)revents;
    if (!ring_flush(ch))
        return;
    ch->want_out = false;
    if (ch->hooks.output_ready)
        ch->hooks.output_ready(ch->hooks.ctx); /* may set want_out again */
    update(ch);
}

/* ---- input ---- */

static void offer(struct fvm_char *ch)
{
    if (ch->held || !ch->in_len)
        return;
    size_t n = ch->hooks.input ? ch->hooks.input(ch->hooks.ctx, ch->in, ch->in_len) : ch->in_len;
    fvm_assert(n <= ch->in_len);
    memmove(ch->in, ch->in + n, ch->in_len - n);
    ch->in_len -= n;
}

static void on_in(void *ctx, int fd, unsigned revents)
{
    struct fvm_char *ch = ctx;
    size_t room_left = IN_BYTES - ch->in_len;
    if (!room_left && !(revents & FVM_LOOP_HUP))
        return;
    ssize_t n = read(fd, ch->in + ch->in_len, room_left);
    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (n <= 0 && ch->kind == KIND_UNIX) {
        client_gone(ch);
        if (ch->hooks.output_ready)
            ch->hooks.output_ready(ch->hooks.ctx); /* goes to the ring now */
        return;
    }
    if (n <= 0) {
        ch->in_eof = true; /* the guest runs on without input */
        update(ch);
        return;
    }
    size_t len = (size_t)n;
    if (ch->filter)
        len = ch->filter(ch->filter_ctx, ch->in + ch->in_len, len);
    ch->in_len += len;
    offer(ch);
    update(ch);
}

static void backend_input_room(void *ctx)
{
    struct fvm_char *ch = ctx;
    fvm_later_ask(ch->rearm);
}

/* ---- registrations follow the flags ---- */

static bool wants_input(const struct fvm_char *ch)
{
    if (ch->fd_in < 0 || ch->in_eof)
        return false;
    return ch->in_unpollable ? ch->in_len == 0 && !ch->held : ch->in_len < IN_BYTES;
}

static void update(struct fvm_char *ch)
{
    bool in = wants_input(ch), out = ch->want_out && ch->fd_out >= 0;
    if (ch->in_unpollable) {
        if (in)
            fvm_later_ask(ch->rearm); /* a regular file: read the next piece in the next turn */
        in = false;
    }
    if (in && !ch->io_in) {
        int r = fvm_loop_io_add(ch->loop, ch->fd_in, FVM_LOOP_IN, on_in, ch, &ch->io_in);
        if (r) {
            ch->in_unpollable = true;
            fvm_later_ask(ch->rearm);
        }
    } else if (!in && ch->io_in) {
        fvm_loop_io_remove(&ch->io_in);
    }
    if (out && !ch->io_out) {
        int fd = ch->fd_out;
        if (fvm_loop_io_add(ch->loop, fd, FVM_LOOP_OUT, on_out, ch, &ch->io_out))
            fvm_later_ask(ch->rearm);
    } else if (!out && ch->io_out) {
        fvm_loop_io_remove(&ch->io_out);
    }
}

static void on_rearm(void *ctx)
{
    struct fvm_char *ch = ctx;
    if (ch->broken)
        client_gone(ch);
    offer(ch);
    if (ch->in_unpollable && wants_input(ch)) {
        on_in(ch, ch->fd_in, FVM_LOOP_IN);
        return;
    }
    update(ch);
    if (ch->want_out && !ch->io_out && ch->fd_out >= 0)
        on_out(ch, ch->fd_out, FVM_LOOP_OUT);
}

static void on_listen(void *ctx, int fd, unsigned revents)
{
    struct fvm_char *ch = ctx;
    (void)revents;
    int client = accept4(fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (client < 0)
        return;
    if (ch->fd_in >= 0) {
        static const char busy[] = "fvm: another client is connected to this serial port\r\n";
        (void)!send(client, busy, sizeof(busy) - 1, MSG_NOSIGNAL | MSG_DONTWAIT);
        close(client);
        return;
    }
    fvm_log(INFO, "serial.client", "socket=%s replay_bytes=%zu", ch->path, ch->ring_len);
    ch->fd_in = client;
    ch->fd_out = dup(client); /* a descriptor of its own: each registration needs one */
    if (ch->fd_out < 0)
        ch->fd_out = client;
    if (!ring_flush(ch))
        ch->want_out = true;
    update(ch);
}

/* ---- open, close ---- */

int fvm_char_check_spec(const char *spec, struct fvm_err *err)
{
    if (!spec[0] || !strcmp(spec, "none") || !strcmp(spec, "stdio") || (!strncmp(spec, "file:", 5) && spec[5]))
        return 0;
    if (!strncmp(spec, "unix:", 5) && spec[5]) {
        if (strlen(spec + 5) >= FVM_UNIX_PATH_MAX)
            return fvm_err_set(err, FVM_EINVAL, 0, room, "socket name %.60s... is longer than %d characters", spec + 5,
                               FVM_UNIX_PATH_MAX - 1);
        return 0;
    }
    return fvm_err_set(err, FVM_EINVAL, 0, room, "\"%.60s\": write stdio, file:FILE, unix:SOCKET or none", spec);
}

static int open_file(struct fvm_char *ch, const char *path, struct fvm_err *err)
{
    ch->kind = KIND_FILE;
    ch->fd_out = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | O_NOCTTY, 0600);
    if (ch->fd_out >= 0)
        return 0;
    int e = errno;
    return fvm_err_set(err, fvm_err_from_errno(e), e, room, "output file %s: %s", path, strerror(e));
}

static int open_unix(struct fvm_char *ch, const char *path, struct fvm_err *err)
{
    ch->kind = KIND_UNIX;
    ch->socket = true;
    ch->ring = malloc(RING_BYTES);
    if (!ch->ring)
        return fvm_err_set(err, FVM_ENOMEM, 0, room, "out of memory");
    int r = fvm_unix_listen(path, &ch->fd_listen, err);
    if (r)
        return r;
    memcpy(ch->path, path, strlen(path) + 1);
    return fvm_loop_io_add(ch->loop, ch->fd_listen, FVM_LOOP_IN, on_listen, ch, &ch->io_listen);
}

int fvm_char_open(struct fvm_loop *loop, const char *spec, fvm_char_filter filter, void *filter_ctx,
                  struct fvm_char **ret_char, struct fvm_err *err)
{
    int r = fvm_char_check_spec(spec, err);
    if (r)
        return r;
    struct fvm_char *ch = calloc(1, sizeof(*ch));
    if (!ch || fvm_later_create(loop, on_rearm, ch, &ch->rearm)) {
        free(ch);
        return fvm_err_set(err, FVM_ENOMEM, 0, room, "out of memory");
    }
    ch->loop = loop;
    ch->fd_in = ch->fd_out = ch->fd_listen = -1;
    ch->held = true;
    if (!strcmp(spec, "stdio")) {
        ch->kind = KIND_STDIO;
        ch->filter = filter;
        ch->filter_ctx = filter_ctx;
        ch->fd_in = STDIN_FILENO;
        ch->fd_out = STDOUT_FILENO;
    } else if (!strncmp(spec, "file:", 5)) {
        r = open_file(ch, spec + 5, err);
    } else if (!strncmp(spec, "unix:", 5)) {
        r = open_unix(ch, spec + 5, err);
    }
    if (r) {
        fvm_char_close(&ch);
        return r;
    }
    update(ch);
    *ret_char = ch;
    return 0;
}

void fvm_char_close(struct fvm_char **char_p)
{
    struct fvm_char *ch = *char_p;
    *char_p = NULL;
    if (!ch)
        return;
    fvm_loop_io_remove(&ch->io_in);
    fvm_loop_io_remove(&ch->io_out);
    fvm_loop_io_remove(&ch->io_listen);
    fvm_later_destroy(&ch->rearm);
    if (ch->kind != KIND_STDIO) {
        if (ch->fd_in >= 0)
            close(ch->fd_in);
        if (ch->fd_out >= 0 && ch->fd_out != ch->fd_in)
            close(ch->fd_out);
    }
    if (ch->fd_listen >= 0)
        close(ch->fd_listen);
    if (ch->path[0])
        unlink(ch->path);
    free(ch->ring);
    free(ch);
}

void fvm_char_attach(struct fvm_char *ch, const struct fvm_char_hooks *hooks)
{
    ch->hooks = *hooks;
}

struct fvm_serial_backend fvm_char_backend(struct fvm_char *ch)
{
    return (struct fvm_serial_backend){.write = backend_write, .input_room = backend_input_room, .ctx = ch};
}

void fvm_char_hold(struct fvm_char *ch, bool hold)
{
    ch->held = hold;
    fvm_later_ask(ch->rearm);
}
