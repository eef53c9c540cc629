/*
 * vga_regs.c - VGA's registers at ports 3b0..3df (IBM VGA technical reference), a byte at a time: miscellaneous output,
 * sequencer, graphics controller, CRT controller, attribute controller with its flip-flop, palette (DAC). And the state
 * a BIOS leaves them in.
 *
 * Invariant: indices stay inside their arrays; reserved bits are not kept.
 */
#include <string.h>

#include "base/log.h"
#include "vmm/devices/vga_impl.h"

enum { CRTC_COUNT = 0x19, ATTR_COUNT = 0x15, SEQ_COUNT = 5, GC_COUNT = 9 };
#define FRAME_NS 14285714ull /* 70 Hz */
#define LINE_NS (FRAME_NS / 449)

static const uint8_t seq_bits[VGA_SEQ] = {0x03, 0x3d, 0x0f, 0x3f, 0x0e};
static const uint8_t gc_bits[VGA_GC] = {0x0f, 0x0f, 0x0f, 0x1f, 0x03, 0x7b, 0x0f, 0x0f, 0xff};

static bool answers(const struct fvm_vga *vga, unsigned port)
{
    if ((port & 0x3f0) == 0x3c0)
        return true;
    return vga->misc & 1 ? (port & 0x3f0) == 0x3d0 : (port & 0x3f0) == 0x3b0;
}

/* Input status 1: bit 0 no picture now (blanking), bit 3 vertical retrace. By guest time, so that loops that wait for
 * either end. */
static uint8_t status1(struct fvm_vga *vga)
{
    uint64_t t = fvm_clock_ns(vga->dev.board->clock) % FRAME_NS, line = t / LINE_NS;
    bool retrace = line >= 412 && line < 414, blank = line >= 400 || t % LINE_NS > LINE_NS * 4 / 5;

    vga->attr_data_next = false;
    return (uint8_t)((blank ? 1 : 0) | (retrace ? 8 : 0));
}

static uint8_t dac_data_read(struct fvm_vga *vga)
{
    uint8_t value = vga->dac[3 * vga->dac_index + vga->dac_component];

    if (++vga->dac_component == 3) {
        vga->dac_component = 0;
        vga->dac_index++;
    }
    return value;
}

static void dac_data_write(struct fvm_vga *vga, uint8_t value)
{
    vga->dac_partial[vga->dac_component] =
        vga->dispi[DISPI_ENABLE] & DISPI_8BIT_DAC ? value : (uint8_t)(value & 0x3f);
    if (++vga->dac_component < 3)
        return;
    memcpy(&vga->dac[3 * vga->dac_index], vga->dac_partial, 3);
    vga->dac_component = 0;
    vga->dac_index++;
}

uint8_t fvm_vga_port_read(struct fvm_vga *vga, unsigned port)
{
    if (!answers(vga, port))
        return 0xff;
    switch (port) {
    case 0x3c0: return vga->attr_data_next ? 0 : vga->attr_index;
    case 0x3c1: return vga->attr[vga->attr_index & 0x1f];
    case 0x3c2: return 0x10; /* switch sense: a colour monitor */
    case 0x3c4: return vga->seq_index;
    case 0x3c5: return vga->seq[vga->seq_index & (VGA_SEQ - 1)];
    case 0x3c6: return vga->dac_mask;
    case 0x3c7: return vga->dac_reading ? 3 : 0;
    case 0x3c8: return vga->dac_index;
    case 0x3c9: return dac_data_read(vga);
    case 0x3ca: return vga->feature;
    case 0x3cc: return vga->misc;
    case 0x3ce: return vga->gc_index;
    case 0x3cf: return vga->gc[vga->gc_index & (VGA_GC - 1)];
    case 0x3b4:
    case 0x3d4: return vga->crtc_index;
    case 0x3b5:
    case 0x3d5: return vga->crtc_index < CRTC_COUNT ? vga->crtc[vga->crtc_index] : 0;
    case 0x3ba:
    case 0x3da: return status1(vga);
    default: return 0xff;
    }
}

static void attr_write(struct fvm_vga *vga, uint8_t value)
{
    unsigned index = vga->attr_index & 0x1f;

    if (!vga->attr_data_next)
        vga->attr_index = value & 0x3f;
    else if (index < 0x10)
        vga->attr[index] = value & 0x3f;
    else if (index < ATTR_COUNT)
        vga->attr[index] = index == ATTR_MODE ? value & 0xef : index == 0x11 ? value : index == ATTR_PLANES ? value & 0x3f : value & 0xf;
    vga->attr_data_next = !vga->attr_data_next;
}

static void crtc_write(struct fvm_vga *vga, uint8_t value)
{
    unsigned index = vga->crtc_index;

    if (index >= CRTC_COUNT)
        return;
    if (index <= 7 && (vga->crtc[CRTC_PROTECT] & 0x80)) {
        if (index == CRTC_OVERFLOW) /* the line compare's bit is not protected */
            vga->crtc[index] = (uint8_t)((vga->crtc[index] & ~0x10) | (value & 0x10));
        return;
    }
    vga->crtc[index] = value;
}

