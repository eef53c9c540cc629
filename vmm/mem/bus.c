/*
 * bus.c - who answers at an address: claims, a flat map of them, and the board lock.
 *
 * Claims may overlap; the newest wins. A claim or release rebuilds a flat sorted map of disjoint ranges, each with its
 * winner, so
 * that an access is one look at the last hit or a binary search:
 *
 *     claims   [-------- hole --------)           map   [hole)[  bar  )[ hole )
 *                    [  bar  )             =>
 *
 * Invariant: the map is sorted, disjoint and says for every claimed address the newest claim that covers it. Device
 * code may claim and release from within its own callbacks: nothing of the map is held across one. Board lock held for
 * all of it.
 */
#include "vmm/mem/bus.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#define PIO_END 0x10000ull

struct claim {
    enum fvm_bus_space space;
    uint64_t base, last; /* inclusive: a claim may end at 2^64 - 1 */
    const struct fvm_bus_ops *ops;
    void *ctx;
    const char *name;
    int id;
};

struct range {
    uint64_t base, last;
    struct claim claim; /* copy: valid while the callback rebuilds the map */
};

struct map {
    struct range *ranges;
    size_t count, hit;
};

struct fvm_bus {
    pthread_mutex_t lock;
    struct claim *claims; /* oldest first */
    size_t claim_count;
    int next_id;
    struct map maps[2]; /* by fvm_bus_space */
    void (*trace)(void *ctx, enum fvm_bus_space space, bool write, uint64_t addr, unsigned size, uint64_t value,
                  const char *name);
    void *trace_ctx;
};

int fvm_bus_create(struct fvm_bus **ret_bus)
{
    struct fvm_bus *bus = calloc(1, sizeof(*bus));
    pthread_mutexattr_t attr;

    if (!bus)
        return FVM_ENOMEM;
    fvm_assert(pthread_mutexattr_init(&attr) == 0);
    fvm_assert(pthread_mutexattr_settype(&attr, PTHREAD_MUTEX_RECURSIVE) == 0);
    fvm_assert(pthread_mutex_init(&bus->lock, &attr) == 0);
    pthread_mutexattr_destroy(&attr);
    bus->next_id = 1;
    *ret_bus = bus;
    return 0;
}

void fvm_bus_destroy(struct fvm_bus **bus_p)
{
    struct fvm_bus *bus = *bus_p;

    if (!bus)
        return;
    free(bus->maps[FVM_BUS_MMIO].ranges);
    free(bus->maps[FVM_BUS_PIO].ranges);
    free(bus->claims);
    fvm_assert(pthread_mutex_destroy(&bus->lock) == 0);
    free(bus);
    *bus_p = NULL;
}

void fvm_bus_lock(void *bus)
{
    pthread_mutex_t *lock = &((struct fvm_bus *)bus)->lock;

    if (pthread_mutex_trylock(lock) == 0)
        return;
    fvm_bus_wait(true);
    fvm_assert(pthread_mutex_lock(lock) == 0);
    fvm_bus_wait(false);
}

void fvm_bus_unlock(void *bus)
{
    fvm_assert(pthread_mutex_unlock(&((struct fvm_bus *)bus)->lock) == 0);
}

static int compare_u64(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

    return x < y ? -1 : x > y;
}

/* The newest claim that covers addr. */
static const struct claim *winner(const struct fvm_bus *bus, enum fvm_bus_space space, uint64_t addr)
{
    for (size_t i = bus->claim_count; i-- > 0;) {
        const struct claim *c = &bus->claims[i];

        if (c->space == space && addr >= c->base && addr <= c->last)
            return c;
    }
    return NULL;
}

/* Fill the flat map from the claims. edges and ranges have room for two per claim. */
static void flatten(const struct fvm_bus *bus, enum fvm_bus_space space, uint64_t *edges, struct map *map)
{
    size_t n = 0;

    map->count = map->hit = 0;
    for (size_t i = 0; i < bus->claim_count; i++) {
        const struct claim *c = &bus->claims[i];

        if (c->space != space)
            continue;
        edges[n++] = c->base;
        if (c->last != UINT64_MAX)
            edges[n++] = c->last + 1;
    }
    qsort(edges, n, sizeof(*edges), compare_u64);
    for (size_t i = 0; i < n; i++) {
        const struct claim *c;
        struct range *before = map->count ? &map->ranges[map->count - 1] : NULL;
        uint64_t last = i + 1 < n ? edges[i + 1] - 1 : UINT64_MAX;

        if (i + 1 < n && edges[i + 1] == edges[i])
            continue;
        c = winner(bus, space, edges[i]);
        if (!c)
            continue;
        if (before && before->claim.id == c->id && before->last + 1 == edges[i]) {
            before->last = last;
            continue;
        }
        map->ranges[map->count++] = (struct range){.base = edges[i], .last = last, .claim = *c};
    }
}

static int rebuild(struct fvm_bus *bus, enum fvm_bus_space space)
{
    size_t room = 2 * bus->claim_count + 1;
    uint64_t *edges = malloc(room * sizeof(*edges));
    struct range *ranges = malloc(room * sizeof(*ranges));

    if (!edges || !ranges) {
        free(edges);
        free(ranges);
        return FVM_ENOMEM;
    }
    free(bus->maps[space].ranges);
    bus->maps[space].ranges = ranges;
    flatten(bus, space, edges, &bus->maps[space]);
    free(edges);
    return 0;
}

