/*
 * system.h - everything about the processor that is not plain computation: events, control registers, segments,
 * MSRs, CPUID, system calls. Works on precise state only; knows nothing of the translator but two notifications.
 *
 * Convention: functions that can raise a guest exception return 0 or FVM_FAULT with *fault filled, and then have changed
 * nothing else (the instruction is restartable / the exception can be delivered with rip at the instruction).
 * Thread: owning vCPU.
 */
#ifndef FVM_VMM_CPU_SYSTEM_H
#define FVM_VMM_CPU_SYSTEM_H

#include "vmm/cpu/decode.h"
#include "vmm/cpu/state.h"

/* ---- vmem.c: C code's access to guest linear memory (page by page, RAM or MMIO) ---- */
enum fvm_vmem_as { FVM_AS_CPL, FVM_AS_SUPERVISOR }; /* rights: current CPL, or implicit supervisor (descriptor tables) */
int fvm_vmem_read(struct fvm_vcpu *v, fvm_gva va, void *buf, size_t len, enum fvm_vmem_as as, struct fvm_fault *fault);
/** All pages are probed for write before the first byte is written. */
int fvm_vmem_write(struct fvm_vcpu *v, fvm_gva va, const void *buf, size_t len, enum fvm_vmem_as as, struct fvm_fault *fault);
/** Make sure that [va, va+len) can be written (faults now rather than halfway). */
int fvm_vmem_probe(struct fvm_vcpu *v, fvm_gva va, size_t len, unsigned want, enum fvm_vmem_as as, struct fvm_fault *fault);

/** vmem_device.c: what v->vmem_device points to. */
void fvm_vmem_device(struct fvm_vcpu *v, fvm_gpa gpa, void *buf, size_t len, bool write, bool ram);

/* ---- event.c, event_deliver.c ---- */
/**
 * Deliver an exception or interrupt through the guest's IDT (all modes; 64-bit with IST, 32-bit; real mode by IVT). rip must be what
 * the frame shall hold (faults: the instruction; traps: the next). Double fault and triple fault are handled inside:
 * on a triple fault v->run becomes FVM_RUN_SHUTDOWN.
 */
enum fvm_event_kind { FVM_EVENT_FAULT, FVM_EVENT_TRAP_SOFT /* int n, int3, into */, FVM_EVENT_EXTERNAL /* intr, nmi */ };
void fvm_event_deliver(struct fvm_vcpu *v, enum fvm_event_kind kind, const struct fvm_fault *what);
/** An external interrupt (or NMI, vector 2) taken now. */
void fvm_event_interrupt(struct fvm_vcpu *v, unsigned vector);
int fvm_event_iret(struct fvm_vcpu *v, unsigned operand_bytes, struct fvm_fault *fault);

/* ---- segment.c ---- */
int fvm_segment_load(struct fvm_vcpu *v, unsigned seg, uint16_t sel, struct fvm_fault *fault); /* mov sreg / pop sreg (not CS) */
/** Far jump/call/ret target: loads CS:rip with all checks (call: pushes the return address). operand_bytes 2, 4, 8. */
int fvm_segment_far_jump(struct fvm_vcpu *v, uint16_t sel, uint64_t off, unsigned operand_bytes, struct fvm_fault *fault);
int fvm_segment_far_call(struct fvm_vcpu *v, uint16_t sel, uint64_t off, unsigned operand_bytes, uint64_t next_rip,
                         struct fvm_fault *fault);
int fvm_segment_far_ret(struct fvm_vcpu *v, unsigned operand_bytes, unsigned pop_bytes, struct fvm_fault *fault);

/* ---- control.c ---- */
/** Paging description from the control registers as they are now. */
void fvm_control_paging(const struct fvm_vcpu *v, struct fvm_paging *ret);
/** After any change of cr0/cr3/cr4/efer/AC by other means (reset, restore): reload the shadow; flushes everything. */
void fvm_control_reload(struct fvm_vcpu *v);
int fvm_control_write_cr(struct fvm_vcpu *v, unsigned cr, uint64_t value, struct fvm_fault *fault);

