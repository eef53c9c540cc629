/*
 * e820.c - the memory map that a PC's firmware would tell: RAM below 640 KiB, the BIOS area with our ACPI tables, RAM
 * up to the PCI hole, the APICs, RAM above 4 GiB. Invariant: ascending, disjoint, and every byte called RAM is RAM
 * that no table of ours lives in once the guest runs.
 */
#include "vmm/firmware/boot.h"

static void add(struct fvm_e820_entry *map, unsigned *count, uint64_t base, uint64_t end, uint32_t type)
{
    if (end <= base)
        return;
    fvm_assert(*count < FVM_E820_MAX);
    map[(*count)++] = (struct fvm_e820_entry){.base = base, .len = end - base, .type = type};
}

unsigned fvm_e820_build(const struct fvm_ram *ram, struct fvm_e820_entry ret_map[FVM_E820_MAX])
{
    unsigned count = 0;

    add(ret_map, &count, 0, FVM_MIN(FVM_BOOT_LOW_END, ram->low_bytes), FVM_E820_RAM);
    add(ret_map, &count, FVM_BOOT_LOW_END, 0xa0000, FVM_E820_RESERVED);
    add(ret_map, &count, FVM_BOOT_ACPI_GPA, FVM_BOOT_ACPI_END, FVM_E820_RESERVED);
    add(ret_map, &count, 0x100000, ram->low_bytes, FVM_E820_RAM);
    add(ret_map, &count, 0xfec00000, 0xfec01000, FVM_E820_RESERVED);
    add(ret_map, &count, 0xfee00000, 0xfee01000, FVM_E820_RESERVED);
    add(ret_map, &count, FVM_RAM_HIGH_BASE, FVM_RAM_HIGH_BASE + ram->high_bytes, FVM_E820_RAM);
    return count;
}
