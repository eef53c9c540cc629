/*
 * cluster_dir.c - the cluster directory: made once, extended, moved, and every damage to it refused with a line.
 */
#include <CUnit/Basic.h>
#include <CUnit/CUnit.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cluster/dir.h"

static char base[64], path[128];

static int make_dir(void)
{
    snprintf(base, sizeof(base), "/tmp/fvm-dir-XXXXXX");
    if (!mkdtemp(base))
        return -1;
    snprintf(path, sizeof(path), "%s/c", base);
    return 0;
}

static int remove_dir(void)
{
    char cmd[128];
    snprintf(cmd, sizeof(cmd), "rm -rf '%s'", base);
    return system(cmd);
}

static void write_text(const char *file, const char *text)
{
    char name[256];
    snprintf(name, sizeof(name), "%s/%s", path, file);
    CU_ASSERT_EQUAL_FATAL(fvm_dir_write_file(name, text, strlen(text), 0600, NULL), 0);
}

static void test_life(void)
{
    struct fvm_dir dir = {0};
    struct fvm_err err = {0};
    struct fvm_port_keys keys = {0};
    CU_ASSERT_EQUAL(fvm_dir_load(path, &dir, &err), FVM_ENOENT);
    CU_ASSERT_TRUE(strstr(err.text, "fvm-cluster init") != NULL);
    CU_ASSERT_EQUAL_FATAL(fvm_dir_init(path, "admin", NULL, &err), 0);
    CU_ASSERT_EQUAL(fvm_dir_init(path, "admin", NULL, &err), FVM_EEXIST);
    CU_ASSERT_EQUAL(fvm_dir_add(path, FVM_DIR_NODE, "a", "tcp://127.0.0.1:7710", &err), 0);
    CU_ASSERT_EQUAL(fvm_dir_add(path, FVM_DIR_NODE, "a", "tcp://127.0.0.1:7711", &err), FVM_EEXIST);
    CU_ASSERT_EQUAL(fvm_dir_add(path, FVM_DIR_NODE, "b", "tcp://127.0.0.1:7710", &err), FVM_EEXIST);
    CU_ASSERT_EQUAL(fvm_dir_add(path, FVM_DIR_NODE, "b", "tcp://[::1]:7711", &err), 0);
    CU_ASSERT_EQUAL_FATAL(fvm_dir_load(path, &dir, &err), 0);
    CU_ASSERT_EQUAL(dir.member_count, 3);
    CU_ASSERT_EQUAL(strlen(dir.id), 32);
    const struct fvm_dir_member *a = fvm_dir_find(&dir, FVM_DIR_NODE, "a");
    CU_ASSERT_PTR_NOT_NULL_FATAL(a);
    CU_ASSERT_PTR_NULL(fvm_dir_find(&dir, FVM_DIR_OPERATOR, "a"));
    CU_ASSERT_PTR_EQUAL(fvm_dir_find_key(&dir, a->public_key), a);
    CU_ASSERT_PTR_NULL(fvm_dir_find_key(&dir, ""));
    CU_ASSERT_EQUAL(fvm_dir_keys(&dir, a, &keys, &err), 0);
    CU_ASSERT_STRING_EQUAL(keys.public_key, a->public_key);
    fvm_dir_fini(&dir);
    CU_ASSERT_EQUAL(fvm_dir_remove(path, FVM_DIR_NODE, "b", &err), 0);
    CU_ASSERT_EQUAL(fvm_dir_remove(path, FVM_DIR_NODE, "b", &err), FVM_ENOENT);
    CU_ASSERT_EQUAL_FATAL(fvm_dir_load(path, &dir, &err), 0);
    CU_ASSERT_PTR_NULL(fvm_dir_find(&dir, FVM_DIR_NODE, "b"));
    fvm_dir_fini(&dir);
}

