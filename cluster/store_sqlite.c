/*
 * store_sqlite.c - the embedded store: one SQLite file shared by the processes of one machine. Nothing else includes
 * sqlite3.h.
 *
 * Tables: kv (deleted keys stay as tombstones, so that a watch can tell of them), lease, meta (the revision counter and
 * the oldest revision a watch may start from). WAL and a busy time-out let many processes share the file.
 *
 * Invariant: every change happens inside BEGIN IMMEDIATE and takes the next revision there, so revisions are in commit
 * order. Swaps are fsynced (a hand-over must survive a power cut, because disks remember its epoch); renewals of a
 * lease need not be. Lease times are CLOCK_BOOTTIME, one clock for all processes; a reboot ends every lease.
 */
#include "cluster/store.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <pthread.h>
#include <sqlite3.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <time.h>
#include <unistd.h>

enum { WATCH_POLL_MS = 10, TOMBSTONES_KEPT = 4096, APPLICATION_ID = 0x46564d53, SCHEMA = 1 };

enum stmt {
    S_GET,
    S_PUT,
    S_LIST,
    S_CHANGED,
    S_REV,
    S_BUMP,
    S_OLDEST,
    S_LEASE_GET,
    S_LEASE_PUT,
    S_LEASE_DEL,
    S_EXPIRED,
    S_DROP,
    S_PRUNE,
    S_COUNT
};

static const char *const stmt_text[S_COUNT] = {
    [S_GET] = "SELECT key, value, revision, lease FROM kv WHERE key = ?1",
    [S_PUT] = "INSERT INTO kv(key, value, revision, lease) VALUES(?1, ?2, ?3, ?4) ON CONFLICT(key) DO UPDATE SET"
              " value = excluded.value, revision = excluded.revision, lease = excluded.lease",
    [S_LIST] =
        "SELECT key, value, revision, lease FROM kv WHERE key >= ?1 AND key < ?2 AND value IS NOT NULL ORDER BY key",
    [S_CHANGED] =
        "SELECT key, value, revision, lease FROM kv WHERE revision > ?3 AND key >= ?1 AND key < ?2 ORDER BY revision",
    [S_REV] = "SELECT value FROM meta WHERE name = 'revision'",
    [S_BUMP] = "UPDATE meta SET value = value + 1 WHERE name = 'revision' RETURNING value",
    [S_OLDEST] = "SELECT value FROM meta WHERE name = 'oldest'",
    [S_LEASE_GET] = "SELECT id FROM lease WHERE id = ?1",
    [S_LEASE_PUT] = "INSERT INTO lease(id, expires, boot) VALUES(?1, ?2, ?3) ON CONFLICT(id) DO UPDATE SET"
                    " expires = excluded.expires, boot = excluded.boot RETURNING id",
    [S_LEASE_DEL] = "DELETE FROM lease WHERE id = ?1",
    [S_EXPIRED] = "SELECT id FROM lease WHERE expires <= ?1 OR boot != ?2 LIMIT 1",
    [S_DROP] = "SELECT key FROM kv WHERE lease = ?1 AND value IS NOT NULL LIMIT 1",
    [S_PRUNE] = "DELETE FROM kv WHERE value IS NULL AND revision <= ?1",
};

struct sqlite_store {
    pthread_mutex_t lock;
    sqlite3 *db;
    sqlite3_stmt *stmts[S_COUNT];
    char boot[40];
    char *path;
};

static const char schema[] =
    "CREATE TABLE IF NOT EXISTS kv(key TEXT PRIMARY KEY, value BLOB, revision INTEGER NOT NULL, lease INTEGER NOT "
    "NULL) WITHOUT ROWID;"
    "CREATE INDEX IF NOT EXISTS kv_revision ON kv(revision);"
    "CREATE INDEX IF NOT EXISTS kv_lease ON kv(lease) WHERE lease != 0;"
    "CREATE TABLE IF NOT EXISTS lease(id INTEGER PRIMARY KEY AUTOINCREMENT, expires INTEGER NOT NULL, boot TEXT NOT "
    "NULL);"
    "CREATE TABLE IF NOT EXISTS meta(name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;"
    "INSERT OR IGNORE INTO meta VALUES('revision', 0), ('oldest', 0);";

