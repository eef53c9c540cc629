# prot.S - protected mode (strict.S is the same and what QEMU's TCG does not do as the manual says): sensitive instructions in each mode and ring, selectors, gates, tasks, virtual 8086 mode.
#
#   RAM: 500 where a fault resumes, 508 escape to ring 0, 1000 GDT, 2000 IDT, 3000.. TSSs, 3800 I/O bitmap's TSS, 4000 LDT,
#        6000 ring 0 stack, 6800 ring 0 stack for faults of ring 3, 7000 ring 3 stack, 7800 v86 stack, 8000 data
#include "lib16.inc"

    .set GDT, 0x1000
    .set IDT, 0x2000
    .set TSS0, 0x3000 # the main task, with an I/O bitmap
    .set TSS1, 0x3200
    .set TSS2, 0x3300 # 16-bit
    .set TSS3, 0x3400 # v86 task
    .set LDT, 0x4000
    .set ROM, 0xf0000
    .set K32, 0x08
    .set KDATA, 0x10
    .set U32, 0x18+3
    .set UDATA, 0x20+3
    .set K16, 0x28
    .set KDATA16, 0x30
    .set S_TSS0, 0x38
    .set S_TSS1, 0x40
    .set S_TSS2, 0x48
    .set S_TSS3, 0x50
    .set S_LDT, 0x58
    .set CONF, 0x60
    .set RONLY, 0x68
    .set XONLY, 0x70
    .set NOTP, 0x78
    .set GATE32, 0x80
    .set GATE16, 0x88
    .set GATE0, 0x90
    .set TGATE, 0x98
    .set DOWN, 0xa0
    .set KCONF3, 0xa8
    .set TGATE0, 0xb0
    .set EMPTY, 0xb8
    .set LAST, 0xc0

main:
    cli
    cld
    xor ax, ax
    mov ss, ax
    mov ds, ax
    mov esp, 0x7000
    mov es, ax
    xor di, di # clear 1000..7fff
    mov di, 0x1000
    mov cx, 0x7000
    rep stosb
    mov si, offset gdt
    mov di, GDT
    mov cx, LAST
1:  mov al, cs:[si]
    mov [di], al
    inc si
    inc di
    loop 1b
    lgdt cs:[gdt_pointer]
    lidt cs:[idt_pointer]
    mov eax, cr0
    or al, 1
    mov cr0, eax
    .byte 0x66, 0xea
    .long ROM + start32
    .word K32

    .balign 8
gdt:
    .quad 0
    .quad 0x00cf9b000000ffff # 08 code 32, ring 0
    .quad 0x00cf93000000ffff # 10 data, ring 0
    .quad 0x00cffb000000ffff # 18 code 32, ring 3
    .quad 0x00cff3000000ffff # 20 data, ring 3
    .quad 0x00009b0f0000ffff # 28 code 16 at f0000
    .quad 0x000093000000ffff # 30 data 16
    .quad 0x00008900300000ff # 38 TSS0
    .quad 0x0000890032000067 # 40 TSS1
    .quad 0x000081003300002b # 48 TSS2, 16-bit
    .quad 0x0000890034000067 # 50 TSS3
    .quad 0x000082004000000f # 58 LDT
    .quad 0x00cf9f000000ffff # 60 conforming, ring 0
    .quad 0x00cff1000000ffff # 68 read only, ring 3
    .quad 0x00cff9000000ffff # 70 execute only, ring 3
    .quad 0x00cf73000000ffff # 78 not present, ring 3
    .word gate32_target, K32, 0xec02, 0x000f # 80 call gate 32, DPL 3, 2 parameters
    .word gate16_target16, K16, 0xe401, 0 # 88 call gate 16, DPL 3, 1 parameter
    .word gate32_target, K32, 0x8c00, 0x000f # 90 call gate 32, DPL 0
    .word 0, S_TSS1, 0xe500, 0 # 98 task gate, DPL 3
    .quad 0x00cff7000000ffff # a0 expand-down, ring 3
    .quad 0x00cfff000000ffff # a8 conforming, DPL 3
    .word 0, S_TSS1, 0x8500, 0 # b0 task gate, DPL 0
    .quad 0 # b8 empty
