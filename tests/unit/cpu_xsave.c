/* cpu/xsave against the host's own XSAVE, XRSTOR, FXSAVE, FXRSTOR on the same images; the SDM's faults. */
#include <cpuid.h>

#include "tests/unit/cpu_fixture.h"

#define AREA 0x29000u
struct image {
    uint8_t b[FVM_XSAVE_BYTES];
} __attribute__((aligned(64)));

/* Each asm block brings the guest's state in, runs the one instruction and leaves with the host's state restored. */
static void host_xsave(const struct image *state, struct image *out, uint32_t mask)
{
    static struct image keep;

    __asm__ volatile("mov $7, %%eax\n xor %%edx, %%edx\n xsave64 (%0)\n xrstor64 (%1)\n"
                     "mov %3, %%eax\n xsave64 (%2)\n mov $7, %%eax\n xrstor64 (%0)\n"
                     :
                     : "r"(&keep), "r"(state), "r"(out), "r"(mask)
                     : "rax", "rdx", "memory");
}
static void host_xrstor(const struct image *state, const struct image *in, uint32_t mask, struct image *out)
{
    static struct image keep;

    memset(out, 0, sizeof(*out));
    __asm__ volatile("mov $7, %%eax\n xor %%edx, %%edx\n xsave64 (%0)\n xrstor64 (%1)\n"
                     "mov %4, %%eax\n xrstor64 (%2)\n mov $7, %%eax\n xsave64 (%3)\n xrstor64 (%0)\n"
                     :
                     : "r"(&keep), "r"(state), "r"(in), "r"(out), "r"(mask)
                     : "rax", "rdx", "memory");
}
static void host_fxsave(const struct image *state, uint8_t *out)
{
    static struct image keep;

    __asm__ volatile("mov $7, %%eax\n xor %%edx, %%edx\n xsave64 (%0)\n xrstor64 (%1)\n fxsave64 (%2)\n xrstor64 (%0)\n"
                     :
                     : "r"(&keep), "r"(state), "r"(out)
                     : "rax", "rdx", "memory");
}

static uint64_t seed;
static uint8_t rnd(void)
{
    seed = seed * 6364136223846793005ull + 1442695040888963407ull;
    return (uint8_t)(seed >> 33);
}

/* A valid image: random registers, XSTATE_BV = bv. */
static void random_image(struct image *m, uint64_t bv)
{
    uint32_t mxcsr = 0x1f80u | (rnd() & 0x3fu) | (uint32_t)(rnd() & 3) << 13;

    for (unsigned i = 0; i < sizeof(m->b); i++)
        m->b[i] = rnd();
    memset(m->b, 0, 32);
    m->b[0] = 0x7f;
    m->b[1] = (uint8_t)(rnd() & 0x0f);
    m->b[3] = (uint8_t)(rnd() & 0x38); /* TOP, no pending exception */
    m->b[4] = rnd();
    memcpy(m->b + 24, &mxcsr, 4);
    for (unsigned i = 0; i < 8; i++)
        memset(m->b + 32 + 16 * i + 10, 0, 6);
    memset(m->b + 512, 0, 64);
    memcpy(m->b + 512, &bv, 8);
}

/* What may differ: FOP/FIP/FDP (AMD keeps them only with an exception pending), MXCSR_MASK. */
static void blank(uint8_t *b)
{
    memset(b + 6, 0, 18);
    memset(b + 28, 0, 4);
}

static bool have_avx(void)
{
    const struct fvm_cpu_model *m;

    return fvm_cpu_model_find("fvm64-v3", &m, NULL) == 0;
}

static void set_mask(struct cpu_fixture *f, uint32_t mask)
{
    f->v->regs[FVM_RAX] = mask;
    f->v->regs[FVM_RDX] = 0;
    f->v->regs[FVM_RBX] = AREA;
}

static void save_like_host(void)
{
    struct cpu_fixture f;
    struct image state, host;
    uint8_t *guest;

    fixture_long(&f);
    guest = fvm_ram_hva(f.v->ram, AREA);
    seed = 1;
    for (unsigned round = 0; round < 64; round++) {
        uint32_t mask = round & 7, bv = round >> 3;

        random_image(&state, bv | 1); /* an AMD host reports x87 as always in use */
        memcpy(f.v->xsave, state.b, sizeof(state.b));
        memset(&host, 0xcc, sizeof(host));
        memset(host.b + 512, 0, 64);
        memcpy(guest, host.b, sizeof(host.b));
        host_xsave(&state, &host, mask);
        set_mask(&f, mask);
        CU_ASSERT_EQUAL_FATAL(EXEC(&f, "\x48\x0f\xae\x23"), 0); /* xsave64 [rbx] */
        blank(host.b);
        blank(guest);
        CU_ASSERT_EQUAL(memcmp(guest, host.b, 512), 0);
        CU_ASSERT_EQUAL(memcmp(guest + 520, host.b + 520, sizeof(host.b) - 520), 0);
        /* XSTATE_BV: within what was asked for, the host may report a component as in use that need not be */
        CU_ASSERT_EQUAL(guest[512] & ~host.b[512], 0);
        CU_ASSERT_EQUAL(guest[512], (bv | 1) & mask);
    }
    fixture_end(&f);
}

