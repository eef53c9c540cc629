/*
 * event_deliver.c - delivering an event whatever happens on the way: double and triple faults as the SDM's table says.
 * Source: Intel SDM vol. 3A, 6.15 (interrupt 8).
 */
#include "base/log.h"
#include "vmm/cpu/descriptor.h"
#include "vmm/cpu/event.h"

static bool contributory(unsigned vector)
{
    return vector == FVM_EXC_DE || (vector >= FVM_EXC_TS && vector <= FVM_EXC_GP);
}

static bool doubles(const struct fvm_event *first, unsigned second)
{
    if (first->kind != FVM_EVENT_FAULT)
        return false;
    if (first->vector == FVM_EXC_PF)
        return second == FVM_EXC_PF || contributory(second);
    return contributory(first->vector) && contributory(second);
}

static void shutdown(struct fvm_vcpu *v, unsigned vector)
{
    fvm_log(WARN, "cpu.triple_fault", "cpu=%u rip=0x%llx vector=%u cr2=0x%llx", v->index, (unsigned long long)v->rip,
            vector, (unsigned long long)v->cr2);
    v->run = FVM_RUN_SHUTDOWN;
}

void fvm_event_deliver(struct fvm_vcpu *v, enum fvm_event_kind kind, const struct fvm_fault *what)
{
    struct fvm_event e = {.kind = kind, .vector = what->vector, .has_code = what->has_code, .code = what->code,
                          .ext = kind != FVM_EVENT_TRAP_SOFT, .check_dpl = kind == FVM_EVENT_TRAP_SOFT};
    uint64_t cr2 = what->cr2;

    if (v->run == FVM_RUN_HALTED)
        v->run = FVM_RUN_NORMAL;
    for (;;) {
        struct fvm_fault next = {0};

        if (e.kind == FVM_EVENT_FAULT && e.vector == FVM_EXC_PF)
            v->cr2 = cr2;
        if (fvm_vcpu_real(v))
            e.has_code = false;
        if (fvm_event_try(v, &e, &next) == 0)
            break;
        if (e.kind == FVM_EVENT_FAULT && e.vector == FVM_EXC_DF) {
            shutdown(v, next.vector);
            return;
        }
        if (next.vector == FVM_EXC_PF)
            v->cr2 = cr2 = next.cr2;
        if (doubles(&e, next.vector)) {
            e.vector = FVM_EXC_DF;
            e.has_code = true;
            e.code = 0;
        } else {
            e.vector = next.vector;
            e.has_code = next.has_code;
            e.code = next.code;
        }
        e.kind = FVM_EVENT_FAULT;
        e.check_dpl = false;
        e.ext = 1;
    }
    v->int_shadow = 0;
    if (kind == FVM_EVENT_EXTERNAL && what->vector == FVM_EXC_NMI)
        v->nmi_blocked = 1;
}

void fvm_event_interrupt(struct fvm_vcpu *v, unsigned vector)
{
    struct fvm_fault what = {.vector = (uint8_t)vector};

    fvm_event_deliver(v, FVM_EVENT_EXTERNAL, &what);
}
