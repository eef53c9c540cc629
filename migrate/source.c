/*
 * source.c - the source of a migration: its thread from preflight to report.
 *
 * Why a thread of its own: it hashes, compresses and seals; the VM's loop must turn meanwhile.
 *
 * Invariant: after BEGIN every way out goes through source_settle, which ends only with the record read (or the process
 * told to end while it cannot be read: then the guest is left paused).
 */
#include <errno.h>
#include <sodium.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "base/log.h"
#include "migrate/source_internal.h"
#include "migrate/warm.h"

const char *fvm_migrate_phase_text(enum fvm_migrate_phase phase)
{
    static const char *const names[] = {"prepare", "precopy", "final", "take", "run", "done", "failed"};
    return (unsigned)phase < FVM_ARRAY_SIZE(names) ? names[phase] : "?";
}

int fvm_on_miss_parse(const char *text, enum fvm_on_miss *ret, struct fvm_err *err)
{
    if (strcmp(text, "cancel") == 0)
        *ret = FVM_ON_MISS_CANCEL;
    else if (strcmp(text, "pause") == 0)
        *ret = FVM_ON_MISS_PAUSE;
    else if (strcmp(text, "postcopy") == 0)
        return fvm_err_set(err, FVM_EUNSUPPORTED, 0, "migrate",
                           "on-miss postcopy is not built yet; use cancel or pause");
    else
        return fvm_err_set(err, FVM_EINVAL, 0, "migrate", "on-miss %.40s: use cancel or pause", text);
    return 0;
}

/* ---- prepare ---- */

static int check_prepare_reply(struct fvm_source *s, const Fvm__PrepareReply *r, struct fvm_err *err)
{
    if (r->code)
        return fvm_wire_error(err, "the destination refused", r->code, r->text);
    if (r->image_id.len != FVM_IMAGE_ID_BYTES || !(r->cipher & fvm_aead_ciphers()) || (r->cipher & (r->cipher - 1)))
        return fvm_err_set(err, FVM_EPROTO, 0, "migrate", "the destination's answer makes no sense");
    if (!r->image_kept || memcmp(s->memory->image_id, r->image_id.data, FVM_IMAGE_ID_BYTES) != 0)
        fvm_memory_reset(s->memory, r->image_id.data);
    return 0;
}

static int prepare(struct fvm_source *s, struct fvm_err *err)
{
    const struct fvm_machine *vm = source_vm(s);
    int rc = source_connect(s, err);
    if (rc)
        return rc;
    Fvm__Prepare prepare = FVM__PREPARE__INIT;
    Fvm__MigrateMessage m = FVM__MIGRATE_MESSAGE__INIT;
    prepare.config = (Fvm__VmConfig *)(uintptr_t)vm->ops->config(vm->ctx);
    prepare.from = (char *)(uintptr_t)s->opt.self;
    prepare.to = (char *)(uintptr_t)s->opt.to_name;
    prepare.page_bytes = FVM_PAGE_SIZE;
    prepare.ciphers = fvm_aead_ciphers();
    prepare.dry_run = s->opt.dry_run;
    prepare.known_image = (ProtobufCBinaryData){.len = FVM_IMAGE_ID_BYTES, .data = s->memory->image_id};
    prepare.touched.data = malloc(fvm_warm_map_bytes(s->memory->ram));
    if (prepare.touched.data) {
        prepare.touched.len = fvm_warm_map_bytes(s->memory->ram);
        fvm_warm_map(s->memory->ram, prepare.touched.data);
    }
    m.what_case = FVM__MIGRATE_MESSAGE__WHAT_PREPARE;
    m.prepare = &prepare;
    rc = fvm_wire_send(s->control, NULL, &m);
    free(prepare.touched.data);
    if (rc)
        return fvm_err_set(err, rc, 0, "migrate", "cannot send to %s: %s", s->opt.to_addr, fvm_err_text(rc));
    s->heard_ns = fvm_now_ns() + (SOURCE_PREPARE_MS - SOURCE_SILENT_MS) * 1000000ull; /* making a VM takes its time */
    rc = source_await(s, FVM__MIGRATE_MESSAGE__WHAT_PREPARE_REPLY, SOURCE_PREPARE_MS, err);
    return rc ? rc : check_prepare_reply(s, s->reply->prepare_reply, err);
}

/* ---- begin ---- */

