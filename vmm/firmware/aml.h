/*
 * aml.h - a small writer of ACPI Machine Language: appends terms to a caller's buffer; packages close themselves with
 * their length.
 */
#ifndef FVM_VMM_FIRMWARE_AML_H
#define FVM_VMM_FIRMWARE_AML_H

#include "base/types.h"

struct fvm_aml {
    uint8_t *bytes;
    size_t len, room;
};

/** Running out of room is a programmer's error (assertion): tables have a known size. */
void fvm_aml_raw(struct fvm_aml *a, const void *bytes, size_t len);
void fvm_aml_byte(struct fvm_aml *a, uint8_t value);
void fvm_aml_integer(struct fvm_aml *a, uint64_t value);
void fvm_aml_string(struct fvm_aml *a, const char *text);
/** Name(seg, ...): write the value next. seg: 4 characters. */
void fvm_aml_name(struct fvm_aml *a, const char *seg);
/** EisaId("PNP0A03"). */
void fvm_aml_eisaid(struct fvm_aml *a, const char *id);

/* Each begin returns a mark for fvm_aml_end. */
size_t fvm_aml_scope(struct fvm_aml *a, const char *seg); /* \seg */
size_t fvm_aml_device(struct fvm_aml *a, const char *seg);
size_t fvm_aml_package(struct fvm_aml *a, uint8_t count);
size_t fvm_aml_resources(struct fvm_aml *a); /* Name(_CRS, ResourceTemplate(){...}); close with fvm_aml_resources_end */
void fvm_aml_end(struct fvm_aml *a, size_t mark);
void fvm_aml_resources_end(struct fvm_aml *a, size_t mark);

/* Resource descriptors. */
void fvm_aml_io(struct fvm_aml *a, uint16_t port, uint8_t len);
void fvm_aml_irq(struct fvm_aml *a, unsigned irq);
void fvm_aml_bus_range(struct fvm_aml *a, uint16_t first, uint16_t last);
void fvm_aml_io_range(struct fvm_aml *a, uint16_t first, uint16_t last);
void fvm_aml_memory32_fixed(struct fvm_aml *a, uint32_t base, uint32_t len);
void fvm_aml_memory32_range(struct fvm_aml *a, uint32_t first, uint32_t last);
void fvm_aml_memory64_range(struct fvm_aml *a, uint64_t first, uint64_t last);

#endif
