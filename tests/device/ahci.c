/* ahci: registers, commands by command list, NCQ, errors, packets, interrupts, saves, hostile guests. */
#include "vmm/devices/ahci.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "support_disk.h"

enum { DISK_BYTES = 4 << 20, CD_BYTES = 1 << 20, SLOT = 3 };
enum { CLB = 0x100000, FB = 0x110000, TABLE = 0x120000, DATA = 0x200000, PORT_STEP = 0x40000 };
enum { PX_IS = 0x10, PX_IE = 0x14, PX_CMD = 0x18, PX_TFD = 0x20, PX_SIG = 0x24, PX_SSTS = 0x28, PX_SCTL = 0x2c, PX_SERR = 0x30,
       PX_SACT = 0x34, PX_CI = 0x38 };
#define TFES 0x40000000u
#define HBFS 0x20000000u

struct rig {
    struct test_board t;
    struct fvm_device *bridge, *dev;
    struct fvm_disk *disk, *cd;
    char disk_path[64], cd_path[64];
    uint64_t abar;
};

static uint32_t rd(struct rig *r, unsigned at)
{
    return (uint32_t)board_mmio_read(&r->t, r->abar + at, 4);
}

static void wr(struct rig *r, unsigned at, uint32_t value)
{
    board_mmio_write(&r->t, r->abar + at, 4, value);
}

static unsigned px(unsigned port, unsigned reg)
{
    return 0x100 + port * 0x80 + reg;
}

static void chips(struct rig *r)
{
    struct fvm_ahci_drive drives[FVM_AHCI_PORTS] = {{r->disk, false, "SATA-1"}, {r->cd, true, NULL}};

    CU_ASSERT_EQUAL_FATAL(fvm_pci_host_create(&r->t.board, &r->bridge), 0);
    CU_ASSERT_EQUAL_FATAL(fvm_ahci_create(&r->t.board, fvm_pci_host_of(r->bridge), SLOT, drives, &r->dev), 0);
    fvm_pci_host_assign(fvm_pci_host_of(r->bridge));
    r->abar = board_pci_read(&r->t, SLOT << 3, 0x24, 4) & ~15u;
}

static void up(struct rig *r)
{
    memset(r, 0, sizeof(*r));
    board_up(&r->t, 1);
    r->disk = disk_make(&r->t, DISK_BYTES, false, r->disk_path);
    r->cd = disk_make(&r->t, CD_BYTES, true, r->cd_path);
    chips(r);
}

static void up_again(struct rig *r, const struct rig *from)
{
    memset(r, 0, sizeof(*r));
    board_up(&r->t, 1);
    r->disk = disk_again(&r->t, from->disk_path, false);
    r->cd = disk_again(&r->t, from->cd_path, true);
    chips(r);
}

static void down(struct rig *r)
{
    r->dev->ops->destroy(r->dev);
    r->bridge->ops->destroy(r->bridge);
    disk_forget(&r->disk, r->disk_path[0] ? r->disk_path : NULL);
    disk_forget(&r->cd, r->cd_path[0] ? r->cd_path : NULL);
    board_down(&r->t);
}

static void port_start(struct rig *r, unsigned port)
{
    uint32_t base = port * PORT_STEP;

    wr(r, px(port, 0), CLB + base);
    wr(r, px(port, 8), FB + base);
    wr(r, px(port, PX_SERR), 0xffffffff);
    wr(r, px(port, PX_IS), 0xffffffff);
    wr(r, px(port, PX_IE), 0xffffffff);
    wr(r, px(port, PX_CMD), 0x10);
    wr(r, px(port, PX_CMD), 0x11);
    CU_ASSERT_EQUAL(rd(r, px(port, PX_CMD)) & 0xc011, 0xc011);
    wr(r, 4, 2);
}

struct cmd {
    uint8_t command, device;
    uint64_t lba;
    uint16_t count, feature;
    uint32_t bytes;
    const uint8_t *cdb;
};

