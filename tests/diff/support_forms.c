/*
 * support_forms.c - which encodings exist: every opcode of every map is put to the decoder and the CPU model with every
 * mandatory prefix, width, vector length and opcode extension; what both accept and what can be compared is a form.
 *
 * Forms are grouped by mnemonic, so that rare instructions are drawn as often as `add`, which has hundreds.
 */
#include <stdlib.h>
#include <string.h>

#include "tests/diff/support_diff.h"

struct table { /* filled once, before anything runs */
    struct diff_forms list;
    struct diff_form *forms;
    unsigned max, bits;
};
static struct table tables[2] = {{.bits = 64}, {.bits = 32}};

const struct diff_forms *diff_forms_of(unsigned bits) { return &tables[bits == 32].list; }

/* Instructions whose result is not a function of the state that is compared, or that ask for the kernel. */
static const ZydisMnemonic never[] = {
    /* time, random numbers, what processor this is: differ by design or from call to call */
    ZYDIS_MNEMONIC_RDTSC, ZYDIS_MNEMONIC_RDTSCP, ZYDIS_MNEMONIC_RDRAND, ZYDIS_MNEMONIC_RDSEED, ZYDIS_MNEMONIC_RDPMC,
    ZYDIS_MNEMONIC_RDPID, ZYDIS_MNEMONIC_CPUID, ZYDIS_MNEMONIC_XGETBV,
    /* the host's descriptor tables and machine status; Linux emulates some of them under UMIP */
    ZYDIS_MNEMONIC_SGDT, ZYDIS_MNEMONIC_SIDT, ZYDIS_MNEMONIC_SLDT, ZYDIS_MNEMONIC_STR, ZYDIS_MNEMONIC_SMSW,
    ZYDIS_MNEMONIC_LAR, ZYDIS_MNEMONIC_LSL, ZYDIS_MNEMONIC_VERR, ZYDIS_MNEMONIC_VERW,
    /* the kernel's entry points, debuggers, waiting */
    ZYDIS_MNEMONIC_SYSCALL, ZYDIS_MNEMONIC_SYSENTER, ZYDIS_MNEMONIC_INT, ZYDIS_MNEMONIC_INT1, ZYDIS_MNEMONIC_INT3,
    ZYDIS_MNEMONIC_INTO, ZYDIS_MNEMONIC_MONITOR, ZYDIS_MNEMONIC_MWAIT,
    /* the x87's instruction and data pointers (a known difference: they hold host addresses), XSAVE areas of other
     * sizes */
    ZYDIS_MNEMONIC_FNSTENV, ZYDIS_MNEMONIC_FNSAVE, ZYDIS_MNEMONIC_FXSAVE, ZYDIS_MNEMONIC_FXSAVE64,
    ZYDIS_MNEMONIC_XSAVE, ZYDIS_MNEMONIC_XSAVE64, ZYDIS_MNEMONIC_XSAVEOPT, ZYDIS_MNEMONIC_XSAVEOPT64,
    ZYDIS_MNEMONIC_XRSTOR, ZYDIS_MNEMONIC_XRSTOR64, ZYDIS_MNEMONIC_XSETBV,
    /* hints: the engine drops them, the processor may fault on their address */
    ZYDIS_MNEMONIC_CLFLUSH, ZYDIS_MNEMONIC_CLFLUSHOPT, ZYDIS_MNEMONIC_CLWB,
    /* segment registers: the host's tables have other selectors than the guest's */
    ZYDIS_MNEMONIC_LFS, ZYDIS_MNEMONIC_LGS, ZYDIS_MNEMONIC_LSS, ZYDIS_MNEMONIC_LES, ZYDIS_MNEMONIC_LDS,
    ZYDIS_MNEMONIC_IRET, ZYDIS_MNEMONIC_IRETD, ZYDIS_MNEMONIC_IRETQ,
    /* transactions: never in the model, and UD in the engine */
    ZYDIS_MNEMONIC_XBEGIN, ZYDIS_MNEMONIC_XEND, ZYDIS_MNEMONIC_XABORT, ZYDIS_MNEMONIC_XTEST,
    /* not the same on every vendor's processors, and AMD's are refused in 64-bit mode */
    ZYDIS_MNEMONIC_SYSEXIT, ZYDIS_MNEMONIC_SYSRET,
    /* has a ModRM byte on Intel's, none on AMD's */
    ZYDIS_MNEMONIC_UD0,
};

static bool excluded(ZydisMnemonic m)
{
    for (size_t i = 0; i < FVM_ARRAY_SIZE(never); i++)
        if (m == never[i])
            return true;
    return false;
}

