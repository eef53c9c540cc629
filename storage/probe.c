/*
 * probe.c - what is on a volume, and is somebody using it: libblkid (included only here), mountinfo, swaps, loop devices.
 *
 * "unknown" is never read as "empty": random data, encrypted volumes and formats that libblkid does not know look the
 * same to it. Image formats that hold a disk inside (qcow2, vmdk...) are told by their magic numbers, since
 * handing the container's bytes to a guest as a raw disk would be a mistake that destroys it. Reads only.
 */
#include <blkid/blkid.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "storage/disk.h"

static const struct {
    const char *type, *magic;
    size_t len, at;
} images[] = {
    {"qcow2", "QFI\xfb", 4, 0},
    {"vmdk", "KDMV", 4, 0},
    {"vhdx", "vhdxfile", 8, 0},
    {"qed", "QED\0", 4, 0},
    {"vdi", "\x7f\x10\xda\xbe", 4, 64},
};

static bool probe_image(int fd, struct fvm_probe *probe)
{
    char head[128] = {0};
    if (pread(fd, head, sizeof(head), 0) < 0)
        return false;
    for (size_t i = 0; i < FVM_ARRAY_SIZE(images); i++) {
        if (!memcmp(head + images[i].at, images[i].magic, images[i].len)) {
            snprintf(probe->kind, sizeof(probe->kind), "image");
            snprintf(probe->type, sizeof(probe->type), "%s", images[i].type);
            return true;
        }
    }
    return false;
}

static bool lookup(blkid_probe p, const char *name, char *out, size_t size)
{
    const char *value;
    if (blkid_probe_lookup_value(p, name, &value, NULL) < 0)
        return false;
    snprintf(out, size, "%s", value);
    return true;
}

static void classify(blkid_probe p, struct fvm_probe *probe)
{
    char usage[24] = "";
    lookup(p, "UUID", probe->uuid, sizeof(probe->uuid));
    lookup(p, "LABEL", probe->label, sizeof(probe->label));
    lookup(p, "USAGE", usage, sizeof(usage));
    if (lookup(p, "TYPE", probe->type, sizeof(probe->type)))
        snprintf(probe->kind, sizeof(probe->kind), "%s", usage[0] ? usage : "filesystem");
    else if (lookup(p, "PTTYPE", probe->type, sizeof(probe->type))) {
        snprintf(probe->kind, sizeof(probe->kind), "partitions");
        lookup(p, "PTUUID", probe->uuid, sizeof(probe->uuid));
    }
}

static int probe_blkid(int fd, const char *path, struct fvm_probe *probe, struct fvm_err *err)
{
    blkid_probe p = blkid_new_probe();
    if (!p)
        return fvm_err_set(err, FVM_ENOMEM, 0, "storage", "disk %s: libblkid gives no probe", path);
    if (blkid_probe_set_device(p, fd, 0, 0) < 0) {
        blkid_free_probe(p);
        return fvm_err_set(err, FVM_EIO, errno, "storage", "disk %s: libblkid cannot read it", path);
    }
    blkid_probe_enable_superblocks(p, 1);
    blkid_probe_set_superblocks_flags(p, BLKID_SUBLKS_TYPE | BLKID_SUBLKS_USAGE | BLKID_SUBLKS_UUID | BLKID_SUBLKS_LABEL);
    blkid_probe_enable_partitions(p, 1);
    int r = blkid_do_safeprobe(p); /* 0 found, 1 nothing, -2 ambivalent, -1 error (also: too small) */
    if (r == 0)
        classify(p, probe);
    else if (r == -2)
        snprintf(probe->type, sizeof(probe->type), "ambivalent");
    blkid_free_probe(p);
    return 0;
}

static bool mountinfo_has(dev_t dev)
{
    FILE *f = fopen("/proc/self/mountinfo", "re");
    if (!f)
        return false;
    char *line = NULL;
    size_t cap = 0;
    bool found = false;
    unsigned major_no, minor_no;
    while (!found && getline(&line, &cap, f) > 0)
        found = sscanf(line, "%*d %*d %u:%u", &major_no, &minor_no) == 2 && makedev(major_no, minor_no) == dev;
    free(line);
    fclose(f);
    return found;
}

static bool swaps_has(const struct stat *st)
{
    FILE *f = fopen("/proc/swaps", "re");
    if (!f)
        return false;
    char line[512], name[400];
    bool found = false;
    struct stat other;
    while (!found && fgets(line, sizeof(line), f))
        found = sscanf(line, "%399s", name) == 1 && name[0] == '/' && stat(name, &other) == 0 &&
                other.st_dev == st->st_dev && other.st_ino == st->st_ino;
    fclose(f);
    return found;
}

/* A regular file behind /dev/loopN is in use even before that is mounted. */
static bool loop_has(const struct stat *st)
{
    DIR *dir = opendir("/sys/block");
    if (!dir)
        return false;
    bool found = false;
    struct dirent *e;
    while (!found && (e = readdir(dir))) {
        char name[320], backing[4096] = "";
        struct stat other;
        if (strncmp(e->d_name, "loop", 4))
            continue;
        snprintf(name, sizeof(name), "/sys/block/%s/loop/backing_file", e->d_name);
        FILE *f = fopen(name, "re");
        if (!f)
            continue;
        if (fgets(backing, sizeof(backing), f)) {
            backing[strcspn(backing, "\n")] = 0;
            found = stat(backing, &other) == 0 && other.st_dev == st->st_dev && other.st_ino == st->st_ino;
        }
        fclose(f);
    }
    closedir(dir);
    return found;
}

int fvm_probe_fd(int fd, const char *path, struct fvm_probe *ret, struct fvm_err *err)
{
    struct fvm_probe probe = {.kind = "unknown"};
    struct stat st;
    if (fstat(fd, &st) < 0)
        return fvm_err_set(err, fvm_err_from_errno(errno), errno, "storage", "disk %s: %s", path, strerror(errno));
    if (!S_ISREG(st.st_mode) && !S_ISBLK(st.st_mode))
        return fvm_err_set(err, FVM_EINVAL, 0, "storage", "disk %s: neither a file nor a block device", path);
    if (!probe_image(fd, &probe)) {
        int r = probe_blkid(fd, path, &probe, err);
        if (r < 0)
            return r;
    }
    probe.mounted = S_ISBLK(st.st_mode) ? mountinfo_has(st.st_rdev) : loop_has(&st);
    probe.mounted = probe.mounted || swaps_has(&st);
    *ret = probe;
    return 0;
}

int fvm_disk_probe(const char *path, struct fvm_probe *ret, struct fvm_err *err)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0)
        return fvm_err_set(err, fvm_err_from_errno(errno), errno, "storage", "disk %s: %s", path, strerror(errno));
    int r = fvm_probe_fd(fd, path, ret, err);
    close(fd);
    return r;
}
