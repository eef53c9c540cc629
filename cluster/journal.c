/*
 * journal.c - see journal.h.
 *
 * Invariant: a line is written by one write(2) to a file opened for appending, so lines of several processes never mix.
 */
#include "cluster/journal.h"

#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/log.h"
#include "base/loop.h"
#include "cluster/dir.h"

struct fvm_journal {
    int fd; /* -1: writes nothing */
    char who[16];
    pthread_mutex_t lock; /* last */
    struct fvm_ho_record last;
    struct fvm_record_store real;
};

int fvm_journal_open(const char *path, const char *who, struct fvm_journal **ret_journal)
{
    struct fvm_journal *j = calloc(1, sizeof(*j));
    struct stat st;
    char old[4200];
    if (!j)
        return FVM_ENOMEM;
    snprintf(j->who, sizeof(j->who), "%s", who);
    pthread_mutex_init(&j->lock, NULL);
    if (stat(path, &st) == 0 && st.st_size > FVM_JOURNAL_BYTES_MAX &&
        (size_t)snprintf(old, sizeof(old), "%s.1", path) < sizeof(old))
        (void)rename(path, old);
    j->fd = open(path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (j->fd < 0)
        fvm_log(WARN, "journal.unwritten", "file=%s", path);
    *ret_journal = j;
    return 0;
}

void fvm_journal_close(struct fvm_journal **journal_p)
{
    struct fvm_journal *j = *journal_p;
    *journal_p = NULL;
    if (!j)
        return;
    if (j->fd >= 0)
        close(j->fd);
    pthread_mutex_destroy(&j->lock);
    free(j);
}

void fvm_journal_note(struct fvm_journal *j, const char *what, json_t *more)
{
    json_t *o = json_pack("{s:I, s:i, s:s, s:s}", "wall_ns", (json_int_t)fvm_wall_ns(), "pid", (int)getpid(), "who",
                          j->who, "do", what);
    if (o && more)
        json_object_update(o, more);
    json_decref(more);
    char *text = o ? json_dumps(o, JSON_COMPACT) : NULL, *line = NULL;
    json_decref(o);
    int n = text ? asprintf(&line, "%s\n", text) : -1;
    free(text);
    if (n > 0 && j->fd >= 0 && write(j->fd, line, (size_t)n) != n)
        fvm_log(WARN, "journal.unwritten", "do=%s", what);
    if (n > 0)
        free(line);
}

/* ---- the record, watched ---- */

static json_t *record_json(const struct fvm_ho_record *r)
{
    char id[2 * FVM_HO_ID_BYTES + 1];
    for (int i = 0; i < FVM_HO_ID_BYTES; i++)
        snprintf(id + 2 * i, 3, "%02x", r->mig_id[i]);
    return json_pack("{s:s, s:I, s:s, s:s, s:s, s:s}", "owner", r->owner, "epoch", (json_int_t)r->epoch, "phase",
                     fvm_ho_phase_text(r->phase), "mig_id", id, "from", r->from, "to", r->to);
}

static bool is_news(struct fvm_journal *j, const struct fvm_ho_record *r)
{
    pthread_mutex_lock(&j->lock);
    bool news = j->last.epoch != r->epoch || j->last.phase != r->phase || strcmp(j->last.owner, r->owner) ||
                memcmp(j->last.mig_id, r->mig_id, FVM_HO_ID_BYTES);
    j->last = *r;
    pthread_mutex_unlock(&j->lock);
    return news;
}

static int journal_get(void *ctx, struct fvm_ho_record *ret_record, uint64_t *ret_revision, struct fvm_err *err)
{
    struct fvm_journal *j = ctx;
    int rc = j->real.get(j->real.ctx, ret_record, ret_revision, err);
    if (!rc && is_news(j, ret_record))
        fvm_journal_note(j, "read", record_json(ret_record));
    return rc;
}

static int journal_cas(void *ctx, uint64_t expect_revision, const struct fvm_ho_record *next, struct fvm_err *err)
{
    struct fvm_journal *j = ctx;
    struct fvm_err why = {0};
    fvm_journal_note(j, "want", record_json(next));
    int rc = j->real.cas(j->real.ctx, expect_revision, next, &why);
    if (!rc)
        (void)is_news(j, next);
    fvm_journal_note(j,
                     !rc                   ? "swapped"
                     : rc == FVM_ECONFLICT ? "conflict"
                                           : "unclear",
                     rc ? json_pack("{s:s%}", "text", why.text, strnlen(why.text, 200)) : NULL);
    if (rc && err)
        *err = why;
    return rc;
}

struct fvm_record_store fvm_journal_record(struct fvm_journal *j, struct fvm_record_store record)
{
    j->real = record;
    return (struct fvm_record_store){.get = journal_get, .cas = journal_cas, .ctx = j};
}

/* ---- reading it ---- */

static const char *word(json_t *o, const char *key)
{
    const char *s = json_string_value(json_object_get(o, key));
    return s ? s : "";
}

static bool parse_id(const char *text, uint8_t id[FVM_HO_ID_BYTES])
{
    if (strlen(text) != 2 * FVM_HO_ID_BYTES || strspn(text, "0123456789abcdef") != 2 * FVM_HO_ID_BYTES)
        return false;
    for (int i = 0; i < FVM_HO_ID_BYTES; i++) {
        const char pair[3] = {text[2 * i], text[2 * i + 1], 0};
        id[i] = (uint8_t)strtoul(pair, NULL, 16);
    }
    return true;
}

static void take_line(json_t *o, struct fvm_journal_view *v)
{
    const char *what = word(o, "do"), *who = word(o, "who");
    bool source = strcmp(who, "source") == 0, dest = strcmp(who, "dest") == 0;
    if (strcmp(what, "start") == 0) { /* another process: what was before is over */
        *v = (struct fvm_journal_view){.incoming = strcmp(word(o, "role"), "incoming") == 0};
    } else if (strcmp(what, "arrived") == 0) {
        v->incoming = false;
    } else if (source && strcmp(what, "want") == 0 && strcmp(word(o, "phase"), "migrating") == 0) {
        v->has_mig_id = parse_id(word(o, "mig_id"), v->mig_id);
    } else if ((source || dest) && strcmp(what, "phase") == 0) {
        snprintf(v->phase, sizeof(v->phase), "%.23s", word(o, "phase"));
        v->outcome[0] = 0;
        v->leaving = v->leaving || source;
    } else if ((source || dest) && strcmp(what, "end") == 0) {
        snprintf(v->outcome, sizeof(v->outcome), "%.23s", word(o, "outcome"));
        v->leaving = false;
        if (dest && strcmp(v->outcome, "moved") == 0)
            v->incoming = false;
    }
}

void fvm_journal_parse(const char *text, size_t len, struct fvm_journal_view *ret_view)
{
    struct fvm_journal_view v = {0};
    for (size_t at = 0; at < len;) {
        const char *end = memchr(text + at, '\n', len - at);
        size_t n = end ? (size_t)(end - text) - at : len - at;
        json_t *o = json_loadb(text + at, n, JSON_REJECT_DUPLICATES, NULL);
        if (json_is_object(o))
            take_line(o, &v);
        json_decref(o);
        at += n + 1;
    }
    *ret_view = v;
}

void fvm_journal_read(const char *path, struct fvm_journal_view *ret_view)
{
    char *text = NULL;
    size_t len = 0;
    *ret_view = (struct fvm_journal_view){0};
    if (fvm_dir_read_file(path, 4 * FVM_JOURNAL_BYTES_MAX, &text, &len, NULL))
        return;
    fvm_journal_parse(text, len, ret_view);
    free(text);
}
