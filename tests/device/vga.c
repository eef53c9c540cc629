/* vga: planes, chained modes, dispi registers, what is drawn, the window of video memory, state. */
#include "vmm/devices/vga.h"

#include <stdlib.h>
#include <string.h>

#include "support_board.h"

enum { SLOT = 5 };

static struct test_board t;
static struct fvm_device *bridge, *dev;
static uint8_t rom[8192];

/* A font whose glyph c has c in its first row, behind something else, with the two faces that mark it. */
static void make_rom(void)
{
    static const uint8_t faces[2][16] = {{0, 0, 0x7e, 0x81, 0xa5, 0x81, 0x81, 0xbd, 0x99, 0x81, 0x81, 0x7e},
                                         {0, 0, 0x7e, 0xff, 0xdb, 0xff, 0xff, 0xc3, 0xe7, 0xff, 0xff, 0x7e}};

    memset(rom, 0, sizeof(rom));
    rom[0] = 0x55;
    rom[1] = 0xaa;
    for (unsigned c = 3; c < 256; c++)
        rom[1024 + 16 * c] = (uint8_t)c;
    memcpy(rom + 1024 + 16, faces, sizeof(faces));
}

static void board_with_vga(struct test_board *b, struct fvm_device **ret_bridge, struct fvm_device **ret_vga)
{
    make_rom();
    board_up(b, 1);
    CU_ASSERT_EQUAL_FATAL(fvm_pci_host_create(&b->board, ret_bridge), 0);
    CU_ASSERT_EQUAL_FATAL(
        fvm_vga_create(&b->board, fvm_pci_host_of(*ret_bridge), SLOT, rom, sizeof(rom), ret_vga), 0);
}

static void up(void) { board_with_vga(&t, &bridge, &dev); }

static void down(void)
{
    dev->ops->destroy(dev);
    bridge->ops->destroy(bridge);
    board_down(&t);
}

static void reg(struct test_board *b, unsigned port, unsigned index, unsigned value)
{
    board_out(b, port, 2, index | value << 8);
}

static void dispi(struct test_board *b, unsigned index, unsigned value)
{
    board_out(b, 0x1ce, 2, index);
    board_out(b, 0x1cf, 2, value);
}

static unsigned dispi_get(unsigned index)
{
    board_out(&t, 0x1ce, 2, index);
    return (unsigned)board_in(&t, 0x1cf, 2);
}

static uint32_t config(unsigned offset, unsigned size)
{
    return board_pci_read(&t, SLOT << 3, offset, size);
}

static void config_set(unsigned offset, unsigned size, uint32_t value)
{
    board_pci_write(&t, SLOT << 3, offset, size, value);
}

static void test_text(void)
{
    struct fvm_surface s = {0};
    char *text = NULL;

    up();
    board_mmio_write(&t, 0xb8000, 2, 0x0748);  /* H, grey on black */
    board_mmio_write(&t, 0xb8002, 2, 0x1f69);  /* i, white on blue */
    board_mmio_write(&t, 0xb8000 + 2 * 80, 4, 0x07ff0721);
    CU_ASSERT_EQUAL(board_mmio_read(&t, 0xb8002, 2), 0x1f69);
    CU_ASSERT_EQUAL_FATAL(fvm_vga_text(dev, &text), 0);
    CU_ASSERT_EQUAL(strncmp(text, "Hi\n!\n\n", 6), 0);
    free(text);
    CU_ASSERT_EQUAL_FATAL(fvm_vga_render(dev, &s), 0);
    CU_ASSERT_EQUAL(s.width, 720);
    CU_ASSERT_EQUAL(s.height, 400);
    for (unsigned x = 0; x < 8; x++) { /* first row: the character's code as bits */
        CU_ASSERT_EQUAL(s.pixels[x], 0x48 & 0x80 >> x ? 0xaaaaaau : 0u);
        CU_ASSERT_EQUAL(s.pixels[9 + x], 0x69 & 0x80 >> x ? 0xffffffu : 0xaau);
    }
    CU_ASSERT_EQUAL(s.pixels[17], 0xaa); /* the ninth column of a letter is background */
    CU_ASSERT_EQUAL(s.pixels[13 * 720], 0xaaaaaa); /* the cursor's lines 13 and 14 */
    reg(&t, 0x3d4, 0xa, 0x20);
    CU_ASSERT_EQUAL_FATAL(fvm_vga_render(dev, &s), 0);
    CU_ASSERT_EQUAL(s.pixels[13 * 720], 0);
    reg(&t, 0x3d4, 0xd, 80); /* scrolled by a line: start address */
    CU_ASSERT_EQUAL_FATAL(fvm_vga_text(dev, &text), 0);
    CU_ASSERT_EQUAL(strncmp(text, "!\n\n", 3), 0);
    free(text);
    reg(&t, 0x3c4, 1, 0x20); /* screen off */
    CU_ASSERT_EQUAL_FATAL(fvm_vga_render(dev, &s), 0);
    CU_ASSERT_EQUAL(s.pixels[9], 0);
    fvm_surface_fini(&s);
    down();
}

