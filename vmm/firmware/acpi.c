/*
 * acpi.c - the ACPI tables: RSDP, RSDT, XSDT, FADT, FACS, MADT, DSDT. They describe to the guest what vmm/board_pc.c
 * builds; addresses and interrupts here and there must agree (firmware may not include devices, so they are written
 * down twice, and tests/unit/firmware_acpi.c compares them).
 *
 * They are built as one blob that can lie anywhere: pointers hold offsets into it and are listed. fvm_acpi_install puts
 * it into the ACPI area itself, acpi_loader.c tells firmware how to do that.
 *
 * Invariant: every pointer between tables is in the list; installed tables lie in [FVM_BOOT_ACPI_GPA, FVM_BOOT_ACPI_END),
 * which e820 reserves; every checksum is right.
 */
#include <stdlib.h>
#include <string.h>

#include "vmm/firmware/aml.h"
#include "vmm/firmware/boot.h"

enum { HEADER_BYTES = 36, FADT_BYTES = 268, FACS_BYTES = 64, DSDT_ROOM = 0x8000 };
enum { PM_BASE = 0x600, SCI_IRQ = 9, RESET_PORT = 0xcf9, RESET_VALUE = 0x06, CMOS_CENTURY = 0x32, SLEEP_S5 = 5 };
#define LAPIC_BASE 0xfee00000u
#define IOAPIC_BASE 0xfec00000u
#define MMIO32_FIRST 0xc0000000u
#define MMIO32_LAST 0xfebfffffu
enum { PCI_SLOTS = 32, PCI_PINS = 4 };

enum { BLOB_ROOM = FVM_BOOT_RSDP_GPA - FVM_BOOT_ACPI_GPA };
#define HPET_BASE 0xfed00000u
#define HPET_ID 0x8086a201u /* the low half of its capability register */

static void put(uint8_t *p, unsigned at, uint64_t value, unsigned bytes)
{
    memcpy(p + at, &value, bytes);
}

static uint8_t checksum(const uint8_t *p, size_t len)
{
    uint8_t sum = 0;

    for (size_t i = 0; i < len; i++)
        sum = (uint8_t)(sum + p[i]);
    return (uint8_t)-sum;
}

static void header(uint8_t *p, const char *signature, uint32_t len, uint8_t revision)
{
    memcpy(p, signature, 4);
    put(p, 4, len, 4);
    p[8] = revision;
    p[9] = 0;
    memcpy(p + 10, "FVM   ", 6);
    memcpy(p + 16, "FVMPC   ", 8);
    put(p, 24, 1, 4);
    memcpy(p + 28, "FVM ", 4);
    put(p, 32, 1, 4);
    p[9] = checksum(p, len);
}

/* Append a table; its offset. Its checksum is filled in at the end, when `checked`. */
static uint32_t place(struct fvm_acpi_blob *t, const void *bytes, size_t len, bool checked)
{
    size_t at = FVM_ALIGN_UP(t->len, (size_t)64);

    fvm_assert(at + len <= BLOB_ROOM && t->table_count < FVM_ACPI_TABLES_MAX); /* tables have a known size */
    memcpy(t->bytes + at, bytes, len);
    t->len = at + len;
    if (checked)
        t->table[t->table_count++] = (struct fvm_acpi_part){(uint32_t)at, (uint32_t)len};
    return (uint32_t)at;
}

/* The `bytes` at offset `at` hold an offset into the blob. */
static void pointer(struct fvm_acpi_blob *t, uint32_t at, unsigned bytes)
{
    fvm_assert(t->pointer_count < FVM_ACPI_POINTERS_MAX);
    t->pointer[t->pointer_count++] = (struct fvm_acpi_part){at, bytes};
}

/* ---- DSDT ---- */

/* As fvm_pci_irq in vmm/devices/pci_host.c: pin 1..4. */
static unsigned pci_irq(unsigned slot, unsigned pin)
{
    return (slot + pin + 2) % 4 < 2 ? 10 : 11;
}

static void dsdt_routing(struct fvm_aml *a)
{
    size_t all;

    fvm_aml_name(a, "_PRT");
    all = fvm_aml_package(a, (PCI_SLOTS - 1) * PCI_PINS);
    for (unsigned slot = 1; slot < PCI_SLOTS; slot++) {
        for (unsigned pin = 0; pin < PCI_PINS; pin++) {
            size_t entry = fvm_aml_package(a, 4);

            fvm_aml_integer(a, slot << 16 | 0xffff);
            fvm_aml_integer(a, pin);
            fvm_aml_integer(a, 0); /* no link device: a GSI */
            fvm_aml_integer(a, pci_irq(slot, pin + 1));
            fvm_aml_end(a, entry);
        }
    }
    fvm_aml_end(a, all);
}

