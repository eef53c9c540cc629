/* piix_ide, piix3, ata, atapi: PIO, DMA and packet commands as drivers give them, errors, saves in the middle, hostile guests. */
#include "vmm/devices/piix_ide.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "support_disk.h"
#include "vmm/devices/acpi_pm.h"
#include "vmm/devices/piix3.h"

enum { DISK_BYTES = 4 << 20, CD_BYTES = 1 << 20, BM = 0xc000, TABLE = 0x100000, DATA = 0x200000 };
enum { BSY = 0x80, DRDY = 0x40, DRQ = 8, ERR = 1 };

struct rig {
    struct test_board t;
    struct fvm_device *bridge, *pm, *south, *dev;
    struct fvm_disk *disk, *cd;
    char disk_path[64], cd_path[64];
};

static void chips(struct rig *r)
{
    struct fvm_ide_drive drives[FVM_IDE_DRIVES] = {{r->disk, false, "SERIAL-1"}, {0}, {r->cd, true, NULL}, {0}};

    CU_ASSERT_EQUAL_FATAL(fvm_pci_host_create(&r->t.board, &r->bridge), 0);
    CU_ASSERT_EQUAL_FATAL(fvm_acpi_pm_create(&r->t.board, 9, fvm_pci_host_of(r->bridge), &r->pm), 0);
    CU_ASSERT_EQUAL_FATAL(fvm_piix3_create(&r->t.board, fvm_pci_host_of(r->bridge), 1, r->pm, &r->south), 0);
    CU_ASSERT_EQUAL_FATAL(fvm_piix_ide_create(&r->t.board, fvm_pci_host_of(r->bridge), 1, drives, &r->dev), 0);
    fvm_pci_host_assign(fvm_pci_host_of(r->bridge));
    CU_ASSERT_EQUAL(board_pci_read(&r->t, 9, 0x20, 4), BM | 1);
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
    r->south->ops->destroy(r->south);
    r->pm->ops->destroy(r->pm);
    r->bridge->ops->destroy(r->bridge);
    disk_forget(&r->disk, r->disk_path[0] ? r->disk_path : NULL);
    disk_forget(&r->cd, r->cd_path[0] ? r->cd_path : NULL);
    board_down(&r->t);
}

static unsigned status(struct rig *r, unsigned base)
{
    disk_settle(&r->t, base == 0x1f0 ? r->disk : r->cd);
    return (unsigned)board_in(&r->t, base + 7, 1);
}

static void command(struct rig *r, unsigned base, uint8_t device, uint32_t lba, uint8_t count, uint8_t what)
{
    board_out(&r->t, base + 6, 1, device | (lba >> 24 & 15));
    board_out(&r->t, base + 2, 1, count);
    board_out(&r->t, base + 3, 1, lba & 0xff);
    board_out(&r->t, base + 4, 1, lba >> 8 & 0xff);
    board_out(&r->t, base + 5, 1, lba >> 16 & 0xff);
    board_out(&r->t, base + 7, 1, what);
}

static void read_words(struct rig *r, unsigned base, uint8_t *buf, unsigned bytes)
{
    for (unsigned i = 0; i < bytes; i += 2) {
        uint64_t w = board_in(&r->t, base, 2);

        buf[i] = (uint8_t)w;
        buf[i + 1] = (uint8_t)(w >> 8);
    }
}

static void write_words(struct rig *r, unsigned base, const uint8_t *buf, unsigned bytes)
{
    for (unsigned i = 0; i < bytes; i += 4)
        board_out(&r->t, base, 4, buf[i] | buf[i + 1] << 8 | buf[i + 2] << 16 | (uint32_t)buf[i + 3] << 24);
}