static int next_begin(void *ctx, const struct fvm_ho_record *now, struct fvm_ho_record *ret_next)
{
    struct fvm_source *s = ctx;
    return fvm_ho_begin(now, s->opt.self, s->opt.to_name, s->ticket.mig_id, ret_next);
}

/* An earlier attempt of ours that could not be ended (the store was away) is ended now. */
static int next_clean(void *ctx, const struct fvm_ho_record *now, struct fvm_ho_record *ret_next)
{
    struct fvm_source *s = ctx;
    return fvm_ho_abort(now, s->opt.self, ret_next);
}

static int begin(struct fvm_source *s, struct fvm_err *err)
{
    uint64_t deadline = fvm_now_ns() + SOURCE_RECORD_MS * 1000000ull;
    randombytes_buf(s->ticket.mig_id, sizeof(s->ticket.mig_id));
    snprintf(s->ticket.from, sizeof(s->ticket.from), "%s", s->opt.self);
    snprintf(s->ticket.to, sizeof(s->ticket.to), "%s", s->opt.to_name);
    fvm_record_swap(&s->opt.record, next_clean, s, deadline, &s->record, &(struct fvm_err){0});
    int rc = fvm_record_swap(&s->opt.record, next_begin, s, deadline, &s->record, err);
    s->begun = rc == 0; /* unclear: the guest runs on, and the next attempt puts the record in order */
    s->ticket.epoch = s->record.epoch;
    return rc;
}

static int start(struct fvm_source *s, struct fvm_err *err)
{
    uint8_t key[FVM_CODEC_KEY_BYTES];
    Fvm__Start msg = FVM__START__INIT;
    Fvm__MigrateMessage m = FVM__MIGRATE_MESSAGE__INIT;
    Fvm__PrepareReply *r = s->reply->prepare_reply;
    int rc = source_connect_bulk(s, r->bulk_address, err);
    if (rc)
        return rc;
    randombytes_buf(key, sizeof(key));
    rc = fvm_codec_key(s->codec, r->cipher, key, &s->ticket);
    if (rc)
        return fvm_err_set(err, rc, 0, "migrate", "cannot use the chosen cipher");
    msg.mig_id = (ProtobufCBinaryData){.len = FVM_HO_ID_BYTES, .data = s->ticket.mig_id};
    msg.epoch = s->ticket.epoch;
    msg.bulk_key = (ProtobufCBinaryData){.len = sizeof(key), .data = key};
    m.what_case = FVM__MIGRATE_MESSAGE__WHAT_START;
    m.start = &msg;
    rc = fvm_wire_send(s->control, NULL, &m);
    sodium_memzero(key, sizeof(key));
    if (rc)
        return fvm_err_set(err, rc, 0, "migrate", "cannot send to %s: %s", s->opt.to_addr, fvm_err_text(rc));
    rc = source_await(s, FVM__MIGRATE_MESSAGE__WHAT_START_REPLY, SOURCE_PREPARE_MS, err);
    if (!rc && s->reply->start_reply->code)
        rc = fvm_wire_error(err, "the destination refused", s->reply->start_reply->code, s->reply->start_reply->text);
    return rc;
}

/* ---- rounds ---- */

