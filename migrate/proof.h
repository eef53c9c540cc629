/*
 * proof.h - the memory proof: one number over all of RAM, cheap enough to be computed while the guest stands still.
 *
 * XXH3-64 of each part of 256 bytes; 16 of them make a page's hash; 512 page hashes, in order of address, a range's;
 * the ranges' hashes, in order, the digest. A page that was never written counts as the zero page without being
 * touched. Hashes are kept with the dirty epoch up to which they are good, and a range is hashed again only when one of
 * its pages was: in the blackout, what was known before costs a look at the versions.
 *
 * The parts are what a page that changed is compared by (stream.h), so both uses pay for one reading of the page.
 *
 * Both sides keep one. Source: fvm_proof_note with the bytes it sends. Destination: with what is in its RAM after
 * applying. Not a defence against an attacker (pages are sealed for that) but against our own and the machines'
 * mistakes. Thread: the migration's.
 */
#ifndef FVM_MIGRATE_PROOF_H
#define FVM_MIGRATE_PROOF_H

#include "vmm/mem/ram.h"

#define FVM_PROOF_RANGE_PAGES 512
enum { FVM_PROOF_PART_BYTES = 256, FVM_PROOF_PARTS = 16 };

struct fvm_proof {
    const struct fvm_ram *ram; /* borrowed */
    uint64_t page_count;       /* RAM pages, the hole left out */
    uint32_t range_count;
    uint64_t *hash;  /* [page_count] */
    uint32_t *good;  /* [page_count] hash holds while the page's version is <= this; 0: no hash */
    uint64_t *range; /* [range_count] as of the last digest */
    uint8_t *stale;  /* [range_count] a hash was noted since */
};

int fvm_proof_init(struct fvm_proof *proof, const struct fvm_ram *ram);
void fvm_proof_fini(struct fvm_proof *proof);

/** RAM pages are numbered without the hole: index <-> pfn. index of a pfn that is RAM. */
uint64_t fvm_proof_index(const struct fvm_proof *proof, fvm_pfn pfn);
fvm_pfn fvm_proof_pfn(const struct fvm_proof *proof, uint64_t index);

/** ret_parts: the low halves of the parts' hashes; may be NULL. */
uint64_t fvm_proof_hash_page(const void *page, uint32_t ret_parts[FVM_PROOF_PARTS]);
/** Of a page of zeros. */
uint64_t fvm_proof_zero_hash(uint32_t ret_parts[FVM_PROOF_PARTS]);
/** `hash` is right for the page as of dirty epoch `epoch`. */
void fvm_proof_note(struct fvm_proof *proof, fvm_pfn pfn, uint64_t hash, uint32_t epoch);
/** Work of the next digest that can be done before it: the ranges whose pages were noted. */
void fvm_proof_refresh(struct fvm_proof *proof);
/** Forget everything: the next digest reads all of RAM. */
void fvm_proof_forget(struct fvm_proof *proof);
/**
 * RAM must stand still, all writes in closed epochs <= `epoch`. Hashes what is not known.
 * @ret_ranges  [range_count] or NULL. Returns the digest.
 */
uint64_t fvm_proof_digest(struct fvm_proof *proof, uint32_t epoch, uint64_t *ret_ranges, uint64_t *ret_hashed_pages);
/** Page hashes of one range after a digest; absent pages at the end are 0. */
void fvm_proof_range(const struct fvm_proof *proof, uint32_t range, uint64_t ret_hashes[FVM_PROOF_RANGE_PAGES]);

#endif
