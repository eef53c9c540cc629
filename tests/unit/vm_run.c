/*
 * vm_run.c - a whole machine with a guest of a few instructions: run, pause, move its state to another machine in the
 * same process, the dirty log, and every way in which a guest ends or restarts itself.
 *
 * The counting guest keeps n in EBP and in XMM1, writes n into one page of 1024 in order, expects to find n - 1024
 * there, and prints a letter every 4096 rounds: a lost register, page or byte becomes a debug exit with 0x55 or a gap
 * between letters.
 */
#include <CUnit/Basic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "vmm/cpu/cpuid.h"
#include "vmm/vm.h"
#include "vmm/vm_config.h"

#define PAGES_GPA 0x400000ull
#define PAGES 1024u

__asm__(".pushsection .rodata\n.balign 8\nguest_start:\n"
        ".long 0x1badb002, 0x10000, -(0x1badb002 + 0x10000)\n"
        ".long 0x100000, 0x100000, 0x100000 + guest_end - guest_start, 0, 0x100000 + guest_entry - guest_start\n"
        "guest_op: .byte 'c'\n"
        ".code32\n"
        "guest_entry: mov $0x180000, %esp\n"
        "  mov 0x100000 + guest_op - guest_start, %al\n"
        "  cmp $'c', %al; je guest_count\n"
        "  cmp $'o', %al; je guest_off\n"
        "  cmp $'r', %al; je guest_reset\n"
        "  cmp $'d', %al; je guest_exit\n"
        "  cmp $'t', %al; je guest_triple\n"
        "1: cli; hlt; jmp 1b\n"
        "guest_count: mov %cr4, %eax; or $0x600, %eax; mov %eax, %cr4\n"
        "  xor %ebp, %ebp; movd %ebp, %xmm1\n"
        "2: movd %xmm1, %eax; cmp %ebp, %eax; jne guest_fail\n"
        "  mov %ebp, %ecx; and $1023, %ecx; shl $12, %ecx\n"
        "  cmp $1024, %ebp; jb 3f\n"
        "  lea -1024(%ebp), %eax; cmp %eax, 0x400000(%ecx); jne guest_fail\n"
        "3: mov %ebp, 0x400000(%ecx)\n"
        "  inc %ebp; movd %ebp, %xmm1\n"
        "  test $0xfff, %ebp; jnz 2b\n"
        "  mov $0x3fd, %dx\n"
        "4: in %dx, %al; test $0x20, %al; jz 4b\n"
        "  mov $0x3f8, %dx; mov %ebp, %eax; shr $12, %eax; and $15, %al; add $'a', %al; out %al, %dx\n"
        "  jmp 2b\n"
        "guest_fail: mov $0x55, %al; out %al, $0xf4; jmp 1b\n"
        "guest_off: mov $0x604, %dx; mov $0x3400, %ax; out %ax, %dx; jmp 1b\n"
        "guest_reset: incl 0x200000; cmpl $3, 0x200000; jae guest_off\n"
        "  mov $0xfe, %al; out %al, $0x64; jmp 1b\n"
        "guest_exit: mov $0x15, %al; out %al, $0xf4; jmp 1b\n"
        "guest_triple: lidt 0x100000 + guest_no_idt - guest_start; int3\n"
        "guest_no_idt: .word 0; .long 0\n"
        ".code64\nguest_end:\n.popsection\n");
extern const uint8_t guest_start[], guest_op[], guest_end[];

struct machine {
    struct fvm_loop *loop;
    struct fvm_vm *vm;
    char kernel[64], serial[64];
    unsigned events[4], code;
    char why[200];
};

static void on_event(void *ctx, enum fvm_vm_event event, unsigned code, const char *why)
{
    struct machine *m = ctx;
    m->events[event]++;
    m->code = code;
    snprintf(m->why, sizeof(m->why), "%s", why ? why : "");
}

