/*
 * pci_impl.h - what pci.c (functions) and pci_host.c (the bridge) share; nobody else includes it.
 */
#ifndef FVM_VMM_DEVICES_PCI_IMPL_H
#define FVM_VMM_DEVICES_PCI_IMPL_H

#include "vmm/devices/pci.h"

enum {
    PCI_VENDOR = 0x00, PCI_DEVICE = 0x02, PCI_COMMAND = 0x04, PCI_STATUS = 0x06, PCI_REVISION = 0x08, PCI_CLASS = 0x09,
    PCI_HEADER_TYPE = 0x0e, PCI_BAR0 = 0x10, PCI_SUBSYSTEM_VENDOR = 0x2c, PCI_SUBSYSTEM = 0x2e, PCI_ROM = 0x30, PCI_CAPABILITIES = 0x34,
    PCI_INTERRUPT_LINE = 0x3c, PCI_INTERRUPT_PIN = 0x3d, PCI_FIRST_FREE = 0x40,
};
enum { PCI_COMMAND_IO = 1, PCI_COMMAND_MEMORY = 2, PCI_COMMAND_MASTER = 4, PCI_COMMAND_INTX_OFF = 0x400 };
enum { PCI_HEADER_MULTI = 0x80, PCI_STATUS_INTX = 0x08, PCI_STATUS_CAPABILITIES = 0x10 };

struct fvm_pci_host {
    struct fvm_device dev;
    struct fvm_pci_function self; /* slot 0 */
    struct fvm_pci_function *at[FVM_PCI_SLOTS][FVM_PCI_FUNCTIONS];
    struct {
        struct fvm_irq_source *source; /* NULL: routed nowhere */
        unsigned high;                 /* functions that drive it */
    } link[FVM_PCI_LINKS];
    struct {
        const uint8_t *bytes;
        uint32_t len;
    } rom[FVM_PCI_SLOTS]; /* for functions to come */
    uint32_t config_address;
    const struct fvm_bus_ops *cf9_ops;
    void *cf9_ctx;
    int claim_id[2];
};

/** One function's pin changed. */
void fvm_pci_link_drive(struct fvm_pci_host *host, unsigned slot, unsigned pin, bool level);
uint32_t fvm_pci_config_read(struct fvm_pci_function *fn, unsigned offset, unsigned size);
void fvm_pci_config_write(struct fvm_pci_function *fn, unsigned offset, unsigned size, uint32_t value);

static inline uint16_t pci_get16(const uint8_t *config, unsigned offset)
{
    return (uint16_t)(config[offset] | config[offset + 1] << 8);
}
static inline uint32_t pci_get32(const uint8_t *config, unsigned offset)
{
    return pci_get16(config, offset) | (uint32_t)pci_get16(config, offset + 2) << 16;
}
static inline void pci_put16(uint8_t *config, unsigned offset, uint32_t value)
{
    config[offset] = (uint8_t)value;
    config[offset + 1] = (uint8_t)(value >> 8);
}
static inline void pci_put32(uint8_t *config, unsigned offset, uint32_t value)
{
    pci_put16(config, offset, value & 0xffff);
    pci_put16(config, offset + 2, value >> 16);
}

#endif
