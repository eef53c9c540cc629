/*
 * support_diff.h - the parts of tests/diff: one generated sequence (support_gen.c) runs on the host's own processor
 * (support_native.c) and in the engine (support_guest.c); support_compare.c says whether the two agree.
 *
 * Both see the same linear address space:
 *
 *     0x10000000  3 pages  code, writable and executable       0x20006000  2 pages  data
 *     0x20000000  4 pages  data                                0x30000000  2 pages  stack
 *     0x20004000  1 page   not mapped                          0x222200000000  2 pages  data
 *     0x20005000  1 page   read only                           0x40000000      1 page   XSAVE areas
 *     all else is not mapped
 *
 * An image is the bytes of all these pages, in this order. In the guest no two of them are neighbours in guest RAM.
 */
#ifndef FVM_TESTS_DIFF_H
#define FVM_TESTS_DIFF_H

#include <stdio.h>

#include "vmm/cpu/cpuid.h"
#include "vmm/cpu/decode.h"
#include "vmm/cpu/state.h"

#define DIFF_PAGES 15
#define DIFF_CODE_PAGES 3
#define DIFF_IMAGE_BYTES (DIFF_PAGES * 4096)
#define DIFF_CODE 0x10000000ull
#define DIFF_DATA 0x20000000ull
#define DIFF_HIGH 0x222200000000ull
#define DIFF_STACK 0x30000000ull
#define DIFF_XSAVE 832
#define DIFF_SAVE 0x40000000ull
#define DIFF_XSAVE_AREA (DIFF_SAVE + 0x400) /* where sequences save and restore vectors */
#define DIFF_CODE_MAX 2048
#define DIFF_INSNS_MAX 64
#define DIFF_POKES 24

enum { DIFF_W = 1, DIFF_X = 2 };
struct diff_page {
    uint64_t va;
    unsigned rights;
};
extern const struct diff_page diff_pages[DIFF_PAGES];
/** Index of the page that holds va, or -1. */
int diff_page_of(uint64_t va);

/** The processor, before or after. */
struct diff_state {
    uint64_t regs[16], rip, rflags, fs_base, gs_base;
    uint8_t xsave[DIFF_XSAVE] __attribute__((aligned(64)));
};

enum diff_end { DIFF_END, DIFF_FAULT, DIFF_LIMIT, DIFF_DISCARD /* native only: not to be compared */ };
struct diff_outcome {
    uint32_t end;
    uint32_t bits;         /* 64 or 32 */
    uint32_t vector, code; /* code: of vectors that have one */
    uint64_t cr2;
    struct diff_state state;
    uint8_t mem[DIFF_IMAGE_BYTES] __attribute__((aligned(64)));
};

/** What a sequence is made of when it runs: shared with the native child. */
struct diff_request {
    uint32_t bits;               /* 64, or 32: compatibility mode */
    uint32_t code_off, code_len; /* within the code pages */
    uint64_t end_rip;
    uint8_t code[DIFF_CODE_MAX];
    uint32_t poke_off[DIFF_POKES]; /* 8 bytes each that differ from the base image */
    uint64_t poke[DIFF_POKES];
    struct diff_state init;
};
/** The base image with a request's pokes and code in it. */
void diff_image(const struct diff_request *req, const uint8_t *base, uint8_t *ret);
void diff_base_image(uint8_t *ret);

/* ---- support_gen.c, support_forms.c ---- */
enum diff_kind {
    DIFF_KIND_ANY,
    DIFF_KIND_INT,
    DIFF_KIND_MEM,
    DIFF_KIND_SSE,
    DIFF_KIND_AVX,
    DIFF_KIND_X87,
    DIFF_KIND_STRING,
    DIFF_KIND_BRANCH,
    DIFF_KIND_SMC,
    DIFF_KIND_C32 /* 32-bit code */,
    DIFF_KIND_COUNT
};
extern const char *const diff_kind_names[DIFF_KIND_COUNT];

