//! The destination's end of a session.

mod decision;
mod doubt;
mod event;
mod recovery;

use self::doubt::Doubt;
use self::event::is_result;
use super::{Answer, DestinationRecord, Order, Request, Token};

pub use event::{Choice, DestinationEffect, DestinationEvent};

/// What the machine waits for.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Pending {
    Nothing,
    Record(DestinationRecord),
    Result(DestinationEffect),
}

/// The destination's end of a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DestinationSession {
    peer: String,
    /// The last record; `None`: nothing is known of this session.
    record: Option<DestinationRecord>,
    request: Option<Box<Request>>,
    pending: Pending,
    /// A call waits for an answer.
    is_called: bool,
    /// Why the copy here is being discarded, or was, if that could not be journaled.
    failure: Option<String>,
    /// The copy is discarded, but that could not be journaled yet.
    is_gone: bool,
    /// The toolstack works on it, in this run of the agent.
    is_receiving: bool,
    /// The complete domain is here and paused, journaled or not.  It may be the last copy, so only its source
    /// or an operator may have it discarded.
    is_whole: bool,
    /// Why the journal does not tell the state.
    doubt: Option<Doubt>,
}

impl DestinationSession {
    /// An unknown session that this peer asks for.
    #[must_use]
    pub const fn new(peer: String) -> Self {
        Self {
            peer,
            record: None,
            request: None,
            pending: Pending::Nothing,
            is_called: false,
            failure: None,
            is_gone: false,
            is_receiving: false,
            is_whole: false,
            doubt: None,
        }
    }

    /// The session with these records; `None` if there are none.
    #[must_use]
    pub fn recover(records: Vec<DestinationRecord>) -> Option<Self> {
        let mut session = Self::new(String::new());
        for record in records {
            if let DestinationRecord::Reserved { request, peer } = &record {
                session.request = Some(request.clone());
                session.peer.clone_from(peer);
            }
            session.record = Some(record);
        }
        session.record.is_some().then_some(session)
    }

    /// The request, if this end was asked to reserve.
    #[must_use]
    pub fn request(&self) -> Option<&Request> {
        self.request.as_deref()
    }

    /// Who the source is.
    #[must_use]
    pub fn peer(&self) -> &str {
        &self.peer
    }

    /// The last record.
    #[must_use]
    pub const fn record(&self) -> Option<&DestinationRecord> {
        self.record.as_ref()
    }

    /// Whether the source's silence matters, so that the lease must be watched.
    #[must_use]
    pub const fn has_lease(&self) -> bool {
        matches!(self.record, Some(DestinationRecord::Reserved { .. }))
            && self.doubt.is_none()
            && !self.is_whole
    }

    /// Takes an event and returns the next effect; `None` for an event that nothing waits for, which changes
    /// nothing.  Calls must come one after the other: the next when this end is
    /// [idle](DestinationEffect::Idle).
    pub fn step(&mut self, event: DestinationEvent) -> Option<DestinationEffect> {
        let pending = std::mem::replace(&mut self.pending, Pending::Nothing);
        let effect = match (pending, event) {
            (Pending::Nothing, DestinationEvent::Called(order)) => {
                self.is_called = true;
                self.called(order)
            }
            (Pending::Nothing, DestinationEvent::Restarted(presence)) => self.restarted(presence),
            (Pending::Nothing, DestinationEvent::LeaseExpired) if self.has_lease() => {
                self.discard("the source no longer answers".to_owned())
            }
            (Pending::Nothing, DestinationEvent::Stopped) if self.has_lease() => {
                self.discard("the destination's agent is stopping".to_owned())
            }
            (Pending::Nothing, DestinationEvent::Decided(choice)) => self.decided(choice),
            (Pending::Record(record), DestinationEvent::Journaled(Ok(()))) => {
                self.record = Some(record);
                self.doubt = None;
                self.journaled()
            }
            (Pending::Record(record), DestinationEvent::Journaled(Err(error))) => {
                self.not_journaled(&record, &error)
            }
            (Pending::Result(effect), event) if is_result(&effect, &event) => self.result(event),
            (pending, _) => {
                self.pending = pending;
                return None;
            }
        };
        Some(effect)
    }

