/*
 * dest.c - the destination of a migration: listens, makes the VM, places pages, until the image is whole.
 *
 * Everything that comes is hostile until checked: messages by fvm_wire_parse and the checks here, batches by the codec,
 * state by the VM's own check. A peer that is not this attempt's source is told "busy"; a message out of order ends the
 * attempt, not the process.
 *
 * Invariant: nothing runs and no disk is open for writing before dest_take.c has read that the record says so.
 */
#include <errno.h>
#include <sodium.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "base/log.h"
#include "migrate/dest_internal.h"

int dest_send(struct fvm_dest *d, Fvm__MigrateMessage *m) { return fvm_wire_send(d->control, &d->peer, m); }

static void report_progress(struct fvm_dest *d, const char *text)
{
    struct fvm_migrate_progress *p = &d->progress;
    d->progress_ns = fvm_now_ns();
    if (!d->opt.hooks.progress)
        return;
    p->elapsed_ns = d->start_ns ? d->progress_ns - d->start_ns : 0;
    snprintf(p->owner, sizeof(p->owner), "%s", d->record.owner);
    snprintf(p->text, sizeof(p->text), "%.199s", text ? text : "");
    d->opt.hooks.progress(d->opt.hooks.ctx, p);
}

void dest_phase(struct fvm_dest *d, enum fvm_migrate_phase phase)
{
    d->progress.phase = phase;
    report_progress(d, NULL);
}

void dest_forget_state(struct fvm_dest *d)
{
    if (d->final_state)
        fvm__final_state__free_unpacked(d->final_state, NULL);
    d->final_state = NULL;
    d->proposal.waits = false;
}

void dest_drop(struct fvm_dest *d, const struct fvm_err *why)
{
    fvm_log(WARN, "migrate.dest", "attempt=over text=\"%s\"", why->text);
    if (d->peer.len)
        fvm_wire_stop(d->control, &d->peer, why);
    d->state = DEST_IDLE;
    d->peer = (struct fvm_port_peer){0};
    d->idle_ns = fvm_now_ns();
    d->report.err = *why;
    dest_forget_state(d);
    d->progress.phase = FVM_MIGRATE_PREPARE;
    report_progress(d, why->text);
}

static void drop_text(struct fvm_dest *d, int code, const char *text)
{
    struct fvm_err err;
    fvm_err_set(&err, code, 0, "migrate", "%s", text);
    dest_drop(d, &err);
}

static void unmake(struct fvm_dest *d)
{
    if (!d->made)
        return;
    fvm_warm_stop(&d->warm);
    fvm_proof_fini(&d->proof);
    dest_vm(d)->ops->discard(dest_vm(d)->ctx);
    d->made = false;
    d->ram = NULL;
}

/* ---- Prepare: can we take this guest? ---- */

static int check_prepare(const struct fvm_dest *d, const Fvm__Prepare *p, struct fvm_err *err)
{
    if (!p->config || !*p->from || strlen(p->from) > FVM_HO_NAME_MAX || p->config->memory_bytes == 0)
        return fvm_err_set(err, FVM_EPROTO, 0, "migrate", "the request lacks its parts");
    if (strcmp(p->to, d->opt.self) != 0)
        return fvm_err_set(err, FVM_EINVAL, 0, "migrate", "the guest is meant for %.63s, this is %s", p->to,
                           d->opt.self);
    if (p->page_bytes != FVM_PAGE_SIZE)
        return fvm_err_set(err, FVM_EVERSION, 0, "migrate", "pages of %u bytes are not known here", p->page_bytes);
    if (!(p->ciphers & fvm_aead_ciphers()))
        return fvm_err_set(err, FVM_EUNSUPPORTED, 0, "migrate", "no cipher in common");
    return 0;
}

static int make(struct fvm_dest *d, const Fvm__Prepare *p, struct fvm_err *err)
{
    const struct fvm_machine *vm = dest_vm(d);
    unmake(d);
    int rc = vm->ops->create(vm->ctx, p->config, err);
    if (rc)
        return rc;
    d->made = true;
    d->ram = vm->ops->ram(vm->ctx);
    rc = fvm_proof_init(&d->proof, d->ram);
    if (rc) {
        unmake(d);
        return fvm_err_set(err, rc, 0, "migrate", "not enough memory for the migration's books");
    }
    randombytes_buf(d->image_id, sizeof(d->image_id));
    if (d->ram->low_bytes + d->ram->high_bytes != p->config->memory_bytes) {
        unmake(d);
        return fvm_err_set(err, FVM_EINVAL, 0, "migrate", "memory of the guest has a size that cannot be made here");
    }
    return 0;
}

