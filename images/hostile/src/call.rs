//! Hypercalls that nobody watches.

use core::arch::asm;

/// Makes a hypercall that is known to return.
pub fn hypercall(number: u64, args: [u64; 5]) -> u64 {
    let result;
    // SAFETY: callers pass what they may lose; events are masked.
    unsafe {
        asm!("syscall", inlateout("rax") number => result, inlateout("rdi") args[0] => _,
             inlateout("rsi") args[1] => _, inlateout("rdx") args[2] => _,
             inlateout("r10") args[3] => _, inlateout("r8") args[4] => _,
             out("rcx") _, out("r11") _, options(nostack));
    }
    result
}
