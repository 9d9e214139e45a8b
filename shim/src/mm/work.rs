//! How much an operation has done since somebody last checked whether the host wants something.
//!
//! A guest decides how large a table or a list is, and while one operation is at work nothing else
//! happens, not even a suspend.  So work is counted in *units*, and a long operation stops after a
//! bounded number of them and continues later.  A unit is what it takes to check or release one
//! entry of a page table, some 90 ns, and everything else is charged by what it takes.

use core::cell::Cell;

use xen_abi::Errno;
use xen_abi::mmu::ENTRIES;

/// Units between two looks, after which a long operation stops.  A part that can not be divided comes on top.
pub const STEP: u32 = 2048;

/// Units that may pass between two looks in whatever a guest does, about 0.4 ms.
pub const LONGEST_STEP: u32 = 4096;

/// To check or release an L1 table, which is not divided.
pub(super) const L1_TABLE: u32 = ENTRIES as u32;
/// To check a page of descriptors: tests of some bits, for which no line of the ledger is read.
pub(super) const DESCRIPTORS: u32 = 128;
/// To fill or copy a page.
pub const PAGE: u32 = 8;

/// The count.
#[derive(Debug)]
pub struct Work {
    spent: Cell<u32>,
    step: u32,
    #[cfg(any(test, feature = "testing"))]
    longest: Cell<u32>,
}

impl Work {
    /// Makes one that stops nothing, for callers with nobody to give way to.
    pub(super) const fn unbounded() -> Self {
        Self::in_steps_of(u32::MAX)
    }

    /// Makes one that stops operations after `step` units, at least one.
    pub(super) const fn in_steps_of(step: u32) -> Self {
        Self {
            spent: Cell::new(0),
            step,
            #[cfg(any(test, feature = "testing"))]
            longest: Cell::new(0),
        }
    }

    /// Charges what is done.
    #[inline]
    pub fn spend(&self, units: u32) {
        // Without a bound nobody looks, and the sum would wrap to a small one.
        self.spent.set(self.spent.get().saturating_add(units));
    }

    /// Asks whether one more unit may be done.  It is charged when it is done: walking down
    /// through tables costs nothing, so each step gets further.
    ///
    /// # Errors
    /// `ERESTART` when somebody has to look first; never just after a look.
    #[inline]
    pub(super) fn may_go_on(&self) -> Result<(), Errno> {
        // The saturated sum would reach a step of `u32::MAX`, which stands for no bound.
        if self.step != u32::MAX && self.spent.get() >= self.step {
            return Err(Errno::ERESTART);
        }
        Ok(())
    }

    /// Starts the count again: somebody looks, or the guest goes on.
    #[inline]
    pub fn note_look(&self) {
        #[cfg(any(test, feature = "testing"))]
        self.longest.set(self.longest.get().max(self.spent.get()));
        self.spent.set(0);
    }

    /// Returns the most units that passed between two looks, and resets that maximum.
    #[cfg(any(test, feature = "testing"))]
    pub fn take_longest(&self) -> u32 {
        self.note_look();
        self.longest.replace(0)
    }
}
