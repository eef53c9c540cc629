/* mem/irq: shared lines, sinks hear changes only, the controller behind its front. */
#include "vmm/mem/irq.h"

#include <CUnit/Basic.h>

#include "base/err.h"
#include "vmm/mem/bus.h"

struct seen {
    unsigned calls, line, cpu, arg;
    bool level;
    enum fvm_irq_kick what;
    uint64_t addr;
    uint32_t data;
};

static void on_line(void *ctx, unsigned line, bool level)
{
    struct seen *s = ctx;

    s->calls++;
    s->line = line;
    s->level = level;
}

static void test_lines(void)
{
    struct fvm_irq *irq = NULL;
    struct fvm_irq_source *a = NULL, *b = NULL, *none = NULL;
    struct seen pic = {0}, ioapic = {0};

    CU_ASSERT_EQUAL_FATAL(fvm_irq_create(&irq), 0);
    fvm_irq_add_sink(irq, on_line, &pic);
    fvm_irq_add_sink(irq, on_line, &ioapic);
    fvm_irq_set_line(irq, 4, true);
    fvm_irq_set_line(irq, 4, true);
    CU_ASSERT_EQUAL(pic.calls, 1);
    CU_ASSERT_EQUAL(ioapic.calls, 1);
    CU_ASSERT_EQUAL(pic.line, 4);
    CU_ASSERT_TRUE(pic.level);
    fvm_irq_set_line(irq, 4, false);
    CU_ASSERT_FALSE(ioapic.level);

    CU_ASSERT_EQUAL(fvm_irq_source_create(irq, FVM_IRQ_LINES, &none), FVM_EINVAL);
    CU_ASSERT_EQUAL_FATAL(fvm_irq_source_create(irq, 10, &a), 0);
    CU_ASSERT_EQUAL_FATAL(fvm_irq_source_create(irq, 10, &b), 0);
    pic.calls = 0;
    fvm_irq_source_set(a, true);
    fvm_irq_source_set(a, true);
    fvm_irq_source_set(b, true);
    fvm_irq_set_line(irq, 10, true);
    CU_ASSERT_EQUAL(pic.calls, 1);
    fvm_irq_source_set(a, false);
    fvm_irq_set_line(irq, 10, false);
    CU_ASSERT_EQUAL(pic.calls, 1);
    fvm_irq_source_destroy(&b); /* the last that was high */
    CU_ASSERT_PTR_NULL(b);
    CU_ASSERT_EQUAL(pic.calls, 2);
    CU_ASSERT_FALSE(pic.level);
    fvm_irq_source_destroy(&a);
    CU_ASSERT_EQUAL(pic.calls, 2);
    fvm_irq_destroy(&irq);
    CU_ASSERT_PTR_NULL(irq);
}

static void on_msi(void *ctx, uint64_t addr, uint32_t data)
{
    ((struct seen *)ctx)->addr = addr;
    ((struct seen *)ctx)->data = data;
}

static void on_kick(void *ctx, unsigned cpu, enum fvm_irq_kick what, unsigned arg)
{
    ((struct seen *)ctx)->cpu = cpu;
    ((struct seen *)ctx)->what = what;
    ((struct seen *)ctx)->arg = arg;
}

static void on_eoi(void *ctx, unsigned vector)
{
    ((struct seen *)ctx)->arg = vector;
}

static void test_messages(void)
{
    struct fvm_irq *irq = NULL;
    struct seen s = {0};

    CU_ASSERT_EQUAL_FATAL(fvm_irq_create(&irq), 0);
    fvm_irq_msi(irq, 1, 2); /* nobody there: nothing happens */
    fvm_irq_kick(irq, 1, FVM_KICK_NMI, 0);
    fvm_irq_eoi(irq, 3);
    fvm_irq_set_msi(irq, on_msi, &s);
    fvm_irq_set_kick(irq, on_kick, &s);
    fvm_irq_msi(irq, 0xfee01000, 0x4041);
    CU_ASSERT_EQUAL(s.addr, 0xfee01000);
    CU_ASSERT_EQUAL(s.data, 0x4041);
    fvm_irq_kick(irq, 3, FVM_KICK_SIPI, 0x9a);
    CU_ASSERT_EQUAL(s.cpu, 3);
    CU_ASSERT_EQUAL(s.what, FVM_KICK_SIPI);
    CU_ASSERT_EQUAL(s.arg, 0x9a);
    fvm_irq_set_eoi(irq, on_eoi, &s);
    fvm_irq_eoi(irq, 0x31);
    CU_ASSERT_EQUAL(s.arg, 0x31);
    fvm_irq_destroy(&irq);
}

