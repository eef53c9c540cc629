/*
 * fvm_control.h - the control socket of one VM: newline-delimited JSON over a UNIX socket.
 *
 *     client                                   server
 *     {"cmd":"status","id":1}            ->
 *                                        <-    {"id":1,"ok":true,"result":{"state":"running",...}}
 *     {"cmd":"fly","id":"x"}             ->
 *                                        <-    {"id":"x","ok":false,"error":"text","code":-4,"name":"NOENT"}
 *                                        <-    {"event":"reset"}            (any time, to every client)
 *
 * "id" is any JSON value and comes back as it was; without one the reply has null. Requests of a client are begun in
 * order; a command may answer later, so replies can overtake each other. Arguments are other members of the request.
 * Unknown members are ignored, so a newer client can talk to an older server.
 *
 * Version rule: commands and members are added, never changed; a reply to "version" tells what is there.
 * Hostile input: a line longer than FVM_CONTROL_LINE_MAX or one that is no JSON object gets an error reply and the
 * connection is closed; a client that doesn't read its replies is closed. Peers of other users are turned away
 * (SO_PEERCRED).
 *
 * Thread: everything on the loop's thread. Test: tests/unit/control_server.c
 */
#ifndef FVM_CLUSTER_FVM_CONTROL_H
#define FVM_CLUSTER_FVM_CONTROL_H

#include <jansson.h>

#include "base/err.h"
#include "base/loop.h"

#define FVM_CONTROL_LINE_MAX 65536
#define FVM_CONTROL_CLIENTS_MAX 16
#define FVM_CONTROL_PENDING_MAX 64          /* unanswered requests per client */
#define FVM_CONTROL_OUT_MAX (4u << 20)      /* unread bytes per client */

struct fvm_control;
struct fvm_control_call; /* one request that has not been answered; outlives its connection */

/**
 * A command. Must see to it that fvm_control_reply or _fail is called exactly once for the call, now or later (on the
 * loop's thread, before fvm_control_destroy). request: the whole object, valid until the call is answered.
 */
typedef void (*fvm_control_fn)(void *ctx, struct fvm_control_call *call, const json_t *request);

int fvm_control_create(struct fvm_loop *loop, const char *path, struct fvm_control **ret_control, struct fvm_err *err);
/** Closes and unlinks; calls that were not answered are dropped. */
void fvm_control_destroy(struct fvm_control **control_p);
/** name and help are borrowed (literals). FVM_EEXIST: there is one already. */
int fvm_control_register(struct fvm_control *control, const char *name, const char *help, fvm_control_fn fn, void *ctx);

/** Answer with success. `result` is taken; NULL: {}. */
void fvm_control_reply(struct fvm_control_call *call, json_t *result);
void fvm_control_fail(struct fvm_control_call *call, const struct fvm_err *err);
/** {"event":name, ...members of data}. `data` (an object) is taken; may be NULL. */
void fvm_control_event(struct fvm_control *control, const char *name, json_t *data);
/** Send what is queued as far as it goes without waiting, before the process ends. At most timeout_ms. */
void fvm_control_flush(struct fvm_control *control, int timeout_ms);

/* ---- for commands: members of a request ---- */
/** A string member. Missing: FVM_EINVAL with a text that names it, unless fallback is given (not NULL). */
int fvm_control_get_string(const json_t *request, const char *key, const char *fallback, const char **ret,
                           struct fvm_err *err);
/** An integer in [min, max]; missing: fallback. */
int fvm_control_get_int(const json_t *request, const char *key, int64_t min, int64_t max, int64_t fallback,
                        int64_t *ret, struct fvm_err *err);

/* ---- client's side (fvm_control_client.c): blocking, for the command line ---- */
/**
 * Send one request, wait for its reply (events are passed over). request is borrowed, its "id" is set. *ret_result:
 * new reference. Returns the server's error as its code with its text. timeout_ms < 0: for ever.
 */
int fvm_control_ask(const char *path, json_t *request, int timeout_ms, json_t **ret_result, struct fvm_err *err);

#endif
