/*
 * wire.c - control messages as frames. Knows the port and the protocol number, nothing of their meaning.
 *
 * Invariant: what fvm_wire_parse returns has our protocol number and a `what` that is not NULL.
 */
#include "migrate/wire.h"

#include <ctype.h>
#include <stdlib.h>
#include <string.h>

#include "migrate/migrate.h"

int fvm_wire_send(struct fvm_port *port, const struct fvm_port_peer *peer, Fvm__MigrateMessage *m)
{
    m->protocol = FVM_MIGRATE_PROTOCOL;
    m->version = (char *)(uintptr_t)FVM_VERSION;
    size_t len = fvm__migrate_message__get_packed_size(m);
    uint8_t *buf = malloc(len ? len : 1);
    if (!buf)
        return FVM_ENOMEM;
    fvm__migrate_message__pack(m, buf);
    int rc = fvm_port_send_bytes(port, peer, buf, len, 1000);
    free(buf);
    return rc;
}

static bool has_body(const Fvm__MigrateMessage *m)
{
    /* every member of the oneof is a message: a pointer */
    return m->what_case > FVM__MIGRATE_MESSAGE__WHAT__NOT_SET && m->what_case <= FVM__MIGRATE_MESSAGE__WHAT_ALIVE &&
           m->alive;
}

int fvm_wire_parse(const void *data, size_t len, Fvm__MigrateMessage **ret, struct fvm_err *err)
{
    Fvm__MigrateMessage *m = len <= FVM_WIRE_BYTES_MAX ? fvm__migrate_message__unpack(NULL, len, data) : NULL;
    if (!m)
        return fvm_err_set(err, FVM_EPROTO, 0, "migrate", "the peer sent something that is not a migration message");
    int rc = 0;
    if (m->protocol != FVM_MIGRATE_PROTOCOL)
        rc = fvm_err_set(err, FVM_EVERSION, 0, "migrate",
                         "the peer (fvm %.20s) speaks migration protocol %u, this fvm %s speaks %d: %s", m->version,
                         m->protocol, FVM_VERSION, FVM_MIGRATE_PROTOCOL,
                         m->protocol > FVM_MIGRATE_PROTOCOL ? "update this side" : "update the peer");
    else if (!has_body(m))
        rc = fvm_err_set(err, FVM_EPROTO, 0, "migrate", "the peer sent an unknown or empty message");
    if (rc)
        fvm__migrate_message__free_unpacked(m, NULL);
    else
        *ret = m;
    return rc;
}

int fvm_wire_stop(struct fvm_port *port, const struct fvm_port_peer *peer, const struct fvm_err *why)
{
    Fvm__Stop stop = FVM__STOP__INIT;
    Fvm__MigrateMessage m = FVM__MIGRATE_MESSAGE__INIT;
    stop.code = why->code;
    stop.text = (char *)(uintptr_t)why->text;
    m.what_case = FVM__MIGRATE_MESSAGE__WHAT_STOP;
    m.stop = &stop;
    return fvm_wire_send(port, peer, &m);
}

int fvm_wire_error(struct fvm_err *err, const char *who, int code, const char *text)
{
    char clean[400];
    size_t n = 0;
    for (const char *s = text ? text : ""; *s && n + 1 < sizeof(clean); s++)
        clean[n++] = isprint((unsigned char)*s) ? *s : '?';
    clean[n] = 0;
    if (code >= 0 || code <= -FVM_EPOS_END_)
        code = FVM_EPROTO;
    return fvm_err_set(err, code, 0, "migrate", "%s: %s", who, n ? clean : fvm_err_text(code));
}
