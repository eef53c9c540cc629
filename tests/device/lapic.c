/* lapic: priorities, EOI, IPIs, the three timer modes, x2APIC rules, ExtINT, state. SDM vol. 3A ch. 11. */
#include "vmm/devices/lapic.h"

#include <stdlib.h>

#include "support_board.h"

enum {
    ID = 0x20,
    TPR = 0x80,
    PPR = 0xa0,
    EOI = 0xb0,
    LDR = 0xd0,
    DFR = 0xe0,
    SVR = 0xf0,
    ISR = 0x100,
    IRR = 0x200,
    ESR = 0x280,
    ICR = 0x300,
    ICR_HIGH = 0x310,
    LVT_TIMER = 0x320,
    LVT_LINT0 = 0x350,
    LVT_LINT1 = 0x360,
    LVT_ERROR = 0x370,
    INITIAL = 0x380,
    CURRENT = 0x390,
    DIVIDE = 0x3e0
};
enum { MSR_BASE = 0x1b, MSR_DEADLINE = 0x6e0, X2_TPR = 0x808, X2_ICR = 0x830, X2_SELF = 0x83f };

static struct test_board t;
static struct fvm_device *dev;

static void up(unsigned cpus)
{
    board_up(&t, cpus);
    CU_ASSERT_EQUAL_FATAL(fvm_lapic_create(&t.board, &dev), 0);
    for (unsigned i = 0; i < cpus; i++) {
        fvm_bus_set_cpu(i);
        board_mmio_write(&t, FVM_LAPIC_BASE + SVR, 4, 0x1ff);
    }
    fvm_bus_set_cpu(0);
}

static void down(void)
{
    dev->ops->destroy(dev);
    board_down(&t);
}

static void w(unsigned reg, uint32_t value)
{
    board_mmio_write(&t, FVM_LAPIC_BASE + reg, 4, value);
}

static uint32_t r(unsigned reg)
{
    return (uint32_t)board_mmio_read(&t, FVM_LAPIC_BASE + reg, 4);
}

static bool pending(unsigned cpu)
{
    return fvm_irq_cpu_pending(t.board.irq, cpu);
}

static int ack(unsigned cpu)
{
    return fvm_irq_cpu_ack(t.board.irq, cpu);
}

static bool wrmsr(unsigned cpu, uint32_t msr, uint64_t value)
{
    return fvm_irq_cpu_msr_write(t.board.irq, cpu, msr, value);
}

static uint64_t rdmsr(unsigned cpu, uint32_t msr)
{
    uint64_t v = ~0ull;

    CU_ASSERT_TRUE(fvm_irq_cpu_msr_read(t.board.irq, cpu, msr, &v));
    return v;
}

static void msi(unsigned dest, unsigned vector, bool level)
{
    fvm_irq_msi(t.board.irq, 0xfee00000 | dest << 12, vector | (level ? 0xc000 : 0));
}

static void test_reset_values(void)
{
    board_up(&t, 2);
    CU_ASSERT_EQUAL_FATAL(fvm_lapic_create(&t.board, &dev), 0);
    CU_ASSERT_EQUAL(r(SVR), 0xff);
    CU_ASSERT_EQUAL(r(DFR), 0xffffffff);
    CU_ASSERT_EQUAL(r(LVT_TIMER), 0x10000);
    CU_ASSERT_EQUAL(r(0x30) & 0xff, 0x14);
    CU_ASSERT_EQUAL(rdmsr(0, MSR_BASE), 0xfee00900);
    CU_ASSERT_EQUAL(rdmsr(1, MSR_BASE), 0xfee00800);
    fvm_bus_set_cpu(1);
    CU_ASSERT_EQUAL(r(ID), 1u << 24);
    fvm_bus_set_cpu(0);
    msi(0, 0x40, false); /* software disabled: dropped */
    CU_ASSERT_FALSE(pending(0));
    down();
}

