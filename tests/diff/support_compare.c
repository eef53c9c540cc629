/*
 * support_compare.c - the memory image that both sides start from, and what counts as equal at the end.
 *
 * Not compared, since it is not defined or not kept: RFLAGS other than CF PF AF ZF SF DF OF; at a fault, the arithmetic
 * flags where they are dead (the engine does not reproduce dead flags, see vmm/cpu/translate/flags.c); x87 instruction
 * and data pointers and the MXCSR mask, also in DIFF_XSAVE_AREA. XSAVE components marked initial have their initial
 * values.
 *
 * Differences that are known and accepted; each has its function or comment below:
 * - an operand that is misaligned, or pending x87 exception, and without rights: #GP or #MF there, #PF here
 * - near branches to non-canonical addresses: #GP at the branch there, at the target here
 * - cr2 within operands of more than 32 bytes (fxrstor, frstor...): where the processor's microcode looked first
 * - rep string instructions that overwrite themselves: go on there, fetched again here
 * - popa that faults: registers already loaded stay there
 * - a string operand with a segment base whose offset alone is not canonical: #GP there (AMD)
 * - 32-bit code: accesses across 4 GiB are beyond the segment there
 */
#include <inttypes.h>
#include <stdarg.h>
#include <string.h>

#include "tests/diff/support_diff.h"

#define ARITH 0x8d5u

const struct diff_page diff_pages[DIFF_PAGES] = {
    {DIFF_CODE, DIFF_W | DIFF_X},
    {DIFF_CODE + 0x1000, DIFF_W | DIFF_X},
    {DIFF_CODE + 0x2000, DIFF_W | DIFF_X},
    {DIFF_DATA, DIFF_W},
    {DIFF_DATA + 0x1000, DIFF_W},
    {DIFF_DATA + 0x2000, DIFF_W},
    {DIFF_DATA + 0x3000, DIFF_W},
    {DIFF_DATA + 0x5000, 0},
    {DIFF_DATA + 0x6000, DIFF_W},
    {DIFF_DATA + 0x7000, DIFF_W},
    {DIFF_STACK, DIFF_W},
    {DIFF_STACK + 0x1000, DIFF_W},
    {DIFF_HIGH, DIFF_W},
    {DIFF_HIGH + 0x1000, DIFF_W},
    {DIFF_SAVE, DIFF_W},
};

int diff_page_of(uint64_t va)
{
    for (int k = 0; k < DIFF_PAGES; k++)
        if (va - diff_pages[k].va < 4096)
            return k;
    return -1;
}

/* Pages of pointers, small numbers, floats and noise; the code pages are hlt, which faults on both sides. */
void diff_base_image(uint8_t *ret)
{
    struct diff_rng r = {12345};
    memset(ret, 0xf4, DIFF_CODE_PAGES * 4096);
    for (unsigned o = DIFF_CODE_PAGES * 4096; o < DIFF_IMAGE_BYTES; o += 8) {
        uint64_t x = diff_next(&r);
        double d = (double)(int32_t)(uint32_t)x / 1024.0;
        float f[2] = {(float)d, (float)(int8_t)x};
        switch (diff_below(&r, 8)) {
        case 0:
            x = DIFF_DATA + x % 0x4000;
            break;
        case 1:
            x %= 200;
            break;
        case 2:
            memcpy(&x, &d, 8);
            break;
        case 3:
            memcpy(&x, f, 8);
            break;
        case 4:
            x = 0;
            break;
        default:
            break;
        }
        memcpy(ret + o, &x, 8);
    }
    uint8_t *save = ret + (DIFF_PAGES - 1) * 4096;
    memset(save, 0, 4096);
    save[0x400] = 0x7f, save[0x401] = 3;              /* FCW */
    save[0x400 + 24] = 0x80, save[0x400 + 25] = 0x1f; /* MXCSR */
    save[0x400 + 512] = 7;
}

void diff_image(const struct diff_request *req, const uint8_t *base, uint8_t *ret)
{
    memcpy(ret, base, DIFF_IMAGE_BYTES);
    for (unsigned k = 0; k < DIFF_POKES; k++)
        memcpy(ret + req->poke_off[k], &req->poke[k], 8);
    memcpy(ret + req->code_off, req->code, FVM_MIN(req->code_len, DIFF_CODE_PAGES * 4096u - req->code_off));
}

