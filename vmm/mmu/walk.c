/*
 * walk.c - the guest's page tables, read as the processor reads them (Intel SDM vol. 3A, ch. 4).
 *
 * Four modes: off, 32-bit (2 levels, 4 MiB pages with PSE), PAE (2 levels under 4 PDPTEs), long mode (4 levels; 2 MiB
 * and 1 GiB pages). The last two share one loop; they differ in the top and in bits 62:52 (reserved in PAE, ignored in
 * long mode). PAE's PDPTEs are read at each walk (as AMD does), have no rights and no A bit.
 *
 * Invariant: fvm_walk writes nothing; *ret is complete on 0, *fault on FVM_FAULT. An entry outside of RAM reads as not
 * present. Fast-helper safe: no libc, no vector registers.
 */
#include "vmm/mmu/walk.h"

#define PTE_P 0x1ull
#define PTE_W 0x2ull
#define PTE_U 0x4ull
#define PTE_A 0x20ull
#define PTE_D 0x40ull
#define PTE_PS 0x80ull
#define PTE_G 0x100ull
#define PTE_NX (1ull << 63)
#define ADDR_52 0x000ffffffffff000ull
#define RIGHTS_ALL (FVM_R | FVM_W | FVM_X | FVM_USER)

enum { PF_P = 1, PF_W = 2, PF_U = 4, PF_RSVD = 8, PF_ID = 16 };
enum { VECTOR_GP = 13, VECTOR_PF = 14 };

static int page_fault(const struct fvm_paging *pg, fvm_gva va, unsigned want, unsigned code, struct fvm_fault *fault)
{
    if (want & FVM_W)
        code |= PF_W;
    if (want & FVM_USER)
        code |= PF_U;
    if ((want & FVM_X) && (pg->smep || (pg->nx && pg->pae)))
        code |= PF_ID;
    fault->vector = VECTOR_PF;
    fault->has_code = true;
    fault->code = code;
    fault->cr2 = va;
    return FVM_FAULT;
}

static int not_canonical(struct fvm_fault *fault)
{
    fault->vector = VECTOR_GP;
    fault->has_code = true;
    fault->code = 0;
    fault->cr2 = 0;
    return FVM_FAULT;
}

static uint64_t load_entry(const struct fvm_ram *ram, fvm_gpa gpa, unsigned bytes)
{
    if (!fvm_ram_contains(ram, gpa, bytes))
        return 0;
    if (bytes == 8)
        return __atomic_load_n((const uint64_t *)(const void *)fvm_ram_hva(ram, gpa), __ATOMIC_RELAXED);
    return __atomic_load_n((const uint32_t *)(const void *)fvm_ram_hva(ram, gpa), __ATOMIC_RELAXED);
}

/* Bits that no 8-byte entry may have; the address mask below maxphyaddr in *ret_addr. */
static uint64_t reserved64(const struct fvm_paging *pg, uint64_t *ret_addr)
{
    unsigned width = pg->maxphyaddr && pg->maxphyaddr < 52 ? pg->maxphyaddr : 52;
    uint64_t below = (1ull << width) - 1, rsvd = 0x000fffffffffffffull & ~below;

    *ret_addr = below & ADDR_52;
    if (!pg->long_mode)
        rsvd |= 0x7ff0000000000000ull;
    if (!pg->nx)
        rsvd |= PTE_NX;
    return rsvd;
}

/* What one entry leaves of the rights above it. nx_bit is 0 where the mode has none. */
static uint8_t and_rights(uint8_t rights, uint64_t e, uint64_t nx_bit)
{
    if (!(e & PTE_W))
        rights &= (uint8_t)~FVM_W;
    if (!(e & PTE_U))
        rights &= (uint8_t)~FVM_USER;
    if (e & nx_bit)
        rights &= (uint8_t)~FVM_X;
    return rights;
}

static void note_entry(struct fvm_walk *w, fvm_gpa gpa, uint64_t e)
{
    w->pte_gpa[w->pte_count] = gpa;
    w->pte[w->pte_count++] = e;
}

