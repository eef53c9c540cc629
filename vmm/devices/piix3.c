/*
 * piix3.c - the south bridge's PCI functions without a life of their own: ISA bridge (82371SB) and power management (82371AB,
 * which the PIIX4 brought; software expects the pair). IDE is piix_ide.c.
 *
 * The ISA bridge's PIRQ registers say which line each PCI interrupt link drives; firmware writes what is there after reset
 * already. The PM function's PMBASE places acpi_pm.c's ports, at 600 after reset.
 *
 * Invariant: the host bridge's routing is what the four PIRQ registers say.
 */
#include "vmm/devices/piix3.h"

#include <stdlib.h>

#include "proto/device_state.pb-c.h"
#include "vmm/devices/acpi_pm.h"
#include "vmm/devices/pack.h"
#include "vmm/devices/pci_impl.h"

enum { PIRQ_ROUTE = 0x60, PIRQ_OFF = 0x80, PMBASE = 0x40, DEVACTB = 0x58, PMREGMISC = 0x80, PM_PORT = 0x600, ELCR_LINES = 16 };

struct piix3 {
    struct fvm_device dev;
    struct fvm_pci_function isa, pm;
    struct fvm_device *acpi_pm;
};

static void route(struct piix3 *p)
{
    for (unsigned i = 0; i < FVM_PCI_LINKS; i++) {
        uint8_t reg = p->isa.config[PIRQ_ROUTE + i], line = reg & 15;
        bool possible = line >= 3 && line != 8 && line != 13 && line < ELCR_LINES;

        fvm_pci_host_route(p->isa.host, i, reg & PIRQ_OFF || !possible ? FVM_IRQ_LINES : line);
    }
}

static void isa_written(void *ctx, unsigned offset, unsigned size)
{
    if (offset + size > PIRQ_ROUTE && offset < PIRQ_ROUTE + FVM_PCI_LINKS)
        route(ctx);
}

static void place_pm(struct piix3 *p)
{
    fvm_acpi_pm_move(p->acpi_pm, p->pm.config[PMREGMISC] & 1 ? pci_get16(p->pm.config, PMBASE) & 0xffc0 : 0);
}

static void pm_written(void *ctx, unsigned offset, unsigned size)
{
    if ((offset + size > PMBASE && offset < PMBASE + 4) || (offset <= PMREGMISC && offset + size > PMREGMISC))
        place_pm(ctx);
}

static const struct fvm_pci_function_ops pm_ops = {.config_written = pm_written};
static const struct fvm_pci_function_ops isa_ops = {.config_written = isa_written};

static void piix3_reset(struct fvm_device *dev)
{
    struct piix3 *p = (struct piix3 *)dev;

    fvm_pci_function_reset(&p->isa);
    fvm_pci_function_reset(&p->pm);
    route(p);
    place_pm(p);
}

static void piix3_destroy(struct fvm_device *dev)
{
    struct piix3 *p = (struct piix3 *)dev;

    fvm_pci_function_fini(&p->pm);
    fvm_pci_function_fini(&p->isa);
    free(p);
}

static int piix3_save(struct fvm_device *dev, uint8_t **ret_buf, size_t *ret_len)
{
    struct piix3 *p = (struct piix3 *)dev;
    Fvm__Piix3State state = FVM__PIIX3_STATE__INIT;
    Fvm__PciFunctionState isa, pm;
    int r = fvm_pci_function_save(&p->isa, &isa);

    if (r)
        return r;
    r = fvm_pci_function_save(&p->pm, &pm);
    if (!r) {
        state.isa = &isa;
        state.pm = &pm;
        r = fvm_device_pack(&state.base, ret_buf, ret_len);
        fvm_pci_function_save_free(&pm);
    }
    fvm_pci_function_save_free(&isa);
    return r;
}

static int piix3_check(struct fvm_device *dev, const uint8_t *buf, size_t len, struct fvm_err *err)
{
    struct piix3 *p = (struct piix3 *)dev;
    Fvm__Piix3State *s = (void *)fvm_device_unpack(&fvm__piix3_state__descriptor, dev, buf, len, err);
    int r;

    if (!s)
        return FVM_EBADIMAGE;
    r = fvm_pci_function_check(&p->isa, s->isa, err);
    if (!r)
        r = fvm_pci_function_check(&p->pm, s->pm, err);
    fvm__piix3_state__free_unpacked(s, NULL);
    return r;
}

static void piix3_restore(struct fvm_device *dev, const uint8_t *buf, size_t len)
{
    struct piix3 *p = (struct piix3 *)dev;
    Fvm__Piix3State *s = fvm__piix3_state__unpack(NULL, len, buf);

    fvm_assert(s);
    fvm_pci_function_restore(&p->isa, s->isa);
    fvm_pci_function_restore(&p->pm, s->pm);
    route(p);
    place_pm(p);
    fvm__piix3_state__free_unpacked(s, NULL);
}

static const struct fvm_device_ops piix3_ops = {
    .name = "piix3",
    .destroy = piix3_destroy,
    .reset = piix3_reset,
    .save = piix3_save,
    .check = piix3_check,
    .restore = piix3_restore,
};

static void describe(struct piix3 *p)
{
    static const uint8_t routes[FVM_PCI_LINKS] = {10, 10, 11, 11}; /* as pci_host.c after reset */

    for (unsigned i = 0; i < FVM_PCI_LINKS; i++)
        p->isa.config[PIRQ_ROUTE + i] = routes[i];
    fvm_pci_config_writable(&p->isa, PIRQ_ROUTE, FVM_PCI_LINKS, 0x8f);
    pci_put32(p->pm.config, PMBASE, PM_PORT | 1);
    fvm_pci_config_writable(&p->pm, PMBASE, 1, 0xc0);
    fvm_pci_config_writable(&p->pm, PMBASE + 1, 1, 0xff);
    p->pm.config[PMREGMISC] = 1; /* decoded */
    fvm_pci_config_writable(&p->pm, PMREGMISC, 1, 1);
    p->pm.config[DEVACTB + 3] = 2; /* APMC enable: tells firmware that system management mode is set up, for there is none */
    p->pm.config[PCI_STATUS] = 0x80;
    pci_put16(p->isa.config, PCI_STATUS, 0x0200);
}

int fvm_piix3_create(struct fvm_board *board, struct fvm_pci_host *host, uint8_t slot, struct fvm_device *acpi_pm,
                     struct fvm_device **ret_dev)
{
    const struct fvm_pci_id isa = {.slot = slot, .vendor = 0x8086, .device = 0x7000, .subsystem_vendor = 0x1af4,
                                   .subsystem = 0x1100, .class_code = 0x060100};
    const struct fvm_pci_id pm = {.slot = slot, .function = 3, .vendor = 0x8086, .device = 0x7113,
                                  .subsystem_vendor = 0x1af4, .subsystem = 0x1100, .revision = 3, .class_code = 0x068000};
    struct piix3 *p = calloc(1, sizeof(*p));
    int r;

    if (!p)
        return FVM_ENOMEM;
    p->acpi_pm = acpi_pm;
    fvm_device_init(&p->dev, &piix3_ops, "piix3", board);
    r = fvm_pci_function_init(&p->isa, host, &isa, &isa_ops, p);
    if (!r)
        r = fvm_pci_function_init(&p->pm, host, &pm, &pm_ops, p);
    if (r) {
        fvm_pci_function_fini(&p->isa);
        free(p);
        return r;
    }
    describe(p);
    piix3_reset(&p->dev);
    *ret_dev = &p->dev;
    return 0;
}
