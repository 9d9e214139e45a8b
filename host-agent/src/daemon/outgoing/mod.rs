//! A guest that leaves: carries out what the source's machine decides.
//!
//! | file | is |
//! |---|---|
//! | `meet` | step 0: everything up to where it would have an effect |
//! | `copy` | the stream, and the report of it |
//! | `recovery` | a job that another run of the daemon began |

mod copy;
mod meet;
mod recovery;

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use event_listener::Listener;
use serde_json::json;

use self::meet::{Expected, Met, meet};
use super::job::Job;
use super::link::Link;
use super::{Daemon, random};
use crate::config::Peer;
use crate::job::{Compression, Copied, Error, Phase, Presence, Result, Source};
use crate::journal::Journal;
use crate::session::{
    Answer, Operator, Order, Request, SessionId, SourceEffect, SourceEvent, SourceRecord,
    SourceSession, Token, Trouble,
};
use crate::transport::{Sender, Watch};

pub(super) use self::meet::check;
pub(super) use self::recovery::recover;

/// Pause before the destination is asked again: at first, and at most.
const RETRY: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(15));
/// How often the resume of a guest is tried at once, and the pause between two tries.
const ATTEMPTS: u32 = 4;
const PAUSE: Duration = Duration::from_millis(500);

struct Outgoing<'a> {
    daemon: &'a Arc<Daemon>,
    job: &'a Arc<Job>,
    session: SessionId,
    peer: &'a Peer,
    machine: SourceSession,
    journal: Journal<SourceRecord>,
    /// `None` once the guest no longer belongs to this session.
    source: Option<Box<dyn Source>>,
    link: Option<Link>,
    sender: Option<Sender>,
    /// Watches the sender's connections.
    watch: Arc<Watch>,
    compress: Compression,
    /// Whether the lanes could be opened.  That happens with the answer to the reservation; a failure is reported
    /// as that of the live copy, since the session aborts only from there.
    lanes_opened: Result<()>,
    retry: Duration,
    copied: Copied,
    suspended: Option<Instant>,
    /// `None` if another run of the daemon began the job.
    expected: Option<Expected>,
    /// Duration of the rounds with the guest running.
    copying: Duration,
}

