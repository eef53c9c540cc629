/* ns16550a: output and back pressure, input without loss, interrupts, FIFO trigger, loopback, state. */
#include "vmm/devices/ns16550a.h"

#include <string.h>

#include "support_board.h"

enum {
    BASE = 0x3f8,
    LINE = 4,
    DATA = BASE,
    IER = BASE + 1,
    IIR = BASE + 2,
    LCR = BASE + 3,
    MCR = BASE + 4,
    LSR = BASE + 5,
    MSR = BASE + 6,
    SCR = BASE + 7
};

static struct test_board t;
static struct fvm_device *dev;
static uint8_t out[4096];
static size_t out_len, out_room;
static unsigned room_calls;

static size_t take(void *ctx, const uint8_t *bytes, size_t len)
{
    (void)ctx;
    len = FVM_MIN(len, out_room);
    memcpy(out + out_len, bytes, len);
    out_len += len;
    out_room -= len;
    return len;
}

static void room(void *ctx)
{
    (void)ctx;
    room_calls++;
}

static const struct fvm_serial_backend backend = {.write = take, .input_room = room};

static void up(void)
{
    board_up(&t, 1);
    out_len = room_calls = 0;
    out_room = sizeof(out);
    CU_ASSERT_EQUAL_FATAL(fvm_ns16550a_create(&t.board, BASE, LINE, "ns16550a", &backend, &dev), 0);
}

static void down(void)
{
    dev->ops->destroy(dev);
    board_down(&t);
}

static unsigned r(unsigned port)
{
    return (unsigned)board_in(&t, port, 1);
}

static void w(unsigned port, unsigned value)
{
    board_out(&t, port, 1, value);
}

static size_t input(const char *s)
{
    return fvm_ns16550a_input(dev, (const uint8_t *)s, strlen(s));
}

static void test_output(void)
{
    up();
    CU_ASSERT_EQUAL(r(LSR), 0x60);
    w(DATA, 'h');
    w(DATA, 'i');
    CU_ASSERT(out_len == 2 && !memcmp(out, "hi", 2));
    out_room = 0;
    w(DATA, '!');
    CU_ASSERT_EQUAL(r(LSR), 0); /* busy while the outside is */
    out_room = 10;
    fvm_ns16550a_output_ready(dev);
    CU_ASSERT_EQUAL(r(LSR), 0x60);
    CU_ASSERT(out_len == 3 && out[2] == '!');
    w(LCR, 0x83); /* divisor latch */
    w(DATA, 0x34);
    w(IER, 0x12);
    CU_ASSERT_EQUAL(r(DATA), 0x34);
    CU_ASSERT_EQUAL(r(IER), 0x12);
    w(LCR, 3);
    CU_ASSERT_EQUAL(r(IER), 0);
    CU_ASSERT_EQUAL(out_len, 3);
    w(SCR, 0xa5);
    CU_ASSERT_EQUAL(r(SCR), 0xa5);
    down();
}

static void test_input_is_never_dropped(void)
{
    char text[200], got[200];
    size_t given = 0, n = 0;

    up();
    w(IIR, 0x07);
    for (unsigned i = 0; i < sizeof(text); i++)
        text[i] = (char)('a' + i % 26);
    while (n < sizeof(text)) {
        given += fvm_ns16550a_input(dev, (const uint8_t *)text + given, sizeof(text) - given);
        for (unsigned k = 0; k < 5 && (r(LSR) & 1); k++)
            got[n++] = (char)r(DATA);
    }
    CU_ASSERT(!memcmp(text, got, sizeof(text)));
    CU_ASSERT(room_calls > 0);
    CU_ASSERT_EQUAL(r(LSR) & 2, 0); /* no overrun */
    w(IIR, 0); /* FIFO off: one at a time */
    CU_ASSERT_EQUAL(input("xy"), 1);
    CU_ASSERT_EQUAL(r(DATA), 'x');
    down();
}

