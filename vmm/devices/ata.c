/*
 * ata.c - the ATA command set (ATA8-ACS), as far as drivers of PATA and SATA disks use it: what a taskfile asks for.
 *
 * Commands that move sectors are decoded to a range of the disk here; ranges are checked against the capacity before
 * anything is moved, so a controller never sees one outside. What is not supported is aborted, as the standard wants.
 *
 * Invariant: after fvm_ata_decode or _finish with kind DONE, BSY and DRQ are clear. Must not know of registers or FISes.
 */
#include "vmm/devices/ata.h"

#include <string.h>

#include "base/log.h"

enum { ERRORS_PER_LINE = 64, WP = 0x40, TAG_NONE = 0x80 };
enum { DEVICE_LBA = 0x40, DEVICE_FUA = 0x80 };
enum { READY = FVM_ATA_DRDY | FVM_ATA_DSC };
enum { /* commands */
    READ_EXT = 0x24, READ_DMA_EXT = 0x25, READ_NATIVE_MAX_EXT = 0x27, READ_MULTIPLE_EXT = 0x29, READ_LOG_EXT = 0x2f,
    WRITE_EXT = 0x34, WRITE_DMA_EXT = 0x35, WRITE_MULTIPLE_EXT = 0x39, WRITE_DMA_FUA_EXT = 0x3d, VERIFY_EXT = 0x42,
    READ_FPDMA = 0x60, WRITE_FPDMA = 0x61, DIAGNOSTIC = 0x90, INIT_PARAMETERS = 0x91, PACKET = 0xa0,
    IDENTIFY_PACKET = 0xa1, READ_MULTIPLE = 0xc4, WRITE_MULTIPLE = 0xc5, SET_MULTIPLE = 0xc6, READ_DMA = 0xc8,
    READ_DMA_NO_RETRY = 0xc9, WRITE_DMA = 0xca, WRITE_DMA_NO_RETRY = 0xcb, WRITE_MULTIPLE_FUA_EXT = 0xce,
    CHECK_POWER = 0xe5, FLUSH = 0xe7, FLUSH_EXT = 0xea, IDENTIFY = 0xec, SET_FEATURES = 0xef, READ_NATIVE_MAX = 0xf8,
    DEVICE_RESET = 0x08,
};

void fvm_ata_drive_reset(struct fvm_ata_drive *drive)
{
    drive->heads = 16;
    drive->sectors_per_track = 63;
    drive->multiple = FVM_ATA_MULTIPLE_MAX;
    drive->transfer_mode = 0x22; /* multiword DMA 2 */
    drive->write_cache = drive->look_ahead = true;
    drive->sense_key = drive->asc = drive->ascq = 0;
    drive->tray_open = drive->tray_locked = false;
    drive->failed_tag = TAG_NONE;
}

void fvm_ata_init(struct fvm_ata_drive *drive, struct fvm_disk *disk, bool cdrom, bool sata, const char *serial)
{
    memset(drive, 0, sizeof(*drive));
    drive->disk = disk;
    drive->cdrom = cdrom;
    drive->sata = sata;
    memcpy(drive->serial, serial ? serial : "FVM00001", strnlen(serial ? serial : "FVM00001", 20));
    drive->sectors = fvm_disk_bytes(disk) / (cdrom ? FVM_ATA_CD_SECTOR : FVM_ATA_SECTOR);
    fvm_ata_drive_reset(drive);
}

void fvm_ata_signature(const struct fvm_ata_drive *drive, struct fvm_ata_taskfile *tf)
{
    tf->count = tf->lba_low = 1;
    tf->lba_mid = drive->cdrom ? 0x14 : 0;
    tf->lba_high = drive->cdrom ? 0xeb : 0;
    tf->device &= 0x10;
    tf->error = 1;
    tf->status = drive->cdrom ? 0 : READY; /* a packet device says DRDY after its first command */
}

/* ---- ends ---- */

void fvm_ata_abort(struct fvm_ata_task *task, uint8_t error)
{
    task->kind = FVM_ATA_DONE;
    task->bytes = 0;
    task->tf.status = READY | FVM_ATA_ERR;
    task->tf.error = error;
}

static void complete(struct fvm_ata_task *task)
{
    task->kind = FVM_ATA_DONE;
    task->tf.status = READY;
    task->tf.error = 0;
    if (task->packet)
        task->tf.count = FVM_ATAPI_CD | FVM_ATAPI_IO;
}