/// Runs a job from beginning to end.
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
            // Nothing has happened except log-dirty mode, which ends with the source.
            drop(source);
            return daemon.over(job, Err(error.to_string()));
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
        daemon.over(job, Err(error.to_string()));
    }
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
        source: Some(source),
        link: Some(met.link),
        sender: None,
        watch: Arc::default(),
        compress: met.compress,
        lanes_opened: Ok(()),
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
                SourceEffect::CopyLive => {
                    SourceEvent::LiveCopied(self.copy_live().map_err(|error| self.why(error)))
                }
                SourceEffect::CopyRest => {
                    SourceEvent::RestCopied(self.copy_rest().map_err(|error| self.why(error)))
                }
                SourceEffect::RuleOutAbort => {
                    SourceEvent::AbortRuledOut(self.job.control.rule_out_abort().map_err(said))
                }
                SourceEffect::Resume => {
                    self.hang_up();
                    SourceEvent::Resumed(self.resume())
                }
                SourceEffect::Destroy => {
                    self.hang_up();
                    let destroyed = guest(&mut self.source).and_then(Source::destroy);
                    SourceEvent::Destroyed(self.troubled(destroyed))
                }
                SourceEffect::Wait { reason, is_held } => self.wait(&reason, is_held),
                SourceEffect::End(result) => {
                    if self.machine.record().is_some()
                        && let Err(error) = self.journal.retire()
                    {
                        log::warn!(
                            "session {}: cannot remove the journal: {error}",
                            self.session
                        );
                    }
                    return self.daemon.over(self.job, result);
                }
            };
            next = self.machine.step(event);
        }
    }

    fn journal(&mut self, record: &SourceRecord) -> std::result::Result<(), String> {
        let more = json!({ "job": self.job.id, "state": record.name() });
        self.daemon.audit.write("agent", "journal", &more);
        self.journal
            .append(record)
            .map_err(|error| error.to_string())?;
        match record {
            SourceRecord::HandedOver => {
                let message = "handed over: the destination decides from here on";
                self.job.control.enter(Phase::HandedOver, message);
            }
            SourceRecord::Aborting { reason } => {
                self.job.control.tell(format!("aborting: {reason}"));
            }
            SourceRecord::Released => self.report(),
            // The job ends for those who wait for it, even if the destination has not been told.
            SourceRecord::Done => {
                self.source = None;
                self.job.end(Ok(()));
            }
            // Waits for one answer of the destination, which may know why it failed.
            SourceRecord::Resumed { .. } => {
                self.source = None;
                self.job.let_go();
                self.job
                    .control
                    .tell("the guest runs here again, and can be migrated");
            }
            _ => {}
        }
        Ok(())
    }

    fn call(&mut self, order: &Order) -> SourceEvent {
        // The destination may build for minutes while the guest is suspended, so an abort ends the wait.  It
        // does so even before the toolstack there has begun.
        let (builds, watch) = match order {
            Order::Receive(_) => (true, self.watch.clone()),
            Order::Reserve(_) => (true, Watch::of(self.job.control.clone())),
            _ => (false, Arc::default()),
        };
        let called = self.linked().and_then(|(session, link)| match builds {
            true => link.call_unless(watch, session, order),
            false => link.call(session, order),
        });
        match called {
            Ok((answer, ticket)) => {
                // A suspended guest is worth frequent retries; a copy that cannot be discarded is not.
                if !matches!((order, &answer), (Order::Failed(_), Answer::NotYet(_))) {
                    self.retry = RETRY.0;
                }
                if let (Order::Reserve(request), Answer::Continue) = (order, &answer) {
                    self.lanes_opened = self.open_lanes(ticket, request.parallel);
                }
                SourceEvent::Answered(answer)
            }
            Err(error) => {
                // A late answer to the earlier call must not be taken for the next one.
                self.link = None;
                let aborted = self.job.control.check().err().filter(|_| builds);
                SourceEvent::NotAnswered(match aborted {
                    Some(aborted) => aborted.to_string(),
                    None => format!("the destination does not answer: {error}"),
                })
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

    /// Closes the stream: a guest that resumes or is gone is not copied any more.
    fn hang_up(&mut self) {
        self.sender = None;
    }

    /// Resumes the guest, with a few retries.  What fails now may work in a moment, and the next step is a
    /// call that can take minutes, during which the guest would stay suspended.
    fn resume(&mut self) -> std::result::Result<(), Trouble> {
        for _ in 1..ATTEMPTS {
            let resumed = guest(&mut self.source).and_then(Source::resume_here);
            match self.troubled(resumed) {
                Err(trouble) if !trouble.is_gone => {
                    log::warn!("session {}: {}: retrying", self.session, trouble.reason);
                    thread::sleep(PAUSE);
                }
                done => return done,
            }
        }
        let resumed = guest(&mut self.source).and_then(Source::resume_here);
        self.troubled(resumed)
    }

    fn troubled(&mut self, result: Result<()>) -> std::result::Result<(), Trouble> {
        result.map_err(|error| Trouble {
            reason: error.to_string(),
            is_gone: matches!(
                guest(&mut self.source).and_then(Source::presence),
                Ok(Presence::Absent | Presence::Partial)
            ),
        })
    }

    /// Waits until the next try is due or an operator has decided.
    fn wait(&mut self, reason: &str, is_held: bool) -> SourceEvent {
        if let Some(result) = self.machine.record().and_then(SourceRecord::ended) {
            // Neither the guest nor anyone waiting is affected by what is left to do.
            self.job.end(result);
            log::info!("session {}: {reason}", self.session);
        } else {
            self.job.wait(reason, is_held);
        }
        let until = Instant::now() + self.retry;
        self.retry = (self.retry * 2).min(RETRY.1);
        loop {
            let listener = self.job.control.listen();
            if let Some(decision) = self.job.take_decision() {
                let what = match decision {
                    Operator::RunHere => "run-here",
                    Operator::HandOver => "hand-over",
                    Operator::GiveUp => "give-up",
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

/// The guest, while it belongs to the session.
fn guest(source: &mut Option<Box<dyn Source>>) -> Result<&mut (dyn Source + 'static)> {
    let gone = || Error::Refused("the guest no longer belongs to this session".to_owned());
    source.as_deref_mut().ok_or_else(gone)
}

#[expect(clippy::needless_pass_by_value, reason = "it is what map_err gives")]
fn said(error: Error) -> String {
    error.to_string()
}