int fvm_bus_claim(struct fvm_bus *bus, enum fvm_bus_space space, uint64_t base, uint64_t len,
                  const struct fvm_bus_ops *ops, void *ctx, const char *name, int *ret_id)
{
    struct claim *grown;
    int ret;

    if (!len || len - 1 > UINT64_MAX - base || (space == FVM_BUS_PIO && (base >= PIO_END || len > PIO_END - base)))
        return FVM_EINVAL;
    fvm_bus_lock(bus);
    grown = realloc(bus->claims, (bus->claim_count + 1) * sizeof(*grown));
    if (!grown) {
        fvm_bus_unlock(bus);
        return FVM_ENOMEM;
    }
    bus->claims = grown;
    grown[bus->claim_count++] = (struct claim){.space = space, .base = base, .last = base + (len - 1), .ops = ops,
                                               .ctx = ctx, .name = name, .id = bus->next_id};
    ret = rebuild(bus, space);
    if (ret == 0)
        *ret_id = bus->next_id++;
    else
        bus->claim_count--;
    fvm_bus_unlock(bus);
    return ret;
}

void fvm_bus_release(struct fvm_bus *bus, int id)
{
    size_t i = 0;
    enum fvm_bus_space space;
    struct map *map;

    fvm_bus_lock(bus);
    while (i < bus->claim_count && bus->claims[i].id != id)
        i++;
    fvm_assert(i < bus->claim_count);
    space = bus->claims[i].space;
    memmove(&bus->claims[i], &bus->claims[i + 1], (bus->claim_count - i - 1) * sizeof(*bus->claims));
    bus->claim_count--;
    if (rebuild(bus, space) < 0) {
        /* out of memory, yet the claim must go: cut its ranges out; what it hid stays hidden until the next rebuild */
        size_t kept = 0;

        map = &bus->maps[space];
        for (size_t k = 0; k < map->count; k++)
            if (map->ranges[k].claim.id != id)
                map->ranges[kept++] = map->ranges[k];
        map->count = kept;
        map->hit = 0;
    }
    fvm_bus_unlock(bus);
}

void fvm_bus_set_trace(struct fvm_bus *bus, void (*fn)(void *ctx, enum fvm_bus_space space, bool write, uint64_t addr,
                                                      unsigned size, uint64_t value, const char *name), void *ctx)
{
    fvm_bus_lock(bus);
    bus->trace = fn;
    bus->trace_ctx = ctx;
    fvm_bus_unlock(bus);
}

/* Who answers at addr (NULL: nobody), and up to where that holds. */
static const struct claim *find(struct map *map, uint64_t addr, uint64_t *ret_last)
{
    size_t lo = 0, hi = map->count;

    if (map->hit < map->count && addr >= map->ranges[map->hit].base && addr <= map->ranges[map->hit].last)
        lo = map->hit;
    else
        while (lo < hi) { /* the first range that ends at addr or later */
            size_t mid = lo + (hi - lo) / 2;

            if (map->ranges[mid].last < addr)
                lo = mid + 1;
            else
                hi = mid;
        }
    if (lo == map->count) {
        *ret_last = UINT64_MAX;
        return NULL;
    }
    if (addr < map->ranges[lo].base) {
        *ret_last = map->ranges[lo].base - 1;
        return NULL;
    }
    map->hit = lo;
    *ret_last = map->ranges[lo].last;
    return &map->ranges[lo].claim;
}

/* The largest piece at addr: a power of two, naturally aligned, at most `left` bytes, within one claim's range. */
static unsigned piece_bytes(enum fvm_bus_space space, uint64_t addr, unsigned left, uint64_t last)
{
    unsigned size = space == FVM_BUS_PIO ? 4 : 8;

    while (size > left || (addr & (size - 1)) || size - 1 > last - addr)
        size >>= 1;
    return size;
}

static uint64_t ones(unsigned size)
{
    return ~0ull >> (64 - 8 * size);
}

/* One piece at addr, of at most `left` bytes; returns its size. */
static unsigned access_piece(struct fvm_bus *bus, enum fvm_bus_space space, bool write, uint64_t addr, unsigned left,
                             uint64_t *value)
{
    uint64_t last;
    const struct claim *found = find(&bus->maps[space], addr, &last);
    unsigned size = piece_bytes(space, addr, left, last);
    const char *name = found ? found->name : NULL;

    if (write) {
        *value &= ones(size);
        if (found && found->ops->write)
            found->ops->write(found->ctx, addr - found->base, size, *value);
    } else {
        *value = found && found->ops->read ? found->ops->read(found->ctx, addr - found->base, size) & ones(size)
                                           : ones(size);
    }
    if (FVM_UNLIKELY(bus->trace != NULL))
        bus->trace(bus->trace_ctx, space, write, addr, size, *value, name);
    return size;
}

uint64_t fvm_bus_read(struct fvm_bus *bus, enum fvm_bus_space space, uint64_t addr, unsigned size)
{
    uint64_t result = 0;

    fvm_assert(size >= 1 && size <= 8);
    fvm_bus_lock(bus);
    for (unsigned done = 0; done < size;) {
        uint64_t value = 0;
        unsigned n = access_piece(bus, space, false, addr + done, size - done, &value);

        result |= value << (8 * done);
        done += n;
    }
    fvm_bus_unlock(bus);
    return result;
}

void fvm_bus_write(struct fvm_bus *bus, enum fvm_bus_space space, uint64_t addr, unsigned size, uint64_t value)
{
    fvm_assert(size >= 1 && size <= 8);
    fvm_bus_lock(bus);
    for (unsigned done = 0; done < size;) {
        uint64_t piece = value >> (8 * done);

        done += access_piece(bus, space, true, addr + done, size - done, &piece);
    }
    fvm_bus_unlock(bus);
}
