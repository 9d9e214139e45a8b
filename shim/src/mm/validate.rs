//! Turning a frame into a page table and back: the whole contents are checked when the first
//! reference is taken, and everything they stand for is dropped with the last.
//!
//! Both recurse from L4 to L1 only, so their depth is bounded.  A table is marked with its use
//! before its entries are looked at; since a frame has one use, a table that names itself, or one
//! of its own level, is refused without a special case.  A failure in the middle gives back every
//! reference already taken; entries adjusted so far keep their extra bits, which mean nothing in
//! ordinary memory.
//!
//! Both are interrupted after a [bound](super::work) of entries, and go on when they are called
//! again.  Where they are stands in the ledger's words: a table above L1 whose entries are not all
//! checked is *unfinished*, and its word says how many are.  To check is to raise that number, to
//! release to lower it; so whichever of the two was interrupted, either can go on from there.  At
//! most one path of tables is unfinished below another: each lies behind the first entry that is not
//! checked of the one above.  Nothing refers to an unfinished table, and nobody else can use or
//! change it: its contents are what they were.
//!
//! A table that is half checked waits for who wants it to ask again.  One that is half released
//! can not, for whoever dropped it thinks that it is gone: the ledger keeps it, and no other
//! operation on tables begins, nor does the guest go on, before that is settled.

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
    /// `EINVAL` when it can not be one, `ENOMEM` at too many references; `ERESTART` when it is only
    /// checked in part, and the same call goes on with it.
    pub(super) fn get_table(&mut self, table: Mfn, level: Level) -> Result<(), Errno> {
        let checked = self.check(table, level);
        if checked.is_err_and(|error| error != Errno::ERESTART) {
            self.give_back(table, level);
        }
        checked
    }

    /// Drops a reference that [`get_table`](Self::get_table) took.  If it was the last the table is
    /// released, as far as one step goes; so an operation that may come to this begins when all
    /// else is [settled](Self::settle).
    pub(super) fn put_table(&mut self, table: Mfn, level: Level, dropped: Dropped) {
        if !self.ledger.put_table(table, level.into(), dropped) {
            return;
        }
        match level {
            Level::L1 => self.drop_pages(table, ENTRIES),
            _ => self.give_back(table, level),
        }
    }

    /// Drops a reference to an L4 table, all of whose entries stay checked even if it was the last:
    /// whoever dropped it will ask for it again.
    pub(super) fn put_off(&mut self, table: Mfn) {
        let _ = self
            .ledger
            .put_table(table, Level::L4.into(), Dropped::Hold);
    }

    /// Goes on with the release of what earlier operations dropped.
    ///
    /// # Errors
    /// `ERESTART` when it still is not done.
    pub fn settle(&mut self) -> Result<(), Errno> {
        while let Some(table) = self.ledger.releasing() {
            self.release_table(table)?;
            self.ledger.is_released();
        }
        Ok(())
    }

    /// Has a table released, if it is an unfinished one of `level`.
    fn give_back(&mut self, table: Mfn, level: Level) {
        if self.unfinished_as(table, level) {
            self.ledger.release_later(table);
            // Where it takes too long, whoever comes next goes on with it.
            let _ = self.settle();
        }
    }

    fn unfinished_as(&self, table: Mfn, level: Level) -> bool {
        let found = self.ledger.unfinished(table);
        found.is_some_and(|(found, _)| found == level)
    }

    /// As [`get_table`](Self::get_table), but leaves an unfinished table behind whatever went wrong.
    fn check(&mut self, table: Mfn, level: Level) -> Result<(), Errno> {
        let mut checked = match self.ledger.get_table(table, level.into(), self.tlb)? {
            Granted::Again => return Ok(()),
            Granted::First => return self.check_pages(table),
            Granted::Unfinished(checked) => checked,
        };
        let result = self.check_links(table, level, &mut checked);
        self.ledger.set_unfinished(table, level, checked);
        result?;
        if level == Level::L4 {
            for (index, &own) in self.slots.0.iter().enumerate() {
                self.store(table, FIRST_XEN_SLOT + index, Pte(own));
            }
        }
        self.ledger.finish(table, level);
        Ok(())
    }

    /// Checks an L1 table, or drops the one reference to it.
    fn check_pages(&mut self, table: Mfn) -> Result<(), Errno> {
        self.ledger.work().spend(L1_TABLE);
        for index in 0..ENTRIES {
            let pte = self.load(table, index);
            if !pte.is_present() {
                continue;
            }
            let taken =
                adjust_l1(pte).and_then(|new| self.ledger.get_mapping(new, self.tlb).map(|()| new));
            match taken {
                Ok(new) if new == pte => {}
                Ok(new) => self.store(table, index, new),
                Err(error) => {
                    self.drop_pages(table, index);
                    let kind = Level::L1.into();
                    self.ledger.put_table(table, kind, Dropped::Hold);
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// Checks entries of a table above L1 from `checked` on, which says how far it came.
    fn check_links(&mut self, table: Mfn, level: Level, checked: &mut usize) -> Result<(), Errno> {
        while *checked < ENTRIES {
            self.ledger.work().may_go_on()?;
            let pte = self.load(table, *checked);
            if pte.is_present() && (level != Level::L4 || is_guest_l4_slot(*checked)) {
                let child = level.child().ok_or(Errno::EINVAL)?;
                let new = adjust_table(level, pte)?;
                self.check(new.frame(), child)?;
                if new != pte {
                    self.store(table, *checked, new);
                }
            }
            self.ledger.work().spend(1);
            *checked += 1;
        }
        Ok(())
    }

    /// Takes the reference that present entry `pte` of a `level` table above L1 stands for;
    /// returns the entry as it has to stand in memory.
    pub(super) fn get_child(&mut self, level: Level, pte: Pte) -> Result<Pte, Errno> {
        let child = level.child().ok_or(Errno::EINVAL)?;
        let new = adjust_table(level, pte)?;
        self.get_table(new.frame(), child)?;
        Ok(new)
    }

    /// Drops what the checked entries of an unfinished table stand for, from the last to the first,
    /// and ends its use.  Does nothing with a frame that is no unfinished table (any more).
    fn release_table(&mut self, table: Mfn) -> Result<(), Errno> {
        let Some((level, mut checked)) = self.ledger.unfinished(table) else {
            return Ok(());
        };
        let result = self.release_links(table, level, &mut checked);
        self.ledger.set_unfinished(table, level, checked);
        result?;
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
                self.release_table(frame)?;
            }
            if *checked == 0 {
                return Ok(());
            }
            self.ledger.work().may_go_on()?;
            self.ledger.work().spend(1);
            *checked -= 1;
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
                self.ledger.put_mapping(pte);
            }
        }
    }
}
