//! The frame ledger: one word per frame saying whose it is, what it is used as, and how often.
//!
//! *Typed* references (a writable mapping, a page-table entry naming a table, a loaded base, a pin)
//! exclude each other by type.  *Plain* references (read-only mappings, reads in progress) exclude
//! nothing; they only keep the frame from changing hands.  Counts never wrap: a reference that
//! would overflow is refused.  The ledger checks ownership and range, so a frame that it granted a
//! reference to exists; contents of tables are the business of [`super::validate`].

mod given_up;

use alloc::vec::Vec;
use core::cell::Cell;

use xen_abi::mmu::{ENTRIES, Level, Pte};
use xen_abi::{Errno, Mfn};

use super::Tlb;
use super::epoch::Epoch;
use super::frame::{
    FrameInfo, FrameUse, HISTORY, LINK, LINK_SHIFT, ONE_PLAIN, ONE_TYPED, OWNER, OWNER_SHIFT,
    Owner, PINNED, PLAIN, STAMP_SHIFT, TYPED, USE, USE_SHIFT, WAS_SHIFT, history, owner,
    set_unfinished, typed, unfinished, used_as,
};
use super::work::Work;

use given_up::GivenUp;

/// How a table reference was granted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Granted {
    /// The frame had this use already.
    Again,
    /// It is the first: the contents are not checked yet, and nobody can change them any more.
    First,
    /// Not yet: this many entries of the table are checked, and the rest have to be first.
    Unfinished(usize),
}

/// What a dropped table reference was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Dropped {
    /// An entry that named the table, or a base: a CPU may have walked it on that behalf.
    Link,
    /// A pin, or the reference of somebody who only looked at the contents.
    Hold,
}

/// Most tables that one operation drops: both of a vCPU.
const MAX_RELEASING: usize = 2;

/// The ledger of all frames from 0 to the end of RAM.
#[derive(Debug)]
pub struct Ledger {
    words: Words,
    epoch: Epoch,
    guest_frames: u64,
    given_up: GivenUp,
    /// The tables that are being [released](super::validate), for which one step was too short.
    releasing: [Option<Mfn>; MAX_RELEASING],
    work: Work,
}

#[cfg(not(any(test, feature = "testing")))]
type Words = alloc::boxed::Box<[Cell<u64>]>;
/// In tests the machine looks into the same ledger, to see what its translations lead to.
#[cfg(any(test, feature = "testing"))]
type Words = alloc::rc::Rc<[Cell<u64>]>;

impl Ledger {
    /// Makes a ledger for `ram`, a list of first frames and lengths in frames; all of it is the
    /// shim's at first.  Frames below `end` that are not in the list are nobody's.  Takes eight
    /// bytes of heap for every frame up to the highest, in one piece.
    ///
    /// # Errors
    /// `EINVAL` for a range that wraps, `ENOMEM` when the heap is too small.
    pub fn new(end: Mfn, ram: &[(Mfn, u64)]) -> Result<Self, Errno> {
        let mut end = end.0;
        for &(first, frames) in ram {
            // The map is the host's: a range that wraps is refused before it becomes an index.
            end = end.max(first.0.checked_add(frames).ok_or(Errno::EINVAL)?);
        }
        let end = usize::try_from(end).map_err(|_| Errno::EINVAL)?;
        let mut words = Vec::new();
        // Exactly, and before the fill: a vector that grows by doubling would need twice the heap
        // that was planned for the ledger.
        words.try_reserve_exact(end).map_err(|_| Errno::ENOMEM)?;
        words.resize(end, Cell::new(0));
        for &(first, frames) in ram {
            words[first.0 as usize..(first.0 + frames) as usize]
                .fill(Cell::new((Owner::Shim as u64) << OWNER_SHIFT));
        }
        Ok(Self {
            words: Words::from(words),
            epoch: Epoch::new(),
            guest_frames: 0,
            given_up: GivenUp::default(),
            releasing: [None; MAX_RELEASING],
            work: Work::unbounded(),
        })
    }

    /// Returns the number of frames that the ledger has lines for.
    pub fn end(&self) -> Mfn {
        Mfn(self.words.len() as u64)
    }

    /// Returns how many frames are the guest's.
    pub fn guest_frames(&self) -> u64 {
        self.guest_frames
    }

