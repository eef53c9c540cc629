/*
 * Whole migrations of a toy machine over loopback: source and destination threads, real ports, a record file. Every
 * failure must leave exactly one side with the guest, and the record must say which.
 */
#include <CUnit/Basic.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "migrate/record.h"
#include "migrate/wire.h"
#include "tests/unit/migrate_toy.h"

struct move { /* one attempt's stage */
    struct fvm_port_ctx *ctx;
    struct fvm_port_keys source_keys, dest_keys;
    char record_path[64];
    struct fvm_record_file *source_file, *dest_file;
    struct toy source, dest;
    struct fvm_source_options so;
    struct fvm_dest_options dopt;
    struct fvm_dest *d;
    struct fvm_memory *memory;
    struct fvm_migrate_report sr, dr;
    bool dest_done;
};

static bool allow(void *ctx, const char *key, const char *addr)
{
    struct move *m = ctx;
    (void)addr;
    return strcmp(key, m->source_keys.public_key) == 0;
}
static void source_done(void *ctx, const struct fvm_migrate_report *r) { ((struct move *)ctx)->sr = *r; }
static void dest_done(void *ctx, const struct fvm_migrate_report *r) { ((struct move *)ctx)->dr = *r; }

static void stage(struct move *m, uint64_t memory)
{
    struct fvm_err err = {0};
    memset(m, 0, sizeof(*m));
    CU_ASSERT_EQUAL_FATAL(fvm_port_ctx_create(1, &m->ctx, &err), 0);
    fvm_port_keygen(&m->source_keys);
    fvm_port_keygen(&m->dest_keys);
    snprintf(m->record_path, sizeof(m->record_path), "/tmp/fvm-move-%d.record", getpid());
    unlink(m->record_path);
    CU_ASSERT_EQUAL_FATAL(fvm_record_file_open(m->record_path, "alpha", &m->source_file, &err), 0);
    CU_ASSERT_EQUAL_FATAL(fvm_record_file_open(m->record_path, NULL, &m->dest_file, &err), 0);
    toy_init(&m->source, memory, true);
    toy_init(&m->dest, memory, false);
    m->so = (struct fvm_source_options){.machine = toy_machine(&m->source),
                                        .record = fvm_record_file_store(m->source_file),
                                        .ctx = m->ctx,
                                        .keys = m->source_keys,
                                        .to_key = m->dest_keys.public_key,
                                        .self = "alpha",
                                        .to_name = "beta",
                                        .memory_p = &m->memory,
                                        .hooks = {.done = source_done, .ctx = m}};
    m->dopt = (struct fvm_dest_options){.machine = toy_machine(&m->dest),
                                        .record = fvm_record_file_store(m->dest_file),
                                        .ctx = m->ctx,
                                        .keys = m->dest_keys,
                                        .listen_addr = "tcp://127.0.0.1:*",
                                        .self = "beta",
                                        .allow = allow,
                                        .allow_ctx = m,
                                        .hooks = {.done = dest_done, .ctx = m}};
}

static void listen_now(struct move *m)
{
    struct fvm_err err = {0};
    CU_ASSERT_EQUAL_FATAL(fvm_dest_start(&m->dopt, &m->d, &err), 0);
}

static void send_now(struct move *m)
{
    struct fvm_err err = {0};
    struct fvm_source *s = NULL;
    m->so.to_addr = fvm_dest_addr(m->d);
    CU_ASSERT_EQUAL_FATAL(fvm_source_start(&m->so, &s, &err), 0);
    fvm_source_join(&s);
}

static void strike(struct move *m)
{
    char lock[80];
    if (m->d)
        fvm_dest_cancel(m->d);
    fvm_dest_join(&m->d);
    fvm_memory_destroy(&m->memory);
    toy_fini(&m->source);
    toy_fini(&m->dest);
    fvm_record_file_close(&m->source_file);
    fvm_record_file_close(&m->dest_file);
    unlink(m->record_path);
    snprintf(lock, sizeof(lock), "%s.lock", m->record_path);
    unlink(lock);
    fvm_port_ctx_destroy(&m->ctx);
}

