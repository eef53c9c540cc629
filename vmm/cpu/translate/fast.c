/*
 * fast.c - helpers called from translated code while the guest's vector registers are live: shadow misses, indirect branches that
 * the jump cache does not know, system calls. No vector registers, no libc, no thread-local storage, no locks.
 *
 * Each returns 1 to go on at SLOT_RET with the registers in v->regs, or 0 for a full exit with SLOT_REASON set.
 */
#include "vmm/cpu/translate/engine.h"

unsigned fvm_fast_leave(struct fvm_vcpu *v, unsigned reason)
{
    *fvm_slot(v, FVM_SLOT_REASON) = reason;
    return 0;
}

unsigned fvm_fast_leave_fault(struct fvm_vcpu *v, const struct fvm_fault *f)
{
    *fvm_slot(v, FVM_SLOT_FAULT_VEC) = f->vector;
    *fvm_slot(v, FVM_SLOT_FAULT_CODE) = f->has_code ? f->code | 1ull << 32 : 0;
    *fvm_slot(v, FVM_SLOT_FAULT_CR2) = f->cr2;
    return fvm_fast_leave(v, FVM_EXIT_FAULT);
}

static unsigned resume(struct fvm_vcpu *v, const struct fvm_site *s)
{
    const struct fvm_engine *e = v->engine;
    *fvm_slot(v, FVM_SLOT_RET) = (uint64_t)(uintptr_t)e->code + e->blocks[s->block].code_off + s->resume_off;
    return 1;
}

/* What emitted operands subtract again: see memop.c. */
static unsigned usual(const struct fvm_vcpu *v) { return v->cpl == 3 ? FVM_USUAL_USER : FVM_USUAL_KERNEL; }

/* A read across two pages: assemble it in the bounce buffer. */
static unsigned read_across(struct fvm_vcpu *v, const struct fvm_site *s, uint64_t ea, unsigned want)
{
    struct fvm_fault f;
    uint64_t done = 0;
    uint8_t *to = v->bounce + (ea & 63); /* keeps alignment faults what they are */
    while (done < s->size) {
        uint64_t a = ea + done, n = FVM_PAGE_SIZE - (a & FVM_PAGE_MASK), entry, gpa;
        if (n > s->size - done)
            n = s->size - done;
        enum fvm_shadow_result r = fvm_shadow_miss(v->shadow, a, want, &entry, &gpa, &f);
        if (r == FVM_SHADOW_FAULT) {
            if (s->kind & FVM_SITE_STACK && f.vector == FVM_EXC_GP)
                f.vector = FVM_EXC_SS;
            return fvm_fast_leave_fault(v, &f);
        }
        if (r != FVM_SHADOW_OK)
            return fvm_fast_leave(v, FVM_EXIT_MEM);
        const uint8_t *p = (const uint8_t *)(a + (entry & ~0xffull));
        for (uint64_t k = 0; k < n; k++)
            to[done + k] = p[k];
        done += n;
    }
    v->regs[s->ureg] = (uint64_t)(uintptr_t)to - ea + usual(v);
    return resume(v, s);
}

