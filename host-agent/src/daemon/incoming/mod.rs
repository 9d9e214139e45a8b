//! An arriving guest: carries out what the destination's machine decides.
//!
//! The threads of the connections answer the calls of a session, one after the other, under its lock.  Other
//! threads receive the stream; the machine waits for them when it wants the domain finished.

mod end;
mod recovery;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde_json::json;

use super::job::{Direction, Job};
use super::lanes::Lanes;
use super::wire::StreamOffer;
use super::{Daemon, random};
use crate::job::{Control, Destination, Error, JobOptions, Phase, Presence, Result};
use crate::journal::Journal;
use crate::session::{
    Answer, Choice, DestinationEffect, DestinationEvent, DestinationRecord, DestinationSession,
    Order, Request, Sent, SessionId, Trouble,
};
use crate::transport::{Duplex, Received, Watch, receive};

/// Most sessions of one peer that are remembered, including finished ones.
const SESSIONS_MOST: usize = 4096;
/// Number of sessions that make way at once when there is no space, because finding them takes a while.
const MAKE_WAY: usize = 256;

/// Longest time for the end of a stream that the source says is fully acknowledged.
const END: Duration = Duration::from_secs(60);

/// A source that has failed has closed its connections: longest time until this host notices.
const NOTICED: Duration = Duration::from_secs(2);

/// The destination's end of a session.
pub(super) struct Incoming {
    session: SessionId,
    /// When it began here, or was recovered.
    since: Instant,
    job: Arc<Job>,
    inner: Mutex<Inner>,
    /// Outside of the lock, because connections arrive while a call is being answered.
    lanes: Mutex<Option<Lanes>>,
    /// The local error that ended the stream, unless the connection was the cause.
    failure: Mutex<Option<String>>,
    /// Another run of the daemon began the session, and this one does not know the state of its domain yet.
    is_sought: AtomicBool,
}

struct Inner {
    daemon: Arc<Daemon>,
    machine: DestinationSession,
    journal: Journal<DestinationRecord>,
    destination: Option<Box<dyn Destination>>,
    receiving: Option<JoinHandle<Result<Received>>>,
    watch: Arc<Watch>,
    /// Sent with the next answer.
    stream: Option<StreamOffer>,
    /// This run could not reserve: nothing here belongs to this session.
    is_refused: bool,
}

impl Incoming {
    /// This peer's session; creates one if it does not exist.
    pub(super) fn of(daemon: &Arc<Daemon>, session: SessionId, peer: &str) -> Result<Arc<Self>> {
        let mut all = daemon.incoming.lock();
        if let Some(known) = all.get(&session) {
            return Ok(known.clone());
        }
        // Under this lock, because stopping the daemon looks for existing sessions.
        daemon.refuse_if_stopping()?;
        daemon.refuse_if_sessions_unlisted(Direction::Incoming)?;
        make_way(&mut all, peer)?;
        let journal = Journal::new(&daemon.folder("destination"), session);
        let machine = DestinationSession::new(peer.to_owned());
        let new = Self::new(daemon, session, machine, journal, "(not known yet)");
        all.insert(session, new.clone());
        Ok(new)
    }

    fn new(
        daemon: &Arc<Daemon>,
        session: SessionId,
        machine: DestinationSession,
        journal: Journal<DestinationRecord>,
        domain: &str,
    ) -> Arc<Self> {
        let control = Arc::new(Control::new(JobOptions::default()));
        let job = Job::new(
            session.to_string(),
            Direction::Incoming,
            domain.to_owned(),
            machine.peer().to_owned(),
            control.clone(),
        );
        Arc::new(Self {
            session,
            since: Instant::now(),
            job,
            lanes: Mutex::new(None),
            failure: Mutex::new(None),
            is_sought: AtomicBool::new(false),
            inner: Mutex::new(Inner {
                daemon: daemon.clone(),
                machine,
                journal,
                destination: None,
                receiving: None,
                watch: Watch::of(control),
                stream: None,
                is_refused: false,
            }),
        })
    }

