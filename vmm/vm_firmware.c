/*
 * vm_firmware.c - what a VM tells the firmware that boots it: the items of fw_cfg, and the boot code of network cards.
 *
 * All of it follows from the configuration, so that a destination of a migration makes the same by itself. Invariant: addresses in the
 * ACPI tables are those of board_pc.c.
 */
#include "vmm/vm_firmware.h"

#include <stdlib.h>
#include <string.h>

#include "vmm/devices/fw_cfg.h"
#include "vmm/devices/pci.h"
#include "vmm/vm_internal.h"

static const char room[] = "vm";

struct fvm_acpi_config fvm_vm_acpi_config(const struct fvm_vm *vm)
{
    return (struct fvm_acpi_config){.cpu_count = vm->config->cpus,
                                    .hpet = fvm_board_pc_device(vm->pc, "hpet") != NULL,
                                    .pci_mmio64_base = fvm_pci_mmio64_base(vm->ram),
                                    .pci_mmio64_bytes = FVM_PCI_MMIO64_BYTES,
                                    .vga = fvm_board_pc_vga(vm->pc) != NULL};
}

struct fvm_smbios_config fvm_vm_smbios_config(const struct fvm_vm *vm)
{
    struct fvm_smbios_config c = {.product = fvm_config_is_pc(vm->config) ? "pc" : "virtio",
                                  .version = FVM_VERSION,
                                  .cpu_count = vm->config->cpus,
                                  .memory_bytes = vm->config->memory_bytes};

    if (vm->config->id.len == sizeof(c.uuid))
        memcpy(c.uuid, vm->config->id.data, sizeof(c.uuid));
    return c;
}

/* ---- fw_cfg ---- */

struct items { /* where they go, and the first failure */
    struct fvm_device *dev;
    int r;
};

static void add(struct items *t, uint16_t key, uint64_t value, size_t len)
{
    if (!t->r)
        t->r = fvm_fw_cfg_add(t->dev, key, &value, len);
}

static void add_file(struct items *t, const char *name, const void *bytes, size_t len)
{
    if (!t->r)
        t->r = fvm_fw_cfg_add_file(t->dev, name, bytes, len);
}

static void add_numbers(struct items *t, const struct fvm_vm *vm)
{
    uint8_t uuid[16] = {0};

    if (vm->config->id.len == sizeof(uuid))
        memcpy(uuid, vm->config->id.data, sizeof(uuid));
    if (!t->r)
        t->r = fvm_fw_cfg_add(t->dev, FVM_FW_CFG_UUID, uuid, sizeof(uuid));
    add(t, FVM_FW_CFG_RAM_SIZE, vm->config->memory_bytes, 8);
    add(t, FVM_FW_CFG_CPUS, vm->config->cpus, 2);
    add(t, FVM_FW_CFG_CPUS_MAX, vm->config->cpus, 2);
    add(t, FVM_FW_CFG_NUMA, 0, 8);
    add(t, FVM_FW_CFG_BOOT_MENU, 0, 2);
    add(t, FVM_FW_CFG_IRQ0_OVERRIDE, 1, 1);
}

static void add_e820(struct items *t, const struct fvm_vm *vm)
{
    struct __attribute__((packed)) {
        uint64_t base, len;
        uint32_t type;
    } map[2] = {{0, vm->ram->low_bytes, FVM_E820_RAM}, {FVM_RAM_HIGH_BASE, vm->ram->high_bytes, FVM_E820_RAM}};

    add_file(t, "etc/e820", map, sizeof(map[0]) * (vm->ram->high_bytes ? 2 : 1));
}

static void add_acpi(struct items *t, const struct fvm_vm *vm)
{
    struct fvm_acpi_config config = fvm_vm_acpi_config(vm);
    struct fvm_acpi_blob blob = {0};
    uint8_t *loader = NULL;
    size_t loader_len = 0;

    if (!t->r)
        t->r = fvm_acpi_build(&config, &blob);
    if (t->r)
        return;
    t->r = fvm_acpi_loader(&blob, &loader, &loader_len);
    add_file(t, "etc/acpi/rsdp", blob.rsdp, sizeof(blob.rsdp));
    add_file(t, "etc/acpi/tables", blob.bytes, blob.len);
    add_file(t, "etc/table-loader", loader, loader_len);
    free(loader);
    fvm_acpi_blob_fini(&blob);
}

static void add_smbios(struct items *t, const struct fvm_vm *vm)
{
    struct fvm_smbios_config config = fvm_vm_smbios_config(vm);
    struct fvm_smbios s = {0};

    if (!t->r)
        t->r = fvm_smbios_build(&config, &s);
    if (t->r)
        return;
    add_file(t, "etc/smbios/smbios-anchor", s.anchor, sizeof(s.anchor));
    add_file(t, "etc/smbios/smbios-tables", s.tables, s.len);
    fvm_smbios_fini(&s);
}

