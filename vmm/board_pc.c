/*
 * board_pc.c - the PC: which chips, where, on which interrupt line. This table is the only place that says so (the
 * ACPI tables in vmm/firmware/acpi.c describe the same to the guest).
 *
 * Order matters: interrupt controllers come first, so that a restore has them before the chips that drive lines, and
 * a chip that raises a line while it is restored finds the controllers knowing that line as high already. State is
 * saved in this order too.
 *
 * Slots on PCI: 0 host bridge; on the full PC 1 south bridge (functions 0 ISA, 1 IDE, 3 power management) and 2 for a
 * display; then controllers, cards and virtio functions in configuration order.
 *
 * Invariant: devices[0..count) are alive.
 */
#include "vmm/board_pc.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "vmm/devices/acpi_pm.h"
#include "vmm/devices/ahci.h"
#include "vmm/devices/debug_exit.h"
#include "vmm/devices/e1000.h"
#include "vmm/devices/fw_cfg.h"
#include "vmm/devices/hpet.h"
#include "vmm/devices/i8042.h"
#include "vmm/devices/i8254.h"
#include "vmm/devices/i8259.h"
#include "vmm/devices/ioapic.h"
#include "vmm/devices/lapic.h"
#include "vmm/devices/mc146818.h"
#include "vmm/devices/pci.h"
#include "vmm/devices/piix3.h"
#include "vmm/devices/piix_ide.h"
#include "vmm/devices/vga.h"
#include "vmm/devices/virtio/virtio.h"

enum { DEVICES_MAX = 24 + FVM_BOARD_DISKS_MAX + FVM_BOARD_NETS_MAX };
enum { SLOT_SOUTH = 1, FIRST_SLOT_VIRTIO = 1, FIRST_SLOT_PC = 3, SLOT_VGA_PC = 2, SLOT_VGA = 31 };
enum { LINE_TIMER = 2, LINE_COM1 = 4, LINE_RTC = 8, LINE_SCI = 9 }; /* PCI: 10 and 11, see fvm_pci_irq */
enum { PORT_COM1 = 0x3f8 };

struct fvm_board_pc {
    struct fvm_board *board;
    const struct fvm_board_pc_config *config; /* during create only */
    struct fvm_device *devices[DEVICES_MAX];
    unsigned count;
    struct fvm_device *lapic, *i8259, *i8254, *rtc, *serial, *pci, *console, *i8042, *vga, *acpi_pm;
    uint8_t next_slot;
    struct fvm_device *fw_cfg;
    char disk_path[FVM_BOARD_DISKS_MAX][64], net_path[FVM_BOARD_NETS_MAX][64];
};

/* ---- the chips ---- */

static int create_lapic(struct fvm_board_pc *pc, struct fvm_device **ret)
{
    int r = fvm_lapic_create(pc->board, ret);

    pc->lapic = *ret;
    return r;
}

static int create_ioapic(struct fvm_board_pc *pc, struct fvm_device **ret)
{
    return fvm_ioapic_create(pc->board, ret);
}

static int create_i8259(struct fvm_board_pc *pc, struct fvm_device **ret)
{
    int r = fvm_i8259_create(pc->board, fvm_lapic_extint, pc->lapic, ret);

    if (!r)
        fvm_lapic_set_pic(pc->lapic, fvm_i8259_intack, *ret);
    return r;
}

static void hpet_legacy(void *ctx, bool on)
{
    struct fvm_board_pc *pc = ctx;

    if (pc->i8254) /* it is made after the HPET, so that a restore finds it muted in time */
        fvm_i8254_mute(pc->i8254, on);
    if (pc->rtc)
        fvm_mc146818_mute(pc->rtc, on);
}

static int create_hpet(struct fvm_board_pc *pc, struct fvm_device **ret)
{
    return fvm_hpet_create(pc->board, hpet_legacy, pc, ret);
}

static int create_i8254(struct fvm_board_pc *pc, struct fvm_device **ret)
{
    int r = fvm_i8254_create(pc->board, LINE_TIMER, ret);

    pc->i8254 = *ret;
    return r;
}

static int create_mc146818(struct fvm_board_pc *pc, struct fvm_device **ret)
{
    int r = fvm_mc146818_create(pc->board, LINE_RTC, ret);

    pc->rtc = *ret;
    return r;
}

