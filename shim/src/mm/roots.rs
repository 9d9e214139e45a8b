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
    /// `EINVAL` when it can not be one, or is pinned already; `ERESTART` when it is to be asked again.
    pub fn pin(&mut self, level: Level, table: Mfn) -> Result<Flush, Errno> {
        self.settle()?;
        self.get_table(table, level)?;
        if !self.ledger.set_pinned(table) {
            self.put_table(table, level, Dropped::Hold);
            return Err(Errno::EINVAL);
        }
        Ok(Flush::None)
    }

    /// Undoes [`pin`](Self::pin).
    ///
    /// # Errors
    /// `EINVAL` when the frame is not pinned; `ERESTART` when it is to be asked again.
    pub fn unpin(&mut self, table: Mfn) -> Result<Flush, Errno> {
        self.settle()?;
        let level = self.ledger.clear_pinned(table).ok_or(Errno::EINVAL)?;
        self.put_table(table, level, Dropped::Hold);
        Ok(Flush::None)
    }

    /// Makes the tables of a vCPU that is about to start.
    ///
    /// # Errors
    /// `EINVAL` when one of the frames can not be an L4 table; `ERESTART` when it is to be asked again.
    pub fn enter(&mut self, kernel: Mfn, user: Option<Mfn>) -> Result<AddressSpaces, Errno> {
        self.settle()?;
        self.get_table(kernel, Level::L4)?;
        if let Some(user) = user
            && let Err(error) = self.get_table(user, Level::L4)
        {
            match error {
                Errno::ERESTART => self.put_off(kernel),
                _ => self.put_table(kernel, Level::L4, Dropped::Hold),
            }
            return Err(error);
        }
        Ok(AddressSpaces { kernel, user })
    }

    /// Drops the tables of a vCPU that runs no more.
    ///
    /// # Errors
    /// `ERESTART` when it is to be asked again.
    pub fn leave(&mut self, spaces: &mut Option<AddressSpaces>) -> Result<(), Errno> {
        self.settle()?;
        if let Some(AddressSpaces { kernel, user }) = spaces.take() {
            for table in once(kernel).chain(user) {
                self.put_table(table, Level::L4, Dropped::Link);
            }
        }
        Ok(())
    }

    /// Changes the table of a vCPU's kernel mode.  The caller loads it before anything else can
    /// use memory: the old table may be ordinary memory already.
    ///
    /// # Errors
    /// `EINVAL` when the frame can not be an L4 table; the old one stays.  `ERESTART` when it is to be
    /// asked again.
    pub fn new_baseptr(&mut self, spaces: &mut AddressSpaces, table: Mfn) -> Result<Flush, Errno> {
        self.settle()?;
        if table != spaces.kernel {
            self.get_table(table, Level::L4)?;
            self.put_table(spaces.kernel, Level::L4, Dropped::Link);
            spaces.kernel = table;
        }
        Ok(Flush::Full)
    }

    /// Changes the table of a vCPU's user mode; frame 0 means none.
    ///
    /// # Errors
    /// `EINVAL` when the frame can not be an L4 table; the old one stays.  `ERESTART` when it is to be
    /// asked again.
    pub fn new_user_baseptr(
        &mut self,
        spaces: &mut AddressSpaces,
        table: Mfn,
    ) -> Result<Flush, Errno> {
        self.settle()?;
        let new = (table != Mfn(0)).then_some(table);
        if new == spaces.user {
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
    /// `hidden` there.  Only what is in use is changed, whenever it comes into use; the table's
    /// translations are not global, so that the switch to user mode forgets them.
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
