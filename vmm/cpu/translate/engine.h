/*
 * engine.h - the translator's own structures (only vmm/cpu/translate and vmm/cpu/vcpu.c include this).
 *
 * A *block* is a run of guest instructions of one page, translated for one mode and one linear address - or, in 64-bit user
 * mode, for all linear addresses that its page is ever mapped at: such a block is *movable*. Libraries lie elsewhere in every
 * process, and their blocks serve all of them. A movable block knows its place by SLOT_ANCHOR, the linear address of its
 * page: whoever enters a page from elsewhere sets it (the dispatcher, indirect branches, checked links), its targets and
 * RIP-relative operands are relative to it. Blocks live in the code cache (code.c), which only grows until it is flushed as a whole. Each direct branch out of a block is an *exit*; an exit that
 * is linked jumps straight to its target block. Each slow memory access is a *site*.
 *
 * Several vCPUs share all of it. Who may do what:
 *
 *   inside, no lock      run translated code; read blocks, exits, sites, marks, hash, pages (fast helpers, the signal handler, C)
 *   inside, no lock      the kick handler cuts the exits of the block that it interrupted: single stores of a rel32
 *   lock                 append: new blocks, exits, sites, marks; publish them (hash and pages by release stores, last);
 *                        link an exit: stores of rel32s that lie within a cache line, the one that makes it reachable last
 *   lock + world stopped everything else: dropping, flushing, changing an imm64 or more than one reachable word, taking a
 *                        write right out of another vCPU's shadow
 *
 * So a patched rel32 must not cross a cache line (fvm_tr_place), and what a vCPU reads without the lock it forgets at its safe
 * points (world.c): any call that may wait for this lock or for the board lock, and each turn of the dispatcher.
 */
#ifndef FVM_TRANSLATE_ENGINE_H
#define FVM_TRANSLATE_ENGINE_H

#include <pthread.h>

#include "vmm/cpu/cpuid.h"
#include "vmm/cpu/debug.h"
#include "vmm/cpu/decode.h"
#include "vmm/cpu/state.h"
#include "vmm/cpu/system.h"
#include "vmm/cpu/translate/layout.h"
#include "vmm/cpu/vcpu.h"

#define FVM_VCPU_MAGIC 0x75706376206d7666ull /* "fvm vcpu" */
#define FVM_BLOCK_INSNS_MAX 32
#define FVM_BLOCK_CODE_MAX 16384 /* bytes of host code one block can need at most */
#define FVM_VICTIMS_MAX 7
#define FVM_NONE 0xffffffffu
#define FVM_EXIT_MOVED 0x80000000u /* in ARG of FVM_EXIT_DIRECT: SLOT_ANCHOR is the target's already */
#define FVM_DEAD_SAVED 0x40000000u /* ... flags are in SLOT_FLAGS */
#define FVM_DEAD_INNER 0x80000000u /* in ARG of FVM_EXIT_DEAD: entered behind the prologue, victims are in their slots */

enum { /* block mode: what the translation depends on besides the bytes */
    FVM_MODE_BITS = 3,     /* 0: 16, 1: 32, 2: 64-bit code */
    FVM_MODE_USER = 4,     /* CPL 3 */
    FVM_MODE_FPU_TRAP = 8, /* CR0.TS or EM */
    FVM_MODE_SINGLE = 16,  /* one instruction (single step, interrupt shadow); never linked */
    FVM_MODE_SEG = 32,     /* segmented (seg16.c): CS base in bits 63:32 */
    FVM_MODE_PLAIN = 128,  /* each access checked for itself: group.c */
    FVM_MODE_CS4G = 64,    /* segmented, CS limit 4 GiB; clear: 64 KiB, or another one, and then FVM_MODE_SINGLE is set */
    FVM_MODE_SS32 = 128,   /* segmented, 32-bit stack */
    FVM_MODE_MID = 1 << 16, /* CPL 1 or 2: supervisor to the page tables, not privileged */
    FVM_MODE_ES_OK = 256,  /* segmented: ES (and so on, six bits) is ordinary data: present, writable, not expand-down; CS readable */
};

struct fvm_insn_mark {     /* one per guest instruction: how to recover precise state at a host address */
    uint16_t host_off;     /* from the block's start */
    uint16_t guest_off : 12;
    uint16_t flags_saved : 1; /* at the instruction's own operation: guest flags are in SLOT_FLAGS */
};

