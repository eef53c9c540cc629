/* fw_cfg: items byte by byte and by DMA, the directory, saves in the middle of an item, hostile requests. */
#include "vmm/devices/fw_cfg.h"

#include <endian.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "support_board.h"

enum { DMA_AT = 0x1000, DATA = 0x8000 };

static struct test_board t;
static struct fvm_device *dev;

static void fill(struct fvm_device *d)
{
    CU_ASSERT_EQUAL(fvm_fw_cfg_add(d, 5, "\4\0", 2), 0);
    CU_ASSERT_EQUAL(fvm_fw_cfg_add_file(d, "etc/one", "first", 5), 0);
    CU_ASSERT_EQUAL(fvm_fw_cfg_add_file(d, "bootorder", "/pci\n", 5), 0);
    CU_ASSERT_EQUAL(fvm_fw_cfg_add_file(d, "etc/one", "again!", 6), 0);
}

static void up(void)
{
    board_up(&t, 1);
    CU_ASSERT_EQUAL_FATAL(fvm_fw_cfg_create(&t.board, &dev), 0);
    fill(dev);
}

static void down(void)
{
    dev->ops->destroy(dev);
    board_down(&t);
}

static void take(char *buf, unsigned len)
{
    for (unsigned i = 0; i < len; i++)
        buf[i] = (char)board_in(&t, 0x511, 1);
}

static uint32_t dma(uint32_t control, uint32_t len, uint64_t address)
{
    uint32_t r[4] = {htobe32(control), htobe32(len), htobe32((uint32_t)(address >> 32)), htobe32((uint32_t)address)};

    fvm_assert(fvm_ram_write(t.board.ram, DMA_AT, r, sizeof(r)) == 0);
    board_out(&t, 0x514, 4, 0);
    board_out(&t, 0x518, 4, htobe32(DMA_AT));
    fvm_assert(fvm_ram_read(t.board.ram, DMA_AT, r, 4) == 0);
    return be32toh(r[0]);
}

static void test_ports(void)
{
    char b[64];

    up();
    take(b, 5);
    CU_ASSERT(!memcmp(b, "QEMU\0", 5)); /* item 0 is selected, zeros follow it */
    board_out(&t, 0x510, 2, 1);
    take(b, 4);
    CU_ASSERT_EQUAL(b[0], 3);
    board_out(&t, 0x510, 2, 5);
    take(b, 3);
    CU_ASSERT(!memcmp(b, "\4\0\0", 3));
    board_out(&t, 0x510, 2, 0x7777);
    take(b, 2);
    CU_ASSERT(!b[0] && !b[1]);
    board_out(&t, 0x510, 2, 0x19);
    take(b, 4);
    CU_ASSERT(!memcmp(b, "\0\0\0\2", 4));
    take(b, 64);
    CU_ASSERT(!memcmp(b, "\0\0\0\6\0\x20\0\0etc/one", 16));
    take(b, 64);
    CU_ASSERT(!memcmp(b, "\0\0\0\5\0\x21\0\0bootorder", 18));
    board_out(&t, 0x510, 2, 0x20);
    take(b, 6);
    CU_ASSERT(!memcmp(b, "again!", 6));
    down();
}

static void test_dma(void)
{
    char b[16];

    up();
    CU_ASSERT_EQUAL(board_in(&t, 0x514, 4), 0x554d4551); /* "QEMU" */
    CU_ASSERT_EQUAL(board_in(&t, 0x518, 4), 0x47464320); /* " CFG" */
    CU_ASSERT_EQUAL(dma(0x20u << 16 | 8 | 2, 8, DATA), 0);
    fvm_ram_read(t.board.ram, DATA, b, 8);
    CU_ASSERT(!memcmp(b, "again!\0\0", 8));
    CU_ASSERT_EQUAL(dma(0x21u << 16 | 8 | 4, 1, 0), 0); /* skip */
    CU_ASSERT_EQUAL(dma(2, 3, DATA), 0);
    fvm_ram_read(t.board.ram, DATA, b, 3);
    CU_ASSERT(!memcmp(b, "pci", 3));
    CU_ASSERT_EQUAL(dma(16, 3, DATA), 1);                        /* nothing can be written */
    CU_ASSERT_EQUAL(dma(2, 16, 0x7fffffff0), 1);                 /* not RAM */
    CU_ASSERT_EQUAL(dma(0x20u << 16 | 8 | 2, 0xffffffff, 0), 1); /* absurd */
    board_out(&t, 0x514, 4, 0xffffffff);
    board_out(&t, 0x518, 4, 0xffffffff); /* the request itself is not in RAM: nothing happens */
    down();
}

static void poke(struct test_board *b, struct fvm_device *victim)
{
    (void)victim;
    for (unsigned i = 0; i < 8; i++) {
        board_out(b, 0x510 + (uint64_t)rand() % 12, 1u << rand() % 3, (uint64_t)rand());
        board_in(b, 0x510 + (uint64_t)rand() % 12, 1u << rand() % 3);
    }
}

static void test_state(void)
{
    struct test_board other;
    struct fvm_device *fresh;

    up();
    board_out(&t, 0x510, 2, 0x20);
    board_in(&t, 0x511, 1);
    board_up(&other, 1);
    CU_ASSERT_EQUAL_FATAL(fvm_fw_cfg_create(&other.board, &fresh), 0);
    fill(fresh);
    board_roundtrip(dev, fresh);
    CU_ASSERT_EQUAL(board_in(&other, 0x511, 1), 'g');
    board_hostile(&other, dev, fresh, 5000, poke);
    fresh->ops->destroy(fresh);
    board_down(&other);
    down();
}

static void test_limits(void)
{
    char name[32];
    int r = 0;

    up();
    for (unsigned i = 0; !r && i < 100; i++) {
        snprintf(name, sizeof(name), "file%u", i);
        r = fvm_fw_cfg_add_file(dev, name, name, strlen(name));
    }
    CU_ASSERT_EQUAL(r, FVM_ENOSPC);
    down();
}

int main(void)
{
    static const struct board_test tests[] = {
        {"ports", test_ports}, {"DMA", test_dma}, {"state", test_state}, {"limits", test_limits},
    };

    srand(1);
    return board_main("device/fw_cfg", tests, FVM_ARRAY_SIZE(tests));
}
