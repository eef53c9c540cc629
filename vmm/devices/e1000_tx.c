/*
 * e1000_tx.c - the transmit ring: legacy, context and data descriptors, checksums, TCP segmentation.
 *
 *   TDT write -> (loop) descriptors TDH..TDT -> one frame flat -> checksums, or cut by MSS -> fvm_net_send
 *
 * A frame may come in many descriptors and may be incomplete when the ring ends: it waits, and moves with the VM. Invariant: the
 * frame never exceeds its buffer, what is longer is dropped whole. Ring addresses and offsets are the guest's, any of them may
 * be nonsense: reads of what is not RAM give a frame that is dropped.
 */
#include <string.h>

#include "vmm/devices/e1000_impl.h"

enum { CMD_EOP = 0x01, CMD_IC = 0x04, CMD_TSE = 0x04, CMD_RS = 0x08, CMD_DEXT = 0x20, CMD_VLE = 0x40 };
enum { POPTS_IXSM = 1, POPTS_TXSM = 2, TUCMD_TCP = 1, TUCMD_IP4 = 2, STA_DD = 1, DTYP_CONTEXT = 0, BUDGET = 256, MSS_MIN = 64 /* a hostile guest must not make tens of thousands of frames of one */ };
enum { TCP_FIN_PSH = 0x09, TCP_FLAGS = 13, TCP_SEQ = 4 };

struct descriptor {
    uint64_t addr;
    uint32_t lower, upper;
};
_Static_assert(sizeof(struct descriptor) == 16, "as in memory");

static uint32_t sum16(const uint8_t *p, size_t len, uint32_t sum)
{
    for (size_t i = 0; i + 1 < len; i += 2)
        sum += (uint32_t)p[i] << 8 | p[i + 1];
    if (len & 1)
        sum += (uint32_t)p[len - 1] << 8;
    while (sum >> 16)
        sum = (sum & 0xffff) + (sum >> 16);
    return sum;
}

static void put16(uint8_t *p, uint32_t value)
{
    p[0] = (uint8_t)(value >> 8);
    p[1] = (uint8_t)value;
}

/* The sum of [start, end] (end 0: all) into offset `at`; what does not lie in the frame is not done. */
static void checksum(uint8_t *frame, uint32_t len, uint32_t at, uint32_t start, uint32_t end)
{
    uint32_t stop = end && end + 1 < len ? end + 1 : len;

    if (start < stop && at + 2 <= len)
        put16(frame + at, ~sum16(frame + start, stop - start, 0) & 0xffff);
}

static void send(struct e1000 *e, const uint8_t *frame, uint32_t len)
{
    if (len < FVM_NET_FRAME_MIN || len > FVM_NET_FRAME_MAX)
        return;
    fvm_e1000_count(e, STAT_GPTC, 1);
    fvm_e1000_count(e, STAT_TPT, 1);
    fvm_e1000_count(e, STAT_GOTCL, len + 4);
    fvm_e1000_count(e, STAT_TOTL, len + 4);
    fvm_net_send(e->net, frame, len);
}

static void checksums(struct e1000 *e, uint8_t *frame, uint32_t len, uint8_t options)
{
    const struct e1000_context *c = &e->context;

    if (options & POPTS_TXSM)
        checksum(frame, len, c->tucso, c->tucss, c->tucse);
    if (options & POPTS_IXSM)
        checksum(frame, len, c->ipcso, c->ipcss, c->ipcse);
}

/* Lengths and numbers of one segment, `done` payload bytes in. */
static void segment_headers(struct e1000 *e, uint32_t len, uint32_t done, unsigned index, bool last)
{
    const struct e1000_context *c = &e->context;
    uint8_t *f = e->segment;

    if (c->tucmd & TUCMD_IP4) {
        uint32_t id = (uint32_t)f[c->ipcss + 4] << 8 | f[c->ipcss + 5];

        put16(f + c->ipcss + 2, len - c->ipcss);
        put16(f + c->ipcss + 4, id + index);
    } else {
        put16(f + c->ipcss + 4, len - c->ipcss - 40);
    }
    if (c->tucmd & TUCMD_TCP) {
        uint8_t *seq = f + c->tucss + TCP_SEQ;
        uint32_t n = ((uint32_t)seq[0] << 24 | (uint32_t)seq[1] << 16 | (uint32_t)seq[2] << 8 | seq[3]) + done;

        put16(seq, n >> 16);
        put16(seq + 2, n);
        if (!last)
            f[c->tucss + TCP_FLAGS] &= (uint8_t)~TCP_FIN_PSH;
    } else {
        put16(f + c->tucss + 4, len - c->tucss);
    }
    if (e->tx_options & POPTS_TXSM) { /* the driver left the pseudo header's sum without the length there */
        uint8_t *sum = f + c->tucso;
        uint32_t total = ((uint32_t)sum[0] << 8 | sum[1]) + len - c->tucss;

        while (total >> 16)
            total = (total & 0xffff) + (total >> 16);
        put16(sum, total);
    }
}

static void send_segments(struct e1000 *e)
{
    const struct e1000_context *c = &e->context;
    uint32_t head = c->hdrlen, payload, done = 0;

    if (c->mss < MSS_MIN || head >= e->tx_len || c->ipcss + 20u > head || c->tucss + 8u > head || c->tucso + 2u > head ||
        ((c->tucmd & TUCMD_TCP) && c->tucss + 20u > head) || (!(c->tucmd & TUCMD_IP4) && c->ipcss + 40u > head))
        return; /* no header to copy */
    payload = e->tx_len - head;
    for (unsigned index = 0; done < payload; index++) {
        uint32_t part = FVM_MIN((uint32_t)c->mss, payload - done);

        memcpy(e->segment, e->frame, head);
        memcpy(e->segment + head, e->frame + head + done, part);
        segment_headers(e, head + part, done, index, done + part == payload);
        checksums(e, e->segment, head + part, e->tx_options);
        send(e, e->segment, head + part);
        done += part;
    }
}

