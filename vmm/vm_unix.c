/*
 * vm_unix.c - UNIX sockets by name. See vm_unix.h. The peer on our sockets is this user or root by file mode alone.
 */
#include "vmm/vm_unix.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

static const char room[] = "socket";

static int fail(struct fvm_err *err, const char *what, const char *path)
{
    int e = errno;
    return fvm_err_set(err, fvm_err_from_errno(e), e, room, "%s %s: %s", what, path, strerror(e));
}

static int make_address(const char *path, struct sockaddr_un *ret, struct fvm_err *err)
{
    size_t n = strlen(path);
    if (n == 0 || n >= sizeof(ret->sun_path))
        return fvm_err_set(err, FVM_EINVAL, 0, room, "socket name of %zu characters: 1 to %zu are possible", n,
                           sizeof(ret->sun_path) - 1);
    memset(ret, 0, sizeof(*ret));
    ret->sun_family = AF_UNIX;
    memcpy(ret->sun_path, path, n + 1);
    return 0;
}

int fvm_unix_connect(const char *path, int *ret_fd, struct fvm_err *err)
{
    struct sockaddr_un addr;
    int r = make_address(path, &addr, err);
    if (r)
        return r;
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return fail(err, "socket", path);
    if (connect(fd, (struct sockaddr *)&addr, sizeof(addr)) < 0) {
        if (errno == ECONNREFUSED || errno == ENOENT)
            r = fvm_err_set(err, FVM_ENOENT, errno, room, "nobody listens at %s: is that VM running?", path);
        else
            r = fail(err, "connect to", path);
        close(fd);
        return r;
    }
    *ret_fd = fd;
    return 0;
}

/* What is at `path` already? 0: nothing (any more). */
static int make_way(const char *path, struct fvm_err *err)
{
    struct stat st;
    if (lstat(path, &st) < 0)
        return errno == ENOENT ? 0 : fail(err, "socket", path);
    if (!S_ISSOCK(st.st_mode))
        return fvm_err_set(err, FVM_EEXIST, 0, room, "%s exists and is not a socket; choose another name", path);
    int fd, r = fvm_unix_connect(path, &fd, err);
    if (r == 0) {
        close(fd);
        return fvm_err_set(err, FVM_EBUSY, 0, room, "%s is in use by a running process", path);
    }
    if (r != FVM_ENOENT)
        return r;
    return unlink(path) == 0 || errno == ENOENT ? 0 : fail(err, "old socket", path);
}

int fvm_unix_listen(const char *path, int *ret_fd, struct fvm_err *err)
{
    struct sockaddr_un addr;
    int r = make_address(path, &addr, err);
    if (!r)
        r = make_way(path, err);
    if (r)
        return r;
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return fail(err, "socket", path);
    mode_t old = umask(0177);
    int bound = bind(fd, (struct sockaddr *)&addr, sizeof(addr));
    int e = errno;
    umask(old);
    errno = e;
    if (bound < 0 || listen(fd, 8) < 0) {
        r = fail(err, "listen at", path);
        if (bound == 0)
            unlink(path);
        close(fd);
        return r;
    }
    *ret_fd = fd;
    return 0;
}
