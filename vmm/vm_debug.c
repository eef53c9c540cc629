/*
 * vm_debug.c - see vm_debug.h.
 *
 * A watched page is taken off the processors' direct path (mem/ram.h) and claimed on the bus instead, by the ops below:
 * they do what RAM would do and compare. So every access costs an exit, but only to pages that are watched.
 *
 * Invariant: a page has FVM_PAGE_WATCH and one claim as long as a watch lies in it.
 */
#include "vmm/vm_debug.h"

#include <string.h>

#include "vmm/cpu/descriptor.h"
#include "vmm/vm_internal.h"

#define RFLAGS_SETTABLE 0x247fd5ull /* arithmetic flags, TF IF DF IOPL NT, AC, ID */

unsigned fvm_vm_debug_cpus(const struct fvm_vm *vm) { return vm->vcpu_count; }

/* ---- registers ---- */

static const uint8_t gpr_order[16] = {FVM_RAX, FVM_RBX, FVM_RCX, FVM_RDX, FVM_RSI, FVM_RDI, FVM_RBP, FVM_RSP,
                                      FVM_R8,  FVM_R9,  FVM_R10, FVM_R11, FVM_R12, FVM_R13, FVM_R14, FVM_R15};
static const uint8_t seg_order[6] = {FVM_CS, FVM_SS, FVM_DS, FVM_ES, FVM_FS, FVM_GS};

size_t fvm_debug_reg_bytes(unsigned reg)
{
    if (reg < FVM_DEBUG_EFLAGS)
        return 8;
    if (reg < FVM_DEBUG_ST0)
        return 4;
    if (reg < FVM_DEBUG_FCTRL)
        return 10;
    if (reg < FVM_DEBUG_XMM0)
        return 4;
    if (reg < FVM_DEBUG_MXCSR)
        return 16;
    return reg == FVM_DEBUG_MXCSR ? 4 : reg < FVM_DEBUG_REGS ? 8 : 0;
}

/* Two bits for each register, as the x87 has it, of fxsave's one bit. */
static uint32_t full_tag(const uint8_t *fx)
{
    uint32_t tag = 0;
    for (unsigned i = 0; i < 8; i++)
        tag |= (fx[4] >> i & 1 ? 0u : 3u) << (2 * i);
    return tag;
}

static uint32_t x87_control(const uint8_t *fx, unsigned which)
{
    uint16_t half[4];
    uint32_t word[4];
    memcpy(half, fx, sizeof(half));
    memcpy(word, fx + 8, sizeof(word));
    const uint32_t all[8] = {half[0], half[1], full_tag(fx), word[1] & 0xffff, word[0], word[3] & 0xffff, word[2], half[3]};
    return all[which];
}

static uint64_t control(struct fvm_vm *vm, const struct fvm_vcpu *v, unsigned reg)
{
    switch (reg) {
    case FVM_DEBUG_FS_BASE: return v->seg[FVM_FS].base;
    case FVM_DEBUG_GS_BASE: return v->seg_base_gs;
    case FVM_DEBUG_K_GS_BASE: return v->kernel_gs_base;
    case FVM_DEBUG_CR0: return v->cr0;
    case FVM_DEBUG_CR2: return v->cr2;
    case FVM_DEBUG_CR3: return v->cr3;
    case FVM_DEBUG_CR4: return v->cr4;
    case FVM_DEBUG_CR8: return fvm_irq_cpu_tpr_read(vm->irq, v->index);
    default: return v->efer;
    }
}

size_t fvm_vm_debug_reg(struct fvm_vm *vm, unsigned cpu, unsigned reg, uint8_t ret[FVM_DEBUG_REG_BYTES])
{
    const struct fvm_vcpu *v = vm->vcpus[cpu];
    size_t n = fvm_debug_reg_bytes(reg);
    uint64_t value = 0;
    memset(ret, 0, FVM_DEBUG_REG_BYTES);
    if (reg < 16)
        value = v->regs[gpr_order[reg]];
    else if (reg == FVM_DEBUG_RIP)
        value = v->rip;
    else if (reg == FVM_DEBUG_EFLAGS)
        value = fvm_vcpu_rflags(v);
    else if (reg < FVM_DEBUG_ST0)
        value = v->seg[seg_order[reg - FVM_DEBUG_CS]].sel;
    else if (reg < FVM_DEBUG_FCTRL) {
        memcpy(ret, v->xsave + 32 + 16 * (reg - FVM_DEBUG_ST0), 10);
        return n;
    } else if (reg < FVM_DEBUG_XMM0)
        value = x87_control(v->xsave, reg - FVM_DEBUG_FCTRL);
    else if (reg < FVM_DEBUG_MXCSR) {
        memcpy(ret, v->xsave + 160 + 16 * (reg - FVM_DEBUG_XMM0), 16);
        return n;
    } else if (reg == FVM_DEBUG_MXCSR)
        memcpy(&value, v->xsave + 24, 4);
    else if (reg < FVM_DEBUG_REGS)
        value = control(vm, v, reg);
    memcpy(ret, &value, FVM_MIN(n, sizeof(value)));
    return n;
}

