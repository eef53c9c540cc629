/*
 * shadow.c - the flat shadow page tables: which space is current, and the miss that fills entries.
 *
 * A miss is the only place where rights are granted. It walks the guest's tables, sets A and D as the processor would,
 * and grants what they permit: reads and executes at once, writes only where every reason to withhold them is gone:
 *
 *     D set?  no FVM_PAGE_CODE / FVM_PAGE_PT?  page marked written in this epoch?  named in the rmap?
 *
 * A write miss makes these true (or says FVM_SHADOW_CODE); any other miss grants the write right only if they are true
 * already. The same rule fills up to seven neighbours in the same cache line of entries: never more than the hardware
 * might have cached, and never a change to guest memory.
 *
 * Invariant: an entry grants no more than a fresh walk would at the time it was filled (fvm_shadow_check). Fast-helper
 * safe: no libc, no vector registers, no locks.
 */
#include "vmm/mmu/shadow_impl.h"

#define GROUP 8u /* entries per cache line */

static bool same_mode(const struct fvm_paging *a, const struct fvm_paging *b)
{
    return a->on == b->on && a->long_mode == b->long_mode && a->pae == b->pae && a->pse == b->pse && a->pge == b->pge &&
           a->nx == b->nx && a->wp == b->wp && a->smep == b->smep && a->smap == b->smap &&
           (a->ac == b->ac || !a->smap) && a->maxphyaddr == b->maxphyaddr;
}

/* The space that has this PCID, else a free one, else the least recently used. */
static struct shadow_space *choose_space(struct fvm_shadow *sh, uint16_t pcid)
{
    struct shadow_space *pick = NULL;

    if (sh->cur->used && sh->cur->pcid == pcid)
        return sh->cur;
    for (unsigned i = 0; i < SPACE_COUNT; i++) {
        struct shadow_space *s = &sh->spaces[i];

        if (s->used && s->pcid == pcid)
            return s;
        if (!pick || (pick->used && (!s->used || s->last_use < pick->last_use)))
            pick = s;
    }
    if (pick->used)
        fvm_shadow_drop_space(sh, pick, true);
    pick->used = true;
    pick->pcid = pcid;
    return pick;
}

static void select_space(struct fvm_shadow *sh, uint16_t pcid)
{
    struct shadow_space *space = choose_space(sh, pcid);

    if (space != sh->cur) {
        /* supervisor code seen at user-half addresses: what is there now is another program's */
        if (sh->cur->user_kx || space->user_kx)
            sh->exec_flushed = FVM_SHADOW_EXEC_USER | FVM_SHADOW_EXEC_KERNEL;
        sh->cur = space;
        sh->kernel.entries = space->gs + HALF_ENTRIES;
        sh->stats.switches++;
    }
    space->last_use = ++sh->use_clock;
}

uint64_t *fvm_shadow_load(struct fvm_shadow *sh, const struct fvm_paging *pg, bool pcid_enabled, bool flush)
{
    struct shadow_space *before = sh->cur;
    bool cr3_changed = pg->cr3 != sh->pg.cr3;

    if (pcid_enabled != sh->pcid_enabled || !same_mode(pg, &sh->pg))
        return fvm_shadow_flush_all(sh, pg, pcid_enabled);
    sh->pg = *pg;
    select_space(sh, pcid_enabled ? (uint16_t)(pg->cr3 & 0xfff) : 0);
    sh->cur->cr3 = pg->cr3;
    if (flush || (cr3_changed && !pcid_enabled))
        fvm_shadow_drop_space(sh, sh->cur, true);
    if (flush || cr3_changed || sh->cur != before)
        fvm_shadow_drop_nonglobal(sh);
    return sh->cur->gs;
}

