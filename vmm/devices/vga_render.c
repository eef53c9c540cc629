/*
 * vga_render.c - registers and video memory to pixels: text, 16 colours in planes, CGA's packed pixels, 256 colours,
 * linear modes. Reads state, changes none.
 *
 * Shown in the pixels a program thinks in: doubled scan lines and columns (mode 13h) are single ones here. A blinking
 * cursor or character is shown steady; pixel panning is not shown.
 *
 * Invariant: whatever the registers say, nothing outside video memory is read, and the picture has at most
 * FVM_VGA_WIDTH_MAX x FVM_VGA_HEIGHT_MAX pixels.
 */
#include <stdlib.h>
#include <string.h>

#include "vmm/devices/vga_impl.h"

struct picture { /* one rendering */
    const struct fvm_vga *vga;
    uint32_t dac[256];   /* palette as pixels */
    uint32_t colour[16]; /* attribute controller's 16, through the palette */
    unsigned width, height;
};

void fvm_surface_fini(struct fvm_surface *s)
{
    free(s->pixels);
    *s = (struct fvm_surface){0};
}

int fvm_surface_size(struct fvm_surface *s, unsigned width, unsigned height)
{
    size_t need = (size_t)width * height;

    if (!need || width > FVM_VGA_WIDTH_MAX || height > FVM_VGA_HEIGHT_MAX)
        return FVM_EINVAL;
    if (need > s->room) {
        uint32_t *pixels = realloc(s->pixels, need * sizeof(*pixels));

        if (!pixels)
            return FVM_ENOMEM;
        s->pixels = pixels;
        s->room = need;
    }
    s->width = width;
    s->height = height;
    return 0;
}

/* ---- colours ---- */

static void load_palette(struct picture *p)
{
    const struct fvm_vga *vga = p->vga;
    bool wide = vga->dispi[DISPI_ENABLE] & DISPI_8BIT_DAC;

    for (unsigned i = 0; i < 256; i++) {
        uint32_t rgb = 0;

        for (unsigned c = 0; c < 3; c++) {
            unsigned v = vga->dac[3 * (i & vga->dac_mask) + c];

            rgb = rgb << 8 | (wide ? v : ((v & 0x3f) << 2 | (v & 0x3f) >> 4));
        }
        p->dac[i] = rgb;
    }
    for (unsigned i = 0; i < 16; i++) {
        unsigned v = vga->attr[i & vga->attr[ATTR_PLANES] & 0xf] & 0x3f, select = vga->attr[ATTR_SELECT];

        if (vga->attr[ATTR_MODE] & 0x80)
            v = (v & 0xf) | (select & 0xf) << 4;
        else
            v |= (select & 0xc) << 4;
        p->colour[i] = p->dac[v & 0xff];
    }
}

/* ---- geometry of VGA modes ---- */

static bool is_text(const struct fvm_vga *vga) { return !fvm_vga_linear(vga) && !(vga->gc[GC_MISC] & 1); }

static bool is_blank(const struct fvm_vga *vga)
{
    return !fvm_vga_linear(vga) && (!(vga->attr_index & 0x20) || (vga->seq[SEQ_CLOCKING] & 0x20));
}

static unsigned scan_lines(const struct fvm_vga *vga)
{
    unsigned overflow = vga->crtc[CRTC_OVERFLOW];

    return (vga->crtc[CRTC_HEIGHT] | (overflow & 2u) << 7 | (overflow & 0x40u) << 3) + 1;
}

static unsigned line_compare(const struct fvm_vga *vga)
{
    return vga->crtc[CRTC_COMPARE] | (vga->crtc[CRTC_OVERFLOW] & 0x10u) << 4 | (vga->crtc[CRTC_MAX_SCAN] & 0x40u) << 3;
}

static uint32_t start_address(const struct fvm_vga *vga) /* in dwords */
{
    return (uint32_t)vga->crtc[CRTC_START_HIGH] << 8 | vga->crtc[CRTC_START_LOW];
}

static unsigned cell_height(const struct fvm_vga *vga) { return (vga->crtc[CRTC_MAX_SCAN] & 0x1f) + 1u; }

