//! Changes of page-table entries by hypercall.
//!
//! The new entry's reference is taken before it is stored and the old entry's dropped after, so a
//! refusal leaves everything as it was.  Only the CPU's page walker changes a live entry behind our
//! back, and only its accessed and dirty bits.

use xen_abi::mmu::{Level, MmuUpdate, Pte, UvmFlags, is_guest_l4_slot, update};
use xen_abi::{Errno, GuestVa, Mfn};

use super::entry::adjust_l1;
use super::ledger::Dropped;
use super::{Flush, FrameUse, M2p, Mm, Owner};
use crate::mem::Frames;

const AD: u64 = Pte::ACCESSED | Pte::DIRTY;

impl<F: Frames + ?Sized> Mm<'_, F> {
    /// Serves one request of `mmu_update`.
    ///
    /// # Errors
    /// `EINVAL` when the frame is not the guest's or may not hold this value, `ENOSYS` for an
    /// unknown command, `ERESTART` when it is to be asked again.
    #[inline]
    pub fn mmu_update(&mut self, request: MmuUpdate, m2p: &dyn M2p) -> Result<Flush, Errno> {
        let preserve = match request.command() {
            update::NORMAL | update::NO_TRANSLATE => false,
            update::PRESERVE_AD => true,
            update::MACHPHYS => {
                if !matches!(
                    self.ledger.owner(request.frame()),
                    Owner::Guest | Owner::Shared
                ) {
                    return Err(Errno::EINVAL);
                }
                m2p.set(request.frame(), request.val);
                return Ok(Flush::None);
            }
            _ => return Err(Errno::ENOSYS),
        };
        let (table, index, new) = (request.frame(), request.index(), Pte(request.val));
        match self.ledger.used_as(table) {
            FrameUse::L1 => self
                .set_l1(table, index, new, preserve)
                .map(|()| Flush::None),
            FrameUse::L2 => self.set_upper(Level::L2, table, index, new, preserve),
            FrameUse::L3 => self.set_upper(Level::L3, table, index, new, preserve),
            FrameUse::L4 => self.set_upper(Level::L4, table, index, new, preserve),
            FrameUse::None | FrameUse::Writable => {
                self.ledger.open_for_stores(table, self.tlb)?;
                self.store(table, index, new);
                Ok(Flush::None)
            }
            FrameUse::Descriptors | FrameUse::Unfinished => Err(Errno::EINVAL),
        }
    }

    /// Sets the L1 entry for `va` under L4 table `root`.  Returns what `flags` ask to flush, on the
    /// vCPUs of [`UvmFlags::scope`].
    ///
    /// # Errors
    /// `EINVAL` when there is no L1 table for `va`, or its entry may not hold `pte`.
    #[inline]
    pub fn update_va_mapping(
        &mut self,
        root: Mfn,
        va: GuestVa,
        pte: Pte,
        flags: UvmFlags,
    ) -> Result<Flush, Errno> {
        let place = self.walk(root, va).ok_or(Errno::EINVAL)?;
        self.set_l1(place.table, place.index, pte, false)?;
        Ok(match flags.kind() {
            UvmFlags::TLB_FLUSH => Flush::Full,
            UvmFlags::INVLPG => Flush::Page(va),
            _ => Flush::None,
        })
    }

    /// Sets entry `index` of `table`, a checked L1 table.
    #[inline]
    pub(super) fn set_l1(
        &mut self,
        table: Mfn,
        index: usize,
        new: Pte,
        preserve: bool,
    ) -> Result<(), Errno> {
        let old = self.load(table, index);
        let new = if new.is_present() {
            adjust_l1(new)?
        } else {
            new
        };
        if same_reference(old, new) {
            self.replace(table, index, old, new, preserve);
            return Ok(());
        }
        if new.is_present() {
            self.ledger.get_mapping(new, self.tlb)?;
        }
        self.replace(table, index, old, new, preserve);
        if old.is_present() {
            self.ledger.put_mapping(old);
        }
        Ok(())
    }

    /// Sets entry `index` of `table`, a checked table of `level` above L1.
    fn set_upper(
        &mut self,
        level: Level,
        table: Mfn,
        index: usize,
        new: Pte,
        preserve: bool,
    ) -> Result<Flush, Errno> {
        if level == Level::L4 && !is_guest_l4_slot(index) {
            return Err(Errno::EINVAL);
        }
        self.settle()?;
        let old = self.load(table, index);
        let new = if new.is_present() {
            self.get_child(level, new)?
        } else {
            new
        };
        self.replace(table, index, old, new, preserve);
        let Some(child) = level.child().filter(|_| old.is_present()) else {
            return Ok(Flush::None);
        };
        self.put_table(old.frame(), child, Dropped::Link);
        Ok(if (old.0 ^ new.0) & !AD == 0 {
            Flush::None
        } else {
            Flush::Full
        })
    }

    /// Stores `new` where `old` was seen, with the accessed and dirty bits that are there at that
    /// moment if `preserve` is set.
    #[inline]
    fn replace(&self, table: Mfn, index: usize, old: Pte, new: Pte, preserve: bool) {
        if !preserve {
            self.store(table, index, new);
            return;
        }
        let mut expected = old;
        loop {
            let merged = new.with(expected.0 & AD);
            let seen = self.frames.cas64(table, index * 8, expected.0, merged.0);
            if seen == expected.0 {
                return;
            }
            expected = Pte(seen);
        }
    }
}

/// Whether two L1 entries stand for the same reference, or both for none.
#[inline]
pub(super) const fn same_reference(old: Pte, new: Pte) -> bool {
    if !old.is_present() || !new.is_present() {
        return old.is_present() == new.is_present();
    }
    (old.0 ^ new.0) & (Pte::FRAME | Pte::RW) == 0
}
