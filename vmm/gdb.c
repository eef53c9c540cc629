/*
 * gdb.c - the gdb stub's sockets: one debugger at a time, its bytes to and from the session (gdb_session.c).
 *
 * Invariant: a session lives exactly as long as its connection.
 */
#include "vmm/gdb.h"

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/log.h"
#include "vmm/vm_listen.h"
#include "vmm/vm_unix.h"

struct fvm_gdb { /* loop's thread */
    struct fvm_loop *loop;
    struct fvm_gdb_target target;
    int fd, client_fd;
    struct fvm_loop_io *io, *client_io;
    struct fvm_gdb_session *session; /* NULL: nobody is connected */
    bool ending;
    char unix_path[FVM_UNIX_PATH_MAX];
};

static void hang_up(struct fvm_gdb *g)
{
    if (!g->session)
        return;
    fvm_loop_io_remove(&g->client_io);
    close(g->client_fd);
    g->ending = false;
    fvm_gdb_session_destroy(&g->session);
}

/* Send what goes. False: the connection is over. */
static bool flush(struct fvm_gdb *g)
{
    size_t len;
    const uint8_t *bytes = fvm_gdb_session_output(g->session, &len);
    while (len) {
        ssize_t n = send(g->client_fd, bytes, len, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0 && errno == EAGAIN)
            break;
        if (n < 0)
            return false;
        fvm_gdb_session_sent(g->session, (size_t)n);
        bytes = fvm_gdb_session_output(g->session, &len);
    }
    if (g->ending && !len)
        return false;
    return fvm_loop_io_set(g->client_io, (g->ending ? 0u : (unsigned)FVM_LOOP_IN) | (len ? (unsigned)FVM_LOOP_OUT : 0u)) == 0;
}

static void on_client(void *ctx, int fd, unsigned revents)
{
    struct fvm_gdb *g = ctx;
    uint8_t bytes[4096];
    bool alive = true;
    if (!g->ending && (revents & ~(unsigned)FVM_LOOP_OUT)) {
        ssize_t n = recv(fd, bytes, sizeof(bytes), MSG_DONTWAIT);
        if (n > 0)
            g->ending = fvm_gdb_session_input(g->session, bytes, (size_t)n) != 0;
        else
            alive = n < 0 && (errno == EAGAIN || errno == EINTR);
    } else if (revents & (FVM_LOOP_HUP | FVM_LOOP_ERR)) {
        alive = false;
    }
    if (!alive || !flush(g))
        hang_up(g);
}

static void on_accept(void *ctx, int fd, unsigned revents)
{
    struct fvm_gdb *g = ctx;
    (void)revents;
    int client = accept4(fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (client < 0)
        return;
    if (g->session || fvm_gdb_session_create(&g->target, &g->session)) {
        close(client);
        return;
    }
    g->client_fd = client;
    setsockopt(client, IPPROTO_TCP, TCP_NODELAY, &(int){1}, sizeof(int));
    if (fvm_loop_io_add(g->loop, client, FVM_LOOP_IN, on_client, g, &g->client_io)) {
        close(client);
        fvm_gdb_session_destroy(&g->session);
    }
}

void fvm_gdb_stopped(struct fvm_gdb *g)
{
    if (!g->session)
        return;
    fvm_gdb_session_stopped(g->session);
    if (!flush(g))
        hang_up(g);
}

void fvm_gdb_exited(struct fvm_gdb *g, unsigned status, unsigned signal)
{
    if (!g->session)
        return;
    fvm_gdb_session_exited(g->session, status, signal);
    g->ending = true;
    (void)flush(g); /* the process ends soon; what does not go now, goes not */
}

int fvm_gdb_create(struct fvm_loop *loop, const char *addr, const struct fvm_gdb_target *target, struct fvm_gdb **ret_gdb,
                   struct fvm_err *err)
{
    struct fvm_gdb *g = calloc(1, sizeof(*g));
    if (!g)
        return fvm_err_set(err, FVM_ENOMEM, 0, "gdb", "out of memory");
    g->loop = loop;
    g->target = *target;
    g->fd = -1;
    int r;
    if (!strncmp(addr, "unix:", 5)) {
        r = fvm_unix_listen(addr + 5, &g->fd, err);
        if (!r)
            snprintf(g->unix_path, sizeof(g->unix_path), "%s", addr + 5);
    } else {
        r = fvm_listen_tcp("gdb", strncmp(addr, "tcp:", 4) ? addr : addr + 4, false, &g->fd, err);
    }
    if (!r && fvm_loop_io_add(loop, g->fd, FVM_LOOP_IN, on_accept, g, &g->io))
        r = fvm_err_set(err, FVM_ENOMEM, 0, "gdb", "out of memory");
    if (r)
        fvm_gdb_destroy(&g);
    else
        *ret_gdb = g;
    return r;
}

void fvm_gdb_destroy(struct fvm_gdb **gdb_p)
{
    struct fvm_gdb *g = *gdb_p;
    *gdb_p = NULL;
    if (!g)
        return;
    hang_up(g);
    fvm_loop_io_remove(&g->io);
    if (g->fd >= 0)
        close(g->fd);
    if (g->unix_path[0])
        unlink(g->unix_path);
    free(g);
}
