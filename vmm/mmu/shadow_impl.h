/*
 * shadow_impl.h - what shadow.c, shadow_flush.c, shadow_create.c, shadow_check.c and rmap.c share; for them only.
 *
 * A "half" is 2^35 entries (256 GiB of them) in 2^26 table pages of 512 entries; each table page covers 2 MiB of linear
 * addresses. Per half: one flag byte per table page and a list of the touched ones.
 *
 * Invariants:
 *  - an entry that is not 0 lies in a table page with TF_TOUCHED, which is in the list once;
 *  - an entry with a write right lies in a TF_W page and has its slot in the rmap of the page it maps;
 *  - an entry with an execute right lies in a TF_X page; a non-global entry of the kernel half in a TF_NONGLOBAL page;
 *  - a part of a 2/4 MiB page lies in a TF_LARGE2M page, of a 1 GiB page in a TF_LARGE1G page of a half with any_1g.
 */
#ifndef FVM_VMM_MMU_SHADOW_IMPL_H
#define FVM_VMM_MMU_SHADOW_IMPL_H

#include "vmm/mmu/shadow.h"

#define SPACE_COUNT 8
#define HALF_ENTRIES (1ull << 35)
#define HALF_BYTES (HALF_ENTRIES * 8)
#define HALF_TABLES (1u << 26)
#define TABLE_ENTRIES 512u
#define TOUCHED_MAX (1u << 20)
#define NONGLOBAL_MAX (1u << 16)
#define KERNEL_SPACE 15u /* "space" of a kernel-half entry in an rmap slot */
/* Zeroed table pages keep their memory for the next fill; above this many a flush may give it back. */
#define RESIDENT_USER_MAX 2048u
#define RESIDENT_KERNEL_MAX 32768u

#define S_W ((uint64_t)(FVM_S_KW | FVM_S_UW))
#define S_X ((uint64_t)(FVM_S_KX | FVM_S_UX))
#define S_RIGHTS 0xfffull

enum { /* flags of a table page */
    TF_TOUCHED = 1,
    TF_LARGE2M = 2,
    TF_LARGE1G = 4,
    TF_NONGLOBAL = 8,
    TF_W = 16,
    TF_X = 32,
    TF_RESIDENT = 64, /* the host has memory for it */
};

struct shadow_half {
    uint64_t *entries; /* kernel half: as seen in the current space */
    uint8_t *flags;    /* [HALF_TABLES] */
    uint32_t *touched; /* [TOUCHED_MAX] */
    uint32_t touched_count;
    uint32_t resident;
    bool kernel;
    bool any_1g;
};

struct shadow_space {
    struct shadow_half user;
    uint64_t *gs; /* entry 0 == user.entries */
    uint64_t cr3; /* last loaded; fvm_shadow_check */
    uint64_t last_use;
    uint16_t pcid;
    bool used;
    bool user_kx; /* a supervisor may execute something in the user half: its jump caches know such addresses */
    void *map;
};

struct fvm_shadow {
    struct fvm_ram *ram;
    struct fvm_paging pg;
    bool pcid_enabled;
    uint8_t exec_flushed; /* FVM_SHADOW_EXEC_* */
    struct shadow_space *cur;
    struct shadow_half kernel;
    uint32_t *nonglobal; /* [NONGLOBAL_MAX] kernel-half table pages with TF_NONGLOBAL */
    uint32_t nonglobal_count;
    uint64_t head_used_bytes;
    uint64_t use_clock;
    uint64_t *rmap; /* [ram->array_pages * FVM_RMAP_SLOTS] */
    struct fvm_shadow_stats stats;
    struct shadow_space spaces[SPACE_COUNT];
};

static inline uint8_t fvm_shadow_exec_half(const struct shadow_half *half)
{
    return half->kernel ? FVM_SHADOW_EXEC_KERNEL : FVM_SHADOW_EXEC_USER;
}

static inline uint64_t entry_index(fvm_gva va)
{
    return (va << 16) >> 28;
}
static inline struct shadow_half *half_of(struct fvm_shadow *sh, uint64_t index)
{
    return index < HALF_ENTRIES ? &sh->cur->user : &sh->kernel;
}
/* Linear address that an index stands for in canonical form. */
static inline fvm_gva index_va(uint64_t index)
{
    return (uint64_t)((int64_t)(index << 28) >> 16);
}
/* An rmap slot: which entry. Never 0. */
static inline uint64_t slot_make(const struct fvm_shadow *sh, uint64_t index)
{
    uint64_t space = index < HALF_ENTRIES ? (uint64_t)(sh->cur - sh->spaces) : KERNEL_SPACE;

    return (space + 1) << 36 | index;
}
static inline void zero_table(uint64_t *table)
{
    uint64_t count = TABLE_ENTRIES;

    __asm__ volatile("rep stosq" : "+D"(table), "+c"(count) : "a"(0ull) : "memory");
}

/* rmap.c */
bool fvm_rmap_add(struct fvm_shadow *sh, fvm_pfn pfn, uint64_t slot, bool may_steal);
uint64_t *fvm_rmap_entry(struct fvm_shadow *sh, uint64_t slot, fvm_pfn pfn);
void fvm_rmap_revoke(struct fvm_shadow *sh, fvm_pfn pfn);

/* shadow_flush.c */
void fvm_shadow_touch(struct fvm_shadow *sh, uint64_t index, uint8_t add);
void fvm_shadow_drop_half(struct fvm_shadow *sh, struct shadow_half *half);
void fvm_shadow_drop_space(struct fvm_shadow *sh, struct shadow_space *space, bool by_load);
void fvm_shadow_drop_all(struct fvm_shadow *sh);
void fvm_shadow_drop_nonglobal(struct fvm_shadow *sh);

#endif