static bool privileged(const struct fvm_insn *in)
{
    return (in->z.attributes & ZYDIS_ATTRIB_IS_PRIVILEGED) || in->z.meta.category == ZYDIS_CATEGORY_IO ||
           in->z.meta.category == ZYDIS_CATEGORY_IOSTRINGOP || in->z.mnemonic == ZYDIS_MNEMONIC_CLI ||
           in->z.mnemonic == ZYDIS_MNEMONIC_STI || in->z.meta.category == ZYDIS_CATEGORY_SYSTEM;
}

bool diff_comparable(const struct fvm_insn *in, bool kernel)
{
    if (excluded(in->z.mnemonic) || in->z.meta.branch_type == ZYDIS_BRANCH_TYPE_FAR)
        return false;
    /* prefetch with a register operand: #UD on AMD's processors, nop on Intel's */
    if (in->z.opcode_map == ZYDIS_OPCODE_MAP_0F && in->z.opcode == 0x0d && in->z.raw.modrm.mod == 3)
        return false;
    if (kernel && privileged(in))
        return false;
    /* 66 before a near branch: Intel ignores it, AMD truncates rip */
    if (in->z.meta.branch_type != ZYDIS_BRANCH_TYPE_NONE)
        for (unsigned k = 0; k < in->z.raw.prefix_count; k++)
            if (in->bytes[k] == 0x66)
                return false;
    /* loading segment registers (reading them is fine) */
    for (unsigned k = 0; k < in->z.operand_count; k++)
        if (in->ops[k].type == ZYDIS_OPERAND_TYPE_REGISTER && fvm_decode_seg(in->ops[k].reg.value) >= 0 &&
            (in->ops[k].actions & ZYDIS_OPERAND_ACTION_MASK_WRITE) && in->z.mnemonic != ZYDIS_MNEMONIC_WRFSBASE &&
            in->z.mnemonic != ZYDIS_MNEMONIC_WRGSBASE && in->z.mnemonic != ZYDIS_MNEMONIC_SWAPGS)
            return false;
    return true;
}

static unsigned build(const struct diff_form *f, uint8_t *out)
{
    static const uint8_t pfx[4] = {0, 0x66, 0xf3, 0xf2};
    unsigned n = 0;
    if (f->map < 4) {
        if (f->pfx)
            out[n++] = pfx[f->pfx];
        if (f->w)
            out[n++] = 0x48;
        if (f->map)
            out[n++] = 0x0f;
        if (f->map > 1)
            out[n++] = f->map == 2 ? 0x38 : 0x3a;
    } else {
        out[n++] = 0xc4;
        out[n++] = (uint8_t)(0xe0 | (f->map - 3));
        out[n++] = (uint8_t)(f->w << 7 | 0x78 | f->l << 2 | f->pfx);
    }
    out[n++] = f->opcode;
    out[n++] = (uint8_t)(f->mem ? 0x40 | f->ext << 3 | 4 : 0xc0 | f->ext << 3 | 1);
    out[n++] = 0x13; /* SIB: [rbx + rdx] */
    memset(out + n, 1, 15 - n);
    return n;
}

static bool is_prefix(unsigned opcode, unsigned bits)
{
    return (bits == 64 && (opcode & 0xf0) == 0x40) || opcode == 0x66 || opcode == 0x67 || opcode == 0xf2 ||
           opcode == 0xf3 || opcode == 0xf0 || opcode == 0x26 || opcode == 0x2e || opcode == 0x36 || opcode == 0x3e ||
           opcode == 0x64 || opcode == 0x65 || opcode == 0xc4 || opcode == 0xc5 || opcode == 0x62 || opcode == 0x0f;
}

static void try_form(struct table *t, struct diff_form *f, const struct fvm_cpu_model *model)
{
    uint8_t b[16];
    struct fvm_insn in;
    build(f, b);
    if (f->map == 0 && is_prefix(f->opcode, t->bits))
        return;
    if (fvm_decode(b, 15, t->bits, &in) != FVM_DECODE_OK || !fvm_cpu_model_allows(model, &in) ||
        !diff_comparable(&in, false))
        return;
    f->modrm = (in.z.attributes & ZYDIS_ATTRIB_HAS_MODRM) != 0;
    if (!f->modrm && (f->ext || f->mem))
        return;
    f->mnemonic = (uint16_t)in.z.mnemonic;
    f->category = (uint16_t)in.z.meta.category;
    if (t->list.form_count == t->max) {
        t->max = t->max ? t->max * 2 : 4096;
        t->forms = realloc(t->forms, t->max * sizeof *t->forms);
    }
    t->forms[t->list.form_count++] = *f;
}

