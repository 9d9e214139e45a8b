//! Frames that the guest gives up and gets back.

use xen_abi::{Errno, Mfn, Pfn};

use super::{Flush, M2p, Mm};
use crate::mem::Frames;

impl<F: Frames + ?Sized> Mm<'_, F> {
    /// Takes a frame from the guest, which may ask for it again later.  The caller flushes before
    /// anybody else gets the memory.
    ///
    /// # Errors
    /// `EINVAL` when it is not the guest's, `EBUSY` while it is mapped, a table, or in use by a device.
    pub fn release(&mut self, mfn: Mfn, m2p: &dyn M2p) -> Result<Flush, Errno> {
        self.ledger.give_up(mfn)?;
        // The ledger decides first: the M2P entry of a frame that stays the guest's must stay.
        m2p.invalidate(mfn);
        // The ledger stamps only what loses a typed reference. A frame that was mapped read-only
        // has no stamp to tell its next user of a stale translation, so whoever takes the memory
        // away flushes.
        Ok(Flush::Full)
    }

    /// Gives the guest the frame that was [given up last](super::Ledger::last_given_up), as its
    /// frame `pfn`; there is memory behind it again, and it is clear.
    ///
    /// # Errors
    /// `EINVAL` when `mfn` is another frame.
    pub fn populate(&mut self, mfn: Mfn, pfn: Pfn, m2p: &dyn M2p) -> Result<(), Errno> {
        self.ledger.have_again(mfn)?;
        // `pfn` is whatever the guest says, as in Xen's `populate_physmap`: only the guest reads
        // the M2P.
        m2p.set_pfn(mfn, pfn);
        Ok(())
    }
}