uint64_t *fvm_shadow_flush_all(struct fvm_shadow *sh, const struct fvm_paging *pg, bool pcid_enabled)
{
    fvm_shadow_drop_all(sh);
    sh->pg = *pg;
    sh->pcid_enabled = pcid_enabled;
    for (unsigned i = 0; i < SPACE_COUNT; i++)
        sh->spaces[i].used = false;
    select_space(sh, pcid_enabled ? (uint16_t)(pg->cr3 & 0xfff) : 0);
    sh->cur->cr3 = pg->cr3;
    return sh->cur->gs;
}

/*
 * The rights that a mapping gives in this mode. user_kx: a supervisor fetched from this user page, so give KX as well;
 * else it is left out: knowing that no supervisor runs code of a user half makes CR3 loads cheap for the engine.
 */
static uint64_t rights_of(const struct fvm_paging *pg, const struct fvm_walk *w, bool user_kx)
{
    bool user_page = w->rights & FVM_USER;
    bool writable = w->dirty && (w->rights & FVM_W);
    bool kernel_writable = w->dirty && ((w->rights & FVM_W) || !pg->wp);
    bool exec = w->rights & FVM_X;
    uint64_t r = 0;

    if (user_page)
        r |= FVM_S_UR | (writable ? FVM_S_UW : 0u) | (exec ? FVM_S_UX : 0u);
    if (!user_page || !pg->on || !pg->smap || pg->ac)
        r |= FVM_S_KR | (kernel_writable ? FVM_S_KW : 0u);
    if (exec && (!user_page || (user_kx && (!pg->on || !pg->smep))))
        r |= FVM_S_KX;
    return r;
}

static bool page_current(const struct fvm_ram *ram, fvm_pfn pfn)
{
    return __atomic_load_n(&ram->version[pfn], __ATOMIC_RELAXED) == __atomic_load_n(&ram->epoch, __ATOMIC_RELAXED) &&
           !__atomic_load_n(&ram->flags[pfn], __ATOMIC_RELAXED);
}

static uint8_t table_flags(uint64_t rights)
{
    return (uint8_t)(((rights & S_W) ? TF_W : 0) | ((rights & S_X) ? TF_X : 0));
}

static uint64_t entry_make(const struct fvm_shadow *sh, fvm_gva va, fvm_gpa gpa, uint64_t rights)
{
    return ((uintptr_t)fvm_ram_hva(sh->ram, gpa & ~FVM_PAGE_MASK) - (va & ~FVM_PAGE_MASK)) | rights;
}

/* Of the rights to a page of memory, those that its kind has. */
static uint64_t rights_by_kind(const struct fvm_ram *ram, fvm_gpa gpa, uint64_t rights)
{
    if (fvm_ram_is_video(ram, gpa))
        return rights & ~S_X;
    if (fvm_ram_is_watched(ram, gpa))
        return rights & S_X; /* loads and stores are for the bus to see */
    return fvm_ram_is_rom(ram, gpa) ? rights & ~S_W : rights;
}

/* What the tables say about the page `delta` pages away, if it may be filled along: see the head of this file. */
static bool neighbour(const struct fvm_shadow *sh, const struct fvm_walk *w, int delta, struct fvm_walk *ret)
{
    if (w->level == 0 && w->pte_count)
        return fvm_walk_sibling(sh->ram, &sh->pg, w, delta, ret) && ret->accessed && ret->global == w->global;
    ret->gpa = (w->gpa & ~FVM_PAGE_MASK) + (uint64_t)((int64_t)delta * (int64_t)FVM_PAGE_SIZE);
    ret->rights = w->rights;
    ret->dirty = w->dirty;
    return true;
}

/* Between noting entries in the rmap and looking whether their pages hold code: see fvm_shadow_may_write. */
static void rmap_noted(void)
{
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
}

