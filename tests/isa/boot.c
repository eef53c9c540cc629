/*
 * ROM images (images/) run from the reset vector on a bare processor. What they write to port 0xe9 must be what a file next to them says;
 * `isa_boot --write NAME` prints what they wrote. tests/e2e/modes-tcg makes QEMU agree to the same files.
 */
#include <CUnit/Basic.h>
#include <semaphore.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "vmm/cpu/cpuid.h"
#include "vmm/cpu/system.h"
#include "vmm/cpu/vcpu.h"

#define RAM_BYTES (16ull << 20)
#define ROM_BYTES 0x10000u
#define ROM_GPA 0xf0000u
#define OUTPUT_MAX (1u << 20)
#define SECONDS_MAX 20

struct machine {
    struct fvm_ram *ram;
    struct fvm_bus *bus;
    struct fvm_irq *irq;
    struct fvm_loop *loop;
    struct fvm_clock *clock;
    struct fvm_engine *engine;
    struct fvm_vcpu *v;
    char *out;
    size_t out_len;
    bool ended;
    sem_t stopped;
};

static void debug_write(void *ctx, uint64_t offset, unsigned size, uint64_t value)
{
    struct machine *m = ctx;
    (void)offset, (void)size;
    if (m->out_len + 1 < OUTPUT_MAX)
        m->out[m->out_len++] = (char)value;
}
static void exit_write(void *ctx, uint64_t offset, unsigned size, uint64_t value)
{
    struct machine *m = ctx;
    (void)offset, (void)size, (void)value;
    m->ended = true;
    sem_post(&m->stopped);
}
static void shutdown(void *ctx, struct fvm_vcpu *v, const char *why)
{
    struct machine *m = ctx;
    (void)v, (void)why;
    sem_post(&m->stopped);
}
static uint64_t nothing_read(void *ctx, uint64_t offset, unsigned size)
{
    (void)ctx, (void)offset, (void)size;
    return 0xe9;
}
/* An unclaimed port reads as it does on QEMU's board. */
static uint64_t zero_read(void *ctx, uint64_t offset, unsigned size)
{
    (void)ctx, (void)offset, (void)size;
    return 0;
}
static void nothing_write(void *ctx, uint64_t offset, unsigned size, uint64_t value)
{
    (void)ctx, (void)offset, (void)size, (void)value;
}

static void must(bool ok)
{
    if (!ok) {
        fprintf(stderr, "isa_boot: cannot make the machine or read its image\n");
        abort();
    }
}

static void machine_create(struct machine *m, const char *image, bool single_insn)
{
    static const struct fvm_bus_ops debug = {nothing_read, debug_write}, end = {nothing_read, exit_write},
                                    empty = {zero_read, nothing_write};
    const struct fvm_cpu_model *model;
    struct fvm_engine_config config = {.cache_bytes = 16 << 20, .single_insn = single_insn, .single_block = single_insn,
                                       .trace = getenv("ISA_BOOT_TRACE") ? FVM_TRACE_EXEC | FVM_TRACE_CODE | FVM_TRACE_INT : 0};
    struct fvm_vcpu_hooks hooks = {.shutdown = shutdown, .ctx = m};
    int id;
    char path[512];
    *m = (struct machine){.out = calloc(1, OUTPUT_MAX)};
    must(!sem_init(&m->stopped, 0, 0));
    must(!fvm_ram_create(RAM_BYTES, &m->ram, NULL) && !fvm_bus_create(&m->bus) && !fvm_irq_create(&m->irq) &&
                    !fvm_loop_create(&m->loop) && !fvm_clock_create(m->loop, 0, &m->clock) &&
                    !fvm_cpu_model_find("fvm64-v3", &model, NULL) &&
                    !fvm_engine_create(m->ram, &config, &m->engine, NULL) &&
                    !fvm_vcpu_create(m->engine, 0, model, m->bus, m->irq, m->clock, &hooks, &m->v, NULL));
    fvm_irq_set_lock(m->irq, m->bus);
    fvm_clock_start(m->clock);
    must(!fvm_bus_claim(m->bus, FVM_BUS_PIO, 0, 0x10000, &empty, m, "empty", &id) &&
                    !fvm_bus_claim(m->bus, FVM_BUS_PIO, 0xe9, 1, &debug, m, "debug", &id) &&
                    !fvm_bus_claim(m->bus, FVM_BUS_PIO, 0xf4, 1, &end, m, "exit", &id));
    snprintf(path, sizeof path, "%s/%s.bin", FVM_IMAGES_BUILT, image);
    FILE *f = fopen(path, "r");
    must(f != NULL);
    must(fread(fvm_ram_hva(m->ram, ROM_GPA), 1, ROM_BYTES, f) == ROM_BYTES);
    fclose(f);
    fvm_ram_mark_written(m->ram, ROM_GPA, ROM_BYTES);
    fvm_vcpu_set_seg_base(m->v, FVM_CS, ROM_GPA); /* the copy below 4 GiB is not here */
}

