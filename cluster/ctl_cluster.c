/*
 * ctl_cluster.c - the cluster directory's commands (init, node, operator) and the list of nodes.
 */
#include <string.h>

#include "cluster/ctl.h"

static const char *word(const struct fvm_ctl *ctl, unsigned i) { return ctl->opt.words[i]; }

int fvm_ctl_cluster_init(struct fvm_ctl *ctl, struct fvm_err *err)
{
    char text[4400];
    int rc = fvm_dir_init(ctl->dir_path, ctl->opt.as ? ctl->opt.as : "admin", ctl->opt.store, err);
    if (rc)
        return rc;
    snprintf(text, sizeof(text),
             "cluster made in %s, operator \"%s\"; next: fvm-cluster node add NAME --address tcp://HOST:PORT",
             ctl->dir_path, ctl->opt.as ? ctl->opt.as : "admin");
    fvm_ctl_say(ctl, text);
    return 0;
}

static int add(struct fvm_ctl *ctl, enum fvm_dir_kind kind, struct fvm_err *err)
{
    char text[4800];
    const char *name = word(ctl, 2);
    int rc = fvm_dir_add(ctl->dir_path, kind, name, ctl->opt.address, err);
    if (rc)
        return rc;
    if (kind == FVM_DIR_NODE)
        snprintf(text, sizeof(text),
                 "node %s added at %s; start it with: fvm-node --dir %s --name %s (on another machine: copy "
                 "cluster.json and keys/%s.secret there)",
                 name, ctl->opt.address, ctl->dir_path, name, name);
    else
        snprintf(text, sizeof(text), "operator %s added; its key is %s/keys/%s.secret", name, ctl->dir_path, name);
    fvm_ctl_say(ctl, text);
    return 0;
}

int fvm_ctl_node_add(struct fvm_ctl *ctl, struct fvm_err *err) { return add(ctl, FVM_DIR_NODE, err); }
int fvm_ctl_operator_add(struct fvm_ctl *ctl, struct fvm_err *err) { return add(ctl, FVM_DIR_OPERATOR, err); }

static int take_away(struct fvm_ctl *ctl, enum fvm_dir_kind kind, struct fvm_err *err)
{
    char text[200];
    int rc = fvm_dir_remove(ctl->dir_path, kind, word(ctl, 2), err);
    if (rc)
        return rc;
    snprintf(text, sizeof(text), "%s %s removed; nodes refuse its key from now on",
             kind == FVM_DIR_NODE ? "node" : "operator", word(ctl, 2));
    fvm_ctl_say(ctl, text);
    return 0;
}

int fvm_ctl_node_remove(struct fvm_ctl *ctl, struct fvm_err *err) { return take_away(ctl, FVM_DIR_NODE, err); }
int fvm_ctl_operator_remove(struct fvm_ctl *ctl, struct fvm_err *err) { return take_away(ctl, FVM_DIR_OPERATOR, err); }

static void print_nodes(const Fvm__Reply *reply)
{
    printf("%-16s %-6s %-28s %5s %10s %10s  %s\n", "NODE", "STATE", "ADDRESS", "VMS", "MEMORY", "FREE", "LAST SEEN");
    for (size_t i = 0; i < reply->n_nodes; i++) {
        const Fvm__NodeInfo *n = reply->nodes[i];
        char total[24], left[24], seen[32];
        bool ever = n->seen_wall_ns != 0;
        printf("%-16s %-6s %-28s %5u %10s %10s  %s\n", n->name, n->up ? "up" : "down", n->address, n->vms_running,
               ever ? fvm_ctl_bytes(n->memory_bytes, total) : "-",
               ever ? fvm_ctl_bytes(n->memory_free_bytes, left) : "-",
               n->up  ? "now"
               : ever ? fvm_ctl_time(n->seen_wall_ns, seen)
                      : "never");
    }
}

int fvm_ctl_node_list(struct fvm_ctl *ctl, struct fvm_err *err)
{
    Fvm__Request request = FVM__REQUEST__INIT;
    Fvm__Empty nothing = FVM__EMPTY__INIT;
    Fvm__Reply *reply = NULL;
    request.what_case = FVM__REQUEST__WHAT_NODE_LIST;
    request.node_list = &nothing;
    int rc = fvm_ctl_call(ctl, &request, FVM_CTL_ANSWER_MS, &reply, NULL, err);
    if (rc)
        return rc;
    if (ctl->opt.json) {
        json_t *list = json_array();
        for (size_t i = 0; i < reply->n_nodes; i++)
            json_array_append_new(list, fvm_ctl_node_json(reply->nodes[i]));
        fvm_ctl_print_json(json_pack("{s:o}", "nodes", list));
    } else {
        print_nodes(reply);
    }
    fvm__reply__free_unpacked(reply, NULL);
    return 0;
}
