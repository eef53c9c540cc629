/* virtio_rng, virtio_console and virtio_balloon under a driver; each saved, checked, restored and saved again. */
#include <CUnit/Basic.h>
#include <stdlib.h>
#include <string.h>

#include "tests/device/support_virtio.h"

#define SLOT 6
#define V1 (1ull << VT_F_VERSION_1)
#define RINGS 0x100000
#define DATA 0x300000

static void save_twice(struct fvm_device *dev)
{
    size_t len, len2;
    uint8_t *one = vt_save(dev, &len);
    CU_ASSERT_TRUE_FATAL(vt_restore(dev, one, len));
    uint8_t *two = vt_save(dev, &len2);
    CU_ASSERT_TRUE(len == len2 && !memcmp(one, two, len));
    dev->ops->resume(dev);
    free(one);
    free(two);
}

static void start(struct vt_dev *d, struct vt_queue *q, unsigned count, uint64_t features)
{
    CU_ASSERT_TRUE_FATAL(vt_negotiate(d, V1 | features));
    vt_msix(d, count + 1, 0x60);
    for (unsigned n = 0; n < count; n++)
        vt_queue_setup(d, &q[n], n, 64, RINGS + 0x10000 * n);
    vt_driver_ok(d);
}

static void test_rng(void)
{
    struct vt vt;
    struct vt_dev d;
    struct vt_queue q;
    struct fvm_device *dev;
    uint32_t head, used;
    vt_open(&vt);
    CU_ASSERT_EQUAL_FATAL(fvm_virtio_rng_create(&vt.board, vt.host, SLOT, "virtio-rng0", &dev), 0);
    struct fvm_device *twice = NULL;
    CU_ASSERT_EQUAL(fvm_virtio_rng_create(&vt.board, vt.host, SLOT, "virtio-rng1", &twice), FVM_EEXIST);
    vt_attach(&vt, &d, dev, SLOT);
    CU_ASSERT_EQUAL(vt_pci_read(&vt, SLOT, 2, 2), 0x1044);
    for (unsigned round = 0; round < 2; round++) {
        start(&d, &q, 1, round ? 1u << VT_F_EVENT_IDX : 0);
        for (unsigned i = 0; i < 100; i++) { /* more than one budget */
            uint8_t *p = vt_mem(&vt, DATA);
            memset(p, 0, 64);
            vt_post(&q, (struct vt_buf[]){{DATA, 20, true}, {DATA + 32, 12, true}}, 2);
            vt_kick(&q);
            CU_ASSERT_TRUE_FATAL(vt_wait(&q, &head, &used));
            CU_ASSERT_EQUAL(used, 32);
            unsigned zeros = 0;
            for (unsigned k = 0; k < 20; k++)
                zeros += p[k] == 0;
            CU_ASSERT_TRUE(zeros < 16 && p[20] == 0 && p[44] == 0);
        }
        CU_ASSERT_EQUAL(vt.msi[0x61], 100 * (round + 1));
        save_twice(dev);
    }
    vt_post(&q, &(struct vt_buf){DATA, 1 << 20, true}, 1);
    vt_kick(&q);
    CU_ASSERT_TRUE(vt_wait(&q, &head, &used));
    CU_ASSERT_EQUAL(used, 4096);
    dev->ops->destroy(dev);
    vt_close(&vt);
}

struct terminal {
    uint8_t out[16384];
    size_t len, room;
    unsigned asked; /* input_room calls */
};

static size_t term_write(void *ctx, const uint8_t *bytes, size_t len)
{
    struct terminal *t = ctx;
    size_t n = FVM_MIN(len, t->room);
    memcpy(t->out + t->len, bytes, n);
    t->len += n;
    t->room -= n;
    return n;
}

static void term_room(void *ctx)
{
    ((struct terminal *)ctx)->asked++;
}