static int fail(const struct sqlite_store *s, const char *what, struct fvm_err *err)
{
    int sys = s->db ? sqlite3_system_errno(s->db) : 0;
    const char *text = s->db ? sqlite3_errmsg(s->db) : "out of memory";
    if (sys == ENOSPC || sys == EDQUOT)
        return fvm_err_set(err, FVM_ENOSPC, sys, "cluster", "store %s: %s: no space left on its file system", s->path,
                           what);
    switch (s->db ? sqlite3_errcode(s->db) : SQLITE_NOMEM) {
    case SQLITE_BUSY:
    case SQLITE_LOCKED:
        return fvm_err_set(err, FVM_EBUSY, sys, "cluster", "store %s: %s: locked by another process for over %d s",
                           s->path, what, FVM_STORE_BUSY_MS / 1000);
    case SQLITE_FULL:
        return fvm_err_set(err, FVM_ENOSPC, sys, "cluster", "store %s: %s: no space left on its file system", s->path,
                           what);
    case SQLITE_NOMEM:
        return fvm_err_set(err, FVM_ENOMEM, sys, "cluster", "store %s: %s: out of memory", s->path, what);
    case SQLITE_CANTOPEN:
        return fvm_err_set(err,
                           sys == ENOENT ? FVM_ENOENT
                           : sys         ? fvm_err_from_errno(sys)
                                         : FVM_EPERM,
                           sys, "cluster", "store %s: cannot open: %s", s->path, sys ? strerror(sys) : text);
    case SQLITE_READONLY:
    case SQLITE_PERM:
    case SQLITE_AUTH:
        return fvm_err_set(err, FVM_EPERM, sys, "cluster", "store %s: %s: not writable by this user", s->path, what);
    case SQLITE_NOTADB:
    case SQLITE_CORRUPT:
        return fvm_err_set(err, FVM_EBADIMAGE, sys, "cluster", "store %s: not a store of fvm, or damaged (%s)", s->path,
                           text);
    default:
        return fvm_err_set(err, FVM_EIO, sys, "cluster", "store %s: %s: %s", s->path, what, text);
    }
}

static int exec(struct sqlite_store *s, const char *sql, const char *what, struct fvm_err *err)
{
    return sqlite3_exec(s->db, sql, NULL, NULL, NULL) == SQLITE_OK ? 0 : fail(s, what, err);
}

static int64_t now_ms(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_BOOTTIME, &ts);
    return (int64_t)ts.tv_sec * 1000 + ts.tv_nsec / 1000000;
}

static void read_boot_id(char *buf, size_t size)
{
    int fd = open("/proc/sys/kernel/random/boot_id", O_RDONLY | O_CLOEXEC);
    ssize_t n = fd >= 0 ? read(fd, buf, size - 1) : -1;
    if (fd >= 0)
        close(fd);
    buf[n > 0 ? n : 0] = 0;
    buf[strcspn(buf, "\n")] = 0;
}

/* SQLite's locks and shared memory are of one kernel: a file shared by hosts would let two of them swap at once. */
static int refuse_network_fs(const char *path, struct fvm_err *err)
{
    char dir[4096];
    snprintf(dir, sizeof(dir), "%s", path);
    char *slash = strrchr(dir, '/');
    if (slash)
        slash[slash == dir ? 1 : 0] = 0;
    struct statfs fs;
    if (statfs(slash ? dir : ".", &fs))
        return fvm_err_set(err, fvm_err_from_errno(errno), errno, "cluster", "store %s: %s", path, strerror(errno));
    uint32_t type = (uint32_t)fs.f_type;
    if (type == NFS_SUPER_MAGIC || type == SMB_SUPER_MAGIC || type == 0xFF534D42u || type == 0xFE534D42u ||
        type == CEPH_SUPER_MAGIC || type == V9FS_MAGIC)
        return fvm_err_set(err, FVM_EUNSUPPORTED, 0, "cluster",
                           "store %s: on a network file system; the embedded store is for the nodes of one machine",
                           path);
    return 0;
}

