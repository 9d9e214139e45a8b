//! A session that will never hand over: the guest resumes here, and the destination is told.
//!
//! Once the guest runs and that is journaled, the session is done with it.  The guest can be migrated again
//! at once, even if the destination is dead and cannot be told for days.

use super::{SourceEffect, SourceEvent, SourceSession, State};
use crate::session::{Answer, Order, SourceRecord};

impl SourceSession {
    /// Decides that this session will never hand over.
    pub(super) fn abort(&mut self, reason: String) -> SourceEffect {
        self.journal(SourceRecord::Aborting { reason })
    }

    pub(super) fn aborting(&mut self, reason: String, event: SourceEvent) -> SourceEffect {
        match event {
            SourceEvent::Resumed(Ok(())) => {
                self.is_resumed = true;
                self.trouble = None;
            }
            // To end here might have the only complete copy discarded.
            SourceEvent::Resumed(Err(trouble))
                if trouble.is_gone && self.may_be_whole && !self.is_told =>
            {
                return self.journal(SourceRecord::Held {
                    reason: format!(
                        "{reason}; and the guest is gone here: {}; the destination may have a complete copy",
                        trouble.reason
                    ),
                });
            }
            SourceEvent::Resumed(Err(trouble)) => {
                // A guest that is gone cannot be resumed by trying again.
                self.is_resumed = trouble.is_gone;
                self.trouble = Some(trouble.reason);
            }
            event => {
                if let Some(wait) = self.heard(&reason, event) {
                    return wait;
                }
            }
        }
        if self.is_resumed {
            return self.let_go(reason);
        }
        // The guest has not resumed, but the destination need not wait for that, unless its copy may be the
        // one that runs in the end.
        if !self.is_told && !self.may_be_whole {
            return self.call(Order::Failed(reason));
        }
        let trouble = self.trouble.clone().unwrap_or_default();
        self.wait(format!("cannot resume the guest: {trouble}"))
    }

    /// Retries what is not done yet; the guest comes first.
    pub(super) fn abort_further(&mut self, reason: String) -> SourceEffect {
        if self.is_resumed {
            return self.let_go(reason);
        }
        self.act(SourceEffect::Resume)
    }

    /// The guest runs, or is gone.  Once that is journaled, it no longer belongs to this session.
    fn let_go(&mut self, reason: String) -> SourceEffect {
        let reason = match &self.trouble {
            Some(trouble) => format!("{reason}; and the guest is gone: {trouble}"),
            None => reason,
        };
        self.journal(SourceRecord::Resumed { reason })
    }

    /// It could not be journaled, so the guest stays with this session; the destination need not wait.
    pub(super) fn not_let_go(&mut self, why: String) -> SourceEffect {
        match &self.state {
            State::At(SourceRecord::Aborting { reason }) if !self.is_told => {
                let reason = reason.clone();
                self.call(Order::Failed(reason))
            }
            _ => self.wait(why),
        }
    }

    /// The guest no longer belongs to this session: only the destination is told.
    pub(super) fn resumed(&mut self, reason: String, event: SourceEvent) -> SourceEffect {
        if let Some(wait) = self.heard(&reason, event) {
            return wait;
        }
        self.tell(reason)
    }

    pub(super) fn tell(&mut self, reason: String) -> SourceEffect {
        if !self.is_told {
            return self.call(Order::Failed(reason));
        }
        let reason = reason + &self.explanation;
        self.journal(SourceRecord::Aborted { reason })
    }

    /// Handles the destination's answer to the failure; returns what to do if it does not know yet.
    fn heard(&mut self, reason: &str, event: SourceEvent) -> Option<SourceEffect> {
        match event {
            SourceEvent::Answered(Answer::NotYet(why)) => Some(self.wait(why)),
            // Any other answer: it has no copy that could run with this session's token.
            SourceEvent::Answered(answer) => {
                self.is_told = true;
                self.explanation = explanation(reason, answer);
                None
            }
            SourceEvent::NotAnswered(why) => {
                Some(self.wait(format!("aborted ({reason}), but {why}")))
            }
            _ => None,
        }
    }
}