static void check_record(struct move *m, const char *owner)
{
    struct fvm_ho_record r;
    struct fvm_err err;
    CU_ASSERT_EQUAL(fvm_record_read(&m->so.record, 0, &r, &err), 0);
    CU_ASSERT_STRING_EQUAL(r.owner, owner);
    CU_ASSERT_EQUAL(r.phase, FVM_HO_STABLE);
}

/* The guest runs at the destination, and there alone. */
static void check_moved(struct move *m)
{
    fvm_dest_join(&m->d);
    CU_ASSERT_EQUAL(m->sr.err.code, 0);
    if (m->sr.err.code)
        printf("\n  source: %s\n", m->sr.err.text);
    CU_ASSERT_EQUAL(m->sr.outcome, FVM_MIGRATE_MOVED);
    CU_ASSERT_EQUAL(m->dr.outcome, FVM_MIGRATE_MOVED);
    CU_ASSERT_TRUE(m->sr.verified);
    CU_ASSERT_FALSE(m->source.running);
    CU_ASSERT_TRUE(m->dest.running);
    CU_ASSERT_FALSE(m->source.storage);
    CU_ASSERT_TRUE(m->dest.storage);
    CU_ASSERT_EQUAL(m->dest.state, 4711);
    CU_ASSERT_EQUAL(m->dest.runs, 1);
    CU_ASSERT_EQUAL(m->dest.storage_epoch, m->dr.epoch);
    CU_ASSERT_TRUE(toy_same(&m->source, &m->dest));
    check_record(m, "beta");
}

/* It runs on at the source, and there alone. */
static void check_stayed(struct move *m, int code)
{
    CU_ASSERT_EQUAL(m->sr.outcome, FVM_MIGRATE_STAYED);
    CU_ASSERT_EQUAL(m->sr.err.code, code);
    if (m->sr.err.code != code)
        printf("\n  source: %d %s\n", m->sr.err.code, m->sr.err.text);
    CU_ASSERT_TRUE(m->source.running);
    CU_ASSERT_TRUE(m->source.storage);
    CU_ASSERT_FALSE(m->dest.running);
    CU_ASSERT_EQUAL(m->dest.runs, 0);
    check_record(m, "alpha");
}

static void test_idle(void)
{
    struct move m;
    stage(&m, 64 << 20);
    toy_fill(&m.source, 3000, 1);
    listen_now(&m);
    send_now(&m);
    check_moved(&m);
    printf("\n  idle 64 MiB: blackout %.2f ms, total %.1f ms, %llu bytes, %u rounds ... ",
           (double)m.sr.blackout_ns / 1e6, (double)m.sr.total_ns / 1e6, (unsigned long long)m.sr.sent_bytes,
           m.sr.rounds);
    strike(&m);
}

static void test_writing(void)
{
    struct move m;
    stage(&m, 64 << 20);
    toy_fill(&m.source, 6000, 2);
    m.source.writes_per_ms = 20;
    m.so.verify_all = true; /* trust no cached hash: a missed write would show */
    m.so.compress = 1;
    listen_now(&m);
    send_now(&m);
    check_moved(&m);
    printf("\n  writing 64 MiB: blackout %.2f ms, %u rounds ... ", (double)m.sr.blackout_ns / 1e6, m.sr.rounds);
    strike(&m);
}

static void test_corrupt_wire(void)
{
    struct move m;
    stage(&m, 64 << 20);
    toy_fill(&m.source, 6000, 3);
    m.so.faults.corrupt_batch = 4;
    listen_now(&m);
    send_now(&m);
    check_moved(&m);
    CU_ASSERT_EQUAL(m.sr.corrupt_batches, 1);
    CU_ASSERT_TRUE(m.sr.pages_resent > 0);
    strike(&m);
}

