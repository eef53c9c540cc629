/*
 * ram.h - guest RAM: the only door to it for C code, and the keeper of page versions.
 *
 * Layout: gpa 0 .. low_bytes (at most 3 GiB), a hole for devices, then 4 GiB up. In the host the whole range of
 * gpas is one reservation, so host address = base + gpa; the hole is PROT_NONE. RAM is anonymous memory, on demand.
 *
 * Versions: each page has the epoch of its last write. A new epoch is opened by fvm_ram_epoch_next (the dirty log:
 * every write right in the shadow tables must be withdrawn then, see mmu/shadow.h). A page is newer than what a
 * destination has when version[pfn] > acknowledged epoch. Epoch 0 = never written since RAM was made (reads as zero).
 *
 * Translated stores do not pass here; they pass through a shadow write right, whose granting calls
 * fvm_ram_mark_written. Every other write (DMA, loader, the CPU's own tables) goes through fvm_ram_write or
 * fvm_ram_map(...write) + _mark_written. After the bytes are written, the "code hook" is told if the page holds
 * translated code.
 *
 * Video memory: a display adapter's own memory, kept here so that processors reach it as fast as RAM. It lies behind
 * RAM in the reservation, at a pseudo address (video_gpa) that no guest can name; guests see it through a window that
 * the adapter places (a PCI BAR), and fvm_ram_direct leads from there. It has page versions too, but is not RAM: not
 * executed, not in fvm_ram_contains, not migrated as RAM.
 *
 * ROM: the firmware's image at the end of the first 4 GiB, kept behind video memory in the same way. Read and executed, never written.
 *
 * Threads: any; version stores are relaxed atomics.
 */
#ifndef FVM_VMM_MEM_RAM_H
#define FVM_VMM_MEM_RAM_H

#include "base/err.h"
#include "base/types.h"

#define FVM_RAM_LOW_MAX (3ull << 30)
#define FVM_RAM_HIGH_BASE (4ull << 30)

enum { /* fvm_ram_page_flags: per page, kept here because every writer must see them */
    FVM_PAGE_CODE = 1,     /* holds bytes that were translated */
    FVM_PAGE_PT = 2,       /* a traced guest page table */
    FVM_PAGE_ABSENT = 4,   /* post-copy: not arrived yet */
    FVM_PAGE_WATCH = 8,    /* a debugger watches it: processors' loads and stores go to the bus, which knows who */
};

struct fvm_ram {
    uint8_t *base;          /* hva of gpa 0 */
    uint64_t span_bytes;    /* reservation: highest gpa + 1 */
    uint64_t low_bytes;     /* RAM below the hole */
    uint64_t high_bytes;    /* RAM above 4 GiB */
    uint64_t page_count;    /* span_bytes >> 12: RAM's part of the arrays below (hole included) */
    uint64_t array_pages;   /* length of the arrays: page_count, video memory and ROM */
    uint32_t *version;      /* [array_pages] epoch of last write */
    uint8_t *flags;         /* [array_pages] FVM_PAGE_* */
    uint32_t epoch;         /* current epoch, starts at 1 */
    /* Called after a write to a page with FVM_PAGE_CODE, by whoever wrote, with the range written. */
    void (*code_hook)(void *ctx, fvm_gpa gpa, uint64_t len);
    void *code_hook_ctx;
    uint64_t video_gpa, video_bytes;   /* pseudo address of video memory; bytes 0: none yet */
    uint64_t window_gpa, window_bytes; /* where guests see it now; bytes 0: nowhere */
    uint64_t rom_gpa, rom_bytes;       /* pseudo address of the ROM, seen at 4 GiB - rom_bytes */
    bool a20_off;           /* address line 20 is held low, as on an AT: fvm_ram_set_a20 */
    uint32_t watched;       /* pages with FVM_PAGE_WATCH; changed while all processors stand still */
    bool legacy_hole;       /* a device answers at a0000..bffff, not the RAM behind */
    /* The window moved, or A20 changed: translations made before must go. May be NULL. */
    void (*window_hook)(void *ctx);
    void *window_hook_ctx;
};

#define FVM_RAM_VIDEO_MAX (64ull << 20)
#define FVM_RAM_ROM_MAX (16ull << 20)
#define FVM_RAM_LEGACY_GPA 0xa0000ull
#define FVM_RAM_LEGACY_BYTES 0x20000ull

int fvm_ram_create(uint64_t bytes, struct fvm_ram **ret_ram, struct fvm_err *err);
void fvm_ram_destroy(struct fvm_ram **ram_p);

