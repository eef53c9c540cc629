/*
 * pack.c - protobuf packing shared by the chips, so that each chip's file speaks only of its own fields.
 * Invariant: nothing here keeps a pointer into a caller's buffer.
 */
#include "vmm/devices/pack.h"

#include <stdio.h>
#include <stdlib.h>

int fvm_device_pack(const ProtobufCMessage *message, uint8_t **ret_buf, size_t *ret_len)
{
    size_t len = protobuf_c_message_get_packed_size(message);
    uint8_t *buf = malloc(len + 1); /* an all-default message packs to nothing */

    if (!buf)
        return FVM_ENOMEM;
    protobuf_c_message_pack(message, buf);
    *ret_buf = buf;
    *ret_len = len;
    return 0;
}

ProtobufCMessage *fvm_device_unpack(const ProtobufCMessageDescriptor *type, const struct fvm_device *dev,
                                    const uint8_t *buf, size_t len, struct fvm_err *err)
{
    ProtobufCMessage *message = protobuf_c_message_unpack(type, NULL, len, buf);

    if (!message)
        fvm_device_refuse(dev, err, "its state is not a well-formed message");
    return message;
}

int fvm_device_refuse(const struct fvm_device *dev, struct fvm_err *err, const char *what)
{
    return fvm_err_set(err, FVM_EBADIMAGE, 0, "devices", "device %s: saved state refused: %s", dev->instance, what);
}

void fvm_device_init(struct fvm_device *dev, const struct fvm_device_ops *ops, const char *instance,
                     struct fvm_board *board)
{
    dev->ops = ops;
    dev->board = board;
    snprintf(dev->instance, sizeof(dev->instance), "%s", instance);
}
