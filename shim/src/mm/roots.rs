//! Pinned tables, and the tables that the vCPUs run on.
//!
//! A pin and a loaded base are references like any other; what they hold stays a checked table.

use core::iter::once;

use xen_abi::mmu::{FIRST_XEN_SLOT, Level, Pte};
use xen_abi::{Errno, Mfn};

use super::ledger::Dropped;
use super::{Flush, Mm};
use crate::mem::Frames;

/// The tables of one vCPU; holds a reference to each.
#[derive(Debug, PartialEq, Eq)]
pub struct AddressSpaces {
    kernel: Mfn,
    user: Option<Mfn>,
}

impl AddressSpaces {
    /// Returns the L4 table of the guest's kernel mode.
    pub const fn kernel(&self) -> Mfn {
        self.kernel
    }

    /// Returns the L4 table of the guest's user mode, if it set one.
    pub const fn user(&self) -> Option<Mfn> {
        self.user
    }
}

impl<F: Frames + ?Sized> Mm<'_, F> {
    /// Makes a frame a page table of `level` until it is unpinned.
    ///
    /// # Errors
    /// `EINVAL` when it can not be one, or is pinned already; `ERESTART` when the caller must ask again.
    pub fn pin(&mut self, level: Level, table: Mfn) -> Result<Flush, Errno> {
        // First of all: what this drops may need a place in the list of tables to be released, and
        // may be the very table that is half released.
        self.finish_releases()?;
        self.get_table(table, level)?;
        // The reference comes first and the mark second. A second pin finds the mark, and gives its
        // reference back; that is never the last, for the first pin holds one.
        if !self.ledger.set_pinned(table) {
            self.put_table(table, level, Dropped::Hold);
            return Err(Errno::EINVAL);
        }
        Ok(Flush::None)
    }

    /// Undoes [`pin`](Self::pin).
    ///
    /// # Errors
    /// `EINVAL` when the frame is not pinned; `ERESTART` when the caller must ask again.
    pub fn unpin(&mut self, table: Mfn) -> Result<Flush, Errno> {
        self.finish_releases()?;
        let level = self.ledger.clear_pinned(table).ok_or(Errno::EINVAL)?;
        // No CPU walks a table because of its pin, so dropping one makes no translation stale: a
        // process with many pinned tables ends with one flush.
        self.put_table(table, level, Dropped::Hold);
        Ok(Flush::None)
    }

    /// Makes the tables of a vCPU that is about to start.
    ///
    /// # Errors
    /// `EINVAL` when one of the frames can not be an L4 table; `ERESTART` when the caller must ask again.
    pub fn enter(&mut self, kernel: Mfn, user: Option<Mfn>) -> Result<AddressSpaces, Errno> {
        self.finish_releases()?;
        self.get_table(kernel, Level::L4)?;
        if let Some(user) = user
            && let Err(error) = self.get_table(user, Level::L4)
        {
            match error {
                // The caller asks for both again. If the first table were released, each attempt
                // would begin anew, and with two large tables none would ever end.
                Errno::ERESTART => self.put_off(kernel),
                _ => self.put_table(kernel, Level::L4, Dropped::Hold),
            }
            return Err(error);
        }
        Ok(AddressSpaces { kernel, user })
    }

    /// Drops the tables of a vCPU that no longer runs.
    ///
    /// # Errors
    /// `ERESTART` when the caller must ask again.
    pub fn leave(&mut self, spaces: &mut Option<AddressSpaces>) -> Result<(), Errno> {
        self.finish_releases()?;
        if let Some(AddressSpaces { kernel, user }) = spaces.take() {
            for table in once(kernel).chain(user) {
                // A vCPU ran on it, so its translations are stale from here on. Both may need their
                // release put off, which is what `MAX_RELEASING` counts.
                self.put_table(table, Level::L4, Dropped::Link);
            }
        }
        Ok(())
    }

    /// Changes the table of a vCPU's kernel mode.  The caller loads it before anything else uses
    /// memory: the old table may already be ordinary memory.
    ///
    /// # Errors
    /// `EINVAL` when the frame can not be an L4 table; the old one stays.  `ERESTART` when the caller
    /// must ask again.
    pub fn new_baseptr(&mut self, spaces: &mut AddressSpaces, table: Mfn) -> Result<Flush, Errno> {
        self.finish_releases()?;
        if table != spaces.kernel {
            // The new reference before the old one goes: the two trees share tables, which would
            // else be released and checked again, and a refusal must leave the vCPU a table to run
            // on.
            self.get_table(table, Level::L4)?;
            self.put_table(spaces.kernel, Level::L4, Dropped::Link);
            spaces.kernel = table;
        }
        // Also where the table is the same: the guest asks for a load of CR3, which flushes.
        Ok(Flush::Full)
    }

    /// Changes the table of a vCPU's user mode; frame 0 means none.
    ///
    /// # Errors
    /// `EINVAL` when the frame can not be an L4 table; the old one stays.  `ERESTART` when the caller
    /// must ask again.
    pub fn new_user_baseptr(
        &mut self,
        spaces: &mut AddressSpaces,
        table: Mfn,
    ) -> Result<Flush, Errno> {
        self.finish_releases()?;
        // Frame 0 is never the guest's, so it can stand for none (`MMUEXT_NEW_USER_BASEPTR`).
        let new = (table != Mfn(0)).then_some(table);
        if new == spaces.user {
            // Unlike the kernel's, this table is not loaded now; user mode loads it when it is
            // entered.
            return Ok(Flush::None);
        }
        if let Some(new) = new {
            self.get_table(new, Level::L4)?;
        }
        if let Some(old) = core::mem::replace(&mut spaces.user, new) {
            self.put_table(old, Level::L4, Dropped::Link);
        }
        Ok(Flush::Full)
    }

    /// Shows the machine-to-physical table in a vCPU's kernel mode, and in its user mode unless it is
    /// `hidden` there.  An L4 table is changed only while it is in use, and each time that it comes into
    /// use; the M2P's translations are not global, so the switch to user mode flushes them.
    pub fn show_m2p(&mut self, spaces: &AddressSpaces, hidden: bool) {
        let shown = self.slots.0[0];
        if let Some(user) = spaces.user {
            let slot = Pte(if hidden { 0 } else { shown });
            self.store(user, FIRST_XEN_SLOT, slot);
        }
        // Last, for one table may be both.
        self.store(spaces.kernel, FIRST_XEN_SLOT, Pte(shown));
    }
}
