/* mem/ram: layout, bounds, versions, the code hook, concurrent marking against epochs. */
#include "vmm/mem/ram.h"

#include <CUnit/Basic.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>

#define MIB (1ull << 20)
#define GIB (1ull << 30)

static struct fvm_ram *make(uint64_t bytes)
{
    struct fvm_ram *ram = NULL;
    struct fvm_err err = {0};

    CU_ASSERT_EQUAL_FATAL(fvm_ram_create(bytes, &ram, &err), 0);
    return ram;
}

static void test_layout(void)
{
    struct fvm_ram *ram = make(64 * MIB);

    CU_ASSERT_EQUAL(ram->span_bytes, 64 * MIB);
    CU_ASSERT_EQUAL(ram->high_bytes, 0);
    CU_ASSERT_TRUE(fvm_ram_contains(ram, 64 * MIB - 1, 1));
    CU_ASSERT_FALSE(fvm_ram_contains(ram, 64 * MIB - 1, 2));
    CU_ASSERT_FALSE(fvm_ram_contains(ram, 64 * MIB, 1));
    CU_ASSERT_FALSE(fvm_ram_contains(ram, 1, UINT64_MAX));
    fvm_ram_destroy(&ram);
    CU_ASSERT_PTR_NULL(ram);

    ram = make(5 * GIB);
    CU_ASSERT_EQUAL(ram->low_bytes, 3 * GIB);
    CU_ASSERT_EQUAL(ram->high_bytes, 2 * GIB);
    CU_ASSERT_EQUAL(ram->page_count, 6 * GIB >> 12);
    CU_ASSERT_FALSE(fvm_ram_contains(ram, 3 * GIB, 1));
    CU_ASSERT_FALSE(fvm_ram_contains(ram, 3 * GIB - 4, 8));
    CU_ASSERT_FALSE(fvm_ram_contains(ram, 4 * GIB - 1, 1));
    CU_ASSERT_TRUE(fvm_ram_contains(ram, 4 * GIB, 2 * GIB));
    CU_ASSERT_FALSE(fvm_ram_contains(ram, 4 * GIB + 1, 2 * GIB));
    CU_ASSERT_FALSE(fvm_ram_has_page(ram, (4 * GIB >> 12) - 1));
    fvm_ram_hva(ram, 6 * GIB - 1)[0] = 7;
    CU_ASSERT_EQUAL(fvm_ram_hva(ram, 6 * GIB - 1)[0], 7);
    fvm_ram_destroy(&ram);
}

static void test_bad_sizes(void)
{
    struct fvm_ram *ram = NULL;
    struct fvm_err err = {0};

    CU_ASSERT_EQUAL(fvm_ram_create(0, &ram, &err), FVM_EINVAL);
    CU_ASSERT_EQUAL(fvm_ram_create(4097, &ram, &err), FVM_EINVAL);
    CU_ASSERT_EQUAL(fvm_ram_create(1ull << 60, &ram, &err), FVM_EINVAL);
    CU_ASSERT_NOT_EQUAL(err.text[0], 0);
    CU_ASSERT_PTR_NULL(ram);
}

static void test_copies(void)
{
    struct fvm_ram *ram = make(5 * GIB);
    char buf[16] = "0123456789abcde", back[16] = {0};

    CU_ASSERT_EQUAL(fvm_ram_write(ram, 4096 - 8, buf, 16), 0);
    CU_ASSERT_EQUAL(fvm_ram_read(ram, 4096 - 8, back, 16), 0);
    CU_ASSERT_EQUAL(memcmp(buf, back, 16), 0);
    CU_ASSERT_EQUAL(ram->version[0], 1);
    CU_ASSERT_EQUAL(ram->version[1], 1);
    CU_ASSERT_EQUAL(ram->version[2], 0);
    memset(back, 'x', sizeof(back));
    CU_ASSERT_EQUAL(fvm_ram_write(ram, 3 * GIB - 8, buf, 16), FVM_EINVAL);
    CU_ASSERT_EQUAL(ram->version[(3 * GIB >> 12) - 1], 0);
    CU_ASSERT_EQUAL(fvm_ram_read(ram, 3 * GIB - 8, back, 16), FVM_EINVAL);
    CU_ASSERT_EQUAL(back[0], 'x');
    CU_ASSERT_EQUAL(fvm_ram_read(ram, 3 * GIB, back, 0), 0);
    CU_ASSERT_PTR_NULL(fvm_ram_map(ram, 4 * GIB - 1, 2));
    CU_ASSERT_PTR_EQUAL(fvm_ram_map(ram, 4 * GIB, 2), ram->base + 4 * GIB);
    fvm_ram_destroy(&ram);
}

static void test_epochs(void)
{
    struct fvm_ram *ram = make(MIB);

    fvm_ram_mark_written(ram, 0, 1);
    CU_ASSERT_EQUAL(fvm_ram_epoch_next(ram), 1);
    CU_ASSERT_EQUAL(ram->epoch, 2);
    fvm_ram_mark_written(ram, 4096 + 4095, 2);
    fvm_ram_mark_written(ram, 5 * 4096, 0);
    CU_ASSERT_EQUAL(ram->version[0], 1);
    CU_ASSERT_EQUAL(ram->version[1], 2);
    CU_ASSERT_EQUAL(ram->version[2], 2);
    CU_ASSERT_EQUAL(ram->version[3], 0);
    CU_ASSERT_EQUAL(ram->version[5], 0);
    fvm_ram_destroy(&ram);
}

