/*
 * vm_later.c - a coalescing post. See vm_later.h.
 *
 * Invariant: at most one post is queued in the loop; while one is, the struct lives, so destroy leaves it to the post.
 */
#include "vmm/vm_later.h"

#include <stdatomic.h>
#include <stdlib.h>

#include "base/err.h"

struct fvm_later {
    struct fvm_loop *loop;
    fvm_loop_fn fn;
    void *ctx;
    _Atomic bool queued;
    bool dead; /* loop's thread */
};

int fvm_later_create(struct fvm_loop *loop, fvm_loop_fn fn, void *ctx, struct fvm_later **ret_later)
{
    struct fvm_later *later = calloc(1, sizeof(*later));
    if (!later)
        return FVM_ENOMEM;
    later->loop = loop;
    later->fn = fn;
    later->ctx = ctx;
    *ret_later = later;
    return 0;
}

static void run(void *ctx)
{
    struct fvm_later *later = ctx;
    if (later->dead) {
        free(later);
        return;
    }
    atomic_store(&later->queued, false);
    later->fn(later->ctx); /* may destroy `later` */
}

void fvm_later_ask(struct fvm_later *later)
{
    if (atomic_exchange(&later->queued, true))
        return;
    /* Out of memory for a list node: the request must not be lost silently. */
    fvm_assert(fvm_loop_post(later->loop, run, later) == 0);
}

void fvm_later_destroy(struct fvm_later **later_p)
{
    struct fvm_later *later = *later_p;
    *later_p = NULL;
    if (!later)
        return;
    if (atomic_load(&later->queued))
        later->dead = true;
    else
        free(later);
}
