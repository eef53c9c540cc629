/*
 * boot.h - what runs before the guest: load a kernel, build the tables a PC's firmware would leave, say how the
 * processor starts.
 *
 * Low memory, as the loaders use it (all inside RAM):
 *   0x00001000  GDT of the start state          0x00010000  page tables (identity, 2 MiB pages)
 *   0x00007000  zero page / multiboot info      0x00020000  command line, memory map, module list
 *   0x0009fc00  end of usable low RAM           0x000e0000..0x000fffff  ACPI tables, RSDP at 0xf0000
 */
#ifndef FVM_VMM_FIRMWARE_BOOT_H
#define FVM_VMM_FIRMWARE_BOOT_H

#include "base/err.h"
#include "vmm/mem/bus.h"
#include "vmm/mem/ram.h"

#define FVM_BOOT_GDT_GPA 0x1000ull
#define FVM_BOOT_INFO_GPA 0x7000ull
#define FVM_BOOT_PT_GPA 0x10000ull
#define FVM_BOOT_CMDLINE_GPA 0x20000ull
#define FVM_BOOT_TABLES_GPA 0x30000ull /* multiboot: memory map and modules */
#define FVM_BOOT_LOW_END 0x9fc00ull
#define FVM_BOOT_ACPI_GPA 0xe0000ull
#define FVM_BOOT_RSDP_GPA 0xf0000ull
#define FVM_BOOT_SMBIOS_GPA 0xf0100ull
#define FVM_BOOT_ACPI_END 0x100000ull

enum {
    FVM_BOOT_ES,
    FVM_BOOT_CS,
    FVM_BOOT_SS,
    FVM_BOOT_DS,
    FVM_BOOT_FS,
    FVM_BOOT_GS,
    FVM_BOOT_SEGMENTS
}; /* hardware order */

struct fvm_boot_segment { /* as struct fvm_seg: attr = descriptor bits 40..55, limit in bytes */
    uint16_t selector;
    uint16_t attr;
    uint32_t limit;
    uint64_t base;
};

/** Start state of processor 0. What is not here is as after reset; rflags is 2 (interrupts off). */
struct fvm_boot_state {
    uint64_t regs[16]; /* hardware order: rax rcx rdx rbx rsp rbp rsi rdi r8.. */
    uint64_t rip;
    uint64_t cr0, cr3, cr4, efer;
    struct fvm_boot_segment segments[FVM_BOOT_SEGMENTS];
    struct fvm_boot_segment tr; /* a valid busy TSS of limit 0xffff... some kernels run before ltr */
    uint64_t gdt_base;
    uint32_t gdt_limit;
    uint64_t idt_base;
    uint32_t idt_limit;
};

struct fvm_acpi_config;
struct fvm_smbios_config;
struct fvm_boot_options {
    const char *kernel; /* path: bzImage, or a multiboot kernel */
    const char *initrd; /* path or NULL/"". Multiboot: modules as QEMU takes them, "file1 args,file2" */
    const char *append; /* command line or NULL */
    const struct fvm_acpi_config *acpi;
    const struct fvm_smbios_config *smbios; /* NULL: none */
};

/**
 * fvm_boot_load - put kernel, initrd, command line, memory map, ACPI and start-up tables into RAM.
 *
 * Tells a Linux bzImage from a multiboot kernel by its bytes. Every length in the files is hostile.
 *
 * @ret_state set on 0.
 * Returns 0, or a negative code with err->text one line: what is wrong with which file and what would do.
 * Thread: any, before processors run. Test: tests/unit/firmware_linux.c, firmware_multiboot.c
 */
int fvm_boot_load(struct fvm_ram *ram, const struct fvm_boot_options *options, struct fvm_boot_state *ret_state,
                  struct fvm_err *err);

/* ---- seabios.c: firmware instead of a kernel ---- */
/** Debian's package seabios has it: what "seabios" stands for. */
#define FVM_FIRMWARE_SEABIOS "/usr/share/seabios/bios-256k.bin"
struct fvm_firmware;
/**
 * fvm_firmware_open - put a ROM image below 4 GiB, and give it its debug port.
 *
 * @path  a file of n * 64 KiB whose last 16 bytes are the reset vector. The file is hostile.
 * @bus, @ram  borrowed; no processor was made yet.
 * Returns 0, or a negative code with one line in err.
 */
int fvm_firmware_open(const char *path, struct fvm_bus *bus, struct fvm_ram *ram, struct fvm_firmware **ret_firmware,
                      struct fvm_err *err);
void fvm_firmware_close(struct fvm_firmware **firmware_p);
/** At every boot and reset: the copy below 1 MiB, and how processor 0 starts. */
int fvm_firmware_load(const struct fvm_firmware *firmware, struct fvm_ram *ram, struct fvm_boot_state *ret_state,
                      struct fvm_err *err);

/* ---- image.c: a file in memory, read only ---- */
struct fvm_boot_image {
    const uint8_t *bytes;
    uint64_t len;
    const char *path; /* borrowed, for messages */
};
int fvm_boot_image_open(const char *path, struct fvm_boot_image *ret_image, struct fvm_err *err);
void fvm_boot_image_close(struct fvm_boot_image *image);
/** What a file that is no kernel looks like: "a gzip file", "an ELF file without a multiboot header"... Never NULL. */
const char *fvm_boot_image_guess(const struct fvm_boot_image *image);

