/*
 * disk.c - the front door: open with all safety checks, requests checked and handed to the workers, (de)activation.
 *
 * Invariant: no byte of the volume changes unless `active` and not readonly, and active implies that the lock is held.
 * A request that may not run is completed with an error like any other, later, never from inside the call.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/log.h"
#include "storage/disk.h"

static int measure(struct fvm_disk *disk, struct fvm_err *err)
{
    struct stat st;
    if (fstat(disk->fd, &st) < 0)
        return fvm_err_set(err, fvm_err_from_errno(errno), errno, "storage", "disk %s: %s", disk->path, strerror(errno));
    disk->block_device = S_ISBLK(st.st_mode);
    disk->file_bytes = (uint64_t)st.st_size;
    if (disk->block_device && ioctl(disk->fd, BLKGETSIZE64, &disk->file_bytes) < 0)
        return fvm_err_set(err, fvm_err_from_errno(errno), errno, "storage", "disk %s: its size is not known: %s",
                           disk->path, strerror(errno));
    disk->bytes = FVM_ALIGN_UP(disk->file_bytes, (uint64_t)FVM_DISK_SECTOR);
    if (disk->bytes == 0)
        return fvm_err_set(err, FVM_EBADIMAGE, 0, "storage", "disk %s: empty; give it a size (truncate -s 10G)",
                           disk->path);
    return 0;
}

static int check_content(struct fvm_disk *disk, const struct fvm_disk_options *opt, struct fvm_err *err)
{
    struct fvm_probe probe;
    int r = fvm_probe_fd(disk->fd, disk->path, &probe, err);
    if (r < 0)
        return r;
    if (probe.mounted && !disk->readonly)
        return fvm_err_set(err, FVM_EBUSY, 0, "storage",
                           "disk %s: %s %s, mounted or otherwise in use on this host; unmount it or open it readonly",
                           disk->path, probe.kind, probe.type);
    if (!opt->format && !strcmp(probe.kind, "image"))
        return fvm_err_set(err, FVM_EUNSUPPORTED, 0, "storage",
                           "disk %s: a %s image; convert it (qemu-img convert -O raw), or say format=raw to use its bytes",
                           disk->path, probe.type);
    fvm_log(INFO, "storage.open", "path=%s bytes=%llu kind=%s type=%s uuid=%s readonly=%d active=%d", disk->path,
            (unsigned long long)disk->bytes, probe.kind, probe.type, probe.uuid, disk->readonly, !opt->inactive);
    return 0;
}

/* O_EXCL on a block device: the kernel's own claim against mounts, md, device mapper. */
static int open_fd(const char *path, bool readonly, bool exclusive, struct fvm_err *err)
{
    struct stat st;
    if (stat(path, &st) < 0)
        return fvm_err_set(err, fvm_err_from_errno(errno), errno, "storage", "disk %s: %s", path, strerror(errno));
    if (!S_ISREG(st.st_mode) && !S_ISBLK(st.st_mode))
        return fvm_err_set(err, FVM_EINVAL, 0, "storage", "disk %s: neither a file nor a block device", path);
    int flags = (readonly ? O_RDONLY : O_RDWR) | O_CLOEXEC;
    if (exclusive && !readonly && S_ISBLK(st.st_mode))
        flags |= O_EXCL;
    int fd = open(path, flags);
    if (fd >= 0)
        return fd;
    if (errno == EBUSY)
        return fvm_err_set(err, FVM_EBUSY, errno, "storage",
                           "disk %s: mounted or claimed by the kernel on this host; unmount it or give another disk", path);
    return fvm_err_set(err, fvm_err_from_errno(errno), errno, "storage", "disk %s: %s%s", path, strerror(errno),
                       !readonly && (errno == EACCES || errno == EROFS) ? "; open it readonly or change its rights" : "");
}

int fvm_disk_open(struct fvm_loop *loop, const struct fvm_disk_options *opt, struct fvm_disk **ret_disk,
                  struct fvm_err *err)
{
    if (!opt->path || !opt->path[0])
        return fvm_err_set(err, FVM_EINVAL, 0, "storage", "disk: no path given");
    if (opt->format && opt->format[0] && strcmp(opt->format, "raw"))
        return fvm_err_set(err, FVM_EUNSUPPORTED, 0, "storage", "disk %s: format %s is not supported; use raw", opt->path,
                           opt->format);
    struct fvm_disk_options checked = *opt;
    if (checked.format && !checked.format[0])
        checked.format = NULL;
    int fd = open_fd(opt->path, opt->readonly, !opt->inactive, err);
    if (fd < 0)
        return fd;
    struct fvm_disk *disk = calloc(1, sizeof(*disk));
    char *path = strdup(opt->path);
    if (!disk || !path) {
        free(disk);
        free(path);
        close(fd);
        return fvm_err_set(err, FVM_ENOMEM, 0, "storage", "disk %s: out of memory", opt->path);
    }
    *disk = (struct fvm_disk){.loop = loop, .fd = fd, .path = path, .readonly = opt->readonly, .stale = opt->inactive, .event = -1};
    int r = measure(disk, err);
    if (r == 0)
        r = check_content(disk, &checked, err);
    if (r == 0)
        r = fvm_raw_start(disk, err);
    else
        goto fail;
    if (r == 0 && !opt->inactive)
        r = fvm_disk_activate(disk, opt->epoch, err);
    if (r < 0) {
        fvm_raw_stop(disk);
        goto fail;
    }
    *ret_disk = disk;
    return 0;
fail:
    close(disk->fd);
    free(disk->path);
    free(disk);
    return r;
}

