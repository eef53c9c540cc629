/*
 * show.c - --trace code: each new block as guest and host instructions, for those who tune or doubt the translator.
 */
#include <inttypes.h>
#include <stdio.h>

#include "vmm/cpu/translate/tr.h"

static void show_host(const struct fvm_tr *tr, uint32_t from, uint32_t to, FILE *f)
{
    struct fvm_insn in;
    char text[128];
    for (uint32_t at = from; at < to;) {
        if (fvm_decode(tr->em.buf + at, to - at, 64, &in) != FVM_DECODE_OK)
            break;
        uint64_t pc = (uint64_t)tr->b->code_off + at;
        fprintf(f, "        %6" PRIx64 "  %s\n", pc, fvm_decode_text(&in, pc, text, sizeof text));
        at += in.len;
    }
}

void fvm_tr_show(const struct fvm_tr *tr)
{
    const struct fvm_engine_config *c = &tr->e->config;
    FILE *f = c->trace_file ? c->trace_file : stderr;
    char text[128];
    uint32_t hot_end = tr->cold_from, warm = tr->b->code_len - hot_end;
    fprintf(f, "block %u rip %" PRIx64 " mode %" PRIx64 " victims %u, %u bytes hot, %u warm, %u cold\n", tr->block, tr->rip, tr->mode,
            tr->b->victim_count, hot_end, warm, tr->b->cold_len);
    show_host(tr, 0, tr->b->inner_off - tr->b->code_off, f);
    for (unsigned k = 0; k < tr->n; k++) {
        const struct fvm_tr_insn *i = &tr->insns[k];
        uint32_t from = tr->e->marks[tr->b->mark_first + k].host_off;
        uint32_t to = k + 1 < tr->n ? tr->e->marks[tr->b->mark_first + k + 1].host_off : hot_end;
        fprintf(f, "  %" PRIx64 "  %s   (class %u, live in %03x out %03x)\n", tr->rip + i->off,
                fvm_decode_text(&i->in, tr->rip + i->off, text, sizeof text), i->class, i->live_in, i->live_out);
        show_host(tr, from, to, f);
    }
}
