/*
 * fast_sys.c - system instructions and fault delivery without leaving translated code's context: no vector registers are saved,
 * no thread-local storage, no locks. Whatever meets anything unusual (a device's memory, a fault on the way, a request)
 * gives up before changing state, and the slow way (run.c) does it again from the start.
 */
#include "vmm/cpu/descriptor.h"
#include "vmm/cpu/event.h"
#include "vmm/cpu/translate/tr.h"

static unsigned slow(struct fvm_vcpu *v)
{
    *fvm_slot(v, FVM_SLOT_TMP) = FVM_C_SYSTEM;
    return fvm_fast_leave(v, FVM_EXIT_SYSTEM);
}

/* State is precise and complete, v->rip is where to go on. */
static unsigned go_on(struct fvm_vcpu *v)
{
    uint64_t f = v->rflags;
    *fvm_slot(v, FVM_SLOT_HFLAGS) = f & FVM_HOST_FLAGS; /* with the guest's AC the host would trap our own accesses */
    if (v->iflag && *(uint8_t *)fvm_slot(v, FVM_SLOT_WINDOW))
        return fvm_fast_leave(v, FVM_EXIT_RIP);
    uint64_t code = fvm_fast_find(v, v->rip);
    if (!code)
        return fvm_fast_leave(v, FVM_EXIT_RIP);
    /* what was found is the entry for flags in SLOT_FLAGS: provide them there, too */
    *fvm_slot(v, FVM_SLOT_FLAGS) = (f & 0xd5) << 8 | (f & FVM_F_OF ? 1 : 0);
    *fvm_slot(v, FVM_SLOT_RET) = code;
    return 1;
}

/* Is it the check of a linked exit that failed, and no cut link? */
static bool check_failed(const struct fvm_engine *e, const struct fvm_exit *x, const struct fvm_block *b)
{
    int32_t rel = __atomic_load_n((const int32_t *)(const void *)(e->code + b->code_off + x->jump_off), __ATOMIC_RELAXED);
    return x->check_off && x->jump_off + 4 + (uint32_t)rel == x->check_off;
}

/*
 * A direct exit that leads to no block, or to another page than it was linked to. Often that page's entry was only flushed (by fork,
 * exec, munmap) and is the same again once it is filled: then the link is right as it stands. All else is run.c's.
 */
unsigned fvm_fast_direct(struct fvm_vcpu *v)
{
    const struct fvm_engine *e = v->engine;
    uint32_t arg = (uint32_t)*fvm_slot(v, FVM_SLOT_ARG);
    const struct fvm_exit *x = &e->exits[arg & ~FVM_EXIT_MOVED];
    const struct fvm_block *b = &e->blocks[x->block];
    const struct fvm_vcpu_priv *p = v->priv;
    uint64_t entry, gpa;
    struct fvm_fault f;
    if (arg & FVM_EXIT_MOVED || x->now == FVM_NONE || x->plain || b->mode & FVM_MODE_SEG || v->request || p->run_until_on ||
        !check_failed(e, x, b))
        return fvm_fast_leave(v, FVM_EXIT_DIRECT);
    uint64_t rip = fvm_block_base(v, b) + x->target;
    bool user = (b->mode & FVM_MODE_USER) != 0;
    if (!fvm_canonical(rip) || fvm_shadow_peek(v->shadow, rip) & (user ? FVM_S_UX : FVM_S_KX) ||
        fvm_shadow_miss(v->shadow, rip, FVM_X | (user ? FVM_USER : 0), &entry, &gpa, &f) != FVM_SHADOW_OK)
        return fvm_fast_leave(v, FVM_EXIT_DIRECT);
    if (fvm_code_find(e, gpa, rip, b->mode & ~(uint64_t)FVM_MODE_PLAIN) != x->now)
        return fvm_fast_leave(v, FVM_EXIT_DIRECT);
    fvm_recover_exit(v, arg);
    return go_on(v);
}

unsigned fvm_fast_deliver(struct fvm_vcpu *v, uint32_t site, const struct fvm_fault *f)
{
    struct fvm_vcpu_priv *p = v->priv;
    struct fvm_fault second;
    if (p->return_faults || v->engine->config.trace || (v->rflags & FVM_F_TF))
        return fvm_fast_leave_fault(v, f);
    uint64_t cr2 = v->cr2;
    fvm_recover_site(v, site);
    v->seg[FVM_GS].base = v->seg_base_gs;
    struct fvm_event e = {.kind = FVM_EVENT_FAULT, .vector = f->vector, .has_code = f->has_code, .code = f->code, .ext = 1};
    if (f->vector == FVM_EXC_PF)
        v->cr2 = f->cr2;
    v->in_fast = 1;
    v->fast_gave_up = 0;
    int r = fvm_event_try(v, &e, &second);
    v->in_fast = 0;
    if (r) {
        v->cr2 = cr2;
        return fvm_fast_leave_fault(v, f);
    }
    v->int_shadow = 0;
    p->stats.faults++;
    return go_on(v);
}

