//! A session whose journal does not tell its state.
//!
//! It may have handed over, or resumed the guest, or be about to.  So nothing is done until an operator
//! decides.

use super::{SourceSession, State};
use crate::session::SourceRecord;

impl SourceSession {
    /// The session of which only these records are readable; `None` if its beginning is not among them.
    #[must_use]
    pub fn doubted(records: Vec<SourceRecord>, reason: String) -> Option<Self> {
        let is_begin = |record: &SourceRecord| matches!(record, SourceRecord::Begun { .. });
        let begun = records.into_iter().find(is_begin)?;
        let mut session = Self::recover(vec![begun])?;
        session.state = State::At(SourceRecord::Held { reason });
        session.may_be_whole = true;
        Some(session)
    }

    /// The first records of the new journal, after an operator's decision: what is certain, and that the
    /// destination may have a complete copy.
    #[must_use]
    pub fn anew(&self) -> Vec<SourceRecord> {
        let begun = SourceRecord::Begun {
            request: self.request.clone(),
            token: self.token,
            peer: self.peer.clone(),
        };
        let records = [begun, SourceRecord::Suspending];
        records.into_iter().chain(self.record().cloned()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::SourceSession;
    use crate::job::{Needs, Presence};
    use crate::session::{
        Operator, Order, Request, SourceEffect, SourceEvent, SourceRecord, Token,
    };

    fn begun() -> SourceRecord {
        let token = Token::new([7; 32]);
        SourceRecord::Begun {
            request: Box::new(Request {
                needs: Needs::default(),
                leave_paused: false,
                parallel: 1,
                seal: token.seal(),
            }),
            token,
            peer: "b".to_owned(),
        }
    }

    #[test]
    fn nothing_is_done_until_an_operator_decides() {
        for more in [
            None,
            Some(SourceRecord::Suspending),
            Some(SourceRecord::Done),
        ] {
            for presence in [Presence::Paused, Presence::Running, Presence::Absent] {
                let records = [begun()].into_iter().chain(more.clone()).collect();
                let mut session = SourceSession::doubted(records, "rot".to_owned()).unwrap();
                let held = Some(SourceEffect::Wait {
                    reason: "rot".to_owned(),
                    is_held: true,
                });
                assert_eq!(session.step(SourceEvent::Restarted(presence)), held);
                assert_eq!(session.step(SourceEvent::Retry), held);
                let anew = session.anew();
                let decided = session.step(SourceEvent::Decided(Operator::HandOver));
                let record = SourceRecord::HandedOver;
                assert_eq!(decided, Some(SourceEffect::Journal(record.clone())));
                let called = session.step(SourceEvent::Journaled(Ok(())));
                let token = Token::new([7; 32]);
                assert_eq!(called, Some(SourceEffect::Call(Order::TakeOver(token))));
                // And that is what a restart finds.
                let records = anew.into_iter().chain([record]).collect();
                let again = SourceSession::recover(records).unwrap();
                assert_eq!(again.record(), Some(&SourceRecord::HandedOver));
                assert!(again.may_be_whole);
            }
        }
    }

    #[test]
    fn without_a_beginning_there_is_nothing_to_decide() {
        let records = vec![SourceRecord::Suspending];
        assert_eq!(SourceSession::doubted(records, "rot".to_owned()), None);
    }
}
