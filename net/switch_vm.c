/*
 * switch_vm.c - the switch's ports for VMs of this node: a unix SOCK_SEQPACKET socket, one packet per frame.
 *
 * The peer is an fvm process, which may be in a hostile guest's hands: lengths are checked, work per wake-up is bounded, a
 * peer that does not read loses its frames. Invariant: a port is closed only from its own event or by destroy.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/log.h"
#include "net/switch_internal.h"

#define FRAMES_PER_WAKE 64
#define VMS_MAX 512
#define BUFFER_BYTES (2 << 20)

struct vm_port {
    struct fvm_switch_port port;
    int fd;
    struct fvm_loop_io *io;
};

static bool vm_send(struct fvm_switch_port *port, const uint8_t *frame, size_t len)
{
    struct vm_port *vm = FVM_CONTAINER_OF(port, struct vm_port, port);
    return send(vm->fd, frame, len, MSG_DONTWAIT | MSG_NOSIGNAL) == (ssize_t)len;
}

void fvm_switch_vm_close(struct fvm_switch_port *port)
{
    struct vm_port *vm = FVM_CONTAINER_OF(port, struct vm_port, port);
    fvm_switch_port_remove(port);
    port->sw->stats.vms--;
    fvm_loop_io_remove(&vm->io);
    close(vm->fd);
    free(vm);
}

static void on_vm(void *ctx, int fd, unsigned revents)
{
    struct vm_port *vm = ctx;
    struct fvm_switch *sw = vm->port.sw;
    (void)revents;
    for (unsigned i = 0; i < FRAMES_PER_WAKE; i++) {
        ssize_t n = recv(fd, sw->frame, sizeof(sw->frame), MSG_DONTWAIT);
        if (n > 0) {
            fvm_switch_forward(&vm->port, sw->frame, (size_t)n);
            continue;
        }
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
            return;
        fvm_switch_vm_close(&vm->port); /* 0: the other end is gone (an empty packet makes no frame either) */
        return;
    }
}

static void on_connect(void *ctx, int fd, unsigned revents)
{
    struct fvm_switch *sw = ctx;
    int size = BUFFER_BYTES;
    (void)revents;
    int peer = accept4(fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (peer < 0)
        return;
    struct vm_port *vm = sw->stats.vms < VMS_MAX ? calloc(1, sizeof(*vm)) : NULL;
    if (!vm) {
        fvm_log(WARN, "net.switch.refused", "path=%s vms=%u", sw->path, sw->stats.vms);
        close(peer);
        return;
    }
    setsockopt(peer, SOL_SOCKET, SO_SNDBUF, &size, sizeof(size));
    vm->fd = peer;
    vm->port.kind = FVM_SWITCH_VM;
    vm->port.macs_max = 64;
    vm->port.send = vm_send;
    if (fvm_loop_io_add(sw->loop, peer, FVM_LOOP_IN, on_vm, vm, &vm->io) < 0) {
        close(peer);
        free(vm);
        return;
    }
    fvm_switch_port_add(sw, &vm->port);
    sw->stats.vms++;
}

/* A socket file that nobody answers at is a leftover of a daemon that died. */
static bool answers(const struct sockaddr_un *addr)
{
    int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return true;
    bool yes = connect(fd, (const struct sockaddr *)addr, sizeof(*addr)) == 0 || errno == EAGAIN;
    close(fd);
    return yes;
}

int fvm_switch_vm_listen(struct fvm_switch *sw, struct fvm_err *err)
{
    struct sockaddr_un addr = {.sun_family = AF_UNIX};
    struct stat st;
    if (strlen(sw->path) >= sizeof(addr.sun_path) || !sw->path[0])
        return fvm_err_set(err, FVM_EINVAL, 0, "net", "switch: socket path \"%s\" must have 1 to %zu bytes", sw->path,
                           sizeof(addr.sun_path) - 1);
    strcpy(addr.sun_path, sw->path);
    if (lstat(sw->path, &st) == 0) {
        if (!S_ISSOCK(st.st_mode))
            return fvm_err_set(err, FVM_EEXIST, 0, "net", "switch: %s exists and is no socket; give another path", sw->path);
        if (answers(&addr))
            return fvm_err_set(err, FVM_EBUSY, 0, "net", "switch: another one listens at %s; stop it or give another path", sw->path);
        unlink(sw->path);
    }
    int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return fvm_err_set(err, fvm_err_from_errno(errno), errno, "net", "switch: socket: %s", strerror(errno));
    if (bind(fd, (const struct sockaddr *)&addr, sizeof(addr)) < 0) {
        int cause = errno;
        close(fd);
        return fvm_err_set(err, fvm_err_from_errno(cause), cause, "net", "switch: cannot listen at %s: %s", sw->path, strerror(cause));
    }
    sw->listener = fd; /* from here on destroy removes the socket */
    int r = 0;
    if (chmod(sw->path, 0660) < 0 || listen(fd, 64) < 0)
        r = fvm_err_set(err, fvm_err_from_errno(errno), errno, "net", "switch: cannot listen at %s: %s", sw->path, strerror(errno));
    if (r == 0)
        r = fvm_loop_io_add(sw->loop, fd, FVM_LOOP_IN, on_connect, sw, &sw->listener_io);
    return r;
}
