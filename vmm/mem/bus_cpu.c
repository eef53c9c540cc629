/*
 * bus_cpu.c - which processor an access comes from. A thread is one vCPU for life, so this is a property of the thread
 * and not of the bus; chips whose registers exist per processor at one address (the local APIC) need it.
 * Invariant: set once per vCPU thread, before its first access. Likewise what the thread does around a wait for the board lock.
 */
#include "vmm/mem/bus.h"

static _Thread_local unsigned thread_cpu;

void fvm_bus_set_cpu(unsigned cpu)
{
    thread_cpu = cpu;
}

unsigned fvm_bus_cpu(void)
{
    return thread_cpu;
}

static _Thread_local struct {
    void (*fn)(void *ctx, bool begin);
    void *ctx;
} thread_wait;

void fvm_bus_set_wait(void (*fn)(void *ctx, bool begin), void *ctx)
{
    thread_wait.fn = fn;
    thread_wait.ctx = ctx;
}

void fvm_bus_wait(bool begin)
{
    if (thread_wait.fn)
        thread_wait.fn(thread_wait.ctx, begin);
}
