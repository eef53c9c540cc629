/*
 * descriptor.h - guest descriptors and the small vocabulary of faults; shared by the files of vmm/cpu that do
 * segments, events and system instructions. Inline parts are safe in fast helpers.
 */
#ifndef FVM_VMM_CPU_DESCRIPTOR_H
#define FVM_VMM_CPU_DESCRIPTOR_H

#include "vmm/cpu/state.h"

enum { /* bits of struct fvm_seg.attr */
    FVM_A_TYPE = 0xf,
    FVM_A_ACCESSED = 1,
    FVM_A_WRITABLE = 2,   /* data */
    FVM_A_READABLE = 2,   /* code */
    FVM_A_CONFORMING = 4, /* code */
    FVM_A_DOWN = 4,       /* data: expand down */
    FVM_A_CODE = 8,
    FVM_A_S = 0x10,
    FVM_A_P = 0x80,
    FVM_A_L = 0x2000,
    FVM_A_D = 0x4000,
    FVM_A_G = 0x8000,
};
enum { /* types of system descriptors */
    FVM_T_TSS16 = 1, FVM_T_LDT = 2, FVM_T_CALL16 = 4, FVM_T_TASK_GATE = 5, FVM_T_INT16 = 6, FVM_T_TRAP16 = 7,
    FVM_T_TSS = 9, FVM_T_CALL = 12, FVM_T_INT = 14, FVM_T_TRAP = 15, FVM_T_BUSY = 2
};

struct fvm_desc {
    fvm_gva at;      /* linear address of the entry */
    uint64_t lo, hi; /* hi: only of 16-byte system descriptors */
};

static inline bool fvm_canonical(uint64_t va) { return (uint64_t)((int64_t)(va << 16) >> 16) == va; }
static inline unsigned fvm_dpl(uint16_t attr) { return (attr >> 5) & 3u; }
static inline bool fvm_is_code(uint16_t attr) { return (attr & (FVM_A_S | FVM_A_CODE)) == (FVM_A_S | FVM_A_CODE); }
static inline bool fvm_is_data(uint16_t attr) { return (attr & (FVM_A_S | FVM_A_CODE)) == FVM_A_S; }
static inline bool fvm_vcpu_real(const struct fvm_vcpu *v) { return !(v->cr0 & FVM_CR0_PE); }
static inline bool fvm_vcpu_v86(const struct fvm_vcpu *v) { return (v->rflags & FVM_F_VM) != 0; }
static inline bool fvm_null_sel(uint16_t sel) { return !(sel & 0xfffc); }
static inline unsigned fvm_iopl(const struct fvm_vcpu *v) { return (unsigned)(v->rflags >> 12) & 3u; }

static inline int fvm_raise(struct fvm_fault *fault, uint8_t vector, bool has_code, uint32_t code)
{
    fault->vector = vector;
    fault->has_code = has_code;
    fault->code = code;
    fault->cr2 = 0;
    return FVM_FAULT;
}
static inline int fvm_raise_gp0(struct fvm_fault *fault) { return fvm_raise(fault, FVM_EXC_GP, true, 0); }
static inline int fvm_raise_ud(struct fvm_fault *fault) { return fvm_raise(fault, FVM_EXC_UD, false, 0); }
/** Error code that names a selector. */
static inline int fvm_raise_sel(struct fvm_fault *fault, uint8_t vector, uint16_t sel, unsigned ext)
{
    return fvm_raise(fault, vector, true, (sel & 0xfffcu) | ext);
}

static inline uint16_t fvm_desc_attr(const struct fvm_desc *d) { return (uint16_t)((d->lo >> 40) & 0xf0ff); }

/** Reads the entry sel names (GDT or LDT). Beyond the table: `vector`(sel|ext). Null is not treated specially. */
int fvm_desc_fetch(struct fvm_vcpu *v, uint16_t sel, uint8_t vector, unsigned ext, struct fvm_desc *ret,
                   struct fvm_fault *fault);
/** The second half of a 16-byte descriptor. */
int fvm_desc_fetch_high(struct fvm_vcpu *v, uint16_t sel, struct fvm_desc *desc, struct fvm_fault *fault);
/** Hidden part from a code or data descriptor (and LDT/TSS: with hi). */
void fvm_desc_to_seg(const struct fvm_desc *d, uint16_t sel, struct fvm_seg *ret);
/** Sets the accessed bit in memory if it is clear. */
int fvm_desc_accessed(struct fvm_vcpu *v, struct fvm_desc *d, struct fvm_fault *fault);
/** Type and privilege checks of a stack segment for privilege `cpl`; fault `vector` (#GP, #TS), #SS when not present. */
int fvm_desc_check_ss(const struct fvm_desc *d, uint16_t sel, unsigned cpl, uint8_t vector, unsigned ext,
                      struct fvm_fault *fault);
/** Instruction pointer allowed in that code segment? #GP(0|ext). */
int fvm_desc_check_rip(const struct fvm_vcpu *v, const struct fvm_seg *cs, uint64_t rip, unsigned ext,
                       struct fvm_fault *fault);
/** Selector-style segment (real mode, v86). */
void fvm_seg_real(struct fvm_vcpu *v, unsigned seg, uint16_t sel);
void fvm_seg_v86(struct fvm_vcpu *v, unsigned seg, uint16_t sel);
/** A segment register as after loading a null selector. */
void fvm_seg_null(struct fvm_vcpu *v, unsigned seg, uint16_t sel);
/** Install (keeps seg_base_fs/gs in step). */
void fvm_seg_set(struct fvm_vcpu *v, unsigned seg, const struct fvm_seg *s);
/** After a return to an outer ring: data segments that the outer ring may not use become null. */
void fvm_seg_drop_inner(struct fvm_vcpu *v);
/** Stack for a switch to ring `dpl` from the TSS (16/32-bit: ret_ss valid; 64-bit: ist 0..7, ret_ss = dpl). */
int fvm_tss_stack(struct fvm_vcpu *v, unsigned dpl, unsigned ist, uint16_t *ret_ss, uint64_t *ret_sp,
                  struct fvm_fault *fault);

#endif
