/*
 * engine.c - creation and statistics of the translator, and the checks that its assembly and C agree on offsets.
 */
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>

#include "vmm/cpu/translate/engine.h"

#define CHECK(field, off) _Static_assert(offsetof(struct fvm_vcpu, field) == (off), #field " moved: update layout.h")
CHECK(magic, 0);
CHECK(regs, FVM_OFF_REGS);
CHECK(rip, FVM_OFF_RIP);
CHECK(rflags, FVM_OFF_RFLAGS);
CHECK(seg_base_fs, FVM_OFF_SEG_FS);
CHECK(seg_base_gs, FVM_OFF_SEG_GS);
CHECK(request, FVM_OFF_REQUEST);
CHECK(iflag, FVM_OFF_IFLAG);
CHECK(tsc_offset, FVM_OFF_TSC_OFFSET);
CHECK(gs_base, FVM_OFF_GS_BASE);
CHECK(engine_slots, FVM_OFF_SLOTS);
CHECK(bounce, FVM_OFF_BOUNCE);
CHECK(xsave, FVM_OFF_XSAVE);
_Static_assert(sizeof(struct fvm_vcpu) <= FVM_OFF_JC, "the jump cache lies behind the struct");
_Static_assert(FVM_HEAD_USED <= FVM_SPACE_HEAD, "the user jump cache lies in front of the space");

int fvm_engine_create(struct fvm_ram *ram, const struct fvm_engine_config *config, struct fvm_engine **ret_engine,
                      struct fvm_err *err)
{
    if (!(getauxval(AT_HWCAP2) & 2)) /* HWCAP2_FSGSBASE */
        return fvm_err_set(err, FVM_EUNSUPPORTED, 0, "cpu",
                           "this host's kernel does not let programs set FS/GS base (FSGSBASE): Linux 5.9 or later is needed");
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("bmi2"))
        return fvm_err_set(err, FVM_EUNSUPPORTED, 0, "cpu", "this host's processor lacks AVX2 or BMI2");
    struct fvm_engine *e = calloc(1, sizeof *e);
    if (!e)
        return fvm_err_set(err, FVM_ENOMEM, 0, "cpu", "out of memory");
    e->ram = ram;
    if (config)
        e->config = *config;
    if (e->config.single_insn)
        e->config.single_block = true;
    pthread_mutexattr_t attr;
    pthread_mutexattr_init(&attr);
    pthread_mutexattr_settype(&attr, PTHREAD_MUTEX_RECURSIVE);
    pthread_mutex_init(&e->lock, &attr);
    pthread_mutexattr_destroy(&attr);
    int r = fvm_code_init(e, err);
    if (!r && (r = fvm_signal_install()))
        fvm_err_set(err, r, 0, "cpu", "cannot install signal handlers");
    if (r) {
        fvm_engine_destroy(&e);
        return r;
    }
    e->code_written = fvm_engine_code_written;
    ram->code_hook = fvm_fast_code_written;
    ram->code_hook_ctx = e;
    *ret_engine = e;
    return 0;
}

void fvm_engine_destroy(struct fvm_engine **engine_p)
{
    struct fvm_engine *e = *engine_p;
    if (!e)
        return;
    fvm_assert(!e->vcpu_count);
    if (e->ram->code_hook_ctx == e) {
        e->ram->code_hook = NULL;
        e->ram->code_hook_ctx = NULL;
    }
    fvm_code_fini(e);
    pthread_mutex_destroy(&e->lock);
    free(e);
    *engine_p = NULL;
}

void fvm_engine_tsc_changed(struct fvm_vcpu *v)
{
    struct fvm_engine *e = v->engine;
    if (!e) {
        fvm_system_sync_tsc(v);
        return;
    }
    fvm_engine_stop(e);
    for (unsigned k = 0; k < e->vcpu_count; k++)
        fvm_system_sync_tsc(e->vcpus[k]);
    fvm_engine_go(e);
}

void fvm_engine_get_stats(const struct fvm_engine *e, struct fvm_engine_stats *ret)
{
    *ret = e->stats;
    ret->cache_bytes_used = e->code_used + e->cold_used - e->cold_start;
    for (unsigned k = 0; k < e->vcpu_count; k++) {
        const struct fvm_vcpu_priv *p = e->vcpus[k]->priv;
        ret->exits += p->stats.exits;
        ret->exec_one += p->stats.exec_one;
        ret->helper_calls += p->stats.helper_calls;
        ret->irqs += p->stats.irqs;
        ret->faults += p->stats.faults;
        ret->mem_slow += p->stats.mem_slow;
        ret->signals += p->stats.signals;
        ret->host_ns_translating += p->stats.host_ns_translating;
        for (unsigned i = 0; i < FVM_EXIT_REASONS; i++)
            ret->exits_by[i] += p->stats.exits_by[i];
        for (unsigned i = 0; i < FVM_SYSTEM_KINDS; i++)
            ret->system_by[i] += p->stats.system_by[i];
    }
}

const char *fvm_engine_exit_name(unsigned reason)
{
    static const char *const names[FVM_EXIT_REASONS] = {"request", "direct", "indirect", "system", "memory", "fault",
                                                        "trap", "one", "dropped", "transfer", "string"};
    return reason < FVM_EXIT_REASONS ? names[reason] : NULL;
}

const char *fvm_engine_system_name(unsigned bucket)
{
    return fvm_decode_mnemonic(bucket);
}
