/*
 * ahci.h - a SATA controller (AHCI 1.0 as in the ICH9): six ports with a disk or a CD-ROM each, 32 commands, NCQ, MSI.
 */
#ifndef FVM_VMM_DEVICES_AHCI_H
#define FVM_VMM_DEVICES_AHCI_H

#include "vmm/devices/pci.h"

struct fvm_disk;

enum { FVM_AHCI_PORTS = 6 };

struct fvm_ahci_drive { /* disk NULL: nothing attached */
    struct fvm_disk *disk; /* borrowed */
    bool cdrom;
    const char *serial;    /* NULL: a default */
};

int fvm_ahci_create(struct fvm_board *board, struct fvm_pci_host *host, uint8_t slot,
                    const struct fvm_ahci_drive drives[FVM_AHCI_PORTS], struct fvm_device **ret_dev);

#endif
