/*
 * support_gen_form.c - one instruction of a form: prefixes, registers, an address that is worth it, immediates.
 */
#include "tests/diff/support_gen.h"

static const struct fvm_cpu_model *model; /* set once, before anything runs */

void diff_gen_init(const struct fvm_cpu_model *m)
{
    model = m;
    diff_forms_init(m);
}

static void need_pointer(struct gen *g, unsigned reg)
{
    if (!gen_is_pointer(g, reg) && !(g->reserved >> reg & 1) && diff_chance(&g->r, 90))
        gen_mov_imm(g, reg, gen_interesting(g, diff_chance(&g->r, 15)));
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
    unsigned n = gen_is64(g) ? 16 : 8, start = diff_below(&g->r, n);
    for (unsigned k = 0; k < n; k++)
        if (good(g, (start + k) & (n - 1)))
            return (int)((start + k) & (n - 1));
    return -1;
}

struct modrm {
    uint8_t bytes[6], len, rex;
    uint8_t rip_at;
    uint64_t rip_target;
};

static void put_disp(struct modrm *m, unsigned at, int64_t disp, unsigned size)
{
    int32_t d = (int32_t)disp;
    memcpy(m->bytes + at, &d, size);
    m->len = (uint8_t)(at + size);
}

/* [base + index*scale + disp] for a chosen address */
static void form_base(struct gen *g, struct modrm *m, unsigned base, bool vsib, uint64_t seg_base, bool addr32,
                      uint64_t mask)
{
    int index = vsib ? (int)gen_reg(g) : diff_chance(&g->r, 35) ? pick_reg(g, gen_is_small) : -1;
    unsigned scale = diff_below(&g->r, 4);
    if (index == FVM_RSP && !vsib)
        index = -1;
    uint64_t at = diff_chance(&g->r, 45) ? g->value[base] + diff_below(&g->r, 256) - 128 + seg_base
                                         : gen_interesting(g, g->value[base] >> 32 && !addr32);
    at &= mask;
    int64_t disp = (int64_t)(at - seg_base - g->value[base] - (index >= 0 && !vsib ? g->value[index] << scale : 0));
    if (!gen_is64(g))
        disp = (int32_t)disp;
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
    int base = pick_reg(g, gen_is_pointer);
    if (base < 0 || (c < 10 && !vsib)) {
        unsigned reg = gen_reg(g);
        if (reg != FVM_RSP && !(g->reserved >> reg & 1) && c >= 10)
            gen_mov_imm(g, reg, gen_interesting(g, diff_chance(&g->r, 20))), base = (int)reg;
    }
    if (c < 1 && !vsib) { /* anything at all */
        uint64_t x = diff_next(&g->r);
        unsigned mod = diff_below(&g->r, 3);
        m->rex = gen_is64(g) ? x >> 40 & 3 : 0;
        m->bytes[0] = (uint8_t)(mod << 6 | (x & 7));
        unsigned n = 1;
        if ((x & 7) == 4)
            m->bytes[n++] = (uint8_t)(x >> 8);
        unsigned dsz = mod == 1 ? 1 : mod == 2 || (x & 7) == 5 || (n == 2 && (x >> 8 & 7) == 5) ? 4 : 0;
        put_disp(m, n, (int32_t)(x >> 16), dsz);
    } else if (c < 16 && !vsib) { /* RIP-relative; absolute in 32-bit code */
        m->bytes[0] = 5;
        m->rip_target = (gen_interesting(g, false) & mask) - seg_base;
        m->rip_at = 1;
        put_disp(m, 1, 0, 4);
    } else if (c < 22 || base < 0) { /* [index*scale + disp32] or absolute */
        int index = vsib ? (int)gen_reg(g) : diff_chance(&g->r, 50) ? pick_reg(g, gen_is_small) : -1;
        unsigned scale = diff_below(&g->r, 4);
        if (index == FVM_RSP && !vsib)
            index = -1;
        m->bytes[0] = 4;
        m->bytes[1] = (uint8_t)(scale << 6 | (index < 0 ? 4u : (unsigned)index & 7) << 3 | 5);
        m->rex = index > 7 ? 2 : 0;
        put_disp(m, 2,
                 (int64_t)((gen_interesting(g, false) & mask) - seg_base -
                           (index >= 0 && !vsib ? g->value[index] << scale : 0)),
                 4);
    } else {
        form_base(g, m, (unsigned)base, vsib, seg_base, addr32, mask);
    }
}

/* ---- one instruction of a form ---- */

static bool is_vsib(const struct diff_form *f) { return f->map == 5 && f->opcode >= 0x90 && f->opcode <= 0x93; }

