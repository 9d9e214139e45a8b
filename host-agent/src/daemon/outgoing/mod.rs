//! A guest that leaves: carries out what the source's machine decides.
//!
//! | file | is |
//! |---|---|
//! | `meet` | step 0: everything up to where it would have an effect |
//! | `copy` | the stream, and the report of it |

mod copy;
mod meet;

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use event_listener::Listener;
use serde_json::json;

use self::meet::{Expected, Met, meet};
use super::job::{Direction, Job};
use super::link::Link;
use super::{Daemon, random, spawn};
use crate::config::Peer;
use crate::job::{
    Compression, Control, Copied, Error, JobOptions, Phase, Presence, Result, Source,
};
use crate::journal::Journal;
use crate::session::{
    Answer, Operator, Order, Request, SessionId, SourceEffect, SourceEvent, SourceRecord,
    SourceSession, Token, Trouble,
};
use crate::transport::{Sender, Watch};

pub(super) use self::meet::check;

/// How long to wait before the destination is asked again: at first, and at most.
const RETRY: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(15));

struct Outgoing<'a> {
    daemon: &'a Arc<Daemon>,
    job: &'a Arc<Job>,
    session: SessionId,
    peer: &'a Peer,
    machine: SourceSession,
    journal: Journal<SourceRecord>,
    source: Box<dyn Source>,
    link: Option<Link>,
    sender: Option<Sender>,
    /// Of the sender's connections.
    watch: Arc<Watch>,
    compress: Compression,
    /// What went wrong with the data connections, told when they are needed.
    lanes: Result<()>,
    retry: Duration,
    copied: Copied,
    suspended: Option<Instant>,
    /// Unless another run of the daemon began the job.
    expected: Option<Expected>,
    /// How long the rounds took with the guest running.
    copying: Duration,
}

/// Runs a job from its beginning to its end.
pub(super) fn run(
    daemon: &Arc<Daemon>,
    job: &Arc<Job>,
    session: SessionId,
    mut source: Box<dyn Source>,
    peer: &Peer,
) {
    let met = match meet(daemon, &mut *source, peer, &job.control) {
        Ok(met) => met,
        Err(error) => {
            // Nothing has happened but that the guest was watched; that ends with the source.
            drop(source);
            return over(daemon, job, Err(error.to_string()));
        }
    };
    job.predict(met.prediction);
    job.control.tell(format!(
        "expected: {:.1} s in {} rounds, blackout {:.0} ms",
        met.prediction.total_ms / 1000.0,
        met.prediction.rounds,
        met.prediction.blackout_ms
    ));
    if let Err(error) = begin(daemon, job, session, source, peer, met) {
        over(daemon, job, Err(error.to_string()));
    }
}

/// The job is over, and that is written down.
fn over(daemon: &Daemon, job: &Job, result: std::result::Result<(), String>) {
    let more = json!({ "job": job.id, "failed": result.as_ref().err() });
    daemon.audit.write("agent", "ended", &more);
    job.end(result);
}

