/*
 * piix_ide.h - the IDE controller of the PIIX3: two channels of two drives, bus master DMA.
 */
#ifndef FVM_VMM_DEVICES_PIIX_IDE_H
#define FVM_VMM_DEVICES_PIIX_IDE_H

#include "vmm/devices/pci.h"

struct fvm_disk;

enum { FVM_IDE_DRIVES = 4 };

struct fvm_ide_drive { /* disk NULL: nothing attached */
    struct fvm_disk *disk; /* borrowed */
    bool cdrom;
    const char *serial;    /* NULL: a default */
};

/**
 * fvm_piix_ide_create - function 1 of the south bridge's slot, ports 1f0/3f6 (line 14) and 170/376 (line 15).
 * drives: primary master, primary slave, secondary master, secondary slave.
 */
int fvm_piix_ide_create(struct fvm_board *board, struct fvm_pci_host *host, uint8_t slot,
                        const struct fvm_ide_drive drives[FVM_IDE_DRIVES], struct fvm_device **ret_dev);

#endif