static void test_drop_last(void)
{
    struct move m;
    stage(&m, 32 << 20);
    toy_fill(&m.source, 150, 4); /* one batch: nothing behind it shows the gap */
    m.so.faults.drop_batch = 1;
    listen_now(&m);
    send_now(&m);
    check_moved(&m);
    CU_ASSERT_TRUE(m.sr.pages_resent > 0);
    strike(&m);
}

static void test_corrupt_ram(void)
{
    struct move m;
    stage(&m, 32 << 20);
    toy_fill(&m.source, 1000, 5);
    m.dopt.faults.corrupt_ram = true;
    listen_now(&m);
    send_now(&m);
    check_moved(&m);
    CU_ASSERT_EQUAL(m.sr.digest_repairs, 1);
    strike(&m);
}

static void test_state_refused_then_retry(void)
{
    struct move m;
    stage(&m, 64 << 20);
    toy_fill(&m.source, 6000, 6);
    m.dest.fail_check = 1;
    listen_now(&m);
    send_now(&m);
    check_stayed(&m, FVM_ECPUMODEL);
    uint64_t first = m.sr.sent_bytes;
    m.dest.fail_check = 0;
    send_now(&m);
    check_moved(&m);
    CU_ASSERT_TRUE(m.sr.sent_bytes < first / 10); /* only the difference */
    strike(&m);
}

static void test_storage_refused(void)
{
    struct move m;
    stage(&m, 32 << 20);
    toy_fill(&m.source, 500, 7);
    m.dest.fail_activate = FVM_EBUSY;
    listen_now(&m);
    send_now(&m);
    check_stayed(&m, FVM_EBUSY);
    CU_ASSERT_TRUE(m.source.storage_epoch >= 3); /* handed back: TAKE and HANDBACK both raised it */
    CU_ASSERT_TRUE(m.dest.activations > 1);
    strike(&m);
}

static void test_wrong_key(void)
{
    struct move m;
    struct fvm_port_keys other;
    stage(&m, 32 << 20);
    listen_now(&m);
    fvm_port_keygen(&other);
    m.so.keys = other; /* not on the destination's list */
    send_now(&m);
    check_stayed(&m, FVM_EAUTH);
    m.so.keys = m.source_keys;
    m.so.to_key = other.public_key; /* the destination is not who it should be */
    send_now(&m);
    check_stayed(&m, FVM_EAUTH);
    strike(&m);
}

static void test_nobody_there(void)
{
    struct move m;
    stage(&m, 32 << 20);
    listen_now(&m);
    char addr[100];
    snprintf(addr, sizeof(addr), "%s", fvm_dest_addr(m.d));
    fvm_dest_cancel(m.d);
    fvm_dest_join(&m.d);
    struct fvm_source *s = NULL;
    struct fvm_err err;
    m.so.to_addr = addr;
    CU_ASSERT_EQUAL_FATAL(fvm_source_start(&m.so, &s, &err), 0);
    fvm_source_join(&s);
    check_stayed(&m, FVM_ETIMEOUT);
    strike(&m);
}

static void test_dry_run(void)
{
    struct move m;
    stage(&m, 32 << 20);
    toy_fill(&m.source, 500, 8);
    m.so.dry_run = true;
    listen_now(&m);
    send_now(&m);
    check_stayed(&m, 0);
    CU_ASSERT_EQUAL(m.source.pauses, 0);
    m.so.dry_run = false;
    send_now(&m);
    check_moved(&m);
    strike(&m);
}

static void test_wrong_name(void)
{
    struct move m;
    stage(&m, 32 << 20);
    m.so.to_name = "gamma";
    listen_now(&m);
    send_now(&m);
    check_stayed(&m, FVM_EINVAL);
    strike(&m);
}

static void test_cancel(void)
{
    struct move m;
    struct fvm_source *s = NULL;
    struct fvm_err err;
    stage(&m, 64 << 20);
    toy_fill(&m.source, 6000, 9);
    m.so.rate_limit_bytes = 2 << 20; /* some seconds */
    listen_now(&m);
    m.so.to_addr = fvm_dest_addr(m.d);
    CU_ASSERT_EQUAL_FATAL(fvm_source_start(&m.so, &s, &err), 0);
    poll(NULL, 0, 300);
    fvm_source_cancel(s);
    fvm_source_join(&s);
    check_stayed(&m, FVM_ECANCELLED);
    strike(&m);
}

