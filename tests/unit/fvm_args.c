/* fvm_args.c - the command line of `fvm run` and its sisters, and the terminal's escape keys. */
#include <CUnit/Basic.h>
#include <string.h>

#include "cluster/fvm_args.h"
#include "cluster/fvm_terminal.h"
#include "vmm/cpu/vcpu.h"

#define PARSE(ret, err, ...) parse(ret, err, (char *[]){"fvm run", __VA_ARGS__, NULL})

static int parse(struct fvm_run_options *ret, struct fvm_err *err, char **argv)
{
    int argc = 0;
    while (argv[argc])
        argc++;
    return fvm_args_parse_run(argc, argv, ret, err);
}

static void whole(void)
{
    struct fvm_run_options o;
    struct fvm_err err = {0};
    CU_ASSERT_EQUAL_FATAL(PARSE(&o, &err, "--kernel", "/vmlinuz", "--initrd=/i", "--append", "console=ttyS0 a=b",
                                "--memory", "2G", "--cpus", "1", "--cpu", "fvm64-v2", "--disk", "/d,readonly", "--net",
                                "user,hostfwd=tcp:127.0.0.1:2222-:22", "--serial", "unix:/tmp/s", "--control",
                                "unix:/tmp/c", "--name", "web-1", "--id", "00112233445566778899aabbccddeeff", "--stats",
                                "--paused", "--trace", "exec,io", "--trace-file", "/t", "--single-insn", "--log-level",
                                "debug", "--sandbox", "log", "--on-reset", "stop", "--incoming", "tcp://127.0.0.1:9",
                                "--no-rng"),
                          0);
    CU_ASSERT_STRING_EQUAL(o.config->kernel, "/vmlinuz");
    CU_ASSERT_STRING_EQUAL(o.config->append, "console=ttyS0 a=b");
    CU_ASSERT_EQUAL(o.config->memory_bytes, 2ull << 30);
    CU_ASSERT_EQUAL(o.config->cpus, 1);
    CU_ASSERT_EQUAL(o.config->n_disks, 1);
    CU_ASSERT_EQUAL(o.config->n_nets, 1);
    CU_ASSERT_STRING_EQUAL(o.config->serial, "unix:/tmp/s");
    CU_ASSERT_STRING_EQUAL(o.config->control, "/tmp/c");
    CU_ASSERT_EQUAL(o.config->id.data[15], 0xff);
    CU_ASSERT_EQUAL(o.trace, FVM_TRACE_EXEC | FVM_TRACE_IO);
    CU_ASSERT_EQUAL(o.log_level, FVM_LOG_DEBUG);
    CU_ASSERT_EQUAL(o.sandbox, FVM_SANDBOX_LOG);
    CU_ASSERT_STRING_EQUAL(o.incoming, "tcp://127.0.0.1:9");
    CU_ASSERT_TRUE(o.stats && o.paused && o.single_insn && !o.single_block && !o.config->rng);
    fvm_args_free(&o);
}

static void defaults(void)
{
    struct fvm_run_options o;
    CU_ASSERT_EQUAL_FATAL(PARSE(&o, NULL, "--kernel", "/k"), 0);
    CU_ASSERT_STRING_EQUAL(o.config->serial, "stdio");
    CU_ASSERT_EQUAL(o.config->memory_bytes, 1ull << 30);
    CU_ASSERT_EQUAL(o.config->cpus, 1);
    CU_ASSERT_EQUAL(o.config->n_nets, 0);
    CU_ASSERT_EQUAL(o.sandbox, FVM_SANDBOX_ON);
    fvm_args_free(&o);
}