static void on_prepare(struct fvm_dest *d, const Fvm__Prepare *p)
{
    struct fvm_err err = {0};
    Fvm__PrepareReply reply = FVM__PREPARE_REPLY__INIT;
    Fvm__MigrateMessage m = FVM__MIGRATE_MESSAGE__INIT;
    bool kept = d->made && p->known_image.len == FVM_IMAGE_ID_BYTES &&
                memcmp(p->known_image.data, d->image_id, FVM_IMAGE_ID_BYTES) == 0;
    int rc = check_prepare(d, p, &err);
    d->start_ns = d->start_ns ? d->start_ns : fvm_now_ns();
    if (!rc && !kept)
        rc = make(d, p, &err);
    if (!rc && !kept && !p->dry_run && fvm_warm_start(d->ram, p->touched.data, p->touched.len, &d->warm) != 0)
        fvm_log(DEBUG, "migrate.warm", "action=none"); /* slower, not worse */
    unsigned common = p->ciphers & fvm_aead_ciphers();
    d->cipher = common & FVM_CIPHER_AES256GCM ? FVM_CIPHER_AES256GCM : FVM_CIPHER_CHACHA20;
    reply.code = rc;
    if (rc) {
        reply.text = err.text;
    } else {
        reply.image_id = (ProtobufCBinaryData){.len = FVM_IMAGE_ID_BYTES, .data = d->image_id};
        reply.image_kept = kept;
        reply.cipher = d->cipher;
        reply.bulk_address = (char *)(uintptr_t)fvm_port_addr(d->bulk);
        snprintf(d->ticket.from, sizeof(d->ticket.from), "%s", p->from);
        snprintf(d->ticket.to, sizeof(d->ticket.to), "%s", d->opt.self);
        d->progress.memory_bytes = d->report.memory_bytes = p->config->memory_bytes;
    }
    m.what_case = FVM__MIGRATE_MESSAGE__WHAT_PREPARE_REPLY;
    m.prepare_reply = &reply;
    dest_send(d, &m);
    d->state = rc || p->dry_run ? DEST_IDLE : DEST_PREPARED;
    d->idle_ns = fvm_now_ns();
    if (rc)
        fvm_log(WARN, "migrate.dest", "refused=\"%s\"", err.text);
}

/* ---- Start ---- */

static int check_start(struct fvm_dest *d, const Fvm__Start *start, struct fvm_err *err)
{
    if (start->mig_id.len != FVM_HO_ID_BYTES || start->bulk_key.len != FVM_CODEC_KEY_BYTES || start->epoch == 0)
        return fvm_err_set(err, FVM_EPROTO, 0, "migrate", "the start lacks its parts");
    memcpy(d->ticket.mig_id, start->mig_id.data, FVM_HO_ID_BYTES);
    d->ticket.epoch = start->epoch;
    int rc = fvm_record_read(&d->opt.record, fvm_now_ns() + 5000000000ull, &d->record, err);
    if (rc)
        return rc;
    if (fvm_ho_dest_decide(&d->record, &d->ticket) != FVM_HO_DEST_TAKE || strcmp(d->record.to, d->opt.self) != 0)
        return fvm_err_set(err, FVM_ESTATE, 0, "migrate",
                           "the record (%s of %s, epoch %llu) is not that of this migration; "
                           "do both sides use the same record?",
                           fvm_ho_phase_text(d->record.phase), d->record.owner, (unsigned long long)d->record.epoch);
    rc = fvm_codec_key(d->codec, d->cipher, start->bulk_key.data, &d->ticket);
    return rc ? fvm_err_set(err, rc, 0, "migrate", "cannot use the chosen cipher") : 0;
}

static void on_start(struct fvm_dest *d, const Fvm__Start *start)
{
    struct fvm_err err = {0};
    Fvm__StartReply reply = FVM__START_REPLY__INIT;
    Fvm__MigrateMessage m = FVM__MIGRATE_MESSAGE__INIT;
    reply.code = check_start(d, start, &err);
    if (reply.code)
        reply.text = err.text;
    m.what_case = FVM__MIGRATE_MESSAGE__WHAT_START_REPLY;
    m.start_reply = &reply;
    if (!reply.code) {
        fvm_stream_rx_init(&d->rx, d->ram, d->codec, &d->proof);
        d->acked_seq = d->acked_corrupt = 0;
        dest_forget_state(d);
        d->state = DEST_LOADING;
        dest_phase(d, FVM_MIGRATE_PRECOPY);
    }
    dest_send(d, &m);
}

/* ---- pages ---- */

