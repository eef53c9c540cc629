/* support_virtio.c - see support_virtio.h. Any mistake of the driver itself ends the test by CUnit's fatal assertions. */
#include "tests/device/support_virtio.h"

#include <CUnit/Basic.h>
#include <stdlib.h>
#include <string.h>

#define SECOND 1000000000ull

enum { DFSELECT = 0, DF = 4, GFSELECT = 8, GF = 12, MSIX = 16, STATUS = 20, Q_SELECT = 22, Q_SIZE = 24, Q_MSIX = 26, Q_ENABLE = 28,
       Q_NOTIFY_OFF = 30, Q_DESC = 32, Q_AVAIL = 40, Q_USED = 48 };

static void on_msi(void *ctx, uint64_t addr, uint32_t data)
{
    struct vt *vt = ctx;
    if (addr == 0xfee00000)
        vt->msi[data & 255]++;
}

static void on_line(void *ctx, unsigned line, bool level)
{
    ((struct vt *)ctx)->line[line] = level;
}

void vt_open(struct vt *vt)
{
    memset(vt, 0, sizeof(*vt));
    CU_ASSERT_FATAL(fvm_loop_create(&vt->loop) == 0 && fvm_clock_create(vt->loop, 1000000, &vt->clock) == 0);
    CU_ASSERT_FATAL(fvm_bus_create(&vt->bus) == 0 && fvm_irq_create(&vt->irq) == 0);
    CU_ASSERT_FATAL(fvm_ram_create(VT_RAM, &vt->ram, NULL) == 0);
    fvm_loop_set_guard(vt->loop, fvm_bus_lock, fvm_bus_unlock, vt->bus);
    fvm_irq_set_msi(vt->irq, on_msi, vt);
    fvm_irq_add_sink(vt->irq, on_line, vt);
    vt->board = (struct fvm_board){.bus = vt->bus, .irq = vt->irq, .ram = vt->ram, .clock = vt->clock, .loop = vt->loop, .cpu_count = 1};
    CU_ASSERT_FATAL(fvm_pci_host_create(&vt->board, &vt->bridge) == 0);
    vt->host = fvm_pci_host_of(vt->bridge);
}

void vt_close(struct vt *vt)
{
    vt->bridge->ops->destroy(vt->bridge);
    fvm_ram_destroy(&vt->ram);
    fvm_irq_destroy(&vt->irq);
    fvm_clock_destroy(&vt->clock);
    fvm_loop_destroy(&vt->loop);
    fvm_bus_destroy(&vt->bus);
}

uint32_t vt_pci_read(struct vt *vt, uint8_t slot, unsigned offset, unsigned size)
{
    fvm_bus_write(vt->bus, FVM_BUS_PIO, 0xcf8, 4, 0x80000000u | (uint32_t)slot << 11 | (offset & 0xfc));
    return (uint32_t)fvm_bus_read(vt->bus, FVM_BUS_PIO, 0xcfc + (offset & 3), size);
}

void vt_pci_write(struct vt *vt, uint8_t slot, unsigned offset, unsigned size, uint32_t value)
{
    fvm_bus_write(vt->bus, FVM_BUS_PIO, 0xcf8, 4, 0x80000000u | (uint32_t)slot << 11 | (offset & 0xfc));
    fvm_bus_write(vt->bus, FVM_BUS_PIO, 0xcfc + (offset & 3), size, value);
}

static uint64_t bar(struct vt *vt, uint8_t slot, unsigned n)
{
    return vt_pci_read(vt, slot, 0x10 + 4 * n, 4) & ~15u;
}

static void read_capability(struct vt_dev *d, unsigned cap)
{
    struct vt *vt = d->vt;
    if (vt_pci_read(vt, d->slot, cap, 1) == 0x11) {
        d->msix_cap = cap;
        d->msix_table = bar(vt, d->slot, vt_pci_read(vt, d->slot, cap + 4, 4) & 7);
    }
    if (vt_pci_read(vt, d->slot, cap, 1) != 0x09)
        return;
    unsigned type = vt_pci_read(vt, d->slot, cap + 3, 1);
    uint64_t at = bar(vt, d->slot, vt_pci_read(vt, d->slot, cap + 4, 1)) + vt_pci_read(vt, d->slot, cap + 8, 4);
    if (type == 1)
        d->common = at;
    else if (type == 2) {
        d->notify = at;
        CU_ASSERT_EQUAL(vt_pci_read(vt, d->slot, cap + 16, 4), 4);
    } else if (type == 3)
        d->isr = at;
    else if (type == 4)
        d->config = at;
    else if (type == 5)
        d->window = cap;
}

