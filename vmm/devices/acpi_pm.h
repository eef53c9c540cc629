/*
 * acpi_pm.h - ACPI fixed hardware (as the PIIX4's power management function lays it out) and the reset control
 * register.
 */
#ifndef FVM_VMM_DEVICES_ACPI_PM_H
#define FVM_VMM_DEVICES_ACPI_PM_H

#include "vmm/devices/pci.h"

/** Ports 600..63f: PM1 event 600, PM1 control 604, PM timer 608, GPE0 620. The FADT in vmm/firmware/acpi.c says the
 * same; firmware may move them (piix3.c). */
int fvm_acpi_pm_create(struct fvm_board *board, unsigned sci_line, struct fvm_pci_host *host,
                       struct fvm_device **ret_dev);
/** Its ports are at base..base+3f from now on; 0: nowhere. Until this is called: at 600. */
void fvm_acpi_pm_move(struct fvm_device *dev, uint16_t base);
/** Press the power button: a fixed event, the guest's operating system shuts down if it listens. */
void fvm_acpi_pm_power_button(struct fvm_device *dev);

#endif