void fvm_disk_close(struct fvm_disk **disk_p)
{
    struct fvm_disk *disk = *disk_p;
    if (!disk)
        return;
    *disk_p = NULL;
    fvm_disk_drain(disk);
    if (disk->active)
        fvm_disk_deactivate(disk);
    fvm_raw_stop(disk);
    close(disk->fd);
    free(disk->path);
    free(disk);
}

uint64_t fvm_disk_bytes(const struct fvm_disk *disk)
{
    return disk->bytes;
}

bool fvm_disk_readonly(const struct fvm_disk *disk)
{
    return disk->readonly;
}

bool fvm_disk_active(const struct fvm_disk *disk)
{
    return disk->active;
}

/* Swap the descriptor for one that holds (or no longer holds) the kernel's exclusive claim. Nothing in flight. */
static int reopen(struct fvm_disk *disk, bool exclusive, struct fvm_err *err)
{
    if (!disk->block_device)
        return 0;
    int fd = open_fd(disk->path, disk->readonly, exclusive, err);
    if (fd < 0)
        return fd;
    struct stat a, b;
    if (fstat(fd, &a) < 0 || fstat(disk->fd, &b) < 0 || a.st_rdev != b.st_rdev) {
        close(fd);
        return fvm_err_set(err, FVM_ESTATE, 0, "storage", "disk %s: names another device now than when it was opened",
                           disk->path);
    }
    close(disk->fd);
    disk->fd = fd;
    return 0;
}

int fvm_disk_activate(struct fvm_disk *disk, uint64_t epoch, struct fvm_err *err)
{
    bool was_active = disk->active;
    if (!was_active) {
        fvm_disk_drain(disk);
        int r = reopen(disk, true, err);
        if (r < 0)
            return r;
        r = fvm_lock_take(disk->fd, disk->path, disk->readonly, err);
        if (r < 0)
            return r;
    }
    int r = disk->readonly ? 0 : fvm_epoch_claim(disk, epoch, err);
    if (r < 0) {
        if (!was_active)
            fvm_lock_release(disk->fd);
        return r;
    }
    if (!was_active) { /* the former owner may have grown the file, or have cut it */
        uint64_t before = disk->bytes;
        r = measure(disk, err);
        if (r == 0 && disk->bytes < before)
            r = fvm_err_set(err, FVM_EBADIMAGE, 0, "storage", "disk %s: shrunk from %llu to %llu bytes since it was opened",
                            disk->path, (unsigned long long)before, (unsigned long long)disk->bytes);
        disk->bytes = before;
        if (r < 0) {
            fvm_lock_release(disk->fd);
            return r;
        }
    }
    if (disk->stale) /* another host may have written: what this one has read before counts for nothing */
        posix_fadvise(disk->fd, 0, 0, POSIX_FADV_DONTNEED);
    disk->stale = false;
    disk->active = true;
    return 0;
}

int fvm_disk_deactivate(struct fvm_disk *disk)
{
    if (!disk->active)
        return 0;
    fvm_disk_drain(disk);
    int r = disk->readonly ? 0 : fvm_raw_sync(disk);
    disk->active = false;
    disk->stale = true;
    fvm_lock_release(disk->fd);
    int reopened = reopen(disk, false, NULL);
    if (r < 0)
        fvm_log(ERROR, "storage.flush_failed", "path=%s err=%s", disk->path, fvm_err_name(r));
    return r < 0 ? r : reopened;
}

static void submit(struct fvm_disk *disk, enum fvm_disk_op op, uint64_t offset, uint64_t len, const struct iovec *iov,
                   int iov_count, fvm_disk_done done, void *ctx)
{
    struct fvm_disk_job *job = malloc(sizeof(*job));
    fvm_assert(job);
    *job = (struct fvm_disk_job){.op = op, .offset = offset, .len = len, .iov = iov, .iov_count = iov_count, .done = done,
                                 .ctx = ctx};
    bool mutates = op == FVM_DISK_WRITE || op == FVM_DISK_DISCARD || op == FVM_DISK_ZERO;
    if (mutates && disk->readonly)
        job->status = FVM_EPERM;
    else if (mutates && !disk->active)
        job->status = FVM_ESTATE;
    else if (offset % FVM_DISK_SECTOR || len % FVM_DISK_SECTOR || offset > disk->bytes || len > disk->bytes - offset)
        job->status = FVM_EINVAL;
    fvm_raw_submit(disk, job);
}

static uint64_t iov_bytes(const struct iovec *iov, int count)
{
    uint64_t sum = 0;
    for (int i = 0; i < count; i++)
        if (__builtin_add_overflow(sum, iov[i].iov_len, &sum))
            return UINT64_MAX;
    return sum;
}

void fvm_disk_readv(struct fvm_disk *disk, uint64_t offset, const struct iovec *iov, int iov_count, fvm_disk_done done,
                    void *ctx)
{
    submit(disk, FVM_DISK_READ, offset, iov_bytes(iov, iov_count), iov, iov_count, done, ctx);
}

void fvm_disk_writev(struct fvm_disk *disk, uint64_t offset, const struct iovec *iov, int iov_count, fvm_disk_done done,
                     void *ctx)
{
    submit(disk, FVM_DISK_WRITE, offset, iov_bytes(iov, iov_count), iov, iov_count, done, ctx);
}

void fvm_disk_flush(struct fvm_disk *disk, fvm_disk_done done, void *ctx)
{
    submit(disk, FVM_DISK_FLUSH, 0, 0, NULL, 0, done, ctx);
}

void fvm_disk_discard(struct fvm_disk *disk, uint64_t offset, uint64_t len, bool zero, fvm_disk_done done, void *ctx)
{
    submit(disk, zero ? FVM_DISK_ZERO : FVM_DISK_DISCARD, offset, len, NULL, 0, done, ctx);
}
