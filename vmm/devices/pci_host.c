/*
 * pci_host.c - the host bridge (i440FX-like, 82441FX without its memory and cache controls): bus 0 and configuration
 * mechanism #1.
 *
 * CF8 holds bus/device/function/register, CFC the data window. One bus, slots of up to eight functions. The bridge also does
 * the part of a firmware that every guest needs: BAR addresses and interrupt lines.
 */
#include <stdlib.h>

#include "vmm/devices/pack.h"
#include "vmm/devices/pci.h"
#include "vmm/devices/pci_impl.h"

enum { PORT_ADDRESS = 0xcf8, PORT_DATA = 0xcfc };
#define ADDRESS_ENABLE 0x80000000u
#define ADDRESS_BITS 0x80fffffcu

static const unsigned link_line[FVM_PCI_LINKS] = {10, 10, 11, 11}; /* as SeaBIOS routes them */

static unsigned link_of(unsigned slot, unsigned pin)
{
    return (slot + pin + 2) % FVM_PCI_LINKS;
}

unsigned fvm_pci_irq(unsigned slot, unsigned pin)
{
    return link_line[link_of(slot, pin)];
}

void fvm_pci_link_drive(struct fvm_pci_host *host, unsigned slot, unsigned pin, bool level)
{
    unsigned link = link_of(slot, pin);

    fvm_assert(level || host->link[link].high > 0);
    host->link[link].high = level ? host->link[link].high + 1 : host->link[link].high - 1;
    if (host->link[link].source)
        fvm_irq_source_set(host->link[link].source, host->link[link].high > 0);
}

void fvm_pci_host_route(struct fvm_pci_host *host, unsigned link, unsigned line)
{
    fvm_assert(link < FVM_PCI_LINKS);
    fvm_irq_source_destroy(&host->link[link].source);
    if (line < FVM_IRQ_LINES && fvm_irq_source_create(host->dev.board->irq, line, &host->link[link].source) == 0)
        fvm_irq_source_set(host->link[link].source, host->link[link].high > 0);
}

uint64_t fvm_pci_mmio64_base(const struct fvm_ram *ram)
{
    return FVM_ALIGN_UP(FVM_RAM_HIGH_BASE + ram->high_bytes, 1ull << 30);
}

struct fvm_pci_host *fvm_pci_host_of(struct fvm_device *dev)
{
    return (struct fvm_pci_host *)dev;
}

void fvm_pci_host_set_rom(struct fvm_pci_host *host, unsigned slot, const uint8_t *rom, uint32_t rom_bytes)
{
    fvm_assert(slot < FVM_PCI_SLOTS && !host->at[slot][0]);
    host->rom[slot].bytes = rom;
    host->rom[slot].len = rom_bytes;
}

void fvm_pci_host_set_cf9(struct fvm_pci_host *host, const struct fvm_bus_ops *ops, void *ctx)
{
    host->cf9_ops = ops;
    host->cf9_ctx = ctx;
}

/* The function that cf8 points at, or NULL. */
static struct fvm_pci_function *addressed(struct fvm_pci_host *h)
{
    uint32_t a = h->config_address;

    if (!(a & ADDRESS_ENABLE) || ((a >> 16) & 0xff) != 0)
        return NULL;
    return h->at[(a >> 11) & 31][(a >> 8) & 7];
}

static uint64_t address_read(void *ctx, uint64_t offset, unsigned size)
{
    struct fvm_pci_host *h = ctx;

    if (offset == 0 && size == 4)
        return h->config_address;
    if (offset == 1 && size == 1 && h->cf9_ops)
        return h->cf9_ops->read(h->cf9_ctx, 0, 1);
    return UINT64_MAX >> (64 - 8 * size);
}

static void address_write(void *ctx, uint64_t offset, unsigned size, uint64_t value)
{
    struct fvm_pci_host *h = ctx;

    if (offset == 0 && size == 4)
        h->config_address = (uint32_t)value & ADDRESS_BITS;
    else if (offset == 1 && size == 1 && h->cf9_ops) /* narrower accesses are not the bridge's */
        h->cf9_ops->write(h->cf9_ctx, 0, 1, value);
}

static uint64_t data_read(void *ctx, uint64_t offset, unsigned size)
{
    struct fvm_pci_host *h = ctx;
    struct fvm_pci_function *fn = addressed(h);

    if (!fn)
        return UINT64_MAX >> (64 - 8 * size);
    return fvm_pci_config_read(fn, (h->config_address & 0xfc) + (unsigned)offset, size);
}

static void data_write(void *ctx, uint64_t offset, unsigned size, uint64_t value)
{
    struct fvm_pci_host *h = ctx;
    struct fvm_pci_function *fn = addressed(h);

    if (fn)
        fvm_pci_config_write(fn, (h->config_address & 0xfc) + (unsigned)offset, size, (uint32_t)value);
}

static const struct fvm_bus_ops address_ops = {.read = address_read, .write = address_write};
static const struct fvm_bus_ops data_ops = {.read = data_read, .write = data_write};

