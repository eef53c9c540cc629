/*
 * ctl_args.c - the command line of fvm-cluster: one option table for all commands; an option that does not belong to
 * the command is refused, so that a mistyped command never does half of what was meant.
 *
 * Invariant: what fvm_ctl_args_parse returns has a known command with the right number of words.
 */
#include <argp.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cluster/ctl.h"
#include "vmm/vm_config.h"

enum {
    O_AS = 256,
    O_JSON,
    O_NODE,
    O_STORE,
    O_ADDRESS,
    O_TIMEOUT,
    O_MAX_DOWNTIME,
    O_DEADLINE,
    O_ON_MISS,
    O_RATE_LIMIT,
    O_NO_THROTTLE,
    O_DRY_RUN,
    O_NO_HISTORY,
    O_KERNEL,
    O_FIRMWARE,
    O_INITRD,
    O_APPEND,
    O_MEMORY,
    O_CPUS,
    O_CPU,
    O_DISK,
    O_CDROM,
    O_MACHINE,
    O_BOOT,
    O_NET,
    O_NO_RNG,
    O_VGA,
    O_ON_RESET,
};

static const struct argp_option table[] = {
    {0, 0, 0, 0, "Everywhere:", 1},
    {"dir", 'd', "DIR", 0, "cluster directory (default: $FVM_CLUSTER_DIR, /var/lib/fvm or ~/.local/state/fvm)", 0},
    {"as", O_AS, "OPERATOR", 0, "whose key to use (default: the only operator whose key is here)", 0},
    {"node", O_NODE, "NAME", 0, "ask this node (default: the first that answers); vm create: where", 0},
    {"json", O_JSON, 0, 0, "print JSON", 0},
    {0, 0, 0, 0, "init:", 2},
    {"store", O_STORE, "URL", 0,
     "etcd://HOST:PORT,...[/PREFIX]?ca=FILE&cert=FILE&key=FILE (default: sqlite:cluster.db, for nodes of one machine)",
     0},
    {0, 0, 0, 0, "node add:", 2},
    {"address", O_ADDRESS, "tcp://HOST:PORT", 0, "where the node listens", 0},
    {0, 0, 0, 0, "vm create (files are the node's):", 3},
    {"kernel", O_KERNEL, "FILE", 0, "Linux bzImage or multiboot kernel", 0},
    {"firmware", O_FIRMWARE, "seabios|FILE", 0, "start firmware, which boots from a disk, instead of a kernel", 0},
    {"initrd", O_INITRD, "FILE", 0, "initial RAM disk", 0},
    {"append", O_APPEND, "TEXT", 0, "the kernel's command line", 0},
    {"memory", O_MEMORY, "SIZE", 0, "guest memory, as 512M or 2G (default 1G)", 0},
    {"cpus", O_CPUS, "N", 0, "processors, 1 to 16 (default 1)", 0},
    {"cpu", O_CPU, "MODEL", 0, "fvm64-v1 .. fvm64-v3", 0},
    {"machine", O_MACHINE, "pc|virtio", 0, "the full PC, or virtio devices only", 0},
    {"cdrom", O_CDROM, "FILE[,if=ide|ahci]", 0, "a CD-ROM drive with this image, seen by all nodes", 0},
    {"boot", O_BOOT, "disk,cdrom,net", 0, "what firmware tries, in this order", 0},
    {"disk", O_DISK, "FILE[,if=virtio|ide|ahci][,readonly][,serial=S]", 0,
     "raw image or block device, seen by all nodes; may be repeated", 0},
    {"net", O_NET, "switch[,model=virtio|e1000][,mac=M]|user[,hostfwd=...]|none", 0,
     "switch: the cluster's network; user: this host's. May be repeated", 0},
    {"vga", O_VGA, "std|none", 0, "display adapter (default std)", 0},
    {"no-rng", O_NO_RNG, 0, 0, "no virtio random number generator", 0},
    {"on-reset", O_ON_RESET, "reset|stop", 0, "what a reset by the guest does", 0},
    {0, 0, 0, 0, "vm stop:", 4},
    {"timeout", O_TIMEOUT, "SECONDS", 0, "how long the guest has to power off before it is killed (default 30)", 0},
    {0, 0, 0, 0, "vm console:", 5},
    {"no-history", O_NO_HISTORY, 0, 0, "only what comes from now on", 0},
    {0, 0, 0, 0, "vm migrate:", 6},
    {"max-downtime", O_MAX_DOWNTIME, "MS", 0, "longest blackout aimed at (default 300)", 0},
    {"deadline", O_DEADLINE, "SECONDS", 0, "give up after this (default 600)", 0},
    {"on-miss", O_ON_MISS, "cancel|pause", 0,
     "at the deadline: stay, or move with whatever blackout it takes (default cancel)", 0},
    {"rate-limit", O_RATE_LIMIT, "SIZE", 0, "send at most this much per second, as 100M, while the guest runs", 0},
    {"max-bandwidth", O_RATE_LIMIT, 0, OPTION_ALIAS, 0, 0},
    {"no-throttle", O_NO_THROTTLE, 0, 0, "never slow down a guest that writes faster than pages can be sent", 0},
    {"dry-run", O_DRY_RUN, 0, 0, "do everything but stop the guest", 0},
    {0},
};