static void prepare(struct rig *r, unsigned port, unsigned tag, const struct cmd *c)
{
    struct fvm_ram *ram = r->t.board.ram;
    uint32_t base = port * PORT_STEP, table = TABLE + base + tag * 0x100;
    uint32_t header[8] = {5 | (c->cdb ? 0x20 : 0) | (c->bytes ? 2u : 0) << 16, 0, table};
    uint32_t data = DATA + base + tag * 0x2000, half = c->bytes / 2;
    uint32_t prd[8] = {data, 0, 0, half - 1, data + half, 0, 0, half - 1};
    uint8_t fis[20] = {0x27, 0x80, c->command, (uint8_t)c->feature, (uint8_t)c->lba, (uint8_t)(c->lba >> 8),
                       (uint8_t)(c->lba >> 16), (uint8_t)(c->device | 0xe0), (uint8_t)(c->lba >> 24), (uint8_t)(c->lba >> 32),
                       (uint8_t)(c->lba >> 40), (uint8_t)(c->feature >> 8), (uint8_t)c->count, (uint8_t)(c->count >> 8)};

    fvm_assert(fvm_ram_write(ram, CLB + base + tag * 32, header, sizeof(header)) == 0);
    fvm_assert(fvm_ram_write(ram, table, fis, sizeof(fis)) == 0);
    if (c->cdb)
        fvm_assert(fvm_ram_write(ram, table + 0x40, c->cdb, 12) == 0);
    fvm_assert(fvm_ram_write(ram, table + 0x80, prd, sizeof(prd)) == 0);
}

static void settle(struct rig *r, unsigned port)
{
    disk_settle(&r->t, port ? r->cd : r->disk);
}

static uint32_t run(struct rig *r, unsigned port, unsigned tag, const struct cmd *c)
{
    prepare(r, port, tag, c);
    wr(r, px(port, PX_CI), 1u << tag);
    settle(r, port);
    return rd(r, px(port, PX_TFD));
}

static const uint8_t *mem(struct rig *r, uint64_t gpa)
{
    return fvm_ram_map(r->t.board.ram, gpa, 4096);
}

static void test_registers(void)
{
    struct rig r;

    up(&r);
    CU_ASSERT_EQUAL(rd(&r, 0) & 0x1f, 5);
    CU_ASSERT_EQUAL(rd(&r, 0) >> 30, 3); /* 64 bits, NCQ */
    CU_ASSERT_EQUAL(rd(&r, 4), 0x80000000);
    CU_ASSERT_EQUAL(rd(&r, 0xc), 0x3f);
    CU_ASSERT_EQUAL(rd(&r, px(0, PX_SSTS)), 0x123);
    CU_ASSERT_EQUAL(rd(&r, px(0, PX_SIG)), 0x101);
    CU_ASSERT_EQUAL(rd(&r, px(1, PX_SIG)), 0xeb140101);
    CU_ASSERT_EQUAL(rd(&r, px(2, PX_SSTS)), 0);
    CU_ASSERT_EQUAL(rd(&r, px(2, PX_TFD)) & 0xff, 0x7f);
    CU_ASSERT_EQUAL(rd(&r, px(6, PX_SSTS)), 0);
    wr(&r, px(0, 0), 0x123456ff);
    CU_ASSERT_EQUAL(rd(&r, px(0, 0)), 0x12345400);
    wr(&r, px(0, PX_CI), 1); /* not started: nothing */
    CU_ASSERT_EQUAL(rd(&r, px(0, PX_CI)), 0);
    /* COMRESET */
    wr(&r, px(0, PX_SCTL), 0x301);
    CU_ASSERT_EQUAL(rd(&r, px(0, PX_SSTS)), 0);
    wr(&r, px(0, PX_SCTL), 0x300);
    CU_ASSERT_EQUAL(rd(&r, px(0, PX_SSTS)), 0x123);
    CU_ASSERT_EQUAL(rd(&r, px(0, PX_SERR)), 0x04000000);
    CU_ASSERT_EQUAL(rd(&r, px(0, PX_IS)), 0x40);
    wr(&r, px(0, PX_SERR), 0x04000000);
    CU_ASSERT_EQUAL(rd(&r, px(0, PX_IS)), 0);
    wr(&r, 4, 1);
    CU_ASSERT_EQUAL(rd(&r, 4), 0x80000000);
    CU_ASSERT_EQUAL(rd(&r, px(0, 0)), 0x12345400);
    down(&r);
}

