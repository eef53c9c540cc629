/*
 * recover.c - from the middle of a block back to precise guest state: spilled registers, flags, rip.
 *
 * Victims are not changed by the guest instructions of their block (no instruction of it names them), so their slots hold the
 * right values anywhere behind the prologue, whether or not the host registers were reloaded.
 */
#include "vmm/cpu/translate/engine.h"

void fvm_recover_flags(struct fvm_vcpu *v, bool saved)
{
    uint64_t h = *fvm_slot(v, FVM_SLOT_HFLAGS), f;
    if (saved) {
        uint64_t s = *fvm_slot(v, FVM_SLOT_FLAGS);
        f = ((s >> 8) & 0xd5) | (s & 1 ? FVM_F_OF : 0) | (h & FVM_F_DF);
    } else {
        f = h & FVM_HOST_FLAGS;
    }
    v->rflags = (v->rflags & ~(uint64_t)FVM_HOST_FLAGS) | f;
}

void fvm_recover_victims(struct fvm_vcpu *v, const struct fvm_block *b, unsigned count)
{
    for (unsigned k = 0; k < b->victim_count && k < count; k++)
        v->regs[b->victim[k]] = *fvm_slot(v, fvm_victim_slot(k));
}

void fvm_recover_mark(struct fvm_vcpu *v, const struct fvm_block *b, unsigned mark, bool flags_saved)
{
    fvm_recover_victims(v, b, FVM_VICTIMS_MAX);
    fvm_recover_flags(v, flags_saved);
    v->rip = fvm_block_base(v, b) + b->rip + v->engine->marks[b->mark_first + mark].guest_off;
}

void fvm_recover_site(struct fvm_vcpu *v, uint32_t n)
{
    const struct fvm_site *s = &v->engine->sites[n];
    fvm_recover_mark(v, &v->engine->blocks[s->block], s->mark, s->flags_saved);
}

unsigned fvm_recover_mark_at(const struct fvm_engine *e, const struct fvm_block *b, uint32_t host_off)
{
    unsigned k = b->mark_count;
    while (k > 1 && e->marks[b->mark_first + k - 1].host_off > host_off)
        k--;
    return k - 1;
}

void fvm_recover_exit(struct fvm_vcpu *v, uint32_t arg)
{
    const struct fvm_exit *x = &v->engine->exits[arg & ~FVM_EXIT_MOVED];
    const struct fvm_block *b = &v->engine->blocks[x->block];
    fvm_recover_victims(v, b, FVM_VICTIMS_MAX);
    fvm_recover_flags(v, x->flags_saved);
    v->rip = fvm_block_base(v, b) + (arg & FVM_EXIT_MOVED ? x->target & FVM_PAGE_MASK : x->target);
}
