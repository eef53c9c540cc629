/*
 * aml.c - AML encoding (ACPI 6, chapter 20; resource descriptors chapter 6.4).
 *
 * A package's length stands before its contents and takes 1 to 4 bytes, so fvm_aml_end moves the contents up once the
 * length is known. Marks must be closed innermost first.
 */
#include "vmm/firmware/aml.h"

#include <string.h>

#include "base/err.h"

enum {
    OP_NAME = 0x08,
    OP_BYTE = 0x0a,
    OP_WORD = 0x0b,
    OP_DWORD = 0x0c,
    OP_STRING = 0x0d,
    OP_QWORD = 0x0e,
    OP_SCOPE = 0x10,
    OP_BUFFER = 0x11,
    OP_PACKAGE = 0x12,
    OP_EXT = 0x5b,
    OP_EXT_DEVICE = 0x82
};
enum { RESOURCE_IRQ = 0x22, RESOURCE_IO = 0x47, RESOURCE_END = 0x79, RESOURCE_MEMORY32_FIXED = 0x86, RESOURCE_DWORD = 0x87, RESOURCE_WORD = 0x88,
       RESOURCE_QWORD = 0x8a };
enum { RANGE_MEMORY = 0, RANGE_IO = 1, RANGE_BUS = 2, RANGE_FIXED = 0x0c, RANGE_ENTIRE_ISA = 3, RANGE_WRITABLE = 1 };

void fvm_aml_raw(struct fvm_aml *a, const void *bytes, size_t len)
{
    fvm_assert(len <= a->room - a->len);
    memcpy(a->bytes + a->len, bytes, len);
    a->len += len;
}

void fvm_aml_byte(struct fvm_aml *a, uint8_t value)
{
    fvm_aml_raw(a, &value, 1);
}

void fvm_aml_integer(struct fvm_aml *a, uint64_t value)
{
    if (value <= 1) {
        fvm_aml_byte(a, (uint8_t)value); /* ZeroOp, OneOp */
    } else if (value <= 0xff) {
        fvm_aml_byte(a, OP_BYTE);
        fvm_aml_raw(a, &value, 1);
    } else if (value <= 0xffff) {
        fvm_aml_byte(a, OP_WORD);
        fvm_aml_raw(a, &value, 2);
    } else if (value <= 0xffffffff) {
        fvm_aml_byte(a, OP_DWORD);
        fvm_aml_raw(a, &value, 4);
    } else {
        fvm_aml_byte(a, OP_QWORD);
        fvm_aml_raw(a, &value, 8);
    }
}

void fvm_aml_string(struct fvm_aml *a, const char *text)
{
    fvm_aml_byte(a, OP_STRING);
    fvm_aml_raw(a, text, strlen(text) + 1);
}

static void segment(struct fvm_aml *a, const char *seg)
{
    fvm_assert(strlen(seg) == 4);
    fvm_aml_raw(a, seg, 4);
}

void fvm_aml_name(struct fvm_aml *a, const char *seg)
{
    fvm_aml_byte(a, OP_NAME);
    segment(a, seg);
}

static unsigned hex(char c)
{
    return (unsigned)(c <= '9' ? c - '0' : c - 'A' + 10);
}

void fvm_aml_eisaid(struct fvm_aml *a, const char *id)
{
    uint8_t bytes[4];

    fvm_assert(strlen(id) == 7);
    bytes[0] = (uint8_t)((id[0] - 0x40) << 2 | (id[1] - 0x40) >> 3);
    bytes[1] = (uint8_t)((id[1] - 0x40) << 5 | (id[2] - 0x40));
    bytes[2] = (uint8_t)(hex(id[3]) << 4 | hex(id[4]));
    bytes[3] = (uint8_t)(hex(id[5]) << 4 | hex(id[6]));
    fvm_aml_byte(a, OP_DWORD);
    fvm_aml_raw(a, bytes, sizeof(bytes));
}

size_t fvm_aml_scope(struct fvm_aml *a, const char *seg)
{
    size_t mark;

    fvm_aml_byte(a, OP_SCOPE);
    mark = a->len;
    fvm_aml_byte(a, '\\');
    segment(a, seg);
    return mark;
}

size_t fvm_aml_device(struct fvm_aml *a, const char *seg)
{
    size_t mark;

    fvm_aml_byte(a, OP_EXT);
    fvm_aml_byte(a, OP_EXT_DEVICE);
    mark = a->len;
    segment(a, seg);
    return mark;
}

size_t fvm_aml_package(struct fvm_aml *a, uint8_t count)
{
    size_t mark;

    fvm_aml_byte(a, OP_PACKAGE);
    mark = a->len;
    fvm_aml_byte(a, count);
    return mark;
}

