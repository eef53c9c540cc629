/* The record's file. What is accepted must be a possible record and read the same after it was written. */
#include <stdlib.h>
#include <string.h>

#include "migrate/handover.h"
#include "tests/fuzz/fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct fvm_ho_record r, again;
    uint64_t revision, other;
    char text[1024];
    if (fvm_record_parse((const char *)data, size, &r, &revision) != 0)
        return 0;
    int n = fvm_record_format(&r, revision, text, sizeof(text));
    if (!fvm_ho_record_valid(&r) || n < 0 || fvm_record_parse(text, (size_t)n, &again, &other) != 0 ||
        other != revision || again.epoch != r.epoch || strcmp(again.owner, r.owner) || strcmp(again.to, r.to))
        abort();
    return 0;
}

size_t fuzz_seed(unsigned i, uint8_t *buf)
{
    struct fvm_ho_record r = {.owner = "alpha",
                              .epoch = 1 + i,
                              .phase = (enum fvm_ho_phase)(1 + i),
                              .from = "alpha",
                              .to = "beta",
                              .mig_id = {0xfe}};
    return i < 3 ? (size_t)fvm_record_format(&r, 77 + i, (char *)buf, FUZZ_BYTES_MAX) : 0;
}
