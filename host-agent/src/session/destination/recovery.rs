//! Where a session goes on after a restart of the agent.

use super::{DestinationEffect, DestinationSession};
use crate::job::Presence;
use crate::session::DestinationRecord;

impl DestinationSession {
    pub(super) fn restarted(&mut self, presence: Presence) -> DestinationEffect {
        if self.doubt.is_some() {
            self.seen(presence);
            return self.idle();
        }
        match (self.record.clone(), presence) {
            (Some(DestinationRecord::Reserved { .. }), Presence::Absent | Presence::Partial) => {
                self.discard("the agent was restarted while receiving".to_owned())
            }
            // The toolstack had built it to its end, and only the record of that is missing.  The source
            // may have been lost in the same moment; if it was not, it says what becomes of this copy.
            (Some(DestinationRecord::Reserved { .. }), Presence::Paused | Presence::Running) => {
                self.whole()
            }
            (Some(DestinationRecord::Received), Presence::Absent | Presence::Partial) => {
                self.discard("the domain was gone after a restart of the agent".to_owned())
            }
            (
                Some(DestinationRecord::Taken { .. } | DestinationRecord::Adopted),
                Presence::Running,
            ) => self.journal(DestinationRecord::Running),
            (
                Some(DestinationRecord::Taken { .. } | DestinationRecord::Adopted),
                Presence::Paused,
            ) => self.unpause(),
            (
                Some(DestinationRecord::Taken { .. } | DestinationRecord::Adopted),
                Presence::Absent | Presence::Partial,
            ) => {
                let reason = "the domain was gone after a restart of the agent; it may have run";
                self.journal(DestinationRecord::Lost {
                    reason: reason.to_owned(),
                })
            }
            _ => self.idle(),
        }
    }
}