/* Certificates that are named without their folder are the cluster directory's; what was written stays as it was. */
static void test_store_files(void)
{
    static const char written[] = "etcd://h1:2379,h2:2379/fvm/x?ca=ca.pem&cert=/abs/cert.pem&key=k/client.key";
    struct fvm_dir dir = {0};
    struct fvm_err err = {0};
    char own[128], file[200], want[512], *text = NULL;
    snprintf(own, sizeof(own), "%s/e", base);
    CU_ASSERT_NOT_EQUAL(fvm_dir_init(own, "admin", "etcd://127.0.0.1:1", &err), 0); /* nobody listens there */
    CU_ASSERT_TRUE(strstr(err.text, "127.0.0.1:1") != NULL);
    CU_ASSERT_EQUAL(fvm_dir_init(own, "admin", "etcd://10.1.2.3:1", &err), FVM_EINVAL);
    CU_ASSERT_EQUAL_FATAL(fvm_dir_init(own, "admin", NULL, &err), 0);
    snprintf(file, sizeof(file), "%s/cluster.json", own);
    CU_ASSERT_EQUAL_FATAL(fvm_dir_read_file(file, 65536, &text, NULL, NULL), 0);
    char *at = strstr(text, "sqlite:cluster.db"), other[4096];
    CU_ASSERT_PTR_NOT_NULL_FATAL(at);
    snprintf(other, sizeof(other), "%.*s%s%s", (int)(at - text), text, written, at + strlen("sqlite:cluster.db"));
    CU_ASSERT_EQUAL(fvm_dir_write_file(file, other, strlen(other), 0644, NULL), 0);
    free(text);
    CU_ASSERT_EQUAL(fvm_dir_add(own, FVM_DIR_NODE, "a", "tcp://127.0.0.1:7710", NULL), 0);
    CU_ASSERT_EQUAL_FATAL(fvm_dir_load(own, &dir, NULL), 0);
    snprintf(want, sizeof(want), "etcd://h1:2379,h2:2379/fvm/x?ca=%s/ca.pem&cert=/abs/cert.pem&key=%s/k/client.key",
             own, own);
    CU_ASSERT_STRING_EQUAL(dir.store_url, want);
    CU_ASSERT_STRING_EQUAL(dir.store_written, written);
    fvm_dir_fini(&dir);
}

/* The store goes with the directory when it is moved. */
static void test_moved(void)
{
    struct fvm_dir dir = {0};
    char there[128], want[256];
    snprintf(there, sizeof(there), "%s/moved", base);
    CU_ASSERT_EQUAL_FATAL(rename(path, there), 0);
    CU_ASSERT_EQUAL(fvm_dir_add(there, FVM_DIR_NODE, "c", "tcp://127.0.0.1:7712", NULL), 0);
    CU_ASSERT_EQUAL_FATAL(fvm_dir_load(there, &dir, NULL), 0);
    snprintf(want, sizeof(want), "sqlite:%s/cluster.db", there);
    CU_ASSERT_STRING_EQUAL(dir.store_url, want);
    fvm_dir_fini(&dir);
    CU_ASSERT_EQUAL_FATAL(rename(there, path), 0);
}

static void test_names(void)
{
    static const char *const bad[] = {
        "",   ".",   "..",  "../x",     "a/b",
        "-a", "a b", "a\n", "\xc3\xa4", "0123456789012345678901234567890123456789012345678901234567890123"};
    for (size_t i = 0; i < FVM_ARRAY_SIZE(bad); i++) {
        CU_ASSERT_EQUAL(fvm_dir_check_name("node", bad[i], NULL), FVM_EINVAL);
        CU_ASSERT_EQUAL(fvm_dir_add(path, FVM_DIR_OPERATOR, bad[i], NULL, NULL), FVM_EINVAL);
    }
    CU_ASSERT_EQUAL(fvm_dir_check_name("node", "web-1.example_2", NULL), 0);
    static const char *const addresses[] = {"",          "tcp://",         "tcp://:1",      "tcp://h",
                                            "tcp://h:",  "tcp://h:0",      "tcp://h:65536", "tcp://h:1x",
                                            "udp://h:1", "127.0.0.1:7710", "tcp://h:+1",    "tcp://h: 1"};
    for (size_t i = 0; i < FVM_ARRAY_SIZE(addresses); i++)
        CU_ASSERT_EQUAL(fvm_dir_add(path, FVM_DIR_NODE, "n", addresses[i], NULL), FVM_EINVAL);
}

static void test_keys(void)
{
    struct fvm_dir dir = {0};
    struct fvm_err err = {0};
    struct fvm_port_keys keys = {0}, other;
    char name[256];
    CU_ASSERT_EQUAL_FATAL(fvm_dir_load(path, &dir, NULL), 0);
    const struct fvm_dir_member *a = fvm_dir_find(&dir, FVM_DIR_NODE, "a");
    CU_ASSERT_PTR_NOT_NULL_FATAL(a);
    snprintf(name, sizeof(name), "%s/keys/a.secret", path);
    CU_ASSERT_EQUAL(chmod(name, 0644), 0);
    CU_ASSERT_EQUAL(fvm_dir_keys(&dir, a, &keys, &err), FVM_EPERM);
    CU_ASSERT_TRUE(strstr(err.text, "chmod 600") != NULL);
    CU_ASSERT_EQUAL(unlink(name), 0);
    CU_ASSERT_EQUAL(fvm_dir_keys(&dir, a, &keys, &err), FVM_ENOENT);
    write_text("keys/a.secret", "not a key\n");
    CU_ASSERT_EQUAL(fvm_dir_keys(&dir, a, &keys, &err), FVM_EBADIMAGE);
    CU_ASSERT_EQUAL_FATAL(fvm_port_keygen(&other), 0);
    write_text("keys/a.secret", other.secret_key);
    CU_ASSERT_EQUAL(fvm_dir_keys(&dir, a, &keys, &err), FVM_EAUTH);
    CU_ASSERT_EQUAL(keys.secret_key[0], 0); /* untouched by failures */
    fvm_dir_fini(&dir);
}

