/*
 * ide_channel.c - one ATA channel: commands of the selected drive, their PIO, packet and DMA phases.
 *
 * Invariants: BSY is set exactly in phase RUNNING, DRQ exactly in PACKET, DATA_IN and DATA_OUT; while a command is under
 * way the selected drive is the one that has it (register writes are ignored then, as a busy drive does).
 */
#include <string.h>

#include "vmm/devices/piix_ide_impl.h"

enum { PACKET_BYTES = 12, COMMAND_DEVICE_RESET = 0x08, COMMAND_DIAGNOSTIC = 0x90 };
enum { READY = FVM_ATA_DRDY | FVM_ATA_DSC, PRDS_MAX = 8192 };
#define PRD_END 0x80000000u

static struct fvm_ata_taskfile *active(struct ide_channel *c)
{
    return &c->tf[c->selected];
}

void fvm_ide_channel_interrupt(struct ide_channel *c, bool level)
{
    if (level && !c->interrupt)
        c->bm_status |= BM_INTERRUPT;
    c->interrupt = level;
    fvm_irq_set_line(c->ide->dev.board->irq, c->line, level && !(c->control & IDE_CONTROL_NIEN));
}

/* The command is over, task.tf holds the answer. */
static void end(struct ide_channel *c, bool interrupt)
{
    c->phase = IDE_IDLE;
    c->filled = c->position = c->burst_end = c->moved = 0;
    *active(c) = c->task.tf;
    fvm_dma_fini(&c->dma);
    if (interrupt)
        fvm_ide_channel_interrupt(c, true);
}

static void request(struct ide_channel *c, enum ide_phase phase, bool interrupt)
{
    c->phase = phase;
    active(c)->status = READY | FVM_ATA_DRQ;
    if (interrupt)
        fvm_ide_channel_interrupt(c, true);
}

static void run(struct ide_channel *c)
{
    c->phase = IDE_RUNNING;
    active(c)->status = FVM_ATA_BSY;
}

/* ---- PIO to the host ---- */

static void begin_burst(struct ide_channel *c)
{
    uint32_t len = c->filled - c->position;

    if (c->task.packet) {
        len = FVM_MIN(len, c->task.block);
        active(c)->lba_mid = (uint8_t)len;
        active(c)->lba_high = (uint8_t)(len >> 8);
        active(c)->count = FVM_ATAPI_IO;
    }
    c->burst_end = c->position + len;
    request(c, IDE_DATA_IN, true);
}

static void on_chunk_read(void *ctx, int status)
{
    struct ide_channel *c = ctx;

    if (status) {
        fvm_ata_finish(&c->task, status);
        end(c, true);
        return;
    }
    begin_burst(c);
}

static void next_in(struct ide_channel *c)
{
    struct fvm_ata_task *task = &c->task;

    if (c->moved == task->bytes) {
        fvm_ata_finish(task, 0);
        end(c, task->packet); /* an ATA command ended with its last block's interrupt */
        return;
    }
    c->position = 0;
    c->filled = FVM_MIN(task->bytes - c->moved, task->packet ? (uint32_t)IDE_DATA_BYTES : task->block);
    if (task->kind == FVM_ATA_IN) {
        memcpy(c->data, task->buffer, c->filled);
        begin_burst(c);
        return;
    }
    run(c);
    c->chunk = (struct iovec){c->data, c->filled};
    fvm_ata_transfer(task, c->moved, &c->chunk, 1, on_chunk_read, c);
}

uint32_t fvm_ide_channel_data_read(struct ide_channel *c, unsigned size)
{
    uint32_t value = 0, n = FVM_MIN(size, c->burst_end - c->position);

    if (c->phase != IDE_DATA_IN)
        return UINT32_MAX >> (32 - 8 * size);
    memcpy(&value, c->data + c->position, n);
    c->position += n;
    if (c->position < c->burst_end)
        return value;
    if (c->position < c->filled) {
        begin_burst(c);
        return value;
    }
    c->moved += c->filled;
    next_in(c);
    return value;
}

/* ---- PIO from the host ---- */

static void next_out(struct ide_channel *c, bool interrupt)
{
    c->position = 0;
    c->filled = c->burst_end = FVM_MIN(c->task.bytes - c->moved, c->task.block);
    request(c, IDE_DATA_OUT, interrupt);
}

