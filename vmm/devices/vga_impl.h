/*
 * vga_impl.h - struct fvm_vga, shared by the vga*.c files; nobody else includes it.
 *
 * Video memory is kept as the four planes interleaved: plane p of address a is byte 4 * a + p. So chained 256-colour
 * modes and linear ones are plain bytes, a text cell is one dword, and a planar access is one dword, too.
 */
#ifndef FVM_VMM_DEVICES_VGA_IMPL_H
#define FVM_VMM_DEVICES_VGA_IMPL_H

#include "vmm/devices/vga.h"

enum { /* indices */
    SEQ_CLOCKING = 1, SEQ_MAP_MASK = 2, SEQ_FONT = 3, SEQ_MEMORY = 4,
    GC_SET_RESET = 0, GC_ENABLE_SET_RESET = 1, GC_COMPARE = 2, GC_ROTATE = 3, GC_READ_MAP = 4, GC_MODE = 5, GC_MISC = 6,
    GC_DONT_CARE = 7, GC_BIT_MASK = 8,
    CRTC_WIDTH = 1, CRTC_OVERFLOW = 7, CRTC_MAX_SCAN = 9, CRTC_CURSOR_START = 0xa, CRTC_CURSOR_END = 0xb,
    CRTC_START_HIGH = 0xc, CRTC_START_LOW = 0xd, CRTC_CURSOR_HIGH = 0xe, CRTC_CURSOR_LOW = 0xf, CRTC_PROTECT = 0x11,
    CRTC_HEIGHT = 0x12, CRTC_OFFSET = 0x13, CRTC_MODE = 0x17, CRTC_COMPARE = 0x18,
    ATTR_MODE = 0x10, ATTR_PLANES = 0x12, ATTR_SELECT = 0x14,
};
enum { VGA_SEQ = 8, VGA_GC = 16, VGA_CRTC = 32, VGA_ATTR = 32, VGA_DAC = 768 };
enum { DISPI_ID, DISPI_XRES, DISPI_YRES, DISPI_BPP, DISPI_ENABLE, DISPI_BANK, DISPI_VIRT_WIDTH, DISPI_VIRT_HEIGHT,
       DISPI_X, DISPI_Y, DISPI_MEMORY, VGA_DISPI };
enum { DISPI_ENABLED = 1, DISPI_GETCAPS = 2, DISPI_8BIT_DAC = 0x20, DISPI_LFB = 0x40, DISPI_NOCLEAR = 0x80 };
enum { VGA_PORTS = 6 + 1, VGA_BANK_BYTES = 65536 };

struct fvm_vga {
    struct fvm_device dev;
    struct fvm_pci_function pci;
    uint8_t *memory; /* the board's video memory */
    uint32_t memory_bytes;
    const uint8_t *rom;
    uint32_t rom_bytes;

    uint8_t misc, feature;
    uint8_t seq_index, gc_index, crtc_index, attr_index;
    uint8_t seq[VGA_SEQ], gc[VGA_GC], crtc[VGA_CRTC], attr[VGA_ATTR];
    bool attr_data_next;
    uint8_t dac_mask, dac_index, dac_component, dac_partial[3];
    bool dac_reading;
    uint8_t dac[VGA_DAC]; /* as written: 6 or 8 bits */
    uint32_t latch;       /* four planes' bytes */
    uint16_t dispi_index, dispi[VGA_DISPI];
    uint8_t dispi_low;    /* between the two bytes of a write to the odd port 1cf */

    int claim_id[VGA_PORTS];
    unsigned claim_count;
};

/* vga_regs.c: one byte to or from a port 3b0..3df */
uint8_t fvm_vga_port_read(struct fvm_vga *vga, unsigned port);
void fvm_vga_port_write(struct fvm_vga *vga, unsigned port, uint8_t value);
/** 80x25 text as a BIOS sets it, screen cleared, palette and (if the ROM has one) font loaded. */
void fvm_vga_mode3(struct fvm_vga *vga);

/* vga_dispi.c */
uint16_t fvm_vga_dispi_read(const struct fvm_vga *vga, unsigned index);
void fvm_vga_dispi_write(struct fvm_vga *vga, unsigned index, uint16_t value);
static inline bool fvm_vga_linear(const struct fvm_vga *vga) { return vga->dispi[DISPI_ENABLE] & DISPI_ENABLED; }
/** Bytes from one line to the next in a linear mode. */
uint32_t fvm_vga_linear_pitch(const struct fvm_vga *vga);

/* vga_planes.c: the processor's window at a0000 */
extern const struct fvm_bus_ops fvm_vga_planes_ops;
/** Bytes [offset, offset + len) of video memory were written by C code. */
void fvm_vga_mark(struct fvm_vga *vga, uint32_t offset, uint32_t len);

#endif
