/* vnc_session: handshakes of three protocol versions, password, updates decoded as a client does, keys, pointer. */
#include "vmm/vnc.h"

#include <CUnit/Basic.h>
#include <nettle/des.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "vmm/devices/ps2.h"

static struct { /* the host that the session shows and drives */
    unsigned width, height;
    uint32_t pixel[64 * 80];
    char log[400];
} h;

static struct fvm_vnc_session *session;
static uint8_t in[1 << 20]; /* what a client received */
static size_t in_len;

static int host_screen(void *ctx, struct fvm_surface *ret)
{
    (void)ctx;
    int r = fvm_surface_size(ret, h.width, h.height);
    for (unsigned i = 0; !r && i < h.width * h.height; i++)
        ret->pixels[i] = h.pixel[i % FVM_ARRAY_SIZE(h.pixel)];
    return r;
}

static void host_key(void *ctx, unsigned key, bool down)
{
    (void)ctx;
    size_t n = strlen(h.log);
    snprintf(h.log + n, sizeof(h.log) - n, "%c%x ", down ? '+' : '-', key);
}

static void host_mouse(void *ctx, int dx, int dy, int dz, unsigned buttons)
{
    (void)ctx;
    size_t n = strlen(h.log);
    snprintf(h.log + n, sizeof(h.log) - n, "%d,%d,%d,%x ", dx, dy, dz, buttons);
}

static void receive(void)
{
    struct fvm_vnc_buffer *out = fvm_vnc_session_output(session);
    CU_ASSERT_FATAL(in_len + out->len <= sizeof(in));
    memcpy(in + in_len, out->bytes, out->len);
    in_len += out->len;
    out->len = 0;
}

static void up(const char *password)
{
    static const uint8_t challenge[16] = "0123456789abcdef";
    const struct fvm_vnc_host host = {.screen = host_screen, .key = host_key, .mouse = host_mouse, .name = "guest"};
    memset(&h, 0, sizeof(h));
    h.width = 64;
    h.height = 80;
    in_len = 0;
    CU_ASSERT_EQUAL_FATAL(fvm_vnc_session_create(&host, password, challenge, &session), 0);
}

static int send_bytes(const void *bytes, size_t len)
{
    int r = 0;
    for (size_t i = 0; !r && i < len; i++) /* the worst cut */
        r = fvm_vnc_session_input(session, (const uint8_t *)bytes + i, 1);
    receive();
    return r;
}
#define SEND(literal) send_bytes(literal, sizeof(literal) - 1)

/* The next bytes must be these. */
static void expect(const void *bytes, size_t len)
{
    CU_ASSERT_FATAL(in_len >= len);
    CU_ASSERT_EQUAL(memcmp(in, bytes, len), 0);
    memmove(in, in + len, in_len - len);
    in_len -= len;
}
#define EXPECT(literal) expect(literal, sizeof(literal) - 1)

static void expect_init(void)
{
    EXPECT("\0\x40\0\x50" "\x20\x18\0\1\0\xff\0\xff\0\xff\x10\x08\0\0\0\0" "\0\0\0\5guest");
    CU_ASSERT_EQUAL(in_len, 0);
}

static void test_versions(void)
{
    up(NULL);
    CU_ASSERT_EQUAL(SEND("RFB 003.008\n"), 0);
    EXPECT("RFB 003.008\n\1\1");
    CU_ASSERT_EQUAL(SEND("\1\1"), 0);
    EXPECT("\0\0\0\0");
    expect_init();
    fvm_vnc_session_destroy(&session);
    up(NULL);
    CU_ASSERT_EQUAL(SEND("RFB 003.007\n\1\0"), 0);
    EXPECT("RFB 003.008\n\1\1");
    expect_init();
    fvm_vnc_session_destroy(&session);
    up(NULL);
    CU_ASSERT_EQUAL(SEND("RFB 003.003\n\1"), 0);
    EXPECT("RFB 003.008\n\0\0\0\1");
    expect_init();
    fvm_vnc_session_destroy(&session);
    up(NULL);
    CU_ASSERT_EQUAL(SEND("GET / HTTP/1.1\r\n"), FVM_EPROTO);
    CU_ASSERT_EQUAL(SEND("x"), FVM_EPROTO);
    fvm_vnc_session_destroy(&session);
    up(NULL);
    CU_ASSERT_EQUAL(SEND("RFB 003.008\n\2"), FVM_EPROTO); /* a security type that was not offered */
    fvm_vnc_session_destroy(&session);
}

