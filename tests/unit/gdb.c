/* gdb_session against a target of bytes: frames, registers, memory, breakpoints, stop and go, hostile packets. */
#include "vmm/gdb.h"

#include <CUnit/Basic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "vmm/vm_listen.h"

static struct { /* the target */
    uint8_t regs[2][FVM_DEBUG_REGS][FVM_DEBUG_REG_BYTES];
    uint8_t memory[8192]; /* at 0x1000; the page behind it is not there */
    bool running, killed;
    int step_cpu;
    unsigned forgotten;
    enum fvm_debug_reason why;
    unsigned why_cpu;
    char log[300];
} t;

static struct fvm_gdb_session *session;

static unsigned cpus(void *ctx) { (void)ctx; return 2; }
static size_t reg(void *ctx, unsigned cpu, unsigned number, uint8_t ret[FVM_DEBUG_REG_BYTES])
{
    (void)ctx;
    CU_ASSERT_FALSE(t.running);
    memcpy(ret, t.regs[cpu][number], FVM_DEBUG_REG_BYTES);
    return fvm_debug_reg_bytes(number);
}
static int set_reg(void *ctx, unsigned cpu, unsigned number, const uint8_t *bytes)
{
    (void)ctx;
    if (number >= FVM_DEBUG_CR0)
        return FVM_EINVAL;
    memcpy(t.regs[cpu][number], bytes, fvm_debug_reg_bytes(number));
    return 0;
}
static bool inside(fvm_gva va, size_t len)
{
    return va >= 0x1000 && va < 0x1000 + sizeof(t.memory) && len <= 0x1000 + sizeof(t.memory) - va;
}
static int read_memory(void *ctx, unsigned cpu, fvm_gva va, void *buf, size_t len)
{
    (void)ctx;
    (void)cpu;
    if (!inside(va, len))
        return FVM_EINVAL;
    memcpy(buf, t.memory + va - 0x1000, len);
    return 0;
}
static int write_memory(void *ctx, unsigned cpu, fvm_gva va, const void *buf, size_t len)
{
    (void)ctx;
    (void)cpu;
    if (!inside(va, len))
        return FVM_EINVAL;
    memcpy(t.memory + va - 0x1000, buf, len);
    return 0;
}
static int breakpoint(void *ctx, unsigned cpu, enum fvm_debug_kind kind, fvm_gva va, size_t len, bool set)
{
    (void)ctx;
    (void)cpu;
    size_t n = strlen(t.log);
    snprintf(t.log + n, sizeof(t.log) - n, "%c%d:%llx+%zu ", set ? '+' : '-', (int)kind, (unsigned long long)va, len);
    return va == 0xbad ? FVM_ENOSPC : va == 0xdef ? FVM_EEXIST : 0;
}
static int halt(void *ctx)
{
    (void)ctx;
    bool was = t.running;
    t.running = false;
    return was;
}
static int go(void *ctx, int step_cpu)
{
    (void)ctx;
    t.running = true;
    t.step_cpu = step_cpu;
    return 0;
}
static enum fvm_debug_reason why(void *ctx, unsigned *ret_cpu, uint64_t *ret_addr, enum fvm_debug_kind *ret_kind)
{
    (void)ctx;
    *ret_cpu = t.why_cpu;
    *ret_addr = 0x1234;
    *ret_kind = FVM_DEBUG_ACCESS;
    return t.why;
}
static void forget(void *ctx) { (void)ctx; t.forgotten++; }
static void kill_target(void *ctx) { (void)ctx; t.killed = true; }

static void up(bool running)
{
    const struct fvm_gdb_target target = {.cpus = cpus, .reg = reg, .set_reg = set_reg, .read = read_memory,
                                          .write = write_memory, .breakpoint = breakpoint, .halt = halt, .go = go,
                                          .why = why, .forget = forget, .kill = kill_target};
    memset(&t, 0, sizeof(t));
    t.running = running;
    for (unsigned c = 0; c < 2; c++)
        for (unsigned i = 0; i < FVM_DEBUG_REGS; i++)
            memset(t.regs[c][i], (int)(16 * c + i), FVM_DEBUG_REG_BYTES);
    for (unsigned i = 0; i < sizeof(t.memory); i++)
        t.memory[i] = (uint8_t)i;
    CU_ASSERT_EQUAL_FATAL(fvm_gdb_session_create(&target, &session), 0);
    CU_ASSERT_FALSE(t.running);
}

