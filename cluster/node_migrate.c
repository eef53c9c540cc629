/*
 * node_migrate.c - the nodes' part in a migration: the two VM processes move the guest between themselves (migrate/)
 * and swap the record; the nodes only bring them together and tell the operator.
 *
 *   operator     source's node              source process   destination's node        destination process
 *     migrate -----> |-- migrate-key -------------> |                |
 *                    |-- Incoming{config, key} ---------------------> |-- start, incoming{allow key} --> |
 *                    | <--------------- ready{address, key} --------- | <------ address, key ----------- |
 *                    |-- migrate{address, key} ---> | ================== the guest ====================> |
 *     progress <---- | <------- events ------------ |                | <---- the record says: ours ----- |
 *     done <-------- | <-- migration-done, exit --- |
 *
 * Invariant: a daemon that dies here changes nothing: the processes go on, the record says how it ended.
 */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "cluster/node_arrival.h"
#include "cluster/vmrecord.h"
#include "vmm/vm_config.h"

enum { READY_MS = 20000 };

/* ---- source ---- */

void fvm_node_move_free(struct fvm_node_vm *vm)
{
    struct fvm_node_move *m = vm->leaving;
    if (!m)
        return;
    vm->leaving = NULL;
    fvm_node_link_cancel(vm->node, vm);
    if (m->call) {
        struct fvm_err err = {0};
        fvm_err_set(&err, FVM_ECLOSED, 0, "cluster", "node %s stopped watching; \"vm show %s\" tells how it ended",
                    vm->node->name, vm->name);
        m->call->cancelled = m->call->gone = NULL;
        fvm_node_call_fail(m->call, &err);
    }
    free(m);
}

static void drop_destination(struct fvm_node_vm *vm, const char *to)
{
    Fvm__Request request = FVM__REQUEST__INIT;
    Fvm__VmName name = FVM__VM_NAME__INIT;
    name.name = vm->name;
    request.what_case = FVM__REQUEST__WHAT_INCOMING_DROP;
    request.incoming_drop = &name;
    (void)fvm_node_link_call(vm->node, to, &request, FVM_NODE_ASK_MS, NULL, NULL, NULL);
}

static void move_failed(struct fvm_node_vm *vm, const struct fvm_err *err)
{
    struct fvm_node_move *m = vm->leaving;
    struct fvm_node_call *call = m->call;
    vm->node->moves_failed_total++;
    fvm_log(WARN, "vm.migrate_failed", "vm=%s to=%s why=\"%s\"", vm->name, m->to, err->text);
    m->call = NULL;
    if (m->drop_there)
        drop_destination(vm, m->to);
    if (call) {
        call->cancelled = call->gone = NULL;
        fvm_node_call_fail(call, err);
    }
    fvm_node_move_free(vm);
}

static uint64_t number(json_t *o, const char *key)
{
    json_int_t n = json_integer_value(json_object_get(o, key));
    return n > 0 ? (uint64_t)n : 0;
}

static const char *word(json_t *o, const char *key)
{
    const char *s = json_string_value(json_object_get(o, key));
    return s ? s : "";
}

/* Events and messages have the same names for the same things. */
static void fill_progress(Fvm__MigrateProgress *p, json_t *e)
{
    p->phase = (char *)(uintptr_t)word(e, "phase");
    p->owner = (char *)(uintptr_t)word(e, "owner");
    p->text = (char *)(uintptr_t)word(e, "text");
    p->round = (uint32_t)number(e, "round");
    p->rounds = (uint32_t)number(e, "rounds");
    p->remaining_bytes = number(e, "remaining_bytes");
    p->sent_bytes = number(e, "sent_bytes");
    p->rate_bytes = number(e, "rate_bytes");
    p->dirty_rate_bytes = number(e, "dirty_rate_bytes");
    p->predicted_downtime_ns = number(e, "predicted_downtime_ns");
    p->elapsed_ns = number(e, "elapsed_ns");
    p->memory_bytes = number(e, "memory_bytes");
    p->pages_resent = number(e, "pages_resent");
    p->blackout_ns = number(e, "blackout_ns");
    p->total_ns = number(e, "total_ns");
    p->prepare_ns = number(e, "prepare_ns");
    p->precopy_ns = number(e, "precopy_ns");
    p->final_ns = number(e, "final_ns");
    p->handover_ns = number(e, "handover_ns");
    p->digest_repairs = number(e, "digest_repairs");
    p->corrupt_batches = number(e, "corrupt_batches");
    p->verified = json_is_true(json_object_get(e, "verified"));
    p->throttled_ns = number(e, "throttled_ns");
    p->write_limit_bytes = number(e, "write_limit_bytes");
}

