/*
 * dir.c - the cluster directory (layout in dir.h): JSON in, checked structs out, and back.
 *
 * Invariant: nothing enters a struct fvm_dir unchecked: names are names, keys are keys, no two members share either.
 */
#include "cluster/dir.h"

#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cluster/store.h"

enum { FORMAT = 1, FILE_MAX = 4 << 20 };

static const char *kind_list(enum fvm_dir_kind kind) { return kind == FVM_DIR_NODE ? "nodes" : "operators"; }
static const char *kind_name(enum fvm_dir_kind kind) { return kind == FVM_DIR_NODE ? "node" : "operator"; }

int fvm_dir_default(char *ret_path, size_t size, struct fvm_err *err)
{
    const char *env = getenv("FVM_CLUSTER_DIR"), *state = getenv("XDG_STATE_HOME"), *home = getenv("HOME");
    int n;
    if (env && *env)
        n = snprintf(ret_path, size, "%s", env);
    else if (geteuid() == 0)
        n = snprintf(ret_path, size, "/var/lib/fvm");
    else if (state && *state == '/')
        n = snprintf(ret_path, size, "%s/fvm", state);
    else if (home && *home == '/')
        n = snprintf(ret_path, size, "%s/.local/state/fvm", home);
    else
        return fvm_err_set(err, FVM_EINVAL, 0, "cluster", "no HOME in the environment: say where with --dir");
    return (size_t)n < size ? 0
                            : fvm_err_set(err, FVM_EINVAL, 0, "cluster", "name of the cluster directory is too long");
}

