/* Snapshots of a machine of bytes: what is loaded is what was saved, while it ran; every damage and cut is refused. */
#include <CUnit/Basic.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#include "migrate/snapshot.h"
#include "migrate_toy.h"

static char folder[] = "/tmp/fvm-snapshot.XXXXXX";
static char path[64], other[64], key[64];
static struct fvm_snapshot_report report;
static bool over;

static void on_done(void *ctx, const struct fvm_snapshot_report *r)
{
    (void)ctx;
    report = *r;
    __atomic_store_n(&over, true, __ATOMIC_RELEASE);
}

static int save(struct toy *t, struct fvm_snapshot_options *o)
{
    struct fvm_snapshot *s = NULL;
    struct fvm_err err = {0};
    o->machine = toy_machine(t);
    o->path = o->path ? o->path : path;
    o->done = on_done;
    over = false;
    report = (struct fvm_snapshot_report){0};
    int r = fvm_snapshot_start(o, &s, &err);
    if (r) {
        CU_ASSERT(err.text[0] != 0);
        return r;
    }
    fvm_snapshot_join(&s);
    CU_ASSERT_TRUE(over);
    return report.err.code;
}

/* 0, or the code; the toy gets RAM and state. */
static int load(const char *from, const char *key_file, struct toy *t, struct fvm_err *err)
{
    struct fvm_snapshot_in *in = NULL;
    Fvm__FinalState *state = NULL;
    *err = (struct fvm_err){0};
    int r = fvm_snapshot_open(from, key_file, &in, err);
    if (!r)
        r = t_create(t, fvm_snapshot_config(in), err);
    if (!r)
        r = fvm_snapshot_load(in, t->ram, &state, err);
    if (!r) {
        t_restore(t, state->cpus, state->devices, 0);
        t->running = !state->paused;
        fvm__final_state__free_unpacked(state, NULL);
    }
    fvm_snapshot_close(&in);
    CU_ASSERT_EQUAL(r, err->code);
    CU_ASSERT(!r || err->text[0] != 0);
    return r;
}

static void roundtrip(uint64_t memory, struct fvm_snapshot_options o, unsigned writes_per_ms)
{
    struct toy a, b;
    struct fvm_err err;
    toy_init(&a, memory, true);
    toy_init(&b, 0, false);
    toy_fill(&a, 900, 7);
    a.writes_per_ms = writes_per_ms;
    bool stop = o.stop;
    o.stop = true; /* stands still afterwards, so that the two can be compared */
    CU_ASSERT_EQUAL(save(&a, &o), 0);
    CU_ASSERT_TRUE(report.stopped && !a.running && !a.storage);
    CU_ASSERT_EQUAL(a.runs, 0);
    CU_ASSERT_EQUAL(load(path, o.key_file, &b, &err), 0);
    CU_ASSERT_TRUE(toy_same(&a, &b));
    CU_ASSERT_EQUAL(b.state, 4711);
    CU_ASSERT_TRUE(b.running); /* it ran when the snapshot was asked for */
    (void)stop;
    toy_fini(&a);
    toy_fini(&b);
}

static void test_roundtrip(void)
{
    roundtrip(16 << 20, (struct fvm_snapshot_options){0}, 0);
    roundtrip(16 << 20, (struct fvm_snapshot_options){.compress = true}, 2);
    roundtrip(16 << 20, (struct fvm_snapshot_options){.key_file = key}, 2);
    roundtrip((3ull << 30) + (8 << 20), (struct fvm_snapshot_options){0}, 5); /* RAM on both sides of the hole */
}

