/*
 * pack.h - a chip's protobuf message to bytes and back, for the save/check/restore operations.
 */
#ifndef FVM_VMM_DEVICES_PACK_H
#define FVM_VMM_DEVICES_PACK_H

#include <protobuf-c/protobuf-c.h>

#include "vmm/devices/device.h"

/** malloc'd *ret_buf; FVM_ENOMEM. */
int fvm_device_pack(const ProtobufCMessage *message, uint8_t **ret_buf, size_t *ret_len);
/** Parsed message (protobuf_c_message_free_unpacked), or NULL with err saying that `dev` got bytes that are no such
 * message. */
ProtobufCMessage *fvm_device_unpack(const ProtobufCMessageDescriptor *type, const struct fvm_device *dev,
                                    const uint8_t *buf, size_t len, struct fvm_err *err);
/** "<instance>: refused: <what>", FVM_EBADIMAGE. What every chip's check says. */
int fvm_device_refuse(const struct fvm_device *dev, struct fvm_err *err, const char *what);
/** Fill the embedded base of a new chip. */
void fvm_device_init(struct fvm_device *dev, const struct fvm_device_ops *ops, const char *instance,
                     struct fvm_board *board);

#endif
