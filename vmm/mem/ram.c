/*
 * ram.c - guest RAM: reservation, checked copies, epochs.
 *
 *     base                base+low          base+4G               base+span
 *      | RAM (low_bytes)   | PROT_NONE hole  | RAM (high_bytes)    | room for video memory, ROM, guard
 *
 * One reservation, so that a host address is base + gpa everywhere. Invariant: every byte that fvm_ram_contains is
 * mapped readable and writable for the life of the RAM; all else in the reservation faults. Knows nothing of CPUs.
 */
#include "vmm/mem/ram.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define HUGE_BYTES (2ull << 20)
#define RAM_BYTES_MAX (1ull << 40)

struct ram_impl {
    struct fvm_ram ram; /* first: what everybody sees */
    void *map;
    size_t map_bytes;
};

static void *map_array(uint64_t bytes)
{
    return mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
}

static int map_part(struct fvm_ram *ram, uint64_t gpa, uint64_t bytes)
{
    if (!bytes)
        return 0;
    if (mmap(ram->base + gpa, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED,
             -1, 0) == MAP_FAILED)
        return -1;
    /* Both are wishes: guest code over 4 KiB host pages pays with TLB misses; core files need no guest RAM. */
    (void)madvise(ram->base + gpa, bytes, MADV_HUGEPAGE);
    (void)madvise(ram->base + gpa, bytes, MADV_DONTDUMP);
    return 0;
}

