/*
 * vm_config_net.c - the network part of the command line: "user,hostfwd=tcp:127.0.0.1:2222-:22".
 *
 * Invariant: addresses in a message are dotted IPv4 text that inet_pton takes, or empty.
 */
#include <arpa/inet.h>
#include <ctype.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "vmm/vm_config_internal.h"

static const char room[] = "config";

int fvm_config_parse_mac(const char *text, uint8_t ret_mac[6], struct fvm_err *err)
{
    uint8_t mac[6];
    const char *p = text;
    for (int i = 0; i < 6; i++) {
        if (!isxdigit((unsigned char)p[0]) || !isxdigit((unsigned char)p[1]) || p[2] != (i < 5 ? ':' : 0))
            return fvm_err_set(err, FVM_EINVAL, 0, room, "MAC \"%.40s\": write six bytes as 52:54:00:12:34:56", text);
        mac[i] = (uint8_t)strtoul((char[3]){p[0], p[1], 0}, NULL, 16);
        p += 3;
    }
    if (mac[0] & 1)
        return fvm_err_set(err, FVM_EINVAL, 0, room, "MAC \"%.40s\" is a group address; the first byte must be even",
                           text);
    memcpy(ret_mac, mac, 6);
    return 0;
}

static bool parse_port(const char *text, size_t len, uint32_t *ret)
{
    uint32_t n = 0;
    if (len == 0 || len > 5)
        return false;
    for (size_t i = 0; i < len; i++) {
        if (!isdigit((unsigned char)text[i]))
            return false;
        n = n * 10 + (uint32_t)(text[i] - '0');
    }
    *ret = n;
    return n >= 1 && n <= 65535;
}

/* "[ADDR]:PORT" of `len` characters; addr has room for 46. */
static bool parse_endpoint(const char *text, size_t len, char *addr, uint32_t *ret_port)
{
    const char *colon = memchr(text, ':', len);
    if (!colon || (size_t)(colon - text) >= 46)
        return false;
    size_t n = (size_t)(colon - text);
    memcpy(addr, text, n);
    addr[n] = 0;
    struct in_addr in;
    if (n && inet_pton(AF_INET, addr, &in) != 1)
        return false;
    return parse_port(colon + 1, len - n - 1, ret_port);
}

int fvm_config_parse_forward(const char *text, Fvm__HostForward *ret, struct fvm_err *err)
{
    char host[46], guest[46];
    uint32_t host_port, guest_port;
    bool tcp = !strncmp(text, "tcp:", 4), udp = !strncmp(text, "udp:", 4);
    const char *dash = strchr(text, '-');
    if ((!tcp && !udp) || !dash || !parse_endpoint(text + 4, (size_t)(dash - text - 4), host, &host_port) ||
        !parse_endpoint(dash + 1, strlen(dash + 1), guest, &guest_port))
        return fvm_err_set(err, FVM_EINVAL, 0, room,
                           "forward \"%.80s\": write tcp:[HOST-ADDRESS]:PORT-[GUEST-ADDRESS]:PORT, "
                           "as in tcp:127.0.0.1:2222-:22",
                           text);
    if (fvm_config_set(&ret->proto, tcp ? "tcp" : "udp") ||
        fvm_config_set(&ret->host_addr, host[0] ? host : "127.0.0.1") || fvm_config_set(&ret->guest_addr, guest))
        return fvm_err_set(err, FVM_ENOMEM, 0, room, "out of memory");
    ret->host_port = host_port;
    ret->guest_port = guest_port;
    return 0;
}

static int add_forward(Fvm__NetConfig *net, const char *text, struct fvm_err *err)
{
    if (net->n_forwards >= FVM_CONFIG_FORWARDS_MAX)
        return fvm_err_set(err, FVM_EINVAL, 0, room, "more than %d forwards", FVM_CONFIG_FORWARDS_MAX);
    Fvm__HostForward **list = realloc(net->forwards, (net->n_forwards + 1) * sizeof(*list));
    if (list)
        net->forwards = list;
    Fvm__HostForward *fwd = calloc(1, sizeof(*fwd));
    if (!fwd || !list) {
        free(fwd);
        return fvm_err_set(err, FVM_ENOMEM, 0, room, "out of memory");
    }
    fvm__host_forward__init(fwd);
    int r = fvm_config_parse_forward(text, fwd, err);
    if (r)
        fvm__host_forward__free_unpacked(fwd, NULL);
    else
        net->forwards[net->n_forwards++] = fwd;
    return r;
}