/**
 * fvm_initrd_check - refuse an initrd that visibly ends too early: a cpio archive cut inside an entry, an xz file
 * without its footer. What it does not know (other compressions, disk images) passes: the guest's kernel judges it.
 *
 * Returns 0 or FVM_EBADIMAGE with err filled. Pure. Test: tests/unit/firmware_linux.c
 */
int fvm_initrd_check(const struct fvm_boot_image *initrd, struct fvm_err *err);

/* ---- linux_boot.c, multiboot.c: one loader each ---- */
bool fvm_linux_is_kernel(const struct fvm_boot_image *image);
int fvm_linux_load(struct fvm_ram *ram, const struct fvm_boot_image *kernel, const struct fvm_boot_image *initrd,
                   const char *append, bool vga, struct fvm_boot_state *ret_state, struct fvm_err *err);
bool fvm_multiboot_is_kernel(const struct fvm_boot_image *image);
enum { FVM_MULTIBOOT_MODULES_MAX = 16 };
struct fvm_boot_module {
    struct fvm_boot_image image;
    const char *text; /* path and arguments, as the guest reads it; borrowed */
};
int fvm_multiboot_load(struct fvm_ram *ram, const struct fvm_boot_image *kernel, const struct fvm_boot_module *modules,
                       unsigned module_count, const char *append, struct fvm_boot_state *ret_state,
                       struct fvm_err *err);

/* ---- boot.c: parts of the start state that loaders share ---- */
/** Write a GDT with flat code at 0x10 (64 or 32 bits), data at 0x18 and a TSS at 0x20; fill segments, tr and gdt of
 * *state. */
int fvm_boot_flat_segments(struct fvm_ram *ram, bool code64, struct fvm_boot_state *state);
/** The tables of the first 4 GiB, identity, 2 MiB pages; sets cr3. */
int fvm_boot_identity_tables(struct fvm_ram *ram, struct fvm_boot_state *state);

/* ---- e820.c ---- */
enum { FVM_E820_RAM = 1, FVM_E820_RESERVED = 2, FVM_E820_ACPI = 3 };
enum { FVM_E820_MAX = 16 };
struct fvm_e820_entry {
    uint64_t base, len;
    uint32_t type;
};
/** Ascending, not overlapping; returns the count. */
unsigned fvm_e820_build(const struct fvm_ram *ram, struct fvm_e820_entry ret_map[FVM_E820_MAX]);

/* ---- acpi.c ---- */
struct fvm_acpi_config {
    unsigned cpu_count;
    bool hpet; /* the full PC has one */
    uint64_t pci_mmio64_base, pci_mmio64_bytes; /* bytes 0: no 64-bit window */
    bool vga;
};
enum { FVM_ACPI_POINTERS_MAX = 32, FVM_ACPI_TABLES_MAX = 16, FVM_ACPI_RSDP_BYTES = 36 };
struct fvm_acpi_part {
    uint32_t at, len;
};
struct fvm_acpi_blob { /* all tables, 64-byte aligned, to be put anywhere below 4 GiB */
    uint8_t *bytes; /* malloc'd */
    size_t len;
    uint8_t rsdp[FVM_ACPI_RSDP_BYTES]; /* its pointers: 16 (4 bytes) and 24 (8 bytes) */
    struct fvm_acpi_part pointer[FVM_ACPI_POINTERS_MAX]; /* len 4 or 8: hold offsets into bytes */
    unsigned pointer_count;
    struct fvm_acpi_part table[FVM_ACPI_TABLES_MAX]; /* with a checksum at offset 9 */
    unsigned table_count;
};
/** RSDP, RSDT, XSDT, FADT, FACS, MADT, DSDT, and HPET if there is one. FVM_ENOMEM. */
int fvm_acpi_build(const struct fvm_acpi_config *config, struct fvm_acpi_blob *ret_blob);
void fvm_acpi_blob_fini(struct fvm_acpi_blob *blob);
/**
 * fvm_acpi_loader - the commands by which firmware puts the blob into memory (QEMU's "etc/table-loader"): the files are
 * "etc/acpi/tables" (blob->bytes) and "etc/acpi/rsdp". *ret malloc'd.
 */
int fvm_acpi_loader(const struct fvm_acpi_blob *blob, uint8_t **ret, size_t *ret_len);
/** Write the tables into the ACPI area. */
int fvm_acpi_install(struct fvm_ram *ram, const struct fvm_acpi_config *config, struct fvm_err *err);

/* ---- smbios.c ---- */
struct fvm_smbios_config {
    const char *product; /* "pc", "virtio" */
    const char *version;
    uint8_t uuid[16];
    unsigned cpu_count;
    uint64_t memory_bytes;
};
struct fvm_smbios {
    uint8_t anchor[31]; /* SMBIOS 2.8 entry point, with a table address of 0 */
    uint8_t *tables;    /* malloc'd */
    size_t len;
};
/** System, enclosure, processors, memory. FVM_ENOMEM. */
int fvm_smbios_build(const struct fvm_smbios_config *config, struct fvm_smbios *ret);
void fvm_smbios_fini(struct fvm_smbios *s);
/** Put the entry point at FVM_BOOT_SMBIOS_GPA and the tables behind it. */
int fvm_smbios_install(struct fvm_ram *ram, const struct fvm_smbios_config *config, struct fvm_err *err);

#endif
