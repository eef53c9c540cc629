/*
 * store_etcd_http.c - one request to one etcd member, another member when that one does not answer. Nothing else
 * includes curl.h.
 *
 * The trap: libcurl sends a request again by itself when a kept connection turns out to be dead. A swap that was
 * carried out before the connection died would be sent twice, and the second answer would say "somebody else changed
 * it". So every sending is counted where libcurl announces it (on_send), and a swap's second one is refused.
 *
 * Invariant: when a swap ends without an answer and was announced as sent, *ret_away says that its fate is unknown; no
 * other member is asked.
 */
#include <curl/curl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "base/loop.h"
#include "cluster/store_etcd.h"

struct fvm_etcd_http {
    struct fvm_etcd_where where;
    CURL *curl;
    CURLM *multi; /* streams: can be woken */
    struct curl_slist *headers;
    unsigned current; /* the member that answered last */
    char why[CURL_ERROR_SIZE];
    /* of the request under way */
    enum fvm_etcd_kind kind;
    unsigned sent;
    struct fvm_etcd_body body;
    size_t body_max;
    bool too_large;
    bool (*line)(void *ctx, const char *data, size_t len); /* a stream */
    void *ctx;
};

static void init_once(void) { (void)curl_global_init(CURL_GLOBAL_DEFAULT); }

static int on_send(void *ctx, char *remote_ip, char *local_ip, int remote_port, int local_port)
{
    struct fvm_etcd_http *h = ctx;
    (void)remote_ip, (void)local_ip, (void)remote_port, (void)local_port;
    return h->sent++ && h->kind == FVM_ETCD_SWAP ? CURL_PREREQFUNC_ABORT : CURL_PREREQFUNC_OK;
}

/* A member behind a cut cable is noticed in seconds, also by a stream on which nothing is expected. */
static int on_socket(void *ctx, curl_socket_t fd, curlsocktype purpose)
{
    const int on = 1, idle_s = 2, interval_s = 1, lost_ms = 5000;
    (void)ctx, (void)purpose;
    (void)setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof(on));
    (void)setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &idle_s, sizeof(idle_s));
    (void)setsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, &interval_s, sizeof(interval_s));
    (void)setsockopt(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &lost_ms, sizeof(lost_ms));
    return CURL_SOCKOPT_OK;
}

/* A stream's lines are handed on as they come, the rest stays in the body. */
static bool hand_on_lines(struct fvm_etcd_http *h)
{
    struct fvm_etcd_body *b = &h->body;
    size_t done = 0;
    char *end;
    while (b->len > done && (end = memchr(b->data + done, '\n', b->len - done))) {
        size_t len = (size_t)(end - b->data) - done;
        if (len && !h->line(h->ctx, b->data + done, len))
            return false;
        done += len + 1;
    }
    memmove(b->data, b->data + done, b->len - done);
    b->len -= done;
    b->data[b->len] = 0;
    return true;
}

static size_t on_data(char *data, size_t size, size_t count, void *ctx)
{
    struct fvm_etcd_http *h = ctx;
    size_t len = size * count;
    h->too_large = h->body.len + len > h->body_max;
    char *grown = h->too_large ? NULL : realloc(h->body.data, h->body.len + len + 1);
    if (!grown)
        return 0;
    h->body.data = grown;
    memcpy(grown + h->body.len, data, len);
    h->body.len += len;
    grown[h->body.len] = 0;
    return h->line && !hand_on_lines(h) ? 0 : len;
}