static unsigned iretq(struct fvm_vcpu *v)
{
    struct fvm_fault f;
    if (v->nmi_blocked || v->cpl || (v->rflags & FVM_F_TF))
        return slow(v);
    v->in_fast = 1;
    v->fast_gave_up = 0;
    int r = fvm_event_iret(v, 8, &f);
    v->in_fast = 0;
    if (r)
        return slow(v);
    v->seg_base_fs = v->seg[FVM_FS].base;
    v->seg_base_gs = v->seg[FVM_GS].base;
    return go_on(v);
}

static unsigned mov_cr3(struct fvm_vcpu *v, uint64_t value)
{
    struct fvm_vcpu_priv *p = v->priv;
    bool pcid = (v->cr4 & FVM_CR4_PCIDE) != 0, keep = pcid && value >> 63;
    if (!fvm_paging_key_ok(v) || v->cpl)
        return slow(v);
    if (pcid)
        value &= ~(1ull << 63);
    if (value >> p->paging.maxphyaddr)
        return slow(v);
    v->cr3 = p->paging.cr3 = value;
    v->gs_base = fvm_shadow_load(v->shadow, &p->paging, pcid, !keep);
    __asm__ volatile("wrgsbase %0" : : "r"(v->gs_base));
    unsigned halves = fvm_shadow_take_exec_flushed(v->shadow);
    if (halves)
        fvm_engine_exec_flushed(v, halves);
    return 1;
}

static unsigned invlpg(struct fvm_vcpu *v)
{
    uint64_t va = *fvm_slot(v, FVM_SLOT_EA);
    if (v->cpl || !fvm_canonical(va))
        return slow(v);
    fvm_shadow_flush_page(v->shadow, va);
    unsigned halves = fvm_shadow_take_exec_flushed(v->shadow);
    if (halves)
        fvm_engine_exec_flushed(v, halves);
    return 1;
}

static unsigned wrmsr(struct fvm_vcpu *v)
{
    uint64_t value = (v->regs[FVM_RAX] & 0xffffffff) | v->regs[FVM_RDX] << 32;
    if (v->cpl || !fvm_canonical(value))
        return slow(v);
    switch ((uint32_t)v->regs[FVM_RCX]) {
    case 0xc0000100:
        fvm_vcpu_set_seg_base(v, FVM_FS, value);
        return 1;
    case 0xc0000101:
        fvm_vcpu_set_seg_base(v, FVM_GS, value);
        return 1;
    case 0xc0000102:
        v->kernel_gs_base = value;
        return 1;
    default:
        return slow(v);
    }
}

static unsigned cpuid(struct fvm_vcpu *v)
{
    struct fvm_vcpu_priv *p = v->priv;
    uint32_t leaf = (uint32_t)v->regs[FVM_RAX], sub = (uint32_t)v->regs[FVM_RCX];
    unsigned k = fvm_cpuid_bucket(leaf, sub);
    if (p->cpuid[k].stamp != fvm_cpuid_stamp(v) || p->cpuid[k].leaf != leaf || p->cpuid[k].sub != sub)
        return slow(v);
    v->regs[FVM_RAX] = p->cpuid[k].out[0];
    v->regs[FVM_RBX] = p->cpuid[k].out[1];
    v->regs[FVM_RCX] = p->cpuid[k].out[2];
    v->regs[FVM_RDX] = p->cpuid[k].out[3];
    return 1;
}

static unsigned write_base(struct fvm_vcpu *v, unsigned seg, uint64_t value, bool wide)
{
    if (!(v->cr4 & FVM_CR4_FSGSBASE) || (wide && !fvm_canonical(value)))
        return slow(v);
    fvm_vcpu_set_seg_base(v, seg, wide ? value : (uint32_t)value);
    return 1;
}

static uint32_t xsave_mask(const struct fvm_vcpu *v)
{
    return (uint32_t)(v->regs[FVM_RAX] & v->xcr0 & 7);
}

