/*
 * pci.c - PCI functions (PCI Local Bus 3.0): configuration space, base address registers, capabilities, INTx, MSI, MSI-X.
 *
 * Configuration space is bytes plus a mask of what the guest may write. The bus claims follow it: after every write
 * (and after reset and restore) remap() compares each BAR with what is claimed and moves the claim.
 *
 * Invariant: bar[i].mapped says exactly whether bar[i].claim_id is a live claim at mapped_base.
 */
#include "vmm/devices/pci.h"

#include <stdlib.h>
#include <string.h>

#include "vmm/devices/pack.h"
#include "vmm/devices/pci_impl.h"

enum { MSIX_CAP_ID = 0x11, MSIX_CONTROL = 2, MSIX_ENABLE = 0x8000, MSIX_FUNCTION_MASK = 0x4000 };
enum { MSI_CAP_ID = 0x05, MSI_CONTROL = 2, MSI_ADDRESS = 4, MSI_DATA = 12, MSI_ENABLE = 1, MSI_64BIT = 0x80 };
enum { MSIX_PBA_OFFSET = 0x800, MSIX_BAR_BYTES = 0x1000, MSIX_ENTRY_MASKED = 1 };

/* ---- BARs ---- */

static unsigned bar_offset(unsigned index)
{
    return index == FVM_PCI_BARS ? PCI_ROM : PCI_BAR0 + 4 * index;
}

/* Address the BAR decodes now; UINT64_MAX: none (decoding off, unassigned, or a place where no BAR can be). */
static uint64_t bar_address(const struct fvm_pci_function *fn, unsigned index)
{
    const struct fvm_pci_bar *bar = &fn->bar[index];
    uint16_t command = pci_get16(fn->config, PCI_COMMAND);
    uint64_t base = pci_get32(fn->config, bar_offset(index)), limit;

    switch (bar->kind) {
    case FVM_PCI_BAR_IO:
        base &= ~3ull;
        limit = 0x10000;
        if (!(command & PCI_COMMAND_IO))
            return UINT64_MAX;
        break;
    case FVM_PCI_BAR_MEM64:
        base |= (uint64_t)pci_get32(fn->config, bar_offset(index + 1)) << 32;
        /* fallthrough */
    case FVM_PCI_BAR_MEM32:
        base &= ~15ull;
        limit = 1ull << 52;
        if (!(command & PCI_COMMAND_MEMORY))
            return UINT64_MAX;
        break;
    case FVM_PCI_BAR_ROM:
        if (!(command & PCI_COMMAND_MEMORY) || !(base & 1))
            return UINT64_MAX;
        base &= ~0x7ffull;
        limit = 1ull << 32;
        break;
    default:
        return UINT64_MAX;
    }
    /* all ones is what sizing writes; RAM and the APICs win over a BAR put there */
    if (base == 0 || base >= limit || bar->len_bytes > limit - base)
        return UINT64_MAX;
    if (bar->kind != FVM_PCI_BAR_IO) {
        const struct fvm_ram *ram = fn->host->dev.board->ram;

        if (base < ram->low_bytes || (base < FVM_RAM_HIGH_BASE && base + bar->len_bytes > FVM_PCI_MMIO32_END) ||
            (base >= FVM_RAM_HIGH_BASE && base < FVM_RAM_HIGH_BASE + ram->high_bytes))
            return UINT64_MAX;
    }
    return base;
}

static void unmap(struct fvm_pci_function *fn, struct fvm_pci_bar *bar)
{
    if (!bar->mapped)
        return;
    fvm_bus_release(fn->host->dev.board->bus, bar->claim_id);
    bar->mapped = false;
}

static void remap(struct fvm_pci_function *fn)
{
    for (unsigned i = 0; i <= FVM_PCI_BARS; i++) {
        struct fvm_pci_bar *bar = &fn->bar[i];
        uint64_t base = bar_address(fn, i);

        if (bar->mapped && bar->mapped_base == base)
            continue;
        unmap(fn, bar);
        if (base == UINT64_MAX)
            continue;
        if (fvm_bus_claim(fn->host->dev.board->bus, bar->kind == FVM_PCI_BAR_IO ? FVM_BUS_PIO : FVM_BUS_MMIO, base,
                          bar->len_bytes, bar->ops, bar->ctx, bar->name, &bar->claim_id) == 0) {
            bar->mapped = true;
            bar->mapped_base = base;
        }
    }
}

