//! A guest that comes: carries out what the destination's machine decides.
//!
//! Calls of one session are answered one after the other, under its lock, by the threads of the
//! connections that they came on.  The stream is received by threads of its own, which the machine meets
//! again when it wants the domain finished.

use std::sync::Arc;
use std::thread::{self, JoinHandle};

use parking_lot::Mutex;
use serde_json::json;

use super::job::{Direction, Job};
use super::lanes::Lanes;
use super::wire::Ticket;
use super::{Daemon, KEPT, random};
use crate::job::{Control, Destination, Error, JobOptions, Phase, Presence, Result};
use crate::journal::Journal;
use crate::session::{
    Answer, DestinationEffect, DestinationEvent, DestinationRecord, DestinationSession, Order,
    Request, SessionId, Trouble,
};
use crate::transport::{Duplex, Received, Watch, receive};

/// The destination's end of a session.
pub(super) struct Incoming {
    session: SessionId,
    job: Arc<Job>,
    inner: Mutex<Inner>,
    /// Apart from the rest: connections come while a call is being answered.
    lanes: Mutex<Option<Lanes>>,
}

struct Inner {
    daemon: Arc<Daemon>,
    machine: DestinationSession,
    journal: Journal<DestinationRecord>,
    destination: Option<Box<dyn Destination>>,
    receiving: Option<JoinHandle<Result<Received>>>,
    watch: Arc<Watch>,
    /// To be told with the next answer.
    stream: Option<Ticket>,
}

impl Incoming {
    /// The session of this name that belongs to this peer; a new one if there is none.
    pub(super) fn of(daemon: &Arc<Daemon>, session: SessionId, peer: &str) -> Result<Arc<Self>> {
        let mut all = daemon.incoming.lock();
        if let Some(known) = all.get(&session) {
            return Ok(known.clone());
        }
        let journal = Journal::new(&daemon.folder("destination"), session);
        let machine = DestinationSession::new(peer.to_owned());
        let new = Self::new(daemon, session, machine, journal, "(not known yet)");
        all.insert(session, new.clone());
        Ok(new)
    }

