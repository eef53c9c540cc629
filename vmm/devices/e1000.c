/*
 * e1000.c - Intel 82540EM (PCI/PCI-X Family of Gigabit Ethernet Controllers Software Developer's Manual): registers in BAR 0 and,
 * by address and data, in I/O BAR 1; interrupts with throttling.
 *
 * The interrupt is INTA, a level: (ICR & IMS) != 0, but not sooner after the last one than ITR says. Reading ICR clears it.
 *
 * Invariant: reg[] holds only bits that the register has (E1000_REGISTERS); the rings are judged when they are used.
 */
#include <stdlib.h>
#include <string.h>

#include "vmm/devices/e1000_impl.h"
#include "vmm/devices/pack.h"

enum { BAR_MEM = 0, BAR_IO = 1, MEM_BYTES = 0x20000, IO_BYTES = 0x40 };
enum { REG_STATUS = 0x08, REG_EECD = 0x10, REG_EERD = 0x14, REG_MDIC = 0x20, REG_ICR = 0xc0, REG_ICS = 0xc8, REG_IMS = 0xd0,
       REG_IMC = 0xd8, REG_RXCW = 0x180, REG_STATS = 0x4000, REG_MTA = 0x5200, REG_RA = 0x5400, REG_VFTA = 0x5600 };
enum { STATUS_UP = 0x83, NS_PER_ITR = 256 }; /* full duplex, link up, 1000 Mb/s */
#define CTRL_RST 0x04000000u
#define CTRL_PHY_RST 0x80000000u

static const struct {
    uint16_t offset;
    uint32_t mask;
} plain[E1000_REGS] = {
#define E1000_ENTRY(offset, name, mask) {offset, mask},
    E1000_REGISTERS(E1000_ENTRY)
#undef E1000_ENTRY
};

static int index_of(unsigned offset)
{
    for (int i = 0; i < E1000_REGS; i++)
        if (plain[i].offset == offset)
            return i;
    return -1;
}

/* ---- interrupts ---- */

void fvm_e1000_interrupts(struct e1000 *e)
{
    uint64_t now = fvm_clock_ns(e->dev.board->clock);
    bool due = e->icr & e->ims;

    if (!due || e->pci.intx_level) {
        fvm_pci_intx_set(&e->pci, due);
        fvm_timer_arm(e->timer, UINT64_MAX);
    } else if (now < e->next_interrupt_ns) {
        fvm_timer_arm(e->timer, e->next_interrupt_ns);
    } else {
        fvm_pci_intx_set(&e->pci, true);
        fvm_timer_arm(e->timer, UINT64_MAX);
        e->next_interrupt_ns = now + (uint64_t)e->reg[R_ITR] * NS_PER_ITR;
    }
}

static void throttle_over(void *ctx)
{
    fvm_e1000_interrupts(ctx);
}

void fvm_e1000_cause(struct e1000 *e, uint32_t bits)
{
    e->icr |= bits & ICR_BITS;
    fvm_e1000_interrupts(e);
}

void fvm_e1000_count(struct e1000 *e, unsigned stat, uint64_t n)
{
    uint64_t sum = e->stat[stat / 4] + n;
    bool wide = stat == STAT_GORCL || stat == STAT_GOTCL || stat == STAT_TORL || stat == STAT_TOTL;

    e->stat[stat / 4] = wide ? (uint32_t)sum : (uint32_t)FVM_MIN(sum, UINT32_MAX);
    if (wide)
        e->stat[stat / 4 + 1] += (uint32_t)(sum >> 32);
}

/* ---- registers ---- */

static void card_reset(struct e1000 *e)
{
    fvm_e1000_tx_cancel(e);
    memset(e->reg, 0, sizeof(e->reg));
    memset(e->mta, 0, sizeof(e->mta));
    memset(e->ra, 0, sizeof(e->ra));
    memset(e->vfta, 0, sizeof(e->vfta));
    memset(e->stat, 0, sizeof(e->stat));
    memset(&e->context, 0, sizeof(e->context));
    e->reg[R_CTRL] = 0x0a41; /* full duplex, link up, 1000 */
    e->reg[R_PBA] = 0x30;
    e->reg[R_MANC] = 0;
    e->reg[R_LEDCTL] = 0x07068302;
    e->ra[0] = (uint32_t)e->mac[0] | (uint32_t)e->mac[1] << 8 | (uint32_t)e->mac[2] << 16 | (uint32_t)e->mac[3] << 24;
    e->ra[1] = (uint32_t)e->mac[4] | (uint32_t)e->mac[5] << 8 | 0x80000000u;
    e->icr = e->ims = e->mdic = e->eerd = e->io_address = 0;
    e->next_interrupt_ns = 0;
    e->eecd = 0;
    e->wire_in = e->wire_out = 0;
    e->wire_count = e->wire_left = 0;
    e->tx_options = 0;
    e->tx_tse = e->tx_extended = e->tx_drop = false;
    e->tx_len = 0;
    fvm_e1000_phy_reset(e);
    fvm_e1000_interrupts(e);
}

