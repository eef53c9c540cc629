/* e1000 between a driver and a switch with an observer on it: EEPROM and PHY, both rings, offloads, throttling, the move. */
#include "vmm/devices/e1000.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "net/switch.h"
#include "support_board.h"

enum { SLOT = 3, TXRING = 0x100000, RXRING = 0x110000, TXDATA = 0x120000, RXDATA = 0x200000, COUNT = 64 };
enum { CTRL = 0, STATUS = 8, EECD = 0x10, EERD = 0x14, MDIC = 0x20, ICR = 0xc0, ITR = 0xc4, ICS = 0xc8, IMS = 0xd0, IMC = 0xd8,
       RCTL = 0x100, TCTL = 0x400, RDBAL = 0x2800, RDLEN = 0x2808, RDH = 0x2810, RDT = 0x2818, TDBAL = 0x3800, TDLEN = 0x3808,
       TDH = 0x3810, TDT = 0x3818, RAL = 0x5400 };
enum { EOP = 1, IFCS = 2, IC = 4, TSE = 4, RS = 8, DEXT = 0x20 };

static const uint8_t mac[6] = {0x52, 0x54, 0, 9, 9, 9}, all[6] = {0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, other[6] = {2, 0, 0, 0, 0, 7};
static char dir[64], path[96];
static struct fvm_switch *sw;

static struct observer {
    struct fvm_net *net;
    unsigned frames;
    uint8_t last[70000];
    uint8_t seen[8][2000];
    size_t len, lens[8];
} seen;

struct rig {
    struct test_board t;
    struct fvm_device *bridge, *dev;
    struct fvm_net *net;
    uint64_t bar;
    uint32_t tdt, rdt;
};

static bool observe(void *ctx, const uint8_t *frame, size_t len)
{
    struct observer *o = ctx;

    if (memcmp(frame + 6, mac, 6) != 0 || (frame[12] == 0x80 && frame[13] == 0x35)) /* not ours, or the announcement */
        return true;
    if (o->frames < 8 && len <= sizeof(o->seen[0])) {
        memcpy(o->seen[o->frames], frame, len);
        o->lens[o->frames] = len;
    }
    o->frames++;
    o->len = len;
    memcpy(o->last, frame, len);
    return true;
}

static uint32_t rd(struct rig *r, unsigned at)
{
    return (uint32_t)board_mmio_read(&r->t, r->bar + at, 4);
}

static void wr(struct rig *r, unsigned at, uint32_t value)
{
    board_mmio_write(&r->t, r->bar + at, 4, value);
}

static void settle(struct rig *r)
{
    for (unsigned i = 0; i < 20; i++)
        while (fvm_loop_turn(r->t.board.loop, 1000000) == 1)
            ;
}

static void up(struct rig *r, bool first)
{
    char kind[128];
    struct fvm_err err = {0};
    struct fvm_net_options opt = {.kind = kind, .inactive = !first};

    memset(r, 0, sizeof(*r));
    board_up(&r->t, 1);
    snprintf(kind, sizeof(kind), "switch:%s", path);
    if (first) {
        struct fvm_net_options observer = {.kind = kind};

        memset(&seen, 0, sizeof(seen));
        CU_ASSERT_EQUAL_FATAL(fvm_switch_create(r->t.board.loop, path, &sw, &err), 0);
        CU_ASSERT_EQUAL_FATAL(fvm_net_open(r->t.board.loop, &observer, observe, &seen, &seen.net, &err), 0);
    }
    CU_ASSERT_EQUAL_FATAL(fvm_net_open(r->t.board.loop, &opt, NULL, NULL, &r->net, &err), 0);
    CU_ASSERT_EQUAL_FATAL(fvm_pci_host_create(&r->t.board, &r->bridge), 0);
    CU_ASSERT_EQUAL_FATAL(fvm_e1000_create(&r->t.board, fvm_pci_host_of(r->bridge), SLOT, "e1000-0", r->net, mac, &r->dev), 0);
    fvm_pci_host_assign(fvm_pci_host_of(r->bridge));
    r->bar = board_pci_read(&r->t, SLOT << 3, 0x10, 4) & ~15u;
    if (first)
        settle(r);
}

static void down(struct rig *r, bool last)
{
    r->dev->ops->destroy(r->dev);
    r->bridge->ops->destroy(r->bridge);
    fvm_net_close(&r->net);
    if (last) {
        fvm_net_close(&seen.net);
        fvm_switch_destroy(&sw);
    }
    board_down(&r->t);
}

static void rings(struct rig *r)
{
    wr(r, TDBAL, TXRING);
    wr(r, TDLEN, COUNT * 16);
    wr(r, TCTL, 2);
    wr(r, RDBAL, RXRING);
    wr(r, RDLEN, COUNT * 16);
    wr(r, RCTL, 0x8002); /* on, broadcasts, buffers of 2048 */
    for (unsigned i = 0; i < COUNT; i++) {
        uint64_t d[2] = {RXDATA + 2048 * i, 0};

        fvm_assert(fvm_ram_write(r->t.board.ram, RXRING + 16 * i, d, 16) == 0);
    }
}

static void put_tx(struct rig *r, uint64_t addr, uint32_t lower, uint32_t upper)
{
    struct {
        uint64_t addr;
        uint32_t lower, upper;
    } d = {addr, lower, upper};

    fvm_assert(fvm_ram_write(r->t.board.ram, TXRING + 16 * r->tdt, &d, 16) == 0);
    r->tdt = (r->tdt + 1) % COUNT;
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

static uint16_t wire_word(struct rig *r, unsigned address)
{
    uint16_t word = 0;
    unsigned command = 6u << 6 | address;

    wr(r, EECD, 0x40);
    wr(r, EECD, 0x42);
    for (int bit = 8; bit >= 0; bit--) {
        uint32_t di = command >> bit & 1 ? 4 : 0;

        wr(r, EECD, 0x42 | di);
        wr(r, EECD, 0x43 | di);
        wr(r, EECD, 0x42 | di);
    }
    for (unsigned i = 0; i < 16; i++) {
        wr(r, EECD, 0x43);
        word = (uint16_t)(word << 1 | (rd(r, EECD) >> 3 & 1));
        wr(r, EECD, 0x42);
    }
    wr(r, EECD, 0);
    return word;
}

static void test_wires(void)
{
    struct rig r;
    uint16_t sum = 0;

    up(&r, true);
    CU_ASSERT_EQUAL(rd(&r, STATUS) & 3, 3);
    for (unsigned i = 0; i < 64; i++) {
        uint16_t word = wire_word(&r, i);

        sum = (uint16_t)(sum + word);
        wr(&r, EERD, i << 8 | 1);
        CU_ASSERT_EQUAL(rd(&r, EERD), (uint32_t)word << 16 | i << 8 | 0x10);
        if (i < 3)
            CU_ASSERT_EQUAL(word, mac[2 * i] | mac[2 * i + 1] << 8);
    }
    CU_ASSERT_EQUAL(sum, 0xbaba);
    wr(&r, MDIC, 2u << 26 | 1u << 21 | 2u << 16);
    CU_ASSERT_EQUAL(rd(&r, MDIC) & 0x5000ffff, 0x10000141);
    wr(&r, MDIC, 2u << 26 | 2u << 21 | 2u << 16);
    CU_ASSERT_TRUE(rd(&r, MDIC) & 0x40000000); /* no second PHY */
    CU_ASSERT_EQUAL(rd(&r, RAL + 4), 0x80000000u | mac[5] << 8 | mac[4]);
    wr(&r, RAL, 0);
    wr(&r, CTRL, 0x04000000);
    CU_ASSERT_EQUAL(rd(&r, RAL), (uint32_t)mac[3] << 24 | (uint32_t)mac[2] << 16 | (uint32_t)mac[1] << 8 | mac[0]);
    /* the same registers by the I/O BAR */
    board_out(&r.t, 0xcf8, 4, 0x80000014u | SLOT << 11);
    uint64_t io = board_in(&r.t, 0xcfc, 4) & ~3ull;
    board_out(&r.t, io, 4, STATUS);
    CU_ASSERT_EQUAL(board_in(&r.t, io + 4, 4), rd(&r, STATUS));
    down(&r, true);
}

static void test_transmit(void)
{
    struct rig r;
    uint8_t f[1500];
    struct {
        uint64_t addr;
        uint32_t lower, upper;
    } d;

    up(&r, true);
    rings(&r);
    make_frame(f, all, mac, 200);
    fvm_ram_write(r.t.board.ram, TXDATA, f, 100); /* in two pieces */
    fvm_ram_write(r.t.board.ram, TXDATA + 0x1000, f + 100, 100);
    put_tx(&r, TXDATA, 100, 0);
    put_tx(&r, TXDATA + 0x1000, 100 | (uint32_t)(EOP | RS) << 24, 0);
    wr(&r, IMS, 1);
    wr(&r, TDT, r.tdt);
    settle(&r);
    CU_ASSERT_EQUAL(seen.frames, 1);
    CU_ASSERT(seen.len == 200 && !memcmp(seen.last, f, 200));
    CU_ASSERT_EQUAL(rd(&r, TDH), 2);
    fvm_ram_read(r.t.board.ram, TXRING + 16, &d, 16);
    CU_ASSERT_EQUAL(d.upper & 1, 1); /* DD */
    CU_ASSERT_TRUE(r.t.level[fvm_pci_irq(SLOT, 1)]);
    CU_ASSERT_EQUAL(rd(&r, ICR) & 1, 1);
    CU_ASSERT_FALSE(r.t.level[fvm_pci_irq(SLOT, 1)]);
    /* a legacy checksum from 14 on, into 20 */
    memset(f + 20, 0, 2);
    fvm_ram_write(r.t.board.ram, TXDATA, f, 200);
    put_tx(&r, TXDATA, 200 | 20 << 16 | (uint32_t)(EOP | IC) << 24, 14 << 8);
    wr(&r, TDT, r.tdt);
    settle(&r);
    uint32_t sum = 0;
    for (unsigned i = 14; i < 200; i += 2)
        sum += (uint32_t)seen.last[i] << 8 | seen.last[i + 1];
    CU_ASSERT_EQUAL((sum & 0xffff) + (sum >> 16), 0xffff);
    CU_ASSERT_EQUAL(rd(&r, 0x4080), 2); /* good packets transmitted; reading clears */
    CU_ASSERT_EQUAL(rd(&r, 0x4080), 0);
    down(&r, true);
}

static uint32_t fold(uint32_t sum)
{
    while (sum >> 16)
        sum = (sum & 0xffff) + (sum >> 16);
    return sum;
}

static uint32_t sum_of(const uint8_t *p, size_t len)
{
    uint32_t sum = 0;

    for (size_t i = 0; i < len; i++)
        sum += i & 1 ? p[i] : (uint32_t)p[i] << 8;
    return fold(sum);
}

static void test_segmentation(void)
{
    enum { HEAD = 54, PAYLOAD = 2500, MSS = 1000 };
    struct rig r;
    uint8_t f[HEAD + PAYLOAD] = {0};

    up(&r, true);
    rings(&r);
    make_frame(f, all, mac, sizeof(f));
    f[12] = 8, f[13] = 0; /* IPv4, TCP, sequence 0xfffffff0, PSH ACK */
    memset(f + 14, 0, 40);
    f[14] = 0x45, f[22] = 64, f[23] = 6, f[19] = 7;
    memcpy(f + 26, (uint8_t[8]){10, 0, 2, 15, 10, 0, 2, 2}, 8);
    memcpy(f + 38, (uint8_t[10]){0xff, 0xff, 0xff, 0xf0, 0, 0, 0, 1, 0x50, 0x18}, 10);
    uint32_t pseudo = fold(sum_of(f + 26, 8) + 6);
    f[50] = (uint8_t)(pseudo >> 8), f[51] = (uint8_t)pseudo;
    fvm_ram_write(r.t.board.ram, TXDATA, f, sizeof(f));
    put_tx(&r, 14ull | 24ull << 8 | 33ull << 16 | 34ull << 32 | 50ull << 40, PAYLOAD | (uint32_t)(DEXT | TSE | 3) << 24,
           HEAD << 8 | (uint32_t)MSS << 16);
    put_tx(&r, TXDATA, sizeof(f) | 1 << 20 | (uint32_t)(DEXT | TSE | EOP | RS) << 24, 3 << 8);
    wr(&r, TDT, r.tdt);
    settle(&r);
    CU_ASSERT_EQUAL_FATAL(seen.frames, 3);
    for (unsigned i = 0; i < 3; i++) {
        const uint8_t *s = seen.seen[i];
        uint32_t part = i < 2 ? MSS : PAYLOAD - 2 * MSS, seq = 0xfffffff0u + MSS * i;

        CU_ASSERT_EQUAL(seen.lens[i], HEAD + part);
        CU_ASSERT(!memcmp(s + HEAD, f + HEAD + MSS * i, part));
        CU_ASSERT_EQUAL((uint32_t)s[16] << 8 | s[17], 40 + part);
        CU_ASSERT_EQUAL(s[19], 7 + i);
        CU_ASSERT_EQUAL((uint32_t)s[38] << 24 | (uint32_t)s[39] << 16 | (uint32_t)s[40] << 8 | s[41], seq);
        CU_ASSERT_EQUAL(s[47], i < 2 ? 0x10 : 0x18); /* PSH on the last only */
        CU_ASSERT_EQUAL(sum_of(s + 14, 20), 0xffff);
        CU_ASSERT_EQUAL(fold(sum_of(s + 26, 8) + 6 + 20 + part + sum_of(s + 34, 20 + part)), 0xffff);
    }
    down(&r, true);
}

static void test_receive(void)
{
    struct rig r;
    uint8_t f[4000], b[4096], d[16];

    up(&r, true);
    rings(&r);
    wr(&r, IMS, 0x80);
    make_frame(f, all, other, 60);
    wr(&r, RDT, 0); /* no buffer: the frame waits */
    fvm_net_send(seen.net, f, 60);
    settle(&r);
    CU_ASSERT_EQUAL(rd(&r, RDH), 0);
    wr(&r, RDT, 10);
    settle(&r);
    CU_ASSERT_EQUAL(rd(&r, RDH), 1);
    fvm_ram_read(r.t.board.ram, RXRING, d, 16);
    CU_ASSERT_EQUAL(d[8] | d[9] << 8, 64); /* with FCS */
    CU_ASSERT_EQUAL(d[12], 7);
    fvm_ram_read(r.t.board.ram, RXDATA, b, 60);
    CU_ASSERT(!memcmp(b, f, 60));
    CU_ASSERT_TRUE(r.t.level[fvm_pci_irq(SLOT, 1)]);
    CU_ASSERT_EQUAL(rd(&r, ICR) & 0x80, 0x80);
    make_frame(f, other, other, 60); /* somebody else's */
    fvm_net_send(seen.net, f, 60);
    make_frame(f, mac, other, 1600); /* too long without LPE */
    fvm_net_send(seen.net, f, 1600);
    settle(&r);
    CU_ASSERT_EQUAL(rd(&r, RDH), 1);
    wr(&r, RCTL, 0x8022 | 3u << 16); /* LPE, buffers of 256 */
    make_frame(f, mac, other, 1600);
    fvm_net_send(seen.net, f, 1600);
    settle(&r);
    CU_ASSERT_EQUAL(rd(&r, RDH), 8); /* 1604 in seven */
    for (unsigned i = 0; i < 7; i++)
        fvm_ram_read(r.t.board.ram, RXDATA + 2048 * (1 + i), b + 256 * i, 256);
    CU_ASSERT(!memcmp(b, f, 1600));
    fvm_ram_read(r.t.board.ram, RXRING + 16 * 7, d, 16);
    CU_ASSERT_EQUAL(d[12] & 3, 3);
    make_frame(f, mac, other, 1600); /* and there are two buffers left: it waits */
    fvm_net_send(seen.net, f, 1600);
    settle(&r);
    CU_ASSERT_EQUAL(rd(&r, RDH), 8);
    down(&r, true);
}

static void test_throttle(void)
{
    struct rig r;
    unsigned line = fvm_pci_irq(SLOT, 1);

    up(&r, true);
    wr(&r, ITR, 1000); /* 256 us */
    wr(&r, IMS, 4);
    board_advance(&r.t, 1000000);
    wr(&r, ICS, 4);
    CU_ASSERT_TRUE(r.t.level[line]);
    CU_ASSERT_EQUAL(rd(&r, ICR), 4);
    wr(&r, ICS, 4);
    CU_ASSERT_FALSE(r.t.level[line]); /* too soon */
    board_advance(&r.t, 300000);
    CU_ASSERT_TRUE(r.t.level[line]);
    wr(&r, IMC, 4);
    CU_ASSERT_FALSE(r.t.level[line]);
    down(&r, true);
}

static void test_state(void)
{
    struct rig r, copy;
    uint8_t f[300];

    up(&r, true);
    rings(&r);
    make_frame(f, all, mac, 300);
    fvm_ram_write(r.t.board.ram, TXDATA, f, 300);
    put_tx(&r, TXDATA, 100, 0); /* half a frame */
    wr(&r, TDT, r.tdt);
    settle(&r);
    wr(&r, EECD, 0x42);
    wr(&r, EECD, 0x47); /* and half a command */
    r.dev->ops->quiesce(r.dev);
    up(&copy, false);
    board_roundtrip(r.dev, copy.dev);
    CU_ASSERT_EQUAL(seen.frames, 0);
    r.dev->ops->resume(r.dev);
    put_tx(&r, TXDATA + 100, 200 | (uint32_t)EOP << 24, 0);
    wr(&r, TDT, r.tdt);
    settle(&r);
    CU_ASSERT_EQUAL(seen.frames, 1);
    CU_ASSERT(seen.len == 300 && !memcmp(seen.last, f, 300));
    down(&copy, false);
    down(&r, true);
}

static uint64_t rng = 88172645463325252ull;
static uint64_t rnd(void)
{
    rng ^= rng << 13;
    rng ^= rng >> 7;
    rng ^= rng << 17;
    return rng;
}

static uint64_t bar;

static void one_access(struct test_board *t)
{
    static const uint16_t regs[] = {RCTL, TCTL, RDBAL, RDLEN, RDH, RDT, TDBAL, TDLEN, TDH, TDT, ICR, ITR, ICS, IMS, IMC, EECD, EERD, MDIC, RAL};
    unsigned at = regs[rnd() % FVM_ARRAY_SIZE(regs)];

    switch (rnd() % 6) {
    case 0: board_mmio_write(t, bar + (rnd() & 0x5ffc), 4, rnd()); break;
    case 1: board_mmio_read(t, bar + (rnd() & 0x1ffff), 1u << rnd() % 3); break;
    case 2: { /* descriptors and what they point to */
        uint64_t d[2] = {rnd() % 8 ? TXDATA + rnd() % 0x1000 : rnd(), rnd()};

        d[1] = (d[1] & 0xffffffffff0fffffull) | rnd() % 3 << 20;
        if (rnd() % 2)
            d[0] = rnd() & 0x3f3f3fff3f3full;
        (void)fvm_ram_write(t->board.ram, TXRING + 16 * (rnd() % COUNT), d, 16);
        break;
    }
    case 3:
        board_mmio_write(t, bar + TDBAL, 4, TXRING);
        board_mmio_write(t, bar + TDLEN, 4, COUNT * 16);
        board_mmio_write(t, bar + TCTL, 4, 2);
        board_mmio_write(t, bar + TDT, 4, rnd() % COUNT);
        break;
    case 4:
        board_mmio_write(t, bar + RDBAL, 4, RXRING);
        board_mmio_write(t, bar + RDLEN, 4, COUNT * 16);
        board_mmio_write(t, bar + RCTL, 4, 0x803a | (uint32_t)(rnd() & 0x6032000));
        board_mmio_write(t, bar + RDT, 4, rnd() % COUNT);
        break;
    default: board_mmio_write(t, bar + at, 4, rnd() % 3 ? rnd() % COUNT : rnd());
    }
}

static void poke(struct test_board *t, struct fvm_device *victim)
{
    victim->ops->resume(victim);
    for (unsigned i = 0; i < 20; i++)
        one_access(t);
    for (unsigned i = 0; i < 4; i++)
        fvm_loop_turn(t->board.loop, 0);
    victim->ops->quiesce(victim);
}

static void test_hostile(void)
{
    struct rig r, victim;
    uint8_t f[3000];

    up(&r, true);
    up(&victim, false);
    rings(&r);
    put_tx(&r, TXDATA, 40, 0);
    wr(&r, TDT, r.tdt);
    settle(&r);
    bar = r.bar;
    board_hostile(&victim.t, r.dev, victim.dev, 2000, poke);
    for (unsigned i = 0; i < 20000; i++) {
        one_access(&r.t);
        if (i % 5 == 0) {
            make_frame(f, rnd() % 2 ? mac : all, other, 14 + rnd() % 2900);
            fvm_net_send(seen.net, f, 14 + rnd() % 2900);
            fvm_loop_turn(r.t.board.loop, 0);
        }
        if (i % 1000 == 0) {
            r.dev->ops->quiesce(r.dev);
            board_roundtrip(r.dev, victim.dev);
            r.dev->ops->resume(r.dev);
        }
    }
    /* after a reset an honest driver is served */
    wr(&r, CTRL, 0x04000000);
    settle(&r);
    rings(&r);
    r.tdt = 0;
    seen.frames = 0;
    make_frame(f, all, mac, 100);
    fvm_ram_write(r.t.board.ram, TXDATA, f, 100);
    put_tx(&r, TXDATA, 100 | (uint32_t)EOP << 24, 0);
    wr(&r, TDT, r.tdt);
    settle(&r);
    CU_ASSERT(seen.frames >= 1 && seen.len == 100 && !memcmp(seen.last, f, 100));
    down(&victim, false);
    down(&r, true);
}

int main(void)
{
    static const struct board_test tests[] = {
        {"EEPROM and PHY", test_wires}, {"transmit", test_transmit}, {"segmentation", test_segmentation},
        {"receive", test_receive},      {"throttle", test_throttle}, {"state", test_state},
        {"hostile", test_hostile},
    };
    int status;

    snprintf(dir, sizeof(dir), "/tmp/fvm-e1000.XXXXXX");
    if (!mkdtemp(dir))
        return 1;
    snprintf(path, sizeof(path), "%s/switch", dir);
    status = board_main("device/e1000", tests, FVM_ARRAY_SIZE(tests));
    unlink(path);
    rmdir(dir);
    return status;
}
