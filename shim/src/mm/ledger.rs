//! The frame ledger: one word per frame saying whose it is, what it is used as, and how often.
//!
//! *Typed* references (a writable mapping, a page-table entry naming a table, a loaded base, a pin)
//! exclude each other by type.  *Plain* references (read-only mappings, reads in progress) exclude
//! nothing; they only keep the frame from changing hands.  Counts never wrap: a reference that
//! would overflow is refused.  The ledger checks ownership and range, so a frame that it granted a
//! reference to exists; contents of tables are the business of [`super::validate`].

mod given_up;

use alloc::boxed::Box;
use alloc::vec::Vec;

use xen_abi::mmu::{Level, Pte};
use xen_abi::{Errno, Mfn};

use super::frame::{
    FrameInfo, FrameUse, ONE_PLAIN, ONE_TYPED, OWNER, OWNER_SHIFT, Owner, PERIOD, PERIOD_SHIFT,
    PINNED, PLAIN, TYPED, TYPED_SHIFT, USE, USE_SHIFT, owner, used_as,
};

use given_up::GivenUp;

/// How a table reference was granted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Granted {
    /// The frame had this use already.
    Again,
    /// It is the first: the contents are unchecked yet.
    First {
        /// A CPU may still hold a writable translation of the frame.
        stale: bool,
    },
}

