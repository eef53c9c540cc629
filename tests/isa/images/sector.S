# sector.S - a boot sector and the sectors behind it: what a PC's firmware offers, asked over its interrupts. What it prints goes to
# the screen (int 10h) and to the first serial port (int 14h); a write to port f4 ends the machine.
    .intel_syntax noprefix
    .code16
    .text
    .globl _start
    .set SECTORS, 8
_start:
    .byte 0xea # jmp 0:..., wherever the firmware's cs was
    .word start + 0x7c00, 0
start:
    xor ax, ax
    mov ds, ax
    mov es, ax
    mov ss, ax
    mov sp, 0x7c00
    mov [drive + 0x7c00], dl
    mov ax, 0x00e3 # serial: 9600 8n1
    xor dx, dx
    int 0x14
    mov si, offset hello + 0x7c00
    call print
    mov ah, 2 # the rest: CHS
    mov al, SECTORS - 1
    mov cx, 2
    mov dh, 0
    mov dl, [drive + 0x7c00]
    mov bx, 0x7e00
    int 0x13
    jc failed
    jmp more

print: # si
    lodsb
    test al, al
    jz 1f
    call putc
    jmp print
1:  ret
putc: # al
    pusha
    push ax
    mov ah, 0xe
    mov bx, 7
    int 0x10
    pop ax
    mov ah, 1
    xor dx, dx
    int 0x14
    popa
    ret
failed:
    mov si, offset bad + 0x7c00
    call print
finish:
    mov al, 0
    out 0xf4, al
1:  hlt
    jmp 1b

drive: .byte 0
hello: .asciz "boot sector\r\n"
bad: .asciz "failed\r\n"
    .org 510
    .word 0xaa55

.macro line text
    mov si, offset 8f + 0x7c00
    call print
    jmp 9f
8:  .asciz "\text\r\n"
9:
.endm
# carry: failed
.macro step text
    mov si, offset .Lgood\@ + 0x7c00
    jnc .Lsay\@
    mov si, offset .Lbad\@ + 0x7c00
.Lsay\@:
    call print
    jmp .Lend\@
.Lgood\@: .asciz "\text: ok\r\n"
.Lbad\@: .asciz "\text: FAILED\r\n"
.Lend\@:
.endm

more:
    cmp dword ptr [last + 0x7c00], 0x5041474d
    clc
    je 1f
    stc
1:  step "int 13h read by CHS"
    mov ah, 0x41
    mov bx, 0x55aa
    mov dl, [drive + 0x7c00]
    int 0x13
    jc 1f
    cmp bx, 0xaa55
    je 1f
    stc
1:  step "int 13h extensions"
    mov ah, 0x42
    mov dl, [drive + 0x7c00]
    mov si, offset packet + 0x7c00
    int 0x13
    jc 1f
    mov eax, [0x9000 + last - 512]
    cmp eax, 0x5041474d
    je 1f
    stc
1:  step "int 13h read by LBA"
    mov ah, 8
    mov dl, [drive + 0x7c00]
    xor di, di
    int 0x13
    push ds
    pop es
    jc 1f
    cmp dl, 1
1:  step "int 13h geometry"
    mov ah, 0x15
    mov dl, [drive + 0x7c00]
    int 0x13
    jc 1f
    cmp ah, 3
    je 1f
    stc
1:  step "int 13h type"
    mov ah, 0x42
    mov dl, 0x9f
    mov si, offset packet + 0x7c00
    int 0x13
    cmc
    step "int 13h no such drive"
    int 0x12
    cmp ax, 630
    jb 1f
    cmp ax, 641
    cmc
1:  step "int 12h"
    mov ah, 0x88
    int 0x15
    step "int 15h memory size"
    # e820: sum up RAM from 1 MiB on
    xor ebx, ebx
    xor ebp, ebp
1:  mov eax, 0xe820
    mov edx, 0x534d4150
    mov ecx, 20
    mov di, 0xa000
    int 0x15
    jc 3f
    cmp eax, 0x534d4150
    stc
    jne 3f
    cmp dword ptr [0xa010], 1
    jne 2f
    cmp dword ptr [0xa000], 0x100000
    jb 2f
    add ebp, [0xa008]
2:  test ebx, ebx
    jnz 1b
    cmp ebp, 0x7000000 # of 128 MiB
3:  step "int 15h e820"
    mov ax, 0x2401
    int 0x15
    step "int 15h a20 on"
    mov ax, 0x2402
    int 0x15
    jc 1f
    cmp al, 1
    je 1f
    stc
1:  step "int 15h a20 state"
    mov ax, 0x2400
    int 0x15
    step "int 15h a20 off"
    mov ax, 0xffff
    mov fs, ax
    mov word ptr [0x600], 0x1234
    mov word ptr fs:[0x610], 0x4321
    cmp word ptr [0x600], 0x4321
    je 1f
    stc
1:  step "addresses wrap at 1 MiB"
    mov ax, 0x2401
    int 0x15
    cmp word ptr fs:[0x610], 0x4321
    je 1f
    cmp word ptr [0x600], 0x4321
    je 2f
1:  stc
2:  step "and do not"
    # block move: 16 bytes from 7c00 to 2 MiB and back to 9800
    mov si, offset gdt1 + 0x7c00
    mov cx, 8
    mov ah, 0x87
    int 0x15
    jc 1f
    mov si, offset gdt2 + 0x7c00
    mov cx, 8
    mov ah, 0x87
    int 0x15
    jc 1f
    mov eax, [0x7c04]
    cmp eax, [0x9804]
    je 1f
    stc
1:  step "int 15h block move"
    mov ah, 0
    int 0x1a
    mov bp, dx
1:  mov ah, 0
    sti
    hlt
    int 0x1a
    cmp bp, dx
    je 1b
    clc
    step "int 1ah ticks"
    mov ah, 4
    int 0x1a
    step "int 1ah date"
    mov ah, 3
    mov bh, 0
    int 0x10
    cmp dh, 1
    step "int 10h cursor"
    mov ah, 0xf
    int 0x10
    cmp al, 3
    je 1f
    stc
1:  step "int 10h mode"
    mov ah, 1
    int 0x16
    clc
    jz 1f
    stc
1:  step "int 16h no key"
    mov ax, 0xb101
    xor edi, edi
    int 0x1a
    jc 1f
    cmp edx, 0x20494350
    je 1f
    stc
1:  step "pci bios"
    jmp finish

packet:
    .byte 16, 0
    .word SECTORS - 1, 0x9000, 0
    .quad 1
gdt1:
    .quad 0, 0
    .word 0xffff, 0x7c00
    .byte 0, 0x93
    .word 0
    .word 0xffff, 0
    .byte 0x20, 0x93
    .word 0
    .quad 0, 0
gdt2:
    .quad 0, 0
    .word 0xffff, 0
    .byte 0x20, 0x93
    .word 0
    .word 0xffff, 0x9800
    .byte 0, 0x93
    .word 0
    .quad 0, 0
    .org 512 * SECTORS - 4
last:
    .ascii "MGAP"
    .org 0x100000
