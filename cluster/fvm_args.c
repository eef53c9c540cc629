/*
 * fvm_args.c - argp tables for `fvm run` and its sister commands. See fvm_args.h.
 *
 * argp is asked to neither print nor exit on errors, so that main gives its one line and our exit status.
 */
#include "cluster/fvm_args.h"

#include <argp.h>
#include <stdlib.h>
#include <string.h>

#include "vmm/cpu/vcpu.h"
#include "vmm/vm_char.h"
#include "vmm/vm_config.h"

static const char room[] = "args";

enum { /* options without a letter */
    O_KERNEL = 256, O_INITRD, O_APPEND, O_MEMORY, O_CPUS, O_CPU, O_DISK, O_CDROM, O_MACHINE, O_BOOT, O_NET, O_SERIAL, O_CONSOLE, O_CONTROL, O_NAME,
    O_STATS, O_INCOMING, O_PAUSED, O_TRACE, O_TRACE_FILE, O_SINGLE_BLOCK, O_SINGLE_INSN, O_LOG_LEVEL, O_ON_RESET,
    O_SANDBOX, O_ID, O_TSC_KHZ, O_NO_RNG, O_JSON, O_TIMEOUT, O_VGA, O_FIRMWARE, O_DISPLAY,
    O_KEY_FILE, O_GDB,
};

static const struct argp_option run_options[] = {
    {0, 0, 0, 0, "What to boot:", 1},
    {"kernel", O_KERNEL, "FILE", 0, "Linux bzImage or multiboot kernel", 0},
    {"firmware", O_FIRMWARE, "seabios|FILE", 0, "start a PC's firmware, which boots from a disk (instead of a kernel)", 0},
    {"initrd", O_INITRD, "FILE", 0, "initial RAM disk, or a multiboot module", 0},
    {"append", O_APPEND, "TEXT", 0, "the kernel's command line", 0},
    {0, 0, 0, 0, "The machine:", 2},
    {"memory", O_MEMORY, "SIZE", 0, "guest memory, as 512M or 2G (default 1G)", 0},
    {"cpus", O_CPUS, "N", 0, "processors, 1 to 16 (default 1)", 0},
    {"cpu", O_CPU, "MODEL", 0, "fvm64-v1 .. fvm64-v3 (default: fvm64-v3 where the host has it)", 0},
    {"machine", O_MACHINE, "pc|virtio", 0,
     "the full PC, or virtio devices only (default: virtio with a kernel and nothing that needs more)", 0},
    {"disk", O_DISK, "FILE[,if=virtio|ide|ahci][,readonly][,serial=S]", 0,
     "a raw disk image or block device; may be repeated", 0},
    {"cdrom", O_CDROM, "FILE[,if=ide|ahci]", 0, "a CD-ROM drive with this image; may be repeated", 0},
    {"boot", O_BOOT, "disk,cdrom,net", 0, "what firmware tries, in this order (default disk,cdrom,net)", 0},
    {"net", O_NET, "user[,model=virtio|e1000][,hostfwd=tcp:ADDR:PORT-:PORT][,tftp=DIR,bootfile=FILE]|switch:PATH|none", 0,
     "a network card; may be repeated", 0},
    {"serial", O_SERIAL, "stdio|file:F|unix:F|none", 0, "where COM1 goes (default stdio)", 0},
    {"console", O_CONSOLE, "stdio|file:F|unix:F|none", 0, "a virtio console (default none)", 0},
    {"vga", O_VGA, "std|none", 0, "display adapter (default std)", 0},
    {"no-rng", O_NO_RNG, 0, 0, "no virtio random number generator", 0},
    {"on-reset", O_ON_RESET, "reset|stop", 0, "what a reset by the guest does (default reset)", 0},
    {"name", O_NAME, "NAME", 0, "name in messages (default vm)", 0},
    {"id", O_ID, "HEX", 0, "identity, 32 hex digits (default random); MAC addresses derive from it", 0},
    {"tsc-khz", O_TSC_KHZ, "KHZ", 0, "frequency of the guest's TSC (default the host's)", 0},
    {0, 0, 0, 0, "Control:", 3},
    {"control", O_CONTROL, "unix:F", 0, "socket for fvm status, pause, resume, quit...", 0},
    {"display", O_DISPLAY, "none|vnc=[ADDR:]PORT|unix:F[,password-file=F]", 0,
     "show the screen to VNC clients (default none; see also fvm screenshot)", 0},
    {"incoming", O_INCOMING, "ADDR", 0, "wait for a guest to move in instead of booting", 0},
    {"paused", O_PAUSED, 0, 0, "do not run before fvm resume", 0},
    {"sandbox", O_SANDBOX, "on|off|log", 0, "system call filter and privilege drop (default on)", 0},
    {0, 0, 0, 0, "Looking inside:", 4},
    {"gdb", O_GDB, "tcp:[ADDR:]PORT|unix:F", 0, "let gdb connect there: target remote", 0},
    {"stats", O_STATS, 0, 0, "print counters at the end", 0},
    {"trace", O_TRACE, "exec,int,io,code", 0, "trace blocks, events, chips, translations", 0},
    {"trace-file", O_TRACE_FILE, "FILE", 0, "where to (default stderr)", 0},
    {"single-block", O_SINGLE_BLOCK, 0, 0, "never chain translated blocks", 0},
    {"single-insn", O_SINGLE_INSN, 0, 0, "one instruction per block", 0},
    {"log-level", O_LOG_LEVEL, "error|warn|info|debug", 0, "least important message shown (default warn)", 0},
    {0},
};