static unsigned legacy_head(struct gen *g, const struct diff_form *f, const struct modrm *m, unsigned rex_r,
                            unsigned rex_b, unsigned seg, bool a32, uint8_t *b)
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
    if (gen_is64(g) && (rex || diff_chance(&g->r, 25)))
        b[n++] = (uint8_t)(0x40 | rex);
    if (f->map)
        b[n++] = 0x0f;
    if (f->map > 1)
        b[n++] = f->map == 2 ? 0x38 : 0x3a;
    b[n++] = f->opcode;
    return n;
}

static unsigned vex_head(struct gen *g, const struct diff_form *f, const struct modrm *m, unsigned rex_r,
                         unsigned rex_b, unsigned seg, bool a32, uint8_t *b)
{
    unsigned n = 0, rex = f->mem ? m->rex : rex_b, vvvv = diff_chance(&g->r, 12) ? 15 : 15 - gen_reg(g);
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
            gen_mov_imm(g, FVM_RCX, diff_chance(&g->r, 80) ? diff_below(&g->r, 70) : diff_below(&g->r, 6000));
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
    return (f->map >= 1 && f->map <= 3 && f->category != ZYDIS_CATEGORY_BITBYTE &&
            f->category != ZYDIS_CATEGORY_SETCC && f->category != ZYDIS_CATEGORY_CMOV &&
            f->category != ZYDIS_CATEGORY_BINARY) ||
           (f->map >= 4 && f->category == ZYDIS_CATEGORY_DATAXFER);
}

static uint64_t form_imm(struct gen *g, unsigned size)
{
    uint64_t x = diff_next(&g->r);
    if (size > 1 && diff_chance(&g->r, 50))
        x = (uint64_t)(int64_t)(int8_t)x;
    return x;
}

static bool is_decimal(ZydisMnemonic m)
{
    return m == ZYDIS_MNEMONIC_AAA || m == ZYDIS_MNEMONIC_AAS || m == ZYDIS_MNEMONIC_DAA || m == ZYDIS_MNEMONIC_DAS ||
           m == ZYDIS_MNEMONIC_AAM || m == ZYDIS_MNEMONIC_AAD;
}

/* The FS or GS prefix, or 0, and whether there is an address size prefix. */
static unsigned choose_prefixes(struct gen *g, const struct diff_form *f, bool *ret_a32)
{
    unsigned seg = f->mem && diff_chance(&g->r, 10) ? 0x64 | diff_below(&g->r, 2) : 0;
    bool a32 = f->mem && diff_chance(&g->r, 4);
    if (f->category == ZYDIS_CATEGORY_STRINGOP && diff_chance(&g->r, 15))
        seg = 0x64 | diff_below(&g->r, 2);
    if (f->category == ZYDIS_CATEGORY_STRINGOP && diff_chance(&g->r, 10))
        a32 = true;
    if ((f->mnemonic == ZYDIS_MNEMONIC_XLAT || f->category == ZYDIS_CATEGORY_DATAXFER) && diff_chance(&g->r, 3) &&
        gen_is64(g))
        seg = 0x64;
    if (!gen_is64(g)) /* no FS and GS there; few 16-bit addresses */
        seg = 0, a32 = diff_chance(&g->r, 1);
    *ret_a32 = a32;
    return seg;
}

