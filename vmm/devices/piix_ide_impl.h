/* piix_ide_impl.h - between piix_ide.c (registers, PCI), ide_channel.c (one channel's commands) and ide_state.c only. */
#ifndef FVM_VMM_DEVICES_PIIX_IDE_IMPL_H
#define FVM_VMM_DEVICES_PIIX_IDE_IMPL_H

#include "vmm/devices/ata.h"
#include "vmm/devices/dma.h"
#include "vmm/devices/piix_ide.h"

enum ide_phase { IDE_IDLE, IDE_PACKET, IDE_DATA_IN, IDE_DATA_OUT, IDE_WAIT_DMA, IDE_RUNNING /* never saved */ };
enum { IDE_CONTROL_NIEN = 2, IDE_CONTROL_SRST = 4, IDE_CONTROL_HOB = 0x80 };
enum { BM_START = 1, BM_TO_MEMORY = 8, BM_ACTIVE = 1, BM_ERROR = 2, BM_INTERRUPT = 4, BM_CAPABLE = 0x60 };
enum { IDE_DATA_BYTES = 32768, IDE_CHANNELS = 2 };

/*
 * One channel. A command's way: IDLE -> (PACKET) -> DATA_IN | DATA_OUT | WAIT_DMA -> IDLE, with RUNNING while the disk
 * works. PIO passes `data` in chunks; of a chunk, [position, burst_end) is the data request the guest sees.
 */
struct ide_channel { /* board lock */
    struct piix_ide *ide;
    unsigned line;
    struct fvm_ata_drive drive[2];
    struct fvm_ata_taskfile tf[2];
    uint8_t selected, control;
    bool interrupt;
    enum ide_phase phase;
    struct fvm_ata_task task;
    uint8_t data[IDE_DATA_BYTES];
    uint32_t filled, position, burst_end, moved;
    struct iovec chunk;
    struct fvm_dma dma;
    uint8_t bm_command, bm_status;
    uint32_t bm_table;
    int claim_id[2];
};

struct piix_ide { /* board lock */
    struct fvm_device dev;
    struct fvm_pci_function pci;
    struct ide_channel channel[IDE_CHANNELS];
};

static inline bool ide_present(const struct ide_channel *c, unsigned drive)
{
    return c->drive[drive].disk != NULL;
}

void fvm_ide_channel_command(struct ide_channel *c, uint8_t command);
void fvm_ide_channel_select(struct ide_channel *c, uint8_t device);
void fvm_ide_channel_control(struct ide_channel *c, uint8_t control);
/** Power-on; nothing is in flight afterwards. */
void fvm_ide_channel_reset(struct ide_channel *c);
/** Wait for the disk; the channel stands in a phase that can be saved. */
void fvm_ide_channel_drain(struct ide_channel *c);
uint32_t fvm_ide_channel_data_read(struct ide_channel *c, unsigned size);
void fvm_ide_channel_data_write(struct ide_channel *c, unsigned size, uint32_t value);
/** The bus master engine was started. */
void fvm_ide_channel_dma(struct ide_channel *c);
void fvm_ide_channel_interrupt(struct ide_channel *c, bool level);

int fvm_ide_save(struct fvm_device *dev, uint8_t **ret_buf, size_t *ret_len);
int fvm_ide_check(struct fvm_device *dev, const uint8_t *buf, size_t len, struct fvm_err *err);
void fvm_ide_restore(struct fvm_device *dev, const uint8_t *buf, size_t len);

#endif
