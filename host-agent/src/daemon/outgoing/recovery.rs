//! Recovers a job that another run of the daemon began.

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use super::{Outgoing, RETRY};
use crate::config::Peer;
use crate::daemon::doubt::doubt;
use crate::daemon::job::{Direction, Job};
use crate::daemon::{Daemon, spawn};
use crate::job::{
    Compression, Control, Copied, Error, JobOptions, Needs, Presence, Result, Source,
};
use crate::journal::Journal;
use crate::session::{SessionId, SourceEvent, SourceRecord, SourceSession};

/// Pause before another look for a guest that could not be looked for.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// A job that another run of the daemon left.
pub(in crate::daemon) struct Left {
    session: SessionId,
    job: Arc<Job>,
    machine: SourceSession,
    journal: Journal<SourceRecord>,
    /// The session is in doubt, and another job has its guest and may be about to hand it over.
    is_anothers: bool,
}

/// What was read of a session.
struct Found {
    session: SessionId,
    journal: Journal<SourceRecord>,
    records: Vec<SourceRecord>,
    /// Why the records do not tell its state.
    doubt: Option<String>,
}

/// Reads the jobs that another run of the daemon journaled, and claims their guests.
pub(in crate::daemon) fn recover(
    daemon: &Arc<Daemon>,
    sessions: Vec<SessionId>,
) -> Result<Vec<Left>> {
    let folder = daemon.folder("source");
    let found = sessions.into_iter().map(|session| {
        let (mut journal, reading) = Journal::<SourceRecord>::read(&folder, session);
        let doubt = doubt(&mut journal, &reading);
        Found {
            session,
            journal,
            records: reading.records,
            doubt,
        }
    });
    let mut found: Vec<_> = found.collect();
    // Sessions in doubt come last: they must not take a guest from another session.
    found.sort_by_key(|found| found.doubt.is_some());
    let mut left = Vec::new();
    for found in found {
        left.extend(known(daemon, found)?);
    }
    Ok(left)
}

fn known(daemon: &Arc<Daemon>, found: Found) -> Result<Option<Left>> {
    let Found {
        session,
        mut journal,
        records,
        doubt,
    } = found;
    if doubt.is_none() && records.last().is_none_or(SourceRecord::is_final) {
        if let Err(error) = journal.retire() {
            log::warn!("session {session}: cannot remove the journal: {error}");
        }
        return Ok(None);
    }
    let machine = match &doubt {
        Some(doubt) => {
            daemon.note_doubt(session, doubt);
            SourceSession::doubted(records, doubt.clone())
        }
        None => SourceSession::recover(records),
    };
    let Some(machine) = machine else {
        let why = doubt.unwrap_or_else(|| "the journal has no beginning".to_owned());
        daemon.hold_unknown(session, journal, &why);
        return Ok(None);
    };
    if doubt.is_some() {
        journal
            .begin_anew(&machine.anew())
            .map_err(Error::io("the journal"))?;
    }
    let request = machine.request();
    let control = Arc::new(Control::new(JobOptions {
        leave_paused: request.leave_paused,
        ..JobOptions::default()
    }));
    if !matches!(
        machine.record(),
        Some(SourceRecord::Begun { .. } | SourceRecord::Suspending)
    ) {
        // Either it is being aborted already, or it is too late for an abort.
        let _ = control.rule_out_abort();
    }
    let job = Job::new(
        session.to_string(),
        Direction::Outgoing,
        request.needs.name.clone(),
        machine.peer().to_owned(),
        control,
    );
    daemon.add(&job);
    let mut is_anothers = false;
    if let Some(result) = machine.record().and_then(SourceRecord::ended) {
        // Another job may have the guest by now; only the destination has not been told of the end.
        job.end(result);
    } else {
        match daemon.claim(&request.needs.uuid) {
            Ok(claim) => job.hold(claim),
            Err(_) => is_anothers = doubt.is_some(),
        }
    }
    Ok(Some(Left {
        session,
        job,
        machine,
        journal,
        is_anothers,
    }))
}

impl Left {
    /// Whether its guest may be suspended and must resume here.
    pub(in crate::daemon) const fn stands_still(&self) -> bool {
        matches!(
            self.machine.record(),
            Some(SourceRecord::Suspending | SourceRecord::Aborting { .. })
        )
    }

    /// Looks for the guest and continues the job, in a thread of its own.
    pub(in crate::daemon) fn take_up(self, daemon: &Arc<Daemon>) -> Result<()> {
        let Self {
            session,
            job,
            machine,
            journal,
            is_anothers,
        } = self;
        // A peer that is no longer configured cannot be reached, but everything else continues.
        let peer = daemon.config.peer(machine.peer()).cloned();
        let peer = peer.unwrap_or_else(|_| Peer {
            name: machine.peer().to_owned(),
            address: String::new(),
            shared_storage: Vec::new(),
            allow: None,
        });
        let daemon = daemon.clone();
        spawn("recover", move || {
            let is_over = machine.record().and_then(SourceRecord::ended).is_some();
            let (source, presence) = if is_over || is_anothers {
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
                lanes_opened: Ok(()),
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

/// Looks for the guest until Xen and the toolstack answer.
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
                job.wait(&format!("cannot look for the guest: {error}"), false);
                thread::sleep(RETRY_AFTER);
            }
        }
    }
}
