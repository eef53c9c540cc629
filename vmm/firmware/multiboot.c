/*
 * multiboot.c - load a multiboot (version 1, 0.6.96) kernel: ELF, or flat with the header's address fields; modules,
 * memory map, command line. Entry is 32-bit protected mode, paging off, EAX = 2BADB002, EBX = information structure.
 *
 *   RAM: info 7000, command line 20000, module list and memory map 30000, kernel where it says, modules after it
 *
 * Invariant: nothing of the kernel may lie where our own structures lie, so loading order does not matter.
 */
#include <elf.h>
#include <inttypes.h>
#include <string.h>

#include "vmm/firmware/boot.h"

enum { SEARCH_BYTES = 8192, HEADER_BYTES = 12, ADDRESS_BYTES = 32 };
#define MAGIC 0x1badb002u
#define MAGIC_LOADED 0x2badb002u
#define FLAG_ADDRESSES 0x10000u
#define FLAGS_REQUIRED_KNOWN 0x7u /* page aligned modules, memory, video (which we ignore) */
enum { INFO_MEMORY = 0x1, INFO_CMDLINE = 0x4, INFO_MODULES = 0x8, INFO_MMAP = 0x40, INFO_LOADER = 0x200 };
#define OURS_END 0x40000ull
#define ACPI_USED_END (FVM_BOOT_RSDP_GPA + FVM_PAGE_SIZE) /* linkers put ELF headers at ff000 when text is at 1 MiB */
#define STRINGS_GPA 0x32000ull

struct info { /* as the guest reads it */
    uint32_t flags, mem_lower, mem_upper, boot_device, cmdline, mods_count, mods_addr, syms[4], mmap_length, mmap_addr,
        drives_length, drives_addr, config_table, boot_loader_name, apm_table, vbe[4], pad[7];
};
struct mmap_entry {
    uint32_t size;
    uint64_t base, len;
    uint32_t type;
} __attribute__((packed));
struct module_entry {
    uint32_t start, end, string, reserved;
};

struct loader {
    struct fvm_ram *ram;
    const struct fvm_boot_image *kernel;
    struct fvm_err *err;
    uint64_t end;   /* first byte after the kernel */
    uint64_t entry;
};

static uint32_t get32(const uint8_t *p, uint64_t at)
{
    uint32_t v;

    memcpy(&v, p + at, sizeof(v));
    return v;
}

static bool find_header(const struct fvm_boot_image *image, uint64_t *ret_at)
{
    uint64_t end = FVM_MIN(image->len, (uint64_t)SEARCH_BYTES);

    for (uint64_t at = 0; at + HEADER_BYTES <= end; at += 4)
        if (get32(image->bytes, at) == MAGIC &&
            get32(image->bytes, at) + get32(image->bytes, at + 4) + get32(image->bytes, at + 8) == 0) {
            *ret_at = at;
            return true;
        }
    return false;
}

bool fvm_multiboot_is_kernel(const struct fvm_boot_image *image)
{
    uint64_t at;

    return find_header(image, &at);
}

static int bad(const struct loader *l, const char *what)
{
    return fvm_err_set(l->err, FVM_EBADIMAGE, 0, "firmware", "multiboot kernel %s: %s", l->kernel->path, what);
}

/* Copy file bytes [from, from + len) to gpa and clear up to gpa + mem_len. */
static int put_segment(struct loader *l, uint64_t gpa, uint64_t from, uint64_t len, uint64_t mem_len)
{
    uint8_t *to;

    if (mem_len < len)
        return bad(l, "a segment has more bytes in the file than in memory");
    if (mem_len == 0)
        return 0;
    if (from > l->kernel->len || len > l->kernel->len - from)
        return bad(l, "truncated: a segment lies beyond the end of the file");
    if ((gpa < OURS_END && gpa + mem_len > FVM_BOOT_GDT_GPA) ||
        (gpa < ACPI_USED_END && gpa + mem_len > FVM_BOOT_ACPI_GPA))
        return bad(l, "a segment lies below 256 KiB or over the ACPI tables, where boot information goes");
    to = gpa < FVM_RAM_HIGH_BASE ? fvm_ram_map(l->ram, gpa, mem_len) : NULL;
    if (!to)
        return fvm_err_set(l->err, FVM_EINVAL, 0, "firmware",
                           "multiboot kernel %s wants %" PRIu64 " KiB at 0x%" PRIx64
                           ": the VM has no memory there, give it more",
                           l->kernel->path, (mem_len + 1023) >> 10, gpa);
    memcpy(to, l->kernel->bytes + from, len);
    memset(to + len, 0, mem_len - len);
    fvm_ram_mark_written(l->ram, gpa, mem_len);
    l->end = FVM_MAX(l->end, gpa + mem_len);
    return 0;
}