    /// Takes up a session that another run of the daemon began.
    pub(super) fn recover(daemon: &Arc<Daemon>, session: SessionId) -> Result<()> {
        let failed = || Error::io("the journal");
        let (mut journal, records) =
            Journal::open(&daemon.folder("destination"), session).map_err(failed())?;
        let Some(machine) = DestinationSession::recover(records) else {
            return Ok(());
        };
        let request = machine.request().cloned();
        let name = request
            .as_ref()
            .map_or("?", |request| &request.needs.destination_name)
            .to_owned();
        let is_final = machine.record().is_some_and(DestinationRecord::is_final);
        if is_final && journal.age().map_err(failed())? > KEPT {
            return journal.retire().map_err(failed());
        }
        let incoming = Self::new(daemon, session, machine, journal, &name);
        if let (Some(request), false) = (request, is_final) {
            daemon.add(&incoming.job);
            let mut inner = incoming.inner.lock();
            let mut destination = daemon
                .host
                .find_destination(&session.to_string(), &request.needs)?;
            let presence = destination.presence()?;
            inner.destination = Some(destination);
            if presence != Presence::Absent {
                let free = daemon.host.facts()?.free_memory_bytes;
                let mut locks = daemon.locks.lock();
                let held = locks.take(session, (&request.needs).into(), free);
                if let Err(why) = held {
                    log::warn!("session {session}: {why}");
                }
                locks.built(session);
            }
            log::info!("session {session}: the domain is {presence:?} after a restart");
            incoming.run(&mut inner, DestinationEvent::Restarted(presence));
        }
        daemon.incoming.lock().insert(session, incoming);
        Ok(())
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
            job,
            lanes: Mutex::new(None),
            inner: Mutex::new(Inner {
                daemon: daemon.clone(),
                machine,
                journal,
                destination: None,
                receiving: None,
                watch: Watch::of(control),
                stream: None,
            }),
        })
    }

    /// A call of the source; gives the answer and, once, the ticket of the stream.
    pub(super) fn called(
        self: &Arc<Self>,
        peer: &str,
        order: Order,
    ) -> Result<(Answer, Option<Ticket>)> {
        let mut inner = self.inner.lock();
        if inner.machine.peer() != peer {
            return Err(Error::Refused(
                "this session belongs to somebody else".to_owned(),
            ));
        }
        let more = json!({ "session": self.session, "step": order.step() });
        inner
            .daemon
            .audit
            .write(&format!("peer {peer}"), "call", &more);
        let answer = self.run(&mut inner, DestinationEvent::Called(order));
        let answer = answer.ok_or_else(|| Error::Refused("no answer".to_owned()))?;
        if inner.machine.record().is_none() {
            // Nothing came of it, and nothing is to be remembered.
            inner.daemon.incoming.lock().remove(&self.session);
        }
        Ok((answer, inner.stream.take()))
    }

    /// The source has gone away.
    pub(super) fn silent(self: &Arc<Self>) {
        let mut inner = self.inner.lock();
        self.run(&mut inner, DestinationEvent::LeaseExpired);
    }

    /// A connection of the stream wants in: each is let in once.
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

    /// The connection stands.
    pub(super) fn add_lane(&self, ticket: SessionId, lane: u8, connection: Box<dyn Duplex>) {
        if let Some(lanes) = &mut *self.lanes.lock() {
            lanes.add(ticket, lane, connection);
        }
    }

    /// Feeds the machine and does what it says until it is idle; gives the answer to a call.
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
                DestinationEffect::Finish { sent } => {
                    let finished = self.finish(inner, sent);
                    DestinationEvent::Finished(finished.map_err(|error| error.to_string()))
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
        answer
    }

    /// What the record means to who looks at the job.
    fn show(&self, inner: &Inner) {
        match inner.machine.record() {
            Some(DestinationRecord::Received) => {
                self.job
                    .wait("whole and paused; waits for the source's word", false);
            }
            Some(DestinationRecord::Running | DestinationRecord::Retired { taken: true }) => {
                self.job.end(Ok(()));
            }
            Some(DestinationRecord::Discarded { reason }) => self.job.end(Err(reason.clone())),
            Some(DestinationRecord::Lost { reason }) => self.job.wait(reason, true),
            _ => {}
        }
    }

    fn journal(
        &self,
        inner: &mut Inner,
        record: &DestinationRecord,
    ) -> std::result::Result<(), String> {
        inner
            .journal
            .append(record)
            .map_err(|error| error.to_string())
    }

    fn reserve(self: &Arc<Self>, inner: &mut Inner, request: &Request) -> Result<()> {
        if !(1..=Request::CONNECTIONS_MOST).contains(&request.parallel) {
            let why = format!("{} connections cannot be", request.parallel);
            return Err(Error::Refused(why));
        }
        let daemon = inner.daemon.clone();
        self.job.rename(&request.needs.destination_name);
        let free = daemon.host.facts()?.free_memory_bytes;
        daemon
            .locks
            .lock()
            .take(self.session, (&request.needs).into(), free)
            .map_err(Error::Refused)?;
        let mut destination = daemon.host.destination()?;
        destination.reserve(&self.session.to_string(), &request.needs)?;
        let destination = inner.destination.insert(destination);
        let sink = destination.receive(&self.job.control)?;
        let builds_early = sink.builds_early();
        let ticket = SessionId::new(random()?);
        let peer = inner.machine.peer().to_owned();
        let (lanes, connections) = Lanes::new(ticket, peer, request.parallel, inner.watch.clone());
        *self.lanes.lock() = Some(lanes);
        let watch = inner.watch.clone();
        let thread = thread::Builder::new().name("receive".to_owned());
        let receiving = thread.spawn(move || {
            let connections: Vec<Box<dyn Duplex>> = connections
                .recv()
                .map_err(|_| Error::Peer("the stream never began".to_owned()))?;
            receive(connections, &*sink, &watch)
        });
        inner.receiving = Some(receiving.map_err(Error::io("cannot start a thread"))?);
        inner.stream = Some(Ticket {
            ticket,
            builds_early,
        });
        daemon.add(&self.job);
        let message = format!(
            "{} comes from {}: its name, memory and disks are locked",
            request.needs.destination_name,
            inner.machine.peer()
        );
        self.job.control.enter(Phase::Live, message);
        Ok(())
    }

    fn finish(&self, inner: &mut Inner, sent: u64) -> Result<()> {
        *self.lanes.lock() = None;
        let receiving = inner.receiving.take();
        let receiving = receiving.ok_or_else(|| Error::Peer("there was no stream".to_owned()))?;
        self.job
            .control
            .enter(Phase::Building, "the domain is being built");
        let received = receiving
            .join()
            .map_err(|_| Error::Peer("the receiving thread failed".to_owned()))??;
        if received.taken != sent {
            return Err(Error::Peer(format!(
                "{sent} bytes were sent, but {} have arrived",
                received.taken
            )));
        }
        self.job.control.update(|statistics| {
            statistics.wire_bytes = received.wire;
            statistics.memory_processed = received.taken;
        });
        self.destination(inner)?.finish()?;
        inner.daemon.locks.lock().built(self.session);
        Ok(())
    }

    fn unpause(&self, inner: &mut Inner, leave_paused: bool) -> std::result::Result<(), Trouble> {
        self.job
            .control
            .enter(Phase::HandedOver, "the guest is taken over");
        let destination = self.destination(inner);
        let unpaused = destination.and_then(|destination| {
            destination.unpause(leave_paused).inspect_err(|error| {
                log::error!("session {}: cannot unpause: {error}", self.session);
            })
        });
        let Err(error) = unpaused else {
            inner.daemon.locks.lock().give_up(self.session);
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
        if let Some(receiving) = inner.receiving.take() {
            // It fails, now that its connections are stopped; that is meant.
            let _ = receiving.join();
        }
        if inner.machine.request().is_some() {
            // Not reserved for, perhaps, but a run of the daemon before this one may have.
            self.destination(inner)?.discard()?;
        }
        inner.daemon.locks.lock().give_up(self.session);
        Ok(())
    }

    /// The destination, looked for again if this run of the daemon has not begun it.
    fn destination<'a>(&self, inner: &'a mut Inner) -> Result<&'a mut Box<dyn Destination>> {
        let Some(request) = inner.machine.request() else {
            return Err(Error::Refused("nothing was ever reserved".to_owned()));
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
