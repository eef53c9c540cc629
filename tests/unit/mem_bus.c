/* mem/bus: overlap, splitting, unclaimed addresses, claims changed within callbacks, the flat map against a model. */
#include "vmm/mem/bus.h"

#include <CUnit/Basic.h>
#include <stdio.h>
#include <string.h>

struct chip {
    uint8_t tag;
    unsigned reads, writes, last_size;
    uint64_t last_offset, last_value;
    struct fvm_bus *bus;
    int release_id; /* write releases this claim */
};

static uint64_t chip_read(void *ctx, uint64_t offset, unsigned size)
{
    struct chip *c = ctx;

    c->reads++;
    c->last_offset = offset;
    c->last_size = size;
    return 0x0101010101010101ull * c->tag;
}

static void chip_write(void *ctx, uint64_t offset, unsigned size, uint64_t value)
{
    struct chip *c = ctx;

    c->writes++;
    c->last_offset = offset;
    c->last_size = size;
    c->last_value = value;
    if (c->release_id) {
        fvm_bus_release(c->bus, c->release_id);
        c->release_id = 0;
    }
}

static const struct fvm_bus_ops CHIP = {.read = chip_read, .write = chip_write};

static struct fvm_bus *make(void)
{
    struct fvm_bus *bus = NULL;

    CU_ASSERT_EQUAL_FATAL(fvm_bus_create(&bus), 0);
    return bus;
}

static int claim(struct fvm_bus *bus, enum fvm_bus_space space, uint64_t base, uint64_t len, struct chip *c)
{
    int id = 0;

    CU_ASSERT_EQUAL_FATAL(fvm_bus_claim(bus, space, base, len, &CHIP, c, "chip", &id), 0);
    return id;
}

static void test_unclaimed(void)
{
    struct fvm_bus *bus = make();

    CU_ASSERT_EQUAL(fvm_bus_read(bus, FVM_BUS_PIO, 0x80, 1), 0xff);
    CU_ASSERT_EQUAL(fvm_bus_read(bus, FVM_BUS_MMIO, 0xfed00001, 3), 0xffffff);
    CU_ASSERT_EQUAL(fvm_bus_read(bus, FVM_BUS_MMIO, UINT64_MAX - 3, 8), UINT64_MAX);
    fvm_bus_write(bus, FVM_BUS_MMIO, 0xfed00000, 8, 1);
    fvm_bus_destroy(&bus);
    CU_ASSERT_PTR_NULL(bus);
}

static void test_bad_claims(void)
{
    struct fvm_bus *bus = make();
    struct chip c = {0};
    int id = -7;

    CU_ASSERT_EQUAL(fvm_bus_claim(bus, FVM_BUS_PIO, 0x100, 0, &CHIP, &c, "c", &id), FVM_EINVAL);
    CU_ASSERT_EQUAL(fvm_bus_claim(bus, FVM_BUS_PIO, 0xffff, 2, &CHIP, &c, "c", &id), FVM_EINVAL);
    CU_ASSERT_EQUAL(fvm_bus_claim(bus, FVM_BUS_MMIO, UINT64_MAX, 2, &CHIP, &c, "c", &id), FVM_EINVAL);
    CU_ASSERT_EQUAL(id, -7);
    CU_ASSERT_EQUAL(fvm_bus_claim(bus, FVM_BUS_MMIO, UINT64_MAX, 1, &CHIP, &c, "c", &id), 0);
    c.tag = 9;
    CU_ASSERT_EQUAL(fvm_bus_read(bus, FVM_BUS_MMIO, UINT64_MAX, 1), 9);
    fvm_bus_destroy(&bus);
}

