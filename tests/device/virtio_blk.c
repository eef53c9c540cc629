/* virtio_blk over virtio_pci: a driver's view of transport, requests, errors, broken rings, and the move to another machine. */
#include <CUnit/Basic.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tests/device/support_virtio.h"

#define DISK_BYTES (4u << 20)
#define SLOT 4
#define RINGS 0x100000
#define HEADS 0x200000
#define DATA 0x300000
#define BASE_FEATURES (1ull << VT_F_VERSION_1 | 1u << 9)

enum { T_IN, T_OUT, T_FLUSH = 4, T_GET_ID = 8, T_DISCARD = 11, T_ZEROES = 13 };
enum { NEEDS_RESET = 64 };

static char path[64];

struct rig {
    struct vt vt;
    struct vt_dev d;
    struct vt_queue q;
    struct fvm_disk *disk;
    struct fvm_device *dev;
};

static void rig_open(struct rig *r, bool readonly, bool inactive)
{
    struct fvm_err err = {0};
    struct fvm_disk_options opt = {.path = path, .format = "raw", .readonly = readonly, .inactive = inactive};
    vt_open(&r->vt);
    CU_ASSERT_EQUAL_FATAL(fvm_disk_open(r->vt.loop, &opt, &r->disk, &err), 0);
    CU_ASSERT_EQUAL_FATAL(fvm_virtio_blk_create(&r->vt.board, r->vt.host, SLOT, "virtio-blk0", r->disk, "serial-0123456789-abc", &r->dev), 0);
    vt_attach(&r->vt, &r->d, r->dev, SLOT);
}

static void rig_start(struct rig *r, uint64_t features)
{
    CU_ASSERT_TRUE_FATAL(vt_negotiate(&r->d, features));
    vt_msix(&r->d, 2, 0x40);
    vt_queue_setup(&r->d, &r->q, 0, 128, RINGS);
    vt_driver_ok(&r->d);
    CU_ASSERT_EQUAL(vt_status(&r->d), 15);
}

static void rig_close(struct rig *r)
{
    r->dev->ops->destroy(r->dev);
    fvm_disk_close(&r->disk);
    vt_close(&r->vt);
}

/* Header n, data at DATA + 4096 n; status byte behind the header. */
static void post(struct rig *r, unsigned n, uint32_t type, uint64_t sector, uint32_t len)
{
    uint8_t *head = vt_mem(&r->vt, HEADS + 64 * n);
    memset(head, 0, 16);
    memcpy(head, &type, 4);
    memcpy(head + 8, &sector, 8);
    head[16] = 0xee;
    struct vt_buf bufs[4] = {{HEADS + 64 * n, 16, false}};
    unsigned count = 1;
    bool write = type == T_IN || type == T_GET_ID;
    if (len > 512) { /* in two pieces */
        bufs[count++] = (struct vt_buf){DATA + 4096 * n, 200, write};
        bufs[count++] = (struct vt_buf){DATA + 4096 * n + 200, len - 200, write};
    } else if (len) {
        bufs[count++] = (struct vt_buf){DATA + 4096 * n, len, write};
    }
    bufs[count++] = (struct vt_buf){HEADS + 64 * n + 16, 1, true};
    vt_post(&r->q, bufs, count);
}

static int status_of(struct rig *r, unsigned n)
{
    return *((uint8_t *)vt_mem(&r->vt, HEADS + 64 * n) + 16);
}

static int request(struct rig *r, uint32_t type, uint64_t sector, uint32_t len)
{
    uint32_t head, used;
    post(r, 0, type, sector, len);
    vt_kick(&r->q);
    CU_ASSERT_TRUE_FATAL(vt_wait(&r->q, &head, &used));
    return status_of(r, 0);
}

