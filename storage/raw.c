/*
 * raw.c - raw files and block devices: a few worker threads that do blocking I/O.
 *
 * A job goes todo -> worker -> done list -> callback. Workers never call back themselves: they put the job on the done
 * list and ring an eventfd, the loop (or a drain) takes the list and calls back under the guard. Invariant: a job is on one
 * list or in one worker's hands, and in_flight counts it until its callback has returned. Knows nothing of locks and epochs.
 */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "storage/disk.h"

#define IOV_BATCH 256
#define ZERO_CHUNK 65536

static void list_push(struct fvm_disk_list *list, struct fvm_disk_job *job)
{
    job->next = NULL;
    *list->tail = job;
    list->tail = &job->next;
}

static struct fvm_disk_job *list_pop(struct fvm_disk_list *list)
{
    struct fvm_disk_job *job = list->head;
    if (job) {
        list->head = job->next;
        if (!list->head)
            list->tail = &list->head;
    }
    return job;
}

/* Copies what is left of the vector after `skip` bytes into `out`. */
static int iov_slice(const struct iovec *iov, int count, size_t skip, struct iovec *out)
{
    int n = 0;
    for (int i = 0; i < count && n < IOV_BATCH; i++) {
        if (skip >= iov[i].iov_len) {
            skip -= iov[i].iov_len;
            continue;
        }
        out[n].iov_base = (char *)iov[i].iov_base + skip;
        out[n++].iov_len = iov[i].iov_len - skip;
        skip = 0;
    }
    return n;
}

static void iov_zero_from(const struct iovec *iov, int count, size_t skip)
{
    for (int i = 0; i < count; i++) {
        if (skip < iov[i].iov_len) {
            memset((char *)iov[i].iov_base + skip, 0, iov[i].iov_len - skip);
            skip = 0;
        } else {
            skip -= iov[i].iov_len;
        }
    }
}

static int do_transfer(const struct fvm_disk *disk, const struct fvm_disk_job *job)
{
    struct iovec batch[IOV_BATCH];
    uint64_t moved = 0;
    while (moved < job->len) {
        int n = iov_slice(job->iov, job->iov_count, moved, batch);
        off_t at = (off_t)(job->offset + moved);
        ssize_t r = job->op == FVM_DISK_READ ? preadv(disk->fd, batch, n, at) : pwritev(disk->fd, batch, n, at);
        if (r < 0) {
            if (errno == EINTR)
                continue;
            return fvm_err_from_errno(errno);
        }
        if (r == 0) {
            /* the tail of a file that does not end on a sector reads as zeros; anything else was cut off behind us */
            if (job->op != FVM_DISK_READ || (uint64_t)at < disk->file_bytes)
                return FVM_EIO;
            iov_zero_from(job->iov, job->iov_count, moved);
            return 0;
        }
        moved += (uint64_t)r;
    }
    return 0;
}

static int write_zeros(int fd, uint64_t offset, uint64_t len)
{
    static const char zeros[ZERO_CHUNK];
    while (len) {
        ssize_t r = pwrite(fd, zeros, FVM_MIN(len, (uint64_t)ZERO_CHUNK), (off_t)offset);
        if (r < 0 && errno == EINTR)
            continue;
        if (r <= 0)
            return r < 0 ? fvm_err_from_errno(errno) : FVM_EIO;
        offset += (uint64_t)r;
        len -= (uint64_t)r;
    }
    return 0;
}

static bool fallocate_all(int fd, int mode, uint64_t offset, uint64_t len)
{
    int r;
    do
        r = fallocate(fd, mode, (off_t)offset, (off_t)len);
    while (r < 0 && errno == EINTR);
    return r == 0;
}

static int do_discard(const struct fvm_disk *disk, const struct fvm_disk_job *job)
{
    if (job->len == 0)
        return 0;
    if (fallocate_all(disk->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, job->offset, job->len))
        return 0;
    int cause = errno;
    if (job->op == FVM_DISK_DISCARD)
        return cause == EIO ? FVM_EIO : 0; /* a hint */
    if (fallocate_all(disk->fd, FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE, job->offset, job->len))
        return 0;
    return write_zeros(disk->fd, job->offset, job->len);
}

int fvm_raw_sync(struct fvm_disk *disk)
{
    int status = 0;
    pthread_mutex_lock(&disk->mutex);
    bool failed = disk->flush_failed;
    pthread_mutex_unlock(&disk->mutex);
    if (failed)
        return FVM_EIO;
    while (fdatasync(disk->fd) < 0) {
        if (errno == EINTR)
            continue;
        if (disk->readonly && (errno == EINVAL || errno == EROFS))
            return 0;
        status = fvm_err_from_errno(errno);
        pthread_mutex_lock(&disk->mutex);
        disk->flush_failed = true;
        pthread_mutex_unlock(&disk->mutex);
        break;
    }
    return status;
}

