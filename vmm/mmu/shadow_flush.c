/*
 * shadow_flush.c - how shadow entries go away: whole halves, single (large) pages, non-global ones, write rights.
 *
 * Every flush costs what was filled: it follows the list of touched table pages. Zeroed table pages keep their host
 * memory, for the same addresses are likely to be filled again; where they are not (a randomized layout per exec), the
 * memory is given back once the resident pages are many more than the last generation used.
 *
 * Invariant: exec_flushed is set before a flush that may have dropped an execute right returns, except for a CR3 load
 * of a space in which supervisor code was never executed (its user-mode jump cache is the head, zeroed along).
 * Fast-helper safe: no libc; madvise is a bare syscall.
 */
#include "vmm/mmu/shadow_impl.h"

#include <sys/mman.h>
#include <sys/syscall.h>

/* Without libc's wrapper, which would write errno: thread-local storage is the guest's here. */
static long bare_madvise(void *addr, uint64_t len, int advice)
{
    long ret;

    __asm__ volatile("syscall"
                     : "=a"(ret)
                     : "a"((long)SYS_madvise), "D"(addr), "S"(len), "d"((long)advice)
                     : "rcx", "r11", "memory");
    return ret;
}

/* Before an entry is filled: log its table page, with these flags more. May flush a half whose log is full. */
void fvm_shadow_touch(struct fvm_shadow *sh, uint64_t index, uint8_t add)
{
    struct shadow_half *half = half_of(sh, index);
    uint32_t table = (uint32_t)((index & (HALF_ENTRIES - 1)) / TABLE_ENTRIES);
    uint8_t f = half->flags[table];

    add |= TF_TOUCHED;
    if ((f & add) == add)
        return;
    if ((!(f & TF_TOUCHED) && half->touched_count == TOUCHED_MAX) ||
        (half->kernel && (add & ~f & TF_NONGLOBAL) && sh->nonglobal_count == NONGLOBAL_MAX)) {
        if (half->kernel)
            fvm_shadow_drop_half(sh, half);
        else
            fvm_shadow_drop_space(sh, sh->cur, false);
        f = half->flags[table];
    }
    if (!(f & TF_TOUCHED))
        half->touched[half->touched_count++] = table;
    if (!(f & TF_RESIDENT))
        half->resident++;
    if (half->kernel && (add & TF_NONGLOBAL) && !(f & TF_NONGLOBAL))
        sh->nonglobal[sh->nonglobal_count++] = table;
    if (add & TF_LARGE1G)
        half->any_1g = true;
    half->flags[table] = f | add | TF_RESIDENT;
}

static bool zero_touched(struct shadow_half *half)
{
    uint8_t all = 0;

    for (uint32_t i = 0; i < half->touched_count; i++) {
        uint32_t table = half->touched[i];

        all |= half->flags[table];
        zero_table(&half->entries[(uint64_t)table * TABLE_ENTRIES]);
        half->flags[table] = TF_RESIDENT;
    }
    return all & TF_X;
}

/* Give the half's memory back to the host, entries and flags. False if the host refused (then nothing changed). */
static bool release_half(struct shadow_half *half)
{
    if (bare_madvise(half->entries, HALF_BYTES, half->kernel ? MADV_REMOVE : MADV_DONTNEED) != 0)
        return false;
    half->resident = 0;
    /* Anonymous private memory: cannot be refused once the range is right; and a flag left over would only cost. */
    (void)bare_madvise(half->flags, HALF_TABLES, MADV_DONTNEED);
    return true;
}

/* Drop every entry of a half; sets exec_flushed for X rights. A space's head is the caller's work. */
void fvm_shadow_drop_half(struct fvm_shadow *sh, struct shadow_half *half)
{
    uint32_t limit = FVM_MAX(half->kernel ? RESIDENT_KERNEL_MAX : RESIDENT_USER_MAX, 4 * half->touched_count);

    if (zero_touched(half))
        sh->exec_flushed |= fvm_shadow_exec_half(half);
    if (half->resident > limit)
        (void)release_half(half);
    half->touched_count = 0;
    half->any_1g = false;
    if (half->kernel)
        sh->nonglobal_count = 0;
}

void fvm_shadow_zero_head(uint64_t *gs, uint64_t bytes)
{
    uint64_t *word = gs - bytes / 8;
    uint64_t piece = (bytes - 16) / 8 / 64;

    for (uint64_t filled = word[0]; filled; filled &= filled - 1) {
        uint64_t *p = word + 2 + (unsigned)__builtin_ctzll(filled) * piece, count = piece;

        __asm__ volatile("rep stosq" : "+D"(p), "+c"(count) : "a"(0ull) : "memory");
    }
    word[0] = word[1] = 0;
}

/* The user half of a space, and its head. by_load: a CR3 load or a steal, see the invariant on top. */
void fvm_shadow_drop_space(struct fvm_shadow *sh, struct shadow_space *space, bool by_load)
{
    uint8_t before = sh->exec_flushed;

    fvm_shadow_drop_half(sh, &space->user);
    if (by_load || space != sh->cur)
        sh->exec_flushed = before | (space->user_kx ? FVM_SHADOW_EXEC_USER | FVM_SHADOW_EXEC_KERNEL : 0);
    space->user_kx = false;
    fvm_shadow_zero_head(space->gs, sh->head_used_bytes);
    sh->stats.flush_space++;
}