static void test_transport(void)
{
    struct rig r;
    rig_open(&r, false, false);
    CU_ASSERT_EQUAL(vt_pci_read(&r.vt, SLOT, 2, 2), 0x1042);
    uint64_t offered = vt_offered(&r.d);
    CU_ASSERT_TRUE((offered >> 32 & 1) && (offered >> 28 & 3) == 3 && !(offered >> 5 & 1));
    CU_ASSERT_FALSE(vt_negotiate(&r.d, 1u << 9));                        /* legacy driver */
    CU_ASSERT_FALSE(vt_negotiate(&r.d, BASE_FEATURES | 1ull << 40));     /* not offered */
    CU_ASSERT_TRUE(vt_negotiate(&r.d, BASE_FEATURES));
    CU_ASSERT_EQUAL(vt_read(&r.d, r.d.config, 8), DISK_BYTES / 512);
    CU_ASSERT_EQUAL(vt_read(&r.d, r.d.config + 20, 4), 512);
    CU_ASSERT_EQUAL(vt_read(&r.d, r.d.common + 0x12, 2), 1); /* num_queues */
    vt_write(&r.d, r.d.common + 0x16, 2, 1);
    CU_ASSERT_EQUAL(vt_read(&r.d, r.d.common + 0x18, 2), 0); /* no queue 1 */
    vt_write(&r.d, r.d.common + 0x10, 2, 77);
    CU_ASSERT_EQUAL(vt_read(&r.d, r.d.common + 0x10, 2), 0xffff); /* no vector 77 */
    /* the window in config space reads the same register */
    vt_pci_write(&r.vt, SLOT, r.d.window + 4, 1, 4);
    vt_pci_write(&r.vt, SLOT, r.d.window + 8, 4, 0x14);
    vt_pci_write(&r.vt, SLOT, r.d.window + 12, 4, 1);
    CU_ASSERT_EQUAL(vt_pci_read(&r.vt, SLOT, r.d.window + 16, 1), 11);
    vt_pci_write(&r.vt, SLOT, r.d.window + 16, 1, 0);
    CU_ASSERT_EQUAL(vt_status(&r.d), 0);
    rig_close(&r);
}

static void data_with(uint64_t features)
{
    struct rig r;
    uint8_t want[3072];
    rig_open(&r, false, false);
    rig_start(&r, BASE_FEATURES | features);
    for (size_t i = 0; i < sizeof(want); i++)
        want[i] = (uint8_t)(i * 7 + features % 251);
    memcpy(vt_mem(&r.vt, DATA), want, sizeof(want));
    CU_ASSERT_EQUAL(request(&r, T_OUT, 9, sizeof(want)), 0);
    CU_ASSERT_EQUAL(request(&r, T_FLUSH, 0, 0), 0);
    memset(vt_mem(&r.vt, DATA), 0, sizeof(want));
    uint32_t closed = fvm_ram_epoch_next(r.vt.ram);
    CU_ASSERT_EQUAL(request(&r, T_IN, 9, sizeof(want)), 0);
    CU_ASSERT_EQUAL(memcmp(vt_mem(&r.vt, DATA), want, sizeof(want)), 0);
    /* what the device wrote is newer than the epoch, what it only read is not */
    CU_ASSERT_TRUE(r.vt.ram->version[DATA >> 12] > closed && r.vt.ram->version[HEADS >> 12] > closed);
    CU_ASSERT_TRUE(r.vt.ram->version[r.q.used >> 12] > closed);
    CU_ASSERT_TRUE(r.vt.ram->version[r.q.avail >> 12] <= closed);
    CU_ASSERT_EQUAL(r.vt.msi[0x41], 3);
    CU_ASSERT_EQUAL(request(&r, T_IN, 11, 512), 0);
    CU_ASSERT_EQUAL(memcmp(vt_mem(&r.vt, DATA), want + 1024, 512), 0);
    rig_close(&r);
}

static void test_data(void)
{
    data_with(0);
    data_with(1u << VT_F_INDIRECT);
    data_with(1u << VT_F_EVENT_IDX);
    data_with(1u << VT_F_INDIRECT | 1u << VT_F_EVENT_IDX);
}