/// The ledger of all frames from 0 to the end of RAM.
#[derive(Debug)]
pub struct Ledger {
    words: Box<[u64]>,
    period: u64,
    guest_frames: u64,
    given_up: GivenUp,
}

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
            end = end.max(first.0.checked_add(frames).ok_or(Errno::EINVAL)?);
        }
        let end = usize::try_from(end).map_err(|_| Errno::EINVAL)?;
        let mut words = Vec::new();
        words.try_reserve_exact(end).map_err(|_| Errno::ENOMEM)?;
        words.resize(end, 0);
        for &(first, frames) in ram {
            words[first.0 as usize..(first.0 + frames) as usize]
                .fill((Owner::Shim as u64) << OWNER_SHIFT);
        }
        Ok(Self {
            words: words.into_boxed_slice(),
            period: 1,
            guest_frames: 0,
            given_up: GivenUp::default(),
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
            typed: (counts & TYPED) >> TYPED_SHIFT,
            plain: counts & PLAIN,
            pinned: word & PINNED != 0,
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
        let word = self.word_mut(mfn)?;
        if owner(*word) != from || from == Owner::GivenUp || to == Owner::GivenUp {
            return Err(Errno::EINVAL);
        }
        if *word & (PLAIN | TYPED) != 0 {
            return Err(Errno::EBUSY);
        }
        *word = *word & !OWNER | (to as u64) << OWNER_SHIFT;
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

    /// Takes note that every vCPU has just forgotten every translation, global ones included, so
    /// that frames which lost their writable mappings before need no flush of their own.
    #[inline]
    pub fn note_full_flush(&mut self) {
        self.period = self.period % 63 + 1;
    }

    /// Takes the reference that present L1 entry `pte` stands for: a writable or a plain one.
    #[inline]
    pub(super) fn get_mapping(&mut self, pte: Pte) -> Result<(), Errno> {
        if pte.has(Pte::RW) {
            self.get_writable(pte.frame())
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
        let word = self.word_mut(mfn)?;
        if !matches!(owner(*word), Owner::Guest | Owner::Shared | Owner::ReadOnly) {
            return Err(Errno::EINVAL);
        }
        if *word & PLAIN == PLAIN {
            return Err(Errno::ENOMEM);
        }
        *word += ONE_PLAIN;
        Ok(())
    }

    /// Drops a plain reference that [`get_plain`](Self::get_plain) granted.
    #[inline]
    pub fn put_plain(&mut self, mfn: Mfn) {
        let word = self.granted_word(mfn);
        assert!(
            *word & PLAIN != 0,
            "plain reference to {mfn:?} dropped twice"
        );
        *word -= ONE_PLAIN;
    }

    /// Takes a writable reference: the frame can not become a table while it is held.
    ///
    /// # Errors
    /// `EINVAL` when the guest may not write the frame or it is a table, `ENOMEM` at too many
    /// references.
    #[inline]
    pub fn get_writable(&mut self, mfn: Mfn) -> Result<(), Errno> {
        let word = self.word_mut(mfn)?;
        if !matches!(owner(*word), Owner::Guest | Owner::Shared) {
            return Err(Errno::EINVAL);
        }
        match used_as(*word) {
            FrameUse::Writable if *word & TYPED == TYPED => return Err(Errno::ENOMEM),
            FrameUse::Writable => *word += ONE_TYPED,
            FrameUse::None => *word += (FrameUse::Writable as u64) << USE_SHIFT | ONE_TYPED,
            _ => return Err(Errno::EINVAL),
        }
        Ok(())
    }

    /// Drops a writable reference that [`get_writable`](Self::get_writable) granted.
    #[inline]
    pub fn put_writable(&mut self, mfn: Mfn) {
        let period = self.period;
        let word = self.granted_word(mfn);
        assert!(
            used_as(*word) == FrameUse::Writable,
            "{mfn:?} has no writable reference to drop"
        );
        *word -= ONE_TYPED;
        if *word & TYPED == 0 {
            *word = *word & !(USE | PERIOD) | period << PERIOD_SHIFT;
        }
    }

    /// Takes a reference to one of the guest's frames as table `kind`.
    pub(super) fn get_table(&mut self, mfn: Mfn, kind: FrameUse) -> Result<Granted, Errno> {
        let period = self.period;
        let word = self.word_mut(mfn)?;
        if owner(*word) != Owner::Guest {
            return Err(Errno::EINVAL);
        }
        let current = used_as(*word);
        if current == kind {
            if *word & TYPED == TYPED {
                return Err(Errno::ENOMEM);
            }
            *word += ONE_TYPED;
            return Ok(Granted::Again);
        }
        if current != FrameUse::None {
            return Err(Errno::EINVAL);
        }
        *word += (kind as u64) << USE_SHIFT | ONE_TYPED;
        let stale = (*word & PERIOD) >> PERIOD_SHIFT == period;
        Ok(Granted::First { stale })
    }

    /// Drops a table reference; returns whether it was the last, so that what the contents stand
    /// for has to be dropped as well.
    pub(super) fn put_table(&mut self, mfn: Mfn, kind: FrameUse) -> bool {
        let word = self.granted_word(mfn);
        assert!(
            used_as(*word) == kind,
            "{mfn:?} has no reference as {kind:?} to drop"
        );
        *word -= ONE_TYPED;
        let last = *word & TYPED == 0;
        if last {
            *word &= !(USE | PINNED);
        }
        last
    }

    /// Marks a table as pinned; the caller holds the reference that goes with the mark.  Returns
    /// whether it was unmarked before.
    pub(super) fn set_pinned(&mut self, mfn: Mfn) -> bool {
        let word = self.granted_word(mfn);
        let fresh = *word & PINNED == 0;
        *word |= PINNED;
        fresh
    }

    /// Removes the mark; returns the level of the table, or `None` if it was not marked.
    pub(super) fn clear_pinned(&mut self, mfn: Mfn) -> Option<Level> {
        let word = self.word_mut(mfn).ok()?;
        if *word & PINNED == 0 {
            return None;
        }
        *word &= !PINNED;
        used_as(*word).level()
    }

    #[inline]
    fn word(&self, mfn: Mfn) -> Option<u64> {
        self.words.get(mfn.0 as usize).copied()
    }

    #[inline]
    fn word_mut(&mut self, mfn: Mfn) -> Result<&mut u64, Errno> {
        self.words.get_mut(mfn.0 as usize).ok_or(Errno::EINVAL)
    }

    #[inline]
    fn granted_word(&mut self, mfn: Mfn) -> &mut u64 {
        self.words
            .get_mut(mfn.0 as usize)
            .expect("a reference is granted only to a frame in range")
    }
}

#[cfg(test)]
impl Ledger {
    /// Sets both counts of a frame, to reach saturation without millions of steps.
    pub(super) fn force_counts(&mut self, mfn: Mfn, typed: u64, plain: u64) {
        let word = self.granted_word(mfn);
        *word = *word & !(TYPED | PLAIN) | typed << TYPED_SHIFT | plain;
    }

    pub(super) const MAX_PLAIN: u64 = PLAIN;
}
