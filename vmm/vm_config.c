/*
 * vm_config.c - making and judging a VmConfig. See vm_config.h.
 *
 * Invariant: a function that fails leaves the message as it was. Must not know how the machine is built.
 */
#include "vmm/vm_config.h"

#include <arpa/inet.h>
#include <ctype.h>
#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>

#include "vmm/vm_config_internal.h"

static const char room[] = "config";

int fvm_config_set(char **field, const char *text)
{
    char *copy = strdup(text);
    if (!copy)
        return FVM_ENOMEM;
    if (*field && *field != (const char *)protobuf_c_empty_string)
        free(*field);
    *field = copy;
    return 0;
}

Fvm__VmConfig *fvm_config_new(void)
{
    Fvm__VmConfig *config = calloc(1, sizeof(*config));
    if (!config)
        return NULL;
    fvm__vm_config__init(config);
    config->memory_bytes = 1ull << 30;
    config->cpus = 1;
    config->rng = true;
    config->id.data = malloc(16);
    config->id.len = config->id.data ? 16 : 0;
    if (!config->id.data || getrandom(config->id.data, 16, 0) != 16 || fvm_config_set(&config->name, "vm") ||
        fvm_config_set(&config->serial, "none") || fvm_config_set(&config->on_reset, "reset") ||
        fvm_config_set(&config->vga, "std"))
        fvm_config_free(&config);
    return config;
}

void fvm_config_free(Fvm__VmConfig **config_p)
{
    if (*config_p)
        fvm__vm_config__free_unpacked(*config_p, NULL);
    *config_p = NULL;
}

Fvm__VmConfig *fvm_config_copy(const Fvm__VmConfig *config)
{
    size_t len = fvm__vm_config__get_packed_size(config);
    uint8_t *buf = malloc(len ? len : 1);
    if (!buf)
        return NULL;
    fvm__vm_config__pack(config, buf);
    Fvm__VmConfig *copy = fvm__vm_config__unpack(NULL, len, buf);
    free(buf);
    return copy;
}

int fvm_config_parse_bytes(const char *text, uint64_t *ret_bytes, struct fvm_err *err)
{
    static const char hint[] = "write a whole number with K, M, G or T, as in 512M";
    if (!isdigit((unsigned char)text[0]))
        return fvm_err_set(err, FVM_EINVAL, 0, room, "size \"%.40s\": %s", text, hint);
    char *end;
    errno = 0;
    unsigned long long n = strtoull(text, &end, 10);
    unsigned shift = 0;
    switch (toupper((unsigned char)*end)) {
    case 'T': shift = 40; break;
    case 'G': shift = 30; break;
    case 'M': shift = 20; break;
    case 'K': shift = 10; break;
    case 0: break;
    default: return fvm_err_set(err, FVM_EINVAL, 0, room, "size \"%.40s\": %s", text, hint);
    }
    if (shift && end[1] && strcasecmp(end + 1, "iB") != 0)
        return fvm_err_set(err, FVM_EINVAL, 0, room, "size \"%.40s\": %s", text, hint);
    if (errno || n > (UINT64_MAX >> shift))
        return fvm_err_set(err, FVM_EINVAL, 0, room, "size \"%.40s\" is too large", text);
    *ret_bytes = (uint64_t)n << shift;
    return 0;
}

/* ---- option lists: "head,key=value,flag" with ",," for a comma ---- */

char *fvm_config_next_item(const char **cursor)
{
    const char *p = *cursor;
    if (!p)
        return NULL;
    char *item = malloc(strlen(p) + 1);
    if (!item)
        return NULL;
    size_t n = 0;
    for (; *p; p++) {
        if (*p == ',') {
            if (p[1] != ',')
                break;
            p++;
        }
        item[n++] = *p;
    }
    item[n] = 0;
    *cursor = *p == ',' ? p + 1 : NULL;
    return item;
}

