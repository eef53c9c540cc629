/*
 * fuzz.h - a fuzz target: tests/fuzz/NAME.c. Built with clang and FVM_FUZZ it is a libFuzzer program; else driver.c
 * mutates the seeds that the target itself makes, a fixed number of times from a fixed seed (ctest label fuzz, meant
 * for the dev preset: ASan, UBSan).
 */
#ifndef FVM_TESTS_FUZZ_FUZZ_H
#define FVM_TESTS_FUZZ_FUZZ_H

#include <stddef.h>
#include <stdint.h>

enum { FUZZ_BYTES_MAX = 1 << 17 };

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
/** The i-th well-formed input into buf (FUZZ_BYTES_MAX bytes); 0: there are no more. */
size_t fuzz_seed(unsigned i, uint8_t *buf);

#endif
