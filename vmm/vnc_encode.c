/*
 * vnc_encode.c - pixels as a VNC client wants them: its pixel format, raw or in hextiles (RFC 6143, 7.7). Pure.
 */
#include <stdlib.h>
#include <string.h>

#include "vmm/vnc.h"

enum { TILE = 16, HEX_RAW = 1, HEX_BACKGROUND = 2, HEX_FOREGROUND = 4, HEX_SUBRECTS = 8 };

void fvm_vnc_put(struct fvm_vnc_buffer *out, const void *bytes, size_t len)
{
    if (out->failed || len > FVM_VNC_OUT_MAX - out->len) {
        out->failed = true;
        return;
    }
    if (out->len + len > out->room) {
        size_t room = FVM_ALIGN_UP(FVM_MAX(out->len + len, out->room + out->room / 2), (size_t)4096);
        uint8_t *grown = realloc(out->bytes, room);
        if (!grown) {
            out->failed = true;
            return;
        }
        out->bytes = grown;
        out->room = room;
    }
    memcpy(out->bytes + out->len, bytes, len);
    out->len += len;
}

void fvm_vnc_put16(struct fvm_vnc_buffer *out, unsigned value)
{
    const uint8_t b[2] = {(uint8_t)(value >> 8), (uint8_t)value};
    fvm_vnc_put(out, b, sizeof(b));
}

void fvm_vnc_put32(struct fvm_vnc_buffer *out, uint32_t value)
{
    const uint8_t b[4] = {(uint8_t)(value >> 24), (uint8_t)(value >> 16), (uint8_t)(value >> 8), (uint8_t)value};
    fvm_vnc_put(out, b, sizeof(b));
}

/* One pixel as the client's bytes; returns how many. */
static unsigned convert(const struct fvm_vnc_format *f, uint32_t pixel, uint8_t out[4])
{
    uint32_t v = 0;
    unsigned bytes = f->bits / 8;
    for (unsigned c = 0; c < 3; c++)
        v |= ((pixel >> (16 - 8 * c) & 0xff) * f->max[c] + 127) / 255 << f->shift[c];
    for (unsigned i = 0; i < bytes; i++)
        out[i] = (uint8_t)(v >> 8 * (f->big_endian ? bytes - 1 - i : i));
    return bytes;
}

static bool is_native(const struct fvm_vnc_format *f)
{
    return f->bits == 32 && !f->big_endian && f->max[0] == 255 && f->max[1] == 255 && f->max[2] == 255 &&
           f->shift[0] == 16 && f->shift[1] == 8 && f->shift[2] == 0;
}

static void put_line(struct fvm_vnc_buffer *out, const struct fvm_vnc_format *f, const uint32_t *line, unsigned count)
{
    uint8_t bytes[4 * 256];
    if (is_native(f)) {
        fvm_vnc_put(out, line, 4 * (size_t)count);
        return;
    }
    while (count) {
        unsigned n = FVM_MIN(count, 256u), len = 0;
        for (unsigned i = 0; i < n; i++)
            len += convert(f, line[i], bytes + len);
        fvm_vnc_put(out, bytes, len);
        line += n;
        count -= n;
    }
}

void fvm_vnc_encode_raw(struct fvm_vnc_buffer *out, const struct fvm_vnc_format *f, const struct fvm_surface *s,
                        unsigned x, unsigned y, unsigned width, unsigned height)
{
    fvm_assert(x + width <= s->width && y + height <= s->height);
    for (unsigned row = y; row < y + height; row++)
        put_line(out, f, s->pixels + (size_t)row * s->width + x, width);
}

/* How many colours a tile has: 1, 2, or 3 for more. */
static unsigned count_colours(const struct fvm_surface *s, unsigned x, unsigned y, unsigned w, unsigned h,
                              uint32_t colour[2])
{
    unsigned found = 1;
    colour[0] = colour[1] = s->pixels[(size_t)y * s->width + x];
    for (unsigned row = y; row < y + h; row++)
        for (const uint32_t *p = s->pixels + (size_t)row * s->width + x, *end = p + w; p < end; p++) {
            if (*p == colour[0] || (found == 2 && *p == colour[1]))
                continue;
            if (found == 2)
                return 3;
            colour[found++] = *p;
        }
    return found;
}

/* The runs of the second colour, as subrectangles one pixel high. */
static unsigned find_runs(const struct fvm_surface *s, unsigned x, unsigned y, unsigned w, unsigned h, uint32_t colour,
                          uint8_t runs[TILE * TILE])
{
    unsigned n = 0;
    for (unsigned row = 0; row < h; row++) {
        const uint32_t *line = s->pixels + (size_t)(y + row) * s->width + x;
        for (unsigned col = 0; col < w; col++) {
            unsigned first = col;
            while (col < w && line[col] == colour)
                col++;
            if (col == first)
                continue;
            runs[2 * n] = (uint8_t)(first << 4 | row);
            runs[2 * n++ + 1] = (uint8_t)((col - first - 1) << 4);
        }
    }
    return n;
}

static void put_tile(struct fvm_vnc_buffer *out, const struct fvm_vnc_format *f, const struct fvm_surface *s,
                     unsigned x, unsigned y, unsigned w, unsigned h)
{
    uint32_t colour[2];
    uint8_t runs[TILE * TILE], head[1 + 4 + 4 + 1];
    unsigned colours = count_colours(s, x, y, w, h, colour), len = 1, n;
    if (colours == 1) {
        head[0] = HEX_BACKGROUND;
        len += convert(f, colour[0], head + len);
        fvm_vnc_put(out, head, len);
        return;
    }
    n = colours == 2 ? find_runs(s, x, y, w, h, colour[1], runs) : 0;
    if (!n || 2 * n + 10 > w * h * f->bits / 8) {
        head[0] = HEX_RAW;
        fvm_vnc_put(out, head, 1);
        fvm_vnc_encode_raw(out, f, s, x, y, w, h);
        return;
    }
    head[0] = HEX_BACKGROUND | HEX_FOREGROUND | HEX_SUBRECTS;
    len += convert(f, colour[0], head + len);
    len += convert(f, colour[1], head + len);
    head[len++] = (uint8_t)n;
    fvm_vnc_put(out, head, len);
    fvm_vnc_put(out, runs, 2 * (size_t)n);
}

void fvm_vnc_encode_hextile(struct fvm_vnc_buffer *out, const struct fvm_vnc_format *f, const struct fvm_surface *s,
                            unsigned x, unsigned y, unsigned width, unsigned height)
{
    fvm_assert(x + width <= s->width && y + height <= s->height);
    for (unsigned ty = y; ty < y + height; ty += TILE)
        for (unsigned tx = x; tx < x + width; tx += TILE)
            put_tile(out, f, s, tx, ty, FVM_MIN((unsigned)TILE, x + width - tx), FVM_MIN((unsigned)TILE, y + height - ty));
}
