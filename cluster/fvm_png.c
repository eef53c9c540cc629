/*
 * fvm_png.c - the smallest PNG there is: signature, IHDR, one IDAT, IEND (PNG specification, 5.3). Lines with filter 0
 * except where "up" makes them all zero: screens repeat their lines.
 */
#include "cluster/fvm_png.h"

#include <stdlib.h>
#include <string.h>
#include <zlib.h>

static void put32(uint8_t *p, uint32_t v)
{
    p[0] = (uint8_t)(v >> 24);
    p[1] = (uint8_t)(v >> 16);
    p[2] = (uint8_t)(v >> 8);
    p[3] = (uint8_t)v;
}

/* Length, type, body (in place already), checksum. Returns the end. */
static uint8_t *chunk(uint8_t *p, const char type[4], size_t len)
{
    put32(p, (uint32_t)len);
    memcpy(p + 4, type, 4);
    put32(p + 8 + len, (uint32_t)crc32(0, p + 4, (uInt)(len + 4)));
    return p + 12 + len;
}

static void fill_lines(const struct fvm_surface *s, uint8_t *out)
{
    for (unsigned y = 0; y < s->height; y++) {
        const uint32_t *line = s->pixels + (size_t)y * s->width;
        bool same = y && !memcmp(line, line - s->width, s->width * sizeof(*line));
        *out++ = same ? 2 : 0;
        for (unsigned x = 0; x < s->width; x++, out += 3) {
            out[0] = same ? 0 : (uint8_t)(line[x] >> 16);
            out[1] = same ? 0 : (uint8_t)(line[x] >> 8);
            out[2] = same ? 0 : (uint8_t)line[x];
        }
    }
}

int fvm_png_make(const struct fvm_surface *s, uint8_t **ret_bytes, size_t *ret_len)
{
    static const uint8_t signature[8] = {0x89, 'P', 'N', 'G', '\r', '\n', 0x1a, '\n'};
    size_t raw_len = (size_t)s->height * (1 + 3 * (size_t)s->width);
    uLongf packed = compressBound((uLong)raw_len);
    uint8_t *raw = malloc(raw_len), *file = malloc(8 + 25 + 12 + packed + 12), *p;
    int r = raw && file ? 0 : FVM_ENOMEM;
    if (!r)
        fill_lines(s, raw);
    if (!r && compress2(file + 8 + 25 + 8, &packed, raw, (uLong)raw_len, 6) != Z_OK)
        r = FVM_ENOMEM;
    free(raw);
    if (r) {
        free(file);
        return r;
    }
    memcpy(file, signature, 8);
    p = file + 8;
    put32(p + 8, s->width);
    put32(p + 12, s->height);
    memcpy(p + 16, "\x08\x02\0\0\0", 5); /* 8 bits, RGB, deflate, adaptive, not interlaced */
    p = chunk(p, "IHDR", 13);
    p = chunk(p, "IDAT", packed);
    p = chunk(p, "IEND", 0);
    *ret_bytes = file;
    *ret_len = (size_t)(p - file);
    return 0;
}
