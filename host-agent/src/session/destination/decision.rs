//! What an operator may decide here, when the source does not.
//!
//! As long as the source may still hand over or abort, it decides, and its agent knows best.  But a host
//! can be gone for good, and then the whole copy here is all that there is of the guest.
//!
//! * *Run here*: the operator vouches for the source's copy.  The decision is on the disk before the guest
//!   runs.  A source that comes back and has handed over is told that it was taken over, and destroys its
//!   copy; one that has not finds no copy to resume, or the operator was wrong.
//! * *Forget*: the guest never runs twice for it, for a copy that is discarded never runs; whether another is
//!   left is for whoever asks to [find out](super::super::standing).  One that was taken over and lost may
//!   have run: the source is told so for ever, and never that it was discarded.

use super::{Choice, DestinationEffect, DestinationSession};
use crate::session::DestinationRecord as Record;

impl DestinationSession {
    /// Whether an operator may choose this now.
    #[must_use]
    pub fn may(&self, choice: Choice) -> bool {
        if let Some(may) = self.may_in_doubt(choice) {
            return may;
        }
        let is_being_discarded = self.is_gone || self.failure.is_some();
        match (&self.record, choice) {
            (Some(Record::Received), Choice::RunHere) => !is_being_discarded,
            (Some(Record::Reserved { .. }), Choice::RunHere) => {
                self.is_whole && !is_being_discarded
            }
            (Some(Record::Adopted), Choice::RunHere)
            | (
                Some(Record::Reserved { .. } | Record::Received | Record::Lost { .. }),
                Choice::Forget,
            ) => true,
            _ => false,
        }
    }

    pub(super) fn decided(&mut self, choice: Choice) -> DestinationEffect {
        if !self.may(choice) {
            return self.idle();
        }
        if self.doubt.is_some() {
            return self.decided_in_doubt(choice);
        }
        match (self.record.clone(), choice) {
            (Some(Record::Adopted), Choice::RunHere) => self.unpause(),
            (_, Choice::RunHere) => self.journal(Record::Adopted),
            (Some(Record::Lost { reason }), Choice::Forget) => {
                self.journal(Record::Forgotten { reason })
            }
            (_, Choice::Forget) if self.is_gone => self.journal_discarded(),
            (_, Choice::Forget) => {
                self.discard("an operator decided that it does not run here".to_owned())
            }
        }
    }
}
