/* base/err: codes, texts, and messages that can't break a line. */
#include "base/err.h"

#include <CUnit/Basic.h>
#include <errno.h>
#include <string.h>

static void test_tables(void)
{
    CU_ASSERT_EQUAL(FVM_ENOMEM, -1);
    CU_ASSERT_STRING_EQUAL(fvm_err_name(FVM_ENOENT), "NOENT");
    CU_ASSERT_STRING_EQUAL(fvm_err_text(FVM_ENOENT), "not found");
    CU_ASSERT_STRING_EQUAL(fvm_err_name(0), "OK");
    CU_ASSERT_EQUAL(fvm_err_exit_status(0), 0);
    for (int c = -1; c > -(int)FVM_EPOS_END_; c--) {
        CU_ASSERT(fvm_err_exit_status(c) >= 64 && fvm_err_exit_status(c) <= 77);
        CU_ASSERT(fvm_err_text(c)[0] != 0);
    }
    const int foreign[] = {1, 12345, -(int)FVM_EPOS_END_, -99999, INT32_MIN};
    for (size_t i = 0; i < FVM_ARRAY_SIZE(foreign); i++) {
        CU_ASSERT_STRING_EQUAL(fvm_err_name(foreign[i]), "UNKNOWN");
        CU_ASSERT_EQUAL(fvm_err_exit_status(foreign[i]), 70);
    }
}

static void test_set(void)
{
    struct fvm_err err = {0};
    CU_ASSERT_EQUAL(fvm_err_set(&err, FVM_EPERM, EACCES, "storage", "disk %s: no", "a\nb\x1b[2J"), FVM_EPERM);
    CU_ASSERT_EQUAL(err.code, FVM_EPERM);
    CU_ASSERT_EQUAL(err.sys_errno, EACCES);
    CU_ASSERT_STRING_EQUAL(err.room, "storage");
    CU_ASSERT_STRING_EQUAL(err.text, "disk a?b?[2J: no");
    /* from itself, a long room, a long text */
    fvm_err_set(&err, FVM_EIO, 0, "a-room-with-a-name-too-long", "again: %s", err.text);
    CU_ASSERT_STRING_EQUAL(err.text, "again: disk a?b?[2J: no");
    CU_ASSERT_EQUAL(strlen(err.room), sizeof(err.room) - 1);
    fvm_err_set(&err, FVM_EIO, 0, "x", "%2000s", "y");
    CU_ASSERT_EQUAL(strlen(err.text), sizeof(err.text) - 1);
    CU_ASSERT_EQUAL(fvm_err_set(NULL, FVM_EBUSY, 0, "x", "y"), FVM_EBUSY);
}

static void test_errno(void)
{
    CU_ASSERT_EQUAL(fvm_err_from_errno(ENOENT), FVM_ENOENT);
    CU_ASSERT_EQUAL(fvm_err_from_errno(EACCES), FVM_EPERM);
    CU_ASSERT_EQUAL(fvm_err_from_errno(ENOSPC), FVM_ENOSPC);
    CU_ASSERT_EQUAL(fvm_err_from_errno(0x7fff), FVM_EIO);
}

int main(void)
{
    CU_initialize_registry();
    CU_pSuite s = CU_add_suite("base/err", NULL, NULL);
    CU_add_test(s, "every code has name, text and status", test_tables);
    CU_add_test(s, "a message is one line and fits", test_set);
    CU_add_test(s, "errno", test_errno);
    CU_basic_set_mode(CU_BRM_VERBOSE);
    CU_basic_run_tests();
    unsigned bad = CU_get_number_of_failures();
    CU_cleanup_registry();
    return bad != 0;
}