/* Sends a packet byte by byte; returns the reply's body (acknowledgements checked), "" for an empty one. */
static int last;
static const char *exchange_n(const char *body, size_t len)
{
    static char reply[40000];
    char frame[40000];
    uint8_t sum = 0;
    size_t n;
    for (size_t i = 0; i < len; i++)
        sum = (uint8_t)(sum + (uint8_t)body[i]);
    frame[0] = '$';
    memcpy(frame + 1, body, len);
    snprintf(frame + 1 + len, 4, "#%02x", sum);
    last = 0;
    for (size_t i = 0; i < len + 4 && !last; i++)
        last = fvm_gdb_session_input(session, (const uint8_t *)frame + i, 1);
    const uint8_t *out = fvm_gdb_session_output(session, &n);
    snprintf(reply, sizeof(reply), "%.*s", (int)n, (const char *)out);
    fvm_gdb_session_sent(session, n);
    if (reply[0] == '+')
        memmove(reply, reply + 1, strlen(reply));
    char *hash = strrchr(reply, '#');
    if (reply[0] == '$' && hash)
        *hash = 0;
    return reply[0] == '$' ? reply + 1 : reply;
}
static const char *exchange(const char *body) { return exchange_n(body, strlen(body)); }

static void test_frames(void)
{
    size_t n;
    up(false);
    CU_ASSERT_EQUAL(fvm_gdb_session_input(session, (const uint8_t *)"+noise$qC#00", 12), 0); /* a wrong sum */
    CU_ASSERT_EQUAL(memcmp(fvm_gdb_session_output(session, &n), "-", 1), 0);
    CU_ASSERT_EQUAL(n, 1);
    fvm_gdb_session_sent(session, 1);
    CU_ASSERT_STRING_EQUAL(exchange("qC"), "QC1");
    CU_ASSERT_PTR_NOT_NULL(strstr(exchange("qSupported:multiprocess+;xmlRegisters=i386"), "qXfer:features:read+"));
    CU_ASSERT_STRING_EQUAL(exchange("QStartNoAckMode"), "OK");
    CU_ASSERT_STRING_EQUAL(exchange("qAttached"), "1");
    CU_ASSERT_STRING_EQUAL(exchange("qNoSuchThing"), "");
    CU_ASSERT_STRING_EQUAL(exchange("vMustReplyEmpty"), "");
    CU_ASSERT_STRING_EQUAL(exchange("!"), "");
    static uint8_t flood[FVM_GDB_PACKET_MAX + 100];
    memset(flood, 'a', sizeof(flood));
    flood[0] = '$';
    CU_ASSERT_EQUAL(fvm_gdb_session_input(session, flood, sizeof(flood)), FVM_EPROTO);
    fvm_gdb_session_destroy(&session);
    CU_ASSERT_EQUAL(t.forgotten, 1);
    CU_ASSERT_FALSE(t.running); /* it did not run when the debugger came */
}

static void test_xml(void)
{
    char xml[20000] = "", ask[80];
    unsigned regs = 0;
    up(false);
    for (size_t at = 0;;) { /* in pieces, as gdb reads it */
        snprintf(ask, sizeof(ask), "qXfer:features:read:target.xml:%zx,100", at);
        const char *r = exchange(ask);
        CU_ASSERT_FATAL(r[0] == 'm' || r[0] == 'l');
        strcat(xml, r + 1);
        at += strlen(r + 1);
        if (r[0] == 'l')
            break;
    }
    for (const char *p = xml; (p = strstr(p, "<reg name=")); p++) {
        const char *bits = strstr(p, "bitsize=\"") + 9;
        CU_ASSERT_EQUAL((size_t)atoi(bits), 8 * fvm_debug_reg_bytes(regs));
        regs++;
    }
    CU_ASSERT_EQUAL(regs, FVM_DEBUG_REGS);
    CU_ASSERT_PTR_NOT_NULL(strstr(xml, "</target>"));
    CU_ASSERT_STRING_EQUAL(exchange("qXfer:features:read:target.xml:ffffffffffffffff,10"), "l");
    CU_ASSERT_STRING_EQUAL(exchange("qXfer:features:read:target.xml:x"), "E22");
    fvm_gdb_session_destroy(&session);
}

