/*
 * err.h - host errors. Three failures are never mixed: a guest fault (struct fvm_fault, vmm/cpu), a host
 * error (0 or a negative FVM_E*, here), a programmer error (fvm_assert, stays on in release).
 */
#ifndef FVM_BASE_ERR_H
#define FVM_BASE_ERR_H

#include "base/types.h"

enum fvm_err_code {
    FVM_OK_ = 0,
#define FVM_E(name, status, text) FVM_EPOS_##name,
#include "base/err.def"
#undef FVM_E
    FVM_EPOS_END_
};
enum {
#define FVM_E(name, status, text) FVM_E##name = -FVM_EPOS_##name,
#include "base/err.def"
#undef FVM_E
};

/** What a front door tells its caller: filled on failure only. Owned by the caller, no allocation. */
struct fvm_err {
    int code;         /* negative FVM_E* */
    int sys_errno;    /* errno of the cause, or 0 */
    char room[16];    /* "storage", "net"... */
    char text[480];   /* one line: what happened and what to do */
};

/**
 * fvm_err_set - fill *err (may be NULL) and return `code`, so that callers write
 * `return fvm_err_set(err, FVM_ENOENT, errno, "storage", "disk %s: ...", path);`
 */
int fvm_err_set(struct fvm_err *err, int code, int sys_errno, const char *room, const char *fmt, ...)
    FVM_PRINTF(5, 6);
/** The FVM_E* that fits an errno value; FVM_EIO when nothing fits better. */
int fvm_err_from_errno(int sys_errno);
/** Fixed text of a code ("not found"); never NULL. */
const char *fvm_err_text(int code);
/** Short name of a code ("NOENT"); never NULL. */
const char *fvm_err_name(int code);
/** Process exit status for a code: 64..77 as sysexits.h; 0 for code 0. */
int fvm_err_exit_status(int code);

void fvm_assert_fail(const char *expr, const char *file, int line, const char *func) FVM_NORETURN;
/** A programmer's error ends the process (one VM) with a message; on in release builds too. */
#define fvm_assert(e) (FVM_LIKELY(e) ? (void)0 : fvm_assert_fail(#e, __FILE__, __LINE__, __func__))

#endif