void fvm_pci_bar_add(struct fvm_pci_function *fn, unsigned index, enum fvm_pci_bar_kind kind, uint64_t len_bytes,
                     const struct fvm_bus_ops *ops, void *ctx, const char *name)
{
    struct fvm_pci_bar *bar = &fn->bar[index];
    uint64_t len = kind == FVM_PCI_BAR_IO ? 4 : FVM_PAGE_SIZE;
    uint32_t mask;

    fvm_assert(index < FVM_PCI_BARS && kind != FVM_PCI_BAR_NONE && bar->kind == FVM_PCI_BAR_NONE && !fn->initial_taken);
    fvm_assert(kind != FVM_PCI_BAR_MEM64 || index + 1 < FVM_PCI_BARS);
    fvm_assert(len_bytes <= (kind == FVM_PCI_BAR_IO ? 0x100 : 0x80000000ull));
    while (len < len_bytes)
        len <<= 1;
    *bar = (struct fvm_pci_bar){.kind = kind, .len_bytes = len, .ops = ops, .ctx = ctx, .name = name};
    mask = (uint32_t)~(len - 1); /* I/O, too: firmware takes a BAR's size from all 32 bits */
    pci_put32(fn->writable, bar_offset(index), mask);
    fn->config[bar_offset(index)] = kind == FVM_PCI_BAR_IO ? 1 : kind == FVM_PCI_BAR_MEM64 ? 4 : 0;
    if (kind == FVM_PCI_BAR_MEM64)
        pci_put32(fn->writable, bar_offset(index + 1), 0xffffffffu);
    fn->writable[PCI_COMMAND] |= kind == FVM_PCI_BAR_IO ? PCI_COMMAND_IO : PCI_COMMAND_MEMORY;
}

/* ---- expansion ROM ---- */

static uint64_t rom_read(void *ctx, uint64_t offset, unsigned size)
{
    const struct fvm_pci_function *fn = ctx;
    uint64_t value = 0;

    for (unsigned i = 0; i < size; i++)
        value |= (uint64_t)(offset + i < fn->rom_bytes ? fn->rom[offset + i] : 0xff) << (8 * i);
    return value;
}

static const struct fvm_bus_ops rom_ops = {.read = rom_read};

void fvm_pci_rom_add(struct fvm_pci_function *fn, const uint8_t *rom, uint32_t rom_bytes)
{
    uint64_t len = FVM_PAGE_SIZE;

    fvm_assert(!fn->initial_taken && !fn->rom && rom_bytes <= 1u << 20);
    while (len < rom_bytes)
        len <<= 1;
    fn->rom = rom;
    fn->rom_bytes = rom_bytes;
    fn->bar[FVM_PCI_BARS] =
        (struct fvm_pci_bar){.kind = FVM_PCI_BAR_ROM, .len_bytes = len, .ops = &rom_ops, .ctx = fn, .name = "rom"};
    pci_put32(fn->writable, PCI_ROM, (uint32_t)~(len - 1) | 1);
    fn->writable[PCI_COMMAND] |= PCI_COMMAND_MEMORY;
}

/* ---- capabilities ---- */

unsigned fvm_pci_cap_add(struct fvm_pci_function *fn, uint8_t cap_id, const void *body, unsigned body_len)
{
    unsigned offset = fn->cap_next;

    fvm_assert(!fn->initial_taken && offset + 2 + body_len <= FVM_PCI_CONFIG_BYTES);
    fn->config[offset] = cap_id;
    fn->config[offset + 1] = 0;
    memcpy(&fn->config[offset + 2], body, body_len);
    fn->config[fn->cap_last ? fn->cap_last + 1 : PCI_CAPABILITIES] = (uint8_t)offset;
    fn->config[PCI_STATUS] |= PCI_STATUS_CAPABILITIES;
    fn->cap_last = offset;
    fn->cap_next = FVM_ALIGN_UP(offset + 2 + body_len, 4u);
    return offset;
}

void fvm_pci_config_writable(struct fvm_pci_function *fn, unsigned offset, unsigned len, uint8_t mask)
{
    fvm_assert(offset + len <= FVM_PCI_CONFIG_BYTES);
    memset(&fn->writable[offset], mask, len);
}

