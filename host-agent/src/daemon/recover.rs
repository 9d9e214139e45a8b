//! Takes up what another run of the daemon left.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use serde_json::json;

use super::incoming::Incoming;
use super::job::{Direction, Job};
use super::{Daemon, KEPT, outgoing, spawn};
use crate::job::{Control, DomainEntry, Error, JobOptions, Needs, Result};
use crate::journal;
use crate::session::SessionId;

impl Daemon {
    pub(super) fn recover(self: &Arc<Self>) -> Result<()> {
        let read = |folder: &PathBuf| {
            journal::sessions(folder)
                .map_err(Error::io(format!("cannot read {}", folder.display())))
        };
        // All is known before anybody can ask for it, and nothing of it is waited for.
        let mut coming = Vec::new();
        for session in read(&self.folder("destination"))? {
            coming.extend(Incoming::recover(self, session)?);
        }
        let mut leaving = Vec::new();
        for session in read(&self.folder("source"))? {
            leaving.extend(outgoing::recover(self, session)?);
        }
        // Guests that stand still come first.
        leaving.sort_by_key(|left| !left.stands_still());
        for left in leaving {
            left.take_up(self)?;
        }
        for incoming in coming {
            incoming.find()?;
        }
        // What is over and old has been put away just now.
        for end in ["source", "destination"] {
            if let Err(error) = journal::prune(&self.folder(end), KEPT) {
                log::warn!("old journals of the {end} stay: {error}");
            }
        }
        let daemon = self.clone();
        spawn("unwatch", move || daemon.unwatch_all())?;
        Ok(())
    }

    fn unwatch_all(self: &Arc<Self>) {
        // What this does not find costs a guest time, and no more.
        let domains = self.host.domains().unwrap_or_else(|error| {
            log::warn!("nobody looks for guests that are still watched: {error}");
            Vec::new()
        });
        for domain in domains {
            if let Err(error) = self.unwatch(&domain) {
                log::warn!("{}: {error}", domain.name);
            }
        }
    }

    /// A run that died while it only watched a guest, to check or before it wrote a journal, has left it
    /// watched, which costs the guest time.
    fn unwatch(self: &Arc<Self>, domain: &DomainEntry) -> Result<()> {
        // What is suspended, or a journal tells of, is another matter.
        if !matches!(domain.state.as_str(), "running" | "blocked") {
            return Ok(());
        }
        // Given back after the claim.
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

    /// What was read of a session's journal, unless it is damaged.  That stops its own session and no
    /// other: nothing of it is touched, and its peer gets no answer, until an operator has looked.
    pub(super) fn whole<J>(
        &self,
        session: SessionId,
        direction: Direction,
        opened: io::Result<J>,
    ) -> Result<Option<J>> {
        let error = match opened {
            Err(error) if error.kind() == io::ErrorKind::InvalidData => error,
            other => return other.map(Some).map_err(Error::io("the journal")),
        };
        log::error!("session {session}: {error}");
        let more = json!({ "job": session, "failed": error.to_string() });
        self.audit.write("agent", "journal damaged", &more);
        let control = Arc::new(Control::new(JobOptions::default()));
        let (domain, peer) = ("(not known)".to_owned(), "(not known)".to_owned());
        let job = Job::new(session.to_string(), direction, domain, peer, control);
        let what =
            "see at both ends where its guest is, then move the file away and restart the agent";
        job.wait(&format!("{error}; {what}"), false);
        self.add(&job);
        self.damaged.lock().insert(session);
        Ok(None)
    }
}