gdt_end:
gdt_pointer:
    .word gdt_end - gdt - 1
    .long GDT
idt_pointer:
    .word 0x7ff
    .long IDT

# ---- 32-bit code ----
    .code32
.macro say32 text
    call print_inline32
    .asciz "\text"
.endm
print_inline32:
    xchg esi, [esp]
    push eax
1:  mov al, cs:[esi]
    inc esi
    test al, al
    jz 2f
    out 0xe9, al
    jmp 1b
2:  pop eax
    xchg esi, [esp]
    ret
hex32: # eax
    push ecx
    push edx
    mov edx, eax
    mov ecx, 8
1:  rol edx, 4
    mov al, dl
    and al, 15
    cmp al, 10
    jb 2f
    add al, 'a'-10-'0'
2:  add al, '0'
    out 0xe9, al
    dec ecx
    jnz 1b
    pop edx
    pop ecx
    ret
hex16: # ax
    push ecx
    push edx
    shl eax, 16
    mov edx, eax
    mov ecx, 4
    jmp 1b
newline32:
    push eax
    mov al, 10
    out 0xe9, al
    pop eax
    ret
space32:
    push eax
    mov al, ' '
    out 0xe9, al
    pop eax
    ret
.macro show reg
    push eax
    mov eax, \reg
    call space32
    call hex32
    pop eax
.endm

# every exception: number and error code, then on at [500]; or, with [508] set, at [508] in ring 0
.macro exception32 n, code
exc32_\n:
    .if \code == 0
    push 0
    .endif
    push \n
    jmp exc32_any
.endm
.irp n, 0,1,2,3,4,5,6,7,9,15,16,18,19
exception32 \n, 0
.endr
.irp n, 8,10,11,12,13,14,17
exception32 \n, 1
.endr
exc32_any:
    pushad
    push ds
    push es
    mov ax, KDATA
    mov ds, ax
    mov es, ax
    mov ebx, [0x508]
    test ebx, ebx
    jnz 1f
    say32 " exception "
    mov eax, [esp+40]
    call hex16
    call space32
    mov eax, [esp+44]
    call hex16
    mov eax, [0x500]
    mov [esp+48], eax
    and dword ptr [esp+56], 0xfffffeff # TF
    pop es
    pop ds
    popad
    add esp, 8
    iretd
1:  mov dword ptr [0x508], 0
    mov ax, KDATA
    mov ss, ax
    mov esp, 0x6000
    xor eax, eax
    mov fs, ax
    mov gs, ax
    jmp ebx

# an instruction, and what became of it
.macro try text, insn:vararg
    say32 "\text"
    mov dword ptr ss:[0x500], offset .Lresume\@ + ROM
    \insn
    say32 " ok"
.Lresume\@:
    call newline32
.endm
# the same, and eax
.macro tryshow text, insn:vararg
    say32 "\text"
    mov dword ptr ss:[0x500], offset .Lresume\@ + ROM
    \insn
    show eax
.Lresume\@:
    call newline32
.endm

# the same with several instructions between begin and finish
.macro begin text, n
    say32 "\text"
    mov dword ptr ss:[0x500], offset .Lend\n + ROM
.endm
.macro finish n
    say32 " ok"
.Lend\n:
    call newline32
.endm
.macro finishshow n
    show eax
.Lend\n:
    call newline32
.endm
.macro begin16 text, n
    say "\text"
    mov dword ptr ss:[0x500], offset .Lend\n
.endm
.macro finish16 n
    say " ok"
.Lend\n:
    call newline
.endm

set_gate: # vector al, handler ebx, type ah
    push eax
    push edi
    movzx edi, al
    shl edi, 3
    add edi, IDT
    mov [edi], bx
    mov word ptr [edi+2], K32
    mov byte ptr [edi+4], 0
    mov [edi+5], ah
    shr ebx, 16
    mov [edi+6], bx
    pop edi
    pop eax
    ret
.macro gate n, handler, type
    mov eax, \n + (\type << 8)
    mov ebx, offset \handler + ROM
    call set_gate
.endm

