/*
 * vm_listen.c - see vm_listen.h. Addresses are numeric: nothing here asks a name server.
 */
#include "vmm/vm_listen.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static const char room[] = "listen";

static int parse(const char *what, const char *addr, struct sockaddr_storage *ret, socklen_t *ret_len,
                 bool *ret_loopback, struct fvm_err *err)
{
    struct sockaddr_in *in4 = (struct sockaddr_in *)ret;
    struct sockaddr_in6 *in6 = (struct sockaddr_in6 *)ret;
    char host[64] = "127.0.0.1", *end;
    const char *colon = strrchr(addr, ':'), *port = colon ? colon + 1 : addr;
    size_t len = colon ? (size_t)(colon - addr) : 0;
    unsigned long number = strtoul(port, &end, 10);
    bool good = len < sizeof(host) && port[0] >= '0' && port[0] <= '9' && !*end && number >= 1 && number <= 65535;
    if (good && len) {
        bool brackets = addr[0] == '[' && addr[len - 1] == ']';
        snprintf(host, sizeof(host), "%.*s", (int)(brackets ? len - 2 : len), addr + brackets);
    }
    memset(ret, 0, sizeof(*ret));
    if (good && inet_pton(AF_INET, host, &in4->sin_addr) == 1) {
        in4->sin_family = AF_INET;
        in4->sin_port = htons((uint16_t)number);
        *ret_len = sizeof(*in4);
        *ret_loopback = ntohl(in4->sin_addr.s_addr) >> 24 == 127;
        return 0;
    }
    if (!good || inet_pton(AF_INET6, host, &in6->sin6_addr) != 1)
        return fvm_err_set(err, FVM_EINVAL, 0, room,
                           "%s address \"%.80s\": write unix:PATH, PORT, or ADDR:PORT with a numeric address", what,
                           addr);
    in6->sin6_family = AF_INET6;
    in6->sin6_port = htons((uint16_t)number);
    *ret_len = sizeof(*in6);
    *ret_loopback = IN6_IS_ADDR_LOOPBACK(&in6->sin6_addr);
    return 0;
}

int fvm_listen_tcp(const char *what, const char *addr, bool any, int *ret_fd, struct fvm_err *err)
{
    struct sockaddr_storage sa;
    socklen_t len = 0;
    bool loopback = false;
    int r = parse(what, addr, &sa, &len, &loopback, err);
    if (r)
        return r;
    if (!loopback && !any)
        return fvm_err_set(err, FVM_EPERM, 0, room,
                           "%s at %.80s would let anybody in: use 127.0.0.1 or unix:PATH (VNC: or password-file=F)", what,
                           addr);
    int fd = socket(sa.ss_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd >= 0)
        setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &(int){1}, sizeof(int));
    if (fd < 0 || bind(fd, (struct sockaddr *)&sa, len) < 0 || listen(fd, 4) < 0) {
        int e = errno;
        if (fd >= 0)
            close(fd);
        return fvm_err_set(err, fvm_err_from_errno(e), e, room, "%s at %.80s: %s", what, addr, strerror(e));
    }
    *ret_fd = fd;
    return 0;
}
