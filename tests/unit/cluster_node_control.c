/*
 * cluster_node_control.c - a VM process that answers, keeps silent, lies, floods or hangs up: each call of its node
 * ends exactly once, and garbage ends the connection.
 */
#include <CUnit/Basic.h>
#include <CUnit/CUnit.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "cluster/node_control.h"

static struct fvm_loop *loop;
static char path[64];
static int listener = -1, vm = -1; /* vm: our end, as the VM process */
static struct fvm_node_control *control;
static unsigned events, closed, done;
static int last_code;
static char last_state[32];

static void on_event(void *ctx, json_t *event)
{
    (void)ctx;
    events += json_string_value(json_object_get(event, "event")) != NULL;
}

static void on_closed(void *ctx, const char *why)
{
    (void)ctx;
    (void)why;
    closed++;
    fvm_node_control_close(&control); /* as the daemon does, from inside */
}

static void on_done(void *ctx, json_t *result, const struct fvm_err *err)
{
    const char *state = json_string_value(json_object_get(result, "state"));
    done++;
    last_code = err->code;
    snprintf(last_state, sizeof(last_state), "%s", state ? state : "");
    if (ctx)
        fvm_node_control_close(&control);
}

static int up(void)
{
    struct sockaddr_un sa = {.sun_family = AF_UNIX};
    snprintf(path, sizeof(path), "/tmp/fvm-nc-%d.sock", (int)getpid());
    snprintf(sa.sun_path, sizeof(sa.sun_path), "%s", path);
    listener = socket(AF_UNIX, SOCK_STREAM, 0);
    return bind(listener, (struct sockaddr *)&sa, sizeof(sa)) || listen(listener, 4) || fvm_loop_create(&loop);
}

static int down(void)
{
    close(listener);
    unlink(path);
    fvm_loop_destroy(&loop);
    return 0;
}

static void open_both(void)
{
    const struct fvm_node_control_hooks hooks = {.event = on_event, .closed = on_closed};
    events = closed = done = 0;
    last_code = 1;
    CU_ASSERT_EQUAL_FATAL(fvm_node_control_open(loop, path, &hooks, &control, NULL), 0);
    vm = accept(listener, NULL, NULL);
    CU_ASSERT_TRUE_FATAL(vm >= 0);
}

static void close_both(void)
{
    if (control)
        fvm_node_control_close(&control);
    close(vm);
}

static void say(const char *text) { CU_ASSERT_EQUAL(write(vm, text, strlen(text)), (ssize_t)strlen(text)); }

/* Turns the loop until `counter` has reached `want`, at most 3 s. */
static void until(const unsigned *counter, unsigned want)
{
    uint64_t end = fvm_now_ns() + 3000000000ull;
    while (*counter < want && fvm_now_ns() < end)
        CU_ASSERT_FATAL(fvm_loop_turn(loop, 50000000) >= 0);
    CU_ASSERT_EQUAL(*counter, want);
}

static void ask(unsigned timeout_ms, void *ctx)
{
    CU_ASSERT_EQUAL(fvm_node_control_call(control, json_pack("{s:s}", "cmd", "status"), timeout_ms, on_done, ctx), 0);
}

static void test_answers(void)
{
    char line[256];
    open_both();
    ask(2000, NULL);
    ssize_t n = read(vm, line, sizeof(line) - 1);
    CU_ASSERT_TRUE_FATAL(n > 0);
    line[n] = 0;
    CU_ASSERT_TRUE(strstr(line, "\"cmd\":\"status\"") && line[n - 1] == '\n');
    say("{\"event\":\"reset\"}\n{\"id\":99,\"ok\":true}\n{\"id\":1,\"ok\":tr");
    until(&events, 1);
    CU_ASSERT_EQUAL(done, 0);
    say("ue,\"result\":{\"state\":\"running\"}}\n");
    until(&done, 1);
    CU_ASSERT_EQUAL(last_code, 0);
    CU_ASSERT_STRING_EQUAL(last_state, "running");
    ask(2000, NULL);
    ask(2000, NULL); /* answered the other way round */
    say("{\"id\":3,\"ok\":false,\"error\":{\"code\":\"NOENT\",\"text\":\"no\"}}\n");
    until(&done, 2);
    CU_ASSERT_EQUAL(last_code, FVM_ENOENT);
    say("{\"id\":2,\"ok\":false,\"error\":{\"code\":\"WHAT\"}}\n");
    until(&done, 3);
    CU_ASSERT_EQUAL(last_code, FVM_ESTATE);
    say("{\"id\":2,\"ok\":true}\n{\"event\":\"x\"}\n"); /* once more: nobody waits for it */
    until(&events, 2);
    CU_ASSERT_EQUAL(done, 3);
    close_both();
}

