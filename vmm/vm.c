/*
 * vm.c - one virtual machine is put together and taken apart here.
 *
 *   ram, bus, irq, clock  ->  serial ends, disks, nets  ->  board (chips)  ->  engine, vCPUs
 *
 * taken apart in reverse. Requests of devices (power off, reset, exit) arrive inside a device's code with the board
 * lock held, so they are only noted here and carried out by the loop (vm_run.c).
 *
 * Invariant: the loop's guard is this VM's board lock from create to destroy. Must not know what devices there are.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "vmm/firmware/boot.h"
#include "vmm/vm_firmware.h"
#include "vmm/vm_internal.h"

static const char room[] = "vm";

/* ---- the guard ---- */

static void guard_lock(void *ctx)
{
    struct fvm_vm *vm = ctx;
    fvm_bus_lock(vm->bus);
    if (vm->guard_depth++ == 0) {
        vm->loop_thread = pthread_self();
        atomic_store(&vm->guard_owner, pthread_self());
        atomic_store(&vm->guard_held, true);
    }
}

static void guard_unlock(void *ctx)
{
    struct fvm_vm *vm = ctx;
    if (--vm->guard_depth == 0)
        atomic_store(&vm->guard_held, false);
    fvm_bus_unlock(vm->bus);
}

unsigned fvm_vm_guard_release(struct fvm_vm *vm)
{
    if (!atomic_load(&vm->guard_held) || !pthread_equal(atomic_load(&vm->guard_owner), pthread_self()))
        return 0;
    unsigned depth = vm->guard_depth;
    for (unsigned i = 0; i < depth; i++)
        guard_unlock(vm);
    return depth;
}

void fvm_vm_guard_retake(struct fvm_vm *vm, unsigned depth)
{
    for (unsigned i = 0; i < depth; i++)
        guard_lock(vm);
}

/* ---- what devices and vCPUs ask for ---- */

static void ask(struct fvm_vm *vm, unsigned what)
{
    atomic_fetch_or(&vm->asked, what);
    fvm_later_ask(vm->later);
}

static void ask_power_off(void *ctx)
{
    ask(ctx, FVM_ASK_POWER_OFF);
}

static void ask_reset(void *ctx)
{
    ask(ctx, FVM_ASK_RESET);
}

static void ask_debug_exit(void *ctx, unsigned code)
{
    struct fvm_vm *vm = ctx;
    atomic_store(&vm->exit_code, code);
    ask(vm, FVM_ASK_DEBUG_EXIT);
}

static void on_vcpu_shutdown(void *ctx, struct fvm_vcpu *v, const char *why)
{
    struct fvm_vm *vm = ctx;
    if (!atomic_exchange(&vm->crashed, true))
        snprintf(vm->why, sizeof(vm->why), "CPU %u: %s", v->index, why);
    ask(vm, FVM_ASK_CRASHED);
}

static void on_vcpu_debug(void *ctx, struct fvm_vcpu *v)
{
    (void)v; /* fvm_vm_debug_why */
    ask(ctx, FVM_ASK_DEBUG);
}

/* Board lock held, any thread. */
static void on_kick(void *ctx, unsigned cpu, enum fvm_irq_kick what, unsigned arg)
{
    struct fvm_vm *vm = ctx;
    if (cpu >= vm->vcpu_count)
        return;
    struct fvm_vcpu *v = vm->vcpus[cpu];
    switch (what) {
    case FVM_KICK_INTR: fvm_vcpu_request(v, FVM_REQ_IRQ); break;
    case FVM_KICK_NMI: fvm_vcpu_request(v, FVM_REQ_NMI); break;
    case FVM_KICK_INIT: /* a start-up that came before it does not count any more */
        __atomic_and_fetch(&v->request, ~(uint32_t)FVM_REQ_SIPI, __ATOMIC_SEQ_CST);
        fvm_vcpu_request(v, FVM_REQ_INIT);
        break;
    case FVM_KICK_SIPI:
        __atomic_store_n(&v->sipi_vector, (uint8_t)arg, __ATOMIC_RELEASE);
        fvm_vcpu_request(v, FVM_REQ_SIPI);
        break;
    }
}