/* The length includes its own 1 to 4 bytes: two bits of the first byte say how many follow it. */
void fvm_aml_end(struct fvm_aml *a, size_t mark)
{
    size_t body = a->len - mark, extra, total;
    uint8_t enc[4];

    extra = body + 1 < 0x40 ? 0 : body + 2 < 0x1000 ? 1 : body + 3 < 0x100000 ? 2 : 3;
    total = body + 1 + extra;
    enc[0] = (uint8_t)(extra ? extra << 6 | (total & 0xf) : total);
    for (size_t i = 0; i < extra; i++)
        enc[i + 1] = (uint8_t)(total >> (4 + 8 * i));
    fvm_assert(1 + extra <= a->room - a->len);
    memmove(a->bytes + mark + 1 + extra, a->bytes + mark, body);
    memcpy(a->bytes + mark, enc, 1 + extra);
    a->len += 1 + extra;
}

size_t fvm_aml_resources(struct fvm_aml *a)
{
    fvm_aml_name(a, "_CRS");
    fvm_aml_byte(a, OP_BUFFER);
    return a->len;
}

void fvm_aml_resources_end(struct fvm_aml *a, size_t mark)
{
    static const uint8_t end_tag[2] = {RESOURCE_END, 0};
    size_t body;
    uint8_t enc[3];

    fvm_aml_raw(a, end_tag, sizeof(end_tag));
    body = a->len - mark;
    fvm_assert(body <= 0xffff && sizeof(enc) <= a->room - a->len);
    enc[0] = OP_WORD; /* buffer size */
    enc[1] = (uint8_t)body;
    enc[2] = (uint8_t)(body >> 8);
    memmove(a->bytes + mark + sizeof(enc), a->bytes + mark, body);
    memcpy(a->bytes + mark, enc, sizeof(enc));
    a->len += sizeof(enc);
    fvm_aml_end(a, mark);
}

void fvm_aml_io(struct fvm_aml *a, uint16_t port, uint8_t len)
{
    const uint8_t d[8] = {RESOURCE_IO, 1 /* 16 address lines */, (uint8_t)port, (uint8_t)(port >> 8), (uint8_t)port,
                          (uint8_t)(port >> 8), 1, len};

    fvm_aml_raw(a, d, sizeof(d));
}

void fvm_aml_irq(struct fvm_aml *a, unsigned irq)
{
    const uint8_t d[3] = {RESOURCE_IRQ, (uint8_t)(1u << irq), (uint8_t)((1u << irq) >> 8)};

    fvm_aml_raw(a, d, sizeof(d));
}

/* Word, DWord and QWord address space descriptors differ only in the width of five numbers. */
static void range(struct fvm_aml *a, uint8_t tag, unsigned width, uint8_t type, uint8_t type_flags, uint64_t first,
                  uint64_t last)
{
    const uint64_t numbers[5] = {0 /* granularity */, first, last, 0 /* translation */, last - first + 1};
    const uint8_t head[6] = {tag, (uint8_t)(3 + 5 * width), 0, type, RANGE_FIXED, type_flags};

    fvm_aml_raw(a, head, sizeof(head));
    for (unsigned i = 0; i < 5; i++)
        fvm_aml_raw(a, &numbers[i], width);
}

void fvm_aml_bus_range(struct fvm_aml *a, uint16_t first, uint16_t last)
{
    range(a, RESOURCE_WORD, 2, RANGE_BUS, 0, first, last);
}

void fvm_aml_io_range(struct fvm_aml *a, uint16_t first, uint16_t last)
{
    range(a, RESOURCE_WORD, 2, RANGE_IO, RANGE_ENTIRE_ISA, first, last);
}

void fvm_aml_memory32_fixed(struct fvm_aml *a, uint32_t base, uint32_t len)
{
    static const uint8_t head[4] = {RESOURCE_MEMORY32_FIXED, 9, 0, RANGE_WRITABLE};

    fvm_aml_raw(a, head, sizeof(head));
    fvm_aml_raw(a, &base, 4);
    fvm_aml_raw(a, &len, 4);
}

void fvm_aml_memory32_range(struct fvm_aml *a, uint32_t first, uint32_t last)
{
    range(a, RESOURCE_DWORD, 4, RANGE_MEMORY, RANGE_WRITABLE, first, last);
}

void fvm_aml_memory64_range(struct fvm_aml *a, uint64_t first, uint64_t last)
{
    range(a, RESOURCE_QWORD, 8, RANGE_MEMORY, RANGE_WRITABLE, first, last);
}
