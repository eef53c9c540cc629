/*
 * record_file.c - the hand-over record in a file: for `fvm` processes of one machine without a cluster.
 *
 * A swap locks PATH.lock (flock), reads PATH, compares the revision, writes PATH.new, syncs and renames it over PATH.
 * Readers need no lock: rename is atomic. The lock file is never removed (removing it would let two holders in).
 *
 * What must survive the machine is who may run the guest (STABLE): that is synced before anybody is told. A step of a
 * hand-over on its way (MIGRATING, TAKEN) is not: it allows nobody to run, and all whom it concerns die with the
 * machine; what is then found is an earlier step of the same hand-over.
 *
 * Invariant: PATH is at every instant one whole record; revisions only grow.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

#include "base/loop.h"
#include "migrate/handover.h"

#define RECORD_BYTES_MAX 1024
#define LOCK_WAIT_NS 5000000000ull

struct fvm_record_file { /* any one thread at a time */
    int lock_fd;
    char path[PATH_MAX];
    char temp[PATH_MAX + 8];
};

int fvm_record_format(const struct fvm_ho_record *r, uint64_t revision, char *buf, size_t size)
{
    char id[2 * FVM_HO_ID_BYTES + 1];
    for (int i = 0; i < FVM_HO_ID_BYTES; i++)
        snprintf(id + 2 * i, 3, "%02x", r->mig_id[i]);
    int n = snprintf(buf, size,
                     "fvm-record 1\nrevision %" PRIu64 "\nowner %s\nepoch %" PRIu64
                     "\nphase %s\nmigration %s\nfrom %s\nto %s\nend\n",
                     revision, r->owner, r->epoch, fvm_ho_phase_text(r->phase), id, *r->from ? r->from : "-",
                     *r->to ? r->to : "-");
    return n < 0 || (size_t)n >= size ? FVM_EINVAL : n;
}

static bool parse_id(const char *hex, uint8_t id[FVM_HO_ID_BYTES])
{
    if (strlen(hex) != 2 * FVM_HO_ID_BYTES || strspn(hex, "0123456789abcdef") != 2 * FVM_HO_ID_BYTES)
        return false;
    for (int i = 0; i < FVM_HO_ID_BYTES; i++) {
        char two[3] = {hex[2 * i], hex[2 * i + 1], 0};
        id[i] = (uint8_t)strtoul(two, NULL, 16);
    }
    return true;
}

static void no_dash(char *s)
{
    if (strcmp(s, "-") == 0)
        *s = 0;
}

int fvm_record_parse(const char *text, size_t len, struct fvm_ho_record *ret_record, uint64_t *ret_revision)
{
    char buf[RECORD_BYTES_MAX + 1], phase[16], id[2 * FVM_HO_ID_BYTES + 1];
    struct fvm_ho_record r = {0};
    uint64_t revision = 0;
    int end = 0;
    if (len > RECORD_BYTES_MAX || memchr(text, 0, len))
        return FVM_EBADIMAGE;
    memcpy(buf, text, len);
    buf[len] = 0;
    int n = sscanf(buf,
                   "fvm-record 1\nrevision %19" SCNu64 "\nowner %63s\nepoch %19" SCNu64
                   "\nphase %15s\nmigration %32s\nfrom %63s\nto %63s\nend%n",
                   &revision, r.owner, &r.epoch, phase, id, r.from, r.to, &end);
    if (n != 7 || end == 0 || strcmp(buf + end, "\n") != 0)
        return FVM_EBADIMAGE;
    no_dash(r.from);
    no_dash(r.to);
    if (!fvm_ho_phase_parse(phase, &r.phase) || !parse_id(id, r.mig_id) || revision == 0 || !fvm_ho_record_valid(&r))
        return FVM_EBADIMAGE;
    /* One record has one text: signs, leading zeros and blanks that sscanf lets pass are not ours. */
    char same[RECORD_BYTES_MAX];
    if (fvm_record_format(&r, revision, same, sizeof(same)) != (int)len || memcmp(same, text, len) != 0)
        return FVM_EBADIMAGE;
    *ret_record = r;
    *ret_revision = revision;
    return 0;
}