static uint32_t stat_read(struct e1000 *e, unsigned offset)
{
    uint32_t value = e->stat[offset / 4];

    e->stat[offset / 4] = 0;
    return value;
}

static uint32_t reg_read(struct e1000 *e, unsigned offset)
{
    uint32_t value;
    int i;

    switch (offset) {
    case REG_STATUS: return STATUS_UP;
    case REG_EECD: return fvm_e1000_eecd_read(e);
    case REG_EERD: return e->eerd;
    case REG_MDIC: return e->mdic;
    case REG_RXCW: return 0;
    case REG_ICS:
    case REG_ICR:
        value = e->icr;
        if (offset == REG_ICR) {
            e->icr = 0;
            fvm_e1000_interrupts(e);
        }
        return value;
    case REG_IMS: return e->ims;
    default: break;
    }
    if (offset >= REG_STATS && offset < REG_STATS + 4 * E1000_STATS)
        return stat_read(e, offset - REG_STATS);
    if (offset >= REG_MTA && offset < REG_MTA + 4 * E1000_MTA)
        return e->mta[(offset - REG_MTA) / 4];
    if (offset >= REG_RA && offset < REG_RA + 4 * E1000_RA)
        return e->ra[(offset - REG_RA) / 4];
    if (offset >= REG_VFTA && offset < REG_VFTA + 4 * E1000_VFTA)
        return e->vfta[(offset - REG_VFTA) / 4];
    i = index_of(offset);
    return i < 0 ? 0 : e->reg[i];
}

static void ready(void *ctx)
{
    struct e1000 *e = ctx;

    e->ready_posted = false;
    fvm_net_ready(e->net);
}

/* Buffers for frames that wait: delivered from the loop, like new ones. */
static void ready_soon(struct e1000 *e)
{
    if (!e->ready_posted)
        e->ready_posted = fvm_loop_post(e->dev.board->loop, ready, e) == 0;
}

static void plain_write(struct e1000 *e, int i, uint32_t value)
{
    e->reg[i] = value & plain[i].mask;
    switch (i) {
    case R_CTRL:
        if (value & CTRL_RST) {
            card_reset(e);
            return;
        }
        if (value & CTRL_PHY_RST) {
            fvm_e1000_phy_reset(e);
            e->reg[R_CTRL] &= ~CTRL_PHY_RST;
            fvm_e1000_cause(e, ICR_LSC);
        }
        break;
    case R_TCTL:
    case R_TDT:
        fvm_e1000_tx_kick(e);
        break;
    case R_RCTL:
    case R_RDT:
        ready_soon(e);
        break;
    default:
        break;
    }
}

static void reg_write(struct e1000 *e, unsigned offset, uint32_t value)
{
    int i;

    switch (offset) {
    case REG_EECD: fvm_e1000_eecd_write(e, value); return;
    case REG_EERD: fvm_e1000_eerd_write(e, value); return;
    case REG_MDIC: fvm_e1000_mdic_write(e, value); return;
    case REG_ICR:
        e->icr &= ~value;
        fvm_e1000_interrupts(e);
        return;
    case REG_ICS: fvm_e1000_cause(e, value); return;
    case REG_IMS:
        e->ims |= value & ICR_BITS;
        fvm_e1000_interrupts(e);
        return;
    case REG_IMC:
        e->ims &= ~value;
        fvm_e1000_interrupts(e);
        return;
    default: break;
    }
    if (offset >= REG_MTA && offset < REG_MTA + 4 * E1000_MTA)
        e->mta[(offset - REG_MTA) / 4] = value;
    else if (offset >= REG_RA && offset < REG_RA + 4 * E1000_RA)
        e->ra[(offset - REG_RA) / 4] = value;
    else if (offset >= REG_VFTA && offset < REG_VFTA + 4 * E1000_VFTA)
        e->vfta[(offset - REG_VFTA) / 4] = value;
    else if ((i = index_of(offset)) >= 0)
        plain_write(e, i, value);
}

static uint64_t mem_read(void *ctx, uint64_t offset, unsigned size)
{
    uint64_t value = reg_read(ctx, (unsigned)offset & ~3u);

    if (size == 8)
        value |= (uint64_t)reg_read(ctx, ((unsigned)offset & ~3u) + 4) << 32;
    return value >> (8 * (offset & 3));
}

