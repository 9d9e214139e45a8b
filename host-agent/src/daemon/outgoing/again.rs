//! A job that another run of the daemon began.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use super::{Outgoing, RETRY};
use crate::config::Peer;
use crate::daemon::job::{Direction, Job};
use crate::daemon::{Daemon, spawn};
use crate::job::{Compression, Control, Copied, Error, JobOptions, Result};
use crate::journal::Journal;
use crate::session::{SessionId, SourceEvent, SourceRecord, SourceSession};

/// Takes up a job that another run of the daemon began.
pub(in crate::daemon) fn recover(daemon: &Arc<Daemon>, session: SessionId) -> Result<()> {
    let opened = Journal::open(&daemon.folder("source"), session);
    let Some((mut journal, records)) = daemon.whole(session, Direction::Outgoing, opened)? else {
        return Ok(());
    };
    if records.last().is_none_or(SourceRecord::is_final) {
        return journal.retire().map_err(Error::io("the journal"));
    }
    let Some(machine) = SourceSession::recover(records) else {
        let error = io::Error::new(io::ErrorKind::InvalidData, "the journal has no beginning");
        let damaged = daemon.whole::<()>(session, Direction::Outgoing, Err(error));
        return damaged.map(drop);
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
    let mut source = daemon.host.find_source(&request.needs)?;
    let presence = source.presence()?;
    job.control.tell(format!(
        "the agent was restarted; the journal says {}, the guest is {presence:?}",
        machine.record().map_or("nothing", SourceRecord::name),
    ));
    daemon.add(&job);
    let source = if let Some(result) = machine.record().and_then(SourceRecord::ended) {
        // It may be another job's by now; only the destination has still to hear of this one's end.
        job.end(result);
        None
    } else {
        if let Ok(claim) = daemon.claim(&request.needs.uuid) {
            job.hold(claim);
        }
        Some(source)
    };
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