static void test_registers(void)
{
    size_t len = 0;
    char all[3000];
    up(false);
    for (unsigned i = 0; i < FVM_DEBUG_REGS; i++)
        len += 2 * fvm_debug_reg_bytes(i);
    snprintf(all, sizeof(all), "G%s", exchange("g"));
    CU_ASSERT_EQUAL(strlen(all + 1), len);
    CU_ASSERT_EQUAL(strncmp(all + 1 + 16, "0101010101010101", 16), 0);
    memcpy(all + 1, "8877665544332211", 16);
    CU_ASSERT_STRING_EQUAL(exchange(all), "OK"); /* what did not change is not written: cr0 cannot be */
    CU_ASSERT_STRING_EQUAL(exchange("p0"), "8877665544332211");
    CU_ASSERT_STRING_EQUAL(exchange("P10=0100000000000000"), "OK");
    CU_ASSERT_STRING_EQUAL(exchange("p10"), "0100000000000000");
    CU_ASSERT_STRING_EQUAL(exchange("P3c=0100000000000000"), "E22");
    CU_ASSERT_STRING_EQUAL(exchange("P10=01"), "E22");
    CU_ASSERT_STRING_EQUAL(exchange("p42"), "E22");
    CU_ASSERT_STRING_EQUAL(exchange("pffffffffffffffffff"), "E22");
    CU_ASSERT_STRING_EQUAL(exchange("Hg2"), "OK");
    CU_ASSERT_STRING_EQUAL(exchange("p1"), "1111111111111111");
    CU_ASSERT_STRING_EQUAL(exchange("Hg3"), "E22");
    CU_ASSERT_STRING_EQUAL(exchange("T2"), "OK");
    CU_ASSERT_STRING_EQUAL(exchange("T3"), "E22");
    CU_ASSERT_STRING_EQUAL(exchange("qfThreadInfo"), "m1,2");
    CU_ASSERT_STRING_EQUAL(exchange("qsThreadInfo"), "l");
    CU_ASSERT_STRING_EQUAL(exchange("qThreadExtraInfo,2"), "4350552031");
    fvm_gdb_session_destroy(&session);
}

static void test_memory(void)
{
    up(false);
    CU_ASSERT_STRING_EQUAL(exchange("m1004,4"), "04050607");
    CU_ASSERT_STRING_EQUAL(exchange("m2ffe,10"), "fe" "ff"); /* as far as it goes */
    CU_ASSERT_STRING_EQUAL(exchange("m3000,1"), "E14");
    CU_ASSERT_STRING_EQUAL(exchange("mffffffffffffffff,2"), "E14");
    CU_ASSERT_STRING_EQUAL(exchange("m1000,ffffffff"), "E22");
    CU_ASSERT_STRING_EQUAL(exchange("M1000,2:beef"), "OK");
    CU_ASSERT_STRING_EQUAL(exchange("M1000,2:be"), "E22");
    CU_ASSERT_STRING_EQUAL(exchange("M1000,1:zz"), "E22");
    CU_ASSERT_STRING_EQUAL(exchange_n("X1002,3:\x01}\x03}\x5d", 13), "OK"); /* } and # escaped */
    CU_ASSERT_EQUAL(memcmp(t.memory, "\xbe\xef\x01#}", 5), 0);
    CU_ASSERT_STRING_EQUAL(exchange("X1000,0:"), "OK");
    CU_ASSERT_STRING_EQUAL(exchange("X1000,5:ab"), "E22");
    fvm_gdb_session_destroy(&session);
}

static void test_breakpoints(void)
{
    up(false);
    CU_ASSERT_STRING_EQUAL(exchange("Z0,401000,1"), "OK");
    CU_ASSERT_STRING_EQUAL(exchange("Z1,def,1;cond"), "OK"); /* twice is no error */
    CU_ASSERT_STRING_EQUAL(exchange("Z2,1000,8"), "OK");
    CU_ASSERT_STRING_EQUAL(exchange("z4,1000,8"), "OK");
    CU_ASSERT_STRING_EQUAL(exchange("Z3,bad,1"), "E28");
    CU_ASSERT_STRING_EQUAL(exchange("Z5,1,1"), "");
    CU_ASSERT_STRING_EQUAL(exchange("Z0,xyz,1"), "E22");
    CU_ASSERT_STRING_EQUAL(t.log, "+1:401000+1 +1:def+1 +2:1000+8 -4:1000+8 +3:bad+1 ");
    fvm_gdb_session_destroy(&session);
}