static int create_serial(struct fvm_board_pc *pc, struct fvm_device **ret)
{
    int r = fvm_ns16550a_create(pc->board, PORT_COM1, LINE_COM1, "ns16550a", &pc->config->serial, ret);

    pc->serial = *ret;
    return r;
}

static int create_i8042(struct fvm_board_pc *pc, struct fvm_device **ret)
{
    int r = fvm_i8042_create(pc->board, ret);

    pc->i8042 = *ret;
    return r;
}

static int create_debug_exit(struct fvm_board_pc *pc, struct fvm_device **ret)
{
    return fvm_debug_exit_create(pc->board, ret);
}

static int create_pci_host(struct fvm_board_pc *pc, struct fvm_device **ret)
{
    int r = fvm_pci_host_create(pc->board, ret);

    pc->pci = *ret;
    return r;
}

static int create_acpi_pm(struct fvm_board_pc *pc, struct fvm_device **ret)
{
    int r = fvm_acpi_pm_create(pc->board, LINE_SCI, fvm_pci_host_of(pc->pci), ret);

    pc->acpi_pm = *ret;
    return r;
}

static int create_fw_cfg(struct fvm_board_pc *pc, struct fvm_device **ret)
{
    int r = fvm_fw_cfg_create(pc->board, ret);

    pc->fw_cfg = *ret;
    return r;
}

static int create_piix3(struct fvm_board_pc *pc, struct fvm_device **ret)
{
    return fvm_piix3_create(pc->board, fvm_pci_host_of(pc->pci), SLOT_SOUTH, pc->acpi_pm, ret);
}

/* Disks from the first place up, CD-ROMs from the secondary master, as PCs have them. */
static int create_piix_ide(struct fvm_board_pc *pc, struct fvm_device **ret)
{
    static const unsigned order[2][FVM_IDE_DRIVES] = {{0, 1, 2, 3}, {2, 3, 1, 0}};
    const struct fvm_board_pc_config *c = pc->config;
    struct fvm_ide_drive drives[FVM_IDE_DRIVES] = {{0}};

    for (unsigned pass = 0; pass < 2; pass++) {
        for (unsigned i = 0; i < c->disk_count; i++) {
            const struct fvm_board_pc_disk *d = &c->disks[i];
            unsigned k = 0;

            if (d->interface != FVM_BOARD_IDE || d->cdrom != pass)
                continue;
            while (k < FVM_IDE_DRIVES && drives[order[pass][k]].disk)
                k++;
            fvm_assert(k < FVM_IDE_DRIVES); /* vm_config_machine.c counts them */
            drives[order[pass][k]] = (struct fvm_ide_drive){.disk = d->disk, .cdrom = d->cdrom, .serial = d->serial};
            snprintf(pc->disk_path[i], sizeof(pc->disk_path[i]), "/pci@i0cf8/ide@%x,1/drive@%x/disk@%x", SLOT_SOUTH,
                     order[pass][k] / 2, order[pass][k] % 2);
        }
    }
    return fvm_piix_ide_create(pc->board, fvm_pci_host_of(pc->pci), SLOT_SOUTH, drives, ret);
}

/* THE list. */
static const struct {
    const char *chip;
    bool full_only;
    int (*create)(struct fvm_board_pc *pc, struct fvm_device **ret);
} chips[] = {
    /* chip         full PC  create                where                     interrupt */
    {"lapic", false, create_lapic},           /*    fee00000, MSRs 800..8ff   to the processors */
    {"ioapic", false, create_ioapic},         /*    fec00000                  lines 0..23 */
    {"i8259", false, create_i8259},           /*    20, a0, 4d0               lines 1..15, LINT0 */
    {"hpet", true, create_hpet},              /*    fed00000                  lines 20..23, or 2 and 8 for the next two */
    {"i8254", false, create_i8254},           /*    40..43, 61                line 2 (ISA IRQ 0) */
    {"mc146818", false, create_mc146818},     /*    70, 71                    line 8 */
    {"ns16550a", false, create_serial},       /*    3f8                       line 4 */
    {"i8042", false, create_i8042},           /*    60, 64, 92                lines 1, 12 */
    {"debug_exit", false, create_debug_exit}, /*    f4                        none */
    {"pci_host", false, create_pci_host},     /*    cf8, cfc; slot 0          10, 11 for its functions */
    {"acpi_pm", false, create_acpi_pm},       /*    600..63f, cf9             line 9 (SCI) */
    {"piix3", true, create_piix3},            /*    slot 1.0, 1.3             routes PCI's links */
    {"piix_ide", true, create_piix_ide},      /*    slot 1.1; 1f0, 170        lines 14, 15 */
    {"fw_cfg", true, create_fw_cfg},          /*    510..51b                  none */
};

