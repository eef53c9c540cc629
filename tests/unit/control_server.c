/* control_server.c - the control socket against well-behaved, lazy and hostile clients; all in one thread, turn by
 * turn. */
#include <CUnit/Basic.h>
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cluster/fvm_control.h"
#include "vmm/vm_unix.h"

struct world {
    struct fvm_loop *loop;
    struct fvm_control *control;
    char path[64];
    struct fvm_control_call *held[8]; /* calls of "hold" */
    unsigned held_count, echoes;
};

static void on_echo(void *ctx, struct fvm_control_call *call, const json_t *request)
{
    struct world *w = ctx;
    w->echoes++;
    fvm_control_reply(call, json_pack("{s:O}", "said", json_object_get(request, "say")));
}

static void on_fail(void *ctx, struct fvm_control_call *call, const json_t *request)
{
    (void)ctx;
    (void)request;
    struct fvm_err err = {0};
    fvm_err_set(&err, FVM_EBUSY, 0, "test", "not now");
    fvm_control_fail(call, &err);
}

static void on_hold(void *ctx, struct fvm_control_call *call, const json_t *request)
{
    struct world *w = ctx;
    (void)request;
    w->held[w->held_count++] = call;
}

static void on_big(void *ctx, struct fvm_control_call *call, const json_t *request)
{
    (void)ctx;
    (void)request;
    char *text = malloc(300001);
    memset(text, 'x', 300000);
    text[300000] = 0;
    fvm_control_reply(call, json_pack("{s:s}", "text", text));
    free(text);
}

static void begin(struct world *w)
{
    *w = (struct world){0};
    snprintf(w->path, sizeof(w->path), "/tmp/fvm-control-test.%d", (int)getpid());
    CU_ASSERT_EQUAL_FATAL(fvm_loop_create(&w->loop), 0);
    CU_ASSERT_EQUAL_FATAL(fvm_control_create(w->loop, w->path, &w->control, NULL), 0);
    CU_ASSERT_EQUAL(fvm_control_register(w->control, "echo", "", on_echo, w), 0);
    CU_ASSERT_EQUAL(fvm_control_register(w->control, "fail", "", on_fail, w), 0);
    CU_ASSERT_EQUAL(fvm_control_register(w->control, "hold", "", on_hold, w), 0);
    CU_ASSERT_EQUAL(fvm_control_register(w->control, "big", "", on_big, w), 0);
    CU_ASSERT_EQUAL(fvm_control_register(w->control, "echo", "", on_echo, w), FVM_EEXIST);
}

static void end(struct world *w)
{
    struct stat st;
    fvm_control_destroy(&w->control);
    CU_ASSERT(stat(w->path, &st) < 0 && errno == ENOENT);
    fvm_loop_destroy(&w->loop);
}

static void settle(struct world *w)
{
    while (fvm_loop_turn(w->loop, 20000000) > 0)
        ;
}

static int join(struct world *w)
{
    int fd = -1;
    CU_ASSERT_EQUAL_FATAL(fvm_unix_connect(w->path, &fd, NULL), 0);
    settle(w);
    return fd;
}

static void say(struct world *w, int fd, const char *text)
{
    CU_ASSERT_EQUAL(send(fd, text, strlen(text), MSG_NOSIGNAL), (ssize_t)strlen(text));
    settle(w);
}

/* What has come so far, "" at a closed connection with nothing. */
static const char *hear(int fd, char *buf, size_t size)
{
    ssize_t n = recv(fd, buf, size - 1, MSG_DONTWAIT);
    buf[n > 0 ? n : 0] = 0;
    return buf;
}

static bool closed(int fd)
{
    char c;
    return recv(fd, &c, 1, MSG_DONTWAIT) == 0;
}