static void answer(const char *password, uint8_t out[16])
{
    uint8_t key[8] = {0};
    struct des_ctx des;
    for (unsigned i = 0; i < 8 && password[i]; i++)
        for (unsigned bit = 0; bit < 8; bit++)
            key[i] |= (uint8_t)((password[i] >> bit & 1) << (7 - bit));
    des_set_key(&des, key);
    des_encrypt(&des, 16, out, (const uint8_t *)"0123456789abcdef");
}

static void test_password(void)
{
    uint8_t response[16];
    up("sesame");
    CU_ASSERT_EQUAL(SEND("RFB 003.008\n\2"), 0);
    EXPECT("RFB 003.008\n\1\2" "0123456789abcdef");
    answer("sesame", response);
    CU_ASSERT_EQUAL(send_bytes(response, 16), 0);
    EXPECT("\0\0\0\0");
    CU_ASSERT_EQUAL(SEND("\1"), 0);
    expect_init();
    fvm_vnc_session_destroy(&session);
    up("sesame");
    CU_ASSERT_EQUAL(SEND("RFB 003.008\n\1"), FVM_EPROTO); /* none is not offered */
    fvm_vnc_session_destroy(&session);
    up("sesame");
    (void)SEND("RFB 003.008\n\2");
    EXPECT("RFB 003.008\n\1\2" "0123456789abcdef");
    answer("sesam", response);
    CU_ASSERT_EQUAL(send_bytes(response, 16), FVM_EAUTH);
    EXPECT("\0\0\0\1\0\0\0\x15the password is wrong");
    CU_ASSERT_EQUAL(SEND("\1"), FVM_EPROTO);
    CU_ASSERT_EQUAL(in_len, 0);
    fvm_vnc_session_destroy(&session);
}

static void connected(const char *encodings, size_t len)
{
    up(NULL);
    (void)SEND("RFB 003.008\n\1\1");
    in_len = 0;
    CU_ASSERT_EQUAL(send_bytes(encodings, len), 0);
}

/* A client that decodes what it got into `screen`; returns how many rectangles. */
static uint32_t screen[256 * 256];
static unsigned width, height;

static unsigned be16(const uint8_t *p) { return (unsigned)p[0] << 8 | p[1]; }
static uint32_t pixel32(const uint8_t *p) { uint32_t v; memcpy(&v, p, 4); return v; }

static size_t decode_tile(const uint8_t *p, unsigned x, unsigned y, unsigned w, unsigned hh, uint32_t *bg, uint32_t *fg)
{
    const uint8_t *start = p;
    unsigned flags = *p++;
    if (flags & 1) {
        for (unsigned r = 0; r < hh; r++)
            for (unsigned c = 0; c < w; c++, p += 4)
                screen[(y + r) * width + x + c] = pixel32(p);
        return (size_t)(p - start);
    }
    if (flags & 2)
        *bg = pixel32(p), p += 4;
    if (flags & 4)
        *fg = pixel32(p), p += 4;
    for (unsigned r = 0; r < hh; r++)
        for (unsigned c = 0; c < w; c++)
            screen[(y + r) * width + x + c] = *bg;
    for (unsigned n = flags & 8 ? *p++ : 0; n; n--, p += 2)
        for (unsigned r = 0; r < (p[1] & 15u) + 1; r++)
            for (unsigned c = 0; c < (p[1] >> 4) + 1u; c++)
                screen[(y + (p[0] & 15u) + r) * width + x + (p[0] >> 4) + c] = *fg;
    return (size_t)(p - start);
}

