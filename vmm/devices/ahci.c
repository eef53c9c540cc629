/*
 * ahci.c - the ICH9's SATA function in AHCI mode (Serial ATA AHCI 1.0): host and port registers in BAR 5, interrupts.
 *
 * One interrupt condition: some port has an enabled status bit. PxIS feeds IS, which latches; with MSI a message goes out when
 * the condition rises and again whenever software has cleared something while more is left, so none gets lost.
 *
 * Invariant: PxCMD.CR follows ST, FR follows FRE. Commands are ahci_port.c's.
 */
#include <stdlib.h>

#include "vmm/devices/ahci_impl.h"
#include "vmm/devices/pack.h"

enum { BAR_ABAR = 5, ABAR_BYTES = 0x1000, PORTS_AT = 0x100, PORT_BYTES = 0x80 };
enum { REG_CAP = 0x00, REG_GHC = 0x04, REG_IS = 0x08, REG_PI = 0x0c, REG_VS = 0x10 };
enum {
    PX_CLB = 0x00, PX_CLBU = 0x04, PX_FB = 0x08, PX_FBU = 0x0c, PX_IS = 0x10, PX_IE = 0x14, PX_CMD = 0x18, PX_TFD = 0x20,
    PX_SIG = 0x24, PX_SSTS = 0x28, PX_SCTL = 0x2c, PX_SERR = 0x30, PX_SACT = 0x34, PX_CI = 0x38,
};
#define GHC_HR 0x00000001u
#define GHC_IE 0x00000002u
#define GHC_AE 0x80000000u
#define CAP_BITS (0xc1240000u | 31u << 8 | (FVM_AHCI_PORTS - 1)) /* 64 bits, NCQ, CLO, 3 Gb/s, AHCI only */
#define PORTS_BITS ((1u << FVM_AHCI_PORTS) - 1)

/* ---- interrupts ---- */

static uint32_t port_status(const struct ahci_port *p)
{
    return p->is | (p->serr & PX_SERR_X ? PX_IS_PCS : 0);
}

void fvm_ahci_update(struct ahci *h, bool acked)
{
    bool level;

    for (unsigned i = 0; i < FVM_AHCI_PORTS; i++)
        if (port_status(&h->port[i]) & h->port[i].ie)
            h->is |= 1u << i;
    level = h->is && (h->ghc & GHC_IE);
    if (acked && level && fvm_pci_msi_enabled(&h->pci))
        fvm_pci_interrupt_set(&h->pci, false);
    fvm_pci_interrupt_set(&h->pci, level);
}

/* ---- ports ---- */

static uint32_t port_read(const struct ahci_port *p, unsigned reg)
{
    switch (reg) {
    case PX_CLB: return (uint32_t)p->clb;
    case PX_CLBU: return (uint32_t)(p->clb >> 32);
    case PX_FB: return (uint32_t)p->fb;
    case PX_FBU: return (uint32_t)(p->fb >> 32);
    case PX_IS: return port_status(p);
    case PX_IE: return p->ie;
    case PX_CMD: return p->cmd;
    case PX_TFD: return (uint32_t)p->tf.error << 8 | p->tf.status | (p->exclusive ? FVM_ATA_BSY : 0);
    case PX_SIG: return p->sig;
    case PX_SSTS: return p->ssts;
    case PX_SCTL: return p->sctl;
    case PX_SERR: return p->serr;
    case PX_SACT: return p->sact;
    case PX_CI: return p->ci;
    default: return 0;
    }
}

static void command_write(struct ahci_port *p, uint32_t value)
{
    uint32_t old = p->cmd;

    if ((old & PX_CMD_ST) && !(value & PX_CMD_ST))
        fvm_ahci_port_stop(p);
    if ((value & PX_CMD_CLO) && !(p->cmd & PX_CMD_ST))
        p->tf.status &= (uint8_t)~(FVM_ATA_BSY | FVM_ATA_DRQ);
    p->cmd = (p->cmd & ~(PX_CMD_WRITABLE | PX_CMD_FR | PX_CMD_CR)) | (value & PX_CMD_WRITABLE);
    if (p->cmd & PX_CMD_FRE)
        p->cmd |= PX_CMD_FR;
    if (p->cmd & PX_CMD_ST)
        p->cmd |= PX_CMD_CR;
    fvm_ahci_port_kick(p);
}

