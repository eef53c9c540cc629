/*
 * support_guest.c - the engine's side: one vCPU in 64-bit mode with page tables of its own and no machine around it.
 *
 * The pages of an image lie in scattered frames of guest RAM. Before each run only the pages that differ are written,
 * by fvm_ram_write, as a device would: so code that did not change stays translated (chained, cached) between runs, and
 * code that did is dropped the way it is in a running VM.
 */
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>

#include "tests/diff/support_diff.h"
#include "vmm/cpu/descriptor.h"
#include "vmm/cpu/system.h"
#include "vmm/cpu/translate/engine.h"
#include "vmm/cpu/vcpu.h"

#define RAM_BYTES (16ull << 20)
#define TABLES 0x100000ull /* page tables: root, then one after the other */
#define FRAMES 0x400000ull
#define MAX_BLOCKS 400000
#define NOWHERE 0x0bad0bad0bad0badull

struct diff_guest {
    struct fvm_ram *ram;
    struct fvm_bus *bus;
    struct fvm_irq *irq;
    struct fvm_loop *loop;
    struct fvm_clock *clock;
    struct fvm_engine *engine;
    struct fvm_vcpu *v;
    uint64_t frame[DIFF_PAGES];
    uint64_t next_table;
    const uint8_t *base;
};

static void put64(struct diff_guest *g, uint64_t gpa, uint64_t x) { memcpy(fvm_ram_hva(g->ram, gpa), &x, 8); }
static uint64_t get64(struct diff_guest *g, uint64_t gpa)
{
    uint64_t x;
    memcpy(&x, fvm_ram_hva(g->ram, gpa), 8);
    return x;
}

static void map_page(struct diff_guest *g, uint64_t va, uint64_t gpa, unsigned rights)
{
    uint64_t table = TABLES;
    for (unsigned shift = 39; shift > 12; shift -= 9) {
        uint64_t at = table + (va >> shift & 511) * 8;
        if (!get64(g, at)) {
            put64(g, at, g->next_table | 7);
            g->next_table += 4096;
        }
        table = get64(g, at) & ~0xfffull;
    }
    put64(g, table + (va >> 12 & 511) * 8, gpa | 5 | (rights & DIFF_W ? 2 : 0) | (rights & DIFF_X ? 0 : 1ull << 63));
}

static void make_tables(struct diff_guest *g)
{
    g->next_table = TABLES + 4096;
    for (unsigned k = 0; k < DIFF_PAGES; k++) {
        g->frame[k] =
            FRAMES + (k * 4 % DIFF_PAGES) * 0x3000; /* 4 and 15 have no common factor: all differ, none adjacent */
        map_page(g, diff_pages[k].va, g->frame[k], diff_pages[k].rights);
        memcpy(fvm_ram_hva(g->ram, g->frame[k]), g->base + k * 4096, 4096);
    }
}

static void set_seg(struct fvm_vcpu *v, unsigned seg, uint16_t sel, uint16_t attr)
{
    v->seg[seg] = (struct fvm_seg){.sel = sel, .attr = attr, .limit = 0xffffffff};
}

/* The host's selectors also at CPL 0: they can be read. */
static void set_ring(struct fvm_vcpu *v, bool kernel, unsigned bits)
{
    unsigned dpl = kernel ? 0 : 0x60;
    v->cpl = kernel ? 0 : 3;
    set_seg(v, FVM_CS, bits == 64 ? 0x33 : 0x23, (uint16_t)((bits == 64 ? 0xa09b : 0xc09b) | dpl));
    set_seg(v, FVM_SS, 0x2b, (uint16_t)(0xc093 | dpl));
    for (unsigned s = FVM_ES; s <= FVM_GS; s++) {
        bool flat = bits == 32 && (s == FVM_DS || s == FVM_ES);
        if (s != FVM_CS && s != FVM_SS)
            set_seg(v, s, flat ? 0x2b : 0, flat ? 0xc0f3 : 0);
    }
}