static uint32_t kinds_of(const struct diff_form *f)
{
    uint32_t k = 1u << DIFF_KIND_ANY;
    switch (f->category) {
    case ZYDIS_CATEGORY_BINARY:
    case ZYDIS_CATEGORY_LOGICAL:
    case ZYDIS_CATEGORY_DATAXFER:
    case ZYDIS_CATEGORY_SHIFT:
    case ZYDIS_CATEGORY_ROTATE:
    case ZYDIS_CATEGORY_BITBYTE:
    case ZYDIS_CATEGORY_SETCC:
    case ZYDIS_CATEGORY_CMOV:
    case ZYDIS_CATEGORY_FLAGOP:
    case ZYDIS_CATEGORY_PUSH:
    case ZYDIS_CATEGORY_POP:
    case ZYDIS_CATEGORY_SEMAPHORE:
    case ZYDIS_CATEGORY_CONVERT:
    case ZYDIS_CATEGORY_MISC:
    case ZYDIS_CATEGORY_BMI1:
    case ZYDIS_CATEGORY_BMI2:
    case ZYDIS_CATEGORY_NOP:
    case ZYDIS_CATEGORY_WIDENOP:
    case ZYDIS_CATEGORY_LZCNT:
        k |= 1u << DIFF_KIND_INT | 1u << DIFF_KIND_MEM | 1u << DIFF_KIND_BRANCH | 1u << DIFF_KIND_SMC;
        break;
    case ZYDIS_CATEGORY_STRINGOP:
        k |= 1u << DIFF_KIND_STRING;
        break;
    case ZYDIS_CATEGORY_X87_ALU:
    case ZYDIS_CATEGORY_MMX:
    case ZYDIS_CATEGORY_FCMOV:
        k |= 1u << DIFF_KIND_X87;
        break;
    default:
        if (f->map >= 4)
            k |= 1u << DIFF_KIND_AVX;
        else if (f->map >= 1)
            k |= 1u << DIFF_KIND_SSE;
    }
    return k;
}

static int by_mnemonic(const void *a, const void *b)
{
    const struct diff_form *x = *(const struct diff_form *const *)a, *y = *(const struct diff_form *const *)b;
    return x->mnemonic != y->mnemonic ? (int)x->mnemonic - (int)y->mnemonic : x < y ? -1 : 1;
}

static void make_groups(struct table *t)
{
    unsigned n = t->list.form_count;
    struct diff_group *groups = calloc(n, sizeof *groups), *last = NULL;
    const struct diff_form **p = calloc(n, sizeof *p);
    for (unsigned k = 0; k < n; k++)
        p[k] = &t->forms[k];
    qsort(p, n, sizeof *p, by_mnemonic);
    for (unsigned k = 0; k < n; k++) {
        if (!last || p[k]->mnemonic != last->mnemonic) {
            last = &groups[t->list.group_count++];
            *last = (struct diff_group){.forms = p + k, .mnemonic = p[k]->mnemonic};
        }
        last->count++;
        last->kinds |= kinds_of(p[k]) | 1u << DIFF_KIND_C32;
    }
    t->list.groups = groups;
}

void diff_forms_init(const struct fvm_cpu_model *model)
{
    for (struct table *t = tables; t < tables + FVM_ARRAY_SIZE(tables); t++) {
        unsigned widths = t->bits == 64 ? 2 : 1; /* of REX.W or VEX.W */
        for (unsigned map = 0; map < 7; map++)
            for (unsigned op = 0; op < 256; op++)
                for (unsigned v = 0; v < 4 * 8 * 2 * 2 * (map >= 4 ? 2 : 1); v++) {
                    struct diff_form f = {.map = (uint8_t)map,
                                          .opcode = (uint8_t)op,
                                          .pfx = v & 3,
                                          .ext = v >> 2 & 7,
                                          .mem = v >> 5 & 1,
                                          .w = v >> 6 & 1,
                                          .l = (v >> 7) & 1};
                    /* outside 64-bit mode W of vpinsrd and vpextrd is #UD or ignored: vendors differ */
                    if (f.w < widths || (map >= 4 && !(map == 6 && (op == 0x16 || op == 0x22))))
                        try_form(t, &f, model);
                }
        make_groups(t);
    }
}

unsigned diff_gen_forms(unsigned *ret_mnemonics)
{
    *ret_mnemonics = tables[0].list.group_count;
    return tables[0].list.form_count;
}