static void restore_like_host(void)
{
    struct cpu_fixture f;
    struct image state, in, host, got;

    fixture_long(&f);
    seed = 2;
    for (unsigned round = 0; round < 512; round++) {
        uint32_t mask = round & 7, bv = (round >> 3) & 7;

        random_image(&state, (round >> 6) | 1);
        random_image(&in, bv);
        memcpy(f.v->xsave, state.b, sizeof(state.b));
        memcpy(fvm_ram_hva(f.v->ram, AREA), in.b, sizeof(in.b));
        host_xrstor(&state, &in, mask, &host);
        set_mask(&f, mask);
        CU_ASSERT_EQUAL_FATAL(EXEC(&f, "\x48\x0f\xae\x2b"), 0); /* xrstor64 [rbx] */
        memcpy(state.b, f.v->xsave, sizeof(state.b)); /* what the engine would load */
        memset(&got, 0, sizeof(got));
        host_xsave(&state, &got, 7);
        blank(host.b);
        blank(got.b);
        CU_ASSERT_EQUAL(memcmp(got.b, host.b, 512), 0);
        CU_ASSERT_EQUAL(memcmp(got.b + 576, host.b + 576, 256), 0);
    }
    fixture_end(&f);
}

static void xsaveopt_skips_unused(void)
{
    struct cpu_fixture f;
    struct image state;
    uint8_t *guest;

    fixture_long(&f);
    guest = fvm_ram_hva(f.v->ram, AREA);
    seed = 3;
    random_image(&state, 3);
    memcpy(f.v->xsave, state.b, sizeof(state.b));
    memset(guest, 0x5a, 832);
    memset(guest + 512, 0, 64);
    guest[512] = 4;
    set_mask(&f, 7);
    CU_ASSERT_EQUAL(EXEC(&f, "\x48\x0f\xae\x33"), 0); /* xsaveopt64 */
    CU_ASSERT_EQUAL(guest[512], 3);
    CU_ASSERT_EQUAL(guest[576], 0x5a);
    CU_ASSERT_EQUAL(memcmp(guest + 160, state.b + 160, 256), 0);
    fixture_end(&f);
}

static void fx_like_host(void)
{
    struct cpu_fixture f;
    struct image state;
    static uint8_t host[512] __attribute__((aligned(64)));
    uint8_t *guest;

    fixture_long(&f);
    guest = fvm_ram_hva(f.v->ram, AREA);
    seed = 4;
    for (unsigned round = 0; round < 32; round++) {
        random_image(&state, (round & 7) | 1);
        memcpy(f.v->xsave, state.b, sizeof(state.b));
        memset(host, 0xcc, sizeof(host));
        memset(guest, 0xcc, 512);
        host_fxsave(&state, host);
        set_mask(&f, 0);
        CU_ASSERT_EQUAL(EXEC(&f, "\x48\x0f\xae\x03"), 0); /* fxsave64 [rbx] */
        blank(host);
        blank(guest);
        CU_ASSERT_EQUAL(memcmp(guest, host, 416), 0);
        random_image(&state, 7);
        memcpy(guest, state.b, 512);
        CU_ASSERT_EQUAL(EXEC(&f, "\x48\x0f\xae\x0b"), 0); /* fxrstor64 */
        CU_ASSERT_EQUAL(memcmp(f.v->xsave, state.b, 6), 0);
        CU_ASSERT_EQUAL(memcmp(f.v->xsave + 24, state.b + 24, 4), 0);
        CU_ASSERT_EQUAL(memcmp(f.v->xsave + 32, state.b + 32, 416 - 32), 0);
        CU_ASSERT_EQUAL(f.v->xsave[512] & 3, 3);
    }
    fixture_end(&f);
}