/* Paths of one kind of device, a line each. */
static void list_kind(const struct fvm_vm *vm, const char *kind, size_t len, FILE *out)
{
    const Fvm__VmConfig *c = vm->config;

    for (unsigned i = 0; i < vm->disk_count; i++)
        if ((len == 4 && !memcmp(kind, "disk", 4) && !c->disks[i]->cdrom) ||
            (len == 5 && !memcmp(kind, "cdrom", 5) && c->disks[i]->cdrom))
            fprintf(out, "%s\n", fvm_board_pc_disk_path(vm->pc, i));
    for (unsigned i = 0; len == 3 && i < vm->net_count; i++) /* "net" */
        fprintf(out, "%s\n", fvm_board_pc_net_path(vm->pc, i));
}

static void add_boot_order(struct items *t, const struct fvm_vm *vm)
{
    const char *order = vm->config->boot[0] ? vm->config->boot : "disk,cdrom,net";
    char *text = NULL;
    size_t len = 0;
    FILE *out = t->r ? NULL : open_memstream(&text, &len);

    if (!t->r && !out)
        t->r = FVM_ENOMEM;
    if (!out)
        return;
    while (*order) {
        size_t n = strcspn(order, ",");

        list_kind(vm, order, n, out);
        order += n + (order[n] == ',');
    }
    if (fclose(out) != 0)
        t->r = FVM_ENOMEM;
    else if (len) {
        text[len - 1] = 0; /* the last line's end is the text's */
        add_file(t, "bootorder", text, len);
    }
    free(text);
}

int fvm_vm_fill_fw_cfg(struct fvm_vm *vm, struct fvm_err *err)
{
    static const uint8_t sleep_states[6] = {0x80, 0, 0, 0, 0, 0x85}; /* S0 and S5 */
    struct items t = {.dev = fvm_board_pc_fw_cfg(vm->pc)};

    if (!t.dev)
        return 0;
    add_numbers(&t, vm);
    add_e820(&t, vm);
    add_acpi(&t, vm);
    add_smbios(&t, vm);
    add_boot_order(&t, vm);
    add_file(&t, "etc/system-states", sleep_states, sizeof(sleep_states));
    return t.r ? fvm_err_set(err, t.r, 0, room, "cannot tell firmware about the machine: %s", fvm_err_text(t.r)) : 0;
}

/* ---- boot code of network cards ---- */

enum { ROM_MAX = 1 << 20, ROM_UNIT = 512, ROM_PCIR = 0x18, PCIR_VENDOR = 4, PCIR_BYTES = 0x18, ROM_SUM = 6 };

/* A ROM says for which chip it is; iPXE's for virtio names the transitional one, ours has the modern number. */
static void set_chip(uint8_t *rom, size_t len, uint16_t vendor, uint16_t device)
{
    size_t pcir = (size_t)(rom[ROM_PCIR] | rom[ROM_PCIR + 1] << 8);
    const uint8_t id[4] = {(uint8_t)vendor, (uint8_t)(vendor >> 8), (uint8_t)device, (uint8_t)(device >> 8)};

    if (pcir + PCIR_BYTES > len || memcmp(rom + pcir, "PCIR", 4) != 0)
        return;
    for (unsigned i = 0; i < sizeof(id); i++) {
        rom[ROM_SUM] = (uint8_t)(rom[ROM_SUM] + rom[pcir + PCIR_VENDOR + i] - id[i]);
        rom[pcir + PCIR_VENDOR + i] = id[i];
    }
}

static void open_rom(struct fvm_vm_rom *ret, const char *path, uint16_t vendor, uint16_t device)
{
    struct fvm_boot_image image = {0};
    struct fvm_err err = {0};

    if (ret->bytes)
        return;
    if (fvm_boot_image_open(path, &image, &err)) {
        fvm_log(INFO, "vm.no-net-rom", "%s", err.text);
        return;
    }
    if (image.len >= ROM_UNIT && image.len <= ROM_MAX && image.bytes[0] == 0x55 && image.bytes[1] == 0xaa &&
        (ret->bytes = malloc(image.len))) {
        memcpy(ret->bytes, image.bytes, image.len);
        ret->len = (uint32_t)image.len;
        set_chip(ret->bytes, image.len, vendor, device);
    }
    fvm_boot_image_close(&image);
}

void fvm_vm_open_net_roms(struct fvm_vm *vm)
{
    if (!vm->config->firmware[0] || !fvm_config_is_pc(vm->config))
        return; /* nobody would run it */
    for (unsigned i = 0; i < vm->net_count; i++) { /* Debian's package ipxe-qemu has them */
        if (vm->e1000[i])
            open_rom(&vm->net_rom[1], "/usr/lib/ipxe/qemu/pxe-e1000.rom", 0x8086, 0x100e);
        else
            open_rom(&vm->net_rom[0], "/usr/lib/ipxe/qemu/pxe-virtio.rom", 0x1af4, 0x1041);
    }
}

void fvm_vm_close_net_roms(struct fvm_vm *vm)
{
    for (unsigned i = 0; i < FVM_ARRAY_SIZE(vm->net_rom); i++) {
        free(vm->net_rom[i].bytes);
        vm->net_rom[i].bytes = NULL;
    }
}