static const char doc[] =
    "fvm-cluster - operate a cluster of fvm nodes.\v"
    "Commands:\n"
    "  init                       make the cluster directory, its keys and the operator \"admin\"\n"
    "  node add NAME              add a node: key pair and address\n"
    "  node remove NAME           take it off the allow-list\n"
    "  node list\n"
    "  operator add|remove NAME\n"
    "  vm create NAME             define a VM on a node\n"
    "  vm start|show|delete NAME\n"
    "  vm list\n"
    "  vm console NAME            attach to its serial console; Ctrl-A x leaves\n"
    "  vm stop NAME               press its power button; kill it when that does not help\n"
    "  vm kill NAME               pull the plug\n"
    "  vm pause|resume NAME\n"
    "  vm migrate NAME NODE       move it while it runs; Ctrl-C cancels\n"
    "  vm explain NAME            how its last migration went, and where the time did\n"
    "  vm recover NAME            settle a migration that a crash left in the middle, and say why\n"
    "\n"
    "Examples:\n"
    "  fvm-cluster init\n"
    "  fvm-cluster init --store 'etcd://10.0.0.1:2379,10.0.0.2:2379,10.0.0.3:2379?ca=/etc/fvm/ca.pem&"
    "cert=/etc/fvm/client.pem&key=/etc/fvm/client.key'\n"
    "  fvm-cluster node add a --address tcp://127.0.0.1:7710\n"
    "  fvm-cluster vm create web --node a --kernel vmlinuz --initrd initrd.img --append console=ttyS0 --disk web.img "
    "--net switch\n"
    "  fvm-cluster vm start web\n"
    "  fvm-cluster vm migrate web b --max-downtime 50\n"
    "  fvm-cluster vm list --json\n"
    "\n"
    "Exit status: 0, or as in sysexits.h: 64 wrong arguments, 66 not found, 69 not supported, 71 not possible now, "
    "73 exists already, 74 input/output, 75 busy or no answer, 76 protocol, 77 refused.\n";

/* Which commands an option belongs to; options of group 1 to all. */
static const struct {
    int first, last;
    const char *noun, *verb;
} belongs[] = {
    {O_STORE, O_STORE, "init", NULL},
    {O_ADDRESS, O_ADDRESS, "node", "add"},
    {O_TIMEOUT, O_TIMEOUT, "vm", "stop"},
    {O_MAX_DOWNTIME, O_DRY_RUN, "vm", "migrate"},
    {O_NO_HISTORY, O_NO_HISTORY, "vm", "console"},
    {O_KERNEL, O_ON_RESET, "vm", "create"},
};

struct parse {
    struct fvm_ctl_options *o;
    struct argp_state *state;
    bool used[64]; /* by option - O_AS */
};

static void must(struct parse *p, int rc, const struct fvm_err *err)
{
    if (rc)
        argp_error(p->state, "%s", err->text);
}

static uint32_t number(struct parse *p, const char *what, const char *text, unsigned long max)
{
    char *end;
    unsigned long n = strtoul(text, &end, 10);
    if (text[0] < '0' || text[0] > '9' || *end || n < 1 || n > max)
        argp_error(p->state, "%s %s: a number from 1 to %lu", what, text, max);
    return (uint32_t)n;
}

