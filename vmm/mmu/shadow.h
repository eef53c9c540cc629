/*
 * shadow.h - the flat shadow page tables of one vCPU: what emitted code looks at on every memory access.
 *
 * Entry (8 bytes) for each guest linear page, index = bits 47:12 of the address:
 *
 *     63                                      12 11  8 7        0
 *    +------------------------------------------+-----+----------+
 *    | addend: page's hva - gva  (mod 2^64)     | 0   | rights   |
 *    +------------------------------------------+-----+----------+
 *
 * rights: a set bit PERMITS, so a zero entry (never touched memory) permits nothing. Emitted code:
 *     u = entry[(t << 16) >> 28]; if (!(u & right)) slow; low byte of u = 0; access [t + u]
 * A non-canonical t indexes its canonical alias and then yields a non-canonical host address: the host's #GP is the
 * guest's.
 *
 * Tables: one "space" per (vCPU, PCID): 512 GiB of reserved address space, of which the upper 256 GiB (the kernel half)
 * is the same memory (a memfd) in every space of the vCPU. In front of each space lies FVM_SPACE_HEAD bytes that the
 * engine owns (the space's own jump cache for user-mode code), zeroed by every flush of the space:
 *
 *     gs:[-FVM_SPACE_HEAD .. 0)  engine      gs:[0 .. 256G) user half      gs:[256G .. 512G) kernel half (shared)
 *
 * It behaves as a large PCID-tagged TLB: entries stay until flushed. Flushing costs what was filled: per half a log of
 * touched 4 KiB table pages (each covers 2 MiB of linear addresses) with flags (holds parts of a large page; holds
 * non-global entries).
 *
 * Write rights (KW, UW) are withheld when: the guest's D bit is clear; the page has FVM_PAGE_CODE or FVM_PAGE_PT; the
 * dirty log has not seen it in this epoch (version < epoch while logging). To revoke, each physical page remembers
 * at most FVM_RMAP_SLOTS entries that hold a write right; granting one more takes the right from an older one.
 *
 * Thread: a shadow belongs to its vCPU's thread. Others (protect_page, withdraw_writes) only while that vCPU is stopped
 * (cpu/translate/world.c); fvm_shadow_may_write at any time.
 */
#ifndef FVM_VMM_MMU_SHADOW_H
#define FVM_VMM_MMU_SHADOW_H

#include "vmm/mem/ram.h"
#include "vmm/mmu/walk.h"

enum { /* bits of the rights byte */
    FVM_S_KR = 0x01, /* supervisor may read */
    FVM_S_KW = 0x02,
    FVM_S_UR = 0x04, /* user may read */
    FVM_S_UW = 0x08,
    FVM_S_KX = 0x10, /* supervisor may execute (SMEP and NX considered) */
    FVM_S_UX = 0x20,
};

#define FVM_SPACE_HEAD (1ull << 20)
#define FVM_SPACE_BYTES (512ull << 30)
#define FVM_RMAP_SLOTS 3

struct fvm_shadow;

struct fvm_shadow_stats {
    uint64_t fills, fill_neighbours, write_grants, flush_space, flush_all, flush_page, revokes, switches, steals;
};

/** Result of a miss. */
enum fvm_shadow_result {
    FVM_SHADOW_OK,     /* the entry now permits the access: *ret_entry */
    FVM_SHADOW_FAULT,  /* guest fault in *fault */
    FVM_SHADOW_MMIO,   /* translates to a gpa that is not RAM: *ret_gpa */
    FVM_SHADOW_CODE,   /* write to a page with FVM_PAGE_CODE or _PT: *ret_gpa. D and version are set, read rights filled;
                          the caller writes and then calls fvm_ram_mark_written. Never granted here */
};

int fvm_shadow_create(struct fvm_ram *ram, struct fvm_shadow **ret_shadow, struct fvm_err *err);
void fvm_shadow_destroy(struct fvm_shadow **shadow_p);

