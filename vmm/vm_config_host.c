/*
 * vm_config_host.c - how much memory this process may have: /proc/meminfo and the limits of its control groups.
 *
 * Why: RAM of a guest is allocated on demand, so too large a guest would start well and be killed by the host later.
 * Unknown is never a refusal: what can't be read counts as unlimited.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "vmm/vm_config_internal.h"

static bool read_number(const char *path, uint64_t *ret)
{
    FILE *f = fopen(path, "re");
    if (!f)
        return false;
    unsigned long long n;
    bool ok = fscanf(f, "%llu", &n) == 1; /* "max" is not a number */
    fclose(f);
    if (ok)
        *ret = n;
    return ok;
}

static uint64_t meminfo_available(void)
{
    FILE *f = fopen("/proc/meminfo", "re");
    if (!f)
        return UINT64_MAX;
    char line[128];
    unsigned long long available = 0, swap = 0;
    bool found = false;
    while (fgets(line, sizeof(line), f)) {
        found |= sscanf(line, "MemAvailable: %llu", &available) == 1;
        if (sscanf(line, "SwapFree: %llu", &swap) != 1)
            continue;
    }
    fclose(f);
    return found ? (available + swap) << 10 : UINT64_MAX;
}

/* Page cache charged to the group is given back under pressure, so it does not count as used. */
static uint64_t cgroup_inactive_file(const char *dir)
{
    char path[512], line[128];
    snprintf(path, sizeof(path), "%s/memory.stat", dir);
    FILE *f = fopen(path, "re");
    unsigned long long n = 0;
    while (f && fgets(line, sizeof(line), f))
        if (sscanf(line, "inactive_file %llu", &n) == 1)
            break;
    if (f)
        fclose(f);
    return n;
}

static uint64_t cgroup_available(void)
{
    FILE *f = fopen("/proc/self/cgroup", "re");
    char line[400], dir[460], path[512];
    uint64_t least = UINT64_MAX;
    line[0] = 0;
    while (f && fgets(line, sizeof(line), f))
        if (!strncmp(line, "0::", 3))
            break;
    if (f)
        fclose(f);
    if (strncmp(line, "0::/", 4) != 0 || strstr(line, ".."))
        return least;
    line[strcspn(line, "\n")] = 0;
    snprintf(dir, sizeof(dir), "/sys/fs/cgroup%s", line + 3);
    for (;;) { /* every ancestor's limit counts */
        uint64_t max, used;
        snprintf(path, sizeof(path), "%s/memory.max", dir);
        bool limited = read_number(path, &max);
        snprintf(path, sizeof(path), "%s/memory.current", dir);
        if (limited && read_number(path, &used)) {
            uint64_t cache = cgroup_inactive_file(dir);
            used = used > cache ? used - cache : 0;
            least = FVM_MIN(least, max > used ? max - used : 0);
        }
        char *slash = strrchr(dir, '/');
        if (!slash || strlen(dir) <= strlen("/sys/fs/cgroup"))
            return least;
        *slash = 0;
    }
}

uint64_t fvm_config_host_available_bytes(void)
{
    uint64_t host = meminfo_available(), group = cgroup_available();
    return FVM_MIN(host, group);
}
