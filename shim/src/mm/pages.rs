//! Whole pages that the guest asks the hypervisor to fill.

use xen_abi::{Errno, Mfn, PAGE_SIZE};

use super::Mm;
use super::work::PAGE;
use crate::mem::Frames;

impl<F: Frames + ?Sized> Mm<'_, F> {
    /// Fills a page with zeroes (`MMUEXT_CLEAR_PAGE`).
    ///
    /// # Errors
    /// `EINVAL` when the guest may not write the frame or it is a table.
    pub fn clear_page(&mut self, mfn: Mfn) -> Result<(), Errno> {
        self.ledger.work().spend(PAGE);
        self.ledger.open_for_stores(mfn, self.tlb)?;
        self.frames.clear(mfn);
        Ok(())
    }

    /// Fills a page with `contents`, as the hypercall page is.
    ///
    /// # Errors
    /// As [`clear_page`](Self::clear_page).
    pub fn fill_page(&mut self, mfn: Mfn, contents: &[u8; PAGE_SIZE]) -> Result<(), Errno> {
        self.ledger.work().spend(PAGE);
        self.ledger.open_for_stores(mfn, self.tlb)?;
        self.frames.write(mfn, 0, contents);
        Ok(())
    }

    /// Copies a page (`MMUEXT_COPY_PAGE`); the source may be a table.
    ///
    /// # Errors
    /// `EINVAL` when the guest may not write `to` or it is a table, or may not read `from`.
    pub fn copy_page(&mut self, to: Mfn, from: Mfn) -> Result<(), Errno> {
        self.ledger.work().spend(PAGE);
        if !self.ledger.is_readable(from) {
            return Err(Errno::EINVAL);
        }
        self.ledger.open_for_stores(to, self.tlb)?;
        let mut piece = [0; 256];
        for offset in (0..PAGE_SIZE).step_by(piece.len()) {
            self.frames.read(from, offset, &mut piece);
            self.frames.write(to, offset, &piece);
        }
        Ok(())
    }
}
