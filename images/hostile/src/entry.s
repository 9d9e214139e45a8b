/* Start, traps and the one way in which this kernel tries something: run().

   run(regs, code) loads every register from `regs`, jumps to `code` and comes back either through
   run_done, to which the code jumps at its end (0 in %eax), or through a trap (1 in %eax).  Events
   are unmasked only in between.  A handler does not return to what it interrupted: it drops the
   stack that the code ran on, which may be no stack at all. */

.macro note type
    .long 4, 2f - 1f, \type
    .asciz "Xen"
1:
.endm
.macro endnote
2:  .balign 4
.endm

.pushsection .note.Xen, "a", @note
    .balign 4
    note {XEN_VERSION}
    .asciz "xen-3.0"
    endnote
    note {GUEST_OS}
    .asciz "hostile"
    endnote
    note {LOADER}
    .asciz "generic"
    endnote
    note {ENTRY}
    .quad start
    endnote
    note {VIRT_BASE}
    .quad VIRT_BASE
    endnote
    note {PADDR_OFFSET}
    .quad 0
    endnote
.popsection

.pushsection .text
.globl start
start:
    /* What the registers hold, before anything else has touched them. */
    fxsave first_fpu(%rip)
    movq %rax, first_gprs(%rip)
    movq %rbx, first_gprs + 8(%rip)
    movq %rcx, first_gprs + 16(%rip)
    movq %rdx, first_gprs + 24(%rip)
    movq %rdi, first_gprs + 32(%rip)
    movq %rbp, first_gprs + 40(%rip)
    movq %r8, first_gprs + 48(%rip)
    movq %r9, first_gprs + 56(%rip)
    movq %r10, first_gprs + 64(%rip)
    movq %r11, first_gprs + 72(%rip)
    movq %r12, first_gprs + 80(%rip)
    movq %r13, first_gprs + 88(%rip)
    movq %r14, first_gprs + 96(%rip)
    movq %r15, first_gprs + 104(%rip)
    cld
    leaq stack_top(%rip), %rsp
    movq %rsi, %rdi
    xorl %ebp, %ebp
    call kernel_main
    ud2

.globl run
run:
    pushq %rbx
    pushq %rbp
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    pushq %rdi
    movq %rsp, recover_sp(%rip)
    movq %rsi, run_target(%rip)
    movq event_mask(%rip), %rax
    movb $0, (%rax)
    movq 120(%rdi), %rsp
    movq 0(%rdi), %rax
    movq 8(%rdi), %rbx
    movq 16(%rdi), %rcx
    movq 24(%rdi), %rdx
    movq 32(%rdi), %rsi
    movq 48(%rdi), %rbp
    movq 56(%rdi), %r8
    movq 64(%rdi), %r9
    movq 72(%rdi), %r10
    movq 80(%rdi), %r11
    movq 88(%rdi), %r12
    movq 96(%rdi), %r13
    movq 104(%rdi), %r14
    movq 112(%rdi), %r15
    movq 40(%rdi), %rdi
    jmp *run_target(%rip)
.globl run_done
run_done:
    movq %rax, run_rax(%rip)
    movq %rdi, run_rdi(%rip)
    movq %rsp, run_rsp(%rip)
    movq recover_sp(%rip), %rsp
    movq (%rsp), %rdi
    movq %rbx, 8(%rdi)
    movq %rcx, 16(%rdi)
    movq %rdx, 24(%rdi)
    movq %rsi, 32(%rdi)
    movq %rbp, 48(%rdi)
    movq %r8, 56(%rdi)
    movq %r9, 64(%rdi)
    movq %r10, 72(%rdi)
    movq %r11, 80(%rdi)
    movq %r12, 88(%rdi)
    movq %r13, 96(%rdi)
    movq %r14, 104(%rdi)
    movq %r15, 112(%rdi)
    movq run_rax(%rip), %rax
    movq %rax, 0(%rdi)
    movq run_rdi(%rip), %rax
    movq %rax, 40(%rdi)
    movq run_rsp(%rip), %rax
    movq %rax, 120(%rdi)
    xorl %eax, %eax
run_out:
    movq event_mask(%rip), %rcx
    movb $1, (%rcx)
    movq $0, recover_sp(%rip)
    pushq $2
    popfq
    addq $8, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbp
    popq %rbx
    ret

