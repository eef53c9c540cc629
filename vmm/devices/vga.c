/*
 * vga.c - the display adapter as a device: where its registers are, reset, state. What registers do is in vga_regs.c and
 * vga_dispi.c.
 *
 *     ports 3b0..3df   VGA               a0000..bffff   planes (vga_planes.c)
 *     ports 1ce..1d0   dispi             BAR 0          video memory; processors reach it without us (mem/ram.h)
 *                                        BAR 2          400: VGA ports from 3c0 on, 500: dispi, a word each
 *
 * VGA's ports and its window answer whatever the PCI command register says.
 * Invariant: the window of the board's video memory is where BAR 0 is, whenever a processor runs.
 */
#include "vmm/devices/vga.h"

#include <stdlib.h>
#include <string.h>

#include "vmm/devices/pack.h"
#include "vmm/devices/pci_impl.h"
#include "vmm/devices/vga_impl.h"

enum { BAR_MEMORY = 0, BAR_REGISTERS = 2, REGISTERS_BYTES = 4096, REGISTERS_VGA = 0x400, REGISTERS_DISPI = 0x500 };
enum { PORT_DISPI = 0x1ce };

/* ---- accesses ---- */

static uint64_t ports_read(void *ctx, unsigned port, unsigned size)
{
    uint64_t value = 0;

    for (unsigned i = 0; i < size; i++)
        value |= (uint64_t)fvm_vga_port_read(ctx, port + i) << (8 * i);
    return value;
}

static void ports_write(void *ctx, unsigned port, unsigned size, uint64_t value)
{
    for (unsigned i = 0; i < size; i++)
        fvm_vga_port_write(ctx, port + i, (uint8_t)(value >> (8 * i)));
}

#define VGA_PORT_OPS(base)                                                                                             \
    static uint64_t read_##base(void *ctx, uint64_t offset, unsigned size)                                             \
    {                                                                                                                  \
        return ports_read(ctx, base + (unsigned)offset, size);                                                         \
    }                                                                                                                  \
    static void write_##base(void *ctx, uint64_t offset, unsigned size, uint64_t value)                                \
    {                                                                                                                  \
        ports_write(ctx, base + (unsigned)offset, size, value);                                                        \
    }                                                                                                                  \
    static const struct fvm_bus_ops ops_##base = {.read = read_##base, .write = write_##base};
VGA_PORT_OPS(0x3b4)
VGA_PORT_OPS(0x3ba)
VGA_PORT_OPS(0x3c0)
VGA_PORT_OPS(0x3d4)
VGA_PORT_OPS(0x3da)

/* Port 1ce: the index, a word. Port 1cf: the data, a word at an odd address, so the bus brings it as two bytes. */
static uint64_t dispi_read(void *ctx, uint64_t offset, unsigned size)
{
    const struct fvm_vga *vga = ctx;
    uint16_t data = fvm_vga_dispi_read(vga, vga->dispi_index);

    if (offset == 0)
        return size >= 2 ? vga->dispi_index : vga->dispi_index & 0xff;
    return offset == 1 ? data & 0xff : size == 1 ? data >> 8 : data;
}

static void dispi_write(void *ctx, uint64_t offset, unsigned size, uint64_t value)
{
    struct fvm_vga *vga = ctx;

    if (offset == 0)
        vga->dispi_index = (uint16_t)value;
    else if (offset == 1)
        vga->dispi_low = (uint8_t)value;
    else
        fvm_vga_dispi_write(vga, vga->dispi_index,
                            size == 1 ? (uint16_t)(value << 8 | vga->dispi_low) : (uint16_t)value);
}

static const struct fvm_bus_ops dispi_ops = {.read = dispi_read, .write = dispi_write};

static uint64_t registers_read(void *ctx, uint64_t offset, unsigned size)
{
    if (offset >= REGISTERS_VGA && offset < REGISTERS_VGA + 0x20)
        return ports_read(ctx, 0x3c0 + (unsigned)(offset - REGISTERS_VGA), size);
    if (offset >= REGISTERS_DISPI && offset < REGISTERS_DISPI + 2 * VGA_DISPI && size == 2)
        return fvm_vga_dispi_read(ctx, (unsigned)(offset - REGISTERS_DISPI) / 2);
    return UINT64_MAX;
}

