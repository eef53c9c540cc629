/*
 * vm_debug.h - a VM under a debugger: halted, stepped, its registers and memory looked at and changed.
 *
 * Registers have gdb's numbers for x86-64 (see fvm_gdb_target_xml in gdb_session.c). Memory is by linear address through
 * the processor's own page tables; devices' memory is not touched. Watching sees processors' accesses, not devices' DMA.
 *
 * Thread: the loop's. Everything but fvm_vm_debug_why needs a VM that does not run (fvm_vm_pause).
 */
#ifndef FVM_VMM_VM_DEBUG_H
#define FVM_VMM_VM_DEBUG_H

#include "vmm/cpu/debug.h"
#include "vmm/vm.h"

enum { FVM_VM_WATCHES_MAX = 16, FVM_DEBUG_REG_BYTES = 16 };
enum { /* registers */
    FVM_DEBUG_RIP = 16, FVM_DEBUG_EFLAGS = 17, FVM_DEBUG_CS = 18, FVM_DEBUG_ST0 = 24, FVM_DEBUG_FCTRL = 32,
    FVM_DEBUG_XMM0 = 40, FVM_DEBUG_MXCSR = 56, FVM_DEBUG_FS_BASE = 57, FVM_DEBUG_GS_BASE = 58, FVM_DEBUG_K_GS_BASE = 59,
    FVM_DEBUG_CR0 = 60, FVM_DEBUG_CR2, FVM_DEBUG_CR3, FVM_DEBUG_CR4, FVM_DEBUG_CR8, FVM_DEBUG_EFER, FVM_DEBUG_REGS
};
enum fvm_debug_kind { FVM_DEBUG_EXEC = 1, FVM_DEBUG_WRITE = 2, FVM_DEBUG_READ = 3, FVM_DEBUG_ACCESS = 4 }; /* gdb's Z */

unsigned fvm_vm_debug_cpus(const struct fvm_vm *vm);
/** A register's bytes, little-endian: how many, 0 for an unknown one. */
size_t fvm_vm_debug_reg(struct fvm_vm *vm, unsigned cpu, unsigned reg, uint8_t ret[FVM_DEBUG_REG_BYTES]);
size_t fvm_debug_reg_bytes(unsigned reg);
/** FVM_EINVAL: not one that can be changed, or a value that it cannot have. */
int fvm_vm_debug_set_reg(struct fvm_vm *vm, unsigned cpu, unsigned reg, const uint8_t *bytes);
/** All or nothing; FVM_EINVAL: some byte is not mapped, or not RAM. */
int fvm_vm_debug_read(struct fvm_vm *vm, unsigned cpu, fvm_gva va, void *buf, size_t len);
int fvm_vm_debug_write(struct fvm_vm *vm, unsigned cpu, fvm_gva va, const void *buf, size_t len);
/** Breakpoint at va, or watching [va, va + len) as `cpu` sees it now. FVM_EEXIST, FVM_ENOENT, FVM_ENOSPC, FVM_EINVAL. */
int fvm_vm_debug_break(struct fvm_vm *vm, unsigned cpu, enum fvm_debug_kind kind, fvm_gva va, size_t len, bool set);
/** All breakpoints and watches go, no processor is held back. */
void fvm_vm_debug_forget(struct fvm_vm *vm);
/** Which processor stopped for a reason, and why; the first one. NONE: nobody did. */
enum fvm_debug_reason fvm_vm_debug_why(const struct fvm_vm *vm, unsigned *ret_cpu, uint64_t *ret_addr,
                                       enum fvm_debug_kind *ret_kind);
/** Let it run; step_cpu < 0: all processors. Else that one for one instruction, the others stand still. */
int fvm_vm_debug_go(struct fvm_vm *vm, int step_cpu);

#endif