/* What is of this host; the machine is the snapshot's. */
static const struct argp_option restore_options[] = {
    {"key-file", O_KEY_FILE, "FILE", 0, "the key file of a sealed snapshot", 0},
    {"disk", O_DISK, "FILE", 0, "where a disk is now; all of them in order, or none (default: where they were)", 0},
    {"net", O_NET, "user[,hostfwd=...]|switch:PATH", 0, "the networks' other ends; all in order, or none", 0},
    {"serial", O_SERIAL, "stdio|file:F|unix:F|none", 0, "where COM1 goes (default stdio)", 0},
    {"console", O_CONSOLE, "stdio|file:F|unix:F|none", 0, "where the virtio console goes, if there is one", 0},
    {"control", O_CONTROL, "unix:F", 0, "socket for fvm status, pause, resume, quit...", 0},
    {"display", O_DISPLAY, "none|vnc=[ADDR:]PORT|unix:F[,password-file=F]", 0, "show the screen to VNC clients", 0},
    {"paused", O_PAUSED, 0, 0, "do not run before fvm resume", 0},
    {"sandbox", O_SANDBOX, "on|off|log", 0, "system call filter and privilege drop (default on)", 0},
    {"gdb", O_GDB, "tcp:[ADDR:]PORT|unix:F", 0, "let gdb connect there: target remote", 0},
    {"stats", O_STATS, 0, 0, "print counters at the end", 0},
    {"trace", O_TRACE, "exec,int,io,code", 0, "trace blocks, events, chips, translations", 0},
    {"trace-file", O_TRACE_FILE, "FILE", 0, "where to (default stderr)", 0},
    {"log-level", O_LOG_LEVEL, "error|warn|info|debug", 0, "least important message shown (default warn)", 0},
    {0},
};

struct parse { /* argp's input */
    struct fvm_run_options *run;
    struct fvm_client_options *client;
    struct fvm_err *err;
    bool restore; /* fvm restore: the one argument is the snapshot */
    int r; /* of the option that failed */
    const char *culprit; /* what argp itself refused */
};

static int set(struct parse *p, char **field, const char *text)
{
    if (fvm_config_set(field, text))
        return fvm_err_set(p->err, FVM_ENOMEM, 0, room, "out of memory");
    return 0;
}

static int parse_number(struct parse *p, const char *option, const char *text, uint32_t min, uint32_t max,
                        uint32_t *ret)
{
    char *end;
    unsigned long n = strtoul(text, &end, 10);
    if (text[0] < '0' || text[0] > '9' || *end || n < min || n > max)
        return fvm_err_set(p->err, FVM_EINVAL, 0, room, "--%s %.40s: write a number from %u to %u", option, text, min,
                           max);
    *ret = (uint32_t)n;
    return 0;
}