/* ---- INTx ---- */

static void drive_intx(struct fvm_pci_function *fn)
{
    bool off = pci_get16(fn->config, PCI_COMMAND) & PCI_COMMAND_INTX_OFF, level;

    if (!fn->id.interrupt_pin)
        return;
    level = fn->intx_level && !off && !fvm_pci_msi_enabled(fn);
    fn->config[PCI_STATUS] =
        (uint8_t)((fn->config[PCI_STATUS] & ~PCI_STATUS_INTX) | (fn->intx_level ? PCI_STATUS_INTX : 0));
    if (fn->intx_driven == level)
        return;
    fn->intx_driven = level;
    fvm_pci_link_drive(fn->host, fn->id.slot, fn->id.interrupt_pin, level);
}

void fvm_pci_intx_set(struct fvm_pci_function *fn, bool level)
{
    if (fn->intx_level == level)
        return;
    fn->intx_level = level;
    drive_intx(fn);
}

/* ---- MSI ---- */

void fvm_pci_msi_add(struct fvm_pci_function *fn)
{
    static const uint8_t body[12] = {MSI_64BIT};

    fvm_assert(!fn->msi_cap);
    fn->msi_cap = fvm_pci_cap_add(fn, MSI_CAP_ID, body, sizeof(body));
    fvm_pci_config_writable(fn, fn->msi_cap + MSI_CONTROL, 1, MSI_ENABLE);
    fvm_pci_config_writable(fn, fn->msi_cap + MSI_ADDRESS, 1, 0xfc);
    fvm_pci_config_writable(fn, fn->msi_cap + MSI_ADDRESS + 1, 7, 0xff);
    fvm_pci_config_writable(fn, fn->msi_cap + MSI_DATA, 2, 0xff);
}

bool fvm_pci_msi_enabled(const struct fvm_pci_function *fn)
{
    return fn->msi_cap && (fn->config[fn->msi_cap + MSI_CONTROL] & MSI_ENABLE);
}

void fvm_pci_interrupt_set(struct fvm_pci_function *fn, bool level)
{
    const uint8_t *cap = &fn->config[fn->msi_cap];
    bool rise = level && !fn->intx_level;

    fvm_pci_intx_set(fn, level);
    if (rise && fvm_pci_msi_enabled(fn) && fvm_pci_bus_master(fn))
        fvm_irq_msi(fn->host->dev.board->irq,
                    pci_get32(cap, MSI_ADDRESS) | (uint64_t)pci_get32(cap, MSI_ADDRESS + 4) << 32,
                    pci_get16(cap, MSI_DATA));
}

/* ---- MSI-X ---- */

static uint16_t msix_control(const struct fvm_pci_function *fn)
{
    return fn->msix_cap ? pci_get16(fn->config, fn->msix_cap + MSIX_CONTROL) : 0;
}

bool fvm_pci_msix_enabled(const struct fvm_pci_function *fn)
{
    return (msix_control(fn) & MSIX_ENABLE) != 0;
}

void fvm_pci_msix_notify(struct fvm_pci_function *fn, unsigned vector)
{
    struct fvm_pci_msix_entry *e;

    if (vector >= fn->msix_count || !fvm_pci_msix_enabled(fn))
        return;
    e = &fn->msix[vector];
    if ((msix_control(fn) & MSIX_FUNCTION_MASK) || (e->control & MSIX_ENTRY_MASKED)) {
        fn->msix_pending[vector / 32] |= 1u << (vector % 32);
        return;
    }
    fvm_irq_msi(fn->host->dev.board->irq, e->addr, e->data);
}

/* Send what was held back and is not masked any more. */
static void msix_flush(struct fvm_pci_function *fn)
{
    if (!fvm_pci_msix_enabled(fn) || (msix_control(fn) & MSIX_FUNCTION_MASK))
        return;
    for (unsigned v = 0; v < fn->msix_count; v++) {
        uint32_t bit = 1u << (v % 32);

        if (!(fn->msix_pending[v / 32] & bit) || (fn->msix[v].control & MSIX_ENTRY_MASKED))
            continue;
        fn->msix_pending[v / 32] &= ~bit;
        fvm_irq_msi(fn->host->dev.board->irq, fn->msix[v].addr, fn->msix[v].data);
    }
}

