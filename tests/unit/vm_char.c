/* vm_char.c - the outside end of a serial port: files, a listening socket with its replay, input that waits. */
#include <CUnit/Basic.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "vmm/vm_char.h"
#include "vmm/vm_unix.h"

struct chip { /* takes `room` bytes of input */
    struct fvm_loop *loop;
    struct fvm_char *ch;
    struct fvm_serial_backend back;
    char path[64], spec[80];
    size_t room, got_len, ready;
    uint8_t got[20000];
};

static size_t on_input(void *ctx, const uint8_t *bytes, size_t len)
{
    struct chip *c = ctx;
    size_t n = FVM_MIN(len, c->room);
    memcpy(c->got + c->got_len, bytes, n);
    c->got_len += n;
    c->room -= n;
    return n;
}

static void on_ready(void *ctx)
{
    ((struct chip *)ctx)->ready++;
}

static void begin(struct chip *c, const char *kind)
{
    struct fvm_err err = {0};
    memset(c, 0, sizeof(*c));
    snprintf(c->path, sizeof(c->path), "/tmp/fvm-char-test.%d", (int)getpid());
    snprintf(c->spec, sizeof(c->spec), "%s:%s", kind, c->path);
    CU_ASSERT_EQUAL_FATAL(fvm_loop_create(&c->loop), 0);
    CU_ASSERT_EQUAL_FATAL(fvm_char_open(c->loop, c->spec, NULL, NULL, &c->ch, &err), 0);
    fvm_char_attach(c->ch, &(struct fvm_char_hooks){.input = on_input, .output_ready = on_ready, .ctx = c});
    c->back = fvm_char_backend(c->ch);
}

static void end(struct chip *c)
{
    fvm_char_close(&c->ch);
    fvm_loop_destroy(&c->loop);
}

static void settle(struct chip *c)
{
    while (fvm_loop_turn(c->loop, 10000000) > 0)
        ;
}

static size_t out(struct chip *c, const char *text)
{
    return c->back.write(c->back.ctx, (const uint8_t *)text, strlen(text));
}

static int join(struct chip *c)
{
    int fd = -1;
    CU_ASSERT_EQUAL_FATAL(fvm_unix_connect(c->path, &fd, NULL), 0);
    settle(c);
    return fd;
}

static const char *hear(int fd, char *buf, size_t size)
{
    ssize_t n = recv(fd, buf, size - 1, MSG_DONTWAIT);
    buf[n > 0 ? n : 0] = 0;
    return buf;
}

static void specs(void)
{
    static const char *const good[] = {"", "none", "stdio", "file:/x", "unix:/x"};
    static const char *const bad[] = {"file:", "unix:", "tcp:1", "x", "None",
                                      "unix:/a23456789b123456789c123456789d123456789e123456789f123456789g123456789h123456789"
                                      "i123456789j123456789k123456789"};
    for (size_t i = 0; i < FVM_ARRAY_SIZE(good); i++)
        CU_ASSERT_EQUAL(fvm_char_check_spec(good[i], NULL), 0);
    for (size_t i = 0; i < FVM_ARRAY_SIZE(bad); i++)
        CU_ASSERT_EQUAL(fvm_char_check_spec(bad[i], NULL), FVM_EINVAL);
}

static void file(void)
{
    struct chip c;
    char buf[64] = "";
    begin(&c, "file");
    CU_ASSERT_EQUAL(out(&c, "one "), 4);
    CU_ASSERT_EQUAL(out(&c, "two"), 3);
    FILE *f = fopen(c.path, "r");
    CU_ASSERT_PTR_NOT_NULL(fgets(buf, sizeof(buf), f));
    fclose(f);
    CU_ASSERT_STRING_EQUAL(buf, "one two");
    end(&c);
    unlink(c.path);
}

static void replay(void)
{
    struct chip c;
    char buf[200];
    begin(&c, "unix");
    CU_ASSERT_EQUAL(out(&c, "early "), 6);
    int a = join(&c);
    CU_ASSERT_STRING_EQUAL(hear(a, buf, sizeof(buf)), "early ");
    CU_ASSERT_EQUAL(out(&c, "now"), 3);
    CU_ASSERT_STRING_EQUAL(hear(a, buf, sizeof(buf)), "now");
    int b = join(&c); /* one at a time */
    CU_ASSERT_PTR_NOT_NULL(strstr(hear(b, buf, sizeof(buf)), "another client"));
    CU_ASSERT_EQUAL(recv(b, buf, 1, 0), 0);
    close(b);
    close(a);
    settle(&c);
    CU_ASSERT_EQUAL(out(&c, "between"), 7);
    a = join(&c);
    CU_ASSERT_STRING_EQUAL(hear(a, buf, sizeof(buf)), "between"); /* and not what the first has had */
    close(a);
    end(&c);
    struct stat st;
    CU_ASSERT(stat(c.path, &st) < 0 && errno == ENOENT);
}