int fvm_vm_debug_set_reg(struct fvm_vm *vm, unsigned cpu, unsigned reg, const uint8_t *bytes)
{
    struct fvm_vcpu *v = vm->vcpus[cpu];
    uint64_t value = 0;
    memcpy(&value, bytes, FVM_MIN(fvm_debug_reg_bytes(reg), sizeof(value)));
    if (reg < 16)
        v->regs[gpr_order[reg]] = value;
    else if (reg >= FVM_DEBUG_ST0 && reg < FVM_DEBUG_FCTRL)
        memcpy(v->xsave + 32 + 16 * (reg - FVM_DEBUG_ST0), bytes, 10);
    else if (reg >= FVM_DEBUG_XMM0 && reg < FVM_DEBUG_MXCSR)
        memcpy(v->xsave + 160 + 16 * (reg - FVM_DEBUG_XMM0), bytes, 16);
    else if (reg == FVM_DEBUG_EFLAGS)
        fvm_vcpu_set_rflags(v, (fvm_vcpu_rflags(v) & ~RFLAGS_SETTABLE) | (value & RFLAGS_SETTABLE));
    else if (!fvm_canonical(value))
        return FVM_EINVAL;
    else if (reg == FVM_DEBUG_RIP)
        v->rip = value;
    else if (reg == FVM_DEBUG_FS_BASE || reg == FVM_DEBUG_GS_BASE)
        fvm_vcpu_set_seg_base(v, reg == FVM_DEBUG_FS_BASE ? FVM_FS : FVM_GS, value);
    else if (reg == FVM_DEBUG_K_GS_BASE)
        v->kernel_gs_base = value;
    else
        return FVM_EINVAL;
    fvm_debug_changed(v);
    return 0;
}

/* ---- memory ---- */

static int translate(const struct fvm_vm *vm, unsigned cpu, fvm_gva va, fvm_gpa *ret_gpa)
{
    const struct fvm_vcpu *v = vm->vcpus[cpu];
    struct fvm_paging pg;
    struct fvm_walk w;
    struct fvm_fault fault;
    fvm_debug_paging(v, &pg);
    if (!fvm_vcpu_long(v))
        va &= 0xffffffff;
    if (fvm_walk(vm->ram, &pg, va, FVM_R, &w, &fault) || !fvm_ram_has_page(vm->ram, w.gpa >> FVM_PAGE_SHIFT))
        return FVM_EINVAL;
    *ret_gpa = w.gpa;
    return 0;
}

static size_t page_rest(fvm_gva va, size_t len) { return FVM_MIN((size_t)(FVM_PAGE_SIZE - (va & FVM_PAGE_MASK)), len); }

int fvm_vm_debug_read(struct fvm_vm *vm, unsigned cpu, fvm_gva va, void *buf, size_t len)
{
    uint8_t *out = buf;
    for (size_t n; len; len -= n, va += n, out += n) {
        fvm_gpa gpa;
        n = page_rest(va, len);
        if (translate(vm, cpu, va, &gpa) || fvm_ram_read(vm->ram, gpa, out, n))
            return FVM_EINVAL;
    }
    return 0;
}

int fvm_vm_debug_write(struct fvm_vm *vm, unsigned cpu, fvm_gva va, const void *buf, size_t len)
{
    const uint8_t *in = buf;
    fvm_gpa gpa;
    for (size_t done = 0; done < len; done += page_rest(va + done, len - done))
        if (translate(vm, cpu, va + done, &gpa))
            return FVM_EINVAL;
    for (size_t n; len; len -= n, va += n, in += n) {
        n = page_rest(va, len);
        if (translate(vm, cpu, va, &gpa) || fvm_ram_write(vm->ram, gpa, in, n))
            return FVM_EINVAL;
    }
    return 0;
}

/* ---- watching ---- */

static void note(struct fvm_vm *vm, fvm_gpa gpa, unsigned size, bool write)
{
    for (unsigned i = 0; i < vm->watch_count; i++) {
        const struct fvm_vm_watch *w = &vm->watches[i];
        bool wanted = w->kind == FVM_DEBUG_ACCESS || (w->kind == FVM_DEBUG_WRITE) == write;
        if (wanted && gpa < w->gpa + w->len && gpa + size > w->gpa && fvm_bus_cpu() < vm->vcpu_count) {
            vm->watch_hit_kind = w->kind;
            fvm_debug_hit(vm->vcpus[fvm_bus_cpu()], w->va);
        }
    }
}

static uint64_t watch_read(void *ctx, uint64_t offset, unsigned size)
{
    const struct fvm_vm_watch_page *page = ctx;
    uint64_t value = 0;
    fvm_assert(fvm_ram_read(page->vm->ram, page->gpa + offset, &value, size) == 0);
    note(page->vm, page->gpa + offset, size, false);
    return value;
}

static void watch_write(void *ctx, uint64_t offset, unsigned size, uint64_t value)
{
    const struct fvm_vm_watch_page *page = ctx;
    fvm_assert(fvm_ram_write(page->vm->ram, page->gpa + offset, &value, size) == 0);
    note(page->vm, page->gpa + offset, size, true);
}