static inline bool fvm_ram_contains(const struct fvm_ram *ram, fvm_gpa gpa, uint64_t len)
{
    return (gpa < ram->low_bytes && len <= ram->low_bytes - gpa) ||
           (gpa >= FVM_RAM_HIGH_BASE && gpa - FVM_RAM_HIGH_BASE < ram->high_bytes &&
            len <= ram->high_bytes - (gpa - FVM_RAM_HIGH_BASE));
}
static inline bool fvm_ram_has_page(const struct fvm_ram *ram, fvm_pfn pfn)
{
    return fvm_ram_contains(ram, pfn << FVM_PAGE_SHIFT, FVM_PAGE_SIZE);
}
static inline fvm_gpa fvm_ram_a20(const struct fvm_ram *ram, fvm_gpa gpa)
{
    return ram->a20_off ? gpa & ~0x100000ull : gpa;
}
/** The gate of address line 20 (keyboard controller, port 92): calls window_hook. Board lock held. */
void fvm_ram_set_a20(struct fvm_ram *ram, bool on);
static inline bool fvm_ram_is_watched(const struct fvm_ram *ram, fvm_gpa gpa)
{
    return FVM_UNLIKELY(ram->watched != 0) && fvm_ram_has_page(ram, gpa >> FVM_PAGE_SHIFT) &&
           (ram->flags[gpa >> FVM_PAGE_SHIFT] & FVM_PAGE_WATCH);
}
/**
 * Does a processor's access to this page go to memory, and not to a device? Then *gpa, changed for video memory, is
 * what versions, flags and host addresses go by.
 */
static inline bool fvm_ram_direct(const struct fvm_ram *ram, fvm_gpa *gpa)
{
    *gpa = fvm_ram_a20(ram, *gpa);
    if (fvm_ram_is_watched(ram, *gpa))
        return false;
    if (fvm_ram_has_page(ram, *gpa >> FVM_PAGE_SHIFT))
        return !ram->legacy_hole || *gpa - FVM_RAM_LEGACY_GPA >= FVM_RAM_LEGACY_BYTES;
    if (*gpa - (FVM_RAM_HIGH_BASE - ram->rom_bytes) < ram->rom_bytes) {
        *gpa = ram->rom_gpa + (*gpa - (FVM_RAM_HIGH_BASE - ram->rom_bytes));
        return true;
    }
    if (*gpa - ram->window_gpa >= ram->window_bytes)
        return false;
    *gpa = ram->video_gpa + (*gpa - ram->window_gpa);
    return true;
}
/** Is this (from fvm_ram_direct) video memory? Never executed. */
static inline bool fvm_ram_is_video(const struct fvm_ram *ram, fvm_gpa gpa)
{
    return gpa - ram->video_gpa < ram->video_bytes;
}
/** Is this (from fvm_ram_direct) ROM? Never written: a write is the bus'. */
static inline bool fvm_ram_is_rom(const struct fvm_ram *ram, fvm_gpa gpa)
{
    return gpa - ram->rom_gpa < ram->rom_bytes;
}
/** Put a ROM (whole pages, at most FVM_RAM_ROM_MAX) at the end of the first 4 GiB, once. FVM_EEXIST: there is one. */
int fvm_ram_rom_create(struct fvm_ram *ram, const void *image, uint64_t bytes);
/**
 * Give the machine video memory: whole pages, at most FVM_RAM_VIDEO_MAX, once, before processors are made. It reads as
 * zero. FVM_EEXIST: there is some already.
 */
int fvm_ram_video_create(struct fvm_ram *ram, uint64_t bytes);
/** A debugger begins or ends to watch a page of RAM. All processors stand still; window_hook is told. */
void fvm_ram_watch(struct fvm_ram *ram, fvm_pfn pfn, bool on);
/** Show it at gpa, page-aligned; bytes 0: nowhere. Board lock held. */
void fvm_ram_video_window(struct fvm_ram *ram, fvm_gpa gpa, uint64_t bytes);
/** hva of a gpa that fvm_ram_contains, or that fvm_ram_direct gave. */
static inline uint8_t *fvm_ram_hva(const struct fvm_ram *ram, fvm_gpa gpa)
{
    return ram->base + gpa;
}
/** Note a write to [gpa, gpa+len): version = epoch; code hook where needed. Call after the bytes are there. */
void fvm_ram_mark_written(struct fvm_ram *ram, fvm_gpa gpa, uint64_t len);
/** Only the version of one page, without the code hook: for granting a write right (mmu/shadow). */
void fvm_ram_mark_version(struct fvm_ram *ram, fvm_pfn pfn);
/** Checked copies; FVM_EINVAL when any byte is outside RAM (then nothing was copied). */
int fvm_ram_read(const struct fvm_ram *ram, fvm_gpa gpa, void *buf, uint64_t len);
int fvm_ram_write(struct fvm_ram *ram, fvm_gpa gpa, const void *buf, uint64_t len);
/** hva for direct access to [gpa, gpa+len), NULL if not all RAM. A writer calls fvm_ram_mark_written afterwards. */
void *fvm_ram_map(const struct fvm_ram *ram, fvm_gpa gpa, uint64_t len);
/** Opens the next epoch; returns the one that closed. Caller withdraws write rights afterwards (vm.h does both). */
uint32_t fvm_ram_epoch_next(struct fvm_ram *ram);
/** Bytes of RAM resident in the host (mincore); for stats. */
uint64_t fvm_ram_resident_bytes(const struct fvm_ram *ram);

#endif