static void ring_is_bounded(void)
{
    struct chip c;
    char line[101];
    begin(&c, "unix");
    for (int i = 0; i < 2000; i++) { /* 200000 bytes into 65536 */
        snprintf(line, sizeof(line), "%099d\n", i);
        CU_ASSERT_EQUAL(out(&c, line), 100);
    }
    int a = join(&c);
    char *all = malloc(100000);
    size_t len = 0;
    for (int i = 0; i < 100; i++) {
        settle(&c);
        ssize_t n = recv(a, all + len, 100000 - len, MSG_DONTWAIT);
        len += n > 0 ? (size_t)n : 0;
    }
    CU_ASSERT_EQUAL(len, 65536);
    CU_ASSERT_EQUAL(memcmp(all + len - 5, "1999\n", 5), 0); /* the newest is what is kept */
    free(all);
    close(a);
    end(&c);
}

static void back_pressure(void)
{
    struct chip c;
    uint8_t block[1000];
    begin(&c, "unix");
    int a = join(&c);
    memset(block, 'x', sizeof(block));
    size_t sent = 0;
    for (int i = 0; i < 10000; i++) { /* the client doesn't read */
        size_t n = c.back.write(c.back.ctx, block, sizeof(block));
        sent += n;
        if (n < sizeof(block))
            break;
    }
    CU_ASSERT(sent < 10000000);
    settle(&c);
    CU_ASSERT_EQUAL(c.ready, 0);
    size_t got = 0;
    uint8_t buf[65536];
    for (ssize_t n; (n = recv(a, buf, sizeof(buf), MSG_DONTWAIT)) > 0;) {
        got += (size_t)n;
        settle(&c);
    }
    CU_ASSERT_EQUAL(got, sent); /* nothing lost, nothing twice */
    CU_ASSERT(c.ready > 0);
    close(a);
    end(&c);
}

static void input(void)
{
    struct chip c;
    begin(&c, "unix");
    int a = join(&c);
    c.room = 3;
    CU_ASSERT_EQUAL(send(a, "hello world", 11, 0), 11);
    settle(&c);
    CU_ASSERT_EQUAL(c.got_len, 0); /* held: the machine does not run yet */
    fvm_char_hold(c.ch, false);
    settle(&c);
    CU_ASSERT_EQUAL(c.got_len, 3);
    c.room = 100000;
    c.back.input_room(c.back.ctx);
    settle(&c);
    CU_ASSERT_EQUAL(c.got_len, 11);
    CU_ASSERT_EQUAL(memcmp(c.got, "hello world", 11), 0);
    c.room = 0; /* a chip that takes nothing: the sender waits, no byte is dropped */
    uint8_t block[1000];
    size_t sent = 0;
    for (int i = 0; i < 15; i++) {
        memset(block, 'a' + i, sizeof(block));
        ssize_t n = send(a, block, sizeof(block), MSG_DONTWAIT);
        sent += n > 0 ? (size_t)n : 0;
        settle(&c);
    }
    CU_ASSERT_EQUAL(sent, 15000);
    CU_ASSERT_EQUAL(c.got_len, 11);
    c.room = 100000;
    for (int i = 0; i < 10; i++) {
        c.back.input_room(c.back.ctx);
        settle(&c);
    }
    CU_ASSERT_EQUAL(c.got_len, 15011);
    bool ordered = true;
    for (size_t i = 0; i < 15000; i++)
        ordered &= c.got[11 + i] == 'a' + i / 1000;
    CU_ASSERT_TRUE(ordered);
    close(a);
    settle(&c);
    a = join(&c); /* gone and back */
    CU_ASSERT_EQUAL(out(&c, "again"), 5);
    char buf[16];
    CU_ASSERT_STRING_EQUAL(hear(a, buf, sizeof(buf)), "again");
    close(a);
    end(&c);
}

int main(void)
{
    CU_initialize_registry();
    CU_pSuite s = CU_add_suite("vm_char", NULL, NULL);
    CU_add_test(s, "specs", specs);
    CU_add_test(s, "file", file);
    CU_add_test(s, "replay", replay);
    CU_add_test(s, "ring_is_bounded", ring_is_bounded);
    CU_add_test(s, "back_pressure", back_pressure);
    CU_add_test(s, "input", input);
    CU_basic_run_tests();
    unsigned failed = CU_get_number_of_failures();
    CU_cleanup_registry();
    return failed != 0;
}