static void registers_write(void *ctx, uint64_t offset, unsigned size, uint64_t value)
{
    if (offset >= REGISTERS_VGA && offset < REGISTERS_VGA + 0x20)
        ports_write(ctx, 0x3c0 + (unsigned)(offset - REGISTERS_VGA), size, value);
    else if (offset >= REGISTERS_DISPI && offset < REGISTERS_DISPI + 2 * VGA_DISPI && size == 2)
        fvm_vga_dispi_write(ctx, (unsigned)(offset - REGISTERS_DISPI) / 2, (uint16_t)value);
}

static const struct fvm_bus_ops registers_ops = {.read = registers_read, .write = registers_write};

/* Video memory for who does not come through a shadow table: a processor that meant to execute there, tests. */
static uint64_t memory_read(void *ctx, uint64_t offset, unsigned size)
{
    const struct fvm_vga *vga = ctx;
    uint64_t value = 0;

    if (offset <= vga->memory_bytes - size)
        memcpy(&value, vga->memory + offset, size);
    return value;
}

static void memory_write(void *ctx, uint64_t offset, unsigned size, uint64_t value)
{
    struct fvm_vga *vga = ctx;

    if (offset > vga->memory_bytes - size)
        return;
    memcpy(vga->memory + offset, &value, size);
    fvm_vga_mark(vga, (uint32_t)offset, size);
}

static const struct fvm_bus_ops memory_ops = {.read = memory_read, .write = memory_write};

/* ---- where the window is ---- */

static void place_window(struct fvm_vga *vga)
{
    const struct fvm_pci_bar *bar = &vga->pci.bar[BAR_MEMORY];

    fvm_ram_video_window(vga->dev.board->ram, bar->mapped ? bar->mapped_base : 0, bar->mapped ? bar->len_bytes : 0);
}

static void config_written(void *ctx, unsigned offset, unsigned size)
{
    (void)offset;
    (void)size;
    place_window(ctx);
}

static const struct fvm_pci_function_ops pci_ops = {.config_written = config_written};

/* ---- life ---- */

/* Pages that were written since the machine was made; the others are zero without being looked at. */
static bool page_used(const struct fvm_vga *vga, uint32_t page)
{
    static const uint8_t zero[FVM_PAGE_SIZE];
    const struct fvm_ram *ram = vga->dev.board->ram;

    return __atomic_load_n(&ram->version[(ram->video_gpa >> FVM_PAGE_SHIFT) + page], __ATOMIC_RELAXED) != 0 &&
           memcmp(vga->memory + page * FVM_PAGE_SIZE, zero, FVM_PAGE_SIZE) != 0;
}

static void clear_memory(struct fvm_vga *vga)
{
    for (uint32_t page = 0; page < vga->memory_bytes / FVM_PAGE_SIZE; page++)
        if (page_used(vga, page)) {
            memset(vga->memory + page * FVM_PAGE_SIZE, 0, FVM_PAGE_SIZE);
            fvm_vga_mark(vga, (uint32_t)(page * FVM_PAGE_SIZE), FVM_PAGE_SIZE);
        }
}

static void vga_reset(struct fvm_device *dev)
{
    struct fvm_vga *vga = (struct fvm_vga *)dev;

    fvm_pci_function_reset(&vga->pci);
    place_window(vga);
    vga->feature = vga->seq_index = vga->gc_index = vga->crtc_index = 0;
    memset(vga->seq, 0, sizeof(vga->seq));
    memset(vga->gc, 0, sizeof(vga->gc));
    memset(vga->crtc, 0, sizeof(vga->crtc));
    memset(vga->attr, 0, sizeof(vga->attr));
    memset(vga->dac, 0, sizeof(vga->dac));
    memset(vga->dac_partial, 0, sizeof(vga->dac_partial));
    vga->attr_data_next = vga->dac_reading = false;
    vga->dac_index = vga->dac_component = 0;
    vga->latch = 0;
    vga->dispi_index = 0;
    memset(vga->dispi, 0, sizeof(vga->dispi));
    vga->dispi[DISPI_ID] = 0xb0c5;
    vga->dispi[DISPI_BPP] = 8;
    clear_memory(vga);
    fvm_vga_mode3(vga);
}

