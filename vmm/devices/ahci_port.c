/*
 * ahci_port.c - commands of one AHCI port: from a bit in PxCI to the FIS that ends it.
 *
 *   PxCI bit -> command header (PxCLB) -> command FIS, packet, PRD table -> ata.c -> disk -> received FIS (PxFB), PxIS
 *
 * Queued commands (NCQ) run beside each other, any other one alone. Every address and length is the guest's and may be
 * nonsense: what is not RAM is a host bus error, which halts the port as a failed command does.
 *
 * Invariant: a slot in `in_flight` has a disk request under way and nothing else; a halted port starts nothing.
 */
#include <string.h>

#include "vmm/devices/ahci_impl.h"

enum { FIS_H2D = 0x27, FIS_D2H = 0x34, FIS_PIO_SETUP = 0x5f, FIS_SDB = 0xa1, FIS_INTERRUPT = 0x40, FIS_COMMAND = 0x80 };
enum { RFIS_PIO = 0x20, RFIS_D2H = 0x40, RFIS_SDB = 0x58, CONTROL_SRST = 4 };
enum { HEADER_BYTES = 32, TABLE_PACKET = 0x40, TABLE_PRDT = 0x80, PRD_BYTES = 16 };

/* ---- to the guest ---- */

static void receive_fis(struct ahci_port *p, unsigned offset, const uint8_t *fis, unsigned len)
{
    if (p->cmd & PX_CMD_FRE)
        (void)fvm_ram_write(p->ahci->dev.board->ram, p->fb + offset, fis, len); /* not RAM: lost */
}

static void register_fis(const struct fvm_ata_taskfile *tf, uint8_t type, uint8_t fis[20])
{
    memset(fis, 0, 20);
    fis[0] = type;
    fis[1] = FIS_INTERRUPT;
    fis[2] = tf->status;
    fis[3] = tf->error;
    fis[4] = (uint8_t)tf->lba_low;
    fis[5] = (uint8_t)tf->lba_mid;
    fis[6] = (uint8_t)tf->lba_high;
    fis[7] = tf->device;
    fis[8] = (uint8_t)(tf->lba_low >> 8);
    fis[9] = (uint8_t)(tf->lba_mid >> 8);
    fis[10] = (uint8_t)(tf->lba_high >> 8);
    fis[12] = (uint8_t)tf->count;
    fis[13] = (uint8_t)(tf->count >> 8);
}

static void send_d2h(struct ahci_port *p, bool interrupt)
{
    uint8_t fis[20];

    register_fis(&p->tf, FIS_D2H, fis);
    if (!interrupt)
        fis[1] = 0;
    receive_fis(p, RFIS_D2H, fis, sizeof(fis));
    if (interrupt)
        p->is |= PX_IS_DHRS;
}

/* The last data request of a PIO command to the host: its end status comes in this FIS. */
static void send_pio_setup(struct ahci_port *p, uint32_t bytes)
{
    uint8_t fis[20];

    register_fis(&p->tf, FIS_PIO_SETUP, fis);
    fis[1] |= 0x20; /* device to host */
    fis[2] = p->tf.status | FVM_ATA_DRQ;
    fis[15] = p->tf.status;
    fis[16] = (uint8_t)bytes;
    fis[17] = (uint8_t)(bytes >> 8);
    receive_fis(p, RFIS_PIO, fis, sizeof(fis));
    p->is |= PX_IS_PSS;
}

static void send_sdb(struct ahci_port *p, uint32_t done)
{
    uint8_t fis[8] = {FIS_SDB, FIS_INTERRUPT, p->tf.status & 0x77, p->tf.error};

    memcpy(fis + 4, &done, 4);
    receive_fis(p, RFIS_SDB, fis, sizeof(fis));
    p->is |= PX_IS_SDBS;
}

static void halt(struct ahci_port *p, unsigned tag, uint32_t why)
{
    p->halted = true;
    p->cmd = (p->cmd & ~PX_CMD_CCS) | tag << 8;
    p->is |= why;
}

/* ---- ends ---- */

static void end_queued(struct ahci_slot *s)
{
    struct ahci_port *p = s->port;

    p->tf.status = s->task.tf.status;
    p->tf.error = s->task.tf.error;
    if (p->tf.status & FVM_ATA_ERR) {
        p->drive.failed_tag = (uint8_t)s->tag;
        send_sdb(p, 0);
        halt(p, s->tag, PX_IS_TFES);
    } else {
        p->sact &= ~(1u << s->tag);
        send_sdb(p, 1u << s->tag);
    }
}

