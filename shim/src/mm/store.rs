//! Stores of the guest to live L1 entries through its read-only mappings.
//!
//! The guest's kernel changes its page tables with ordinary instructions; they fault, and
//! [`crate::emulate::ptstore`] works out what they do.  This performs it: checked as by hypercall,
//! and atomic against the CPU's accessed and dirty bits.

use xen_abi::mmu::Pte;
use xen_abi::{Errno, Mfn, PAGE_SIZE};

use super::entry::adjust_l1;
use super::update::same_reference;
use super::{FrameUse, Mm};
use crate::emulate::ptstore::Entry;
use crate::mem::Frames;

/// An L1 entry that an instruction of the guest is about to change.
pub struct LiveEntry<'m, 'a, F: Frames + ?Sized> {
    mm: &'m mut Mm<'a, F>,
    table: Mfn,
    index: usize,
}

impl<'a, F: Frames + ?Sized> Mm<'a, F> {
    /// Returns the entry around byte `offset` of `table`; `None` when the frame is not, or no longer,
    /// an L1 table, and the fault is not one to emulate.
    #[inline]
    pub fn live_entry(&mut self, table: Mfn, offset: usize) -> Option<LiveEntry<'_, 'a, F>> {
        // The ledger is asked again, after the walk that found the frame: only a frame that is an
        // L1 table now has entries that are counted.
        let live = offset < PAGE_SIZE && self.ledger.used_as(table) == FrameUse::L1;
        live.then_some(LiveEntry {
            mm: self,
            table,
            index: offset / 8,
        })
    }

    /// Replaces entry `index` of `table`, a checked L1 table, by `new` if it still is `old`.
    #[inline]
    fn exchange_l1(&mut self, table: Mfn, index: usize, old: Pte, new: Pte) -> Result<bool, Errno> {
        let new = if new.is_present() {
            adjust_l1(new)?
        } else {
            new
        };
        // What stood there decides which reference goes, so a stale `old` must not get any further.
        if self.load(table, index) != old {
            return Ok(false);
        }
        // No reference moves where frame and RW stay, as when Linux clears an accessed bit.
        let same = same_reference(old, new);
        if !same && new.is_present() {
            // Raised before the entry can be used: once it is stored, the CPU may load it at any
            // moment.
            self.ledger.get_mapping(new, self.tlb)?;
        }
        // The page walker may have set an accessed or dirty bit since the load above. Then nothing
        // is stored, and the instruction is worked out again from what is there now.
        let stored = self.frames.cas64(table, index * 8, old.0, new.0) == old.0;
        // Exactly one of the two references has nothing behind it any more.
        let surplus = if stored { old } else { new };
        if !same && surplus.is_present() {
            // Dropped after the store, so that the stamp is from when the old entry was gone. No
            // flush follows: as under Xen (`ptwr_emulated_update`) that is the guest's to ask for,
            // and the ledger flushes by itself before the frame gets another use.
            self.ledger.put_mapping(surplus);
        }
        Ok(stored)
    }
}

impl<F: Frames + ?Sized> Entry for LiveEntry<'_, '_, F> {
    type Refused = Errno;

    #[inline]
    fn load(&mut self) -> u64 {
        self.mm.load(self.table, self.index).0
    }

    /// Stores as the [`update`](super::update) by hypercall does.
    ///
    /// # Errors
    /// `EINVAL` when the guest may not have such an entry.
    #[inline]
    fn store(&mut self, expected: Option<u64>, new: u64) -> Result<bool, Errno> {
        let (table, index, new) = (self.table, self.index, Pte(new));
        match expected {
            Some(old) => self.mm.exchange_l1(table, index, Pte(old), new),
            // A plain store overwrites accessed and dirty bits that the walker sets meanwhile, as
            // it would without us.
            None => self.mm.set_l1(table, index, new, false).map(|()| true),
        }
    }
}
