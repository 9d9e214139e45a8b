/* The functions that rustc assumes a C library has.  They are in assembly because a compiler
   recognises a loop that copies and replaces it by a call to memcpy.  Eight bytes at a time, since
   most of what the shim moves are small structures. */

.macro FUNCTION name
.pushsection .text.\name, "ax", @progbits
.globl \name
.type \name, @function
\name:
.endm
.macro END name
.size \name, . - \name
.popsection
.endm

FUNCTION memcpy
    movq %rdi, %rax
    movq %rdx, %rcx
    shrq $3, %rcx
    /* Upwards: DF is clear, by the ABI and on every way into the shim. */
    rep movsq
    movl %edx, %ecx
    andl $7, %ecx
    rep movsb
    ret
END memcpy

FUNCTION memmove
    movq %rdi, %rcx
    subq %rsi, %rcx
    cmpq %rdx, %rcx                 /* dst - src < n, unsigned: copy backwards */
    jae memcpy
    movq %rdi, %rax
    movq %rdx, %rcx
    leaq -1(%rdi, %rdx), %rdi
    leaq -1(%rsi, %rdx), %rsi
    /* Downwards, so that the source is read before it is written over. An NMI meanwhile runs no
       Rust, so nobody else sees DF set. */
    std
    rep movsb
    cld
    ret
END memmove

FUNCTION memset
    movq %rdi, %r8
    movzbl %sil, %eax
    movabsq $0x0101010101010101, %rcx
    /* The byte in each of eight places. */
    imulq %rcx, %rax
    movq %rdx, %rcx
    shrq $3, %rcx
    rep stosq
    movl %edx, %ecx
    andl $7, %ecx
    rep stosb
    movq %r8, %rax
    ret
END memset

.globl bcmp
.set bcmp, memcmp
FUNCTION memcmp
    xorl %eax, %eax
    movq %rdx, %rcx
    cmpq %rcx, %rcx                 /* ZF = 1 when n == 0 */
    repe cmpsb
    je 1f
    movzbl -1(%rdi), %eax
    movzbl -1(%rsi), %ecx
    subl %ecx, %eax
1:  ret
END memcmp

FUNCTION strlen
    movq %rdi, %rdx
    xorl %eax, %eax
    movq $-1, %rcx
    repne scasb
    leaq -1(%rdi), %rax
    subq %rdx, %rax
    ret
END strlen

/* The precompiled alloc was built to unwind and names these; nothing in the image unwinds. */
FUNCTION rust_eh_personality
    ud2
END rust_eh_personality
FUNCTION _Unwind_Resume
    ud2
END _Unwind_Resume
