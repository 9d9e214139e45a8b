//! Stores to live page tables, which the guest's kernel makes through read-only mappings.
//!
//! A paravirtualised kernel changes leaf entries of page tables in use with ordinary instructions
//! (`xchg`, `lock cmpxchg`, `lock and`, `lock btr`, `mov` …) and relies on the hypervisor to carry
//! them out.  [`plan`] says what an instruction would leave in the 8-byte entry it hits, given what
//! is there now; the caller lets the memory manager validate and exchange the entry, and only then
//! does [`Plan::commit`] touch the registers.  As the CPU and other vCPUs may change the entry in
//! between, [`execute`] repeats until plan and entry agree.

use super::flags::{self, Computed};
use super::insn::{BitOp, Gpr, Insn, Source, Store, StoreOp, Strings, Width};
use super::regs::{After, CF, DF, RAX, RCX, RDI, RSI};
use super::regs::{complete, read, retire, set_flags, write};
use super::{Decoded, address::SegmentBases, address::store_target};
use crate::cpu::Regs;

/// How the entry is to be changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Overwrite it, whatever is there by now.
    Write,
    /// Replace it if it still is what the plan was made from.
    CompareExchange,
    /// Leave it: a comparison failed, or a repeat count is zero.
    Keep,
}

/// What an instruction does to an entry, and later to the registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    /// How to store.
    pub kind: Kind,
    /// The entry from which the plan was made.
    pub expected: u64,
    /// The entry after the instruction.
    pub new: u64,
    register: Option<(Gpr, u64)>,
    flag_mask: u64,
    flags: u64,
    width: Width,
    step: Step,
}

/// How the instruction ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// It is done and so many bytes long.
    Retire(u8),
    /// One element of a string has been stored.
    Element {
        len: u8,
        strings: Strings,
        moves_source: bool,
    },
}

/// The instruction is no store, or not within one naturally aligned 8-byte entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotAnEntry;

/// Plans a store to linear address `target` whose 8-byte entry is `current`.
///
/// `source` is the element that `movs` has to store, in its low bytes; other stores ignore it.
pub fn plan(
    decoded: &Decoded,
    regs: &Regs,
    target: u64,
    current: u64,
    source: u64,
) -> Result<Plan, NotAnEntry> {
    let Insn::Store(Store { op, width, .. }) = decoded.insn else {
        return Err(NotAnEntry);
    };
    let offset = (target & 7) as u8;
    // A store across two entries would have to be checked as two. Xen refuses it as well
    // (`ptwr_emulated_update`).
    if offset + width.bytes() > 8 {
        return Err(NotAnEntry);
    }
    let shift = 8 * u32::from(offset);
    let old = (current >> shift) & width.mask();
    let operand = |source| match source {
        Source::Reg(reg) => read(regs, reg, width),
        Source::Imm(value) => value & width.mask(),
    };
    let accumulator = Gpr {
        n: RAX,
        high: false,
    };
    // A full entry owes nothing to what was there. A narrower store keeps the other bytes, so it is
    // good only for the entry that it was made from.
    let overwrites = if width == Width::W64 {
        Kind::Write
    } else {
        Kind::CompareExchange
    };

    let mut kind = Kind::CompareExchange;
    let mut register = None;
    let mut computed = Computed {
        value: old,
        mask: 0,
        flags: 0,
    };
    let mut step = Step::Retire(decoded.len);
    match op {
        StoreOp::Mov(source) => {
            kind = overwrites;
            computed.value = operand(source);
        }
        StoreOp::Xchg(reg) => {
            computed.value = read(regs, reg, width);
            register = Some((reg, old));
        }
        StoreOp::Cmpxchg(reg) => {
            let wanted = read(regs, accumulator, width);
            computed = flags::sub(width, wanted, old, false);
            if wanted == old {
                computed.value = read(regs, reg, width);
            } else {
                // The CPU would write the old value back, which nobody can tell from no store at
                // all.
                kind = Kind::Keep;
                computed.value = old;
                register = Some((accumulator, old));
            }
        }
        StoreOp::Xadd(reg) => {
            computed = flags::add(width, old, read(regs, reg, width), false);
            register = Some((reg, old));
        }
        StoreOp::Alu(op, source) => {
            computed = flags::alu(op, width, old, operand(source), regs.rflags);
        }
        StoreOp::Unary(op) => computed = flags::unary(op, width, old),
        StoreOp::Bit(op, source) => computed = bit(op, width, old, operand(source)),
        StoreOp::Stos(strings) | StoreOp::Movs(strings) => {
            let moves_source = matches!(op, StoreOp::Movs(_));
            if strings.rep && count(regs, strings) == 0 {
                kind = Kind::Keep;
            } else {
                kind = overwrites;
                step = Step::Element {
                    len: decoded.len,
                    strings,
                    moves_source,
                };
                computed.value = if moves_source {
                    source
                } else {
                    read(regs, accumulator, width)
                };
            }
        }
    }
    let field = width.mask() << shift;
    let new = (current & !field) | ((computed.value & width.mask()) << shift);
    let Computed {
        mask: flag_mask,
        flags,
        ..
    } = computed;
    Ok(Plan {
        kind,
        expected: current,
        new,
        register,
        flag_mask,
        flags,
        width,
        step,
    })
}

