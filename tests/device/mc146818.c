/* mc146818: reading and setting the time, formats, UIP, the three interrupts, CMOS sizes, state. */
#include "vmm/devices/mc146818.h"

#include <time.h>

#include "support_board.h"

enum { LINE = 8 };

static struct test_board t;
static struct fvm_device *dev;

static void up(void)
{
    board_up(&t, 2);
    CU_ASSERT_EQUAL_FATAL(fvm_mc146818_create(&t.board, LINE, &dev), 0);
}

static void down(void)
{
    dev->ops->destroy(dev);
    board_down(&t);
}

static unsigned r(unsigned reg)
{
    board_out(&t, 0x70, 1, reg);
    return (unsigned)board_in(&t, 0x71, 1);
}

static void w(unsigned reg, unsigned value)
{
    board_out(&t, 0x70, 1, reg);
    board_out(&t, 0x71, 1, value);
}

static unsigned bcd(unsigned v)
{
    return (v >> 4) * 10 + (v & 15);
}

static void test_reads_wall_clock(void)
{
    struct tm tm = {0};
    time_t now;

    up();
    tm.tm_sec = (int)bcd(r(0));
    tm.tm_min = (int)bcd(r(2));
    tm.tm_hour = (int)bcd(r(4));
    tm.tm_mday = (int)bcd(r(7));
    tm.tm_mon = (int)bcd(r(8)) - 1;
    tm.tm_year = (int)(bcd(r(0x32)) * 100 + bcd(r(9))) - 1900;
    now = time(NULL);
    CU_ASSERT(timegm(&tm) - now <= 1 && now - timegm(&tm) <= 62); /* a minute may turn between two reads */
    CU_ASSERT_EQUAL(r(0x0d), 0x80);
    down();
}

static void set_time(void)
{
    w(0x0b, 0x82);
    w(0, 0x50);
    w(2, 0x59);
    w(4, 0x23);
    w(7, 0x28);
    w(8, 0x02);
    w(9, 0x24);
    w(0x32, 0x20);
    w(0x0b, 0x02);
}

static void test_set(void)
{
    up();
    set_time();
    CU_ASSERT_EQUAL(r(7), 0x28);
    CU_ASSERT_EQUAL(r(4), 0x23);
    CU_ASSERT_EQUAL(r(2), 0x59);
    CU_ASSERT(r(0) >= 0x50);
    CU_ASSERT_EQUAL(r(6), 4); /* Wednesday */
    w(0x0b, 0x06);            /* binary */
    CU_ASSERT_EQUAL(r(4), 23);
    CU_ASSERT_EQUAL(r(7), 28);
    w(0x0b, 0x04); /* 12 hours */
    CU_ASSERT_EQUAL(r(4), 11 | 0x80);
    w(0x0b, 0x02);
    w(0, 0xff); /* nonsense without SET: carried over, never a crash */
    (void)r(0);
    CU_ASSERT(bcd(r(8)) >= 2 && bcd(r(8)) <= 3);
    down();
}

static void test_set_holds(void)
{
    up();
    w(0x0b, 0x82);
    w(0, 0x77);
    CU_ASSERT_EQUAL(r(0), 0x77); /* plain memory */
    board_advance(&t, 3000000000ull);
    CU_ASSERT_EQUAL(r(0), 0x77);
    CU_ASSERT_EQUAL(r(0x0c), 0x40); /* no update while SET is on; the divider chain goes on */
    CU_ASSERT_EQUAL(r(0x0a) & 0x80, 0);
    down();
}

static void test_uip(void)
{
    bool seen = false;
    time_t end = time(NULL) + 60; /* 244 us of each second: a busy host may look away then */

    up();
    while (!seen && time(NULL) < end)
        seen = r(0x0a) & 0x80;
    CU_ASSERT_TRUE(seen);
    down();
}

