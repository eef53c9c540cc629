/*
 * atapi.c - the packet commands of a CD/DVD-ROM drive (MMC-3, SPC-2): a data disc of one track, as ISO images are.
 *
 * A command that is refused leaves sense data, which REQUEST SENSE fetches. The tray opens and closes (START STOP UNIT), the
 * medium in it is always the same image. Answers are cut to the allocation length that the host gives.
 *
 * Invariant: an answer fits task->buffer; a read lies within the medium. Must not know how data reaches the host.
 */
#include <string.h>

#include "vmm/devices/ata.h"

enum { /* operation codes */
    TEST_UNIT_READY = 0x00, REQUEST_SENSE = 0x03, INQUIRY = 0x12, MODE_SENSE_6 = 0x1a, START_STOP = 0x1b,
    PREVENT_ALLOW = 0x1e, READ_CAPACITY = 0x25, READ_10 = 0x28, SEEK_10 = 0x2b, READ_SUBCHANNEL = 0x42, READ_TOC = 0x43,
    GET_CONFIGURATION = 0x46, GET_EVENT = 0x4a, READ_DISC_INFO = 0x51, MODE_SENSE_10 = 0x5a, READ_12 = 0xa8,
    SET_SPEED = 0xbb, MECHANISM_STATUS = 0xbd, READ_CD = 0xbe,
};
enum { NOT_READY = 2, ILLEGAL_REQUEST = 5 };
enum { ASC_INVALID_OPCODE = 0x20, ASC_LBA_RANGE = 0x21, ASC_INVALID_FIELD = 0x24, ASC_NO_SAVING = 0x39,
       ASC_NO_MEDIUM = 0x3a, ASC_REMOVAL_PREVENTED = 0x53 };
enum { PROFILE_CDROM = 0x08, PROFILE_DVDROM = 0x10 };
#define CD_SECTORS_MAX (80u * 60 * 75) /* more is a DVD */

static void put16(uint8_t *p, uint32_t value)
{
    p[0] = (uint8_t)(value >> 8);
    p[1] = (uint8_t)value;
}

static void put32(uint8_t *p, uint32_t value)
{
    put16(p, value >> 16);
    put16(p + 2, value & 0xffff);
}

static uint32_t get16(const uint8_t *p)
{
    return (uint32_t)p[0] << 8 | p[1];
}

static uint32_t get32(const uint8_t *p)
{
    return get16(p) << 16 | get16(p + 2);
}

void fvm_atapi_fail(struct fvm_ata_task *task, uint8_t key, uint8_t asc, uint8_t ascq)
{
    task->drive->sense_key = key;
    task->drive->asc = asc;
    task->drive->ascq = ascq;
    fvm_ata_abort(task, (uint8_t)(key << 4 | (key == ILLEGAL_REQUEST ? FVM_ATA_ABRT : 0)));
    task->tf.count = FVM_ATAPI_CD | FVM_ATAPI_IO;
}

static void good(struct fvm_ata_task *task)
{
    task->drive->sense_key = task->drive->asc = task->drive->ascq = 0;
    fvm_ata_finish(task, 0);
}

static void invalid_field(struct fvm_ata_task *task)
{
    fvm_atapi_fail(task, ILLEGAL_REQUEST, ASC_INVALID_FIELD, 0);
}

/* The first `len` bytes of the buffer, or fewer if the host has less room. */
static void answer(struct fvm_ata_task *task, uint32_t len, uint32_t allocation)
{
    task->bytes = FVM_MIN(len, allocation);
    if (!task->bytes) {
        good(task);
        return;
    }
    fvm_assert(task->bytes <= sizeof(task->buffer));
    task->kind = FVM_ATA_IN;
}

/* ---- what the drive is ---- */

static void inquiry(struct fvm_ata_task *task)
{
    uint8_t *b = task->buffer;

    if (task->cdb[1] & 1) { /* vital product data: none */
        invalid_field(task);
        return;
    }
    b[0] = 5; /* CD-ROM */
    b[1] = 0x80;
    b[3] = 0x21;
    b[4] = 31;
    memcpy(b + 8, "FVM     DVD-ROM         1.0 ", 28);
    answer(task, 36, get16(task->cdb + 3));
}

