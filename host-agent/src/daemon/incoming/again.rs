//! A session that another run of the daemon began.
//!
//! It is known from the start, so that no call about it is answered as one about a session that never was, and
//! what it holds stays locked; what its domain is found to be comes later, for a toolstack may take minutes
//! to say so.  Until then its source is told to ask again.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use super::Incoming;
use crate::daemon::job::Direction;
use crate::daemon::{Daemon, KEPT, spawn};
use crate::job::{Error, Presence, Result};
use crate::journal::Journal;
use crate::session::{DestinationEvent, DestinationRecord, DestinationSession, SessionId};

/// What a caller is told meanwhile.
pub(super) const SOUGHT: &str =
    "the destination's agent was restarted, and still looks for what there is of the guest";
/// A toolstack that does not answer is asked again after this.
const AGAIN: Duration = Duration::from_secs(5);

impl Incoming {
    /// Reads a session's journal; it is known from here on.  Gives it if its domain is to be
    /// [found](Incoming::find).
    pub(in crate::daemon) fn recover(
        daemon: &Arc<Daemon>,
        session: SessionId,
    ) -> Result<Option<Arc<Self>>> {
        let failed = || Error::io("the journal");
        let opened = Journal::open(&daemon.folder("destination"), session);
        let Some((mut journal, records)) = daemon.whole(session, Direction::Incoming, opened)?
        else {
            return Ok(None);
        };
        let Some(machine) = DestinationSession::recover(records) else {
            return Ok(None);
        };
        let request = machine.request().cloned();
        let name = request
            .as_ref()
            .map_or("?", |request| &request.needs.destination_name)
            .to_owned();
        let is_final = machine.record().is_some_and(DestinationRecord::is_final);
        if is_final && journal.age().map_err(failed())? > KEPT {
            journal.retire().map_err(failed())?;
            return Ok(None);
        }
        let incoming = Self::new(daemon, session, machine, journal, &name);
        let sought = request.filter(|_| !is_final);
        if let Some(request) = &sought {
            daemon.add(&incoming.job);
            incoming.is_sought.store(true, Ordering::Release);
            // Whether there is memory for it is not asked: the domain may have it already.
            let held = daemon
                .locks
                .lock()
                .take(session, (&request.needs).into(), u64::MAX);
            if let Err(why) = held {
                log::warn!("session {session}: {why}");
            }
        }
        daemon.incoming.lock().insert(session, incoming.clone());
        Ok(sought.map(|_| incoming))
    }

    /// Finds out how its domain stands, and goes on from there, behind the back of whoever calls this.
    pub(in crate::daemon) fn find(self: Arc<Self>) -> Result<()> {
        spawn("recover", move || {
            while let Err(error) = self.look() {
                let reason = format!("what there is of the guest cannot be looked for: {error}");
                self.job.wait(&reason, false);
                thread::sleep(AGAIN);
            }
            self.is_sought.store(false, Ordering::Release);
        })?;
        Ok(())
    }

    fn look(self: &Arc<Self>) -> Result<()> {
        let session = self.session;
        let mut inner = self.inner.lock();
        let daemon = inner.daemon.clone();
        let Some(request) = inner.machine.request() else {
            return Ok(());
        };
        let mut destination = daemon
            .host
            .find_destination(&session.to_string(), &request.needs)?;
        let presence = destination.presence()?;
        inner.destination = Some(destination);
        if presence == Presence::Absent {
            daemon.locks.lock().give_up(session);
        } else {
            // The domain that stands there has its memory already.
            daemon.locks.lock().built(session);
        }
        log::info!("session {session}: the domain is {presence:?} after a restart");
        self.job.go_on();
        self.run(&mut inner, DestinationEvent::Restarted(presence));
        self.ask_operator(&inner);
        Ok(())
    }

    /// Whether it is not known yet how its domain stands.
    pub(super) fn is_sought(&self) -> bool {
        self.is_sought.load(Ordering::Acquire)
    }
}
