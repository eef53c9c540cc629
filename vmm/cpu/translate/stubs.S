/*
 * stubs.S - the ways into and out of translated code.
 *
 * In translated code: the 16 guest registers are in the host's (RSP too), guest arithmetic flags and DF in the host's flags,
 * guest vector and x87 state in the host's, FS base = struct fvm_vcpu, GS base = current shadow space. No host stack.
 * "Full" exits save everything and return from fvm_enter; "fast" ones call C that touches neither vectors nor TLS and go back.
 *
 * A kick (signal) may come at any instruction. Regions between *_window and *_window_end are restarted or completed by the
 * handler (signal.c), so that no request is ever overlooked.
 */
#include "vmm/cpu/translate/layout.h"

    .text
#define R(n) %fs:(FVM_OFF_REGS + 8 * n)

.macro SAVE_REGS
    movq %rax, R(0)
    movq %rcx, R(1)
    movq %rdx, R(2)
    movq %rbx, R(3)
    movq %rsp, R(4)
    movq %rbp, R(5)
    movq %rsi, R(6)
    movq %rdi, R(7)
    movq %r8, R(8)
    movq %r9, R(9)
    movq %r10, R(10)
    movq %r11, R(11)
    movq %r12, R(12)
    movq %r13, R(13)
    movq %r14, R(14)
    movq %r15, R(15)
    movq %fs:FVM_SLOT_HOST_RSP, %rsp
    pushfq
    popq %fs:FVM_SLOT_HFLAGS
    cld
.endm

.macro LOAD_REGS
    movq R(0), %rax
    movq R(1), %rcx
    movq R(2), %rdx
    movq R(3), %rbx
    movq R(5), %rbp
    movq R(6), %rsi
    movq R(7), %rdi
    movq R(8), %r8
    movq R(9), %r9
    movq R(10), %r10
    movq R(11), %r11
    movq R(12), %r12
    movq R(13), %r13
    movq R(14), %r14
    movq R(15), %r15
    movq R(4), %rsp
.endm

/* void fvm_enter(struct fvm_vcpu *v, const void *code): returns at the next full exit; SLOT_REASON says why. */
    .globl fvm_enter
    .type fvm_enter, @function
fvm_enter:
    endbr64
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    subq $8, %rsp
    movq %rsp, FVM_SLOT_HOST_RSP(%rdi)
    rdfsbase %rax
    movq %rax, FVM_SLOT_HOST_FS(%rdi)
    movq %rsi, FVM_SLOT_TGT(%rdi)
    movq FVM_OFF_GS_BASE(%rdi), %rax
    wrgsbase %rax
    movl $7, %eax
    xorl %edx, %edx
    xrstor64 FVM_OFF_XSAVE(%rdi)
    movl $1, %eax
    xchgl %eax, FVM_SLOT_IN_CODE(%rdi) /* a full barrier: requester sets `request`, then reads this */
    wrfsbase %rdi
    .globl fvm_enter_window
fvm_enter_window:
    cmpl $0, %fs:FVM_OFF_REQUEST
    jne fvm_enter_bail
    movq %fs:FVM_SLOT_HFLAGS, %rax
    andl $FVM_HOST_FLAGS, %eax
    pushq %rax
    popfq
    LOAD_REGS
    jmp *%fs:FVM_SLOT_TGT
    .globl fvm_enter_window_end
fvm_enter_window_end:
    nop

    .globl fvm_enter_bail
fvm_enter_bail:
    movq %fs:FVM_SLOT_HOST_RSP, %rsp
    cld
    movl $FVM_EXIT_BAIL, %fs:FVM_SLOT_REASON
    jmp fvm_exit_tail

.macro EXIT_STUB name, reason
    .globl fvm_stub_\name
fvm_stub_\name:
    movl $\reason, %fs:FVM_SLOT_REASON
    jmp fvm_exit_save
.endm

    EXIT_STUB system, FVM_EXIT_SYSTEM
    EXIT_STUB one, FVM_EXIT_ONE
    EXIT_STUB dead, FVM_EXIT_DEAD

fvm_exit_save:
    SAVE_REGS
    /* Registers are saved, the host's stack is there; vectors still the guest's. */
    .globl fvm_exit_tail
fvm_exit_tail:
    movq %fs:FVM_SLOT_SELF, %rdi
    movq %fs:FVM_SLOT_HOST_FS, %rax
    wrfsbase %rax
    movl $0, FVM_SLOT_IN_CODE(%rdi)
    movl $7, %eax
    xorl %edx, %edx
    xsave64 FVM_OFF_XSAVE(%rdi)
    vzeroupper
    fninit
    ldmxcsr host_mxcsr(%rip)
    addq $8, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
    .size fvm_enter, . - fvm_enter