static void fill_neighbours(struct fvm_shadow *sh, fvm_gva va, uint64_t index, const struct fvm_walk *w)
{
    uint64_t *group = &half_of(sh, index)->entries[index & (HALF_ENTRIES - 1) & ~(uint64_t)(GROUP - 1)];
    int self = (int)(index & (GROUP - 1));
    uint64_t all = 0, fresh[GROUP];
    fvm_pfn pfn[GROUP];

    for (int k = 0; k < (int)GROUP; k++) {
        struct fvm_walk n;
        uint64_t rights;

        fresh[k] = 0;
        if (group[k] || k == self || !neighbour(sh, w, k - self, &n) || !fvm_ram_direct(sh->ram, &n.gpa))
            continue;
        pfn[k] = n.gpa >> FVM_PAGE_SHIFT;
        if (sh->ram->flags[pfn[k]] & FVM_PAGE_ABSENT)
            continue;
        rights = rights_by_kind(sh->ram, n.gpa, rights_of(&sh->pg, &n, false));
        if ((rights & S_W) && (!page_current(sh->ram, pfn[k]) ||
                               !fvm_rmap_add(sh, pfn[k], slot_make(sh, index + (uint64_t)(k - self)), false)))
            rights &= ~S_W;
        if (rights)
            fresh[k] = entry_make(sh, va + (uint64_t)((int64_t)(k - self) * (int64_t)FVM_PAGE_SIZE), n.gpa, rights);
        all |= rights;
    }
    if (!all)
        return;
    if (all & S_W)
        rmap_noted();
    fvm_shadow_touch(sh, index, table_flags(all)); /* touched already: cannot flush */
    for (unsigned k = 0; k < GROUP; k++) {
        if (!fresh[k])
            continue;
        if ((fresh[k] & S_W) && !page_current(sh->ram, pfn[k]))
            fresh[k] &= ~S_W;
        group[k] = fresh[k];
        sh->stats.fill_neighbours++;
    }
    if (index < HALF_ENTRIES && (all & FVM_S_KX))
        sh->cur->user_kx = true;
}

/* Decide about the page's own write right. Returns the rights that remain; *ret_code: the write must not be granted. */
static uint64_t settle_write(struct fvm_shadow *sh, fvm_pfn pfn, uint64_t index, uint64_t rights, bool want_write,
                             bool *ret_code)
{
    struct fvm_ram *ram = sh->ram;

    *ret_code = false;
    if (!(rights & S_W))
        return rights;
    if (!want_write) {
        if (!page_current(ram, pfn) || !fvm_rmap_add(sh, pfn, slot_make(sh, index), false))
            return rights & ~S_W;
        rmap_noted();
        return page_current(ram, pfn) ? rights : rights & ~S_W;
    }
    if (!(__atomic_load_n(&ram->flags[pfn], __ATOMIC_RELAXED) & (FVM_PAGE_CODE | FVM_PAGE_PT))) {
        (void)fvm_rmap_add(sh, pfn, slot_make(sh, index), true);
        rmap_noted();
    }
    fvm_ram_mark_version(ram, pfn); /* no code hook: the caller tells it after the bytes are there */
    if (__atomic_load_n(&ram->flags[pfn], __ATOMIC_RELAXED) & (FVM_PAGE_CODE | FVM_PAGE_PT)) {
        *ret_code = true;
        return rights & ~S_W;
    }
    sh->stats.write_grants++;
    return rights;
}