static void set_up(struct fvm_etcd_http *h)
{
    CURL *c = h->curl;
    curl_easy_setopt(c, CURLOPT_ERRORBUFFER, h->why);
    curl_easy_setopt(c, CURLOPT_NOSIGNAL, 1L);
    curl_easy_setopt(c, CURLOPT_PROXY, ""); /* whatever the environment says */
    curl_easy_setopt(c, CURLOPT_NETRC, (long)CURL_NETRC_IGNORED);
    curl_easy_setopt(c, CURLOPT_PROTOCOLS_STR, "http,https");
    curl_easy_setopt(c, CURLOPT_HTTP_VERSION, (long)CURL_HTTP_VERSION_1_1);
    curl_easy_setopt(c, CURLOPT_HTTPHEADER, h->headers);
    curl_easy_setopt(c, CURLOPT_TCP_NODELAY, 1L);
    curl_easy_setopt(c, CURLOPT_CONNECTTIMEOUT_MS, (long)FVM_ETCD_CONNECT_MS);
    curl_easy_setopt(c, CURLOPT_MAXAGE_CONN, 3600L);
    curl_easy_setopt(c, CURLOPT_SOCKOPTFUNCTION, on_socket);
    curl_easy_setopt(c, CURLOPT_PREREQFUNCTION, on_send);
    curl_easy_setopt(c, CURLOPT_PREREQDATA, h);
    curl_easy_setopt(c, CURLOPT_WRITEFUNCTION, on_data);
    curl_easy_setopt(c, CURLOPT_WRITEDATA, h);
    if (h->where.ca[0]) {
        curl_easy_setopt(c, CURLOPT_CAINFO, h->where.ca);
        curl_easy_setopt(c, CURLOPT_CAPATH, NULL);
        curl_easy_setopt(c, CURLOPT_SSLVERSION, (long)CURL_SSLVERSION_TLSv1_2);
    }
    if (h->where.cert[0]) {
        curl_easy_setopt(c, CURLOPT_SSLCERT, h->where.cert);
        curl_easy_setopt(c, CURLOPT_SSLKEY, h->where.key);
    }
}

int fvm_etcd_http_create(const struct fvm_etcd_where *where, struct fvm_etcd_http **ret, struct fvm_err *err)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, init_once);
    struct fvm_etcd_http *h = calloc(1, sizeof(*h));
    if (!h)
        return fvm_err_set(err, FVM_ENOMEM, 0, "cluster", "store: out of memory");
    h->where = *where;
    h->curl = curl_easy_init();
    h->multi = curl_multi_init();
    /* hasleader: a member that is cut off from the others says so at once instead of letting us wait */
    h->headers = curl_slist_append(NULL, "Content-Type: application/json");
    struct curl_slist *more = h->headers ? curl_slist_append(h->headers, "Grpc-Metadata-hasleader: true") : NULL;
    more = more ? curl_slist_append(more, "Expect:") : NULL;
    if (!h->curl || !h->multi || !more) {
        fvm_etcd_http_destroy(&h);
        return fvm_err_set(err, FVM_ENOMEM, 0, "cluster", "store: out of memory");
    }
    set_up(h);
    *ret = h;
    return 0;
}

void fvm_etcd_http_destroy(struct fvm_etcd_http **http_p)
{
    struct fvm_etcd_http *h = *http_p;
    *http_p = NULL;
    if (!h)
        return;
    curl_easy_cleanup(h->curl);
    (void)curl_multi_cleanup(h->multi);
    curl_slist_free_all(h->headers);
    free(h->body.data);
    free(h);
}

static void prepare(struct fvm_etcd_http *h, enum fvm_etcd_kind kind, const char *path, const char *body,
                    long timeout_ms)
{
    char url[400];
    snprintf(url, sizeof(url), "%s%s", h->where.base[h->current], path);
    h->kind = kind;
    h->sent = 0;
    h->why[0] = 0;
    h->too_large = false;
    free(h->body.data);
    h->body = (struct fvm_etcd_body){0};
    curl_easy_setopt(h->curl, CURLOPT_URL, url);
    curl_easy_setopt(h->curl, CURLOPT_POSTFIELDS, body);
    curl_easy_setopt(h->curl, CURLOPT_TIMEOUT_MS, timeout_ms);
}

static int fail(struct fvm_etcd_http *h, CURLcode code, struct fvm_err *err)
{
    const char *host = h->where.base[h->current], *why = h->why[0] ? h->why : curl_easy_strerror(code);
    if (h->too_large)
        return fvm_err_set(err, FVM_EPROTO, 0, "cluster", "store: %s: an answer of more than %zu bytes", host,
                           h->body_max);
    switch (code) {
    case CURLE_PEER_FAILED_VERIFICATION:
    case CURLE_SSL_CERTPROBLEM:
    case CURLE_SSL_CACERT_BADFILE:
    case CURLE_SSL_CONNECT_ERROR:
    case CURLE_SSL_ISSUER_ERROR:
        return fvm_err_set(err, FVM_EAUTH, 0, "cluster", "store: %s: %s; check ca=, cert= and key=", host, why);
    case CURLE_OPERATION_TIMEDOUT:
        return fvm_err_set(err, FVM_ETIMEOUT, 0, "cluster", "store: %s does not answer (%s)", host, why);
    case CURLE_COULDNT_CONNECT:
    case CURLE_COULDNT_RESOLVE_HOST:
        return fvm_err_set(err, FVM_ECLOSED, 0, "cluster", "store: %s cannot be reached (%s)", host, why);
    default:
        return fvm_err_set(err, FVM_EIO, 0, "cluster", "store: %s: %s", host, why);
    }
}

