/*
 * Hostile drivers: seeded random descriptors, indexes and register writes against every virtio device. Whatever came before,
 * after a reset an honest driver gets its answer. A failing seed is printed; FVM_FUZZ_SEEDS sets how many run.
 */
#include <CUnit/Basic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/log.h"
#include "tests/device/support_virtio.h"

#define DISK_BYTES (1u << 20)
#define V1 (1ull << VT_F_VERSION_1)
#define RINGS 0x100000
#define DATA 0x300000

static char path[64];
static uint64_t state;

static uint64_t rnd(void)
{
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return state * 0x2545f4914f6cdd1dull;
}

static uint64_t pick_gpa(void)
{
    switch (rnd() % 8) {
    case 0:
        return rnd();
    case 1:
        return VT_RAM - rnd() % 64;
    case 2:
        return RINGS + rnd() % 0x40000; /* the rings themselves */
    default:
        return DATA + rnd() % 0x10000;
    }
}

static uint32_t pick_len(void)
{
    static const uint32_t some[] = {0, 1, 12, 16, 17, 64, 512, 1024, 4096, 65536, 0x7fffffff, 0xffffffff};
    return rnd() % 4 ? some[rnd() % FVM_ARRAY_SIZE(some)] : (uint32_t)rnd();
}

static size_t sink(void *ctx, const uint8_t *bytes, size_t len)
{
    (void)ctx;
    (void)bytes;
    return rnd() % 3 ? len : rnd() % (len + 1);
}

struct target {
    struct vt_dev d;
    unsigned queues;
};

static void scribble(struct vt_queue *q)
{
    for (unsigned i = 0; i < 16; i++) {
        uint16_t flags = (uint16_t)(rnd() % 16 ? rnd() % 8 : rnd());
        uint16_t next = (uint16_t)(rnd() % 8 ? rnd() % q->size : rnd());
        vt_set_desc(q, (unsigned)(rnd() % q->size), pick_gpa(), pick_len(), flags, next);
    }
    for (uint64_t n = rnd() % 8; n; n--)
        vt_offer(q, (uint16_t)(rnd() % 8 ? rnd() % q->size : rnd()));
    if (rnd() % 16 == 0)
        q->avail_idx = (uint16_t)rnd();
    for (unsigned i = 0; i < 64; i++) /* request headers, page numbers, tables of descriptors */
        *(uint32_t *)vt_mem(q->d->vt, DATA + 4 * (rnd() % 0x4000)) = (uint32_t)(rnd() % 4 ? rnd() % 16 : rnd());
}

static void poke(struct vt_dev *d)
{
    static const unsigned sizes[] = {1, 2, 4, 8};
    unsigned size = sizes[rnd() % 4];
    uint64_t base[] = {d->common, d->config, d->notify, d->isr, d->msix_table};
    uint64_t at = base[rnd() % 5] + rnd() % 72 / size * size;
    if (rnd() % 3)
        vt_write(d, at, size, rnd() % 2 ? rnd() % 32 : rnd());
    else
        vt_read(d, at, size);
    if (rnd() % 8 == 0)
        vt_pci_write(d->vt, d->slot, 0x40 + (unsigned)(rnd() % 46) * 4, 4, (uint32_t)rnd());
}

/* BARs, command register and the rest as an honest firmware leaves them. */
static void power_on(struct vt *vt, struct target *t)
{
    struct fvm_device *dev = t->d.dev;
    vt_attach(vt, &t->d, dev, t->d.slot);
}

static void attack(struct vt *vt, struct target *t)
{
    struct vt_queue q[3];
    uint64_t offered = vt_offered(&t->d);
    vt_negotiate(&t->d, (rnd() & offered) | V1);
    if (rnd() % 2)
        vt_msix(&t->d, t->queues + 1, 0x70);
    for (unsigned n = 0; n < t->queues; n++)
        vt_queue_setup(&t->d, &q[n], n, (uint16_t)(1u << rnd() % 7), RINGS + 0x10000 * n);
    vt_driver_ok(&t->d);
    for (unsigned round = 0; round < 20; round++) {
        unsigned n = (unsigned)(rnd() % t->queues);
        scribble(&q[n]);
        vt_kick(&q[n]);
        if (rnd() % 4 == 0)
            poke(&t->d);
        if (rnd() % 4 == 0)
            fvm_loop_turn(vt->loop, 0);
        if (rnd() % 16 == 0) {
            size_t len;
            uint8_t *buf = vt_save(t->d.dev, &len);
            CU_ASSERT_TRUE(vt_restore(t->d.dev, buf, len)); /* any state reached can be saved and taken back */
            t->d.dev->ops->resume(t->d.dev);
            free(buf);
        }
    }
    for (int i = 0; i < 4; i++)
        fvm_loop_turn(vt->loop, 0);
}

