/*
 * piix_ide.c - the IDE function of the 82371SB (PIIX3): task file registers at the PC's old places and the bus master
 * registers in BAR 4. What commands do is ide_channel.c.
 *
 * The channels decode from power-on, as firmware leaves them (IDETIM bit 15): a guest that is booted without firmware finds
 * them enabled. Invariant: a drive that is not there reads as zeros while the other one is, and never takes a command.
 */
#include <stdlib.h>

#include "vmm/devices/pack.h"
#include "vmm/devices/pci_impl.h"
#include "vmm/devices/piix_ide_impl.h"

enum { BAR_BM = 4, BM_BYTES = 16, IDETIM = 0x40, IDETIM_ENABLE = 0x80 };
enum { REG_DATA, REG_ERROR, REG_COUNT, REG_LBA_LOW, REG_LBA_MID, REG_LBA_HIGH, REG_DEVICE, REG_STATUS };

static uint8_t of(const struct ide_channel *c, uint16_t reg)
{
    return (uint8_t)(c->control & IDE_CONTROL_HOB ? reg >> 8 : reg);
}

static bool absent(const struct ide_channel *c)
{
    return !ide_present(c, c->selected);
}

static uint8_t reg_read(struct ide_channel *c, unsigned reg)
{
    const struct fvm_ata_taskfile *tf = &c->tf[c->selected];

    if (absent(c))
        return reg == REG_DEVICE ? (uint8_t)(c->tf[c->selected].device | 0xa0) : 0;
    switch (reg) {
    case REG_ERROR: return tf->error;
    case REG_COUNT: return of(c, tf->count);
    case REG_LBA_LOW: return of(c, tf->lba_low);
    case REG_LBA_MID: return of(c, tf->lba_mid);
    case REG_LBA_HIGH: return of(c, tf->lba_high);
    case REG_DEVICE: return tf->device | 0xa0;
    default:
        fvm_ide_channel_interrupt(c, false);
        return tf->status;
    }
}

static uint64_t task_read(void *ctx, uint64_t offset, unsigned size)
{
    struct ide_channel *c = ctx;
    uint64_t value = 0;

    if (offset == REG_DATA)
        return absent(c) ? UINT64_MAX >> (64 - 8 * size) : fvm_ide_channel_data_read(c, size);
    for (unsigned i = 0; i < size; i++)
        value |= (uint64_t)reg_read(c, (unsigned)offset + i) << (8 * i);
    return value;
}

static void shift_in(uint16_t *reg, uint8_t value)
{
    *reg = (uint16_t)(*reg << 8 | value);
}

static void reg_write(struct ide_channel *c, unsigned reg, uint8_t value)
{
    c->control &= (uint8_t)~IDE_CONTROL_HOB;
    if (reg == REG_STATUS) {
        fvm_ide_channel_command(c, value);
        return;
    }
    if (c->phase != IDE_IDLE)
        return;
    if (reg == REG_DEVICE) {
        fvm_ide_channel_select(c, value);
        return;
    }
    for (unsigned i = 0; i < 2; i++) {
        struct fvm_ata_taskfile *tf = &c->tf[i];

        shift_in(reg == REG_ERROR     ? &tf->feature
                 : reg == REG_COUNT   ? &tf->count
                 : reg == REG_LBA_LOW ? &tf->lba_low
                 : reg == REG_LBA_MID ? &tf->lba_mid
                                      : &tf->lba_high,
                 value);
    }
}

static void task_write(void *ctx, uint64_t offset, unsigned size, uint64_t value)
{
    struct ide_channel *c = ctx;

    if (offset == REG_DATA) {
        fvm_ide_channel_data_write(c, size, (uint32_t)value);
        return;
    }
    for (unsigned i = 0; i < size; i++)
        reg_write(c, (unsigned)offset + i, (uint8_t)(value >> (8 * i)));
}

static uint64_t alternate_read(void *ctx, uint64_t offset, unsigned size)
{
    const struct ide_channel *c = ctx;

    (void)offset;
    (void)size;
    return absent(c) ? 0 : c->tf[c->selected].status;
}

static void control_write(void *ctx, uint64_t offset, unsigned size, uint64_t value)
{
    (void)offset;
    (void)size;
    fvm_ide_channel_control(ctx, (uint8_t)value & (IDE_CONTROL_NIEN | IDE_CONTROL_SRST | IDE_CONTROL_HOB));
}

/* ---- bus master registers ---- */

static void bm_command_write(struct ide_channel *c, uint8_t value)
{
    bool was = c->bm_command & BM_START;

    if (was && !(value & BM_START)) { /* the engine is not stopped in the middle of a transfer: wait for its end */
        if (c->task.dma)
            fvm_ide_channel_drain(c);
        c->bm_status &= (uint8_t)~BM_ACTIVE;
    }
    c->bm_command = value & (BM_START | BM_TO_MEMORY);
    if (!was && (value & BM_START)) {
        c->bm_status |= BM_ACTIVE;
        fvm_ide_channel_dma(c);
    }
}

static uint64_t bm_read(void *ctx, uint64_t offset, unsigned size)
{
    const struct piix_ide *ide = ctx;
    const struct ide_channel *c = &ide->channel[offset >> 3 & 1];
    uint64_t regs = c->bm_command | (uint64_t)c->bm_status << 16 | (uint64_t)c->bm_table << 32;

    (void)size;
    return regs >> (8 * (offset & 7));
}

