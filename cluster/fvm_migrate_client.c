/*
 * fvm_migrate_client.c - `fvm migrate`: brings two VM processes of one machine together and shows how the guest moves.
 *
 *   fvm migrate --control unix:A --to unix:B
 *      A, B: migrate-key                     who are you, where is the record
 *      B:    incoming{allow A's key}         -> address, key
 *      A:    migrate{address, key}           -> events until migration-done
 *
 * B was started with `fvm run --incoming tcp://127.0.0.1:* --control unix:B` and the same machine. Between hosts the
 * cluster does this. Invariant: Ctrl-C asks for cancellation and goes on watching; what it prints at the end is what
 * the source said.
 */
#include <argp.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "cluster/fvm_migrate.h"
#include "vmm/vm_config.h"
#include "vmm/vm_unix.h"

struct client {
    const char *control, *to, *on_miss;
    int max_downtime_ms, deadline_s;
    uint64_t max_bandwidth;
    bool json, dry_run, verify_all, no_throttle, tty;
    struct fvm_err err;
    json_t *done;
};

enum {
    O_CONTROL = 256,
    O_TO,
    O_MAX_DOWNTIME,
    O_DEADLINE,
    O_ON_MISS,
    O_MAX_BANDWIDTH,
    O_NO_THROTTLE,
    O_DRY_RUN,
    O_VERIFY_ALL,
    O_JSON
};

static const struct argp_option options[] = {
    {"control", O_CONTROL, "unix:F", 0, "control socket of the VM that leaves (needed)", 0},
    {"to", O_TO, "unix:F", 0, "control socket of the process that waits with --incoming (needed)", 0},
    {"max-downtime", O_MAX_DOWNTIME, "MS", 0, "how long the guest may stand still (default 300)", 0},
    {"deadline", O_DEADLINE, "SECONDS", 0, "how long it may take (default 600)", 0},
    {"on-miss", O_ON_MISS, "cancel|pause", 0, "when that cannot be kept (default cancel)", 0},
    {"max-bandwidth", O_MAX_BANDWIDTH, "SIZE", 0, "send at most this much per second, as 100M, while the guest runs",
     0},
    {"no-throttle", O_NO_THROTTLE, 0, 0, "never slow down a guest that writes faster than pages can be sent", 0},
    {"dry-run", O_DRY_RUN, 0, 0, "ask the destination, move nothing", 0},
    {"verify-all", O_VERIFY_ALL, 0, 0, "hash all of RAM while the guest stands still, trusting no dirty log", 0},
    {"json", O_JSON, 0, 0, "print each event as a line of JSON", 0},
    {0},
};

static int strip(struct client *c, const char *name, const char *arg, const char **ret)
{
    if (strncmp(arg, "unix:", 5) || !arg[5])
        return fvm_err_set(&c->err, FVM_EINVAL, 0, "migrate", "--%s %.80s: write unix:PATH", name, arg);
    *ret = arg + 5;
    return 0;
}

static int whole(struct client *c, const char *name, const char *arg, int *ret)
{
    char *end;
    errno = 0;
    long n = strtol(arg, &end, 10);
    if (errno || *end || end == arg || n < 1 || n > 3600000)
        return fvm_err_set(&c->err, FVM_EINVAL, 0, "migrate", "--%s %.40s: write a whole number above 0", name, arg);
    *ret = (int)n;
    return 0;
}

