/* vm_keys: chords, characters, keysyms; and the PNG writer, whose pictures zlib can read back. */
#include "vmm/vm_keys.h"

#include <CUnit/Basic.h>
#include <stdlib.h>
#include <string.h>
#include <zlib.h>

#include "cluster/fvm_png.h"
#include "vmm/devices/ps2.h"

static void test_chords(void)
{
    unsigned keys[FVM_KEYS_CHORD_MAX];
    struct fvm_err err = {0};
    CU_ASSERT_EQUAL(fvm_keys_parse("ctrl-alt-f2", keys, &err), 3);
    CU_ASSERT(keys[0] == 0x1d && keys[1] == 0x38 && keys[2] == 60);
    CU_ASSERT_EQUAL(fvm_keys_parse("a", keys, &err), 1);
    CU_ASSERT_EQUAL(keys[0], 0x1e);
    CU_ASSERT_EQUAL(fvm_keys_parse("Delete", keys, &err), 1);
    CU_ASSERT_EQUAL(keys[0], (FVM_KEY_E0 | 83));
    CU_ASSERT_EQUAL(fvm_keys_parse("altgr-pause", keys, &err), 2);
    CU_ASSERT_EQUAL(keys[1], FVM_KEY_PAUSE);
    static const char *const wrong[] = {"", "-", "ctrl-", "ctrl--a", "A", "hyper-x", "a-b-c-d-e-f-g-h-i", "f13"};
    for (size_t i = 0; i < FVM_ARRAY_SIZE(wrong); i++) {
        err.text[0] = 0;
        CU_ASSERT_EQUAL(fvm_keys_parse(wrong[i], keys, &err), FVM_EINVAL);
        CU_ASSERT(err.text[0] != 0);
    }
}

static void test_characters(void)
{
    bool shift, seen[2][128] = {{false}};
    for (unsigned c = 0x20; c < 0x7f; c++) { /* every printable character, each by a key of its own */
        unsigned key = fvm_keys_of_char((unsigned char)c, &shift);
        CU_ASSERT(key > 0 && key < 128 && (c == ' ' || !seen[shift][key]));
        seen[shift][key & 127] = true;
        CU_ASSERT_EQUAL(fvm_keys_of_keysym(c), key);
    }
    CU_ASSERT_EQUAL(fvm_keys_of_char('A', &shift), 0x1e);
    CU_ASSERT_TRUE(shift);
    CU_ASSERT_EQUAL(fvm_keys_of_char('\r', &shift), 28);
    CU_ASSERT_FALSE(shift);
    CU_ASSERT_EQUAL(fvm_keys_of_char(0xe4, &shift), 0);
    CU_ASSERT_EQUAL(fvm_keys_of_char(0, &shift), 0);
    CU_ASSERT_EQUAL(fvm_keys_of_keysym(0xffbe), 59);
    CU_ASSERT_EQUAL(fvm_keys_of_keysym(0xffc9), 88);
    CU_ASSERT_EQUAL(fvm_keys_of_keysym(0xff52), (FVM_KEY_E0 | 72));
    CU_ASSERT_EQUAL(fvm_keys_of_keysym(0x1000000), 0);
}

static uint32_t get32(const uint8_t *p) { return (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3]; }

static void test_png(void)
{
    struct fvm_surface s = {0};
    uint8_t *png = NULL, raw[8 * (1 + 3 * 5)];
    size_t len = 0;
    uLongf raw_len = sizeof(raw);
    CU_ASSERT_EQUAL_FATAL(fvm_surface_size(&s, 5, 8), 0);
    for (unsigned i = 0; i < 40; i++)
        s.pixels[i] = i / 5 == 3 ? s.pixels[i - 5] : i * 0x01020304u & 0xffffff;
    CU_ASSERT_EQUAL_FATAL(fvm_png_make(&s, &png, &len), 0);
    CU_ASSERT_EQUAL(memcmp(png, "\x89PNG\r\n\x1a\n", 8), 0);
    CU_ASSERT_EQUAL(get32(png + 16), 5);
    CU_ASSERT_EQUAL(get32(png + 20), 8);
    size_t at = 8;
    while (at < len) { /* every chunk's checksum */
        uint32_t n = get32(png + at);
        CU_ASSERT_EQUAL_FATAL(get32(png + at + 8 + n), (uint32_t)crc32(0, png + at + 4, n + 4));
        if (!memcmp(png + at + 4, "IDAT", 4))
            CU_ASSERT_EQUAL(uncompress(raw, &raw_len, png + at + 8, n), Z_OK);
        at += 12 + n;
    }
    CU_ASSERT_EQUAL(at, len);
    CU_ASSERT_EQUAL(raw_len, sizeof(raw));
    for (unsigned y = 0; y < 8; y++) {
        const uint8_t *line = raw + 16 * y;
        CU_ASSERT_EQUAL(line[0], y == 3 ? 2 : 0);
        for (unsigned x = 0; x < 5; x++) {
            uint32_t rgb = (uint32_t)line[1 + 3 * x] << 16 | (uint32_t)line[2 + 3 * x] << 8 | line[3 + 3 * x];
            CU_ASSERT_EQUAL(rgb, y == 3 ? 0 : s.pixels[5 * y + x]);
        }
    }
    free(png);
    fvm_surface_fini(&s);
    CU_ASSERT_EQUAL(fvm_surface_size(&s, FVM_VGA_WIDTH_MAX + 1, 1), FVM_EINVAL);
    CU_ASSERT_EQUAL(fvm_surface_size(&s, 0, 1), FVM_EINVAL);
}

int main(void)
{
    CU_initialize_registry();
    CU_pSuite s = CU_add_suite("unit/vm_keys", NULL, NULL);
    CU_add_test(s, "chords", test_chords);
    CU_add_test(s, "characters", test_characters);
    CU_add_test(s, "png", test_png);
    CU_basic_set_mode(CU_BRM_VERBOSE);
    CU_basic_run_tests();
    unsigned bad = CU_get_number_of_failures();
    CU_cleanup_registry();
    return bad != 0;
}