void fvm_ata_finish(struct fvm_ata_task *task, int status)
{
    struct fvm_ata_drive *d = task->drive;
    enum fvm_ata_kind kind = task->kind;

    if (status == 0) {
        complete(task);
        return;
    }
    if (d->errors++ % ERRORS_PER_LINE == 0)
        fvm_log(WARN, "ata.error", "serial=%s command=%#x err=%s", d->serial, task->tf.command, fvm_err_name(status));
    if (task->packet)
        fvm_atapi_fail(task, 3, 0x11, 0); /* unrecovered read error */
    else
        fvm_ata_abort(task, kind == FVM_ATA_READ ? FVM_ATA_UNC : FVM_ATA_ABRT);
    if (kind == FVM_ATA_WRITE || kind == FVM_ATA_FLUSH)
        task->tf.status |= FVM_ATA_DF;
}

static void on_moved(void *ctx, int status)
{
    struct fvm_ata_task *task = ctx;

    if (status == 0 && task->then_flush && task->kind == FVM_ATA_WRITE)
        fvm_disk_flush(task->drive->disk, task->done, task->ctx);
    else
        task->done(task->ctx, status);
}

void fvm_ata_transfer(struct fvm_ata_task *task, uint64_t skip, const struct iovec *iov, int iov_count, fvm_disk_done done,
                      void *ctx)
{
    struct fvm_disk *disk = task->drive->disk;

    task->done = done;
    task->ctx = ctx;
    if (task->kind == FVM_ATA_FLUSH) {
        fvm_disk_flush(disk, on_moved, task);
    } else if (task->kind == FVM_ATA_WRITE) {
        fvm_disk_writev(disk, task->offset + skip, iov, iov_count, on_moved, task);
    } else {
        fvm_assert(task->kind == FVM_ATA_READ);
        fvm_disk_readv(disk, task->offset + skip, iov, iov_count, on_moved, task);
    }
}

/* ---- addresses ---- */

static uint64_t lba48(const struct fvm_ata_taskfile *tf)
{
    return (tf->lba_low & 0xff) | (uint64_t)(tf->lba_mid & 0xff) << 8 | (uint64_t)(tf->lba_high & 0xff) << 16 |
           (uint64_t)(tf->lba_low >> 8) << 24 | (uint64_t)(tf->lba_mid >> 8) << 32 | (uint64_t)(tf->lba_high >> 8) << 40;
}

static void put_lba(struct fvm_ata_taskfile *tf, uint64_t lba, bool ext)
{
    tf->lba_low = (uint16_t)((lba & 0xff) | (ext ? (lba >> 24 & 0xff) << 8 : 0));
    tf->lba_mid = (uint16_t)((lba >> 8 & 0xff) | (ext ? (lba >> 32 & 0xff) << 8 : 0));
    tf->lba_high = (uint16_t)((lba >> 16 & 0xff) | (ext ? (lba >> 40 & 0xff) << 8 : 0));
    if (!ext)
        tf->device = (uint8_t)((tf->device & 0xf0) | (lba >> 24 & 0x0f));
}

/* First sector and count of a 28-bit or CHS command; false: no such address. */
static bool address28(const struct fvm_ata_task *task, uint64_t *ret_lba, uint32_t *ret_count)
{
    const struct fvm_ata_taskfile *tf = &task->tf;
    const struct fvm_ata_drive *d = task->drive;
    unsigned sector = tf->lba_low & 0xff, head = tf->device & 0x0f;
    unsigned cylinder = (tf->lba_mid & 0xff) | (tf->lba_high & 0xffu) << 8;

    *ret_count = tf->count & 0xff ? tf->count & 0xff : 256;
    if (tf->device & DEVICE_LBA) {
        *ret_lba = sector | cylinder << 8 | head << 24;
        return true;
    }
    *ret_lba = ((uint64_t)cylinder * d->heads + head) * d->sectors_per_track + sector - 1;
    return sector >= 1 && sector <= d->sectors_per_track && head < d->heads;
}

static void move(struct fvm_ata_task *task, enum fvm_ata_kind kind, bool dma, bool ext, uint32_t block_sectors)
{
    struct fvm_ata_drive *d = task->drive;
    uint64_t lba = lba48(&task->tf);
    uint32_t count = task->tf.count ? task->tf.count : 65536;

    if (!ext && !address28(task, &lba, &count)) {
        fvm_ata_abort(task, FVM_ATA_IDNF);
        return;
    }
    if (lba > d->sectors || count > d->sectors - lba) {
        fvm_ata_abort(task, FVM_ATA_IDNF);
        return;
    }
    if (kind == FVM_ATA_WRITE && fvm_disk_readonly(d->disk)) {
        fvm_ata_abort(task, FVM_ATA_ABRT | WP);
        return;
    }
    task->kind = kind;
    task->dma = dma;
    task->offset = lba * FVM_ATA_SECTOR;
    task->bytes = count * FVM_ATA_SECTOR;
    task->block = block_sectors * FVM_ATA_SECTOR;
    task->then_flush = kind == FVM_ATA_WRITE && !d->write_cache;
}

