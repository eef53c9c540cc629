/* firmware/multiboot: flat and ELF kernels, the information structure, modules, refusals, hostile files. */
#include <CUnit/Basic.h>
#include <elf.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "vmm/firmware/boot.h"

enum { FILE_BYTES = 16384 };

static uint8_t file[FILE_BYTES];
static struct fvm_ram *ram;

static void put32(unsigned at, uint32_t value)
{
    memcpy(file + at, &value, 4);
}

static void header(unsigned at, uint32_t flags)
{
    put32(at, 0x1badb002);
    put32(at + 4, flags);
    put32(at + 8, 0u - 0x1badb002u - flags);
}

static void make_flat(void)
{
    for (unsigned i = 0; i < FILE_BYTES; i++)
        file[i] = (uint8_t)(i * 3);
    header(64, 0x10003);
    put32(64 + 12, 0x100040); /* header address: file offset 0 is at 1 MiB */
    put32(64 + 16, 0x100000);
    put32(64 + 20, 0x102000);
    put32(64 + 24, 0x103000); /* 4 KiB of bss */
    put32(64 + 28, 0x100100);
}

static void make_elf32(void)
{
    Elf32_Ehdr e = {.e_ident = "\177ELF\1\1\1",
                    .e_type = ET_EXEC,
                    .e_machine = EM_386,
                    .e_version = 1,
                    .e_entry = 0xc0200010,
                    .e_phoff = sizeof(e),
                    .e_ehsize = sizeof(e),
                    .e_phentsize = sizeof(Elf32_Phdr),
                    .e_phnum = 2};
    Elf32_Phdr p[2] = {{.p_type = PT_LOAD,
                        .p_offset = 0x1000,
                        .p_vaddr = 0xc0200000,
                        .p_paddr = 0x200000,
                        .p_filesz = 0x1000,
                        .p_memsz = 0x3000},
                       {.p_type = PT_NOTE, .p_offset = 0xffffff00, .p_filesz = 0xffffffff}};

    memset(file, 0xab, sizeof(file));
    memcpy(file, &e, sizeof(e));
    memcpy(file + sizeof(e), p, sizeof(p));
    header(0x1000, 0x3);
}

static void make_elf64(void)
{
    Elf64_Ehdr e = {.e_ident = "\177ELF\2\1\1",
                    .e_type = ET_EXEC,
                    .e_machine = EM_X86_64,
                    .e_version = 1,
                    .e_entry = 0x200020,
                    .e_phoff = sizeof(e),
                    .e_ehsize = sizeof(e),
                    .e_phentsize = sizeof(Elf64_Phdr),
                    .e_phnum = 1};
    Elf64_Phdr p = {.p_type = PT_LOAD, .p_offset = 0x1000, .p_vaddr = 0x200000, .p_paddr = 0x200000, .p_filesz = 0x1000,
                    .p_memsz = 0x1000};

    memset(file, 0xcd, sizeof(file));
    memcpy(file, &e, sizeof(e));
    memcpy(file + sizeof(e), &p, sizeof(p));
    header(0x1000, 0);
}

static int load(const struct fvm_boot_module *modules, unsigned count, const char *append, struct fvm_boot_state *s,
                struct fvm_err *err)
{
    struct fvm_boot_image k = {.bytes = file, .len = sizeof(file), .path = "kernel.elf"};

    memset(err, 0, sizeof(*err));
    fvm_ram_destroy(&ram);
    CU_ASSERT_EQUAL_FATAL(fvm_ram_create(16 << 20, &ram, NULL), 0);
    memset(fvm_ram_hva(ram, 0x100000), 0xee, 0x400000); /* stale contents: bss must be cleared */
    CU_ASSERT_TRUE_FATAL(fvm_multiboot_is_kernel(&k));
    return fvm_multiboot_load(ram, &k, modules, count, append, s, err);
}

static uint32_t get(uint64_t gpa)
{
    uint32_t v = 0;

    CU_ASSERT_EQUAL_FATAL(fvm_ram_read(ram, gpa, &v, 4), 0);
    return v;
}

