/*
 * vm_later.c - a coalescing post. See vm_later.h.
 *
 * Invariant: at most one post is queued in the loop; destroy takes it back, so that none outlives the struct.
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
        fvm_loop_post_cancel(later->loop, run, later);
    free(later);
}
