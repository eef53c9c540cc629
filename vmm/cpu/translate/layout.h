/*
 * layout.h - offsets inside struct fvm_vcpu as seen by emitted code and stubs.S (checked by static assertions in
 * engine.c), and the numbers of the engine's slots. Included by assembly: macros only.
 */
#ifndef FVM_TRANSLATE_LAYOUT_H
#define FVM_TRANSLATE_LAYOUT_H

#define FVM_OFF_REGS 8
#define FVM_OFF_RIP 136
#define FVM_OFF_RFLAGS 144
#define FVM_OFF_SEG_FS 152
#define FVM_OFF_SEG_GS 160
#define FVM_OFF_REQUEST 168
#define FVM_OFF_IFLAG 172
#define FVM_OFF_TSC_OFFSET 176
#define FVM_OFF_GS_BASE 192
#define FVM_OFF_SLOTS 200
#define FVM_OFF_BOUNCE 1024
#define FVM_OFF_XSAVE 2048

#define FVM_SLOT(n) (FVM_OFF_SLOTS + 8 * (n))
/* registers spilled for the length of a block */
#define FVM_SLOT_V0 FVM_SLOT(0)
#define FVM_SLOT_V1 FVM_SLOT(1)
#define FVM_SLOT_V2 FVM_SLOT(2)
#define FVM_SLOT_V3 FVM_SLOT(40) /* ... V6 */
#define FVM_SLOT_FLAGS FVM_SLOT(3)   /* lahf/seto image: AH = SF ZF AF PF CF, AL = OF */
#define FVM_SLOT_HFLAGS FVM_SLOT(4)  /* pushfq at the last exit */
#define FVM_SLOT_HOST_RSP FVM_SLOT(5)
#define FVM_SLOT_HOST_FS FVM_SLOT(6)
#define FVM_SLOT_SELF FVM_SLOT(7)    /* the vCPU's own address */
#define FVM_SLOT_EA FVM_SLOT(8)      /* linear address of a slow access */
#define FVM_SLOT_ARG FVM_SLOT(9)     /* site or exit number */
#define FVM_SLOT_REASON FVM_SLOT(10) /* enum fvm_exit_reason */
#define FVM_SLOT_RET FVM_SLOT(11)    /* code address at which a stub goes on */
#define FVM_SLOT_TGT FVM_SLOT(12)    /* guest target of an indirect branch */
#define FVM_SLOT_TMP FVM_SLOT(13)
#define FVM_SLOT_TMP2 FVM_SLOT(14)
#define FVM_SLOT_WINDOW FVM_SLOT(15) /* byte: an interrupt waits for IF */
#define FVM_SLOT_IN_CODE FVM_SLOT(16)
#define FVM_SLOT_FAULT_VEC FVM_SLOT(17)
#define FVM_SLOT_FAULT_CODE FVM_SLOT(18)
#define FVM_SLOT_FAULT_CR2 FVM_SLOT(19)
#define FVM_SLOT_ANCHOR FVM_SLOT(20)  /* page of the movable block that runs: see engine.h */
#define FVM_SLOT_CALL FVM_SLOT(21)    /* target of an indirect call while its return address is pushed */
#define FVM_SLOT_FLAG_STACK_TOP FVM_SLOT(30) /* slots 22..29: room for pushfq */
#define FVM_SLOT_TSC_AUX FVM_SLOT(31)
#define FVM_SLOT_SEL FVM_SLOT(32)    /* 6 slots: selectors ES..GS, for mov r, sreg */

/* jump cache: {guest rip, code address} pairs. Kernel mode: behind the vCPU (FS); user mode: in front of the space (GS). */
#define FVM_JC_BITS 12
#define FVM_JC_ENTRIES (1 << FVM_JC_BITS)
#define FVM_JC_BYTES (16 * FVM_JC_ENTRIES)
#define FVM_JC_USER_BITS 13
#define FVM_JC_USER_ENTRIES (1 << FVM_JC_USER_BITS)
#define FVM_JC_USER_BYTES (16 * FVM_JC_USER_ENTRIES)
#define FVM_JC_FOLD 8 /* an entry's number is rip ^ rip >> FVM_JC_FOLD: functions are aligned */
/* before the user jump cache: which of its 64 pieces were filled, then (as behind the kernel's) the mode that entries are for */
#define FVM_HEAD_USED (FVM_JC_USER_BYTES + 16)
#define FVM_OFF_JC 16384

/* enum fvm_exit_reason */
#define FVM_EXIT_BAIL 0      /* a request came before the first block ran */
#define FVM_EXIT_DIRECT 1    /* unlinked direct branch: ARG = exit number */
#define FVM_EXIT_INDIRECT 2  /* TGT = guest rip, flags in SLOT_FLAGS */
#define FVM_EXIT_SYSTEM 3    /* instruction for C: ARG = site number */
#define FVM_EXIT_MEM 4       /* access that needs C: ARG = site number */
#define FVM_EXIT_FAULT 5     /* guest fault at a site: ARG = site number, SLOT_FAULT_* */
#define FVM_EXIT_SIGNAL 6    /* guest fault found by a host trap: state already precise */
#define FVM_EXIT_ONE 7       /* snippet of exec_one is done */
#define FVM_EXIT_DEAD 8      /* block was invalidated: ARG = block number */
#define FVM_EXIT_RIP 9       /* state precise in memory, rip set by a fast helper */

#define FVM_EXIT_STRING 10  /* a rep instruction stopped between elements for a request: ARG = site */

/* rights bytes of plain data pages (FVM_S_*): what a fast access expects in its shadow entry */
#define FVM_USUAL_USER 0x0f
#define FVM_USUAL_KERNEL 0x03

#define FVM_ARITH_FLAGS 0x8d5 /* CF PF AF ZF SF OF */
#define FVM_HOST_FLAGS 0xcd5  /* the same and DF: live in the host's flags while translated code runs */

#endif
