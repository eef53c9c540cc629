/* i8259: initialization, priorities, cascade, EOI kinds, spurious, level inputs, poll, state. */
#include "vmm/devices/i8259.h"

#include "support_board.h"

static struct test_board t;
static struct fvm_device *dev;
static bool intr;

static void on_output(void *ctx, bool level)
{
    (void)ctx;
    intr = level;
}

static void init_pair(unsigned icw4)
{
    static const uint16_t port[2] = {0x20, 0xa0};

    for (unsigned i = 0; i < 2; i++) {
        board_out(&t, port[i], 1, 0x11);
        board_out(&t, port[i] + 1, 1, 0x30 + 8 * i);
        board_out(&t, port[i] + 1, 1, i ? 2 : 4);
        board_out(&t, port[i] + 1, 1, icw4);
    }
}

static void up(void)
{
    board_up(&t, 1);
    intr = false;
    CU_ASSERT_EQUAL_FATAL(fvm_i8259_create(&t.board, on_output, NULL, &dev), 0);
    init_pair(1);
}

static void down(void)
{
    dev->ops->destroy(dev);
    board_down(&t);
}

static void pulse(unsigned line)
{
    fvm_irq_set_line(t.board.irq, line, true);
    fvm_irq_set_line(t.board.irq, line, false);
}

static int ack(void)
{
    return fvm_i8259_intack(dev);
}

static void test_basic(void)
{
    up();
    CU_ASSERT_FALSE(intr);
    pulse(2); /* board line 2 is IRQ 0 */
    CU_ASSERT_TRUE(intr);
    CU_ASSERT_EQUAL(ack(), 0x30);
    CU_ASSERT_FALSE(intr);
    pulse(4);
    CU_ASSERT_FALSE(intr); /* lower priority than what is in service */
    board_out(&t, 0x20, 1, 0x0b);
    CU_ASSERT_EQUAL(board_in(&t, 0x20, 1), 1); /* ISR */
    board_out(&t, 0x20, 1, 0x0a);
    CU_ASSERT_EQUAL(board_in(&t, 0x20, 1), 0x10); /* IRR */
    board_out(&t, 0x20, 1, 0x20);
    CU_ASSERT_TRUE(intr);
    CU_ASSERT_EQUAL(ack(), 0x34);
    board_out(&t, 0x20, 1, 0x64); /* specific EOI */
    board_out(&t, 0x21, 1, 0x10);
    CU_ASSERT_EQUAL(board_in(&t, 0x21, 1), 0x10);
    pulse(4);
    CU_ASSERT_FALSE(intr);
    board_out(&t, 0x21, 1, 0);
    CU_ASSERT_TRUE(intr); /* the edge was remembered */
    CU_ASSERT_EQUAL(ack(), 0x34);
    down();
}

static void test_cascade(void)
{
    up();
    pulse(8);
    pulse(12);
    CU_ASSERT_TRUE(intr);
    CU_ASSERT_EQUAL(ack(), 0x38);
    CU_ASSERT_FALSE(intr);
    board_out(&t, 0xa0, 1, 0x20);
    CU_ASSERT_FALSE(intr); /* the master still has input 2 in service */
    board_out(&t, 0x20, 1, 0x20);
    CU_ASSERT_EQUAL(ack(), 0x3c);
    down();
}

static void test_spurious(void)
{
    up();
    CU_ASSERT_EQUAL(ack(), 0x37);
    board_out(&t, 0x20, 1, 0x0b);
    CU_ASSERT_EQUAL(board_in(&t, 0x20, 1), 0);
    down();
}

static void test_level(void)
{
    up();
    CU_ASSERT_EQUAL(board_in(&t, 0x4d1, 1), 0x0e);
    board_out(&t, 0x4d0, 2, 0xffff);
    CU_ASSERT_EQUAL(board_in(&t, 0x4d0, 2), 0xdef8); /* 0, 1, 2, 8 and 13 are always edge */
    fvm_irq_set_line(t.board.irq, 10, true);
    CU_ASSERT_EQUAL(ack(), 0x3a);
    board_out(&t, 0xa0, 1, 0x20);
    board_out(&t, 0x20, 1, 0x20);
    CU_ASSERT_TRUE(intr); /* still high */
    fvm_irq_set_line(t.board.irq, 10, false);
    CU_ASSERT_FALSE(intr);
    down();
}

static void test_rotation_and_modes(void)
{
    up();
    board_out(&t, 0x20, 1, 0xc0 | 3); /* input 3 is lowest: 4 is highest */
    pulse(2);
    pulse(4);
    CU_ASSERT_EQUAL(ack(), 0x34);
    board_out(&t, 0x20, 1, 0xa0); /* rotate on EOI: 4 becomes lowest */
    CU_ASSERT_EQUAL(ack(), 0x30);
    board_out(&t, 0x20, 1, 0x20);
    init_pair(3); /* automatic EOI */
    pulse(4);
    CU_ASSERT_EQUAL(ack(), 0x34);
    pulse(5);
    CU_ASSERT_EQUAL(ack(), 0x35);
    init_pair(1);
    pulse(3);
    CU_ASSERT_EQUAL(ack(), 0x33);
    board_out(&t, 0x20, 1, 0x68); /* special mask mode */
    board_out(&t, 0x21, 1, 0x08);
    pulse(4);
    CU_ASSERT_TRUE(intr);
    pulse(7);
    board_out(&t, 0x20, 1, 0x0c); /* poll */
    CU_ASSERT_EQUAL(board_in(&t, 0x20, 1), 0x84);
    down();
}

static void poke(struct test_board *b, struct fvm_device *victim)
{
    fvm_irq_set_line(b->board.irq, 4, true);
    fvm_irq_set_line(b->board.irq, 4, false);
    (void)fvm_i8259_intack(victim);
    (void)board_in(b, 0x20, 1);
    (void)board_in(b, 0xa0, 1);
    board_out(b, 0x21, 1, 0x12);
    board_out(b, 0x20, 1, 0xa0);
}

static void test_state(void)
{
    struct fvm_device *fresh;
    struct test_board other;

    up();
    pulse(8);
    fvm_irq_set_line(t.board.irq, 11, true);
    (void)ack();
    board_out(&t, 0x20, 1, 0x11); /* in the middle of initialization */
    board_up(&other, 1);
    CU_ASSERT_EQUAL_FATAL(fvm_i8259_create(&other.board, on_output, NULL, &fresh), 0);
    board_roundtrip(dev, fresh);
    board_hostile(&other, dev, fresh, 20000, poke);
    fresh->ops->destroy(fresh);
    board_down(&other);
    down();
}

int main(void)
{
    static const struct board_test tests[] = {
        {"priorities and EOI", test_basic},
        {"cascade", test_cascade},
        {"spurious", test_spurious},
        {"level inputs", test_level},
        {"rotation, automatic EOI, special mask, poll", test_rotation_and_modes},
        {"state", test_state},
    };

    return board_main("device/i8259", tests, FVM_ARRAY_SIZE(tests));
}
