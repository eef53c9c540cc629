/*
 * state.h - the processor as the guest sees it, plus what the engine keeps next to it.
 *
 * One struct per vCPU, page aligned; while translated code runs FS base points at it and GS base at the current
 * shadow space. Outside translated code everything architectural is here and exact ("precise state").
 *
 * rflags is kept split: `rflags` holds all bits but IF, which is `iflag` (1 byte, 0 or 1) so that cli/sti are one store;
 * use fvm_vcpu_rflags / fvm_vcpu_set_rflags.
 *
 * Thread: the vCPU's own, except `request` (atomic, any thread) and what is marked "parked": readable by others while
 * the vCPU is parked.
 */
#ifndef FVM_VMM_CPU_STATE_H
#define FVM_VMM_CPU_STATE_H

#include "base/clock.h"
#include "base/types.h"
#include "vmm/mem/bus.h"
#include "vmm/mem/irq.h"
#include "vmm/mem/ram.h"
#include "vmm/mmu/shadow.h"
#include "vmm/mmu/walk.h"

enum { FVM_RAX, FVM_RCX, FVM_RDX, FVM_RBX, FVM_RSP, FVM_RBP, FVM_RSI, FVM_RDI,
       FVM_R8, FVM_R9, FVM_R10, FVM_R11, FVM_R12, FVM_R13, FVM_R14, FVM_R15 };
enum { FVM_ES, FVM_CS, FVM_SS, FVM_DS, FVM_FS, FVM_GS, FVM_SEG_COUNT }; /* the encoding's order */

enum { FVM_F_CF = 1, FVM_F_PF = 4, FVM_F_AF = 0x10, FVM_F_ZF = 0x40, FVM_F_SF = 0x80, FVM_F_TF = 0x100, FVM_F_IF = 0x200,
       FVM_F_DF = 0x400, FVM_F_OF = 0x800, FVM_F_IOPL = 0x3000, FVM_F_NT = 0x4000, FVM_F_RF = 0x10000, FVM_F_VM = 0x20000,
       FVM_F_AC = 0x40000, FVM_F_VIF = 0x80000, FVM_F_VIP = 0x100000, FVM_F_ID = 0x200000 };

enum { FVM_EXC_DE = 0, FVM_EXC_DB = 1, FVM_EXC_NMI = 2, FVM_EXC_BP = 3, FVM_EXC_OF = 4, FVM_EXC_BR = 5, FVM_EXC_UD = 6,
       FVM_EXC_NM = 7, FVM_EXC_DF = 8, FVM_EXC_TS = 10, FVM_EXC_NP = 11, FVM_EXC_SS = 12, FVM_EXC_GP = 13, FVM_EXC_PF = 14,
       FVM_EXC_MF = 16, FVM_EXC_AC = 17, FVM_EXC_XM = 19 };

#define FVM_CR0_PE 1ull
#define FVM_CR0_MP 2ull
#define FVM_CR0_EM 4ull
#define FVM_CR0_TS 8ull
#define FVM_CR0_ET 0x10ull
#define FVM_CR0_NE 0x20ull
#define FVM_CR0_WP 0x10000ull
#define FVM_CR0_AM 0x40000ull
#define FVM_CR0_NW 0x20000000ull
#define FVM_CR0_CD 0x40000000ull
#define FVM_CR0_PG 0x80000000ull
#define FVM_CR4_VME 1ull
#define FVM_CR4_PVI 2ull
#define FVM_CR4_TSD 4ull
#define FVM_CR4_DE 8ull
#define FVM_CR4_PSE 0x10ull
#define FVM_CR4_PAE 0x20ull
#define FVM_CR4_MCE 0x40ull
#define FVM_CR4_PGE 0x80ull
#define FVM_CR4_PCE 0x100ull
#define FVM_CR4_OSFXSR 0x200ull
#define FVM_CR4_OSXMMEXCPT 0x400ull
#define FVM_CR4_UMIP 0x800ull
#define FVM_CR4_FSGSBASE 0x10000ull
#define FVM_CR4_PCIDE 0x20000ull
#define FVM_CR4_OSXSAVE 0x40000ull
#define FVM_CR4_SMEP 0x100000ull
#define FVM_CR4_SMAP 0x200000ull
#define FVM_EFER_SCE 1ull
#define FVM_EFER_LME 0x100ull
#define FVM_EFER_LMA 0x400ull
#define FVM_EFER_NXE 0x800ull

/** Segment register with its hidden part. attr: descriptor bits 40..55 (type 3:0, S 4, DPL 6:5, P 7, AVL 12, L 13, D 14, G 15). */
struct fvm_seg {
    uint16_t sel;
    uint16_t attr;
    uint32_t limit; /* bytes, granularity applied */
    uint64_t base;
};
struct fvm_dtable {
    uint64_t base;
    uint32_t limit;
};

enum { /* bits of `request`: what another thread wants of a vCPU */
    FVM_REQ_IRQ = 1,        /* look at fvm_irq_cpu_pending */
    FVM_REQ_NMI = 2,
    FVM_REQ_STOP = 4,       /* park */
    FVM_REQ_INVALIDATE = 8, /* a fast helper of this vCPU wrote to translated bytes: flush (engine) */
    FVM_REQ_INIT = 16,
    FVM_REQ_SIPI = 32,
    FVM_REQ_FLUSH = 0x10000, /* the board moved memory: drop every cached translation of addresses */
    FVM_REQ_WAKE = 128,     /* no meaning of its own: leave hlt and look */
    FVM_REQ_SAFE_POINT = 256, /* somebody stops the world (translate/world.c) */
};