struct fvm_block {
    uint64_t rip;          /* as the guest has it: in a segmented mode the offset in CS; movable: offset in the page */
    uint64_t gpa;
    uint64_t gpa2;         /* second page when cross_page, else 0 */
    uint64_t mode;         /* FVM_MODE_* */
    uint32_t code_off;     /* entry, from the cache's start */
    uint32_t inner_off;    /* behind the prologue: for jumps from blocks with the same victims, which stay spilled */
    uint32_t saved_off;    /* entry for guest flags in SLOT_FLAGS (== code_off if flags are dead on entry) */
    uint32_t saved_inner_off; /* likewise, behind the prologue */
    uint32_t body_off;     /* behind all spills, flags as the block wants them: for its own exits */
    uint32_t canon_off;    /* entry from indirect branches: r15 and r14 spilled, flags in SLOT_FLAGS */
    uint32_t dead_inner_off; /* where a dropped block's inner entry leads */
    uint32_t dead_off;     /* code that leaves with FVM_EXIT_DEAD */
    uint32_t code_len;     /* hot part */
    uint32_t cold_off, cold_len; /* the rest lies apart, so that what runs is dense */
    uint32_t dead_saved_off; /* as dead_inner_off, for the inner entry with flags in SLOT_FLAGS, if `natural` */
    uint32_t mark_first;   /* index into marks[] */
    uint16_t guest_len;
    uint8_t mark_count;
    uint8_t victim[FVM_VICTIMS_MAX]; /* guest registers spilled to their slots while the block runs; from the third on, only
                                        behind inner_off, and given back before each exit */
    uint8_t victim_count;
    uint8_t natural;       /* flags are in SLOT_FLAGS behind saved_inner_off: that entry costs nothing, inner_off saves them */
    uint8_t live_flags;    /* guest flags read before written, as a mask != 0 */
    uint8_t dead;
    uint8_t cross_page;    /* one instruction across a page boundary: the entry checks the second page */
    uint32_t ind_off;      /* indirect exit: from behind the request poll on, a kick goes to ind_slow_off; 0: none */
    uint32_t ind_spill_off, ind_end, ind_slow_off, ind_slow_jump_off; /* see exit_indirect in branch.c */
    uint32_t exit_first;
    uint8_t exit_count;
    uint32_t next_hash;    /* block numbers, FVM_NONE ends */
    uint32_t next_page;    /* chain of the first page's blocks */
    uint32_t next_page2;   /* of the second page's (cross_page) */
    uint32_t incoming;     /* exits linked to this block */
};

struct fvm_exit {
    uint64_t target;       /* guest rip; of a movable block: relative to its page */
    uint32_t block;
    uint32_t jump_off;     /* rel32 of the hot jump */
    uint32_t stub_off;     /* where it goes unlinked */
    uint32_t thunk_off;    /* gives the victims back, then jump2: for targets with other victims */
    uint32_t jump2_off;    /* rel32 */
    uint32_t check_off;    /* cross-page check sequence or 0: see branch.c */
    uint32_t expect_off;   /* aligned word: minus what the check must find */
    uint32_t check_jump_off;
    uint32_t moved_off;    /* stub for when the check was passed already */
    uint32_t to;           /* block in whose `incoming` it is, or FVM_NONE */
    uint32_t now;          /* block that it was linked to last, while a vCPU may be on the way there; or FVM_NONE */
    uint32_t next_incoming;
    uint8_t relinks;       /* how often that was another, or another entry was expected, with the world stopped for it */
    uint8_t flags_saved;   /* guest flags are in SLOT_FLAGS when this exit is taken */
    uint8_t plain;         /* leads to a plain block (FVM_MODE_PLAIN) */
    uint8_t self;          /* back to its own block, whose victims all stay spilled */
};

enum { FVM_SITE_STACK = 1 /* addressed through SS: #SS where others have #GP */, FVM_SITE_MASKED = 2 /* vmaskmov */ };
struct fvm_site {
    uint32_t block;
    uint32_t resume_off;   /* the operation itself, with the clean addend in register `ureg` */
    uint8_t mark;          /* instruction */
    uint8_t ureg;
    uint8_t want;          /* FVM_R | FVM_W */
    uint8_t flags_saved;
    uint16_t size;         /* bytes */
    uint8_t kind;          /* FVM_SITE_* */
};

struct fvm_code_page {
    uint32_t blocks;       /* chain by next_page */
    uint8_t bytes[512];    /* bit per byte that was translated or looked at */
};