static int file_read(const struct fvm_record_file *f, struct fvm_ho_record *ret_record, uint64_t *ret_revision,
                     struct fvm_err *err)
{
    char buf[RECORD_BYTES_MAX + 1];
    int fd = open(f->path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return fvm_err_set(err, fvm_err_from_errno(errno), errno, "migrate", "record %s: %s", f->path, strerror(errno));
    ssize_t n = read(fd, buf, sizeof(buf));
    int e = errno;
    close(fd);
    if (n < 0)
        return fvm_err_set(err, fvm_err_from_errno(e), e, "migrate", "record %s: %s", f->path, strerror(e));
    if (fvm_record_parse(buf, (size_t)n, ret_record, ret_revision) != 0)
        return fvm_err_set(err, FVM_EBADIMAGE, 0, "migrate", "record %s is not a hand-over record; give another file",
                           f->path);
    return 0;
}

static int file_write(const struct fvm_record_file *f, const struct fvm_ho_record *r, uint64_t revision,
                      struct fvm_err *err)
{
    char buf[RECORD_BYTES_MAX];
    int n = fvm_record_format(r, revision, buf, sizeof(buf));
    if (n < 0 || !fvm_ho_record_valid(r))
        return fvm_err_set(err, FVM_EINVAL, 0, "migrate", "record %s: not a possible record", f->path);
    int fd = open(f->temp, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (fd < 0)
        return fvm_err_set(err, fvm_err_from_errno(errno), errno, "migrate", "record %s: %s", f->temp, strerror(errno));
    bool ok = write(fd, buf, (size_t)n) == n && (r->phase != FVM_HO_STABLE || fdatasync(fd) == 0);
    int e = errno;
    close(fd);
    if (ok && rename(f->temp, f->path) == 0)
        return 0;
    e = ok ? errno : e;
    unlink(f->temp);
    return fvm_err_set(err, fvm_err_from_errno(e), e, "migrate", "record %s: cannot write: %s", f->path, strerror(e));
}

static int lock(struct fvm_record_file *f, struct fvm_err *err)
{
    uint64_t end = fvm_now_ns() + LOCK_WAIT_NS;
    while (flock(f->lock_fd, LOCK_EX | LOCK_NB) != 0) {
        if (errno != EWOULDBLOCK && errno != EINTR)
            return fvm_err_set(err, fvm_err_from_errno(errno), errno, "migrate", "lock of %s: %s", f->path,
                               strerror(errno));
        if (fvm_now_ns() >= end)
            return fvm_err_set(err, FVM_ETIMEOUT, 0, "migrate", "record %s is locked by another process for too long",
                               f->path);
        usleep(1000);
    }
    return 0;
}

static int store_get(void *ctx, struct fvm_ho_record *ret_record, uint64_t *ret_revision, struct fvm_err *err)
{
    return file_read(ctx, ret_record, ret_revision, err);
}

static int store_cas(void *ctx, uint64_t expect_revision, const struct fvm_ho_record *next, struct fvm_err *err)
{
    struct fvm_record_file *f = ctx;
    struct fvm_ho_record now;
    uint64_t revision;
    int rc = lock(f, err);
    if (rc)
        return rc;
    rc = file_read(f, &now, &revision, err);
    if (!rc && revision != expect_revision)
        rc = fvm_err_set(err, FVM_ECONFLICT, 0, "migrate", "record %s changed meanwhile", f->path);
    if (!rc)
        rc = file_write(f, next, revision + 1, err);
    flock(f->lock_fd, LOCK_UN);
    return rc;
}

int fvm_record_file_open(const char *path, const char *self, struct fvm_record_file **ret_file, struct fvm_err *err)
{
    struct fvm_record_file *f = calloc(1, sizeof(*f));
    if (!f)
        return fvm_err_set(err, FVM_ENOMEM, ENOMEM, "migrate", "out of memory");
    char lock_path[PATH_MAX + 8];
    snprintf(f->path, sizeof(f->path), "%s", path);
    snprintf(f->temp, sizeof(f->temp), "%s.new", path);
    snprintf(lock_path, sizeof(lock_path), "%s.lock", path);
    f->lock_fd = open(lock_path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (f->lock_fd < 0) {
        int e = errno;
        free(f);
        return fvm_err_set(err, fvm_err_from_errno(e), e, "migrate", "record %s: cannot make its lock file: %s", path,
                           strerror(e));
    }
    struct fvm_ho_record r;
    uint64_t revision;
    int rc = lock(f, err);
    if (!rc && (access(f->path, F_OK) == 0 || !self)) {
        rc = file_read(f, &r, &revision, err);
        flock(f->lock_fd, LOCK_UN);
    } else if (!rc) {
        r = (struct fvm_ho_record){.epoch = 1, .phase = FVM_HO_STABLE};
        snprintf(r.owner, sizeof(r.owner), "%s", self);
        rc = file_write(f, &r, 1, err);
        flock(f->lock_fd, LOCK_UN);
    }
    if (rc)
        fvm_record_file_close(&f);
    else
        *ret_file = f;
    return rc;
}

void fvm_record_file_close(struct fvm_record_file **file_p)
{
    struct fvm_record_file *f = *file_p;
    if (!f)
        return;
    *file_p = NULL;
    close(f->lock_fd);
    free(f);
}

struct fvm_record_store fvm_record_file_store(struct fvm_record_file *file)
{
    return (struct fvm_record_store){.get = store_get, .cas = store_cas, .ctx = file};
}