static void request_sense(struct fvm_ata_task *task)
{
    struct fvm_ata_drive *d = task->drive;

    task->buffer[0] = 0x70;
    task->buffer[2] = d->sense_key;
    task->buffer[7] = 10;
    task->buffer[12] = d->asc;
    task->buffer[13] = d->ascq;
    d->sense_key = d->asc = d->ascq = 0;
    answer(task, 18, task->cdb[4]);
}

/* One mode page at p; returns its length, 0: no such page. */
static uint32_t mode_page(const struct fvm_ata_drive *d, uint8_t page, uint8_t *p)
{
    switch (page) {
    case 0x01: /* error recovery */
        p[0] = page;
        p[1] = 6;
        p[3] = 5;
        return 8;
    case 0x2a: /* capabilities */
        p[0] = page;
        p[1] = 18;
        p[2] = 0x3b; /* reads CD-R, CD-RW, DVD */
        p[4] = 0x70; /* mode 2 form 1 and 2, multisession */
        p[6] = (uint8_t)(0x29 | (d->tray_locked ? 2 : 0)); /* tray, eject, lock */
        put16(p + 8, 706);
        put16(p + 12, 512);
        put16(p + 14, 706);
        return 20;
    default:
        return 0;
    }
}

static void mode_sense(struct fvm_ata_task *task, bool ten)
{
    uint8_t page = task->cdb[2] & 0x3f, *b = task->buffer;
    uint32_t head = ten ? 8 : 4, len = head;

    if (task->cdb[2] >> 6 == 3) {
        fvm_atapi_fail(task, ILLEGAL_REQUEST, ASC_NO_SAVING, 0);
        return;
    }
    if (page == 0x3f) {
        len += mode_page(task->drive, 0x01, b + len);
        len += mode_page(task->drive, 0x2a, b + len);
    } else {
        len += mode_page(task->drive, page, b + len);
    }
    if (len == head) {
        invalid_field(task);
        return;
    }
    if (task->cdb[2] >> 6 == 1) /* changeable values: none */
        memset(b + head + 2, 0, len - head - 2);
    if (ten) {
        put16(b, len - 2);
        b[2] = task->drive->tray_open ? 0x71 : 0x01;
    } else {
        b[0] = (uint8_t)(len - 1);
        b[1] = task->drive->tray_open ? 0x71 : 0x01;
    }
    answer(task, len, ten ? get16(task->cdb + 7) : task->cdb[4]);
}

static uint32_t feature(uint8_t *p, unsigned code, uint8_t flags, const uint8_t *body, uint8_t len)
{
    put16(p, code);
    p[2] = flags; /* version, persistent, current */
    p[3] = len;
    memcpy(p + 4, body, len);
    return 4u + len;
}

static void get_configuration(struct fvm_ata_task *task)
{
    const struct fvm_ata_drive *d = task->drive;
    bool dvd = d->sectors > CD_SECTORS_MAX;
    unsigned profile = d->tray_open ? 0 : dvd ? PROFILE_DVDROM : PROFILE_CDROM;
    const uint8_t profiles[8] = {0, PROFILE_DVDROM, profile == PROFILE_DVDROM, 0, 0, PROFILE_CDROM, profile == PROFILE_CDROM, 0};
    uint8_t *b = task->buffer;
    uint32_t len = 8;

    len += feature(b + len, 0x0000, 0x03, profiles, 8);
    len += feature(b + len, 0x0001, 0x0b, (const uint8_t[8]){0, 0, 0, 2, 1}, 8); /* ATAPI; device busy event */
    len += feature(b + len, 0x0003, 0x03, (const uint8_t[4]){0x29}, 4);          /* tray, eject, lock */
    put32(b, len - 4);
    put16(b + 6, profile);
    answer(task, len, get16(task->cdb + 7));
}

