/*
 * ram_mark.c - "these bytes of guest RAM were written": the one place where a page's version moves.
 *
 * Apart from ram.c because it runs in the engine's fast helpers too (a shadow miss marks pages): no libc, no vector
 * registers, see FVM_FAST_SOURCES in CMakeLists.txt.
 *
 * Invariant: a write whose marking ended before an epoch was closed is seen with a version of at most that epoch; one
 * whose marking ends later carries a later epoch. So nothing falls between two rounds of a migration, without a lock:
 *
 *     writer:  bytes, fence, e = epoch, version = e, fence, epoch still e? else again
 *     scanner: epoch = epoch + 1 (full barrier), then reads versions, then bytes
 */
#include "vmm/mem/ram.h"

void fvm_ram_mark_version(struct fvm_ram *ram, fvm_pfn pfn)
{
    uint32_t epoch;

    do {
        __atomic_thread_fence(__ATOMIC_SEQ_CST);
        epoch = __atomic_load_n(&ram->epoch, __ATOMIC_RELAXED);
        if (__atomic_load_n(&ram->version[pfn], __ATOMIC_RELAXED) == epoch)
            return;
        __atomic_store_n(&ram->version[pfn], epoch, __ATOMIC_RELAXED);
        __atomic_thread_fence(__ATOMIC_SEQ_CST);
    } while (epoch != __atomic_load_n(&ram->epoch, __ATOMIC_RELAXED));
}

void fvm_ram_mark_written(struct fvm_ram *ram, fvm_gpa gpa, uint64_t len)
{
    uint8_t flags = 0;

    if (!len)
        return;
    fvm_assert(fvm_ram_contains(ram, gpa, len));
    for (fvm_pfn pfn = gpa >> FVM_PAGE_SHIFT; pfn <= (gpa + len - 1) >> FVM_PAGE_SHIFT; pfn++) {
        fvm_ram_mark_version(ram, pfn);
        flags |= __atomic_load_n(&ram->flags[pfn], __ATOMIC_RELAXED);
    }
    if (FVM_UNLIKELY((flags & FVM_PAGE_CODE) && ram->code_hook))
        ram->code_hook(ram->code_hook_ctx, gpa, len);
}
