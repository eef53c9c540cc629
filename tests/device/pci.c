/* pci: configuration mechanism #1, BAR sizing and moving, capabilities, INTx, MSI-X, assignment, state. */
#include "vmm/devices/pci.h"

#include <stdlib.h>
#include <string.h>

#include "support_board.h"

static struct test_board t;
static struct fvm_device *bridge;
static struct fvm_pci_function fn;
static uint64_t last_write, last_offset;
static unsigned written;

static uint64_t bar_read(void *ctx, uint64_t offset, unsigned size)
{
    (void)ctx;
    (void)size;
    return 0x11223344 + offset;
}

static void bar_write(void *ctx, uint64_t offset, unsigned size, uint64_t value)
{
    (void)ctx;
    (void)size;
    last_offset = offset;
    last_write = value;
}

static void config_written(void *ctx, unsigned offset, unsigned size)
{
    (void)ctx;
    (void)offset;
    (void)size;
    written++;
}

static const struct fvm_bus_ops bar_ops = {.read = bar_read, .write = bar_write};
static const struct fvm_pci_function_ops fn_ops = {.config_written = config_written};
static const struct fvm_pci_id id = {.slot = 3,
                                     .vendor = 0x1af4,
                                     .device = 0x1042,
                                     .subsystem_vendor = 0x1af4,
                                     .subsystem = 2,
                                     .revision = 1,
                                     .class_code = 0x018000,
                                     .interrupt_pin = 1};

static void make(struct test_board *b, struct fvm_device **ret_bridge, struct fvm_pci_function *f)
{
    static const uint8_t body[6] = {8, 1, 2, 3, 4, 5};

    board_up(b, 1);
    CU_ASSERT_EQUAL_FATAL(fvm_pci_host_create(&b->board, ret_bridge), 0);
    CU_ASSERT_EQUAL_FATAL(fvm_pci_function_init(f, fvm_pci_host_of(*ret_bridge), &id, &fn_ops, f), 0);
    fvm_pci_bar_add(f, 0, FVM_PCI_BAR_IO, 0x18, &bar_ops, f, "io");
    fvm_pci_msix_add(f, 1, 3);
    fvm_pci_bar_add(f, 4, FVM_PCI_BAR_MEM64, 0x3000, &bar_ops, f, "mem");
    CU_ASSERT_EQUAL(fvm_pci_cap_add(f, 9, body, sizeof(body)), 0x4c);
    fvm_pci_function_reset(f);
}

static void up(void)
{
    make(&t, &bridge, &fn);
}

static void down(void)
{
    fvm_pci_function_fini(&fn);
    bridge->ops->destroy(bridge);
    board_down(&t);
}

static uint32_t cr(unsigned slot, unsigned reg, unsigned size)
{
    return board_pci_read(&t, slot << 3, reg, size);
}

static void cw(unsigned reg, unsigned size, uint32_t value)
{
    board_pci_write(&t, 3 << 3, reg, size, value);
}

static void test_config(void)
{
    struct fvm_pci_function second = {0};

    up();
    CU_ASSERT_EQUAL(cr(0, 0, 4), 0x12378086);
    CU_ASSERT_EQUAL(cr(3, 0, 4), 0x10421af4);
    CU_ASSERT_EQUAL(cr(3, 2, 2), 0x1042);
    CU_ASSERT_EQUAL(cr(3, 8, 4), 0x01800001);
    CU_ASSERT_EQUAL(cr(4, 0, 4), 0xffffffff);
    board_out(&t, 0xcf8, 4, 0x80010000u); /* bus 1 */
    CU_ASSERT_EQUAL(board_in(&t, 0xcfc, 4), 0xffffffff);
    board_out(&t, 0xcf8, 4, 0x1800); /* not enabled */
    CU_ASSERT_EQUAL(board_in(&t, 0xcfc, 4), 0xffffffff);
    board_out(&t, 0xcf8, 4, 0xffffffff);
    CU_ASSERT_EQUAL(board_in(&t, 0xcf8, 4), 0x80fffffc);
    cw(0, 4, 0);
    CU_ASSERT_EQUAL(cr(3, 0, 4), 0x10421af4); /* read only */
    CU_ASSERT(written > 0);
    CU_ASSERT_EQUAL(fvm_pci_function_init(&second, fvm_pci_host_of(bridge), &id, NULL, NULL), FVM_EEXIST);
    down();
}

