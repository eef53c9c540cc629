/* virtio_net between a driver and a switch with an observer on it: frames both ways, merged buffers, checksums, the move. */
#include <CUnit/Basic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "net/switch.h"
#include "tests/device/support_virtio.h"

#define SLOT 5
#define SECOND 1000000000ull
#define V1 (1ull << VT_F_VERSION_1)
#define TX_DATA 0x300000
#define RX_DATA 0x400000

enum { RX, TX, CTRL };
enum { F_CSUM = 0, F_MRG = 15, F_CTRL = 17, F_ANNOUNCE = 21 };

static char dir[64], path[96];
static const uint8_t mac[6] = {0x52, 0x54, 0, 9, 9, 9};

struct observer {
    struct fvm_net *net;
    unsigned frames, rarps;
    uint8_t last[70000];
    size_t len;
};

struct rig {
    struct vt vt;
    struct vt_dev d;
    struct vt_queue q[3];
    struct fvm_net *net;
    struct fvm_device *dev;
};

/* the switch and the observer live on the first machine's loop */
static struct fvm_switch *sw;
static struct observer seen;

static bool observe(void *ctx, const uint8_t *frame, size_t len)
{
    struct observer *o = ctx;
    if (frame[12] == 0x80 && frame[13] == 0x35 && !memcmp(frame + 6, mac, 6)) {
        o->rarps++;
        return true;
    }
    o->frames++;
    o->len = len;
    memcpy(o->last, frame, len);
    return true;
}

static void rig_open(struct rig *r, bool inactive)
{
    char kind[128];
    struct fvm_err err = {0};
    snprintf(kind, sizeof(kind), "switch:%s", path);
    memset(r, 0, sizeof(*r));
    vt_open(&r->vt);
    if (!sw) {
        struct fvm_net_options observer = {.kind = kind};
        memset(&seen, 0, sizeof(seen));
        CU_ASSERT_EQUAL_FATAL(fvm_switch_create(r->vt.loop, path, &sw, &err), 0);
        CU_ASSERT_EQUAL_FATAL(fvm_net_open(r->vt.loop, &observer, observe, &seen, &seen.net, &err), 0);
    }
    struct fvm_net_options opt = {.kind = kind, .inactive = inactive};
    CU_ASSERT_EQUAL_FATAL(fvm_net_open(r->vt.loop, &opt, NULL, NULL, &r->net, &err), 0);
    CU_ASSERT_EQUAL_FATAL(fvm_virtio_net_create(&r->vt.board, r->vt.host, SLOT, "virtio-net0", r->net, mac, &r->dev), 0);
    vt_attach(&r->vt, &r->d, r->dev, SLOT);
    vt_settle(&r->vt);
}

static void rig_start(struct rig *r, uint64_t features)
{
    CU_ASSERT_TRUE_FATAL(vt_negotiate(&r->d, V1 | features));
    vt_msix(&r->d, 4, 0x50);
    for (unsigned n = 0; n < 3; n++)
        vt_queue_setup(&r->d, &r->q[n], n, 64, 0x100000 + 0x10000 * n);
    vt_driver_ok(&r->d);
}

static void rig_close(struct rig *r, bool last)
{
    r->dev->ops->destroy(r->dev);
    fvm_net_close(&r->net);
    if (last) {
        fvm_net_close(&seen.net);
        fvm_switch_destroy(&sw);
    }
    vt_close(&r->vt);
}

static void make_frame(uint8_t *f, const uint8_t to[6], const uint8_t from[6], size_t len)
{
    for (size_t i = 14; i < len; i++)
        f[i] = (uint8_t)(i * 11 + len);
    memcpy(f, to, 6);
    memcpy(f + 6, from, 6);
    f[12] = 0x88;
    f[13] = 0xb5;
}