struct text {
    unsigned columns, rows, cell_w, cell_h;
};

static struct text text_geometry(const struct fvm_vga *vga)
{
    struct text t = {.columns = vga->crtc[CRTC_WIDTH] + 1u, .cell_w = vga->seq[SEQ_CLOCKING] & 1 ? 8 : 9,
                     .cell_h = cell_height(vga)};

    if (vga->crtc[CRTC_MAX_SCAN] & 0x80)
        t.rows = scan_lines(vga) / 2 / t.cell_h;
    else
        t.rows = scan_lines(vga) / t.cell_h;
    t.rows = FVM_MAX(t.rows, 1u);
    return t;
}

/* Offset of the dword that holds a cell. */
static uint32_t cell_at(const struct fvm_vga *vga, unsigned row, unsigned column)
{
    uint32_t dwords = start_address(vga) + row * vga->crtc[CRTC_OFFSET] * 2u + column;

    return (4 * (dwords & 0xffff)) & (vga->memory_bytes - 1);
}

/* ---- text ---- */

static uint32_t font_offset(const struct fvm_vga *vga, bool second)
{
    unsigned v = vga->seq[SEQ_FONT];
    unsigned map = second ? (v >> 5 & 1) | (v >> 1 & 6) : (v >> 4 & 1) | (v << 1 & 6);

    return map * 8192 * 4 + 2;
}

static void draw_cell(const struct picture *p, const struct text *t, unsigned row, unsigned column, bool cursor,
                      uint32_t *out)
{
    const struct fvm_vga *vga = p->vga;
    uint32_t at = cell_at(vga, row, column);
    unsigned ch = vga->memory[at], attr = vga->memory[at + 1];
    uint32_t fg = p->colour[attr & 0xf], bg = p->colour[attr >> 4 & (vga->attr[ATTR_MODE] & 8 ? 7 : 0xf)];
    const uint8_t *glyph = vga->memory + font_offset(vga, attr & 8) + 4 * 32 * ch;
    unsigned first = vga->crtc[CRTC_CURSOR_START] & 0x1f, last = vga->crtc[CRTC_CURSOR_END] & 0x1f;
    bool extend = (ch & 0xe0) == 0xc0 && (vga->attr[ATTR_MODE] & 4);

    for (unsigned y = 0; y < t->cell_h; y++, out += p->width) {
        unsigned bits = (unsigned)glyph[4 * y] << 1;

        if (extend)
            bits |= bits >> 1 & 1;
        if (cursor && y >= first && y <= last)
            bits = 0x1ff;
        for (unsigned x = 0; x < t->cell_w; x++)
            out[x] = bits & (0x100u >> x) ? fg : bg;
    }
}

static void draw_text(const struct picture *p, uint32_t *pixels)
{
    const struct fvm_vga *vga = p->vga;
    struct text t = text_geometry(vga);
    uint32_t cursor = UINT32_MAX;

    if (!(vga->crtc[CRTC_CURSOR_START] & 0x20))
        cursor = 4u * ((uint32_t)vga->crtc[CRTC_CURSOR_HIGH] << 8 | vga->crtc[CRTC_CURSOR_LOW]);
    for (unsigned row = 0; row < t.rows; row++)
        for (unsigned column = 0; column < t.columns; column++)
            draw_cell(p, &t, row, column, cell_at(vga, row, column) == cursor,
                      pixels + (size_t)row * t.cell_h * p->width + column * t.cell_w);
}

int fvm_vga_text(struct fvm_device *dev, char **ret_text)
{
    const struct fvm_vga *vga = (const struct fvm_vga *)dev;
    struct text t = text_geometry(vga);
    char *text, *out;

    if (!is_text(vga))
        return FVM_ESTATE;
    text = out = malloc((size_t)t.rows * (t.columns + 1) + 1);
    if (!text)
        return FVM_ENOMEM;
    for (unsigned row = 0; row < t.rows; row++) {
        char *end = out;

        for (unsigned column = 0; column < t.columns; column++) {
            uint8_t ch = vga->memory[cell_at(vga, row, column)];

            *out++ = ch == 0 || ch == 0xff ? ' ' : ch < 32 || ch > 126 ? '?' : (char)ch;
            if (out[-1] != ' ')
                end = out;
        }
        out = end;
        *out++ = '\n';
    }
    *out = 0;
    *ret_text = text;
    return 0;
}

