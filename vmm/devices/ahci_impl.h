/* ahci_impl.h - between ahci.c (registers, PCI, life), ahci_port.c (commands of a port) and ahci_state.c only. */
#ifndef FVM_VMM_DEVICES_AHCI_IMPL_H
#define FVM_VMM_DEVICES_AHCI_IMPL_H

#include "vmm/devices/ahci.h"
#include "vmm/devices/ata.h"
#include "vmm/devices/dma.h"

enum { AHCI_SLOTS = 32 };
#define PX_CMD_ST 0x00000001u
#define PX_CMD_SUD 0x00000002u
#define PX_CMD_POD 0x00000004u
#define PX_CMD_CLO 0x00000008u
#define PX_CMD_FRE 0x00000010u
#define PX_CMD_CCS 0x00001f00u
#define PX_CMD_FR 0x00004000u
#define PX_CMD_CR 0x00008000u
#define PX_CMD_ATAPI 0x01000000u
#define PX_CMD_WRITABLE (PX_CMD_ST | PX_CMD_FRE | PX_CMD_ATAPI)
#define PX_IS_DHRS 0x00000001u
#define PX_IS_PSS 0x00000002u
#define PX_IS_SDBS 0x00000008u
#define PX_IS_DPS 0x00000020u
#define PX_IS_PCS 0x00000040u /* follows SERR.DIAG.X */
#define PX_IS_OFS 0x01000000u
#define PX_IS_HBFS 0x20000000u
#define PX_IS_TFES 0x40000000u
#define PX_IS_BITS (PX_IS_DHRS | PX_IS_PSS | PX_IS_SDBS | PX_IS_DPS | PX_IS_OFS | PX_IS_HBFS | PX_IS_TFES)
#define PX_IE_BITS 0xfdc000ffu
#define PX_SERR_X 0x04000000u
#define PX_SSTS_UP 0x00000123u /* present, 3 Gb/s, active */
#define PX_SIG_NONE 0xffffffffu
#define PX_SCTL_BITS 0x00000fffu

struct ahci_port;
struct ahci_slot { /* a command under way */
    struct ahci_port *port;
    unsigned tag;
    struct fvm_ata_task task;
    struct fvm_dma dma;
    uint64_t header_gpa;
};

struct ahci_port { /* board lock */
    struct ahci *ahci;
    unsigned number;
    struct fvm_ata_drive drive;
    struct fvm_ata_taskfile tf; /* PxTFD and the register FIS */
    uint64_t clb, fb;
    uint32_t is, ie, cmd, sig, ssts, sctl, serr, sact, ci;
    bool halted;        /* after an error, until software stops the port */
    bool kicking;
    uint32_t in_flight; /* bit per slot */
    bool exclusive;     /* what is in flight is one command without a queue */
    struct ahci_slot slot[AHCI_SLOTS];
};

struct ahci { /* board lock */
    struct fvm_device dev;
    struct fvm_pci_function pci;
    uint32_t ghc, is;
    bool quiesced;
    struct ahci_port port[FVM_AHCI_PORTS];
};

/** Interrupt registers changed. acked: software cleared something, what is left must be told again (MSI has edges). */
void fvm_ahci_update(struct ahci *ahci, bool acked);
/** Start what is issued and can start. */
void fvm_ahci_port_kick(struct ahci_port *p);
/** Wait for the disk; nothing is in flight afterwards. */
void fvm_ahci_port_drain(struct ahci_port *p);
/** ST was cleared. */
void fvm_ahci_port_stop(struct ahci_port *p);
/** COMRESET: the link is up again, the drive has sent its signature. */
void fvm_ahci_port_link(struct ahci_port *p);
/** HBA reset. */
void fvm_ahci_port_reset(struct ahci_port *p);

int fvm_ahci_save(struct fvm_device *dev, uint8_t **ret_buf, size_t *ret_len);
int fvm_ahci_check(struct fvm_device *dev, const uint8_t *buf, size_t len, struct fvm_err *err);
void fvm_ahci_restore(struct fvm_device *dev, const uint8_t *buf, size_t len);

#endif
