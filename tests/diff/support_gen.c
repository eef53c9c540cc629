/*
 * support_gen.c - seeded random sequences.
 *
 * A register is "known" while its value can be computed at generation time; memory operands are built on known registers so
 * that most of them hit the interesting places of the address space (page ends, the edges of the read-only and the
 * unmapped page). The same seed gives the same sequence for ever on one version of this file.
 */
#include <inttypes.h>
#include <string.h>

#include "tests/diff/support_diff.h"

const char *const diff_kind_names[DIFF_KIND_COUNT] = {"any", "int", "mem", "sse", "avx", "x87", "string", "branch", "smc"};

static const struct fvm_cpu_model *g_model; /* set once, before anything runs */

struct gen {
    struct diff_seq *s;
    struct diff_rng r;
    uint64_t value[16];
    uint32_t known;    /* registers with a known value */
    uint32_t reserved; /* must not be written now */
    int loop_start;    /* first instruction of an open loop, or -1 */
    unsigned loop_reg;
};

static uint64_t interesting(struct gen *g, bool high)
{
    static const uint64_t low[] = {DIFF_DATA, DIFF_DATA + 0x1000, DIFF_DATA + 0x2000, DIFF_DATA + 0x3000, DIFF_DATA + 0x6000,
                                   DIFF_DATA + 0x7000, DIFF_STACK, DIFF_STACK + 0x1000};
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
    case 0: return 0;
    case 1: return ~0ull;
    case 2: return x & 0xff;
    case 3: return 1ull << (x & 63);
    case 4: return (uint64_t)(int64_t)(int8_t)x;
    case 5: return (uint32_t)x;
    case 6: return 0x8000000000000000ull >> (x & 1 ? 0 : 32);
    default: return x;
    }
}

static bool is_pointer(const struct gen *g, unsigned reg)
{
    return (g->known >> reg & 1) && diff_page_of(g->value[reg]) >= DIFF_CODE_PAGES;
}
static bool is_small(const struct gen *g, unsigned reg)
{
    return (g->known >> reg & 1) && g->value[reg] + 0x800 < 0x1000;
}

/* ---- the list of instructions ---- */

static struct diff_insn *add(struct gen *g, const uint8_t *bytes, unsigned len)
{
    struct diff_insn *i = &g->s->insns[g->s->n++];
    *i = (struct diff_insn){.len = (uint8_t)len, .label = -1};
    memcpy(i->bytes, bytes, len);
    return i;
}
static bool full(const struct gen *g) { return g->s->n + 8 > DIFF_INSNS_MAX; }

static void mov_imm(struct gen *g, unsigned reg, uint64_t value)
{
    uint8_t b[10] = {(uint8_t)(0x48 | reg >> 3), (uint8_t)(0xb8 | (reg & 7))};
    if (full(g))
        return;
    if (value == (uint32_t)value) {
        b[0] = (uint8_t)(0x40 | reg >> 3);
        memcpy(b + 2, &value, 4);
        add(g, b, 6);
    } else {
        memcpy(b + 2, &value, 8);
        add(g, b, 10);
    }
    g->value[reg] = value;
    g->known |= 1u << reg;
}

static void need_pointer(struct gen *g, unsigned reg)
{
    if (!is_pointer(g, reg) && !(g->reserved >> reg & 1) && diff_chance(&g->r, 90))
        mov_imm(g, reg, interesting(g, diff_chance(&g->r, 15)));
}

static void forget_written(struct gen *g, const struct fvm_insn *in)
{
    for (unsigned k = 0; k < in->z.operand_count; k++) {
        bool high;
        const ZydisDecodedOperand *o = &in->ops[k];
        if (o->type == ZYDIS_OPERAND_TYPE_REGISTER && (o->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE)) {
            int r = fvm_decode_gpr(o->reg.value, &high);
            if (r >= 0 && r != FVM_RSP)
                g->known &= ~(1u << (high ? r - 4 : r));
        }
    }
}

static bool writes_reserved(const struct gen *g, const struct fvm_insn *in)
{
    for (unsigned k = 0; k < in->z.operand_count; k++) {
        bool high;
        const ZydisDecodedOperand *o = &in->ops[k];
        if (o->type != ZYDIS_OPERAND_TYPE_REGISTER || !(o->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE))
            continue;
        int r = fvm_decode_gpr(o->reg.value, &high);
        if (r >= 0 && (g->reserved >> (high ? r - 4 : r) & 1))
            return true;
        if (r == FVM_RSP && o->visibility == ZYDIS_OPERAND_VISIBILITY_EXPLICIT)
            return true;
    }
    return false;
}