struct fvm_engine {
    struct fvm_ram *ram;
    struct fvm_engine_config config;
    pthread_mutex_t lock;          /* see above; recursive; fvm_world_lock */
    unsigned stop_depth;           /* lock */
    uint32_t stopping;             /* futex: not 0 while the world is stopped. Written under the lock, read by all */
    uint32_t reading;              /* a translation reads guest bytes. Written under the lock, read by all: fvm_code_write_begin */
    uint8_t *code;                 /* executable view */
    uint8_t *code_rw;              /* writable view of the same memory */
    uint64_t code_bytes, code_used, code_start; /* hot code: up to cold_start */
    uint64_t cold_start, cold_used; /* cold code: from there on */
    uint32_t tramp[16];            /* offsets of jumps to the stubs */
    uint32_t snippet_off;          /* room for exec_one, per vCPU index */
    struct fvm_block *blocks;
    uint32_t block_count, block_max;
    struct fvm_exit *exits;
    uint32_t exit_count, exit_max;
    struct fvm_site *sites;
    uint32_t site_count, site_max;
    struct fvm_insn_mark *marks;
    uint32_t mark_count, mark_max;
    uint32_t *hash;                /* block chains */
    uint32_t hash_mask;
    struct fvm_code_page **pages;  /* [ram->array_pages] */
    struct fvm_vcpu *vcpus[64];
    unsigned vcpu_count;
    uint64_t flush_generation;
    uint64_t breaks[FVM_DEBUG_BREAKS_MAX]; /* breakpoints, linear addresses; changed while all vCPUs are parked (debug.h) */
    uint32_t break_count;
    uint8_t break_map[512];        /* bit per offset in a page at which there is one */
    void (*code_written)(struct fvm_engine *e, fvm_gpa gpa, uint64_t len); /* fvm_engine_code_written, for fast.c */
    struct fvm_engine_stats stats; /* lock; what vCPUs count for themselves is in theirs */
};

enum { FVM_TRAMP_DIRECT, FVM_TRAMP_SYSTEM, FVM_TRAMP_ONE, FVM_TRAMP_DEAD, FVM_TRAMP_MEM, FVM_TRAMP_INDIRECT, FVM_TRAMP_STRING,
       FVM_TRAMP_SYS, FVM_TRAMP_CROSS_USER, FVM_TRAMP_CROSS_KERNEL, FVM_TRAMP_COUNT };

struct fvm_jc_entry { uint64_t rip; uint64_t code; };

/* trace ring: the last guest blocks, for the report of a dead guest */
#define FVM_RING 256
struct fvm_vcpu_priv {
    struct fvm_vcpu *v;
    pthread_t thread;
    bool has_thread;
    pthread_mutex_t lock;
    pthread_cond_t cond;       /* wakes the vCPU; and tells parkers */
    bool stop, parked, quit;
    int tid;                   /* of the thread that runs it now, 0: none. Read by those who kick */
    uint32_t inside;           /* futex: not 0 while inside (world.c). Written by the own thread, 1 -> 2 by a waiting stopper */
    bool was_inside;
    uint64_t code_write;       /* page (+ 1) with code to which translated code may be writing: fvm_code_write_begin */
    void *sigstack;
    struct fvm_vcpu_hooks hooks;
    bool fill_jump_cache;      /* the next block's rip was not known to the jump cache */
    bool short_halts;          /* the last halt was short: wait for the next one's end without sleeping */
    unsigned host_cpus;
    bool irq_check;            /* the interrupt controller may have something */
    volatile uint32_t sleeping; /* halted or parked: requests must signal cond */
    uint32_t link_exit;        /* exit to link once its target is found, or FVM_NONE */
    uint64_t link_rip;         /* where it led */
    bool plain_next;           /* ... and that the block there must be plain */
    uint64_t link_generation;
    bool return_faults;        /* fvm_vcpu_run_until: guest faults go to the caller */
    const char *why;           /* of a shutdown */
    struct { uint32_t leaf, sub, out[4]; uint64_t stamp; } cpuid[64]; /* answers given, while the stamp is right */
    uint64_t cpuid_generation; /* moves when the guest writes MSRs that show in CPUID */
    struct fvm_paging paging;  /* as last computed from cr0, cr4, efer, flags: valid while paging_key is theirs */
    uint64_t paging_key[3];
    struct { uint64_t rip; uint64_t mode; } ring[FVM_RING];
    uint32_t ring_pos;
    struct fvm_engine_stats stats;
    bool run_until_on;
    uint64_t run_until;
    uint8_t debug_reason;      /* enum fvm_debug_reason: why it stands still for a debugger. Atomic */
    bool debug_step, debug_hit;
    uint64_t debug_addr;       /* of the access, for FVM_DEBUG_WATCH */
};