    fn called(&mut self, order: Order) -> DestinationEffect {
        use DestinationRecord as Record;
        if let Some(doubt) = self.doubt() {
            let why = doubt.to_owned();
            return self.refuse(&why);
        }
        if self.is_gone {
            return self.journal_discarded();
        }
        // An operator decided and it failed; nothing else can be done with the copy.
        if self.failure.is_some() {
            return self.act(DestinationEffect::Discard);
        }
        match (order, self.record.clone()) {
            (Order::Reserve(request), None) => {
                self.request = Some(request.clone());
                let peer = self.peer.clone();
                self.journal(Record::Reserved { request, peer })
            }
            // The source must not believe that this opened a session: its order is late or replayed.
            (Order::Reserve(_), Some(_)) => self.refuse("this session was begun already"),

            (Order::Receive(sent), Some(Record::Reserved { .. })) if self.is_receiving => {
                self.is_receiving = false;
                self.act(DestinationEffect::Finish(sent))
            }
            (Order::Receive(_), Some(Record::Received)) => self.answer(Answer::Continue),
            (Order::Receive(_), Some(Record::Reserved { .. })) if self.is_whole => {
                self.journal(Record::Received)
            }

            (Order::TakeOver(token), Some(Record::Received)) => {
                if self.is_right(&token) {
                    return self.journal(Record::Taken { token });
                }
                self.refuse("the token is not this session's")
            }
            // An operator at the source decided so before this end could journal that everything is here.
            (Order::TakeOver(token), Some(Record::Reserved { .. }))
                if self.is_whole && self.is_right(&token) =>
            {
                self.journal(Record::Taken { token })
            }
            (Order::TakeOver(token), Some(Record::Taken { token: known })) => {
                if token == known {
                    return self.unpause();
                }
                self.refuse("the token is not this session's")
            }
            // An operator here was faster than the source.
            (Order::TakeOver(token), Some(Record::Adopted)) if self.is_right(&token) => {
                self.unpause()
            }
            (Order::TakeOver(_), Some(Record::Running | Record::Retired { taken: true }))
            | (Order::Retire, Some(Record::Retired { .. })) => self.answer(Answer::Complete),

            (Order::Retire, Some(Record::Running)) => self.journal(Record::Retired { taken: true }),
            (Order::Retire, Some(Record::Discarded { .. })) => {
                self.journal(Record::Retired { taken: false })
            }

            // A late order must not open a session that is unknown now.
            (Order::Failed(reason), None) => self.journal(Record::Discarded { reason }),
            (
                Order::Failed(reason),
                Some(Record::Reserved { .. } | Record::Received | Record::Lost { .. }),
            ) => self.discard(format!("the source has failed: {reason}")),
            (
                Order::Failed(_),
                Some(Record::Forgotten { .. } | Record::Retired { taken: false }),
            ) => self.answer(Answer::Complete),

            (_, Some(Record::Discarded { reason })) => self.answer(Answer::Discarded(reason)),
            (_, Some(Record::Retired { taken: false })) => {
                self.answer(Answer::Discarded("long ago".to_owned()))
            }
            (_, Some(Record::Lost { reason } | Record::Forgotten { reason })) => {
                self.answer(Answer::Lost(reason))
            }
            (_, None) => self.answer(Answer::Unknown),
            (_, Some(_)) => self.refuse("this order is not valid now"),
        }
    }

    /// The next effect after a record is on the disk.
    fn journaled(&mut self) -> DestinationEffect {
        use DestinationRecord as Record;
        match self.record.clone() {
            Some(Record::Reserved { request, .. }) => self.act(DestinationEffect::Reserve(request)),
            Some(Record::Received) => self.answer(Answer::Continue),
            Some(Record::Taken { .. } | Record::Adopted) => self.unpause(),
            Some(Record::Discarded { reason }) => {
                self.is_gone = false;
                self.failure = None;
                self.answer(Answer::Discarded(reason))
            }
            Some(Record::Lost { reason } | Record::Forgotten { reason }) => {
                self.is_gone = false;
                self.failure = None;
                self.answer(Answer::Lost(reason))
            }
            Some(Record::Running | Record::Retired { .. }) => self.answer(Answer::Complete),
            None => self.idle(),
        }
    }

    fn not_journaled(&mut self, record: &DestinationRecord, error: &str) -> DestinationEffect {
        use DestinationRecord as Record;
        let why = format!("cannot write the journal: {error}");
        match record {
            // Nothing is reserved yet.  If a restart finds the record, there is nothing to discard.
            Record::Reserved { .. } => {
                self.request = None;
                self.answer(Answer::Refused(why))
            }
            // It runs, journaled or not; a restart sees it too.
            Record::Running => {
                self.record = Some(Record::Running);
                self.answer(Answer::Complete)
            }
            // Not done.  Journaled or not, the source or an operator asks again, and then it will be done.
            // If a source hears this about what was received, it cannot have handed over; its guest resumes
            // before it says that it has failed.
            Record::Received
            | Record::Taken { .. }
            | Record::Adopted
            | Record::Forgotten { .. }
            | Record::Discarded { .. }
            | Record::Lost { .. }
            | Record::Retired { .. } => self.answer(Answer::NotYet(why)),
        }
    }

