/*
 * debug.h - a vCPU that a debugger stops, steps and lets go: breakpoints by linear address, single steps, stops after a
 * watched access. Nothing of it is visible to the guest: no byte changes, no debug register.
 *
 * Breakpoints cut blocks: no block reaches over one, and a block that begins at one is entered by the dispatcher only,
 * which stops instead. What has none runs at full speed. Watching is memory's business (mem/ram.h, FVM_PAGE_WATCH);
 * here is only told that it happened.
 *
 * A vCPU with a reason stands still until fvm_debug_go, whoever else resumes it. While it steps it takes no interrupt,
 * unless it is halted.
 * Test: tests/unit/engine_debug.c, tests/e2e/gdb
 */
#ifndef FVM_VMM_CPU_DEBUG_H
#define FVM_VMM_CPU_DEBUG_H

#include "vmm/cpu/vcpu.h"

enum { FVM_DEBUG_BREAKS_MAX = 64 };
enum fvm_debug_reason { FVM_DEBUG_NONE, FVM_DEBUG_BREAK, FVM_DEBUG_STEP, FVM_DEBUG_WATCH, FVM_DEBUG_HELD };

/* --- any thread, all vCPUs of the engine parked --- */
/** FVM_EEXIST, FVM_ENOENT, FVM_ENOSPC. Translations go. */
int fvm_debug_break_set(struct fvm_engine *engine, uint64_t linear);
void fvm_debug_break_clear_all(struct fvm_engine *engine);
int fvm_debug_break_clear(struct fvm_engine *engine, uint64_t linear);
/** Why it stands still; *ret_addr: of a watched access. */
enum fvm_debug_reason fvm_debug_why(const struct fvm_vcpu *v, uint64_t *ret_addr);
/** Once resumed it goes on; step: one instruction, then it stops. */
void fvm_debug_go(struct fvm_vcpu *v, bool step);
/** Once resumed it stands still all the same. */
void fvm_debug_keep(struct fvm_vcpu *v);
/** The vCPU's paging, to walk its tables with. */
void fvm_debug_paging(const struct fvm_vcpu *v, struct fvm_paging *ret);
/** Registers, flags or segment bases were changed from outside. */
void fvm_debug_changed(struct fvm_vcpu *v);

/* --- the vCPU's own thread --- */
/** An access that a debugger watches, to linear or physical `addr`: stop after this instruction. */
void fvm_debug_hit(struct fvm_vcpu *v, uint64_t addr);
/* run.c, vcpu.c */
bool fvm_debug_stop_here(struct fvm_vcpu *v);
void fvm_debug_executed(struct fvm_vcpu *v);
bool fvm_debug_hold(struct fvm_vcpu *v);

#endif
