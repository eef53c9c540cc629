/*
 * support_gen.c - seeded random sequences: the state that they start from, their layout.
 *
 * A register is "known" while its value can be computed at generation time; memory operands are built on known
 * registers so that most of them hit the interesting places of the address space (page ends, the edges of the read-only
 * and the unmapped page). The same seed gives the same sequence for ever on one version of these files.
 */
#include <inttypes.h>
#include <string.h>

#include "tests/diff/support_gen.h"

const char *const diff_kind_names[DIFF_KIND_COUNT] = {"any", "int",    "mem",    "sse", "avx",
                                                      "x87", "string", "branch", "smc", "c32"};

uint64_t gen_interesting(struct gen *g, bool high)
{
    high = high && gen_is64(g);
    static const uint64_t low[] = {DIFF_DATA,          DIFF_DATA + 0x1000, DIFF_DATA + 0x2000, DIFF_DATA + 0x3000,
                                   DIFF_DATA + 0x6000, DIFF_DATA + 0x7000, DIFF_STACK,         DIFF_STACK + 0x1000};
    unsigned c = diff_below(&g->r, 100);
    uint64_t page = high ? DIFF_HIGH + diff_below(&g->r, 2) * 0x1000ull : low[diff_below(&g->r, FVM_ARRAY_SIZE(low))];
    if (!high && c < 2)
        page = DIFF_DATA + 0x5000;
    else if (!high && c < 3)
        page = DIFF_DATA + 0x4000;
    c = diff_below(&g->r, 100);
    if (c < 35)
        return page + diff_below(&g->r, 64) * 64;
    if (c < 60)
        return page + diff_below(&g->r, 4096);
    if (c < 75)
        return page + 0xff0 + diff_below(&g->r, 16);
    if (c < 85)
        return page + 0xfc0 + diff_below(&g->r, 64);
    return page + diff_below(&g->r, 512) * 8;
}

static uint64_t any_value(struct gen *g)
{
    uint64_t x = diff_next(&g->r);
    switch (diff_below(&g->r, 10)) {
    case 0:
        return 0;
    case 1:
        return ~0ull;
    case 2:
        return x & 0xff;
    case 3:
        return 1ull << (x & 63);
    case 4:
        return (uint64_t)(int64_t)(int8_t)x;
    case 5:
        return (uint32_t)x;
    case 6:
        return 0x8000000000000000ull >> (x & 1 ? 0 : 32);
    default:
        return x;
    }
}

bool gen_is_pointer(const struct gen *g, unsigned reg)
{
    return (g->known >> reg & 1) && diff_page_of(g->value[reg]) >= DIFF_CODE_PAGES;
}
bool gen_is_small(const struct gen *g, unsigned reg) { return (g->known >> reg & 1) && g->value[reg] + 0x800 < 0x1000; }

/* ---- the list of instructions ---- */

struct diff_insn *gen_add(struct gen *g, const uint8_t *bytes, unsigned len)
{
    struct diff_insn *i = &g->s->insns[g->s->n++];
    *i = (struct diff_insn){.len = (uint8_t)len, .label = -1};
    memcpy(i->bytes, bytes, len);
    return i;
}

void gen_mov_imm(struct gen *g, unsigned reg, uint64_t value)
{
    uint8_t b[10] = {(uint8_t)(0x48 | reg >> 3), (uint8_t)(0xb8 | (reg & 7))};
    if (gen_full(g))
        return;
    if (!gen_is64(g))
        value = (uint32_t)value;
    memcpy(b + 2, &value, 8);
    if (!gen_is64(g)) {
        gen_add(g, b + 1, 5);
    } else if (value == (uint32_t)value) {
        b[0] = (uint8_t)(0x40 | reg >> 3);
        gen_add(g, b, 6);
    } else {
        gen_add(g, b, 10);
    }
    g->value[reg] = value;
    g->known |= 1u << reg;
}

/* ---- initial state ---- */

static void put_vector(struct gen *g, uint8_t *lo, uint8_t *hi, unsigned n)
{
    uint8_t v[32];
    for (unsigned k = 0; k < 32; k += 4) {
        uint64_t x = diff_next(&g->r);
        uint32_t w = (uint32_t)x;
        float f = (float)(int16_t)(x >> 40) / 16.0f;
        switch (n & 3) {
        case 0:
            w = (uint32_t)(x % 512);
            break; /* indices */
        case 1:
            w = x & 1 ? 0x80000000u | w : w & 0x7fffffff;
            break; /* masks */
        case 2:
            memcpy(&w, &f, 4);
            break;
        default:
            break;
        }
        memcpy(v + k, &w, 4);
    }
    if ((n & 7) == 4) /* indices of 64 bits */
        for (unsigned k = 4; k < 32; k += 8)
            memset(v + k, 0, 4);
    memcpy(lo, v, 16);
    memcpy(hi, v + 16, 16);
}