    /// Handles a call of the source; returns the answer and, once, the stream's ticket.
    pub(super) fn called(
        self: &Arc<Self>,
        peer: &str,
        order: Order,
    ) -> Result<(Answer, Option<StreamOffer>)> {
        if self.peer().is_empty()
            && let Some(doubt) = self.inner.lock().machine.doubt()
        {
            return Err(Error::Refused(doubt.to_owned()));
        }
        if self.peer() != peer {
            return Err(Error::Refused(
                "this session belongs to another peer".to_owned(),
            ));
        }
        if self.is_sought() {
            return Ok((Answer::NotYet(recovery::SOUGHT.to_owned()), None));
        }
        let mut inner = self.inner.lock();
        // Another connection may have ended the session since the lookup.
        let known = inner.daemon.incoming.lock().get(&self.session).cloned();
        if !known.is_some_and(|known| Arc::ptr_eq(&known, self)) {
            return Err(Error::Refused("this session has just ended".to_owned()));
        }
        let more = json!({ "session": self.session, "step": order.step() });
        let (daemon, who) = (&inner.daemon, format!("peer {peer}"));
        daemon.calls.note(&daemon.audit, &who, "call", more);
        if let Order::Failed(_) = order {
            inner.wait_for_stream();
        }
        let order = self.explained(order);
        let answer = self.run(&mut inner, DestinationEvent::Called(order));
        let answer = answer.ok_or_else(|| Error::Refused("no answer".to_owned()))?;
        if inner.machine.record().is_none() {
            // The session did not start, so nothing is remembered.
            inner.daemon.incoming.lock().remove(&self.session);
        }
        Ok((answer, inner.stream.take()))
    }

    /// Adds the local error.  The source sees only that its connections are closed.
    fn explained(&self, order: Order) -> Order {
        match (order, &*self.failure.lock()) {
            (Order::Failed(reason), Some(why)) => {
                Order::Failed(format!("{reason}; at the destination: {why}"))
            }
            (order, _) => order,
        }
    }

    /// The source is gone.  Returns whether a discard that follows from this is still to be done.
    pub(super) fn silent(self: &Arc<Self>) -> bool {
        let mut inner = self.inner.lock();
        self.run(&mut inner, DestinationEvent::LeaseExpired);
        self.ask_operator(&inner);
        inner.machine.has_lease()
    }

    /// Nobody knows when the source comes back, if ever.
    fn ask_operator(&self, inner: &Inner) {
        if let Some(DestinationRecord::Received) = inner.machine.record() {
            let reason = format!(
                "complete and paused; waiting for {} to hand over. If that host is gone for good, make sure \
                 that it is off or that its copy is destroyed, then run `unmoved recover {}`",
                self.job.peer, self.job.id
            );
            self.job.wait(&reason, false);
        }
    }

    /// The source's name.
    pub(super) fn peer(&self) -> &str {
        &self.job.peer
    }

    /// An operator decides.
    pub(super) fn decided(self: &Arc<Self>, choice: Choice) -> Result<()> {
        let mut inner = self.free()?;
        self.run(&mut inner, DestinationEvent::Decided(choice));
        let is_done = match (inner.machine.record(), choice) {
            (Some(DestinationRecord::Running), Choice::RunHere) => true,
            (Some(record), Choice::Forget) => record.is_final(),
            _ => false,
        };
        drop(inner);
        if is_done {
            return Ok(());
        }
        let waiting = self.job.status(u64::MAX).waiting.unwrap_or_default();
        Err(Error::Refused(format!("not done: {waiting}")))
    }

