/*
 * virtio_pci.c - the modern PCI transport (virtio 1.2, section 4.1): capabilities, common configuration, notification, interrupts.
 *
 * Feature bits, status and queue addresses come from a hostile guest: features are accepted only as a subset of what is offered,
 * queues only where their rings lie in RAM; a queue in use cannot be changed. Invariant: class->run is called only while the
 * device runs (DRIVER_OK, not broken, bus master) and is not quiesced. Knows nothing of what the queues carry.
 */
#include "vmm/devices/virtio/virtio_pci.h"

#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>
#include <errno.h>

#include "base/log.h"
#include "vmm/devices/pack.h"

#define BROKEN_LOGGED 16

enum { BAR_MSIX = 1, BAR_REGS = 4 };
enum { REGS_COMMON = 0x0000, REGS_ISR = 0x1000, REGS_DEVICE = 0x2000, REGS_NOTIFY = 0x3000, REGS_PART = 0x1000, REGS_END = 0x4000 };
enum { CAP_COMMON = 1, CAP_NOTIFY = 2, CAP_ISR = 3, CAP_DEVICE = 4, CAP_PCI = 5 };
enum { ISR_QUEUE = 1, ISR_CONFIG = 2 };

enum { /* struct virtio_pci_common_cfg */
    COMMON_DFSELECT = 0x00,
    COMMON_DF = 0x04,
    COMMON_GFSELECT = 0x08,
    COMMON_GF = 0x0c,
    COMMON_MSIX = 0x10,
    COMMON_NUMQ = 0x12,
    COMMON_STATUS = 0x14,
    COMMON_GENERATION = 0x15,
    COMMON_Q_SELECT = 0x16,
    COMMON_Q_SIZE = 0x18,
    COMMON_Q_MSIX = 0x1a,
    COMMON_Q_ENABLE = 0x1c,
    COMMON_Q_NOTIFY_OFF = 0x1e,
    COMMON_Q_DESC = 0x20,
    COMMON_Q_AVAIL = 0x28,
    COMMON_Q_USED = 0x30,
    COMMON_BYTES = 0x38,
};

bool fvm_virtio_running(const struct fvm_virtio *v)
{
    return (v->status & FVM_VIRTIO_S_DRIVER_OK) && !(v->status & (FVM_VIRTIO_S_NEEDS_RESET | FVM_VIRTIO_S_FAILED)) &&
           fvm_pci_bus_master(&v->pci);
}

/* --- interrupts --- */

static void interrupt(struct fvm_virtio *v, uint16_t vector, uint8_t isr)
{
    if (fvm_pci_msix_enabled(&v->pci)) {
        if (vector != FVM_VIRTIO_NO_VECTOR)
            fvm_pci_msix_notify(&v->pci, vector);
        return;
    }
    v->isr |= isr;
    fvm_pci_intx_set(&v->pci, true);
}

void fvm_virtio_queue_interrupt(struct fvm_virtio *v, const struct fvm_virtqueue *q)
{
    interrupt(v, q->msix_vector, ISR_QUEUE);
}

void fvm_virtio_config_changed(struct fvm_virtio *v)
{
    v->config_generation++;
    if (v->status & FVM_VIRTIO_S_DRIVER_OK)
        interrupt(v, v->config_msix_vector, ISR_CONFIG);
}

void fvm_virtio_broken(struct fvm_virtio *v, unsigned queue, const char *why)
{
    if (v->status & FVM_VIRTIO_S_NEEDS_RESET)
        return;
    if (v->broken_count++ < BROKEN_LOGGED) /* a guest must not fill the host's log */
        fvm_log(WARN, "virtio.broken", "device=%s queue=%u why=\"%s\"", v->dev.instance, queue, why);
    v->status |= FVM_VIRTIO_S_NEEDS_RESET;
    fvm_virtio_config_changed(v);
}

/* --- running queues --- */

static void run_queue(struct fvm_virtio *v, unsigned n)
{
    if (fvm_virtio_open(v) && v->queue[n].enabled)
        v->class->run(v, n);
}