static void mem_write(void *ctx, uint64_t offset, unsigned size, uint64_t value)
{
    if (size < 4)
        return; /* registers are written whole */
    reg_write(ctx, (unsigned)offset, (uint32_t)value);
    if (size == 8)
        reg_write(ctx, (unsigned)offset + 4, (uint32_t)(value >> 32));
}

static uint64_t io_read(void *ctx, uint64_t offset, unsigned size)
{
    struct e1000 *e = ctx;

    if (size != 4)
        return UINT64_MAX >> (64 - 8 * size);
    if (offset == 0)
        return e->io_address;
    return offset == 4 ? reg_read(e, e->io_address & ~3u) : 0;
}

static void io_write(void *ctx, uint64_t offset, unsigned size, uint64_t value)
{
    struct e1000 *e = ctx;

    if (size == 4 && offset == 0)
        e->io_address = (uint32_t)value & (MEM_BYTES - 1);
    else if (size == 4 && offset == 4)
        reg_write(e, e->io_address & ~3u, (uint32_t)value);
}

static void config_written(void *ctx, unsigned offset, unsigned size)
{
    (void)offset;
    (void)size;
    fvm_e1000_tx_kick(ctx); /* bus mastering may have been allowed just now */
}

static const struct fvm_bus_ops mem_ops = {.read = mem_read, .write = mem_write};
static const struct fvm_bus_ops io_ops = {.read = io_read, .write = io_write};
static const struct fvm_pci_function_ops pci_ops = {.config_written = config_written};

/* ---- lifecycle ---- */

static void e1000_reset(struct fvm_device *dev)
{
    struct e1000 *e = (struct e1000 *)dev;

    e->announce_due = false;
    card_reset(e);
    fvm_pci_function_reset(&e->pci);
}

static void e1000_quiesce(struct fvm_device *dev)
{
    struct e1000 *e = (struct e1000 *)dev;

    e->quiesced = true;
    fvm_e1000_tx_cancel(e);
}

static void e1000_resume(struct fvm_device *dev)
{
    struct e1000 *e = (struct e1000 *)dev;

    e->quiesced = false;
    fvm_e1000_tx_kick(e);
    ready_soon(e);
    if (e->announce_due)
        fvm_net_announce(e->net, e->mac);
    e->announce_due = false;
}

static void e1000_destroy(struct fvm_device *dev)
{
    struct e1000 *e = (struct e1000 *)dev;

    fvm_net_set_deliver(e->net, NULL, NULL);
    fvm_e1000_tx_cancel(e);
    fvm_loop_post_cancel(dev->board->loop, ready, e);
    fvm_timer_destroy(&e->timer);
    fvm_pci_function_fini(&e->pci);
    free(e);
}

static const struct fvm_device_ops e1000_ops = {
    .name = "e1000",
    .destroy = e1000_destroy,
    .reset = e1000_reset,
    .quiesce = e1000_quiesce,
    .resume = e1000_resume,
    .save = fvm_e1000_save,
    .check = fvm_e1000_check,
    .restore = fvm_e1000_restore,
};

int fvm_e1000_create(struct fvm_board *board, struct fvm_pci_host *host, uint8_t slot, const char *instance,
                     struct fvm_net *net, const uint8_t mac[6], struct fvm_device **ret_dev)
{
    const struct fvm_pci_id id = {.slot = slot, .vendor = 0x8086, .device = 0x100e, .subsystem_vendor = 0x8086,
                                  .subsystem = 0x001e, .revision = 2, .class_code = 0x020000, .interrupt_pin = 1};
    struct e1000 *e = calloc(1, sizeof(*e));
    int r;

    if (!e)
        return FVM_ENOMEM;
    fvm_device_init(&e->dev, &e1000_ops, instance, board);
    e->net = net;
    memcpy(e->mac, mac, 6);
    r = fvm_timer_create(board->clock, throttle_over, e, &e->timer);
    if (!r)
        r = fvm_pci_function_init(&e->pci, host, &id, &pci_ops, e);
    if (r) {
        if (e->timer)
            fvm_timer_destroy(&e->timer);
        free(e);
        return r;
    }
    fvm_pci_bar_add(&e->pci, BAR_MEM, FVM_PCI_BAR_MEM32, MEM_BYTES, &mem_ops, e, "e1000");
    fvm_pci_bar_add(&e->pci, BAR_IO, FVM_PCI_BAR_IO, IO_BYTES, &io_ops, e, "e1000-io");
    fvm_e1000_eeprom_fill(e);
    e1000_reset(&e->dev);
    fvm_net_set_deliver(net, fvm_e1000_deliver, e);
    *ret_dev = &e->dev;
    return 0;
}
