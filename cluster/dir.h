/*
 * dir.h - the cluster directory: who belongs to a cluster, where its nodes listen, and this machine's secret keys.
 *
 *   DIR/cluster.json        no secrets: id, store, nodes (name, address, public key), operators (name, public key)
 *   DIR/keys/NAME.secret    one CURVE secret key, mode 0600; only those this machine needs
 *   DIR/cluster.db          the embedded store, unless the "store" entry names another (file names in it are below DIR)
 *   DIR/nodes/NAME/         state of a node that runs here
 *
 * cluster.json is the allow-list: a key that is not in it is refused. It is replaced whole (write, fsync, rename), so a
 * reader sees the old or the new one. A second machine gets a copy of cluster.json and its own node's secret.
 *
 * Thread: a struct belongs to its owner; nothing is shared.
 */
#ifndef FVM_CLUSTER_DIR_H
#define FVM_CLUSTER_DIR_H

#include "base/err.h"
#include "net/port.h"

enum { FVM_DIR_MEMBERS_MAX = 1024, FVM_DIR_NAME_MAX = 63 };

enum fvm_dir_kind { FVM_DIR_NODE, FVM_DIR_OPERATOR };

struct fvm_dir_member {
    enum fvm_dir_kind kind;
    char name[FVM_DIR_NAME_MAX + 1];
    char address[200]; /* nodes: "tcp://host:port" */
    char public_key[FVM_PORT_KEY_CHARS + 1];
};

struct fvm_dir {
    char path[4096];
    char id[33];
    char store_url[8192];
    char store_written[4096]; /* as in cluster.json: relative, so that the directory can be moved */
    struct fvm_dir_member *members;
    size_t member_count;
};

/** $FVM_CLUSTER_DIR, else /var/lib/fvm for root, else $XDG_STATE_HOME/fvm or ~/.local/state/fvm. */
int fvm_dir_default(char *ret_path, size_t size, struct fvm_err *err);
/**
 * Makes the directory, an id, and the operator `operator_name` with its key. FVM_EEXIST: there is a cluster already.
 * @store  URL of a store that must answer now; NULL: the embedded one. An etcd without a prefix gets "/fvm/ID".
 */
int fvm_dir_init(const char *path, const char *operator_name, const char *store, struct fvm_err *err);
int fvm_dir_load(const char *path, struct fvm_dir *ret_dir, struct fvm_err *err);
void fvm_dir_fini(struct fvm_dir *dir);
/** Key pair, member, files. Concurrent adds are serialized by a lock file. */
int fvm_dir_add(const char *path, enum fvm_dir_kind kind, const char *name, const char *address, struct fvm_err *err);
/** Takes a member off the list and its secret away: refused from the next connection on. */
int fvm_dir_remove(const char *path, enum fvm_dir_kind kind, const char *name, struct fvm_err *err);
/** NULL: no such member. */
const struct fvm_dir_member *fvm_dir_find(const struct fvm_dir *dir, enum fvm_dir_kind kind, const char *name);
const struct fvm_dir_member *fvm_dir_find_key(const struct fvm_dir *dir, const char *public_key);
/** The key pair of a member whose secret is on this machine; refuses a secret that others may read. */
int fvm_dir_keys(const struct fvm_dir *dir, const struct fvm_dir_member *member, struct fvm_port_keys *ret_keys,
                 struct fvm_err *err);
/** Letters, digits, '-', '_', '.'; starts with a letter or digit; at most FVM_DIR_NAME_MAX. `what` names it in the
 * error. */
int fvm_dir_check_name(const char *what, const char *name, struct fvm_err *err);
/** mkdir -p with a mode for what is new. */
int fvm_dir_make(const char *path, unsigned mode, struct fvm_err *err);
/** Writes a file whole or not at all: temporary name, fsync, rename, fsync of the directory. */
int fvm_dir_write_file(const char *path, const void *data, size_t len, unsigned mode, struct fvm_err *err);
/** Reads a file of at most `max` bytes; *ret_data is malloc'd and NUL-terminated. */
int fvm_dir_read_file(const char *path, size_t max, char **ret_data, size_t *ret_len, struct fvm_err *err);

#endif
