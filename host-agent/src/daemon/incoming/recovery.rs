//! Recovers a session that another run of the daemon began.
//!
//! The session exists from the start, so that no call about it is answered as unknown, and its reservation
//! stays.  Its domain is looked for later, because a toolstack may take minutes to answer.  Until then the
//! source is told to ask again.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use super::Incoming;
use crate::daemon::doubt::doubt;
use crate::daemon::{Daemon, KEPT, spawn};
use crate::job::{Error, Presence, Result};
use crate::journal::Journal;
use crate::session::{DestinationEvent, DestinationRecord, DestinationSession, SessionId};

/// The answer to calls in the meantime.
pub(super) const SOUGHT: &str =
    "the destination's agent was restarted and is still looking for the guest";
/// Pause before a toolstack that does not answer is asked again.
const RETRY_AFTER: Duration = Duration::from_secs(5);

impl Incoming {
    /// Reads a session's journal and adds the session.  Returns it if its domain must be [looked
    /// for](Incoming::find).
    pub(in crate::daemon) fn recover(
        daemon: &Arc<Daemon>,
        session: SessionId,
    ) -> Result<Option<Arc<Self>>> {
        let folder = daemon.folder("destination");
        let (mut journal, reading) = Journal::<DestinationRecord>::read(&folder, session);
        let doubt = doubt(&mut journal, &reading);
        let machine = match &doubt {
            Some(doubt) => {
                daemon.note_doubt(session, doubt);
                let machine = DestinationSession::doubted(reading.records, doubt.clone());
                let anew = journal.begin_anew(&machine.anew());
                anew.map_err(Error::io("the journal"))?;
                machine
            }
            None => match DestinationSession::recover(reading.records) {
                Some(machine) => machine,
                // No record was ever in force.
                None => return Ok(retired(session, &mut journal)),
            },
        };
        let request = machine.request().cloned();
        let name = request
            .as_ref()
            .map_or("?", |request| &request.needs.destination_name)
            .to_owned();
        let is_final = machine.record().is_some_and(DestinationRecord::is_final);
        if is_final && journal.age().is_ok_and(|age| age > KEPT) {
            return Ok(retired(session, &mut journal));
        }
        let incoming = Self::new(daemon, session, machine, journal, &name);
        if let (None, Some(doubt)) = (&request, &doubt) {
            incoming.job.wait(doubt, true);
            daemon.add(&incoming.job);
        }
        let sought = request.filter(|_| !is_final);
        if let Some(request) = &sought {
            daemon.add(&incoming.job);
            incoming.is_sought.store(true, Ordering::Release);
            let reservations = daemon.host.reservations();
            reservations.restore(&session.to_string(), &request.needs);
        }
        daemon.incoming.lock().insert(session, incoming.clone());
        Ok(sought.map(|_| incoming))
    }

    /// Looks for the domain and continues the session, in a thread of its own.
    pub(in crate::daemon) fn find(self: Arc<Self>) -> Result<()> {
        spawn("recover", move || {
            while let Err(error) = self.look() {
                let reason = format!("cannot look for the guest: {error}");
                self.job.wait(&reason, false);
                thread::sleep(RETRY_AFTER);
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
            self.release(&inner);
        } else {
            // The domain has its memory already.
            let reservations = daemon.host.reservations();
            reservations.built(&session.to_string());
        }
        log::info!("session {session}: the domain is {presence:?} after a restart");
        self.job.go_on();
        self.run(&mut inner, DestinationEvent::Restarted(presence));
        self.ask_operator(&inner);
        Ok(())
    }

    /// Whether the domain's state is still unknown.
    pub(super) fn is_sought(&self) -> bool {
        self.is_sought.load(Ordering::Acquire)
    }
}

/// Removes a journal.  If that fails, the next start finds it again.
fn retired(session: SessionId, journal: &mut Journal<DestinationRecord>) -> Option<Arc<Incoming>> {
    if let Err(error) = journal.retire() {
        log::warn!("session {session}: cannot remove the journal: {error}");
    }
    None
}
