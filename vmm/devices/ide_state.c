/*
 * ide_state.c - save, check and restore of the IDE controller.
 *
 * A saved channel is never RUNNING: quiesce has waited for the disk. Invariant kept by check: positions lie inside the sector
 * buffer, the command under way inside its disk, and BSY and DRQ agree with the phase.
 */
#include <stdlib.h>
#include <string.h>

#include "vmm/devices/pack.h"
#include "vmm/devices/piix_ide_impl.h"

enum { PACKET_BYTES = 12 };

struct parts { /* what the messages of one controller point to */
    Fvm__PciFunctionState pci;
    Fvm__IdeChannelState channel[IDE_CHANNELS], *channel_list[IDE_CHANNELS];
    Fvm__AtaDriveState drive[IDE_CHANNELS][2], *drive_list[IDE_CHANNELS][2];
    Fvm__AtaTaskfileState tf[IDE_CHANNELS][2], *tf_list[IDE_CHANNELS][2];
};

static void save_channel(struct ide_channel *c, Fvm__IdeChannelState *s)
{
    *s = (Fvm__IdeChannelState)FVM__IDE_CHANNEL_STATE__INIT;
    s->selected = c->selected;
    s->control = c->control;
    s->interrupt = c->interrupt;
    s->phase = c->phase;
    s->bm_command = c->bm_command;
    s->bm_status = c->bm_status;
    s->bm_table = c->bm_table;
    if (c->phase == IDE_IDLE)
        return;
    s->data.data = c->data;
    s->data.len = c->filled;
    s->position = c->position;
    s->burst_end = c->burst_end;
    s->moved = c->moved;
    s->packet = c->task.packet;
    s->kind = c->task.kind == FVM_ATA_PACKET ? 0 : c->task.kind;
    s->then_flush = c->task.then_flush;
    s->offset = c->task.offset;
    s->bytes = c->task.bytes;
    s->block = c->task.block;
    if (c->phase == IDE_WAIT_DMA && c->task.kind == FVM_ATA_IN) { /* the answer still sits in the task */
        s->data.data = c->task.buffer;
        s->data.len = c->task.bytes;
    }
}

int fvm_ide_save(struct fvm_device *dev, uint8_t **ret_buf, size_t *ret_len)
{
    struct piix_ide *ide = (struct piix_ide *)dev;
    Fvm__PiixIdeState state = FVM__PIIX_IDE_STATE__INIT;
    struct parts p;
    int r = fvm_pci_function_save(&ide->pci, &p.pci);

    if (r)
        return r;
    for (unsigned i = 0; i < IDE_CHANNELS; i++) {
        struct ide_channel *c = &ide->channel[i];

        fvm_assert(c->phase != IDE_RUNNING);
        save_channel(c, &p.channel[i]);
        for (unsigned k = 0; k < 2; k++) {
            fvm_ata_drive_save(&c->drive[k], &p.drive[i][k]);
            fvm_ata_taskfile_save(&c->tf[k], &p.tf[i][k]);
            p.drive_list[i][k] = &p.drive[i][k];
            p.tf_list[i][k] = &p.tf[i][k];
        }
        p.channel[i].n_drives = p.channel[i].n_taskfiles = 2;
        p.channel[i].drives = p.drive_list[i];
        p.channel[i].taskfiles = p.tf_list[i];
        p.channel_list[i] = &p.channel[i];
    }
    state.pci = &p.pci;
    state.n_channels = IDE_CHANNELS;
    state.channels = p.channel_list;
    r = fvm_device_pack(&state.base, ret_buf, ret_len);
    fvm_pci_function_save_free(&p.pci);
    return r;
}

/* The command under way. */
static const char *check_command(const struct ide_channel *c, const Fvm__IdeChannelState *s)
{
    const struct fvm_ata_drive *d = &c->drive[s->selected];
    uint64_t disk_bytes = d->sectors * (d->cdrom ? FVM_ATA_CD_SECTOR : FVM_ATA_SECTOR);

    if (!d->disk)
        return "a command of a drive that is not there";
    if (s->phase == IDE_PACKET)
        return s->kind || !s->packet || !d->cdrom || s->data.len != PACKET_BYTES || s->burst_end != PACKET_BYTES ||
                       s->position >= PACKET_BYTES
                   ? "packet phase"
                   : NULL;
    if (s->kind != FVM_ATA_IN && s->kind != FVM_ATA_READ && s->kind != FVM_ATA_WRITE)
        return "kind of command";
    if (!s->bytes || (s->kind == FVM_ATA_IN && s->bytes > FVM_ATA_BUFFER))
        return "length of the command";
    if (s->kind != FVM_ATA_IN && (s->offset % FVM_ATA_SECTOR || s->bytes % FVM_ATA_SECTOR || s->offset > disk_bytes ||
                                  s->bytes > disk_bytes - s->offset))
        return "range of the command";
    if (s->packet ? !d->cdrom : d->cdrom && s->kind != FVM_ATA_IN)
        return "packet command of a disk";
    if (s->kind == FVM_ATA_WRITE && (d->cdrom || fvm_disk_readonly(d->disk)))
        return "write to a read-only drive";
    if (s->phase == IDE_WAIT_DMA)
        return s->data.len != (s->kind == FVM_ATA_IN ? s->bytes : 0) || s->position || s->burst_end || s->moved
                   ? "DMA phase"
                   : NULL;
    if ((s->kind == FVM_ATA_WRITE) != (s->phase == IDE_DATA_OUT))
        return "direction of the data";
    if (!s->block || s->block > (s->packet ? 0xfffe : FVM_ATA_MULTIPLE_MAX * FVM_ATA_SECTOR))
        return "block length";
    if (s->kind != FVM_ATA_IN && !s->packet && s->block % FVM_ATA_SECTOR)
        return "block length";
    if (s->moved >= s->bytes || s->data.len > s->bytes - s->moved || s->position >= s->burst_end ||
        s->burst_end > s->data.len)
        return "position in the data";
    if (s->kind != FVM_ATA_IN && (s->moved % FVM_ATA_SECTOR || s->data.len % FVM_ATA_SECTOR))
        return "position in the data";
    return NULL;
}