static error_t on_option(int key, char *arg, struct argp_state *state)
{
    struct client *c = state->input;
    switch (key) {
    case O_CONTROL:
        return strip(c, "control", arg, &c->control) ? EINVAL : 0;
    case O_TO:
        return strip(c, "to", arg, &c->to) ? EINVAL : 0;
    case O_MAX_DOWNTIME:
        return whole(c, "max-downtime", arg, &c->max_downtime_ms) ? EINVAL : 0;
    case O_DEADLINE:
        return whole(c, "deadline", arg, &c->deadline_s) ? EINVAL : 0;
    case O_ON_MISS:
        c->on_miss = arg;
        return 0;
    case O_MAX_BANDWIDTH:
        return fvm_config_parse_bytes(arg, &c->max_bandwidth, &c->err) ? EINVAL : 0;
    case O_NO_THROTTLE:
        c->no_throttle = true;
        return 0;
    case O_DRY_RUN:
        c->dry_run = true;
        return 0;
    case O_VERIFY_ALL:
        c->verify_all = true;
        return 0;
    case O_JSON:
        c->json = true;
        return 0;
    case ARGP_KEY_ARG:
        fvm_err_set(&c->err, FVM_EINVAL, 0, "migrate", "\"%.60s\" is not an option; --help lists them", arg);
        return EINVAL;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

static const char *word(const json_t *o, const char *key)
{
    const char *s = json_string_value(json_object_get(o, key));
    return s ? s : "";
}

static double number(const json_t *o, const char *key) { return (double)json_integer_value(json_object_get(o, key)); }

/* ---- what happens, shown ---- */

static void show_progress(const struct client *c, const json_t *e)
{
    if (!c->tty)
        return;
    double memory = number(e, "memory_bytes"), left = number(e, "remaining_bytes");
    double part = memory > 0 && left <= memory ? 1 - left / memory : 0;
    int filled = (int)(part * 24);
    printf("\r\033[K%-8s [%.*s%.*s] round %d  %.1f MiB left  %.0f MiB/s  dirty %.1f MiB/s  downtime %.0f ms  owner %s",
           word(e, "phase"), filled, "########################", 24 - filled, "........................",
           (int)number(e, "round"), left / 1048576, number(e, "rate_bytes") / 1048576,
           number(e, "dirty_rate_bytes") / 1048576, number(e, "predicted_downtime_ns") / 1e6, word(e, "owner"));
    if (word(e, "text")[0])
        printf("\n%s\n", word(e, "text"));
    fflush(stdout);
}

static void show_pieces(const json_t *pieces)
{
    size_t i;
    const json_t *p;
    if (json_array_size(pieces))
        printf("  blackout:");
    json_array_foreach(pieces, i, p) printf("%s %s %.2f", i ? "," : "", json_string_value(json_array_get(p, 0)),
                                            (double)json_integer_value(json_array_get(p, 1)) / 1e6);
    if (json_array_size(pieces))
        puts(" ms");
}

static void show_done(const struct client *c, const json_t *e)
{
    if (c->tty)
        printf("\r\033[K");
    if (json_is_true(json_object_get(e, "dry_run")) && !word(e, "error")[0])
        printf("rehearsal went well in %.1f ms; the guest runs on where it is\n", number(e, "total_ns") / 1e6);
    if (strcmp(word(e, "outcome"), "moved"))
        return;
    printf("moved: blackout %.1f ms, total %.2f s, %.1f MiB sent of %.0f MiB, %d round%s, %s\n",
           number(e, "blackout_ns") / 1e6, number(e, "total_ns") / 1e9, number(e, "sent_bytes") / 1048576,
           number(e, "memory_bytes") / 1048576, (int)number(e, "rounds"), number(e, "rounds") > 1 ? "s" : "",
           json_is_true(json_object_get(e, "verified")) ? "memory verified" : "memory NOT verified");
    printf("  prepare %.1f ms, pre-copy %.1f ms, final %.1f ms, hand-over %.1f ms; predicted downtime %.1f ms\n",
           number(e, "prepare_ns") / 1e6, number(e, "precopy_ns") / 1e6, number(e, "final_ns") / 1e6,
           number(e, "handover_ns") / 1e6, number(e, "predicted_downtime_ns") / 1e6);
    show_pieces(json_object_get(e, "blackout_pieces"));
    if (number(e, "throttled_ns") > 0)
        printf("  the guest was held to %.1f MiB/s of written pages, its writers waited for %.2f s in all\n",
               number(e, "write_limit_bytes") / 1048576, number(e, "throttled_ns") / 1e9);
}

static volatile sig_atomic_t interrupted;

static void on_interrupt(int signo)
{
    (void)signo;
    interrupted = 1;
}

static void cancel(const struct client *c)
{
    json_t *request = json_pack("{s:s}", "cmd", "migrate-cancel"), *result = NULL;
    struct fvm_err err = {0};
    interrupted = 0;
    if (fvm_control_ask(c->control, request, 5000, &result, &err) == 0)
        fputs("\ncancelling...\n", stderr);
    json_decref(result);
    json_decref(request);
}

/* One line of the source's: its reply, an event. 0: go on, 1: it is over. */
static int on_line(struct client *c, const char *line)
{
    json_t *o = json_loads(line, 0, NULL);
    const char *event = word(o, "event");
    int over = 0;
    if (c->json && event[0])
        fputs(line, stdout), fflush(stdout);
    if (!event[0] && json_is_false(json_object_get(o, "ok"))) {
        fvm_err_set(&c->err, FVM_ESTATE, 0, "migrate", "%s", word(o, "error"));
        over = 1;
    } else if (strcmp(event, "migration") == 0 && !c->json) {
        show_progress(c, o);
    } else if (strcmp(event, "migration-done") == 0) {
        c->done = json_incref(o);
        over = 1;
    }
    json_decref(o);
    return over;
}

static int watch(struct client *c, json_t *request)
{
    int fd, r = fvm_unix_connect(c->control, &fd, &c->err);
    if (r)
        return r;
    struct sigaction sa = {.sa_handler = on_interrupt}; /* no SA_RESTART: reading is interrupted */
    sigaction(SIGINT, &sa, NULL);
    char *text = json_dumps(request, JSON_COMPACT), *line = NULL;
    size_t size = 0;
    FILE *in = fdopen(fd, "r");
    bool sent = text && in && send(fd, text, strlen(text), MSG_NOSIGNAL) > 0 && send(fd, "\n", 1, MSG_NOSIGNAL) == 1;
    free(text);
    while (sent && in) {
        errno = 0;
        ssize_t n = getline(&line, &size, in);
        int error = errno;
        if (interrupted)
            cancel(c);
        if (n < 0 && error == EINTR) {
            clearerr(in);
            continue;
        }
        if (n < 0 || on_line(c, line))
            break;
    }
    free(line);
    if (in)
        fclose(in);
    else
        close(fd);
    if (!c->done && !c->err.code)
        return fvm_err_set(&c->err, FVM_ECLOSED, 0, "migrate",
                           "the VM's process ended before it said how the migration went; ask the other one: fvm "
                           "status --control unix:%s",
                           c->to);
    return c->err.code;
}

/* ---- bringing them together ---- */

static json_t *ask(struct client *c, const char *path, json_t *request)
{
    json_t *result = NULL;
    if (!request || fvm_control_ask(path, request, 30000, &result, &c->err))
        result = NULL;
    json_decref(request);
    return result;
}

static int migrate(struct client *c)
{
    json_t *from = ask(c, c->control, json_pack("{s:s}", "cmd", "migrate-key"));
    json_t *to = from ? ask(c, c->to, json_pack("{s:s}", "cmd", "migrate-key")) : NULL;
    /* the file must be there before the destination opens it: the source makes it when it is asked to rehearse or begin
     */
    json_t *ready =
        to ? ask(c, c->to,
                 json_pack("{s:s, s:s, s:s, s:s, s:s}", "cmd", "incoming", "self", word(to, "self"), "allow",
                           word(from, "public_key"), "record", word(from, "record"), "owner", word(from, "self")))
           : NULL;
    if (ready) {
        json_t *request =
            json_pack("{s:s, s:s, s:s, s:s, s:s, s:s, s:i, s:i, s:s, s:I, s:b, s:b, s:b}", "cmd", "migrate", "self",
                      word(from, "self"), "to_name", word(to, "self"), "to_addr", word(ready, "address"), "to_key",
                      word(ready, "public_key"), "record", word(from, "record"), "max_downtime_ms", c->max_downtime_ms,
                      "deadline_ms", c->deadline_s * 1000, "on_miss", c->on_miss, "rate_limit_bytes",
                      (json_int_t)FVM_MIN(c->max_bandwidth, (uint64_t)INT64_MAX), "no_throttle", (int)c->no_throttle,
                      "dry_run", (int)c->dry_run, "verify_all", (int)c->verify_all);
        watch(c, request);
        json_decref(request);
    }
    json_decref(ready);
    json_decref(to);
    json_decref(from);
    return c->err.code;
}

int fvm_migrate_client_main(int argc, char **argv)
{
    static const struct argp argp = {
        options, on_option, NULL, "Move a running guest to another process on this machine.", NULL, NULL, NULL};
    struct client c = {.on_miss = "cancel", .tty = isatty(STDOUT_FILENO)};
    if (argp_parse(&argp, argc, argv, 0, NULL, &c))
        return fvm_complain(
            c.err.code ? &c.err
                       : &(struct fvm_err){.code = FVM_EINVAL, .text = "an option is unknown; --help lists them"});
    if (!c.control || !c.to)
        return fvm_complain(
            &(struct fvm_err){.code = FVM_EINVAL, .text = "who to whom? --control unix:A --to unix:B are needed"});
    int status = migrate(&c) ? fvm_complain(&c.err) : 0;
    if (c.done) {
        if (!c.json)
            show_done(&c, c.done);
        if (word(c.done, "error")[0]) {
            fprintf(stderr, "fvm: the guest %s: %s\n",
                    strcmp(word(c.done, "outcome"), "unknown") ? "stays where it is" : "waits, paused",
                    word(c.done, "error"));
            status = fvm_err_exit_status(FVM_ESTATE);
        }
        json_decref(c.done);
    }
    return status;
}
