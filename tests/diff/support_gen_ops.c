/*
 * support_gen_ops.c - what is more than one instruction: control transfers to instructions of the sequence, loops,
 * self-modifying code, flags and vector state through memory.
 */
#include "tests/diff/support_gen.h"

/* ---- control transfers, whose targets are instructions of the sequence ---- */

/* A label some instructions ahead: numbers beyond the end mean the end (diff_layout). */
static int16_t ahead(struct gen *g, unsigned skip) { return (int16_t)(g->s->n + skip + diff_below(&g->r, 4)); }

/* mov reg, label (10 or 5 bytes) */
static void mov_label(struct gen *g, unsigned reg, int16_t label)
{
    uint8_t b[10] = {0x48, (uint8_t)(0xb8 | reg)};
    unsigned skip = gen_is64(g) ? 0 : 1;
    struct diff_insn *i = gen_add(g, b + skip, gen_is64(g) ? 10 : 5);
    i->fix = DIFF_FIX_ABS, i->fix_at = (uint8_t)(2 - skip), i->fix_size = gen_is64(g) ? 8 : 4, i->label = label;
    if (diff_chance(&g->r, 3)) /* to where nothing may be executed */
        i->label = -1, i->target = (int64_t)gen_interesting(g, diff_chance(&g->r, 30));
    g->known &= ~(1u << reg);
}

static void jump_through_register(struct gen *g, bool call)
{
    unsigned reg = diff_below(&g->r, 8);
    if (reg == FVM_RSP || gen_reserved(g, reg))
        return;
    uint8_t jmp[2] = {0xff, (uint8_t)((call ? 0xd0 : 0xe0) | reg)};
    mov_label(g, reg, ahead(g, 2));
    gen_add(g, jmp, 2);
}

static void push_and_ret(struct gen *g)
{
    uint8_t push[5] = {0x68}, ret[3] = {0xc3};
    int16_t label = ahead(g, 2);
    struct diff_insn *i = gen_add(g, push, 5);
    i->fix = DIFF_FIX_ABS, i->fix_at = 1, i->fix_size = 4, i->label = label;
    if (diff_chance(&g->r, 25)) {
        ret[0] = 0xc2, ret[1] = (uint8_t)(diff_below(&g->r, 4) * 8);
        gen_add(g, ret, 3);
    } else {
        gen_add(g, ret, 1);
    }
}

/* mov rax, label; mov [m], rax; jmp/call [m] */
static void jump_through_memory(struct gen *g, bool call)
{
    uint8_t store[8] = {0x48, 0x89, 0x04, 0x25}, jmp[7] = {0xff, call ? 0x14 : 0x24, 0x25};
    uint64_t at = gen_interesting(g, false);
    unsigned skip = gen_is64(g) ? 0 : 1; /* the SIB form is absolute in both modes */
    if (gen_reserved(g, FVM_RAX))
        return;
    mov_label(g, FVM_RAX, ahead(g, 3));
    memcpy(store + 4, &at, 4), memcpy(jmp + 3, &at, 4);
    gen_add(g, store + skip, 8 - skip);
    gen_add(g, jmp, 7);
}

void gen_add_branch(struct gen *g)
{
    static const uint8_t loops[4] = {0xe0, 0xe1, 0xe2, 0xe3};
    unsigned c = diff_below(&g->r, 100);
    uint8_t b[8] = {0};
    struct diff_insn *i;
    if (c < 30) {
        b[0] = 0x0f, b[1] = (uint8_t)(0x80 | diff_below(&g->r, 16));
        i = gen_add(g, b, 6);
        i->fix_at = 2, i->fix_size = 4;
    } else if (c < 50) {
        b[0] = (uint8_t)(0x70 | diff_below(&g->r, 16));
        i = gen_add(g, b, 2);
        i->fix_at = 1, i->fix_size = 1;
    } else if (c < 60) {
        b[0] = loops[diff_below(&g->r, 4)];
        i = gen_add(g, b, 2);
        i->fix_at = 1, i->fix_size = 1;
        if (b[0] != 0xe3)
            g->known &= ~(1u << FVM_RCX);
        if (g->reserved >> FVM_RCX & 1)
            i->bytes[0] = 0xe3;
    } else if (c < 67) {
        b[0] = 0xe9;
        i = gen_add(g, b, 5);
        i->fix_at = 1, i->fix_size = 4;
    } else if (c < 74) {
        b[0] = 0xe8;
        i = gen_add(g, b, 5);
        i->fix_at = 1, i->fix_size = 4;
    } else if (c < 84) {
        push_and_ret(g);
        return;
    } else if (c < 93) {
        jump_through_register(g, diff_chance(&g->r, 40));
        return;
    } else {
        jump_through_memory(g, diff_chance(&g->r, 40));
        return;
    }
    i->fix = DIFF_FIX_REL;
    i->label = ahead(g, 0);
}

