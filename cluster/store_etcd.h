/*
 * store_etcd.h - inside the etcd backend: etcd's v3 JSON gateway, spoken with libcurl and jansson.
 *
 *   store_etcd.c        the five calls of store.h, and the breaker that keeps an outage from stopping a daemon
 *   store_etcd_url.c    "etcd://host:port,host:port/prefix?ca=FILE&cert=FILE&key=FILE"
 *   store_etcd_http.c   one request to whichever member answers; the only file that knows libcurl
 *   store_etcd_json.c   requests as text, replies as checked structs; pure
 *   store_etcd_watch.c  the thread that keeps a watch's stream open
 *
 * Facts of the gateway: int64 are strings, false and 0 are left out, keys and values are base64, a watch and a
 * keep-alive are streams of one JSON object per line.
 *
 * Invariant: a swap is sent at most once. Whoever cannot know whether it was carried out says so (store.h: read again).
 */
#ifndef FVM_CLUSTER_STORE_ETCD_H
#define FVM_CLUSTER_STORE_ETCD_H

#include "cluster/store.h"

enum {
    FVM_ETCD_ENDPOINTS_MAX = 9,
    FVM_ETCD_PREFIX_MAX = 200,
    FVM_ETCD_CONNECT_MS = 700,
    FVM_ETCD_TRY_MS = 1500,         /* one attempt of a read; another member is asked then */
    FVM_ETCD_SWAP_MS = 2500,        /* a swap's only attempt */
    FVM_ETCD_PROBE_MS = 300,        /* after an outage: how often it is looked whether it is over */
    FVM_ETCD_REPLY_MAX = 64 << 20,  /* of a list of everything */
    FVM_ETCD_EVENT_MAX = 8 << 20,   /* one line of a watch's stream */
    FVM_ETCD_QUEUE_MAX = 64 * 1024, /* changes nobody has asked for yet; beyond: "list again" */
};

/* ---- store_etcd_url.c ---- */
struct fvm_etcd_where {
    char base[FVM_ETCD_ENDPOINTS_MAX][300]; /* "https://host:port" */
    unsigned count;
    char prefix[FVM_ETCD_PREFIX_MAX + 1];
    char ca[1024], cert[1024], key[1024]; /* files; empty: none */
};
/** `where`: what follows "etcd:". */
int fvm_etcd_where_parse(const char *where, struct fvm_etcd_where *ret, struct fvm_err *err);

/* ---- store_etcd_http.c ---- */
struct fvm_etcd_http; /* used by one thread at a time */
struct fvm_etcd_body {
    char *data; /* NUL-terminated behind len */
    size_t len;
};
enum fvm_etcd_kind {
    FVM_ETCD_READ, /* and everything else that may be repeated */
    FVM_ETCD_SWAP, /* sent once at most */
};
int fvm_etcd_http_create(const struct fvm_etcd_where *where, struct fvm_etcd_http **ret, struct fvm_err *err);
void fvm_etcd_http_destroy(struct fvm_etcd_http **http_p);
/**
 * fvm_etcd_http_post - POST to the member that answered last, or to another one that answers.
 * Returns 0 with the body of a 200; the reply's own failure as a code (fvm_etcd_json_failure); FVM_ETIMEOUT,
 * FVM_ECLOSED or FVM_EIO when no member gave an answer: *ret_away is then true and a swap's fate unknown.
 */
int fvm_etcd_http_post(struct fvm_etcd_http *http, enum fvm_etcd_kind kind, const char *path, const char *body,
                       struct fvm_etcd_body *ret_body, bool *ret_away, struct fvm_err *err);
/** A stream: `line` gets each line of the reply until it returns false, the connection ends or *stop is set. */
int fvm_etcd_http_stream(struct fvm_etcd_http *http, const char *path, const char *body,
                         bool (*line)(void *ctx, const char *data, size_t len), void *ctx, const bool *stop,
                         struct fvm_err *err);

/** From another thread: the stream looks at *stop now. */
void fvm_etcd_http_wake(struct fvm_etcd_http *http);

/* ---- store_etcd_json.c; NUL-terminated text to free, NULL: out of memory ---- */
char *fvm_etcd_json_range(const struct fvm_etcd_where *where, const char *key, bool prefix);
char *fvm_etcd_json_swap(const struct fvm_etcd_where *where, const char *key, uint64_t expect, const char *value,
                         size_t value_len, uint64_t lease);
char *fvm_etcd_json_lease(uint64_t lease, uint64_t ttl_s); /* grant; ttl_s 0: keep alive or revoke */
char *fvm_etcd_json_watch(const struct fvm_etcd_where *where, const char *prefix, uint64_t start_revision);
/* Replies. FVM_EPROTO: not what etcd says. Lists are filled by copies. */
int fvm_etcd_json_take_range(const struct fvm_etcd_where *where, const char *body, size_t len,
                             struct fvm_store_items *items, uint64_t *ret_revision, struct fvm_err *err);
int fvm_etcd_json_take_swap(const char *body, size_t len, bool *ret_swapped, uint64_t *ret_revision,
                            struct fvm_err *err);
int fvm_etcd_json_take_lease(const char *body, size_t len, uint64_t *ret_lease, uint64_t *ret_ttl_s,
                             struct fvm_err *err);
struct fvm_etcd_event {
    bool created, cancelled;
    uint64_t revision, compacted; /* of the store; the oldest revision there still is (cancelled only) */
    struct fvm_store_items items; /* by revision; value NULL: deleted */
};
int fvm_etcd_json_take_watch(const struct fvm_etcd_where *where, const char *line, size_t len,
                             struct fvm_etcd_event *ret_event, struct fvm_err *err);
/** What a reply that is not 200 says: FVM_ENOENT (no such lease), FVM_EAUTH, FVM_ESTATE (compacted), FVM_EIO... */
int fvm_etcd_json_failure(const char *body, size_t len, long status, struct fvm_err *err);

/* ---- store_etcd_watch.c ---- */
struct fvm_etcd_watch;
/** One stream at a time: a call with another prefix or revision than the stream's replaces it. */
int fvm_etcd_watch_create(const struct fvm_etcd_where *where, struct fvm_etcd_watch **ret, struct fvm_err *err);
void fvm_etcd_watch_destroy(struct fvm_etcd_watch **watch_p);
int fvm_etcd_watch_take(struct fvm_etcd_watch *watch, const char *prefix, uint64_t *since, unsigned timeout_ms,
                        struct fvm_store_items *ret_items, struct fvm_err *err);

#endif
