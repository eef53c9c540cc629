/*
 * image.c - a kernel, initrd or module file as bytes in memory, and a guess at what a file is that is no kernel.
 * Invariant: a closed or failed image has bytes == NULL and len == 0.
 */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "vmm/firmware/boot.h"

int fvm_boot_image_open(const char *path, struct fvm_boot_image *ret_image, struct fvm_err *err)
{
    struct stat st;
    void *bytes;
    int fd = open(path, O_RDONLY | O_CLOEXEC), e = 0;

    if (fd < 0)
        return fvm_err_set(err, fvm_err_from_errno(errno), errno, "firmware", "cannot open %s: %s", path,
                           strerror(errno));
    if (fstat(fd, &st) < 0 || !S_ISREG(st.st_mode))
        e = fvm_err_set(err, FVM_EINVAL, 0, "firmware", "%s is not a regular file", path);
    else if (st.st_size == 0)
        e = fvm_err_set(err, FVM_EBADIMAGE, 0, "firmware", "%s is empty", path);
    if (e) {
        close(fd);
        return e;
    }
    bytes = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
    e = errno;
    close(fd);
    if (bytes == MAP_FAILED)
        return fvm_err_set(err, fvm_err_from_errno(e), e, "firmware", "cannot read %s: %s", path, strerror(e));
    *ret_image = (struct fvm_boot_image){.bytes = bytes, .len = (uint64_t)st.st_size, .path = path};
    return 0;
}

void fvm_boot_image_close(struct fvm_boot_image *image)
{
    if (image->bytes)
        munmap((void *)(uintptr_t)image->bytes, (size_t)image->len);
    image->bytes = NULL;
    image->len = 0;
}

static bool starts(const struct fvm_boot_image *image, uint64_t at, const char *magic, uint64_t len)
{
    return image->len >= at + len && !memcmp(image->bytes + at, magic, len);
}

const char *fvm_boot_image_guess(const struct fvm_boot_image *image)
{
    if (starts(image, 0, "\177ELF", 4))
        return "an ELF file without a multiboot header (a vmlinux? take the bzImage)";
    if (starts(image, 0, "\x1f\x8b", 2))
        return "a gzip file (an initrd, or a compressed kernel that must be unpacked)";
    if (starts(image, 0, "\x28\xb5\x2f\xfd", 4))
        return "a zstd file";
    if (starts(image, 0, "\xfd" "7zXZ", 5))
        return "an xz file";
    if (starts(image, 0, "QFI\xfb", 4))
        return "a qcow2 disk image";
    if (starts(image, 0x8001, "CD001", 5))
        return "an ISO 9660 image";
    if (starts(image, 0, "070701", 6))
        return "a cpio archive (an initrd)";
    if (starts(image, 0, "#!", 2))
        return "a script";
    if (starts(image, 0, "MZ", 2))
        return "a Windows or UEFI program";
    if (starts(image, 510, "\x55\xaa", 2))
        return "a disk image or boot sector";
    return "data of an unknown kind";
}