/* 640x480, 16 colours: mode 12h's registers that matter. */
static void planar_mode(struct test_board *b)
{
    reg(b, 0x3c4, 4, 6);
    reg(b, 0x3c4, 2, 0xf);
    reg(b, 0x3ce, 5, 0);
    reg(b, 0x3ce, 6, 5);
    reg(b, 0x3d4, 0x11, 0);
    reg(b, 0x3d4, 7, 0x3e);
    reg(b, 0x3d4, 9, 0x40);
    reg(b, 0x3d4, 0x12, 0xdf);
    reg(b, 0x3d4, 0x17, 0xe3);
}

static void test_planes(void)
{
    struct fvm_surface s = {0};

    up();
    memset(fvm_ram_hva(t.board.ram, t.board.ram->video_gpa), 0, 0x40000);
    planar_mode(&t);
    reg(&t, 0x3c4, 2, 5); /* planes 0 and 2: magenta */
    board_mmio_write(&t, 0xa0000, 1, 0xf0);
    reg(&t, 0x3c4, 2, 0xf);
    for (unsigned plane = 0; plane < 4; plane++) {
        reg(&t, 0x3ce, 4, plane);
        CU_ASSERT_EQUAL(board_mmio_read(&t, 0xa0000, 1), plane == 0 || plane == 2 ? 0xf0 : 0);
    }
    CU_ASSERT_EQUAL_FATAL(fvm_vga_render(dev, &s), 0);
    CU_ASSERT_EQUAL(s.width, 640);
    CU_ASSERT_EQUAL(s.height, 480);
    CU_ASSERT_EQUAL(s.pixels[3], 0xaa00aa);
    CU_ASSERT_EQUAL(s.pixels[4], 0);

    reg(&t, 0x3ce, 5, 1); /* write mode 1: the latches, wherever */
    (void)board_mmio_read(&t, 0xa0000, 1);
    board_mmio_write(&t, 0xa0001, 1, 0);
    reg(&t, 0x3ce, 5, 2); /* write mode 2: a colour, where the bit mask is set */
    reg(&t, 0x3ce, 8, 0x0f);
    (void)board_mmio_read(&t, 0xa0001, 1);
    board_mmio_write(&t, 0xa0001, 1, 2);
    CU_ASSERT_EQUAL_FATAL(fvm_vga_render(dev, &s), 0);
    CU_ASSERT_EQUAL(s.pixels[8], 0xaa00aa);
    CU_ASSERT_EQUAL(s.pixels[12], 0x00aa00);

    reg(&t, 0x3ce, 5, 3); /* write mode 3: set/reset through data & mask */
    reg(&t, 0x3ce, 0, 4);
    reg(&t, 0x3ce, 8, 0xff);
    (void)board_mmio_read(&t, 0xa0001, 1);
    board_mmio_write(&t, 0xa0001, 1, 0x81);
    CU_ASSERT_EQUAL_FATAL(fvm_vga_render(dev, &s), 0);
    CU_ASSERT_EQUAL(s.pixels[8], 0xaa0000);
    CU_ASSERT_EQUAL(s.pixels[9], 0xaa00aa);
    CU_ASSERT_EQUAL(s.pixels[15], 0xaa0000);

    reg(&t, 0x3ce, 5, 0); /* write mode 0 with set/reset, rotation and XOR */
    reg(&t, 0x3ce, 0, 0);
    reg(&t, 0x3ce, 1, 0);
    reg(&t, 0x3ce, 3, 0x18 | 4);
    board_mmio_write(&t, 0xa0100, 1, 0);
    (void)board_mmio_read(&t, 0xa0100, 1);
    board_mmio_write(&t, 0xa0100, 1, 0x0f);
    reg(&t, 0x3ce, 4, 3);
    CU_ASSERT_EQUAL(board_mmio_read(&t, 0xa0100, 1), 0xf0);
    (void)board_mmio_read(&t, 0xa0100, 1);
    board_mmio_write(&t, 0xa0100, 1, 0x0f);
    CU_ASSERT_EQUAL(board_mmio_read(&t, 0xa0100, 1), 0);

    reg(&t, 0x3ce, 5, 8); /* read mode 1: where is the colour? */
    reg(&t, 0x3ce, 2, 4);
    reg(&t, 0x3ce, 7, 0xf);
    CU_ASSERT_EQUAL(board_mmio_read(&t, 0xa0001, 1), 0x81);
    fvm_surface_fini(&s);
    down();
}