static void init_vectors(struct gen *g, uint8_t *x)
{
    uint64_t bv = 7;
    memset(x, 0, DIFF_XSAVE);
    uint16_t fcw = 0x37f, fsw = 0;
    uint32_t mxcsr = 0x1f80;
    uint8_t ftw = 0;
    if (diff_chance(&g->r, 15))
        fcw = (uint16_t)(0x40 | (diff_next(&g->r) & 0xf3f));
    if (diff_chance(&g->r, 10))
        mxcsr = (uint32_t)diff_next(&g->r) & 0xffc0;
    if (diff_chance(&g->r, 50)) {
        fsw = (uint16_t)((diff_next(&g->r) & 0x4700) | diff_below(&g->r, 8) << 11);
        ftw = (uint8_t)diff_next(&g->r);
    }
    memcpy(x, &fcw, 2), memcpy(x + 2, &fsw, 2), memcpy(x + 24, &mxcsr, 4);
    x[4] = ftw;
    for (unsigned k = 0; k < 8; k++) {
        long double d = (long double)(int64_t)diff_next(&g->r) / (diff_chance(&g->r, 50) ? 1e15L : 3.0L);
        uint64_t raw = diff_next(&g->r);
        memcpy(x + 32 + 16 * k, &d, 10);
        if (diff_chance(&g->r, 20))
            memcpy(x + 32 + 16 * k, &raw, 8);
    }
    for (unsigned k = 0; k < 16; k++)
        put_vector(g, x + 160 + 16 * k, x + 576 + 16 * k, k);
    if (diff_chance(&g->r, 6))
        bv = diff_below(&g->r, 8);
    memcpy(x + 512, &bv, 8);
}

static void init_state(struct gen *g)
{
    struct diff_request *q = &g->s->req;
    struct diff_state *st = &q->init;
    for (unsigned k = 0; k < 16; k++) {
        unsigned c = diff_below(&g->r, 100);
        st->regs[k] = c < 50   ? gen_interesting(g, diff_chance(&g->r, 20))
                      : c < 70 ? diff_below(&g->r, 64)
                               : any_value(g);
    }
    st->regs[FVM_RSP] = DIFF_STACK + 0x800 + diff_below(&g->r, 0x100) * 8;
    if (diff_chance(&g->r, 20))
        st->regs[FVM_RSP] = DIFF_STACK + 0x1000 + diff_below(&g->r, 48) - 24;
    if (diff_chance(&g->r, 4))
        st->regs[FVM_RSP] = gen_interesting(g, diff_chance(&g->r, 50));
    st->rflags = 0x202 | (diff_next(&g->r) & 0x8d5) | (diff_chance(&g->r, 12) ? 0x400 : 0);
    st->fs_base = diff_chance(&g->r, 70)   ? diff_below(&g->r, 0x8000) - 0x4000ull
                  : diff_chance(&g->r, 50) ? 0
                                           : gen_interesting(g, true);
    st->gs_base = diff_chance(&g->r, 70) ? diff_below(&g->r, 0x8000) - 0x4000ull : DIFF_DATA;
    init_vectors(g, st->xsave);
    for (unsigned k = 0; k < 16 && !gen_is64(g); k++)
        st->regs[k] = (uint32_t)st->regs[k];
    memcpy(g->value, st->regs, sizeof g->value);
    g->known = gen_is64(g) ? 0xffff : 0xff;
    for (unsigned k = 0; k < DIFF_POKES; k++) {
        q->poke_off[k] =
            (DIFF_CODE_PAGES + diff_below(&g->r, DIFF_PAGES - 1 - DIFF_CODE_PAGES)) * 4096 + diff_below(&g->r, 512) * 8;
        if (q->poke_off[k] >> 12 == DIFF_CODE_PAGES + 4) /* the read-only page stays what it is */
            q->poke_off[k] -= 4096;
        q->poke[k] = any_value(g);
    }
}

void diff_layout(struct diff_seq *s)
{
    struct diff_request *q = &s->req;
    uint32_t at = q->code_off;
    for (unsigned k = 0; k < s->n; k++) {
        s->at[k] = at;
        at += s->insns[k].dropped ? 0 : s->insns[k].len;
    }
    s->at[s->n] = at;
    q->code_len = at + 2 - q->code_off;
    q->end_rip = DIFF_CODE + at;
    q->init.rip = DIFF_CODE + q->code_off;
    for (unsigned k = 0; k < s->n; k++) {
        const struct diff_insn *i = &s->insns[k];
        uint8_t *p = q->code + (s->at[k] - q->code_off);
        if (i->dropped)
            continue;
        memcpy(p, i->bytes, i->len);
        if (!i->fix)
            continue;
        uint64_t to = (uint64_t)i->target;
        if (i->label >= 0)
            to += DIFF_CODE + s->at[FVM_MIN((unsigned)i->label, s->n)];
        if (i->fix == DIFF_FIX_REL)
            to -= DIFF_CODE + s->at[k] + i->len;
        if (i->fix_size == 1 && (int64_t)to != (int8_t)to)
            to = 0;
        memcpy(p + i->fix_at, &to, i->fix_size);
    }
    q->code[at - q->code_off] = 0x0f, q->code[at + 1 - q->code_off] = 0x0b;
}

