/* firmware/linux_boot: where things go, what the zero page says, every refusal, hostile headers; and real kernels where
 * there are any. */
#include <CUnit/Basic.h>
#include <glob.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "vmm/firmware/boot.h"

enum { SETUP_SECTS = 3, SETUP = (SETUP_SECTS + 1) * 512, KERNEL = 64 << 10, FILE_BYTES = SETUP + KERNEL };
enum { PREF = 0x1000000, INIT_SIZE = 0x200000 };

static uint8_t file[FILE_BYTES];
static struct fvm_ram *ram;

static void put(unsigned at, uint64_t value, unsigned bytes)
{
    memcpy(file + at, &value, bytes);
}

/* A header as a current 64-bit kernel has it. */
static void make_kernel(void)
{
    memset(file, 0, sizeof(file));
    for (unsigned i = SETUP; i < FILE_BYTES; i++)
        file[i] = (uint8_t)(i * 7);
    put(0x1f1, SETUP_SECTS, 1);
    put(0x1fe, 0xaa55, 2);
    put(0x200, 0x6aeb, 2); /* jump over the header: it ends at 0x26c */
    put(0x202, 0x53726448, 4);
    put(0x206, 0x20f, 2);
    put(0x211, 1, 1);
    put(0x22c, 0x7fffffff, 4);
    put(0x230, 0x200000, 4);
    put(0x234, 1, 1);
    put(0x236, 0x3f, 2);
    put(0x238, 2047, 4);
    put(0x258, PREF, 8);
    put(0x260, INIT_SIZE, 4);
}

static struct fvm_boot_image image(const void *bytes, uint64_t len, const char *path)
{
    return (struct fvm_boot_image){.bytes = bytes, .len = len, .path = path};
}

static int load(uint64_t ram_bytes, const struct fvm_boot_image *initrd, const char *append,
                struct fvm_boot_state *state, struct fvm_err *err)
{
    struct fvm_boot_image k = image(file, sizeof(file), "kernel");

    memset(err, 0, sizeof(*err));
    fvm_ram_destroy(&ram);
    CU_ASSERT_EQUAL_FATAL(fvm_ram_create(ram_bytes, &ram, NULL), 0);
    return fvm_linux_load(ram, &k, initrd, append, false, state, err);
}

static uint64_t zp(unsigned at, unsigned bytes)
{
    uint64_t v = 0;

    fvm_assert(fvm_ram_read(ram, FVM_BOOT_INFO_GPA + at, &v, bytes) == 0);
    return v;
}

static void test_layout(void)
{
    struct fvm_boot_state s;
    struct fvm_err err;
    uint8_t *initrd_bytes = malloc(100001);
    struct fvm_boot_image initrd = image(initrd_bytes, 100001, "initrd");
    uint64_t at;

    memset(initrd_bytes, 0x5c, 100001);
    make_kernel();
    CU_ASSERT_EQUAL_FATAL(load(64 << 20, &initrd, "console=ttyS0", &s, &err), 0);
    CU_ASSERT_EQUAL(s.rip, PREF + 0x200);
    CU_ASSERT(!memcmp(fvm_ram_hva(ram, PREF), file + SETUP, KERNEL));
    CU_ASSERT_EQUAL(s.regs[6], FVM_BOOT_INFO_GPA);
    CU_ASSERT_EQUAL(s.cr0 & 0x80000001, 0x80000001);
    CU_ASSERT_EQUAL(s.cr4 & 0x20, 0x20);
    CU_ASSERT_EQUAL(s.efer & 0x100, 0x100);
    CU_ASSERT_EQUAL(s.segments[FVM_BOOT_CS].selector, 0x10);
    CU_ASSERT_EQUAL(s.segments[FVM_BOOT_DS].selector, 0x18);
    CU_ASSERT(!strcmp((char *)fvm_ram_hva(ram, zp(0x228, 4)), "console=ttyS0"));
    at = zp(0x218, 4);
    CU_ASSERT_EQUAL(zp(0x21c, 4), 100001);
    CU_ASSERT(at % 4096 == 0 && at + 100001 <= 64 << 20 && at >= PREF + INIT_SIZE);
    CU_ASSERT(!memcmp(fvm_ram_hva(ram, at), initrd_bytes, 100001));
    CU_ASSERT_EQUAL(zp(0x210, 1), 0xff);
    CU_ASSERT_EQUAL(zp(0x70, 8), FVM_BOOT_RSDP_GPA);
    CU_ASSERT(zp(0x1e8, 1) >= 4);
    CU_ASSERT_EQUAL(zp(0x2d0 + 8, 8), FVM_BOOT_LOW_END);
    CU_ASSERT_EQUAL(zp(0x206, 2), 0x20f);
    free(initrd_bytes);
}

