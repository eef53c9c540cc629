/*
 * A snapshot file. First byte: 0 the bytes as they are; else the description's checksum is made right again, so that
 * what lies behind it is reached. Nothing but a whole file may load.
 */
#include "migrate/snapshot.h"

#include <sodium.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "tests/fuzz/fuzz.h"
#include "tests/unit/migrate_toy.h"

static void on_done(void *ctx, const struct fvm_snapshot_report *report) { *(int *)ctx = report->err.code; }

static void correct_hash(uint8_t *file, size_t size)
{
    if (size < 48)
        return;
    size_t payload = (size_t)file[24] | (size_t)file[25] << 8 | (size_t)file[26] << 16;
    if (payload <= size - 48)
        crypto_generichash(file + 32, 16, file + 48, payload, NULL, 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct fvm_snapshot_in *in = NULL;
    Fvm__FinalState *state = NULL;
    struct fvm_ram *ram = NULL;
    struct fvm_err err = {0};
    char path[40];
    int fd = memfd_create("snapshot", MFD_CLOEXEC);
    if (!size || fd < 0 || sodium_init() < 0) {
        close(fd);
        return 0;
    }
    uint8_t *copy = malloc(size);
    memcpy(copy, data + 1, size - 1);
    if (data[0])
        correct_hash(copy, size - 1);
    if (write(fd, copy, size - 1) != (ssize_t)size - 1)
        abort();
    free(copy);
    snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
    int r = fvm_snapshot_open(path, NULL, &in, &err);
    if (!r) {
        uint64_t memory = fvm_snapshot_config(in)->memory_bytes;
        r = fvm_ram_create(memory && memory <= 64 << 20 ? FVM_ALIGN_UP(memory, FVM_PAGE_SIZE) : 16 << 20, &ram, &err);
    }
    if (!r)
        r = fvm_snapshot_load(in, ram, &state, &err);
    if (r && !err.text[0])
        abort();
    if (!r && (!state || !state->cpus || !state->devices))
        abort();
    if (state)
        fvm__final_state__free_unpacked(state, NULL);
    fvm_snapshot_close(&in);
    fvm_ram_destroy(&ram);
    close(fd);
    return 0;
}

static uint8_t *seeds[2];
static size_t seed_lens[2];

static void make_seed(unsigned i)
{
    struct toy t;
    struct fvm_snapshot *s = NULL;
    char path[] = "/tmp/fvm-fuzz.XXXXXX";
    int r = 0, fd = mkstemp(path);
    if (fd < 0)
        abort();
    close(fd);
    toy_init(&t, 16 << 20, true);
    toy_fill(&t, 20, i);
    t.running = false;
    const struct fvm_snapshot_options o = {.machine = toy_machine(&t), .path = path, .compress = i, .done = on_done,
                                           .ctx = &r};
    if (fvm_snapshot_start(&o, &s, NULL) == 0)
        fvm_snapshot_join(&s);
    toy_fini(&t);
    seeds[i] = malloc(FUZZ_BYTES_MAX);
    seeds[i][0] = (uint8_t)i;
    FILE *f = fopen(path, "rb");
    if (!f || r)
        abort();
    seed_lens[i] = 1 + fread(seeds[i] + 1, 1, FUZZ_BYTES_MAX - 1, f);
    fclose(f);
    unlink(path);
    (void)toy_same;
}

size_t fuzz_seed(unsigned i, uint8_t *buf)
{
    if (i >= 2)
        return 0;
    if (!seeds[i])
        make_seed(i);
    memcpy(buf, seeds[i], seed_lens[i]);
    return seed_lens[i];
}
