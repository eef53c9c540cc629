/*
 * cpu_model.c - the named models: which features each has, whether this host can give it, which instructions it allows.
 *
 * cpu_features.def is the one list; CPUID answers, the host check and the refusal text all come from it.
 */
#include <cpuid.h>
#include <stdio.h>
#include <string.h>

#include "vmm/cpu/cpu_model.h"

enum { LEVEL_NEVER = 99 };

static const struct fvm_cpu_model models[] = {
    {"fvm64-v1", 1, 3}, {"fvm64-v2", 2, 3}, {"fvm64-v3", 3, 7},
};

enum { EAX, EBX, ECX, EDX };
static const struct feature {
    const char *name;
    uint32_t leaf;
    uint8_t reg, bit, level, host;
} features[] = {
#define FVM_FEATURE(name, leaf, reg, bit, level, host) {name, leaf, reg, bit, level, host},
#include "vmm/cpu/cpu_features.def"
#undef FVM_FEATURE
};

static uint32_t *leaf_reg(struct fvm_cpuid_leaf *l, unsigned reg)
{
    switch (reg) {
    case EAX:
        return &l->eax;
    case EBX:
        return &l->ebx;
    case ECX:
        return &l->ecx;
    default:
        return &l->edx;
    }
}

void fvm_cpu_model_leaf(const struct fvm_cpu_model *model, uint32_t leaf, struct fvm_cpuid_leaf *ret)
{
    for (unsigned i = 0; i < FVM_ARRAY_SIZE(features); i++)
        if (features[i].leaf == leaf && features[i].level <= model->level)
            *leaf_reg(ret, features[i].reg) |= 1u << features[i].bit;
}

static bool host_has(const struct feature *f)
{
    struct fvm_cpuid_leaf l = {0};

    if (!__get_cpuid_count(f->leaf, 0, &l.eax, &l.ebx, &l.ecx, &l.edx))
        return false;
    return *leaf_reg(&l, f->reg) >> f->bit & 1;
}

/* AVX state must be enabled by the host's kernel as well. */
static bool host_enables_avx(void)
{
    uint32_t eax, ebx, ecx, edx;

    if (!__get_cpuid(1, &eax, &ebx, &ecx, &edx) || !(ecx & (1u << 27)))
        return false;
    __asm__ volatile("xgetbv" : "=a"(eax), "=d"(edx) : "c"(0));
    return (eax & 6) == 6;
}

/* NULL, or the name of a feature that the host lacks. */
static const char *missing(const struct fvm_cpu_model *model)
{
    for (unsigned i = 0; i < FVM_ARRAY_SIZE(features); i++)
        if (features[i].host && features[i].level <= model->level && !host_has(&features[i]))
            return features[i].name;
    if ((model->xcr0 & 4) && !host_enables_avx())
        return "avx (not enabled by the host's kernel)";
    return NULL;
}

static int find_default(const struct fvm_cpu_model **ret_model, struct fvm_err *err)
{
    for (unsigned i = FVM_ARRAY_SIZE(models); i-- > 0;) {
        if (!missing(&models[i])) {
            *ret_model = &models[i];
            return 0;
        }
    }
    return fvm_err_set(err, FVM_ECPUMODEL, 0, "cpu", "this host lacks %s, which every CPU model needs",
                       missing(&models[0]));
}

int fvm_cpu_model_find(const char *name, const struct fvm_cpu_model **ret_model, struct fvm_err *err)
{
    const char *lack;

    if (!name || !*name)
        return find_default(ret_model, err);
    if (!strcmp(name, "fvm64-v4"))
        return fvm_err_set(err, FVM_EUNSUPPORTED, 0, "cpu",
                           "CPU model fvm64-v4 (AVX-512) is not supported yet; use fvm64-v3");
    for (unsigned i = 0; i < FVM_ARRAY_SIZE(models); i++) {
        if (strcmp(name, models[i].name))
            continue;
        lack = missing(&models[i]);
        if (lack)
            return fvm_err_set(err, FVM_ECPUMODEL, 0, "cpu",
                               "this host cannot give CPU model %s: it lacks %s; choose a lower model", name, lack);
        *ret_model = &models[i];
        return 0;
    }
    return fvm_err_set(err, FVM_ENOENT, 0, "cpu", "no CPU model '%s'; there are fvm64-v1, fvm64-v2, fvm64-v3", name);
}

