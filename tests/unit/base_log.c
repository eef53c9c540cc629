/* base/log: levels, the shape of a line, hostile values. */
#include "base/log.h"

#include <CUnit/Basic.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

static char got[8192];

/* What was logged since the last call. */
static const char *drain(int fd)
{
    ssize_t n = read(fd, got, sizeof(got) - 1);
    got[n > 0 ? n : 0] = 0;
    return got;
}

static int pipe_to_log(int fds[2])
{
    if (pipe2(fds, O_CLOEXEC | O_NONBLOCK))
        return -1;
    fvm_log_set_fd(fds[1]);
    return 0;
}

static void close_log(int fds[2])
{
    fvm_log_set_fd(STDERR_FILENO);
    fvm_log_set_crlf(false);
    close(fds[0]);
    close(fds[1]);
}

static void test_levels(void)
{
    enum fvm_log_level level = FVM_LOG_ERROR;
    int fds[2];
    CU_ASSERT(fvm_log_parse_level("info", &level) && level == FVM_LOG_INFO);
    CU_ASSERT_FALSE(fvm_log_parse_level("INFO", &level));
    CU_ASSERT_FALSE(fvm_log_parse_level("", &level));
    CU_ASSERT_EQUAL_FATAL(pipe_to_log(fds), 0);
    fvm_log_set_level(FVM_LOG_WARN);
    fvm_log(INFO, "test.quiet", "n=%d", 1);
    CU_ASSERT_STRING_EQUAL(drain(fds[0]), "");
    fvm_log(WARN, "test.loud", "n=%d", 2);
    CU_ASSERT_PTR_NOT_NULL(strstr(drain(fds[0]), "Z WARN test.loud n=2\n"));
    close_log(fds);
}

static void test_lines(void)
{
    int fds[2];
    CU_ASSERT_EQUAL_FATAL(pipe_to_log(fds), 0);
    fvm_log(ERROR, "test.forge", "name=%s", "a\nERROR b\r\x1b[31m");
    CU_ASSERT_PTR_NOT_NULL(strstr(drain(fds[0]), "name=a?ERROR b??[31m\n"));
    CU_ASSERT_PTR_EQUAL(strchr(got, '\n'), got + strlen(got) - 1);
    fvm_log_set_crlf(true);
    fvm_log(ERROR, "test.long", "%5000s", "x");
    size_t n = strlen(drain(fds[0]));
    CU_ASSERT(n > 1000 && n <= 2048);
    CU_ASSERT_STRING_EQUAL(got + n - 2, "\r\n");
    close_log(fds);
}

int main(void)
{
    CU_initialize_registry();
    CU_pSuite s = CU_add_suite("base/log", NULL, NULL);
    CU_add_test(s, "levels", test_levels);
    CU_add_test(s, "one line, whatever the values hold", test_lines);
    CU_basic_set_mode(CU_BRM_VERBOSE);
    CU_basic_run_tests();
    unsigned bad = CU_get_number_of_failures();
    CU_cleanup_registry();
    return bad != 0;
}
