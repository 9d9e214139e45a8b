//! The source's end of a session.

mod abort;
mod doubt;
mod event;
mod recovery;

use self::abort::refusal;
use self::event::is_result;
use super::{Answer, Order, Request, SourceRecord, Token};

pub use event::{Operator, SourceEffect, SourceEvent};

/// The state of the source's end.
#[derive(Clone, Debug, PartialEq, Eq)]
enum State {
    /// Nothing is journaled yet.
    New,
    /// The last record; it and `step` determine the current effect.
    At(SourceRecord),
    /// [`SourceRecord::HandedOver`] was to be written, and may be on the disk or not.
    InDoubt { reason: String },
}

/// What the machine waits for.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Pending {
    Nothing,
    /// The record that is being written.
    Record(SourceRecord),
    /// The result of a call, or of an action on the guest.
    Result(SourceEffect),
    /// Anything.
    Waiting,
}

/// The source's end of a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceSession {
    request: Box<Request>,
    token: Token,
    peer: String,
    state: State,
    pending: Pending,
    /// The destination may have a complete copy: it was told that everything is sent, or a dead run of the
    /// agent may have told it.
    may_be_whole: bool,
    /// While aborting: whether the guest runs, and whether the destination knows.
    is_resumed: bool,
    is_told: bool,
    /// Why the guest could not be resumed.
    trouble: Option<String>,
    /// What the destination knows about the failure.
    explanation: String,
}

impl SourceSession {
    /// A new session.
    #[must_use]
    pub const fn new(request: Box<Request>, token: Token, peer: String) -> Self {
        Self {
            request,
            token,
            peer,
            state: State::New,
            pending: Pending::Nothing,
            may_be_whole: false,
            is_resumed: false,
            is_told: false,
            trouble: None,
            explanation: String::new(),
        }
    }

    /// The session with these records; `None` if the first one is not a beginning.
    #[must_use]
    pub fn recover(records: Vec<SourceRecord>) -> Option<Self> {
        let mut records = records.into_iter();
        let first = records.next()?;
        let SourceRecord::Begun {
            request,
            token,
            peer,
        } = first.clone()
        else {
            return None;
        };
        let mut session = Self::new(request, token, peer);
        let records: Vec<_> = records.collect();
        session.may_be_whole = records.contains(&SourceRecord::Suspending);
        session.state = State::At(records.into_iter().last().unwrap_or(first));
        Some(session)
    }

    /// What the guest needs.
    #[must_use]
    pub const fn request(&self) -> &Request {
        &self.request
    }

    /// Who the destination is.
    #[must_use]
    pub fn peer(&self) -> &str {
        &self.peer
    }

    /// The last record that is certainly on the disk.
    #[must_use]
    pub const fn record(&self) -> Option<&SourceRecord> {
        match &self.state {
            State::At(record) => Some(record),
            State::New | State::InDoubt { .. } => None,
        }
    }

    /// Takes an event and returns the next effect; `None` for an event that nothing waits for, which changes
    /// nothing.
    pub fn step(&mut self, event: SourceEvent) -> Option<SourceEffect> {
        let pending = std::mem::replace(&mut self.pending, Pending::Nothing);
        let effect = match (pending, event) {
            (Pending::Nothing, SourceEvent::Begin) if self.state == State::New => {
                let (request, token) = (self.request.clone(), self.token);
                let peer = self.peer.clone();
                self.journal(SourceRecord::Begun {
                    request,
                    token,
                    peer,
                })
            }
            (Pending::Nothing, SourceEvent::Restarted(presence)) => self.restarted(presence),
            (Pending::Record(record), SourceEvent::Journaled(Ok(()))) => {
                self.state = State::At(record);
                self.go_on()
            }
            (Pending::Record(record), SourceEvent::Journaled(Err(error))) => {
                self.not_journaled(record, error)
            }
            (Pending::Result(effect), event) if is_result(&effect, &event) => self.result(event),
            (Pending::Waiting, SourceEvent::Retry) => self.go_on(),
            (Pending::Waiting, SourceEvent::Decided(decision)) => self.decided(decision),
            (pending, _) => {
                self.pending = pending;
                return None;
            }
        };
        Some(effect)
    }