/* Entered with the vector pushed on top of the bounce frame: rcx, r11, [error], rip, cs, ... */
trap_common:
    movq %rax, trap_rax(%rip)
    movq event_mask(%rip), %rax
    movb $1, (%rax)
    popq %rax
    movq %rax, trap_vector(%rip)
    movq 16(%rsp), %rax
    movq %rax, trap_words(%rip)
    movq 24(%rsp), %rax
    movq %rax, trap_words + 8(%rip)
    movq 32(%rsp), %rax
    movq %rax, trap_words + 16(%rip)
    cmpq $0, recover_sp(%rip)
    je 1f
    movq recover_sp(%rip), %rsp
    movl $1, %eax
    jmp run_out
1:  leaq stack_top - 0x4000(%rip), %rsp
    call fatal_trap
    ud2

/* An event: forget it, go on. */
.globl event_entry
event_entry:
    pushq %rax
    pushq %rdi
    movq event_info(%rip), %rax
    movb $0, (%rax)
    movq $0, 8(%rax)
    movq event_bits(%rip), %rdi
    movl $64, %ecx
    xorl %eax, %eax
    cld
    rep stosq
    incq event_count(%rip)
    popq %rdi
    popq %rax
resume:
    popq %rcx
    popq %r11
    pushq $0
    pushq %rcx
    pushq %r11
    pushq %rax
    movl $23, %eax
    syscall
    ud2

/* #NM: the FPU was switched off by an attack, and compiled code uses it. */
.globl fpu_entry
fpu_entry:
    pushq %rax
    pushq %rdi
    xorl %edi, %edi
    movl $5, %eax
    syscall
    popq %rdi
    popq %rax
    jmp resume

/* #DB: the breakpoints go first, as one may lie on what follows.  Then, an attack's own is its
   result; any other is a breakpoint that an attack left behind. */
.globl debug_entry
debug_entry:
    pushq %rax
    pushq %rdi
    pushq %rsi
    movl $7, %edi
    xorl %esi, %esi
    movl $8, %eax
    syscall
    popq %rsi
    popq %rdi
    popq %rax
    cmpq $0, recover_sp(%rip)
    jne trap_1
    jmp resume

.altmacro
.macro trap n
trap_\n:
    pushq $\n
    jmp trap_common
.endm
.macro trap_address n
    .quad trap_\n
.endm
.set n, 0
.rept 36
    trap %n
    .set n, n + 1
.endr

.globl memcpy
memcpy:
    movq %rdi, %rax
    movq %rdx, %rcx
    rep movsb
    ret
.globl memmove
memmove:
    movq %rdi, %rax
    movq %rdx, %rcx
    movq %rdi, %r8
    subq %rsi, %r8
    cmpq %rdx, %r8
    jae 1f
    leaq -1(%rdi, %rdx), %rdi
    leaq -1(%rsi, %rdx), %rsi
    std
    rep movsb
    cld
    ret
1:  rep movsb
    ret
.globl memset
memset:
    movq %rdi, %r8
    movl %esi, %eax
    movq %rdx, %rcx
    rep stosb
    movq %r8, %rax
    ret
.globl memcmp
.globl bcmp
memcmp:
bcmp:
    xorl %eax, %eax
    xorl %ecx, %ecx
1:  cmpq %rdx, %rcx
    je 2f
    movzbl (%rdi, %rcx), %eax
    movzbl (%rsi, %rcx), %r8d
    incq %rcx
    subl %r8d, %eax
    je 1b
2:  ret
.popsection

.pushsection .rodata
    .balign 8
/* Vectors 0-31, then the failsafe, system call, SYSENTER and compatibility callbacks. */
.globl trap_addresses
trap_addresses:
.set n, 0
.rept 36
    trap_address %n
    .set n, n + 1
.endr
.popsection

.pushsection .bss
    .balign 4096
stack:
    .skip 0x10000
stack_top:
    .balign 16
.globl first_fpu
first_fpu:   .skip 512
.globl first_gprs
first_gprs:  .skip 14 * 8
    .balign 8
.globl recover_sp
recover_sp:  .skip 8
run_target:  .skip 8
run_rax:     .skip 8
run_rdi:     .skip 8
run_rsp:     .skip 8
.globl trap_vector
trap_vector: .skip 8
.globl trap_rax
trap_rax:    .skip 8
.globl trap_words
trap_words:  .skip 24
.globl event_count
event_count: .skip 8
.popsection

.pushsection .data
    .balign 8
.globl event_mask
event_mask:  .quad nothing
.globl event_info
event_info:  .quad nothing
.globl event_bits
event_bits:  .quad nothing
.balign 4096
nothing:     .skip 4096
.popsection