unsigned fvm_fast_mem(struct fvm_vcpu *v)
{
    const struct fvm_engine *e = v->engine;
    struct fvm_vcpu_priv *p = v->priv;
    const struct fvm_site *s = &e->sites[*fvm_slot(v, FVM_SLOT_ARG) & 0xffffffffu];
    uint64_t ea = *fvm_slot(v, FVM_SLOT_EA), entry, gpa;
    unsigned want = s->want | (v->cpl == 3 ? FVM_USER : 0);
    struct fvm_fault f;
    p->stats.mem_slow++;
    if ((ea & FVM_PAGE_MASK) + s->size > FVM_PAGE_SIZE) {
        if (s->want & FVM_W || s->size > 64 || s->kind & FVM_SITE_MASKED)
            return fvm_fast_leave(v, FVM_EXIT_MEM);
        return read_across(v, s, ea, want);
    }
    switch (fvm_shadow_miss(v->shadow, ea, want, &entry, &gpa, &f)) {
    case FVM_SHADOW_OK:
        v->regs[s->ureg] = (entry & ~0xffull) + usual(v);
        return resume(v, s);
    case FVM_SHADOW_FAULT:
        if (s->kind & FVM_SITE_MASKED) /* only elements that are not masked out may fault */
            return fvm_fast_leave(v, FVM_EXIT_MEM);
        if (s->kind & FVM_SITE_STACK && f.vector == FVM_EXC_GP)
            f.vector = FVM_EXC_SS;
        return fvm_fast_deliver(v, (uint32_t)*fvm_slot(v, FVM_SLOT_ARG), &f);
    case FVM_SHADOW_CODE:
        if (!fvm_code_write_begin(v, gpa, s->size))
            return fvm_fast_leave(v, FVM_EXIT_MEM);
        fvm_ram_mark_version(v->ram, gpa >> FVM_PAGE_SHIFT);
        v->regs[s->ureg] = (uint64_t)(uintptr_t)v->ram->base + gpa - ea + usual(v);
        return resume(v, s);
    default:
        return fvm_fast_leave(v, FVM_EXIT_MEM);
    }
}

static void zero_words(uint64_t *p, uint64_t n)
{
    __asm__ volatile("rep stosq" : "+D"(p), "+c"(n) : "a"(0ull) : "memory");
}

static void clear_kernel_jc(struct fvm_vcpu *v)
{
    uint64_t *tag = (uint64_t *)((uint8_t *)v + FVM_OFF_JC + FVM_JC_BYTES);
    zero_words((uint64_t *)((uint8_t *)v + FVM_OFF_JC), FVM_JC_BYTES / 8);
    tag[1] = 0;
}

void fvm_engine_exec_flushed(struct fvm_vcpu *v, unsigned halves)
{
    const uint64_t *tag = (const uint64_t *)((uint8_t *)v + FVM_OFF_JC + FVM_JC_BYTES);
    if (halves & FVM_SHADOW_EXEC_KERNEL || tag[1])
        clear_kernel_jc(v);
    if (halves & FVM_SHADOW_EXEC_USER && v->gs_base)
        fvm_shadow_zero_head(v->gs_base, FVM_HEAD_USED);
}

void fvm_jc_mode(struct fvm_vcpu *v, uint64_t mode)
{
    bool user = (mode & FVM_MODE_USER) != 0;
    uint64_t *tag = user ? v->gs_base - FVM_HEAD_USED / 8 + 1 : (uint64_t *)((uint8_t *)v + FVM_OFF_JC + FVM_JC_BYTES);
    if (*tag == mode)
        return;
    if (*tag && user)
        fvm_shadow_zero_head(v->gs_base, FVM_HEAD_USED);
    else if (*tag)
        clear_kernel_jc(v);
    *tag = mode;
}

void fvm_jc_fill(struct fvm_vcpu *v, uint64_t rip, uint64_t mode, uint64_t code)
{
    bool user = (mode & FVM_MODE_USER) != 0, low = (int64_t)rip >= 0;
    if (user && !low)
        return; /* a flush of the kernel half leaves the spaces' jump caches alone */
    fvm_jc_mode(v, mode);
    struct fvm_jc_entry *j = fvm_jc(v, user, rip);
    j->code = code;
    j->rip = rip;
    uint64_t *first = v->gs_base - FVM_JC_USER_BYTES / 8;
    if (user)
        first[-2] |= 1ull << (((uint64_t *)(void *)j - first) / (FVM_JC_USER_BYTES / 8 / 64));
    else if (low)
        ((uint64_t *)((uint8_t *)v + FVM_OFF_JC + FVM_JC_BYTES))[1] = 1; /* flushes of the user half matter, too */
}