static void on_io_trace(void *ctx, enum fvm_bus_space space, bool write, uint64_t addr, unsigned size, uint64_t value,
                        const char *name)
{
    struct fvm_vm *vm = ctx;
    FILE *out = vm->engine_config.trace_file ? vm->engine_config.trace_file : stderr;
    fprintf(out, "io cpu%u %s %s %#llx/%u = %#llx %s\n", fvm_bus_cpu(), space == FVM_BUS_PIO ? "port" : "mmio",
            write ? "write" : "read", (unsigned long long)addr, size, (unsigned long long)value, name ? name : "-");
}

/* ---- create ---- */

static int make_core(struct fvm_vm *vm, struct fvm_err *err)
{
    int r = fvm_cpu_model_find(vm->config->cpu_model[0] ? vm->config->cpu_model : NULL, &vm->model, err);
    if (r)
        return r;
    if (fvm_config_set(&vm->config->cpu_model, fvm_cpu_model_name(vm->model)))
        return fvm_err_set(err, FVM_ENOMEM, 0, room, "out of memory");
    r = fvm_ram_create(vm->config->memory_bytes, &vm->ram, err);
    if (r)
        return r;
    if ((r = fvm_bus_create(&vm->bus)) || (r = fvm_irq_create(&vm->irq)) ||
        (r = fvm_clock_create(vm->loop, vm->config->tsc_khz, &vm->clock)) ||
        (r = fvm_later_create(vm->loop, fvm_vm_handle_asked, vm, &vm->later)))
        return fvm_err_set(err, r, 0, room, "cannot make bus, interrupts and clock: %s", fvm_err_text(r));
    vm->config->tsc_khz = fvm_clock_tsc_khz(vm->clock);
    fvm_loop_set_guard(vm->loop, guard_lock, guard_unlock, vm);
    fvm_irq_set_lock(vm->irq, vm->bus);
    fvm_irq_set_kick(vm->irq, on_kick, vm);
    if (vm->engine_config.trace & FVM_TRACE_IO)
        fvm_bus_set_trace(vm->bus, on_io_trace, vm);
    return 0;
}

static void derive_mac(const Fvm__VmConfig *config, size_t index, uint8_t mac[6])
{
    const Fvm__NetConfig *net = config->nets[index];
    if (net->mac.len == 6) {
        memcpy(mac, net->mac.data, 6);
        return;
    }
    uint32_t h = 2166136261u; /* FNV-1a: the same VM has the same addresses after every start */
    for (size_t i = 0; i < config->id.len; i++)
        h = (h ^ config->id.data[i]) * 16777619u;
    h += (uint32_t)index;
    const uint8_t m[6] = {0x52, 0x54, 0x00, (uint8_t)(h >> 16), (uint8_t)(h >> 8), (uint8_t)h};
    memcpy(mac, m, 6);
}

static int open_net(struct fvm_vm *vm, size_t index, struct fvm_err *err)
{
    const Fvm__NetConfig *net = vm->config->nets[index];
    struct fvm_net_forward list[FVM_CONFIG_FORWARDS_MAX];
    memset(list, 0, sizeof(list));
    for (size_t i = 0; i < net->n_forwards; i++) {
        const Fvm__HostForward *f = net->forwards[i];
        list[i].udp = !strcmp(f->proto, "udp");
        list[i].host_port = (uint16_t)f->host_port;
        list[i].guest_port = (uint16_t)f->guest_port;
        snprintf(list[i].host_addr, sizeof(list[i].host_addr), "%s", f->host_addr);
        snprintf(list[i].guest_addr, sizeof(list[i].guest_addr), "%s", f->guest_addr);
    }
    const struct fvm_net_options opt = {.kind = net->kind,
                                        .forwards = list,
                                        .forward_count = (unsigned)net->n_forwards,
                                        .tftp = net->tftp[0] ? net->tftp : NULL,
                                        .bootfile = net->bootfile[0] ? net->bootfile : NULL,
                                        .inactive = vm->hooks.inactive};
    int r = fvm_net_open(vm->loop, &opt, NULL, NULL, &vm->nets[vm->net_count], err);
    if (!r) {
        vm->e1000[vm->net_count] = !strcmp(net->model, "e1000");
        derive_mac(vm->config, index, vm->macs[vm->net_count++]);
    }
    return r;
}

