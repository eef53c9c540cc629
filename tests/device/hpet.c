/* hpet: counter, one-shot and periodic timers, levels, legacy replacement, saves in the middle, hostile guests. */
#include "vmm/devices/hpet.h"

#include <stdlib.h>
#include <string.h>

#include "support_board.h"

enum { T0 = 0x100, T1 = 0x120, CMP = 8, MS = 100000 /* ticks */ };
enum { LEVEL = 2, ENABLE = 4, PERIODIC = 8, SET = 0x40, BITS32 = 0x100, ROUTE = 9 };

static struct test_board t;
static struct fvm_device *dev;
static int legacy = -1;

static void on_legacy(void *ctx, bool on)
{
    *(int *)ctx = on;
}

static void up(void)
{
    board_up(&t, 1);
    CU_ASSERT_EQUAL_FATAL(fvm_hpet_create(&t.board, on_legacy, &legacy, &dev), 0);
}

static void down(void)
{
    dev->ops->destroy(dev);
    board_down(&t);
}

static uint64_t rd(unsigned at, unsigned size)
{
    return board_mmio_read(&t, FVM_HPET_BASE + at, size);
}

static void wr(unsigned at, unsigned size, uint64_t value)
{
    board_mmio_write(&t, FVM_HPET_BASE + at, size, value);
}

static void test_counter(void)
{
    up();
    CU_ASSERT_EQUAL(rd(4, 4), 10000000); /* 10 ns in femtoseconds */
    CU_ASSERT_EQUAL(rd(0, 4), 0x8086a201 | 2 << 8);
    board_advance(&t, 1000000);
    CU_ASSERT_EQUAL(rd(0xf0, 8), 0);
    wr(0xf0, 8, 0xfffffff0);
    wr(0x10, 4, 1);
    board_advance(&t, 1000000);
    uint64_t now = rd(0xf0, 8); /* the test's clock gains some microseconds */
    CU_ASSERT(now >= 0xfffffff0ull + MS && now < 0xfffffff0ull + MS + MS / 2);
    CU_ASSERT_EQUAL(rd(0xf4, 4), 1);
    wr(0xf0, 8, 5); /* running: not writable */
    CU_ASSERT_EQUAL(rd(0xf0, 8), now);
    wr(0x10, 4, 0);
    board_advance(&t, 1000000);
    CU_ASSERT_EQUAL(rd(0xf0, 8), now);
    down();
}

static void test_one_shot(void)
{
    up();
    wr(T0 + CMP, 8, 2 * MS);
    wr(T0, 4, ENABLE | 20 << ROUTE);
    CU_ASSERT_EQUAL(rd(T0, 4), (ENABLE | 20 << ROUTE | 0x30));
    CU_ASSERT_EQUAL(rd(T0 + 4, 4), 0xf00000);
    board_advance(&t, 5000000);
    CU_ASSERT_EQUAL(t.rises[20], 0); /* the counter stands */
    wr(0x10, 4, 1);
    board_advance(&t, 1900000);
    CU_ASSERT_EQUAL(t.rises[20], 0);
    board_advance(&t, 200000);
    CU_ASSERT_EQUAL(t.rises[20], 1);
    board_advance(&t, 50000000);
    CU_ASSERT_EQUAL(t.rises[20], 1);
    wr(T0 + CMP, 8, rd(0xf0, 8) + MS);
    board_advance(&t, 2000000);
    CU_ASSERT_EQUAL(t.rises[20], 2); /* an edge, though the line was left high */
    /* 32 bits: the round comes again */
    wr(T0, 4, ENABLE | BITS32 | 20 << ROUTE);
    wr(T0 + CMP, 4, (uint32_t)rd(0xf0, 4) - 1000);
    board_advance(&t, 42000000000ull);
    CU_ASSERT_EQUAL(t.rises[20], 2);
    board_advance(&t, 1000000000);
    CU_ASSERT_EQUAL(t.rises[20], 3);
    down();
}

