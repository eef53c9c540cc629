# limits.S - real mode where QEMU's TCG is not the processor: it checks no segment limits, and does not know int1. What is
# expected here is what the manual says.
#include "lib16.inc"

main:
    cli
    cld
    xor ax, ax
    mov ss, ax
    mov ds, ax
    mov es, ax
    mov fs, ax
    mov gs, ax
    mov esp, 0x7000
    set_exceptions
    say "-- limits\n"
    faulting "word at ffff", mov ax, [0xffff]
    faulting "dword at fffd", mov eax, [0xfffd]
    faulting "word at fffe", mov ax, [0xfffe]
    faulting "ss at ffff", mov ax, ss:[0xffff]
    mov bp, 0xffff
    faulting "bp", mov ax, [bp]
    mov ebx, 0x10000
    faulting "a32 limit", mov al, [ebx]
    mov ebx, -4
    faulting "a32 high", mov eax, [ebx]
    faulting "int1", .byte 0xf1
    faulting "jmp beyond", .byte 0x66, 0xe9, 0, 0, 1, 0
    faulting "call beyond", .byte 0x66, 0xe8, 0, 0, 1, 0
    mov ebx, 0x12345
    faulting "jmp r32", jmp ebx
    faulting "pop at ffff", .byte 0xbc, 0xff, 0xff, 0x58 # mov sp, ffff; pop ax
    mov sp, 0x7000
    mov si, 0xffff
    mov di, 0x100
    mov cx, 3
    faulting "lodsw", lodsw
    mov si, 0xfffe
    faulting "rep movsd", rep movsd
    mov ax, si
    mov bx, di
    state "not moved"
    mov si, 0xfffc
    faulting "rep movsd wraps", rep movsd
    state "moved"
    say "-- big real mode\n"
    lgdt cs:[gdt_pointer]
    mov eax, cr0
    or al, 1
    mov cr0, eax
    mov bx, 0x8
    mov ds, bx
    mov es, bx
    and al, 0xfe
    mov cr0, eax
    mov ebx, 0x123456
    faulting "fffd fits now", mov eax, [0xfffd]
    faulting "fs is small", mov eax, fs:[0xfffd]

    mov eax, -1
    faulting "ds at the end", mov bl, [eax]
    mov eax, -3
    faulting "ds beyond the end", mov ebx, [eax]
    say "done\n"
    mov al, 0
    jmp finish

    .balign 8
gdt:
    .quad 0
    .quad 0x00cf93000000ffff # 08 flat data
gdt_pointer:
    .word . - gdt - 1
    .long 0xf0000 + gdt
    image_end
