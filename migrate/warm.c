/*
 * warm.c - see warm.h. Knows RAM's layout and the kernel's ways to back memory, nothing of migrations.
 *
 * Blocks are taken in ascending order, as pages come; when pages overtake, a block that is there already costs a look
 * at the page tables.
 *
 * Invariant: no byte of RAM changes here.
 */
#include "migrate/warm.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define THREADS_MAX 4
#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23 /* Linux 5.14 */
#endif

struct fvm_warm {
    const struct fvm_ram *ram; /* borrowed */
    uint8_t *map;
    uint64_t blocks, next; /* next: atomic */
    bool stop;             /* atomic */
    unsigned threads;
    pthread_t thread[THREADS_MAX];
};

static uint64_t block_count(const struct fvm_ram *ram)
{
    return (ram->low_bytes + ram->high_bytes + FVM_WARM_BLOCK_BYTES - 1) / FVM_WARM_BLOCK_BYTES;
}

size_t fvm_warm_map_bytes(const struct fvm_ram *ram) { return (size_t)((block_count(ram) + 7) / 8); }

/* The part of RAM that is block n. Both parts of RAM begin at multiples of a block; the low one may end within one. */
static uint64_t block_gpa(const struct fvm_ram *ram, uint64_t n, uint64_t *ret_len)
{
    uint64_t at = n * FVM_WARM_BLOCK_BYTES;
    uint64_t gpa = at < ram->low_bytes ? at : at - ram->low_bytes + FVM_RAM_HIGH_BASE;
    uint64_t end = at < ram->low_bytes ? ram->low_bytes : FVM_RAM_HIGH_BASE + ram->high_bytes;
    *ret_len = FVM_MIN(FVM_WARM_BLOCK_BYTES, end - gpa);
    return gpa;
}

void fvm_warm_map(const struct fvm_ram *ram, uint8_t *ret_map)
{
    memset(ret_map, 0, fvm_warm_map_bytes(ram));
    for (uint64_t n = 0; n < block_count(ram); n++) {
        uint64_t len;
        fvm_pfn pfn = block_gpa(ram, n, &len) >> FVM_PAGE_SHIFT;
        uint32_t any = 0;
        for (uint64_t i = 0; i < len >> FVM_PAGE_SHIFT; i++)
            any |= __atomic_load_n(&ram->version[pfn + i], __ATOMIC_RELAXED);
        if (any)
            ret_map[n / 8] |= (uint8_t)(1u << (n % 8));
    }
}

static void touch(uint8_t *p, uint64_t len)
{
    if (madvise(p, len, MADV_POPULATE_WRITE) == 0)
        return;
    for (uint64_t i = 0; i < len; i += FVM_PAGE_SIZE) /* an older kernel; pages may be arriving meanwhile */
        __atomic_fetch_or(p + i, 0, __ATOMIC_RELAXED);
}

static void *warm_main(void *arg)
{
    struct fvm_warm *w = arg;
    while (!__atomic_load_n(&w->stop, __ATOMIC_RELAXED)) {
        uint64_t len, n = __atomic_fetch_add(&w->next, 1, __ATOMIC_RELAXED);
        if (n >= w->blocks)
            break;
        if (!(w->map[n / 8] >> (n % 8) & 1))
            continue;
        uint64_t gpa = block_gpa(w->ram, n, &len);
        touch(fvm_ram_hva(w->ram, gpa), len);
    }
    return NULL;
}

int fvm_warm_start(const struct fvm_ram *ram, const uint8_t *map, size_t map_bytes, struct fvm_warm **ret_warm)
{
    long cpus = sysconf(_SC_NPROCESSORS_ONLN);
    *ret_warm = NULL;
    if (map_bytes != fvm_warm_map_bytes(ram))
        return 0;
    struct fvm_warm *w = calloc(1, sizeof(*w));
    if (!w)
        return FVM_ENOMEM;
    w->ram = ram;
    w->blocks = block_count(ram);
    w->map = malloc(map_bytes);
    if (!w->map) {
        free(w);
        return FVM_ENOMEM;
    }
    memcpy(w->map, map, map_bytes);
    long want = FVM_MIN(FVM_MAX(cpus / 2, 1), THREADS_MAX);
    while (w->threads < want && pthread_create(&w->thread[w->threads], NULL, warm_main, w) == 0)
        w->threads++;
    *ret_warm = w;
    return 0;
}

void fvm_warm_stop(struct fvm_warm **warm_p)
{
    struct fvm_warm *w = *warm_p;
    if (!w)
        return;
    *warm_p = NULL;
    __atomic_store_n(&w->stop, true, __ATOMIC_RELAXED);
    for (unsigned i = 0; i < w->threads; i++)
        pthread_join(w->thread[i], NULL);
    free(w->map);
    free(w);
}