/* ---- memory operands ---- */

static int pick_reg(struct gen *g, bool (*good)(const struct gen *, unsigned))
{
    unsigned start = diff_below(&g->r, 16);
    for (unsigned k = 0; k < 16; k++)
        if (good(g, (start + k) & 15))
            return (int)((start + k) & 15);
    return -1;
}

struct modrm { uint8_t bytes[6], len, rex; uint8_t rip_at; uint64_t rip_target; };

static void put_disp(struct modrm *m, unsigned at, int64_t disp, unsigned size)
{
    int32_t d = (int32_t)disp;
    memcpy(m->bytes + at, &d, size);
    m->len = (uint8_t)(at + size);
}

/* [base + index*scale + disp] for a chosen address */
static void form_base(struct gen *g, struct modrm *m, unsigned base, bool vsib, uint64_t seg_base, bool addr32, uint64_t mask)
{
    int index = vsib ? (int)diff_below(&g->r, 16) : diff_chance(&g->r, 35) ? pick_reg(g, is_small) : -1;
    unsigned scale = diff_below(&g->r, 4);
    if (index == FVM_RSP && !vsib)
        index = -1;
    uint64_t at = diff_chance(&g->r, 45) ? g->value[base] + diff_below(&g->r, 256) - 128 + seg_base
                                         : interesting(g, g->value[base] >> 32 && !addr32);
    at &= mask;
    int64_t disp = (int64_t)(at - seg_base - g->value[base] - (index >= 0 && !vsib ? g->value[index] << scale : 0));
    if (disp != (int32_t)disp || diff_chance(&g->r, mask == ~0ull ? 12 : 3))
        disp = diff_chance(&g->r, 50) ? 0 : (int8_t)diff_next(&g->r);
    unsigned mod = disp == 0 && (base & 7) != 5 ? 0 : disp == (int8_t)disp ? 1 : 2, n = 1;
    m->rex |= (uint8_t)(base >> 3);
    if (index >= 0 || (base & 7) == 4) {
        m->bytes[0] = (uint8_t)(mod << 6 | 4);
        m->bytes[1] = (uint8_t)(scale << 6 | (index < 0 ? 4u : (unsigned)index & 7) << 3 | (base & 7));
        m->rex |= (uint8_t)(index > 7 ? 2 : 0);
        n = 2;
    } else {
        m->bytes[0] = (uint8_t)(mod << 6 | (base & 7));
    }
    put_disp(m, n, disp, mod == 2 ? 4 : mod);
}

static void make_modrm(struct gen *g, struct modrm *m, bool vsib, uint64_t seg_base, bool addr32, uint64_t mask)
{
    unsigned c = diff_below(&g->r, 100);
    *m = (struct modrm){0};
    int base = pick_reg(g, is_pointer);
    if (base < 0 || (c < 10 && !vsib)) {
        unsigned reg = diff_below(&g->r, 16);
        if (reg != FVM_RSP && !(g->reserved >> reg & 1) && c >= 10)
            mov_imm(g, reg, interesting(g, diff_chance(&g->r, 20))), base = (int)reg;
    }
    if (c < 1 && !vsib) { /* anything at all */
        uint64_t x = diff_next(&g->r);
        unsigned mod = diff_below(&g->r, 3);
        m->rex = x >> 40 & 3;
        m->bytes[0] = (uint8_t)(mod << 6 | (x & 7));
        unsigned n = 1;
        if ((x & 7) == 4)
            m->bytes[n++] = (uint8_t)(x >> 8);
        unsigned dsz = mod == 1 ? 1 : mod == 2 || (x & 7) == 5 || (n == 2 && (x >> 8 & 7) == 5) ? 4 : 0;
        put_disp(m, n, (int32_t)(x >> 16), dsz);
    } else if (c < 16 && !vsib) { /* RIP-relative */
        m->bytes[0] = 5;
        m->rip_target = (interesting(g, false) & mask) - seg_base;
        m->rip_at = 1;
        put_disp(m, 1, 0, 4);
    } else if (c < 22 || base < 0) { /* [index*scale + disp32] or absolute */
        int index = vsib ? (int)diff_below(&g->r, 16) : diff_chance(&g->r, 50) ? pick_reg(g, is_small) : -1;
        unsigned scale = diff_below(&g->r, 4);
        if (index == FVM_RSP && !vsib)
            index = -1;
        m->bytes[0] = 4;
        m->bytes[1] = (uint8_t)(scale << 6 | (index < 0 ? 4u : (unsigned)index & 7) << 3 | 5);
        m->rex = index > 7 ? 2 : 0;
        put_disp(m, 2, (int64_t)((interesting(g, false) & mask) - seg_base - (index >= 0 && !vsib ? g->value[index] << scale : 0)), 4);
    } else {
        form_base(g, m, (unsigned)base, vsib, seg_base, addr32, mask);
    }
}