static const uint8_t all[6] = {0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, other[6] = {2, 0, 0, 0, 0, 7};

static void send_one(struct rig *r, const uint8_t *hdr, const uint8_t *frame, size_t len, size_t split)
{
    uint32_t head, used;
    uint8_t *at = vt_mem(&r->vt, TX_DATA);
    memcpy(at, hdr, 12);
    memcpy(at + 12, frame, len);
    struct vt_buf bufs[2] = {{TX_DATA, (uint32_t)split, false}, {TX_DATA + split, (uint32_t)(12 + len - split), false}};
    vt_post(&r->q[TX], bufs, 2);
    vt_kick(&r->q[TX]);
    CU_ASSERT_TRUE_FATAL(vt_wait(&r->q[TX], &head, &used));
    CU_ASSERT_EQUAL(used, 0);
    vt_settle(&r->vt);
}

static void post_rx(struct rig *r, unsigned count, uint32_t each)
{
    for (unsigned i = 0; i < count; i++)
        vt_post(&r->q[RX], &(struct vt_buf){RX_DATA + 4096 * (r->q[RX].next_desc), each, true}, 1);
    vt_kick(&r->q[RX]);
}

static void test_transmit(void)
{
    struct rig r;
    uint8_t f[1600], hdr[12] = {0};
    rig_open(&r, false);
    CU_ASSERT_EQUAL(vt_pci_read(&r.vt, SLOT, 2, 2), 0x1041);
    for (unsigned i = 0; i < 6; i++)
        CU_ASSERT_EQUAL(vt_read(&r.d, r.d.config + i, 1), mac[i]);
    rig_start(&r, 1u << F_CSUM);
    make_frame(f, all, mac, 1514);
    send_one(&r, hdr, f, 1514, 12);
    CU_ASSERT_TRUE(seen.frames == 1 && seen.len == 1514 && !memcmp(seen.last, f, 1514));
    send_one(&r, hdr, f, 60, 5); /* the header itself in two pieces */
    CU_ASSERT_TRUE(seen.frames == 2 && seen.len == 60);
    CU_ASSERT_EQUAL(r.vt.msi[0x52], 2);

    /* checksum left to the device: 16-bit one's complement over what follows byte 34, into byte 34 + 6 */
    uint8_t csum_hdr[12] = {1, 0, 0, 0, 0, 0, 34, 0, 6, 0, 0, 0};
    f[40] = 0x12; /* the pseudo header's part */
    f[41] = 0x34;
    send_one(&r, csum_hdr, f, 101, 40); /* odd length */
    uint32_t sum = 0;
    for (size_t i = 34; i < 101; i++)
        if (i != 40 && i != 41)
            sum += i & 1 ? f[i] : (uint32_t)f[i] << 8;
    sum += 0x1234;
    while (sum >> 16)
        sum = (sum & 0xffff) + (sum >> 16);
    uint16_t want = (uint16_t)~sum;
    CU_ASSERT_TRUE(seen.last[40] == want >> 8 && seen.last[41] == (want & 0xff));
    csum_hdr[6] = csum_hdr[7] = csum_hdr[8] = 0xff; /* outside the frame: no harm */
    send_one(&r, csum_hdr, f, 101, 40);
    unsigned before = seen.frames;
    hdr[1] = 1; /* TSO was not negotiated */
    send_one(&r, hdr, f, 101, 40);
    hdr[1] = 0;
    send_one(&r, hdr, f, 1, 12); /* no frame at all */
    CU_ASSERT_EQUAL(seen.frames, before);
    rig_close(&r, true);
}

static uint32_t sum16(const uint8_t *p, size_t len, uint32_t sum)
{
    for (size_t i = 0; i < len; i++)
        sum += i & 1 ? p[i] : (uint32_t)p[i] << 8;
    while (sum >> 16)
        sum = (sum & 0xffff) + (sum >> 16);
    return sum;
}

struct segments {
    unsigned count;
    size_t payload;
    uint8_t bytes[70000], flags[64];
};
static struct segments cut;

/* Lengths and checksums of one segment, as its receiver would see them. */
static bool observe_segment(void *ctx, const uint8_t *f, size_t len)
{
    (void)ctx;
    if (f[12] != 8 || f[13] != 0)
        return true;
    size_t tcp_len = len - 34;
    uint32_t seq = (uint32_t)f[38] << 24 | (uint32_t)f[39] << 16 | (uint32_t)f[40] << 8 | f[41];
    CU_ASSERT_EQUAL((size_t)(f[16] << 8 | f[17]), len - 14);
    CU_ASSERT_EQUAL(sum16(f + 14, 20, 0), 0xffff);
    CU_ASSERT_EQUAL(sum16(f + 34, tcp_len, sum16(f + 26, 8, 6 + (uint32_t)tcp_len)), 0xffff);
    CU_ASSERT_EQUAL(f[18] << 8 | f[19], 0x1000 + (int)cut.count);
    CU_ASSERT_EQUAL(seq, 0xfffffff0u + (uint32_t)cut.payload); /* wraps */
    memcpy(cut.bytes + cut.payload, f + 54, len - 54);
    cut.payload += len - 54;
    cut.flags[cut.count++ % 64] = f[47];
    return true;
}

static void test_segmentation(void)
{
    enum { PAYLOAD = 40001, MSS = 1460 };
    static uint8_t f[54 + PAYLOAD];
    struct rig r;
    uint8_t hdr[12] = {1, 1, 54, 0, MSS & 255, MSS >> 8, 34, 0, 16, 0, 0, 0};
    rig_open(&r, false);
    fvm_net_set_deliver(seen.net, observe_segment, NULL);
    rig_start(&r, 1u << F_CSUM | 1u << 11);
    make_frame(f, all, mac, sizeof(f));
    memcpy(f + 12, "\x08\0\x45\0\0\0\x10\0\x40\0\x40\x06\0\0\x0a\0\0\1\x0a\0\0\2", 22);
    memcpy(f + 34, "\x10\0\x20\0\xff\xff\xff\xf0\0\0\0\1\x50\x99\x10\0\0\0\0\0", 20); /* CWR ACK PSH FIN */
    memset(&cut, 0, sizeof(cut));
    send_one(&r, hdr, f, sizeof(f), 54);
    CU_ASSERT_EQUAL(cut.count, (PAYLOAD + MSS - 1) / MSS);
    CU_ASSERT_TRUE(cut.payload == PAYLOAD && !memcmp(cut.bytes, f + 54, PAYLOAD));
    CU_ASSERT_TRUE(cut.flags[0] == 0x90 && cut.flags[1] == 0x10 && cut.flags[cut.count - 1] == 0x19);
    /* nonsense: no frame comes out, no harm is done */
    memset(&cut, 0, sizeof(cut));
    hdr[4] = 1;
    hdr[5] = 0;
    send_one(&r, hdr, f, sizeof(f), 54); /* segments of one byte */
    hdr[4] = 255;
    f[46] = 0x10; /* a TCP header of 4 bytes */
    send_one(&r, hdr, f, 300, 54);
    f[46] = 0x50;
    f[14] = 0x41;
    send_one(&r, hdr, f, sizeof(f), 54);
    CU_ASSERT_EQUAL(cut.count, 0);
    CU_ASSERT_EQUAL(vt_status(&r.d), 15);
    rig_close(&r, true);
}

static void receive_with(uint64_t features, uint32_t each, unsigned pieces)
{
    struct rig r;
    uint8_t f[1514], got[2048], hdr[12] = {0};
    uint32_t head, used;
    rig_open(&r, false);
    rig_start(&r, features);
    make_frame(f, all, mac, 60);
    send_one(&r, hdr, f, 60, 12); /* the switch knows us now */
    make_frame(f, mac, other, 1500);
    fvm_net_send(seen.net, f, 1500); /* no buffers yet: waits */
    vt_settle(&r.vt);
    CU_ASSERT_FALSE(vt_used(&r.q[RX], &head, &used));
    fvm_net_send(seen.net, f, 1499);
    vt_settle(&r.vt);
    uint32_t closed = fvm_ram_epoch_next(r.vt.ram);
    post_rx(&r, 2 * pieces, each);
    for (unsigned n = 0; n < 2; n++) {
        size_t at = 0;
        for (unsigned i = 0; i < pieces; i++) {
            CU_ASSERT_TRUE_FATAL(vt_wait(&r.q[RX], &head, &used));
            CU_ASSERT_TRUE(used <= each && r.vt.ram->version[(RX_DATA + 4096 * head) >> 12] > closed);
            memcpy(got + at, vt_mem(&r.vt, RX_DATA + 4096 * head), used);
            at += used;
        }
        CU_ASSERT_EQUAL(at, 12 + 1500 - n);
        CU_ASSERT_EQUAL(got[10] | got[11] << 8, pieces);
        CU_ASSERT_EQUAL(memcmp(got + 12, f, 1500 - n), 0);
    }
    CU_ASSERT_TRUE(r.vt.msi[0x51] >= 1);
    rig_close(&r, true);
}

static void test_receive(void)
{
    receive_with(0, 2048, 1);
    receive_with(1u << F_MRG, 2048, 1);
    receive_with(1u << F_MRG, 400, 4);
    receive_with(1u << F_MRG | 1u << VT_F_EVENT_IDX, 512, 3);
    receive_with(1u << VT_F_EVENT_IDX | 1u << VT_F_INDIRECT, 1512, 1);
}

static void test_small_buffers(void)
{
    struct rig r;
    uint8_t f[1514], hdr[12] = {0};
    uint32_t head, used;
    rig_open(&r, false);
    rig_start(&r, 0);
    make_frame(f, all, mac, 60);
    send_one(&r, hdr, f, 60, 12);
    post_rx(&r, 4, 100); /* without merging a large frame is lost, a small one is not */
    make_frame(f, mac, other, 1000);
    fvm_net_send(seen.net, f, 1000);
    make_frame(f, mac, other, 80);
    fvm_net_send(seen.net, f, 80);
    CU_ASSERT_TRUE(vt_wait(&r.q[RX], &head, &used));
    CU_ASSERT_EQUAL(used, 92);
    vt_post(&r.q[RX], &(struct vt_buf){RX_DATA, 100, false}, 1); /* not writable */
    for (int i = 0; i < 5; i++)
        fvm_net_send(seen.net, f, 80);
    vt_settle(&r.vt);
    CU_ASSERT_TRUE(vt_status(&r.d) & 64);
    rig_start(&r, 0);
    post_rx(&r, 4, 2048);
    fvm_net_send(seen.net, f, 80);
    CU_ASSERT_TRUE(vt_wait(&r.q[RX], &head, &used));
    rig_close(&r, true);
}

static void test_move(void)
{
    struct rig a, b;
    uint8_t f[1514], hdr[12] = {0};
    uint32_t head, used;
    size_t len, len2;
    rig_open(&a, false);
    rig_start(&a, 1u << F_MRG | 1u << F_CTRL | 1u << F_ANNOUNCE);
    make_frame(f, all, mac, 60);
    send_one(&a, hdr, f, 60, 12);
    post_rx(&a, 8, 2048);
    uint8_t *state = vt_save(a.dev, &len);

    rig_open(&b, true);
    memcpy(b.vt.ram->base, a.vt.ram->base, VT_RAM);
    CU_ASSERT_TRUE_FATAL(vt_restore(b.dev, state, len));
    uint8_t *again = vt_save(b.dev, &len2);
    CU_ASSERT_TRUE(len == len2 && !memcmp(state, again, len));
    fvm_net_deactivate(a.net);
    CU_ASSERT_EQUAL(fvm_net_activate(b.net, NULL), 0);
    for (int i = 0; i < 3; i++) {
        b.q[i] = a.q[i];
        b.q[i].d = &b.d;
    }
    b.d.features = a.d.features;
    b.dev->ops->resume(b.dev);
    uint64_t end = fvm_now_ns() + 5 * SECOND;
    while (seen.rarps < 2 && fvm_now_ns() < end) {
        fvm_loop_turn(a.vt.loop, SECOND / 100);
        fvm_loop_turn(b.vt.loop, SECOND / 100);
    }
    CU_ASSERT_TRUE(seen.rarps >= 2);
    /* the driver is told, and acknowledges */
    CU_ASSERT_EQUAL(b.vt.msi[0x50], 1);
    CU_ASSERT_EQUAL(vt_read(&b.d, b.d.config + 6, 2), 3);
    memcpy(vt_mem(&b.vt, TX_DATA), "\3\0\xee", 3);
    vt_post(&b.q[CTRL], (struct vt_buf[]){{TX_DATA, 2, false}, {TX_DATA + 2, 1, true}}, 2);
    vt_kick(&b.q[CTRL]);
    CU_ASSERT_TRUE(vt_wait(&b.q[CTRL], &head, &used));
    CU_ASSERT_EQUAL(*((uint8_t *)vt_mem(&b.vt, TX_DATA) + 2), 0);
    CU_ASSERT_EQUAL(vt_read(&b.d, b.d.config + 6, 2), 1);
    /* traffic goes to the new place */
    make_frame(f, mac, other, 200);
    fvm_net_send(seen.net, f, 200);
    vt_settle(&a.vt);
    CU_ASSERT_TRUE(vt_wait(&b.q[RX], &head, &used));
    CU_ASSERT_EQUAL(used, 212);
    free(state);
    free(again);
    rig_close(&b, false);
    rig_close(&a, true);
}

int main(void)
{
    strcpy(dir, "/tmp/fvm-virtio-net-XXXXXX");
    if (!mkdtemp(dir) || CU_initialize_registry() != CUE_SUCCESS)
        return 1;
    snprintf(path, sizeof(path), "%s/switch", dir);
    CU_pSuite suite = CU_add_suite("virtio_net", NULL, NULL);
    CU_add_test(suite, "transmit, checksums", test_transmit);
    CU_add_test(suite, "large frames are cut", test_segmentation);
    CU_add_test(suite, "receive, merged or not", test_receive);
    CU_add_test(suite, "buffers too small, not writable", test_small_buffers);
    CU_add_test(suite, "the move is announced", test_move);
    CU_basic_set_mode(CU_BRM_VERBOSE);
    CU_basic_run_tests();
    unsigned failures = CU_get_number_of_failures();
    CU_cleanup_registry();
    rmdir(dir);
    return failures != 0;
}
