/*
 * fvm_terminal.h - the user's terminal as a guest's serial line: raw while the VM lives, as it was in every way of
 * ending.
 *
 * The one place with mutable globals: the terminal is the process', and a crash handler can reach nothing else.
 */
#ifndef FVM_CLUSTER_FVM_TERMINAL_H
#define FVM_CLUSTER_FVM_TERMINAL_H

#include "base/types.h"

/**
 * Raw mode, if stdin is a terminal (else nothing). Restored at exit, in fvm_terminal_restore, and by handlers for
 * SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT, SIGTRAP, SIGSYS that then go on as before. Call before the engine installs
 * its own handlers: those are found by the engine and called for faults that are not the guest's.
 */
void fvm_terminal_raw(void);
void fvm_terminal_restore(void);

enum fvm_terminal_key { FVM_KEY_NONE, FVM_KEY_EXIT, FVM_KEY_HELP, FVM_KEY_DUMP };

struct fvm_terminal_escape {
    bool pending; /* Ctrl-A seen */
};
/**
 * Takes Ctrl-A sequences out of what was typed: x leaves, h helps, d dumps the registers, Ctrl-A or a sends Ctrl-A
 * itself. Stops after a key: *ret_used input bytes were looked at, returns how many bytes (at the front) are for the
 * guest.
 */
size_t fvm_terminal_filter(struct fvm_terminal_escape *escape, uint8_t *bytes, size_t len, size_t *ret_used,
                           enum fvm_terminal_key *ret_key);
const char *fvm_terminal_help(void);

#endif
