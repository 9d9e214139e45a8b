//! The frames that the guest has given up and may have again: a list in the words of those very
//! frames, which count nothing meanwhile.
//!
//! A guest decides how long the list is, so it takes no memory of its own.  The guest gets the
//! frame that it gave up last back first.

use xen_abi::{Errno, Mfn};

use super::Ledger;
use crate::mm::frame::{OWNER_SHIFT, Owner, PLAIN, TYPED, owner};

/// The bits of a word that hold the next frame's number and one, 0 at the end of the list.
const LINK: u64 = PLAIN | TYPED;
// They lie side by side from bit 0 on, so a number is stored as it is.
const _: () = assert!(LINK & (LINK + 1) == 0);

/// The head of the list.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct GivenUp {
    last: Option<Mfn>,
    count: u64,
}

impl Ledger {
    /// Takes a frame out of the guest's hands and puts it at the head of the list.
    ///
    /// # Errors
    /// `EINVAL` when it is not the guest's, `EBUSY` while anything refers to it.
    pub(in crate::mm) fn give_up(&mut self, mfn: Mfn) -> Result<(), Errno> {
        // By way of `Nobody`: the same checks as for every change of hands, and `put_first` finds
        // what it expects.
        self.change_owner(mfn, Owner::Guest, Owner::Nobody)?;
        self.put_first(mfn)
    }

    /// Puts a frame that never had memory behind it at the head of the list: the guest may ask for
    /// it as if it had given it up.
    ///
    /// # Errors
    /// `EINVAL` when there is no such frame, or somebody has it.
    pub fn give_later(&mut self, mfn: Mfn) -> Result<(), Errno> {
        self.put_first(mfn)
    }

    /// Gives the guest the frame at the head of the list.
    ///
    /// # Errors
    /// `EINVAL` when that is not `mfn`.
    pub(in crate::mm) fn have_again(&mut self, mfn: Mfn) -> Result<(), Errno> {
        // Only the head can be taken: the list has one link per frame and no way back.
        if self.given_up.last != Some(mfn) {
            return Err(Errno::EINVAL);
        }
        let line = self.line(mfn)?;
        // The new word has no history. The frame was flushed before the host could have it, so no
        // CPU remembers what it was.
        let next = line.replace((Owner::Guest as u64) << OWNER_SHIFT) & LINK;
        self.guest_frames += 1;
        self.given_up.last = next.checked_sub(1).map(Mfn);
        self.given_up.count -= 1;
        Ok(())
    }

    /// Returns the frame at the head of the list: the guest's next.
    pub fn last_given_up(&self) -> Option<Mfn> {
        self.given_up.last
    }

    /// Returns how many frames are in the list.
    pub fn given_up_frames(&self) -> u64 {
        self.given_up.count
    }

    /// Returns the frame that comes behind `mfn`, which is in the list.
    pub fn given_up_before(&self, mfn: Mfn) -> Option<Mfn> {
        let word = self.word(mfn)?;
        // In any other word these bits are counts.
        let next = if owner(word) == Owner::GivenUp {
            word & LINK
        } else {
            0
        };
        next.checked_sub(1).map(Mfn)
    }

    fn put_first(&mut self, mfn: Mfn) -> Result<(), Errno> {
        let next = self.given_up.last.map_or(0, |next| next.0 + 1);
        let line = self.line(mfn)?;
        // A frame that is in the list already, or somebody's, would tie the list into a ring or
        // lose counts.
        if owner(line.get()) != Owner::Nobody {
            return Err(Errno::EINVAL);
        }
        line.set((Owner::GivenUp as u64) << OWNER_SHIFT | next);
        self.given_up.last = Some(mfn);
        self.given_up.count += 1;
        Ok(())
    }
}