static void on_defer(void *ctx, int fd, unsigned revents)
{
    struct fvm_virtio *v = ctx;
    uint64_t count;
    (void)revents;
    ssize_t r = read(fd, &count, sizeof(count));
    (void)r;
    unsigned queues = v->deferred;
    v->deferred = 0;
    for (unsigned n = 0; n < v->queue_count; n++)
        if (queues & (1u << n))
            run_queue(v, n);
}

void fvm_virtio_defer(struct fvm_virtio *v, unsigned queue)
{
    bool ring = !v->deferred;
    v->deferred |= 1u << queue;
    if (ring) {
        uint64_t one = 1;
        ssize_t r = write(v->defer_event, &one, sizeof(one));
        fvm_assert(r == sizeof(one) || errno == EAGAIN);
    }
}

static void run_all(struct fvm_virtio *v)
{
    for (unsigned n = 0; n < v->queue_count; n++)
        fvm_virtio_defer(v, n);
}

static void notify(struct fvm_virtio *v, uint64_t n)
{
    if (n >= v->queue_count)
        return;
    if (v->class->inline_queues & (1u << n))
        run_queue(v, (unsigned)n);
    else
        fvm_virtio_defer(v, (unsigned)n);
}

/* --- reset and status --- */

static void driver_reset(struct fvm_virtio *v)
{
    if (v->class->reset)
        v->class->reset(v);
    for (unsigned n = 0; n < v->queue_count; n++)
        fvm_virtqueue_reset(&v->queue[n]);
    v->features = 0;
    v->status = v->isr = 0;
    v->config_msix_vector = FVM_VIRTIO_NO_VECTOR;
    v->queue_select = 0;
    v->device_feature_select = v->driver_feature_select = 0;
    v->deferred = 0;
    fvm_pci_intx_set(&v->pci, false);
}

static void write_status(struct fvm_virtio *v, uint8_t value)
{
    if (value == 0) {
        driver_reset(v);
        return;
    }
    uint8_t set = value & (uint8_t)~(v->status | FVM_VIRTIO_S_NEEDS_RESET);
    if ((set & FVM_VIRTIO_S_FEATURES_OK) &&
        ((v->features & ~v->offered) || !fvm_virtio_has(v, FVM_VIRTIO_F_VERSION_1)))
        set &= (uint8_t)~FVM_VIRTIO_S_FEATURES_OK;
    if ((set & FVM_VIRTIO_S_DRIVER_OK) && !((v->status | set) & FVM_VIRTIO_S_FEATURES_OK)) {
        set &= (uint8_t)~FVM_VIRTIO_S_DRIVER_OK;
        fvm_virtio_broken(v, 0, "DRIVER_OK without FEATURES_OK");
    }
    v->status |= set;
    if (set & FVM_VIRTIO_S_DRIVER_OK)
        run_all(v); /* the driver may have filled rings before */
}

/* --- common configuration --- */

static struct fvm_virtqueue *selected(struct fvm_virtio *v)
{
    return v->queue_select < v->queue_count ? &v->queue[v->queue_select] : NULL;
}

static void put(uint8_t *regs, unsigned offset, uint64_t value, unsigned size)
{
    memcpy(regs + offset, &value, size);
}

static void common_image(struct fvm_virtio *v, uint8_t regs[COMMON_BYTES])
{
    memset(regs, 0, COMMON_BYTES);
    put(regs, COMMON_DFSELECT, v->device_feature_select, 4);
    if (v->device_feature_select < 2)
        put(regs, COMMON_DF, v->offered >> (32 * v->device_feature_select), 4);
    put(regs, COMMON_GFSELECT, v->driver_feature_select, 4);
    if (v->driver_feature_select < 2)
        put(regs, COMMON_GF, v->features >> (32 * v->driver_feature_select), 4);
    put(regs, COMMON_MSIX, v->config_msix_vector, 2);
    put(regs, COMMON_NUMQ, v->queue_count, 2);
    put(regs, COMMON_STATUS, v->status, 1);
    put(regs, COMMON_GENERATION, v->config_generation, 1);
    put(regs, COMMON_Q_SELECT, v->queue_select, 2);
    const struct fvm_virtqueue *q = selected(v);
    if (!q)
        return; /* size 0: no such queue */
    put(regs, COMMON_Q_SIZE, q->size, 2);
    put(regs, COMMON_Q_MSIX, q->msix_vector, 2);
    put(regs, COMMON_Q_ENABLE, q->enabled, 2);
    put(regs, COMMON_Q_NOTIFY_OFF, q->index, 2);
    put(regs, COMMON_Q_DESC, q->desc_gpa, 8);
    put(regs, COMMON_Q_AVAIL, q->avail_gpa, 8);
    put(regs, COMMON_Q_USED, q->used_gpa, 8);
}