int fvm_dir_check_name(const char *what, const char *name, struct fvm_err *err)
{
    static const char first[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789";
    static const char rest[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.";
    size_t n = strlen(name);
    if (n && n <= FVM_DIR_NAME_MAX && strchr(first, name[0]) && strspn(name, rest) == n)
        return 0;
    return fvm_err_set(err, FVM_EINVAL, 0, "cluster",
                       "%s name \"%.80s\": 1 to %d letters, digits, '-', '_' or '.', the first a letter or digit", what,
                       name, FVM_DIR_NAME_MAX);
}

static int check_address(const char *address, struct fvm_err *err)
{
    const char *host = strncmp(address, "tcp://", 6) == 0 ? address + 6 : NULL;
    const char *colon = host ? strrchr(host, ':') : NULL;
    char *end = NULL;
    unsigned long port = colon ? strtoul(colon + 1, &end, 10) : 0;
    if (colon && colon > host && colon[1] >= '0' && colon[1] <= '9' && !*end && port >= 1 && port <= 65535 &&
        strlen(address) < sizeof(((struct fvm_dir_member *)0)->address))
        return 0;
    return fvm_err_set(err, FVM_EINVAL, 0, "cluster", "address \"%.120s\": tcp://HOST:PORT is wanted", address);
}

/* ---- reading ---- */

static int bad(const char *file, const char *what, struct fvm_err *err)
{
    return fvm_err_set(err, FVM_EBADIMAGE, 0, "cluster", "%s: %s; copy it again from another machine of the cluster",
                       file, what);
}

static int take_member(struct fvm_dir *dir, enum fvm_dir_kind kind, json_t *entry, const char *file,
                       struct fvm_err *err)
{
    const char *name = json_string_value(json_object_get(entry, "name"));
    const char *key = json_string_value(json_object_get(entry, "public"));
    const char *address = json_string_value(json_object_get(entry, "address"));
    if (!name || !key || fvm_dir_check_name(kind_name(kind), name, NULL) || !fvm_port_key_valid(key))
        return bad(file, "a member without a good name and public key", err);
    if (kind == FVM_DIR_NODE && (!address || check_address(address, NULL)))
        return bad(file, "a node without a good address", err);
    if (fvm_dir_find(dir, kind, name) || fvm_dir_find_key(dir, key))
        return bad(file, "two members share a name or a key", err);
    if (dir->member_count >= FVM_DIR_MEMBERS_MAX)
        return bad(file, "too many members", err);
    struct fvm_dir_member *m = &dir->members[dir->member_count++];
    m->kind = kind;
    snprintf(m->name, sizeof(m->name), "%s", name);
    snprintf(m->public_key, sizeof(m->public_key), "%s", key);
    snprintf(m->address, sizeof(m->address), "%s", address ? address : "");
    return 0;
}

static int take_members(struct fvm_dir *dir, enum fvm_dir_kind kind, json_t *root, const char *file,
                        struct fvm_err *err)
{
    json_t *list = json_object_get(root, kind_list(kind)), *entry;
    size_t i;
    if (!json_is_array(list))
        return bad(file, "no list of members", err);
    json_array_foreach(list, i, entry)
    {
        int rc = take_member(dir, kind, entry, file, err);
        if (rc)
            return rc;
    }
    return 0;
}

/* Names of files in a store's URL that are not whole ones are below the cluster directory. False: too long. */
static bool resolve_store(const char *dir, const char *written, char *url, size_t size)
{
    static const char *const files[] = {"ca=", "cert=", "key="};
    if (strncmp(written, "sqlite:", 7) == 0)
        return (size_t)snprintf(url, size, "sqlite:%s%s%s", written[7] == '/' ? "" : dir, written[7] == '/' ? "" : "/",
                                written + 7) < size;
    size_t n = strcspn(written, "?"), out = 0;
    while (written[n] && out + n + 1 < size) {
        memcpy(url + out, written, n + 1); /* up to '?' or '&' */
        out += n + 1;
        written += n + 1;
        n = strcspn(written, "&");
        for (size_t i = 0; i < FVM_ARRAY_SIZE(files); i++) {
            size_t skip = strlen(files[i]);
            if (strncmp(written, files[i], skip) == 0 && written[skip] != '/' && written[skip]) {
                int put = snprintf(url + out, size - out, "%s%s/", files[i], dir);
                if (put < 0 || (size_t)put >= size - out)
                    return false;
                out += (size_t)put;
                written += skip;
                n -= skip;
            }
        }
    }
    return (size_t)snprintf(url + out, size - out, "%s", written) < size - out;
}

static int take_store(struct fvm_dir *dir, json_t *root, const char *file, struct fvm_err *err)
{
    const char *store = json_string_value(json_object_get(root, "store"));
    if (!store || !*store || strlen(store) >= sizeof(dir->store_written) ||
        !resolve_store(dir->path, store, dir->store_url, sizeof(dir->store_url)))
        return bad(file, "no store", err);
    snprintf(dir->store_written, sizeof(dir->store_written), "%s", store);
    return 0;
}

static int take_root(struct fvm_dir *dir, json_t *root, const char *file, struct fvm_err *err)
{
    json_int_t format = json_integer_value(json_object_get(root, "format"));
    const char *id = json_string_value(json_object_get(root, "cluster"));
    if (!json_is_object(root) || !id || strlen(id) != 32 || strspn(id, "0123456789abcdef") != 32)
        return bad(file, "not a cluster file of fvm", err);
    if (format != FORMAT)
        return fvm_err_set(err, FVM_EVERSION, 0, "cluster",
                           "%s: format %lld, this fvm knows %d; upgrade the older side", file, (long long)format,
                           FORMAT);
    snprintf(dir->id, sizeof(dir->id), "%s", id);
    dir->members = calloc(FVM_DIR_MEMBERS_MAX, sizeof(*dir->members));
    if (!dir->members)
        return fvm_err_set(err, FVM_ENOMEM, 0, "cluster", "out of memory");
    int rc = take_store(dir, root, file, err);
    if (!rc)
        rc = take_members(dir, FVM_DIR_NODE, root, file, err);
    return rc ? rc : take_members(dir, FVM_DIR_OPERATOR, root, file, err);
}

int fvm_dir_load(const char *path, struct fvm_dir *ret_dir, struct fvm_err *err)
{
    struct fvm_dir dir = {0};
    char file[4200], *text = NULL;
    char real[4096];
    if (!realpath(path, real))
        return fvm_err_set(err, fvm_err_from_errno(errno), errno, "cluster",
                           "%s: no cluster here (%s): make one with \"fvm-cluster init\", or say where with --dir",
                           path, strerror(errno));
    snprintf(dir.path, sizeof(dir.path), "%s", real);
    snprintf(file, sizeof(file), "%s/cluster.json", dir.path);
    int rc = fvm_dir_read_file(file, FILE_MAX, &text, NULL, err);
    if (rc == FVM_ENOENT)
        return fvm_err_set(err, rc, ENOENT, "cluster",
                           "%s: no cluster here: make one with \"fvm-cluster init\", or say where with --dir", path);
    if (rc)
        return rc;
    json_error_t jerr;
    json_t *root = json_loads(text, JSON_REJECT_DUPLICATES, &jerr);
    if (root)
        rc = take_root(&dir, root, file, err);
    else
        rc =
            fvm_err_set(err, FVM_EBADIMAGE, 0, "cluster", "%s: line %d: not JSON (%.120s)", file, jerr.line, jerr.text);
    json_decref(root);
    free(text);
    if (rc)
        fvm_dir_fini(&dir);
    else
        *ret_dir = dir;
    return rc;
}

void fvm_dir_fini(struct fvm_dir *dir)
{
    free(dir->members);
    *dir = (struct fvm_dir){0};
}

const struct fvm_dir_member *fvm_dir_find(const struct fvm_dir *dir, enum fvm_dir_kind kind, const char *name)
{
    for (size_t i = 0; i < dir->member_count; i++)
        if (dir->members[i].kind == kind && strcmp(dir->members[i].name, name) == 0)
            return &dir->members[i];
    return NULL;
}

const struct fvm_dir_member *fvm_dir_find_key(const struct fvm_dir *dir, const char *public_key)
{
    for (size_t i = 0; i < dir->member_count; i++)
        if (strcmp(dir->members[i].public_key, public_key) == 0)
            return &dir->members[i];
    return NULL;
}

/* ---- writing ---- */

static json_t *members_json(const struct fvm_dir *dir, enum fvm_dir_kind kind)
{
    json_t *list = json_array();
    for (size_t i = 0; i < dir->member_count; i++) {
        const struct fvm_dir_member *m = &dir->members[i];
        if (m->kind != kind)
            continue;
        json_t *entry = json_pack("{s:s, s:s}", "name", m->name, "public", m->public_key);
        if (kind == FVM_DIR_NODE)
            json_object_set_new(entry, "address", json_string(m->address));
        json_array_append_new(list, entry);
    }
    return list;
}

static int save(const struct fvm_dir *dir, struct fvm_err *err)
{
    char file[4200];
    snprintf(file, sizeof(file), "%s/cluster.json", dir->path);
    json_t *root =
        json_pack("{s:i, s:s, s:s, s:o, s:o}", "format", FORMAT, "cluster", dir->id, "store", dir->store_written,
                  "nodes", members_json(dir, FVM_DIR_NODE), "operators", members_json(dir, FVM_DIR_OPERATOR));
    char *text = root ? json_dumps(root, JSON_INDENT(2)) : NULL;
    json_decref(root);
    if (!text)
        return fvm_err_set(err, FVM_ENOMEM, 0, "cluster", "out of memory");
    int rc = fvm_dir_write_file(file, text, strlen(text), 0644, err);
    free(text);
    return rc;
}

static void secret_path(const struct fvm_dir *dir, const char *name, char *buf, size_t size)
{
    snprintf(buf, size, "%s/keys/%s.secret", dir->path, name);
}

static int new_member(struct fvm_dir *dir, enum fvm_dir_kind kind, const char *name, const char *address,
                      struct fvm_err *err)
{
    struct fvm_port_keys keys;
    char path[4400], text[FVM_PORT_KEY_CHARS + 2];
    if (fvm_port_keygen(&keys))
        return fvm_err_set(err, FVM_EUNSUPPORTED, 0, "cluster",
                           "this ZeroMQ library has no CURVE: no keys can be made");
    secret_path(dir, name, path, sizeof(path));
    if (access(path, F_OK) == 0)
        return fvm_err_set(err, FVM_EEXIST, 0, "cluster", "%s: there is a key of that name already", path);
    snprintf(text, sizeof(text), "%s\n", keys.secret_key);
    int rc = fvm_dir_write_file(path, text, strlen(text), 0600, err);
    if (rc)
        return rc;
    struct fvm_dir_member *m = &dir->members[dir->member_count++];
    *m = (struct fvm_dir_member){.kind = kind};
    snprintf(m->name, sizeof(m->name), "%s", name);
    snprintf(m->address, sizeof(m->address), "%s", address ? address : "");
    snprintf(m->public_key, sizeof(m->public_key), "%s", keys.public_key);
    return 0;
}

/* The store's URL as it will stand in cluster.json; one that others share is asked now, so that a mistyped address is
 * found out here. */
static int choose_store(struct fvm_dir *dir, const char *store, struct fvm_err *err)
{
    char *text = dir->store_written;
    size_t size = sizeof(dir->store_written), n = store ? strcspn(store, "?") : 0;
    struct fvm_store *opened = NULL;
    bool bare = store && strncmp(store, "etcd://", 7) == 0 && strcspn(store + 7, "/?") + 7 >= n;
    int len = bare    ? snprintf(text, size, "%.*s/fvm/%s%s", (int)n, store, dir->id, store + n)
              : store ? snprintf(text, size, "%s", store)
                      : snprintf(text, size, "sqlite:cluster.db");
    if (len < 0 || (size_t)len >= size || !resolve_store(dir->path, text, dir->store_url, sizeof(dir->store_url)))
        return fvm_err_set(err, FVM_EINVAL, 0, "cluster", "the store's URL is too long");
    int rc = store ? fvm_store_open(dir->store_url, &opened, err) : 0;
    if (!rc && opened)
        fvm_store_close(&opened);
    return rc;
}

int fvm_dir_init(const char *path, const char *operator_name, const char *store, struct fvm_err *err)
{
    struct fvm_dir dir = {0};
    char sub[4300], file[4300];
    uint8_t id[16];
    int rc = fvm_dir_check_name("operator", operator_name, err);
    if (!rc)
        rc = fvm_dir_make(path, 0700, err);
    if (rc)
        return rc;
    if (!realpath(path, dir.path) || getrandom(id, sizeof(id), 0) != (ssize_t)sizeof(id))
        return fvm_err_set(err, fvm_err_from_errno(errno), errno, "cluster", "%s: %s", path, strerror(errno));
    snprintf(file, sizeof(file), "%s/cluster.json", dir.path);
    if (access(file, F_OK) == 0)
        return fvm_err_set(err, FVM_EEXIST, 0, "cluster", "%s: there is a cluster here already", path);
    for (size_t i = 0; i < sizeof(id); i++)
        snprintf(dir.id + 2 * i, 3, "%02x", id[i]);
    snprintf(sub, sizeof(sub), "%s/keys", dir.path);
    dir.members = calloc(FVM_DIR_MEMBERS_MAX, sizeof(*dir.members));
    rc = dir.members ? fvm_dir_make(sub, 0700, err) : fvm_err_set(err, FVM_ENOMEM, 0, "cluster", "out of memory");
    if (!rc)
        rc = choose_store(&dir, store, err);
    if (!rc)
        rc = new_member(&dir, FVM_DIR_OPERATOR, operator_name, NULL, err);
    if (!rc)
        rc = save(&dir, err);
    fvm_dir_fini(&dir);
    return rc;
}

static int lock_dir(const char *path, struct fvm_err *err)
{
    char file[4200];
    snprintf(file, sizeof(file), "%.4000s/.lock", path);
    int fd = open(file, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (fd < 0 || flock(fd, LOCK_EX)) {
        int sys = errno;
        if (fd >= 0)
            close(fd);
        return fvm_err_set(err, fvm_err_from_errno(sys), sys, "cluster", "%s: cannot lock: %s", file, strerror(sys));
    }
    return fd;
}

/* The directory as it is under its lock (a first look tells where that is); *ret_lock is to be closed. */
static int load_locked(const char *path, struct fvm_dir *ret_dir, int *ret_lock, struct fvm_err *err)
{
    int rc = fvm_dir_load(path, ret_dir, err);
    if (rc)
        return rc;
    int lock = lock_dir(ret_dir->path, err);
    fvm_dir_fini(ret_dir);
    if (lock < 0)
        return lock;
    rc = fvm_dir_load(path, ret_dir, err);
    if (rc)
        close(lock);
    else
        *ret_lock = lock;
    return rc;
}

int fvm_dir_add(const char *path, enum fvm_dir_kind kind, const char *name, const char *address, struct fvm_err *err)
{
    struct fvm_dir dir = {0};
    int lock, rc = fvm_dir_check_name(kind_name(kind), name, err);
    if (!rc && kind == FVM_DIR_NODE)
        rc = check_address(address, err);
    if (rc || (rc = load_locked(path, &dir, &lock, err)))
        return rc;
    if (fvm_dir_find(&dir, kind, name))
        rc = fvm_err_set(err, FVM_EEXIST, 0, "cluster", "%s %s is in the cluster already", kind_name(kind), name);
    else if (dir.member_count >= FVM_DIR_MEMBERS_MAX)
        rc = fvm_err_set(err, FVM_EINVAL, 0, "cluster", "a cluster has at most %d members", FVM_DIR_MEMBERS_MAX);
    for (size_t i = 0; !rc && address && i < dir.member_count; i++)
        if (strcmp(dir.members[i].address, address) == 0)
            rc = fvm_err_set(err, FVM_EEXIST, 0, "cluster", "node %s has the address %s already", dir.members[i].name,
                             address);
    if (!rc)
        rc = new_member(&dir, kind, name, address, err);
    if (!rc)
        rc = save(&dir, err);
    fvm_dir_fini(&dir);
    close(lock);
    return rc;
}

int fvm_dir_remove(const char *path, enum fvm_dir_kind kind, const char *name, struct fvm_err *err)
{
    struct fvm_dir dir = {0};
    char secret[4400];
    int lock, rc = load_locked(path, &dir, &lock, err);
    if (rc)
        return rc;
    const struct fvm_dir_member *m = fvm_dir_find(&dir, kind, name);
    if (!m) {
        rc = fvm_err_set(err, FVM_ENOENT, 0, "cluster", "no %s %s in the cluster", kind_name(kind), name);
    } else {
        secret_path(&dir, name, secret, sizeof(secret));
        dir.members[m - dir.members] = dir.members[--dir.member_count];
        rc = save(&dir, err);
        if (!rc)
            (void)unlink(secret);
    }
    fvm_dir_fini(&dir);
    close(lock);
    return rc;
}

int fvm_dir_keys(const struct fvm_dir *dir, const struct fvm_dir_member *member, struct fvm_port_keys *ret_keys,
                 struct fvm_err *err)
{
    struct fvm_port_keys keys = {0};
    struct stat st;
    char path[4400], *text = NULL;
    secret_path(dir, member->name, path, sizeof(path));
    int rc = fvm_dir_read_file(path, 4096, &text, NULL, err);
    if (rc)
        return rc;
    text[strcspn(text, "\n")] = 0;
    if (stat(path, &st) == 0 && (st.st_mode & 077))
        rc = fvm_err_set(err, FVM_EPERM, 0, "cluster", "%s: others can read this secret key: chmod 600 it", path);
    else if (!fvm_port_key_valid(text) || fvm_port_public_key(text, keys.public_key))
        rc = fvm_err_set(err, FVM_EBADIMAGE, 0, "cluster", "%s: not a key", path);
    else if (strcmp(keys.public_key, member->public_key))
        rc = fvm_err_set(err, FVM_EAUTH, 0, "cluster", "%s: does not belong to the public key of %s in cluster.json",
                         path, member->name);
    if (!rc) {
        memcpy(keys.secret_key, text, sizeof(keys.secret_key));
        *ret_keys = keys;
    }
    explicit_bzero(text, strlen(text));
    explicit_bzero(&keys, sizeof(keys));
    free(text);
    return rc;
}
