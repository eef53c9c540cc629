/*
 * walk.h - translate a linear address through the guest's own page tables (pure).
 */
#ifndef FVM_VMM_MMU_WALK_H
#define FVM_VMM_MMU_WALK_H

#include "base/types.h"
#include "vmm/mem/ram.h"

/* Access wanted / rights found. */
enum { FVM_R = 1, FVM_W = 2, FVM_X = 4, FVM_USER = 8 };
enum { FVM_FAULT = 1 }; /* a guest fault, not an error: > 0 */

/** A guest fault (exception) to deliver. */
struct fvm_fault {
    uint8_t vector;
    bool has_code;
    uint32_t code;
    uint64_t cr2; /* #PF only */
};

/** Paging as the control registers define it; filled by vmm/cpu from CR0, CR3, CR4, EFER. */
struct fvm_paging {
    uint64_t cr3;
    bool on;      /* CR0.PG; off: gva == gpa (low 32 bits) */
    bool long_mode; /* EFER.LMA: 4-level. Else PAE if pae, else 32-bit 2-level */
    bool pae, pse, pge, nx, wp, smep, smap, ac; /* ac: EFLAGS.AC, for SMAP */
    uint8_t maxphyaddr;
};

struct fvm_walk {
    fvm_gpa gpa;        /* of the byte asked for */
    uint8_t level;      /* size of the mapping: 0 = 4 KiB, 1 = 2/4 MiB, 2 = 1 GiB */
    uint8_t rights;     /* FVM_R|W|X|USER permitted by the tables, see fvm_walk */
    bool global;
    bool dirty;         /* leaf D bit */
    bool accessed;      /* A set on every level */
    uint8_t pte_count;  /* entries visited, top first */
    uint8_t upper_rights; /* like rights, but of the levels above the leaf only */
    fvm_gpa pte_gpa[4]; /* gpa of each entry; [pte_count-1] is the leaf */
    uint64_t pte[4];    /* what was read there */
};

/**
 * fvm_walk - translate.
 *
 * Pure: reads guest RAM, writes nothing (A/D bits: fvm_walk_set_ad).
 * @want: FVM_R|FVM_W|FVM_X, plus FVM_USER when the access is made at CPL 3 (implicit supervisor accesses omit it).
 * @ret: set on 0. `rights` has FVM_W if the tables allow a *supervisor with WP=1 or a user* to write, FVM_X if not NX,
 *       FVM_USER if user-accessible on all levels.
 * @fault: set on FVM_FAULT: #PF with code (P, W, U, RSVD, I/D bits) and cr2; #GP(0) for a non-canonical va.
 *
 * Returns 0 or FVM_FAULT. Never blocks; compiled without vector registers (runs inside the code cache's fast helpers).
 * Source: Intel SDM vol. 3A, ch. 4. Test: tests/unit/mmu_walk.c
 */
int fvm_walk(const struct fvm_ram *ram, const struct fvm_paging *pg, fvm_gva va, unsigned want, struct fvm_walk *ret,
             struct fvm_fault *fault);

/**
 * Set A on every visited entry and, if `dirty`, D on the leaf (atomic compare-and-swap; pages marked written).
 * False: another processor changed an entry since the walk: walk again. True: walk->accessed and ->dirty say what is
 * set now.
 */
bool fvm_walk_set_ad(struct fvm_ram *ram, const struct fvm_paging *pg, struct fvm_walk *walk, bool dirty);

/**
 * The 4 KiB page `delta` pages away from walk's (level 0), by the neighbouring entry of the same table: gpa, rights,
 * global, dirty, accessed. False if it is not present or malformed. The caller stays within the table.
 */
bool fvm_walk_sibling(const struct fvm_ram *ram, const struct fvm_paging *pg, const struct fvm_walk *walk, int delta,
                      struct fvm_walk *ret);

#endif
