/*
 * virtio_net.c - the network device (virtio 1.2, section 5.1) on a struct fvm_net. Queues: 0 receive, 1 transmit, 2 control.
 *
 *   guest -> tx ring -> (loop) one frame flat -> fvm_net_send
 *   fvm_net -> deliver -> rx ring, over several buffers when the driver has MRG_RXBUF
 *
 * Transmit checksums are completed here (VIRTIO_NET_F_CSUM), large TCP frames are cut here (HOST_TSO4) unless the back end
 * takes them whole; no offload for receiving. Nothing is held back: a frame without a buffer
 * stays in the net's queue, so a saved device has no frames of its own. Invariant: a receive either uses all the buffers that
 * it took, or none. The frame buffer bounds what a hostile ring can send; bytes beyond it drop the frame.
 */
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "vmm/devices/pack.h"
#include "vmm/devices/virtio/virtio.h"
#include "vmm/devices/virtio/virtio_gso.h"
#include "vmm/devices/virtio/virtio_pci.h"

#define QUEUE_SIZE 256
#define HEADER 12
#define MERGE_MAX 64 /* buffers for one frame */
#define TX_BUDGET 256

enum { RX, TX, CTRL };
enum { F_CSUM = 0, F_MAC = 5, F_HOST_TSO4 = 11, F_MRG_RXBUF = 15, F_STATUS = 16, F_CTRL_VQ = 17, F_GUEST_ANNOUNCE = 21 };
enum { STATUS_LINK_UP = 1, STATUS_ANNOUNCE = 2 };
enum { HDR_F_NEEDS_CSUM = 1, GSO_NONE = 0, GSO_TCPV4 = 1 };
enum { CTRL_ANNOUNCE = 3, CTRL_ANNOUNCE_ACK = 0, CTRL_OK = 0, CTRL_ERR = 1 };

struct header { /* struct virtio_net_hdr, version 1 */
    uint8_t flags, gso_type;
    uint16_t hdr_len, gso_size, csum_start, csum_offset, num_buffers;
};
_Static_assert(sizeof(struct header) == HEADER, "as on the ring");

struct nic { /* board lock */
    struct fvm_virtio virtio;
    struct fvm_net *net;
    uint8_t mac[6];
    bool announce;      /* VIRTIO_NET_S_ANNOUNCE is up */
    bool announce_due;  /* restored: announce at resume */
    struct fvm_virtqueue_chain chain, first;
    uint8_t frame[HEADER + FVM_NET_FRAME_MAX];
    uint8_t segment[FVM_NET_FRAME_MAX + 256];
};

static struct nic *nic_of(struct fvm_device *dev)
{
    return FVM_CONTAINER_OF(dev, struct nic, virtio.dev);
}

static void config_get(struct fvm_virtio *v, uint8_t *config)
{
    const struct nic *nic = FVM_CONTAINER_OF(v, struct nic, virtio);
    uint16_t status = (uint16_t)(STATUS_LINK_UP | (nic->announce ? STATUS_ANNOUNCE : 0));
    memcpy(config, nic->mac, 6);
    memcpy(config + 6, &status, 2);
}

/* --- receive --- */

/* Lay the frame over `taken` buffers at most; pushes all or nothing. */
static bool rx_merge(struct nic *nic, const uint8_t *frame, size_t len)
{
    struct fvm_virtqueue *q = &nic->virtio.queue[RX];
    unsigned limit = fvm_virtio_has(&nic->virtio, F_MRG_RXBUF) ? MERGE_MAX : 1;
    struct {
        uint16_t head;
        uint32_t bytes;
    } used[MERGE_MAX];
    struct header hdr = {0};
    size_t at = 0;
    unsigned n = 0;
    while (n == 0 || at < len) {
        struct fvm_virtqueue_chain *c = n ? &nic->chain : &nic->first;
        int r = n < limit ? fvm_virtqueue_pop(q, c) : 0;
        if (r <= 0) {
            fvm_virtqueue_unpop(q, n);
            return r < 0 || n == limit; /* broken, or too long for this driver: the frame is lost; else it waits */
        }
        size_t skip = n ? 0 : HEADER;
        if (c->in_bytes < skip + 1 || c->out_bytes) {
            fvm_virtqueue_unpop(q, n + 1);
            fvm_virtio_broken(&nic->virtio, RX, "receive buffer too small or not writable");
            return true;
        }
        size_t wrote = fvm_iov_write(fvm_virtqueue_in(c), c->in_count, skip, frame + at, len - at);
        fvm_virtqueue_mark_in(q, c, (uint32_t)(skip + wrote));
        at += wrote;
        used[n].head = c->head;
        used[n++].bytes = (uint32_t)(skip + wrote);
    }
    hdr.num_buffers = (uint16_t)n;
    fvm_iov_write(fvm_virtqueue_in(&nic->first), nic->first.in_count, 0, &hdr, HEADER);
    fvm_virtqueue_push(q, &nic->first, used[0].bytes); /* marks the header as well */
    for (unsigned i = 1; i < n; i++)
        fvm_virtqueue_push_head(q, used[i].head, used[i].bytes);
    return true;
}