static void test_mode13(void)
{
    struct fvm_surface s = {0};

    up();
    memset(fvm_ram_hva(t.board.ram, t.board.ram->video_gpa), 0, 0x40000);
    reg(&t, 0x3c4, 4, 0xe);
    reg(&t, 0x3c4, 2, 0xf);
    reg(&t, 0x3ce, 5, 0x40);
    reg(&t, 0x3ce, 6, 5);
    reg(&t, 0x3d4, 9, 0x41);
    reg(&t, 0x3d4, 0x17, 0xe3);
    (void)board_in(&t, 0x3da, 1);
    board_out(&t, 0x3c0, 1, 0x30);
    board_out(&t, 0x3c0, 1, 0x41);
    board_out(&t, 0x3c8, 1, 200);
    board_out(&t, 0x3c9, 1, 63);
    board_out(&t, 0x3c9, 1, 32);
    board_out(&t, 0x3c9, 1, 0);
    board_mmio_write(&t, 0xa0000 + 320 * 7 + 9, 1, 200);
    CU_ASSERT_EQUAL(board_mmio_read(&t, 0xa0000 + 320 * 7 + 9, 1), 200);
    CU_ASSERT_EQUAL_FATAL(fvm_vga_render(dev, &s), 0);
    CU_ASSERT_EQUAL(s.width, 320);
    CU_ASSERT_EQUAL(s.height, 200);
    CU_ASSERT_EQUAL(s.pixels[320 * 7 + 9], 0xff8200);
    CU_ASSERT_EQUAL(s.pixels[320 * 7 + 8], 0);
    board_out(&t, 0x3c7, 1, 200);
    CU_ASSERT_EQUAL(board_in(&t, 0x3c9, 1), 63);
    CU_ASSERT_EQUAL(board_in(&t, 0x3c9, 1), 32);
    fvm_surface_fini(&s);
    down();
}

static void set_linear(struct test_board *b, unsigned x, unsigned y, unsigned bpp)
{
    dispi(b, 4, 0);
    dispi(b, 1, x);
    dispi(b, 2, y);
    dispi(b, 3, bpp);
    dispi(b, 4, 0x41);
}

