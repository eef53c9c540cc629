/*
 * tr.h - one translation in progress (front.c analyses, the others emit). Only files of translate/ include this.
 *
 * Scratch registers: guest registers that no instruction of the block names are spilled in the prologue ("victims") and free for the
 * whole block: u (entry/addend), t (address or value), x (third). A block is cut before it would name so many registers that
 * none is left.
 *
 * Guest flags are in the host's flags (HOST) or, once an emitted check would destroy live ones, in SLOT_FLAGS (SAVED).
 */
#ifndef FVM_TRANSLATE_TR_H
#define FVM_TRANSLATE_TR_H

#include "vmm/cpu/translate/emit.h"
#include "vmm/cpu/translate/engine.h"

enum fvm_class {
    FVM_C_IDENT,     /* no memory: copied */
    FVM_C_IDENT_MEM, /* one explicit memory operand, redirected */
    FVM_C_LEA,
    FVM_C_DROP,      /* nop, prefetch, clflush... */
    FVM_C_PUSH, FVM_C_POP, FVM_C_LEAVE, FVM_C_PUSHF,
    FVM_C_JMP, FVM_C_JCC, FVM_C_LOOP, FVM_C_CALL, FVM_C_RET, FVM_C_JMP_IND, FVM_C_CALL_IND,
    FVM_C_STRING, FVM_C_CMPXCHG, FVM_C_BT_MEM, FVM_C_XLAT, FVM_C_MOFFS, FVM_C_INCDEC32,
    FVM_C_CLI, FVM_C_STI, FVM_C_RDTSC, FVM_C_SWAPGS, FVM_C_MOV_FROM_SREG,
    FVM_C_SYSCALL, FVM_C_SYSRET, FVM_C_IRET, FVM_C_FAST_SYS, /* ends the block, fast helper tries first */
    FVM_C_SYSTEM,    /* ends the block, C executes it */
    FVM_C_ONE,       /* ends the block, exec_one executes it */
    FVM_C_UD,        /* #UD */
    FVM_C_NM,        /* #NM: x87/SSE while TS/EM */
};

struct fvm_tr_insn {
    struct fvm_insn in;
    uint16_t off;        /* from the block's rip */
    uint8_t class;
    uint8_t mem_op;      /* index of the explicit memory operand, or 0xff */
    uint16_t f_read, f_kill, f_mod, live_in, live_out; /* FVM_ARITH_FLAGS bits */
    uint16_t regs;       /* general registers named, bit per number */
    uint8_t need;        /* scratch registers needed: bit 0 u, 1 t, 2 x */
    bool high_byte;      /* names ah..bh: no REX possible */
    uint8_t group, stack_group; /* of the explicit operand, of the implicit one on the stack; or FVM_NO_GROUP */
    int64_t group_disp, stack_disp; /* where that is, in the group's terms */
};

#define FVM_NO_GROUP 0xff
#define FVM_GROUPS_MAX 24
struct fvm_group {       /* see group.c */
    int64_t low, end;    /* bytes that its accesses touch, relative to what the symbols stand for */
    uint8_t base, index, scale;
    uint8_t first, last, count; /* instructions; accesses */
    uint8_t want;        /* FVM_R | FVM_W */
    uint8_t reg;         /* host address of `low`, FVM_NOREG: each access for itself */
    bool checked;
};

struct fvm_cold { /* emitted behind the hot code */
    uint8_t kind;        /* FVM_COLD_* */
    uint8_t mark;
    uint32_t from1, from2; /* rel32s to patch to this piece: misaligned; missing right */
    uint32_t back;       /* hot offset to go back to (after the alignment check) */
    uint32_t site;
    uint8_t base;        /* form A: base register, form B: FVM_NOREG (address in t) */
    int32_t disp;
    uint16_t size;
    uint8_t t, u, right;
    uint32_t exit;
    bool flags_saved;
};
enum { FVM_COLD_MEM, FVM_COLD_EXIT, FVM_COLD_SIDE, FVM_COLD_GROUP, FVM_COLD_INDIRECT, FVM_COLD_STI, FVM_COLD_ONE };

struct fvm_memref {
    uint8_t base, index, scale; /* FVM_NOREG when absent; scale is a shift */
    uint8_t seg;                /* FVM_FS, FVM_GS or FVM_NOREG (flat); in a segmented mode any segment */
    bool addr32, addr16;
    bool anchored;              /* relative to SLOT_ANCHOR: no base, no index */
    int64_t disp;               /* with neither base nor index: the absolute address */
};
struct fvm_hostref { uint8_t base, index; int32_t disp; };