/* ---- controllers and cards ---- */

static int add(struct fvm_board_pc *pc, int r, struct fvm_device *dev, const char *what, struct fvm_err *err)
{
    if (r)
        return fvm_err_set(err, r, 0, "board", "cannot make device %s: %s", what, fvm_err_text(r));
    fvm_assert(pc->count < DEVICES_MAX);
    pc->devices[pc->count++] = dev;
    return 0;
}

static int add_ahci(struct fvm_board_pc *pc, struct fvm_err *err)
{
    const struct fvm_board_pc_config *c = pc->config;
    struct fvm_ahci_drive drives[FVM_AHCI_PORTS] = {{0}};
    struct fvm_device *dev = NULL;
    unsigned n = 0;

    for (unsigned i = 0; i < c->disk_count; i++) {
        const struct fvm_board_pc_disk *d = &c->disks[i];

        if (d->interface != FVM_BOARD_AHCI)
            continue;
        fvm_assert(n < FVM_AHCI_PORTS); /* vm_config_machine.c counts them */
        snprintf(pc->disk_path[i], sizeof(pc->disk_path[i]), "/pci@i0cf8/pci8086,2922@%x/drive@%x/disk@0", pc->next_slot, n);
        drives[n++] = (struct fvm_ahci_drive){.disk = d->disk, .cdrom = d->cdrom, .serial = d->serial};
    }
    if (!n)
        return 0;
    int r = fvm_ahci_create(pc->board, fvm_pci_host_of(pc->pci), pc->next_slot++, drives, &dev);

    return add(pc, r, dev, "ahci", err);
}

static int add_virtio(struct fvm_board_pc *pc, struct fvm_err *err)
{
    const struct fvm_board_pc_config *c = pc->config;
    struct fvm_pci_host *host = fvm_pci_host_of(pc->pci);
    struct fvm_device *dev = NULL;
    char name[24];
    int r = 0;

    for (unsigned i = 0; !r && i < c->disk_count; i++) {
        if (c->disks[i].interface != FVM_BOARD_VIRTIO)
            continue;
        snprintf(pc->disk_path[i], sizeof(pc->disk_path[i]), "/pci@i0cf8/scsi@%x/disk@0,0", pc->next_slot);
        snprintf(name, sizeof(name), "virtio-blk%u", i);
        r = fvm_virtio_blk_create(pc->board, host, pc->next_slot++, name, c->disks[i].disk, c->disks[i].serial, &dev);
        r = add(pc, r, dev, name, err);
    }
    for (unsigned i = 0; !r && i < c->net_count; i++) {
        snprintf(pc->net_path[i], sizeof(pc->net_path[i]), "/pci@i0cf8/ethernet@%x/ethernet-phy@0", pc->next_slot);
        if (c->nets[i].rom)
            fvm_pci_host_set_rom(host, pc->next_slot, c->nets[i].rom, c->nets[i].rom_bytes);
        if (c->nets[i].e1000) {
            snprintf(name, sizeof(name), "e1000-%u", i);
            r = fvm_e1000_create(pc->board, host, pc->next_slot++, name, c->nets[i].net, c->nets[i].mac, &dev);
            r = add(pc, r, dev, name, err);
            continue;
        }
        snprintf(name, sizeof(name), "virtio-net%u", i);
        r = fvm_virtio_net_create(pc->board, host, pc->next_slot++, name, c->nets[i].net, c->nets[i].mac, &dev);
        r = add(pc, r, dev, name, err);
    }
    if (!r && c->has_console) {
        r = fvm_virtio_console_create(pc->board, host, pc->next_slot++, "virtio-console0", &c->console, &pc->console);
        r = add(pc, r, pc->console, "virtio-console0", err);
    }
    if (!r && c->rng) {
        r = fvm_virtio_rng_create(pc->board, host, pc->next_slot++, "virtio-rng0", &dev);
        r = add(pc, r, dev, "virtio-rng0", err);
    }
    if (!r && c->balloon) {
        r = fvm_virtio_balloon_create(pc->board, host, pc->next_slot++, "virtio-balloon0", &dev);
        r = add(pc, r, dev, "virtio-balloon0", err);
    }
    return r;
}

