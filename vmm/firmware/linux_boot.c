/*
 * linux_boot.c - load a bzImage by the Linux x86 boot protocol (2.06 and later), as a boot loader does that enters
 * the kernel at its 64-bit (or, for 32-bit kernels, 32-bit) entry and not through its real-mode part.
 *
 *   file:  [ boot sector, setup: (setup_sects + 1) * 512 ][ protected-mode kernel ]
 *   RAM:   zero page 7000, command line 20000, kernel at its preferred address (or 1 MiB), initrd as high
 *          as the kernel reaches
 *
 * Every number in the header is hostile: it is compared with the file's length or with RAM before it is used, in 64
 * bits.
 */
#include <inttypes.h>
#include <string.h>

#include "vmm/firmware/boot.h"

enum { /* offsets in the file and in the zero page alike */
       H_SETUP_SECTS = 0x1f1,
       H_SYSSIZE = 0x1f4,
       H_BOOT_FLAG = 0x1fe,
       H_JUMP = 0x201,
       H_MAGIC = 0x202,
       H_VERSION = 0x206,
       H_LOADER = 0x210,
       H_LOADFLAGS = 0x211,
       H_CODE32 = 0x214,
       H_RAMDISK = 0x218,
       H_RAMDISK_SIZE = 0x21c,
       H_HEAP_END = 0x224,
       H_CMDLINE = 0x228,
       H_INITRD_MAX = 0x22c,
       H_ALIGNMENT = 0x230,
       H_RELOCATABLE = 0x234,
       H_XLOADFLAGS = 0x236,
       H_CMDLINE_SIZE = 0x238,
       H_PREF_ADDRESS = 0x258,
       H_INIT_SIZE = 0x260,
       H_END_MAX = 0x290,
};
enum {
    Z_EXT_MEM_K = 0x002,
    Z_VIDEO_MODE = 0x006,
    Z_VIDEO_COLUMNS = 0x007,
    Z_VIDEO_LINES = 0x00e,
    Z_VIDEO_IS_VGA = 0x00f,
    Z_VIDEO_POINTS = 0x010,
    Z_RSDP = 0x070,
    Z_ALT_MEM_K = 0x1e0,
    Z_E820_COUNT = 0x1e8,
    Z_HEADER = 0x1f1,
    Z_E820 = 0x2d0
};
enum { LOADED_HIGH = 1, CAN_USE_HEAP = 0x80, XLF_KERNEL_64 = 1 };
enum { LOADER_UNKNOWN = 0xff, CMDLINE_MAX = 0xffff, VERSION_MIN = 0x206 };
#define DEFAULT_LOAD 0x100000ull

struct header { /* checked numbers */
    uint16_t version;
    uint64_t setup_bytes, kernel_bytes;
    uint64_t pref_address, alignment, init_bytes; /* init: what the kernel needs from its load address on */
    uint64_t initrd_max, cmdline_max;
    bool relocatable, kernel64;
};

static uint16_t get16(const uint8_t *p, unsigned at)
{
    return (uint16_t)(p[at] | p[at + 1] << 8);
}

static uint32_t get32(const uint8_t *p, unsigned at)
{
    return get16(p, at) | (uint32_t)get16(p, at + 2) << 16;
}

static uint64_t get64(const uint8_t *p, unsigned at)
{
    return get32(p, at) | (uint64_t)get32(p, at + 4) << 32;
}

static void put32(uint8_t *p, unsigned at, uint32_t value)
{
    memcpy(p + at, &value, 4);
}

bool fvm_linux_is_kernel(const struct fvm_boot_image *image)
{
    return image->len >= H_VERSION + 2 && get16(image->bytes, H_BOOT_FLAG) == 0xaa55 &&
           !memcmp(image->bytes + H_MAGIC, "HdrS", 4);
}