static void dsdt_pci(struct fvm_aml *a, const struct fvm_acpi_config *config)
{
    size_t device = fvm_aml_device(a, "PCI0"), crs;

    fvm_aml_name(a, "_HID");
    fvm_aml_eisaid(a, "PNP0A03");
    fvm_aml_name(a, "_UID");
    fvm_aml_integer(a, 0);
    fvm_aml_name(a, "_BBN");
    fvm_aml_integer(a, 0);
    crs = fvm_aml_resources(a);
    fvm_aml_bus_range(a, 0, 0);
    fvm_aml_io(a, 0xcf8, 8);
    fvm_aml_io_range(a, 0x0000, 0x0cf7);
    fvm_aml_io_range(a, 0x0d00, 0xffff);
    if (config->vga)
        fvm_aml_memory32_range(a, 0xa0000, 0xbffff);
    fvm_aml_memory32_range(a, MMIO32_FIRST, MMIO32_LAST);
    if (config->pci_mmio64_bytes)
        fvm_aml_memory64_range(a, config->pci_mmio64_base, config->pci_mmio64_base + config->pci_mmio64_bytes - 1);
    fvm_aml_resources_end(a, crs);
    dsdt_routing(a);
    fvm_aml_end(a, device);
}

static void dsdt_isa_device(struct fvm_aml *a, const char *name, const char *id, unsigned uid, uint16_t port,
                            uint8_t len, int irq)
{
    size_t device = fvm_aml_device(a, name), crs;

    fvm_aml_name(a, "_HID");
    fvm_aml_eisaid(a, id);
    fvm_aml_name(a, "_UID");
    fvm_aml_integer(a, uid);
    crs = fvm_aml_resources(a);
    if (len)
        fvm_aml_io(a, port, len);
    if (irq >= 0)
        fvm_aml_irq(a, (unsigned)irq);
    fvm_aml_resources_end(a, crs);
    fvm_aml_end(a, device);
}

static void dsdt_keyboard(struct fvm_aml *a)
{
    size_t device = fvm_aml_device(a, "KBD_"), crs;

    fvm_aml_name(a, "_HID");
    fvm_aml_eisaid(a, "PNP0303");
    crs = fvm_aml_resources(a);
    fvm_aml_io(a, 0x60, 1);
    fvm_aml_io(a, 0x64, 1);
    fvm_aml_irq(a, 1);
    fvm_aml_resources_end(a, crs);
    fvm_aml_end(a, device);
}

static void dsdt_hpet(struct fvm_aml *a)
{
    size_t device = fvm_aml_device(a, "HPET"), crs;

    fvm_aml_name(a, "_HID");
    fvm_aml_eisaid(a, "PNP0103");
    crs = fvm_aml_resources(a);
    fvm_aml_memory32_fixed(a, HPET_BASE, 0x400);
    fvm_aml_resources_end(a, crs);
    fvm_aml_end(a, device);
}

static void dsdt_processors(struct fvm_aml *a, unsigned count)
{
    static const char digits[] = "0123456789ABCDEF";

    for (unsigned i = 0; i < count; i++) {
        const char name[5] = {'C', '0', digits[(i >> 4) & 15], digits[i & 15], 0};
        size_t device = fvm_aml_device(a, name);

        fvm_aml_name(a, "_HID");
        fvm_aml_string(a, "ACPI0007");
        fvm_aml_name(a, "_UID");
        fvm_aml_integer(a, i);
        fvm_aml_end(a, device);
    }
}

static uint32_t place_dsdt(struct fvm_acpi_blob *t, const struct fvm_acpi_config *config)
{
    struct fvm_aml a = {.bytes = calloc(1, DSDT_ROOM), .len = HEADER_BYTES, .room = DSDT_ROOM};
    size_t scope, s5;
    uint32_t gpa;

    if (!a.bytes)
        return UINT32_MAX;
    fvm_aml_name(&a, "_S5_");
    s5 = fvm_aml_package(&a, 4);
    fvm_aml_integer(&a, SLEEP_S5);
    fvm_aml_integer(&a, SLEEP_S5);
    fvm_aml_integer(&a, 0);
    fvm_aml_integer(&a, 0);
    fvm_aml_end(&a, s5);
    scope = fvm_aml_scope(&a, "_SB_");
    dsdt_pci(&a, config);
    dsdt_isa_device(&a, "COM1", "PNP0501", 1, 0x3f8, 8, 4);
    dsdt_isa_device(&a, "RTC_", "PNP0B00", 0, 0x70, 2, 8);
    if (config->hpet)
        dsdt_hpet(&a);
    dsdt_keyboard(&a);
    dsdt_isa_device(&a, "MOU_", "PNP0F13", 0, 0, 0, 12);
    dsdt_isa_device(&a, "MBRD", "PNP0C02", 0, PM_BASE, 0x40, -1);
    dsdt_processors(&a, config->cpu_count);
    fvm_aml_end(&a, scope);
    header(a.bytes, "DSDT", (uint32_t)a.len, 2);
    gpa = place(t, a.bytes, a.len, true);
    free(a.bytes);
    return gpa;
}