void fvm_shadow_drop_all(struct fvm_shadow *sh)
{
    for (unsigned i = 0; i < SPACE_COUNT; i++)
        if (sh->spaces[i].used)
            fvm_shadow_drop_space(sh, &sh->spaces[i], false);
    fvm_shadow_drop_half(sh, &sh->kernel);
    sh->stats.flush_all++;
}

/* Table page with all of its entries; it stays in the log. */
static bool drop_table(struct fvm_shadow *sh, struct shadow_half *half, uint32_t table)
{
    bool exec = half->flags[table] & TF_X;

    zero_table(&half->entries[(uint64_t)table * TABLE_ENTRIES]);
    half->flags[table] &= TF_TOUCHED | TF_RESIDENT | TF_NONGLOBAL;
    if (exec)
        sh->exec_flushed |= fvm_shadow_exec_half(half);
    return exec;
}

void fvm_shadow_drop_nonglobal(struct fvm_shadow *sh)
{
    for (uint32_t i = 0; i < sh->nonglobal_count; i++) {
        uint32_t table = sh->nonglobal[i];

        (void)drop_table(sh, &sh->kernel, table);
        sh->kernel.flags[table] &= (uint8_t)~TF_NONGLOBAL;
    }
    sh->nonglobal_count = 0;
}

/* The tables around `table` that may hold parts of one 1 GiB page. */
static bool drop_1g(struct fvm_shadow *sh, struct shadow_half *half, uint32_t table)
{
    bool exec = false;

    for (uint32_t t = table & ~511u; t <= (table | 511u); t++)
        if (half->flags[t] & TF_LARGE1G)
            exec |= drop_table(sh, half, t);
    return exec;
}

static bool drop_page(struct fvm_shadow *sh, struct shadow_half *half, uint64_t index)
{
    uint32_t table = (uint32_t)((index & (HALF_ENTRIES - 1)) / TABLE_ENTRIES);
    /* a 4 MiB page (32-bit tables) covers a pair of table pages */
    uint32_t last = !sh->pg.long_mode && !sh->pg.pae ? table | 1 : table;
    uint32_t first = !sh->pg.long_mode && !sh->pg.pae ? table & ~1u : table;
    bool exec = false;

    if (half->any_1g)
        exec |= drop_1g(sh, half, table);
    for (uint32_t t = first; t <= last; t++)
        if (half->flags[t] & TF_LARGE2M)
            exec |= drop_table(sh, half, t);
    if (half->flags[table] & TF_TOUCHED) {
        uint64_t *entry = &half->entries[index & (HALF_ENTRIES - 1)];

        if (*entry & S_X) {
            exec = true;
            sh->exec_flushed |= fvm_shadow_exec_half(half);
        }
        *entry = 0;
    }
    return exec;
}

bool fvm_shadow_flush_page(struct fvm_shadow *sh, fvm_gva va)
{
    uint64_t index = entry_index(sh->pg.long_mode ? va : (uint32_t)va);

    sh->stats.flush_page++;
    return drop_page(sh, half_of(sh, index), index);
}

static struct shadow_space *find_space(struct fvm_shadow *sh, uint16_t pcid)
{
    for (unsigned i = 0; i < SPACE_COUNT; i++)
        if (sh->spaces[i].used && sh->spaces[i].pcid == pcid)
            return &sh->spaces[i];
    return NULL;
}

void fvm_shadow_invpcid(struct fvm_shadow *sh, unsigned type, uint16_t pcid, fvm_gva va)
{
    uint64_t index = entry_index(va);
    struct shadow_space *space = find_space(sh, pcid);

    fvm_assert(type <= 3);
    switch (type) {
    case 0:
        sh->stats.flush_page++;
        if (index >= HALF_ENTRIES) {
            (void)drop_page(sh, &sh->kernel, index);
        } else if (space == sh->cur) {
            (void)drop_page(sh, &space->user, index);
        } else if (space && drop_page(sh, &space->user, index)) {
            fvm_shadow_zero_head(space->gs, sh->head_used_bytes);
        }
        return;
    case 1:
        if (space)
            fvm_shadow_drop_space(sh, space, false);
        fvm_shadow_drop_nonglobal(sh);
        return;
    case 2:
        fvm_shadow_drop_all(sh);
        return;
    default:
        for (unsigned i = 0; i < SPACE_COUNT; i++)
            if (sh->spaces[i].used)
                fvm_shadow_drop_space(sh, &sh->spaces[i], false);
        fvm_shadow_drop_nonglobal(sh);
    }
}

static void withdraw_half(struct shadow_half *half)
{
    for (uint32_t i = 0; i < half->touched_count; i++) {
        uint32_t table = half->touched[i];
        uint64_t *entries = &half->entries[(uint64_t)table * TABLE_ENTRIES];

        if (!(half->flags[table] & TF_W))
            continue;
        for (unsigned k = 0; k < TABLE_ENTRIES; k++)
            if (entries[k] & S_W)
                entries[k] &= ~S_W;
        half->flags[table] &= (uint8_t)~TF_W;
    }
}

void fvm_shadow_withdraw_writes(struct fvm_shadow *sh)
{
    for (unsigned i = 0; i < SPACE_COUNT; i++)
        withdraw_half(&sh->spaces[i].user);
    withdraw_half(&sh->kernel);
    /* the rmap's slots are hints (see rmap.c): without a write right in the entry they mean nothing */
}