static void test_identify(void)
{
    struct rig r;
    uint8_t id[512], sum = 0;

    up(&r);
    CU_ASSERT_EQUAL(board_pci_read(&r.t, 8, 0, 4), 0x70008086);
    CU_ASSERT_EQUAL(board_pci_read(&r.t, 9, 0, 4), 0x70108086);
    CU_ASSERT_EQUAL(board_pci_read(&r.t, 11, 0, 4), 0x71138086);
    CU_ASSERT_EQUAL(board_pci_read(&r.t, 11, 0x40, 4), 0x601);
    CU_ASSERT_EQUAL(board_pci_read(&r.t, 9, 0x41, 1), 0x80);
    CU_ASSERT_EQUAL(status(&r, 0x1f0), DRDY | 0x10);
    command(&r, 0x1f0, 0xa0, 0, 0, 0xec);
    CU_ASSERT_TRUE(r.t.level[14]);
    CU_ASSERT_EQUAL(board_in(&r.t, 0x3f6, 1), DRDY | DRQ | 0x10);
    CU_ASSERT_TRUE(r.t.level[14]); /* the alternate status leaves it alone */
    CU_ASSERT_EQUAL(status(&r, 0x1f0), DRDY | DRQ | 0x10);
    CU_ASSERT_FALSE(r.t.level[14]);
    read_words(&r, 0x1f0, id, 512);
    CU_ASSERT_EQUAL(status(&r, 0x1f0), DRDY | 0x10);
    for (unsigned i = 0; i < 512; i++)
        sum = (uint8_t)(sum + id[i]);
    CU_ASSERT_EQUAL(sum, 0);
    CU_ASSERT(!memcmp(id + 20, "ESIRLA1-", 8));
    CU_ASSERT_EQUAL(id[120] | id[121] << 8 | id[122] << 16, DISK_BYTES / 512);
    /* the slave is not there */
    board_out(&r.t, 0x1f6, 1, 0xb0);
    CU_ASSERT_EQUAL(status(&r, 0x1f0), 0);
    board_out(&r.t, 0x1f7, 1, 0xec);
    CU_ASSERT_EQUAL(status(&r, 0x1f0), 0);
    /* a CD-ROM refuses IDENTIFY DEVICE and shows what it is */
    command(&r, 0x170, 0xa0, 0, 0, 0xec);
    CU_ASSERT_TRUE(status(&r, 0x170) & ERR);
    CU_ASSERT_EQUAL(board_in(&r.t, 0x174, 1), 0x14);
    CU_ASSERT_EQUAL(board_in(&r.t, 0x175, 1), 0xeb);
    command(&r, 0x170, 0xa0, 0, 0, 0xa1);
    CU_ASSERT_TRUE(r.t.level[15]);
    read_words(&r, 0x170, id, 512);
    CU_ASSERT_EQUAL(id[1], 0x85);
    down(&r);
}

static void test_pio(void)
{
    struct rig r;
    uint8_t buf[4096], other[4096];

    up(&r);
    command(&r, 0x1f0, 0xe0, 100, 2, 0x20);
    for (unsigned i = 0; i < 2; i++) {
        CU_ASSERT_EQUAL(status(&r, 0x1f0), DRDY | DRQ | 0x10);
        read_words(&r, 0x1f0, buf + 512 * i, 512);
    }
    CU_ASSERT_EQUAL(status(&r, 0x1f0), DRDY | 0x10);
    CU_ASSERT_TRUE(disk_same(buf, 100 * 512, 1024));
    for (unsigned i = 0; i < 4096; i++)
        buf[i] = (uint8_t)(i * 13 + 5);
    command(&r, 0x1f0, 0xe0, 8, 4, 0xc6); /* SET MULTIPLE */
    CU_ASSERT_EQUAL(status(&r, 0x1f0), DRDY | 0x10);
    command(&r, 0x1f0, 0xe0, 200, 8, 0xc5);
    CU_ASSERT_FALSE(r.t.level[14]); /* the first block has no interrupt */
    CU_ASSERT_TRUE(status(&r, 0x1f0) & DRQ);
    write_words(&r, 0x1f0, buf, 2048);
    CU_ASSERT_TRUE(status(&r, 0x1f0) & DRQ);
    write_words(&r, 0x1f0, buf + 2048, 2048);
    CU_ASSERT_EQUAL(status(&r, 0x1f0), DRDY | 0x10);
    command(&r, 0x1f0, 0xe0, 0, 0, 0xe7); /* FLUSH */
    CU_ASSERT_EQUAL(board_in(&r.t, 0x3f6, 1), BSY);
    CU_ASSERT_EQUAL(status(&r, 0x1f0), DRDY | 0x10);
    command(&r, 0x1f0, 0xe0, 200, 8, 0xc4);
    for (unsigned i = 0; i < 2; i++) {
        CU_ASSERT_TRUE(status(&r, 0x1f0) & DRQ);
        read_words(&r, 0x1f0, other + 2048 * i, 2048);
    }
    CU_ASSERT(!memcmp(buf, other, 4096));
    command(&r, 0x1f0, 0xa0, 0x000101, 1, 0x20); /* CHS 1/0/1 */
    CU_ASSERT_TRUE(status(&r, 0x1f0) & DRQ);
    read_words(&r, 0x1f0, buf, 512);
    CU_ASSERT_TRUE(disk_same(buf, 16 * 63 * 512, 512));
    command(&r, 0x1f0, 0xe0, DISK_BYTES / 512 - 1, 2, 0x20);
    CU_ASSERT_EQUAL(status(&r, 0x1f0), DRDY | 0x10 | ERR);
    CU_ASSERT_EQUAL(board_in(&r.t, 0x1f1, 1), 0x10); /* IDNF */
    command(&r, 0x1f0, 0xe0, 0, 0, 0xb0);
    CU_ASSERT_EQUAL(board_in(&r.t, 0x1f1, 1), 4); /* ABRT */
    down(&r);
}