static int parse_trace(struct parse *p, const char *text)
{
    static const struct { const char *name; unsigned bit;
    } words[] = {{"exec", FVM_TRACE_EXEC},
                 {"int", FVM_TRACE_INT},
                 {"io", FVM_TRACE_IO},
                 {"code", FVM_TRACE_CODE}};
    while (*text) {
        size_t n = strcspn(text, ","), i;
        for (i = 0; i < FVM_ARRAY_SIZE(words); i++)
            if (strlen(words[i].name) == n && !memcmp(words[i].name, text, n))
                break;
        if (i == FVM_ARRAY_SIZE(words))
            return fvm_err_set(p->err, FVM_EINVAL, 0, room, "--trace %.40s: possible are exec, int, io and code", text);
        p->run->trace |= words[i].bit;
        text += n + (text[n] == ',');
    }
    return 0;
}

static int parse_id(struct parse *p, const char *text)
{
    uint8_t id[16];
    if (strlen(text) != 32 || strspn(text, "0123456789abcdefABCDEF") != 32)
        return fvm_err_set(p->err, FVM_EINVAL, 0, room, "--id %.40s: write 32 hex digits", text);
    for (int i = 0; i < 16; i++)
        id[i] = (uint8_t)strtoul((char[3]){text[2 * i], text[2 * i + 1], 0}, NULL, 16);
    memcpy(p->run->config->id.data, id, 16);
    return 0;
}

static int parse_sandbox(struct parse *p, const char *text)
{
    if (!strcmp(text, "on"))
        p->run->sandbox = FVM_SANDBOX_ON;
    else if (!strcmp(text, "off"))
        p->run->sandbox = FVM_SANDBOX_OFF;
    else if (!strcmp(text, "log"))
        p->run->sandbox = FVM_SANDBOX_LOG;
    else
        return fvm_err_set(p->err, FVM_EINVAL, 0, room, "--sandbox %.40s: possible are on, off and log", text);
    return 0;
}

static int parse_display(struct parse *p, const char *text)
{
    struct fvm_run_options *o = p->run;
    const char *cursor = text;
    int r = 0;
    free(o->vnc);
    free(o->vnc_password_file);
    o->vnc = o->vnc_password_file = NULL;
    if (!strcmp(text, "none"))
        return 0;
    while (!r && cursor) {
        char *item = fvm_config_next_item(&cursor);
        if (!item)
            r = fvm_err_set(p->err, FVM_ENOMEM, 0, room, "out of memory");
        else if (!o->vnc && !strncmp(item, "vnc=", 4) && item[4])
            r = set(p, &o->vnc, item + 4);
        else if (o->vnc && !strncmp(item, "password-file=", 14) && item[14])
            r = set(p, &o->vnc_password_file, item + 14);
        else
            r = fvm_err_set(p->err, FVM_EINVAL, 0, room,
                            "--display %.60s: write none, vnc=PORT, vnc=ADDR:PORT or vnc=unix:F, then ,password-file=F",
                            text);
        free(item);
    }
    return r;
}

static int parse_char(struct parse *p, char **field, const char *text)
{
    int r = fvm_char_check_spec(text, p->err);
    return r ? r : set(p, field, text);
}

static int strip_unix(struct parse *p, const char *text, const char **ret)
{
    const char *path = strncmp(text, "unix:", 5) ? text : text + 5;
    if (!*path)
        return fvm_err_set(p->err, FVM_EINVAL, 0, room,
                           "--control needs a socket's name, as unix:/run/user/1000/vm.sock");
    *ret = path;
    return 0;
}

static int parse_control(struct parse *p, const char *text)
{
    const char *path = "";
    int r = strip_unix(p, text, &path);
    return r ? r : set(p, &p->run->config->control, path);
}

