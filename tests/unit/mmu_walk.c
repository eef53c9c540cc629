/* mmu/walk: every paging mode, fault codes, reserved bits, SMEP/SMAP/WP, A and D. Source: Intel SDM vol. 3A, ch. 4. */
#include "vmm/mmu/walk.h"

#include <CUnit/Basic.h>
#include <string.h>

enum { P = 1, W = 2, U = 4, A = 0x20, D = 0x40, PS = 0x80, G = 0x100 };
#define NX (1ull << 63)
#define ROOT 0x1000u
#define KVA 0xffff888000000000ull

struct fixture {
    struct fvm_ram *ram;
    struct fvm_paging pg;
    struct fvm_walk w;
    struct fvm_fault fault;
};

static void put(struct fixture *f, fvm_gpa gpa, uint64_t e)
{
    memcpy(fvm_ram_hva(f->ram, gpa), &e, 8);
}
static void put32(struct fixture *f, fvm_gpa gpa, uint32_t e)
{
    memcpy(fvm_ram_hva(f->ram, gpa), &e, 4);
}
static uint64_t get(const struct fixture *f, fvm_gpa gpa)
{
    uint64_t e;

    memcpy(&e, fvm_ram_hva(f->ram, gpa), 8);
    return e;
}
static int walk(struct fixture *f, fvm_gva va, unsigned want)
{
    return fvm_walk(f->ram, &f->pg, va, want, &f->w, &f->fault);
}
/* the page fault's code, or -1 if the access is allowed, -2 for another vector */
static int code(struct fixture *f, fvm_gva va, unsigned want)
{
    f->fault = (struct fvm_fault){0};
    if (!walk(f, va, want))
        return -1;
    if (f->fault.vector != 14 || !f->fault.has_code || f->fault.cr2 != va)
        return -2;
    return (int)f->fault.code;
}

/* va 0x400000: 4 KiB page 0x9000; 0x600000: 2 MiB at 0x400000; 0x40000000: 1 GiB at 0 */
static void setup_long(struct fixture *f)
{
    *f = (struct fixture){0};
    CU_ASSERT_EQUAL_FATAL(fvm_ram_create(16ull << 20, &f->ram, NULL), 0);
    f->pg = (struct fvm_paging){.cr3 = ROOT, .on = true, .long_mode = true, .pae = true, .pge = true, .nx = true,
                                .wp = true, .maxphyaddr = 40};
    put(f, ROOT, 0x2000 | P | W | U);
    put(f, 0x2000, 0x3000 | P | W | U);
    put(f, 0x2008, P | W | U | PS);
    put(f, 0x3010, 0x4000 | P | W | U);
    put(f, 0x3018, 0x400000 | P | W | U | PS);
    put(f, 0x4000, 0x9000 | P | W | U);
}
static void teardown(struct fixture *f)
{
    fvm_ram_destroy(&f->ram);
}

static void test_off(void)
{
    struct fixture f;

    setup_long(&f);
    f.pg = (struct fvm_paging){.smep = true, .smap = true, .wp = true};
    CU_ASSERT_EQUAL(walk(&f, 0x123456789abcull, FVM_W | FVM_X | FVM_USER), 0);
    CU_ASSERT_EQUAL(f.w.gpa, 0x56789abc);
    CU_ASSERT_EQUAL(f.w.pte_count, 0);
    CU_ASSERT_TRUE(f.w.dirty && f.w.accessed);
    CU_ASSERT_TRUE(fvm_walk_set_ad(f.ram, &f.pg, &f.w, true));
    teardown(&f);
}