static int map_all(struct ram_impl *impl)
{
    struct fvm_ram *ram = &impl->ram;
    void *version, *flags;

    impl->map_bytes = FVM_ALIGN_UP(ram->span_bytes, HUGE_BYTES) + FVM_RAM_VIDEO_MAX + FVM_RAM_ROM_MAX + 2 * HUGE_BYTES;
    impl->map = mmap(NULL, impl->map_bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (impl->map == MAP_FAILED) {
        impl->map = NULL;
        return -1;
    }
    ram->base = (uint8_t *)FVM_ALIGN_UP((uintptr_t)impl->map, HUGE_BYTES);
    if (map_part(ram, 0, ram->low_bytes) < 0 || map_part(ram, FVM_RAM_HIGH_BASE, ram->high_bytes) < 0)
        return -1;
    version = map_array(ram->array_pages * sizeof(*ram->version));
    if (version == MAP_FAILED)
        return -1;
    ram->version = version;
    flags = map_array(ram->array_pages);
    if (flags == MAP_FAILED)
        return -1;
    ram->flags = flags;
    return 0;
}

int fvm_ram_create(uint64_t bytes, struct fvm_ram **ret_ram, struct fvm_err *err)
{
    struct ram_impl *impl;
    struct fvm_ram *ram;

    if (!bytes || (bytes & FVM_PAGE_MASK) || bytes > RAM_BYTES_MAX)
        return fvm_err_set(err, FVM_EINVAL, 0, "mem",
                           "guest memory of %llu bytes: must be a multiple of 4096, at least 4096 and at most 1 TiB",
                           (unsigned long long)bytes);
    impl = calloc(1, sizeof(*impl));
    if (!impl)
        return fvm_err_set(err, FVM_ENOMEM, errno, "mem", "out of memory");
    ram = &impl->ram;
    ram->low_bytes = FVM_MIN(bytes, FVM_RAM_LOW_MAX);
    ram->high_bytes = bytes - ram->low_bytes;
    ram->span_bytes = ram->high_bytes ? FVM_RAM_HIGH_BASE + ram->high_bytes : ram->low_bytes;
    ram->page_count = ram->span_bytes >> FVM_PAGE_SHIFT;
    ram->array_pages = (FVM_ALIGN_UP(ram->span_bytes, HUGE_BYTES) + FVM_RAM_VIDEO_MAX + FVM_RAM_ROM_MAX) >> FVM_PAGE_SHIFT;
    ram->epoch = 1;
    if (map_all(impl) < 0) {
        int sys_errno = errno;

        fvm_ram_destroy(&ram);
        return fvm_err_set(err, FVM_ENOMEM, sys_errno, "mem",
                           "cannot reserve %llu MiB of guest memory: %s (look at ulimit -v and vm.overcommit_memory)",
                           (unsigned long long)(bytes >> 20), strerror(sys_errno));
    }
    *ret_ram = ram;
    return 0;
}

void fvm_ram_destroy(struct fvm_ram **ram_p)
{
    struct fvm_ram *ram = *ram_p;
    struct ram_impl *impl;

    if (!ram)
        return;
    impl = FVM_CONTAINER_OF(ram, struct ram_impl, ram);
    if (impl->map)
        munmap(impl->map, impl->map_bytes);
    if (ram->version)
        munmap(ram->version, ram->array_pages * sizeof(*ram->version));
    if (ram->flags)
        munmap(ram->flags, ram->array_pages);
    free(impl);
    *ram_p = NULL;
}

int fvm_ram_video_create(struct fvm_ram *ram, uint64_t bytes)
{
    uint64_t gpa = FVM_ALIGN_UP(ram->span_bytes, HUGE_BYTES);

    fvm_assert(bytes && !(bytes & FVM_PAGE_MASK) && bytes <= FVM_RAM_VIDEO_MAX);
    if (ram->video_bytes)
        return FVM_EEXIST;
    if (map_part(ram, gpa, bytes) < 0)
        return FVM_ENOMEM;
    ram->video_gpa = gpa;
    ram->video_bytes = bytes;
    return 0;
}

int fvm_ram_rom_create(struct fvm_ram *ram, const void *image, uint64_t bytes)
{
    uint64_t gpa = FVM_ALIGN_UP(ram->span_bytes, HUGE_BYTES) + FVM_RAM_VIDEO_MAX;

    fvm_assert(bytes && !(bytes & FVM_PAGE_MASK) && bytes <= FVM_RAM_ROM_MAX);
    if (ram->rom_bytes)
        return FVM_EEXIST;
    if (map_part(ram, gpa, bytes) < 0)
        return FVM_ENOMEM;
    memcpy(ram->base + gpa, image, bytes);
    if (mprotect(ram->base + gpa, bytes, PROT_READ) < 0)
        return FVM_ENOMEM;
    ram->rom_gpa = gpa;
    ram->rom_bytes = bytes;
    return 0;
}

void fvm_ram_set_a20(struct fvm_ram *ram, bool on)
{
    if (ram->a20_off != on)
        return;
    ram->a20_off = !on;
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    if (ram->window_hook)
        ram->window_hook(ram->window_hook_ctx);
}

void fvm_ram_video_window(struct fvm_ram *ram, fvm_gpa gpa, uint64_t bytes)
{
    fvm_assert(!((gpa | bytes) & FVM_PAGE_MASK) && bytes <= ram->video_bytes);
    if (ram->window_bytes == bytes && ram->window_gpa == gpa)
        return;
    ram->window_bytes = 0; /* a processor that looks meanwhile finds a device there */
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    ram->window_gpa = gpa;
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    ram->window_bytes = bytes;
    if (ram->window_hook)
        ram->window_hook(ram->window_hook_ctx);
}

void fvm_ram_watch(struct fvm_ram *ram, fvm_pfn pfn, bool on)
{
    fvm_assert(fvm_ram_has_page(ram, pfn) && on == !(ram->flags[pfn] & FVM_PAGE_WATCH));
    if (on)
        __atomic_fetch_or(&ram->flags[pfn], FVM_PAGE_WATCH, __ATOMIC_SEQ_CST);
    else
        __atomic_fetch_and(&ram->flags[pfn], (uint8_t)~FVM_PAGE_WATCH, __ATOMIC_SEQ_CST);
    ram->watched += on ? 1 : -1u;
    if (ram->window_hook)
        ram->window_hook(ram->window_hook_ctx);
}

int fvm_ram_read(const struct fvm_ram *ram, fvm_gpa gpa, void *buf, uint64_t len)
{
    if (!len)
        return 0;
    if (!fvm_ram_contains(ram, gpa, len))
        return FVM_EINVAL;
    memcpy(buf, fvm_ram_hva(ram, gpa), len);
    return 0;
}

int fvm_ram_write(struct fvm_ram *ram, fvm_gpa gpa, const void *buf, uint64_t len)
{
    if (!len)
        return 0;
    if (!fvm_ram_contains(ram, gpa, len))
        return FVM_EINVAL;
    memcpy(fvm_ram_hva(ram, gpa), buf, len);
    fvm_ram_mark_written(ram, gpa, len);
    return 0;
}

void *fvm_ram_map(const struct fvm_ram *ram, fvm_gpa gpa, uint64_t len)
{
    return fvm_ram_contains(ram, gpa, len) ? fvm_ram_hva(ram, gpa) : NULL;
}

uint32_t fvm_ram_epoch_next(struct fvm_ram *ram)
{
    uint32_t closed = __atomic_fetch_add(&ram->epoch, 1, __ATOMIC_SEQ_CST);

    fvm_assert(closed != UINT32_MAX);
    return closed;
}

static uint64_t resident_part(const uint8_t *start, uint64_t bytes)
{
    unsigned char vec[16384];
    uint64_t resident = 0;

    for (uint64_t done = 0; done < bytes;) {
        uint64_t n = FVM_MIN(bytes - done, sizeof(vec) * FVM_PAGE_SIZE);

        if (mincore((void *)(uintptr_t)(start + done), n, vec) < 0)
            return resident;
        for (uint64_t i = 0; i < n >> FVM_PAGE_SHIFT; i++)
            resident += (vec[i] & 1) ? FVM_PAGE_SIZE : 0;
        done += n;
    }
    return resident;
}

uint64_t fvm_ram_resident_bytes(const struct fvm_ram *ram)
{
    return resident_part(ram->base, ram->low_bytes) +
           (ram->high_bytes ? resident_part(ram->base + FVM_RAM_HIGH_BASE, ram->high_bytes) : 0);
}