/* ---- one instruction of a form ---- */

static bool is_vsib(const struct diff_form *f)
{
    return f->map == 5 && f->opcode >= 0x90 && f->opcode <= 0x93;
}

static unsigned legacy_head(struct gen *g, const struct diff_form *f, const struct modrm *m, unsigned rex_r, unsigned rex_b,
                            unsigned seg, bool a32, uint8_t *b)
{
    static const uint8_t pfx[4] = {0, 0x66, 0xf3, 0xf2};
    unsigned n = 0;
    if (seg)
        b[n++] = (uint8_t)seg;
    if (a32)
        b[n++] = 0x67;
    if (f->pfx)
        b[n++] = pfx[f->pfx];
    else if (f->map == 0 && diff_chance(&g->r, 4))
        b[n++] = 0x66;
    if (f->mem && diff_chance(&g->r, 6))
        b[n++] = 0xf0; /* lock: kept where valid, else #UD on both sides */
    unsigned rex = (unsigned)f->w << 3 | rex_r << 2 | (f->mem ? m->rex : rex_b);
    if (rex || diff_chance(&g->r, 25))
        b[n++] = (uint8_t)(0x40 | rex);
    if (f->map)
        b[n++] = 0x0f;
    if (f->map > 1)
        b[n++] = f->map == 2 ? 0x38 : 0x3a;
    b[n++] = f->opcode;
    return n;
}

static unsigned vex_head(struct gen *g, const struct diff_form *f, const struct modrm *m, unsigned rex_r, unsigned rex_b,
                         unsigned seg, bool a32, uint8_t *b)
{
    unsigned n = 0, rex = f->mem ? m->rex : rex_b, vvvv = diff_chance(&g->r, 12) ? 15 : diff_below(&g->r, 16);
    if (seg)
        b[n++] = (uint8_t)seg;
    if (a32)
        b[n++] = 0x67;
    if (f->map == 4 && !f->w && !(rex & 3) && diff_chance(&g->r, 60)) {
        b[n++] = 0xc5;
        b[n++] = (uint8_t)((rex_r ? 0 : 0x80) | vvvv << 3 | f->l << 2 | f->pfx);
    } else {
        b[n++] = 0xc4;
        b[n++] = (uint8_t)((rex_r ? 0 : 0x80) | (rex & 2 ? 0 : 0x40) | (rex & 1 ? 0 : 0x20) | (f->map - 3));
        b[n++] = (uint8_t)(f->w << 7 | vvvv << 3 | f->l << 2 | f->pfx);
    }
    b[n++] = f->opcode;
    return n;
}

/* Registers that an instruction uses without naming them in its bytes. */
static void prepare_implicit(struct gen *g, const struct diff_form *f)
{
    switch (f->category) {
    case ZYDIS_CATEGORY_STRINGOP:
        need_pointer(g, FVM_RSI);
        need_pointer(g, FVM_RDI);
        if (!(g->reserved >> FVM_RCX & 1) && diff_chance(&g->r, 85))
            mov_imm(g, FVM_RCX, diff_chance(&g->r, 80) ? diff_below(&g->r, 70) : diff_below(&g->r, 6000));
        break;
    default:
        break;
    }
    if (f->mnemonic == ZYDIS_MNEMONIC_XLAT)
        need_pointer(g, FVM_RBX);
    if (f->mnemonic == ZYDIS_MNEMONIC_LEAVE)
        need_pointer(g, FVM_RBP);
    if (f->mnemonic == ZYDIS_MNEMONIC_MASKMOVQ || f->mnemonic == ZYDIS_MNEMONIC_MASKMOVDQU ||
        f->mnemonic == ZYDIS_MNEMONIC_VMASKMOVDQU)
        need_pointer(g, FVM_RDI);
}

static bool is_bt(const struct diff_form *f)
{
    return f->mnemonic == ZYDIS_MNEMONIC_BT || f->mnemonic == ZYDIS_MNEMONIC_BTS || f->mnemonic == ZYDIS_MNEMONIC_BTR ||
           f->mnemonic == ZYDIS_MNEMONIC_BTC;
}