static void requests(void)
{
    struct world w;
    char buf[4096];
    begin(&w);
    int fd = join(&w);
    say(&w, fd, "{\"cmd\":\"echo\",\"id\":7,\"say\":\"hi\"}\n");
    CU_ASSERT_STRING_EQUAL(hear(fd, buf, sizeof(buf)), "{\"id\":7,\"ok\":true,\"result\":{\"said\":\"hi\"}}\n");
    say(&w, fd, "{\"cmd\":\"fail\",\"id\":\"x\"}\r\n\n");
    CU_ASSERT_STRING_EQUAL(hear(fd, buf, sizeof(buf)),
                           "{\"id\":\"x\",\"ok\":false,\"error\":\"not now\",\"code\":-6,\"name\":\"BUSY\"}\n");
    say(&w, fd, "{\"cmd\":\"fly\"}\n");
    CU_ASSERT_PTR_NOT_NULL(strstr(hear(fd, buf, sizeof(buf)), "\"name\":\"NOENT\""));
    say(&w, fd, "{\"id\":1}\n");
    CU_ASSERT_PTR_NOT_NULL(strstr(hear(fd, buf, sizeof(buf)), "\"id\":1,\"ok\":false"));
    say(&w, fd, "{\"cmd\":\"help\"}\n");
    CU_ASSERT_PTR_NOT_NULL(strstr(hear(fd, buf, sizeof(buf)), "\"echo\""));
    /* in pieces, and two at once */
    say(&w, fd, "{\"cmd\":\"echo\",\"id\":1,");
    CU_ASSERT_STRING_EQUAL(hear(fd, buf, sizeof(buf)), "");
    say(&w, fd, "\"say\":1}\n{\"cmd\":\"echo\",\"id\":2,\"say\":2}\n");
    CU_ASSERT_STRING_EQUAL(
        hear(fd, buf, sizeof(buf)),
        "{\"id\":1,\"ok\":true,\"result\":{\"said\":1}}\n{\"id\":2,\"ok\":true,\"result\":{\"said\":2}}\n");
    close(fd);
    end(&w);
}

static void later(void)
{
    struct world w;
    char buf[4096];
    begin(&w);
    int a = join(&w), b = join(&w);
    say(&w, a, "{\"cmd\":\"hold\",\"id\":1}\n{\"cmd\":\"hold\",\"id\":2}\n");
    say(&w, b, "{\"cmd\":\"hold\",\"id\":3}\n");
    CU_ASSERT_EQUAL_FATAL(w.held_count, 3);
    close(b); /* its call lives on */
    settle(&w);
    fvm_control_reply(w.held[1], NULL);
    fvm_control_reply(w.held[2], NULL);
    fvm_control_event(w.control, "moved", json_pack("{s:i}", "n", 5));
    shutdown(a, SHUT_WR); /* still waits for its answer */
    settle(&w);
    CU_ASSERT_STRING_EQUAL(hear(a, buf, sizeof(buf)),
                           "{\"id\":2,\"ok\":true,\"result\":{}}\n{\"n\":5,\"event\":\"moved\"}\n");
    CU_ASSERT_FALSE(closed(a));
    fvm_control_reply(w.held[0], NULL);
    settle(&w);
    CU_ASSERT_STRING_EQUAL(hear(a, buf, sizeof(buf)), "{\"id\":1,\"ok\":true,\"result\":{}}\n");
    CU_ASSERT_TRUE(closed(a));
    close(a);
    int c = join(&w); /* left unanswered when the server goes */
    say(&w, c, "{\"cmd\":\"hold\"}\n");
    end(&w);
    close(c);
}

static void garbage(void)
{
    static const char *const lines[] = {
        "hello\n",        "[1,2]\n", "\"cmd\"\n",          "{\"cmd\":}\n", "{\"a\":1,\"a\":2}\n",
        "\001\002\377\n", "null\n",  "{\"cmd\":\"echo\"\n"};
    struct world w;
    char buf[4096];
    begin(&w);
    int good = join(&w);
    for (size_t i = 0; i < FVM_ARRAY_SIZE(lines); i++) {
        int fd = join(&w);
        say(&w, fd, lines[i]);
        CU_ASSERT_PTR_NOT_NULL(strstr(hear(fd, buf, sizeof(buf)), "\"name\":\"PROTO\""));
        CU_ASSERT_TRUE(closed(fd));
        close(fd);
    }
    /* deep nesting, no newline for ever */
    int fd = join(&w);
    char *deep = malloc(FVM_CONTROL_LINE_MAX + 1);
    memset(deep, '[', FVM_CONTROL_LINE_MAX);
    deep[FVM_CONTROL_LINE_MAX] = 0;
    say(&w, fd, deep);
    CU_ASSERT_PTR_NOT_NULL(strstr(hear(fd, buf, sizeof(buf)), "too long"));
    CU_ASSERT_TRUE(closed(fd));
    close(fd);
    fd = join(&w);
    deep[60000] = '\n';
    deep[60001] = 0;
    say(&w, fd, deep);
    CU_ASSERT_PTR_NOT_NULL(strstr(hear(fd, buf, sizeof(buf)), "not a JSON object"));
    close(fd);
    free(deep);
    say(&w, good, "{\"cmd\":\"echo\",\"say\":null}\n"); /* nobody else was harmed */
    CU_ASSERT_PTR_NOT_NULL(strstr(hear(good, buf, sizeof(buf)), "\"ok\":true"));
    close(good);
    end(&w);
}

