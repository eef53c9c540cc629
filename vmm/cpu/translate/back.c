/*
 * back.c - re-emission of a guest instruction: the same opcode, its memory operand replaced.
 *
 * The encoding is rebuilt from the original bytes: legacy prefixes (without segment and address-size), REX or VEX with new X and
 * B bits, opcode bytes, ModRM with the old reg field, the new address form, immediates. No table of opcodes is needed.
 * Instructions of 32-bit code come out valid for 64-bit mode; the few that do not exist there are classed apart (front.c).
 */
#include "vmm/cpu/translate/tr.h"

struct parts { /* where things are in the original */
    uint8_t prefixes[15]; /* all there can be: one dropped might be the one that makes the opcode */
    unsigned prefix_count;
    bool has_rex;
    uint8_t rex;
    unsigned op_at;     /* first opcode byte (legacy), first VEX byte otherwise */
    unsigned modrm_at;
    unsigned imm_at;    /* first byte after the memory operand */
};

static bool is_segment_or_a32(uint8_t b)
{
    return b == 0x26 || b == 0x2e || b == 0x36 || b == 0x3e || b == 0x64 || b == 0x65 || b == 0x67;
}

/* Prefixes of 16-bit code as 64-bit mode wants them; true: the byte stays. */
static bool prefix_stays(uint8_t b, unsigned how)
{
    return !is_segment_or_a32(b) && (b != 0x66 || how == FVM_P66_KEEP);
}

static void take_apart(const struct fvm_insn *in, struct parts *p)
{
    bool code16 = in->z.machine_mode == ZYDIS_MACHINE_MODE_LEGACY_16;
    unsigned how = code16 ? fvm_seg16_prefix(in) : FVM_P66_KEEP;
    const ZydisDecodedInstructionRaw *r = &in->z.raw;
    memset(p, 0, sizeof *p);
    unsigned at = 0;
    for (unsigned k = 0; k < r->prefix_count; k++, at++) {
        uint8_t b = in->bytes[at];
        if (in->z.machine_mode == ZYDIS_MACHINE_MODE_LONG_64 && (b & 0xf0) == 0x40) {
            p->has_rex = true;
            p->rex = b;
        } else {
            p->has_rex = false; /* a REX that is not last does not count */
            if (prefix_stays(b, how) && p->prefix_count < sizeof p->prefixes)
                p->prefixes[p->prefix_count++] = b;
        }
    }
    if (how == FVM_P66_ADD && p->prefix_count < sizeof p->prefixes)
        p->prefixes[p->prefix_count++] = 0x66;
    p->op_at = at;
    p->modrm_at = r->modrm.offset;
    p->imm_at = r->modrm.offset + 1u;
    bool has_sib = r->modrm.mod != 3 && r->modrm.rm == 4 && in->z.address_width != 16;
    if (has_sib)
        p->imm_at++;
    p->imm_at += r->disp.size / 8u;
}

/*
 * With a single vCPU a user program's locked instruction competes with nobody: no other processor, and devices' DMA never meets user
 * memory with atomics of its own. The prefix (15 to 20 cycles) is dropped. The kernel keeps its prefixes, since its barriers towards
 * devices' rings may be locked instructions; it patches them away by itself where it does not need them. See docs/adr.
 */
bool fvm_tr_unlocked(const struct fvm_tr *tr)
{
    return tr->user && tr->v->count <= 1;
}

/* Third byte of a VEX prefix as 64-bit mode must have it: in other modes W never widens a general register, and there are eight. */
static uint8_t vex_third(const struct fvm_insn *in, unsigned map, uint8_t third)
{
    unsigned op = in->z.opcode;
    bool w_is_width = map == 1   ? op == 0x2a || op == 0x2c || op == 0x2d || op == 0x6e || op == 0x7e
                      : map == 2 ? op == 0xf2 || op == 0xf3 || (op >= 0xf5 && op <= 0xf7)
                                 : op == 0x16 || op == 0x22 || op == 0x60 || op == 0x61 || op == 0xf0;
    if (in->z.machine_mode == ZYDIS_MACHINE_MODE_LONG_64)
        return third;
    return (uint8_t)((w_is_width ? third & 0x7f : third) | 0x40);
}

/* ... and the immediate that names a register */
static void vex_immediate(struct fvm_emit *em, const struct fvm_insn *in)
{
    if (in->z.machine_mode != ZYDIS_MACHINE_MODE_LONG_64 && in->z.opcode_map == ZYDIS_OPCODE_MAP_0F3A && in->z.opcode >= 0x4a &&
        in->z.opcode <= 0x4c)
        em->buf[em->at - 1] &= 0x7f;
}