static void test_requests(void)
{
    struct rig r;
    struct {
        uint64_t sector;
        uint32_t sectors, flags;
    } seg = {16, 8, 0};
    rig_open(&r, false, false);
    rig_start(&r, BASE_FEATURES);
    CU_ASSERT_EQUAL(request(&r, T_GET_ID, 0, 20), 0);
    CU_ASSERT_EQUAL(memcmp(vt_mem(&r.vt, DATA), "serial-0123456789-ab", 20), 0);
    memset(vt_mem(&r.vt, DATA), 0x77, 4096);
    CU_ASSERT_EQUAL(request(&r, T_OUT, 16, 4096), 0);
    memcpy(vt_mem(&r.vt, DATA), &seg, 16);
    CU_ASSERT_EQUAL(request(&r, T_ZEROES, 0, 16), 0);
    CU_ASSERT_EQUAL(request(&r, T_IN, 16, 4096), 0);
    uint8_t *data = vt_mem(&r.vt, DATA);
    CU_ASSERT_TRUE(data[0] == 0 && !memcmp(data, data + 1, 4095));
    memcpy(data, &seg, 16);
    CU_ASSERT_EQUAL(request(&r, T_DISCARD, 0, 16), 0);
    seg.flags = 4;
    memcpy(data, &seg, 16);
    CU_ASSERT_EQUAL(request(&r, T_DISCARD, 0, 16), 2);
    seg.flags = 0;
    seg.sector = UINT64_MAX;
    memcpy(data, &seg, 16);
    CU_ASSERT_EQUAL(request(&r, T_ZEROES, 0, 16), 1);
    CU_ASSERT_EQUAL(request(&r, 99, 0, 512), 2);
    CU_ASSERT_EQUAL(request(&r, T_IN, DISK_BYTES / 512, 512), 1);
    CU_ASSERT_EQUAL(request(&r, T_OUT, UINT64_MAX, 512), 1);
    CU_ASSERT_EQUAL(request(&r, T_OUT, 0, 511), 1);
    CU_ASSERT_EQUAL(request(&r, T_IN, 0, 512), 0); /* none of these harmed it */
    rig_close(&r);

    rig_open(&r, true, false);
    CU_ASSERT_TRUE(vt_offered(&r.d) >> 5 & 1);
    rig_start(&r, BASE_FEATURES | 1u << 5);
    CU_ASSERT_EQUAL(request(&r, T_OUT, 0, 512), 1);
    CU_ASSERT_EQUAL(request(&r, T_IN, 0, 512), 0);
    rig_close(&r);
}

static void test_intx(void)
{
    struct rig r;
    uint32_t head, len;
    unsigned gsi = fvm_pci_irq(SLOT, 1);
    rig_open(&r, false, false);
    CU_ASSERT_TRUE_FATAL(vt_negotiate(&r.d, BASE_FEATURES));
    vt_queue_setup(&r.d, &r.q, 0, 128, RINGS);
    vt_driver_ok(&r.d);
    post(&r, 0, T_IN, 0, 512);
    vt_kick(&r.q);
    CU_ASSERT_TRUE(vt_wait(&r.q, &head, &len));
    CU_ASSERT_EQUAL(len, 513);
    CU_ASSERT_TRUE(r.vt.line[gsi]);
    CU_ASSERT_EQUAL(vt_read(&r.d, r.d.isr, 1), 1);
    CU_ASSERT_FALSE(r.vt.line[gsi]);
    CU_ASSERT_EQUAL(vt_read(&r.d, r.d.isr, 1), 0);
    rig_close(&r);
}

/* Quiesce with work in flight: all of it is in the ring before the save; then it goes on elsewhere. */
static void test_move(void)
{
    enum { N = 40 };
    struct rig a, b;
    size_t len, len2;
    uint32_t head, used;
    unsigned seen = 0;
    rig_open(&a, false, false);
    rig_start(&a, BASE_FEATURES | 1u << VT_F_EVENT_IDX | 1u << VT_F_INDIRECT);
    for (unsigned n = 0; n < N; n++) {
        memset(vt_mem(&a.vt, DATA + 4096 * n), (int)(n + 1), 4096);
        post(&a, n, T_OUT, 8 * n, 4096);
    }
    vt_kick(&a.q);
    uint8_t *state = vt_save(a.dev, &len);
    for (unsigned n = 0; n < N; n++)
        CU_ASSERT_EQUAL(status_of(&a, n), 0);
    post(&a, N, T_IN, 8, 4096); /* the guest is stopped by now, but a kick on a quiesced device must wait */
    vt_kick(&a.q);
    vt_settle(&a.vt);
    CU_ASSERT_EQUAL(status_of(&a, N), 0xee);

    rig_open(&b, false, true);
    memcpy(b.vt.ram->base, a.vt.ram->base, VT_RAM);
    CU_ASSERT_TRUE_FATAL(vt_restore(b.dev, state, len));
    uint8_t *again = vt_save(b.dev, &len2);
    CU_ASSERT_TRUE(len == len2 && !memcmp(state, again, len));
    CU_ASSERT_EQUAL(fvm_disk_deactivate(a.disk), 0);
    CU_ASSERT_EQUAL(fvm_disk_activate(b.disk, 7, NULL), 0);
    b.q = a.q;
    b.q.d = &b.d;
    b.d.features = a.d.features;
    b.dev->ops->resume(b.dev); /* takes up the request that was posted after the save */
    while (seen < N + 1 && vt_wait(&b.q, &head, &used))
        seen++;
    CU_ASSERT_EQUAL(seen, N + 1);
    CU_ASSERT_EQUAL(status_of(&b, N), 0);
    CU_ASSERT_EQUAL(*(uint8_t *)vt_mem(&b.vt, DATA + 4096 * N), 2);
    CU_ASSERT_TRUE(b.vt.msi[0x41] >= 1);
    free(state);
    free(again);
    rig_close(&a);
    rig_close(&b);
}