static int make_ends(struct fvm_vm *vm, struct fvm_err *err)
{
    const Fvm__VmConfig *config = vm->config;
    if (!strcmp(config->serial, "stdio") && !strcmp(config->console, "stdio"))
        return fvm_err_set(err, FVM_EINVAL, 0, room, "serial and console cannot both be stdio");
    int r = fvm_char_open(vm->loop, config->serial, vm->hooks.stdio_filter, vm->hooks.ctx, &vm->serial, err);
    if (!r && config->console[0] && strcmp(config->console, "none") != 0)
        r = fvm_char_open(vm->loop, config->console, vm->hooks.stdio_filter, vm->hooks.ctx, &vm->console, err);
    for (size_t i = 0; !r && i < config->n_disks; i++) {
        const Fvm__DiskConfig *d = config->disks[i];
        struct fvm_disk_options opt = {.path = d->path,
                                       .format = d->format[0] ? d->format : NULL,
                                       .readonly = d->readonly,
                                       .inactive = vm->hooks.inactive};
        r = fvm_disk_open(vm->loop, &opt, &vm->disks[vm->disk_count], err);
        if (!r)
            vm->disk_count++;
    }
    for (size_t i = 0; !r && i < config->n_nets; i++)
        if (strcmp(config->nets[i]->kind, "none") != 0)
            r = open_net(vm, i, err);
    return r;
}

static enum fvm_board_pc_interface disk_interface(const Fvm__DiskConfig *disk)
{
    if (!strcmp(disk->interface, "ahci"))
        return FVM_BOARD_AHCI;
    return !strcmp(disk->interface, "ide") || disk->cdrom ? FVM_BOARD_IDE : FVM_BOARD_VIRTIO;
}

/* Debian's package seabios has it. Without, the adapter has no font until the guest loads one, and no int 10h. */
#define VGA_BIOS "/usr/share/seabios/vgabios-stdvga.bin"
#define VGA_BIOS_MAX (256u << 10)

static void open_vga_rom(struct fvm_vm *vm)
{
    struct fvm_err err = {0};
    struct fvm_boot_image image = {0};
    if (fvm_boot_image_open(VGA_BIOS, &image, &err)) {
        fvm_log(INFO, "vm.no-vga-bios", "vm=%s %s", vm->config->name, err.text);
        return;
    }
    if (image.len <= VGA_BIOS_MAX)
        vm->vga_rom = image;
    else
        fvm_boot_image_close(&image);
}

/* Board lock held: the display adapter moved its memory. */
static void on_window(void *ctx)
{
    struct fvm_vm *vm = ctx;
    for (unsigned i = 0; i < vm->vcpu_count; i++)
        fvm_vcpu_request(vm->vcpus[i], FVM_REQ_FLUSH);
}

static int make_firmware(struct fvm_vm *vm, struct fvm_err *err)
{
    const char *name = vm->config->firmware;
    if (!name[0])
        return 0;
    return fvm_firmware_open(strcmp(name, "seabios") ? name : FVM_FIRMWARE_SEABIOS, vm->bus, vm->ram, &vm->firmware, err);
}