static void test_linear(void)
{
    struct fvm_surface s = {0};
    uint8_t *memory;

    up();
    memory = fvm_ram_hva(t.board.ram, t.board.ram->video_gpa);
    CU_ASSERT_EQUAL(dispi_get(0), 0xb0c5);
    CU_ASSERT_EQUAL(dispi_get(10), 256);
    dispi(&t, 4, 2);
    CU_ASSERT_EQUAL(dispi_get(1), FVM_VGA_WIDTH_MAX);
    dispi(&t, 4, 0);
    memory[0] = 0x55;
    set_linear(&t, 800, 600, 32);
    CU_ASSERT_EQUAL(memory[0], 0); /* cleared */
    CU_ASSERT_EQUAL(dispi_get(6), 800);
    memcpy(memory + 4 * (800 * 3 + 2), "\x33\x22\x11\xff", 4);
    CU_ASSERT_EQUAL_FATAL(fvm_vga_render(dev, &s), 0);
    CU_ASSERT_EQUAL(s.width, 800);
    CU_ASSERT_EQUAL(s.height, 600);
    CU_ASSERT_EQUAL(s.pixels[800 * 3 + 2], 0x112233);
    board_out(&t, 0x1ce, 2, 5); /* the banked window reaches it too */
    CU_ASSERT_EQUAL(board_mmio_read(&t, 0xa0000 + 4 * (800 * 3 + 2), 4), 0xff112233);
    dispi(&t, 8, 2);
    dispi(&t, 9, 3);
    CU_ASSERT_EQUAL_FATAL(fvm_vga_render(dev, &s), 0);
    CU_ASSERT_EQUAL(s.pixels[0], 0x112233);
    dispi(&t, 9, 0xffff); /* beyond memory: black, no crash */
    CU_ASSERT_EQUAL_FATAL(fvm_vga_render(dev, &s), 0);
    CU_ASSERT_EQUAL(s.pixels[0], 0);
    set_linear(&t, 640, 480, 16);
    memcpy(memory, "\x00\xf8\xe0\x07", 4);
    CU_ASSERT_EQUAL_FATAL(fvm_vga_render(dev, &s), 0);
    CU_ASSERT_EQUAL(s.pixels[0], 0xff0000);
    CU_ASSERT_EQUAL(s.pixels[1], 0x00ff00);
    set_linear(&t, 640, 480, 8);
    dispi(&t, 5, 17); /* bank 17 */
    board_mmio_write(&t, 0xa0000, 1, 7);
    CU_ASSERT_EQUAL(memory[17 * 65536], 7);
    set_linear(&t, 0, 480, 8); /* no such mode: refused */
    CU_ASSERT_EQUAL(dispi_get(4) & 1, 0);
    fvm_surface_fini(&s);
    down();
}

static void test_pci(void)
{
    struct fvm_ram *ram;
    fvm_gpa gpa = 0xa0000;

    up();
    ram = t.board.ram;
    CU_ASSERT_FALSE(fvm_ram_direct(ram, &gpa)); /* a device answers there */
    gpa = 0xc0000;
    CU_ASSERT_TRUE(fvm_ram_direct(ram, &gpa));
    CU_ASSERT_EQUAL(config(0, 4), 0x11111234);
    CU_ASSERT_EQUAL(config(8, 4) >> 8, 0x030000);
    config_set(0x10, 4, 0xffffffff);
    CU_ASSERT_EQUAL(config(0x10, 4), 0xff000000);
    config_set(0x10, 4, 0xd0000000);
    gpa = 0xd0001000;
    CU_ASSERT_FALSE(fvm_ram_direct(ram, &gpa)); /* decoding is off */
    config_set(4, 2, 2);
    CU_ASSERT_TRUE(fvm_ram_direct(ram, &gpa));
    CU_ASSERT_EQUAL(gpa, ram->video_gpa + 0x1000);
    CU_ASSERT_TRUE(fvm_ram_is_video(ram, gpa));
    CU_ASSERT_FALSE(fvm_ram_contains(ram, gpa, 1));
    board_mmio_write(&t, 0xd0001000, 4, 0x12345678);
    CU_ASSERT_EQUAL(*(uint32_t *)(void *)fvm_ram_hva(ram, gpa), 0x12345678);
    CU_ASSERT_EQUAL(ram->version[gpa >> FVM_PAGE_SHIFT], ram->epoch);
    config_set(0x10, 4, 0xe0000000);
    gpa = 0xd0001000;
    CU_ASSERT_FALSE(fvm_ram_direct(ram, &gpa));
    config_set(0x18, 4, 0xd8000000); /* registers */
    CU_ASSERT_EQUAL(board_mmio_read(&t, 0xd8000500, 2), 0xb0c5);
    CU_ASSERT_EQUAL(board_mmio_read(&t, 0xd800040c, 1), 0x67);
    config_set(0x30, 4, 0xffffffff); /* expansion ROM */
    CU_ASSERT_EQUAL(config(0x30, 4), 0xffffe001);
    config_set(0x30, 4, 0xd9000001);
    CU_ASSERT_EQUAL(board_mmio_read(&t, 0xd9000000, 2), 0xaa55);
    config_set(0x30, 4, 0xd9000000);
    CU_ASSERT_EQUAL(board_mmio_read(&t, 0xd9000000, 2), 0xffff);
    down();
}