static int net_option(Fvm__NetConfig *net, const char *item, struct fvm_err *err)
{
    if (!strncmp(item, "hostfwd=", 8)) {
        if (strcmp(net->kind, "user") != 0)
            return fvm_err_set(err, FVM_EINVAL, 0, room, "hostfwd belongs to --net user");
        return add_forward(net, item + 8, err);
    }
    if (!strncmp(item, "mac=", 4)) {
        uint8_t mac[6];
        int r = fvm_config_parse_mac(item + 4, mac, err);
        if (r)
            return r;
        if (!net->mac.data)
            net->mac.data = malloc(6);
        if (!net->mac.data)
            return fvm_err_set(err, FVM_ENOMEM, 0, room, "out of memory");
        memcpy(net->mac.data, mac, 6);
        net->mac.len = 6;
        return 0;
    }
    if (!strcmp(item, "model=virtio") || !strcmp(item, "model=e1000")) {
        if (fvm_config_set(&net->model, item + 6))
            return fvm_err_set(err, FVM_ENOMEM, 0, room, "out of memory");
        return 0;
    }
    if ((!strncmp(item, "tftp=", 5) && item[5]) || (!strncmp(item, "bootfile=", 9) && item[9])) {
        if (strcmp(net->kind, "user") != 0)
            return fvm_err_set(err, FVM_EINVAL, 0, room, "tftp and bootfile belong to --net user");
        if (fvm_config_set(item[0] == 't' ? &net->tftp : &net->bootfile, strchr(item, '=') + 1))
            return fvm_err_set(err, FVM_ENOMEM, 0, room, "out of memory");
        return 0;
    }
    return fvm_err_set(err, FVM_EINVAL, 0, room,
                       "net option \"%.60s\" is unknown; known are hostfwd=..., mac=..., model=virtio|e1000, tftp=DIR and "
                       "bootfile=FILE", item);
}

static bool kind_known(const char *kind)
{
    return !strcmp(kind, "user") || (!strncmp(kind, "switch:", 7) && kind[7]);
}

static int parse_net(Fvm__NetConfig *net, const char *spec, struct fvm_err *err)
{
    const char *cursor = spec;
    int r = 0;
    bool first = true;
    while (!r && cursor) {
        char *item = fvm_config_next_item(&cursor);
        if (!item)
            return fvm_err_set(err, FVM_ENOMEM, 0, room, "out of memory");
        if (!first)
            r = net_option(net, item, err);
        else if (!kind_known(item))
            r = fvm_err_set(err, FVM_EINVAL, 0, room,
                            "network \"%.60s\" is unknown; known are user, switch:PATH and none", item);
        else if (fvm_config_set(&net->kind, item))
            r = fvm_err_set(err, FVM_ENOMEM, 0, room, "out of memory");
        first = false;
        free(item);
    }
    return r;
}

int fvm_config_add_net(Fvm__VmConfig *config, const char *spec, struct fvm_err *err)
{
    if (!strcmp(spec, "none"))
        return 0;
    if (config->n_nets >= FVM_CONFIG_NETS_MAX)
        return fvm_err_set(err, FVM_EINVAL, 0, room, "more than %d network cards", FVM_CONFIG_NETS_MAX);
    Fvm__NetConfig **list = realloc(config->nets, (config->n_nets + 1) * sizeof(*list));
    if (list)
        config->nets = list;
    Fvm__NetConfig *net = calloc(1, sizeof(*net));
    if (!net || !list) {
        free(net);
        return fvm_err_set(err, FVM_ENOMEM, 0, room, "out of memory");
    }
    fvm__net_config__init(net);
    int r = parse_net(net, spec, err);
    if (r)
        fvm__net_config__free_unpacked(net, NULL);
    else
        config->nets[config->n_nets++] = net;
    return r;
}

static bool addr_valid(const char *text)
{
    struct in_addr in;
    return !text[0] || inet_pton(AF_INET, text, &in) == 1;
}

int fvm_config_check_nets(const Fvm__VmConfig *config, struct fvm_err *err)
{
    if (config->n_nets > FVM_CONFIG_NETS_MAX)
        return fvm_err_set(err, FVM_EINVAL, 0, room, "more than %d network cards", FVM_CONFIG_NETS_MAX);
    for (size_t i = 0; i < config->n_nets; i++) {
        const Fvm__NetConfig *net = config->nets[i];
        if (strcmp(net->kind, "none") != 0 && !kind_known(net->kind))
            return fvm_err_set(err, FVM_EINVAL, 0, room, "network %zu: kind \"%.40s\" is unknown", i, net->kind);
        if (net->mac.len != 0 && (net->mac.len != 6 || (net->mac.data[0] & 1)))
            return fvm_err_set(err, FVM_EINVAL, 0, room, "network %zu: bad MAC address", i);
        if (strlen(net->bootfile) > FVM_CONFIG_BOOTFILE_MAX)
            return fvm_err_set(err, FVM_EINVAL, 0, room, "network %zu: a boot file's name has at most %d characters", i,
                               FVM_CONFIG_BOOTFILE_MAX);
        if (net->n_forwards > FVM_CONFIG_FORWARDS_MAX)
            return fvm_err_set(err, FVM_EINVAL, 0, room, "network %zu: more than %d forwards", i,
                               FVM_CONFIG_FORWARDS_MAX);
        for (size_t j = 0; j < net->n_forwards; j++) {
            const Fvm__HostForward *f = net->forwards[j];
            if ((strcmp(f->proto, "tcp") != 0 && strcmp(f->proto, "udp") != 0) || !addr_valid(f->host_addr) ||
                !addr_valid(f->guest_addr) || f->host_port < 1 || f->host_port > 65535 || f->guest_port < 1 ||
                f->guest_port > 65535)
                return fvm_err_set(err, FVM_EINVAL, 0, room, "network %zu: forward %zu is not possible", i, j);
        }
    }
    return 0;
}
