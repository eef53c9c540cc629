/* The board of support_board.h. */
#include "support_board.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void on_line(void *ctx, unsigned line, bool level)
{
    struct test_board *t = ctx;

    t->rises[line] += level;
    t->level[line] = level;
}

static void on_msi(void *ctx, uint64_t addr, uint32_t data)
{
    struct test_board *t = ctx;

    t->msi_count++;
    t->msi_addr = addr;
    t->msi_data = data;
}

static void on_kick(void *ctx, unsigned cpu, enum fvm_irq_kick what, unsigned arg)
{
    struct test_board *t = ctx;

    t->kicks[what]++;
    t->kick_cpu[cpu]++;
    if (what == FVM_KICK_SIPI)
        t->sipi_vector = arg;
}

static void on_reset(void *ctx)
{
    ((struct test_board *)ctx)->resets++;
}

static void on_power_off(void *ctx)
{
    ((struct test_board *)ctx)->power_offs++;
}

static void on_debug_exit(void *ctx, unsigned code)
{
    struct test_board *t = ctx;

    t->debug_exits++;
    t->debug_code = code;
}

void board_up(struct test_board *t, unsigned cpus)
{
    memset(t, 0, sizeof(*t));
    t->board.cpu_count = cpus;
    t->board.reset = on_reset;
    t->board.power_off = on_power_off;
    t->board.debug_exit = on_debug_exit;
    t->board.ctx = t;
    fvm_assert(fvm_loop_create(&t->board.loop) == 0);
    fvm_assert(fvm_clock_create(t->board.loop, 1000000, &t->board.clock) == 0);
    fvm_assert(fvm_bus_create(&t->board.bus) == 0);
    fvm_assert(fvm_irq_create(&t->board.irq) == 0);
    fvm_assert(fvm_ram_create(32 << 20, &t->board.ram, NULL) == 0);
    fvm_irq_set_lock(t->board.irq, t->board.bus);
    fvm_irq_add_sink(t->board.irq, on_line, t);
    fvm_irq_set_msi(t->board.irq, on_msi, t);
    fvm_irq_set_kick(t->board.irq, on_kick, t);
    fvm_bus_set_cpu(0);
}

void board_down(struct test_board *t)
{
    fvm_ram_destroy(&t->board.ram);
    fvm_irq_destroy(&t->board.irq);
    fvm_bus_destroy(&t->board.bus);
    fvm_clock_destroy(&t->board.clock);
    fvm_loop_destroy(&t->board.loop);
}

static void jump(struct test_board *t, uint64_t ns)
{
    struct fvm_clock_state s;

    fvm_clock_save(t->board.clock, &s);
    s.guest_ns += ns;
    s.guest_tsc += ns; /* 1 GHz */
    fvm_assert(fvm_clock_restore(t->board.clock, &s, 0) == 0);
    fvm_clock_start(t->board.clock);
    for (unsigned i = 0; i < 3; i++)
        while (fvm_loop_turn(t->board.loop, 0) == 1)
            ;
    fvm_clock_stop(t->board.clock);
}

void board_advance(struct test_board *t, uint64_t ns)
{
    uint64_t end = fvm_clock_ns(t->board.clock) + ns;

    for (unsigned steps = 0; steps < 16; steps++)
        if (fvm_clock_ns(t->board.clock) < end)
            jump(t, FVM_MIN(ns / 16 + 1, end - fvm_clock_ns(t->board.clock)));
}

void board_out(struct test_board *t, uint64_t port, unsigned size, uint64_t value)
{
    fvm_bus_write(t->board.bus, FVM_BUS_PIO, port, size, value);
}

uint64_t board_in(struct test_board *t, uint64_t port, unsigned size)
{
    return fvm_bus_read(t->board.bus, FVM_BUS_PIO, port, size);
}

void board_pci_write(struct test_board *t, unsigned devfn, unsigned reg, unsigned size, uint32_t value)
{
    board_out(t, 0xcf8, 4, 0x80000000u | devfn << 8 | (reg & 0xfc));
    board_out(t, 0xcfc + (reg & 3), size, value);
}

uint32_t board_pci_read(struct test_board *t, unsigned devfn, unsigned reg, unsigned size)
{
    board_out(t, 0xcf8, 4, 0x80000000u | devfn << 8 | (reg & 0xfc));
    return (uint32_t)board_in(t, 0xcfc + (reg & 3), size);
}

