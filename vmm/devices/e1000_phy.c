/*
 * e1000_phy.c - what hangs on the 82540EM by thin wires: the EEPROM (Microwire, bit by bit or by EERD) and the PHY (M88E1011
 * by MDIC). The cable is always plugged in and always runs at 1000 Mb/s, full duplex.
 *
 * Invariant: the EEPROM's words add up to 0xbaba, as drivers check.
 */
#include <string.h>

#include "vmm/devices/e1000_impl.h"

enum { EECD_SK = 1, EECD_CS = 2, EECD_DI = 4, EECD_DO = 8, EECD_FWE = 0x30, EECD_REQ = 0x40, EECD_GNT = 0x80, EECD_PRES = 0x100 };
enum { WIRE_COMMAND_BITS = 9, WIRE_READ = 6 }; /* start bit, two of operation, six of address */
enum { MDIC_WRITE = 1, MDIC_READ = 2, MDIC_PHY = 1 };
#define MDIC_READY 0x10000000u
#define MDIC_INTERRUPT 0x20000000u
#define MDIC_ERROR 0x40000000u
enum { PHY_CTRL = 0, PHY_STATUS = 1, PHY_ID1 = 2, PHY_ID2 = 3, PHY_ADVERTISE = 4, PHY_PARTNER = 5, PHY_EXPANSION = 6,
       PHY_1000_CTRL = 9, PHY_1000_STATUS = 10, PHY_EXT_STATUS = 15, M88_CTRL = 16, M88_STATUS = 17, M88_EXT_CTRL = 20 };
enum { CTRL_RESET = 0x8000, CTRL_RESTART = 0x0200 };

void fvm_e1000_eeprom_fill(struct e1000 *e)
{
    uint16_t *w = e->eeprom, sum = 0;

    memset(w, 0xff, sizeof(e->eeprom));
    for (unsigned i = 0; i < 3; i++)
        w[i] = (uint16_t)(e->mac[2 * i] | e->mac[2 * i + 1] << 8);
    w[3] = 0;
    w[8] = w[9] = 0;   /* no part number */
    w[10] = 0x4403;    /* initialization control 1: identifiers are here */
    w[11] = e->pci.id.subsystem;
    w[12] = e->pci.id.subsystem_vendor;
    w[13] = e->pci.id.device;
    w[14] = e->pci.id.vendor;
    w[15] = 0x3040;    /* initialization control 2: pause both ways */
    w[0x20] = 0x0008;
    w[0x24] = 0x0400;
    for (unsigned i = 0; i < E1000_EEPROM_WORDS - 1; i++)
        sum = (uint16_t)(sum + w[i]);
    w[E1000_EEPROM_WORDS - 1] = (uint16_t)(0xbaba - sum);
}

uint32_t fvm_e1000_eecd_read(const struct e1000 *e)
{
    bool out = e->wire_left ? e->wire_out >> (e->wire_left - 1) & 1 : true;

    return e->eecd | EECD_PRES | (e->eecd & EECD_REQ ? EECD_GNT : 0) | (out ? EECD_DO : 0);
}

void fvm_e1000_eecd_write(struct e1000 *e, uint32_t value)
{
    uint32_t old = e->eecd;

    e->eecd = value & (EECD_SK | EECD_CS | EECD_DI | EECD_FWE | EECD_REQ);
    if (!(value & EECD_CS) || !(old & EECD_CS)) { /* not selected, or just now: a new command */
        e->wire_in = 0;
        e->wire_count = e->wire_left = 0;
        if (!(value & EECD_CS) || !(value & EECD_SK) || (old & EECD_SK))
            return;
    }
    if (!(value & ~old & EECD_SK))
        return;
    if (e->wire_count == WIRE_COMMAND_BITS) { /* each further clock brings the next bit out, then the next word */
        if (!e->wire_left)
            return;
        if (--e->wire_left == 0) {
            e->wire_in = (uint16_t)((e->wire_in & ~0x3f) | ((e->wire_in + 1) & 0x3f));
            e->wire_out = e->eeprom[e->wire_in & 0x3f];
            e->wire_left = 16;
        }
        return;
    }
    if (!e->wire_count && !(value & EECD_DI))
        return; /* before the start bit */
    e->wire_in = (uint16_t)(e->wire_in << 1 | ((value & EECD_DI) != 0));
    if (++e->wire_count == WIRE_COMMAND_BITS && e->wire_in >> 6 == WIRE_READ) {
        e->wire_out = e->eeprom[e->wire_in & 0x3f];
        e->wire_left = 17; /* a zero comes first */
    }
}

void fvm_e1000_eerd_write(struct e1000 *e, uint32_t value)
{
    e->eerd = value & 0xff00;
    if (value & 1)
        e->eerd |= 0x10 | (uint32_t)((value >> 8 & 0xff) < E1000_EEPROM_WORDS ? e->eeprom[value >> 8 & 0x3f] : 0) << 16;
}

void fvm_e1000_phy_reset(struct e1000 *e)
{
    uint16_t *p = e->phy;

    memset(p, 0, sizeof(e->phy));
    p[PHY_CTRL] = 0x1140;    /* autonegotiation, 1000, full duplex */
    p[PHY_STATUS] = 0x796d;  /* all modes; negotiated, link up */
    p[PHY_ID1] = 0x0141;
    p[PHY_ID2] = 0x0c20;
    p[PHY_ADVERTISE] = 0x0de1;
    p[PHY_PARTNER] = 0x45e1;
    p[PHY_EXPANSION] = 0x0001;
    p[PHY_1000_CTRL] = 0x0e00;
    p[PHY_1000_STATUS] = 0x3c00;
    p[PHY_EXT_STATUS] = 0x3000;
    p[M88_CTRL] = 0x0360;
    p[M88_STATUS] = 0xac00;  /* 1000, full duplex, resolved, link up */
    p[M88_EXT_CTRL] = 0x0d60;
}

static void phy_write(struct e1000 *e, unsigned reg, uint16_t value)
{
    switch (reg) {
    case PHY_CTRL:
        if (value & CTRL_RESET) {
            fvm_e1000_phy_reset(e);
            return;
        }
        e->phy[reg] = value & (uint16_t)~CTRL_RESTART;
        if (value & CTRL_RESTART) /* negotiation ends at once */
            fvm_e1000_cause(e, ICR_LSC);
        break;
    case PHY_ADVERTISE:
    case PHY_1000_CTRL:
    case M88_CTRL:
    case M88_EXT_CTRL:
    case 29: /* page select of the M88's test registers */
    case 30:
        e->phy[reg] = value;
        break;
    default:
        break;
    }
}

void fvm_e1000_mdic_write(struct e1000 *e, uint32_t value)
{
    unsigned op = value >> 26 & 3, phy = value >> 21 & 31, reg = value >> 16 & 31;

    e->mdic = (value & ~(MDIC_ERROR | MDIC_INTERRUPT)) | MDIC_READY;
    if (phy != MDIC_PHY || (op != MDIC_READ && op != MDIC_WRITE)) {
        e->mdic |= MDIC_ERROR;
    } else if (op == MDIC_WRITE) {
        phy_write(e, reg, (uint16_t)value);
    } else {
        e->mdic = (e->mdic & ~0xffffu) | e->phy[reg];
    }
    if (value & MDIC_INTERRUPT)
        fvm_e1000_cause(e, 0x200); /* MDAC */
}
