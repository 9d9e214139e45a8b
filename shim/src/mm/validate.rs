//! Turning a frame into a page table and back: the whole contents are checked when the first
//! reference is taken, and everything they stand for is dropped with the last.
//!
//! Both recurse from L4 to L1 only, so their depth is bounded.  A table is marked with its use
//! before its entries are looked at; since a frame has one use, a table that names itself, or one
//! of its own level, is refused without a special case.  A failure in the middle gives back every
//! reference already taken; entries adjusted so far keep their extra bits, which mean nothing in
//! ordinary memory.
//!
//! Both stop after a [bounded number](super::work) of entries, and continue when they are called
//! again.  The ledger's words say how far they are: a table above L1 whose entries are not all
//! checked is *unfinished*, and its word says how many are.  Checking raises that number and
//! releasing lowers it; so whichever of the two was interrupted, either can continue from there.
//! Below an unfinished table at most one path of tables is unfinished: each lies behind the first
//! unchecked entry of the one above.  Nothing refers to an unfinished table, and nobody else can use
//! or change it: its contents are what they were.
//!
//! A half-checked table waits until somebody asks for it again.  A half-released one can not, for
//! whoever dropped it takes it for gone: the ledger keeps it, and it is settled before any other
//! operation on tables begins and before the guest goes on.

use xen_abi::mmu::{ENTRIES, FIRST_XEN_SLOT, Level, Pte, is_guest_l4_slot};
use xen_abi::{Errno, Mfn};

use super::Mm;
use super::entry::{adjust_l1, adjust_table};
use super::ledger::{Dropped, Granted};
use super::work::L1_TABLE;
use crate::mem::Frames;