/* Everything that CPUID's answers depend on and that may change while a VM runs. */
static inline uint64_t fvm_cpuid_stamp(const struct fvm_vcpu *v)
{
    const struct fvm_vcpu_priv *p = v->priv;
    return (p->cpuid_generation << 32 | v->xcr0 << 1 | ((v->cr4 & FVM_CR4_OSXSAVE) != 0)) + (1ull << 32);
}
static inline unsigned fvm_cpuid_bucket(uint32_t leaf, uint32_t sub)
{
    return (leaf ^ leaf >> 26 ^ sub * 11) & 63;
}
static inline bool fvm_paging_key_ok(const struct fvm_vcpu *v)
{
    const struct fvm_vcpu_priv *p = v->priv;
    return p->paging_key[0] == v->cr0 && p->paging_key[1] == v->cr4 && p->paging_key[2] == (v->efer | (v->rflags & FVM_F_AC));
}
/* May there be a breakpoint at this linear address? Every block that begins there is entered by the dispatcher only. */
static inline bool fvm_debug_near(const struct fvm_engine *e, uint64_t linear)
{
    return FVM_UNLIKELY(e->break_count != 0) && (e->break_map[(linear & FVM_PAGE_MASK) >> 3] >> (linear & 7) & 1);
}
/* Movable blocks: 64-bit user mode. */
static inline bool fvm_mode_movable(uint64_t mode)
{
    return (mode & (FVM_MODE_BITS | FVM_MODE_USER)) == (2 | FVM_MODE_USER);
}
/* What a block's rip says of a linear address. */
static inline uint64_t fvm_mode_rip(uint64_t mode, uint64_t rip)
{
    return fvm_mode_movable(mode) ? rip & FVM_PAGE_MASK : rip;
}
static inline uint64_t *fvm_slot(struct fvm_vcpu *v, unsigned off)
{
    return (uint64_t *)((uint8_t *)v + off);
}
/* Slot of a block's k-th victim. */
static inline unsigned fvm_victim_slot(unsigned k)
{
    return k < 3 ? FVM_SLOT(k) : FVM_SLOT_V3 + 8 * (k - 3);
}
static inline struct fvm_jc_entry *fvm_jc(struct fvm_vcpu *v, bool user, uint64_t rip)
{
    return user ? (struct fvm_jc_entry *)((uint8_t *)v->gs_base - FVM_JC_USER_BYTES) + ((rip ^ (rip & 0xffffffff) >> FVM_JC_FOLD) & (FVM_JC_USER_ENTRIES - 1))
                : (struct fvm_jc_entry *)((uint8_t *)v + FVM_OFF_JC) + ((rip ^ (rip & 0xffffffff) >> FVM_JC_FOLD) & (FVM_JC_ENTRIES - 1));
}

/** Linear address of an instruction pointer in a mode. */
static inline uint64_t fvm_mode_linear(uint64_t mode, uint64_t rip)
{
    return mode & FVM_MODE_SEG ? (uint32_t)(rip + (mode >> 32)) : rip;
}
/* What is to be added to a block's rip and to its exits' targets, while it runs. */
static inline uint64_t fvm_block_base(struct fvm_vcpu *v, const struct fvm_block *b)
{
    return fvm_mode_movable(b->mode) ? *fvm_slot(v, FVM_SLOT_ANCHOR) : 0;
}

/* ---- lookup.c: fast-helper and signal safe ---- */
uint32_t fvm_code_hash(const struct fvm_engine *e, uint64_t gpa, uint64_t rip, uint64_t mode);
/**
 * Translated code or a fast helper is about to write to a page with code, at once: may it? False: by C. (T, the translator, sets
 * `reading`, then looks at code_write of the others; the writer sets code_write, then looks at `reading`. One sees the other: T then
 * stops that vCPU before it reads the page's bytes.)
 */
