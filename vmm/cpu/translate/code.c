/*
 * code.c - the code cache: memory (one file mapped writable and executable), finding blocks, linking and unlinking exits,
 * dropping blocks whose bytes changed.
 *
 * Invariant: a dropped block's entry is overwritten by a jump to its dead end, so stale jump-cache entries are harmless; its
 * incoming links are undone; its memory is not reused before the whole cache is flushed. Dropping and flushing happen only
 * while the world is stopped (world.c).
 */
#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/log.h"
#include "vmm/cpu/translate/emit.h"
#include "vmm/cpu/translate/engine.h"

#define CACHE_DEFAULT (128ull << 20)
#define RELINKS_MAX 8

static bool same_victims(const struct fvm_block *a, const struct fvm_block *b)
{
    unsigned n = FVM_MIN(a->victim_count, 2u); /* the others do not stay spilled */
    if (n != FVM_MIN(b->victim_count, 2u) || b->cross_page)
        return false;
    for (unsigned k = 0; k < n; k++)
        if (a->victim[k] != b->victim[k])
            return false;
    return true;
}

/* The jumps of an exit and what its check expects. One that was linked differently before may be on others' way: see link_exit. */
static void set_link(struct fvm_engine *e, struct fvm_exit *x, struct fvm_block *from, const struct fvm_block *t, uint64_t expect)
{
    uint32_t target;
    if (x->check_off)
        __atomic_store_n((uint64_t *)(void *)(e->code_rw + from->code_off + x->expect_off), expect, __ATOMIC_RELEASE);
    if (x->self) {
        target = t->body_off;
    } else if (same_victims(from, t)) {
        target = x->flags_saved ? t->saved_inner_off : t->inner_off;
    } else {
        fvm_code_set_rel32(e, from, x->jump2_off, x->flags_saved ? t->saved_off : t->code_off);
        target = from->code_off + x->thunk_off;
    }
    if (x->check_off) {
        fvm_code_set_rel32(e, from, x->check_jump_off, target);
        target = from->code_off + x->check_off;
    }
    fvm_code_set_rel32(e, from, x->jump_off, target);
}

static bool expects(const struct fvm_engine *e, const struct fvm_exit *x, uint64_t expect)
{
    return !x->check_off || !memcmp(e->code_rw + e->blocks[x->block].code_off + x->expect_off, &expect, 8);
}

/* A kick may have cut the exit that was just linked, before: the vCPU would go on and on. Kick it again. */
static void kick_again(struct fvm_engine *e, const struct fvm_vcpu *self)
{
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    for (unsigned k = 0; k < e->vcpu_count; k++)
        if (e->vcpus[k] != self && __atomic_load_n(&e->vcpus[k]->request, __ATOMIC_RELAXED))
            fvm_vcpu_request(e->vcpus[k], 0);
}

static void link_exit(struct fvm_engine *e, struct fvm_vcpu *v, uint32_t n, uint32_t to)
{
    struct fvm_exit *x = &e->exits[n];
    struct fvm_block *from = &e->blocks[x->block], *t = &e->blocks[to];
    const struct fvm_vcpu_priv *p = v->priv;
    if (from->dead || t->dead || (from->mode & FVM_MODE_SINGLE) || (t->mode & FVM_MODE_SINGLE) || e->config.single_block ||
        (from->mode ^ t->mode) & ~(uint64_t)FVM_MODE_PLAIN || x->plain != !!(t->mode & FVM_MODE_PLAIN) || (x->self && from != t) || fvm_mode_rip(from->mode, x->target) != t->rip || (p->run_until_on && v->rip == p->run_until) ||
        (!x->check_off && (from->gpa ^ t->gpa) & ~FVM_PAGE_MASK))
        return;
    if (fvm_debug_near(e, fvm_mode_linear(from->mode, v->rip)))
        return;
    uint64_t expect = 0;
    if (x->check_off) {
        uint64_t entry = fvm_shadow_peek(v->shadow, fvm_mode_linear(from->mode, v->rip));
        if (!entry)
            return;
        expect = 0 - entry - (fvm_mode_movable(t->mode) ? v->rip & ~FVM_PAGE_MASK : 0);
    }
    bool stop = e->vcpu_count > 1 && x->now != FVM_NONE && (x->now != to || !expects(e, x, expect));
    if (stop && x->relinks++ >= RELINKS_MAX) { /* every other time it leads elsewhere: not worth stopping the world */
        x->relinks = RELINKS_MAX;
        return;
    }
    if (stop)
        fvm_world_stop(e, FVM_WORLD_ALL);
    set_link(e, x, from, t, expect);
    if (stop)
        fvm_world_go(e);
    x->now = to;
    if (x->to == FVM_NONE) {
        x->to = to;
        x->next_incoming = t->incoming;
        t->incoming = n;
    }
    if (e->vcpu_count > 1)
        kick_again(e, v);
}