static int do_job(struct fvm_disk *disk, const struct fvm_disk_job *job)
{
    switch (job->op) {
    case FVM_DISK_READ:
    case FVM_DISK_WRITE:
        return do_transfer(disk, job);
    case FVM_DISK_FLUSH:
        return fvm_raw_sync(disk);
    case FVM_DISK_DISCARD:
    case FVM_DISK_ZERO:
        return do_discard(disk, job);
    }
    return FVM_EINTERNAL;
}

/* mutex held */
static void put_done(struct fvm_disk *disk, struct fvm_disk_job *job)
{
    bool ring = !disk->done.head;
    list_push(&disk->done, job);
    if (ring) {
        uint64_t one = 1;
        ssize_t r = write(disk->event, &one, sizeof(one));
        fvm_assert(r == sizeof(one) || errno == EAGAIN);
    }
    pthread_cond_broadcast(&disk->idle);
}

static void *worker(void *ctx)
{
    struct fvm_disk *disk = ctx;
    pthread_mutex_lock(&disk->mutex);
    for (;;) {
        struct fvm_disk_job *job = list_pop(&disk->todo);
        if (job) {
            pthread_mutex_unlock(&disk->mutex);
            job->status = do_job(disk, job);
            pthread_mutex_lock(&disk->mutex);
            put_done(disk, job);
        } else if (disk->stopping) {
            break;
        } else {
            pthread_cond_wait(&disk->work, &disk->mutex);
        }
    }
    pthread_mutex_unlock(&disk->mutex);
    return NULL;
}

/* Call back what is done. Mutex held on entry and exit, not during callbacks. */
static void run_done(struct fvm_disk *disk)
{
    struct fvm_disk_job *job;
    while ((job = list_pop(&disk->done))) {
        pthread_mutex_unlock(&disk->mutex);
        job->done(job->ctx, job->status);
        free(job);
        pthread_mutex_lock(&disk->mutex);
        disk->in_flight--;
    }
}

static void on_event(void *ctx, int fd, unsigned revents)
{
    struct fvm_disk *disk = ctx;
    (void)revents;
    uint64_t count;
    ssize_t r = read(fd, &count, sizeof(count));
    (void)r; /* EAGAIN: a drain was quicker */
    pthread_mutex_lock(&disk->mutex);
    run_done(disk);
    pthread_mutex_unlock(&disk->mutex);
}

void fvm_raw_submit(struct fvm_disk *disk, struct fvm_disk_job *job)
{
    pthread_mutex_lock(&disk->mutex);
    disk->in_flight++;
    if (job->status < 0) {
        put_done(disk, job);
    } else {
        list_push(&disk->todo, job);
        pthread_cond_signal(&disk->work);
    }
    pthread_mutex_unlock(&disk->mutex);
}

void fvm_disk_drain(struct fvm_disk *disk)
{
    pthread_mutex_lock(&disk->mutex);
    for (;;) {
        run_done(disk);
        if (!disk->in_flight)
            break;
        if (!disk->done.head)
            pthread_cond_wait(&disk->idle, &disk->mutex);
    }
    pthread_mutex_unlock(&disk->mutex);
}

int fvm_raw_start(struct fvm_disk *disk, struct fvm_err *err)
{
    pthread_mutex_init(&disk->mutex, NULL);
    pthread_cond_init(&disk->work, NULL);
    pthread_cond_init(&disk->idle, NULL);
    disk->todo.tail = &disk->todo.head;
    disk->done.tail = &disk->done.head;
    disk->event = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (disk->event < 0)
        return fvm_err_set(err, fvm_err_from_errno(errno), errno, "storage", "disk %s: eventfd: %s", disk->path,
                           strerror(errno));
    int r = fvm_loop_io_add(disk->loop, disk->event, FVM_LOOP_IN, on_event, disk, &disk->io);
    if (r < 0)
        return fvm_err_set(err, r, 0, "storage", "disk %s: cannot join the event loop", disk->path);
    sigset_t all, old;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    for (; disk->worker_count < FVM_DISK_WORKERS; disk->worker_count++) {
        r = pthread_create(&disk->workers[disk->worker_count], NULL, worker, disk);
        if (r)
            break;
    }
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    if (!disk->worker_count)
        return fvm_err_set(err, fvm_err_from_errno(r), r, "storage", "disk %s: no thread: %s", disk->path, strerror(r));
    return 0;
}

void fvm_raw_stop(struct fvm_disk *disk)
{
    if (disk->worker_count)
        fvm_disk_drain(disk);
    pthread_mutex_lock(&disk->mutex);
    disk->stopping = true;
    pthread_cond_broadcast(&disk->work);
    pthread_mutex_unlock(&disk->mutex);
    while (disk->worker_count)
        pthread_join(disk->workers[--disk->worker_count], NULL);
    if (disk->io)
        fvm_loop_io_remove(&disk->io);
    if (disk->event >= 0)
        close(disk->event);
    pthread_cond_destroy(&disk->idle);
    pthread_cond_destroy(&disk->work);
    pthread_mutex_destroy(&disk->mutex);
}
