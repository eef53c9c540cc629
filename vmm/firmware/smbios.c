/*
 * smbios.c - what the machine says of itself to inventories (SMBIOS 2.8, DSP0134): system, enclosure, processors, memory.
 *
 * A structure is a formatted area and then its strings, each ended by a zero, all ended by one more. Invariant: the entry
 * point's lengths and counts are those of the tables, its two checksums are right.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "vmm/firmware/boot.h"

enum { ROOM = 16384, ENTRY_BYTES = 31, TYPES_END = 127 };
enum { BIOS = 0, SYSTEM = 1, ENCLOSURE = 3, PROCESSOR = 4, MEMORY_ARRAY = 16, MEMORY_DEVICE = 17, MEMORY_RANGE = 19, BOOT = 32 };

struct writer {
    uint8_t *bytes;
    size_t len;
    unsigned count, largest;
    size_t start;      /* of the open structure */
    unsigned strings;
};

static uint8_t *begin(struct writer *w, uint8_t type, uint8_t len)
{
    uint8_t *p = w->bytes + w->len;
    uint16_t handle = (uint16_t)(type << 8 | (w->count & 0xff));

    fvm_assert(w->len + len + 256 <= ROOM);
    w->start = w->len;
    w->strings = 0;
    w->len += len;
    p[0] = type;
    p[1] = len;
    memcpy(p + 2, &handle, 2);
    return p;
}

/* Appends a string, returns its number. */
static uint8_t string(struct writer *w, const char *text)
{
    size_t len = strlen(text);

    fvm_assert(len < 80); /* ours, all of them short */
    if (!len)
        return 0;
    memcpy(w->bytes + w->len, text, len);
    w->len += len + 1;
    return (uint8_t)++w->strings;
}

static void end(struct writer *w)
{
    w->len += w->strings ? 1 : 2;
    w->count++;
    if (w->len - w->start > w->largest)
        w->largest = (unsigned)(w->len - w->start);
}

static void put(uint8_t *p, unsigned at, uint64_t value, unsigned bytes)
{
    memcpy(p + at, &value, bytes);
}

static void bios(struct writer *w, const struct fvm_smbios_config *c)
{
    uint8_t *p = begin(w, BIOS, 24);

    p[4] = string(w, "fvm");
    p[5] = string(w, c->version);
    put(p, 6, 0xe800, 2);  /* starts at e8000 */
    p[8] = string(w, "01/01/2025");
    put(p, 10, 1u << 3, 8); /* "characteristics are not supported" */
    p[19] = 0x1c;           /* UEFI not; virtual machine; targeted content */
    p[20] = p[21] = 0;
    p[22] = p[23] = 0xff;   /* no embedded controller */
    end(w);
}

static void system_info(struct writer *w, const struct fvm_smbios_config *c)
{
    char product[64];
    uint8_t *p = begin(w, SYSTEM, 27);

    snprintf(product, sizeof(product), "Virtual machine (%s)", c->product);
    p[4] = string(w, "fvm");
    p[5] = string(w, product);
    p[6] = string(w, c->version);
    /* the first three fields of a UUID are little-endian here */
    for (unsigned i = 0; i < 16; i++)
        p[8 + i] = c->uuid[i < 4 ? 3 - i : i < 6 ? 9 - i : i < 8 ? 13 - i : i];
    p[24] = 6; /* woken by the power switch */
    end(w);
}

static void enclosure(struct writer *w, const struct fvm_smbios_config *c)
{
    uint8_t *p = begin(w, ENCLOSURE, 21);

    p[4] = string(w, "fvm");
    p[5] = 1; /* other */
    p[6] = string(w, c->version);
    p[9] = p[10] = p[11] = 3; /* safe */
    p[12] = 2;
    end(w);
}

static void processors(struct writer *w, const struct fvm_smbios_config *c)
{
    for (unsigned i = 0; i < c->cpu_count; i++) {
        char socket[16];
        uint8_t *p = begin(w, PROCESSOR, 42);

        snprintf(socket, sizeof(socket), "CPU %u", i);
        p[4] = string(w, socket);
        p[5] = 3; /* central processor */
        p[6] = 1;
        p[7] = string(w, "fvm");
        p[24] = 0x41; /* populated, enabled */
        p[25] = 1;
        put(p, 26, 0xffffff, 2);
        put(p, 28, 0xffff, 2);
        put(p, 30, 0xffff, 2);
        p[35] = p[36] = p[37] = 1; /* cores, enabled, threads */
        put(p, 38, 4, 2);          /* 64 bits */
        put(p, 40, 1, 2);
        end(w);
    }
}