static void add_popf(struct gen *g)
{
    /* one unit, so that no branch gets between the two: popf of anything else could set AC or TF */
    uint8_t both[6] = {0x68, 0, 0, 0, 0, 0x9d};
    uint32_t f = 0x202 | (diff_next(&g->r) & 0xcd5);
    memcpy(both + 1, &f, 4);
    gen_add(g, both, 6);
}

/*
 * xsave, xrstor, fxsave, fxrstor at the one address where unstable fields are not compared. Not xsaveopt: what it
 * leaves out is up to the processor.
 */
void gen_add_xsave(struct gen *g)
{
    static const uint8_t ext[8] = {4, 4, 5, 5, 5, 4, 0, 1};
    unsigned skip = gen_is64(g) && diff_chance(&g->r, 70) ? 0 : 1;
    uint32_t at = (uint32_t)DIFF_XSAVE_AREA + (diff_chance(&g->r, 5) ? 8 : 0);
    if (g->reserved & (1u << FVM_RAX | 1u << FVM_RDX))
        return;
    /* one unit: mov eax, mask; mov edx, 0; xsave64 [at] */
    uint8_t b[19] = {0xb8, (uint8_t)(diff_chance(&g->r, 60) ? 7 : diff_below(&g->r, 8)),
                     0,    0,
                     0,    0xba,
                     0,    0,
                     0,    0,
                     0x48, 0x0f,
                     0xae, (uint8_t)(ext[diff_below(&g->r, 8)] << 3 | 4),
                     0x25};
    memcpy(b + 15, &at, 4);
    if (skip)
        memmove(b + 10, b + 11, 8);
    gen_add(g, b, 19 - skip);
    g->known &= ~(1u << FVM_RAX | 1u << FVM_RDX);
}

void gen_popf_or_branch(struct gen *g, const struct diff_form *f)
{
    if (f->mnemonic == ZYDIS_MNEMONIC_POPF || f->mnemonic == ZYDIS_MNEMONIC_POPFQ ||
        f->mnemonic == ZYDIS_MNEMONIC_POPFD)
        add_popf(g);
    else
        gen_add_branch(g);
}

void gen_open_loop(struct gen *g)
{
    unsigned reg = diff_chance(&g->r, 40) ? FVM_RCX : gen_is64(g) ? 8 + diff_below(&g->r, 8) : FVM_RSI;
    for (unsigned k = 0; k < g->s->n; k++) /* nothing jumps past the setting of the counter */
        if (g->s->insns[k].fix && g->s->insns[k].label > (int)g->s->n)
            g->s->insns[k].label = (int16_t)g->s->n;
    gen_mov_imm(g, reg, 2 + (diff_chance(&g->r, 8) ? diff_below(&g->r, 400) : diff_below(&g->r, 20)));
    uint32_t keep = 1u << reg;
    for (unsigned k = 0; k < (gen_is64(g) ? 5 : 2); k++) { /* pointers that the body may rely on */
        unsigned p = gen_reg(g);
        if (p != FVM_RSP && !(keep >> p & 1)) {
            if (!gen_is_pointer(g, p))
                gen_mov_imm(g, p, gen_interesting(g, diff_chance(&g->r, 15)));
            keep |= 1u << p;
        }
    }
    g->reserved = keep;
    g->known &= keep & ~(1u << reg);
    g->loop_reg = reg;
    g->loop_start = (int)g->s->n;
}