static int pragma_int(struct sqlite_store *s, const char *sql, int *ret)
{
    sqlite3_stmt *st;
    if (sqlite3_prepare_v2(s->db, sql, -1, &st, NULL) != SQLITE_OK)
        return -1;
    int rc = sqlite3_step(st) == SQLITE_ROW ? 0 : -1;
    if (!rc)
        *ret = sqlite3_column_int(st, 0);
    sqlite3_finalize(st);
    return rc;
}

/* Several processes may meet here on a new file: the schema is made in one immediate transaction, by whoever comes
 * first. */
static int prepare_schema(struct sqlite_store *s, struct fvm_err *err)
{
    int rc = exec(s, "PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL;", "open", err);
    if (rc || (rc = exec(s, "BEGIN IMMEDIATE", "open", err)))
        return rc;
    int app = 0, version = 0, tables = 0;
    if (pragma_int(s, "PRAGMA application_id", &app) || pragma_int(s, "PRAGMA user_version", &version) ||
        pragma_int(s, "SELECT count(*) FROM sqlite_master", &tables)) {
        rc = fail(s, "open", err);
    } else if (tables && app != APPLICATION_ID) {
        rc = fvm_err_set(err, FVM_EBADIMAGE, 0, "cluster", "store %s: an SQLite file of another program", s->path);
    } else if (tables && version != SCHEMA) {
        rc = fvm_err_set(err, FVM_EVERSION, 0, "cluster",
                         "store %s: format %d, this fvm knows %d; upgrade the older side", s->path, version, SCHEMA);
    } else if (!tables) {
        rc = exec(s, schema, "create", err);
        if (!rc)
            rc = exec(s, "PRAGMA application_id=0x46564d53; PRAGMA user_version=1;", "create", err);
    }
    if (rc)
        sqlite3_exec(s->db, "ROLLBACK", NULL, NULL, NULL);
    else
        rc = exec(s, "COMMIT", "open", err);
    return rc;
}

static void sqlite_close(void *self)
{
    struct sqlite_store *s = self;
    for (int i = 0; i < S_COUNT; i++)
        sqlite3_finalize(s->stmts[i]);
    sqlite3_close(s->db);
    pthread_mutex_destroy(&s->lock);
    free(s->path);
    free(s);
}

