/*
 * source_link.c - the source's connection: control messages, batches out, acks in, and noticing that nobody is there
 * any more.
 *
 * Why probes: ZeroMQ loses what is in flight when a connection breaks, and the last batch of a round has no successor
 * that would show the gap. After a silence the destination is told to settle all it has not seen as lost; then they are
 * sent anew.
 *
 * Invariant: at most FVM_STREAM_WINDOW batches are unsettled, and the bulk port's queue holds more than that, so a send
 * never blocks.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "migrate/source_internal.h"

#define RATE_BUCKET_NS 20000000ull
#define LINK_FULL_ENOUGH 0.2

static void free_buf(void *data, void *hint)
{
    (void)hint;
    free(data);
}

void source_report_progress(struct fvm_source *s, bool now, const char *text)
{
    uint64_t t = fvm_now_ns();
    if (!s->opt.hooks.progress || (!now && t - s->progress_ns < 200000000))
        return;
    struct fvm_migrate_progress *p = &s->progress;
    s->progress_ns = t;
    p->elapsed_ns = t - s->start_ns;
    p->memory_bytes = s->report.memory_bytes;
    if (s->tx_open) {
        p->remaining_bytes = fvm_memory_pending(s->memory) << FVM_PAGE_SHIFT;
        p->sent_bytes = s->tx.bytes_sent;
        p->pages_resent = s->tx.resent_pages;
        uint64_t ns = t - s->round_start_ns;
        if (ns > 1000000 && s->tx.bytes_sent > s->round_sent)
            p->rate_bytes = (uint64_t)((double)(s->tx.bytes_sent - s->round_sent) * 1e9 / (double)ns);
    }
    p->dirty_rate_bytes = (uint64_t)s->converge.dirty_rate;
    p->predicted_downtime_ns = s->converge.predicted_ns == UINT64_MAX ? 0 : s->converge.predicted_ns;
    snprintf(p->owner, sizeof(p->owner), "%s", s->record.owner);
    snprintf(p->text, sizeof(p->text), "%s", text ? text : "");
    s->opt.hooks.progress(s->opt.hooks.ctx, p);
}

void source_phase(struct fvm_source *s, enum fvm_migrate_phase phase)
{
    uint64_t now = fvm_now_ns(), spent = now - s->phase_ns;
    switch (s->progress.phase) {
    case FVM_MIGRATE_PREPARE:
        s->report.prepare_ns += spent;
        break;
    case FVM_MIGRATE_PRECOPY:
        s->report.precopy_ns += spent;
        break;
    case FVM_MIGRATE_FINAL:
        s->report.final_ns += spent;
        break;
    default:
        s->report.handover_ns += spent;
        break;
    }
    s->phase_ns = now;
    s->progress.phase = phase;
    source_report_progress(s, true, NULL);
}

void source_throttle(struct fvm_source *s, uint64_t bytes_per_s)
{
    const struct fvm_machine *vm = source_vm(s);
    if (bytes_per_s == s->progress.write_limit_bytes && !bytes_per_s)
        return;
    if (bytes_per_s != s->progress.write_limit_bytes)
        fvm_log(INFO, "migrate.throttle", "bytes_per_s=%llu", (unsigned long long)bytes_per_s);
    s->progress.write_limit_bytes = bytes_per_s;
    s->report.throttled_ns = vm->ops->throttle(vm->ctx, bytes_per_s >> FVM_PAGE_SHIFT);
    if (bytes_per_s)
        s->report.write_limit_bytes = bytes_per_s; /* they only fall */
}

/* ---- connecting ---- */

int source_connect(struct fvm_source *s, struct fvm_err *err)
{
    struct fvm_port_options opt = {.linger_ms = 500, .heartbeat_ms = 1000, .frame_bytes_max = FVM_WIRE_BYTES_MAX};
    int rc = fvm_port_connect(s->opt.ctx, s->opt.to_addr, s->opt.to_key, &s->opt.keys, &opt, &s->control, err);
    if (!rc)
        rc = fvm_port_wait_up(s->control, SOURCE_CONNECT_MS, err);
    s->heard_ns = fvm_now_ns();
    return rc;
}