static void test_disk(void)
{
    static const struct cmd identify = {.command = 0xec, .bytes = 512};
    struct rig r;
    unsigned line = fvm_pci_irq(SLOT, 1);

    up(&r);
    port_start(&r, 0);
    CU_ASSERT_EQUAL(run(&r, 0, 0, &identify) & 0xff, 0x50);
    CU_ASSERT_TRUE(r.t.level[line]);
    CU_ASSERT_EQUAL(rd(&r, px(0, PX_IS)), 2); /* PIO setup */
    CU_ASSERT_EQUAL(mem(&r, FB + 0x20)[0], 0x5f);
    CU_ASSERT_EQUAL(mem(&r, FB + 0x20)[15], 0x50);
    CU_ASSERT(!memcmp(mem(&r, DATA) + 20, "ASAT1-", 4) && !memcmp(mem(&r, DATA) + 24, "1-", 2)); /* SATA-1, swapped */
    CU_ASSERT_EQUAL(rd(&r, 8), 1);
    wr(&r, px(0, PX_IS), 2);
    CU_ASSERT_TRUE(r.t.level[line]); /* IS latches */
    wr(&r, 8, 1);
    CU_ASSERT_FALSE(r.t.level[line]);
    CU_ASSERT_EQUAL(run(&r, 0, 5, &(struct cmd){.command = 0x25, .lba = 77, .count = 8, .bytes = 4096}) & 0xff, 0x50);
    CU_ASSERT_EQUAL(rd(&r, px(0, PX_CI)), 0);
    CU_ASSERT_EQUAL(rd(&r, px(0, PX_IS)), 1); /* D2H */
    CU_ASSERT_TRUE(disk_same(mem(&r, DATA + 5 * 0x2000), 77 * 512, 4096));
    CU_ASSERT_EQUAL(*(const uint32_t *)(mem(&r, CLB + 5 * 32) + 4), 4096); /* PRDBC */
    prepare(&r, 0, 5, &(struct cmd){.command = 0x35, .lba = 1000, .count = 8, .bytes = 4096});
    wr(&r, px(0, PX_CI), 1 << 5);
    CU_ASSERT_EQUAL(rd(&r, px(0, PX_CI)), 1 << 5);
    CU_ASSERT_TRUE(rd(&r, px(0, PX_TFD)) & 0x80);
    settle(&r, 0);
    CU_ASSERT_EQUAL(rd(&r, px(0, PX_CI)), 0);
    CU_ASSERT_EQUAL(run(&r, 0, 1, &(struct cmd){.command = 0xea}) & 0xff, 0x50);
    run(&r, 0, 0, &(struct cmd){.command = 0x25, .lba = 1001, .count = 1, .bytes = 512});
    CU_ASSERT_TRUE(disk_same(mem(&r, DATA), 78 * 512, 512));
    down(&r);
}

static void test_queue(void)
{
    struct rig r;

    up(&r);
    port_start(&r, 0);
    for (unsigned tag = 0; tag < 8; tag++)
        prepare(&r, 0, tag,
                &(struct cmd){.command = 0x60, .lba = 100 * tag, .feature = 8, .count = (uint16_t)(tag << 3), .bytes = 4096});
    prepare(&r, 0, 9, &(struct cmd){.command = 0xea}); /* waits for the queue */
    wr(&r, px(0, PX_SACT), 0xff);
    wr(&r, px(0, PX_CI), 0x2ff);
    CU_ASSERT_EQUAL(rd(&r, px(0, PX_CI)), 0x200); /* accepted */
    CU_ASSERT_EQUAL(rd(&r, px(0, PX_SACT)), 0xff);
    settle(&r, 0);
    settle(&r, 0);
    CU_ASSERT_EQUAL(rd(&r, px(0, PX_CI)), 0);
    CU_ASSERT_EQUAL(rd(&r, px(0, PX_SACT)), 0);
    CU_ASSERT_EQUAL(rd(&r, px(0, PX_IS)), 9); /* set device bits, and the flush's D2H */
    for (unsigned tag = 0; tag < 8; tag++)
        CU_ASSERT_TRUE(disk_same(mem(&r, DATA + tag * 0x2000), 100 * 512 * tag, 4096));
    /* out of range: the queue stops, the log says which */
    prepare(&r, 0, 3, &(struct cmd){.command = 0x61, .lba = DISK_BYTES / 512, .feature = 8, .count = 3 << 3, .bytes = 4096});
    wr(&r, px(0, PX_SACT), 8);
    wr(&r, px(0, PX_CI), 8);
    settle(&r, 0);
    CU_ASSERT_EQUAL(rd(&r, px(0, PX_TFD)) & 0xff, 0x51);
    CU_ASSERT_TRUE(rd(&r, px(0, PX_IS)) & TFES);
    CU_ASSERT_EQUAL(rd(&r, px(0, PX_SACT)), 8);
    prepare(&r, 0, 0, &(struct cmd){.command = 0x25, .count = 1, .bytes = 512});
    wr(&r, px(0, PX_CI), 1);
    settle(&r, 0);
    CU_ASSERT_EQUAL(rd(&r, px(0, PX_CI)) & 1, 1); /* halted */
    wr(&r, px(0, PX_CMD), 0x10);
    CU_ASSERT_EQUAL(rd(&r, px(0, PX_SACT)) | rd(&r, px(0, PX_CI)), 0);
    wr(&r, px(0, PX_CMD), 0x11);
    CU_ASSERT_EQUAL(run(&r, 0, 0, &(struct cmd){.command = 0x2f, .lba = 0x10, .count = 1, .bytes = 512}) & 0xff, 0x50);
    CU_ASSERT_EQUAL(mem(&r, DATA)[0], 3);
    down(&r);
}