/// Takes up a job that another run of the daemon began.
pub(super) fn recover(daemon: &Arc<Daemon>, session: SessionId) -> Result<()> {
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
        machine.record().map_or("nothing", state_name),
    ));
    daemon.add(&job);
    if let Ok(claim) = daemon.claim(&request.needs.uuid) {
        job.hold(claim);
    }
    // A peer that was taken out of the configuration meanwhile cannot be reached, but the rest goes on.
    let peer = daemon.config.peer(machine.peer()).cloned();
    let peer = peer.unwrap_or_else(|_| Peer {
        name: machine.peer().to_owned(),
        address: String::new(),
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

fn begin(
    daemon: &Arc<Daemon>,
    job: &Arc<Job>,
    session: SessionId,
    source: Box<dyn Source>,
    peer: &Peer,
    met: Met,
) -> Result<()> {
    let token = Token::new(random()?);
    let request = Request {
        needs: met.prepared.needs,
        leave_paused: job.control.options().leave_paused,
        parallel: met.parallel,
        seal: token.seal(),
    };
    let mut outgoing = Outgoing {
        daemon,
        job,
        session,
        peer,
        machine: SourceSession::new(Box::new(request), token, peer.name.clone()),
        journal: Journal::new(&daemon.folder("source"), session),
        source,
        link: Some(met.link),
        sender: None,
        watch: Arc::default(),
        compress: met.compress,
        lanes: Ok(()),
        retry: RETRY.0,
        copied: Copied::default(),
        suspended: None,
        expected: Some(met.expected),
        copying: Duration::ZERO,
    };
    outgoing.run(SourceEvent::Begin);
    Ok(())
}

impl Outgoing<'_> {
    fn run(&mut self, event: SourceEvent) {
        let mut next = self.machine.step(event);
        while let Some(effect) = next {
            log::debug!("session {}: {effect:?}", self.session);
            if !matches!(effect, SourceEffect::Wait { .. }) {
                self.job.go_on();
            }
            let event = match effect {
                SourceEffect::Journal(record) => SourceEvent::Journaled(self.journal(&record)),
                SourceEffect::Call(order) => self.call(&order),
                SourceEffect::CopyLive => SourceEvent::LiveCopied(self.copy_live().map_err(said)),
                SourceEffect::CopyRest => SourceEvent::RestCopied(self.copy_rest().map_err(said)),
                SourceEffect::Seal => SourceEvent::Sealed(self.job.control.close().map_err(said)),
                SourceEffect::Resume => {
                    self.hang_up();
                    let resumed = self.source.resume_here();
                    SourceEvent::Resumed(self.troubled(resumed))
                }
                SourceEffect::Destroy => {
                    self.hang_up();
                    let destroyed = self.source.destroy();
                    SourceEvent::Destroyed(self.troubled(destroyed))
                }
                SourceEffect::Wait { reason, is_held } => self.wait(&reason, is_held),
                SourceEffect::End(result) => {
                    if self.machine.record().is_some()
                        && let Err(error) = self.journal.retire()
                    {
                        log::warn!("session {}: the journal stays: {error}", self.session);
                    }
                    return over(self.daemon, self.job, result);
                }
            };
            next = self.machine.step(event);
        }
    }

    fn journal(&mut self, record: &SourceRecord) -> std::result::Result<(), String> {
        let more = json!({ "job": self.job.id, "state": state_name(record) });
        self.daemon.audit.write("agent", "journal", &more);
        self.journal
            .append(record)
            .map_err(|error| error.to_string())?;
        match record {
            SourceRecord::HandedOver => {
                let message = "handed over: from here on the destination decides";
                self.job.control.enter(Phase::HandedOver, message);
            }
            SourceRecord::Aborting { reason } => {
                self.job.control.tell(format!("aborting: {reason}"));
            }
            SourceRecord::Released => self.report(),
            // It is over for who waits, even if the destination has not heard so yet.
            SourceRecord::Done => self.job.end(Ok(())),
            _ => {}
        }
        Ok(())
    }

    fn call(&mut self, order: &Order) -> SourceEvent {
        let called = self
            .linked()
            .and_then(|(session, link)| link.call(session, order));
        match called {
            Ok((answer, ticket)) => {
                self.retry = RETRY.0;
                if let (Order::Reserve(request), Answer::Continue) = (order, &answer) {
                    self.lanes = self.open_lanes(ticket, request.parallel);
                }
                SourceEvent::Answered(answer)
            }
            Err(error) => {
                // Whatever is still under way on it must not be taken for the next answer.
                self.link = None;
                SourceEvent::NotAnswered(error.to_string())
            }
        }
    }

    fn linked(&mut self) -> Result<(SessionId, &mut Link)> {
        let link = match self.link.take() {
            Some(link) => link,
            None => Link::connect(&self.daemon.identity, self.peer)?,
        };
        Ok((self.session, self.link.insert(link)))
    }

    /// Closes the stream; a guest that goes on, or is gone, is not copied any more.
    fn hang_up(&mut self) {
        self.sender = None;
    }

    fn troubled(&mut self, result: Result<()>) -> std::result::Result<(), Trouble> {
        result.map_err(|error| Trouble {
            reason: error.to_string(),
            is_gone: matches!(self.source.presence(), Ok(Presence::Absent)),
        })
    }

    /// Waits until it is time to try again, or an operator has decided.
    fn wait(&mut self, reason: &str, is_held: bool) -> SourceEvent {
        self.job.wait(reason, is_held);
        let until = Instant::now() + self.retry;
        self.retry = (self.retry * 2).min(RETRY.1);
        loop {
            let listener = self.job.control.listen();
            if let Some(decision) = self.job.take_decision() {
                let what = match decision {
                    Operator::RunHere => "run-here",
                    Operator::HandOver => "hand-over",
                };
                let more = json!({ "job": self.job.id, "decision": what });
                self.daemon.audit.write("operator", "recover", &more);
                return SourceEvent::Decided(decision);
            }
            if is_held {
                listener.wait();
            } else if listener.wait_deadline(until).is_none() && Instant::now() >= until {
                return SourceEvent::Retry;
            }
        }
    }
}

#[expect(clippy::needless_pass_by_value, reason = "it is what map_err gives")]
fn said(error: Error) -> String {
    error.to_string()
}

fn state_name(record: &SourceRecord) -> &'static str {
    match record {
        SourceRecord::Begun { .. } => "begun",
        SourceRecord::Suspending => "suspending",
        SourceRecord::HandedOver => "handed over",
        SourceRecord::Released => "released",
        SourceRecord::Done => "done",
        SourceRecord::Aborting { .. } => "aborting",
        SourceRecord::Aborted { .. } => "aborted",
        SourceRecord::Held { .. } => "held",
    }
}
