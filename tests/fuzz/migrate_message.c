/* Control messages: parse, and the state they carry, through the processors' check. */
#include <stdlib.h>
#include <string.h>

#include "migrate/migrate.h"
#include "migrate/wire.h"
#include "tests/fuzz/fuzz.h"
#include "vmm/cpu/cpuid.h"
#include "vmm/vm_config.h"
#include "vmm/vm_cpu_check.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct fvm_err err;
    const struct fvm_cpu_model *model;
    Fvm__MigrateMessage *m;
    if (fvm_wire_parse(data, size, &m, &err) != 0)
        return 0;
    if (m->what_case == FVM__MIGRATE_MESSAGE__WHAT_FINAL_STATE && m->final_state->cpus &&
        fvm_cpu_model_find("fvm64-v2", &model, &err) == 0)
        (void)fvm_cpu_state_check(m->final_state->cpus, model, 1, &err);
    if (m->what_case == FVM__MIGRATE_MESSAGE__WHAT_PREPARE && m->prepare->config)
        (void)fvm_config_check(m->prepare->config, false, &err);
    if (m->what_case == FVM__MIGRATE_MESSAGE__WHAT_STOP)
        (void)fvm_wire_error(&err, "peer", m->stop->code, m->stop->text);
    fvm__migrate_message__free_unpacked(m, NULL);
    return 0;
}

static size_t pack(Fvm__MigrateMessage *m, uint8_t *buf)
{
    m->protocol = FVM_MIGRATE_PROTOCOL;
    return fvm__migrate_message__pack(m, buf);
}

static size_t seed_state(uint8_t *buf)
{
    Fvm__MigrateMessage m = FVM__MIGRATE_MESSAGE__INIT;
    Fvm__FinalState f = FVM__FINAL_STATE__INIT;
    Fvm__CpusState cpus = FVM__CPUS_STATE__INIT;
    Fvm__CpuState cpu = FVM__CPU_STATE__INIT, *list = &cpu;
    Fvm__ClockState clock = FVM__CLOCK_STATE__INIT;
    Fvm__SegmentState seg[8], *segs[6];
    Fvm__TableState table = FVM__TABLE_STATE__INIT;
    Fvm__DevicesState devices = FVM__DEVICES_STATE__INIT;
    uint64_t regs[16] = {1, 2, 3}, dr[8] = {[6] = 0xffff0ff0, [7] = 0x400};
    uint8_t xsave[832] = {0x7f, 3, [24] = 0x80, [25] = 0x1f, [512] = 7};
    for (int i = 0; i < 8; i++) {
        fvm__segment_state__init(&seg[i]);
        seg[i].limit = 0xffffffff;
        seg[i].attributes = i == 1 ? 0xa09b : 0xc093;
        seg[i].selector = 8;
        if (i < 6)
            segs[i] = &seg[i];
    }
    seg[7].attributes = 0x8b;
    seg[6].attributes = 0x82;
    cpus.cpu_model = (char *)"fvm64-v2";
    clock.tsc_khz = 2000000;
    cpus.clock = &clock;
    cpus.n_cpus = 1;
    cpus.cpus = &list;
    cpu.n_regs = 16;
    cpu.regs = regs;
    cpu.n_dr = 8;
    cpu.dr = dr;
    cpu.n_segments = 6;
    cpu.segments = segs;
    cpu.ldtr = &seg[6];
    cpu.tr = &seg[7];
    cpu.gdtr = cpu.idtr = &table;
    cpu.cr0 = 0x80050033;
    cpu.cr4 = 0x6b0;
    cpu.xcr0 = 3;
    cpu.rflags = 2;
    cpu.xsave = (ProtobufCBinaryData){.len = sizeof(xsave), .data = xsave};
    f.cpus = &cpus;
    f.devices = &devices;
    m.what_case = FVM__MIGRATE_MESSAGE__WHAT_FINAL_STATE;
    m.final_state = &f;
    return pack(&m, buf);
}

size_t fuzz_seed(unsigned i, uint8_t *buf)
{
    Fvm__MigrateMessage m = FVM__MIGRATE_MESSAGE__INIT;
    Fvm__Prepare prepare = FVM__PREPARE__INIT;
    Fvm__Ack ack = FVM__ACK__INIT;
    Fvm__Stop stop = FVM__STOP__INIT;
    uint64_t lost[] = {3, 4, 9};
    switch (i) {
    case 0:
        return seed_state(buf);
    case 1:
        prepare.config = fvm_config_new();
        prepare.from = (char *)"a";
        prepare.to = (char *)"b";
        m.what_case = FVM__MIGRATE_MESSAGE__WHAT_PREPARE;
        m.prepare = &prepare;
        size_t n = pack(&m, buf);
        fvm_config_free(&prepare.config);
        return n;
    case 2:
        ack.n_lost = 3;
        ack.lost = lost;
        m.what_case = FVM__MIGRATE_MESSAGE__WHAT_ACK;
        m.ack = &ack;
        return pack(&m, buf);
    case 3:
        stop.code = -5;
        stop.text = (char *)"enough";
        m.what_case = FVM__MIGRATE_MESSAGE__WHAT_STOP;
        m.stop = &stop;
        return pack(&m, buf);
    default:
        return 0;
    }
}