enum { PIECES_MAX = 16 };

/* pieces, list: PIECES_MAX each; they borrow from the event. */
static void fill_pieces(Fvm__MigrateProgress *p, json_t *e, Fvm__MigrateProgress__Piece *pieces,
                        Fvm__MigrateProgress__Piece **list)
{
    size_t i;
    json_t *one, *all = json_object_get(e, "blackout_pieces");
    p->pieces = list;
    json_array_foreach(all, i, one)
    {
        const char *name = json_string_value(json_array_get(one, 0));
        json_int_t ns = json_integer_value(json_array_get(one, 1));
        if (i >= PIECES_MAX || !name || ns < 0)
            break;
        fvm__migrate_progress__piece__init(&pieces[i]);
        pieces[i].name = (char *)(uintptr_t)name;
        pieces[i].ns = (uint64_t)ns;
        list[i] = &pieces[i];
        p->n_pieces = i + 1;
    }
}

/* For "vm explain", from any node, also when this one is gone. Nothing depends on it. */
static void remember_move(struct fvm_node_vm *vm, Fvm__MigrateProgress *report, bool moved, const char *why)
{
    Fvm__VmMove move = FVM__VM_MOVE__INIT;
    struct fvm_err err = {0};
    move.from = vm->node->name;
    move.to = vm->leaving->to;
    move.wall_ns = fvm_wall_ns();
    move.moved = moved;
    move.why = (char *)(uintptr_t)why;
    move.report = report;
    if (fvm_vmdb_move_set(vm->node->store, vm->name, &move, &err))
        fvm_log(WARN, "vm.move_unwritten", "vm=%s why=\"%s\"", vm->name, err.text);
}

static void move_done(struct fvm_node_vm *vm, json_t *event)
{
    struct fvm_node_move *m = vm->leaving;
    const char *outcome = word(event, "outcome");
    struct fvm_err err = {0};
    bool moved = strcmp(outcome, "moved") == 0;
    bool rehearsed = m->dry_run && strcmp(outcome, "stayed") == 0 && !word(event, "error")[0];
    Fvm__MigrateProgress p = FVM__MIGRATE_PROGRESS__INIT;
    Fvm__MigrateProgress__Piece pieces[PIECES_MAX], *list[PIECES_MAX];
    fill_progress(&p, event);
    fill_pieces(&p, event, pieces, list);
    p.phase = (char *)(moved || rehearsed ? "done" : "failed");
    p.owner = moved ? m->to : vm->node->name;
    p.finished = true;
    if (!m->dry_run)
        remember_move(vm, &p, moved, word(event, "error"));
    if (!moved && !rehearsed) {
        bool unknown = strcmp(outcome, "unknown") == 0;
        fvm_err_set(&err,
                    m->cancelled ? FVM_ECANCELLED
                    : unknown    ? FVM_EIO
                                 : FVM_ESTATE,
                    0, "cluster", "VM %s %s: %s", vm->name,
                    unknown ? "is paused here, because the store does not say who owns it"
                            : "stays on its node, the migration came to nothing",
                    word(event, "error"));
        move_failed(vm, &err);
        return;
    }
    struct fvm_node_call *call = m->call;
    Fvm__Reply reply = FVM__REPLY__INIT;
    char text[300];
    snprintf(text, sizeof(text),
             moved ? "VM %s runs on node %s" : "rehearsal of VM %s to node %s went well, it runs on here", vm->name,
             m->to);
    reply.text = text;
    reply.progress = &p;
    fvm_log(INFO, "vm.migrated",
            "vm=%s to=%s outcome=%s blackout_ms=%.1f total_ms=%.0f bytes=%llu rounds=%u verified=%d", vm->name, m->to,
            outcome, (double)p.blackout_ns / 1e6, (double)p.total_ns / 1e6, (unsigned long long)p.sent_bytes, p.rounds,
            p.verified);
    m->call = NULL;
    vm->node->moves_total += moved;
    if (rehearsed)
        drop_destination(vm, m->to);
    if (call) {
        call->cancelled = call->gone = NULL;
        fvm_node_call_end(call, &reply);
    }
    fvm_node_move_free(vm);
}