/* The destination says on which port it takes pages; the host is the one we reached it at. */
static int bulk_addr(const char *to, const char *bulk, char *buf, size_t size)
{
    const char *to_port = strrchr(to, ':'), *port = strrchr(bulk, ':');
    if (strncmp(bulk, "tcp://", 6) != 0 || strncmp(to, "tcp://", 6) != 0 || !to_port || !port || strlen(port) > 6 ||
        strlen(port) < 2 || strspn(port + 1, "0123456789") != strlen(port + 1))
        return FVM_EPROTO;
    int n = snprintf(buf, size, "%.*s%s", (int)(to_port - to), to, port);
    return n > 0 && (size_t)n < size ? 0 : FVM_EPROTO;
}

int source_connect_bulk(struct fvm_source *s, const char *bulk_address, struct fvm_err *err)
{
    char addr[300];
    if (bulk_addr(s->opt.to_addr, bulk_address, addr, sizeof(addr)) != 0)
        return fvm_err_set(err, FVM_EPROTO, 0, "migrate", "the destination gave no usable address for pages");
    struct fvm_port_options opt = {.hwm = 2 * FVM_STREAM_WINDOW, .heartbeat_ms = 1000};
    int rc = fvm_port_connect(s->opt.ctx, addr, NULL, NULL, &opt, &s->bulk, err);
    if (!rc)
        rc = fvm_port_wait_up(s->bulk, SOURCE_CONNECT_MS, err);
    return rc;
}

/* ---- control messages ---- */

static int send_probe(struct fvm_source *s, uint64_t last_seq, uint64_t handled)
{
    Fvm__Probe probe = FVM__PROBE__INIT;
    Fvm__MigrateMessage m = FVM__MIGRATE_MESSAGE__INIT;
    probe.last_seq = last_seq;
    probe.handled_seq = handled;
    m.what_case = FVM__MIGRATE_MESSAGE__WHAT_PROBE;
    m.probe = &probe;
    return fvm_wire_send(s->control, NULL, &m);
}

static uint64_t probe_wait(const struct fvm_source *s)
{
    return (s->paused ? SOURCE_PROBE_PAUSED_MS : SOURCE_PROBE_MS) * 1000000ull;
}

static void on_ack(struct fvm_source *s, const Fvm__Ack *ack)
{
    if (!s->tx_open)
        return;
    fvm_gpa gpa = 0;
    uint64_t acked = s->tx.acked_seq;
    uint64_t again = fvm_stream_tx_ack(&s->tx, ack->last_seq, ack->lost, ack->n_lost, &gpa);
    s->report.corrupt_batches = ack->corrupt;
    if (s->tx.acked_seq != acked) {
        s->ack_ns = fvm_now_ns();
        s->probe_wait_ns = probe_wait(s);
    }
    if (again)
        fvm_log(WARN, "migrate.resend", "gpa=0x%llx pages=%llu corrupt_batches=%llu", (unsigned long long)gpa,
                (unsigned long long)again, (unsigned long long)ack->corrupt);
    if (ack->n_lost)
        send_probe(s, 0, s->tx.acked_seq);
}

static void on_hold_query(struct fvm_source *s, const Fvm__HoldQuery *q)
{
    Fvm__HoldReply reply = FVM__HOLD_REPLY__INIT;
    Fvm__MigrateMessage m = FVM__MIGRATE_MESSAGE__INIT;
    reply.holds = s->paused && q->epoch == s->ticket.epoch + 1;
    m.what_case = FVM__MIGRATE_MESSAGE__WHAT_HOLD_REPLY;
    m.hold_reply = &reply;
    fvm_wire_send(s->control, NULL, &m);
}

static void on_running(struct fvm_source *s, const Fvm__Running *r)
{
    struct fvm_migrate_pieces *p = &s->report.pieces;
    s->running_ns = s->running_ns ? s->running_ns : fvm_now_ns();
    p->dest_proof_ns = r->proof_ns;
    p->dest_take_ns = r->take_ns;
    p->dest_storage_ns = r->storage_ns;
    p->dest_run_ns = r->run_ns;
    p->dest_start_ns = r->start_ns;
}