void vt_attach(struct vt *vt, struct vt_dev *d, struct fvm_device *dev, uint8_t slot)
{
    *d = (struct vt_dev){.vt = vt, .dev = dev, .slot = slot};
    dev->ops->reset(dev);
    fvm_pci_host_assign(vt->host);
    CU_ASSERT_EQUAL(vt_pci_read(vt, slot, 0, 2), 0x1af4);
    unsigned cap = vt_pci_read(vt, slot, 0x34, 1);
    for (unsigned guard = 0; cap && guard < 32; guard++) {
        read_capability(d, cap);
        cap = vt_pci_read(vt, slot, cap + 1, 1);
    }
    CU_ASSERT_FATAL(d->common && d->notify && d->isr && d->config && d->window && d->msix_cap);
}

uint64_t vt_read(struct vt_dev *d, uint64_t addr, unsigned size)
{
    return fvm_bus_read(d->vt->bus, FVM_BUS_MMIO, addr, size);
}

void vt_write(struct vt_dev *d, uint64_t addr, unsigned size, uint64_t value)
{
    fvm_bus_write(d->vt->bus, FVM_BUS_MMIO, addr, size, value);
}

uint8_t vt_status(struct vt_dev *d)
{
    return (uint8_t)vt_read(d, d->common + STATUS, 1);
}

uint64_t vt_offered(struct vt_dev *d)
{
    vt_write(d, d->common + DFSELECT, 4, 0);
    uint64_t low = vt_read(d, d->common + DF, 4);
    vt_write(d, d->common + DFSELECT, 4, 1);
    return low | vt_read(d, d->common + DF, 4) << 32;
}

bool vt_negotiate(struct vt_dev *d, uint64_t features)
{
    vt_write(d, d->common + STATUS, 1, 0);
    vt_write(d, d->common + STATUS, 1, 1);
    vt_write(d, d->common + STATUS, 1, 3);
    d->features = features;
    for (uint32_t i = 0; i < 2; i++) {
        vt_write(d, d->common + GFSELECT, 4, i);
        vt_write(d, d->common + GF, 4, (uint32_t)(features >> (32 * i)));
    }
    vt_write(d, d->common + STATUS, 1, 11);
    return vt_status(d) & 8;
}

void vt_msix(struct vt_dev *d, unsigned vectors, uint8_t base)
{
    for (unsigned v = 0; v < vectors; v++) {
        vt_write(d, d->msix_table + 16 * v, 4, 0xfee00000);
        vt_write(d, d->msix_table + 16 * v + 4, 4, 0);
        vt_write(d, d->msix_table + 16 * v + 8, 4, base + v);
        vt_write(d, d->msix_table + 16 * v + 12, 4, 0);
    }
    vt_pci_write(d->vt, d->slot, d->msix_cap + 2, 2, 0x8000);
    vt_write(d, d->common + MSIX, 2, 0);
    CU_ASSERT_EQUAL(vt_read(d, d->common + MSIX, 2), 0);
}

void vt_queue_setup(struct vt_dev *d, struct vt_queue *q, unsigned index, uint16_t size, uint64_t gpa)
{
    *q = (struct vt_queue){.d = d, .index = index, .size = size, .desc = gpa, .avail = gpa + 0x2000, .used = gpa + 0x4000, .indirect = gpa + 0x6000};
    memset(vt_mem(d->vt, gpa), 0, 0x6000);
    vt_write(d, d->common + Q_SELECT, 2, index);
    vt_write(d, d->common + Q_SIZE, 2, size);
    vt_write(d, d->common + Q_MSIX, 2, index + 1);
    vt_write(d, d->common + Q_DESC, 8, q->desc);
    vt_write(d, d->common + Q_AVAIL, 4, q->avail); /* by halves, as some drivers do */
    vt_write(d, d->common + Q_AVAIL + 4, 4, 0);
    vt_write(d, d->common + Q_USED, 8, q->used);
    vt_write(d, d->common + Q_ENABLE, 2, 1);
}