static void test_priority(void)
{
    up(1);
    msi(0, 0x41, false);
    msi(0, 0x62, false);
    msi(0, 0x45, false);
    CU_ASSERT_TRUE(t.kicks[FVM_KICK_INTR] >= 3);
    CU_ASSERT_TRUE(pending(0));
    CU_ASSERT_EQUAL(ack(0), 0x62);
    CU_ASSERT_EQUAL(r(PPR), 0x60);
    CU_ASSERT_FALSE(pending(0)); /* 0x45 is of a lower class than what is in service */
    w(EOI, 0);
    CU_ASSERT_EQUAL(ack(0), 0x45);
    CU_ASSERT_FALSE(pending(0)); /* same class 4 waits for EOI */
    w(EOI, 0);
    w(TPR, 0x40);
    CU_ASSERT_FALSE(pending(0));
    CU_ASSERT_EQUAL(fvm_irq_cpu_tpr_read(t.board.irq, 0), 4);
    fvm_irq_cpu_tpr_write(t.board.irq, 0, 3);
    CU_ASSERT_EQUAL(r(TPR), 0x30);
    CU_ASSERT_EQUAL(ack(0), 0x41);
    CU_ASSERT_EQUAL(r(ISR + 0x20), 1u << 1);
    w(EOI, 0);
    CU_ASSERT_EQUAL(ack(0), -1);
    down();
}

static unsigned eoi_vector;

static void on_eoi(void *ctx, unsigned vector)
{
    (void)ctx;
    eoi_vector = vector;
}

static void test_eoi_broadcast(void)
{
    up(1);
    fvm_irq_set_eoi(t.board.irq, on_eoi, NULL);
    eoi_vector = 0;
    msi(0, 0x50, false);
    CU_ASSERT_EQUAL(ack(0), 0x50);
    w(EOI, 0);
    CU_ASSERT_EQUAL(eoi_vector, 0);
    msi(0, 0x51, true);
    CU_ASSERT_EQUAL(ack(0), 0x51);
    w(EOI, 0);
    CU_ASSERT_EQUAL(eoi_vector, 0x51);
    down();
}

static void ipi(uint32_t high, uint32_t low)
{
    w(ICR_HIGH, high);
    w(ICR, low);
}

static void test_ipi(void)
{
    up(4);
    ipi(2u << 24, 0x60); /* fixed, physical */
    CU_ASSERT_TRUE(pending(2) && !pending(0) && !pending(1) && !pending(3));
    CU_ASSERT_EQUAL(ack(2), 0x60);
    fvm_bus_set_cpu(2);
    w(EOI, 0);
    fvm_bus_set_cpu(0);
    ipi(0, 0x40061); /* self */
    CU_ASSERT_EQUAL(ack(0), 0x61);
    ipi(0, 0xc0062); /* all but self */
    CU_ASSERT_EQUAL(ack(1), 0x62);
    CU_ASSERT_EQUAL(ack(2), 0x62);
    CU_ASSERT_EQUAL(ack(3), 0x62);
    CU_ASSERT_FALSE(pending(0));
    ipi(0, 0x80073); /* all */
    CU_ASSERT_EQUAL(ack(0), 0x73);
    CU_ASSERT_EQUAL(ack(3), 0x73);
    ipi(1u << 24, 0x400); /* NMI */
    CU_ASSERT_EQUAL(t.kicks[FVM_KICK_NMI], 1);
    ipi(1u << 24, 0x4500); /* INIT, assert */
    CU_ASSERT_EQUAL(t.kicks[FVM_KICK_INIT], 1);
    fvm_bus_set_cpu(1);
    CU_ASSERT_EQUAL(r(SVR), 0xff); /* INIT resets the APIC */
    fvm_bus_set_cpu(0);
    ipi(1u << 24, 0x8500); /* INIT level de-assert: nothing */
    CU_ASSERT_EQUAL(t.kicks[FVM_KICK_INIT], 1);
    ipi(1u << 24, 0x699);
    CU_ASSERT_EQUAL(t.kicks[FVM_KICK_SIPI], 1);
    CU_ASSERT_EQUAL(t.sipi_vector, 0x99);
    down();
}

