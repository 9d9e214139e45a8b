//! A session that will never hand over: the guest goes on here, and the destination is told.
//!
//! When the guest goes on, and that is written down, this session has nothing to do with it any more: it
//! may be moved again at once, though the destination is dead and cannot be told for days.

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
            SourceEvent::Resumed(Err(trouble)) => {
                // What is gone cannot be resumed however often we try.
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
        // The guest does not go on, but the destination need not wait for that.
        if !self.is_told {
            return self.call(Order::Failed(reason));
        }
        let trouble = self.trouble.clone().unwrap_or_default();
        self.wait(format!("the guest cannot be resumed: {trouble}"))
    }

    /// Again, whatever of it is not done yet; the guest comes first.
    pub(super) fn abort_further(&mut self, reason: String) -> SourceEffect {
        if self.is_resumed {
            return self.let_go(reason);
        }
        self.act(SourceEffect::Resume)
    }

    /// The guest goes on, or is gone: from when this is written down on it is not this session's.
    fn let_go(&mut self, reason: String) -> SourceEffect {
        let reason = match &self.trouble {
            Some(trouble) => format!("{reason}; and the guest is gone: {trouble}"),
            None => reason,
        };
        self.journal(SourceRecord::Resumed { reason })
    }

    /// That could not be written down, so the guest stays this session's; the destination need not wait.
    pub(super) fn not_let_go(&mut self, why: String) -> SourceEffect {
        match &self.state {
            State::At(SourceRecord::Aborting { reason }) if !self.is_told => {
                let reason = reason.clone();
                self.call(Order::Failed(reason))
            }
            _ => self.wait(why),
        }
    }

    /// The guest is not this session's any more: the destination is told, and nothing else is done.
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

    /// What came back when the destination was told; what is to be done if it does not know yet.
    fn heard(&mut self, reason: &str, event: SourceEvent) -> Option<SourceEffect> {
        match event {
            SourceEvent::Answered(Answer::NotYet(why)) => Some(self.wait(why)),
            // Any other answer: there is no copy there that could be run with this session's token.
            SourceEvent::Answered(answer) => {
                self.is_told = true;
                self.explanation = explanation(reason, answer);
                None
            }
            SourceEvent::NotAnswered(why) => Some(self.wait(format!(
                "aborted ({reason}); the destination cannot be told: {why}"
            ))),
            _ => None,
        }
    }
}

/// What the destination adds to the reason that it was told.
fn explanation(reason: &str, answer: Answer) -> String {
    let Answer::Discarded(why) = answer else {
        return String::new();
    };
    why.split_once(reason)
        .map_or_else(String::new, |(_, more)| more.to_owned())
}

pub(super) fn no_answer(why: &str) -> String {
    format!("the destination does not answer: {why}")
}

pub(super) fn refusal(answer: Answer) -> String {
    match answer {
        Answer::Discarded(why) | Answer::Lost(why) | Answer::Refused(why) => {
            format!("the destination: {why}")
        }
        Answer::NotYet(why) => format!("the destination is not ready: {why}"),
        Answer::Unknown => "the destination knows nothing of this session".to_owned(),
        Answer::Complete | Answer::Continue => "the destination's answer makes no sense".to_owned(),
    }
}
