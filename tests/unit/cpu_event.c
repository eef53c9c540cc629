/* cpu/event, iret: frames of exceptions and interrupts, IST, double and triple fault, the way back. SDM vol. 3A ch. 6. */
#include "tests/unit/cpu_fixture.h"

static void deliver(struct cpu_fixture *f, enum fvm_event_kind kind, uint8_t vector, bool has_code, uint32_t code,
                    uint64_t cr2)
{
    struct fvm_fault w = {.vector = vector, .has_code = has_code, .code = code, .cr2 = cr2};

    fvm_event_deliver(f->v, kind, &w);
}

static void frame_from_user(void)
{
    struct cpu_fixture f;

    fixture_long(&f);
    gate64(&f, 14, KVA + 0x30100, FVM_T_INT, 0);
    set_ring(&f, 3, 64);
    fvm_vcpu_set_rflags(f.v, 0x246 | FVM_F_TF | FVM_F_DF);
    deliver(&f, FVM_EVENT_FAULT, 14, true, 6, 0x1234567);
    CU_ASSERT_EQUAL(f.v->rip, KVA + 0x30100);
    CU_ASSERT_EQUAL(f.v->cr2, 0x1234567);
    CU_ASSERT_EQUAL(f.v->cpl, 0);
    CU_ASSERT_EQUAL(f.v->seg[FVM_CS].sel, S_K64);
    CU_ASSERT_EQUAL(f.v->seg[FVM_SS].sel, 0);
    CU_ASSERT_EQUAL(f.v->regs[FVM_RSP], T_RSP0 - 48);
    CU_ASSERT_EQUAL(f.v->iflag, 0);
    CU_ASSERT_EQUAL(f.v->rflags & (FVM_F_TF | FVM_F_RF), 0);
    CU_ASSERT(f.v->rflags & FVM_F_DF);
    CU_ASSERT_EQUAL(get64(&f, T_RSP0 - 48), 6);
    CU_ASSERT_EQUAL(get64(&f, T_RSP0 - 40), T_UCODE);
    CU_ASSERT_EQUAL(get64(&f, T_RSP0 - 32), S_U64);
    CU_ASSERT_EQUAL(get64(&f, T_RSP0 - 24), (0x246 | FVM_F_TF | FVM_F_DF | FVM_F_RF));
    CU_ASSERT_EQUAL(get64(&f, T_RSP0 - 16), T_USTACK);
    CU_ASSERT_EQUAL(get64(&f, T_RSP0 - 8), S_UDATA);
    /* and back: iretq over the error code */
    f.v->regs[FVM_RSP] += 8;
    CU_ASSERT_EQUAL(EXEC(&f, "\x48\xcf"), 0);
    CU_ASSERT_EQUAL(f.v->rip, T_UCODE);
    CU_ASSERT_EQUAL(f.v->cpl, 3);
    CU_ASSERT_EQUAL(f.v->regs[FVM_RSP], T_USTACK);
    CU_ASSERT_EQUAL(f.v->seg[FVM_CS].sel, S_U64);
    CU_ASSERT_EQUAL(f.v->seg[FVM_SS].sel, S_UDATA);
    CU_ASSERT_EQUAL(fvm_vcpu_rflags(f.v), 0x246 | FVM_F_TF | FVM_F_DF);
    fixture_end(&f);
}

static void frame_same_ring_aligned(void)
{
    struct cpu_fixture f;

    fixture_long(&f);
    gate64(&f, 0x80, T_KCODE, FVM_T_TRAP, 0);
    f.v->regs[FVM_RSP] = T_KSTACK - 3;
    f.v->iflag = 1;
    fvm_event_interrupt(f.v, 0x80);
    CU_ASSERT_EQUAL(f.v->regs[FVM_RSP], T_KSTACK - 16 - 40);
    CU_ASSERT_EQUAL(get64(&f, T_KSTACK - 16 - 16), T_KSTACK - 3); /* old rsp */
    CU_ASSERT_EQUAL(get64(&f, T_KSTACK - 16 - 8), S_KDATA);
    CU_ASSERT_EQUAL(f.v->seg[FVM_SS].sel, S_KDATA); /* no ring change: kept */
    CU_ASSERT_EQUAL(f.v->iflag, 1);                 /* trap gate */
    fixture_end(&f);
}

