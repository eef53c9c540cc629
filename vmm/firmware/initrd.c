/*
 * initrd.c - does an initrd end where it says it ends? A download or copy that broke off would else show up as a panic
 * deep in the guest. Follows the kernel's Documentation/driver-api/early-userspace/buffer-format.rst: cpio archives
 * ("newc") and compressed ones behind each other, zeros between them.
 *
 * Every length in an archive is hostile: it is compared with what is left before it is used, in 64 bits.
 */
#include <inttypes.h>
#include <string.h>

#include "vmm/firmware/boot.h"

enum { CPIO_HEADER = 110, CPIO_FILESIZE = 54, CPIO_NAMESIZE = 94 };

static bool hex8(const uint8_t *p, uint64_t *ret)
{
    uint64_t n = 0;

    for (int i = 0; i < 8; i++) {
        uint8_t c = p[i] | 0x20;
        int digit = p[i] >= '0' && p[i] <= '9' ? p[i] - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
        if (digit < 0)
            return false;
        n = n << 4 | (uint64_t)digit;
    }
    *ret = n;
    return true;
}

static bool is_cpio(const uint8_t *p, uint64_t left)
{
    return left >= 6 && (!memcmp(p, "070701", 6) || !memcmp(p, "070702", 6));
}

/* Length of the entry at p with its padding; 0 when it is cut or is none. The last entry's padding may be missing. */
static uint64_t entry_bytes(const uint8_t *p, uint64_t left)
{
    uint64_t file, name, data, end;

    if (!is_cpio(p, left) || left < CPIO_HEADER || !hex8(p + CPIO_FILESIZE, &file) || !hex8(p + CPIO_NAMESIZE, &name))
        return 0;
    data = FVM_ALIGN_UP(CPIO_HEADER + name, 4);
    end = data + file;
    if (CPIO_HEADER + name > left || (file && end > left))
        return 0;
    return FVM_MIN(FVM_ALIGN_UP(end, 4), left);
}

int fvm_initrd_check(const struct fvm_boot_image *initrd, struct fvm_err *err)
{
    const uint8_t *b = initrd->bytes;
    uint64_t at = 0, end = initrd->len;

    while (at < end && (is_cpio(b + at, end - at) || (at && b[at] == 0))) {
        uint64_t n = b[at] ? entry_bytes(b + at, end - at) : 1;
        if (!n)
            return fvm_err_set(err, FVM_EBADIMAGE, 0, "firmware",
                               "initrd %s is truncated: its cpio archive goes on after its last byte, %" PRIu64,
                               initrd->path, end);
        at += n;
    }
    if (end - at < 6 || memcmp(b + at, "\xfd" "7zXZ", 6))
        return 0;
    while (end > at + 6 && b[end - 1] == 0)
        end--;
    if (memcmp(b + end - 2, "YZ", 2))
        return fvm_err_set(err, FVM_EBADIMAGE, 0, "firmware", "initrd %s is truncated: its xz stream has no end",
                           initrd->path);
    return 0;
}
