/*
 * vm_config_machine.c - which machine a VmConfig describes: the full PC, or the small one with virtio devices only; what is
 * attached where; what firmware tries to boot.
 *
 * Invariant: a configuration that passes the check has no more drives on a controller than it has places, and nothing on
 * the virtio machine that needs the PC's controllers.
 */
#include <string.h>

#include "vmm/vm_config_internal.h"

static const char room[] = "config";
static const char *const boot_words[] = {"disk", "cdrom", "net"};

int fvm_config_set_machine(Fvm__VmConfig *config, const char *text, struct fvm_err *err)
{
    if (strcmp(text, "pc") != 0 && strcmp(text, "virtio") != 0)
        return fvm_err_set(err, FVM_EINVAL, 0, room, "machine \"%.40s\" is unknown; known are pc and virtio", text);
    return fvm_config_set(&config->machine, text) ? fvm_err_set(err, FVM_ENOMEM, 0, room, "out of memory") : 0;
}

static int check_boot(const char *text, struct fvm_err *err)
{
    unsigned seen = 0;

    while (*text) {
        size_t len = strcspn(text, ","), i;

        for (i = 0; i < FVM_ARRAY_SIZE(boot_words); i++)
            if (strlen(boot_words[i]) == len && !memcmp(boot_words[i], text, len))
                break;
        if (i == FVM_ARRAY_SIZE(boot_words) || (seen & 1u << i) || (text[len] && !text[len + 1]))
            return fvm_err_set(err, FVM_EINVAL, 0, room,
                               "boot order \"%.40s\": write disk, cdrom and net in the order to try, as cdrom,disk", text);
        seen |= 1u << i;
        text += len + (text[len] == ',');
    }
    return 0;
}

int fvm_config_set_boot(Fvm__VmConfig *config, const char *text, struct fvm_err *err)
{
    int r = *text ? check_boot(text, err) : fvm_err_set(err, FVM_EINVAL, 0, room, "the boot order is empty");

    if (!r && fvm_config_set(&config->boot, text))
        r = fvm_err_set(err, FVM_ENOMEM, 0, room, "out of memory");
    return r;
}

/* What of the configuration only the PC has; NULL: nothing. */
static const char *needs_pc(const Fvm__VmConfig *config)
{
    for (size_t i = 0; i < config->n_disks; i++) {
        if (config->disks[i]->cdrom)
            return "a CD-ROM drive";
        if (!strcmp(config->disks[i]->interface, "ide"))
            return "an IDE disk";
        if (!strcmp(config->disks[i]->interface, "ahci"))
            return "an AHCI disk";
    }
    for (size_t i = 0; i < config->n_nets; i++)
        if (!strcmp(config->nets[i]->model, "e1000"))
            return "an e1000 network card";
    return NULL;
}

bool fvm_config_is_pc(const Fvm__VmConfig *config)
{
    if (config->machine[0])
        return !strcmp(config->machine, "pc");
    return !config->kernel[0] || needs_pc(config);
}

int fvm_config_check_machine(const Fvm__VmConfig *config, struct fvm_err *err)
{
    unsigned ide = 0, ahci = 0;

    if (config->machine[0] && strcmp(config->machine, "pc") != 0 && strcmp(config->machine, "virtio") != 0)
        return fvm_err_set(err, FVM_EINVAL, 0, room, "machine \"%.40s\" is unknown; known are pc and virtio",
                           config->machine);
    for (size_t i = 0; i < config->n_disks; i++) {
        const Fvm__DiskConfig *d = config->disks[i];

        if (d->interface[0] && strcmp(d->interface, "ide") != 0 && strcmp(d->interface, "ahci") != 0 &&
            strcmp(d->interface, "virtio") != 0)
            return fvm_err_set(err, FVM_EINVAL, 0, room, "disk %zu: interface \"%.20s\" is unknown", i, d->interface);
        if (d->cdrom && (!d->readonly || !strcmp(d->interface, "virtio")))
            return fvm_err_set(err, FVM_EINVAL, 0, room, "disk %zu: a CD-ROM is read-only, on ide or ahci", i);
        ahci += !strcmp(d->interface, "ahci");
        ide += !strcmp(d->interface, "ide") || (d->cdrom && !d->interface[0]);
    }
    if (ide > FVM_CONFIG_IDE_MAX || ahci > FVM_CONFIG_AHCI_MAX)
        return fvm_err_set(err, FVM_EINVAL, 0, room, "%u drives on %s, which has room for %d", ide > FVM_CONFIG_IDE_MAX ? ide : ahci,
                           ide > FVM_CONFIG_IDE_MAX ? "IDE" : "AHCI",
                           ide > FVM_CONFIG_IDE_MAX ? FVM_CONFIG_IDE_MAX : FVM_CONFIG_AHCI_MAX);
    for (size_t i = 0; i < config->n_nets; i++) {
        const char *model = config->nets[i]->model;

        if (model[0] && strcmp(model, "virtio") != 0 && strcmp(model, "e1000") != 0)
            return fvm_err_set(err, FVM_EINVAL, 0, room, "network %zu: model \"%.20s\" is unknown", i, model);
    }
    if (!fvm_config_is_pc(config) && needs_pc(config))
        return fvm_err_set(err, FVM_EINVAL, 0, room, "%s needs --machine pc", needs_pc(config));
    return check_boot(config->boot, err);
}