static void test_bars(void)
{
    up();
    cw(0x10, 4, 0xffffffff);
    CU_ASSERT_EQUAL(cr(3, 0x10, 4), 0xffffffe1); /* 32 ports */
    cw(0x20, 4, 0xffffffff);
    cw(0x24, 4, 0xffffffff);
    CU_ASSERT_EQUAL(cr(3, 0x20, 4), 0xffffc004);
    CU_ASSERT_EQUAL(cr(3, 0x24, 4), 0xffffffff);
    cw(0x10, 4, 0xc100);
    cw(0x20, 4, 0xe0004000);
    cw(0x24, 4, 0);
    CU_ASSERT_EQUAL(board_mmio_read(&t, 0xe0004000, 4), 0xffffffff); /* decoding is off */
    cw(4, 2, 7);
    CU_ASSERT_TRUE(fvm_pci_bus_master(&fn));
    CU_ASSERT_EQUAL(board_mmio_read(&t, 0xe0004010, 4), 0x11223354);
    CU_ASSERT_EQUAL(board_in(&t, 0xc104, 4), 0x11223348);
    board_mmio_write(&t, 0xe0006ff8, 4, 99);
    CU_ASSERT(last_offset == 0x2ff8 && last_write == 99);
    cw(0x20, 4, 0); /* above 4 GiB */
    cw(0x24, 4, 0x2);
    CU_ASSERT_EQUAL(board_mmio_read(&t, 0xe0004010, 4), 0xffffffff);
    CU_ASSERT_EQUAL(board_mmio_read(&t, 0x200000000ull, 4), 0x11223344);
    cw(0x24, 4, 0); /* over RAM: not mapped */
    cw(0x20, 4, 0x100000);
    CU_ASSERT_EQUAL(board_mmio_read(&t, 0x100000, 4), 0xffffffff);
    cw(4, 2, 0);
    CU_ASSERT_EQUAL(board_in(&t, 0xc104, 4), 0xffffffff);
    down();
}

static void test_capabilities(void)
{
    up();
    CU_ASSERT_EQUAL(cr(3, 6, 2) & 0x10, 0x10);
    CU_ASSERT_EQUAL(cr(3, 0x34, 1), 0x40);
    CU_ASSERT_EQUAL(cr(3, 0x40, 4), 0x00024c11);
    CU_ASSERT_EQUAL(cr(3, 0x4c, 4), 0x01080009);
    CU_ASSERT_EQUAL(cr(3, 0x50, 4), 0x05040302);
    down();
}

static void test_intx(void)
{
    unsigned line = fvm_pci_irq(3, 1);

    up();
    CU_ASSERT(line == 10 || line == 11);
    fvm_pci_intx_set(&fn, true);
    CU_ASSERT_TRUE(t.level[line]);
    CU_ASSERT_EQUAL(cr(3, 6, 2) & 8, 8);
    cw(4, 2, 0x400);
    CU_ASSERT_FALSE(t.level[line]);
    cw(4, 2, 0);
    CU_ASSERT_TRUE(t.level[line]);
    fvm_pci_function_reset(&fn);
    CU_ASSERT_FALSE(t.level[line]);
    down();
}

static void test_msix(void)
{
    uint64_t table;

    up();
    fvm_pci_host_assign(fvm_pci_host_of(bridge));
    table = cr(3, 0x14, 4) & ~15u;
    CU_ASSERT(table >= FVM_PCI_MMIO32_BASE && table < FVM_PCI_MMIO32_END);
    fvm_pci_msix_notify(&fn, 1);
    CU_ASSERT_EQUAL(t.msi_count, 0); /* not enabled */
    CU_ASSERT_EQUAL(board_mmio_read(&t, table + 28, 4), 1); /* masked after reset */
    board_mmio_write(&t, table + 16, 8, 0xfee01000);
    board_mmio_write(&t, table + 24, 4, 0x4051);
    cw(0x42, 2, 0x8000);
    CU_ASSERT_TRUE(fvm_pci_msix_enabled(&fn));
    fvm_pci_msix_notify(&fn, 1);
    CU_ASSERT_EQUAL(t.msi_count, 0);
    CU_ASSERT_EQUAL(board_mmio_read(&t, table + 0x800, 4), 2); /* pending */
    board_mmio_write(&t, table + 0x800, 4, 0xff);
    CU_ASSERT_EQUAL(board_mmio_read(&t, table + 0x800, 4), 2);
    board_mmio_write(&t, table + 28, 4, 0);
    CU_ASSERT_EQUAL(t.msi_count, 1);
    CU_ASSERT(t.msi_addr == 0xfee01000 && t.msi_data == 0x4051);
    cw(0x42, 2, 0xc000); /* function mask */
    fvm_pci_msix_notify(&fn, 1);
    CU_ASSERT_EQUAL(t.msi_count, 1);
    cw(0x42, 2, 0x8000);
    CU_ASSERT_EQUAL(t.msi_count, 2);
    fvm_pci_msix_notify(&fn, 3); /* no such vector */
    fvm_pci_msix_notify(&fn, 1);
    CU_ASSERT_EQUAL(t.msi_count, 3);
    down();
}