void vt_driver_ok(struct vt_dev *d)
{
    vt_write(d, d->common + STATUS, 1, 15);
}

void *vt_mem(struct vt *vt, uint64_t gpa)
{
    return vt->ram->base + gpa;
}

static void put_desc(struct vt *vt, uint64_t at, uint64_t gpa, uint32_t len, uint16_t flags, uint16_t next)
{
    uint8_t *p = vt_mem(vt, at);
    memcpy(p, &gpa, 8);
    memcpy(p + 8, &len, 4);
    memcpy(p + 12, &flags, 2);
    memcpy(p + 14, &next, 2);
}

void vt_set_desc(struct vt_queue *q, unsigned n, uint64_t gpa, uint32_t len, uint16_t flags, uint16_t next)
{
    put_desc(q->d->vt, q->desc + 16 * n, gpa, len, flags, next);
}

void vt_offer(struct vt_queue *q, uint16_t head)
{
    uint8_t *avail = vt_mem(q->d->vt, q->avail);
    memcpy(avail + 4 + 2 * (q->avail_idx % q->size), &head, 2);
    q->avail_idx++;
    memcpy(avail + 2, &q->avail_idx, 2);
}

uint16_t vt_post(struct vt_queue *q, const struct vt_buf *bufs, unsigned count)
{
    uint16_t head = q->next_desc;
    bool indirect = (q->d->features >> VT_F_INDIRECT & 1) && count > 1;
    uint64_t table = q->indirect + 128 * head;
    for (unsigned i = 0; i < count; i++) {
        uint16_t flags = (uint16_t)((i + 1 < count ? 1 : 0) | (bufs[i].write ? 2 : 0));
        uint16_t next = (uint16_t)(indirect ? i + 1 : (head + i + 1) % q->size);
        uint64_t at = indirect ? table + 16 * i : q->desc + 16 * ((head + i) % q->size);
        put_desc(q->d->vt, at, bufs[i].gpa, bufs[i].len, flags, next);
    }
    if (indirect)
        vt_set_desc(q, head, table, 16 * count, 4, 0);
    q->next_desc = (uint16_t)((head + (indirect ? 1 : count)) % q->size);
    vt_offer(q, head);
    return head;
}

void vt_kick(struct vt_queue *q)
{
    vt_write(q->d, q->d->notify + 4 * q->index, 2, q->index);
}

bool vt_used(struct vt_queue *q, uint32_t *ret_head, uint32_t *ret_len)
{
    uint8_t *used = vt_mem(q->d->vt, q->used);
    uint16_t idx;
    memcpy(&idx, used + 2, 2);
    if (idx == q->used_idx)
        return false;
    memcpy(ret_head, used + 4 + 8 * (q->used_idx % q->size), 4);
    memcpy(ret_len, used + 8 + 8 * (q->used_idx % q->size), 4);
    q->used_idx++;
    /* event index: interrupt me at the next */
    memcpy((uint8_t *)vt_mem(q->d->vt, q->avail) + 4 + 2 * q->size, &q->used_idx, 2);
    return true;
}

bool vt_wait(struct vt_queue *q, uint32_t *ret_head, uint32_t *ret_len)
{
    uint64_t end = fvm_now_ns() + 10 * SECOND;
    while (!vt_used(q, ret_head, ret_len)) {
        if (fvm_now_ns() > end)
            return false;
        fvm_loop_turn(q->d->vt->loop, SECOND / 20);
    }
    return true;
}

void vt_settle(struct vt *vt)
{
    for (int quiet = 0; quiet < 3;)
        quiet = fvm_loop_turn(vt->loop, SECOND / 200) == 1 ? 0 : quiet + 1;
}

uint8_t *vt_save(struct fvm_device *dev, size_t *ret_len)
{
    uint8_t *buf = NULL;
    dev->ops->quiesce(dev);
    CU_ASSERT_EQUAL_FATAL(dev->ops->save(dev, &buf, ret_len), 0);
    return buf;
}

bool vt_restore(struct fvm_device *dev, const uint8_t *buf, size_t len)
{
    struct fvm_err err = {0};
    if (dev->ops->check(dev, buf, len, &err) < 0) {
        CU_ASSERT_TRUE(err.text[0]);
        return false;
    }
    dev->ops->restore(dev, buf, len);
    return true;
}