static void end_single(struct ahci_slot *s, bool pio_in, uint32_t moved)
{
    struct ahci_port *p = s->port;
    bool bad = s->task.tf.status & FVM_ATA_ERR;

    p->tf = s->task.tf;
    (void)fvm_ram_write(p->ahci->dev.board->ram, s->header_gpa + 4, &moved, 4); /* PRDBC */
    if (pio_in && !bad)
        send_pio_setup(p, moved);
    else
        send_d2h(p, true);
    if (bad)
        halt(p, s->tag, PX_IS_TFES);
    else
        p->ci &= ~(1u << s->tag);
}

/* The command is over, task->tf is its answer. */
static void end(struct ahci_slot *s, bool pio_in, uint32_t moved)
{
    struct ahci_port *p = s->port;

    fvm_dma_fini(&s->dma);
    if (s->task.queued)
        end_queued(s);
    else
        end_single(s, pio_in, moved);
    fvm_ahci_update(p->ahci, false);
}

static void on_done(void *ctx, int status)
{
    struct ahci_slot *s = ctx;
    struct ahci_port *p = s->port;
    bool in = s->task.kind == FVM_ATA_READ, pio_in = in && !s->task.dma && !s->task.packet;
    uint32_t moved = status ? 0 : s->task.bytes;

    if (in && !status)
        fvm_dma_written(&s->dma, s->dma.bytes);
    p->in_flight &= ~(1u << s->tag);
    if (!p->in_flight)
        p->exclusive = false;
    fvm_ata_finish(&s->task, status);
    end(s, pio_in, moved);
    fvm_ahci_port_kick(p);
}

/* ---- starts ---- */

static int gather(struct ahci_slot *s, uint64_t table, unsigned entries)
{
    struct fvm_ram *ram = s->port->ahci->dev.board->ram;

    s->dma = (struct fvm_dma){.ram = ram};
    for (unsigned i = 0; i < entries && s->dma.bytes < s->task.bytes; i++) {
        struct {
            uint64_t base;
            uint32_t reserved, count;
        } prd;
        int r = fvm_ram_read(ram, table + TABLE_PRDT + (uint64_t)PRD_BYTES * i, &prd, sizeof(prd));

        _Static_assert(sizeof(prd) == PRD_BYTES, "as in memory");
        if (!r)
            r = fvm_dma_add(&s->dma, prd.base & ~1ull, ((prd.count & 0x3fffff) | 1) + 1);
        if (r)
            return r;
    }
    fvm_dma_trim(&s->dma, s->task.bytes);
    return 0;
}

static void fill_taskfile(struct fvm_ata_taskfile *tf, const uint8_t *fis)
{
    *tf = (struct fvm_ata_taskfile){.command = fis[2], .device = fis[7]};
    tf->feature = (uint16_t)(fis[3] | fis[11] << 8);
    tf->lba_low = (uint16_t)(fis[4] | fis[8] << 8);
    tf->lba_mid = (uint16_t)(fis[5] | fis[9] << 8);
    tf->lba_high = (uint16_t)(fis[6] | fis[10] << 8);
    tf->count = (uint16_t)(fis[12] | fis[13] << 8);
}

/* Device control: software reset is set in one FIS and cleared in the next. */
static void control_fis(struct ahci_slot *s, uint8_t control)
{
    struct ahci_port *p = s->port;

    p->ci &= ~(1u << s->tag);
    if (control & CONTROL_SRST) {
        p->tf.status = FVM_ATA_BSY;
    } else if (p->tf.status & FVM_ATA_BSY) {
        fvm_ata_signature(&p->drive, &p->tf);
        send_d2h(p, false);
    }
}

/* Decoded: move the data. */
static void start(struct ahci_slot *s, uint64_t table, unsigned entries)
{
    struct ahci_port *p = s->port;
    struct fvm_ata_task *task = &s->task;
    uint32_t moved;

    if (task->kind == FVM_ATA_DONE) {
        end(s, false, 0);
        return;
    }
    if (task->kind != FVM_ATA_FLUSH && gather(s, table, entries)) {
        fvm_dma_fini(&s->dma);
        halt(p, s->tag, PX_IS_HBFS);
        fvm_ahci_update(p->ahci, false);
        return;
    }
    if (task->kind == FVM_ATA_IN) {
        moved = (uint32_t)fvm_dma_put(&s->dma, task->buffer, task->bytes);
        fvm_ata_finish(task, 0);
        end(s, !task->packet, moved);
        return;
    }
    if (task->kind != FVM_ATA_FLUSH && s->dma.bytes < task->bytes) { /* the table is too short */
        if (task->packet)
            fvm_atapi_fail(task, 0x0b, 0, 0);
        else
            fvm_ata_abort(task, FVM_ATA_ABRT);
        p->is |= PX_IS_OFS;
        end(s, false, 0);
        return;
    }
    p->in_flight |= 1u << s->tag;
    p->exclusive = !task->queued;
    if (task->queued)
        p->ci &= ~(1u << s->tag); /* accepted; PxSACT says when it is over */
    fvm_ata_transfer(task, 0, s->dma.iov, (int)s->dma.count, on_done, s);
}

