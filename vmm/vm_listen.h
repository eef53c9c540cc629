/* vm_listen.h - listening at a TCP address that a user wrote. Test: tests/unit/gdb.c, tests/e2e/display */
#ifndef FVM_VMM_VM_LISTEN_H
#define FVM_VMM_VM_LISTEN_H

#include "base/err.h"

/**
 * Non-blocking listening socket at "PORT" (on 127.0.0.1), "ADDR:PORT" or "[ADDR]:PORT", ADDR numeric.
 * any: also at addresses that other machines reach; else FVM_EPERM for those. what: "VNC", for messages.
 */
int fvm_listen_tcp(const char *what, const char *addr, bool any, int *ret_fd, struct fvm_err *err);

#endif