/* Code address for v->rip from what is already translated, or 0. */
uint64_t fvm_fast_find(struct fvm_vcpu *v, uint64_t rip)
{
    struct fvm_engine *e = v->engine;
    uint64_t mode = fvm_mode_of(v), va = fvm_mode_linear(mode, rip);
    const struct fvm_vcpu_priv *p = v->priv;
    bool irq = v->iflag && *(uint8_t *)fvm_slot(v, FVM_SLOT_WINDOW); /* it waited for an interrupt shadow's end */
    if (mode & FVM_MODE_SINGLE || e->config.single_block || v->request || irq || (p->run_until_on && rip == p->run_until) ||
        p->debug_step || fvm_debug_near(e, va))
        return 0;
    uint64_t entry = fvm_shadow_peek(v->shadow, va);
    if (!(entry & (mode & FVM_MODE_USER ? FVM_S_UX : FVM_S_KX)))
        return 0;
    uint64_t gpa = va + (entry & ~0xffull) - (uint64_t)(uintptr_t)v->ram->base;
    uint32_t n = fvm_code_find(e, gpa, rip, mode);
    if (n == FVM_NONE)
        return 0;
    uint64_t code = (uint64_t)(uintptr_t)e->code + e->blocks[n].canon_off;
    *fvm_slot(v, FVM_SLOT_ANCHOR) = rip & ~FVM_PAGE_MASK;
    if (!(mode & FVM_MODE_SEG)) /* whose indirect branches do not look there */
        fvm_jc_fill(v, rip, mode, code);
    *fvm_slot(v, FVM_SLOT_V0) = v->regs[FVM_R15]; /* what that entry expects */
    *fvm_slot(v, FVM_SLOT_V1) = v->regs[FVM_R14];
    return code;
}

unsigned fvm_fast_indirect(struct fvm_vcpu *v)
{
    uint64_t code = fvm_fast_find(v, *fvm_slot(v, FVM_SLOT_TGT));
    if (!code)
        return fvm_fast_leave(v, FVM_EXIT_INDIRECT);
    *fvm_slot(v, FVM_SLOT_RET) = code;
    return 1;
}

void fvm_fast_unlink(struct fvm_vcpu *v)
{
    uint32_t n = fvm_code_block_at(v->engine, *fvm_slot(v, FVM_SLOT_RET));
    if (n != FVM_NONE)
        fvm_code_unlink_block(v->engine, &v->engine->blocks[n]);
}

/*
 * In a fast helper only A and D bits are written to pages with code, and there are no locks to take then: where the bytes
 * were translated, all goes once the vCPU is out.
 */
void fvm_fast_code_written(void *engine, fvm_gpa gpa, uint64_t len)
{
    struct fvm_engine *e = engine;
    uint64_t fs;
    __asm__("rdfsbase %0" : "=r"(fs));
    for (unsigned k = 0; k < e->vcpu_count; k++) {
        struct fvm_vcpu *v = e->vcpus[k];
        if (fs != (uint64_t)(uintptr_t)v)
            continue;
        if (__atomic_load_n(&e->reading, __ATOMIC_SEQ_CST) || fvm_code_touches(e, gpa, len))
            __atomic_or_fetch(&v->request, FVM_REQ_INVALIDATE, __ATOMIC_SEQ_CST);
        return;
    }
    e->code_written(e, gpa, len);
}

/* ---- string instructions ---- */

struct string_op {
    unsigned op, size, rep;
    bool a32, wrap32; /* wrap32: not 64-bit code, so linear addresses have 32 bits */
    uint64_t seg_base;
};
enum { MOVS, STOS, LODS, SCAS, CMPS };

static uint64_t masked(const struct string_op *s, uint64_t r) { return s->a32 ? (uint32_t)r : r; }

static void advance(const struct string_op *s, uint64_t *r, int64_t n)
{
    *r = s->a32 ? (uint32_t)(*r + (uint64_t)n) : *r + (uint64_t)n;
}