void fvm_node_migrate_event(struct fvm_node_vm *vm, json_t *event)
{
    struct fvm_node_move *m = vm->leaving;
    const char *name = word(event, "event");
    if (!m)
        return;
    if (strcmp(name, "migration-done") == 0) {
        move_done(vm, event);
    } else if (strcmp(name, "migration") == 0 && m->call) {
        Fvm__MigrateProgress p = FVM__MIGRATE_PROGRESS__INIT;
        Fvm__Reply reply = FVM__REPLY__INIT;
        fill_progress(&p, event);
        reply.progress = &p;
        fvm_node_call_send(m->call, &reply);
    }
}

/* The process ended without saying how the migration did: the record knows. */
void fvm_node_migrate_ended(struct fvm_node_vm *vm, const struct fvm_node_proc_end *end)
{
    struct fvm_ho_record r;
    struct fvm_err err = {0};
    (void)end;
    if (vm->coming && vm->coming->call) {
        char words[300];
        fvm_node_proc_last_words(vm->dir, words, sizeof(words));
        fvm_err_set(&err, FVM_EIO, 0, "cluster", "node %s: the destination's process ended: %s", vm->node->name, words);
        fvm_node_call_fail(vm->coming->call, &err);
        vm->coming->call = NULL;
    }
    if (!vm->leaving)
        return;
    if (fvm_vmrecord_get(vm->node->store, vm->name, &r, NULL, &err) == 0)
        fvm_err_set(&err, FVM_EIO, 0, "cluster",
                    "the process of VM %s died during the migration; its owner is node %s (%s)", vm->name, r.owner,
                    fvm_ho_phase_text(r.phase));
    move_failed(vm, &err);
}

static void on_migrate_reply(void *ctx, json_t *result, const struct fvm_err *err)
{
    struct fvm_node_vm *vm = ctx;
    (void)result;
    if (err->code && vm->leaving && err->code != FVM_ECLOSED)
        move_failed(vm, err);
}

static void on_ready(void *ctx, const Fvm__Reply *reply, const struct fvm_err *err)
{
    struct fvm_node_vm *vm = ctx;
    struct fvm_node_move *m = vm->leaving;
    struct fvm_err why = *err;
    m->drop_there = true;
    if (!err->code && (!reply->ready || !fvm_port_key_valid(reply->ready->public_key)))
        fvm_err_set(&why, FVM_EPROTO, 0, "cluster", "node %s gave no usable address", m->to);
    if (!why.code && m->cancelled)
        fvm_err_set(&why, FVM_ECANCELLED, 0, "cluster", "cancelled before anything was sent");
    char journal[4200];
    fvm_node_vm_path(vm, "journal", journal, sizeof(journal));
    json_t *request =
        why.code
            ? NULL
            : json_pack("{s:s, s:s, s:s, s:s, s:s, s:s, s:s, s:s, s:I, s:I, s:s, s:b, s:b, s:I}", "cmd", "migrate",
                        "journal", journal, "self", vm->node->name, "to_name", m->to, "to_addr", reply->ready->address,
                        "to_key", reply->ready->public_key, "store", fvm_store_url(vm->node->store), "vm", vm->name,
                        "max_downtime_ms", (json_int_t)m->max_downtime_ms, "deadline_ms", (json_int_t)m->deadline_ms,
                        "on_miss", m->on_miss, "dry_run", (int)m->dry_run, "no_throttle", (int)m->no_throttle,
                        "rate_limit_bytes", (json_int_t)FVM_MIN(m->rate_limit_bytes, (uint64_t)INT64_MAX));
    if (!why.code && (!vm->control || fvm_node_control_call(vm->control, request, READY_MS, on_migrate_reply, vm)))
        fvm_err_set(&why, FVM_ECLOSED, 0, "cluster", "VM %s: its control socket does not answer", vm->name);
    if (why.code)
        move_failed(vm, &why);
    else
        m->started = true;
}