static void test_logical(void)
{
    up(4);
    for (unsigned i = 0; i < 4; i++) {
        fvm_bus_set_cpu(i);
        w(LDR, 1u << (24 + i));
    }
    fvm_bus_set_cpu(0);
    ipi(0x0a000000, 0x870); /* flat: 1 and 3 */
    CU_ASSERT_EQUAL(ack(1), 0x70);
    CU_ASSERT_EQUAL(ack(3), 0x70);
    CU_ASSERT_FALSE(pending(0) || pending(2));
    for (unsigned i = 0; i < 4; i++) {
        fvm_bus_set_cpu(i);
        w(DFR, 0x0fffffff);
        w(LDR, (i / 2) << 28 | 1u << (24 + i % 2));
    }
    fvm_bus_set_cpu(0);
    ipi(0x12000000, 0x871); /* cluster 1, member 1: cpu 3 */
    CU_ASSERT_EQUAL(ack(3), -1); /* 0x70 in service, same class */
    fvm_bus_set_cpu(3);
    w(EOI, 0);
    CU_ASSERT_EQUAL(ack(3), 0x71);
    fvm_bus_set_cpu(0);
    /* lowest priority goes to exactly one */
    w(TPR, 0x90);
    ipi(0x03000000, 0x9a0);
    CU_ASSERT_TRUE(pending(1) && !pending(0));
    down();
}

static void test_one_shot(void)
{
    up(1);
    w(LVT_TIMER, 0x31);
    w(DIVIDE, 0xb); /* by 1 */
    w(INITIAL, 1000000000);
    board_advance(&t, 400000000);
    CU_ASSERT_FALSE(pending(0));
    CU_ASSERT(r(CURRENT) <= 600000000 && r(CURRENT) > 0);
    board_advance(&t, 700000000);
    CU_ASSERT_EQUAL(r(CURRENT), 0);
    CU_ASSERT_EQUAL(ack(0), 0x31);
    w(EOI, 0);
    board_advance(&t, 5000000);
    CU_ASSERT_FALSE(pending(0));
    w(DIVIDE, 0x0); /* by 2 */
    w(INITIAL, 1000000000);
    board_advance(&t, 1500000000);
    CU_ASSERT_FALSE(pending(0));
    board_advance(&t, 600000000);
    CU_ASSERT_EQUAL(ack(0), 0x31);
    down();
}

static void test_periodic(void)
{
    unsigned got = 0;

    up(1);
    w(LVT_TIMER, 0x20031);
    w(DIVIDE, 0xb);
    w(INITIAL, 1000000000);
    for (unsigned i = 0; i < 20; i++) {
        board_advance(&t, 500000000);
        if (pending(0)) {
            CU_ASSERT_EQUAL(ack(0), 0x31);
            w(EOI, 0);
            got++;
        }
    }
    CU_ASSERT(got == 10 || got == 11); /* the clock runs on a little while the loop turns */
    w(INITIAL, 0);
    board_advance(&t, 3000000000ull);
    CU_ASSERT_FALSE(pending(0));
    down();
}

static void test_deadline(void)
{
    up(1);
    CU_ASSERT_TRUE(wrmsr(0, MSR_DEADLINE, 12345));
    CU_ASSERT_EQUAL(rdmsr(0, MSR_DEADLINE), 0); /* not in deadline mode: ignored */
    w(LVT_TIMER, 0x40031);
    uint64_t at = fvm_clock_tsc(t.board.clock) + 1000000000;
    CU_ASSERT_TRUE(wrmsr(0, MSR_DEADLINE, at));
    CU_ASSERT_EQUAL(rdmsr(0, MSR_DEADLINE), at);
    board_advance(&t, 500000000);
    CU_ASSERT_FALSE(pending(0));
    board_advance(&t, 600000000);
    CU_ASSERT_EQUAL(ack(0), 0x31);
    CU_ASSERT_EQUAL(rdmsr(0, MSR_DEADLINE), 0);
    w(EOI, 0);
    CU_ASSERT_TRUE(wrmsr(0, MSR_DEADLINE, 1)); /* in the past: at once */
    CU_ASSERT_EQUAL(ack(0), 0x31);
    w(EOI, 0);
    CU_ASSERT_TRUE(wrmsr(0, MSR_DEADLINE, fvm_clock_tsc(t.board.clock) + 1000000000));
    CU_ASSERT_TRUE(wrmsr(0, MSR_DEADLINE, 0));
    board_advance(&t, 3000000000ull);
    CU_ASSERT_FALSE(pending(0));
    w(LVT_TIMER, 0x50031); /* masked: no interrupt, but it is over */
    CU_ASSERT_TRUE(wrmsr(0, MSR_DEADLINE, fvm_clock_tsc(t.board.clock) + 1000));
    board_advance(&t, 3000000000ull);
    CU_ASSERT_FALSE(pending(0));
    CU_ASSERT_EQUAL(rdmsr(0, MSR_DEADLINE), 0);
    down();
}