static void test_console(void)
{
    struct vt vt;
    struct vt_dev d;
    struct vt_queue q[2];
    struct fvm_device *dev;
    struct terminal term = {.room = 1000};
    struct fvm_serial_backend backend = {.write = term_write, .input_room = term_room, .ctx = &term};
    uint32_t head, used;
    vt_open(&vt);
    CU_ASSERT_EQUAL_FATAL(fvm_virtio_console_create(&vt.board, vt.host, SLOT, "virtio-console0", &backend, &dev), 0);
    vt_attach(&vt, &d, dev, SLOT);
    CU_ASSERT_EQUAL(vt_pci_read(&vt, SLOT, 2, 2), 0x1043);
    CU_ASSERT_EQUAL(fvm_virtio_console_input(dev, (const uint8_t *)"early", 5), 0); /* no driver yet: keep it */
    start(&d, q, 2, 1u << VT_F_EVENT_IDX);

    /* output stops in the middle of a buffer, is saved there, and goes on: no byte twice, none lost */
    uint8_t *text = vt_mem(&vt, DATA);
    for (unsigned i = 0; i < 9000; i++)
        text[i] = (uint8_t)(i % 253);
    vt_post(&q[1], (struct vt_buf[]){{DATA, 300, false}, {DATA + 300, 5000, false}}, 2);
    vt_post(&q[1], &(struct vt_buf){DATA + 5300, 3700, false}, 1);
    vt_kick(&q[1]);
    vt_settle(&vt);
    CU_ASSERT_FALSE(vt_used(&q[1], &head, &used));
    CU_ASSERT_EQUAL(term.len, 1000);
    save_twice(dev);
    vt_settle(&vt);
    CU_ASSERT_EQUAL(term.len, 1000);
    term.room = sizeof(term.out) - term.len;
    fvm_virtio_console_output_ready(dev);
    CU_ASSERT_TRUE(vt_wait(&q[1], &head, &used) && vt_wait(&q[1], &head, &used));
    CU_ASSERT_TRUE(term.len == 9000 && !memcmp(term.out, text, 9000));

    /* input: what does not fit stays outside, and the backend is told when there is room */
    term.asked = 0;
    vt_post(&q[0], &(struct vt_buf){DATA + 0x10000, 3, true}, 1);
    vt_kick(&q[0]);
    vt_settle(&vt);
    CU_ASSERT_EQUAL(fvm_virtio_console_input(dev, (const uint8_t *)"hello", 5), 3);
    CU_ASSERT_TRUE(vt_wait(&q[0], &head, &used) && used == 3 && !memcmp(vt_mem(&vt, DATA + 0x10000), "hel", 3));
    CU_ASSERT_EQUAL(term.asked, 0);
    vt_post(&q[0], &(struct vt_buf){DATA + 0x10000, 64, true}, 1);
    vt_kick(&q[0]);
    vt_settle(&vt);
    CU_ASSERT_EQUAL(term.asked, 1);
    CU_ASSERT_EQUAL(fvm_virtio_console_input(dev, (const uint8_t *)"lo", 2), 2);
    CU_ASSERT_TRUE(vt_wait(&q[0], &head, &used) && used == 2);
    dev->ops->destroy(dev);
    vt_close(&vt);
}

static void test_balloon(void)
{
    struct vt vt;
    struct vt_dev d;
    struct vt_queue q[2];
    struct fvm_device *dev;
    uint32_t head, used, pfns[2] = {0x400, 0x402};
    vt_open(&vt);
    CU_ASSERT_EQUAL_FATAL(fvm_virtio_balloon_create(&vt.board, vt.host, SLOT, "virtio-balloon0", &dev), 0);
    vt_attach(&vt, &d, dev, SLOT);
    start(&d, q, 2, 0);
    fvm_virtio_balloon_set_target(dev, 3 * 4096 + 17);
    CU_ASSERT_EQUAL(vt.msi[0x60], 1);
    CU_ASSERT_EQUAL(vt_read(&d, d.config, 4), 3);
    memset(vt_mem(&vt, 0x400000), 0x33, 3 * 4096);
    uint32_t closed = fvm_ram_epoch_next(vt.ram);
    memcpy(vt_mem(&vt, DATA), pfns, sizeof(pfns));
    vt_post(&q[0], &(struct vt_buf){DATA, sizeof(pfns), false}, 1);
    vt_kick(&q[0]);
    CU_ASSERT_TRUE(vt_wait(&q[0], &head, &used));
    CU_ASSERT_TRUE(*(uint8_t *)vt_mem(&vt, 0x400000) == 0 && *(uint8_t *)vt_mem(&vt, 0x401000) == 0x33 &&
                   *(uint8_t *)vt_mem(&vt, 0x402fff) == 0);
    CU_ASSERT_TRUE(vt.ram->version[0x400] > closed && vt.ram->version[0x401] <= closed);
    vt_write(&d, d.config + 4, 4, 2);
    CU_ASSERT_EQUAL(fvm_virtio_balloon_actual(dev), 8192);
    save_twice(dev);
    CU_ASSERT_EQUAL(fvm_virtio_balloon_actual(dev), 8192);
    pfns[1] = 0xffffffff;
    memcpy(vt_mem(&vt, DATA), pfns, sizeof(pfns));
    vt_post(&q[0], &(struct vt_buf){DATA, sizeof(pfns), false}, 1);
    vt_kick(&q[0]);
    vt_settle(&vt);
    CU_ASSERT_TRUE(vt_status(&d) & 64);
    dev->ops->destroy(dev);
    vt_close(&vt);
}

int main(void)
{
    if (CU_initialize_registry() != CUE_SUCCESS)
        return 1;
    CU_pSuite suite = CU_add_suite("virtio_small", NULL, NULL);
    CU_add_test(suite, "rng", test_rng);
    CU_add_test(suite, "console", test_console);
    CU_add_test(suite, "balloon", test_balloon);
    CU_basic_set_mode(CU_BRM_VERBOSE);
    CU_basic_run_tests();
    unsigned failures = CU_get_number_of_failures();
    CU_cleanup_registry();
    return failures != 0;
}