static void control_write(struct ahci_port *p, uint32_t value)
{
    unsigned old = p->sctl & 15, now = value & 15;

    p->sctl = value & PX_SCTL_BITS;
    if (now == 1 || now == 4) {
        fvm_ahci_port_drain(p);
        p->ssts = now == 4 ? 4 : 0;
    } else if (old == 1 || old == 4) {
        fvm_ahci_port_link(p);
    }
}

static void port_write(struct ahci_port *p, unsigned reg, uint32_t value)
{
    switch (reg) {
    case PX_CLB: p->clb = (p->clb & ~0xffffffffull) | (value & ~0x3ffu); break;
    case PX_CLBU: p->clb = (p->clb & 0xffffffffull) | (uint64_t)value << 32; break;
    case PX_FB: p->fb = (p->fb & ~0xffffffffull) | (value & ~0xffu); break;
    case PX_FBU: p->fb = (p->fb & 0xffffffffull) | (uint64_t)value << 32; break;
    case PX_IS:
        p->is &= ~value;
        fvm_ahci_update(p->ahci, true);
        break;
    case PX_IE:
        p->ie = value & PX_IE_BITS;
        fvm_ahci_update(p->ahci, true);
        break;
    case PX_CMD: command_write(p, value); break;
    case PX_SCTL:
        control_write(p, value);
        fvm_ahci_update(p->ahci, false);
        break;
    case PX_SERR:
        p->serr &= ~value;
        break;
    case PX_SACT:
        if (p->cmd & PX_CMD_ST)
            p->sact |= value;
        break;
    case PX_CI:
        if (p->cmd & PX_CMD_ST) {
            p->ci |= value & ~p->in_flight;
            fvm_ahci_port_kick(p);
        }
        break;
    default: break;
    }
}

/* ---- the host's registers ---- */

static void hba_reset(struct ahci *h)
{
    for (unsigned i = 0; i < FVM_AHCI_PORTS; i++)
        fvm_ahci_port_reset(&h->port[i]);
    h->ghc = GHC_AE;
    h->is = 0;
    fvm_ahci_update(h, false);
}

static uint32_t read32(const struct ahci *h, unsigned offset)
{
    if (offset >= PORTS_AT) {
        unsigned n = (offset - PORTS_AT) / PORT_BYTES;

        return n < FVM_AHCI_PORTS ? port_read(&h->port[n], (offset - PORTS_AT) % PORT_BYTES) : 0;
    }
    switch (offset) {
    case REG_CAP: return CAP_BITS;
    case REG_GHC: return h->ghc;
    case REG_IS: return h->is;
    case REG_PI: return PORTS_BITS;
    case REG_VS: return 0x00010000;
    default: return 0;
    }
}

static void write32(struct ahci *h, unsigned offset, uint32_t value)
{
    if (offset >= PORTS_AT) {
        unsigned n = (offset - PORTS_AT) / PORT_BYTES;

        if (n < FVM_AHCI_PORTS)
            port_write(&h->port[n], (offset - PORTS_AT) % PORT_BYTES, value);
    } else if (offset == REG_GHC) {
        if (value & GHC_HR) {
            hba_reset(h);
            return;
        }
        h->ghc = GHC_AE | (value & GHC_IE);
        fvm_ahci_update(h, false);
    } else if (offset == REG_IS) {
        h->is &= ~value;
        fvm_ahci_update(h, true);
    }
}

static uint64_t abar_read(void *ctx, uint64_t offset, unsigned size)
{
    unsigned at = (unsigned)offset & ~3u;
    uint64_t value = read32(ctx, at);

    if (size == 8)
        value |= (uint64_t)read32(ctx, at + 4) << 32;
    return value >> (8 * (offset & 3));
}