static uint32_t msix_read32(const struct fvm_pci_function *fn, unsigned offset)
{
    const struct fvm_pci_msix_entry *e;

    if (offset >= MSIX_PBA_OFFSET) {
        unsigned word = (offset - MSIX_PBA_OFFSET) / 4;

        return word < FVM_ARRAY_SIZE(fn->msix_pending) ? fn->msix_pending[word] : 0;
    }
    if (offset / 16 >= fn->msix_count)
        return 0;
    e = &fn->msix[offset / 16];
    switch (offset & 12) {
    case 0:
        return (uint32_t)e->addr;
    case 4:
        return (uint32_t)(e->addr >> 32);
    case 8:
        return e->data;
    default:
        return e->control;
    }
}

static void msix_write32(struct fvm_pci_function *fn, unsigned offset, uint32_t value)
{
    struct fvm_pci_msix_entry *e;

    if (offset >= MSIX_PBA_OFFSET || offset / 16 >= fn->msix_count)
        return; /* pending bits are read only */
    e = &fn->msix[offset / 16];
    switch (offset & 12) {
    case 0:
        e->addr = (e->addr & ~0xffffffffull) | (value & ~3u);
        break;
    case 4:
        e->addr = (e->addr & 0xffffffffull) | (uint64_t)value << 32;
        break;
    case 8:
        e->data = value;
        break;
    default:
        e->control = value & MSIX_ENTRY_MASKED;
        msix_flush(fn);
        break;
    }
}

static uint64_t msix_read(void *ctx, uint64_t offset, unsigned size)
{
    uint64_t value = msix_read32(ctx, (unsigned)offset & ~3u);

    if (size == 8)
        value |= (uint64_t)msix_read32(ctx, (unsigned)(offset & ~3u) + 4) << 32;
    return value >> (8 * (offset & 3));
}

static void msix_write(void *ctx, uint64_t offset, unsigned size, uint64_t value)
{
    if (size < 4)
        return; /* the specification asks for whole dwords */
    msix_write32(ctx, (unsigned)offset, (uint32_t)value);
    if (size == 8)
        msix_write32(ctx, (unsigned)offset + 4, (uint32_t)(value >> 32));
}

static const struct fvm_bus_ops msix_ops = {.read = msix_read, .write = msix_write};

void fvm_pci_msix_add(struct fvm_pci_function *fn, unsigned bar_index, unsigned count)
{
    uint8_t body[10];

    fvm_assert(count >= 1 && count <= FVM_PCI_MSIX_MAX && !fn->msix_cap);
    pci_put16(body, 0, count - 1);
    pci_put32(body, 2, bar_index);
    pci_put32(body, 6, MSIX_PBA_OFFSET | bar_index);
    fvm_pci_bar_add(fn, bar_index, FVM_PCI_BAR_MEM32, MSIX_BAR_BYTES, &msix_ops, fn, "msix");
    fn->msix_cap = fvm_pci_cap_add(fn, MSIX_CAP_ID, body, sizeof(body));
    fn->msix_count = count;
    fvm_pci_config_writable(fn, fn->msix_cap + MSIX_CONTROL + 1, 1, (MSIX_ENABLE | MSIX_FUNCTION_MASK) >> 8);
    for (unsigned i = 0; i < count; i++)
        fn->msix[i].control = MSIX_ENTRY_MASKED;
}

/* ---- configuration accesses, size 1, 2 or 4, inside one dword ---- */

uint32_t fvm_pci_config_read(struct fvm_pci_function *fn, unsigned offset, unsigned size)
{
    uint32_t value = 0;

    if (fn->ops && fn->ops->config_read)
        fn->ops->config_read(fn->ctx, offset, size);
    for (unsigned i = 0; i < size; i++)
        value |= (uint32_t)fn->config[offset + i] << (8 * i);
    return value;
}

void fvm_pci_config_write(struct fvm_pci_function *fn, unsigned offset, unsigned size, uint32_t value)
{
    for (unsigned i = 0; i < size; i++) {
        unsigned at = offset + i;
        uint8_t byte = (uint8_t)(value >> (8 * i)), old = fn->config[at], mask = fn->writable[at];

        fn->config[at] = (uint8_t)(((old & ~mask) | (byte & mask)) & ~(fn->w1c[at] & byte));
    }
    remap(fn);
    drive_intx(fn);
    if (fn->msix_cap)
        msix_flush(fn);
    if (fn->ops && fn->ops->config_written)
        fn->ops->config_written(fn->ctx, offset, size);
}