static void ist_and_nmi(void)
{
    struct cpu_fixture f;

    fixture_long(&f);
    gate64(&f, 2, T_KCODE + 0x40, FVM_T_INT, 1);
    f.v->run = FVM_RUN_HALTED;
    f.v->int_shadow = 1;
    fvm_event_interrupt(f.v, 2);
    CU_ASSERT_EQUAL(f.v->regs[FVM_RSP], T_IST1 - 40);
    CU_ASSERT_EQUAL(f.v->nmi_blocked, 1);
    CU_ASSERT_EQUAL(f.v->run, FVM_RUN_NORMAL);
    CU_ASSERT_EQUAL(f.v->int_shadow, 0);
    CU_ASSERT_EQUAL(EXEC(&f, "\x48\xcf"), 0);
    CU_ASSERT_EQUAL(f.v->nmi_blocked, 0);
    CU_ASSERT_EQUAL(f.v->regs[FVM_RSP], T_KSTACK);
    CU_ASSERT_EQUAL(f.v->rip, T_KCODE);
    fixture_end(&f);
}

static void soft_interrupts(void)
{
    struct cpu_fixture f;

    fixture_long(&f);
    gate64(&f, 3, T_KCODE, FVM_T_INT | 0x60, 0);
    gate64(&f, 0x20, T_KCODE, FVM_T_INT, 0);
    set_ring(&f, 3, 64);
    CU_ASSERT_EQUAL(EXEC(&f, "\xcc"), 0);
    CU_ASSERT_EQUAL(get64(&f, T_RSP0 - 40), T_UCODE + 1); /* trap: the next instruction */
    CU_ASSERT_EQUAL(get64(&f, T_RSP0 - 24) & FVM_F_RF, 0);
    set_ring(&f, 3, 64);
    CU_ASSERT_EQUAL(EXEC(&f, "\xcd\x20"), FVM_FAULT); /* DPL 0 */
    ASSERT_FAULT(&f, FVM_EXC_GP, 0x20 * 8 + 2);
    CU_ASSERT_EQUAL(f.v->rip, T_UCODE);
    CU_ASSERT_EQUAL(EXEC(&f, "\xcd\x21"), FVM_FAULT); /* empty gate */
    ASSERT_FAULT(&f, FVM_EXC_GP, 0x21 * 8 + 2);
    CU_ASSERT_EQUAL(f.v->cpl, 3);
    fixture_end(&f);
}

static void double_fault(void)
{
    struct cpu_fixture f;

    fixture_long(&f);
    gate64(&f, 14, T_KCODE, FVM_T_INT, 0);
    gate64(&f, 8, T_KCODE + 0x80, FVM_T_INT, 1);
    f.v->regs[FVM_RSP] = T_HOLE + 0x800; /* the frame's page is absent */
    deliver(&f, FVM_EVENT_FAULT, 14, true, 0, 0x5000);
    CU_ASSERT_EQUAL(f.v->rip, T_KCODE + 0x80);
    CU_ASSERT_EQUAL(f.v->regs[FVM_RSP], T_IST1 - 48);
    CU_ASSERT_EQUAL(get64(&f, T_IST1 - 48), 0);
    CU_ASSERT_EQUAL(f.v->cr2 & ~0xfffull, T_HOLE);
    CU_ASSERT_EQUAL(get64(&f, T_IST1 - 40), T_KCODE);
    fixture_end(&f);
}

static void benign_then_fault(void)
{
    struct cpu_fixture f;

    fixture_long(&f);
    gate64(&f, 13, T_KCODE + 0x40, FVM_T_INT, 0);
    fvm_event_interrupt(f.v, 0x55); /* no gate: #GP with EXT, not #DF */
    CU_ASSERT_EQUAL(f.v->rip, T_KCODE + 0x40);
    CU_ASSERT_EQUAL(get64(&f, T_KSTACK - 48), 0x55 * 8 + 3);
    fixture_end(&f);
}

static void triple_fault(void)
{
    struct cpu_fixture f;

    fixture_long(&f);
    f.v->idtr.limit = 0;
    deliver(&f, FVM_EVENT_FAULT, 6, false, 0, 0);
    CU_ASSERT_EQUAL(f.v->run, FVM_RUN_SHUTDOWN);
    CU_ASSERT_EQUAL(f.v->rip, T_KCODE);
    fixture_end(&f);
}

