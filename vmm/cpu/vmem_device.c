/*
 * vmem_device.c - vmem.c's accesses to what is not plain RAM: devices' registers, and RAM that holds translated code.
 */
#include <string.h>

#include "vmm/cpu/system.h"

void fvm_vmem_device(struct fvm_vcpu *v, fvm_gpa gpa, void *buf, size_t len, bool write, bool ram)
{
    uint8_t *p = buf;
    if (ram) {
        fvm_engine_write_code(v, gpa, buf, len);
        return;
    }
    while (len) {
        unsigned n = (unsigned)FVM_MIN(len, (size_t)8);
        uint64_t x = 0;
        if (write) {
            memcpy(&x, p, n);
            fvm_bus_write(v->bus, FVM_BUS_MMIO, gpa, n, x);
        } else {
            x = fvm_bus_read(v->bus, FVM_BUS_MMIO, gpa, n);
            memcpy(p, &x, n);
        }
        p += n;
        gpa += n;
        len -= n;
    }
}