/* The tables that the start state points at map the first 4 GiB onto themselves, and the descriptors are what the
 * segments say. */
static void test_start_tables(void)
{
    static const uint64_t probe[] = {0, 0x7000, 0x1234567, 0xbfffffff, 0xfee00000};
    struct fvm_boot_state s;
    struct fvm_err err;
    uint64_t e;

    make_kernel();
    CU_ASSERT_EQUAL_FATAL(load(64 << 20, NULL, "", &s, &err), 0);
    for (unsigned i = 0; i < FVM_ARRAY_SIZE(probe); i++) {
        e = *(uint64_t *)fvm_ram_hva(ram, s.cr3);
        CU_ASSERT_EQUAL(e & 3, 3);
        e = ((uint64_t *)fvm_ram_hva(ram, e & ~0xfffull))[probe[i] >> 30];
        CU_ASSERT_EQUAL(e & 3, 3);
        e = ((uint64_t *)fvm_ram_hva(ram, e & ~0xfffull))[(probe[i] >> 21) & 511];
        CU_ASSERT_EQUAL(e & 0x83, 0x83);
        CU_ASSERT_EQUAL(e & ~0x1fffffull, probe[i] & ~0x1fffffull);
    }
    e = ((uint64_t *)fvm_ram_hva(ram, s.gdt_base))[2];
    CU_ASSERT_EQUAL(e, 0x00af9b000000ffff);
    CU_ASSERT_EQUAL(((uint64_t *)fvm_ram_hva(ram, s.gdt_base))[3], 0x00cf93000000ffff);
    CU_ASSERT_EQUAL(s.segments[FVM_BOOT_CS].attr, 0xa09b);
    CU_ASSERT(s.gdt_limit >= 0x27);
}

static void test_variants(void)
{
    struct fvm_boot_state s;
    struct fvm_err err;

    make_kernel();
    CU_ASSERT_EQUAL(load(8 << 20, NULL, "", &s, &err), 0); /* preferred address does not fit: relocated */
    CU_ASSERT_EQUAL(s.rip, 0x200200);
    put(0x236, 0, 2); /* a 32-bit kernel */
    CU_ASSERT_EQUAL(load(64 << 20, NULL, "", &s, &err), 0);
    CU_ASSERT_EQUAL(s.rip, PREF);
    CU_ASSERT_EQUAL(s.cr0 & 0x80000000, 0);
    CU_ASSERT_EQUAL(s.segments[FVM_BOOT_CS].attr, 0xc09b);
    put(0x206, 0x206, 2); /* the oldest protocol */
    CU_ASSERT_EQUAL(load(64 << 20, NULL, "", &s, &err), 0);
    CU_ASSERT_EQUAL(s.rip, 0x100000);
    make_kernel();
    CU_ASSERT_EQUAL(load(5ull << 30, NULL, "", &s, &err), 0); /* RAM on both sides of the hole */
    CU_ASSERT(zp(0x1e8, 1) >= 7);
}

static void refused(int r, const struct fvm_err *err, const char *word)
{
    CU_ASSERT(r < 0);
    CU_ASSERT(err->text[0] && !strchr(err->text, '\n'));
    if (!strstr(err->text, word))
        printf("\"%s\" does not say \"%s\"\n", err->text, word);
    CU_ASSERT(strstr(err->text, word) != NULL);
}