static int load_flat(struct loader *l, uint64_t header_at)
{
    const uint8_t *h = l->kernel->bytes + header_at;
    uint64_t header_addr, load, load_end, bss_end, from, len;

    if (l->kernel->len - header_at < ADDRESS_BYTES)
        return bad(l, "truncated: the header's address fields are missing");
    header_addr = get32(h, 12);
    load = get32(h, 16);
    load_end = get32(h, 20);
    bss_end = get32(h, 24);
    l->entry = get32(h, 28);
    if (load > header_addr || header_addr - load > header_at)
        return bad(l, "load address and header address do not fit the file");
    from = header_at - (header_addr - load);
    len = load_end ? load_end - load : l->kernel->len - from;
    if (load_end && load_end < load)
        return bad(l, "load end lies before load address");
    if (bss_end && bss_end < load + len)
        return bad(l, "bss end lies before load end");
    return put_segment(l, load, from, len, bss_end ? bss_end - load : len);
}

static int load_elf32(struct loader *l)
{
    Elf32_Ehdr e;
    int r = 0;

    if (l->kernel->len < sizeof(e))
        return bad(l, "truncated ELF header");
    memcpy(&e, l->kernel->bytes, sizeof(e));
    if (e.e_machine != EM_386 || e.e_phentsize != sizeof(Elf32_Phdr))
        return bad(l, "not an i386 ELF program");
    if (e.e_phoff > l->kernel->len || (uint64_t)e.e_phnum * sizeof(Elf32_Phdr) > l->kernel->len - e.e_phoff)
        return bad(l, "truncated: program headers lie beyond the end of the file");
    l->entry = e.e_entry;
    for (unsigned i = 0; !r && i < e.e_phnum; i++) {
        Elf32_Phdr p;

        memcpy(&p, l->kernel->bytes + e.e_phoff + i * sizeof(p), sizeof(p));
        if (p.p_type != PT_LOAD)
            continue;
        if (e.e_entry >= p.p_vaddr && e.e_entry - p.p_vaddr < p.p_memsz)
            l->entry = (uint64_t)e.e_entry - p.p_vaddr + p.p_paddr; /* entered without paging */
        r = put_segment(l, p.p_paddr, p.p_offset, p.p_filesz, p.p_memsz);
    }
    return r;
}

static int load_elf64(struct loader *l)
{
    Elf64_Ehdr e;
    int r = 0;

    if (l->kernel->len < sizeof(e))
        return bad(l, "truncated ELF header");
    memcpy(&e, l->kernel->bytes, sizeof(e));
    if (e.e_machine != EM_X86_64 || e.e_phentsize != sizeof(Elf64_Phdr))
        return bad(l, "not an x86-64 ELF program");
    if (e.e_phoff > l->kernel->len || (uint64_t)e.e_phnum * sizeof(Elf64_Phdr) > l->kernel->len - e.e_phoff)
        return bad(l, "truncated: program headers lie beyond the end of the file");
    l->entry = e.e_entry;
    for (unsigned i = 0; !r && i < e.e_phnum; i++) {
        Elf64_Phdr p;

        memcpy(&p, l->kernel->bytes + e.e_phoff + i * sizeof(p), sizeof(p));
        if (p.p_type != PT_LOAD)
            continue;
        if (p.p_paddr >= FVM_RAM_HIGH_BASE || p.p_memsz >= FVM_RAM_HIGH_BASE)
            return bad(l, "a segment lies above 4 GiB");
        if (e.e_entry >= p.p_vaddr && e.e_entry - p.p_vaddr < p.p_memsz)
            l->entry = e.e_entry - p.p_vaddr + p.p_paddr;
        r = put_segment(l, p.p_paddr, p.p_offset, p.p_filesz, p.p_memsz);
    }
    return r;
}

static int load_kernel(struct loader *l)
{
    const uint8_t *b = l->kernel->bytes;
    uint64_t at = 0;
    int r;

    fvm_assert(find_header(l->kernel, &at));
    if (get32(b, at + 4) & 0xffff & ~FLAGS_REQUIRED_KNOWN)
        return bad(l, "its header requires a feature that is not known");
    if (get32(b, at + 4) & FLAG_ADDRESSES)
        r = load_flat(l, at);
    else if (memcmp(b, "\177ELF", 4) != 0)
        return bad(l, "neither ELF nor a header with load addresses");
    else
        r = l->kernel->len > EI_CLASS && b[EI_CLASS] == ELFCLASS64 ? load_elf64(l) : load_elf32(l);
    if (!r && (l->end == 0 || l->entry >= FVM_RAM_HIGH_BASE || !fvm_ram_contains(l->ram, l->entry, 1)))
        return bad(l, "nothing to load, or the entry point is not in memory");
    return r;
}