static void move_multiple(struct fvm_ata_task *task, enum fvm_ata_kind kind, bool ext)
{
    if (!task->drive->multiple)
        fvm_ata_abort(task, FVM_ATA_ABRT);
    else
        move(task, kind, false, ext, task->drive->multiple);
}

/* NCQ: the count is in the feature register, FUA in the device register. */
static void move_queued(struct fvm_ata_task *task, enum fvm_ata_kind kind)
{
    bool fua = task->tf.device & DEVICE_FUA;

    if (!task->drive->sata) {
        fvm_ata_abort(task, FVM_ATA_ABRT);
        return;
    }
    task->tf.count = task->tf.feature;
    move(task, kind, true, true, 1);
    task->queued = true;
    if (kind == FVM_ATA_WRITE)
        task->then_flush |= fua;
}

static void verify(struct fvm_ata_task *task, bool ext)
{
    move(task, FVM_ATA_READ, false, ext, 1);
    if (task->kind == FVM_ATA_READ) {
        task->bytes = 0;
        complete(task);
    }
}

/* ---- commands without sectors ---- */

static void answer(struct fvm_ata_task *task, uint32_t bytes)
{
    task->kind = FVM_ATA_IN;
    task->dma = false;
    task->bytes = task->block = bytes;
}

static void set_features(struct fvm_ata_task *task)
{
    struct fvm_ata_drive *d = task->drive;
    uint8_t mode = (uint8_t)task->tf.count;

    switch (task->tf.feature & 0xff) {
    case 0x02:
    case 0x82:
        d->write_cache = (task->tf.feature & 0xff) == 0x02;
        if (!d->write_cache && !d->cdrom && !fvm_disk_readonly(d->disk)) {
            task->kind = FVM_ATA_FLUSH;
            return;
        }
        break;
    case 0x03:
        if (mode >> 3 == 0 || mode >> 3 == 1)
            break; /* PIO: flow control or not, nothing to keep */
        if ((mode & 0xf8) != 0x20 && (mode & 0xf8) != 0x40) {
            fvm_ata_abort(task, FVM_ATA_ABRT);
            return;
        }
        if ((mode & 7) > ((mode & 0xf8) == 0x20 ? 2 : 5)) {
            fvm_ata_abort(task, FVM_ATA_ABRT);
            return;
        }
        d->transfer_mode = mode;
        break;
    case 0x55:
    case 0xaa:
        d->look_ahead = (task->tf.feature & 0xff) == 0xaa;
        break;
    case 0x66: /* defaults at software reset: kept anyway */
    case 0xcc:
        break;
    default:
        fvm_ata_abort(task, FVM_ATA_ABRT);
        return;
    }
    complete(task);
}

static void set_multiple(struct fvm_ata_task *task)
{
    uint8_t n = (uint8_t)task->tf.count;

    if (n > FVM_ATA_MULTIPLE_MAX || (n & (n - 1))) {
        fvm_ata_abort(task, FVM_ATA_ABRT);
        return;
    }
    task->drive->multiple = n;
    complete(task);
}

/* Log 10h: which queued command failed, and how. Reading it ends the error. */
static void queued_error_log(struct fvm_ata_drive *d, uint8_t *log)
{
    uint8_t sum = 0;

    log[0] = d->failed_tag;
    if (d->failed_tag != TAG_NONE) {
        log[2] = READY | FVM_ATA_ERR;
        log[3] = FVM_ATA_ABRT;
    }
    for (unsigned i = 0; i < 511; i++)
        sum = (uint8_t)(sum + log[i]);
    log[511] = (uint8_t)-sum;
    d->failed_tag = TAG_NONE;
}

static void read_log(struct fvm_ata_task *task)
{
    struct fvm_ata_drive *d = task->drive;
    uint8_t log = (uint8_t)task->tf.lba_low;

    if ((log != 0 && log != 0x10) || (log == 0x10 && !d->sata) || task->tf.count != 1) {
        fvm_ata_abort(task, FVM_ATA_ABRT);
        return;
    }
    memset(task->buffer, 0, 512);
    if (log == 0x10) {
        queued_error_log(d, task->buffer);
    } else { /* the directory: version, then pages of each log */
        task->buffer[0] = 1;
        task->buffer[2 * 0x10] = d->sata;
    }
    answer(task, 512);
}

static void flush(struct fvm_ata_task *task)
{
    if (fvm_disk_readonly(task->drive->disk))
        complete(task);
    else
        task->kind = FVM_ATA_FLUSH;
}

