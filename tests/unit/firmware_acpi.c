/* firmware/acpi: what a guest finds from the RSDP on, checksums, agreement with the devices, and iasl's opinion of
 * every table. */
#include <CUnit/Basic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "vmm/devices/pci.h"
#include "vmm/firmware/boot.h"

static struct fvm_ram *ram;
static char dir[] = "/tmp/fvm-acpi-XXXXXX";

static uint64_t get(uint64_t gpa, unsigned bytes)
{
    uint64_t v = 0;

    CU_ASSERT_EQUAL_FATAL(fvm_ram_read(ram, gpa, &v, bytes), 0);
    return v;
}

static uint8_t sum(uint64_t gpa, uint64_t len)
{
    uint8_t s = 0;

    for (uint64_t i = 0; i < len; i++)
        s = (uint8_t)(s + get(gpa + i, 1));
    return s;
}

static void install(unsigned cpus, uint64_t bytes)
{
    struct fvm_acpi_config c = {.cpu_count = cpus, .hpet = cpus == 4};

    CU_ASSERT_EQUAL_FATAL(fvm_ram_create(bytes, &ram, NULL), 0);
    c.pci_mmio64_base = fvm_pci_mmio64_base(ram);
    c.pci_mmio64_bytes = FVM_PCI_MMIO64_BYTES;
    CU_ASSERT_EQUAL_FATAL(fvm_acpi_install(ram, &c, NULL), 0);
}

/* Follow the XSDT (and see that the RSDT says the same); 0: no such table. */
static uint64_t find(const char *signature)
{
    uint64_t xsdt = get(FVM_BOOT_RSDP_GPA + 24, 8), rsdt = get(FVM_BOOT_RSDP_GPA + 16, 4);
    uint64_t count = (get(xsdt + 4, 4) - 36) / 8;

    CU_ASSERT_EQUAL(count, (get(rsdt + 4, 4) - 36) / 4);
    for (uint64_t i = 0; i < count; i++) {
        uint64_t at = get(xsdt + 36 + 8 * i, 8);

        CU_ASSERT_EQUAL(at, get(rsdt + 36 + 4 * i, 4));
        if (!memcmp(fvm_ram_hva(ram, at), signature, 4))
            return at;
    }
    return 0;
}

static void test_tables(void)
{
    uint64_t fadt, madt, dsdt;

    install(4, 64 << 20);
    CU_ASSERT(!memcmp(fvm_ram_hva(ram, FVM_BOOT_RSDP_GPA), "RSD PTR ", 8));
    CU_ASSERT_EQUAL(sum(FVM_BOOT_RSDP_GPA, 20), 0);
    CU_ASSERT_EQUAL(sum(FVM_BOOT_RSDP_GPA, 36), 0);
    fadt = find("FACP");
    madt = find("APIC");
    CU_ASSERT_FATAL(fadt && madt);
    dsdt = get(fadt + 140, 8);
    CU_ASSERT_EQUAL(dsdt, get(fadt + 40, 4));
    CU_ASSERT(!memcmp(fvm_ram_hva(ram, dsdt), "DSDT", 4));
    CU_ASSERT(!memcmp(fvm_ram_hva(ram, get(fadt + 36, 4)), "FACS", 4));
    CU_ASSERT_EQUAL(get(fadt + 36, 4) % 64, 0);
    const uint64_t all[] = {fadt, madt, dsdt, get(FVM_BOOT_RSDP_GPA + 24, 8), get(FVM_BOOT_RSDP_GPA + 16, 4)};
    for (unsigned i = 0; i < FVM_ARRAY_SIZE(all); i++) {
        CU_ASSERT_EQUAL(sum(all[i], get(all[i] + 4, 4)), 0);
        CU_ASSERT(all[i] >= FVM_BOOT_ACPI_GPA && all[i] + get(all[i] + 4, 4) <= FVM_BOOT_ACPI_END);
    }
    fvm_ram_destroy(&ram);
}