static int precopy(struct fvm_source *s, struct fvm_err *err)
{
    const struct fvm_machine *vm = source_vm(s);
    source_phase(s, FVM_MIGRATE_PRECOPY);
    for (;;) {
        if (!vm->ops->alive(vm->ctx))
            return fvm_err_set(err, FVM_EGUEST, 0, "migrate", "the guest ended by itself");
        s->progress.round = ++s->report.rounds;
        s->round_start_ns = fvm_now_ns();
        s->round_sent = s->tx.bytes_sent;
        uint64_t pages = s->tx.data_pages + s->tx.zero_pages;
        int rc = source_send_pages(s, vm->ops->dirty_epoch(vm->ctx), true, err);
        if (rc)
            return rc;
        fvm_proof_refresh(&s->memory->proof);
        uint64_t now = fvm_now_ns(), sent = s->tx.bytes_sent - s->round_sent;
        uint64_t pending = fvm_memory_pending(s->memory) << FVM_PAGE_SHIFT;
        pages = s->tx.data_pages + s->tx.zero_pages - pages;
        double ratio = pages ? (double)sent / ((double)pages * (double)FVM_PAGE_SIZE) : 1.0;
        enum fvm_converge_next next = fvm_converge_round(&s->converge, sent, pending, pending, FVM_MIN(ratio, 1.05),
                                                         now - s->round_start_ns, now - s->start_ns);
        char text[200];
        source_throttle(s, s->converge.write_limit);
        source_report_progress(s, true, fvm_converge_says(&s->converge, now - s->start_ns, text, sizeof(text)));
        if (next == FVM_CONVERGE_MISS)
            return fvm_err_set(
                err, FVM_ETIMEOUT, 0, "migrate",
                "does not converge: predicted downtime %llu ms after %u rounds, allowed %llu ms; allow more downtime "
                "or bandwidth, or use on-miss pause",
                (unsigned long long)(s->converge.predicted_ns / 1000000), s->report.rounds,
                (unsigned long long)(s->converge.max_downtime_ns / 1000000));
        if (next == FVM_CONVERGE_FINAL)
            return 0;
        bool hurry = s->converge.predicted_ns <= s->converge.max_downtime_ns; /* the rounds that shorten the blackout */
        while (!rc && !hurry && fvm_now_ns() - s->round_start_ns < SOURCE_ROUND_MIN_MS * 1000000ull)
            rc = source_pump(s, 2, err);
        if (rc)
            return rc;
    }
}

/* ---- the thread ---- */

static int attempt(struct fvm_source *s, struct fvm_err *err)
{
    int rc = prepare(s, err);
    if (rc || s->opt.dry_run)
        return rc;
    rc = begin(s, err);
    if (rc)
        return rc;
    rc = start(s, err);
    if (rc)
        return rc;
    fvm_stream_tx_init(&s->tx, s->memory, s->codec);
    s->tx_open = true;
    s->probe_wait_ns = SOURCE_PROBE_MS * 1000000ull;
    s->round_start_ns = s->ack_ns = fvm_now_ns();
    rc = precopy(s, err);
    return rc ? rc : source_final(s, err);
}

static bool this_machine(const char *addr)
{
    return strncmp(addr, "tcp://127.", 10) == 0 || strncmp(addr, "tcp://[::1]", 11) == 0 ||
           strncmp(addr, "tcp://localhost", 15) == 0;
}

static void finish(struct fvm_source *s)
{
    struct fvm_migrate_report *r = &s->report;
    if (s->tx_open) {
        fvm_stream_tx_fini(&s->tx);
        r->sent_bytes = s->tx.bytes_sent;
        r->data_pages = s->tx.data_pages;
        r->zero_pages = s->tx.zero_pages;
        r->pages_resent = s->tx.resent_pages;
    }
    r->predicted_downtime_ns = s->converge.predicted_ns == UINT64_MAX ? 0 : s->converge.predicted_ns;
    r->dry_run = s->opt.dry_run;
    r->total_ns = fvm_now_ns() - s->start_ns;
    source_phase(s, r->err.code ? FVM_MIGRATE_FAILED : FVM_MIGRATE_DONE);
    if (s->reply)
        fvm__migrate_message__free_unpacked(s->reply, NULL);
    s->reply = NULL;
    fvm_port_close(&s->bulk);
    fvm_port_close(&s->control);
    fvm_codec_destroy(&s->codec);
    if (s->opt.memory_p && r->outcome != FVM_MIGRATE_MOVED)
        *s->opt.memory_p = s->memory;
    else
        fvm_memory_destroy(&s->memory);
}