static void begin(struct machine *m, char op, int number, const char *on_reset)
{
    struct fvm_err err = {0};
    char spec[80];
    memset(m, 0, sizeof(*m));
    snprintf(m->kernel, sizeof(m->kernel), "/tmp/fvm-vm-run.%d.%d.kernel", (int)getpid(), number);
    snprintf(m->serial, sizeof(m->serial), "/tmp/fvm-vm-run.%d.%d.serial", (int)getpid(), number);
    snprintf(spec, sizeof(spec), "file:%s", m->serial);
    size_t len = (size_t)(guest_end - guest_start);
    uint8_t *image = malloc(len);
    memcpy(image, guest_start, len);
    image[guest_op - guest_start] = (uint8_t)op;
    FILE *f = fopen(m->kernel, "w");
    CU_ASSERT_EQUAL_FATAL(fwrite(image, 1, len, f), len);
    fclose(f);
    free(image);
    unlink(m->serial);
    Fvm__VmConfig *config = fvm_config_new();
    config->memory_bytes = 32 << 20;
    fvm_config_set(&config->kernel, m->kernel);
    fvm_config_set(&config->serial, spec);
    fvm_config_set(&config->on_reset, on_reset);
    CU_ASSERT_EQUAL_FATAL(fvm_loop_create(&m->loop), 0);
    const struct fvm_vm_hooks hooks = {.event = on_event, .ctx = m};
    int r = fvm_vm_create(config, m->loop, NULL, &hooks, &m->vm, &err);
    if (r)
        fprintf(stderr, "create: %s\n", err.text);
    CU_ASSERT_EQUAL_FATAL(r, 0);
    fvm_config_free(&config);
}

static void end(struct machine *m)
{
    fvm_vm_destroy(&m->vm);
    fvm_loop_destroy(&m->loop);
    unlink(m->kernel);
    unlink(m->serial);
}

static void boot(struct machine *m)
{
    struct fvm_err err = {0};
    int r = fvm_vm_boot(m->vm, &err);
    if (r)
        fprintf(stderr, "boot: %s\n", err.text);
    CU_ASSERT_EQUAL_FATAL(r, 0);
    CU_ASSERT_EQUAL(fvm_vm_run(m->vm), 0);
}

static size_t printed(const struct machine *m)
{
    struct stat st;
    return stat(m->serial, &st) == 0 ? (size_t)st.st_size : 0;
}

/* Turn the loop until the guest has printed `bytes` or anything ended it, at most ten seconds. */
static void turn(struct machine *m, size_t bytes, uint64_t ns)
{
    uint64_t until = fvm_now_ns() + ns;
    while (fvm_now_ns() < until && printed(m) < bytes && !m->events[FVM_VM_EVENT_POWER_OFF] &&
           !m->events[FVM_VM_EVENT_DEBUG_EXIT] && !m->events[FVM_VM_EVENT_CRASHED])
        fvm_loop_turn(m->loop, 1000000);
}

#define TEN_SECONDS 10000000000ull

static char *letters(const struct machine *m, size_t *ret_len)
{
    *ret_len = printed(m);
    char *text = calloc(1, *ret_len + 1);
    FILE *f = fopen(m->serial, "r");
    CU_ASSERT_EQUAL(fread(text, 1, *ret_len, f), *ret_len);
    fclose(f);
    return text;
}

static void pausing(void)
{
    struct machine m;
    begin(&m, 'c', 1, "reset");
    CU_ASSERT_EQUAL(fvm_vm_get_state(m.vm), FVM_VM_CREATED);
    CU_ASSERT_EQUAL(fvm_vm_pause(m.vm), FVM_ESTATE);
    boot(&m);
    turn(&m, 20, TEN_SECONDS);
    for (int i = 0; i < 50; i++) {
        CU_ASSERT_EQUAL(fvm_vm_pause(m.vm), 0);
        CU_ASSERT_EQUAL(fvm_vm_get_state(m.vm), FVM_VM_PAUSED);
        size_t had = printed(&m);
        uint64_t ns = fvm_clock_ns(fvm_vm_clock(m.vm));
        turn(&m, had + 1, 2000000);
        CU_ASSERT_EQUAL(printed(&m), had);
        CU_ASSERT_EQUAL(fvm_clock_ns(fvm_vm_clock(m.vm)), ns);
        CU_ASSERT_EQUAL(fvm_vm_pause(m.vm), 0); /* again: fine */
        CU_ASSERT_EQUAL(fvm_vm_run(m.vm), 0);
        turn(&m, had + 1, TEN_SECONDS);
        CU_ASSERT(printed(&m) > had);
    }
    CU_ASSERT_EQUAL(m.events[FVM_VM_EVENT_DEBUG_EXIT], 0);
    end(&m);
}

