//! Carries out the effects of the destination's machine: reserves, receives the stream, finishes the domain,
//! unpauses or discards it.

use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::{Incoming, Inner};
use crate::daemon::lanes::Lanes;
use crate::daemon::random;
use crate::daemon::wire::StreamOffer;
use crate::job::{Destination, Error, Phase, Presence, Result};
use crate::session::{Request, Sent, SessionId, Trouble};
use crate::transport::{Duplex, Received, receive};

/// Longest time for the end of a stream that the source says is fully acknowledged.
const END: Duration = Duration::from_secs(60);

/// A source that has failed has closed its connections: longest time until this host notices.
const NOTICED: Duration = Duration::from_secs(2);

impl Inner {
    /// Waits until the stream has ended and its error here is known.  The wait is limited, because a
    /// toolstack may hang.
    pub(super) fn wait_for_stream(&self) {
        let until = Instant::now() + NOTICED;
        let is_under_way = || self.receiving.as_ref().is_some_and(|it| !it.is_finished());
        while is_under_way() && Instant::now() < until {
            // No call waits for the end of a thread with a time limit.
            thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Incoming {
    pub(super) fn reserve(self: &Arc<Self>, inner: &mut Inner, request: &Request) -> Result<()> {
        // Until the session is accepted, whatever has this UUID here is not this session's to discard.
        inner.is_refused = true;
        if !(1..=Request::CONNECTIONS_MOST).contains(&request.parallel) {
            let why = format!("{} connections are not possible", request.parallel);
            return Err(Error::Refused(why));
        }
        let daemon = inner.daemon.clone();
        self.job.rename(&request.needs.destination_name);
        daemon.admits(inner.machine.peer(), &request.needs)?;
        let mut destination = daemon.host.destination()?;
        destination.reserve(&self.session.to_string(), &request.needs)?;
        inner.is_refused = false;
        let destination = inner.destination.insert(destination);
        let sink = destination.receive(&self.job.control)?;
        let builds_early = sink.builds_early();
        let ticket = SessionId::new(random()?);
        let peer = inner.machine.peer().to_owned();
        let (lanes, connections) = Lanes::new(ticket, peer, request.parallel, inner.watch.clone());
        *self.lanes.lock() = Some(lanes);
        let (watch, this) = (inner.watch.clone(), self.clone());
        let thread = thread::Builder::new().name("receive".to_owned());
        let receiving = thread.spawn(move || {
            let connections: Vec<Box<dyn Duplex>> = connections
                .recv()
                .map_err(|_| Error::Peer("the stream did not start".to_owned()))?;
            let tell = |so_far| this.show_arrived(so_far);
            receive(connections, &*sink, &watch, &tell).inspect_err(|error| {
                log::debug!("session {}: the stream ended: {error}", this.session);
                if let Error::Xen(why) = error {
                    *this.failure.lock() = Some(why.clone());
                }
            })
        });
        inner.receiving = Some(receiving.map_err(Error::io("cannot start a thread"))?);
        inner.stream = Some(StreamOffer {
            ticket,
            builds_early,
        });
        daemon.add(&self.job);
        let message = format!(
            "{} is arriving from {}: its name, memory and disks are reserved",
            request.needs.destination_name,
            inner.machine.peer()
        );
        self.job.control.enter(Phase::Live, message);
        Ok(())
    }

    /// Several connections report, so one report may be older than what is shown.
    fn show_arrived(&self, so_far: Received) {
        self.job.control.update(|statistics| {
            statistics.wire_bytes = statistics.wire_bytes.max(so_far.wire);
            statistics.memory_processed = statistics.memory_processed.max(so_far.taken);
        });
    }

    /// A failure says whether the domain is complete nevertheless, because it may be the last copy.
    pub(super) fn finish(&self, inner: &mut Inner, sent: Sent) -> std::result::Result<(), Trouble> {
        let built = self.build(inner, sent);
        // If the job was given up during the build, the source must not hear that it was received.
        let Err(error) = built.and_then(|()| self.job.control.rule_out_abort()) else {
            return Ok(());
        };
        let given_up = self
            .failure
            .lock()
            .clone()
            .filter(|_| self.job.control.is_aborted());
        let presence = inner.destination.as_mut().map(|there| there.presence());
        Err(Trouble {
            reason: given_up.unwrap_or_else(|| error.to_string()),
            is_gone: !matches!(
                presence,
                Some(Ok(Presence::Paused | Presence::Running) | Err(_))
            ),
        })
    }

    fn build(&self, inner: &mut Inner, sent: Sent) -> Result<()> {
        *self.lanes.lock() = None;
        self.job
            .control
            .enter(Phase::Building, "building the domain");
        let received = received(inner)?
            .join()
            .map_err(|_| Error::Peer("the receiver thread panicked".to_owned()))??;
        if received.taken != sent.bytes {
            return Err(Error::Peer(format!(
                "{} bytes were sent, but {} arrived",
                sent.bytes, received.taken
            )));
        }
        self.destination(inner)?.finish(sent.limits)
    }

    pub(super) fn unpause(
        &self,
        inner: &mut Inner,
        leave_paused: bool,
    ) -> std::result::Result<(), Trouble> {
        self.job
            .control
            .enter(Phase::HandedOver, "taking over the guest");
        let destination = self.destination(inner);
        let unpaused = destination.and_then(|destination| {
            destination.unpause(leave_paused).inspect_err(|error| {
                log::error!("session {}: cannot unpause: {error}", self.session);
            })
        });
        let Err(error) = unpaused else {
            return Ok(());
        };
        let presence = inner.destination.as_mut().map(|there| there.presence());
        Err(Trouble {
            reason: error.to_string(),
            is_gone: matches!(presence, Some(Ok(Presence::Absent | Presence::Partial))),
        })
    }

    pub(super) fn discard(&self, inner: &mut Inner) -> Result<()> {
        *self.lanes.lock() = None;
        inner.watch.stop();
        if let Some(destination) = &inner.destination {
            // A toolstack that no longer reads would block the thread.
            destination.cancel();
        }
        if let Some(receiving) = inner.receiving.take() {
            // It fails because its connections are closed, which is intended.
            let _ = receiving.join();
        }
        if inner.machine.request().is_some() && !inner.is_refused {
            // This run may not have reserved for it, but an earlier one may have.
            self.destination(inner)?.discard()?;
        }
        Ok(())
    }

    /// The destination.  It is looked up again if this run of the daemon did not create it.
    pub(super) fn destination<'a>(
        &self,
        inner: &'a mut Inner,
    ) -> Result<&'a mut Box<dyn Destination>> {
        let Some(request) = inner.machine.request() else {
            return Err(Error::Refused("nothing was reserved".to_owned()));
        };
        match &mut inner.destination {
            Some(destination) => Ok(destination),
            none => {
                let job = self.session.to_string();
                let found = inner.daemon.host.find_destination(&job, &request.needs)?;
                Ok(none.insert(found))
            }
        }
    }
}

/// The receiving thread, once it has ended.  If it does not end in time, it stays in place, to be stopped.
fn received(inner: &mut Inner) -> Result<JoinHandle<Result<Received>>> {
    let missing = || Error::Peer("there was no stream".to_owned());
    let receiving = inner.receiving.as_ref().ok_or_else(missing)?;
    let until = Instant::now() + END;
    while !receiving.is_finished() {
        if Instant::now() > until {
            return Err(Error::TimedOut("the end of the stream".to_owned()));
        }
        // No call waits for it with a time limit, and the guest is suspended.
        thread::sleep(Duration::from_millis(1));
    }
    inner.receiving.take().ok_or_else(missing)
}