static unsigned decode(void)
{
    const uint8_t *p = in;
    if (!in_len)
        return 0;
    CU_ASSERT_EQUAL_FATAL(p[0], 0);
    unsigned count = be16(p + 2);
    p += 4;
    for (unsigned i = 0; i < count; i++) {
        unsigned x = be16(p), y = be16(p + 2), w = be16(p + 4), hh = be16(p + 6);
        int32_t encoding = (int32_t)(be16(p + 8) << 16 | be16(p + 10));
        p += 12;
        if (encoding == -223) {
            width = w;
            height = hh;
        } else if (encoding == 0) {
            for (unsigned r = 0; r < hh; r++)
                for (unsigned c = 0; c < w; c++, p += 4)
                    screen[(y + r) * width + x + c] = pixel32(p);
        } else if (encoding == 5) {
            uint32_t bg = 0, fg = 0;
            for (unsigned ty = 0; ty < hh; ty += 16)
                for (unsigned tx = 0; tx < w; tx += 16)
                    p += decode_tile(p, x + tx, y + ty, FVM_MIN(16u, w - tx), FVM_MIN(16u, hh - ty), &bg, &fg);
        } else {
            CU_ASSERT_EQUAL(encoding, -258);
        }
    }
    CU_ASSERT_EQUAL((size_t)(p - in), in_len);
    in_len = 0;
    return count;
}

static bool same(void)
{
    for (unsigned i = 0; i < width * height; i++)
        if (screen[i] != h.pixel[i % FVM_ARRAY_SIZE(h.pixel)])
            return false;
    return true;
}

static bool update(void)
{
    bool waits = fvm_vnc_session_update(session);
    receive();
    return waits;
}

static void exercise(const char *encodings, size_t len)
{
    connected(encodings, len);
    width = 64;
    height = 80;
    for (unsigned i = 0; i < FVM_ARRAY_SIZE(h.pixel); i++)
        h.pixel[i] = i < 2000 ? 0x102030 : i < 3000 ? (i % 7 < 3 ? 0xffffff : 0) : i * 0x010305u & 0xffffff;
    CU_ASSERT_FALSE(update()); /* nothing is asked for */
    CU_ASSERT_EQUAL(in_len, 0);
    (void)SEND("\3\0\0\0\0\0\0\x40\0\x50");
    CU_ASSERT_FALSE(update());
    CU_ASSERT(decode() > 0);
    CU_ASSERT_TRUE(same());
    (void)SEND("\3\1\0\0\0\0\0\x40\0\x50");
    CU_ASSERT_TRUE(update()); /* nothing changed: it waits */
    CU_ASSERT_EQUAL(in_len, 0);
    h.pixel[64 * 40 + 5] ^= 0xff00;
    h.pixel[64 * 79 + 63] ^= 0xff;
    CU_ASSERT_FALSE(update());
    CU_ASSERT_EQUAL(decode(), 2);
    CU_ASSERT_TRUE(same());
    fvm_vnc_session_destroy(&session);
}

static void test_updates(void)
{
    exercise("\2\0\0\1\0\0\0\0", 8);
    exercise("\2\0\0\2\0\0\0\5\0\0\0\0", 12);
}

static void test_resize(void)
{
    connected("\2\0\0\1\xff\xff\xff\x21", 8); /* DesktopSize */
    width = 64;
    height = 80;
    (void)SEND("\3\0\0\0\0\0\0\x40\0\x50");
    (void)update();
    (void)decode();
    h.width = 80;
    h.height = 64;
    h.pixel[70] = 0x123456;
    (void)SEND("\3\1\0\0\0\0\0\x40\0\x50");
    CU_ASSERT_FALSE(update());
    CU_ASSERT(decode() > 1);
    CU_ASSERT(width == 80 && height == 64 && same());
    fvm_vnc_session_destroy(&session);
    connected("\2\0\0\0", 4); /* a client that cannot: the picture is cut */
    width = 64;
    height = 80;
    h.width = 80;
    h.height = 64;
    h.pixel[63] = 0x123456;
    (void)SEND("\3\0\0\0\0\0\0\x40\0\x50");
    CU_ASSERT_FALSE(update());
    CU_ASSERT(decode() > 0);
    CU_ASSERT_EQUAL(screen[63], 0x123456);
    CU_ASSERT_EQUAL(screen[64 * 79], 0);
    fvm_vnc_session_destroy(&session);
}