bool fvm_pci_bus_master(const struct fvm_pci_function *fn)
{
    return (fn->config[PCI_COMMAND] & PCI_COMMAND_MASTER) != 0;
}

/* ---- lifecycle ---- */

int fvm_pci_function_init(struct fvm_pci_function *fn, struct fvm_pci_host *host, const struct fvm_pci_id *id,
                          const struct fvm_pci_function_ops *ops, void *ctx)
{
    struct fvm_pci_function *first;

    fvm_assert(id->slot < FVM_PCI_SLOTS && id->function < FVM_PCI_FUNCTIONS && id->interrupt_pin <= 4);
    memset(fn, 0, sizeof(*fn));
    first = host->at[id->slot][0];
    if (host->at[id->slot][id->function])
        return FVM_EEXIST;
    fvm_assert(id->function == 0 || first);
    fn->host = host;
    fn->id = *id;
    fn->ops = ops;
    fn->ctx = ctx;
    fn->cap_next = PCI_FIRST_FREE;
    pci_put16(fn->config, PCI_VENDOR, id->vendor);
    pci_put16(fn->config, PCI_DEVICE, id->device);
    fn->config[PCI_REVISION] = id->revision;
    fn->config[PCI_CLASS] = (uint8_t)id->class_code;
    pci_put16(fn->config, PCI_CLASS + 1, id->class_code >> 8);
    pci_put16(fn->config, PCI_SUBSYSTEM_VENDOR, id->subsystem_vendor);
    pci_put16(fn->config, PCI_SUBSYSTEM, id->subsystem);
    fn->config[PCI_INTERRUPT_PIN] = id->interrupt_pin;
    pci_put16(fn->writable, PCI_COMMAND, PCI_COMMAND_MASTER | (id->interrupt_pin ? PCI_COMMAND_INTX_OFF : 0));
    fn->writable[PCI_INTERRUPT_LINE] = 0xff;
    host->at[id->slot][id->function] = fn;
    if (id->function == 0 && host->rom[id->slot].bytes)
        fvm_pci_rom_add(fn, host->rom[id->slot].bytes, host->rom[id->slot].len);
    if (id->function > 0) { /* configuration software looks behind function 0 only when this bit says so */
        first->config[PCI_HEADER_TYPE] |= PCI_HEADER_MULTI;
        first->initial[PCI_HEADER_TYPE] |= PCI_HEADER_MULTI;
    }
    return 0;
}

void fvm_pci_function_fini(struct fvm_pci_function *fn)
{
    if (!fn->host)
        return;
    for (unsigned i = 0; i <= FVM_PCI_BARS; i++)
        unmap(fn, &fn->bar[i]);
    fn->host->at[fn->id.slot][fn->id.function] = NULL;
    if (fn->intx_driven)
        fvm_pci_link_drive(fn->host, fn->id.slot, fn->id.interrupt_pin, false);
    fn->host = NULL;
}

void fvm_pci_function_reset(struct fvm_pci_function *fn)
{
    if (!fn->initial_taken) { /* the first reset: the chip has finished describing itself */
        memcpy(fn->initial, fn->config, sizeof(fn->initial));
        fn->initial_taken = true;
    }
    memcpy(fn->config, fn->initial, sizeof(fn->config));
    memset(fn->msix_pending, 0, sizeof(fn->msix_pending));
    for (unsigned i = 0; i < fn->msix_count; i++)
        fn->msix[i] = (struct fvm_pci_msix_entry){.control = MSIX_ENTRY_MASKED};
    fn->intx_level = false;
    remap(fn);
    drive_intx(fn);
}

/* ---- state ---- */