static void *source_main(void *arg)
{
    struct fvm_source *s = arg;
    const struct fvm_machine *vm = source_vm(s);
    struct fvm_err err = {0};
    struct fvm_ram *ram = vm->ops->ram(vm->ctx);
    s->report.memory_bytes = ram->low_bytes + ram->high_bytes;
    s->report.outcome = FVM_MIGRATE_STAYED;
    fvm_converge_init(&s->converge, s->opt.max_downtime_ns, s->opt.deadline_ns, s->opt.on_miss);
    s->converge.may_throttle = vm->ops->throttle && !s->opt.no_throttle;
    s->compress = s->opt.compress > 0 || (s->opt.compress == 0 && !this_machine(s->opt.to_addr));
    s->link_full = 1; /* until it is known */
    source_report_progress(s, true, NULL);
    int rc = 0;
    if (s->opt.memory_p && *s->opt.memory_p) {
        s->memory = *s->opt.memory_p;
        *s->opt.memory_p = NULL;
    } else {
        rc = fvm_memory_create(ram, &s->memory);
    }
    if (!rc)
        rc = fvm_codec_create(&s->codec);
    rc = rc ? fvm_err_set(&err, rc, 0, "migrate", "not enough memory for the migration's books") : attempt(s, &err);
    source_throttle(s, 0);
    if (rc && s->control)
        fvm_wire_stop(s->control, NULL, &err);
    if (s->begun)
        source_settle(s, rc ? &err : NULL);
    else if (rc)
        s->report.err = err;
    finish(s);
    fvm_log(INFO, "migrate.source",
            "outcome=%d blackout_ms=%.1f total_ms=%.0f rounds=%u bytes=%llu verified=%d err=\"%s\"", s->report.outcome,
            (double)s->report.blackout_ns / 1e6, (double)s->report.total_ns / 1e6, s->report.rounds,
            (unsigned long long)s->report.sent_bytes, s->report.verified, s->report.err.text);
    s->opt.hooks.done(s->opt.hooks.ctx, &s->report);
    return NULL;
}

static void source_free(struct fvm_source *s)
{
    free((void *)(uintptr_t)s->opt.to_addr);
    free((void *)(uintptr_t)s->opt.to_key);
    free((void *)(uintptr_t)s->opt.self);
    free((void *)(uintptr_t)s->opt.to_name);
    sodium_memzero(&s->opt.keys, sizeof(s->opt.keys));
    if (s->wake_fd >= 0)
        close(s->wake_fd);
    free(s);
}

int fvm_source_start(const struct fvm_source_options *opt, struct fvm_source **ret_source, struct fvm_err *err)
{
    if (!opt->to_addr || strncmp(opt->to_addr, "tcp://", 6) != 0)
        return fvm_err_set(err, FVM_EINVAL, 0, "migrate", "the destination's address must be tcp://host:port");
    if (!opt->self || !opt->to_name || strlen(opt->self) > FVM_HO_NAME_MAX || strlen(opt->to_name) > FVM_HO_NAME_MAX ||
        !*opt->self || !*opt->to_name || strcmp(opt->self, opt->to_name) == 0)
        return fvm_err_set(err, FVM_EINVAL, 0, "migrate",
                           "source and destination need different names of 1 to %d characters", FVM_HO_NAME_MAX);
    struct fvm_source *s = calloc(1, sizeof(*s));
    if (!s)
        return fvm_err_set(err, FVM_ENOMEM, ENOMEM, "migrate", "out of memory");
    s->opt = *opt;
    s->opt.max_downtime_ns = opt->max_downtime_ns ? opt->max_downtime_ns : 300000000ull;
    s->opt.deadline_ns = opt->deadline_ns ? opt->deadline_ns : 600000000000ull;
    s->opt.to_addr = strdup(opt->to_addr);
    s->opt.to_key = strdup(opt->to_key ? opt->to_key : "");
    s->opt.self = strdup(opt->self);
    s->opt.to_name = strdup(opt->to_name);
    s->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    s->start_ns = s->phase_ns = fvm_now_ns();
    if (!s->opt.to_addr || !s->opt.to_key || !s->opt.self || !s->opt.to_name || s->wake_fd < 0) {
        source_free(s);
        return fvm_err_set(err, FVM_ENOMEM, errno, "migrate", "out of memory or descriptors");
    }
    int e = pthread_create(&s->thread, NULL, source_main, s);
    if (e) {
        source_free(s);
        return fvm_err_set(err, fvm_err_from_errno(e), e, "migrate", "cannot start a thread: %s", strerror(e));
    }
    *ret_source = s;
    return 0;
}

void fvm_source_cancel(struct fvm_source *s)
{
    uint64_t one = 1;
    __atomic_store_n(&s->cancel, true, __ATOMIC_RELEASE);
    if (write(s->wake_fd, &one, sizeof(one)) != sizeof(one))
        fvm_log(DEBUG, "migrate.cancel", "wake=full");
}

void fvm_source_abandon(struct fvm_source *s)
{
    __atomic_store_n(&s->abandon, true, __ATOMIC_RELEASE);
    fvm_source_cancel(s);
}

void fvm_source_join(struct fvm_source **source_p)
{
    struct fvm_source *s = *source_p;
    if (!s)
        return;
    *source_p = NULL;
    pthread_join(s->thread, NULL);
    source_free(s);
}