static void memory(struct writer *w, const struct fvm_smbios_config *c)
{
    uint64_t kib = c->memory_bytes >> 10, mib = c->memory_bytes >> 20;
    uint16_t array;
    uint8_t *p = begin(w, MEMORY_ARRAY, 23);

    memcpy(&array, p + 2, 2);
    p[4] = 1;
    p[5] = 3; /* system memory */
    p[6] = 6; /* multi-bit correction */
    put(p, 7, kib < 0x80000000u ? kib : 0x80000000u, 4);
    put(p, 11, 0xfffe, 2);
    put(p, 13, 1, 2);
    put(p, 15, kib < 0x80000000u ? 0 : c->memory_bytes, 8);
    end(w);
    p = begin(w, MEMORY_DEVICE, 40);
    put(p, 4, array, 2);
    put(p, 6, 0xfffe, 2);
    put(p, 8, 0xffff, 2);
    put(p, 10, 0xffff, 2);
    put(p, 12, mib < 0x7fff ? mib : 0x7fff, 2);
    p[14] = 9; /* DIMM */
    p[16] = string(w, "DIMM 0");
    p[18] = 7; /* RAM */
    put(p, 28, mib < 0x7fff ? 0 : mib, 4);
    p[23] = string(w, "fvm");
    end(w);
    p = begin(w, MEMORY_RANGE, 31);
    put(p, 4, kib < UINT32_MAX ? 0 : UINT32_MAX, 4);
    put(p, 8, kib < UINT32_MAX ? kib - 1 : UINT32_MAX, 4);
    put(p, 12, array, 2);
    p[14] = 1;
    put(p, 23, kib < UINT32_MAX ? 0 : c->memory_bytes - 1, 8);
    end(w);
}

static uint8_t checksum(const uint8_t *p, size_t len)
{
    uint8_t sum = 0;

    for (size_t i = 0; i < len; i++)
        sum = (uint8_t)(sum + p[i]);
    return (uint8_t)-sum;
}

static void entry_checksums(uint8_t *e)
{
    e[4] = e[21] = 0;
    e[21] = checksum(e + 16, 15);
    e[4] = checksum(e, ENTRY_BYTES);
}

int fvm_smbios_build(const struct fvm_smbios_config *config, struct fvm_smbios *ret)
{
    struct writer w = {.bytes = calloc(1, ROOM)};
    uint8_t *e = ret->anchor;

    if (!w.bytes)
        return FVM_ENOMEM;
    bios(&w, config);
    system_info(&w, config);
    enclosure(&w, config);
    processors(&w, config);
    memory(&w, config);
    begin(&w, BOOT, 11);
    end(&w);
    begin(&w, TYPES_END, 4);
    end(&w);
    memset(e, 0, ENTRY_BYTES);
    memcpy(e, "_SM_", 4);
    e[5] = ENTRY_BYTES;
    e[6] = 2;
    e[7] = 8;
    put(e, 8, w.largest, 2);
    memcpy(e + 16, "_DMI_", 5);
    put(e, 22, w.len, 2);
    put(e, 28, w.count, 2);
    e[30] = 0x28;
    entry_checksums(e);
    ret->tables = w.bytes;
    ret->len = w.len;
    return 0;
}

void fvm_smbios_fini(struct fvm_smbios *s)
{
    free(s->tables);
    s->tables = NULL;
}

int fvm_smbios_install(struct fvm_ram *ram, const struct fvm_smbios_config *config, struct fvm_err *err)
{
    struct fvm_smbios s;
    uint64_t tables = FVM_BOOT_SMBIOS_GPA + FVM_ALIGN_UP(ENTRY_BYTES, 16);
    int r = fvm_smbios_build(config, &s);

    if (!r) {
        put(s.anchor, 24, tables, 4);
        entry_checksums(s.anchor);
        r = tables + s.len > FVM_BOOT_ACPI_END ? FVM_ENOSPC : fvm_ram_write(ram, FVM_BOOT_SMBIOS_GPA, s.anchor, ENTRY_BYTES);
        if (!r)
            r = fvm_ram_write(ram, tables, s.tables, s.len);
        fvm_smbios_fini(&s);
    }
    return r ? fvm_err_set(err, r, 0, "firmware", "cannot write the SMBIOS tables: %s", fvm_err_text(r)) : 0;
}
