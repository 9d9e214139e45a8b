/* The ways into the shim from ring 3 and back.

   Every entry builds a `Regs` frame (shim/src/cpu/regs.rs) at the top of the vCPU's entry stack.
   Then it goes over to the shim's own stack, saves the guest's xmm registers there (Rust code on
   this target uses them, and only them), and calls shim_entry(regs), which returns non-zero when
   the way back may be SYSRET.  GS base holds the vCPU's PerCpu block while in the shim and the
   guest's value outside; interrupts are off in the shim, always.

   With split tables ring 3 has page tables in which nothing of the shim is but this section, the
   vCPU's descriptor tables, its PerCpu block and its entry stacks (machine/paging.rs).  So on the way
   in nothing else may be touched before `entry_special` has loaded the others, and on the way out
   nothing after `exit_special` has loaded the guest's.

   A fault in ring 0 is legal in two places: the iretq below (the guest chose what it loads) and
   the few instructions that kernel_fault lists; anything else ends in kernel_fault, which does not
   return. */

.set R_SIZE, 22 * 8
.set XMM_SIZE, 16 * 16

.macro PUSH_GPRS
    pushq %rdi
    pushq %rsi
    pushq %rdx
    pushq %rcx
    pushq %rax
    pushq %r8
    pushq %r9
    pushq %r10
    pushq %r11
    pushq %rbx
    pushq %rbp
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
.endm
.macro POP_GPRS
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbp
    popq %rbx
    popq %r11
    popq %r10
    popq %r9
    popq %r8
    popq %rax
    popq %rcx
    popq %rdx
    popq %rsi
    popq %rdi
.endm
.macro XMM op, swap
    .irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
    .ifc \swap, save
    movaps %xmm\n, \n * 16(%rsp)
    .else
    movaps \n * 16(%rsp), %xmm\n
    .endif
    .endr
.endm

/* Behind a SWAPGS that a mispredicted branch may have skipped: becomes LFENCE on processors that
   would go on ahead with the guest's GS (CVE-2019-1125). */
.macro FENCE
777:
    .byte 0x0f, 0x1f, 0x00
    .pushsection .rodata.fences, "a", @progbits
    .quad 777b
    .popsection
.endm

/* From a stack of an exception's own to the entry stack: vector, error code and what the CPU
   pushed, then the general registers. */
.macro MOVE_FRAME
    movq %rax, %gs:{PERCPU_SCRATCH}
    movq %rsp, %rax
    movq %gs:{PERCPU_ENTRY_TOP}, %rsp
    pushq 48(%rax)                      /* ss */
    pushq 40(%rax)                      /* rsp */
    pushq 32(%rax)                      /* rflags */
    pushq 24(%rax)                      /* cs */
    pushq 16(%rax)                      /* rip */
    pushq 8(%rax)                       /* error */
    pushq (%rax)                        /* vector */
    movq %gs:{PERCPU_SCRATCH}, %rax
    PUSH_GPRS
.endm

.pushsection .rodata.fences, "a", @progbits
.balign 8
.globl fences_start
fences_start:
.popsection

/* One stub of 16 bytes for each vector; those without an error code push a zero. */
.pushsection .text.entry, "ax", @progbits
.balign 16
.globl entry_stubs
entry_stubs:
.set VECTOR, 0
.rept 256
    .balign 16
    .if (VECTOR == 8) || ((VECTOR >= 10) && (VECTOR <= 14)) || (VECTOR == 17) || (VECTOR == 21)
    .else
    pushq $0
    .endif
    pushq $VECTOR
    .if VECTOR == 1
    jmp entry_debug
    .elseif VECTOR == 2
    jmp entry_nmi
    .elseif VECTOR == 8
    jmp entry_fatal
    .elseif VECTOR == 18
    jmp entry_machine_check
    .else
    jmp entry_common
    .endif
    .set VECTOR, VECTOR + 1
.endr

.balign 16
.type entry_common, @function
entry_common:
    testb $3, 24(%rsp)                  /* CS of what was interrupted */
    jz from_shim
    swapgs
    FENCE
    PUSH_GPRS
saved:
    /* One test for all that is rare. */
    cmpb $0, %gs:{PERCPU_ENTRY_FLAGS}
    jne entry_special
save_xmm:
    /* The frame stays on the entry stack, which ring 3's tables have; Rust runs on a stack that
       they do not have. */
    movq %rsp, %rdi
    movq %gs:{PERCPU_STACK_TOP}, %rsp
    subq $XMM_SIZE, %rsp
    XMM movaps, save
    /* The guest chooses DF at an exception; Rust relies on its being clear. */
    cld
    call shim_entry
    XMM movaps, load
    /* The frame lies at the top, whatever the entry was. */
    movq %gs:{PERCPU_ENTRY_TOP}, %rsp
    subq $R_SIZE, %rsp
