/*
 * e1000_state.c - save, check and restore of the network card: its registers, what the thin wires hold, and the frame that is
 * half read from the ring. Frames on their way to the guest stay with the back end, whose state comes along.
 */
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "vmm/devices/e1000_impl.h"
#include "vmm/devices/pack.h"

static const uint32_t masks[E1000_REGS] = {
#define E1000_MASK(offset, name, mask) mask,
    E1000_REGISTERS(E1000_MASK)
#undef E1000_MASK
};

int fvm_e1000_save(struct fvm_device *dev, uint8_t **ret_buf, size_t *ret_len)
{
    struct e1000 *e = (struct e1000 *)dev;
    const struct e1000_context *c = &e->context;
    Fvm__E1000State s = FVM__E1000_STATE__INIT;
    Fvm__PciFunctionState pci;
    uint32_t phy[E1000_PHY_REGS];
    int r = fvm_net_save(e->net, &s.backend.data, &s.backend.len);

    if (r < 0)
        return r;
    r = fvm_pci_function_save(&e->pci, &pci);
    if (r) {
        free(s.backend.data);
        return r;
    }
    for (unsigned i = 0; i < E1000_PHY_REGS; i++)
        phy[i] = e->phy[i];
    s.pci = &pci;
    s.mac = (ProtobufCBinaryData){6, e->mac};
    s.n_registers = E1000_REGS, s.registers = e->reg;
    s.n_multicast = E1000_MTA, s.multicast = e->mta;
    s.n_addresses = E1000_RA, s.addresses = e->ra;
    s.n_vlans = E1000_VFTA, s.vlans = e->vfta;
    s.n_statistics = E1000_STATS, s.statistics = e->stat;
    s.n_phy = E1000_PHY_REGS, s.phy = phy;
    s.icr = e->icr;
    s.ims = e->ims;
    s.mdic = e->mdic;
    s.eerd = e->eerd;
    s.io_address = e->io_address;
    s.next_interrupt_ns = e->next_interrupt_ns;
    s.eecd = e->eecd;
    s.wire_in = e->wire_in;
    s.wire_count = e->wire_count;
    s.wire_out = e->wire_out;
    s.wire_left = e->wire_left;
    s.context_low = c->ipcss | (uint64_t)c->ipcso << 8 | (uint64_t)c->ipcse << 16 | (uint64_t)c->tucss << 32 |
                    (uint64_t)c->tucso << 40 | (uint64_t)c->tucse << 48;
    s.context_high = c->paylen | (uint64_t)c->tucmd << 24 | (uint64_t)c->hdrlen << 40 | (uint64_t)c->mss << 48;
    s.tx_options = e->tx_options;
    s.tx_segment = e->tx_tse;
    s.tx_extended = e->tx_extended;
    s.tx_drop = e->tx_drop;
    s.tx_frame = (ProtobufCBinaryData){e->tx_len, e->frame};
    r = fvm_device_pack(&s.base, ret_buf, ret_len);
    fvm_pci_function_save_free(&pci);
    free(s.backend.data);
    return r;
}

static const char *wrong(const Fvm__E1000State *s)
{
    if (s->mac.len != 6 || (s->mac.data[0] & 1))
        return "its MAC address is not one of a station";
    if (s->n_registers != E1000_REGS || s->n_multicast != E1000_MTA || s->n_addresses != E1000_RA ||
        s->n_vlans != E1000_VFTA || s->n_statistics != E1000_STATS || s->n_phy != E1000_PHY_REGS)
        return "number of registers";
    for (unsigned i = 0; i < E1000_REGS; i++)
        if (s->registers[i] & ~masks[i])
            return "register bits that do not exist";
    for (unsigned i = 0; i < E1000_PHY_REGS; i++)
        if (s->phy[i] > 0xffff)
            return "PHY registers";
    if ((s->icr | s->ims) & ~(uint32_t)ICR_BITS)
        return "interrupt causes";
    if (s->io_address & ~0x1ffffu)
        return "I/O address";
    if ((s->eecd & ~0x77u) || s->wire_in > 0x1ff || s->wire_count > 9 || s->wire_out > 0xffff || s->wire_left > 17 ||
        (s->wire_left && s->wire_count != 9))
        return "EEPROM interface";
    if (s->context_high & 0x000000ff00f00000ull)
        return "context descriptor";
    if (s->tx_options > 3 || s->tx_frame.len > E1000_FRAME_MAX - 4)
        return "transmit state";
    return NULL;
}