static void too_much(void)
{
    struct world w;
    char buf[4096];
    int fds[FVM_CONTROL_CLIENTS_MAX + 1];
    begin(&w);
    for (unsigned i = 0; i <= FVM_CONTROL_CLIENTS_MAX; i++)
        fds[i] = join(&w);
    CU_ASSERT_PTR_NOT_NULL(strstr(hear(fds[FVM_CONTROL_CLIENTS_MAX], buf, sizeof(buf)), "\"name\":\"BUSY\""));
    for (unsigned i = 1; i <= FVM_CONTROL_CLIENTS_MAX; i++)
        close(fds[i]);
    settle(&w);
    /* replies that are never read: 300 kB each */
    for (int i = 0; i < 20; i++)
        if (send(fds[0], "{\"cmd\":\"big\"}\n", 14, MSG_NOSIGNAL) == 14)
            settle(&w);
    CU_ASSERT(send(fds[0], "{}\n", 3, MSG_NOSIGNAL) < 0); /* disconnected */
    close(fds[0]);
    int fd = join(&w); /* and the server lives */
    say(&w, fd, "{\"cmd\":\"echo\",\"say\":1}\n");
    CU_ASSERT_PTR_NOT_NULL(strstr(hear(fd, buf, sizeof(buf)), "\"said\":1"));
    close(fd);
    end(&w);
}

static void names(void)
{
    struct world w;
    struct fvm_control *second = NULL;
    struct fvm_err err = {0};
    char path[80];
    begin(&w);
    CU_ASSERT_EQUAL(fvm_control_create(w.loop, w.path, &second, &err), FVM_EBUSY);
    settle(&w);
    snprintf(path, sizeof(path), "%s.dead", w.path);
    int fd; /* a socket whose process died */
    CU_ASSERT_EQUAL_FATAL(fvm_unix_listen(path, &fd, NULL), 0);
    close(fd);
    CU_ASSERT_EQUAL(fvm_control_create(w.loop, path, &second, &err), 0);
    struct stat st;
    CU_ASSERT(stat(path, &st) == 0 && (st.st_mode & 0777) == 0600);
    fvm_control_destroy(&second);
    FILE *f = fopen(path, "w"); /* a file is never replaced */
    fclose(f);
    CU_ASSERT_EQUAL(fvm_control_create(w.loop, path, &second, &err), FVM_EEXIST);
    CU_ASSERT_EQUAL(access(path, F_OK), 0);
    unlink(path);
    CU_ASSERT_EQUAL(fvm_control_create(w.loop, "/nonexistent/x", &second, &err), FVM_ENOENT);
    CU_ASSERT_PTR_NULL(second);
    end(&w);
}

struct asker {
    const char *path;
    struct fvm_loop *loop;
    int r;
    json_t *result;
    struct fvm_err err;
};

static void *ask(void *arg)
{
    struct asker *a = arg;
    json_t *request = json_pack("{s:s, s:s}", "cmd", "echo", "say", "hello");
    a->r = fvm_control_ask(a->path, request, 5000, &a->result, &a->err);
    json_decref(request);
    fvm_loop_stop(a->loop, 0);
    return NULL;
}

static void client_side(void)
{
    struct world w;
    begin(&w);
    struct asker a = {.path = w.path, .loop = w.loop};
    pthread_t t;
    pthread_create(&t, NULL, ask, &a);
    CU_ASSERT_EQUAL(fvm_loop_run(w.loop), 0);
    pthread_join(t, NULL);
    CU_ASSERT_EQUAL(a.r, 0);
    CU_ASSERT_STRING_EQUAL(json_string_value(json_object_get(a.result, "said")), "hello");
    json_decref(a.result);
    json_t *request = json_object();
    struct fvm_err err = {0};
    json_t *result = NULL;
    CU_ASSERT_EQUAL(fvm_control_ask(w.path, request, 50, &result, &err), FVM_ETIMEOUT); /* nobody turns the loop */
    settle(&w);
    end(&w);
    CU_ASSERT_EQUAL(fvm_control_ask(w.path, request, 50, &result, &err), FVM_ENOENT);
    json_decref(request);
}

int main(void)
{
    CU_initialize_registry();
    CU_pSuite s = CU_add_suite("control_server", NULL, NULL);
    CU_add_test(s, "requests", requests);
    CU_add_test(s, "later", later);
    CU_add_test(s, "garbage", garbage);
    CU_add_test(s, "too_much", too_much);
    CU_add_test(s, "names", names);
    CU_add_test(s, "client_side", client_side);
    CU_basic_run_tests();
    unsigned failed = CU_get_number_of_failures();
    CU_cleanup_registry();
    return failed != 0;
}