static void iret_faults(void)
{
    struct cpu_fixture f;
    uint64_t sp = T_KSTACK - 40;

    fixture_long(&f);
    f.v->regs[FVM_RSP] = sp;
    put64(&f, sp, T_UCODE);
    put64(&f, sp + 16, 2);
    put64(&f, sp + 24, T_USTACK);
    put64(&f, sp + 32, S_UDATA);
    put64(&f, sp + 8, 0);
    CU_ASSERT_EQUAL(EXEC(&f, "\x48\xcf"), FVM_FAULT);
    ASSERT_FAULT(&f, FVM_EXC_GP, 0);
    put64(&f, sp + 8, S_UDATA); /* not code */
    CU_ASSERT_EQUAL(EXEC(&f, "\x48\xcf"), FVM_FAULT);
    ASSERT_FAULT(&f, FVM_EXC_GP, S_UDATA & ~3);
    put64(&f, sp + 8, 0x7f3); /* beyond the table */
    CU_ASSERT_EQUAL(EXEC(&f, "\x48\xcf"), FVM_FAULT);
    ASSERT_FAULT(&f, FVM_EXC_GP, 0x7f0);
    put64(&f, sp + 8, S_U64);
    put64(&f, sp + 32, 0); /* null SS at ring 3 */
    CU_ASSERT_EQUAL(EXEC(&f, "\x48\xcf"), FVM_FAULT);
    ASSERT_FAULT(&f, FVM_EXC_GP, 0);
    put64(&f, sp + 32, S_UDATA);
    put64(&f, sp, 1ull << 47); /* not canonical */
    CU_ASSERT_EQUAL(EXEC(&f, "\x48\xcf"), FVM_FAULT);
    ASSERT_FAULT(&f, FVM_EXC_GP, 0);
    CU_ASSERT_EQUAL(f.v->regs[FVM_RSP], sp);
    CU_ASSERT_EQUAL(f.v->cpl, 0);
    CU_ASSERT_EQUAL(f.v->rip, T_KCODE);
    put64(&f, sp, T_UCODE);
    put64(&f, sp + 8, S_U32); /* to compatibility mode */
    f.v->seg[FVM_GS].base = f.v->seg_base_gs = 0x7000;
    set_seg(&f, FVM_DS, S_KDATA); /* an inner segment must not survive */
    CU_ASSERT_EQUAL(EXEC(&f, "\x48\xcf"), 0);
    CU_ASSERT_EQUAL(fvm_vcpu_code_bits(f.v), 32);
    CU_ASSERT_EQUAL(f.v->seg[FVM_DS].sel, 0);
    CU_ASSERT_EQUAL(f.v->seg[FVM_GS].base, 0x7000); /* null selector: base kept */
    fixture_end(&f);
}

static void protected_mode_32(void)
{
    struct cpu_fixture f;
    uint32_t w[6];

    fixture_flat32(&f);
    gate32(&f, 13, T_KCODE + 0x100, FVM_T_INT);
    set_ring(&f, 3, 32);
    f.v->iflag = 1;
    deliver(&f, FVM_EVENT_FAULT, 13, true, 0x18, 0);
    CU_ASSERT_EQUAL(f.v->rip, T_KCODE + 0x100);
    CU_ASSERT_EQUAL(f.v->regs[FVM_RSP], T_RSP0 - 24);
    CU_ASSERT_EQUAL(f.v->seg[FVM_SS].sel, S_KDATA);
    CU_ASSERT_EQUAL(fvm_ram_read(f.v->ram, T_RSP0 - 24, w, sizeof(w)), 0);
    CU_ASSERT_EQUAL(w[0], 0x18);
    CU_ASSERT_EQUAL(w[1], T_UCODE);
    CU_ASSERT_EQUAL(w[2], S_U32);
    CU_ASSERT_EQUAL(w[4], T_USTACK);
    CU_ASSERT_EQUAL(w[5], S_UDATA);
    f.v->regs[FVM_RSP] += 4;
    CU_ASSERT_EQUAL(EXEC(&f, "\xcf"), 0);
    CU_ASSERT_EQUAL(f.v->rip, T_UCODE);
    CU_ASSERT_EQUAL(f.v->cpl, 3);
    CU_ASSERT_EQUAL(f.v->regs[FVM_RSP], T_USTACK);
    CU_ASSERT_EQUAL(f.v->iflag, 1);
    fixture_end(&f);
}

