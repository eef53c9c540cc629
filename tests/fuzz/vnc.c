/* A VNC client's bytes, in any cut, against a session whose screen changes: no crash, keys in range, output bounded. */
#include "vmm/vnc.h"

#include <stdlib.h>
#include <string.h>

#include "tests/fuzz/fuzz.h"
#include "vmm/devices/ps2.h"

static int screen(void *ctx, struct fvm_surface *ret)
{
    unsigned *turn = ctx, n = (*turn)++;
    int r = fvm_surface_size(ret, n % 3 ? 100 : 65, n % 5 ? 50 : 33);
    for (unsigned i = 0; !r && i < ret->width * ret->height; i++)
        ret->pixels[i] = i % 37 < n % 37 ? i * n & 0xffffff : 0;
    return r;
}

static void key(void *ctx, unsigned k, bool down)
{
    (void)ctx;
    (void)down;
    if (!k || k >= FVM_KEYS)
        abort();
}

static void mouse(void *ctx, int dx, int dy, int dz, unsigned buttons)
{
    (void)ctx;
    if (abs(dx) > 65535 || abs(dy) > 65535 || abs(dz) > 1 || buttons > 7)
        abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const uint8_t challenge[16] = "fedcba9876543210";
    unsigned turn = 0;
    const struct fvm_vnc_host host = {.screen = screen, .key = key, .mouse = mouse, .ctx = &turn, .name = "fuzz"};
    struct fvm_vnc_session *s;
    if (!size || fvm_vnc_session_create(&host, data[0] & 1 ? "secret" : NULL, challenge, &s))
        return 0;
    size_t cut = 1 + (data[0] >> 1);
    for (size_t at = 1; at < size; at += cut) {
        if (fvm_vnc_session_input(s, data + at, FVM_MIN(cut, size - at)))
            break;
        (void)fvm_vnc_session_update(s);
        struct fvm_vnc_buffer *out = fvm_vnc_session_output(s);
        if (out->len > FVM_VNC_OUT_MAX)
            abort();
        if (at % 3)
            out->len = 0; /* a client that reads, mostly */
    }
    fvm_vnc_session_destroy(&s);
    return 0;
}

size_t fuzz_seed(unsigned i, uint8_t *buf)
{
#define SEED(text) {text, sizeof(text) - 1}
    static const struct {
        const char *bytes;
        size_t len;
    } seeds[] = {
        SEED("\x3e" "RFB 003.008\n\1\1\2\0\0\3\0\0\0\5\xff\xff\xff\x21\xff\xff\xfe\xfe\3\0\0\0\0\0\0\x40\0\x50"
             "\3\1\0\0\0\0\0\x40\0\x50\4\1\0\0\0\0\xff\x1b\5\1\0\x10\0\x20\3\1\0\0\0\0\0\x40\0\x50"),
        SEED("\x10" "RFB 003.003\n\1\0\0\0\0\x10\x10\1\1\0\x1f\0\x3f\0\x1f\x0b\5\0\0\0\0\3\0\0\0\0\0\0\x40\0\x50"
             "\6\0\0\0\0\0\0\5hello\xff\0\0\1\0\0\xff\x52\0\0\0\xc8\3\1\0\0\0\0\0\x40\0\x50"),
        SEED("\x07" "RFB 003.007\n\2aaaaaaaaaaaaaaaa\1"),
    };
    if (i >= FVM_ARRAY_SIZE(seeds))
        return 0;
    memcpy(buf, seeds[i].bytes, seeds[i].len);
    return seeds[i].len;
}