static void test_msi(void)
{
    static const struct fvm_pci_id msi_id = {.slot = 5, .vendor = 1, .device = 2, .class_code = 0x010601, .interrupt_pin = 1};
    struct fvm_pci_function m = {0};
    unsigned line = fvm_pci_irq(5, 1);

    up();
    CU_ASSERT_EQUAL_FATAL(fvm_pci_function_init(&m, fvm_pci_host_of(bridge), &msi_id, NULL, NULL), 0);
    fvm_pci_msi_add(&m);
    fvm_pci_function_reset(&m);
    CU_ASSERT_EQUAL(cr(5, 0x40, 4), 0x00800005);
    fvm_pci_interrupt_set(&m, true);
    CU_ASSERT_TRUE(t.level[line]);
    CU_ASSERT_EQUAL(t.msi_count, 0);
    board_out(&t, 0xcf8, 4, 0x80000044u | 5u << 11);
    board_out(&t, 0xcfc, 4, 0xfee02007);
    board_out(&t, 0xcf8, 4, 0x8000004cu | 5u << 11);
    board_out(&t, 0xcfc, 4, 0x12344061);
    CU_ASSERT_EQUAL(cr(5, 0x44, 4), 0xfee02004);
    board_out(&t, 0xcf8, 4, 0x80000004u | 5u << 11);
    board_out(&t, 0xcfc, 2, 4); /* bus master */
    board_out(&t, 0xcf8, 4, 0x80000040u | 5u << 11);
    board_out(&t, 0xcfe, 2, 1);
    CU_ASSERT_TRUE(fvm_pci_msi_enabled(&m));
    CU_ASSERT_FALSE(t.level[line]); /* never both */
    fvm_pci_interrupt_set(&m, true);
    CU_ASSERT_EQUAL(t.msi_count, 0); /* no new edge */
    fvm_pci_interrupt_set(&m, false);
    fvm_pci_interrupt_set(&m, true);
    CU_ASSERT_EQUAL(t.msi_count, 1);
    CU_ASSERT(t.msi_addr == 0xfee02004 && t.msi_data == 0x4061);
    fvm_pci_function_fini(&m);
    down();
}

static void test_functions(void)
{
    static const struct fvm_pci_id second_id = {
        .slot = 3, .function = 5, .vendor = 7, .device = 8, .class_code = 0x010180, .interrupt_pin = 2};
    struct fvm_pci_function second = {0};

    up();
    CU_ASSERT_EQUAL(cr(3, 0x0e, 1), 0);
    CU_ASSERT_EQUAL_FATAL(fvm_pci_function_init(&second, fvm_pci_host_of(bridge), &second_id, NULL, NULL), 0);
    fvm_pci_function_reset(&second);
    CU_ASSERT_EQUAL(cr(3, 0x0e, 1), 0x80);
    fvm_pci_function_reset(&fn);
    CU_ASSERT_EQUAL(cr(3, 0x0e, 1), 0x80);
    board_out(&t, 0xcf8, 4, 0x80000500u | 3u << 11);
    CU_ASSERT_EQUAL(board_in(&t, 0xcfc, 4), 0x00080007);
    board_out(&t, 0xcf8, 4, 0x80000100u | 3u << 11);
    CU_ASSERT_EQUAL(board_in(&t, 0xcfc, 4), 0xffffffff);
    fvm_pci_function_fini(&second);
    down();
}