static void small_disk_command(struct fvm_ata_task *task)
{
    struct fvm_ata_drive *d = task->drive;
    struct fvm_ata_taskfile *tf = &task->tf;

    switch (tf->command) {
    case IDENTIFY:
        fvm_ata_identify(d, task->buffer);
        answer(task, 512);
        return;
    case SET_MULTIPLE:
        set_multiple(task);
        return;
    case READ_LOG_EXT:
        read_log(task);
        return;
    case FLUSH:
    case FLUSH_EXT:
        flush(task);
        return;
    case INIT_PARAMETERS:
        if (!(tf->count & 0xff)) {
            fvm_ata_abort(task, FVM_ATA_ABRT);
            return;
        }
        d->heads = (uint8_t)((tf->device & 0x0f) + 1);
        d->sectors_per_track = (uint8_t)tf->count;
        break;
    case READ_NATIVE_MAX:
        put_lba(tf, FVM_MIN(d->sectors, 1ull << 28) - 1, false);
        break;
    case READ_NATIVE_MAX_EXT:
        put_lba(tf, d->sectors - 1, true);
        break;
    default:
        if ((tf->command & 0xf0) != 0x10 && (tf->command & 0xf0) != 0x70) { /* RECALIBRATE, SEEK */
            fvm_ata_abort(task, FVM_ATA_ABRT);
            return;
        }
    }
    complete(task);
}

static void disk_command(struct fvm_ata_task *task)
{
    switch (task->tf.command) {
    case 0x20: case 0x21: move(task, FVM_ATA_READ, false, false, 1); break;
    case 0x30: case 0x31: move(task, FVM_ATA_WRITE, false, false, 1); break;
    case 0x40: case 0x41: verify(task, false); break;
    case VERIFY_EXT: verify(task, true); break;
    case READ_EXT: move(task, FVM_ATA_READ, false, true, 1); break;
    case WRITE_EXT: move(task, FVM_ATA_WRITE, false, true, 1); break;
    case READ_MULTIPLE: move_multiple(task, FVM_ATA_READ, false); break;
    case READ_MULTIPLE_EXT: move_multiple(task, FVM_ATA_READ, true); break;
    case WRITE_MULTIPLE: move_multiple(task, FVM_ATA_WRITE, false); break;
    case WRITE_MULTIPLE_EXT: move_multiple(task, FVM_ATA_WRITE, true); break;
    case READ_DMA: case READ_DMA_NO_RETRY: move(task, FVM_ATA_READ, true, false, 1); break;
    case WRITE_DMA: case WRITE_DMA_NO_RETRY: move(task, FVM_ATA_WRITE, true, false, 1); break;
    case READ_DMA_EXT: move(task, FVM_ATA_READ, true, true, 1); break;
    case WRITE_DMA_EXT: move(task, FVM_ATA_WRITE, true, true, 1); break;
    case READ_FPDMA: move_queued(task, FVM_ATA_READ); break;
    case WRITE_FPDMA: move_queued(task, FVM_ATA_WRITE); break;
    case WRITE_MULTIPLE_FUA_EXT:
        move_multiple(task, FVM_ATA_WRITE, true);
        task->then_flush = true;
        break;
    case WRITE_DMA_FUA_EXT:
        move(task, FVM_ATA_WRITE, true, true, 1);
        task->then_flush = true;
        break;
    default: small_disk_command(task); break;
    }
}

static void cdrom_command(struct fvm_ata_task *task)
{
    switch (task->tf.command) {
    case PACKET:
        task->kind = FVM_ATA_PACKET;
        task->dma = task->tf.feature & 1;
        task->packet = true;
        break;
    case IDENTIFY_PACKET:
        fvm_ata_identify(task->drive, task->buffer);
        answer(task, 512);
        break;
    case DEVICE_RESET:
        task->kind = FVM_ATA_DONE;
        fvm_ata_signature(task->drive, &task->tf);
        break;
    default: /* IDENTIFY and READ SECTORS too: the signature tells the driver what this is */
        fvm_ata_signature(task->drive, &task->tf);
        fvm_ata_abort(task, FVM_ATA_ABRT);
    }
}

void fvm_ata_decode(struct fvm_ata_task *task)
{
    task->kind = FVM_ATA_DONE;
    task->dma = task->queued = task->packet = task->then_flush = false;
    task->bytes = task->block = 0;
    task->offset = 0;
    switch (task->tf.command) {
    case SET_FEATURES:
        set_features(task);
        break;
    case DIAGNOSTIC:
        fvm_ata_signature(task->drive, &task->tf);
        break;
    case CHECK_POWER:
        complete(task);
        task->tf.count = 0xff; /* active */
        break;
    case 0xe0: case 0xe1: case 0xe2: case 0xe3: case 0xe6: /* standby, idle, sleep */
        complete(task);
        break;
    default:
        if (task->drive->cdrom)
            cdrom_command(task);
        else
            disk_command(task);
    }
}
