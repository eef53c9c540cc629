/*
 * node_member.c - membership: the lease that says this node lives, the heartbeat that says since when it did not, and
 * the allow-list that says who may speak to it.
 *
 * Losing the store stops no guest: ownership then just does not move. It is logged once when lost and once when back.
 *
 * Invariant: two daemons of one name never both hold /alive/NAME.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysinfo.h>
#include <unistd.h>

#include "base/log.h"
#include "cluster/node.h"
#include "cluster/node_keep.h"

/* ---- allow-list ---- */

bool fvm_node_member_allow(void *ctx, const char *public_key, const char *addr)
{
    struct fvm_node *node = ctx;
    pthread_mutex_lock(&node->dir_lock);
    bool known = fvm_dir_find_key(&node->dir, public_key) != NULL;
    bool tell = false;
    uint64_t refused = 0, now = fvm_now_ns();
    if (!known) {
        refused = ++node->refused;
        tell = now - node->refused_logged_ns >
               1000000000ull; /* a peer that tries again and again must not fill the disk */
        if (tell)
            node->refused_logged_ns = now;
    }
    pthread_mutex_unlock(&node->dir_lock);
    if (tell)
        fvm_log(WARN, "node.peer_refused", "key=%s addr=%s refused_so_far=%llu why=\"not in cluster.json\"", public_key,
                addr, (unsigned long long)refused);
    return known;
}

void fvm_node_member_reload(struct fvm_node *node)
{
    char path[4200];
    struct stat st;
    snprintf(path, sizeof(path), "%s/cluster.json", node->dir_path);
    if (stat(path, &st))
        return;
    int64_t mtime = (int64_t)st.st_mtim.tv_sec * 1000000000 + st.st_mtim.tv_nsec + (int64_t)st.st_ino;
    if (mtime == node->dir_mtime_ns)
        return;
    bool first = !node->dir_mtime_ns;
    node->dir_mtime_ns = mtime;
    struct fvm_dir fresh = {0}, old;
    struct fvm_err err = {0};
    if (first)
        return;
    if (fvm_dir_load(node->dir_path, &fresh, &err)) {
        fvm_log(ERROR, "node.members_unread", "why=\"%s\" going_on_with=old", err.text);
        return;
    }
    pthread_mutex_lock(&node->dir_lock);
    old = node->dir;
    node->dir = fresh;
    pthread_mutex_unlock(&node->dir_lock);
    fvm_dir_fini(&old);
    fvm_node_net_members(node);
    fvm_log(INFO, "node.members", "count=%zu", fresh.member_count);
}

/* ---- lease ---- */

/* Who holds the name: "<boot id>/<pid namespace> <pid> <start time>", so that our own successor need not wait for the
 * lease to run out. Containers of one machine share the boot id, and a pid says something in its own namespace alone.
 */
static void identity(char *buf, size_t size)
{
    char *boot = NULL;
    struct stat ns = {0};
    if (fvm_dir_read_file("/proc/sys/kernel/random/boot_id", 64, &boot, NULL, NULL) == 0)
        boot[strcspn(boot, "\n")] = 0;
    (void)stat("/proc/self/ns/pid", &ns);
    snprintf(buf, size, "%.40s/%llx %d %llu", boot ? boot : "?", (unsigned long long)ns.st_ino, (int)getpid(),
             (unsigned long long)fvm_node_keep_start_time(getpid()));
    free(boot);
}

/* 0: the name is free or its holder is certainly dead; *ret_revision is what to swap against. */
static int judge_holder(struct fvm_node *node, const char *key, uint64_t *ret_revision, struct fvm_err *err)
{
    struct fvm_store_item item = {0};
    int rc = fvm_store_get(node->store, key, &item, err);
    *ret_revision = 0;
    if (rc == FVM_ENOENT)
        return 0;
    if (rc)
        return rc;
    char me[160], boot[64], mine[64];
    int pid = 0, my_pid = 0;
    unsigned long long start = 0, my_start = 0;
    identity(me, sizeof(me));
    bool parsed = sscanf(item.value, "%63s %d %llu", boot, &pid, &start) == 3 &&
                  sscanf(me, "%63s %d %llu", mine, &my_pid, &my_start) == 3;
    bool here = parsed && strcmp(boot, mine) == 0;
    *ret_revision = item.revision;
    if (parsed && strcmp(item.value, me) == 0)
        rc = 0; /* ours: written by a swap whose answer was lost, or on a lease that we lost */
    else if (here && fvm_node_keep_start_time(pid) != start)
        rc = 0; /* it ran on this kernel and is gone */
    else
        rc = fvm_err_set(err, FVM_EBUSY, 0, "cluster",
                         here ? "a node %s runs already, as pid %d"
                              : "a node %s runs elsewhere, or did seconds ago (pid %d): wait for its lease to end",
                         node->name, pid);
    fvm_store_item_fini(&item);
    return rc;
}

