/* A kernel image: bzImage and multiboot, whatever its header claims. RAM is what it is loaded into; nothing runs. */
#include <stdlib.h>
#include <string.h>

#include "tests/fuzz/fuzz.h"
#include "vmm/firmware/boot.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct fvm_ram *ram;
    struct fvm_err err;
    struct fvm_boot_state state;
    uint8_t *copy = malloc(size + 1); /* its own allocation, so that a read behind its end is seen */
    memcpy(copy, data, size);
    const struct fvm_boot_image image = {.bytes = copy, .len = size, .path = "image"};
    if (fvm_ram_create(32 << 20, &ram, &err) == 0) {
        if (fvm_linux_is_kernel(&image))
            (void)fvm_linux_load(ram, &image, NULL, "console=ttyS0", true, &state, &err);
        if (fvm_multiboot_is_kernel(&image))
            (void)fvm_multiboot_load(ram, &image, NULL, 0, "x", &state, &err);
        (void)fvm_boot_image_guess(&image);
        fvm_ram_destroy(&ram);
    }
    free(copy);
    return 0;
}

static void put(uint8_t *buf, size_t at, uint32_t value, unsigned bytes) { memcpy(buf + at, &value, bytes); }

static size_t seed_linux(uint8_t *buf)
{
    memset(buf, 0x90, 0x8000);
    memset(buf, 0, 0x400);
    buf[0x1f1] = 4;            /* setup sectors */
    put(buf, 0x1f4, 0x700, 4); /* syssize */
    put(buf, 0x1fe, 0xaa55, 2);
    put(buf, 0x200, 0x6aeb, 2);
    memcpy(buf + 0x202, "HdrS", 4);
    put(buf, 0x206, 0x20f, 2);
    buf[0x211] = 1; /* loaded high */
    put(buf, 0x214, 0x100000, 4);
    put(buf, 0x22c, 0x7fffffff, 4); /* initrd max */
    put(buf, 0x230, 0x200000, 4);
    buf[0x234] = 1;
    put(buf, 0x236, 0x2b, 2); /* 64-bit entry */
    put(buf, 0x238, 2047, 4);
    put(buf, 0x258, 0x1000000, 4); /* preferred address */
    put(buf, 0x260, 0x100000, 4);  /* init size */
    return 0x8000;
}

/* flags 0x10000: addresses in the header; else an ELF of 32 bits with one segment */
static size_t seed_multiboot(uint8_t *buf, bool elf)
{
    size_t header = elf ? 0x100 : 0x40, flags = elf ? 3 : 0x10003;
    memset(buf, 0, 0x1000);
    if (elf) {
        memcpy(buf, "\177ELF\1\1\1", 7);
        put(buf, 16, 0x00030002, 4); /* EXEC, i386 */
        put(buf, 20, 1, 4);
        put(buf, 24, 0x100100, 4);
        put(buf, 28, 52, 4);
        put(buf, 40, 52, 2);
        put(buf, 42, 32, 2);
        put(buf, 44, 1, 2);
        put(buf, 52, 1, 4);
        put(buf, 60, 0x100000, 4);
        put(buf, 64, 0x100000, 4);
        put(buf, 68, 0x1000, 4);
        put(buf, 72, 0x2000, 4);
    }
    put(buf, header, 0x1badb002, 4);
    put(buf, header + 4, (uint32_t)flags, 4);
    put(buf, header + 8, (uint32_t) - (0x1badb002 + flags), 4);
    put(buf, header + 12, 0x100040, 4);
    put(buf, header + 16, 0x100000, 4);
    put(buf, header + 20, 0x101000, 4);
    put(buf, header + 24, 0x102000, 4);
    put(buf, header + 28, 0x100080, 4);
    return 0x1000;
}

size_t fuzz_seed(unsigned i, uint8_t *buf)
{
    return i == 0 ? seed_linux(buf) : i < 3 ? seed_multiboot(buf, i == 1) : 0;
}