static void v86_and_back(void)
{
    struct cpu_fixture f;
    uint32_t w[9] = {0x100, 0x1234, 0x20202 | FVM_F_VM, 0x400, 0x2000, 0x11, 0x22, 0x33, 0x44};

    fixture_flat32(&f);
    gate32(&f, 13, T_KCODE, FVM_T_INT);
    f.v->regs[FVM_RSP] = T_KSTACK - 36;
    CU_ASSERT_EQUAL(fvm_ram_write(f.v->ram, T_KSTACK - 36, w, sizeof(w)), 0);
    CU_ASSERT_EQUAL(EXEC(&f, "\xcf"), 0);
    CU_ASSERT(fvm_vcpu_v86(f.v));
    CU_ASSERT_EQUAL(f.v->cpl, 3);
    CU_ASSERT_EQUAL(f.v->seg[FVM_CS].base, 0x12340);
    CU_ASSERT_EQUAL(f.v->seg[FVM_GS].base, 0x440);
    CU_ASSERT_EQUAL(fvm_vcpu_code_bits(f.v), 16);
    CU_ASSERT_EQUAL(EXEC(&f, "\xfa"), FVM_FAULT); /* cli with IOPL 0 */
    ASSERT_FAULT(&f, FVM_EXC_GP, 0);
    fvm_event_deliver(f.v, FVM_EVENT_FAULT, &f.fault);
    CU_ASSERT(!fvm_vcpu_v86(f.v));
    CU_ASSERT_EQUAL(f.v->cpl, 0);
    CU_ASSERT_EQUAL(f.v->regs[FVM_RSP], T_RSP0 - 40);
    CU_ASSERT_EQUAL(fvm_ram_read(f.v->ram, T_RSP0 - 40, w, sizeof(w)), 0);
    CU_ASSERT_EQUAL(w[1], 0x100);
    CU_ASSERT_EQUAL(w[2], 0x1234);
    CU_ASSERT_EQUAL(w[6], 0x11); /* es */
    CU_ASSERT_EQUAL(f.v->seg[FVM_GS].sel, 0);
    fixture_end(&f);
}

static void real_mode(void)
{
    struct cpu_fixture f;
    uint16_t ivt[2] = {0x20, 0x3000}, w[3];

    fixture_make(&f);
    CU_ASSERT_EQUAL(fvm_ram_write(f.v->ram, 0x10 * 4, ivt, 4), 0);
    f.v->rip = 0x100;
    fvm_seg_real(f.v, FVM_CS, 0x800);
    fvm_seg_real(f.v, FVM_SS, 0x900);
    f.v->regs[FVM_RSP] = 0xabcd0002; /* wraps in 16 bits */
    f.v->iflag = 1;
    CU_ASSERT_EQUAL(EXEC(&f, "\xcd\x10"), 0);
    CU_ASSERT_EQUAL(f.v->rip, 0x20);
    CU_ASSERT_EQUAL(f.v->seg[FVM_CS].base, 0x30000);
    CU_ASSERT_EQUAL(f.v->regs[FVM_RSP], 0xabcdfffc);
    CU_ASSERT_EQUAL(f.v->iflag, 0);
    CU_ASSERT_EQUAL(fvm_ram_read(f.v->ram, 0x9000 + 0xfffc, w, 4), 0);
    CU_ASSERT_EQUAL(fvm_ram_read(f.v->ram, 0x9000, w + 2, 2), 0);
    CU_ASSERT_EQUAL(w[0], 0x102);
    CU_ASSERT_EQUAL(w[1], 0x800);
    CU_ASSERT_EQUAL(w[2], 0x202);
    CU_ASSERT_EQUAL(EXEC(&f, "\xcf"), 0);
    CU_ASSERT_EQUAL(f.v->rip, 0x102);
    CU_ASSERT_EQUAL(f.v->iflag, 1);
    CU_ASSERT_EQUAL(f.v->regs[FVM_RSP], 0xabcd0002);
    fixture_end(&f);
}

int main(void)
{
    static const struct cpu_test tests[] = {
        {"frame_from_user", frame_from_user}, {"frame_same_ring_aligned", frame_same_ring_aligned},
        {"ist_and_nmi", ist_and_nmi}, {"soft_interrupts", soft_interrupts}, {"double_fault", double_fault},
        {"benign_then_fault", benign_then_fault}, {"triple_fault", triple_fault}, {"iret_faults", iret_faults},
        {"protected_mode_32", protected_mode_32}, {"v86_and_back", v86_and_back}, {"real_mode", real_mode},
    };
    return run_tests("cpu/event", tests, FVM_ARRAY_SIZE(tests));
}