int fvm_pci_function_save(const struct fvm_pci_function *fn, Fvm__PciFunctionState *ret_state)
{
    unsigned words = (fn->msix_count + 31) / 32;
    Fvm__PciMsixEntry *entries;

    *ret_state = (Fvm__PciFunctionState)FVM__PCI_FUNCTION_STATE__INIT;
    ret_state->config.data = malloc(FVM_PCI_CONFIG_BYTES);
    ret_state->msix = calloc(fn->msix_count + 1, sizeof(*ret_state->msix));
    entries = calloc(fn->msix_count + 1, sizeof(*entries));
    ret_state->msix_pending = calloc(words + 1, sizeof(uint32_t));
    if (ret_state->msix)
        ret_state->msix[0] = entries; /* one block: what _save_free frees */
    if (!ret_state->config.data || !ret_state->msix || !entries || !ret_state->msix_pending) {
        free(ret_state->msix ? NULL : entries);
        fvm_pci_function_save_free(ret_state);
        return FVM_ENOMEM;
    }
    ret_state->config.len = FVM_PCI_CONFIG_BYTES;
    memcpy(ret_state->config.data, fn->config, FVM_PCI_CONFIG_BYTES);
    ret_state->n_msix = fn->msix_count;
    for (unsigned i = 0; i < fn->msix_count; i++) {
        fvm__pci_msix_entry__init(&entries[i]);
        entries[i].addr = fn->msix[i].addr;
        entries[i].data = fn->msix[i].data;
        entries[i].control = fn->msix[i].control;
        ret_state->msix[i] = &entries[i];
    }
    ret_state->n_msix_pending = words;
    memcpy(ret_state->msix_pending, fn->msix_pending, words * sizeof(uint32_t));
    ret_state->intx = fn->intx_level;
    return 0;
}

void fvm_pci_function_save_free(Fvm__PciFunctionState *state)
{
    free(state->config.data);
    if (state->msix)
        free(state->msix[0]);
    free(state->msix);
    free(state->msix_pending);
    *state = (Fvm__PciFunctionState)FVM__PCI_FUNCTION_STATE__INIT;
}

int fvm_pci_function_check(const struct fvm_pci_function *fn, const Fvm__PciFunctionState *state, struct fvm_err *err)
{
    const char *wrong = NULL;
    uint32_t beyond = fn->msix_count % 32 ? ~0u << (fn->msix_count % 32) : 0;

    if (!state)
        wrong = "no PCI function state";
    else if (state->config.len != FVM_PCI_CONFIG_BYTES)
        wrong = "configuration space is not 256 bytes";
    else if (state->n_msix != fn->msix_count || state->n_msix_pending != (fn->msix_count + 31) / 32)
        wrong = "number of MSI-X vectors differs";
    else if (state->n_msix_pending && (state->msix_pending[state->n_msix_pending - 1] & beyond))
        wrong = "pending MSI-X vectors that do not exist";
    else if (state->intx && !fn->id.interrupt_pin)
        wrong = "interrupt from a function without a pin";
    for (unsigned i = 0; !wrong && i < fn->msix_count; i++)
        if ((state->msix[i]->addr & 3) || (state->msix[i]->control & ~(uint32_t)MSIX_ENTRY_MASKED))
            wrong = "MSI-X entry";
    for (unsigned i = 0; !wrong && i < FVM_PCI_CONFIG_BYTES; i++) {
        uint8_t fixed = (uint8_t)~(fn->writable[i] | fn->w1c[i] | (i == PCI_STATUS ? PCI_STATUS_INTX : 0));

        if ((state->config.data[i] ^ fn->initial[i]) & fixed)
            wrong = "read-only bits of the configuration space differ";
    }
    if (!wrong)
        return 0;
    return fvm_err_set(err, FVM_EBADIMAGE, 0, "devices", "PCI slot %u.%u: saved state refused: %s", fn->id.slot,
                       fn->id.function, wrong);
}

void fvm_pci_function_restore(struct fvm_pci_function *fn, const Fvm__PciFunctionState *state)
{
    fvm_assert(state && state->config.len == FVM_PCI_CONFIG_BYTES && state->n_msix == fn->msix_count);
    memcpy(fn->config, state->config.data, sizeof(fn->config));
    for (unsigned i = 0; i < fn->msix_count; i++)
        fn->msix[i] = (struct fvm_pci_msix_entry){
            .addr = state->msix[i]->addr, .data = state->msix[i]->data, .control = state->msix[i]->control};
    for (size_t i = 0; i < state->n_msix_pending; i++)
        fn->msix_pending[i] = state->msix_pending[i];
    fn->intx_level = state->intx;
    remap(fn);
    drive_intx(fn);
}