static void send_ack(struct fvm_dest *d)
{
    Fvm__Ack ack = FVM__ACK__INIT;
    Fvm__MigrateMessage m = FVM__MIGRATE_MESSAGE__INIT;
    ack.last_seq = d->rx.last_seq;
    ack.n_lost = d->rx.lost_count;
    ack.lost = d->rx.lost;
    ack.corrupt = d->rx.corrupt;
    m.what_case = FVM__MIGRATE_MESSAGE__WHAT_ACK;
    m.ack = &ack;
    if (dest_send(d, &m) == 0) {
        d->acked_seq = d->rx.last_seq;
        d->acked_corrupt = d->rx.corrupt;
        d->alive_ns = fvm_now_ns();
    }
}

static void turn_bulk(struct fvm_dest *d)
{
    struct fvm_port_msg *msg;
    for (int i = 0; i < DEST_ACK_BATCHES && fvm_port_recv(d->bulk, &msg, 0) == 0; i++) {
        int rc = 0;
        if (d->state == DEST_LOADING && fvm_port_msg_count(msg) == 2) {
            uint64_t before = d->rx.last_seq;
            rc = fvm_stream_rx_batch(&d->rx, fvm_port_msg_data(msg, 0), fvm_port_msg_len(msg, 0),
                                     fvm_port_msg_data(msg, 1), fvm_port_msg_len(msg, 1));
            if (d->rx.last_seq != before)
                d->heard_ns = fvm_now_ns();
        }
        fvm_port_msg_destroy(&msg);
        if (rc == FVM_EPROTO) {
            drop_text(d, FVM_EPROTO, "the source's pages make no sense, or too many were lost");
            return;
        }
    }
    if (d->state == DEST_LOADING && d->rx.last_seq != d->acked_seq)
        send_ack(d);
    dest_look_at_digest(d);
    if (d->state == DEST_LOADING)
        fvm_proof_refresh(&d->proof);
}

/* ---- messages ---- */

static bool in_state(struct fvm_dest *d, bool ok)
{
    if (!ok)
        drop_text(d, FVM_EPROTO, "the source sent a message out of order");
    return ok;
}

static void on_probe(struct fvm_dest *d, const Fvm__Probe *probe)
{
    fvm_stream_rx_forget(&d->rx, probe->handled_seq);
    if (probe->last_seq && fvm_stream_rx_settle(&d->rx, probe->last_seq) != 0)
        drop_text(d, FVM_EPROTO, "too many batches were lost");
    else if (probe->last_seq)
        send_ack(d);
    dest_look_at_digest(d);
}

static void on_message(struct fvm_dest *d, Fvm__MigrateMessage *m)
{
    bool loading = d->state == DEST_LOADING;
    if (d->state == DEST_OVER && m->what_case != FVM__MIGRATE_MESSAGE__WHAT_HOLD_REPLY)
        return; /* the record decides now, not the source */
    switch (m->what_case) {
    case FVM__MIGRATE_MESSAGE__WHAT_PREPARE:
        if (in_state(d, !loading))
            on_prepare(d, m->prepare);
        break;
    case FVM__MIGRATE_MESSAGE__WHAT_START:
        if (in_state(d, d->state == DEST_PREPARED))
            on_start(d, m->start);
        break;
    case FVM__MIGRATE_MESSAGE__WHAT_PROBE:
        if (loading)
            on_probe(d, m->probe);
        break;
    case FVM__MIGRATE_MESSAGE__WHAT_FINAL_STATE:
        if (in_state(d, loading)) {
            dest_on_state(d, m->final_state);
            m->final_state = NULL;
            m->what_case = FVM__MIGRATE_MESSAGE__WHAT__NOT_SET;
        }
        break;
    case FVM__MIGRATE_MESSAGE__WHAT_DIGEST:
        if (in_state(d, loading))
            dest_on_digest(d, m->digest);
        break;
    case FVM__MIGRATE_MESSAGE__WHAT_HASH_QUERY:
        if (in_state(d, loading))
            dest_on_hash_query(d, m->hash_query);
        break;
    case FVM__MIGRATE_MESSAGE__WHAT_HOLD_REPLY:
        d->holds = m->hold_reply->holds;
        break;
    case FVM__MIGRATE_MESSAGE__WHAT_STOP:
        if (d->state != DEST_IDLE) {
            struct fvm_err err;
            fvm_wire_error(&err, "the source gave up", m->stop->code, m->stop->text);
            dest_drop(d, &err);
        }
        break;
    default:
        break;
    }
}