/* 0: the name is ours, on node->lease. Else there is no lease (one that was made meanwhile ends by itself): a lease
 * without the name would be renewed for ever and nobody would see us. */
static int take_name(struct fvm_node *node, struct fvm_err *err)
{
    char key[FVM_STORE_KEY_MAX], me[160];
    uint64_t expect = 0, lease = 0;
    fvm_vmdb_key(FVM_VMDB_ALIVE, node->name, key, sizeof(key));
    identity(me, sizeof(me));
    node->lease = 0;
    int rc = judge_holder(node, key, &expect, err);
    if (!rc)
        rc = fvm_store_lease(node->store, &lease, FVM_NODE_LEASE_MS, err);
    if (!rc) {
        rc = fvm_store_cas(node->store, key, expect, me, strlen(me), lease, &node->alive_revision, err);
        if (rc == FVM_ECONFLICT)
            rc = fvm_err_set(err, FVM_EBUSY, 0, "cluster", "another node took the name %s at this moment", node->name);
    }
    if (rc)
        return rc;
    node->lease = lease;
    node->renewed_ns = fvm_now_ns();
    return 0;
}

/* /node/NAME: what others are told of us, with the time we were last seen. */
static int describe(struct fvm_node *node, struct fvm_err *err)
{
    char key[FVM_STORE_KEY_MAX];
    struct sysinfo si;
    Fvm__NodeInfo info = FVM__NODE_INFO__INIT;
    struct fvm_store_item item = {0};
    info.name = node->name;
    info.address = node->address;
    info.public_key = node->keys.public_key;
    info.version = (char *)FVM_VERSION;
    info.started_wall_ns = node->started_wall_ns;
    info.seen_wall_ns = fvm_wall_ns();
    info.cpus = (uint32_t)sysconf(_SC_NPROCESSORS_ONLN);
    if (sysinfo(&si) == 0) {
        info.memory_bytes = (uint64_t)si.totalram * si.mem_unit;
        info.memory_free_bytes = (uint64_t)(si.freeram + si.bufferram) * si.mem_unit;
    }
    for (struct fvm_node_vm *vm = node->vms; vm; vm = vm->next)
        info.vms_running += vm->proc != NULL;
    fvm_vmdb_key(FVM_VMDB_NODE, node->name, key, sizeof(key));
    int rc = fvm_store_get(node->store, key, &item, err);
    if (rc == 0 || rc == FVM_ENOENT)
        rc = fvm_vmdb_put(node->store, key, rc ? 0 : item.revision, &info.base, 0, NULL, err);
    fvm_store_item_fini(&item);
    node->seen_ns = fvm_now_ns();
    return rc;
}

int fvm_node_member_join(struct fvm_node *node, struct fvm_err *err)
{
    fvm_node_member_reload(node);
    int rc = take_name(node, err);
    struct fvm_store_items items = {0};
    if (!rc)
        rc = describe(node, err);
    if (!rc)
        rc = fvm_store_list(node->store, "/vm/", &items, &node->watched, err);
    fvm_store_items_fini(&items);
    return rc;
}

void fvm_node_member_leave(struct fvm_node *node)
{
    if (node->lease)
        (void)fvm_store_lease(node->store, &node->lease, 0, NULL);
}

