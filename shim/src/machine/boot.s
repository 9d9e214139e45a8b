/* PVH entry (docs/misc/pvh.pandoc of Xen): 32-bit protected mode, paging off, no stack,
   %ebx = physical address of hvm_start_info.  Builds the first page tables and calls
   shim_main(start_info) in long mode on the boot stack.

   First tables: the low 4 GiB at 0 and in the direct map, the image at its link address.
   Everything is written relative to %esi, the physical address of this code. */

.pushsection .note.Xen, "a", @note
    .balign 4
    .long 4, 8, {PHYS32_ENTRY}      /* namesz, descsz, XEN_ELFNOTE_PHYS32_ENTRY */
    .asciz "Xen"
    .balign 4
    .quad pvh_start32_phys
    .balign 4
.popsection

.pushsection .text.boot, "ax", @progbits
.code32
.globl pvh_start32
.type pvh_start32, @function
pvh_start32:
    cld
    cli
    movl $pvh_start32_phys, %esi
    movl %ebx, %ebp                                 /* kept for 64-bit code */

    /* Slot 0 and the direct map share one PDPT. Slot 0 is for the few instructions until the
       jump to the link address. */
    leal (boot_pml4 - pvh_start32)(%esi), %edi
    leal (boot_pdpt_direct - pvh_start32 + 3)(%esi), %eax
    movl %eax, (%edi)
    movl %eax, {DIRECT_SLOT} * 8(%edi)
    leal (boot_pdpt_image - pvh_start32 + 3)(%esi), %eax
    movl %eax, {IMAGE_SLOT} * 8(%edi)

    leal (boot_pd_direct - pvh_start32 + 3)(%esi), %eax
    leal (boot_pdpt_direct - pvh_start32)(%esi), %edx
    movl $4, %ecx                                   /* four page directories, 1 GiB each */
1:  movl %eax, (%edx)
    addl $4096, %eax
    addl $8, %edx
    decl %ecx
    jnz 1b

    leal (boot_pd_image - pvh_start32 + 3)(%esi), %eax
    leal (boot_pdpt_image - pvh_start32)(%esi), %edx
    movl %eax, {IMAGE_L3_INDEX} * 8(%edx)
    /* One large page has all of the image, for link.ld keeps it below 2 MiB. */
    leal (boot_pd_image - pvh_start32)(%esi), %edx
    movl $0x200083, (%edx)                          /* 2 MiB page: present, writable */

    leal (boot_pd_direct - pvh_start32)(%esi), %edx
    movl $0x83, %eax
    movl $2048, %ecx
1:  movl %eax, (%edx)
    addl $0x200000, %eax
    addl $8, %edx
    decl %ecx
    jnz 1b

    /* Long mode begins with CR0.PG, so PAE and LME come first. NXE too: in the tables that
       follow bit 63 would be a reserved one. */
    movl %edi, %cr3
    movl %cr4, %eax
    orl $(1 << 5) | (1 << 9) | (1 << 10), %eax      /* PAE, OSFXSR, OSXMMEXCPT */
    movl %eax, %cr4
    movl $0xc0000080, %ecx
    rdmsr
    orl $(1 << 0) | (1 << 8) | (1 << 11), %eax      /* SCE, LME, NXE */
    wrmsr
    movl %cr0, %eax
    andl $~((1 << 2) | (1 << 3)), %eax              /* not EM, not TS: Rust uses SSE */
    orl ${CR0}, %eax
    movl %eax, %cr0

    /* This is compatibility mode now; the far return loads a 64-bit code segment. LGDT takes 32
       bits of the base here, which the physical address fits. */
    leal (boot_gdt - pvh_start32)(%esi), %eax
    movl %eax, (boot_gdtr + 2 - pvh_start32)(%esi)
    lgdt (boot_gdtr - pvh_start32)(%esi)
    leal (boot_stack_top - pvh_start32)(%esi), %esp
    leal (2f - pvh_start32)(%esi), %eax
    pushl $8
    pushl %eax
    lretl
.code64
    /* Null selectors: long mode looks at no base or limit of these. */
2:  xorl %eax, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %ss
    movl %eax, %fs
    movl %eax, %gs
    movabsq $3f, %rax                               /* leave the identity mapping */
    jmp *%rax
    /* The same stack by its link address, where it stays mapped in every address space. */
3:  leaq boot_stack_top(%rip), %rsp
    movl %ebp, %edi
    /* Ends the chain of frames that a backtrace follows. */
    xorl %ebp, %ebp
    call shim_main
    ud2
.size pvh_start32, . - pvh_start32
.popsection

.pushsection .data.boot, "aw", @progbits
    .balign 8
boot_gdt:
    .quad 0
    .quad 0x00af9b000000ffff                        /* 0x08: 64-bit code */
boot_gdt_end:
boot_gdtr:
    .word boot_gdt_end - boot_gdt - 1
    .quad 0
.popsection

.pushsection .bss.boot, "aw", @nobits
    .balign 4096
boot_pml4:        .skip 4096
boot_pdpt_direct: .skip 4096
boot_pdpt_image:  .skip 4096
boot_pd_direct:   .skip 4096 * 4
boot_pd_image:    .skip 4096
.globl boot_stack_guard
boot_stack_guard: .skip 4096
boot_stack:       .skip {STACK_SIZE}
.globl boot_stack_top
boot_stack_top:
.popsection
