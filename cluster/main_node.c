/*
 * main_node.c - the program fvm-node: arguments, signals, the service manager (readiness, watchdog). The daemon is
 * node*.c.
 *
 * Runs in the foreground. SIGTERM and SIGINT end the daemon and leave the guests running; its next start finds them
 * again.
 */
#include <argp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <systemd/sd-daemon.h>
#include <unistd.h>

#include "base/log.h"
#include "cluster/node.h"

enum { FORWARDS_MAX = 64, O_GATEWAY = 256, O_FORWARD, O_FVM, O_LOG_LEVEL };

struct arguments {
    struct fvm_node_options node;
    const char *forwards[FORWARDS_MAX];
    enum fvm_log_level level;
};

struct service {
    struct fvm_node *node;
    struct fvm_loop_timer *watchdog;
    uint64_t watchdog_ns;
};

const char *argp_program_version = "fvm-node " FVM_VERSION;

static const struct argp_option options[] = {
    {"dir", 'd', "DIR", 0, "cluster directory (default: $FVM_CLUSTER_DIR, /var/lib/fvm or ~/.local/state/fvm)", 0},
    {"name", 'n', "NAME", 0, "which member this is (default: the only one whose key is here)", 0},
    {"listen", 'l', "ADDR", 0, "listen here instead of the address in cluster.json, as tcp://0.0.0.0:7710", 0},
    {"state", 's', "DIR", 0, "state of this node's VMs (default: DIR/nodes/NAME)", 0},
    {"gateway", O_GATEWAY, 0, 0, "this node is the guests' way out of the cluster's network", 0},
    {"forward", O_FORWARD, "tcp:ADDR:PORT-GUEST:PORT", 0,
     "a host port that leads to a guest (with --gateway; may be repeated)", 0},
    {"fvm", O_FVM, "FILE", 0, "the program fvm (default: beside this one)", 0},
    {"log-level", O_LOG_LEVEL, "LEVEL", 0, "error, warn, info (default) or debug", 0},
    {0},
};

static error_t on_option(int key, char *arg, struct argp_state *state)
{
    struct arguments *a = state->input;
    switch (key) {
    case 'd':
        a->node.dir = arg;
        break;
    case 'n':
        a->node.name = arg;
        break;
    case 'l':
        a->node.listen = arg;
        break;
    case 's':
        a->node.state_dir = arg;
        break;
    case O_GATEWAY:
        a->node.gateway = true;
        break;
    case O_FVM:
        a->node.fvm_path = arg;
        break;
    case O_FORWARD:
        if (a->node.forward_count >= FORWARDS_MAX)
            argp_error(state, "more than %d forwards", FORWARDS_MAX);
        else
            a->forwards[a->node.forward_count++] = arg;
        break;
    case O_LOG_LEVEL:
        if (!fvm_log_parse_level(arg, &a->level))
            argp_error(state, "--log-level %s: error, warn, info or debug", arg);
        break;
    case ARGP_KEY_ARG:
        argp_error(state, "\"%s\" is not an option", arg);
        break;
    case ARGP_KEY_END:
        if (a->node.forward_count && !a->node.gateway)
            argp_error(state, "--forward needs --gateway");
        break;
    default:
        return ARGP_ERR_UNKNOWN;
    }
    return 0;
}

static const char doc[] = "fvm-node - a host's daemon in a cluster of fvm: starts, supervises and finds again the VMs "
                          "of this host, and is the peer in a "
                          "migration.\v"
                          "Ending fvm-node (SIGTERM) never stops a guest.\n\n"
                          "Examples:\n"
                          "  fvm-cluster init && fvm-cluster node add a --address tcp://127.0.0.1:7710\n"
                          "  fvm-node --name a\n"
                          "  fvm-node --name a --gateway --forward tcp:127.0.0.1:2222-10.0.2.15:22\n";

static void on_watchdog(void *ctx)
{
    struct service *s = ctx;
    sd_notify(0, "WATCHDOG=1");
    fvm_loop_timer_arm(s->watchdog, fvm_now_ns() + s->watchdog_ns);
}

static void on_signal(void *ctx)
{
    struct service *s = ctx;
    sd_notify(0, "STOPPING=1");
    fvm_loop_stop(s->node->loop, 0);
}

static int serve(struct service *s, struct fvm_err *err)
{
    uint64_t usec = 0;
    int rc = fvm_loop_signal_add(s->node->loop, SIGTERM, on_signal, s);
    if (!rc)
        rc = fvm_loop_signal_add(s->node->loop, SIGINT, on_signal, s);
    if (!rc && sd_watchdog_enabled(0, &usec) > 0) {
        s->watchdog_ns = usec * 1000 / 2;
        rc = fvm_loop_timer_add(s->node->loop, on_watchdog, s, &s->watchdog);
        if (!rc)
            on_watchdog(s);
    }
    if (rc)
        return fvm_err_set(err, rc, 0, "cluster", "cannot watch signals: %s", fvm_err_text(rc));
    sd_notifyf(0, "READY=1\nSTATUS=node %s at %s", s->node->name, s->node->address);
    rc = fvm_node_run(s->node);
    if (s->watchdog)
        fvm_loop_timer_remove(&s->watchdog);
    return rc < 0 ? fvm_err_set(err, rc, 0, "cluster", "the event loop failed: %s", fvm_err_text(rc)) : 0;
}

/* Signals must reach the loop's signalfd, so they are blocked before the first thread exists. */
static void block_signals(void)
{
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGINT);
    sigprocmask(SIG_BLOCK, &set, NULL);
    signal(SIGPIPE, SIG_IGN);
    signal(SIGHUP, SIG_IGN);
}

int main(int argc, char **argv)
{
    struct arguments a = {.level = FVM_LOG_INFO};
    struct service s = {0};
    struct fvm_err err = {0};
    char dir[4096];
    if (argc >= 4 && strcmp(argv[1], "--keep") == 0)
        fvm_node_proc_keep(argv[2], argv + 3);
    argp_err_exit_status = 64;
    static const struct argp argp = {options, on_option, NULL, doc, NULL, NULL, NULL};
    argp_parse(&argp, argc, argv, 0, NULL, &a);
    fvm_log_set_level(a.level);
    block_signals();
    a.node.forwards = a.forwards;
    int rc = a.node.dir ? 0 : fvm_dir_default(dir, sizeof(dir), &err);
    if (!a.node.dir)
        a.node.dir = dir;
    if (!rc)
        rc = fvm_node_open(&a.node, &s.node, &err);
    if (!rc)
        rc = serve(&s, &err);
    if (s.node)
        fvm_node_close(&s.node);
    if (rc)
        fprintf(stderr, "fvm-node: %s\n", err.text[0] ? err.text : fvm_err_text(rc));
    return fvm_err_exit_status(rc);
}