static uint16_t vector_or_none(const struct fvm_virtio *v, uint64_t vector)
{
    return vector < v->pci.msix_count ? (uint16_t)vector : FVM_VIRTIO_NO_VECTOR;
}

static void write_features(struct fvm_virtio *v, uint32_t value)
{
    if ((v->status & FVM_VIRTIO_S_FEATURES_OK) || v->driver_feature_select > 1)
        return;
    unsigned shift = 32 * v->driver_feature_select;
    v->features = (v->features & ~(0xffffffffull << shift)) | (uint64_t)value << shift;
}

/* A 64-bit queue address, written whole or by halves. */
static void write_address(uint64_t *addr, unsigned offset, unsigned size, uint64_t value)
{
    unsigned shift = 8 * (offset & 7);
    if (size == 8 && shift == 0)
        *addr = value;
    else if (size == 4 && (shift == 0 || shift == 32))
        *addr = (*addr & ~(0xffffffffull << shift)) | (value & 0xffffffff) << shift;
}

static void write_queue(struct fvm_virtio *v, unsigned offset, unsigned size, uint64_t value)
{
    struct fvm_virtqueue *q = selected(v);
    if (!q)
        return;
    if (offset == COMMON_Q_MSIX && size == 2) {
        q->msix_vector = vector_or_none(v, value);
        return;
    }
    if (q->enabled) /* only a reset takes a queue out of use */
        return;
    if (offset == COMMON_Q_SIZE && size == 2)
        q->size = (uint16_t)value;
    else if (offset == COMMON_Q_ENABLE && size == 2) {
        if (value == 1 && !fvm_virtqueue_enable(q))
            fvm_virtio_broken(v, q->index, "queue enabled with unacceptable rings");
    } else if (offset >= COMMON_Q_USED)
        write_address(&q->used_gpa, offset, size, value);
    else if (offset >= COMMON_Q_AVAIL)
        write_address(&q->avail_gpa, offset, size, value);
    else if (offset >= COMMON_Q_DESC)
        write_address(&q->desc_gpa, offset, size, value);
}

static void common_write(struct fvm_virtio *v, unsigned offset, unsigned size, uint64_t value)
{
    if (offset == COMMON_DFSELECT && size == 4)
        v->device_feature_select = (uint32_t)value;
    else if (offset == COMMON_GFSELECT && size == 4)
        v->driver_feature_select = (uint32_t)value;
    else if (offset == COMMON_GF && size == 4)
        write_features(v, (uint32_t)value);
    else if (offset == COMMON_MSIX && size == 2)
        v->config_msix_vector = vector_or_none(v, value);
    else if (offset == COMMON_STATUS && size == 1)
        write_status(v, (uint8_t)value);
    else if (offset == COMMON_Q_SELECT && size == 2)
        v->queue_select = (uint16_t)value;
    else if (offset >= COMMON_Q_SIZE && offset + size <= COMMON_BYTES)
        write_queue(v, offset, size, value);
}

/* --- BAR 4 --- */

static uint64_t take(const uint8_t *image, unsigned len, uint64_t offset, unsigned size)
{
    uint64_t value = 0;
    if (offset < len && size <= len - offset)
        memcpy(&value, image + offset, size);
    return value;
}

static uint64_t regs_read(void *ctx, uint64_t offset, unsigned size)
{
    struct fvm_virtio *v = ctx;
    uint64_t part = offset & ~(uint64_t)(REGS_PART - 1), at = offset & (REGS_PART - 1);
    uint8_t image[FVM_VIRTIO_CONFIG_MAX] = {0};
    _Static_assert((int)COMMON_BYTES <= (int)FVM_VIRTIO_CONFIG_MAX, "one buffer for both");
    switch (part) {
    case REGS_COMMON:
        common_image(v, image);
        return take(image, COMMON_BYTES, at, size);
    case REGS_ISR:
        if (at == 0) {
            uint8_t isr = v->isr;
            v->isr = 0;
            fvm_pci_intx_set(&v->pci, false);
            return isr;
        }
        return 0;
    case REGS_DEVICE:
        v->class->config_get(v, image);
        return take(image, sizeof(image), at, size);
    default:
        return 0;
    }
}

