/*
 * log.h - one line per event: level, stable event name, then key=value pairs.
 * fvm_log(WARN, "migrate.stall", "vm=%s round=%u", name, round);
 * Lines go to stderr (or the file/callback set once at start, before threads). Any thread may log.
 * When the terminal is in raw mode lines end with CR LF.
 */
#ifndef FVM_BASE_LOG_H
#define FVM_BASE_LOG_H

#include "base/types.h"

enum fvm_log_level { FVM_LOG_ERROR, FVM_LOG_WARN, FVM_LOG_INFO, FVM_LOG_DEBUG };

void fvm_log_set_level(enum fvm_log_level level);
/** "error" | "warn" | "info" | "debug" -> level; returns false for anything else. */
bool fvm_log_parse_level(const char *s, enum fvm_log_level *ret_level);
/** Send lines to fd instead of stderr. fd is borrowed. */
void fvm_log_set_fd(int fd);
void fvm_log_set_crlf(bool on);
bool fvm_log_enabled(enum fvm_log_level level);
/** Is the n-th (1...) of many alike worth a line? The first 16, then each power of two: strangers must not fill a disk. */
static inline bool fvm_log_nth(uint64_t n)
{
    return n <= 16 || (n & (n - 1)) == 0;
}
void fvm_log_emit(enum fvm_log_level level, const char *event, const char *fmt, ...) FVM_PRINTF(3, 4);

#define fvm_log(LEVEL, event, ...)                                                                 \
    (fvm_log_enabled(FVM_LOG_##LEVEL) ? fvm_log_emit(FVM_LOG_##LEVEL, event, __VA_ARGS__) : (void)0)

#endif
