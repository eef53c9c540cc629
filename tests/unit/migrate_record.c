/* The record in a file: swaps by two processes at once, unclear answers, garbage; the converge controller beside it. */
#include <CUnit/Basic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/log.h"
#include "base/loop.h"
#include "migrate/converge.h"
#include "migrate/record.h"

static char path[64];

static void clean(void)
{
    char lock[80];
    unlink(path);
    snprintf(lock, sizeof(lock), "%s.lock", path);
    unlink(lock);
}

/* Each process raises the epoch by one, RACES times; every swap that said 0 must count. */
enum { RACES = 200, RACERS = 3 };

static int raise_epoch(void *ctx, const struct fvm_ho_record *now, struct fvm_ho_record *ret_next)
{
    (void)ctx;
    *ret_next = *now;
    ret_next->epoch++;
    return 0;
}

static int racer(void)
{
    struct fvm_record_file *file;
    struct fvm_err err;
    if (fvm_record_file_open(path, "a", &file, &err))
        return 1;
    struct fvm_record_store store = fvm_record_file_store(file);
    for (int i = 0; i < RACES;) {
        struct fvm_ho_record now, next;
        uint64_t revision;
        if (store.get(store.ctx, &now, &revision, &err))
            return 2;
        raise_epoch(NULL, &now, &next);
        int rc = store.cas(store.ctx, revision, &next, &err);
        if (rc && rc != FVM_ECONFLICT)
            return 3;
        i += rc == 0;
    }
    fvm_record_file_close(&file);
    return 0;
}

static void test_race(void)
{
    struct fvm_record_file *file;
    struct fvm_err err;
    struct fvm_ho_record r;
    clean();
    fflush(stdout);
    for (int i = 0; i < RACERS; i++)
        if (fork() == 0)
            _exit(racer());
    for (int i = 0; i < RACERS; i++) {
        int status = -1;
        wait(&status);
        CU_ASSERT_EQUAL(status, 0);
    }
    CU_ASSERT_EQUAL_FATAL(fvm_record_file_open(path, NULL, &file, &err), 0);
    struct fvm_record_store store = fvm_record_file_store(file);
    CU_ASSERT_EQUAL(fvm_record_read(&store, 0, &r, &err), 0);
    CU_ASSERT_EQUAL(r.epoch, 1 + RACES * RACERS);
    fvm_record_file_close(&file);
    clean();
}

static void test_garbage(void)
{
    struct fvm_ho_record r = {.owner = "a", .epoch = 3, .phase = FVM_HO_MIG, .from = "a", .to = "b", .mig_id = {0xab}},
                         got;
    char text[1024], bad[1100];
    uint64_t revision;
    int n = fvm_record_format(&r, 9, text, sizeof(text));
    CU_ASSERT_TRUE_FATAL(n > 0);
    CU_ASSERT_EQUAL(fvm_record_parse(text, (size_t)n, &got, &revision), 0);
    CU_ASSERT_EQUAL(fvm_record_format(&got, 9, bad, sizeof(bad)), n);
    CU_ASSERT_STRING_EQUAL(bad, text);
    CU_ASSERT_EQUAL(revision, 9);
    for (int len = 0; len < n; len++) /* torn writes */
        CU_ASSERT_EQUAL(fvm_record_parse(text, (size_t)len, &got, &revision), FVM_EBADIMAGE);
    unsigned accepted = 0;
    for (int i = 0; i < n; i++) {
        memcpy(bad, text, (size_t)n);
        bad[i] = '\0';
        accepted += fvm_record_parse(bad, (size_t)n, &got, &revision) == 0;
        bad[i] = '\n';
        accepted += text[i] != '\n' && text[i] != ' ' && fvm_record_parse(bad, (size_t)n, &got, &revision) == 0;
    }
    CU_ASSERT_EQUAL(accepted, 0);
    memcpy(bad, text, (size_t)n);
    memcpy(bad + n, "x", 1);
    CU_ASSERT_EQUAL(fvm_record_parse(bad, (size_t)n + 1, &got, &revision), FVM_EBADIMAGE);
    FILE *f = fopen(path, "w");
    fputs("root:x:0:0\n", f);
    fclose(f);
    struct fvm_record_file *file;
    struct fvm_err err;
    CU_ASSERT_EQUAL(fvm_record_file_open(path, "a", &file, &err), FVM_EBADIMAGE); /* somebody's file: not overwritten */
    clean();
}

/* ---- a store whose answers get lost ---- */

struct shaky {
    struct fvm_ho_record record;
    uint64_t revision;
    int lose_answers, lose_requests, swaps;
};

static int shaky_get(void *ctx, struct fvm_ho_record *ret_record, uint64_t *ret_revision, struct fvm_err *err)
{
    struct shaky *s = ctx;
    if (s->lose_requests > 0 && s->lose_requests-- > 0)
        return fvm_err_set(err, FVM_EIO, 0, "test", "away");
    *ret_record = s->record;
    *ret_revision = s->revision;
    return 0;
}

static int shaky_cas(void *ctx, uint64_t expect, const struct fvm_ho_record *next, struct fvm_err *err)
{
    struct shaky *s = ctx;
    if (s->lose_requests > 0 && s->lose_requests-- > 0)
        return fvm_err_set(err, FVM_ETIMEOUT, 0, "test", "no answer");
    if (expect != s->revision)
        return fvm_err_set(err, FVM_ECONFLICT, 0, "test", "changed");
    s->record = *next;
    s->revision++;
    s->swaps++;
    return s->lose_answers-- > 0 ? fvm_err_set(err, FVM_ETIMEOUT, 0, "test", "no answer") : 0;
}

