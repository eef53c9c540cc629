/*
 * store_etcd_url.c - where an etcd cluster is, from one line of text.
 *
 *   etcd://10.0.0.1:2379,10.0.0.2:2379,10.0.0.3:2379/fvm/lab?ca=/etc/fvm/etcd-ca.pem&cert=...&key=...
 *
 * With ca= the connections are TLS and the members' certificates are checked; cert= and key= show who we are. Without
 * TLS anybody on the network could move guests, so that is allowed on loopback, or when tls=off says it is meant.
 *
 * Invariant: what comes out can be put into a URL and a key as it is.
 */
#include <arpa/inet.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cluster/store_etcd.h"

static int bad(const char *text, const char *what, struct fvm_err *err)
{
    return fvm_err_set(err, FVM_EINVAL, 0, "cluster",
                       "store etcd:%.160s: %s; say etcd://HOST:PORT[,HOST:PORT...][/PREFIX]?ca=FILE&cert=FILE&key=FILE",
                       text, what);
}

static bool is_loopback(const char *host, size_t len)
{
    char name[64];
    struct in_addr a;
    snprintf(name, sizeof(name), "%.*s", (int)len, host);
    return strcmp(name, "localhost") == 0 || strcmp(name, "[::1]") == 0 ||
           (inet_pton(AF_INET, name, &a) == 1 && (ntohl(a.s_addr) >> 24) == 127);
}

/* "host:port"; the port may be missing (2379). */
static bool take_endpoint(struct fvm_etcd_where *w, const char *text, size_t len, bool tls, bool *ret_loopback)
{
    static const char chars[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-_[]:";
    char name[256];
    if (!len || len >= sizeof(name) || w->count >= FVM_ETCD_ENDPOINTS_MAX)
        return false;
    snprintf(name, sizeof(name), "%.*s", (int)len, text);
    if (strspn(name, chars) != len)
        return false;
    char *colon = strrchr(name, ':'), *end = NULL;
    if (colon && strchr(colon, ']'))
        colon = NULL;
    unsigned long port = colon ? strtoul(colon + 1, &end, 10) : 2379;
    size_t host = colon ? (size_t)(colon - name) : len;
    if (!host || port < 1 || port > 65535 || (colon && (colon[1] < '0' || colon[1] > '9' || *end)) ||
        (name[0] != '[' && memchr(name, ':', host)))
        return false;
    *ret_loopback = *ret_loopback && is_loopback(name, host);
    snprintf(w->base[w->count++], sizeof(w->base[0]), "%s://%.*s:%lu", tls ? "https" : "http", (int)host, name, port);
    return true;
}

static int take_prefix(struct fvm_etcd_where *w, const char *text, const char *path, size_t len, struct fvm_err *err)
{
    while (len && path[len - 1] == '/')
        len--;
    if (len > FVM_ETCD_PREFIX_MAX)
        return bad(text, "the prefix is too long", err);
    for (size_t i = 0; i < len; i++)
        if (path[i] <= ' ' || path[i] > '~')
            return bad(text, "a prefix of printable ASCII is wanted", err);
    memcpy(w->prefix, path, len);
    w->prefix[len] = 0;
    return 0;
}

static int take_options(struct fvm_etcd_where *w, const char *text, const char *options, bool *ret_off,
                        struct fvm_err *err)
{
    const struct {
        const char *name;
        char *to;
        size_t size;
    } files[] = {{"ca=", w->ca, sizeof(w->ca)}, {"cert=", w->cert, sizeof(w->cert)}, {"key=", w->key, sizeof(w->key)}};
    for (const char *p = options; p && *p;) {
        size_t n = strcspn(p, "&"), i = 0;
        while (i < FVM_ARRAY_SIZE(files) && strncmp(p, files[i].name, strlen(files[i].name)))
            i++;
        if (i < FVM_ARRAY_SIZE(files)) {
            size_t skip = strlen(files[i].name);
            if (n == skip || n - skip >= files[i].size)
                return bad(text, "a file's name is missing or too long", err);
            memcpy(files[i].to, p + skip, n - skip);
            files[i].to[n - skip] = 0;
        } else if (n == 7 && strncmp(p, "tls=off", n) == 0) {
            *ret_off = true;
        } else {
            return bad(text, "an option that is not known", err);
        }
        p += n + (p[n] == '&');
    }
    return 0;
}

int fvm_etcd_where_parse(const char *where, struct fvm_etcd_where *ret, struct fvm_err *err)
{
    struct fvm_etcd_where w = {0};
    bool off = false, loopback = true;
    if (strncmp(where, "//", 2))
        return bad(where, "no address", err);
    const char *hosts = where + 2;
    size_t all = strcspn(hosts, "?"), n = strcspn(hosts, "/?");
    int rc = take_options(&w, where, hosts[all] ? hosts + all + 1 : NULL, &off, err);
    if (!rc)
        rc = take_prefix(&w, where, hosts + n, all - n, err);
    if (rc)
        return rc;
    if (!w.cert[0] != !w.key[0])
        return bad(where, "cert= and key= go together", err);
    if (w.cert[0] && !w.ca[0])
        return bad(where, "cert= without ca=", err);
    if (off && w.ca[0])
        return bad(where, "tls=off with certificates", err);
    for (size_t at = 0; at <= n;) {
        size_t len = strcspn(hosts + at, ",/?");
        if (!take_endpoint(&w, hosts + at, len, w.ca[0] != 0, &loopback))
            return bad(where, "a bad address", err);
        at += len + 1;
        if (at > n)
            break;
    }
    if (!w.ca[0] && !off && !loopback)
        return bad(where,
                   "without TLS anybody on the network could move guests: give ca= (or tls=off, if that is meant)",
                   err);
    *ret = w;
    return 0;
}