static int make_board(struct fvm_vm *vm, struct fvm_err *err)
{
    const Fvm__VmConfig *config = vm->config;
    struct fvm_board_pc_disk disks[FVM_CONFIG_DISKS_MAX];
    struct fvm_board_pc_net nets[FVM_CONFIG_NETS_MAX];
    struct fvm_board_pc_config pc = {.disks = disks, .disk_count = vm->disk_count, .nets = nets,
                                    .net_count = vm->net_count, .rng = config->rng};

    vm->board = (struct fvm_board){.bus = vm->bus, .irq = vm->irq, .ram = vm->ram, .clock = vm->clock, .loop = vm->loop,
                                   .cpu_count = config->cpus, .power_off = ask_power_off, .reset = ask_reset,
                                   .debug_exit = ask_debug_exit, .ctx = vm};
    pc.full = fvm_config_is_pc(config);
    pc.serial = fvm_char_backend(vm->serial);
    pc.vga = !strcmp(config->vga, "std");
    if (pc.vga)
        open_vga_rom(vm);
    pc.vga_rom = vm->vga_rom.bytes;
    pc.vga_rom_bytes = (uint32_t)vm->vga_rom.len;
    vm->ram->window_hook = on_window;
    vm->ram->window_hook_ctx = vm;
    pc.has_console = vm->console != NULL;
    if (vm->console)
        pc.console = fvm_char_backend(vm->console);
    for (unsigned i = 0; i < vm->disk_count; i++) {
        const char *serial = config->disks[i]->serial;
        disks[i] = (struct fvm_board_pc_disk){.disk = vm->disks[i], .serial = serial[0] ? serial : NULL,
                                              .interface = disk_interface(config->disks[i]),
                                              .cdrom = config->disks[i]->cdrom};
    }
    fvm_vm_open_net_roms(vm);
    for (unsigned i = 0; i < vm->net_count; i++) {
        nets[i].net = vm->nets[i];
        memcpy(nets[i].mac, vm->macs[i], 6);
        nets[i].e1000 = vm->e1000[i];
        nets[i].rom = vm->net_rom[vm->e1000[i]].bytes;
        nets[i].rom_bytes = vm->net_rom[vm->e1000[i]].len;
    }
    int r = make_firmware(vm, err);
    if (!r)
        r = fvm_board_pc_create(&vm->board, &pc, &vm->pc, err);
    if (!r)
        r = fvm_vm_fill_fw_cfg(vm, err);
    if (!r) { /* power-on state: a destination checks and restores without ever booting */
        fvm_bus_lock(vm->bus);
        fvm_board_pc_reset(vm->pc);
        fvm_bus_unlock(vm->bus);
    }
    return r;
}

static size_t serial_input(void *ctx, const uint8_t *bytes, size_t len)
{
    struct fvm_vm *vm = ctx;
    return fvm_board_pc_serial_input(vm->pc, bytes, len);
}

static void serial_ready(void *ctx)
{
    struct fvm_vm *vm = ctx;
    fvm_board_pc_serial_output_ready(vm->pc);
}

static size_t console_input(void *ctx, const uint8_t *bytes, size_t len)
{
    struct fvm_vm *vm = ctx;
    return fvm_board_pc_console_input(vm->pc, bytes, len);
}

static void console_ready(void *ctx)
{
    struct fvm_vm *vm = ctx;
    fvm_board_pc_console_output_ready(vm->pc);
}

static int make_cpus(struct fvm_vm *vm, struct fvm_err *err)
{
    const struct fvm_vcpu_hooks hooks = {.shutdown = on_vcpu_shutdown, .debug = on_vcpu_debug, .ctx = vm};
    int r = fvm_engine_create(vm->ram, &vm->engine_config, &vm->engine, err);
    for (unsigned i = 0; !r && i < vm->config->cpus; i++) {
        r = fvm_vcpu_create(vm->engine, i, vm->model, vm->bus, vm->irq, vm->clock, &hooks, &vm->vcpus[i], err);
        if (r)
            break;
        vm->vcpus[i]->vm = vm;
        vm->vcpus[i]->count = vm->config->cpus;
        vm->vcpu_count++;
        r = fvm_vcpu_start_thread(vm->vcpus[i]);
        if (r)
            fvm_err_set(err, r, 0, room, "cannot start the thread of CPU %u: %s", i, fvm_err_text(r));
    }
    return r;
}