static void machine_destroy(struct machine *m)
{
    fvm_vcpu_destroy(&m->v);
    fvm_engine_destroy(&m->engine);
    fvm_clock_destroy(&m->clock);
    fvm_loop_destroy(&m->loop);
    fvm_irq_destroy(&m->irq);
    fvm_bus_destroy(&m->bus);
    fvm_ram_destroy(&m->ram);
    sem_destroy(&m->stopped);
    free(m->out);
}

/* Until the image ends, or the processor does. */
static void run(struct machine *m)
{
    struct timespec end;
    clock_gettime(CLOCK_REALTIME, &end);
    end.tv_sec += SECONDS_MAX;
    must(!fvm_vcpu_start_thread(m->v));
    fvm_vcpu_resume(m->v);
    sem_timedwait(&m->stopped, &end);
    fvm_vcpu_stop_thread(m->v);
}

static char *expected(const char *image)
{
    char path[512], *text = calloc(1, OUTPUT_MAX);
    snprintf(path, sizeof path, "%s/%s.expect", FVM_IMAGES, image);
    FILE *f = fopen(path, "r");
    must(f != NULL);
    must(fread(text, 1, OUTPUT_MAX - 1, f) > 0);
    fclose(f);
    return text;
}

static void first_difference(const char *image, const char *want, const char *got)
{
    unsigned line = 1;
    size_t at = 0, start = 0;
    while (want[at] && want[at] == got[at])
        if (want[at++] == '\n') {
            line++;
            start = at;
        }
    fprintf(stderr, "%s line %u\n  expected: %.*s\n  written:  %.*s\n", image, line, (int)strcspn(want + start, "\n"), want + start,
            (int)strcspn(got + start, "\n"), got + start);
}

static void check(const char *image, bool single_insn)
{
    struct machine m;
    machine_create(&m, image, single_insn);
    run(&m);
    char *want = expected(image);
    CU_ASSERT(m.ended);
    bool same = !strcmp(want, m.out);
    CU_ASSERT(same);
    if (!same)
        first_difference(image, want, m.out);
    if (!m.ended)
        fvm_vcpu_dump(m.v, stderr);
    free(want);
    machine_destroy(&m);
}

static void real_mode(void) { check("real", false); }
static void real_mode_single(void) { check("real", true); }
static void limits(void) { check("limits", false); }
static void protected_mode(void) { check("prot", false); }
static void protected_mode_single(void) { check("prot", true); }
static void strict(void) { check("strict", false); }

static int print_output(const char *image)
{
    struct machine m;
    CU_initialize_registry();
    machine_create(&m, image, false);
    run(&m);
    fputs(m.out, stdout);
    if (!m.ended)
        fvm_vcpu_dump(m.v, stderr);
    machine_destroy(&m);
    return 0;
}

int main(int argc, char **argv)
{
    if (argc == 3 && !strcmp(argv[1], "--write"))
        return print_output(argv[2]);
    CU_initialize_registry();
    CU_pSuite s = CU_add_suite("boot", NULL, NULL);
    CU_add_test(s, "real mode", real_mode);
    CU_add_test(s, "real mode, instruction by instruction", real_mode_single);
    CU_add_test(s, "real mode, limits", limits);
    CU_add_test(s, "protected mode", protected_mode);
    CU_add_test(s, "protected mode, instruction by instruction", protected_mode_single);
    CU_add_test(s, "protected mode, by the manual", strict);
    CU_basic_set_mode(CU_BRM_NORMAL);
    CU_basic_run_tests();
    unsigned bad = CU_get_number_of_failures();
    CU_cleanup_registry();
    return bad != 0;
}