static void faults(void)
{
    struct cpu_fixture f;
    struct image in;
    uint8_t *guest, before[FVM_XSAVE_BYTES];

    fixture_long(&f);
    guest = fvm_ram_hva(f.v->ram, AREA);
    seed = 5;
    random_image(&in, 7);
    memcpy(before, f.v->xsave, sizeof(before));
    set_mask(&f, 7);
    f.v->regs[FVM_RBX] = AREA + 16;
    CU_ASSERT_EQUAL(EXEC(&f, "\x0f\xae\x23"), FVM_FAULT); /* xsave: 64-byte alignment */
    ASSERT_FAULT(&f, FVM_EXC_GP, 0);
    CU_ASSERT_EQUAL(EXEC(&f, "\x0f\xae\x03"), 0); /* fxsave: 16 */
    f.v->regs[FVM_RBX] = AREA + 8;
    CU_ASSERT_EQUAL(EXEC(&f, "\x0f\xae\x03"), FVM_FAULT);
    f.v->regs[FVM_RBX] = AREA;
    static const struct {
        unsigned off;
        uint8_t value;
    } bad[] = {{512, 0x0f}, {519, 0x80}, {520, 1}, {527, 0x80}, {528, 1}, {535, 1}, {26, 1}};
    for (unsigned i = 0; i < FVM_ARRAY_SIZE(bad); i++) {
        memcpy(guest, in.b, sizeof(in.b));
        guest[bad[i].off] = bad[i].value;
        CU_ASSERT_EQUAL(EXEC(&f, "\x0f\xae\x2b"), FVM_FAULT);
        ASSERT_FAULT(&f, FVM_EXC_GP, 0);
        CU_ASSERT_EQUAL(memcmp(before, f.v->xsave, sizeof(before)), 0);
    }
    f.v->regs[FVM_RBX] = T_HOLE - 576; /* the AVX part is in an absent page: nothing is written before the fault */
    memset(fvm_ram_hva(f.v->ram, T_HOLE - 576), 0x3c, 576);
    CU_ASSERT_EQUAL(EXEC(&f, "\x0f\xae\x23"), FVM_FAULT);
    ASSERT_FAULT(&f, FVM_EXC_PF, 2);
    CU_ASSERT_EQUAL(*fvm_ram_hva(f.v->ram, T_HOLE - 576), 0x3c);
    f.v->regs[FVM_RBX] = AREA;
    f.v->cr0 |= FVM_CR0_TS;
    CU_ASSERT_EQUAL(EXEC(&f, "\x0f\xae\x23"), FVM_FAULT);
    ASSERT_FAULT(&f, FVM_EXC_NM, 0);
    f.v->cr0 &= ~FVM_CR0_TS;
    f.v->cr4 &= ~FVM_CR4_OSXSAVE;
    CU_ASSERT_EQUAL(EXEC(&f, "\x0f\xae\x23"), FVM_FAULT);
    ASSERT_FAULT(&f, FVM_EXC_UD, 0);
    CU_ASSERT_EQUAL(EXEC(&f, "\x0f\x01\xd0"), FVM_FAULT); /* xgetbv */
    fixture_end(&f);
}

static void xcr0(void)
{
    struct cpu_fixture f;

    fixture_long(&f);
    f.v->regs[FVM_RCX] = 0;
    f.v->regs[FVM_RDX] = 0;
    for (unsigned x = 0; x < 16; x++) {
        bool ok = x == 1 || x == 3 || x == 7;

        f.v->regs[FVM_RAX] = x;
        CU_ASSERT_EQUAL(EXEC(&f, "\x0f\x01\xd1"), ok ? 0 : FVM_FAULT);
        CU_ASSERT_EQUAL(EXEC(&f, "\x0f\x01\xd0"), 0);
        CU_ASSERT_EQUAL(f.v->regs[FVM_RAX], f.v->xcr0);
        CU_ASSERT(!ok || f.v->xcr0 == x);
    }
    set_ring(&f, 3, 64);
    CU_ASSERT_EQUAL(EXEC(&f, "\x0f\x01\xd1"), FVM_FAULT);
    ASSERT_FAULT(&f, FVM_EXC_GP, 0);
    fixture_end(&f);
}

int main(void)
{
    static const struct cpu_test tests[] = {
        {"save_like_host", save_like_host}, {"restore_like_host", restore_like_host},
        {"xsaveopt_skips_unused", xsaveopt_skips_unused}, {"fx_like_host", fx_like_host},
        {"faults", faults}, {"xcr0", xcr0},
    };

    if (!have_avx()) {
        printf("skipped: this host has no fvm64-v3\n");
        return 77;
    }
    return run_tests("cpu/xsave", tests, FVM_ARRAY_SIZE(tests));
}
