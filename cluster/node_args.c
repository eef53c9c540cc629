/*
 * node_args.c - a VM's configuration as the command line of `fvm run`: the same language an operator writes
 * (fvm_args.c), so that what a node starts can be copied from `ps` and run by hand.
 *
 * Invariant: every value of the configuration appears once; a comma in a file's name is doubled.
 */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cluster/node.h"
#include "cluster/node_arrival.h"

enum { ARGS_MAX = 200 };

struct args {
    char *item[ARGS_MAX + 1];
    int count;
    bool failed;
};

static void add(struct args *a, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    char *text = NULL;
    if (a->count >= ARGS_MAX || vasprintf(&text, fmt, ap) < 0)
        a->failed = true;
    else
        a->item[a->count++] = text;
    va_end(ap);
}

static void escape(const char *name, char *buf, size_t size)
{
    size_t n = 0;
    for (; *name && n + 3 < size; name++) {
        if (*name == ',')
            buf[n++] = ',';
        buf[n++] = *name;
    }
    buf[n] = 0;
}

static void add_disk(struct args *a, const Fvm__DiskConfig *d)
{
    char path[8200], serial[160];
    escape(d->path, path, sizeof(path));
    escape(d->serial, serial, sizeof(serial));
    add(a, d->cdrom ? "--cdrom" : "--disk");
    add(a, "%s%s%s%s%s%s%s%s", path, d->readonly && !d->cdrom ? ",readonly" : "", d->interface[0] ? ",if=" : "",
        d->interface, d->format[0] ? ",format=" : "", d->format, serial[0] ? ",serial=" : "", serial);
}

/* "switch:@" stands for the switch of whatever node the VM is on. */
static void add_net(struct args *a, const Fvm__NetConfig *n, const char *switch_socket)
{
    char text[16384], path[4200];
    size_t len;
    if (strcmp(n->kind, "switch:@") == 0) {
        escape(switch_socket, path, sizeof(path));
        len = (size_t)snprintf(text, sizeof(text), "switch:%s", path);
    } else {
        len = (size_t)snprintf(text, sizeof(text), "%.2000s", n->kind);
    }
    if (n->model[0])
        len += (size_t)snprintf(text + len, sizeof(text) - len, ",model=%.16s", n->model);
    if (n->tftp[0]) {
        escape(n->tftp, path, sizeof(path));
        len += (size_t)snprintf(text + len, sizeof(text) - len, ",tftp=%.4000s", path);
    }
    if (n->bootfile[0]) {
        escape(n->bootfile, path, sizeof(path));
        len += (size_t)snprintf(text + len, sizeof(text) - len, ",bootfile=%.300s", path);
    }
    if (n->mac.len == 6)
        len += (size_t)snprintf(text + len, sizeof(text) - len, ",mac=%02x:%02x:%02x:%02x:%02x:%02x", n->mac.data[0],
                                n->mac.data[1], n->mac.data[2], n->mac.data[3], n->mac.data[4], n->mac.data[5]);
    for (size_t i = 0; i < n->n_forwards && len < sizeof(text) - 200; i++) {
        const Fvm__HostForward *f = n->forwards[i];
        len += (size_t)snprintf(text + len, sizeof(text) - len, ",hostfwd=%.8s:%.45s:%u-%.45s:%u", f->proto,
                                f->host_addr, f->host_port, f->guest_addr, f->guest_port);
    }
    add(a, "--net");
    add(a, "%s", text);
}

static void add_machine(struct args *a, const Fvm__VmConfig *c, const char *switch_socket)
{
    add(a, "--name=%s", c->name);
    if (c->id.len == 16) {
        char hex[33];
        for (int i = 0; i < 16; i++)
            snprintf(hex + 2 * i, 3, "%02x", c->id.data[i]);
        add(a, "--id=%s", hex);
    }
    if (c->firmware[0])
        add(a, "--firmware=%s", c->firmware);
    else
        add(a, "--kernel=%s", c->kernel);
    if (c->initrd[0])
        add(a, "--initrd=%s", c->initrd);
    if (c->append[0])
        add(a, "--append=%s", c->append);
    add(a, "--memory=%lluK", (unsigned long long)(c->memory_bytes >> 10));
    add(a, "--cpus=%u", c->cpus);
    if (c->cpu_model[0])
        add(a, "--cpu=%s", c->cpu_model);
    if (c->tsc_khz)
        add(a, "--tsc-khz=%u", c->tsc_khz);
    if (strcmp(c->vga, "std") != 0)
        add(a, "--vga=none");
    if (!c->rng)
        add(a, "--no-rng");
    if (c->on_reset[0])
        add(a, "--on-reset=%s", c->on_reset);
    if (c->machine[0])
        add(a, "--machine=%s", c->machine);
    if (c->boot[0])
        add(a, "--boot=%s", c->boot);
    for (size_t i = 0; i < c->n_disks; i++)
        add_disk(a, c->disks[i]);
    for (size_t i = 0; i < c->n_nets; i++)
        add_net(a, c->nets[i], switch_socket);
    if (!c->n_nets)
        add(a, "--net=none");
}

/* Any free port of the address at which this node itself is reached. */
static const char *incoming_address(const struct fvm_node *node, char *buf, size_t size)
{
    snprintf(buf, size, "%s", node->address);
    char *colon = strrchr(buf, ':');
    if (colon)
        snprintf(colon, size - (size_t)(colon - buf), ":*");
    return buf;
}

int fvm_node_args_make(const struct fvm_node_vm *vm, const struct fvm_node_arrival *incoming, char ***ret_argv,
                       struct fvm_err *err)
{
    char path[4200];
    struct args *a = calloc(1, sizeof(*a));
    if (!a)
        return fvm_err_set(err, FVM_ENOMEM, 0, "cluster", "out of memory");
    add(a, "%s", vm->node->fvm_path);
    add(a, "run");
    add_machine(a, vm->config, fvm_node_net_socket(vm->node));
    fvm_node_vm_path(vm, "console", path, sizeof(path));
    add(a, "--serial=unix:%s", path);
    fvm_node_vm_path(vm, "control", path, sizeof(path));
    add(a, "--control=unix:%s", path);
    if (incoming)
        add(a, "--incoming=%s", incoming_address(vm->node, path, sizeof(path)));
    if (a->failed) {
        fvm_node_args_free((char **)a);
        return fvm_err_set(err, FVM_ENOMEM, 0, "cluster", "VM %s: too many disks, networks or out of memory", vm->name);
    }
    *ret_argv = a->item; /* the first member: one pointer for both */
    return 0;
}

void fvm_node_args_free(char **argv)
{
    struct args *a = (struct args *)(void *)argv;
    for (int i = 0; a && i < a->count; i++)
        free(a->item[i]);
    free(a);
}
