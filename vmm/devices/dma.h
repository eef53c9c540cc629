/*
 * dma.h - a scatter list of guest RAM: what a chip collects from its descriptors before data moves.
 *
 *     struct fvm_dma dma = {.ram = board->ram};
 *     r = fvm_dma_add(&dma, gpa, len);            (as often as there are descriptors)
 *     fvm_dma_trim(&dma, bytes);                  (the disk moves exactly so much)
 *     ... fvm_disk_readv(disk, at, dma.iov, dma.count, done, ctx) ...
 *     fvm_dma_written(&dma, bytes);               (after the bytes are there)
 *     fvm_dma_fini(&dma);
 *
 * Thread: board lock.
 */
#ifndef FVM_VMM_DEVICES_DMA_H
#define FVM_VMM_DEVICES_DMA_H

#include <sys/uio.h>

#include "vmm/mem/ram.h"

#define FVM_DMA_PIECES_MAX 4096u /* more in one command is refused: no driver asks for it, a hostile one would */

struct fvm_dma {
    struct fvm_ram *ram;
    struct iovec *iov; /* malloc'd */
    unsigned count, room;
    uint64_t bytes;
};

/** Append [gpa, gpa + len). FVM_EINVAL: not all RAM. FVM_ENOSPC: too many pieces. FVM_ENOMEM. */
int fvm_dma_add(struct fvm_dma *dma, fvm_gpa gpa, uint64_t len);
/** Keep the first `bytes` only. */
void fvm_dma_trim(struct fvm_dma *dma, uint64_t bytes);
/** Copy between the list's front and a buffer; returns how many bytes fitted. put marks the pages. */
uint64_t fvm_dma_put(struct fvm_dma *dma, const void *buf, uint64_t len);
uint64_t fvm_dma_get(const struct fvm_dma *dma, void *buf, uint64_t len);
/** Mark the pages of the first `bytes` as written. */
void fvm_dma_written(struct fvm_dma *dma, uint64_t bytes);
void fvm_dma_fini(struct fvm_dma *dma);

#endif