static void test_update_interrupt(void)
{
    up();
    (void)r(0x0c);
    w(0x0b, 0x12);
    CU_ASSERT_FALSE(t.level[LINE]);
    board_advance(&t, 1100000000ull);
    CU_ASSERT_TRUE(t.level[LINE]);
    CU_ASSERT_EQUAL(r(0x0c) & 0x90, 0x90);
    CU_ASSERT_FALSE(t.level[LINE]);
    CU_ASSERT_EQUAL(r(0x0c) & 0x10, 0);
    w(0x0b, 0x02);
    board_advance(&t, 1100000000ull);
    CU_ASSERT_FALSE(t.level[LINE]);
    CU_ASSERT_EQUAL(r(0x0c) & 0x90, 0x10); /* flag without an interrupt */
    down();
}

static void test_alarm(void)
{
    up();
    w(1, 0xc0);
    w(3, 0xff);
    w(5, 0xc7); /* every second */
    w(0x0b, 0x22);
    board_advance(&t, 1100000000ull);
    CU_ASSERT_TRUE(t.level[LINE]);
    CU_ASSERT_EQUAL(r(0x0c) & 0xa0, 0xa0);
    w(1, 0x99); /* never */
    board_advance(&t, 2000000000ull);
    CU_ASSERT_EQUAL(r(0x0c) & 0xa0, 0);
    down();
}

static void test_periodic(void)
{
    unsigned got = 0;

    up();
    w(0x0a, 0x26); /* 1024 Hz */
    w(0x0b, 0x42);
    for (unsigned i = 0; i < 100; i++) {
        board_advance(&t, 976563);
        if (t.level[LINE]) {
            got++;
            CU_ASSERT_EQUAL(r(0x0c) & 0xc0, 0xc0);
        }
    }
    CU_ASSERT(got >= 98);
    w(0x0a, 0x20); /* rate none */
    board_advance(&t, 10000000);
    CU_ASSERT_FALSE(t.level[LINE]);
    down();
}

static void test_cmos(void)
{
    up();
    CU_ASSERT_EQUAL(r(0x15) | r(0x16) << 8, 640);
    CU_ASSERT_EQUAL(r(0x30) | r(0x31) << 8, 31 * 1024); /* 32 MiB - 1 MiB */
    CU_ASSERT_EQUAL(r(0x34) | r(0x35) << 8, 256);       /* 16 MiB in 64 KiB */
    CU_ASSERT_EQUAL(r(0x5f), 1);
    w(0x40, 0x5a);
    dev->ops->reset(dev);
    CU_ASSERT_EQUAL(r(0x40), 0x5a); /* battery */
    CU_ASSERT_EQUAL(board_in(&t, 0x70, 1), 0xff);
    down();
}

static void poke(struct test_board *b, struct fvm_device *victim)
{
    (void)victim;
    for (unsigned reg = 0; reg < 128; reg++) {
        board_out(b, 0x70, 1, reg);
        (void)board_in(b, 0x71, 1);
    }
    board_out(b, 0x70, 1, 0x0b);
    board_out(b, 0x71, 1, 0x72);
    board_advance(b, 1000);
}

static void test_state(void)
{
    struct fvm_device *fresh;
    struct test_board other;

    up();
    set_time();
    w(0x0b, 0x72);
    board_advance(&t, 1100000000ull);
    board_up(&other, 2);
    CU_ASSERT_EQUAL_FATAL(fvm_mc146818_create(&other.board, LINE, &fresh), 0);
    board_roundtrip(dev, fresh);
    CU_ASSERT_TRUE(other.level[LINE]);
    board_out(&other, 0x70, 1, 9);
    CU_ASSERT_EQUAL(board_in(&other, 0x71, 1), 0x24); /* the guest's own time */
    board_hostile(&other, dev, fresh, 5000, poke);
    fresh->ops->destroy(fresh);
    board_down(&other);
    down();
}

int main(void)
{
    static const struct board_test tests[] = {
        {"shows the wall clock", test_reads_wall_clock},
        {"set the time", test_set},
        {"SET holds the clock", test_set_holds},
        {"update in progress", test_uip},
        {"update-ended interrupt", test_update_interrupt},
        {"alarm", test_alarm},
        {"periodic interrupt", test_periodic},
        {"CMOS memory", test_cmos},
        {"state", test_state},
    };

    return board_main("device/mc146818", tests, FVM_ARRAY_SIZE(tests));
}