bool fvm_code_write_begin(struct fvm_vcpu *v, fvm_gpa gpa, uint64_t len);
void fvm_code_set_rel32(struct fvm_engine *e, const struct fvm_block *from, uint32_t at, uint32_t to_off);
void fvm_code_unlink_exit(struct fvm_engine *e, uint32_t exit);
uint64_t fvm_mode_of(const struct fvm_vcpu *v);
/** Block for a guest physical address, linear address and mode, or FVM_NONE. Fast-helper safe. */
uint32_t fvm_code_find(const struct fvm_engine *e, uint64_t gpa, uint64_t rip, uint64_t mode);
/* ---- code.c ---- */
/** Link if nobody else has the lock. Not a safe point. */
void fvm_code_link(struct fvm_engine *e, struct fvm_vcpu *v, uint32_t exit, uint32_t to);
void fvm_code_unlink_block(struct fvm_engine *e, struct fvm_block *b); /* its outgoing exits; async-signal safe */
uint32_t fvm_code_block_at(const struct fvm_engine *e, uint64_t host_pc);
int fvm_code_init(struct fvm_engine *e, struct fvm_err *err);
void fvm_code_fini(struct fvm_engine *e);
/** World stopped. */
void fvm_code_flush(struct fvm_engine *e);
/** Drop one block (its second page is not what it was). World stopped. */
void fvm_code_drop(struct fvm_engine *e, uint32_t block);
void fvm_code_add(struct fvm_engine *e, uint32_t block);
struct fvm_code_page *fvm_code_page_get(struct fvm_engine *e, fvm_pfn pfn);
/** Drop what was translated from the page if [gpa, gpa+len) touches translated bytes. Returns true if anything was dropped. World stopped. */
bool fvm_code_invalidate(struct fvm_engine *e, fvm_gpa gpa, uint64_t len);
/** Would a write to the range touch translated bytes? Fast-helper safe. */
bool fvm_code_touches(const struct fvm_engine *e, fvm_gpa gpa, uint64_t len);

/* ---- world.c ---- */
#define FVM_WORLD_ALL UINT64_MAX
/** The vCPU whose thread this is, or NULL. */
struct fvm_vcpu *fvm_world_self(const struct fvm_engine *e);
void fvm_world_enter(struct fvm_vcpu *v);
void fvm_world_leave(struct fvm_vcpu *v);
/** Own thread, inside: others may stop the world here. */
void fvm_world_safe_point(struct fvm_vcpu *v);
/** For fvm_bus_set_wait. */
void fvm_world_blocking(void *vcpu, bool begin);
/** Recursive. A safe point if it is taken. */
void fvm_world_lock(struct fvm_engine *e);
bool fvm_world_trylock(struct fvm_engine *e); /* never a safe point */
void fvm_world_unlock(struct fvm_engine *e);
/** Lock held. which: bit k is e->vcpus[k]. Nests; stopped until the last go. */
void fvm_world_stop(struct fvm_engine *e, uint64_t which);
void fvm_world_go(struct fvm_engine *e);

/* ---- front.c ---- */
/** Translate at v->rip. FVM_NONE with *fault filled on a guest fault; may flush the cache. */
uint32_t fvm_translate(struct fvm_vcpu *v, uint64_t mode, struct fvm_fault *fault);

/* ---- fast.c ---- */
unsigned fvm_fast_mem(struct fvm_vcpu *v);
unsigned fvm_fast_indirect(struct fvm_vcpu *v);
unsigned fvm_fast_direct(struct fvm_vcpu *v);
unsigned fvm_fast_string(struct fvm_vcpu *v);
unsigned fvm_fast_sys(struct fvm_vcpu *v);
void fvm_fast_unlink(struct fvm_vcpu *v);
/** The RAM's code hook: fvm_engine_code_written, also for what a fast helper writes (A and D bits). */
void fvm_fast_code_written(void *engine, fvm_gpa gpa, uint64_t len);
unsigned fvm_fast_leave(struct fvm_vcpu *v, unsigned reason);
unsigned fvm_fast_leave_fault(struct fvm_vcpu *v, const struct fvm_fault *f);
/** Code address for rip in v's mode from what is already translated, or 0 (also when a request waits). */
uint64_t fvm_fast_find(struct fvm_vcpu *v, uint64_t rip);
/** A guest fault at a site: delivered here if that meets nothing unusual. */
unsigned fvm_fast_deliver(struct fvm_vcpu *v, uint32_t site, const struct fvm_fault *f);
/* ---- fast_sys.c: SLOT_TMP2 = kind | register << 8 | instruction length << 16 | REX.W << 20 ---- */
enum { FVM_FAST_SYSCALL = 1, FVM_FAST_SYSRETQ, FVM_FAST_SYSRETL, FVM_FAST_IRETQ, FVM_FAST_CR3, FVM_FAST_INVLPG, FVM_FAST_WRMSR,
       FVM_FAST_CPUID, FVM_FAST_WRFSBASE, FVM_FAST_WRGSBASE, FVM_FAST_XSAVE, FVM_FAST_XRSTOR };
