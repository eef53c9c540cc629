/*
 * ata_identify.c - what a drive says of itself (IDENTIFY DEVICE, IDENTIFY PACKET DEVICE), and its state in a save.
 *
 * Invariant: nothing is offered here that ata.c and atapi.c do not do.
 */
#include <string.h>

#include "vmm/devices/ata.h"

enum { TAG_NONE = 0x80 };

static void word(uint8_t *id, unsigned index, unsigned value)
{
    id[2 * index] = (uint8_t)value;
    id[2 * index + 1] = (uint8_t)(value >> 8);
}

/* Strings have their bytes swapped within each word. */
static void text(uint8_t *id, unsigned first, unsigned words, const char *s)
{
    size_t len = strlen(s);

    for (unsigned i = 0; i < 2 * words; i++)
        id[2 * first + (i ^ 1)] = (uint8_t)(i < len ? s[i] : ' ');
}

static void transfer_modes(const struct fvm_ata_drive *d, uint8_t *id)
{
    unsigned mode = d->transfer_mode & 7u;
    bool udma = (d->transfer_mode & 0xf8) == 0x40;

    word(id, 53, 7); /* words 54-58, 64-70 and 88 are valid */
    word(id, 63, 0x07 | (udma ? 0 : 0x100u << mode));
    word(id, 64, 3); /* PIO 3 and 4 */
    for (unsigned i = 65; i <= 68; i++)
        word(id, i, 120);
    word(id, 88, 0x3f | (udma ? 0x100u << mode : 0));
    if (d->sata) {
        word(id, 76, d->cdrom ? 0x0006 : 0x0106); /* 1.5 and 3 Gb/s, NCQ */
        word(id, 222, 0x1020);
    } else {
        word(id, 93, 0x6001); /* 80 conductors */
    }
}

static void identify_packet(const struct fvm_ata_drive *d, uint8_t *id)
{
    word(id, 0, 0x8580); /* CD-ROM, removable, DRQ soon after PACKET, 12 bytes */
    text(id, 27, 20, "FVM DVD-ROM");
    word(id, 49, 0x0f00);
    transfer_modes(d, id);
    word(id, 71, 30);
    word(id, 72, 30);
    word(id, 80, 0xf0);
    word(id, 82, 0x4210);
    word(id, 83, 0x4000);
    word(id, 84, 0x4000);
    word(id, 85, 0x4210);
    word(id, 87, 0x4000);
}

static void identify_disk(const struct fvm_ata_drive *d, uint8_t *id)
{
    uint64_t cylinders = d->sectors / (16 * 63);
    unsigned lba28 = (unsigned)FVM_MIN(d->sectors, (1ull << 28) - 1), chs;

    cylinders = FVM_MIN(cylinders, 16383);
    chs = (unsigned)cylinders * 16 * 63;
    word(id, 0, 0x0040);
    word(id, 1, (unsigned)cylinders);
    word(id, 3, 16);
    word(id, 6, 63);
    text(id, 27, 20, "FVM HARDDISK");
    word(id, 47, 0x8000 | FVM_ATA_MULTIPLE_MAX);
    word(id, 49, 0x0f00); /* LBA, DMA, IORDY */
    word(id, 50, 0x4000);
    word(id, 54, (unsigned)cylinders);
    word(id, 55, 16);
    word(id, 56, 63);
    word(id, 57, chs & 0xffff);
    word(id, 58, chs >> 16);
    word(id, 59, d->multiple ? 0x100u | d->multiple : 0);
    word(id, 60, lba28 & 0xffff);
    word(id, 61, lba28 >> 16);
    transfer_modes(d, id);
    if (d->sata)
        word(id, 75, 31);
    word(id, 80, 0xf0);
    word(id, 82, 0x4060); /* NOP, look-ahead, write cache */
    word(id, 83, 0x7400); /* FLUSH CACHE (EXT), 48 bits */
    word(id, 84, 0x4060); /* FUA; general purpose logging */
    word(id, 85, 0x4000 | (d->look_ahead ? 0x40u : 0) | (d->write_cache ? 0x20u : 0));
    word(id, 86, 0x3400);
    word(id, 87, 0x4060);
    for (unsigned i = 0; i < 4; i++)
        word(id, 100 + i, (unsigned)(d->sectors >> (16 * i)) & 0xffff);
    word(id, 217, 1); /* does not rotate */
}

void fvm_ata_identify(const struct fvm_ata_drive *d, uint8_t id[512])
{
    uint8_t sum = 0;

    memset(id, 0, 512);
    text(id, 10, 10, d->serial);
    text(id, 23, 4, "1.0");
    if (d->cdrom)
        identify_packet(d, id);
    else
        identify_disk(d, id);
    id[510] = 0xa5;
    for (unsigned i = 0; i < 511; i++)
        sum = (uint8_t)(sum + id[i]);
    id[511] = (uint8_t)-sum;
}