enum { FVM_SHADOW_STI = 1, FVM_SHADOW_SS = 2 /* mov ss, pop ss: no single-step trap either */ };
enum fvm_vcpu_run { FVM_RUN_NORMAL, FVM_RUN_HALTED, FVM_RUN_WAIT_SIPI, FVM_RUN_SHUTDOWN };

struct fvm_engine;      /* translator's own part (vmm/cpu/translate) */
struct fvm_cpu_model;   /* vmm/cpu/cpuid.h */

#define FVM_XSAVE_BYTES 832 /* x87 + SSE + AVX, standard format; v4 (AVX-512) will raise this */

struct fvm_vcpu {
    /* --- engine: offsets used by emitted code; do not reorder without translate/layout checks --- */
    uint64_t magic;              /* never the struct's own address (see translate/signal) */
    uint64_t regs[16];           /* hardware numbering; valid outside translated code */
    uint64_t rip;
    uint64_t rflags;             /* all but IF */
    uint64_t seg_base_fs, seg_base_gs; /* == seg[FVM_FS/GS].base always: change both (fvm_vcpu_set_seg_base) */
    volatile uint32_t request;   /* FVM_REQ_*, atomic */
    uint8_t iflag;               /* RFLAGS.IF */
    uint8_t int_shadow;          /* FVM_SHADOW_*: no interrupt before the next instruction is done */
    uint8_t cpl;
    uint8_t run;                 /* enum fvm_vcpu_run */
    int64_t tsc_offset;          /* guest tsc = host tsc + this, if tsc_direct */
    uint8_t tsc_direct;
    uint64_t *gs_base;           /* entry 0 of the current shadow space */
    uint64_t engine_slots[96];   /* spill slots, host stack pointer... owned by translate/ */
    uint8_t bounce[1024] __attribute__((aligned(64))); /* operand of instructions that must not touch memory directly */

    /* --- architectural --- */
    uint8_t xsave[FVM_XSAVE_BYTES] __attribute__((aligned(64))); /* guest x87/SSE/AVX, valid outside translated code */
    struct fvm_seg seg[FVM_SEG_COUNT];
    struct fvm_seg ldtr, tr;
    struct fvm_dtable gdtr, idtr;
    uint64_t cr0, cr2, cr3, cr4, cr8_unused;
    uint64_t dr[8];
    uint64_t efer, star, lstar, cstar, sfmask, kernel_gs_base, tsc_aux;
    uint64_t sysenter_cs, sysenter_esp, sysenter_eip;
    uint64_t pat, mtrr_def_type, mtrr_fixed[11], mtrr_var[16], misc_enable, tsc_adjust, spec_ctrl;
    uint64_t xcr0;
    uint8_t nmi_blocked, nmi_pending;
    uint8_t sipi_vector;

    /* --- surroundings, all borrowed --- */
    unsigned index; /* 0.. */
    unsigned count; /* vCPUs of the VM, for CPUID's topology and ADR 0007; 0 counts as 1. Set before anything is translated */
    const struct fvm_cpu_model *model;
    struct fvm_ram *ram;
    struct fvm_bus *bus;
    struct fvm_irq *irq;
    struct fvm_clock *clock;
    struct fvm_shadow *shadow;   /* owned */
    struct fvm_engine *engine;   /* owned by the VM: shared by its vCPUs */
    void *priv;                  /* translate/: this vCPU's private part */
    void *vm;

    /* vmem.c: memory that is a device's or holds translated code. While a fast helper runs (in_fast) it is not called: the access
     * fails and fast_gave_up says that the slow way must do it all again. */
    void (*vmem_device)(struct fvm_vcpu *v, fvm_gpa gpa, void *buf, size_t len, bool write, bool ram);
    uint8_t in_fast, fast_gave_up;
    /* event.c: an interrupt through a task gate (task.c), likewise */
    int (*task_event)(struct fvm_vcpu *v, uint16_t sel, uint64_t flags, bool has_code, uint32_t code, unsigned ext,
                      struct fvm_fault *fault);
};

static inline uint64_t fvm_vcpu_rflags(const struct fvm_vcpu *v)
{
    return v->rflags | 2 | (v->iflag ? FVM_F_IF : 0);
}
static inline void fvm_vcpu_set_rflags(struct fvm_vcpu *v, uint64_t f)
{
    v->rflags = (f & ~(uint64_t)FVM_F_IF) | 2;
    v->iflag = !!(f & FVM_F_IF);
}
static inline void fvm_vcpu_set_seg_base(struct fvm_vcpu *v, unsigned seg, uint64_t base)
{
    v->seg[seg].base = base;
    if (seg == FVM_FS)
        v->seg_base_fs = base;
    if (seg == FVM_GS)
        v->seg_base_gs = base;
}
static inline bool fvm_vcpu_long(const struct fvm_vcpu *v) { return (v->efer & FVM_EFER_LMA) != 0; }
/** 64, 32 or 16: width of the code segment. */
static inline unsigned fvm_vcpu_code_bits(const struct fvm_vcpu *v)
{
    if (fvm_vcpu_long(v) && (v->seg[FVM_CS].attr & 0x2000))
        return 64;
    return (v->seg[FVM_CS].attr & 0x4000) ? 32 : 16;
}

#endif
