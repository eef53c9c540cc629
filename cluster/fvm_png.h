/* fvm_png.h - a picture as a PNG file's bytes (zlib; 8 bits RGB). Pure. Test: tests/unit/fvm_png.c */
#ifndef FVM_CLUSTER_FVM_PNG_H
#define FVM_CLUSTER_FVM_PNG_H

#include "vmm/devices/vga.h"

/** malloc'd *ret_bytes; FVM_ENOMEM. */
int fvm_png_make(const struct fvm_surface *surface, uint8_t **ret_bytes, size_t *ret_len);

#endif