void gen_close_loop(struct gen *g)
{
    unsigned r = g->loop_reg;
    struct diff_insn *i;
    for (int k = g->loop_start; k < (int)g->s->n; k++) /* nothing jumps past the counting */
        if (g->s->insns[k].fix && g->s->insns[k].label > (int)g->s->n)
            g->s->insns[k].label = (int16_t)g->s->n;
    if (r == FVM_RCX && diff_chance(&g->r, 40) && g->s->n - (unsigned)g->loop_start < 8) {
        uint8_t loop[2] = {0xe2};
        i = gen_add(g, loop, 2);
        i->fix_at = 1, i->fix_size = 1;
    } else {
        uint8_t dec[4] = {(uint8_t)(0x48 | r >> 3), 0xff, (uint8_t)(0xc8 | (r & 7))};
        uint8_t sub[4] = {(uint8_t)(0x48 | r >> 3), 0x83, (uint8_t)(0xe8 | (r & 7)), 1};
        uint8_t jcc[6] = {0x0f, diff_chance(&g->r, 70) ? 0x85 : 0x8f};
        unsigned skip = gen_is64(g) ? 0 : 1;
        if (diff_chance(&g->r, 50))
            gen_add(g, dec + skip, 3 - skip);
        else
            gen_add(g, sub + skip, 4 - skip);
        i = gen_add(g, jcc, 6);
        i->fix_at = 2, i->fix_size = 4;
    }
    i->fix = DIFF_FIX_REL;
    i->label = (int16_t)g->loop_start;
    g->reserved = 0;
    g->loop_start = -1;
}

/* ---- self-modifying code: a store into an instruction behind (or in the loop, before) it ---- */

void gen_add_smc(struct gen *g)
{
    /* mov dword/byte [rip -> label + off], imm   or   inc byte/add dword;   label: mov eax, imm32 / add r, imm32 */
    unsigned reg = diff_below(&g->r, 4) == 1 ? 2 : diff_below(&g->r, 4), gap = diff_below(&g->r, 3),
             c = diff_below(&g->r, 4);
    if (g->reserved >> reg & 1)
        return;
    uint8_t store[11] = {0};
    unsigned n = 0, imm = 0;
    switch (c) {
    case 0:
        store[n++] = 0xc7, store[n++] = 5, imm = 4;
        break;
    case 1:
        store[n++] = 0xc6, store[n++] = 5, imm = 1;
        break;
    case 2:
        store[n++] = 0xfe, store[n++] = 5;
        break;
    default:
        store[n++] = 0x81, store[n++] = 5, imm = 4;
        break;
    }
    unsigned disp_at = n;
    n += 4;
    uint64_t x = diff_next(&g->r);
    memcpy(store + n, &x, imm);
    struct diff_insn *i = gen_add(g, store, n + imm);
    i->fix = gen_is64(g) ? DIFF_FIX_REL : DIFF_FIX_ABS, i->fix_at = (uint8_t)disp_at, i->fix_size = 4;
    i->label = (int16_t)(g->s->n + gap);
    i->target = 1;                                      /* into the immediate */
    if (g->loop_start >= 0 && diff_chance(&g->r, 40)) { /* the other way round: the patched one comes first */
        struct diff_insn patch = *i;
        uint8_t mov[5] = {(uint8_t)(0xb8 | reg)};
        g->s->n--;
        i = gen_add(g, mov, 5);
        patch.label = (int16_t)(g->s->n - 1);
        g->s->insns[g->s->n++] = patch;
        g->known &= ~(1u << reg);
        return;
    }
    for (unsigned k = 0; k < gap; k++) {
        uint8_t nop[1] = {0x90};
        gen_add(g, nop, 1);
    }
    uint8_t victim[6] = {(uint8_t)(0xb8 | reg)};
    x = diff_next(&g->r);
    memcpy(victim + 1, &x, 4);
    gen_add(g, victim, 5);
    g->known &= ~(1u << reg);
}