impl<F: Frames + ?Sized> Mm<'_, F> {
    /// Loads entry `index` of a frame that is known to exist.
    #[inline]
    pub(super) fn load(&self, table: Mfn, index: usize) -> Pte {
        Pte(self.frames.load64(table, index * 8))
    }

    /// Stores entry `index` of a frame that is known to exist.
    #[inline]
    pub(super) fn store(&self, table: Mfn, index: usize, pte: Pte) {
        self.frames.store64(table, index * 8, pte.0);
    }

    /// Takes a reference to `table` as a page table of `level`, checking it if it is the first.
    ///
    /// # Errors
    /// `EINVAL` when it can not be one, `ENOMEM` at too many references; `ERESTART` when it is
    /// checked only in part, and the same call continues it.
    pub(super) fn get_table(&mut self, table: Mfn, level: Level) -> Result<(), Errno> {
        // ERESTART leaves the work where it is, for whoever asks next. Any other error undoes it at
        // once: the guest has its answer, and will not come back to clean up.
        let checked = self.check(table, level);
        if checked.is_err_and(|error| error != Errno::ERESTART) {
            self.give_back(table, level);
        }
        checked
    }

    /// Drops a reference that [`get_table`](Self::get_table) took.  If it was the last, the
    /// table is released, as far as one step allows; so an operation that may come to this first
    /// [finishes](Self::finish_releases) all other releases.
    pub(super) fn put_table(&mut self, table: Mfn, level: Level, dropped: Dropped) {
        if !self.ledger.put_table(table, level.into(), dropped) {
            return;
        }
        match level {
            // The ledger has ended the use already, and the frame could be written again. Nothing
            // runs before the entries are dropped, so they still are what was counted.
            Level::L1 => self.drop_pages(table, ENTRIES),
            _ => self.give_back(table, level),
        }
    }

    /// Drops a reference to an L4 table and keeps its entries checked even if it was the last: whoever
    /// dropped it will ask for it again.
    pub(super) fn put_off(&mut self, table: Mfn) {
        let _ = self
            .ledger
            .put_table(table, Level::L4.into(), Dropped::Hold);
    }

    /// Continues releases that earlier operations left unfinished.
    ///
    /// # Errors
    /// `ERESTART` while some of it is left.
    pub fn finish_releases(&mut self) -> Result<(), Errno> {
        // The table stays in the list until it is done, so that an interrupted release is found
        // again.
        while let Some(table) = self.ledger.releasing() {
            self.release_table(table)?;
            self.ledger.is_released();
        }
        Ok(())
    }

    /// Releases `table` if it is an unfinished one of `level`.
    fn give_back(&mut self, table: Mfn, level: Level) {
        // The check may have failed because the frame is something else altogether; that is not
        // ours to undo.
        if self.unfinished_as(table, level) {
            self.ledger.release_later(table);
            // If it takes too long, whoever comes next continues it.
            let _ = self.finish_releases();
        }
    }

    fn unfinished_as(&self, table: Mfn, level: Level) -> bool {
        let found = self.ledger.unfinished(table);
        found.is_some_and(|(found, _)| found == level)
    }

    /// As [`get_table`](Self::get_table), but leaves an unfinished table behind on any error.
    fn check(&mut self, table: Mfn, level: Level) -> Result<(), Errno> {
        // The use is set before the first entry is read. So an entry that names this very table, or
        // a table above it, finds it in another use and is refused, and nobody changes what was
        // read.
        let mut checked = match self.ledger.get_table(table, level.into(), self.tlb)? {
            Granted::Again => return Ok(()),
            Granted::First => return self.check_pages(table),
            Granted::Unfinished(checked) => checked,
        };
        let result = self.check_links(table, level, &mut checked);
        // Noted whatever the result: the number says which references were taken, also to a later
        // release.
        self.ledger.set_unfinished(table, level, checked);
        result?;
        // The guest's values in the shim's slots are replaced unseen. Before `finish`: a table with
        // a reference may be loaded, and without these slots that would unmap the shim.
        if level == Level::L4 {
            for (index, &own) in self.slots.0.iter().enumerate() {
                self.store(table, FIRST_XEN_SLOT + index, Pte(own));
            }
        }
        // Only now there is a reference: until here nobody could link the table or load it.
        self.ledger.finish(table, level);
        Ok(())
    }

    /// Checks an L1 table, or drops the one reference to it.
    fn check_pages(&mut self, table: Mfn) -> Result<(), Errno> {
        // Not divided, so a step may end this much late: an L1 table has its one reference from the
        // start, and no state for a part of it.
        self.ledger.work().spend(L1_TABLE);
        for index in 0..ENTRIES {
            let pte = self.load(table, index);
            if !pte.is_present() {
                continue;
            }
            // The reference before the adjusted entry is stored, and both only for what is present:
            // all else is data of the guest's (swap entries).
            let taken =
                adjust_l1(pte).and_then(|new| self.ledger.get_mapping(new, self.tlb).map(|()| new));
            match taken {
                // Right already, as in a table that is pinned again.
                Ok(new) if new == pte => {}
                Ok(new) => self.store(table, index, new),
                Err(error) => {
                    // Only those before `index`: the refused entry has taken nothing. Adjusting
                    // changes neither frame nor RW, so each entry drops the kind of reference that
                    // it took.
                    self.drop_pages(table, index);
                    let kind = Level::L1.into();
                    // No CPU walked the table on behalf of this reference, so nothing becomes
                    // stale.
                    self.ledger.put_table(table, kind, Dropped::Hold);
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// Checks entries of a table above L1 from `checked` on, and moves `checked` as far as it came.
    fn check_links(&mut self, table: Mfn, level: Level, checked: &mut usize) -> Result<(), Errno> {
        while *checked < ENTRIES {
            // Asked before each entry and charged after it: a step that is shorter than the way
            // down the tree still comes one entry further.
            self.ledger.work().may_go_on()?;
            let pte = self.load(table, *checked);
            if pte.is_present() && (level != Level::L4 || is_guest_l4_slot(*checked)) {
                // Only tables above L1 come here, so there is one.
                let child = level.child().ok_or(Errno::EINVAL)?;
                let new = adjust_table(level, pte)?;
                // Recursive, but each call goes one level down, whatever the guest links.
                self.check(new.frame(), child)?;
                if new != pte {
                    self.store(table, *checked, new);
                }
            }
            self.ledger.work().spend(1);
            // Last of all: what is counted as checked has its reference, and what is not has none.
            *checked += 1;
        }
        Ok(())
    }

    /// Takes the reference that present entry `pte` of a `level` table above L1 stands for;
    /// returns the entry as it has to stand in memory.
    pub(super) fn get_child(&mut self, level: Level, pte: Pte) -> Result<Pte, Errno> {
        let child = level.child().ok_or(Errno::EINVAL)?;
        let new = adjust_table(level, pte)?;
        // `get_table` and not `check`: on a refusal nobody else knows of the half-checked child, so
        // it is released here.
        self.get_table(new.frame(), child)?;
        Ok(new)
    }

    /// Drops what the checked entries of an unfinished table stand for, from the last to the first,
    /// and ends its use.  Does nothing to a frame that is not, or no longer, an unfinished table.
    fn release_table(&mut self, table: Mfn) -> Result<(), Errno> {
        let Some((level, mut checked)) = self.ledger.unfinished(table) else {
            return Ok(());
        };
        let result = self.release_links(table, level, &mut checked);
        self.ledger.set_unfinished(table, level, checked);
        result?;
        // Only after the last entry: until then the frame gets no other use, so the contents that
        // say what is to be dropped cannot change.
        self.ledger.end_unfinished(table, level);
        Ok(())
    }

    fn release_links(
        &mut self,
        table: Mfn,
        level: Level,
        checked: &mut usize,
    ) -> Result<(), Errno> {
        let Some(child) = level.child() else {
            return Ok(());
        };
        loop {
            // The table behind the entry that was being checked, or that was dropped just now.
            if let Some(frame) = self.link(table, level, *checked)
                && self.unfinished_as(frame, child)
            {
                // A table that another interrupted check has begun may be met here as well. It goes
                // too: a check that was interrupted belongs to nobody, and whoever wants it asks
                // again.
                self.release_table(frame)?;
            }
            if *checked == 0 {
                return Ok(());
            }
            self.ledger.work().may_go_on()?;
            self.ledger.work().spend(1);
            *checked -= 1;
            // A child above L1 that loses its last reference is unfinished from now on, with all
            // entries checked. The next turn of the loop finds it behind this entry, as does a
            // later call.
            if let Some(frame) = self.link(table, level, *checked)
                && self.ledger.put_table(frame, child.into(), Dropped::Link)
                && child == Level::L1
            {
                self.drop_pages(frame, ENTRIES);
            }
        }
    }

    /// Returns the frame that entry `index` of a table above L1 names.
    fn link(&self, table: Mfn, level: Level, index: usize) -> Option<Mfn> {
        // A table with all entries checked has none at `checked`. The shim's slots were never
        // counted.
        if index >= ENTRIES || level == Level::L4 && !is_guest_l4_slot(index) {
            return None;
        }
        let pte = self.load(table, index);
        pte.is_present().then(|| pte.frame())
    }

    /// Drops what the first `count` entries of an L1 table stand for.
    fn drop_pages(&mut self, table: Mfn, count: usize) {
        self.ledger.work().spend(L1_TABLE);
        for index in 0..count {
            let pte = self.load(table, index);
            if pte.is_present() {
                // Stamps each frame that loses its last typed reference by this: a CPU may still
                // know it through the table.
                self.ledger.put_mapping(pte);
            }
        }
    }
}