static void test_long_sizes(void)
{
    struct fixture f;

    setup_long(&f);
    CU_ASSERT_EQUAL_FATAL(walk(&f, 0x400123, FVM_R), 0);
    CU_ASSERT_EQUAL(f.w.gpa, 0x9123);
    CU_ASSERT_EQUAL(f.w.level, 0);
    CU_ASSERT_EQUAL(f.w.pte_count, 4);
    CU_ASSERT_EQUAL(f.w.pte_gpa[0], ROOT);
    CU_ASSERT_EQUAL(f.w.pte_gpa[3], 0x4000);
    CU_ASSERT_EQUAL(f.w.rights, FVM_R | FVM_W | FVM_X | FVM_USER);
    CU_ASSERT_FALSE(f.w.dirty || f.w.accessed || f.w.global);
    CU_ASSERT_EQUAL_FATAL(walk(&f, 0x6abcde, FVM_R), 0);
    CU_ASSERT_EQUAL(f.w.gpa, 0x4abcde);
    CU_ASSERT_EQUAL(f.w.level, 1);
    CU_ASSERT_EQUAL_FATAL(walk(&f, 0x40abcdef, FVM_R), 0);
    CU_ASSERT_EQUAL(f.w.gpa, 0xabcdef);
    CU_ASSERT_EQUAL(f.w.level, 2);
    CU_ASSERT_EQUAL(f.w.pte_count, 2);
    put(&f, ROOT + 8 * ((KVA >> 39) & 511), 0x2000 | P | W);
    put(&f, 0x2000, 0x3000 | P | W | U);
    put(&f, 0x4000, 0x9000 | P | W | U | G | D);
    CU_ASSERT_EQUAL_FATAL(walk(&f, KVA + 0x400001, FVM_W), 0);
    CU_ASSERT_EQUAL(f.w.gpa, 0x9001);
    CU_ASSERT_TRUE(f.w.global && f.w.dirty);
    CU_ASSERT_EQUAL(f.w.rights, FVM_R | FVM_W | FVM_X);
    f.pg.cr3 |= 0xfff | 1ull << 63; /* PCID and the no-flush bit are not address */
    CU_ASSERT_EQUAL(walk(&f, 0x400123, FVM_R), 0);
    teardown(&f);
}

static void test_long_faults(void)
{
    struct fixture f;

    setup_long(&f);
    CU_ASSERT_EQUAL(walk(&f, 0x800000000000ull, FVM_R), FVM_FAULT);
    CU_ASSERT_EQUAL(f.fault.vector, 13);
    CU_ASSERT_EQUAL(f.fault.code, 0);
    CU_ASSERT_EQUAL(walk(&f, 0xffff7fffffffffffull, FVM_R), FVM_FAULT);
    CU_ASSERT_EQUAL(code(&f, 0x401000, FVM_R), 0);
    CU_ASSERT_EQUAL(code(&f, 0x401000, FVM_W), 2);
    CU_ASSERT_EQUAL(code(&f, 0x401000, FVM_R | FVM_USER), 4);
    CU_ASSERT_EQUAL(code(&f, 0x401000, FVM_R | FVM_W | FVM_USER), 6);
    CU_ASSERT_EQUAL(code(&f, 0x401000, FVM_X | FVM_USER), 0x14);
    f.pg.nx = false;
    CU_ASSERT_EQUAL(code(&f, 0x401000, FVM_X | FVM_USER), 4);
    f.pg.smep = true;
    CU_ASSERT_EQUAL(code(&f, 0x401000, FVM_X), 0x10);
    f.pg.smep = false;
    f.pg.nx = true;
    for (unsigned level = 0; level < 4; level++) { /* each level alone takes a right away, or faults when absent */
        static const fvm_gpa at[4] = {ROOT, 0x2000, 0x3010, 0x4000};
        uint64_t e = get(&f, at[level]);

        put(&f, at[level], e & ~(uint64_t)U);
        CU_ASSERT_EQUAL(code(&f, 0x400000, FVM_R | FVM_USER), 5);
        CU_ASSERT_EQUAL(code(&f, 0x400000, FVM_W), -1);
        put(&f, at[level], e & ~(uint64_t)W);
        CU_ASSERT_EQUAL(code(&f, 0x400000, FVM_W | FVM_USER), 7);
        CU_ASSERT_EQUAL(code(&f, 0x400000, FVM_W), 3);
        CU_ASSERT_EQUAL(code(&f, 0x400000, FVM_R | FVM_USER), -1);
        f.pg.wp = false;
        CU_ASSERT_EQUAL(code(&f, 0x400000, FVM_W), -1);
        CU_ASSERT_EQUAL(code(&f, 0x400000, FVM_W | FVM_USER), 7);
        f.pg.wp = true;
        put(&f, at[level], e | NX);
        CU_ASSERT_EQUAL(code(&f, 0x400000, FVM_X), 0x11);
        CU_ASSERT_EQUAL(code(&f, 0x400000, FVM_R | FVM_USER), -1);
        f.pg.nx = false; /* now the bit is reserved */
        CU_ASSERT_EQUAL(code(&f, 0x400000, FVM_R), 9);
        f.pg.nx = true;
        put(&f, at[level], e | 1ull << 40);
        CU_ASSERT_EQUAL(code(&f, 0x400000, FVM_W | FVM_USER), 0xf);
        put(&f, at[level], e | 1ull << 52); /* ignored in long mode */
        CU_ASSERT_EQUAL(code(&f, 0x400000, FVM_R), -1);
        put(&f, at[level], (e & ~(uint64_t)P) | 1ull << 40);
        CU_ASSERT_EQUAL(code(&f, 0x400000, FVM_R), 0);
        put(&f, at[level], 0xfffff000ull | P); /* table or page outside of RAM */
        CU_ASSERT_EQUAL(code(&f, 0x400000, FVM_R), level == 3 ? -1 : 0);
        put(&f, at[level], e);
    }
    put(&f, 0x3018, 0x402000 | P | PS);
    CU_ASSERT_EQUAL(code(&f, 0x600000, FVM_R), 9);
    put(&f, 0x3018, 0x401000 | P | PS); /* bit 12 is PAT */
    CU_ASSERT_EQUAL_FATAL(code(&f, 0x600000, FVM_R), -1);
    CU_ASSERT_EQUAL(f.w.gpa, 0x400000);
    put(&f, 0x2008, 0x200000 | P | PS);
    CU_ASSERT_EQUAL(code(&f, 0x40000000, FVM_R), 9);
    put(&f, ROOT, 0x2000 | P | PS);
    CU_ASSERT_EQUAL(code(&f, 0x400000, FVM_R), 9);
    teardown(&f);
}

