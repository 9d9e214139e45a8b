//! What an operator decides, where the ends of a session do not.

use std::sync::Arc;

use super::Daemon;
use super::incoming::Incoming;
use super::job::{Direction, Job};
use super::link::Link;
use crate::job::{Error, Result};
use crate::session::{Choice, Operator, SessionId};

impl Daemon {
    /// An operator decides where a job's guest is to run.
    ///
    /// # Errors
    /// If the job does not ask for that, or it cannot be done.
    pub fn decide(self: &Arc<Self>, job: &Job, run_here: bool) -> Result<()> {
        if job.direction == Direction::Incoming {
            let session = job.id.parse().map_err(Error::Refused)?;
            let choice = if run_here {
                Choice::RunHere
            } else {
                Choice::Forget
            };
            return decide(self, session, choice);
        }
        let decision = if run_here {
            Operator::RunHere
        } else {
            Operator::HandOver
        };
        if !job.decide(decision) {
            return Err(not_asked());
        }
        Ok(())
    }
}

/// Does what the operator decides about a guest that comes, unless the source can still be asked.
fn decide(daemon: &Arc<Daemon>, session: SessionId, choice: Choice) -> Result<()> {
    let found = daemon.incoming.lock().get(&session).cloned();
    let incoming = found.ok_or_else(|| {
        Error::Refused("nothing can be decided about this job: see what it waits for".to_owned())
    })?;
    if !incoming.may(choice) {
        if choice == Choice::RunHere && incoming.may(Choice::Forget) {
            return Err(Error::Refused(
                "the copy here is not there any more, or is being discarded: it can only be forgotten \
                 (`--run there`)"
                    .to_owned(),
            ));
        }
        return Err(not_asked());
    }
    if choice == Choice::RunHere {
        check_source(daemon, &incoming)?;
    }
    incoming.decided(choice)
}

/// A source whose agent answers knows more than an operator here: it may even run the guest.
fn check_source(daemon: &Daemon, incoming: &Incoming) -> Result<()> {
    let Ok(peer) = daemon.config.peer(incoming.peer()) else {
        return Ok(());
    };
    if Link::connect(&daemon.identity, peer).is_err() {
        return Ok(());
    }
    Err(Error::Refused(format!(
        "the agent of {} answers, and says what becomes of the guest: abort or decide the job there",
        peer.name
    )))
}

fn not_asked() -> Error {
    Error::Refused("the job does not ask for a decision".to_owned())
}
