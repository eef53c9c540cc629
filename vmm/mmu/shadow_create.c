/*
 * shadow_create.c - the address space of a vCPU's shadow tables: made here, and nothing is allocated later.
 *
 * Per space one reservation: head and user half private anonymous memory, then the kernel half, one memfd mapped into
 * all spaces. Nothing costs memory until touched, so everything is MAP_NORESERVE; huge pages are refused, for a table
 * page of 4 KiB in use must not become 2 MiB.
 *
 *     map          gs (= map + FVM_SPACE_HEAD)      gs + 256G                gs + 512G
 *      | head      | user half, private             | kernel half, memfd      |
 *
 * Invariant: after create every address that emitted code can form, gs[0 .. 2^36), is mapped.
 */
#include "vmm/mmu/shadow_impl.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define MAP_BYTES (FVM_SPACE_HEAD + FVM_SPACE_BYTES)

static void *map_sparse(uint64_t bytes)
{
    void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

    if (p == MAP_FAILED)
        return NULL;
    (void)madvise(p, bytes, MADV_NOHUGEPAGE); /* EINVAL only where the kernel has no huge pages at all */
    (void)madvise(p, bytes, MADV_DONTDUMP);
    return p;
}

static int half_init(struct shadow_half *half, bool kernel)
{
    half->kernel = kernel;
    half->flags = map_sparse(HALF_TABLES);
    half->touched = map_sparse((uint64_t)TOUCHED_MAX * sizeof(*half->touched));
    return half->flags && half->touched ? 0 : -1;
}

static void half_fini(struct shadow_half *half)
{
    if (half->flags)
        munmap(half->flags, HALF_TABLES);
    if (half->touched)
        munmap(half->touched, (uint64_t)TOUCHED_MAX * sizeof(*half->touched));
}

static int space_init(struct shadow_space *space, int kernel_fd)
{
    char *map = map_sparse(MAP_BYTES);

    if (!map)
        return -1;
    space->map = map;
    space->gs = (uint64_t *)(void *)(map + FVM_SPACE_HEAD);
    space->user.entries = space->gs;
    if (mmap(space->gs + HALF_ENTRIES, HALF_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED | MAP_NORESERVE,
             kernel_fd, 0) == MAP_FAILED)
        return -1;
    (void)madvise(space->gs + HALF_ENTRIES, HALF_BYTES, MADV_NOHUGEPAGE);
    (void)madvise(space->gs + HALF_ENTRIES, HALF_BYTES, MADV_DONTDUMP);
    return half_init(&space->user, false);
}

static int map_spaces(struct fvm_shadow *sh)
{
    int fd = memfd_create("fvm-shadow-kernel", MFD_CLOEXEC), ret = 0;

    if (fd < 0)
        return -1;
    if (ftruncate(fd, (off_t)HALF_BYTES) < 0)
        ret = -1;
    for (unsigned i = 0; i < SPACE_COUNT && ret == 0; i++)
        ret = space_init(&sh->spaces[i], fd);
    if (ret < 0) {
        int sys_errno = errno;

        close(fd);
        errno = sys_errno;
        return ret;
    }
    close(fd); /* the mappings keep it */
    return 0;
}

static uint64_t rmap_bytes(const struct fvm_shadow *sh)
{
    return sh->ram->array_pages * FVM_RMAP_SLOTS * sizeof(*sh->rmap);
}

int fvm_shadow_create(struct fvm_ram *ram, struct fvm_shadow **ret_shadow, struct fvm_err *err)
{
    struct fvm_shadow *sh = calloc(1, sizeof(*sh));

    if (!sh)
        return fvm_err_set(err, FVM_ENOMEM, errno, "mmu", "out of memory");
    sh->ram = ram;
    sh->head_used_bytes = FVM_SPACE_HEAD;
    sh->rmap = map_sparse(rmap_bytes(sh));
    sh->nonglobal = map_sparse((uint64_t)NONGLOBAL_MAX * sizeof(*sh->nonglobal));
    if (!sh->rmap || !sh->nonglobal || half_init(&sh->kernel, true) < 0 || map_spaces(sh) < 0) {
        int sys_errno = errno;

        fvm_shadow_destroy(&sh);
        return fvm_err_set(err, FVM_ENOMEM, sys_errno, "mmu",
                           "cannot reserve %u times 513 GiB of address space for a processor's shadow tables: %s "
                           "(needs ulimit -v unlimited, ulimit -f unlimited and vm.overcommit_memory 0 or 1)",
                           SPACE_COUNT, strerror(sys_errno));
    }
    sh->cur = &sh->spaces[0];
    sh->cur->used = true;
    sh->kernel.entries = sh->cur->gs + HALF_ENTRIES;
    *ret_shadow = sh;
    return 0;
}

void fvm_shadow_destroy(struct fvm_shadow **shadow_p)
{
    struct fvm_shadow *sh = *shadow_p;

    if (!sh)
        return;
    for (unsigned i = 0; i < SPACE_COUNT; i++) {
        if (sh->spaces[i].map)
            munmap(sh->spaces[i].map, MAP_BYTES);
        half_fini(&sh->spaces[i].user);
    }
    half_fini(&sh->kernel);
    if (sh->rmap)
        munmap(sh->rmap, rmap_bytes(sh));
    if (sh->nonglobal)
        munmap(sh->nonglobal, (uint64_t)NONGLOBAL_MAX * sizeof(*sh->nonglobal));
    free(sh);
    *shadow_p = NULL;
}

void fvm_shadow_set_head_used(struct fvm_shadow *sh, uint64_t bytes)
{
    fvm_assert(bytes <= FVM_SPACE_HEAD && bytes % 8 == 0);
    sh->head_used_bytes = bytes;
}

static uint64_t resident_bytes(const void *start, uint64_t bytes)
{
    unsigned char vec[4096];
    uint64_t resident = 0;

    for (uint64_t done = 0; done < bytes;) {
        uint64_t n = FVM_MIN(bytes - done, sizeof(vec) * FVM_PAGE_SIZE);

        if (mincore((char *)(uintptr_t)start + done, n, vec) < 0)
            return resident;
        for (uint64_t i = 0; i < (n + FVM_PAGE_MASK) >> FVM_PAGE_SHIFT; i++)
            resident += (vec[i] & 1) ? FVM_PAGE_SIZE : 0;
        done += n;
    }
    return resident;
}

uint64_t fvm_shadow_bytes(const struct fvm_shadow *sh)
{
    uint64_t bytes = sizeof(*sh) + (uint64_t)sh->kernel.resident * FVM_PAGE_SIZE;

    for (unsigned i = 0; i < SPACE_COUNT; i++)
        bytes += (uint64_t)sh->spaces[i].user.resident * FVM_PAGE_SIZE +
                 resident_bytes(sh->spaces[i].map, FVM_SPACE_HEAD);
    return bytes + resident_bytes(sh->rmap, rmap_bytes(sh));
}

const struct fvm_shadow_stats *fvm_shadow_get_stats(const struct fvm_shadow *sh)
{
    return &sh->stats;
}