static void test_retrace(void)
{
    unsigned seen = 0;

    up();
    for (unsigned i = 0; i < 2000; i++) { /* both ends of a retrace loop come, within two frames */
        board_advance(&t, 16000);
        seen |= board_in(&t, 0x3da, 1) & 8 ? 2 : 1;
    }
    CU_ASSERT_EQUAL(seen, 3);
    down();
}

static void poke(struct test_board *b, struct fvm_device *victim)
{
    struct fvm_surface s = {0};

    CU_ASSERT_EQUAL(fvm_vga_render(victim, &s), 0);
    fvm_surface_fini(&s);
    board_mmio_write(b, 0xa0000, 8, 0x1122334455667788);
    (void)board_mmio_read(b, 0xb8000, 8);
    (void)board_mmio_read(b, 0xaffff, 1);
    dispi(b, 5, 3);
    board_mmio_write(b, 0xaffff, 1, 1);
    board_out(b, 0x3c9, 1, 1);
    board_out(b, 0x3c0, 1, 5);
    (void)board_in(b, 0x3c5, 1);
    (void)board_in(b, 0x3d5, 1);
}

static void test_state(void)
{
    struct test_board other;
    struct fvm_device *other_bridge, *fresh;
    struct fvm_surface a = {0}, b = {0};

    up();
    set_linear(&t, 320, 200, 32);
    for (unsigned i = 0; i < 320 * 200; i++)
        board_mmio_write(&t, 0xa0000 + i % 16384 * 4, 4, i * 2654435761u);
    board_out(&t, 0x3c9, 1, 1);
    board_with_vga(&other, &other_bridge, &fresh);
    board_roundtrip(dev, fresh);
    CU_ASSERT_EQUAL_FATAL(fvm_vga_render(dev, &a), 0);
    CU_ASSERT_EQUAL_FATAL(fvm_vga_render(fresh, &b), 0);
    CU_ASSERT_EQUAL(a.width, b.width);
    CU_ASSERT_EQUAL(memcmp(a.pixels, b.pixels, 320 * 200 * 4), 0);
    dev->ops->reset(dev); /* text: a small state, so that the mutations meet registers */
    board_hostile(&other, dev, fresh, 1500, poke);
    fvm_surface_fini(&a);
    fvm_surface_fini(&b);
    fresh->ops->destroy(fresh);
    other_bridge->ops->destroy(other_bridge);
    board_down(&other);
    down();
}

/* Any registers at all: the renderer stays inside. */
static void test_hostile_registers(void)
{
    struct fvm_surface s = {0};
    uint64_t rng = 0x123456789abcdef1ull;

    up();
    for (unsigned i = 0; i < 3000; i++) {
        static const uint16_t ports[] = {0x3c4, 0x3ce, 0x3d4, 0x3c0, 0x3c2, 0x3c6};

        for (unsigned k = 0; k < 6; k++) {
            rng ^= rng << 13, rng ^= rng >> 7, rng ^= rng << 17;
            board_out(&t, ports[rng % 6], 2, rng >> 16 & 0xffff);
            dispi(&t, rng >> 32 & 15, (unsigned)(rng >> 40) & (rng & 1 ? 0xffff : 0x3ff));
            board_mmio_write(&t, 0xa0000 + (rng >> 20 & 0x1fff8), 8, rng);
        }
        CU_ASSERT_EQUAL(fvm_vga_render(dev, &s), 0);
        CU_ASSERT(s.width <= FVM_VGA_WIDTH_MAX && s.height <= FVM_VGA_HEIGHT_MAX);
        if (i % 16 == 0)
            dev->ops->reset(dev);
    }
    fvm_surface_fini(&s);
    down();
}

int main(void)
{
    static const struct board_test tests[] = {
        {"text", test_text}, {"planes", test_planes}, {"mode 13h", test_mode13}, {"linear", test_linear},
        {"pci", test_pci}, {"retrace", test_retrace}, {"state", test_state},
        {"any registers", test_hostile_registers}};

    return board_main("device/vga", tests, FVM_ARRAY_SIZE(tests));
}
