/*
 * seabios.c - a PC's firmware from a file: SeaBIOS, or any ROM image that starts at the reset vector.
 *
 *     4 GiB - len .. 4 GiB        the ROM; processors start at its last 16 bytes
 *     1 MiB - min(len, 128 KiB)   a copy in RAM, where the PC has its BIOS: what the host bridge's PAM registers shadow
 *     port 402                    reads e9 to say that it is there; what is written comes out as log lines
 *
 * The image stays open for the life of the VM, so a reset loads what the machine was started with. Invariant: no state but what the
 * guest's RAM holds, and an unfinished log line.
 */
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "vmm/firmware/boot.h"

#define LOW_BYTES_MAX 0x20000u
#define ROM_BYTES_MAX (16u << 20)
#define FOUR_GIB (1ull << 32)
#define ONE_MIB 0x100000u
enum { PORT_DEBUG = 0x402, DEBUG_HERE = 0xe9, LINE_MAX = 240 };

struct fvm_firmware {
    struct fvm_boot_image image;
    struct fvm_bus *bus; /* borrowed */
    int claim_id;
    bool claimed;
    char line[LINE_MAX + 1];
    unsigned line_len;
};

static uint64_t debug_read(void *ctx, uint64_t offset, unsigned size)
{
    (void)ctx, (void)offset, (void)size;
    return DEBUG_HERE;
}

static void debug_write(void *ctx, uint64_t offset, unsigned size, uint64_t value)
{
    struct fvm_firmware *f = ctx;
    char c = (char)value;

    (void)offset, (void)size;
    if (c != '\n' && (unsigned char)c >= ' ' && (unsigned char)c < 0x7f)
        f->line[f->line_len++] = c;
    if (f->line_len && (c == '\n' || f->line_len == LINE_MAX)) {
        f->line[f->line_len] = 0;
        fvm_log(INFO, "firmware.says", "%s", f->line);
        f->line_len = 0;
    }
}

static const struct fvm_bus_ops debug_ops = {.read = debug_read, .write = debug_write};

static int check_image(const struct fvm_boot_image *image, struct fvm_err *err)
{
    if (image->len % 0x10000 || image->len > ROM_BYTES_MAX)
        return fvm_err_set(err, FVM_EBADIMAGE, 0, "firmware",
                           "%s is not a PC firmware image: %llu bytes are not a multiple of 64 KiB up to 16 MiB", image->path,
                           (unsigned long long)image->len);
    if (image->bytes[image->len - 16] == 0 || image->bytes[image->len - 16] == 0xff)
        return fvm_err_set(err, FVM_EBADIMAGE, 0, "firmware", "%s is not a PC firmware image: there is no code at its reset vector",
                           image->path);
    return 0;
}

int fvm_firmware_open(const char *path, struct fvm_bus *bus, struct fvm_ram *ram, struct fvm_firmware **ret_firmware,
                      struct fvm_err *err)
{
    struct fvm_firmware *f = calloc(1, sizeof(*f));
    int r;

    if (!f)
        return fvm_err_set(err, FVM_ENOMEM, 0, "firmware", "out of memory");
    f->bus = bus;
    r = fvm_boot_image_open(path, &f->image, err);
    if (!r)
        r = check_image(&f->image, err);
    if (!r) {
        r = fvm_ram_rom_create(ram, f->image.bytes, f->image.len);
        if (!r)
            r = fvm_bus_claim(bus, FVM_BUS_PIO, PORT_DEBUG, 1, &debug_ops, f, "firmware-debug", &f->claim_id);
        f->claimed = !r;
        if (r)
            fvm_err_set(err, r, 0, "firmware", "no place for the firmware: %s", fvm_err_text(r));
    }
    if (r) {
        fvm_firmware_close(&f);
        return r;
    }
    *ret_firmware = f;
    return 0;
}

void fvm_firmware_close(struct fvm_firmware **firmware_p)
{
    struct fvm_firmware *f = *firmware_p;

    if (!f)
        return;
    if (f->claimed)
        fvm_bus_release(f->bus, f->claim_id);
    fvm_boot_image_close(&f->image);
    free(f);
    *firmware_p = NULL;
}

int fvm_firmware_load(const struct fvm_firmware *f, struct fvm_ram *ram, struct fvm_boot_state *ret_state, struct fvm_err *err)
{
    uint64_t len = FVM_MIN(f->image.len, (uint64_t)LOW_BYTES_MAX);
    struct fvm_boot_state s = {.rip = 0xfff0, .cr0 = 0x60000010, .gdt_limit = 0xffff, .idt_limit = 0xffff};
    enum { RDX = 2 };

    if (fvm_ram_write(ram, ONE_MIB - len, f->image.bytes + f->image.len - len, len))
        return fvm_err_set(err, FVM_EINVAL, 0, "firmware", "%llu KiB of memory is too little for a PC's firmware",
                           (unsigned long long)(ram->low_bytes >> 10));
    s.regs[RDX] = 0xf06e1; /* as after reset: see cpu/reset.c */
    for (unsigned k = 0; k < FVM_BOOT_SEGMENTS; k++)
        s.segments[k] = (struct fvm_boot_segment){.attr = 0x93, .limit = 0xffff};
    s.segments[FVM_BOOT_CS] = (struct fvm_boot_segment){.selector = 0xf000, .attr = 0x9b, .limit = 0xffff, .base = 0xffff0000};
    s.tr = (struct fvm_boot_segment){.attr = 0x8b, .limit = 0xffff};
    *ret_state = s;
    return 0;
}