static bool deliver(void *ctx, const uint8_t *frame, size_t len)
{
    struct nic *nic = ctx;
    struct fvm_virtio *v = &nic->virtio;
    if (v->quiesced)
        return false;
    if (!fvm_virtio_running(v) || !v->queue[RX].enabled)
        return true; /* no driver: the frame is lost, as on a real card that is off */
    bool done = rx_merge(nic, frame, len);
    if (done)
        fvm_virtqueue_interrupt(&v->queue[RX]);
    return done;
}

static void run_rx(struct nic *nic)
{
    fvm_virtqueue_want_notify(&nic->virtio.queue[RX], false); /* until a frame finds no buffer */
    fvm_net_ready(nic->net);
}

/* --- transmit --- */

static void finish_checksum(uint8_t *frame, size_t len, const struct header *hdr)
{
    size_t start = hdr->csum_start, at = start + hdr->csum_offset;
    if (start >= len || at + 2 > len)
        return; /* goes out as it is; the receiver will drop it */
    uint16_t value = fvm_gso_fold(fvm_gso_sum(frame + start, len - start, 0));
    if (value == 0)
        value = 0xffff; /* for UDP zero means none; for TCP the two are the same */
    frame[at] = (uint8_t)(value >> 8);
    frame[at + 1] = (uint8_t)value;
}

static void emit_segment(void *ctx, const uint8_t *frame, size_t len)
{
    struct nic *nic = ctx;
    fvm_net_send(nic->net, frame, len);
}

static void transmit(struct nic *nic, const struct fvm_virtqueue_chain *c)
{
    struct header hdr;
    if (c->out_bytes < HEADER + FVM_NET_FRAME_MIN || c->out_bytes > sizeof(nic->frame))
        return;
    size_t len = fvm_iov_read(c->iov, c->out_count, 0, nic->frame, c->out_bytes) - HEADER;
    memcpy(&hdr, nic->frame, HEADER);
    if (hdr.gso_type != GSO_NONE) {
        if (hdr.gso_type != GSO_TCPV4 || !fvm_virtio_has(&nic->virtio, F_HOST_TSO4))
            return; /* not negotiated */
        if (len > hdr.gso_size && !fvm_net_takes_large(nic->net)) {
            fvm_gso_tcp4(nic->frame + HEADER, len, hdr.gso_size, nic->segment, emit_segment, nic);
            return;
        }
    }
    if ((hdr.flags & HDR_F_NEEDS_CSUM) && fvm_virtio_has(&nic->virtio, F_CSUM))
        finish_checksum(nic->frame + HEADER, len, &hdr);
    fvm_net_send(nic->net, nic->frame + HEADER, len);
}

static void run_tx(struct nic *nic)
{
    struct fvm_virtio *v = &nic->virtio;
    struct fvm_virtqueue *q = &v->queue[TX];
    fvm_virtqueue_want_notify(q, false);
    for (unsigned budget = TX_BUDGET; budget; budget--) {
        int r = fvm_virtqueue_pop(q, &nic->chain);
        if (r <= 0) {
            fvm_virtqueue_interrupt(q);
            return;
        }
        uint16_t head = nic->chain.head;
        transmit(nic, &nic->chain);
        /* a reply may have come in by deliver and have used nic->chain */
        fvm_virtqueue_push_head(q, head, 0);
    }
    fvm_virtqueue_interrupt(q);
    fvm_virtio_defer(v, TX);
}

/* --- control --- */

static void run_ctrl(struct nic *nic)
{
    struct fvm_virtqueue *q = &nic->virtio.queue[CTRL];
    struct fvm_virtqueue_chain *c = &nic->chain;
    for (unsigned budget = QUEUE_SIZE; budget && fvm_virtqueue_pop(q, c) == 1; budget--) {
        uint8_t cmd[2], ack = CTRL_ERR;
        if (c->in_bytes < 1 || fvm_iov_read(c->iov, c->out_count, 0, cmd, 2) < 2) {
            fvm_virtqueue_unpop(q, 1);
            fvm_virtio_broken(&nic->virtio, CTRL, "control command without command or status byte");
            return;
        }
        if (cmd[0] == CTRL_ANNOUNCE && cmd[1] == CTRL_ANNOUNCE_ACK) {
            nic->announce = false;
            ack = CTRL_OK;
        }
        fvm_iov_write(fvm_virtqueue_in(c), c->in_count, 0, &ack, 1);
        fvm_virtqueue_push(q, c, 1);
    }
    fvm_virtqueue_interrupt(q);
}

static void run(struct fvm_virtio *v, unsigned n)
{
    struct nic *nic = FVM_CONTAINER_OF(v, struct nic, virtio);
    if (n == RX)
        run_rx(nic);
    else if (n == TX)
        run_tx(nic);
    else
        run_ctrl(nic);
}

