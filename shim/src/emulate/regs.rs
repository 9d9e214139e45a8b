//! Operand registers, and the partial-register rules of x86.

use super::insn::{Gpr, Width};
use crate::cpu::Regs;

/// Carry.
pub const CF: u64 = 1 << 0;
/// Parity of the low byte.
pub const PF: u64 = 1 << 2;
/// Carry out of bit 3.
pub const AF: u64 = 1 << 4;
/// Zero.
pub const ZF: u64 = 1 << 6;
/// Sign.
pub const SF: u64 = 1 << 7;
/// Single step.
pub const TF: u64 = 1 << 8;
/// Direction of string instructions.
pub const DF: u64 = 1 << 10;
/// Signed overflow.
pub const OF: u64 = 1 << 11;
/// Resume: suppresses instruction breakpoints for one instruction.
pub const RF: u64 = 1 << 16;

/// The number of `rax`.
pub const RAX: u8 = 0;
/// The number of `rcx`.
pub const RCX: u8 = 1;
/// The number of `rdx`.
pub const RDX: u8 = 2;
/// The number of `rbx`.
pub const RBX: u8 = 3;
/// The number of `rsp`.
pub const RSP: u8 = 4;
/// The number of `rsi`.
pub const RSI: u8 = 6;
/// The number of `rdi`.
pub const RDI: u8 = 7;

/// What follows an emulated instruction.
#[must_use = "a single-stepped instruction owes the guest a debug trap"]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum After {
    /// Nothing: go on with the next instruction.
    Continue,
    /// The guest is single-stepping: deliver #DB with `DR6.BS`.
    DebugTrap,
}

/// Reads an operand register, zero-extended.
pub fn read(regs: &Regs, reg: Gpr, width: Width) -> u64 {
    let value = regs.gpr(reg.n);
    if reg.high {
        (value >> 8) & 0xff
    } else {
        value & width.mask()
    }
}

/// Writes an operand register: 32 bits clear the upper half, 8 and 16 bits leave the rest alone.
pub fn write(regs: &mut Regs, reg: Gpr, width: Width, value: u64) {
    let old = regs.gpr(reg.n);
    let new = match width {
        Width::W64 => value,
        Width::W32 => value & Width::W32.mask(),
        Width::W8 if reg.high => (old & !0xff00) | ((value & 0xff) << 8),
        Width::W16 | Width::W8 => (old & !width.mask()) | (value & width.mask()),
    };
    regs.set_gpr(reg.n, new);
}

/// Replaces the flags in `mask`.
pub fn set_flags(regs: &mut Regs, mask: u64, value: u64) {
    regs.rflags = (regs.rflags & !mask) | (value & mask);
}

/// Completes an instruction: steps over its `len` bytes.
///
/// The CPU pushes RF with every fault so that the instruction can be restarted; as it has been
/// executed after all, RF is cleared and a single-step trap becomes due.
pub fn retire(regs: &mut Regs, len: u8) -> After {
    regs.rip = regs.rip.wrapping_add(len.into());
    complete(regs)
}

/// Ends one iteration of a repeated instruction, which stays where it is.
pub fn complete(regs: &mut Regs) -> After {
    let flags = regs.rflags;
    regs.rflags = flags & !RF;
    if flags & TF == 0 {
        After::Continue
    } else {
        After::DebugTrap
    }
}

#[cfg(test)]
mod tests {
    use super::{After, Gpr, RF, Regs, TF, Width, read, retire, write};

    #[test]
    fn partial_writes_follow_the_architecture() {
        let mut regs = Regs::default();
        regs.set_gpr(3, 0x1122_3344_5566_7788);
        let bh = Gpr { n: 3, high: true };
        let bx = Gpr { n: 3, high: false };
        assert_eq!(read(&regs, bh, Width::W8), 0x77);
        write(&mut regs, bh, Width::W8, 0xab);
        assert_eq!(regs.gpr(3), 0x1122_3344_5566_ab88);
        write(&mut regs, bx, Width::W16, 0xcdef);
        assert_eq!(regs.gpr(3), 0x1122_3344_5566_cdef);
        write(&mut regs, bx, Width::W32, 0xffff_ffff_0000_0001);
        assert_eq!(regs.gpr(3), 1);
    }

    #[test]
    fn retiring_clears_rf_and_owes_a_single_step_trap() {
        let mut regs = Regs {
            rip: u64::MAX,
            rflags: RF | TF | 2,
            ..Default::default()
        };
        assert_eq!(retire(&mut regs, 3), After::DebugTrap);
        assert_eq!((regs.rip, regs.rflags), (2, TF | 2));
    }
}