static bool same_peer(const struct fvm_dest *d, struct fvm_port_msg *msg)
{
    const struct fvm_port_peer *p = fvm_port_msg_peer(msg);
    return p->len == d->peer.len && memcmp(p->id, d->peer.id, p->len) == 0 &&
           fvm_port_msg_session(msg) == d->peer_session;
}

static void turn_control(struct fvm_dest *d)
{
    struct fvm_port_msg *msg;
    while (fvm_port_recv(d->control, &msg, 0) == 0) {
        struct fvm_err err = {0};
        Fvm__MigrateMessage *m = NULL;
        const struct fvm_port_peer from = *fvm_port_msg_peer(msg);
        int rc = fvm_wire_parse(fvm_port_msg_data(msg, 0), fvm_port_msg_len(msg, 0), &m, &err);
        if (rc == 0 && d->state != DEST_IDLE && !same_peer(d, msg))
            rc = fvm_err_set(&err, FVM_EBUSY, 0, "migrate", "busy with a migration from %s", d->ticket.from);
        if (rc) {
            if (fvm_log_nth(++d->refused))
                fvm_log(WARN, "migrate.dest", "key=%s text=\"%s\" count=%llu", from.key, err.text,
                        (unsigned long long)d->refused);
            fvm_wire_stop(d->control, &from, &err);
        } else {
            if (d->state == DEST_IDLE) {
                d->peer = from;
                d->peer_session = fvm_port_msg_session(msg);
            }
            d->heard_ns = fvm_now_ns();
            on_message(d, m);
        }
        if (m)
            fvm__migrate_message__free_unpacked(m, NULL);
        fvm_port_msg_destroy(&msg);
        if (d->state == DEST_OVER)
            return;
    }
}

bool dest_turn(struct fvm_dest *d, int timeout_ms)
{
    struct fvm_port *ports[2] = {d->control, d->bulk};
    unsigned ready = fvm_port_poll(ports, 2, d->state == DEST_OVER ? -1 : d->wake_fd, timeout_ms);
    if (ready & 2)
        turn_bulk(d);
    if (ready & 1)
        turn_control(d);
    return ready != 0;
}

/* ---- the thread ---- */

/* The source is silent. Is it still its migration? */
static void look_at_record(struct fvm_dest *d, uint64_t now)
{
    struct fvm_err err;
    d->looked_ns = now;
    if (now - d->heard_ns > DEST_SILENT_MS * 1000000ull)
        drop_text(d, FVM_ETIMEOUT, "the source has been silent for too long");
    else if (d->state == DEST_LOADING && fvm_record_read(&d->opt.record, now, &d->record, &err) == 0 &&
             fvm_ho_dest_decide(&d->record, &d->ticket) == FVM_HO_DEST_DISCARD)
        drop_text(d, FVM_ESTATE, "the source ended the migration");
}

static void housekeeping(struct fvm_dest *d)
{
    uint64_t now = fvm_now_ns();
    if (d->state == DEST_LOADING && now - d->alive_ns > DEST_ALIVE_MS * 1000000ull)
        send_ack(d);
    if (d->state == DEST_LOADING && now - d->progress_ns > 1000000000ull) {
        d->progress.remaining_bytes = 0;
        d->progress.sent_bytes = (d->rx.data_pages + d->rx.zero_pages) << FVM_PAGE_SHIFT;
        report_progress(d, NULL);
    }
    if ((d->state == DEST_LOADING || d->state == DEST_PREPARED) &&
        now - FVM_MAX(d->heard_ns, d->looked_ns) > DEST_QUIET_MS * 1000000ull)
        look_at_record(d, now);
}

static void *dest_main(void *arg)
{
    struct fvm_dest *d = arg;
    d->report.outcome = FVM_MIGRATE_STAYED;
    d->idle_ns = fvm_now_ns();
    while (d->state != DEST_OVER) {
        dest_turn(d, 100);
        housekeeping(d);
        if (d->state == DEST_OVER)
            break;
        bool cancel = __atomic_load_n(&d->cancel, __ATOMIC_ACQUIRE);
        if (cancel || (d->state == DEST_IDLE && fvm_now_ns() - d->idle_ns > d->opt.wait_ns)) {
            struct fvm_err err;
            fvm_err_set(&err, cancel ? FVM_ECANCELLED : FVM_ETIMEOUT, 0, "migrate",
                        cancel ? "cancelled" : "no guest came");
            if (d->state != DEST_IDLE)
                dest_drop(d, &err);
            else if (cancel || !d->report.err.code)
                d->report.err = err;
            break;
        }
    }
    dest_forget_state(d);
    fvm_warm_stop(&d->warm);
    if (d->report.outcome != FVM_MIGRATE_MOVED)
        unmake(d);
    else
        fvm_proof_fini(&d->proof);
    d->report.total_ns = d->start_ns ? fvm_now_ns() - d->start_ns : 0;
    fvm_port_close(&d->bulk);
    fvm_port_close(&d->control);
    fvm_codec_destroy(&d->codec);
    dest_phase(d, d->report.outcome == FVM_MIGRATE_MOVED ? FVM_MIGRATE_DONE : FVM_MIGRATE_FAILED);
    d->opt.hooks.done(d->opt.hooks.ctx, &d->report);
    return NULL;
}