/* ---- fixed tables ---- */

static void address(uint8_t *p, unsigned at, uint16_t port, uint8_t bits, uint8_t access)
{
    p[at] = 1; /* system I/O */
    p[at + 1] = bits;
    p[at + 3] = access;
    put(p, at + 4, port, 8);
}

static uint32_t place_fadt(struct fvm_acpi_blob *t, const struct fvm_acpi_config *config, uint32_t facs, uint32_t dsdt)
{
    uint8_t p[FADT_BYTES] = {0};
    uint32_t at;

    put(p, 36, facs, 4);
    put(p, 40, dsdt, 4);
    put(p, 46, SCI_IRQ, 2);
    put(p, 56, PM_BASE, 4);        /* PM1a event */
    put(p, 64, PM_BASE + 4, 4);    /* PM1a control */
    put(p, 76, PM_BASE + 8, 4);    /* PM timer */
    put(p, 80, PM_BASE + 0x20, 4); /* GPE0 */
    p[88] = 4;
    p[89] = 2;
    p[91] = 4;
    p[92] = 4;
    put(p, 96, 0xfff, 2);  /* no C2 */
    put(p, 98, 0xfff, 2);  /* no C3 */
    p[108] = CMOS_CENTURY;
    put(p, 109, config->vga ? 0x0003 : 0x0007, 2); /* legacy devices, 8042; VGA or not */
    put(p, 112, 1 << 0 | 1 << 2 | 1 << 5 | 1 << 6 | 1 << 10,
        4); /* WBINVD, C1, no sleep button, RTC not fixed, reset register */
    address(p, 116, RESET_PORT, 8, 1);
    p[128] = RESET_VALUE;
    p[131] = 1; /* ACPI 5.1 */
    put(p, 140, dsdt, 8);
    address(p, 148, PM_BASE, 32, 2);
    address(p, 172, PM_BASE + 4, 16, 2);
    address(p, 208, PM_BASE + 8, 32, 3);
    address(p, 220, PM_BASE + 0x20, 32, 1);
    header(p, "FACP", sizeof(p), 5);
    at = place(t, p, sizeof(p), true);
    pointer(t, at + 36, 4);
    pointer(t, at + 40, 4);
    pointer(t, at + 140, 8);
    return at;
}

static uint32_t place_facs(struct fvm_acpi_blob *t)
{
    uint8_t p[FACS_BYTES] = {'F', 'A', 'C', 'S', FACS_BYTES};

    p[32] = 2;
    return place(t, p, sizeof(p), false);
}

static uint32_t place_madt(struct fvm_acpi_blob *t, unsigned cpu_count)
{
    enum { LAPIC_LEN = 8, IOAPIC_LEN = 12, OVERRIDE_LEN = 10, NMI_LEN = 6, CPUS_MAX = 255 };
    uint8_t p[HEADER_BYTES + 8 + CPUS_MAX * LAPIC_LEN + IOAPIC_LEN + 2 * OVERRIDE_LEN + NMI_LEN] = {0};
    unsigned at = HEADER_BYTES + 8;

    fvm_assert(cpu_count <= CPUS_MAX);
    put(p, HEADER_BYTES, LAPIC_BASE, 4);
    put(p, HEADER_BYTES + 4, 1, 4); /* a PC with i8259s */
    for (unsigned i = 0; i < cpu_count; i++, at += LAPIC_LEN) {
        p[at + 1] = LAPIC_LEN;
        p[at + 2] = p[at + 3] = (uint8_t)i;
        p[at + 4] = 1;
    }
    p[at] = 1;
    p[at + 1] = IOAPIC_LEN;
    put(p, at + 4, IOAPIC_BASE, 4);
    at += IOAPIC_LEN;
    p[at] = 2; /* ISA IRQ 0 -> pin 2 */
    p[at + 1] = OVERRIDE_LEN;
    put(p, at + 4, 2, 4);
    at += OVERRIDE_LEN;
    p[at] = 2; /* the SCI: level, active high */
    p[at + 1] = OVERRIDE_LEN;
    p[at + 3] = SCI_IRQ;
    put(p, at + 4, SCI_IRQ, 4);
    put(p, at + 8, 0xd, 2);
    at += OVERRIDE_LEN;
    p[at] = 4; /* NMI on LINT1 of all */
    p[at + 1] = NMI_LEN;
    p[at + 2] = 0xff;
    p[at + 5] = 1;
    at += NMI_LEN;
    header(p, "APIC", at, 4);
    return place(t, p, at, true);
}

