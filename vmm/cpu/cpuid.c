/*
 * cpuid.c - what CPUID answers.
 *
 * Vendor GenuineIntel, family 6 model 0xfe (nobody's), on every host. Why Intel: Linux takes the TSC frequency from leaf 0x15 only
 * there (no calibration), IA32_ARCH_CAPABILITIES lets it do without page-table isolation and retpolines ("Enhanced
 * IBRS"), and no AMD family is free of return-thunk mitigations in the kernels of that time (0x17: retbleed, 0x19:
 * SRSO). The model is in no list: neither Linux' list of vulnerable ones,
 * nor those by which gcc's and glibc's dispatchers take more features for granted than CPUID says (target_clones).
 * IBRS, IBPB and STIBP are not offered, so that Linux does not issue barriers between processes.
 * The local APIC's timer must run at CRYSTAL_HZ: Linux takes that from leaf 0x15, too.
 */
#include <stdio.h>
#include <string.h>

#include "vmm/cpu/cpu_model.h"
#include "vmm/cpu/state.h"

enum { MAX_BASIC = 0x16 };
#define MAX_EXTENDED 0x80000008u
#define CRYSTAL_HZ 1000000000u
#define SIGNATURE 0x000f06e1u /* family 6, model 0xfe, stepping 1 */

static unsigned cpu_count(const struct fvm_vcpu *v) { return v->count ? v->count : 1; }

/* Bits of the APIC id that number the cores of the package. */
static unsigned core_bits(const struct fvm_vcpu *v)
{
    unsigned n = cpu_count(v), bits = 0;

    while ((1u << bits) < n)
        bits++;
    return bits;
}

static uint32_t word(const char *s)
{
    uint32_t x;

    memcpy(&x, s, 4);
    return x;
}

static void leaf_1(const struct fvm_vcpu *v, struct fvm_cpuid_leaf *ret)
{
    unsigned n = 1u << core_bits(v);

    ret->eax = SIGNATURE;
    ret->ebx = v->index << 24 | (n & 0xff) << 16 | 8 << 8;
    if (cpu_count(v) > 1)
        ret->edx |= 1u << 28; /* HTT: the count above is valid */
    if ((ret->ecx & (1u << 26)) && (v->cr4 & FVM_CR4_OSXSAVE))
        ret->ecx |= 1u << 27;
}

/* Deterministic caches: 32K+32K first level, 2M second, 32M third shared by the package. */
static void leaf_4(const struct fvm_vcpu *v, uint32_t sub, struct fvm_cpuid_leaf *ret)
{
    static const struct {
        uint8_t type, level;
        uint16_t ways;
        uint32_t sets;
    } caches[] = {{1, 1, 8, 64}, {2, 1, 8, 64}, {3, 2, 16, 2048}, {3, 3, 16, 32768}};
    uint32_t cores = (1u << core_bits(v)) - 1;

    if (sub >= FVM_ARRAY_SIZE(caches))
        return;
    ret->eax = caches[sub].type | (uint32_t)caches[sub].level << 5 | 1u << 8 | cores << 26;
    if (caches[sub].level == 3)
        ret->eax |= cores << 14;
    ret->ebx = 63u | (caches[sub].ways - 1u) << 22;
    ret->ecx = caches[sub].sets - 1;
}

/* Topology: one thread per core, all cores in one package. */
static void leaf_b(const struct fvm_vcpu *v, uint32_t sub, struct fvm_cpuid_leaf *ret)
{
    ret->ecx = sub & 0xff;
    ret->edx = v->index;
    if (sub == 0) {
        ret->ebx = 1;
        ret->ecx |= 1 << 8;
    } else if (sub == 1) {
        ret->eax = core_bits(v);
        ret->ebx = cpu_count(v);
        ret->ecx |= 2 << 8;
    }
}

static void leaf_d(const struct fvm_vcpu *v, uint32_t sub, struct fvm_cpuid_leaf *ret)
{
    if (v->model->level < 3)
        return;
    switch (sub) {
    case 0:
        ret->eax = (uint32_t)v->model->xcr0;
        ret->ebx = v->xcr0 & 4 ? 832 : 576;
        ret->ecx = 832;
        break;
    case 1:
        ret->eax = 1; /* XSAVEOPT */
        break;
    case 2:
        ret->eax = 256;
        ret->ebx = 576;
        break;
    default:
        break;
    }
}

