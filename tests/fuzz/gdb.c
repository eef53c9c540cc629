/* A debugger's bytes in any cut: no crash, processors and registers in range, nothing touched while the target runs. */
#include "vmm/gdb.h"

#include <stdlib.h>
#include <string.h>

#include "tests/fuzz/fuzz.h"

static bool running;

static void must(bool good)
{
    if (!good)
        abort();
}
static unsigned cpus(void *ctx) { (void)ctx; return 2; }
static size_t reg(void *ctx, unsigned cpu, unsigned number, uint8_t ret[FVM_DEBUG_REG_BYTES])
{
    (void)ctx;
    must(!running && cpu < 2 && number < FVM_DEBUG_REGS);
    memset(ret, (int)number, FVM_DEBUG_REG_BYTES);
    return fvm_debug_reg_bytes(number);
}
static int set_reg(void *ctx, unsigned cpu, unsigned number, const uint8_t *bytes)
{
    (void)ctx;
    must(!running && cpu < 2 && number < FVM_DEBUG_REGS);
    return bytes[0] & 1 ? FVM_EINVAL : 0;
}
static int read_memory(void *ctx, unsigned cpu, fvm_gva va, void *buf, size_t len)
{
    (void)ctx;
    must(!running && cpu < 2 && len <= FVM_GDB_PACKET_MAX);
    memset(buf, 0x23, len);
    return va & 1 ? FVM_EINVAL : 0;
}
static int write_memory(void *ctx, unsigned cpu, fvm_gva va, const void *buf, size_t len)
{
    static uint8_t sink[FVM_GDB_PACKET_MAX];
    (void)ctx;
    must(!running && cpu < 2 && len <= sizeof(sink));
    memcpy(sink, buf, len);
    return va & 1 ? FVM_EINVAL : 0;
}
static int breakpoint(void *ctx, unsigned cpu, enum fvm_debug_kind kind, fvm_gva va, size_t len, bool set)
{
    (void)ctx;
    (void)len;
    must(!running && cpu < 2 && kind >= FVM_DEBUG_EXEC && kind <= FVM_DEBUG_ACCESS);
    return set && (va & 1) ? FVM_ENOSPC : 0;
}
static int halt(void *ctx)
{
    (void)ctx;
    int was = running;
    running = false;
    return was;
}
static int go(void *ctx, int step_cpu)
{
    (void)ctx;
    must(!running && step_cpu < 2);
    running = true;
    return 0;
}
static enum fvm_debug_reason why(void *ctx, unsigned *ret_cpu, uint64_t *ret_addr, enum fvm_debug_kind *ret_kind)
{
    (void)ctx;
    *ret_cpu = 1;
    *ret_addr = 0;
    *ret_kind = FVM_DEBUG_READ;
    return FVM_DEBUG_WATCH;
}
static void nothing(void *ctx) { (void)ctx; }

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const struct fvm_gdb_target target = {.cpus = cpus, .reg = reg, .set_reg = set_reg, .read = read_memory,
                                                 .write = write_memory, .breakpoint = breakpoint, .halt = halt,
                                                 .go = go, .why = why, .forget = nothing, .kill = nothing};
    struct fvm_gdb_session *s;
    running = size && (data[0] & 1);
    if (!size || fvm_gdb_session_create(&target, &s))
        return 0;
    uint8_t fixed[2048];
    size_t cut = 1 + (data[0] >> 1), n = 0, len;
    for (size_t at = 1; at < size && n < sizeof(fixed) - 3; at++) { /* "#??" becomes the right checksum */
        fixed[n++] = data[at];
        if (data[at] != '#' || at + 2 >= size || data[at + 1] != '?')
            continue;
        size_t from = n - 1;
        while (from && fixed[from - 1] != '$')
            from--;
        uint8_t sum = 0;
        for (size_t i = from; i < n - 1; i++)
            sum = (uint8_t)(sum + fixed[i]);
        fixed[n++] = (uint8_t)"0123456789abcdef"[sum >> 4];
        fixed[n++] = (uint8_t)"0123456789abcdef"[sum & 15];
        at += 2;
    }
    for (size_t at = 0; at < n; at += cut) {
        if (fvm_gdb_session_input(s, fixed + at, FVM_MIN(cut, n - at)))
            break;
        if (running && at % 5 == 0) {
            running = false;
            fvm_gdb_session_stopped(s);
        }
        (void)fvm_gdb_session_output(s, &len);
        fvm_gdb_session_sent(s, len);
    }
    fvm_gdb_session_destroy(&s);
    return 0;
}

size_t fuzz_seed(unsigned i, uint8_t *buf)
{
    static const char *const seeds[] = {
        "\x41$qSupported:xmlRegisters=i386#??+$QStartNoAckMode#??$?#??$g#??$m1000,40#??$Z0,401000,1#??$vCont;c#??",
        "\x20$Hg2#??$p10#??$P10=0100000000000000#??$M1000,2:beef#??$X1000,2:ab#??$Z2,1000,8#??$z2,1000,8#??$s#??",
        "\x80$qXfer:features:read:target.xml:0,fff#??$qfThreadInfo#??$T2#??$vCont;s:2;c#??\x03$D#??",
        "\x03$qC#??$qThreadExtraInfo,1#??$c1500#??\x03$S05;12#??\x03$vKill;1#??",
    };
    if (i >= FVM_ARRAY_SIZE(seeds))
        return 0;
    memcpy(buf, seeds[i], strlen(seeds[i]));
    return strlen(seeds[i]);
}