static void test_x2apic(void)
{
    uint64_t v;

    up(2);
    CU_ASSERT_FALSE(fvm_irq_cpu_msr_read(t.board.irq, 0, X2_TPR, &v)); /* not in x2APIC mode: #GP */
    CU_ASSERT_FALSE(wrmsr(0, MSR_BASE, 0xfee00500));                   /* EXTD without EN */
    CU_ASSERT_FALSE(wrmsr(0, MSR_BASE, 0xfed00900));                   /* moved */
    CU_ASSERT_TRUE(wrmsr(0, MSR_BASE, 0xfee00d00));
    CU_ASSERT_TRUE(wrmsr(1, MSR_BASE, 0xfee00c00));
    CU_ASSERT_FALSE(wrmsr(0, MSR_BASE, 0xfee00900)); /* back to xAPIC only through disabled */
    CU_ASSERT_EQUAL(rdmsr(1, 0x802), 1);
    CU_ASSERT_EQUAL(rdmsr(1, 0x80d), 2);
    CU_ASSERT_EQUAL(r(SVR), 0xffffffff); /* the page is gone */
    CU_ASSERT_TRUE(wrmsr(0, 0x80f, 0x1ff));
    CU_ASSERT_FALSE(wrmsr(0, X2_TPR, 0x100));
    CU_ASSERT_FALSE(wrmsr(0, 0x80b, 1)); /* EOI takes only 0 */
    CU_ASSERT_FALSE(wrmsr(0, 0x80e, 0)); /* no DFR */
    CU_ASSERT_FALSE(fvm_irq_cpu_msr_read(t.board.irq, 0, 0x831, &v));
    CU_ASSERT_FALSE(wrmsr(0, 0x802, 5));
    CU_ASSERT_TRUE(wrmsr(0, X2_SELF, 0x77));
    CU_ASSERT_EQUAL(ack(0), 0x77);
    CU_ASSERT_TRUE(wrmsr(0, X2_ICR, 1ull << 32 | 0x78));
    CU_ASSERT_EQUAL(rdmsr(0, X2_ICR), 1ull << 32 | 0x78);
    CU_ASSERT_EQUAL(ack(1), 0x78);
    CU_ASSERT_TRUE(wrmsr(0, X2_ICR, 0x2ull << 32 | 0x889)); /* logical: cluster 0, member 1 */
    CU_ASSERT_EQUAL(ack(1), 0x89);
    CU_ASSERT_TRUE(wrmsr(0, MSR_BASE, 0xfee00100));
    CU_ASSERT_FALSE(pending(0));
    down();
}

static unsigned pic_acks;

static int intack(void *ctx)
{
    pic_acks++;
    return *(int *)ctx;
}

static void test_extint(void)
{
    int vector = 0x21;

    up(2);
    fvm_lapic_set_pic(dev, intack, &vector);
    pic_acks = 0;
    fvm_lapic_extint(dev, true);
    CU_ASSERT_EQUAL(r(LVT_LINT0), 0x700); /* as firmware leaves it */
    w(LVT_LINT0, 0x10700);
    CU_ASSERT_FALSE(pending(0));
    w(LVT_LINT0, 0x700);
    CU_ASSERT_TRUE(pending(0));
    CU_ASSERT_FALSE(pending(1));
    CU_ASSERT_EQUAL(ack(0), 0x21);
    CU_ASSERT_EQUAL(pic_acks, 1);
    w(LVT_LINT0, 0x10700);
    CU_ASSERT_FALSE(pending(0));
    CU_ASSERT_TRUE(wrmsr(0, MSR_BASE, 0xfee00100)); /* APIC off: the i8259 is wired straight to the processor */
    CU_ASSERT_TRUE(pending(0));
    fvm_lapic_extint(dev, false);
    CU_ASSERT_FALSE(pending(0));
    fvm_lapic_nmi(dev);
    CU_ASSERT_EQUAL(t.kicks[FVM_KICK_NMI], 0);
    fvm_bus_set_cpu(1);
    w(LVT_LINT1, 0x400);
    fvm_bus_set_cpu(0);
    fvm_lapic_nmi(dev);
    CU_ASSERT_EQUAL(t.kicks[FVM_KICK_NMI], 1);
    down();
}