static void test_cdrom(void)
{
    static const uint8_t read10[12] = {0x28, 0, 0, 0, 0, 20, 0, 0, 2}, beyond[12] = {0x28, 0, 1, 0, 0, 0, 0, 0, 1},
                         sense[12] = {3, 0, 0, 0, 18};
    struct rig r;

    up(&r);
    port_start(&r, 1);
    CU_ASSERT_EQUAL(run(&r, 1, 0, &(struct cmd){.command = 0xa0, .feature = 1, .bytes = 4096, .cdb = read10}) & 0xff, 0x50);
    CU_ASSERT_TRUE(disk_same(mem(&r, DATA + PORT_STEP), 20 * 2048, 4096));
    CU_ASSERT_EQUAL(run(&r, 1, 2, &(struct cmd){.command = 0xa0, .bytes = 4096, .cdb = beyond}), 0x5451);
    CU_ASSERT_TRUE(rd(&r, px(1, PX_IS)) & TFES);
    wr(&r, px(1, PX_CMD), 0x10);
    wr(&r, px(1, PX_CMD), 0x11);
    run(&r, 1, 0, &(struct cmd){.command = 0xa0, .bytes = 20, .cdb = sense});
    CU_ASSERT_EQUAL(mem(&r, DATA + PORT_STEP)[12], 0x21);
    CU_ASSERT_EQUAL(run(&r, 1, 0, &(struct cmd){.command = 0xec, .bytes = 512}), 0x0451);
    down(&r);
}

static void test_errors(void)
{
    struct rig r;
    uint32_t header[4] = {5 | 1 << 16, 0, 0x7ffff000, 5};

    up(&r);
    port_start(&r, 0);
    CU_ASSERT_EQUAL(run(&r, 0, 0, &(struct cmd){.command = 0x25, .lba = DISK_BYTES / 512, .count = 1, .bytes = 512}), 0x1051);
    CU_ASSERT_EQUAL(rd(&r, px(0, PX_CI)), 1);
    wr(&r, px(0, PX_CMD), 0x10);
    wr(&r, px(0, PX_CMD), 0x11);
    /* a table shorter than the data */
    CU_ASSERT_EQUAL(run(&r, 0, 1, &(struct cmd){.command = 0x25, .count = 8, .bytes = 512}) & 0xff, 0x51);
    wr(&r, px(0, PX_CMD), 0x10);
    wr(&r, px(0, PX_CMD), 0x11);
    wr(&r, px(0, PX_IS), 0xffffffff);
    /* a command table that is not RAM */
    fvm_assert(fvm_ram_write(r.t.board.ram, CLB, header, sizeof(header)) == 0);
    wr(&r, px(0, PX_CI), 1);
    CU_ASSERT_EQUAL(rd(&r, px(0, PX_IS)), HBFS);
    /* software reset by two control FISes */
    wr(&r, px(0, PX_CMD), 0x10);
    wr(&r, px(0, PX_CMD), 0x11);
    for (unsigned i = 0; i < 2; i++) {
        uint8_t fis[20] = {0x27, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, i ? 0 : 4};

        prepare(&r, 0, 0, &(struct cmd){.command = 0});
        fvm_assert(fvm_ram_write(r.t.board.ram, TABLE, fis, sizeof(fis)) == 0);
        wr(&r, px(0, PX_CI), 1);
        CU_ASSERT_EQUAL(rd(&r, px(0, PX_CI)), 0);
        CU_ASSERT_EQUAL(rd(&r, px(0, PX_TFD)) & 0x80, i ? 0 : 0x80);
    }
    CU_ASSERT_EQUAL(rd(&r, px(0, PX_TFD)), 0x150);
    CU_ASSERT_EQUAL(mem(&r, FB + 0x40)[0], 0x34);
    down(&r);
}