int fvm_vm_create(const Fvm__VmConfig *config, struct fvm_loop *loop, const struct fvm_engine_config *engine,
                  const struct fvm_vm_hooks *hooks, struct fvm_vm **ret_vm, struct fvm_err *err)
{
    int r = fvm_config_check(config, true, err);
    if (r)
        return r;
    struct fvm_vm *vm = calloc(1, sizeof(*vm));
    if (!vm)
        return fvm_err_set(err, FVM_ENOMEM, 0, room, "out of memory");
    pthread_mutexattr_t attr;
    pthread_mutexattr_init(&attr);
    pthread_mutexattr_settype(&attr, PTHREAD_MUTEX_RECURSIVE);
    pthread_mutex_init(&vm->op_lock, &attr);
    pthread_mutexattr_destroy(&attr);
    vm->loop = loop;
    vm->loop_thread = pthread_self();
    vm->created_ns = fvm_now_ns();
    if (hooks)
        vm->hooks = *hooks;
    if (engine)
        vm->engine_config = *engine;
    vm->config = fvm_config_copy(config);
    if (!vm->config)
        r = fvm_err_set(err, FVM_ENOMEM, 0, room, "out of memory");
    if (r || (r = make_core(vm, err)) || (r = make_ends(vm, err)) || (r = make_board(vm, err)) ||
        (r = make_cpus(vm, err))) {
        fvm_vm_destroy(&vm);
        return r;
    }
    fvm_char_attach(vm->serial,
                    &(struct fvm_char_hooks){.input = serial_input, .output_ready = serial_ready, .ctx = vm});
    if (vm->console)
        fvm_char_attach(vm->console,
                        &(struct fvm_char_hooks){.input = console_input, .output_ready = console_ready, .ctx = vm});
    *ret_vm = vm;
    return 0;
}

void fvm_vm_destroy(struct fvm_vm **vm_p)
{
    struct fvm_vm *vm = *vm_p;
    *vm_p = NULL;
    if (!vm)
        return;
    if (vm->pc)
        fvm_vm_halt(vm);
    fvm_assert(fvm_vm_guard_release(vm) == 0); /* not from inside a callback of the loop */
    for (unsigned i = 0; i < vm->vcpu_count; i++)
        fvm_vcpu_stop_thread(vm->vcpus[i]);
    if (vm->pc)
        fvm_board_pc_destroy(&vm->pc);
    fvm_vm_close_net_roms(vm);
    if (vm->vga_rom.path)
        fvm_boot_image_close(&vm->vga_rom);
    fvm_firmware_close(&vm->firmware);
    for (unsigned i = 0; i < vm->vcpu_count; i++)
        fvm_vcpu_destroy(&vm->vcpus[i]);
    if (vm->engine)
        fvm_engine_destroy(&vm->engine);
    for (unsigned i = 0; i < vm->disk_count; i++)
        fvm_disk_close(&vm->disks[i]);
    for (unsigned i = 0; i < vm->net_count; i++)
        fvm_net_close(&vm->nets[i]);
    fvm_char_close(&vm->console);
    fvm_char_close(&vm->serial);
    if (vm->bus)
        fvm_loop_set_guard(vm->loop, NULL, NULL, NULL);
    if (vm->later)
        fvm_later_destroy(&vm->later);
    if (vm->clock)
        fvm_clock_destroy(&vm->clock);
    if (vm->irq)
        fvm_irq_destroy(&vm->irq);
    if (vm->bus)
        fvm_bus_destroy(&vm->bus);
    if (vm->ram)
        fvm_ram_destroy(&vm->ram);
    fvm_config_free(&vm->config);
    pthread_mutex_destroy(&vm->op_lock);
    free(vm);
}

/* ---- plain questions ---- */

enum fvm_vm_state fvm_vm_get_state(const struct fvm_vm *vm)
{
    return (enum fvm_vm_state)atomic_load(&vm->state);
}

const Fvm__VmConfig *fvm_vm_config(const struct fvm_vm *vm)
{
    return vm->config;
}

struct fvm_ram *fvm_vm_ram(struct fvm_vm *vm)
{
    return vm->ram;
}

struct fvm_clock *fvm_vm_clock(struct fvm_vm *vm)
{
    return vm->clock;
}

uint64_t fvm_vm_cpu_ns(const struct fvm_vm *vm)
{
    uint64_t sum = 0;
    for (unsigned i = 0; i < vm->vcpu_count; i++)
        sum += fvm_vcpu_cpu_ns(vm->vcpus[i]);
    return sum;
}
