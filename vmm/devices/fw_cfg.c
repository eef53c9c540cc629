/*
 * fw_cfg.c - items for firmware, byte by byte at port 511 or by DMA (QEMU's docs/specs/fw_cfg; SeaBIOS, OVMF and Linux speak it).
 *
 * Selecting an item (16 bits to port 510) rewinds it; what lies behind its end, or an item that is not there, reads as zeros. A DMA
 * request is a structure in RAM whose address is written to ports 514 and 518, everything big-endian; it is done when the write
 * returns. Nothing can be written to an item.
 */
#include "vmm/devices/fw_cfg.h"

#include <endian.h>
#include <stdlib.h>
#include <string.h>

#include "proto/device_state.pb-c.h"
#include "vmm/devices/pack.h"

enum { PORT_SELECT = 0x510, PORT_DMA = 0x514, KEY_SIGNATURE = 0, KEY_ID = 1, KEY_FILES = 0x19, KEY_FIRST_FILE = 0x20 };
enum { ITEMS_MAX = FVM_FW_CFG_FILES_MAX + 16, ID_TRADITIONAL = 1, ID_DMA = 2 };
enum { DMA_ERROR = 1, DMA_READ = 2, DMA_SKIP = 4, DMA_SELECT = 8, DMA_WRITE = 16 };
enum { CHUNK = 4096 };

struct item {
    uint16_t key;
    uint8_t *bytes; /* malloc'd */
    uint32_t len;
};

struct file { /* as in the directory */
    uint32_t size;
    uint16_t select, reserved;
    char name[FVM_FW_CFG_NAME_MAX + 1];
};
_Static_assert(sizeof(struct file) == 64, "as in the directory");

struct fw_cfg {
    struct fvm_device dev;
    struct item item[ITEMS_MAX];
    unsigned item_count;
    struct {
        uint32_t count;
        struct file file[FVM_FW_CFG_FILES_MAX];
    } directory; /* big-endian */
    unsigned file_count;
    uint16_t selected;
    uint32_t offset;
    uint32_t dma_high; /* of the next request's address */
    int claim_id[2];
};

static struct item *find(struct fw_cfg *f, uint16_t key)
{
    for (unsigned i = 0; i < f->item_count; i++)
        if (f->item[i].key == key)
            return &f->item[i];
    return NULL;
}

static void select_item(struct fw_cfg *f, uint16_t key)
{
    f->selected = key;
    f->offset = 0;
}

/* The next bytes of the item; zeros behind its end. */
static void take(struct fw_cfg *f, uint8_t *buf, uint32_t len)
{
    const struct item *item = find(f, f->selected);
    uint32_t have = item && f->offset < item->len ? FVM_MIN(len, item->len - f->offset) : 0;

    memset(buf, 0, len);
    if (have)
        memcpy(buf, item->bytes + f->offset, have);
    f->offset += FVM_MIN(len, UINT32_MAX - f->offset);
}

/* ---- DMA ---- */

static bool transfer(struct fw_cfg *f, uint64_t gpa, uint32_t len)
{
    const struct item *item = find(f, f->selected);
    uint8_t buf[CHUNK];

    while (len) {
        uint32_t n = FVM_MIN(len, (uint32_t)CHUNK);

        if (!item && n == CHUNK && len > 16u << 20)
            return false; /* gigabytes of zeros */
        take(f, buf, n);
        if (fvm_ram_write(f->dev.board->ram, gpa, buf, n) != 0)
            return false;
        gpa += n;
        len -= n;
    }
    return true;
}

static void dma(struct fw_cfg *f, uint64_t gpa)
{
    struct fvm_ram *ram = f->dev.board->ram;
    struct {
        uint32_t control, len;
        uint64_t address;
    } r;
    uint32_t control, len, answer = 0;

    if (fvm_ram_read(ram, gpa, &r, sizeof(r)) != 0)
        return;
    control = be32toh(r.control);
    len = be32toh(r.len);
    if (control & DMA_SELECT)
        select_item(f, (uint16_t)(control >> 16));
    if (control & DMA_READ) {
        if (len > 64u << 20 || !transfer(f, be64toh(r.address), len))
            answer = DMA_ERROR;
    } else if (control & DMA_WRITE) {
        answer = DMA_ERROR;
    } else if (control & DMA_SKIP) {
        f->offset += FVM_MIN(len, UINT32_MAX - f->offset);
    }
    answer = htobe32(answer);
    (void)fvm_ram_write(ram, gpa, &answer, sizeof(answer)); /* it was read from there */
}

static uint64_t dma_read(void *ctx, uint64_t offset, unsigned size)
{
    static const uint8_t signature[8] = {'Q', 'E', 'M', 'U', ' ', 'C', 'F', 'G'};
    uint64_t value = 0;

    (void)ctx;
    memcpy(&value, signature + offset, size);
    return value;
}

static void dma_write(void *ctx, uint64_t offset, unsigned size, uint64_t value)
{
    struct fw_cfg *f = ctx;

    if (size != 4)
        return;
    if (offset == 0) {
        f->dma_high = be32toh((uint32_t)value);
    } else if (offset == 4) {
        dma(f, (uint64_t)f->dma_high << 32 | be32toh((uint32_t)value));
        f->dma_high = 0;
    }
}

/* ---- byte by byte ---- */

static uint64_t port_read(void *ctx, uint64_t offset, unsigned size)
{
    uint8_t byte = 0;

    if (offset == 1 && size == 1)
        take(ctx, &byte, 1);
    return byte;
}

static void port_write(void *ctx, uint64_t offset, unsigned size, uint64_t value)
{
    if (offset == 0 && size == 2)
        select_item(ctx, (uint16_t)value);
}