void fvm_code_link(struct fvm_engine *e, struct fvm_vcpu *v, uint32_t n, uint32_t to)
{
    if (!fvm_world_trylock(e))
        return; /* another time */
    link_exit(e, v, n, to);
    fvm_world_unlock(e);
}

struct fvm_code_page *fvm_code_page_get(struct fvm_engine *e, fvm_pfn pfn)
{
    struct fvm_code_page *p = e->pages[pfn];
    if (!p) {
        p = calloc(1, sizeof *p);
        fvm_assert(p);
        p->blocks = FVM_NONE;
        __atomic_store_n(&e->pages[pfn], p, __ATOMIC_RELEASE);
    }
    return p;
}

void fvm_code_add(struct fvm_engine *e, uint32_t n)
{
    struct fvm_block *b = &e->blocks[n];
    uint32_t *h = &e->hash[fvm_code_hash(e, b->gpa, b->rip, b->mode)];
    b->next_hash = *h;
    __atomic_store_n(h, n, __ATOMIC_RELEASE); /* others look without the lock: all of the block is there */
    struct fvm_code_page *p = fvm_code_page_get(e, b->gpa >> FVM_PAGE_SHIFT);
    b->next_page = p->blocks;
    p->blocks = n;
    if (b->cross_page) {
        p = fvm_code_page_get(e, b->gpa2 >> FVM_PAGE_SHIFT);
        b->next_page2 = p->blocks;
        p->blocks = n;
    }
}

void fvm_code_drop(struct fvm_engine *e, uint32_t n)
{
    struct fvm_block *b = &e->blocks[n];
    if (b->dead)
        return;
    b->dead = 1;
    for (uint32_t x = b->incoming; x != FVM_NONE;) {
        uint32_t next = e->exits[x].next_incoming;
        fvm_code_unlink_exit(e, x);
        e->exits[x].to = e->exits[x].now = FVM_NONE;
        e->exits[x].next_incoming = FVM_NONE;
        x = next;
    }
    b->incoming = FVM_NONE;
    uint32_t *p = &e->hash[fvm_code_hash(e, b->gpa, b->rip, b->mode)];
    while (*p != n && *p != FVM_NONE)
        p = &e->blocks[*p].next_hash;
    if (*p == n)
        *p = b->next_hash;
    e->code_rw[b->code_off] = 0xe9;
    fvm_code_set_rel32(e, b, 1, b->dead_off);
    e->code_rw[b->inner_off] = 0xe9; /* an exit's jump at least follows: five bytes are there */
    fvm_code_set_rel32(e, b, b->inner_off - b->code_off + 1, b->dead_inner_off);
    if (b->natural) {
        e->code_rw[b->saved_inner_off] = 0xe9;
        fvm_code_set_rel32(e, b, b->saved_inner_off - b->code_off + 1, b->dead_saved_off);
    }
}

