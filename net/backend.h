/*
 * backend.h - net's own: what the front door (net.c) and the back ends share. Nobody else includes it.
 */
#ifndef FVM_NET_BACKEND_H
#define FVM_NET_BACKEND_H

#include "net/net.h"

#define FVM_NET_QUEUE_FRAMES 512 /* frames that wait for a guest without buffers; more are dropped */

struct fvm_net_frame {
    struct fvm_net_frame *next;
    size_t len;
    uint8_t bytes[];
};

struct fvm_net_ops {
    const char *kind;
    bool layer2;      /* announcements make sense */
    bool takes_large; /* fvm_net_takes_large */
    void (*close)(struct fvm_net *net); /* inactive already; frees the struct */
    int (*activate)(struct fvm_net *net, struct fvm_err *err);
    void (*deactivate)(struct fvm_net *net);
    void (*send)(struct fvm_net *net, const uint8_t *frame, size_t len);
    int (*save)(struct fvm_net *net, uint8_t **ret_buf, size_t *ret_len); /* may be NULL */
    int (*restore)(struct fvm_net *net, const uint8_t *buf, size_t len, struct fvm_err *err);
};

struct fvm_net { /* first member of each back end. Guard. */
    const struct fvm_net_ops *ops;
    struct fvm_loop *loop;
    fvm_net_deliver deliver;
    void *ctx;
    bool active;
    struct fvm_net_frame *head, **tail;
    unsigned queued;
    uint64_t dropped;
    struct fvm_loop_timer *announce_timer;
    uint8_t announce_mac[6];
    unsigned announce_step; /* next in the schedule */
    bool announcing;
};

/** A frame from outside, for the guest: delivered in order, queued while it has no buffers. */
void fvm_net_receive(struct fvm_net *net, const uint8_t *frame, size_t len);
/** RARP "this is where I am", 60 bytes (net.c; the switch sends none itself). */
void fvm_net_rarp(const uint8_t mac[6], uint8_t ret_frame[60]);

/* Each allocates its struct, fills ops and what it needs of the options, and stays inactive. */
int fvm_net_user_create(const struct fvm_net_options *opt, struct fvm_net **ret_net, struct fvm_err *err);
int fvm_net_switch_create(const char *path, struct fvm_net **ret_net, struct fvm_err *err);

#endif