/**
 * The guest loaded CR0/CR3/CR4/EFER. Selects the space for pg->cr3's PCID (pcid enabled) or the one space otherwise.
 * flush: this load drops the space's (non-global) entries. Returns the new GS base (address of entry 0).
 */
uint64_t *fvm_shadow_load(struct fvm_shadow *sh, const struct fvm_paging *pg, bool pcid_enabled, bool flush);
/** Paging mode bits changed (WP, PGE, NX, SMEP, AC with SMAP...): drops everything. Returns the GS base. */
uint64_t *fvm_shadow_flush_all(struct fvm_shadow *sh, const struct fvm_paging *pg, bool pcid_enabled);
/** INVLPG: the (large) page at va, in the current space and the shared half. True if an X right went. */
bool fvm_shadow_flush_page(struct fvm_shadow *sh, fvm_gva va);
/** INVPCID types 0 (address), 1 (single context), 2 (all incl. global), 3 (all but global). */
void fvm_shadow_invpcid(struct fvm_shadow *sh, unsigned type, uint16_t pcid, fvm_gva va);

/**
 * fvm_shadow_miss - the slow path of an access: walk, set A/D, fill the entry (and cheap neighbours).
 * @want: FVM_R|FVM_W|FVM_X and FVM_USER as for fvm_walk; the access lies within one page.
 * Fast-helper safe: no vector registers, no libc, no locks.
 */
enum fvm_shadow_result fvm_shadow_miss(struct fvm_shadow *sh, fvm_gva va, unsigned want, uint64_t *ret_entry,
                                       fvm_gpa *ret_gpa, struct fvm_fault *fault);
/** The entry for va in the current space (may be 0). */
uint64_t fvm_shadow_peek(const struct fvm_shadow *sh, fvm_gva va);

/** Page gets FVM_PAGE_CODE (set here, a full barrier): no entry of this shadow keeps a write right to it. */
void fvm_shadow_protect_page(struct fvm_shadow *sh, fvm_pfn pfn);
/**
 * May an entry of this shadow have a write right to the page, or get it from a miss that is under way? Any thread, after
 * FVM_PAGE_CODE was set: a miss notes the entry in the rmap before it looks at the flag, so one of the two sees the other. True
 * too often (the rmap's slots are hints), never false wrongly.
 */
bool fvm_shadow_may_write(const struct fvm_shadow *sh, fvm_pfn pfn);
/** Start (or go on with) an epoch: withdraws every write right in every space. Cost: what was filled. */
void fvm_shadow_withdraw_writes(struct fvm_shadow *sh);
/** From now on a write right is granted only together with marking the page's version (always done; see ram.h). */

enum { FVM_SHADOW_EXEC_USER = 1, FVM_SHADOW_EXEC_KERNEL = 2 };
/** The halves (bits) in which a translation that permitted execution was dropped since the last call. */
unsigned fvm_shadow_take_exec_flushed(struct fvm_shadow *sh);

/**
 * The engine uses the last `bytes` of the head, [gs - bytes, gs), and flushes zero them: two words, then 64 pieces of equal
 * size. A bit of the first word says whether its piece needs zeroing; both words become 0.
 */
void fvm_shadow_set_head_used(struct fvm_shadow *sh, uint64_t bytes);
/** What a flush does to a head. Fast-helper safe. */
void fvm_shadow_zero_head(uint64_t *gs, uint64_t bytes);

/**
 * Debug and tests: walk the guest's tables for every filled entry (each space with the CR3 it last had) and count those
 * that grant more than the tables and pages do now, or that a flush or revoke would miss. First one's address in
 * *ret_va. Stale entries that the guest has not flushed yet count too: use it where all changes were flushed. Not
 * fast-helper safe.
 */
uint64_t fvm_shadow_check(const struct fvm_shadow *sh, fvm_gva *ret_va);

uint64_t fvm_shadow_bytes(const struct fvm_shadow *sh); /* host memory in use, for stats */
const struct fvm_shadow_stats *fvm_shadow_get_stats(const struct fvm_shadow *sh);

#endif
