/*
 * fvm_snapshot_client.c - `fvm snapshot`: one request; the VM's process writes the file, so names are made absolute
 * here.
 */
#include <argp.h>
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cluster/fvm_snapshot.h"

enum { O_CONTROL = 256, O_KEY_FILE, O_COMPRESS, O_STOP, O_JSON };

static const struct argp_option options[] = {
    {"control", O_CONTROL, "unix:F", 0, "the VM's control socket (needed)", 0},
    {"key-file", O_KEY_FILE, "FILE", 0, "keep the snapshot secret: restoring needs this file, of 16 random bytes or more", 0},
    {"compress", O_COMPRESS, 0, 0, "smaller, but slower to write and to restore", 0},
    {"stop", O_STOP, 0, 0, "end the VM when its snapshot is complete: its disks stay as the guest knows them", 0},
    {"json", O_JSON, 0, 0, "print the reply as JSON", 0},
    {0},
};

struct client {
    const char *control, *file, *key_file;
    bool compress, stop, json;
    struct fvm_err err;
};

static const char room[] = "snapshot";

static error_t on_option(int key, char *arg, struct argp_state *state)
{
    struct client *c = state->input;
    switch (key) {
    case O_CONTROL: c->control = strncmp(arg, "unix:", 5) ? arg : arg + 5; return 0;
    case O_KEY_FILE: c->key_file = arg; return 0;
    case O_COMPRESS: c->compress = true; return 0;
    case O_STOP: c->stop = true; return 0;
    case O_JSON: c->json = true; return 0;
    case ARGP_KEY_ARG:
        if (c->file) {
            fvm_err_set(&c->err, FVM_EINVAL, 0, room, "\"%.60s\" is one argument too many; --help tells which", arg);
            return EINVAL;
        }
        c->file = arg;
        return 0;
    default: return ARGP_ERR_UNKNOWN;
    }
}

static const char *absolute(const char *path, char buf[PATH_MAX + 256], struct fvm_err *err)
{
    char cwd[PATH_MAX];
    if (path[0] == '/')
        return path;
    if (!getcwd(cwd, sizeof(cwd)))
        fvm_err_set(err, fvm_err_from_errno(errno), errno, room, "the current directory: %s", strerror(errno));
    else if ((size_t)snprintf(buf, PATH_MAX + 256, "%s/%s", cwd, path) >= PATH_MAX + 256)
        fvm_err_set(err, FVM_EINVAL, 0, room, "the file's name is too long");
    else
        return buf;
    return NULL;
}

static double number(const json_t *o, const char *key) { return (double)json_integer_value(json_object_get(o, key)); }

static void show(const struct client *c, const json_t *r)
{
    if (c->json) {
        json_dumpf(r, stdout, JSON_INDENT(2));
        putchar('\n');
        return;
    }
    printf("saved: %.1f MiB of %.0f MiB memory in %.2f s, the guest stood still for %.1f ms%s\n",
           number(r, "file_bytes") / 1048576, number(r, "memory_bytes") / 1048576, number(r, "total_ns") / 1e9,
           number(r, "blackout_ns") / 1e6, c->stop ? " and has ended" : "");
}

static int ask(struct client *c)
{
    char path[PATH_MAX + 256], key[PATH_MAX + 256];
    const char *file = absolute(c->file, path, &c->err);
    const char *key_file = c->key_file ? absolute(c->key_file, key, &c->err) : "";
    json_t *result = NULL, *request = NULL;
    if (file && key_file) {
        request = json_pack("{s:s, s:s, s:s, s:b, s:b}", "cmd", "snapshot", "path", file, "key_file", key_file,
                            "compress", (int)c->compress, "stop", (int)c->stop);
        if (!request)
            fvm_err_set(&c->err, FVM_EINVAL, 0, room, "the file's name is not UTF-8");
    }
    if (request)
        (void)fvm_control_ask(c->control, request, -1, &result, &c->err);
    json_decref(request);
    if (result)
        show(c, result);
    json_decref(result);
    return c->err.code ? fvm_complain(&c->err) : 0;
}

int fvm_snapshot_client_main(int argc, char **argv)
{
    static const struct argp argp = {
        options, on_option, "FILE", "Write a guest to a file, from which fvm restore makes it go on.", NULL, NULL, NULL};
    struct client c = {0};
    error_t e = argp_parse(&argp, argc, argv, 0, NULL, &c);
    if (e && !c.err.code)
        fvm_err_set(&c.err, FVM_EINVAL, 0, room, "an option is unknown; --help lists them");
    else if (!e && !c.control)
        fvm_err_set(&c.err, FVM_EINVAL, 0, room, "which VM? --control unix:SOCKET is needed");
    else if (!e && !c.file)
        fvm_err_set(&c.err, FVM_EINVAL, 0, room, "which file? fvm snapshot --control unix:SOCKET FILE");
    return c.err.code ? fvm_complain(&c.err) : ask(&c);
}
