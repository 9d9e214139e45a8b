//! Sessions whose journals do not tell their state, and journal folders that cannot be read.
//!
//! Only these sessions stop: each becomes a HELD job.  If the journal's beginning is readable, the session's
//! machine takes an operator's decision.  If not, the guest is unknown, and the operator can only confirm
//! that it has been taken care of.

use std::path::Path;
use std::sync::Arc;

use serde_json::json;

use super::Daemon;
use super::job::{Direction, Job};
use crate::job::{Control, Error, JobOptions, Result};
use crate::journal::{self, Damage, Journal, Reading};
use crate::session::{SessionId, SourceRecord};

/// Shown where nothing is known.
const UNKNOWN: &str = "(not known)";

/// Why a journal must not be acted on, as a sentence for the operator; `None` if everything in it is on the
/// disk.
pub(super) fn doubt<R>(journal: &mut Journal<R>, reading: &Reading<R>) -> Option<String>
where
    R: serde::Serialize + serde::de::DeserializeOwned,
{
    let settle = |journal: &mut Journal<R>| {
        let error = journal.settle().err()?;
        Some(Damage::Unwritable(error.to_string()))
    };
    let damage = reading.damage.clone().or_else(|| settle(journal))?;
    Some(format!(
        "{damage}; or find out on both hosts where the guest is, then run `unmoved recover`"
    ))
}

impl Daemon {
    /// Lists the sessions at this end.  If that fails, no session starts there, because it could be one of
    /// them.
    pub(super) fn journals(&self, direction: Direction) -> Vec<SessionId> {
        let folder = self.folder(end(direction));
        journal::sessions(&folder).unwrap_or_else(|error| {
            let why = unlisted(&folder, &error);
            log::error!("{why}");
            let id = format!("journals-{}", direction.name());
            self.add_held(id, direction, &why);
            self.unlisted.lock().push((direction, why));
            Vec::new()
        })
    }

    /// Lets no session begin at this end while it is unknown which ones there are.
    ///
    /// # Errors
    /// [`Error::Refused`] if the journals of this end could not be listed.
    pub(super) fn refuse_if_sessions_unlisted(&self, direction: Direction) -> Result<()> {
        let unlisted = self.unlisted.lock();
        let found = unlisted.iter().find(|(end, _)| *end == direction);
        found.map_or(Ok(()), |(_, why)| Err(Error::Refused(why.clone())))
    }

    /// Reports a session that is in doubt.
    pub(super) fn note_doubt(&self, session: SessionId, doubt: &str) {
        log::error!("session {session}: {doubt}");
        let more = json!({ "job": session, "failed": doubt });
        self.audit.write("agent", "journal damaged", &more);
    }

    /// Holds a session of a departing guest about which nothing is known.
    pub(super) fn hold_unknown(
        &self,
        session: SessionId,
        journal: Journal<SourceRecord>,
        why: &str,
    ) {
        let what = format!(
            "{why}. Its guest is unknown: check on both hosts that each guest runs exactly once; `unmoved \
             recover --discard` then sets the journal aside"
        );
        self.add_held(session.to_string(), Direction::Outgoing, &what);
        self.unknown.lock().insert(session, journal);
    }

    /// Ends a session about which nothing is known, because an operator took care of it; `false` if it is not
    /// one of these.
    pub(super) fn put_aside(&self, job: &Job) -> Result<bool> {
        let Ok(session) = job.id.parse::<SessionId>() else {
            return Ok(false);
        };
        let mut unknown = self.unknown.lock();
        let Some(journal) = unknown.get_mut(&session) else {
            return Ok(false);
        };
        journal
            .put_aside()
            .map_err(Error::io("cannot set the journal aside"))?;
        unknown.remove(&session);
        drop(unknown);
        let more = json!({ "job": session, "decision": "put-aside" });
        self.audit.write("operator", "recover", &more);
        let why = "its journal was damaged, and an operator set it aside";
        self.over(job, Err(why.to_owned()));
        Ok(true)
    }

    fn add_held(&self, id: String, direction: Direction, why: &str) {
        let control = Arc::new(Control::new(JobOptions::default()));
        let (domain, peer) = (UNKNOWN.to_owned(), UNKNOWN.to_owned());
        let job = Job::new(id, direction, domain, peer, control);
        job.wait(why, true);
        self.add(&job);
    }
}

/// The folder of journals at this end.
const fn end(direction: Direction) -> &'static str {
    match direction {
        Direction::Incoming => "destination",
        _ => "source",
    }
}

fn unlisted(folder: &Path, error: &std::io::Error) -> String {
    format!(
        "cannot read the journal folder {} ({error}): no guest migrates in this direction until it is \
         readable and unmovedd is restarted",
        folder.display()
    )
}
