/*
 * err.c - the texts and numbers of host errors, and the end of a process whose programmer was wrong.
 *
 * Everything is generated from err.def, so a code can't lack its text. Text that came from outside (file names, peers) may
 * hold anything: control characters become '?', a message is always one line.
 */
#include "base/err.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct entry {
    const char *name;
    const char *text;
    int status;
};

static const struct entry entries[] = {
    {"OK", "success", 0},
#define FVM_E(name, status, text) {#name, text, status},
#include "base/err.def"
#undef FVM_E
};

_Static_assert(FVM_ARRAY_SIZE(entries) == FVM_EPOS_END_, "one entry for each code");

static const struct entry *find(int code)
{
    return code <= 0 && code > -(int)FVM_EPOS_END_ ? &entries[-code] : NULL;
}

const char *fvm_err_text(int code)
{
    const struct entry *e = find(code);
    return e ? e->text : "unknown error";
}

const char *fvm_err_name(int code)
{
    const struct entry *e = find(code);
    return e ? e->name : "UNKNOWN";
}

int fvm_err_exit_status(int code)
{
    const struct entry *e = find(code);
    return e ? e->status : fvm_err_exit_status(FVM_EINTERNAL);
}

int fvm_err_set(struct fvm_err *err, int code, int sys_errno, const char *room, const char *fmt, ...)
{
    fvm_assert(code < 0);
    if (!err)
        return code;

    /* A local buffer first: arguments may point into *err (a caller adding to what it was told). */
    char text[sizeof(err->text)];
    va_list ap;
    va_start(ap, fmt);
    if (vsnprintf(text, sizeof(text), fmt, ap) < 0)
        text[0] = 0;
    va_end(ap);
    for (char *p = text; *p; p++)
        if ((unsigned char)*p < 0x20 || *p == 0x7f)
            *p = '?';

    char from[sizeof(err->room)];
    snprintf(from, sizeof(from), "%s", room);
    memcpy(err->text, text, sizeof(text));
    memcpy(err->room, from, sizeof(from));
    err->code = code;
    err->sys_errno = sys_errno;
    return code;
}

int fvm_err_from_errno(int sys_errno)
{
    switch (sys_errno) {
    case ENOMEM:
    case EMFILE:
    case ENFILE:
        return FVM_ENOMEM;
    case EINVAL:
    case EBADF:
    case EFAULT:
    case ENAMETOOLONG:
        return FVM_EINVAL;
    case ENOENT:
    case ENOTDIR:
    case ENODEV:
    case ENXIO:
    case ESRCH:
        return FVM_ENOENT;
    case EEXIST:
    case EADDRINUSE:
        return FVM_EEXIST;
    case EBUSY:
    case EAGAIN:
    case ETXTBSY:
        return FVM_EBUSY;
    case EPERM:
    case EACCES:
    case EROFS:
        return FVM_EPERM;
    case ENOSPC:
    case EDQUOT:
    case EFBIG:
        return FVM_ENOSPC;
    case EOPNOTSUPP:
    case ENOSYS:
    case ENOTTY:
        return FVM_EUNSUPPORTED;
    case ETIMEDOUT:
        return FVM_ETIMEOUT;
    case EPIPE:
    case ECONNRESET:
    case ECONNREFUSED:
    case ENOTCONN:
    case EHOSTUNREACH:
    case ENETUNREACH:
        return FVM_ECLOSED;
    case ECANCELED:
        return FVM_ECANCELLED;
    case EPROTO:
    case EBADMSG:
        return FVM_EPROTO;
    default:
        return FVM_EIO;
    }
}

void fvm_assert_fail(const char *expr, const char *file, int line, const char *func)
{
    fprintf(stderr, "\nfvm: programming error: %s is false at %s:%d (%s)\n", expr, file, line, func);
    abort();
}
