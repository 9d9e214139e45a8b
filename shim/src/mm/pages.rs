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
        // Charged before it is known to succeed: a list of failures takes time as well.
        self.ledger.work().spend(PAGE);
        // Every store below goes through the direct map, where no page table protects anything:
        // this check is all there is.
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
        // No reference is taken: nothing else runs before the copy is done, so the frame cannot
        // change hands.
        if !self.ledger.is_readable(from) {
            return Err(Errno::EINVAL);
        }
        self.ledger.open_for_stores(to, self.tlb)?;
        // By way of the stack, since there are no references into guest memory; in pieces, since a
        // page is much of a stack.
        let mut piece = [0; 256];
        for offset in (0..PAGE_SIZE).step_by(piece.len()) {
            self.frames.read(from, offset, &mut piece);
            self.frames.write(to, offset, &piece);
        }
        Ok(())
    }
}