to_guest:
    cmpb $0, %gs:{PERCPU_ENTRY_FLAGS}
    jne exit_special
leave:
    /* What shim_entry has returned; exit_special keeps it. */
    testl %eax, %eax
    jnz leave_by_sysret
    POP_GPRS
    addq $16, %rsp                      /* vector and error code */
    swapgs
.globl entry_iret
entry_iret:
    iretq

leave_by_sysret:
    POP_GPRS
    /* From here on rsp is the guest's, in ring 0. Interrupts are off, SYSRET does not fault with
       a canonical rip, and NMI, #MC, #DB have stacks of their own. */
    movq 40(%rsp), %rsp                 /* past vector, error, rip, cs, rflags */
    swapgs
    sysretq

/* What is not done on every way in and out.  Ring 3 had page tables of its own; the guest has
   CR0.TS set, and Rust must not have; SMAP is on, and the guest may have entered with AC set; the
   guest goes on with another page table, by which the shim's own pages are the same; the CPU's
   buffers are to be cleared, which VERW does. */
entry_special:
    /* First: the stack that xmm registers are saved to is not in ring 3's tables. */
    testb ${ENTRY_SPLIT}, %gs:{PERCPU_ENTRY_FLAGS}
    jz 1f
    movq %gs:{PERCPU_SHIM_TABLE}, %rcx
    movq %rcx, %cr3
1:  testb ${ENTRY_SMAP}, %gs:{PERCPU_ENTRY_FLAGS}
    jz 1f
    clac
1:  testb ${ENTRY_TS}, %gs:{PERCPU_ENTRY_FLAGS}
    jz save_xmm
    /* Before save_xmm, which would be #NM with TS set. */
    clts
    jmp save_xmm
exit_special:
    /* With split tables this bit is clear by now: before_guest has dealt with it. */
    testb ${EXIT_SWITCH}, %gs:{PERCPU_ENTRY_FLAGS}
    jz 1f
    andb $~{EXIT_SWITCH}, %gs:{PERCPU_ENTRY_FLAGS}
    movq %gs:{PERCPU_NEXT_TABLE}, %rcx
    movq %rcx, %cr3
1:  testb ${ENTRY_TS}, %gs:{PERCPU_ENTRY_FLAGS}
    jz 1f
    /* After the xmm registers were loaded, which would be #NM with TS set. */
    movq %cr0, %rcx
    orq $8, %rcx
    movq %rcx, %cr0
1:  testb ${ENTRY_SPLIT}, %gs:{PERCPU_ENTRY_FLAGS}
    jz 1f
    /* Nothing of the shim but this section and the window is mapped behind this. */
    movq %gs:{PERCPU_GUEST_TABLE}, %rcx
    movq %rcx, %cr3
1:  testb ${EXIT_CLEAR}, %gs:{PERCPU_ENTRY_FLAGS}
    jz leave
    /* Last: what is loaded after it are the guest's own registers. */
    verw %gs:{PERCPU_SELECTOR}
    jmp leave

/* SYSCALL: rcx = rip, r11 = rflags, rsp still the guest's. */
.balign 16
.globl entry_syscall
entry_syscall:
    swapgs
    /* SYSCALL comes from ring 3 alone, so no branch chooses this SWAPGS and no FENCE is needed.
       SFMASK has cleared IF, TF and AC. */
    movq %rsp, %gs:{PERCPU_SCRATCH}
    movq %gs:{PERCPU_ENTRY_TOP}, %rsp
    pushq ${GUEST_SS}
    pushq %gs:{PERCPU_SCRATCH}
    pushq %r11
    pushq ${GUEST_CS64}
    pushq %rcx
    pushq $0
    pushq ${VECTOR_SYSCALL}
    PUSH_GPRS
    jmp saved

/* SYSCALL from 32-bit code. */
.globl entry_syscall32
entry_syscall32:
    swapgs
    movq %rsp, %gs:{PERCPU_SCRATCH}
    movq %gs:{PERCPU_ENTRY_TOP}, %rsp
    pushq ${GUEST_SS}
    pushq %gs:{PERCPU_SCRATCH}
    pushq %r11
    pushq ${GUEST_CS32}
    pushq %rcx
    pushq $0
    pushq ${VECTOR_SYSCALL32}
    PUSH_GPRS
    jmp saved

/* SYSENTER: rsp came from its MSR, the guest's rip, rsp and flags are gone. */
.globl entry_sysenter
entry_sysenter:
    /* SYSENTER clears IF and nothing else. With TF set #DB comes here, and entry_debug goes on
       without it; AC and DF are cleared on the way. NT stays, and IRET would fault with it: but
       what follows is always a handler of the guest's kernel, which SYSRET enters. */
    swapgs
    movq %gs:{PERCPU_ENTRY_TOP}, %rsp
    pushq ${GUEST_SS}
    pushq $0
    pushq $0x202
    pushq $3
    pushq $0
    pushq $0
    pushq ${VECTOR_SYSENTER}
    PUSH_GPRS
    jmp saved

