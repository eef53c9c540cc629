/* i8254: counts and OUT in modes 0, 2, 3, 4, latches, read-back, gate of counter 2, BCD, the timer interrupt, state. */
#include "vmm/devices/i8254.h"

#include "support_board.h"

enum { LINE = 2 };

static struct test_board t;
static struct fvm_device *dev;

static void up(void)
{
    board_up(&t, 1);
    CU_ASSERT_EQUAL_FATAL(fvm_i8254_create(&t.board, LINE, &dev), 0);
}

static void down(void)
{
    dev->ops->destroy(dev);
    board_down(&t);
}

static void program(unsigned counter, unsigned mode, unsigned count)
{
    board_out(&t, 0x43, 1, counter << 6 | 0x30 | mode << 1);
    board_out(&t, 0x40 + counter, 1, count & 0xff);
    board_out(&t, 0x40 + counter, 1, (count >> 8) & 0xff);
}

static unsigned latched(unsigned counter)
{
    unsigned low;

    board_out(&t, 0x43, 1, counter << 6);
    low = (unsigned)board_in(&t, 0x40 + counter, 1);
    return low | (unsigned)board_in(&t, 0x40 + counter, 1) << 8;
}

static unsigned status(unsigned counter)
{
    board_out(&t, 0x43, 1, 0xe0 | 2u << counter);
    return (unsigned)board_in(&t, 0x40 + counter, 1);
}

static void test_mode0(void)
{
    up();
    program(0, 0, 65000); /* 54 ms */
    CU_ASSERT_FALSE(t.level[LINE]);
    CU_ASSERT_EQUAL(status(0), 0x30);
    board_advance(&t, 20000000);
    CU_ASSERT(latched(0) > 10000 && latched(0) <= 41137);
    CU_ASSERT_EQUAL(t.rises[LINE], 0);
    board_advance(&t, 36000000);
    CU_ASSERT_EQUAL(t.rises[LINE], 1);
    CU_ASSERT_TRUE(t.level[LINE]);
    CU_ASSERT_EQUAL(status(0), 0xb0);
    board_advance(&t, 50000000);
    CU_ASSERT_EQUAL(t.rises[LINE], 1); /* once */
    program(0, 0, 100);
    CU_ASSERT_FALSE(t.level[LINE]);
    down();
}

static void test_periodic(void)
{
    for (unsigned mode = 2; mode <= 3; mode++) {
        unsigned before;

        up();
        program(0, mode, 11932);
        before = t.rises[LINE];
        for (unsigned i = 0; i < 50; i++)
            board_advance(&t, 4000000);
        CU_ASSERT(t.rises[LINE] - before >= 19 &&
                  t.rises[LINE] - before <= 30); /* 200 ms at 100 Hz, and what the loop took */
        CU_ASSERT(latched(0) >= 1 && latched(0) <= 11932);
        down();
    }
}

static void test_latch(void)
{
    unsigned first;

    up();
    program(2, 2, 0x8000);
    board_out(&t, 0x61, 1, 1);
    board_advance(&t, 1000000);
    board_out(&t, 0x43, 1, 0x80);
    first = (unsigned)board_in(&t, 0x42, 1);
    board_advance(&t, 5000000);
    first |= (unsigned)board_in(&t, 0x42, 1) << 8; /* of the latched moment */
    CU_ASSERT(first > 1000 && first < 0x8000 - 1000);
    board_out(&t, 0x43, 1, 0xc8); /* read back count and status of counter 2: status first */
    CU_ASSERT_EQUAL(board_in(&t, 0x42, 1) & 0x3f, 0x34);
    (void)board_in(&t, 0x42, 1);
    (void)board_in(&t, 0x42, 1);
    board_out(&t, 0x43, 1, 0x90); /* low byte only */
    board_out(&t, 0x42, 1, 0x55);
    CU_ASSERT_EQUAL(board_in(&t, 0x42, 1), 0x55);
    down();
}