static void prd(struct rig *r, unsigned n, uint32_t addr, uint32_t len, bool end)
{
    uint32_t e[2] = {addr, (len & 0xffff) | (end ? 0x80000000u : 0)};

    fvm_assert(fvm_ram_write(r->t.board.ram, TABLE + 8 * n, e, 8) == 0);
}

static void dma_go(struct rig *r, unsigned bm, bool to_memory)
{
    board_out(&r->t, bm + 4, 4, TABLE);
    board_out(&r->t, bm + 2, 1, 6);
    board_out(&r->t, bm, 1, to_memory ? 9 : 1);
}

static void test_dma(void)
{
    struct rig r;
    uint8_t buf[5000];

    up(&r);
    prd(&r, 0, DATA, 512, false);
    prd(&r, 1, DATA + 0x10000, 3584, true);
    command(&r, 0x1f0, 0xe0, 50, 8, 0xc8);
    CU_ASSERT_FALSE(r.t.level[14]);
    dma_go(&r, BM, true);
    disk_settle(&r.t, r.disk);
    CU_ASSERT_TRUE(r.t.level[14]);
    CU_ASSERT_EQUAL(board_in(&r.t, BM + 2, 1) & 7, 4);
    CU_ASSERT_EQUAL(status(&r, 0x1f0), DRDY | 0x10);
    board_out(&r.t, BM, 1, 0);
    fvm_ram_read(r.t.board.ram, DATA, buf, 512);
    fvm_ram_read(r.t.board.ram, DATA + 0x10000, buf + 512, 3584);
    CU_ASSERT_TRUE(disk_same(buf, 50 * 512, 4096));
    CU_ASSERT_EQUAL(r.t.board.ram->version[DATA >> 12], r.t.board.ram->epoch);
    /* and out, with the engine started before the command, 48 bits */
    prd(&r, 0, DATA + 0x10000, 3584, true);
    dma_go(&r, BM, false);
    for (unsigned reg = 2; reg <= 5; reg++)
        board_out(&r.t, 0x1f0 + reg, 1, 0); /* the high bytes */
    command(&r, 0x1f0, 0xe0, 1000, 7, 0x35);
    CU_ASSERT_EQUAL(status(&r, 0x1f0), DRDY | 0x10);
    CU_ASSERT_EQUAL(board_in(&r.t, BM + 2, 1) & 7, 4);
    command(&r, 0x1f0, 0xe0, 1000, 1, 0x20);
    CU_ASSERT_TRUE(status(&r, 0x1f0) & DRQ);
    read_words(&r, 0x1f0, buf, 512);
    CU_ASSERT_TRUE(disk_same(buf, 51 * 512, 512));
    board_out(&r.t, BM, 1, 0);
    /* a table that is too short, and one that points outside RAM */
    for (unsigned i = 0; i < 2; i++) {
        prd(&r, 0, i ? 0x7fff0000 : DATA, i ? 4096 : 512, true);
        command(&r, 0x1f0, 0xe0, 0, 8, 0xc8);
        dma_go(&r, BM, true);
        CU_ASSERT_EQUAL(status(&r, 0x1f0), DRDY | 0x10 | ERR);
        CU_ASSERT_EQUAL(board_in(&r.t, BM + 2, 1) & 3, 2);
        board_out(&r.t, BM, 1, 0);
    }
    down(&r);
}