    fn result(&mut self, event: DestinationEvent) -> DestinationEffect {
        match event {
            DestinationEvent::Reserved(Ok(())) => {
                self.is_receiving = true;
                self.answer(Answer::Continue)
            }
            DestinationEvent::Finished(Ok(())) => self.whole(),
            DestinationEvent::Finished(Err(trouble)) if trouble.is_gone => {
                self.discard(trouble.reason)
            }
            DestinationEvent::Finished(Err(trouble)) => {
                self.is_whole = true;
                self.answer(Answer::NotYet(trouble.reason))
            }
            DestinationEvent::Reserved(Err(why)) => self.discard(why),
            DestinationEvent::Unpaused(Ok(())) => self.journal(DestinationRecord::Running),
            // A domain that is gone cannot be unpaused by trying again, and it may have run before.
            DestinationEvent::Unpaused(Err(trouble)) if trouble.is_gone => {
                let reason = trouble.reason;
                self.journal(DestinationRecord::Lost { reason })
            }
            DestinationEvent::Unpaused(Err(trouble)) => self.answer(Answer::NotYet(format!(
                "cannot unpause the guest: {}",
                trouble.reason
            ))),
            DestinationEvent::Discarded(Ok(())) => {
                self.is_gone = true;
                self.journal_discarded()
            }
            DestinationEvent::Discarded(Err(why)) => self.answer(Answer::NotYet(format!(
                "cannot discard the copy here: {why}"
            ))),
            _ => self.idle(),
        }
    }

    fn is_right(&self, token: &Token) -> bool {
        self.request
            .as_ref()
            .is_some_and(|request| request.seal.fits(token))
    }

    fn unpause(&mut self) -> DestinationEffect {
        let leave_paused = self
            .request
            .as_ref()
            .is_some_and(|request| request.leave_paused);
        self.act(DestinationEffect::Unpause { leave_paused })
    }

    /// Everything is here.
    fn whole(&mut self) -> DestinationEffect {
        self.is_whole = true;
        self.journal(DestinationRecord::Received)
    }

    /// Decides that the copy here will never run.  Only if nothing can have run it, and if it is incomplete,
    /// or whoever asks knows of another copy that runs or can run.
    fn discard(&mut self, reason: String) -> DestinationEffect {
        self.is_receiving = false;
        self.is_whole = false;
        self.failure = Some(reason);
        self.act(DestinationEffect::Discard)
    }

    fn journal_discarded(&mut self) -> DestinationEffect {
        let reason = self.failure.clone().unwrap_or_default();
        self.journal(match self.doubt {
            Some(_) => DestinationRecord::Forgotten { reason },
            None => DestinationRecord::Discarded { reason },
        })
    }

    fn refuse(&mut self, why: &str) -> DestinationEffect {
        self.answer(Answer::Refused(why.to_owned()))
    }

    fn journal(&mut self, record: DestinationRecord) -> DestinationEffect {
        self.pending = Pending::Record(record.clone());
        DestinationEffect::Journal(record)
    }

    fn act(&mut self, effect: DestinationEffect) -> DestinationEffect {
        self.pending = Pending::Result(effect.clone());
        effect
    }

    /// Answers a call, if there is one.
    fn answer(&mut self, answer: Answer) -> DestinationEffect {
        if std::mem::take(&mut self.is_called) {
            return DestinationEffect::Answer(answer);
        }
        self.idle()
    }

    fn idle(&self) -> DestinationEffect {
        let reason = match &self.record {
            _ if self.doubt.is_some() => self.doubt().map(str::to_owned),
            Some(DestinationRecord::Received) => {
                Some("complete and paused; waiting for the source to hand over".to_owned())
            }
            Some(DestinationRecord::Taken { .. }) => {
                Some("handed over, but not unpaused yet".to_owned())
            }
            Some(DestinationRecord::Adopted) => Some(
                "it is to run here, but is not unpaused yet; `unmoved recover` tries again"
                    .to_owned(),
            ),
            Some(DestinationRecord::Lost { reason }) => Some(reason.clone()),
            Some(DestinationRecord::Reserved { .. }) if self.failure.is_some() => {
                Some("the rest of the copy here is not discarded yet".to_owned())
            }
            Some(DestinationRecord::Reserved { .. }) if self.is_whole => Some(
                "complete and paused, but not journaled yet; waiting for the source to hand over"
                    .to_owned(),
            ),
            _ => None,
        };
        DestinationEffect::Idle { reason }
    }
}