static void on_key(void *ctx, json_t *result, const struct fvm_err *err)
{
    struct fvm_node_vm *vm = ctx;
    struct fvm_err why = *err;
    const char *key = word(result, "public_key");
    if (!vm->leaving)
        return;
    if (!err->code && !fvm_port_key_valid(key))
        fvm_err_set(&why, FVM_EPROTO, 0, "cluster", "VM %s gave no usable key", vm->name);
    if (!why.code) {
        Fvm__Request request = FVM__REQUEST__INIT;
        Fvm__Incoming in = FVM__INCOMING__INIT;
        in.name = vm->name;
        in.config = vm->config;
        in.source_key = (char *)(uintptr_t)key;
        request.what_case = FVM__REQUEST__WHAT_INCOMING;
        request.incoming = &in;
        fvm_node_link_call(vm->node, vm->leaving->to, &request, READY_MS, on_ready, vm, &why);
    }
    if (why.code)
        move_failed(vm, &why);
}

static void on_cancel_reply(void *ctx, json_t *result, const struct fvm_err *err)
{
    struct fvm_node_vm *vm = ctx;
    (void)result;
    if (err->code)
        fvm_log(WARN, "vm.migrate_cancel", "vm=%s why=\"%s\"", vm->name, err->text);
}

static void on_cancelled(struct fvm_node_call *call)
{
    struct fvm_node_vm *vm = call->ctx;
    struct fvm_node_move *m = vm->leaving;
    m->cancelled = true;
    if (m->started && vm->control)
        (void)fvm_node_control_call(vm->control, json_pack("{s:s}", "cmd", "migrate-cancel"), FVM_NODE_ASK_MS,
                                    on_cancel_reply, vm);
}

/* The operator's tool ended: the migration does not. */
static void on_gone(struct fvm_node_call *call)
{
    struct fvm_node_vm *vm = call->ctx;
    vm->leaving->call = NULL;
    call->cancelled = call->gone = NULL;
    fvm_node_call_text(call, "nobody listens");
}

static int check_move(struct fvm_node_vm *vm, const Fvm__VmMigrate *r, struct fvm_err *err)
{
    struct fvm_node *node = vm->node;
    struct fvm_ho_record record;
    if (vm->leaving || vm->moving)
        return fvm_err_set(err, FVM_ESTATE, 0, "cluster", "VM %s is being migrated%s%s already", vm->name,
                           vm->leaving ? " to node " : "", vm->leaving ? vm->leaving->to : "");
    if (strcmp(r->to, node->name) == 0)
        return fvm_err_set(err, FVM_EINVAL, 0, "cluster", "VM %s is on node %s already", vm->name, node->name);
    if (!fvm_dir_find(&node->dir, FVM_DIR_NODE, r->to))
        return fvm_err_set(err, FVM_ENOENT, 0, "cluster", "no node \"%.80s\" in this cluster", r->to);
    if (!fvm_node_member_up(node, r->to))
        return fvm_err_set(err, FVM_EIO, 0, "cluster", "node %s is down", r->to);
    if (r->on_miss[0] && strcmp(r->on_miss, "cancel") && strcmp(r->on_miss, "pause"))
        return fvm_err_set(err, FVM_EINVAL, 0, "cluster", "on-miss \"%.20s\": cancel or pause", r->on_miss);
    if (!vm->control)
        return fvm_err_set(err, FVM_EBUSY, 0, "cluster", "VM %s: its control socket does not answer", vm->name);
    for (size_t i = 0; i < vm->config->n_nets; i++)
        if (strcmp(vm->config->nets[i]->kind, "switch:@") && strncmp(vm->config->nets[i]->kind, "user", 4))
            return fvm_err_set(err, FVM_EUNSUPPORTED, 0, "cluster",
                               "VM %s: its network %s is of this host; use --net switch", vm->name,
                               vm->config->nets[i]->kind);
    int rc = fvm_vmrecord_get(node->store, vm->name, &record, NULL, err);
    if (!rc && record.phase != FVM_HO_STABLE)
        rc = fvm_err_set(err, FVM_ESTATE, 0, "cluster", "VM %s is %s already", vm->name,
                         fvm_ho_phase_text(record.phase));
    return rc;
}