static void test_overlap(void)
{
    struct fvm_bus *bus = make();
    struct chip hole = {.tag = 1}, bar = {.tag = 2};
    int id;

    claim(bus, FVM_BUS_MMIO, 0xc0000000, 0x10000000, &hole);
    id = claim(bus, FVM_BUS_MMIO, 0xc0001000, 0x1000, &bar);
    CU_ASSERT_EQUAL(fvm_bus_read(bus, FVM_BUS_MMIO, 0xc0000ffc, 4), 0x01010101);
    CU_ASSERT_EQUAL(hole.last_offset, 0xffc);
    CU_ASSERT_EQUAL(fvm_bus_read(bus, FVM_BUS_MMIO, 0xc0001004, 2), 0x0202);
    CU_ASSERT_EQUAL(bar.last_offset, 4);
    CU_ASSERT_EQUAL(fvm_bus_read(bus, FVM_BUS_MMIO, 0xc0002000, 1), 1);
    CU_ASSERT_EQUAL(hole.last_offset, 0x2000);
    CU_ASSERT_EQUAL(fvm_bus_read(bus, FVM_BUS_MMIO, 0xc0000ffe, 4), 0x02020101);
    fvm_bus_release(bus, id);
    CU_ASSERT_EQUAL(fvm_bus_read(bus, FVM_BUS_MMIO, 0xc0001004, 2), 0x0101);
    fvm_bus_destroy(&bus);
}

static void test_split(void)
{
    struct fvm_bus *bus = make();
    struct chip c = {.tag = 3}, p = {.tag = 4};

    claim(bus, FVM_BUS_MMIO, 0x1000, 0x1000, &c);
    claim(bus, FVM_BUS_PIO, 0xcf8, 8, &p);
    fvm_bus_write(bus, FVM_BUS_MMIO, 0x1008, 8, 0x1122334455667788);
    CU_ASSERT_EQUAL(c.writes, 1);
    CU_ASSERT_EQUAL(c.last_value, 0x1122334455667788);
    fvm_bus_write(bus, FVM_BUS_MMIO, 0x1002, 4, 0xaabbccdd);
    CU_ASSERT_EQUAL(c.writes, 3);
    CU_ASSERT_EQUAL(c.last_offset, 4);
    CU_ASSERT_EQUAL(c.last_size, 2);
    CU_ASSERT_EQUAL(c.last_value, 0xaabb);
    fvm_bus_write(bus, FVM_BUS_MMIO, 0x1ffc, 8, 0x99887766554433);
    CU_ASSERT_EQUAL(c.writes, 4);
    CU_ASSERT_EQUAL(c.last_value, 0x66554433);
    CU_ASSERT_EQUAL(fvm_bus_read(bus, FVM_BUS_PIO, 0xcf8, 8), 0x0404040404040404);
    CU_ASSERT_EQUAL(p.reads, 2);
    CU_ASSERT_EQUAL(fvm_bus_read(bus, FVM_BUS_PIO, 0xcfe, 4), 0xffff0404);
    CU_ASSERT_EQUAL(fvm_bus_read(bus, FVM_BUS_PIO, 0xcfd, 1), 4);
    CU_ASSERT_EQUAL(p.last_offset, 5);
    fvm_bus_destroy(&bus);
}

static void test_release_inside(void)
{
    struct fvm_bus *bus = make();
    struct chip under = {.tag = 1}, self = {.tag = 2, .bus = bus};

    claim(bus, FVM_BUS_MMIO, 0x1000, 0x1000, &under);
    self.release_id = claim(bus, FVM_BUS_MMIO, 0x1000, 0x1000, &self);
    /* unaligned: two pieces, and the first takes the chip away */
    fvm_bus_write(bus, FVM_BUS_MMIO, 0x1002, 4, 0x12345678);
    CU_ASSERT_EQUAL(self.writes, 1);
    CU_ASSERT_EQUAL(under.writes, 1);
    CU_ASSERT_EQUAL(under.last_value, 0x1234);
    fvm_bus_destroy(&bus);
}