static void test_smep_smap(void)
{
    struct fixture f;

    setup_long(&f);
    CU_ASSERT_EQUAL(code(&f, 0x400000, FVM_X), -1);
    f.pg.smep = true;
    CU_ASSERT_EQUAL(code(&f, 0x400000, FVM_X), 0x11);
    CU_ASSERT_EQUAL(code(&f, 0x400000, FVM_X | FVM_USER), -1);
    CU_ASSERT_EQUAL(code(&f, 0x400000, FVM_R), -1);
    f.pg.smep = false;
    f.pg.smap = true;
    CU_ASSERT_EQUAL(code(&f, 0x400000, FVM_R), 1);
    CU_ASSERT_EQUAL(code(&f, 0x400000, FVM_W), 3);
    CU_ASSERT_EQUAL(code(&f, 0x400000, FVM_X), -1);
    CU_ASSERT_EQUAL(code(&f, 0x400000, FVM_R | FVM_USER), -1);
    f.pg.ac = true;
    CU_ASSERT_EQUAL(code(&f, 0x400000, FVM_R), -1);
    f.pg.ac = false;
    put(&f, 0x4000, 0x9000 | P | W);
    CU_ASSERT_EQUAL(code(&f, 0x400000, FVM_W), -1);
    teardown(&f);
}