const char *fvm_cpu_model_name(const struct fvm_cpu_model *model) { return model->name; }
uint64_t fvm_cpu_model_xcr0(const struct fvm_cpu_model *model) { return model->xcr0; }
/* Far above any RAM, and within every 64-bit processor's page-table format. */
unsigned fvm_cpu_model_maxphyaddr(const struct fvm_cpu_model *model)
{
    (void)model;
    return 46;
}

/* Lowest level whose model has the instruction set. */
static unsigned isa_level(ZydisISASet set)
{
    switch (set) {
    case ZYDIS_ISA_SET_I86:
    case ZYDIS_ISA_SET_I186:
    case ZYDIS_ISA_SET_I286PROTECTED:
    case ZYDIS_ISA_SET_I286REAL:
    case ZYDIS_ISA_SET_I386:
    case ZYDIS_ISA_SET_I486:
    case ZYDIS_ISA_SET_I486REAL:
    case ZYDIS_ISA_SET_PENTIUMREAL:
    case ZYDIS_ISA_SET_PENTIUMMMX:
    case ZYDIS_ISA_SET_PPRO:
    case ZYDIS_ISA_SET_CMOV:
    case ZYDIS_ISA_SET_FCMOV:
    case ZYDIS_ISA_SET_X87:
    case ZYDIS_ISA_SET_SSE:
    case ZYDIS_ISA_SET_SSE2:
    case ZYDIS_ISA_SET_SSE2MMX:
    case ZYDIS_ISA_SET_SSEMXCSR:
    case ZYDIS_ISA_SET_SSE_PREFETCH:
    case ZYDIS_ISA_SET_PREFETCH_NOP:
    case ZYDIS_ISA_SET_CLFSH:
    case ZYDIS_ISA_SET_FXSAVE:
    case ZYDIS_ISA_SET_FXSAVE64:
    case ZYDIS_ISA_SET_FAT_NOP:
    case ZYDIS_ISA_SET_LAHF:
    case ZYDIS_ISA_SET_LONGMODE:
    case ZYDIS_ISA_SET_AMD: /* syscall, sysret of 32-bit code: judged when executed */
    case ZYDIS_ISA_SET_PAUSE:
    case ZYDIS_ISA_SET_RDPMC:
    case ZYDIS_ISA_SET_RDTSCP:
    case ZYDIS_ISA_SET_RDWRFSGS:
    case ZYDIS_ISA_SET_INVPCID:
        return 1;
    case ZYDIS_ISA_SET_SSE3:
    case ZYDIS_ISA_SET_SSE3X87:
    case ZYDIS_ISA_SET_SSSE3:
    case ZYDIS_ISA_SET_SSSE3MMX:
    case ZYDIS_ISA_SET_SSE4:
    case ZYDIS_ISA_SET_SSE42:
    case ZYDIS_ISA_SET_POPCNT:
    case ZYDIS_ISA_SET_CMPXCHG16B:
    case ZYDIS_ISA_SET_AES:
    case ZYDIS_ISA_SET_PCLMULQDQ:
    case ZYDIS_ISA_SET_RDRAND:
        return 2;
    case ZYDIS_ISA_SET_AVX:
    case ZYDIS_ISA_SET_AVX2:
    case ZYDIS_ISA_SET_AVX2GATHER:
    case ZYDIS_ISA_SET_AVXAES:
    case ZYDIS_ISA_SET_BMI1:
    case ZYDIS_ISA_SET_BMI2:
    case ZYDIS_ISA_SET_F16C:
    case ZYDIS_ISA_SET_FMA:
    case ZYDIS_ISA_SET_LZCNT:
    case ZYDIS_ISA_SET_MOVBE:
    case ZYDIS_ISA_SET_XSAVE:
    case ZYDIS_ISA_SET_XSAVEOPT:
        return 3;
    default:
        return LEVEL_NEVER;
    }
}

bool fvm_cpu_model_allows(const struct fvm_cpu_model *model, const struct fvm_insn *insn)
{
    switch (insn->z.mnemonic) {
    case ZYDIS_MNEMONIC_TZCNT: /* "rep bsf", which compilers emit for any processor; equal where bsf is defined */
    case ZYDIS_MNEMONIC_PREFETCHW:
    case ZYDIS_MNEMONIC_PREFETCHWT1: /* hints */
    case ZYDIS_MNEMONIC_PREFETCH:
        return true;
    default:
        return isa_level(insn->z.meta.isa_set) <= model->level;
    }
}