static void test_dest_vanishes(void)
{
    struct move m;
    struct fvm_source *s = NULL;
    struct fvm_err err;
    stage(&m, 64 << 20);
    toy_fill(&m.source, 6000, 10);
    m.so.rate_limit_bytes = 2 << 20;
    listen_now(&m);
    m.so.to_addr = fvm_dest_addr(m.d);
    CU_ASSERT_EQUAL_FATAL(fvm_source_start(&m.so, &s, &err), 0);
    poll(NULL, 0, 300);
    fvm_dest_cancel(m.d);
    fvm_dest_join(&m.d);
    fvm_source_join(&s);
    check_stayed(&m, FVM_ECANCELLED); /* it said why */
    strike(&m);
}

static void test_does_not_converge(void)
{
    struct move m;
    stage(&m, 64 << 20);
    toy_fill(&m.source, 3000, 11);
    m.source.pages_per_epoch = 512;
    m.so.rate_limit_bytes = 4 << 20;
    m.so.max_downtime_ns = 8000000; /* room for 60 pages or so */
    m.so.deadline_ns = 3000000000ull;
    m.so.no_throttle = true;
    listen_now(&m);
    send_now(&m);
    check_stayed(&m, FVM_ETIMEOUT);
    CU_ASSERT_EQUAL(m.source.limits, 0);
    m.so.on_miss = FVM_ON_MISS_PAUSE;
    send_now(&m);
    check_moved(&m);
    strike(&m);
}

/* It writes faster than the link takes; held back it fits, and nobody stays held back. */
static void test_throttle(void)
{
    struct move m;
    stage(&m, 64 << 20);
    toy_fill(&m.source, 300, 14);
    m.source.pages_per_epoch = 512;
    m.so.rate_limit_bytes = 1 << 20;
    m.so.max_downtime_ns = 50000000;
    m.so.deadline_ns = 60000000000ull;
    listen_now(&m);
    send_now(&m);
    check_moved(&m);
    CU_ASSERT_TRUE(m.source.limits > 0);
    CU_ASSERT_EQUAL(m.source.limit, 0);
    CU_ASSERT_TRUE(m.sr.throttled_ns > 0 && m.sr.write_limit_bytes > 0);
    printf("\n  held to %.1f MiB/s, %u rounds, blackout %.1f ms ... ", (double)m.sr.write_limit_bytes / 1048576,
           m.sr.rounds, (double)m.sr.blackout_ns / 1e6);
    strike(&m);
}

/* The deadline comes before the first round is over: it is kept all the same. */
static void test_deadline(void)
{
    struct move m;
    stage(&m, 64 << 20);
    toy_fill(&m.source, 3000, 16);
    m.so.rate_limit_bytes = 2 << 20; /* six seconds */
    m.so.deadline_ns = 300000000;
    listen_now(&m);
    send_now(&m);
    check_stayed(&m, FVM_ETIMEOUT);
    CU_ASSERT_TRUE(m.sr.total_ns < 2000000000 && m.sr.rounds == 1);
    m.so.on_miss = FVM_ON_MISS_PAUSE;
    send_now(&m);
    check_moved(&m);
    CU_ASSERT_TRUE(m.sr.total_ns < 3000000000);
    strike(&m);
}

/* The limit holds: neither faster on the whole nor in a burst after a wait. */
static void test_bandwidth(void)
{
    struct move m;
    stage(&m, 64 << 20);
    toy_fill(&m.source, 1000, 15);
    m.so.rate_limit_bytes = 8 << 20;
    listen_now(&m);
    send_now(&m);
    check_moved(&m);
    double seconds = (double)m.sr.precopy_ns / 1e9, most = 8 << 20;
    CU_ASSERT_TRUE((double)m.sr.sent_bytes / seconds < most * 1.2 && seconds < 2);
    strike(&m);
}