static int machine_option(struct parse *p, int key, const char *arg)
{
    Fvm__VmConfig *c = p->run->config;
    switch (key) {
    case O_KERNEL: return set(p, &c->kernel, arg);
    case O_FIRMWARE: return set(p, &c->firmware, arg);
    case O_INITRD: return set(p, &c->initrd, arg);
    case O_APPEND: return set(p, &c->append, arg);
    case O_MEMORY: return fvm_config_parse_bytes(arg, &c->memory_bytes, p->err);
    case O_CPUS: return parse_number(p, "cpus", arg, 1, FVM_CONFIG_CPUS_MAX, &c->cpus);
    case O_CPU: return set(p, &c->cpu_model, arg);
    case O_DISK: return fvm_config_add_disk(c, arg, p->err);
    case O_CDROM: return fvm_config_add_cdrom(c, arg, p->err);
    case O_MACHINE: return fvm_config_set_machine(c, arg, p->err);
    case O_BOOT: return fvm_config_set_boot(c, arg, p->err);
    case O_NET: return fvm_config_add_net(c, arg, p->err);
    case O_SERIAL: return parse_char(p, &c->serial, arg);
    case O_CONSOLE: return parse_char(p, &c->console, arg);
    case O_ON_RESET: return set(p, &c->on_reset, arg);
    case O_NAME: return set(p, &c->name, arg);
    case O_ID: return parse_id(p, arg);
    case O_TSC_KHZ: return parse_number(p, "tsc-khz", arg, 100000, 20000000, &c->tsc_khz);
    case O_CONTROL: return parse_control(p, arg);
    case O_NO_RNG: c->rng = false; return 0;
    case O_VGA: return set(p, &c->vga, arg);
    default: return 1;
    }
}

static int run_option(struct parse *p, int key, const char *arg)
{
    struct fvm_run_options *o = p->run;
    switch (key) {
    case O_STATS: o->stats = true; return 0;
    case O_INCOMING: o->incoming = arg; return 0;
    case O_PAUSED: o->paused = true; return 0;
    case O_TRACE: return parse_trace(p, arg);
    case O_TRACE_FILE: o->trace_file = arg; return 0;
    case O_SINGLE_BLOCK: o->single_block = true; return 0;
    case O_SINGLE_INSN: o->single_insn = true; return 0;
    case O_SANDBOX: return parse_sandbox(p, arg);
    case O_DISPLAY: return parse_display(p, arg);
    case O_KEY_FILE: o->key_file = arg; return 0;
    case O_GDB: o->gdb = arg; return 0;
    case O_LOG_LEVEL:
        if (!fvm_log_parse_level(arg, &o->log_level))
            return fvm_err_set(p->err, FVM_EINVAL, 0, room, "--log-level %.20s: error, warn, info or debug", arg);
        return 0;
    default: return machine_option(p, key, arg);
    }
}

/* getopt stands behind what it could not take. */
static void remember(struct parse *p, const struct argp_state *state)
{
    if (state->next > 0 && state->next <= state->argc)
        p->culprit = state->argv[state->next - 1];
}

static error_t on_run_option(int key, char *arg, struct argp_state *state)
{
    struct parse *p = state->input;
    if (key == ARGP_KEY_ARG && p->restore && !p->run->restore) {
        p->run->restore = arg;
        return 0;
    }
    if (key == ARGP_KEY_ARG) {
        p->r = fvm_err_set(p->err, FVM_EINVAL, 0, room, "\"%.60s\" is not an option; fvm run --help lists them", arg);
        return EINVAL;
    }
    if (key == ARGP_KEY_ERROR)
        remember(p, state);
    int r = key < 256 ? 1 : run_option(p, key, arg);
    if (r == 1) /* argp's own keys come here too */
        return ARGP_ERR_UNKNOWN;
    p->r = r;
    return r ? EINVAL : 0;
}

/* argp prints its own complaints only without ARGP_SILENT, which also takes --help away: so help is looked for first.
 */
static unsigned argp_flags(int argc, char **argv)
{
    for (int i = 1; i < argc; i++)
        if (!strcmp(argv[i], "--help") || !strcmp(argv[i], "-?") || !strcmp(argv[i], "--usage") ||
            !strcmp(argv[i], "--version") || !strcmp(argv[i], "-V"))
            return 0;
    return ARGP_SILENT;
}

static int finish(struct parse *p, error_t e)
{
    if (!e)
        return 0;
    if (p->r)
        return p->r;
    return fvm_err_set(p->err, FVM_EINVAL, 0, room, "option \"%.60s\" is unknown or lacks its value; --help lists them",
                       p->culprit ? p->culprit : "?");
}