/// What the destination adds to the reason that it was told.
fn explanation(reason: &str, answer: Answer) -> String {
    let Answer::Discarded(why) = answer else {
        return String::new();
    };
    match why.split_once(reason) {
        Some((_, more)) => more.to_owned(),
        // The reason was its own refusal.
        None if reason.contains(&why) => String::new(),
        // It had failed, or was stopped, before it was told.
        None => format!("; the destination: {why}"),
    }
}

pub(super) fn refusal(answer: Answer) -> String {
    match answer {
        Answer::Discarded(why) | Answer::Lost(why) | Answer::Refused(why) => {
            format!("the destination: {why}")
        }
        Answer::NotYet(why) => format!("the destination is not ready: {why}"),
        Answer::Unknown => "the destination does not know this session".to_owned(),
        Answer::Complete | Answer::Continue => "unexpected answer from the destination".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::{Answer, Order, SourceEffect, SourceEvent, SourceRecord, SourceSession};
    use crate::job::{Needs, Presence};
    use crate::session::{Operator, Request, Sent, Token, Trouble};

    #[test]
    fn the_destination_adds_only_what_is_new() {
        let adds =
            |reason: &str, why: &str| super::explanation(reason, Answer::Discarded(why.to_owned()));
        assert_eq!(
            adds("lost", "lost; at the destination: xl died"),
            "; at the destination: xl died"
        );
        assert_eq!(adds("lost", "stopped"), "; the destination: stopped");
        assert_eq!(adds("the destination: not allowed", "not allowed"), "");
    }

    /// Does as it is told, but the guest is gone and the destination's answers are these; what was called,
    /// and what it waits for or how it ended.
    fn play(
        session: &mut SourceSession,
        event: SourceEvent,
        answer: &dyn Fn(&Order) -> SourceEvent,
    ) -> (Vec<Order>, SourceEffect) {
        let mut calls = Vec::new();
        let mut next = session.step(event);
        loop {
            let event = match next.expect("nothing waits for that") {
                SourceEffect::Journal(_) => SourceEvent::Journaled(Ok(())),
                SourceEffect::Call(order) => {
                    let event = answer(&order);
                    calls.push(order);
                    event
                }
                SourceEffect::CopyLive => SourceEvent::LiveCopied(Ok(())),
                SourceEffect::CopyRest => SourceEvent::RestCopied(Ok(Sent {
                    bytes: 1,
                    limits: None,
                })),
                SourceEffect::RuleOutAbort => SourceEvent::AbortRuledOut(Ok(())),
                SourceEffect::Resume => SourceEvent::Resumed(Err(Trouble {
                    reason: "no domain".to_owned(),
                    is_gone: true,
                })),
                end => return (calls, end),
            };
            next = session.step(event);
        }
    }

    fn request(token: &Token) -> Box<Request> {
        Box::new(Request {
            needs: Needs::default(),
            leave_paused: false,
            parallel: 1,
            seal: token.seal(),
        })
    }

    /// The destination has got everything, and its answer is lost.
    fn silent(order: &Order) -> SourceEvent {
        match order {
            Order::Reserve(_) => SourceEvent::Answered(Answer::Continue),
            _ => SourceEvent::NotAnswered("the way is cut".to_owned()),
        }
    }

    #[test]
    fn a_copy_that_may_be_the_only_one_is_not_thrown_away() {
        let token = Token::new([7; 32]);
        let mut session = SourceSession::new(request(&token), token, "b".to_owned());
        let (calls, held) = play(&mut session, SourceEvent::Begin, &silent);
        assert!(
            matches!(held, SourceEffect::Wait { is_held: true, .. }),
            "{held:?}"
        );
        let is_failed = |order: &Order| matches!(order, Order::Failed(_));
        assert!(!calls.iter().any(is_failed), "{calls:?}");
        // It cannot run here, whoever wants that.
        let here = SourceEvent::Decided(Operator::RunHere);
        let (calls, held) = play(&mut session, here, &silent);
        assert!(
            matches!(held, SourceEffect::Wait { is_held: true, .. }),
            "{held:?}"
        );
        assert_eq!(calls, []);
        // There is none: that is the end.
        let there = SourceEvent::Decided(Operator::HandOver);
        let discarded = |_: &Order| SourceEvent::Answered(Answer::Discarded("crash".to_owned()));
        let (calls, end) = play(&mut session, there, &discarded);
        assert_eq!(calls, [Order::TakeOver(token)]);
        assert!(matches!(end, SourceEffect::End(Err(why)) if why.contains("gone")));
    }

    #[test]
    fn a_whole_copy_is_not_thrown_away_while_the_guest_cannot_go_on() {
        let token = Token::new([7; 32]);
        let begun = SourceRecord::Begun {
            request: request(&token),
            token,
            peer: "b".to_owned(),
        };
        let records = vec![begun, SourceRecord::Suspending];
        let mut session = SourceSession::recover(records).expect("it has a beginning");
        session.step(SourceEvent::Restarted(Presence::Paused));
        let resume = session.step(SourceEvent::Journaled(Ok(())));
        assert_eq!(resume, Some(SourceEffect::Resume));
        let stuck = SourceEvent::Resumed(Err(Trouble {
            reason: "xenstored has no time".to_owned(),
            is_gone: false,
        }));
        // The destination is not told: it would throw away what may be the one that runs in the end.
        let waits = session.step(stuck);
        assert!(
            matches!(waits, Some(SourceEffect::Wait { .. })),
            "{waits:?}"
        );
        assert_eq!(session.step(SourceEvent::Retry), resume);
        session.step(SourceEvent::Resumed(Ok(())));
        let told = session.step(SourceEvent::Journaled(Ok(())));
        assert!(
            matches!(told, Some(SourceEffect::Call(Order::Failed(_)))),
            "{told:?}"
        );
    }

    #[test]
    fn a_guest_that_dies_before_all_is_sent_needs_no_operator() {
        let token = Token::new([7; 32]);
        let mut session = SourceSession::new(request(&token), token, "b".to_owned());
        let answer = |order: &Order| match order {
            Order::Reserve(_) => SourceEvent::Answered(Answer::Continue),
            _ => SourceEvent::Answered(Answer::Complete),
        };
        let mut next = session.step(SourceEvent::Begin);
        while next != Some(SourceEffect::CopyRest) {
            next = session.step(match next.expect("nothing waits for that") {
                SourceEffect::Journal(_) => SourceEvent::Journaled(Ok(())),
                SourceEffect::Call(order) => answer(&order),
                _ => SourceEvent::LiveCopied(Ok(())),
            });
        }
        let died = SourceEvent::RestCopied(Err("it has crashed".to_owned()));
        let (calls, end) = play(&mut session, died, &answer);
        assert!(matches!(&calls[..], [Order::Failed(_)]), "{calls:?}");
        assert!(matches!(end, SourceEffect::End(Err(why)) if why.contains("gone")));
    }

    #[test]
    fn a_guest_that_is_found_dying_after_a_restart_is_held() {
        let token = Token::new([7; 32]);
        let begun = SourceRecord::Begun {
            request: request(&token),
            token,
            peer: "b".to_owned(),
        };
        for presence in [Presence::Absent, Presence::Partial] {
            let records = vec![begun.clone(), SourceRecord::Suspending];
            let mut session = SourceSession::recover(records).expect("it has a beginning");
            let event = SourceEvent::Restarted(presence);
            let (calls, held) = play(&mut session, event, &silent);
            assert!(
                matches!(held, SourceEffect::Wait { is_held: true, .. }),
                "{held:?}"
            );
            assert_eq!(calls, []);
        }
        // One that only ran here has no copy that is whole.
        let mut session = SourceSession::recover(vec![begun]).expect("it has a beginning");
        let discarded = |_: &Order| SourceEvent::Answered(Answer::Complete);
        let event = SourceEvent::Restarted(Presence::Absent);
        let (_, end) = play(&mut session, event, &discarded);
        assert!(matches!(end, SourceEffect::End(Err(_))), "{end:?}");
    }
}
