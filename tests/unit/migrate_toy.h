/* A machine of bytes for the migration tests: RAM, a writer that dirties it, states that are one number. */
#ifndef FVM_TESTS_UNIT_MIGRATE_TOY_H
#define FVM_TESTS_UNIT_MIGRATE_TOY_H

#include <poll.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "migrate/migrate.h"
#include "migrate/stream.h"

struct toy { /* one VM, or the place for one */
    struct fvm_ram *ram;
    Fvm__VmConfig config;
    uint8_t id[16];
    pthread_mutex_t lock; /* a write and its version are one step for the dirty log */
    pthread_t writer;
    bool writer_on, running, stop, storage;
    unsigned writes_per_ms;   /* pages */
    unsigned pages_per_epoch; /* however slow this host is: written when an epoch begins, at most 512 */
    uint64_t epoch_ns;
    uint64_t limit, limits; /* atomic: pages per second, 0: none; how often one was set */
    uint64_t storage_epoch, writes;
    int fail_activate, fail_check, fail_save, activations, runs, pauses;
    uint64_t state; /* what save saves and restore restores */
    uint64_t elapsed_ns;
};

static void write_page(struct toy *t, uint64_t value)
{
    uint64_t page = 256 + value % 512;
    if (page >= t->ram->low_bytes >> FVM_PAGE_SHIFT)
        page = 3;
    uint8_t *p = fvm_ram_hva(t->ram, page << FVM_PAGE_SHIFT);
    pthread_mutex_lock(&t->lock);
    memcpy(p + (value * 64) % 4096, &value, sizeof(value));
    fvm_ram_mark_written(t->ram, page << FVM_PAGE_SHIFT, FVM_PAGE_SIZE);
    pthread_mutex_unlock(&t->lock);
}

static void *writer_main(void *arg)
{
    struct toy *t = arg;
    uint64_t v = 88172645463325252ull;
    while (!__atomic_load_n(&t->stop, __ATOMIC_ACQUIRE)) {
        uint64_t limit = __atomic_load_n(&t->limit, __ATOMIC_RELAXED), writes = t->writes_per_ms;
        if (limit) /* rounded at random, so that a small limit is one */
            writes = FVM_MIN(writes, limit / 1000 + ((v >> 33) % 1000 < limit % 1000));
        for (uint64_t i = 0; i < FVM_MAX(writes, 1ull) && __atomic_load_n(&t->running, __ATOMIC_ACQUIRE); i++) {
            v ^= v << 13;
            v ^= v >> 7;
            v ^= v << 17;
            if (i < writes)
                write_page(t, v);
            t->writes += i < writes;
        }
        poll(NULL, 0, 1);
    }
    return NULL;
}

static void toy_init(struct toy *t, uint64_t memory_bytes, bool source)
{
    static char name[] = "toy";
    memset(t, 0, sizeof(*t));
    pthread_mutex_init(&t->lock, NULL);
    fvm__vm_config__init(&t->config);
    t->config.name = name;
    t->config.memory_bytes = memory_bytes;
    t->config.cpus = 1;
    t->storage = source;
    if (!source)
        return;
    if (fvm_ram_create(memory_bytes, &t->ram, NULL) != 0)
        abort();
    t->running = true;
    t->state = 4711;
    t->writer_on = pthread_create(&t->writer, NULL, writer_main, t) == 0;
}

static void toy_fini(struct toy *t)
{
    __atomic_store_n(&t->stop, true, __ATOMIC_RELEASE);
    if (t->writer_on)
        pthread_join(t->writer, NULL);
    if (t->ram)
        fvm_ram_destroy(&t->ram);
    pthread_mutex_destroy(&t->lock);
}

static void toy_fill(struct toy *t, unsigned pages, uint64_t seed)
{
    for (unsigned i = 0; i < pages; i++) {
        uint64_t buf[512] = {0};
        for (unsigned w = 0; i % 3 && w < 512; w++)
            buf[w] = seed = seed * 6364136223846793005ull + 1442695040888963407ull;
        if (fvm_ram_write(t->ram, 0x100000 + (uint64_t)i * 4096, buf, sizeof(buf)) != 0)
            abort();
    }
}

static bool toy_same(const struct toy *a, const struct toy *b)
{
    return a->ram->low_bytes == b->ram->low_bytes && a->ram->high_bytes == b->ram->high_bytes &&
           memcmp(a->ram->base, b->ram->base, a->ram->low_bytes) == 0 &&
           (!a->ram->high_bytes ||
            memcmp(a->ram->base + FVM_RAM_HIGH_BASE, b->ram->base + FVM_RAM_HIGH_BASE, a->ram->high_bytes) == 0);
}