static void note_leaf(struct fvm_walk *w, uint64_t e, uint64_t nx_bit)
{
    w->upper_rights = w->rights;
    w->rights = and_rights(w->rights, e, nx_bit);
    w->global = (e & PTE_G) != 0;
    w->dirty = (e & PTE_D) != 0;
    w->accessed = w->accessed && (e & PTE_A);
}

/* 0, or the P/RSVD part of a page fault's code, +1 so that "not present" (code 0) is not 0 */
static unsigned walk64(const struct fvm_ram *ram, const struct fvm_paging *pg, fvm_gva va, struct fvm_walk *w)
{
    uint64_t addr, rsvd = reserved64(pg, &addr), table, e;
    uint64_t nx_bit = pg->nx ? PTE_NX : 0;
    int level = 3;

    if (pg->long_mode) {
        table = pg->cr3 & addr;
    } else {
        fvm_gpa gpa = (pg->cr3 & 0xffffffe0u) + (va >> 30) * 8;

        e = load_entry(ram, gpa, 8);
        note_entry(w, gpa, e);
        if (!(e & PTE_P))
            return 1;
        if (e & (rsvd | PTE_NX | 0x1e6))
            return (PF_P | PF_RSVD) + 1;
        table = e & addr;
        level = 1;
    }
    for (;; level--) {
        unsigned shift = 12 + 9 * (unsigned)level;
        fvm_gpa gpa = table + ((va >> shift) & 511) * 8;
        bool large;

        e = load_entry(ram, gpa, 8);
        note_entry(w, gpa, e);
        if (!(e & PTE_P))
            return 1;
        large = level && (e & PTE_PS);
        if ((e & rsvd) || (large && (level == 3 || (e & ((1ull << shift) - 1) & ~0x1fffull))))
            return (PF_P | PF_RSVD) + 1;
        if (!level || large) {
            note_leaf(w, e, nx_bit);
            w->level = (uint8_t)level;
            w->gpa = (e & addr & ~((1ull << shift) - 1)) | (va & ((1ull << shift) - 1));
            return 0;
        }
        w->rights = and_rights(w->rights, e, nx_bit);
        w->accessed = w->accessed && (e & PTE_A);
        table = e & addr;
    }
}

static unsigned walk32(const struct fvm_ram *ram, const struct fvm_paging *pg, fvm_gva va, struct fvm_walk *w)
{
    fvm_gpa gpa = (pg->cr3 & 0xfffff000u) + (va >> 22) * 4;
    uint64_t e = load_entry(ram, gpa, 4);

    note_entry(w, gpa, e);
    if (!(e & PTE_P))
        return 1;
    if (pg->pse && (e & PTE_PS)) {
        /* PSE-36: bits 20:13 are address bits 39:32, as far as the processor has them; the rest of 21:13 is reserved */
        unsigned width = pg->maxphyaddr && pg->maxphyaddr < 40 ? FVM_MAX(pg->maxphyaddr, 32) : 40;
        uint64_t high = ((1ull << (width - 32)) - 1) << 13;

        if (e & 0x3fe000 & ~high)
            return (PF_P | PF_RSVD) + 1;
        note_leaf(w, e, 0);
        w->level = 1;
        w->gpa = ((e & high) << 19) | (e & 0xffc00000u) | (va & 0x3fffff);
        return 0;
    }
    w->rights = and_rights(w->rights, e, 0);
    w->accessed = (e & PTE_A) != 0;
    gpa = (e & 0xfffff000u) + ((va >> 12) & 1023) * 4;
    e = load_entry(ram, gpa, 4);
    note_entry(w, gpa, e);
    if (!(e & PTE_P))
        return 1;
    note_leaf(w, e, 0);
    w->level = 0;
    w->gpa = (e & 0xfffff000u) | (va & FVM_PAGE_MASK);
    return 0;
}

static bool permitted(const struct fvm_paging *pg, uint8_t rights, unsigned want)
{
    bool user_page = rights & FVM_USER;

    if ((want & FVM_X) && !(rights & FVM_X))
        return false;
    if (want & FVM_USER)
        return user_page && (!(want & FVM_W) || (rights & FVM_W));
    if (user_page) {
        if ((want & FVM_X) && pg->smep)
            return false;
        if ((want & (FVM_R | FVM_W)) && pg->smap && !pg->ac)
            return false;
    }
    return !(want & FVM_W) || (rights & FVM_W) || !pg->wp;
}