static bool add_form(struct gen *g, const struct diff_form *f)
{
    uint8_t b[32];
    struct modrm m = {0};
    struct fvm_insn in;
    bool a32;
    unsigned seg = choose_prefixes(g, f, &a32);
    unsigned rex_r = diff_below(&g->r, gen_is64(g) ? 2 : 1), rex_b = diff_below(&g->r, gen_is64(g) ? 2 : 1);
    uint64_t seg_base = seg == 0x64 ? g->s->req.init.fs_base : seg == 0x65 ? g->s->req.init.gs_base : 0;
    if (f->mem)
        make_modrm(g, &m, is_vsib(f), seg_base, a32, wants_alignment(f) && diff_chance(&g->r, 93) ? ~63ull : ~0ull);
    prepare_implicit(g, f);
    if (f->mem && is_bt(f) && f->opcode != 0xba && !(g->reserved >> (rex_r * 8 + f->ext) & 1) &&
        rex_r * 8 + f->ext != FVM_RSP)
        gen_mov_imm(g, rex_r * 8 + f->ext, (uint64_t)(int64_t)((int)diff_below(&g->r, 40000) - 20000));
    if (gen_full(g))
        return false;
    unsigned n =
        f->map < 4 ? legacy_head(g, f, &m, rex_r, rex_b, seg, a32, b) : vex_head(g, f, &m, rex_r, rex_b, seg, a32, b);
    unsigned modrm_at = n;
    if (f->modrm && f->mem) {
        memcpy(b + n, m.bytes, m.len);
        n += m.len;
    } else if (f->modrm) {
        b[n++] = (uint8_t)(0xc0 | diff_below(&g->r, 8));
    }
    if (f->modrm)
        b[modrm_at] |= (uint8_t)(f->ext << 3);
    uint64_t imm = form_imm(g, 8), moffs = gen_interesting(g, diff_chance(&g->r, 20)) - seg_base;
    memcpy(b + n, &imm, 8);
    memcpy(b + n + 8, &imm, 4);
    if (f->map == 0 && f->opcode >= 0xa0 && f->opcode <= 0xa3)
        memcpy(b + n, &moffs, 8);
    if (fvm_decode(b, 15, g->s->req.bits, &in) != FVM_DECODE_OK || !diff_comparable(&in, g->s->kernel) || in.len > 15)
        return false;
    if (!fvm_cpu_model_allows(model, &in))
        return false;
    if (in.z.meta.branch_type != ZYDIS_BRANCH_TYPE_NONE || in.z.mnemonic == ZYDIS_MNEMONIC_POPF ||
        in.z.mnemonic == ZYDIS_MNEMONIC_POPFQ || in.z.mnemonic == ZYDIS_MNEMONIC_POPFD) {
        gen_popf_or_branch(g, f);
        return true;
    }
    if (in.z.mnemonic == ZYDIS_MNEMONIC_ENTER)
        b[modrm_at + 1] = 0, b[modrm_at + 2] = diff_chance(&g->r, 30) ? b[modrm_at + 2] & 31 : 0;
    if (writes_reserved(g, &in) && !(diff_chance(&g->r, 3) && g->loop_start < 0))
        return false;
    unsigned len = in.len;
    if (is_decimal(in.z.mnemonic)) { /* what it leaves of the flags is mostly undefined: setc cl; test eax, eax */
        static const uint8_t cover[5] = {0x0f, 0x92, 0xc1, 0x85, 0xc0};
        bool carry =
            in.z.mnemonic != ZYDIS_MNEMONIC_AAM && in.z.mnemonic != ZYDIS_MNEMONIC_AAD && !gen_reserved(g, FVM_RCX);
        memcpy(b + len, cover + (carry ? 0 : 3), carry ? 5 : 2);
        len += carry ? 5 : 2;
        g->known &= ~(1u << FVM_RCX);
    }
    struct diff_insn *i = gen_add(g, b, len);
    if (m.rip_at && f->mem) {
        i->fix = gen_is64(g) ? DIFF_FIX_REL : DIFF_FIX_ABS;
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
    case ZYDIS_MNEMONIC_UD0:
    case ZYDIS_MNEMONIC_UD1:
    case ZYDIS_MNEMONIC_UD2:
    case ZYDIS_MNEMONIC_CLI:
    case ZYDIS_MNEMONIC_STI:
    case ZYDIS_MNEMONIC_INVPCID:
    case ZYDIS_MNEMONIC_HLT:
    case ZYDIS_MNEMONIC_IN:
    case ZYDIS_MNEMONIC_OUT:
    case ZYDIS_MNEMONIC_INSB:
    case ZYDIS_MNEMONIC_INSW:
    case ZYDIS_MNEMONIC_INSD:
    case ZYDIS_MNEMONIC_OUTSB:
    case ZYDIS_MNEMONIC_OUTSW:
    case ZYDIS_MNEMONIC_OUTSD:
    case ZYDIS_MNEMONIC_SWAPGS:
    case ZYDIS_MNEMONIC_WRMSR:
    case ZYDIS_MNEMONIC_RDMSR:
    case ZYDIS_MNEMONIC_CLTS:
    case ZYDIS_MNEMONIC_INVD:
    case ZYDIS_MNEMONIC_WBINVD:
    case ZYDIS_MNEMONIC_INVLPG:
    case ZYDIS_MNEMONIC_LGDT:
    case ZYDIS_MNEMONIC_LIDT:
    case ZYDIS_MNEMONIC_LLDT:
    case ZYDIS_MNEMONIC_LTR:
    case ZYDIS_MNEMONIC_LMSW:
        return true;
    default:
        return false;
    }
}

void gen_random_insn(struct gen *g)
{
    const struct diff_forms *list = diff_forms_of(g->s->req.bits);
    unsigned kind = g->s->kind;
    if (diff_chance(&g->r, 15))
        kind = DIFF_KIND_INT;
    for (unsigned tries = 0; tries < 200 && !gen_full(g); tries++) {
        const struct diff_group *d = &list->groups[diff_below(&g->r, list->group_count)];
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