static int beat(struct fvm_node *node, struct fvm_err *err)
{
    uint64_t now = fvm_now_ns();
    int rc = 0;
    if (now - node->renewed_ns >= FVM_NODE_RENEW_MS * 1000000ull) {
        rc = node->lease ? fvm_store_lease(node->store, &node->lease, FVM_NODE_LEASE_MS, err) : FVM_ENOENT;
        if (rc == FVM_ENOENT) { /* we were stopped or starved for too long */
            if (node->lease)
                fvm_log(WARN, "node.lease_lost", "after_ms=%llu",
                        (unsigned long long)((now - node->renewed_ns) / 1000000));
            rc = take_name(node, err);
            if (!rc)
                fvm_node_net_lease(node);
        }
        if (!rc)
            node->renewed_ns = now;
    }
    if (!rc && now - node->seen_ns >= FVM_NODE_SEEN_MS * 1000000ull)
        rc = describe(node, err);
    return rc;
}

/* What changed in the store since the last look goes to the agent. */
static int look(struct fvm_node *node, struct fvm_err *err)
{
    struct fvm_store_items items = {0};
    int rc = fvm_store_watch(node->store, "/vm/", &node->watched, 0, &items, err);
    if (rc == FVM_ESTATE)
        rc = fvm_store_list(node->store, "/vm/", &items, &node->watched, err);
    if (!rc)
        fvm_node_agent_look(node, &items);
    fvm_store_items_fini(&items);
    return rc;
}

void fvm_node_member_tick(struct fvm_node *node)
{
    struct fvm_err err = {0};
    fvm_node_member_reload(node);
    int rc = beat(node, &err);
    if (!rc)
        rc = look(node, &err);
    if (rc && !node->store_lost)
        fvm_log(ERROR, "node.store_lost", "why=\"%s\" guests=\"go on, ownership stands still\"", err.text);
    else if (!rc && node->store_lost)
        fvm_log(INFO, "node.store_back", "url=%s", fvm_store_url(node->store));
    node->store_lost = rc != 0;
    if (!rc)
        fvm_node_agent_repair(node);
}

bool fvm_node_member_up(struct fvm_node *node, const char *name)
{
    char key[FVM_STORE_KEY_MAX];
    struct fvm_store_item item = {0};
    fvm_vmdb_key(FVM_VMDB_ALIVE, name, key, sizeof(key));
    int rc = fvm_store_get(node->store, key, &item, NULL);
    fvm_store_item_fini(&item);
    return rc == 0;
}

/* Members come from cluster.json; what they said of themselves and whether they live from the store. */
static Fvm__NodeInfo *member_info(struct fvm_node *node, const struct fvm_dir_member *m)
{
    char key[FVM_STORE_KEY_MAX];
    struct fvm_store_item item = {0};
    Fvm__NodeInfo *info = NULL;
    fvm_vmdb_key(FVM_VMDB_NODE, m->name, key, sizeof(key));
    if (fvm_store_get(node->store, key, &item, NULL) == 0)
        (void)fvm_vmdb_unpack(&item, &fvm__node_info__descriptor, &info, NULL);
    fvm_store_item_fini(&item);
    if (!info && (info = malloc(sizeof(*info))))
        fvm__node_info__init(info);
    if (!info)
        return NULL;
    char **const fields[] = {&info->name, &info->address, &info->public_key};
    const char *const texts[] = {m->name, m->address, m->public_key};
    for (size_t i = 0; i < FVM_ARRAY_SIZE(fields); i++) {
        if (*fields[i] != (char *)protobuf_c_empty_string)
            free(*fields[i]);
        *fields[i] = strdup(texts[i]);
    }
    info->up = fvm_node_member_up(node, m->name);
    return info;
}

int fvm_node_member_list(struct fvm_node *node, Fvm__Reply *reply, struct fvm_err *err)
{
    reply->nodes = calloc(node->dir.member_count + 1, sizeof(*reply->nodes));
    if (!reply->nodes)
        return fvm_err_set(err, FVM_ENOMEM, 0, "cluster", "out of memory");
    for (size_t i = 0; i < node->dir.member_count; i++) {
        const struct fvm_dir_member *m = &node->dir.members[i];
        Fvm__NodeInfo *info = m->kind == FVM_DIR_NODE ? member_info(node, m) : NULL;
        if (info)
            reply->nodes[reply->n_nodes++] = info;
    }
    return 0;
}