static void test_interrupts(void)
{
    up();
    w(IIR, 0x81); /* FIFO, trigger 8 */
    CU_ASSERT_EQUAL(r(IIR), 0xc1);
    w(MCR, 8);
    w(IER, 2);
    CU_ASSERT_TRUE(t.level[LINE]); /* empty: at once */
    CU_ASSERT_EQUAL(r(IIR), 0xc2);
    CU_ASSERT_FALSE(t.level[LINE]); /* reading IIR took it */
    w(DATA, 'x');
    CU_ASSERT_TRUE(t.level[LINE]);
    w(IER, 1);
    CU_ASSERT_FALSE(t.level[LINE]);
    (void)input("abc");
    CU_ASSERT_TRUE(t.level[LINE]);
    CU_ASSERT_EQUAL(r(IIR), 0xcc); /* below the trigger: character timeout */
    (void)input("defgh");
    CU_ASSERT_EQUAL(r(IIR), 0xc4);
    w(MCR, 0); /* OUT2 gates the line */
    CU_ASSERT_FALSE(t.level[LINE]);
    w(MCR, 8);
    for (unsigned i = 0; i < 8; i++)
        (void)r(DATA);
    CU_ASSERT_FALSE(t.level[LINE]);
    CU_ASSERT_EQUAL(r(IIR), 0xc1);
    down();
}

static void test_loopback(void)
{
    up();
    CU_ASSERT_EQUAL(r(MSR) & 0xf0, 0xb0);
    w(MCR, 0x1a); /* loop, RTS, OUT2: how drivers detect the chip */
    CU_ASSERT_EQUAL(r(MSR) & 0xf0, 0x90);
    w(DATA, 0x42);
    CU_ASSERT_EQUAL(out_len, 0);
    CU_ASSERT_EQUAL(r(LSR) & 1, 1);
    CU_ASSERT_EQUAL(input("q"), 0); /* the line is disconnected */
    w(DATA, 0x43);
    CU_ASSERT_EQUAL(r(LSR) & 2, 2);
    CU_ASSERT_EQUAL(r(LSR) & 2, 0);
    CU_ASSERT_EQUAL(r(DATA), 0x43);
    w(MCR, 0x10);
    CU_ASSERT_EQUAL(r(MSR), 0x09); /* CTS and DCD went, DSR stays away */
    CU_ASSERT_EQUAL(r(MSR), 0);
    w(IER, 8);
    w(MCR, 0x0b);
    CU_ASSERT_TRUE(t.level[LINE]);
    CU_ASSERT_EQUAL(r(IIR) & 0x0f, 0);
    down();
}

static void poke(struct test_board *b, struct fvm_device *victim)
{
    (void)fvm_ns16550a_input(victim, (const uint8_t *)"0123456789abcdefghijk", 20);
    for (unsigned p = BASE; p < BASE + 8; p++)
        (void)board_in(b, p, 1);
    board_out(b, DATA, 1, 'z');
    out_len = 0;
    out_room = sizeof(out);
    fvm_ns16550a_output_ready(victim);
}

static void test_state(void)
{
    struct fvm_device *fresh;
    struct test_board other;

    up();
    w(IIR, 0x41);
    w(IER, 3);
    w(MCR, 8);
    (void)input("hello");
    out_room = 0;
    w(DATA, 'o');
    board_up(&other, 1);
    CU_ASSERT_EQUAL_FATAL(fvm_ns16550a_create(&other.board, BASE, LINE, "ns16550a", &backend, &fresh), 0);
    board_roundtrip(dev, fresh);
    CU_ASSERT_TRUE(other.level[LINE]);
    CU_ASSERT_EQUAL(board_in(&other, DATA, 1), 'h');
    out_room = 100;
    fresh->ops->resume(fresh);
    CU_ASSERT(out_len == 1 && out[0] == 'o');
    board_hostile(&other, dev, fresh, 20000, poke);
    fresh->ops->destroy(fresh);
    board_down(&other);
    down();
}

int main(void)
{
    static const struct board_test tests[] = {
        {"output", test_output},         {"input is never dropped", test_input_is_never_dropped},
        {"interrupts", test_interrupts}, {"loopback", test_loopback},
        {"state", test_state},
    };

    return board_main("device/ns16550a", tests, FVM_ARRAY_SIZE(tests));
}