/* Fill the entry for a walk that succeeded and landed in memory; gpa is what fvm_ram_direct made of w->gpa. */
static enum fvm_shadow_result fill(struct fvm_shadow *sh, fvm_gva va, unsigned want, const struct fvm_walk *w,
                                   fvm_gpa gpa, uint64_t *ret_entry)
{
    uint64_t index = entry_index(va), old, rights, fresh;
    struct shadow_half *half = half_of(sh, index);
    fvm_pfn pfn = gpa >> FVM_PAGE_SHIFT;
    uint8_t flags = 0;
    bool user_kx, code;

    fresh = entry_make(sh, va, gpa, 0);
    old = half->entries[index & (HALF_ENTRIES - 1)];
    user_kx = ((want & FVM_X) && !(want & FVM_USER)) || ((old & FVM_S_KX) && (old & ~S_RIGHTS) == fresh);
    rights = rights_by_kind(sh->ram, gpa, rights_of(&sh->pg, w, user_kx));
    if (w->pte_count && w->level)
        flags |= w->level == 1 ? TF_LARGE2M : TF_LARGE1G;
    if (half->kernel && !(w->global && sh->pg.pge))
        flags |= TF_NONGLOBAL;
    fvm_shadow_touch(sh, index, flags | table_flags(rights));
    rights = settle_write(sh, pfn, index, rights, want & FVM_W, &code);
    if (!half->kernel && (rights & FVM_S_KX))
        sh->cur->user_kx = true;
    if ((old & S_X) && ((old ^ fresh) & ~S_RIGHTS || (old & S_X & ~rights)))
        sh->exec_flushed |= fvm_shadow_exec_half(half); /* the next flush of the page would not find the right that was there */
    *ret_entry = half->entries[index & (HALF_ENTRIES - 1)] = fresh | rights;
    sh->stats.fills++;
    fill_neighbours(sh, va, index, w);
    return code ? FVM_SHADOW_CODE : FVM_SHADOW_OK;
}

/*
 * Outside long mode linear addresses wrap at 4 GiB, but a caller that added a segment base or crossed a page may pass
 * what it has: the entry that it gets leads from that very address to the page.
 */
static uint64_t above_4g(const struct fvm_shadow *sh, fvm_gva va)
{
    return sh->pg.long_mode ? 0 : va & ~0xffffffffull;
}

enum fvm_shadow_result fvm_shadow_miss(struct fvm_shadow *sh, fvm_gva va, unsigned want, uint64_t *ret_entry,
                                       fvm_gpa *ret_gpa, struct fvm_fault *fault)
{
    struct fvm_walk w;
    fvm_gpa gpa;
    uint64_t beyond = above_4g(sh, va);

    va -= beyond;
    do {
        if (fvm_walk(sh->ram, &sh->pg, va, want, &w, fault))
            return FVM_SHADOW_FAULT;
    } while (!fvm_walk_set_ad(sh->ram, &sh->pg, &w, want & FVM_W));
    *ret_gpa = gpa = w.gpa = fvm_ram_a20(sh->ram, w.gpa);
    bool fetch_watched = (want & FVM_X) && fvm_ram_is_watched(sh->ram, gpa);
    if ((!fetch_watched && !fvm_ram_direct(sh->ram, &gpa)) || ((want & FVM_X) && fvm_ram_is_video(sh->ram, gpa)) || ((want & FVM_W) && fvm_ram_is_rom(sh->ram, gpa)))
        return FVM_SHADOW_MMIO;
    enum fvm_shadow_result r = fill(sh, va, want, &w, gpa, ret_entry);
    *ret_entry -= beyond;
    return r;
}

uint64_t fvm_shadow_peek(const struct fvm_shadow *sh, fvm_gva va)
{
    uint64_t beyond = above_4g(sh, va), entry = sh->cur->gs[entry_index(va - beyond)];

    return entry ? entry - beyond : 0;
}

void fvm_shadow_protect_page(struct fvm_shadow *sh, fvm_pfn pfn)
{
    fvm_assert(fvm_ram_has_page(sh->ram, pfn) || fvm_ram_is_rom(sh->ram, pfn << FVM_PAGE_SHIFT));
    __atomic_fetch_or(&sh->ram->flags[pfn], FVM_PAGE_CODE, __ATOMIC_SEQ_CST);
    fvm_rmap_revoke(sh, pfn);
}

unsigned fvm_shadow_take_exec_flushed(struct fvm_shadow *sh)
{
    unsigned was = sh->exec_flushed;

    sh->exec_flushed = 0;
    return was;
}