static int put_modules(struct loader *l, const struct fvm_boot_module *modules, unsigned count, struct info *info)
{
    struct module_entry list[FVM_MULTIBOOT_MODULES_MAX];
    uint64_t at = FVM_ALIGN_UP(FVM_MAX(l->end, 0x100000ull), FVM_PAGE_SIZE), string = STRINGS_GPA;
    int r = 0;

    for (unsigned i = 0; !r && i < count; i++) {
        uint64_t len = modules[i].image.len, text = strlen(modules[i].text) + 1;

        if (string + text > OURS_END)
            return bad(l, "the modules' command lines are too long");
        if (!fvm_ram_contains(l->ram, at, len) || at + len > l->ram->low_bytes)
            return fvm_err_set(l->err, FVM_EINVAL, 0, "firmware",
                               "module %s (%" PRIu64 " KiB) does not fit in memory: give the VM more", modules[i].text,
                               (len + 1023) >> 10);
        list[i] = (struct module_entry){.start = (uint32_t)at, .end = (uint32_t)(at + len), .string = (uint32_t)string};
        r = fvm_ram_write(l->ram, at, modules[i].image.bytes, len);
        if (!r)
            r = fvm_ram_write(l->ram, string, modules[i].text, text);
        string += text;
        at = FVM_ALIGN_UP(at + len, FVM_PAGE_SIZE);
    }
    if (!r && count)
        r = fvm_ram_write(l->ram, FVM_BOOT_TABLES_GPA, list, count * sizeof(list[0]));
    info->flags |= INFO_MODULES;
    info->mods_count = count;
    info->mods_addr = FVM_BOOT_TABLES_GPA;
    return r;
}

static int put_memory_map(struct fvm_ram *ram, struct info *info)
{
    struct fvm_e820_entry map[FVM_E820_MAX];
    struct mmap_entry entries[FVM_E820_MAX];
    unsigned count = fvm_e820_build(ram, map);

    for (unsigned i = 0; i < count; i++)
        entries[i] = (struct mmap_entry){.size = 20, .base = map[i].base, .len = map[i].len, .type = map[i].type};
    info->flags |= INFO_MEMORY | INFO_MMAP;
    info->mem_lower = (uint32_t)(FVM_BOOT_LOW_END >> 10);
    info->mem_upper = (uint32_t)((ram->low_bytes - 0x100000) >> 10);
    info->mmap_length = count * (uint32_t)sizeof(entries[0]);
    info->mmap_addr = FVM_BOOT_TABLES_GPA + 0x1000;
    return fvm_ram_write(ram, info->mmap_addr, entries, info->mmap_length);
}

/* "kernel-file arguments", then the loader's name. */
static int put_strings(struct loader *l, const char *append, struct info *info)
{
    static const char name[] = "fvm";
    uint64_t path = strlen(l->kernel->path), args = strlen(append), at = FVM_BOOT_CMDLINE_GPA;
    int r;

    if (path + args + 2 + sizeof(name) > FVM_BOOT_TABLES_GPA - FVM_BOOT_CMDLINE_GPA)
        return bad(l, "the command line is longer than 64 KiB");
    r = fvm_ram_write(l->ram, at, l->kernel->path, path + 1);
    if (!r && args) {
        r = fvm_ram_write(l->ram, at + path, " ", 1);
        r = r ? r : fvm_ram_write(l->ram, at + path + 1, append, args + 1);
    }
    info->cmdline = (uint32_t)at;
    info->boot_loader_name = (uint32_t)(at + path + args + 2);
    info->flags |= INFO_CMDLINE | INFO_LOADER;
    return r ? r : fvm_ram_write(l->ram, info->boot_loader_name, name, sizeof(name));
}

int fvm_multiboot_load(struct fvm_ram *ram, const struct fvm_boot_image *kernel, const struct fvm_boot_module *modules,
                       unsigned module_count, const char *append, struct fvm_boot_state *ret_state, struct fvm_err *err)
{
    enum { RAX = 0, RBX = 3 };
    struct loader l = {.ram = ram, .kernel = kernel, .err = err};
    struct info info = {0};
    int r = load_kernel(&l);

    if (!r)
        r = put_modules(&l, modules, module_count, &info);
    if (!r)
        r = put_strings(&l, append, &info);
    if (r)
        return r;
    memset(ret_state, 0, sizeof(*ret_state));
    r = put_memory_map(ram, &info);
    if (!r)
        r = fvm_ram_write(ram, FVM_BOOT_INFO_GPA, &info, sizeof(info));
    if (!r)
        r = fvm_boot_flat_segments(ram, false, ret_state);
    if (r)
        return bad(&l, "cannot put the boot information into memory");
    ret_state->regs[RAX] = MAGIC_LOADED;
    ret_state->regs[RBX] = FVM_BOOT_INFO_GPA;
    ret_state->rip = l.entry;
    ret_state->cr0 = 0x11; /* PE ET */
    return 0;
}
