/*
 * segment.h - the part of segment.c that only vmm/cpu's own files need; the rest is in system.h.
 */
#ifndef FVM_VMM_CPU_SEGMENT_H
#define FVM_VMM_CPU_SEGMENT_H

#include "vmm/cpu/system.h"

/** Would loading sel into seg (not CS; protected mode) succeed? The hidden part, or the fault. */
int fvm_segment_judge(struct fvm_vcpu *v, unsigned seg, uint16_t sel, struct fvm_seg *ret, struct fvm_fault *fault);

#endif