static void test_links(void)
{
    unsigned line = fvm_pci_irq(3, 1), link = (3 + 1 - 2) % 4;

    up();
    fvm_pci_intx_set(&fn, true);
    CU_ASSERT_TRUE(t.level[line]);
    fvm_pci_host_route(fvm_pci_host_of(bridge), link, 5);
    CU_ASSERT_FALSE(t.level[line]);
    CU_ASSERT_TRUE(t.level[5]);
    fvm_pci_host_route(fvm_pci_host_of(bridge), link, FVM_IRQ_LINES); /* off */
    CU_ASSERT_FALSE(t.level[5]);
    fvm_pci_intx_set(&fn, false);
    fvm_pci_intx_set(&fn, true);
    bridge->ops->reset(bridge);
    CU_ASSERT_TRUE(t.level[line]);
    fvm_pci_intx_set(&fn, false);
    CU_ASSERT_FALSE(t.level[line]);
    down();
}

static void test_assign(void)
{
    up();
    fvm_pci_host_assign(fvm_pci_host_of(bridge));
    CU_ASSERT_EQUAL(cr(3, 0x3c, 1), fvm_pci_irq(3, 1));
    CU_ASSERT_EQUAL(cr(3, 4, 2) & 7, 7);
    CU_ASSERT_EQUAL(board_in(&t, cr(3, 0x10, 4) & ~3u, 4), 0x11223344);
    CU_ASSERT_EQUAL(board_mmio_read(&t, cr(3, 0x20, 4) & ~15u, 4), 0x11223344);
    bridge->ops->reset(bridge);
    down();
}

static void test_function_state(void)
{
    struct test_board other;
    struct fvm_device *other_bridge;
    struct fvm_pci_function copy;
    Fvm__PciFunctionState s;
    struct fvm_err err = {0};

    up();
    fvm_pci_host_assign(fvm_pci_host_of(bridge));
    fvm_pci_intx_set(&fn, true);
    cw(0x42, 2, 0x8000);
    fvm_pci_msix_notify(&fn, 2);
    CU_ASSERT_EQUAL_FATAL(fvm_pci_function_save(&fn, &s), 0);
    make(&other, &other_bridge, &copy);
    CU_ASSERT_EQUAL(fvm_pci_function_check(&copy, &s, &err), 0);
    fvm_pci_function_restore(&copy, &s);
    CU_ASSERT_EQUAL(board_mmio_read(&other, cr(3, 0x20, 4) & ~15u, 4), 0x11223344);
    CU_ASSERT_TRUE(other.level[fvm_pci_irq(3, 1)]);
    CU_ASSERT_EQUAL(copy.msix_pending[0], 4);
    CU_ASSERT_NOT_EQUAL(fvm_pci_function_check(&copy, NULL, &err), 0);
    s.config.data[0] ^= 1; /* another vendor */
    CU_ASSERT_NOT_EQUAL(fvm_pci_function_check(&copy, &s, &err), 0);
    s.config.data[0] ^= 1;
    s.n_msix = 2;
    CU_ASSERT_NOT_EQUAL(fvm_pci_function_check(&copy, &s, &err), 0);
    s.n_msix = 3;
    s.msix_pending[0] = 8;
    CU_ASSERT_NOT_EQUAL(fvm_pci_function_check(&copy, &s, &err), 0);
    fvm_pci_function_save_free(&s);
    fvm_pci_function_fini(&copy);
    other_bridge->ops->destroy(other_bridge);
    board_down(&other);
    down();
}

static void poke(struct test_board *b, struct fvm_device *victim)
{
    (void)victim;
    (void)board_in(b, 0xcfc, 4);
    board_out(b, 0xcfc, 4, 0xffffffff);
}

static void test_bridge_state(void)
{
    struct test_board other;
    struct fvm_device *fresh;

    up();
    (void)cr(3, 8, 4);
    board_up(&other, 1);
    CU_ASSERT_EQUAL_FATAL(fvm_pci_host_create(&other.board, &fresh), 0);
    board_roundtrip(bridge, fresh);
    board_hostile(&other, bridge, fresh, 20000, poke);
    fresh->ops->destroy(fresh);
    board_down(&other);
    down();
}

int main(void)
{
    static const struct board_test tests[] = {
        {"configuration space", test_config},
        {"BARs", test_bars},
        {"capabilities", test_capabilities},
        {"INTx", test_intx},
        {"MSI-X", test_msix},
        {"MSI", test_msi},
        {"functions of one slot", test_functions},
        {"interrupt links", test_links},
        {"assignment", test_assign},
        {"function state", test_function_state},
        {"bridge state", test_bridge_state},
    };

    return board_main("device/pci", tests, FVM_ARRAY_SIZE(tests));
}
