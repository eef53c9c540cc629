/* A VM's journal, as a daemon reads it after its restart. */
#include <stdlib.h>
#include <string.h>

#include "cluster/journal.h"
#include "tests/fuzz/fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct fvm_journal_view v;
    fvm_journal_parse((const char *)data, size, &v);
    if (!memchr(v.phase, 0, sizeof(v.phase)) || !memchr(v.outcome, 0, sizeof(v.outcome)))
        abort();
    return 0;
}

size_t fuzz_seed(unsigned i, uint8_t *buf)
{
    static const char *const seeds[] = {
        "{\"who\":\"node\",\"do\":\"start\",\"role\":\"incoming\",\"peer\":\"a\"}\n"
        "{\"who\":\"dest\",\"do\":\"phase\",\"phase\":\"take\"}\n{\"who\":\"dest\",\"do\":\"end\",\"outcome\":"
        "\"moved\"}\n",
        "{\"who\":\"source\",\"do\":\"want\",\"owner\":\"a\",\"epoch\":3,\"phase\":\"migrating\",\"mig_id\":"
        "\"000102030405060708090a0b0c0d0e0f\"}\n{\"who\":\"source\",\"do\":\"phase\",\"phase\":\"precopy\"}",
    };
    if (i >= sizeof(seeds) / sizeof(seeds[0]))
        return 0;
    memcpy(buf, seeds[i], strlen(seeds[i]));
    return strlen(seeds[i]);
}
