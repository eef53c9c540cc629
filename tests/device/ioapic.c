/* ioapic: edge and level delivery, masks, Remote IRR and EOI, registers, state. 82093AA. */
#include "vmm/devices/ioapic.h"

#include "support_board.h"

static struct test_board t;
static struct fvm_device *dev;

static void up(void)
{
    board_up(&t, 1);
    CU_ASSERT_EQUAL_FATAL(fvm_ioapic_create(&t.board, &dev), 0);
}

static void down(void)
{
    dev->ops->destroy(dev);
    board_down(&t);
}

static void w(unsigned reg, uint32_t value)
{
    board_mmio_write(&t, FVM_IOAPIC_BASE, 4, reg);
    board_mmio_write(&t, FVM_IOAPIC_BASE + 0x10, 4, value);
}

static uint32_t r(unsigned reg)
{
    board_mmio_write(&t, FVM_IOAPIC_BASE, 4, reg);
    return (uint32_t)board_mmio_read(&t, FVM_IOAPIC_BASE + 0x10, 4);
}

static void test_registers(void)
{
    up();
    CU_ASSERT_EQUAL(r(1), 0x170020);
    CU_ASSERT_EQUAL(r(0x10), 0x10000);
    CU_ASSERT_EQUAL(r(0x10 + 2 * 23), 0x10000);
    w(0, 0xff000000);
    CU_ASSERT_EQUAL(r(0), 0x0f000000);
    w(0x12, 0xffffffff);
    CU_ASSERT_EQUAL(r(0x12), 0x1afff); /* delivery status and Remote IRR are read only */
    w(0x13, 0xffffffff);
    CU_ASSERT_EQUAL(r(0x13), 0xff000000);
    CU_ASSERT_EQUAL(r(0x40), 0xffffffff);
    down();
}

static void test_edge(void)
{
    up();
    fvm_irq_set_line(t.board.irq, 4, true); /* masked: lost */
    fvm_irq_set_line(t.board.irq, 4, false);
    w(0x18, 0x34 | 0x800);
    w(0x19, 0x03000000);
    CU_ASSERT_EQUAL(t.msi_count, 0);
    fvm_irq_set_line(t.board.irq, 4, true);
    CU_ASSERT_EQUAL(t.msi_count, 1);
    CU_ASSERT_EQUAL(t.msi_addr, 0xfee03004);
    CU_ASSERT_EQUAL(t.msi_data, 0x34);
    fvm_irq_set_line(t.board.irq, 4, true);
    fvm_irq_set_line(t.board.irq, 4, false);
    CU_ASSERT_EQUAL(t.msi_count, 1);
    fvm_irq_set_line(t.board.irq, 4, true);
    CU_ASSERT_EQUAL(t.msi_count, 2);
    down();
}

static void test_level(void)
{
    up();
    w(0x10 + 20, 0x8040);
    fvm_irq_set_line(t.board.irq, 10, true);
    CU_ASSERT_EQUAL(t.msi_count, 1);
    CU_ASSERT_EQUAL(t.msi_data, 0xc040);
    CU_ASSERT_EQUAL(r(0x10 + 20), 0xc040); /* Remote IRR */
    fvm_irq_set_line(t.board.irq, 10, false);
    fvm_irq_set_line(t.board.irq, 10, true);
    CU_ASSERT_EQUAL(t.msi_count, 1); /* not before the EOI */
    fvm_irq_eoi(t.board.irq, 0x41);
    CU_ASSERT_EQUAL(t.msi_count, 1);
    fvm_irq_eoi(t.board.irq, 0x40);
    CU_ASSERT_EQUAL(t.msi_count, 2); /* still high: again */
    fvm_irq_set_line(t.board.irq, 10, false);
    board_mmio_write(&t, FVM_IOAPIC_BASE + 0x40, 4, 0x40); /* directed EOI */
    CU_ASSERT_EQUAL(t.msi_count, 2);
    CU_ASSERT_EQUAL(r(0x10 + 20), 0x8040);
    w(0x10 + 20, 0x18040);
    fvm_irq_set_line(t.board.irq, 10, true);
    CU_ASSERT_EQUAL(t.msi_count, 2);
    w(0x10 + 20, 0x8040); /* unmasking a high level line delivers */
    CU_ASSERT_EQUAL(t.msi_count, 3);
    w(0x10 + 20, 0x0040); /* to edge and back clears Remote IRR */
    w(0x10 + 20, 0x8040);
    CU_ASSERT_EQUAL(t.msi_count, 4);
    down();
}

static void poke(struct test_board *b, struct fvm_device *victim)
{
    (void)victim;
    fvm_irq_set_line(b->board.irq, 4, true);
    fvm_irq_set_line(b->board.irq, 4, false);
    fvm_irq_eoi(b->board.irq, 0x40);
    for (unsigned reg = 0; reg < 0x40; reg++) {
        board_mmio_write(b, FVM_IOAPIC_BASE, 4, reg);
        (void)board_mmio_read(b, FVM_IOAPIC_BASE + 0x10, 4);
    }
}

static void test_state(void)
{
    struct fvm_device *fresh;
    struct test_board other;

    up();
    w(0x10 + 20, 0x8040);
    fvm_irq_set_line(t.board.irq, 10, true);
    w(0x18, 0x34);
    fvm_irq_set_line(t.board.irq, 4, true);
    board_up(&other, 1);
    CU_ASSERT_EQUAL_FATAL(fvm_ioapic_create(&other.board, &fresh), 0);
    board_roundtrip(dev, fresh);
    fvm_irq_set_line(other.board.irq, 10, true); /* chips drive their lines again: no second interrupt */
    fvm_irq_set_line(other.board.irq, 4, true);
    CU_ASSERT_EQUAL(other.msi_count, 0);
    fvm_irq_eoi(other.board.irq, 0x40);
    CU_ASSERT_EQUAL(other.msi_count, 1);
    board_hostile(&other, dev, fresh, 20000, poke);
    fresh->ops->destroy(fresh);
    board_down(&other);
    down();
}

int main(void)
{
    static const struct board_test tests[] = {
        {"registers", test_registers}, {"edge", test_edge}, {"level", test_level}, {"state", test_state},
    };

    return board_main("device/ioapic", tests, FVM_ARRAY_SIZE(tests));
}
