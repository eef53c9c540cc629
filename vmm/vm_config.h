/*
 * vm_config.h - making and judging a VmConfig (proto/vm_config.proto): the small languages of the command line.
 *
 * Every string in a message made here is malloc'd, so that fvm_config_free (protobuf-c's own free) fits.
 * Everything that parses takes text from a user or a peer: nothing is trusted, every refusal says what would be right.
 * Thread: any, no shared state. Test: tests/unit/vm_config.c
 */
#ifndef FVM_VMM_VM_CONFIG_H
#define FVM_VMM_VM_CONFIG_H

#include "base/err.h"
#include "proto/vm_config.pb-c.h"

#define FVM_CONFIG_CPUS_MAX 16
#define FVM_CONFIG_DISKS_MAX 8
#define FVM_CONFIG_NETS_MAX 4
#define FVM_CONFIG_BOOTFILE_MAX 127 /* what fits a BOOTP answer */
#define FVM_CONFIG_IDE_MAX 4  /* two channels of two drives */
#define FVM_CONFIG_AHCI_MAX 6 /* ports of an ICH9 */
#define FVM_CONFIG_FORWARDS_MAX 64
#define FVM_CONFIG_MEMORY_MIN (16ull << 20)
#define FVM_CONFIG_MEMORY_MAX (1ull << 40)
#define FVM_CONFIG_APPEND_MAX 2047 /* what a Linux kernel takes (COMMAND_LINE_SIZE) */
#define FVM_CONFIG_SERIAL_MAX 20   /* virtio-blk's identification string */

/** Defaults: name "vm", 1 GiB, 1 CPU, random id, serial "none", rng, on_reset "reset", vga "std". NULL: out of memory. */
Fvm__VmConfig *fvm_config_new(void);
void fvm_config_free(Fvm__VmConfig **config_p);
/** A deep copy; NULL: out of memory. */
Fvm__VmConfig *fvm_config_copy(const Fvm__VmConfig *config);
/** Replace a string field of a message by a copy of `text`. */
int fvm_config_set(char **field, const char *text);

/** "1G", "512M", "64K", "4096": bytes, powers of 1024; "1.5G" and negative numbers are refused. */
int fvm_config_parse_bytes(const char *text, uint64_t *ret_bytes, struct fvm_err *err);
/** Next item of "a,b=c,d" (",," is a comma), malloc'd; *cursor is NULL after the last. NULL: no memory. */
char *fvm_config_next_item(const char **cursor);
/** "F[,if=virtio|ide|ahci][,readonly][,format=raw][,serial=S]". A comma in a file's name is written ",,". */
int fvm_config_add_disk(Fvm__VmConfig *config, const char *spec, struct fvm_err *err);
/** "F[,if=ide|ahci][,serial=S]": a CD-ROM drive with the image F in it. */
int fvm_config_add_cdrom(Fvm__VmConfig *config, const char *spec, struct fvm_err *err);
/**
 * "none" | "user[,model=virtio|e1000][,mac=M][,tftp=DIR][,bootfile=F][,hostfwd=tcp:[ADDR]:PORT-[ADDR]:PORT]..." | "switch:PATH[,model=..][,mac=M]".
 * "none" adds nothing.
 */
int fvm_config_add_net(Fvm__VmConfig *config, const char *spec, struct fvm_err *err);
/** "tcp:127.0.0.1:2222-:22" */
int fvm_config_parse_forward(const char *text, Fvm__HostForward *ret, struct fvm_err *err);
/** "52:54:00:12:34:56", unicast only. */
int fvm_config_parse_mac(const char *text, uint8_t ret_mac[6], struct fvm_err *err);

/** "pc" or "virtio". */
int fvm_config_set_machine(Fvm__VmConfig *config, const char *text, struct fvm_err *err);
/** "disk", "cdrom,net"...: words of disk, cdrom, net, each at most once. */
int fvm_config_set_boot(Fvm__VmConfig *config, const char *text, struct fvm_err *err);
/** Is this the full PC? If not said: yes without a kernel (firmware boots), or when a device is not virtio. */
bool fvm_config_is_pc(const Fvm__VmConfig *config);

/** Is the whole thing possible? Sizes, counts, lengths; files are looked at only when `files`. */
int fvm_config_check(const Fvm__VmConfig *config, bool files, struct fvm_err *err);

#endif
