/*
 * node_recover.c - a hand-over in the middle, settled: read the record, ask each side what it holds, read the record
 * again, and do what migrate/handover_recover.c advises.
 *
 * Any node can be asked. Only the node that the advice names swaps: when that is another one, the operator's tool is
 * sent there. The answer of a side is good for the record as it was when it was asked, so a record that changed
 * meanwhile is looked at anew; and what this node itself holds is looked at once more right before its swap: its
 * process may have died since (tests/sim/handover.c found that a hand-back would then throw away the last copy).
 *
 * Invariant: at most one swap per question, on the revision that all answers belong to.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "cluster/node.h"
#include "cluster/vmrecord.h"

enum { ROUNDS_MAX = 4 };

struct side {
    char name[FVM_HO_NAME_MAX + 1]; /* empty: nobody */
    enum fvm_ho_holding holding;
    char said[FVM_HO_NAME_MAX + 200];
};

struct recovery {
    struct fvm_node *node;
    char vm[FVM_DIR_NAME_MAX + 1];
    bool called;                    /* an operator waits */
    uint64_t call_id, call_session; /* who: the call may end before the answers come */
    char call_key[sizeof(((struct fvm_port_peer *)0)->key)];
    struct fvm_ho_record first, record;
    uint64_t revision;
    unsigned rounds, asked;
    struct side owner, other;
};

struct question {
    struct recovery *recovery;
    struct side *side;
};

static void begin_round(struct recovery *r);

static struct fvm_node_call *find_call(struct fvm_node *node, uint64_t id, uint64_t session, const char *key)
{
    for (struct fvm_node_call *c = node->calls; c; c = c->next)
        if (c->id == id && c->session == session && strcmp(c->peer.key, key) == 0)
            return c;
    return NULL;
}

static struct fvm_node_call *caller(const struct recovery *r)
{
    return r->called ? find_call(r->node, r->call_id, r->call_session, r->call_key) : NULL;
}

/* ---- the end ---- */

static void fill(Fvm__VmRecord *m, struct fvm_ho_record *r)
{
    fvm__vm_record__init(m);
    m->owner = r->owner;
    m->epoch = r->epoch;
    m->phase = (char *)(uintptr_t)fvm_ho_phase_text(r->phase);
    m->from = r->from;
    m->to = r->to;
}

static void answer(struct recovery *r, struct fvm_ho_record *now, const char *did, const char *why, bool settled)
{
    struct fvm_node_call *call = caller(r);
    Fvm__VmRecord found, then;
    Fvm__Recovery m = FVM__RECOVERY__INIT;
    Fvm__Reply reply = FVM__REPLY__INIT;
    char *said[2] = {r->owner.said, r->other.said}, text[700];
    fill(&found, &r->first);
    fill(&then, now);
    m.found = &found;
    m.now = &then;
    m.did = (char *)(uintptr_t)did;
    m.why = (char *)(uintptr_t)why;
    m.n_said = r->other.name[0] ? 2 : 1;
    m.said = said;
    m.settled = settled;
    reply.recovery = &m;
    snprintf(text, sizeof(text), "VM %s: %s", r->vm, why);
    reply.text = text;
    if (call)
        fvm_node_call_end(call, &reply);
    free(r);
}

static void give_up(struct recovery *r, const struct fvm_err *err)
{
    struct fvm_node_call *call = caller(r);
    if (call)
        fvm_node_call_fail(call, err);
    free(r);
}

/* ---- the swap ---- */

static int next_record(const struct recovery *r, enum fvm_ho_cure cure, struct fvm_ho_record *ret_next,
                       const char **ret_did)
{
    switch (cure) {
    case FVM_HO_ABORTS:
        *ret_did = "abort";
        return fvm_ho_abort(&r->record, r->node->name, ret_next);
    case FVM_HO_HANDS_BACK:
        *ret_did = "handback";
        return fvm_ho_handback(&r->record, r->other.holding, ret_next);
    default:
        *ret_did = "claim";
        return fvm_ho_claim(&r->record, r->node->name, r->other.holding, r->owner.holding, ret_next);
    }
}

static void swap(struct recovery *r, const struct fvm_ho_advice *advice)
{
    struct fvm_ho_record next;
    struct fvm_err err = {0};
    const char *did = "";
    int rc = next_record(r, advice->cure, &next, &did);
    if (rc)
        fvm_err_set(&err, rc, 0, "cluster", "the record of VM %s does not allow that any more", r->vm);
    else
        rc = fvm_vmrecord_swap(r->node->store, r->vm, r->revision, &next, &err);
    if (rc) { /* lost a race, or nobody knows: look again */
        fvm_log(WARN, "record.repair_lost", "vm=%s swap=%s why=\"%s\"", r->vm, did, err.text);
        begin_round(r);
        return;
    }
    fvm_log(INFO, "record.repaired", "vm=%s swap=%s owner=%s epoch=%llu why=\"%s\"", r->vm, did, next.owner,
            (unsigned long long)next.epoch, advice->why);
    if (advice->cure != FVM_HO_HANDS_BACK)
        (void)fvm_vmdb_status_set(r->node->store, r->vm, r->node->name, "crashed",
                                  advice->cure == FVM_HO_ABORTS
                                      ? "its process died during a migration; start boots it anew"
                                      : "both its processes died during a migration; start boots it anew",
                                  0, NULL);
    answer(r, &next, did, advice->why, true);
}