static int next_begin(void *ctx, const struct fvm_ho_record *now, struct fvm_ho_record *ret_next)
{
    static const uint8_t id[FVM_HO_ID_BYTES] = {7};
    return fvm_ho_begin(now, ctx, "b", id, ret_next);
}

static void test_unclear(void)
{
    for (int answers = 0; answers < 2; answers++)
        for (int requests = 0; requests < 4; requests++) {
            struct shaky s = {.record = {.owner = "a", .epoch = 1, .phase = FVM_HO_STABLE},
                              .revision = 5,
                              .lose_answers = answers,
                              .lose_requests = requests};
            struct fvm_record_store store = {shaky_get, shaky_cas, &s};
            struct fvm_ho_record r;
            struct fvm_err err;
            CU_ASSERT_EQUAL(fvm_record_swap(&store, next_begin, (void *)"a", fvm_now_ns() + 2000000000ull, &r, &err),
                            0);
            CU_ASSERT_EQUAL(s.swaps, 1); /* never twice */
            CU_ASSERT_EQUAL(r.phase, FVM_HO_MIG);
            CU_ASSERT_EQUAL(fvm_record_swap(&store, next_begin, (void *)"c", fvm_now_ns(), &r, &err), FVM_ESTATE);
            s.lose_requests = 1 << 30;
            CU_ASSERT_EQUAL(fvm_record_swap(&store, next_begin, (void *)"a", fvm_now_ns(), &r, &err), FVM_ETIMEOUT);
        }
}

static void test_converge(void)
{
    struct fvm_converge c;
    /* 100 MB/s, 10 MB/s dirtied: rounds shrink, then it is time */
    fvm_converge_init(&c, 300000000, 0, FVM_ON_MISS_CANCEL);
    double pending = 1e9;
    int rounds = 0;
    enum fvm_converge_next next = FVM_CONVERGE_ROUND;
    uint64_t t = 0;
    while (next == FVM_CONVERGE_ROUND && rounds++ < 100) {
        double ns = pending / 100e6 * 1e9;
        t += (uint64_t)ns;
        uint64_t sent = (uint64_t)pending;
        pending = 10e6 * ns / 1e9;
        next = fvm_converge_round(&c, sent, (uint64_t)pending, (uint64_t)pending, 1.0, (uint64_t)ns, t);
    }
    CU_ASSERT_EQUAL(next, FVM_CONVERGE_FINAL);
    CU_ASSERT_TRUE(c.predicted_ns < 300000000);
    CU_ASSERT_TRUE(rounds >= 2 && rounds < 6);
    /* a guest faster than the wire: says so, then misses; with "pause" it stops the guest */
    for (int pause = 0; pause < 2; pause++) {
        fvm_converge_init(&c, 50000000, 20000000000ull, pause ? FVM_ON_MISS_PAUSE : FVM_ON_MISS_CANCEL);
        bool warned = false;
        for (t = 1000000000, next = FVM_CONVERGE_ROUND; next == FVM_CONVERGE_ROUND; t += 1000000000) {
            next = fvm_converge_round(&c, 100000000, 200000000, 200000000, 1.0, 1000000000, t);
            char text[200];
            const char *says = fvm_converge_says(&c, t, text, sizeof(text));
            warned |= says != NULL;
            CU_ASSERT_TRUE(!says || strstr(says, "writes 191 MiB/s, pages leave at 95 MiB/s"));
            CU_ASSERT_TRUE(warned || t < 10000000000ull);
        }
        CU_ASSERT_TRUE(warned);
        CU_ASSERT_EQUAL(next, pause ? FVM_CONVERGE_FINAL : FVM_CONVERGE_MISS);
        CU_ASSERT_TRUE(t <= 22000000000ull);
    }
}

/* A guest faster than the wire is held back, no more than it takes, and then fits. */
static void test_throttle(void)
{
    struct fvm_converge c;
    enum fvm_converge_next next = FVM_CONVERGE_ROUND;
    double pending = 1e9;
    uint64_t t = 0;
    fvm_converge_init(&c, 50000000, 60000000000ull, FVM_ON_MISS_CANCEL);
    c.may_throttle = true;
    while (next == FVM_CONVERGE_ROUND) {
        double seconds = pending / 100e6, rate = c.write_limit ? FVM_MIN(150e6, (double)c.write_limit) : 150e6;
        uint64_t sent = (uint64_t)pending;
        t += (uint64_t)(seconds * 1e9);
        pending = FVM_MIN(rate * seconds, 256e6); /* a working set */
        next = fvm_converge_round(&c, sent, (uint64_t)pending, (uint64_t)pending, 1.0, (uint64_t)(seconds * 1e9), t);
        CU_ASSERT_TRUE(c.rounds >= 3 || c.write_limit == 0);
    }
    CU_ASSERT_EQUAL(next, FVM_CONVERGE_FINAL);
    CU_ASSERT_TRUE(c.write_limit >= 20000000 && c.write_limit <= 80000000);
    CU_ASSERT_TRUE(c.predicted_ns <= 50000000);
}

int main(void)
{
    fvm_log_set_level(FVM_LOG_ERROR);
    snprintf(path, sizeof(path), "/tmp/fvm-record-%d", getpid());
    CU_initialize_registry();
    CU_pSuite s = CU_add_suite("migrate_record", NULL, NULL);
    CU_add_test(s, "processes race", test_race);
    CU_add_test(s, "garbage", test_garbage);
    CU_add_test(s, "unclear answers", test_unclear);
    CU_add_test(s, "converge", test_converge);
    CU_add_test(s, "throttle", test_throttle);
    CU_basic_set_mode(CU_BRM_VERBOSE);
    CU_basic_run_tests();
    unsigned failed = CU_get_number_of_failures();
    CU_cleanup_registry();
    return failed ? 1 : 0;
}
