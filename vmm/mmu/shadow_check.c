/*
 * shadow_check.c - is every shadow entry justified? Compares all filled entries with fresh walks, and the bookkeeping
 * that flushes and revokes rely on with what it must cover. For tests and debugging: slow, changes nothing.
 *
 * Written against the contract (walk.h, shadow_impl.h's invariants), not with shadow.c's own functions: each right is
 * checked by asking fvm_walk for exactly that access.
 */
#include "vmm/mmu/shadow_impl.h"

struct check {
    const struct fvm_shadow *sh;
    const struct shadow_space *space;
    struct fvm_paging pg;
    uint64_t bad;
    fvm_gva first_va;
};

static const struct { uint64_t right; unsigned want; } ACCESSES[] = {
    {FVM_S_KR, FVM_R},          {FVM_S_KW, FVM_W},          {FVM_S_KX, FVM_X},
    {FVM_S_UR, FVM_R | FVM_USER}, {FVM_S_UW, FVM_W | FVM_USER}, {FVM_S_UX, FVM_X | FVM_USER},
};

static bool write_right_ok(const struct check *c, uint64_t index, fvm_pfn pfn, const struct fvm_walk *w)
{
    const struct fvm_ram *ram = c->sh->ram;
    uint64_t space = index < HALF_ENTRIES ? (uint64_t)(c->space - c->sh->spaces) : KERNEL_SPACE;
    uint64_t slot = (space + 1) << 36 | index;

    if (!w->dirty || (ram->flags[pfn] & (FVM_PAGE_CODE | FVM_PAGE_PT)) || ram->version[pfn] != ram->epoch)
        return false;
    for (unsigned i = 0; i < FVM_RMAP_SLOTS; i++)
        if (c->sh->rmap[pfn * FVM_RMAP_SLOTS + i] == slot)
            return true;
    return false;
}

static uint8_t flags_needed(const struct check *c, uint64_t index, uint64_t entry, const struct fvm_walk *w)
{
    uint8_t need = TF_TOUCHED | TF_RESIDENT;

    if (entry & S_W)
        need |= TF_W;
    if (entry & S_X)
        need |= TF_X;
    if (w->pte_count && w->level)
        need |= w->level == 1 ? TF_LARGE2M : TF_LARGE1G;
    if (index >= HALF_ENTRIES && !(w->global && c->pg.pge))
        need |= TF_NONGLOBAL;
    return need;
}

static bool entry_ok(const struct check *c, uint64_t index, uint64_t entry, uint8_t flags)
{
    fvm_gva va = index_va(index);
    struct fvm_walk w;
    struct fvm_fault fault;
    uint8_t need;

    if (!(entry & S_RIGHTS) || (entry & S_RIGHTS & ~(S_W | S_X | FVM_S_KR | FVM_S_UR)))
        return (entry & S_RIGHTS) == 0; /* all rights revoked: harmless; unknown bits: not */
    for (unsigned i = 0; i < FVM_ARRAY_SIZE(ACCESSES); i++) {
        if (!(entry & ACCESSES[i].right))
            continue;
        if (fvm_walk(c->sh->ram, &c->pg, va, ACCESSES[i].want, &w, &fault))
            return false;
        /* the kernel half may have been filled under another CR3, whose top-level entry got the A bit */
        if (!w.accessed && index < HALF_ENTRIES)
            return false;
    }
    if (!fvm_ram_direct(c->sh->ram, &w.gpa) || ((entry & S_X) && fvm_ram_is_video(c->sh->ram, w.gpa)) ||
        (entry & ~S_RIGHTS) + va != (uintptr_t)fvm_ram_hva(c->sh->ram, w.gpa))
        return false;
    if ((entry & S_W) && !write_right_ok(c, index, w.gpa >> FVM_PAGE_SHIFT, &w))
        return false;
    if (index < HALF_ENTRIES && (entry & FVM_S_KX) && !c->space->user_kx)
        return false;
    need = flags_needed(c, index, entry, &w);
    return (flags & need) == need;
}

static void check_half(struct check *c, const struct shadow_half *half)
{
    for (uint32_t i = 0; i < half->touched_count; i++) {
        uint64_t first = (uint64_t)half->touched[i] * TABLE_ENTRIES;

        for (uint64_t k = first; k < first + TABLE_ENTRIES; k++) {
            uint64_t index = k | (half->kernel ? HALF_ENTRIES : 0);

            if (!half->entries[k] || entry_ok(c, index, half->entries[k], half->flags[half->touched[i]]))
                continue;
            if (!c->bad++)
                c->first_va = index_va(index);
        }
    }
}

uint64_t fvm_shadow_check(const struct fvm_shadow *sh, fvm_gva *ret_va)
{
    struct check c = {.sh = sh, .pg = sh->pg};

    for (unsigned i = 0; i < SPACE_COUNT; i++) {
        c.space = &sh->spaces[i];
        if (!c.space->used)
            continue;
        c.pg.cr3 = c.space->cr3;
        check_half(&c, &c.space->user);
    }
    c.space = sh->cur;
    c.pg.cr3 = sh->cur->cr3;
    check_half(&c, &sh->kernel);
    if (c.bad)
        *ret_va = c.first_va;
    return c.bad;
}