    /// The effect that follows from the state; it can be repeated after any interruption.
    fn go_on(&mut self) -> SourceEffect {
        let record = match &self.state {
            State::New => return SourceEffect::End(Err("it never started".to_owned())),
            // Only a later record makes sure that a restart does not ask the destination to go on.
            State::InDoubt { reason } => {
                let reason = reason.clone();
                return self.journal(SourceRecord::Aborting { reason });
            }
            State::At(record) => record.clone(),
        };
        match record {
            SourceRecord::Begun { request, .. } => self.call(Order::Reserve(request)),
            SourceRecord::Suspending => self.act(SourceEffect::CopyRest),
            SourceRecord::HandedOver => self.call(Order::TakeOver(self.token)),
            SourceRecord::Released => self.act(SourceEffect::Destroy),
            SourceRecord::Done => self.call(Order::Retire),
            SourceRecord::Aborting { reason } => self.abort_further(reason),
            SourceRecord::Resumed { reason } => self.tell(reason),
            SourceRecord::Aborted { reason } => SourceEffect::End(Err(reason)),
            SourceRecord::Held { reason } => self.hold(reason),
        }
    }

    fn result(&mut self, event: SourceEvent) -> SourceEffect {
        let State::At(record) = self.state.clone() else {
            return self.go_on();
        };
        match (record, event) {
            (SourceRecord::Begun { .. }, event) => self.before_suspending(event),
            (SourceRecord::Suspending, event) => self.before_hand_over(event),
            (SourceRecord::HandedOver, event) => self.handed_over(event),
            (SourceRecord::Released, SourceEvent::Destroyed(Ok(()))) => {
                self.journal(SourceRecord::Done)
            }
            (SourceRecord::Released, SourceEvent::Destroyed(Err(trouble))) => {
                self.wait(format!("the copy here is still there: {}", trouble.reason))
            }
            (SourceRecord::Done, SourceEvent::Answered(Answer::NotYet(why))) => self.wait(why),
            // An answer other than "complete" means that it does not know the session any more.
            (SourceRecord::Done, SourceEvent::Answered(_)) => SourceEffect::End(Ok(())),
            (SourceRecord::Aborting { reason }, event) => self.aborting(reason, event),
            (SourceRecord::Resumed { reason }, event) => self.resumed(reason, event),
            (_, SourceEvent::NotAnswered(why)) => self.wait(why),
            // In the other states nothing is in progress.
            _ => self.go_on(),
        }
    }

    /// The guest runs here, and the job is reserving or copying.
    fn before_suspending(&mut self, event: SourceEvent) -> SourceEffect {
        match event {
            SourceEvent::Answered(Answer::Continue) => self.act(SourceEffect::CopyLive),
            SourceEvent::LiveCopied(Ok(())) => self.journal(SourceRecord::Suspending),
            SourceEvent::LiveCopied(Err(why)) => self.abort(why),
            SourceEvent::NotAnswered(why) => self.abort(why),
            SourceEvent::Answered(answer) => self.abort(refusal(answer)),
            _ => self.go_on(),
        }
    }

    /// The guest is suspended, and still belongs to the source.
    fn before_hand_over(&mut self, event: SourceEvent) -> SourceEffect {
        match event {
            SourceEvent::RestCopied(Ok(sent)) => {
                self.may_be_whole = true;
                self.call(Order::Receive(sent))
            }
            // The complete domain is at the destination, paused.
            SourceEvent::Answered(Answer::Continue) => self.act(SourceEffect::RuleOutAbort),
            SourceEvent::AbortRuledOut(Ok(())) => self.journal(SourceRecord::HandedOver),
            SourceEvent::RestCopied(Err(why)) | SourceEvent::AbortRuledOut(Err(why)) => {
                self.abort(why)
            }
            SourceEvent::NotAnswered(why) => self.abort(why),
            SourceEvent::Answered(answer) => self.abort(refusal(answer)),
            _ => self.go_on(),
        }
    }