static void regs_write(void *ctx, uint64_t offset, unsigned size, uint64_t value)
{
    struct fvm_virtio *v = ctx;
    uint64_t part = offset & ~(uint64_t)(REGS_PART - 1), at = offset & (REGS_PART - 1);
    if (part == REGS_COMMON && at < COMMON_BYTES)
        common_write(v, (unsigned)at, size, value);
    else if (part == REGS_NOTIFY)
        notify(v, at / 4);
    else if (part == REGS_DEVICE && v->class->config_set && at < FVM_VIRTIO_CONFIG_MAX && size <= 4)
        v->class->config_set(v, (unsigned)at, size, (uint32_t)value);
}

static const struct fvm_bus_ops regs_ops = {.read = regs_read, .write = regs_write};

/* --- the window in config space (VIRTIO_PCI_CAP_PCI_CFG), for firmware that cannot reach the BAR --- */

enum { WINDOW_BAR = 4, WINDOW_OFFSET = 8, WINDOW_LENGTH = 12, WINDOW_DATA = 16 };

static bool window_hit(const struct fvm_virtio *v, unsigned offset, unsigned size, uint32_t *ret_at, uint32_t *ret_size)
{
    unsigned data = v->pci_cfg_cap + WINDOW_DATA;
    if (offset >= data + 4 || offset + size <= data || v->pci.config[v->pci_cfg_cap + WINDOW_BAR] != BAR_REGS)
        return false;
    memcpy(ret_at, v->pci.config + v->pci_cfg_cap + WINDOW_OFFSET, 4);
    memcpy(ret_size, v->pci.config + v->pci_cfg_cap + WINDOW_LENGTH, 4);
    return (*ret_size == 1 || *ret_size == 2 || *ret_size == 4) && *ret_at % *ret_size == 0 && *ret_at < REGS_END;
}

static void config_read(void *ctx, unsigned offset, unsigned size)
{
    struct fvm_virtio *v = ctx;
    uint32_t at, len;
    if (!window_hit(v, offset, size, &at, &len))
        return;
    uint64_t value = regs_read(v, at, len);
    memcpy(v->pci.config + v->pci_cfg_cap + WINDOW_DATA, &value, len);
}

static void config_written(void *ctx, unsigned offset, unsigned size)
{
    struct fvm_virtio *v = ctx;
    uint32_t at, len;
    if (!window_hit(v, offset, size, &at, &len))
        return;
    uint64_t value = 0;
    memcpy(&value, v->pci.config + v->pci_cfg_cap + WINDOW_DATA, len);
    regs_write(v, at, len, value);
}

static const struct fvm_pci_function_ops pci_ops = {.config_read = config_read, .config_written = config_written};

/* body[0] is the length byte: offsets here are those of struct virtio_pci_cap less 2 */
static unsigned add_cap(struct fvm_virtio *v, uint8_t type, uint8_t bar, uint32_t offset, uint32_t length, unsigned extra)
{
    uint8_t body[18] = {0};
    body[0] = (uint8_t)(16 + extra);
    body[1] = type;
    body[2] = bar;
    memcpy(body + 6, &offset, 4);
    memcpy(body + 10, &length, 4);
    if (type == CAP_NOTIFY)
        body[14] = 4; /* notify_off_multiplier */
    return fvm_pci_cap_add(&v->pci, 0x09, body, 14 + extra);
}