static void expect_refused(struct machine *m, Fvm__CpusState *cpus, Fvm__DevicesState *devs, const char *what)
{
    struct fvm_err err = {0};
    int r = fvm_vm_check_state(m->vm, cpus, devs, &err);
    if (!r)
        fprintf(stderr, "accepted: %s\n", what);
    CU_ASSERT(r < 0);
    CU_ASSERT(err.text[0] != 0);
}

/* Each impossible value alone is refused; `field` is an lvalue of the state. */
#define REFUSED(m, cpus, devs, field, bad)                                                                             \
    do {                                                                                                               \
        __typeof__(field) good_ = (field);                                                                             \
        (field) = (bad);                                                                                               \
        expect_refused(m, cpus, devs, #field);                                                                         \
        (field) = good_;                                                                                               \
    } while (0)

static void hostile(struct machine *m, Fvm__CpusState *cpus, Fvm__DevicesState *devs)
{
    Fvm__CpuState *c = cpus->cpus[0];
    char other[] = "fvm64-v9";
    REFUSED(m, cpus, devs, cpus->cpu_model, other);
    REFUSED(m, cpus, devs, cpus->n_cpus, 0u);
    REFUSED(m, cpus, devs, cpus->clock, NULL);
    REFUSED(m, cpus, devs, cpus->clock->tsc_khz, 0u);
    REFUSED(m, cpus, devs, c->n_regs, 15u);
    REFUSED(m, cpus, devs, c->n_segments, 5u);
    REFUSED(m, cpus, devs, c->segments[1], NULL);
    REFUSED(m, cpus, devs, c->segments[5]->base_gva, 0x800000000000ull);
    REFUSED(m, cpus, devs, c->segments[1]->attributes, 0x10000u);
    REFUSED(m, cpus, devs, c->ldtr, NULL);
    REFUSED(m, cpus, devs, c->gdtr->base_gva, 1ull << 50);
    REFUSED(m, cpus, devs, c->gdtr->limit, 0x10000u);
    REFUSED(m, cpus, devs, c->cr0, 0x80000010u);
    REFUSED(m, cpus, devs, c->cr0, c->cr0 | 1ull << 40);
    REFUSED(m, cpus, devs, c->cr4, c->cr4 | 1ull << 31);
    REFUSED(m, cpus, devs, c->cr4, c->cr4 | 0x20000u); /* PCID outside long mode */
    REFUSED(m, cpus, devs, c->cr3, 1ull << 60);
    REFUSED(m, cpus, devs, c->rflags, c->rflags | 1ull << 30);
    REFUSED(m, cpus, devs, c->rip, 1ull << 40);
    REFUSED(m, cpus, devs, c->xcr0, 6u);
    REFUSED(m, cpus, devs, c->xcr0, 5u);
    REFUSED(m, cpus, devs, c->xsave.len, 512u);
    REFUSED(m, cpus, devs, c->xsave.data[27], 0xffu);  /* MXCSR */
    REFUSED(m, cpus, devs, c->xsave.data[514], 0xffu); /* XSTATE_BV */
    REFUSED(m, cpus, devs, c->xsave.data[520], 1u);    /* XCOMP_BV */
    REFUSED(m, cpus, devs, c->run, 3u);
    REFUSED(m, cpus, devs, c->cpl, 4u);
    REFUSED(m, cpus, devs, c->n_msrs, c->n_msrs - 1);
    REFUSED(m, cpus, devs, c->msrs[0]->index, 0x12345u);
    REFUSED(m, cpus, devs, c->msrs[1]->index, c->msrs[0]->index);
    for (size_t i = 0; i < c->n_msrs; i++) {
        if (c->msrs[i]->index == 0xc0000080)
            REFUSED(m, cpus, devs, c->msrs[i]->value, 0x400u); /* LMA by itself */
        if (c->msrs[i]->index == 0xc0000082)
            REFUSED(m, cpus, devs, c->msrs[i]->value, 1ull << 63);
        if (c->msrs[i]->index == 0x277)
            REFUSED(m, cpus, devs, c->msrs[i]->value, 0x0202020202020202ull);
    }
    REFUSED(m, cpus, devs, devs->n_devices, devs->n_devices - 1);
    REFUSED(m, cpus, devs, devs->devices[0]->instance, other);
    REFUSED(m, cpus, devs, devs->devices[0]->state.len, devs->devices[0]->state.len - 1);
}

static void moving(void)
{
    struct machine a, b;
    Fvm__CpusState *cpus = NULL;
    Fvm__DevicesState *devs = NULL;
    struct fvm_err err = {0};
    begin(&a, 'c', 1, "reset");
    boot(&a);
    turn(&a, 20, TEN_SECONDS);
    CU_ASSERT_EQUAL(fvm_vm_save_cpus(a.vm, &cpus), FVM_ESTATE); /* it runs */
    for (int round = 0; round < 10; round++) {
        struct machine *from = round & 1 ? &b : &a, *to = round & 1 ? &a : &b;
        CU_ASSERT_EQUAL(fvm_vm_pause(from->vm), 0);
        CU_ASSERT_EQUAL_FATAL(fvm_vm_save_cpus(from->vm, &cpus), 0);
        CU_ASSERT_EQUAL_FATAL(fvm_vm_save_devices(from->vm, &devs), 0);
        size_t before_len, after_len;
        char *before = letters(from, &before_len);
        begin(to, 'h', round + 2, "reset");
        struct fvm_ram *ram = fvm_vm_ram(from->vm);
        for (uint64_t gpa = 0; gpa < ram->low_bytes; gpa += FVM_PAGE_SIZE)
            fvm_ram_write(fvm_vm_ram(to->vm), gpa, fvm_ram_hva(ram, gpa), FVM_PAGE_SIZE);
        if (round == 0)
            hostile(to, cpus, devs);
        int r = fvm_vm_check_state(to->vm, cpus, devs, &err);
        if (r)
            fprintf(stderr, "check: %s\n", err.text);
        CU_ASSERT_EQUAL_FATAL(r, 0);
        uint64_t ns = cpus->clock->guest_ns;
        fvm_vm_restore_state(to->vm, cpus, devs, 5000000);
        CU_ASSERT_EQUAL(fvm_vm_get_state(to->vm), FVM_VM_PAUSED);
        CU_ASSERT_EQUAL(fvm_clock_ns(fvm_vm_clock(to->vm)),
                        ns + 5000000); /* the blackout has passed for the guest, too */
        fvm__cpus_state__free_unpacked(cpus, NULL);
        fvm__devices_state__free_unpacked(devs, NULL);
        end(from);
        CU_ASSERT_EQUAL(fvm_vm_run(to->vm), 0);
        turn(to, 8, TEN_SECONDS);
        char *after = letters(to, &after_len);
        CU_ASSERT_FATAL(before_len > 0 && after_len >= 8);
        CU_ASSERT_EQUAL(after[0], before[before_len - 1] == 'p' ? 'a' : before[before_len - 1] + 1);
        for (size_t i = 1; i < after_len; i++)
            CU_ASSERT_EQUAL(after[i], after[i - 1] == 'p' ? 'a' : after[i - 1] + 1);
        CU_ASSERT_EQUAL(to->events[FVM_VM_EVENT_DEBUG_EXIT], 0);
        free(before);
        free(after);
    }
    end(&a);
}

static void dirty(void)
{
    struct machine m;
    begin(&m, 'c', 1, "reset");
    boot(&m);
    turn(&m, 3, TEN_SECONDS);
    struct fvm_ram *ram = fvm_vm_ram(m.vm);
    uint8_t *copy = malloc(ram->low_bytes);
    for (int round = 0; round < 20; round++) {
        if (round & 1)
            CU_ASSERT_EQUAL(fvm_vm_pause(m.vm), 0);
        uint32_t closed = fvm_vm_dirty_epoch(m.vm);
        CU_ASSERT_EQUAL(fvm_vm_pause(m.vm), 0);
        unsigned wrong = 0, newer = 0;
        if (round & 1) { /* stood still: nothing may be newer */
            for (uint64_t pfn = 0; pfn < ram->page_count; pfn++)
                newer += ram->version[pfn] > closed;
            CU_ASSERT_EQUAL(newer, 0);
        }
        memcpy(copy, ram->base, ram->low_bytes);
        uint32_t mark = fvm_vm_dirty_epoch(m.vm);
        CU_ASSERT(mark > closed);
        CU_ASSERT_EQUAL(fvm_vm_run(m.vm), 0);
        turn(&m, printed(&m) + 1, TEN_SECONDS);
        CU_ASSERT_EQUAL(fvm_vm_pause(m.vm), 0);
        for (uint64_t pfn = newer = 0; pfn < ram->low_bytes >> FVM_PAGE_SHIFT; pfn++) {
            bool changed =
                memcmp(copy + (pfn << FVM_PAGE_SHIFT), ram->base + (pfn << FVM_PAGE_SHIFT), FVM_PAGE_SIZE) != 0;
            wrong += changed && ram->version[pfn] <= mark;
            newer += ram->version[pfn] > mark;
        }
        CU_ASSERT_EQUAL(wrong, 0); /* never a page that changed and is not newer */
        CU_ASSERT(newer > 0 && newer < PAGES + 64); /* and not simply all */
        CU_ASSERT_EQUAL(fvm_vm_run(m.vm), 0);
    }
    CU_ASSERT_EQUAL(m.events[FVM_VM_EVENT_DEBUG_EXIT], 0);
    free(copy);
    end(&m);
}

static void ends(void)
{
    struct machine m;
    begin(&m, 'o', 1, "reset");
    boot(&m);
    turn(&m, 1, TEN_SECONDS);
    CU_ASSERT_EQUAL(m.events[FVM_VM_EVENT_POWER_OFF], 1);
    CU_ASSERT_EQUAL(fvm_vm_get_state(m.vm), FVM_VM_STOPPED);
    CU_ASSERT_EQUAL(fvm_vm_run(m.vm), FVM_ESTATE);
    struct fvm_err err = {0};
    CU_ASSERT_EQUAL(fvm_vm_boot(m.vm, &err), FVM_ESTATE);
    end(&m);
    begin(&m, 'd', 1, "reset");
    boot(&m);
    turn(&m, 1, TEN_SECONDS);
    CU_ASSERT_EQUAL(m.events[FVM_VM_EVENT_DEBUG_EXIT], 1);
    CU_ASSERT_EQUAL(m.code, 0x15 * 2 + 1);
    end(&m);
    begin(&m, 't', 1, "reset");
    boot(&m);
    turn(&m, 1, TEN_SECONDS);
    CU_ASSERT_EQUAL(m.events[FVM_VM_EVENT_CRASHED], 1);
    CU_ASSERT_PTR_NOT_NULL(strstr(m.why, "triple fault"));
    char *text = NULL;
    size_t len = 0;
    FILE *out = open_memstream(&text, &len);
    fvm_vm_dump(m.vm, out);
    fvm_vm_stats(m.vm, out);
    fclose(out);
    CU_ASSERT(len > 200);
    free(text);
    end(&m);
}

static void resets(void)
{
    struct machine m;
    begin(&m, 'r', 1, "reset");
    boot(&m);
    turn(&m, 1, TEN_SECONDS);
    CU_ASSERT_EQUAL(m.events[FVM_VM_EVENT_RESET], 2); /* RAM outlives a reset: the third start powers off */
    CU_ASSERT_EQUAL(m.events[FVM_VM_EVENT_POWER_OFF], 1);
    end(&m);
    begin(&m, 'r', 1, "stop");
    boot(&m);
    turn(&m, 1, TEN_SECONDS);
    CU_ASSERT_EQUAL(m.events[FVM_VM_EVENT_RESET], 0);
    CU_ASSERT_EQUAL(m.events[FVM_VM_EVENT_POWER_OFF], 1);
    CU_ASSERT_STRING_EQUAL(m.why, "reset");
    end(&m);
    begin(&m, 'r', 1, "reset"); /* the kernel's file goes away before the reset needs it */
    struct fvm_err err = {0};
    CU_ASSERT_EQUAL(fvm_vm_boot(m.vm, &err), 0);
    unlink(m.kernel);
    CU_ASSERT_EQUAL(fvm_vm_run(m.vm), 0);
    turn(&m, 1, TEN_SECONDS);
    CU_ASSERT_EQUAL(m.events[FVM_VM_EVENT_CRASHED], 1);
    CU_ASSERT_PTR_NOT_NULL(strstr(m.why, m.kernel));
    end(&m);
}

int main(void)
{
    CU_initialize_registry();
    CU_pSuite s = CU_add_suite("vm_run", NULL, NULL);
    CU_add_test(s, "ends", ends);
    CU_add_test(s, "resets", resets);
    CU_add_test(s, "pausing", pausing);
    CU_add_test(s, "dirty", dirty);
    CU_add_test(s, "moving", moving);
    CU_basic_run_tests();
    unsigned failed = CU_get_number_of_failures();
    CU_cleanup_registry();
    return failed != 0;
}
