/*
 * storage.h - the front door to a VM's disks: open, read, write, flush; formats and safety behind it.
 *
 * Opening probes the volume (libblkid) and takes a lock (OFD lock on the whole file, O_EXCL as well on block devices), so
 * a mounted file system or a disk in use elsewhere (another fvm, QEMU) is refused with a clear error. A disk opened
 * `inactive` (migration destination) takes no lock and refuses writes until fvm_disk_activate. Requests are asynchronous:
 * done(ctx, status) runs on the loop's thread (under its guard).
 *
 * Storage epoch: the number of the last writer that a cluster let in. It lives with the volume: in the extended attribute
 * user.fvm.epoch of the file or, where that cannot be written, in a sidecar file `<path>.fvm-epoch`; the larger of the
 * two counts. It is compared and raised while the lock is held. A block device has no attribute and its sidecar (in
 * /dev) is this host's alone: there the epoch guards against writers of the same host only, and where not even the
 * sidecar can be written a warning is logged.
 *
 * Threads: all functions on the loop's thread or with its guard held; fvm_disk_open and _close on the loop's thread.
 */
#ifndef FVM_STORAGE_STORAGE_H
#define FVM_STORAGE_STORAGE_H

#include <sys/uio.h>

#include "base/err.h"
#include "base/loop.h"

struct fvm_disk;

struct fvm_disk_options {
    const char *path;
    const char *format; /* NULL or "raw" */
    bool readonly;
    bool inactive;
    uint64_t epoch; /* of this writer, as in fvm_disk_activate; 0: not in a cluster, nothing compared */
};

typedef void (*fvm_disk_done)(void *ctx, int status); /* 0 or negative FVM_E* */

/**
 * fvm_disk_open - FVM_EBUSY: mounted, or locked by another process (its pid is in the text when known). FVM_ECONFLICT: older
 * epoch. FVM_EUNSUPPORTED: no format given and the file is a qcow2, vmdk, vdi or vhdx image (format "raw" insists).
 */
int fvm_disk_open(struct fvm_loop *loop, const struct fvm_disk_options *opt, struct fvm_disk **ret_disk, struct fvm_err *err);
void fvm_disk_close(struct fvm_disk **disk_p); /* drains first */
uint64_t fvm_disk_bytes(const struct fvm_disk *disk);
bool fvm_disk_readonly(const struct fvm_disk *disk);
/** Is the lock held and writing allowed? */
bool fvm_disk_active(const struct fvm_disk *disk);
/** iov is borrowed until done; offsets and lengths multiples of 512. Done is always called exactly once, never from inside the call. */
void fvm_disk_readv(struct fvm_disk *disk, uint64_t offset, const struct iovec *iov, int iov_count, fvm_disk_done done, void *ctx);
void fvm_disk_writev(struct fvm_disk *disk, uint64_t offset, const struct iovec *iov, int iov_count, fvm_disk_done done, void *ctx);
/**
 * Everything completed before is on stable storage when done says 0. After a failed flush every later one fails as well:
 * the kernel reports lost pages only once, so a second "ok" would be a lie.
 */
void fvm_disk_flush(struct fvm_disk *disk, fvm_disk_done done, void *ctx);
/** zero: the range reads as zeros afterwards. Not zero: a hint, never fails for want of support. */
void fvm_disk_discard(struct fvm_disk *disk, uint64_t offset, uint64_t len, bool zero, fvm_disk_done done, void *ctx);
/** Wait until no request is in flight; callbacks run inside (the guard is held by the caller, the loop is not turned). */
void fvm_disk_drain(struct fvm_disk *disk);
/** Take the lock and allow writes; an epoch older than the volume's is refused (FVM_ECONFLICT). Active already: epoch only. */
int fvm_disk_activate(struct fvm_disk *disk, uint64_t epoch, struct fvm_err *err);
int fvm_disk_deactivate(struct fvm_disk *disk); /* drain, flush, release lock, refuse writes */

/* ---- probe.c ---- */
struct fvm_probe {
    char kind[24]; /* "filesystem" "raid" "crypto" "partitions" "image" "unknown"; "empty" is never claimed */
    char type[32]; /* "ext4", "gpt", "qcow2"; "" */
    char uuid[48];
    char label[64];
    bool mounted;  /* mounted, swapped on or behind a loop device on this host */
};
/** fvm_disk_probe - say what a file or block device holds. Reads only. */
int fvm_disk_probe(const char *path, struct fvm_probe *ret, struct fvm_err *err);

#endif