static int sqlite_open(const char *where, void **ret_self, struct fvm_err *err)
{
    int rc = refuse_network_fs(where, err);
    if (rc)
        return rc;
    struct sqlite_store *s = calloc(1, sizeof(*s));
    if (!s || !(s->path = strdup(where))) {
        free(s);
        return fvm_err_set(err, FVM_ENOMEM, 0, "cluster", "store: out of memory");
    }
    pthread_mutex_init(&s->lock, NULL);
    read_boot_id(s->boot, sizeof(s->boot));
    /* 0600 whatever the umask: who can write here can move guests. Never opened twice by us: closing a second
     * descriptor of the file would drop the locks of another handle in this process. */
    int fd = open(where, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (fd < 0 && errno != EEXIST) {
        rc = fvm_err_set(err, fvm_err_from_errno(errno), errno, "cluster", "store %s: %s", where, strerror(errno));
        sqlite_close(s);
        return rc;
    }
    if (fd >= 0)
        close(fd);
    if (sqlite3_open_v2(where, &s->db, SQLITE_OPEN_READWRITE | SQLITE_OPEN_FULLMUTEX, NULL) != SQLITE_OK)
        rc = fail(s, "open", err);
    if (!rc) {
        sqlite3_busy_timeout(s->db, FVM_STORE_BUSY_MS);
        rc = prepare_schema(s, err);
    }
    for (int i = 0; !rc && i < S_COUNT; i++)
        if (sqlite3_prepare_v3(s->db, stmt_text[i], -1, SQLITE_PREPARE_PERSISTENT, &s->stmts[i], NULL) != SQLITE_OK)
            rc = fail(s, "prepare", err);
    if (rc) {
        sqlite_close(s);
        return rc;
    }
    *ret_self = s;
    return 0;
}

static sqlite3_stmt *use(struct sqlite_store *s, enum stmt which)
{
    sqlite3_stmt *st = s->stmts[which];
    sqlite3_reset(st);
    sqlite3_clear_bindings(st);
    return st;
}

/* A statement left unreset would keep its read transaction open and every later read would see the past. */
static void done(sqlite3_stmt *st) { sqlite3_reset(st); }

static int read_int(struct sqlite_store *s, enum stmt which, uint64_t *ret, struct fvm_err *err)
{
    sqlite3_stmt *st = use(s, which);
    int rc = sqlite3_step(st) == SQLITE_ROW ? 0 : fail(s, "read", err);
    if (!rc)
        *ret = (uint64_t)sqlite3_column_int64(st, 0);
    done(st);
    return rc;
}

/* BUMP returns one row and must run to its end for the update to be complete. */
static int next_revision(struct sqlite_store *s, uint64_t *ret, struct fvm_err *err)
{
    sqlite3_stmt *st = use(s, S_BUMP);
    int rc = sqlite3_step(st) == SQLITE_ROW ? 0 : fail(s, "write", err);
    if (!rc) {
        *ret = (uint64_t)sqlite3_column_int64(st, 0);
        if (sqlite3_step(st) != SQLITE_DONE)
            rc = fail(s, "write", err);
    }
    done(st);
    return rc;
}

static int put(struct sqlite_store *s, const char *key, const char *value, size_t len, uint64_t lease,
               uint64_t *ret_revision, struct fvm_err *err)
{
    int rc = next_revision(s, ret_revision, err);
    if (rc)
        return rc;
    sqlite3_stmt *st = use(s, S_PUT);
    sqlite3_bind_text(st, 1, key, -1, SQLITE_STATIC);
    if (value)
        sqlite3_bind_blob64(st, 2, value, len, SQLITE_STATIC);
    sqlite3_bind_int64(st, 3, (int64_t)*ret_revision);
    sqlite3_bind_int64(st, 4, (int64_t)lease);
    rc = sqlite3_step(st) == SQLITE_DONE ? 0 : fail(s, "write", err);
    done(st);
    return rc;
}

/* 1: row read into ret_item (may be a tombstone), 0: no row. */
static int take_row(struct sqlite_store *s, sqlite3_stmt *st, struct fvm_store_items *items, struct fvm_err *err)
{
    int step = sqlite3_step(st);
    if (step == SQLITE_DONE)
        return 0;
    if (step != SQLITE_ROW)
        return fail(s, "read", err);
    const char *value = NULL;
    static const char nothing[1] = "";
    if (sqlite3_column_type(st, 1) != SQLITE_NULL) {
        value = sqlite3_column_blob(st, 1);
        value = value ? value : nothing;
    }
    if (!fvm_store_items_add(items, (const char *)sqlite3_column_text(st, 0), value,
                             (size_t)sqlite3_column_bytes(st, 1), (uint64_t)sqlite3_column_int64(st, 2),
                             (uint64_t)sqlite3_column_int64(st, 3)))
        return fvm_err_set(err, FVM_ENOMEM, 0, "cluster", "store: out of memory");
    return 1;
}

static int delete_keys_of(struct sqlite_store *s, uint64_t lease, struct fvm_err *err)
{
    for (;;) {
        sqlite3_stmt *st = use(s, S_DROP);
        sqlite3_bind_int64(st, 1, (int64_t)lease);
        int step = sqlite3_step(st);
        char key[FVM_STORE_KEY_MAX + 1];
        if (step == SQLITE_ROW)
            snprintf(key, sizeof(key), "%s", (const char *)sqlite3_column_text(st, 0));
        done(st);
        if (step == SQLITE_DONE)
            break;
        uint64_t revision;
        int rc = step == SQLITE_ROW ? put(s, key, NULL, 0, 0, &revision, err) : fail(s, "read", err);
        if (rc)
            return rc;
    }
    sqlite3_stmt *st = use(s, S_LEASE_DEL);
    sqlite3_bind_int64(st, 1, (int64_t)lease);
    int rc = sqlite3_step(st) == SQLITE_DONE ? 0 : fail(s, "write", err);
    done(st);
    return rc;
}

/* 1: *ret_lease has run out; 0: none has. */
static int find_expired(struct sqlite_store *s, uint64_t *ret_lease, struct fvm_err *err)
{
    sqlite3_stmt *st = use(s, S_EXPIRED);
    sqlite3_bind_int64(st, 1, now_ms());
    sqlite3_bind_text(st, 2, s->boot, -1, SQLITE_STATIC);
    int step = sqlite3_step(st);
    int rc = step == SQLITE_ROW ? 1 : step == SQLITE_DONE ? 0 : fail(s, "read", err);
    if (rc == 1)
        *ret_lease = (uint64_t)sqlite3_column_int64(st, 0);
    done(st);
    return rc;
}

static int begin(struct sqlite_store *s, struct fvm_err *err) { return exec(s, "BEGIN IMMEDIATE", "write", err); }

static int finish(struct sqlite_store *s, int rc, struct fvm_err *err)
{
    if (!rc)
        rc = exec(s, "COMMIT", "commit", err);
    if (rc)
        sqlite3_exec(s->db, "ROLLBACK", NULL, NULL, NULL);
    return rc;
}

/* Old tombstones go in batches; a watch that starts before the cut is told to list again. */
static int prune(struct sqlite_store *s, uint64_t revision, struct fvm_err *err)
{
    if (revision % TOMBSTONES_KEPT || revision <= TOMBSTONES_KEPT)
        return 0;
    sqlite3_stmt *st = use(s, S_PRUNE);
    sqlite3_bind_int64(st, 1, (int64_t)(revision - TOMBSTONES_KEPT));
    int rc = sqlite3_step(st) == SQLITE_DONE ? 0 : fail(s, "prune", err);
    done(st);
    char sql[96];
    snprintf(sql, sizeof(sql), "UPDATE meta SET value = %llu WHERE name = 'oldest'",
             (unsigned long long)(revision - TOMBSTONES_KEPT));
    return rc ? rc : exec(s, sql, "prune", err);
}

/* Whoever looks first removes what has expired; called outside a transaction. */
static int expire(struct sqlite_store *s, struct fvm_err *err)
{
    uint64_t lease;
    int rc = find_expired(s, &lease, err);
    if (rc <= 0)
        return rc;
    if ((rc = begin(s, err)))
        return rc;
    while ((rc = find_expired(s, &lease, err)) == 1)
        if ((rc = delete_keys_of(s, lease, err)))
            break;
    return finish(s, rc, err);
}

static int sqlite_get(void *self, const char *key, struct fvm_store_item *ret_item, struct fvm_err *err)
{
    struct sqlite_store *s = self;
    struct fvm_store_items items = {0};
    pthread_mutex_lock(&s->lock);
    int rc = expire(s, err);
    if (!rc) {
        sqlite3_stmt *st = use(s, S_GET);
        sqlite3_bind_text(st, 1, key, -1, SQLITE_STATIC);
        rc = take_row(s, st, &items, err);
        done(st);
        if (rc >= 0)
            rc = rc == 1 && items.items[0].value ? 0
                                                 : fvm_err_set(err, FVM_ENOENT, 0, "cluster", "store: no key %s", key);
    }
    pthread_mutex_unlock(&s->lock);
    if (!rc) {
        *ret_item = items.items[0];
        items.count = 0;
    }
    fvm_store_items_fini(&items);
    return rc;
}

static int check_swap(struct sqlite_store *s, const char *key, uint64_t expect, uint64_t lease, struct fvm_err *err)
{
    struct fvm_store_items items = {0};
    sqlite3_stmt *st = use(s, S_GET);
    sqlite3_bind_text(st, 1, key, -1, SQLITE_STATIC);
    int rc = take_row(s, st, &items, err);
    done(st);
    uint64_t present = rc == 1 && items.items[0].value ? items.items[0].revision : 0;
    fvm_store_items_fini(&items);
    if (rc < 0)
        return rc;
    if (present != expect)
        return fvm_err_set(err, FVM_ECONFLICT, 0, "cluster", "store: %s is at revision %llu, expected %llu", key,
                           (unsigned long long)present, (unsigned long long)expect);
    if (!lease)
        return 0;
    st = use(s, S_LEASE_GET);
    sqlite3_bind_int64(st, 1, (int64_t)lease);
    int step = sqlite3_step(st);
    done(st);
    if (step == SQLITE_ROW)
        return 0;
    return step == SQLITE_DONE
               ? fvm_err_set(err, FVM_ENOENT, 0, "cluster", "store: lease %llu has expired", (unsigned long long)lease)
               : fail(s, "read", err);
}

static int sqlite_cas(void *self, const char *key, uint64_t expect, const char *value, size_t value_len, uint64_t lease,
                      uint64_t *ret_revision, struct fvm_err *err)
{
    struct sqlite_store *s = self;
    pthread_mutex_lock(&s->lock);
    int rc = expire(s, err);
    if (!rc && !(rc = begin(s, err))) {
        rc = check_swap(s, key, expect, lease, err);
        if (!rc && (expect || value)) { /* deleting what is not there changes nothing */
            rc = put(s, key, value, value_len, lease, ret_revision, err);
            if (!rc)
                rc = prune(s, *ret_revision, err);
        }
        rc = finish(s, rc, err);
    }
    pthread_mutex_unlock(&s->lock);
    return rc;
}

static int write_lease(struct sqlite_store *s, uint64_t *lease, uint64_t ttl_ms, struct fvm_err *err)
{
    if (*lease) {
        sqlite3_stmt *st = use(s, S_LEASE_GET);
        sqlite3_bind_int64(st, 1, (int64_t)*lease);
        int step = sqlite3_step(st);
        done(st);
        if (step != SQLITE_ROW)
            return step == SQLITE_DONE ? fvm_err_set(err, FVM_ENOENT, 0, "cluster", "store: lease %llu has expired",
                                                     (unsigned long long)*lease)
                                       : fail(s, "read", err);
        if (!ttl_ms)
            return delete_keys_of(s, *lease, err);
    }
    sqlite3_stmt *st = use(s, S_LEASE_PUT);
    if (*lease)
        sqlite3_bind_int64(st, 1, (int64_t)*lease);
    sqlite3_bind_int64(st, 2, now_ms() + (int64_t)FVM_MIN(ttl_ms, (uint64_t)INT32_MAX));
    sqlite3_bind_text(st, 3, s->boot, -1, SQLITE_STATIC);
    int rc = 0;
    if (sqlite3_step(st) == SQLITE_ROW) {
        *lease = (uint64_t)sqlite3_column_int64(st, 0);
        if (sqlite3_step(st) != SQLITE_DONE)
            rc = fail(s, "write", err);
    } else {
        rc = fail(s, "write", err);
    }
    done(st);
    return rc;
}

static int sqlite_lease(void *self, uint64_t *lease, uint64_t ttl_ms, struct fvm_err *err)
{
    struct sqlite_store *s = self;
    uint64_t id = *lease;
    pthread_mutex_lock(&s->lock);
    int rc = expire(s, err);
    if (!rc)
        rc = exec(s, "PRAGMA synchronous=NORMAL", "lease", err);
    if (!rc && !(rc = begin(s, err))) {
        rc = write_lease(s, &id, ttl_ms, err);
        rc = finish(s, rc, err);
    }
    sqlite3_exec(s->db, "PRAGMA synchronous=FULL", NULL, NULL, NULL);
    pthread_mutex_unlock(&s->lock);
    if (!rc)
        *lease = id;
    return rc;
}

/* Keys are ASCII, so prefix + 0x7f is above every key that starts with it. */
static void bind_prefix(sqlite3_stmt *st, const char *prefix)
{
    char end[FVM_STORE_KEY_MAX + 2];
    snprintf(end, sizeof(end), "%s\x7f", prefix);
    sqlite3_bind_text(st, 1, prefix, -1, SQLITE_STATIC);
    sqlite3_bind_text(st, 2, end, -1, SQLITE_TRANSIENT);
}

static int collect(struct sqlite_store *s, enum stmt which, const char *prefix, uint64_t since,
                   struct fvm_store_items *items, struct fvm_err *err)
{
    sqlite3_stmt *st = use(s, which);
    bind_prefix(st, prefix);
    if (which == S_CHANGED)
        sqlite3_bind_int64(st, 3, (int64_t)since);
    int rc;
    while ((rc = take_row(s, st, items, err)) == 1)
        ;
    done(st);
    return rc;
}

static int sqlite_list(void *self, const char *prefix, struct fvm_store_items *ret_items, uint64_t *ret_revision,
                       struct fvm_err *err)
{
    struct sqlite_store *s = self;
    pthread_mutex_lock(&s->lock);
    int rc = expire(s, err);
    if (!rc && !(rc = exec(s, "BEGIN", "read", err))) { /* one snapshot for both reads */
        rc = read_int(s, S_REV, ret_revision, err);
        if (!rc)
            rc = collect(s, S_LIST, prefix, 0, ret_items, err);
        sqlite3_exec(s->db, "COMMIT", NULL, NULL, NULL);
    }
    pthread_mutex_unlock(&s->lock);
    return rc;
}

/* One look: the changes after *since, if any. */
static int look(struct sqlite_store *s, const char *prefix, uint64_t *since, struct fvm_store_items *items,
                struct fvm_err *err)
{
    uint64_t revision = 0, oldest = 0;
    pthread_mutex_lock(&s->lock);
    int rc = expire(s, err);
    if (!rc && !(rc = exec(s, "BEGIN", "read", err))) {
        rc = read_int(s, S_REV, &revision, err);
        if (!rc)
            rc = read_int(s, S_OLDEST, &oldest, err);
        if (!rc && *since < oldest)
            rc = fvm_err_set(err, FVM_ESTATE, 0, "cluster", "store: revision %llu is too old to watch from, list again",
                             (unsigned long long)*since);
        if (!rc && revision != *since)
            rc = collect(s, S_CHANGED, prefix, *since, items, err);
        sqlite3_exec(s->db, "COMMIT", NULL, NULL, NULL);
        if (!rc)
            *since = revision;
    }
    pthread_mutex_unlock(&s->lock);
    return rc;
}

static int sqlite_watch(void *self, const char *prefix, uint64_t *since, unsigned timeout_ms,
                        struct fvm_store_items *ret_items, struct fvm_err *err)
{
    struct sqlite_store *s = self;
    int64_t end = now_ms() + timeout_ms;
    for (;;) {
        int rc = look(s, prefix, since, ret_items, err);
        int64_t left = end - now_ms();
        if (rc || ret_items->count || left <= 0)
            return rc;
        int64_t nap = FVM_MIN(left, (int64_t)WATCH_POLL_MS);
        nanosleep(&(struct timespec){.tv_nsec = nap * 1000000}, NULL);
    }
}

const struct fvm_store_ops fvm_store_sqlite_ops = {
    .scheme = "sqlite",
    .open = sqlite_open,
    .close = sqlite_close,
    .get = sqlite_get,
    .cas = sqlite_cas,
    .lease = sqlite_lease,
    .list = sqlite_list,
    .watch = sqlite_watch,
};