int fvm_e1000_check(struct fvm_device *dev, const uint8_t *buf, size_t len, struct fvm_err *err)
{
    struct e1000 *e = (struct e1000 *)dev;
    Fvm__E1000State *s = (void *)fvm_device_unpack(&fvm__e1000_state__descriptor, dev, buf, len, err);
    int r;

    if (!s)
        return FVM_EBADIMAGE;
    r = fvm_pci_function_check(&e->pci, s->pci, err);
    if (!r && wrong(s))
        r = fvm_device_refuse(dev, err, wrong(s));
    fvm__e1000_state__free_unpacked(s, NULL);
    return r;
}

static void restore_registers(struct e1000 *e, const Fvm__E1000State *s)
{
    memcpy(e->mac, s->mac.data, 6);
    memcpy(e->reg, s->registers, sizeof(e->reg));
    memcpy(e->mta, s->multicast, sizeof(e->mta));
    memcpy(e->ra, s->addresses, sizeof(e->ra));
    memcpy(e->vfta, s->vlans, sizeof(e->vfta));
    memcpy(e->stat, s->statistics, sizeof(e->stat));
    for (unsigned i = 0; i < E1000_PHY_REGS; i++)
        e->phy[i] = (uint16_t)s->phy[i];
    e->icr = s->icr;
    e->ims = s->ims;
    e->mdic = s->mdic;
    e->eerd = s->eerd;
    e->io_address = s->io_address;
    e->next_interrupt_ns = s->next_interrupt_ns;
    e->eecd = s->eecd;
    e->wire_in = (uint16_t)s->wire_in;
    e->wire_count = (uint8_t)s->wire_count;
    e->wire_out = (uint16_t)s->wire_out;
    e->wire_left = (uint8_t)s->wire_left;
    fvm_e1000_eeprom_fill(e);
}

static void restore_transmit(struct e1000 *e, const Fvm__E1000State *s)
{
    e->context = (struct e1000_context){
        .ipcss = (uint8_t)s->context_low,
        .ipcso = (uint8_t)(s->context_low >> 8),
        .ipcse = (uint16_t)(s->context_low >> 16),
        .tucss = (uint8_t)(s->context_low >> 32),
        .tucso = (uint8_t)(s->context_low >> 40),
        .tucse = (uint16_t)(s->context_low >> 48),
        .paylen = (uint32_t)s->context_high & 0xfffff,
        .tucmd = (uint8_t)(s->context_high >> 24),
        .hdrlen = (uint8_t)(s->context_high >> 40),
        .mss = (uint16_t)(s->context_high >> 48),
    };
    e->tx_options = (uint8_t)s->tx_options;
    e->tx_tse = s->tx_segment;
    e->tx_extended = s->tx_extended;
    e->tx_drop = s->tx_drop;
    e->tx_len = (uint32_t)s->tx_frame.len;
    if (e->tx_len)
        memcpy(e->frame, s->tx_frame.data, e->tx_len);
}

void fvm_e1000_restore(struct fvm_device *dev, const uint8_t *buf, size_t len)
{
    struct e1000 *e = (struct e1000 *)dev;
    Fvm__E1000State *s = fvm__e1000_state__unpack(NULL, len, buf);
    struct fvm_err err = {0};

    fvm_assert(s);
    e->quiesced = true; /* until resume */
    fvm_e1000_tx_cancel(e);
    restore_registers(e, s);
    restore_transmit(e, s);
    fvm_pci_function_restore(&e->pci, s->pci);
    fvm_e1000_interrupts(e);
    e->announce_due = true;
    if (fvm_net_restore(e->net, s->backend.data, s->backend.len, &err) < 0)
        fvm_log(WARN, "e1000.backend_state", "device=%s err=\"%s\"", dev->instance, err.text);
    fvm__e1000_state__free_unpacked(s, NULL);
}