/*
 * Best fraction num/den for khz / crystal_khz. Linux computes crystal_khz * num in 32 bits, which bounds num to 4294
 * for a crystal of 1 GHz; the best fraction below that is right to about 0.2 ppm (continued fraction).
 */
static void tsc_ratio(uint64_t khz, uint32_t *ret_num, uint32_t *ret_den)
{
    uint64_t a = khz, b = CRYSTAL_HZ / 1000, n0 = 0, n1 = 1, d0 = 1, d1 = 0;
    while (b) {
        uint64_t q = a / b, n2 = q * n1 + n0, d2 = q * d1 + d0, r = a % b;
        if (n2 > UINT32_MAX / (CRYSTAL_HZ / 1000))
            break;
        n0 = n1, n1 = n2, d0 = d1, d1 = d2, a = b, b = r;
    }
    *ret_num = (uint32_t)n1;
    *ret_den = (uint32_t)d1;
}

static void leaf_15_16(const struct fvm_vcpu *v, uint32_t leaf, struct fvm_cpuid_leaf *ret)
{
    uint32_t khz = v->clock ? fvm_clock_tsc_khz(v->clock) : fvm_clock_host_tsc_khz();

    if (leaf == 0x15) { /* TSC Hz = crystal * ebx / eax */
        tsc_ratio(khz, &ret->ebx, &ret->eax);
        ret->ecx = CRYSTAL_HZ;
    } else {
        ret->eax = ret->ebx = khz / 1000;
        ret->ecx = 100;
    }
}

static void brand(const struct fvm_vcpu *v, uint32_t leaf, struct fvm_cpuid_leaf *ret)
{
    char text[48] = {0};
    const char *p = text + (leaf - 0x80000002u) * 16;

    snprintf(text, sizeof(text), "%s virtual processor", v->model->name);
    *ret = (struct fvm_cpuid_leaf){word(p), word(p + 4), word(p + 8), word(p + 12)};
}

static void basic(const struct fvm_vcpu *v, uint32_t leaf, uint32_t sub, struct fvm_cpuid_leaf *ret)
{
    switch (leaf) {
    case 0:
        *ret = (struct fvm_cpuid_leaf){MAX_BASIC, word("Genu"), word("ntel"), word("ineI")};
        break;
    case 1:
        leaf_1(v, ret);
        break;
    case 2:
        ret->eax = 0x00feff01; /* see leaf 4 for caches */
        break;
    case 4:
        leaf_4(v, sub, ret);
        break;
    case 7:
        if (sub)
            *ret = (struct fvm_cpuid_leaf){0};
        break;
    case 0xb:
        leaf_b(v, sub, ret);
        break;
    case 0xd:
        leaf_d(v, sub, ret);
        break;
    case 0x15:
    case 0x16:
        leaf_15_16(v, leaf, ret);
        break;
    default:
        break;
    }
}

static void extended(const struct fvm_vcpu *v, uint32_t leaf, struct fvm_cpuid_leaf *ret)
{
    switch (leaf) {
    case 0x80000000u:
        ret->eax = MAX_EXTENDED;
        break;
    case 0x80000002u:
    case 0x80000003u:
    case 0x80000004u:
        brand(v, leaf, ret);
        break;
    case 0x80000006u:
        ret->ecx = 2048u << 16 | 8u << 12 | 64;
        break;
    case 0x80000008u:
        ret->eax = fvm_cpu_model_maxphyaddr(v->model) | 48u << 8;
        break;
    default:
        break;
    }
}

void fvm_cpuid(const struct fvm_vcpu *v, uint32_t leaf, uint32_t subleaf, struct fvm_cpuid_leaf *ret)
{
    *ret = (struct fvm_cpuid_leaf){0};
    if (leaf == 0x40000000u) {
        *ret = (struct fvm_cpuid_leaf){leaf, word("fvmf"), word("vmfv"), word("mfvm")};
        return;
    }
    if ((leaf < 0x80000000u && leaf > MAX_BASIC) || leaf > MAX_EXTENDED)
        return;
    fvm_cpu_model_leaf(v->model, leaf, ret);
    if (leaf < 0x80000000u)
        basic(v, leaf, subleaf, ret);
    else
        extended(v, leaf, ret);
}