static void drop_page(struct fvm_engine *e, fvm_pfn pfn)
{
    struct fvm_code_page *p = e->pages[pfn];
    for (uint32_t n = p->blocks; n != FVM_NONE;) {
        struct fvm_block *b = &e->blocks[n];
        fvm_code_drop(e, n);
        n = b->gpa >> FVM_PAGE_SHIFT == pfn ? b->next_page : b->next_page2;
    }
    /* A two-page block stays in the other page's chain as dead, which is harmless: it only links to blocks of that page. */
    p->blocks = FVM_NONE;
    memset(p->bytes, 0, sizeof p->bytes);
    __atomic_fetch_and(&e->ram->flags[pfn], (uint8_t)~FVM_PAGE_CODE, __ATOMIC_SEQ_CST);
    e->stats.invalidations++;
}

bool fvm_code_invalidate(struct fvm_engine *e, fvm_gpa gpa, uint64_t len)
{
    bool any = false;
    while (len) {
        uint64_t o = gpa & FVM_PAGE_MASK, n = FVM_MIN(len, FVM_PAGE_SIZE - o);
        fvm_pfn pfn = gpa >> FVM_PAGE_SHIFT;
        if (e->pages[pfn] && fvm_code_touches(e, gpa, n)) {
            drop_page(e, pfn);
            any = true;
        }
        gpa += n;
        len -= n;
    }
    return any;
}

void fvm_code_flush(struct fvm_engine *e)
{
    for (uint64_t k = 0; k < e->ram->array_pages; k++)
        if (e->pages[k]) {
            __atomic_fetch_and(&e->ram->flags[k], (uint8_t)~FVM_PAGE_CODE, __ATOMIC_SEQ_CST);
            free(e->pages[k]);
            e->pages[k] = NULL;
        }
    memset(e->hash, 0xff, (e->hash_mask + 1ull) * sizeof *e->hash);
    e->code_used = e->code_start;
    e->cold_used = e->cold_start;
    e->block_count = e->exit_count = e->site_count = e->mark_count = 0;
    e->flush_generation++;
    e->stats.cache_flushes++;
    for (unsigned k = 0; k < e->vcpu_count; k++) {
        memset((uint8_t *)e->vcpus[k] + FVM_OFF_JC, 0, FVM_JC_BYTES);
        fvm_control_reload(e->vcpus[k]); /* zeroes the spaces' heads, too */
    }
}

static void emit_trampolines(struct fvm_engine *e)
{
    static char *const stubs[FVM_TRAMP_COUNT] = {fvm_stub_direct, fvm_stub_system, fvm_stub_one, fvm_stub_dead,
                                                 fvm_stub_mem, fvm_stub_indirect, fvm_stub_string, fvm_stub_sys,
                                                 fvm_stub_cross_user, fvm_stub_cross_kernel};
    struct fvm_emit em = {.buf = e->code_rw, .max = 4096};
    for (unsigned k = 0; k < FVM_TRAMP_COUNT; k++) {
        while (em.at & 15)
            e8(&em, 0xcc);
        e->tramp[k] = em.at;
        e8(&em, 0xff), e8(&em, 0x25), e32(&em, 0); /* jmp [rip+0] */
        e64(&em, (uint64_t)(uintptr_t)stubs[k]);
    }
    e->snippet_off = 4096;
    e->code_start = e->code_used = 4096 + 64 * 64;
    e->cold_start = e->cold_used = e->code_bytes / 16 * 9; /* as measured: both parts are full at about the same time */
}

static void *reserve(uint64_t bytes)
{
    void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return p == MAP_FAILED ? NULL : p;
}

