/* vm_config_internal.h - between the vm_config*.c only. */
#ifndef FVM_VMM_VM_CONFIG_INTERNAL_H
#define FVM_VMM_VM_CONFIG_INTERNAL_H

#include "base/types.h"
#include "vmm/vm_config.h"

/** machine, boot order, and where disks and cards are attached. */
int fvm_config_check_machine(const Fvm__VmConfig *config, struct fvm_err *err);
int fvm_config_check_nets(const Fvm__VmConfig *config, struct fvm_err *err);
/** What this process may still allocate: the least of MemAvailable + SwapFree and the cgroups' limits. UINT64_MAX:
 * unknown. */
uint64_t fvm_config_host_available_bytes(void);

#endif
