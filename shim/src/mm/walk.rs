//! Finding the L1 entry that translates an address.

use xen_abi::mmu::{Level, Pte, is_canonical, is_guest_l4_slot};
use xen_abi::{GuestVa, Mfn};

use super::Mm;
use super::frame::FrameUse;
use super::ledger::Ledger;
use crate::mem::Frames;

/// Where an address is translated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// The L1 table.
    pub table: Mfn,
    /// Which of its entries.
    pub index: usize,
    /// What the entry held; it may be not present.
    pub entry: Pte,
}

impl<F: Frames + ?Sized> Mm<'_, F> {
    /// Finds the L1 entry for `va` under L4 table `root`; `None` when there is no L1 table for it, `root`
    /// is no table, or the address is not the guest's.
    #[inline]
    pub fn walk(&self, root: Mfn, va: GuestVa) -> Option<Mapping> {
        walk(self.frames, self.ledger, root, va)
    }
}

/// As [`Mm::walk`], for callers that change nothing.
#[inline]
pub fn walk<F: Frames + ?Sized>(
    frames: &F,
    ledger: &Ledger,
    root: Mfn,
    va: GuestVa,
) -> Option<Mapping> {
    // The indexes ignore the upper bits, so a non-canonical address would alias a good one. The
    // shim's slots lead to tables that are not the guest's.
    if !is_canonical(va) || !is_guest_l4_slot(Level::L4.index(va)) {
        return None;
    }
    let entry = |table, level: Level| Pte(frames.load64(table, level.index(va) * 8));
    let mut table = root;
    for level in [Level::L4, Level::L3, Level::L2] {
        // A check before each load: only a frame in use as a table is known to exist and to hold
        // checked entries. An unfinished table is none: its entries may name what was released.
        if ledger.used_as(table) != FrameUse::from(level) {
            return None;
        }
        let entry = entry(table, level);
        if !entry.is_present() {
            return None;
        }
        table = entry.frame();
    }
    if ledger.used_as(table) != FrameUse::L1 {
        return None;
    }
    Some(Mapping {
        table,
        index: Level::L1.index(va),
        entry: entry(table, Level::L1),
    })
}