    /// Returns a frame's line; `None` beyond the end of RAM.
    pub fn info(&self, mfn: Mfn) -> Option<FrameInfo> {
        let word = self.word(mfn)?;
        let owner = owner(word);
        // In the word of a frame that was given up there are no counts, but a link.
        let counts = if owner == Owner::GivenUp { 0 } else { word };
        Some(FrameInfo {
            owner,
            used_as: used_as(word),
            typed: typed(counts),
            plain: counts & PLAIN,
            pinned: word & PINNED != 0,
            unfinished: unfinished(word),
        })
    }

    /// Returns whose a frame is; frames beyond the end of RAM are nobody's.
    #[inline]
    pub fn owner(&self, mfn: Mfn) -> Owner {
        self.word(mfn).map_or(Owner::Nobody, owner)
    }

    /// Returns what a frame is used as at this moment.
    #[inline]
    pub fn used_as(&self, mfn: Mfn) -> FrameUse {
        self.word(mfn).map_or(FrameUse::None, used_as)
    }

    /// Whether the guest may read a frame in place: its own in whatever use, or one lent to it.
    #[inline]
    pub fn is_readable(&self, mfn: Mfn) -> bool {
        matches!(
            self.owner(mfn),
            Owner::Guest | Owner::Shared | Owner::ReadOnly
        )
    }

    /// Whether the guest may write a frame as it likes: it is not a table, and the guest's or
    /// shared with it.
    #[inline]
    pub fn is_plain_data(&self, mfn: Mfn) -> bool {
        self.word(mfn).is_some_and(|word| {
            matches!(owner(word), Owner::Guest | Owner::Shared)
                && matches!(used_as(word), FrameUse::None | FrameUse::Writable)
        })
    }

    /// Passes an unreferenced frame from one owner to another.  Whoever could reach it before may
    /// still do so through stale translations until they are flushed.
    ///
    /// # Errors
    /// `EINVAL` when there is no such frame, it is not `from`'s, or one of the two is
    /// [`Owner::GivenUp`]; `EBUSY` while anything refers to it.
    pub fn change_owner(&mut self, mfn: Mfn, from: Owner, to: Owner) -> Result<(), Errno> {
        let line = self.line(mfn)?;
        let word = line.get();
        if owner(word) != from || from == Owner::GivenUp || to == Owner::GivenUp {
            // Frames that are given up are in a list through their words; they come and go only by
            // that.
            return Err(Errno::EINVAL);
        }
        // The new owner would have memory that the guest's page tables still lead to.
        if word & PLAIN != 0 || used_as(word) != FrameUse::None {
            return Err(Errno::EBUSY);
        }
        // The stamp stays with the frame: its stale translations do not care who owns it.
        line.set(word & !OWNER | (to as u64) << OWNER_SHIFT);
        self.guest_frames -= u64::from(from == Owner::Guest);
        self.guest_frames += u64::from(to == Owner::Guest);
        Ok(())
    }

    /// Gives one of the shim's frames to the guest; the caller has cleared it.
    ///
    /// # Errors
    /// As [`change_owner`](Self::change_owner).
    pub fn give_to_guest(&mut self, mfn: Mfn) -> Result<(), Errno> {
        self.change_owner(mfn, Owner::Shim, Owner::Guest)
    }

    /// Takes a frame that was given or lent to the guest back for the shim.
    ///
    /// # Errors
    /// `EINVAL` when there is no such frame, `EBUSY` while anything refers to it.
    pub fn reclaim(&mut self, mfn: Mfn) -> Result<(), Errno> {
        match self.owner(mfn) {
            Owner::Nobody | Owner::Shim | Owner::GivenUp => Err(Errno::EINVAL),
            from => self.change_owner(mfn, from, Owner::Shim),
        }
    }

    /// Notes that every vCPU has just flushed every translation, global ones included: frames that
    /// lost their last typed references before need no flush of their own.
    #[inline]
    pub fn note_full_flush(&mut self) {
        self.epoch.advance();
    }

    /// Takes the reference that present L1 entry `pte` stands for: a writable or a plain one.
    #[inline]
    pub(super) fn get_mapping(&mut self, pte: Pte, tlb: &dyn Tlb) -> Result<(), Errno> {
        if pte.has(Pte::RW) {
            self.get_writable(pte.frame(), tlb)
        } else {
            self.get_plain(pte.frame())
        }
    }

    /// Drops what [`get_mapping`](Self::get_mapping) took.
    #[inline]
    pub(super) fn put_mapping(&mut self, pte: Pte) {
        if pte.has(Pte::RW) {
            self.put_writable(pte.frame());
        } else {
            self.put_plain(pte.frame());
        }
    }