/* ---- VGA graphics ---- */

enum shape { PLANAR, CGA, PACKED };

static enum shape graphics_shape(const struct fvm_vga *vga)
{
    unsigned shift = vga->gc[GC_MODE] >> 5 & 3;

    return shift == 0 ? PLANAR : shift == 1 ? CGA : PACKED;
}

/* Scan lines that show the same row of memory. CGA modes use the row within a cell as an address bit instead. */
static unsigned repeat(const struct fvm_vga *vga)
{
    unsigned doubled = vga->crtc[CRTC_MAX_SCAN] >> 7;

    return (vga->crtc[CRTC_MODE] & 1 ? cell_height(vga) : 1) << doubled;
}

static unsigned graphics_width(const struct fvm_vga *vga)
{
    unsigned width = (vga->crtc[CRTC_WIDTH] + 1u) * 8;

    return graphics_shape(vga) == PACKED && (vga->attr[ATTR_MODE] & 0x40) ? width / 2 : width;
}

static uint32_t planar_pixel(const uint8_t *dword, unsigned x)
{
    unsigned bit = 7 - x % 8;

    return (dword[0] >> bit & 1u) | (dword[1] >> bit & 1u) << 1 | (dword[2] >> bit & 1u) << 2 |
           (dword[3] >> bit & 1u) << 3;
}

/* 320x200, four colours: two bits a pixel, bytes alternating between planes 0 and 1. */
static uint32_t cga_pixel(const uint8_t *dword, unsigned x)
{
    unsigned byte = x / 4 % 2, shift = 6 - 2 * (x % 4);

    return (dword[byte] >> shift & 3u) | (dword[byte + 2] >> shift & 3u) << 2;
}

static void draw_graphics_line(const struct picture *p, enum shape shape, uint32_t at, uint32_t *out)
{
    const struct fvm_vga *vga = p->vga;
    uint32_t mask = vga->memory_bytes - 1;

    for (unsigned x = 0; x < p->width; x++) {
        switch (shape) {
        case PLANAR: out[x] = p->colour[planar_pixel(vga->memory + ((at + 4 * (x / 8)) & mask), x)]; break;
        case CGA: out[x] = p->colour[cga_pixel(vga->memory + ((at + 4 * (x / 8)) & mask), x)]; break;
        case PACKED: out[x] = p->dac[vga->memory[(at + x) & mask]]; break;
        }
    }
}

static void draw_graphics(const struct picture *p, uint32_t *pixels)
{
    const struct fvm_vga *vga = p->vga;
    enum shape shape = graphics_shape(vga);
    unsigned times = repeat(vga), rows = vga->crtc[CRTC_MODE] & 1 ? 1 : cell_height(vga), split = line_compare(vga) + 1;
    uint32_t pitch = vga->crtc[CRTC_OFFSET] * 8u, start = 4 * start_address(vga);

    for (unsigned y = 0; y < p->height; y++) {
        bool below = y * times >= split;
        unsigned line = below ? y - (split + times - 1) / times : y, row = line % rows;
        uint32_t at = (below ? 0 : start) + line / rows * pitch;

        if (!(vga->crtc[CRTC_MODE] & 1)) /* row bit 0 is address bit 13 */
            at = (at & ~(4u << 13)) | (row & 1) * (4u << 13);
        if (!(vga->crtc[CRTC_MODE] & 2))
            at = (at & ~(4u << 14)) | (row >> 1 & 1) * (4u << 14);
        draw_graphics_line(p, shape, at & ~3u, pixels + (size_t)y * p->width);
    }
}

/* ---- linear modes ---- */

static uint32_t rgb_of(unsigned bits, unsigned depth)
{
    uint32_t r, g, b;

    if (depth == 15) {
        r = bits >> 10 & 31, g = bits >> 5 & 31, b = bits & 31;
        return (r << 3 | r >> 2) << 16 | (g << 3 | g >> 2) << 8 | (b << 3 | b >> 2);
    }
    r = bits >> 11 & 31, g = bits >> 5 & 63, b = bits & 31;
    return (r << 3 | r >> 2) << 16 | (g << 2 | g >> 4) << 8 | (b << 3 | b >> 2);
}