/* An answer that only says "ask somebody else": no leader, shutting down, overloaded. */
static bool unavailable(struct fvm_etcd_http *h, long status)
{
    return status >= 500 && h->body.data && strstr(h->body.data, "\"code\":5") == NULL &&
           (status == 502 || status == 503 || status == 504 || strstr(h->body.data, "no leader") ||
            strstr(h->body.data, "timed out") || strstr(h->body.data, "leader changed") ||
            strstr(h->body.data, "server stopped") || strstr(h->body.data, "unavailable"));
}

int fvm_etcd_http_post(struct fvm_etcd_http *h, enum fvm_etcd_kind kind, const char *path, const char *body,
                       struct fvm_etcd_body *ret_body, bool *ret_away, struct fvm_err *err)
{
    uint64_t end = fvm_now_ns() + (uint64_t)FVM_STORE_BUSY_MS * 1000000;
    int rc = 0;
    *ret_away = false;
    h->line = NULL;
    h->body_max = FVM_ETCD_REPLY_MAX;
    for (unsigned i = 0; i < h->where.count; i++, h->current = (h->current + 1) % h->where.count) {
        uint64_t now = fvm_now_ns();
        if (i && now >= end)
            break;
        long left = i ? (long)((end - now) / 1000000) + 1 : FVM_STORE_BUSY_MS, status = 0;
        long most = kind == FVM_ETCD_SWAP ? FVM_ETCD_SWAP_MS : FVM_ETCD_TRY_MS;
        prepare(h, kind, path, body, FVM_MIN(left, most));
        CURLcode code = curl_easy_perform(h->curl);
        if (code == CURLE_OK)
            curl_easy_getinfo(h->curl, CURLINFO_RESPONSE_CODE, &status);
        *ret_away = code != CURLE_OK || unavailable(h, status);
        if (!*ret_away && status == 200) {
            *ret_body = h->body;
            h->body = (struct fvm_etcd_body){0};
            return 0;
        }
        rc = code ? fail(h, code, err)
                  : fvm_etcd_json_failure(h->body.data ? h->body.data : "", h->body.len, status, err);
        if (!*ret_away || h->too_large)
            return rc;
        if (kind == FVM_ETCD_SWAP && h->sent) { /* the next call starts elsewhere */
            h->current = (h->current + 1) % h->where.count;
            return rc;
        }
    }
    return rc;
}

/* Until the stream ends, or *stop is seen. */
static CURLcode follow(struct fvm_etcd_http *h, const bool *stop)
{
    int running = 1, left;
    while (running && !__atomic_load_n(stop, __ATOMIC_ACQUIRE)) {
        if (curl_multi_perform(h->multi, &running) != CURLM_OK)
            return CURLE_FAILED_INIT;
        if (running)
            (void)curl_multi_poll(h->multi, NULL, 0, 1000, NULL);
    }
    const CURLMsg *m = curl_multi_info_read(h->multi, &left);
    return m && m->msg == CURLMSG_DONE ? m->data.result : CURLE_ABORTED_BY_CALLBACK;
}

int fvm_etcd_http_stream(struct fvm_etcd_http *h, const char *path, const char *body,
                         bool (*line)(void *ctx, const char *data, size_t len), void *ctx, const bool *stop,
                         struct fvm_err *err)
{
    h->line = line;
    h->ctx = ctx;
    h->body_max = FVM_ETCD_EVENT_MAX;
    prepare(h, FVM_ETCD_READ, path, body, 0);
    if (curl_multi_add_handle(h->multi, h->curl) != CURLM_OK)
        return fvm_err_set(err, FVM_ENOMEM, 0, "cluster", "store: out of memory");
    CURLcode code = follow(h, stop);
    int rc = code == CURLE_OK
                 ? fvm_err_set(err, FVM_ECLOSED, 0, "cluster", "store: %s ended a watch", h->where.base[h->current])
                 : fail(h, code, err);
    (void)curl_multi_remove_handle(h->multi, h->curl);
    h->current = (h->current + 1) % h->where.count;
    return rc;
}

void fvm_etcd_http_wake(struct fvm_etcd_http *h) { (void)curl_multi_wakeup(h->multi); }
