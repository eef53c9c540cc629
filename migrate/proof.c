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

uint64_t fvm_proof_hash_page(const void *page, uint32_t ret_parts[FVM_PROOF_PARTS])
{
    const uint8_t *p = page;
    uint64_t parts[FVM_PROOF_PARTS];
    for (unsigned i = 0; i < FVM_PROOF_PARTS; i++)
        parts[i] = XXH3_64bits(p + i * FVM_PROOF_PART_BYTES, FVM_PROOF_PART_BYTES);
    for (unsigned i = 0; ret_parts && i < FVM_PROOF_PARTS; i++)
        ret_parts[i] = (uint32_t)parts[i];
    return XXH3_64bits(parts, sizeof(parts));
}

uint64_t fvm_proof_zero_hash(uint32_t ret_parts[FVM_PROOF_PARTS]) { return fvm_proof_hash_page(zero_page, ret_parts); }

int fvm_proof_init(struct fvm_proof *p, const struct fvm_ram *ram)
{
    p->ram = ram;
    p->page_count = (ram->low_bytes + ram->high_bytes) >> FVM_PAGE_SHIFT;
    p->range_count = (uint32_t)((p->page_count + FVM_PROOF_RANGE_PAGES - 1) / FVM_PROOF_RANGE_PAGES);
    p->hash = malloc(p->page_count * sizeof(*p->hash));
    p->good = malloc(p->page_count * sizeof(*p->good));
    p->range = calloc(p->range_count, sizeof(*p->range));
    p->stale = malloc(p->range_count);
    if (!p->hash || !p->good || !p->range || !p->stale) {
        fvm_proof_fini(p);
        return FVM_ENOMEM;
    }
    fvm_proof_forget(p);
    return 0;
}

void fvm_proof_fini(struct fvm_proof *p)
{
    free(p->hash);
    free(p->good);
    free(p->range);
    free(p->stale);
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
    p->stale[i / FVM_PROOF_RANGE_PAGES] = 1;
}

void fvm_proof_forget(struct fvm_proof *p)
{
    uint64_t zero = fvm_proof_zero_hash(NULL); /* right for pages never written; the others are newer than 0 */
    for (uint64_t i = 0; i < p->page_count; i++)
        p->hash[i] = zero;
    memset(p->good, 0, p->page_count * sizeof(*p->good));
    memset(p->stale, 1, p->range_count);
}

/* Is a page of these newer than its hash? Plain loads, so that the compiler takes many at once: RAM stands still. */
static bool any_newer(const uint32_t *version, const uint32_t *good, uint64_t count)
{
    uint32_t any = 0;
    for (uint64_t i = 0; i < count; i++)
        any |= version[i] > good[i];
    return any;
}

static uint64_t hash_newer(struct fvm_proof *p, uint64_t first, uint64_t count, uint32_t epoch)
{
    uint64_t hashed = 0;
    for (uint64_t i = first; i < first + count; i++) {
        fvm_pfn pfn = fvm_proof_pfn(p, i);
        if (p->ram->version[pfn] > p->good[i]) {
            fvm_proof_note(p, pfn, fvm_proof_hash_page(fvm_ram_hva(p->ram, pfn << FVM_PAGE_SHIFT), NULL), epoch);
            hashed++;
        }
    }
    return hashed;
}

static void refresh_range(struct fvm_proof *p, uint32_t r)
{
    uint64_t first = (uint64_t)r * FVM_PROOF_RANGE_PAGES;
    if (p->stale[r])
        p->range[r] = XXH3_64bits(&p->hash[first], FVM_MIN(p->page_count - first, (uint64_t)FVM_PROOF_RANGE_PAGES) * 8);
    p->stale[r] = 0;
}

void fvm_proof_refresh(struct fvm_proof *p)
{
    for (uint32_t r = 0; r < p->range_count; r++)
        refresh_range(p, r);
}

uint64_t fvm_proof_digest(struct fvm_proof *p, uint32_t epoch, uint64_t *ret_ranges, uint64_t *ret_hashed_pages)
{
    uint64_t hashed = 0;
    for (uint32_t r = 0; r < p->range_count; r++) {
        uint64_t first = (uint64_t)r * FVM_PROOF_RANGE_PAGES;
        uint64_t count = FVM_MIN(p->page_count - first, (uint64_t)FVM_PROOF_RANGE_PAGES);
        /* The hole begins and ends at multiples of a range, so a range's pages follow each other. */
        if (any_newer(p->ram->version + fvm_proof_pfn(p, first), p->good + first, count))
            hashed += hash_newer(p, first, count, epoch);
        refresh_range(p, r);
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