static void get_event(struct fvm_ata_task *task)
{
    uint8_t *b = task->buffer;

    if (!(task->cdb[1] & 1)) { /* asynchronous: not here */
        invalid_field(task);
        return;
    }
    b[3] = 0x10; /* media events are supported */
    if (task->cdb[4] & 0x10) {
        b[2] = 4;
        b[5] = task->drive->tray_open ? 1 : 2;
    } else {
        b[2] = 0x80; /* no event of a class asked for */
    }
    put16(b, task->cdb[4] & 0x10 ? 6 : 2);
    answer(task, task->cdb[4] & 0x10 ? 8 : 4, get16(task->cdb + 7));
}

/* ---- the medium ---- */

static bool ready(struct fvm_ata_task *task)
{
    if (!task->drive->tray_open)
        return true;
    fvm_atapi_fail(task, NOT_READY, ASC_NO_MEDIUM, 2);
    return false;
}

static void put_address(uint8_t *p, bool msf, uint32_t lba)
{
    if (!msf) {
        put32(p, lba);
        return;
    }
    lba += 150;
    p[0] = 0;
    p[1] = (uint8_t)FVM_MIN(lba / (60 * 75), 255u);
    p[2] = (uint8_t)(lba / 75 % 60);
    p[3] = (uint8_t)(lba % 75);
}

static uint32_t toc_entry(uint8_t *p, bool raw, uint8_t point, bool msf, uint32_t lba)
{
    if (!raw) {
        p[1] = 0x14; /* a data track */
        p[2] = point;
        put_address(p + 4, msf, lba);
        return 8;
    }
    p[0] = 1; /* session */
    p[1] = 0x14;
    p[3] = point;
    if (point == 0xa0 || point == 0xa1)
        p[8] = 1; /* first and last track */
    else
        put_address(p + 7, true, lba);
    return 11;
}

static void read_toc(struct fvm_ata_task *task)
{
    uint8_t format = task->cdb[2] & 0x0f, *b = task->buffer, start = task->cdb[6];
    uint32_t sectors = (uint32_t)FVM_MIN(task->drive->sectors, (uint64_t)UINT32_MAX), len = 4;
    bool msf = task->cdb[1] & 2;

    if (!format)
        format = task->cdb[9] >> 6; /* where SFF-8020 had it */
    b[2] = b[3] = 1;
    switch (format) {
    case 0:
        if (start > 1 && start != 0xaa) {
            invalid_field(task);
            return;
        }
        if (start <= 1)
            len += toc_entry(b + len, false, 1, msf, 0);
        len += toc_entry(b + len, false, 0xaa, msf, sectors);
        break;
    case 1: /* sessions */
        b[5] = 0x14;
        b[6] = 1;
        put_address(b + 8, msf, 0);
        len = 12;
        break;
    case 2:
        len += toc_entry(b + len, true, 0xa0, true, 0);
        len += toc_entry(b + len, true, 0xa1, true, 0);
        len += toc_entry(b + len, true, 0xa2, true, sectors);
        len += toc_entry(b + len, true, 1, true, 0);
        break;
    default:
        invalid_field(task);
        return;
    }
    put16(b, len - 2);
    answer(task, len, get16(task->cdb + 7));
}

static void read_disc_info(struct fvm_ata_task *task)
{
    uint8_t *b = task->buffer;

    if (task->cdb[1] & 7) {
        invalid_field(task);
        return;
    }
    put16(b, 32);
    b[2] = 0x0e; /* finished disc, last session complete */
    b[3] = b[4] = b[5] = b[6] = 1;
    b[7] = 0x20;
    answer(task, 34, get16(task->cdb + 7));
}

static void read_sectors(struct fvm_ata_task *task, uint32_t lba, uint32_t count)
{
    uint64_t sectors = task->drive->sectors;

    if (lba >= sectors || count > sectors - lba) {
        fvm_atapi_fail(task, ILLEGAL_REQUEST, ASC_LBA_RANGE, 0);
        return;
    }
    if (!count) {
        good(task);
        return;
    }
    if (count > UINT32_MAX / FVM_ATA_CD_SECTOR) {
        invalid_field(task);
        return;
    }
    task->kind = FVM_ATA_READ;
    task->offset = (uint64_t)lba * FVM_ATA_CD_SECTOR;
    task->bytes = count * FVM_ATA_CD_SECTOR;
}

