/*
 * virtio.h - what the board needs of the virtio devices: a create function each. Modern (1.x) PCI functions only.
 *
 * Each takes the host bridge, a free slot (1..31) and an instance name ("virtio-blk0"), and gives a struct fvm_device for the
 * board's list. Back ends (disk, net, serial backend) are borrowed and must live longer than the device: destroy devices
 * first, then close disks and nets. Board lock held, loop's thread (they join the event loop).
 *
 * A ring that breaks the rules sets DEVICE_NEEDS_RESET and stops that device until the guest resets it; nothing else.
 */
#ifndef FVM_VMM_DEVICES_VIRTIO_VIRTIO_H
#define FVM_VMM_DEVICES_VIRTIO_VIRTIO_H

#include "net/net.h"
#include "storage/storage.h"
#include "vmm/devices/device.h"
#include "vmm/devices/ns16550a.h"
#include "vmm/devices/pci.h"

/** serial: at most 20 bytes are shown, NULL or "": none. Read-only and size as the disk has them. FVM_EEXIST: slot taken. */
int fvm_virtio_blk_create(struct fvm_board *board, struct fvm_pci_host *host, uint8_t slot, const char *instance,
                          struct fvm_disk *disk, const char *serial, struct fvm_device **ret_dev);
/**
 * Makes itself the receiver of the net's frames (fvm_net_set_deliver). After a restore it announces the guest's address at
 * resume: VIRTIO_NET_F_GUEST_ANNOUNCE where the driver has it, and fvm_net_announce.
 */
int fvm_virtio_net_create(struct fvm_board *board, struct fvm_pci_host *host, uint8_t slot, const char *instance,
                          struct fvm_net *net, const uint8_t mac[6], struct fvm_device **ret_dev);
int fvm_virtio_rng_create(struct fvm_board *board, struct fvm_pci_host *host, uint8_t slot, const char *instance,
                          struct fvm_device **ret_dev);
/** One port (hvc0), backend as the serial port's; `backend` is copied. */
int fvm_virtio_console_create(struct fvm_board *board, struct fvm_pci_host *host, uint8_t slot, const char *instance,
                              const struct fvm_serial_backend *backend, struct fvm_device **ret_dev);
/** As fvm_ns16550a_input: returns how many bytes were taken; keep the rest until backend->input_room. */
size_t fvm_virtio_console_input(struct fvm_device *dev, const uint8_t *bytes, size_t len);
void fvm_virtio_console_output_ready(struct fvm_device *dev);
int fvm_virtio_balloon_create(struct fvm_board *board, struct fvm_pci_host *host, uint8_t slot, const char *instance,
                              struct fvm_device **ret_dev);
/** Ask the guest to give up this many bytes (rounded to pages); it does so at its leisure. */
void fvm_virtio_balloon_set_target(struct fvm_device *dev, uint64_t bytes);
/** How many bytes the guest says it has given up. */
uint64_t fvm_virtio_balloon_actual(const struct fvm_device *dev);

#endif