static int disk_option(Fvm__DiskConfig *disk, const char *item, struct fvm_err *err)
{
    if (!strcmp(item, "readonly")) {
        disk->readonly = true;
        return 0;
    }
    if (!strncmp(item, "format=", 7) && item[7])
        return fvm_config_set(&disk->format, item + 7);
    if (!strncmp(item, "serial=", 7)) {
        if (strlen(item + 7) > FVM_CONFIG_SERIAL_MAX)
            return fvm_err_set(err, FVM_EINVAL, 0, room, "disk serial \"%.40s\" is longer than %d characters", item + 7,
                               FVM_CONFIG_SERIAL_MAX);
        return fvm_config_set(&disk->serial, item + 7);
    }
    if (!strcmp(item, "if=ide") || !strcmp(item, "if=ahci") || (!strcmp(item, "if=virtio") && !disk->cdrom))
        return fvm_config_set(&disk->interface, item + 3);
    return fvm_err_set(err, FVM_EINVAL, 0, room, "%s option \"%.40s\" is unknown; known are %s, format=raw, serial=TEXT",
                       disk->cdrom ? "CD-ROM" : "disk", item,
                       disk->cdrom ? "if=ide|ahci" : "if=virtio|ide|ahci, readonly");
}

static int add_drive(Fvm__VmConfig *config, const char *spec, bool cdrom, struct fvm_err *err)
{
    if (config->n_disks >= FVM_CONFIG_DISKS_MAX)
        return fvm_err_set(err, FVM_EINVAL, 0, room, "more than %d disks", FVM_CONFIG_DISKS_MAX);
    Fvm__DiskConfig *disk = calloc(1, sizeof(*disk));
    Fvm__DiskConfig **list = realloc(config->disks, (config->n_disks + 1) * sizeof(*list));
    if (list)
        config->disks = list;
    if (!disk || !list) {
        free(disk);
        return fvm_err_set(err, FVM_ENOMEM, 0, room, "out of memory");
    }
    fvm__disk_config__init(disk);
    disk->cdrom = disk->readonly = cdrom;
    int r = 0;
    bool first = true;
    const char *cursor = spec;
    while (!r && cursor) {
        char *item = fvm_config_next_item(&cursor);
        if (!item)
            r = FVM_ENOMEM;
        else if (!first)
            r = disk_option(disk, item, err);
        else if (!*item)
            r = fvm_err_set(err, FVM_EINVAL, 0, room, "%s without a file's name; write --%s",
                            cdrom ? "CD-ROM" : "disk", cdrom ? "cdrom FILE" : "disk FILE[,readonly]");
        else
            r = fvm_config_set(&disk->path, item);
        first = false;
        free(item);
    }
    if (r) {
        fvm__disk_config__free_unpacked(disk, NULL);
        return r == FVM_ENOMEM ? fvm_err_set(err, r, 0, room, "out of memory") : r;
    }
    config->disks[config->n_disks++] = disk;
    return 0;
}

int fvm_config_add_disk(Fvm__VmConfig *config, const char *spec, struct fvm_err *err)
{
    return add_drive(config, spec, false, err);
}

int fvm_config_add_cdrom(Fvm__VmConfig *config, const char *spec, struct fvm_err *err)
{
    return add_drive(config, spec, true, err);
}

/* ---- the whole ---- */

static int check_readable(const char *what, const char *path, struct fvm_err *err)
{
    if (access(path, R_OK) == 0)
        return 0;
    int e = errno;
    return fvm_err_set(err, fvm_err_from_errno(e), e, room, "%s %s: %s", what, path, strerror(e));
}

static int check_memory(const Fvm__VmConfig *config, bool files, struct fvm_err *err)
{
    uint64_t bytes = config->memory_bytes;
    if (bytes < FVM_CONFIG_MEMORY_MIN || bytes > FVM_CONFIG_MEMORY_MAX)
        return fvm_err_set(err, FVM_EINVAL, 0, room, "memory of %llu bytes is outside 16M .. 1T",
                           (unsigned long long)bytes);
    if (bytes & FVM_PAGE_MASK)
        return fvm_err_set(err, FVM_EINVAL, 0, room, "memory of %llu bytes is not a multiple of 4096",
                           (unsigned long long)bytes);
    uint64_t available = files ? fvm_config_host_available_bytes() : UINT64_MAX;
    if (bytes > available)
        return fvm_err_set(err, FVM_ENOMEM, 0, room,
                           "memory of %llu MiB is more than this host has available (%llu MiB); give --memory less",
                           (unsigned long long)(bytes >> 20), (unsigned long long)(available >> 20));
    return 0;
}