int diff_guest_create(enum diff_mode mode, const uint8_t *base, struct diff_guest **ret)
{
    struct diff_guest *g = calloc(1, sizeof *g);
    struct fvm_engine_config config = {
        .cache_bytes = 32 << 20, .single_block = mode != DIFF_NORMAL, .single_insn = mode == DIFF_SINGLE_INSN};
    const struct fvm_cpu_model *model;
    struct fvm_err err = {0};
    g->base = base;
    if (fvm_ram_create(RAM_BYTES, &g->ram, &err) || fvm_bus_create(&g->bus) || fvm_irq_create(&g->irq) ||
        fvm_loop_create(&g->loop) || fvm_clock_create(g->loop, 0, &g->clock) ||
        fvm_cpu_model_find("fvm64-v3", &model, &err) || fvm_engine_create(g->ram, &config, &g->engine, &err) ||
        fvm_vcpu_create(g->engine, 0, model, g->bus, g->irq, g->clock, NULL, &g->v, &err)) {
        fprintf(stderr, "diff: no guest: %s\n", err.text);
        return -1;
    }
    fvm_irq_set_lock(g->irq, g->bus);
    fvm_clock_start(g->clock);
    make_tables(g);
    struct fvm_vcpu *v = g->v;
    v->cr0 = FVM_CR0_PG | FVM_CR0_PE | FVM_CR0_WP | FVM_CR0_ET | FVM_CR0_NE | FVM_CR0_MP;
    v->cr4 = FVM_CR4_PAE | FVM_CR4_PGE | FVM_CR4_OSFXSR | FVM_CR4_OSXMMEXCPT | FVM_CR4_OSXSAVE | FVM_CR4_FSGSBASE;
    v->cr3 = TABLES;
    v->efer = FVM_EFER_LME | FVM_EFER_LMA | FVM_EFER_NXE | FVM_EFER_SCE;
    v->xcr0 = 7;
    v->tr = (struct fvm_seg){.sel = 0x40, .attr = 0x8b, .limit = 0x5f}; /* too short for an I/O bitmap */
    set_ring(v, false, 64);
    fvm_control_reload(v);
    *ret = g;
    return 0;
}

void diff_guest_destroy(struct diff_guest **g_p)
{
    struct diff_guest *g = *g_p;
    if (!g)
        return;
    fvm_vcpu_destroy(&g->v);
    fvm_engine_destroy(&g->engine);
    fvm_clock_destroy(&g->clock);
    fvm_loop_destroy(&g->loop);
    fvm_irq_destroy(&g->irq);
    fvm_bus_destroy(&g->bus);
    fvm_ram_destroy(&g->ram);
    free(g);
    *g_p = NULL;
}

struct fvm_vcpu *diff_guest_vcpu(struct diff_guest *g) { return g->v; }

void diff_guest_kick(struct diff_guest *g, unsigned long thread)
{
    __atomic_or_fetch(&g->v->request, FVM_REQ_WAKE, __ATOMIC_SEQ_CST);
    pthread_kill((pthread_t)thread, FVM_KICK_SIGNAL);
}

static void load_memory(struct diff_guest *g, const struct diff_request *req)
{
    uint8_t image[DIFF_IMAGE_BYTES];
    diff_image(req, g->base, image);
    for (unsigned k = 0; k < DIFF_PAGES; k++)
        if (memcmp(fvm_ram_hva(g->ram, g->frame[k]), image + k * 4096, 4096))
            fvm_ram_write(g->ram, g->frame[k], image + k * 4096, 4096);
}

void diff_guest_run(struct diff_guest *g, const struct diff_request *req, bool kernel, struct diff_outcome *ret)
{
    struct fvm_vcpu *v = g->v;
    struct fvm_run_result r;
    load_memory(g, req);
    set_ring(v, kernel, req->bits);
    v->run = FVM_RUN_NORMAL;
    memcpy(v->regs, req->init.regs, sizeof v->regs);
    v->rip = req->init.rip;
    fvm_vcpu_set_rflags(v, req->init.rflags);
    fvm_vcpu_set_seg_base(v, FVM_FS, req->init.fs_base);
    fvm_vcpu_set_seg_base(v, FVM_GS, req->init.gs_base);
    memcpy(v->xsave, req->init.xsave, DIFF_XSAVE);
    v->cr2 = 0;
    /* Ends as the native run does, at the ud2: so nothing of the engine is told where the sequence ends. */
    fvm_vcpu_run_until(v, NOWHERE, MAX_BLOCKS, &r);
    ret->bits = req->bits;
    ret->end = r.limit                                                               ? DIFF_LIMIT
               : r.faulted && r.fault.vector == FVM_EXC_UD && v->rip == req->end_rip ? DIFF_END
                                                                                     : DIFF_FAULT;
    ret->vector = r.faulted ? r.fault.vector : 0;
    ret->code = r.faulted && r.fault.has_code ? r.fault.code : 0;
    ret->cr2 = r.faulted ? r.fault.cr2 : 0;
    memcpy(ret->state.regs, v->regs, sizeof v->regs);
    ret->state.rip = v->rip;
    ret->state.rflags = fvm_vcpu_rflags(v);
    ret->state.fs_base = v->seg[FVM_FS].base;
    ret->state.gs_base = v->seg[FVM_GS].base;
    memcpy(ret->state.xsave, v->xsave, DIFF_XSAVE);
    for (unsigned k = 0; k < DIFF_PAGES; k++)
        memcpy(ret->mem + k * 4096, fvm_ram_hva(g->ram, g->frame[k]), 4096);
}