/* The exceptions below have stacks of their own, each with the address of the PerCpu block above
   what the CPU pushes: GS may still be, or be again, the guest's when they interrupt the shim. */

/* #DB has one since MOV SS can delay it into the first instruction of the SYSCALL entry, where rsp
   is still the guest's.  From ring 3 the frame moves to the entry stack; from ring 0 there is
   nothing to do, as breakpoints on the shim are refused.

   MOV SS can also delay one until an ICEBP behind it has raised another.  Should the CPU deliver
   both, the second comes before the first instruction of this stub, upon the same stack, and where
   the guest was is lost. */
entry_debug:
    testb $3, 24(%rsp)
    jz 1f
    swapgs
    FENCE
    MOVE_FRAME
    jmp saved
    /* Either the shim was interrupted, or this very stub before its first instruction; in that
       case GS still is the guest's. */
1:  pushq %rax
    leaq entry_stubs + 16(%rip), %rax
    cmpq %rax, 24(%rsp)
    popq %rax
    je 2f
    addq $16, %rsp
    andq $~0x100, 16(%rsp)              /* no TF when the shim goes on */
    iretq
2:  swapgs
    FENCE
    movq %gs:{PERCPU_ENTRY_TOP}, %rsp
    pushq ${GUEST_SS}
    pushq $0
    pushq $0x202
    pushq ${GUEST_CS64}
    pushq $0
    pushq $0
    pushq ${VECTOR_LOST_FRAME}
    PUSH_GPRS
    jmp saved

/* #MC: one after which the CPU can go on is noted like an NMI, and acknowledged (MCG_STATUS), for
   the next would shut the machine down otherwise.  One that has broken the shim ends the domain. */
entry_machine_check:
    pushq %rax
    pushq %rcx
    pushq %rdx
    movl ${MCG_STATUS}, %ecx
    rdmsr
    testb $3, 48(%rsp)                  /* ring 3 may go on in any case, if it likes */
    jnz 1f
    testb $1, %al                       /* RIPV */
    jz 2f
1:  xorl %eax, %eax
    xorl %edx, %edx
    wrmsr
    /* Not by way of GS, which may be either. */
    movq 80(%rsp), %rax                 /* the PerCpu block */
    orb ${HOST_MACHINE_CHECK}, {PERCPU_HOST_TRAPS}(%rax)
    popq %rdx
    popq %rcx
    popq %rax
    jmp host_trap
2:  popq %rdx
    popq %rcx
    popq %rax
    jmp entry_fatal

/* NMI: noted, and looked at on the next way out.  In the shim, that is all: it may have come
   between any two instructions. */
entry_nmi:
    pushq %rax
    movq 64(%rsp), %rax                 /* the PerCpu block */
    orb ${HOST_NMI}, {PERCPU_HOST_TRAPS}(%rax)
    popq %rax
host_trap:
    testb $3, 24(%rsp)
    jz 1f
    swapgs
    FENCE
    MOVE_FRAME
    /* The way back may be SYSRET, and NMIs stay blocked until an IRET. */
    /* An IRET that goes no further than `saved`. */
    movq %rsp, %rax
    pushq $0
    pushq %rax
    pushfq
    pushq ${SHIM_CS}
    leaq saved(%rip), %rax
    pushq %rax
    iretq
1:  addq $16, %rsp
    iretq

/* #DF, and an #MC that nothing can go on after, are reported and end the domain, with the page
   tables that have all of the shim, whatever was loaded. */
entry_fatal:
    PUSH_GPRS
    movq %rsp, %rdi
    movq R_SIZE(%rdi), %rax             /* the PerCpu block */
    movq {PERCPU_FATAL_TABLE}(%rax), %rcx
    /* A table of the shim's own, for what is loaded may be the very reason. */
    movq %rcx, %cr3
    andq $~15, %rsp
    cld
    call kernel_fault
    ud2

from_shim:
    cmpq ${VECTOR_UPCALL}, (%rsp)
    je 2f
    pushq %rax
    /* No GS in here: it is the guest's at the IRET, and the shim's at a fixup. */
    leaq entry_iret(%rip), %rax
    cmpq %rax, 24(%rsp)
    popq %rax
    je failed_iret
    PUSH_GPRS
    subq $XMM_SIZE, %rsp
    XMM movaps, save
    cld
    leaq XMM_SIZE(%rsp), %rdi
    call kernel_fault                   /* returns only after it has moved rip to a fixup */
    XMM movaps, load
    addq $XMM_SIZE, %rsp
    POP_GPRS
    addq $16, %rsp
    iretq