start32:
    mov ax, KDATA
    mov ds, ax
    mov es, ax
    mov fs, ax
    mov gs, ax
    mov ss, ax
    mov esp, 0x6000
    .irp n, 0,1,2,5,6,7,9,15,16,18,19,8,10,11,12,13,14,17
    gate \n, exc32_\n, 0x8e
    .endr
    gate 3, exc32_3, 0xee
    gate 4, exc32_4, 0xee
    gate 0x80, int80, 0xee
    gate 0x81, int80, 0x8e
    # main task: ring 0 stack, I/O bitmap with ports e8..ef allowed, f4 allowed
    mov dword ptr [TSS0+4], 0x6800
    mov dword ptr [TSS0+8], KDATA
    mov word ptr [TSS0+0x66], 0x68
    mov edi, TSS0 + 0x68
    mov ecx, 0x98
    mov al, 0xff
    rep stosb
    mov byte ptr [TSS0+0x68+0xe8/8], 0
    mov byte ptr [TSS0+0x68+0xf4/8], 0
    mov ax, S_TSS0
    ltr ax
    mov dword ptr [LDT+8], 0x0000ffff # data, ring 0, 4 GiB
    mov dword ptr [LDT+12], 0x00cf9300

    say32 "== ring 0\n"
    call sensitive
    call only_ring0
    call inspect
    call loads
    say32 "== ring 3, IOPL 0\n"
    mov dword ptr [0x508], offset back1 + ROM
    mov eax, 0x0002
    mov ebx, offset user_part + ROM
    jmp to_user
back1:
    say32 "== ring 3, IOPL 3\n"
    mov dword ptr [0x508], 0
    mov dword ptr [0x510], offset back2 + ROM
    mov eax, 0x3002
    mov ebx, offset user_flags + ROM
    jmp to_user
back2:
    say32 "== gates\n"
    mov dword ptr [0x510], offset back3 + ROM
    mov eax, 0x0002
    mov ebx, offset user_gates + ROM
    jmp to_user
back3:
    call gates0
    say32 "== tasks\n"
    call tasks
#ifdef STRICT
    say32 "== segments\n"
    call segments
#endif
    say32 "== v86, IOPL 3\n"
    mov dword ptr [0x510], offset back4 + ROM
    mov eax, 0x23002
    jmp to_v86
back4:
    say32 "== v86, IOPL 0\n"
    mov dword ptr [0x510], offset back5 + ROM
    mov eax, 0x20002
    jmp to_v86
back5:
    say32 "== 16-bit protected mode\n"
    jmp K16:part16
back6:
    mov ax, KDATA
    mov ds, ax
    mov es, ax
    mov ss, ax
    mov esp, 0x6000
    say32 "done\n"
    mov al, 0
    out 0xf4, al
1:  hlt
    jmp 1b

to_user: # flags eax, at ebx
    push UDATA
    push 0x7000
    push eax
    push U32
    push ebx
    mov ax, UDATA
    mov ds, ax
    mov es, ax
    mov fs, ax
    mov gs, ax
    iretd
# back to ring 0, from anywhere: the next fault escapes
.macro escape
    mov eax, ss:[0x510]
    mov ss:[0x508], eax
    ud2
.endm

int80: # shows where it came from
    push eax
    push ds
    mov ax, KDATA
    mov ds, ax
    say32 " [int from cs"
    mov eax, [esp+12]
    call hex16
    say32 " flags"
    mov eax, [esp+16]
    call hex32
    say32 "]"
    pop ds
    pop eax
    iretd

#include "prot_sensitive.inc"
user_part:
    mov dword ptr ss:[0x508], 0
    mov dword ptr ss:[0x510], offset back1 + ROM
    call sensitive
    try "hlt", hlt
    call inspect
    call loads
    escape
user_flags:
    try "cli", cli
    pushfd
    pop eax
    and eax, 0x3200
    show eax
    call newline32
    try "sti", sti
    cli
    begin "popfd 0202", 14
    push 0x0202
    popfd
    pushfd
    pop eax
    and eax, 0x7200
    finishshow 14
    cli
    try "in al, 60", in al, 0x60
    begin "outsb", 15
    mov esi, 0x8000
    mov dx, 0x80
    outsb
    finish 15
    begin "popf 16", 16
    push 0
    .byte 0x66
    push 0x4002
    .byte 0x66
    popf
    pushfd
    pop eax
    and eax, 0x7200
    finishshow 16
    pop ecx
    push 2
    popfd
    escape