/* Legacy vector instructions fault on operands that are not aligned: most should not. */
static bool wants_alignment(const struct diff_form *f)
{
    return (f->map >= 1 && f->map <= 3 && f->category != ZYDIS_CATEGORY_BITBYTE && f->category != ZYDIS_CATEGORY_SETCC &&
            f->category != ZYDIS_CATEGORY_CMOV && f->category != ZYDIS_CATEGORY_BINARY) ||
           (f->map >= 4 && f->category == ZYDIS_CATEGORY_DATAXFER);
}

static uint64_t form_imm(struct gen *g, unsigned size)
{
    uint64_t x = diff_next(&g->r);
    if (size > 1 && diff_chance(&g->r, 50))
        x = (uint64_t)(int64_t)(int8_t)x;
    return x;
}

static void popf_or_branch(struct gen *g, const struct diff_form *f);

static bool add_form(struct gen *g, const struct diff_form *f)
{
    uint8_t b[32];
    struct modrm m = {0};
    struct fvm_insn in;
    unsigned seg = f->mem && diff_chance(&g->r, 10) ? 0x64 | diff_below(&g->r, 2) : 0;
    bool a32 = f->mem && diff_chance(&g->r, 4);
    if (f->category == ZYDIS_CATEGORY_STRINGOP && diff_chance(&g->r, 15))
        seg = 0x64 | diff_below(&g->r, 2);
    if (f->category == ZYDIS_CATEGORY_STRINGOP && diff_chance(&g->r, 10))
        a32 = true;
    if ((f->mnemonic == ZYDIS_MNEMONIC_XLAT || f->category == ZYDIS_CATEGORY_DATAXFER) && diff_chance(&g->r, 3))
        seg = 0x64;
    uint64_t seg_base = seg == 0x64 ? g->s->req.init.fs_base : seg == 0x65 ? g->s->req.init.gs_base : 0;
    unsigned rex_r = diff_below(&g->r, 2), rex_b = diff_below(&g->r, 2);
    if (f->mem)
        make_modrm(g, &m, is_vsib(f), seg_base, a32, wants_alignment(f) && diff_chance(&g->r, 93) ? ~63ull : ~0ull);
    prepare_implicit(g, f);
    if (f->mem && is_bt(f) && f->opcode != 0xba && !(g->reserved >> (rex_r * 8 + f->ext) & 1) && rex_r * 8 + f->ext != FVM_RSP)
        mov_imm(g, rex_r * 8 + f->ext, (uint64_t)(int64_t)((int)diff_below(&g->r, 40000) - 20000));
    if (full(g))
        return false;
    unsigned n = f->map < 4 ? legacy_head(g, f, &m, rex_r, rex_b, seg, a32, b) : vex_head(g, f, &m, rex_r, rex_b, seg, a32, b);
    unsigned modrm_at = n;
    if (f->modrm && f->mem) {
        memcpy(b + n, m.bytes, m.len);
        n += m.len;
    } else if (f->modrm) {
        b[n++] = (uint8_t)(0xc0 | diff_below(&g->r, 8));
    }
    if (f->modrm)
        b[modrm_at] |= (uint8_t)(f->ext << 3);
    uint64_t imm = form_imm(g, 8), moffs = interesting(g, diff_chance(&g->r, 20)) - seg_base;
    memcpy(b + n, &imm, 8);
    memcpy(b + n + 8, &imm, 4);
    if (f->map == 0 && f->opcode >= 0xa0 && f->opcode <= 0xa3)
        memcpy(b + n, &moffs, 8);
    if (fvm_decode(b, 15, 64, &in) != FVM_DECODE_OK || !diff_comparable(&in, g->s->kernel) || in.len > 15)
        return false;
    if (!fvm_cpu_model_allows(g_model, &in))
        return false;
    if (in.z.meta.branch_type != ZYDIS_BRANCH_TYPE_NONE || in.z.mnemonic == ZYDIS_MNEMONIC_POPF ||
        in.z.mnemonic == ZYDIS_MNEMONIC_POPFQ) {
        popf_or_branch(g, f);
        return true;
    }
    if (in.z.mnemonic == ZYDIS_MNEMONIC_ENTER)
        b[modrm_at + 1] = 0, b[modrm_at + 2] = diff_chance(&g->r, 30) ? b[modrm_at + 2] & 31 : 0;
    if (writes_reserved(g, &in) && !(diff_chance(&g->r, 3) && g->loop_start < 0))
        return false;
    struct diff_insn *i = add(g, b, in.len);
    if (m.rip_at && f->mem) {
        i->fix = DIFF_FIX_REL;
        i->fix_at = (uint8_t)(modrm_at + 1);
        i->fix_size = 4;
        i->target = (int64_t)m.rip_target;
    }
    forget_written(g, &in);
    return true;
}

