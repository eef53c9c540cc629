/*
 * support_gen.h - inside of the generator: shared by support_gen.c (state, layout), support_gen_form.c (one instruction
 * of a form) and support_gen_ops.c (branches, loops, self-modifying code, composed instructions).
 */
#ifndef FVM_TESTS_DIFF_GEN_H
#define FVM_TESTS_DIFF_GEN_H

#include <string.h>

#include "tests/diff/support_diff.h"

struct gen {
    struct diff_seq *s;
    struct diff_rng r;
    uint64_t value[16];
    uint32_t known;    /* registers with a known value */
    uint32_t reserved; /* must not be written now */
    int loop_start;    /* first instruction of an open loop, or -1 */
    unsigned loop_reg;
};

static inline bool gen_is64(const struct gen *g) { return g->s->req.bits == 64; }
static inline bool gen_full(const struct gen *g) { return g->s->n + 8 > DIFF_INSNS_MAX; }
static inline bool gen_reserved(const struct gen *g, unsigned reg) { return g->reserved >> reg & 1; }
static inline unsigned gen_reg(struct gen *g) { return diff_below(&g->r, gen_is64(g) ? 16 : 8); }

/* support_gen.c */
uint64_t gen_interesting(struct gen *g, bool high);
bool gen_is_pointer(const struct gen *g, unsigned reg);
bool gen_is_small(const struct gen *g, unsigned reg);
struct diff_insn *gen_add(struct gen *g, const uint8_t *bytes, unsigned len);
void gen_mov_imm(struct gen *g, unsigned reg, uint64_t value);

/* support_gen_form.c */
void gen_random_insn(struct gen *g);

/* support_gen_ops.c */
void gen_add_branch(struct gen *g);
/** What stands for a drawn branch or popf, whose operands must be chosen. */
void gen_popf_or_branch(struct gen *g, const struct diff_form *f);
void gen_add_xsave(struct gen *g);
void gen_open_loop(struct gen *g);
void gen_close_loop(struct gen *g);
void gen_add_smc(struct gen *g);

#endif
