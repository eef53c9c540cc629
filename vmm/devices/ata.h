/*
 * ata.h - an ATA disk or an ATAPI CD-ROM, without the cable: what piix_ide.c and ahci.c have behind their registers.
 *
 * A controller fills a task's taskfile (from registers, or from a FIS) and asks what it means:
 *
 *     fvm_ata_decode(task)  -> DONE    no data; the taskfile holds the answer
 *                              IN      task->bytes of task->buffer go to the host
 *                              READ    task->bytes from the disk at task->offset go to the host
 *                              WRITE   task->bytes come from the host for the disk
 *                              FLUSH   the disk must be flushed
 *                              PACKET  twelve bytes of command come first: fill task->cdb, then fvm_atapi_decode
 *
 * moves the data in its own way (PIO, PRD table), fvm_ata_transfer doing the disk's part, and says fvm_ata_finish,
 * which leaves status and error in the taskfile. Errors of the host's disk become UNC or ABRT (CD-ROM: sense data).
 *
 * Source: ATA8-ACS, MMC-3. Thread: board lock. Test: tests/device/piix_ide.c, ahci.c
 */
#ifndef FVM_VMM_DEVICES_ATA_H
#define FVM_VMM_DEVICES_ATA_H

#include <sys/uio.h>

#include "proto/device_state.pb-c.h"
#include "storage/storage.h"
#include "vmm/devices/device.h"

enum { FVM_ATA_SECTOR = 512, FVM_ATA_CD_SECTOR = 2048, FVM_ATA_BUFFER = 2048, FVM_ATA_CDB = 16, FVM_ATA_MULTIPLE_MAX = 16 };
enum { FVM_ATA_ERR = 0x01, FVM_ATA_DRQ = 0x08, FVM_ATA_DSC = 0x10, FVM_ATA_DF = 0x20, FVM_ATA_DRDY = 0x40, FVM_ATA_BSY = 0x80 };
enum { FVM_ATA_ABRT = 0x04, FVM_ATA_IDNF = 0x10, FVM_ATA_UNC = 0x40 };
enum { FVM_ATAPI_CD = 1, FVM_ATAPI_IO = 2 }; /* interrupt reason, in the count register */

struct fvm_ata_taskfile { /* high byte: what was in the register before (the "HOB" of 48-bit commands) */
    uint8_t command, device, status, error;
    uint16_t feature, count, lba_low, lba_mid, lba_high;
};

struct fvm_ata_drive {
    struct fvm_disk *disk; /* borrowed; NULL: no drive */
    bool cdrom, sata;
    char serial[21];
    uint64_t sectors;      /* of 512 bytes; CD-ROM: of 2048 */
    uint8_t heads, sectors_per_track; /* translation of CHS addresses */
    uint8_t multiple;      /* sectors for each block of READ MULTIPLE; 0: not set */
    uint8_t transfer_mode; /* as SET FEATURES gave it */
    bool write_cache, look_ahead;
    uint8_t sense_key, asc, ascq;
    bool tray_open, tray_locked;
    uint8_t failed_tag;    /* of the NCQ command that failed; 0x80: none */
    unsigned errors;
};

enum fvm_ata_kind { FVM_ATA_DONE, FVM_ATA_IN, FVM_ATA_READ, FVM_ATA_WRITE, FVM_ATA_FLUSH, FVM_ATA_PACKET };

struct fvm_ata_task {
    struct fvm_ata_drive *drive;
    struct fvm_ata_taskfile tf;
    enum fvm_ata_kind kind;
    bool dma;         /* the data phase of this command is DMA */
    bool queued;      /* READ/WRITE FPDMA QUEUED */
    bool packet;      /* an ATAPI command */
    bool then_flush;
    uint64_t offset;  /* bytes, on the disk */
    uint32_t bytes;
    uint32_t block;   /* PIO: bytes for each data request */
    uint8_t cdb[FVM_ATA_CDB];
    uint8_t buffer[FVM_ATA_BUFFER];
    fvm_disk_done done; /* of the transfer under way */
    void *ctx;
};

/** Power-on settings. serial may be NULL. */
void fvm_ata_init(struct fvm_ata_drive *drive, struct fvm_disk *disk, bool cdrom, bool sata, const char *serial);
void fvm_ata_drive_reset(struct fvm_ata_drive *drive);
/** The signature that a reset leaves, status included. */
void fvm_ata_signature(const struct fvm_ata_drive *drive, struct fvm_ata_taskfile *tf);
void fvm_ata_decode(struct fvm_ata_task *task);
void fvm_atapi_decode(struct fvm_ata_task *task);
/**
 * The disk's part of READ or WRITE: `bytes` (multiple of 512) at task->offset + skip; or FLUSH. done(ctx, status) comes later,
 * exactly once, never from inside the call. iov is borrowed until then.
 */
void fvm_ata_transfer(struct fvm_ata_task *task, uint64_t skip, const struct iovec *iov, int iov_count, fvm_disk_done done,
                      void *ctx);
/** The command is over: status 0 or FVM_E*. */
void fvm_ata_finish(struct fvm_ata_task *task, int status);
/** The command is refused or broken off: ERR with these bits. */
void fvm_ata_abort(struct fvm_ata_task *task, uint8_t error);
/** CHECK CONDITION. */
void fvm_atapi_fail(struct fvm_ata_task *task, uint8_t key, uint8_t asc, uint8_t ascq);

/* State: parts of the controllers' messages. */
void fvm_ata_drive_save(const struct fvm_ata_drive *drive, Fvm__AtaDriveState *ret_state);
/** NULL when fine, else what is wrong. `state` NULL is refused. */
const char *fvm_ata_drive_check(const struct fvm_ata_drive *drive, const Fvm__AtaDriveState *state);
void fvm_ata_drive_restore(struct fvm_ata_drive *drive, const Fvm__AtaDriveState *state);
void fvm_ata_taskfile_save(const struct fvm_ata_taskfile *tf, Fvm__AtaTaskfileState *ret_state);
const char *fvm_ata_taskfile_check(const Fvm__AtaTaskfileState *state);
void fvm_ata_taskfile_restore(struct fvm_ata_taskfile *tf, const Fvm__AtaTaskfileState *state);

/* between ata.c and ata_identify.c */
void fvm_ata_identify(const struct fvm_ata_drive *drive, uint8_t ret[512]);

#endif
