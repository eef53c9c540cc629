/* board_pc: the whole list made, interrupts wired from chip to processor, all state saved and restored, what is
 * refused. */
#include "vmm/board_pc.h"

#include <stdlib.h>
#include <string.h>

#include "support_board.h"
#include "vmm/devices/lapic.h"

static size_t take(void *ctx, const uint8_t *bytes, size_t len)
{
    (void)ctx;
    (void)bytes;
    return len;
}

static const struct fvm_board_pc_config plain = {.serial = {.write = take}, .rng = true};

static struct fvm_board_pc *up(struct test_board *t, const struct fvm_board_pc_config *config)
{
    struct fvm_board_pc *pc = NULL;
    struct fvm_err err = {0};

    board_up(t, 2);
    CU_ASSERT_EQUAL_FATAL(fvm_board_pc_create(&t->board, config, &pc, &err), 0);
    fvm_board_pc_reset(pc);
    return pc;
}

static void down(struct test_board *t, struct fvm_board_pc *pc)
{
    fvm_board_pc_destroy(&pc);
    CU_ASSERT_PTR_NULL(pc);
    board_down(t);
}

static void test_list(void)
{
    static const char *const names[] = {"lapic", "ioapic",     "i8259",    "i8254",   "mc146818",   "ns16550a",
                                        "i8042", "debug_exit", "pci_host", "acpi_pm", "virtio-rng0"};
    struct test_board t;
    struct fvm_board_pc *pc = up(&t, &plain);

    CU_ASSERT_EQUAL(fvm_board_pc_device_count(pc), FVM_ARRAY_SIZE(names));
    for (unsigned i = 0; i < FVM_ARRAY_SIZE(names); i++) {
        CU_ASSERT_STRING_EQUAL(fvm_board_pc_device_at(pc, i)->instance, names[i]);
        CU_ASSERT_PTR_EQUAL(fvm_board_pc_device(pc, names[i]), fvm_board_pc_device_at(pc, i));
    }
    CU_ASSERT_PTR_NULL(fvm_board_pc_device(pc, "floppy"));
    board_out(&t, 0xcf8, 4, 0x80000800);
    CU_ASSERT_EQUAL(board_in(&t, 0xcfc, 2), 0x1af4);
    down(&t, pc);
}

static void test_full(void)
{
    static const struct fvm_board_pc_config full = {.serial = {.write = take}, .rng = true, .full = true};
    struct test_board t, other;
    struct fvm_board_pc *pc = up(&t, &full), *fresh;
    Fvm__DevicesState *s = NULL;
    struct fvm_err err = {0};

    CU_ASSERT_PTR_NOT_NULL(fvm_board_pc_device(pc, "piix3"));
    CU_ASSERT_PTR_NOT_NULL(fvm_board_pc_device(pc, "piix_ide"));
    board_out(&t, 0xcf8, 4, 0x80001800); /* slots 1 and 2 belong to the board */
    CU_ASSERT_EQUAL(board_in(&t, 0xcfc, 2), 0x1af4);
    CU_ASSERT_EQUAL_FATAL(fvm_board_pc_save(pc, &s), 0);
    fresh = up(&other, &full);
    CU_ASSERT_EQUAL(fvm_board_pc_check(fresh, s, &err), 0);
    fvm_board_pc_restore(fresh, s);
    down(&other, fresh);
    fresh = up(&other, &plain); /* another machine */
    CU_ASSERT_NOT_EQUAL(fvm_board_pc_check(fresh, s, &err), 0);
    fvm__devices_state__free_unpacked(s, NULL);
    down(&other, fresh);
    down(&t, pc);
}

/* PIT -> i8259 -> LINT0 -> processor, as a system without APIC code has it. */
static void test_pic_path(void)
{
    struct test_board t;
    struct fvm_board_pc *pc = up(&t, &plain);

    board_out(&t, 0x20, 1, 0x11);
    board_out(&t, 0x21, 1, 0x20);
    board_out(&t, 0x21, 1, 4);
    board_out(&t, 0x21, 1, 1);
    board_out(&t, 0x21, 1, 0xfe);
    board_out(&t, 0x43, 1, 0x34);
    board_out(&t, 0x40, 1, 0x9c);
    board_out(&t, 0x40, 1, 0x2e);
    if (fvm_irq_cpu_pending(t.board.irq, 0)) { /* OUT went high with the mode */
        CU_ASSERT_EQUAL(fvm_irq_cpu_ack(t.board.irq, 0), 0x20);
        board_out(&t, 0x20, 1, 0x20);
    }
    board_advance(&t, 20000000);
    CU_ASSERT_TRUE(fvm_irq_cpu_pending(t.board.irq, 0));
    CU_ASSERT_FALSE(fvm_irq_cpu_pending(t.board.irq, 1));
    CU_ASSERT_EQUAL(fvm_irq_cpu_ack(t.board.irq, 0), 0x20);
    CU_ASSERT_EQUAL(fvm_irq_cpu_ack(t.board.irq, 0), -1);
    down(&t, pc);
}