static void draw_linear_line(const struct picture *p, const uint8_t *from, unsigned count, uint32_t *out)
{
    unsigned depth = p->vga->dispi[DISPI_BPP];

    switch (depth) {
    case 32:
        memcpy(out, from, 4 * (size_t)count);
        for (unsigned x = 0; x < count; x++)
            out[x] &= 0xffffff;
        break;
    case 24:
        for (unsigned x = 0; x < count; x++, from += 3)
            out[x] = (uint32_t)from[2] << 16 | (uint32_t)from[1] << 8 | from[0];
        break;
    case 8:
        for (unsigned x = 0; x < count; x++)
            out[x] = p->dac[from[x]];
        break;
    default: /* 15, 16 */
        for (unsigned x = 0; x < count; x++, from += 2)
            out[x] = rgb_of(from[0] | (unsigned)from[1] << 8, depth);
        break;
    }
}

static void draw_linear(const struct picture *p, uint32_t *pixels)
{
    const struct fvm_vga *vga = p->vga;
    unsigned depth = vga->dispi[DISPI_BPP], bytes = (depth + 7) / 8;
    uint64_t pitch = fvm_vga_linear_pitch(vga);

    for (unsigned y = 0; y < p->height; y++) {
        uint64_t at = (y + (uint64_t)vga->dispi[DISPI_Y]) * pitch + (uint64_t)vga->dispi[DISPI_X] * bytes;
        uint64_t room = at < vga->memory_bytes ? (vga->memory_bytes - at) / bytes : 0;
        unsigned count = (unsigned)FVM_MIN(room, (uint64_t)p->width);
        uint32_t *out = pixels + (size_t)y * p->width;

        draw_linear_line(p, vga->memory + (room ? at : 0), count, out);
        memset(out + count, 0, (p->width - count) * sizeof(*out));
    }
}

/* 16 colours in planes: pitch and offsets count pixels / 8 dwords. */
static void draw_linear_planar(const struct picture *p, uint32_t *pixels)
{
    const struct fvm_vga *vga = p->vga;

    for (unsigned y = 0; y < p->height; y++) {
        uint64_t pixel = (y + (uint64_t)vga->dispi[DISPI_Y]) * vga->dispi[DISPI_VIRT_WIDTH] + vga->dispi[DISPI_X];

        draw_graphics_line(p, PLANAR, (uint32_t)(pixel / 8 * 4), pixels + (size_t)y * p->width);
    }
}

/* ---- the whole ---- */

static void measure(const struct fvm_vga *vga, unsigned *ret_width, unsigned *ret_height)
{
    if (fvm_vga_linear(vga)) {
        *ret_width = vga->dispi[DISPI_XRES];
        *ret_height = vga->dispi[DISPI_YRES];
    } else if (is_text(vga)) {
        struct text t = text_geometry(vga);

        *ret_width = t.columns * t.cell_w;
        *ret_height = t.rows * t.cell_h;
    } else {
        *ret_width = graphics_width(vga);
        *ret_height = FVM_MAX(scan_lines(vga) / repeat(vga), 1u);
    }
}

int fvm_vga_render(struct fvm_device *dev, struct fvm_surface *surface)
{
    struct picture p = {.vga = (const struct fvm_vga *)dev};
    int r;

    measure(p.vga, &p.width, &p.height);
    r = fvm_surface_size(surface, p.width, p.height);
    if (r)
        return r;
    if (is_blank(p.vga)) {
        memset(surface->pixels, 0, (size_t)p.width * p.height * sizeof(*surface->pixels));
        return 0;
    }
    load_palette(&p);
    if (is_text(p.vga))
        draw_text(&p, surface->pixels);
    else if (!fvm_vga_linear(p.vga))
        draw_graphics(&p, surface->pixels);
    else if (p.vga->dispi[DISPI_BPP] == 4)
        draw_linear_planar(&p, surface->pixels);
    else
        draw_linear(&p, surface->pixels);
    return 0;
}