static void add_capabilities(struct fvm_virtio *v)
{
    fvm_pci_bar_add(&v->pci, BAR_REGS, FVM_PCI_BAR_MEM32, REGS_END, &regs_ops, v, "virtio");
    fvm_pci_msix_add(&v->pci, BAR_MSIX, v->queue_count + 1);
    add_cap(v, CAP_COMMON, BAR_REGS, REGS_COMMON, COMMON_BYTES, 0);
    add_cap(v, CAP_ISR, BAR_REGS, REGS_ISR, 1, 0);
    add_cap(v, CAP_DEVICE, BAR_REGS, REGS_DEVICE, FVM_VIRTIO_CONFIG_MAX, 0);
    add_cap(v, CAP_NOTIFY, BAR_REGS, REGS_NOTIFY, 4 * v->queue_count, 4);
    v->pci_cfg_cap = add_cap(v, CAP_PCI, 0, 0, 0, 4);
    fvm_pci_config_writable(&v->pci, v->pci_cfg_cap + WINDOW_BAR, 1, 0xff);
    fvm_pci_config_writable(&v->pci, v->pci_cfg_cap + WINDOW_OFFSET, 12, 0xff);
}

/* --- life --- */

int fvm_virtio_init(struct fvm_virtio *v, struct fvm_board *board, struct fvm_pci_host *host, uint8_t slot,
                    const char *instance, const struct fvm_device_ops *ops, const struct fvm_virtio_class *class,
                    uint64_t offered)
{
    fvm_device_init(&v->dev, ops, instance, board);
    v->class = class;
    v->offered = offered | 1ull << FVM_VIRTIO_F_INDIRECT_DESC | 1ull << FVM_VIRTIO_F_EVENT_IDX | 1ull << FVM_VIRTIO_F_VERSION_1;
    while (v->queue_count < FVM_VIRTIO_QUEUES_MAX && class->queue_sizes[v->queue_count]) {
        struct fvm_virtqueue *q = &v->queue[v->queue_count];
        q->virtio = v;
        q->index = v->queue_count;
        q->size_max = class->queue_sizes[v->queue_count++];
        fvm_assert(q->size_max <= FVM_VIRTQUEUE_SIZE_MAX);
        fvm_virtqueue_reset(q);
    }
    v->config_msix_vector = FVM_VIRTIO_NO_VECTOR;
    struct fvm_pci_id id = {.slot = slot,
                            .vendor = 0x1af4,
                            .device = (uint16_t)(0x1040 + class->type),
                            .subsystem_vendor = 0x1af4,
                            .subsystem = 0x1100,
                            .revision = 1,
                            .class_code = class->pci_class,
                            .interrupt_pin = 1};
    v->defer_event = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (v->defer_event < 0)
        return fvm_err_from_errno(errno);
    int r = fvm_loop_io_add(board->loop, v->defer_event, FVM_LOOP_IN, on_defer, v, &v->defer_io);
    if (r == 0)
        r = fvm_pci_function_init(&v->pci, host, &id, &pci_ops, v);
    if (r < 0) {
        fvm_virtio_fini(v);
        return r;
    }
    add_capabilities(v);
    return 0;
}

void fvm_virtio_fini(struct fvm_virtio *v)
{
    fvm_pci_function_fini(&v->pci);
    if (v->defer_io)
        fvm_loop_io_remove(&v->defer_io);
    if (v->defer_event >= 0)
        close(v->defer_event);
    v->defer_event = -1;
}

void fvm_virtio_reset(struct fvm_device *dev)
{
    struct fvm_virtio *v = FVM_CONTAINER_OF(dev, struct fvm_virtio, dev);
    driver_reset(v);
    v->config_generation = 0;
    fvm_pci_function_reset(&v->pci);
}

void fvm_virtio_quiesce(struct fvm_device *dev)
{
    struct fvm_virtio *v = FVM_CONTAINER_OF(dev, struct fvm_virtio, dev);
    v->quiesced = true;
    v->deferred = 0;
}

void fvm_virtio_resume(struct fvm_device *dev)
{
    struct fvm_virtio *v = FVM_CONTAINER_OF(dev, struct fvm_virtio, dev);
    v->quiesced = false;
    if (fvm_virtio_running(v))
        run_all(v);
}

/* --- state --- */