/* Host address of an XSAVE area that is contiguous in the host, too, or NULL. */
static uint8_t *xsave_area(struct fvm_vcpu *v, bool write)
{
    uint64_t ea = *fvm_slot(v, FVM_SLOT_EA), entry[2], gpa;
    unsigned user = v->cpl == 3 ? FVM_USER : 0, want = write ? FVM_W : FVM_R;
    unsigned right = write ? (user ? FVM_S_UW : FVM_S_KW) : (user ? FVM_S_UR : FVM_S_KR);
    struct fvm_fault f;
    if (ea & 63 || !fvm_canonical(ea) || !fvm_canonical(ea + FVM_XSAVE_BYTES) || (v->cr0 & FVM_CR0_TS) ||
        !(v->cr4 & FVM_CR4_OSXSAVE))
        return NULL;
    for (unsigned k = 0; k < 2; k++) {
        uint64_t a = ea + (k ? FVM_XSAVE_BYTES - 1 : 0);
        entry[k] = fvm_shadow_peek(v->shadow, a);
        if (!(entry[k] & right) && fvm_shadow_miss(v->shadow, a, want | user, &entry[k], &gpa, &f) != FVM_SHADOW_OK)
            return NULL;
    }
    return (entry[0] ^ entry[1]) & ~0xffull ? NULL : (uint8_t *)(ea + (entry[0] & ~0xffull));
}

static unsigned xsave(struct fvm_vcpu *v, bool wide)
{
    uint8_t *area = xsave_area(v, true);
    if (!area)
        return slow(v);
    if (wide)
        __asm__ volatile("xsave64 (%0)" : : "r"(area), "a"(xsave_mask(v)), "d"(0) : "memory");
    else
        __asm__ volatile("xsave (%0)" : : "r"(area), "a"(xsave_mask(v)), "d"(0) : "memory");
    return 1;
}

static unsigned xrstor(struct fvm_vcpu *v, bool wide)
{
    const uint64_t *from = (const uint64_t *)(const void *)xsave_area(v, false);
    uint64_t *to = (uint64_t *)(void *)v->bounce;
    if (!from)
        return slow(v);
    for (unsigned k = 0; k < FVM_XSAVE_BYTES / 8; k++)
        to[k] = from[k];
    uint64_t bad = to[64] & ~v->xcr0;
    for (unsigned k = 65; k < 72; k++)
        bad |= to[k];
    bad |= (uint32_t)to[3] & 0xffff0000u; /* MXCSR's reserved bits */
    if (bad)
        return slow(v);
    if (wide)
        __asm__ volatile("xrstor64 (%0)" : : "r"(to), "a"(xsave_mask(v)), "d"(0) : "memory");
    else
        __asm__ volatile("xrstor (%0)" : : "r"(to), "a"(xsave_mask(v)), "d"(0) : "memory");
    return 1;
}

unsigned fvm_fast_sys(struct fvm_vcpu *v)
{
    uint32_t site = (uint32_t)*fvm_slot(v, FVM_SLOT_ARG), tmp = (uint32_t)*fvm_slot(v, FVM_SLOT_TMP2);
    uint64_t reg = 0;
    struct fvm_fault f;
    fvm_recover_site(v, site);
    v->seg[FVM_GS].base = v->seg_base_gs;
    reg = v->regs[(tmp >> 8) & 15];
    uint64_t at = v->rip, next = at + ((tmp >> 16) & 15);
    unsigned ok;
    switch (tmp & 0xff) {
    case FVM_FAST_SYSCALL:
        return fvm_syscall(v, next, &f) ? slow(v) : go_on(v);
    case FVM_FAST_SYSRETQ:
        return v->rflags & FVM_F_TF || fvm_sysret(v, 8, &f) ? slow(v) : go_on(v);
    case FVM_FAST_SYSRETL:
        return fvm_sysret(v, 4, &f) ? slow(v) : go_on(v);
    case FVM_FAST_IRETQ:
        return iretq(v);
    case FVM_FAST_CR3: ok = mov_cr3(v, reg); break;
    case FVM_FAST_INVLPG: ok = invlpg(v); break;
    case FVM_FAST_WRMSR: ok = wrmsr(v); break;
    case FVM_FAST_CPUID: ok = cpuid(v); break;
    case FVM_FAST_WRFSBASE: ok = write_base(v, FVM_FS, reg, tmp >> 20 & 1); break;
    case FVM_FAST_WRGSBASE: ok = write_base(v, FVM_GS, reg, tmp >> 20 & 1); break;
    case FVM_FAST_XSAVE: ok = xsave(v, tmp >> 20 & 1); break;
    case FVM_FAST_XRSTOR: ok = xrstor(v, tmp >> 20 & 1); break;
    default: ok = slow(v);
    }
    if (!ok)
        return 0;
    v->rip = next;
    return go_on(v);
}