/// Changes one bit; only the carry flag is defined afterwards, and real CPUs leave the others.
fn bit(op: BitOp, width: Width, old: u64, index: u64) -> Computed {
    let bit = 1 << (index & u64::from(width.bits() - 1));
    let value = match op {
        BitOp::Set => old | bit,
        BitOp::Reset => old & !bit,
        BitOp::Complement => old ^ bit,
    };
    Computed {
        value,
        mask: CF,
        flags: if old & bit == 0 { 0 } else { CF },
    }
}

/// The register that counts repetitions, in the width of addresses.
fn count(regs: &Regs, strings: Strings) -> u64 {
    read(
        regs,
        Gpr {
            n: RCX,
            high: false,
        },
        address_width(strings),
    )
}

const fn address_width(strings: Strings) -> Width {
    if strings.addr32 {
        Width::W32
    } else {
        Width::W64
    }
}

/// Advances the registers of a string instruction past one element; it retires with the last.
pub(super) fn finish_element(regs: &mut Regs, len: u8, strings: Strings, moved: &[u8]) -> After {
    let width = address_width(strings);
    let size = u64::from(strings.width.bytes());
    let delta = if regs.rflags & DF == 0 {
        size
    } else {
        size.wrapping_neg()
    };
    for &n in moved {
        let reg = Gpr { n, high: false };
        let next = read(regs, reg, width).wrapping_add(delta);
        write(regs, reg, width, next);
    }
    // One element for each fault, as on the CPU, which can be interrupted between any two.
    if strings.rep {
        let left = count(regs, strings).wrapping_sub(1);
        write(
            regs,
            Gpr {
                n: RCX,
                high: false,
            },
            width,
            left,
        );
        if left != 0 {
            return complete(regs);
        }
    }
    retire(regs, len)
}

impl Plan {
    /// Applies the instruction's effect on the registers, once the entry has been changed.
    pub fn commit(self, regs: &mut Regs) -> After {
        if let Some((reg, value)) = self.register {
            write(regs, reg, self.width, value);
        }
        set_flags(regs, self.flag_mask, self.flags);
        match self.step {
            Step::Retire(len) => retire(regs, len),
            Step::Element {
                len,
                strings,
                moves_source: true,
            } => finish_element(regs, len, strings, &[RDI, RSI]),
            Step::Element {
                len,
                strings,
                moves_source: false,
            } => finish_element(regs, len, strings, &[RDI]),
        }
    }
}

/// A page-table entry that the memory manager validates before it changes it.
pub trait Entry {
    /// Why a new value is not acceptable.
    type Refused;
    /// Returns the entry as it is now.
    fn load(&mut self) -> u64;
    /// Validates and stores `new`; with `expected`, only if the entry still is that.  Returns
    /// whether it was stored.
    fn store(&mut self, expected: Option<u64>, new: u64) -> Result<bool, Self::Refused>;
}

/// How an emulated store ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome<E> {
    /// It happened.
    Done(After),
    /// The entry kept changing: nothing happened, let the guest run the instruction again.
    Again,
    /// The memory manager refused the new value: the guest gets its page fault.
    Refused(E),
    /// Not a store to this entry: the guest gets its page fault.
    NotHandled,
}

/// How often a store is tried before interrupts get a chance.
const ATTEMPTS: u32 = 16;

/// Executes a store that faulted on linear address `fault`.
///
/// The decoded operand must be exactly there; `source` is as for [`plan`].
pub fn execute<E: Entry>(
    decoded: &Decoded,
    regs: &mut Regs,
    bases: SegmentBases,
    fault: u64,
    source: u64,
    entry: &mut E,
) -> Outcome<E::Refused> {
    // A store that begins in the page before, or an instruction that has changed since it faulted,
    // is not the one that the CPU refused.
    if store_target(decoded, regs, bases) != Some(fault) {
        return Outcome::NotHandled;
    }
    for _ in 0..ATTEMPTS {
        let Ok(plan) = plan(decoded, regs, fault, entry.load(), source) else {
            return Outcome::NotHandled;
        };
        let stored = match plan.kind {
            Kind::Keep => Ok(true),
            Kind::Write => entry.store(None, plan.new),
            Kind::CompareExchange => entry.store(Some(plan.expected), plan.new),
        };
        match stored {
            // Registers and flags only now: a store that is made again must find them as they were.
            Ok(true) => return Outcome::Done(plan.commit(regs)),
            Ok(false) => {}
            Err(refused) => return Outcome::Refused(refused),
        }
    }
    Outcome::Again
}

#[cfg(test)]
mod tests;