static bool ctl_pending(void *ctx, unsigned cpu)
{
    return cpu == *(unsigned *)ctx;
}
static int ctl_ack(void *ctx, unsigned cpu)
{
    return cpu == *(unsigned *)ctx ? 0x30 : -1;
}
static bool ctl_msr_read(void *ctx, unsigned cpu, uint32_t msr, uint64_t *ret_value)
{
    (void)ctx;
    (void)cpu;
    if (msr != 0x1b)
        return false;
    *ret_value = 0xfee00900;
    return true;
}
static bool ctl_msr_write(void *ctx, unsigned cpu, uint32_t msr, uint64_t value)
{
    (void)cpu;
    *(unsigned *)ctx = (unsigned)value;
    return msr == 0x1b;
}
static unsigned ctl_tpr_read(void *ctx, unsigned cpu)
{
    return *(unsigned *)ctx + cpu;
}
static void ctl_tpr_write(void *ctx, unsigned cpu, unsigned value)
{
    *(unsigned *)ctx = value + cpu;
}

static const struct fvm_irq_controller CONTROLLER = {
    .pending = ctl_pending, .ack = ctl_ack, .msr_read = ctl_msr_read, .msr_write = ctl_msr_write,
    .tpr_read = ctl_tpr_read, .tpr_write = ctl_tpr_write,
};

static void test_controller(void)
{
    struct fvm_irq *irq = NULL;
    struct fvm_bus *bus = NULL;
    unsigned state = 2;
    uint64_t value = 5;

    CU_ASSERT_EQUAL_FATAL(fvm_irq_create(&irq), 0);
    CU_ASSERT_EQUAL_FATAL(fvm_bus_create(&bus), 0);
    CU_ASSERT_FALSE(fvm_irq_cpu_pending(irq, 2));
    CU_ASSERT_EQUAL(fvm_irq_cpu_ack(irq, 2), -1);
    CU_ASSERT_FALSE(fvm_irq_cpu_msr_read(irq, 0, 0x1b, &value));
    CU_ASSERT_EQUAL(fvm_irq_cpu_tpr_read(irq, 0), 0);
    fvm_irq_set_lock(irq, bus);
    fvm_irq_set_controller(irq, &CONTROLLER, &state);
    CU_ASSERT_TRUE(fvm_irq_cpu_pending(irq, 2));
    CU_ASSERT_FALSE(fvm_irq_cpu_pending(irq, 1));
    CU_ASSERT_EQUAL(fvm_irq_cpu_ack(irq, 2), 0x30);
    CU_ASSERT_EQUAL(fvm_irq_cpu_ack(irq, 1), -1);
    CU_ASSERT_TRUE(fvm_irq_cpu_msr_read(irq, 0, 0x1b, &value));
    CU_ASSERT_EQUAL(value, 0xfee00900);
    CU_ASSERT_FALSE(fvm_irq_cpu_msr_read(irq, 0, 0x800, &value));
    CU_ASSERT_TRUE(fvm_irq_cpu_msr_write(irq, 0, 0x1b, 7));
    CU_ASSERT_EQUAL(fvm_irq_cpu_tpr_read(irq, 1), 8);
    fvm_irq_cpu_tpr_write(irq, 1, 4);
    CU_ASSERT_EQUAL(state, 5);
    fvm_irq_destroy(&irq);
    fvm_bus_destroy(&bus); /* asserts that nobody left the lock taken */
}

int main(void)
{
    CU_initialize_registry();
    CU_pSuite s = CU_add_suite("mem/irq", NULL, NULL);
    CU_add_test(s, "lines and sources", test_lines);
    CU_add_test(s, "messages, kicks, end of interrupt", test_messages);
    CU_add_test(s, "controller", test_controller);
    CU_basic_set_mode(CU_BRM_VERBOSE);
    CU_basic_run_tests();
    unsigned bad = CU_get_number_of_failures();
    CU_cleanup_registry();
    return bad != 0;
}
