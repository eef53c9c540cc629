/*
 * ctl_text.c - what nodes say, for people and for programs. JSON has every field, in base units (bytes, ns) and with
 * the unit in its name; text has what fits a line.
 */
#include <inttypes.h>
#include <string.h>
#include <time.h>

#include "cluster/ctl.h"

const char *fvm_ctl_bytes(uint64_t bytes, char buf[24])
{
    static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB"};
    double n = (double)bytes;
    size_t i = 0;
    while (n >= 1024 && i + 1 < FVM_ARRAY_SIZE(units)) {
        n /= 1024;
        i++;
    }
    snprintf(buf, 24, n < 10 && i ? "%.1f %s" : "%.0f %s", n, units[i]);
    return buf;
}

const char *fvm_ctl_time(uint64_t wall_ns, char buf[32])
{
    time_t t = (time_t)(wall_ns / 1000000000);
    struct tm tm;
    if (!wall_ns || !localtime_r(&t, &tm) || !strftime(buf, 32, "%Y-%m-%d %H:%M:%S", &tm))
        snprintf(buf, 32, "-");
    return buf;
}

const char *fvm_ctl_ms(uint64_t ns, char buf[24])
{
    if (ns >= 10000000000ull)
        snprintf(buf, 24, "%.1f s", (double)ns / 1e9);
    else
        snprintf(buf, 24, ns >= 100000000 ? "%.0f ms" : "%.1f ms", (double)ns / 1e6);
    return buf;
}

json_t *fvm_ctl_node_json(const Fvm__NodeInfo *n)
{
    return json_pack("{s:s, s:s, s:s, s:b, s:s, s:I, s:I, s:I, s:I, s:I, s:I}", "name", n->name, "address", n->address,
                     "public_key", n->public_key, "up", (int)n->up, "version", n->version, "cpus", (json_int_t)n->cpus,
                     "memory_bytes", (json_int_t)n->memory_bytes, "memory_free_bytes", (json_int_t)n->memory_free_bytes,
                     "vms_running", (json_int_t)n->vms_running, "started_wall_ns", (json_int_t)n->started_wall_ns,
                     "seen_wall_ns", (json_int_t)n->seen_wall_ns);
}

static json_t *disks_json(const Fvm__VmConfig *c)
{
    json_t *list = json_array();
    for (size_t i = 0; i < c->n_disks; i++)
        json_array_append_new(
            list, json_pack("{s:s, s:b}", "path", c->disks[i]->path, "readonly", (int)c->disks[i]->readonly));
    return list;
}

json_t *fvm_ctl_config_json(const Fvm__VmConfig *c)
{
    json_t *nets = json_array();
    for (size_t i = 0; i < c->n_nets; i++) {
        const char *kind = c->nets[i]->kind;
        json_array_append_new(nets, json_string(strcmp(kind, "switch:@") ? kind : "switch"));
    }
    return json_pack("{s:s, s:s, s:s, s:I, s:I, s:s, s:o, s:o}", "kernel", c->kernel, "initrd", c->initrd, "append",
                     c->append, "memory_bytes", (json_int_t)c->memory_bytes, "cpus", (json_int_t)c->cpus, "cpu_model",
                     c->cpu_model, "disks", disks_json(c), "nets", nets);
}

json_t *fvm_ctl_vm_json(const Fvm__VmInfo *vm)
{
    const Fvm__VmRecord *r = vm->record;
    const Fvm__VmStatus *s = vm->status;
    json_t *record = r ? json_pack("{s:s, s:I, s:s, s:s, s:s}", "owner", r->owner, "epoch", (json_int_t)r->epoch,
                                   "phase", r->phase, "from", r->from, "to", r->to)
                       : json_null();
    json_t *out = json_pack("{s:s, s:s, s:s, s:s, s:b, s:I, s:I, s:i, s:o}", "name", vm->name, "node",
                            r ? r->owner : "", "state", s ? s->state : "unknown", "reason", s ? s->reason : "", "live",
                            (int)vm->live, "since_wall_ns", (json_int_t)(s ? s->wall_ns : 0), "exit_status",
                            (json_int_t)(s ? s->exit_status : 0), "pid", (int)vm->pid, "record", record);
    if (vm->config)
        json_object_set_new(out, "config", fvm_ctl_config_json(vm->config));
    return out;
}

json_t *fvm_ctl_progress_json(const Fvm__MigrateProgress *p)
{
    json_t *out =
        json_pack("{s:s, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:s, s:s, s:I, s:I}", "phase", p->phase, "round",
                  (json_int_t)p->round, "remaining_bytes", (json_int_t)p->remaining_bytes, "sent_bytes",
                  (json_int_t)p->sent_bytes, "rate_bytes", (json_int_t)p->rate_bytes, "dirty_rate_bytes",
                  (json_int_t)p->dirty_rate_bytes, "predicted_downtime_ns", (json_int_t)p->predicted_downtime_ns,
                  "elapsed_ns", (json_int_t)p->elapsed_ns, "owner", p->owner, "text", p->text, "memory_bytes",
                  (json_int_t)p->memory_bytes, "pages_resent", (json_int_t)p->pages_resent);
    json_object_set_new(out, "write_limit_bytes", json_integer((json_int_t)p->write_limit_bytes));
    if (!p->finished)
        return out;
    json_t *timeline = json_pack("{s:b, s:b, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I}", "finished", 1, "verified",
                                 (int)p->verified, "rounds", (json_int_t)p->rounds, "blackout_ns",
                                 (json_int_t)p->blackout_ns, "total_ns", (json_int_t)p->total_ns, "prepare_ns",
                                 (json_int_t)p->prepare_ns, "precopy_ns", (json_int_t)p->precopy_ns, "final_ns",
                                 (json_int_t)p->final_ns, "handover_ns", (json_int_t)p->handover_ns, "digest_repairs",
                                 (json_int_t)p->digest_repairs, "corrupt_batches", (json_int_t)p->corrupt_batches);
    json_t *pieces = json_array();
    for (size_t i = 0; i < p->n_pieces; i++)
        json_array_append_new(pieces, json_pack("[s, I]", p->pieces[i]->name, (json_int_t)p->pieces[i]->ns));
    json_object_set_new(timeline, "blackout_pieces", pieces);
    json_object_set_new(timeline, "throttled_ns", json_integer((json_int_t)p->throttled_ns));
    json_object_update(out, timeline);
    json_decref(timeline);
    return out;
}
