/*
 * switch_internal.h - the switch's own: ports and the MAC table, shared by switch*.c. Nobody else includes it.
 */
#ifndef FVM_NET_SWITCH_INTERNAL_H
#define FVM_NET_SWITCH_INTERNAL_H

#include "net/switch.h"

#define FVM_SWITCH_MACS_MAX 8192
#define FVM_SWITCH_BUCKETS 4096
#define FVM_SWITCH_AGE_NS (300ull * 1000000000ull)

enum fvm_switch_kind { FVM_SWITCH_VM, FVM_SWITCH_LINK, FVM_SWITCH_GATEWAY };

struct fvm_switch_port { /* first member of each kind of port; in the switch's list while it exists */
    struct fvm_switch *sw;
    struct fvm_switch_port *next, **prev_next;
    enum fvm_switch_kind kind;
    unsigned macs, macs_max;
    bool (*send)(struct fvm_switch_port *port, const uint8_t *frame, size_t len);
};

struct fvm_switch_mac {
    struct fvm_switch_mac *next; /* in its bucket, or in the free list */
    struct fvm_switch_port *port;
    uint64_t seen_ns;
    uint8_t mac[6];
};

struct fvm_switch_mactab {
    struct fvm_switch_mac *bucket[FVM_SWITCH_BUCKETS];
    struct fvm_switch_mac *free;
    unsigned count;
    struct fvm_switch_mac pool[FVM_SWITCH_MACS_MAX];
};

struct fvm_switch_tcp; /* transports, switch_tcp.c */

struct fvm_switch { /* loop's thread */
    struct fvm_loop *loop;
    struct fvm_switch_port *ports;
    struct fvm_switch_mactab *macs;
    struct fvm_switch_stats stats;
    char *path;
    int listener;
    struct fvm_loop_io *listener_io;
    struct fvm_net *gateway;
    struct fvm_switch_port gateway_port;
    struct fvm_switch_tcp *tcps;
    uint8_t frame[FVM_NET_FRAME_MAX + 1]; /* received here; the extra byte tells frames that are too long */
};

/* switch.c */
void fvm_switch_port_add(struct fvm_switch *sw, struct fvm_switch_port *port);
void fvm_switch_port_remove(struct fvm_switch_port *port); /* out of the list, its MACs forgotten */
void fvm_switch_forward(struct fvm_switch_port *from, const uint8_t *frame, size_t len);

/* switch_mac.c */
void fvm_switch_mac_init(struct fvm_switch_mactab *tab);
/** True when the MAC moved here from another port. Unicast only; a port over its share, or a full table, learns nothing. */
bool fvm_switch_mac_learn(struct fvm_switch_mactab *tab, const uint8_t mac[6], struct fvm_switch_port *port, uint64_t now_ns);
/** Where it is; NULL: not known, or too old. */
struct fvm_switch_port *fvm_switch_mac_find(struct fvm_switch_mactab *tab, const uint8_t mac[6], uint64_t now_ns);
void fvm_switch_mac_forget(struct fvm_switch_mactab *tab, const struct fvm_switch_port *port);

/* switch_vm.c */
int fvm_switch_vm_listen(struct fvm_switch *sw, struct fvm_err *err);
void fvm_switch_vm_close(struct fvm_switch_port *port);

/* switch_tcp.c */
void fvm_switch_tcp_close_all(struct fvm_switch *sw);

#endif
