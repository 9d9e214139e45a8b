//! The way between ring 3 and the shim, word by word: frames as
//! `xen/arch/x86/x86_64/entry.S` builds them, `iret` as `xen/arch/x86/pv/iret.c` takes them back.

mod exceptions;
mod first;
mod frames;
mod iret;
mod returns;
mod syscalls;

use crate::cpu::Regs;
use crate::testing::Bench;

/// Fills every register with a value of its own.
fn distinct(regs: &mut Regs) {
    (regs.r15, regs.r14, regs.r13, regs.r12) = (0x15, 0x14, 0x13, 0x12);
    (regs.rbp, regs.rbx, regs.r11, regs.r10) = (0xbb, 0xb0, 0x11, 0x10);
    (regs.r9, regs.r8, regs.rax, regs.rcx) = (0x9, 0x8, 0xaa, 0xcc);
    (regs.rdx, regs.rsi, regs.rdi) = (0xdd, 0x51, 0xd1);
}

/// Returns `count` words of the current stack.
fn stack(bench: &Bench, count: u64) -> Vec<u64> {
    (0..count)
        .map(|index| bench.get(bench.regs.rsp + index * 8))
        .collect()
}
