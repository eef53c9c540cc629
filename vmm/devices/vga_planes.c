/*
 * vga_planes.c - the processor's view of video memory at a0000..bffff: banks, chained modes, odd/even, and the planar
 * unit with its latches, set/reset, rotation, logic functions and bit mask (IBM VGA technical reference, graphics
 * controller).
 *
 *     address in the window -> (bank) -> chain 4:   one byte
 *                                        odd/even:  plane = address bit 0, for text
 *                                        planar:    four planes at once through the latches
 *
 * Invariant: no access leaves video memory, whatever registers say.
 */
#include <string.h>

#include "vmm/devices/vga_impl.h"

void fvm_vga_mark(struct fvm_vga *vga, uint32_t offset, uint32_t len)
{
    struct fvm_ram *ram = vga->dev.board->ram;

    for (uint64_t page = offset >> FVM_PAGE_SHIFT; page <= (offset + len - 1) >> FVM_PAGE_SHIFT; page++)
        fvm_ram_mark_version(ram, (ram->video_gpa >> FVM_PAGE_SHIFT) + page);
}

/* Offset from a0000 -> address within the memory map, banked. UINT32_MAX: nothing there. */
static uint32_t map_address(const struct fvm_vga *vga, uint64_t offset)
{
    static const struct {
        uint32_t base, len;
    } maps[4] = {{0, 0x20000}, {0, 0x10000}, {0x10000, 0x8000}, {0x18000, 0x8000}};
    unsigned map = (vga->gc[GC_MISC] >> 2) & 3;
    uint32_t bank = map == 1 && fvm_vga_linear(vga) ? (uint32_t)vga->dispi[DISPI_BANK] * VGA_BANK_BYTES : 0;

    if (offset < maps[map].base || offset - maps[map].base >= maps[map].len)
        return UINT32_MAX;
    return (uint32_t)(offset - maps[map].base) + bank;
}

static uint32_t load_dword(const struct fvm_vga *vga, uint32_t at)
{
    uint32_t value;

    memcpy(&value, vga->memory + at, 4);
    return value;
}

static uint32_t spread(uint8_t byte) /* the byte in all four planes */
{
    return byte * 0x01010101u;
}

static uint32_t plane_mask(unsigned bits) /* bit p -> ff in plane p */
{
    uint32_t mask = 0;

    for (unsigned p = 0; p < 4; p++)
        if (bits & (1u << p))
            mask |= 0xffu << (8 * p);
    return mask;
}

static uint8_t read_byte(struct fvm_vga *vga, uint64_t offset)
{
    uint32_t address = map_address(vga, offset), at;

    if (address == UINT32_MAX)
        return 0xff;
    if (vga->seq[SEQ_MEMORY] & 8) {
        return address < vga->memory_bytes ? vga->memory[address] : 0xff;
    } else if (vga->gc[GC_MODE] & 0x10) {
        at = (address & ~1u) << 1 | (vga->gc[GC_READ_MAP] & 2u) | (address & 1);
        return at < vga->memory_bytes ? vga->memory[at] : 0xff;
    }
    if (address >= vga->memory_bytes / 4)
        return 0xff;
    vga->latch = load_dword(vga, 4 * address);
    if (vga->gc[GC_MODE] & 8) { /* read mode 1: which pixels have the colour asked for */
        uint32_t care = plane_mask(vga->gc[GC_DONT_CARE]), differ = (vga->latch ^ plane_mask(vga->gc[GC_COMPARE])) & care;

        return (uint8_t) ~(differ | differ >> 8 | differ >> 16 | differ >> 24);
    }
    return (uint8_t)(vga->latch >> (8 * (vga->gc[GC_READ_MAP] & 3)));
}

/* What the planar unit makes of a byte and the latches. */
static uint32_t combine(const struct fvm_vga *vga, uint8_t byte)
{
    unsigned rotate = vga->gc[GC_ROTATE] & 7, mode = vga->gc[GC_MODE] & 3;
    uint8_t rotated = (uint8_t)(byte >> rotate | byte << (8 - rotate));
    uint32_t bits = spread(vga->gc[GC_BIT_MASK]), value, enable;

    switch (mode) {
    case 0:
        enable = plane_mask(vga->gc[GC_ENABLE_SET_RESET]);
        value = (spread(rotated) & ~enable) | (plane_mask(vga->gc[GC_SET_RESET]) & enable);
        break;
    case 1:
        return vga->latch;
    case 2:
        value = plane_mask(byte & 0xf);
        break;
    default:
        value = plane_mask(vga->gc[GC_SET_RESET]);
        bits &= spread(rotated);
        break;
    }
    switch (mode == 3 ? 0 : (vga->gc[GC_ROTATE] >> 3) & 3) {
    case 1: value &= vga->latch; break;
    case 2: value |= vga->latch; break;
    case 3: value ^= vga->latch; break;
    default: break;
    }
    return (value & bits) | (vga->latch & ~bits);
}

static void write_byte(struct fvm_vga *vga, uint64_t offset, uint8_t byte)
{
    uint32_t address = map_address(vga, offset), at, mask, value;

    if (address == UINT32_MAX)
        return;
    if ((vga->seq[SEQ_MEMORY] & 8) || (vga->gc[GC_MODE] & 0x10)) {
        unsigned plane = address & 3;

        at = address;
        if (!(vga->seq[SEQ_MEMORY] & 8)) {
            plane = (vga->gc[GC_READ_MAP] & 2u) | (address & 1);
            at = (address & ~1u) << 1 | plane;
        }
        if (!(vga->seq[SEQ_MAP_MASK] & (1u << plane)) || at >= vga->memory_bytes)
            return;
        vga->memory[at] = byte;
        fvm_vga_mark(vga, at, 1);
        return;
    }
    if (address >= vga->memory_bytes / 4)
        return;
    mask = plane_mask(vga->seq[SEQ_MAP_MASK]);
    value = (load_dword(vga, 4 * address) & ~mask) | (combine(vga, byte) & mask);
    memcpy(vga->memory + 4 * address, &value, 4);
    fvm_vga_mark(vga, 4 * address, 4);
}

static uint64_t planes_read(void *ctx, uint64_t offset, unsigned size)
{
    uint64_t value = 0;

    for (unsigned i = 0; i < size; i++)
        value |= (uint64_t)read_byte(ctx, offset + i) << (8 * i);
    return value;
}

static void planes_write(void *ctx, uint64_t offset, unsigned size, uint64_t value)
{
    for (unsigned i = 0; i < size; i++)
        write_byte(ctx, offset + i, (uint8_t)(value >> (8 * i)));
}

const struct fvm_bus_ops fvm_vga_planes_ops = {.read = planes_read, .write = planes_write};