/* ---- a source gone mad: its key is good, what it says is not ---- */

static struct fvm_port *mad_connect(struct move *m)
{
    struct fvm_port *p = NULL;
    struct fvm_err err = {0};
    CU_ASSERT_EQUAL_FATAL(
        fvm_port_connect(m->ctx, fvm_dest_addr(m->d), m->dest_keys.public_key, &m->source_keys, NULL, &p, &err), 0);
    CU_ASSERT_EQUAL_FATAL(fvm_port_wait_up(p, 5000, &err), 0);
    return p;
}

/* The code of the Stop that comes back. */
static int mad_answer(struct fvm_port *p)
{
    struct fvm_port_msg *msg;
    Fvm__MigrateMessage *m = NULL;
    struct fvm_err err;
    int code = 0;
    if (fvm_port_recv(p, &msg, 5000) != 0)
        return -1000;
    if (fvm_wire_parse(fvm_port_msg_data(msg, 0), fvm_port_msg_len(msg, 0), &m, &err) == 0 &&
        m->what_case == FVM__MIGRATE_MESSAGE__WHAT_STOP)
        code = m->stop->code;
    if (m)
        fvm__migrate_message__free_unpacked(m, NULL);
    fvm_port_msg_destroy(&msg);
    return code;
}

static void test_mad_source(void)
{
    static const Fvm__MigrateMessage__WhatCase early[] = {
        FVM__MIGRATE_MESSAGE__WHAT_START, FVM__MIGRATE_MESSAGE__WHAT_FINAL_STATE, FVM__MIGRATE_MESSAGE__WHAT_DIGEST,
        FVM__MIGRATE_MESSAGE__WHAT_HASH_QUERY};
    struct move m;
    stage(&m, 32 << 20);
    toy_fill(&m.source, 500, 12);
    listen_now(&m);
    struct fvm_port *p = mad_connect(&m);
    for (size_t i = 0; i < FVM_ARRAY_SIZE(early); i++) { /* out of order */
        Fvm__Start start = FVM__START__INIT;
        Fvm__FinalState state = FVM__FINAL_STATE__INIT;
        Fvm__Digest digest = FVM__DIGEST__INIT;
        Fvm__HashQuery query = FVM__HASH_QUERY__INIT;
        Fvm__MigrateMessage msg = FVM__MIGRATE_MESSAGE__INIT;
        msg.what_case = early[i];
        msg.start = i == 0 ? &start : NULL;
        if (i == 1)
            msg.final_state = &state;
        else if (i == 2)
            msg.digest = &digest;
        else if (i == 3)
            msg.hash_query = &query;
        CU_ASSERT_EQUAL(fvm_wire_send(p, NULL, &msg), 0);
    }
    for (int i = 0; i < 200; i++) { /* noise */
        uint8_t junk[64];
        for (size_t k = 0; k < sizeof(junk); k++)
            junk[k] = (uint8_t)((size_t)i * 37 + k * k);
        fvm_port_send_bytes(p, NULL, junk, (size_t)i % sizeof(junk), 100);
    }
    CU_ASSERT_EQUAL(mad_answer(p), FVM_EPROTO);
    fvm_port_close(&p);

    p = mad_connect(&m); /* another version */
    Fvm__Alive alive = FVM__ALIVE__INIT;
    Fvm__MigrateMessage msg = FVM__MIGRATE_MESSAGE__INIT;
    uint8_t buf[64];
    msg.what_case = FVM__MIGRATE_MESSAGE__WHAT_ALIVE;
    msg.alive = &alive;
    msg.protocol = FVM_MIGRATE_PROTOCOL + 1;
    msg.version = (char *)"9.9";
    fvm_port_send_bytes(p, NULL, buf, fvm__migrate_message__pack(&msg, buf), 1000);
    CU_ASSERT_EQUAL(mad_answer(p), FVM_EVERSION);
    fvm_port_close(&p);

    send_now(&m); /* and still it serves an honest one */
    check_moved(&m);
    strike(&m);
}