static int parse_header(const struct fvm_boot_image *k, struct header *h, struct fvm_err *err)
{
    const uint8_t *b = k->bytes;
    uint64_t told;

    if (k->len < H_END_MAX)
        return fvm_err_set(err, FVM_EBADIMAGE, 0, "firmware", "%s is truncated: it ends inside the setup header",
                           k->path);
    h->version = get16(b, H_VERSION);
    if (h->version < VERSION_MIN)
        return fvm_err_set(err, FVM_EUNSUPPORTED, 0, "firmware",
                           "%s has boot protocol %u.%02u; 2.06 (Linux 2.6.22) or later is needed", k->path,
                           h->version >> 8, h->version & 0xff);
    if (!(b[H_LOADFLAGS] & LOADED_HIGH))
        return fvm_err_set(err, FVM_EUNSUPPORTED, 0, "firmware", "%s is a zImage; only bzImage kernels can be booted",
                           k->path);
    h->setup_bytes = (b[H_SETUP_SECTS] ? b[H_SETUP_SECTS] + 1ull : 5ull) * 512;
    if (h->setup_bytes >= k->len)
        return fvm_err_set(err, FVM_EBADIMAGE, 0, "firmware",
                           "%s is truncated: the kernel begins at byte %" PRIu64 " of %" PRIu64, k->path,
                           h->setup_bytes, k->len);
    h->kernel_bytes = k->len - h->setup_bytes;
    told = h->setup_bytes + (uint64_t)get32(b, H_SYSSIZE) * 16;
    if (k->len < told) /* more is well: a signature may follow */
        return fvm_err_set(err, FVM_EBADIMAGE, 0, "firmware",
                           "%s is truncated: it has %" PRIu64 " bytes and needs %" PRIu64, k->path, k->len, told);
    h->initrd_max = get32(b, H_INITRD_MAX);
    h->cmdline_max = get32(b, H_CMDLINE_SIZE);
    h->alignment = get32(b, H_ALIGNMENT);
    h->relocatable = b[H_RELOCATABLE] != 0;
    h->kernel64 = h->version >= 0x20c && (get16(b, H_XLOADFLAGS) & XLF_KERNEL_64);
    h->pref_address = h->version >= 0x20a ? get64(b, H_PREF_ADDRESS) : DEFAULT_LOAD;
    h->init_bytes = h->version >= 0x20a ? get32(b, H_INIT_SIZE) : h->kernel_bytes * 4; /* no init_size then: a guess */
    if (h->init_bytes < h->kernel_bytes)
        h->init_bytes = h->kernel_bytes;
    if (h->relocatable && (h->alignment == 0 || (h->alignment & (h->alignment - 1))))
        return fvm_err_set(err, FVM_EBADIMAGE, 0, "firmware",
                           "%s: kernel alignment 0x%" PRIx64 " is not a power of two", k->path, h->alignment);
    if (h->kernel64 && h->kernel_bytes <= 0x200)
        return fvm_err_set(err, FVM_EBADIMAGE, 0, "firmware", "%s is truncated: its 64-bit entry is beyond its end",
                           k->path);
    return 0;
}

static bool fits(const struct fvm_ram *ram, uint64_t base, uint64_t len)
{
    return base >= DEFAULT_LOAD && base < ram->low_bytes && len <= ram->low_bytes - base;
}

static int choose_address(const struct fvm_ram *ram, const struct header *h, const char *path, uint64_t *ret_load,
                          struct fvm_err *err)
{
    uint64_t low = h->relocatable ? FVM_ALIGN_UP(DEFAULT_LOAD, h->alignment) : DEFAULT_LOAD;

    if (fits(ram, h->pref_address, h->init_bytes))
        *ret_load = h->pref_address;
    else if (h->relocatable && fits(ram, low, h->init_bytes))
        *ret_load = low;
    else
        return fvm_err_set(err, FVM_EINVAL, 0, "firmware",
                           "%s needs %" PRIu64 " MiB of memory to start, the VM has %" PRIu64
                           " MiB below 4 GiB: give it more",
                           path, (FVM_MIN(low, h->pref_address) + h->init_bytes + 0xfffff) >> 20, ram->low_bytes >> 20);
    return 0;
}

static int put_initrd(struct fvm_ram *ram, const struct header *h, uint64_t kernel_end,
                      const struct fvm_boot_image *initrd, uint8_t *zero_page, struct fvm_err *err)
{
    uint64_t top = FVM_MIN(h->initrd_max + 1, ram->low_bytes);
    uint64_t base;
    int r;

    if (initrd->len > top || FVM_ALIGN_DOWN(top - initrd->len, FVM_PAGE_SIZE) < FVM_ALIGN_UP(kernel_end, FVM_PAGE_SIZE))
        return fvm_err_set(err, FVM_EINVAL, 0, "firmware",
                           "initrd %s (%" PRIu64
                           " KiB) does not fit in memory beside the kernel: give the VM more memory",
                           initrd->path, (initrd->len + 1023) >> 10);
    r = fvm_initrd_check(initrd, err);
    if (r)
        return r;
    base = FVM_ALIGN_DOWN(top - initrd->len, FVM_PAGE_SIZE);
    r = fvm_ram_write(ram, base, initrd->bytes, initrd->len);
    put32(zero_page, H_RAMDISK, (uint32_t)base);
    put32(zero_page, H_RAMDISK_SIZE, (uint32_t)initrd->len);
    return r ? fvm_err_set(err, r, 0, "firmware", "cannot load initrd %s", initrd->path) : 0;
}

static int put_cmdline(struct fvm_ram *ram, const struct header *h, const char *append, uint8_t *zero_page,
                       struct fvm_err *err)
{
    uint64_t len = strlen(append), max = h->cmdline_max ? FVM_MIN(h->cmdline_max, (uint64_t)CMDLINE_MAX) : 255;

    if (len > max)
        return fvm_err_set(err, FVM_EINVAL, 0, "firmware",
                           "the command line has %" PRIu64 " characters, this kernel takes %" PRIu64, len, max);
    put32(zero_page, H_CMDLINE, FVM_BOOT_CMDLINE_GPA);
    return fvm_ram_write(ram, FVM_BOOT_CMDLINE_GPA, append, len + 1);
}

