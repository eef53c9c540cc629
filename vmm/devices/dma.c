/*
 * dma.c - scatter lists of guest RAM. See dma.h.
 *
 * Invariant: every piece lies in RAM as fvm_ram_map found it; bytes is the sum of the pieces. Adjacent pieces are joined.
 */
#include "vmm/devices/dma.h"

#include <stdlib.h>
#include <string.h>

int fvm_dma_add(struct fvm_dma *dma, fvm_gpa gpa, uint64_t len)
{
    uint8_t *at;

    if (!len)
        return 0;
    at = fvm_ram_map(dma->ram, gpa, len);
    if (!at)
        return FVM_EINVAL;
    if (dma->count) {
        struct iovec *last = &dma->iov[dma->count - 1];

        if ((uint8_t *)last->iov_base + last->iov_len == at) {
            last->iov_len += len;
            dma->bytes += len;
            return 0;
        }
    }
    if (dma->count == FVM_DMA_PIECES_MAX)
        return FVM_ENOSPC;
    if (dma->count == dma->room) {
        unsigned room = dma->room ? 2 * dma->room : 16;
        struct iovec *iov = realloc(dma->iov, room * sizeof(*iov));

        if (!iov)
            return FVM_ENOMEM;
        dma->iov = iov;
        dma->room = room;
    }
    dma->iov[dma->count++] = (struct iovec){at, len};
    dma->bytes += len;
    return 0;
}

void fvm_dma_trim(struct fvm_dma *dma, uint64_t bytes)
{
    uint64_t sum = 0;
    unsigned i;

    if (bytes >= dma->bytes)
        return;
    for (i = 0; sum < bytes; i++) {
        dma->iov[i].iov_len = FVM_MIN(dma->iov[i].iov_len, bytes - sum);
        sum += dma->iov[i].iov_len;
    }
    dma->count = i;
    dma->bytes = bytes;
}

void fvm_dma_written(struct fvm_dma *dma, uint64_t bytes)
{
    for (unsigned i = 0; i < dma->count && bytes; i++) {
        uint64_t len = FVM_MIN(dma->iov[i].iov_len, bytes);

        fvm_ram_mark_written(dma->ram, (fvm_gpa)((uint8_t *)dma->iov[i].iov_base - dma->ram->base), len);
        bytes -= len;
    }
}

uint64_t fvm_dma_put(struct fvm_dma *dma, const void *buf, uint64_t len)
{
    uint64_t at = 0;

    for (unsigned i = 0; i < dma->count && at < len; i++) {
        uint64_t n = FVM_MIN(dma->iov[i].iov_len, len - at);

        memcpy(dma->iov[i].iov_base, (const uint8_t *)buf + at, n);
        at += n;
    }
    fvm_dma_written(dma, at);
    return at;
}

uint64_t fvm_dma_get(const struct fvm_dma *dma, void *buf, uint64_t len)
{
    uint64_t at = 0;

    for (unsigned i = 0; i < dma->count && at < len; i++) {
        uint64_t n = FVM_MIN(dma->iov[i].iov_len, len - at);

        memcpy((uint8_t *)buf + at, dma->iov[i].iov_base, n);
        at += n;
    }
    return at;
}

void fvm_dma_fini(struct fvm_dma *dma)
{
    free(dma->iov);
    dma->iov = NULL;
    dma->count = dma->room = 0;
    dma->bytes = 0;
}
