/* i8042: self test, configuration byte, output port, the ways to reset, keyboard and mouse behind it, state. */
#include "vmm/devices/i8042.h"

#include <stdio.h>
#include <string.h>

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
    board_out(&t, 0x60, 1, 0xff); /* the keyboard's own reset: its clock goes on */
    CU_ASSERT_EQUAL(board_in(&t, 0x64, 1) & 0x21, 1);
    CU_ASSERT_EQUAL(board_in(&t, 0x60, 1), 0xfa);
    CU_ASSERT_EQUAL(board_in(&t, 0x60, 1), 0xaa);
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

static void configure(unsigned config)
{
    board_out(&t, 0x64, 1, 0x60);
    board_out(&t, 0x60, 1, config);
}

/* What waits, as hex text. */
static const char *drain(void)
{
    static char text[400];
    unsigned n = 0;

    text[0] = 0;
    while ((board_in(&t, 0x64, 1) & 1) && n + 4 < sizeof(text))
        n += (unsigned)snprintf(text + n, sizeof(text) - n, "%s%02x", n ? " " : "", (unsigned)board_in(&t, 0x60, 1));
    return text;
}

static void test_keyboard(void)
{
    up();
    configure(0x45); /* interrupt, translation: set 1 as programs see it */
    fvm_i8042_key(dev, 0x1e, true); /* a */
    CU_ASSERT_TRUE(t.level[1]);
    fvm_i8042_key(dev, 0x1e, false);
    CU_ASSERT_EQUAL(t.rises[1], 1);
    CU_ASSERT_EQUAL(board_in(&t, 0x60, 1), 0x1e);
    CU_ASSERT_EQUAL(t.rises[1], 2); /* an edge for each byte */
    CU_ASSERT_STRING_EQUAL(drain(), "9e");
    CU_ASSERT_FALSE(t.level[1]);
    fvm_i8042_key(dev, FVM_KEY_E0 | 0x48, true); /* up */
    fvm_i8042_key(dev, FVM_KEY_E0 | 0x48, false);
    fvm_i8042_key(dev, 0x41, true); /* F7, whose set 2 code has bit 7 */
    fvm_i8042_key(dev, 0x41, false);
    CU_ASSERT_STRING_EQUAL(drain(), "e0 48 e0 c8 41 c1");
    fvm_i8042_key(dev, FVM_KEY_PAUSE, true);
    fvm_i8042_key(dev, FVM_KEY_PAUSE, false);
    CU_ASSERT_STRING_EQUAL(drain(), "e1 1d 45 e1 9d c5");
    fvm_i8042_key(dev, FVM_KEY_PRINT, true);
    fvm_i8042_key(dev, FVM_KEY_PRINT, false);
    CU_ASSERT_STRING_EQUAL(drain(), "e0 2a e0 37 e0 b7 e0 aa");
    configure(0x05); /* without translation: set 2 */
    fvm_i8042_key(dev, 0x1e, true);
    fvm_i8042_key(dev, 0x1e, false);
    CU_ASSERT_STRING_EQUAL(drain(), "1c f0 1c");
    for (unsigned key = 1; key < 0x59; key++) /* every key is what it was, there and back */
        CU_ASSERT(fvm_ps2_set2_of(key) != 0);
    board_out(&t, 0x60, 1, 0xf0);
    board_out(&t, 0x60, 1, 1); /* set 1 */
    fvm_i8042_key(dev, 0x1e, true);
    CU_ASSERT_STRING_EQUAL(drain(), "fa fa 1e");
    board_out(&t, 0x60, 1, 0xed);
    board_out(&t, 0x60, 1, 5);
    CU_ASSERT_EQUAL(fvm_i8042_leds(dev), FVM_LED_SCROLL | FVM_LED_CAPS);
    board_out(&t, 0x60, 1, 0xf2);
    board_out(&t, 0x60, 1, 0xee);
    board_out(&t, 0x60, 1, 0x33); /* no command */
    CU_ASSERT_STRING_EQUAL(drain(), "fa fa fa ab 83 ee fe");
    board_out(&t, 0x60, 1, 0xf5); /* no scanning: keys go nowhere */
    fvm_i8042_key(dev, 0x1e, true);
    CU_ASSERT_STRING_EQUAL(drain(), "fa");
    board_out(&t, 0x60, 1, 0xf4);
    (void)drain();
    for (unsigned i = 0; i < 200; i++) /* more than it holds: whole keys are lost, never halves */
        fvm_i8042_key(dev, FVM_KEY_E0 | 0x48, i % 2 == 0);
    CU_ASSERT_FALSE(fvm_i8042_key_room(dev));
    CU_ASSERT_EQUAL(strlen(drain()) % 3, 2);
    CU_ASSERT_TRUE(fvm_i8042_key_room(dev));
    down();
}