static void test_msi(void)
{
    struct rig r;

    up(&r);
    board_pci_write(&r.t, SLOT << 3, 0x44, 4, 0xfee00000);
    board_pci_write(&r.t, SLOT << 3, 0x4c, 2, 0x51);
    board_pci_write(&r.t, SLOT << 3, 0x42, 2, 1);
    port_start(&r, 0);
    port_start(&r, 1);
    run(&r, 0, 0, &(struct cmd){.command = 0xec, .bytes = 512});
    CU_ASSERT_EQUAL(r.t.msi_count, 1);
    CU_ASSERT_EQUAL(r.t.msi_data, 0x51);
    run(&r, 1, 0, &(struct cmd){.command = 0xa1, .bytes = 512}); /* while the first one waits */
    wr(&r, px(0, PX_IS), 0xffffffff);
    wr(&r, 8, 1);
    CU_ASSERT(r.t.msi_count >= 2); /* told again: port 1 is left */
    wr(&r, px(1, PX_IS), 0xffffffff);
    wr(&r, 8, 2);
    unsigned now = r.t.msi_count;
    run(&r, 0, 0, &(struct cmd){.command = 0xec, .bytes = 512});
    CU_ASSERT_EQUAL(r.t.msi_count, now + 1);
    down(&r);
}

static void test_state(void)
{
    struct rig r, copy;

    up(&r);
    up_again(&copy, &r);
    board_roundtrip(r.dev, copy.dev);
    port_start(&r, 0);
    port_start(&r, 1);
    /* one command runs, two wait for it: quiesce lets it end, the others move on as bits of PxCI */
    for (unsigned tag = 0; tag < 3; tag++) {
        struct cmd c = {.command = 0x25, .lba = 10 + tag, .count = 8, .bytes = 4096};

        prepare(&r, 0, tag, &c);
        prepare(&copy, 0, tag, &c); /* RAM moves too */
    }
    wr(&r, px(0, PX_CI), 7);
    r.dev->ops->quiesce(r.dev);
    CU_ASSERT_EQUAL(rd(&r, px(0, PX_CI)), 6);
    CU_ASSERT_TRUE(disk_same(mem(&r, DATA), 10 * 512, 4096));
    board_roundtrip(r.dev, copy.dev);
    settle(&copy, 0);
    CU_ASSERT_EQUAL(rd(&copy, px(0, PX_CI)), 6); /* not before resume */
    copy.dev->ops->resume(copy.dev);
    while (rd(&copy, px(0, PX_CI)))
        settle(&copy, 0);
    CU_ASSERT_TRUE(disk_same(mem(&copy, DATA + 0x4000), 12 * 512, 4096));
    copy.disk_path[0] = copy.cd_path[0] = 0;
    down(&copy);
    down(&r);
}

static uint64_t rng = 88172645463325252ull;
static uint64_t rnd(void)
{
    rng ^= rng << 13;
    rng ^= rng >> 7;
    rng ^= rng << 17;
    return rng;
}

static uint64_t victim_abar;