static void release_all(struct fvm_vga *vga)
{
    while (vga->claim_count > 0)
        fvm_bus_release(vga->dev.board->bus, vga->claim_id[--vga->claim_count]);
    fvm_pci_function_fini(&vga->pci);
    fvm_ram_video_window(vga->dev.board->ram, 0, 0);
    vga->dev.board->ram->legacy_hole = false;
}

static void vga_destroy(struct fvm_device *dev)
{
    release_all((struct fvm_vga *)dev);
    free(dev);
}

/* ---- state ---- */

static int save_pages(const struct fvm_vga *vga, Fvm__VgaState *s)
{
    uint32_t pages = vga->memory_bytes / (uint32_t)FVM_PAGE_SIZE, n = 0;

    for (uint32_t page = 0; page < pages; page++)
        n += page_used(vga, page);
    s->video_bytes = vga->memory_bytes;
    s->page = calloc(n + 1, sizeof(*s->page));
    s->page_data.data = malloc(n * FVM_PAGE_SIZE + 1);
    if (!s->page || !s->page_data.data)
        return FVM_ENOMEM;
    for (uint32_t page = 0; page < pages && s->n_page < n; page++) {
        if (!page_used(vga, page))
            continue;
        memcpy(s->page_data.data + s->n_page * FVM_PAGE_SIZE, vga->memory + page * FVM_PAGE_SIZE, FVM_PAGE_SIZE);
        s->page[s->n_page++] = page;
    }
    s->page_data.len = s->n_page * FVM_PAGE_SIZE;
    return 0;
}

static ProtobufCBinaryData bytes_of(uint8_t *data, size_t len)
{
    return (ProtobufCBinaryData){.data = data, .len = len};
}

static int vga_save(struct fvm_device *dev, uint8_t **ret_buf, size_t *ret_len)
{
    struct fvm_vga *vga = (struct fvm_vga *)dev;
    Fvm__VgaState s = FVM__VGA_STATE__INIT;
    Fvm__PciFunctionState pci;
    uint32_t dispi[VGA_DISPI];
    int r = fvm_pci_function_save(&vga->pci, &pci);

    if (r)
        return r;
    s.pci = &pci;
    s.misc = vga->misc;
    s.feature = vga->feature;
    s.seq_index = vga->seq_index;
    s.gc_index = vga->gc_index;
    s.crtc_index = vga->crtc_index;
    s.attr_index = vga->attr_index;
    s.attr_data_next = vga->attr_data_next;
    s.seq = bytes_of(vga->seq, VGA_SEQ);
    s.gc = bytes_of(vga->gc, VGA_GC);
    s.crtc = bytes_of(vga->crtc, VGA_CRTC);
    s.attr = bytes_of(vga->attr, VGA_ATTR);
    s.dac = bytes_of(vga->dac, VGA_DAC);
    s.dac_partial = bytes_of(vga->dac_partial, 3);
    s.dac_mask = vga->dac_mask;
    s.dac_index = vga->dac_index;
    s.dac_component = vga->dac_component;
    s.dac_reading = vga->dac_reading;
    s.latch = vga->latch;
    s.dispi_index = vga->dispi_index;
    s.n_dispi = VGA_DISPI;
    s.dispi = dispi;
    for (unsigned i = 0; i < VGA_DISPI; i++)
        dispi[i] = vga->dispi[i];
    r = save_pages(vga, &s);
    if (!r)
        r = fvm_device_pack(&s.base, ret_buf, ret_len);
    free(s.page);
    free(s.page_data.data);
    fvm_pci_function_save_free(&pci);
    return r;
}