/* IEEE 802.1Q: the tag from the descriptor goes behind the addresses. */
static void insert_tag(struct e1000 *e, uint32_t tag)
{
    if (e->tx_len < 14 || e->tx_len + 4 > sizeof(e->frame))
        return;
    memmove(e->frame + 16, e->frame + 12, e->tx_len - 12);
    put16(e->frame + 12, e->reg[R_VET] ? e->reg[R_VET] : 0x8100);
    put16(e->frame + 14, tag);
    e->tx_len += 4;
}

static void end_of_packet(struct e1000 *e, const struct descriptor *d)
{
    uint8_t cmd = (uint8_t)(d->lower >> 24);

    if (!e->tx_drop) {
        if (e->tx_extended && e->tx_tse) {
            send_segments(e);
        } else {
            if (e->tx_extended)
                checksums(e, e->frame, e->tx_len, e->tx_options);
            else if (cmd & CMD_IC)
                checksum(e->frame, e->tx_len, d->lower >> 16 & 0xff, d->upper >> 8 & 0xff, 0);
            if ((cmd & CMD_VLE) && (e->reg[R_CTRL] & CTRL_VME))
                insert_tag(e, d->upper >> 16);
            send(e, e->frame, e->tx_len);
        }
    }
    e->tx_len = 0;
    e->tx_drop = e->tx_extended = e->tx_tse = false;
    e->tx_options = 0;
}

static void context(struct e1000 *e, const struct descriptor *d)
{
    e->context = (struct e1000_context){
        .ipcss = (uint8_t)d->addr,
        .ipcso = (uint8_t)(d->addr >> 8),
        .ipcse = (uint16_t)(d->addr >> 16),
        .tucss = (uint8_t)(d->addr >> 32),
        .tucso = (uint8_t)(d->addr >> 40),
        .tucse = (uint16_t)(d->addr >> 48),
        .paylen = d->lower & 0xfffff,
        .tucmd = (uint8_t)(d->lower >> 24),
        .hdrlen = (uint8_t)(d->upper >> 8),
        .mss = (uint16_t)(d->upper >> 16),
    };
}

static void data(struct e1000 *e, const struct descriptor *d, bool extended)
{
    uint32_t len = d->lower & (extended ? 0xfffff : 0xffff);
    uint8_t cmd = (uint8_t)(d->lower >> 24);

    if (e->tx_len == 0) {
        e->tx_extended = extended;
        e->tx_options = extended ? (uint8_t)(d->upper >> 8) & (POPTS_IXSM | POPTS_TXSM) : 0;
        e->tx_tse = extended && (cmd & CMD_TSE);
    }
    if (len > sizeof(e->frame) - 4 - e->tx_len ||
        fvm_ram_read(e->dev.board->ram, d->addr, e->frame + e->tx_len, len) != 0)
        e->tx_drop = true;
    else
        e->tx_len += len;
    if (cmd & CMD_EOP)
        end_of_packet(e, d);
}

/* One descriptor; false: it can't be read. */
static bool one(struct e1000 *e, uint64_t gpa, uint32_t *causes)
{
    struct fvm_ram *ram = e->dev.board->ram;
    struct descriptor d;

    if (fvm_ram_read(ram, gpa, &d, sizeof(d)) != 0)
        return false;
    if (!(d.lower >> 24 & CMD_DEXT))
        data(e, &d, false);
    else if ((d.lower >> 20 & 15) == DTYP_CONTEXT)
        context(e, &d);
    else
        data(e, &d, true);
    if (d.lower >> 24 & CMD_RS) {
        uint8_t status = (uint8_t)(d.upper | STA_DD);

        (void)fvm_ram_write(ram, gpa + 12, &status, 1); /* it was read from there */
        *causes |= ICR_TXDW;
    }
    return true;
}

static void run(void *ctx)
{
    struct e1000 *e = ctx;
    uint32_t count = e->reg[R_TDLEN] / 16, causes = 0, budget = BUDGET;
    uint64_t base = e->reg[R_TDBAL] | (uint64_t)e->reg[R_TDBAH] << 32;

    e->tx_posted = false;
    if (e->quiesced || !(e->reg[R_TCTL] & TCTL_EN) || !fvm_pci_bus_master(&e->pci) || e->reg[R_TDT] >= count ||
        e->reg[R_TDH] >= count)
        return;
    while (e->reg[R_TDH] != e->reg[R_TDT] && budget--) {
        if (!one(e, base + 16ull * e->reg[R_TDH], &causes))
            return; /* hung until the driver resets */
        if (++e->reg[R_TDH] == count)
            e->reg[R_TDH] = 0;
    }
    if (e->reg[R_TDH] == e->reg[R_TDT])
        causes |= ICR_TXQE;
    else
        fvm_e1000_tx_kick(e);
    fvm_e1000_cause(e, causes);
}

void fvm_e1000_tx_kick(struct e1000 *e)
{
    if (e->tx_posted || e->reg[R_TDH] == e->reg[R_TDT])
        return;
    e->tx_posted = fvm_loop_post(e->dev.board->loop, run, e) == 0;
}

void fvm_e1000_tx_cancel(struct e1000 *e)
{
    if (e->tx_posted)
        fvm_loop_post_cancel(e->dev.board->loop, run, e);
    e->tx_posted = false;
}
