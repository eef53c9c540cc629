/*
 * copy.h - a small copy that is never a call to libc's memcpy: for code that runs while the guest's vector registers are live.
 */
#ifndef FVM_BASE_COPY_H
#define FVM_BASE_COPY_H

#include "base/types.h"

static inline void fvm_copy_small(void *dst, const void *src, size_t len)
{
    uint8_t *d = dst;
    const uint8_t *s = src;
    for (; len >= 8; len -= 8, d += 8, s += 8)
        *(uint64_t __attribute__((may_alias, aligned(1))) *)(void *)d =
            *(const uint64_t __attribute__((may_alias, aligned(1))) *)(const void *)s;
    if (len >= 4) { /* whole words: another vCPU may look at aligned ones */
        *(uint32_t __attribute__((may_alias, aligned(1))) *)(void *)d =
            *(const uint32_t __attribute__((may_alias, aligned(1))) *)(const void *)s;
        len -= 4, d += 4, s += 4;
    }
    if (len >= 2) {
        *(uint16_t __attribute__((may_alias, aligned(1))) *)(void *)d =
            *(const uint16_t __attribute__((may_alias, aligned(1))) *)(const void *)s;
        len -= 2, d += 2, s += 2;
    }
    if (len)
        *d = *s;
}

#endif