/* Host address of `bytes` bytes within one page, or 0 with a full exit prepared. */
static uint8_t *place(struct fvm_vcpu *v, uint64_t ea, unsigned want, uint64_t bytes, unsigned *ret_leave)
{
    unsigned right = want & FVM_W ? (v->cpl == 3 ? FVM_S_UW : FVM_S_KW) : (v->cpl == 3 ? FVM_S_UR : FVM_S_KR);
    uint64_t entry = fvm_shadow_peek(v->shadow, ea), gpa;
    struct fvm_fault f;
    *ret_leave = 0;
    if ((int64_t)(ea << 16) >> 16 == (int64_t)ea && entry & right)
        return (uint8_t *)(ea + (entry & ~0xffull));
    switch (fvm_shadow_miss(v->shadow, ea, want | (v->cpl == 3 ? FVM_USER : 0), &entry, &gpa, &f)) {
    case FVM_SHADOW_OK:
        return (uint8_t *)(ea + (entry & ~0xffull));
    case FVM_SHADOW_CODE:
        if (fvm_code_write_begin(v, gpa, bytes)) {
            fvm_ram_mark_version(v->ram, gpa >> FVM_PAGE_SHIFT);
            return v->ram->base + gpa;
        }
        *ret_leave = 1;
        fvm_fast_leave(v, FVM_EXIT_MEM);
        return NULL;
    case FVM_SHADOW_FAULT:
        *ret_leave = 1;
        fvm_fast_leave_fault(v, &f);
        return NULL;
    default:
        *ret_leave = 1;
        fvm_fast_leave(v, FVM_EXIT_MEM);
        return NULL;
    }
}

#define REP(insn) __asm__ volatile(insn : "+D"(d), "+S"(src), "+c"(n) : "a"(rax) : "memory")

static void copy_chunk(unsigned size, uint8_t *d, const uint8_t *src, uint64_t n)
{
    uint64_t rax = 0;
    switch (size) {
    case 1: REP("rep movsb"); break;
    case 2: REP("rep movsw"); break;
    case 4: REP("rep movsl"); break;
    default: REP("rep movsq"); break;
    }
}

static void fill_chunk(unsigned size, uint8_t *d, uint64_t rax, uint64_t n)
{
    const uint8_t *src = NULL;
    switch (size) {
    case 1: REP("rep stosb"); break;
    case 2: REP("rep stosw"); break;
    case 4: REP("rep stosl"); break;
    default: REP("rep stosq"); break;
    }
}

/* scas/cmps over n > 0 elements; returns how many are left, *flags = the arithmetic flags */
#define SCAN(rep, insn)                                                                                                \
    __asm__ volatile("testl %%eax, %%eax\n\t" rep insn "\n\tpushfq\n\tpopq %[f]"                                        \
                     : "+D"(d), "+S"(src), "+c"(n), [f] "=&r"(f)                                                        \
                     : "a"(rax)                                                                                        \
                     : "memory", "cc")
#define SCAN_SIZES(rep, name)                                                                                          \
    switch (size) {                                                                                                    \
    case 1: SCAN(rep, name "b"); break;                                                                                \
    case 2: SCAN(rep, name "w"); break;                                                                                \
    case 4: SCAN(rep, name "l"); break;                                                                                \
    default: SCAN(rep, name "q"); break;                                                                               \
    }
static uint64_t scan_chunk(const struct string_op *s, const uint8_t *d, const uint8_t *src, uint64_t rax, uint64_t n,
                           uint64_t *flags)
{
    uint64_t f;
    unsigned size = s->size;
    if (s->op == SCAS) {
        if (s->rep == 2)
            SCAN_SIZES("repne ", "scas")
        else
            SCAN_SIZES("repe ", "scas")
    } else {
        if (s->rep == 2)
            SCAN_SIZES("repne ", "cmps")
        else
            SCAN_SIZES("repe ", "cmps")
    }
    *flags = f;
    return n;
}

static void load_rax(struct fvm_vcpu *v, unsigned size, const uint8_t *p)
{
    uint64_t *a = &v->regs[FVM_RAX];
    switch (size) {
    case 1: *a = (*a & ~0xffull) | *p; break;
    case 2: *a = (*a & ~0xffffull) | *(const uint16_t *)(const void *)p; break;
    case 4: *a = *(const uint32_t *)(const void *)p; break;
    default: *a = *(const uint64_t *)(const void *)p; break;
    }
}

