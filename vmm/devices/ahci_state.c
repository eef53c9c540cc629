/*
 * ahci_state.c - save, check and restore of the AHCI controller.
 *
 * Nothing is in flight in a saved controller: quiesce has waited for it, and issued commands that were not started are bits of
 * PxCI, which resume starts. Whatever those commands say is judged when they start, not here.
 */
#include <stdlib.h>
#include <string.h>

#include "vmm/devices/ahci_impl.h"
#include "vmm/devices/pack.h"

#define GHC_BITS 0x80000002u
#define CMD_BITS (PX_CMD_WRITABLE | PX_CMD_SUD | PX_CMD_POD | PX_CMD_CCS | PX_CMD_FR | PX_CMD_CR)

struct parts {
    Fvm__PciFunctionState pci;
    Fvm__AhciPortState port[FVM_AHCI_PORTS], *list[FVM_AHCI_PORTS];
    Fvm__AtaDriveState drive[FVM_AHCI_PORTS];
    Fvm__AtaTaskfileState tf[FVM_AHCI_PORTS];
};

static void save_port(const struct ahci_port *p, Fvm__AhciPortState *s)
{
    *s = (Fvm__AhciPortState)FVM__AHCI_PORT_STATE__INIT;
    s->clb = p->clb;
    s->fb = p->fb;
    s->is = p->is;
    s->ie = p->ie;
    s->cmd = p->cmd;
    s->sig = p->sig;
    s->ssts = p->ssts;
    s->sctl = p->sctl;
    s->serr = p->serr;
    s->sact = p->sact;
    s->ci = p->ci;
    s->halted = p->halted;
}

int fvm_ahci_save(struct fvm_device *dev, uint8_t **ret_buf, size_t *ret_len)
{
    struct ahci *h = (struct ahci *)dev;
    Fvm__AhciState state = FVM__AHCI_STATE__INIT;
    struct parts p;
    int r = fvm_pci_function_save(&h->pci, &p.pci);

    if (r)
        return r;
    for (unsigned i = 0; i < FVM_AHCI_PORTS; i++) {
        fvm_assert(!h->port[i].in_flight);
        save_port(&h->port[i], &p.port[i]);
        fvm_ata_drive_save(&h->port[i].drive, &p.drive[i]);
        fvm_ata_taskfile_save(&h->port[i].tf, &p.tf[i]);
        p.port[i].drive = &p.drive[i];
        p.port[i].taskfile = &p.tf[i];
        p.list[i] = &p.port[i];
    }
    state.pci = &p.pci;
    state.ghc = h->ghc;
    state.is = h->is;
    state.n_ports = FVM_AHCI_PORTS;
    state.ports = p.list;
    r = fvm_device_pack(&state.base, ret_buf, ret_len);
    fvm_pci_function_save_free(&p.pci);
    return r;
}

static const char *check_port(const struct ahci_port *p, const Fvm__AhciPortState *s)
{
    const char *wrong = fvm_ata_drive_check(&p->drive, s->drive);
    bool present = p->drive.disk != NULL;

    if (!wrong)
        wrong = fvm_ata_taskfile_check(s->taskfile);
    if (wrong)
        return wrong;
    if ((s->clb & 0x3ff) || (s->fb & 0xff))
        return "command list or received FIS not aligned";
    if ((s->is & ~PX_IS_BITS) || (s->ie & ~PX_IE_BITS) || (s->serr & ~PX_SERR_X) || (s->sctl & ~PX_SCTL_BITS))
        return "port registers";
    if ((s->cmd & ~CMD_BITS) || !(s->cmd & PX_CMD_SUD) || !(s->cmd & PX_CMD_POD) ||
        !(s->cmd & PX_CMD_ST) != !(s->cmd & PX_CMD_CR) || !(s->cmd & PX_CMD_FRE) != !(s->cmd & PX_CMD_FR))
        return "port command register";
    if (!(s->cmd & PX_CMD_ST) && (s->ci || s->sact || s->halted))
        return "commands of a stopped port";
    if (s->ssts != 0 && s->ssts != 4 && (s->ssts != PX_SSTS_UP || !present))
        return "link state";
    if (s->sig != (!present ? PX_SIG_NONE : p->drive.cdrom ? 0xeb140101 : 0x00000101))
        return "signature";
    return NULL;
}

int fvm_ahci_check(struct fvm_device *dev, const uint8_t *buf, size_t len, struct fvm_err *err)
{
    struct ahci *h = (struct ahci *)dev;
    Fvm__AhciState *s = (void *)fvm_device_unpack(&fvm__ahci_state__descriptor, dev, buf, len, err);
    int r;

    if (!s)
        return FVM_EBADIMAGE;
    r = fvm_pci_function_check(&h->pci, s->pci, err);
    if (!r && (s->n_ports != FVM_AHCI_PORTS || (s->ghc & ~GHC_BITS) || !(s->ghc >> 31) || s->is >> FVM_AHCI_PORTS))
        r = fvm_device_refuse(dev, err, "host registers");
    for (unsigned i = 0; !r && i < FVM_AHCI_PORTS; i++) {
        const char *wrong = check_port(&h->port[i], s->ports[i]);

        if (wrong)
            r = fvm_device_refuse(dev, err, wrong);
    }
    fvm__ahci_state__free_unpacked(s, NULL);
    return r;
}

static void restore_port(struct ahci_port *p, const Fvm__AhciPortState *s)
{
    fvm_ata_drive_restore(&p->drive, s->drive);
    fvm_ata_taskfile_restore(&p->tf, s->taskfile);
    p->clb = s->clb;
    p->fb = s->fb;
    p->is = s->is;
    p->ie = s->ie;
    p->cmd = s->cmd;
    p->sig = s->sig;
    p->ssts = s->ssts;
    p->sctl = s->sctl;
    p->serr = s->serr;
    p->sact = s->sact;
    p->ci = s->ci;
    p->halted = s->halted;
}

void fvm_ahci_restore(struct fvm_device *dev, const uint8_t *buf, size_t len)
{
    struct ahci *h = (struct ahci *)dev;
    Fvm__AhciState *s = fvm__ahci_state__unpack(NULL, len, buf);

    fvm_assert(s);
    h->quiesced = true; /* until resume */
    h->ghc = s->ghc;
    h->is = s->is;
    for (unsigned i = 0; i < FVM_AHCI_PORTS; i++)
        restore_port(&h->port[i], s->ports[i]);
    fvm_pci_function_restore(&h->pci, s->pci);
    fvm__ahci_state__free_unpacked(s, NULL);
}