struct fvm_tr {
    struct fvm_vcpu *v;
    struct fvm_engine *e;
    struct fvm_emit em;
    uint32_t block;
    struct fvm_block *b;
    uint64_t rip;
    uint64_t lin;        /* linear address of rip */
    uint64_t base;       /* of a movable block: rip's page, SLOT_ANCHOR's value now; else 0 */
    uint64_t mode;
    unsigned bits;
    bool user;
    struct fvm_tr_insn *insns;
    unsigned n;
    unsigned cur;        /* instruction being emitted */
    uint8_t u, t, x;     /* victims, FVM_NOREG if not spilled */
    unsigned extra_first; /* victims from here on are groups' */
    struct fvm_group groups[FVM_GROUPS_MAX];
    unsigned group_count;
    bool saved;          /* flags state */
    struct fvm_cold cold[FVM_BLOCK_INSNS_MAX * 4 + 8];
    unsigned cold_n;
    uint32_t cold_from;  /* where the hot code ends */
    bool ended;
};

/* flags.c */
void fvm_tr_flags_analyse(struct fvm_tr_insn *i);
void fvm_tr_flags_liveness(struct fvm_tr *tr, uint16_t live_end);
/** Before emitted code that clobbers the host's flags: saves them if the guest's are live there. */
void fvm_tr_flags_clobber(struct fvm_tr *tr, uint16_t live);
/** Guest flags into the host's flags; `holder`: a free register (or FVM_NOREG: through memory). */
void fvm_tr_flags_restore(struct fvm_tr *tr, unsigned holder);
void fvm_tr_emit_flags_restore(struct fvm_emit *em, unsigned holder);
/** Before the operation of the current instruction itself; afterwards fvm_tr_flags_after. */
void fvm_tr_flags_before_op(struct fvm_tr *tr, unsigned holder);
void fvm_tr_flags_after_op(struct fvm_tr *tr);

/* memop.c */
void fvm_tr_memref(struct fvm_tr *tr, const struct fvm_tr_insn *i, unsigned op, struct fvm_memref *ret);
void fvm_tr_memop(struct fvm_tr *tr, const struct fvm_memref *m, unsigned size, unsigned want, struct fvm_hostref *ret);
bool fvm_tr_memref_form_a(const struct fvm_memref *m);
/** Linear address of m into t (u may be used on the way). */
void fvm_tr_address_to_t(struct fvm_tr *tr, const struct fvm_memref *m);
void fvm_tr_cold_mem(struct fvm_tr *tr, struct fvm_cold *c);

unsigned fvm_tr_operand_want(const ZydisDecodedOperand *o);

/* group.c */
/** Finds the block's groups and gives them registers; `used`: registers that its instructions name. */
void fvm_tr_group(struct fvm_tr *tr, uint16_t used);
/** The operand's place through its group, if it has one (its check is emitted at the first access). */
bool fvm_tr_grouped(struct fvm_tr *tr, const struct fvm_memref *m, bool stack, struct fvm_hostref *ret);
/** Grouped, else as fvm_tr_memop. stack: the implicit operand. */
void fvm_tr_access(struct fvm_tr *tr, const struct fvm_memref *m, bool stack, unsigned size, unsigned want, struct fvm_hostref *ret);
void fvm_tr_cold_group(struct fvm_tr *tr, struct fvm_cold *c);

/* back.c */
bool fvm_tr_unlocked(const struct fvm_tr *tr);
void fvm_tr_op_mem(struct fvm_tr *tr, const struct fvm_insn *in, const struct fvm_hostref *h);
/** The same with the operand at fs:[off] (exec_one). */
void fvm_emit_op_fs(struct fvm_emit *em, const struct fvm_insn *in, uint32_t fs_off);
void fvm_tr_copy(struct fvm_tr *tr, const struct fvm_insn *in);
void fvm_emit_copy(struct fvm_emit *em, const struct fvm_insn *in, unsigned bits);