/* ---- state ---- */

void fvm_ata_drive_save(const struct fvm_ata_drive *d, Fvm__AtaDriveState *s)
{
    *s = (Fvm__AtaDriveState)FVM__ATA_DRIVE_STATE__INIT;
    s->present = d->disk != NULL;
    s->cdrom = d->cdrom;
    s->sectors = d->sectors;
    s->readonly = d->disk && fvm_disk_readonly(d->disk);
    s->heads = d->heads;
    s->sectors_per_track = d->sectors_per_track;
    s->multiple = d->multiple;
    s->transfer_mode = d->transfer_mode;
    s->write_cache = d->write_cache;
    s->look_ahead = d->look_ahead;
    s->sense = (uint32_t)d->sense_key << 16 | (uint32_t)d->asc << 8 | d->ascq;
    s->tray_open = d->tray_open;
    s->tray_locked = d->tray_locked;
    s->failed_tag = d->failed_tag;
}

const char *fvm_ata_drive_check(const struct fvm_ata_drive *d, const Fvm__AtaDriveState *s)
{
    if (!s)
        return "a drive is missing";
    if (s->present != (d->disk != NULL) || s->cdrom != d->cdrom)
        return "other drives are attached";
    if (s->sectors != d->sectors)
        return "the disk has another size than the saved one; is it the same volume?";
    if (d->disk && s->readonly != fvm_disk_readonly(d->disk))
        return "one of the disks is read-only, the other is not";
    if (!d->disk)
        return s->heads || s->sectors_per_track || s->multiple || s->transfer_mode || s->sense || s->failed_tag ||
                       s->write_cache || s->look_ahead || s->tray_open || s->tray_locked
                   ? "settings of a drive that is not there"
                   : NULL;
    if (s->heads < 1 || s->heads > 16 || s->sectors_per_track < 1 || s->sectors_per_track > 255)
        return "drive geometry";
    if (s->multiple > FVM_ATA_MULTIPLE_MAX || (s->multiple & (s->multiple - 1)))
        return "sectors of READ MULTIPLE";
    if ((s->transfer_mode < 0x20 || s->transfer_mode > 0x22) && (s->transfer_mode < 0x40 || s->transfer_mode > 0x45))
        return "transfer mode";
    if (s->sense > 0x0fffff)
        return "sense data";
    if (s->failed_tag > 31 && s->failed_tag != TAG_NONE)
        return "failed tag";
    return NULL;
}

void fvm_ata_drive_restore(struct fvm_ata_drive *d, const Fvm__AtaDriveState *s)
{
    d->heads = (uint8_t)s->heads;
    d->sectors_per_track = (uint8_t)s->sectors_per_track;
    d->multiple = (uint8_t)s->multiple;
    d->transfer_mode = (uint8_t)s->transfer_mode;
    d->write_cache = s->write_cache;
    d->look_ahead = s->look_ahead;
    d->sense_key = (uint8_t)(s->sense >> 16);
    d->asc = (uint8_t)(s->sense >> 8);
    d->ascq = (uint8_t)s->sense;
    d->tray_open = s->tray_open;
    d->tray_locked = s->tray_locked;
    d->failed_tag = (uint8_t)s->failed_tag;
}

void fvm_ata_taskfile_save(const struct fvm_ata_taskfile *tf, Fvm__AtaTaskfileState *s)
{
    *s = (Fvm__AtaTaskfileState)FVM__ATA_TASKFILE_STATE__INIT;
    s->command = tf->command;
    s->device = tf->device;
    s->status = tf->status;
    s->error = tf->error;
    s->feature = tf->feature;
    s->count = tf->count;
    s->lba_low = tf->lba_low;
    s->lba_mid = tf->lba_mid;
    s->lba_high = tf->lba_high;
}

const char *fvm_ata_taskfile_check(const Fvm__AtaTaskfileState *s)
{
    if (!s)
        return "a taskfile is missing";
    if ((s->command | s->device | s->status | s->error) > 0xff ||
        (s->feature | s->count | s->lba_low | s->lba_mid | s->lba_high) > 0xffff)
        return "taskfile registers too wide";
    return NULL;
}

void fvm_ata_taskfile_restore(struct fvm_ata_taskfile *tf, const Fvm__AtaTaskfileState *s)
{
    tf->command = (uint8_t)s->command;
    tf->device = (uint8_t)s->device;
    tf->status = (uint8_t)s->status;
    tf->error = (uint8_t)s->error;
    tf->feature = (uint16_t)s->feature;
    tf->count = (uint16_t)s->count;
    tf->lba_low = (uint16_t)s->lba_low;
    tf->lba_mid = (uint16_t)s->lba_mid;
    tf->lba_high = (uint16_t)s->lba_high;
}