static void test_hostile_state(void)
{
    struct rig r;
    size_t len;
    rig_open(&r, false, false);
    rig_start(&r, BASE_FEATURES);
    CU_ASSERT_EQUAL(request(&r, T_IN, 0, 512), 0);
    uint8_t *state = vt_save(r.dev, &len);
    unsigned refused = 0;
    CU_ASSERT_FALSE(vt_restore(r.dev, NULL, 0));
    for (size_t i = 0; i < len; i++) { /* any byte changed: refused, or a state that a device can be in */
        uint8_t *bad = malloc(len);
        memcpy(bad, state, len);
        bad[i] ^= (uint8_t)(1 + i * 37 % 255);
        if (!vt_restore(r.dev, bad, len))
            refused++;
        else
            r.dev->ops->resume(r.dev);
        vt_kick(&r.q);
        r.dev->ops->quiesce(r.dev);
        free(bad);
    }
    CU_ASSERT_TRUE(refused > 0);
    for (size_t cut = 1; cut < len; cut++)
        if (r.dev->ops->check(r.dev, state, cut, NULL) == 0)
            r.dev->ops->restore(r.dev, state, cut);
    Fvm__VirtioBlkState *msg = fvm__virtio_blk_state__unpack(NULL, len, state);
    msg->capacity_sectors++;
    uint8_t *other = malloc(fvm__virtio_blk_state__get_packed_size(msg));
    size_t other_len = fvm__virtio_blk_state__pack(msg, other);
    CU_ASSERT_FALSE(vt_restore(r.dev, other, other_len)); /* another disk */
    free(other);
    fvm__virtio_blk_state__free_unpacked(msg, NULL);
    CU_ASSERT_TRUE(vt_restore(r.dev, state, len));
    r.dev->ops->resume(r.dev);
    CU_ASSERT_EQUAL(request(&r, T_IN, 0, 512), 0);
    free(state);
    rig_close(&r);
}

static void recover(struct rig *r, const char *what)
{
    if (!(vt_status(&r->d) & NEEDS_RESET))
        fprintf(stderr, "not broken by: %s\n", what);
    CU_ASSERT_TRUE(vt_status(&r->d) & NEEDS_RESET);
    CU_ASSERT_EQUAL(r->vt.msi[0x40], 1); /* a configuration interrupt tells the driver */
    r->vt.msi[0x40] = 0;
    rig_start(r, BASE_FEATURES | 1u << VT_F_INDIRECT);
    CU_ASSERT_EQUAL(request(r, T_IN, 0, 512), 0);
}

