/* cpu/decode: widths, short and bad input, register numbers, what is a system instruction, what models allow. */
#include "tests/unit/cpu_fixture.h"

static int decode(const char *bytes, size_t n, unsigned bits, struct fvm_insn *i)
{
    return fvm_decode((const uint8_t *)bytes, n, bits, i);
}
#define DECODE(b, bits, i) decode(b, sizeof(b) - 1, bits, i)

static void lengths(void)
{
    struct fvm_insn i;
    char text[64];

    CU_ASSERT_EQUAL(DECODE("\x48\x8b\x03\x90\x90", 64, &i), FVM_DECODE_OK);
    CU_ASSERT_EQUAL(i.len, 3);
    CU_ASSERT_EQUAL(i.bytes[2], 3);
    CU_ASSERT_EQUAL(i.bytes[3], 0);
    CU_ASSERT_STRING_EQUAL(fvm_decode_text(&i, 0, text, sizeof(text)), "mov rax, [rbx]");
    CU_ASSERT_EQUAL(DECODE("\x48\x8b", 64, &i), FVM_DECODE_SHORT);
    CU_ASSERT_EQUAL(decode("", 0, 64, &i), FVM_DECODE_SHORT);
    CU_ASSERT_EQUAL(DECODE("\x06", 64, &i), FVM_DECODE_BAD); /* push es */
    CU_ASSERT_EQUAL(DECODE("\x06", 32, &i), FVM_DECODE_OK);
    CU_ASSERT_EQUAL(DECODE("\xb8\x01\x02\x03\x04", 16, &i), FVM_DECODE_OK);
    CU_ASSERT_EQUAL(i.len, 3);
    CU_ASSERT_EQUAL(DECODE("\x66\x66\x66\x66\x66\x66\x66\x66\x66\x66\x66\x66\x66\x66\x66\x90", 64, &i), FVM_DECODE_BAD);
}

static void registers(void)
{
    bool high;

    CU_ASSERT_EQUAL(fvm_decode_gpr(ZYDIS_REGISTER_R15, &high), 15);
    CU_ASSERT_EQUAL(fvm_decode_gpr(ZYDIS_REGISTER_ESP, &high), FVM_RSP);
    CU_ASSERT_EQUAL(fvm_decode_gpr(ZYDIS_REGISTER_SIL, &high), FVM_RSI);
    CU_ASSERT_FALSE(high);
    CU_ASSERT_EQUAL(fvm_decode_gpr(ZYDIS_REGISTER_R9B, &high), 9);
    CU_ASSERT_EQUAL(fvm_decode_gpr(ZYDIS_REGISTER_BH, &high), 7);
    CU_ASSERT_TRUE(high);
    CU_ASSERT_EQUAL(fvm_decode_gpr(ZYDIS_REGISTER_XMM1, NULL), -1);
    CU_ASSERT_EQUAL(fvm_decode_seg(ZYDIS_REGISTER_SS), FVM_SS);
    CU_ASSERT_EQUAL(fvm_decode_seg(ZYDIS_REGISTER_RAX), -1);
}

static void system_or_not(void)
{
    static const struct {
        const char *bytes;
        uint8_t n, bits;
        bool system;
    } t[] = {
        {"\x0f\x22\xc0", 3, 64, true},      /* mov cr0, rax */
        {"\x44\x0f\x22\xc0", 4, 64, true},  /* mov cr8, rax */
        {"\x0f\x23\xf8", 3, 64, true},      /* mov dr7, rax */
        {"\x8e\xd8", 2, 64, true},          /* mov ds, eax */
        {"\x48\x89\xd8", 3, 64, false},     /* mov rax, rbx */
        {"\x0f\xa8", 2, 64, true},          /* push gs */
        {"\x50", 1, 64, false},
        {"\xc3", 1, 64, false},             /* ret */
        {"\xcb", 1, 64, true},              /* retf */
        {"\xff\x28", 2, 64, true},          /* jmp far [rax] */
        {"\xff\x20", 2, 64, false},         /* jmp [rax] */
        {"\xea\0\0\0\0\x10\0", 7, 32, true},
        {"\x0f\x01\xf8", 3, 64, true},      /* swapgs */
        {"\x0f\xae\x20", 3, 64, true},      /* xsave [rax] */
        {"\x0f\xae\x38", 3, 64, false},     /* clflush [rax] */
        {"\x0f\xae\x10", 3, 64, false},     /* ldmxcsr [rax] */
        {"\xf3\x90", 2, 64, false},         /* pause */
        {"\x0f\x0b", 2, 64, true},          /* ud2 */
        {"\x6c", 1, 64, false},             /* insb */
        {"\x27", 1, 32, true},              /* daa */
        {"\xf3\x0f\xae\xc0", 4, 64, true},  /* rdfsbase eax */
    };
    struct fvm_insn i;

    for (unsigned k = 0; k < FVM_ARRAY_SIZE(t); k++) {
        CU_ASSERT_EQUAL_FATAL(decode(t[k].bytes, t[k].n, t[k].bits, &i), FVM_DECODE_OK);
        CU_ASSERT_EQUAL(fvm_insn_is_system(&i), t[k].system);
    }
}