gate32_target:
    mov ax, KDATA
    mov ds, ax
    mov es, ax
    say32 " [gate32 cs"
    mov ax, cs
    call hex16
    say32 " ss"
    mov ax, ss
    call hex16
    mov eax, esp
    show eax
    mov eax, [esp]
    sub eax, offset gate_from + ROM
    show eax
    .irp off, 4,8,12,16,20
    mov eax, [esp+\off]
    show eax
    .endr
    say32 "]"
    retf 8
user_gates:
    push 0x11111111
    push 0x22222222
    begin "call gate 32", 17
    lcall GATE32:0
    gate_from: nop
    finish 17
    mov eax, esp
    show eax
    mov ax, ss
    movzx eax, ax
    show eax
    mov ax, ds # a ring 0 segment: null now
    movzx eax, ax
    show eax
    mov ax, UDATA
    mov ds, ax
    mov es, ax
    call newline32
    mov esp, 0x7000
    .byte 0x66
    push 0x3333
    try "call gate 16", lcall GATE16:0
    mov ax, UDATA
    mov ds, ax
    mov es, ax
    mov eax, esp
    show eax
    call newline32
    mov esp, 0x7000
    try "call gate of ring 0", lcall GATE0:0
    try "jmp gate to an inner ring", ljmp GATE32:0
    begin "call gate rpl", 18
    lcall GATE32+3:0
    mov esp, 0x7000
    finish 18
    mov ax, UDATA
    mov ds, ax
    mov es, ax
    mov esp, 0x7000
    try "call code of ring 0", lcall K32:0
    try "call data", lcall UDATA:0
    try "call null", lcall 0:0
    try "call beyond", lcall 0xf8:0
    try "call not present", lcall NOTP+3:0
    say32 "call conforming"
    mov dword ptr [0x500], offset .Lhere5 + ROM
    lcall CONF, ROM + conf_target
.Lhere5:
1:  call newline32
    say32 "call conforming of ring 3"
    mov dword ptr [0x500], offset .Lhere6 + ROM
    lcall KCONF3+3, ROM + conf_target
.Lhere6:
1:  call newline32
    begin "retf to an inner ring", 19
    push K32
    push ROM + 1
    retf
    finish 19
    mov esp, 0x7000
    begin "iretd to an inner ring", 20
    push 2
    push K32
    push ROM + 1
    iretd
    finish 20
    mov esp, 0x7000
    push 0x4002 # NT
    popfd
    try "iretd with NT: no link", iretd
    push 2
    popfd
    mov esp, 0x7000
    escape
conf_target:
    say32 " [cs"
    mov ax, cs
    call hex16
    say32 "]"
    retf

gates0:
    say32 "-- ring 0\n"
    say32 "call conforming of ring 3"
    mov dword ptr [0x500], offset .Lhere7 + ROM
    lcall KCONF3, ROM + conf_target
.Lhere7:
1:  call newline32
    say32 "call gate at the same ring"
    mov dword ptr [0x500], offset .Lhere8 + ROM
    push 0
    push 0
    lcall GATE32:0
    sub eax, eax
.Lhere8:
1:  mov eax, esp
    call newline32
    say32 "call rpl 3"
    mov dword ptr [0x500], offset .Lhere9 + ROM
    lcall K32+3, ROM + conf_target
.Lhere9:
1:  call newline32
    say32 "call code of ring 3"
    mov dword ptr [0x500], offset .Lhere10 + ROM
    lcall U32, ROM + conf_target
.Lhere10:
1:  call newline32
    say32 "retf to the same ring"
    mov dword ptr [0x500], offset .Lhere11 + ROM
    push K32
    push offset .Lhere12 + ROM
    retf
    nop
.Lhere11:
1:  call newline32
    ret

#include "prot_tasks.inc"
#include "prot_v86.inc"
    image_end