static int on_message(struct fvm_source *s, Fvm__MigrateMessage **m_p, struct fvm_err *err)
{
    Fvm__MigrateMessage *m = *m_p;
    switch (m->what_case) {
    case FVM__MIGRATE_MESSAGE__WHAT_ACK:
        on_ack(s, m->ack);
        return 0;
    case FVM__MIGRATE_MESSAGE__WHAT_HOLD_QUERY:
        on_hold_query(s, m->hold_query);
        return 0;
    case FVM__MIGRATE_MESSAGE__WHAT_RUNNING:
        on_running(s, m->running);
        return 0;
    case FVM__MIGRATE_MESSAGE__WHAT_ALIVE:
        return 0;
    case FVM__MIGRATE_MESSAGE__WHAT_STOP:
        return fvm_wire_error(err, "the destination gave up", m->stop->code, m->stop->text);
    case FVM__MIGRATE_MESSAGE__WHAT_PREPARE_REPLY:
    case FVM__MIGRATE_MESSAGE__WHAT_START_REPLY:
    case FVM__MIGRATE_MESSAGE__WHAT_DIGEST_REPLY:
    case FVM__MIGRATE_MESSAGE__WHAT_HASH_REPLY:
        if (s->reply)
            fvm__migrate_message__free_unpacked(s->reply, NULL);
        s->reply = m;
        *m_p = NULL;
        return 0;
    default:
        return fvm_err_set(err, FVM_EPROTO, 0, "migrate", "the destination sent a message that only a source sends");
    }
}

static int receive(struct fvm_source *s, struct fvm_err *err)
{
    struct fvm_port_msg *msg;
    int rc = 0;
    while (!rc && fvm_port_recv(s->control, &msg, 0) == 0) {
        Fvm__MigrateMessage *m = NULL;
        if (s->session && s->session != fvm_port_msg_session(msg)) {
            rc = fvm_err_set(err, FVM_ECLOSED, 0, "migrate", "the destination was restarted");
        } else {
            s->session = fvm_port_msg_session(msg);
            s->heard_ns = fvm_now_ns();
            rc = fvm_wire_parse(fvm_port_msg_data(msg, 0), fvm_port_msg_len(msg, 0), &m, err);
            if (!rc)
                rc = on_message(s, &m, err);
            if (m)
                fvm__migrate_message__free_unpacked(m, NULL);
        }
        fvm_port_msg_destroy(&msg);
    }
    return rc;
}

static int check_peer(struct fvm_source *s, struct fvm_err *err)
{
    uint64_t now = fvm_now_ns();
    bool down = fvm_port_link(s->control) != FVM_PORT_UP || (s->bulk && fvm_port_link(s->bulk) != FVM_PORT_UP);
    s->down_ns = !down ? 0 : s->down_ns ? s->down_ns : now;
    uint64_t patience = s->paused ? SOURCE_DOWN_PAUSED_MS : SOURCE_DOWN_MS;
    if (s->down_ns && now - s->down_ns > patience * 1000000)
        return fvm_err_set(err, FVM_ECLOSED, 0, "migrate", "the connection to %s is broken", s->opt.to_addr);
    if (now > s->heard_ns &&
        now - s->heard_ns > SOURCE_SILENT_MS * 1000000ull) /* while it prepares, heard_ns lies ahead */
        return fvm_err_set(err, FVM_ETIMEOUT, 0, "migrate", "the destination has been silent for %d s",
                           SOURCE_SILENT_MS / 1000);
    if (s->tx_open && s->tx.count) {
        if (now - s->ack_ns > SOURCE_STALL_MS * 1000000ull)
            return fvm_err_set(err, FVM_ETIMEOUT, 0, "migrate", "no page was acknowledged for %d s",
                               SOURCE_STALL_MS / 1000);
        if (now - FVM_MAX(s->ack_ns, s->probe_ns) > s->probe_wait_ns) {
            s->probe_ns = now;
            s->probe_wait_ns = FVM_MIN(s->probe_wait_ns * 2, 8000000000ull);
            send_probe(s, s->tx.next_seq - 1, s->tx.acked_seq);
        }
    }
    return 0;
}

int source_pump(struct fvm_source *s, int timeout_ms, struct fvm_err *err)
{
    fvm_port_poll(&s->control, 1, s->committed ? -1 : s->wake_fd, timeout_ms);
    int rc = receive(s, err);
    if (!rc && !s->committed && __atomic_load_n(&s->cancel, __ATOMIC_ACQUIRE))
        rc = fvm_err_set(err, FVM_ECANCELLED, 0, "migrate", "cancelled");
    if (!rc)
        rc = check_peer(s, err);
    source_report_progress(s, false, NULL);
    return rc;
}