static void test_periodic_level(void)
{
    up();
    wr(0x10, 4, 1);
    wr(T1, 4, ENABLE | LEVEL | PERIODIC | SET | 21 << ROUTE);
    wr(T1 + CMP, 8, rd(0xf0, 8) + 10 * MS);
    wr(T1 + CMP, 8, 4 * MS); /* the period */
    board_advance(&t, 9900000);
    CU_ASSERT_FALSE(t.level[21]);
    board_advance(&t, 200000);
    CU_ASSERT_TRUE(t.level[21]);
    CU_ASSERT_EQUAL(rd(0x20, 4), 2);
    CU_ASSERT_EQUAL(rd(T1 + CMP, 8), 14 * MS);
    wr(0x20, 4, 2);
    CU_ASSERT_FALSE(t.level[21]);
    board_advance(&t, 4000000);
    CU_ASSERT_TRUE(t.level[21]);
    CU_ASSERT_EQUAL(t.rises[21], 2);
    wr(T1, 4, 0);
    CU_ASSERT_FALSE(t.level[21]);
    wr(T1, 4, ENABLE | PERIODIC | SET | 21 << ROUTE); /* a period of one tick must not hang the host */
    wr(T1 + CMP, 8, rd(0xf0, 8) + 10);
    wr(T1 + CMP, 8, 1);
    board_advance(&t, 1000000);
    CU_ASSERT(t.rises[21] > 2 && t.rises[21] < 200);
    down();
}

static void test_legacy(void)
{
    up();
    CU_ASSERT_EQUAL(legacy, 0);
    wr(T0 + CMP, 8, MS);
    wr(T0, 4, ENABLE);
    wr(T1 + CMP, 8, MS);
    wr(T1, 4, ENABLE);
    wr(0x10, 4, 3);
    CU_ASSERT_EQUAL(legacy, 1);
    board_advance(&t, 2000000);
    CU_ASSERT_EQUAL(t.rises[2], 1);
    CU_ASSERT_EQUAL(t.rises[8], 1);
    wr(0x10, 4, 1);
    CU_ASSERT_EQUAL(legacy, 0);
    CU_ASSERT_FALSE(t.level[2]);
    wr(0x10, 4, 3);
    dev->ops->reset(dev);
    CU_ASSERT_EQUAL(legacy, 0);
    down();
}

static void poke(struct test_board *b, struct fvm_device *victim)
{
    static const uint16_t regs[] = {0x10, 0x20, 0xf0, T0, T0 + CMP, T1, T1 + CMP, 0x140, 0x148};

    (void)victim;
    for (unsigned i = 0; i < 6; i++) {
        uint64_t value = (uint64_t)rand() << 32 ^ (uint64_t)rand() << 8 ^ (uint64_t)rand();
        unsigned size = 1u << rand() % 4;

        board_mmio_write(b, FVM_HPET_BASE + regs[rand() % 9], size, rand() % 2 ? value : value & 0xffff);
        board_mmio_read(b, FVM_HPET_BASE + ((uint64_t)rand() % 0x3f8 & ~7ull), size);
    }
    board_advance(b, (uint64_t)rand() % 1000000);
}

static void test_state(void)
{
    struct test_board other;
    struct fvm_device *fresh;
    int other_legacy = -1;

    up();
    wr(0x10, 4, 3);
    wr(T0, 4, ENABLE | PERIODIC | SET);
    wr(T0 + CMP, 8, 10 * MS);
    wr(T0 + CMP, 8, 4 * MS);
    board_advance(&t, 11000000);
    CU_ASSERT_TRUE(t.level[2]);
    board_up(&other, 1);
    CU_ASSERT_EQUAL_FATAL(fvm_hpet_create(&other.board, on_legacy, &other_legacy, &fresh), 0);
    board_advance(&other, 11000000);
    board_roundtrip(dev, fresh);
    CU_ASSERT_EQUAL(other_legacy, 1);
    CU_ASSERT_TRUE(other.level[2]); /* as the controllers knew it */
    CU_ASSERT_EQUAL(other.rises[2], 1);
    board_advance(&other, 4000000);
    CU_ASSERT_EQUAL(other.rises[2], 2);
    board_hostile(&other, dev, fresh, 3000, poke);
    fresh->ops->destroy(fresh);
    board_down(&other);
    down();
}

int main(void)
{
    static const struct board_test tests[] = {
        {"counter", test_counter}, {"one shot", test_one_shot}, {"periodic and level", test_periodic_level},
        {"legacy", test_legacy},   {"state", test_state},
    };

    srand(1);
    return board_main("device/hpet", tests, FVM_ARRAY_SIZE(tests));
}