static void dest_free(struct fvm_dest *d)
{
    fvm_port_close(&d->bulk);
    fvm_port_close(&d->control);
    fvm_codec_destroy(&d->codec);
    free((void *)(uintptr_t)d->opt.self);
    free((void *)(uintptr_t)d->opt.listen_addr);
    sodium_memzero(&d->opt.keys, sizeof(d->opt.keys));
    if (d->wake_fd >= 0)
        close(d->wake_fd);
    free(d);
}

/* Pages come on a port of their own beside the control port, any free number. */
static int listen_both(struct fvm_dest *d, struct fvm_err *err)
{
    struct fvm_port_options control = {.linger_ms = 2000, .heartbeat_ms = 1000, .frame_bytes_max = FVM_WIRE_BYTES_MAX};
    struct fvm_port_options bulk = {
        .hwm = 2 * FVM_STREAM_WINDOW, .heartbeat_ms = 1000, .frame_bytes_max = FVM_CODEC_PAYLOAD_MAX};
    int rc = fvm_port_listen(d->opt.ctx, d->opt.listen_addr, &d->opt.keys, d->opt.allow, d->opt.allow_ctx, &control,
                             &d->control, err);
    if (rc)
        return rc;
    char addr[300];
    snprintf(d->addr, sizeof(d->addr), "%s", fvm_port_addr(d->control));
    const char *colon = strrchr(fvm_port_addr(d->control), ':');
    snprintf(addr, sizeof(addr), "%.*s:*", (int)(colon - fvm_port_addr(d->control)), fvm_port_addr(d->control));
    return fvm_port_listen(d->opt.ctx, addr, NULL, NULL, NULL, &bulk, &d->bulk, err);
}

int fvm_dest_start(const struct fvm_dest_options *opt, struct fvm_dest **ret_dest, struct fvm_err *err)
{
    if (!opt->listen_addr || strncmp(opt->listen_addr, "tcp://", 6) != 0)
        return fvm_err_set(err, FVM_EINVAL, 0, "migrate", "the address to listen on must be tcp://host:port");
    if (!opt->self || !*opt->self || strlen(opt->self) > FVM_HO_NAME_MAX)
        return fvm_err_set(err, FVM_EINVAL, 0, "migrate", "the destination needs a name of 1 to %d characters",
                           FVM_HO_NAME_MAX);
    struct fvm_dest *d = calloc(1, sizeof(*d));
    if (!d)
        return fvm_err_set(err, FVM_ENOMEM, ENOMEM, "migrate", "out of memory");
    d->opt = *opt;
    d->opt.wait_ns = opt->wait_ns ? opt->wait_ns : 120000000000ull;
    d->opt.self = strdup(opt->self);
    d->opt.listen_addr = strdup(opt->listen_addr);
    d->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    int rc = d->opt.self && d->opt.listen_addr && d->wake_fd >= 0 ? fvm_codec_create(&d->codec) : FVM_ENOMEM;
    rc = rc ? fvm_err_set(err, rc, errno, "migrate", "out of memory or descriptors") : listen_both(d, err);
    if (!rc) {
        int e = pthread_create(&d->thread, NULL, dest_main, d);
        rc = e ? fvm_err_set(err, fvm_err_from_errno(e), e, "migrate", "cannot start a thread: %s", strerror(e)) : 0;
    }
    if (rc)
        dest_free(d);
    else
        *ret_dest = d;
    return rc;
}

const char *fvm_dest_addr(const struct fvm_dest *d) { return d->addr; }

void fvm_dest_cancel(struct fvm_dest *d)
{
    uint64_t one = 1;
    __atomic_store_n(&d->cancel, true, __ATOMIC_RELEASE);
    if (write(d->wake_fd, &one, sizeof(one)) != sizeof(one))
        fvm_log(DEBUG, "migrate.cancel", "wake=full");
}

void fvm_dest_join(struct fvm_dest **dest_p)
{
    struct fvm_dest *d = *dest_p;
    if (!d)
        return;
    *dest_p = NULL;
    pthread_join(d->thread, NULL);
    dest_free(d);
}
