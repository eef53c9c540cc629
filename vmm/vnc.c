/*
 * vnc.c - the VNC server's sockets: listens, carries bytes between clients and their sessions (vnc_session.c), and asks
 * the sessions for updates 30 times a second while one of them waits for a picture.
 *
 * Invariant: a client is freed only in reap(), when nothing up the stack uses it.
 */
#include "vmm/vnc.h"

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/log.h"
#include "vmm/vm_listen.h"
#include "vmm/vm_unix.h"

#define TICK_NS 33000000ull
#define AFTER_WRONG_PASSWORD_NS 1000000000ull

static const char room[] = "vnc";

struct client {
    struct fvm_vnc *vnc;
    struct client *next;
    struct fvm_vnc_session *session;
    int fd;
    struct fvm_loop_io *io;
    bool ending; /* when the output is gone */
    bool dead;
};

struct fvm_vnc { /* loop's thread */
    struct fvm_loop *loop;
    struct fvm_vnc_host host;
    int fd;
    struct fvm_loop_io *io;
    struct fvm_loop_timer *timer;
    bool ticking;
    struct client *clients;
    unsigned client_count;
    char password[FVM_VNC_PASSWORD_MAX + 1];
    bool has_password;
    uint64_t closed_until_ns;
    char unix_path[FVM_UNIX_PATH_MAX];
};

/* ---- clients ---- */

static void reap(struct fvm_vnc *vnc)
{
    struct client **p = &vnc->clients, *c;
    while ((c = *p)) {
        if (!c->dead) {
            p = &c->next;
            continue;
        }
        *p = c->next;
        vnc->client_count--;
        fvm_loop_io_remove(&c->io);
        close(c->fd);
        fvm_vnc_session_destroy(&c->session);
        free(c);
    }
}

static void flush(struct client *c)
{
    struct fvm_vnc_buffer *out = fvm_vnc_session_output(c->session);
    size_t done = 0;
    while (!c->dead && done < out->len) {
        ssize_t n = send(c->fd, out->bytes + done, out->len - done, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (n > 0)
            done += (size_t)n;
        else if (errno == EAGAIN)
            break;
        else if (errno != EINTR)
            c->dead = true;
    }
    if (done)
        memmove(out->bytes, out->bytes + done, out->len - done);
    out->len -= done;
    if (out->failed || (c->ending && !out->len))
        c->dead = true;
    if (!c->dead && fvm_loop_io_set(c->io, (c->ending ? 0u : (unsigned)FVM_LOOP_IN) | (out->len ? (unsigned)FVM_LOOP_OUT : 0u)))
        c->dead = true;
}

static void on_tick(void *ctx)
{
    struct fvm_vnc *vnc = ctx;
    bool waits = false;
    for (struct client *c = vnc->clients; c; c = c->next) {
        if (c->ending || c->dead)
            continue;
        waits |= fvm_vnc_session_update(c->session);
        flush(c);
    }
    reap(vnc);
    vnc->ticking = waits;
    if (waits)
        fvm_loop_timer_arm(vnc->timer, fvm_now_ns() + TICK_NS);
}

static void receive(struct client *c)
{
    uint8_t bytes[4096];
    ssize_t n = recv(c->fd, bytes, sizeof(bytes), MSG_DONTWAIT);
    if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR))
        c->dead = true;
    if (n <= 0)
        return;
    int r = fvm_vnc_session_input(c->session, bytes, (size_t)n);
    if (r) {
        fvm_log(INFO, "vnc.end", "reason=%s", fvm_err_name(r));
        c->ending = true;
        if (r == FVM_EAUTH)
            c->vnc->closed_until_ns = fvm_now_ns() + AFTER_WRONG_PASSWORD_NS;
    }
}

static void on_client(void *ctx, int fd, unsigned revents)
{
    struct client *c = ctx;
    struct fvm_vnc *vnc = c->vnc;
    (void)fd;
    if (!c->ending && (revents & (FVM_LOOP_IN | FVM_LOOP_HUP | FVM_LOOP_ERR)))
        receive(c);
    else if (revents & (FVM_LOOP_HUP | FVM_LOOP_ERR))
        c->dead = true;
    if (!c->dead)
        flush(c);
    if (!c->dead && !c->ending && !vnc->ticking) {
        vnc->ticking = true;
        fvm_loop_timer_arm(vnc->timer, fvm_now_ns());
    }
    reap(vnc);
}