/* Names of files are the node's; on one machine a relative name is meant from here. */
static char *absolute(struct parse *p, const char *name)
{
    char dir[4096], *out = NULL;
    if (name[0] == '/')
        return strdup(name);
    if (!getcwd(dir, sizeof(dir)) || asprintf(&out, "%s/%s", dir, name) < 0)
        argp_error(p->state, "%s: give the whole path", name);
    return out;
}

static void set_path(struct parse *p, char **field, const char *name)
{
    char *path = absolute(p, name);
    if (!path || fvm_config_set(field, path))
        argp_error(p->state, "out of memory");
    free(path);
}

static void add_net(struct parse *p, const char *spec)
{
    struct fvm_err err = {0};
    char *text = NULL;
    bool ours = strncmp(spec, "switch", 6) == 0 && (!spec[6] || spec[6] == ',');
    if (asprintf(&text, ours ? "switch:@%s" : "%s", ours ? spec + 6 : spec) < 0)
        argp_error(p->state, "out of memory");
    must(p, fvm_config_add_net(p->o->config, text, &err), &err);
    free(text);
}

static void add_disk(struct parse *p, const char *spec, bool cdrom)
{
    struct fvm_err err = {0};
    char *text = absolute(p, spec);
    must(p, (cdrom ? fvm_config_add_cdrom : fvm_config_add_disk)(p->o->config, text ? text : "", &err), &err);
    free(text);
}

static void machine_option(struct parse *p, int key, const char *arg)
{
    Fvm__VmConfig *c = p->o->config;
    struct fvm_err err = {0};
    int rc = 0;
    switch (key) {
    case O_KERNEL:
        set_path(p, &c->kernel, arg);
        break;
    case O_FIRMWARE:
        if (strcmp(arg, "seabios"))
            set_path(p, &c->firmware, arg);
        else
            rc = fvm_config_set(&c->firmware, arg);
        break;
    case O_INITRD:
        set_path(p, &c->initrd, arg);
        break;
    case O_APPEND:
        rc = fvm_config_set(&c->append, arg);
        break;
    case O_MEMORY:
        must(p, fvm_config_parse_bytes(arg, &c->memory_bytes, &err), &err);
        break;
    case O_CPUS:
        c->cpus = number(p, "--cpus", arg, FVM_CONFIG_CPUS_MAX);
        break;
    case O_CPU:
        rc = fvm_config_set(&c->cpu_model, arg);
        break;
    case O_DISK:
        add_disk(p, arg, false);
        break;
    case O_CDROM:
        add_disk(p, arg, true);
        break;
    case O_MACHINE:
        must(p, fvm_config_set_machine(c, arg, &err), &err);
        break;
    case O_BOOT:
        must(p, fvm_config_set_boot(c, arg, &err), &err);
        break;
    case O_NET:
        add_net(p, arg);
        break;
    case O_NO_RNG:
        c->rng = false;
        break;
    case O_VGA:
        rc = fvm_config_set(&c->vga, arg);
        break;
    case O_ON_RESET:
        rc = fvm_config_set(&c->on_reset, arg);
        break;
    default:
        break;
    }
    if (rc)
        argp_error(p->state, "out of memory");
}

static void check_words(struct parse *p);

static error_t on_option(int key, char *arg, struct argp_state *state)
{
    struct parse *p = state->input;
    struct fvm_ctl_options *o = p->o;
    struct fvm_err err = {0};
    p->state = state;
    if (key >= O_AS && key < O_AS + 64)
        p->used[key - O_AS] = true;
    switch (key) {
    case 'd':
        o->dir = arg;
        break;
    case O_AS:
        o->as = arg;
        break;
    case O_JSON:
        o->json = true;
        break;
    case O_NODE:
        o->node = arg;
        break;
    case O_STORE:
        o->store = arg;
        break;
    case O_ADDRESS:
        o->address = arg;
        break;
    case O_TIMEOUT:
        o->timeout_s = number(p, "--timeout", arg, 3600);
        break;
    case O_MAX_DOWNTIME:
        o->max_downtime_ms = number(p, "--max-downtime", arg, 3600000);
        break;
    case O_DEADLINE:
        o->deadline_s = number(p, "--deadline", arg, 86400);
        break;
    case O_ON_MISS:
        o->on_miss = arg;
        break;
    case O_RATE_LIMIT:
        must(p, fvm_config_parse_bytes(arg, &o->rate_limit_bytes, &err), &err);
        break;
    case O_NO_THROTTLE:
        o->no_throttle = true;
        break;
    case O_DRY_RUN:
        o->dry_run = true;
        break;
    case O_NO_HISTORY:
        o->history = false;
        break;
    case ARGP_KEY_ARG:
        if (o->word_count >= FVM_CTL_WORDS_MAX)
            argp_error(state, "\"%s\" is one word too many", arg);
        else
            o->words[o->word_count++] = arg;
        break;
    case ARGP_KEY_END:
        check_words(p);
        break;
    default:
        if (key < O_KERNEL || key > O_ON_RESET)
            return ARGP_ERR_UNKNOWN;
        machine_option(p, key, arg);
    }
    return 0;
}

