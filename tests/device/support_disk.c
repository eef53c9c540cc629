/* The disks of support_disk.h. */
#include "support_disk.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

uint8_t disk_byte(uint64_t at)
{
    return (uint8_t)((at >> 9) * 7 + at * 3);
}

bool disk_same(const uint8_t *buf, uint64_t at, size_t len)
{
    for (size_t i = 0; i < len; i++)
        if (buf[i] != disk_byte(at + i))
            return false;
    return true;
}

static struct fvm_disk *open_disk(struct test_board *t, const char *path, bool readonly, bool inactive)
{
    struct fvm_disk_options opt = {.path = path, .format = "raw", .readonly = readonly, .inactive = inactive};
    struct fvm_disk *disk = NULL;
    struct fvm_err err = {0};

    CU_ASSERT_EQUAL_FATAL(fvm_disk_open(t->board.loop, &opt, &disk, &err), 0);
    return disk;
}

struct fvm_disk *disk_make(struct test_board *t, uint64_t bytes, bool readonly, char *path)
{
    uint8_t *all = malloc(bytes);
    int fd;

    strcpy(path, "/tmp/fvm-disk.XXXXXX");
    fd = mkstemp(path);
    fvm_assert(fd >= 0 && all);
    for (uint64_t i = 0; i < bytes; i++)
        all[i] = disk_byte(i);
    fvm_assert(write(fd, all, bytes) == (ssize_t)bytes);
    close(fd);
    free(all);
    return open_disk(t, path, readonly, false);
}

struct fvm_disk *disk_again(struct test_board *t, const char *path, bool readonly)
{
    return open_disk(t, path, readonly, true);
}

void disk_forget(struct fvm_disk **disk, const char *path)
{
    fvm_disk_close(disk);
    if (path)
        unlink(path);
}

void disk_settle(struct test_board *t, struct fvm_disk *disk)
{
    fvm_bus_lock(t->board.bus);
    fvm_disk_drain(disk);
    fvm_bus_unlock(t->board.bus);
}
