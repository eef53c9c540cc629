/*
 * virtio_gso.h - segmentation offload in software: one large TCP/IPv4 frame of the guest into many that fit a wire.
 */
#ifndef FVM_VMM_DEVICES_VIRTIO_VIRTIO_GSO_H
#define FVM_VMM_DEVICES_VIRTIO_VIRTIO_GSO_H

#include "base/types.h"

#define FVM_GSO_SIZE_MIN 128 /* payload per segment; a hostile guest must not make tens of thousands of tiny frames of one */

/** Internet checksum over buf[0, len), 16-bit big-endian words, added to `sum` (not folded, not inverted). */
uint64_t fvm_gso_sum(const uint8_t *buf, size_t len, uint64_t sum);
/** Fold and invert. */
uint16_t fvm_gso_fold(uint64_t sum);

/**
 * fvm_gso_tcp4 - cut `frame` (Ethernet, IPv4, TCP) into segments of `size` payload bytes and hand each to emit, checksums
 * done. `scratch` holds a segment: headers and `size` bytes, at most 14 + 60 + 60 + size.
 *
 * Returns how many were emitted; 0: the frame is not TCP over IPv4, is cut short, or size is below FVM_GSO_SIZE_MIN.
 */
unsigned fvm_gso_tcp4(const uint8_t *frame, size_t len, size_t size, uint8_t *scratch,
                      void (*emit)(void *ctx, const uint8_t *frame, size_t len), void *ctx);

#endif
