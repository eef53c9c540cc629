/* cpu/cpuid and models: names and refusals, features by level, what Linux reads to run without mitigations. */
#include "tests/unit/cpu_fixture.h"

static void names(void)
{
    const struct fvm_cpu_model *m;
    struct fvm_err err;

    CU_ASSERT_EQUAL(fvm_cpu_model_find("fvm64-v2", &m, &err), 0);
    CU_ASSERT_STRING_EQUAL(fvm_cpu_model_name(m), "fvm64-v2");
    CU_ASSERT_EQUAL(fvm_cpu_model_xcr0(m), 3);
    CU_ASSERT_EQUAL(fvm_cpu_model_find("fvm64-v4", &m, &err), FVM_EUNSUPPORTED);
    CU_ASSERT_PTR_NOT_NULL(strstr(err.text, "fvm64-v3"));
    CU_ASSERT_EQUAL(fvm_cpu_model_find("core2duo", &m, &err), FVM_ENOENT);
    CU_ASSERT_PTR_NOT_NULL(strstr(err.text, "fvm64-v1"));
    CU_ASSERT_STRING_EQUAL(fvm_cpu_model_name(m), "fvm64-v2"); /* untouched on failure */
    CU_ASSERT_EQUAL(fvm_cpu_model_find(NULL, &m, &err), 0);
}

static struct fvm_cpuid_leaf leaf(struct cpu_fixture *f, uint32_t n, uint32_t sub)
{
    struct fvm_cpuid_leaf l;

    f->v->regs[FVM_RAX] = 0xffffffff00000000ull | n;
    f->v->regs[FVM_RCX] = sub;
    CU_ASSERT_EQUAL(EXEC(f, "\x0f\xa2"), 0);
    l = (struct fvm_cpuid_leaf){(uint32_t)f->v->regs[FVM_RAX], (uint32_t)f->v->regs[FVM_RBX],
                                (uint32_t)f->v->regs[FVM_RCX], (uint32_t)f->v->regs[FVM_RDX]};
    CU_ASSERT_EQUAL(f->v->regs[FVM_RAX] >> 32, 0);
    return l;
}

static void identity(void)
{
    struct cpu_fixture f;
    struct fvm_cpuid_leaf l;

    fixture_long(&f);
    l = leaf(&f, 0, 0);
    CU_ASSERT_EQUAL(memcmp(&l.ebx, "Genu", 4), 0);
    CU_ASSERT_EQUAL(l.eax, 0x16);
    l = leaf(&f, 0x40000000, 0);
    CU_ASSERT_EQUAL(memcmp(&l.ebx, "fvmfvmfvmfvm", 12), 0);
    l = leaf(&f, 0x80000002, 0);
    CU_ASSERT_EQUAL(memcmp(&l, "fvm64-v", 7), 0);
    l = leaf(&f, 0x80000008, 0);
    CU_ASSERT_EQUAL(l.eax, 0x302e);
    l = leaf(&f, 0x50000000, 0);
    CU_ASSERT_EQUAL(l.eax | l.ebx | l.ecx | l.edx, 0);
    fixture_end(&f);
}

