//! A job that another run of the daemon began.

use std::io;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use super::{Outgoing, RETRY};
use crate::config::Peer;
use crate::daemon::job::{Direction, Job};
use crate::daemon::{Daemon, spawn};
use crate::job::{
    Compression, Control, Copied, Error, JobOptions, Needs, Presence, Result, Source,
};
use crate::journal::Journal;
use crate::session::{SessionId, SourceEvent, SourceRecord, SourceSession};

/// A guest that cannot be looked for is looked for again after this.
const AGAIN: Duration = Duration::from_secs(1);

/// A job that another run of the daemon has left.
pub(in crate::daemon) struct Left {
    session: SessionId,
    job: Arc<Job>,
    machine: SourceSession,
    journal: Journal<SourceRecord>,
}

/// Reads what another run of the daemon has written down of a job.  From here on the guest is this job's.
pub(in crate::daemon) fn recover(daemon: &Arc<Daemon>, session: SessionId) -> Result<Option<Left>> {
    let opened = Journal::open(&daemon.folder("source"), session);
    let Some((mut journal, records)) = daemon.whole(session, Direction::Outgoing, opened)? else {
        return Ok(None);
    };
    if records.last().is_none_or(SourceRecord::is_final) {
        journal.retire().map_err(Error::io("the journal"))?;
        return Ok(None);
    }
    let Some(machine) = SourceSession::recover(records) else {
        let error = io::Error::new(io::ErrorKind::InvalidData, "the journal has no beginning");
        let damaged = daemon.whole::<()>(session, Direction::Outgoing, Err(error));
        return damaged.map(|_| None);
    };
    let request = machine.request();
    let control = Arc::new(Control::new(JobOptions {
        leave_paused: request.leave_paused,
        ..JobOptions::default()
    }));
    if !matches!(
        machine.record(),
        Some(SourceRecord::Begun { .. } | SourceRecord::Suspending)
    ) {
        // It is aborting already, or it is too late for that.
        let _ = control.close();
    }
    let job = Job::new(
        session.to_string(),
        Direction::Outgoing,
        request.needs.name.clone(),
        machine.peer().to_owned(),
        control,
    );
    daemon.add(&job);
    if let Some(result) = machine.record().and_then(SourceRecord::ended) {
        // It may be another job's by now; only the destination has still to hear of this one's end.
        job.end(result);
    } else if let Ok(claim) = daemon.claim(&request.needs.uuid) {
        job.hold(claim);
    }
    Ok(Some(Left {
        session,
        job,
        machine,
        journal,
    }))
}

impl Left {
    /// Whether its guest may stand still, and is to go on here.
    pub(in crate::daemon) const fn stands_still(&self) -> bool {
        matches!(
            self.machine.record(),
            Some(SourceRecord::Suspending | SourceRecord::Aborting { .. })
        )
    }

    /// Finds out how its guest stands, and goes on from there, behind the back of whoever calls this.
    pub(in crate::daemon) fn take_up(self, daemon: &Arc<Daemon>) -> Result<()> {
        let Self {
            session,
            job,
            machine,
            journal,
        } = self;
        // A peer that was taken out of the configuration meanwhile cannot be reached, but the rest goes on.
        let peer = daemon.config.peer(machine.peer()).cloned();
        let peer = peer.unwrap_or_else(|_| Peer {
            name: machine.peer().to_owned(),
            address: String::new(),
            shared_storage: Vec::new(),
            allow: None,
        });
        let daemon = daemon.clone();
        spawn("recover", move || {
            let (source, presence) = if machine.record().and_then(SourceRecord::ended).is_some() {
                (None, Presence::Absent)
            } else {
                let (source, presence) = find(&daemon, &job, &machine.request().needs);
                (Some(source), presence)
            };
            let mut outgoing = Outgoing {
                daemon: &daemon,
                job: &job,
                session,
                peer: &peer,
                machine,
                journal,
                source,
                link: None,
                sender: None,
                watch: Arc::default(),
                compress: Compression::None,
                lanes: Ok(()),
                retry: RETRY.0,
                copied: Copied::default(),
                suspended: None,
                expected: None,
                copying: Duration::ZERO,
            };
            outgoing.run(SourceEvent::Restarted(presence));
        })?;
        Ok(())
    }
}

/// The guest as it is found, as soon as Xen and the toolstack answer.
fn find(daemon: &Daemon, job: &Job, needs: &Needs) -> (Box<dyn Source>, Presence) {
    loop {
        let found = daemon.host.find_source(needs).and_then(|mut source| {
            let presence = source.presence()?;
            Ok((source, presence))
        });
        match found {
            Ok((source, presence)) => {
                job.go_on();
                job.control.tell(format!(
                    "the agent was restarted; the guest is {presence:?}"
                ));
                return (source, presence);
            }
            Err(error) => {
                job.wait(&format!("the guest cannot be looked for: {error}"), false);
                thread::sleep(AGAIN);
            }
        }
    }
}
