/*
 * e1000.h - a gigabit network card: Intel 82540EM, the card that every system has a driver for.
 */
#ifndef FVM_VMM_DEVICES_E1000_H
#define FVM_VMM_DEVICES_E1000_H

#include "vmm/devices/pci.h"

struct fvm_net;

/** net is borrowed; its frames are delivered here from now on. */
int fvm_e1000_create(struct fvm_board *board, struct fvm_pci_host *host, uint8_t slot, const char *instance,
                     struct fvm_net *net, const uint8_t mac[6], struct fvm_device **ret_dev);

#endif