int source_await(struct fvm_source *s, Fvm__MigrateMessage__WhatCase kind, uint64_t timeout_ms, struct fvm_err *err)
{
    uint64_t end = fvm_now_ns() + timeout_ms * 1000000;
    while (!s->reply || s->reply->what_case != kind) {
        int rc = source_pump(s, 50, err);
        if (rc)
            return rc;
        if (fvm_now_ns() >= end)
            return fvm_err_set(err, FVM_ETIMEOUT, 0, "migrate", "the destination does not answer (waited %llu s)",
                               (unsigned long long)(timeout_ms / 1000));
    }
    return 0;
}

/* ---- pages ---- */

static int send_batch(struct fvm_source *s, struct fvm_sealed *sealed)
{
    const struct fvm_migrate_faults *f = &s->opt.faults;
    s->batches++;
    if (f->corrupt_batch == s->batches)
        sealed->payload[sealed->payload_len / 2] ^= 0x10;
    if (f->drop_batch == s->batches) {
        free(sealed->header);
        free(sealed->payload);
        return 0;
    }
    struct fvm_port_buf bufs[2] = {{.data = sealed->header, .len = sealed->header_len, .free_fn = free_buf},
                                   {.data = sealed->payload, .len = sealed->payload_len, .free_fn = free_buf}};
    if (s->tx.count == 1)
        s->ack_ns = fvm_now_ns(); /* the first in flight: the wait begins here */
    int rc = fvm_port_send(s->bulk, NULL, bufs, 2, 0);
    return rc == FVM_EBUSY || rc == FVM_ECLOSED ? 0 : rc; /* as lost as on the wire: probes find it */
}

/* A bucket of RATE_BUCKET_NS: what was not used before that is lost, so a pause makes no burst. */
static bool over_rate(struct fvm_source *s)
{
    if (!s->opt.rate_limit_bytes || s->paused)
        return false;
    uint64_t now = fvm_now_ns(), spent = s->tx.bytes_sent - s->rate_bytes;
    s->rate_ns = FVM_MAX(s->rate_ns, now - FVM_MIN(now, RATE_BUCKET_NS));
    s->rate_ns += (uint64_t)((double)spent * 1e9 / (double)s->opt.rate_limit_bytes);
    s->rate_bytes = s->tx.bytes_sent;
    return s->rate_ns > now;
}

/* The deadline comes in the middle of a round: no reason to wait for its end. */
static bool too_late(const struct fvm_source *s)
{
    return !s->paused && fvm_now_ns() - s->start_ns > s->opt.deadline_ns;
}

static int give_up_late(struct fvm_source *s, struct fvm_err *err)
{
    if (s->opt.on_miss == FVM_ON_MISS_PAUSE)
        return 0; /* what is left goes while the guest stands still */
    return fvm_err_set(err, FVM_ETIMEOUT, 0, "migrate",
                       "not done by the deadline of %llu s: %llu MiB are left after %u rounds; allow more time or "
                       "bandwidth, or use on-miss pause",
                       (unsigned long long)(s->opt.deadline_ns / 1000000000),
                       (unsigned long long)(fvm_memory_pending(s->memory) << FVM_PAGE_SHIFT >> 20), s->report.rounds);
}

/* Compressing pays while batches wait for the link; when there is always room, the processor is what is short. */
static bool compress_now(const struct fvm_source *s)
{
    return s->opt.compress > 0 || (s->compress && s->link_full > LINK_FULL_ENOUGH);
}

int source_send_pages(struct fvm_source *s, uint32_t epoch, bool settle, struct fvm_err *err)
{
    fvm_pfn cursor = 0;
    bool waited = false;
    for (bool more = true; more || (settle && s->tx.count);) {
        int rc = 0;
        if (too_late(s))
            return give_up_late(s, err);
        bool may = more && fvm_stream_tx_room(&s->tx) && !over_rate(s);
        if (may) {
            struct fvm_sealed sealed;
            rc = fvm_stream_tx_next(&s->tx, &cursor, epoch, compress_now(s), &sealed);
            s->link_full += ((waited ? 1.0 : 0.0) - s->link_full) / 16;
            waited = false;
            more = rc != FVM_ENOENT;
            rc = rc == 0 ? send_batch(s, &sealed) : rc == FVM_ENOENT ? 0 : rc;
            if (rc)
                return fvm_err_set(err, rc, 0, "migrate", "cannot send pages: %s", fvm_err_text(rc));
        }
        waited = waited || !may;
        if (more || settle)
            rc = source_pump(s, may ? 0 : more && fvm_stream_tx_room(&s->tx) ? 1 : 20, err);
        if (rc)
            return rc;
    }
    return 0;
}