static void test_flat(void)
{
    struct fvm_boot_state s;
    struct fvm_err err;

    make_flat();
    CU_ASSERT_EQUAL_FATAL(load(NULL, 0, "", &s, &err), 0);
    CU_ASSERT_EQUAL(s.rip, 0x100100);
    CU_ASSERT_EQUAL(s.regs[0], 0x2badb002);
    CU_ASSERT_EQUAL(s.regs[3], FVM_BOOT_INFO_GPA);
    CU_ASSERT_EQUAL(s.cr0 & 0x80000001, 1);
    CU_ASSERT_EQUAL(s.segments[FVM_BOOT_CS].attr, 0xc09b);
    CU_ASSERT(!memcmp(fvm_ram_hva(ram, 0x100000), file, 0x2000));
    CU_ASSERT_EQUAL(get(0x102000), 0);
    CU_ASSERT_EQUAL(get(0x102ffc), 0);
    CU_ASSERT_EQUAL(get(0x103000), 0xeeeeeeee);
}

static void test_elf(void)
{
    struct fvm_boot_state s;
    struct fvm_err err;

    make_elf32();
    CU_ASSERT_EQUAL_FATAL(load(NULL, 0, "", &s, &err), 0);
    CU_ASSERT_EQUAL(s.rip, 0x200010); /* entry is a linked address: entered at its physical one */
    CU_ASSERT_EQUAL(get(0x200000), 0x1badb002);
    CU_ASSERT_EQUAL(get(0x201000), 0);
    make_elf64();
    CU_ASSERT_EQUAL_FATAL(load(NULL, 0, "", &s, &err), 0);
    CU_ASSERT_EQUAL(s.rip, 0x200020);
    CU_ASSERT_EQUAL(s.efer, 0);
}

static void test_info(void)
{
    struct fvm_boot_module modules[2] = {
        {.image = {.bytes = file, .len = 5000, .path = "m"}, .text = "one args"},
        {.image = {.bytes = file + 7, .len = 100, .path = "m"}, .text = "two"},
    };
    struct fvm_boot_state s;
    struct fvm_err err;
    uint64_t info = FVM_BOOT_INFO_GPA, list, mmap, end, ram_bytes = 0;

    make_elf32();
    CU_ASSERT_EQUAL_FATAL(load(modules, 2, "debug=1", &s, &err), 0);
    CU_ASSERT_EQUAL(get(info) & 0x24d, 0x24d);
    CU_ASSERT_EQUAL(get(info + 4), 639);
    CU_ASSERT_EQUAL(get(info + 8), 15 * 1024);
    CU_ASSERT(!strcmp((char *)fvm_ram_hva(ram, get(info + 16)), "kernel.elf debug=1"));
    CU_ASSERT(!strcmp((char *)fvm_ram_hva(ram, get(info + 64)), "fvm"));
    CU_ASSERT_EQUAL(get(info + 20), 2);
    list = get(info + 24);
    CU_ASSERT_EQUAL(get(list) % 4096, 0);
    CU_ASSERT(get(list) >= 0x203000);
    CU_ASSERT_EQUAL(get(list + 4) - get(list), 5000);
    CU_ASSERT(!memcmp(fvm_ram_hva(ram, get(list)), file, 5000));
    CU_ASSERT(!strcmp((char *)fvm_ram_hva(ram, get(list + 8)), "one args"));
    CU_ASSERT(get(list + 16) >= get(list + 4));
    CU_ASSERT(!strcmp((char *)fvm_ram_hva(ram, get(list + 24)), "two"));
    mmap = get(info + 48);
    end = mmap + get(info + 44);
    while (mmap < end) {
        if (get(mmap + 20) == 1)
            ram_bytes += get(mmap + 12);
        mmap += get(mmap) + 4;
    }
    CU_ASSERT_EQUAL(ram_bytes, (15 << 20) + FVM_BOOT_LOW_END);
}

static void refused(int r, const struct fvm_err *err, const char *word)
{
    CU_ASSERT(r < 0);
    if (!strstr(err->text, word))
        printf("\"%s\" does not say \"%s\"\n", err->text, word);
    CU_ASSERT(strstr(err->text, word) != NULL);
}