/* The mode that dispi registers say must be one that can be set. */
static const char *dispi_wrong(const Fvm__VgaState *s)
{
    const uint32_t *d = s->dispi;

    if (s->n_dispi != VGA_DISPI || s->dispi_index > 0xffff)
        return "VBE registers";
    for (unsigned i = 0; i < VGA_DISPI; i++)
        if (d[i] > 0xffff)
            return "a VBE register has more than 16 bits";
    if (d[DISPI_ID] < 0xb0c0 || d[DISPI_ID] > 0xb0c5 || d[DISPI_XRES] > FVM_VGA_WIDTH_MAX ||
        d[DISPI_YRES] > FVM_VGA_HEIGHT_MAX || d[DISPI_BANK] >= s->video_bytes / VGA_BANK_BYTES ||
        (d[DISPI_ENABLE] & ~(uint32_t)(DISPI_ENABLED | DISPI_GETCAPS | DISPI_8BIT_DAC | DISPI_LFB | DISPI_NOCLEAR)))
        return "a VBE register has a value it cannot take";
    if (d[DISPI_BPP] != 4 && d[DISPI_BPP] != 8 && d[DISPI_BPP] != 15 && d[DISPI_BPP] != 16 && d[DISPI_BPP] != 24 &&
        d[DISPI_BPP] != 32)
        return "a colour depth there is not";
    if ((d[DISPI_ENABLE] & DISPI_ENABLED) &&
        (!d[DISPI_XRES] || !d[DISPI_YRES] || d[DISPI_VIRT_WIDTH] < d[DISPI_XRES]))
        return "a mode without pixels is on";
    return NULL;
}

static const char *state_wrong(const struct fvm_vga *vga, const Fvm__VgaState *s)
{
    uint32_t pages = vga->memory_bytes / (uint32_t)FVM_PAGE_SIZE;

    if (s->seq.len != VGA_SEQ || s->gc.len != VGA_GC || s->crtc.len != VGA_CRTC || s->attr.len != VGA_ATTR ||
        s->dac.len != VGA_DAC || s->dac_partial.len != 3)
        return "a register file has another length";
    if (s->misc > 0xff || s->feature > 0xff || s->seq_index >= VGA_SEQ || s->gc_index >= VGA_GC ||
        s->crtc_index > 0x3f || s->attr_index > 0x3f || s->dac_mask > 0xff || s->dac_index > 0xff ||
        s->dac_component > 2)
        return "a register has bits that do not exist";
    if (s->video_bytes != vga->memory_bytes)
        return "another amount of video memory";
    if (s->n_page > pages || s->page_data.len != s->n_page * FVM_PAGE_SIZE)
        return "pages of video memory and their number";
    for (size_t i = 0; i < s->n_page; i++)
        if (s->page[i] >= pages || (i && s->page[i] <= s->page[i - 1]))
            return "a page outside video memory, or out of order";
    return dispi_wrong(s);
}

static int vga_check(struct fvm_device *dev, const uint8_t *buf, size_t len, struct fvm_err *err)
{
    struct fvm_vga *vga = (struct fvm_vga *)dev;
    Fvm__VgaState *s = (void *)fvm_device_unpack(&fvm__vga_state__descriptor, dev, buf, len, err);
    const char *wrong;
    int r;

    if (!s)
        return FVM_EBADIMAGE;
    wrong = state_wrong(vga, s);
    r = wrong ? fvm_device_refuse(dev, err, wrong) : fvm_pci_function_check(&vga->pci, s->pci, err);
    fvm__vga_state__free_unpacked(s, NULL);
    return r;
}

static void restore_registers(struct fvm_vga *vga, const Fvm__VgaState *s)
{
    vga->misc = (uint8_t)s->misc;
    vga->feature = (uint8_t)s->feature;
    vga->seq_index = (uint8_t)s->seq_index;
    vga->gc_index = (uint8_t)s->gc_index;
    vga->crtc_index = (uint8_t)s->crtc_index;
    vga->attr_index = (uint8_t)s->attr_index;
    vga->attr_data_next = s->attr_data_next;
    memcpy(vga->seq, s->seq.data, VGA_SEQ);
    memcpy(vga->gc, s->gc.data, VGA_GC);
    memcpy(vga->crtc, s->crtc.data, VGA_CRTC);
    memcpy(vga->attr, s->attr.data, VGA_ATTR);
    memcpy(vga->dac, s->dac.data, VGA_DAC);
    memcpy(vga->dac_partial, s->dac_partial.data, 3);
    vga->dac_mask = (uint8_t)s->dac_mask;
    vga->dac_index = (uint8_t)s->dac_index;
    vga->dac_component = (uint8_t)s->dac_component;
    vga->dac_reading = s->dac_reading;
    vga->latch = s->latch;
    vga->dispi_index = (uint16_t)s->dispi_index;
    for (unsigned i = 0; i < VGA_DISPI; i++)
        vga->dispi[i] = (uint16_t)s->dispi[i];
}

