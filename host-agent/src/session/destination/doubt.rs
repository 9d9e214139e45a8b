//! A session whose journal does not tell its state.
//!
//! Its copy may have been taken over and may run.  So it is neither unpaused nor discarded, and the source is
//! told no more than that: any answer that the session is unknown, or its copy discarded, would be a
//! decision.

use super::{Choice, DestinationEffect, DestinationSession};
use crate::job::Presence;
use crate::session::DestinationRecord as Record;

/// What is known nevertheless.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Doubt {
    pub(super) reason: String,
    /// The last known state of the domain.
    presence: Presence,
}

impl DestinationSession {
    /// The session of which only these records are readable.
    #[must_use]
    pub fn doubted(records: Vec<Record>, reason: String) -> Self {
        let is_begin = |record: &Record| matches!(record, Record::Reserved { .. });
        let begun: Vec<_> = records.into_iter().filter(is_begin).take(1).collect();
        let mut session = Self::recover(begun).unwrap_or_else(|| Self::new(String::new()));
        session.doubt = Some(Doubt {
            reason,
            presence: Presence::Partial,
        });
        session
    }

    /// Why its state is unknown.
    #[must_use]
    pub fn doubt(&self) -> Option<&str> {
        self.doubt.as_ref().map(|doubt| &*doubt.reason)
    }

    /// The first records of the new journal, after an operator's decision.
    #[must_use]
    pub fn anew(&self) -> Vec<Record> {
        self.record.iter().cloned().collect()
    }

    /// The agent has looked at the domain.
    pub fn seen(&mut self, presence: Presence) {
        if let Some(doubt) = &mut self.doubt {
            doubt.presence = presence;
        }
    }

    /// Whether an operator may decide this, if the session is in doubt.
    pub(super) fn may_in_doubt(&self, choice: Choice) -> Option<bool> {
        let presence = self.doubt.as_ref()?.presence;
        let is_whole = matches!(presence, Presence::Paused | Presence::Running);
        Some(match choice {
            Choice::RunHere => is_whole && self.request.is_some() && self.failure.is_none(),
            Choice::Forget => presence != Presence::Running,
        })
    }

    /// The discarded copy may have been taken over before, so nobody is told that it never ran.
    pub(super) fn decided_in_doubt(&mut self, choice: Choice) -> DestinationEffect {
        match choice {
            Choice::RunHere => self.journal(Record::Adopted),
            Choice::Forget if self.is_gone => self.journal_discarded(),
            Choice::Forget => {
                let doubt = self.doubt().unwrap_or_default();
                self.discard(format!(
                    "{doubt}; an operator decided that it does not run here"
                ))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Choice, DestinationEffect, DestinationSession, Record};
    use crate::job::{Needs, Presence};
    use crate::session::{Answer, DestinationEvent, Order, Request, Sent, Token};

    fn reserved() -> Record {
        Record::Reserved {
            request: Box::new(Request {
                needs: Needs::default(),
                leave_paused: false,
                parallel: 1,
                seal: token().seal(),
            }),
            peer: "a".to_owned(),
        }
    }

    fn token() -> Token {
        Token::new([7; 32])
    }

    fn doubted(presence: Presence) -> DestinationSession {
        let mut session = DestinationSession::doubted(vec![reserved()], "rot".to_owned());
        let idle = session.step(DestinationEvent::Restarted(presence));
        assert!(matches!(
            idle,
            Some(DestinationEffect::Idle { reason: Some(_) })
        ));
        session
    }

    #[test]
    fn whatever_is_asked_is_refused_and_has_no_effect() {
        for presence in [
            Presence::Absent,
            Presence::Partial,
            Presence::Paused,
            Presence::Running,
        ] {
            let mut session = doubted(presence);
            for order in [
                Order::Receive(Sent {
                    bytes: 1,
                    limits: None,
                }),
                Order::TakeOver(token()),
                Order::Retire,
                Order::Failed("no".to_owned()),
            ] {
                let refused = DestinationEffect::Answer(Answer::Refused("rot".to_owned()));
                assert_eq!(session.step(DestinationEvent::Called(order)), Some(refused));
            }
            assert_eq!(session.step(DestinationEvent::LeaseExpired), None);
        }
        let mut nothing = DestinationSession::doubted(Vec::new(), "rot".to_owned());
        let refused = DestinationEffect::Answer(Answer::Refused("rot".to_owned()));
        let order = DestinationEvent::Called(Order::TakeOver(token()));
        assert_eq!(nothing.step(order), Some(refused));
    }

    #[test]
    fn an_operator_lets_it_run_and_the_source_hears_so() {
        assert!(!doubted(Presence::Partial).may(Choice::RunHere));
        let mut session = doubted(Presence::Paused);
        let decided = session.step(DestinationEvent::Decided(Choice::RunHere));
        assert_eq!(decided, Some(DestinationEffect::Journal(Record::Adopted)));
        let run = session.step(DestinationEvent::Journaled(Ok(())));
        let leave_paused = false;
        assert_eq!(run, Some(DestinationEffect::Unpause { leave_paused }));
        session.step(DestinationEvent::Unpaused(Ok(())));
        session.step(DestinationEvent::Journaled(Ok(())));
        let answer = session.step(DestinationEvent::Called(Order::TakeOver(token())));
        assert_eq!(answer, Some(DestinationEffect::Answer(Answer::Complete)));
    }

    #[test]
    fn an_operator_forgets_it_and_nobody_hears_that_it_never_ran() {
        assert!(!doubted(Presence::Running).may(Choice::Forget));
        let mut session = doubted(Presence::Paused);
        let decided = session.step(DestinationEvent::Decided(Choice::Forget));
        assert_eq!(decided, Some(DestinationEffect::Discard));
        let record = session.step(DestinationEvent::Discarded(Ok(())));
        let forgotten = Record::Forgotten {
            reason: "rot; an operator decided that it does not run here".to_owned(),
        };
        assert_eq!(record, Some(DestinationEffect::Journal(forgotten)));
        session.step(DestinationEvent::Journaled(Ok(())));
        let answer = session.step(DestinationEvent::Called(Order::TakeOver(token())));
        assert!(
            matches!(answer, Some(DestinationEffect::Answer(Answer::Lost(_)))),
            "{answer:?}"
        );
    }
}