static void test_guest_goes_on(void)
{
    struct toy a, b;
    struct fvm_snapshot_options o = {0};
    struct fvm_err err;
    toy_init(&a, 16 << 20, true);
    a.writes_per_ms = 3;
    CU_ASSERT_EQUAL(save(&a, &o), 0);
    CU_ASSERT_TRUE(a.running && a.storage);
    CU_ASSERT_EQUAL(a.runs, 1);
    CU_ASSERT(report.rounds >= 2 && report.file_bytes > 0);
    a.running = false; /* paused by its operator: the snapshot leaves it so, and so does a restore */
    CU_ASSERT_EQUAL(save(&a, &o), 0);
    CU_ASSERT_FALSE(a.running);
    CU_ASSERT_EQUAL(a.runs, 1);
    toy_init(&b, 0, false);
    CU_ASSERT_EQUAL(load(path, NULL, &b, &err), 0);
    CU_ASSERT_FALSE(b.running);
    toy_fini(&b);
    toy_fini(&a);
}

static void expect_unharmed(struct toy *a)
{
    CU_ASSERT_TRUE(a->running && a->storage);
    CU_ASSERT_NOT_EQUAL(access(other, F_OK), 0);
    char part[80];
    snprintf(part, sizeof(part), "%s.part", other);
    CU_ASSERT_NOT_EQUAL(access(part, F_OK), 0);
}

static void test_failures(void)
{
    struct toy a;
    struct fvm_snapshot_options o = {.path = "/nonexistent-folder/x"};
    toy_init(&a, 16 << 20, true);
    toy_fill(&a, 300, 1);
    CU_ASSERT_EQUAL(save(&a, &o), FVM_ENOENT);
    o = (struct fvm_snapshot_options){.path = other, .stop = true};
    a.fail_save = FVM_EINTERNAL;
    CU_ASSERT_EQUAL(save(&a, &o), FVM_EINTERNAL);
    expect_unharmed(&a);
    a.fail_save = 0;
    o = (struct fvm_snapshot_options){.path = other, .key_file = "/dev/null"};
    CU_ASSERT_EQUAL(save(&a, &o), FVM_EINVAL); /* a key that anybody can guess */
    expect_unharmed(&a);
    /* a full disk is in tests/e2e/snapshot */
    struct fvm_snapshot *s = NULL;
    struct fvm_err err = {0};
    o = (struct fvm_snapshot_options){.machine = toy_machine(&a), .path = other, .done = on_done};
    a.writes_per_ms = 50;
    CU_ASSERT_EQUAL_FATAL(fvm_snapshot_start(&o, &s, &err), 0);
    fvm_snapshot_cancel(s);
    fvm_snapshot_join(&s);
    if (report.err.code) { /* it may have been faster */
        CU_ASSERT_EQUAL(report.err.code, FVM_ECANCELLED);
        expect_unharmed(&a);
    }
    toy_fini(&a);
}

static size_t read_all(uint8_t **ret)
{
    struct stat st;
    int fd = open(path, O_RDONLY);
    CU_ASSERT_EQUAL_FATAL(fstat(fd, &st), 0);
    *ret = malloc((size_t)st.st_size + 1);
    CU_ASSERT_EQUAL_FATAL(read(fd, *ret, (size_t)st.st_size), st.st_size);
    close(fd);
    return (size_t)st.st_size;
}

