/*
 * fvm_display_client.c - `fvm screenshot`, `fvm sendkey`, `fvm type`: a request each to the VM's control socket.
 *
 * The VM's process writes the picture, so a file's name is made absolute here.
 */
#include <argp.h>
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cluster/fvm_display.h"

enum { O_CONTROL = 256, O_TEXT, O_HOLD, O_TIMEOUT };

struct client {
    const char *control, *arg;
    bool text;
    int hold_ms, timeout_ms;
    struct fvm_err err;
};

static const char room[] = "display";

static int number(struct client *c, const char *name, const char *arg, int max, int *ret)
{
    char *end;
    errno = 0;
    long n = strtol(arg, &end, 10);
    if (errno || *end || end == arg || n < 0 || n > max)
        return fvm_err_set(&c->err, FVM_EINVAL, 0, room, "--%s %.40s: write a number from 0 to %d", name, arg, max);
    *ret = (int)n;
    return 0;
}

static error_t on_option(int key, char *arg, struct argp_state *state)
{
    struct client *c = state->input;
    int seconds = 0;
    switch (key) {
    case O_CONTROL:
        c->control = strncmp(arg, "unix:", 5) ? arg : arg + 5;
        return 0;
    case O_TEXT:
        c->text = true;
        return 0;
    case O_HOLD:
        return number(c, "hold", arg, 10000, &c->hold_ms) ? EINVAL : 0;
    case O_TIMEOUT:
        if (number(c, "timeout", arg, 86400, &seconds))
            return EINVAL;
        c->timeout_ms = seconds * 1000;
        return 0;
    case ARGP_KEY_ARG:
        if (c->arg) {
            fvm_err_set(&c->err, FVM_EINVAL, 0, room, "\"%.60s\" is one argument too many; --help tells which", arg);
            return EINVAL;
        }
        c->arg = arg;
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

#define OPTION_CONTROL {"control", O_CONTROL, "unix:F", 0, "the VM's control socket (needed)", 0}
#define OPTION_TIMEOUT {"timeout", O_TIMEOUT, "SECONDS", 0, "give up after this (default 60)", 0}

static const struct argp_option screenshot_options[] = {
    OPTION_CONTROL,
    {"text", O_TEXT, 0, 0, "print the characters of a text mode instead", 0},
    OPTION_TIMEOUT,
    {0},
};
static const struct argp_option sendkey_options[] = {
    OPTION_CONTROL,
    {"hold", O_HOLD, "MS", 0, "how long the keys are held (default 50)", 0},
    OPTION_TIMEOUT,
    {0},
};
static const struct argp_option type_options[] = {OPTION_CONTROL, OPTION_TIMEOUT, {0}};

static const struct command {
    const char *name, *args, *doc, *missing;
    const struct argp_option *options;
} commands[] = {
    {"screenshot", "FILE.png", "Save what the guest shows as a PNG file, or print a text screen's characters.",
     "which file? fvm screenshot --control unix:SOCKET FILE.png", screenshot_options},
    {"sendkey", "KEYS", "Press keys together, then let them go: ctrl-alt-f2, shift-a, ret.",
     "which keys? fvm sendkey --control unix:SOCKET ctrl-alt-f2", sendkey_options},
    {"type", "TEXT", "Type TEXT on the guest's keyboard (US layout); \\n, \\t and \\\\ as in printf.",
     "which text? fvm type --control unix:SOCKET TEXT", type_options},
};

static int absolute(const char *path, char *ret, size_t size, struct fvm_err *err)
{
    char cwd[PATH_MAX];
    int n;
    if (path[0] == '/')
        n = snprintf(ret, size, "%s", path);
    else if (getcwd(cwd, sizeof(cwd)))
        n = snprintf(ret, size, "%s/%s", cwd, path);
    else
        return fvm_err_set(err, fvm_err_from_errno(errno), errno, room, "the current directory: %s", strerror(errno));
    return (size_t)n < size ? 0 : fvm_err_set(err, FVM_EINVAL, 0, room, "the file's name is too long");
}

/* \n, \t, \e and \\ become what they mean; any other backslash stays. */
static void unescape(char *text)
{
    static const char from[] = "nte\\", to[] = "\n\t\033\\";
    char *out = text;
    for (const char *in = text; *in; in++) {
        const char *at = in[0] == '\\' && in[1] ? strchr(from, in[1]) : NULL;
        *out++ = at ? to[at - from] : *in;
        in += at != NULL;
    }
    *out = 0;
}

static json_t *make_request(const struct command *command, struct client *c)
{
    char path[PATH_MAX + 256];
    if (!strcmp(command->name, "sendkey"))
        return json_pack("{s:s, s:s, s:i}", "cmd", "sendkey", "keys", c->arg, "hold_ms", c->hold_ms);
    if (!strcmp(command->name, "type")) {
        char *text = strdup(c->arg);
        if (!text)
            return NULL;
        unescape(text);
        json_t *request = json_pack("{s:s, s:s}", "cmd", "type", "text", text);
        free(text);
        return request;
    }
    if (c->text)
        return json_pack("{s:s, s:b}", "cmd", "screenshot", "text", 1);
    return absolute(c->arg, path, sizeof(path), &c->err)
               ? NULL
               : json_pack("{s:s, s:s}", "cmd", "screenshot", "path", path);
}

static int ask(const struct command *command, struct client *c)
{
    json_t *result = NULL, *request = make_request(command, c);
    if (!request && !c->err.code)
        fvm_err_set(&c->err, FVM_EINVAL, 0, room, "that is not UTF-8, or out of memory");
    if (request)
        (void)fvm_control_ask(c->control, request, c->timeout_ms, &result, &c->err);
    json_decref(request);
    if (c->err.code)
        return fvm_complain(&c->err);
    const char *text = json_string_value(json_object_get(result, "text"));
    if (text)
        fputs(text, stdout);
    json_decref(result);
    return 0;
}

int fvm_display_client_main(int argc, char **argv)
{
    for (size_t i = 0; i < FVM_ARRAY_SIZE(commands); i++) {
        const struct command *command = &commands[i];
        if (strcmp(argv[1], command->name) != 0)
            continue;
        const struct argp argp = {command->options, on_option, command->args, command->doc, NULL, NULL, NULL};
        struct client c = {.hold_ms = 50, .timeout_ms = 60000};
        char name[32];
        snprintf(name, sizeof(name), "fvm %s", command->name);
        argv[1] = name;
        error_t e = argp_parse(&argp, argc - 1, argv + 1, 0, NULL, &c);
        if (e && !c.err.code)
            fvm_err_set(&c.err, FVM_EINVAL, 0, room, "an option is unknown; --help lists them");
        else if (!e && !c.control)
            fvm_err_set(&c.err, FVM_EINVAL, 0, room, "which VM? --control unix:SOCKET is needed");
        else if (!e && !c.arg && !c.text)
            fvm_err_set(&c.err, FVM_EINVAL, 0, room, "%s", command->missing);
        return c.err.code ? fvm_complain(&c.err) : ask(command, &c);
    }
    return -1;
}