static void on_accept(void *ctx, int fd, unsigned revents)
{
    struct fvm_vnc *vnc = ctx;
    uint8_t challenge[16];
    (void)revents;
    int client_fd = accept4(fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (client_fd < 0)
        return;
    struct client *c = NULL;
    if (vnc->client_count < FVM_VNC_CLIENTS_MAX && fvm_now_ns() >= vnc->closed_until_ns &&
        getrandom(challenge, sizeof(challenge), 0) == sizeof(challenge))
        c = calloc(1, sizeof(*c));
    if (c && fvm_vnc_session_create(&vnc->host, vnc->has_password ? vnc->password : NULL, challenge, &c->session) == 0 &&
        fvm_loop_io_add(vnc->loop, client_fd, FVM_LOOP_IN, on_client, c, &c->io) == 0) {
        setsockopt(client_fd, IPPROTO_TCP, TCP_NODELAY, &(int){1}, sizeof(int));
        c->vnc = vnc;
        c->fd = client_fd;
        c->next = vnc->clients;
        vnc->clients = c;
        vnc->client_count++;
        flush(c);
        reap(vnc);
        return;
    }
    if (c)
        fvm_vnc_session_destroy(&c->session);
    free(c);
    close(client_fd);
}

/* ---- the server ---- */

static int read_password(struct fvm_vnc *vnc, const char *path, struct fvm_err *err)
{
    char line[256];
    FILE *f = fopen(path, "re");
    if (!f)
        return fvm_err_set(err, fvm_err_from_errno(errno), errno, room, "VNC password file %s: %s", path, strerror(errno));
    bool got = fgets(line, sizeof(line), f) != NULL;
    fclose(f);
    if (got)
        line[strcspn(line, "\r\n")] = 0;
    if (!got || !line[0] || strlen(line) > FVM_VNC_PASSWORD_MAX) {
        explicit_bzero(line, sizeof(line));
        return fvm_err_set(err, FVM_EINVAL, 0, room,
                           "VNC password file %s: its first line must be a password of 1 to %d characters", path,
                           FVM_VNC_PASSWORD_MAX);
    }
    strcpy(vnc->password, line);
    explicit_bzero(line, sizeof(line));
    vnc->has_password = true;
    return 0;
}

int fvm_vnc_create(struct fvm_loop *loop, const char *addr, const char *password_file, const struct fvm_vnc_host *host,
                   struct fvm_vnc **ret_vnc, struct fvm_err *err)
{
    struct fvm_vnc *vnc = calloc(1, sizeof(*vnc));
    if (!vnc)
        return fvm_err_set(err, FVM_ENOMEM, 0, room, "out of memory");
    vnc->loop = loop;
    vnc->host = *host;
    vnc->fd = -1;
    int r = password_file ? read_password(vnc, password_file, err) : 0;
    if (!r && !strncmp(addr, "unix:", 5)) {
        r = fvm_unix_listen(addr + 5, &vnc->fd, err);
        if (!r)
            snprintf(vnc->unix_path, sizeof(vnc->unix_path), "%s", addr + 5);
    } else if (!r) {
        r = fvm_listen_tcp("VNC", addr, vnc->has_password, &vnc->fd, err);
    }
    if (!r && (fvm_loop_timer_add(loop, on_tick, vnc, &vnc->timer) ||
               fvm_loop_io_add(loop, vnc->fd, FVM_LOOP_IN, on_accept, vnc, &vnc->io)))
        r = fvm_err_set(err, FVM_ENOMEM, 0, room, "out of memory");
    if (r)
        fvm_vnc_destroy(&vnc);
    else
        *ret_vnc = vnc;
    return r;
}

void fvm_vnc_destroy(struct fvm_vnc **vnc_p)
{
    struct fvm_vnc *vnc = *vnc_p;
    *vnc_p = NULL;
    if (!vnc)
        return;
    for (struct client *c = vnc->clients; c; c = c->next)
        c->dead = true;
    reap(vnc);
    fvm_loop_io_remove(&vnc->io);
    fvm_loop_timer_remove(&vnc->timer);
    if (vnc->fd >= 0)
        close(vnc->fd);
    if (vnc->unix_path[0])
        unlink(vnc->unix_path);
    explicit_bzero(vnc->password, sizeof(vnc->password));
    free(vnc);
}