/* The header goes where it was in the file, up to the end that its jump instruction tells. */
static void copy_header(const struct fvm_boot_image *k, uint8_t *zero_page)
{
    uint64_t end = H_MAGIC + (uint64_t)k->bytes[H_JUMP];

    end = FVM_MIN(FVM_MAX(end, (uint64_t)H_CMDLINE_SIZE + 4), (uint64_t)H_END_MAX);
    memcpy(zero_page + Z_HEADER, k->bytes + H_SETUP_SECTS, end - H_SETUP_SECTS);
}

static void fill_memory_map(const struct fvm_ram *ram, uint8_t *zero_page)
{
    struct fvm_e820_entry map[FVM_E820_MAX];
    unsigned count = fvm_e820_build(ram, map);
    uint64_t extended_kib = (ram->low_bytes - 0x100000) >> 10, rsdp = FVM_BOOT_RSDP_GPA;

    for (unsigned i = 0; i < count; i++) { /* 20 bytes each, unlike our struct */
        memcpy(zero_page + Z_E820 + 20 * i, &map[i].base, 8);
        memcpy(zero_page + Z_E820 + 20 * i + 8, &map[i].len, 8);
        memcpy(zero_page + Z_E820 + 20 * i + 16, &map[i].type, 4);
    }
    zero_page[Z_E820_COUNT] = (uint8_t)count;
    put32(zero_page, Z_ALT_MEM_K, (uint32_t)extended_kib);
    zero_page[Z_EXT_MEM_K] = zero_page[Z_EXT_MEM_K + 1] = 0xff;
    memcpy(zero_page + Z_RSDP, &rsdp, sizeof(rsdp));
}

/* What the kernel's real-mode part would have asked the BIOS for: 80x25 colour text, mode 3, on a VGA. */
static void fill_screen(uint8_t *zero_page)
{
    zero_page[Z_VIDEO_MODE] = 3;
    zero_page[Z_VIDEO_COLUMNS] = 80;
    zero_page[Z_VIDEO_LINES] = 25;
    zero_page[Z_VIDEO_IS_VGA] = 1;
    zero_page[Z_VIDEO_POINTS] = 16;
}

static int start_state(struct fvm_ram *ram, const struct header *h, uint64_t load, struct fvm_boot_state *state)
{
    enum { RSP = 4, RSI = 6 };
    int r;

    memset(state, 0, sizeof(*state));
    r = fvm_boot_flat_segments(ram, h->kernel64, state);
    state->regs[RSI] = FVM_BOOT_INFO_GPA;
    state->regs[RSP] = FVM_BOOT_INFO_GPA;
    state->cr0 = 0x33; /* PE MP ET NE */
    state->rip = load;
    if (!h->kernel64 || r)
        return r;
    state->rip = load + 0x200;
    state->cr0 |= 0x80000000ull;
    state->cr4 = 0x20;   /* PAE */
    state->efer = 0x500; /* LME LMA */
    return fvm_boot_identity_tables(ram, state);
}

int fvm_linux_load(struct fvm_ram *ram, const struct fvm_boot_image *kernel, const struct fvm_boot_image *initrd,
                   const char *append, bool vga, struct fvm_boot_state *ret_state, struct fvm_err *err)
{
    uint8_t zero_page[4096] = {0};
    struct header h = {0};
    uint64_t load = 0;
    int r = parse_header(kernel, &h, err);

    if (!r)
        r = choose_address(ram, &h, kernel->path, &load, err);
    if (r)
        return r;
    copy_header(kernel, zero_page);
    zero_page[H_LOADER] = LOADER_UNKNOWN;
    zero_page[H_LOADFLAGS] |= CAN_USE_HEAP;
    zero_page[H_HEAP_END] = 0;
    zero_page[H_HEAP_END + 1] = 0xfe;
    put32(zero_page, H_CODE32, (uint32_t)load);
    put32(zero_page, H_RAMDISK, 0);
    put32(zero_page, H_RAMDISK_SIZE, 0);
    fill_memory_map(ram, zero_page);
    if (vga)
        fill_screen(zero_page);
    r = put_cmdline(ram, &h, append, zero_page, err);
    if (!r && initrd)
        r = put_initrd(ram, &h, load + h.init_bytes, initrd, zero_page, err);
    if (r)
        return r;
    r = fvm_ram_write(ram, load, kernel->bytes + h.setup_bytes, h.kernel_bytes);
    if (!r)
        r = fvm_ram_write(ram, FVM_BOOT_INFO_GPA, zero_page, sizeof(zero_page));
    if (!r)
        r = start_state(ram, &h, load, ret_state);
    return r ? fvm_err_set(err, r, 0, "firmware", "cannot put %s into memory", kernel->path) : 0;
}