static int new_options(struct fvm_run_options *ret, struct fvm_err *err)
{
    *ret = (struct fvm_run_options){.config = fvm_config_new(), .log_level = FVM_LOG_WARN};
    if (ret->config && !fvm_config_set(&ret->config->serial, "stdio"))
        return 0;
    fvm_args_free(ret);
    return fvm_err_set(err, FVM_ENOMEM, 0, room, "out of memory");
}

int fvm_args_parse_restore(int argc, char **argv, struct fvm_run_options *ret, struct fvm_err *err)
{
    static const struct argp argp = {restore_options, on_run_option, "SNAPSHOT",
                                     "Let a guest go on that fvm snapshot wrote to a file.", NULL, NULL, NULL};
    int r = new_options(ret, err);
    if (r)
        return r;
    struct parse p = {.run = ret, .err = err, .restore = true};
    error_t e = argp_parse(&argp, argc, argv, argp_flags(argc, argv), NULL, &p);
    r = finish(&p, e);
    if (!r && !ret->restore)
        r = fvm_err_set(err, FVM_EINVAL, 0, room, "which snapshot? fvm restore FILE");
    if (r)
        fvm_args_free(ret);
    return r;
}

int fvm_args_parse_run(int argc, char **argv, struct fvm_run_options *ret, struct fvm_err *err)
{
    static const struct argp argp = {
        run_options,
        on_run_option,
        NULL,
        "Run a virtual machine on this host, without any rights or hardware support.\v"
        "With --serial stdio: Ctrl-A x ends the VM, Ctrl-A h helps.\n"
        "Exit status: 0 after a power-off by the guest; the value of a write to port 0xf4; "
        "64 to 77 as in sysexits.h for our own errors; 72 if the guest crashed.",
        NULL,
        NULL,
        NULL};
    int r = new_options(ret, err);
    if (r)
        return r;
    struct parse p = {.run = ret, .err = err};
    error_t e = argp_parse(&argp, argc, argv, argp_flags(argc, argv), NULL, &p);
    r = finish(&p, e);
    if (!r)
        r = fvm_config_check(ret->config, false, err);
    if (r)
        fvm_args_free(ret);
    return r;
}

void fvm_args_free(struct fvm_run_options *options)
{
    fvm_config_free(&options->config);
    free(options->vnc);
    free(options->vnc_password_file);
    options->vnc = options->vnc_password_file = NULL;
}

/* ---- commands for a running VM ---- */

static const struct argp_option client_options[] = {
    {"control", O_CONTROL, "unix:F", 0, "the VM's control socket (needed)", 0},
    {"json", O_JSON, 0, 0, "print the reply as JSON", 0},
    {"timeout", O_TIMEOUT, "SECONDS", 0, "give up after this (default 30)", 0},
    {0},
};

static error_t on_client_option(int key, char *arg, struct argp_state *state)
{
    struct parse *p = state->input;
    uint32_t seconds = 0;
    switch (key) {
    case O_CONTROL: p->r = strip_unix(p, arg, &p->client->control); break;
    case O_JSON: p->client->json = true; break;
    case O_TIMEOUT:
        p->r = parse_number(p, "timeout", arg, 1, 86400, &seconds);
        p->client->timeout_ms = (int)seconds * 1000;
        break;
    case ARGP_KEY_ARG:
        p->r = fvm_err_set(p->err, FVM_EINVAL, 0, room, "\"%.60s\" is not an option; --help lists them", arg);
        break;
    case ARGP_KEY_ERROR: remember(p, state); return ARGP_ERR_UNKNOWN;
    default: return ARGP_ERR_UNKNOWN;
    }
    return p->r ? EINVAL : 0;
}

int fvm_args_parse_client(int argc, char **argv, const char *doc, struct fvm_client_options *ret, struct fvm_err *err)
{
    const struct argp argp = {client_options, on_client_option, NULL, doc, NULL, NULL, NULL};
    *ret = (struct fvm_client_options){.timeout_ms = 30000};
    struct parse p = {.client = ret, .err = err};
    error_t e = argp_parse(&argp, argc, argv, argp_flags(argc, argv), NULL, &p);
    int r = finish(&p, e);
    if (!r && !ret->control)
        r = fvm_err_set(err, FVM_EINVAL, 0, room, "which VM? --control unix:SOCKET is needed");
    return r;
}
