/*
 * rmap.c - from a physical page to the shadow entries that may write it, so that a write right can be taken back.
 *
 * A page has FVM_RMAP_SLOTS slots, oldest first. A slot names an entry (space and index) and is a hint: flushes leave
 * it behind, so it counts only while the entry still maps the page with a write right. One writer more than there are
 * slots takes the right from the oldest, whose next write comes back as a miss.
 *
 * Invariant: every entry with a write right to page P is named by a slot of P. Fast-helper safe.
 */
#include "vmm/mmu/shadow_impl.h"

/* The entry that a slot names if it is live: still writes page pfn. NULL otherwise. */
uint64_t *fvm_rmap_entry(struct fvm_shadow *sh, uint64_t slot, fvm_pfn pfn)
{
    uint64_t index = slot & ((1ull << 36) - 1), space = (slot >> 36) - 1, hva;
    struct shadow_half *half;
    uint64_t *entry;

    if (!slot)
        return NULL;
    half = space == KERNEL_SPACE ? &sh->kernel : &sh->spaces[space].user;
    index &= HALF_ENTRIES - 1;
    if (!(half->flags[index / TABLE_ENTRIES] & TF_W))
        return NULL;
    entry = &half->entries[index];
    if (!(*entry & S_W))
        return NULL;
    hva = (*entry & ~S_RIGHTS) + index_va(index | (half->kernel ? HALF_ENTRIES : 0));
    return hva == (uintptr_t)fvm_ram_hva(sh->ram, pfn << FVM_PAGE_SHIFT) ? entry : NULL;
}

/* Note that `slot`'s entry will write page pfn. False: no slot is free and may_steal is false. */
bool fvm_rmap_add(struct fvm_shadow *sh, fvm_pfn pfn, uint64_t slot, bool may_steal)
{
    uint64_t *slots = &sh->rmap[pfn * FVM_RMAP_SLOTS];
    uint64_t *entry;

    for (unsigned i = 0; i < FVM_RMAP_SLOTS; i++)
        if (slots[i] == slot)
            return true;
    for (unsigned i = 0; i < FVM_RMAP_SLOTS; i++) {
        if (!slots[i]) {
            slots[i] = slot;
            return true;
        }
    }
    if (!may_steal)
        return false;
    for (unsigned i = 0; i < FVM_RMAP_SLOTS; i++) {
        if (!fvm_rmap_entry(sh, slots[i], pfn)) {
            slots[i] = slot;
            return true;
        }
    }
    entry = fvm_rmap_entry(sh, slots[0], pfn);
    *entry &= ~S_W;
    for (unsigned i = 1; i < FVM_RMAP_SLOTS; i++)
        slots[i - 1] = slots[i];
    slots[FVM_RMAP_SLOTS - 1] = slot;
    sh->stats.steals++;
    return true;
}

bool fvm_shadow_may_write(const struct fvm_shadow *sh, fvm_pfn pfn)
{
    const uint64_t *slots = &sh->rmap[pfn * FVM_RMAP_SLOTS];
    uint64_t any = 0;

    for (unsigned i = 0; i < FVM_RMAP_SLOTS; i++)
        any |= __atomic_load_n(&slots[i], __ATOMIC_SEQ_CST);
    return any;
}

void fvm_rmap_revoke(struct fvm_shadow *sh, fvm_pfn pfn)
{
    uint64_t *slots = &sh->rmap[pfn * FVM_RMAP_SLOTS];

    for (unsigned i = 0; i < FVM_RMAP_SLOTS; i++) {
        uint64_t *entry = fvm_rmap_entry(sh, slots[i], pfn);

        if (entry) {
            *entry &= ~S_W;
            sh->stats.revokes++;
        }
        slots[i] = 0;
    }
}