static void on_chunk_written(void *ctx, int status)
{
    struct ide_channel *c = ctx;

    c->moved += c->filled;
    if (status || c->moved == c->task.bytes) {
        fvm_ata_finish(&c->task, status);
        end(c, true);
        return;
    }
    next_out(c, true);
}

static void on_flushed(void *ctx, int status)
{
    struct ide_channel *c = ctx;

    fvm_ata_finish(&c->task, status);
    end(c, true);
}

static void start(struct ide_channel *c);

static void packet_complete(struct ide_channel *c)
{
    struct fvm_ata_task *task = &c->task;
    uint32_t limit = (active(c)->lba_mid & 0xff) | (active(c)->lba_high & 0xffu) << 8;

    memset(task->cdb, 0, sizeof(task->cdb));
    memcpy(task->cdb, c->data, PACKET_BYTES);
    fvm_atapi_decode(task);
    task->block = limit ? FVM_MIN(limit, 0xfffeu) & ~1u : 0xfffeu;
    if (!task->block)
        task->block = 2;
    start(c);
}

void fvm_ide_channel_data_write(struct ide_channel *c, unsigned size, uint32_t value)
{
    uint32_t n = FVM_MIN(size, c->burst_end - c->position);

    if (c->phase != IDE_DATA_OUT && c->phase != IDE_PACKET)
        return;
    memcpy(c->data + c->position, &value, n);
    c->position += n;
    if (c->position < c->burst_end)
        return;
    if (c->phase == IDE_PACKET) {
        packet_complete(c);
        return;
    }
    run(c);
    c->chunk = (struct iovec){c->data, c->filled};
    fvm_ata_transfer(&c->task, c->moved, &c->chunk, 1, on_chunk_written, c);
}

/* ---- bus master DMA ---- */

static int gather(struct ide_channel *c)
{
    struct fvm_ram *ram = c->ide->dev.board->ram;
    uint32_t entry[2];

    c->dma = (struct fvm_dma){.ram = ram};
    for (unsigned i = 0; i < PRDS_MAX && c->dma.bytes < c->task.bytes; i++) {
        uint32_t len;
        int r = fvm_ram_read(ram, (uint64_t)c->bm_table + 8 * i, entry, sizeof(entry));

        if (r)
            return r;
        len = entry[1] & 0xfffe;
        r = fvm_dma_add(&c->dma, entry[0] & ~1u, len ? len : 65536);
        if (r)
            return r;
        if (entry[1] & PRD_END)
            break;
    }
    return 0;
}

static void on_dma_done(void *ctx, int status)
{
    struct ide_channel *c = ctx;

    if (!status && c->task.kind != FVM_ATA_WRITE)
        fvm_dma_written(&c->dma, c->dma.bytes);
    fvm_ata_finish(&c->task, status);
    c->bm_status &= (uint8_t)~BM_ACTIVE;
    end(c, true);
}

void fvm_ide_channel_dma(struct ide_channel *c)
{
    struct fvm_ata_task *task = &c->task;
    bool to_memory = c->bm_command & BM_TO_MEMORY;
    int r;

    if (c->phase != IDE_WAIT_DMA || !(c->bm_command & BM_START) || !fvm_pci_bus_master(&c->ide->pci))
        return;
    r = gather(c);
    if (r || c->dma.bytes < (task->kind == FVM_ATA_IN ? 1 : task->bytes) || to_memory != (task->kind != FVM_ATA_WRITE)) {
        if (task->packet)
            fvm_atapi_fail(task, 0x0b, 0, 0); /* aborted command */
        else
            fvm_ata_abort(task, FVM_ATA_ABRT);
        c->bm_status = (uint8_t)((c->bm_status & ~BM_ACTIVE) | BM_ERROR);
        end(c, true);
        return;
    }
    fvm_dma_trim(&c->dma, task->bytes);
    run(c);
    if (task->kind == FVM_ATA_IN) {
        fvm_dma_put(&c->dma, task->buffer, task->bytes);
        c->dma.bytes = 0; /* marked already */
        on_dma_done(c, 0);
        return;
    }
    fvm_ata_transfer(task, 0, c->dma.iov, (int)c->dma.count, on_dma_done, c);
}