/* branch.c */
/** Victims are r15, r14: what jump-cache entries expect to be spilled. */
bool fvm_block_canonical(const struct fvm_block *b);
/** The rel32 that comes `before` bytes from here will be patched while others run it: it must lie within a cache line. */
void fvm_tr_place(struct fvm_tr *tr, unsigned before);
void fvm_tr_exit_direct(struct fvm_tr *tr, uint64_t target);
/** Two exits: to target if cc, to next otherwise; the flags stay where they are. */
void fvm_tr_exit_two(struct fvm_tr *tr, unsigned cc, uint64_t target, uint64_t next);
void fvm_tr_exit_cond(struct fvm_tr *tr, unsigned cc, uint64_t target, uint64_t next);
void fvm_tr_exit_indirect(struct fvm_tr *tr); /* guest target in tr->t */
void fvm_tr_exit_stub(struct fvm_tr *tr, unsigned tramp); /* system, one: C sees the current instruction's site */
void fvm_tr_restore_victims(struct fvm_tr *tr);
void fvm_tr_jmp_tramp(struct fvm_tr *tr, unsigned tramp);
uint32_t fvm_tr_site(struct fvm_tr *tr, unsigned want, unsigned size);
uint32_t fvm_tr_exit_plain(struct fvm_tr *tr);
void fvm_tr_exit_side(struct fvm_tr *tr, unsigned cc, uint64_t target);
void fvm_tr_warm_exit(struct fvm_tr *tr, struct fvm_cold *c);
void fvm_tr_cold_exit(struct fvm_tr *tr, struct fvm_cold *c);
void fvm_tr_anchored_entry(struct fvm_tr *tr, unsigned page, unsigned entry);
void fvm_tr_add_page_offset(struct fvm_tr *tr, unsigned reg, int64_t n);
void fvm_tr_cold_indirect(struct fvm_tr *tr, struct fvm_cold *c);
void fvm_tr_emit_branch(struct fvm_tr *tr, struct fvm_tr_insn *i);

/* stack.c */
void fvm_tr_emit_stack(struct fvm_tr *tr, struct fvm_tr_insn *i);
void fvm_tr_push_reg(struct fvm_tr *tr, unsigned reg, unsigned bytes);
void fvm_tr_push_imm(struct fvm_tr *tr, uint64_t value, unsigned bytes);
/** Push the address of an instruction: a constant, or relative to SLOT_ANCHOR. */
void fvm_tr_push_rip(struct fvm_tr *tr, uint64_t rip, unsigned bytes);
unsigned fvm_tr_stack_bytes(const struct fvm_tr *tr, const struct fvm_insn *in);
void fvm_tr_stack_ref(const struct fvm_tr *tr, int32_t disp, struct fvm_memref *ret);
void fvm_tr_rsp_add(struct fvm_tr *tr, int32_t n);

/* seg16.c: segmented modes and 16-bit code */
/** Last classification in a segmented mode: what needs a segment is exec_one's. */
unsigned fvm_seg16_class(const struct fvm_tr *tr, const struct fvm_tr_insn *i, unsigned class);
/** Linear address of m into t, past its segment's limit: exec_one (u is used on the way). */
void fvm_seg16_address(struct fvm_tr *tr, const struct fvm_memref *m, unsigned size, uint32_t site);
/** loop, jcxz with a count in cx. */
void fvm_seg16_loop(struct fvm_tr *tr, struct fvm_tr_insn *i, uint64_t target);
/** What an instruction of 16-bit code needs in 64-bit mode to mean the same. */
enum { FVM_P66_KEEP, FVM_P66_DROP, FVM_P66_ADD };
unsigned fvm_seg16_prefix(const struct fvm_insn *in);
/** May [rip, rip+len) be fetched? */
bool fvm_seg16_fetch_ok(const struct fvm_vcpu *v, uint64_t rip, unsigned len);

/* classify.c */
void fvm_tr_classify(struct fvm_tr *tr, struct fvm_tr_insn *i);
bool fvm_tr_ends_block(const struct fvm_tr_insn *i);

/* show.c */
void fvm_tr_show(const struct fvm_tr *tr);

/* misc.c */
void fvm_tr_emit_misc(struct fvm_tr *tr, struct fvm_tr_insn *i);
uint32_t fvm_string_pack(const struct fvm_insn *in, unsigned bits);

static inline struct fvm_tr_insn *fvm_tr_cur(struct fvm_tr *tr) { return &tr->insns[tr->cur]; }
static inline uint64_t fvm_tr_next_rip(const struct fvm_tr *tr, const struct fvm_tr_insn *i)
{
    uint64_t n = tr->rip + i->off + i->in.len;
    return tr->bits == 64 ? n : (uint32_t)n;
}

#endif
