# real.S - real mode: arithmetic in both widths, addresses, segments, stack, strings, interrupts, faults, big real mode.
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

# flags that the manual leaves undefined
.macro undef
    test esp, esp
.endm
.macro regs
    mov eax, 0x89abcdef
    mov ecx, 0x11112222
    mov edx, 0x33338444
    mov ebx, 0x55556666
    mov esi, 0x7777f001
    mov edi, 0x9999aaaa
    mov ebp, 0xbbbb1234
    xor ebp, 0 # clean flags
.endm
    say "-- arithmetic\n"
    regs
    .irp op, add,adc,sub,sbb,and,or,xor,cmp
    \op ax, dx
    state "\op 16"
    \op eax, edx
    state "\op 32"
    \op al, bh
    state "\op 8"
    \op cx, 0x7fff
    state "\op imm16"
    \op ecx, 0x7fffffff
    state "\op imm32"
    \op dx, -2
    state "\op imm8"
    .endr
    .irp op, inc,dec,neg,not
    \op cx
    state "\op 16"
    \op ecx
    state "\op 32"
    .endr
    .irp op, mul,imul
    \op cx
    undef
    state "\op 16"
    \op ecx
    undef
    state "\op 32"
    .endr
    imul bx, dx, 77
    undef
    state "imul3"
    imul ebx, edx
    undef
    state "imul2"
    mov dx, 5
    mov ax, 0x4321
    mov bx, 77
    div bx
    undef
    state "div"
    cwd
    state "cwd"
    cdq
    state "cdq"
    cbw
    state "cbw"
    cwde
    state "cwde"
    idiv bl
    undef
    state "idiv"
    .irp op, rol,ror,shl,shr,sar
    stc
    \op dx, 3
    undef
    state "\op 16"
    \op edx, 7
    undef
    state "\op 32"
    mov cl, 21
    \op ebx, cl
    undef
    state "\op cl"
    .endr
    stc
    rcl ax, 1
    undef
    state "rcl"
    rcr eax, 1
    state "rcr"
    shld ax, dx, 5
    undef
    state "shld"
    shrd eax, edx, 9
    undef
    state "shrd"
    bt ax, 3
    undef
    state "bt"
    bts eax, 17
    undef
    state "bts"
    btr ax, dx
    undef
    state "btr"
    btc eax, edx
    undef
    state "btc"
    mov dx, 0x0100
    bsf cx, dx
    undef
    state "bsf"
    bsr ecx, edx
    undef
    state "bsr"
    movzx bx, al
    state "movzx 16"
    movzx ebx, ax
    state "movzx 32"
    movsx bx, al
    state "movsx 16"
    movsx ebx, ax
    state "movsx 32"
    xchg ax, bx
    state "xchg 16"
    xchg eax, esi
    state "xchg 32"
    bswap eax
    state "bswap"
    cmpxchg bx, dx
    state "cmpxchg"
    xadd bx, dx
    state "xadd"
    setc al
    setnz ah
    state "setcc"
    cmovz cx, bx
    cmovnz ecx, ebx
    state "cmov"
    clc
    salc_here:
    .byte 0xd6
    state "salc"
    stc
    .byte 0xd6
    state "salc"
    lahf
    state "lahf"

    say "-- decimal\n"
    .irp v, 0x0000,0x009a,0x0f9f,0x1299,0xff0a,0x3966
    mov ax, \v
    add al, 0x28
    daa
    state "daa"
    mov ax, \v
    sub al, 0x35
    das
    state "das"
    mov ax, \v
    add al, 0x7
    aaa
    pushf
    pop bx
    and bx, 0x11
    state "aaa"
    mov ax, \v
    sub al, 0x7
    aas
    pushf
    pop bx
    and bx, 0x11
    state "aas"
    mov ax, \v
    aam
    and ax, ax
    state "aam"
    mov ax, \v
    aad
    and ax, ax
    state "aad"
    .endr

    say "-- addresses\n"
    mov ax, 0x1000
    mov ds, ax
    mov ax, 0x2000
    mov es, ax
    mov ax, 0x3000
    mov fs, ax
    mov ax, 0x1ff8
    mov gs, ax
    mov dword ptr ds:[0x8000], 0x44332211
    mov dword ptr es:[0x8000], 0x88776655
    mov dword ptr fs:[0x8000], 0xccbbaa99
    mov dword ptr ss:[0x8000], 0x00ffeedd
    mov bx, 0x7000
    mov si, 0x1000
    mov di, 0x0fff
    mov bp, 0x7001
    mov eax, [bx+si]
    state "bx+si"
    mov ax, [bp+di]
    state "bp+di"
    mov eax, es:[bx+si]
    state "es:bx+si"
    mov ax, [bp+si-1]
    state "bp+si-1"
    mov eax, ds:[bp+di]
    state "ds:bp+di"
    mov al, [0x8002]
    state "disp16"
    mov al, fs:0x8003
    state "moffs"
    mov ax, gs:[0x8080]
    state "gs alias of es"
    mov bx, 0xf000
    mov ax, [bx-0x7000]
    state "wraps"
    mov bx, 0x9000
    mov ax, [bx-0x1000]
    state "disp16 negative"
    mov ebx, 0x7ffe
    mov ecx, 1
    mov eax, [ebx+ecx*2]
    state "a32"
    movzx ebp, bp
    mov ax, [ebp+0xfff]
    state "a32 ebp is ss"
    mov al, [esp+0x1000]
    state "a32 esp"
    lea ax, [bx+si+5]
    state "lea 16"
    lea eax, [bx+si-0x7fff]
    state "lea 16/32"
    lea eax, [0xfffe]
    state "lea abs"
    lea eax, [ebx+ecx*8+0x12345678]
    state "lea 32"
    lea ax, [ebx+ecx*8+0x12345678]
    state "lea 32/16"
    add word ptr [0x8000], 0x1111
    adc dword ptr es:[0x8000], 0x78899aab
    not byte ptr fs:[0x8001]
    lock xadd [0x8002], ax
    mov eax, [0x8000]
    mov ebx, es:[0x8000]
    mov ecx, fs:[0x8000]
    state "memory ops"
    mov cx, 0x1234
    bts [0x8000], cx
    mov bx, 0x8000 + 0x246
    mov ax, [bx]
    undef
    state "bts mem"
    mov ax, ds
    mov bx, es
    mov ecx, fs
    mov edx, gs
    state "segments"
    lds si, [0x8000]
    mov ax, ds
    state "lds"
    xor ax, ax
    mov ds, ax
    les di, ss:[0x8000]
    mov ax, es
    state "les"
    lfs ebx, ss:[0x8000]
    lgs bx, ss:[0x8001]
    mov ax, fs
    mov cx, gs
    state "lfs lgs"
    mov es, cx
    mov bx, 0x8000
    mov al, 3
    xlat
    state "xlat"
    mov ax, 0x1000
    mov fs, ax
    mov al, 1
    xlat byte ptr fs:[bx]
    state "xlat fs"

    say "-- stack\n"
    mov ax, 0x1111
    push ax
    push 0x1234
    push -3
    push eax
    push dword ptr -5
    push ds
    push word ptr ss:[0x8000]
    push dword ptr ss:[0x8000]
    state "pushed"
    pop ecx
    pop bx
    pop es
    pop edx
    pop esi
    pop di
    pop bp
    pop word ptr ss:[0x8000]
    mov ax, ss:[0x8000]
    state "popped"
    pusha
    pushad
    mov bp, sp
    mov eax, [bp+12]
    mov ebx, [bp+32+6]
    state "pusha"
    popad
    popa
    state "popa"
    enter 8, 0
    state "enter"
    enter 4, 3
    state "enter 3"
    leave
    leave
    state "leave"
    pushf
    pop ax
    or ax, 0x7000
    push ax
    popf
    pushf
    pop bx
    state "flags 16"
    pushfd
    pop eax
    xor eax, 0x200000
    push eax
    popfd
    pushfd
    pop ebx
    and ebx, 0xfffff
    xor eax, eax
    state "flags 32"
    push 0
    popf
    mov sp, 2
    push ax
    push bx # wraps to fffe
    mov cx, sp
    mov sp, 0x7000
    set_exceptions # a vector was overwritten
    state "sp wraps"
    mov esp, 0x12347000
    push cx
    mov eax, esp
    pop cx
    mov esp, 0x7000
    state "high esp kept"

    say "-- control\n"
    mov cx, 5
    xor ax, ax
