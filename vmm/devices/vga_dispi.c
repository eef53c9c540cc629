/*
 * vga_dispi.c - the Bochs VBE registers ("dispi"): what VGA BIOSes and drivers set linear modes with. An index and a
 * data register of 16 bits.
 *
 * A mode is taken when ENABLE is written; then virtual width, offsets and (unless told not to) memory are reset.
 * Invariant: while enabled, resolution and depth are ones this adapter has (1 <= x <= 2560, y <= 1600, depth in the
 * list) and the virtual width is at least the visible one. Whether the picture lies inside the memory is up to the
 * renderer.
 */
#include <string.h>

#include "vmm/devices/vga_impl.h"

enum { ID_MIN = 0xb0c0, ID_MAX = 0xb0c5 };

static bool depth_ok(unsigned bpp)
{
    return bpp == 4 || bpp == 8 || bpp == 15 || bpp == 16 || bpp == 24 || bpp == 32;
}

static uint32_t pitch_of(unsigned pixels, unsigned bpp)
{
    return bpp == 4 ? pixels / 2 : pixels * ((bpp + 7) / 8);
}

uint32_t fvm_vga_linear_pitch(const struct fvm_vga *vga)
{
    return pitch_of(vga->dispi[DISPI_VIRT_WIDTH], vga->dispi[DISPI_BPP]);
}

uint16_t fvm_vga_dispi_read(const struct fvm_vga *vga, unsigned index)
{
    bool caps = vga->dispi[DISPI_ENABLE] & DISPI_GETCAPS;

    switch (index) {
    case DISPI_XRES: return caps ? FVM_VGA_WIDTH_MAX : vga->dispi[index];
    case DISPI_YRES: return caps ? FVM_VGA_HEIGHT_MAX : vga->dispi[index];
    case DISPI_BPP: return caps ? 32 : vga->dispi[index];
    case DISPI_VIRT_HEIGHT: {
        uint32_t pitch = fvm_vga_linear_pitch(vga);
        uint32_t lines = pitch ? vga->memory_bytes / pitch : 0;

        return (uint16_t)FVM_MIN(lines, 0xffffu);
    }
    case DISPI_MEMORY: return (uint16_t)(vga->memory_bytes / VGA_BANK_BYTES);
    default: return index < VGA_DISPI ? vga->dispi[index] : 0;
    }
}

/* VGA's own registers, so that the banked window at a0000 reaches the mode's memory. */
static void set_window(struct fvm_vga *vga)
{
    vga->gc[GC_MISC] = (uint8_t)((vga->gc[GC_MISC] & ~0xc) | 5); /* graphics, 64 KiB at a0000 */
    vga->seq[SEQ_MAP_MASK] |= 0xf;
    if (vga->dispi[DISPI_BPP] == 4) {
        vga->gc[GC_MODE] &= (uint8_t)~0x70;
        vga->seq[SEQ_MEMORY] = (uint8_t)((vga->seq[SEQ_MEMORY] & ~8) | 6);
        return;
    }
    vga->gc[GC_MODE] = (uint8_t)((vga->gc[GC_MODE] & ~0x70) | 0x40);
    vga->seq[SEQ_MEMORY] |= 0xe;
}

static void enable(struct fvm_vga *vga, uint16_t value)
{
    bool was = fvm_vga_linear(vga);

    if (value & DISPI_ENABLED && !was) {
        if (!vga->dispi[DISPI_XRES] || !vga->dispi[DISPI_YRES] || !depth_ok(vga->dispi[DISPI_BPP]))
            return; /* no such mode */
        vga->dispi[DISPI_VIRT_WIDTH] = vga->dispi[DISPI_XRES];
        vga->dispi[DISPI_X] = vga->dispi[DISPI_Y] = 0;
        if (!(value & DISPI_NOCLEAR)) {
            uint64_t len = (uint64_t)fvm_vga_linear_pitch(vga) * vga->dispi[DISPI_YRES] *
                           (vga->dispi[DISPI_BPP] == 4 ? 4 : 1);

            len = FVM_MIN(len, vga->memory_bytes);
            memset(vga->memory, 0, len);
            fvm_vga_mark(vga, 0, (uint32_t)len);
        }
        set_window(vga);
    }
    if (!(value & DISPI_ENABLED))
        vga->dispi[DISPI_BANK] = 0;
    vga->dispi[DISPI_ENABLE] = value & (DISPI_ENABLED | DISPI_GETCAPS | DISPI_8BIT_DAC | DISPI_LFB | DISPI_NOCLEAR);
}

void fvm_vga_dispi_write(struct fvm_vga *vga, unsigned index, uint16_t value)
{
    bool off = !fvm_vga_linear(vga);

    switch (index) {
    case DISPI_ID:
        if (value >= ID_MIN && value <= ID_MAX)
            vga->dispi[DISPI_ID] = value;
        break;
    case DISPI_XRES:
        if (off && value <= FVM_VGA_WIDTH_MAX)
            vga->dispi[index] = value;
        break;
    case DISPI_YRES:
        if (off && value <= FVM_VGA_HEIGHT_MAX)
            vga->dispi[index] = value;
        break;
    case DISPI_BPP:
        if (off && (value == 0 || depth_ok(value)))
            vga->dispi[index] = value ? value : 8;
        break;
    case DISPI_BANK:
        if (value < vga->memory_bytes / VGA_BANK_BYTES)
            vga->dispi[index] = value;
        break;
    case DISPI_ENABLE:
        enable(vga, value);
        break;
    case DISPI_VIRT_WIDTH:
        if (value >= vga->dispi[DISPI_XRES] && (off || pitch_of(value, vga->dispi[DISPI_BPP]) <= vga->memory_bytes))
            vga->dispi[index] = value;
        break;
    case DISPI_X:
    case DISPI_Y:
        vga->dispi[index] = value;
        break;
    default: /* virtual height follows from the width; memory is fixed */
        break;
    }
}
