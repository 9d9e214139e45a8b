//! Recovers what another run of the daemon left.

use std::sync::Arc;

use super::incoming::Incoming;
use super::job::Direction;
use super::{Daemon, KEPT, outgoing, spawn};
use crate::job::{DomainEntry, Needs, Result};
use crate::journal;

impl Daemon {
    pub(super) fn recover(self: &Arc<Self>) -> Result<()> {
        // All jobs are known before anyone can ask for them, and nothing waits for their domains.
        let mut coming = Vec::new();
        for session in self.journals(Direction::Incoming) {
            coming.extend(Incoming::recover(self, session)?);
        }
        let mut leaving = outgoing::recover(self, self.journals(Direction::Outgoing))?;
        // Suspended guests come first.
        leaving.sort_by_key(|left| !left.stands_still());
        for left in leaving {
            left.take_up(self)?;
        }
        for incoming in coming {
            incoming.find()?;
        }
        // Old finished sessions have just been removed.
        for end in ["source", "destination"] {
            if let Err(error) = journal::prune(&self.folder(end), KEPT) {
                log::warn!("cannot remove old journals of the {end}: {error}");
            }
        }
        let daemon = self.clone();
        spawn("unwatch", move || daemon.unwatch_all())?;
        Ok(())
    }

    fn unwatch_all(self: &Arc<Self>) {
        // What this misses costs a guest time, and nothing else.
        let domains = self.host.domains().unwrap_or_else(|error| {
            log::warn!("cannot look for guests with log-dirty mode left on: {error}");
            Vec::new()
        });
        for domain in domains {
            if let Err(error) = self.unwatch(&domain) {
                log::warn!("{}: {error}", domain.name);
            }
        }
    }

    /// A run that died while it only watched a guest, for a check or before its first record, has left
    /// log-dirty mode on, which slows the guest down.
    fn unwatch(self: &Arc<Self>, domain: &DomainEntry) -> Result<()> {
        // Suspended guests, and those of a journal, are handled elsewhere.
        if !matches!(domain.state.as_str(), "running" | "blocked") {
            return Ok(());
        }
        // Released after the claim.
        let _moment = self.unwatching.lock();
        let Ok(_claim) = self.claim_now(&domain.uuid) else {
            return Ok(());
        };
        let needs = Needs {
            name: domain.name.clone(),
            uuid: domain.uuid.clone(),
            source_domid: domain.domid,
            ..Needs::default()
        };
        self.host.find_source(&needs)?.resume_here()
    }
}