enum diff_fix { DIFF_FIX_NONE, DIFF_FIX_REL, DIFF_FIX_ABS };
struct diff_insn {
    uint8_t bytes[20], len;        /* one instruction, or a few that belong together */
    uint8_t fix, fix_at, fix_size; /* REL: from the instruction's end; sizes 1, 4, 8 */
    int16_t label;                 /* instruction that the fix points to, -1: `target` is an address */
    int64_t target;                /* address, or bytes to add to the label's */
    bool dropped;                  /* by minimisation */
};
struct diff_seq {
    uint64_t seed;
    enum diff_kind kind;
    bool kernel;
    unsigned n;
    struct diff_insn insns[DIFF_INSNS_MAX];
    uint32_t at[DIFF_INSNS_MAX + 1]; /* offsets within the code pages; [n] is the end */
    struct diff_request req;
};
void diff_gen_init(const struct fvm_cpu_model *model);
unsigned diff_gen_forms(unsigned *ret_mnemonics);
void diff_gen(struct diff_seq *s, uint64_t seed, int kind);
/** Addresses and code bytes again, after instructions were dropped. */
void diff_layout(struct diff_seq *s);
void diff_print(const struct diff_seq *s, FILE *out);

/* One encoding that decoder and CPU model accept. */
struct diff_form {
    uint8_t map, opcode, pfx, ext, mem, w,
        l;         /* map: 0..3 legacy, 4.. VEX map 1..3; ext 0..7: modrm.reg; mem: 1 memory, 0 register */
    uint8_t modrm; /* has one */
    uint16_t mnemonic, category;
};
struct diff_group {
    const struct diff_form **forms;
    unsigned count;
    uint16_t mnemonic;
    uint32_t kinds;
};
struct diff_forms {
    struct diff_group *groups;
    unsigned group_count, form_count;
};
const struct diff_forms *diff_forms_of(unsigned bits);
void diff_forms_init(const struct fvm_cpu_model *model);
/** Is the decoded instruction one that can be compared? (the exclusions are listed there, with reasons) */
bool diff_comparable(const struct fvm_insn *in, bool kernel);

/* ---- support_native.c ---- */
struct diff_native;
#define DIFF_BATCH 64
int diff_native_create(struct diff_native **ret);
void diff_native_destroy(struct diff_native **n_p);
/** Slots of a batch: requests to fill, results to read. half 0 or 1: one is computed while the other is read. */
struct diff_request *diff_native_request(struct diff_native *n, unsigned half, unsigned slot);
struct diff_outcome *diff_native_result(struct diff_native *n, unsigned half, unsigned slot);
void diff_native_submit(struct diff_native *n, unsigned half, unsigned count);
void diff_native_wait(struct diff_native *n, unsigned half);

/* ---- support_guest.c ---- */
struct diff_guest;
enum diff_mode { DIFF_NORMAL, DIFF_SINGLE_BLOCK, DIFF_SINGLE_INSN };
int diff_guest_create(enum diff_mode mode, const uint8_t *base, struct diff_guest **ret);
void diff_guest_destroy(struct diff_guest **g_p);
void diff_guest_run(struct diff_guest *g, const struct diff_request *req, bool kernel, struct diff_outcome *ret);
struct fvm_vcpu *diff_guest_vcpu(struct diff_guest *g);
/** One request and signal to the calling process' thread that runs g, as another thread of a VM would send. */
void diff_guest_kick(struct diff_guest *g, unsigned long thread);

/* ---- support_compare.c ---- */
/** true if equal; else the first differences in text. */
bool diff_equal(const struct diff_seq *s, const struct diff_outcome *native, const struct diff_outcome *guest,
                char *text, size_t size);

/* ---- random numbers ---- */
struct diff_rng {
    uint64_t s;
};
static inline uint64_t diff_next(struct diff_rng *r)
{
    uint64_t z = (r->s += 0x9e3779b97f4a7c15ull);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
}
static inline unsigned diff_below(struct diff_rng *r, unsigned n) { return (unsigned)((diff_next(r) >> 32) * n >> 32); }
static inline bool diff_chance(struct diff_rng *r, unsigned percent) { return diff_below(r, 100) < percent; }

#endif
