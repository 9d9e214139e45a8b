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
    /// unknown command, `ERESTART` when the caller must ask again.
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
                    // Xen's `do_mmu_update` takes a reference to the frame first, and says EINVAL
                    // where there is none.
                    return Err(Errno::EINVAL);
                }
                // Any value: the shim never reads the table, so a guest can deceive only itself.
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
            // Memory that the guest may write itself: it builds tables with requests too before it
            // pins them.
            FrameUse::None | FrameUse::Writable => {
                self.ledger.open_for_stores(table, self.tlb)?;
                // Unchecked, as Xen does it for a `PGT_writable_page`: the entry means nothing
                // until the frame is a table, and is checked then.
                self.store(table, index, new);
                Ok(Flush::None)
            }
            // Descriptors have a hypercall of their own. A half-checked table must keep its
            // contents, or its release would drop references that nobody took.
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
        // Through the ledger's tables and not by way of the TLB: a stale translation must not
        // choose the table.
        let place = self.walk(root, va).ok_or(Errno::EINVAL)?;
        self.set_l1(place.table, place.index, pte, false)?;
        // Only after a change, as in Xen's `__do_update_va_mapping`: a refused one leaves nothing
        // stale. The guest may ask for less than it needs; see `set_l1`.
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
        // The walker may change two bits of it before the store. They stand for no reference, so
        // `old` stays good for what is to be dropped.
        let old = self.load(table, index);
        let new = if new.is_present() {
            adjust_l1(new)?
        } else {
            new
        };
        // Also taken where neither is present: swap entries change often and count nothing.
        if same_reference(old, new) {
            self.replace(table, index, old, new, preserve);
            return Ok(());
        }
        if new.is_present() {
            // May flush every translation, when the frame was a table until just now. Refusals come
            // from here, and nothing was changed yet.
            self.ledger.get_mapping(new, self.tlb)?;
        }
        self.replace(table, index, old, new, preserve);
        if old.is_present() {
            // Last, so that the frame is stamped with an epoch in which no entry leads there any
            // more. The guest owes the flush of an L1 entry, as under Xen, and may leave it out: it
            // then keeps a stale path to a frame that is still its own.
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
        // These hold the shim itself. When a table is checked the guest's values there are replaced
        // without a word; a store to one that lives is refused, as in Xen's `mod_l4_entry`.
        if level == Level::L4 && !is_guest_l4_slot(index) {
            return Err(Errno::EINVAL);
        }
        // The child that is dropped below may need the place in the list of what is to be released.
        self.finish_releases()?;
        let old = self.load(table, index);
        // Where this is interrupted nothing has changed in the table, and the request is simply
        // made again.
        let new = if new.is_present() {
            self.get_child(level, new)?
        } else {
            new
        };
        self.replace(table, index, old, new, preserve);
        let Some(child) = level.child().filter(|_| old.is_present()) else {
            return Ok(Flush::None);
        };
        // Also where `new` names the same child: then this drops the reference that `get_child` has
        // just taken once more, and never the last.
        self.put_table(old.frame(), child, Dropped::Link);
        // Everything below the entry may be cached, as translations and in the paging-structure
        // caches; no page names all of it. Accessed and dirty bits translate nothing.
        Ok(if (old.0 ^ new.0) & !AD == 0 {
            Flush::None
        } else {
            Flush::Full
        })
    }

    /// Stores `new` where `old` was seen; with `preserve`, keeps the accessed and dirty bits that are
    /// set at that moment.
    #[inline]
    fn replace(&self, table: Mfn, index: usize, old: Pte, new: Pte, preserve: bool) {
        if !preserve {
            self.store(table, index, new);
            return;
        }
        // The walker only sets bits, and there are two of them, so this ends with the third attempt
        // at the latest. Merging without the exchange would lose a dirty bit, and with it a page of
        // the guest's data.
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
    // RW chooses between a typed and a plain reference; no other bit is counted.
    (old.0 ^ new.0) & (Pte::FRAME | Pte::RW) == 0
}
