/*
 * vm_screen.c - what a person sees of a VM and does to it: picture, keys, mouse. Passes on to the chips, with the board
 * lock.
 */
#include "vmm/devices/i8042.h"
#include "vmm/devices/vga.h"
#include "vmm/vm_internal.h"

int fvm_vm_screen(struct fvm_vm *vm, struct fvm_surface *ret)
{
    struct fvm_device *vga = fvm_board_pc_vga(vm->pc);
    if (!vga)
        return FVM_ENOENT;
    fvm_bus_lock(vm->bus);
    int r = fvm_vga_render(vga, ret);
    fvm_bus_unlock(vm->bus);
    return r;
}

int fvm_vm_screen_text(struct fvm_vm *vm, char **ret)
{
    struct fvm_device *vga = fvm_board_pc_vga(vm->pc);
    if (!vga)
        return FVM_ENOENT;
    fvm_bus_lock(vm->bus);
    int r = fvm_vga_text(vga, ret);
    fvm_bus_unlock(vm->bus);
    return r;
}

int fvm_vm_key(struct fvm_vm *vm, unsigned key, bool down)
{
    struct fvm_device *dev = fvm_board_pc_i8042(vm->pc);
    if (!dev)
        return FVM_ENOENT;
    fvm_bus_lock(vm->bus);
    fvm_i8042_key(dev, key, down);
    fvm_bus_unlock(vm->bus);
    return 0;
}

bool fvm_vm_key_room(struct fvm_vm *vm)
{
    struct fvm_device *dev = fvm_board_pc_i8042(vm->pc);
    if (!dev)
        return false;
    fvm_bus_lock(vm->bus);
    bool room = fvm_i8042_key_room(dev);
    fvm_bus_unlock(vm->bus);
    return room;
}

int fvm_vm_mouse(struct fvm_vm *vm, int dx, int dy, int dz, unsigned buttons)
{
    struct fvm_device *dev = fvm_board_pc_i8042(vm->pc);
    if (!dev)
        return FVM_ENOENT;
    fvm_bus_lock(vm->bus);
    fvm_i8042_mouse(dev, dx, dy, dz, buttons);
    fvm_bus_unlock(vm->bus);
    return 0;
}

unsigned fvm_vm_leds(struct fvm_vm *vm)
{
    struct fvm_device *dev = fvm_board_pc_i8042(vm->pc);
    return dev ? fvm_i8042_leds(dev) : 0;
}
