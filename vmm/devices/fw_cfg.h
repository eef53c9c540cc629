/*
 * fw_cfg.h - the configuration interface by which firmware learns what machine it is on (as QEMU has it): ports 510..51b.
 *
 * Items have numbers; files are items with a name, listed in item 19h. Contents are copied when added; they are derived from the VM's
 * configuration, so they are no part of the saved state.
 */
#ifndef FVM_VMM_DEVICES_FW_CFG_H
#define FVM_VMM_DEVICES_FW_CFG_H

#include "vmm/devices/device.h"

enum { /* items that firmware knows by number */
    FVM_FW_CFG_UUID = 0x02,
    FVM_FW_CFG_RAM_SIZE = 0x03,
    FVM_FW_CFG_CPUS = 0x05,
    FVM_FW_CFG_NUMA = 0x0d,
    FVM_FW_CFG_BOOT_MENU = 0x0e,
    FVM_FW_CFG_CPUS_MAX = 0x0f,
    FVM_FW_CFG_IRQ0_OVERRIDE = 0x8002,
};
enum { FVM_FW_CFG_FILES_MAX = 32, FVM_FW_CFG_NAME_MAX = 55 };

int fvm_fw_cfg_create(struct fvm_board *board, struct fvm_device **ret_dev);
/** Before the VM runs. A second item of the same number or name replaces the first. FVM_ENOMEM, FVM_ENOSPC. */
int fvm_fw_cfg_add(struct fvm_device *dev, uint16_t key, const void *bytes, size_t len);
int fvm_fw_cfg_add_file(struct fvm_device *dev, const char *name, const void *bytes, size_t len);

#endif