/* Only what is on an image: the user data of mode 1 sectors. */
static void read_cd(struct fvm_ata_task *task)
{
    uint32_t count = (uint32_t)task->cdb[6] << 16 | get16(task->cdb + 7);

    if ((task->cdb[9] & 0xf8) == 0)
        good(task);
    else if ((task->cdb[9] & 0xf8) == 0x10)
        read_sectors(task, get32(task->cdb + 2), count);
    else
        invalid_field(task);
}

static void read_capacity(struct fvm_ata_task *task)
{
    put32(task->buffer, (uint32_t)FVM_MIN(task->drive->sectors - 1, (uint64_t)UINT32_MAX));
    put32(task->buffer + 4, FVM_ATA_CD_SECTOR);
    answer(task, 8, 8);
}

static void read_subchannel(struct fvm_ata_task *task)
{
    task->buffer[1] = 0x15; /* no audio operation */
    answer(task, 4, get16(task->cdb + 7));
}

static void start_stop(struct fvm_ata_task *task)
{
    struct fvm_ata_drive *d = task->drive;
    bool start = task->cdb[4] & 1, load_eject = task->cdb[4] & 2;

    if (load_eject && !start && d->tray_locked) {
        fvm_atapi_fail(task, ILLEGAL_REQUEST, ASC_REMOVAL_PREVENTED, 2);
        return;
    }
    if (load_eject)
        d->tray_open = !start;
    good(task);
}

/* Commands of the medium: the tray must be closed. */
static void medium_command(struct fvm_ata_task *task)
{
    const uint8_t *cdb = task->cdb;

    if (!task->drive->sectors) {
        fvm_atapi_fail(task, NOT_READY, ASC_NO_MEDIUM, 0);
        return;
    }
    switch (cdb[0]) {
    case READ_10: read_sectors(task, get32(cdb + 2), get16(cdb + 7)); break;
    case READ_12: read_sectors(task, get32(cdb + 2), get32(cdb + 6)); break;
    case READ_CD: read_cd(task); break;
    case READ_CAPACITY: read_capacity(task); break;
    case READ_TOC: read_toc(task); break;
    case READ_DISC_INFO: read_disc_info(task); break;
    case READ_SUBCHANNEL: read_subchannel(task); break;
    case SEEK_10:
        if (get32(cdb + 2) >= task->drive->sectors)
            fvm_atapi_fail(task, ILLEGAL_REQUEST, ASC_LBA_RANGE, 0);
        else
            good(task);
        break;
    case TEST_UNIT_READY: good(task); break;
    default: fvm_atapi_fail(task, ILLEGAL_REQUEST, ASC_INVALID_OPCODE, 0); break;
    }
}

void fvm_atapi_decode(struct fvm_ata_task *task)
{
    task->kind = FVM_ATA_DONE;
    task->bytes = 0;
    task->block = FVM_ATA_CD_SECTOR;
    memset(task->buffer, 0, sizeof(task->buffer));
    switch (task->cdb[0]) {
    case REQUEST_SENSE: request_sense(task); break;
    case INQUIRY: inquiry(task); break;
    case MODE_SENSE_6: mode_sense(task, false); break;
    case MODE_SENSE_10: mode_sense(task, true); break;
    case GET_CONFIGURATION: get_configuration(task); break;
    case GET_EVENT: get_event(task); break;
    case START_STOP: start_stop(task); break;
    case SET_SPEED: good(task); break;
    case PREVENT_ALLOW:
        task->drive->tray_locked = task->cdb[4] & 1;
        good(task);
        break;
    case MECHANISM_STATUS:
        task->buffer[1] = task->drive->tray_open ? 0x10 : 0;
        answer(task, 8, get16(task->cdb + 8));
        break;
    default:
        if (ready(task))
            medium_command(task);
    }
}