    /// Takes a plain reference: the frame can not change hands while it is held.
    ///
    /// # Errors
    /// `EINVAL` when the guest may not read the frame, `ENOMEM` at too many references.
    #[inline]
    pub fn get_plain(&mut self, mfn: Mfn) -> Result<(), Errno> {
        let line = self.line(mfn)?;
        let word = line.get();
        if !matches!(owner(word), Owner::Guest | Owner::Shared | Owner::ReadOnly) {
            return Err(Errno::EINVAL);
        }
        // A guest can map one frame as often as it has entries. A count that wrapped to 0 would let
        // the frame change hands while it is mapped.
        if word & PLAIN == PLAIN {
            return Err(Errno::ENOMEM);
        }
        line.set(word + ONE_PLAIN);
        Ok(())
    }

    /// Drops a plain reference that [`get_plain`](Self::get_plain) granted.
    #[inline]
    pub fn put_plain(&mut self, mfn: Mfn) {
        let line = self.granted(mfn);
        let word = line.get();
        assert!(
            word & PLAIN != 0,
            "plain reference to {mfn:?} dropped twice"
        );
        line.set(word - ONE_PLAIN);
    }

    /// Takes a writable reference: the frame can not become a table while it is held.  One that was a
    /// table until just now is flushed first.
    ///
    /// # Errors
    /// `EINVAL` when the guest may not write the frame or it is a table, `ENOMEM` at too many
    /// references.
    #[inline]
    pub fn get_writable(&mut self, mfn: Mfn, tlb: &dyn Tlb) -> Result<(), Errno> {
        let word = self.line(mfn)?.get();
        if !matches!(owner(word), Owner::Guest | Owner::Shared) {
            return Err(Errno::EINVAL);
        }
        match used_as(word) {
            // A count that wrapped to 0 would let the frame become a table while it is mapped
            // writable.
            FrameUse::Writable if word & TYPED == TYPED => return Err(Errno::ENOMEM),
            FrameUse::Writable => self.granted(mfn).set(word + ONE_TYPED),
            // A read-only mapping does not stand in the way: plain references exclude nothing.
            FrameUse::None => self.begin(mfn, word, FrameUse::Writable, tlb),
            _ => return Err(Errno::EINVAL),
        }
        Ok(())
    }

    /// Drops a writable reference that [`get_writable`](Self::get_writable) granted.
    #[inline]
    pub fn put_writable(&mut self, mfn: Mfn) {
        let word = self.granted(mfn).get();
        assert!(
            used_as(word) == FrameUse::Writable,
            "{mfn:?} has no writable reference to drop"
        );
        if typed(word) > 1 {
            self.granted(mfn).set(word - ONE_TYPED);
        } else {
            // The caller has removed the entry, so a CPU that flushes after this epoch cannot write
            // here any more.
            self.end_use(mfn, word, self.epoch.stamp());
        }
    }

    /// Lets the shim itself store to a frame of data: one that was a table until just now is flushed
    /// first, so that no CPU takes what is stored for entries.
    ///
    /// # Errors
    /// `EINVAL` when the guest may not write the frame or it is a table.
    #[inline]
    pub fn open_for_stores(&mut self, mfn: Mfn, tlb: &dyn Tlb) -> Result<(), Errno> {
        if !self.is_plain_data(mfn) {
            return Err(Errno::EINVAL);
        }
        let word = self.line(mfn)?.get();
        // A frame in use as `Writable` was flushed when that use began.
        if used_as(word) == FrameUse::None {
            self.forget_other(word, FrameUse::Writable, tlb);
        }
        Ok(())
    }