struct hook_seen {
    unsigned calls;
    fvm_gpa gpa;
    uint64_t len;
    uint8_t byte; /* what the first byte was when the hook ran */
    struct fvm_ram *ram;
};

static void on_code(void *ctx, fvm_gpa gpa, uint64_t len)
{
    struct hook_seen *seen = ctx;

    seen->calls++;
    seen->gpa = gpa;
    seen->len = len;
    seen->byte = *fvm_ram_hva(seen->ram, gpa);
}

static void test_code_hook(void)
{
    struct fvm_ram *ram = make(MIB);
    struct hook_seen seen = {.ram = ram};
    uint8_t bytes[4] = {0x90, 0x90, 0x90, 0x90};

    ram->code_hook = on_code;
    ram->code_hook_ctx = &seen;
    CU_ASSERT_EQUAL(fvm_ram_write(ram, 4096, bytes, 4), 0);
    CU_ASSERT_EQUAL(seen.calls, 0);
    ram->flags[1] = FVM_PAGE_CODE;
    CU_ASSERT_EQUAL(fvm_ram_write(ram, 4094, bytes, 4), 0);
    CU_ASSERT_EQUAL(seen.calls, 1);
    CU_ASSERT_EQUAL(seen.gpa, 4094);
    CU_ASSERT_EQUAL(seen.len, 4);
    CU_ASSERT_EQUAL(seen.byte, 0x90);
    CU_ASSERT_EQUAL(fvm_ram_write(ram, 8192, bytes, 4), 0);
    fvm_ram_mark_version(ram, 1);
    CU_ASSERT_EQUAL(seen.calls, 1);
    fvm_ram_destroy(&ram);
}

static void test_resident(void)
{
    struct fvm_ram *ram = make(5 * GIB);
    uint64_t before = fvm_ram_resident_bytes(ram), after;

    CU_ASSERT_EQUAL(before, 0);
    fvm_ram_hva(ram, 0)[0] = 1;
    fvm_ram_hva(ram, 5 * GIB)[0] = 1;
    after = fvm_ram_resident_bytes(ram);
    CU_ASSERT_TRUE(after >= 2 * 4096 && after <= 8 * MIB);
    fvm_ram_destroy(&ram);
}

struct race {
    struct fvm_ram *ram;
    atomic_bool done;
};

#define RACE_PAGES 64u

static void *writer(void *arg)
{
    struct race *race = arg;
    uint64_t *counter;

    for (uint64_t n = 1; n <= 200000; n++) {
        fvm_gpa gpa = (n % RACE_PAGES) * 4096;

        counter = (uint64_t *)(void *)fvm_ram_hva(race->ram, gpa);
        __atomic_store_n(counter, n, __ATOMIC_RELAXED);
        fvm_ram_mark_written(race->ram, gpa, 8);
    }
    atomic_store(&race->done, true);
    return NULL;
}

/* A scanner that copies what is newer than it has must end with an exact copy. */
static void test_race(void)
{
    struct race race = {.ram = make(MIB)};
    uint64_t copy[RACE_PAGES] = {0};
    uint32_t have = 0;
    pthread_t thread;
    bool last;

    CU_ASSERT_EQUAL_FATAL(pthread_create(&thread, NULL, writer, &race), 0);
    do {
        uint32_t closed;

        last = atomic_load(&race.done);
        closed = fvm_ram_epoch_next(race.ram);
        for (unsigned i = 0; i < RACE_PAGES; i++)
            if (__atomic_load_n(&race.ram->version[i], __ATOMIC_SEQ_CST) > have)
                copy[i] = __atomic_load_n((uint64_t *)(void *)fvm_ram_hva(race.ram, i * 4096ull), __ATOMIC_RELAXED);
        have = closed;
    } while (!last);
    pthread_join(thread, NULL);
    for (unsigned i = 0; i < RACE_PAGES; i++)
        CU_ASSERT_EQUAL(copy[i], *(uint64_t *)(void *)fvm_ram_hva(race.ram, i * 4096ull));
    fvm_ram_destroy(&race.ram);
}

int main(void)
{
    CU_initialize_registry();
    CU_pSuite s = CU_add_suite("mem/ram", NULL, NULL);
    CU_add_test(s, "layout and the hole", test_layout);
    CU_add_test(s, "bad sizes are refused", test_bad_sizes);
    CU_add_test(s, "checked copies", test_copies);
    CU_add_test(s, "versions follow epochs", test_epochs);
    CU_add_test(s, "code hook after the bytes", test_code_hook);
    CU_add_test(s, "resident bytes", test_resident);
    CU_add_test(s, "writer against scanner: nothing lost", test_race);
    CU_basic_set_mode(CU_BRM_VERBOSE);
    CU_basic_run_tests();
    unsigned bad = CU_get_number_of_failures();
    CU_cleanup_registry();
    return bad != 0;
}