/* ---- msr.c ---- false: #GP(0) */
bool fvm_msr_read(struct fvm_vcpu *v, uint32_t msr, uint64_t *ret_value);
bool fvm_msr_write(struct fvm_vcpu *v, uint32_t msr, uint64_t value);

/* ---- syscall.c ---- v->rip is the next instruction's address on entry. Fast-helper safe (no vector registers, no libc). */
int fvm_syscall(struct fvm_vcpu *v, uint64_t next_rip, struct fvm_fault *fault);
int fvm_sysret(struct fvm_vcpu *v, unsigned operand_bytes, struct fvm_fault *fault);
int fvm_sysenter(struct fvm_vcpu *v, uint64_t next_rip, struct fvm_fault *fault);
int fvm_sysexit(struct fvm_vcpu *v, unsigned operand_bytes, struct fvm_fault *fault);

/* ---- system.c ---- */
/**
 * Execute one system instruction on precise state: everything fvm_insn_is_system() says yes to. On 0 rip was advanced or
 * changed. Handles privilege, iret, far transfers, mov cr/dr/sreg, push/pop sreg, l?dt/s?dt, ltr/str, lmsw/smsw, clts, invlpg, invpcid,
 * rd/wrmsr, rdpmc, rdtsc(p), cpuid, xgetbv/xsetbv, xsave family/fxsave/fxrstor, hlt, in/out (not string), int n, int3, into, syscall...,
 * swapgs, rd/wr fs/gs base, pushf/popf, cli/sti, lar/lsl/verr/verw, wbinvd/invd, monitor/mwait, clac/stac, vmcall (#UD).
 */
int fvm_system_exec(struct fvm_vcpu *v, const struct fvm_insn *insn, struct fvm_fault *fault);
bool fvm_insn_is_system(const struct fvm_insn *insn);
/** Port access of `bytes` (also for string I/O): IOPL and the TSS bitmap; #GP(0). */
int fvm_system_io_check(struct fvm_vcpu *v, uint16_t port, unsigned bytes, struct fvm_fault *fault);
/** The TSC as the guest reads it now. */
uint64_t fvm_system_tsc(const struct fvm_vcpu *v);
/** tsc_offset and tsc_direct from the clock: after the clock started, was restored, or another vCPU wrote the TSC. */
void fvm_system_sync_tsc(struct fvm_vcpu *v);

/** Reset (power-on, INIT): architectural state of the SDM's reset table; real mode at f000:fff0. Keeps xsave on INIT. */
void fvm_vcpu_reset_state(struct fvm_vcpu *v, bool init);
/** Start-up IPI: real mode at vector << 12; run becomes NORMAL. */
void fvm_vcpu_sipi_state(struct fvm_vcpu *v, uint8_t vector);

/* ---- translate/ must be told (implemented by the engine, declared here so that system.c needs nothing of translate/) ---- */
/** Linear-to-physical mapping of code may have changed (flush, invlpg): per-vCPU jump caches are stale.
 * halves: FVM_SHADOW_EXEC_*. */
void fvm_engine_exec_flushed(struct fvm_vcpu *v, unsigned halves);
/** The clock's TSC was set by this vCPU: all of its VM read the new one, so that they stay in step. */
void fvm_engine_tsc_changed(struct fvm_vcpu *v);
/**
 * C code of this vCPU writes to a page that holds translated code. Where the bytes were translated, all vCPUs stand still
 * between two instructions meanwhile: none sees half of it, or leaves an old instruction for C to find the new one there.
 */
void fvm_engine_write_code(struct fvm_vcpu *v, fvm_gpa gpa, const void *buf, uint64_t len);
/** A vCPU wants the code at this physical range invalidated (called by the RAM code hook). */
void fvm_engine_code_written(struct fvm_engine *engine, fvm_gpa gpa, uint64_t len);

#endif