static void test_broken_rings(void)
{
    struct rig r;
    rig_open(&r, false, false);
    rig_start(&r, BASE_FEATURES | 1u << VT_F_INDIRECT);
    static const struct {
        const char *what;
        uint64_t gpa;
        uint32_t len;
        uint16_t flags, next;
    } bad[] = {
        {"loop", HEADS, 16, 1, 10},
        {"next out of range", HEADS, 16, 1, 128},
        {"outside memory", VT_RAM - 8, 16, 0, 0},
        {"far outside memory", UINT64_MAX - 4, 16, 0, 0},
        {"empty", HEADS, 0, 0, 0},
        {"too short for a header", HEADS, 8, 0, 0},
        {"no status byte", HEADS, 16, 0, 0},
        {"indirect outside memory", VT_RAM, 16, 4, 0},
        {"indirect of odd size", HEADS, 24, 4, 0},
        {"indirect too large", HEADS, 16 * 257, 4, 0},
        {"indirect with next", HEADS, 16, 5, 11},
    };
    for (size_t i = 0; i < FVM_ARRAY_SIZE(bad); i++) {
        vt_set_desc(&r.q, 10, bad[i].gpa, bad[i].len, bad[i].flags, bad[i].next);
        vt_offer(&r.q, 10);
        vt_kick(&r.q);
        recover(&r, bad[i].what);
    }
    vt_offer(&r.q, 128);
    vt_kick(&r.q);
    recover(&r, "head out of range");
    r.q.avail_idx = (uint16_t)(r.q.avail_idx + 500);
    vt_offer(&r.q, 0);
    vt_kick(&r.q);
    recover(&r, "available index jumped");
    vt_set_desc(&r.q, 10, HEADS, 16, 2 | 1, 11);
    vt_set_desc(&r.q, 11, HEADS, 16, 0, 0);
    vt_offer(&r.q, 10);
    vt_kick(&r.q);
    recover(&r, "readable after writable");
    uint64_t nested = HEADS + 0x1000, one_desc[2] = {HEADS, 16 | 4ull << 32};
    memcpy(vt_mem(&r.vt, nested), one_desc, 16);
    vt_set_desc(&r.q, 10, nested, 16, 4, 0);
    vt_offer(&r.q, 10);
    vt_kick(&r.q);
    recover(&r, "indirect in indirect");

    /* rings that cannot be: refused at enable */
    static const uint64_t where[][3] = {{VT_RAM - 64, RINGS, RINGS + 0x4000}, {RINGS + 8, RINGS + 0x2000, RINGS + 0x4000}, {RINGS, VT_RAM * 2ull, RINGS + 0x4000}};
    for (size_t i = 0; i < FVM_ARRAY_SIZE(where); i++) {
        CU_ASSERT_TRUE(vt_negotiate(&r.d, BASE_FEATURES));
        for (unsigned k = 0; k < 3; k++)
            vt_write(&r.d, r.d.common + 0x20 + 8 * k, 8, where[i][k]);
        vt_write(&r.d, r.d.common + 0x1c, 2, 1);
        CU_ASSERT_TRUE(vt_status(&r.d) & NEEDS_RESET);
    }
    rig_close(&r);
}

static void test_reset_in_flight(void)
{
    struct rig r;
    rig_open(&r, false, false);
    for (unsigned round = 0; round < 20; round++) {
        rig_start(&r, BASE_FEATURES);
        for (unsigned n = 0; n < 30; n++)
            post(&r, n, round & 1 ? T_IN : T_OUT, n * 8, 4096);
        vt_kick(&r.q);
        vt_write(&r.d, r.d.common + 0x14, 1, 0);
        memset(vt_mem(&r.vt, DATA), 0x11, 4096 * 30); /* the driver uses the memory for something else */
        memset(vt_mem(&r.vt, RINGS), 0, 0x6000);
        vt_settle(&r.vt);
        for (unsigned i = 0; i < 4096 * 30; i += 512)
            CU_ASSERT_EQUAL_FATAL(*(uint8_t *)vt_mem(&r.vt, DATA + i), 0x11);
        CU_ASSERT_EQUAL(*(uint16_t *)vt_mem(&r.vt, r.q.used + 2), 0);
    }
    rig_close(&r);
}

int main(void)
{
    strcpy(path, "/tmp/fvm-virtio-blk-XXXXXX");
    int fd = mkstemp(path);
    if (fd < 0 || ftruncate(fd, DISK_BYTES) < 0 || CU_initialize_registry() != CUE_SUCCESS)
        return 1;
    close(fd);
    CU_pSuite suite = CU_add_suite("virtio_blk", NULL, NULL);
    CU_add_test(suite, "transport", test_transport);
    CU_add_test(suite, "data, with and without indirect and event index", test_data);
    CU_add_test(suite, "requests and refusals", test_requests);
    CU_add_test(suite, "INTx", test_intx);
    CU_add_test(suite, "save in full flight, go on elsewhere", test_move);
    CU_add_test(suite, "hostile state", test_hostile_state);
    CU_add_test(suite, "broken rings", test_broken_rings);
    CU_add_test(suite, "reset with requests in flight", test_reset_in_flight);
    CU_basic_set_mode(CU_BRM_VERBOSE);
    CU_basic_run_tests();
    unsigned failures = CU_get_number_of_failures();
    CU_cleanup_registry();
    unlink(path);
    return failures != 0;
}