static void test_virtual_wire(void)
{
    int vector = 0x08;

    board_up(&t, 1);
    CU_ASSERT_EQUAL_FATAL(fvm_lapic_create(&t.board, &dev), 0);
    fvm_lapic_set_pic(dev, intack, &vector);
    fvm_lapic_extint(dev, true);
    CU_ASSERT_EQUAL(ack(0), 8); /* a system that never heard of APICs gets its timer */
    down();
}

static void test_errors(void)
{
    up(1);
    w(LVT_ERROR, 0x55);
    ipi(0, 0x40005); /* vector below 16 */
    CU_ASSERT_EQUAL(r(ESR), 0);
    w(ESR, 0);
    CU_ASSERT_EQUAL(r(ESR), 0x20);
    CU_ASSERT_EQUAL(ack(0), 0x55);
    w(EOI, 0);
    msi(0, 3, false);
    (void)r(0x3f0 + 0x0); /* no such register */
    w(ESR, 0);
    CU_ASSERT_EQUAL(r(ESR), 0xc0);
    w(ESR, 0);
    CU_ASSERT_EQUAL(r(ESR), 0);
    down();
}

static void poke(struct test_board *b, struct fvm_device *victim)
{
    fvm_lapic_extint(victim, true);
    for (unsigned i = 0; i < 2; i++) {
        (void)fvm_irq_cpu_ack(b->board.irq, i);
        fvm_bus_set_cpu(i);
        board_mmio_write(b, FVM_LAPIC_BASE + EOI, 4, 0);
        (void)board_mmio_read(b, FVM_LAPIC_BASE + CURRENT, 4);
        board_mmio_write(b, FVM_LAPIC_BASE + ICR, 4, 0x80000 | 0x40);
    }
    fvm_bus_set_cpu(0);
    board_advance(b, 1000);
}

static void test_state(void)
{
    struct fvm_device *fresh;
    struct test_board other;

    up(2);
    w(LVT_TIMER, 0x20031);
    w(DIVIDE, 0xb);
    w(INITIAL, 5000000);
    msi(1, 0x91, true);
    msi(0, 0x92, false);
    CU_ASSERT_EQUAL(ack(0), 0x92);
    board_up(&other, 2);
    CU_ASSERT_EQUAL_FATAL(fvm_lapic_create(&other.board, &fresh), 0);
    board_roundtrip(dev, fresh);
    CU_ASSERT_EQUAL(fvm_irq_cpu_ack(other.board.irq, 1), 0x91);
    fresh->ops->resume(fresh);
    board_hostile(&other, dev, fresh, 20000, poke);
    fresh->ops->destroy(fresh);
    board_down(&other);
    board_up(&other, 3);
    CU_ASSERT_EQUAL_FATAL(fvm_lapic_create(&other.board, &fresh), 0);
    uint8_t *buf;
    size_t len;
    CU_ASSERT_EQUAL_FATAL(dev->ops->save(dev, &buf, &len), 0);
    CU_ASSERT_NOT_EQUAL(fresh->ops->check(fresh, buf, len, NULL), 0); /* another number of processors */
    free(buf);
    fresh->ops->destroy(fresh);
    board_down(&other);
    down();
}

int main(void)
{
    static const struct board_test tests[] = {
        {"reset values", test_reset_values}, {"priority and EOI", test_priority}, {"EOI broadcast", test_eoi_broadcast},
        {"IPIs", test_ipi}, {"logical destinations", test_logical}, {"one-shot timer", test_one_shot},
        {"periodic timer", test_periodic}, {"TSC deadline", test_deadline}, {"x2APIC", test_x2apic},
        {"ExtINT and NMI pins", test_extint}, {"virtual wire", test_virtual_wire}, {"errors", test_errors},
        {"state", test_state},
    };

    return board_main("device/lapic", tests, FVM_ARRAY_SIZE(tests));
}