static bool always_faults(unsigned mnemonic)
{
    switch (mnemonic) {
    case ZYDIS_MNEMONIC_UD0: case ZYDIS_MNEMONIC_UD1: case ZYDIS_MNEMONIC_UD2: case ZYDIS_MNEMONIC_CLI: case ZYDIS_MNEMONIC_STI:
    case ZYDIS_MNEMONIC_INVPCID: case ZYDIS_MNEMONIC_HLT: case ZYDIS_MNEMONIC_IN: case ZYDIS_MNEMONIC_OUT:
    case ZYDIS_MNEMONIC_INSB: case ZYDIS_MNEMONIC_INSW: case ZYDIS_MNEMONIC_INSD: case ZYDIS_MNEMONIC_OUTSB:
    case ZYDIS_MNEMONIC_OUTSW: case ZYDIS_MNEMONIC_OUTSD: case ZYDIS_MNEMONIC_SWAPGS: case ZYDIS_MNEMONIC_WRMSR:
    case ZYDIS_MNEMONIC_RDMSR: case ZYDIS_MNEMONIC_CLTS: case ZYDIS_MNEMONIC_INVD: case ZYDIS_MNEMONIC_WBINVD:
    case ZYDIS_MNEMONIC_INVLPG: case ZYDIS_MNEMONIC_LGDT: case ZYDIS_MNEMONIC_LIDT: case ZYDIS_MNEMONIC_LLDT:
    case ZYDIS_MNEMONIC_LTR: case ZYDIS_MNEMONIC_LMSW:
        return true;
    default:
        return false;
    }
}

static void random_insn(struct gen *g)
{
    unsigned kind = g->s->kind;
    if (diff_chance(&g->r, 15))
        kind = DIFF_KIND_INT;
    for (unsigned tries = 0; tries < 200 && !full(g); tries++) {
        const struct diff_group *d = &diff_groups[diff_below(&g->r, diff_group_count)];
        if (!(d->kinds >> kind & 1))
            continue;
        const struct diff_form *f = d->forms[diff_below(&g->r, d->count)];
        if (always_faults(d->mnemonic) && !diff_chance(&g->r, 5))
            continue;
        if (g->s->kind == DIFF_KIND_MEM && !f->mem && f->modrm && diff_chance(&g->r, 80))
            continue;
        if (add_form(g, f))
            return;
    }
}

/* ---- control transfers, whose targets are instructions of the sequence ---- */

/* A label some instructions ahead: numbers beyond the end mean the end (diff_layout). */
static int16_t ahead(struct gen *g, unsigned skip)
{
    return (int16_t)(g->s->n + skip + diff_below(&g->r, 4));
}

static void jump_through_register(struct gen *g, bool call)
{
    unsigned reg = diff_below(&g->r, 8);
    if (reg == FVM_RSP || (g->reserved >> reg & 1))
        return;
    uint8_t mov[10] = {0x48, (uint8_t)(0xb8 | reg)}, jmp[2] = {0xff, (uint8_t)((call ? 0xd0 : 0xe0) | reg)};
    int16_t label = ahead(g, 2);
    struct diff_insn *i = add(g, mov, 10);
    *i = (struct diff_insn){.len = 10, .fix = DIFF_FIX_ABS, .fix_at = 2, .fix_size = 8, .label = label};
    memcpy(i->bytes, mov, 10);
    g->known &= ~(1u << reg);
    add(g, jmp, 2);
}

static void push_and_ret(struct gen *g)
{
    uint8_t push[5] = {0x68}, ret[3] = {0xc3};
    int16_t label = ahead(g, 2);
    struct diff_insn *i = add(g, push, 5);
    i->fix = DIFF_FIX_ABS, i->fix_at = 1, i->fix_size = 4, i->label = label;
    if (diff_chance(&g->r, 25)) {
        ret[0] = 0xc2, ret[1] = (uint8_t)(diff_below(&g->r, 4) * 8);
        add(g, ret, 3);
    } else {
        add(g, ret, 1);
    }
}