static const char *check_channel(const struct ide_channel *c, const Fvm__IdeChannelState *s)
{
    uint32_t busy = 0;
    const char *wrong = NULL;

    if (!s || s->n_drives != 2 || s->n_taskfiles != 2)
        return "a channel has two drives";
    for (unsigned k = 0; !wrong && k < 2; k++) {
        wrong = fvm_ata_drive_check(&c->drive[k], s->drives[k]);
        if (!wrong)
            wrong = fvm_ata_taskfile_check(s->taskfiles[k]);
    }
    if (wrong)
        return wrong;
    if (s->selected > 1 || (s->control & ~(uint32_t)(IDE_CONTROL_NIEN | IDE_CONTROL_SRST | IDE_CONTROL_HOB)))
        return "channel registers";
    if ((s->bm_command & ~(uint32_t)(BM_START | BM_TO_MEMORY)) || s->bm_status > 0x67 || (s->bm_status & 0x18) ||
        (s->bm_table & 3))
        return "bus master registers";
    if (s->phase > IDE_WAIT_DMA || s->data.len > IDE_DATA_BYTES)
        return "phase";
    for (unsigned k = 0; k < 2; k++)
        busy |= s->taskfiles[k]->status & (k == s->selected ? FVM_ATA_BSY : FVM_ATA_BSY | FVM_ATA_DRQ);
    if (busy && !(s->control & IDE_CONTROL_SRST))
        return "a drive is busy with nothing";
    if ((s->control & IDE_CONTROL_SRST) && s->phase != IDE_IDLE)
        return "a command of a drive held in reset";
    if (((s->taskfiles[s->selected]->status & FVM_ATA_DRQ) != 0) != (s->phase != IDE_IDLE))
        return "data request without a phase";
    if (s->phase == IDE_IDLE)
        return s->data.len || s->position || s->burst_end || s->moved || s->kind || s->packet || s->then_flush ||
                       s->offset || s->bytes || s->block
                   ? "data without a command"
                   : NULL;
    return check_command(c, s);
}

int fvm_ide_check(struct fvm_device *dev, const uint8_t *buf, size_t len, struct fvm_err *err)
{
    struct piix_ide *ide = (struct piix_ide *)dev;
    Fvm__PiixIdeState *s = (void *)fvm_device_unpack(&fvm__piix_ide_state__descriptor, dev, buf, len, err);
    int r;

    if (!s)
        return FVM_EBADIMAGE;
    r = fvm_pci_function_check(&ide->pci, s->pci, err);
    if (!r && s->n_channels != IDE_CHANNELS)
        r = fvm_device_refuse(dev, err, "it has two channels");
    for (unsigned i = 0; !r && i < IDE_CHANNELS; i++) {
        const char *wrong = check_channel(&ide->channel[i], s->channels[i]);

        if (wrong)
            r = fvm_device_refuse(dev, err, wrong);
    }
    fvm__piix_ide_state__free_unpacked(s, NULL);
    return r;
}

static void restore_channel(struct ide_channel *c, const Fvm__IdeChannelState *s)
{
    struct fvm_ata_task *task = &c->task;

    for (unsigned k = 0; k < 2; k++) {
        fvm_ata_drive_restore(&c->drive[k], s->drives[k]);
        fvm_ata_taskfile_restore(&c->tf[k], s->taskfiles[k]);
    }
    c->selected = (uint8_t)s->selected;
    c->control = (uint8_t)s->control;
    c->phase = (enum ide_phase)s->phase;
    c->filled = c->phase == IDE_WAIT_DMA ? 0 : (uint32_t)s->data.len;
    c->position = s->position;
    c->burst_end = s->burst_end;
    c->moved = s->moved;
    memset(c->data, 0, sizeof(c->data));
    memset(task, 0, sizeof(*task));
    if (s->data.len) {
        memcpy(c->data, s->data.data, s->data.len);
        memcpy(task->buffer, s->data.data, FVM_MIN(s->data.len, sizeof(task->buffer)));
    }
    task->drive = &c->drive[c->selected];
    task->tf = c->tf[c->selected];
    task->kind = c->phase == IDE_PACKET ? FVM_ATA_PACKET : (enum fvm_ata_kind)s->kind;
    task->dma = c->phase == IDE_PACKET ? task->tf.feature & 1 : c->phase == IDE_WAIT_DMA;
    task->packet = s->packet;
    task->then_flush = s->then_flush;
    task->offset = s->offset;
    task->bytes = s->bytes;
    task->block = s->block;
    c->interrupt = s->interrupt;
    c->bm_command = (uint8_t)s->bm_command;
    c->bm_status = (uint8_t)s->bm_status;
    c->bm_table = s->bm_table;
    fvm_ide_channel_interrupt(c, c->interrupt);
}

void fvm_ide_restore(struct fvm_device *dev, const uint8_t *buf, size_t len)
{
    struct piix_ide *ide = (struct piix_ide *)dev;
    Fvm__PiixIdeState *s = fvm__piix_ide_state__unpack(NULL, len, buf);

    fvm_assert(s);
    fvm_pci_function_restore(&ide->pci, s->pci);
    for (unsigned i = 0; i < IDE_CHANNELS; i++)
        restore_channel(&ide->channel[i], s->channels[i]);
    fvm__piix_ide_state__free_unpacked(s, NULL);
}