int fvm_walk(const struct fvm_ram *ram, const struct fvm_paging *pg, fvm_gva va, unsigned want, struct fvm_walk *ret,
             struct fvm_fault *fault)
{
    unsigned bad;

    ret->level = 0;
    ret->rights = ret->upper_rights = RIGHTS_ALL;
    ret->global = false;
    ret->dirty = ret->accessed = true;
    ret->pte_count = 0;
    if (!pg->on) {
        ret->gpa = (uint32_t)va;
        return 0;
    }
    if (pg->long_mode) {
        if ((uint64_t)((int64_t)(va << 16) >> 16) != va)
            return not_canonical(fault);
    } else {
        va = (uint32_t)va;
    }
    bad = pg->long_mode || pg->pae ? walk64(ram, pg, va, ret) : walk32(ram, pg, va, ret);
    if (bad)
        return page_fault(pg, va, want, bad - 1, fault);
    if (!permitted(pg, ret->rights, want))
        return page_fault(pg, va, want, PF_P, fault);
    return 0;
}

/* Or `bits` into the entry unless anything but A and D changed since it was read. */
static bool set_bits(struct fvm_ram *ram, fvm_gpa gpa, unsigned bytes, uint64_t *seen, uint64_t bits)
{
    uint8_t *p = fvm_ram_hva(ram, gpa);
    uint64_t now = load_entry(ram, gpa, bytes);

    for (;;) {
        bool done;

        if ((now ^ *seen) & ~(PTE_A | PTE_D))
            return false;
        if ((now & bits) == bits)
            break;
        if (bytes == 8) {
            done = __atomic_compare_exchange_n((uint64_t *)(void *)p, &now, now | bits, false, __ATOMIC_SEQ_CST,
                                               __ATOMIC_SEQ_CST);
        } else {
            uint32_t low = (uint32_t)now;

            done = __atomic_compare_exchange_n((uint32_t *)(void *)p, &low, low | (uint32_t)bits, false,
                                               __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
            now = low;
        }
        if (done) {
            now |= bits;
            fvm_ram_mark_written(ram, gpa, bytes);
            break;
        }
    }
    *seen = now;
    return true;
}

bool fvm_walk_set_ad(struct fvm_ram *ram, const struct fvm_paging *pg, struct fvm_walk *walk, bool dirty)
{
    bool legacy = !pg->long_mode && !pg->pae;
    unsigned first = !pg->long_mode && pg->pae ? 1 : 0; /* a PDPTE has no A bit */

    for (unsigned i = first; i < walk->pte_count; i++) {
        bool leaf = i + 1u == walk->pte_count;
        uint64_t bits = PTE_A | (dirty && leaf ? PTE_D : 0);

        if ((walk->pte[i] & bits) == bits)
            continue;
        if (!set_bits(ram, walk->pte_gpa[i], legacy ? 4 : 8, &walk->pte[i], bits))
            return false;
    }
    walk->accessed = true;
    walk->dirty = walk->dirty || dirty;
    return true;
}

bool fvm_walk_sibling(const struct fvm_ram *ram, const struct fvm_paging *pg, const struct fvm_walk *walk, int delta,
                      struct fvm_walk *ret)
{
    bool legacy = !pg->long_mode && !pg->pae;
    unsigned bytes = legacy ? 4 : 8;
    uint64_t addr = 0xfffff000u, rsvd = 0, nx_bit = 0, e;

    if (!legacy) {
        rsvd = reserved64(pg, &addr);
        nx_bit = pg->nx ? PTE_NX : 0;
    }
    e = load_entry(ram, walk->pte_gpa[walk->pte_count - 1] + (uint64_t)((int64_t)delta * (int)bytes), bytes);
    if (!(e & PTE_P) || (e & rsvd))
        return false;
    ret->level = 0;
    ret->pte_count = 0;
    ret->rights = walk->upper_rights;
    ret->accessed = true;
    note_leaf(ret, e, nx_bit);
    ret->gpa = e & addr;
    return true;
}