static void to_mouse(unsigned byte)
{
    board_out(&t, 0x64, 1, 0xd4);
    board_out(&t, 0x60, 1, byte);
}

static void test_mouse(void)
{
    static const uint8_t knock[6] = {200, 100, 80, 200, 200, 80};

    up();
    configure(0x47);
    to_mouse(0xff);
    CU_ASSERT_TRUE(t.level[12]);
    CU_ASSERT_EQUAL(board_in(&t, 0x64, 1) & 0x21, 0x21);
    CU_ASSERT_STRING_EQUAL(drain(), "fa aa 00");
    fvm_i8042_mouse(dev, 5, 5, 0, 0); /* not asked to report */
    CU_ASSERT_STRING_EQUAL(drain(), "");
    to_mouse(0xf4);
    fvm_i8042_mouse(dev, 5, -3, 0, 0);
    CU_ASSERT_STRING_EQUAL(drain(), "fa 08 05 03");
    fvm_i8042_mouse(dev, -300, 10, 0, 1); /* further than a report goes: a second one */
    CU_ASSERT_STRING_EQUAL(drain(), "39 01 f6 19 d3 00");
    to_mouse(0xf2);
    CU_ASSERT_STRING_EQUAL(drain(), "fa 00");
    for (unsigned i = 0; i < 6; i++) {
        to_mouse(0xf3);
        to_mouse(knock[i]);
        if (i == 2) {
            (void)drain();
            to_mouse(0xf2);
            CU_ASSERT_STRING_EQUAL(drain(), "fa 03");
        }
    }
    (void)drain();
    to_mouse(0xf2);
    CU_ASSERT_STRING_EQUAL(drain(), "fa 04");
    fvm_i8042_mouse(dev, 0, 0, -1, 0x10);
    CU_ASSERT_STRING_EQUAL(drain(), "08 00 00 2f");
    to_mouse(0xe9);
    CU_ASSERT_STRING_EQUAL(drain(), "fa 20 02 50");
    to_mouse(0xf0); /* remote: only when asked */
    fvm_i8042_mouse(dev, 7, 0, 0, 0);
    CU_ASSERT_STRING_EQUAL(drain(), "fa");
    to_mouse(0xeb);
    CU_ASSERT_STRING_EQUAL(drain(), "fa 08 07 00 00");
    to_mouse(0xee);
    to_mouse(0x42); /* wrap: echoes */
    CU_ASSERT_STRING_EQUAL(drain(), "fa 42");
    board_out(&t, 0x64, 1, 0xd3); /* the controller pretends */
    board_out(&t, 0x60, 1, 0x99);
    CU_ASSERT_EQUAL(board_in(&t, 0x64, 1) & 0x21, 0x21);
    CU_ASSERT_STRING_EQUAL(drain(), "99");
    down();
}

static void poke(struct test_board *b, struct fvm_device *victim)
{
    board_out(b, 0x60, 1, 0x5b);
    (void)board_in(b, 0x60, 1);
    (void)board_in(b, 0x64, 1);
    fvm_i8042_key(victim, 0x48 | FVM_KEY_E0, true);
    fvm_i8042_mouse(victim, 1, -1, 1, 3);
    for (unsigned i = 0; i < 10; i++)
        (void)board_in(b, 0x60, 1);
    board_out(b, 0x64, 1, 0xd4);
    board_out(b, 0x60, 1, 0xeb);
    board_out(b, 0x64, 1, 0x20);
}

static void test_state(void)
{
    struct test_board other;
    struct fvm_device *fresh;

    up();
    fvm_i8042_key(dev, 0x41, true);
    to_mouse(0xf4);
    fvm_i8042_mouse(dev, 4, 5, 6, 7);
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
        {"commands", test_commands}, {"reset", test_reset}, {"keyboard", test_keyboard}, {"mouse", test_mouse},
        {"state", test_state}};

    return board_main("device/i8042", tests, FVM_ARRAY_SIZE(tests));
}
