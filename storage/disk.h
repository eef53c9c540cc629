/*
 * disk.h - storage's own: what disk.c (front door), raw.c (workers) and lock.c share. Nobody else includes it.
 */
#ifndef FVM_STORAGE_DISK_H
#define FVM_STORAGE_DISK_H

#include <pthread.h>

#include "storage/storage.h"

#define FVM_DISK_WORKERS 4
#define FVM_DISK_SECTOR 512

enum fvm_disk_op { FVM_DISK_READ, FVM_DISK_WRITE, FVM_DISK_FLUSH, FVM_DISK_DISCARD, FVM_DISK_ZERO };

struct fvm_disk_job {
    struct fvm_disk_job *next;
    enum fvm_disk_op op;
    uint64_t offset;
    uint64_t len;
    const struct iovec *iov;
    int iov_count;
    int status;
    fvm_disk_done done;
    void *ctx;
};

struct fvm_disk_list { /* singly linked queue */
    struct fvm_disk_job *head;
    struct fvm_disk_job **tail;
};

struct fvm_disk { /* guard's, but for the part that `mutex` keeps */
    struct fvm_loop *loop;
    struct fvm_loop_io *io; /* watches `event` */
    int event;              /* eventfd: the done list has something */
    int fd;
    char *path;
    uint64_t bytes;      /* a multiple of 512 */
    uint64_t file_bytes; /* as found; the last sector may be partly behind the end of a file */
    bool block_device;
    bool readonly;
    bool active;
    bool stale; /* was inactive: the page cache may hold what another host has overwritten since */

    pthread_t workers[FVM_DISK_WORKERS];
    unsigned worker_count;
    pthread_mutex_t mutex; /* keeps all below */
    pthread_cond_t work;   /* workers wait */
    pthread_cond_t idle;   /* drain waits */
    struct fvm_disk_list todo;
    struct fvm_disk_list done;
    unsigned in_flight; /* submitted, callback not yet returned */
    bool stopping;
    bool flush_failed;
};

/* raw.c */
int fvm_raw_start(struct fvm_disk *disk, struct fvm_err *err);
void fvm_raw_stop(struct fvm_disk *disk);
/** Takes the job; status preset to an error: it only completes. */
void fvm_raw_submit(struct fvm_disk *disk, struct fvm_disk_job *job);
/** fdatasync now, on this thread. */
int fvm_raw_sync(struct fvm_disk *disk);

/* lock.c */
/** OFD lock over the whole file: shared when readonly. FVM_EBUSY names the holder where /proc tells. */
int fvm_lock_take(int fd, const char *path, bool shared, struct fvm_err *err);
void fvm_lock_release(int fd);
/** Lock held. Refuses an epoch older than the volume's, else makes it the volume's, durably. 0 compares nothing. */
int fvm_epoch_claim(const struct fvm_disk *disk, uint64_t epoch, struct fvm_err *err);

/* probe.c */
int fvm_probe_fd(int fd, const char *path, struct fvm_probe *ret, struct fvm_err *err);

#endif