/** From here on the jump cache is this mode's: entries of another mode go. */
void fvm_jc_mode(struct fvm_vcpu *v, uint64_t mode);
/** Remember rip -> code in the jump cache of the mode. */
void fvm_jc_fill(struct fvm_vcpu *v, uint64_t rip, uint64_t mode, uint64_t code);

/* ---- recover.c ---- */
/** Make v's state precise at the instruction of a site/mark: restores spilled registers, flags, rip. */
void fvm_recover_site(struct fvm_vcpu *v, uint32_t site);
void fvm_recover_mark(struct fvm_vcpu *v, const struct fvm_block *b, unsigned mark, bool flags_saved);
void fvm_recover_flags(struct fvm_vcpu *v, bool saved);
void fvm_recover_victims(struct fvm_vcpu *v, const struct fvm_block *b, unsigned count);
/** An unlinked direct exit was taken. */
void fvm_recover_exit(struct fvm_vcpu *v, uint32_t arg);
/** Index of the instruction that host_off (from the block's start) belongs to. */
unsigned fvm_recover_mark_at(const struct fvm_engine *e, const struct fvm_block *b, uint32_t host_off);

/* ---- exec_one.c ---- */
/** Execute the instruction at v->rip on precise state, its memory operand on a bounce buffer or in C. 0 or FVM_FAULT. */
int fvm_exec_one(struct fvm_vcpu *v, struct fvm_fault *fault);
/** An instruction that ended its block as class (tr.h). */
int fvm_exec_class(struct fvm_vcpu *v, unsigned class, struct fvm_fault *fault);
/** Decode the instruction at v->rip. 0 or FVM_FAULT (fetch fault or #UD). */
int fvm_exec_fetch(struct fvm_vcpu *v, struct fvm_insn *ret, struct fvm_fault *fault);



/* ---- string.c / gather ---- */
bool fvm_insn_is_vmaskmov(const struct fvm_insn *in);
int fvm_exec_string(struct fvm_vcpu *v, const struct fvm_insn *in, struct fvm_fault *fault);
bool fvm_insn_is_string(const struct fvm_insn *in);
int fvm_exec_gather(struct fvm_vcpu *v, const struct fvm_insn *in, struct fvm_fault *fault);
int fvm_exec_read_mm(struct fvm_vcpu *v, unsigned a, unsigned b, uint8_t ret[16], struct fvm_fault *fault);
int fvm_exec_vmaskmov(struct fvm_vcpu *v, const struct fvm_insn *in, struct fvm_fault *fault);
int fvm_exec_maskmov(struct fvm_vcpu *v, const struct fvm_insn *in, struct fvm_fault *fault);

/* ---- signal.c ---- */
int fvm_signal_install(void);
int fvm_signal_thread_init(struct fvm_vcpu_priv *p);
void fvm_signal_thread_fini(struct fvm_vcpu_priv *p);
#define FVM_KICK_SIGNAL (SIGRTMIN + 3)

/* ---- run.c ---- */
/** One turn: requests, interrupts, a block (and what is chained to it), its exit. false: a fault for *result or a shutdown. */
bool fvm_run_step(struct fvm_vcpu *v, struct fvm_run_result *result);
void fvm_run_park(struct fvm_vcpu_priv *p); /* vCPU thread: wait until resumed or quit */

/* stubs.S */
void fvm_enter(struct fvm_vcpu *v, const void *code);
extern char fvm_enter_window[], fvm_enter_window_end[], fvm_enter_bail[], fvm_exit_tail[], fvm_resume_window[],
    fvm_resume_window_end[];
extern char fvm_stub_direct[], fvm_stub_system[], fvm_stub_one[], fvm_stub_dead[], fvm_stub_mem[], fvm_stub_indirect[],
    fvm_stub_string[], fvm_stub_sys[], fvm_stub_cross_user[], fvm_stub_cross_kernel[], fvm_stub_cross_end[];
void fvm_signal_entry(int signo, void *info, void *uc);
void fvm_signal_handle(int signo, void *info, void *uc, struct fvm_vcpu *v);

#endif