static void vga_restore(struct fvm_device *dev, const uint8_t *buf, size_t len)
{
    struct fvm_vga *vga = (struct fvm_vga *)dev;
    Fvm__VgaState *s = fvm__vga_state__unpack(NULL, len, buf);

    fvm_assert(s);
    restore_registers(vga, s);
    clear_memory(vga);
    for (size_t i = 0; i < s->n_page; i++) {
        memcpy(vga->memory + s->page[i] * FVM_PAGE_SIZE, s->page_data.data + i * FVM_PAGE_SIZE, FVM_PAGE_SIZE);
        fvm_vga_mark(vga, (uint32_t)(s->page[i] * FVM_PAGE_SIZE), FVM_PAGE_SIZE);
    }
    fvm_pci_function_restore(&vga->pci, s->pci);
    place_window(vga);
    fvm__vga_state__free_unpacked(s, NULL);
}

static const struct fvm_device_ops vga_ops = {
    .name = "vga",
    .destroy = vga_destroy,
    .reset = vga_reset,
    .save = vga_save,
    .check = vga_check,
    .restore = vga_restore,
};

/* ---- create ---- */

static int claim_all(struct fvm_vga *vga)
{
    static const struct {
        enum fvm_bus_space space;
        uint32_t base, len;
        const struct fvm_bus_ops *ops;
    } list[VGA_PORTS] = {
        {FVM_BUS_PIO, 0x3b4, 2, &ops_0x3b4},       {FVM_BUS_PIO, 0x3ba, 1, &ops_0x3ba},
        {FVM_BUS_PIO, 0x3c0, 16, &ops_0x3c0},      {FVM_BUS_PIO, 0x3d4, 2, &ops_0x3d4},
        {FVM_BUS_PIO, 0x3da, 1, &ops_0x3da},       {FVM_BUS_PIO, PORT_DISPI, 3, &dispi_ops},
        {FVM_BUS_MMIO, 0xa0000, 0x20000, &fvm_vga_planes_ops},
    };

    for (unsigned i = 0; i < VGA_PORTS; i++) {
        int r = fvm_bus_claim(vga->dev.board->bus, list[i].space, list[i].base, list[i].len, list[i].ops, vga, "vga",
                              &vga->claim_id[i]);

        if (r)
            return r;
        vga->claim_count++;
    }
    return 0;
}

int fvm_vga_create(struct fvm_board *board, struct fvm_pci_host *host, uint8_t slot, const uint8_t *rom,
                   uint32_t rom_bytes, struct fvm_device **ret_dev)
{
    const struct fvm_pci_id id = {.slot = slot, .vendor = 0x1234, .device = 0x1111, .subsystem_vendor = 0x1af4,
                                  .subsystem = 0x1100, .revision = 2, .class_code = 0x030000};
    struct fvm_vga *vga = calloc(1, sizeof(*vga));
    int r;

    if (!vga)
        return FVM_ENOMEM;
    fvm_device_init(&vga->dev, &vga_ops, "vga", board);
    r = fvm_ram_video_create(board->ram, FVM_VGA_MEMORY_BYTES);
    if (!r)
        r = fvm_pci_function_init(&vga->pci, host, &id, &pci_ops, vga);
    if (!r)
        r = claim_all(vga);
    if (r) {
        release_all(vga);
        free(vga);
        return r;
    }
    vga->memory = fvm_ram_hva(board->ram, board->ram->video_gpa);
    vga->memory_bytes = FVM_VGA_MEMORY_BYTES;
    vga->rom = rom;
    vga->rom_bytes = rom_bytes;
    fvm_pci_bar_add(&vga->pci, BAR_MEMORY, FVM_PCI_BAR_MEM32, vga->memory_bytes, &memory_ops, vga, "vga-memory");
    fvm_pci_bar_add(&vga->pci, BAR_REGISTERS, FVM_PCI_BAR_MEM32, REGISTERS_BYTES, &registers_ops, vga,
                    "vga-registers");
    fvm_pci_config_writable(&vga->pci, PCI_COMMAND, 1, vga->pci.writable[PCI_COMMAND] | PCI_COMMAND_IO); /* firmware looks for it */
    if (rom)
        fvm_pci_rom_add(&vga->pci, rom, rom_bytes);
    board->ram->legacy_hole = true;
    vga_reset(&vga->dev);
    *ret_dev = &vga->dev;
    return 0;
}
