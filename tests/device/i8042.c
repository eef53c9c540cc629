/* i8042: self test, configuration byte, output port, the ways to reset, state. */
#include "vmm/devices/i8042.h"

#include "support_board.h"

static struct test_board t;
static struct fvm_device *dev;

static void up(void)
{
    board_up(&t, 1);
    CU_ASSERT_EQUAL_FATAL(fvm_i8042_create(&t.board, &dev), 0);
}

static void down(void)
{
    dev->ops->destroy(dev);
    board_down(&t);
}

static unsigned answer(unsigned command)
{
    board_out(&t, 0x64, 1, command);
    CU_ASSERT_EQUAL(board_in(&t, 0x64, 1) & 1, 1);
    return (unsigned)board_in(&t, 0x60, 1);
}

static void test_commands(void)
{
    up();
    CU_ASSERT_EQUAL(board_in(&t, 0x64, 1) & 3, 0); /* nothing to read, ready to take */
    CU_ASSERT_EQUAL(answer(0xaa), 0x55);
    CU_ASSERT_EQUAL(board_in(&t, 0x64, 1) & 1, 0);
    CU_ASSERT_EQUAL(answer(0xab), 0);
    board_out(&t, 0x64, 1, 0x60);
    board_out(&t, 0x60, 1, 0x47);
    CU_ASSERT_EQUAL(answer(0x20), 0x47);
    board_out(&t, 0x64, 1, 0xad);
    CU_ASSERT_EQUAL(answer(0x20), 0x57);
    CU_ASSERT_EQUAL(answer(0xd0), 3);
    board_out(&t, 0x60, 1, 0xff); /* to a keyboard that is not there: no answer */
    CU_ASSERT_EQUAL(board_in(&t, 0x64, 1) & 1, 0);
    CU_ASSERT_EQUAL(t.resets, 0);
    down();
}

static void test_reset(void)
{
    up();
    board_out(&t, 0x64, 1, 0xff); /* pulse nothing */
    CU_ASSERT_EQUAL(t.resets, 0);
    board_out(&t, 0x64, 1, 0xfe);
    CU_ASSERT_EQUAL(t.resets, 1);
    board_out(&t, 0x64, 1, 0xd1);
    board_out(&t, 0x60, 1, 0x02);
    CU_ASSERT_EQUAL(t.resets, 2);
    board_out(&t, 0x92, 1, 2);
    CU_ASSERT_EQUAL(t.resets, 2);
    CU_ASSERT_EQUAL(board_in(&t, 0x92, 1), 2);
    board_out(&t, 0x92, 1, 3);
    CU_ASSERT_EQUAL(t.resets, 3);
    down();
}

static void poke(struct test_board *b, struct fvm_device *victim)
{
    (void)victim;
    board_out(b, 0x60, 1, 0x5b);
    (void)board_in(b, 0x60, 1);
    (void)board_in(b, 0x64, 1);
    board_out(b, 0x64, 1, 0x20);
}

static void test_state(void)
{
    struct test_board other;
    struct fvm_device *fresh;

    up();
    board_out(&t, 0x64, 1, 0xaa);
    board_out(&t, 0x64, 1, 0x60);
    board_up(&other, 1);
    CU_ASSERT_EQUAL_FATAL(fvm_i8042_create(&other.board, &fresh), 0);
    board_roundtrip(dev, fresh);
    CU_ASSERT_EQUAL(board_in(&other, 0x60, 1), 0x55);
    board_hostile(&other, dev, fresh, 20000, poke);
    fresh->ops->destroy(fresh);
    board_down(&other);
    down();
}

int main(void)
{
    static const struct board_test tests[] = {
        {"commands", test_commands}, {"reset", test_reset}, {"state", test_state}};

    return board_main("device/i8042", tests, FVM_ARRAY_SIZE(tests));
}