static void test_madt(void)
{
    unsigned cpus = 0, ioapics = 0, overrides = 0;
    uint64_t madt, end;

    install(16, 64 << 20);
    madt = find("APIC");
    end = madt + get(madt + 4, 4);
    for (uint64_t at = madt + 44; at < end; at += get(at + 1, 1)) {
        CU_ASSERT_FATAL(get(at + 1, 1) >= 6);
        switch (get(at, 1)) {
        case 0:
            CU_ASSERT_EQUAL(get(at + 3, 1), cpus);
            CU_ASSERT_EQUAL(get(at + 4, 4), 1);
            cpus++;
            break;
        case 1:
            CU_ASSERT_EQUAL(get(at + 4, 4), 0xfec00000);
            ioapics++;
            break;
        case 2:
            overrides++;
            break;
        default:
            break;
        }
    }
    CU_ASSERT(cpus == 16 && ioapics == 1 && overrides == 2);
    fvm_ram_destroy(&ram);
}

static void dump(const char *name, uint64_t gpa)
{
    char path[128];
    FILE *f;
    uint64_t len = get(gpa + 4, 4);

    snprintf(path, sizeof(path), "%s/%s.dat", dir, name);
    f = fopen(path, "w");
    CU_ASSERT_FATAL(f != NULL);
    CU_ASSERT_EQUAL(fwrite(fvm_ram_hva(ram, gpa), 1, len, f), len);
    fclose(f);
}

static int run(const char *command)
{
    char line[512];

    snprintf(line, sizeof(line), "cd %s && ( %s ) >out 2>&1", dir, command);
    return system(line);
}

/* How often the DSDT's source says "text". */
static unsigned count_in_dsl(const char *text)
{
    char path[128], line[4096];
    unsigned n = 0;
    FILE *f;

    snprintf(path, sizeof(path), "%s/dsdt.dsl", dir);
    f = fopen(path, "r");
    CU_ASSERT_FATAL(f != NULL);
    while (fgets(line, sizeof(line), f))
        n += strstr(line, text) != NULL;
    fclose(f);
    return n;
}

static void test_iasl(void)
{
    uint64_t fadt;

    if (system("command -v iasl >/dev/null 2>&1") != 0) {
        printf("(skipped: iasl is not installed) ");
        return;
    }
    CU_ASSERT_FATAL(mkdtemp(dir) != NULL);
    install(4, 64 << 20);
    fadt = find("FACP");
    dump("dsdt", get(fadt + 40, 4));
    dump("facp", fadt);
    dump("apic", find("APIC"));
    dump("hpet", find("HPET"));
    CU_ASSERT_EQUAL(run("iasl -d dsdt.dat facp.dat apic.dat hpet.dat"), 0);
    CU_ASSERT_NOT_EQUAL(run("grep -iE 'error|warning|invalid|mismatch' out"), 0);
    CU_ASSERT_EQUAL(run("cp dsdt.dat old.dat && iasl -oa -we dsdt.dsl"), 0);
    CU_ASSERT_EQUAL(run("iasl dsdt.dsl | grep -E '0 Errors, 0 Warnings'"), 0);
    CU_ASSERT_EQUAL(count_in_dsl("Device (PCI0)"), 1);
    CU_ASSERT_EQUAL(count_in_dsl("Device (C0"), 4);
    CU_ASSERT_EQUAL(count_in_dsl("EisaId (\"PNP0501\")"), 1);
    CU_ASSERT_EQUAL(count_in_dsl("Name (_S5"), 1);
    CU_ASSERT_EQUAL(count_in_dsl("0x00000000C0000000"), 0); /* that window is a 32-bit descriptor */
    CU_ASSERT_EQUAL(count_in_dsl("0xC0000000,"), 1);
    (void)run("rm -f dsdt.* facp.* apic.* hpet.* old.dat");
    fvm_ram_destroy(&ram);
    char rm[64];
    snprintf(rm, sizeof(rm), "rm -rf %s", dir);
    CU_ASSERT_EQUAL(system(rm), 0);
}

