/*
 * lapic_state.c - the local APICs' registers as a message and back, and what a processor's APIC cannot be.
 *
 * Invariant: what check lets through, restore takes without failing, and save gives the same bytes again.
 */
#include <string.h>

#include "proto/device_state.pb-c.h"
#include "vmm/devices/lapic_impl.h"
#include "vmm/devices/pack.h"

int fvm_lapic_save(struct fvm_device *dev, uint8_t **ret_buf, size_t *ret_len)
{
    struct lapic *l = (struct lapic *)dev;
    Fvm__LapicState state = FVM__LAPIC_STATE__INIT;
    Fvm__LapicCpuState cpus[FVM_LAPIC_CPUS_MAX], *pointers[FVM_LAPIC_CPUS_MAX];

    for (unsigned i = 0; i < l->count; i++) {
        struct lapic_cpu *c = &l->cpu[i];
        Fvm__LapicCpuState *s = &cpus[i];

        fvm__lapic_cpu_state__init(s);
        pointers[i] = s;
        s->apic_base = c->apic_base;
        s->id = c->id;
        s->tpr = c->tpr;
        s->ldr = c->ldr;
        s->dfr = c->dfr;
        s->svr = c->svr;
        s->n_isr = s->n_tmr = s->n_irr = 8;
        s->isr = c->isr;
        s->tmr = c->tmr;
        s->irr = c->irr;
        s->esr = c->esr;
        s->esr_pending = c->esr_pending;
        s->icr = c->icr;
        s->n_lvt = LVT_COUNT;
        s->lvt = c->lvt;
        s->timer_initial = c->timer_initial;
        s->timer_divide = c->timer_divide;
        s->timer_start_ns = c->timer_start_ns;
        s->timer_expire_ns = c->timer_expire_ns;
        s->tsc_deadline = c->tsc_deadline;
        s->extint = c->extint;
    }
    state.n_cpus = l->count;
    state.cpus = pointers;
    return fvm_device_pack(&state.base, ret_buf, ret_len);
}

static const char *check_cpu(const Fvm__LapicCpuState *s, unsigned index)
{
    uint64_t mode = s->apic_base & (BASE_ENABLED | BASE_X2APIC);

    if ((s->apic_base & ~(BASE_ENABLED | BASE_X2APIC | BASE_BSP)) != FVM_LAPIC_BASE || mode == BASE_X2APIC ||
        !!(s->apic_base & BASE_BSP) != (index == 0))
        return "APIC base";
    if (s->id != index)
        return "APIC id";
    if (s->tpr > 0xff || (s->ldr & 0xffffff) || (s->dfr & 0xfffffff) != 0xfffffff || (s->svr & ~0x3ffu))
        return "TPR, LDR, DFR or SVR";
    if (s->n_isr != 8 || s->n_tmr != 8 || s->n_irr != 8 || ((s->isr[0] | s->tmr[0] | s->irr[0]) & 0xffff))
        return "ISR, TMR or IRR";
    if ((s->esr | s->esr_pending) & ~0xffu)
        return "ESR";
    if (s->icr & 0xfff33000u)
        return "ICR";
    if (s->n_lvt != LVT_COUNT)
        return "number of LVT entries";
    for (unsigned i = 0; i < LVT_COUNT; i++)
        if (s->lvt[i] & ~(fvm_lapic_lvt_writable[i] | LVT_MASKED))
            return "LVT entry";
    if (s->timer_divide & ~0xbu)
        return "timer divide configuration";
    if (s->timer_expire_ns != UINT64_MAX && LVT_TIMER_MODE(s->lvt[LVT_TIMER]) < 2 && s->timer_initial == 0)
        return "timer runs without an initial count";
    return NULL;
}

int fvm_lapic_check(struct fvm_device *dev, const uint8_t *buf, size_t len, struct fvm_err *err)
{
    struct lapic *l = (struct lapic *)dev;
    Fvm__LapicState *state = (void *)fvm_device_unpack(&fvm__lapic_state__descriptor, dev, buf, len, err);
    const char *wrong = NULL;

    if (!state)
        return FVM_EBADIMAGE;
    if (state->n_cpus != l->count)
        wrong = "number of processors differs";
    for (unsigned i = 0; !wrong && i < l->count; i++)
        wrong = check_cpu(state->cpus[i], i);
    fvm__lapic_state__free_unpacked(state, NULL);
    return wrong ? fvm_device_refuse(dev, err, wrong) : 0;
}

void fvm_lapic_restore(struct fvm_device *dev, const uint8_t *buf, size_t len)
{
    struct lapic *l = (struct lapic *)dev;
    Fvm__LapicState *state = fvm__lapic_state__unpack(NULL, len, buf);

    fvm_assert(state && state->n_cpus == l->count);
    for (unsigned i = 0; i < l->count; i++) {
        struct lapic_cpu *c = &l->cpu[i];
        const Fvm__LapicCpuState *s = state->cpus[i];

        c->apic_base = s->apic_base;
        c->id = s->id;
        c->tpr = s->tpr;
        c->ldr = s->ldr;
        c->dfr = s->dfr;
        c->svr = s->svr;
        memcpy(c->isr, s->isr, sizeof(c->isr));
        memcpy(c->tmr, s->tmr, sizeof(c->tmr));
        memcpy(c->irr, s->irr, sizeof(c->irr));
        c->esr = s->esr;
        c->esr_pending = s->esr_pending;
        c->icr = s->icr;
        memcpy(c->lvt, s->lvt, sizeof(c->lvt));
        c->timer_initial = s->timer_initial;
        c->timer_divide = s->timer_divide;
        c->timer_start_ns = s->timer_start_ns;
        c->timer_expire_ns = s->timer_expire_ns;
        c->tsc_deadline = s->tsc_deadline;
        c->extint = s->extint;
        fvm_timer_arm(c->timer, c->timer_expire_ns);
    }
    fvm__lapic_state__free_unpacked(state, NULL);
}