static const struct fvm_bus_ops watch_ops = {.read = watch_read, .write = watch_write};

static struct fvm_vm_watch_page *page_of(struct fvm_vm *vm, fvm_gpa gpa)
{
    for (unsigned i = 0; i < FVM_VM_WATCHES_MAX; i++)
        if (vm->watch_pages[i].users && vm->watch_pages[i].gpa == (gpa & ~FVM_PAGE_MASK))
            return &vm->watch_pages[i];
    return NULL;
}

static int page_add(struct fvm_vm *vm, fvm_gpa gpa)
{
    struct fvm_vm_watch_page *page = page_of(vm, gpa);
    for (unsigned i = 0; !page && i < FVM_VM_WATCHES_MAX; i++)
        if (!vm->watch_pages[i].users)
            page = &vm->watch_pages[i];
    if (!page)
        return FVM_ENOSPC;
    if (!page->users) {
        *page = (struct fvm_vm_watch_page){.vm = vm, .gpa = gpa & ~FVM_PAGE_MASK};
        int r = fvm_bus_claim(vm->bus, FVM_BUS_MMIO, page->gpa, FVM_PAGE_SIZE, &watch_ops, page, "watch", &page->claim_id);
        if (r)
            return r;
        fvm_ram_watch(vm->ram, page->gpa >> FVM_PAGE_SHIFT, true);
    }
    page->users++;
    return 0;
}

static void page_drop(struct fvm_vm *vm, fvm_gpa gpa)
{
    struct fvm_vm_watch_page *page = page_of(vm, gpa);
    if (--page->users)
        return;
    fvm_ram_watch(vm->ram, page->gpa >> FVM_PAGE_SHIFT, false);
    fvm_bus_release(vm->bus, page->claim_id);
}

static int watch(struct fvm_vm *vm, unsigned cpu, enum fvm_debug_kind kind, fvm_gva va, size_t len, bool set)
{
    unsigned i = 0;
    fvm_gpa gpa;
    while (i < vm->watch_count &&
           (vm->watches[i].va != va || vm->watches[i].len != len || vm->watches[i].kind != kind))
        i++;
    if (!set) {
        if (i == vm->watch_count)
            return FVM_ENOENT;
        page_drop(vm, vm->watches[i].gpa);
        vm->watches[i] = vm->watches[--vm->watch_count];
        return 0;
    }
    if (i < vm->watch_count)
        return FVM_EEXIST;
    if (!len || len > page_rest(va, len) || translate(vm, cpu, va, &gpa))
        return FVM_EINVAL;
    if (vm->watch_count == FVM_VM_WATCHES_MAX)
        return FVM_ENOSPC;
    int r = page_add(vm, gpa);
    if (!r)
        vm->watches[vm->watch_count++] = (struct fvm_vm_watch){.va = va, .gpa = gpa, .len = len, .kind = kind};
    return r;
}

int fvm_vm_debug_break(struct fvm_vm *vm, unsigned cpu, enum fvm_debug_kind kind, fvm_gva va, size_t len, bool set)
{
    int r;
    fvm_bus_lock(vm->bus);
    if (kind != FVM_DEBUG_EXEC)
        r = watch(vm, cpu, kind, va, len, set);
    else
        r = set ? fvm_debug_break_set(vm->engine, va) : fvm_debug_break_clear(vm->engine, va);
    fvm_bus_unlock(vm->bus);
    return r;
}

void fvm_vm_debug_forget(struct fvm_vm *vm)
{
    fvm_bus_lock(vm->bus);
    while (vm->watch_count)
        page_drop(vm, vm->watches[--vm->watch_count].gpa);
    fvm_debug_break_clear_all(vm->engine);
    for (unsigned i = 0; i < vm->vcpu_count; i++)
        fvm_debug_go(vm->vcpus[i], false);
    fvm_bus_unlock(vm->bus);
}

/* ---- stop and go ---- */

enum fvm_debug_reason fvm_vm_debug_why(const struct fvm_vm *vm, unsigned *ret_cpu, uint64_t *ret_addr,
                                       enum fvm_debug_kind *ret_kind)
{
    *ret_kind = vm->watch_hit_kind;
    for (unsigned i = 0; i < vm->vcpu_count; i++) {
        enum fvm_debug_reason why = fvm_debug_why(vm->vcpus[i], ret_addr);
        if (why != FVM_DEBUG_NONE && why != FVM_DEBUG_HELD) {
            *ret_cpu = i;
            return why;
        }
    }
    return FVM_DEBUG_NONE;
}

int fvm_vm_debug_go(struct fvm_vm *vm, int step_cpu)
{
    for (unsigned i = 0; i < vm->vcpu_count; i++)
        if (step_cpu < 0 || (unsigned)step_cpu == i)
            fvm_debug_go(vm->vcpus[i], step_cpu >= 0);
        else
            fvm_debug_keep(vm->vcpus[i]);
    return fvm_vm_run(vm);
}