static void packet(struct rig *r, bool dma, unsigned limit, const uint8_t cdb[12])
{
    board_out(&r->t, 0x176, 1, 0xa0);
    board_out(&r->t, 0x171, 1, dma);
    board_out(&r->t, 0x174, 1, limit & 0xff);
    board_out(&r->t, 0x175, 1, limit >> 8);
    board_out(&r->t, 0x177, 1, 0xa0);
    CU_ASSERT_EQUAL(board_in(&r->t, 0x172, 1), 1);
    CU_ASSERT_TRUE(board_in(&r->t, 0x177, 1) & DRQ);
    write_words(r, 0x170, cdb, 12);
}

static void test_cdrom(void)
{
    static const uint8_t capacity[12] = {0x25}, read3[12] = {0x28, 0, 0, 0, 0, 10, 0, 0, 3}, beyond[12] = {0x28, 0, 0, 1, 0, 0, 0, 0, 1},
                         sense[12] = {3, 0, 0, 0, 18}, toc[12] = {0x43, 2, 0, 0, 0, 0, 0, 0, 100}, eject[12] = {0x1b, 0, 0, 0, 2},
                         ready[12] = {0}, load[12] = {0x1b, 0, 0, 0, 3}, lock[12] = {0x1e, 0, 0, 0, 1}, odd[12] = {0xfe};
    struct rig r;
    uint8_t buf[8192];
    unsigned n;

    up(&r);
    packet(&r, false, 8, capacity);
    CU_ASSERT_TRUE(r.t.level[15]);
    CU_ASSERT_EQUAL(status(&r, 0x170) & (DRQ | ERR), DRQ);
    CU_ASSERT_EQUAL(board_in(&r.t, 0x172, 1), 2);
    read_words(&r, 0x170, buf, 8);
    CU_ASSERT(buf[2] == 1 && buf[3] == 0xff && buf[6] == 8);
    CU_ASSERT_EQUAL(status(&r, 0x170), DRDY | 0x10);
    CU_ASSERT_EQUAL(board_in(&r.t, 0x172, 1), 3);
    packet(&r, false, 1500, read3); /* in requests of 1500 bytes */
    for (n = 0; status(&r, 0x170) & DRQ;) {
        unsigned len = (unsigned)(board_in(&r.t, 0x174, 1) | board_in(&r.t, 0x175, 1) << 8);

        CU_ASSERT_FATAL(len <= 1500 && len > 0 && n + len <= sizeof(buf));
        read_words(&r, 0x170, buf + n, len);
        n += len;
    }
    CU_ASSERT_EQUAL(n, 6144);
    CU_ASSERT_TRUE(disk_same(buf, 10 * 2048, 6144));
    prd(&r, 0, DATA, 6144, true);
    packet(&r, true, 0, read3);
    dma_go(&r, BM + 8, true);
    CU_ASSERT_EQUAL(status(&r, 0x170), DRDY | 0x10);
    fvm_ram_read(r.t.board.ram, DATA, buf, 6144);
    CU_ASSERT_TRUE(disk_same(buf, 10 * 2048, 6144));
    packet(&r, false, 0xfffe, beyond);
    CU_ASSERT_TRUE(status(&r, 0x170) & ERR);
    packet(&r, false, 0xfffe, sense);
    read_words(&r, 0x170, buf, 18);
    CU_ASSERT(buf[2] == 5 && buf[12] == 0x21);
    packet(&r, false, 0xfffe, toc);
    read_words(&r, 0x170, buf, 20);
    CU_ASSERT(buf[1] == 18 && buf[3] == 1 && buf[14] == 0xaa && buf[18] == 8 && buf[19] == 62);
    packet(&r, false, 0xfffe, lock);
    packet(&r, false, 0xfffe, eject);
    CU_ASSERT_TRUE(status(&r, 0x170) & ERR);
    packet(&r, false, 0xfffe, (const uint8_t[12]){0x1e});
    packet(&r, false, 0xfffe, eject);
    CU_ASSERT_EQUAL(status(&r, 0x170), DRDY | 0x10);
    packet(&r, false, 0xfffe, ready);
    CU_ASSERT_EQUAL(board_in(&r.t, 0x171, 1) >> 4, 2); /* not ready */
    packet(&r, false, 0xfffe, load);
    packet(&r, false, 0xfffe, ready);
    CU_ASSERT_EQUAL(status(&r, 0x170), DRDY | 0x10);
    packet(&r, false, 0xfffe, odd);
    CU_ASSERT_EQUAL(board_in(&r.t, 0x171, 1), 0x54);
    down(&r);
}

