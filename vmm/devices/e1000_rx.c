/*
 * e1000_rx.c - the receive side: which frames the card takes, and how they lie in the guest's buffers.
 *
 * A frame uses as many descriptors as it needs or none: without enough of them it stays with the network's back end until the
 * driver gives new ones. Received checksums are not judged (IXSM). Frames are padded to 60 bytes; four bytes stand for the FCS
 * unless the driver has it stripped.
 */
#include <string.h>

#include "vmm/devices/e1000_impl.h"

enum { RCTL_UPE = 0x08, RCTL_MPE = 0x10, RCTL_LPE = 0x20, RCTL_BAM = 0x8000, RCTL_VFE = 0x40000, RCTL_BSEX = 0x2000000,
       RCTL_SECRC = 0x4000000 };
enum { RX_DD = 1, RX_EOP = 2, RX_IXSM = 4, RX_VP = 8, FRAME_MIN = 60, FCS = 4, FRAME_LONG = 1518 };
#define RAH_VALID 0x80000000u

static bool matches_address(const struct e1000 *e, const uint8_t *frame)
{
    for (unsigned i = 0; i < E1000_RA; i += 2) {
        uint32_t low = e->ra[i], high = e->ra[i + 1];

        if ((high & RAH_VALID) && frame[0] == (uint8_t)low && frame[1] == (uint8_t)(low >> 8) &&
            frame[2] == (uint8_t)(low >> 16) && frame[3] == (uint8_t)(low >> 24) && frame[4] == (uint8_t)high &&
            frame[5] == (uint8_t)(high >> 8))
            return true;
    }
    return false;
}

static bool matches_multicast(const struct e1000 *e, const uint8_t *frame)
{
    static const uint8_t shift[] = {4, 3, 2, 0}; /* RCTL.MO */
    unsigned hash = ((unsigned)(frame[5] << 8 | frame[4]) >> shift[e->reg[R_RCTL] >> 12 & 3]) & 0xfff;

    return e->mta[hash >> 5 & (E1000_MTA - 1)] >> (hash & 31) & 1;
}

static bool tagged(const struct e1000 *e, const uint8_t *frame, size_t len)
{
    uint32_t type = e->reg[R_VET] ? e->reg[R_VET] : 0x8100;

    return len >= 18 && ((uint32_t)frame[12] << 8 | frame[13]) == type;
}

static bool wanted(const struct e1000 *e, const uint8_t *frame, size_t len)
{
    static const uint8_t broadcast[6] = {0xff, 0xff, 0xff, 0xff, 0xff, 0xff};
    uint32_t rctl = e->reg[R_RCTL];

    if (tagged(e, frame, len) && (rctl & RCTL_VFE)) {
        unsigned id = (unsigned)(frame[14] << 8 | frame[15]) & 0xfff;

        if (!(e->vfta[id >> 5] >> (id & 31) & 1))
            return false;
    }
    if (len > FRAME_LONG + 4 && !(rctl & RCTL_LPE))
        return false;
    if (!memcmp(frame, broadcast, 6))
        return (rctl & RCTL_BAM) || (rctl & RCTL_MPE);
    if (frame[0] & 1)
        return (rctl & RCTL_MPE) || matches_multicast(e, frame) || matches_address(e, frame);
    return (rctl & RCTL_UPE) || matches_address(e, frame);
}

static uint32_t buffer_bytes(const struct e1000 *e)
{
    uint32_t size = 2048u >> (e->reg[R_RCTL] >> 16 & 3);

    return (e->reg[R_RCTL] & RCTL_BSEX) && size < 2048 ? size * 16 : size;
}

static uint32_t descriptors_free(const struct e1000 *e, uint32_t count)
{
    uint32_t head = e->reg[R_RDH], tail = e->reg[R_RDT];

    return tail >= head ? tail - head : count - head + tail;
}

/* The frame into the ring, which has room for it. */
static void fill(struct e1000 *e, uint32_t count, const uint8_t *frame, uint32_t len, uint8_t status, uint16_t tag)
{
    struct fvm_ram *ram = e->dev.board->ram;
    uint32_t size = buffer_bytes(e), at = 0;

    do {
        struct {
            uint64_t addr;
            uint16_t length, checksum;
            uint8_t status, errors;
            uint16_t special;
        } d;
        uint64_t gpa = (e->reg[R_RDBAL] | (uint64_t)e->reg[R_RDBAH] << 32) + 16ull * e->reg[R_RDH];
        uint32_t part = FVM_MIN(size, len - at);

        _Static_assert(sizeof(d) == 16, "as in memory");
        if (fvm_ram_read(ram, gpa, &d, sizeof(d)) != 0)
            return;
        (void)fvm_ram_write(ram, d.addr, frame + at, part); /* not RAM: lost */
        at += part;
        d.length = (uint16_t)part;
        d.checksum = 0;
        d.errors = 0;
        d.special = tag;
        d.status = (uint8_t)(RX_DD | RX_IXSM | status | (at == len ? RX_EOP : 0));
        (void)fvm_ram_write(ram, gpa, &d, sizeof(d));
        if (++e->reg[R_RDH] == count)
            e->reg[R_RDH] = 0;
    } while (at < len);
}

static void count_frame(struct e1000 *e, const uint8_t *frame, uint32_t len)
{
    fvm_e1000_count(e, STAT_GPRC, 1);
    fvm_e1000_count(e, STAT_TPR, 1);
    fvm_e1000_count(e, STAT_GORCL, len);
    fvm_e1000_count(e, STAT_TORL, len);
    if (frame[0] & 1)
        fvm_e1000_count(e, frame[0] == 0xff ? STAT_BPRC : STAT_MPRC, 1);
}

bool fvm_e1000_deliver(void *ctx, const uint8_t *frame, size_t frame_len)
{
    struct e1000 *e = ctx;
    uint32_t count = e->reg[R_RDLEN] / 16, len = (uint32_t)frame_len, threshold;
    uint8_t *f = e->rx_frame, status = 0;
    uint16_t tag = 0;

    if (e->quiesced)
        return false;
    if (!(e->reg[R_RCTL] & RCTL_EN) || !fvm_pci_bus_master(&e->pci) || len < FVM_NET_FRAME_MIN || len > FVM_NET_FRAME_MAX ||
        !count || !wanted(e, frame, len))
        return true; /* lost, as on a card that does not listen */
    if (e->reg[R_RDH] >= count || e->reg[R_RDT] >= count)
        return true;
    if ((uint64_t)descriptors_free(e, count) * buffer_bytes(e) < FVM_ALIGN_UP(FVM_MAX(len, (uint32_t)FRAME_MIN) + FCS, buffer_bytes(e)))
        return false; /* RDT's next write asks again */
    memcpy(f, frame, len);
    if ((e->reg[R_CTRL] & CTRL_VME) && tagged(e, f, len)) {
        tag = (uint16_t)(f[14] << 8 | f[15]);
        status = RX_VP;
        memmove(f + 12, f + 16, len - 16);
        len -= 4;
    }
    if (len < FRAME_MIN) {
        memset(f + len, 0, FRAME_MIN - len);
        len = FRAME_MIN;
    }
    if (!(e->reg[R_RCTL] & RCTL_SECRC)) {
        memset(f + len, 0, FCS);
        len += FCS;
    }
    count_frame(e, frame, len);
    fill(e, count, f, len, status, tag);
    threshold = count >> ((e->reg[R_RCTL] >> 8 & 3) + 1);
    fvm_e1000_cause(e, ICR_RXT0 | (descriptors_free(e, count) <= threshold ? ICR_RXDMT0 : 0));
    return true;
}