static void assign_function(struct fvm_pci_function *fn, uint64_t *mmio, uint64_t *io)
{
    uint32_t command = PCI_COMMAND_MASTER;

    for (unsigned i = 0; i < FVM_PCI_BARS; i++) {
        struct fvm_pci_bar *bar = &fn->bar[i];
        uint64_t *next = bar->kind == FVM_PCI_BAR_IO ? io : mmio;

        if (bar->kind == FVM_PCI_BAR_NONE)
            continue;
        *next = FVM_ALIGN_UP(*next, bar->len_bytes);
        fvm_assert(*next + bar->len_bytes <= (bar->kind == FVM_PCI_BAR_IO ? FVM_PCI_IO_END : FVM_PCI_MMIO32_END));
        fvm_pci_config_write(fn, PCI_BAR0 + 4 * i, 4, (uint32_t)*next);
        *next += bar->len_bytes;
        command |= bar->kind == FVM_PCI_BAR_IO ? PCI_COMMAND_IO : PCI_COMMAND_MEMORY;
    }
    if (fn->id.interrupt_pin)
        fvm_pci_config_write(fn, PCI_INTERRUPT_LINE, 1, fvm_pci_irq(fn->id.slot, fn->id.interrupt_pin));
    fvm_pci_config_write(fn, PCI_COMMAND, 2, command);
}

void fvm_pci_host_assign(struct fvm_pci_host *host)
{
    uint64_t mmio = FVM_PCI_MMIO32_BASE + 0x3c000000; /* fc000000: high in the window; small BARs and video memory */
    uint64_t io = FVM_PCI_IO_BASE;

    for (unsigned i = FVM_PCI_FUNCTIONS; i < FVM_PCI_SLOTS * FVM_PCI_FUNCTIONS; i++)
        if (host->at[i / FVM_PCI_FUNCTIONS][i % FVM_PCI_FUNCTIONS])
            assign_function(host->at[i / FVM_PCI_FUNCTIONS][i % FVM_PCI_FUNCTIONS], &mmio, &io);
}

/* ---- lifecycle ---- */

static void pci_host_reset(struct fvm_device *dev)
{
    struct fvm_pci_host *h = fvm_pci_host_of(dev);

    h->config_address = 0;
    fvm_pci_function_reset(&h->self);
    for (unsigned i = 0; i < FVM_PCI_LINKS; i++)
        fvm_pci_host_route(h, i, link_line[i]);
}

static void pci_host_destroy(struct fvm_device *dev)
{
    struct fvm_pci_host *h = fvm_pci_host_of(dev);

    fvm_bus_release(dev->board->bus, h->claim_id[0]);
    fvm_bus_release(dev->board->bus, h->claim_id[1]);
    fvm_pci_function_fini(&h->self);
    for (unsigned i = 0; i < FVM_PCI_LINKS; i++)
        fvm_irq_source_destroy(&h->link[i].source);
    free(h);
}

static int pci_host_save(struct fvm_device *dev, uint8_t **ret_buf, size_t *ret_len)
{
    struct fvm_pci_host *h = fvm_pci_host_of(dev);
    Fvm__PciHostState state = FVM__PCI_HOST_STATE__INIT;
    Fvm__PciFunctionState function;
    int r = fvm_pci_function_save(&h->self, &function);

    if (r)
        return r;
    state.config_address = h->config_address;
    state.function = &function;
    r = fvm_device_pack(&state.base, ret_buf, ret_len);
    fvm_pci_function_save_free(&function);
    return r;
}

static int pci_host_check(struct fvm_device *dev, const uint8_t *buf, size_t len, struct fvm_err *err)
{
    struct fvm_pci_host *h = fvm_pci_host_of(dev);
    Fvm__PciHostState *state = (void *)fvm_device_unpack(&fvm__pci_host_state__descriptor, dev, buf, len, err);
    int r;

    if (!state)
        return FVM_EBADIMAGE;
    if (state->config_address & ~ADDRESS_BITS)
        r = fvm_device_refuse(dev, err, "configuration address has reserved bits");
    else
        r = fvm_pci_function_check(&h->self, state->function, err);
    fvm__pci_host_state__free_unpacked(state, NULL);
    return r;
}

static void pci_host_restore(struct fvm_device *dev, const uint8_t *buf, size_t len)
{
    struct fvm_pci_host *h = fvm_pci_host_of(dev);
    Fvm__PciHostState *state = fvm__pci_host_state__unpack(NULL, len, buf);

    fvm_assert(state);
    h->config_address = state->config_address;
    fvm_pci_function_restore(&h->self, state->function);
    fvm__pci_host_state__free_unpacked(state, NULL);
}

static const struct fvm_device_ops pci_host_ops = {
    .name = "pci_host",
    .destroy = pci_host_destroy,
    .reset = pci_host_reset,
    .save = pci_host_save,
    .check = pci_host_check,
    .restore = pci_host_restore,
};

int fvm_pci_host_create(struct fvm_board *board, struct fvm_device **ret_dev)
{
    static const struct fvm_pci_id id = {
        .slot = 0, .vendor = 0x8086, .device = 0x1237, .subsystem_vendor = 0x1af4, .subsystem = 0x1100, .revision = 2,
        .class_code = 0x060000,
    };
    struct fvm_pci_host *h = calloc(1, sizeof(*h));
    int r;

    if (!h)
        return FVM_ENOMEM;
    fvm_device_init(&h->dev, &pci_host_ops, "pci_host", board);
    r = fvm_pci_function_init(&h->self, h, &id, NULL, NULL);
    if (!r)
        r = fvm_bus_claim(board->bus, FVM_BUS_PIO, PORT_ADDRESS, 4, &address_ops, h, "pci-address", &h->claim_id[0]);
    if (r)
        goto fail;
    r = fvm_bus_claim(board->bus, FVM_BUS_PIO, PORT_DATA, 4, &data_ops, h, "pci-data", &h->claim_id[1]);
    if (r) {
        fvm_bus_release(board->bus, h->claim_id[0]);
        goto fail;
    }
    pci_host_reset(&h->dev);
    *ret_dev = &h->dev;
    return 0;

fail:
    fvm_pci_function_fini(&h->self);
    free(h);
    return r;
}