void diff_gen(struct diff_seq *s, uint64_t seed, int kind)
{
    memset(s, 0, sizeof *s);
    struct gen g = {.s = s, .r = {seed * 0xd6e8feb86659fd93ull}, .loop_start = -1};
    g.r.s = diff_next(&g.r) ^ 0x5851f42d4c957f2dull;
    s->seed = seed;
    enum diff_kind drawn = diff_below(&g.r, 3) == 0 ? DIFF_KIND_INT : (enum diff_kind)diff_below(&g.r, DIFF_KIND_COUNT);
    s->kind = kind >= 0 ? (enum diff_kind)kind : drawn;
    s->req.bits = s->kind == DIFF_KIND_C32 ? 32 : 64;
    s->kernel = diff_chance(&g.r, 15) && s->req.bits == 64;
    init_state(&g);
    unsigned want = 1 + diff_below(&g.r, 24);
    s->req.code_off = diff_chance(&g.r, 30) ? 0x1000 + 0x1000 * diff_below(&g.r, 2) - diff_below(&g.r, 120)
                                            : diff_below(&g.r, 0x2000);
    if (diff_chance(&g.r, 2)) /* the code runs into the page behind, which is not there */
        s->req.code_off = DIFF_CODE_PAGES * 0x1000 - 1 - diff_below(&g.r, 60);
    bool loops = diff_chance(&g.r, s->kind == DIFF_KIND_BRANCH || s->kind == DIFF_KIND_SMC ? 60 : 25);
    while (s->n < want && !gen_full(&g)) {
        if (loops && g.loop_start < 0 && diff_chance(&g.r, 15) && s->n < 24)
            gen_open_loop(&g);
        if (diff_chance(&g.r, s->kind == DIFF_KIND_BRANCH ? 25 : s->kind == DIFF_KIND_C32 ? 10 : 4))
            gen_add_branch(&g);
        else if (s->kind != DIFF_KIND_INT && s->kind != DIFF_KIND_MEM && diff_chance(&g.r, 3))
            gen_add_xsave(&g);
        else if (diff_chance(&g.r, s->kind == DIFF_KIND_SMC ? 25 : s->kind == DIFF_KIND_C32 ? 4 : 0))
            gen_add_smc(&g);
        else
            gen_random_insn(&g);
        if (g.loop_start >= 0 && diff_chance(&g.r, 20) && (int)s->n > g.loop_start)
            gen_close_loop(&g);
    }
    if (g.loop_start >= 0)
        gen_close_loop(&g);
    diff_layout(s);
}

void diff_print(const struct diff_seq *s, FILE *out)
{
    const struct diff_request *q = &s->req;
    char text[128];
    fprintf(out, "--replay %" PRIu64 " --kind %s%s\n", s->seed, diff_kind_names[s->kind],
            s->kernel           ? " (CPL 0)"
            : s->req.bits == 32 ? " (32-bit code)"
                                : "");
    for (unsigned k = 0; k < 16; k++)
        fprintf(out, "  r%-2u %016" PRIx64 "%s", k, q->init.regs[k], k % 4 == 3 ? "\n" : "");
    fprintf(out, "  flags %03x fs %" PRIx64 " gs %" PRIx64 "\n", (unsigned)q->init.rflags & 0xfff, q->init.fs_base,
            q->init.gs_base);
    for (unsigned k = 0; k < s->n; k++) {
        struct fvm_insn in;
        if (s->insns[k].dropped)
            continue;
        const uint8_t *p = q->code + (s->at[k] - q->code_off);
        fprintf(out, "  %08x ", (unsigned)(DIFF_CODE + s->at[k]));
        for (unsigned b = 0; b < 12; b++)
            fprintf(out, b < s->insns[k].len ? "%02x" : "  ", p[b]);
        for (unsigned o = 0; o < s->insns[k].len; o += in.len) {
            if (fvm_decode(p + o, 15, q->bits, &in) != FVM_DECODE_OK)
                break;
            fprintf(out, "  %s", fvm_decode_text(&in, DIFF_CODE + s->at[k] + o, text, sizeof text));
        }
        fputc('\n', out);
    }
    fprintf(out, "  %08x end\n", (unsigned)(DIFF_CODE + s->at[s->n]));
}
