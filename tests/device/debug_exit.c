/* debug_exit: the status QEMU's isa-debug-exit gives, state. */
#include "vmm/devices/debug_exit.h"

#include "support_board.h"

static void test_exit(void)
{
    struct test_board t;
    struct fvm_device *dev;

    board_up(&t, 1);
    CU_ASSERT_EQUAL_FATAL(fvm_debug_exit_create(&t.board, &dev), 0);
    CU_ASSERT_EQUAL(t.debug_exits, 0);
    board_out(&t, 0xf4, 4, 0x10);
    CU_ASSERT_EQUAL(t.debug_exits, 1);
    CU_ASSERT_EQUAL(t.debug_code, 33);
    board_out(&t, 0xf4, 1, 0);
    CU_ASSERT_EQUAL(t.debug_code, 1);
    dev->ops->destroy(dev);
    board_down(&t);
}

static void test_state(void)
{
    struct test_board t, other;
    struct fvm_device *dev, *fresh;

    board_up(&t, 1);
    board_up(&other, 1);
    CU_ASSERT_EQUAL_FATAL(fvm_debug_exit_create(&t.board, &dev), 0);
    CU_ASSERT_EQUAL_FATAL(fvm_debug_exit_create(&other.board, &fresh), 0);
    board_out(&t, 0xf4, 4, 77);
    board_roundtrip(dev, fresh);
    CU_ASSERT_EQUAL(other.debug_exits, 0); /* a restore is no exit */
    board_hostile(&other, dev, fresh, 5000, NULL);
    fresh->ops->destroy(fresh);
    dev->ops->destroy(dev);
    board_down(&other);
    board_down(&t);
}

int main(void)
{
    static const struct board_test tests[] = {{"exit", test_exit}, {"state", test_state}};

    return board_main("device/debug_exit", tests, FVM_ARRAY_SIZE(tests));
}
