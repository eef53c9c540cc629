/*
 * acpi_loader.c - how firmware is to place the ACPI tables: allocate, then add addresses to pointers, then checksums.
 *
 * A command is 128 bytes: its number, then file names of 56 bytes and little-endian numbers (the format is QEMU's; SeaBIOS and
 * OVMF execute it). Invariant: every pointer of the blob is added to exactly once, and no table is summed before its pointers.
 */
#include <stdlib.h>
#include <string.h>

#include "vmm/firmware/boot.h"

enum { COMMAND_BYTES = 128, NAME_BYTES = 56, ALLOCATE = 1, ADD_POINTER = 2, ADD_CHECKSUM = 3, ZONE_HIGH = 1, ZONE_FSEG = 2 };
static const char tables_file[] = "etc/acpi/tables", rsdp_file[] = "etc/acpi/rsdp";

static uint8_t *next(uint8_t **at, uint32_t what, const char *file)
{
    uint8_t *c = *at;

    *at += COMMAND_BYTES;
    memcpy(c, &what, 4);
    memcpy(c + 4, file, strlen(file));
    return c + 4 + NAME_BYTES;
}

static void allocate(uint8_t **at, const char *file, uint32_t align, uint8_t zone)
{
    uint8_t *c = next(at, ALLOCATE, file);

    memcpy(c, &align, 4);
    c[4] = zone;
}

static void add_pointer(uint8_t **at, const char *file, uint32_t offset, uint32_t bytes)
{
    uint8_t *c = next(at, ADD_POINTER, file);

    memcpy(c, tables_file, sizeof(tables_file));
    memcpy(c + NAME_BYTES, &offset, 4);
    c[NAME_BYTES + 4] = (uint8_t)bytes;
}

static void add_checksum(uint8_t **at, const char *file, uint32_t result, uint32_t start, uint32_t len)
{
    uint8_t *c = next(at, ADD_CHECKSUM, file);

    memcpy(c, &result, 4);
    memcpy(c + 4, &start, 4);
    memcpy(c + 8, &len, 4);
}

int fvm_acpi_loader(const struct fvm_acpi_blob *blob, uint8_t **ret, size_t *ret_len)
{
    size_t count = 2 + blob->pointer_count + 2 + blob->table_count + 2;
    uint8_t *bytes = calloc(count, COMMAND_BYTES), *at = bytes;

    if (!bytes)
        return FVM_ENOMEM;
    allocate(&at, rsdp_file, 16, ZONE_FSEG);
    allocate(&at, tables_file, 64, ZONE_HIGH);
    for (unsigned i = 0; i < blob->pointer_count; i++)
        add_pointer(&at, tables_file, blob->pointer[i].at, blob->pointer[i].len);
    add_pointer(&at, rsdp_file, 16, 4);
    add_pointer(&at, rsdp_file, 24, 8);
    for (unsigned i = 0; i < blob->table_count; i++)
        add_checksum(&at, tables_file, blob->table[i].at + 9, blob->table[i].at, blob->table[i].len);
    add_checksum(&at, rsdp_file, 8, 0, 20);
    add_checksum(&at, rsdp_file, 32, 0, FVM_ACPI_RSDP_BYTES);
    fvm_assert(at == bytes + count * COMMAND_BYTES);
    *ret = bytes;
    *ret_len = count * COMMAND_BYTES;
    return 0;
}
