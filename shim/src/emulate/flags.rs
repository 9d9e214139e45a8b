//! Integer arithmetic with the exact flags of the CPU.

use super::insn::{Alu, Unary, Width};
use super::regs::{AF, CF, OF, PF, SF, ZF};

/// The flags that arithmetic sets.
pub const ARITHMETIC: u64 = CF | PF | AF | ZF | SF | OF;

/// A result, and the flags it sets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Computed {
    /// The result, within the operand's width.
    pub value: u64,
    /// Which flags change.
    pub mask: u64,
    /// Their new values.
    pub flags: u64,
}

/// Adds two operands and a carry.
pub fn add(width: Width, a: u64, b: u64, carry: bool) -> Computed {
    let (a, b) = (a & width.mask(), b & width.mask());
    let sum = u128::from(a) + u128::from(b) + u128::from(carry);
    let value = sum as u64 & width.mask();
    let overflow = (a ^ value) & (b ^ value) & width.sign() != 0;
    computed(
        width,
        value,
        sum > u128::from(width.mask()),
        overflow,
        (a ^ b ^ value) & 0x10 != 0,
    )
}

/// Subtracts the second operand and a borrow from the first.
pub fn sub(width: Width, a: u64, b: u64, borrow: bool) -> Computed {
    let (a, b) = (a & width.mask(), b & width.mask());
    let value = a.wrapping_sub(b).wrapping_sub(borrow.into()) & width.mask();
    let carry = u128::from(a) < u128::from(b) + u128::from(borrow);
    let overflow = (a ^ b) & (a ^ value) & width.sign() != 0;
    computed(width, value, carry, overflow, (a ^ b ^ value) & 0x10 != 0)
}

/// Applies two-operand arithmetic; `rflags` supplies the carry of those that use it.
pub fn alu(op: Alu, width: Width, a: u64, b: u64, rflags: u64) -> Computed {
    let carry = rflags & CF != 0;
    let logic = |value: u64| computed(width, value & width.mask(), false, false, false);
    match op {
        Alu::Add => add(width, a, b, false),
        Alu::Adc => add(width, a, b, carry),
        Alu::Sub => sub(width, a, b, false),
        Alu::Sbb => sub(width, a, b, carry),
        Alu::And => logic(a & b),
        Alu::Or => logic(a | b),
        Alu::Xor => logic(a ^ b),
    }
}

/// Applies one-operand arithmetic.
pub fn unary(op: Unary, width: Width, a: u64) -> Computed {
    match op {
        Unary::Inc => keep_carry(add(width, a, 1, false)),
        Unary::Dec => keep_carry(sub(width, a, 1, false)),
        Unary::Neg => sub(width, 0, a, false),
        Unary::Not => Computed {
            value: !a & width.mask(),
            mask: 0,
            flags: 0,
        },
    }
}

const fn keep_carry(mut computed: Computed) -> Computed {
    computed.mask &= !CF;
    computed
}

fn computed(width: Width, value: u64, carry: bool, overflow: bool, adjust: bool) -> Computed {
    let flag = |set: bool, bit: u64| if set { bit } else { 0 };
    let flags = flag(carry, CF)
        | flag((value as u8).count_ones().is_multiple_of(2), PF)
        | flag(adjust, AF)
        | flag(value == 0, ZF)
        | flag(value & width.sign() != 0, SF)
        | flag(overflow, OF);
    Computed {
        value,
        mask: ARITHMETIC,
        flags,
    }
}