    /// The guest belongs to the destination, whether the destination knows or not.
    fn handed_over(&mut self, event: SourceEvent) -> SourceEffect {
        match event {
            SourceEvent::Answered(Answer::Complete) => self.journal(SourceRecord::Released),
            // This answer is final: it will never run there.
            SourceEvent::Answered(Answer::Discarded(why)) => {
                let reason = format!("the destination discarded its copy: {why}");
                self.is_told = true;
                self.journal(SourceRecord::Aborting { reason })
            }
            SourceEvent::Answered(Answer::Lost(why)) => {
                let reason = format!("the destination took over and lost it: {why}");
                self.journal(SourceRecord::Held { reason })
            }
            SourceEvent::Answered(Answer::Unknown) => {
                let reason = "the destination no longer knows this session";
                self.journal(SourceRecord::Held {
                    reason: reason.to_owned(),
                })
            }
            SourceEvent::Answered(Answer::Refused(why)) => {
                let reason = format!("the destination refuses to take over: {why}");
                self.journal(SourceRecord::Held { reason })
            }
            SourceEvent::Answered(Answer::NotYet(why)) => {
                self.wait(format!("the destination has not taken over yet: {why}"))
            }
            SourceEvent::NotAnswered(why) => self.wait(format!("handed over, but {why}")),
            _ => self.go_on(),
        }
    }

    fn not_journaled(&mut self, record: SourceRecord, error: String) -> SourceEffect {
        let why = format!("cannot write the journal: {error}");
        match (&self.state, record) {
            (State::New, _) => SourceEffect::End(Err(why)),
            // A restart may find the record or not.  The guest must stay suspended until that is settled.
            (State::At(SourceRecord::Suspending), SourceRecord::HandedOver) => {
                self.state = State::InDoubt { reason: why };
                self.go_on()
            }
            // A restart would find a state that aborts as well, so the guest need not wait for a disk.
            (
                State::At(SourceRecord::Begun { .. } | SourceRecord::Suspending),
                record @ SourceRecord::Aborting { .. },
            ) => {
                self.state = State::At(record);
                self.go_on()
            }
            (State::At(SourceRecord::Begun { .. } | SourceRecord::Suspending), _) => {
                self.abort(why)
            }
            (_, SourceRecord::Resumed { .. }) => self.not_let_go(why),
            // Everything else can be decided again in the same way.
            _ => self.wait(why),
        }
    }

    fn decided(&mut self, decision: Operator) -> SourceEffect {
        let State::At(SourceRecord::Held { reason }) = &self.state else {
            return self.go_on();
        };
        match decision {
            Operator::RunHere => {
                let reason = format!("an operator decided to run it here ({reason})");
                self.journal(SourceRecord::Aborting { reason })
            }
            Operator::HandOver => self.journal(SourceRecord::HandedOver),
            Operator::GiveUp => {
                let reason = format!("an operator gave the guest up ({reason})");
                self.journal(SourceRecord::Resumed { reason })
            }
        }
    }

    fn journal(&mut self, record: SourceRecord) -> SourceEffect {
        self.pending = Pending::Record(record.clone());
        SourceEffect::Journal(record)
    }

    fn call(&mut self, order: Order) -> SourceEffect {
        self.act(SourceEffect::Call(order))
    }

    fn act(&mut self, effect: SourceEffect) -> SourceEffect {
        self.pending = Pending::Result(effect.clone());
        effect
    }

    fn wait(&mut self, reason: String) -> SourceEffect {
        self.pending = Pending::Waiting;
        SourceEffect::Wait {
            reason,
            is_held: false,
        }
    }

    fn hold(&mut self, reason: String) -> SourceEffect {
        self.pending = Pending::Waiting;
        SourceEffect::Wait {
            reason,
            is_held: true,
        }
    }
}