1:  add ax, cx
    loop 1b
    state "loop"
    mov ecx, 0x10003
    xor ax, ax
1:  inc ax
    loop 1b
    state "loop cx only"
    mov ecx, 0x103
    xor ax, ax
1:  inc ax
    .byte 0x67
    loop 1b
    state "loop ecx"
    mov cx, 9
1:  cmp cx, 5
    loopne 1b
    state "loopne"
    mov cx, 3
1:  cmp cx, cx
    loope 1b
    state "loope"
    mov ecx, 0x10000
    jcxz 1f
    say "not taken\n"
1:  state "jcxz"
    jecxz 1f
    say "not taken\n"
1:  mov cx, 1
    jcxz 1f
    say "not taken\n"
1:
    mov bx, offset t1
    jmp bx
    say "no\n"
t1: mov word ptr ss:[0x8000], offset t2
    jmp word ptr ss:[0x8000]
    say "no\n"
t2: mov word ptr ss:[0x8002], 0xf000
    mov word ptr ss:[0x8000], offset t3
    .byte 0x36, 0xff, 0x2e, 0x00, 0x80 # jmp far ss:[8000]
    say "no\n"
t3: .byte 0xea # the same bytes through another CS
    .word t4-0x100, 0xf010
t4: mov ax, cs
    mov bx, sp
    push cs
    call t5 # near, in cs f010
