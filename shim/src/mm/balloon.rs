//! Frames that the guest gives up and gets back.

use xen_abi::{Errno, Mfn, Pfn};

use super::frame::Owner;
use super::{Flush, M2p, Mm};
use crate::mem::Frames;

impl<F: Frames + ?Sized> Mm<'_, F> {
    /// Takes a frame out of the guest's hands; nobody owns it then.  The caller flushes before it
    /// lets anybody else have the memory.
    ///
    /// # Errors
    /// `EINVAL` when it is not the guest's, `EBUSY` while it is mapped, a table, or in use by a device.
    pub fn release(&mut self, mfn: Mfn, m2p: &dyn M2p) -> Result<Flush, Errno> {
        self.ledger.change_owner(mfn, Owner::Guest, Owner::Nobody)?;
        m2p.invalidate(mfn);
        Ok(Flush::Full)
    }

    /// Gives the guest a frame that nobody owned, as its frame `pfn`; there is memory behind it
    /// again, and it is clear.
    ///
    /// # Errors
    /// `EINVAL` when the frame has an owner or is beyond the end of RAM.
    pub fn populate(&mut self, mfn: Mfn, pfn: Pfn, m2p: &dyn M2p) -> Result<(), Errno> {
        self.ledger.change_owner(mfn, Owner::Nobody, Owner::Guest)?;
        m2p.set_pfn(mfn, pfn);
        Ok(())
    }
}