static const struct fvm_bus_ops port_ops = {.read = port_read, .write = port_write};
static const struct fvm_bus_ops dma_ops = {.read = dma_read, .write = dma_write};

/* ---- contents ---- */

int fvm_fw_cfg_add(struct fvm_device *dev, uint16_t key, const void *bytes, size_t len)
{
    struct fw_cfg *f = (struct fw_cfg *)dev;
    struct item *item = find(f, key);
    uint8_t *copy = malloc(len + 1);

    if (!copy)
        return FVM_ENOMEM;
    if (len > UINT32_MAX / 2 || (!item && f->item_count == ITEMS_MAX)) {
        free(copy);
        return FVM_ENOSPC;
    }
    memcpy(copy, bytes, len);
    if (!item)
        item = &f->item[f->item_count++];
    else
        free(item->bytes);
    *item = (struct item){.key = key, .bytes = copy, .len = (uint32_t)len};
    return 0;
}

int fvm_fw_cfg_add_file(struct fvm_device *dev, const char *name, const void *bytes, size_t len)
{
    struct fw_cfg *f = (struct fw_cfg *)dev;
    unsigned i = 0;
    int r;

    fvm_assert(strlen(name) <= FVM_FW_CFG_NAME_MAX);
    while (i < f->file_count && strcmp(f->directory.file[i].name, name) != 0)
        i++;
    if (i == FVM_FW_CFG_FILES_MAX)
        return FVM_ENOSPC;
    r = fvm_fw_cfg_add(dev, (uint16_t)(KEY_FIRST_FILE + i), bytes, len);
    if (r)
        return r;
    if (i == f->file_count)
        f->file_count++;
    f->directory.count = htobe32(f->file_count);
    f->directory.file[i].size = htobe32((uint32_t)len);
    f->directory.file[i].select = htobe16((uint16_t)(KEY_FIRST_FILE + i));
    memcpy(f->directory.file[i].name, name, strlen(name) + 1);
    return fvm_fw_cfg_add(dev, KEY_FILES, &f->directory, 4 + f->file_count * sizeof(struct file));
}

/* ---- lifecycle ---- */

static void fw_cfg_reset(struct fvm_device *dev)
{
    struct fw_cfg *f = (struct fw_cfg *)dev;

    select_item(f, 0);
    f->dma_high = 0;
}

static void fw_cfg_destroy(struct fvm_device *dev)
{
    struct fw_cfg *f = (struct fw_cfg *)dev;

    for (unsigned i = 0; i < 2; i++)
        if (f->claim_id[i] >= 0)
            fvm_bus_release(dev->board->bus, f->claim_id[i]);
    for (unsigned i = 0; i < f->item_count; i++)
        free(f->item[i].bytes);
    free(f);
}

static int fw_cfg_save(struct fvm_device *dev, uint8_t **ret_buf, size_t *ret_len)
{
    struct fw_cfg *f = (struct fw_cfg *)dev;
    Fvm__FwCfgState s = FVM__FW_CFG_STATE__INIT;

    s.selected = f->selected;
    s.offset = f->offset;
    s.dma_high = f->dma_high;
    return fvm_device_pack(&s.base, ret_buf, ret_len);
}

static int fw_cfg_check(struct fvm_device *dev, const uint8_t *buf, size_t len, struct fvm_err *err)
{
    Fvm__FwCfgState *s = (void *)fvm_device_unpack(&fvm__fw_cfg_state__descriptor, dev, buf, len, err);
    int r = 0;

    if (!s)
        return FVM_EBADIMAGE;
    if (s->selected > 0xffff)
        r = fvm_device_refuse(dev, err, "selected item");
    fvm__fw_cfg_state__free_unpacked(s, NULL);
    return r;
}

static void fw_cfg_restore(struct fvm_device *dev, const uint8_t *buf, size_t len)
{
    struct fw_cfg *f = (struct fw_cfg *)dev;
    Fvm__FwCfgState *s = fvm__fw_cfg_state__unpack(NULL, len, buf);

    fvm_assert(s);
    f->selected = (uint16_t)s->selected;
    f->offset = s->offset;
    f->dma_high = s->dma_high;
    fvm__fw_cfg_state__free_unpacked(s, NULL);
}

static const struct fvm_device_ops fw_cfg_ops = {
    .name = "fw_cfg",
    .destroy = fw_cfg_destroy,
    .reset = fw_cfg_reset,
    .save = fw_cfg_save,
    .check = fw_cfg_check,
    .restore = fw_cfg_restore,
};

int fvm_fw_cfg_create(struct fvm_board *board, struct fvm_device **ret_dev)
{
    const uint32_t id = htole32(ID_TRADITIONAL | ID_DMA);
    struct fw_cfg *f = calloc(1, sizeof(*f));
    int r;

    if (!f)
        return FVM_ENOMEM;
    fvm_device_init(&f->dev, &fw_cfg_ops, "fw_cfg", board);
    f->claim_id[0] = f->claim_id[1] = -1;
    r = fvm_bus_claim(board->bus, FVM_BUS_PIO, PORT_SELECT, 2, &port_ops, f, "fw_cfg", &f->claim_id[0]);
    if (!r)
        r = fvm_bus_claim(board->bus, FVM_BUS_PIO, PORT_DMA, 8, &dma_ops, f, "fw_cfg-dma", &f->claim_id[1]);
    if (!r)
        r = fvm_fw_cfg_add(&f->dev, KEY_SIGNATURE, "QEMU", 4);
    if (!r)
        r = fvm_fw_cfg_add(&f->dev, KEY_ID, &id, sizeof(id));
    if (r) {
        fw_cfg_destroy(&f->dev);
        return r;
    }
    *ret_dev = &f->dev;
    return 0;
}
