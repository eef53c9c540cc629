/*
 * vm_firmware.h - what a VM tells the firmware that boots it: between vm.c, vm_run.c and vm_firmware.c only.
 */
#ifndef FVM_VMM_VM_FIRMWARE_H
#define FVM_VMM_VM_FIRMWARE_H

#include "vmm/firmware/boot.h"

struct fvm_vm;

/** ACPI tables and SMBIOS of this VM, for a boot without firmware. The strings are borrowed from the VM. */
struct fvm_acpi_config fvm_vm_acpi_config(const struct fvm_vm *vm);
struct fvm_smbios_config fvm_vm_smbios_config(const struct fvm_vm *vm);
/** Memory map, ACPI, SMBIOS, boot order into fw_cfg, if the board has it. After the board was made. */
int fvm_vm_fill_fw_cfg(struct fvm_vm *vm, struct fvm_err *err);
/** Boot code for network cards (iPXE), where firmware boots and the host has it. Before the board is made. */
void fvm_vm_open_net_roms(struct fvm_vm *vm);
void fvm_vm_close_net_roms(struct fvm_vm *vm);

#endif
