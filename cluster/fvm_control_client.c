/*
 * fvm_control_client.c - asking a VM's control socket one thing, as the command line does. See fvm_control.h.
 *
 * The server is trusted no more than a client: its line has a bound, its JSON is checked for shape.
 */
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "cluster/fvm_control.h"
#include "vmm/vm_unix.h"

static const char room[] = "control";

static int send_all(int fd, const char *bytes, size_t len, struct fvm_err *err)
{
    while (len) {
        ssize_t n = send(fd, bytes, len, MSG_NOSIGNAL);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return fvm_err_set(err, fvm_err_from_errno(errno), errno, room, "sending the request: %s", strerror(errno));
        bytes += n;
        len -= (size_t)n;
    }
    return 0;
}

/* 1: an event or somebody else's reply, go on. */
static int judge(json_t *message, int64_t id, json_t **ret_result, struct fvm_err *err)
{
    if (json_object_get(message, "event"))
        return 1;
    const json_t *got = json_object_get(message, "id");
    if (json_is_integer(got) && json_integer_value(got) != id)
        return 1;
    if (json_is_true(json_object_get(message, "ok"))) {
        json_t *result = json_object_get(message, "result");
        *ret_result = result ? json_incref(result) : json_object();
        return 0;
    }
    const char *text = json_string_value(json_object_get(message, "error"));
    json_int_t code = json_integer_value(json_object_get(message, "code"));
    bool known = code < 0 && code > -FVM_EPOS_END_;
    return fvm_err_set(err, known ? (int)code : FVM_EPROTO, 0, room, "%s", text ? text : "refused without a reason");
}

struct reader {
    char *buf; /* FVM_CONTROL_OUT_MAX */
    size_t len;
};

/* One line, parsed; *ret NULL: no whole line yet. */
static int take_line(struct reader *rd, json_t **ret, struct fvm_err *err)
{
    char *nl = memchr(rd->buf, '\n', rd->len);
    *ret = NULL;
    if (!nl)
        return rd->len < FVM_CONTROL_OUT_MAX ? 0 : fvm_err_set(err, FVM_EPROTO, 0, room, "the reply is too long");
    size_t len = (size_t)(nl - rd->buf);
    *ret = json_loadb(rd->buf, len, 0, NULL);
    rd->len -= len + 1;
    memmove(rd->buf, nl + 1, rd->len);
    if (json_is_object(*ret))
        return 0;
    json_decref(*ret);
    *ret = NULL;
    return fvm_err_set(err, FVM_EPROTO, 0, room, "the reply is not a JSON object");
}

static int wait_reply(int fd, int64_t id, int timeout_ms, json_t **ret_result, struct fvm_err *err)
{
    struct reader rd = {.buf = malloc(FVM_CONTROL_OUT_MAX)};
    uint64_t end = timeout_ms < 0 ? UINT64_MAX : fvm_now_ns() + (uint64_t)timeout_ms * 1000000u;
    int r = rd.buf ? 1 : fvm_err_set(err, FVM_ENOMEM, 0, room, "out of memory");
    while (r == 1) {
        json_t *message;
        int t = take_line(&rd, &message, err);
        if (t || message) {
            r = t ? t : judge(message, id, ret_result, err);
            json_decref(message);
            continue;
        }
        uint64_t now = fvm_now_ns();
        struct pollfd p = {.fd = fd, .events = POLLIN};
        int n = now >= end ? 0 : poll(&p, 1, timeout_ms < 0 ? -1 : (int)((end - now) / 1000000u) + 1);
        if (n == 0)
            r = fvm_err_set(err, FVM_ETIMEOUT, 0, room, "no reply in %d ms", timeout_ms);
        if (n <= 0)
            continue;
        ssize_t got = read(fd, rd.buf + rd.len, FVM_CONTROL_OUT_MAX - rd.len);
        if (got > 0)
            rd.len += (size_t)got;
        else if (got == 0 || errno != EINTR)
            r = fvm_err_set(err, FVM_ECLOSED, 0, room, "the VM closed the connection before it answered");
    }
    free(rd.buf);
    return r;
}

int fvm_control_ask(const char *path, json_t *request, int timeout_ms, json_t **ret_result, struct fvm_err *err)
{
    int fd, r = fvm_unix_connect(path, &fd, err);
    if (r)
        return r;
    json_object_set_new(request, "id", json_integer(1));
    char *text = json_dumps(request, JSON_COMPACT);
    if (!text)
        r = fvm_err_set(err, FVM_ENOMEM, 0, room, "out of memory");
    if (!r)
        r = send_all(fd, text, strlen(text), err);
    if (!r)
        r = send_all(fd, "\n", 1, err);
    if (!r)
        r = wait_reply(fd, 1, timeout_ms, ret_result, err);
    free(text);
    close(fd);
    return r;
}
