/*
 * warm.h - RAM of the destination backed by the host before pages arrive.
 *
 * Why: the first touch of fresh memory costs the kernel (and a hypervisor below it) more than opening and placing the
 * page that goes there; done by threads of its own while the source is still preparing, it costs the migration nothing.
 *
 * The source says which blocks of FVM_WARM_BLOCK_BYTES it has ever written; those are what will come. It is a hint:
 * nothing is read from it but which pages to touch, and touching changes no byte.
 *
 * Threads: start and stop by the owner of RAM; stop before RAM goes.
 */
#ifndef FVM_MIGRATE_WARM_H
#define FVM_MIGRATE_WARM_H

#include "vmm/mem/ram.h"

#define FVM_WARM_BLOCK_BYTES (2ull << 20)

/** Bytes of a map of that RAM, one bit for each block of the numbering without the hole. */
size_t fvm_warm_map_bytes(const struct fvm_ram *ram);
/** Which blocks hold a page that was ever written. map: fvm_warm_map_bytes. */
void fvm_warm_map(const struct fvm_ram *ram, uint8_t *ret_map);

struct fvm_warm;
/** Begins touching in the background; a map of another length is ignored (no warming: *ret_warm is NULL). */
int fvm_warm_start(const struct fvm_ram *ram, const uint8_t *map, size_t map_bytes, struct fvm_warm **ret_warm);
/** Ends as soon as the block in hand is done. NULL inside is fine. */
void fvm_warm_stop(struct fvm_warm **warm_p);

#endif