/* how many elements fit before either address leaves its page; 0: the first one crosses */
static uint64_t fit(const struct string_op *s, bool back, uint64_t a, uint64_t n)
{
    uint64_t o = a & FVM_PAGE_MASK;
    uint64_t k = (FVM_PAGE_SIZE - o) / s->size;
    if (back && k > 1)
        k = 1;
    return k < n ? k : n;
}

static unsigned string_chunk(struct fvm_vcpu *v, const struct string_op *s, uint64_t count, uint64_t *ret_done, bool *ret_end)
{
    uint64_t *r = v->regs, n = count, src_a = masked(s, r[FVM_RSI]) + s->seg_base, dst_a = masked(s, r[FVM_RDI]);
    if (s->wrap32)
        src_a = (uint32_t)src_a;
    bool back = (*fvm_slot(v, FVM_SLOT_HFLAGS) & FVM_F_DF) != 0, uses_src = s->op != STOS && s->op != SCAS,
         uses_dst = s->op != LODS;
    uint8_t *src = NULL, *dst = NULL;
    unsigned left;
    if (uses_src)
        n = fit(s, back, src_a, n);
    if (uses_dst)
        n = fit(s, back, dst_a, n);
    if (!n) {
        fvm_fast_leave(v, FVM_EXIT_MEM);
        return 1;
    }
    if (uses_src && !(src = place(v, src_a, FVM_R, n * s->size, &left)))
        return 1;
    if (uses_dst && !(dst = place(v, dst_a, s->op <= STOS ? FVM_W : FVM_R, n * s->size, &left)))
        return 1;
    switch (s->op) {
    case MOVS: copy_chunk(s->size, dst, src, n); break;
    case STOS: fill_chunk(s->size, dst, r[FVM_RAX], n); break;
    case LODS: n = 1; load_rax(v, s->size, src); break;
    default: {
        uint64_t flags, rest = scan_chunk(s, dst, src, r[FVM_RAX], n, &flags);
        uint64_t *h = fvm_slot(v, FVM_SLOT_HFLAGS);
        *h = (*h & ~(uint64_t)FVM_ARITH_FLAGS) | (flags & FVM_ARITH_FLAGS);
        n -= rest;
        *ret_end = s->rep && (s->rep == 1) != !!(flags & FVM_F_ZF);
    }
    }
    int64_t step = (back ? -1 : 1) * (int64_t)(n * s->size);
    if (uses_src)
        advance(s, &r[FVM_RSI], step);
    if (uses_dst)
        advance(s, &r[FVM_RDI], step);
    *ret_done = n;
    return 0;
}

unsigned fvm_fast_string(struct fvm_vcpu *v)
{
    const struct fvm_site *site = &v->engine->sites[*fvm_slot(v, FVM_SLOT_ARG) & 0xffffffffu];
    uint32_t p = (uint32_t)*fvm_slot(v, FVM_SLOT_TMP);
    unsigned seg = (p >> 12) & 7;
    struct string_op s = {.op = p & 15, .size = (p >> 4) & 15, .rep = (p >> 8) & 3, .a32 = (p >> 16) & 1, .wrap32 = p >> 20 != 64,
                          .seg_base = seg == FVM_FS ? v->seg_base_fs : seg == FVM_GS ? v->seg_base_gs : 0};
    bool end = false;
    uint64_t done;
    if (!s.rep)
        return string_chunk(v, &s, 1, &done, &end) ? 0 : resume(v, site);
    while (!end && masked(&s, v->regs[FVM_RCX])) {
        if (string_chunk(v, &s, masked(&s, v->regs[FVM_RCX]), &done, &end))
            return 0;
        advance(&s, &v->regs[FVM_RCX], -(int64_t)done);
        if (v->request && !end && masked(&s, v->regs[FVM_RCX])) {
            fvm_fast_leave(v, FVM_EXIT_STRING);
            return 0;
        }
    }
    return resume(v, site);
}