    /// Takes a reference to one of the guest's frames as table `kind`.  One that had another use
    /// until just now is flushed first, so that nobody can change it any more.
    pub(super) fn get_table(
        &mut self,
        mfn: Mfn,
        kind: FrameUse,
        tlb: &dyn Tlb,
    ) -> Result<Granted, Errno> {
        let word = self.line(mfn)?.get();
        // Not `Shared`: the shim, or a device for it, writes those frames whenever it likes.
        if owner(word) != Owner::Guest {
            return Err(Errno::EINVAL);
        }
        let current = used_as(word);
        if current == kind {
            // Saturated: one more would wrap to 0, and the next drop would release a table in use.
            if word & TYPED == TYPED {
                return Err(Errno::ENOMEM);
            }
            self.granted(mfn).set(word + ONE_TYPED);
            return Ok(Granted::Again);
        }
        match unfinished(word) {
            Some((level, checked)) if FrameUse::from(level) == kind => {
                return Ok(Granted::Unfinished(checked));
            }
            None if current == FrameUse::None => {}
            // One use at a time. This also refuses a table that names itself, at whatever level.
            _ => return Err(Errno::EINVAL),
        }
        // Sets the use before any entry is read, and flushes stale writable translations first:
        // from here on the contents hold still.
        self.begin(mfn, word, kind, tlb);
        match kind.level() {
            None | Some(Level::L1) => Ok(Granted::First),
            Some(level) => {
                // Takes back the one reference that `begin` has granted: until all is checked
                // nobody holds one.
                self.set_unfinished(mfn, level, 0);
                Ok(Granted::Unfinished(0))
            }
        }
    }

    /// Drops a table reference; returns whether it was the last, so that what the contents stand
    /// for has to be dropped as well.  A table above L1 is unfinished until that is done.
    pub(super) fn put_table(&mut self, mfn: Mfn, kind: FrameUse, dropped: Dropped) -> bool {
        let word = self.granted(mfn).get();
        assert!(
            used_as(word) == kind,
            "{mfn:?} has no reference as {kind:?} to drop"
        );
        let link = match dropped {
            // The entry is gone already: after one flush from now on no CPU knows the table by it.
            Dropped::Link => Epoch::short(self.epoch.stamp()),
            // Nobody walked on its behalf: what the last link has left stays true.
            Dropped::Hold => (word & LINK) >> LINK_SHIFT,
        };
        if typed(word) > 1 {
            let word = word & !LINK | link << LINK_SHIFT;
            // Kept although references remain: the last to go may be a pin, which says nothing of
            // links.
            self.granted(mfn).set(word - ONE_TYPED);
            return false;
        }
        match kind.level() {
            // The moment of the last *link*, and not now: a table that was only pinned since then
            // is clean.
            None | Some(Level::L1) => self.end_use(mfn, word, self.epoch.newest(link)),
            Some(level) => {
                self.granted(mfn).set(word & !LINK | link << LINK_SHIFT);
                // The contents still hold references, so the frame gets no other use before those
                // are dropped.
                self.set_unfinished(mfn, level, ENTRIES);
            }
        }
        true
    }

    /// Returns the level of an unfinished table, and how many of its entries are checked.
    pub(crate) fn unfinished(&self, mfn: Mfn) -> Option<(Level, usize)> {
        unfinished(self.word(mfn)?)
    }

    /// Notes how many entries of a table above L1, which nothing refers to, are checked.
    pub(super) fn set_unfinished(&mut self, mfn: Mfn, level: Level, checked: usize) {
        let line = self.granted(mfn);
        line.set(set_unfinished(line.get(), level, checked));
    }

    /// Turns an unfinished table with all entries checked into a table with one reference.
    pub(super) fn finish(&mut self, mfn: Mfn, level: Level) {
        let line = self.granted(mfn);
        let word = line.get() & !(TYPED | USE);
        line.set(word | ONE_TYPED | (FrameUse::from(level) as u64) << USE_SHIFT);
    }

    /// Ends the use of an unfinished table whose entries no longer stand for anything.
    pub(super) fn end_unfinished(&mut self, mfn: Mfn, level: Level) {
        let word = self.granted(mfn).get();
        let stamp = self.epoch.newest((word & LINK) >> LINK_SHIFT);
        // `end_use` notes what the frame was: to the CPUs it is a table of its level, never an
        // unfinished one.
        let word = word & !USE | (FrameUse::from(level) as u64) << USE_SHIFT;
        self.end_use(mfn, word, stamp);
    }

    /// Returns a table that is to be released.
    pub(super) fn releasing(&self) -> Option<Mfn> {
        self.releasing[0]
    }

    /// Notes a table that is to be released; there is room for those that one operation drops.
    pub(super) fn release_later(&mut self, table: Mfn) {
        let free = self.releasing.iter_mut().find(|place| place.is_none());
        *free.expect("an operation begins when all is released") = Some(table);
    }

    /// Notes that the table of [`releasing`](Self::releasing) is released.
    pub(super) fn is_released(&mut self) {
        self.releasing.rotate_left(1);
        self.releasing[MAX_RELEASING - 1] = None;
    }