/* What firmware does with the loader's commands gives the same tables, wherever it puts them. */
static void test_loader(void)
{
    enum { COMMAND = 128, TABLES = 0x7f00000, RSDP = 0xf5a40 };
    struct fvm_acpi_config c = {.cpu_count = 2, .hpet = true};
    struct fvm_acpi_blob b;
    uint8_t *commands, *file[2];
    const uint64_t base[2] = {TABLES, RSDP};
    size_t len;

    CU_ASSERT_EQUAL_FATAL(fvm_acpi_build(&c, &b), 0);
    CU_ASSERT_EQUAL_FATAL(fvm_acpi_loader(&b, &commands, &len), 0);
    CU_ASSERT_EQUAL(len % COMMAND, 0);
    file[0] = b.bytes;
    file[1] = b.rsdp;
    for (size_t at = 0; at < len; at += COMMAND) {
        const uint8_t *p = commands + at;
        unsigned which = strcmp((const char *)p + 4, "etc/acpi/rsdp") == 0;
        uint32_t n[3];
        uint64_t value = 0;

        if (!which)
            CU_ASSERT_STRING_EQUAL((const char *)p + 4, "etc/acpi/tables");
        switch (p[0]) {
        case 1:
            CU_ASSERT(at < 2 * COMMAND && (p[64] == 1 || p[64] == 2));
            break;
        case 2:
            memcpy(n, p + 116, 4);
            memcpy(&value, file[which] + n[0], p[120]);
            CU_ASSERT(value < b.len);
            value += base[0];
            memcpy(file[which] + n[0], &value, p[120]);
            break;
        case 3:
            memcpy(n, p + 60, 12);
            file[which][n[0]] = 0;
            for (uint32_t i = 0; i < n[2]; i++)
                value += file[which][n[1] + i];
            file[which][n[0]] = (uint8_t)-value;
            break;
        default:
            CU_FAIL("unknown command");
        }
    }
    CU_ASSERT_EQUAL_FATAL(fvm_ram_create(128 << 20, &ram, NULL), 0);
    fvm_ram_write(ram, TABLES, b.bytes, b.len);
    fvm_ram_write(ram, FVM_BOOT_RSDP_GPA, b.rsdp, sizeof(b.rsdp));
    CU_ASSERT_EQUAL(sum(FVM_BOOT_RSDP_GPA, 20), 0);
    CU_ASSERT_EQUAL(sum(FVM_BOOT_RSDP_GPA, 36), 0);
    static const char *const names[] = {"FACP", "APIC", "HPET"};
    for (unsigned i = 0; i < FVM_ARRAY_SIZE(names); i++) {
        uint64_t table = find(names[i]);

        CU_ASSERT_FATAL(table > TABLES);
        CU_ASSERT_EQUAL(sum(table, get(table + 4, 4)), 0);
    }
    CU_ASSERT(!memcmp(fvm_ram_hva(ram, get(find("FACP") + 140, 8)), "DSDT", 4));
    fvm_ram_destroy(&ram);
    fvm_acpi_blob_fini(&b);
    free(commands);
}

static void test_smbios(void)
{
    struct fvm_smbios_config c = {.product = "pc", .version = "1", .uuid = {1, 2, 3, 4, 5, 6, 7, 8, 9}, .cpu_count = 3,
                                  .memory_bytes = 128 << 20};
    uint64_t at, end, entry = FVM_BOOT_SMBIOS_GPA;
    unsigned count = 0, processors = 0, type;

    CU_ASSERT_EQUAL_FATAL(fvm_ram_create(128 << 20, &ram, NULL), 0);
    CU_ASSERT_EQUAL_FATAL(fvm_smbios_install(ram, &c, NULL), 0);
    CU_ASSERT(!memcmp(fvm_ram_hva(ram, entry), "_SM_", 4) && !memcmp(fvm_ram_hva(ram, entry + 16), "_DMI_", 5));
    CU_ASSERT_EQUAL(sum(entry, get(entry + 5, 1)), 0);
    CU_ASSERT_EQUAL(sum(entry + 16, 15), 0);
    at = get(entry + 24, 4);
    end = at + get(entry + 22, 2);
    do {
        uint64_t start = at;

        type = (unsigned)get(at, 1);
        if (type == 1)
            CU_ASSERT(!memcmp(fvm_ram_hva(ram, at + 8), "\4\3\2\1\6\5\10\7\11", 9));
        processors += type == 4;
        for (at += get(at + 1, 1); get(at, 2) != 0; at++)
            CU_ASSERT_FATAL(at < end);
        at += 2;
        count++;
        CU_ASSERT(at - start <= get(entry + 8, 2));
    } while (type != 127);
    CU_ASSERT_EQUAL(at, end);
    CU_ASSERT_EQUAL(count, get(entry + 28, 2));
    CU_ASSERT_EQUAL(processors, 3);
    fvm_ram_destroy(&ram);
}