static void features_by_level(void)
{
    struct cpu_fixture f;
    struct fvm_cpuid_leaf l;

    fixture_long(&f);
    CU_ASSERT_EQUAL_FATAL(fvm_cpu_model_find("fvm64-v1", &f.v->model, NULL), 0);
    l = leaf(&f, 1, 0);
    CU_ASSERT_EQUAL(l.ecx, 1u << 17 | 1u << 21 | 1u << 24 | 1u << 31); /* pcid x2apic tsc-deadline hypervisor */
    CU_ASSERT_EQUAL(leaf(&f, 7, 0).ebx & (1u << 5), 0);
    if (fvm_cpu_model_find("fvm64-v3", &f.v->model, NULL) == 0) {
        l = leaf(&f, 1, 0);
        CU_ASSERT_EQUAL(l.ecx & (1u << 28 | 1u << 26 | 1u << 12), 1u << 28 | 1u << 26 | 1u << 12);
        CU_ASSERT(l.ecx & (1u << 27)); /* OSXSAVE follows CR4 */
        f.v->cr4 &= ~FVM_CR4_OSXSAVE;
        CU_ASSERT_FALSE(leaf(&f, 1, 0).ecx & (1u << 27));
        l = leaf(&f, 7, 0);
        CU_ASSERT(l.ebx & (1u << 5));
        CU_ASSERT_FALSE(l.ebx & (1u << 20));            /* no SMAP */
        CU_ASSERT_FALSE(l.ebx & (1u << 16));            /* no AVX-512 */
        CU_ASSERT_EQUAL(l.edx, 1u << 4 | 1u << 29);     /* FSRM, ARCH_CAPABILITIES; no IBRS/IBPB/STIBP */
        CU_ASSERT_EQUAL(leaf(&f, 7, 1).ebx, 0);
        CU_ASSERT_EQUAL(leaf(&f, 0xd, 0).eax, 7);
        CU_ASSERT_EQUAL(leaf(&f, 0xd, 0).ebx, 832);
        f.v->xcr0 = 1;
        CU_ASSERT_EQUAL(leaf(&f, 0xd, 0).ebx, 576);
        CU_ASSERT_EQUAL(leaf(&f, 0xd, 1).eax, 1);
        CU_ASSERT_EQUAL(leaf(&f, 0xd, 2).ebx, 576);
    }
    fixture_end(&f);
}

static void topology(void)
{
    struct cpu_fixture f;
    struct fvm_cpuid_leaf l;

    fixture_long(&f);
    f.v->count = 6;
    f.v->index = 5;
    CU_ASSERT_EQUAL(leaf(&f, 1, 0).ebx, 5u << 24 | 8u << 16 | 0x800);
    CU_ASSERT(leaf(&f, 1, 0).edx & (1u << 28));
    l = leaf(&f, 0xb, 0);
    CU_ASSERT(l.eax == 0 && l.ebx == 1 && l.ecx == 0x100 && l.edx == 5);
    l = leaf(&f, 0xb, 1);
    CU_ASSERT(l.eax == 3 && l.ebx == 6 && l.ecx == 0x201 && l.edx == 5);
    CU_ASSERT_EQUAL(leaf(&f, 0xb, 2).ecx, 2);
    CU_ASSERT_EQUAL(leaf(&f, 4, 0).eax >> 26, 7);
    CU_ASSERT_EQUAL(leaf(&f, 4, 4).eax, 0);
    fixture_end(&f);
}

static void frequency(void)
{
    struct cpu_fixture f;
    struct fvm_cpuid_leaf l;
    uint32_t khz, want;

    fixture_long(&f);
    l = leaf(&f, 0x15, 0);
    /* as Linux computes it: crystal kHz * numerator in 32 bits */
    CU_ASSERT((uint64_t)(l.ecx / 1000) * l.ebx <= UINT32_MAX);
    khz = l.ecx / 1000 * l.ebx / l.eax;
    want = fvm_clock_tsc_khz(f.v->clock);
    CU_ASSERT((khz > want ? khz - want : want - khz) <= want / 1000000 + 1);
    CU_ASSERT_EQUAL(leaf(&f, 0x16, 0).eax, fvm_clock_tsc_khz(f.v->clock) / 1000);
    CU_ASSERT(leaf(&f, 0x80000007, 0).edx & (1u << 8));
    fixture_end(&f);
}

int main(void)
{
    static const struct cpu_test tests[] = {{"names", names}, {"identity", identity},
                                            {"features_by_level", features_by_level}, {"topology", topology},
                                            {"frequency", frequency}};
    return run_tests("cpu/cpuid", tests, FVM_ARRAY_SIZE(tests));
}