static void nops_and_models(void)
{
    static const struct {
        const char *bytes;
        uint8_t n, level; /* lowest model that allows it, 9: none */
    } t[] = {
        {"\xf3\x0f\x1e\xfa", 4, 1},             /* endbr64 */
        {"\xf3\x48\x0f\x1e\xc8", 5, 1},         /* rdsspq rax: a NOP */
        {"\xf2\x0f\x1a\xc0", 4, 1},             /* bndcu: a NOP */
        {"\xf2\xc3", 2, 1},                     /* bnd ret */
        {"\x0f\x1c\x00", 3, 1},                 /* cldemote: a NOP */
        {"\xf3\x0f\xbc\xc1", 4, 1},             /* tzcnt: rep bsf */
        {"\xf3\x0f\xbd\xc1", 4, 3},             /* lzcnt */
        {"\x9f", 1, 1},                         /* lahf */
        {"\x0f\x0d\x08", 3, 1},                 /* prefetchw */
        {"\x48\x0f\xc7\x08", 4, 2},             /* cmpxchg16b */
        {"\xf3\x0f\xb8\xc1", 4, 2},             /* popcnt */
        {"\x66\x0f\x38\xdc\xc1", 5, 2},         /* aesenc */
        {"\x0f\xc7\xf0", 3, 2},                 /* rdrand */
        {"\x0f\x05", 2, 1},                     /* syscall */
        {"\xc5\xfc\x58\xc1", 4, 3},             /* vaddps ymm */
        {"\xc5\xfd\xfe\xc1", 4, 3},             /* vpaddd ymm */
        {"\xc4\xe2\xf5\xb8\xc2", 5, 3},         /* vfmadd231pd */
        {"\xc4\xe2\x78\xf2\xc1", 5, 3},         /* andn */
        {"\x0f\x38\xf0\x00", 4, 3},             /* movbe */
        {"\x0f\xae\x20", 3, 3},                 /* xsave */
        {"\x0f\xc7\x20", 3, 9},                 /* xsavec */
        {"\x0f\xc7\x28", 3, 9},                 /* xsaves */
        {"\x62\xf1\x7c\x48\x58\xc1", 6, 9},     /* vaddps zmm */
        {"\xc4\xe2\x7d\xdc\xc1", 5, 9},         /* vaesenc ymm */
        {"\x0f\xc7\xf8", 3, 9},                 /* rdseed */
        {"\xf3\x0f\xc7\xf8", 4, 9},             /* rdpid */
        {"\x66\x0f\x38\xf6\xc1", 5, 9},         /* adcx */
        {"\x0f\x38\xc8\xc1", 4, 9},             /* sha1nexte */
        {"\x0f\x01\xef", 3, 9},                 /* wrpkru */
        {"\x0f\x01\xca", 3, 9},                 /* clac */
        {"\x0f\x01\xc1", 3, 9},                 /* vmcall */
        {"\x0f\x01\xd5", 3, 9},                 /* xend */
        {"\x0f\x01\xc8", 3, 9},                 /* monitor */
        {"\x66\x0f\xae\x38", 4, 9},             /* clflushopt */
        {"\xf2\x0f\x79\xc1", 4, 9},             /* insertq: sse4a */
    };
    const struct fvm_cpu_model *m[4] = {0};
    struct fvm_insn i;

    CU_ASSERT_EQUAL_FATAL(fvm_cpu_model_find("fvm64-v1", &m[1], NULL), 0);
    CU_ASSERT_EQUAL_FATAL(fvm_cpu_model_find("fvm64-v2", &m[2], NULL), 0);
    (void)fvm_cpu_model_find("fvm64-v3", &m[3], NULL);
    for (unsigned k = 0; k < FVM_ARRAY_SIZE(t); k++) {
        CU_ASSERT_EQUAL_FATAL(decode(t[k].bytes, t[k].n, 64, &i), FVM_DECODE_OK);
        for (unsigned level = 1; level < 4 && m[level]; level++) {
            if (fvm_cpu_model_allows(m[level], &i) != (level >= t[k].level))
                printf("\n  row %u (%s) at level %u\n", k, ZydisMnemonicGetString(i.z.mnemonic), level);
            CU_ASSERT_EQUAL(fvm_cpu_model_allows(m[level], &i), level >= t[k].level);
        }
    }
}

int main(void)
{
    static const struct cpu_test tests[] = {{"lengths", lengths}, {"registers", registers},
                                            {"system_or_not", system_or_not}, {"nops_and_models", nops_and_models}};
    return run_tests("cpu/decode", tests, FVM_ARRAY_SIZE(tests));
}
