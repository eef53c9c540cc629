/*
 * vga.h - a display adapter: VGA (text, planar, 256 colours) with Bochs VBE extensions and linear video memory.
 *
 * What stock software knows: IBM VGA at ports 3b0..3df and memory a0000..bffff; "Bochs VBE" registers at ports 1ce/1cf;
 * PCI 1234:1111 with video memory in BAR 0, the same registers memory-mapped in BAR 2, and a VGA BIOS as expansion ROM.
 * Files: vga.c (the device), vga_regs.c, vga_dispi.c (registers), vga_planes.c (memory behind a0000),
 * vga_render.c (what is on the screen).
 * All with the board lock held.
 */
#ifndef FVM_VMM_DEVICES_VGA_H
#define FVM_VMM_DEVICES_VGA_H

#include "vmm/devices/device.h"
#include "vmm/devices/pci.h"

enum { FVM_VGA_WIDTH_MAX = 2560, FVM_VGA_HEIGHT_MAX = 1600 };
#define FVM_VGA_MEMORY_BYTES (16ull << 20)

/** A picture: width * height pixels, 0x00RRGGBB, row by row. */
struct fvm_surface {
    unsigned width, height;
    uint32_t *pixels; /* malloc'd; fvm_surface_fini */
    size_t room;      /* pixels allocated */
};
void fvm_surface_fini(struct fvm_surface *surface);
/** Sizes the surface, contents undefined. FVM_ENOMEM; FVM_EINVAL above the limits. */
int fvm_surface_size(struct fvm_surface *surface, unsigned width, unsigned height);

/**
 * fvm_vga_create - the adapter in PCI slot `slot`. Gives the board's RAM its video memory.
 * @rom  VGA BIOS, borrowed; NULL: none, and so no font until the guest loads one.
 * After reset the screen is as a BIOS leaves it: 80x25 text, its font loaded. A kernel that is started without
 * firmware finds the same as behind one.
 */
int fvm_vga_create(struct fvm_board *board, struct fvm_pci_host *host, uint8_t slot, const uint8_t *rom,
                   uint32_t rom_bytes, struct fvm_device **ret_dev);
/** What a monitor would show now. A blanked screen is black, of the size it had. */
int fvm_vga_render(struct fvm_device *dev, struct fvm_surface *surface);
/**
 * fvm_vga_text - the characters of a text mode's screen, one line each, blanks at the end of lines taken off.
 * @ret_text malloc'd, code page 437 bytes below 32 and above 126 as '?'. FVM_ESTATE: a graphics mode.
 */
int fvm_vga_text(struct fvm_device *dev, char **ret_text);

#endif