void fvm_node_migrate_start(struct fvm_node_call *call, struct fvm_node_vm *vm, const Fvm__VmMigrate *r)
{
    struct fvm_err err = {0};
    struct fvm_node_move *m = NULL;
    if (!check_move(vm, r, &err) && !(m = calloc(1, sizeof(*m))))
        fvm_err_set(&err, FVM_ENOMEM, 0, "cluster", "out of memory");
    if (!err.code) {
        *m = (struct fvm_node_move){.call = call,
                                    .max_downtime_ms = r->max_downtime_ms,
                                    .deadline_ms = r->deadline_ms,
                                    .dry_run = r->dry_run,
                                    .no_throttle = r->no_throttle,
                                    .rate_limit_bytes = r->rate_limit_bytes};
        snprintf(m->to, sizeof(m->to), "%s", r->to);
        snprintf(m->on_miss, sizeof(m->on_miss), "%s", r->on_miss[0] ? r->on_miss : "cancel");
        vm->leaving = m;
        call->ctx = vm;
        call->cancelled = on_cancelled;
        call->gone = on_gone;
        if (fvm_node_control_call(vm->control, json_pack("{s:s}", "cmd", "migrate-key"), FVM_NODE_ASK_MS * 2, on_key,
                                  vm) == 0) {
            fvm_log(INFO, "vm.migrate", "vm=%s to=%s by=\"%s\"", vm->name, m->to, call->who);
            return;
        }
        fvm_err_set(&err, FVM_EBUSY, 0, "cluster", "VM %s: its control socket does not answer", vm->name);
        move_failed(vm, &err);
        return;
    }
    fvm_node_call_fail(call, &err);
}

/* ---- destination ---- */

void fvm_node_incoming_free(struct fvm_node_vm *vm)
{
    struct fvm_node_arrival *a = vm->coming;
    if (!a)
        return;
    vm->coming = NULL;
    if (a->call) {
        struct fvm_err err = {0};
        fvm_err_set(&err, FVM_ECANCELLED, 0, "cluster", "node %s gave up on VM %s", vm->node->name, vm->name);
        fvm_node_call_fail(a->call, &err);
    }
    free(a);
}

static void on_listening(void *ctx, json_t *result, const struct fvm_err *err)
{
    struct fvm_node_vm *vm = ctx;
    struct fvm_node_call *call = vm->coming ? vm->coming->call : NULL;
    if (!call || vm->state != FVM_NODE_VM_INCOMING)
        return;
    vm->coming->call = NULL;
    if (err->code) {
        fvm_node_call_fail(call, err);
        fvm_node_proc_kill(vm->proc, SIGKILL);
        return;
    }
    Fvm__Reply reply = FVM__REPLY__INIT;
    Fvm__IncomingReady ready = FVM__INCOMING_READY__INIT;
    ready.address = (char *)(uintptr_t)word(result, "address");
    ready.public_key = (char *)(uintptr_t)word(result, "public_key");
    reply.ready = &ready;
    fvm_node_call_end(call, &reply);
}

/* The new process answers: tell it whom to expect, and where the record is. */
void fvm_node_incoming_connected(struct fvm_node_vm *vm)
{
    if (!vm->coming) /* adopted: it knows already */
        return;
    char journal[4200];
    fvm_node_vm_path(vm, "journal", journal, sizeof(journal));
    json_t *request =
        json_pack("{s:s, s:s, s:s, s:s, s:s, s:s}", "cmd", "incoming", "journal", journal, "self", vm->node->name,
                  "store", fvm_store_url(vm->node->store), "vm", vm->name, "allow", vm->coming->source_key);
    if (fvm_node_control_call(vm->control, request, READY_MS, on_listening, vm))
        fvm_node_proc_kill(vm->proc, SIGKILL);
}

static int check_incoming(struct fvm_node_call *call, const Fvm__Incoming *r, uint64_t *ret_epoch, struct fvm_err *err)
{
    struct fvm_node *node = call->node;
    struct fvm_ho_record record;
    if (!r->config || strcmp(r->config->name, r->name) || !fvm_port_key_valid(r->source_key))
        return fvm_err_set(err, FVM_EPROTO, 0, "cluster", "an incoming VM without a configuration or key");
    int rc = fvm_dir_check_name("VM", r->name, err);
    if (!rc)
        rc = fvm_config_check(r->config, false, err);
    if (!rc)
        rc = fvm_vmrecord_get(node->store, r->name, &record, NULL, err);
    if (!rc && (record.phase != FVM_HO_STABLE || strcmp(record.owner, call->who + 5)))
        rc = fvm_err_set(err, FVM_ESTATE, 0, "cluster", "%s does not own VM %s (node %s does, %s)", call->who, r->name,
                         record.owner, fvm_ho_phase_text(record.phase));
    if (!rc)
        *ret_epoch = record.epoch;
    return rc;
}

