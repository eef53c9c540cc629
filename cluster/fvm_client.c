/*
 * fvm_client.c - `fvm status|pause|resume|powerdown|quit|dump|stats --control unix:F`: one request, one reply, printed.
 */
#include <stdlib.h>
#include <string.h>

#include "cluster/fvm_run.h"

static const struct client_command {
    const char *name, *doc;
} commands[] = {
    {"status", "Say how a running VM is."},
    {"pause", "Stop the guest; its clock stands still until fvm resume."},
    {"resume", "Let a paused guest go on."},
    {"powerdown", "Press the power button; a guest that listens shuts down."},
    {"quit", "End a VM at once, as pulling the plug."},
    {"dump", "Show the processors' registers."},
    {"stats", "Show counters."},
};

void fvm_client_list(FILE *out)
{
    for (size_t i = 0; i < FVM_ARRAY_SIZE(commands); i++)
        fprintf(out, "  %-10s %s\n", commands[i].name, commands[i].doc);
}

static void print_human(const json_t *result)
{
    const char *text = json_string_value(json_object_get(result, "text"));
    if (text) {
        fputs(text, stdout);
        return;
    }
    const char *key;
    const json_t *value;
    json_object_foreach((json_t *)(uintptr_t)result, key, value) {
        if (json_is_string(value))
            printf("%-15s %s\n", key, json_string_value(value));
        else if (json_is_integer(value))
            printf("%-15s %lld\n", key, (long long)json_integer_value(value));
        else {
            char *dump = json_dumps(value, JSON_COMPACT | JSON_ENCODE_ANY);
            printf("%-15s %s\n", key, dump ? dump : "?");
            free(dump);
        }
    }
}

static int ask(const struct client_command *command, const struct fvm_client_options *options)
{
    struct fvm_err err = {0};
    json_t *result = NULL, *request = json_pack("{s:s}", "cmd", command->name);
    if (!request)
        return fvm_complain(&(struct fvm_err){.code = FVM_ENOMEM});
    int r = fvm_control_ask(options->control, request, options->timeout_ms, &result, &err);
    json_decref(request);
    if (r)
        return fvm_complain(&err);
    if (options->json) {
        json_dumpf(result, stdout, JSON_INDENT(2));
        putchar('\n');
    } else {
        print_human(result);
    }
    json_decref(result);
    return 0;
}

int fvm_client_main(int argc, char **argv)
{
    for (size_t i = 0; i < FVM_ARRAY_SIZE(commands); i++) {
        if (strcmp(argv[1], commands[i].name) != 0)
            continue;
        struct fvm_client_options options;
        struct fvm_err err = {0};
        char name[32];
        snprintf(name, sizeof(name), "fvm %s", commands[i].name);
        argv[1] = name;
        if (fvm_args_parse_client(argc - 1, argv + 1, commands[i].doc, &options, &err))
            return fvm_complain(&err);
        return ask(&commands[i], &options);
    }
    return -1;
}