static int fill_state(const struct fvm_virtio *v, Fvm__VirtioState *ret_state)
{
    Fvm__PciFunctionState *pci = malloc(sizeof(*pci));
    Fvm__VirtioQueueState *queues = calloc(v->queue_count, sizeof(*queues));
    Fvm__VirtioQueueState **list = calloc(v->queue_count, sizeof(struct Fvm__VirtioQueueState *));
    if (pci)
        fvm__pci_function_state__init(pci);
    if (!pci || !queues || !list || fvm_pci_function_save(&v->pci, pci) < 0) {
        free(pci);
        free(queues);
        free(list);
        return FVM_ENOMEM;
    }
    for (unsigned n = 0; n < v->queue_count; n++) {
        list[n] = &queues[n];
        fvm__virtio_queue_state__init(list[n]);
        fvm_virtqueue_save(&v->queue[n], list[n]);
    }
    ret_state->pci = pci;
    ret_state->driver_features = v->features;
    ret_state->status = v->status;
    ret_state->isr = v->isr;
    ret_state->config_msix_vector = v->config_msix_vector;
    ret_state->config_generation = v->config_generation;
    ret_state->queue_select = v->queue_select;
    ret_state->device_feature_select = v->device_feature_select;
    ret_state->driver_feature_select = v->driver_feature_select;
    ret_state->n_queues = v->queue_count;
    ret_state->queues = list;
    return 0;
}

static void free_state(Fvm__VirtioState *state)
{
    if (state->pci) {
        fvm_pci_function_save_free(state->pci);
        free(state->pci);
    }
    if (state->n_queues)
        free(state->queues[0]);
    free(state->queues);
}

int fvm_virtio_save(const struct fvm_virtio *v, const ProtobufCMessage *msg, Fvm__VirtioState **slot, uint8_t **ret_buf,
                    size_t *ret_len)
{
    Fvm__VirtioState state = FVM__VIRTIO_STATE__INIT;
    int r = fill_state(v, &state);
    if (r < 0)
        return r;
    *slot = &state;
    r = fvm_device_pack(msg, ret_buf, ret_len);
    *slot = NULL;
    free_state(&state);
    return r;
}

int fvm_virtio_check(const struct fvm_virtio *v, const Fvm__VirtioState *state, struct fvm_err *err)
{
    if (!state)
        return fvm_device_refuse(&v->dev, err, "no virtio state");
    int r = fvm_pci_function_check(&v->pci, state->pci, err);
    if (r < 0)
        return r;
    if ((state->status & FVM_VIRTIO_S_FEATURES_OK) && (state->driver_features & ~v->offered))
        return fvm_device_refuse(&v->dev, err, "the driver uses features that this device does not offer");
    if (state->status > 0xff || state->isr > 3 || state->config_generation > 0xff || state->queue_select > 0xffff)
        return fvm_device_refuse(&v->dev, err, "field out of range");
    if ((state->status & FVM_VIRTIO_S_DRIVER_OK) && !(state->status & FVM_VIRTIO_S_FEATURES_OK))
        return fvm_device_refuse(&v->dev, err, "DRIVER_OK without FEATURES_OK");
    if (state->config_msix_vector != FVM_VIRTIO_NO_VECTOR && state->config_msix_vector >= v->pci.msix_count)
        return fvm_device_refuse(&v->dev, err, "configuration vector out of range");
    if (state->n_queues != v->queue_count)
        return fvm_device_refuse(&v->dev, err, "another number of queues");
    for (unsigned n = 0; n < v->queue_count; n++) {
        const char *why = fvm_virtqueue_check(&v->queue[n], state->queues[n], v->pci.msix_count,
                                              state->status & FVM_VIRTIO_S_NEEDS_RESET);
        if (why)
            return fvm_device_refuse(&v->dev, err, why);
    }
    return 0;
}

void fvm_virtio_restore(struct fvm_virtio *v, const Fvm__VirtioState *state)
{
    if (v->class->reset)
        v->class->reset(v);
    v->features = state->driver_features;
    v->status = (uint8_t)state->status;
    v->isr = (uint8_t)state->isr;
    v->config_msix_vector = (uint16_t)state->config_msix_vector;
    v->config_generation = (uint8_t)state->config_generation;
    v->queue_select = (uint16_t)state->queue_select;
    v->device_feature_select = state->device_feature_select;
    v->driver_feature_select = state->driver_feature_select;
    v->quiesced = true; /* until resume */
    v->deferred = 0;
    for (unsigned n = 0; n < v->queue_count; n++)
        fvm_virtqueue_restore(&v->queue[n], state->queues[n]);
    fvm_pci_function_restore(&v->pci, state->pci);
}