static void test_damaged(void)
{
    static const struct {
        const char *text;
        int code;
    } files[] = {
        {"", FVM_EBADIMAGE},
        {"[]", FVM_EBADIMAGE},
        {"{\"format\": 1}", FVM_EBADIMAGE},
        {"{\"format\": 1, \"cluster\": \"00112233445566778899aabbccddeeff\"}", FVM_EBADIMAGE},
        {"{\"format\": 2, \"cluster\": \"00112233445566778899aabbccddeeff\", \"store\": \"sqlite:x\", \"nodes\": [], "
         "\"operators\": []}",
         FVM_EVERSION},
        {"{\"format\": 1, \"cluster\": \"00112233445566778899aabbccddeeff\", \"store\": \"sqlite:x\", \"nodes\": [3], "
         "\"operators\": []}",
         FVM_EBADIMAGE},
        {"{\"format\": 1, \"cluster\": \"00112233445566778899aabbccddeeff\", \"store\": \"sqlite:x\", \"nodes\": "
         "[{\"name\": \"a\","
         " \"public\": \"short\", \"address\": \"tcp://h:1\"}], \"operators\": []}",
         FVM_EBADIMAGE},
        {"{\"format\": 1, \"format\": 1}", FVM_EBADIMAGE},
        {"{\"format\": 1, \"cluster\": \"00112233445566778899aabbccddeeff\", \"store\": \"sqlite:x\", \"nodes\": [], "
         "\"operators\": []}",
         0},
    };
    for (size_t i = 0; i < FVM_ARRAY_SIZE(files); i++) {
        struct fvm_dir dir = {0};
        struct fvm_err err = {0};
        write_text("cluster.json", files[i].text);
        CU_ASSERT_EQUAL(fvm_dir_load(path, &dir, &err), files[i].code);
        CU_ASSERT_TRUE(!files[i].code == !err.text[0] && !strchr(err.text, '\n'));
        fvm_dir_fini(&dir);
    }
}

static void test_files(void)
{
    struct fvm_err err = {0};
    char name[256], *data = NULL;
    size_t len = 0;
    snprintf(name, sizeof(name), "%s/deep/er/est", base);
    CU_ASSERT_EQUAL(fvm_dir_make(name, 0700, &err), 0);
    CU_ASSERT_EQUAL(fvm_dir_make(name, 0700, &err), 0);
    snprintf(name, sizeof(name), "%s/file", base);
    CU_ASSERT_EQUAL(fvm_dir_write_file(name, "abc", 3, 0600, &err), 0);
    CU_ASSERT_EQUAL(fvm_dir_make(name, 0700, &err), FVM_EEXIST);
    CU_ASSERT_EQUAL_FATAL(fvm_dir_read_file(name, 3, &data, &len, &err), 0);
    CU_ASSERT_EQUAL(len, 3);
    CU_ASSERT_STRING_EQUAL(data, "abc");
    free(data);
    CU_ASSERT_EQUAL(fvm_dir_read_file(name, 2, &data, &len, &err), FVM_EBADIMAGE);
    CU_ASSERT_NOT_EQUAL(fvm_dir_write_file("/proc/none", "abc", 3, 0600, &err), 0);
}

int main(void)
{
    CU_initialize_registry();
    CU_pSuite suite = CU_add_suite("cluster directory", make_dir, remove_dir);
    CU_add_test(suite, "made, extended, read", test_life);
    CU_add_test(suite, "a store's files", test_store_files);
    CU_add_test(suite, "moved", test_moved);
    CU_add_test(suite, "names and addresses", test_names);
    CU_add_test(suite, "keys", test_keys);
    CU_add_test(suite, "damaged", test_damaged);
    CU_add_test(suite, "files", test_files);
    CU_basic_set_mode(CU_BRM_VERBOSE);
    CU_basic_run_tests();
    unsigned failed = CU_get_number_of_failures();
    CU_cleanup_registry();
    return failed != 0;
}