/* Serial port -> ioapic -> lapic of processor 1. */
static void test_ioapic_path(void)
{
    struct test_board t;
    struct fvm_board_pc *pc = up(&t, &plain);

    fvm_bus_set_cpu(1);
    board_mmio_write(&t, FVM_LAPIC_BASE + 0xf0, 4, 0x1ff);
    fvm_bus_set_cpu(0);
    board_mmio_write(&t, 0xfec00000, 4, 0x10 + 2 * 4 + 1);
    board_mmio_write(&t, 0xfec00010, 4, 1u << 24);
    board_mmio_write(&t, 0xfec00000, 4, 0x10 + 2 * 4);
    board_mmio_write(&t, 0xfec00010, 4, 0x44);
    board_out(&t, 0x3fc, 1, 8);
    board_out(&t, 0x3f9, 1, 1);
    CU_ASSERT_EQUAL(fvm_board_pc_serial_input(pc, (const uint8_t *)"k", 1), 1);
    CU_ASSERT_TRUE(fvm_irq_cpu_pending(t.board.irq, 1));
    CU_ASSERT_EQUAL(fvm_irq_cpu_ack(t.board.irq, 1), 0x44);
    down(&t, pc);
}

static bool same(const Fvm__DevicesState *a, const Fvm__DevicesState *b)
{
    if (a->n_devices != b->n_devices)
        return false;
    for (size_t i = 0; i < a->n_devices; i++)
        if (a->devices[i]->state.len != b->devices[i]->state.len ||
            (a->devices[i]->state.len &&
             memcmp(a->devices[i]->state.data, b->devices[i]->state.data, a->devices[i]->state.len) != 0))
            return false;
    return true;
}

static void test_state(void)
{
    struct test_board t, other;
    struct fvm_board_pc *pc = up(&t, &plain), *copy = up(&other, &plain);
    Fvm__DevicesState *a = NULL, *b = NULL;
    struct fvm_err err = {0};

    board_out(&t, 0x3fc, 1, 8);
    board_out(&t, 0x3f9, 1, 3); /* the line of the serial port is high now */
    board_out(&t, 0x43, 1, 0x34);
    board_out(&t, 0x40, 1, 0x9c);
    board_out(&t, 0x40, 1, 0x2e);
    fvm_board_pc_quiesce(pc);
    CU_ASSERT_EQUAL_FATAL(fvm_board_pc_save(pc, &a), 0);
    CU_ASSERT_EQUAL(fvm_board_pc_check(copy, a, &err), 0);
    fvm_board_pc_restore(copy, a);
    CU_ASSERT_EQUAL_FATAL(fvm_board_pc_save(copy, &b), 0);
    CU_ASSERT_TRUE(same(a, b));
    CU_ASSERT_TRUE(other.level[4]);
    fvm_board_pc_resume(copy);
    fvm__devices_state__free_unpacked(b, NULL);

    /* what is refused: a device less, an exchanged order, one chip's rubbish */
    a->n_devices--;
    CU_ASSERT_EQUAL(fvm_board_pc_check(copy, a, &err), FVM_EBADIMAGE);
    CU_ASSERT_PTR_NOT_NULL(strstr(err.text, "same options"));
    a->n_devices++;
    Fvm__DeviceState *first = a->devices[0];
    a->devices[0] = a->devices[1];
    a->devices[1] = first;
    CU_ASSERT_EQUAL(fvm_board_pc_check(copy, a, &err), FVM_EBADIMAGE);
    a->devices[1] = a->devices[0];
    a->devices[0] = first;
    memset(a->devices[3]->state.data, 0xff, a->devices[3]->state.len);
    CU_ASSERT_EQUAL(fvm_board_pc_check(copy, a, &err), FVM_EBADIMAGE);
    CU_ASSERT_PTR_NOT_NULL(strstr(err.text, "i8254"));
    fvm__devices_state__free_unpacked(a, NULL);
    down(&other, copy);
    down(&t, pc);
}

static void test_refusals(void)
{
    struct fvm_board_pc_config many = plain;
    struct fvm_board_pc *pc = NULL;
    struct fvm_err err = {0};
    struct test_board t;

    board_up(&t, 17);
    CU_ASSERT_EQUAL(fvm_board_pc_create(&t.board, &plain, &pc, &err), FVM_EINVAL);
    CU_ASSERT_PTR_NOT_NULL(strstr(err.text, "1 to 16"));
    t.board.cpu_count = 1;
    many.disk_count = FVM_BOARD_DISKS_MAX + 1;
    CU_ASSERT_EQUAL(fvm_board_pc_create(&t.board, &many, &pc, &err), FVM_EINVAL);
    CU_ASSERT_PTR_NULL(pc);
    board_down(&t);
}

int main(void)
{
    static const struct board_test tests[] = {
        {"the list", test_list},
        {"the full PC", test_full}, {"timer by the i8259", test_pic_path}, {"serial port by the ioapic", test_ioapic_path},
        {"state of all", test_state}, {"refusals", test_refusals},
    };

    return board_main("device/board_pc", tests, FVM_ARRAY_SIZE(tests));
}