static void act(struct recovery *r)
{
    struct fvm_ho_advice advice;
    struct fvm_node_call *call = caller(r);
    bool insist = r->called || !fvm_node_member_up(r->node, r->record.owner);
    fvm_ho_recover(&r->record, r->owner.holding, r->other.holding, insist, &advice);
    bool swaps = advice.cure == FVM_HO_ABORTS || advice.cure == FVM_HO_HANDS_BACK || advice.cure == FVM_HO_CLAIMS;
    if (swaps && strcmp(advice.by, r->node->name) == 0) {
        const struct side *mine = strcmp(r->owner.name, r->node->name) == 0 ? &r->owner : &r->other;
        if (fvm_node_vm_holding(r->node, r->vm, &r->record) == mine->holding)
            swap(r, &advice);
        else
            begin_round(r);
    } else if (swaps && call) {
        fvm_node_call_redirect(call, advice.by);
        free(r);
    } else {
        answer(r, &r->record, "nothing", advice.why, advice.cure == FVM_HO_FINE);
    }
}

/* ---- the questions ---- */

/* All have answered. Did the record stay as it was when they did? */
static void judge(struct recovery *r)
{
    struct fvm_ho_record now;
    struct fvm_err err = {0};
    uint64_t revision;
    if (fvm_vmrecord_get(r->node->store, r->vm, &now, &revision, &err))
        give_up(r, &err);
    else if (revision != r->revision)
        begin_round(r);
    else
        act(r);
}

static void take_word(struct side *side, const Fvm__Reply *reply, const struct fvm_err *err)
{
    side->holding = FVM_HO_HOLDS_UNKNOWN;
    if (!err->code && reply && reply->holding)
        (void)fvm_ho_holding_parse(reply->holding->holding, &side->holding);
    if (err->code || !reply || !reply->holding)
        snprintf(side->said, sizeof(side->said), "node %s: no answer (%.100s)", side->name, err->text);
    else
        snprintf(side->said, sizeof(side->said), "node %s: %s%s%.40s%s", side->name,
                 side->holding == FVM_HO_HOLDS_NOTHING ? "no process" : fvm_ho_holding_text(side->holding),
                 reply->holding->state[0] ? " (" : "", reply->holding->state, reply->holding->state[0] ? ")" : "");
}

static void answered(struct recovery *r)
{
    struct fvm_err err;
    if (--r->asked)
        return;
    if (!r->node->closing) {
        judge(r);
        return;
    }
    fvm_err_set(&err, FVM_ECLOSED, 0, "cluster", "node %s is shutting down", r->node->name);
    give_up(r, &err); /* our own end says nothing about the others */
}

static void on_answer(void *ctx, const Fvm__Reply *reply, const struct fvm_err *err)
{
    struct question *q = ctx;
    struct recovery *r = q->recovery;
    take_word(q->side, reply, err);
    free(q);
    answered(r);
}

/* ---- what is held here: by the process' own word of just now ---- */

static bool ask_process(struct fvm_node *node, const char *name, fvm_node_control_done done, void *ctx)
{
    struct fvm_node_vm *vm = fvm_node_vm_find(node, name);
    return vm && vm->state == FVM_NODE_VM_UP && vm->control &&
           fvm_node_control_call(vm->control, json_pack("{s:s}", "cmd", "status"), FVM_NODE_ASK_MS, done, ctx) == 0;
}

/* The process said how it is, or did not. */
static void take_state(struct fvm_node *node, const char *name, json_t *result, const struct fvm_err *err)
{
    struct fvm_node_vm *vm = fvm_node_vm_find(node, name);
    const char *state = json_string_value(json_object_get(result, "state"));
    if (vm && vm->state == FVM_NODE_VM_UP)
        fvm_node_vm_set_live(vm, !err->code && state ? state : "unknown");
}

static void look_here(struct recovery *r, struct side *side)
{
    const struct fvm_node_vm *vm = fvm_node_vm_find(r->node, r->vm);
    side->holding = fvm_node_vm_holding(r->node, r->vm, &r->record);
    snprintf(side->said, sizeof(side->said), "node %s: %s%s%s%s", side->name,
             side->holding == FVM_HO_HOLDS_NOTHING ? "no process" : fvm_ho_holding_text(side->holding), vm ? " (" : "",
             vm ? fvm_node_vm_state_text(vm) : "", vm ? ")" : "");
}

static void on_here(void *ctx, json_t *result, const struct fvm_err *err)
{
    struct question *q = ctx;
    struct recovery *r = q->recovery;
    take_state(r->node, r->vm, result, err);
    look_here(r, q->side);
    free(q);
    answered(r);
}