static const struct {
    const char *noun, *verb;
    unsigned words;
    const char *form;
} commands[] = {
    {"init", NULL, 1, "init"},
    {"node", "add", 3, "node add NAME --address tcp://HOST:PORT"},
    {"node", "remove", 3, "node remove NAME"},
    {"node", "list", 2, "node list"},
    {"operator", "add", 3, "operator add NAME"},
    {"operator", "remove", 3, "operator remove NAME"},
    {"vm", "create", 3, "vm create NAME --kernel FILE"},
    {"vm", "start", 3, "vm start NAME"},
    {"vm", "list", 2, "vm list"},
    {"vm", "show", 3, "vm show NAME"},
    {"vm", "console", 3, "vm console NAME"},
    {"vm", "stop", 3, "vm stop NAME"},
    {"vm", "kill", 3, "vm kill NAME"},
    {"vm", "delete", 3, "vm delete NAME"},
    {"vm", "pause", 3, "vm pause NAME"},
    {"vm", "resume", 3, "vm resume NAME"},
    {"vm", "migrate", 4, "vm migrate NAME NODE"},
    {"vm", "explain", 3, "vm explain NAME"},
    {"vm", "recover", 3, "vm recover NAME"},
};

static bool is(const char *a, const char *b) { return a && b ? strcmp(a, b) == 0 : a == b; }

static void check_options(struct parse *p)
{
    for (size_t i = 0; i < FVM_ARRAY_SIZE(belongs); i++)
        for (int key = belongs[i].first; key <= belongs[i].last; key++) {
            if (!p->used[key - O_AS] || (is(p->o->words[0], belongs[i].noun) && is(p->o->words[1], belongs[i].verb)))
                continue;
            const struct argp_option *t = table;
            while (t->key != key)
                t++;
            argp_error(p->state, "--%s belongs to \"%s%s%s\"", t->name, belongs[i].noun, belongs[i].verb ? " " : "",
                       belongs[i].verb ? belongs[i].verb : "");
        }
}

static void check_words(struct parse *p)
{
    struct fvm_ctl_options *o = p->o;
    if (!o->word_count)
        argp_error(p->state, "which command?");
    for (size_t i = 0; i < FVM_ARRAY_SIZE(commands); i++) {
        if (!is(o->words[0], commands[i].noun) || (commands[i].verb && !is(o->words[1], commands[i].verb)))
            continue;
        if (o->word_count != commands[i].words)
            argp_error(p->state, "write: fvm-cluster %s", commands[i].form);
        if (is(o->words[1], "add") && is(o->words[0], "node") && !o->address)
            argp_error(p->state, "write: fvm-cluster %s", commands[i].form);
        check_options(p);
        return;
    }
    argp_error(p->state, "there is no command \"%s%s%s\"", o->words[0], o->word_count > 1 ? " " : "",
               o->word_count > 1 ? o->words[1] : "");
}

void fvm_ctl_args_parse(int argc, char **argv, struct fvm_ctl_options *ret)
{
    static const struct argp argp = {table, on_option, "COMMAND [ARGUMENT...]", doc, NULL, NULL, NULL};
    *ret = (struct fvm_ctl_options){.history = true, .timeout_s = 30, .config = fvm_config_new()};
    if (!ret->config) {
        fputs("fvm-cluster: out of memory\n", stderr);
        exit(70);
    }
    struct parse p = {.o = ret};
    argp_err_exit_status = 64;
    argp_parse(&argp, argc, argv, 0, NULL, &p);
}

void fvm_ctl_args_free(struct fvm_ctl_options *options) { fvm_config_free(&options->config); }