static void test_reset(void)
{
    struct rig r;

    up(&r);
    command(&r, 0x1f0, 0xe0, 0, 8, 0x20);
    board_out(&r.t, 0x3f6, 1, 4);
    CU_ASSERT_EQUAL(board_in(&r.t, 0x3f6, 1), BSY);
    board_out(&r.t, 0x3f6, 1, 0);
    CU_ASSERT_EQUAL(status(&r, 0x1f0), DRDY | 0x10);
    CU_ASSERT(board_in(&r.t, 0x1f1, 1) == 1 && board_in(&r.t, 0x1f2, 1) == 1 && board_in(&r.t, 0x1f3, 1) == 1);
    board_out(&r.t, 0x3f6, 1, 2); /* nIEN */
    command(&r, 0x1f0, 0xe0, 0, 0, 0xe7);
    disk_settle(&r.t, r.disk);
    CU_ASSERT_FALSE(r.t.level[14]);
    board_out(&r.t, 0x3f6, 1, 0);
    CU_ASSERT_TRUE(r.t.level[14]);
    r.dev->ops->reset(r.dev);
    CU_ASSERT_FALSE(r.t.level[14]);
    down(&r);
}

static void test_state(void)
{
    struct rig r, copy;
    uint8_t buf[4096];

    up(&r);
    up_again(&copy, &r);
    board_roundtrip(r.dev, copy.dev);
    board_roundtrip(r.south, copy.south);
    /* in the middle of a read of three sectors */
    command(&r, 0x1f0, 0xe0, 300, 3, 0x20);
    CU_ASSERT_TRUE(status(&r, 0x1f0) & DRQ);
    read_words(&r, 0x1f0, buf, 512);
    CU_ASSERT_TRUE(status(&r, 0x1f0) & DRQ);
    read_words(&r, 0x1f0, buf + 512, 100);
    r.dev->ops->quiesce(r.dev);
    board_roundtrip(r.dev, copy.dev);
    read_words(&copy, 0x1f0, buf + 612, 412);
    CU_ASSERT_TRUE(status(&copy, 0x1f0) & DRQ);
    read_words(&copy, 0x1f0, buf + 1024, 512);
    CU_ASSERT_EQUAL(status(&copy, 0x1f0), DRDY | 0x10);
    CU_ASSERT_TRUE(disk_same(buf, 300 * 512, 1536));
    board_out(&r.t, 0x3f6, 1, 4);
    board_out(&r.t, 0x1f7, 1, 0x20); /* ignored: the drives are held in reset */
    CU_ASSERT_EQUAL(board_in(&r.t, 0x3f6, 1), BSY);
    board_roundtrip(r.dev, copy.dev);
    board_out(&r.t, 0x3f6, 1, 0);
    /* between command and engine, between packet and its data, in the middle of a packet */
    command(&r, 0x1f0, 0xe0, 50, 8, 0xc8);
    board_roundtrip(r.dev, copy.dev);
    fvm_assert(fvm_ram_write(copy.t.board.ram, TABLE, (uint32_t[2]){DATA, 0x80001000u}, 8) == 0);
    dma_go(&copy, BM, true);
    CU_ASSERT_EQUAL(status(&copy, 0x1f0), DRDY | 0x10);
    fvm_ram_read(copy.t.board.ram, DATA, buf, 4096);
    CU_ASSERT_TRUE(disk_same(buf, 50 * 512, 4096));
    packet(&r, false, 1000, (const uint8_t[12]){0x28, 0, 0, 0, 0, 10, 0, 0, 1});
    CU_ASSERT_TRUE(status(&r, 0x170) & DRQ);
    read_words(&r, 0x170, buf, 1000);
    board_roundtrip(r.dev, copy.dev);
    read_words(&copy, 0x170, buf + 1000, 1000);
    read_words(&copy, 0x170, buf + 2000, 48);
    CU_ASSERT_EQUAL(status(&copy, 0x170), DRDY | 0x10);
    CU_ASSERT_TRUE(disk_same(buf, 10 * 2048, 2048));
    board_out(&r.t, 0x177, 1, 0xa0);
    board_out(&r.t, 0x170, 2, 0x1234);
    board_roundtrip(r.dev, copy.dev);
    board_pci_write(&r.t, 8, 0x60, 4, 0x80050b0a);
    r.south->ops->quiesce ? r.south->ops->quiesce(r.south) : (void)0;
    board_roundtrip(r.south, copy.south);
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

static void one_access(struct test_board *t)
{
    static const uint16_t base[] = {0x1f0, 0x1f0, 0x170, 0x170, 0xc000, 0x3f6, 0x376, 0xc008};
    static const uint8_t commands[] = {0x20, 0x24, 0x25, 0x30, 0x34, 0x35, 0xa0, 0xa1, 0xc4, 0xc5, 0xc6, 0xc8, 0xca, 0xe7,
                                       0xec, 0xef, 0x90, 0x91, 0x08, 0x2f, 0x42, 0x60};
    uint16_t at = base[rnd() % 8];
    unsigned size = 1u << rnd() % 3, reg = (unsigned)(rnd() % 8);

    if (at == 0x3f6 || at == 0x376)
        reg = 0, size = 1;
    if (rnd() % 2)
        reg = 0; /* data */
    if (rnd() % 5 == 0)
        board_in(t, at + reg, size);
    else if (reg == 7 && rnd() % 4)
        board_out(t, at + 7, 1, commands[rnd() % sizeof(commands)]);
    else
        board_out(t, at + reg, size, rnd() % 3 ? rnd() % 8 : rnd());
    if (at == 0xc000 && rnd() % 4 == 0)
        board_out(t, 0xc004 + (rnd() & 8), 4, TABLE);
}

static void poke(struct test_board *t, struct fvm_device *victim)
{
    for (unsigned i = 0; i < 40; i++)
        one_access(t);
    victim->ops->quiesce(victim);
}

static void test_hostile(void)
{
    struct rig r, victim;

    up(&r);
    up_again(&victim, &r);
    for (unsigned i = 0; i < 64; i++)
        prd(&victim, i, DATA + 0x1000 * i, (unsigned)rnd() & 0xffff, i % 16 == 15);
    packet(&r, false, 1000, (const uint8_t[12]){0x28, 0, 0, 0, 0, 10, 0, 0, 1});
    CU_ASSERT_TRUE(status(&r, 0x170) & DRQ);
    command(&r, 0x1f0, 0xe0, 50, 8, 0xc8);
    board_hostile(&victim.t, r.dev, victim.dev, 3000, poke);
    board_hostile(&victim.t, r.south, victim.south, 3000, NULL);
    for (unsigned i = 0; i < 20000; i++) { /* and a guest that just pokes: whatever comes of it can be saved */
        one_access(&r.t);
        if (i % 500 == 0) {
            r.dev->ops->quiesce(r.dev);
            board_roundtrip(r.dev, victim.dev);
        }
    }
    r.dev->ops->reset(r.dev);
    command(&r, 0x1f0, 0xe0, 0, 0, 0xec);
    CU_ASSERT_TRUE(status(&r, 0x1f0) & DRQ);
    victim.disk_path[0] = victim.cd_path[0] = 0;
    down(&victim);
    down(&r);
}

int main(void)
{
    static const struct board_test tests[] = {
        {"identify", test_identify}, {"PIO", test_pio},     {"DMA", test_dma},         {"CD-ROM", test_cdrom},
        {"reset", test_reset},       {"state", test_state}, {"hostile", test_hostile},
    };

    return board_main("device/piix_ide", tests, FVM_ARRAY_SIZE(tests));
}
