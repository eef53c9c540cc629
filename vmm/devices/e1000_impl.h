/* e1000_impl.h - between e1000.c (registers, interrupts, life), e1000_tx.c, e1000_rx.c, e1000_phy.c and e1000_state.c only. */
#ifndef FVM_VMM_DEVICES_E1000_IMPL_H
#define FVM_VMM_DEVICES_E1000_IMPL_H

#include "net/net.h"
#include "vmm/devices/e1000.h"

enum { E1000_EEPROM_WORDS = 64, E1000_PHY_REGS = 32, E1000_MTA = 128, E1000_RA = 32, E1000_VFTA = 128, E1000_STATS = 74 };
enum { E1000_FRAME_MAX = 65536 + 256 };

/* Registers that keep what is written, with the bits that can be: offset, index, mask. */
#define E1000_REGISTERS(R)                                                                                              \
    R(0x0000, CTRL, 0xfbffffffu) R(0x0018, CTRL_EXT, 0xffffffffu) R(0x0028, FCAL, 0xffffffffu)                          \
    R(0x002c, FCAH, 0xffffu) R(0x0030, FCT, 0xffffu) R(0x0038, VET, 0xffffu) R(0x00c4, ITR, 0xffffu)                    \
    R(0x0100, RCTL, 0x07ffffffu) R(0x0170, FCTTV, 0xffffu) R(0x0178, TXCW, 0xffffffffu) R(0x0400, TCTL, 0x03ffffffu)    \
    R(0x0410, TIPG, 0x3fffffffu) R(0x0458, AIT, 0xffffu) R(0x0e00, LEDCTL, 0xffffffffu) R(0x1000, PBA, 0xffffu)         \
    R(0x2160, FCRTL, 0x8000fff8u) R(0x2168, FCRTH, 0xfff8u) R(0x2800, RDBAL, 0xfffffff0u) R(0x2804, RDBAH, 0xffffffffu) \
    R(0x2808, RDLEN, 0x000fff80u) R(0x2810, RDH, 0xffffu) R(0x2818, RDT, 0xffffu) R(0x2820, RDTR, 0xffffu)              \
    R(0x2828, RXDCTL, 0xffffffffu) R(0x282c, RADV, 0xffffu) R(0x2c00, RSRPD, 0xfffu) R(0x3000, TXDMAC, 1u)              \
    R(0x3800, TDBAL, 0xfffffff0u) R(0x3804, TDBAH, 0xffffffffu) R(0x3808, TDLEN, 0x000fff80u) R(0x3810, TDH, 0xffffu)   \
    R(0x3818, TDT, 0xffffu) R(0x3820, TIDV, 0xffffu) R(0x3828, TXDCTL, 0xffffffffu) R(0x382c, TADV, 0xffffu)            \
    R(0x3830, TSPMT, 0xffffffffu) R(0x5000, RXCSUM, 0x7ffu) R(0x5800, WUC, 0xfu) R(0x5808, WUFC, 0x000f00ffu)           \
    R(0x5810, WUS, 0x000f00ffu) R(0x5820, MANC, 0xffffffffu)

enum {
#define E1000_INDEX(offset, name, mask) R_##name,
    E1000_REGISTERS(E1000_INDEX)
#undef E1000_INDEX
        E1000_REGS
};

enum { ICR_TXDW = 0x01, ICR_TXQE = 0x02, ICR_LSC = 0x04, ICR_RXDMT0 = 0x10, ICR_RXO = 0x40, ICR_RXT0 = 0x80, ICR_BITS = 0x1ffff };
enum { CTRL_SLU = 0x40, CTRL_VME = 0x40000000, RCTL_EN = 2, TCTL_EN = 2 };

enum { STAT_MPC = 0x10, STAT_GPRC = 0x74, STAT_BPRC = 0x78, STAT_MPRC = 0x7c, STAT_GPTC = 0x80, STAT_GORCL = 0x88,
       STAT_GOTCL = 0x90, STAT_TORL = 0xc0, STAT_TOTL = 0xc8, STAT_TPR = 0xd0, STAT_TPT = 0xd4 }; /* from 4000h */

struct e1000_context { /* the last context descriptor */
    uint8_t ipcss, ipcso, tucss, tucso, hdrlen, tucmd;
    uint16_t ipcse, tucse, mss;
    uint32_t paylen;
};

struct e1000 { /* board lock */
    struct fvm_device dev;
    struct fvm_pci_function pci;
    struct fvm_net *net;
    uint8_t mac[6];
    bool quiesced, announce_due, tx_posted, ready_posted;
    uint32_t reg[E1000_REGS];
    uint32_t mta[E1000_MTA], ra[E1000_RA], vfta[E1000_VFTA], stat[E1000_STATS];
    uint32_t icr, ims, mdic, eerd, io_address;
    uint64_t next_interrupt_ns; /* ITR */
    struct fvm_timer *timer;
    uint16_t eeprom[E1000_EEPROM_WORDS], phy[E1000_PHY_REGS];
    /* the EEPROM's serial interface */
    uint32_t eecd;
    uint16_t wire_in;   /* bits shifted in since chip select */
    uint8_t wire_count; /* how many, at most 9 */
    uint16_t wire_out;  /* word being shifted out */
    uint8_t wire_left;  /* bits of it left, 0: none */
    /* transmission */
    struct e1000_context context;
    uint8_t tx_options; /* POPTS of the frame's first data descriptor */
    bool tx_tse, tx_extended, tx_drop;
    uint32_t tx_len;
    uint8_t frame[E1000_FRAME_MAX];
    uint8_t segment[E1000_FRAME_MAX];
    uint8_t rx_frame[FVM_NET_FRAME_MAX + 8];
};

/* e1000.c */
void fvm_e1000_cause(struct e1000 *e, uint32_t bits);
void fvm_e1000_interrupts(struct e1000 *e);
void fvm_e1000_count(struct e1000 *e, unsigned stat, uint64_t n);
/* e1000_tx.c: run the transmit ring soon, or now for a while */
void fvm_e1000_tx_kick(struct e1000 *e);
void fvm_e1000_tx_cancel(struct e1000 *e);
/* e1000_rx.c: fvm_net_deliver */
bool fvm_e1000_deliver(void *ctx, const uint8_t *frame, size_t len);
/* e1000_phy.c */
void fvm_e1000_eeprom_fill(struct e1000 *e);
uint32_t fvm_e1000_eecd_read(const struct e1000 *e);
void fvm_e1000_eecd_write(struct e1000 *e, uint32_t value);
void fvm_e1000_eerd_write(struct e1000 *e, uint32_t value);
void fvm_e1000_mdic_write(struct e1000 *e, uint32_t value);
void fvm_e1000_phy_reset(struct e1000 *e);
/* e1000_state.c */
int fvm_e1000_save(struct fvm_device *dev, uint8_t **ret_buf, size_t *ret_len);
int fvm_e1000_check(struct fvm_device *dev, const uint8_t *buf, size_t len, struct fvm_err *err);
void fvm_e1000_restore(struct fvm_device *dev, const uint8_t *buf, size_t len);

#endif