static int check_name(const char *name, struct fvm_err *err)
{
    size_t n = strlen(name);
    if (n == 0 || n > 63)
        return fvm_err_set(err, FVM_EINVAL, 0, room, "a name has 1 to 63 characters, not %zu", n);
    for (size_t i = 0; i < n; i++)
        if (!isalnum((unsigned char)name[i]) && !strchr("-_.", name[i]))
            return fvm_err_set(err, FVM_EINVAL, 0, room, "name \"%.63s\": letters, digits, '-', '_' and '.' only",
                               name);
    return 0;
}

static int check_disks(const Fvm__VmConfig *config, bool files, struct fvm_err *err)
{
    if (config->n_disks > FVM_CONFIG_DISKS_MAX)
        return fvm_err_set(err, FVM_EINVAL, 0, room, "more than %d disks", FVM_CONFIG_DISKS_MAX);
    for (size_t i = 0; i < config->n_disks; i++) {
        const Fvm__DiskConfig *disk = config->disks[i];
        if (!disk->path[0])
            return fvm_err_set(err, FVM_EINVAL, 0, room, "disk %zu has no path", i);
        if (strlen(disk->serial) > FVM_CONFIG_SERIAL_MAX)
            return fvm_err_set(err, FVM_EINVAL, 0, room, "disk %zu: serial too long", i);
        if (disk->format[0] && strcmp(disk->format, "raw") != 0)
            return fvm_err_set(err, FVM_EUNSUPPORTED, 0, room, "disk %s: format \"%.20s\" is not supported; use raw",
                               disk->path, disk->format);
        int r = files ? check_readable("disk", disk->path, err) : 0;
        if (r)
            return r;
    }
    return 0;
}

int fvm_config_check(const Fvm__VmConfig *config, bool files, struct fvm_err *err)
{
    int r = check_name(config->name, err);
    if (!r)
        r = check_memory(config, files, err);
    if (!r && (config->cpus < 1 || config->cpus > FVM_CONFIG_CPUS_MAX))
        r = fvm_err_set(err, FVM_EINVAL, 0, room, "%u CPUs: possible are 1 to %d", config->cpus, FVM_CONFIG_CPUS_MAX);
    if (!r && config->id.len != 16)
        r = fvm_err_set(err, FVM_EINVAL, 0, room, "the id has %zu bytes, not 16", config->id.len);
    if (!r && !config->kernel[0] && !config->firmware[0])
        r = fvm_err_set(err, FVM_EINVAL, 0, room, "nothing to boot: --kernel FILE, or --firmware seabios and a disk");
    if (!r && config->kernel[0] && config->firmware[0])
        r = fvm_err_set(err, FVM_EINVAL, 0, room, "--kernel and --firmware: a machine starts with one of them");
    if (!r && strlen(config->append) > FVM_CONFIG_APPEND_MAX)
        r = fvm_err_set(err, FVM_EINVAL, 0, room, "the kernel's command line has %zu characters; at most %d fit",
                        strlen(config->append), FVM_CONFIG_APPEND_MAX);
    if (!r && config->on_reset[0] && strcmp(config->on_reset, "reset") != 0 && strcmp(config->on_reset, "stop") != 0)
        r = fvm_err_set(err, FVM_EINVAL, 0, room, "on_reset \"%.20s\": reset or stop", config->on_reset);
    if (!r && config->vga[0] && strcmp(config->vga, "std") != 0 && strcmp(config->vga, "none") != 0)
        r = fvm_err_set(err, FVM_EINVAL, 0, room, "display adapter \"%.20s\": std or none", config->vga);
    if (!r && config->tsc_khz && (config->tsc_khz < 100000 || config->tsc_khz > 20000000))
        r = fvm_err_set(err, FVM_EINVAL, 0, room, "TSC frequency of %u kHz is not plausible", config->tsc_khz);
    if (!r)
        r = check_disks(config, files, err);
    if (!r)
        r = fvm_config_check_nets(config, err);
    if (!r)
        r = fvm_config_check_machine(config, err);
    for (size_t i = 0; !r && files && i < config->n_nets; i++)
        if (config->nets[i]->tftp[0])
            r = check_readable("TFTP directory", config->nets[i]->tftp, err);
    if (!r && files && config->kernel[0])
        r = check_readable("kernel", config->kernel, err);
    if (!r && files && config->firmware[0] && strcmp(config->firmware, "seabios"))
        r = check_readable("firmware", config->firmware, err);
    if (!r && files && config->initrd[0])
        r = check_readable("initrd", config->initrd, err);
    return r;
}