static int add_vga(struct fvm_board_pc *pc, struct fvm_err *err)
{
    const struct fvm_board_pc_config *c = pc->config;
    int r;

    if (!c->vga)
        return 0;
    r = fvm_vga_create(pc->board, fvm_pci_host_of(pc->pci), c->full ? SLOT_VGA_PC : SLOT_VGA, c->vga_rom,
                       c->vga_rom_bytes, &pc->vga);
    return add(pc, r, pc->vga, "vga", err);
}

/* ---- lifecycle ---- */

int fvm_board_pc_create(struct fvm_board *board, const struct fvm_board_pc_config *config, struct fvm_board_pc **ret_pc,
                        struct fvm_err *err)
{
    struct fvm_board_pc *pc;
    int r = 0;

    if (board->cpu_count < 1 || board->cpu_count > FVM_LAPIC_CPUS_MAX)
        return fvm_err_set(err, FVM_EINVAL, 0, "board", "a VM has 1 to %d processors, not %u", FVM_LAPIC_CPUS_MAX,
                           board->cpu_count);
    if (config->disk_count > FVM_BOARD_DISKS_MAX || config->net_count > FVM_BOARD_NETS_MAX)
        return fvm_err_set(err, FVM_EINVAL, 0, "board", "a VM has at most %d disks and %d network devices",
                           FVM_BOARD_DISKS_MAX, FVM_BOARD_NETS_MAX);
    pc = calloc(1, sizeof(*pc));
    if (!pc)
        return fvm_err_set(err, FVM_ENOMEM, 0, "board", "out of memory");
    pc->board = board;
    pc->config = config;
    pc->next_slot = config->full ? FIRST_SLOT_PC : FIRST_SLOT_VIRTIO;
    for (unsigned i = 0; !r && i < FVM_ARRAY_SIZE(chips); i++) {
        struct fvm_device *dev = NULL;

        if (chips[i].full_only && !config->full)
            continue;
        r = chips[i].create(pc, &dev);
        r = add(pc, r, dev, chips[i].chip, err);
    }
    if (!r)
        r = add_ahci(pc, err);
    if (!r)
        r = add_virtio(pc, err);
    if (!r)
        r = add_vga(pc, err);
    pc->config = NULL;
    if (r) {
        fvm_board_pc_destroy(&pc);
        return r;
    }
    *ret_pc = pc;
    return 0;
}

void fvm_board_pc_destroy(struct fvm_board_pc **pc_p)
{
    struct fvm_board_pc *pc = *pc_p;

    if (!pc)
        return;
    while (pc->count > 0) {
        struct fvm_device *dev = pc->devices[--pc->count];

        dev->ops->destroy(dev);
    }
    free(pc);
    *pc_p = NULL;
}

void fvm_board_pc_reset(struct fvm_board_pc *pc)
{
    for (unsigned i = 0; i < pc->count; i++)
        pc->devices[i]->ops->reset(pc->devices[i]);
    fvm_pci_host_assign(fvm_pci_host_of(pc->pci));
}

void fvm_board_pc_quiesce(struct fvm_board_pc *pc)
{
    for (unsigned i = pc->count; i-- > 0;)
        if (pc->devices[i]->ops->quiesce)
            pc->devices[i]->ops->quiesce(pc->devices[i]);
}

void fvm_board_pc_resume(struct fvm_board_pc *pc)
{
    for (unsigned i = 0; i < pc->count; i++)
        if (pc->devices[i]->ops->resume)
            pc->devices[i]->ops->resume(pc->devices[i]);
}

struct fvm_device *fvm_board_pc_fw_cfg(const struct fvm_board_pc *pc)
{
    return pc->fw_cfg;
}

const char *fvm_board_pc_disk_path(const struct fvm_board_pc *pc, unsigned index)
{
    fvm_assert(index < FVM_BOARD_DISKS_MAX);
    return pc->disk_path[index];
}

const char *fvm_board_pc_net_path(const struct fvm_board_pc *pc, unsigned index)
{
    fvm_assert(index < FVM_BOARD_NETS_MAX);
    return pc->net_path[index];
}