static void abar_write(void *ctx, uint64_t offset, unsigned size, uint64_t value)
{
    if (size < 4)
        return; /* registers are written whole */
    write32(ctx, (unsigned)offset, (uint32_t)value);
    if (size == 8)
        write32(ctx, (unsigned)offset + 4, (uint32_t)(value >> 32));
}

static const struct fvm_bus_ops abar_ops = {.read = abar_read, .write = abar_write};

static void config_written(void *ctx, unsigned offset, unsigned size)
{
    struct ahci *h = ctx;

    (void)offset;
    (void)size;
    for (unsigned i = 0; i < FVM_AHCI_PORTS; i++) /* bus mastering may have been allowed just now */
        fvm_ahci_port_kick(&h->port[i]);
}

static const struct fvm_pci_function_ops pci_ops = {.config_written = config_written};

/* ---- lifecycle ---- */

static void ahci_reset(struct fvm_device *dev)
{
    struct ahci *h = (struct ahci *)dev;

    hba_reset(h);
    fvm_pci_function_reset(&h->pci);
}

static void ahci_quiesce(struct fvm_device *dev)
{
    struct ahci *h = (struct ahci *)dev;

    h->quiesced = true;
    for (unsigned i = 0; i < FVM_AHCI_PORTS; i++)
        fvm_ahci_port_drain(&h->port[i]);
}

static void ahci_resume(struct fvm_device *dev)
{
    struct ahci *h = (struct ahci *)dev;

    h->quiesced = false;
    for (unsigned i = 0; i < FVM_AHCI_PORTS; i++)
        fvm_ahci_port_kick(&h->port[i]);
}

static void ahci_destroy(struct fvm_device *dev)
{
    struct ahci *h = (struct ahci *)dev;

    ahci_quiesce(dev);
    fvm_pci_function_fini(&h->pci);
    free(h);
}

static const struct fvm_device_ops ahci_ops = {
    .name = "ahci",
    .destroy = ahci_destroy,
    .reset = ahci_reset,
    .quiesce = ahci_quiesce,
    .resume = ahci_resume,
    .save = fvm_ahci_save,
    .check = fvm_ahci_check,
    .restore = fvm_ahci_restore,
};

int fvm_ahci_create(struct fvm_board *board, struct fvm_pci_host *host, uint8_t slot,
                    const struct fvm_ahci_drive drives[FVM_AHCI_PORTS], struct fvm_device **ret_dev)
{
    const struct fvm_pci_id id = {.slot = slot, .vendor = 0x8086, .device = 0x2922, .subsystem_vendor = 0x1af4,
                                  .subsystem = 0x1100, .revision = 2, .class_code = 0x010601, .interrupt_pin = 1};
    struct ahci *h = calloc(1, sizeof(*h));
    int r;

    if (!h)
        return FVM_ENOMEM;
    fvm_device_init(&h->dev, &ahci_ops, "ahci", board);
    for (unsigned i = 0; i < FVM_AHCI_PORTS; i++) {
        struct ahci_port *p = &h->port[i];

        p->ahci = h;
        p->number = i;
        for (unsigned k = 0; k < AHCI_SLOTS; k++) {
            p->slot[k].port = p;
            p->slot[k].tag = k;
        }
        if (drives[i].disk)
            fvm_ata_init(&p->drive, drives[i].disk, drives[i].cdrom, true, drives[i].serial);
    }
    r = fvm_pci_function_init(&h->pci, host, &id, &pci_ops, h);
    if (r) {
        free(h);
        return r;
    }
    fvm_pci_bar_add(&h->pci, BAR_ABAR, FVM_PCI_BAR_MEM32, ABAR_BYTES, &abar_ops, h, "ahci");
    fvm_pci_msi_add(&h->pci);
    ahci_reset(&h->dev);
    *ret_dev = &h->dev;
    return 0;
}