/* Bytes from the opcode on; 82, which 64-bit mode lacks, is 80. */
static void e_opcode(struct fvm_emit *em, const struct fvm_insn *in, unsigned at, unsigned n)
{
    uint32_t first = em->at;
    e_bytes(em, in->bytes + at, n);
    if (in->z.encoding == ZYDIS_INSTRUCTION_ENCODING_LEGACY && in->bytes[at] == 0x82)
        em->buf[first] = 0x80;
}

/* fs: an FS override (exec_one), with base and index FVM_NOREG */
static void emit_op(struct fvm_emit *em, const struct fvm_insn *in, const struct fvm_hostref *h, bool fs, bool unlocked)
{
    struct parts p;
    take_apart(in, &p);
    unsigned reg = (in->bytes[p.modrm_at] >> 3) & 7;
    unsigned xb_x = (e_n(h->index) >> 3) & 1, xb_b = (e_n(h->base) >> 3) & 1;
    if (fs)
        e8(em, 0x64);
    if (in->z.encoding == ZYDIS_INSTRUCTION_ENCODING_VEX) {
        uint8_t b0 = in->bytes[p.op_at], r_inv, map, w, rest;
        for (unsigned k = 0; k < p.prefix_count; k++)
            e8(em, p.prefixes[k]);
        if (b0 == 0xc5) {
            uint8_t b1 = in->bytes[p.op_at + 1];
            r_inv = b1 & 0x80;
            map = 1;
            w = 0;
            rest = b1 & 0x7f;
        } else {
            r_inv = in->bytes[p.op_at + 1] & 0x80;
            map = in->bytes[p.op_at + 1] & 0x1f;
            uint8_t third = vex_third(in, map, in->bytes[p.op_at + 2]);
            w = third & 0x80;
            rest = third & 0x7f;
        }
        e8(em, 0xc4);
        e8(em, r_inv | (xb_x ? 0 : 0x40) | (xb_b ? 0 : 0x20) | map);
        e8(em, w | rest);
        e8(em, in->bytes[p.modrm_at - 1]);
    } else {
        for (unsigned k = 0; k < p.prefix_count; k++)
            if (!unlocked || p.prefixes[k] != 0xf0)
                e8(em, p.prefixes[k]);
        unsigned rex = (p.has_rex ? p.rex & 0x4c : 0) | xb_x << 1 | xb_b;
        if (rex || p.has_rex)
            e8(em, 0x40 | rex);
        e_opcode(em, in, p.op_at, p.modrm_at - p.op_at);
    }
    e_mem(em, reg, h->base, h->index, 0, h->disp);
    e_bytes(em, in->bytes + p.imm_at, in->len - p.imm_at);
    if (in->z.encoding == ZYDIS_INSTRUCTION_ENCODING_VEX)
        vex_immediate(em, in);
}

void fvm_tr_op_mem(struct fvm_tr *tr, const struct fvm_insn *in, const struct fvm_hostref *h)
{
    emit_op(&tr->em, in, h, false, fvm_tr_unlocked(tr));
}

void fvm_emit_op_fs(struct fvm_emit *em, const struct fvm_insn *in, uint32_t fs_off)
{
    struct fvm_hostref h = {FVM_NOREG, FVM_NOREG, (int32_t)fs_off};
    emit_op(em, in, &h, true, false);
}

void fvm_emit_copy(struct fvm_emit *em, const struct fvm_insn *in, unsigned bits)
{
    if (bits == 64) {
        e_bytes(em, in->bytes, in->len);
        return;
    }
    /* 16/32-bit code: drop address-size prefixes, which would be harmless but for their meaning in 64-bit mode */
    unsigned at = 0, how = bits == 16 ? fvm_seg16_prefix(in) : FVM_P66_KEEP;
    for (unsigned k = 0; k < in->z.raw.prefix_count; k++, at++)
        if (prefix_stays(in->bytes[at], how))
            e8(em, in->bytes[at]);
    if (how == FVM_P66_ADD)
        e8(em, 0x66);
    uint8_t op = in->bytes[at];
    if ((op & 0xf0) == 0x40 && in->z.encoding == ZYDIS_INSTRUCTION_ENCODING_LEGACY) { /* inc, dec: prefixes in 64-bit mode */
        e8(em, 0xff);
        e8(em, 0xc0 | (op & 15));
        return;
    }
    uint32_t first = em->at;
    e_opcode(em, in, at, in->len - at);
    if (in->z.encoding == ZYDIS_INSTRUCTION_ENCODING_VEX && in->bytes[at] == 0xc4) {
        em->buf[first + 1] |= 0x20;
        em->buf[first + 2] = vex_third(in, in->bytes[at + 1] & 0x1f, in->bytes[at + 2]);
        vex_immediate(em, in);
    }
}

void fvm_tr_copy(struct fvm_tr *tr, const struct fvm_insn *in)
{
    fvm_emit_copy(&tr->em, in, tr->bits);
}