static void test_ad(void)
{
    struct fixture f;

    setup_long(&f);
    CU_ASSERT_EQUAL_FATAL(walk(&f, 0x400000, FVM_R), 0);
    CU_ASSERT_TRUE(fvm_walk_set_ad(f.ram, &f.pg, &f.w, false));
    CU_ASSERT_EQUAL(get(&f, ROOT), 0x2000 | P | W | U | A);
    CU_ASSERT_EQUAL(get(&f, 0x3010), 0x4000 | P | W | U | A);
    CU_ASSERT_EQUAL(get(&f, 0x4000), 0x9000 | P | W | U | A);
    CU_ASSERT_TRUE(f.w.accessed);
    CU_ASSERT_FALSE(f.w.dirty);
    CU_ASSERT_EQUAL(f.ram->version[1], 1);
    CU_ASSERT_EQUAL(f.ram->version[4], 1);
    CU_ASSERT_EQUAL(f.ram->version[9], 0);
    fvm_ram_epoch_next(f.ram);
    CU_ASSERT_EQUAL_FATAL(walk(&f, 0x400000, FVM_W), 0);
    CU_ASSERT_TRUE(f.w.accessed);
    CU_ASSERT_TRUE(fvm_walk_set_ad(f.ram, &f.pg, &f.w, true));
    CU_ASSERT_EQUAL(get(&f, 0x4000), 0x9000 | P | W | U | A | D);
    CU_ASSERT_EQUAL(get(&f, 0x3010), 0x4000 | P | W | U | A);
    CU_ASSERT_EQUAL(f.ram->version[1], 1); /* nothing changed there */
    CU_ASSERT_EQUAL(f.ram->version[4], 2);
    /* another processor unmaps the page between walk and update: nothing may be set in what is no entry now */
    put(&f, 0x4000, 0x9000 | P | W | U);
    CU_ASSERT_EQUAL_FATAL(walk(&f, 0x400000, FVM_W), 0);
    put(&f, 0x4000, 0xabc000);
    CU_ASSERT_FALSE(fvm_walk_set_ad(f.ram, &f.pg, &f.w, true));
    CU_ASSERT_EQUAL(get(&f, 0x4000), 0xabc000);
    /* one that only set A meanwhile does not matter */
    put(&f, 0x4000, 0x9000 | P | W | U);
    CU_ASSERT_EQUAL_FATAL(walk(&f, 0x400000, FVM_W), 0);
    put(&f, 0x4000, 0x9000 | P | W | U | A);
    CU_ASSERT_TRUE(fvm_walk_set_ad(f.ram, &f.pg, &f.w, true));
    CU_ASSERT_EQUAL(get(&f, 0x4000), 0x9000 | P | W | U | A | D);
    teardown(&f);
}

static void test_sibling(void)
{
    struct fixture f;
    struct fvm_walk n;

    setup_long(&f);
    put(&f, 0x3010, 0x4000 | P | U);
    put(&f, 0x4008, 0x8000 | P | W | U | A | D | G | NX);
    put(&f, 0x4010, 0x7000 | P | 1ull << 45);
    CU_ASSERT_EQUAL_FATAL(walk(&f, 0x400000, FVM_R), 0);
    CU_ASSERT_TRUE_FATAL(fvm_walk_sibling(f.ram, &f.pg, &f.w, 1, &n));
    CU_ASSERT_EQUAL(n.gpa, 0x8000);
    CU_ASSERT_EQUAL(n.rights, FVM_R | FVM_USER); /* W is gone one level up */
    CU_ASSERT_TRUE(n.accessed && n.dirty && n.global);
    CU_ASSERT_FALSE(fvm_walk_sibling(f.ram, &f.pg, &f.w, 2, &n)); /* reserved bit */
    CU_ASSERT_FALSE(fvm_walk_sibling(f.ram, &f.pg, &f.w, 3, &n)); /* not present */
    CU_ASSERT_EQUAL_FATAL(walk(&f, 0x401000, FVM_R), 0);
    CU_ASSERT_TRUE_FATAL(fvm_walk_sibling(f.ram, &f.pg, &f.w, -1, &n));
    CU_ASSERT_EQUAL(n.gpa, 0x9000);
    CU_ASSERT_FALSE(n.accessed);
    teardown(&f);
}

static void test_pae(void)
{
    struct fixture f;

    setup_long(&f);
    f.pg.long_mode = false;
    f.pg.cr3 = 0x5020; /* 32-byte aligned */
    put(&f, 0x5020 + 3 * 8, 0x3000 | P);
    CU_ASSERT_EQUAL_FATAL(walk(&f, 0xc0400123, FVM_W | FVM_USER), 0);
    CU_ASSERT_EQUAL(f.w.gpa, 0x9123);
    CU_ASSERT_EQUAL(f.w.pte_count, 3);
    CU_ASSERT_EQUAL(f.w.pte_gpa[0], 0x5038);
    CU_ASSERT_TRUE(fvm_walk_set_ad(f.ram, &f.pg, &f.w, true));
    CU_ASSERT_EQUAL(get(&f, 0x5038), 0x3000 | P); /* PDPTEs have no A bit */
    CU_ASSERT_EQUAL(get(&f, 0x3010), 0x4000 | P | W | U | A);
    CU_ASSERT_EQUAL(get(&f, 0x4000), 0x9000 | P | W | U | A | D);
    CU_ASSERT_EQUAL_FATAL(walk(&f, 0xffffffffc06abcdeull, FVM_R), 0); /* only 32 bits count */
    CU_ASSERT_EQUAL(f.w.gpa, 0x4abcde);
    CU_ASSERT_EQUAL(f.w.level, 1);
    CU_ASSERT_EQUAL(code(&f, 0x400000, FVM_R), 0);
    put(&f, 0x4000, 0x9000 | P | W | U | 1ull << 52); /* reserved here */
    CU_ASSERT_EQUAL(code(&f, 0xc0400000, FVM_R), 9);
    put(&f, 0x4000, 0x9000 | P | W | U | NX);
    CU_ASSERT_EQUAL(code(&f, 0xc0400000, FVM_X), 0x11);
    put(&f, 0x5038, 0x3000 | P | W); /* W is reserved in a PDPTE */
    CU_ASSERT_EQUAL(code(&f, 0xc0400000, FVM_R), 9);
    teardown(&f);
}