static void one_access(struct test_board *t)
{
    static const uint8_t commands[] = {0x20, 0x25, 0x35, 0x60, 0x61, 0xa0, 0xa1, 0xec, 0xea, 0xef, 0x2f, 0xc4, 0xca, 0x42};
    unsigned port = (unsigned)(rnd() % 3), tag = (unsigned)(rnd() % 32);
    uint32_t base = port * PORT_STEP, table = TABLE + base + tag * 0x100;

    if (rnd() % 2) { /* a command that may make sense */
        uint8_t fis[0x90];
        uint32_t header[4] = {5 | (uint32_t)(rnd() & 7) << 16, 0, rnd() % 32 ? table : (uint32_t)rnd(), rnd() % 64 ? 0 : 1};

        for (unsigned i = 0; i < sizeof(fis); i++)
            fis[i] = (uint8_t)(rnd() % 4 ? 0 : rnd());
        fis[0] = 0x27;
        fis[1] = rnd() % 8 ? 0x80 : 0;
        fis[2] = commands[rnd() % sizeof(commands)];
        fis[9] = fis[10] = 0;
        fis[12] = (uint8_t)(rnd() % 3 ? tag << 3 : rnd() % 16);
        fis[0x82] = (uint8_t)(DATA >> 16);
        fis[0x83] = 0;
        (void)fvm_ram_write(t->board.ram, CLB + base + tag * 32, header, sizeof(header));
        (void)fvm_ram_write(t->board.ram, table, fis, sizeof(fis));
        board_mmio_write(t, victim_abar + px(port, rnd() % 2 ? PX_SACT : PX_CI), 4, 1u << tag);
        board_mmio_write(t, victim_abar + px(port, PX_CI), 4, 1u << tag);
        return;
    }
    switch (rnd() % 8) {
    case 0: board_mmio_write(t, victim_abar + (rnd() % 0x300 & ~3u), 4, rnd()); break;
    case 1: board_mmio_read(t, victim_abar + rnd() % 0x300, 1u << rnd() % 3); break;
    case 2: board_mmio_write(t, victim_abar + px(port, PX_CMD), 4, 0x10 | (rnd() & 1)); break;
    case 3: board_mmio_write(t, victim_abar + px(port, PX_SCTL), 4, rnd() % 2); break;
    default:
        board_mmio_write(t, victim_abar + px(port, 0), 8, CLB + base);
        board_mmio_write(t, victim_abar + px(port, 8), 8, FB + base);
        board_mmio_write(t, victim_abar + px(port, PX_CMD), 4, 0x11);
    }
}

static void poke(struct test_board *t, struct fvm_device *victim)
{
    victim->ops->resume(victim);
    for (unsigned i = 0; i < 20; i++)
        one_access(t);
    victim->ops->quiesce(victim);
}

static void test_hostile(void)
{
    struct rig r, victim;

    up(&r);
    up_again(&victim, &r);
    port_start(&r, 0);
    port_start(&r, 1);
    r.dev->ops->quiesce(r.dev);
    prepare(&r, 0, 0, &(struct cmd){.command = 0x25, .count = 1, .bytes = 512});
    wr(&r, px(0, PX_CI), 0xf);
    victim_abar = r.abar;
    board_hostile(&victim.t, r.dev, victim.dev, 3000, poke);
    r.dev->ops->resume(r.dev);
    for (unsigned i = 0; i < 20000; i++) {
        one_access(&r.t);
        if (i % 500 == 0) {
            r.dev->ops->quiesce(r.dev);
            board_roundtrip(r.dev, victim.dev);
            r.dev->ops->resume(r.dev);
        }
    }
    settle(&r, 0);
    settle(&r, 1);
    r.dev->ops->reset(r.dev);
    fvm_pci_host_assign(fvm_pci_host_of(r.bridge));
    port_start(&r, 0);
    CU_ASSERT_EQUAL(run(&r, 0, 0, &(struct cmd){.command = 0xec, .bytes = 512}) & 0xff, 0x50);
    victim.disk_path[0] = victim.cd_path[0] = 0;
    down(&victim);
    down(&r);
}

int main(void)
{
    static const struct board_test tests[] = {
        {"registers", test_registers}, {"disk", test_disk}, {"queue", test_queue}, {"CD-ROM", test_cdrom},
        {"errors", test_errors},       {"MSI", test_msi},   {"state", test_state}, {"hostile", test_hostile},
    };

    return board_main("device/ahci", tests, FVM_ARRAY_SIZE(tests));
}
