/*
 * pci.h - PCI functions on bus 0 and the host bridge that carries them (pci_host.c).
 *
 * A chip that sits on PCI embeds a struct fvm_pci_function, calls fvm_pci_function_init once in its create, then adds
 * BARs and capabilities, and forwards reset/save/check/restore to the fvm_pci_function_* calls below. Everything with
 * the board lock held.
 *
 *     fvm_pci_function_init(&dev->pci, host, &id, &hooks, dev);
 *     fvm_pci_bar_add(&dev->pci, 4, FVM_PCI_BAR_MEM64, 0x4000, &ops, dev, "virtio");
 *     fvm_pci_msix_add(&dev->pci, 1, 3);
 *     off = fvm_pci_cap_add(&dev->pci, 0x09, body, sizeof(body));
 *     ...
 *     if (fvm_pci_msix_enabled(&dev->pci))
 *         fvm_pci_msix_notify(&dev->pci, vector);
 *     else
 *         fvm_pci_intx_set(&dev->pci, true);
 *
 * A chip with one interrupt condition and MSI (fvm_pci_msi_add) calls fvm_pci_interrupt_set with its level: that is INTx, or
 * one message at each rising edge once the guest has turned MSI on.
 *
 * INTx pins are wired as on the PIIX3 boards: pin p (1..4) of slot s is link (s + p - 2) % 4, and the links go to lines 10,
 * 10, 11, 11 until somebody (piix3.c) says otherwise by fvm_pci_host_route.
 *
 * The host bridge assigns BARs at reset as a BIOS would (fvm_pci_host_assign); the guest may move them later.
 */
#ifndef FVM_VMM_DEVICES_PCI_H
#define FVM_VMM_DEVICES_PCI_H

#include "proto/device_state.pb-c.h"
#include "vmm/devices/device.h"

enum { FVM_PCI_SLOTS = 32, FVM_PCI_BARS = 6, FVM_PCI_FUNCTIONS = 8, FVM_PCI_CONFIG_BYTES = 256, FVM_PCI_MSIX_MAX = 128,
       FVM_PCI_LINKS = 4 };

/* Where the windows of the root bridge are: the host bridge, ACPI's _CRS and e820 must agree. */
#define FVM_PCI_MMIO32_BASE 0xc0000000ull
#define FVM_PCI_MMIO32_END 0xfec00000ull /* exclusive: the ioapic */
#define FVM_PCI_MMIO64_BYTES (32ull << 30) /* begins above RAM, see fvm_pci_mmio64_base */
#define FVM_PCI_IO_BASE 0xc000u
#define FVM_PCI_IO_END 0x10000u

enum fvm_pci_bar_kind {
    FVM_PCI_BAR_NONE,
    FVM_PCI_BAR_IO,
    FVM_PCI_BAR_MEM32,
    FVM_PCI_BAR_MEM64, /* takes index and index + 1 */
    FVM_PCI_BAR_ROM    /* expansion ROM: fvm_pci_rom_add */
};

struct fvm_pci_host;

struct fvm_pci_id {
    uint8_t slot;            /* 1..31 on bus 0 */
    uint8_t function;        /* 0..7; a slot that has any has function 0 */
    uint16_t vendor, device;
    uint16_t subsystem_vendor, subsystem;
    uint8_t revision;
    uint32_t class_code;     /* 24 bits: class, subclass, interface */
    uint8_t interrupt_pin;   /* 0: none, 1: INTA */
};

struct fvm_pci_function_ops { /* any may be NULL */
    /* before the guest reads config[offset, +size): the chip may refresh these bytes in fn->config */
    void (*config_read)(void *ctx, unsigned offset, unsigned size);
    /* after the guest wrote (only writable bits were changed, BARs and MSI-X are handled already) */
    void (*config_written)(void *ctx, unsigned offset, unsigned size);
};

struct fvm_pci_bar {
    enum fvm_pci_bar_kind kind;
    uint64_t len_bytes;      /* power of two */
    const struct fvm_bus_ops *ops;
    void *ctx;
    const char *name;
    int claim_id;            /* valid when mapped */
    uint64_t mapped_base;
    bool mapped;
};

struct fvm_pci_msix_entry {
    uint64_t addr;
    uint32_t data;
    uint32_t control;        /* bit 0: masked */
};

struct fvm_pci_function { /* embedded in the chip; fields are pci.c's, but config[] may be filled by the chip before the
                             VM runs */
    struct fvm_pci_host *host;
    struct fvm_pci_id id;
    const struct fvm_pci_function_ops *ops;
    void *ctx;
    uint8_t config[FVM_PCI_CONFIG_BYTES];
    uint8_t initial[FVM_PCI_CONFIG_BYTES];  /* what reset goes back to */
    uint8_t writable[FVM_PCI_CONFIG_BYTES]; /* mask of bits the guest can write */
    uint8_t w1c[FVM_PCI_CONFIG_BYTES];      /* bits cleared by writing one */
    struct fvm_pci_bar bar[FVM_PCI_BARS + 1]; /* the last: expansion ROM */
    const uint8_t *rom;          /* borrowed */
    uint32_t rom_bytes;
    unsigned cap_next, cap_last; /* offsets: free space, last capability */
    bool intx_level;             /* as the chip wants it, before INTX_DISABLE */
    bool intx_driven;            /* as the link sees it */
    unsigned msi_cap;            /* config offset, 0: none */
    bool initial_taken;
    unsigned msix_cap;           /* config offset, 0: none */
    unsigned msix_count;
    struct fvm_pci_msix_entry msix[FVM_PCI_MSIX_MAX];
    uint32_t msix_pending[FVM_PCI_MSIX_MAX / 32];
};