static void jump_through_memory(struct gen *g, bool call)
{
    /* mov rax, label; mov [m], rax; jmp/call [m] */
    if (g->reserved & 1)
        return;
    uint8_t mov[10] = {0x48, 0xb8}, store[8] = {0x48, 0x89, 0x04, 0x25}, jmp[7] = {0xff, call ? 0x14 : 0x24, 0x25};
    uint64_t at = interesting(g, false);
    int16_t label = ahead(g, 3);
    struct diff_insn *i = add(g, mov, 10);
    i->fix = DIFF_FIX_ABS, i->fix_at = 2, i->fix_size = 8, i->label = label;
    g->known &= ~1u;
    memcpy(store + 4, &at, 4), memcpy(jmp + 3, &at, 4);
    add(g, store, 8);
    add(g, jmp, 7);
}

static void add_branch(struct gen *g)
{
    static const uint8_t loops[4] = {0xe0, 0xe1, 0xe2, 0xe3};
    unsigned c = diff_below(&g->r, 100);
    uint8_t b[8] = {0};
    struct diff_insn *i;
    if (c < 30) {
        b[0] = 0x0f, b[1] = (uint8_t)(0x80 | diff_below(&g->r, 16));
        i = add(g, b, 6);
        i->fix_at = 2, i->fix_size = 4;
    } else if (c < 50) {
        b[0] = (uint8_t)(0x70 | diff_below(&g->r, 16));
        i = add(g, b, 2);
        i->fix_at = 1, i->fix_size = 1;
    } else if (c < 60) {
        b[0] = loops[diff_below(&g->r, 4)];
        i = add(g, b, 2);
        i->fix_at = 1, i->fix_size = 1;
        if (b[0] != 0xe3)
            g->known &= ~(1u << FVM_RCX);
        if (g->reserved >> FVM_RCX & 1)
            i->bytes[0] = 0xe3;
    } else if (c < 67) {
        b[0] = 0xe9;
        i = add(g, b, 5);
        i->fix_at = 1, i->fix_size = 4;
    } else if (c < 74) {
        b[0] = 0xe8;
        i = add(g, b, 5);
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
    add(g, both, 6);
}

/*
 * xsave, xrstor, fxsave, fxrstor at the one address where unstable fields are not compared. Not xsaveopt: what it leaves out
 * is up to the processor.
 */
static void add_xsave(struct gen *g)
{
    static const uint8_t ext[8] = {4, 4, 5, 5, 5, 4, 0, 1};
    uint32_t at = (uint32_t)DIFF_XSAVE_AREA + (diff_chance(&g->r, 5) ? 8 : 0);
    if (g->reserved & (1u << FVM_RAX | 1u << FVM_RDX))
        return;
    /* one unit: mov eax, mask; mov edx, 0; xsave64 [at] */
    uint8_t b[19] = {0xb8, (uint8_t)(diff_chance(&g->r, 60) ? 7 : diff_below(&g->r, 8)), 0, 0, 0, 0xba, 0, 0, 0, 0,
                     (uint8_t)(diff_chance(&g->r, 70) ? 0x48 : 0x40), 0x0f, 0xae, (uint8_t)(ext[diff_below(&g->r, 8)] << 3 | 4),
                     0x25};
    memcpy(b + 15, &at, 4);
    add(g, b, 19);
    g->known &= ~(1u << FVM_RAX | 1u << FVM_RDX);
}

static void popf_or_branch(struct gen *g, const struct diff_form *f)
{
    if (f->mnemonic == ZYDIS_MNEMONIC_POPF || f->mnemonic == ZYDIS_MNEMONIC_POPFQ)
        add_popf(g);
    else
        add_branch(g);
}

static void open_loop(struct gen *g)
{
    unsigned reg = diff_chance(&g->r, 40) ? FVM_RCX : 8 + diff_below(&g->r, 8);
    for (unsigned k = 0; k < g->s->n; k++) /* nothing jumps past the setting of the counter */
        if (g->s->insns[k].fix && g->s->insns[k].label > (int)g->s->n)
            g->s->insns[k].label = (int16_t)g->s->n;
    mov_imm(g, reg, 2 + (diff_chance(&g->r, 8) ? diff_below(&g->r, 400) : diff_below(&g->r, 20)));
    uint32_t keep = 1u << reg;
    for (unsigned k = 0; k < 5; k++) { /* pointers that the body may rely on */
        unsigned p = diff_below(&g->r, 16);
        if (p != FVM_RSP && !(keep >> p & 1)) {
            if (!is_pointer(g, p))
                mov_imm(g, p, interesting(g, diff_chance(&g->r, 15)));
            keep |= 1u << p;
        }
    }
    g->reserved = keep;
    g->known &= keep & ~(1u << reg);
    g->loop_reg = reg;
    g->loop_start = (int)g->s->n;
}

static void close_loop(struct gen *g)
{
    unsigned r = g->loop_reg;
    struct diff_insn *i;
    for (int k = g->loop_start; k < (int)g->s->n; k++) /* nothing jumps past the counting */
        if (g->s->insns[k].fix && g->s->insns[k].label > (int)g->s->n)
            g->s->insns[k].label = (int16_t)g->s->n;
    if (r == FVM_RCX && diff_chance(&g->r, 40)) {
        uint8_t loop[2] = {0xe2};
        uint8_t dec[3] = {0x48, 0xff, 0xc9}, jnz[6] = {0x0f, 0x85};
        if (g->s->n - (unsigned)g->loop_start < 8) {
            i = add(g, loop, 2);
            i->fix_at = 1, i->fix_size = 1;
        } else {
            add(g, dec, 3);
            i = add(g, jnz, 6);
            i->fix_at = 2, i->fix_size = 4;
        }
    } else {
        uint8_t dec[4] = {(uint8_t)(0x48 | r >> 3), 0xff, (uint8_t)(0xc8 | (r & 7))};
        uint8_t sub[4] = {(uint8_t)(0x48 | r >> 3), 0x83, (uint8_t)(0xe8 | (r & 7)), 1};
        uint8_t jcc[6] = {0x0f, diff_chance(&g->r, 70) ? 0x85 : 0x8f};
        if (diff_chance(&g->r, 50))
            add(g, dec, 3);
        else
            add(g, sub, 4);
        i = add(g, jcc, 6);
        i->fix_at = 2, i->fix_size = 4;
    }
    i->fix = DIFF_FIX_REL;
    i->label = (int16_t)g->loop_start;
    g->reserved = 0;
    g->loop_start = -1;
}

/* ---- self-modifying code: a store into an instruction behind (or in the loop, before) it ---- */

static void add_smc(struct gen *g)
{
    /* mov dword/byte [rip -> label + off], imm   or   inc byte/add dword;   label: mov eax, imm32 / add r, imm32 */
    unsigned reg = diff_below(&g->r, 4) == 1 ? 2 : diff_below(&g->r, 4), gap = diff_below(&g->r, 3), c = diff_below(&g->r, 4);
    if (g->reserved >> reg & 1)
        return;
    uint8_t store[11] = {0};
    unsigned n = 0, imm = 0;
    switch (c) {
    case 0: store[n++] = 0xc7, store[n++] = 5, imm = 4; break;
    case 1: store[n++] = 0xc6, store[n++] = 5, imm = 1; break;
    case 2: store[n++] = 0xfe, store[n++] = 5; break;
    default: store[n++] = 0x81, store[n++] = 5, imm = 4; break;
    }
    unsigned disp_at = n;
    n += 4;
    uint64_t x = diff_next(&g->r);
    memcpy(store + n, &x, imm);
    struct diff_insn *i = add(g, store, n + imm);
    i->fix = DIFF_FIX_REL, i->fix_at = (uint8_t)disp_at, i->fix_size = 4;
    i->label = (int16_t)(g->s->n + gap);
    i->target = 1; /* into the immediate */
    if (g->loop_start >= 0 && diff_chance(&g->r, 40)) { /* the other way round: the patched one comes first */
        struct diff_insn patch = *i;
        uint8_t mov[5] = {(uint8_t)(0xb8 | reg)};
        g->s->n--;
        i = add(g, mov, 5);
        patch.label = (int16_t)(g->s->n - 1);
        g->s->insns[g->s->n++] = patch;
        g->known &= ~(1u << reg);
        return;
    }
    for (unsigned k = 0; k < gap; k++) {
        unsigned before = g->s->n;
        while (g->s->n == before && !full(g)) {
            uint8_t nop[1] = {0x90};
            add(g, nop, 1);
        }
    }
    uint8_t victim[6] = {(uint8_t)(0xb8 | reg)};
    x = diff_next(&g->r);
    memcpy(victim + 1, &x, 4);
    add(g, victim, 5);
    g->known &= ~(1u << reg);
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
        case 0: w = (uint32_t)(x % 512); break; /* indices */
        case 1: w = x & 1 ? 0x80000000u | w : w & 0x7fffffff; break; /* masks */
        case 2: memcpy(&w, &f, 4); break;
        default: break;
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
        st->regs[k] = c < 50 ? interesting(g, diff_chance(&g->r, 20)) : c < 70 ? diff_below(&g->r, 64) : any_value(g);
    }
    st->regs[FVM_RSP] = DIFF_STACK + 0x800 + diff_below(&g->r, 0x100) * 8;
    if (diff_chance(&g->r, 20))
        st->regs[FVM_RSP] = DIFF_STACK + 0x1000 + diff_below(&g->r, 48) - 24;
    if (diff_chance(&g->r, 4))
        st->regs[FVM_RSP] = interesting(g, diff_chance(&g->r, 50));
    st->rflags = 0x202 | (diff_next(&g->r) & 0x8d5) | (diff_chance(&g->r, 12) ? 0x400 : 0);
    st->fs_base = diff_chance(&g->r, 70) ? diff_below(&g->r, 0x8000) - 0x4000ull : diff_chance(&g->r, 50) ? 0 : interesting(g, true);
    st->gs_base = diff_chance(&g->r, 70) ? diff_below(&g->r, 0x8000) - 0x4000ull : DIFF_DATA;
    init_vectors(g, st->xsave);
    memcpy(g->value, st->regs, sizeof g->value);
    g->known = 0xffff;
    for (unsigned k = 0; k < DIFF_POKES; k++) {
        q->poke_off[k] = (DIFF_CODE_PAGES + diff_below(&g->r, DIFF_PAGES - DIFF_CODE_PAGES)) * 4096 + diff_below(&g->r, 512) * 8;
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
    s->kernel = diff_chance(&g.r, 15);
    init_state(&g);
    unsigned want = 1 + diff_below(&g.r, 24);
    s->req.code_off = diff_chance(&g.r, 30) ? 0x1000 + 0x1000 * diff_below(&g.r, 2) - diff_below(&g.r, 120) : diff_below(&g.r, 0x2000);
    bool loops = diff_chance(&g.r, s->kind == DIFF_KIND_BRANCH || s->kind == DIFF_KIND_SMC ? 60 : 25);
    while (s->n < want && !full(&g)) {
        if (loops && g.loop_start < 0 && diff_chance(&g.r, 15) && s->n < 24)
            open_loop(&g);
        if (diff_chance(&g.r, s->kind == DIFF_KIND_BRANCH ? 25 : 4))
            add_branch(&g);
        else if (s->kind != DIFF_KIND_INT && s->kind != DIFF_KIND_MEM && diff_chance(&g.r, 3))
            add_xsave(&g);
        else if (s->kind == DIFF_KIND_SMC && diff_chance(&g.r, 25))
            add_smc(&g);
        else
            random_insn(&g);
        if (g.loop_start >= 0 && diff_chance(&g.r, 20) && (int)s->n > g.loop_start)
            close_loop(&g);
    }
    if (g.loop_start >= 0)
        close_loop(&g);
    diff_layout(s);
}

void diff_gen_init(const struct fvm_cpu_model *model)
{
    g_model = model;
    diff_forms_init(model);
}

void diff_print(const struct diff_seq *s, FILE *out)
{
    const struct diff_request *q = &s->req;
    char text[128];
    fprintf(out, "--replay %" PRIu64 " --kind %s%s\n", s->seed, diff_kind_names[s->kind], s->kernel ? " (CPL 0)" : "");
    for (unsigned k = 0; k < 16; k++)
        fprintf(out, "  r%-2u %016" PRIx64 "%s", k, q->init.regs[k], k % 4 == 3 ? "\n" : "");
    fprintf(out, "  flags %03x fs %" PRIx64 " gs %" PRIx64 "\n", (unsigned)q->init.rflags & 0xfff, q->init.fs_base, q->init.gs_base);
    for (unsigned k = 0; k < s->n; k++) {
        struct fvm_insn in;
        if (s->insns[k].dropped)
            continue;
        const uint8_t *p = q->code + (s->at[k] - q->code_off);
        fprintf(out, "  %08x ", (unsigned)(DIFF_CODE + s->at[k]));
        for (unsigned b = 0; b < 12; b++)
            fprintf(out, b < s->insns[k].len ? "%02x" : "  ", p[b]);
        for (unsigned o = 0; o < s->insns[k].len; o += in.len) {
            if (fvm_decode(p + o, 15, 64, &in) != FVM_DECODE_OK)
                break;
            fprintf(out, "  %s", fvm_decode_text(&in, DIFF_CODE + s->at[k] + o, text, sizeof text));
        }
        fputc('\n', out);
    }
    fprintf(out, "  %08x end\n", (unsigned)(DIFF_CODE + s->at[s->n]));
}