unsigned fvm_board_pc_device_count(const struct fvm_board_pc *pc)
{
    return pc->count;
}

struct fvm_device *fvm_board_pc_device_at(const struct fvm_board_pc *pc, unsigned index)
{
    fvm_assert(index < pc->count);
    return pc->devices[index];
}

struct fvm_device *fvm_board_pc_device(const struct fvm_board_pc *pc, const char *instance)
{
    for (unsigned i = 0; i < pc->count; i++)
        if (!strcmp(pc->devices[i]->instance, instance))
            return pc->devices[i];
    return NULL;
}

struct fvm_device *fvm_board_pc_vga(const struct fvm_board_pc *pc)
{
    return pc->vga;
}

struct fvm_device *fvm_board_pc_i8042(const struct fvm_board_pc *pc)
{
    return pc->i8042;
}

/* ---- state ---- */

static int save_one(struct fvm_device *dev, Fvm__DeviceState **ret)
{
    Fvm__DeviceState *s = malloc(sizeof(*s));
    size_t len = 0;
    int r;

    if (!s)
        return FVM_ENOMEM;
    fvm__device_state__init(s);
    *ret = s; /* owned by the list from here on, whatever happens */
    s->instance = strdup(dev->instance);
    s->chip = strdup(dev->ops->name);
    if (!s->instance || !s->chip)
        return FVM_ENOMEM;
    r = dev->ops->save(dev, &s->state.data, &len);
    s->state.len = r ? 0 : len;
    return r;
}

int fvm_board_pc_save(struct fvm_board_pc *pc, Fvm__DevicesState **ret)
{
    Fvm__DevicesState *all = malloc(sizeof(*all));
    int r = 0;

    if (!all)
        return FVM_ENOMEM;
    fvm__devices_state__init(all);
    all->devices = calloc(pc->count, sizeof(*all->devices));
    if (!all->devices)
        r = FVM_ENOMEM;
    for (unsigned i = 0; !r && i < pc->count; i++) {
        r = save_one(pc->devices[i], &all->devices[i]);
        all->n_devices += all->devices[i] != NULL;
    }
    if (r) {
        fvm__devices_state__free_unpacked(all, NULL);
        return r;
    }
    *ret = all;
    return 0;
}

int fvm_board_pc_check(struct fvm_board_pc *pc, const Fvm__DevicesState *state, struct fvm_err *err)
{
    if (state->n_devices != pc->count)
        return fvm_err_set(err, FVM_EBADIMAGE, 0, "board",
                           "the saved state has %zu devices, this VM %u: start it with the same options",
                           state->n_devices, pc->count);
    for (unsigned i = 0; i < pc->count; i++) {
        struct fvm_device *dev = pc->devices[i];
        const Fvm__DeviceState *s = state->devices[i];
        int r;

        if (strcmp(s->instance, dev->instance) != 0 || strcmp(s->chip, dev->ops->name) != 0)
            return fvm_err_set(err, FVM_EBADIMAGE, 0, "board",
                               "saved device %u is %.23s (%.23s), this VM has %s (%s) there", i, s->instance, s->chip,
                               dev->instance, dev->ops->name);
        r = dev->ops->check(dev, s->state.data, s->state.len, err);
        if (r)
            return r;
    }
    return 0;
}

void fvm_board_pc_restore(struct fvm_board_pc *pc, const Fvm__DevicesState *state)
{
    fvm_assert(state->n_devices == pc->count);
    for (unsigned i = 0; i < pc->count; i++)
        pc->devices[i]->ops->restore(pc->devices[i], state->devices[i]->state.data, state->devices[i]->state.len);
}

/* ---- serial port and console ---- */

size_t fvm_board_pc_serial_input(struct fvm_board_pc *pc, const uint8_t *bytes, size_t len)
{
    return fvm_ns16550a_input(pc->serial, bytes, len);
}

void fvm_board_pc_serial_output_ready(struct fvm_board_pc *pc)
{
    fvm_ns16550a_output_ready(pc->serial);
}

size_t fvm_board_pc_console_input(struct fvm_board_pc *pc, const uint8_t *bytes, size_t len)
{
    return pc->console ? fvm_virtio_console_input(pc->console, bytes, len) : len;
}

void fvm_board_pc_console_output_ready(struct fvm_board_pc *pc)
{
    if (pc->console)
        fvm_virtio_console_output_ready(pc->console);
}
