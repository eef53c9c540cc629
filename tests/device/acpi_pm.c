/* acpi_pm: power off, reset register, timer, SCI, power button, state. */
#include "vmm/devices/acpi_pm.h"

#include "support_board.h"

enum {
    STATUS = 0x600,
    ENABLE = 0x602,
    CONTROL = 0x604,
    TIMER = 0x608,
    GPE_STATUS = 0x620,
    GPE_ENABLE = 0x622,
    LINE = 9
};

static struct test_board t;
static struct fvm_device *dev, *bridge;

static void up(void)
{
    board_up(&t, 1);
    CU_ASSERT_EQUAL_FATAL(fvm_pci_host_create(&t.board, &bridge), 0);
    CU_ASSERT_EQUAL_FATAL(fvm_acpi_pm_create(&t.board, LINE, fvm_pci_host_of(bridge), &dev), 0);
}

static void down(void)
{
    dev->ops->destroy(dev);
    bridge->ops->destroy(bridge);
    board_down(&t);
}

static void test_power_off(void)
{
    up();
    CU_ASSERT_EQUAL(board_in(&t, CONTROL, 2), 1); /* SCI_EN: always in ACPI mode */
    board_out(&t, CONTROL, 2, 0x1401);            /* type only */
    CU_ASSERT_EQUAL(t.power_offs, 0);
    board_out(&t, CONTROL, 2, 0x2c01); /* S3: not supported */
    CU_ASSERT_EQUAL(t.power_offs, 0);
    board_out(&t, CONTROL, 2, 0x3401);
    CU_ASSERT_EQUAL(t.power_offs, 1);
    CU_ASSERT_EQUAL(board_in(&t, CONTROL, 2), 0x1401);
    down();
}

static void test_reset(void)
{
    up();
    board_out(&t, 0xcf9, 1, 2);
    CU_ASSERT_EQUAL(t.resets, 0);
    CU_ASSERT_EQUAL(board_in(&t, 0xcf9, 1), 2);
    board_out(&t, 0xcf9, 1, 6);
    CU_ASSERT_EQUAL(t.resets, 1);
    board_out(&t, 0xcf8, 4, 0x80000000); /* a dword at cf8 does not reach it */
    CU_ASSERT_EQUAL(t.resets, 1);
    CU_ASSERT_EQUAL(board_in(&t, 0xcfc, 4), 0x12378086);
    down();
}

static void test_timer(void)
{
    uint32_t a, b;

    up();
    a = (uint32_t)board_in(&t, TIMER, 4);
    board_advance(&t, 1000000000);
    b = (uint32_t)board_in(&t, TIMER, 4);
    CU_ASSERT(((b - a) & 0xffffff) >= 3579545 && ((b - a) & 0xffffff) < 3579545 + 2000000);
    CU_ASSERT_EQUAL(b >> 24, 0);
    board_out(&t, STATUS, 2, 1);
    CU_ASSERT_EQUAL(board_in(&t, STATUS, 2), 0);
    board_advance(&t, 2400000000ull); /* bit 23 changes every 2.34 s */
    CU_ASSERT_EQUAL(board_in(&t, STATUS, 2), 1);
    CU_ASSERT_FALSE(t.level[LINE]);
    board_out(&t, ENABLE, 2, 1);
    CU_ASSERT_TRUE(t.level[LINE]);
    board_out(&t, STATUS, 2, 1);
    CU_ASSERT_FALSE(t.level[LINE]);
    board_advance(&t, 2400000000ull);
    CU_ASSERT_TRUE(t.level[LINE]);
    down();
}

static void test_power_button(void)
{
    up();
    fvm_acpi_pm_power_button(dev);
    CU_ASSERT_FALSE(t.level[LINE]);
    board_out(&t, ENABLE + 1, 1, 1); /* byte access to the enable register's high half */
    CU_ASSERT_TRUE(t.level[LINE]);
    CU_ASSERT_EQUAL(board_in(&t, STATUS, 4), 0x01000100);
    board_out(&t, STATUS + 1, 1, 1);
    CU_ASSERT_FALSE(t.level[LINE]);
    board_out(&t, GPE_ENABLE, 2, 0xffff);
    CU_ASSERT_EQUAL(board_in(&t, GPE_STATUS, 4), 0xffff0000);
    CU_ASSERT_FALSE(t.level[LINE]);
    down();
}

static void poke(struct test_board *b, struct fvm_device *victim)
{
    fvm_acpi_pm_power_button(victim);
    for (unsigned p = 0x600; p < 0x640; p += 4)
        (void)board_in(b, p, 4);
    (void)board_in(b, 0xcf9, 1);
    board_advance(b, 1000);
}

static void test_state(void)
{
    struct test_board other;
    struct fvm_device *fresh, *other_bridge;

    up();
    board_out(&t, ENABLE, 2, 0x101);
    fvm_acpi_pm_power_button(dev);
    board_up(&other, 1);
    CU_ASSERT_EQUAL_FATAL(fvm_pci_host_create(&other.board, &other_bridge), 0);
    CU_ASSERT_EQUAL_FATAL(fvm_acpi_pm_create(&other.board, LINE, fvm_pci_host_of(other_bridge), &fresh), 0);
    board_roundtrip(dev, fresh);
    CU_ASSERT_TRUE(other.level[LINE]);
    board_hostile(&other, dev, fresh, 5000, poke);
    fresh->ops->destroy(fresh);
    other_bridge->ops->destroy(other_bridge);
    board_down(&other);
    down();
}

int main(void)
{
    static const struct board_test tests[] = {
        {"power off", test_power_off}, {"reset register", test_reset}, {"timer", test_timer},
        {"power button and SCI", test_power_button}, {"state", test_state},
    };

    return board_main("device/acpi_pm", tests, FVM_ARRAY_SIZE(tests));
}