static void test_refusals(void)
{
    struct fvm_boot_state s;
    struct fvm_err err;
    struct fvm_boot_image huge = image(file, 60ull << 20, "huge"), k;
    char *append = malloc(4096);

    memset(append, 'x', 4095);
    append[4095] = 0;
    make_kernel();
    refused(load(64 << 20, NULL, append, &s, &err), &err, "command line");
    refused(load(64 << 20, &huge, "", &s, &err), &err, "initrd");
    put(0x234, 0, 1);
    refused(load(8 << 20, NULL, "", &s, &err), &err, "memory");
    make_kernel();
    put(0x260, 0xffffffff, 4);
    refused(load(64 << 20, NULL, "", &s, &err), &err, "memory");
    make_kernel();
    put(0x206, 0x205, 2);
    refused(load(64 << 20, NULL, "", &s, &err), &err, "2.06");
    make_kernel();
    put(0x211, 0, 1);
    refused(load(64 << 20, NULL, "", &s, &err), &err, "zImage");
    make_kernel();
    put(0x230, 3, 4);
    refused(load(64 << 20, NULL, "", &s, &err), &err, "alignment");
    make_kernel();
    put(0x1f1, 255, 1);
    refused(load(64 << 20, NULL, "", &s, &err), &err, "truncated");
    make_kernel();
    k = image(file, 0x220, "short");
    refused(fvm_linux_load(ram, &k, NULL, "", false, &s, &err), &err, "truncated");
    make_kernel();
    put(0x1f4, (FILE_BYTES - SETUP) / 16 + 1, 4);
    refused(load(64 << 20, NULL, "", &s, &err), &err, "truncated");
    put(0x1f4, (FILE_BYTES - SETUP) / 16, 4);
    CU_ASSERT_EQUAL(load(64 << 20, NULL, "", &s, &err), 0);
    free(append);
}

static void write_file(const char *path, const void *bytes, size_t len)
{
    FILE *f = fopen(path, "w");

    CU_ASSERT_FATAL(f != NULL);
    CU_ASSERT_EQUAL(fwrite(bytes, 1, len, f), len);
    fclose(f);
}

static void test_not_a_kernel(void)
{
    static const struct {
        const char *bytes, *word;
        size_t len;
    } cases[] = {
        {"\x1f\x8b\x08 more", "gzip", 8}, {"\177ELF\2\1\1", "ELF", 8},    {"#!/bin/sh\n", "script", 10},
        {"QFI\xfb....", "qcow2", 8},      {"hello world", "unknown", 11}, {"", "empty", 0},
    };
    char path[] = "/tmp/fvm-kernel-XXXXXX";
    struct fvm_boot_options o = {.kernel = path, .acpi = &(struct fvm_acpi_config){.cpu_count = 1}};
    struct fvm_boot_state s;
    struct fvm_err err;

    close(mkstemp(path));
    for (unsigned i = 0; i < FVM_ARRAY_SIZE(cases); i++) {
        write_file(path, cases[i].bytes, cases[i].len);
        memset(&err, 0, sizeof(err));
        refused(fvm_boot_load(ram, &o, &s, &err), &err, cases[i].word);
    }
    unlink(path);
    refused(fvm_boot_load(ram, &o, &s, &err), &err, "cannot open");
    o.kernel = "/";
    refused(fvm_boot_load(ram, &o, &s, &err), &err, "regular file");
    o.kernel = "";
    refused(fvm_boot_load(ram, &o, &s, &err), &err, "--kernel");
}

/* A cut initrd is refused at every length; whole ones, several in a row and unknown formats pass. */
static void test_initrds(void)
{
    /* inode; mode to links; time; size; devices; length of the name; checksum; the name */
    static const char entry[] = "070701%08x" "%032d" "%08d" "%08x" "%032d" "%08x" "%08d%s";
    char text[512], again[1024];
    struct fvm_err err;
    size_t first, len;

    first = (size_t)sprintf(text, entry, 1u, 0, 0, 5u, 0, 6u, 0, "/init");
    CU_ASSERT_EQUAL_FATAL(first, 115);
    memcpy(text + first, "\0hello\0\0", 9); /* name's end at 116, no padding; data and padding to 124 */
    len = 124;
    for (size_t n = 6; n < 121; n++) {
        struct fvm_boot_image k = image(text, n, "cut");
        refused(fvm_initrd_check(&k, &err), &err, "truncated");
    }
    for (size_t n = 121; n <= len; n++) {
        struct fvm_boot_image k = image(text, n, "whole");
        CU_ASSERT_EQUAL(fvm_initrd_check(&k, &err), 0);
    }
    memcpy(again, text, len);
    memset(again + len, 0, 512);
    memcpy(again + 512, "\xfd" "7zXZ\0 something YZ\0\0\0\0", 24);
    struct fvm_boot_image xz = image(again, 536, "xz"), cut = image(again, 530, "cut");
    struct fvm_boot_image other = image("some disk", 9, "disk");
    CU_ASSERT_EQUAL(fvm_initrd_check(&xz, &err), 0);
    CU_ASSERT_EQUAL(fvm_initrd_check(&other, &err), 0);
    refused(fvm_initrd_check(&cut, &err), &err, "truncated");
    memset(text + 54, 'f', 8); /* a size of 4 GiB */
    struct fvm_boot_image large = image(text, len, "large");
    refused(fvm_initrd_check(&large, &err), &err, "truncated");
    memset(text + 54, 'g', 8); /* no number */
    refused(fvm_initrd_check(&large, &err), &err, "truncated");
}