struct asked { /* by another node; the call is found again, it may have ended */
    struct fvm_node *node;
    char vm[FVM_DIR_NAME_MAX + 1];
    uint64_t id, session;
    char key[sizeof(((struct fvm_port_peer *)0)->key)];
};

static void say_holding(struct fvm_node_call *call, const char *name)
{
    struct fvm_node_vm *vm = fvm_node_vm_find(call->node, name);
    Fvm__Reply reply = FVM__REPLY__INIT;
    Fvm__Holding h = FVM__HOLDING__INIT;
    struct fvm_ho_record record;
    enum fvm_ho_holding holding = FVM_HO_HOLDS_NOTHING;
    if (vm)
        holding = fvm_vmrecord_get(call->node->store, name, &record, NULL, NULL) == 0
                      ? fvm_node_vm_holding(call->node, name, &record)
                      : FVM_HO_HOLDS_UNKNOWN;
    h.process = vm != NULL;
    h.state = (char *)(uintptr_t)(vm ? fvm_node_vm_state_text(vm) : "");
    h.holding = (char *)(uintptr_t)fvm_ho_holding_text(holding);
    reply.holding = &h;
    fvm_node_call_end(call, &reply);
}

static void on_asked(void *ctx, json_t *result, const struct fvm_err *err)
{
    struct asked *a = ctx;
    struct fvm_node_call *call = find_call(a->node, a->id, a->session, a->key);
    take_state(a->node, a->vm, result, err);
    if (call)
        say_holding(call, a->vm);
    free(a);
}

void fvm_node_recover_holding(struct fvm_node_call *call, const char *name)
{
    struct asked *a = calloc(1, sizeof(*a));
    if (a) {
        *a = (struct asked){.node = call->node, .id = call->id, .session = call->session};
        snprintf(a->vm, sizeof(a->vm), "%s", name);
        memcpy(a->key, call->peer.key, sizeof(a->key));
        if (ask_process(call->node, name, on_asked, a))
            return;
        free(a);
    }
    say_holding(call, name);
}

/* ---- both sides ---- */

static void ask(struct recovery *r, struct side *side)
{
    Fvm__Request request = FVM__REQUEST__INIT;
    Fvm__VmName vm = FVM__VM_NAME__INIT;
    struct fvm_err err = {0};
    if (!side->name[0])
        return;
    struct question *q = calloc(1, sizeof(*q));
    bool here = strcmp(side->name, r->node->name) == 0;
    if (!q)
        fvm_err_set(&err, FVM_ENOMEM, 0, "cluster", "out of memory");
    else
        *q = (struct question){.recovery = r, .side = side};
    if (here && q && ask_process(r->node, r->vm, on_here, q)) {
        r->asked++;
        return;
    }
    if (here) {
        free(q);
        look_here(r, side);
        return;
    }
    vm.name = r->vm;
    request.what_case = FVM__REQUEST__WHAT_HOLDING;
    request.holding = &vm;
    if (q && fvm_node_link_call(r->node, side->name, &request, FVM_NODE_ASK_MS, on_answer, q, &err) == 0) {
        r->asked++;
        return;
    }
    free(q);
    take_word(side, NULL, &err);
}

static void begin_round(struct recovery *r)
{
    struct fvm_err err = {0};
    int rc = r->rounds++ < ROUNDS_MAX ? fvm_vmrecord_get(r->node->store, r->vm, &r->record, &r->revision, &err)
                                      : fvm_err_set(&err, FVM_EBUSY, 0, "cluster",
                                                    "the record of VM %s changes all the time: try again", r->vm);
    if (rc) {
        give_up(r, &err);
        return;
    }
    if (r->rounds == 1)
        r->first = r->record;
    const char *other = r->record.phase == FVM_HO_MIG     ? r->record.to
                        : r->record.phase == FVM_HO_TAKEN ? r->record.from
                                                          : "";
    r->owner = (struct side){.holding = FVM_HO_HOLDS_UNKNOWN};
    r->other = (struct side){.holding = FVM_HO_HOLDS_UNKNOWN};
    snprintf(r->owner.name, sizeof(r->owner.name), "%s", r->record.owner);
    snprintf(r->other.name, sizeof(r->other.name), "%s", other);
    r->asked = 1; /* ours: nothing is judged before both are asked */
    ask(r, &r->owner);
    ask(r, &r->other);
    answered(r);
}

void fvm_node_recover(struct fvm_node *node, const char *name, struct fvm_node_call *call)
{
    struct fvm_err err = {0};
    struct recovery *r = fvm_dir_check_name("VM", name, &err) ? NULL : calloc(1, sizeof(*r));
    if (!r) {
        if (!err.code)
            fvm_err_set(&err, FVM_ENOMEM, 0, "cluster", "out of memory");
        if (call)
            fvm_node_call_fail(call, &err);
        return;
    }
    r->node = node;
    snprintf(r->vm, sizeof(r->vm), "%s", name);
    if (call) {
        r->called = true;
        r->call_id = call->id;
        r->call_session = call->session;
        memcpy(r->call_key, call->peer.key, sizeof(r->call_key));
    }
    begin_round(r);
}
