/*
 * storage.h - the front door to a VM's disks: open, read, write, flush; formats and safety behind it.
 *
 * Opening probes the volume (libblkid) and takes a lock (OFD lock on files, O_EXCL on block devices), so a mounted file system or a
 * disk in use elsewhere is refused with a clear error. A disk opened with `inactive` (migration destination) takes no lock and
 * refuses writes until fvm_disk_activate. Requests are asynchronous: done(ctx, status) runs on the loop's thread (under its guard).
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
};

typedef void (*fvm_disk_done)(void *ctx, int status); /* 0 or negative FVM_E* */

int fvm_disk_open(struct fvm_loop *loop, const struct fvm_disk_options *opt, struct fvm_disk **ret_disk, struct fvm_err *err);
void fvm_disk_close(struct fvm_disk **disk_p); /* drains first */
uint64_t fvm_disk_bytes(const struct fvm_disk *disk);
bool fvm_disk_readonly(const struct fvm_disk *disk);
/** iov is borrowed until done; offsets and lengths multiples of 512. Done is always called exactly once, never from inside the call. */
void fvm_disk_readv(struct fvm_disk *disk, uint64_t offset, const struct iovec *iov, int iov_count, fvm_disk_done done, void *ctx);
void fvm_disk_writev(struct fvm_disk *disk, uint64_t offset, const struct iovec *iov, int iov_count, fvm_disk_done done, void *ctx);
/** Everything completed before is on stable storage when done says 0. */
void fvm_disk_flush(struct fvm_disk *disk, fvm_disk_done done, void *ctx);
void fvm_disk_discard(struct fvm_disk *disk, uint64_t offset, uint64_t len, bool zero, fvm_disk_done done, void *ctx);
/** Wait until no request is in flight (loop's thread; turns an inner wait, callbacks run). */
void fvm_disk_drain(struct fvm_disk *disk);
/** Take the lock and allow writes; epoch older than one seen before on this volume is refused (FVM_ECONFLICT). */
int fvm_disk_activate(struct fvm_disk *disk, uint64_t epoch, struct fvm_err *err);
int fvm_disk_deactivate(struct fvm_disk *disk); /* flush, release lock, refuse writes */

/* ---- probe.c ---- */
struct fvm_probe { char kind[24]; char type[32]; char uuid[48]; char label[64]; bool mounted; }; /* kind: "empty" is never claimed; "unknown" */
int fvm_disk_probe(const char *path, struct fvm_probe *ret, struct fvm_err *err);

#endif