/* A host that emulates the delivery of INT3 (one without next-rip saving) may inject its upcall
   right behind it, interrupts off or not.  The event is looked at on the way back anyway. */
2:  addq $16, %rsp
    iretq

/* The guest's own frame could not be loaded.  The general registers are the guest's, its frame
   still lies at the top of the entry stack: rebuild what is missing and treat it as an entry. */
failed_iret:
    swapgs
    FENCE
    addq $8, %rsp                       /* vector */
    popq %gs:{PERCPU_SCRATCH}           /* error code */
    /* The CPU has pushed the fault's frame below the five words that IRET was to load, so those
       are whole. */
    movq %gs:{PERCPU_ENTRY_TOP}, %rsp
    subq $40, %rsp
    pushq %gs:{PERCPU_SCRATCH}
    pushq ${VECTOR_FAILED_IRET}
    PUSH_GPRS
    jmp saved

/* Runs the guest for the first time: rdi = regs.  No register of the FPU keeps what the shim had
   there: FNINIT for what FXRSTOR leaves alone on some CPUs (the last instruction's addresses). */
.globl enter_guest
.type enter_guest, @function
enter_guest:
    movq %rdi, %rsi
    /* Into the place where every way out looks for the frame. */
    movq %gs:{PERCPU_ENTRY_TOP}, %rdi
    subq $R_SIZE, %rdi
    movq %rdi, %rsp
    movl $R_SIZE / 8, %ecx
    cld
    rep movsq
    fninit
    fxrstor first_fpu(%rip)
    /* By IRET: these registers are no answer to a SYSCALL. */
    xorl %eax, %eax
    jmp to_guest

/* The FPU as a PV guest finds it: FCW and MXCSR as after a reset, nothing else. */
.pushsection .rodata.first_fpu, "a", @progbits
.balign 16
first_fpu:
    .word 0x037f
    .skip 22
    .long 0x1f80
    .skip 512 - 28
.popsection

/* fn guest_copy(dst: *mut u8, src: *const u8, len: usize) -> bool: true on a fault.  One of the
   two lies in guest memory. */
.balign 16
.globl guest_copy
.type guest_copy, @function
guest_copy:
    movq %rdx, %rcx
    shrq $3, %rcx
.globl fault_copy_start
fault_copy_start:
    /* Nothing is on the stack while a fault may come: fault_return returns to the caller of
       this. DF is clear, as always in the shim. */
    rep movsq
    movl %edx, %ecx
    andl $7, %ecx
    rep movsb
.globl fault_copy_end
fault_copy_end:
    xorl %eax, %eax
    ret
.size guest_copy, . - guest_copy

/* The same between stac and clac, for machines with SMAP. */
.globl guest_copy_smap
.type guest_copy_smap, @function
guest_copy_smap:
    stac
    /* By a call, so that a fault comes back to here and AC is cleared on either way. */
    call guest_copy
    clac
    ret
.size guest_copy_smap, . - guest_copy_smap

/* fn read_msr_safe(index: u32, value: &mut u64) -> bool: true on a fault. */
.globl read_msr_safe
.type read_msr_safe, @function
read_msr_safe:
    movl %edi, %ecx
.globl fault_rdmsr
fault_rdmsr:
    rdmsr
    shlq $32, %rdx
    orq %rdx, %rax
    movq %rax, (%rsi)
    xorl %eax, %eax
    ret
.size read_msr_safe, . - read_msr_safe

/* fn write_msr_safe(index: u32, value: u64) -> bool: true on a fault. */
.globl write_msr_safe
.type write_msr_safe, @function
write_msr_safe:
    movl %edi, %ecx
    movl %esi, %eax
    movq %rsi, %rdx
    shrq $32, %rdx
.globl fault_wrmsr
fault_wrmsr:
    wrmsr
    xorl %eax, %eax
    ret
.size write_msr_safe, . - write_msr_safe

/* fn load_ds, load_es, load_fs, load_gs (selector: u16) -> bool: true on a fault, after which the register is
   null.  For gs the caller saves the shim's base, which the load overwrites, and puts it back. */
.macro LOAD_SEGMENT reg
.globl load_\reg
.type load_\reg, @function
load_\reg:
    movl %edi, %ecx
.globl fault_\reg
fault_\reg:
    movl %ecx, %\reg
    xorl %eax, %eax
    ret
.size load_\reg, . - load_\reg
.endm
LOAD_SEGMENT ds
LOAD_SEGMENT es
LOAD_SEGMENT fs
LOAD_SEGMENT gs

/* Where every faulting instruction above goes on: out of its function, with a fault. */
.globl fault_return
fault_return:
    movl $1, %eax
    ret
.popsection

.pushsection .rodata.fences, "a", @progbits
.globl fences_end
fences_end:
.popsection
