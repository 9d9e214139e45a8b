//! The page of stubs that older kernels call the hypervisor through.

use xen_abi::{PAGE_SIZE, hypercall};

const STUB: usize = 32;

/// Fills `page` with one 32-byte stub per hypercall number.
///
/// A stub keeps what the processor's SYSCALL would destroy.  That of `iret` does not come back:
/// the frame it leaves on the stack, with `rax`, `r11` and `rcx` on top, is its argument.
pub fn fill_hypercall_page(page: &mut [u8; PAGE_SIZE]) {
    // push %rcx; push %r11; mov $nr,%eax; syscall; pop %r11; pop %rcx; ret
    const CALL: [u8; 14] = [
        0x51, 0x41, 0x53, 0xb8, 0, 0, 0, 0, 0x0f, 0x05, 0x41, 0x5b, 0x59, 0xc3,
    ];
    // push %rcx; push %r11; push %rax; mov $nr,%eax; syscall
    const IRET: [u8; 11] = [0x51, 0x41, 0x53, 0x50, 0xb8, 0, 0, 0, 0, 0x0f, 0x05];
    const INT3: u8 = 0xcc;

    page.fill(INT3);
    for (number, stub) in (0u32..).zip(page.chunks_exact_mut(STUB)) {
        if u64::from(number) == hypercall::IRET {
            stub[..IRET.len()].copy_from_slice(&IRET);
            stub[5..9].copy_from_slice(&number.to_le_bytes());
        } else {
            stub[..CALL.len()].copy_from_slice(&CALL);
            stub[4..8].copy_from_slice(&number.to_le_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use xen_abi::PAGE_SIZE;

    use super::fill_hypercall_page;

    #[test]
    fn stubs_have_the_bytes_that_kernels_expect() {
        let mut page = [0; PAGE_SIZE];
        fill_hypercall_page(&mut page);
        assert_eq!(
            page[17 * 32..17 * 32 + 15],
            [
                0x51, 0x41, 0x53, 0xb8, 17, 0, 0, 0, 0x0f, 0x05, 0x41, 0x5b, 0x59, 0xc3, 0xcc
            ]
        );
        assert_eq!(
            page[23 * 32..23 * 32 + 12],
            [0x51, 0x41, 0x53, 0x50, 0xb8, 23, 0, 0, 0, 0x0f, 0x05, 0xcc]
        );
        assert_eq!(page[127 * 32 + 4], 127);
    }
}
