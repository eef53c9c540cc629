/*
 * lookup.c - reading the code cache's tables and cutting links: what fast helpers and the signal handler may call.
 * Compiled without vector registers; no libc, no locks.
 */
#include "vmm/cpu/descriptor.h"
#include "vmm/cpu/translate/engine.h"

/* 32-bit code whose addresses are linear addresses, but for those through FS and GS: they have a base and a limit all the same. */
static bool flat(const struct fvm_vcpu *v)
{
    const uint16_t data = FVM_A_P | FVM_A_S | FVM_A_CODE | FVM_A_DOWN | FVM_A_WRITABLE;
    for (unsigned k = FVM_ES; k <= FVM_DS; k++) {
        const struct fvm_seg *s = &v->seg[k];
        if (s->base || s->limit != 0xffffffff ||
            (k != FVM_CS && (s->attr & data) != (FVM_A_P | FVM_A_S | FVM_A_WRITABLE)))
            return false;
    }
    for (unsigned k = FVM_FS; k <= FVM_GS; k++)
        if ((v->seg[k].attr & FVM_A_P) && (v->seg[k].attr & data) != (FVM_A_P | FVM_A_S | FVM_A_WRITABLE))
            return false;
    return (v->seg[FVM_SS].attr & FVM_A_D) != 0;
}

static uint64_t seg_mode(const struct fvm_vcpu *v)
{
    const struct fvm_seg *cs = &v->seg[FVM_CS];
    uint64_t mode = FVM_MODE_SEG | cs->base << 32;
    bool any = fvm_vcpu_real(v) || fvm_vcpu_v86(v);
    for (unsigned k = 0; k < FVM_SEG_COUNT; k++) {
        uint16_t attr = v->seg[k].attr;
        bool ok = k == FVM_CS ? fvm_is_data(attr) || (attr & FVM_A_READABLE)
                              : fvm_is_data(attr) && (attr & (FVM_A_P | FVM_A_WRITABLE | FVM_A_DOWN)) == (FVM_A_P | FVM_A_WRITABLE);
        if (any || ok)
            mode |= (uint64_t)FVM_MODE_ES_OK << k;
    }
    if (v->seg[FVM_SS].attr & FVM_A_D)
        mode |= FVM_MODE_SS32;
    if (cs->limit == 0xffffffff)
        mode |= FVM_MODE_CS4G;
    else if (cs->limit != 0xffff)
        mode |= FVM_MODE_SINGLE;
    return mode;
}

uint64_t fvm_mode_of(const struct fvm_vcpu *v)
{
    unsigned bits = fvm_vcpu_code_bits(v);
    uint64_t mode = bits == 64 ? 2 : bits == 32 ? 1 : 0;
    if (bits == 16 || (bits == 32 && !flat(v)))
        mode |= seg_mode(v);
    if (v->cpl)
        mode |= v->cpl == 3 ? FVM_MODE_USER : FVM_MODE_MID;
    if (v->cr0 & (FVM_CR0_TS | FVM_CR0_EM))
        mode |= FVM_MODE_FPU_TRAP;
    if ((v->rflags & FVM_F_TF) || v->int_shadow)
        mode |= FVM_MODE_SINGLE;
    return mode;
}

uint32_t fvm_code_hash(const struct fvm_engine *e, uint64_t gpa, uint64_t rip, uint64_t mode)
{
    uint64_t h = (gpa ^ (rip >> 7) ^ mode << 20) * 0x9e3779b97f4a7c15ull;
    return (uint32_t)(h >> 40) & e->hash_mask;
}

uint32_t fvm_code_find(const struct fvm_engine *e, uint64_t gpa, uint64_t rip, uint64_t mode)
{
    rip = fvm_mode_rip(mode, rip);
    uint32_t n = __atomic_load_n(&e->hash[fvm_code_hash(e, gpa, rip, mode)], __ATOMIC_ACQUIRE);
    for (; n != FVM_NONE; n = e->blocks[n].next_hash) {
        const struct fvm_block *b = &e->blocks[n];
        if (b->gpa == gpa && b->rip == rip && b->mode == mode && !b->dead)
            return n;
    }
    return FVM_NONE;
}

void fvm_code_set_rel32(struct fvm_engine *e, const struct fvm_block *from, uint32_t at, uint32_t to_off)
{
    /* `at` is relative to the block, to_off to the cache; within a cache line (fvm_tr_place), so others fetch the old or the new */
    int32_t rel = (int32_t)(to_off - (from->code_off + at + 4));
    uint8_t *p = e->code_rw + from->code_off + at;
    __atomic_store_n((int32_t *)(void *)p, rel, __ATOMIC_RELEASE);
}

void fvm_code_unlink_exit(struct fvm_engine *e, uint32_t n)
{
    struct fvm_exit *x = &e->exits[n];
    const struct fvm_block *b = &e->blocks[x->block];
    if (b->dead) /* never runs again, and its first bytes were overwritten: a jump's operand may have been there */
        return;
    fvm_code_set_rel32(e, b, x->jump_off, b->code_off + x->stub_off);
    if (x->jump2_off)
        fvm_code_set_rel32(e, b, x->jump2_off, b->code_off + x->moved_off);
    if (x->check_off)
        fvm_code_set_rel32(e, b, x->check_jump_off, b->code_off + x->moved_off);
}

void fvm_code_unlink_block(struct fvm_engine *e, struct fvm_block *b)
{
    for (unsigned k = 0; k < b->exit_count; k++)
        fvm_code_unlink_exit(e, b->exit_first + k);
}

uint32_t fvm_code_block_at(const struct fvm_engine *e, uint64_t host_pc)
{
    uint64_t off = host_pc - (uint64_t)(uintptr_t)e->code;
    bool cold = off >= e->cold_start;
    if (off >= (cold ? e->cold_used : e->code_used) || !e->block_count)
        return FVM_NONE;
    uint32_t lo = 0, hi = e->block_count;
    while (hi - lo > 1) {
        uint32_t mid = (lo + hi) / 2;
        if ((cold ? e->blocks[mid].cold_off : e->blocks[mid].code_off) <= off)
            lo = mid;
        else
            hi = mid;
    }
    const struct fvm_block *b = &e->blocks[lo];
    uint32_t from = cold ? b->cold_off : b->code_off;
    return off >= from && off < from + (cold ? b->cold_len : b->code_len) ? lo : FVM_NONE;
}

bool fvm_code_touches(const struct fvm_engine *e, fvm_gpa gpa, uint64_t len)
{
    while (len) {
        uint64_t o = gpa & FVM_PAGE_MASK, n = FVM_MIN(len, FVM_PAGE_SIZE - o);
        const struct fvm_code_page *p = __atomic_load_n(&e->pages[gpa >> FVM_PAGE_SHIFT], __ATOMIC_ACQUIRE);
        if (p)
            for (uint64_t k = o; k < o + n; k++)
                if (__atomic_load_n(&p->bytes[k >> 3], __ATOMIC_RELAXED) & 1u << (k & 7))
                    return true;
        gpa += n;
        len -= n;
    }
    return false;
}

bool fvm_code_write_begin(struct fvm_vcpu *v, fvm_gpa gpa, uint64_t len)
{
    struct fvm_engine *e = v->engine;
    struct fvm_vcpu_priv *p = v->priv;
    if (e->vcpu_count > 1) {
        __atomic_exchange_n(&p->code_write, (gpa >> FVM_PAGE_SHIFT) + 1, __ATOMIC_SEQ_CST);
        if (__atomic_load_n(&e->reading, __ATOMIC_SEQ_CST))
            return false;
    }
    return !fvm_code_touches(e, gpa, len);
}