static void test_formats(void)
{
    connected("\2\0\0\0", 4);
    h.pixel[0] = 0xff8000;
    CU_ASSERT_EQUAL(SEND("\0\0\0\0\x10\x10\1\1\0\x1f\0\x3f\0\x1f\x0b\5\0\0\0\0"), 0); /* 565, big endian */
    (void)SEND("\3\0\0\0\0\0\0\x40\0\x50");
    CU_ASSERT_FALSE(update());
    CU_ASSERT_EQUAL(memcmp(in + 16, "\xfc\x00", 2), 0);
    CU_ASSERT_EQUAL(SEND("\0\0\0\0\x08\x08\0\0\0\7\0\7\0\3\0\3\6\0\0\0"), FVM_EPROTO); /* a colour map */
    fvm_vnc_session_destroy(&session);
    connected("\2\0\0\0", 4);
    CU_ASSERT_EQUAL(SEND("\0\0\0\0\x10\x10\0\1\0\xff\0\xff\0\xff\x10\x08\0\0\0\0"), FVM_EPROTO); /* does not fit */
    fvm_vnc_session_destroy(&session);
}

static void test_input(void)
{
    connected("\2\0\0\1\xff\xff\xfe\xfe", 8); /* extended keys */
    (void)SEND("\3\0\0\0\0\0\0\x40\0\x50");
    (void)update();
    width = 64;
    (void)decode();
    (void)SEND("\4\1\0\0\0\0\0a" "\4\0\0\0\0\0\0a" "\4\1\0\0\0\0\xff\xe1");
    (void)SEND("\xff\0\0\1\0\0\xff\x52\0\0\0\xc8" "\xff\0\0\0\0\0\xff\x52\0\0\0\xc8");
    (void)SEND("\5\0\0\x10\0\x20" "\5\1\0\x12\0\x1f" "\5\6\0\x12\0\x1f" "\5\x10\0\x12\0\x1f");
    (void)SEND("\6\0\0\0\0\0\0\x05hello" "\6\0\0\0\xff\xff\xff\xfcxxxx");
    CU_ASSERT_EQUAL(SEND("\4\1\0\0\0\0\xff\x1b"), 0);
    fvm_vnc_session_destroy(&session); /* what is held is let go */
    CU_ASSERT_STRING_EQUAL(h.log, "+1e -1e +2a +c8 -c8 0,0,0,0 2,-1,0,1 0,0,0,6 0,0,1,0 +1 -1 -2a ");
    connected("\2\0\0\0", 4);
    CU_ASSERT_EQUAL(SEND("\xff\1"), FVM_EPROTO);
    fvm_vnc_session_destroy(&session);
    connected("\2\0\0\0", 4);
    CU_ASSERT_EQUAL(SEND("\2\0\xff\xff"), FVM_EPROTO); /* more encodings than anybody has */
    fvm_vnc_session_destroy(&session);
    connected("\2\0\0\0", 4);
    CU_ASSERT_EQUAL(SEND("\x63"), FVM_EPROTO);
    fvm_vnc_session_destroy(&session);
}

int main(void)
{
    CU_initialize_registry();
    CU_pSuite s = CU_add_suite("unit/vnc", NULL, NULL);
    CU_add_test(s, "versions", test_versions);
    CU_add_test(s, "password", test_password);
    CU_add_test(s, "updates", test_updates);
    CU_add_test(s, "resize", test_resize);
    CU_add_test(s, "formats", test_formats);
    CU_add_test(s, "input", test_input);
    CU_basic_set_mode(CU_BRM_VERBOSE);
    CU_basic_run_tests();
    unsigned bad = CU_get_number_of_failures();
    CU_cleanup_registry();
    return bad != 0;
}
