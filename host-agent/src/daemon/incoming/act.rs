//! What the destination's machine has done: places taken, a stream received, a domain finished, let run or
//! thrown away.

use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::{Incoming, Inner};
use crate::daemon::lanes::Lanes;
use crate::daemon::random;
use crate::daemon::wire::Ticket;
use crate::job::{Destination, Error, Phase, Presence, Result};
use crate::session::{Request, Sent, SessionId, Trouble};
use crate::transport::{Duplex, Received, receive};

/// Longest time for the end of a stream of which the source says that all of it is acknowledged.
const END: Duration = Duration::from_secs(60);

/// A source that has failed has closed its connections: longest time until that is noticed here.
const NOTICED: Duration = Duration::from_secs(2);

impl Inner {
    /// Waits until the stream has ended, and what made it end here is known; not for ever, for a toolstack
    /// may hang.
    pub(super) fn wait_for_stream(&self) {
        let until = Instant::now() + NOTICED;
        let is_under_way = || self.receiving.as_ref().is_some_and(|it| !it.is_finished());
        while is_under_way() && Instant::now() < until {
            // There is no event for the end of a thread that could be waited for with a limit.
            thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Incoming {
    pub(super) fn reserve(self: &Arc<Self>, inner: &mut Inner, request: &Request) -> Result<()> {
        // Until it is accepted: whatever has this UUID here is not this session's to throw away.
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
        inner.stream = Some(Ticket {
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

    /// Connections tell of it side by side, so the word of one may be older than what is shown.
    fn show_arrived(&self, so_far: Received) {
        self.job.control.update(|statistics| {
            statistics.wire_bytes = statistics.wire_bytes.max(so_far.wire);
            statistics.memory_processed = statistics.memory_processed.max(so_far.taken);
        });
    }

    /// A failure says whether what there is of the domain is whole all the same: then it may be the last.
    pub(super) fn finish(&self, inner: &mut Inner, sent: Sent) -> std::result::Result<(), Trouble> {
        let built = self.build(inner, sent);
        // Who has given it up while it was built is not to be told that it was received.
        let Err(error) = built.and_then(|()| self.job.control.close()) else {
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
            // A toolstack that does not read any more would hold the thread.
            destination.cancel();
        }
        if let Some(receiving) = inner.receiving.take() {
            // It fails, now that its connections are stopped; that is meant.
            let _ = receiving.join();
        }
        if inner.machine.request().is_some() && !inner.is_refused {
            // Not reserved for, perhaps, but a run of the daemon before this one may have.
            self.destination(inner)?.discard()?;
        }
        Ok(())
    }

    /// The destination, looked for again if this run of the daemon has not begun it.
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

/// The thread that receives, when it is about to end.  If it does not, it stays where it is: to be stopped.
fn received(inner: &mut Inner) -> Result<JoinHandle<Result<Received>>> {
    let missing = || Error::Peer("there was no stream".to_owned());
    let receiving = inner.receiving.as_ref().ok_or_else(missing)?;
    let until = Instant::now() + END;
    while !receiving.is_finished() {
        if Instant::now() > until {
            return Err(Error::TimedOut("the end of the stream".to_owned()));
        }
        // There is no event for it that could be waited for with a limit, and the guest stands still.
        thread::sleep(Duration::from_millis(1));
    }
    inner.receiving.take().ok_or_else(missing)
}
