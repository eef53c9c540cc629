/*
 * cluster_journal.c - what is written down about a hand-over can be read back, whatever else is in the file.
 */
#include <CUnit/Basic.h>
#include <CUnit/CUnit.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cluster/dir.h"
#include "cluster/journal.h"

static char base[64], path[128];

static int make_dir(void)
{
    snprintf(base, sizeof(base), "/tmp/fvm-journal-XXXXXX");
    if (!mkdtemp(base))
        return -1;
    snprintf(path, sizeof(path), "%s/journal", base);
    return 0;
}

static int remove_dir(void)
{
    char cmd[128];
    snprintf(cmd, sizeof(cmd), "rm -rf '%s'", base);
    return system(cmd);
}

static struct fvm_ho_record kept;
static int outcome;

static int fake_get(void *ctx, struct fvm_ho_record *ret_record, uint64_t *ret_revision, struct fvm_err *err)
{
    (void)ctx, (void)err;
    *ret_record = kept;
    *ret_revision = 1;
    return 0;
}

static int fake_cas(void *ctx, uint64_t expect, const struct fvm_ho_record *next, struct fvm_err *err)
{
    (void)ctx, (void)expect;
    if (outcome)
        return fvm_err_set(err, outcome, 0, "test", "as asked");
    kept = *next;
    return 0;
}

static unsigned count(const char *what)
{
    char *text = NULL;
    unsigned n = 0;
    CU_ASSERT_EQUAL_FATAL(fvm_dir_read_file(path, 1 << 20, &text, NULL, NULL), 0);
    for (const char *p = text; (p = strstr(p, what)); p++)
        n++;
    free(text);
    return n;
}

static void test_record(void)
{
    struct fvm_journal *j = NULL;
    struct fvm_journal_view v;
    struct fvm_ho_record r, next;
    struct fvm_err err = {0};
    uint64_t revision;
    const uint8_t id[FVM_HO_ID_BYTES] = {0xab, 1, 2};
    kept = (struct fvm_ho_record){.owner = "a", .epoch = 7, .phase = FVM_HO_STABLE};
    CU_ASSERT_EQUAL_FATAL(fvm_journal_open(path, "node", &j), 0);
    fvm_journal_note(j, "start", json_pack("{s:s}", "role", "run"));
    fvm_journal_close(&j);
    CU_ASSERT_EQUAL_FATAL(fvm_journal_open(path, "source", &j), 0);
    struct fvm_record_store s = fvm_journal_record(j, (struct fvm_record_store){.get = fake_get, .cas = fake_cas});
    for (int i = 0; i < 5; i++)
        CU_ASSERT_EQUAL(s.get(s.ctx, &r, &revision, NULL), 0);
    CU_ASSERT_EQUAL(count("\"do\":\"read\""), 1); /* the same again is no news */
    CU_ASSERT_EQUAL_FATAL(fvm_ho_begin(&r, "a", "b", id, &next), 0);
    outcome = FVM_ETIMEOUT;
    CU_ASSERT_EQUAL(s.cas(s.ctx, 1, &next, &err), FVM_ETIMEOUT);
    CU_ASSERT_STRING_EQUAL(err.text, "as asked");
    outcome = FVM_ECONFLICT;
    CU_ASSERT_EQUAL(s.cas(s.ctx, 1, &next, NULL), FVM_ECONFLICT);
    outcome = 0;
    CU_ASSERT_EQUAL(s.cas(s.ctx, 1, &next, NULL), 0);
    CU_ASSERT_EQUAL(count("\"do\":\"want\""), 3);
    CU_ASSERT_EQUAL(count("\"do\":\"unclear\""), 1);
    CU_ASSERT_EQUAL(count("\"do\":\"conflict\""), 1);
    CU_ASSERT_EQUAL(count("\"do\":\"swapped\""), 1);
    fvm_journal_note(j, "phase", json_pack("{s:s}", "phase", "final"));
    fvm_journal_read(path, &v);
    CU_ASSERT_TRUE(v.leaving && v.has_mig_id && !v.incoming);
    CU_ASSERT_EQUAL(memcmp(v.mig_id, id, sizeof(id)), 0);
    CU_ASSERT_STRING_EQUAL(v.phase, "final");
    fvm_journal_note(j, "end", json_pack("{s:s}", "outcome", "stayed"));
    fvm_journal_read(path, &v);
    CU_ASSERT_FALSE(v.leaving);
    CU_ASSERT_STRING_EQUAL(v.outcome, "stayed");
    fvm_journal_close(&j);
    struct stat st;
    CU_ASSERT_EQUAL_FATAL(stat(path, &st), 0);
    CU_ASSERT_EQUAL(st.st_mode & 077, 0);
}

static void test_roles(void)
{
    static const char came[] = "{\"who\":\"node\",\"do\":\"start\",\"role\":\"incoming\"}\n"
                               "{\"who\":\"dest\",\"do\":\"phase\",\"phase\":\"take\"}\n";
    static const char ran[] = "{\"who\":\"dest\",\"do\":\"end\",\"outcome\":\"moved\"}\n";
    static const char other[] = "{\"who\":\"node\",\"do\":\"start\",\"role\":\"run\"}\n";
    char text[1000];
    struct fvm_journal_view v;
    fvm_journal_parse(came, strlen(came), &v);
    CU_ASSERT_TRUE(v.incoming && !v.leaving);
    snprintf(text, sizeof(text), "%s{\"who\":\"node\",\"do\":\"arrived\"}", came); /* no newline at the end */
    fvm_journal_parse(text, strlen(text), &v);
    CU_ASSERT_FALSE(v.incoming);
    snprintf(text, sizeof(text), "%sgarbage\n\n[1,2]\n{\"do\":5}\n%s", came, ran);
    fvm_journal_parse(text, strlen(text), &v);
    CU_ASSERT_FALSE(v.incoming);
    snprintf(text, sizeof(text), "%s%s", came, other);
    fvm_journal_parse(text, strlen(text), &v);
    CU_ASSERT_FALSE(v.incoming);
    CU_ASSERT_STRING_EQUAL(v.phase, "");
    fvm_journal_read("/nonexistent/journal", &v);
    CU_ASSERT_FALSE(v.incoming || v.leaving || v.has_mig_id);
}

static void test_limits(void)
{
    struct fvm_journal *j = NULL;
    char old[160];
    snprintf(old, sizeof(old), "%s.1", path);
    CU_ASSERT_EQUAL_FATAL(truncate(path, FVM_JOURNAL_BYTES_MAX + 1), 0);
    CU_ASSERT_EQUAL_FATAL(fvm_journal_open(path, "node", &j), 0);
    CU_ASSERT_EQUAL(access(old, F_OK), 0);
    fvm_journal_note(j, "start", NULL);
    CU_ASSERT_EQUAL(count("start"), 1);
    fvm_journal_close(&j);
    /* one that cannot be written stops nothing */
    CU_ASSERT_EQUAL_FATAL(fvm_journal_open("/nonexistent/journal", "node", &j), 0);
    fvm_journal_note(j, "start", NULL);
    fvm_journal_close(&j);
}

int main(void)
{
    CU_initialize_registry();
    CU_pSuite suite = CU_add_suite("cluster journal", make_dir, remove_dir);
    CU_add_test(suite, "a record, watched", test_record);
    CU_add_test(suite, "roles", test_roles);
    CU_add_test(suite, "limits", test_limits);
    CU_basic_set_mode(CU_BRM_VERBOSE);
    CU_basic_run_tests();
    unsigned failed = CU_get_number_of_failures();
    CU_cleanup_registry();
    return failed != 0;
}