static void test_gate(void)
{
    unsigned held;

    up();
    CU_ASSERT_EQUAL(board_in(&t, 0x61, 1) & 3, 0);
    program(2, 0, 65000);
    board_advance(&t, 80000000);
    CU_ASSERT_EQUAL(board_in(&t, 0x61, 1) & 0x20, 0); /* gate low: it does not count */
    CU_ASSERT_EQUAL(latched(2), 65000);
    board_out(&t, 0x61, 1, 1);
    board_advance(&t, 5000000);
    board_out(&t, 0x61, 1, 0);
    held = latched(2);
    board_advance(&t, 5000000);
    CU_ASSERT_EQUAL(latched(2), held);
    board_out(&t, 0x61, 1, 1);
    board_advance(&t, 50000000);
    CU_ASSERT_EQUAL(board_in(&t, 0x61, 1) & 0x21, 0x21); /* terminal count: what TSC calibration polls */
    board_out(&t, 0x61, 1, 2);
    CU_ASSERT_EQUAL(board_in(&t, 0x61, 1) & 3, 2);
    down();
}

static void test_refresh_bit(void)
{
    unsigned toggles = 0, last;

    up();
    last = board_in(&t, 0x61, 1) & 0x10;
    for (unsigned i = 0; i < 16; i++) {
        board_advance(&t, 15085);
        toggles += (board_in(&t, 0x61, 1) & 0x10) != last;
        last = board_in(&t, 0x61, 1) & 0x10;
    }
    CU_ASSERT(toggles > 0);
    down();
}

static void test_mode4_and_bcd(void)
{
    unsigned before;

    up();
    program(0, 4, 65000);
    before = t.rises[LINE];
    board_advance(&t, 20000000);
    CU_ASSERT_EQUAL(t.rises[LINE], before);
    board_advance(&t, 36000000);
    CU_ASSERT_EQUAL(t.rises[LINE], before + 1);
    board_advance(&t, 100000000);
    CU_ASSERT_EQUAL(t.rises[LINE], before + 1);
    board_out(&t, 0x43, 1, 0xb1); /* counter 2, mode 0, BCD */
    board_out(&t, 0x42, 1, 0x34);
    board_out(&t, 0x42, 1, 0x12);
    CU_ASSERT_EQUAL(latched(2), 0x1234);
    down();
}

static void poke(struct test_board *b, struct fvm_device *victim)
{
    (void)victim;
    for (unsigned i = 0; i < 3; i++) {
        (void)board_in(b, 0x40 + i, 1);
        board_out(b, 0x43, 1, 0xc0 | 2u << i);
        (void)board_in(b, 0x40 + i, 1);
    }
    (void)board_in(b, 0x61, 1);
    board_out(b, 0x61, 1, board_in(b, 0x61, 1) ^ 1);
    board_advance(b, 100);
}

static void test_state(void)
{
    struct fvm_device *fresh;
    struct test_board other;

    up();
    program(0, 2, 11932);
    program(2, 0, 1000);
    board_out(&t, 0x43, 1, 0x00);
    (void)board_in(&t, 0x40, 1);
    board_advance(&t, 3000000);
    board_up(&other, 1);
    CU_ASSERT_EQUAL_FATAL(fvm_i8254_create(&other.board, LINE, &fresh), 0);
    board_roundtrip(dev, fresh);
    unsigned before = other.rises[LINE];
    board_advance(&other, 40000000);
    CU_ASSERT(other.rises[LINE] - before >= 3); /* it goes on ticking */
    board_hostile(&other, dev, fresh, 5000, poke);
    fresh->ops->destroy(fresh);
    board_down(&other);
    down();
}

int main(void)
{
    static const struct board_test tests[] = {
        {"mode 0", test_mode0},
        {"modes 2 and 3", test_periodic},
        {"latches and read-back", test_latch},
        {"gate and OUT of counter 2", test_gate},
        {"refresh bit", test_refresh_bit},
        {"mode 4, BCD", test_mode4_and_bcd},
        {"state", test_state},
    };

    return board_main("device/i8254", tests, FVM_ARRAY_SIZE(tests));
}
