/*
 * wire.h - control messages over a port: pack, send; receive, unpack, check the protocol number.
 * Internal to migrate/.
 */
#ifndef FVM_MIGRATE_WIRE_H
#define FVM_MIGRATE_WIRE_H

#include "net/port.h"
#include "proto/migrate.pb-c.h"

enum { FVM_WIRE_BYTES_MAX = 64 << 20 };

/** Packs and queues one message; `what` is set, protocol and version are filled in. Waits at most 1 s for room. */
int fvm_wire_send(struct fvm_port *port, const struct fvm_port_peer *peer, Fvm__MigrateMessage *m);
/** FVM_EPROTO: not ours; FVM_EVERSION: another protocol, err says which side is older. */
int fvm_wire_parse(const void *data, size_t len, Fvm__MigrateMessage **ret, struct fvm_err *err);
int fvm_wire_stop(struct fvm_port *port, const struct fvm_port_peer *peer, const struct fvm_err *why);
/** An error that the peer reports: code made sane, text cut and printable. */
int fvm_wire_error(struct fvm_err *err, const char *who, int code, const char *text);

#endif
