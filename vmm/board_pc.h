/*
 * board_pc.h - the PC: THE device list. Every chip with its address and interrupt is in one table in board_pc.c.
 *
 * Thread: create and destroy before and after the VM runs; everything else with the board lock held.
 */
#ifndef FVM_VMM_BOARD_PC_H
#define FVM_VMM_BOARD_PC_H

#include "proto/device_state.pb-c.h"
#include "vmm/devices/device.h"
#include "vmm/devices/ns16550a.h"

struct fvm_board_pc;
struct fvm_disk;
struct fvm_net;

enum { FVM_BOARD_DISKS_MAX = 8, FVM_BOARD_NETS_MAX = 4 };

enum fvm_board_pc_interface { FVM_BOARD_VIRTIO, FVM_BOARD_IDE, FVM_BOARD_AHCI };

struct fvm_board_pc_disk {
    struct fvm_disk *disk; /* borrowed: the vm opens and closes it */
    const char *serial;    /* as shown to the guest, may be NULL */
    enum fvm_board_pc_interface interface;
    bool cdrom;            /* IDE or AHCI */
};
struct fvm_board_pc_net {
    struct fvm_net *net;   /* borrowed: the vm opens, activates and closes it */
    uint8_t mac[6];
    bool e1000;            /* an 82540EM; else virtio */
    const uint8_t *rom;    /* its boot code, borrowed; may be NULL */
    uint32_t rom_bytes;
};
struct fvm_board_pc_config {
    bool full; /* the PC's south bridge and what hangs on it; else virtio is all there is on PCI */
    struct fvm_serial_backend serial; /* COM1 */
    const struct fvm_board_pc_disk *disks;
    unsigned disk_count;
    const struct fvm_board_pc_net *nets;
    unsigned net_count;
    bool has_console;                  /* virtio-console */
    struct fvm_serial_backend console;
    bool rng;
    bool balloon;
    bool vga;                          /* display adapter */
    const uint8_t *vga_rom;            /* its BIOS, borrowed; may be NULL */
    uint32_t vga_rom_bytes;
};

/** Makes the chips in the table's order, then disk controllers, then the virtio devices: disks, nets, console, rng,
 * balloon; the display adapter. `board` is borrowed. */
int fvm_board_pc_create(struct fvm_board *board, const struct fvm_board_pc_config *config, struct fvm_board_pc **ret_pc,
                        struct fvm_err *err);
void fvm_board_pc_destroy(struct fvm_board_pc **pc_p);
/** The full PC's configuration interface for firmware (fw_cfg.h); NULL on the other machine. */
struct fvm_device *fvm_board_pc_fw_cfg(const struct fvm_board_pc *pc);
/** What SeaBIOS calls the index'th disk or network card of the configuration in its boot order; never NULL. */
const char *fvm_board_pc_disk_path(const struct fvm_board_pc *pc, unsigned index);
const char *fvm_board_pc_net_path(const struct fvm_board_pc *pc, unsigned index);
/** All chips to power-on state, then PCI BARs assigned as a BIOS leaves them. */
void fvm_board_pc_reset(struct fvm_board_pc *pc);
void fvm_board_pc_quiesce(struct fvm_board_pc *pc);
void fvm_board_pc_resume(struct fvm_board_pc *pc);

unsigned fvm_board_pc_device_count(const struct fvm_board_pc *pc);
struct fvm_device *fvm_board_pc_device_at(const struct fvm_board_pc *pc, unsigned index);
/** By instance name, NULL if there is none. */
struct fvm_device *fvm_board_pc_device(const struct fvm_board_pc *pc, const char *instance);

/** Every device in board order. *ret: fvm__devices_state__free_unpacked(m, NULL). */
int fvm_board_pc_save(struct fvm_board_pc *pc, Fvm__DevicesState **ret);
/** Same devices in the same order, each chip's check says 0. No side effects. */
int fvm_board_pc_check(struct fvm_board_pc *pc, const Fvm__DevicesState *state, struct fvm_err *err);
/** After check said 0. */
void fvm_board_pc_restore(struct fvm_board_pc *pc, const Fvm__DevicesState *state);

/** The display adapter, NULL: none; the keyboard controller. */
struct fvm_device *fvm_board_pc_vga(const struct fvm_board_pc *pc);
struct fvm_device *fvm_board_pc_i8042(const struct fvm_board_pc *pc);

/** COM1 and virtio-console: see ns16550a.h for the flow control. Console calls without a console take everything. */
size_t fvm_board_pc_serial_input(struct fvm_board_pc *pc, const uint8_t *bytes, size_t len);
void fvm_board_pc_serial_output_ready(struct fvm_board_pc *pc);
size_t fvm_board_pc_console_input(struct fvm_board_pc *pc, const uint8_t *bytes, size_t len);
void fvm_board_pc_console_output_ready(struct fvm_board_pc *pc);

#endif
