/*
 * lock.c - one writer: the lock that this host's kernel (or a cluster file system) keeps, and the epoch kept with the volume.
 *
 * Open-file-description locks, because they belong to the open file (a POSIX lock is lost when any descriptor of the
 * process closes the file) and because QEMU uses them on the same files: ours covers the whole file, so both see each other.
 * The epoch is read, compared and raised only while the exclusive lock is held. The kernel does not tell who holds an OFD
 * lock, hence the search through /proc/<pid>/fdinfo, done for the message only.
 */
#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <unistd.h>

#include "base/log.h"
#include "storage/disk.h"

#define EPOCH_XATTR "user.fvm.epoch"
#define EPOCH_SUFFIX ".fvm-epoch"

/* Does this process have the file open with a lock on it? Reads /proc/<pid>/fd and fdinfo. */
static bool process_locks(const char *pid, const struct stat *st)
{
    char dirname[64];
    snprintf(dirname, sizeof(dirname), "/proc/%.16s/fd", pid);
    DIR *dir = opendir(dirname);
    if (!dir)
        return false;
    bool found = false;
    struct dirent *e;
    while (!found && (e = readdir(dir))) {
        char name[128], line[256];
        struct stat other;
        snprintf(name, sizeof(name), "%s/%.16s", dirname, e->d_name);
        if (!isdigit((unsigned char)e->d_name[0]) || stat(name, &other) < 0 || other.st_dev != st->st_dev ||
            other.st_ino != st->st_ino)
            continue;
        snprintf(name, sizeof(name), "/proc/%.16s/fdinfo/%.16s", pid, e->d_name);
        FILE *f = fopen(name, "re");
        while (f && !found && fgets(line, sizeof(line), f))
            found = !strncmp(line, "lock:", 5);
        if (f)
            fclose(f);
    }
    closedir(dir);
    return found;
}

static long find_holder(int fd)
{
    struct stat st;
    DIR *dir = opendir("/proc");
    long pid = 0;
    struct dirent *e;
    if (!dir || fstat(fd, &st) < 0) {
        if (dir)
            closedir(dir);
        return 0;
    }
    while (!pid && (e = readdir(dir)))
        if (isdigit((unsigned char)e->d_name[0]) && process_locks(e->d_name, &st))
            pid = strtol(e->d_name, NULL, 10);
    closedir(dir);
    return pid;
}

int fvm_lock_take(int fd, const char *path, bool shared, struct fvm_err *err)
{
    struct flock lock = {.l_type = shared ? F_RDLCK : F_WRLCK, .l_whence = SEEK_SET};
    if (fcntl(fd, F_OFD_SETLK, &lock) == 0)
        return 0;
    if (errno != EAGAIN && errno != EACCES)
        return fvm_err_set(err, fvm_err_from_errno(errno), errno, "storage", "disk %s: cannot lock: %s", path,
                           strerror(errno));
    long pid = find_holder(fd);
    if (pid)
        return fvm_err_set(err, FVM_EBUSY, EAGAIN, "storage",
                           "disk %s: in use by process %ld (locked); stop that one or give another disk", path, pid);
    return fvm_err_set(err, FVM_EBUSY, EAGAIN, "storage",
                       "disk %s: locked by another process, maybe on another host; stop that one or give another disk",
                       path);
}

void fvm_lock_release(int fd)
{
    struct flock lock = {.l_type = F_UNLCK, .l_whence = SEEK_SET};
    fcntl(fd, F_OFD_SETLK, &lock);
}

static int sidecar_name(const char *path, char **ret_name)
{
    return asprintf(ret_name, "%s" EPOCH_SUFFIX, path) < 0 ? FVM_ENOMEM : 0;
}

/* Decimal text, nothing else. */
static int parse_epoch(const char *text, size_t len, uint64_t *ret_epoch)
{
    uint64_t value = 0;
    while (len && text[len - 1] == '\n')
        len--;
    if (len == 0 || len > 20)
        return FVM_EBADIMAGE;
    for (size_t i = 0; i < len; i++) {
        if (!isdigit((unsigned char)text[i]) || __builtin_mul_overflow(value, 10u, &value) ||
            __builtin_add_overflow(value, (uint64_t)(text[i] - '0'), &value))
            return FVM_EBADIMAGE;
    }
    *ret_epoch = value;
    return 0;
}