/* A Prepare without its parts, then one that is good and a Start that is not of this record; a second source finds it
 * busy. */
static void test_mad_prepare(void)
{
    struct move m;
    stage(&m, 32 << 20);
    toy_fill(&m.source, 500, 13);
    listen_now(&m);
    struct fvm_port *p = mad_connect(&m), *q;
    Fvm__Prepare prepare = FVM__PREPARE__INIT;
    Fvm__Start start = FVM__START__INIT;
    Fvm__MigrateMessage msg = FVM__MIGRATE_MESSAGE__INIT;
    uint8_t bytes[32] = {1};
    struct fvm_port_msg *got;
    msg.what_case = FVM__MIGRATE_MESSAGE__WHAT_PREPARE;
    msg.prepare = &prepare;
    for (int i = 0; i < 2; i++) {
        CU_ASSERT_EQUAL(fvm_wire_send(p, NULL, &msg), 0);
        CU_ASSERT_EQUAL_FATAL(fvm_port_recv(p, &got, 5000), 0);
        fvm_port_msg_destroy(&got);
        prepare.config = &m.source.config;
        prepare.from = (char *)"alpha";
        prepare.to = (char *)"beta";
        prepare.page_bytes = 4096;
        prepare.ciphers = 2;
    }
    q = mad_connect(&m);
    CU_ASSERT_EQUAL(fvm_wire_send(q, NULL, &msg), 0);
    CU_ASSERT_EQUAL(mad_answer(q), FVM_EBUSY);
    fvm_port_close(&q);
    start.mig_id = (ProtobufCBinaryData){.len = 16, .data = bytes};
    start.bulk_key = (ProtobufCBinaryData){.len = 32, .data = bytes};
    start.epoch = 1;
    msg.what_case = FVM__MIGRATE_MESSAGE__WHAT_START;
    msg.start = &start;
    CU_ASSERT_EQUAL(fvm_wire_send(p, NULL, &msg), 0); /* nobody did BEGIN: refused by the record */
    CU_ASSERT_EQUAL_FATAL(fvm_port_recv(p, &got, 5000), 0);
    fvm_port_msg_destroy(&got);
    fvm_wire_stop(p, NULL, &(struct fvm_err){.code = FVM_ECANCELLED, .text = "enough"});
    fvm_port_close(&p);
    poll(NULL, 0, 200);
    send_now(&m);
    check_moved(&m);
    strike(&m);
}

int main(void)
{
    CU_initialize_registry();
    CU_pSuite s = CU_add_suite("migrate_move", NULL, NULL);
    CU_add_test(s, "idle", test_idle);
    CU_add_test(s, "writing", test_writing);
    CU_add_test(s, "corrupt batch", test_corrupt_wire);
    CU_add_test(s, "last batch lost", test_drop_last);
    CU_add_test(s, "corrupt RAM", test_corrupt_ram);
    CU_add_test(s, "state refused, retry", test_state_refused_then_retry);
    CU_add_test(s, "storage refused", test_storage_refused);
    CU_add_test(s, "wrong key", test_wrong_key);
    CU_add_test(s, "nobody there", test_nobody_there);
    CU_add_test(s, "dry run", test_dry_run);
    CU_add_test(s, "wrong name", test_wrong_name);
    CU_add_test(s, "cancel", test_cancel);
    CU_add_test(s, "destination vanishes", test_dest_vanishes);
    CU_add_test(s, "mad source", test_mad_source);
    CU_add_test(s, "mad prepare", test_mad_prepare);
    CU_add_test(s, "does not converge", test_does_not_converge);
    CU_add_test(s, "throttle", test_throttle);
    CU_add_test(s, "bandwidth", test_bandwidth);
    CU_add_test(s, "deadline", test_deadline);
    CU_basic_set_mode(CU_BRM_VERBOSE);
    CU_basic_run_tests();
    unsigned failed = CU_get_number_of_failures();
    CU_cleanup_registry();
    return failed ? 1 : 0;
}
