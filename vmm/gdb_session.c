/*
 * gdb_session.c - gdb's remote serial protocol, without sockets. See gdb.h.
 *
 *     $packet#checksum   +   $reply#checksum   +        (acknowledgements until QStartNoAckMode)
 *
 * Input is collected in a buffer as large as the largest packet; a longer one ends the session. Every number is parsed
 * with its end. While the target runs only an interrupt (byte 3) is listened to.
 *
 * Invariant: `halted` says whether the target stands still for us; registers and memory are touched only then.
 */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "vmm/gdb.h"

enum { OUT_MAX = 1 << 20, INTERRUPT = 3, SIGINT_ = 2, SIGTRAP_ = 5 };

struct fvm_gdb_session {
    struct fvm_gdb_target target;
    char in[FVM_GDB_PACKET_MAX + 8];
    size_t in_len;
    uint8_t *out; /* OUT_MAX */
    size_t out_len;
    bool no_ack, halted, was_running /* or was let go by us */, over, failed;
    unsigned cpu;      /* of g, m... (Hg) */
    unsigned stop_cpu; /* who stopped last */
    char reply[2 * FVM_GDB_PACKET_MAX + 16];
    size_t reply_len;
};

/* ---- output ---- */

static void put(struct fvm_gdb_session *s, const void *bytes, size_t len)
{
    if (len > OUT_MAX - s->out_len) {
        s->failed = true;
        return;
    }
    memcpy(s->out + s->out_len, bytes, len);
    s->out_len += len;
}

static void send_packet(struct fvm_gdb_session *s, const char *text, size_t len)
{
    uint8_t sum = 0;
    char tail[4];
    for (size_t i = 0; i < len; i++)
        sum = (uint8_t)(sum + (uint8_t)text[i]);
    snprintf(tail, sizeof(tail), "#%02x", sum);
    put(s, "$", 1);
    put(s, text, len);
    put(s, tail, 3);
}

