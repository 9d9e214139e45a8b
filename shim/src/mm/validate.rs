//! Turning a frame into a page table and back: the whole contents are checked when the first
//! reference is taken, and everything they stand for is dropped with the last.
//!
//! Both recurse from L4 to L1 only, so their depth is bounded.  A table is marked with its use
//! before its entries are looked at; since a frame has one use, a table that names itself, or one
//! of its own level, is refused without a special case.  A failure in the middle gives back every
//! reference already taken; entries adjusted so far keep their extra bits, which mean nothing in
//! ordinary memory.

use xen_abi::mmu::{ENTRIES, FIRST_XEN_SLOT, Level, Pte, is_guest_l4_slot};
use xen_abi::{Errno, Mfn};

use super::Mm;
use super::entry::{adjust_l1, adjust_table};
use super::ledger::{Dropped, Granted};
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
    pub(super) fn get_table(&mut self, table: Mfn, level: Level) -> Result<(), Errno> {
        match self.ledger.get_table(table, level.into(), self.tlb)? {
            Granted::Again => return Ok(()),
            Granted::First => {}
        }
        let checked = match level {
            Level::L1 => self.validate_l1(table),
            _ => self.validate_upper(table, level),
        };
        if checked.is_err() {
            self.ledger.put_table(table, level.into(), Dropped::Hold);
        }
        checked
    }

    /// Drops a reference that [`get_table`](Self::get_table) took.
    pub(super) fn put_table(&mut self, table: Mfn, level: Level, dropped: Dropped) {
        if self.ledger.put_table(table, level.into(), dropped) {
            self.drop_entries(table, level, ENTRIES);
        }
    }

    fn validate_l1(&mut self, table: Mfn) -> Result<(), Errno> {
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
                    self.drop_entries(table, Level::L1, index);
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    fn validate_upper(&mut self, table: Mfn, level: Level) -> Result<(), Errno> {
        for index in 0..ENTRIES {
            let pte = self.load(table, index);
            if !pte.is_present() || level == Level::L4 && !is_guest_l4_slot(index) {
                continue;
            }
            match self.get_child(level, pte) {
                Ok(new) if new == pte => {}
                Ok(new) => self.store(table, index, new),
                Err(error) => {
                    self.drop_entries(table, level, index);
                    return Err(error);
                }
            }
        }
        if level == Level::L4 {
            for (index, &own) in self.slots.0.iter().enumerate() {
                self.store(table, FIRST_XEN_SLOT + index, Pte(own));
            }
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

    /// Drops the references that the first `count` entries of a table stand for.
    fn drop_entries(&mut self, table: Mfn, level: Level, count: usize) {
        let Some(child) = level.child() else {
            for index in 0..count {
                let pte = self.load(table, index);
                if pte.is_present() {
                    self.ledger.put_mapping(pte);
                }
            }
            return;
        };
        for index in 0..count {
            let pte = self.load(table, index);
            if pte.is_present() && (level != Level::L4 || is_guest_l4_slot(index)) {
                self.put_table(pte.frame(), child, Dropped::Link);
            }
        }
    }
}