    /// Admits a connection of the stream, once.
    pub(super) fn take_lane(
        &self,
        peer: &str,
        ticket: SessionId,
        lane: u8,
    ) -> std::result::Result<Arc<Watch>, &'static str> {
        let mut lanes = self.lanes.lock();
        let lanes = lanes.as_mut().ok_or("no stream is expected")?;
        lanes.take(peer, ticket, lane)
    }

    /// Adds the connection.
    pub(super) fn add_lane(&self, ticket: SessionId, lane: u8, connection: Box<dyn Duplex>) {
        if let Some(lanes) = &mut *self.lanes.lock() {
            lanes.add(ticket, lane, connection);
        }
    }

    /// Feeds the machine and carries out its effects until it is idle; returns the answer to a call.
    fn run(self: &Arc<Self>, inner: &mut Inner, event: DestinationEvent) -> Option<Answer> {
        let mut answer = None;
        let mut next = inner.machine.step(event);
        while let Some(effect) = next.take() {
            log::debug!("session {}: {effect:?}", self.session);
            let result = match effect {
                DestinationEffect::Journal(record) => {
                    DestinationEvent::Journaled(self.journal(inner, &record))
                }
                DestinationEffect::Reserve(request) => {
                    let reserved = self.reserve(inner, &request);
                    DestinationEvent::Reserved(reserved.map_err(|error| error.to_string()))
                }
                DestinationEffect::Finish(sent) => {
                    DestinationEvent::Finished(self.finish(inner, sent))
                }
                DestinationEffect::Unpause { leave_paused } => {
                    DestinationEvent::Unpaused(self.unpause(inner, leave_paused))
                }
                DestinationEffect::Discard => {
                    let discarded = self.discard(inner);
                    DestinationEvent::Discarded(discarded.map_err(|error| error.to_string()))
                }
                DestinationEffect::Answer(given) => {
                    answer = Some(given);
                    break;
                }
                DestinationEffect::Idle { reason } => {
                    if let Some(reason) = reason {
                        self.job.wait(&reason, false);
                    }
                    break;
                }
            };
            next = inner.machine.step(result);
        }
        self.show(inner);
        // However the session ended, it must not hold anything back.
        if inner
            .machine
            .record()
            .is_some_and(DestinationRecord::is_final)
        {
            inner.destination = None;
            inner.journal.close();
            self.release(inner);
        }
        answer
    }

    /// Gives up the reservation, if there is one.
    fn release(&self, inner: &Inner) {
        let reservations = inner.daemon.host.reservations();
        reservations.release(&self.session.to_string());
    }

    /// Shows the record's meaning in the job.
    fn show(&self, inner: &Inner) {
        if let Some(doubt) = inner.machine.doubt() {
            self.job.wait(doubt, true);
            return;
        }
        match inner.machine.record() {
            Some(DestinationRecord::Received) => {
                self.job.wait(
                    "complete and paused; waiting for the source to hand over",
                    false,
                );
            }
            Some(DestinationRecord::Running | DestinationRecord::Retired { taken: true }) => {
                self.job.end(Ok(()));
            }
            Some(
                DestinationRecord::Discarded { reason } | DestinationRecord::Forgotten { reason },
            ) => {
                self.job.end(Err(reason.clone()));
            }
            Some(DestinationRecord::Lost { reason }) => self.job.wait(reason, true),
            _ => {}
        }
    }

    fn journal(
        &self,
        inner: &mut Inner,
        record: &DestinationRecord,
    ) -> std::result::Result<(), String> {
        let more = json!({ "job": self.session, "state": record.name() });
        inner.daemon.audit.write("agent", "journal", &more);
        inner
            .journal
            .append(record)
            .map_err(|error| error.to_string())
    }
}

/// Makes space for another session of this peer: forgets the oldest finished sessions.
///
/// # Errors
/// [`Error::Refused`] if none is finished.
fn make_way(all: &mut BTreeMap<SessionId, Arc<Incoming>>, peer: &str) -> Result<()> {
    let own = || all.values().filter(|session| session.peer() == peer);
    if own().count() < SESSIONS_MOST {
        return Ok(());
    }
    let mut over: Vec<_> = own()
        .filter(|session| session.is_over())
        .map(|session| (session.since, session.session))
        .collect();
    if over.is_empty() {
        return Err(Error::Refused(format!(
            "{SESSIONS_MOST} sessions of {peer} are active here, which is the limit"
        )));
    }
    over.sort_unstable();
    for (_, session) in over.into_iter().take(MAKE_WAY) {
        if let Some(forgotten) = all.remove(&session) {
            forgotten.forget();
        }
    }
    Ok(())
}

impl Incoming {
    /// Whether the session is finished; one with a thread at work on it is not.
    fn is_over(&self) -> bool {
        let inner = self.inner.try_lock();
        let record = inner.as_ref().and_then(|inner| inner.machine.record());
        record.is_some_and(DestinationRecord::is_final)
    }

    fn forget(&self) {
        if let Some(mut inner) = self.inner.try_lock()
            && let Err(error) = inner.journal.retire()
        {
            log::warn!(
                "session {}: cannot remove the journal: {error}",
                self.session
            );
        }
    }
}

impl Inner {
    /// Waits until the stream has ended and its error here is known.  The wait is limited, because a
    /// toolstack may hang.
    fn wait_for_stream(&self) {
        let until = Instant::now() + NOTICED;
        let is_under_way = || self.receiving.as_ref().is_some_and(|it| !it.is_finished());
        while is_under_way() && Instant::now() < until {
            // No call waits for the end of a thread with a time limit.
            thread::sleep(Duration::from_millis(5));
        }
    }
}

/// The effects: reserves, receives the stream, finishes the domain, unpauses or discards it.
impl Incoming {
    fn reserve(self: &Arc<Self>, inner: &mut Inner, request: &Request) -> Result<()> {
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
    fn finish(&self, inner: &mut Inner, sent: Sent) -> std::result::Result<(), Trouble> {
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

    fn unpause(&self, inner: &mut Inner, leave_paused: bool) -> std::result::Result<(), Trouble> {
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

    fn discard(&self, inner: &mut Inner) -> Result<()> {
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
    fn destination<'a>(&self, inner: &'a mut Inner) -> Result<&'a mut Box<dyn Destination>> {
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
