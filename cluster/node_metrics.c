/*
 * node_metrics.c - STATE/metrics: a UNIX socket that gives each caller the node's counters in Prometheus' text form and
 * closes.
 *
 *   curl --unix-socket STATE/metrics http://node/metrics          socat - UNIX-CONNECT:STATE/metrics
 *
 * A caller that sends a request line with HTTP in it gets an HTTP header in front; one that sends nothing gets the text
 * at once. Invariant: nothing here waits for a caller: the text fits the socket's buffer, or the caller loses its end.
 */
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/log.h"
#include "cluster/node.h"
#include "vmm/vm_unix.h"

struct node_metrics {
    struct fvm_node *node;
    int fd;
    struct fvm_loop_io *io;
    char path[4200];
};

static void put(FILE *out, const char *name, const char *type, const char *help, const char *labels, uint64_t value)
{
    if (help)
        fprintf(out, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, type);
    fprintf(out, "%s%s %llu\n", name, labels, (unsigned long long)value);
}

static void put_vms(FILE *out, const struct fvm_node *node)
{
    static const char name[] = "fvm_vm_up";
    bool first = true;
    for (const struct fvm_node_vm *vm = node->vms; vm; vm = vm->next) {
        char labels[256];
        snprintf(labels, sizeof(labels), "{vm=\"%s\",state=\"%s\"}", vm->name, fvm_node_vm_state_text(vm));
        put(out, name, "gauge", first ? "1 for each VM with a process on this node" : NULL, labels, 1);
        first = false;
    }
}

static void write_text(FILE *out, struct fvm_node *node)
{
    unsigned vms = 0;
    for (const struct fvm_node_vm *vm = node->vms; vm; vm = vm->next)
        vms++;
    pthread_mutex_lock(&node->dir_lock);
    uint64_t refused = node->refused;
    pthread_mutex_unlock(&node->dir_lock);
    put(out, "fvm_node_vms", "gauge", "VMs with a process on this node", "", vms);
    put(out, "fvm_node_calls", "gauge", "requests being served", "", node->call_count);
    put(out, "fvm_node_calls_total", "counter", "requests taken in", "", node->calls_total);
    put(out, "fvm_node_refused_total", "counter", "connections refused: key not in cluster.json", "", refused);
    put(out, "fvm_node_store_lost", "gauge", "1: the cluster's store does not answer", "", node->store_lost);
    put(out, "fvm_node_start_time_seconds", "gauge", "when the daemon started", "", node->started_wall_ns / 1000000000);
    put(out, "fvm_node_moves_total", "counter", "guests that moved away from here", "", node->moves_total);
    put(out, "fvm_node_moves_failed_total", "counter", "migrations from here that came to nothing", "",
        node->moves_failed_total);
    fvm_node_net_metrics(node, out);
    put_vms(out, node);
}

static void serve(struct fvm_node *node, int fd)
{
    char request[2048], *text = NULL;
    size_t len = 0;
    ssize_t n = -1;
    struct pollfd p = {.fd = fd, .events = POLLIN};
    if (poll(&p, 1, 5) > 0) /* a client that has something to say says it with its connect */
        n = recv(fd, request, sizeof(request) - 1, MSG_DONTWAIT);
    request[n > 0 ? n : 0] = 0;
    FILE *out = open_memstream(&text, &len);
    if (!out)
        return;
    if (strstr(request, "HTTP/1"))
        fputs("HTTP/1.0 200 OK\r\nContent-Type: text/plain; version=0.0.4\r\nConnection: close\r\n\r\n", out);
    write_text(out, node);
    fclose(out);
    (void)!send(fd, text, len, MSG_DONTWAIT | MSG_NOSIGNAL);
    free(text);
}

static void on_io(void *ctx, int fd, unsigned revents)
{
    struct node_metrics *m = ctx;
    (void)revents;
    int client = accept4(fd, NULL, NULL, SOCK_CLOEXEC);
    if (client < 0)
        return;
    serve(m->node, client);
    close(client);
}

int fvm_node_metrics_open(struct fvm_node *node, struct fvm_err *err)
{
    struct node_metrics *m = calloc(1, sizeof(*m));
    if (!m)
        return fvm_err_set(err, FVM_ENOMEM, 0, "cluster", "out of memory");
    m->node = node;
    m->fd = -1;
    node->metrics = m;
    snprintf(m->path, sizeof(m->path), "%.4000s/metrics", node->state_dir);
    int rc = fvm_unix_listen(m->path, &m->fd, err);
    if (!rc && (rc = fvm_loop_io_add(node->loop, m->fd, FVM_LOOP_IN, on_io, m, &m->io)))
        fvm_err_set(err, rc, 0, "cluster", "cannot watch %s", m->path);
    return rc;
}

void fvm_node_metrics_close(struct fvm_node *node)
{
    struct node_metrics *m = node->metrics;
    if (!m)
        return;
    node->metrics = NULL;
    if (m->io)
        fvm_loop_io_remove(&m->io);
    if (m->fd >= 0) {
        close(m->fd);
        (void)unlink(m->path);
    }
    free(m);
}
