/*
 * vm_report.c - what a person wants to know of a VM: --stats, and the dump of a dead guest.
 */
#include "vmm/vm_internal.h"

static unsigned long long ull(uint64_t n)
{
    return (unsigned long long)n;
}

void fvm_vm_stats(const struct fvm_vm *vm, FILE *out)
{
    struct fvm_engine_stats e = {0};
    double wall = (double)(fvm_now_ns() - vm->created_ns) / 1e9, cpu = (double)fvm_vm_cpu_ns(vm) / 1e9;
    fvm_engine_get_stats(vm->engine, &e);
    fprintf(out, "time: wall %.3f s, vcpu threads %.3f s, guest clock %.3f s, resets %llu\n", wall, cpu,
            (double)fvm_clock_ns(vm->clock) / 1e9, ull(vm->resets));
    fprintf(out, "memory: %llu MiB configured, %llu MiB resident, dirty epoch %u\n",
            ull(vm->config->memory_bytes >> 20), ull(fvm_ram_resident_bytes(vm->ram) >> 20), vm->ram->epoch);
    fprintf(out,
            "translator: blocks %llu, instructions %llu, cache %llu KiB, cache flushes %llu, invalidations %llu, "
            "time %.3f s\n",
            ull(e.blocks), ull(e.guest_insns_translated), ull(e.cache_bytes_used >> 10), ull(e.cache_flushes),
            ull(e.invalidations), (double)e.host_ns_translating / 1e9);
    fprintf(out,
            "execution: exits %llu, single instructions %llu, helper calls %llu, slow memory %llu, mmio %llu, "
            "interrupts %llu, faults %llu, host signals %llu\n",
            ull(e.exits), ull(e.exec_one), ull(e.helper_calls), ull(e.mem_slow), ull(e.mmio), ull(e.irqs),
            ull(e.faults), ull(e.signals));
    if (e.stops)
        fprintf(out, "stops of all processors: %llu, mean %.1f us, longest %.1f us\n", ull(e.stops),
                (double)e.stop_ns / 1e3 / (double)e.stops, (double)e.stop_ns_max / 1e3);
    fprintf(out, "exits by reason:");
    for (unsigned i = 0; i < FVM_EXIT_REASONS; i++)
        if (e.exits_by[i])
            fprintf(out, " %s %llu", fvm_engine_exit_name(i), ull(e.exits_by[i]));
    fprintf(out, "\ninstructions done by C:");
    for (unsigned i = 0; i < FVM_SYSTEM_KINDS; i++)
        if (e.system_by[i] > e.exits / 200)
            fprintf(out, " %s %llu", fvm_engine_system_name(i), ull(e.system_by[i]));
    fprintf(out, "\n");
    for (unsigned i = 0; i < vm->vcpu_count; i++) {
        const struct fvm_vcpu *v = vm->vcpus[i];
        const struct fvm_shadow_stats *s = fvm_shadow_get_stats(v->shadow);
        fprintf(out,
                "cpu%u: %.3f s; shadow %llu KiB: fills %llu (+%llu neighbours), write grants %llu, flushes %llu space "
                "%llu all %llu page, revokes %llu, switches %llu, steals %llu\n",
                i, (double)fvm_vcpu_cpu_ns(v) / 1e9, ull(fvm_shadow_bytes(v->shadow) >> 10), ull(s->fills),
                ull(s->fill_neighbours), ull(s->write_grants), ull(s->flush_space), ull(s->flush_all),
                ull(s->flush_page), ull(s->revokes), ull(s->switches), ull(s->steals));
    }
}

void fvm_vm_dump(struct fvm_vm *vm, FILE *out)
{
    unsigned depth = fvm_vm_guard_release(vm);
    pthread_mutex_lock(&vm->op_lock);
    bool running = atomic_load(&vm->state) == FVM_VM_RUNNING;
    if (running)
        fvm_vm_park_all(vm);
    for (unsigned i = 0; i < vm->vcpu_count; i++)
        fvm_vcpu_dump(vm->vcpus[i], out);
    if (running)
        fvm_vm_resume_all(vm);
    pthread_mutex_unlock(&vm->op_lock);
    fvm_vm_guard_retake(vm, depth);
}