static void refused(void)
{
    static char *const bad[][6] = {
        {"fvm run", "--kernel", "/k", "--memory", "lots"},     {"fvm run", "--kernel", "/k", "--cpus", "0"},
        {"fvm run", "--kernel", "/k", "--cpus", "1x"},         {"fvm run", "--kernel", "/k", "--serial", "tcp:1"},
        {"fvm run", "--kernel", "/k", "--net", "bridge"},      {"fvm run", "--kernel", "/k", "--trace", "exec,sleep"},
        {"fvm run", "--kernel", "/k", "--log-level", "loud"},  {"fvm run", "--kernel", "/k", "--sandbox", "maybe"},
        {"fvm run", "--kernel", "/k", "--id", "1234"},         {"fvm run", "--kernel", "/k", "--name", "a b"},
        {"fvm run", "--kernel", "/k", "extra"},                {"fvm run", "--kernel", "/k", "--frobnicate"},
        {"fvm run", "--kernel"},                               {"fvm run", "--memory", "1G"},
        {"fvm run", "--kernel", "/k", "--tsc-khz", "5"},       {"fvm run", "--kernel", "/k", "--control", "unix:"},
    };
    for (size_t i = 0; i < FVM_ARRAY_SIZE(bad); i++) {
        char *argv[7] = {0};
        memcpy(argv, bad[i], sizeof(bad[i]));
        struct fvm_run_options o;
        struct fvm_err err = {0};
        CU_ASSERT_EQUAL(parse(&o, &err, argv), FVM_EINVAL);
        CU_ASSERT(err.text[0] != 0 && !strchr(err.text, '\n'));
        CU_ASSERT_PTR_NULL(o.config);
    }
}

static void client(void)
{
    struct fvm_client_options o;
    struct fvm_err err = {0};
    CU_ASSERT_EQUAL(
        fvm_args_parse_client(5, (char *[]){"fvm status", "--control", "unix:/c", "--json", "--timeout=5", NULL}, "x",
                              &o, &err),
        0);
    CU_ASSERT_STRING_EQUAL(o.control, "/c");
    CU_ASSERT_TRUE(o.json);
    CU_ASSERT_EQUAL(o.timeout_ms, 5000);
    CU_ASSERT_EQUAL(fvm_args_parse_client(1, (char *[]){"fvm status", NULL}, "x", &o, &err), FVM_EINVAL);
    CU_ASSERT_PTR_NOT_NULL(strstr(err.text, "--control"));
}

static size_t type(struct fvm_terminal_escape *e, const char *in, char *out, enum fvm_terminal_key *key)
{
    uint8_t buf[32];
    size_t used, n = strlen(in);
    memcpy(buf, in, n);
    size_t kept = fvm_terminal_filter(e, buf, n, &used, key);
    memcpy(out, buf, kept);
    out[kept] = 0;
    return used;
}

static void escapes(void)
{
    struct fvm_terminal_escape e = {0};
    enum fvm_terminal_key key;
    char out[32];
    CU_ASSERT_EQUAL(type(&e, "ls\r", out, &key), 3);
    CU_ASSERT_STRING_EQUAL(out, "ls\r");
    CU_ASSERT_EQUAL(key, FVM_KEY_NONE);
    CU_ASSERT_EQUAL(type(&e, "ab\001xcd", out, &key), 4); /* stops at the key */
    CU_ASSERT_STRING_EQUAL(out, "ab");
    CU_ASSERT_EQUAL(key, FVM_KEY_EXIT);
    type(&e, "\001", out, &key); /* in two pieces */
    CU_ASSERT_STRING_EQUAL(out, "");
    type(&e, "h", out, &key);
    CU_ASSERT_EQUAL(key, FVM_KEY_HELP);
    type(&e, "\001\001\001a", out, &key);
    CU_ASSERT_STRING_EQUAL(out, "\001\001");
    type(&e, "\001zq", out, &key);
    CU_ASSERT_STRING_EQUAL(out, "q");
    CU_ASSERT_EQUAL(key, FVM_KEY_NONE);
}

int main(void)
{
    CU_initialize_registry();
    CU_pSuite s = CU_add_suite("fvm_args", NULL, NULL);
    CU_add_test(s, "whole", whole);
    CU_add_test(s, "defaults", defaults);
    CU_add_test(s, "refused", refused);
    CU_add_test(s, "client", client);
    CU_add_test(s, "escapes", escapes);
    CU_basic_run_tests();
    unsigned failed = CU_get_number_of_failures();
    CU_cleanup_registry();
    return failed != 0;
}