static void test_32(void)
{
    struct fixture f;

    setup_long(&f);
    f.pg = (struct fvm_paging){.cr3 = 0x6000, .on = true, .pse = true, .pge = true, .wp = true, .nx = true,
                               .maxphyaddr = 36};
    put32(&f, 0x6000 + 4 * 0x300, 0x7000 | P | W | U);
    put32(&f, 0x7000 + 4 * 5, 0x9000 | P | W | U | G);
    put32(&f, 0x6000 + 4, 0x400000 | P | W | PS | 3u << 13);
    CU_ASSERT_EQUAL_FATAL(walk(&f, 0xc0005123, FVM_W | FVM_USER), 0);
    CU_ASSERT_EQUAL(f.w.gpa, 0x9123);
    CU_ASSERT_TRUE(f.w.global);
    CU_ASSERT_TRUE(fvm_walk_set_ad(f.ram, &f.pg, &f.w, true));
    CU_ASSERT_EQUAL((uint32_t)get(&f, 0x7014), 0x9000 | P | W | U | G | A | D);
    CU_ASSERT_EQUAL((uint32_t)get(&f, 0x7018), 0);
    CU_ASSERT_EQUAL((uint32_t)get(&f, 0x6c00), 0x7000 | P | W | U | A);
    CU_ASSERT_EQUAL_FATAL(walk(&f, 0x7abcde, FVM_X), 0);
    CU_ASSERT_EQUAL(f.w.gpa, 0x3007abcdeull); /* PSE-36 */
    CU_ASSERT_EQUAL(f.w.level, 1);
    CU_ASSERT_EQUAL(code(&f, 0x400000, FVM_R | FVM_USER), 5);
    CU_ASSERT_EQUAL(code(&f, 0x800000, FVM_X | FVM_USER), 4); /* no I/D bit: no NX without PAE */
    put32(&f, 0x6004, 0x400000 | P | W | PS | 1u << 17); /* above 36 bits */
    CU_ASSERT_EQUAL(code(&f, 0x400000, FVM_R), 9);
    put32(&f, 0x6004, 0x400000 | P | W | PS | 1u << 21);
    CU_ASSERT_EQUAL(code(&f, 0x400000, FVM_R), 9);
    f.pg.pse = false; /* then bit 7 means nothing and 0x400000 is a table */
    put32(&f, 0x6004, 0x7000 | P | W | U | PS);
    CU_ASSERT_EQUAL_FATAL(walk(&f, 0x405000, FVM_R), 0);
    CU_ASSERT_EQUAL(f.w.gpa, 0x9000);
    teardown(&f);
}

int main(void)
{
    CU_initialize_registry();
    CU_pSuite s = CU_add_suite("mmu/walk", NULL, NULL);
    CU_add_test(s, "paging off", test_off);
    CU_add_test(s, "long mode: 4 KiB, 2 MiB, 1 GiB", test_long_sizes);
    CU_add_test(s, "long mode: faults at every level", test_long_faults);
    CU_add_test(s, "SMEP and SMAP", test_smep_smap);
    CU_add_test(s, "A and D", test_ad);
    CU_add_test(s, "siblings", test_sibling);
    CU_add_test(s, "PAE", test_pae);
    CU_add_test(s, "32-bit, PSE-36", test_32);
    CU_basic_set_mode(CU_BRM_VERBOSE);
    CU_basic_run_tests();
    unsigned bad = CU_get_number_of_failures();
    CU_cleanup_registry();
    return bad != 0;
}