/* ---- commands ---- */

/* The task is decoded: into its first phase. */
static void start(struct ide_channel *c)
{
    struct fvm_ata_task *task = &c->task;

    c->moved = c->filled = c->position = c->burst_end = 0;
    if (task->kind == FVM_ATA_DONE) {
        end(c, true);
    } else if (task->kind == FVM_ATA_PACKET) {
        c->filled = c->burst_end = PACKET_BYTES;
        active(c)->count = FVM_ATAPI_CD;
        request(c, IDE_PACKET, false);
    } else if (task->kind == FVM_ATA_FLUSH) {
        run(c);
        fvm_ata_transfer(task, 0, NULL, 0, on_flushed, c);
    } else if (task->dma) {
        c->phase = IDE_WAIT_DMA;
        active(c)->status = READY | FVM_ATA_DRQ;
        fvm_ide_channel_dma(c);
    } else if (task->kind == FVM_ATA_WRITE) {
        next_out(c, false);
    } else {
        next_in(c);
    }
}

static void diagnose(struct ide_channel *c)
{
    for (unsigned i = 0; i < 2; i++)
        if (ide_present(c, i))
            fvm_ata_signature(&c->drive[i], &c->tf[i]);
    c->selected = 0;
    c->phase = IDE_IDLE;
}

void fvm_ide_channel_command(struct ide_channel *c, uint8_t command)
{
    struct fvm_ata_task *task = &c->task;

    if (c->phase == IDE_RUNNING || (c->control & IDE_CONTROL_SRST) || !ide_present(c, c->selected))
        return;
    c->phase = IDE_IDLE; /* a new command breaks an unfinished one off */
    fvm_ide_channel_interrupt(c, false);
    if (command == COMMAND_DIAGNOSTIC) {
        diagnose(c);
        fvm_ide_channel_interrupt(c, true);
        return;
    }
    active(c)->command = command;
    active(c)->error = 0;
    task->drive = &c->drive[c->selected];
    task->tf = *active(c);
    fvm_ata_decode(task);
    if (task->queued)
        fvm_ata_abort(task, FVM_ATA_ABRT);
    start(c);
    if (command == COMMAND_DEVICE_RESET)
        fvm_ide_channel_interrupt(c, false);
}

void fvm_ide_channel_select(struct ide_channel *c, uint8_t device)
{
    c->tf[0].device = device & (uint8_t)~0x10;
    c->tf[1].device = device | 0x10;
    c->selected = device >> 4 & 1;
}

void fvm_ide_channel_drain(struct ide_channel *c)
{
    while (c->phase == IDE_RUNNING)
        fvm_disk_drain(c->drive[c->selected].disk);
}

void fvm_ide_channel_control(struct ide_channel *c, uint8_t control)
{
    uint8_t old = c->control;

    if ((control & IDE_CONTROL_SRST) && !(old & IDE_CONTROL_SRST)) {
        fvm_ide_channel_drain(c);
        c->interrupt = false;
        c->phase = IDE_IDLE;
        for (unsigned i = 0; i < 2; i++)
            if (ide_present(c, i))
                c->tf[i].status = FVM_ATA_BSY;
    }
    c->control = control;
    if (!(control & IDE_CONTROL_SRST) && (old & IDE_CONTROL_SRST))
        diagnose(c);
    fvm_ide_channel_interrupt(c, c->interrupt);
}

void fvm_ide_channel_reset(struct ide_channel *c)
{
    fvm_ide_channel_drain(c);
    memset(c->tf, 0, sizeof(c->tf));
    memset(c->data, 0, sizeof(c->data));
    c->control = 0;
    c->interrupt = false;
    c->bm_command = 0;
    c->bm_table = 0;
    c->filled = c->position = c->burst_end = c->moved = 0;
    for (unsigned i = 0; i < 2; i++)
        if (ide_present(c, i))
            fvm_ata_drive_reset(&c->drive[i]);
    c->tf[1].device = 0x10;
    diagnose(c);
    c->bm_status = (uint8_t)((ide_present(c, 0) ? 0x20 : 0) | (ide_present(c, 1) ? 0x40 : 0));
    fvm_ide_channel_interrupt(c, false);
    fvm_dma_fini(&c->dma);
}
