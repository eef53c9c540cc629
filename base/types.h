/*
 * types.h - addresses and the few macros that every room uses.
 *
 * gpa: guest physical, gva: guest linear, hva: host virtual. At the edges of rooms an address says
 * in its type which of them it is; inside a room plain uint64_t with the suffix _gpa/_gva/_hva is fine.
 */
#ifndef FVM_BASE_TYPES_H
#define FVM_BASE_TYPES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define FVM_PAGE_SHIFT 12
#define FVM_PAGE_SIZE 4096ull
#define FVM_PAGE_MASK (FVM_PAGE_SIZE - 1)

typedef uint64_t fvm_gpa; /* guest physical address, bytes */
typedef uint64_t fvm_gva; /* guest linear address, bytes */
typedef uint64_t fvm_pfn; /* guest page frame number: gpa >> 12 */

#define FVM_ARRAY_SIZE(a) (sizeof(a) / sizeof((a)[0]))
#define FVM_MIN(a, b) ((a) < (b) ? (a) : (b))
#define FVM_MAX(a, b) ((a) > (b) ? (a) : (b))
#define FVM_ALIGN_UP(x, a) (((x) + ((a)-1)) & ~((__typeof__(x))(a)-1))
#define FVM_ALIGN_DOWN(x, a) ((x) & ~((__typeof__(x))(a)-1))
#define FVM_CONTAINER_OF(p, type, member) ((type *)(void *)((char *)(p)-offsetof(type, member)))
#define FVM_LIKELY(x) __builtin_expect(!!(x), 1)
#define FVM_UNLIKELY(x) __builtin_expect(!!(x), 0)
#define FVM_NORETURN __attribute__((noreturn))
#define FVM_PRINTF(f, a) __attribute__((format(printf, f, a)))

#endif
