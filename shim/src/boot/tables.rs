//! The page tables that a guest starts with.
//!
//! They obey the rules that the guest itself has to: entries hold machine addresses, and a frame
//! that is a page table is mapped read-only.  What validation adds to entries (the user bit, for
//! one) is not here; the ledger does that when it pins the top level.

use core::ops::Range;

use xen_abi::{Mfn, PAGE_SHIFT, PAGE_SIZE};

use crate::mem::Frames;

/// Entries of a table.
pub(super) const ENTRIES: u64 = 512;

const PRESENT: u64 = 1 << 0;
const WRITABLE: u64 = 1 << 1;
const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;

/// log2 of the bytes that an entry of a table at `level` (1 to 4) covers.
const fn entry_shift(level: u32) -> u32 {
    PAGE_SHIFT + 9 * (level - 1)
}

/// How many tables of the levels 1 to 3 it takes to map a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TableCount([u64; 3]);

impl TableCount {
    /// Counts for the addresses from `start` up to `end`, which are not the same.
    pub(super) fn of(start: u64, end: u64) -> Self {
        Self([1, 2, 3].map(|level| {
            let shift = entry_shift(level + 1);
            ((end - 1) >> shift) - (start >> shift) + 1
        }))
    }

    /// Returns the number of all of them.
    pub(super) fn total(self) -> u64 {
        self.0.iter().sum()
    }
}

/// A range of PFNs that is mapped at contiguous addresses, with page tables of its own.
#[derive(Clone, Debug)]
pub(super) struct Mapping {
    /// Address of the first page.
    pub(super) va: u64,
    /// What is mapped; not empty.
    pub(super) pages: Range<u64>,
    /// PFN of the first table: those of level 3 first, then level 2, then level 1.
    pub(super) tables: u64,
}

impl Mapping {
    /// Fills the mapping's tables and links them into the top-level table `top`.
    ///
    /// `mfn_of` translates a PFN of the guest, `is_table` tells which of them are page tables.
    pub(super) fn write(
        &self,
        frames: &impl Frames,
        top: Mfn,
        mfn_of: impl Fn(u64) -> Mfn,
        is_table: impl Fn(u64) -> bool,
    ) {
        let end = self
            .va
            .wrapping_add(self.pages.end.wrapping_sub(self.pages.start) << PAGE_SHIFT);
        let TableCount(counts) = TableCount::of(self.va, end);
        let [l1, l2, l3] = counts;
        let first = [self.tables + l3 + l2, self.tables + l3, self.tables];
        (0..l1 + l2 + l3).for_each(|table| frames.clear(mfn_of(self.tables + table)));

        // The table of `level` that covers `va`.
        let table = |level: u32, va: u64| match level {
            4 => top,
            _ => {
                let shift = entry_shift(level + 1);
                mfn_of(first[level as usize - 1] + (va >> shift) - (self.va >> shift))
            }
        };
        let set = |level: u32, va: u64, entry: u64| {
            let index = (va >> entry_shift(level)) % ENTRIES;
            frames.store64(table(level, va), index as usize * 8, entry);
        };
        for level in 1..=3u32 {
            let shift = entry_shift(level + 1);
            for number in 0..counts[level as usize - 1] {
                // The first address that the table covers.
                let va = ((self.va >> shift) + number) << shift;
                let va = va.max(self.va);
                let entry = table(level, va).addr() | PRESENT | WRITABLE | ACCESSED | DIRTY;
                set(level + 1, va, entry);
            }
        }
        for pfn in self.pages.clone() {
            let va = self.va + (pfn - self.pages.start) * PAGE_SIZE as u64;
            let writable = if is_table(pfn) { 0 } else { WRITABLE };
            set(
                1,
                va,
                mfn_of(pfn).addr() | PRESENT | writable | ACCESSED | DIRTY,
            );
        }
    }
}