static void issue(struct ahci_port *p, unsigned tag)
{
    struct fvm_ram *ram = p->ahci->dev.board->ram;
    struct ahci_slot *s = &p->slot[tag];
    uint32_t header[4];
    uint8_t fis[20];
    uint64_t table;

    s->header_gpa = p->clb + (uint64_t)HEADER_BYTES * tag;
    p->cmd = (p->cmd & ~PX_CMD_CCS) | tag << 8;
    if (fvm_ram_read(ram, s->header_gpa, header, sizeof(header)) != 0)
        goto fatal;
    table = (header[2] & ~0x7fu) | (uint64_t)header[3] << 32;
    if (fvm_ram_read(ram, table, fis, sizeof(fis)) != 0 || fis[0] != FIS_H2D)
        goto fatal;
    if (!(fis[1] & FIS_COMMAND)) {
        control_fis(s, fis[15]);
        return;
    }
    s->task.drive = &p->drive;
    fill_taskfile(&s->task.tf, fis);
    fvm_ata_decode(&s->task);
    if (s->task.queued && fis[12] >> 3 != (int)tag) /* where a queued command has its tag */
        fvm_ata_abort(&s->task, FVM_ATA_ABRT);
    if (s->task.kind == FVM_ATA_PACKET) {
        memset(s->task.cdb, 0, sizeof(s->task.cdb));
        if (fvm_ram_read(ram, table + TABLE_PACKET, s->task.cdb, 12) != 0)
            goto fatal;
        fvm_atapi_decode(&s->task);
    }
    start(s, table, header[0] >> 16);
    return;
fatal:
    halt(p, tag, PX_IS_HBFS);
    fvm_ahci_update(p->ahci, false);
}

/* Does the slot hold a queued command? Asked before it is issued, without judging the rest. */
static bool is_queued(struct ahci_port *p, unsigned tag)
{
    return (p->sact >> tag) & 1;
}

void fvm_ahci_port_kick(struct ahci_port *p)
{
    if (p->kicking) /* a command that ended at once: the loop below goes on */
        return;
    p->kicking = true;
    for (unsigned tag = 0; tag < AHCI_SLOTS; tag++) {
        if (!(p->cmd & PX_CMD_ST) || p->halted || p->ahci->quiesced || p->exclusive || !p->drive.disk || p->ssts != PX_SSTS_UP ||
            !fvm_pci_bus_master(&p->ahci->pci))
            break;
        if (!(p->ci >> tag & 1) || (p->in_flight >> tag & 1))
            continue;
        if (p->in_flight && !is_queued(p, tag))
            continue; /* alone, when the queue is empty */
        issue(p, tag);
    }
    p->kicking = false;
}

/* ---- states of the port ---- */

void fvm_ahci_port_drain(struct ahci_port *p)
{
    while (p->in_flight)
        fvm_disk_drain(p->drive.disk);
}

void fvm_ahci_port_stop(struct ahci_port *p)
{
    p->cmd &= ~PX_CMD_ST; /* nothing new while waiting */
    fvm_ahci_port_drain(p);
    p->cmd &= ~(PX_CMD_CR | PX_CMD_CCS);
    p->ci = p->sact = 0;
    p->halted = false;
}

void fvm_ahci_port_link(struct ahci_port *p)
{
    fvm_ahci_port_drain(p);
    p->tf = (struct fvm_ata_taskfile){0};
    if (!p->drive.disk) {
        p->ssts = 0;
        p->sig = PX_SIG_NONE;
        p->tf.status = 0x7f;
        return;
    }
    p->ssts = PX_SSTS_UP;
    p->serr |= PX_SERR_X;
    fvm_ata_signature(&p->drive, &p->tf);
    p->sig = p->drive.cdrom ? 0xeb140101 : 0x00000101;
    send_d2h(p, false);
}

void fvm_ahci_port_reset(struct ahci_port *p)
{
    fvm_ahci_port_stop(p);
    p->cmd = PX_CMD_SUD | PX_CMD_POD | (p->drive.disk && p->drive.cdrom ? PX_CMD_ATAPI : 0);
    p->is = p->ie = p->sctl = p->serr = 0;
    if (p->drive.disk)
        fvm_ata_drive_reset(&p->drive);
    fvm_ahci_port_link(p);
    p->serr = 0;
}