t6: mov dx, cx
    pop cx
    .byte 0xea
    .word t8, 0xf000
t5: mov bx, sp
    mov cx, ss:[bx]
    sub cx, offset t6 - 0x100
    jmp t7
    nop
t7: ret
t8: mov ax, cs
    state "cs f000"
    .byte 0x9a
    .word far_routine, 0xf000
    state "far call"
    push 7
    push 8
    mov bx, offset near_pop
    call bx
    state "ret n"
    .byte 0x66, 0xe8 # call rel32
    .long 0
t9: pop eax
    sub eax, offset t9
    state "call 32"

    say "-- strings\n"
    mov ax, 0x1000
    mov ds, ax
    mov ax, 0x2000
    mov es, ax
    mov eax, 0x03020100
    mov cx, 64
    mov di, 0x100
1:  stosd
    add eax, 0x04040404
    loop 1b
    mov ax, 0x2000
    mov ds, ax
    mov ax, 0x3000
    mov es, ax
    mov ecx, 0xffff0080
    mov esi, 0x55550100
    mov edi, 0x66660200
    rep movsw
    state "movsw"
    mov ecx, 0x20
    mov esi, 0x110
    mov edi, 0x201
    rep movsb
    state "movsb"
    mov di, 0x200
    mov cx, 0x100
    mov al, 0x44
    repne scasb
    state "scasb"
    mov si, 0x100
    mov di, 0x200
    mov cx, 0x100
    repe cmpsb
    state "cmpsb"
    std
    mov si, 0x1ff
    mov di, 0x2ff
    mov cx, 8
    rep movsd
    cld
    state "std movsd"
    lodsb
    state "lodsb"
    lodsw es:[si]
    state "lodsw es"
    lodsd fs:[si]
    state "lodsd fs"
    mov si, 0xfffe
    mov di, 0x300
    mov cx, 4
    rep movsw
    state "movsw wraps"
    mov esi, 0x100
    mov edi, 0x400
    mov ecx, 3
    .byte 0x67
    rep movsb
    state "a32 movsb"
    mov di, 0x800
    mov cx, 3
    mov al, 0x5a
    rep stosb
    mov eax, es:[0x800]
    state "stosb"
    mov cx, 0
    rep stosd
    repe cmpsw
    state "count 0"
    mov si, 0x100
    mov dx, 0xe9
    mov word ptr ds:[0x100], 0x4241
    mov word ptr ds:[0x102], 0x0a43
    mov cx, 4
    rep outsb
    state "outsb"
    mov di, 0x900
    mov dx, 0x5555 # nothing there
    mov cx, 2
    rep insw
    mov eax, es:[0x900]
    state "insw"

    say "-- interrupts\n"
    xor ax, ax
    mov ds, ax
    mov al, 0x40
    mov bx, offset int40
    call set_vector
    mov ax, 0x1234
    sti
    int 0x40
    state "int"
    cli
    pushf
    pop bx
    and bx, 0x200
    state "cli"
    vector 4, int40
    mov al, 0x7f
    add al, 1
    into
    state "into"
    mov al, 1
    add al, 1
    into
    state "no into"
    vector 4, exc_4
    vector 1, trap1
    xor cx, cx
    pushf
    pop ax
    or ax, 0x100
    push ax
    popf
    inc cx
    inc cx
    lea bx, [bx]
    mov dx, ss:[0x8000]
    push ax
    mov ax, ss
    mov ss, ax # the next one is not trapped by itself
    mov dx, 0
    pop bx
    and ax, 0xfeff
    mov ax, 2
    push ax
    popf
    nop
    state "trapped"
    vector 1, exc_1

    say "-- faults\n"
    xor ax, ax
    mov ds, ax
    mov es, ax
    mov bx, 0
    mov dx, 0
    faulting "div 0", div bx
    mov ax, 0x1000
    mov bl, 1
    faulting "div overflow", div bl
    faulting "aam 0", aam 0
    faulting "ud2", ud2
    mov word ptr [0x8000], 5
    mov word ptr [0x8002], 9
    mov ax, 4
    faulting "bound low", bound ax, [0x8000]
    mov ax, 9
    faulting "bound in", bound ax, [0x8000]
    mov ax, 10
    faulting "bound high", bound ax, [0x8000]
    faulting "arpl", .byte 0x63, 0xc0
    faulting "sldt", sldt ax
    faulting "str", str ax
    faulting "lldt", lldt ax
    faulting "ltr", ltr ax
    faulting "lar", lar ax, bx
    faulting "lsl", lsl ax, bx
    faulting "verr", verr ax
    faulting "verw", verw ax
    faulting "lock nop", .byte 0xf0, 0x90
    faulting "mov cs", .byte 0x8e, 0xc8
    faulting "lea reg", .byte 0x8d, 0xc0
    faulting "jmp far reg", .byte 0xff, 0xe8
    faulting "les reg", .byte 0xc4, 0xc1
    faulting "vex", .byte 0xc5, 0xf8, 0x77
    faulting "syscall", syscall
    faulting "mov cr1", .byte 0x0f, 0x20, 0xc8
    faulting "int3", int3
    smsw ax
    and ax, 0xf
    state "smsw"
    sgdt [0x8000]
    sidt [0x8010]
    mov ax, [0x8000]
    mov bx, [0x8010]
    mov ecx, [0x8012]
    state "sgdt sidt"
    mov eax, cr0
    and eax, 0x9fffffff
    state "cr0"
    mov eax, cr2
    mov ebx, cr3
    mov ecx, cr4
    state "cr2 cr3 cr4"

    say "-- fpu\n"
    fninit
    fld1
    fldpi
    faddp
    fistp dword ptr [0x8000]
    mov eax, [0x8000]
    fnstcw [0x8004]
    mov bx, [0x8004]
    fnstsw ax
    state "x87"
    mov eax, cr4
    or eax, 0x600
    mov cr4, eax
    mov eax, 0x3f800000
    movd xmm0, eax
    addss xmm0, xmm0
    movd ebx, xmm0
    pshufd xmm1, xmm0, 0
    movdqu [0x8000], xmm1
    mov ecx, [0x800c]
    cvtsi2ss xmm2, ebx
    cvtss2si edx, xmm0
    pextrw esi, xmm1, 1
    pinsrw xmm1, esi, 0
    movd edi, xmm1
    state "sse"

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
    mov dword ptr [ebx], 0xfeedface
    mov eax, [ebx]
    mov ecx, es:[ebx+2]
    mov dx, ds
    state "4g data"
    xor ax, ax
    mov ds, ax
    mov eax, [ebx]
    state "limit kept"
    mov ax, 0x1000
    mov ds, ax
    mov eax, [ebx-0x10000]
    state "base changes"
    mov edi, 0x200000
    mov esi, 0x113456
    mov ecx, 4
    .byte 0x67
    rep movsb
    mov edi, 0x200000
    mov eax, es:[edi]
    state "4g movs"
    xor ax, ax
    mov ds, ax
    mov es, ax
    say "-- a20\n"
    mov ax, 0xffff
    mov ds, ax
    xor ax, ax
    mov es, ax
    mov word ptr es:[0x500+0x10], 0x1111
    mov word ptr ds:[0x510+0x10], 0x2222
    mov ax, es:[0x510]
    mov bx, ds:[0x520]
    state "open"
    xor ax, ax
    mov ds, ax
    say "done\n"
    mov al, 0
    jmp finish

far_routine:
    mov bp, sp
    mov ax, [bp+2]
    mov bx, 0x4321
    retf
near_pop:
    mov bp, sp
    mov ax, [bp+2]
    mov cx, [bp+4]
    ret 4
int40:
    push bp
    mov bp, sp
    mov cx, [bp+4] # cs
    mov dx, [bp+6] # flags
    pop bp
    pushf
    pop si
    iret
trap1:
    push bp
    mov bp, sp
    inc di
    test word ptr [bp+6], 0x100
    pop bp
    iret

    .balign 8
gdt:
    .quad 0
    .quad 0x00cf93000000ffff # 08 flat data
    .quad 0x00cf9b000000ffff # 10 flat code 32
    .quad 0x000f9b000000ffff # 18
gdt_pointer:
    .word . - gdt - 1
    .long 0xf0000 + gdt
    image_end
