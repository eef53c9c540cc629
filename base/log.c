/*
 * log.c - log lines: "2024-05-06T07:08:09.123Z WARN migrate.stall vm=a round=3".
 *
 * One write(2) for each line, so lines of several threads and processes on one descriptor don't mix. Control characters
 * in the values become '?': a guest's or peer's string can neither forge a line nor drive the terminal. The three
 * settings are the process' (as stderr is), set once at start; hence the only variables outside a struct.
 */
#include "base/log.h"

#include <errno.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { LINE_BYTES = 2048 };

static _Atomic int log_level = FVM_LOG_WARN;
static _Atomic int log_fd = STDERR_FILENO;
static _Atomic bool log_crlf = false;

static const char *const names[] = {"error", "warn", "info", "debug"};
static const char *const tags[] = {"ERROR", "WARN", "INFO", "DEBUG"};

void fvm_log_set_level(enum fvm_log_level level)
{
    atomic_store_explicit(&log_level, (int)level, memory_order_relaxed);
}

bool fvm_log_parse_level(const char *s, enum fvm_log_level *ret_level)
{
    for (size_t i = 0; i < FVM_ARRAY_SIZE(names); i++) {
        if (strcmp(s, names[i]) == 0) {
            *ret_level = (enum fvm_log_level)i;
            return true;
        }
    }
    return false;
}

void fvm_log_set_fd(int fd)
{
    atomic_store(&log_fd, fd);
}

void fvm_log_set_crlf(bool on)
{
    atomic_store(&log_crlf, on);
}

bool fvm_log_enabled(enum fvm_log_level level)
{
    return (int)level <= atomic_load_explicit(&log_level, memory_order_relaxed);
}

/* "YYYY-MM-DDTHH:MM:SS.mmmZ LEVEL event " */
static size_t put_head(char *line, size_t size, enum fvm_log_level level, const char *event)
{
    struct timespec ts;
    struct tm tm;
    clock_gettime(CLOCK_REALTIME, &ts);
    gmtime_r(&ts.tv_sec, &tm);
    size_t n = strftime(line, size, "%Y-%m-%dT%H:%M:%S", &tm);
    int k = snprintf(line + n, size - n, ".%03uZ %s %s ", (unsigned)((uint64_t)ts.tv_nsec / 1000000u), tags[level], event);
    return FVM_MIN(n + (size_t)FVM_MAX(k, 0), size - 1);
}

static void write_all(int fd, const char *p, size_t n)
{
    while (n) {
        ssize_t k = write(fd, p, n);
        if (k < 0 && errno == EINTR)
            continue;
        if (k <= 0)
            return; /* nobody to tell */
        p += k;
        n -= (size_t)k;
    }
}

void fvm_log_emit(enum fvm_log_level level, const char *event, const char *fmt, ...)
{
    int saved = errno;
    char line[LINE_BYTES];
    const size_t room = sizeof(line) - 2; /* CR LF */
    size_t n = put_head(line, room, level, event);

    va_list ap;
    va_start(ap, fmt);
    int k = vsnprintf(line + n, room - n, fmt, ap);
    va_end(ap);
    n = FVM_MIN(n + (size_t)FVM_MAX(k, 0), room - 1);

    for (size_t i = 0; i < n; i++)
        if ((unsigned char)line[i] < 0x20 || line[i] == 0x7f)
            line[i] = '?';
    if (atomic_load(&log_crlf))
        line[n++] = '\r';
    line[n++] = '\n';
    write_all(atomic_load(&log_fd), line, n);
    errno = saved;
}
