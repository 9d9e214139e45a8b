//! Stores of the guest to live L1 entries through its read-only mappings.
//!
//! The guest's kernel changes its page tables with ordinary instructions; they fault, the emulator
//! decodes them, and this performs them: checked as by hypercall, and atomic against the CPU's
//! accessed and dirty bits, so the guest gets back exactly what its store replaced.

use xen_abi::mmu::Pte;
use xen_abi::{Errno, Mfn, PAGE_SIZE};

use super::entry::adjust_l1;
use super::update::same_reference;
use super::{FrameUse, Mm};
use crate::mem::Frames;

/// What a faulting instruction does to the bytes that it addresses; operands are in their low bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Store {
    /// `mov`, `xchg`.
    Write(u64),
    /// `cmpxchg`: writes `new` if the memory holds `old`.
    CompareExchange {
        /// What is expected.
        old: u64,
        /// What replaces it.
        new: u64,
    },
    /// `and`, `btr`.
    And(u64),
    /// `or`, `bts`.
    Or(u64),
    /// `xor`, `btc`.
    Xor(u64),
    /// `add`, `xadd`, `inc`; a subtraction adds the complement.
    Add(u64),
}

impl Store {
    /// Returns what the memory holds after the store if it held `seen`; `None` to leave it alone.
    /// Bits beyond the operand's width are the caller's to mask.
    const fn apply(self, seen: u64, mask: u64) -> Option<u64> {
        Some(match self {
            Self::Write(new) => new,
            Self::CompareExchange { old, new } if seen == old & mask => new,
            Self::CompareExchange { .. } => return None,
            Self::And(bits) => seen & bits,
            Self::Or(bits) => seen | bits,
            Self::Xor(bits) => seen ^ bits,
            Self::Add(bits) => seen.wrapping_add(bits),
        })
    }
}

impl<F: Frames + ?Sized> Mm<'_, F> {
    /// Performs a store of `width` (1, 2, 4 or 8) bytes at byte `offset` of `table`, a live L1 table,
    /// and returns the `width` bytes that it replaced or, for a failed comparison, saw.
    ///
    /// # Errors
    /// `EINVAL` when the frame is no L1 table at this moment, the access is misaligned, or the entry
    /// would be one that the guest may not have.
    #[inline]
    pub fn store_l1(
        &mut self,
        table: Mfn,
        offset: usize,
        width: usize,
        store: Store,
    ) -> Result<u64, Errno> {
        let sound = matches!(width, 1 | 2 | 4 | 8)
            && offset < PAGE_SIZE
            && offset.is_multiple_of(width)
            && self.ledger.used_as(table) == FrameUse::L1;
        if !sound {
            return Err(Errno::EINVAL);
        }
        let index = offset / 8;
        let shift = (offset % 8 * 8) as u32;
        let mask = u64::MAX >> (64 - 8 * width as u32);
        let mut old = self.load(table, index);
        loop {
            let part = old.0 >> shift & mask;
            let Some(result) = store.apply(part, mask) else {
                return Ok(part);
            };
            let new = Pte(old.0 & !(mask << shift) | (result & mask) << shift);
            match self.exchange_l1(table, index, old, new)? {
                Ok(()) => return Ok(part),
                Err(seen) => old = seen,
            }
        }
    }

    /// Replaces entry `index` of `table` by `new` if it is still `old`; the inner error is what
    /// was there instead.
    #[inline]
    fn exchange_l1(
        &mut self,
        table: Mfn,
        index: usize,
        old: Pte,
        new: Pte,
    ) -> Result<Result<(), Pte>, Errno> {
        let new = if new.is_present() {
            adjust_l1(new)?
        } else {
            new
        };
        let same = same_reference(old, new, Pte::FRAME | Pte::RW);
        if !same && new.is_present() {
            self.ledger.get_mapping(new)?;
        }
        let seen = Pte(self.frames.cas64(table, index * 8, old.0, new.0));
        // The reference that is not needed any more: the old entry's, or the one just taken.
        let (outcome, surplus) = if seen == old {
            (Ok(()), old)
        } else {
            (Err(seen), new)
        };
        if !same && surplus.is_present() {
            self.ledger.put_mapping(surplus);
        }
        Ok(outcome)
    }
}