static void test_stop_and_go(void)
{
    up(true);
    CU_ASSERT_STRING_EQUAL(exchange("?"), "T05thread:1;");
    CU_ASSERT_STRING_EQUAL(exchange("vCont?"), "vCont;c;C;s;S");
    CU_ASSERT_STRING_EQUAL(exchange("vCont;c:1"), "");
    CU_ASSERT(t.running && t.step_cpu == -1);
    CU_ASSERT_STRING_EQUAL(exchange("g"), ""); /* not while it runs */
    t.running = false;
    t.why = FVM_DEBUG_BREAK;
    t.why_cpu = 1;
    fvm_gdb_session_stopped(session);
    CU_ASSERT_EQUAL(strncmp(exchange("qC"), "T05thread:2;#", 13), 0);
    CU_ASSERT_STRING_EQUAL(exchange("vCont;s:2;c"), "");
    CU_ASSERT(t.running && t.step_cpu == 1);
    t.running = false;
    t.why = FVM_DEBUG_WATCH;
    fvm_gdb_session_stopped(session);
    CU_ASSERT_PTR_NOT_NULL(strstr(exchange("qC"), "awatch:1234;thread:2;"));
    CU_ASSERT_STRING_EQUAL(exchange("c1500"), "");
    CU_ASSERT_EQUAL(memcmp(t.regs[1][FVM_DEBUG_RIP], "\0\x15", 2), 0);
    t.why = FVM_DEBUG_NONE;
    CU_ASSERT_EQUAL(fvm_gdb_session_input(session, (const uint8_t *)"\x03", 1), 0);
    CU_ASSERT_FALSE(t.running);
    CU_ASSERT_PTR_NOT_NULL(strstr(exchange("qC"), "T02thread:"));
    CU_ASSERT_STRING_EQUAL(exchange("S05"), "");
    CU_ASSERT(t.running && t.step_cpu == 1);
    fvm_gdb_session_destroy(&session); /* the connection broke: it runs on, without breakpoints */
    CU_ASSERT_TRUE(t.running);
    CU_ASSERT_EQUAL(t.step_cpu, -1);
    CU_ASSERT_EQUAL(t.forgotten, 1);
    up(true);
    CU_ASSERT_STRING_EQUAL(exchange("D"), "OK");
    CU_ASSERT_EQUAL(last, FVM_ECLOSED);
    fvm_gdb_session_destroy(&session);
    CU_ASSERT_TRUE(t.running);
    up(true);
    (void)exchange("k");
    CU_ASSERT_TRUE(t.killed);
    CU_ASSERT_EQUAL(last, FVM_ECLOSED);
    fvm_gdb_session_destroy(&session);
    up(false);
    (void)exchange("c");
    fvm_gdb_session_exited(session, 7, 0);
    CU_ASSERT_EQUAL(fvm_gdb_session_input(session, (const uint8_t *)"+", 1), FVM_ECLOSED);
    size_t n;
    CU_ASSERT_EQUAL(memcmp(fvm_gdb_session_output(session, &n), "$W07#be", 7), 0);
    fvm_gdb_session_destroy(&session);
}

static void test_listen(void)
{
    static const char *const wrong[] = {"", "x", "host:5900", "127.0.0.1:", "127.0.0.1:0", "1.2.3.4:70000", "::1:99x",
                                        "[::1", "12 34"};
    struct fvm_err err = {0};
    int fd;
    for (size_t i = 0; i < FVM_ARRAY_SIZE(wrong); i++) {
        err.text[0] = 0;
        CU_ASSERT_EQUAL(fvm_listen_tcp("test", wrong[i], true, &fd, &err), FVM_EINVAL);
        CU_ASSERT(err.text[0] != 0);
    }
    CU_ASSERT_EQUAL(fvm_listen_tcp("test", "0.0.0.0:5999", false, &fd, &err), FVM_EPERM);
    CU_ASSERT_EQUAL(fvm_listen_tcp("test", "[::]:5999", false, &fd, &err), FVM_EPERM);
}

int main(void)
{
    CU_initialize_registry();
    CU_pSuite s = CU_add_suite("unit/gdb", NULL, NULL);
    CU_add_test(s, "frames", test_frames);
    CU_add_test(s, "target description", test_xml);
    CU_add_test(s, "registers", test_registers);
    CU_add_test(s, "memory", test_memory);
    CU_add_test(s, "breakpoints", test_breakpoints);
    CU_add_test(s, "stop and go", test_stop_and_go);
    CU_add_test(s, "addresses", test_listen);
    CU_basic_set_mode(CU_BRM_VERBOSE);
    CU_basic_run_tests();
    unsigned bad = CU_get_number_of_failures();
    CU_cleanup_registry();
    return bad != 0;
}
