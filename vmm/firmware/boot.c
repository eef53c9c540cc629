/*
 * boot.c - from files to a machine that can start: picks the loader, installs the ACPI tables, and builds the parts
 * of the start state that all loaders share (descriptor table, identity page tables).
 */
#include "vmm/firmware/boot.h"

#include <stdlib.h>
#include <string.h>

#define ATTR_CODE64 0xa09b
#define ATTR_CODE32 0xc09b
#define ATTR_DATA 0xc093
#define ATTR_TSS_BUSY 0x008b
#define MEMORY_MIN (4ull << 20)

static uint64_t descriptor(uint16_t attr, uint32_t limit_units)
{
    return (limit_units & 0xffff) | (uint64_t)(attr & 0xff) << 40 | (uint64_t)((limit_units >> 16) & 0xf) << 48 |
           (uint64_t)(attr >> 12) << 52;
}

int fvm_boot_flat_segments(struct fvm_ram *ram, bool code64, struct fvm_boot_state *state)
{
    uint16_t code = code64 ? ATTR_CODE64 : ATTR_CODE32;
    uint64_t gdt[6] = {
        0, 0, descriptor(code, 0xfffff), descriptor(ATTR_DATA, 0xfffff), descriptor(ATTR_TSS_BUSY, 0xffff), 0};

    for (unsigned i = 0; i < FVM_BOOT_SEGMENTS; i++)
        state->segments[i] = (struct fvm_boot_segment){.selector = 0x18, .attr = ATTR_DATA, .limit = UINT32_MAX};
    state->segments[FVM_BOOT_CS] = (struct fvm_boot_segment){.selector = 0x10, .attr = code, .limit = UINT32_MAX};
    state->tr = (struct fvm_boot_segment){.selector = 0x20, .attr = ATTR_TSS_BUSY, .limit = 0xffff};
    state->gdt_base = FVM_BOOT_GDT_GPA;
    state->gdt_limit = sizeof(gdt) - 1;
    return fvm_ram_write(ram, FVM_BOOT_GDT_GPA, gdt, sizeof(gdt));
}

int fvm_boot_identity_tables(struct fvm_ram *ram, struct fvm_boot_state *state)
{
    enum { PRESENT_WRITE = 3, LARGE = 0x80, DIRECTORIES = 4 };
    uint64_t table[512] = {FVM_BOOT_PT_GPA + FVM_PAGE_SIZE + PRESENT_WRITE};
    int r = fvm_ram_write(ram, FVM_BOOT_PT_GPA, table, sizeof(table));

    memset(table, 0, sizeof(table));
    for (uint64_t i = 0; i < DIRECTORIES; i++)
        table[i] = FVM_BOOT_PT_GPA + (2 + i) * FVM_PAGE_SIZE + PRESENT_WRITE;
    if (!r)
        r = fvm_ram_write(ram, FVM_BOOT_PT_GPA + FVM_PAGE_SIZE, table, sizeof(table));
    for (uint64_t i = 0; !r && i < DIRECTORIES; i++) {
        for (uint64_t k = 0; k < 512; k++)
            table[k] = ((i << 9 | k) << 21) | LARGE | PRESENT_WRITE;
        r = fvm_ram_write(ram, FVM_BOOT_PT_GPA + (2 + i) * FVM_PAGE_SIZE, table, sizeof(table));
    }
    state->cr3 = FVM_BOOT_PT_GPA;
    return r;
}

static int load_linux(struct fvm_ram *ram, const struct fvm_boot_options *o, const struct fvm_boot_image *kernel,
                      struct fvm_boot_state *ret_state, struct fvm_err *err)
{
    struct fvm_boot_image initrd = {0};
    bool has_initrd = o->initrd && o->initrd[0];
    int r = has_initrd ? fvm_boot_image_open(o->initrd, &initrd, err) : 0;

    if (!r)
        r = fvm_linux_load(ram, kernel, has_initrd ? &initrd : NULL, o->append ? o->append : "", o->acpi->vga, ret_state,
                           err);
    fvm_boot_image_close(&initrd);
    return r;
}

/* "file1 args,file2": opens each; *text is cut into the modules' strings. */
static int open_modules(char *text, struct fvm_boot_module *modules, unsigned *count, struct fvm_err *err)
{
    char *rest = text, *item;

    while ((item = strsep(&rest, ",")) != NULL) {
        char path[4096];
        size_t len = strcspn(item, " ");
        int r;

        if (len == 0)
            continue;
        if (*count == FVM_MULTIBOOT_MODULES_MAX)
            return fvm_err_set(err, FVM_EINVAL, 0, "firmware", "more than %d multiboot modules",
                               FVM_MULTIBOOT_MODULES_MAX);
        if (len >= sizeof(path))
            return fvm_err_set(err, FVM_EINVAL, 0, "firmware", "the path of multiboot module %u is too long",
                               *count + 1);
        memcpy(path, item, len);
        path[len] = 0;
        r = fvm_boot_image_open(path, &modules[*count].image, err);
        if (r)
            return r;
        modules[*count].image.path = item;
        modules[(*count)++].text = item;
    }
    return 0;
}

static int load_multiboot(struct fvm_ram *ram, const struct fvm_boot_options *o, const struct fvm_boot_image *kernel,
                          struct fvm_boot_state *ret_state, struct fvm_err *err)
{
    struct fvm_boot_module modules[FVM_MULTIBOOT_MODULES_MAX];
    char *text = strdup(o->initrd ? o->initrd : "");
    unsigned count = 0;
    int r;

    if (!text)
        return fvm_err_set(err, FVM_ENOMEM, 0, "firmware", "out of memory");
    r = open_modules(text, modules, &count, err);
    if (!r)
        r = fvm_multiboot_load(ram, kernel, modules, count, o->append ? o->append : "", ret_state, err);
    for (unsigned i = 0; i < count; i++)
        fvm_boot_image_close(&modules[i].image);
    free(text);
    return r;
}

int fvm_boot_load(struct fvm_ram *ram, const struct fvm_boot_options *options, struct fvm_boot_state *ret_state,
                  struct fvm_err *err)
{
    struct fvm_boot_image kernel;
    int r;

    if (!options->kernel || !options->kernel[0])
        return fvm_err_set(err, FVM_EINVAL, 0, "firmware",
                           "no kernel given: --kernel FILE (a bzImage or a multiboot kernel)");
    if (ram->low_bytes < MEMORY_MIN)
        return fvm_err_set(err, FVM_EINVAL, 0, "firmware",
                           "%llu KiB of memory is too little to boot: give at least %llu MiB",
                           (unsigned long long)(ram->low_bytes >> 10), MEMORY_MIN >> 20);
    r = fvm_boot_image_open(options->kernel, &kernel, err);
    if (r)
        return r;
    r = fvm_acpi_install(ram, options->acpi, err);
    if (!r && options->smbios)
        r = fvm_smbios_install(ram, options->smbios, err);
    if (r)
        ;
    else if (fvm_linux_is_kernel(&kernel))
        r = load_linux(ram, options, &kernel, ret_state, err);
    else if (fvm_multiboot_is_kernel(&kernel))
        r = load_multiboot(ram, options, &kernel, ret_state, err);
    else
        r = fvm_err_set(err, FVM_EBADIMAGE, 0, "firmware",
                        "%s is not a kernel this program can boot (bzImage or multiboot): it looks like %s",
                        options->kernel, fvm_boot_image_guess(&kernel));
    fvm_boot_image_close(&kernel);
    return r;
}
