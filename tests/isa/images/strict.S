# strict.S - prot.S, and what QEMU's TCG does not do as the manual says.
#define STRICT
#include "prot.S"
