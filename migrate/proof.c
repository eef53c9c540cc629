/*
 * proof.c - see proof.h. Knows RAM and hashes, nothing of the wire.
 *
 * Invariant: hash[i] is the hash of page i's bytes whenever good[i] >= the page's version (or the page was never
 * written).
 */
#include "migrate/proof.h"

#include <stdlib.h>
#include <string.h>

#include <xxhash.h>

static const uint8_t zero_page[FVM_PAGE_SIZE];

uint64_t fvm_proof_hash_page(const void *page) { return XXH3_64bits(page, FVM_PAGE_SIZE); }

uint64_t fvm_proof_zero_hash(void) { return fvm_proof_hash_page(zero_page); }

int fvm_proof_init(struct fvm_proof *p, const struct fvm_ram *ram)
{
    p->ram = ram;
    p->page_count = (ram->low_bytes + ram->high_bytes) >> FVM_PAGE_SHIFT;
    p->range_count = (uint32_t)((p->page_count + FVM_PROOF_RANGE_PAGES - 1) / FVM_PROOF_RANGE_PAGES);
    p->hash = calloc(p->page_count, sizeof(*p->hash));
    p->good = calloc(p->page_count, sizeof(*p->good));
    p->range = calloc(p->range_count, sizeof(*p->range));
    if (p->hash && p->good && p->range)
        return 0;
    fvm_proof_fini(p);
    return FVM_ENOMEM;
}

void fvm_proof_fini(struct fvm_proof *p)
{
    free(p->hash);
    free(p->good);
    free(p->range);
    *p = (struct fvm_proof){0};
}

uint64_t fvm_proof_index(const struct fvm_proof *p, fvm_pfn pfn)
{
    uint64_t low = p->ram->low_bytes >> FVM_PAGE_SHIFT;
    return pfn < low ? pfn : pfn - (FVM_RAM_HIGH_BASE >> FVM_PAGE_SHIFT) + low;
}

fvm_pfn fvm_proof_pfn(const struct fvm_proof *p, uint64_t index)
{
    uint64_t low = p->ram->low_bytes >> FVM_PAGE_SHIFT;
    return index < low ? index : index - low + (FVM_RAM_HIGH_BASE >> FVM_PAGE_SHIFT);
}

void fvm_proof_note(struct fvm_proof *p, fvm_pfn pfn, uint64_t hash, uint32_t epoch)
{
    uint64_t i = fvm_proof_index(p, pfn);
    fvm_assert(i < p->page_count);
    p->hash[i] = hash;
    p->good[i] = epoch;
}

void fvm_proof_forget(struct fvm_proof *p) { memset(p->good, 0, p->page_count * sizeof(*p->good)); }

uint64_t fvm_proof_digest(struct fvm_proof *p, uint32_t epoch, uint64_t *ret_ranges, uint64_t *ret_hashed_pages)
{
    uint64_t hashed = 0, zero = fvm_proof_zero_hash();
    for (uint32_t r = 0; r < p->range_count; r++) {
        uint64_t first = (uint64_t)r * FVM_PROOF_RANGE_PAGES;
        uint64_t count = FVM_MIN(p->page_count - first, (uint64_t)FVM_PROOF_RANGE_PAGES);
        for (uint64_t i = first; i < first + count; i++) {
            fvm_pfn pfn = fvm_proof_pfn(p, i);
            uint32_t version = __atomic_load_n(&p->ram->version[pfn], __ATOMIC_RELAXED);
            if (version == 0 && p->good[i] == 0) {
                p->hash[i] = zero;
            } else if (p->good[i] == 0 || version > p->good[i]) {
                p->hash[i] = fvm_proof_hash_page(fvm_ram_hva(p->ram, pfn << FVM_PAGE_SHIFT));
                p->good[i] = epoch;
                hashed++;
            }
        }
        p->range[r] = XXH3_64bits(&p->hash[first], count * sizeof(*p->hash));
    }
    if (ret_ranges)
        memcpy(ret_ranges, p->range, p->range_count * sizeof(*p->range));
    if (ret_hashed_pages)
        *ret_hashed_pages = hashed;
    return XXH3_64bits(p->range, p->range_count * sizeof(*p->range));
}

void fvm_proof_range(const struct fvm_proof *p, uint32_t range, uint64_t ret_hashes[FVM_PROOF_RANGE_PAGES])
{
    fvm_assert(range < p->range_count);
    uint64_t first = (uint64_t)range * FVM_PROOF_RANGE_PAGES;
    uint64_t count = FVM_MIN(p->page_count - first, (uint64_t)FVM_PROOF_RANGE_PAGES);
    memset(ret_hashes, 0, FVM_PROOF_RANGE_PAGES * sizeof(*ret_hashes));
    memcpy(ret_hashes, &p->hash[first], count * sizeof(*ret_hashes));
}