/* A fast helper: saves the registers, calls fn(v). 0: full exit (fn set SLOT_REASON); else go on at SLOT_RET with the
 * registers in v->regs. */
.macro FAST_STUB name, fn
    .globl fvm_stub_\name
fvm_stub_\name:
    SAVE_REGS
    movq %fs:FVM_SLOT_SELF, %rdi
    call \fn
    testl %eax, %eax
    jz fvm_exit_tail
    jmp fvm_resume_window
.endm

    FAST_STUB direct, fvm_fast_direct
    FAST_STUB mem, fvm_fast_mem
    FAST_STUB indirect, fvm_fast_indirect
    FAST_STUB string, fvm_fast_string
    FAST_STUB sys, fvm_fast_sys

    .globl fvm_resume_window
fvm_resume_window:
    cmpl $0, %fs:FVM_OFF_REQUEST
    jne 1f
2:
    pushq %fs:FVM_SLOT_HFLAGS
    popfq
    LOAD_REGS
    jmp *%fs:FVM_SLOT_RET
    .globl fvm_resume_window_end
fvm_resume_window_end:
    nop
1:  /* a request is pending: make the block that goes on end in a full exit */
    movq %fs:FVM_SLOT_SELF, %rdi
    call fvm_fast_unlink
    jmp 2b

/* A load of at most 8 bytes that lies across two pages (SLOT_EA): both parts are read and joined in the bounce buffer; goes on at
 * SLOT_RET with SLOT_TMP = bounce buffer - EA + usual. Flags are free, no other register changes. Missing rights: to C (SLOT_ARG = site). */
.macro CROSS name, right, usual
    .globl fvm_stub_cross_\name
fvm_stub_cross_\name:
    movq %rax, R(0)
    movq %rcx, R(1)
    movq %rdx, R(2)
    movq %fs:FVM_SLOT_EA, %rax
    movq %rax, %rdx
    shlq $16, %rdx
    sarq $16, %rdx
    cmpq %rax, %rdx            /* canonical? its alias may have rights */
    jne 1f
    shlq $16, %rdx
    shrq $28, %rdx
    movq %gs:(,%rdx,8), %rdx
    testb $\right, %dl
    jz 1f
    movb $0, %dl
    movl %eax, %ecx
    orq $0xfff, %rax
    movq -7(%rax,%rdx), %rdx   /* last 8 bytes of the first page */
    addq $1, %rax
    movq %rdx, %fs:FVM_SLOT_TMP2
    movq %rax, %rdx
    shlq $16, %rdx
    sarq $16, %rdx
    cmpq %rax, %rdx            /* canonical? its alias may have rights */
    jne 1f
    shlq $16, %rdx
    shrq $28, %rdx
    movq %gs:(,%rdx,8), %rdx
    testb $\right, %dl
    jz 1f
    movb $0, %dl
    movq (%rax,%rdx), %rdx     /* first 8 of the second */
    movq %fs:FVM_SLOT_TMP2, %rax
    andl $7, %ecx
    shll $3, %ecx
    shrdq %cl, %rdx, %rax
    movq %rax, %fs:FVM_OFF_BOUNCE
    movq %fs:FVM_SLOT_SELF, %rax
    addq $(FVM_OFF_BOUNCE + \usual), %rax
    subq %fs:FVM_SLOT_EA, %rax
    movq %rax, %fs:FVM_SLOT_TMP
    movq R(0), %rax
    movq R(1), %rcx
    movq R(2), %rdx
    jmp *%fs:FVM_SLOT_RET
1:  movq R(0), %rax
    movq R(1), %rcx
    movq R(2), %rdx
    jmp fvm_stub_mem
.endm

    CROSS user, 4, FVM_USUAL_USER     /* FVM_S_UR */
    CROSS kernel, 1, FVM_USUAL_KERNEL /* FVM_S_KR */
    .globl fvm_stub_cross_end
fvm_stub_cross_end:
    nop

/* Signal handlers' entry: (signo, info, context). If FS base is a vCPU's (its first word is not its own address, as a
 * thread control block's would be), give C the host's FS and the vCPU as fourth argument. */
    .globl fvm_signal_entry
    .type fvm_signal_entry, @function
fvm_signal_entry:
    endbr64
    pushq %rbx
    rdfsbase %rbx
    cmpq %rbx, %fs:0
    je 1f
    movq %rbx, %rcx
    movq FVM_SLOT_HOST_FS(%rbx), %rax
    wrfsbase %rax
    call fvm_signal_handle
    wrfsbase %rbx
    popq %rbx
    ret
1:  xorl %ecx, %ecx
    call fvm_signal_handle
    popq %rbx
    ret
    .size fvm_signal_entry, . - fvm_signal_entry

    .section .rodata
    .align 4
host_mxcsr:
    .long 0x1f80
    .section .note.GNU-stack, "", @progbits
