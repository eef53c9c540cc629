/*
 * vcpu.h - one virtual processor: a thread that runs translated guest code.
 */
#ifndef FVM_VMM_CPU_VCPU_H
#define FVM_VMM_CPU_VCPU_H

#include <stdio.h>

#include "base/err.h"
#include "vmm/cpu/state.h"

enum { FVM_TRACE_EXEC = 1, FVM_TRACE_INT = 2, FVM_TRACE_IO = 8, FVM_TRACE_CODE = 16 };

struct fvm_engine_config {
    uint64_t cache_bytes;   /* code cache, 0: default */
    bool single_block;      /* never chain blocks, one instruction per block when single_insn */
    bool single_insn;
    unsigned trace;         /* FVM_TRACE_* */
    FILE *trace_file;       /* borrowed; stderr if NULL */
};

struct fvm_vcpu_hooks {
    /* run on the vCPU thread */
    void (*shutdown)(void *ctx, struct fvm_vcpu *v, const char *why); /* triple fault, internal stop: the VM must stop */
    void (*debug)(void *ctx, struct fvm_vcpu *v); /* it stands still for a debugger (debug.h); may be NULL */
    void *ctx;
};

#define FVM_EXIT_REASONS 11
#define FVM_SYSTEM_KINDS 2048 /* Zydis' mnemonics fit */
struct fvm_engine_stats {
    uint64_t blocks, guest_insns_translated, cache_bytes_used, cache_flushes, invalidations, exits, exec_one, helper_calls,
        mem_slow, irqs, faults, mmio, signals, host_ns_translating;
    uint64_t stops, stop_ns, stop_ns_max;      /* the world was stopped; until all were out of code */
    uint64_t exits_by[FVM_EXIT_REASONS];       /* full exits, by reason: fvm_engine_exit_name */
    uint64_t system_by[FVM_SYSTEM_KINDS];      /* instructions done by C, by mnemonic (hashed): fvm_engine_system_name */
};
/** "direct", "indirect"...; NULL past the end. */
const char *fvm_engine_exit_name(unsigned reason);
/** Mnemonic of a bucket of system_by that was used, or NULL. */
const char *fvm_engine_system_name(unsigned bucket);

int fvm_engine_create(struct fvm_ram *ram, const struct fvm_engine_config *config, struct fvm_engine **ret_engine,
                      struct fvm_err *err);
void fvm_engine_destroy(struct fvm_engine **engine_p);
/**
 * Stop the world: returns when every vCPU is out of translated code and out of what depends on it, and stays so until
 * fvm_engine_go. Any thread; the caller may hold the board lock, but must not take it in between. Microseconds. Nests.
 */
void fvm_engine_stop(struct fvm_engine *engine);
void fvm_engine_go(struct fvm_engine *engine);
void fvm_engine_get_stats(const struct fvm_engine *engine, struct fvm_engine_stats *ret);

/** The vCPU and its shadow; no thread yet. State is reset state (BSP runs, others wait for SIPI). */
int fvm_vcpu_create(struct fvm_engine *engine, unsigned index, const struct fvm_cpu_model *model, struct fvm_bus *bus,
                    struct fvm_irq *irq, struct fvm_clock *clock, const struct fvm_vcpu_hooks *hooks,
                    struct fvm_vcpu **ret_vcpu, struct fvm_err *err);
void fvm_vcpu_destroy(struct fvm_vcpu **vcpu_p);
/** Starts the thread, parked. */
int fvm_vcpu_start_thread(struct fvm_vcpu *v);
/** Let it run / park it. park returns when the vCPU is out of guest code with precise state. Any thread but the vCPU's. */
void fvm_vcpu_resume(struct fvm_vcpu *v);
void fvm_vcpu_park(struct fvm_vcpu *v);
/** Ends the thread (parks first). */
void fvm_vcpu_stop_thread(struct fvm_vcpu *v);
/** Set FVM_REQ_* bits and make the vCPU notice within microseconds. Any thread; never blocks. */
void fvm_vcpu_request(struct fvm_vcpu *v, uint32_t bits);
/** Host time spent, ns of thread CPU. */
uint64_t fvm_vcpu_cpu_ns(const struct fvm_vcpu *v);
/** Registers, segments, control registers, last blocks: the report of a dead guest. Parked or own thread. */
void fvm_vcpu_dump(const struct fvm_vcpu *v, FILE *out);

/** Tests: run translated code on the calling thread until rip == until_rip or a fault or max_blocks. See tests/diff. */
struct fvm_run_result { bool faulted; struct fvm_fault fault; bool limit; };
void fvm_vcpu_run_until(struct fvm_vcpu *v, uint64_t until_rip, uint64_t max_blocks, struct fvm_run_result *ret);

#endif