/* _PRT as bytes: DWord address, pin, 0, irq. It must say what the bridge does. */
static void test_routing(void)
{
    unsigned found = 0;
    uint64_t dsdt, len;

    install(1, 64 << 20);
    dsdt = get(find("FACP") + 40, 4);
    len = get(dsdt + 4, 4);
    for (unsigned slot = 1; slot < FVM_PCI_SLOTS; slot++)
        for (unsigned pin = 0; pin < 4; pin++) {
            uint8_t want[16] = {0x0c, 0xff, 0xff, (uint8_t)slot, 0};
            unsigned n = 5;

            if (pin > 1)
                want[n++] = 0x0a;
            want[n++] = (uint8_t)pin;
            want[n++] = 0;
            want[n++] = 0x0a;
            want[n++] = (uint8_t)fvm_pci_irq(slot, pin + 1);
            for (uint64_t at = dsdt; at + n <= dsdt + len; at++)
                if (!memcmp(fvm_ram_hva(ram, at), want, n)) {
                    found++;
                    break;
                }
        }
    CU_ASSERT_EQUAL(found, 31 * 4);
    fvm_ram_destroy(&ram);
}

static void test_e820(void)
{
    static const uint64_t sizes[] = {4ull << 20, 128ull << 20, 3ull << 30, 5ull << 30};

    for (unsigned s = 0; s < FVM_ARRAY_SIZE(sizes); s++) {
        struct fvm_e820_entry map[FVM_E820_MAX];
        uint64_t total = 0, end = 0;
        unsigned n;

        CU_ASSERT_EQUAL_FATAL(fvm_ram_create(sizes[s], &ram, NULL), 0);
        n = fvm_e820_build(ram, map);
        for (unsigned i = 0; i < n; i++) {
            CU_ASSERT(map[i].base >= end);
            end = map[i].base + map[i].len;
            if (map[i].type == FVM_E820_RAM) {
                CU_ASSERT_TRUE(fvm_ram_contains(ram, map[i].base, map[i].len));
                CU_ASSERT(map[i].base + map[i].len <= FVM_BOOT_ACPI_GPA || map[i].base >= FVM_BOOT_ACPI_END);
                total += map[i].len;
            }
        }
        CU_ASSERT_EQUAL(total, sizes[s] - 0x100000 + FVM_BOOT_LOW_END);
        fvm_ram_destroy(&ram);
    }
}

int main(void)
{
    CU_initialize_registry();
    CU_pSuite s = CU_add_suite("firmware/acpi", NULL, NULL);
    CU_add_test(s, "tables and checksums", test_tables);
    CU_add_test(s, "MADT", test_madt);
    CU_add_test(s, "iasl accepts and recompiles", test_iasl);
    CU_add_test(s, "_PRT agrees with the bridge", test_routing);
    CU_add_test(s, "e820", test_e820);
    CU_add_test(s, "table loader", test_loader);
    CU_add_test(s, "SMBIOS", test_smbios);
    CU_basic_set_mode(CU_BRM_VERBOSE);
    CU_basic_run_tests();
    unsigned bad = CU_get_number_of_failures();
    CU_cleanup_registry();
    return bad != 0;
}
