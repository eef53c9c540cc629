/*
 * support_disk.h - disks with known contents for tests of controllers: byte i of the file is (i >> 9) * 7 + i * 3.
 */
#ifndef FVM_TESTS_DEVICE_SUPPORT_DISK_H
#define FVM_TESTS_DEVICE_SUPPORT_DISK_H

#include "storage/storage.h"
#include "support_board.h"

/** A temporary file of `bytes`, opened on the board's loop; path (64 bytes) for disk_forget. */
struct fvm_disk *disk_make(struct test_board *t, uint64_t bytes, bool readonly, char *path);
/** The same file once more, as the destination of a migration opens it. */
struct fvm_disk *disk_again(struct test_board *t, const char *path, bool readonly);
void disk_forget(struct fvm_disk **disk, const char *path);
uint8_t disk_byte(uint64_t at);
/** Is [buf, buf + len) what the file holds at `at`, as made? */
bool disk_same(const uint8_t *buf, uint64_t at, size_t len);
/** Turn the loop until nothing is in flight. */
void disk_settle(struct test_board *t, struct fvm_disk *disk);

#endif