/* Arithmetic flags that matter to what follows the faulting instruction. */
static unsigned live_flags(const struct diff_outcome *o)
{
    unsigned pending = ARITH, live = 0;
    uint64_t at = o->state.rip - DIFF_CODE;
    while (at < DIFF_CODE_PAGES * 4096 && pending) { /* the code as it is now: it may have changed itself */
        struct fvm_insn in;
        if (fvm_decode(o->mem + at, FVM_MIN(15u, DIFF_CODE_PAGES * 4096u - at), o->bits, &in) != FVM_DECODE_OK)
            return live;
        at += in.len;
        const ZydisAccessedFlags *f = in.z.cpu_flags;
        if (f) {
            live |= f->tested & pending;
            pending &= ~(f->modified | f->set_0 | f->set_1 | f->undefined);
        }
        if (in.z.meta.branch_type != ZYDIS_BRANCH_TYPE_NONE)
            return live;
    }
    return live;
}

struct report {
    char *text;
    size_t size, at;
    bool bad;
};
static void differ(struct report *r, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
static void differ(struct report *r, const char *fmt, ...)
{
    va_list ap;
    r->bad = true;
    if (r->at >= r->size)
        return;
    va_start(ap, fmt);
    int n = vsnprintf(r->text + r->at, r->size - r->at, fmt, ap);
    va_end(ap);
    r->at += (size_t)FVM_MAX(n, 0);
}

/* The image with initial components filled in and unstable fields cleared. */
static void canonical_xsave(const uint8_t *in, uint8_t *out)
{
    uint64_t bv;
    memcpy(out, in, DIFF_XSAVE);
    memcpy(&bv, in + 512, 8);
    if (!(bv & 1)) {
        memset(out, 0, 24);
        memset(out + 32, 0, 128);
        out[0] = 0x7f, out[1] = 3;
    }
    if (!(bv & 2))
        memset(out + 160, 0, 256);
    if (!(bv & 4))
        memset(out + 576, 0, 256);
    /* What fxrstor leaves to the processor: reserved bits, the summary of unmasked exceptions. */
    out[0] = (uint8_t)((out[0] & 0x3f) | 0x40), out[1] &= 0x1f, out[5] = 0;
    bool pending = out[2] & ~out[0] & 0x3f;
    out[2] = (uint8_t)((out[2] & 0x7f) | (pending ? 0x80 : 0)),
    out[3] = (uint8_t)((out[3] & 0x7f) | (pending ? 0x80 : 0));
    memset(out + 6, 0, 18); /* FOP FIP FDP */
    memset(out + 28, 0, 4); /* MXCSR mask */
    memset(out + 416, 0, 160);
    for (unsigned k = 0; k < 8; k++)
        memset(out + 32 + 16 * k + 10, 0, 6);
}

/* 32-bit code has eight vector registers; what vzeroupper does to the others it cannot see. */
static void forget_high_registers(uint8_t *x)
{
    memset(x + 160 + 128, 0, 128);
    memset(x + 576 + 128, 0, 128);
}

static void compare_vectors(struct report *r, const uint8_t *native, const uint8_t *guest, unsigned bits)
{
    uint8_t a[DIFF_XSAVE], b[DIFF_XSAVE];
    canonical_xsave(native, a);
    canonical_xsave(guest, b);
    if (bits == 32)
        forget_high_registers(a), forget_high_registers(b);
    if (!memcmp(a, b, DIFF_XSAVE))
        return;
    for (unsigned k = 0; k < DIFF_XSAVE; k += 8) {
        uint64_t x, y;
        memcpy(&x, a + k, 8), memcpy(&y, b + k, 8);
        if (x == y)
            continue;
        if (k < 24)
            differ(r, "x87 FCW/FSW/FTW");
        else if (k < 32)
            differ(r, "MXCSR");
        else if (k < 160)
            differ(r, "st/mm%u+%u", (k - 32) / 16, k % 16);
        else if (k < 416)
            differ(r, "xmm%u+%u", (k - 160) / 16, k % 16);
        else
            differ(r, "ymm%u high+%u", (k - 576) / 16, k % 16);
        differ(r, ": native %016" PRIx64 " engine %016" PRIx64 "\n", x, y);
    }
}

static void compare_memory(struct report *r, const struct diff_outcome *a, const struct diff_outcome *b)
{
    unsigned shown = 0;
    if (!memcmp(a->mem, b->mem, DIFF_IMAGE_BYTES))
        return;
    for (unsigned k = 0; k < DIFF_IMAGE_BYTES && shown < 4; k++) {
        uint64_t in_area = diff_pages[k >> 12].va + (k & 4095) - DIFF_XSAVE_AREA;
        if (a->mem[k] == b->mem[k] || (in_area >= 6 && in_area < 24) || (in_area >= 28 && in_area < 32) ||
            in_area == 512) /* a component may be marked initial when it is */
            continue;
        differ(r, "memory %" PRIx64 ": native %02x engine %02x\n", diff_pages[k >> 12].va + (k & 4095), a->mem[k],
               b->mem[k]);
        shown++;
        k |= 7;
    }
}

/* Error codes as a guest at CPL 3 would see them: the host's kernel sets P for all addresses above user space. */
static unsigned fault_code(const struct diff_outcome *o, bool kernel)
{
    unsigned code = o->code;
    if (o->vector != FVM_EXC_PF)
        return code;
    if (o->cr2 >= 0x7ffffffff000)
        code |= 1;
    return kernel ? code | 4 : code;
}

/* The instruction that faulted, as it was then. */
static bool faulting(const struct diff_outcome *o, struct fvm_insn *ret)
{
    uint64_t at = o->state.rip - DIFF_CODE;
    return at < DIFF_CODE_PAGES * 4096 &&
           fvm_decode(o->mem + at, FVM_MIN(15u, DIFF_CODE_PAGES * 4096u - at), o->bits, ret) == FVM_DECODE_OK;
}

static bool needs_alignment(const struct diff_outcome *o)
{
    struct fvm_insn in;
    return faulting(o, &in) &&
           ((in.z.meta.isa_set >= ZYDIS_ISA_SET_SSE && in.z.meta.isa_set <= ZYDIS_ISA_SET_SSSE3MMX) ||
            in.z.encoding == ZYDIS_INSTRUCTION_ENCODING_VEX || in.z.meta.isa_set == ZYDIS_ISA_SET_AES ||
            in.z.meta.isa_set == ZYDIS_ISA_SET_PCLMULQDQ || in.z.meta.isa_set == ZYDIS_ISA_SET_CMPXCHG16B);
}

/* Operands of many words, whose parts a processor takes in an order of its own: cr2 may be anywhere in them. */
static bool is_large(const struct diff_outcome *o)
{
    struct fvm_insn in;
    if (!faulting(o, &in))
        return false;
    for (unsigned k = 0; k < in.z.operand_count; k++)
        if (in.ops[k].type == ZYDIS_OPERAND_TYPE_MEMORY && in.ops[k].size > 256)
            return true;
    return in.z.mnemonic == ZYDIS_MNEMONIC_FRSTOR || in.z.mnemonic == ZYDIS_MNEMONIC_FLDENV;
}

/* A near branch to a non-canonical address: processors fault at the branch, the engine at the target. */
static bool branch_to_nowhere(const struct diff_outcome *a, const struct diff_outcome *b)
{
    return a->vector == FVM_EXC_GP && b->vector == FVM_EXC_GP &&
           (uint64_t)((int64_t)(b->state.rip << 16) >> 16) != b->state.rip;
}

static void compare_end(struct report *r, const struct diff_seq *s, const struct diff_outcome *a,
                        const struct diff_outcome *b)
{
    struct fvm_insn in;
    if (a->end != b->end) {
        differ(r,
               "native %s vector %u code %x cr2 %" PRIx64 " rip %" PRIx64 ", engine %s vector %u code %x cr2 %" PRIx64
               " rip %" PRIx64 "\n",
               a->end == DIFF_END ? "ended" : "fault", a->vector, a->code, a->cr2, a->state.rip,
               b->end == DIFF_END     ? "ended"
               : b->end == DIFF_LIMIT ? "never ended"
                                      : "fault",
               b->vector, b->code, b->cr2, b->state.rip);
        return;
    }
    if (a->state.rip != b->state.rip)
        differ(r, "rip: native %" PRIx64 " engine %" PRIx64 "\n", a->state.rip, b->state.rip);
    if (a->end != DIFF_FAULT)
        return;
    /* An address that is both misaligned and without rights: the processor finds the first, the engine the second. The
     * same with a pending x87 exception. */
    if (a->vector == FVM_EXC_GP && (b->vector == FVM_EXC_PF || b->vector == FVM_EXC_SS) && needs_alignment(a))
        return;
    /* Seen on AMD: a string operand whose offset is not canonical but whose address behind the segment base is. */
    if (a->vector == FVM_EXC_GP && b->vector == FVM_EXC_PF && faulting(a, &in) &&
        in.z.meta.category == ZYDIS_CATEGORY_STRINGOP && (in.z.attributes & ZYDIS_ATTRIB_HAS_SEGMENT))
        return;
    /* 32-bit code: an access across the 4 GiB boundary is beyond the segment; the engine's flat segments wrap. */
    if (a->bits == 32 && (a->vector == FVM_EXC_GP || a->vector == FVM_EXC_SS) && b->vector == FVM_EXC_PF &&
        b->cr2 + 64 >= 1ull << 32)
        return;
    if (a->vector == FVM_EXC_MF && (b->vector == FVM_EXC_PF || b->vector == FVM_EXC_GP || b->vector == FVM_EXC_SS))
        return;
    if (a->vector != b->vector || fault_code(a, s->kernel) != fault_code(b, s->kernel)) {
        char t[128];
        differ(r, "at %s\n", faulting(a, &in) ? fvm_decode_text(&in, a->state.rip, t, sizeof t) : "?");
        differ(r, "fault: native %u code %x cr2 %" PRIx64 ", engine %u code %x cr2 %" PRIx64 "\n", a->vector, a->code,
               a->cr2, b->vector, b->code, b->cr2);
    } else if (a->vector == FVM_EXC_PF && a->cr2 != b->cr2 && !(a->cr2 - b->cr2 + 512 < 1024 && is_large(a)))
        differ(r, "cr2: native %" PRIx64 " engine %" PRIx64 "\n", a->cr2, b->cr2);
}

/* A rep string instruction that overwrote itself: a processor goes on with it, the engine fetches again (both are
 * allowed). */
static bool rep_overwritten(const struct diff_seq *s, const struct diff_outcome *o)
{
    for (unsigned k = 0; k < s->n; k++) {
        struct fvm_insn in;
        const uint8_t *p = s->req.code + (s->at[k] - s->req.code_off);
        if (!s->insns[k].dropped && memcmp(o->mem + s->at[k], p, s->insns[k].len) &&
            fvm_decode(p, 15, o->bits, &in) == FVM_DECODE_OK && in.z.meta.category == ZYDIS_CATEGORY_STRINGOP)
            return true;
    }
    return false;
}

/* AMD's processors leave the registers that popa loaded before it faulted. */
static bool popa_faulted(const struct diff_outcome *a, const struct diff_outcome *b)
{
    struct fvm_insn in;
    return a->end == DIFF_FAULT && b->end == DIFF_FAULT && a->state.rip == b->state.rip && a->vector == b->vector &&
           faulting(a, &in) && (in.z.mnemonic == ZYDIS_MNEMONIC_POPA || in.z.mnemonic == ZYDIS_MNEMONIC_POPAD);
}

bool diff_equal(const struct diff_seq *s, const struct diff_outcome *a, const struct diff_outcome *b, char *text,
                size_t size)
{
    static const char *const names[16] = {"rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi",
                                          "r8",  "r9",  "r10", "r11", "r12", "r13", "r14", "r15"};
    struct report r = {.text = text, .size = size};
    text[0] = 0;
    if (a->end == DIFF_FAULT && b->end == DIFF_FAULT && branch_to_nowhere(a, b))
        return true;
    struct fvm_insn in;
    if (a->end == DIFF_FAULT && faulting(a, &in) && !diff_comparable(&in, s->kernel)) /* code that wrote itself anew */
        return true;
    if (popa_faulted(a, b))
        return true;
    if (rep_overwritten(s, a) || rep_overwritten(s, b))
        return true;
    compare_end(&r, s, a, b);
    for (unsigned k = 0; k < 16; k++)
        if (a->state.regs[k] != b->state.regs[k])
            differ(&r, "%s: native %016" PRIx64 " engine %016" PRIx64 "\n", names[k], a->state.regs[k],
                   b->state.regs[k]);
    uint64_t flags = 0x400 | (a->end == DIFF_END ? ARITH : live_flags(a));
    if ((a->state.rflags ^ b->state.rflags) & flags)
        differ(&r, "flags: native %03x engine %03x (compared: %03x)\n", (unsigned)a->state.rflags & 0xcd5,
               (unsigned)b->state.rflags & 0xcd5, (unsigned)flags);
    if (a->state.fs_base != b->state.fs_base || a->state.gs_base != b->state.gs_base)
        differ(&r, "fs/gs base: native %" PRIx64 " %" PRIx64 " engine %" PRIx64 " %" PRIx64 "\n", a->state.fs_base,
               a->state.gs_base, b->state.fs_base, b->state.gs_base);
    compare_vectors(&r, a->state.xsave, b->state.xsave, a->bits);
    compare_memory(&r, a, b);
    return !r.bad;
}