static void say(struct fvm_gdb_session *s, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
static void say(struct fvm_gdb_session *s, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    int n = vsnprintf(s->reply, sizeof(s->reply), fmt, ap);
    va_end(ap);
    send_packet(s, s->reply, FVM_MIN((size_t)FVM_MAX(n, 0), sizeof(s->reply) - 1));
}

static void add_hex(struct fvm_gdb_session *s, const uint8_t *bytes, size_t len)
{
    for (size_t i = 0; i < len && s->reply_len + 2 < sizeof(s->reply); i++, s->reply_len += 2)
        snprintf(s->reply + s->reply_len, 3, "%02x", bytes[i]);
}

static void send_reply(struct fvm_gdb_session *s) { send_packet(s, s->reply, s->reply_len); }

/* ---- input ---- */

static int hex_digit(char c)
{
    return c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
}

/* A hex number of 1 to 16 digits, followed by `end` (0: nothing). */
static bool take_hex(const char **p, char end, uint64_t *ret)
{
    uint64_t v = 0;
    unsigned n = 0;
    for (; hex_digit(**p) >= 0 && n < 17; (*p)++, n++)
        v = v << 4 | (unsigned)hex_digit(**p);
    if (n == 0 || n > 16 || **p != end)
        return false;
    *p += end != 0;
    *ret = v;
    return true;
}

static bool take_bytes(const char *p, uint8_t *out, size_t len)
{
    for (size_t i = 0; i < len; i++) {
        int high = hex_digit(p[2 * i]), low = high < 0 ? -1 : hex_digit(p[2 * i + 1]);
        if (low < 0)
            return false;
        out[i] = (uint8_t)(high << 4 | low);
    }
    return p[2 * len] == 0;
}

/* "-1", "0": any; else processor n is thread n + 1. */
static bool take_thread(struct fvm_gdb_session *s, const char *p, unsigned *ret_cpu)
{
    uint64_t id;
    if (!strcmp(p, "-1") || !strcmp(p, "0"))
        return true;
    if (!take_hex(&p, 0, &id) || id < 1 || id > s->target.cpus(s->target.ctx))
        return false;
    *ret_cpu = (unsigned)id - 1;
    return true;
}

/* ---- registers and memory ---- */

static void all_registers(struct fvm_gdb_session *s)
{
    uint8_t bytes[FVM_DEBUG_REG_BYTES];
    s->reply_len = 0;
    for (unsigned reg = 0; reg < FVM_DEBUG_REGS; reg++)
        add_hex(s, bytes, s->target.reg(s->target.ctx, s->cpu, reg, bytes));
    send_reply(s);
}

static void set_all_registers(struct fvm_gdb_session *s, const char *p)
{
    uint8_t bytes[FVM_DEBUG_REG_BYTES], now[FVM_DEBUG_REG_BYTES];
    bool good = true;
    for (unsigned reg = 0; good && reg < FVM_DEBUG_REGS && *p; reg++) {
        size_t n = fvm_debug_reg_bytes(reg);
        char one[2 * FVM_DEBUG_REG_BYTES + 1];
        snprintf(one, sizeof(one), "%.*s", (int)(2 * n), p);
        good = take_bytes(one, bytes, n);
        s->target.reg(s->target.ctx, s->cpu, reg, now);
        if (good && memcmp(bytes, now, n) != 0)
            good = s->target.set_reg(s->target.ctx, s->cpu, reg, bytes) == 0;
        p += 2 * n;
    }
    say(s, good ? "OK" : "E22");
}

static void one_register(struct fvm_gdb_session *s, const char *p, bool set)
{
    uint8_t bytes[FVM_DEBUG_REG_BYTES];
    uint64_t reg;
    if (!take_hex(&p, set ? '=' : 0, &reg) || reg >= FVM_DEBUG_REGS)
        say(s, "E22");
    else if (set)
        say(s, take_bytes(p, bytes, fvm_debug_reg_bytes((unsigned)reg)) &&
                       s->target.set_reg(s->target.ctx, s->cpu, (unsigned)reg, bytes) == 0
                   ? "OK"
                   : "E22");
    else {
        s->reply_len = 0;
        add_hex(s, bytes, s->target.reg(s->target.ctx, s->cpu, (unsigned)reg, bytes));
        send_reply(s);
    }
}

static void read_memory(struct fvm_gdb_session *s, const char *p)
{
    uint8_t bytes[FVM_GDB_PACKET_MAX / 2];
    uint64_t va, len;
    if (!take_hex(&p, ',', &va) || !take_hex(&p, 0, &len) || len > sizeof(bytes)) {
        say(s, "E22");
        return;
    }
    int r = s->target.read(s->target.ctx, s->cpu, va, bytes, len);
    if (r) { /* as far as it goes */
        uint64_t rest = FVM_PAGE_SIZE - (va & FVM_PAGE_MASK);
        len = FVM_MIN(len, rest);
        r = s->target.read(s->target.ctx, s->cpu, va, bytes, len);
    }
    if (r) {
        say(s, "E14");
        return;
    }
    s->reply_len = 0;
    add_hex(s, bytes, len);
    send_reply(s);
}

/* M: hex, X: bytes with } as escape. */
static void write_memory(struct fvm_gdb_session *s, const char *p, const char *end, bool binary)
{
    uint8_t bytes[FVM_GDB_PACKET_MAX];
    uint64_t va, len, n = 0;
    bool good = take_hex(&p, ',', &va) && take_hex(&p, ':', &len) && len <= sizeof(bytes);
    if (good && !binary)
        good = take_bytes(p, bytes, len);
    for (; good && binary && p < end && n < len; p++)
        bytes[n++] = *p == '}' && p + 1 < end ? (uint8_t)(*++p ^ 0x20) : (uint8_t)*p;
    if (good && binary)
        good = n == len && p == end;
    if (!good)
        say(s, "E22");
    else
        say(s, s->target.write(s->target.ctx, s->cpu, va, bytes, len) ? "E14" : "OK");
}

/* Zt,addr,kind and zt,addr,kind */
static void breakpoint(struct fvm_gdb_session *s, const char *p, bool set)
{
    static const enum fvm_debug_kind kinds[5] = {FVM_DEBUG_EXEC, FVM_DEBUG_EXEC, FVM_DEBUG_WRITE, FVM_DEBUG_READ,
                                                 FVM_DEBUG_ACCESS};
    uint64_t type, va, len;
    if (!take_hex(&p, ',', &type) || type > 4) {
        say(s, "%s", ""); /* not supported */
        return;
    }
    char *conditions = strchr(p, ';'); /* of the breakpoint: gdb evaluates them itself when told nothing */
    if (conditions)
        *conditions = 0;
    if (!take_hex(&p, ',', &va) || !take_hex(&p, 0, &len)) {
        say(s, "E22");
        return;
    }
    int r = s->target.breakpoint(s->target.ctx, s->cpu, kinds[type], va, len, set);
    if (r == FVM_EEXIST || (r == FVM_ENOENT && !set)) /* packets may come twice */
        r = 0;
    say(s, r ? r == FVM_ENOSPC ? "E28" : "E22" : "OK");
}

/* ---- stop and go ---- */

static void stop_reply(struct fvm_gdb_session *s, unsigned signal)
{
    unsigned cpu = s->stop_cpu;
    uint64_t addr = 0;
    enum fvm_debug_kind kind = FVM_DEBUG_WRITE;
    enum fvm_debug_reason why = s->target.why(s->target.ctx, &cpu, &addr, &kind);
    s->stop_cpu = s->cpu = cpu;
    if (why == FVM_DEBUG_WATCH)
        say(s, "T%02x%swatch:%llx;thread:%x;", SIGTRAP_, kind == FVM_DEBUG_READ ? "r" : kind == FVM_DEBUG_ACCESS ? "a" : "",
            (unsigned long long)addr, cpu + 1);
    else
        say(s, "T%02xthread:%x;", why == FVM_DEBUG_NONE ? signal : SIGTRAP_, cpu + 1);
}

static void go(struct fvm_gdb_session *s, int step_cpu)
{
    if (s->target.go(s->target.ctx, step_cpu)) {
        say(s, "E01");
        return;
    }
    s->halted = false;
    s->was_running = true;
}

/* c, s, C, S: an address to go on from, after a signal that guests don't have. */
static void go_old(struct fvm_gdb_session *s, const char *p, bool step, bool signal)
{
    uint64_t value;
    uint8_t rip[FVM_DEBUG_REG_BYTES] = {0};
    if (signal) {
        const char *semicolon = strchr(p, ';');
        p = semicolon ? semicolon + 1 : "";
    }
    if (*p) {
        bool good = take_hex(&p, 0, &value);
        memcpy(rip, &value, good ? sizeof(value) : 0);
        if (!good || s->target.set_reg(s->target.ctx, s->cpu, FVM_DEBUG_RIP, rip)) {
            say(s, "E22");
            return;
        }
    }
    go(s, step ? (int)s->cpu : -1);
}

/* vCont;action[:thread]... : the first step decides, else all go on. */
static void go_cont(struct fvm_gdb_session *s, char *p)
{
    int step_cpu = -1;
    bool any = false;
    for (char *action; (action = strsep(&p, ";")) != NULL;) {
        char *thread = strchr(action, ':');
        unsigned cpu = s->cpu;
        if (!*action)
            continue;
        if (thread)
            *thread++ = 0;
        if (thread && !take_thread(s, thread, &cpu)) {
            say(s, "E22");
            return;
        }
        any |= action[0] == 'c' || action[0] == 'C' || action[0] == 's' || action[0] == 'S';
        if ((action[0] == 's' || action[0] == 'S') && step_cpu < 0)
            step_cpu = (int)cpu;
    }
    if (any)
        go(s, step_cpu);
    else
        say(s, "E22");
}

void fvm_gdb_session_stopped(struct fvm_gdb_session *s)
{
    if (s->halted || s->over)
        return;
    s->halted = true;
    stop_reply(s, SIGINT_);
}

void fvm_gdb_session_exited(struct fvm_gdb_session *s, unsigned status, unsigned signal)
{
    if (s->over)
        return;
    if (signal)
        say(s, "X%02x", signal & 0xff);
    else
        say(s, "W%02x", status & 0xff);
    s->over = true;
}

/* ---- queries ---- */

#define REG(name, bits, type) "<reg name=\"" name "\" bitsize=\"" bits "\" type=\"" type "\"/>"
#define R64(name) REG(name, "64", "int64")
#define R32(name) REG(name, "32", "int32")
#define X87(name) "<reg name=\"" name "\" bitsize=\"32\" type=\"int\" group=\"float\"/>"
#define ST(n) "<reg name=\"st" n "\" bitsize=\"80\" type=\"i387_ext\"/>"
#define XMM(n) "<reg name=\"xmm" n "\" bitsize=\"128\" type=\"vec128\"/>"

static const char target_xml[] =
    "<?xml version=\"1.0\"?><!DOCTYPE target SYSTEM \"gdb-target.dtd\"><target>"
    "<architecture>i386:x86-64</architecture>"
    "<feature name=\"org.gnu.gdb.i386.core\">"
    R64("rax") R64("rbx") R64("rcx") R64("rdx") R64("rsi") R64("rdi")
    REG("rbp", "64", "data_ptr") REG("rsp", "64", "data_ptr")
    R64("r8") R64("r9") R64("r10") R64("r11") R64("r12") R64("r13") R64("r14") R64("r15")
    REG("rip", "64", "code_ptr") R32("eflags") R32("cs") R32("ss") R32("ds") R32("es") R32("fs") R32("gs")
    ST("0") ST("1") ST("2") ST("3") ST("4") ST("5") ST("6") ST("7")
    X87("fctrl") X87("fstat") X87("ftag") X87("fiseg") X87("fioff") X87("foseg") X87("fooff") X87("fop")
    "</feature><feature name=\"org.gnu.gdb.i386.sse\">"
    "<vector id=\"v4f\" type=\"ieee_single\" count=\"4\"/><vector id=\"v2d\" type=\"ieee_double\" count=\"2\"/>"
    "<vector id=\"v16i8\" type=\"int8\" count=\"16\"/><vector id=\"v8i16\" type=\"int16\" count=\"8\"/>"
    "<vector id=\"v4i32\" type=\"int32\" count=\"4\"/><vector id=\"v2i64\" type=\"int64\" count=\"2\"/>"
    "<union id=\"vec128\"><field name=\"v4_float\" type=\"v4f\"/><field name=\"v2_double\" type=\"v2d\"/>"
    "<field name=\"v16_int8\" type=\"v16i8\"/><field name=\"v8_int16\" type=\"v8i16\"/>"
    "<field name=\"v4_int32\" type=\"v4i32\"/><field name=\"v2_int64\" type=\"v2i64\"/>"
    "<field name=\"uint128\" type=\"uint128\"/></union>"
    XMM("0") XMM("1") XMM("2") XMM("3") XMM("4") XMM("5") XMM("6") XMM("7") XMM("8") XMM("9") XMM("10") XMM("11")
    XMM("12") XMM("13") XMM("14") XMM("15") "<reg name=\"mxcsr\" bitsize=\"32\" type=\"int\" group=\"vector\"/>"
    "</feature><feature name=\"org.gnu.gdb.i386.segments\">" REG("fs_base", "64", "int") REG("gs_base", "64", "int")
    "</feature><feature name=\"org.fvm.control\">"
    R64("k_gs_base") R64("cr0") R64("cr2") R64("cr3") R64("cr4") R64("cr8") R64("efer") "</feature></target>";

static void send_xml(struct fvm_gdb_session *s, const char *p)
{
    uint64_t offset, len, total = sizeof(target_xml) - 1;
    if (!take_hex(&p, ',', &offset) || !take_hex(&p, 0, &len)) {
        say(s, "E22");
        return;
    }
    offset = FVM_MIN(offset, total);
    uint64_t rest = total - offset, n = FVM_MIN(FVM_MIN(len, (uint64_t)FVM_GDB_PACKET_MAX - 8), rest);
    s->reply[0] = n == rest ? 'l' : 'm';
    memcpy(s->reply + 1, target_xml + offset, n); /* has none of the bytes that would need an escape */
    s->reply_len = n + 1;
    send_reply(s);
}

static void thread_list(struct fvm_gdb_session *s)
{
    s->reply_len = (size_t)snprintf(s->reply, sizeof(s->reply), "m");
    for (unsigned i = 0; i < s->target.cpus(s->target.ctx) && s->reply_len < 1000; i++)
        s->reply_len += (size_t)snprintf(s->reply + s->reply_len, 16, "%s%x", i ? "," : "", i + 1);
    send_reply(s);
}

static void thread_info(struct fvm_gdb_session *s, const char *p)
{
    char text[32];
    unsigned cpu = 0;
    if (!take_thread(s, p, &cpu)) {
        say(s, "E22");
        return;
    }
    int n = snprintf(text, sizeof(text), "CPU %u", cpu);
    s->reply_len = 0;
    add_hex(s, (const uint8_t *)text, (size_t)n);
    send_reply(s);
}

static bool begins(const char **p, const char *with)
{
    size_t n = strlen(with);
    if (strncmp(*p, with, n) != 0)
        return false;
    *p += n;
    return true;
}

static void query(struct fvm_gdb_session *s, const char *p)
{
    if (begins(&p, "Supported"))
        say(s, "PacketSize=%x;qXfer:features:read+;vContSupported+;QStartNoAckMode+;hwbreak-;swbreak-",
            FVM_GDB_PACKET_MAX);
    else if (begins(&p, "Xfer:features:read:target.xml:"))
        send_xml(s, p);
    else if (!strcmp(p, "C"))
        say(s, "QC%x", s->cpu + 1);
    else if (!strcmp(p, "fThreadInfo"))
        thread_list(s);
    else if (!strcmp(p, "sThreadInfo"))
        say(s, "l");
    else if (begins(&p, "ThreadExtraInfo,"))
        thread_info(s, p);
    else if (begins(&p, "Attached"))
        say(s, "1");
    else
        say(s, "%s", "");
}

static void start_no_ack(struct fvm_gdb_session *s)
{
    say(s, "OK");
    s->no_ack = true;
}

/* v packets: vCont and the question after it; others are not known. */
static void verbose(struct fvm_gdb_session *s, char *p)
{
    if (!strcmp(p, "Cont?"))
        say(s, "vCont;c;C;s;S");
    else if (!strncmp(p, "Cont;", 5))
        go_cont(s, p + 5);
    else if (!strncmp(p, "Kill", 4)) {
        say(s, "OK");
        s->over = true;
        s->target.kill(s->target.ctx);
    } else
        say(s, "%s", "");
}

static void set_thread(struct fvm_gdb_session *s, const char *p)
{
    unsigned cpu = s->cpu;
    bool good = (p[0] == 'g' || p[0] == 'c') && take_thread(s, p + 1, &cpu);
    if (good && p[0] == 'g')
        s->cpu = cpu;
    say(s, good ? "OK" : "E22");
}

static void is_thread_alive(struct fvm_gdb_session *s, const char *p)
{
    unsigned cpu = 0;
    say(s, take_thread(s, p, &cpu) ? "OK" : "E22");
}

static void packet(struct fvm_gdb_session *s, char *p, size_t len)
{
    switch (p[0]) {
    case '?': stop_reply(s, SIGTRAP_); break;
    case 'g': all_registers(s); break;
    case 'G': set_all_registers(s, p + 1); break;
    case 'p': one_register(s, p + 1, false); break;
    case 'P': one_register(s, p + 1, true); break;
    case 'm': read_memory(s, p + 1); break;
    case 'M': write_memory(s, p + 1, p + len, false); break;
    case 'X': write_memory(s, p + 1, p + len, true); break;
    case 'Z': breakpoint(s, p + 1, true); break;
    case 'z': breakpoint(s, p + 1, false); break;
    case 'c': go_old(s, p + 1, false, false); break;
    case 'C': go_old(s, p + 1, false, true); break;
    case 's': go_old(s, p + 1, true, false); break;
    case 'S': go_old(s, p + 1, true, true); break;
    case 'v': verbose(s, p + 1); break;
    case 'H': set_thread(s, p + 1); break;
    case 'T': is_thread_alive(s, p + 1); break;
    case 'q': query(s, p + 1); break;
    case 'Q':
        if (!strcmp(p, "QStartNoAckMode"))
            start_no_ack(s);
        else
            say(s, "%s", "");
        break;
    case 'D':
        say(s, "OK");
        s->over = true;
        break;
    case 'k':
        s->over = true;
        s->target.kill(s->target.ctx);
        break;
    default: say(s, "%s", ""); break;
    }
}

/* ---- frames ---- */

static bool sum_right(const char *p, size_t len)
{
    uint8_t sum = 0;
    for (size_t i = 0; i < len; i++)
        sum = (uint8_t)(sum + (uint8_t)p[i]);
    return hex_digit(p[len + 1]) >= 0 && hex_digit(p[len + 2]) >= 0 &&
           (hex_digit(p[len + 1]) << 4 | hex_digit(p[len + 2])) == sum;
}

/* One item at the front of the buffer; returns how many bytes it has, 0: more is needed. */
static size_t take(struct fvm_gdb_session *s)
{
    if (s->in[0] == INTERRUPT && !s->halted) {
        if (s->target.halt(s->target.ctx) >= 0)
            fvm_gdb_session_stopped(s);
        return 1;
    }
    if (s->in[0] != '$')
        return 1; /* + and -, and noise: gdb sends again what it has no answer to */
    char *hash = memchr(s->in, '#', s->in_len);
    if (!hash || s->in_len < (size_t)(hash - s->in) + 3)
        return 0;
    size_t len = (size_t)(hash - s->in) - 1;
    bool good = sum_right(s->in + 1, len);
    if (!s->no_ack)
        put(s, good ? "+" : "-", 1);
    if (good && s->halted && len) {
        *hash = 0;
        packet(s, s->in + 1, len);
    }
    return len + 4;
}

int fvm_gdb_session_input(struct fvm_gdb_session *s, const uint8_t *bytes, size_t len)
{
    while (len && !s->over && !s->failed) {
        size_t n = FVM_MIN(len, sizeof(s->in) - s->in_len), used;
        if (!n)
            return FVM_EPROTO; /* a packet longer than any we take */
        memcpy(s->in + s->in_len, bytes, n);
        s->in_len += n;
        bytes += n;
        len -= n;
        while (s->in_len && !s->over && (used = take(s)) > 0) {
            memmove(s->in, s->in + used, s->in_len - used);
            s->in_len -= used;
        }
    }
    return s->failed ? FVM_ENOMEM : s->over ? FVM_ECLOSED : 0;
}

const uint8_t *fvm_gdb_session_output(struct fvm_gdb_session *s, size_t *ret_len)
{
    *ret_len = s->out_len;
    return s->out;
}

void fvm_gdb_session_sent(struct fvm_gdb_session *s, size_t len)
{
    fvm_assert(len <= s->out_len);
    memmove(s->out, s->out + len, s->out_len - len);
    s->out_len -= len;
}

/* ---- life ---- */

int fvm_gdb_session_create(const struct fvm_gdb_target *target, struct fvm_gdb_session **ret_session)
{
    struct fvm_gdb_session *s = calloc(1, sizeof(*s));
    if (s)
        s->out = malloc(OUT_MAX);
    int r = s && s->out ? target->halt(target->ctx) : FVM_ENOMEM;
    if (r < 0) {
        if (s)
            free(s->out);
        free(s);
        return r;
    }
    s->target = *target;
    s->was_running = r == 1;
    s->halted = true;
    *ret_session = s;
    return 0;
}

void fvm_gdb_session_destroy(struct fvm_gdb_session **session_p)
{
    struct fvm_gdb_session *s = *session_p;
    *session_p = NULL;
    if (!s)
        return;
    bool runs = s->was_running || !s->halted;
    if (!s->halted)
        (void)s->target.halt(s->target.ctx);
    s->target.forget(s->target.ctx);
    if (runs)
        (void)s->target.go(s->target.ctx, -1);
    free(s->out);
    free(s);
}
