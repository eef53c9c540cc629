/*
 * piix3.h - the south bridge as PCI shows it: ISA bridge with the interrupt routing (82371SB, function 0) and the power
 * management function (82371AB, function 3) that tells software where acpi_pm.c's ports are.
 */
#ifndef FVM_VMM_DEVICES_PIIX3_H
#define FVM_VMM_DEVICES_PIIX3_H

#include "vmm/devices/pci.h"

/** @acpi_pm  the chip whose ports the PM function's PMBASE places; borrowed, lives longer. */
int fvm_piix3_create(struct fvm_board *board, struct fvm_pci_host *host, uint8_t slot, struct fvm_device *acpi_pm,
                     struct fvm_device **ret_dev);

#endif