static void bm_write(void *ctx, uint64_t offset, unsigned size, uint64_t value)
{
    struct piix_ide *ide = ctx;
    struct ide_channel *c = &ide->channel[offset >> 3 & 1];

    for (unsigned i = 0; i < size; i++) {
        unsigned at = ((unsigned)offset + i) & 7;
        uint8_t byte = (uint8_t)(value >> (8 * i));

        if (at == 0) {
            bm_command_write(c, byte);
        } else if (at == 2) {
            c->bm_status = (uint8_t)((c->bm_status & ~(byte & (BM_ERROR | BM_INTERRUPT)) & ~BM_CAPABLE) | (byte & BM_CAPABLE));
        } else if (at >= 4) {
            unsigned shift = 8 * (at - 4);

            c->bm_table = (c->bm_table & ~(0xffu << shift)) | (uint32_t)byte << shift;
            c->bm_table &= ~3u;
        }
    }
}

static void config_written(void *ctx, unsigned offset, unsigned size)
{
    struct piix_ide *ide = ctx;

    (void)offset;
    (void)size;
    for (unsigned i = 0; i < IDE_CHANNELS; i++) /* bus mastering may have been allowed just now */
        fvm_ide_channel_dma(&ide->channel[i]);
}

static const struct fvm_bus_ops task_ops = {.read = task_read, .write = task_write};
static const struct fvm_bus_ops control_ops = {.read = alternate_read, .write = control_write};
static const struct fvm_bus_ops bm_ops = {.read = bm_read, .write = bm_write};
static const struct fvm_pci_function_ops pci_ops = {.config_written = config_written};

/* ---- lifecycle ---- */

static void ide_reset(struct fvm_device *dev)
{
    struct piix_ide *ide = (struct piix_ide *)dev;

    for (unsigned i = 0; i < IDE_CHANNELS; i++)
        fvm_ide_channel_reset(&ide->channel[i]);
    fvm_pci_function_reset(&ide->pci);
}

static void ide_quiesce(struct fvm_device *dev)
{
    struct piix_ide *ide = (struct piix_ide *)dev;

    for (unsigned i = 0; i < IDE_CHANNELS; i++)
        fvm_ide_channel_drain(&ide->channel[i]);
}

static void ide_destroy(struct fvm_device *dev)
{
    struct piix_ide *ide = (struct piix_ide *)dev;

    for (unsigned i = 0; i < IDE_CHANNELS; i++) {
        struct ide_channel *c = &ide->channel[i];

        fvm_ide_channel_drain(c);
        fvm_dma_fini(&c->dma);
        for (unsigned k = 0; k < 2; k++)
            if (c->claim_id[k] >= 0)
                fvm_bus_release(dev->board->bus, c->claim_id[k]);
    }
    fvm_pci_function_fini(&ide->pci);
    free(ide);
}

static const struct fvm_device_ops ide_ops = {
    .name = "piix_ide",
    .destroy = ide_destroy,
    .reset = ide_reset,
    .quiesce = ide_quiesce,
    .save = fvm_ide_save,
    .check = fvm_ide_check,
    .restore = fvm_ide_restore,
};

static int claim(struct piix_ide *ide)
{
    static const struct {
        uint16_t task, control;
        unsigned line;
    } place[IDE_CHANNELS] = {{0x1f0, 0x3f6, 14}, {0x170, 0x376, 15}};
    struct fvm_bus *bus = ide->dev.board->bus;
    int r = 0;

    for (unsigned i = 0; i < IDE_CHANNELS; i++) {
        struct ide_channel *c = &ide->channel[i];

        c->ide = ide;
        c->line = place[i].line;
        c->claim_id[0] = c->claim_id[1] = -1;
        if (!r)
            r = fvm_bus_claim(bus, FVM_BUS_PIO, place[i].task, 8, &task_ops, c, "ide", &c->claim_id[0]);
        if (!r)
            r = fvm_bus_claim(bus, FVM_BUS_PIO, place[i].control, 1, &control_ops, c, "ide-control", &c->claim_id[1]);
    }
    return r;
}

int fvm_piix_ide_create(struct fvm_board *board, struct fvm_pci_host *host, uint8_t slot,
                        const struct fvm_ide_drive drives[FVM_IDE_DRIVES], struct fvm_device **ret_dev)
{
    const struct fvm_pci_id id = {.slot = slot, .function = 1, .vendor = 0x8086, .device = 0x7010,
                                  .subsystem_vendor = 0x1af4, .subsystem = 0x1100, .class_code = 0x010180};
    struct piix_ide *ide = calloc(1, sizeof(*ide));
    int r;

    if (!ide)
        return FVM_ENOMEM;
    fvm_device_init(&ide->dev, &ide_ops, "piix_ide", board);
    for (unsigned i = 0; i < FVM_IDE_DRIVES; i++)
        if (drives[i].disk)
            fvm_ata_init(&ide->channel[i / 2].drive[i % 2], drives[i].disk, drives[i].cdrom, false, drives[i].serial);
    r = fvm_pci_function_init(&ide->pci, host, &id, &pci_ops, ide);
    if (r) {
        free(ide);
        return r;
    }
    fvm_pci_bar_add(&ide->pci, BAR_BM, FVM_PCI_BAR_IO, BM_BYTES, &bm_ops, ide, "ide-bm");
    fvm_pci_config_writable(&ide->pci, IDETIM, 4, 0xff);
    fvm_pci_config_writable(&ide->pci, IDETIM + 4, 1, 0xff); /* SIDETIM */
    ide->pci.config[IDETIM + 1] = ide->pci.config[IDETIM + 3] = IDETIM_ENABLE;
    r = claim(ide);
    if (r) {
        ide_destroy(&ide->dev);
        return r;
    }
    ide_reset(&ide->dev);
    *ret_dev = &ide->dev;
    return 0;
}