static void test_silence(void)
{
    open_both();
    ask(60, NULL);
    ask(2000, NULL);
    until(&done, 1);
    CU_ASSERT_EQUAL(last_code, FVM_ETIMEOUT);
    say("{\"id\":1,\"ok\":true}\n{\"id\":2,\"ok\":true}\n"); /* the first is too late */
    until(&done, 2);
    CU_ASSERT_EQUAL(last_code, 0);
    for (int i = 0; i < FVM_NODE_CONTROL_CALLS_MAX; i++)
        ask(60, NULL);
    CU_ASSERT_EQUAL(fvm_node_control_call(control, json_pack("{s:s}", "cmd", "x"), 60, on_done, NULL), FVM_EBUSY);
    until(&done, 2 + FVM_NODE_CONTROL_CALLS_MAX);
    close_both();
}

static void test_hang_up(void)
{
    open_both();
    ask(5000, NULL);
    ask(5000, NULL);
    close(vm);
    until(&closed, 1);
    CU_ASSERT_EQUAL(done, 2);
    CU_ASSERT_EQUAL(last_code, FVM_ECLOSED);
    CU_ASSERT_PTR_NULL(control);
    open_both();
    ask(5000, NULL);
    fvm_node_control_close(&control); /* by us: the call still ends, nothing else is told */
    CU_ASSERT_EQUAL(done, 1);
    CU_ASSERT_EQUAL(closed, 0);
    close(vm);
    open_both();
    ask(5000, &done); /* closes inside its own callback, with input left behind it */
    say("{\"id\":1,\"ok\":true}\n{\"event\":\"never seen\"}\n");
    until(&done, 1);
    CU_ASSERT_EQUAL(events, 0);
    CU_ASSERT_PTR_NULL(control);
    close(vm);
}

static void test_garbage(void)
{
    static const char *const lines[] = {"hello\n",   "[1]\n",      "{\"id\":1,\"id\":1}\n",
                                        "{\"a\":\n", "\xff\xfe\n", "\"text\"\n"};
    for (size_t i = 0; i < FVM_ARRAY_SIZE(lines); i++) {
        open_both();
        ask(5000, NULL);
        say(lines[i]);
        until(&closed, 1);
        CU_ASSERT_EQUAL(last_code, FVM_ECLOSED);
        close_both();
    }
    open_both(); /* a line that never ends */
    char *flood = malloc(65536);
    memset(flood, 'x', 65536);
    for (int i = 0; i < 64 && !closed; i++) {
        (void)send(vm, flood, 65536, MSG_NOSIGNAL | MSG_DONTWAIT);
        CU_ASSERT_FATAL(fvm_loop_turn(loop, 10000000) >= 0);
    }
    free(flood);
    until(&closed, 1);
    close_both();
}

int main(void)
{
    CU_initialize_registry();
    CU_pSuite suite = CU_add_suite("node control", up, down);
    CU_add_test(suite, "answers", test_answers);
    CU_add_test(suite, "silence", test_silence);
    CU_add_test(suite, "hang up", test_hang_up);
    CU_add_test(suite, "garbage", test_garbage);
    CU_basic_set_mode(CU_BRM_VERBOSE);
    CU_basic_run_tests();
    unsigned failed = CU_get_number_of_failures();
    CU_cleanup_registry();
    return failed != 0;
}
