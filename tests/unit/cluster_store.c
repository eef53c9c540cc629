/*
 * cluster_store.c - the store's contract on SQLite, and what is particular to it: files that race to exist, tombstones,
 * hostile keys and files.
 */
#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>

#include "tests/unit/store_contract.h"

static char dir[64];

static int make_dir(void)
{
    snprintf(dir, sizeof(dir), "/tmp/fvm-store-XXXXXX");
    if (!mkdtemp(dir))
        return -1;
    snprintf(url, sizeof(url), "sqlite:%s/s.db", dir);
    return 0;
}

static int remove_dir(void)
{
    char cmd[128];
    snprintf(cmd, sizeof(cmd), "rm -rf '%s'", dir);
    return system(cmd);
}

/* All processes open a file that does not exist yet, and swap the same key from nothing: one wins. */
static void test_race_create(void)
{
    char old[sizeof(url)];
    memcpy(old, url, sizeof(url));
    snprintf(url, sizeof(url), "sqlite:%s/new.db", dir);
    pid_t pids[RACERS];
    for (int i = 0; i < RACERS; i++)
        if ((pids[i] = fork()) == 0) {
            struct fvm_store *s = NULL;
            if (fvm_store_open(url, &s, NULL))
                _exit(9);
            int rc = set(s, "/first", 0, "me", 0, NULL);
            _exit(rc == 0 ? 1 : rc == FVM_ECONFLICT ? 0 : 8);
        }
    int winners = 0;
    for (int i = 0; i < RACERS; i++) {
        int status = -1;
        waitpid(pids[i], &status, 0);
        CU_ASSERT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) <= 1);
        winners += WEXITSTATUS(status);
    }
    CU_ASSERT_EQUAL(winners, 1);
    memcpy(url, old, sizeof(url));
}

static void test_watch_too_old(void)
{
    struct fvm_store *s = open_store();
    struct fvm_store_items items = {0};
    uint64_t rev = 0, since = 1;
    int rc = 0;
    for (int i = 0; i < 9000 && !rc; i++) /* far enough for tombstones to be pruned */
        rc = fvm_store_cas(s, "/churn", rev, rev ? NULL : "x", 1, 0, &rev, NULL) ?: (rev = i % 2 ? 0 : rev, 0);
    CU_ASSERT_EQUAL(rc, 0);
    CU_ASSERT_EQUAL(fvm_store_watch(s, "/", &since, 0, &items, NULL), FVM_ESTATE);
    fvm_store_close(&s);
}

static void test_hostile(void)
{
    struct fvm_store *s = open_store(), *bad = NULL;
    struct fvm_store_item item = {0};
    struct fvm_err err = {0};
    char longkey[FVM_STORE_KEY_MAX + 2];
    memset(longkey, 'k', sizeof(longkey) - 1);
    longkey[sizeof(longkey) - 1] = 0;
    CU_ASSERT_EQUAL(set(s, "", 0, "x", 0, NULL), FVM_EINVAL);
    CU_ASSERT_EQUAL(set(s, longkey, 0, "x", 0, NULL), FVM_EINVAL);
    CU_ASSERT_EQUAL(set(s, "/new\nline", 0, "x", 0, NULL), FVM_EINVAL);
    CU_ASSERT_EQUAL(fvm_store_cas(s, "/big", 0, url, FVM_STORE_VALUE_MAX + 1, 0, NULL, NULL), FVM_EINVAL);
    CU_ASSERT_EQUAL(set(s, "/x'; DROP TABLE kv; --", 0, "x", 0, NULL), FVM_EINVAL); /* has a space */
    CU_ASSERT_EQUAL(set(s, "/x';DROP", 0, "x", 0, NULL), 0);
    CU_ASSERT_EQUAL(fvm_store_get(s, "/x';DROP", &item, NULL), 0);
    fvm_store_item_fini(&item);
    fvm_store_close(&s);
    CU_ASSERT_EQUAL(fvm_store_open("mysql:foo", &bad, &err), FVM_EUNSUPPORTED);
    CU_ASSERT_EQUAL(fvm_store_open("sqlite:", &bad, &err), FVM_EUNSUPPORTED);
    char path[160];
    snprintf(path, sizeof(path), "sqlite:%s/none/s.db", dir);
    CU_ASSERT_EQUAL(fvm_store_open(path, &bad, &err), FVM_ENOENT);
    snprintf(path, sizeof(path), "sqlite:%s/garbage.db", dir);
    int fd = open(path + 7, O_WRONLY | O_CREAT, 0600);
    for (int i = 0; i < 600; i++)
        CU_ASSERT_EQUAL(write(fd, "not a database ", 15), 15);
    close(fd);
    CU_ASSERT_EQUAL(fvm_store_open(path, &bad, &err), FVM_EBADIMAGE);
    CU_ASSERT_TRUE(strstr(err.text, "not a store") != NULL);
    CU_ASSERT_PTR_NULL(bad);
}

/* Who can write the store can move guests: it is for its owner alone. */
static void test_private(void)
{
    struct stat st;
    CU_ASSERT_EQUAL_FATAL(stat(url + 7, &st), 0);
    CU_ASSERT_EQUAL(st.st_mode & 077, 0);
}

int main(void)
{
    CU_initialize_registry();
    CU_pSuite suite = CU_add_suite("cluster store: sqlite", make_dir, remove_dir);
    add_contract(suite);
    CU_add_test(suite, "race to create", test_race_create);
    CU_add_test(suite, "watch from too long ago", test_watch_too_old);
    CU_add_test(suite, "hostile input", test_hostile);
    CU_add_test(suite, "file is private", test_private);
    CU_basic_set_mode(CU_BRM_VERBOSE);
    CU_basic_run_tests();
    unsigned failed = CU_get_number_of_failures();
    CU_cleanup_registry();
    return failed != 0;
}
