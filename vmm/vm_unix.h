/*
 * vm_unix.h - listening on a UNIX socket by name: refuse a live one, replace a dead one, mode 0600.
 */
#ifndef FVM_VMM_VM_UNIX_H
#define FVM_VMM_VM_UNIX_H

#include "base/err.h"

#define FVM_UNIX_PATH_MAX 108 /* sizeof(sun_path): names of at most 107 characters */

/**
 * Non-blocking listening socket at `path`. A socket there that nobody answers is left over from a process that died
 * and is replaced; FVM_EBUSY if somebody answers, FVM_EEXIST if it is not a socket. The caller unlinks it in the end.
 */
int fvm_unix_listen(const char *path, int *ret_fd, struct fvm_err *err);
/** Blocking connection to `path`. */
int fvm_unix_connect(const char *path, int *ret_fd, struct fvm_err *err);

#endif