static struct fvm_ram *t_ram(void *ctx) { return ((struct toy *)ctx)->ram; }
static const Fvm__VmConfig *t_config(void *ctx) { return &((struct toy *)ctx)->config; }
static bool t_running(void *ctx) { return __atomic_load_n(&((struct toy *)ctx)->running, __ATOMIC_ACQUIRE); }
static bool t_alive(void *ctx)
{
    (void)ctx;
    return true;
}
static uint32_t t_dirty_epoch(void *ctx)
{
    struct toy *t = ctx;
    pthread_mutex_lock(&t->lock);
    uint32_t epoch = fvm_ram_epoch_next(t->ram);
    pthread_mutex_unlock(&t->lock);
    uint64_t now = fvm_now_ns(), pages = t->pages_per_epoch, limit = __atomic_load_n(&t->limit, __ATOMIC_RELAXED);
    if (limit) /* as long as the last round took */
        pages = FVM_MIN(pages, limit * ((now - t->epoch_ns) / 1000) / 1000000);
    t->epoch_ns = now;
    for (uint64_t i = 0; i < pages && __atomic_load_n(&t->running, __ATOMIC_ACQUIRE); i++)
        write_page(t, ++t->writes);
    return epoch;
}
static int t_pause(void *ctx)
{
    struct toy *t = ctx;
    __atomic_store_n(&t->running, false, __ATOMIC_RELEASE);
    pthread_mutex_lock(&t->lock); /* a write under way is over */
    pthread_mutex_unlock(&t->lock);
    poll(NULL, 0, 2);
    t->pauses++;
    return 0;
}
static int t_run(void *ctx)
{
    struct toy *t = ctx;
    t->runs++;
    __atomic_store_n(&t->running, true, __ATOMIC_RELEASE);
    return 0;
}
static int t_save(void *ctx, Fvm__CpusState **ret_cpus, Fvm__DevicesState **ret_devices)
{
    struct toy *t = ctx;
    if (t->fail_save)
        return t->fail_save;
    Fvm__CpusState *c = calloc(1, sizeof(*c));
    Fvm__DevicesState *d = calloc(1, sizeof(*d));
    fvm__cpus_state__init(c);
    fvm__devices_state__init(d);
    c->clock = calloc(1, sizeof(*c->clock));
    fvm__clock_state__init(c->clock);
    c->clock->guest_ns = t->state;
    *ret_cpus = c;
    *ret_devices = d;
    return 0;
}
static uint64_t t_throttle(void *ctx, uint64_t pages_per_s)
{
    struct toy *t = ctx;
    __atomic_store_n(&t->limit, pages_per_s, __ATOMIC_RELAXED);
    t->limits += pages_per_s != 0;
    return t->limits * 1000000;
}
static int t_storage_deactivate(void *ctx)
{
    ((struct toy *)ctx)->storage = false;
    return 0;
}
static int t_storage_activate(void *ctx, uint64_t epoch, struct fvm_err *err)
{
    struct toy *t = ctx;
    t->activations++;
    if (t->fail_activate)
        return fvm_err_set(err, t->fail_activate, 0, "toy", "storage refuses");
    t->storage = true;
    t->storage_epoch = epoch;
    return 0;
}
static int t_create(void *ctx, const Fvm__VmConfig *config, struct fvm_err *err)
{
    struct toy *t = ctx;
    t->config.memory_bytes = config->memory_bytes;
    return fvm_ram_create(config->memory_bytes, &t->ram, err);
}
static void t_discard(void *ctx) { fvm_ram_destroy(&((struct toy *)ctx)->ram); }
static int t_check(void *ctx, const Fvm__CpusState *cpus, const Fvm__DevicesState *devices, struct fvm_err *err)
{
    (void)devices;
    struct toy *t = ctx;
    return t->fail_check || !cpus->clock ? fvm_err_set(err, FVM_ECPUMODEL, 0, "toy", "state refused") : 0;
}
static void t_restore(void *ctx, const Fvm__CpusState *cpus, const Fvm__DevicesState *devices, uint64_t elapsed_ns)
{
    (void)devices;
    struct toy *t = ctx;
    t->state = cpus->clock->guest_ns;
    t->elapsed_ns = elapsed_ns;
}

static struct fvm_machine toy_machine(struct toy *toy)
{
    static const struct fvm_machine_ops ops = {
        .ram = t_ram,
        .config = t_config,
        .running = t_running,
        .alive = t_alive,
        .dirty_epoch = t_dirty_epoch,
        .pause = t_pause,
        .save = t_save,
        .storage_deactivate = t_storage_deactivate,
        .throttle = t_throttle,
        .create = t_create,
        .discard = t_discard,
        .check = t_check,
        .restore = t_restore,
        .storage_activate = t_storage_activate,
        .run = t_run,
    };
    return (struct fvm_machine){.ops = &ops, .ctx = toy};
}

#endif
