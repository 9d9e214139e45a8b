//! Where a session goes on after a restart of the agent.

use super::{SourceEffect, SourceSession, State};
use crate::job::Presence;
use crate::session::SourceRecord;

impl SourceSession {
    pub(super) fn restarted(&mut self, presence: Presence) -> SourceEffect {
        let State::At(record) = &self.state else {
            return self.go_on();
        };
        match (record, presence) {
            (SourceRecord::Begun { .. }, _) => {
                self.abort("the agent was restarted while copying".to_owned())
            }
            // Neither is it known whether the destination has a complete copy, nor what happened to the one
            // here: someone may have resumed it, and it may have written to its disks.
            (SourceRecord::Suspending, Presence::Absent | Presence::Partial) => {
                let reason = "the suspended guest was gone after a restart of the agent; the destination may \
                 have a complete copy";
                self.journal(SourceRecord::Held {
                    reason: reason.to_owned(),
                })
            }
            (SourceRecord::Suspending, _) => {
                self.abort("the agent was restarted while the guest was suspended".to_owned())
            }
            (SourceRecord::HandedOver, Presence::Running) => {
                let reason = "the guest runs here although it was handed over";
                self.journal(SourceRecord::Held {
                    reason: reason.to_owned(),
                })
            }
            _ => self.go_on(),
        }
    }
}