static void test_hostile_headers(void)
{
    struct fvm_boot_image initrd = image(file, 4096, "initrd");
    uint64_t rng = 0x1234567;
    unsigned loaded = 0;

    fvm_ram_destroy(&ram);
    CU_ASSERT_EQUAL_FATAL(fvm_ram_create(32 << 20, &ram, NULL), 0);
    for (unsigned i = 0; i < 3000; i++) {
        struct fvm_boot_state s;
        struct fvm_err err = {0};
        struct fvm_boot_image k;

        make_kernel();
        for (unsigned n = 0; n < 1 + i % 5; n++) {
            rng = rng * 6364136223846793005ull + 1442695040888963407ull;
            file[0x1f1 + (rng >> 33) % (0x268 - 0x1f1)] = (rng >> 60) & 1 ? (uint8_t)(rng >> 50) : 0xff;
        }
        k = image(file, i % 7 ? sizeof(file) : (rng >> 40) % sizeof(file), "kernel");
        if (!fvm_linux_is_kernel(&k))
            continue;
        if (fvm_linux_load(ram, &k, &initrd, "a b", true, &s, &err) == 0) {
            loaded++;
            CU_ASSERT_TRUE(fvm_ram_contains(ram, s.rip, 1));
        } else {
            CU_ASSERT(err.text[0] != 0);
        }
    }
    CU_ASSERT(loaded > 0);
}

static void test_real_kernels(void)
{
    const char *cache = getenv("FVM_CACHE"), *home = getenv("HOME");
    char pattern[512];
    glob_t found;

    if (cache)
        snprintf(pattern, sizeof(pattern), "%s/kernels/*/vmlinuz", cache);
    else
        snprintf(pattern, sizeof(pattern), "%s/.cache/fvm/kernels/*/vmlinuz", home ? home : "");
    if (glob(pattern, 0, NULL, &found) != 0) {
        printf("(none in %s) ", pattern);
        return;
    }
    for (size_t i = 0; i < found.gl_pathc; i++) {
        struct fvm_boot_options o = {.kernel = found.gl_pathv[i], .append = "console=ttyS0", .acpi = &(struct fvm_acpi_config){.cpu_count = 2}};
        struct fvm_boot_state s;
        struct fvm_err err = {0};

        fvm_ram_destroy(&ram);
        CU_ASSERT_EQUAL_FATAL(fvm_ram_create(512 << 20, &ram, NULL), 0);
        CU_ASSERT_EQUAL(fvm_boot_load(ram, &o, &s, &err), 0);
        if (err.text[0])
            printf("%s\n", err.text);
        CU_ASSERT(s.efer & 0x100);
        CU_ASSERT_EQUAL(s.rip & 0xfff, 0x200);
    }
    globfree(&found);
}

int main(void)
{
    CU_initialize_registry();
    CU_pSuite s = CU_add_suite("firmware/linux_boot", NULL, NULL);
    CU_add_test(s, "layout and zero page", test_layout);
    CU_add_test(s, "page tables and descriptors", test_start_tables);
    CU_add_test(s, "relocated, 32-bit, old protocol, high RAM", test_variants);
    CU_add_test(s, "refusals", test_refusals);
    CU_add_test(s, "files that are no kernel", test_not_a_kernel);
    CU_add_test(s, "initrds", test_initrds);
    CU_add_test(s, "hostile headers", test_hostile_headers);
    CU_add_test(s, "real kernels", test_real_kernels);
    CU_basic_set_mode(CU_BRM_VERBOSE);
    CU_basic_run_tests();
    unsigned bad = CU_get_number_of_failures();
    CU_cleanup_registry();
    fvm_ram_destroy(&ram);
    return bad != 0;
}