int fvm_code_init(struct fvm_engine *e, struct fvm_err *err)
{
    e->code_bytes = e->config.cache_bytes ? e->config.cache_bytes : CACHE_DEFAULT;
    int fd = memfd_create("fvm-code", MFD_CLOEXEC);
    if (fd < 0 || ftruncate(fd, (off_t)e->code_bytes))
        goto fail;
    e->code = mmap(NULL, e->code_bytes, PROT_READ | PROT_EXEC, MAP_SHARED, fd, 0);
    e->code_rw = mmap(NULL, e->code_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (e->code == MAP_FAILED || e->code_rw == MAP_FAILED)
        goto fail;
    close(fd);
    (void)madvise(e->code, e->code_bytes, MADV_HUGEPAGE); /* hot code is spread over it: fewer misses of the host's TLB */
    (void)madvise(e->code_rw, e->code_bytes, MADV_HUGEPAGE);
    e->block_max = (uint32_t)(e->code_bytes / 128);
    e->exit_max = e->block_max * 4;
    e->site_max = e->block_max * 4;
    e->mark_max = e->block_max * 8;
    e->hash_mask = (1u << 20) - 1;
    e->blocks = reserve(e->block_max * sizeof *e->blocks);
    e->exits = reserve(e->exit_max * sizeof *e->exits);
    e->sites = reserve(e->site_max * sizeof *e->sites);
    e->marks = reserve(e->mark_max * sizeof *e->marks);
    e->hash = reserve((e->hash_mask + 1ull) * sizeof *e->hash);
    e->pages = reserve(e->ram->array_pages * sizeof *e->pages);
    if (!e->blocks || !e->exits || !e->sites || !e->marks || !e->hash || !e->pages)
        return fvm_err_set(err, FVM_ENOMEM, errno, "cpu", "no address space for the code cache");
    memset(e->hash, 0xff, (e->hash_mask + 1ull) * sizeof *e->hash);
    emit_trampolines(e);
    return 0;
fail:
    return fvm_err_set(err, FVM_ENOMEM, errno, "cpu",
                       "cannot map %llu MiB of executable memory for translated code (is memfd or exec mapping forbidden here?)",
                       (unsigned long long)(e->code_bytes >> 20));
}

static void release(void *p, uint64_t bytes)
{
    if (p && p != MAP_FAILED)
        munmap(p, bytes);
}

void fvm_code_fini(struct fvm_engine *e)
{
    if (e->pages)
        for (uint64_t k = 0; k < e->ram->array_pages; k++)
            free(e->pages[k]);
    release(e->pages, e->ram->array_pages * sizeof *e->pages);
    release(e->code, e->code_bytes);
    release(e->code_rw, e->code_bytes);
    release(e->blocks, e->block_max * sizeof *e->blocks);
    release(e->exits, e->exit_max * sizeof *e->exits);
    release(e->sites, e->site_max * sizeof *e->sites);
    release(e->marks, e->mark_max * sizeof *e->marks);
    release(e->hash, (e->hash_mask + 1ull) * sizeof *e->hash);
}

void fvm_engine_code_written(struct fvm_engine *e, fvm_gpa gpa, uint64_t len)
{
    fvm_world_lock(e);
    if (fvm_code_touches(e, gpa, len)) {
        /* Not before every vCPU is out of the old code may the writer go on (publish a completion, say). */
        fvm_world_stop(e, FVM_WORLD_ALL);
        fvm_code_invalidate(e, gpa, len);
        fvm_world_go(e);
    }
    fvm_world_unlock(e);
}

void fvm_engine_write_code(struct fvm_vcpu *v, fvm_gpa gpa, const void *buf, uint64_t len)
{
    struct fvm_engine *e = v->engine;
    int r;
    if (!e) {
        r = fvm_ram_write(v->ram, gpa, buf, len);
        fvm_assert(!r);
        return;
    }
    fvm_world_lock(e);
    bool stop = fvm_code_touches(e, gpa, len);
    if (stop) {
        fvm_world_stop(e, FVM_WORLD_ALL);
        fvm_code_invalidate(e, gpa, len);
    }
    r = fvm_ram_write(v->ram, gpa, buf, len);
    fvm_assert(!r);
    if (stop)
        fvm_world_go(e);
    fvm_world_unlock(e);
}
