/*
 * dir_file.c - files of the cluster's and the nodes' state: read within a limit, written whole or not at all.
 *
 * Invariant: whoever reads a file written here sees one complete version of it, also after a power cut.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cluster/dir.h"

static int fail(const char *path, const char *what, int sys, struct fvm_err *err)
{
    return fvm_err_set(err, fvm_err_from_errno(sys), sys, "cluster", "%s: %s: %s", path, what, strerror(sys));
}

int fvm_dir_make(const char *path, unsigned mode, struct fvm_err *err)
{
    char part[4096];
    if (snprintf(part, sizeof(part), "%s", path) >= (int)sizeof(part))
        return fvm_err_set(err, FVM_EINVAL, 0, "cluster", "directory name too long: %.80s...", path);
    for (char *p = part + 1;; p++) {
        if (*p != '/' && *p)
            continue;
        char end = *p;
        *p = 0;
        if (mkdir(part, mode) && errno != EEXIST)
            return fail(part, "cannot make the directory", errno, err);
        *p = end;
        if (!end)
            break;
    }
    struct stat st;
    if (stat(path, &st))
        return fail(path, "cannot look at it", errno, err);
    if (!S_ISDIR(st.st_mode))
        return fvm_err_set(err, FVM_EEXIST, 0, "cluster", "%s: exists and is not a directory", path);
    if (access(path, W_OK | X_OK))
        return fail(path, "state directory not writable, choose another with --dir or fix its rights", errno, err);
    return 0;
}

static int write_all(int fd, const char *data, size_t len)
{
    while (len) {
        ssize_t n = write(fd, data, len);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return -1;
        data += n;
        len -= (size_t)n;
    }
    return fsync(fd);
}

static void sync_parent(const char *path)
{
    char dir[4096];
    snprintf(dir, sizeof(dir), "%s", path);
    char *slash = strrchr(dir, '/');
    if (slash)
        slash[slash == dir ? 1 : 0] = 0;
    int fd = open(slash ? dir : ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd >= 0) {
        (void)fsync(fd);
        close(fd);
    }
}

int fvm_dir_write_file(const char *path, const void *data, size_t len, unsigned mode, struct fvm_err *err)
{
    char tmp[4200];
    if (snprintf(tmp, sizeof(tmp), "%s.%d.new", path, (int)getpid()) >= (int)sizeof(tmp))
        return fvm_err_set(err, FVM_EINVAL, 0, "cluster", "file name too long: %.80s...", path);
    int fd = open(tmp, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, mode);
    if (fd < 0)
        return fail(path, "cannot write", errno, err);
    int sys = write_all(fd, data, len) ? errno : 0;
    if (close(fd) && !sys)
        sys = errno;
    if (!sys && rename(tmp, path))
        sys = errno;
    if (sys) {
        unlink(tmp);
        return fail(path, "cannot write", sys, err);
    }
    sync_parent(path);
    return 0;
}

int fvm_dir_read_file(const char *path, size_t max, char **ret_data, size_t *ret_len, struct fvm_err *err)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY);
    if (fd < 0)
        return fail(path, "cannot read", errno, err);
    char *data = malloc(max + 2);
    size_t len = 0;
    ssize_t n = data ? 1 : -1;
    while (data && n > 0 && len <= max) {
        n = read(fd, data + len, max + 1 - len);
        if (n < 0 && errno == EINTR)
            n = 1;
        else if (n > 0)
            len += (size_t)n;
    }
    int sys = errno;
    close(fd);
    if (!data)
        return fvm_err_set(err, FVM_ENOMEM, 0, "cluster", "%s: out of memory", path);
    if (n < 0 || len > max) {
        free(data);
        return n < 0 ? fail(path, "cannot read", sys, err)
                     : fvm_err_set(err, FVM_EBADIMAGE, 0, "cluster", "%s: larger than %zu bytes, not a file of fvm",
                                   path, max);
    }
    data[len] = 0;
    *ret_data = data;
    if (ret_len)
        *ret_len = len;
    return 0;
}