void board_mmio_write(struct test_board *t, uint64_t addr, unsigned size, uint64_t value)
{
    fvm_bus_write(t->board.bus, FVM_BUS_MMIO, addr, size, value);
}

uint64_t board_mmio_read(struct test_board *t, uint64_t addr, unsigned size)
{
    return fvm_bus_read(t->board.bus, FVM_BUS_MMIO, addr, size);
}

void board_roundtrip(struct fvm_device *from, struct fvm_device *fresh)
{
    uint8_t *a = NULL, *b = NULL;
    size_t a_len = 0, b_len = 0;
    struct fvm_err err = {0};

    CU_ASSERT_EQUAL_FATAL(from->ops->save(from, &a, &a_len), 0);
    CU_ASSERT_EQUAL(fresh->ops->check(fresh, a, a_len, &err), 0);
    if (err.text[0])
        printf("%s\n", err.text);
    fresh->ops->restore(fresh, a, a_len);
    CU_ASSERT_EQUAL_FATAL(fresh->ops->save(fresh, &b, &b_len), 0);
    CU_ASSERT_EQUAL(a_len, b_len);
    CU_ASSERT_TRUE(a_len == b_len && !memcmp(a, b, a_len));
    free(a);
    free(b);
}

static uint64_t next_random(uint64_t *rng)
{
    *rng ^= *rng << 13;
    *rng ^= *rng >> 7;
    *rng ^= *rng << 17;
    return *rng;
}

static size_t mutate(uint8_t *bytes, size_t len, size_t room, uint64_t *rng)
{
    unsigned times = 1 + (unsigned)(next_random(rng) % 4);

    for (unsigned i = 0; i < times && len; i++) {
        size_t at = next_random(rng) % len;

        switch (next_random(rng) % 6) {
        case 0:
            bytes[at] = (uint8_t)next_random(rng);
            break;
        case 1:
            bytes[at] ^= (uint8_t)(1u << next_random(rng) % 8);
            break;
        case 2:
            bytes[at] = next_random(rng) & 1 ? 0xff : 0;
            break;
        case 3:
            len = at;
            break;
        case 4:
            if (len < room) {
                memmove(bytes + at + 1, bytes + at, len - at);
                len++;
            }
            break;
        default:
            memmove(bytes + at, bytes + at + 1, len - at - 1);
            len--;
            break;
        }
    }
    return len;
}

void board_hostile(struct test_board *t, struct fvm_device *from, struct fvm_device *victim, unsigned rounds,
                   void (*poke)(struct test_board *t, struct fvm_device *victim))
{
    uint8_t *good = NULL, *bad;
    size_t good_len = 0;
    uint64_t rng = 0x5eed5eed12345678ull;
    unsigned refused = 0;

    CU_ASSERT_EQUAL_FATAL(from->ops->save(from, &good, &good_len), 0);
    bad = malloc(good_len + 16);
    fvm_assert(bad != NULL);
    for (unsigned i = 0; i < rounds; i++) {
        struct fvm_err err = {0};
        size_t len;
        uint8_t *again = NULL;
        size_t again_len = 0;

        memcpy(bad, good, good_len);
        len = mutate(bad, good_len, good_len + 16, &rng);
        if (victim->ops->check(victim, bad, len, &err) != 0) {
            refused++;
            if (!err.text[0])
                CU_FAIL("refused without a reason");
            continue;
        }
        victim->ops->restore(victim, bad, len);
        if (poke)
            poke(t, victim);
        fvm_assert(victim->ops->save(victim, &again, &again_len) == 0);
        if (victim->ops->check(victim, again, again_len, &err) != 0) {
            printf("round %u: %s\n", i, err.text);
            CU_FAIL("what the chip saved does not pass its own check");
        }
        free(again);
    }
    CU_ASSERT(refused > 0);
    free(bad);
    free(good);
}

int board_main(const char *suite, const struct board_test *tests, unsigned count)
{
    CU_initialize_registry();
    CU_pSuite s = CU_add_suite(suite, NULL, NULL);

    for (unsigned i = 0; i < count; i++)
        CU_add_test(s, tests[i].name, tests[i].fn);
    CU_basic_set_mode(CU_BRM_VERBOSE);
    CU_basic_run_tests();
    unsigned bad = CU_get_number_of_failures();
    CU_cleanup_registry();
    return bad != 0;
}