static uint32_t place_hpet(struct fvm_acpi_blob *t)
{
    uint8_t p[56] = {0};

    put(p, 36, HPET_ID, 4);
    p[41] = 64; /* bits; system memory */
    put(p, 44, HPET_BASE, 8);
    put(p, 53, 0x0080, 2); /* least ticks of a period */
    header(p, "HPET", sizeof(p), 1);
    return place(t, p, sizeof(p), true);
}

static uint32_t place_root(struct fvm_acpi_blob *t, const char *signature, const uint32_t *table, unsigned count,
                           unsigned width)
{
    uint8_t p[HEADER_BYTES + 8 * 8] = {0};
    uint32_t at;

    fvm_assert(count <= 8);
    for (unsigned i = 0; i < count; i++)
        put(p, HEADER_BYTES + i * width, table[i], width);
    header(p, signature, HEADER_BYTES + count * width, 1);
    at = place(t, p, HEADER_BYTES + count * width, true);
    for (unsigned i = 0; i < count; i++)
        pointer(t, at + HEADER_BYTES + i * width, width);
    return at;
}

static void checksums(struct fvm_acpi_blob *t)
{
    for (unsigned i = 0; i < t->table_count; i++) {
        uint8_t *p = t->bytes + t->table[i].at;

        p[9] = 0;
        p[9] = checksum(p, t->table[i].len);
    }
    t->rsdp[8] = t->rsdp[32] = 0;
    t->rsdp[8] = checksum(t->rsdp, 20);
    t->rsdp[32] = checksum(t->rsdp, sizeof(t->rsdp));
}

int fvm_acpi_build(const struct fvm_acpi_config *config, struct fvm_acpi_blob *ret_blob)
{
    struct fvm_acpi_blob *t = ret_blob;
    uint32_t facs, dsdt, table[3];
    unsigned count = 0;

    *t = (struct fvm_acpi_blob){.bytes = calloc(1, BLOB_ROOM)};
    if (!t->bytes)
        return FVM_ENOMEM;
    facs = place_facs(t);
    dsdt = place_dsdt(t, config);
    if (dsdt == UINT32_MAX) {
        fvm_acpi_blob_fini(t);
        return FVM_ENOMEM;
    }
    table[count++] = place_fadt(t, config, facs, dsdt);
    table[count++] = place_madt(t, config->cpu_count);
    if (config->hpet)
        table[count++] = place_hpet(t);
    memcpy(t->rsdp, "RSD PTR ", 8);
    memcpy(t->rsdp + 9, "FVM   ", 6);
    t->rsdp[15] = 2;
    put(t->rsdp, 16, place_root(t, "RSDT", table, count, 4), 4);
    put(t->rsdp, 20, sizeof(t->rsdp), 4);
    put(t->rsdp, 24, place_root(t, "XSDT", table, count, 8), 8);
    checksums(t);
    return 0;
}

void fvm_acpi_blob_fini(struct fvm_acpi_blob *blob)
{
    free(blob->bytes);
    blob->bytes = NULL;
}

static void add_base(uint8_t *p, unsigned bytes)
{
    uint64_t value = 0;

    memcpy(&value, p, bytes);
    value += FVM_BOOT_ACPI_GPA;
    memcpy(p, &value, bytes);
}

int fvm_acpi_install(struct fvm_ram *ram, const struct fvm_acpi_config *config, struct fvm_err *err)
{
    struct fvm_acpi_blob t;
    int r = fvm_acpi_build(config, &t);

    if (!r) {
        for (unsigned i = 0; i < t.pointer_count; i++)
            add_base(t.bytes + t.pointer[i].at, t.pointer[i].len);
        add_base(t.rsdp + 16, 4);
        add_base(t.rsdp + 24, 8);
        checksums(&t);
        r = fvm_ram_write(ram, FVM_BOOT_ACPI_GPA, t.bytes, t.len);
        if (!r)
            r = fvm_ram_write(ram, FVM_BOOT_RSDP_GPA, t.rsdp, sizeof(t.rsdp));
        fvm_acpi_blob_fini(&t);
    }
    return r ? fvm_err_set(err, r, 0, "firmware", "cannot write the ACPI tables: %s", fvm_err_text(r)) : 0;
}
