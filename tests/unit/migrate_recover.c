/*
 * migrate_recover.c - the table of recovery, every row of it: what is advised, who has to do it, and that the swap that
 * is advised is one the hand-over's guards allow.
 */
#include <CUnit/Basic.h>
#include <CUnit/CUnit.h>
#include <string.h>

#include "migrate/handover.h"

static const struct fvm_ho_record stable = {.owner = "a", .epoch = 3, .phase = FVM_HO_STABLE, .from = "z", .to = "a"};
static const struct fvm_ho_record moving = {.owner = "a", .epoch = 3, .phase = FVM_HO_MIG, .from = "a", .to = "b"};
static const struct fvm_ho_record taken = {.owner = "b", .epoch = 4, .phase = FVM_HO_TAKEN, .from = "a", .to = "b"};

enum { NOTHING = FVM_HO_HOLDS_NOTHING, PAUSED, IMAGE, RUNNING, UNKNOWN, ANY = -1 };

static const struct row {
    const struct fvm_ho_record *record;
    int owner, other, insist;
    enum fvm_ho_cure cure;
    const char *by;
} rows[] = {
    {&stable, NOTHING, ANY, ANY, FVM_HO_FINE, "a"},
    {&stable, PAUSED, ANY, ANY, FVM_HO_FINE, "a"},
    {&stable, IMAGE, ANY, ANY, FVM_HO_FINE, "a"},
    {&stable, RUNNING, ANY, ANY, FVM_HO_FINE, "a"},
    {&stable, UNKNOWN, ANY, ANY, FVM_HO_STUCK, "a"},
    {&moving, NOTHING, ANY, ANY, FVM_HO_ABORTS, "a"},
    {&moving, PAUSED, ANY, ANY, FVM_HO_WAITS, "a"},
    {&moving, RUNNING, ANY, ANY, FVM_HO_WAITS, "a"},
    {&moving, IMAGE, ANY, ANY, FVM_HO_WAITS, "a"},
    {&moving, UNKNOWN, ANY, ANY, FVM_HO_STUCK, "a"},
    {&taken, NOTHING, NOTHING, ANY, FVM_HO_CLAIMS, "b"},
    {&taken, NOTHING, PAUSED, false, FVM_HO_HANDS_BACK, "a"},
    {&taken, NOTHING, PAUSED, true, FVM_HO_HANDS_BACK, "a"},
    {&taken, NOTHING, UNKNOWN, ANY, FVM_HO_STUCK, "a"},
    {&taken, NOTHING, RUNNING, ANY, FVM_HO_STUCK, "a"},
    {&taken, IMAGE, PAUSED, false, FVM_HO_WAITS, "b"},
    {&taken, IMAGE, PAUSED, true, FVM_HO_HANDS_BACK, "a"},
    {&taken, IMAGE, NOTHING, ANY, FVM_HO_WAITS, "b"},
    {&taken, IMAGE, UNKNOWN, ANY, FVM_HO_WAITS, "b"},
    {&taken, RUNNING, UNKNOWN, ANY, FVM_HO_WAITS, "b"},
    {&taken, UNKNOWN, PAUSED, false, FVM_HO_WAITS, "b"},
    {&taken, UNKNOWN, PAUSED, true, FVM_HO_HANDS_BACK, "a"},
    {&taken, UNKNOWN, NOTHING, ANY, FVM_HO_STUCK, "b"},
    {&taken, UNKNOWN, UNKNOWN, ANY, FVM_HO_STUCK, "b"},
};

static bool fits(int want, int have) { return want == ANY || want == have; }

static void check_swap(const struct fvm_ho_record *r, int owner, int other, const struct fvm_ho_advice *a)
{
    struct fvm_ho_record next;
    int rc = 0;
    if (a->cure == FVM_HO_ABORTS)
        rc = fvm_ho_abort(r, a->by, &next);
    else if (a->cure == FVM_HO_HANDS_BACK)
        rc = fvm_ho_handback(r, (enum fvm_ho_holding)other, &next);
    else if (a->cure == FVM_HO_CLAIMS)
        rc = fvm_ho_claim(r, a->by, (enum fvm_ho_holding)other, (enum fvm_ho_holding)owner, &next);
    else
        return;
    CU_ASSERT_EQUAL_FATAL(rc, 0);
    CU_ASSERT_EQUAL(next.phase, FVM_HO_STABLE);
    CU_ASSERT_EQUAL(next.epoch, r->epoch + 1);
    CU_ASSERT_STRING_EQUAL(next.owner, a->by);
}

static void test_table(void)
{
    bool used[FVM_ARRAY_SIZE(rows)] = {0};
    const struct fvm_ho_record *const records[] = {&stable, &moving, &taken};
    for (int i = 0; i < 3 * 5 * 5 * 2; i++) {
        const struct fvm_ho_record *r = records[i / 50];
        int owner = i / 10 % 5, other = i / 2 % 5, insist = i % 2;
        struct fvm_ho_advice a = {0};
        fvm_ho_recover(r, (enum fvm_ho_holding)owner, (enum fvm_ho_holding)other, insist, &a);
        CU_ASSERT_TRUE(a.by[0] && strlen(a.why) > 10 && strlen(a.why) < sizeof(a.why) - 1);
        CU_ASSERT_PTR_NOT_NULL(strstr(a.why, a.cure == FVM_HO_HANDS_BACK ? "b" : a.by));
        check_swap(r, owner, other, &a);
        for (size_t k = 0; k < FVM_ARRAY_SIZE(rows); k++)
            if (rows[k].record == r && fits(rows[k].owner, owner) && fits(rows[k].other, other) &&
                fits(rows[k].insist, insist)) {
                used[k] = true;
                CU_ASSERT_EQUAL(a.cure, rows[k].cure);
                CU_ASSERT_STRING_EQUAL(a.by, rows[k].by);
            }
    }
    for (size_t k = 0; k < FVM_ARRAY_SIZE(rows); k++)
        CU_ASSERT_TRUE(used[k]);
}

static void test_names(void)
{
    for (int i = NOTHING; i <= UNKNOWN; i++) {
        enum fvm_ho_holding back = FVM_HO_HOLDS_NOTHING;
        CU_ASSERT_TRUE(fvm_ho_holding_parse(fvm_ho_holding_text((enum fvm_ho_holding)i), &back));
        CU_ASSERT_EQUAL((int)back, i);
    }
    enum fvm_ho_holding none;
    CU_ASSERT_FALSE(fvm_ho_holding_parse("", &none));
    CU_ASSERT_STRING_EQUAL(fvm_ho_holding_text((enum fvm_ho_holding)9), "?");
}

int main(void)
{
    CU_initialize_registry();
    CU_pSuite suite = CU_add_suite("migrate recover", NULL, NULL);
    CU_add_test(suite, "the table", test_table);
    CU_add_test(suite, "names", test_names);
    CU_basic_set_mode(CU_BRM_VERBOSE);
    CU_basic_run_tests();
    unsigned failed = CU_get_number_of_failures();
    CU_cleanup_registry();
    return failed != 0;
}