static void on_trace(void *ctx, enum fvm_bus_space space, bool write, uint64_t addr, unsigned size, uint64_t value,
                     const char *name)
{
    char *text = ctx;

    snprintf(text, 64, "%d %d %llx %u %llx %s", space, write, (unsigned long long)addr, size, (unsigned long long)value,
             name ? name : "-");
}

static void test_trace(void)
{
    struct fvm_bus *bus = make();
    struct chip c = {.tag = 5};
    char text[64] = "";

    claim(bus, FVM_BUS_PIO, 0x70, 2, &c);
    fvm_bus_set_trace(bus, on_trace, text);
    fvm_bus_write(bus, FVM_BUS_PIO, 0x71, 1, 0x1ff);
    CU_ASSERT_STRING_EQUAL(text, "1 1 71 1 ff chip");
    (void)fvm_bus_read(bus, FVM_BUS_PIO, 0x72, 1);
    CU_ASSERT_STRING_EQUAL(text, "1 0 72 1 ff -");
    fvm_bus_set_trace(bus, NULL, NULL);
    text[0] = 0;
    (void)fvm_bus_read(bus, FVM_BUS_PIO, 0x71, 1);
    CU_ASSERT_EQUAL(text[0], 0);
    fvm_bus_destroy(&bus);
}

static uint64_t next(uint64_t *state)
{
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state;
}

/* Random claims and releases; each byte's owner as a plain array knows it. */
static void test_model(void)
{
    for (uint64_t seed = 1; seed <= 20; seed++) {
        struct fvm_bus *bus = make();
        struct { struct chip chip; uint64_t base, len; int id; } slot[12];
        unsigned order[12], count = 0, bad = 0;
        uint64_t rng = seed * 0x9e3779b97f4a7c15ull;

        memset(slot, 0, sizeof(slot));
        for (unsigned step = 0; step < 200; step++) {
            unsigned i = (unsigned)(next(&rng) % 12);
            uint8_t owner[256];

            if (slot[i].id) {
                unsigned k = 0;

                fvm_bus_release(bus, slot[i].id);
                slot[i].id = 0;
                while (order[k] != i)
                    k++;
                memmove(&order[k], &order[k + 1], (--count - k) * sizeof(order[0]));
            } else {
                slot[i].chip.tag = (uint8_t)(i + 1);
                slot[i].base = next(&rng) % 250;
                slot[i].len = 1 + next(&rng) % (256 - slot[i].base);
                slot[i].id = claim(bus, FVM_BUS_PIO, slot[i].base, slot[i].len, &slot[i].chip);
                order[count++] = i;
            }
            memset(owner, 0xff, sizeof(owner));
            for (unsigned k = 0; k < count; k++)
                memset(owner + slot[order[k]].base, (int)order[k] + 1, slot[order[k]].len);
            for (unsigned a = 0; a < 252; a++) {
                uint32_t want;

                memcpy(&want, owner + a, 4);
                bad += fvm_bus_read(bus, FVM_BUS_PIO, a, 4) != want;
            }
        }
        if (bad)
            printf("seed %llu: %u wrong\n", (unsigned long long)seed, bad);
        CU_ASSERT_EQUAL(bad, 0);
        fvm_bus_destroy(&bus);
    }
}

int main(void)
{
    CU_initialize_registry();
    CU_pSuite s = CU_add_suite("mem/bus", NULL, NULL);
    CU_add_test(s, "unclaimed reads ones", test_unclaimed);
    CU_add_test(s, "bad claims are refused", test_bad_claims);
    CU_add_test(s, "the newest claim wins", test_overlap);
    CU_add_test(s, "splitting", test_split);
    CU_add_test(s, "released from its own callback", test_release_inside);
    CU_add_test(s, "trace", test_trace);
    CU_add_test(s, "random claims against a model", test_model);
    CU_basic_set_mode(CU_BRM_VERBOSE);
    CU_basic_run_tests();
    unsigned bad = CU_get_number_of_failures();
    CU_cleanup_registry();
    return bad != 0;
}