void fvm_vga_port_write(struct fvm_vga *vga, unsigned port, uint8_t value)
{
    if (!answers(vga, port))
        return;
    switch (port) {
    case 0x3c0: attr_write(vga, value); break;
    case 0x3c2: vga->misc = value & 0xef; break;
    case 0x3c4: vga->seq_index = value & (VGA_SEQ - 1); break;
    case 0x3c5: vga->seq[vga->seq_index] = value & seq_bits[vga->seq_index]; break;
    case 0x3c6: vga->dac_mask = value; break;
    case 0x3c7:
    case 0x3c8:
        vga->dac_index = value;
        vga->dac_component = 0;
        vga->dac_reading = port == 0x3c7;
        break;
    case 0x3c9: dac_data_write(vga, value); break;
    case 0x3ce: vga->gc_index = value & (VGA_GC - 1); break;
    case 0x3cf: vga->gc[vga->gc_index] = value & gc_bits[vga->gc_index]; break;
    case 0x3b4:
    case 0x3d4: vga->crtc_index = value & 0x3f; break;
    case 0x3b5:
    case 0x3d5: crtc_write(vga, value); break;
    case 0x3ba:
    case 0x3da: vga->feature = value & 0x10; break;
    default: break;
    }
}

/* ---- as a BIOS leaves it ---- */

/* The VGA BIOS' 8x16 font: 256 glyphs of 16 bytes. Glyph 1 and 2 (the two faces) tell where it begins. */
static const uint8_t *find_font(const struct fvm_vga *vga)
{
    static const uint8_t faces[48] = {0,    0,    0,    0,    0,    0,    0,    0,    0,    0,    0, 0, 0, 0, 0, 0,
                                      0,    0,    0x7e, 0x81, 0xa5, 0x81, 0x81, 0xbd, 0x99, 0x81, 0x81, 0x7e, 0, 0, 0, 0,
                                      0,    0,    0x7e, 0xff, 0xdb, 0xff, 0xff, 0xc3, 0xe7, 0xff, 0xff, 0x7e, 0, 0, 0, 0};

    if (!vga->rom || vga->rom_bytes < 256 * 16)
        return NULL;
    return memmem(vga->rom, vga->rom_bytes - 256 * 16 + sizeof(faces), faces, sizeof(faces));
}

static void load_font(struct fvm_vga *vga)
{
    const uint8_t *font = find_font(vga);

    if (!font) {
        fvm_log(INFO, "vga.no-font", "no 8x16 font in a VGA BIOS: text is blank until the guest loads one");
        return;
    }
    for (unsigned ch = 0; ch < 256; ch++)
        for (unsigned row = 0; row < 16; row++)
            vga->memory[4 * (32 * ch + row) + 2] = font[16 * ch + row];
}

void fvm_vga_mode3(struct fvm_vga *vga)
{
    static const uint8_t seq[SEQ_COUNT] = {0x03, 0x00, 0x03, 0x00, 0x02};
    static const uint8_t gc[GC_COUNT] = {0, 0, 0, 0, 0, 0x10, 0x0e, 0, 0xff};
    static const uint8_t crtc[CRTC_COUNT] = {0x5f, 0x4f, 0x50, 0x82, 0x55, 0x81, 0xbf, 0x1f, 0x00, 0x4f, 0x0d, 0x0e, 0,
                                             0,    0,    0,    0x9c, 0x8e, 0x8f, 0x28, 0x1f, 0x96, 0xb9, 0xa3, 0xff};
    static const uint8_t attr[ATTR_COUNT] = {0x00, 0x01, 0x02, 0x03, 0x04, 0x05, 0x14, 0x07, 0x38, 0x39, 0x3a,
                                             0x3b, 0x3c, 0x3d, 0x3e, 0x3f, 0x0c, 0x00, 0x0f, 0x08, 0x00};

    vga->misc = 0x67;
    memcpy(vga->seq, seq, sizeof(seq));
    memcpy(vga->gc, gc, sizeof(gc));
    memcpy(vga->crtc, crtc, sizeof(crtc));
    memcpy(vga->attr, attr, sizeof(attr));
    vga->attr_index = 0x20; /* the picture is on */
    vga->dac_mask = 0xff;
    for (unsigned i = 0; i < 64; i++) { /* bits of a colour: r g b R G B, small ones first */
        vga->dac[3 * i] = (uint8_t)((i >> 2 & 1) * 0x2a + (i >> 5 & 1) * 0x15);
        vga->dac[3 * i + 1] = (uint8_t)((i >> 1 & 1) * 0x2a + (i >> 4 & 1) * 0x15);
        vga->dac[3 * i + 2] = (uint8_t)((i & 1) * 0x2a + (i >> 3 & 1) * 0x15);
    }
    for (unsigned cell = 0; cell < 0x4000; cell++) {
        vga->memory[4 * cell] = ' ';
        vga->memory[4 * cell + 1] = 7;
    }
    load_font(vga);
    fvm_vga_mark(vga, 0, 0x40000);
}