static void class_reset(struct fvm_virtio *v)
{
    struct nic *nic = FVM_CONTAINER_OF(v, struct nic, virtio);
    nic->announce = false;
}

static const struct fvm_virtio_class net_class = {
    .type = 1,
    .pci_class = 0x020000,
    .queue_sizes = {QUEUE_SIZE, QUEUE_SIZE, 64},
    .config_get = config_get,
    .run = run,
    .reset = class_reset,
};

/* --- device operations --- */

static void destroy(struct fvm_device *dev)
{
    struct nic *nic = nic_of(dev);
    fvm_net_set_deliver(nic->net, NULL, NULL);
    fvm_virtio_fini(&nic->virtio);
    free(nic);
}

static void reset(struct fvm_device *dev)
{
    nic_of(dev)->announce_due = false;
    fvm_virtio_reset(dev);
}

static void resume(struct fvm_device *dev)
{
    struct nic *nic = nic_of(dev);
    fvm_virtio_resume(dev);
    if (!nic->announce_due)
        return;
    nic->announce_due = false;
    fvm_net_announce(nic->net, nic->mac);
    if (fvm_virtio_running(&nic->virtio) && fvm_virtio_has(&nic->virtio, F_GUEST_ANNOUNCE)) {
        nic->announce = true;
        fvm_virtio_config_changed(&nic->virtio);
    }
}

static int save(struct fvm_device *dev, uint8_t **ret_buf, size_t *ret_len)
{
    struct nic *nic = nic_of(dev);
    Fvm__VirtioNetState msg = FVM__VIRTIO_NET_STATE__INIT;
    int r = fvm_net_save(nic->net, &msg.backend.data, &msg.backend.len);
    if (r < 0)
        return r;
    msg.mac = (ProtobufCBinaryData){.len = 6, .data = nic->mac};
    msg.announce = nic->announce;
    r = fvm_virtio_save(&nic->virtio, &msg.base, &msg.virtio, ret_buf, ret_len);
    free(msg.backend.data);
    return r;
}

static int check(struct fvm_device *dev, const uint8_t *buf, size_t len, struct fvm_err *err)
{
    ProtobufCMessage *m = fvm_device_unpack(&fvm__virtio_net_state__descriptor, dev, buf, len, err);
    if (!m)
        return FVM_EBADIMAGE;
    const Fvm__VirtioNetState *msg = (const Fvm__VirtioNetState *)m;
    int r = fvm_virtio_check(&nic_of(dev)->virtio, msg->virtio, err);
    if (r == 0 && (msg->mac.len != 6 || (msg->mac.data[0] & 1)))
        r = fvm_device_refuse(dev, err, "its MAC address is not one of a station");
    protobuf_c_message_free_unpacked(m, NULL);
    return r;
}

static void restore(struct fvm_device *dev, const uint8_t *buf, size_t len)
{
    struct nic *nic = nic_of(dev);
    struct fvm_err err = {0};
    ProtobufCMessage *m = fvm_device_unpack(&fvm__virtio_net_state__descriptor, dev, buf, len, NULL);
    fvm_assert(m);
    const Fvm__VirtioNetState *msg = (const Fvm__VirtioNetState *)m;
    fvm_virtio_restore(&nic->virtio, msg->virtio);
    memcpy(nic->mac, msg->mac.data, 6);
    nic->announce = msg->announce;
    nic->announce_due = true;
    if (fvm_net_restore(nic->net, msg->backend.data, msg->backend.len, &err) < 0)
        fvm_log(WARN, "virtio_net.backend_state", "device=%s err=\"%s\"", dev->instance, err.text);
    protobuf_c_message_free_unpacked(m, NULL);
}

static const struct fvm_device_ops net_ops = {
    .name = "virtio_net",
    .destroy = destroy,
    .reset = reset,
    .quiesce = fvm_virtio_quiesce,
    .resume = resume,
    .save = save,
    .check = check,
    .restore = restore,
};

int fvm_virtio_net_create(struct fvm_board *board, struct fvm_pci_host *host, uint8_t slot, const char *instance,
                          struct fvm_net *net, const uint8_t mac[6], struct fvm_device **ret_dev)
{
    struct nic *nic = calloc(1, sizeof(*nic));
    if (!nic)
        return FVM_ENOMEM;
    nic->net = net;
    memcpy(nic->mac, mac, 6);
    uint64_t offered = 1u << F_CSUM | 1u << F_MAC | 1u << F_HOST_TSO4 | 1u << F_MRG_RXBUF | 1u << F_STATUS | 1u << F_CTRL_VQ |
                       1u << F_GUEST_ANNOUNCE;
    int r = fvm_virtio_init(&nic->virtio, board, host, slot, instance, &net_ops, &net_class, offered);
    if (r < 0) {
        free(nic);
        return r;
    }
    fvm_net_set_deliver(net, deliver, nic);
    *ret_dev = &nic->virtio.dev;
    return 0;
}