/** Put a function on the bus. FVM_EEXIST: place taken. `ops` may be NULL. */
int fvm_pci_function_init(struct fvm_pci_function *fn, struct fvm_pci_host *host, const struct fvm_pci_id *id,
                          const struct fvm_pci_function_ops *ops, void *ctx);
/** Unmap BARs, leave the bus. Safe on a zeroed struct. */
void fvm_pci_function_fini(struct fvm_pci_function *fn);

/** BAR callbacks get offsets relative to the BAR. len is rounded up to a power of two (memory: at least 4 KiB, I/O: at
 * least 4). */
void fvm_pci_bar_add(struct fvm_pci_function *fn, unsigned index, enum fvm_pci_bar_kind kind, uint64_t len_bytes,
                     const struct fvm_bus_ops *ops, void *ctx, const char *name);
/** An expansion ROM, shown to whoever enables its base address register. `rom` is borrowed; at most 1 MiB. */
void fvm_pci_rom_add(struct fvm_pci_function *fn, const uint8_t *rom, uint32_t rom_bytes);
/**
 * Append a capability: `body` is what follows the id and next bytes (body[0] lands at offset + 2). Returns its offset
 * in config space; make bits writable with fvm_pci_config_writable.
 */
unsigned fvm_pci_cap_add(struct fvm_pci_function *fn, uint8_t cap_id, const void *body, unsigned body_len);
void fvm_pci_config_writable(struct fvm_pci_function *fn, unsigned offset, unsigned len, uint8_t mask);
/** MSI-X with its table (offset 0) and pending bits (offset 0x800) in a 4 KiB 32-bit memory BAR of its own.
 * count 1..128. */
void fvm_pci_msix_add(struct fvm_pci_function *fn, unsigned bar_index, unsigned count);

bool fvm_pci_msix_enabled(const struct fvm_pci_function *fn);
/** Send vector's message, or remember it pending while masked. Out of range or MSI-X disabled: nothing. */
void fvm_pci_msix_notify(struct fvm_pci_function *fn, unsigned vector);
/** MSI, one vector, 64-bit address, without mask bits. */
void fvm_pci_msi_add(struct fvm_pci_function *fn);
bool fvm_pci_msi_enabled(const struct fvm_pci_function *fn);
/** The chip's one interrupt condition: INTx, or a message for each rise while MSI is enabled. */
void fvm_pci_interrupt_set(struct fvm_pci_function *fn, bool level);
/** The chip's INTx output. Drives the shared line unless the command register disables it. */
void fvm_pci_intx_set(struct fvm_pci_function *fn, bool level);
/** Command register, bus master enable: DMA is allowed. */
bool fvm_pci_bus_master(const struct fvm_pci_function *fn);

/** Back to power-on: BARs unmapped and 0, MSI-X off and masked, INTx low. */
void fvm_pci_function_reset(struct fvm_pci_function *fn);

/* State: embed `PciFunctionState pci` in the chip's message. _save fills an initialised message with malloc'd parts,
 * freed by _save_free (call it before the message goes out of scope). _check takes hostile input, NULL included. */
int fvm_pci_function_save(const struct fvm_pci_function *fn, Fvm__PciFunctionState *ret_state);
void fvm_pci_function_save_free(Fvm__PciFunctionState *state);
int fvm_pci_function_check(const struct fvm_pci_function *fn, const Fvm__PciFunctionState *state, struct fvm_err *err);
/** After check said 0: config, BAR mappings, MSI-X and INTx as saved. Sends no interrupts. */
void fvm_pci_function_restore(struct fvm_pci_function *fn, const Fvm__PciFunctionState *state);

/* ---- the host bridge (pci_host.c) ---- */
/** i440FX-like bridge in slot 0, configuration mechanism #1 at cf8/cfc. Chip name "pci_host". */
int fvm_pci_host_create(struct fvm_board *board, struct fvm_device **ret_dev);
/** The bridge behind the device made by fvm_pci_host_create: what fvm_pci_function_init wants. */
struct fvm_pci_host *fvm_pci_host_of(struct fvm_device *dev);
/** The expansion ROM of whatever function 0 is made in this slot later. Borrowed, as for fvm_pci_rom_add. */
void fvm_pci_host_set_rom(struct fvm_pci_host *host, unsigned slot, const uint8_t *rom, uint32_t rom_bytes);
/** Byte accesses to port cf9 (reset control) lie inside the bridge's cf8 register and are handed to this chip. */
void fvm_pci_host_set_cf9(struct fvm_pci_host *host, const struct fvm_bus_ops *ops, void *ctx);
/** What a BIOS does: give every BAR an address, enable decoding, write interrupt lines. After all chips were reset. */
void fvm_pci_host_assign(struct fvm_pci_host *host);
/** Link 0..3 (PIRQA..PIRQD) to an interrupt line, or to none (line >= FVM_IRQ_LINES). Reset of the bridge goes back. */
void fvm_pci_host_route(struct fvm_pci_host *host, unsigned link, unsigned line);
/** ISA IRQ (= GSI) that INTx pin (1..4) of a slot is wired to at reset: 10 or 11, level. ACPI's _PRT says the same. */
unsigned fvm_pci_irq(unsigned slot, unsigned pin);
/** First byte of the 64-bit window: above RAM, 1 GiB aligned. */
uint64_t fvm_pci_mmio64_base(const struct fvm_ram *ram);

#endif