/* The larger of attribute and sidecar; 0 if there is neither. */
static int epoch_read(int fd, const char *sidecar, uint64_t *ret_epoch)
{
    char text[32];
    uint64_t from_attr = 0, from_file = 0;
    ssize_t n = fgetxattr(fd, EPOCH_XATTR, text, sizeof(text));
    if (n > 0 && parse_epoch(text, (size_t)n, &from_attr) < 0)
        return FVM_EBADIMAGE;
    if (n < 0 && errno == EIO)
        return FVM_EIO;
    int side = open(sidecar, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    if (side < 0 && errno != ENOENT)
        return fvm_err_from_errno(errno);
    if (side >= 0) {
        n = read(side, text, sizeof(text));
        int r = n > 0 ? parse_epoch(text, (size_t)n, &from_file) : FVM_EBADIMAGE;
        close(side);
        if (r < 0)
            return r;
    }
    *ret_epoch = FVM_MAX(from_attr, from_file);
    return 0;
}

static int sync_directory_of(const char *path)
{
    char *dir = strdup(path);
    if (!dir)
        return FVM_ENOMEM;
    char *slash = strrchr(dir, '/');
    if (slash)
        slash[slash == dir] = 0;
    int fd = open(slash ? dir : ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    free(dir);
    if (fd < 0)
        return fvm_err_from_errno(errno);
    int r = fsync(fd) < 0 ? fvm_err_from_errno(errno) : 0;
    close(fd);
    return r;
}

/* Written beside and renamed, so that a crash leaves the old number or the new one. */
static int sidecar_write(const char *sidecar, const char *text, size_t len)
{
    char *temp;
    if (asprintf(&temp, "%s.new", sidecar) < 0)
        return FVM_ENOMEM;
    int r = 0;
    int fd = open(temp, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0644);
    if (fd < 0) {
        r = fvm_err_from_errno(errno);
        free(temp);
        return r;
    }
    if (write(fd, text, len) != (ssize_t)len || fsync(fd) < 0)
        r = errno ? fvm_err_from_errno(errno) : FVM_EIO;
    close(fd);
    if (r == 0 && rename(temp, sidecar) < 0)
        r = fvm_err_from_errno(errno);
    if (r < 0)
        unlink(temp);
    free(temp);
    return r < 0 ? r : sync_directory_of(sidecar);
}

int fvm_epoch_claim(const struct fvm_disk *disk, uint64_t epoch, struct fvm_err *err)
{
    if (epoch == 0)
        return 0;
    const char *path = disk->path;
    int fd = disk->fd;
    char *sidecar, text[32];
    uint64_t seen = 0;
    int r = sidecar_name(path, &sidecar);
    if (r < 0)
        return fvm_err_set(err, r, 0, "storage", "out of memory");
    r = epoch_read(fd, sidecar, &seen);
    if (r < 0) {
        fvm_err_set(err, r, 0, "storage", "disk %s: its storage epoch (%s or %s) cannot be read: %s", path, EPOCH_XATTR,
                    sidecar, fvm_err_text(r));
    } else if (epoch < seen) {
        r = fvm_err_set(err, FVM_ECONFLICT, 0, "storage",
                        "disk %s: a newer owner (epoch %llu) has written to it, this one has epoch %llu; it must not write",
                        path, (unsigned long long)seen, (unsigned long long)epoch);
    } else if (epoch > seen) {
        int n = snprintf(text, sizeof(text), "%llu\n", (unsigned long long)epoch);
        if (fsetxattr(fd, EPOCH_XATTR, text, (size_t)n, 0) == 0 && fsync(fd) == 0)
            r = 0;
        else
            r = sidecar_write(sidecar, text, (size_t)n);
        if (r < 0 && disk->block_device) { /* nowhere to keep it; O_EXCL keeps other writers of this host away all the same */
            fvm_log(WARN, "storage.epoch_not_kept", "path=%s epoch=%llu", path, (unsigned long long)epoch);
            r = 0;
        }
        if (r < 0)
            fvm_err_set(err, r, errno, "storage", "disk %s: cannot record storage epoch %llu (attribute %s, file %s): %s",
                        path, (unsigned long long)epoch, EPOCH_XATTR, sidecar, fvm_err_text(r));
    }
    free(sidecar);
    return r;
}