/* The guest left here a moment ago, or an attempt came to nothing: that process is about to end, and its end starts the
 * next. */
static int wait_for_end(struct fvm_node_call *call, const Fvm__Incoming *r, struct fvm_node_vm *old,
                        struct fvm_err *err)
{
    if (old->queued)
        return fvm_err_set(err, FVM_EBUSY, 0, "cluster", "VM %s is on its way to node %s already", old->name,
                           call->node->name);
    size_t len = fvm__incoming__get_packed_size(r);
    uint8_t *data = malloc(len + 1);
    struct fvm_node_queued *q = calloc(1, sizeof(*q));
    if (data && q) {
        fvm__incoming__pack(r, data);
        q->request = fvm__incoming__unpack(NULL, len, data);
    }
    free(data);
    if (!q || !q->request) {
        free(q);
        return fvm_err_set(err, FVM_ENOMEM, 0, "cluster", "out of memory");
    }
    q->call = call;
    old->queued = q;
    if (old->state == FVM_NODE_VM_INCOMING)
        fvm_node_proc_kill(old->proc, SIGKILL);
    return 0;
}

void fvm_node_incoming_next(struct fvm_node_queued *queued)
{
    if (!queued)
        return;
    if (queued->call)
        fvm_node_incoming_start(queued->call, queued->request);
    fvm__incoming__free_unpacked(queued->request, NULL);
    free(queued);
}

void fvm_node_incoming_start(struct fvm_node_call *call, const Fvm__Incoming *r)
{
    struct fvm_err err = {0};
    struct fvm_node_vm *vm = NULL;
    struct fvm_node_arrival *a = NULL;
    uint64_t epoch = 0;
    int rc = check_incoming(call, r, &epoch, &err);
    struct fvm_node_vm *old = fvm_node_vm_find(call->node, r->name);
    if (!rc && old && (rc = wait_for_end(call, r, old, &err)) == 0)
        return;
    if (!rc && !(a = calloc(1, sizeof(*a))))
        rc = fvm_err_set(&err, FVM_ENOMEM, 0, "cluster", "out of memory");
    if (!rc) {
        a->call = call;
        a->epoch = epoch;
        snprintf(a->from, sizeof(a->from), "%s", call->who + 5);
        snprintf(a->source_key, sizeof(a->source_key), "%s", r->source_key);
        rc = fvm_node_vm_start(call->node, r->name, r->config, a, &vm, &err);
    }
    if (rc) {
        free(a);
        fvm_node_call_fail(call, &err);
    }
}

void fvm_node_incoming_over(struct fvm_node_vm *vm, uint64_t epoch)
{
    bool over = vm->coming ? epoch > vm->coming->epoch && !vm->coming->call
                           : fvm_now_ns() > vm->deadline_ns; /* adopted: it had its time */
    if (vm->state != FVM_NODE_VM_INCOMING || vm->killed || !over)
        return;
    fvm_log(INFO, "vm.incoming_over", "vm=%s epoch=%llu", vm->name, (unsigned long long)epoch);
    snprintf(vm->how, sizeof(vm->how), "the migration came to nothing");
    vm->killed = true;
    fvm_node_proc_kill(vm->proc, SIGTERM);
}

/* It came to nothing. Only a process that the record does not need is ended. */
void fvm_node_incoming_drop(struct fvm_node_call *call, const char *name)
{
    struct fvm_node_vm *vm = fvm_node_vm_find(call->node, name);
    if (vm && vm->state == FVM_NODE_VM_INCOMING && !fvm_node_vm_owned(call->node, name)) {
        snprintf(vm->how, sizeof(vm->how), "the migration came to nothing");
        vm->killed = true;
        fvm_node_proc_kill(vm->proc, SIGTERM);
    }
    fvm_node_call_text(call, "dropped");
}