    /// Whether a table is half released, and so has to be [released](super::Mm::finish_releases) before the
    /// guest goes on.
    #[inline]
    pub fn is_releasing(&self) -> bool {
        self.releasing[0].is_some()
    }

    /// Returns the count of work done since somebody last looked whether others want their turn.
    #[inline]
    pub fn work(&self) -> &Work {
        &self.work
    }

    /// Makes long operations stop after about `units` of work; until this is called, none stops.
    pub fn set_step(&mut self, units: u32) {
        self.work = Work::in_steps_of(units);
    }

    /// Begins use `kind` of a frame that has none, with one reference.
    #[inline]
    fn begin(&mut self, mfn: Mfn, word: u64, kind: FrameUse, tlb: &dyn Tlb) {
        self.forget_other(word, kind, tlb);
        // What is stale now was this use before, and a CPU may still know it by that.
        let (_, stamp) = history(word);
        // Otherwise the previous epoch will do: it is clean now and stays clean. Epochs begin at 1,
        // so there is one.
        let link = self.epoch.stamp() - u64::from(!self.epoch.is_stale(stamp));
        let field = ONE_TYPED | Epoch::short(link) << LINK_SHIFT;
        self.granted(mfn)
            .set(word & !HISTORY | field | (kind as u64) << USE_SHIFT);
    }

    /// Flushes everything if a CPU may still reach the frame of this word, which has no use, as
    /// something else than `kind`.
    #[inline]
    fn forget_other(&mut self, word: u64, kind: FrameUse, tlb: &dyn Tlb) {
        let (was, stamp) = history(word);
        // A frame that becomes what it was needs nothing: a stale path to it allows no more than
        // the new use does. So pages that are mapped and unmapped all the time cost no flush.
        if was != kind && was != FrameUse::None && self.epoch.is_stale(stamp) {
            tlb.flush_everything();
            self.note_full_flush();
        }
    }

    /// Ends the use of a frame, which a CPU may remember as long as `stamp` is stale.
    #[inline]
    fn end_use(&mut self, mfn: Mfn, word: u64, stamp: u64) {
        let field = stamp << STAMP_SHIFT | (used_as(word) as u64) << WAS_SHIFT;
        self.granted(mfn)
            .set(word & !(HISTORY | USE | PINNED) | field);
    }

    /// Marks a table as pinned; the caller holds the reference that goes with the mark.  Returns
    /// whether it was unmarked before.
    pub(super) fn set_pinned(&mut self, mfn: Mfn) -> bool {
        let line = self.granted(mfn);
        let word = line.replace(line.get() | PINNED);
        word & PINNED == 0
    }

    /// Removes the mark; returns the level of the table, or `None` if it was not marked.
    pub(super) fn clear_pinned(&mut self, mfn: Mfn) -> Option<Level> {
        // The guest may name any frame; one that is no table has no mark.
        let line = self.line(mfn).ok()?;
        let word = line.replace(line.get() & !PINNED);
        (word & PINNED != 0).then(|| used_as(word).level())?
    }

    #[inline]
    fn word(&self, mfn: Mfn) -> Option<u64> {
        self.words.get(mfn.0 as usize).map(Cell::get)
    }

    #[inline]
    fn line(&self, mfn: Mfn) -> Result<&Cell<u64>, Errno> {
        // The only bound between a frame number that the guest has made up and memory.
        self.words.get(mfn.0 as usize).ok_or(Errno::EINVAL)
    }

    #[inline]
    fn granted(&self, mfn: Mfn) -> &Cell<u64> {
        self.words
            .get(mfn.0 as usize)
            .expect("a reference is granted only to a frame in range")
    }
}

#[cfg(any(test, feature = "testing"))]
impl Ledger {
    /// Returns a ledger of the same lines, to look into.
    pub(crate) fn window(&self) -> Self {
        Self {
            words: self.words.clone(),
            epoch: Epoch::new(),
            guest_frames: 0,
            given_up: GivenUp::default(),
            releasing: [None; MAX_RELEASING],
            work: Work::unbounded(),
        }
    }
}

#[cfg(test)]
impl Ledger {
    /// Sets both counts of a frame, to reach saturation without millions of steps.
    pub(super) fn force_counts(&mut self, mfn: Mfn, typed: u64, plain: u64) {
        let line = self.granted(mfn);
        let counts = typed << super::frame::TYPED_SHIFT | plain;
        line.set(line.get() & !(TYPED | PLAIN) | counts);
    }

    pub(super) const MAX_PLAIN: u64 = PLAIN;
}