static int load_bytes(const uint8_t *bytes, size_t len, const char *key_file)
{
    struct toy b;
    struct fvm_err err;
    int fd = open(other, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    CU_ASSERT_EQUAL_FATAL(write(fd, bytes, len), (ssize_t)len);
    close(fd);
    toy_init(&b, 0, false);
    int r = load(other, key_file, &b, &err);
    toy_fini(&b);
    unlink(other);
    return r;
}

static void test_damage(void)
{
    struct toy a;
    struct fvm_snapshot_options o = {0};
    uint8_t *file;
    uint64_t rng = 99;
    toy_init(&a, 16 << 20, true);
    toy_fill(&a, 200, 3);
    CU_ASSERT_EQUAL_FATAL(save(&a, &o), 0);
    size_t len = read_all(&file);
    CU_ASSERT_EQUAL(load_bytes(file, len, NULL), 0);
    for (unsigned i = 0; i < 120; i++) { /* any bit: refused, and soon */
        rng = rng * 6364136223846793005ull + 1442695040888963407ull;
        size_t at = i < 40 ? i : i < 80 ? len - 1 - (i - 40) : (rng >> 20) % len;
        file[at] ^= (uint8_t)(1u << (rng >> 61));
        CU_ASSERT_NOT_EQUAL(load_bytes(file, len, NULL), 0);
        file[at] ^= (uint8_t)(1u << (rng >> 61));
    }
    for (unsigned i = 0; i < 60; i++) { /* any cut */
        rng = rng * 6364136223846793005ull + 1442695040888963407ull;
        size_t cut = i < 20 ? i : i < 40 ? len - 1 - (i - 20) : (rng >> 20) % len;
        CU_ASSERT_NOT_EQUAL(load_bytes(file, cut, NULL), 0);
    }
    file[len] = 0;
    CU_ASSERT_EQUAL(load_bytes(file, len + 1, NULL), FVM_ECORRUPT);
    file[8] = 2;
    CU_ASSERT_EQUAL(load_bytes(file, len, NULL), FVM_EVERSION);
    file[8] = 1;
    CU_ASSERT_EQUAL(load_bytes((const uint8_t *)"#!/bin/sh\necho\n#", 16, NULL), FVM_EBADIMAGE);
    free(file);
    toy_fini(&a);
}

static void test_sealed(void)
{
    static const char secret[] = "a page with these words";
    struct toy a, b;
    struct fvm_snapshot_options o = {.key_file = key};
    struct fvm_err err;
    uint8_t *file;
    char wrong[64];
    toy_init(&a, 16 << 20, true);
    CU_ASSERT_EQUAL(fvm_ram_write(a.ram, 0x200000, secret, sizeof(secret)), 0);
    CU_ASSERT_EQUAL_FATAL(save(&a, &o), 0);
    size_t len = read_all(&file);
    CU_ASSERT_PTR_NULL(memmem(file, len, secret, sizeof(secret)));
    CU_ASSERT_EQUAL(load_bytes(file, len, NULL), FVM_EAUTH);
    CU_ASSERT_EQUAL(load_bytes(file, len, key), 0);
    snprintf(wrong, sizeof(wrong), "%s/wrong", folder);
    FILE *f = fopen(wrong, "w");
    fputs("0123456789abcdef0123456789abcdeg", f);
    fclose(f);
    CU_ASSERT_EQUAL(load_bytes(file, len, wrong), FVM_EAUTH);
    unlink(wrong);
    free(file);
    o.key_file = NULL; /* without: the words are there */
    CU_ASSERT_EQUAL_FATAL(save(&a, &o), 0);
    toy_init(&b, 0, false);
    CU_ASSERT_EQUAL(load(path, "/nonexistent", &b, &err), 0); /* a key file that is not needed is not looked at */
    toy_fini(&b);
    toy_fini(&a);
}

int main(void)
{
    if (!mkdtemp(folder))
        return 1;
    snprintf(path, sizeof(path), "%s/a", folder);
    snprintf(other, sizeof(other), "%s/b", folder);
    snprintf(key, sizeof(key), "%s/key", folder);
    FILE *f = fopen(key, "w");
    fputs("0123456789abcdef0123456789abcdef", f);
    fclose(f);
    CU_initialize_registry();
    CU_pSuite s = CU_add_suite("unit/migrate_snapshot", NULL, NULL);
    CU_add_test(s, "round trip", test_roundtrip);
    CU_add_test(s, "the guest goes on", test_guest_goes_on);
    CU_add_test(s, "failures", test_failures);
    CU_add_test(s, "damage", test_damage);
    CU_add_test(s, "sealed", test_sealed);
    CU_basic_set_mode(CU_BRM_VERBOSE);
    CU_basic_run_tests();
    unsigned bad = CU_get_number_of_failures();
    CU_cleanup_registry();
    unlink(path);
    unlink(key);
    rmdir(folder);
    return bad != 0;
}