static void test_refusals(void)
{
    struct fvm_boot_module big = {.image = {.bytes = file, .len = 15 << 20, .path = "m"}, .text = "big"};
    struct fvm_boot_state s;
    struct fvm_err err;

    make_elf32();
    refused(load(&big, 1, "", &s, &err), &err, "does not fit");
    put32(0x34 + 12, 0x8000000); /* physical address beyond memory */
    refused(load(NULL, 0, "", &s, &err), &err, "no memory there");
    make_elf32();
    put32(0x34 + 12, 0x7000);
    refused(load(NULL, 0, "", &s, &err), &err, "below 256 KiB");
    make_elf32();
    put32(0x34 + 16, 0xffffff);
    refused(load(NULL, 0, "", &s, &err), &err, "more bytes");
    make_elf32();
    put32(0x1c, 0xfffffff0);
    refused(load(NULL, 0, "", &s, &err), &err, "truncated");
    make_elf32();
    header(0x1000, 0x13);
    refused(load(NULL, 0, "", &s, &err), &err, "feature");
    make_flat();
    put32(64 + 12, 0x200000);
    refused(load(NULL, 0, "", &s, &err), &err, "do not fit");
    make_flat();
    put32(64 + 28, 0x8000000);
    refused(load(NULL, 0, "", &s, &err), &err, "entry point");
}

static void test_by_boot_load(void)
{
    char kernel[] = "/tmp/fvm-mb-XXXXXX", module[] = "/tmp/fvm-mod-XXXXXX", list[128];
    struct fvm_boot_options o = {.kernel = kernel, .initrd = list, .append = "x", .acpi = &(struct fvm_acpi_config){.cpu_count = 1}};
    struct fvm_boot_state s;
    struct fvm_err err = {0};
    int k = mkstemp(kernel), m = mkstemp(module);

    make_elf32();
    CU_ASSERT_EQUAL(write(k, file, sizeof(file)), sizeof(file));
    CU_ASSERT_EQUAL(write(m, "abc", 3), 3);
    close(k);
    close(m);
    snprintf(list, sizeof(list), "%s arg=1,%s", module, module);
    CU_ASSERT_EQUAL(fvm_boot_load(ram, &o, &s, &err), 0);
    CU_ASSERT_EQUAL(get(FVM_BOOT_INFO_GPA + 20), 2);
    CU_ASSERT(strstr((char *)fvm_ram_hva(ram, get(get(FVM_BOOT_INFO_GPA + 24) + 8)), " arg=1") != NULL);
    unlink(module);
    refused(fvm_boot_load(ram, &o, &s, &err), &err, "cannot open");
    unlink(kernel);
}

static void test_hostile(void)
{
    uint64_t rng = 99;
    unsigned loaded = 0;

    fvm_ram_destroy(&ram);
    CU_ASSERT_EQUAL_FATAL(fvm_ram_create(16 << 20, &ram, NULL), 0);
    for (unsigned i = 0; i < 6000; i++) {
        struct fvm_boot_image k = {.bytes = file, .len = sizeof(file), .path = "k"};
        struct fvm_boot_state s;
        struct fvm_err err = {0};
        unsigned kind = i % 3, base = kind ? 0 : 64 + 12;

        kind == 0 ? make_flat() : kind == 1 ? make_elf32() : make_elf64();
        for (unsigned n = 0; n < 1 + i % 4; n++) {
            rng = rng * 6364136223846793005ull + 1442695040888963407ull;
            file[base + (rng >> 33) % (kind ? 0x80 : 20)] = (uint8_t)(rng >> 50);
        }
        if (i % 5 == 0)
            k.len = (rng >> 40) % sizeof(file);
        if (!fvm_multiboot_is_kernel(&k))
            continue;
        if (fvm_multiboot_load(ram, &k, NULL, 0, "", &s, &err) == 0) {
            loaded++;
            CU_ASSERT_TRUE(fvm_ram_contains(ram, s.rip, 1));
        } else {
            CU_ASSERT(err.text[0] != 0);
        }
    }
    CU_ASSERT(loaded > 0);
}

int main(void)
{
    CU_initialize_registry();
    CU_pSuite s = CU_add_suite("firmware/multiboot", NULL, NULL);
    CU_add_test(s, "flat kernel", test_flat);
    CU_add_test(s, "ELF kernels", test_elf);
    CU_add_test(s, "information structure", test_info);
    CU_add_test(s, "refusals", test_refusals);
    CU_add_test(s, "from files", test_by_boot_load);
    CU_add_test(s, "hostile files", test_hostile);
    CU_basic_set_mode(CU_BRM_VERBOSE);
    CU_basic_run_tests();
    unsigned bad = CU_get_number_of_failures();
    CU_cleanup_registry();
    fvm_ram_destroy(&ram);
    return bad != 0;
}