static bool honest_rng(struct target *t)
{
    struct vt_queue q;
    uint32_t head, used;
    if (!vt_negotiate(&t->d, V1))
        return false;
    vt_queue_setup(&t->d, &q, 0, 64, RINGS);
    vt_driver_ok(&t->d);
    vt_post(&q, &(struct vt_buf){DATA, 16, true}, 1);
    vt_kick(&q);
    return vt_wait(&q, &head, &used) && used == 16;
}

static bool honest_blk(struct target *t)
{
    struct vt_queue q;
    uint32_t head, used;
    if (!vt_negotiate(&t->d, V1))
        return false;
    vt_queue_setup(&t->d, &q, 0, 64, RINGS);
    vt_driver_ok(&t->d);
    memset(vt_mem(t->d.vt, DATA), 0, 16);
    vt_post(&q, (struct vt_buf[]){{DATA, 16, false}, {DATA + 4096, 512, true}, {DATA + 16, 1, true}}, 3);
    vt_kick(&q);
    return vt_wait(&q, &head, &used) && used == 513 && *((uint8_t *)vt_mem(t->d.vt, DATA) + 16) == 0;
}

static void one_seed(uint64_t seed)
{
    struct vt vt;
    struct fvm_disk *disk = NULL;
    struct fvm_net *net = NULL;
    struct fvm_device *dev[5];
    struct fvm_serial_backend backend = {.write = sink};
    static const unsigned queues[5] = {1, 3, 1, 2, 2};
    struct target t[5];
    unsigned failures = CU_get_number_of_failures();
    state = seed * 0x9e3779b97f4a7c15ull + 1;
    vt_open(&vt);
    CU_ASSERT_EQUAL_FATAL(fvm_disk_open(vt.loop, &(struct fvm_disk_options){.path = path, .format = "raw"}, &disk, NULL), 0);
    CU_ASSERT_EQUAL_FATAL(fvm_net_open(vt.loop, &(struct fvm_net_options){.kind = "user", .restricted = true}, NULL, NULL, &net, NULL), 0);
    CU_ASSERT_FATAL(fvm_virtio_blk_create(&vt.board, vt.host, 1, "blk", disk, "s", &dev[0]) == 0 &&
                    fvm_virtio_net_create(&vt.board, vt.host, 2, "net", net, (uint8_t[]){2, 0, 0, 0, 0, 1}, &dev[1]) == 0 &&
                    fvm_virtio_rng_create(&vt.board, vt.host, 3, "rng", &dev[2]) == 0 &&
                    fvm_virtio_console_create(&vt.board, vt.host, 4, "console", &backend, &dev[3]) == 0 &&
                    fvm_virtio_balloon_create(&vt.board, vt.host, 5, "balloon", &dev[4]) == 0);
    for (uint8_t i = 0; i < 5; i++) {
        t[i].queues = queues[i];
        vt_attach(&vt, &t[i].d, dev[i], (uint8_t)(i + 1));
    }
    for (unsigned i = 0; i < 10; i++) {
        struct target *victim = &t[rnd() % 5];
        attack(&vt, victim);
        power_on(&vt, victim);
    }
    for (unsigned i = 0; i < 5; i++)
        power_on(&vt, &t[i]);
    CU_ASSERT_TRUE(honest_blk(&t[0]));
    CU_ASSERT_TRUE(honest_rng(&t[2]));
    for (unsigned i = 0; i < 5; i++)
        dev[i]->ops->destroy(dev[i]);
    fvm_disk_close(&disk);
    fvm_net_close(&net);
    vt_close(&vt);
    if (CU_get_number_of_failures() != failures)
        fprintf(stderr, "failing seed: %llu\n", (unsigned long long)seed);
}

static void test_seeds(void)
{
    const char *env = getenv("FVM_FUZZ_SEEDS");
    unsigned seeds = env ? (unsigned)atoi(env) : 60;
    for (unsigned seed = 1; seed <= seeds; seed++)
        one_seed(seed);
}

int main(void)
{
    strcpy(path, "/tmp/fvm-virtio-fuzz-XXXXXX");
    int fd = mkstemp(path);
    if (fd < 0 || ftruncate(fd, DISK_BYTES) < 0 || CU_initialize_registry() != CUE_SUCCESS)
        return 1;
    close(fd);
    fvm_log_set_level(FVM_LOG_ERROR); /* the guests here are broken all the time */
    CU_pSuite suite = CU_add_suite("virtio_fuzz", NULL, NULL);
    CU_add_test(suite, "hostile drivers, then an honest one", test_seeds);
    CU_basic_set_mode(CU_BRM_VERBOSE);
    CU_basic_run_tests();
    unsigned failures = CU_get_number_of_failures();
    CU_cleanup_registry();
    unlink(path);
    return failures != 0;
}
